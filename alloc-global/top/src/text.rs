//! Printed output: one table (`--once`), or comma-separated values (`--csv`).

use std::io::Write;
use std::thread;

use comfy_table::{CellAlignment, Table, presets};
use hayloft::report::{AttachError, Reader, Snapshot};

use crate::failure::Failure;
use crate::history::History;
use crate::number;
use crate::options::Options;
use crate::process::Process;
use crate::summary;
use crate::table::{Column, Entry, Value};

/// Prints until the last look, or until the process ends. The end of the process is an error only
/// before the first look is printed.
pub(crate) fn run(
    reader: &mut Reader,
    process: &Process,
    options: &Options,
    first: Snapshot,
    to: &mut impl Write,
) -> Result<(), Failure> {
    let mut history = History::new(first);
    let columns: Vec<_> = options.view.columns().collect();
    let sort = options.order();
    let looks = if options.once { 1 } else { options.iterations.unwrap_or(u64::MAX) };
    if options.csv {
        let names = columns.iter().map(|column| column.name.to_string());
        csv(to, [["time_ms".to_string(), "pid".to_string()].into_iter().chain(names)])?;
    }
    for look in 0..looks {
        match wait(reader, options, &mut history) {
            Err(AttachError::Gone(_)) if look > 0 => return Ok(()),
            outcome => outcome?,
        }
        let entries = options.view.entries(&history, sort);
        if options.csv {
            let Snapshot { time, process, .. } = history.now();
            let record = |entry: &Entry| {
                let values: Vec<_> = entry.values.iter().map(Value::exact).collect();
                [time.to_string(), process.to_string()].into_iter().chain(values)
            };
            csv(to, entries.iter().map(record))?;
        } else {
            write!(to, "{}", page(process, &history, &columns, &entries))?;
        }
    }
    Ok(())
}

/// Waits for a new snapshot, unless the delay is zero. A stopped process is waited for after one
/// message, but with `--once` it is an error.
fn wait(reader: &mut Reader, options: &Options, history: &mut History) -> Result<(), AttachError> {
    let before = history.now().time;
    let mut is_told = false;
    while !options.delay.is_zero() && history.now().time == before {
        thread::sleep(options.delay);
        match reader.read() {
            Ok(snapshot) => history.push(snapshot),
            Err(error @ AttachError::Silent(..)) if !options.once => {
                if !is_told {
                    eprintln!("hayloft-top: {error}");
                }
                is_told = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes records and flushes them.
fn csv<R: IntoIterator<Item = String>>(
    to: &mut impl Write,
    records: impl IntoIterator<Item = R>,
) -> Result<(), Failure> {
    let mut writer = csv::Writer::from_writer(to);
    for record in records {
        writer.write_record(record).map_err(std::io::Error::from)?;
    }
    Ok(writer.flush()?)
}

/// Returns the totals and a table with all columns.
fn page(process: &Process, history: &History, columns: &[&Column], entries: &[Entry]) -> String {
    let up = process.age().map_or_else(String::new, |age| format!(", up {}", number::clock(age)));
    let amount = |amount: summary::Amount| format!("{} {}", amount.name, number::bytes(amount.now));
    let mut memory: Vec<_> = summary::memory(history).map(amount).into();
    if summary::part_of_limit(history).is_some() {
        memory.push(format!("limit {}", number::bytes(history.now().stats.limit as u64)));
    }
    let events = summary::events(history).map(|(name, text)| format!("{name} {text}"));

    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table.set_header(columns.iter().map(|column| column.title));
    table.add_rows(entries.iter().map(|entry| entry.values.iter().map(Value::short)));
    for (column, values) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 1));
        if values.name != "name" {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{} ({}){up}\n{}\n{}\n\n{}\n",
        process.name,
        process.number,
        memory.join(", "),
        events.chunks(3).map(|line| line.join("; ")).collect::<Vec<_>>().join("\n"),
        table.trim_fmt()
    )
}
