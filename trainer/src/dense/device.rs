//! In a device's memory.

use burn::{
    backend::Autodiff,
    module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Shape, Tensor, TensorData, TensorPrimitive},
};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use kernels::{Buffer, Device};

use super::{
    DenseOptimizer, DenseState, Move, Precision, Rule, Saved, Total, cast,
    optimizer::{Step, trust},
    to_vec,
};
use crate::{
    backend::{Gpu, GpuRuntime},
    collective::{ExchangeError, ProcessGroup},
};

type Flat<R> = Tensor<Gpu<R>, 1>;

/// [`DenseState`] of backends on a GPU: nothing of it comes to the host but a step's loss and the
/// length of its gradient.
#[derive(Debug)]
pub struct DeviceDense<R: GpuRuntime> {
    weights: Flat<R>,
    means: Flat<R>,
    squares: Flat<R>,
    averages: Option<Flat<R>>,
    rule: Rule,
    updates: u64,
    /// `[num_weights + 2]`: the gradient, the loss, and whether to stop.
    sum: Flat<R>,
    device: R::Device,
}

impl<R: GpuRuntime> DenseState<Autodiff<Gpu<R>>> for DeviceDense<R> {
    fn load(saved: Saved, rule: &Rule, device: &R::Device) -> Self {
        let num_weights = saved.weights.len();
        let flat = |values: Vec<f32>| {
            let values = TensorData::new(values, [num_weights]);
            Tensor::from_data(values, device)
        };
        Self {
            weights: flat(saved.weights),
            means: flat(saved.means),
            squares: flat(saved.squares),
            averages: saved.averages.map(flat),
            rule: rule.clone(),
            updates: saved.updates,
            sum: Tensor::zeros([num_weights + 2], device),
            device: device.clone(),
        }
    }

    fn save(&self) -> Saved {
        Saved {
            weights: to_vec(self.weights.clone()),
            means: to_vec(self.means.clone()),
            squares: to_vec(self.squares.clone()),
            averages: self.averages.clone().map(to_vec),
            updates: self.updates,
        }
    }

    fn network<M: AutodiffModule<Autodiff<Gpu<R>>>>(&self, network: M, precision: Precision) -> M {
        load(network, self.weights.clone(), precision)
    }

    fn averaged<M: AutodiffModule<Autodiff<Gpu<R>>>>(&self, network: M, precision: Precision) -> M {
        let weights = self.averages.as_ref().unwrap_or(&self.weights);
        load(network, weights.clone(), precision)
    }

    fn add<M: AutodiffModule<Autodiff<Gpu<R>>>>(
        &mut self,
        network: &M,
        gradients: GradientsParams,
        loss: Flat<R>,
    ) {
        let mut collect = Collect {
            gradients,
            parts: Vec::new(),
        };
        network.visit(&mut collect);
        collect.parts.push(loss);
        collect.parts.push(Tensor::zeros([1], &self.device));
        self.sum = self.sum.clone() + Tensor::cat(collect.parts, 0);
    }

    fn reduce(&mut self, stop: bool, group: &mut impl ProcessGroup) -> Result<(), ExchangeError> {
        if stop {
            let one = Tensor::ones([1], &self.device);
            let rest = self.sum.clone().narrow(0, 0, self.num_weights() + 1);
            self.sum = Tensor::cat(vec![rest, one], 0);
        }
        if group.world_size() == 1 {
            return Ok(());
        }
        let (device, buffer) = to_buffer(self.sum.clone());
        let sum = group.all_reduce_buffer(&device, &buffer)?;
        self.sum = from_buffer(&device, &sum, [sum.len()], &self.device);
        Ok(())
    }

    fn total(&self) -> Total {
        let num_weights = self.num_weights();
        let gradient = self.sum.clone().narrow(0, 0, num_weights);
        let rest = self.sum.clone().narrow(0, num_weights, 2);
        // One copy to the host, which waits for all that the step has enqueued.
        let told = to_vec(Tensor::cat(vec![gradient.powi_scalar(2).sum(), rest], 0));
        Total {
            gradient_norm: told[0].sqrt(),
            loss: told[1],
            stopping: told[2] != 0.0,
        }
    }

    /// As the host's has it.
    fn apply(&mut self, total: &Total, by: Move) {
        self.updates += 1;
        let config = self.rule.config;
        let step = config.step(by.rate, by.weight_decay, self.updates);
        let Step {
            rate, weight_decay, ..
        } = step;
        let mut gradient = self.sum.clone().narrow(0, 0, self.num_weights());
        if let Some(scale) = by.scale(total) {
            gradient = gradient * scale;
        }
        let weights = self.weights.clone();
        if weight_decay > 0.0 && config.decays_by_gradient() {
            gradient = gradient + weights.clone() * weight_decay;
        }
        self.weights = match config.kind {
            DenseOptimizer::Adam => weights - self.adam(gradient, &step) * rate,
            DenseOptimizer::AdamW => {
                let decay = weights.clone() * weight_decay;
                weights - (self.adam(gradient, &step) + decay) * rate
            }
            DenseOptimizer::Adagrad => {
                self.squares = self.squares.clone() + gradient.clone() * gradient.clone();
                let length = self.squares.clone().sqrt() + config.eps;
                weights - gradient / length * rate
            }
            DenseOptimizer::Lamb => {
                let decay = weights.clone() * weight_decay;
                let direction = self.adam(gradient, &step) + decay;
                self.moved_by_layer(&weights, &direction, rate)
            }
        };
        if let Some(averages) = &mut self.averages {
            let moved = 1.0 - by.kept(self.updates);
            *averages = averages.clone() + (self.weights.clone() - averages.clone()) * moved;
        }
    }

