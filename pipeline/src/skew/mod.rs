//! Whether what was served is what would be computed today, and whether it is still what it was.
//!
//! The rows whose features a server logged (`features_from` is `serving`) are the online side. The
//! offline side comes from the facts that the pipeline kept, by the query that the spec is written as
//! (`crate::backfill`), as of what the server's online store had: another way to the same values, which
//! shares no code with the server's. The same
//! rows are compared value by value. Their distributions are compared too: with each other, or, to see a
//! drift, with what is computed for other days.

mod columns;
mod page;

use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf};

use arrow::{array::RecordBatch, error::ArrowError};
use cli::Layout;
use features::{
    FeatureSpec, SpecError,
    skew::{self, Comparison, Differing, Exceeded, SkewLimits},
    spec::Feature,
};
use prometheus::{GaugeVec, Opts, Registry, TextEncoder};
use serde::Serialize;

pub use page::render;

use crate::{
    backfill::{Backfill, BackfillError, DayColumn, DayDone, Values, ValuesError, named},
    calendar::day_name,
    facts::FactFiles,
    process::{
        PipelineConfig,
        table::{TableError, TrainingTable},
    },
    sql::{self, Knowledge},
};

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum SkewError {
    /// The spec.
    #[error("loading the feature spec")]
    Spec(#[from] SpecError),
    /// The table has other features.
    #[error(
        "table {} has features of spec {found}, the configuration names spec {wanted}: name the spec that the table was made with", path.display()
    )]
    OtherFeatures {
        /// The table.
        path: PathBuf,
        /// Digest in the table.
        found: String,
        /// Digest in use.
        wanted: String,
    },
    /// No server logged anything.
    #[error(
        "table {} has no row of these days whose features a server logged: serve requests with this spec, process their events, or name other days", path.display()
    )]
    NothingServed {
        /// The table.
        path: PathBuf,
    },
    /// No facts of the days to compare with.
    #[error(
        "no impressions with facts on the days to compare with: `marquee events process` keeps them"
    )]
    NothingOffline,
    /// Rows without facts.
    #[error(
        "{rows} rows of {} have no facts to compute features from: the table is older than they are; name later days", day_name(*day)
    )]
    NoFacts {
        /// Days since the Unix epoch.
        day: i32,
        /// How many.
        rows: u64,
    },
    /// Rows that cannot be read.
    #[error("in the rows of {}", day_name(*day))]
    Arrow {
        /// Days since the Unix epoch.
        day: i32,
        /// What Arrow said.
        source: ArrowError,
    },
    /// The table.
    #[error("in the training table")]
    Table(#[from] TableError),
    /// The other side could not be computed.
    #[error("computing features again")]
    Backfill(#[from] BackfillError),
    /// The other side could not be read.
    #[error("reading computed values")]
    Values(#[from] ValuesError),
}

/// One feature's two sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureSkew {
    /// The feature.
    pub feature: String,
    /// Its version.
    pub version: u32,
    /// The distributions.
    pub distribution: Comparison,
    /// The same rows, as served and as computed again.
    pub served: Differing,
    /// The impression that differs most.
    pub example: Option<String>,
    /// How much is too much.
    pub limits: SkewLimits,
    /// What is.
    pub exceeded: Vec<Exceeded>,
}

/// All features' two sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SkewReport {
    /// The table.
    pub table: String,
    /// Digest of the spec.
    pub spec: String,
    /// First and last day of what was served.
    pub days: [String; 2],
    /// First and last day of what it was compared with; none if these are the same rows.
    pub baseline: Option<[String; 2]>,
    /// Rows that a server logged.
    pub rows: usize,
    /// In the spec's order.
    pub features: Vec<FeatureSkew>,
}

impl SkewReport {
    /// Features that are further apart than they may be.
    pub fn exceeded(&self) -> impl Iterator<Item = &FeatureSkew> {
        let over = |it: &&FeatureSkew| !it.exceeded.is_empty();
        self.features.iter().filter(over)
    }

    /// As a file for Prometheus's textfile collector (Prometheus exposition format, 0.0.4).
    pub fn gauges(&self) -> String {
        type Value = fn(&FeatureSkew) -> f64;
        let gauges: [(&str, &str, Value); 6] = [
            (
                "psi",
                "Population stability index of online against offline values.",
                |it| it.distribution.psi,
            ),
            (
                "kl_nats",
                "Kullback-Leibler divergence of online from offline values.",
                |it| it.distribution.kl,
            ),
            (
                "offline_missing_ratio",
                "Share of offline rows without a value.",
                |it| it.distribution.missing[0],
            ),
            (
                "online_missing_ratio",
                "Share of online rows without a value.",
                |it| it.distribution.missing[1],
            ),
            (
                "differing_ratio",
                "Share of rows served another value than is computed again.",
                |it| it.served.share(),
            ),
            (
                "skew_exceeded",
                "Limits of the spec that are exceeded.",
                |it| it.exceeded.len() as f64,
            ),
        ];
        let registry = Registry::new();
        for (name, help, value) in gauges {
            let opts = Opts::new(format!("marquee_feature_{name}"), help);
            let gauge =
                GaugeVec::new(opts, &["feature", "table"]).expect("names of the right form");
            for it in &self.features {
                let labels = [it.feature.as_str(), self.table.as_str()];
                gauge.with_label_values(&labels).set(value(it));
            }
            let registered = registry.register(Box::new(gauge));
            registered.expect("each name stands there once");
        }
        let text = TextEncoder::new().encode_to_string(&registry.gather());
        text.expect("gauges of features")
    }
}

