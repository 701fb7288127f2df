//! Numbers for people.

/// Formats a value with its unit: bytes in units of 1024, others in full.
pub(crate) fn value(value: i64, unit: &str) -> String {
    match unit {
        "bytes" | "byte" => bytes(value),
        "milliseconds" => duration(value as f64),
        "nanoseconds" => format!("{:.2}s", value as f64 / 1e9),
        _ => value.to_string(),
    }
}

/// Formats a difference as [`value`], with its sign.
pub(crate) fn change(change: i64, unit: &str) -> String {
    let plus = if change > 0 { "+" } else { "" };
    format!("{plus}{}", value(change, unit))
}

fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    let sign = if bytes < 0 { "-" } else { "" };
    let exact = bytes.unsigned_abs();
    let mut amount = exact as f64;
    let mut unit = "B";
    for larger in UNITS {
        // What would be rounded up to 1024 or more is shown in the larger unit.
        if amount < 1023.5 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{sign}{exact}B")
    } else if amount < 9.95 {
        format!("{sign}{amount:.1}{unit}")
    } else {
        format!("{sign}{amount:.0}{unit}")
    }
}

/// Formats a number of milliseconds.
pub(crate) fn duration(milliseconds: f64) -> String {
    let seconds = milliseconds / 1e3;
    match milliseconds.abs() {
        ..9.95 => format!("{milliseconds:.1}ms"),
        ..999.5 => format!("{milliseconds:.0}ms"),
        ..599_950.0 => format!("{seconds:.1}s"),
        ..7_170_000.0 => format!("{:.0}min", seconds / 60.0),
        _ => format!("{:.1}h", seconds / 3600.0),
    }
}

/// Formats a share of a whole, in percent.
pub(crate) fn percent(part: i64, whole: i64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1}%", part as f64 / whole as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_have_a_fitting_unit() {
        for (milliseconds, text) in [
            (0.0, "0.0ms"),
            (0.54, "0.5ms"),
            (-12.0, "-12ms"),
            (999.4, "999ms"),
            (1500.0, "1.5s"),
            (60_000.0, "60.0s"),
            (660_000.0, "11min"),
            (9_000_000.0, "2.5h"),
        ] {
            assert_eq!(duration(milliseconds), text);
        }
    }

    use super::*;

    #[test]
    fn bytes_take_few_letters() {
        for (number, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (10 << 10, "10K"),
            (1_048_575, "1.0M"),
            (-(5 << 20), "-5.0M"),
            (i64::MAX, "8.0E"),
            (i64::MIN, "-8.0E"),
        ] {
            assert_eq!(value(number, "bytes"), text);
        }
        assert_eq!(value(123_456_789, "count"), "123456789");
        assert_eq!(value(1_500_000_000, "nanoseconds"), "1.50s");
        assert_eq!((change(5, "count"), change(-5, "count")), ("+5".into(), "-5".into()));
    }

    #[test]
    fn shares_of_nothing_are_no_numbers() {
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(-3, 3), "-100.0%");
        assert_eq!(percent(0, 0), "-");
    }
}
