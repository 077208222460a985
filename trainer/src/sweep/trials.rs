//! Runs trials as processes.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Context;
use cli::CommonArgs;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::{SweepConfig, space::Assignment};

/// File of the trials that are done, one a line.
const DONE: &str = "trials.jsonl";

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// A report.
    Done {
        /// The metric that is compared.
        value: f64,
        /// The whole report.
        report: serde_json::Value,
    },
    /// None.
    Failed {
        /// The end of what it said.
        why: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    trial: String,
    outcome: Outcome,
}

/// Runs the trials of one sweep.
pub struct Runner<'a> {
    config: &'a SweepConfig,
    program: PathBuf,
    root: PathBuf,
    dir: PathBuf,
    /// By the assignment as text.
    known: Mutex<HashMap<String, Outcome>>,
    bar: ProgressBar,
}

impl<'a> Runner<'a> {
    /// Reads what is done already.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(config: &'a SweepConfig, common: &CommonArgs, dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(DONE);
        let text = match path.exists() {
            true => {
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?
            }
            false => String::new(),
        };
        // A line that a crash cut off is a trial that is run again; so is one that failed.
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let done = lines.filter(|line| matches!(line.outcome, Outcome::Done { .. }));
        let known: HashMap<_, _> = done.map(|line| (line.trial, line.outcome)).collect();
        let bar = match common.json {
            true => ProgressBar::hidden(),
            false => cli::progress(0, "trials"),
        };
        Ok(Self {
            config,
            program: std::env::current_exe().context("finding this program")?,
            root: common.root.clone(),
            dir: dir.to_owned(),
            known: Mutex::new(known),
            bar,
        })
    }

    /// Runs trials, several at a time; what each came to, in their order.
    ///
    /// # Errors
    /// When a process cannot be started or a result not be kept.
    pub fn run(&self, trials: Vec<Assignment>) -> anyhow::Result<Vec<(Assignment, Outcome)>> {
        self.bar.inc_length(trials.len() as u64);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(trial) = trials.get(at) else {
                    return Ok::<_, anyhow::Error>(found);
                };
                found.push((at, self.outcome(trial)?));
                self.bar.inc(1);
            }
        };
        let mut found = thread::scope(|scope| {
            let workers = (0..self.config.parallel.max(1)).map(|_| scope.spawn(work));
            let workers: Vec<_> = workers.collect();
            let mut all = Vec::new();
            for worker in workers {
                // A panic in a worker goes on here.
                all.extend(worker.join().expect("a worker")?);
            }
            Ok::<_, anyhow::Error>(all)
        })?;
        found.sort_by_key(|(at, _)| *at);
        let outcomes = found.into_iter().map(|(_, outcome)| outcome);
        Ok(trials.into_iter().zip(outcomes).collect())
    }

    fn outcome(&self, trial: &Assignment) -> anyhow::Result<Outcome> {
        let name = trial.to_string();
        let known = |runner: &Self| {
            let known = runner
                .known
                .lock()
                .unwrap_or_else(|broken| broken.into_inner());
            known.get(&name).cloned()
        };
        if let Some(outcome) = known(self) {
            return Ok(outcome);
        }
        let outcome = self.start(trial)?;
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let path = self.dir.join(DONE);
        let line = Line {
            trial: name.clone(),
            outcome: outcome.clone(),
        };
        let text = serde_json::to_string(&line)?;
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{text}"))
            .with_context(|| format!("writing {}", path.display()))?;
        known.insert(name, outcome.clone());
        Ok(outcome)
    }

    /// Runs one as a process; what was begun before goes on.
    fn start(&self, trial: &Assignment) -> anyhow::Result<Outcome> {
        let mut args: Vec<OsString> = vec!["train".into(), self.config.base.clone().into()];
        args.extend(["--json".into(), "--root".into(), self.root.clone().into()]);
        for set in trial.overrides() {
            args.extend(["--set".into(), set.into()]);
        }
        let output = Command::new(&self.program)
            .args(args)
            .env("RAYON_NUM_THREADS", self.config.threads.to_string())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let report = said
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok());
        let report: serde_json::Value = report.unwrap_or_default();
        let metric = &self.config.metric;
        Ok(match (output.status.success(), report[metric].as_f64()) {
            (true, Some(value)) => Outcome::Done { value, report },
            (true, None) => Outcome::Failed {
                why: format!("its report has no number `{metric}`"),
            },
            (false, _) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                let lines: Vec<&str> = errors.lines().rev().take(5).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                Outcome::Failed {
                    why: format!("{}: {}", output.status, lines.join(" / ")),
                }
            }
        })
    }
}
