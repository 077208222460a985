//! A device, numbers in its memory, and the sums that are made of them.

use cubecl::{
    Runtime, calculate_cube_count_elemwise,
    client::ComputeClient,
    prelude::{ArrayArg, CubeDim},
    server::Handle,
};

use crate::{error::KernelError, kernels::add_up};

/// Units of a cube.
pub(crate) const CUBE: u32 = 128;

/// A device, as one thread uses it.
pub struct Device<R: Runtime> {
    client: ComputeClient<R>,
}

impl<R: Runtime> Clone for Device<R> {
    fn clone(&self) -> Self {
        Self::new(self.client.clone())
    }
}

/// f32 in a device's memory; a clone is the same memory.
#[derive(Debug, Clone)]
pub struct Buffer {
    handle: Handle,
    len: usize,
}

/// Vectors in a buffer: the one with index `i` begins at number `i × step`.
#[derive(Debug, Clone, Copy)]
pub struct Vectors<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// How far apart two vectors can begin; best a multiple of 4.
    pub step: usize,
}

/// Sums to be made: which vectors are added up, and where each sum is put.
#[derive(Debug, Clone, Copy)]
pub struct Sums<'a> {
    /// `[entries]`, the vector of each.
    pub source_at: &'a [u32],
    /// `[count + 1]`, where the entries of each sum begin, and their end.
    pub offsets: &'a [u32],
    /// `[entries]`, what each vector is multiplied with; `None`: 1.
    pub scale: Option<&'a [f32]>,
    /// `[count]`, the vector that each sum is put into, each once.
    pub target_at: &'a [u32],
}

/// [`Sums`] on the device.
#[derive(Debug, Clone)]
pub struct DeviceSums {
    source_at: Indices,
    offsets: List,
    scale: List,
    scaled: bool,
    target_at: Indices,
    count: usize,
}

/// A list of 32-bit numbers on the device.
#[derive(Debug, Clone)]
pub(crate) struct List {
    handle: Handle,
    len: usize,
}

/// A list of indices, and one more than the largest.
#[derive(Debug, Clone)]
pub(crate) struct Indices {
    pub list: List,
    pub end: usize,
}

impl List {
    pub fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the length is that with which the buffer was made.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len) }
    }
}

impl Buffer {
    /// What another library made on the same device.
    ///
    /// # Safety
    /// The handle is of `len` f32, one after the other.
    pub unsafe fn from_handle(handle: Handle, len: usize) -> Self {
        Self { handle, len }
    }

    /// For another library on the same device.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the length is that with which the buffer was made.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len.max(1)) }
    }
}

impl<R: Runtime> Device<R> {
    /// The device of a client.
    pub fn new(client: ComputeClient<R>) -> Self {
        Self { client }
    }

    /// The device's client.
    pub fn client(&self) -> &ComputeClient<R> {
        &self.client
    }

    /// Room for numbers, which are whatever was there before.
    pub fn room(&self, len: usize) -> Buffer {
        let handle = self.client.empty(len.max(1) * size_of::<f32>());
        Buffer { handle, len }
    }

    /// As [`Self::upload`], and waits for the room, which is told if there is none.
    ///
    /// # Errors
    /// [`KernelError`].
    pub(crate) fn keep(&self, what: &'static str, values: &[f32]) -> Result<Buffer, KernelError> {
        let (bytes, most) = (
            size_of_val(values) as u64,
            self.client.properties().memory.max_page_size,
        );
        // Otherwise the device would find out later, and tell nobody.
        if bytes > most {
            return Err(KernelError::TooLarge { what, bytes, most });
        }
        let buffer = self.upload(values);
        let resource = self.client.get_resource(buffer.handle.clone());
        resource.map_err(|error| KernelError::Device(format!("{error:?}")))?;
        Ok(buffer)
    }

    /// Copies numbers to the device.
    pub fn upload(&self, values: &[f32]) -> Buffer {
        Buffer {
            handle: self.copy(values),
            len: values.len(),
        }
    }

