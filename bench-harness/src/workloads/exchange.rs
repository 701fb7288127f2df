//! All-to-all exchange: threads swap blocks through shared slots. Most blocks are freed by another
//! thread than the one that allocated them.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::blocks::{alloc_raw, free_raw};
use crate::prng::Prng;
use crate::run::Run;

const THREADS: usize = 4;

/// Slots that all threads share. A slot's index determines the layout of its blocks, so no thread
/// has to read a block to free it.
struct Slots(Vec<AtomicPtr<u8>>);

impl Slots {
    fn new(count: usize) -> Self {
        let block = |slot| AtomicPtr::new(alloc_raw(Self::layout(slot)).as_ptr());
        Self((0..count).map(block).collect())
    }

    /// Returns a layout of 16 to 1003 bytes. All sizes are about equally frequent.
    fn layout(slot: usize) -> Layout {
        Layout::from_size_align(16 + slot * 37 % 988, 8).expect("a small size")
    }

    /// Puts a new block into `slot` and frees the previous one.
    #[inline(always)]
    fn replace(&self, slot: usize) {
        let layout = Self::layout(slot);
        let new = alloc_raw(layout);
        // SAFETY: the block was just allocated and has at least 16 bytes.
        unsafe { new.write(1) };
        let old = self.0[slot].swap(new.as_ptr(), Ordering::AcqRel);
        if let Some(old) = NonNull::new(old) {
            // SAFETY: every block in this slot was allocated with this layout, and the swap removed
            // it for this thread alone.
            unsafe { free_raw(old, layout) };
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for (slot, block) in self.0.iter_mut().enumerate() {
            if let Some(block) = NonNull::new(*block.get_mut()) {
                // SAFETY: the block was allocated with the layout of its slot, and `&mut self`
                // excludes other threads.
                unsafe { free_raw(block, Self::layout(slot)) };
            }
        }
    }
}

pub(super) fn run(run: &mut Run) {
    let total: u64 = run.pick(3_000_000, 300_000, 4000);
    let count = run.pick(10_000, 10_000, 100);
    let slots = Slots::new(count);
    run.time_threads(
        THREADS,
        total,
        |index| Prng::new(index as u64 + 1),
        |prng| {
            for _ in 0..total / THREADS as u64 {
                slots.replace(prng.below(count));
            }
        },
    );
}
