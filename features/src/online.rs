//! The embedded online store: the newest aggregates, for the server to read.
//!
//! ```text
//! <root>/<generation>/store.redb    entity key → state
//! <root>/CURRENT                    JSON: generation, spec digest, as-of time
//! ```
//!
//! A version is written whole beside the one that serves, then `CURRENT` moves by rename; a
//! reader holds the version that it opened. Two versions are kept.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use redb::{Database, ReadOnlyDatabase, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::{Aggregates, EntityKey, EntityState, aggregates::DecodeError};

const STATES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("states");
const CURRENT: &str = "CURRENT";

/// Why the online store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OnlineError {
    /// Nothing has been published.
    #[error("no online store in {}; `marquee features materialize` makes one", root.display())]
    Missing {
        /// The store's folder.
        root: PathBuf,
    },
    /// The disk refused.
    #[error("accessing online store file {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The pointer is not what this version writes.
    #[error("reading {}", path.display())]
    Pointer {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The key-value store refused.
    #[error("in online store {}", path.display())]
    Store {
        /// The store's file.
        path: PathBuf,
        /// What it said.
        source: Box<redb::Error>,
    },
    /// A stored state is damaged.
    #[error("state of entity {key:016x} in online store {}; publish it again", path.display())]
    State {
        /// The store's file.
        path: PathBuf,
        /// The entity.
        key: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// What `CURRENT` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    generation: u64,
    spec_digest: String,
    as_of_us: i64,
}

/// One version of the store, open for reading.
pub struct OnlineStore {
    path: PathBuf,
    database: ReadOnlyDatabase,
    pointer: Pointer,
}

fn store_path(root: &Path, generation: u64) -> PathBuf {
    root.join(format!("{generation:012}")).join("store.redb")
}

fn read_pointer(root: &Path) -> Result<Option<Pointer>, OnlineError> {
    let path = root.join(CURRENT);
    match fs::read(&path) {
        Ok(text) => {
            let pointer = serde_json::from_slice(&text);
            pointer
                .map(Some)
                .map_err(|source| OnlineError::Pointer { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OnlineError::Io { path, source }),
    }
}

fn store_error<E: Into<redb::Error>>(path: &Path) -> impl Fn(E) -> OnlineError {
    move |error| OnlineError::Store {
        path: path.to_owned(),
        source: Box::new(error.into()),
    }
}

/// Publishes a new version and returns its generation.
///
/// # Errors
/// [`OnlineError`]; readers then still see the version before.
pub fn publish(
    root: &Path,
    aggregates: &Aggregates,
    spec_digest: &str,
    as_of_us: i64,
) -> Result<u64, OnlineError> {
    let generation = read_pointer(root)?.map_or(1, |pointer| pointer.generation + 1);
    let path = store_path(root, generation);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OnlineError::Io { path, source }
    };
    let folder = path.parent().unwrap_or(root);
    if folder.exists() {
        // A writer died here before it moved the pointer.
        fs::remove_dir_all(folder).map_err(io(folder))?;
    }
    fs::create_dir_all(folder).map_err(io(folder))?;
    write_states(&path, aggregates)?;

    let pointer = Pointer {
        generation,
        spec_digest: spec_digest.to_owned(),
        as_of_us,
    };
    let current = root.join(CURRENT);
    let beside = root.join("CURRENT.partial");
    let text = serde_json::to_vec(&pointer).map_err(|source| OnlineError::Pointer {
        path: current.clone(),
        source,
    })?;
    fs::write(&beside, text).map_err(io(&beside))?;
    fs::rename(&beside, &current).map_err(io(&current))?;
    if let Some(old) = generation
        .checked_sub(2)
        .map(|old| root.join(format!("{old:012}")))
        && old.exists()
    {
        fs::remove_dir_all(&old).map_err(io(&old))?;
    }
    Ok(generation)
}

fn write_states(path: &Path, aggregates: &Aggregates) -> Result<(), OnlineError> {
    let database = Database::create(path).map_err(store_error(path))?;
    let transaction = database.begin_write().map_err(store_error(path))?;
    {
        let mut table = transaction.open_table(STATES).map_err(store_error(path))?;
        for (key, state) in aggregates.iter() {
            table
                .insert(key.0, state.settled().to_bytes().as_slice())
                .map_err(store_error(path))?;
        }
    }
    transaction.commit().map_err(store_error(path))
}

impl OnlineStore {
    /// Opens the current version.
    ///
    /// # Errors
    /// [`OnlineError::Missing`] if nothing was published; [`OnlineError`] if it is damaged.
    pub fn open(root: &Path) -> Result<Self, OnlineError> {
        let missing = || OnlineError::Missing {
            root: root.to_owned(),
        };
        let pointer = read_pointer(root)?.ok_or_else(missing)?;
        let path = store_path(root, pointer.generation);
        let database = ReadOnlyDatabase::open(&path).map_err(store_error(&path))?;
        Ok(Self {
            path,
            database,
            pointer,
        })
    }

    /// The generation that `root` points to now, without opening it.
    ///
    /// # Errors
    /// [`OnlineError::Pointer`]; [`OnlineError::Io`].
    pub fn current_generation(root: &Path) -> Result<Option<u64>, OnlineError> {
        Ok(read_pointer(root)?.map(|pointer| pointer.generation))
    }

    /// The generation that is open.
    pub fn generation(&self) -> u64 {
        self.pointer.generation
    }

    /// Digest of the spec whose features it holds.
    pub fn spec_digest(&self) -> &str {
        &self.pointer.spec_digest
    }

    /// What had arrived by then is in it, microseconds since the Unix epoch.
    pub fn as_of_us(&self) -> i64 {
        self.pointer.as_of_us
    }

    /// The states of the entities that are known.
    ///
    /// # Errors
    /// [`OnlineError::Store`]; [`OnlineError::State`] if one is damaged.
    pub fn read(&self, keys: &[EntityKey]) -> Result<HashMap<EntityKey, EntityState>, OnlineError> {
        let transaction = self
            .database
            .begin_read()
            .map_err(store_error(&self.path))?;
        let table = transaction
            .open_table(STATES)
            .map_err(store_error(&self.path))?;
        let mut states = HashMap::with_capacity(keys.len());
        for key in keys {
            if let Some(bytes) = table.get(key.0).map_err(store_error(&self.path))? {
                let state = EntityState::from_bytes(bytes.value());
                let failed = |source| OnlineError::State {
                    path: self.path.clone(),
                    key: key.0,
                    source,
                };
                states.insert(*key, state.map_err(failed)?);
            }
        }
        Ok(states)
    }
}
