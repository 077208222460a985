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
    /// Rows that do not rise, so that one could be moved by two at once.
    #[error("row {row} is touched after one that is not less")]
    NotRising {
        /// The row.
        row: u32,
    },
    /// A vector that does not lie within its buffer.
    #[error("{what} {index} of {dim} numbers, in steps of {step}, in a buffer of {len}")]
    Vector {
        /// What the vector is.
        what: &'static str,
        /// Its index.
        index: usize,
        /// How far apart two vectors can begin.
        step: usize,
        /// Its length.
        dim: usize,
        /// Length of the buffer.
        len: usize,
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
    /// A buffer that the device does not give in one piece.
    #[error(
        "{what} of {bytes} bytes in one piece, where the device gives at most {most}: cut the table by rows, or cache it"
    )]
    TooLarge {
        /// What it was for.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The largest.
        most: u64,
    },
    /// A sum of more distinct rows than the cache has room for.
    #[error("a bag of {wanted} distinct rows and a cache of {slots}: use a larger cache")]
    CacheTooSmall {
        /// Distinct rows of the bag.
        wanted: usize,
        /// Rows of the cache.
        slots: usize,
    },
    /// The device refuses.
    #[error("the device: {0}")]
    Device(String),
}
