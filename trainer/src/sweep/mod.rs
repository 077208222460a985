//! `marquee train --sweep`: many runs of one configuration with other values of some keys.
//!
//! [`space`] says which values are tried, [`trials`] runs them as processes of their own within a
//! budget, and [`report`] makes a table and a plot of what came of it. A sweep has a folder, in which
//! every trial that is done stands: the same command again goes on where it was stopped.

mod report;
mod space;
mod trials;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use cli::{CommonArgs, Layout, Usage, load_config, out};
use registry::{Digest, Registry};
use serde::{Deserialize, Serialize};

pub use self::space::{Range, SpaceError};
use self::{
    report::{plot, table},
    space::Assignment,
    trials::{Outcome, Runner},
};
use crate::{ctr::CtrConfig, table::TrainingTable};

/// `configs/sweeps/*.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SweepConfig {
    /// The configuration that is tried with other values.
    pub base: PathBuf,
    /// Which values are tried.
    pub strategy: Strategy,
    /// Number of a run's report that is compared.
    pub metric: String,
    /// Whether more of it is better.
    pub maximise: bool,
    /// Seed of the values that are drawn; the runs have that of `base`.
    pub seed: u64,
    /// Runs at a time.
    pub parallel: usize,
    /// Threads of each, of LightGBM too.
    pub threads: usize,
    /// Values by the key of `base`.
    pub parameters: BTreeMap<String, Range>,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            base: PathBuf::from("configs/ctr.toml"),
            strategy: Strategy::Grid {},
            metric: "valid_log_loss".to_owned(),
            maximise: false,
            seed: 1,
            parallel: 1,
            threads: 2,
            parameters: BTreeMap::new(),
        }
    }
}

/// Which values are tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Every combination of choices.
    Grid {},
    /// Combinations that are drawn. Source: Bergstra and Bengio, "Random Search for Hyper-Parameter
    /// Optimization", JMLR 2012.
    Random {
        /// How many.
        trials: usize,
    },
    /// Drawn, and run with little of something first; the best part of them again with more of it,
    /// and so on. Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
    /// Hyperparameter Optimization", AISTATS 2016.
    SuccessiveHalving {
        /// How many are drawn.
        trials: usize,
        /// Key of what they get more of, as `training.epochs`.
        resource: String,
        /// What each gets at first.
        least: u64,
        /// What the last get.
        most: u64,
        /// How much more the next round gets; one part in so many goes on to it.
        factor: u64,
    },
}

/// The rows that a configuration learns from.
#[derive(Deserialize)]
struct OfTable {
    #[serde(default = "OfTable::usual")]
    table: String,
}

impl OfTable {
    /// That of all trainers, where a file names none.
    fn usual() -> String {
        CtrConfig::default().table
    }
}

/// Runs a sweep to its end, and tells of it.
///
/// # Errors
/// A configuration that cannot be, a folder that cannot be written, or trials that all failed;
/// [`cli::Preempted`] if it was stopped.
pub async fn run_sweep(common: &CommonArgs, path: &Path) -> anyhow::Result<()> {
    let mut own = common.clone();
    own.config = Some(path.to_owned());
    let loaded = load_config::<SweepConfig>(&own, None)?;
    if common.print(&loaded) {
        return Ok(());
    }
    let config = &loaded.config;
    let rounds = space::rounds(config).map_err(|error| {
        let text = error.to_string();
        anyhow::Error::from(error).context(Usage(text))
    })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    // Another base is another sweep, and so are other rows.
    let reading = || format!("reading `base`, {}", config.base.display());
    let base = std::fs::read_to_string(&config.base).with_context(reading)?;
    let rows: OfTable = toml::from_str(&base).with_context(reading)?;
    let layout = Layout::new(common);
    let version = TrainingTable::open(&layout.table(&rows.table))
        .await?
        .version();
    let digest = Digest::of(format!("{}\n{base}\n{version}", loaded.resolved).as_bytes());
    let dir = layout
        .root
        .join("sweeps")
        .join(format!("{name}-{}", digest.short()));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    cli::write_text(&dir.join("sweep.toml"), &loaded.resolved)?;

    let runner = Runner::open(config, common, &dir)?;
    let done = runner.until_stopped(|| {
        let (mut done, mut candidates) = (Vec::new(), rounds.first.clone());
        for round in &rounds.resources {
            let assigned = candidates
                .iter()
                .map(|candidate| candidate.with(round.as_ref()));
            let last = runner.run(assigned.collect())?;
            let mut ranked: Vec<usize> = (0..last.len()).collect();
            ranked.sort_by(|one, other| config.order(&last[*one].1, &last[*other].1));
            ranked.truncate(rounds.kept(ranked.len()));
            candidates = ranked
                .into_iter()
                .map(|at| candidates[at].clone())
                .collect();
            done.push(last);
        }
        Ok(done)
    })?;
    let all: Vec<(Assignment, Outcome)> = done.concat();
    // Those that got most first, of them the best.
    let best_first = |mut round: Vec<(Assignment, Outcome)>| {
        round.sort_by(|one, other| config.order(&one.1, &other.1));
        round
    };
    let ranked: Vec<_> = done.into_iter().rev().flat_map(best_first).collect();
    let path = dir.join("sweep.svg");
    cli::write_text(&path, &plot(config, &all))?;
    if common.json {
        out!("{}", report::as_json(&dir, &all, ranked.first()));
    } else {
        out!("{}", table(config, &ranked));
        out!("plot in {}", path.display());
    }
    match ranked.first() {
        Some((assignment, Outcome::Done { value, report })) => {
            // Whatever takes the newest model takes this one, and not the trial that happened to end last.
            let artifact = report["artifact"].as_str().unwrap_or_default();
            let registry = Registry::open(&layout.registry())?;
            let artifact = registry.get(&artifact.parse()?).await?;
            registry.publish_again(&artifact).await?;
            if !common.json {
                out!("best {} {value:.6}: {assignment}", config.metric);
            }
            Ok(())
        }
        _ => anyhow::bail!("every trial failed; what each said is in {}", dir.display()),
    }
}

impl SweepConfig {
    /// The better first, failures last.
    fn order(&self, one: &Outcome, other: &Outcome) -> std::cmp::Ordering {
        let key = |outcome: &Outcome| match outcome {
            Outcome::Done { value, .. } if self.maximise => -value,
            Outcome::Done { value, .. } => *value,
            Outcome::Failed { .. } => f64::INFINITY,
        };
        key(one).total_cmp(&key(other))
    }
}
