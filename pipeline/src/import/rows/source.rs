//! Files as rows of columns.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use super::{At, Format, RowsConfig, RowsError};

/// Longest line of libfm.
const MAX_LINE: u64 = 1 << 20;

/// The columns of one row, the label's among them. Libfm has two texts a column, an index and a
/// number; CSV has one.
#[derive(Debug, Default)]
pub struct Cells {
    keys: Vec<String>,
    /// Empty for CSV.
    numbers: Vec<String>,
}

impl Cells {
    /// What names an id.
    pub fn key(&self, column: usize) -> &str {
        &self.keys[column]
    }

    /// What is a number.
    pub fn number(&self, column: usize) -> &str {
        self.numbers.get(column).unwrap_or(&self.keys[column])
    }

    fn clear(&mut self, columns: usize) {
        self.keys.resize(columns, String::new());
        self.keys.iter_mut().for_each(String::clear);
    }
}

/// An open file.
pub enum Source {
    /// CSV.
    Csv {
        path: PathBuf,
        reader: csv::Reader<File>,
        record: csv::StringRecord,
        columns: usize,
    },
    /// Libfm or libffm.
    Libfm {
        path: PathBuf,
        reader: BufReader<File>,
        line: String,
        number: u64,
        layout: Layout,
    },
}

/// Which column an entry of libfm belongs to.
pub struct Layout {
    /// What stands between several entries of a column, if there may be several; the label's is the first.
    separators: Vec<Option<char>>,
    /// First index of each column but the label's; empty: entries are told by their place.
    first_index: Vec<u64>,
}

impl Layout {
    fn of(config: &RowsConfig, columns: &[String]) -> Self {
        let separator = |column: &String| {
            let mut features = config.sparse.iter().filter(|it| it.column == *column);
            features.find_map(|feature| feature.separator)
        };
        Self {
            separators: columns.iter().map(separator).collect(),
            first_index: config.first_index.clone(),
        }
    }
}

impl Source {
    /// Opens a file of these columns.
    pub fn open(
        config: &RowsConfig,
        format: Format,
        columns: &[String],
        path: &Path,
    ) -> Result<Self, RowsError> {
        let path = path.to_owned();
        Ok(match format {
            Format::Libfm => {
                let file = File::open(&path).map_err(|source| RowsError::Read {
                    path: path.clone(),
                    source,
                })?;
                Self::Libfm {
                    reader: BufReader::with_capacity(1 << 20, file),
                    line: String::new(),
                    number: 0,
                    layout: Layout::of(config, columns),
                    path,
                }
            }
            Format::Csv => {
                let mut reader = csv_reader(config, &path)?;
                if config.header {
                    let found = header(&mut reader, &path)?;
                    if found != columns {
                        return Err(RowsError::Header {
                            path,
                            found: found.join(", "),
                            wanted: columns.join(", "),
                        });
                    }
                }
                Self::Csv {
                    path,
                    reader,
                    record: csv::StringRecord::new(),
                    columns: columns.len(),
                }
            }
        })
    }

    /// Reads the next row; its line, if there is one.
    pub fn next(&mut self, cells: &mut Cells) -> Result<Option<u64>, RowsError> {
        match self {
            Self::Csv {
                path,
                reader,
                record,
                columns,
            } => {
                let read = reader
                    .read_record(record)
                    .map_err(|source| RowsError::Csv {
                        path: path.clone(),
                        source,
                    })?;
                if !read {
                    return Ok(None);
                }
                let line = record.position().map_or(0, csv::Position::line);
                if record.len() != *columns {
                    return Err(RowsError::Width {
                        path: path.clone(),
                        line,
                        found: record.len(),
                        wanted: *columns,
                    });
                }
                cells.clear(*columns);
                for (cell, text) in cells.keys.iter_mut().zip(record.iter()) {
                    cell.push_str(text);
                }
                Ok(Some(line))
            }
            Self::Libfm {
                path,
                reader,
                line,
                number,
                layout,
            } => loop {
                line.clear();
                *number += 1;
                let failed = |source| RowsError::Read {
                    path: path.clone(),
                    source,
                };
                let mut limited = io::Read::take(&mut *reader, MAX_LINE);
                if limited.read_line(line).map_err(failed)? == 0 {
                    return Ok(None);
                }
                let at = At {
                    path,
                    line: *number,
                };
                if line.len() as u64 == MAX_LINE {
                    return Err(at.value("line", "…", "less than a megabyte"));
                }
                if !line.trim().is_empty() {
                    libfm(line, layout, cells, at)?;
                    return Ok(Some(*number));
                }
            },
        }
    }
}

