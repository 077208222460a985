//! Rows of labels and columns, as public data sets have them, as a training table.
//!
//! There are no events behind such rows, so they become the table that the trainer reads, and a
//! schema file says what their columns are. Training rows stand on one day, those for validation on
//! the next and those for testing on the one after it, so that a split by days gives the parts back;
//! within a day they are a microsecond apart, in the order of the files.
//!
//! What is fitted, as vocabularies and ranges, is fitted on the training rows alone.

mod columns;
mod error;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
};

use features::{DenseField, Schema, SparseField};
use serde::{Deserialize, Serialize};

pub use self::error::RowsError;
use self::{
    columns::{Chunk, Fitted},
    source::{Cells, Source},
};
use crate::process::table::{Staged, TrainingTable};

/// Rows of a data file.
const CHUNK: usize = 1 << 18;

/// What stands in which column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowsConfig {
    /// Name of the table that is made.
    pub table: String,
    /// Files of the training rows.
    pub train: Vec<PathBuf>,
    /// Files of the rows to choose and calibrate by; none: the split of the training takes some.
    pub valid: Vec<PathBuf>,
    /// Files of the rows to measure on; none: the split of the training takes some.
    pub test: Vec<PathBuf>,
    /// What stands between two columns of CSV: one character.
    pub delimiter: char,
    /// Whether the first line of CSV has the columns' names.
    pub header: bool,
    /// The columns' names in order, where no line has them; those of libfm without the label.
    pub columns: Vec<String>,
    /// The first index of each of `columns`, rising: then an entry of libfm belongs to the column whose range
    /// has its index, wherever it stands, and a row may have none of a column, or several where a `separator`
    /// allows them. Without it entries are told by their place.
    pub first_index: Vec<u64>,
    /// Column of the label: 0 or -1, and 1.
    pub label: String,
    /// Column of the rows' weights; none: all weigh 1.
    pub weight: Option<String>,
    /// Column that says whose rows they are, to measure by.
    pub user: Option<String>,
    /// Values that come less often in the training rows share one id, as do those that do not
    /// come there at all.
    pub min_count: u64,
    /// Columns of numbers.
    pub dense: Vec<DenseColumn>,
    /// Columns of ids.
    pub sparse: Vec<SparseColumn>,
}

impl Default for RowsConfig {
    fn default() -> Self {
        Self {
            table: "rows".to_owned(),
            train: Vec::new(),
            valid: Vec::new(),
            test: Vec::new(),
            delimiter: ',',
            header: true,
            columns: Vec::new(),
            first_index: Vec::new(),
            label: "label".to_owned(),
            weight: None,
            user: None,
            min_count: 1,
            dense: Vec::new(),
            sparse: Vec::new(),
        }
    }
}

/// A column of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseColumn {
    /// Its name, which is that of the feature.
    pub column: String,
    /// What becomes of its numbers; the trainer standardises them in any case.
    #[serde(default)]
    pub transform: Transform,
    /// The number where there is none.
    #[serde(default)]
    pub missing: f32,
}

/// What becomes of numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// `sign(x) ln(1 + |x|)`: for counts.
    Log,
    /// Least of the training rows to 0, greatest to 1; others are drawn to the nearer end.
    MinMax,
}

/// A column of ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseColumn {
    /// Its name.
    pub column: String,
    /// The feature's name; by default the column's, so that a column can be two features.
    #[serde(default)]
    pub feature: Option<String>,
    /// What stands between several values of a row, which may then have none; none: there is one.
    #[serde(default)]
    pub separator: Option<char>,
    /// As `min_count` of all.
    #[serde(default)]
    pub min_count: Option<u64>,
    /// Features of the same vocabulary have the same ids for the same values; by default each has
    /// its own.
    #[serde(default)]
    pub vocabulary: Option<String>,
    /// Makes numbers into values.
    #[serde(default)]
    pub bucketize: Option<Buckets>,
}

/// Ranges of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Buckets {
    /// `⌊ln² x⌋` above 2, else the number's whole part: as the winners of Criteo's challenge of 2014
    /// had it.
    LogSquare,
    /// How many of these, which rise, are not above the number.
    Boundaries(Vec<f32>),
}

impl SparseColumn {
    fn feature(&self) -> &str {
        self.feature.as_deref().unwrap_or(&self.column)
    }
}

/// How the files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text with a delimiter, quoted where need be (RFC 4180).
    Csv,
    /// `label index:value …`, one entry a column; or libffm's `label column:index:value …`, columns
    /// from 0 on, of which any may be missing.
    Libfm,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportedRows {
    /// Rows for training, validation and testing.
    pub rows: [u64; 3],
    /// Rows with a label of 1.
    pub clicks: u64,
    /// Ids of each sparse feature, the shared one included.
    pub ids: Vec<(String, u64)>,
    /// Version of the table.
    pub table_version: u64,
}

impl RowsConfig {
    /// Files that are not where the program runs are looked for beside the schema file that names them.
    pub fn beside(&mut self, schema: &Path) {
        let folder = schema.parent().unwrap_or(Path::new(""));
        for path in [&mut self.train, &mut self.valid, &mut self.test]
            .into_iter()
            .flatten()
        {
            let there = folder.join(&*path);
            if !path.exists() && there.exists() {
                *path = there;
            }
        }
    }
}

