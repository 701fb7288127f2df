//! The grammars of `HAYLOFT_STATS`, `DESTINATION[,FORMAT][,every=SECONDS][,signal=NUMBER]`, of
//! `HAYLOFT_PROFILE`, which has `mean=BYTES` and `growth` instead of the format, and of
//! `HAYLOFT_LEAKS`, `DESTINATION[,mean=BYTES][,reachable=1][,suppress=FILE]`.

use core::ffi::c_int;
use core::fmt;

use super::parse;

/// Maximum bytes of a path.
const MAX_PATH: usize = 256;

/// The value of `HAYLOFT_STATS`, `HAYLOFT_PROFILE` or `HAYLOFT_LEAKS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reports<'a> {
    pub(crate) destination: Destination<'a>,
    pub(crate) content: Content<'a>,
    /// Seconds between reports; 0 for a report only at the end.
    pub(crate) every: u32,
    /// The signal that requests a report; 0 for none.
    pub(crate) signal: c_int,
}

/// The content of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content<'a> {
    Statistics(Format),
    Profile(Profile),
    /// Blocks that are in use at the end.
    Leaks(Leaks<'a>),
}

/// What heap profiles say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Profile {
    /// Bytes between samples on average.
    pub(crate) mean: u64,
    /// Whether each profile but the first has only what was allocated since the first.
    pub(crate) growth: bool,
}

/// What a report of leaks says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaks<'a> {
    /// Bytes between samples on average.
    pub(crate) mean: u64,
    /// Whether blocks that the program can reach are left out.
    pub(crate) reachable: bool,
    /// The file of suppressions.
    pub(crate) suppress: Option<&'a str>,
}

/// Bytes between the samples of a profile, unless the setting has others.
const DEFAULT_MEAN: u64 = 512 << 10;
/// Most bytes between samples.
const MOST_MEAN: u64 = 1 << 40;

/// Where reports are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination<'a> {
    File(c_int),
    Path(&'a str),
}

/// The format of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Format {
    /// The format of `/proc/slabinfo`.
    Slabinfo,
    /// A table for people: totals, and the caches with the most memory.
    Table,
    /// The text format that Prometheus reads.
    OpenMetrics,
    /// One line of JSON.
    #[cfg(feature = "serde")]
    Json,
}

impl<'a> Reports<'a> {
    /// Parses `HAYLOFT_STATS`. Returns `None` if it disables reports, and the reason if it is
    /// invalid.
    pub(super) fn parse(text: &'a str) -> Result<Option<Reports<'a>>, &'static str> {
        Reports::parse_as(text, Content::Statistics(Format::Slabinfo))
    }

    /// Parses `HAYLOFT_PROFILE`, as [`Reports::parse`].
    pub(super) fn parse_profile(text: &'a str) -> Result<Option<Reports<'a>>, &'static str> {
        Reports::parse_as(text, Content::Profile(Profile { mean: DEFAULT_MEAN, growth: false }))
    }

    /// Parses `HAYLOFT_LEAKS`, as [`Reports::parse`].
    pub(super) fn parse_leaks(text: &'a str) -> Result<Option<Reports<'a>>, &'static str> {
        let leaks = Leaks { mean: DEFAULT_MEAN, reachable: false, suppress: None };
        Reports::parse_as(text, Content::Leaks(leaks))
    }

    /// Parses a setting for reports with this content, unless it has another.
    fn parse_as(text: &'a str, content: Content<'a>) -> Result<Option<Reports<'a>>, &'static str> {
        let mut words = text.split(',');
        let destination = words.next().unwrap_or_default();
        if ["0", "false", "no", "off"].into_iter().any(|no| text.eq_ignore_ascii_case(no)) {
            return Ok(None);
        }
        let destination = Destination::parse(destination)?;
        if content.is_profile() && destination == Destination::File(2) {
            return Err("a profile is no text: a path, stdout or fd:NUMBER");
        }
        let mut reports = Reports { destination, content, every: 0, signal: 0 };
        for word in words {
            let has_times = !matches!(content, Content::Leaks(_));
            match word.split_once('=') {
                Some(("every", seconds)) if has_times => {
                    reports.every = seconds
                        .parse()
                        .ok()
                        .filter(|every| *every > 0)
                        .ok_or("after every= comes a number of seconds")?;
                }
                Some(("signal", number)) if has_times => {
                    reports.signal = number
                        .parse()
                        .ok()
                        .filter(|signal| *signal > 0)
                        .ok_or("after signal= comes the number of a signal")?;
                }
                other => match (&mut reports.content, other) {
                    (Content::Profile(profile), Some(("mean", bytes))) => {
                        profile.mean = mean(bytes)?;
                    }
                    (Content::Profile(profile), None) if word == "growth" => profile.growth = true,
                    (Content::Profile(_), Some(_)) => {
                        return Err("of words with a = there are mean=, every= and signal=");
                    }
                    (Content::Profile(_), None) => {
                        return Err("the only word without a = is growth");
                    }
                    (Content::Statistics(_), Some(_)) => {
                        return Err("of words with a = there are every=SECONDS and signal=NUMBER");
                    }
                    (Content::Statistics(format), None) => {
                        *format = Format::parse(word).ok_or(Format::NONE)?;
                    }
                    (Content::Leaks(leaks), other) => leaks.parse(other)?,
                },
            }
        }
        Ok(Some(reports))
    }
}

