//! Checkpoints of a training run: sharded, atomic, written in the background.
//!
//! ```text
//! step-0000001200/rank-0.safetensors   what rank 0 holds of the tables
//! step-0000001200/rank-1.safetensors
//! step-0000001200/dense.safetensors    weights and optimizer of the network, from rank 0
//! step-0000001200/manifest.json        files with their digests, and where the run stands; last
//! ```
//!
//! A checkpoint without a manifest does not exist: what a crash left of it is removed by the next
//! one. A file whose digest is not the manifest's is damaged, and then the checkpoint before it
//! is taken. The manifest says which rows and columns each file holds, so that any number of
//! ranks can load it.

pub(crate) mod bits;
mod file;
mod restore;
mod save;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use file::Piece;
use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, local::LocalFileSystem, memory::InMemory, path::Path as Key,
    prefix::PrefixStore,
};
pub use restore::{Restored, RestoredFile};
pub use save::{Checkpoints, Snapshot};
use serde::{Deserialize, Serialize};

use crate::{collective::CollectiveError, sharding::ShardSpec};

/// Version of the layout.
const VERSION: u32 = 1;

const MANIFEST: &str = "manifest.json";

/// How often a run is saved, and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; 0: only at the end of an epoch and when the run is stopped.
    pub every_steps: u64,
    /// How many are kept, the one of the best epoch besides.
    pub keep: usize,
    /// Where they go, such as `s3://bucket/prefix`; none: the run's folder. A run finds its own there
    /// from any machine, and removes them when it is done.
    pub url: Option<String>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: 0,
            keep: 2,
            url: None,
        }
    }
}

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub version: u32,
    /// Of configuration and data: what a run must have in common with the checkpoint.
    pub run_digest: String,
    /// Steps so far.
    pub step: u64,
    /// Ranks that wrote it.
    pub world_size: usize,
    /// The files, in the order of ranks.
    pub files: Vec<FileRecord>,
    /// Where the run stands.
    pub state: serde_json::Value,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Name within the checkpoint.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Parts of tables in it: shard `i` is tensors `i.weights` and `i.state`.
    pub shards: Vec<ShardSpec>,
}

