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

use deltalake_core::{DeltaTable, DeltaTableError, open_table, open_table_with_version};
use features::Schema;
use parquet::errors::ParquetError;
use url::Url;
use wire::quality::{QualityError, TableQuality};

pub(crate) use self::slice::DAY_US;
pub use self::{
    rows::{Auction, Examples, Outcome, Projection},
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
    /// What the quality gate left cannot be read.
    #[error("in the outcome of the quality gate of table {}", path.display())]
    Quality {
        /// The table's folder.
        path: PathBuf,
        /// What is wrong.
        source: QualityError,
    },
    /// The quality gate refused every version.
    #[error("table {} is refused by its quality gate, and no version before has passed: {}; mend the events and run `marquee events check` again", path.display(), failed.join("; "))]
    Refused {
        /// The table's folder.
        path: PathBuf,
        /// What failed.
        failed: Vec<String>,
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
    /// No column of times of outcomes, or rows without one that all must have.
    #[error("table file {} does not say when rows were clicked and converted, in column `{column}`: for model.architecture = \"mmoe\" process a log of events into another table with `marquee events process`, or choose another architecture", path.display())]
    NoOutcomes {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
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
    /// Opens the newest version that the quality gate passed; the newest one if there was no gate.
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
        let quality = TableQuality::load(path).map_err(|source| TableError::Quality {
            path: path.to_owned(),
            source,
        })?;
        let table = match quality {
            None => open_table(url).await,
            Some(TableQuality {
                good: Some(good), ..
            }) => open_table_with_version(url, good).await,
            Some(TableQuality { failed, .. }) => {
                let path = path.to_owned();
                return Err(TableError::Refused { path, failed });
            }
        };
        let table = table.map_err(delta)?;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{testing::schema, *};

    /// A Delta table of three versions, without rows.
    fn table() -> tempfile::TempDir {
        let table = tempfile::tempdir().unwrap();
        let log = table.path().join("_delta_log");
        fs::create_dir(&log).unwrap();
        let metadata = serde_json::json!({ "metaData": {
            "id": "00000000-0000-0000-0000-000000000001",
            "format": { "provider": "parquet", "options": {} },
            "schemaString": serde_json::json!({ "type": "struct", "fields": [
                { "name": "click", "type": "float", "nullable": false, "metadata": {} },
            ]}).to_string(),
            "partitionColumns": [],
            "configuration": { SCHEMA_KEY: serde_json::to_string(&schema()).unwrap() },
        }});
        let protocol = r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}"#;
        let first = format!("{protocol}\n{metadata}\n");
        let later = r#"{"commitInfo":{"operation":"WRITE"}}"#;
        for (version, text) in [first.as_str(), later, later].iter().enumerate() {
            fs::write(log.join(format!("{version:020}.json")), text).unwrap();
        }
        table
    }

    #[tokio::test]
    async fn the_version_that_passed_the_gate_is_read_and_else_the_newest() {
        let table = table();
        let open = || TrainingTable::open(table.path());
        assert_eq!(open().await.unwrap().version(), 2);

        let outcome = |good| TableQuality {
            good,
            checked: 2,
            failed: vec!["share of nulls of click is 1, wanted at most 0".to_owned()],
        };
        outcome(Some(1)).save(table.path()).unwrap();
        let opened = open().await.unwrap();
        assert_eq!(opened.version(), 1);
        assert_eq!(opened.schema(), &schema());

        outcome(None).save(table.path()).unwrap();
        let error = open().await.unwrap_err();
        assert!(matches!(error, TableError::Refused { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains("share of nulls of click"), "{told}");
        assert!(told.contains("marquee events check"), "{told}");
    }
}
