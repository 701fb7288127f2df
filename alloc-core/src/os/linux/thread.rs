//! Threads of the C library: creating, pinning and joining them, and hooks that run when they end.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::super::inject::{Call, fails};
use super::affinity::CpuMask;
use super::system_call::{SavedErrno, call, word};
use crate::text::process_id;

/// Returns the kernel's number of this thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: `gettid` takes no arguments; it cannot fail.
    unsafe { call(libc::SYS_gettid, []) }.unwrap_or(0) as i32
}

/// Returns whether this is the main thread of the process.
pub(crate) fn is_main_thread() -> bool {
    thread_id() == process_id()
}

/// Names this thread. The kernel cuts off a name that is too long.
pub(crate) fn name_thread(name: &CStr) {
    let arguments = [word(libc::PR_SET_NAME), name.as_ptr().expose_provenance()];
    // SAFETY: the name ends in a null byte.
    let _ = unsafe { call(libc::SYS_prctl, arguments) };
}

/// A thread created by [`spawn`].
pub(crate) struct Thread(libc::pthread_t);

/// Starts a thread that runs `body` with `argument`. Its stack has `stack` bytes beside the
/// thread-locals. Returns `None` if no further thread can be created. May allocate.
pub(crate) fn spawn(
    stack: usize,
    body: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Option<Thread> {
    /// Bytes reserved on the stack for thread-locals, which glibc places there: at first, and at
    /// most. The loader knows their size, but only under its lock, which in a fork child may be
    /// held by a thread that does not exist there. Unused parts of a stack take no memory.
    const LOCALS: usize = 1 << 20;
    const MOST_LOCALS: usize = 64 << 20;

    if fails(Call::Clone) {
        return None;
    }
    let _errno = SavedErrno::new();
    let mut locals = LOCALS;
    loop {
        // SAFETY: the attributes and the thread are locals that the calls may write.
        unsafe {
            let (mut attributes, mut thread) = (core::mem::zeroed(), core::mem::zeroed());
            libc::pthread_attr_init(&raw mut attributes);
            libc::pthread_attr_setstacksize(&raw mut attributes, stack + locals);
            let result =
                libc::pthread_create(&raw mut thread, &raw const attributes, body, argument);
            libc::pthread_attr_destroy(&raw mut attributes);
            match result {
                0 => return Some(Thread(thread)),
                // The thread-locals do not fit.
                libc::EINVAL if locals < MOST_LOCALS => locals *= 4,
                _ => return None,
            }
        }
    }
}

/// A place for a thread created by [`spawn`], or for none. Its users take turns.
pub(crate) struct ThreadSlot(UnsafeCell<Option<Thread>>);

// SAFETY: the users of a slot take turns, and any thread may use another's `pthread_t`.
unsafe impl Sync for ThreadSlot {}

impl ThreadSlot {
    pub(crate) const fn new() -> ThreadSlot {
        ThreadSlot(UnsafeCell::new(None))
    }

    pub(crate) fn set(&self, thread: Option<Thread>) {
        // SAFETY: the users of a slot take turns, and it is the caller's turn.
        unsafe { *self.0.get() = thread };
    }

    /// Restricts the thread to some CPUs. Returns false if there is no thread or it may not run
    /// there.
    pub(crate) fn pin(&self, cpus: &CpuMask) -> bool {
        // Exists in glibc and musl; the `libc` crate does not declare it for both.
        unsafe extern "C" {
            fn pthread_setaffinity_np(
                thread: libc::pthread_t,
                len: usize,
                cpus: *const CpuMask,
            ) -> c_int;
        }
        // SAFETY: it is the caller's turn to use the slot, the thread has not been joined, and the
        // mask has the length that is passed.
        unsafe {
            (*self.0.get()).as_ref().is_some_and(|thread| {
                pthread_setaffinity_np(thread.0, size_of::<CpuMask>(), cpus) == 0
            })
        }
    }

    /// Waits until the thread has ended, if there is one.
    pub(crate) fn join(&self) {
        // SAFETY: it is the caller's turn to use the slot, and nobody else joins the thread.
        unsafe {
            if let Some(thread) = (*self.0.get()).take() {
                libc::pthread_join(thread.0, ptr::null_mut());
            }
        }
    }
}

/// A hook that runs when a thread ends.
pub(crate) struct ThreadExit {
    /// The C library's key plus one; 0 before the key exists.
    key: AtomicU32,
    hook: unsafe extern "C" fn(*mut c_void),
}

impl ThreadExit {
    /// Creates a hook that is not installed yet. Its argument has no meaning.
    pub(crate) const fn new(hook: unsafe extern "C" fn(*mut c_void)) -> ThreadExit {
        ThreadExit { key: AtomicU32::new(0), hook }
    }

    /// Installs the hook on this thread. It runs when the thread ends; on the main thread only at
    /// `pthread_exit`. Returns false if the C library has no key left. May allocate.
    pub(crate) fn expect(&self) -> bool {
        let _errno = SavedErrno::new();
        // SAFETY: the key is this hook's own; a second key from a race is merely wasted.
        unsafe {
            let mut key = self.key.load(Ordering::Relaxed);
            if key == 0 {
                let mut made: libc::pthread_key_t = 0;
                if libc::pthread_key_create(&raw mut made, Some(self.hook)) != 0 {
                    return false;
                }
                key = made as u32 + 1;
                self.key.store(key, Ordering::Relaxed);
            }
            let not_null = ptr::without_provenance(1);
            libc::pthread_setspecific((key - 1) as libc::pthread_key_t, not_null) == 0
        }
    }
}
