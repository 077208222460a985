//! Click models: embeddings and dense numbers in, a logit out.
//!
//! [`embedding`] pools the rows of a bag of ids; [`network`] has the networks over them, one of
//! which a configuration names; [`loss`] is what training makes small; [`artifact`] is a trained
//! model as files, ready to score.

pub mod artifact;
mod calibration;
mod delay;
pub mod embedding;
pub mod loss;
pub mod network;

pub use artifact::{CtrModel, CtrModelError, Normalisation};
pub use calibration::Calibration;
pub use delay::ConversionDelay;
pub use embedding::{EmbeddingTable, KnownIds, Pooling};
pub use network::{InputLayout, Mode, Network, NetworkConfig, NetworkError};
