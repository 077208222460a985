//! A table of the old spec and backfilled values make a table of the new one.
//!
//! What a feature of the same meaning held is copied; what is new, or means something else, comes from
//! the backfill. The state goes along: impressions that still wait for their labels get the new features
//! too, and the aggregates are counted anew from the events that were kept. So `marquee events process`
//! goes on with the new table and the new spec where the old ones stand, and reads no event again. The
//! old table stays as it is, and both can be kept up to date.
//!
//! The table's first commit is the point at which it has happened; cut off before, it begins anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::Float32Type,
    error::ArrowError,
};
use cli::Layout;
use features::{
    Aggregates, FeatureBatch, FeatureSet, FeatureSpec, Schema, SpecError,
    diff::{self, Change},
    spec::Feature,
};
use serde::Serialize;

use super::{
    Backfill, BackfillError, DayColumn, DayDone, Values, ValuesError, ids_of, named, replay,
};
use crate::{
    calendar::{DAY_US, HOUR_US, day_name, day_of},
    facts::{FactFiles, FactTable},
    files::FilesError,
    process::{
        PipelineConfig, ProcessError, Processor,
        audit::{self, AuditError},
        book::{Book, Pending},
        lock, pictures_folder,
        processor::Parts,
        state::{self, StateError},
        table::{Staged, TableError, TrainingTable},
    },
    sql::{self, Knowledge},
};

