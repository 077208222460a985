//! Thinning out: from hundreds of candidates to the few that the ranker can afford.

use std::time::Instant;

use features::{AdFacts, EvaluationCounts, FeatureBatch};

use super::{
    Assembled, Retrieved, Scope, Staged, assemble::why, evaluate, first_of_campaign, is_over,
};
use crate::{
    bundle::Near,
    degradation::{Fallback, Why},
};

/// Ads whose features are computed between two looks at the clock.
const ADS_PER_LOOK: usize = 128;

/// One candidate after thinning out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prescored {
    /// The ad's number.
    pub ad: u32,
    /// Cosine with the scene.
    pub similarity: f32,
    /// Click probability of the pre-scorer, if it scored.
    pub prescore: Option<f32>,
}

/// The candidates that go on, with their features.
#[derive(Debug)]
pub struct Thinned {
    /// Best first.
    pub candidates: Vec<Prescored>,
    /// Their feature rows in the same order; absent when they were not computed yet.
    pub features: Option<FeatureBatch>,
    /// What evaluation counted.
    pub counts: EvaluationCounts,
}

/// Keeps the candidates with the highest expected value, pre-score × bid, which is what the
/// auction will ask for. Without pre-scorer, or with one that is late or failing, those most
/// similar to the scene stay. Either way a campaign keeps only a few, and leaves room for rivals.
pub fn prescore(
    scope: &Scope<'_>,
    assembled: &mut Assembled,
    retrieved: &Retrieved,
    until: Instant,
) -> Staged<Thinned> {
    let mut fallbacks = Vec::new();
    let found = &retrieved.candidates;
    if let Err(why) = read_states(scope, assembled, found, until) {
        assembled.store_is_up = false;
        fallbacks.push(Fallback::DefaultFeatures(why));
    }
    let mut counts = EvaluationCounts::default();
    let thinned = by_value(scope, assembled, found, until, &mut fallbacks, &mut counts);
    let (candidates, features) = thinned.unwrap_or_else(|why| {
        fallbacks.push(Fallback::SimilarityOrder(why));
        let mut is_first = first_of_campaign(scope);
        let kept = found.iter().filter(|near| is_first(near.ad));
        let kept = kept.take(scope.config.funnel.prescored);
        let unscored = |near: &Near| Prescored {
            ad: near.ad,
            similarity: near.similarity,
            prescore: None,
        };
        (kept.map(unscored).collect(), None)
    });
    Staged {
        output: Thinned {
            candidates,
            features,
            counts,
        },
        fallbacks,
    }
}

/// Reads the aggregates about pairs of this request and its candidates.
fn read_states(
    scope: &Scope<'_>,
    assembled: &mut Assembled,
    found: &[Near],
    until: Instant,
) -> Result<(), Why> {
    let (Some(features), Some(facts), Some(store), true) = (
        &scope.bundle.features,
        &assembled.facts,
        scope.store,
        assembled.store_is_up,
    ) else {
        // The assemble stage has told it already.
        return Ok(());
    };
    let ads: Vec<&AdFacts> = found
        .iter()
        .filter_map(|near| scope.bundle.ads.ad(near.ad).facts.as_ref())
        .collect();
    let keys = features.keys(facts, &ads);
    // The other half is for scoring.
    let now = Instant::now();
    let until = now + until.saturating_duration_since(now) / 2;
    assembled.states.read(store, &keys, until).map_err(why)
}

type Chosen = (Vec<Prescored>, Option<FeatureBatch>);

fn by_value(
    scope: &Scope<'_>,
    assembled: &Assembled,
    found: &[Near],
    until: Instant,
    fallbacks: &mut Vec<Fallback>,
    counts: &mut EvaluationCounts,
) -> Result<Chosen, Why> {
    let prescorer = scope.bundle.prescorer.as_ref().ok_or(Why::Missing)?;
    let features = scope.bundle.features.as_ref().ok_or(Why::Missing)?;
    if is_over(until) {
        return Err(Why::Late);
    }
    let mut batch = FeatureBatch::new(features.schema());
    for chunk in found.chunks(ADS_PER_LOOK) {
        if batch.num_rows > 0 && is_over(until) {
            fallbacks.push(Fallback::FewerCandidates);
            break;
        }
        let ads = chunk.iter().map(|near| near.ad);
        *counts += evaluate(scope, assembled, ads, &mut batch);
    }
    let scores = prescorer
        .score(&batch)
        .map_err(|error| Why::Failed(error.to_string()))?;
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(Why::Failed(format!("it scored {score}")));
    }
    let value = |row: usize| {
        let bid_micros = scope.bundle.ads.campaign_of(found[row].ad).bid_micros;
        f64::from(scores[row]) * bid_micros as f64
    };
    let mut rows: Vec<usize> = (0..scores.len()).collect();
    rows.sort_unstable_by(|&a, &b| {
        value(b)
            .total_cmp(&value(a))
            .then(found[a].ad.cmp(&found[b].ad))
    });
    let mut is_first = first_of_campaign(scope);
    rows.retain(|&row| is_first(found[row].ad));
    rows.truncate(scope.config.funnel.prescored);
    let scored = |row: &usize| Prescored {
        ad: found[*row].ad,
        similarity: found[*row].similarity,
        prescore: Some(scores[*row]),
    };
    Ok((rows.iter().map(scored).collect(), Some(batch.gather(&rows))))
}
