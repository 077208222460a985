//! Backends on which a model is trained: where each half of a step lies.

use burn::backend::Autodiff;
use models::{Cpu, ops::TrainingBackend};

use crate::{
    dense::{DenseState, HostDense},
    sharding::{ShardedTables, Tables},
};

/// A backend with the memory of a step's two halves.
pub trait StepBackend: TrainingBackend {
    /// The sparse half.
    type Tables: Tables<Self::InnerBackend>;
    /// The dense half.
    type Dense: DenseState<Self>;

    /// Whether what both halves exchange may travel at the same time.
    const AT_ONCE: bool;
}

impl StepBackend for Autodiff<Cpu> {
    type Tables = ShardedTables;
    type Dense = HostDense<Self>;
    const AT_ONCE: bool = true;
}

#[cfg(feature = "tch")]
impl StepBackend for Autodiff<burn::backend::LibTorch> {
    type Tables = ShardedTables;
    type Dense = HostDense<Self>;
    const AT_ONCE: bool = true;
}

/// A GPU's backend, whose tensors are plain buffers that kernels and NCCL can use.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub type Gpu<R> = burn_cubecl::CubeBackend<R, f32, i32, <R as GpuRuntime>::Bool>;

/// A runtime of CubeCL on which a model is trained.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub trait GpuRuntime: burn_cubecl::CubeRuntime + kernels::DeviceMemory {
    /// How it stores truth values.
    type Bool: burn_cubecl::element::BoolElement;
}

#[cfg(feature = "cuda")]
impl GpuRuntime for cubecl::cuda::CudaRuntime {
    type Bool = u8;
}

#[cfg(feature = "wgpu")]
impl GpuRuntime for cubecl::wgpu::WgpuRuntime {
    type Bool = u32;
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl<R: GpuRuntime> StepBackend for Autodiff<Gpu<R>> {
    type Tables = crate::sharding::DeviceTables<R>;
    type Dense = crate::dense::DeviceDense<R>;
    // Two of NCCL's communicators at once may wait for each other on a GPU.
    const AT_ONCE: bool = false;
}
