//! What can go wrong.

/// Why a kernel was not run, or what came of it could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A row that the table does not have.
    #[error("row {row} of a table of {rows} rows")]
    Row {
        /// The row.
        row: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// A row that would be moved by two at once.
    #[error("row {row} is touched twice: its gradients are to be entries of one")]
    Twice {
        /// The row.
        row: u32,
    },
    /// Lists that do not belong together.
    #[error("{what} has {found} numbers, wanted {wanted}")]
    Length {
        /// The list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What it should be.
        wanted: usize,
    },
    /// Offsets that do not rise from 0 to the number of entries.
    #[error("offsets do not rise from 0 to the number of entries, {entries}")]
    Offsets {
        /// The entries.
        entries: usize,
    },
    /// A batch with more distinct rows than the cache has room for.
    #[error(
        "a batch of {wanted} distinct rows and a cache of {slots}: use a larger cache or a smaller batch"
    )]
    CacheTooSmall {
        /// Distinct rows of the batch.
        wanted: usize,
        /// Rows of the cache.
        slots: usize,
    },
    /// The device refuses.
    #[error("the device: {0}")]
    Device(String),
}
