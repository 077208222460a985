//! Runs trials as processes.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Context;
use cli::{CommonArgs, Preempted};
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};

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
    running: Mutex<Running>,
    bar: ProgressBar,
}

#[derive(Default)]
struct Running {
    processes: HashSet<Pid>,
    /// Asked to end: nothing is begun any more.
    stopped: bool,
}

/// Watches for signals until it is dropped.
struct Watch(Handle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            running: Mutex::default(),
            bar,
        })
    }

    /// Does something while SIGTERM and SIGINT ask the trials that run to save themselves, and let
    /// none begin.
    ///
    /// # Errors
    /// What it says; or if the system refuses.
    pub fn until_stopped<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("watching for signals")?;
        thread::scope(|scope| {
            let _until_done = Watch(signals.handle());
            scope.spawn(move || signals.forever().for_each(|_| self.stop()));
            work()
        })
    }

    fn stop(&self) {
        let mut running = locked(&self.running);
        running.stopped = true;
        for process in &running.processes {
            // It may have ended just now.
            let _ = kill_process(*process, Signal::TERM);
        }
    }

    /// Runs trials, several at a time; what each came to, in their order.
    ///
    /// # Errors
    /// [`Preempted`] if they were stopped; when a process cannot be started or a result not be kept.
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
            let workers = (0..self.config.parallel).map(|_| scope.spawn(work));
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
        let known = locked(&self.known).get(&name).cloned();
        if let Some(outcome) = known {
            return Ok(outcome);
        }
        let outcome = self.start(trial)?;
        let mut known = locked(&self.known);
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
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("RAYON_NUM_THREADS", self.config.threads.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self.finished(command)?;
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

    /// Runs a process to its end.
    fn finished(&self, mut command: Command) -> anyhow::Result<Output> {
        cli::end_with_us(&mut command);
        let saved = || Preempted {
            saved: self.dir.display().to_string(),
        };
        let mut running = locked(&self.running);
        if running.stopped {
            return Err(saved().into());
        }
        let starting = || format!("starting {}", self.program.display());
        let child = command.spawn().with_context(starting)?;
        let process = Pid::from_child(&child);
        running.processes.insert(process);
        drop(running);
        let output = child.wait_with_output().with_context(starting)?;
        let mut running = locked(&self.running);
        running.processes.remove(&process);
        match running.stopped && !output.status.success() {
            true => Err(saved().into()),
            false => Ok(output),
        }
    }
}
