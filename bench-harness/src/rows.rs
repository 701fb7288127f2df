//! Tables whose rows are a name followed by numbers.

use comfy_table::{CellAlignment, Row, Table, presets};

/// Returns a table of `rows`. The first column is a name; the others are aligned to the right.
pub(crate) fn table<R: Into<Row>>(
    markdown: bool,
    header: impl Into<Row>,
    rows: impl IntoIterator<Item = R>,
) -> Table {
    let mut table = Table::new();
    if markdown {
        table.load_style(presets::ASCII_MARKDOWN).force_no_tty();
    } else {
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    }
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