/// Why no table of the new spec was made.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The spec.
    #[error("loading the feature spec")]
    Spec(#[from] SpecError),
    /// A feature means something else under its old version.
    #[error("feature `{feature}`: {change}")]
    NeedsNewVersion {
        /// The feature.
        feature: String,
        /// What changed.
        change: Change,
    },
    /// There is nothing to begin with.
    #[error("table {} has no batch: `marquee events process` makes it", path.display())]
    Empty {
        /// The old table.
        path: PathBuf,
    },
    /// There is such a table.
    #[error("table {} is there already: name a new one", path.display())]
    Exists {
        /// The new table.
        path: PathBuf,
    },
    /// Impressions of which no facts were kept.
    #[error(
        "{rows} impressions of {} have no facts to compute `{feature}` from: process the log into another `table` with the new spec", day_name(*day)
    )]
    NoFacts {
        /// Days since the Unix epoch.
        day: i32,
        /// How many.
        rows: u64,
        /// The feature.
        feature: String,
    },
    /// Rows that do not fit together.
    #[error("in the rows of {}", day_name(*day))]
    Arrow {
        /// Days since the Unix epoch.
        day: i32,
        /// What Arrow said.
        source: ArrowError,
    },
    /// Values could not be made.
    #[error("backfilling")]
    Backfill(#[from] BackfillError),
    /// Values could not be read.
    #[error("reading backfilled values")]
    Values(#[from] ValuesError),
    /// The facts.
    #[error("in the facts")]
    Facts(#[from] FilesError),
    /// Events could not be counted again.
    #[error("making the aggregates")]
    Replay(#[from] replay::ReplayError),
    /// A table.
    #[error("in the training table")]
    Table(#[from] TableError),
    /// A state.
    #[error("in the pipeline's state")]
    State(#[from] StateError),
    /// The audit log.
    #[error("in the audit log")]
    Audit(#[from] AuditError),
    /// Another process works on a table, or its pictures cannot be copied.
    #[error("preparing the new state")]
    Process(#[from] ProcessError),
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// The new table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Impressions that still wait for their labels.
    pub pending: u64,
    /// Features whose values were copied.
    pub copied: Vec<String>,
    /// Features whose values were computed.
    pub backfilled: Vec<String>,
    /// Features that are no more.
    pub removed: Vec<String>,
}

/// From a table to another one.
#[derive(Debug)]
pub struct Migration<'a> {
    /// The data folder.
    pub layout: &'a Layout,
    /// The pipeline of the old table, with the path of the new spec.
    pub config: &'a PipelineConfig,
    /// Name of the new table.
    pub to: &'a str,
    /// Bytes that queries may take.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
}

impl Migration<'_> {
    /// Makes the new table; `done` hears of each day whose features were computed, and of how many days
    /// there are.
    ///
    /// # Errors
    /// [`MigrateError`]; there is then no new table.
    pub fn run(&self, done: impl FnMut(usize, &DayDone)) -> Result<Migrated, MigrateError> {
        let (layout, from) = (self.layout, &self.config.table);
        let _from = lock(&layout.state(from))?;
        let _to = lock(&layout.state(self.to))?;
        let (old, old_spec) = TrainingTable::existing(&layout.table(from))?;
        let committed = old.committed_batch()?;
        if committed == 0 {
            let path = layout.table(from);
            return Err(MigrateError::Empty { path });
        }
        let set = FeatureSet::load(&self.config.features)?;
        let plan = Plan::new(&old_spec, set.spec())?;
        let new = TrainingTable::open(&layout.table(self.to), &set)?;
        if new.committed_batch()? > 0 {
            let path = layout.table(self.to);
            return Err(MigrateError::Exists { path });
        }
        new.remove_leftovers(0)?;

        let (header, parts) = state::read(&layout.state(from), committed)?;
        let mut days = old.days()?;
        let waiting = parts.book.impressions.values();
        days.extend(waiting.map(|pending| pending.day()));
        self.backfill(&set, &plan, &days, committed, done)?;

        let made = Made {
            plan: &plan,
            values: Values::at(&layout.features(from)),
        };
        let (mut staged, mut rows) = (Staged::default(), 0);
        for day in old.days()? {
            let table = made.rows(&old, &new, day)?;
            rows += table.num_rows() as u64;
            staged.add(new.stage_rows(committed, day, &table)?);
        }
        let pending = parts.book.impressions.len() as u64;
        let parts = Parts {
            aggregates: self.aggregates(&set, &parts.book, committed)?,
            book: made.book(parts.book, &FeatureSet::compile(old_spec), &set)?,
            seen: parts.seen,
        };
        self.keep(header, parts, set, committed)?;
        let mut new = new;
        new.commit(committed, staged)?;
        Ok(Migrated {
            table: self.to.to_owned(),
            rows,
            pending,
            copied: plan.copied,
            backfilled: plan.backfilled,
            removed: plan.removed,
        })
    }

    fn backfill(
        &self,
        set: &FeatureSet,
        plan: &Plan,
        days: &BTreeSet<i32>,
        committed: u64,
        mut done: impl FnMut(usize, &DayDone),
    ) -> Result<(), MigrateError> {
        let (Some(first), Some(last)) = (days.first(), days.last()) else {
            return Ok(());
        };
        if plan.backfilled.is_empty() {
            return Ok(());
        }
        let (layout, table) = (self.layout, &self.config.table);
        let backfill = Backfill {
            facts: &FactFiles::at(&layout.facts(table)),
            committed,
            values: &Values::at(&layout.features(table)),
            spec: set.spec(),
            features: &plan.backfilled,
            days: *first..=*last,
            knowledge: Knowledge::AtRequest,
            scratch: &layout.features(table),
            memory_bytes: self.memory_bytes,
            threads: self.threads,
        };
        let days = backfill.days()?;
        for day in &days {
            done(days.len(), &backfill.day(*day)?);
        }
        Ok(())
    }

    /// What the new features count, as if they had been there from the start.
    fn aggregates(
        &self,
        set: &FeatureSet,
        book: &Book,
        committed: u64,
    ) -> Result<Aggregates, MigrateError> {
        let windows = self.config.windows();
        let facts = FactFiles::at(&self.layout.facts(&self.config.table));
        let until_us = book.max_event_us - windows.delay_us - DAY_US;
        let hours = set.longest_window_hours();
        let from = day_of((until_us - i64::from(hours + 1) * HOUR_US).max(0));
        let files = facts.list(FactTable::Events, &(from..=i32::MAX), committed)?;
        let mut aggregates = Aggregates::default().with_horizon(windows.horizon_us());
        replay::replay(&files, set, &mut aggregates)?;
        aggregates.expire(until_us, hours);
        Ok(aggregates)
    }

    /// All that the pipeline needs to go on, but the commit.
    fn keep(
        &self,
        header: state::StateHeader,
        parts: Parts,
        set: FeatureSet,
        committed: u64,
    ) -> Result<(), MigrateError> {
        let (layout, from) = (self.layout, &self.config.table);
        let facts = FactFiles::at(&layout.facts(from));
        facts.copy(&FactFiles::at(&layout.facts(self.to)), committed)?;
        audit::copy(&layout.audit(from), &layout.audit(self.to), committed)?;
        let (from, to) = (layout.state(from), layout.state(self.to));
        let pictures = pictures_folder(&to);
        copy_folder(&pictures_folder(&from), &pictures).map_err(ProcessError::io(&pictures))?;
        let header = state::StateHeader {
            feature_digest: set.digest().to_owned(),
            ..header
        };
        let processor = Processor::restore(self.config, set, parts);
        let bytes = state::encode(&header, &processor);
        state::write_partial(&to, committed, &bytes)?;
        Ok(state::publish(&to, committed)?)
    }
}

/// Copies the files of a folder and of those in it; a missing folder has none.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy_folder(&path, &to)?;
        } else {
            fs::copy(&path, &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

/// Where the new spec's features come from.
struct Plan {
    copied: Vec<String>,
    backfilled: Vec<String>,
    removed: Vec<String>,
    /// Those that are backfilled, as the spec has them.
    features: Vec<Feature>,
}

impl Plan {
    fn new(old: &FeatureSpec, new: &FeatureSpec) -> Result<Self, MigrateError> {
        let (mut backfilled, mut removed) = (Vec::new(), Vec::new());
        for found in diff::diff(old, new) {
            match found.change {
                Change::Added | Change::NewVersion { .. } => backfilled.push(found.feature),
                Change::Removed => removed.push(found.feature),
                Change::Kept { .. } => {}
                change @ Change::NeedsNewVersion { .. } => {
                    return Err(MigrateError::NeedsNewVersion {
                        feature: found.feature,
                        change,
                    });
                }
            }
        }
        let made = |it: &&Feature| backfilled.contains(&it.name);
        let (made, copied): (Vec<&Feature>, _) = new.features.iter().partition(made);
        let names = |features: &[&Feature]| features.iter().map(|it| it.name.clone()).collect();
        Ok(Self {
            copied: names(&copied),
            features: made.iter().map(|it| (*it).clone()).collect(),
            backfilled: names(&made),
            removed,
        })
    }
}

/// Rows and impressions with the new features.
struct Made<'a> {
    plan: &'a Plan,
    values: Values,
}

impl Made<'_> {
    /// A backfilled feature's values of some impressions of a day.
    fn column<'a>(
        &self,
        feature: &Feature,
        day: i32,
        impressions: impl Iterator<Item = &'a str>,
    ) -> Result<ArrayRef, MigrateError> {
        let none = |rows| MigrateError::NoFacts {
            day,
            rows,
            feature: feature.name.clone(),
        };
        if self.values.record(feature, day)?.is_none() {
            return Err(none(impressions.count() as u64));
        }
        let column = DayColumn::read(&self.values, feature, day)?;
        column.take(impressions).map_err(none)
    }

    fn rows(
        &self,
        old: &TrainingTable,
        new: &TrainingTable,
        day: i32,
    ) -> Result<RecordBatch, MigrateError> {
        let failed = |source| MigrateError::Arrow { day, source };
        let rows = concat_batches(old.file_schema(), &old.rows(day)?).map_err(failed)?;
        let ids: &StringArray = rows["impression_id"].as_string();
        let mut columns = Vec::new();
        for field in new.file_schema().fields() {
            let made = self
                .plan
                .features
                .iter()
                .find(|it| sql::column(it) == *field.name());
            columns.push(match made {
                Some(feature) => self.column(feature, day, ids.iter().flatten())?,
                None => named(&rows, field.name()).map_err(failed)?.clone(),
            });
        }
        RecordBatch::try_new(new.file_schema().clone(), columns).map_err(failed)
    }

    /// What waits for its labels, with the new features.
    fn book(
        &self,
        mut book: Book,
        old: &FeatureSet,
        new: &FeatureSet,
    ) -> Result<Book, MigrateError> {
        let mut by_day: BTreeMap<i32, Vec<&mut Pending>> = BTreeMap::new();
        for pending in book.impressions.values_mut() {
            by_day.entry(pending.day()).or_default().push(pending);
        }
        for (day, waiting) in by_day {
            let mut made = Vec::new();
            for feature in &self.plan.features {
                let ids = waiting.iter().map(|it| it.served.impression_id.as_str());
                made.push((feature.name.as_str(), self.column(feature, day, ids)?));
            }
            for (at, pending) in waiting.into_iter().enumerate() {
                let Some(snapshot) = &mut pending.served.snapshot else {
                    continue;
                };
                let mut row = FeatureBatch::new(old.schema());
                // It was made with this schema.
                row.push_snapshot(snapshot)
                    .expect("features of the old spec");
                *snapshot = converted(&row, old.schema(), new.schema(), &made, at).snapshot(0, "");
            }
        }
        Ok(book)
    }
}

/// A row of the old schema and values of what it lacks as a row of the new schema.
fn converted(
    row: &FeatureBatch,
    old: &Schema,
    new: &Schema,
    made: &[(&str, ArrayRef)],
    at: usize,
) -> FeatureBatch {
    let made = |name: &str| made.iter().find(|(of, _)| *of == name).map(|(_, it)| it);
    let mut converted = FeatureBatch::new(new);
    for field in &new.dense {
        let copied = || old.dense.iter().position(|of| of.name == field.name);
        converted.dense.push(match made(&field.name) {
            Some(values) => values.as_primitive::<Float32Type>().value(at),
            None => copied().map_or(0.0, |at| row.dense[at]),
        });
    }
    for (field, ids) in new.sparse.iter().zip(&mut converted.sparse) {
        let copied = || old.sparse.iter().position(|of| of.name == field.name);
        match made(&field.name) {
            Some(values) => ids.push_row(&ids_of(values, at)),
            None => ids.push_row(copied().map_or(&[], |at| row.sparse[at].row(0))),
        }
    }
    converted.num_rows = 1;
    converted
}
