//! A table of coloured cells, rendered for a terminal or as Markdown. The HTML page shows it as
//! well.

use comfy_table::{Attribute, Cell, Color, LineStyle};

use crate::rows;
use crate::statistics::Mood;

/// A table: a header, and rows of the same length.
pub(super) struct Grid {
    pub(super) header: Vec<String>,
    separated: bool,
    pub(super) rows: Vec<Vec<Entry>>,
}

/// One cell.
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) mood: Mood,
}

impl Entry {
    /// Creates a cell without colour.
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), mood: Mood::Even }
    }

    /// Creates a cell coloured by its ratio, if there is one.
    pub(super) fn rated(text: impl Into<String>, ratio: Option<f64>) -> Self {
        Self { text: text.into(), mood: ratio.map_or(Mood::Even, Mood::of) }
    }

    /// Creates a cell coloured as good or bad news.
    pub(super) fn in_mood(text: impl Into<String>, mood: Mood) -> Self {
        Self { text: text.into(), mood }
    }

    /// Creates a cell that reports a failure.
    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self { text: text.into(), mood: Mood::Worse }
    }
}

impl Grid {
    /// Creates a table without rows.
    pub(super) fn new(header: Vec<String>) -> Self {
        Self { header, separated: false, rows: Vec::new() }
    }

    /// Draws a line between rows, for a table whose rows have several lines of text.
    pub(super) fn separated(self) -> Self {
        Self { separated: true, ..self }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: Vec<Entry>) {
        debug_assert_eq!(row.len(), self.header.len());
        self.rows.push(row);
    }

    /// Returns whether there is nothing to show.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the table as text, without a line break at its end.
    pub(super) fn render(&self, markdown: bool) -> String {
        let header =
            self.header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold));
        let row = |row: &Vec<Entry>| row.iter().map(|entry| cell(entry, markdown)).collect();
        let rows = self.rows.iter().map(row).collect::<Vec<Vec<_>>>();
        let mut table = rows::table(markdown, header.collect::<Vec<_>>(), rows);
        if !markdown {
            if !self.separated {
                table.style_mut().row_separator = LineStyle::none();
            }
            // `console` respects NO_COLOR and CLICOLOR, and checks whether this is a terminal.
            if console::colors_enabled() {
                table.enforce_styling();
            } else {
                table.force_no_tty();
            }
        }
        table.trim_fmt()
    }
}

fn cell(entry: &Entry, markdown: bool) -> Cell {
    // A cell of a Markdown table must be one line.
    let text = if markdown { entry.text.replace('\n', " · ") } else { entry.text.clone() };
    let cell = Cell::new(text);
    match entry.mood {
        Mood::Better => cell.fg(Color::Green),
        Mood::Even => cell,
        Mood::Worse => cell.fg(Color::Red),
    }
}
