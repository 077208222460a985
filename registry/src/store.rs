//! The registry on an object store.
//!
//! ```text
//! artifacts/<digest>/files/<path>       the bytes
//! artifacts/<digest>/manifest.json      the Artifact; written last, so it stands for a whole one
//! published/<sequence>.json             kind and digest in the order of publishing
//! stages/<digest>/<number>.json         stages in the order they were set
//! judgements/<digest>/<number>.json     what the gate said, in the order of asking
//! channels/<name>/<generation>.json     the Channel at each generation
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem, path::Path as Key,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    Artifact, Channel, Digest, Draft, FileEntry, Kind, RegistryError, Target,
    artifact::content_digest,
    channel::{check_name, check_shares},
};

/// Files move in pieces of this size, in bytes.
const CHUNK_BYTES: u64 = 8 << 20;

/// One entry of the order of publishing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    kind: Kind,
    digest: Digest,
}

/// Artifacts and channels on an object store.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Arc<dyn ObjectStore>,
    root: PathBuf,
}

/// Runs a registry call to its end from a program that is not asynchronous.
///
/// # Panics
/// When called from inside an asynchronous runtime: await there instead.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

impl Registry {
    /// Opens the registry in a local folder; a missing folder is made.
    ///
    /// # Errors
    /// [`RegistryError::Io`] or [`RegistryError::Store`] if the folder cannot be used.
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        fs::create_dir_all(root).map_err(|source| RegistryError::Io {
            path: root.to_owned(),
            source,
        })?;
        let store =
            LocalFileSystem::new_with_prefix(root).map_err(|source| RegistryError::Store {
                what: root.display().to_string(),
                source,
            })?;
        Ok(Self {
            store: Arc::new(store),
            root: root.to_owned(),
        })
    }

    /// Publishes the files of a draft. The same content published again is the same artifact and
    /// becomes the newest of its kind; figures and labels stay those of the first time, and files
    /// that were damaged or lost since are mended.
    ///
    /// # Errors
    /// [`RegistryError::Empty`]; [`RegistryError::Io`] if a file cannot be read;
    /// [`RegistryError::Store`].
    pub async fn publish(&self, draft: Draft) -> Result<Artifact, RegistryError> {
        let mut files = BTreeMap::new();
        for name in file_names(&draft.dir)? {
            files.insert(name.clone(), hash_file(&draft.dir.join(name))?);
        }
        if files.is_empty() {
            return Err(RegistryError::Empty { path: draft.dir });
        }
        let digest = content_digest(draft.kind, &files, &draft.parents);
        for (name, wanted) in &files {
            match self.check_file(&digest, name, wanted) {
                Err(RegistryError::MissingFile { .. } | RegistryError::Corrupt { .. }) => {
                    self.upload(&draft.dir.join(name), &file_key(&digest, name))
                        .await?;
                }
                checked => checked?,
            }
        }
        let artifact = match self.get(&digest).await {
            Ok(known) => known,
            Err(RegistryError::NotFound { .. }) => {
                let Draft {
                    kind,
                    parents,
                    metrics,
                    labels,
                    ..
                } = draft;
                let published_us = now_us();
                let artifact = Artifact {
                    digest,
                    kind,
                    files,
                    parents,
                    metrics,
                    labels,
                    published_us,
                };
                // A second publisher of the same content may have been faster: both are right.
                self.create(&manifest_key(&artifact.digest), &artifact)
                    .await?;
                artifact
            }
            Err(error) => return Err(error),
        };
        self.publish_again(&artifact).await?;
        Ok(artifact)
    }

    /// Makes an artifact the newest of its kind, as publishing the same content again does.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn publish_again(&self, artifact: &Artifact) -> Result<(), RegistryError> {
        let published = Published {
            kind: artifact.kind,
            digest: artifact.digest.clone(),
        };
        self.append("published", &published).await
    }

    /// One artifact's record.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Record`]; [`RegistryError::Store`].
    pub async fn get(&self, digest: &Digest) -> Result<Artifact, RegistryError> {
        let found = self.read(&manifest_key(digest)).await?;
        found.ok_or_else(|| RegistryError::NotFound {
            digest: digest.clone(),
        })
    }

    /// Artifacts in the order of publishing, oldest first; one published twice stands at its
    /// last place.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn list(&self, kind: Option<Kind>) -> Result<Vec<Artifact>, RegistryError> {
        let mut digests: Vec<Digest> = Vec::new();
        for key in self.keys("published").await? {
            let Some(entry) = self.read::<Published>(&key).await? else {
                continue;
            };
            if kind.is_none_or(|kind| kind == entry.kind) {
                digests.retain(|known| *known != entry.digest);
                digests.push(entry.digest);
            }
        }
        let mut artifacts = Vec::with_capacity(digests.len());
        for digest in digests {
            artifacts.push(self.get(&digest).await?);
        }
        Ok(artifacts)
    }

    /// The artifact of a kind that was published last.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn latest(&self, kind: Kind) -> Result<Option<Artifact>, RegistryError> {
        for key in self.keys("published").await?.iter().rev() {
            match self.read::<Published>(key).await? {
                Some(entry) if entry.kind == kind => {
                    return self.get(&entry.digest).await.map(Some);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The artifact of a kind that was published last, or an error that says how to make one.
    ///
    /// # Errors
    /// [`RegistryError::NoneOfKind`], else as [`Self::get`].
    pub async fn newest(&self, kind: Kind) -> Result<Artifact, RegistryError> {
        self.latest(kind)
            .await?
            .ok_or(RegistryError::NoneOfKind { kind })
    }

    /// A local folder with the artifact's files, every digest checked.
    ///
    /// # Errors
    /// [`RegistryError::Corrupt`], [`RegistryError::MissingFile`], else as [`Self::get`].
    pub async fn fetch(&self, digest: &Digest) -> Result<PathBuf, RegistryError> {
        let artifact = self.get(digest).await?;
        for (name, wanted) in &artifact.files {
            self.check_file(digest, name, wanted)?;
        }
        Ok(self.folder(digest))
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        let artifacts = self.root.join("artifacts");
        artifacts.join(digest.as_str()).join("files")
    }

    fn check_file(
        &self,
        artifact: &Digest,
        name: &str,
        wanted: &FileEntry,
    ) -> Result<(), RegistryError> {
        let found = match hash_file(&self.folder(artifact).join(name)) {
            Err(RegistryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(RegistryError::MissingFile {
                    artifact: artifact.clone(),
                    file: name.to_owned(),
                });
            }
            found => found?,
        };
        if found == *wanted {
            return Ok(());
        }
        Err(RegistryError::Corrupt {
            artifact: artifact.clone(),
            file: name.to_owned(),
            wanted: wanted.sha256.to_string(),
            found: found.sha256.to_string(),
        })
    }

    /// A channel as it stands, or `None` before its first move.
    ///
    /// # Errors
    /// [`RegistryError::BadName`]; [`RegistryError::Record`]; [`RegistryError::Store`].
    pub async fn channel(&self, name: &str) -> Result<Option<Channel>, RegistryError> {
        check_name(name)?;
        self.last(&format!("channels/{name}")).await
    }

    /// Moves a channel from `expected_generation` (0 before its first move) to the next one.
    ///
    /// # Errors
    /// [`RegistryError::Moved`] if it stands elsewhere; [`RegistryError::Shares`];
    /// [`RegistryError::NotFound`] if a target is not in the registry; else as
    /// [`Self::channel`].
    pub async fn advance(
        &self,
        name: &str,
        expected_generation: u64,
        targets: Vec<Target>,
    ) -> Result<Channel, RegistryError> {
        check_shares(name, &targets)?;
        for target in &targets {
            self.get(&target.bundle).await?;
        }
        let found = self
            .channel(name)
            .await?
            .map_or(0, |channel| channel.generation);
        let moved = |found| RegistryError::Moved {
            name: name.to_owned(),
            expected: expected_generation,
            found,
        };
        if found != expected_generation {
            return Err(moved(found));
        }
        let generation = expected_generation + 1;
        let channel = Channel {
            name: name.to_owned(),
            generation,
            targets,
            updated_us: now_us(),
        };
        let key = Key::from(format!("channels/{name}/{generation:012}.json"));
        if !self.create(&key, &channel).await? {
            return Err(moved(generation));
        }
        Ok(channel)
    }

    /// Names of all channels.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn channels(&self) -> Result<BTreeSet<String>, RegistryError> {
        let keys = self.keys("channels").await?;
        let name = |key: &Key| Some(key.parts().nth(1)?.as_ref().to_owned());
        Ok(keys.iter().filter_map(name).collect())
    }

    /// Removes artifacts, from what stands last to what stood first: an artifact that is not whole
    /// any more is none.
    pub(crate) async fn remove(&self, digests: &BTreeSet<Digest>) -> Result<(), RegistryError> {
        for key in self.keys("published").await? {
            let entry: Option<Published> = self.read(&key).await?;
            if entry.is_some_and(|entry| digests.contains(&entry.digest)) {
                self.delete(&key).await?;
            }
        }
        for digest in digests {
            self.delete(&manifest_key(digest)).await?;
            for folder in ["artifacts", "stages", "judgements"] {
                for key in self.keys(&format!("{folder}/{digest}")).await? {
                    self.delete(&key).await?;
                }
            }
            // On a local disk empty folders are left, which stand for nothing.
            let folder = self.root.join("artifacts").join(digest.as_str());
            if folder.exists() {
                let removed = fs::remove_dir_all(&folder);
                removed.map_err(|source| RegistryError::Io {
                    path: folder,
                    source,
                })?;
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<(), RegistryError> {
        match self.store.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(store_error(key, source)),
        }
    }

    /// Writes a record under the next free number of a folder.
    pub(crate) async fn append(
        &self,
        folder: &str,
        value: &impl Serialize,
    ) -> Result<(), RegistryError> {
        loop {
            let last = self
                .keys(folder)
                .await?
                .last()
                .and_then(number)
                .unwrap_or(0);
            let key = Key::from(format!("{folder}/{:012}.json", last + 1));
            if self.create(&key, value).await? {
                return Ok(());
            }
        }
    }

    /// Writes a record unless one is there; says whether it wrote.
    async fn create(&self, key: &Key, value: &impl Serialize) -> Result<bool, RegistryError> {
        let bytes = serde_json::to_vec_pretty(value).map_err(|source| RegistryError::Record {
            what: key.to_string(),
            source,
        })?;
        match self
            .store
            .put_opts(key, PutPayload::from(bytes), PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(store_error(key, source)),
        }
    }

    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        key: &Key,
    ) -> Result<Option<T>, RegistryError> {
        let result = match self.store.get(key).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(store_error(key, source)),
        };
        let bytes = result
            .bytes()
            .await
            .map_err(|source| store_error(key, source))?;
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|source| RegistryError::Record {
            what: key.to_string(),
            source,
        })
    }

    /// The newest record of a folder, or `None` if it is empty.
    pub(crate) async fn last<T: DeserializeOwned>(
        &self,
        folder: &str,
    ) -> Result<Option<T>, RegistryError> {
        match self.keys(folder).await?.last() {
            Some(key) => self.read(key).await,
            None => Ok(None),
        }
    }

    /// Keys below `folder`, sorted; numbers are zero-padded, so the last is the newest.
    pub(crate) async fn keys(&self, folder: &str) -> Result<Vec<Key>, RegistryError> {
        let prefix = Key::from(folder);
        let listing = self
            .store
            .list(Some(&prefix))
            .map_ok(|object| object.location);
        let mut keys: Vec<Key> = listing
            .try_collect()
            .await
            .map_err(|source| store_error(&prefix, source))?;
        keys.sort();
        Ok(keys)
    }

    async fn upload(&self, path: &Path, key: &Key) -> Result<(), RegistryError> {
        let failed = |source| store_error(key, source);
        let mut upload = self.store.put_multipart(key).await.map_err(failed)?;
        let mut file = open(path)?;
        loop {
            let chunk = read_chunk(&mut file, path)?;
            if chunk.is_empty() {
                break;
            }
            upload
                .put_part(PutPayload::from(chunk))
                .await
                .map_err(failed)?;
        }
        upload.complete().await.map_err(failed)?;
        Ok(())
    }
}