/// What is to be compared.
#[derive(Debug)]
pub struct Skew<'a> {
    /// The data folder.
    pub layout: &'a Layout,
    /// The pipeline of the table.
    pub config: &'a PipelineConfig,
    /// Days of what was served, since the Unix epoch.
    pub days: RangeInclusive<i32>,
    /// Days to compare the distributions with, if not the same rows.
    pub baseline: Option<RangeInclusive<i32>>,
    /// Bytes that queries may take.
    pub memory_bytes: usize,
    /// Threads.
    pub threads: usize,
}

/// Rows of a day that a server logged.
struct Served {
    day: i32,
    impressions: Vec<String>,
    rows: RecordBatch,
}

impl Skew<'_> {
    /// Compares all features; `done` hears of each day whose features were computed again, and of how
    /// many days there are.
    ///
    /// # Errors
    /// [`SkewError`].
    pub fn run(&self, mut done: impl FnMut(usize, &DayDone)) -> Result<SkewReport, SkewError> {
        let spec = FeatureSpec::load(&self.config.features)?;
        let (table, found) = TrainingTable::existing(&self.path())?;
        if found.digest() != spec.digest() {
            return Err(SkewError::OtherFeatures {
                path: self.path(),
                found: found.digest().to_owned(),
                wanted: spec.digest().to_owned(),
            });
        }
        let served = self.served(&table)?;
        let (Some(first), Some(last)) = (served.first(), served.last()) else {
            return Err(SkewError::NothingServed { path: self.path() });
        };
        let days = [day_name(first.day), day_name(last.day)];
        let names: Vec<String> = spec.features.iter().map(|it| it.name.clone()).collect();
        let folder = format!("{}-as-served", self.config.table);
        let folder = self.layout.features(&folder);
        let values = Values::at(&folder);
        let backfill = Backfill {
            facts: &FactFiles::at(&self.layout.facts(&self.config.table)),
            committed: table.committed_batch()?,
            values: &values,
            spec: &spec,
            features: &names,
            days: i32::MIN..=i32::MAX,
            knowledge: Knowledge::AsServed,
            scratch: &folder,
            memory_bytes: self.memory_bytes,
            threads: self.threads,
        };
        let baseline = match &self.baseline {
            Some(range) => {
                let mut days = backfill.days()?;
                days.retain(|day| range.contains(day));
                Some(days)
            }
            None => None,
        };
        if baseline.as_ref().is_some_and(Vec::is_empty) {
            return Err(SkewError::NothingOffline);
        }
        let mut computed: BTreeSet<i32> = served.iter().map(|rows| rows.day).collect();
        computed.extend(baseline.iter().flatten());
        for day in &computed {
            done(computed.len(), &backfill.day(*day)?);
        }
        let mut features = Vec::new();
        for feature in &spec.features {
            features.push(compare(feature, &served, baseline.as_deref(), &values)?);
        }
        Ok(SkewReport {
            table: self.config.table.clone(),
            spec: spec.digest().to_owned(),
            days,
            baseline: baseline
                .and_then(|days| Some([day_name(*days.first()?), day_name(*days.last()?)])),
            rows: served.iter().map(|rows| rows.impressions.len()).sum(),
            features,
        })
    }

    fn path(&self) -> PathBuf {
        self.layout.table(&self.config.table)
    }

    fn served(&self, table: &TrainingTable) -> Result<Vec<Served>, SkewError> {
        let mut served = Vec::new();
        for day in table.days()? {
            if !self.days.contains(&day) {
                continue;
            }
            let failed = |source| SkewError::Arrow { day, source };
            let rows = table.rows(day)?;
            let rows = columns::logged(&rows, table.file_schema()).map_err(failed)?;
            if rows.num_rows() > 0 {
                served.push(Served {
                    day,
                    impressions: columns::impressions(&rows).map_err(failed)?,
                    rows,
                });
            }
        }
        Ok(served)
    }
}

fn compare(
    feature: &Feature,
    served: &[Served],
    baseline: Option<&[i32]>,
    values: &Values,
) -> Result<FeatureSkew, SkewError> {
    let mut online = columns::empty(feature);
    let mut again = columns::empty(feature);
    for rows in served {
        let day = rows.day;
        let computed = DayColumn::read(values, feature, day)?;
        let computed = computed.take(rows.impressions.iter().map(String::as_str));
        let computed = computed.map_err(|rows| SkewError::NoFacts { day, rows })?;
        columns::append(&mut again, &computed);
        let logged = named(&rows.rows, &sql::column(feature));
        let logged = logged.map_err(|source| SkewError::Arrow { day, source })?;
        columns::append(&mut online, logged);
    }
    let distribution = match baseline {
        None => skew::compare(feature, &again, &online),
        Some(days) => {
            let mut offline = columns::empty(feature);
            for day in days {
                columns::append(&mut offline, DayColumn::read(values, feature, *day)?.all());
            }
            skew::compare(feature, &offline, &online)
        }
    };
    let differing = skew::differing(&again, &online);
    let mut impressions = served.iter().flat_map(|rows| &rows.impressions);
    Ok(FeatureSkew {
        feature: feature.name.clone(),
        version: feature.version,
        example: differing
            .worst
            .and_then(|row| impressions.nth(row).cloned()),
        exceeded: skew::exceeded(feature, &distribution, Some(&differing)),
        limits: feature.skew_limits(),
        distribution,
        served: differing,
    })
}