/// Reads files and makes a table of them in a folder; `told` hears of rows that were read. After an error
/// there is no table.
///
/// # Errors
/// [`RowsError`] names file, line and column.
pub fn import(
    config: &RowsConfig,
    format: Format,
    table: &Path,
    told: &dyn Fn(u64),
) -> Result<ImportedRows, RowsError> {
    check(config)?;
    if table.join("_delta_log").exists() {
        return Err(RowsError::Exists {
            path: table.to_owned(),
        });
    }
    let fresh = !table.exists();
    let done = take_in(config, format, table, told);
    if done.is_err() && fresh {
        // Nothing of it was committed. What cannot be removed is told as a table that exists, next time.
        let _ = fs::remove_dir_all(table);
    }
    done
}

fn take_in(
    config: &RowsConfig,
    format: Format,
    table: &Path,
    told: &dyn Fn(u64),
) -> Result<ImportedRows, RowsError> {
    let columns = source::columns(config, format)?;
    let files = Files {
        config,
        format,
        columns: &columns,
    };
    let mut fitted = Fitted::new(config, &columns)?;
    for path in &config.train {
        files.each_row(path, |at, cells| {
            told(1);
            fitted.take_in(at, cells)
        })?;
    }
    fitted.finish();
    let mut written = TrainingTable::of_schema(table, &schema(config, &fitted))?;
    let parts = [&config.train, &config.valid, &config.test];
    let mut done = ImportedRows {
        rows: [0; 3],
        clicks: 0,
        ids: fitted.sizes(),
        table_version: 0,
    };
    let mut out = Chunk::new(&fitted, written.file_schema());
    let (mut staged, mut files_written) = (Staged::default(), 0);
    for (day, paths) in (0..).zip(parts) {
        let mut flush = |out: &mut Chunk<'_>| {
            if let Some(batch) = out.take()? {
                files_written += 1;
                staged.add(written.stage_rows(files_written, day, &batch)?);
            }
            Ok::<_, RowsError>(())
        };
        for path in paths {
            files.each_row(path, |at, cells| {
                told(1);
                let label = out.push(day, done.rows[day as usize], at, cells)?;
                done.rows[day as usize] += 1;
                done.clicks += u64::from(label > 0.5);
                match out.len() == CHUNK {
                    true => flush(&mut out),
                    false => Ok(()),
                }
            })?;
        }
        flush(&mut out)?;
    }
    written.commit(files_written, staged)?;
    done.table_version = written.version();
    Ok(done)
}

/// One line of a file, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    path: &'a Path,
    line: u64,
}

/// What is the same of all files.
struct Files<'a> {
    config: &'a RowsConfig,
    format: Format,
    columns: &'a [String],
}

impl Files<'_> {
    /// Calls something with the columns of each row.
    fn each_row(
        &self,
        path: &Path,
        mut row: impl FnMut(At<'_>, &Cells) -> Result<(), RowsError>,
    ) -> Result<(), RowsError> {
        let mut source = Source::open(self.config, self.format, self.columns, path)?;
        let mut cells = Cells::default();
        while let Some(line) = source.next(&mut cells)? {
            row(At { path, line }, &cells)?;
        }
        Ok(())
    }
}

fn schema(config: &RowsConfig, fitted: &Fitted<'_>) -> Schema {
    let dense = config.dense.iter().map(|column| DenseField {
        name: column.column.clone(),
    });
    let sparse = config.sparse.iter().zip(fitted.sizes());
    let sparse = sparse.map(|(column, (name, ids))| SparseField {
        name,
        multi: column.separator.is_some(),
        cardinality: Some(ids),
    });
    Schema {
        digest: fitted.digest(),
        dense: dense.collect(),
        sparse: sparse.collect(),
    }
}

fn check(config: &RowsConfig) -> Result<(), RowsError> {
    let wrong = |key: &str, problem: &str| {
        Err(RowsError::Config {
            key: key.to_owned(),
            problem: problem.to_owned(),
        })
    };
    if config.train.is_empty() {
        return wrong("train", "no file, wanted at least one");
    }
    if config.dense.is_empty() && config.sparse.is_empty() {
        return wrong(
            "sparse",
            "no column, and none in `dense`: nothing to learn from",
        );
    }
    if config.valid.is_empty() != config.test.is_empty() {
        return wrong(
            "test",
            "files for `valid` or `test` alone: name both or none",
        );
    }
    if !config.delimiter.is_ascii() {
        return wrong("delimiter", "more than one byte");
    }
    if !config.first_index.is_empty() && config.first_index.len() != config.columns.len() {
        return wrong("first_index", "not as many numbers as `columns` has names");
    }
    if !config.first_index.is_sorted_by(|one, other| one < other) {
        return wrong("first_index", "numbers that do not rise");
    }
    let mut names: Vec<&str> = config.sparse.iter().map(SparseColumn::feature).collect();
    names.extend(config.dense.iter().map(|column| &*column.column));
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let problem = format!("two features are `{}`: give one a `feature`", pair[0]);
        return wrong("sparse", &problem);
    }
    for column in &config.sparse {
        if let Some(Buckets::Boundaries(bounds)) = &column.bucketize
            && !bounds.is_sorted_by(|one, other| one < other)
        {
            return wrong("sparse.bucketize", "boundaries that do not rise");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
