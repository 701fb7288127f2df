//! `hayloft-prof`: shows heap profiles.
//!
//! It reads files in pprof's format, those that Hayloft writes and in general those of others. It
//! finds the functions of their addresses on this machine, and prints or draws where memory was
//! allocated.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | [`page`] | a page with a flame graph and a table |
//! | [`flame`] [`info`] [`lifetimes`] [`tree`] | other ways to show a profile |
//! | [`leaks`] | reports of leaks |
//! | [`top`] | tables of functions |
//! | [`stacks`] | samples as lists of functions, filtered |
//! | [`options`] | the command line |
//! | [`symbols`] | functions and lines of addresses |
//! | [`profile`] | reading and writing files |
//! | [`failure`] [`number`] [`proto`] | errors; short numbers; the format |
//!
//! The exit code is 0 on success. It is 1 if a file cannot be read or written, and 2 if an argument
//! is wrong.

mod failure;
mod flame;
mod info;
mod leaks;
mod lifetimes;
mod number;
mod options;
mod page;
mod profile;
mod proto;
mod stacks;
mod symbols;
mod top;
mod tree;

use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use failure::Failure;
use options::{Command, Options, View};
use profile::Profile;
use stacks::Stacks;
use symbols::Symbols;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

fn main() -> ExitCode {
    let (error, code) = match run(&Options::parse().command) {
        Ok(()) => return ExitCode::SUCCESS,
        // The reader of the output has closed it, as `head` does.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        }
        Err(Failure::Output(error)) => (format!("the output cannot be written: {error}"), 1),
        Err(Failure::Other(error)) => (error, 1),
        Err(Failure::Usage(error)) => (error, 2),
    };
    eprintln!("hayloft-prof: {error}");
    ExitCode::from(code)
}

fn run(command: &Command) -> Result<(), Failure> {
    let mut to = BufWriter::new(io::stdout().lock());
    match command {
        Command::Top { file, view, order } => {
            top::print(&select(file, view)?, view, order, &mut to)?;
        }
        Command::Diff { before, after, view, order } => {
            let (before, after) = (select(before, view)?, select(after, view)?);
            top::print_growth(&before, &after, view, order, &mut to)?;
        }
        Command::Lifetimes { file, view, order } => {
            lifetimes::print(read(file, view)?, view, order, &mut to)?;
        }
        Command::Tree { file, view, least } => tree::print(&select(file, view)?, *least, &mut to)?,
        Command::Collapsed { file, view } => flame::print_collapsed(&select(file, view)?, &mut to)?,
        Command::Flame { file, view, output } => {
            let picture = flame::picture(&select(file, view)?)?;
            profile::write(output, &picture)?;
        }
        Command::Html { file, view, output } => {
            let page = page::page(&select(file, view)?, view)?;
            profile::write(output, page.as_bytes())?;
        }
        Command::Leaks { file, all_frames, symbols } => {
            let report = profile::text(file)?;
            tell(&leaks::print(&report, &Symbols::new(&symbols.folders), *all_frames, &mut to)?);
        }
        Command::Info { file, symbols } => {
            let profile = Profile::read(file)?;
            info::print(&profile, &Symbols::new(&symbols.folders), &mut to)?;
        }
        Command::Symbolise { file, output, symbols } => {
            let mut profile = Profile::read(file)?;
            tell(&Symbols::new(&symbols.folders).add_to(&mut profile));
            profile::write(output, &profile.to_bytes())?;
        }
    }
    Ok(to.flush()?)
}

/// Reads a profile, and finds its functions.
fn read(file: &std::path::Path, view: &View) -> Result<Profile, Failure> {
    let mut profile = Profile::read(file)?;
    tell(&Symbols::new(&view.symbols.folders).add_to(&mut profile));
    Ok(profile)
}

/// Reads a profile, and selects what `view` asks for.
fn select(file: &std::path::Path, view: &View) -> Result<Stacks, Failure> {
    Stacks::new(&read(file, view)?, view)
}

/// Prints why functions have no names.
fn tell(lines: &[String]) {
    lines.iter().for_each(|line| eprintln!("hayloft-prof: {line}"));
}