    /// Copies numbers here.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f32>, KernelError> {
        let bytes = self.client.read_one(buffer.handle.clone());
        let bytes = bytes.map_err(|error| KernelError::Device(format!("{error:?}")))?;
        let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        values.truncate(buffer.len);
        Ok(values)
    }

    /// Brings sums to the device.
    ///
    /// # Errors
    /// [`KernelError`] if the lists do not belong together.
    pub fn sums(&self, sums: Sums<'_>) -> Result<DeviceSums, KernelError> {
        let count = check(sums.offsets, sums.source_at.len(), sums.scale)?;
        expect("target_at", sums.target_at.len(), count)?;
        Ok(DeviceSums {
            source_at: self.indices(sums.source_at),
            offsets: self.list(sums.offsets),
            scaled: sums.scale.is_some(),
            scale: self.list(sums.scale.unwrap_or_default()),
            target_at: self.indices(sums.target_at),
            count,
        })
    }

    /// Makes sums of vectors of `dim` numbers, each in the order of its entries; one without
    /// entries is zeros.
    ///
    /// # Errors
    /// [`KernelError::Vector`] for vectors that do not lie within their buffer.
    pub fn add_up(
        &self,
        sums: &DeviceSums,
        dim: usize,
        source: Vectors<'_>,
        target: Vectors<'_>,
    ) -> Result<(), KernelError> {
        source.check("source", sums.source_at.end, dim)?;
        target.check("target", sums.target_at.end, dim)?;
        let width = moved_at_once([dim, source.step, target.step]);
        source.check_range("source", width)?;
        target.check_range("target", width)?;
        let vectors = dim / width;
        let (cube, count) = (CubeDim::new_1d(CUBE), sums.count * vectors);
        if count == 0 {
            return Ok(());
        }
        let cubes = calculate_cube_count_elemwise(&self.client, count, cube);
        // SAFETY: lengths are those of the buffers, all vectors were checked to lie within them and
        // offsets to rise, and the kernel does nothing beyond `count × vectors`.
        unsafe {
            add_up::launch_unchecked::<R>(
                &self.client,
                cubes,
                cube,
                width,
                source.buffer.arg(),
                sums.source_at.list.arg(),
                sums.offsets.arg(),
                sums.scale.arg(),
                sums.target_at.list.arg(),
                target.buffer.arg(),
                (source.step / width) as u32,
                (target.step / width) as u32,
                vectors as u32,
                sums.count as u32,
                sums.scaled,
            );
        }
        Ok(())
    }

    /// A list on the device.
    pub(crate) fn list<T: bytemuck::Pod>(&self, values: &[T]) -> List {
        List {
            handle: self.copy(values),
            len: values.len().max(1),
        }
    }

    pub(crate) fn indices(&self, values: &[u32]) -> Indices {
        Indices {
            list: self.list(values),
            end: values.iter().max().map_or(0, |last| *last as usize + 1),
        }
    }

    fn copy<T: bytemuck::Pod>(&self, values: &[T]) -> Handle {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // A device has no empty buffers.
        match bytes.is_empty() {
            true => self.client.empty(size_of::<f32>()),
            false => self.client.create_from_slice(bytes),
        }
    }
}

impl Vectors<'_> {
    /// Whether all indices below `end` are of vectors within the buffer.
    pub(crate) fn check(
        &self,
        what: &'static str,
        end: usize,
        dim: usize,
    ) -> Result<(), KernelError> {
        let fits = |last: usize| last * self.step + dim <= self.buffer.len;
        match end.checked_sub(1) {
            Some(index) if !fits(index) => Err(KernelError::Vector {
                what,
                index,
                step: self.step,
                dim,
                len: self.buffer.len,
            }),
            _ => Ok(()),
        }
    }

    /// Whether a kernel, which counts in 32 bits, reaches all of the buffer.
    pub(crate) fn check_range(&self, what: &'static str, width: usize) -> Result<(), KernelError> {
        let size = size_of::<f32>() as u64;
        let (bytes, most) = (
            self.buffer.len as u64 * size,
            u64::from(u32::MAX) * width as u64 * size,
        );
        match bytes > most {
            true => Err(KernelError::TooLarge { what, bytes, most }),
            false => Ok(()),
        }
    }
}

/// How many neighbouring numbers can be moved at once where all these lengths are multiples of it.
pub fn moved_at_once(lengths: impl IntoIterator<Item = usize> + Clone) -> usize {
    let divides = |width: &usize| {
        let mut lengths = lengths.clone().into_iter();
        lengths.all(|length| length.is_multiple_of(*width))
    };
    [4, 2].into_iter().find(divides).unwrap_or(1)
}

pub(crate) fn expect(what: &'static str, found: usize, wanted: usize) -> Result<(), KernelError> {
    match found == wanted {
        true => Ok(()),
        false => Err(KernelError::Length {
            what,
            found,
            wanted,
        }),
    }
}

/// Number of parts of offsets that rise from 0 to the number of entries.
pub(crate) fn check(
    offsets: &[u32],
    entries: usize,
    scale: Option<&[f32]>,
) -> Result<usize, KernelError> {
    let whole = offsets.first() == Some(&0)
        && offsets.last().copied() == u32::try_from(entries).ok()
        && offsets.is_sorted();
    if !whole {
        return Err(KernelError::Offsets { entries });
    }
    if let Some(scale) = scale {
        expect("scale", scale.len(), entries)?;
    }
    Ok(offsets.len() - 1)
}
