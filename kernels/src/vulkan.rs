//! burn's operations on Vulkan, compiled here once.
//!
//! The compiler makes a generic function anew in every program that needs it, unless a crate below has it
//! already: without this, the operations of the backend that the tests run on are two thirds of what every
//! program with a network compiles. What is missing in the lists below is compiled as before.

use burn::tensor::ops::{
    ActivationOps, BoolTensorOps, FloatTensorOps, IntTensorOps, ModuleOps, QTensorOps,
};
use burn_cubecl::CubeBackend;
use cubecl::wgpu::WgpuRuntime;

type Vulkan = CubeBackend<WgpuRuntime, f32, i32, u32>;

macro_rules! functions {
    ($($operations:ident { $($name:ident)* })*) => {
        vec![$($(<Vulkan as $operations<Vulkan>>::$name as *const ()),*),*]
    };
}

/// Where the compiled operations lie.
pub fn compiled() -> Vec<*const ()> {
    let mut all = functions! {
        FloatTensorOps {
            float_from_data float_random float_device float_to_device float_empty float_zeros float_ones
            float_full float_cast float_into_int
            float_add float_add_scalar float_sub float_sub_scalar float_mul float_mul_scalar float_div
            float_div_scalar float_neg float_recip float_matmul
            float_exp float_log float_log1p float_sqrt float_powf float_powi_scalar float_abs float_sign
            float_tanh float_erf float_clamp float_clamp_min float_clamp_max
            float_swap_dims float_transpose float_permute float_reshape float_expand float_repeat_dim
            float_cat float_slice float_slice_assign float_gather float_scatter_add float_select
            float_select_add float_mask_where float_mask_fill
            float_equal float_equal_elem float_greater float_greater_elem float_greater_equal
            float_greater_equal_elem float_lower float_lower_elem float_lower_equal float_lower_equal_elem
            float_sum float_sum_dim float_mean float_mean_dim float_max float_max_dim float_min float_min_dim
            float_argmax
        }
        IntTensorOps {
            int_from_data int_device int_cast int_into_float int_reshape int_expand int_slice
            int_add int_add_scalar int_sub int_mul int_mul_scalar int_remainder int_remainder_scalar
            int_equal int_equal_elem int_lower int_lower_elem int_greater_equal_elem
            bitwise_and bitwise_and_scalar bitwise_xor bitwise_xor_scalar bitwise_right_shift
            bitwise_right_shift_scalar
        }
        BoolTensorOps {
            bool_device bool_into_float bool_not bool_and bool_or bool_reshape bool_expand
        }
        ActivationOps {
            relu relu_backward sigmoid sigmoid_backward log_sigmoid log_sigmoid_backward gelu gelu_backward
        }
        ModuleOps { attention }
        QTensorOps { quantize q_from_data q_reshape q_swap_dims q_select q_slice q_matmul }
    };
    all.push(cubek::matmul::launch::launch_ref::<WgpuRuntime> as *const ());
    all
}
