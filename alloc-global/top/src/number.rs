//! Formats numbers in at most five letters, or six with a sign.

/// Formats a number of bytes, in units of 1024.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, 1024.0, ["K", "M", "G", "T", "P", "E"])
}

/// Formats a number of things. Above 99999 it is in units of 1000.
pub(crate) fn count(count: u64) -> String {
    scaled(count as f64, 100_000.0, 1000.0, ["k", "M", "G", "T", "P", "E"])
}

/// Formats a rate per second.
pub(crate) fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { count(rate.round() as u64) }
}

/// Formats a change in bytes, with its sign.
pub(crate) fn growth(growth: f64) -> String {
    let sign = if growth >= 0.5 {
        "+"
    } else if growth <= -0.5 {
        "-"
    } else {
        ""
    };
    format!("{sign}{}", bytes(growth.abs().round() as u64))
}

/// Formats a share in percent. Prints 100 only for the whole.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 99.0 && percent < 100.0 {
        // Rounds down to a tenth: the difference between one miss in a hundred and one in a
        // thousand matters.
        format!("{:.1}", (percent * 10.0).floor() / 10.0)
    } else {
        format!("{percent:.0}")
    }
}

/// Formats a duration in days, hours, minutes and seconds.
pub(crate) fn clock(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let days = if days > 0 { format!("{days}d ") } else { String::new() };
    format!("{days}{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60)
}

/// Formats `number` unscaled below `least`, and otherwise in the first unit in which it is less
/// than 1000.
fn scaled(number: f64, least: f64, base: f64, units: [&str; 6]) -> String {
    if number < least {
        return format!("{number}");
    }
    let mut scaled = number;
    let mut name = "";
    for unit in units {
        if scaled < 999.5 && !name.is_empty() {
            break;
        }
        scaled /= base;
        name = unit;
    }
    if scaled < 99.95 { format!("{scaled:.1}{name}") } else { format!("{scaled:.0}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_are_abbreviated() {
        let pairs = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (65536, "64.0K"),
            (102_400, "100K"),
            (1_023_400, "999K"),
            (1_023_600, "1.0M"),
            (5 << 30, "5.0G"),
            (u64::MAX, "16.0E"),
        ];
        for (number, text) in pairs {
            assert_eq!(bytes(number), text, "{number}");
        }
        let pairs = [(0, "0"), (99_999, "99999"), (100_000, "100k"), (12_345_678, "12.3M")];
        for (number, text) in pairs {
            assert_eq!(count(number), text, "{number}");
        }
        assert_eq!(
            [rate(0.0), rate(0.26), rate(9.96), rate(250_000.0)],
            ["0", "0.3", "10", "250k"]
        );
        assert_eq!([growth(2048.0), growth(-1.0), growth(0.2)], ["+2.0K", "-1", "0"]);
        let shares = [0.0, 0.5, 0.999, 0.99999, 1.0];
        assert_eq!(shares.map(percent), ["0", "50", "99.9", "99.9", "100"]);
        assert_eq!(clock(Duration::from_secs(61)), "0:01:01");
        assert_eq!(clock(Duration::from_secs(90_000)), "1d 1:00:00");
    }
}
