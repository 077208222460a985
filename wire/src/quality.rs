//! Which version of a training table may be trained on: what the pipeline's quality gate leaves beside
//! the table, and the trainer reads.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Delta Lake takes no notice of names that begin so.
const FILE: &str = "_quality.json";

/// The outcome of the last check of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableQuality {
    /// The newest version that passed all checks; none has if there is none.
    pub good: Option<u64>,
    /// The newest version that was checked.
    pub checked: u64,
    /// What that version failed, in words; nothing if it is `good`.
    pub failed: Vec<String>,
}

/// Why the outcome could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("reading {}; `marquee events check` writes it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
}

impl TableQuality {
    /// What stands beside a table; nothing if it was never checked.
    ///
    /// # Errors
    /// [`QualityError`].
    pub fn load(table: &Path) -> Result<Option<Self>, QualityError> {
        let path = table.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(QualityError::Io { path, source }),
        };
        let found = serde_json::from_slice(&text);
        found
            .map(Some)
            .map_err(|source| QualityError::Json { path, source })
    }

    /// Puts it beside a table, whole or not at all.
    ///
    /// # Errors
    /// [`QualityError::Io`].
    pub fn save(&self, table: &Path) -> Result<(), QualityError> {
        let path = table.join(FILE);
        let partial = path.with_extension("partial");
        // Plain data always serialises.
        let text = serde_json::to_vec_pretty(self).expect("an outcome is plain data");
        let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|source| QualityError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_kept_and_damage_is_told_with_its_mend() {
        let table = tempfile::tempdir().unwrap();
        assert_eq!(TableQuality::load(table.path()).unwrap(), None);
        let outcome = TableQuality {
            good: Some(4),
            checked: 5,
            failed: vec!["nulls of click".to_owned()],
        };
        outcome.save(table.path()).unwrap();
        assert_eq!(TableQuality::load(table.path()).unwrap(), Some(outcome));
        fs::write(table.path().join(FILE), "{\"good\":").unwrap();
        let error = TableQuality::load(table.path()).unwrap_err().to_string();
        assert!(
            error.contains("`marquee events check` writes it again"),
            "{error}"
        );
    }
}
