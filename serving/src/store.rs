//! The online feature store as requests read it.
//!
//! States that depend on the ad alone (its own counts, its campaign's, its category's) are the
//! same for every request: they are read once per version of the store and kept. A request then
//! reads only what depends on its user, scene and context, as far as that can be told before its
//! candidates are known in one go. The windows of what is kept are summed once an hour.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use features::{
    AdFacts, EntityKey, EntityState, Facts, FeatureSet, HourSums, Known, Representatives,
    RequestFacts, StateSource, WindowSums,
    online::{Online, OnlineError, OnlineStore, Version},
};

use crate::{
    bundle::Bundle,
    panics::{Panicked, caught},
};

/// Ads whose states are read at once.
const ADS_AT_ONCE: usize = 256;

/// Time for all ads, before a version serves.
const TIME_FOR_ADS: Duration = Duration::from_secs(30);

/// Entities of one kind that a request reads for the case that it looks at their ads.
const READ_AHEAD: usize = 64;

/// Why a store cannot serve a bundle, or a request.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Online(#[from] OnlineError),
    /// Its file is damaged in a way that the key-value store does not expect.
    #[error("reading the online store; run `marquee features materialize`")]
    Panicked(#[from] Panicked),
}

/// An open version of the online store.
pub struct Store {
    online: Arc<OnlineStore>,
    of_ads: Arc<Known>,
    sums: ArcSwap<HourSums>,
    ahead: Representatives,
}

impl Store {
    /// Opens the current version for a bundle, and reads what depends on its ads alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        online: &Online,
        bundle: &Bundle,
        features: &FeatureSet,
    ) -> Result<Self, StoreError> {
        let online = caught(|| online.open(features.digest()))??;
        Self::over(Arc::new(online), bundle, features)
    }

    /// The version that this one has open, for another bundle.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reopen(&self, bundle: &Bundle, features: &FeatureSet) -> Result<Self, StoreError> {
        Self::over(self.online.clone(), bundle, features)
    }

    /// What some nodes of a cluster do not tell of the ads now, requests will read; a file that does
    /// not is damaged.
    fn over(
        online: Arc<OnlineStore>,
        bundle: &Bundle,
        features: &FeatureSet,
    ) -> Result<Self, StoreError> {
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
        let mut trouble = None;
        let until = Instant::now() + TIME_FOR_ADS;
        for chunk in ads.chunks(ADS_AT_ONCE) {
            let keys = features.keys(&nobody, chunk);
            match caught(|| online.read_many(&keys, until, &mut of_ads))? {
                Ok(()) => {}
                Err(error) if error.is_of_cluster() => trouble = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        match trouble {
            Some(error) if of_ads.is_empty() => return Err(error.into()),
            Some(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("states of ads are read with each request: {error:#}");
            }
            None => {}
        }
        Ok(Self {
            online,
            of_ads: Arc::new(of_ads),
            sums: ArcSwap::default(),
            ahead: features.representatives(&ads, READ_AHEAD),
        })
    }

    /// Sums the windows of what is kept for requests of this time, unless that is done: those of
    /// another hour sum for themselves.
    pub fn sum_windows(&self, features: &FeatureSet, now_us: i64) {
        if !self.sums.load().are_of(now_us) {
            let sums = features.window_sums(&self.of_ads, now_us);
            self.sums.store(Arc::new(sums));
        }
    }

    /// The version that is open.
    pub fn version(&self) -> &Version {
        self.online.version()
    }

    /// The generation that is open.
    pub fn generation(&self) -> u64 {
        self.online.version().generation
    }

    /// When the newest event in it arrived, microseconds since the Unix epoch.
    pub fn as_of_us(&self) -> i64 {
        self.online.version().as_of_us
    }

    /// The entities that a request is read ahead, before its candidates are known.
    pub fn keys_ahead(&self, features: &FeatureSet, request: &RequestFacts) -> Vec<EntityKey> {
        features.keys_ahead(request, &self.ahead)
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

/// Where the entities of a request were found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// In what is kept of ads.
    pub cached: u64,
    /// In the store.
    pub found: u64,
    /// Nowhere: nothing happened to them within any window.
    pub absent: u64,
    /// Unknown, since there was no time, or the store failed.
    pub unread: u64,
    /// Reads of the store.
    pub reads: u64,
}

/// What a request knows of the entities it meets.
#[derive(Debug, Clone, Default)]
pub struct States {
    of_ads: Arc<Known>,
    sums: Arc<HourSums>,
    of_request: Known,
    as_of_us: Option<i64>,
    /// Where they were found.
    pub counts: EntityCounts,
}

impl States {
    /// Nothing known yet, beyond what the store knows of its ads.
    pub fn of(store: &Store) -> Self {
        Self {
            of_ads: store.of_ads.clone(),
            sums: store.sums.load_full(),
            as_of_us: Some(store.as_of_us()),
            ..Self::default()
        }
    }

    /// Reads the keys that are not known yet, as far as the time goes.
    ///
    /// # Errors
    /// [`StoreError`]; what was read until then is known.
    pub fn read(
        &mut self,
        store: &Store,
        keys: &[EntityKey],
        until: Instant,
    ) -> Result<(), StoreError> {
        let (cached, others): (Vec<EntityKey>, Vec<EntityKey>) =
            keys.iter().partition(|key| self.of_ads.contains_key(key));
        self.counts.cached += cached.len() as u64;
        let is_open = |key: &EntityKey| !self.of_request.contains_key(key);
        let open: Vec<EntityKey> = others.into_iter().filter(is_open).collect();
        if open.is_empty() {
            return Ok(());
        }
        self.counts.reads += 1;
        let of_request = &mut self.of_request;
        let read = caught(|| store.online.read(&open, until, of_request));
        for key in &open {
            match self.of_request.get(key) {
                Some(Some(_)) => self.counts.found += 1,
                Some(None) => self.counts.absent += 1,
                None => self.counts.unread += 1,
            }
        }
        Ok(read??)
    }
}

impl StateSource for States {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        let of_ads = self.of_ads.state(key);
        of_ads.or_else(|| self.of_request.state(key))
    }

    fn windows(&self, key: EntityKey, now_us: i64) -> Option<&[WindowSums]> {
        self.sums.windows(key, now_us)
    }

    fn as_of_us(&self) -> Option<i64> {
        self.as_of_us
    }
}
