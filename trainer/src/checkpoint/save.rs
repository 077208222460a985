//! Writing checkpoints beside the training.

use std::thread::JoinHandle;

use object_store::ObjectStoreExt;

use super::{
    CheckpointConfig, CheckpointError, DENSE_FILE, FileRecord, Folder, Found, MANIFEST, Manifest,
    Piece, VERSION, block_on, file, ids_file, key, name_of, rank_file,
};
use crate::{collective::ProcessGroup, sharding::ShardSpec};

/// What a rank saves; a copy, so that training goes on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Steps so far.
    pub step: u64,
    /// Parts of tables that this rank saves; none of a model without tables.
    pub shards: Vec<ShardSpec>,
    /// Their weights and optimizer state.
    pub tables: Vec<Piece>,
    /// Ids of dynamic tables that this rank keeps; empty where there are none.
    pub ids: Vec<Piece>,
    /// Weights and optimizer state of the network; rank 0 writes them.
    pub dense: Vec<Piece>,
    /// Where the run stands; rank 0 writes it.
    pub state: serde_json::Value,
}

/// Writes a run's checkpoints.
#[derive(Debug)]
pub struct Checkpoints<G> {
    folder: Folder,
    config: CheckpointConfig,
    run_digest: String,
    writer: Writer<G>,
}

#[derive(Debug)]
enum Writer<G> {
    Idle(G),
    Busy(JoinHandle<(G, Result<(), CheckpointError>)>),
    /// The thread that wrote has panicked.
    Gone,
}

impl<G: ProcessGroup + 'static> Checkpoints<G> {
    /// For a run; `group` is used by the writing thread alone.
    pub fn new(folder: Folder, config: CheckpointConfig, run_digest: String, group: G) -> Self {
        Self {
            folder,
            config,
            run_digest,
            writer: Writer::Idle(group),
        }
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What checkpoints of this run must have.
    pub(super) fn run_digest(&self) -> &str {
        &self.run_digest
    }

    /// Begins to write a checkpoint; waits for the one before it. `spare` is a checkpoint that is
    /// kept however old it is.
    ///
    /// # Errors
    /// [`CheckpointError`] of the checkpoint before.
    pub fn save(&mut self, snapshot: Snapshot, spare: Option<u64>) -> Result<(), CheckpointError> {
        let before = self.wait();
        if let Writer::Idle(mut group) = std::mem::replace(&mut self.writer, Writer::Gone) {
            let (folder, keep) = (self.folder.clone(), self.config.keep.max(1));
            let run_digest = self.run_digest.clone();
            self.writer = Writer::Busy(std::thread::spawn(move || {
                let job = Job {
                    folder,
                    keep,
                    run_digest,
                    spare: spare.map(name_of),
                };
                let result = job.run(snapshot, &mut group);
                (group, result)
            }));
        }
        before
    }

    /// Whether one is due after this step.
    pub fn is_due(&self, step: u64) -> bool {
        let every = self.config.every_steps;
        every > 0 && step.is_multiple_of(every)
    }

    /// As [`Self::save`]; an error of the one before is only told, for a run goes on without one between
    /// two.
    pub fn save_beside(&mut self, snapshot: Snapshot, spare: Option<u64>) {
        if let Err(error) = self.save(snapshot, spare) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "a checkpoint was not written");
        }
    }

    /// Saves what the run cannot do without, and waits for it.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn save_now(
        &mut self,
        snapshot: Snapshot,
        spare: Option<u64>,
    ) -> Result<(), CheckpointError> {
        self.save_beside(snapshot, spare);
        self.wait()
    }

    /// Removes what another machine would go on with, when the run is done: a later one of the same
    /// configuration is another one.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn clear_remote(&self) -> Result<(), CheckpointError> {
        match self.config.url {
            Some(_) => self.folder.clear(),
            None => Ok(()),
        }
    }

    /// Whether something that was begun is not written yet.
    pub fn is_writing(&self) -> bool {
        matches!(&self.writer, Writer::Busy(thread) if !thread.is_finished())
    }

    /// Waits until what was begun is written, on all ranks.
    ///
    /// # Errors
    /// [`CheckpointError`].
    ///
    /// # Panics
    /// If the writing thread has panicked.
    pub fn wait(&mut self) -> Result<(), CheckpointError> {
        match std::mem::replace(&mut self.writer, Writer::Gone) {
            Writer::Idle(group) => {
                self.writer = Writer::Idle(group);
                Ok(())
            }
            Writer::Busy(thread) => {
                let (group, result) = thread.join().expect("the checkpoint's thread");
                self.writer = Writer::Idle(group);
                result
            }
            Writer::Gone => panic!("the checkpoint's thread has panicked before"),
        }
    }
}

