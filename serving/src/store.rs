//! The online feature store as requests read it.
//!
//! States that depend on the ad alone (its own counts, its campaign's, its category's) are the
//! same for every request: they are read once per store generation and kept. A request then
//! reads only what depends on its user, scene and context.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use features::{
    AdFacts, EntityKey, EntityState, Facts, FeatureSet, StateSource,
    online::{OnlineError, OnlineStore},
};

use crate::{
    bundle::Bundle,
    panics::{Panicked, caught},
};

/// Keys read between two looks at the clock.
const KEYS_PER_LOOK: usize = 64;

/// States of entities; `None` is known to be absent.
type Known = HashMap<EntityKey, Option<EntityState>>;

/// Why a store cannot serve a bundle, or a request.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Online(#[from] OnlineError),
    /// Its file is damaged in a way that the key-value store does not expect.
    #[error("reading the online store; run `marquee features materialize`")]
    Panicked(#[from] Panicked),
    /// Its values are of other features.
    #[error(
        "the online store holds features {found}, the bundle has {wanted}; run `marquee features materialize`"
    )]
    Spec {
        /// Digest of the store's spec.
        found: String,
        /// Digest of the bundle's.
        wanted: String,
    },
}

/// An open generation of the online store.
pub struct Store {
    online: OnlineStore,
    of_ads: Arc<Known>,
}

impl Store {
    /// Opens the current generation for a bundle, and reads what depends on its ads alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(root: &Path, bundle: &Bundle, features: &FeatureSet) -> Result<Self, StoreError> {
        let online = caught(|| OnlineStore::open(root))??;
        if online.spec_digest() != features.digest() {
            return Err(StoreError::Spec {
                found: online.spec_digest().to_owned(),
                wanted: features.digest().to_owned(),
            });
        }
        let ads: Vec<&AdFacts> = bundle
            .ads
            .ads
            .iter()
            .filter_map(|ad| ad.facts.as_ref())
            .collect();
        // An empty request has no part in the keys that depend on the ad alone. The others name
        // entities of missing facts, and are right for requests that lack the same.
        let nobody = features.bind_request(&Facts::new());
        let mut of_ads = Known::new();
        for chunk in ads.chunks(1_024) {
            read_into(&online, &features.keys(&nobody, chunk), &mut of_ads)?;
        }
        Ok(Self {
            online,
            of_ads: Arc::new(of_ads),
        })
    }

    /// The generation that is open.
    pub fn generation(&self) -> u64 {
        self.online.generation()
    }

    /// When the newest event in it arrived, microseconds since the Unix epoch.
    pub fn as_of_us(&self) -> i64 {
        self.online.as_of_us()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("generation", &self.generation())
            .field("of_ads", &self.of_ads.len())
            .finish_non_exhaustive()
    }
}

fn read_into(
    online: &OnlineStore,
    keys: &[EntityKey],
    known: &mut Known,
) -> Result<(), StoreError> {
    let mut found = caught(|| online.read(keys))??;
    known.extend(keys.iter().map(|key| (*key, found.remove(key))));
    Ok(())
}

/// What a request knows of the entities it meets.
#[derive(Debug, Clone, Default)]
pub struct States {
    of_ads: Arc<Known>,
    of_request: Known,
}

/// How reading ended.
#[derive(Debug)]
pub enum ReadEnd {
    /// All keys were read.
    Done,
    /// There was no time for all.
    Late,
}

impl States {
    /// Nothing known yet, beyond what the store knows of its ads.
    pub fn of(store: &Store) -> Self {
        Self {
            of_ads: store.of_ads.clone(),
            of_request: Known::new(),
        }
    }

    /// Reads the keys that are not known yet, as far as the time goes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(
        &mut self,
        store: &Store,
        keys: &[EntityKey],
        until: Instant,
    ) -> Result<ReadEnd, StoreError> {
        let open: Vec<EntityKey> = keys
            .iter()
            .filter(|key| !self.of_ads.contains_key(key) && !self.of_request.contains_key(key))
            .copied()
            .collect();
        for chunk in open.chunks(KEYS_PER_LOOK) {
            if until.saturating_duration_since(Instant::now()) == Duration::ZERO {
                return Ok(ReadEnd::Late);
            }
            read_into(&store.online, chunk, &mut self.of_request)?;
        }
        Ok(ReadEnd::Done)
    }
}

impl StateSource for States {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        let known = self.of_ads.get(&key).or_else(|| self.of_request.get(&key));
        known.and_then(Option::as_ref)
    }
}
