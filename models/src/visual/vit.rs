//! A vision transformer: patches as tokens, pre-norm blocks, one vector per picture.
//!
//! Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; registers from
//! Darcet et al., "Vision Transformers Need Registers", ICLR 2024; the norm before the blocks from
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
//! pooling by attention from Zhai et al., "Scaling Vision Transformers", CVPR 2022.

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, TensorData},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    ctr::network::{bias, linear},
    ops::{self, FusedOps, Gelu},
};

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
    /// Form of the perceptrons' activation.
    pub gelu: Gelu,
    /// Added to variances before their root.
    pub norm_eps: f64,
    /// Whether tokens are normalised before the first block, as CLIP's are.
    pub norm_before: bool,
    /// Length of the vector after a projection without bias; 0 for none, and then it is `dim`.
    pub projection_dim: usize,
}

/// What becomes the picture's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over the patches.
    Mean,
    /// A learnt token of its own.
    Cls,
    /// What a learnt query finds among the patches, and a perceptron beside it: SigLIP.
    Map,
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
            gelu: Gelu::Exact,
            norm_eps: 1e-6,
            norm_before: false,
            projection_dim: 0,
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

    /// Length of a picture's vector.
    pub fn output_dim(&self) -> usize {
        if self.projection_dim > 0 {
            self.projection_dim
        } else {
            self.dim
        }
    }

    /// Tokens that are no patches.
    pub(super) fn num_extra_tokens(&self) -> usize {
        self.num_registers + usize::from(self.pooling == Pooling::Cls)
    }

    /// A fresh transformer; the numbers must have been checked.
    pub(super) fn init<B: Backend>(&self, random: &mut ChaCha8Rng, device: &B::Device) -> Vit<B> {
        let (dim, extra) = (self.dim, self.num_extra_tokens());
        Vit {
            patch_embedding: linear(self.patch_values(), dim, true, random, device),
            positions: tokens(self.num_patches(), dim, random, device),
            extra_tokens: (extra > 0).then(|| tokens(extra, dim, random, device)),
            norm_before: self.norm_before.then(|| self.init_norm(device)),
            blocks: (0..self.depth)
                .map(|_| self.init_block(random, device))
                .collect(),
            norm: self.init_norm(device),
            map: (self.pooling == Pooling::Map).then(|| AttentionPooling {
                query: tokens(1, dim, random, device),
                q: linear(dim, dim, true, random, device),
                kv: linear(dim, 2 * dim, true, random, device),
                attention_out: linear(dim, dim, true, random, device),
                mlp: self.init_mlp(random, device),
                num_heads: self.num_heads,
            }),
            projection: (self.projection_dim > 0)
                .then(|| linear(dim, self.projection_dim, false, random, device)),
            pooling: self.pooling,
        }
    }

    fn init_norm<B: Backend>(&self, device: &B::Device) -> Norm<B> {
        Norm {
            gamma: Param::from_tensor(Tensor::ones([self.dim], device)),
            beta: Param::from_tensor(Tensor::zeros([self.dim], device)),
            eps: self.norm_eps,
        }
    }

    fn init_mlp<B: Backend>(&self, random: &mut ChaCha8Rng, device: &B::Device) -> Perceptron<B> {
        let width = self.dim * self.mlp_ratio;
        Perceptron {
            norm: self.init_norm(device),
            hidden: linear(self.dim, width, true, random, device),
            out: linear(width, self.dim, true, random, device),
            gelu: self.gelu,
        }
    }

    fn init_block<B: Backend>(&self, random: &mut ChaCha8Rng, device: &B::Device) -> Block<B> {
        Block {
            attention_norm: self.init_norm(device),
            qkv: linear(self.dim, 3 * self.dim, true, random, device),
            attention_out: linear(self.dim, self.dim, true, random, device),
            mlp: self.init_mlp(random, device),
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

/// Tokens of mean 0 and variance 1, scaled and shifted.
#[derive(Module, Debug)]
pub(super) struct Norm<B: Backend> {
    pub(super) gamma: Param<Tensor<B, 1>>,
    pub(super) beta: Param<Tensor<B, 1>>,
    #[module(skip)]
    pub(super) eps: f64,
}

/// A perceptron that reads normalised tokens and adds to them.
#[derive(Module, Debug)]
pub(super) struct Perceptron<B: Backend> {
    pub(super) norm: Norm<B>,
    pub(super) hidden: Linear<B>,
    pub(super) out: Linear<B>,
    #[module(skip)]
    pub(super) gelu: Gelu,
}

/// Attention, then a perceptron.
#[derive(Module, Debug)]
pub(super) struct Block<B: Backend> {
    pub(super) attention_norm: Norm<B>,
    pub(super) qkv: Linear<B>,
    pub(super) attention_out: Linear<B>,
    pub(super) mlp: Perceptron<B>,
    #[module(skip)]
    pub(super) num_heads: usize,
}

/// A learnt query that attends to all tokens.
#[derive(Module, Debug)]
pub(super) struct AttentionPooling<B: Backend> {
    pub(super) query: Param<Tensor<B, 3>>,
    pub(super) q: Linear<B>,
    pub(super) kv: Linear<B>,
    pub(super) attention_out: Linear<B>,
    pub(super) mlp: Perceptron<B>,
    #[module(skip)]
    pub(super) num_heads: usize,
}

/// The transformer.
#[derive(Module, Debug)]
pub struct Vit<B: Backend> {
    pub(super) patch_embedding: Linear<B>,
    pub(super) positions: Param<Tensor<B, 3>>,
    /// The pooled token, if there is one, then the registers; all with the positions they may have.
    pub(super) extra_tokens: Option<Param<Tensor<B, 3>>>,
    pub(super) norm_before: Option<Norm<B>>,
    pub(super) blocks: Vec<Block<B>>,
    pub(super) norm: Norm<B>,
    pub(super) map: Option<AttentionPooling<B>>,
    pub(super) projection: Option<Linear<B>>,
    #[module(skip)]
    pub(super) pooling: Pooling,
}

/// Tokens on their way through the blocks, and how many each picture has.
#[derive(Debug, Clone)]
pub struct Tokens<B: Backend> {
    /// `[batch × per_picture, dim]`
    rows: Tensor<B, 2>,
    per_picture: usize,
}

/// `x W + b`, and a residual added where there is one.
fn affine<B: FusedOps>(
    layer: &Linear<B>,
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    ops::bias_add(ops::product(x, layer.weight.val()), bias(layer), residual)
}

impl<B: FusedOps> Norm<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::layer_norm(x, self.gamma.val(), self.beta.val(), self.eps)
    }
}

