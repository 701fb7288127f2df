//! The few statistics the reports need.

/// The middle value, or the mean of the two in the middle. `None` if there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// The geometric mean: what a ratio is on average. `None` if there are no values.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// The median over rounds of `ours / theirs`, each pair from the same round. Rounds that lack one of them do not count.
pub fn paired_ratio(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<f64> {
    let ratios = ours.iter().zip(theirs).filter_map(|(ours, theirs)| Some((*ours)? / (*theirs)?));
    median(ratios)
}

/// The smallest and the largest value. `None` if there are no values.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .map(|value| (value, value))
        .reduce(|(low, high), (value, _)| (f64::min(low, value), f64::max(high, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn geometric_mean_is_fair_to_ratios() {
        let mean = geometric_mean([0.5, 2.0]).unwrap();
        assert!((mean - 1.0).abs() < 1e-12);
        let mean = geometric_mean([1.0, 10.0, 100.0]).unwrap();
        assert!((mean - 10.0).abs() < 1e-9);
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn paired_ratio_compares_within_a_round() {
        // The machine was three times slower in the second round; the ratio does not notice.
        let ours = [Some(2.0), Some(6.0), Some(2.0)];
        let theirs = [Some(4.0), Some(12.0), Some(4.0)];
        assert_eq!(paired_ratio(&ours, &theirs), Some(0.5));
    }

    #[test]
    fn paired_ratio_skips_incomplete_rounds() {
        let ours = [Some(1.0), None, Some(9.0)];
        let theirs = [Some(2.0), Some(1.0), None];
        assert_eq!(paired_ratio(&ours, &theirs), Some(0.5));
        assert_eq!(paired_ratio(&[None], &[Some(1.0)]), None);
    }

    #[test]
    fn range_spans_all() {
        assert_eq!(range([2.0, 1.0, 3.0]), Some((1.0, 3.0)));
        assert_eq!(range([]), None);
    }
}
