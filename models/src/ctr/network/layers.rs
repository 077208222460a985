//! What several networks are made of.

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, TensorData},
};
use features::hash::chain_integer;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::InputLayout;
use crate::ops::{self, FusedOps};

/// What a network is run for.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// Scores.
    Inference,
    /// Gradients: some hidden values are dropped.
    Training {
        /// `[batch]`: numbers that fix what each row drops.
        rows: &'a [u64],
    },
}

/// Numbers evenly drawn from `-bound..bound`.
pub(super) fn uniform<B: Backend, const D: usize>(
    shape: [usize; D],
    bound: f32,
    random: &mut ChaCha8Rng,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| random.random_range(-bound..bound))
        .collect();
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// A linear layer with Kaiming-uniform weights and zero bias, drawn from `random`, so that a seed
/// fixes the network on every backend.
pub(crate) fn linear<B: Backend>(
    inputs: usize,
    outputs: usize,
    bias: bool,
    random: &mut ChaCha8Rng,
    device: &B::Device,
) -> Linear<B> {
    let bound = (1.0 / inputs as f32).sqrt();
    let weight = uniform([inputs, outputs], bound, random, device);
    let bias = bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device)));
    Linear { weight, bias }
}

/// `x W`, and the bias where there is one.
///
/// # Shapes
/// - `x`: `[rows, inputs]`; returns `[rows, outputs]`
pub(super) fn affine<B: FusedOps>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let product = ops::product(x, layer.weight.val());
    match &layer.bias {
        Some(bias) => product + bias.val().unsqueeze(),
        None => product,
    }
}

/// The bias of a layer that has one.
pub(crate) fn bias<B: Backend>(layer: &Linear<B>) -> Tensor<B, 1> {
    // Those that are asked for were all made with one.
    layer.bias.as_ref().expect("a layer with a bias").val()
}

/// Hidden layers with ReLU, and dropout in training.
#[derive(Module, Debug)]
pub(super) struct Mlp<B: Backend> {
    pub(super) layers: Vec<Linear<B>>,
    #[module(skip)]
    dropout: f64,
    /// Number of the first layer among all of a network's, so that no two drop alike.
    #[module(skip)]
    first: usize,
}

impl<B: FusedOps> Mlp<B> {
    /// Fresh layers of these widths.
    pub(super) fn new(
        inputs: usize,
        widths: &[usize],
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Self {
        let mut before = inputs;
        let mut layer = |width: &usize| {
            let inputs = std::mem::replace(&mut before, *width);
            linear(inputs, *width, true, random, device)
        };
        Self {
            layers: widths.iter().map(&mut layer).collect(),
            dropout: 0.0,
            first: 0,
        }
    }

    /// Drops a share of the hidden values in training.
    pub(super) fn with_dropout(self, dropout: f64, first: usize) -> Self {
        Self {
            dropout,
            first,
            ..self
        }
    }

    /// # Shapes
    /// - `x`: `[batch, inputs]`; returns `[batch, last width]`, or `x` without layers
    pub(super) fn forward(&self, x: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let mut x = x;
        for (at, layer) in self.layers.iter().enumerate() {
            let product = ops::product(x, layer.weight.val());
            x = ops::bias_relu(product, bias(layer));
            if let Mode::Training { rows } = mode
                && self.dropout > 0.0
            {
                let layer = (self.first + at) as i64;
                let number = |row: &u64| chain_integer(*row, layer) as u32;
                let numbers: Vec<u32> = rows.iter().map(number).collect();
                x = ops::dropout(x, &numbers, self.dropout);
            }
        }
        x
    }
}

/// Hidden layers, the first of a network's that drop, and the layer that makes a logit of them.
pub(super) fn perceptron<B: FusedOps>(
    inputs: usize,
    hidden: &[usize],
    dropout: f64,
    random: &mut ChaCha8Rng,
    device: &B::Device,
) -> (Mlp<B>, Linear<B>) {
    let mlp = Mlp::new(inputs, hidden, random, device).with_dropout(dropout, 0);
    let last = hidden.last().copied().unwrap_or(inputs);
    (mlp, linear(last, 1, true, random, device))
}

/// Weights of single features: the part of a logit that is linear in them.
#[derive(Module, Debug)]
pub(super) struct FirstOrder<B: Backend> {
    /// `[num_dense, 1]`; those of fields are their rows.
    dense: Option<Param<Tensor<B, 2>>>,
    bias: Param<Tensor<B, 1>>,
}

impl<B: FusedOps> FirstOrder<B> {
    /// All zero.
    pub(super) fn new(num_dense: usize, device: &B::Device) -> Self {
        let zeros = || Param::from_tensor(Tensor::zeros([num_dense, 1], device));
        Self {
            dense: (num_dense > 0).then(zeros),
            bias: Param::from_tensor(Tensor::zeros([1], device)),
        }
    }

