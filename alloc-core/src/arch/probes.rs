//! Probes of sampled allocations for tracers: the provider `otel_memory`, as OpenTelemetry's
//! profiler expects it.
//!
//! A probe is a `nop`, and a note in the ELF file with the location of the `nop`, of its arguments,
//! and of a semaphore: a number that the kernel, or a debugger, raises by one for each tracer that
//! attaches to the probe of this process. Both probes share one. The notes take no memory in the
//! process, and `strip` keeps them.
//!
//! The arguments are in the registers of a call in the C convention, since there are tracers that
//! take them from there without reading the note. Each probe is a function that is never inlined:
//! so it has one place, and one note.
//!
//! Format: `sys/sdt.h` of SystemTap. Definition of the probes: `design-docs/00003-memory-profiling`
//! in `open-telemetry/opentelemetry-ebpf-profiler`.

use core::arch::asm;
use core::sync::atomic::{AtomicU16, Ordering};

/// The number of tracers. It must be in the file, where tracers find it: a section with this name
/// is never one of zeros that the file leaves out. Relaxed: the number guards nothing.
#[used]
#[unsafe(link_section = ".probes")]
static SEMAPHORE: AtomicU16 = AtomicU16::new(0);

/// Returns whether a tracer is attached.
#[inline]
pub(crate) fn is_traced() -> bool {
    SEMAPHORE.load(Ordering::Relaxed) != 0
}

/// A `nop` with a note. The arguments are in the registers that the note names.
macro_rules! probe {
    ($name:literal, $registers:literal $(, $register:tt = $argument:expr)+) => {
        // SAFETY: a `nop`. What a tracer does there, it does to memory of its own.
        unsafe {
            asm!(
                "990: nop",
                ".pushsection .note.stapsdt, \"?\", \"note\"",
                ".balign 4",
                ".4byte 992f-991f, 994f-993f, 3",
                "991: .asciz \"stapsdt\"",
                "992: .balign 4",
                "993: .8byte 990b",
                ".8byte _.stapsdt.base",
                ".8byte {semaphore}",
                ".asciz \"otel_memory\"",
                concat!(".asciz \"", $name, "\""),
                concat!(".asciz \"", $registers, "\""),
                "994: .balign 4",
                ".popsection",
                // Tracers compare its address with that in the note, to find out by how much the
                // file was moved after it was linked.
                ".ifndef _.stapsdt.base",
                ".pushsection .stapsdt.base, \"aGR\", \"progbits\", .stapsdt.base, comdat",
                ".weak _.stapsdt.base",
                ".hidden _.stapsdt.base",
                "_.stapsdt.base: .space 1",
                ".size _.stapsdt.base, 1",
                ".popsection",
                ".endif",
                semaphore = sym SEMAPHORE,
                $(in($register) $argument,)+
                options(readonly, nostack, preserves_flags),
            );
        }
    };
}

/// The probe `alloc`: a block of `size` bytes was sampled, which stands for `weighted` bytes.
#[inline(never)]
pub(crate) fn alloc(block: usize, size: usize, weighted: u64) {
    #[cfg(target_arch = "x86_64")]
    probe!("alloc", "8@%rdi 8@%rsi 8@%rdx", "rdi" = block, "rsi" = size, "rdx" = weighted);
    #[cfg(target_arch = "aarch64")]
    probe!("alloc", "8@x0 8@x1 8@x2", "x0" = block, "x1" = size, "x2" = weighted);
}

/// The probe `free`: a sampled block was freed.
#[inline(never)]
pub(crate) fn free(block: usize) {
    #[cfg(target_arch = "x86_64")]
    probe!("free", "8@%rdi", "rdi" = block);
    #[cfg(target_arch = "aarch64")]
    probe!("free", "8@x0", "x0" = block);
}
