//! Restartable sequences and system calls on x86-64.
//!
//! `sections` holds the critical sections, `words` the symbols that they read, `system` the calls
//! of the kernel, and `frames` what a walk of the stack knows of registers and calls. Apart from
//! these symbols, no module uses another.

pub(crate) mod frames;
mod sections;
mod system;
mod words;

pub(crate) use sections::{
    add, open, pop, pop_bulk, push, push_bulk, push_by_address, push_once, recount, widen,
};
pub(crate) use system::{call_on_stack, program_settings, start_thread, stream_locks, system_call};
pub(crate) use words::{
    cpu, libc_rseq, locals, lowest, own_rseq, publish_region, publish_rseq_offset, thread_pointer,
};

/// This build has restartable sequences. Whether the kernel grants them is found out at run time.
pub(crate) const HAVE_RSEQ: bool = true;

/// Signature that the kernel requires in front of an abort handler, and at registration.
pub(crate) const SIGNATURE: u32 = 0x5305_3053;
