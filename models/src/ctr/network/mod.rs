//! The networks of click models: an input row of numbers and pooled embeddings in, logits out.
//!
//! [`NetworkConfig`] chooses one by `architecture`, [`InputLayout`] says what stands in which
//! column, and [`Network`] is whichever it is. A network on its own is a file here, with its
//! paper's name and equations.

mod auto_int;
mod dcn_v2;
mod dlrm;
mod final_mlp;
mod fm;
mod layers;
mod layout;
mod linear;
mod mmoe;
#[cfg(test)]
mod tests;
mod two_tower;

pub use auto_int::{AutoInt, AutoIntConfig};
use burn::{module::Module, prelude::Backend, tensor::Tensor};
pub use dcn_v2::{DcnV2, DcnV2Config, Structure};
pub use dlrm::{Dlrm, DlrmConfig};
pub use final_mlp::{FinalMlp, FinalMlpConfig};
pub use fm::{DeepFm, DeepFmConfig, Fm, FmConfig};
pub use layers::Mode;
pub(crate) use layers::{bias, linear};
pub use layout::{Field, InputLayout};
pub use linear::{LogisticRegression, LogisticRegressionConfig};
pub use mmoe::{Mmoe, MmoeConfig};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use two_tower::{TowerVectors, TwoTower, TwoTowerConfig};

use crate::ops::FusedOps;

/// Which network, and its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum NetworkConfig {
    /// A weight for every id and every number.
    LogisticRegression(LogisticRegressionConfig),
    /// A factorization machine.
    Fm(FmConfig),
    /// A factorization machine beside a perceptron.
    DeepFm(DeepFmConfig),
    /// Dot products of all pairs between two perceptrons.
    Dlrm(DlrmConfig),
    /// Crosses beside or below a perceptron.
    DcnV2(DcnV2Config),
    /// Features that attend to each other.
    AutoInt(AutoIntConfig),
    /// Two perceptrons behind gates.
    FinalMlp(FinalMlpConfig),
    /// Clicks and conversions from shared experts.
    Mmoe(MmoeConfig),
    /// The cosine of a vector of who asks and one of the ad.
    TwoTower(TwoTowerConfig),
}

/// A network of any architecture.
#[derive(Module, Debug)]
#[expect(missing_docs, reason = "as in NetworkConfig")]
pub enum Network<B: Backend> {
    LogisticRegression(LogisticRegression<B>),
    Fm(Fm<B>),
    DeepFm(DeepFm<B>),
    Dlrm(Dlrm<B>),
    DcnV2(DcnV2<B>),
    AutoInt(AutoInt<B>),
    FinalMlp(FinalMlp<B>),
    Mmoe(Mmoe<B>),
    TwoTower(TwoTower<B>),
}

/// Why a network cannot be made for an input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NetworkError {
    /// Nothing, or more than all, would be left.
    #[error("model.net_dropout is {rate}, wanted at least 0 and below 1")]
    Dropout {
        /// The share.
        rate: f64,
    },
    /// A number that cannot be.
    #[error("model.{key} is 0, wanted at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// Vectors that are to be compared, of different lengths.
    #[error(
        "model.architecture compares the vectors of features, but `{}` has rows of {} values and `{}` of {}: give all the same tables.embedding_dim, or choose dcn_v2, final_mlp or mmoe", .one.feature, .one.dim, .other.feature, .other.dim
    )]
    UnequalDims {
        /// A feature.
        one: Field,
        /// Another.
        other: Field,
    },
    /// Nothing to compare.
    #[error("model.architecture wants at least one sparse feature, and the table has none")]
    NoFields,
    /// Rows that hold a weight and nothing else.
    #[error("model.architecture wants tables.embedding_dim to be at least 1")]
    NoVector,
    /// A feature that the input does not have.
    #[error("model.{key} names `{feature}`, which is not a feature of the rows: {known}")]
    UnknownFeature {
        /// The key.
        key: &'static str,
        /// The name.
        feature: String,
        /// What there is.
        known: String,
    },
    /// A key of a part that is left out.
    #[error("model.{key} is set, but {but}: change one of them")]
    Unused {
        /// The key.
        key: &'static str,
        /// What leaves the part out.
        but: &'static str,
    },
    /// All features on one side.
    #[error(
        "model.item_features takes all features, and leaves none for the other tower: leave out what is of who asks"
    )]
    OneSided,
    /// A feature on both sides.
    #[error(
        "model.item_features and model.query_features both name `{feature}`: it is of the ad, or of who asks"
    )]
    BothSides {
        /// The feature.
        feature: String,
    },
    /// Ads without names.
    #[error(
        "model.item_features names no sparse feature, by which ads could be told apart: add the ad's id"
    )]
    NoItem,
    /// A layer that cannot be cut into equal parts.
    #[error(
        "model.{key} ends with {width} values, wanted a multiple of model.num_heads ({num_heads})"
    )]
    Heads {
        /// The key.
        key: &'static str,
        /// Width of the last layer.
        width: usize,
        /// The parts.
        num_heads: usize,
    },
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), NetworkError> {
    match value {
        0 => Err(NetworkError::Zero { key }),
        _ => Ok(()),
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self::DcnV2(DcnV2Config::default())
    }
}

