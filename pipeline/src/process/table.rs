//! The training table: Delta Lake, one row per viewed impression, partitioned by day.
//!
//! A commit adds the files of one batch and carries the application transaction
//! ([`APPLICATION`], batch number). That transaction is *the* point at which a batch has
//! happened; everything else is written before it and means nothing without it.

mod columns;
mod mature;
mod sampling;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use deltalake_core::{
    DeltaTable, DeltaTableBuilder, DeltaTableError, Path as StorePath,
    kernel::{
        Action, Add, Transaction,
        transaction::{CommitBuilder, CommitProperties},
    },
    logstore::object_store::{self, ObjectStoreExt as _},
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use features::{FeatureSet, FeatureSpec, Schema};
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    errors::ParquetError,
    file::properties::WriterProperties,
};
use tokio::runtime::Runtime;
use url::Url;

use super::{book::Mend, config::PipelineConfig, processor::Row};
use crate::calendar::{day_name, parse_day};

pub use columns::{DAY, MATURED, PENDING, dense_name, sparse_name};
pub(crate) use columns::{FEATURES_FROM, SERVING, id_field};

/// Who commits batches.
pub const APPLICATION: &str = "marquee-events";
/// Key of the feature schema (JSON) in the table's configuration.
pub const SCHEMA_KEY: &str = "marquee.schema";
/// Key of the feature spec (JSON) in the table's configuration.
pub const SPEC_KEY: &str = "marquee.spec";

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Delta Lake refused.
    #[error("{what} table {}", path.display())]
    Delta {
        /// What was tried.
        what: &'static str,
        /// The table.
        path: PathBuf,
        /// What Delta Lake said.
        source: Box<DeltaTableError>,
    },
    /// The store refused a data file.
    #[error("{what} data file {file}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// The file.
        file: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// A data file could not be made durable.
    #[error("syncing {}", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data file is no Parquet, or could not be encoded.
    #[error("in data file {file}")]
    Parquet {
        /// The file.
        file: String,
        /// What Parquet said.
        source: ParquetError,
    },
    /// Rows that do not fit the schema.
    #[error("in rows of data file {file}")]
    Arrow {
        /// The file.
        file: String,
        /// What Arrow said.
        source: ArrowError,
    },
    /// The table was made with other features.
    #[error(
        "table {} has features of spec {found}, the configuration names spec {wanted}: give the new spec another `table` or another --root", path.display()
    )]
    OtherFeatures {
        /// The table.
        path: PathBuf,
        /// Digest in the table, or why it cannot be read.
        found: String,
        /// Digest in use.
        wanted: String,
    },
    /// The table's columns are those of an earlier version.
    #[error(
        "table {} has no column `{column}`: an earlier version made it; write into another `table` or another --root", path.display()
    )]
    OldColumns {
        /// The table.
        path: PathBuf,
        /// The first that it has not.
        column: String,
    },
    /// The table does not say what its columns mean.
    #[error("table {} has no `{SPEC_KEY}`: it was made before tables had one; process the log into another `table`", path.display())]
    NoSpec {
        /// The table.
        path: PathBuf,
    },
    /// The path is not one that Delta Lake can name.
    #[error("`{}` is not a place for a table", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// No thread for the table's work.
    #[error("starting the table's runtime")]
    Runtime {
        /// What the system said.
        source: std::io::Error,
    },
}

/// The training table, open for the one processor that writes it.
pub(crate) struct TrainingTable {
    runtime: Runtime,
    table: DeltaTable,
    path: PathBuf,
    schema: Schema,
    file_schema: SchemaRef,
}

/// Data files that are written and durable, and not part of the table yet.
#[derive(Debug, Default)]
pub(crate) struct Staged(Vec<Action>);

