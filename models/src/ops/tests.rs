//! Fused operations give what the CPU's composed ones do, forward and backward, on every backend.

use burn::{
    backend::Autodiff,
    tensor::{Distribution, Tensor, TensorData, activation::relu},
};

use super::*;
use crate::Cpu;

type Host = Autodiff<Cpu>;

/// Rows beyond one task's, and a width that no vector unit likes.
const SHAPE: [usize; 2] = [3000, 29];

fn random<const D: usize>(shape: [usize; D]) -> TensorData {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::<Cpu, D>::random(shape, uniform, &Default::default()).into_data()
}

fn leaf<B: AutodiffBackend, const D: usize>(data: &TensorData) -> Tensor<B, D> {
    Tensor::from_data(data.clone(), &Default::default()).require_grad()
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
fn with_gradients<B: AutodiffBackend, const N: usize>(
    inputs: &[TensorData; N],
    bias: &TensorData,
    weights: &TensorData,
    operation: impl Fn([Tensor<B, 2>; N], Tensor<B, 1>) -> Tensor<B, 2>,
) -> Vec<Vec<f32>> {
    let inputs = inputs.each_ref().map(leaf::<B, 2>);
    let (bias, weights) = (leaf::<B, 1>(bias), leaf::<B, 2>(weights));
    let output = operation(inputs.clone(), bias.clone());
    let gradients = (output.clone() * weights.detach()).sum().backward();
    let mut all = vec![numbers(output), numbers(bias.grad(&gradients).unwrap())];
    all.extend(inputs.map(|input| numbers(input.grad(&gradients).unwrap())));
    all
}

fn check<B: TrainingBackend, const N: usize>(
    fused: impl Fn([Tensor<B, 2>; N], Tensor<B, 1>) -> Tensor<B, 2>,
    composed: impl Fn([Tensor<Host, 2>; N], Tensor<Host, 1>) -> Tensor<Host, 2>,
) {
    let inputs = [(); N].map(|()| random(SHAPE));
    let (bias, weights) = (random([SHAPE[1]]), random(SHAPE));
    let found = with_gradients(&inputs, &bias, &weights, fused);
    let wanted = with_gradients(&inputs, &bias, &weights, composed);
    for (found, wanted) in found.into_iter().zip(wanted) {
        assert_close(found, wanted);
    }
}

fn check_bias_relu<B: TrainingBackend>() {
    check::<B, 1>(
        |[z], bias| bias_relu(z, bias),
        |[z], bias| relu(z + bias.unsqueeze()),
    );
}

fn check_cross<B: TrainingBackend>() {
    check::<B, 3>(
        |[x0, u, x], bias| cross(x0, u, bias, x),
        |[x0, u, x], bias| x0 * (u + bias.unsqueeze()) + x,
    );
}

/// In a network the first layer's input is `x0` and `x` at once.
fn check_one_tensor_in_two_places<B: TrainingBackend>() {
    check::<B, 2>(
        |[x0, u], bias| cross(x0.clone(), u, bias, x0),
        |[x0, u], bias| x0.clone() * (u + bias.unsqueeze()) + x0,
    );
}

fn check_without_gradients<B: TrainingBackend>() {
    let [x0, u, x] = [(); 3].map(|()| leaf::<B, 2>(&random(SHAPE)));
    let bias = leaf::<B, 1>(&random([SHAPE[1]]));
    let wanted = numbers(cross(x0.clone(), u.clone(), bias.clone(), x.clone()));
    let [x0, inner_u, x] = [x0, u.clone(), x].map(|tensor| tensor.inner());
    let inner_bias = bias.clone().inner();
    let found = cross(x0, inner_u.clone(), inner_bias.clone(), x);
    assert_eq!(numbers(found), wanted);
    let wanted = numbers(bias_relu(u, bias));
    assert_eq!(numbers(bias_relu(inner_u, inner_bias)), wanted);
}

/// The same facts on every backend.
macro_rules! on {
    ($name:ident, $backend:ty) => {
        mod $name {
            use super::*;

            type B = Autodiff<$backend>;

            #[test]
            fn bias_and_relu_in_one_are_bias_and_relu() {
                check_bias_relu::<B>();
            }

            #[test]
            fn a_fused_cross_is_the_formula() {
                check_cross::<B>();
            }

            #[test]
            fn one_tensor_in_two_places_gets_both_gradients() {
                check_one_tensor_in_two_places::<B>();
            }

            #[test]
            fn without_gradients_the_result_is_the_same() {
                check_without_gradients::<B>();
            }
        }
    };
}

on!(host, Cpu);
#[cfg(feature = "tch")]
on!(libtorch, burn::backend::LibTorch);
