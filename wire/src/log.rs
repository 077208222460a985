//! The event log: partitions of records, behind one trait ([`Log`]) whatever keeps them.
//!
//! [`SegmentLog`] is the embedded one: append-only segments on disk, one folder per partition. A
//! partition has one writer, which holds its lock file, and any number of readers. A record is
//! `length u32 | crc32c u32 | payload`, little endian; its offset is its number in the partition.
//! Segments are named by the offset of their first record, as in Kafka. A record that a crash
//! left half written can only stand at the end of the last segment: readers stop before it, and
//! the next writer cuts it off. Damage anywhere else is an error, never a silent gap.
//!
//! `KafkaLog`, behind the feature `kafka`, is a topic of a Kafka cluster. [`Transport`] is the
//! setting that chooses between them.

#[cfg(feature = "kafka")]
mod kafka;
mod reader;
mod transport;
mod writer;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs, io,
    path::{Path, PathBuf},
};

#[cfg(feature = "kafka")]
pub use kafka::KafkaLog;
use prost::Message;
pub use reader::{Record, SegmentReader};
pub use transport::{KafkaConfig, Transport};
pub use writer::SegmentWriter;

use crate::{events::Event, gate};

/// Bytes before each payload: length and checksum.
const HEADER_BYTES: usize = 8;

/// Largest payload that a record may have, in bytes.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// A new segment starts once the current one is this large, in bytes.
const SEGMENT_BYTES: u64 = 64 << 20;

const EXTENSION: &str = "seg";

/// Partition to the offset of the next record to read.
pub type Position = BTreeMap<String, u64>;

/// Records of one partition in order, to the end that stood when they were asked for.
pub trait Records: Iterator<Item = Result<Record, LogError>> + Debug + Send {}

impl<T: Iterator<Item = Result<Record, LogError>> + Debug + Send> Records for T {}

/// The partitions of a log by name, in its order.
pub type Partitions = Vec<(String, Box<dyn Records>)>;

/// What keeps events.
pub trait Log: Debug + Send + Sync {
    /// Every partition's name and its records from `position` on, in an order that stays; a partition
    /// that is not in `position` is read from its start.
    ///
    /// # Errors
    /// [`LogError::Gap`] if records that `position` asks for are not there, or not any more;
    /// otherwise what kept the log from being read.
    fn read(&self, position: &Position) -> Result<Partitions, LogError>;

    /// Opens the log for appending, in the name of `source`.
    ///
    /// # Errors
    /// [`LogError::Locked`] if `source` may write once only and does; otherwise what kept the log
    /// from being opened.
    fn writer(&self, source: &str) -> Result<Box<dyn LogWriter>, LogError>;

    /// Tells how far a reader's commits got, for those who watch its lag. Nothing is ever read back:
    /// the position to go on from is committed together with what was made of the records.
    fn tell_committed(&self, position: &Position);
}

/// Appends to a log.
pub trait LogWriter: Debug + Send {
    /// Appends one record, beside the others of the same `key` where the log has many partitions. It
    /// is durable after the next [`Self::sync`].
    ///
    /// # Errors
    /// [`LogError::TooLarge`]; anything else means that the writer must be opened anew, and that what
    /// was appended since the last flush may or may not be there.
    fn append_keyed(&mut self, key: &str, payload: &[u8]) -> Result<(), LogError>;

    /// Hands everything appended so far to readers: a crash of this program loses nothing of it.
    ///
    /// # Errors
    /// As [`Self::append_keyed`].
    fn flush(&mut self) -> Result<(), LogError>;

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// As [`Self::append_keyed`].
    fn sync(&mut self) -> Result<(), LogError>;

    /// Appends an event, without what names one of whom nothing personal may be kept ([`gate`]).
    ///
    /// # Errors
    /// As [`Self::append_keyed`].
    fn append_event(&mut self, event: &Event) -> Result<(), LogError> {
        let stripped = gate::stripped(event);
        let event = stripped.as_ref().unwrap_or(event);
        self.append_keyed(&event.user_id, &event.encode_to_vec())
    }
}

/// Append-only segments below a folder.
#[derive(Debug, Clone)]
pub struct SegmentLog {
    root: PathBuf,
}

impl SegmentLog {
    /// The log below `root`, which need not be there yet.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }
}

impl Log for SegmentLog {
    fn read(&self, position: &Position) -> Result<Partitions, LogError> {
        let names = partitions(&self.root)?;
        for (name, &wanted) in position.iter().filter(|(_, wanted)| **wanted > 0) {
            if !names.contains(name) {
                return Err(LogError::Gap {
                    partition: self.root.join(name).display().to_string(),
                    wanted,
                    first: 0,
                    end: 0,
                });
            }
        }
        let open = |name: String| {
            let from = position.get(&name).copied().unwrap_or(0);
            let reader = SegmentReader::open(&self.root, &name, from)?;
            Ok((name, Box::new(reader) as Box<dyn Records>))
        };
        names.into_iter().map(open).collect()
    }

    fn writer(&self, source: &str) -> Result<Box<dyn LogWriter>, LogError> {
        Ok(Box::new(SegmentWriter::open(&self.root, source)?))
    }

    /// Nobody watches: the files are there to be looked at.
    fn tell_committed(&self, _position: &Position) {}
}

