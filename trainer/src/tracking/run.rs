//! The folder of one training run: configuration, metrics over time, report, plots.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::{mlflow::Sender, tensorboard::EventFile};

/// File of the configuration with all its defaults.
pub(super) const CONFIG: &str = "config.resolved.toml";

/// File of the metrics over time, one JSON object a line.
const METRICS: &str = "metrics.jsonl";

/// Folder of the metrics as TensorBoard reads them.
const TENSORBOARD: &str = "tensorboard";

/// File with the digest of what the run computes.
const DIGEST: &str = "run.sha256";

/// File that stands for a run that is done.
pub const REPORT: &str = "report.json";

/// One run's folder: `<runs>/<name>-<number>`.
#[derive(Debug)]
pub struct Run {
    /// The folder, absolute.
    pub dir: PathBuf,
    /// None for the ranks that do not write.
    metrics: Option<File>,
    /// Begun when there is something to write.
    events: Option<EventFile>,
    /// A tracking server that hears of it too.
    sender: Option<Sender>,
}

impl Run {
    /// Makes the next folder of a name and records the resolved configuration in it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn start(runs: &Path, name: &str, resolved: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(runs).with_context(|| format!("making {}", runs.display()))?;
        let runs = fs::canonicalize(runs).with_context(|| format!("finding {}", runs.display()))?;
        let dir = next_dir(&runs, name)?;
        fs::write(dir.join(CONFIG), resolved)
            .with_context(|| format!("writing into {}", dir.display()))?;
        let metrics = open_metrics(&dir)?;
        Ok(Self::new(dir, Some(metrics)))
    }

    /// As [`Self::start`], for a run that can be resumed: a digest says what it computes.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn start_resumable(
        runs: &Path,
        name: &str,
        resolved: &str,
        digest: &str,
    ) -> anyhow::Result<Self> {
        let run = Self::start(runs, name, resolved)?;
        fs::write(run.dir.join(DIGEST), digest)
            .with_context(|| format!("writing into {}", run.dir.display()))?;
        Ok(run)
    }

    /// The newest run of a name that computes the same and is not done.
    ///
    /// # Errors
    /// When the folder of runs cannot be read.
    pub fn unfinished(runs: &Path, name: &str, digest: &str) -> anyhow::Result<Option<PathBuf>> {
        if !runs.exists() {
            return Ok(None);
        }
        let mut found = Vec::new();
        let read = || format!("reading {}", runs.display());
        for entry in fs::read_dir(runs).with_context(read)? {
            let dir = entry.with_context(read)?.path();
            let of_name = dir
                .file_name()
                .and_then(|file| {
                    file.to_str()?
                        .strip_prefix(name)?
                        .strip_prefix('-')?
                        .parse()
                        .ok()
                })
                .map(|number: u64| (number, dir.clone()));
            let same = || fs::read_to_string(dir.join(DIGEST)).is_ok_and(|found| found == digest);
            found.extend(of_name.filter(|_| same() && !dir.join(REPORT).exists()));
        }
        found.sort_unstable();
        Ok(found.pop().map(|(_, dir)| dir))
    }

    /// Goes on with a run.
    ///
    /// # Errors
    /// When its metrics cannot be opened.
    pub fn resume(dir: &Path) -> anyhow::Result<Self> {
        let dir = fs::canonicalize(dir).with_context(|| format!("finding {}", dir.display()))?;
        let metrics = open_metrics(&dir)?;
        Ok(Self::new(dir, Some(metrics)))
    }

    /// A run that another rank writes.
    pub fn follow(dir: PathBuf) -> Self {
        Self::new(dir, None)
    }

    fn new(dir: PathBuf, metrics: Option<File>) -> Self {
        Self {
            dir,
            metrics,
            events: None,
            sender: None,
        }
    }

    /// Whether this rank writes it.
    pub(crate) fn is_written(&self) -> bool {
        self.metrics.is_some()
    }

    /// A tracking server hears of it from now on.
    pub(crate) fn send_to(&mut self, sender: Sender) {
        self.sender = Some(sender);
    }

    /// All that a tracking server should hear has reached it, with these files; `done` says whether
    /// the run is over.
    pub(crate) fn finish_sending(&mut self, files: &[PathBuf], done: bool) {
        if let Some(sender) = self.sender.take() {
            sender.finish(files, done);
        }
    }

    /// Appends one line to `metrics.jsonl`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn log(&mut self, metrics: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(metrics)?;
        match &mut self.metrics {
            Some(file) => writeln!(file, "{line}")
                .with_context(|| format!("logging to {}", self.dir.display())),
            None => Ok(()),
        }
    }

    /// Adds values of some tags at a step to the run's TensorBoard events.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> anyhow::Result<()> {
        if let Some(sender) = &self.sender {
            sender.metrics(step, values);
        }
        self.with_events(|events| events.scalars(step, values))
    }

    fn with_events(
        &mut self,
        write: impl FnOnce(&mut EventFile) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let dir = self.dir.join(TENSORBOARD);
        let failed = || format!("writing into {}", dir.display());
        let events = match &mut self.events {
            Some(events) => events,
            none => none.insert(EventFile::create(&dir).with_context(failed)?),
        };
        write(events).with_context(failed)
    }

    /// Lines of the metrics; those that a crash cut off are left out.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn metrics(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        read_metrics(&self.dir)
    }

    /// Leaves out the lines that do not count any more, because the run goes on after a step and so many
    /// whole epochs.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn rewind(&mut self, step: u64, epoch: u64) -> anyhow::Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        self.with_events(|events| events.rewind(step))?;
        let within = |line: &serde_json::Value, key: &str, last: u64| {
            line[key].as_u64().is_none_or(|found| found <= last)
        };
        let kept = self
            .metrics()?
            .into_iter()
            .filter(|line| within(line, "step", step) && within(line, "epoch", epoch));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        let path = self.dir.join(METRICS);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        self.metrics = Some(open_metrics(&self.dir)?);
        Ok(())
    }
}

