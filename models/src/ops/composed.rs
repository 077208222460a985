//! The fused operations out of a backend's own, for numbers of any type.

use burn::{
    prelude::Backend,
    tensor::{activation::relu, ops::FloatTensor},
};

use super::{primitive, tensor};

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
