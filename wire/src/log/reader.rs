//! Reads one partition in order.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{HEADER_BYTES, LogError, MAX_RECORD_BYTES, segments};

/// One record of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the partition, from 0.
    pub offset: u64,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// Iterates a partition's records from an offset to the end that stood when it got there.
#[derive(Debug)]
pub struct SegmentReader {
    segments: std::vec::IntoIter<(u64, PathBuf)>,
    current: Option<Segment>,
    next_offset: u64,
    failed: bool,
}

impl SegmentReader {
    /// Opens `root/partition` so that the first record has offset `from`.
    ///
    /// # Errors
    /// [`LogError::Gap`] if `from` is neither held nor the end; [`LogError::Corrupt`] if a
    /// record before `from` in its segment is damaged; [`LogError::Io`] if the disk refuses.
    pub fn open(root: &Path, partition: &str, from: u64) -> Result<Self, LogError> {
        let folder = root.join(partition);
        let mut all = segments(&folder)?;
        let first = all.first().map_or(0, |(first, _)| *first);
        let start = all
            .partition_point(|(first, _)| *first <= from)
            .saturating_sub(1);
        let kept = all.split_off(start.min(all.len()));
        let mut reader = Self {
            next_offset: kept.first().map_or(0, |(first, _)| *first),
            segments: kept.into_iter(),
            current: None,
            failed: false,
        };
        let gap = |end| LogError::Gap {
            partition: folder.display().to_string(),
            wanted: from,
            first,
            end,
        };
        if from < first {
            return Err(gap(first));
        }
        while reader.next_offset < from {
            if reader.read_next()?.is_none() {
                return Err(gap(reader.next_offset));
            }
        }
        Ok(reader)
    }

    /// The offset of the record that the next call would give.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    fn read_next(&mut self) -> Result<Option<Record>, LogError> {
        loop {
            if self.current.is_none() {
                let Some((first, path)) = self.segments.next() else {
                    return Ok(None);
                };
                if first != self.next_offset {
                    let what = format!("it starts at offset {first}, wanted {}", self.next_offset);
                    return Err(LogError::Corrupt {
                        path,
                        byte: 0,
                        what,
                    });
                }
                self.current = Some(Segment::open(path)?);
            }
            let is_last = self.segments.len() == 0;
            if let Some(segment) = &mut self.current {
                if let Some(payload) = segment.read_record(is_last)? {
                    let offset = self.next_offset;
                    self.next_offset += 1;
                    return Ok(Some(Record { offset, payload }));
                }
                if is_last {
                    return Ok(None);
                }
            }
            self.current = None;
        }
    }
}

impl Iterator for SegmentReader {
    type Item = Result<Record, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read_next().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// One segment file, read from its start.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: BufReader<File>,
    /// Where the next record starts.
    pub(super) byte: u64,
}

impl Segment {
    pub(super) fn open(path: PathBuf) -> Result<Self, LogError> {
        let file = File::open(&path).map_err(|error| LogError::io(&path, error))?;
        Ok(Self {
            path,
            file: BufReader::with_capacity(1 << 18, file),
            byte: 0,
        })
    }

    /// The next payload, or `None` at the end. A torn record is an end only if `is_last`.
    pub(super) fn read_record(&mut self, is_last: bool) -> Result<Option<Vec<u8>>, LogError> {
        match self.try_record() {
            Ok(Some(payload)) => {
                self.byte += (HEADER_BYTES + payload.len()) as u64;
                Ok(Some(payload))
            }
            Ok(None) => Ok(None),
            Err(Damage::Torn) if is_last => {
                // The writer may still be at it: stand before the record, so that it is read
                // whole when asked again.
                let back = self.file.seek(SeekFrom::Start(self.byte));
                back.map_err(|error| LogError::io(&self.path, error))?;
                Ok(None)
            }
            Err(Damage::Torn) => Err(self.corrupt("the record is cut short".to_owned())),
            Err(Damage::Bad(what)) => Err(self.corrupt(what)),
            Err(Damage::Io(error)) => Err(LogError::io(&self.path, error)),
        }
    }

    fn try_record(&mut self) -> Result<Option<Vec<u8>>, Damage> {
        let mut header = [0; HEADER_BYTES];
        match read_up_to(&mut self.file, &mut header)? {
            0 => return Ok(None),
            HEADER_BYTES => {}
            _ => return Err(Damage::Torn),
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let wanted = u32::from_le_bytes([c0, c1, c2, c3]);
        if length > MAX_RECORD_BYTES {
            return Err(Damage::Bad(format!(
                "a length of {length} bytes is above {MAX_RECORD_BYTES}"
            )));
        }
        let mut payload = vec![0; length];
        if read_up_to(&mut self.file, &mut payload)? < length {
            return Err(Damage::Torn);
        }
        let found = crc32c::crc32c(&payload);
        if found != wanted {
            return Err(Damage::Bad(format!(
                "the checksum is {found:08x}, wanted {wanted:08x}"
            )));
        }
        Ok(Some(payload))
    }

    fn corrupt(&self, what: String) -> LogError {
        LogError::Corrupt {
            path: self.path.clone(),
            byte: self.byte,
            what,
        }
    }
}

enum Damage {
    Torn,
    Bad(String),
    Io(io::Error),
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Fills `buffer` as far as the file goes; returns the number of bytes read.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
