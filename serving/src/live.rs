//! What serves now, and the thread that replaces it.
//!
//! Requests take the current [`Snapshot`] with one atomic load. The watcher looks at the channel
//! and at the online store; what is new is loaded and warmed beside the old, then swapped in
//! whole. A bundle that is damaged or inconsistent is refused with an error in the log, and the
//! old one keeps serving; at the start, with nothing to keep, it serves as far as it can.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use cli::Layout;
use features::online::{Online, OnlineError, Version};
use registry::{Channel, Registry, RegistryError, block_on, now_us};
use tokio::sync::watch;

use crate::{
    bundle::{self, Bundle, Fault, LoadError},
    config::ServingConfig,
    engine::{self, Snapshot},
    metrics::Metrics,
    panics::{Panicked, caught},
    store::Store,
};

/// The current snapshot. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Live {
    current: Arc<ArcSwap<Snapshot>>,
    swaps: watch::Sender<u64>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            swaps: watch::Sender::new(0),
        }
    }
}

impl Live {
    /// The snapshot to use for one request.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// How often the snapshot has been replaced; changes can be awaited.
    pub fn swaps(&self) -> watch::Receiver<u64> {
        self.swaps.subscribe()
    }

    fn replace(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.swaps.send_modify(|swaps| *swaps += 1);
    }
}

/// Why a look at the registry brought nothing new.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The registry cannot be read.
    #[error("looking at channel {channel}")]
    Registry {
        /// The channel.
        channel: String,
        /// What the registry said.
        source: RegistryError,
    },
    /// The channel was never moved.
    #[error(
        "channel {channel} has no bundle yet; `marquee index publish` makes one and moves the channel"
    )]
    NoChannel {
        /// The channel.
        channel: String,
    },
    /// The bundle is refused.
    #[error("refusing the bundle of channel {channel}, generation {generation}")]
    Refused {
        /// The channel.
        channel: String,
        /// Its generation.
        generation: u64,
        /// What is wrong with the bundle.
        source: LoadError,
    },
    /// Loading or warming panicked; the same generation is tried again later.
    #[error("refusing what channel {channel} names")]
    Panicked {
        /// The channel.
        channel: String,
        /// What was caught.
        source: Panicked,
    },
}

/// Loads what is new.
pub struct Refresher {
    live: Live,
    registry: Registry,
    online: Online,
    config: Arc<ServingConfig>,
    metrics: Metrics,
    /// The generation tried last, and when.
    tried: Option<(u64, Instant)>,
    /// The store generation tried last, and when.
    tried_store: Option<(u64, Instant)>,
    /// Trouble with the store that was told last: the same at each look is told once.
    store_trouble: String,
}

