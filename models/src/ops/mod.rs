//! Operations that do in one pass over memory what burn's own do in several.
//!
//! On a CPU the passes between the matrix products cost as much as these do; here bias, activation
//! and products are one, forward and backward, on all threads. On a GPU they are one kernel each, and
//! matrix products take a strategy by their shape; libtorch has some as one operation.

mod autodiff;
mod composed;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod dropout;
mod host;
#[cfg(feature = "tch")]
mod libtorch;

use burn::{
    prelude::Backend,
    tensor::{Device, Tensor, TensorPrimitive, backend::AutodiffBackend, ops::FloatTensor},
};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};
use serde::{Deserialize, Serialize};

/// The forms of GELU that models were trained with. Source: Hendrycks and Gimpel, "Gaussian Error Linear
/// Units", 2016.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// `x Φ(x)`.
    #[default]
    Exact,
    /// Its approximation by a hyperbolic tangent: SigLIP.
    Tanh,
    /// `x σ(1.702 x)`: OpenAI's CLIP.
    Quick,
}

/// The fused operations of a backend.
///
/// # Shapes
/// `[rows, width]`, biases `[width]`.
pub trait FusedOps: Backend {
    /// Bytes that a layer's activations may best have in inference.
    const ACTIVATION_BYTES: usize;

    /// Does the same with each part of a batch, in order: beside each other, one to a core, where the backend
    /// computes on cores.
    fn each_part<T: Send, R: Send>(parts: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        parts.into_iter().map(work).collect()
    }

