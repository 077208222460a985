//! The fused operations on libtorch: what it has as one operation itself, where burn composes several.
//! The others are in place already, as burn composes them.

use burn::{
    backend::{LibTorch, libtorch::TchTensor},
    tensor::ops::FloatTensorOps,
};

use super::{FusedKernels, primitive, tensor};

impl FusedKernels for LibTorch {
    fn bias_relu_backward(gradient: TchTensor, y: TchTensor) -> (TchTensor, TchTensor) {
        let of_z = TchTensor::new(y.tensor.threshold_backward(&gradient.tensor, 0.0));
        let of_bias = tensor::<Self, 2>(of_z.clone())
            .sum_dim(0)
            .squeeze_dim::<1>(0);
        (of_z, primitive(of_bias))
    }

    fn cross_forward(
        x0: TchTensor,
        u: TchTensor,
        bias: TchTensor,
        x: TchTensor,
    ) -> (TchTensor, TchTensor) {
        let bias = primitive(tensor::<Self, 1>(bias).unsqueeze::<2>());
        let t = Self::float_add(u, bias);
        let y = TchTensor::new(x.tensor.addcmul(&x0.tensor, &t.tensor));
        (y, t)
    }
}
