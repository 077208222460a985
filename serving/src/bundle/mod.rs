//! What serves together: one immutable value, loaded from the registry.
//!
//! [`load`](load::load) checks every file's digest and that the members belong together. A member
//! that cannot be used is left out and named in [`Bundle::faults`]; the stages have a fallback
//! for each. Only without a catalogue there is nothing to serve.

mod ads;
pub mod load;
mod vectors;

use std::sync::Arc;

use features::FeatureSet;
use models::{ctr::CtrModel, prescorer::PreScorer};

pub use ads::{Ad, Ads, Query};
pub use load::{Fault, LoadError, load};
pub use vectors::{Near, Search, VectorError, Vectors};

use crate::decision::Versions;

/// Members that serve together. Nothing in it changes.
#[derive(Debug)]
pub struct Bundle {
    /// Digests and generation, as answers tell them.
    pub versions: Arc<Versions>,
    /// The catalogue.
    pub ads: Ads,
    /// The feature spec, compiled.
    pub features: Option<FeatureSet>,
    /// Thins out candidates.
    pub prescorer: Option<PreScorer>,
    /// Predicts clicks.
    pub ranker: Option<CtrModel>,
    /// Finds candidates near a scene.
    pub vectors: Option<Vectors>,
    /// Members that should be there and cannot be used.
    pub faults: Vec<Fault>,
}
