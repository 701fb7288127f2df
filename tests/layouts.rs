//! Layouts at the limits: zero size, larger than any address space, aligned to a gigabyte; and a
//! `realloc` that fails.

use std::alloc::GlobalAlloc;

use tests::entry_points::{Hayloft, Registered};
use tests::pattern;
use tests::scenario::on_both_backends;
use tests::sizes::layout;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Returns the largest size that a layout of this alignment may have.
const fn largest(align: usize) -> usize {
    isize::MAX as usize - (align - 1)
}

/// `GlobalAlloc` leaves zero-size layouts undefined. Hayloft defines them, since C programs and
/// careless callers use them: `alloc` returns an aligned address that may be freed.
#[test]
fn zero_size_blocks_are_aligned_and_can_be_freed() {
    on_both_backends(|| {
        for power in 0..=16 {
            let empty = layout(0, 1 << power);
            // SAFETY: Hayloft defines layouts of zero size.
            let blocks = unsafe { [Hayloft.alloc(empty), Hayloft.alloc_zeroed(empty)] };
            for address in blocks {
                assert!(!address.is_null(), "{empty:?} was refused");
                assert!(address.addr().is_multiple_of(empty.align()), "{address:p} for {empty:?}");
                // SAFETY: Hayloft returned the block for this layout.
                unsafe { Hayloft.dealloc(address, empty) };
            }
        }
    });
}

/// A block may grow from zero size and shrink to it.
#[test]
fn realloc_works_from_and_to_zero_size() {
    on_both_backends(|| {
        for power in 0..=12 {
            let (empty, full) = (layout(0, 1 << power), layout(1000, 1 << power));
            // SAFETY: each address is used with its current layout, and Hayloft defines layouts of
            // zero size.
            unsafe {
                let grown = Hayloft.realloc(Hayloft.alloc(empty), empty, full.size());
                assert!(!grown.is_null(), "{full:?} was refused");
                pattern::fill(grown, 0, full.size(), 1);
                assert_eq!(pattern::find_mismatch(grown, full.size(), 1), None);
                let shrunk = Hayloft.realloc(grown, full, 0);
                assert!(!shrunk.is_null(), "{empty:?} was refused");
                Hayloft.dealloc(shrunk, empty);
            }
        }
    });
}

/// Sizes larger than any address space are refused with null, at every alignment of a layout.
#[test]
fn impossible_sizes_return_null() {
    on_both_backends(|| {
        for power in 0..=62 {
            let align = 1 << power;
            for size in [largest(align), largest(align) - 1, largest(align) / 2 + 1] {
                if size < 1 << 50 && align < 1 << 50 {
                    continue;
                }
                let huge = layout(size, align);
                // SAFETY: the size is not zero.
                let addresses = unsafe {
                    [
                        Hayloft.alloc(huge),
                        Hayloft.alloc_zeroed(huge),
                        Registered.alloc(huge),
                        Registered.alloc_zeroed(huge),
                    ]
                };
                let is_refused = addresses.iter().all(|address| address.is_null());
                assert!(is_refused, "{huge:?} was granted: {addresses:?}");
            }
        }
    });
}

/// Blocks are aligned up to a gigabyte, with sizes below, at and above a page.
#[test]
fn blocks_are_aligned_up_to_a_gigabyte() {
    on_both_backends(|| {
        for power in 0..=30 {
            for size in [1, 4096, 5000, 1 << power, (1 << power) + 1] {
                let layout = layout(size, 1 << power);
                // SAFETY: the size is not zero, and only the block's first and last bytes are
                // accessed.
                unsafe {
                    let address = Hayloft.alloc(layout);
                    assert!(!address.is_null(), "{layout:?} was refused");
                    assert!(
                        address.addr().is_multiple_of(layout.align()),
                        "{address:p} for {layout:?}"
                    );
                    address.write(1);
                    address.add(size - 1).write(2);
                    assert_eq!(address.add(size - 1).read(), 2);
                    Hayloft.dealloc(address, layout);
                }
            }
        }
    });
}

