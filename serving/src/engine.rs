//! One request through the five stages, each timed and held to its budget.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use features::{EvaluationCounts, FeatureBatch, hash::hash_text};
use registry::now_us;
use wire::{
    ads::Scores,
    events::{AgeBand, Event, FeatureSnapshot, ImpressionServed, ScoredCandidate, event::Payload},
    gate::Subject,
};

use crate::{
    budgets::Budgets,
    bundle::Bundle,
    config::ServingConfig,
    decision::{Decision, Stage, Trace, Versions, Win},
    degradation::{Fallback, Why},
    request::AdRequest,
    stages::{
        self, Assembled, Auctioned, Ranked, Scope, Staged, assemble, auction, prescore, rank,
        retrieve,
    },
    store::{EntityCounts, Store},
};

/// What serves at one moment. A request takes one snapshot and keeps it, so that no answer mixes
/// versions.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The bundle; without one there are house ads.
    pub bundle: Option<Arc<Bundle>>,
    /// The feature store for its features.
    pub store: Option<Arc<Store>>,
    /// What answers say about both.
    pub versions: Arc<Versions>,
}

impl Snapshot {
    /// A bundle with the store that fits it.
    pub fn new(bundle: Option<Arc<Bundle>>, store: Option<Arc<Store>>) -> Self {
        let mut versions = bundle
            .as_ref()
            .map(|bundle| Versions::clone(&bundle.versions))
            .unwrap_or_default();
        if let Some(store) = &store {
            let generation = format!("generation {}", store.generation());
            versions
                .artifact_digests
                .insert("online".to_owned(), generation);
        }
        Self {
            bundle,
            store,
            versions: Arc::new(versions),
        }
    }
}

/// Times the stages one after the other.
struct Run<'a> {
    config: &'a ServingConfig,
    deadline: Instant,
    traces: Vec<Trace>,
}

impl Run<'_> {
    /// Runs one stage; `size` counts the ads of its output.
    fn stage<T>(
        &mut self,
        stage: Stage,
        candidates_in: usize,
        size: impl FnOnce(&T) -> usize,
        work: impl FnOnce(Instant) -> Staged<T>,
    ) -> T {
        let started = Instant::now();
        let until = (started + self.config.stages.of(stage)).min(self.deadline);
        let Staged { output, fallbacks } = work(until);
        self.traces.push(Trace {
            stage,
            candidates_in,
            candidates_out: size(&output),
            duration: started.elapsed(),
            fallbacks,
        });
        output
    }
}

/// Decides one request. Given the same request, snapshot and closed campaigns, the decision is
/// the same bit for bit, but for durations and for fallbacks that time forced, which it tells.
pub fn decide(
    snapshot: &Snapshot,
    request: &AdRequest,
    budgets: &Budgets,
    config: &ServingConfig,
) -> Decision {
    match &snapshot.bundle {
        Some(bundle) => {
            let scope = Scope {
                request,
                bundle,
                store: snapshot.store.as_ref(),
                budgets,
                config,
            };
            from_bundle(&scope, snapshot.versions.clone())
        }
        None => house_ads(snapshot, request, config),
    }
}

fn from_bundle(scope: &Scope<'_>, versions: Arc<Versions>) -> Decision {
    let mut run = Run {
        config: scope.config,
        deadline: scope.request.deadline,
        traces: Vec::with_capacity(Stage::ALL.len()),
    };
    let all = scope.bundle.ads.ads.len();
    let mut assembled = run.stage(
        Stage::Assemble,
        all,
        |_| all,
        |until| assemble(scope, until),
    );
    let retrieved = run.stage(
        Stage::Retrieve,
        all,
        |found: &stages::Retrieved| found.candidates.len(),
        |until| retrieve(scope, &assembled, until),
    );
    let thinned = run.stage(
        Stage::Prescore,
        retrieved.candidates.len(),
        |thinned: &stages::Thinned| thinned.candidates.len(),
        |until| prescore(scope, &mut assembled, &retrieved, until),
    );
    let (num_thinned, mut feature_counts) = (thinned.candidates.len(), thinned.counts);
    let bidding = run.stage(
        Stage::Rank,
        num_thinned,
        |bidding: &stages::Bidding| bidding.candidates.len(),
        |until| rank(scope, &assembled, thinned, until),
    );
    feature_counts += bidding.counts;
    let sold = run.stage(Stage::Auction, num_thinned, Vec::len, |_| Staged {
        output: auction(scope, &bidding.candidates),
        fallbacks: Vec::new(),
    });
    let page = Page {
        scope,
        versions: &versions,
        assembled: &assembled,
        ranked: &bidding.candidates,
        features: bidding.features.as_ref(),
    };
    let wins: Vec<Win> = sold
        .iter()
        .enumerate()
        .map(|(slot, sold)| page.win(slot, sold))
        .collect();
    let events = (0..).zip(sold.iter().zip(&wins));
    Decision {
        events: events
            .map(|(slot, (sold, win))| page.event(slot, sold, win))
            .collect(),
        wins,
        stages: run.traces,
        versions,
        feature_counts,
        entity_counts: assembled.states.counts,
    }
}

/// Turns sold slots into what the client and the log get.
struct Page<'a> {
    scope: &'a Scope<'a>,
    versions: &'a Versions,
    assembled: &'a Assembled,
    ranked: &'a [Ranked],
    features: Option<&'a FeatureBatch>,
}

