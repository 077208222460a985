//! The state of the processor between two commits, as one file.
//!
//! `MQSTATE1 | version u32 | section*`, a section being `length u64 | crc32c u32 | bytes`, little
//! endian. Sections, in order: header (batch, position, feature digest, times), book, aggregates,
//! deduplication set. The file is written beside, made durable and renamed; it becomes *the*
//! state only when the table's commit names its batch.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use features::{Aggregates, FeatureSet};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wire::log::Position;

use super::{
    config::PipelineConfig,
    deduplication::Deduplicator,
    processor::{Parts, Processor},
};

const MAGIC: &[u8; 8] = b"MQSTATE1";
/// Rises when a section changes its meaning or form.
const VERSION: u32 = 7;
const SECTION_HEADER_BYTES: usize = 12;

/// Why a state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk refused.
    #[error("accessing pipeline state {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The table says that a batch was committed, and its state is gone.
    #[error(
        "the table is at batch {batch} and its state {} is missing: restore it, or process the log again into another `table`", path.display()
    )]
    Missing {
        /// The committed batch.
        batch: u64,
        /// Where its state should be.
        path: PathBuf,
    },
    /// The file is damaged, or is something else.
    #[error("pipeline state {} is damaged: {what}; restore it, or process the log again into another `table`", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not add up.
        what: String,
    },
    /// Written by another version of this program.
    #[error("pipeline state {} has format {found}, wanted {VERSION}: use the program that wrote it, or process the log again into another `table`", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// What a state says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StateHeader {
    /// The commit that it belongs to, from 1.
    pub batch: u64,
    /// Next record of each partition.
    pub position: Position,
    /// Digest of the feature spec.
    pub feature_digest: String,
    /// Everything that had arrived by then is in it, microseconds since the Unix epoch.
    pub as_of_us: i64,
    /// Time spent on all batches so far.
    pub seconds: f64,
}

/// Where the state of a batch lies.
pub fn file_of_batch(folder: &Path, batch: u64) -> PathBuf {
    folder.join(format!("{batch:06}.bin"))
}

/// Encodes a state as the bytes of its file.
pub(crate) fn encode(header: &StateHeader, processor: &Processor) -> Vec<u8> {
    let (book, aggregates, seen) = processor.state();
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    let plain = "plain data always encodes";
    push_section(&mut bytes, &postcard::to_stdvec(header).expect(plain));
    push_section(&mut bytes, &postcard::to_stdvec(book).expect(plain));
    push_section(&mut bytes, &aggregates.to_bytes());
    push_section(&mut bytes, &seen.to_bytes());
    bytes
}

fn push_section(bytes: &mut Vec<u8>, section: &[u8]) {
    bytes.extend((section.len() as u64).to_le_bytes());
    bytes.extend(crc32c::crc32c(section).to_le_bytes());
    bytes.extend(section);
}

/// Writes encoded state beside its place, durably; [`publish`] puts it there.
pub(crate) fn write_partial(folder: &Path, batch: u64, bytes: &[u8]) -> Result<(), StateError> {
    let path = partial(folder, batch);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| StateError::Io {
        path: path.clone(),
        source,
    })
}

pub(crate) fn publish(folder: &Path, batch: u64) -> Result<(), StateError> {
    let path = file_of_batch(folder, batch);
    fs::rename(partial(folder, batch), &path)
        .and_then(|()| super::sync_folder_of(&path))
        .map_err(|source| StateError::Io { path, source })
}

fn partial(folder: &Path, batch: u64) -> PathBuf {
    file_of_batch(folder, batch).with_extension("partial")
}

/// Reads the state of a committed batch.
///
/// # Errors
/// [`StateError`] names the file, what is wrong with it and the mend.
pub fn load(
    folder: &Path,
    batch: u64,
    config: &PipelineConfig,
    set: FeatureSet,
) -> Result<(StateHeader, Processor), StateError> {
    let (header, parts) = read(folder, batch)?;
    Ok((header, Processor::restore(config, set, parts)))
}

pub(crate) fn read(folder: &Path, batch: u64) -> Result<(StateHeader, Parts), StateError> {
    let path = file_of_batch(folder, batch);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::Missing { batch, path });
        }
        Err(source) => return Err(StateError::Io { path, source }),
    };
    decode(&bytes, &path)
}

fn decode(bytes: &[u8], path: &Path) -> Result<(StateHeader, Parts), StateError> {
    let corrupt = |what: String| StateError::Corrupt {
        path: path.to_owned(),
        what,
    };
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(corrupt("it does not start as a state does".to_owned()));
    };
    let Some((version, rest)) = rest.split_first_chunk::<4>() else {
        return Err(corrupt("it ends inside its first bytes".to_owned()));
    };
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(StateError::Version {
            path: path.to_owned(),
            found,
        });
    }
    let mut rest = rest;
    let mut section = |name| take_section(&mut rest, name).map_err(corrupt);
    let (header, book) = (section("header")?, section("book")?);
    let (aggregates, seen) = (section("aggregates")?, section("deduplication")?);
    let parts = Parts {
        book: parse(book, "book").map_err(corrupt)?,
        aggregates: Aggregates::from_bytes(aggregates)
            .map_err(|error| corrupt(format!("section aggregates: {error}")))?,
        seen: Deduplicator::from_bytes(seen)
            .ok_or_else(|| corrupt("section deduplication is cut short".to_owned()))?,
    };
    Ok((parse(header, "header").map_err(corrupt)?, parts))
}

fn take_section<'a>(rest: &mut &'a [u8], name: &str) -> Result<&'a [u8], String> {
    let cut = || format!("section {name} is cut short");
    let (header, bytes) = rest
        .split_first_chunk::<SECTION_HEADER_BYTES>()
        .ok_or_else(cut)?;
    let [l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3] = *header;
    let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    let wanted = u32::from_le_bytes([c0, c1, c2, c3]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (section, after) = bytes.split_at_checked(length).ok_or_else(cut)?;
    let found = crc32c::crc32c(section);
    if found != wanted {
        return Err(format!(
            "section {name} has checksum {found:08x}, wanted {wanted:08x}"
        ));
    }
    *rest = after;
    Ok(section)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|error| format!("section {name}: {error}"))
}
