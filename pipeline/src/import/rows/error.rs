//! What may be wrong with rows.

use std::{io, path::PathBuf};

use arrow::error::ArrowError;

use crate::process::table::TableError;

/// Why rows could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// A schema that cannot be.
    #[error("`{key}`: {problem}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A file is missing, or not text.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no CSV.
    #[error("reading {}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: csv::Error,
    },
    /// Files of one table with different columns.
    #[error("{}: the header is `{found}`, and that of the first file `{wanted}`", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Its columns.
        found: String,
        /// Those of the first file.
        wanted: String,
    },
    /// A column that is not there.
    #[error("the files have no column `{column}`, but {known}")]
    NoColumn {
        /// The column.
        column: String,
        /// What there is.
        known: String,
    },
    /// A line with too few or too many columns.
    #[error("{}, line {line}: {found} columns, wanted {wanted}", path.display())]
    Width {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A value that is not what it should be.
    #[error("{}, line {line}: `{column}` is `{value}`, wanted {wanted}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// Its value.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
    /// There is such a table.
    #[error("{} is a table already: give another `table` or --root, or remove it", path.display())]
    Exists {
        /// The table.
        path: PathBuf,
    },
    /// The table cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Rows do not fit the table.
    #[error("rows for the table")]
    Arrow(#[from] ArrowError),
}