impl Content<'_> {
    pub(crate) fn is_profile(self) -> bool {
        matches!(self, Content::Profile(_))
    }

    /// Returns the mean bytes between the samples that the content needs, if it needs any.
    pub(crate) fn mean(self) -> Option<u64> {
        match self {
            Content::Statistics(_) => None,
            Content::Profile(Profile { mean, .. }) | Content::Leaks(Leaks { mean, .. }) => {
                Some(mean)
            }
        }
    }
}

impl<'a> Leaks<'a> {
    /// Parses a word after the destination, split at its `=`.
    fn parse(&mut self, word: Option<(&str, &'a str)>) -> Result<(), &'static str> {
        match word {
            Some(("mean", bytes)) => self.mean = mean(bytes)?,
            Some(("reachable", "0")) => self.reachable = false,
            Some(("reachable", "1")) => self.reachable = true,
            Some(("reachable", _)) => return Err("after reachable= comes 0 or 1"),
            Some(("suppress", "")) => return Err("after suppress= comes the path of a file"),
            Some(("suppress", path)) if path.len() > MAX_PATH => return Err("too long a path"),
            Some(("suppress", path)) => self.suppress = Some(path),
            _ => return Err("after the destination there are mean=, reachable= and suppress="),
        }
        Ok(())
    }
}

/// Parses the bytes between samples.
fn mean(bytes: &str) -> Result<u64, &'static str> {
    let mean = parse::bytes(bytes).filter(|mean| (1..=MOST_MEAN).contains(mean));
    mean.ok_or("after mean= come bytes, from 1 to 1T")
}

impl<'a> Destination<'a> {
    /// Parses a destination. Returns the reason if it is invalid.
    fn parse(word: &'a str) -> Result<Destination<'a>, &'static str> {
        let is = |one: &str| word.eq_ignore_ascii_case(one);
        if ["1", "true", "yes", "on", "stderr", "/dev/stderr"].into_iter().any(is) {
            return Ok(Destination::File(2));
        }
        if ["stdout", "/dev/stdout"].into_iter().any(is) {
            return Ok(Destination::File(1));
        }
        if let Some(number) = word.strip_prefix("fd:") {
            let file = number.parse().ok().filter(|file| *file >= 0);
            return file.map(Destination::File).ok_or("after fd: comes the number of an open file");
        }
        // A path without either is usually a mistake.
        if !word.contains(['/', '.']) {
            return Err("neither stderr, stdout nor fd:NUMBER; a path has a / or a . in it");
        }
        if word.split('%').skip(1).any(|rest| !rest.starts_with('p')) {
            return Err("no % but %p, the number of the process, may be in a path");
        }
        if word.len() > MAX_PATH {
            return Err("too long a path");
        }
        Ok(Destination::Path(word))
    }

    /// Returns whether each process has a destination of its own.
    pub(crate) fn has_process(&self) -> bool {
        matches!(self, Destination::Path(path) if path.contains("%p"))
    }
}

/// Formats the destination, a path as it was set.
impl fmt::Display for Destination<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::File(file) => write!(to, "file {file}"),
            Destination::Path(path) => to.write_str(path),
        }
    }
}

/// Formats a path for a process, whose number replaces each `%p`.
pub(crate) struct PathFor<'a>(pub(crate) &'a str, pub(crate) i32);

impl fmt::Display for PathFor<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PathFor(path, process) = self;
        let mut parts = path.split("%p");
        to.write_str(parts.next().unwrap_or_default())?;
        parts.try_for_each(|part| write!(to, "{process}{part}"))
    }
}

impl Format {
    /// The reason why a name of a format is invalid.
    #[cfg(feature = "serde")]
    const NONE: &str = "formats are slabinfo, table, openmetrics and json";
    #[cfg(not(feature = "serde"))]
    const NONE: &str = "formats are slabinfo, table and openmetrics; json needs the feature serde";

