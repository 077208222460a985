//! Runs a script in DataFusion, over Parquet, within a bound of memory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        datatypes::{SchemaRef, UInt64Type},
    },
    common::DataFusionError,
    dataframe::{DataFrame, DataFrameWriteOptions},
    execution::{memory_pool::FairSpillPool, runtime_env::RuntimeEnvBuilder},
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use features::FeatureSet;

use super::{Engine, Knowledge, View, functions, script};
use crate::facts::{FactEvents, FactRequests};

/// Why features could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A table cannot be read.
    #[error("reading table {}", path.display())]
    Table {
        /// Its file.
        path: PathBuf,
        /// What DataFusion said.
        source: DataFusionError,
    },
    /// A query failed.
    #[error("computing `{name}`")]
    Query {
        /// The view.
        name: String,
        /// What DataFusion said.
        source: DataFusionError,
    },
}

/// Where a batch finds its tables and keeps what it makes on the way.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `fact_events` as Parquet: files, or folders of them. A column that a file lacks is null.
    pub events: &'a [PathBuf],
    /// `fact_requests` likewise.
    pub requests: &'a [PathBuf],
    /// Until when events had to be known.
    pub knowledge: Knowledge,
    /// A folder for what is made on the way, and for what does not fit into memory.
    pub scratch: &'a Path,
    /// Bytes that joins, groups and orders may take; what is more goes to `scratch`.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
}

impl Batch<'_> {
    /// Computes the features of all requests into a Parquet file, and says how many rows it has: see
    /// [`super::script`] for the columns.
    ///
    /// # Errors
    /// [`BatchError`]; there is then no file.
    pub async fn write(&self, set: &FeatureSet, to: &Path) -> Result<u64, BatchError> {
        let features = self.features(set).await?;
        // Under its name it is whole.
        let partial = self.scratch.join("features.partial.parquet");
        let failed = |source| BatchError::Query {
            name: RESULT.to_owned(),
            source,
        };
        let rows = write_file(features, &partial).await.map_err(failed)?;
        fs::rename(&partial, to).map_err(|error| BatchError::Table {
            path: to.to_owned(),
            source: DataFusionError::IoError(error),
        })?;
        Ok(rows)
    }

    /// The query for the features of all requests, with all that it needs made.
    async fn features(&self, set: &FeatureSet) -> Result<DataFrame, BatchError> {
        let context = self.context()?;
        let schema = FactEvents::new(set).finish().schema();
        register_facts(&context, "fact_events", self.events, &schema).await?;
        let schema = FactRequests::new(set).finish().schema();
        register_facts(&context, "fact_requests", self.requests, &schema).await?;
        let script = script(set, Engine::DataFusion, self.knowledge);
        for View { name, query, keep } in &script.views {
            let failed = |source| BatchError::Query {
                name: name.clone(),
                source,
            };
            let made = context.sql(query).await.map_err(failed)?;
            if *keep {
                let path = self.scratch.join(format!("{name}.parquet"));
                write_file(made, &path).await.map_err(failed)?;
                register(&context, name, &path).await?;
            } else {
                context
                    .register_table(name, made.into_view())
                    .map_err(failed)?;
            }
        }
        let features = context.sql(&script.select).await;
        features.map_err(|source| BatchError::Query {
            name: RESULT.to_owned(),
            source,
        })
    }

    fn context(&self) -> Result<SessionContext, BatchError> {
        let config = SessionConfig::new().with_target_partitions(self.threads.max(1));
        let runtime = RuntimeEnvBuilder::new()
            // Those that can go to the disk share alike, and none is refused what another holds.
            .with_memory_pool(Arc::new(FairSpillPool::new(self.memory_bytes)))
            .with_temp_file_path(self.scratch)
            .build_arc();
        let runtime = runtime.map_err(|source| BatchError::Table {
            path: self.scratch.to_owned(),
            source,
        })?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        for function in functions::all() {
            context.register_udf(function);
        }
        Ok(context)
    }
}

/// Name of the last query, for errors.
const RESULT: &str = "features";

/// Writes rows into one file; how many there are.
async fn write_file(rows: DataFrame, path: &Path) -> Result<u64, DataFusionError> {
    let options = DataFrameWriteOptions::new().with_single_file_output(true);
    let counts = rows
        .write_parquet(&path.to_string_lossy(), options, None)
        .await?;
    let count = |counts: &RecordBatch| counts.column(0).as_primitive::<UInt64Type>().value(0);
    Ok(counts.iter().map(count).sum())
}

/// Registers facts with the columns that a set looks at, whatever else their files hold.
async fn register_facts(
    context: &SessionContext,
    name: &str,
    paths: &[PathBuf],
    schema: &SchemaRef,
) -> Result<(), BatchError> {
    let rows = if paths.is_empty() {
        context.read_batch(RecordBatch::new_empty(Arc::clone(schema)))
    } else {
        let options = ParquetReadOptions::default().schema(schema);
        let texts = paths.iter().map(|path| path.to_string_lossy().into_owned());
        let read = context.read_parquet(texts.collect::<Vec<_>>(), options);
        read.await
    };
    let registered = rows.and_then(|rows| context.register_table(name, rows.into_view()));
    registered.map(drop).map_err(|source| BatchError::Table {
        path: paths.first().cloned().unwrap_or_else(|| name.into()),
        source,
    })
}

async fn register(context: &SessionContext, name: &str, path: &Path) -> Result<(), BatchError> {
    let options = ParquetReadOptions::default();
    let registered = context
        .register_parquet(name, path.to_string_lossy(), options)
        .await;
    registered.map_err(|source| BatchError::Table {
        path: path.to_owned(),
        source,
    })
}
