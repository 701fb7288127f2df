//! Checks of values: when a program starts, and as far as possible when it is compiled.

use super::faults::Faults;
use super::parse;
use super::reports::Reports;
use super::table::{Kind, Setting};

/// Maximum bytes of the path of `HAYLOFT_PRESSURE`.
const MAX_PATH: usize = 255;

/// The highest number of a signal, on any C library.
const MAX_SIGNAL: u64 = 64;
const NO_SIGNAL: &str = "no real-time signal";

impl Setting {
    /// Returns a value as text if it is valid, or the reason why it is not.
    pub(super) fn check<'a>(&self, value: &'a [u8]) -> Result<&'a str, &'static str> {
        let text = core::str::from_utf8(value).map_err(|_| "no text")?;
        self.check_early(text)?;
        let number = || parse::number(text);
        match &self.kind {
            Kind::RealtimeSignal if !number().is_some_and(parse::is_realtime_signal) => {
                Err(NO_SIGNAL)
            }
            Kind::PageSize if !number().is_some_and(parse::holds_system_pages) => {
                Err("less than the system's")
            }
            Kind::Faults if Faults::parse(text).is_none() => Err("no such list"),
            Kind::Reports => Reports::parse(text).map(|_| text),
            Kind::Profile => Reports::parse_profile(text).map(|_| text),
            Kind::Leaks => Reports::parse_leaks(text).map(|_| text),
            _ => Ok(text),
        }
    }

    /// Checks a value as far as the compiler can: not by the system, nor by the grammars of lists.
    /// Returns the reason if it is invalid.
    pub(super) const fn check_early(&self, text: &str) -> Result<(), &'static str> {
        let number = parse::number(text);
        let (is_valid, why) = match &self.kind {
            Kind::Words(words) => (parse::is_among(text, words), "none of the accepted words"),
            Kind::Number { least, most } => {
                let is_in_range =
                    matches!(number, Some(number) if *least <= number && number <= *most);
                (is_in_range, "no number in this range")
            }
            Kind::RealtimeSignal => (matches!(number, Some(1..=MAX_SIGNAL)), NO_SIGNAL),
            Kind::PageSize => {
                let is_size = matches!(number, Some(bytes) if parse::is_page_size(bytes));
                (is_size, "no size of pages")
            }
            Kind::FlagOrPath => {
                let is_valid = match text.as_bytes() {
                    [b'0' | b'1'] => true,
                    [b'/', ..] => text.len() <= MAX_PATH,
                    _ => false,
                };
                (is_valid, "neither 0, 1 nor a path")
            }
            Kind::Limit => match parse::limit(text) {
                Ok(_) => (true, ""),
                Err(why) => (false, why),
            },
            Kind::Directory | Kind::Reports | Kind::Profile | Kind::Leaks | Kind::Faults => {
                (true, "")
            }
        };
        if is_valid { Ok(()) } else { Err(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Name;
    use std::format;

    use super::MAX_PATH;

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows no size of pages")]
    fn only_accepted_values_are_valid() {
        for (name, valid, invalid) in [
            (Name::Backend, &["rseq", "fallback"][..], &["", "Rseq", "rseq,fallback"][..]),
            (Name::Background, &["0", "1"], &["2", "01", "yes"]),
            (Name::DecayMs, &["0", "3600000"], &["3600001", "-1", "1.5", "1s", ""]),
            (Name::Fault, &["mmap:1/2,7"], &["mmap", ""]),
            (Name::Guard, &["0", "1", "1000000000"], &["1000000001", "x", ""]),
            (Name::IrqSignal, &["40"], &["9", "65", "x"]),
            (Name::Leaks, &["0", "1,mean=1,reachable=1"], &["x", "1,mean=0"]),
            (Name::Limit, &["1M:2M", "5g"], &["2M:1M", "M"]),
            (Name::PageSize, &["65536"], &["131072", "12288", "", "1"]),
            (Name::Pressure, &["0", "1", "/x"], &["2", "x", "./x"]),
            (Name::Profile, &["0", "./%p,mean=1M"], &["x", "1", "./x,mean=0"]),
            (Name::Stats, &["1", "off", "./%p,table,every=9"], &["x", "1,yaml"]),
            (Name::Sysfs, &["anything"], &[]),
        ] {
            for value in valid {
                assert_eq!(name.setting().check(value.as_bytes()), Ok(*value), "{name:?} {value}");
            }
            for value in invalid {
                assert!(name.setting().check(value.as_bytes()).is_err(), "{name:?} {value}");
            }
        }
        let long = format!("/{}", "x".repeat(MAX_PATH));
        assert!(Name::Pressure.setting().check(long.as_bytes()).is_err());
        assert!(Name::Sysfs.setting().check(b"\xff").is_err_and(|why| why == "no text"));
    }
}
