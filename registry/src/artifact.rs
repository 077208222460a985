//! Artifacts: immutable sets of files with a content digest.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::RegistryError;

/// SHA-256 in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(
            hash.finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() == 64 && text.chars().all(is_hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RegistryError::BadDigest {
                text: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = RegistryError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Label of a feature spec: the digest that tables and models of it have.
pub const FEATURE_DIGEST: &str = "feature_digest";

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A feature spec.
    Features,
    /// Campaigns, creatives and scenes with their pictures.
    Catalogue,
    /// A click model.
    Ctr,
    /// A tree model that thins out candidates.
    Prescorer,
    /// A picture encoder.
    Visual,
    /// Vectors of creatives and scenes.
    Embeddings,
    /// A nearest-neighbour index over creative vectors.
    Index,
    /// The artifacts that serve together.
    Bundle,
}

impl Kind {
    /// All kinds in data-flow order.
    pub const ALL: [Self; 8] = [
        Self::Features,
        Self::Catalogue,
        Self::Ctr,
        Self::Prescorer,
        Self::Visual,
        Self::Embeddings,
        Self::Index,
        Self::Bundle,
    ];

    /// The kind's name, as in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Catalogue => "catalogue",
            Self::Ctr => "ctr",
            Self::Prescorer => "prescorer",
            Self::Visual => "visual",
            Self::Embeddings => "embeddings",
            Self::Index => "index",
            Self::Bundle => "bundle",
        }
    }

    /// Which command makes one.
    pub fn origin(self) -> &'static str {
        match self {
            Self::Features | Self::Catalogue => "`marquee features materialize` makes it",
            Self::Ctr => "`marquee train configs/ctr.toml` makes it",
            Self::Prescorer => "`marquee train configs/prescorer.toml` makes it",
            Self::Visual => "`marquee train configs/visual.toml` makes it",
            Self::Embeddings => "`marquee embed` makes it",
            Self::Index => "`marquee index build` makes it",
            Self::Bundle => "`marquee index publish` makes it",
        }
    }

    /// Whether artifacts of it go towards traffic only by the verdict of a gate.
    pub fn is_judged(self) -> bool {
        self == Self::Ctr
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| RegistryError::BadKind {
            text: text.to_owned(),
        })
    }
}

/// What to publish.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What it is.
    pub kind: Kind,
    /// All files below this folder are taken, under their relative paths.
    pub dir: PathBuf,
    /// What it was made from.
    pub parents: Vec<Digest>,
    /// Figures by name, such as `auc`.
    pub metrics: BTreeMap<String, f64>,
    /// Further facts by name, such as `table_version`.
    pub labels: BTreeMap<String, String>,
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A published artifact. Nothing in it ever changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Digest of kind, files and parents.
    pub digest: Digest,
    /// What it is.
    pub kind: Kind,
    /// Files by relative path.
    pub files: BTreeMap<String, FileEntry>,
    /// What it was made from.
    pub parents: Vec<Digest>,
    /// Figures by name.
    pub metrics: BTreeMap<String, f64>,
    /// Further facts by name.
    pub labels: BTreeMap<String, String>,
    /// When it was published, microseconds since the Unix epoch.
    pub published_us: i64,
}

impl Artifact {
    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

/// The digest that names content: kind, files and lineage, not figures or time.
pub(crate) fn content_digest(
    kind: Kind,
    files: &BTreeMap<String, FileEntry>,
    parents: &[Digest],
) -> Digest {
    let mut hash = Sha256::new_with_prefix(format!("marquee artifact 1\n{kind}\n"));
    for (name, file) in files {
        hash.update(format!("file {} {} {name}\n", file.sha256, file.bytes));
    }
    for parent in parents {
        hash.update(format!("parent {parent}\n"));
    }
    Digest::from_hash(hash)
}
