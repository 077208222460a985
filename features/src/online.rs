//! The online store: what is known of entities, for the server to read.
//!
//! A version is written whole beside the one that serves, then a pointer moves; a reader holds the
//! version that it opened. Two versions are kept. Each spec has versions of its own, so that what
//! serves goes on while the next spec is published.
//!
//! Embedded, below the data folder:
//!
//! ```text
//! <root>/<spec>/CURRENT                     JSON: the version that serves
//! <root>/<spec>/<generation>/store.redb     entity key → packed state
//! ```
//!
//! On a Redis Cluster `CURRENT` and the hot states lie there ([`OnlineConfig::Redis`]); the file holds
//! the warm ones, of features of the tier `warm`, and may lie on an SSD of each server.

mod config;
mod embedded;
mod published;
mod redis;

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

pub use config::{OnlineConfig, RedisConfig};
use embedded::Embedded;
use redis::{Publisher, Reading, Redis};
use serde::{Deserialize, Serialize};

use crate::{Aggregates, EntityKey, EntityState, FeatureSet, Known, aggregates::DecodeError};

const CURRENT: &str = "CURRENT";
const LOCK: &str = "LOCK";

/// Specs whose versions stay: the one that is published and the one that served before it.
const SPECS_KEPT: usize = 2;

/// Why the online store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OnlineError {
    /// Nothing has been published of these features.
    #[error(
        "no online store of features {} in {place}; `marquee features materialize` makes one",
        short(spec_digest)
    )]
    Missing {
        /// Where.
        place: String,
        /// Digest of the spec.
        spec_digest: String,
    },
    /// The disk refused.
    #[error("accessing online store file {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else is publishing.
    #[error("another program publishes to the online store, as {} says: wait for its end", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The pointer is not what this version writes.
    #[error("reading {place}; publish the online store again")]
    Pointer {
        /// The file, or the key in Redis.
        place: String,
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
    #[error("state of entity {key} in online store {place}; publish it again")]
    State {
        /// The store's file, or the node.
        place: String,
        /// The entity.
        key: EntityKey,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The time was up before all was read.
    #[error("the time was up with {unread} entities of the online store unread")]
    Late {
        /// Entities that were not read.
        unread: usize,
    },
    /// A setting that cannot be.
    #[error("online store: `redis.{key}` {what}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What is wrong with it, and the mend.
        what: String,
    },
    /// The cluster, or a node of it, failed or refused.
    #[error("Redis, {doing}")]
    Redis {
        /// What was to be done.
        doing: String,
        /// What it said.
        source: Box<::redis::RedisError>,
    },
    /// The cluster, or a node of it, did not answer in time.
    #[error("Redis, {doing}: no answer within {waited_ms} ms")]
    Silent {
        /// What was to be done.
        doing: String,
        /// How long.
        waited_ms: u64,
    },
    /// The cluster answered something that it should not.
    #[error("Redis, {doing}: {found}")]
    Reply {
        /// What was to be done.
        doing: String,
        /// The answer.
        found: String,
    },
    /// Somebody else is publishing.
    #[error(
        "another pipeline publishes, as {place} says: wait for its end, or a minute after its death"
    )]
    Busy {
        /// The key in Redis.
        place: String,
    },
    /// Somebody else published meanwhile.
    #[error(
        "another pipeline moved {place} meanwhile: two that publish the same features need two prefixes"
    )]
    Raced {
        /// The key in Redis.
        place: String,
    },
}

impl OnlineError {
    /// Whether a cluster, or some node of it, did not answer as it should: others may.
    pub fn is_of_cluster(&self) -> bool {
        matches!(
            self,
            Self::Redis { .. } | Self::Silent { .. } | Self::Reply { .. } | Self::Late { .. }
        )
    }
}

/// One version of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Rises by one with each version of these features.
    pub generation: u64,
    /// Digest of the spec whose features it holds.
    pub spec_digest: String,
    /// What had arrived by then is in it, microseconds since the Unix epoch.
    pub as_of_us: i64,
    /// Kinds of entities that lie in the file; on Redis only, where the others lie there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    warm: BTreeSet<u32>,
    /// What the keys of this and the versions that it adds to begin with; 0 in files.
    #[serde(default, skip_serializing_if = "is_zero")]
    epoch: u64,
}

