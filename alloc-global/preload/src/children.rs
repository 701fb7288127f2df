//! `vfork`, implemented as `fork`.
//!
//! The child of a `vfork` shares its parent's memory but is another task to the kernel. The kernel
//! does not abort its restartable sequences when it migrates or preempts the child in the middle of
//! per-CPU work, and the child reads the number of the CPU that its parent ran on. So such a child
//! must not allocate, yet many do. POSIX allows `vfork` to be `fork`.

/// Creates a child process with memory of its own. Returns as `fork` does.
#[unsafe(no_mangle)]
extern "C" fn vfork() -> libc::pid_t {
    // SAFETY: the child of a `vfork` may do less than that of a `fork`, so a program that obeys the
    // rules of `vfork` obeys those of `fork`.
    unsafe { libc::fork() }
}