impl<B: FusedOps> Perceptron<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = ops::product(self.norm.forward(x.clone()), self.hidden.weight.val());
        let hidden = ops::bias_gelu(hidden, bias(&self.hidden), self.gelu);
        affine(&self.out, hidden, Some(x))
    }
}

impl<B: FusedOps> Block<B> {
    fn forward(&self, Tokens { rows, per_picture }: Tokens<B>) -> Tokens<B> {
        let qkv = affine(&self.qkv, self.attention_norm.forward(rows.clone()), None);
        let attended = ops::attention(qkv, per_picture, self.num_heads);
        let rows = affine(&self.attention_out, attended, Some(rows));
        Tokens {
            rows: self.mlp.forward(rows),
            per_picture,
        }
    }
}

impl<B: FusedOps> AttentionPooling<B> {
    /// Each picture's `[batch, dim]`.
    fn forward(&self, Tokens { rows, per_picture }: Tokens<B>) -> Tensor<B, 2> {
        let [count, dim] = rows.dims();
        let (batch, head_dim) = (count / per_picture, dim / self.num_heads);
        let heads = |x: Tensor<B, 2>, tokens: usize| -> Tensor<B, 4> {
            x.reshape([count / per_picture, tokens, self.num_heads, head_dim])
                .swap_dims(1, 2)
        };
        let query = affine(&self.q, self.query.val().reshape([1, dim]), None);
        let query = heads(query.expand([batch, dim]), 1);
        let kv = affine(&self.kv, rows, None);
        let part = |at: usize| heads(kv.clone().narrow(1, at * dim, dim), per_picture);
        let (none, options) = (None, Default::default());
        let attended =
            burn::tensor::module::attention(query, part(0), part(1), none, None, options);
        let attended = attended.swap_dims(1, 2).reshape([batch, dim]);
        self.mlp
            .forward(affine(&self.attention_out, attended, None))
    }
}

impl<B: FusedOps> Vit<B> {
    /// One vector per picture.
    ///
    /// # Shapes
    /// - `patches`: `[batch, num_patches, patch_values]`
    /// - returns `[batch, dim]`, or `[batch, projection_dim]` where there is a projection
    pub fn forward(&self, patches: Tensor<B, 3>) -> Tensor<B, 2> {
        let tokens = self.embed(patches);
        self.pool(self.through(0..self.blocks.len(), tokens))
    }