    /// Returns the format with this name.
    fn parse(name: &str) -> Option<Format> {
        match name {
            "slabinfo" => Some(Format::Slabinfo),
            "table" => Some(Format::Table),
            "openmetrics" => Some(Format::OpenMetrics),
            #[cfg(feature = "serde")]
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn settings_are_parsed() {
        let parse = Reports::parse;
        let stderr = Reports {
            destination: Destination::File(2),
            content: Content::Statistics(Format::Slabinfo),
            every: 0,
            signal: 0,
        };
        for same in ["stderr", "1", "true", "STDERR", "fd:2", "/dev/stderr", "stderr,slabinfo"] {
            assert_eq!(parse(same), Ok(Some(stderr)), "{same}");
        }
        for none in ["0", "false", "off"] {
            assert_eq!(parse(none), Ok(None), "{none}");
        }
        let destination = |text| parse(text).unwrap().unwrap().destination;
        assert_eq!(destination("fd:7"), Destination::File(7));
        assert_eq!(destination("stdout"), Destination::File(1));
        assert_eq!(destination("./x"), Destination::Path("./x"));
        let all = parse("/tmp/x-%p-%p.txt,openmetrics,every=5,signal=12").unwrap().unwrap();
        assert_eq!(all.content, Content::Statistics(Format::OpenMetrics));
        assert_eq!((all.every, all.signal), (5, 12));
        assert!(all.destination.has_process() && !destination("x.txt").has_process());
        let text = format!("{}", all.destination);
        assert_eq!(text, "/tmp/x-%p-%p.txt");
        assert_eq!(format!("{}", PathFor(&text, 99)), "/tmp/x-99-99.txt");
        let long = "./x".repeat(MAX_PATH);
        for (wrong, why) in [
            (",", "neither stderr"),
            ("7", "neither stderr"),
            ("quux", "neither stderr"),
            ("stderr json", "neither stderr"),
            ("fd:", "after fd:"),
            ("fd:-1", "after fd:"),
            ("/tmp/%q.txt", "no % but"),
            ("/tmp/%", "no % but"),
            ("stderr,yaml", "formats are"),
            ("stderr,", "formats are"),
            ("stderr,every=0", "after every="),
            ("stderr,every=", "after every="),
            ("stderr,signal=-1", "after signal="),
            ("stderr,often=2", "of words with"),
            (&long, "too long"),
        ] {
            assert!(parse(wrong).is_err_and(|error| error.starts_with(why)), "{wrong}");
        }
    }

    #[test]
    fn leak_settings_are_parsed() {
        let parse = Reports::parse_leaks;
        assert_eq!(parse("0"), Ok(None));
        let plain = Leaks { mean: DEFAULT_MEAN, reachable: false, suppress: None };
        for (text, destination, leaks) in [
            ("1", Destination::File(2), plain),
            ("./leaks.txt,reachable=0", Destination::Path("./leaks.txt"), plain),
            ("1,mean=1", Destination::File(2), Leaks { mean: 1, ..plain }),
            (
                "fd:3,reachable=1,suppress=known.supp,mean=2M",
                Destination::File(3),
                Leaks { mean: 2 << 20, reachable: true, suppress: Some("known.supp") },
            ),
        ] {
            let reports = parse(text).unwrap().unwrap();
            assert_eq!(reports.destination, destination, "{text}");
            assert_eq!(reports.content, Content::Leaks(leaks), "{text}");
            assert_eq!((reports.every, reports.signal), (0, 0), "{text}");
        }
        for (wrong, why) in [
            ("2", "neither stderr"),
            ("1,mean=0", "after mean="),
            ("1,mean=2T", "after mean="),
            ("1,reachable=yes", "after reachable="),
            ("1,suppress=", "after suppress="),
            ("1,every=5", "after the destination"),
            ("1,table", "after the destination"),
            ("1,", "after the destination"),
        ] {
            assert!(parse(wrong).is_err_and(|error| error.starts_with(why)), "{wrong}");
        }
    }

    #[test]
    fn profile_settings_are_parsed() {
        let parse = Reports::parse_profile;
        assert_eq!(parse("off"), Ok(None));
        let plain = parse("/tmp/heap.pb.gz").unwrap().unwrap();
        let content = |mean, growth| Content::Profile(Profile { mean, growth });
        assert_eq!(plain.content, content(DEFAULT_MEAN, false));
        for (text, mean, growth) in [
            ("/tmp/%p.gz,mean=1,every=3", 1, false),
            ("/tmp/%p.gz,mean=64K,growth", 64 << 10, true),
            ("/tmp/%p.gz,growth,signal=12,mean=2MiB", 2 << 20, true),
            ("/tmp/%p.gz,mean=1T", MOST_MEAN, false),
        ] {
            let reports = parse(text).unwrap().unwrap();
            assert_eq!(reports.content, content(mean, growth), "{text}");
        }
        for (wrong, why) in [
            ("1", "a profile is"),
            ("stderr", "a profile is"),
            ("/tmp/x,table", "the only word"),
            ("/tmp/x,growth=1", "of words with"),
            ("/tmp/x,mean=0", "after mean="),
            ("/tmp/x,mean=2T", "after mean="),
            ("/tmp/x,mean=9223372036854775808", "after mean="),
            ("/tmp/x,mean=", "after mean="),
            ("/tmp/x,often=2", "of words with"),
        ] {
            assert!(parse(wrong).is_err_and(|error| error.starts_with(why)), "{wrong}");
        }
    }
}