    fn clear(&mut self) {
        self.sum = Tensor::zeros([self.num_weights() + 2], &self.device);
    }
}

impl<R: GpuRuntime> DeviceDense<R> {
    fn num_weights(&self) -> usize {
        self.weights.dims()[0]
    }

    /// Takes a gradient into both means, and gives Adam's direction.
    fn adam(&mut self, gradient: Flat<R>, step: &Step) -> Flat<R> {
        let config = self.rule.config;
        let (means, squares) = (self.means.clone(), self.squares.clone());
        self.means = means.clone() + (gradient.clone() - means) * (1.0 - config.beta1);
        self.squares = squares.clone() + (gradient.powi_scalar(2) - squares) * (1.0 - config.beta2);
        let length = (self.squares.clone() * step.square_scale).sqrt() + config.eps;
        self.means.clone() * step.mean_scale / length
    }

    /// LAMB's step, whose length each layer has for itself.
    fn moved_by_layer(&self, weights: &Flat<R>, direction: &Flat<R>, rate: f32) -> Flat<R> {
        let mut at = 0;
        let layers = self.rule.segments.iter().map(|len| {
            let mine = weights.clone().narrow(0, at, *len);
            let moved = direction.clone().narrow(0, at, *len);
            at += len;
            let squares = [&mine, &moved].map(|part| part.clone().powi_scalar(2).sum());
            let lengths = to_vec(Tensor::cat(squares.to_vec(), 0).sqrt());
            mine - moved * (rate * trust(lengths[0], lengths[1]))
        });
        Tensor::cat(layers.collect(), 0)
    }
}

fn load<R: GpuRuntime, M: AutodiffModule<Autodiff<Gpu<R>>>>(
    network: M,
    weights: Flat<R>,
    precision: Precision,
) -> M {
    network.map(&mut Load {
        weights: cast(weights, precision),
        at: 0,
    })
}

/// A tensor of f32 as numbers in memory.
pub(crate) fn to_buffer<R: GpuRuntime, const D: usize>(
    tensor: Tensor<Gpu<R>, D>,
) -> (Device<R>, Buffer) {
    let tensor = cast(tensor, Precision::F32).into_primitive().tensor();
    let tensor = into_contiguous(tensor);
    let len = tensor.meta.shape().num_elements();
    // SAFETY: it is contiguous now, and of f32.
    let buffer = unsafe { Buffer::from_handle(tensor.handle, len) };
    (Device::new(tensor.client), buffer)
}

/// The inverse of [`to_buffer`].
///
/// # Panics
/// If the shape has another number of elements than the buffer.
pub(crate) fn from_buffer<R: GpuRuntime, const D: usize>(
    device: &Device<R>,
    buffer: &Buffer,
    shape: [usize; D],
    place: &R::Device,
) -> Tensor<Gpu<R>, D> {
    assert_eq!(shape.iter().product::<usize>(), buffer.len(), "all numbers");
    let tensor = CubeTensor::new_contiguous(
        device.client().clone(),
        place.clone(),
        Shape::from(shape),
        buffer.handle().clone(),
        burn::tensor::DType::F32,
    );
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Puts segments of flat weights into a module, as [`super::load_weights`] does.
struct Load<R: GpuRuntime> {
    weights: Flat<R>,
    at: usize,
}

impl<R: GpuRuntime> ModuleMapper<Autodiff<Gpu<R>>> for Load<R> {
    fn map_float<const D: usize>(
        &mut self,
        param: Param<Tensor<Autodiff<Gpu<R>>, D>>,
    ) -> Param<Tensor<Autodiff<Gpu<R>>, D>> {
        if !param.val().is_require_grad() {
            return param;
        }
        let (id, old, mapper) = param.consume();
        let count = old.shape().num_elements();
        let mine = self.weights.clone().narrow(0, self.at, count);
        self.at += count;
        let new = Tensor::from_inner(mine.reshape(old.shape()));
        Param::from_mapped_value(id, new.require_grad(), mapper)
    }
}

/// Takes the gradients of a module's weights, flat and in its order; zeros where there is none.
struct Collect<R: GpuRuntime> {
    gradients: GradientsParams,
    parts: Vec<Flat<R>>,
}

impl<R: GpuRuntime> ModuleVisitor<Autodiff<Gpu<R>>> for Collect<R> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<Gpu<R>>, D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let count = value.shape().num_elements();
        let gradient = self.gradients.remove::<Gpu<R>, D>(param.id);
        self.parts.push(match gradient {
            Some(gradient) => cast(gradient.reshape([count]), Precision::F32),
            None => Tensor::zeros([count], &value.device()),
        });
    }
}
