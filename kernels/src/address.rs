//! Where a buffer lies, for libraries that work on device memory themselves.

use cubecl::Runtime;

use crate::{Device, device::Buffer, error::KernelError};

/// A runtime of which is known whether its buffers have addresses.
pub trait DeviceMemory: Runtime {
    /// Address of a buffer, once all work on it that was enqueued before is done; `None` if the
    /// runtime's buffers have none.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    fn address(device: &Device<Self>, buffer: &Buffer) -> Result<Option<u64>, KernelError>;
}

#[cfg(feature = "cuda")]
impl DeviceMemory for cubecl::cuda::CudaRuntime {
    fn address(device: &Device<Self>, buffer: &Buffer) -> Result<Option<u64>, KernelError> {
        let failed = |error: &dyn std::fmt::Debug| KernelError::Device(format!("{error:?}"));
        let client = device.client();
        let resource = client.get_resource(buffer.handle().clone());
        let resource = resource.map_err(|error| failed(&error))?;
        cubecl::future::block_on(client.sync()).map_err(|error| failed(&error))?;
        Ok(Some(resource.resource().ptr))
    }
}

#[cfg(feature = "wgpu")]
impl DeviceMemory for cubecl::wgpu::WgpuRuntime {
    fn address(_: &Device<Self>, _: &Buffer) -> Result<Option<u64>, KernelError> {
        Ok(None)
    }
}