    /// As [`Self::forward`], of a few pictures at a time, as the backend's memory likes it.
    pub fn infer(&self, patches: Tensor<B, 3>) -> Tensor<B, 2> {
        let parts = patches.split(self.pictures_at_once(), 0);
        Tensor::cat(B::each_part(parts, |part| self.forward(part)), 0)
    }

    fn pictures_at_once(&self) -> usize {
        let extra = self
            .extra_tokens
            .as_ref()
            .map_or(0, |extra| extra.dims()[1]);
        let tokens = self.positions.dims()[1] + extra;
        let widest = |block: &Block<B>| {
            let widths = [&block.qkv, &block.mlp.hidden].map(|layer| layer.weight.dims()[1]);
            widths.into_iter().max()
        };
        let widest = self.blocks.first().and_then(widest).unwrap_or(1);
        (B::ACTIVATION_BYTES / (tokens * widest * size_of::<f32>())).max(1)
    }

    /// Blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Patches as tokens; shapes as for [`Self::forward`].
    pub fn embed(&self, patches: Tensor<B, 3>) -> Tokens<B> {
        let [batch, num_patches, values] = patches.dims();
        let patches = patches.reshape([batch * num_patches, values]);
        let rows = affine(&self.patch_embedding, patches, None);
        let dim = rows.dims()[1];
        let mut tokens = rows.reshape([batch, num_patches, dim]) + self.positions.val();
        let mut per_picture = num_patches;
        if let Some(extra) = &self.extra_tokens {
            let count = extra.dims()[1];
            let extra = extra.val().expand([batch, count, dim]);
            tokens = ops::cat(vec![tokens, extra], 1);
            per_picture += count;
        }
        let mut rows = tokens.reshape([batch * per_picture, dim]);
        if let Some(norm) = &self.norm_before {
            rows = norm.forward(rows);
        }
        Tokens { rows, per_picture }
    }

    /// Tokens after some of the blocks.
    pub fn through(&self, blocks: std::ops::Range<usize>, tokens: Tokens<B>) -> Tokens<B> {
        let blocks = self.blocks[blocks].iter();
        blocks.fold(tokens, |tokens, block| block.forward(tokens))
    }

    /// Vectors out of the last block's tokens; shapes as for [`Self::forward`].
    pub fn pool(&self, tokens: Tokens<B>) -> Tensor<B, 2> {
        let Tokens { rows, per_picture } = tokens;
        let [count, dim] = rows.dims();
        let batch = count / per_picture;
        let num_patches = self.positions.dims()[1];
        let apart = |rows: Tensor<B, 2>| rows.reshape([batch, per_picture, dim]);
        let pooled = match &self.map {
            Some(map) => map.forward(Tokens {
                rows: self.norm.forward(rows),
                per_picture,
            }),
            None if self.pooling == Pooling::Cls => {
                // The others' norms are not needed.
                let cls = apart(rows).narrow(1, num_patches, 1);
                self.norm.forward(cls.reshape([batch, dim]))
            }
            None => {
                let patches = apart(self.norm.forward(rows)).narrow(1, 0, num_patches);
                patches.mean_dim(1).reshape([batch, dim])
            }
        };
        match &self.projection {
            Some(projection) => ops::product(pooled, projection.weight.val()),
            None => pooled,
        }
    }
}

impl<B: Backend> Vit<B> {
    /// The same transformer, of which only the last `trainable_blocks` and what comes after them learn.
    pub(super) fn frozen(self, trainable_blocks: usize) -> Self {
        if trainable_blocks == 0 {
            return self.no_grad();
        }
        let frozen = self.blocks.len().saturating_sub(trainable_blocks);
        let blocks = self.blocks.into_iter().enumerate();
        let freeze = |(at, block): (usize, Block<B>)| {
            if at < frozen { block.no_grad() } else { block }
        };
        Self {
            patch_embedding: self.patch_embedding.no_grad(),
            positions: self.positions.no_grad(),
            extra_tokens: self.extra_tokens.no_grad(),
            norm_before: self.norm_before.no_grad(),
            blocks: blocks.map(freeze).collect(),
            ..self
        }
    }
}

impl<B: Backend> Tokens<B> {
    /// The same tokens of another backend.
    pub fn map<C: Backend>(self, to: impl FnOnce(Tensor<B, 2>) -> Tensor<C, 2>) -> Tokens<C> {
        Tokens {
            rows: to(self.rows),
            per_picture: self.per_picture,
        }
    }
}
