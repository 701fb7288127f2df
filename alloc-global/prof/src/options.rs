//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use regex::Regex;

/// Shows where a program allocated its memory, from a heap profile in pprof's format.
#[derive(Debug, Parser)]
#[command(name = "hayloft-prof", version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the functions that hold most.
    Top {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
        #[command(flatten)]
        order: Order,
    },
    /// Print the functions that hold more, or less, in one profile than in an earlier one.
    Diff {
        /// The earlier profile.
        before: PathBuf,
        /// The later profile.
        after: PathBuf,
        #[command(flatten)]
        view: View,
        #[command(flatten)]
        order: Order,
    },
    /// Print how long the blocks of functions lived until they were freed.
    Lifetimes {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
        #[command(flatten)]
        order: Order,
    },
    /// Print the tree of calls.
    Tree {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
        /// Leave out calls with less than this share of the whole, in percent.
        #[arg(long = "min", value_name = "PERCENT", default_value_t = 1.0)]
        least: f64,
    },
    /// Print a line per stack, for tools that draw flame graphs.
    Collapsed {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
    },
    /// Draw a flame graph.
    Flame {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
        /// The SVG file; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Write a page with a flame graph and a table.
    Html {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        view: View,
        /// The HTML file; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Print a report of leaks (HAYLOFT_LEAKS) with functions and lines.
    Leaks {
        /// The report; `-` is standard input.
        file: PathBuf,
        /// Show the allocator's own functions too.
        #[arg(short, long)]
        all_frames: bool,
        #[command(flatten)]
        symbols: SymbolFolders,
    },
    /// Print what the file holds, and whether the programs in it are on this machine.
    Info {
        /// The profile; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        symbols: SymbolFolders,
    },
    /// Write a copy with the names and lines of functions, to be read on other machines.
    #[command(visible_alias = "symbolize")]
    Symbolise {
        /// The profile; `-` is standard input.
        file: PathBuf,
        /// The copy; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        symbols: SymbolFolders,
    },
}

/// The part of a profile that is shown.
#[derive(Debug, Default, Args)]
pub(crate) struct View {
    /// The value: `inuse`, `alloc` or `peak` for bytes in use, allocated so far, or in use at the
    /// peak; `objects` for blocks in use; or a type in the profile. The default is the profile's.
    #[arg(short, long, value_name = "TYPE")]
    pub(crate) by: Option<String>,

    /// Only stacks with a function or file that matches.
    #[arg(short, long, value_name = "REGEX")]
    pub(crate) focus: Option<Regex>,

    /// No stacks with a function or file that matches.
    #[arg(short, long, value_name = "REGEX")]
    pub(crate) ignore: Option<Regex>,

    /// Only samples with this tag, or with this label, such as `thread=main`.
    #[arg(short, long, value_name = "[LABEL=]TEXT")]
    pub(crate) tag: Option<String>,

    /// Tell apart the lines of a function.
    #[arg(short, long)]
    pub(crate) lines: bool,

    /// Show the allocator's own functions too.
    #[arg(short, long)]
    pub(crate) all_frames: bool,

    #[command(flatten)]
    pub(crate) symbols: SymbolFolders,
}

/// Where to find the files that the profile names.
#[derive(Debug, Default, Args)]
pub(crate) struct SymbolFolders {
    /// A folder with programs, libraries or debug files: by name, by path, or by build ID as in
    /// /usr/lib/debug. May be repeated.
    #[arg(short = 's', long = "symbols", value_name = "FOLDER")]
    pub(crate) folders: Vec<PathBuf>,
}

/// The lines of a table.
#[derive(Debug, Args)]
pub(crate) struct Order {
    /// The number of functions.
    #[arg(short = 'n', long = "number", value_name = "N", default_value_t = 25)]
    pub(crate) most: usize,

    /// Sort by what a function and those that it calls hold or freed, not by its own.
    #[arg(short, long)]
    pub(crate) cum: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn wrong_expressions_are_refused() {
        let parse = |focus: &str| Options::try_parse_from(["p", "top", "f", "--focus", focus]);
        assert!(parse("a|b").is_ok());
        assert!(parse("a(").is_err());
        assert!(Options::try_parse_from(["p", "flame", "f"]).is_err(), "the output is missing");
    }
}
