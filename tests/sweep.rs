//! Every size class: all sizes up to 40 KiB, the borders of the classes above, and all alignments
//! up to a page.

use tests::entry_points::{Hayloft, Registered};
use tests::model::{LIVE_MAX, Model};
use tests::scenario::on_both_backends;
use tests::sizes::{boundaries, layout};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A size above the small classes.
const LARGEST_SMALL: usize = 40 << 10;
/// A size above all classes.
const LARGEST: usize = 3 << 19;

/// Blocks of every size, three side by side, do not disturb each other or survivors of earlier
/// sizes.
#[test]
fn blocks_of_every_size_keep_their_contents() {
    on_both_backends(|| {
        let mut model = Model::new(Registered, 1);
        let boundaries = boundaries(LARGEST).filter(|size| *size > LARGEST_SMALL);
        for size in (1..=LARGEST_SMALL).chain(boundaries) {
            for align in [1, 8, 16] {
                model.alloc(layout(size, align));
            }
            // All three are checked once all are filled. One of them survives for a while.
            let last = model.len() - 1;
            (last - 2..=last).for_each(|index| model.check(index));
            model.free(last - 1);
            model.free(last - 2);
            if model.len() >= 64 {
                model.free_all();
            }
        }
    });
}

/// Every alignment up to a page works at every border of size classes.
#[test]
fn every_alignment_works_at_every_class_boundary() {
    on_both_backends(|| {
        let mut model = Model::new(Hayloft, 2);
        for size in boundaries(LARGEST) {
            for power in 0..=12 {
                model.alloc(layout(size, 1 << power));
                model.alloc_zeroed(layout(size, 1 << power));
            }
            model.free_all();
        }
    });
}

/// Enough blocks of one size to take several slabs, and to fill and empty a CPU's sheaf, can be
/// allocated three times over. Memory must come back from wherever it went.
#[test]
fn freed_memory_of_a_size_can_be_allocated_again() {
    on_both_backends(|| {
        let mut model = Model::new(Registered, 3);
        for size in boundaries(LARGEST).step_by(5) {
            let count = ((1 << 20) / size).clamp(16, LIVE_MAX / 2);
            for _ in 0..3 {
                (0..count).for_each(|_| model.alloc(layout(size, 1)));
                model.check_all();
                model.free_all();
            }
        }
    });
}

/// `alloc_zeroed` returns zeroed memory even if that was written and freed before.
#[test]
fn alloc_zeroed_clears_reused_memory() {
    on_both_backends(|| {
        let mut model = Model::new(Registered, 4);
        for size in boundaries(LARGEST).chain([5 << 20]) {
            for align in [1, 64] {
                (0..4).for_each(|_| model.alloc(layout(size, align)));
                model.free_all();
                (0..6).for_each(|_| model.alloc_zeroed(layout(size, align)));
                model.free_all();
            }
        }
    });
}

/// Blocks are resized from border to border, up one by one and down again, and across the whole
/// range at once.
#[test]
fn realloc_keeps_contents_across_class_boundaries() {
    on_both_backends(|| {
        let sizes: Vec<_> = boundaries(256 << 10).collect();
        for align in [1, 16, 256, 4096] {
            let mut model = Model::new(Registered, 5);
            model.alloc(layout(sizes[0], align));
            for size in sizes.iter().chain(sizes.iter().rev()) {
                // A neighbour of the same size prevents some growth in place.
                model.alloc(layout(*size, align));
                model.realloc(0, *size);
                // The model has moved the resized block to the end of its list, so this is the
                // neighbour.
                model.free(0);
            }
            for size in sizes.iter().rev() {
                model.realloc(0, *size);
                model.realloc(0, sizes[sizes.len() - 1] + 1 - size);
            }
        }
    });
}

/// Large blocks are resized by doubling, halving and odd steps.
#[test]
fn realloc_keeps_contents_of_large_blocks() {
    on_both_backends(|| {
        let mut model = Model::new(Hayloft, 6);
        for align in [1, 4096, 64 << 10] {
            model.alloc(layout(64 << 10, align));
            for power in (16..=24).chain((14..24).rev()) {
                model.realloc(0, (1 << power) + 1);
                model.realloc(0, (1 << power) + (1 << (power - 2)));
            }
            model.free_all();
        }
    });
}
