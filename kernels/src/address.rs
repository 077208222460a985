//! Where a buffer lies, for libraries that work on device memory themselves.

use cubecl::Runtime;

use crate::{Device, device::Buffer, error::KernelError};

/// A runtime of which is known whether its buffers have addresses.
pub trait DeviceMemory: Runtime {
    /// Addresses of buffers, once all work on them that was enqueued before is done; `None` if the
    /// runtime's buffers have none.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    fn addresses<const N: usize>(
        device: &Device<Self>,
        buffers: [&Buffer; N],
    ) -> Result<Option<[u64; N]>, KernelError>;
}

#[cfg(feature = "cuda")]
impl DeviceMemory for cubecl::cuda::CudaRuntime {
    fn addresses<const N: usize>(
        device: &Device<Self>,
        buffers: [&Buffer; N],
    ) -> Result<Option<[u64; N]>, KernelError> {
        let failed = |error: &dyn std::fmt::Debug| KernelError::Device(format!("{error:?}"));
        let client = device.client();
        let mut addresses = [0; N];
        for (address, buffer) in addresses.iter_mut().zip(buffers) {
            let resource = client.get_resource(buffer.handle().clone());
            *address = resource.map_err(|error| failed(&error))?.resource().ptr;
        }
        cubecl::future::block_on(client.sync()).map_err(|error| failed(&error))?;
        Ok(Some(addresses))
    }
}

#[cfg(feature = "wgpu")]
impl DeviceMemory for cubecl::wgpu::WgpuRuntime {
    fn addresses<const N: usize>(
        _: &Device<Self>,
        _: [&Buffer; N],
    ) -> Result<Option<[u64; N]>, KernelError> {
        Ok(None)
    }
}