/// Why the log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("accessing log file {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes inside the log do not add up.
    #[error("log segment {} is damaged at byte {byte}: {what}; restore it from a copy, or move it away to go on without it", path.display())]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Where the damaged record starts.
        byte: u64,
        /// What does not add up.
        what: String,
    },
    /// Offsets that should be there are not.
    #[error("log partition {partition} has no record {wanted}: it holds {first} to {end}")]
    Gap {
        /// The partition's folder, or its topic and number.
        partition: String,
        /// The offset asked for.
        wanted: u64,
        /// First offset held.
        first: u64,
        /// One past the last offset held.
        end: u64,
    },
    /// Another process writes this partition.
    #[error("log partition {} already has a writer: stop it, or choose another partition", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A payload above [`MAX_RECORD_BYTES`].
    #[error("a record of {bytes} bytes is above the limit of {MAX_RECORD_BYTES}")]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
    },
    /// A Kafka cluster cannot be reached, or refused.
    #[error("Kafka topic `{topic}` at {brokers}: {doing}: {why}")]
    Kafka {
        /// The configured brokers.
        brokers: String,
        /// The configured topic.
        topic: String,
        /// What was tried.
        doing: String,
        /// What was said.
        why: String,
    },
    /// A setting of the log makes no sense.
    #[error("`kafka.{key}`: {what}")]
    Setting {
        /// The key.
        key: String,
        /// What is wrong, and the mend.
        what: String,
    },
    /// Kafka is configured and not compiled in.
    #[error(
        "the event log is configured to be on Kafka, but this program was built without Kafka: build it with `--features kafka`"
    )]
    NotBuilt,
    /// A partition name that would not be one folder.
    #[error("`{name}` is not a partition name: use lower-case letters, digits, `-` and `_`")]
    BadName {
        /// The name given.
        name: String,
    },
}

impl LogError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Names of the partitions under `root`, sorted. A missing `root` has none.
///
/// # Errors
/// [`LogError::Io`] when the folder cannot be listed.
pub fn partitions(root: &Path) -> Result<Vec<String>, LogError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::io(root, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| LogError::io(root, error))?;
        if entry.path().is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// The segments of a partition as (first offset, path), in order.
fn segments(partition: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let mut found = Vec::new();
    let entries = fs::read_dir(partition).map_err(|error| LogError::io(partition, error))?;
    for entry in entries {
        let path = entry
            .map_err(|error| LogError::io(partition, error))?
            .path();
        if path
            .extension()
            .is_none_or(|extension| extension != EXTENSION)
        {
            continue;
        }
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        match first {
            Some(first) => found.push((first, path)),
            None => {
                let what = "its name is not an offset".to_owned();
                return Err(LogError::Corrupt {
                    path,
                    byte: 0,
                    what,
                });
            }
        }
    }
    found.sort();
    Ok(found)
}

fn segment_path(partition: &Path, first_offset: u64) -> PathBuf {
    partition.join(format!("{first_offset:020}.{EXTENSION}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(root: &Path, payloads: &[Vec<u8>]) {
        let mut writer = SegmentWriter::open(root, "world").unwrap();
        for payload in payloads {
            writer.append(payload).unwrap();
        }
        writer.sync().unwrap();
    }

    fn read(root: &Path, from: u64) -> Result<Vec<Vec<u8>>, LogError> {
        let reader = SegmentReader::open(root, "world", from)?;
        reader
            .map(|record| record.map(|record| record.payload))
            .collect()
    }

    fn only_segment(root: &Path) -> PathBuf {
        segments(&root.join("world")).unwrap()[0].1.clone()
    }

    proptest! {
        #[test]
        fn what_was_appended_is_read_from_any_offset(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..40),
            split in 0usize..40,
        ) {
            let root = tempfile::tempdir().unwrap();
            let split = split.min(payloads.len());
            write(root.path(), &payloads[..split]);
            write(root.path(), &payloads[split..]);
            prop_assert_eq!(&read(root.path(), 0).unwrap(), &payloads);
            prop_assert_eq!(&read(root.path(), split as u64).unwrap(), &payloads[split..]);
        }

        #[test]
        fn a_cut_at_any_byte_loses_only_the_torn_record(cut in 0usize..400) {
            let root = tempfile::tempdir().unwrap();
            let payloads: Vec<Vec<u8>> = (0u8..20).map(|i| vec![i; 10]).collect();
            write(root.path(), &payloads);
            let path = only_segment(root.path());
            let bytes = fs::read(&path).unwrap();
            let cut = cut.min(bytes.len());
            fs::write(&path, &bytes[..cut]).unwrap();

            let whole = cut / (HEADER_BYTES + 10);
            prop_assert_eq!(&read(root.path(), 0).unwrap(), &payloads[..whole]);

            write(root.path(), &[vec![99; 3]]);
            let mut expected = payloads[..whole].to_vec();
            expected.push(vec![99; 3]);
            prop_assert_eq!(&read(root.path(), 0).unwrap(), &expected);
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_and_not_an_end() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[vec![1; 50], vec![2; 50], vec![3; 50]]);
        let path = only_segment(root.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER_BYTES + 10] ^= 1;
        fs::write(&path, bytes).unwrap();

        let error = read(root.path(), 0).unwrap_err();
        assert!(
            matches!(error, LogError::Corrupt { byte: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_partition_has_one_writer() {
        let root = tempfile::tempdir().unwrap();
        let writer = SegmentWriter::open(root.path(), "world").unwrap();
        let second = SegmentWriter::open(root.path(), "world");
        assert!(matches!(second, Err(LogError::Locked { .. })));
        drop(writer);
        SegmentWriter::open(root.path(), "world").unwrap();
    }

    #[test]
    fn reading_past_the_end_is_a_gap_and_at_the_end_is_empty() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[vec![1], vec![2]]);
        assert_eq!(read(root.path(), 2).unwrap(), Vec::<Vec<u8>>::new());
        assert!(matches!(
            read(root.path(), 3),
            Err(LogError::Gap {
                wanted: 3,
                end: 2,
                ..
            })
        ));
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b", "A"] {
            let opened = SegmentWriter::open(root.path(), name);
            assert!(matches!(opened, Err(LogError::BadName { .. })), "{name}");
        }
    }
}