impl Staged {
    /// Puts the files of another one to these.
    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl TrainingTable {
    /// Opens the table, or makes it.
    pub(crate) fn open(path: &Path, set: &FeatureSet) -> Result<Self, TableError> {
        let runtime = runtime()?;
        let table = runtime.block_on(open_or_create(path, set.schema(), Some(set.spec())))?;
        let opened = Self::new(runtime, table, path, set.schema());
        opened.check_schema()?;
        opened.check_columns()?;
        Ok(opened)
    }

    /// Opens a table of columns that no spec made, or makes it.
    pub(crate) fn of_schema(path: &Path, schema: &Schema) -> Result<Self, TableError> {
        let runtime = runtime()?;
        let table = runtime.block_on(open_or_create(path, schema, None))?;
        let opened = Self::new(runtime, table, path, schema);
        opened.check_schema()?;
        opened.check_columns()?;
        Ok(opened)
    }

    /// Opens a table that is there, with the spec that it was made with.
    pub(crate) fn existing(path: &Path) -> Result<(Self, FeatureSpec), TableError> {
        let runtime = runtime()?;
        let table = runtime.block_on(open_existing(path))?;
        let snapshot = table.snapshot().map_err(delta_error("reading", path))?;
        let text = snapshot.metadata().configuration().get(SPEC_KEY);
        let spec = text.and_then(|text| serde_json::from_str::<FeatureSpec>(text).ok());
        let spec = spec.ok_or_else(|| TableError::NoSpec {
            path: path.to_owned(),
        })?;
        let set = FeatureSet::compile(spec.clone());
        let opened = Self::new(runtime, table, path, set.schema());
        opened.check_schema()?;
        Ok((opened, spec))
    }

    fn new(runtime: Runtime, table: DeltaTable, path: &Path, schema: &Schema) -> Self {
        Self {
            runtime,
            table,
            path: path.to_owned(),
            schema: schema.clone(),
            file_schema: columns::file_schema(schema),
        }
    }

    /// The columns of its files.
    pub(crate) fn file_schema(&self) -> &SchemaRef {
        &self.file_schema
    }

    /// The version that is open.
    pub(crate) fn version(&self) -> u64 {
        self.table.version().unwrap_or_default()
    }

    /// The days that have rows.
    pub(crate) fn days(&self) -> Result<BTreeSet<i32>, TableError> {
        let log_store = self.table.log_store();
        let views = self.runtime.block_on(async {
            let snapshot = self.table.snapshot()?.snapshot();
            let views = snapshot.file_views(&*log_store, None);
            views.try_collect::<Vec<_>>().await
        });
        let views = views.map_err(self.failed("listing files of"))?;
        let days = views.iter().filter_map(|view| {
            let values = view.partition_values_map();
            parse_day(values.get(DAY)?.as_deref()?)
        });
        Ok(days.collect())
    }

    /// The rows of a day.
    pub(crate) fn rows(&self, day: i32) -> Result<Vec<RecordBatch>, TableError> {
        Ok(self.read_day(day)?.0)
    }

    /// Writes rows of a day as a data file of a batch, durably.
    pub(crate) fn stage_rows(
        &self,
        batch: u64,
        day: i32,
        rows: &RecordBatch,
    ) -> Result<Staged, TableError> {
        let add = self.write_file(&file_name(day, batch), day, rows)?;
        Ok(Staged(vec![Action::Add(add)]))
    }

    /// The last batch that was committed; 0 if none was.
    pub(crate) fn committed_batch(&self) -> Result<u64, TableError> {
        let log_store = self.table.log_store();
        let version = self.runtime.block_on(async {
            let snapshot = self.table.snapshot()?;
            snapshot.transaction_version(&*log_store, APPLICATION).await
        });
        let version = version.map_err(self.failed("reading the last batch of"))?;
        Ok(version
            .and_then(|batch| u64::try_from(batch).ok())
            .unwrap_or(0))
    }

    /// Deletes data files of batches that were never committed.
    pub(crate) fn remove_leftovers(&self, committed: u64) -> Result<(), TableError> {
        let store = self.table.object_store();
        self.runtime.block_on(async {
            let mut files = store.list(None);
            while let Some(file) = files.next().await {
                let file = file.map_err(store_error("listing", "of the table"))?;
                if batch_of(&file.location).is_some_and(|batch| batch > committed) {
                    let deleted = store.delete(&file.location).await;
                    deleted.map_err(store_error("deleting", file.location.as_ref()))?;
                }
            }
            Ok(())
        })
    }

    /// Writes the data files of a batch, durably: one for each day that has rows, and one with
    /// all rows for each day that has matured.
    pub(crate) fn stage(
        &self,
        batch: u64,
        rows: &[Row],
        matured: &BTreeMap<i32, BTreeMap<u64, Mend>>,
        config: &PipelineConfig,
    ) -> Result<Staged, TableError> {
        let mut by_day: BTreeMap<i32, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            by_day.entry(row.impression.day()).or_default().push(row);
        }
        for day in matured.keys() {
            by_day.entry(*day).or_default();
        }
        let conversion_window_us = config.windows().conversion_us;
        let mut staged = Staged::default();
        for (day, mut rows) in by_day {
            rows.sort_by_key(|row| {
                (
                    row.impression.served_us,
                    &row.impression.served.impression_id,
                )
            });
            let file = file_name(day, batch);
            let arrow_failed = arrow_error(&file);
            let new = columns::to_batch(&rows, &self.schema, &self.file_schema);
            let mut data = new.map_err(&arrow_failed)?;
            if let Some(mends) = matured.get(&day) {
                let (mut all, removes) = self.read_day(day)?;
                staged.0.extend(removes);
                all.push(data);
                data = mature::mature(&all, &self.file_schema, mends, conversion_window_us)
                    .map_err(&arrow_failed)?;
            }
            let data = sampling::sample(data, &config.sampling).map_err(&arrow_failed)?;
            if data.num_rows() > 0 {
                let add = self.write_file(&file, day, &data)?;
                staged.0.push(Action::Add(add));
            }
        }
        Ok(staged)
    }

