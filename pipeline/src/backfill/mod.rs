//! Features computed for days that are past: those that are new, or mean something else now.
//!
//! A day's values come from the facts that the pipeline kept (`crate::facts`), by the query that the
//! spec is written as (`crate::sql`): what was known before each impression, and nothing else. A day is
//! computed once; again only if facts have come to it since, late events or new rows. What was done
//! stays done when a run is cut off.
//!
//! [`Backfill`] makes the values; [`migrate`] makes of a table and its backfilled values a table of the
//! new spec, with which the pipeline goes on.

mod columns;
pub mod migrate;
mod replay;
mod values;

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use arrow::error::ArrowError;
use features::{FeatureSet, FeatureSpec, UnknownFeature, spec::Feature};
use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub(crate) use columns::{DayColumn, ids_of, named};
pub use values::{Record, Values, ValuesError};

use crate::{
    calendar::{DAY_US, HOUR_US, day_name, day_of},
    facts::{FactFile, FactFiles, FactTable},
    files::FilesError,
    process::hex,
    sql::{self, Batch, BatchError, Knowledge},
};

/// Why features could not be backfilled. Days that were done stay so.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// A name that the spec does not have.
    #[error(transparent)]
    Unknown(#[from] UnknownFeature),
    /// The same version has meant something else.
    #[error(
        "feature `{feature}` version {version} meant something else when {} was computed: raise its `version`, or remove {}",
        record.display(), folder.display()
    )]
    OtherMeaning {
        /// The feature.
        feature: String,
        /// Its version.
        version: u32,
        /// What tells of it.
        record: PathBuf,
        /// Where all values of the version are.
        folder: PathBuf,
    },
    /// The facts cannot be found.
    #[error("looking for facts")]
    Facts(#[from] FilesError),
    /// Values cannot be kept or read.
    #[error("keeping values")]
    Values(#[from] ValuesError),
    /// The query failed.
    #[error("computing the features of {}", day_name(*day))]
    Query {
        /// Days since the Unix epoch.
        day: i32,
        /// Why.
        source: BatchError,
    },
    /// What the query gave cannot be read.
    #[error("reading the features of {}", day_name(*day))]
    Parquet {
        /// Days since the Unix epoch.
        day: i32,
        /// What Parquet said.
        source: ParquetError,
    },
    /// What the query gave is of another type than it should be.
    #[error("in the features of {}", day_name(*day))]
    Arrow {
        /// Days since the Unix epoch.
        day: i32,
        /// What Arrow said.
        source: ArrowError,
    },
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was done of one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DayDone {
    /// `YYYY-MM-DD`
    pub day: String,
    /// Impressions.
    pub rows: u64,
    /// Features that were computed.
    pub computed: Vec<String>,
    /// Features that had been computed from the same facts before.
    pub kept: Vec<String>,
}

/// What features are to be computed, of which days, and from what.
#[derive(Debug)]
pub struct Backfill<'a> {
    /// The facts.
    pub facts: &'a FactFiles,
    /// The newest batch whose facts count.
    pub committed: u64,
    /// Where values are kept.
    pub values: &'a Values,
    /// The spec that has the features.
    pub spec: &'a FeatureSpec,
    /// Their names.
    pub features: &'a [String],
    /// Days since the Unix epoch.
    pub days: RangeInclusive<i32>,
    /// Until when events had to be known. Values of different answers are kept in different places.
    pub knowledge: Knowledge,
    /// A folder for what is made on the way.
    pub scratch: &'a Path,
    /// Bytes that the query may take; what is more goes to `scratch`.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
}

impl Backfill<'_> {
    /// Days of the range that have impressions.
    ///
    /// # Errors
    /// [`BackfillError::Facts`].
    pub fn days(&self) -> Result<Vec<i32>, BackfillError> {
        let requests = self
            .facts
            .list(FactTable::Requests, &self.days, self.committed)?;
        let mut days: Vec<i32> = requests.iter().map(|file| file.day).collect();
        days.dedup();
        Ok(days)
    }

    /// Computes what is not there of one day.
    ///
    /// # Errors
    /// [`BackfillError`]; what was there before is there still.
    pub fn day(&self, day: i32) -> Result<DayDone, BackfillError> {
        let (mut wanted, mut kept) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for feature in &self.spec.only(self.features)?.features {
            let inputs = self.inputs(feature, day)?;
            match self.current(feature, day, &inputs)? {
                Some(record) => {
                    rows = record.rows;
                    kept.push(feature.name.clone());
                }
                None => wanted.push((feature.clone(), inputs)),
            }
        }
        if !wanted.is_empty() {
            rows = self.compute(day, &wanted)?;
        }
        Ok(DayDone {
            day: day_name(day),
            rows,
            computed: wanted.into_iter().map(|(it, _)| it.name).collect(),
            kept,
        })
    }

    /// The record of values that were computed from just these facts.
    fn current(
        &self,
        feature: &Feature,
        day: i32,
        inputs: &Inputs,
    ) -> Result<Option<Record>, BackfillError> {
        let Some(record) = self.values.record(feature, day)? else {
            return Ok(None);
        };
        if record.digest != inputs.meaning {
            let path = self.values.record_path(feature, day);
            return Err(BackfillError::OtherMeaning {
                feature: feature.name.clone(),
                version: feature.version,
                folder: path.parent().unwrap_or(&path).to_owned(),
                record: path,
            });
        }
        Ok(Some(record).filter(|record| record.facts == inputs.digest()))
    }

    /// What a feature's values of a day come from.
    fn inputs(&self, feature: &Feature, day: i32) -> Result<Inputs, BackfillError> {
        // The spec was checked, so the window can be read.
        let hours = i64::from(feature.window_hours().unwrap_or(0));
        let start_us = i64::from(day) * DAY_US;
        let from = day_of((start_us - (hours + 1) * HOUR_US).max(0));
        let none = hours == 0;
        let list = |table, days: &RangeInclusive<i32>| self.facts.list(table, days, self.committed);
        Ok(Inputs {
            meaning: self
                .spec
                .only(std::slice::from_ref(&feature.name))?
                .digest()
                .to_owned(),
            events: match none {
                true => Vec::new(),
                false => list(FactTable::Events, &(from..=day))?,
            },
            requests: list(FactTable::Requests, &(day..=day))?,
        })
    }

    fn compute(&self, day: i32, wanted: &[(Feature, Inputs)]) -> Result<u64, BackfillError> {
        let names: Vec<String> = wanted.iter().map(|(it, _)| it.name.clone()).collect();
        let set = FeatureSet::compile(self.spec.only(&names)?);
        // Windows end at the day: the longest has the files of all.
        let longest = wanted.iter().map(|(_, inputs)| inputs);
        let longest = longest.max_by_key(|inputs| inputs.events.len());
        let files = |files: &[FactFile]| files.iter().map(|file| file.path.clone()).collect();
        let events: Vec<PathBuf> = longest.map_or(Vec::new(), |it| files(&it.events));
        let requests: Vec<PathBuf> = longest.map_or(Vec::new(), |it| files(&it.requests));

        let scratch = self.scratch.join(format!("backfill-{}", day_name(day)));
        let failed = |source| BackfillError::Io {
            path: scratch.clone(),
            source,
        };
        if scratch.exists() {
            fs::remove_dir_all(&scratch).map_err(failed)?;
        }
        fs::create_dir_all(&scratch).map_err(failed)?;
        let made = scratch.join("features.parquet");
        let batch = Batch {
            events: &events,
            requests: &requests,
            knowledge: self.knowledge,
            scratch: &scratch,
            memory_bytes: self.memory_bytes,
            threads: self.threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads.max(1))
            .enable_all()
            .build()
            .map_err(failed)?;
        let written = runtime.block_on(batch.write(&set, &made));
        let rows = written.map_err(|source| BackfillError::Query { day, source })?;
        for (feature, inputs) in wanted {
            self.keep(day, feature, inputs, rows, &made)?;
        }
        fs::remove_dir_all(&scratch).map_err(failed)?;
        Ok(rows)
    }

    /// Takes a feature's column out of what the query made.
    fn keep(
        &self,
        day: i32,
        feature: &Feature,
        inputs: &Inputs,
        rows: u64,
        made: &Path,
    ) -> Result<(), BackfillError> {
        let file = fs::File::open(made).map_err(|source| BackfillError::Io {
            path: made.to_owned(),
            source,
        })?;
        let failed = |source| BackfillError::Parquet { day, source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(failed)?;
        let columns = ["request_id".to_owned(), sql::column(feature)];
        let mask = parquet::arrow::ProjectionMask::columns(
            builder.parquet_schema(),
            columns.iter().map(String::as_str),
        );
        let reader = builder.with_projection(mask).build().map_err(failed)?;
        let arrow_failed = |source| BackfillError::Arrow { day, source };
        let values: Result<Vec<_>, _> = reader
            .map(|rows| columns::values(&rows?, feature))
            .collect();
        let record = Record {
            digest: inputs.meaning.clone(),
            facts: inputs.digest(),
            batch: self.committed,
            rows,
        };
        let values = values.map_err(arrow_failed)?;
        Ok(self.values.write(feature, day, &values, &record)?)
    }
}

/// What a feature's values of a day come from.
struct Inputs {
    /// Digest of what the feature means.
    meaning: String,
    events: Vec<FactFile>,
    requests: Vec<FactFile>,
}

impl Inputs {
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (table, files) in [("events", &self.events), ("requests", &self.requests)] {
            for FactFile { day, batch, .. } in files {
                hash.update(format!("{table} {day} {batch}\n"));
            }
        }
        hex(&hash.finalize())
    }
}
