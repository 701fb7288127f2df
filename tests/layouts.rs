//! Layouts at the limits: zero size, larger than any address space, aligned to a gigabyte; and a
//! `realloc` that fails.

use std::alloc::{GlobalAlloc, Layout};

use tests::pattern;
use tests::routes::{Hayloft, Registered};
use tests::scenario::on_both_backends;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Returns the largest size that a layout of this alignment may have.
const fn largest(align: usize) -> usize {
    isize::MAX as usize - (align - 1)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a valid layout")
}

/// `GlobalAlloc` leaves zero-size layouts undefined. Hayloft defines them, since C programs and
/// careless callers use them: `alloc` returns an aligned address that may be freed.
#[test]
fn zero_size() {
    on_both_backends(|| {
        for power in 0..=16 {
            let empty = layout(0, 1 << power);
            // SAFETY: Hayloft defines layouts of zero size.
            let blocks = unsafe { [Hayloft.alloc(empty), Hayloft.alloc_zeroed(empty)] };
            for address in blocks {
                assert!(!address.is_null(), "{empty:?}");
                assert!(address.addr().is_multiple_of(empty.align()), "{empty:?}");
                // SAFETY: Hayloft returned the block for this layout.
                unsafe { Hayloft.dealloc(address, empty) };
            }
        }
    });
}

/// A block may grow from zero size and shrink to it.
#[test]
fn zero_size_and_realloc() {
    on_both_backends(|| {
        for power in 0..=12 {
            let (empty, full) = (layout(0, 1 << power), layout(1000, 1 << power));
            // SAFETY: each address is used with its current layout, and Hayloft defines layouts of
            // zero size.
            unsafe {
                let grown = Hayloft.realloc(Hayloft.alloc(empty), empty, full.size());
                assert!(!grown.is_null());
                pattern::fill(grown, 0, full.size(), 1);
                assert_eq!(pattern::find_mismatch(grown, full.size(), 1), None);
                let shrunk = Hayloft.realloc(grown, full, 0);
                assert!(!shrunk.is_null());
                Hayloft.dealloc(shrunk, empty);
            }
        }
    });
}

/// Sizes larger than any address space are refused with null, at every alignment of a layout.
#[test]
fn huge_sizes() {
    on_both_backends(|| {
        for power in 0..=62 {
            let align = 1 << power;
            for size in [largest(align), largest(align) - 1, largest(align) / 2 + 1] {
                if size < 1 << 50 && align < 1 << 50 {
                    continue;
                }
                let huge = layout(size, align);
                // SAFETY: the size is not zero.
                let answers = unsafe {
                    [
                        Hayloft.alloc(huge),
                        Hayloft.alloc_zeroed(huge),
                        Registered.alloc(huge),
                        Registered.alloc_zeroed(huge),
                    ]
                };
                assert!(answers.iter().all(|address| address.is_null()), "{huge:?}: {answers:?}");
            }
        }
    });
}

/// Blocks are aligned up to a gigabyte, with sizes below, at and above a page.
#[test]
fn alignment_up_to_a_gigabyte() {
    on_both_backends(|| {
        for power in 0..=30 {
            for size in [1, 4096, 5000, 1 << power, (1 << power) + 1] {
                let layout = layout(size, 1 << power);
                // SAFETY: the size is not zero, and only the block's first and last bytes are
                // accessed.
                unsafe {
                    let address = Hayloft.alloc(layout);
                    assert!(!address.is_null(), "{layout:?}");
                    assert!(address.addr().is_multiple_of(layout.align()), "{layout:?}");
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
fn large_alignments_side_by_side() {
    on_both_backends(|| {
        for power in 12..=26 {
            let layout = layout(3 * 4096 + 1, 1 << power);
            // SAFETY: the size is not zero. Each block is used within its size and freed once.
            unsafe {
                let blocks: [*mut u8; 4] = std::array::from_fn(|_| Hayloft.alloc_zeroed(layout));
                for (id, &address) in blocks.iter().enumerate() {
                    assert!(!address.is_null(), "{layout:?}");
                    assert!(address.addr().is_multiple_of(layout.align()), "{layout:?}");
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
fn failed_realloc() {
    on_both_backends(|| {
        for align in [1, 16, 4096, 2 << 20] {
            for size in [1, 100, 5000, 70_000, 300_000, 4 << 20] {
                let layout = layout(size, align);
                // SAFETY: the sizes are not zero and make valid layouts. The block is used within
                // its size and freed once.
                unsafe {
                    let address = Hayloft.alloc(layout);
                    assert!(!address.is_null(), "{layout:?}");
                    pattern::fill(address, 0, size, 9);
                    for new_size in [largest(align), isize::MAX as usize / 2] {
                        assert!(Hayloft.realloc(address, layout, new_size).is_null());
                        assert!(Registered.realloc(address, layout, new_size).is_null());
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
fn usable_sizes() {
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
            let asked = layout(size, align);
            let (address, usable) = Hayloft.alloc_excess(asked);
            assert!(!address.is_null() && usable >= size.max(1), "{asked:?}");
            for size in [size, (size + usable) / 2, usable] {
                let between = layout(size, align);
                // SAFETY: the block is live and has `usable` bytes. Each layout that names it is
                // between its requested and its usable size.
                unsafe {
                    let block = Hayloft.alloc_excess(asked).0;
                    assert!(Hayloft.usable_size(block) >= usable, "{asked:?}");
                    pattern::fill(block, 0, usable, 7);
                    assert!(Hayloft.grow_in_place(block, asked, size));
                    let moved = Hayloft.realloc(block, between, usable + 1);
                    assert_eq!(pattern::find_mismatch(moved, size, 7), None, "{asked:?}");
                    Hayloft.dealloc(moved, layout(usable + 1, align));
                }
            }
            // SAFETY: the block is live and has `usable` bytes, or `size` once it grew. It is freed
            // once.
            unsafe {
                pattern::fill(address, 0, usable, 9);
                let larger = usable + 100_000;
                let grown = Hayloft.grow_in_place(address, asked, larger);
                assert_eq!(pattern::find_mismatch(address, usable, 9), None, "{asked:?}");
                let size = if grown { larger } else { usable };
                assert!(Hayloft.usable_size(address) >= size);
                pattern::fill(address, 0, size, 11);
                Hayloft.dealloc(address, layout(size, align));
            }
        }
    });
}
