//! Logistic regression: a weight for every id and every number.
//!
//! Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013.

use burn::{module::Module, prelude::Backend, tensor::Tensor};
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Columns, FirstOrder},
};
use crate::ops::FusedOps;

/// There is nothing to choose: an id's row is its weight, whatever `tables.embedding_dim` is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogisticRegressionConfig {}

/// The network.
#[derive(Module, Debug)]
pub struct LogisticRegression<B: Backend> {
    first_order: FirstOrder<B>,
    #[module(skip)]
    columns: Columns,
}

impl LogisticRegressionConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        layout.equal_dim().map(|_| ())
    }

    /// A fresh network.
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        device: &B::Device,
    ) -> LogisticRegression<B> {
        LogisticRegression {
            first_order: FirstOrder::new(layout.num_dense(), device),
            columns: Columns::new(layout),
        }
    }
}

impl<B: FusedOps> LogisticRegression<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + fields]`; returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let (dense, fields) = self.columns.split(input);
        self.first_order.forward(dense, fields.flatten(1, 2))
    }
}
