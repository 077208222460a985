//! Backends on which a model is trained: where each half of a step lies, and which one `--device` names.

use std::{str::FromStr, sync::Arc};

use burn::backend::Autodiff;
use models::{Cpu, ops::TrainingBackend};

use crate::{
    collective::{ProcessGroup, Rendezvous, TcpGroup},
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

/// Where a network is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The CPU, by what every build has.
    Cpu,
    /// The CPU, by libtorch.
    #[cfg(feature = "tch")]
    Libtorch,
    /// Whatever has Vulkan.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda,
}

impl Device {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            #[cfg(feature = "tch")]
            Self::Libtorch => "libtorch",
            #[cfg(feature = "wgpu")]
            Self::Wgpu => "wgpu",
            #[cfg(feature = "cuda")]
            Self::Cuda => "cuda",
        }
    }
}

/// A device that does not exist, or not in this build.
#[derive(Debug, thiserror::Error)]
#[error(
    "not in this build: use cpu, or build with --features marquee-trainer/tch for libtorch, marquee-trainer/cuda for cuda, marquee-trainer/wgpu for wgpu"
)]
pub struct DeviceNotBuilt;

impl FromStr for Device {
    type Err = DeviceNotBuilt;

    fn from_str(text: &str) -> Result<Self, DeviceNotBuilt> {
        match text {
            "cpu" => Ok(Self::Cpu),
            #[cfg(feature = "tch")]
            "libtorch" => Ok(Self::Libtorch),
            #[cfg(feature = "wgpu")]
            "wgpu" => Ok(Self::Wgpu),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Cuda),
            _ => Err(DeviceNotBuilt),
        }
    }
}

/// A training that any backend can do.
pub trait Training {
    /// What comes of it, on the CPU.
    type Trained;

    /// Does it. `connect` gives the groups, by name, over which ranks exchange what lies in the
    /// backend's memory.
    ///
    /// # Errors
    /// Whatever keeps it from its end.
    fn on<B: StepBackend, D: ProcessGroup>(
        self,
        device: &B::Device,
        connect: impl Fn(&str) -> anyhow::Result<D>,
    ) -> anyhow::Result<Self::Trained>;
}

impl Device {
    /// Does a training here. Between NVIDIA GPUs all that a step exchanges goes over NCCL.
    ///
    /// # Errors
    /// Whatever keeps it from its end; [`cli::Usage`] where there is no such device.
    pub fn train<T: Training>(
        self,
        met: &Arc<Rendezvous>,
        training: T,
    ) -> anyhow::Result<T::Trained> {
        let connect = |role: &str| Ok(TcpGroup::connect(met, role)?);
        match self {
            Self::Cpu => training.on::<Autodiff<Cpu>, _>(&Default::default(), connect),
            #[cfg(feature = "tch")]
            Self::Libtorch => {
                type B = Autodiff<burn::backend::LibTorch>;
                training.on::<B, _>(&Default::default(), connect)
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu => {
                type B = Autodiff<Gpu<cubecl::wgpu::WgpuRuntime>>;
                training.on::<B, _>(&Default::default(), connect)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                type B = Autodiff<burn::backend::Cuda>;
                if let Err(missing) = crate::collective::find_driver() {
                    anyhow::bail!(cli::Usage(format!("--device cuda: {missing}")));
                }
                let local_rank = met.membership.local_rank;
                if let Some(folder) = kernels::keep_compiled(local_rank)
                    && !folder.exists()
                {
                    let folder = folder.display();
                    tracing::info!(
                        "kernels are compiled, once for this GPU; they are kept in {folder}"
                    );
                }
                let device = burn::backend::cuda::CudaDevice::new(local_rank);
                match met.membership.world_size {
                    1 => training.on::<B, _>(&device, connect),
                    _ => training.on::<B, _>(&device, |role| {
                        Ok(crate::collective::NcclGroup::connect(met, role)?)
                    }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_in_the_build_is_refused_with_the_feature_that_has_it() {
        assert_eq!("cpu".parse::<Device>().ok(), Some(Device::Cpu));
        let refused = |device: &str| device.parse::<Device>().err().map(|e| e.to_string());
        assert!(refused("tpu").unwrap().contains("marquee-trainer/tch"));
        assert_eq!(refused("libtorch").is_none(), cfg!(feature = "tch"));
        assert_eq!(refused("wgpu").is_none(), cfg!(feature = "wgpu"));
        assert_eq!(refused("cuda").is_none(), cfg!(feature = "cuda"));
    }
}
