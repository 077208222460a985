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

/// Sums over all rows, over rows that cannot be parted, over few, and results of one column; of
/// whole tensors, and of some columns of wider ones.
fn check_product<B: TrainingBackend>() {
    for [rows, inputs, outputs] in [
        [3000, 29, 17],
        [2999, 29, 17],
        [7, 130, 3],
        [4096, 33, 1],
        [64, 2, 1],
        [64, 1, 1],
        [64, 192, 1],
        [192, 4, 64],
        [192, 64, 64],
    ] {
        for more in [0, 3] {
            let (x, weight) = (random([rows, inputs + more]), random([inputs, outputs]));
            let shares = random([rows, outputs]);
            let found = of_product(&x, &weight, &shares, |x, weight| {
                product::<B>(x.narrow(1, more / 2, inputs), weight)
            });
            let wanted = of_product(&x, &weight, &shares, |x, weight| {
                Tensor::<Host, 2>::matmul(x.narrow(1, more / 2, inputs), weight)
            });
            for (found, wanted) in found.into_iter().zip(wanted) {
                assert_close(found, wanted);
            }
        }
    }
}

/// A product, and the gradients of both its factors under a weighted sum of it.
fn of_product<B: AutodiffBackend>(
    x: &TensorData,
    weight: &TensorData,
    shares: &TensorData,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> [Vec<f32>; 3] {
    let [x, weight, shares] = [x, weight, shares].map(leaf::<B, 2>);
    let output = product(x.clone(), weight.clone());
    let gradients = (output.clone() * shares.detach()).sum().backward();
    let [of_x, of_weight] = [x, weight].map(|input| input.grad(&gradients).unwrap());
    [numbers(output), numbers(of_x), numbers(of_weight)]
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

/// About the wanted share is dropped, whatever the layer's width, and the rest makes up for it.
fn check_dropout<B: TrainingBackend>() {
    let numbers_of_rows: Vec<u32> = (0..SHAPE[0] as u32)
        .map(|row| row.wrapping_mul(77_777_777))
        .collect();
    let ones = || Tensor::<B, 2>::ones(SHAPE, &Default::default()).require_grad();
    for rate in [0.1, 0.5] {
        let input = ones();
        let output = dropout(input.clone(), &numbers_of_rows, rate);
        let found = numbers(output.clone());
        let kept = (1.0 / (1.0 - rate)) as f32;
        assert!(found.iter().all(|value| *value == 0.0 || *value == kept));
        let share = |values: &mut dyn Iterator<Item = &f32>| {
            let values: Vec<&f32> = values.collect();
            values.iter().filter(|value| ***value == 0.0).count() as f64 / values.len() as f64
        };
        // Of 87,000 draws, and of a column's 3,000: six and four standard deviations.
        assert!((share(&mut found.iter()) - rate).abs() < 0.01);
        for column in 0..SHAPE[1] {
            let dropped = share(&mut found.iter().skip(column).step_by(SHAPE[1]));
            assert!((dropped - rate).abs() < 0.04, "{column}: {dropped}");
        }
        // The gradient takes the same way.
        let gradient = input.grad(&output.sum().backward()).unwrap();
        assert_eq!(numbers(gradient), found);
        // Other rows beside it change nothing, and the host drops the same.
        let (few, host) = (
            10..20,
            Tensor::<Cpu, 2>::ones([10, SHAPE[1]], &Default::default()),
        );
        let alone = dropout(host, &numbers_of_rows[few.clone()], rate);
        assert_eq!(
            numbers(alone),
            found[few.start * SHAPE[1]..few.end * SHAPE[1]]
        );
    }
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
            fn a_product_and_its_gradients_are_those_of_the_formula() {
                check_product::<B>();
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
            fn dropout_is_a_matter_of_the_row_alone() {
                check_dropout::<B>();
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
// Vulkan, which needs no GPU.
#[cfg(feature = "wgpu")]
on!(gpu, burn::backend::Wgpu);
