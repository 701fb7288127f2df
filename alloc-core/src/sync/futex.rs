//! A word to sleep on. Under loom, a queue beside the word replaces the kernel, so that models
//! detect a lost wake-up as a deadlock.

use core::ops::Deref;

use super::const_unless_loom;
use super::primitive::AtomicU32;

/// An atomic word that threads can sleep on. (`futex(2)`.)
pub(crate) struct Futex {
    word: AtomicU32,
    #[cfg(loom)]
    queue: (loom::sync::Mutex<()>, loom::sync::Condvar),
}

impl Futex {
    const_unless_loom! {
        pub(crate) const fn new(value: u32) -> Futex {
            Futex {
                word: AtomicU32::new(value),
                #[cfg(loom)]
                queue: (loom::sync::Mutex::new(()), loom::sync::Condvar::new()),
            }
        }
    }

    /// Sleeps while the word holds `expected`. May return at any time.
    pub(crate) fn wait(&self, expected: u32) {
        #[cfg(not(loom))]
        crate::os::futex_wait(&self.word, expected);
        #[cfg(loom)]
        {
            let (queue, sleepers) = &self.queue;
            let queue = queue.lock().unwrap();
            // The kernel also reads the word under the lock of its queue.
            if self.word.load(core::sync::atomic::Ordering::SeqCst) == expected {
                drop(sleepers.wait(queue).unwrap());
            }
        }
    }

    /// As [`Futex::wait`], for at most `milliseconds`.
    pub(crate) fn wait_for(&self, expected: u32, milliseconds: u64) {
        #[cfg(not(loom))]
        crate::os::futex_wait_for(&self.word, expected, milliseconds);
        #[cfg(loom)]
        {
            let _ = milliseconds;
            self.wait(expected);
        }
    }

    /// Wakes all sleepers.
    pub(crate) fn wake_all(&self) {
        #[cfg(not(loom))]
        crate::os::futex_wake_all(&self.word);
        #[cfg(loom)]
        {
            let (queue, sleepers) = &self.queue;
            let _queue = queue.lock().unwrap();
            sleepers.notify_all();
        }
    }

    /// Wakes one sleeper, if there is one.
    pub(crate) fn wake_one(&self) {
        #[cfg(not(loom))]
        crate::os::futex_wake_one(&self.word);
        #[cfg(loom)]
        {
            let (queue, sleepers) = &self.queue;
            let _queue = queue.lock().unwrap();
            sleepers.notify_one();
        }
    }
}

impl Deref for Futex {
    type Target = AtomicU32;

    #[inline]
    fn deref(&self) -> &AtomicU32 {
        &self.word
    }
}
