//! Why the registry could not do what it was asked.

use std::{io, path::PathBuf};

use crate::{Digest, Kind, Stage};

/// Why the registry could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The object store refused.
    #[error("accessing {what} in the registry")]
    Store {
        /// The object or listing.
        what: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// A local file could not be read or the folder could not be made.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A draft's folder has no files.
    #[error("nothing to publish: {} has no files", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A record is not what this version writes.
    #[error("reading registry record {what}")]
    Record {
        /// The object.
        what: String,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// No stage.
    #[error("`{text}` is none of candidate, shadow, canary, live, retired")]
    BadStage {
        /// What it is.
        text: String,
    },
    /// A stage that may not come after the one before.
    #[error(
        "{digest} is {from}, and may not become {to} from there: candidate, shadow, canary, live, a step at a time"
    )]
    Stages {
        /// The artifact.
        digest: Digest,
        /// Its stage.
        from: Stage,
        /// The one asked for.
        to: Stage,
    },
    /// A step towards traffic of what no gate has judged.
    #[error("the gate has not judged {digest}: `marquee gate --model {digest} --promote` does")]
    NotJudged {
        /// The artifact.
        digest: Digest,
    },
    /// A step towards traffic of what the gate refused.
    #[error("the gate refused {digest}: {reason}")]
    Refused {
        /// The artifact.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// No such artifact.
    #[error("no artifact {digest} in the registry; `marquee registry list` shows what there is")]
    NotFound {
        /// The digest asked for.
        digest: Digest,
    },
    /// No artifact of this kind yet.
    #[error("no {kind} artifact in the registry yet; {}", kind.origin())]
    NoneOfKind {
        /// The kind asked for.
        kind: Kind,
    },
    /// A file's bytes are not those that were published.
    #[error(
        "file {file} of artifact {artifact} is damaged: its digest is {found}, wanted {wanted}; publish the artifact again"
    )]
    Corrupt {
        /// The artifact.
        artifact: Digest,
        /// The file.
        file: String,
        /// Digest on record.
        wanted: String,
        /// Digest of the bytes found.
        found: String,
    },
    /// A file on record is gone.
    #[error("file {file} of artifact {artifact} is missing; publish the artifact again")]
    MissingFile {
        /// The artifact.
        artifact: Digest,
        /// The file.
        file: String,
    },
    /// Someone else moved the channel first.
    #[error(
        "channel {name} is at generation {found}, expected {expected}: look again before moving it"
    )]
    Moved {
        /// The channel.
        name: String,
        /// The generation that the caller saw.
        expected: u64,
        /// The generation that stands.
        found: u64,
    },
    /// Shares that are not a distribution.
    #[error("shares of channel {name} add up to {sum}, wanted 1 with each in 0..=1")]
    Shares {
        /// The channel.
        name: String,
        /// Their sum.
        sum: f64,
    },
    /// A name that would not be one path segment.
    #[error("`{name}` is not a channel name: use lower-case letters, digits, `-` and `_`")]
    BadName {
        /// The name given.
        name: String,
    },
    /// Text that is no digest.
    #[error("`{text}` is not a digest: wanted 64 lower-case hex digits")]
    BadDigest {
        /// The text given.
        text: String,
    },
    /// Text that is no kind.
    #[error("`{text}` is not an artifact kind: wanted one of {}", Kind::names())]
    BadKind {
        /// The text given.
        text: String,
    },
}