    /// # Shapes
    /// - `dense`: `[batch, num_dense]`; `of_fields`: `[batch, fields]`; returns `[batch, 1]`
    pub(super) fn forward(
        &self,
        dense: Option<Tensor<B, 2>>,
        of_fields: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let mut logit = of_fields.sum_dim(1) + self.bias.val().unsqueeze();
        if let (Some(weight), Some(dense)) = (&self.dense, dense) {
            logit = logit + ops::product(dense, weight.val());
        }
        logit
    }
}

/// Takes a network's input apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) num_dense: usize,
    pub(super) num_fields: usize,
    /// Columns of a field, all alike.
    pub(super) dim: usize,
}

impl Columns {
    /// Of a layout whose fields all have the same number of columns.
    pub(super) fn new(layout: &InputLayout) -> Self {
        Self {
            num_dense: layout.num_dense(),
            num_fields: layout.fields.len(),
            dim: layout.fields.first().map_or(0, |field| field.dim),
        }
    }

    /// # Shapes
    /// - `input`: `[batch, width]`; returns `[batch, num_dense]` and `[batch, fields, dim]`
    pub(super) fn split<B: Backend>(
        &self,
        input: Tensor<B, 2>,
    ) -> (Option<Tensor<B, 2>>, Tensor<B, 3>) {
        let [batch, _] = input.dims();
        let columns = self.num_fields * self.dim;
        let dense = (self.num_dense > 0).then(|| input.clone().narrow(1, 0, self.num_dense));
        let fields = input.narrow(1, self.num_dense, columns);
        (dense, fields.reshape([batch, self.num_fields, self.dim]))
    }
}

/// A vector for each dense number, which it scales: so that numbers interact as ids do. Source:
/// Song et al., "AutoInt", CIKM 2019, section 4.3.
#[derive(Module, Debug)]
pub(super) struct DenseVectors<B: Backend> {
    /// `[num_dense, dim]`.
    weight: Option<Param<Tensor<B, 2>>>,
}

impl<B: Backend> DenseVectors<B> {
    /// Fresh ones, as short as those of ids.
    pub(super) fn new(
        num_dense: usize,
        dim: usize,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Self {
        let bound = (1.0 / dim as f32).sqrt();
        Self {
            weight: (num_dense > 0).then(|| uniform([num_dense, dim], bound, random, device)),
        }
    }

    /// Those of the numbers, and after them those of the fields.
    ///
    /// # Shapes
    /// - `input`: `[batch, width]`, the numbers first; `of_fields`: `[batch, fields, dim]`; returns
    ///   `[batch, num_dense + fields, dim]`
    pub(super) fn join(&self, input: Tensor<B, 2>, of_fields: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.weight {
            Some(weight) => {
                let weight = weight.val();
                // In this order: on GPUs burn 0.21 loses the stride of a single column that is made
                // three-dimensional.
                let numbers = input.unsqueeze_dim::<3>(2).narrow(1, 0, weight.dims()[0]);
                ops::cat(vec![numbers * weight.unsqueeze::<3>(), of_fields], 1)
            }
            None => of_fields,
        }
    }
}

/// All side by side.
///
/// # Shapes
/// - `dense`: `[batch, num_dense]`; `vectors`: `[batch, fields, dim]`; returns
///   `[batch, num_dense + fields × dim]`
pub(super) fn side_by_side<B: Backend>(
    dense: Option<Tensor<B, 2>>,
    vectors: Tensor<B, 3>,
) -> Tensor<B, 2> {
    let vectors: Tensor<B, 2> = vectors.flatten(1, 2);
    match dense {
        Some(dense) => ops::cat(vec![dense, vectors], 1),
        None => vectors,
    }
}
