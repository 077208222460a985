//! Click probabilities of the candidates that are left.

use std::time::Instant;

use features::{EvaluationCounts, FeatureBatch};

use super::{Assembled, Prescored, Scope, Staged, Thinned, evaluate, is_over};
use crate::degradation::{Fallback, Why};

/// Rows that are scored between two looks at the clock.
const ROWS_PER_LOOK: usize = 64;

/// One candidate with its click probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The ad's number.
    pub ad: u32,
    /// Cosine with the scene.
    pub similarity: f32,
    /// Click probability of the pre-scorer; 0 if it did not score.
    pub prescore: f32,
    /// Click probability that the auction uses.
    pub pctr: f32,
}

/// The candidates that bid, with their features.
#[derive(Debug)]
pub struct Bidding {
    /// In the order of the stage before.
    pub candidates: Vec<Ranked>,
    /// Their feature rows in the same order; absent when nothing computed them.
    pub features: Option<FeatureBatch>,
    /// What evaluation counted.
    pub counts: EvaluationCounts,
}

/// Scores the candidates. Without ranker, or with one that is late or failing, the pre-score
/// stands; without that, a fixed probability.
pub fn rank(
    scope: &Scope<'_>,
    assembled: &Assembled,
    thinned: Thinned,
    until: Instant,
) -> Staged<Bidding> {
    let Thinned {
        candidates,
        mut features,
        ..
    } = thinned;
    let mut counts = EvaluationCounts::default();
    let scored = score(
        scope,
        assembled,
        &candidates,
        &mut features,
        &mut counts,
        until,
    );
    let (scores, fallbacks) = match scored {
        Ok(scores) => (scores, Vec::new()),
        Err(why) => stand_in(scope, &candidates, why),
    };
    let ranked = candidates
        .iter()
        .zip(scores)
        .map(|(candidate, pctr)| Ranked {
            ad: candidate.ad,
            similarity: candidate.similarity,
            prescore: candidate.prescore.unwrap_or(0.0),
            pctr,
        });
    Staged {
        output: Bidding {
            candidates: ranked.collect(),
            features,
            counts,
        },
        fallbacks,
    }
}

fn score(
    scope: &Scope<'_>,
    assembled: &Assembled,
    candidates: &[Prescored],
    features: &mut Option<FeatureBatch>,
    counts: &mut EvaluationCounts,
    until: Instant,
) -> Result<Vec<f32>, Why> {
    let ranker = scope.bundle.ranker.as_ref().ok_or(Why::Missing)?;
    let set = scope.bundle.features.as_ref().ok_or(Why::Missing)?;
    if is_over(until) {
        return Err(Why::Late);
    }
    let batch = features.get_or_insert_with(|| {
        let mut batch = FeatureBatch::new(set.schema());
        let ads = candidates.iter().map(|candidate| candidate.ad);
        *counts = evaluate(scope, assembled, ads, &mut batch);
        batch
    });
    let rows: Vec<usize> = (0..batch.num_rows).collect();
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(ROWS_PER_LOOK) {
        if is_over(until) {
            return Err(Why::Late);
        }
        let scored = if chunk.len() == batch.num_rows {
            ranker.score(batch)
        } else {
            ranker.score(&batch.gather(chunk))
        };
        scores.extend(scored.map_err(|error| Why::Failed(error.to_string()))?);
    }
    match scores.iter().find(|score| !score.is_finite()) {
        Some(score) => Err(Why::Failed(format!("it scored {score}"))),
        None => Ok(scores),
    }
}

/// Pre-scores if all candidates have one, else the fixed probability.
fn stand_in(scope: &Scope<'_>, candidates: &[Prescored], why: Why) -> (Vec<f32>, Vec<Fallback>) {
    let prescores: Option<Vec<f32>> = candidates
        .iter()
        .map(|candidate| candidate.prescore)
        .collect();
    match prescores {
        Some(prescores) => (prescores, vec![Fallback::PrescoreOrder(why)]),
        None => {
            let prior = scope.config.funnel.prior_pctr;
            (
                vec![prior; candidates.len()],
                vec![Fallback::PriorScores(why)],
            )
        }
    }
}
