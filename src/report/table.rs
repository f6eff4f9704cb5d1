//! Plain tables: columns by spaces, numbers to the right.

use comfy_table::{CellAlignment, presets};

/// A table to which rows are added.
pub struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// A table with these column heads. A head that begins with `>` aligns its column to the right.
    pub fn new(heads: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(heads.iter().map(|h| h.trim_start_matches('>')));
        for (i, head) in heads.iter().enumerate() {
            if let Some(column) = table.column_mut(i) {
                column.set_padding((0, 2));
                if head.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Table { table }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.table.add_row(cells.into_iter().map(Into::<String>::into));
    }

    /// The lines, without spaces at their ends.
    pub fn text(&self) -> String {
        self.table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}
