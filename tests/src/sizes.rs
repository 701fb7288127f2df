//! Sizes at which behaviour may change: boundaries of size classes, of pages, and of powers of two.

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
