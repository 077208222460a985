//! DCN V2: explicit feature crosses beside (or below) a multi-layer perceptron.
//!
//! Source: Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for
//! Web-scale Learning to Rank Systems", WWW 2021, equations 1–4.

use burn::{module::Module, nn::Linear, prelude::Backend, tensor::Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::layers::{Mlp, Mode, bias, linear};
use crate::ops::{self, FusedOps};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DcnV2Config {
    /// Crosses of the input with itself; n layers reach products of n + 1 features.
    pub num_cross_layers: usize,
    /// Rank of the cross matrices; 0 means full. Lower is faster and says less.
    pub cross_rank: usize,
    /// Widths of the perceptron's hidden layers.
    pub hidden: Vec<usize>,
    /// How crosses and perceptron are joined.
    pub structure: Structure,
    /// Share of hidden values dropped in training.
    pub net_dropout: f64,
}

impl Default for DcnV2Config {
    fn default() -> Self {
        Self {
            num_cross_layers: 3,
            cross_rank: 0,
            hidden: vec![400, 400],
            structure: Structure::Parallel,
            net_dropout: 0.0,
        }
    }
}

/// How crosses and perceptron are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Structure {
    /// Both see the input; the output layer sees both.
    Parallel,
    /// The perceptron sees the crosses.
    Stacked,
}

/// One cross layer: `x' = x0 ⊙ (W x + b) + x`, with `W = V U` when the rank is limited.
#[derive(Module, Debug)]
struct CrossLayer<B: Backend> {
    down: Option<Linear<B>>,
    up: Linear<B>,
}

/// The network.
#[derive(Module, Debug)]
pub struct DcnV2<B: Backend> {
    cross: Vec<CrossLayer<B>>,
    mlp: Mlp<B>,
    output: Linear<B>,
    #[module(skip)]
    stacked: bool,
}

impl DcnV2Config {
    /// A fresh network for inputs of `num_inputs` values.
    pub fn init<B: FusedOps>(
        &self,
        num_inputs: usize,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> DcnV2<B> {
        let cross = (0..self.num_cross_layers)
            .map(|_| match self.cross_rank {
                0 => CrossLayer {
                    down: None,
                    up: linear(num_inputs, num_inputs, true, random, device),
                },
                rank => CrossLayer {
                    down: Some(linear(num_inputs, rank, false, random, device)),
                    up: linear(rank, num_inputs, true, random, device),
                },
            })
            .collect();
        let mlp = Mlp::new(num_inputs, &self.hidden, random, device);
        let width = self.hidden.last().copied().unwrap_or(num_inputs);
        let stacked = self.structure == Structure::Stacked;
        let joined = if stacked { width } else { width + num_inputs };
        DcnV2 {
            cross,
            mlp: mlp.with_dropout(self.net_dropout, 0),
            output: linear(joined, 1, true, random, device),
            stacked,
        }
    }
}

impl<B: FusedOps> DcnV2<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_inputs]`: standardised dense numbers, then pooled embeddings
    /// - returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let mut crossed = input.clone();
        for layer in &self.cross {
            crossed = layer.forward(input.clone(), crossed);
        }
        let deep = if self.stacked { crossed.clone() } else { input };
        let deep = self.mlp.forward(deep, mode);
        let weight = self.output.weight.val();
        let logits = if self.stacked {
            ops::product(deep, weight)
        } else {
            // What the output layer makes of both, side by side; joining them would be a copy.
            let [num_inputs, num_deep] = [crossed.dims()[1], deep.dims()[1]];
            let of_crossed = weight.clone().narrow(0, 0, num_inputs);
            let of_deep = weight.narrow(0, num_inputs, num_deep);
            ops::product(crossed, of_crossed) + ops::product(deep, of_deep)
        };
        logits + bias(&self.output).unsqueeze()
    }
}

impl<B: FusedOps> CrossLayer<B> {
    fn forward(&self, x0: Tensor<B, 2>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let inner = match &self.down {
            Some(down) => ops::product(x.clone(), down.weight.val()),
            None => x.clone(),
        };
        let product = ops::product(inner, self.up.weight.val());
        ops::cross(x0, product, bias(&self.up), x)
    }
}

#[cfg(test)]
mod tests {
    use burn::{module::Param, tensor::TensorData};
    use rand::SeedableRng;

    use super::*;
    use crate::Cpu;

    #[test]
    fn a_zero_cross_matrix_leaves_the_input_alone() {
        // With no hidden layer and output weights of one on the crossed part, the logit is the
        // closed form x0 ⊙ b + x0 summed.
        let config = DcnV2Config {
            num_cross_layers: 1,
            hidden: vec![],
            structure: Structure::Stacked,
            ..DcnV2Config::default()
        };
        let device = Default::default();
        let mut network: DcnV2<Cpu> = config.init(3, &mut ChaCha8Rng::seed_from_u64(1), &device);
        network.cross[0].up = Linear {
            weight: Param::from_tensor(Tensor::zeros([3, 3], &device)),
            bias: Some(Param::from_tensor(Tensor::from_floats(
                [1.0, 2.0, 3.0],
                &device,
            ))),
        };
        network.output = Linear {
            weight: Param::from_tensor(Tensor::ones([3, 1], &device)),
            bias: Some(Param::from_tensor(Tensor::zeros([1], &device))),
        };
        let input = TensorData::new(vec![1.0f32, 10.0, 100.0], [1, 3]);
        let input = Tensor::from_data(input, &device);
        let logit = network.forward(input, Mode::Inference).into_scalar();
        assert_eq!(logit, 2.0 + 30.0 + 400.0);
    }
}
