//! The output of `compare` and its HTML page: how allocators were built, the tables, the means,
//! wins and losses, and changes.
//!
//! | module | holds |
//! |---|---|
//! | `page` | the HTML page |
//! | `changes` `tables` | tables of the changes since an earlier run; tables of this run |
//! | `build` `grid` `verdict` | how allocators were built; a coloured table; wins and losses |

mod build;
mod changes;
mod grid;
mod page;
mod tables;
mod verdict;

use std::fs;
use std::path::Path;

use super::changes::Changes;
use super::record::Record;
use super::summary::Summary;

/// Writes the report as one HTML page.
pub fn save_page(
    record: &Record,
    summary: &Summary,
    changes: Option<&Changes>,
    file: &Path,
) -> Result<(), String> {
    let page = page::page(record, summary, changes)?;
    fs::write(file, page).map_err(|error| format!("{}: {error}", file.display()))
}

/// Returns the whole report, for a terminal or as Markdown.
pub fn text(
    record: &Record,
    summary: &Summary,
    changes: Option<&Changes>,
    markdown: bool,
) -> String {
    let measured = heading("Measured", markdown);
    let mut sections = vec![format!("{measured}\n\n{}", build::section(record))];
    for (title, grid) in tables::details(summary).into_iter().chain(tables::overview(summary)) {
        sections.push(format!("{}\n\n{}", heading(&title, markdown), grid.render(markdown)));
    }
    let verdict = verdict::lines(summary);
    if !verdict.is_empty() {
        let title = heading("Wins and losses", markdown);
        sections.push(format!("{title}\n\n{}", verdict.join("\n")));
    }
    if let Some(changes) = changes {
        let title = heading(&changes::title(changes), markdown);
        sections.push(format!("{title}\n\n{}", changes::paragraphs(changes).join("\n\n")));
        for (title, grid) in changes::tables(changes) {
            sections.push(format!("{}\n\n{}", heading(title, markdown), grid.render(markdown)));
        }
    }
    format!("\n{}\n", sections.join("\n\n"))
}

/// Formats a title for the kind of output.
fn heading(title: &str, markdown: bool) -> String {
    if markdown { format!("### {title}") } else { console::style(title).bold().to_string() }
}