/// Why nothing can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The registry's folder cannot be used.
    #[error("opening the registry")]
    Registry(#[from] RegistryError),
    /// The online store is set in a way that cannot be.
    #[error(transparent)]
    Online(#[from] OnlineError),
}

impl Refresher {
    /// A refresher of `live` from a data folder.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn new(
        live: Live,
        layout: &Layout,
        config: Arc<ServingConfig>,
        metrics: Metrics,
    ) -> Result<Self, WatchError> {
        Ok(Self {
            live,
            registry: Registry::open(&layout.registry())?,
            online: Online::new(&config.online, &layout.online())?,
            config,
            metrics,
            tried: None,
            tried_store: None,
            store_trouble: String::new(),
        })
    }

    /// Looks once, and swaps in what is new.
    ///
    /// # Errors
    /// [`RefreshError`]; what serves keeps serving then.
    pub fn refresh(&mut self) -> Result<(), RefreshError> {
        // What was tried is noted before the attempt: after a panic it waits like all refused.
        caught(|| self.look()).unwrap_or_else(|source| {
            self.metrics.bundles.with_label_values(&["refused"]).inc();
            Err(RefreshError::Panicked {
                channel: self.config.channel.clone(),
                source,
            })
        })
    }

    fn look(&mut self) -> Result<(), RefreshError> {
        let current = self.live.load();
        let newer = self.new_bundle(current.bundle.as_deref());
        let (bundle, is_new, result) = match newer {
            Ok(Some(bundle)) => (Some(Arc::new(bundle)), true, Ok(())),
            Ok(None) => (current.bundle.clone(), false, Ok(())),
            Err(error) => (current.bundle.clone(), false, Err(error)),
        };
        let Some(bundle) = bundle else {
            return result;
        };
        let store = self.store(&bundle, current.store.as_ref(), is_new);
        if let (Some(store), Some(features)) = (&store, &bundle.features) {
            store.sum_windows(features, now_us());
        }
        let same_store = match (&store, &current.store) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if is_new || !same_store {
            let snapshot = Snapshot::new(Some(bundle), store);
            engine::warm(&snapshot, &self.config);
            self.swap(snapshot, is_new);
        }
        result
    }

    fn swap(&self, snapshot: Snapshot, is_new: bool) {
        let generation = snapshot.versions.generation;
        let store = snapshot.store.as_ref();
        let online = store.map_or(0, |store| store.generation());
        let as_of_us = store.map_or(0, |store| store.as_of_us());
        self.metrics.bundle_generation.set(generation as i64);
        self.metrics.online_generation.set(online as i64);
        self.metrics.online_as_of.set(as_of_us / 1_000_000);
        if is_new {
            self.metrics.bundles.with_label_values(&["loaded"]).inc();
        }
        let bundle = &snapshot.versions.bundle_digest;
        tracing::info!(generation, bundle, online, "now serving");
        self.live.replace(snapshot);
    }

    /// The channel's bundle, if it is not the current one.
    fn new_bundle(&mut self, current: Option<&Bundle>) -> Result<Option<Bundle>, RefreshError> {
        let name = &self.config.channel;
        let channel = block_on(self.registry.channel(name))
            .map_err(|source| RefreshError::Registry {
                channel: name.clone(),
                source,
            })?
            .ok_or_else(|| RefreshError::NoChannel {
                channel: name.clone(),
            })?;
        if !self.is_due(&channel, current) {
            return Ok(None);
        }
        self.tried = Some((channel.generation, Instant::now()));
        match self.load(&channel, current) {
            Ok(bundle) => Ok(Some(bundle)),
            Err(source) => {
                self.metrics.bundles.with_label_values(&["refused"]).inc();
                Err(RefreshError::Refused {
                    channel: channel.name,
                    generation: channel.generation,
                    source,
                })
            }
        }
    }

    /// A new generation is loaded at once; one that was refused or has faults again after a while.
    fn is_due(&self, channel: &Channel, current: Option<&Bundle>) -> bool {
        let serves = current.is_some_and(|bundle| {
            bundle.versions.generation == channel.generation
                && bundle.faults.iter().all(Fault::is_absence)
        });
        !serves && !self.waits(self.tried, channel.generation)
    }

    /// Whether a generation was tried so lately that another attempt has to wait.
    fn waits(&self, tried: Option<(u64, Instant)>, generation: u64) -> bool {
        let retry = Duration::from_secs(self.config.retry_seconds);
        tried.is_some_and(|(last, at)| last == generation && at.elapsed() < retry)
    }

    fn load(&self, channel: &Channel, current: Option<&Bundle>) -> Result<Bundle, LoadError> {
        let threads = self.config.num_workers() + 1;
        let bundle = bundle::load(&self.registry, channel, threads)?;
        let damaged: Vec<String> = bundle
            .faults
            .iter()
            .filter(|fault| !fault.is_absence())
            .map(Fault::describe)
            .collect();
        // With nothing better to keep, the ladder's lower rungs are the best there is.
        if current.is_some() && !damaged.is_empty() {
            return Err(LoadError::Faults { faults: damaged });
        }
        for fault in &bundle.faults {
            tracing::warn!(fault = fault.describe(), "serving without a member");
        }
        if bundle.ads.left_out > 0 {
            let creatives = bundle.ads.left_out;
            tracing::warn!(
                creatives,
                "creatives without campaign or with a bid of 0 or less are left out"
            );
        }
        Ok(bundle)
    }

    /// The store for a bundle: the open one while its generation and features stand. One that
    /// cannot be used is tried again after a while.
    fn store(
        &mut self,
        bundle: &Bundle,
        open: Option<&Arc<Store>>,
        is_new: bool,
    ) -> Option<Arc<Store>> {
        let features = bundle.features.as_ref()?;
        let kept = |current: Option<&Version>| {
            let open = open.filter(|open| open.version().spec_digest == features.digest())?;
            let is_gone = current.is_some_and(|current| current.replaces(open.version()));
            match (is_gone, is_new) {
                (true, _) => None,
                (false, false) => Some(open.clone()),
                (false, true) => open.reopen(bundle, features).ok().map(Arc::new),
            }
        };
        let current = match self.online.current(features.digest()) {
            Ok(current) => current,
            Err(error) => {
                let kept = kept(None);
                self.tell(
                    "online store cannot be looked at, keeping what is open",
                    error,
                );
                return kept;
            }
        };
        let is_open = open.is_some_and(|store| Some(store.version()) == current.as_ref());
        let generation = current.as_ref().map(|version| version.generation);
        let waits = generation.is_none_or(|generation| self.waits(self.tried_store, generation));
        if !is_new && (is_open || waits) {
            return kept(current.as_ref());
        }
        self.tried_store = generation.map(|generation| (generation, Instant::now()));
        match Store::open(&self.online, bundle, features) {
            Ok(store) => {
                self.store_trouble.clear();
                Some(Arc::new(store))
            }
            Err(error) => {
                let kept = kept(current.as_ref());
                self.tell("a version of the online store cannot be opened", error);
                kept
            }
        }
    }

    fn tell(&mut self, what: &str, error: impl Into<anyhow::Error>) {
        let trouble = format!("{what}: {:#}", error.into());
        if trouble != self.store_trouble {
            tracing::warn!("{trouble}");
        }
        self.store_trouble = trouble;
    }
}

/// The thread that refreshes; it ends when this is dropped.
#[derive(Debug)]
pub struct Watcher {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts looking every `poll_ms`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(mut refresher: Refresher) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let every = Duration::from_millis(refresher.config.poll_ms);
        let mut last_error = String::new();
        let thread = thread::Builder::new().name("watcher".to_owned());
        let thread = thread.spawn(move || {
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                let error = match refresher.refresh() {
                    Ok(()) => String::new(),
                    Err(error) => format!("{:#}", anyhow::Error::from(error)),
                };
                // The same trouble at each look is told once.
                if !error.is_empty() && error != last_error {
                    tracing::error!("{error}");
                }
                last_error = error;
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watcher panicked");
        }
    }
}
