//! Sizes and layouts that several tests use, and sizes at which behaviour may change: boundaries of
//! size classes, of pages, and of powers of two.

use std::alloc::Layout;

/// Bytes of a MiB.
pub const MIB: usize = 1 << 20;

/// Bytes of a GiB.
pub const GIB: usize = 1 << 30;

/// Bytes of a unit of runs.
pub const PAGES: usize = 64 << 10;

/// Bytes of a block that is longer than every size class, in whole units of runs.
pub const LARGE: usize = 20 * PAGES;

/// A layout whose class nothing else in a test program uses.
pub const RARE: Layout = Layout::new::<[u8; 3072]>();

/// Returns the layout of `size` bytes at a multiple of `align`.
pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a valid layout")
}

/// Yields every multiple of 8 up to 1 KiB and every eighth of a power of two up to `max`, each with
/// its neighbours. Whatever the spacing of the size classes, their boundaries are among these.
pub fn boundaries(max: usize) -> impl Iterator<Item = usize> {
    let fine = (8..1024).step_by(8);
    let coarse = (10..=max.ilog2())
        .flat_map(|power| (0..8).map(move |eighth| (1 << power) + (1 << power) / 8 * eighth));
    fine.chain(coarse)
        .flat_map(|boundary| boundary - 1..=boundary + 1)
        .filter(move |size| *size <= max)
}

#[cfg(test)]
mod tests {
    use super::boundaries;

    #[test]
    fn boundaries_ascend_and_stay_in_bounds() {
        let sizes: Vec<_> = boundaries(40 << 10).collect();
        assert!(sizes.is_sorted_by(|a, b| a < b));
        assert_eq!((sizes[0], sizes[sizes.len() - 1]), (7, 40 << 10));
        for size in [8, 9, 1023, 1024, 1025, 1151, 1152, 1153, 4095, 4096, 4097, 32769] {
            assert!(sizes.contains(&size), "{size}");
        }
    }
}
