//! Appends to one partition.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{
    HEADER_BYTES, LogError, LogWriter, MAX_RECORD_BYTES, SEGMENT_BYTES, reader::Segment,
    segment_path, segments,
};

/// The one writer of a partition; the lock lasts as long as the value.
#[derive(Debug)]
pub struct SegmentWriter {
    folder: PathBuf,
    _lock: File,
    path: PathBuf,
    file: BufWriter<File>,
    segment_bytes: u64,
    next_offset: u64,
}

impl SegmentWriter {
    /// Opens `root/partition` for appending, makes it if missing, and cuts off a record that a
    /// crash left half written.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another writer holds it; [`LogError::Corrupt`] if the last
    /// segment is damaged before its end; [`LogError::BadName`]; [`LogError::Io`].
    pub fn open(root: &Path, partition: &str) -> Result<Self, LogError> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if partition.is_empty() || !partition.chars().all(valid) {
            return Err(LogError::BadName {
                name: partition.to_owned(),
            });
        }
        let folder = root.join(partition);
        fs::create_dir_all(&folder).map_err(|error| LogError::io(&folder, error))?;
        let lock = lock(&folder)?;

        let (first, path) = segments(&folder)?
            .pop()
            .unwrap_or_else(|| (0, segment_path(&folder, 0)));
        let (records, bytes) = if path.exists() {
            measure(&path)?
        } else {
            (0, 0)
        };
        let file = open_at(&path, bytes)?;
        Ok(Self {
            folder,
            _lock: lock,
            path,
            file,
            segment_bytes: bytes,
            next_offset: first + records,
        })
    }

    /// Appends one record and returns its offset. It is durable after the next [`LogWriter::sync`].
    ///
    /// # Errors
    /// [`LogError::TooLarge`]; [`LogError::Io`], after which the writer must be opened anew.
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, LogError> {
        if payload.len() > MAX_RECORD_BYTES {
            return Err(LogError::TooLarge {
                bytes: payload.len(),
            });
        }
        if self.segment_bytes >= SEGMENT_BYTES {
            self.roll()?;
        }
        // Lossless: the length is at most MAX_RECORD_BYTES.
        let length = (payload.len() as u32).to_le_bytes();
        let checksum = crc32c::crc32c(payload).to_le_bytes();
        [length.as_slice(), checksum.as_slice(), payload]
            .into_iter()
            .try_for_each(|part| self.file.write_all(part))
            .map_err(|error| LogError::io(&self.path, error))?;
        self.segment_bytes += (HEADER_BYTES + payload.len()) as u64;
        self.next_offset += 1;
        Ok(self.next_offset - 1)
    }

    /// The offset that the next record will get.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    fn roll(&mut self) -> Result<(), LogError> {
        self.sync()?;
        self.path = segment_path(&self.folder, self.next_offset);
        self.file = open_at(&self.path, 0)?;
        self.segment_bytes = 0;
        Ok(())
    }
}

impl LogWriter for SegmentWriter {
    /// The partition is the writer's: `key` has no say.
    fn append_keyed(&mut self, _key: &str, payload: &[u8]) -> Result<(), LogError> {
        self.append(payload).map(drop)
    }

    /// Does not wait for the disk.
    fn flush(&mut self) -> Result<(), LogError> {
        self.file
            .flush()
            .map_err(|error| LogError::io(&self.path, error))
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_data()
            .map_err(|error| LogError::io(&self.path, error))
    }
}

fn lock(folder: &Path) -> Result<File, LogError> {
    let path = folder.join("writer.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|error| LogError::io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked { path }),
        Err(TryLockError::Error(error)) => Err(LogError::io(&path, error)),
    }
}

/// Whole records of the last segment, and the bytes they take.
fn measure(path: &Path) -> Result<(u64, u64), LogError> {
    let mut segment = Segment::open(path.to_owned())?;
    let mut records = 0;
    while segment.read_record(true)?.is_some() {
        records += 1;
    }
    Ok((records, segment.byte))
}

/// Opens a segment, cut to `bytes`, for appending.
fn open_at(path: &Path, bytes: u64) -> Result<BufWriter<File>, LogError> {
    let open = || {
        // Append mode, so that every write lands at the end that `set_len` fixed.
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(bytes)?;
        Ok(file)
    };
    let file = open().map_err(|error| LogError::io(path, error))?;
    Ok(BufWriter::with_capacity(1 << 18, file))
}
