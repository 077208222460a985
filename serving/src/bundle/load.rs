//! From a channel to a [`Bundle`].

use std::{
    collections::BTreeMap,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use features::FeatureSet;
use models::{ctr::CtrModel, prescorer::PreScorer};
use registry::{Channel, Digest, Kind, Registry, RegistryError, block_on};
use serde::Deserialize;
use wire::catalogue::{Catalogue, CatalogueError};

use super::{Ads, Bundle, Vectors};
use crate::decision::Versions;

/// Why there is no bundle at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The registry refused, or a file is missing or damaged.
    #[error("fetching {what}")]
    Registry {
        /// What was fetched.
        what: &'static str,
        /// What the registry said.
        source: RegistryError,
    },
    /// The channel names no bundle.
    #[error(
        "channel {name} names no bundle; `marquee index publish` makes one and moves the channel"
    )]
    NoTarget {
        /// The channel.
        name: String,
    },
    /// `bundle.json` cannot be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `bundle.json` is not one.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A bundle without a catalogue.
    #[error("the bundle has no member `catalogue`; publish it again with one")]
    NoCatalogue,
    /// The catalogue cannot be used.
    #[error("loading the bundle's catalogue")]
    Catalogue {
        /// What is wrong with it.
        source: CatalogueError,
    },
    /// Members are damaged or do not belong together, and another bundle serves.
    #[error("members cannot be used: {}", faults.join("; "))]
    Faults {
        /// Each member with its reason.
        faults: Vec<String>,
    },
}

/// A member that should be there and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("member `{member}` cannot be used")]
pub struct Fault {
    /// The member's name in the bundle.
    pub member: &'static str,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

impl Fault {
    fn new(member: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            member,
            source: source.into(),
        }
    }

    /// Whether the bundle was published without the member, on purpose perhaps; else what it has
    /// is damaged or belongs elsewhere.
    pub fn is_absence(&self) -> bool {
        self.source.is::<Absent>()
    }

    /// The fault with its causes, on one line.
    pub fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Members that do not belong together.
#[derive(Debug, thiserror::Error)]
#[error("the {what} is of {found}, the bundle has {wanted}; train or build it again, and publish")]
struct Mismatch {
    what: &'static str,
    found: String,
    wanted: String,
}

/// Not in the bundle.
#[derive(Debug, thiserror::Error)]
#[error("the bundle does not have it")]
struct Absent;

#[derive(Deserialize)]
struct BundleFile {
    members: BTreeMap<String, Digest>,
}

struct Loader<'a> {
    registry: &'a Registry,
    members: BTreeMap<String, Digest>,
    faults: Vec<Fault>,
}

/// Loads the bundle that a channel names; of several, the one with the largest share of the
/// traffic. At most `threads` searches will run at a time in its index.
///
/// # Errors
/// [`LoadError`] if there is nothing to serve from. Members other than the catalogue become
/// faults of the bundle instead.
pub fn load(registry: &Registry, channel: &Channel, threads: usize) -> Result<Bundle, LoadError> {
    let target = channel
        .targets
        .iter()
        .max_by(|a, b| a.share.total_cmp(&b.share));
    let digest = &target
        .ok_or_else(|| LoadError::NoTarget {
            name: channel.name.clone(),
        })?
        .bundle;
    let folder = block_on(registry.fetch(digest)).map_err(|source| LoadError::Registry {
        what: "the bundle",
        source,
    })?;
    let mut loader = Loader {
        registry,
        members: read_members(&folder.join("bundle.json"))?,
        faults: Vec::new(),
    };
    let catalogue = loader.catalogue()?;
    let features = loader.member(Kind::Features, |dir| {
        FeatureSet::load(&dir.join("features.toml"))
    });
    let ads = Ads::new(catalogue, features.as_ref());
    let prescorer = loader.prescorer(features.as_ref());
    let ranker = loader.ranker(features.as_ref());
    let vectors = loader.vectors(&ads, threads);
    let Loader {
        members, faults, ..
    } = loader;
    let members = members.into_iter();
    Ok(Bundle {
        versions: Arc::new(Versions {
            bundle_digest: digest.to_string(),
            artifact_digests: members.map(|(name, d)| (name, d.to_string())).collect(),
            generation: channel.generation,
        }),
        ads,
        features,
        prescorer,
        ranker,
        vectors,
        faults,
    })
}