/// The columns' names in the order of [`Cells`].
pub fn columns(config: &RowsConfig, format: Format) -> Result<Vec<String>, RowsError> {
    match (format, &config.train[..]) {
        (Format::Csv, [first, ..]) if config.header => {
            header(&mut csv_reader(config, first)?, first)
        }
        (Format::Csv, _) => Ok(config.columns.clone()),
        (Format::Libfm, _) => {
            let label = std::iter::once(&config.label);
            Ok(label.chain(&config.columns).cloned().collect())
        }
    }
}

fn csv_reader(config: &RowsConfig, path: &Path) -> Result<csv::Reader<File>, RowsError> {
    let file = File::open(path).map_err(|source| RowsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut builder = csv::ReaderBuilder::new();
    let builder = builder
        .delimiter(config.delimiter as u8)
        .has_headers(config.header)
        .flexible(true)
        .buffer_capacity(1 << 20);
    Ok(builder.from_reader(file))
}

fn header(reader: &mut csv::Reader<File>, path: &Path) -> Result<Vec<String>, RowsError> {
    let header = reader.headers().map_err(|source| RowsError::Csv {
        path: path.to_owned(),
        source,
    })?;
    Ok(header.iter().map(str::to_owned).collect())
}

impl At<'_> {
    /// A value that is not what it should be.
    pub fn value(&self, column: &str, value: &str, wanted: &'static str) -> RowsError {
        RowsError::Value {
            path: self.path.to_owned(),
            line: self.line,
            column: column.to_owned(),
            value: value.chars().take(80).collect(),
            wanted,
        }
    }
}

/// Takes one line apart.
fn libfm(line: &str, layout: &Layout, cells: &mut Cells, at: At<'_>) -> Result<(), RowsError> {
    let columns = layout.separators.len();
    cells.clear(columns);
    cells.numbers.resize(columns, String::new());
    cells.numbers.iter_mut().for_each(String::clear);
    let mut entries = line.split_whitespace();
    let label = entries.next().unwrap_or_default();
    cells.keys[0].push_str(label);
    cells.numbers[0].push_str(label);
    let mut found = 0;
    // Whether entries say their columns; else each stands in its place.
    let mut told = !layout.first_index.is_empty();
    for entry in entries {
        let wrong = |wanted| at.value("entry", entry, wanted);
        let parts: Vec<&str> = entry.split(':').collect();
        let (column, index, value) = match parts[..] {
            [index, value] if layout.first_index.is_empty() => (found + 1, index, value),
            [index, value] => {
                let number: u64 =
                    (index.parse()).map_err(|_| wrong("an index that is a number"))?;
                let column = layout.first_index.partition_point(|first| *first <= number);
                if column == 0 {
                    return Err(wrong("an index from the first of `first_index` on"));
                }
                (column, index, value)
            }
            [column, index, value] => {
                told = true;
                let column: Option<usize> = column.parse().ok();
                let column = column.and_then(|column| column.checked_add(1));
                let wanted = "column:index:value with a column that `columns` has";
                let column = column.filter(|column| *column < columns);
                (column.ok_or_else(|| wrong(wanted))?, index, value)
            }
            _ => return Err(wrong("index:value or column:index:value")),
        };
        found += 1;
        if column >= columns {
            break;
        }
        for (cell, text) in [(&mut cells.keys, index), (&mut cells.numbers, value)] {
            let cell = &mut cell[column];
            match layout.separators[column] {
                _ if cell.is_empty() => {}
                Some(separator) => cell.push(separator),
                None => return Err(wrong("one entry a column, or a `separator` for several")),
            }
            cell.push_str(text);
        }
    }
    let wanted = columns - 1;
    if !told && found != wanted {
        return Err(RowsError::Width {
            path: at.path.to_owned(),
            line: at.line,
            found,
            wanted,
        });
    }
    Ok(())
}
