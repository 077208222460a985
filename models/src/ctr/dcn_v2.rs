//! DCN V2: explicit feature crosses beside (or below) a multi-layer perceptron.
//!
//! Source: Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for
//! Web-scale Learning to Rank Systems", WWW 2021, equations 1–4.

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, TensorData, activation::relu},
};
use features::hash::chain_integer;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

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
    hidden: Vec<Linear<B>>,
    output: Linear<B>,
    #[module(skip)]
    net_dropout: f64,
    #[module(skip)]
    stacked: bool,
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
    let weights: Vec<f32> = (0..inputs * outputs)
        .map(|_| random.random_range(-bound..bound))
        .collect();
    let weight = Tensor::from_data(TensorData::new(weights, [inputs, outputs]), device);
    let bias = bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device)));
    Linear {
        weight: Param::from_tensor(weight),
        bias,
    }
}

impl DcnV2Config {
    /// A fresh network for inputs of `num_inputs` values.
    pub fn init<B: Backend>(
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
        let mut width = num_inputs;
        let hidden = self
            .hidden
            .iter()
            .map(|next| {
                linear(
                    std::mem::replace(&mut width, *next),
                    *next,
                    true,
                    random,
                    device,
                )
            })
            .collect();
        let stacked = self.structure == Structure::Stacked;
        let joined = if stacked { width } else { width + num_inputs };
        DcnV2 {
            cross,
            hidden,
            output: linear(joined, 1, true, random, device),
            net_dropout: self.net_dropout,
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
    pub fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        self.logits(input, |_, hidden| hidden)
    }

    /// As [`Self::forward`], in training: each row drops some hidden values, which its number fixes.
    ///
    /// # Shapes
    /// - `rows`: `[batch]`
    pub fn forward_with_dropout(&self, input: Tensor<B, 2>, rows: &[u64]) -> Tensor<B, 2> {
        if self.net_dropout == 0.0 {
            return self.forward(input);
        }
        self.logits(input, |layer, hidden| {
            let number = |row: &u64| chain_integer(*row, layer as i64) as u32;
            let numbers: Vec<u32> = rows.iter().map(number).collect();
            ops::dropout(hidden, &numbers, self.net_dropout)
        })
    }

    /// Logits, with something done to the output of each hidden layer.
    fn logits(
        &self,
        input: Tensor<B, 2>,
        hidden: impl Fn(usize, Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let mut crossed = input.clone();
        for layer in &self.cross {
            crossed = layer.forward(input.clone(), crossed);
        }
        let mut deep = if self.stacked { crossed.clone() } else { input };
        for (at, layer) in self.hidden.iter().enumerate() {
            let product = ops::product(deep, layer.weight.val());
            deep = hidden(at, ops::bias_relu(product, bias(layer)));
        }
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

/// The bias of a layer that has one.
fn bias<B: Backend>(layer: &Linear<B>) -> Tensor<B, 1> {
    // They were all made with one.
    layer.bias.as_ref().expect("a layer with a bias").val()
}

/// Mean binary cross-entropy of logits, weighted: `Σ w (max(x,0) − x y + ln(1 + e^−|x|)) / Σ w`.
///
/// # Shapes
/// - all three: `[batch, 1]`; returns `[1]`
pub fn weighted_bce<B: Backend>(
    logits: Tensor<B, 2>,
    labels: Tensor<B, 2>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let positive = relu(logits.clone());
    let tail = (logits.clone().abs().neg().exp() + 1.0).log();
    let loss = positive - logits * labels + tail;
    (loss * weights.clone()).sum() / weights.sum()
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use rand::SeedableRng;

    use super::*;
    use crate::Cpu;

    type Network = DcnV2<Autodiff<Cpu>>;

    fn config(structure: Structure, cross_rank: usize) -> DcnV2Config {
        DcnV2Config {
            num_cross_layers: 2,
            cross_rank,
            hidden: vec![5, 4],
            structure,
            net_dropout: 0.0,
        }
    }

    fn network(config: &DcnV2Config) -> Network {
        config.init(3, &mut ChaCha8Rng::seed_from_u64(1), &Default::default())
    }

    fn batch(values: &[f32]) -> Tensor<Autodiff<Cpu>, 2> {
        Tensor::from_data(
            TensorData::new(values.to_vec(), [values.len() / 3, 3]),
            &Default::default(),
        )
    }

    fn loss(network: &Network, values: &[f32]) -> Tensor<Autodiff<Cpu>, 1> {
        let rows = values.len() / 3;
        let labels: Vec<f32> = (0..rows).map(|row| (row % 2) as f32).collect();
        let column = |values: Vec<f32>| {
            Tensor::from_data(TensorData::new(values, [rows, 1]), &Default::default())
        };
        weighted_bce(
            network.forward(batch(values)),
            column(labels),
            column(vec![1.0; rows]),
        )
    }

    #[test]
    fn input_gradients_equal_finite_differences() {
        let values = [0.3, -0.7, 0.5, 1.1, 0.2, -0.4, -0.9, 0.8, 0.6];
        for structure in [Structure::Parallel, Structure::Stacked] {
            for rank in [0, 2] {
                let network = network(&config(structure, rank));
                let input = batch(&values).require_grad();
                let labels = Tensor::from_data(
                    TensorData::new(vec![0f32, 1.0, 0.0], [3, 1]),
                    &Default::default(),
                );
                let ones = Tensor::ones([3, 1], &Default::default());
                let grads = weighted_bce(network.forward(input.clone()), labels, ones).backward();
                let found = input
                    .grad(&grads)
                    .unwrap()
                    .into_data()
                    .to_vec::<f32>()
                    .unwrap();
                for at in 0..values.len() {
                    let step = 1e-2;
                    let at_offset = |offset: f32| {
                        let mut moved = values;
                        moved[at] += offset;
                        loss(&network, &moved).into_scalar()
                    };
                    let expected = (at_offset(step) - at_offset(-step)) / (2.0 * step);
                    // f32 and a step of 1e-2 leave about 1e-4.
                    assert!(
                        (found[at] - expected).abs() < 1e-3,
                        "{structure:?} {rank} {at}: {} {expected}",
                        found[at]
                    );
                }
            }
        }
    }

    /// `x W + b` in f64, of one row.
    fn affine(layer: &Linear<Autodiff<Cpu>>, input: &[f64]) -> Vec<f64> {
        let values = |data: TensorData| data.to_vec::<f32>().unwrap();
        let weight = values(layer.weight.val().into_data());
        let outputs = weight.len() / input.len();
        let bias = layer
            .bias
            .as_ref()
            .map(|bias| values(bias.val().into_data()));
        (0..outputs)
            .map(|out| {
                let terms = input.iter().enumerate();
                let sum: f64 = terms
                    .map(|(at, value)| value * f64::from(weight[at * outputs + out]))
                    .sum();
                sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[out]))
            })
            .collect()
    }

    #[test]
    fn the_logits_equal_the_paper_s_equations_by_hand() {
        let rows = [[0.3, -0.7, 0.5], [1.1, 0.2, -0.4], [-2.0, 3.0, 0.1]];
        for structure in [Structure::Parallel, Structure::Stacked] {
            for rank in [0, 2] {
                let network = network(&config(structure, rank));
                let found = network.forward(batch(rows.as_flattened())).into_data();
                let found = found.to_vec::<f32>().unwrap();
                for (row, found) in rows.iter().zip(found) {
                    let input = row.map(f64::from);
                    let mut crossed = input.to_vec();
                    for layer in &network.cross {
                        let low = layer.down.as_ref().map(|down| affine(down, &crossed));
                        let inner = affine(&layer.up, low.as_ref().unwrap_or(&crossed));
                        for ((x, x0), inner) in crossed.iter_mut().zip(&input).zip(inner) {
                            *x += x0 * inner;
                        }
                    }
                    let mut deep = match structure {
                        Structure::Parallel => input.to_vec(),
                        Structure::Stacked => crossed.clone(),
                    };
                    for layer in &network.hidden {
                        deep = affine(layer, &deep).iter().map(|x| x.max(0.0)).collect();
                    }
                    let joined = match structure {
                        Structure::Parallel => [crossed, deep].concat(),
                        Structure::Stacked => deep,
                    };
                    let expected = affine(&network.output, &joined)[0];
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-5,
                        "{structure:?} {rank}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_zero_cross_matrix_leaves_the_input_alone() {
        // With no hidden layer and output weights of one on the crossed part, the logit is the
        // closed form x0 ⊙ b + x0 summed.
        let config = DcnV2Config {
            num_cross_layers: 1,
            hidden: vec![],
            structure: Structure::Stacked,
            ..config(Structure::Stacked, 0)
        };
        let mut network = network(&config);
        let device = Default::default();
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
        let logit = network.forward(batch(&[1.0, 10.0, 100.0])).into_scalar();
        assert_eq!(logit, 2.0 + 30.0 + 400.0);
    }

    #[test]
    fn a_seed_fixes_the_network() {
        let values = [0.1, 0.2, 0.3];
        let logit = || {
            network(&config(Structure::Parallel, 2))
                .forward(batch(&values))
                .into_scalar()
        };
        assert_eq!(logit(), logit());
    }

    #[test]
    fn the_loss_equals_the_textbook_formula() {
        let column = |values: [f32; 3]| {
            Tensor::<Cpu, 2>::from_data(
                TensorData::new(values.to_vec(), [3, 1]),
                &Default::default(),
            )
        };
        let found = weighted_bce(
            column([2.0, -1.0, 40.0]),
            column([1.0, 0.0, 1.0]),
            column([1.0, 2.0, 1.0]),
        );
        let ln = |x: f64| (1.0 / (1.0 + (-x).exp())).ln();
        let expected = -(ln(2.0) + 2.0 * ln(1.0) + ln(40.0)) / 4.0;
        assert!((f64::from(found.into_scalar()) - expected).abs() < 1e-6);
    }
}
