//! Versions of the event schema, and what may change from one to the next.
//!
//! A registry keeps, by *subject*, every version of a schema that anybody writes or reads by, and lets
//! in only what its compatibility rule allows. [`LocalRegistry`] is a folder of the repository, one
//! Protobuf file per version; [`ConfluentRegistry`] is a client of the HTTP interface that Confluent's
//! Schema Registry, Karapace, Redpanda and Apicurio have in common. What is compatible is said by
//! [`compatibility`], in words that name the field.

pub mod compatibility;
mod confluent;
mod local;

use std::{fmt, path::PathBuf};

pub use confluent::ConfluentRegistry;
pub use local::LocalRegistry;
use serde::{Deserialize, Serialize};

/// What a new version may be measured against; the names and their meaning are Confluent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Level {
    /// Anything goes.
    None,
    /// Who reads by the new version reads what was written by the last one.
    Backward,
    /// … by every one before.
    BackwardTransitive,
    /// Who reads by the last version reads what is written by the new one.
    Forward,
    /// … by every one before.
    ForwardTransitive,
    /// Both.
    Full,
    /// Both, with every one before.
    FullTransitive,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its name in the interface.
        self.serialize(f)
    }
}

impl Level {
    /// Whether new readers must read old records.
    pub fn backward(self) -> bool {
        !matches!(self, Self::None | Self::Forward | Self::ForwardTransitive)
    }

    /// Whether old readers must read new records.
    pub fn forward(self) -> bool {
        !matches!(self, Self::None | Self::Backward | Self::BackwardTransitive)
    }

    /// Whether every version before counts, and not only the last.
    pub fn transitive(self) -> bool {
        matches!(
            self,
            Self::BackwardTransitive | Self::ForwardTransitive | Self::FullTransitive
        )
    }
}

/// A version of a schema in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schema {
    /// From 1, within its subject.
    pub version: u32,
    /// Within the registry: what stands in front of records in its wire format.
    pub id: u32,
    /// The Protobuf file.
    pub text: String,
}

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A schema does not compile.
    #[error("{what} is not a Protobuf schema: {why}")]
    Malformed {
        /// Which one.
        what: String,
        /// What the compiler says.
        why: String,
    },
    /// A new version breaks a rule.
    #[error("the schema may not become version {version} of `{subject}` ({level}): {}", breaks.join("; "))]
    Incompatible {
        /// Where it was to go.
        subject: String,
        /// The version it would have got.
        version: u32,
        /// The rule.
        level: Level,
        /// Every breach.
        breaks: Vec<String>,
    },
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the local registry is not one.
    #[error("in the schema registry, {}: {what}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The server cannot be reached, or refused.
    #[error("schema registry {url}: {why}")]
    Server {
        /// What was asked.
        url: String,
        /// What was said.
        why: String,
    },
}

/// Where schemas are kept.
pub trait SchemaRegistry {
    /// Every version of a subject, rising; none if it is not known.
    ///
    /// # Errors
    /// [`SchemaError`].
    fn versions(&self, subject: &str) -> Result<Vec<Schema>, SchemaError>;

    /// The rule of a subject.
    ///
    /// # Errors
    /// [`SchemaError`].
    fn level(&self, subject: &str) -> Result<Level, SchemaError>;

    /// Every breach that a schema would be as the next version; none if it may.
    ///
    /// # Errors
    /// [`SchemaError`].
    fn breaks(&self, subject: &str, text: &str) -> Result<Vec<String>, SchemaError>;

    /// Registers a schema; one that is the same as a registered one is that one.
    ///
    /// # Errors
    /// [`SchemaError::Incompatible`].
    fn register(&self, subject: &str, text: &str) -> Result<Schema, SchemaError>;
}
