//! The fused operations out of a backend's own, for numbers of any type.

use burn::{
    prelude::Backend,
    tensor::{
        Tensor,
        activation::{gelu, gelu_approximate, relu, sigmoid},
        module,
        ops::FloatTensor,
    },
};

use super::{Gelu, primitive, tensor};

/// One, two and three results.
type One<B> = FloatTensor<B>;
type Two<B> = (FloatTensor<B>, FloatTensor<B>);
type Three<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

pub(super) fn product_backward<B: Backend>(gradient: One<B>, x: One<B>, weight: One<B>) -> Two<B> {
    let gradient = tensor::<B, 2>(gradient);
    let of_x = gradient.clone().matmul(tensor::<B, 2>(weight).transpose());
    let of_weight = tensor::<B, 2>(x).transpose().matmul(gradient);
    (primitive(of_x), primitive(of_weight))
}

pub(super) fn bias_relu_forward<B: Backend>(z: One<B>, bias: One<B>) -> One<B> {
    let sum = tensor::<B, 2>(z) + tensor::<B, 1>(bias).unsqueeze();
    primitive(relu(sum))
}

pub(super) fn bias_relu_backward<B: Backend>(gradient: One<B>, y: One<B>) -> Two<B> {
    let dead = tensor::<B, 2>(y).lower_equal_elem(0.0);
    let gradient = tensor::<B, 2>(gradient).mask_fill(dead, 0.0);
    let bias = gradient.clone().sum_dim(0).squeeze_dim::<1>(0);
    (primitive(gradient), primitive(bias))
}

pub(super) fn cross_forward<B: Backend>(x0: One<B>, u: One<B>, bias: One<B>, x: One<B>) -> Two<B> {
    let t = tensor::<B, 2>(u) + tensor::<B, 1>(bias).unsqueeze();
    let y = tensor::<B, 2>(x0) * t.clone() + tensor::<B, 2>(x);
    (primitive(y), primitive(t))
}

pub(super) fn cross_backward<B: Backend>(gradient: One<B>, x0: One<B>, t: One<B>) -> Three<B> {
    let gradient = tensor::<B, 2>(gradient);
    let of_x0 = gradient.clone() * tensor::<B, 2>(t);
    let of_u = gradient * tensor::<B, 2>(x0);
    let of_bias = of_u.clone().sum_dim(0).squeeze_dim::<1>(0);
    (primitive(of_x0), primitive(of_u), primitive(of_bias))
}

pub(super) fn bias_add<B: Backend>(z: One<B>, bias: One<B>, residual: Option<One<B>>) -> One<B> {
    let sum = tensor::<B, 2>(z) + tensor::<B, 1>(bias).unsqueeze();
    primitive(match residual {
        Some(residual) => sum + tensor::<B, 2>(residual),
        None => sum,
    })
}

pub(super) fn bias_gelu<B: Backend>(z: One<B>, bias: One<B>, form: Gelu) -> One<B> {
    let x = tensor::<B, 2>(z) + tensor::<B, 1>(bias).unsqueeze();
    primitive(match form {
        Gelu::Exact => gelu(x),
        Gelu::Tanh => gelu_approximate(x),
        Gelu::Quick => x.clone() * sigmoid(x * 1.702),
    })
}

pub(super) fn layer_norm<B: Backend>(x: One<B>, gamma: One<B>, beta: One<B>, eps: f64) -> One<B> {
    let x = tensor::<B, 2>(x);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let normal = centred / (variance + eps).sqrt();
    let (gamma, beta) = (tensor::<B, 1>(gamma), tensor::<B, 1>(beta));
    primitive(normal * gamma.unsqueeze() + beta.unsqueeze())
}

pub(super) fn attention<B: Backend>(qkv: One<B>, tokens: usize, num_heads: usize) -> One<B> {
    let qkv = tensor::<B, 2>(qkv);
    let [rows, wide] = qkv.dims();
    let (batch, dim) = (rows / tokens, wide / 3);
    let heads = |part: usize| -> Tensor<B, 4> {
        qkv.clone()
            .narrow(1, part * dim, dim)
            .reshape([batch, tokens, num_heads, dim / num_heads])
            .swap_dims(1, 2)
    };
    let attended = module::attention(heads(0), heads(1), heads(2), None, None, Default::default());
    primitive(attended.swap_dims(1, 2).reshape([rows, dim]))
}
