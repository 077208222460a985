//! Where everything lies under the data folder: one definition for all programs.

use std::path::{Path, PathBuf};

use crate::CommonArgs;

/// The data folder and the places in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The data folder itself.
    pub root: PathBuf,
}

impl Layout {
    /// The layout under `--root`.
    pub fn new(common: &CommonArgs) -> Self {
        Self::at(&common.root)
    }

    /// The layout under any folder.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The event log; one folder per partition.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The committed states of the pipeline that writes a table.
    pub fn state(&self, table: &str) -> PathBuf {
        self.root.join("state").join(table)
    }

    /// A Delta table by name.
    pub fn table(&self, name: &str) -> PathBuf {
        self.root.join("tables").join(name)
    }

    /// Events that were refused on their way to a table, with the reason.
    pub fn dead_letters(&self, table: &str) -> PathBuf {
        self.root.join("dead_letters").join(table)
    }

    /// The events of a table as they came.
    pub fn archive(&self, table: &str) -> PathBuf {
        self.root.join("archive").join(table)
    }

    /// What was done with events of restricted people on their way to a table.
    pub fn audit(&self, table: &str) -> PathBuf {
        self.root.join("audit").join(table)
    }

    /// What the features of a table are computed from.
    pub fn facts(&self, table: &str) -> PathBuf {
        self.root.join("facts").join(table)
    }

    /// Features of a table that were computed for days past.
    pub fn features(&self, table: &str) -> PathBuf {
        self.root.join("features").join(table)
    }

    /// Artifacts and channels.
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry")
    }

    /// The embedded online feature store.
    pub fn online(&self) -> PathBuf {
        self.root.join("online")
    }

    /// The synthetic world: its resolved configuration and its truth.
    pub fn world(&self) -> PathBuf {
        self.root.join("world")
    }

    /// One folder per training run.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The figures of each step as `<step>.json`, and the report made of them.
    pub fn reports(&self) -> PathBuf {
        self.root.join("reports")
    }

    /// Addresses of the running server, as JSON.
    pub fn serving_address(&self) -> PathBuf {
        self.root.join("serving.addr")
    }
}
