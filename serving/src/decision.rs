//! What one request came to: winners, and the trace of every stage.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use features::EvaluationCounts;
use wire::{
    ads::{Degradation, Explain, GetAdsResponse, Scores, StageTrace, Winner},
    events::Event,
};

use crate::{
    degradation::{self, Fallback},
    store::EntityCounts,
};

/// The stages of `GetAds`, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Facts of the request and the aggregates about its user and scene.
    Assemble,
    /// Candidates near the scene.
    Retrieve,
    /// Thinning them out.
    Prescore,
    /// Click probabilities.
    Rank,
    /// Winners and prices.
    Auction,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 5] = [
        Self::Assemble,
        Self::Retrieve,
        Self::Prescore,
        Self::Rank,
        Self::Auction,
    ];

    /// The stage's name in traces and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Assemble => "assemble",
            Self::Retrieve => "retrieve",
            Self::Prescore => "prescore",
            Self::Rank => "rank",
            Self::Auction => "auction",
        }
    }
}

/// What one stage did.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Which stage.
    pub stage: Stage,
    /// Ads that came in.
    pub candidates_in: usize,
    /// Ads that went on.
    pub candidates_out: usize,
    /// How long it took.
    pub duration: Duration,
    /// What stood in for its full work.
    pub fallbacks: Vec<Fallback>,
}

/// One ad that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Win {
    /// Derives from the request, the slot and the ad: a retry with the same answer repeats it.
    pub impression_id: String,
    /// The creative.
    pub creative_id: String,
    /// Who pays; empty for a house ad.
    pub campaign_id: String,
    /// What a person reads.
    pub title: String,
    /// Where the client gets the picture, below the asset root.
    pub asset_path: String,
    /// What a click costs, in millionths of the account's currency.
    pub price_micros: i64,
    /// How it came to win.
    pub scores: Scores,
}

/// The versions that a decision was made with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// Digest of the bundle; empty without one.
    pub bundle_digest: String,
    /// Digest by member name, and the online store's generation as `online`.
    pub artifact_digests: BTreeMap<String, String>,
    /// The channel's generation; 0 without a bundle.
    pub generation: u64,
}

/// What one request came to.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The ads, by slot.
    pub wins: Vec<Win>,
    /// What each stage did.
    pub stages: Vec<Trace>,
    /// The versions it was made with.
    pub versions: Arc<Versions>,
    /// Feature values that were not what the spec promises.
    pub feature_counts: EvaluationCounts,
    /// Where its entities were found.
    pub entity_counts: EntityCounts,
    /// One `ImpressionServed` per win of a campaign, for the log.
    pub events: Vec<Event>,
}

impl Decision {
    /// Where it stands on the ladder of degradation.
    pub fn degradation(&self) -> Degradation {
        degradation::level(self.stages.iter().flat_map(|trace| &trace.fallbacks))
    }

    /// Time that the stages took.
    pub fn stages_duration(&self) -> Duration {
        self.stages.iter().map(|trace| trace.duration).sum()
    }

    /// The answer on the wire.
    pub fn into_response(self, request_id: String, total: Duration) -> GetAdsResponse {
        let explain = Explain {
            degradation: self.degradation().into(),
            bundle_digest: self.versions.bundle_digest.clone(),
            artifact_digests: self.versions.artifact_digests.clone().into_iter().collect(),
            generation: self.versions.generation,
            total_us: micros(total),
            stages: self.stages.into_iter().map(trace_on_wire).collect(),
        };
        let winners = self.wins.into_iter().enumerate();
        GetAdsResponse {
            request_id,
            winners: winners.map(|(slot, win)| winner(slot, win)).collect(),
            explain: Some(explain),
        }
    }
}

fn trace_on_wire(trace: Trace) -> StageTrace {
    let fallbacks: Vec<String> = trace.fallbacks.iter().map(Fallback::to_string).collect();
    StageTrace {
        stage: trace.stage.name().to_owned(),
        candidates_in: trace.candidates_in as u32,
        candidates_out: trace.candidates_out as u32,
        duration_us: micros(trace.duration),
        fallback: fallbacks.join("; "),
    }
}

fn winner(slot: usize, win: Win) -> Winner {
    Winner {
        slot: slot as u32,
        tracking_token: tracking_token(&win),
        impression_id: win.impression_id,
        creative_id: win.creative_id,
        campaign_id: win.campaign_id,
        title: win.title,
        asset_path: win.asset_path,
        price_micros: win.price_micros,
        scores: Some(win.scores),
    }
}

/// Names what was sold at which price. It finds mix-ups; it is no signature against forgery.
fn tracking_token(win: &Win) -> String {
    let sold = format!(
        "{}\n{}\n{}",
        win.impression_id, win.creative_id, win.price_micros
    );
    registry::Digest::of(sold.as_bytes()).as_str()[..32].to_owned()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
