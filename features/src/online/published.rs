//! What was last written to Redis, so that only what changed is written again.
//!
//! `MQPUBL01 | epoch u64 | generation u64 | (group u32 | id u64 | hash u64)*`, little endian, by rising
//! key. The file is removed before anything is written and put back once the version serves: after a
//! writer that died, or one from elsewhere, it is missing or of another version, and all is written.

use std::{collections::HashMap, fs, io, path::Path};

use super::{OnlineError, Version, io_error};
use crate::EntityKey;

const MAGIC: &[u8; 8] = b"MQPUBL01";
const ENTRY_BYTES: usize = 20;

/// XXH64 of each entity's packed state.
pub(super) type Hashes = HashMap<EntityKey, u64>;

/// What was written of a version; `None` if that is not known.
pub(super) fn read(path: &Path, version: &Version) -> Result<Option<Hashes>, OnlineError> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse(&bytes, version)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path)(source)),
    }
}

/// Forgets it, before something else is written.
pub(super) fn remove(path: &Path) -> Result<(), OnlineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

fn parse(bytes: &[u8], version: &Version) -> Option<Hashes> {
    let (epoch, bytes) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (generation, bytes) = bytes.split_first_chunk()?;
    let is_of = u64::from_le_bytes(*epoch) == version.epoch
        && u64::from_le_bytes(*generation) == version.generation;
    if !is_of || bytes.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let entries = bytes.chunks_exact(ENTRY_BYTES).map(|entry| {
        let (group, rest) = entry.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let key = EntityKey {
            group: u32::from_le_bytes(*group),
            id: u64::from_le_bytes(*id),
        };
        Some((key, u64::from_le_bytes(*rest.first_chunk()?)))
    });
    entries.collect()
}

/// Puts down what was written of a version that serves now.
pub(super) fn put(path: &Path, version: &Version, hashes: &Hashes) -> Result<(), OnlineError> {
    let mut bytes = Vec::with_capacity(24 + hashes.len() * ENTRY_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(version.epoch.to_le_bytes());
    bytes.extend(version.generation.to_le_bytes());
    for (key, hash) in hashes {
        bytes.extend(key.group.to_le_bytes());
        bytes.extend(key.id.to_le_bytes());
        bytes.extend(hash.to_le_bytes());
    }
    let beside = path.with_extension("partial");
    fs::write(&beside, bytes).map_err(io_error(&beside))?;
    fs::rename(&beside, path).map_err(io_error(path))
}
