//! Fused and composed operations give the same, forward and backward.

use burn::{
    backend::Autodiff,
    tensor::{Distribution, Tensor, activation::relu},
};

use super::*;
use crate::Cpu;

type B = Autodiff<Cpu>;

/// Rows beyond one task's, and a width that no vector unit likes.
const SHAPE: [usize; 2] = [3000, 29];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::random(shape, uniform, &Default::default()).require_grad()
}

fn numbers<C: Backend, const D: usize>(tensor: Tensor<C, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn assert_close(found: Vec<f32>, wanted: Vec<f32>) {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().map(|value| value.abs()).fold(1.0, f32::max);
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!((found - wanted).abs() < 1e-5 * largest, "{found} {wanted}");
    }
}

/// The output, and the gradients of all inputs under a weighted sum of it.
fn with_gradients<const N: usize>(
    inputs: [Tensor<B, 2>; N],
    bias: Tensor<B, 1>,
    weights: Tensor<B, 2>,
    operation: impl Fn([Tensor<B, 2>; N], Tensor<B, 1>) -> Tensor<B, 2>,
) -> Vec<Vec<f32>> {
    let output = operation(inputs.clone(), bias.clone());
    let gradients = (output.clone() * weights.detach()).sum().backward();
    let mut all = vec![numbers(output), numbers(bias.grad(&gradients).unwrap())];
    all.extend(inputs.map(|input| numbers(input.grad(&gradients).unwrap())));
    all
}

fn check<const N: usize>(
    fused: impl Fn([Tensor<B, 2>; N], Tensor<B, 1>) -> Tensor<B, 2>,
    composed: impl Fn([Tensor<B, 2>; N], Tensor<B, 1>) -> Tensor<B, 2>,
) {
    let inputs = [(); N].map(|()| random(SHAPE));
    let (bias, weights) = (random([SHAPE[1]]), random(SHAPE));
    let found = with_gradients(inputs.clone(), bias.clone(), weights.clone(), fused);
    let wanted = with_gradients(inputs, bias, weights, composed);
    for (found, wanted) in found.into_iter().zip(wanted) {
        assert_close(found, wanted);
    }
}

#[test]
fn bias_and_relu_in_one_are_bias_and_relu() {
    check(
        |[z], bias| bias_relu(z, bias),
        |[z], bias| relu(z + bias.unsqueeze()),
    );
}

#[test]
fn a_fused_cross_is_the_formula() {
    check(
        |[x0, u, x], bias| cross(x0, u, bias, x),
        |[x0, u, x], bias| x0 * (u + bias.unsqueeze()) + x,
    );
}

/// In a network the first layer's input is `x0` and `x` at once.
#[test]
fn one_tensor_in_two_places_gets_both_gradients() {
    check(
        |[x0, u], bias| cross(x0.clone(), u, bias, x0),
        |[x0, u], bias| x0.clone() * (u + bias.unsqueeze()) + x0,
    );
}

#[test]
fn without_gradients_the_result_is_the_same() {
    let inner = |tensor: Tensor<B, 2>| tensor.inner();
    let (x0, u, x, bias) = (
        random(SHAPE),
        random(SHAPE),
        random(SHAPE),
        random([SHAPE[1]]),
    );
    let wanted = numbers(cross(x0.clone(), u.clone(), bias.clone(), x.clone()));
    assert_eq!(
        numbers(cross(
            inner(x0),
            inner(u.clone()),
            bias.clone().inner(),
            inner(x)
        )),
        wanted
    );
    let wanted = numbers(bias_relu(u.clone(), bias.clone()));
    assert_eq!(numbers(bias_relu(inner(u), bias.inner())), wanted);
}
