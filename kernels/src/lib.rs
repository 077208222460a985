//! Embedding tables in GPU memory: pooled lookup and fused row-wise Adagrad, in CubeCL.
//!
//! The kernels are one source for every runtime of CubeCL: `cuda` on NVIDIA GPUs, `wgpu` on
//! whatever has Vulkan, Mesa's software renderer too, which is how they are tested without a GPU.
//! A [`GpuTable`] lies wholly on the device; a [`CachedTable`] lies in host memory, with its hot
//! rows on the device. Without one of the features the crate is empty.
//!
//! Nothing here is atomic: sums are made in the order of their entries, and the same input gives
//! the same bits on the same device.

#![cfg(any(feature = "cuda", feature = "wgpu"))]

mod address;
mod cache;
mod compiled;
mod conformance;
mod device;
mod error;
mod kernels;
mod table;
#[cfg(feature = "wgpu")]
mod vulkan;

pub use address::DeviceMemory;
pub use cache::{CacheUse, CachedTable};
pub use compiled::keep_compiled;
pub use conformance::{Nonconformance, conform};
pub use device::{Buffer, Device, DeviceSums, Sums, Vectors, moved_at_once};
pub use error::KernelError;
pub use table::{DeviceTouched, GpuTable, RowwiseAdagrad, Touched};
#[cfg(feature = "wgpu")]
#[doc(hidden)]
pub use vulkan::compiled;
