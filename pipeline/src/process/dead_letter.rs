//! Refused events, kept with the reason.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{picture::hex, refusal::Refusal};

/// One line of a dead-letter file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Partition of the log.
    pub partition: String,
    /// Its number there.
    pub offset: u64,
    /// [`Refusal::code`].
    pub reason: String,
    /// The reason in words.
    pub message: String,
    /// The bytes as they came.
    pub payload_hex: String,
}

impl DeadLetter {
    pub(crate) fn new(partition: &str, offset: u64, payload: &[u8], refusal: &Refusal) -> Self {
        Self {
            partition: partition.to_owned(),
            offset,
            reason: refusal.code().to_owned(),
            message: refusal.to_string(),
            payload_hex: hex(payload),
        }
    }
}

/// Where the dead letters of a batch lie.
pub fn file_of_batch(folder: &Path, batch: u64) -> PathBuf {
    folder.join(format!("{batch:06}.jsonl"))
}

/// Writes the dead letters of one batch. Nothing is seen under the final name before
/// [`Self::finish`]; a batch without dead letters makes no file.
#[derive(Debug)]
pub(crate) struct DeadLetterWriter {
    path: PathBuf,
    open: Option<BufWriter<File>>,
}

impl DeadLetterWriter {
    pub(crate) fn new(folder: &Path, batch: u64) -> Self {
        Self {
            path: file_of_batch(folder, batch),
            open: None,
        }
    }

    pub(crate) fn write(&mut self, letter: &DeadLetter) -> io::Result<()> {
        if self.open.is_none() {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            self.open = Some(BufWriter::new(File::create(self.partial())?));
        }
        if let Some(file) = &mut self.open {
            serde_json::to_writer(&mut *file, letter)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Makes the file durable under its final name. Writing on would start another file.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let Some(file) = self.open.take() else {
            return Ok(());
        };
        file.into_inner()?.sync_all()?;
        fs::rename(self.partial(), &self.path)?;
        super::sync_folder_of(&self.path)
    }

    fn partial(&self) -> PathBuf {
        self.path.with_extension("partial")
    }
}
