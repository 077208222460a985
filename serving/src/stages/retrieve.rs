//! Candidates: ads that the request may see, nearest to its scene first.

use std::time::Instant;

use roaring::RoaringBitmap;
use wire::events::AgeBand;

use super::{Assembled, Scope, Staged, is_over};
use crate::{
    bundle::{Near, Query, Search},
    degradation::{Fallback, Why},
};

/// What retrieval found.
#[derive(Debug)]
pub struct Retrieved {
    /// Best first.
    pub candidates: Vec<Near>,
}

/// Finds candidates by the scene's vector; without index, or with one that is late or failing,
/// by rules. Targeting, age, format and spent budgets hold either way.
pub fn retrieve(scope: &Scope<'_>, assembled: &Assembled, until: Instant) -> Staged<Retrieved> {
    let context = &assembled.context;
    let query = Query {
        genre: &context.genre,
        device: &context.device,
        country: &context.country,
        format: &context.format,
        is_13plus: scope.request.age_band == AgeBand::AgeBand13plus,
    };
    let eligible = scope.bundle.ads.eligible(&query, &scope.budgets.closed());
    let mut fallbacks = Vec::new();
    let candidates = match by_vector(scope, assembled, &eligible, until, &mut fallbacks) {
        Ok(candidates) => candidates,
        Err(why) => {
            fallbacks = vec![Fallback::Rules(why)];
            by_rules(scope, &context.genre, &eligible)
        }
    };
    Staged {
        output: Retrieved { candidates },
        fallbacks,
    }
}

fn by_vector(
    scope: &Scope<'_>,
    assembled: &Assembled,
    eligible: &RoaringBitmap,
    until: Instant,
    fallbacks: &mut Vec<Fallback>,
) -> Result<Vec<Near>, Why> {
    let vectors = scope.bundle.vectors.as_ref().ok_or(Why::Missing)?;
    if is_over(until) {
        return Err(Why::Late);
    }
    let query = vectors
        .scene(&assembled.context.scene_id)
        .unwrap_or_else(|| {
            fallbacks.push(Fallback::MeanScene);
            vectors.mean_scene()
        });
    let search = Search {
        count: scope.config.funnel.retrieved,
        exact_limit: scope.config.funnel.exact_limit,
    };
    vectors
        .nearest(query, eligible, search)
        .map_err(|error| Why::Failed(error.to_string()))
}

/// The time may be up already, so this takes what the bundle has in order, and stops early.
fn by_rules(scope: &Scope<'_>, genre: &str, eligible: &RoaringBitmap) -> Vec<Near> {
    let funnel = &scope.config.funnel;
    let ads = &scope.bundle.ads;
    ads.by_rules(genre, eligible, funnel.ads_per_campaign)
        .take(funnel.retrieved)
        .map(|ad| Near {
            ad,
            similarity: 0.0,
        })
        .collect()
}
