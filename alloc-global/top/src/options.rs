//! The command line.

use std::time::Duration;

use clap::{CommandFactory as _, Parser, error::ErrorKind};

use crate::table::{Sort, View};

/// Shows what the allocator of a process holds that was started with HAYLOFT_STATS_SHM=1.
///
/// Keys: h for help, q to quit.
#[derive(Debug, Parser)]
#[command(name = "hayloft-top", version)]
pub(crate) struct Options {
    /// The process; needed where several show their statistics, unless you choose one from a list.
    #[arg(value_name = "PID")]
    pub(crate) process: Option<u32>,

    /// Print one table, of the events during one delay, and end.
    #[arg(long)]
    pub(crate) once: bool,

    /// Write lines of comma-separated values, after one of their names: a line for each cache after
    /// each delay.
    #[arg(long)]
    pub(crate) csv: bool,

    /// Seconds from one look at the process to the next; the process writes four times a second. 0
    /// with `--once`: do not wait, and do without rates.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) delay: Duration,

    /// End after this many looks.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) iterations: Option<u64>,

    /// The column to sort lines by, as named in `--csv`; the largest come first, except by `name`.
    #[arg(short, long, value_name = "COLUMN", value_parser = View::names())]
    sort: Option<String>,

    /// What the lines stand for.
    #[arg(long, value_enum, default_value_t = View::Caches)]
    pub(crate) view: View,
}

impl Options {
    /// Ends the program if the options ask for looks without end and without a pause.
    pub(crate) fn check(&self) {
        if self.delay.is_zero() && !self.once {
            let message = "a delay of 0 is for --once";
            Options::command().error(ErrorKind::ArgumentConflict, message).exit()
        }
        self.order();
    }

    /// Returns the order of lines. Ends the program if the view has no such column.
    pub(crate) fn order(&self) -> Sort {
        let Some(name) = &self.sort else { return Sort::of(self.view) };
        Sort::by_name(self.view, name).unwrap_or_else(|| {
            let names: Vec<_> = self.view.columns().map(|column| column.name).collect();
            let message = format!("there is no such column here, but {}", names.join(", "));
            Options::command().error(ErrorKind::InvalidValue, message).exit()
        })
    }
}

/// Parses a delay: zero, or from a tenth of a second to a day.
///
/// # Errors
///
/// Explains in words why `text` is no delay.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim().parse().map_err(|_| "not a number of seconds".to_string())?;
    if seconds == 0.0 || (0.1..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("less than 0.1, or more than a day".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn delays_are_parsed_and_bounded() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds(" 1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "x", "-1", "0.01", "1e9", "nan", "inf"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sort_columns_belong_to_the_view() {
        let order = |arguments: &[&str]| Options::parse_from(arguments).order();
        assert_eq!(order(&["top"]), Sort::of(View::Caches));
        assert_eq!(Some(order(&["top", "-s", "refills"])), Sort::by_name(View::Caches, "refills"));
        assert_eq!(
            Some(order(&["top", "--view", "nodes", "--sort", "free"])),
            Sort::by_name(View::Nodes, "free")
        );
        assert!(Options::try_parse_from(["top", "--sort", "colour"]).is_err());
    }
}
