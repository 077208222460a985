//! All partitions of the log as one stream, in the order of arrival.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use prost::Message;
use wire::{
    events::Event,
    log::{Log, LogError, Position, Records},
};

/// One record of the log.
#[derive(Debug, Clone)]
pub struct SourceRecord {
    /// Partition it stands in.
    pub partition: Arc<str>,
    /// Its number there.
    pub offset: u64,
    /// What was appended.
    pub payload: Vec<u8>,
    /// The payload as an event.
    pub event: Result<Event, prost::DecodeError>,
}

/// Merges partitions by ingest time; ties go by the log's order of partitions. A partition's own order is never
/// changed, and what cannot be decoded comes as soon as it is its partition's turn, so that the
/// order depends on nothing but the log and the position to start from.
#[derive(Debug)]
pub struct MergedLog {
    readers: Vec<(Arc<str>, Box<dyn Records>)>,
    heads: BinaryHeap<Reverse<Head>>,
    waiting: Vec<Option<SourceRecord>>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    ingest_time_us: i64,
    /// Its place in the log's order.
    partition: usize,
}

impl MergedLog {
    /// Opens every partition of `log` at `position`; one not named there is read from its start.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn open(log: &dyn Log, position: &Position) -> Result<Self, LogError> {
        let partitions = log.read(position)?;
        let readers: Vec<_> = partitions
            .into_iter()
            .map(|(name, records)| (Arc::from(name), records))
            .collect();
        let mut merged = Self {
            heads: BinaryHeap::new(),
            waiting: readers.iter().map(|_| None).collect(),
            readers,
        };
        for partition in 0..merged.readers.len() {
            merged.advance(partition)?;
        }
        Ok(merged)
    }

    /// The next record, or `None` at the end of every partition.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the log is damaged; [`LogError::Io`].
    pub fn next_record(&mut self) -> Result<Option<SourceRecord>, LogError> {
        let Some(Reverse(head)) = self.heads.pop() else {
            return Ok(None);
        };
        let record = self.waiting[head.partition].take();
        self.advance(head.partition)?;
        Ok(record)
    }

    fn advance(&mut self, partition: usize) -> Result<(), LogError> {
        let (name, reader) = &mut self.readers[partition];
        let Some(record) = reader.next().transpose()? else {
            return Ok(());
        };
        let event = Event::decode(record.payload.as_slice());
        let ingest_time_us = event
            .as_ref()
            .map_or(i64::MIN, |event| event.ingest_time_us);
        self.heads.push(Reverse(Head {
            ingest_time_us,
            partition,
        }));
        self.waiting[partition] = Some(SourceRecord {
            partition: Arc::clone(name),
            offset: record.offset,
            payload: record.payload,
            event,
        });
        Ok(())
    }
}

/// Records that travel together from the thread that reads to the one that processes.
const CHUNK_RECORDS: usize = 512;
/// A chunk ends after this much, for records may be large.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that may wait.
const CHUNKS: usize = 8;

/// Reads, checks and decodes on a thread of its own, some records ahead.
#[derive(Debug)]
pub struct ReadAhead {
    chunks: Receiver<Result<Vec<SourceRecord>, LogError>>,
    chunk: std::vec::IntoIter<SourceRecord>,
    reader: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// The rest of a log.
    pub fn of(mut log: MergedLog) -> Self {
        let (sender, chunks) = sync_channel(CHUNKS);
        let reader = thread::spawn(move || {
            loop {
                let (chunk, end) = match next_chunk(&mut log) {
                    Ok((chunk, end)) => (Ok(chunk), end),
                    Err(error) => (Err(error), true),
                };
                // Nobody may want it any more.
                if sender.send(chunk).is_err() || end {
                    return;
                }
            }
        });
        Self {
            chunks,
            chunk: Vec::new().into_iter(),
            reader: Some(reader),
        }
    }

    /// As [`MergedLog::next_record`].
    ///
    /// # Errors
    /// As there; records of the same chunk may be lost before it, which the next start reads again.
    pub fn next_record(&mut self) -> Result<Option<SourceRecord>, LogError> {
        loop {
            if let Some(record) = self.chunk.next() {
                return Ok(Some(record));
            }
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = chunk?.into_iter(),
                Err(_) => {
                    // It has said all, or fell, which is no end of the log.
                    if let Some(Err(panic)) = self.reader.take().map(JoinHandle::join) {
                        resume_unwind(panic);
                    }
                    return Ok(None);
                }
            }
        }
    }
}

