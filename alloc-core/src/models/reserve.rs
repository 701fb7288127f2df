//! The reserve of an arena: blocks are taken, committed, freed and given up without a lock.

use loom::cell::UnsafeCell;
use loom::sync::Arc;

use super::{race, race_of};
use crate::page::reserve::Reserve;

/// Blocks of a reserve of two words.
const BLOCKS: usize = 128;

/// A reserve, and the memory of its first block.
struct Shared {
    reserve: Reserve,
    memory: UnsafeCell<usize>,
}

// SAFETY: only the owner of the first block writes the memory.
unsafe impl Sync for Shared {}
// SAFETY: nothing is tied to a thread.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared { reserve: Reserve::new(), memory: UnsafeCell::new(0) })
    }
}

/// Two threads take and free the only block. Each owner is done with its memory before the next.
#[test]
fn block_of_the_reserve_has_one_owner() {
    loom::model(|| {
        let shared = Shared::new();
        race(move |_| {
            let Shared { reserve, memory } = &*shared;
            if reserve.take(1, 1, 0, 1).is_some() {
                // SAFETY: this thread alone has the block.
                memory.with_mut(|memory| unsafe { *memory += 1 });
                // SAFETY: this thread took the block, and is done with it.
                unsafe { reserve.give(0, 1) };
            }
        });
    });
}

/// A thread that finds a block taken and committed may read its metadata.
#[test]
fn committed_block_can_be_read() {
    loom::model(|| {
        let shared = Shared::new();
        race(move |number| {
            let Shared { reserve, memory } = &*shared;
            if number == 1 {
                assert_eq!(reserve.take(1, 1, 0, 1), Some(0));
                memory.with_mut(|memory| {
                    // SAFETY: this thread alone has the block, which nobody reads yet.
                    unsafe { *memory = 1 }
                });
                // SAFETY: this thread took the block, and has committed it.
                unsafe { reserve.set_committed(0, 1) };
            } else if reserve.has(0) {
                memory.with(|memory| {
                    // SAFETY: the block can be read.
                    unsafe { assert_eq!(*memory, 1) }
                });
            }
        });
    });
}

/// A run longer than a word and a short one are taken at once: no block has two owners, and a run
/// that is refused leaves none taken.
#[test]
fn refused_run_leaves_no_block_taken() {
    loom::model(|| {
        let shared = Shared::new();
        let own = shared.clone();
        race(move |number| {
            let reserve = &own.reserve;
            let len = if number == 1 { BLOCKS } else { 1 };
            if let Some(first) = reserve.take(len, 1, 0, BLOCKS) {
                assert!(number == 2 || first == 0);
                // SAFETY: this thread took the blocks.
                unsafe { reserve.give(first, len) };
            }
        });
        assert_eq!(shared.reserve.take(BLOCKS, 1, 0, BLOCKS), Some(0));
    });
}

/// The end of the reserve is given up while two threads take blocks, one of which frees its own: no
/// block behind the returned one is in use, then or later, and all others can still be taken.
#[test]
fn blocks_given_up_are_nobodys() {
    // Without a bound the search takes more than five minutes.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(3);
    bounded.check(|| {
        const FEW: usize = 4;
        let shared = Shared::new();
        let own = shared.clone();
        let result = Arc::new(loom::sync::Mutex::new((0, None)));
        let out = result.clone();
        race_of(3, move |number| {
            let reserve = &own.reserve;
            if number == 3 {
                out.lock().unwrap().0 = reserve.give_up(0, FEW);
                return;
            }
            let taken = reserve.take(1, 1, 0, FEW);
            match (number, taken) {
                // SAFETY: this thread took the block.
                (1, Some(first)) => unsafe { reserve.give(first, 1) },
                (1, None) => {}
                _ => out.lock().unwrap().1 = taken,
            }
        });
        let (kept, live) = *result.lock().unwrap();
        assert!(live.is_none_or(|block| block < kept), "{live:?} of {kept} blocks");
        for block in 0..kept {
            let is_free = Some(block) != live;
            let found = shared.reserve.take(1, 1, 0, block + 1);
            assert_eq!(found.is_some(), is_free, "block {block} of {kept}, {live:?} is in use");
        }
        assert_eq!(shared.reserve.take(1, 1, 0, FEW), None);
    });
}
