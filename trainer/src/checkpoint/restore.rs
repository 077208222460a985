//! Reading checkpoints, by any number of ranks.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;

use super::{
    CheckpointError, Checkpoints, DENSE_FILE, Folder, IDS, MANIFEST, Manifest, VERSION, block_on,
    file, key, name_of, save::agree,
};
use crate::{collective::ProcessGroup, sharding::ShardSpec};

/// A checkpoint whose files, as far as this rank needs them, are whole and in memory.
#[derive(Debug)]
pub struct Restored {
    /// Name of the checkpoint.
    pub name: String,
    /// What it consists of.
    pub manifest: Manifest,
    /// Parts of tables.
    pub tables: Vec<RestoredFile>,
    /// Ids of dynamic tables, of all ranks.
    pub ids: Vec<RestoredFile>,
    /// Weights and optimizer state of the network.
    pub dense: RestoredFile,
}

impl Restored {
    /// Where the run stood.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if it is the state of something else.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S, CheckpointError> {
        S::deserialize(&self.manifest.state).map_err(|error| self.damaged(error.to_string()))
    }

    /// It is whole and still not to be used.
    pub(crate) fn damaged(&self, problem: String) -> CheckpointError {
        let key = self.name.clone();
        CheckpointError::Damaged { key, problem }
    }
}

/// A file in memory.
#[derive(Debug)]
pub struct RestoredFile {
    /// What it holds of tables.
    pub shards: Vec<ShardSpec>,
    bytes: Bytes,
}

impl RestoredFile {
    /// Its tensors.
    pub fn tensors(&self) -> SafeTensors<'_> {
        // It was looked at when it was read.
        SafeTensors::deserialize(&self.bytes).expect("a file that was checked")
    }
}

impl<G: ProcessGroup + 'static> Checkpoints<G> {
    /// Reads the newest checkpoint that is whole for all ranks, or none. A damaged one is told
    /// and passed over.
    ///
    /// # Errors
    /// [`CheckpointError`], also when there are checkpoints and all are damaged.
    pub fn latest(
        &self,
        group: &mut impl ProcessGroup,
        needs: impl Fn(&ShardSpec) -> bool + Sync,
    ) -> Result<Option<Restored>, CheckpointError> {
        let listed = match group.rank() {
            0 => block_on(self.folder().find()).map(|found| found.whole),
            _ => Ok(Vec::new()),
        };
        let mut names = agree(group, listed)?.swap_remove(0);
        while let Some(name) = names.pop() {
            match self.read(&name, group, &needs) {
                Ok(restored) => return Ok(Some(restored)),
                Err(
                    error @ (CheckpointError::Collective(_) | CheckpointError::OtherRun { .. }),
                ) => return Err(error),
                Err(error) if names.is_empty() => return Err(error),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        error,
                        name,
                        "checkpoint cannot be used; taking the one before"
                    );
                }
            }
        }
        Ok(None)
    }

    /// Reads the checkpoint of a step.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn of_step(
        &self,
        step: u64,
        group: &mut impl ProcessGroup,
        needs: impl Fn(&ShardSpec) -> bool + Sync,
    ) -> Result<Restored, CheckpointError> {
        self.read(&name_of(step), group, &needs)
    }

    fn read(
        &self,
        name: &str,
        group: &mut impl ProcessGroup,
        needs: &(impl Fn(&ShardSpec) -> bool + Sync),
    ) -> Result<Restored, CheckpointError> {
        let mine = block_on(self.folder().fetch(name, needs));
        let (told, restored) = match mine {
            Ok(restored) => (Ok(()), Some(restored)),
            Err(error) => (Err(error), None),
        };
        agree(group, told)?;
        // An error of this rank was told, and came back.
        let restored = restored.expect("a checkpoint where there is no error");
        if restored.manifest.run_digest == self.run_digest() {
            return Ok(restored);
        }
        Err(CheckpointError::OtherRun {
            name: name.to_owned(),
            found: restored.manifest.run_digest,
            wanted: self.run_digest().to_owned(),
        })
    }
}

impl Folder {
    /// Reads a checkpoint's manifest, and the files that are needed here.
    async fn fetch(
        &self,
        name: &str,
        needs: &(impl Fn(&ShardSpec) -> bool + Sync),
    ) -> Result<Restored, CheckpointError> {
        let store = &*self.store;
        let key_of_manifest = key(name, MANIFEST);
        let damaged = |key: String, problem| CheckpointError::Damaged { key, problem };
        let failed = |source| CheckpointError::Store {
            action: "reading checkpoint",
            key: key_of_manifest.to_string(),
            source,
        };
        let bytes = store.get(&key_of_manifest).await.map_err(failed)?;
        let bytes = bytes.bytes().await.map_err(failed)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(key_of_manifest.to_string(), error.to_string()))?;
        if manifest.version != VERSION {
            let problem = format!("it has version {}, wanted {VERSION}", manifest.version);
            return Err(damaged(key_of_manifest.to_string(), problem));
        }
        let (mut tables, mut ids, mut dense) = (Vec::new(), Vec::new(), None);
        for record in &manifest.files {
            // What is small, and cut otherwise than tables are, is read by all.
            let (is_dense, is_ids) = (record.name == DENSE_FILE, record.name.starts_with(IDS));
            if !is_dense && !is_ids && !record.shards.iter().any(needs) {
                continue;
            }
            let file = RestoredFile {
                bytes: file::read(store, &key(name, &record.name), &record.sha256).await?,
                shards: record.shards.clone(),
            };
            if is_dense {
                dense = Some(file);
            } else if is_ids {
                ids.push(file);
            } else {
                tables.push(file);
            }
        }
        let dense = dense.ok_or_else(|| {
            damaged(
                key_of_manifest.to_string(),
                format!("it names no {DENSE_FILE}"),
            )
        })?;
        Ok(Restored {
            name: name.to_owned(),
            manifest,
            tables,
            ids,
            dense,
        })
    }
}
