//! Click models: embeddings and dense numbers in, a logit out.
//!
//! [`embedding`] pools the rows of a bag of ids; [`dcn_v2`] is the network over them;
//! [`artifact`] is a trained model as files, ready to score.

pub mod artifact;
pub mod dcn_v2;
pub mod embedding;

pub use artifact::{Calibration, CtrModel, CtrModelError, Normalisation};
pub use dcn_v2::{DcnV2, DcnV2Config, Structure};
pub use embedding::{EmbeddingTable, KnownIds, Pooling};
