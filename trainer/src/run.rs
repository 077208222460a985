//! The folder of one training run: configuration, metrics over time, report, plots.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

/// One run's folder: `<runs>/<name>-<number>`.
#[derive(Debug)]
pub struct Run {
    /// The folder, absolute.
    pub dir: PathBuf,
    metrics: File,
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
        fs::write(dir.join("config.resolved.toml"), resolved)
            .with_context(|| format!("writing into {}", dir.display()))?;
        let path = dir.join("metrics.jsonl");
        let metrics = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { dir, metrics })
    }

    /// Appends one line to `metrics.jsonl`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn log(&mut self, metrics: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(metrics)?;
        writeln!(self.metrics, "{line}")
            .with_context(|| format!("logging to {}", self.dir.display()))
    }
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

/// The revision of the code in the current directory, if it is a git checkout.
pub fn code_revision() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
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
}
