//! How far through the log the processor is.

use std::{cell::Cell, fs, path::Path};

use indicatif::ProgressBar;

/// Bytes that the log adds to each payload.
const RECORD_HEADER_BYTES: u64 = 8;

/// A progress bar in events. How many there are is not known before they are read; it is
/// estimated from the size of the log and of the events so far.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    log_bytes: u64,
    events: Cell<u64>,
    bytes: Cell<u64>,
}

/// The bar is told of every so many events.
const STRIDE: u64 = 1_000;

impl Progress {
    /// A bar over the log below `root`; the part that was processed before counts as well, so
    /// the estimate starts high when there is much of it.
    pub fn over(root: &Path, bar: ProgressBar) -> Self {
        Self {
            bar,
            log_bytes: folder_bytes(root),
            events: Cell::new(0),
            bytes: Cell::new(0),
        }
    }

    /// No bar.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            log_bytes: 0,
            events: Cell::new(0),
            bytes: Cell::new(0),
        }
    }

    pub(crate) fn read(&self, payload_bytes: usize) {
        let events = self.events.get() + 1;
        let bytes = self.bytes.get() + payload_bytes as u64 + RECORD_HEADER_BYTES;
        self.events.set(events);
        self.bytes.set(bytes);
        if events.is_multiple_of(STRIDE) {
            let total = self.log_bytes as f64 / bytes as f64 * events as f64;
            self.bar.set_length((total as u64).max(events));
            self.bar.set_position(events);
        }
    }

    pub(crate) fn finish(&self, events: u64) {
        self.bar.set_length(events);
        self.bar.set_position(events);
        self.bar.finish();
    }
}

/// Size of the files below a folder; what cannot be read counts as nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