/// As [`Run::metrics`], of a run's folder.
pub(super) fn read_metrics(dir: &Path) -> anyhow::Result<Vec<serde_json::Value>> {
    let path = dir.join(METRICS);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn open_metrics(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(METRICS);
    let file = File::options().create(true).append(true).open(&path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// Claims the first free number; two runs at the same time get two.
fn next_dir(runs: &Path, name: &str) -> anyhow::Result<PathBuf> {
    for number in 1.. {
        let dir = runs.join(format!("{name}-{number:03}"));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
        }
    }
    unreachable!("numbers do not end")
}

/// The revision of the code in the current directory, if it is a git checkout; `-dirty` behind it where a file
/// has been changed since.
pub fn code_revision() -> Option<String> {
    let output = std::process::Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ])
        .output()
        .ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_name_are_numbered_and_keep_their_configuration() {
        let runs = tempfile::tempdir().unwrap();
        for number in ["ctr-001", "ctr-002"] {
            let mut run = Run::start(runs.path(), "ctr", "seed = 1\n").unwrap();
            run.log(&serde_json::json!({"step": 1})).unwrap();
            assert_eq!(run.dir, fs::canonicalize(runs.path()).unwrap().join(number));
            assert_eq!(
                fs::read_to_string(run.dir.join("config.resolved.toml")).unwrap(),
                "seed = 1\n"
            );
            assert_eq!(
                fs::read_to_string(run.dir.join("metrics.jsonl")).unwrap(),
                "{\"step\":1}\n"
            );
        }
    }

    #[test]
    fn an_unfinished_run_of_the_same_digest_is_found_and_rewound() {
        let runs = tempfile::tempdir().unwrap();
        let find = |digest: &str| Run::unfinished(runs.path(), "ctr", digest).unwrap();
        assert_eq!(find("a"), None);
        Run::start(runs.path(), "ctr", "").unwrap();
        let mut run = Run::start_resumable(runs.path(), "ctr", "", "a").unwrap();
        (1..=3).for_each(|step| run.log(&serde_json::json!({"step": step})).unwrap());
        run.log(&serde_json::json!({"step": 2, "epoch": 2}))
            .unwrap();
        assert_eq!(find("b"), None);
        let found = find("a").unwrap();
        let mut again = Run::resume(&found).unwrap();
        again.rewind(2, 1).unwrap();
        again
            .log(&serde_json::json!({"step": 3, "again": true}))
            .unwrap();
        let steps: Vec<_> = again
            .metrics()
            .unwrap()
            .iter()
            .map(|line| line["step"].clone())
            .collect();
        assert_eq!(steps, [1, 2, 3]);
        fs::write(found.join(REPORT), "{}").unwrap();
        assert_eq!(find("a"), None);
    }
}
