//! Point-in-time join: rows, each with the newest value that was known at its time.
//!
//! Time is twofold. A value has an event time, from which it holds, and a time at which the platform
//! learnt of it; a row takes, of its key's values that hold at its time and were learnt of before it, the one
//! with the latest event time. A value is thus ready from a certain time on, the later of the two, and a
//! key's values in that order, each with the best one so far, answer any row by one binary search.
//!
//! Both sides are cut into partitions by a hash of the key ([`partition`]), so many that one of them fits
//! into memory several times; what does not fit in the meantime goes to the disk. Then each partition is
//! joined by itself ([`merge`]).

mod merge;
mod partition;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use arrow::{
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use parquet::{
    arrow::ArrowWriter, basic::Compression, errors::ParquetError,
    file::properties::WriterProperties,
};
use serde::Serialize;

use self::{merge::Merger, partition::Partitioner};

/// A partition of about so many bytes is searched and sorted in the processor's caches.
const CACHED_BYTES: usize = 4 << 20;

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
pub enum AsOfError {
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a Parquet file, or a damaged one.
    #[error("reading or writing {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParquetError,
    },
    /// Rows that do not go together.
    #[error("joining rows of {}", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: ArrowError,
    },
    /// No files.
    #[error("{} has no Parquet files", path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A column that is missing or of another type.
    #[error("column `{column}` of {} is {found}, wanted {wanted}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type, or that it is missing.
        found: String,
        /// What would do.
        wanted: &'static str,
    },
    /// Both sides have a column of this name.
    #[error("both sides have a column `{column}`: rename one")]
    Ambiguous {
        /// The column.
        column: String,
    },
}

/// A table: a Parquet file, or a folder of them.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The file or folder.
    pub path: &'a Path,
    /// Column of the time, a BIGINT: of a row, or from which a value holds.
    pub time: &'a str,
}

/// A join.
#[derive(Debug, Clone, Copy)]
pub struct AsOfJoin<'a> {
    /// The rows that values are wanted for.
    pub rows: Side<'a>,
    /// The values.
    pub values: Side<'a>,
    /// Column of the time at which the platform learnt of a value; none: when it began to hold.
    pub known: Option<&'a str>,
    /// Columns of the key, which both sides have: texts or integers.
    pub by: &'a [String],
    /// Bytes that rows may take in memory; what is more goes to `scratch`.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
    /// A folder for what does not fit.
    pub scratch: &'a Path,
}

/// What a join did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AsOfReport {
    /// Rows that came out, as many as went in.
    pub rows: u64,
    /// Those that found a value.
    pub matched: u64,
    /// Partitions.
    pub partitions: usize,
    /// Bytes that went to the disk on the way.
    pub spilled_bytes: u64,
}

impl AsOfJoin<'_> {
    /// Joins into a folder of Parquet files: the rows' columns, then the values' but for the key; they
    /// are null where there was none. Rows come in another order than they had.
    ///
    /// # Errors
    /// [`AsOfError`]; the folder may then be half full.
    pub fn run(&self, to: &Path) -> Result<AsOfReport, AsOfError> {
        let rows = Partitioner::open(self.rows, self.by, None)?;
        let values = Partitioner::open(self.values, self.by, self.known)?;
        let schema = joined_schema(&rows, &values)?;
        let threads = self.threads.max(1);
        let bytes = rows.bytes() + values.bytes();
        // Each thread holds a partition of both sides, what comes of it, and some for sorting.
        let fit = bytes * 4 / (self.memory_bytes / threads).max(1);
        let partitions = fit.max(bytes / CACHED_BYTES).max(threads * 4) + 1;
        let partitions = partitions.next_power_of_two();
        let share = self.memory_bytes / 4;
        let values = values.partition(partitions, share, threads, &self.scratch.join("values"))?;
        let rows = rows.partition(partitions, share, threads, &self.scratch.join("rows"))?;
        fs::create_dir_all(to).map_err(io_error(to))?;

        let merger = Merger {
            rows: &rows,
            values: &values,
            schema: Arc::clone(&schema),
        };
        let (next, count, matched) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let work = |thread: usize| -> Result<(), AsOfError> {
            let path = to.join(format!("part-{thread:03}.parquet"));
            let mut writer = writer(&path, &schema)?;
            loop {
                let partition = next.fetch_add(1, Ordering::Relaxed);
                if partition >= partitions {
                    break;
                }
                let Some(joined) = merger.join(partition)? else {
                    continue;
                };
                count.fetch_add(joined.rows.num_rows() as u64, Ordering::Relaxed);
                matched.fetch_add(joined.matched, Ordering::Relaxed);
                writer.write(&joined.rows).map_err(parquet_error(&path))?;
            }
            writer.close().map_err(parquet_error(&path))?;
            Ok(())
        };
        on_threads(threads, work)?;
        Ok(AsOfReport {
            rows: count.into_inner(),
            matched: matched.into_inner(),
            partitions,
            spilled_bytes: rows.spilled_bytes() + values.spilled_bytes(),
        })
    }
}

/// Does the same on so many threads; each hears its number.
fn on_threads(
    count: usize,
    work: impl Fn(usize) -> Result<(), AsOfError> + Sync,
) -> Result<(), AsOfError> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        // A panic in a thread goes on here.
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a thread of the join"))
    })
}

fn writer(path: &Path, schema: &SchemaRef) -> Result<ArrowWriter<fs::File>, AsOfError> {
    let file = fs::File::create(path).map_err(io_error(path))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    ArrowWriter::try_new(file, Arc::clone(schema), Some(properties)).map_err(parquet_error(path))
}

/// The rows' columns and the values' but for the key, which may be null.
fn joined_schema(rows: &Partitioner<'_>, values: &Partitioner<'_>) -> Result<SchemaRef, AsOfError> {
    let mut fields: Vec<Field> = rows
        .schema()
        .fields()
        .iter()
        .map(|field| (**field).clone())
        .collect();
    for index in values.value_columns() {
        let field = values.schema().field(index);
        if fields.iter().any(|known| known.name() == field.name()) {
            let column = field.name().clone();
            return Err(AsOfError::Ambiguous { column });
        }
        fields.push(field.clone().with_nullable(true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn wanted(
    schema: &Schema,
    path: &Path,
    column: &str,
    wanted: &'static str,
    fits: impl Fn(&DataType) -> bool,
) -> Result<usize, AsOfError> {
    let found = schema.index_of(column).ok();
    match found {
        Some(index) if fits(schema.field(index).data_type()) => Ok(index),
        _ => Err(AsOfError::Column {
            path: path.to_owned(),
            column: column.to_owned(),
            found: found.map_or("missing".to_owned(), |index| {
                schema.field(index).data_type().to_string()
            }),
            wanted,
        }),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AsOfError {
    move |source| AsOfError::Io {
        path: path.to_owned(),
        source,
    }
}

fn parquet_error(path: &Path) -> impl FnOnce(ParquetError) -> AsOfError {
    move |source| AsOfError::Parquet {
        path: path.to_owned(),
        source,
    }
}

fn arrow_error(path: &Path) -> impl FnOnce(ArrowError) -> AsOfError {
    move |source| AsOfError::Arrow {
        path: path.to_owned(),
        source,
    }
}
