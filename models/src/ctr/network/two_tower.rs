//! Two towers: a vector of who asks and where, a vector of the ad, and their cosine.
//!
//! Nothing of one side enters the other, so that ads can be embedded once and searched by their vectors.
//!
//! Sources: Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data",
//! CIKM 2013; Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
//! RecSys 2019, section 3.

use std::ops::Range;

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::Tensor,
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Mlp, Mode, affine, linear, uniform},
};
use crate::ops::{FusedOps, cat};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoTowerConfig {
    /// Features of the ad, sparse or dense; of the sparse ones at least one, by which ads are told apart.
    /// None: the last sparse one.
    pub item_features: Vec<String>,
    /// Features of who asks and where. None: all that are not of the ad. What is of both, as a cross of a
    /// person with an ad, belongs to neither: with it, a query would know the ad that it is to find.
    pub query_features: Vec<String>,
    /// Widths of the hidden layers of both towers.
    pub hidden: Vec<usize>,
    /// Length of a vector.
    pub output_dim: usize,
    /// Share of hidden values dropped in training.
    pub net_dropout: f64,
}

impl Default for TwoTowerConfig {
    fn default() -> Self {
        Self {
            item_features: Vec::new(),
            query_features: Vec::new(),
            hidden: vec![256, 128],
            output_dim: 64,
            net_dropout: 0.0,
        }
    }
}

/// One side.
#[derive(Module, Debug)]
struct Side<B: Backend> {
    mlp: Mlp<B>,
    output: Linear<B>,
    /// Its columns of the input.
    #[module(skip)]
    columns: Vec<Range<usize>>,
}

/// The network.
#[derive(Module, Debug)]
pub struct TwoTower<B: Backend> {
    query: Side<B>,
    item: Side<B>,
    /// What a cosine is multiplied with, as a logarithm.
    log_scale: Param<Tensor<B, 1>>,
    bias: Param<Tensor<B, 1>>,
}

/// Vectors of the rows of a batch, of unit length.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerVectors {
    /// Length of a vector.
    pub dim: usize,
    /// `[rows, dim]`: of who asks.
    pub queries: Vec<f32>,
    /// `[rows, dim]`: of the ads.
    pub items: Vec<f32>,
    /// `[rows]`, as [`TwoTower::forward`] gives them.
    pub logits: Vec<f32>,
    /// What the cosine of both is multiplied with.
    pub scale: f32,
}

/// `ln 5`: a logit of −5 to 5 to begin with.
const INITIAL_LOG_SCALE: f32 = 1.609_438;

impl TwoTowerConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        super::at_least_one("output_dim", self.output_dim)?;
        self.item_fields(layout)?;
        let items = self.of_item(layout)?;
        if let Some(feature) = items.iter().find(|it| self.query_features.contains(it)) {
            let feature = feature.clone();
            return Err(NetworkError::BothSides { feature });
        }
        match self.query_columns(layout)?.is_empty() {
            true => Err(NetworkError::OneSided),
            false => Ok(()),
        }
    }

    /// Features of the ad: those that are named, or the last sparse one.
    fn of_item(&self, layout: &InputLayout) -> Result<Vec<String>, NetworkError> {
        match (&self.item_features[..], layout.fields.last()) {
            ([], None) => Err(NetworkError::NoFields),
            ([], Some(last)) => Ok(vec![last.feature.clone()]),
            (named, _) => Ok(named.to_vec()),
        }
    }

    /// Which of the sparse features are of the ad.
    ///
    /// # Errors
    /// [`NetworkError`] if there is none, or one of a name that the input does not have.
    pub fn item_fields(&self, layout: &InputLayout) -> Result<Vec<usize>, NetworkError> {
        self.item_columns(layout)?;
        let items = self.of_item(layout)?;
        let fields: Vec<usize> = items.iter().filter_map(|it| layout.field(it)).collect();
        match fields.is_empty() {
            true => Err(NetworkError::NoItem),
            false => Ok(fields),
        }
    }

    fn item_columns(&self, layout: &InputLayout) -> Result<Vec<Range<usize>>, NetworkError> {
        layout.columns_of("item_features", &self.of_item(layout)?)
    }

    fn query_columns(&self, layout: &InputLayout) -> Result<Vec<Range<usize>>, NetworkError> {
        if !self.query_features.is_empty() {
            return layout.columns_of("query_features", &self.query_features);
        }
        let items = self.item_columns(layout)?;
        let others = (0..layout.width())
            .filter(|at| !items.iter().any(|columns| columns.contains(at)))
            .map(|at| at..at + 1);
        Ok(joined(others))
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    ///
    /// # Panics
    /// If it does not.
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> TwoTower<B> {
        let items = self.item_columns(layout).expect("features of the layout");
        let others = self.query_columns(layout).expect("features of the layout");
        let mut side = |columns: Vec<Range<usize>>, first: usize| {
            let inputs = columns.iter().map(ExactSizeIterator::len).sum();
            let mlp = Mlp::new(inputs, &self.hidden, random, device);
            let last = self.hidden.last().copied().unwrap_or(inputs);
            let mut output = linear(last, self.output_dim, true, random, device);
            // A row without ids is a row of zeros, and a vector of zeros has no direction to learn from.
            let bound = (1.0 / last as f32).sqrt();
            output.bias = Some(uniform([self.output_dim], bound, random, device));
            Side {
                mlp: mlp.with_dropout(self.net_dropout, first),
                output,
                columns,
            }
        };
        let (query, item) = (side(others, 0), side(items, self.hidden.len()));
        TwoTower {
            query,
            item,
            log_scale: Param::from_tensor(Tensor::from_floats([INITIAL_LOG_SCALE], device)),
            bias: Param::from_tensor(Tensor::zeros([1], device)),
        }
    }
}

