//! Where backfilled values are kept: one file for each feature, version and day.
//!
//! ```text
//! features/<table>/<feature>/v<version>/day=2026-11-26.parquet   request_id, value
//! features/<table>/<feature>/v<version>/day=2026-11-26.json      what they were computed from
//! ```
//!
//! The JSON is written last: values without it are of a run that was cut off, and are written again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use arrow::array::RecordBatch;
use features::spec::Feature;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
};
use serde::{Deserialize, Serialize};

use crate::calendar::day_name;

/// Why values could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record of a day is not what this version writes.
    #[error("reading {}; remove it to compute its day again", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// Values that are no Parquet.
    #[error("in values {}; remove them to compute their day again", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What Parquet said.
        source: ParquetError,
    },
}

/// What a day's values were computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Digest of what the feature means.
    pub digest: String,
    /// Digest of the names of the fact files, which never change.
    pub facts: String,
    /// The newest batch that was committed then.
    pub batch: u64,
    /// How many values there are.
    pub rows: u64,
}

/// The backfilled values of one training table.
#[derive(Debug, Clone)]
pub struct Values {
    folder: PathBuf,
}

impl Values {
    /// Those in a folder.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The record of a day, if it was finished.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn record(&self, feature: &Feature, day: i32) -> Result<Option<Record>, ValuesError> {
        let path = self.path(feature, day, "json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ValuesError::Io { path, source }),
        };
        let record = serde_json::from_slice(&text);
        record
            .map(Some)
            .map_err(|source| ValuesError::Record { path, source })
    }

    /// Where a day's record lies.
    pub fn record_path(&self, feature: &Feature, day: i32) -> PathBuf {
        self.path(feature, day, "json")
    }

    /// The values of a day: ids of requests, and values.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn read(
        &self,
        feature: &Feature,
        day: i32,
    ) -> Result<ParquetRecordBatchReader, ValuesError> {
        let path = self.path(feature, day, "parquet");
        let file = File::open(&path).map_err(failed(&path))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file);
        reader
            .and_then(ParquetRecordBatchReaderBuilder::build)
            .map_err(|source| ValuesError::Parquet { path, source })
    }

    /// Keeps the values of a day, and then their record.
    pub(super) fn write(
        &self,
        feature: &Feature,
        day: i32,
        values: &[RecordBatch],
        record: &Record,
    ) -> Result<(), ValuesError> {
        let (values_path, path) = (
            self.path(feature, day, "parquet"),
            self.path(feature, day, "json"),
        );
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(failed(folder))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&path)(error));
            }
            _ => {}
        }
        write_parquet(&values_path, values)?;
        let partial = path.with_extension("partial");
        // A record of plain fields always serialises.
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        fs::write(&partial, text).map_err(failed(&partial))?;
        fs::rename(&partial, &path).map_err(failed(&path))?;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed(folder))
    }

    fn path(&self, feature: &Feature, day: i32, extension: &str) -> PathBuf {
        let folder = self.folder.join(&feature.name);
        let folder = folder.join(format!("v{}", feature.version));
        folder.join(format!("day={}.{extension}", day_name(day)))
    }
}

fn write_parquet(path: &Path, values: &[RecordBatch]) -> Result<(), ValuesError> {
    let Some(first) = values.first() else {
        return Ok(());
    };
    let file = File::create(path).map_err(failed(path))?;
    let write = || {
        let mut writer = ArrowWriter::try_new(&file, first.schema(), None)?;
        values.iter().try_for_each(|batch| writer.write(batch))?;
        writer.close()
    };
    write().map_err(|source| ValuesError::Parquet {
        path: path.to_owned(),
        source,
    })?;
    file.sync_all().map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ValuesError {
    let path = path.to_owned();
    move |source| ValuesError::Io {
        path: path.clone(),
        source,
    }
}
