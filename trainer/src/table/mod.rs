//! Reads the training table: Delta Lake on disk, without a query engine.
//!
//! A table has [`Slice`]s, parts that are not read yet. A slice is loaded whole as [`Examples`],
//! or streamed batch by batch as [`Batches`], each rank its share, in an order that a seed fixes.

mod rows;
mod slice;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use deltalake_core::{DeltaTable, DeltaTableError, open_table};
use features::Schema;
use parquet::errors::ParquetError;
use url::Url;

pub(crate) use self::slice::DAY_US;
pub use self::{
    rows::{Examples, Projection},
    slice::Slice,
    stream::{Batches, Order, ReaderConfig, Share},
};

/// Key of the table's configuration under which the feature schema stands as JSON.
const SCHEMA_KEY: &str = "marquee.schema";

/// Why the training table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no table.
    #[error("no training table in {}; `marquee events process` makes one", path.display())]
    Missing {
        /// The table's folder.
        path: PathBuf,
    },
    /// The table's log cannot be read.
    #[error("reading Delta table {}", path.display())]
    Delta {
        /// The table's folder.
        path: PathBuf,
        /// What went wrong.
        source: Box<DeltaTableError>,
    },
    /// The table says nothing of its features.
    #[error("Delta table {} has no `{SCHEMA_KEY}` in its configuration; write it with `marquee events process`", path.display())]
    NoSchema {
        /// The table's folder.
        path: PathBuf,
    },
    /// The schema is not one.
    #[error("feature schema of Delta table {}", path.display())]
    Schema {
        /// The table's folder.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A data file cannot be opened.
    #[error("opening table file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data file is damaged.
    #[error("reading table file {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: ParquetError,
    },
    /// A record batch is damaged.
    #[error("reading table file {}", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: arrow::error::ArrowError,
    },
    /// A column is missing or of another type.
    #[error("table file {} has no column `{column}` of type {wanted}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type.
        wanted: &'static str,
    },
    /// A number that no model can learn from.
    #[error("column `{column}` of table file {} holds {value} for impression {impression_id}; `marquee events process` refuses such values: write the table anew", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The row.
        impression_id: String,
        /// The value.
        value: f32,
    },
}

/// The training table at one version.
#[derive(Debug)]
pub struct TrainingTable {
    path: PathBuf,
    table: DeltaTable,
    schema: Arc<Schema>,
}

impl TrainingTable {
    /// Opens the newest version.
    ///
    /// # Errors
    /// [`TableError`] that names the folder and the mend.
    pub async fn open(path: &Path) -> Result<Self, TableError> {
        let missing = || TableError::Missing {
            path: path.to_owned(),
        };
        let absolute = std::path::absolute(path).map_err(|_| missing())?;
        if !absolute.join("_delta_log").exists() {
            return Err(missing());
        }
        let url = Url::from_directory_path(&absolute).map_err(|()| missing())?;
        let delta = |source| TableError::Delta {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let table = open_table(url).await.map_err(delta)?;
        let configuration = table.snapshot().map_err(delta)?.metadata().configuration();
        let text = configuration
            .get(SCHEMA_KEY)
            .ok_or_else(|| TableError::NoSchema {
                path: path.to_owned(),
            })?;
        let schema = serde_json::from_str(text).map_err(|source| TableError::Schema {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            table,
            schema,
        })
    }

    /// The version that is open.
    pub fn version(&self) -> u64 {
        self.table.version().unwrap_or_default()
    }

    /// The features of its rows.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// All rows; reads the footers of the files.
    ///
    /// # Errors
    /// [`TableError`] that names the file.
    pub fn rows(&self) -> Result<Slice, TableError> {
        let delta = |source| TableError::Delta {
            path: self.path.clone(),
            source: Box::new(source),
        };
        let uris = self.table.get_file_uris().map_err(delta)?;
        // Partition values such as `day=2026-09-01` are percent-encoded in a URI.
        let mut paths: Vec<PathBuf> = uris.map(|uri| local_path(&uri)).collect();
        paths.sort();
        Slice::of_files(Arc::clone(&self.schema), paths)
    }
}

fn local_path(uri: &str) -> PathBuf {
    match Url::parse(uri).ok().and_then(|url| url.to_file_path().ok()) {
        Some(path) => path,
        None => PathBuf::from(uri),
    }
}