    /// Commits a batch. When this returns, it has happened.
    pub(crate) fn commit(&mut self, batch: u64, staged: Staged) -> Result<(), TableError> {
        let transaction = Transaction::new(APPLICATION, batch.cast_signed());
        let properties = CommitProperties::default().with_application_transaction(transaction);
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec![DAY.to_owned()]),
            predicate: None,
        };
        let committed = self.runtime.block_on(async {
            let log_store = self.table.log_store();
            let committed = CommitBuilder::from(properties)
                .with_actions(staged.0)
                .build(Some(self.table.snapshot()?), log_store, operation)
                .await?;
            self.table.update_state().await?;
            Ok(committed.version())
        });
        let version = committed.map_err(self.failed("committing to"))?;
        let log = self.path.join("_delta_log");
        sync(&log.join(format!("{version:020}.json")))?;
        sync(&log)
    }

    fn check_schema(&self) -> Result<(), TableError> {
        let snapshot = self.table.snapshot().map_err(self.failed("reading"))?;
        let text = snapshot.metadata().configuration().get(SCHEMA_KEY);
        let found: Option<Schema> = text.and_then(|text| serde_json::from_str(text).ok());
        if found.as_ref() == Some(&self.schema) {
            return Ok(());
        }
        Err(TableError::OtherFeatures {
            path: self.path.clone(),
            found: found.map_or("unknown".to_owned(), |schema| schema.digest),
            wanted: self.schema.digest.clone(),
        })
    }

    /// Whether new files may go into it.
    fn check_columns(&self) -> Result<(), TableError> {
        let snapshot = self.table.snapshot().map_err(self.failed("reading"))?;
        let found = snapshot.schema();
        let mut wanted = self.file_schema.fields().iter();
        match wanted.find(|field| found.field(field.name()).is_none()) {
            None => Ok(()),
            Some(field) => Err(TableError::OldColumns {
                path: self.path.clone(),
                column: field.name().clone(),
            }),
        }
    }

    /// The rows of a day and the actions that take their files out of the table.
    fn read_day(&self, day: i32) -> Result<(Vec<RecordBatch>, Vec<Action>), TableError> {
        let wanted = Some(day_name(day));
        let log_store = self.table.log_store();
        let views = self.runtime.block_on(async {
            let snapshot = self.table.snapshot()?.snapshot();
            snapshot
                .file_views(&*log_store, None)
                .try_collect::<Vec<_>>()
                .await
        });
        let mut batches = Vec::new();
        let mut removes = Vec::new();
        for view in views.map_err(self.failed("listing files of"))? {
            if view.partition_values_map().get(DAY) == Some(&wanted) {
                batches.extend(self.read_file(&view.object_store_path())?);
                removes.push(Action::Remove(view.remove_action(true)));
            }
        }
        Ok((batches, removes))
    }

    fn read_file(&self, file: &StorePath) -> Result<Vec<RecordBatch>, TableError> {
        let store = self.table.object_store();
        let bytes = self
            .runtime
            .block_on(async { store.get(file).await?.bytes().await });
        let bytes = bytes.map_err(store_error("reading", file.as_ref()))?;
        let failed = parquet_error(file.as_ref());
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(&failed)?;
        let reader = reader.build().map_err(&failed)?;
        let batches = reader.map(|rows| columns::conform(&rows?, &self.file_schema));
        let batches: Result<Vec<_>, _> = batches.collect();
        batches.map_err(arrow_error(file.as_ref()))
    }

    fn write_file(&self, file: &str, day: i32, data: &RecordBatch) -> Result<Add, TableError> {
        let bytes = encode(file, data)?;
        let size = bytes.len() as i64;
        let store = self.table.object_store();
        let path = StorePath::from(file);
        let put = self.runtime.block_on(store.put(&path, bytes.into()));
        put.map_err(store_error("writing", file))?;
        let path = self.path.join(file);
        sync(&path)?;
        sync(path.parent().unwrap_or(&self.path))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Add {
            path: file.to_owned(),
            partition_values: HashMap::from([(DAY.to_owned(), Some(day_name(day)))]),
            size,
            modification_time: now.map_or(0, |now| now.as_millis() as i64),
            data_change: true,
            stats: Some(format!("{{\"numRecords\":{}}}", data.num_rows())),
            ..Add::default()
        })
    }

    fn failed(&self, what: &'static str) -> impl Fn(DeltaTableError) -> TableError {
        delta_error(what, &self.path)
    }
}

