//! What stood in for what, and how far down the ladder an answer is.

use std::fmt;

use wire::ads::Degradation;

/// Why a part could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It is not there: not in the bundle, or refused when it was loaded.
    Missing,
    /// No time was left.
    Late,
    /// It answered with an error.
    Failed(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Late => f.write_str("late"),
            Self::Failed(error) => write!(f, "failed ({error})"),
        }
    }
}

/// What stood in for a stage's full work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// Aggregates took their defaults: the feature store is missing, late or failing.
    DefaultFeatures(Why),
    /// The mean of all scenes stood in for a scene without a vector.
    MeanScene,
    /// Candidates came by genre and bid: the index is missing or failing.
    Rules(Why),
    /// Candidates were thinned out by similarity: the pre-scorer is missing, late or failing.
    SimilarityOrder(Why),
    /// Only the candidates most similar to the scene were pre-scored: there was no time for all.
    FewerCandidates,
    /// The pre-score stood in for the click probability: the ranker is missing, late or failing.
    PrescoreOrder(Why),
    /// A fixed click probability stood in: neither ranker nor pre-scorer could score.
    PriorScores(Why),
    /// House ads: there is nothing to choose from.
    HouseAds(Why),
}

impl Fallback {
    /// Where the answer stands because of it.
    pub fn level(&self) -> Degradation {
        match self {
            Self::MeanScene | Self::SimilarityOrder(_) | Self::FewerCandidates => Degradation::None,
            Self::PrescoreOrder(_) | Self::PriorScores(_) => Degradation::PrescoreOnly,
            Self::DefaultFeatures(_) => Degradation::DefaultFeatures,
            Self::Rules(_) => Degradation::RulesRetrieval,
            Self::HouseAds(_) => Degradation::HouseAds,
        }
    }

    /// A short name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DefaultFeatures(_) => "default_features",
            Self::MeanScene => "mean_scene",
            Self::Rules(_) => "rules",
            Self::SimilarityOrder(_) => "similarity_order",
            Self::FewerCandidates => "fewer_candidates",
            Self::PrescoreOrder(_) => "prescore_order",
            Self::PriorScores(_) => "prior_scores",
            Self::HouseAds(_) => "house_ads",
        }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultFeatures(why) => write!(f, "default features: feature store {why}"),
            Self::MeanScene => f.write_str("mean scene: no vector of this scene"),
            Self::Rules(why) => write!(f, "rules by genre and bid: index {why}"),
            Self::SimilarityOrder(why) => write!(f, "similarity order: pre-scorer {why}"),
            Self::FewerCandidates => f.write_str("fewer candidates: no time to pre-score all"),
            Self::PrescoreOrder(why) => write!(f, "pre-score order: ranker {why}"),
            Self::PriorScores(why) => write!(f, "fixed click probability: ranker {why}"),
            Self::HouseAds(why) => write!(f, "house ads: bundle {why}"),
        }
    }
}

/// The lowest level that any fallback reached.
pub fn level<'a>(fallbacks: impl Iterator<Item = &'a Fallback>) -> Degradation {
    fallbacks
        .map(Fallback::level)
        .max_by_key(|level| *level as i32)
        .unwrap_or(Degradation::None)
}

/// Name of a level, for metrics.
pub fn level_name(level: Degradation) -> &'static str {
    match level {
        Degradation::None => "none",
        Degradation::PrescoreOnly => "prescore_only",
        Degradation::DefaultFeatures => "default_features",
        Degradation::RulesRetrieval => "rules_retrieval",
        Degradation::HouseAds => "house_ads",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_at_its_lowest_rung() {
        let check = |fallbacks: &[Fallback], expected| {
            assert_eq!(level(fallbacks.iter()), expected);
        };
        check(&[], Degradation::None);
        check(&[Fallback::MeanScene], Degradation::None);
        let late = Fallback::PrescoreOrder(Why::Late);
        let rules = Fallback::Rules(Why::Missing);
        check(&[rules, late], Degradation::RulesRetrieval);
    }
}