struct Job {
    folder: Folder,
    keep: usize,
    run_digest: String,
    spare: Option<String>,
}

impl Job {
    /// Writes this rank's files; rank 0 commits when all have written theirs.
    fn run<G: ProcessGroup>(
        &self,
        snapshot: Snapshot,
        group: &mut G,
    ) -> Result<(), CheckpointError> {
        let name = name_of(snapshot.step);
        let (step, state) = (snapshot.step, snapshot.state.clone());
        let written = block_on(self.write(&name, snapshot, group.rank()));
        let all = agree(group, written)?;
        let committed = match group.rank() {
            0 => {
                let manifest = Manifest {
                    version: VERSION,
                    run_digest: self.run_digest.clone(),
                    step,
                    world_size: group.world_size(),
                    files: all.concat(),
                    state,
                };
                block_on(self.commit(&name, &manifest))
            }
            _ => Ok(()),
        };
        agree(group, committed)?;
        Ok(())
    }

    async fn write(
        &self,
        name: &str,
        snapshot: Snapshot,
        rank: usize,
    ) -> Result<Vec<FileRecord>, CheckpointError> {
        let mut files = Vec::new();
        if !snapshot.shards.is_empty() {
            files.push((rank_file(rank), snapshot.shards, snapshot.tables));
        }
        if !snapshot.ids.is_empty() {
            files.push((ids_file(rank), Vec::new(), snapshot.ids));
        }
        if rank == 0 {
            files.push((DENSE_FILE.to_owned(), Vec::new(), snapshot.dense));
        }
        let mut records = Vec::new();
        for (file, shards, pieces) in files {
            let (bytes, sha256) =
                file::write(&*self.folder.store, &key(name, &file), pieces).await?;
            records.push(FileRecord {
                name: file,
                bytes,
                sha256,
                shards,
            });
        }
        Ok(records)
    }

    async fn commit(&self, name: &str, manifest: &Manifest) -> Result<(), CheckpointError> {
        let key = key(name, MANIFEST);
        // A manifest is plain text and numbers, which JSON can always say.
        let json = serde_json::to_vec_pretty(manifest).expect("a manifest is JSON");
        let put = self.folder.store.put(&key, json.into()).await;
        put.map_err(|source| CheckpointError::Store {
            action: "committing checkpoint",
            key: key.to_string(),
            source,
        })?;
        let Found { whole, unfinished } = self.folder.find().await?;
        let old = &whole[..whole.len().saturating_sub(self.keep)];
        let old = old.iter().filter(|old| self.spare.as_ref() != Some(*old));
        // All ranks are here: nobody finishes another one.
        for name in old.chain(&unfinished) {
            self.folder.remove(name).await?;
        }
        Ok(())
    }
}

/// Tells all ranks what came of each rank's part; an error of one is an error of all.
pub(super) fn agree<G: ProcessGroup, T: serde::Serialize + serde::de::DeserializeOwned>(
    group: &mut G,
    mine: Result<T, CheckpointError>,
) -> Result<Vec<T>, CheckpointError> {
    let said = match &mine {
        Ok(value) => serde_json::to_vec(&Ok::<_, String>(value)),
        Err(error) => serde_json::to_vec(&Err::<T, _>(chain(error))),
    };
    // What is said here is plain text and numbers, which JSON can always say.
    let all = group.all_gather_v(&said.expect("an answer is JSON"))?;
    mine?;
    let mut values = Vec::new();
    for (rank, said) in all.iter().enumerate() {
        let value: Result<T, String> = serde_json::from_slice(said)
            .unwrap_or_else(|error| Err(format!("its answer cannot be read: {error}")));
        values.push(value.map_err(|reason| CheckpointError::Rank { rank, reason })?);
    }
    Ok(values)
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