fn runtime() -> Result<Runtime, TableError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.map_err(|source| TableError::Runtime { source })
}

async fn open_or_create(
    path: &Path,
    schema: &Schema,
    spec: Option<&FeatureSpec>,
) -> Result<DeltaTable, TableError> {
    let url = table_url(path)?;
    let builder = DeltaTableBuilder::from_url(url.clone());
    let mut table = builder
        .and_then(DeltaTableBuilder::build)
        .map_err(delta_error("opening", path))?;
    let exists = table.verify_deltatable_existence().await;
    if exists.map_err(delta_error("looking for", path))? {
        table.load().await.map_err(delta_error("opening", path))?;
        return Ok(table);
    }
    let text = serde_json::to_string(schema).expect("a schema is plain data");
    let mut configuration = vec![(SCHEMA_KEY.to_owned(), Some(text))];
    if let Some(spec) = spec {
        let text = serde_json::to_string(spec).expect("a spec is plain data");
        configuration.push((SPEC_KEY.to_owned(), Some(text)));
    }
    CreateBuilder::new()
        .with_location(url)
        .with_columns(columns::delta_fields(schema))
        .with_partition_columns([DAY])
        .with_configuration(configuration)
        .with_raise_if_key_not_exists(false)
        .await
        .map_err(delta_error("making", path))
}

/// Opens a table that is there, for reading.
///
/// # Errors
/// [`TableError`] if there is none or it cannot be read.
pub async fn open_existing(path: &Path) -> Result<DeltaTable, TableError> {
    let builder = DeltaTableBuilder::from_url(table_url(path)?);
    let builder = builder.map_err(delta_error("opening", path))?;
    builder.load().await.map_err(delta_error("opening", path))
}

fn table_url(path: &Path) -> Result<Url, TableError> {
    let bad = || TableError::BadPath {
        path: path.to_owned(),
    };
    std::fs::create_dir_all(path).map_err(|source| TableError::Sync {
        path: path.to_owned(),
        source,
    })?;
    let full = path.canonicalize().map_err(|source| TableError::Sync {
        path: path.to_owned(),
        source,
    })?;
    Url::from_directory_path(full).ok().ok_or_else(bad)
}

fn encode(file: &str, data: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut bytes = Vec::new();
    ArrowWriter::try_new(&mut bytes, data.schema(), Some(properties))
        .and_then(|mut writer| {
            writer.write(data)?;
            writer.close()
        })
        .map_err(parquet_error(file))?;
    Ok(bytes)
}

/// Deterministic, so that a batch done again overwrites what a crash left behind.
fn file_name(day: i32, batch: u64) -> String {
    format!("{DAY}={}/part-{batch:08}.parquet", day_name(day))
}

fn batch_of(file: &StorePath) -> Option<u64> {
    let name = file.filename()?.strip_prefix("part-")?;
    name.strip_suffix(".parquet")?.parse().ok()
}

fn sync(path: &Path) -> Result<(), TableError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| TableError::Sync {
        path: path.to_owned(),
        source,
    })
}

fn delta_error(what: &'static str, path: &Path) -> impl Fn(DeltaTableError) -> TableError {
    let path = path.to_owned();
    move |source| TableError::Delta {
        what,
        path: path.clone(),
        source: Box::new(source),
    }
}

fn store_error(what: &'static str, file: &str) -> impl Fn(object_store::Error) -> TableError {
    let file = file.to_owned();
    move |source| TableError::Store {
        what,
        file: file.clone(),
        source,
    }
}

fn parquet_error(file: &str) -> impl Fn(ParquetError) -> TableError {
    let file = file.to_owned();
    move |source| TableError::Parquet {
        file: file.clone(),
        source,
    }
}

fn arrow_error(file: &str) -> impl Fn(ArrowError) -> TableError {
    let file = file.to_owned();
    move |source| TableError::Arrow {
        file: file.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_tell_their_batch() {
        let name = file_name(0, 17);
        assert_eq!(batch_of(&StorePath::from(name)), Some(17));
        assert_eq!(
            batch_of(&StorePath::from("day=1970-01-01/other.parquet")),
            None
        );
    }
}
