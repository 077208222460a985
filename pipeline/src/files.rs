//! Parquet files that one batch of the pipeline writes and nothing changes.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use arrow::array::RecordBatch;
use parquet::{
    arrow::ArrowWriter, basic::Compression, errors::ParquetError,
    file::properties::WriterProperties,
};

/// Why files could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Rows that could not be encoded or decoded.
    #[error("in the Parquet file {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What Parquet said.
        source: ParquetError,
    },
}

/// Paths in a folder, sorted; a missing folder has none.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder)(error)),
    };
    let paths = entries.map(|entry| entry.map(|it| it.path()));
    let paths: Result<Vec<_>, _> = paths.collect();
    let mut paths = paths.map_err(failed(folder))?;
    paths.sort();
    Ok(paths)
}

/// The batch that a file's name carries, if it is one of ours.
pub(crate) fn batch_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// What a folder's name says of a key, as `13` of `hour=13`.
pub(crate) fn value_of<'a>(folder: &'a Path, key: &str) -> Option<&'a str> {
    let name = folder.file_name()?.to_str()?;
    name.strip_prefix(key)?.strip_prefix('=')
}

/// Writes rows to a new file, durably.
pub(crate) fn write(path: &Path, rows: &RecordBatch) -> Result<(), FilesError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let file = File::create(path).map_err(failed(path))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let written =
        ArrowWriter::try_new(&file, rows.schema(), Some(properties)).and_then(|mut writer| {
            writer.write(rows)?;
            writer.close()
        });
    written.map_err(|source| FilesError::Parquet {
        path: path.to_owned(),
        source,
    })?;
    file.sync_all().map_err(failed(path))?;
    // The folder may be new in its own.
    sync(folder)?;
    folder.parent().map_or(Ok(()), sync)
}

/// Makes the names in a folder durable.
pub(crate) fn sync(folder: &Path) -> Result<(), FilesError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed(folder))
}

/// The disk's error, of a file or folder.
pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io {
        path: path.clone(),
        source,
    }
}