/// Blocks of large alignment do not overlap, and their zeroed memory is zero.
#[test]
fn blocks_of_large_alignment_do_not_overlap() {
    on_both_backends(|| {
        for power in 12..=26 {
            let layout = layout(3 * 4096 + 1, 1 << power);
            // SAFETY: the size is not zero. Each block is used within its size and freed once.
            unsafe {
                let blocks: [*mut u8; 4] = std::array::from_fn(|_| Hayloft.alloc_zeroed(layout));
                for (id, &address) in blocks.iter().enumerate() {
                    assert!(!address.is_null(), "{layout:?} was refused");
                    assert!(
                        address.addr().is_multiple_of(layout.align()),
                        "{address:p} for {layout:?}"
                    );
                    assert_eq!(pattern::find_nonzero(address, layout.size()), None);
                    pattern::fill(address, 0, layout.size(), id as u64);
                }
                for (id, &address) in blocks.iter().enumerate() {
                    assert_eq!(pattern::find_mismatch(address, layout.size(), id as u64), None);
                    Hayloft.dealloc(address, layout);
                }
            }
        }
    });
}

/// A failed `realloc` returns null and leaves the block unchanged.
#[test]
fn failed_realloc_keeps_the_block() {
    on_both_backends(|| {
        for align in [1, 16, 4096, 2 << 20] {
            for size in [1, 100, 5000, 70_000, 300_000, 4 << 20] {
                let layout = layout(size, align);
                // SAFETY: the sizes are not zero and make valid layouts. The block is used within
                // its size and freed once.
                unsafe {
                    let address = Hayloft.alloc(layout);
                    assert!(!address.is_null(), "{layout:?} was refused");
                    pattern::fill(address, 0, size, 9);
                    for new_size in [largest(align), isize::MAX as usize / 2] {
                        let moved = Hayloft.realloc(address, layout, new_size);
                        assert!(moved.is_null(), "{new_size} bytes were granted");
                        let moved = Registered.realloc(address, layout, new_size);
                        assert!(moved.is_null(), "{new_size} bytes were granted");
                        assert_eq!(pattern::find_mismatch(address, size, 9), None, "{layout:?}");
                    }
                    Hayloft.dealloc(address, layout);
                }
            }
        }
    });
}

/// A block can be used up to its usable size, and freed with any layout in between. A block that
/// grows in place keeps its address and contents.
#[test]
fn blocks_can_be_used_up_to_their_usable_size() {
    on_both_backends(|| {
        for (size, align) in [
            (0, 1),
            (1, 1),
            (100, 64),
            (129, 8),
            (5000, 16),
            (32_768, 4096),
            (32_769, 8),
            (100, 8192),
            (300_000, 1 << 17),
            (9 << 20, 8),
        ] {
            let requested = layout(size, align);
            let (address, usable) = Hayloft.alloc_excess(requested);
            assert!(!address.is_null(), "{requested:?} was refused");
            assert!(usable >= size.max(1), "{usable} usable bytes for {requested:?}");
            for size in [size, (size + usable) / 2, usable] {
                let between = layout(size, align);
                // SAFETY: the block is live and has `usable` bytes. Each layout that names it is
                // between its requested and its usable size.
                unsafe {
                    let block = Hayloft.alloc_excess(requested).0;
                    assert!(Hayloft.usable_size(block) >= usable, "{requested:?}");
                    pattern::fill(block, 0, usable, 7);
                    assert!(Hayloft.grow_in_place(block, requested, size), "no growth to {size}");
                    let moved = Hayloft.realloc(block, between, usable + 1);
                    assert_eq!(pattern::find_mismatch(moved, size, 7), None, "{requested:?}");
                    Hayloft.dealloc(moved, layout(usable + 1, align));
                }
            }
            // SAFETY: the block is live and has `usable` bytes, or `size` once it grew. It is freed
            // once.
            unsafe {
                pattern::fill(address, 0, usable, 9);
                let larger = usable + 100_000;
                let grown = Hayloft.grow_in_place(address, requested, larger);
                assert_eq!(pattern::find_mismatch(address, usable, 9), None, "{requested:?}");
                let size = if grown { larger } else { usable };
                assert!(Hayloft.usable_size(address) >= size);
                pattern::fill(address, 0, size, 11);
                Hayloft.dealloc(address, layout(size, align));
            }
        }
    });
}
