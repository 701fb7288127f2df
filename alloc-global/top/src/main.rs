//! `hayloft-top`: shows live what the allocator of another process holds and does.
//!
//! The process was started with `HAYLOFT_STATS_SHM=1`. It writes its statistics into a page that
//! this program reads ([`hayloft::report`]). The program sends no request to the process, which
//! does not notice it.
//!
//! The table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | [`screen`] | the terminal, and the main loop |
//! | [`draw`] | the drawing of the screen |
//! | [`app`] [`text`] | the state of the screen, which keys change; `--once` and `--csv` |
//! | [`options`] | the command line |
//! | [`summary`] [`table`] | totals of the process; tables of caches, CPUs, nodes, sites, tags |
//! | [`history`] | recent snapshots, with rates, growth, and courses over time |
//! | [`symbols`] | names of functions in the process |
//! | [`failure`] [`number`] [`process`] | the reason to stop; short numbers; processes to show |
//!
//! The exit code is 0 on success. It is 1 if a process cannot be read, and 2 if the choice of a
//! process is ambiguous or an argument is wrong.

mod app;
mod draw;
mod failure;
mod history;
mod number;
mod options;
mod process;
mod screen;
mod summary;
mod symbols;
mod table;
mod text;

use std::env;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::Parser as _;
use hayloft::report::{self, Reader};

use app::App;
use failure::Failure;
use options::Options;
use process::Process;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

fn main() -> ExitCode {
    let options = Options::parse();
    options.check();
    let error = match run(&options) {
        Ok(code) => return code,
        // The reader of the output has closed it, as `head` does.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        }
        Err(Failure::Attach(error)) => error.to_string(),
        Err(Failure::Output(error)) => error.to_string(),
        Err(Failure::Other(error)) => error,
    };
    eprintln!("hayloft-top: {error}");
    ExitCode::FAILURE
}

fn run(options: &Options) -> Result<ExitCode, Failure> {
    let on_screen = !options.once && !options.csv;
    if on_screen && !io::stdout().is_terminal() {
        return Err(Failure::Other("standard output is no terminal: use --once or --csv".into()));
    }
    let kind = env::var("TERM").unwrap_or_default();
    if on_screen && ["", "dumb"].contains(&&*kind) {
        let error = format!("a terminal with TERM={kind} has no screen: use --once or --csv");
        return Err(Failure::Other(error));
    }
    let process = match options.process {
        Some(number) => number,
        None => match process::all().as_slice() {
            [] => {
                let nothing = match report::elsewhere() {
                    0 => "no process of yours shows statistics: start one with HAYLOFT_STATS_SHM=1",
                    _ => {
                        "processes that show statistics are all of other PID namespaces: look from there"
                    }
                };
                return Err(Failure::Other(nothing.into()));
            }
            [process] => process.number,
            several if on_screen => match screen::choose(several)? {
                Some(number) => number,
                None => return Ok(ExitCode::SUCCESS),
            },
            several => {
                eprintln!("hayloft-top: several processes show statistics; which?");
                several.iter().for_each(|process| eprintln!("{process}"));
                return Ok(ExitCode::from(2));
            }
        },
    };
    let mut reader = Reader::attach(process)?;
    let first = reader.read()?;
    let process = Process::of(process);
    if on_screen {
        screen::run(&mut reader, App::new(process, options), first, options.iterations)?;
    } else {
        text::run(&mut reader, &process, options, first, &mut io::stdout().lock())?;
    }
    Ok(ExitCode::SUCCESS)
}
