//! The circumstances of a run.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// File of a run's circumstances.
const FILE: &str = "run.json";

/// What a run was started with, besides its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// What is trained.
    pub kind: String,
    /// When it began, microseconds since the Unix epoch.
    pub started_us: i64,
    /// Name of the training table.
    pub table: String,
    /// The version that was read.
    pub table_version: u64,
    /// Digest of the feature spec of its columns.
    pub spec: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Where the dense half ran.
    pub device: String,
    /// Processes.
    pub world_size: usize,
    /// What the command line said otherwise than the file.
    pub overrides: Vec<String>,
    /// Of the code in the current directory, if it is a git checkout.
    pub code_revision: Option<String>,
}

impl RunInfo {
    /// Writes it into a run's folder, unless the run was begun before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE);
        if path.exists() {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Of a run's folder; none of one that was made before there was such a file.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let read = || format!("reading {}", path.display());
        let text = std::fs::read_to_string(&path).with_context(read)?;
        serde_json::from_str(&text).map(Some).with_context(read)
    }
}
