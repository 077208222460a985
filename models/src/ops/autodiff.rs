//! The way back of the fused operations, on any inner backend.

use burn::{
    backend::{
        Autodiff,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
    },
    tensor::{Device, backend::AutodiffBackend, ops::FloatTensor},
};

use super::{FusedKernels, FusedOps};

#[derive(Debug)]
struct Product;

impl<B: FusedKernels> Backward<B, 2> for Product {
    /// `x` and the weight.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let (of_x, of_weight) = B::product_backward(gradient, x, weight);
        for (parent, gradient) in ops.parents.into_iter().zip([of_x, of_weight]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct BiasRelu;

impl<B: FusedKernels> Backward<B, 2> for BiasRelu {
    /// The output.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (of_z, of_bias) = B::bias_relu_backward(gradient, ops.state);
        for (parent, gradient) in ops.parents.into_iter().zip([of_z, of_bias]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Cross;

impl<B: FusedKernels> Backward<B, 4> for Cross {
    /// `x0` and `u + bias`.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x0, t) = ops.state;
        let (of_x0, of_u, of_bias) = B::cross_backward(gradient.clone(), x0, t);
        let all = [of_x0, of_u, of_bias, gradient];
        for (parent, gradient) in ops.parents.into_iter().zip(all) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: FusedKernels + FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    const ACTIVATION_BYTES: usize = <B as FusedKernels>::ACTIVATION_BYTES;

    fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone()];
        let kept = (x.primitive.clone(), weight.primitive.clone());
        let product = <B as FusedKernels>::product(x.primitive, weight.primitive);
        match Product.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, product),
            OpsKind::UnTracked(prep) => prep.finish(product),
        }
    }

    fn bias_relu(z: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [z.node.clone(), bias.node.clone()];
        match BiasRelu.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::bias_relu_forward(z.primitive, bias.primitive);
                prep.finish(y.clone(), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::bias_relu_forward(z.primitive, bias.primitive))
            }
        }
    }

    fn cross(
        x0: FloatTensor<Self>,
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [&x0, &u, &bias, &x].map(|tensor| tensor.node.clone());
        let kept = x0.primitive.clone();
        let forward = || B::cross_forward(x0.primitive, u.primitive, bias.primitive, x.primitive);
        match Cross.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, t) = forward();
                prep.finish((kept, t), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(forward().0),
        }
    }

    fn dropout_mask(
        rows: &[u32],
        width: usize,
        rate: f64,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        Self::from_inner(<B as FusedKernels>::dropout_mask(rows, width, rate, device))
    }
}
