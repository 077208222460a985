//! A vision transformer: patches as tokens, pre-norm blocks, one vector per picture.
//!
//! Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; registers from
//! Darcet et al., "Vision Transformers Need Registers", ICLR 2024.

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, LayerNormConfig, Linear},
    prelude::Backend,
    tensor::{Tensor, TensorData, activation::gelu, module::attention},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ctr::network::linear;

/// Shape of the transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// Pictures are resized to this many pixels each way.
    pub image_size: usize,
    /// Pixels each way of a patch; smaller means more tokens: finer and slower.
    pub patch_size: usize,
    /// Length of a token.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; must divide `dim`.
    pub num_heads: usize,
    /// Width of a block's perceptron over `dim`.
    pub mlp_ratio: usize,
    /// Further learnt tokens that give attention a place to keep notes.
    pub num_registers: usize,
    /// What becomes the picture's vector.
    pub pooling: Pooling,
}

/// What becomes the picture's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over the patches.
    Mean,
    /// A learnt token of its own.
    Cls,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 28,
            patch_size: 7,
            dim: 64,
            depth: 2,
            num_heads: 4,
            mlp_ratio: 2,
            num_registers: 0,
            pooling: Pooling::Mean,
        }
    }
}

impl VitConfig {
    /// Patches of a picture.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Numbers of a patch.
    pub fn patch_values(&self) -> usize {
        self.patch_size * self.patch_size * 3
    }

    /// A fresh transformer; the numbers must have been checked.
    pub(super) fn init<B: Backend>(&self, random: &mut ChaCha8Rng, device: &B::Device) -> Vit<B> {
        let extra = self.num_registers + usize::from(self.pooling == Pooling::Cls);
        let blocks = (0..self.depth)
            .map(|_| self.init_block(random, device))
            .collect();
        Vit {
            patch_embedding: linear(self.patch_values(), self.dim, true, random, device),
            positions: tokens(self.num_patches(), self.dim, random, device),
            extra_tokens: (extra > 0).then(|| tokens(extra, self.dim, random, device)),
            blocks,
            norm: LayerNormConfig::new(self.dim)
                .with_epsilon(1e-6)
                .init(device),
            pools_cls: self.pooling == Pooling::Cls,
        }
    }

    fn init_block<B: Backend>(&self, random: &mut ChaCha8Rng, device: &B::Device) -> Block<B> {
        let (dim, hidden) = (self.dim, self.dim * self.mlp_ratio);
        let norm = || LayerNormConfig::new(dim).with_epsilon(1e-6).init(device);
        Block {
            attention_norm: norm(),
            qkv: linear(dim, 3 * dim, true, random, device),
            attention_out: linear(dim, dim, true, random, device),
            mlp_norm: norm(),
            mlp_in: linear(dim, hidden, true, random, device),
            mlp_out: linear(hidden, dim, true, random, device),
            num_heads: self.num_heads,
        }
    }
}

/// Learnt tokens, drawn from a normal distribution of deviation 0.02.
fn tokens<B: Backend>(
    count: usize,
    dim: usize,
    random: &mut ChaCha8Rng,
    device: &B::Device,
) -> Param<Tensor<B, 3>> {
    // Twelve uniform numbers make one that is normal enough for a start.
    let normal = |random: &mut ChaCha8Rng| {
        (0..12)
            .map(|_| random.random_range(-0.5f32..0.5))
            .sum::<f32>()
            * 0.02
    };
    let values: Vec<f32> = (0..count * dim).map(|_| normal(random)).collect();
    Param::from_tensor(Tensor::from_data(
        TensorData::new(values, [1, count, dim]),
        device,
    ))
}

/// Attention, then a perceptron; each reads normalised tokens and adds to them.
#[derive(Module, Debug)]
struct Block<B: Backend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    attention_out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    mlp_in: Linear<B>,
    mlp_out: Linear<B>,
    #[module(skip)]
    num_heads: usize,
}

/// The transformer.
#[derive(Module, Debug)]
pub struct Vit<B: Backend> {
    patch_embedding: Linear<B>,
    positions: Param<Tensor<B, 3>>,
    /// The pooled token, if there is one, then the registers.
    extra_tokens: Option<Param<Tensor<B, 3>>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    #[module(skip)]
    pools_cls: bool,
}

impl<B: Backend> Block<B> {
    fn forward(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        let attended = self.attend(self.attention_norm.forward(tokens.clone()));
        let tokens = tokens + attended;
        let inner = gelu(self.mlp_in.forward(self.mlp_norm.forward(tokens.clone())));
        tokens + self.mlp_out.forward(inner)
    }

    fn attend(&self, tokens: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, count, dim] = tokens.dims();
        let head_dim = dim / self.num_heads;
        let qkv = self.qkv.forward(tokens);
        let heads = |part: usize| {
            let range = part * dim..(part + 1) * dim;
            qkv.clone()
                .slice([0..batch, 0..count, range])
                .reshape([batch, count, self.num_heads, head_dim])
                .swap_dims(1, 2)
        };
        let attended = attention(heads(0), heads(1), heads(2), None, None, Default::default());
        let joined = attended.swap_dims(1, 2).reshape([batch, count, dim]);
        self.attention_out.forward(joined)
    }
}

impl<B: Backend> Vit<B> {
    /// One vector per picture.
    ///
    /// # Shapes
    /// - `patches`: `[batch, num_patches, patch_values]`
    /// - returns `[batch, dim]`
    pub fn forward(&self, patches: Tensor<B, 3>) -> Tensor<B, 2> {
        let mut tokens = self.patch_embedding.forward(patches) + self.positions.val();
        let [batch, num_patches, dim] = tokens.dims();
        if let Some(extra) = &self.extra_tokens {
            let count = extra.dims()[1];
            let extra = extra.val().expand([batch, count, dim]);
            tokens = Tensor::cat(vec![tokens, extra], 1);
        }
        for block in &self.blocks {
            tokens = block.forward(tokens);
        }
        let tokens = self.norm.forward(tokens);
        if self.pools_cls {
            let cls = tokens.slice([0..batch, num_patches..num_patches + 1, 0..dim]);
            cls.reshape([batch, dim])
        } else {
            let patches = tokens.slice([0..batch, 0..num_patches, 0..dim]);
            patches.mean_dim(1).reshape([batch, dim])
        }
    }
}
