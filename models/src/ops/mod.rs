//! Operations that do in one pass over memory what burn's own do in several.
//!
//! On a CPU the passes between the matrix products cost as much as these do; here bias, activation
//! and products are one, forward and backward, on all threads. Other backends compose them of
//! their own operations: a GPU's fusion does the same there, and libtorch has some as one.

mod autodiff;
mod composed;
mod host;
#[cfg(feature = "tch")]
mod libtorch;

use burn::{
    prelude::Backend,
    tensor::{Tensor, TensorPrimitive, backend::AutodiffBackend, ops::FloatTensor},
};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};

/// The fused operations of a backend.
///
/// # Shapes
/// `[rows, width]`, biases `[width]`.
pub trait FusedOps: Backend {
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
}

/// A backend on which networks are trained.
pub trait TrainingBackend: AutodiffBackend<InnerBackend: FusedOps> + FusedOps {}

impl<B: AutodiffBackend<InnerBackend: FusedOps> + FusedOps> TrainingBackend for B {}

/// What an inner backend gives for differentiation; composed of its own operations unless it knows
/// better.
pub trait FusedKernels: Backend {
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
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl<R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement> FusedKernels
    for CubeBackend<R, F, I, T>
{
}

macro_rules! without_gradients {
    ($backend:ty $(, $parameter:ident: $bound:ident)*) => {
        impl<$($parameter: $bound),*> FusedOps for $backend {
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
        }
    };
}

without_gradients!(crate::Cpu);
#[cfg(any(feature = "cuda", feature = "wgpu"))]
without_gradients!(CubeBackend<R, F, I, T>, R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement);
#[cfg(feature = "tch")]
without_gradients!(burn::backend::LibTorch);

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

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

#[cfg(test)]
mod tests;
