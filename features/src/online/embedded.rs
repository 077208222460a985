//! States in a key-value file of one version.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use redb::{Database, ReadOnlyDatabase, ReadableDatabase, TableDefinition};

use super::{OnlineError, is_over};
use crate::{EntityKey, EntityState, Known};

const STATES: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("states");

/// Keys read between two looks at the clock.
const KEYS_PER_LOOK: usize = 64;

fn failed<E: Into<redb::Error>>(path: &Path) -> impl Fn(E) -> OnlineError {
    move |error| OnlineError::Store {
        path: path.to_owned(),
        source: Box::new(error.into()),
    }
}

/// Writes packed states into a new file, and gives how many.
pub(super) fn write(
    path: &Path,
    states: impl Iterator<Item = (EntityKey, Vec<u8>)>,
) -> Result<usize, OnlineError> {
    let database = Database::create(path).map_err(failed(path))?;
    let transaction = database.begin_write().map_err(failed(path))?;
    let mut written = 0;
    {
        let mut table = transaction.open_table(STATES).map_err(failed(path))?;
        for (key, state) in states {
            let inserted = table.insert((key.group, key.id), state.as_slice());
            inserted.map_err(failed(path))?;
            written += 1;
        }
    }
    transaction.commit().map_err(failed(path))?;
    Ok(written)
}

/// A file of states, open for reading.
pub(super) struct Embedded {
    path: PathBuf,
    database: ReadOnlyDatabase,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedded({})", self.path.display())
    }
}

impl Embedded {
    pub(super) fn open(path: &Path) -> Result<Self, OnlineError> {
        Ok(Self {
            database: ReadOnlyDatabase::open(path).map_err(failed(path))?,
            path: path.to_owned(),
        })
    }

    /// Adds what is known of `keys` to `known`.
    pub(super) fn read(
        &self,
        keys: &[EntityKey],
        until: Instant,
        known: &mut Known,
    ) -> Result<(), OnlineError> {
        let transaction = self.database.begin_read().map_err(failed(&self.path))?;
        let table = transaction.open_table(STATES).map_err(failed(&self.path))?;
        for (at, key) in keys.iter().enumerate() {
            if at % KEYS_PER_LOOK == 0 && is_over(until) {
                return Err(OnlineError::Late {
                    unread: keys.len() - at,
                });
            }
            let found = table.get((key.group, key.id)).map_err(failed(&self.path))?;
            let state = found.map(|bytes| EntityState::from_bytes(bytes.value()));
            let state = state.transpose().map_err(|source| OnlineError::State {
                place: self.path.display().to_string(),
                key: *key,
                source,
            })?;
            known.insert(*key, state);
        }
        Ok(())
    }
}