/// Ranges that follow each other as one.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

impl<B: FusedOps> Side<B> {
    fn forward(&self, input: &Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let part = |columns: &Range<usize>| input.clone().narrow(1, columns.start, columns.len());
        let own = cat(self.columns.iter().map(part).collect(), 1);
        let output = affine(&self.output, self.mlp.forward(own, mode));
        // The small number keeps a vector of zeros, and its gradient, finite.
        let length = (output.clone().powi_scalar(2).sum_dim(1) + 1e-12).sqrt();
        output / length
    }
}

impl<B: FusedOps> TwoTower<B> {
    /// Logits of a batch: a scaled cosine.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + columns of fields]`; returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        self.logits(self.queries(&input, mode), self.items(&input, mode))
    }

    /// Logits `[batch, 1]` of pairs of vectors `[batch, output_dim]`.
    fn logits(&self, queries: Tensor<B, 2>, items: Tensor<B, 2>) -> Tensor<B, 2> {
        let cosine = (queries * items).sum_dim(1);
        cosine * self.scale().unsqueeze() + self.bias.val().unsqueeze()
    }

    /// What a cosine is multiplied with: the inverse temperature, `[1]`.
    pub fn scale(&self) -> Tensor<B, 1> {
        self.log_scale.val().exp()
    }

    /// Vectors of who asks, of unit length; the ad's columns are not looked at.
    ///
    /// # Shapes
    /// - `input`: as for [`Self::forward`]; returns `[batch, output_dim]`
    pub fn queries(&self, input: &Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        self.query.forward(input, mode)
    }

    /// Vectors of ads, of unit length; only their columns are looked at.
    ///
    /// # Shapes
    /// - as for [`Self::queries`]
    pub fn items(&self, input: &Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        self.item.forward(input, mode)
    }

    /// Both sides' vectors, and the logits, as numbers, without dropout.
    ///
    /// # Shapes
    /// - `input`: as for [`Self::forward`]
    pub fn vectors(&self, input: &Tensor<B, 2>) -> TowerVectors {
        let numbers = |vectors: Tensor<B, 2>| {
            let vectors = vectors.into_data().convert::<f32>();
            vectors.to_vec().expect("the data were converted to f32")
        };
        let queries = self.queries(input, Mode::Inference);
        let items = self.items(input, Mode::Inference);
        TowerVectors {
            dim: queries.dims()[1],
            logits: numbers(self.logits(queries.clone(), items.clone())),
            queries: numbers(queries),
            items: numbers(items),
            scale: numbers(self.scale().unsqueeze())[0],
        }
    }
}