impl NetworkConfig {
    /// Length of a feature's row, given that of its vector: some networks have a weight before it,
    /// or nothing else.
    pub fn row_dim(&self, embedding_dim: usize) -> usize {
        match self {
            Self::LogisticRegression(_) => 1,
            Self::Fm(_) | Self::DeepFm(_) => 1 + embedding_dim,
            _ => embedding_dim,
        }
    }

    /// Logits of a row.
    pub fn num_tasks(&self) -> usize {
        match self {
            Self::Mmoe(_) => MmoeConfig::NUM_TASKS,
            _ => 1,
        }
    }

    /// Share of hidden values dropped in training.
    pub fn net_dropout(&self) -> f64 {
        match self {
            Self::LogisticRegression(_) | Self::Fm(_) => 0.0,
            Self::DeepFm(config) => config.net_dropout,
            Self::Dlrm(config) => config.net_dropout,
            Self::DcnV2(config) => config.net_dropout,
            Self::AutoInt(config) => config.net_dropout,
            Self::FinalMlp(config) => config.net_dropout,
            Self::Mmoe(config) => config.net_dropout,
            Self::TwoTower(config) => config.net_dropout,
        }
    }

    /// Which of the sparse features are of the ad, of two towers.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn item_fields(&self, layout: &InputLayout) -> Result<Option<Vec<usize>>, NetworkError> {
        match self {
            Self::TwoTower(config) => config.item_fields(layout).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether there can be such a network for an input.
    ///
    /// # Errors
    /// [`NetworkError`] that names the key.
    pub fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        let rate = self.net_dropout();
        if !(0.0..1.0).contains(&rate) {
            return Err(NetworkError::Dropout { rate });
        }
        match self {
            Self::LogisticRegression(config) => config.check(layout),
            Self::Fm(config) => config.check(layout),
            Self::DeepFm(config) => config.check(layout),
            Self::Dlrm(config) => config.check(layout),
            Self::DcnV2(_) => Ok(()),
            Self::AutoInt(config) => config.check(layout),
            Self::FinalMlp(config) => config.check(layout),
            Self::Mmoe(config) => config.check(layout),
            Self::TwoTower(config) => config.check(layout),
        }
    }

    /// A fresh network, whose weights `random` fixes on every backend.
    ///
    /// # Panics
    /// If the layout does not fit ([`Self::check`]).
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Network<B> {
        match self {
            Self::LogisticRegression(config) => {
                Network::LogisticRegression(config.init(layout, device))
            }
            Self::Fm(config) => Network::Fm(config.init(layout, random, device)),
            Self::DeepFm(config) => Network::DeepFm(config.init(layout, random, device)),
            Self::Dlrm(config) => Network::Dlrm(config.init(layout, random, device)),
            Self::DcnV2(config) => Network::DcnV2(config.init(layout.width(), random, device)),
            Self::AutoInt(config) => Network::AutoInt(config.init(layout, random, device)),
            Self::FinalMlp(config) => Network::FinalMlp(config.init(layout, random, device)),
            Self::Mmoe(config) => Network::Mmoe(config.init(layout, random, device)),
            Self::TwoTower(config) => Network::TwoTower(config.init(layout, random, device)),
        }
    }
}

impl<B: FusedOps> Network<B> {
    /// The two towers, if it is those.
    pub fn two_tower(&self) -> Option<&TwoTower<B>> {
        match self {
            Self::TwoTower(network) => Some(network),
            _ => None,
        }
    }

    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, width of the layout]`; returns `[batch, tasks]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        match self {
            Self::LogisticRegression(network) => network.forward(input),
            Self::Fm(network) => network.forward(input),
            Self::DeepFm(network) => network.forward(input, mode),
            Self::Dlrm(network) => network.forward(input, mode),
            Self::DcnV2(network) => network.forward(input, mode),
            Self::AutoInt(network) => network.forward(input, mode),
            Self::FinalMlp(network) => network.forward(input, mode),
            Self::Mmoe(network) => network.forward(input, mode),
            Self::TwoTower(network) => network.forward(input, mode),
        }
    }
}