impl Version {
    /// Whether what an older version's readers look for may be gone without their noticing.
    pub fn replaces(&self, older: &Self) -> bool {
        self.epoch != older.epoch && self.generation > older.generation + 1
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its generation.
    pub generation: u64,
    /// Entities that were written: on Redis those that changed since the version before.
    pub written: usize,
    /// All of its entities.
    pub entities: usize,
}

/// Where versions are kept.
#[derive(Debug, Clone)]
pub struct Online {
    root: PathBuf,
    redis: Option<Arc<Redis>>,
}

/// The beginning of a digest, which names a spec in paths and messages.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

fn is_over(until: Instant) -> bool {
    until <= Instant::now()
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OnlineError + use<> {
    let path = path.to_owned();
    move |source| OnlineError::Io { path, source }
}

fn parse_version(place: &str, text: &[u8]) -> Result<Version, OnlineError> {
    serde_json::from_slice(text).map_err(|source| OnlineError::Pointer {
        place: place.to_owned(),
        source,
    })
}

fn version_text(version: &Version) -> Vec<u8> {
    serde_json::to_vec(version).expect("a version is plain data")
}

impl Online {
    /// The store as it is configured, with its files below `root`. Nothing is opened yet.
    ///
    /// # Errors
    /// [`OnlineError::Setting`].
    pub fn new(config: &OnlineConfig, root: &Path) -> Result<Self, OnlineError> {
        let redis = match config {
            OnlineConfig::Embedded => None,
            OnlineConfig::Redis(config) => Some(Arc::new(Redis::new(config)?)),
        };
        Ok(Self {
            root: root.to_owned(),
            redis,
        })
    }

    fn folder(&self, spec_digest: &str) -> PathBuf {
        self.root.join(short(spec_digest))
    }

    fn file(&self, version: &Version) -> PathBuf {
        let generation = format!("{:012}", version.generation);
        let folder = self.folder(&version.spec_digest).join(generation);
        folder.join("store.redb")
    }

    /// The version of these features that serves, if one was published.
    ///
    /// # Errors
    /// [`OnlineError::Pointer`]; [`OnlineError::Io`] or, on Redis, whatever keeps it from answering.
    pub fn current(&self, spec_digest: &str) -> Result<Option<Version>, OnlineError> {
        if let Some(redis) = &self.redis {
            return redis.current(spec_digest);
        }
        let path = self.folder(spec_digest).join(CURRENT);
        match fs::read(&path) {
            Ok(text) => parse_version(&path.display().to_string(), &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OnlineError::Io { path, source }),
        }
    }

    /// Opens the version of these features that serves.
    ///
    /// # Errors
    /// [`OnlineError::Missing`] if none was published; [`OnlineError`] if it is damaged or out of reach.
    pub fn open(&self, spec_digest: &str) -> Result<OnlineStore, OnlineError> {
        let version = self.current(spec_digest)?;
        let version = version.ok_or_else(|| OnlineError::Missing {
            place: match &self.redis {
                Some(redis) => redis.to_string(),
                None => self.root.display().to_string(),
            },
            spec_digest: spec_digest.to_owned(),
        })?;
        let has_file = self.redis.is_none() || !version.warm.is_empty();
        let file = has_file.then(|| Embedded::open(&self.file(&version)));
        Ok(OnlineStore {
            file: file.transpose()?,
            redis: self.redis.clone(),
            version,
        })
    }

    /// Publishes a new version of the features of `set`. Readers that have the one before open keep it;
    /// older ones are removed.
    ///
    /// # Errors
    /// [`OnlineError`]; readers then still see the version before.
    pub fn publish(
        &self,
        set: &FeatureSet,
        aggregates: &Aggregates,
        as_of_us: i64,
    ) -> Result<Published, OnlineError> {
        let folder = self.folder(set.digest());
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let _lock = self.lock()?;
        let publisher = self.redis.as_deref();
        let publisher = publisher.map(|redis| Publisher::new(redis, set.digest()));
        let publisher = publisher.transpose()?;
        let keeping = set.keeping();
        let warm = keeping.iter().filter(|(_, keeping)| keeping.warm);
        let mut version = Version {
            generation: 1 + match &publisher {
                Some(publisher) => publisher.before().map_or(0, |before| before.generation),
                None => self.newest_file(set.digest())?,
            },
            spec_digest: set.digest().to_owned(),
            as_of_us,
            warm: match publisher {
                Some(_) => warm.map(|(group, _)| *group).collect(),
                None => BTreeSet::new(),
            },
            epoch: 0,
        };
        let packed = |(key, state): (EntityKey, &EntityState)| (key, state.settled().to_bytes());
        let written = match &publisher {
            None => {
                let written = self.write_file(&version, aggregates.iter().map(packed))?;
                self.point_to(&version)?;
                written
            }
            Some(publisher) => {
                let is_warm = |key: &EntityKey| version.warm.contains(&key.group);
                if !version.warm.is_empty() {
                    let warm = aggregates.iter().filter(|(key, _)| is_warm(key));
                    self.write_file(&version, warm.map(packed))?;
                }
                let hot = aggregates.iter().filter(|(key, _)| !is_warm(key));
                let hot: Vec<_> = hot.collect();
                publisher.publish(&mut version, &hot, &keeping, &folder)?
            }
        };
        self.remove_old(&version)?;
        Ok(Published {
            generation: version.generation,
            written,
            entities: aggregates.len(),
        })
    }

    /// Keeps other publishers away until it is dropped.
    fn lock(&self) -> Result<File, OnlineError> {
        let path = self.root.join(LOCK);
        let file = File::create(&path).map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(OnlineError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(OnlineError::Io { path, source }),
        }
    }

    fn write_file(
        &self,
        version: &Version,
        states: impl Iterator<Item = (EntityKey, Vec<u8>)>,
    ) -> Result<usize, OnlineError> {
        let path = self.file(version);
        let folder = path.parent().unwrap_or(&self.root);
        if folder.exists() {
            // A writer died here before it moved the pointer.
            fs::remove_dir_all(folder).map_err(io_error(folder))?;
        }
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        embedded::write(&path, states)
    }

    fn point_to(&self, version: &Version) -> Result<(), OnlineError> {
        let folder = self.folder(&version.spec_digest);
        let current = folder.join(CURRENT);
        let beside = current.with_extension("partial");
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(&version_text(version))?;
            file.sync_all()
        };
        write().map_err(io_error(&beside))?;
        fs::rename(&beside, &current).map_err(io_error(&current))?;
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(io_error(&folder))
    }

    /// The folders of a spec's versions, by generation.
    fn files(&self, spec_digest: &str) -> Result<Vec<(u64, PathBuf)>, OnlineError> {
        let mut files = Vec::new();
        for path in paths(&self.folder(spec_digest))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Ok(generation) = name.parse() {
                files.push((generation, path));
            }
        }
        files.sort();
        Ok(files)
    }