fn store_error(key: &Key, source: object_store::Error) -> RegistryError {
    RegistryError::Store {
        what: key.to_string(),
        source,
    }
}

fn manifest_key(digest: &Digest) -> Key {
    Key::from(format!("artifacts/{digest}/manifest.json"))
}

fn file_key(digest: &Digest, name: &str) -> Key {
    Key::from(format!("artifacts/{digest}/files/{name}"))
}

/// The number that a record's name starts with.
fn number(key: &Key) -> Option<u64> {
    key.filename()?.get(..12)?.parse().ok()
}

/// Relative paths of all files below `dir`, sorted, with `/` between folders.
fn file_names(dir: &Path) -> Result<Vec<String>, RegistryError> {
    let mut names = Vec::new();
    let mut folders = vec![(dir.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |source| RegistryError::Io {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push((entry.path(), format!("{name}/")));
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

fn hash_file(path: &Path) -> Result<FileEntry, RegistryError> {
    let mut file = open(path)?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let chunk = read_chunk(&mut file, path)?;
        if chunk.is_empty() {
            return Ok(FileEntry {
                sha256: Digest::from_hash(hash),
                bytes,
            });
        }
        hash.update(&chunk);
        bytes += chunk.len() as u64;
    }
}

fn open(path: &Path) -> Result<fs::File, RegistryError> {
    fs::File::open(path).map_err(|source| RegistryError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The next piece of a file; empty at its end.
fn read_chunk(file: &mut fs::File, path: &Path) -> Result<Vec<u8>, RegistryError> {
    let mut chunk = Vec::new();
    let read = file.take(CHUNK_BYTES).read_to_end(&mut chunk);
    read.map_err(|source| RegistryError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(chunk)
}

/// The wall clock, microseconds since the Unix epoch; a clock before 1970 is no clock, and 0.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(kind: Kind, dir: &Path) -> Draft {
        let (metrics, labels) = (BTreeMap::new(), BTreeMap::new());
        Draft {
            kind,
            dir: dir.to_owned(),
            parents: Vec::new(),
            metrics,
            labels,
        }
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(root.path()).unwrap();
        (root, registry)
    }

    #[test]
    fn what_was_published_is_fetched_whole() {
        let (_root, registry) = registry();
        let files = folder(&[("model.json", b"{}"), ("weights/a.bin", &[7; 100])]);
        let artifact = block_on(registry.publish(draft(Kind::Ctr, files.path()))).unwrap();

        let fetched = block_on(registry.fetch(&artifact.digest)).unwrap();
        assert_eq!(fs::read(fetched.join("model.json")).unwrap(), b"{}");
        assert_eq!(fs::read(fetched.join("weights/a.bin")).unwrap(), [7; 100]);
        assert_eq!(artifact.bytes(), 102);
    }

    #[test]
    fn the_same_content_is_the_same_artifact_and_lineage_tells_apart() {
        let (_root, registry) = registry();
        let files = folder(&[("model.json", b"{}")]);
        let first = block_on(registry.publish(draft(Kind::Ctr, files.path()))).unwrap();
        let again = block_on(registry.publish(draft(Kind::Ctr, files.path()))).unwrap();
        let mut child = draft(Kind::Ctr, files.path());
        child.parents.push(first.digest.clone());
        let child = block_on(registry.publish(child)).unwrap();

        assert_eq!(first, again);
        assert_ne!(first.digest, child.digest);
        let listed = block_on(registry.list(Some(Kind::Ctr))).unwrap();
        assert_eq!(listed, [again, child.clone()]);
        assert_eq!(block_on(registry.latest(Kind::Ctr)).unwrap(), Some(child));
        assert_eq!(block_on(registry.latest(Kind::Index)).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_named_with_both_digests() {
        let (_root, registry) = registry();
        let files = folder(&[("index.usearch", &[1; 64])]);
        let artifact = block_on(registry.publish(draft(Kind::Index, files.path()))).unwrap();
        let path = block_on(registry.fetch(&artifact.digest))
            .unwrap()
            .join("index.usearch");

        fs::write(&path, [1; 63]).unwrap();
        let error = block_on(registry.fetch(&artifact.digest)).unwrap_err();
        assert!(
            matches!(&error, RegistryError::Corrupt { file, .. } if file == "index.usearch"),
            "{error}"
        );

        fs::remove_file(&path).unwrap();
        let error = block_on(registry.fetch(&artifact.digest)).unwrap_err();
        assert!(
            matches!(error, RegistryError::MissingFile { .. }),
            "{error}"
        );
    }

    #[test]
    fn publishing_again_mends_damaged_and_missing_files() {
        let (_root, registry) = registry();
        let files = folder(&[
            ("a.bin", &[1; 64]),
            ("b.bin", &[2; 64]),
            ("c.bin", &[3; 64]),
        ]);
        let publish = || block_on(registry.publish(draft(Kind::Index, files.path()))).unwrap();
        let first = publish();
        let fetched = block_on(registry.fetch(&first.digest)).unwrap();
        fs::write(fetched.join("a.bin"), [1; 63]).unwrap();
        fs::remove_file(fetched.join("b.bin")).unwrap();
        block_on(registry.fetch(&first.digest)).unwrap_err();

        assert_eq!(publish(), first);
        block_on(registry.fetch(&first.digest)).unwrap();
    }

    #[test]
    fn a_channel_moves_only_from_the_generation_that_was_seen() {
        let (_root, registry) = registry();
        let files = folder(&[("bundle.json", b"{}")]);
        let bundle = block_on(registry.publish(draft(Kind::Bundle, files.path()))).unwrap();
        let targets = vec![Target {
            bundle: bundle.digest,
            share: 1.0,
        }];

        assert_eq!(block_on(registry.channel("live")).unwrap(), None);
        let first = block_on(registry.advance("live", 0, targets.clone())).unwrap();
        assert_eq!(first.generation, 1);
        let error = block_on(registry.advance("live", 0, targets.clone())).unwrap_err();
        assert!(
            matches!(
                error,
                RegistryError::Moved {
                    expected: 0,
                    found: 1,
                    ..
                }
            ),
            "{error}"
        );
        let second = block_on(registry.advance("live", 1, targets)).unwrap();
        assert_eq!(block_on(registry.channel("live")).unwrap(), Some(second));
    }

    #[test]
    fn two_writers_of_one_channel_never_both_win() {
        let (_root, registry) = registry();
        let files = folder(&[("bundle.json", b"{}")]);
        let bundle = block_on(registry.publish(draft(Kind::Bundle, files.path()))).unwrap();
        let targets = vec![Target {
            bundle: bundle.digest,
            share: 1.0,
        }];
        let wins: usize = std::thread::scope(|scope| {
            let attempt = || block_on(registry.advance("live", 0, targets.clone())).is_ok();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(attempt)).collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!(wins, 1);
    }

    #[test]
    fn shares_names_and_targets_are_checked() {
        let (_root, registry) = registry();
        let unknown = Target {
            bundle: Digest::of(b"nothing"),
            share: 1.0,
        };
        let half = Target {
            share: 0.5,
            ..unknown.clone()
        };
        let check =
            |name: &str, target: &Target| block_on(registry.advance(name, 0, vec![target.clone()]));
        assert!(matches!(
            check("live", &half),
            Err(RegistryError::Shares { .. })
        ));
        assert!(matches!(
            check("live", &unknown),
            Err(RegistryError::NotFound { .. })
        ));
        assert!(matches!(
            block_on(registry.channel("../x")),
            Err(RegistryError::BadName { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_manifest_of_any_bytes_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (root, registry) = registry();
            let digest = Digest::of(b"x");
            let manifest = root.path().join("artifacts").join(digest.as_str()).join("manifest.json");
            fs::create_dir_all(manifest.parent().unwrap()).unwrap();
            fs::write(manifest, bytes).unwrap();
            let read = block_on(registry.get(&digest));
            let refused = matches!(read, Err(RegistryError::Record { .. }));
            prop_assert!(refused, "{read:?}");
        }
    }
}
