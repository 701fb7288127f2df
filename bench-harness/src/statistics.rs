//! The few statistics that the reports need, and what a ratio is worth.

/// Returns the middle value, or the mean of the two middle values. Returns `None` if there are no
/// values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// Returns the geometric mean, which is the average of ratios. Returns `None` if there are no
/// values.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// Returns `ours / theirs` for each round, leaving out rounds that lack either.
pub fn paired_ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Vec<f64> {
    ours.iter().zip(theirs).filter_map(|(ours, theirs)| Some((*ours)? / (*theirs)?)).collect()
}

/// A change between two runs, as a factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// Best estimate of the factor.
    pub ratio: f64,
    /// Interval that contains the factor with a probability of at least 95 %. `None` if there are
    /// too few values.
    pub interval: Option<(f64, f64)>,
}

/// Compares two sets of values, which are not paired and have no assumed distribution.
///
/// The ratio is the median of the ratios of every value of `now` to every value of `then` (Hodges
/// and Lehmann). The interval consists of the ratios that the test of Mann and Whitney would not
/// reject at 5 %. Returns `None` if there are no values.
pub fn shift(now: &[f64], then: &[f64]) -> Option<Shift> {
    let mut ratios: Vec<f64> =
        now.iter().flat_map(|now| then.iter().map(move |then| now / then)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = median(ratios.iter().copied())?;
    let rank = rejected(now.len(), then.len());
    let interval = (rank > 0).then(|| (ratios[rank - 1], ratios[ratios.len() - rank]));
    Some(Shift { ratio, interval })
}

/// Returns how many of the smallest values of Mann and Whitney's U, for samples of `m` and `n`
/// values, together have a probability of at most 2.5 %.
fn rejected(m: usize, n: usize) -> usize {
    /// For larger samples the normal approximation is as good.
    const EXACT: usize = 20;
    const TAIL: f64 = 0.025;
    const QUANTILE: f64 = 1.96;
    if m.min(n) > EXACT {
        let (m, n) = (m as f64, n as f64);
        return (m * n / 2.0 - QUANTILE * (m * n * (m + n + 1.0) / 12.0).sqrt()) as usize;
    }
    // Counts the orders of i and j values by their U. The last value of an order is one of the i,
    // above all j, or one of the j.
    let mut orders = vec![vec![1.0]; n + 1];
    for _ in 0..m {
        for j in 1..=n {
            let mut of_both = vec![0.0; j];
            of_both.extend(&orders[j]);
            for (u, count) in orders[j - 1].iter().enumerate() {
                of_both[u] += count;
            }
            orders[j] = of_both;
        }
    }
    let limit = TAIL * orders[n].iter().sum::<f64>();
    let mut sum = 0.0;
    let is_in_tail = |count: &&f64| {
        sum += **count;
        sum <= limit
    };
    orders[n].iter().take_while(is_in_tail).count()
}

/// Returns the smallest and the largest value, or `None` if there are no values.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .map(|value| (value, value))
        .reduce(|(low, high), (value, _)| (f64::min(low, value), f64::max(high, value)))
}

/// The judgement of a ratio as good or bad news. Within three percent it is neither, since the
/// machine is noisier than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Better,
    Even,
    Worse,
}

impl Mood {
    /// Judges the ratio of a quantity of which less is better.
    pub(crate) fn of(ratio: f64) -> Self {
        match ratio {
            ratio if ratio < 0.97 => Self::Better,
            ratio if ratio > 1.03 => Self::Worse,
            _ => Self::Even,
        }
    }
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
    fn geometric_mean_of_reciprocal_ratios_is_one() {
        let mean = geometric_mean([0.5, 2.0]).unwrap();
        assert!((mean - 1.0).abs() < 1e-12, "{mean}");
        let mean = geometric_mean([1.0, 10.0, 100.0]).unwrap();
        assert!((mean - 10.0).abs() < 1e-9, "{mean}");
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn ratios_are_paired_within_a_round() {
        // The machine was three times slower in the second round, which does not affect the ratio.
        let ours = [Some(2.0), Some(6.0), Some(2.0)];
        let theirs = [Some(4.0), Some(12.0), Some(4.0)];
        assert_eq!(paired_ratios(&ours, &theirs), [0.5; 3]);
    }

    #[test]
    fn incomplete_rounds_are_left_out() {
        let ours = [Some(1.0), None, Some(9.0)];
        let theirs = [Some(2.0), Some(1.0), None];
        assert_eq!(paired_ratios(&ours, &theirs), [0.5]);
        assert!(paired_ratios(&[None], &[Some(1.0)]).is_empty());
    }

    #[test]
    fn critical_values_match_published_tables() {
        // The largest U that is significant at 5 %, two-sided, plus one.
        let table = [(4, 4, 1), (3, 5, 1), (5, 5, 3), (5, 8, 7), (10, 10, 24), (20, 20, 128)];
        for (m, n, expected) in table {
            assert_eq!(rejected(m, n), expected, "{m} and {n}");
            assert_eq!(rejected(n, m), expected, "{n} and {m}");
        }
        assert_eq!([rejected(3, 3), rejected(1, 9), rejected(0, 5)], [0; 3]);
        // The exact computation, and the approximation that takes over beyond it.
        assert_eq!([rejected(20, 21), rejected(21, 21)], [135, 142]);
    }

    #[test]
    fn shift_has_an_interval_given_enough_values() {
        let then = [1.0, 1.01, 0.99, 1.02, 0.98];
        let now = then.map(|value| value * 2.0);
        let Shift { ratio, interval } = shift(&now, &then).unwrap();
        let (low, high) = interval.unwrap();
        assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
        assert!(1.9 < low && low < ratio && ratio < high && high < 2.1, "{low} {high}");
        let same = shift(&then, &then).unwrap();
        let (low, high) = same.interval.unwrap();
        assert!(low < 1.0 && 1.0 < high, "{low} {high}");

        let few = shift(&now[..3], &then[..3]).unwrap();
        assert!((few.ratio - 2.0).abs() < 0.05 && few.interval.is_none());
        assert_eq!(shift(&now, &[]), None);
    }

    #[test]
    fn range_spans_all_values() {
        assert_eq!(range([2.0, 1.0, 3.0]), Some((1.0, 3.0)));
        assert_eq!(range([]), None);
    }
}
