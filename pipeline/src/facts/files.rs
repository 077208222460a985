//! Where facts are kept: Parquet files by day, each written by one batch.
//!
//! ```text
//! facts/<table>/events/day=2026-11-26/00000012.parquet
//! facts/<table>/requests/day=2026-11-26/00000012.parquet
//! ```
//!
//! A file means nothing until its batch is committed to the training table; then it never changes.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::DailyFacts;
use crate::{
    calendar::{day_name, parse_day},
    files::{FilesError, batch_of, entries, failed, sync, value_of, write},
};

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactTable {
    /// `fact_events`
    Events,
    /// `fact_requests`
    Requests,
}

impl FactTable {
    fn folder(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Requests => "requests",
        }
    }
}

/// What one batch kept of one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactFile {
    /// Days since the Unix epoch.
    pub day: i32,
    /// The batch.
    pub batch: u64,
    /// The file.
    pub path: PathBuf,
}

/// The facts of one training table.
#[derive(Debug, Clone)]
pub struct FactFiles {
    folder: PathBuf,
}

impl FactFiles {
    /// Those in a folder.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The files of some days that batches up to `committed` wrote, by day and batch.
    ///
    /// # Errors
    /// [`FilesError::Io`] if a folder cannot be listed.
    pub fn list(
        &self,
        table: FactTable,
        days: &RangeInclusive<i32>,
        committed: u64,
    ) -> Result<Vec<FactFile>, FilesError> {
        let mut files = self.all(table)?;
        files.retain(|file| days.contains(&file.day) && file.batch <= committed);
        Ok(files)
    }

    /// Writes what a batch leaves, durably.
    pub(crate) fn write(&self, batch: u64, facts: DailyFacts) -> Result<(), FilesError> {
        for (day, events) in facts.events {
            let path = self.path(FactTable::Events, day, batch);
            write(&path, &events.finish())?;
        }
        for (day, requests) in facts.requests {
            let path = self.path(FactTable::Requests, day, batch);
            write(&path, &requests.finish())?;
        }
        Ok(())
    }

    /// Removes what batches left that were never committed.
    pub(crate) fn remove_leftovers(&self, committed: u64) -> Result<(), FilesError> {
        for table in [FactTable::Events, FactTable::Requests] {
            for file in self.all(table)? {
                if file.batch > committed {
                    fs::remove_file(&file.path).map_err(failed(&file.path))?;
                }
            }
        }
        Ok(())
    }

    /// Gives what batches up to `committed` wrote to another table.
    pub(crate) fn copy(&self, to: &Self, committed: u64) -> Result<(), FilesError> {
        for table in [FactTable::Events, FactTable::Requests] {
            for file in self.list(table, &(i32::MIN..=i32::MAX), committed)? {
                let path = to.path(table, file.day, file.batch);
                let folder = path.parent().unwrap_or(&path);
                fs::create_dir_all(folder).map_err(failed(folder))?;
                if path.exists() {
                    fs::remove_file(&path).map_err(failed(&path))?;
                }
                // They never change, so that both tables can have the same ones.
                if fs::hard_link(&file.path, &path).is_err() {
                    fs::copy(&file.path, &path).map_err(failed(&path))?;
                }
                sync(folder)?;
            }
        }
        Ok(())
    }

    fn path(&self, table: FactTable, day: i32, batch: u64) -> PathBuf {
        let folder = self.folder.join(table.folder());
        let day = folder.join(format!("day={}", day_name(day)));
        day.join(format!("{batch:08}.parquet"))
    }

    fn all(&self, table: FactTable) -> Result<Vec<FactFile>, FilesError> {
        let mut files = Vec::new();
        for folder in entries(&self.folder.join(table.folder()))? {
            let Some(day) = value_of(&folder, "day").and_then(parse_day) else {
                continue;
            };
            for path in entries(&folder)? {
                if let Some(batch) = batch_of(&path) {
                    files.push(FactFile { day, batch, path });
                }
            }
        }
        files.sort_by_key(|file| (file.day, file.batch));
        Ok(files)
    }
}