/// Why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder cannot be used.
    #[error("using checkpoint folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Not the address of an object store.
    #[error("checkpoint.url is `{url}`, wanted such as s3://bucket/prefix or file:///folder")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: object_store::Error,
    },
    /// The store refuses.
    #[error("{action} {key}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// On what.
        key: String,
        /// What it said.
        source: object_store::Error,
    },
    /// A file is not as it was written.
    #[error("checkpoint file {key} is damaged: {problem}")]
    Damaged {
        /// The file.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A checkpoint of something else.
    #[error(
        "checkpoint {name} belongs to run {found}, this is {wanted}: its configuration or its table has changed; use --resume never to start anew"
    )]
    OtherRun {
        /// The checkpoint.
        name: String,
        /// Its digest.
        found: String,
        /// This run's digest.
        wanted: String,
    },
    /// Another rank could not write or read its part.
    #[error("rank {rank} failed: {reason}")]
    Rank {
        /// The rank.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// The ranks could not agree.
    #[error("agreeing on a checkpoint")]
    Collective(#[from] CollectiveError),
    /// The network's part does not fit the network.
    #[error("checkpoint {name} holds {found} values of {what}, the model has {wanted}")]
    Length {
        /// The checkpoint.
        name: String,
        /// What is stored.
        what: &'static str,
        /// How many values there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
}

/// Where a run's checkpoints are.
#[derive(Debug, Clone)]
pub struct Folder {
    store: Arc<dyn ObjectStore>,
    /// Where it is on a disk, if it is.
    local: Option<PathBuf>,
}

impl Folder {
    /// A local folder; it is made.
    ///
    /// # Errors
    /// [`CheckpointError::Folder`].
    pub fn local(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Folder {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(failed)?;
        let store = LocalFileSystem::new_with_prefix(path)
            .map_err(|source| failed(std::io::Error::other(source)))?;
        Ok(Self {
            store: Arc::new(store),
            local: Some(path.to_owned()),
        })
    }

    /// The folder of a run in an object store: S3 and what speaks its language, or a local path. The
    /// variables of the AWS clients (`AWS_ENDPOINT`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, …) say where
    /// and who.
    ///
    /// # Errors
    /// [`CheckpointError::Url`].
    pub fn remote(url: &str, run: &str) -> Result<Self, CheckpointError> {
        let wrong = |source| CheckpointError::Url {
            url: url.to_owned(),
            source,
        };
        let parsed = url::Url::parse(url).map_err(|error| {
            wrong(object_store::Error::Generic {
                store: "url",
                source: error.into(),
            })
        })?;
        let aws = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
        let (store, prefix) = object_store::parse_url_opts(&parsed, aws).map_err(wrong)?;
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix.join(run))),
            local: None,
        })
    }

    /// In memory: gone with the process.
    pub fn memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            local: None,
        }
    }

    /// Removes all checkpoints, and what is left of unfinished ones.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn clear(&self) -> Result<(), CheckpointError> {
        block_on(async {
            let Found { whole, unfinished } = self.find().await?;
            for name in whole.iter().chain(&unfinished) {
                self.remove(name).await?;
            }
            Ok(())
        })
    }

    /// What there is.
    async fn find(&self) -> Result<Found, CheckpointError> {
        let all = self.store.list(None).map_ok(|object| object.location);
        let all: Vec<Key> = all
            .try_collect()
            .await
            .map_err(|source| CheckpointError::Store {
                action: "listing checkpoints",
                key: String::new(),
                source,
            })?;
        let whole = all.iter().filter(|key| key.filename() == Some(MANIFEST));
        let whole: BTreeSet<String> = whole.filter_map(folder_of).collect();
        let mut folders: BTreeSet<String> = all.iter().filter_map(folder_of).collect();
        // On a disk also those that hold nothing, or files that were not finished.
        let entries = self.local.iter().filter_map(|path| fs::read_dir(path).ok());
        for entry in entries.flatten().flatten() {
            if entry.path().is_dir() {
                folders.extend(entry.file_name().to_str().and_then(checkpoint_name));
            }
        }
        Ok(Found {
            unfinished: folders.difference(&whole).cloned().collect(),
            whole: whole.into_iter().collect(),
        })
    }

    /// Removes a checkpoint, its manifest first, so that it is never half there.
    async fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        let failed = |key: &Key, source| CheckpointError::Store {
            action: "removing",
            key: key.to_string(),
            source,
        };
        let manifest = key(name, MANIFEST);
        match self.store.delete(&manifest).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(failed(&manifest, source)),
        }
        let prefix = Key::from(name);
        let rest = self
            .store
            .list(Some(&prefix))
            .map_ok(|object| object.location);
        let rest: Vec<Key> = rest
            .try_collect()
            .await
            .map_err(|source| failed(&prefix, source))?;
        for key in rest {
            match self.store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(failed(&key, source)),
            }
        }
        if let Some(path) = &self.local {
            let path = path.join(name);
            match fs::remove_dir_all(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CheckpointError::Folder { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Names of checkpoints, oldest first.
#[derive(Debug)]
struct Found {
    whole: Vec<String>,
    /// What crashes and refusing disks have left.
    unfinished: Vec<String>,
}

/// Runs store calls to their end, from wherever it is called.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        // Without threads and sockets of its own, a runtime needs nothing that can be missing but
        // file descriptors.
        runtime.expect("a runtime for checkpoints").block_on(future)
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("store calls do not panic"))
}

fn folder_of(key: &Key) -> Option<String> {
    let mut parts = key.parts();
    let folder = parts.next()?;
    parts.next()?;
    checkpoint_name(folder.as_ref())
}

fn checkpoint_name(folder: &str) -> Option<String> {
    folder.starts_with("step-").then(|| folder.to_owned())
}

/// Name of the checkpoint of a step; names sort as steps do.
pub fn name_of(step: u64) -> String {
    format!("step-{step:010}")
}

fn key(name: &str, file: &str) -> Key {
    Key::from_iter([name, file])
}

fn rank_file(rank: usize) -> String {
    format!("rank-{rank}.safetensors")
}

const IDS: &str = "ids-";

fn ids_file(rank: usize) -> String {
    format!("{IDS}{rank}.safetensors")
}

const DENSE_FILE: &str = "dense.safetensors";

/// A file's bytes, for tests.
#[cfg(test)]
pub(crate) fn to_bytes(pieces: Vec<Piece>) -> Vec<u8> {
    let store = InMemory::new();
    let key = Key::from("file");
    block_on(async {
        let (_, sha256) = file::write(&store, &key, pieces).await.unwrap();
        file::read(&store, &key, &sha256).await.unwrap().to_vec()
    })
}

#[cfg(test)]
mod tests;