fn read_members(path: &Path) -> Result<BTreeMap<String, Digest>, LoadError> {
    let text = fs::read(path).map_err(|source| LoadError::Io {
        path: path.to_owned(),
        source,
    })?;
    let file: BundleFile = serde_json::from_slice(&text).map_err(|source| LoadError::Json {
        path: path.to_owned(),
        source,
    })?;
    Ok(file.members)
}

impl Loader<'_> {
    fn folder(&self, kind: Kind) -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
        let digest = self.members.get(kind.name()).ok_or(Absent)?;
        Ok(block_on(self.registry.fetch(digest))?)
    }

    fn catalogue(&self) -> Result<Catalogue, LoadError> {
        let digest = self.members.get(Kind::Catalogue.name());
        let digest = digest.ok_or(LoadError::NoCatalogue)?;
        let folder =
            block_on(self.registry.fetch(digest)).map_err(|source| LoadError::Registry {
                what: "the bundle's catalogue",
                source,
            })?;
        Catalogue::load(&folder).map_err(|source| LoadError::Catalogue { source })
    }

    /// Fetches and loads one member; a failure is noted as a fault.
    fn member<T, E: Error + Send + Sync + 'static>(
        &mut self,
        kind: Kind,
        load: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Option<T> {
        let loaded = self
            .folder(kind)
            .and_then(|folder| load(&folder).map_err(Into::into));
        self.note(kind.name(), loaded)
    }

    fn prescorer(&mut self, features: Option<&FeatureSet>) -> Option<PreScorer> {
        let prescorer = self.member(Kind::Prescorer, PreScorer::load)?;
        let found = prescorer.info().feature_digest.clone();
        self.of_these_features(Kind::Prescorer, prescorer, found, features)
    }

    fn ranker(&mut self, features: Option<&FeatureSet>) -> Option<CtrModel> {
        let ranker = self.member(Kind::Ctr, CtrModel::load)?;
        let found = ranker.schema().digest.clone();
        self.of_these_features(Kind::Ctr, ranker, found, features)
    }

    /// A model of other features than the bundle's would score nonsense.
    fn of_these_features<T>(
        &mut self,
        kind: Kind,
        model: T,
        found: String,
        features: Option<&FeatureSet>,
    ) -> Option<T> {
        // Without features nothing is scored, and their own fault tells why.
        let wanted = features?.digest();
        if found == wanted {
            return Some(model);
        }
        let mismatch = Mismatch {
            what: kind.name(),
            found: format!("feature spec {found}"),
            wanted: wanted.to_owned(),
        };
        self.note(kind.name(), Err(mismatch.into()))
    }

    /// Embeddings and index are one thing to the retrieval: both or none.
    fn vectors(&mut self, ads: &Ads, threads: usize) -> Option<Vectors> {
        let embeddings = self.folder(Kind::Embeddings);
        let embeddings = self.note(Kind::Embeddings.name(), embeddings);
        let index = self.folder(Kind::Index);
        let index = self.note(Kind::Index.name(), index);
        let (embeddings, index) = (embeddings?, index?);
        let loaded = self
            .belongs_to_embeddings(&index)
            .and_then(|()| Ok(Vectors::load(&embeddings, &index, ads, threads)?));
        self.note(Kind::Index.name(), loaded)
    }

    /// An index built from other vectors would find the wrong ads.
    fn belongs_to_embeddings(&self, index: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
        #[derive(Deserialize)]
        struct Record {
            embeddings_digest: String,
        }
        let record: Record = serde_json::from_slice(&fs::read(index.join("index.json"))?)?;
        let embeddings = self.members.get(Kind::Embeddings.name());
        let wanted = embeddings.map_or("no embeddings", Digest::as_str);
        if record.embeddings_digest == wanted {
            return Ok(());
        }
        Err(Mismatch {
            what: Kind::Index.name(),
            found: format!("embeddings {}", record.embeddings_digest),
            wanted: wanted.to_owned(),
        }
        .into())
    }

    fn note<T>(
        &mut self,
        member: &'static str,
        loaded: Result<T, Box<dyn Error + Send + Sync>>,
    ) -> Option<T> {
        match loaded {
            Ok(loaded) => Some(loaded),
            Err(source) => {
                self.faults.push(Fault::new(member, source));
                None
            }
        }
    }
}