    /// `x W`: a linear layer's product.
    ///
    /// # Shapes
    /// - `x`: `[rows, inputs]`; `weight`: `[inputs, outputs]`; returns `[rows, outputs]`
    fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `max(z + bias, 0)`.
    fn bias_relu(z: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x0 ⊙ (u + bias) + x`: a cross layer after its matrix product. Source: Wang et al., "DCN V2",
    /// WWW 2021, equation 1.
    fn cross(
        x0: FloatTensor<Self>,
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `z + bias`, and a residual added where there is one, `[rows, width]`.
    fn bias_add(
        z: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        composed::bias_add::<Self>(z, bias, residual)
    }

    /// `gelu(z + bias)`.
    fn bias_gelu(z: FloatTensor<Self>, bias: FloatTensor<Self>, gelu: Gelu) -> FloatTensor<Self> {
        composed::bias_gelu::<Self>(z, bias, gelu)
    }

    /// Rows of mean 0 and variance 1, then `γ ⊙ x + β`. Source: Ba et al., "Layer Normalization", 2016.
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::layer_norm::<Self>(x, gamma, beta, eps)
    }

    /// Self-attention with several heads, among the tokens of each picture. Source: Vaswani et al.,
    /// "Attention Is All You Need", NeurIPS 2017, equation 1.
    ///
    /// # Shapes
    /// - `qkv`: `[batch × tokens, 3 × dim]`: queries, keys, values, of each head after head
    /// - returns `[batch × tokens, dim]`
    fn attention(qkv: FloatTensor<Self>, tokens: usize, num_heads: usize) -> FloatTensor<Self> {
        composed::attention::<Self>(qkv, tokens, num_heads)
    }

    /// What a layer's values are multiplied with in training, `[rows, width]`: 0 for a share `rate` of
    /// them, `1 / (1 - rate)` for the others. Source: Srivastava et al., "Dropout", JMLR 2014.
    ///
    /// Each row's are drawn from its own number, the same on every backend: it does not matter
    /// with which others a row is computed, nor where.
    fn dropout_mask(
        rows: &[u32],
        width: usize,
        rate: f64,
        device: &Device<Self>,
    ) -> FloatTensor<Self>;
}

/// A backend on which networks are trained.
pub trait TrainingBackend: AutodiffBackend<InnerBackend: FusedOps> + FusedOps {}

impl<B: AutodiffBackend<InnerBackend: FusedOps> + FusedOps> TrainingBackend for B {}

/// What an inner backend gives for differentiation; composed of its own operations unless it knows
/// better.
pub trait FusedKernels: Backend {
    /// As [`FusedOps::ACTIVATION_BYTES`].
    const ACTIVATION_BYTES: usize = 1 << 30;

    /// As [`FusedOps::each_part`].
    fn each_part<T: Send, R: Send>(parts: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        parts.into_iter().map(work).collect()
    }

    /// As [`FusedOps::product`].
    fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x, weight)
    }

    /// Gradients of `x` and of the weight, from that of the product.
    fn product_backward(
        gradient: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::product_backward::<Self>(gradient, x, weight)
    }

    /// As [`FusedOps::bias_relu`].
    fn bias_relu_forward(z: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::bias_relu_forward::<Self>(z, bias)
    }

    /// Gradients of `z` and of the bias, from those of the output `y`.
    fn bias_relu_backward(
        gradient: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::bias_relu_backward::<Self>(gradient, y)
    }

    /// As [`FusedOps::cross`]; also gives `t = u + bias`, which the way back needs.
    fn cross_forward(
        x0: FloatTensor<Self>,
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::cross_forward::<Self>(x0, u, bias, x)
    }

    /// Gradients of `x0`, `u` and the bias, from that of the output; that of `x` is the output's.
    fn cross_backward(
        gradient: FloatTensor<Self>,
        x0: FloatTensor<Self>,
        t: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::cross_backward::<Self>(gradient, x0, t)
    }

    /// As [`FusedOps::bias_add`].
    fn bias_add(
        z: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        composed::bias_add::<Self>(z, bias, residual)
    }

    /// As [`FusedOps::bias_gelu`].
    fn bias_gelu(z: FloatTensor<Self>, bias: FloatTensor<Self>, gelu: Gelu) -> FloatTensor<Self> {
        composed::bias_gelu::<Self>(z, bias, gelu)
    }

    /// As [`FusedOps::layer_norm`].
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::layer_norm::<Self>(x, gamma, beta, eps)
    }

    /// As [`FusedOps::attention`].
    fn attention(qkv: FloatTensor<Self>, tokens: usize, num_heads: usize) -> FloatTensor<Self> {
        composed::attention::<Self>(qkv, tokens, num_heads)
    }

    /// As [`FusedOps::dropout_mask`]; made in host memory unless a device can do it itself.
    fn dropout_mask(
        rows: &[u32],
        width: usize,
        rate: f64,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        dropout::on_host::<Self>(rows, width, rate, device)
    }
}

macro_rules! without_gradients {
    ($backend:ty $(, $parameter:ident: $bound:ident)*) => {
        impl<$($parameter: $bound),*> FusedOps for $backend {
            const ACTIVATION_BYTES: usize = <Self as FusedKernels>::ACTIVATION_BYTES;

            fn each_part<Part: Send, Out: Send>(
                parts: Vec<Part>,
                work: impl Fn(Part) -> Out + Sync,
            ) -> Vec<Out> {
                <Self as FusedKernels>::each_part(parts, work)
            }

            fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
                <Self as FusedKernels>::product(x, weight)
            }

            fn bias_relu(z: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::bias_relu_forward(z, bias)
            }

            fn cross(
                x0: FloatTensor<Self>,
                u: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                x: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                Self::cross_forward(x0, u, bias, x).0
            }

            fn bias_add(
                z: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                residual: Option<FloatTensor<Self>>,
            ) -> FloatTensor<Self> {
                <Self as FusedKernels>::bias_add(z, bias, residual)
            }

            fn bias_gelu(z: FloatTensor<Self>, bias: FloatTensor<Self>, gelu: Gelu) -> FloatTensor<Self> {
                <Self as FusedKernels>::bias_gelu(z, bias, gelu)
            }

            fn layer_norm(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                eps: f64,
            ) -> FloatTensor<Self> {
                <Self as FusedKernels>::layer_norm(x, gamma, beta, eps)
            }

            fn attention(qkv: FloatTensor<Self>, tokens: usize, num_heads: usize) -> FloatTensor<Self> {
                <Self as FusedKernels>::attention(qkv, tokens, num_heads)
            }

            fn dropout_mask(rows: &[u32], width: usize, rate: f64, device: &Device<Self>) -> FloatTensor<Self> {
                <Self as FusedKernels>::dropout_mask(rows, width, rate, device)
            }
        }
    };
}

without_gradients!(crate::Cpu);
#[cfg(any(feature = "cuda", feature = "wgpu"))]
without_gradients!(CubeBackend<R, F, I, T>, R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement);
#[cfg(feature = "tch")]
without_gradients!(burn::backend::LibTorch);

/// [`FusedOps::product`] of tensors.
pub fn product<B: FusedOps>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(<B as FusedOps>::product(primitive(x), primitive(weight)))
}

/// [`FusedOps::bias_relu`] of tensors.
pub fn bias_relu<B: FusedOps>(z: Tensor<B, 2>, bias: Tensor<B, 1>) -> Tensor<B, 2> {
    tensor(B::bias_relu(primitive(z), primitive(bias)))
}

/// [`FusedOps::cross`] of tensors.
pub fn cross<B: FusedOps>(
    x0: Tensor<B, 2>,
    u: Tensor<B, 2>,
    bias: Tensor<B, 1>,
    x: Tensor<B, 2>,
) -> Tensor<B, 2> {
    tensor(B::cross(
        primitive(x0),
        primitive(u),
        primitive(bias),
        primitive(x),
    ))
}

/// [`FusedOps::bias_add`] of tensors.
pub fn bias_add<B: FusedOps>(
    z: Tensor<B, 2>,
    bias: Tensor<B, 1>,
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let residual = residual.map(primitive);
    tensor(<B as FusedOps>::bias_add(
        primitive(z),
        primitive(bias),
        residual,
    ))
}

/// [`FusedOps::bias_gelu`] of tensors.
pub fn bias_gelu<B: FusedOps>(z: Tensor<B, 2>, bias: Tensor<B, 1>, gelu: Gelu) -> Tensor<B, 2> {
    tensor(<B as FusedOps>::bias_gelu(
        primitive(z),
        primitive(bias),
        gelu,
    ))
}

/// [`FusedOps::layer_norm`] of tensors.
pub fn layer_norm<B: FusedOps>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let (gamma, beta) = (primitive(gamma), primitive(beta));
    tensor(<B as FusedOps>::layer_norm(primitive(x), gamma, beta, eps))
}

/// [`FusedOps::attention`] of tensors.
pub fn attention<B: FusedOps>(qkv: Tensor<B, 2>, tokens: usize, num_heads: usize) -> Tensor<B, 2> {
    tensor(<B as FusedOps>::attention(
        primitive(qkv),
        tokens,
        num_heads,
    ))
}

/// Values with a share `rate` of them dropped: see [`FusedOps::dropout_mask`].
///
/// # Shapes
/// - `x`: `[rows, width]`; `rows`: the number of each row
pub fn dropout<B: FusedOps>(x: Tensor<B, 2>, rows: &[u32], rate: f64) -> Tensor<B, 2> {
    let mask = B::dropout_mask(rows, x.dims()[1], rate, &x.device());
    let kind = x.dtype();
    x * tensor::<B, 2>(mask).cast(kind)
}

/// Tensors one after another along a dimension.
///
/// burn 0.21's own lets go of its inputs before differentiation knows what became of them. A backward pass
/// that ends in another thread meanwhile takes them for unused, and their gradients are lost without a word:
/// here they are held until then. Source: burn's issue 5573.
pub fn cat<B: Backend, const D: usize>(parts: Vec<Tensor<B, D>>, dim: usize) -> Tensor<B, D> {
    let held = parts.clone();
    let all = Tensor::cat(parts, dim);
    drop(held);
    all
}

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

#[cfg(test)]
mod tests;
