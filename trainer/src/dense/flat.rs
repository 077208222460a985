//! Weights and gradients of a network, one after the other in the order of the module. Frozen weights, for
//! which no gradient is asked, are passed over.

use burn::{
    module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    prelude::Backend,
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};

use super::Precision;

/// Adds the gradients of all weights; a weight may have none.
///
/// # Shapes
/// - `sums`: `[num_weights]`, or longer
pub(super) fn add_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    gradients: GradientsParams,
    sums: &mut [f32],
) {
    struct Add<'a> {
        gradients: GradientsParams,
        sums: &'a mut [f32],
        at: usize,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Add<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let value = param.val();
            if !value.is_require_grad() {
                return;
            }
            let count = value.shape().num_elements();
            if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
                let sums = &mut self.sums[self.at..self.at + count];
                for (sum, g) in sums.iter_mut().zip(to_vec(gradient)) {
                    *sum += g;
                }
            }
            self.at += count;
        }
    }
    module.visit(&mut Add {
        gradients,
        sums,
        at: 0,
    });
}

/// The weights.
pub(crate) fn flatten_weights<B: AutodiffBackend>(module: &impl Module<B>) -> Vec<f32> {
    struct Flatten(Vec<f32>);
    impl<B: Backend> ModuleVisitor<B> for Flatten {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let value = param.val();
            if value.is_require_grad() {
                self.0.extend(to_vec(value));
            }
        }
    }
    let mut visitor = Flatten(Vec::new());
    module.visit(&mut visitor);
    visitor.0
}

/// Numbers of each tensor.
pub(crate) fn segments<B: AutodiffBackend>(module: &impl Module<B>) -> Vec<usize> {
    struct Count(Vec<usize>);
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let value = param.val();
            if value.is_require_grad() {
                self.0.push(value.shape().num_elements());
            }
        }
    }
    let mut visitor = Count(Vec::new());
    module.visit(&mut visitor);
    visitor.0
}

/// The module with other weights, in a precision; the inverse of [`flatten_weights`].
///
/// # Panics
/// If there are fewer than the module has.
pub(crate) fn load_weights<B: AutodiffBackend, M: Module<B>>(
    module: M,
    weights: &[f32],
    precision: Precision,
    device: &B::Device,
) -> M {
    struct Load<'a, B: Backend> {
        weights: &'a [f32],
        precision: Precision,
        device: &'a B::Device,
    }
    impl<B: Backend> ModuleMapper<B> for Load<'_, B> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            if !param.val().is_require_grad() {
                return param;
            }
            let (id, old, mapper) = param.consume();
            let (mine, rest) = self.weights.split_at(old.shape().num_elements());
            self.weights = rest;
            let data = TensorData::new(mine.to_vec(), old.shape());
            let new = Tensor::<B, D>::from_data(data, self.device);
            let new = cast(new, self.precision).require_grad();
            Param::from_mapped_value(id, new, mapper)
        }
    }
    module.map(&mut Load::<B> {
        weights,
        precision,
        device,
    })
}

/// The tensor in a precision.
pub(crate) fn cast<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    precision: Precision,
) -> Tensor<B, D> {
    let wanted = precision.dtype();
    match tensor.dtype() == wanted.into() {
        true => tensor,
        false => tensor.cast(wanted),
    }
}

/// The numbers of a tensor.
pub(crate) fn to_vec<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    // The data were converted to f32 just before.
    data.into_vec().expect("numbers of type f32")
}

#[cfg(test)]
mod tests {
    use burn::{backend::Autodiff, nn::LinearConfig};
    use models::Cpu;

    use super::*;

    #[test]
    fn weights_survive_being_flat_and_still_learn() {
        let device = Default::default();
        let layer = LinearConfig::new(3, 2).init::<Autodiff<Cpu>>(&device);
        let weights: Vec<f32> = (0..8).map(|at| at as f32).collect();
        let layer = load_weights(layer, &weights, Precision::F32, &device);
        assert_eq!(flatten_weights(&layer), weights);
        assert_eq!(segments(&layer), [6, 2]);
        let input = Tensor::<Autodiff<Cpu>, 2>::ones([1, 3], &device);
        let loss = layer.forward(input).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        let mut sums = [1.0; 9];
        add_gradients(&layer, gradients, &mut sums);
        assert_eq!(sums, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]);
        add_gradients(&layer, GradientsParams::new(), &mut sums);
        assert_eq!(sums[..8], [2.0; 8]);
    }

    #[test]
    fn frozen_weights_are_passed_over() {
        let device = Default::default();
        let mut layer = LinearConfig::new(3, 2).init::<Autodiff<Cpu>>(&device);
        let bias = flatten_weights(&layer)[6..].to_vec();
        layer.weight = layer.weight.no_grad();
        let frozen = to_vec(layer.weight.val());
        assert_eq!((flatten_weights(&layer), segments(&layer)), (bias, vec![2]));
        let layer = load_weights(layer, &[5.0, 7.0], Precision::F32, &device);
        assert_eq!(flatten_weights(&layer), [5.0, 7.0]);
        assert_eq!(to_vec(layer.weight.val()), frozen);
    }
}