/// Some records, and whether they are the last.
fn next_chunk(log: &mut MergedLog) -> Result<(Vec<SourceRecord>, bool), LogError> {
    let (mut chunk, mut bytes) = (Vec::with_capacity(CHUNK_RECORDS), 0);
    while chunk.len() < CHUNK_RECORDS && bytes < CHUNK_BYTES {
        let Some(record) = log.next_record()? else {
            return Ok((chunk, true));
        };
        bytes += record.payload.len();
        chunk.push(record);
    }
    Ok((chunk, false))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use wire::log::{LogWriter, SegmentLog, SegmentWriter};

    use super::*;

    fn write(root: &Path, partition: &str, ingest_times: &[i64]) {
        let mut writer = SegmentWriter::open(root, partition).unwrap();
        for (at, &ingest_time_us) in ingest_times.iter().enumerate() {
            let event = Event {
                event_id: format!("{partition}{at}"),
                ingest_time_us,
                ..Event::default()
            };
            writer.append_event(&event).unwrap();
        }
        writer.sync().unwrap();
    }

    fn ids(root: &Path, position: &Position) -> Vec<String> {
        let mut merged = MergedLog::open(&SegmentLog::at(root), position).unwrap();
        let mut ids = Vec::new();
        while let Some(record) = merged.next_record().unwrap() {
            ids.push(record.event.unwrap().event_id);
        }
        ids
    }

    #[test]
    fn partitions_merge_by_ingest_time_and_then_by_name() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "b", &[1, 5, 5]);
        write(root.path(), "a", &[2, 5, 9]);
        let expected = ["b0", "a0", "a1", "b1", "b2", "a2"];
        assert_eq!(ids(root.path(), &Position::new()), expected);
    }

    #[test]
    fn reading_on_from_any_position_gives_the_rest_in_the_same_order() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a", &[2, 5, 3, 9]);
        write(root.path(), "b", &[1, 5, 5]);
        let all = ids(root.path(), &Position::new());
        let mut merged = MergedLog::open(&SegmentLog::at(root.path()), &Position::new()).unwrap();
        let mut position = Position::new();
        for taken in 1..=all.len() {
            let record = merged.next_record().unwrap().unwrap();
            position.insert(record.partition.to_string(), record.offset + 1);
            assert_eq!(ids(root.path(), &position), all[taken..]);
        }
    }

    #[test]
    fn reading_ahead_gives_the_same_records() {
        let root = tempfile::tempdir().unwrap();
        let times: Vec<i64> = (0..3 * CHUNK_RECORDS as i64).collect();
        write(root.path(), "a", &times);
        write(root.path(), "b", &[7, 8]);
        let open = || MergedLog::open(&SegmentLog::at(root.path()), &Position::new()).unwrap();
        let (mut log, mut ahead) = (open(), ReadAhead::of(open()));
        while let Some(wanted) = log.next_record().unwrap() {
            let found = ahead.next_record().unwrap().unwrap();
            assert_eq!(
                (found.partition, found.offset),
                (wanted.partition, wanted.offset)
            );
            assert_eq!(found.event, wanted.event);
        }
        assert!(ahead.next_record().unwrap().is_none());
        // One that is not read to its end does not wait for it.
        drop(ReadAhead::of(open()));
    }

    #[test]
    fn a_partition_that_went_away_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a", &[1]);
        let position = Position::from([("a".to_owned(), 1), ("gone".to_owned(), 7)]);
        let error = MergedLog::open(&SegmentLog::at(root.path()), &position).unwrap_err();
        assert!(matches!(error, LogError::Gap { wanted: 7, .. }), "{error}");
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn a_torn_tail_is_not_yet_written() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a", &[1, 2]);
        let folder = root.path().join("a");
        let segment = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .unwrap();
        let bytes = std::fs::read(&segment).unwrap();
        std::fs::write(&segment, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(ids(root.path(), &Position::new()), ["a0"]);
    }
}
