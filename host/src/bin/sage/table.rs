//! Tables of text.

use std::io::{self, Write};

/// How a column's cells line up.
#[derive(Clone, Copy)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Writes rows of cells below the columns' titles, each column as wide as its widest cell.
pub fn write<const N: usize>(out: &mut impl Write, columns: [Column; N], rows: &[[String; N]]) -> io::Result<()> {
    let titles = columns.map(|(Column::Left(title) | Column::Right(title))| title.to_owned());
    let width = |column: usize| {
        let cells = rows.iter().chain([&titles]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in [&titles].into_iter().chain(rows) {
        let mut line = String::new();
        for ((column, cell), width) in columns.iter().zip(row).zip(widths) {
            line += &match column {
                Column::Left(_) => format!("{cell:<width$}  "),
                Column::Right(_) => format!("{cell:>width$}  "),
            };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
