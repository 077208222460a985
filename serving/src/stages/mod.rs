//! The five stages of `GetAds`, in order. Each is one function with typed input and output.
//!
//! Every stage has until a moment to do its work: the end of its own budget or of the request,
//! whichever comes first. It looks at the clock between pieces of work. A piece that is under way
//! is finished and its result used; one that has not begun when the time is up is replaced by the
//! stage's fallback, and the trace says so. Time can change an answer in no other way.

mod assemble;
mod auction;
mod prescore;
mod rank;
mod retrieve;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use features::{AdFacts, EvaluationCounts, FeatureBatch};
use serde::{Deserialize, Serialize};

pub use assemble::{Assembled, assemble};
pub use auction::{Auctioned, auction};
pub use prescore::{Prescored, Thinned, prescore};
pub use rank::{Bidding, Ranked, rank};
pub use retrieve::{Retrieved, retrieve};

use crate::{
    budgets::Budgets, bundle::Bundle, config::ServingConfig, decision::Stage,
    degradation::Fallback, request::AdRequest, store::Store,
};

/// Time of each stage, milliseconds. More time means fewer fallbacks and a longer tail; 0 means
/// the fallback always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageBudgets {
    /// Facts and aggregates of the request.
    pub assemble_ms: u64,
    /// Search of candidates.
    pub retrieve_ms: u64,
    /// Features of all candidates, and thinning them out.
    pub prescore_ms: u64,
    /// Click probabilities.
    pub rank_ms: u64,
    /// Winners and prices; always runs to its end, its budget is only watched.
    pub auction_ms: u64,
}

impl Default for StageBudgets {
    fn default() -> Self {
        Self {
            assemble_ms: 10,
            retrieve_ms: 8,
            prescore_ms: 5,
            rank_ms: 25,
            auction_ms: 2,
        }
    }
}

impl StageBudgets {
    /// The budget of a stage.
    pub fn of(&self, stage: Stage) -> Duration {
        Duration::from_millis(match stage {
            Stage::Assemble => self.assemble_ms,
            Stage::Retrieve => self.retrieve_ms,
            Stage::Prescore => self.prescore_ms,
            Stage::Rank => self.rank_ms,
            Stage::Auction => self.auction_ms,
        })
    }
}

/// How many ads each stage passes on, and what stands in when nothing can score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Funnel {
    /// Candidates that retrieval finds. More: better ads are found, pre-scoring takes longer.
    pub retrieved: usize,
    /// Up to this many eligible ads are compared one by one instead of searched in the graph.
    pub exact_limit: u64,
    /// Candidates that pre-scoring passes on to the ranker. More: better ads win, ranking takes
    /// longer.
    pub prescored: usize,
    /// Most of them that are of one campaign, of which one can win. More: better creatives win,
    /// and campaigns with many of them crowd out the rivals who set their price.
    pub ads_per_campaign: usize,
    /// Click probability of every ad when neither ranker nor pre-scorer can score.
    pub prior_pctr: f32,
}

impl Default for Funnel {
    fn default() -> Self {
        Self {
            retrieved: 500,
            exact_limit: 20_000,
            prescored: 50,
            ads_per_campaign: 4,
            prior_pctr: 0.02,
        }
    }
}

/// What every stage of one request may look at.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The request.
    pub request: &'a AdRequest,
    /// The members that serve.
    pub bundle: &'a Bundle,
    /// The feature store, if there is one for these members.
    pub store: Option<&'a Arc<Store>>,
    /// Spend of the campaigns.
    pub budgets: &'a Budgets,
    /// How the stages are set.
    pub config: &'a ServingConfig,
}

/// A stage's result with what stood in for it.
#[derive(Debug)]
pub struct Staged<T> {
    /// What the next stage takes.
    pub output: T,
    /// What stood in for the stage's full work.
    pub fallbacks: Vec<Fallback>,
}

/// Whether the time is up.
fn is_over(until: Instant) -> bool {
    Instant::now() >= until
}

/// Says of one ad after the other whether it is among the first few of its campaign.
fn first_of_campaign(scope: &Scope<'_>) -> impl FnMut(u32) -> bool {
    let (ads, most) = (&scope.bundle.ads, scope.config.funnel.ads_per_campaign);
    let mut seen: HashMap<u32, usize> = HashMap::new();
    move |ad| {
        let seen = seen.entry(ads.ad(ad).campaign).or_default();
        *seen += 1;
        *seen <= most
    }
}

/// Feature rows of some ads, appended to `batch`.
fn evaluate(
    scope: &Scope<'_>,
    assembled: &Assembled,
    ads: impl Iterator<Item = u32>,
    batch: &mut FeatureBatch,
) -> EvaluationCounts {
    let (Some(features), Some(facts)) = (&scope.bundle.features, &assembled.facts) else {
        return EvaluationCounts::default();
    };
    let ads: Vec<&AdFacts> = ads
        .filter_map(|ad| scope.bundle.ads.ad(ad).facts.as_ref())
        .collect();
    features.evaluate(facts, &ads, &assembled.states, scope.request.time_us, batch)
}