impl Page<'_> {
    fn win(&self, slot: usize, sold: &Auctioned) -> Win {
        let ads = &self.scope.bundle.ads;
        let creative = &ads.ad(sold.sale.bidder.ad).creative;
        let ranked = &self.ranked[sold.candidate];
        let asset_path = match creative.picture_digest.as_str() {
            "" => String::new(),
            digest => format!("creative/{digest}.png"),
        };
        Win {
            impression_id: impression_id(self.scope.request, slot, &creative.creative_id),
            creative_id: creative.creative_id.clone(),
            campaign_id: creative.campaign_id.clone(),
            title: creative.title.clone(),
            asset_path,
            price_micros: sold.sale.price_micros,
            scores: Scores {
                similarity: ranked.similarity,
                prescore: ranked.prescore,
                pctr: ranked.pctr,
                bid_micros: sold.sale.bidder.bid_micros,
                ecpm_micros: sold.sale.ecpm_micros.round() as i64,
            },
        }
    }

    /// Of users whose personal features may not be used, the log keeps neither the id nor the
    /// attributes, in which a client may say anything. The candidates stand in the event of the
    /// first slot only.
    fn event(&self, slot: u32, sold: &Auctioned, win: &Win) -> Event {
        let request = self.scope.request;
        let mut context = self.assembled.context.clone();
        let person = request.subject.person();
        if person.is_none() {
            context.attributes.clear();
        }
        let features = self.scope.bundle.features.as_ref();
        let snapshot = self.features.zip(features).map(|(batch, features)| {
            let store = self.scope.store;
            FeatureSnapshot {
                store_as_of_us: store.map_or(0, |store| store.as_of_us()),
                ..batch.snapshot(sold.candidate, features.digest())
            }
        });
        let candidates = if slot == 0 {
            self.ranked.iter().map(|one| self.scored(one)).collect()
        } else {
            Vec::new()
        };
        let served = ImpressionServed {
            impression_id: win.impression_id.clone(),
            request_id: request.request_id.clone(),
            campaign_id: win.campaign_id.clone(),
            creative_id: win.creative_id.clone(),
            context: Some(context),
            slot,
            snapshot,
            candidates,
            bundle_digest: self.versions.bundle_digest.clone(),
            pctr: win.scores.pctr,
            bid_micros: win.scores.bid_micros,
            price_micros: win.price_micros,
        };
        Event {
            event_id: format!("served-{}", win.impression_id),
            event_time_us: request.time_us,
            ingest_time_us: request.time_us,
            user_id: person.map_or_else(String::new, |person| person.as_str().to_owned()),
            age_band: request.age_band.into(),
            schema_version: wire::SCHEMA_VERSION,
            payload: Some(Payload::ImpressionServed(served)),
        }
    }

    fn scored(&self, ranked: &Ranked) -> ScoredCandidate {
        let ads = &self.scope.bundle.ads;
        ScoredCandidate {
            creative_id: ads.ad(ranked.ad).creative.creative_id.clone(),
            similarity: ranked.similarity,
            prescore: ranked.prescore,
            pctr: ranked.pctr,
            bid_micros: ads.campaign_of(ranked.ad).bid_micros,
        }
    }
}

/// The same request, slot and ad always give the same id, so a retry is idempotent; another ad
/// under the same request, after a swap for instance, is another impression.
fn impression_id(request: &AdRequest, slot: usize, creative_id: &str) -> String {
    let creative = hash_text(creative_id) as u32;
    format!("{}-{slot}-{creative:08x}", request.request_id)
}

/// Without a bundle: the house ads of the configuration. They cost nothing and are not logged.
fn house_ads(snapshot: &Snapshot, request: &AdRequest, config: &ServingConfig) -> Decision {
    let ads = config.house_ads.iter().take(request.slots).enumerate();
    let wins: Vec<Win> = ads
        .map(|(slot, ad)| Win {
            impression_id: impression_id(request, slot, &ad.creative_id),
            creative_id: ad.creative_id.clone(),
            campaign_id: String::new(),
            title: ad.title.clone(),
            asset_path: ad.asset_path.clone(),
            price_micros: 0,
            scores: Scores::default(),
        })
        .collect();
    let last = Stage::ALL.len() - 1;
    let stages = Stage::ALL.into_iter().enumerate().map(|(at, stage)| Trace {
        stage,
        candidates_in: 0,
        candidates_out: if at == last { wins.len() } else { 0 },
        duration: Duration::ZERO,
        fallbacks: vec![Fallback::HouseAds(Why::Missing)],
    });
    Decision {
        stages: stages.collect(),
        wins,
        versions: snapshot.versions.clone(),
        feature_counts: EvaluationCounts::default(),
        entity_counts: EntityCounts::default(),
        events: Vec::new(),
    }
}

/// Sends requests of the catalogue's own scenes through a snapshot, so that the first real ones
/// find code and data warm. Nothing is logged and no budget is touched.
pub fn warm(snapshot: &Snapshot, config: &ServingConfig) {
    const REQUESTS: usize = 8;
    let Some(bundle) = &snapshot.bundle else {
        return;
    };
    let budgets = Budgets::default();
    for scene in bundle.ads.scenes.values().take(REQUESTS) {
        let request = AdRequest {
            request_id: "warm".to_owned(),
            subject: Subject::admit("warm".to_owned(), AgeBand::AgeBand13plus, true),
            age_band: AgeBand::AgeBand13plus,
            context: wire::events::Context {
                experience_id: scene.experience_id.clone(),
                genre: scene.genre.clone(),
                scene_id: scene.scene_id.clone(),
                ..Default::default()
            },
            slots: 1,
            floor_ecpm_micros: 0,
            time_us: now_us(),
            deadline: Instant::now() + Duration::from_secs(10),
        };
        decide(snapshot, &request, &budgets, config);
    }
}
