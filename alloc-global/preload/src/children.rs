//! `vfork`, as `fork`.
//!
//! The child of a `vfork` shares its parent's memory, and is another task for the kernel: it is not told when it is moved to another
//! CPU, or preempted, in the midst of work on what belongs to a CPU, and reads the number of the CPU on which its parent was. So
//! such a child must not allocate, and many do. POSIX allows `vfork` to be `fork`.

/// Makes a child, with memory of its own.
#[unsafe(no_mangle)]
extern "C" fn vfork() -> libc::pid_t {
    // SAFETY: a child that may do what that of a `vfork` may does less than is allowed to that of a `fork`.
    unsafe { libc::fork() }
}