    /// The newest generation that a file may be there of; 0 if there is none.
    fn newest_file(&self, spec_digest: &str) -> Result<u64, OnlineError> {
        // A pointer that is damaged is written over: then the files tell.
        let current = match self.current(spec_digest) {
            Ok(current) => current.map(|version| version.generation),
            Err(OnlineError::Pointer { .. }) => {
                self.files(spec_digest)?.last().map(|(newest, _)| *newest)
            }
            Err(error) => return Err(error),
        };
        Ok(current.unwrap_or(0))
    }

    /// Removes files of versions that nobody opens any more, and specs that served long ago.
    fn remove_old(&self, version: &Version) -> Result<(), OnlineError> {
        for (generation, path) in self.files(&version.spec_digest)? {
            if generation + 1 < version.generation {
                remove(&path)?;
            }
        }
        let mut specs = Vec::new();
        for path in paths(&self.root)? {
            let found = fs::metadata(&path);
            let found = found.and_then(|found| Ok((found.is_dir(), found.modified()?)));
            let (is_spec, changed) = found.map_err(io_error(&path))?;
            if is_spec && path != self.folder(&version.spec_digest) {
                specs.push((changed, path));
            }
        }
        specs.sort();
        let gone = specs.len().saturating_sub(SPECS_KEPT - 1);
        specs[..gone].iter().try_for_each(|(_, path)| remove(path))
    }
}

fn paths(folder: &Path) -> Result<Vec<PathBuf>, OnlineError> {
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(io_error(folder))
}

fn remove(folder: &Path) -> Result<(), OnlineError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(folder)(error)),
        _ => Ok(()),
    }
}

/// One version of the store, open for reading.
#[derive(Debug)]
pub struct OnlineStore {
    version: Version,
    /// All states, or, beside Redis, the warm ones.
    file: Option<Embedded>,
    redis: Option<Arc<Redis>>,
}

impl OnlineStore {
    /// The version that is open.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Adds what is known of `keys` to `known`, where `None` says that an entity is unknown. On Redis
    /// it takes one pipelined round trip to each node that has some, all at the same time; a node that
    /// fails or is slow is left alone for a while.
    ///
    /// # Errors
    /// [`OnlineError::Late`] if the time was up before all was read, or whatever else kept some from
    /// being read; what was read until then stands in `known`.
    pub fn read(
        &self,
        keys: &[EntityKey],
        until: Instant,
        known: &mut Known,
    ) -> Result<(), OnlineError> {
        self.read_for(Reading::Request, keys, until, known)
    }

    /// The same for many entities at once that no request waits for: a node may take its time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_many(
        &self,
        keys: &[EntityKey],
        until: Instant,
        known: &mut Known,
    ) -> Result<(), OnlineError> {
        self.read_for(Reading::Many, keys, until, known)
    }

    fn read_for(
        &self,
        reading: Reading,
        keys: &[EntityKey],
        until: Instant,
        known: &mut Known,
    ) -> Result<(), OnlineError> {
        let Some(redis) = &self.redis else {
            return match &self.file {
                Some(file) => file.read(keys, until, known),
                None => Ok(()),
            };
        };
        if is_over(until) && !keys.is_empty() {
            return Err(OnlineError::Late { unread: keys.len() });
        }
        let is_warm = |key: &&EntityKey| self.version.warm.contains(&key.group);
        let (warm, hot): (Vec<EntityKey>, Vec<EntityKey>) = keys.iter().partition(is_warm);
        // The disk is read while the cluster answers.
        let asked = redis.ask(&self.version, &hot, until, reading);
        let warm = match &self.file {
            Some(file) if !warm.is_empty() => file.read(&warm, until, known),
            _ => Ok(()),
        };
        asked.wait(known).and(warm)
    }
}
