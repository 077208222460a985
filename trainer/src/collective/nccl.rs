//! A process group over NCCL: for ranks on GPUs, over as many machines as there are.
//!
//! The communicator's unique id goes from rank 0 to the others through the rendezvous, one for each
//! role. Host slices are staged through device memory; what lies there already is summed in place,
//! and goes from device to device. NCCL calls only enqueue: every operation then waits for the
//! stream with a time-out, and looks at the communicator's asynchronous error meanwhile; when
//! either strikes, the communicator is aborted, and the rank that gave no sign is named.
//!
//! NCCL and the driver are opened at run time: [`NcclGroup::connect`] says what is missing.

use std::{
    ffi::c_void,
    mem::MaybeUninit,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytemuck::Pod;
use cudarc::{
    driver::{
        CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, result::event,
        sys as driver_sys,
    },
    nccl::{
        result::{self, NcclError},
        sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t},
    },
};

use kernels::{Buffer, Device, DeviceMemory};

use super::{
    CollectiveError, ExchangeError, Operation, ProcessGroup, Rendezvous, Traffic,
    rendezvous::JoinError,
};

/// How long the others get to say that they wait too.
const BLAME_GRACE: Duration = Duration::from_secs(2);

/// Bytes of a unique id.
const ID_BYTES: usize = 128;

/// A group of ranks that are joined by NCCL.
#[derive(Debug)]
pub struct NcclGroup {
    rendezvous: Arc<Rendezvous>,
    role: String,
    stream: Arc<CudaStream>,
    /// Null once it was aborted.
    communicator: sys::ncclComm_t,
    operation: Operation,
    sequence: u32,
    traffic: Traffic,
}

/// Bytes in device memory that go to a rank, or come from it.
#[derive(Debug, Clone, Copy)]
struct Span {
    rank: usize,
    address: u64,
    bytes: usize,
}

impl Span {
    /// Each rank's numbers of type f32, one after the other.
    fn each(address: u64, lens: &[usize]) -> Vec<Self> {
        let mut at = address;
        let ranks = lens.iter().enumerate().map(|(rank, len)| {
            let bytes = len * size_of::<f32>();
            at += bytes as u64;
            Self {
                rank,
                address: at - bytes as u64,
                bytes,
            }
        });
        ranks.filter(|span| span.bytes > 0).collect()
    }
}

// SAFETY: NCCL allows a communicator to be used by any one thread at a time, which `&mut self`
// of all operations ensures; the handle itself is not bound to the thread that made it.
unsafe impl Send for NcclGroup {}

impl NcclGroup {
    /// Makes the group of a role on the GPU with this rank's local number.
    ///
    /// # Errors
    /// [`JoinError::Nccl`] names what is missing or refused; [`JoinError::Missing`] if rank 0 told
    /// no id.
    pub fn connect(rendezvous: &Arc<Rendezvous>, role: &str) -> Result<Self, JoinError> {
        let problem = |problem: String| JoinError::Nccl {
            role: role.to_owned(),
            problem,
        };
        probe().map_err(|missing| problem(missing.to_owned()))?;
        let membership = &rendezvous.membership;
        let context = CudaContext::new(membership.local_rank).map_err(|error| {
            problem(format!(
                "GPU {} cannot be used: {error}",
                membership.local_rank
            ))
        })?;
        let stream = context
            .new_stream()
            .map_err(|error| problem(format!("no stream: {error}")))?;
        let id = unique_id(rendezvous, role)?;
        let mut communicator = MaybeUninit::uninit();
        // SAFETY: the pointer is to room for one handle, and the id is one of NCCL's own.
        let made = unsafe {
            result::comm_init_rank(
                communicator.as_mut_ptr(),
                membership.world_size as i32,
                id,
                membership.rank as i32,
            )
        };
        made.map_err(|error| problem(format!("no communicator: {}", name(&error))))?;
        let mut group = Self {
            rendezvous: Arc::clone(rendezvous),
            role: role.to_owned(),
            stream,
            // SAFETY: NCCL has said that it made it.
            communicator: unsafe { communicator.assume_init() },
            operation: Operation::AllToAll,
            sequence: 0,
            traffic: Traffic::default(),
        };
        // The first operation of a kind connects the ranks, for which NCCL waits without a limit:
        // best now, when all have just been there.
        let connected = group.all_reduce(&mut [0.0]).and_then(|()| group.barrier());
        connected.map_err(|error| problem(error.to_string()))?;
        group.traffic = Traffic::default();
        Ok(group)
    }

    /// Sums values that lie in device memory over all ranks, in place, without a copy.
    ///
    /// # Errors
    /// [`CollectiveError`].
    ///
    /// # Safety
    /// `values` is the address of `len` f32 on this group's GPU, which nothing else writes until
    /// this returns; work of other streams on them was waited for.
    unsafe fn all_reduce_device(&mut self, values: u64, len: usize) -> Result<(), CollectiveError> {
        self.begin(Operation::AllReduce)?;
        let address = values as *mut c_void;
        let (communicator, stream) = (self.communicator, self.raw_stream());
        // SAFETY: the caller vouches for the address.
        let enqueued = unsafe {
            result::all_reduce(
                address,
                address,
                len,
                ncclDataType_t::ncclFloat32,
                ncclRedOp_t::ncclSum,
                communicator,
                stream,
            )
        };
        self.nccl(enqueued)?;
        let share = 2 * (self.world_size() - 1) * len * 4 / self.world_size();
        self.count(share, share);
        self.finish()
    }

    /// Whether an address is of this group's GPU.
    fn check_place(&mut self, address: u64) -> Result<(), CollectiveError> {
        let mut ordinal: i32 = -1;
        // SAFETY: the attribute is an int, and the pointer is to one of our own.
        let asked = unsafe {
            driver_sys::cuPointerGetAttribute(
                (&raw mut ordinal).cast(),
                driver_sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                address,
            )
        };
        self.cuda(asked.result())?;
        let mine = self.stream.context().ordinal();
        match usize::try_from(ordinal) == Ok(mine) {
            true => Ok(()),
            false => Err(self.failed(format!("memory of GPU {ordinal}, wanted of {mine}"))),
        }
    }

    fn raw_stream(&self) -> sys::cudaStream_t {
        self.stream.cu_stream().cast()
    }

    fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        if self.communicator.is_null() {
            return Err(CollectiveError::Broken {
                role: self.role.clone(),
            });
        }
        self.operation = operation;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    /// Waits until the stream has done all that was enqueued.
    fn finish(&mut self) -> Result<(), CollectiveError> {
        let recorded = self.stream.record_event(None);
        let event = self.cuda(recorded)?;
        let deadline = Instant::now() + self.rendezvous.timeout;
        loop {
            // SAFETY: the event lives as long as this loop.
            match unsafe { event::query(event.cu_event()) } {
                Ok(()) => return Ok(()),
                Err(DriverError(driver_sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
                Err(error) => return self.cuda(Err(error)),
            }
            let mut found = ncclResult_t::ncclSuccess;
            // SAFETY: the communicator is alive, and the pointer is to a place of our own.
            let asked = unsafe { sys::ncclCommGetAsyncError(self.communicator, &mut found) };
            self.nccl(asked.result().and_then(|_| found.result()))?;
            if Instant::now() >= deadline {
                return Err(self.silent());
            }
            std::thread::yield_now();
        }
    }

    fn silent(&mut self) -> CollectiveError {
        self.abort();
        CollectiveError::Silent {
            rank: self.rendezvous.silent_rank(BLAME_GRACE),
            operation: self.operation,
            sequence: self.sequence,
            role: self.role.clone(),
            waited: self.rendezvous.timeout,
        }
    }

    fn abort(&mut self) {
        if !self.communicator.is_null() {
            // SAFETY: the handle is alive, and forgotten with this.
            unsafe { result::comm_abort(self.communicator) }.ok();
            self.communicator = std::ptr::null_mut();
        }
    }

    fn nccl<T>(&mut self, result: Result<T, NcclError>) -> Result<T, CollectiveError> {
        result.map_err(|error| self.failed(name(&error)))
    }

    fn cuda<T>(&mut self, result: Result<T, DriverError>) -> Result<T, CollectiveError> {
        result.map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&mut self, problem: String) -> CollectiveError {
        self.abort();
        CollectiveError::Device {
            operation: self.operation,
            sequence: self.sequence,
            role: self.role.clone(),
            problem,
        }
    }

    fn count(&mut self, sent: usize, received: usize) {
        self.traffic.sent_bytes += sent as u64;
        self.traffic.received_bytes += received as u64;
    }

    fn upload(&mut self, bytes: &[u8]) -> Result<CudaSlice<u8>, CollectiveError> {
        // An empty slice has no address.
        let copied = match bytes.is_empty() {
            true => self.stream.alloc_zeros(1),
            false => self.stream.clone_htod(bytes),
        };
        self.cuda(copied)
    }

    fn room(&mut self, bytes: usize) -> Result<CudaSlice<u8>, CollectiveError> {
        let room = self.stream.alloc_zeros(bytes.max(1));
        self.cuda(room)
    }

    /// Sends a buffer to every rank that has one, and fills one from every rank that gives one, all
    /// at once.
    fn send_and_receive(
        &mut self,
        sent: &[(usize, CudaSlice<u8>, usize)],
        received: &mut [(usize, CudaSlice<u8>, usize)],
    ) -> Result<(), CollectiveError> {
        let stream = Arc::clone(&self.stream);
        let sent = sent.iter().map(|(rank, buffer, bytes)| Span {
            rank: *rank,
            address: buffer.device_ptr(&stream).0,
            bytes: *bytes,
        });
        let received = received.iter_mut().map(|(rank, buffer, bytes)| Span {
            rank: *rank,
            address: buffer.device_ptr_mut(&stream).0,
            bytes: *bytes,
        });
        let (sent, received): (Vec<Span>, Vec<Span>) = (sent.collect(), received.collect());
        // SAFETY: the buffers are of so many bytes on this stream's GPU, are borrowed until this
        // returns, and all work on them is of this stream.
        unsafe { self.send_and_receive_spans(&sent, &received) }
    }

    /// As [`Self::send_and_receive`], of memory that is somebody else's.
    ///
    /// # Safety
    /// Spans lie on this group's GPU; until this returns nothing else writes to those that are
    /// sent or looks at those that are received, and work of other streams on them was waited for.
    unsafe fn send_and_receive_spans(
        &mut self,
        sent: &[Span],
        received: &[Span],
    ) -> Result<(), CollectiveError> {
        let (communicator, raw) = (self.communicator, self.raw_stream());
        self.nccl(result::group_start())?;
        for span in sent {
            // SAFETY: the caller vouches for the span.
            let enqueued = unsafe {
                result::send(
                    span.address as *const c_void,
                    span.bytes,
                    ncclDataType_t::ncclUint8,
                    span.rank as i32,
                    communicator,
                    raw,
                )
            };
            self.nccl(enqueued)?;
        }
        for span in received {
            // SAFETY: as above.
            let enqueued = unsafe {
                result::recv(
                    span.address as *mut c_void,
                    span.bytes,
                    ncclDataType_t::ncclUint8,
                    span.rank as i32,
                    communicator,
                    raw,
                )
            };
            self.nccl(enqueued)?;
        }
        self.nccl(result::group_end())?;
        let me = self.rank();
        let bytes = |spans: &[Span]| -> usize {
            let others = spans.iter().filter(|span| span.rank != me);
            others.map(|span| span.bytes).sum()
        };
        self.count(bytes(sent), bytes(received));
        self.finish()
    }

    /// Gives parts to ranks and takes what those give for which `gives` is true; lengths go first.
    fn exchange<T: Pod>(
        &mut self,
        parts: &[Option<&[T]>],
        gives: impl Fn(usize) -> bool,
    ) -> Result<Vec<Vec<T>>, CollectiveError> {
        let me = self.rank();
        let others = || (0..parts.len()).filter(move |rank| *rank != me);
        let given = |rank: usize| parts[rank].map(bytemuck::cast_slice::<T, u8>);
        const LENGTH: usize = size_of::<u64>();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for rank in others() {
            if let Some(bytes) = given(rank) {
                let length = (bytes.len() as u64).to_le_bytes();
                sent.push((rank, self.upload(&length)?, LENGTH));
            }
            if gives(rank) {
                received.push((rank, self.room(LENGTH)?, LENGTH));
            }
        }
        self.send_and_receive(&sent, &mut received)?;
        let (mut sent, mut bodies) = (Vec::new(), Vec::new());
        for rank in others() {
            if let Some(bytes) = given(rank).filter(|bytes| !bytes.is_empty()) {
                sent.push((rank, self.upload(bytes)?, bytes.len()));
            }
        }
        for (rank, length, _) in received {
            let copied = self.stream.clone_dtoh(&length);
            let length = self.cuda(copied)?;
            // Eight bytes were received.
            let length = u64::from_le_bytes(length[..LENGTH].try_into().expect("eight bytes"));
            if length > 0 {
                bodies.push((rank, self.room(length as usize)?, length as usize));
            }
        }
        self.send_and_receive(&sent, &mut bodies)?;
        let mut all: Vec<Vec<T>> = (0..parts.len()).map(|_| Vec::new()).collect();
        if let Some(own) = parts[me] {
            all[me] = own.to_vec();
        }
        for (rank, body, _) in bodies {
            let copied = self.stream.clone_dtoh(&body);
            all[rank] = bytemuck::pod_collect_to_vec(&self.cuda(copied)?);
        }
        Ok(all)
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        self.abort();
    }
}

impl ProcessGroup for NcclGroup {
    fn rank(&self) -> usize {
        self.rendezvous.membership.rank
    }

    fn world_size(&self) -> usize {
        self.rendezvous.membership.world_size
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if values.is_empty() {
            return self.barrier();
        }
        let copied = self.stream.clone_htod(&*values);
        let mut device = self.cuda(copied)?;
        let stream = Arc::clone(&self.stream);
        let address = device.device_ptr_mut(&stream).0;
        // SAFETY: the slice is this call's own, and its copy precedes on the same stream.
        unsafe { self.all_reduce_device(address, values.len()) }?;
        let copied = self.stream.memcpy_dtoh(&device, values);
        self.cuda(copied)?;
        self.finish()
    }

    fn reduce_scatter(
        &mut self,
        values: &mut [f32],
        counts: &[usize],
    ) -> Result<Range<usize>, CollectiveError> {
        assert_eq!(counts.len(), self.world_size(), "one count for each rank");
        assert_eq!(
            counts.iter().sum::<usize>(),
            values.len(),
            "counts cover all values"
        );
        self.begin(Operation::ReduceScatter)?;
        let first: usize = counts[..self.rank()].iter().sum();
        let mine = first..first + counts[self.rank()];
        if values.is_empty() {
            return Ok(mine);
        }
        let copied = self.stream.clone_htod(&*values);
        let mut device = self.cuda(copied)?;
        let stream = Arc::clone(&self.stream);
        let (communicator, raw) = (self.communicator, self.raw_stream());
        // Segments of different lengths: one reduction to each rank, all at once.
        self.nccl(result::group_start())?;
        let mut at = 0;
        for (rank, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (address, _used) = device.device_ptr_mut(&stream);
            let segment = (address + at as u64 * 4) as *mut c_void;
            // SAFETY: the segment lies within the slice, which outlives `finish`.
            let enqueued = unsafe {
                result::reduce(
                    segment,
                    segment,
                    *count,
                    ncclDataType_t::ncclFloat32,
                    ncclRedOp_t::ncclSum,
                    rank as i32,
                    communicator,
                    raw,
                )
            };
            self.nccl(enqueued)?;
            at += count;
        }
        self.nccl(result::group_end())?;
        self.count((values.len() - mine.len()) * 4, mine.len() * 4);
        let copied = self.stream.memcpy_dtoh(&device, values);
        self.cuda(copied)?;
        self.finish()?;
        Ok(mine)
    }

    fn all_to_all_v<T: Pod>(&mut self, parts: &[&[T]]) -> Result<Vec<Vec<T>>, CollectiveError> {
        assert_eq!(parts.len(), self.world_size(), "one part for each rank");
        self.begin(Operation::AllToAll)?;
        let parts: Vec<Option<&[T]>> = parts.iter().map(|part| Some(*part)).collect();
        self.exchange(&parts, |_| true)
    }

    fn broadcast<T: Pod>(
        &mut self,
        root: usize,
        values: &mut Vec<T>,
    ) -> Result<(), CollectiveError> {
        assert!(root < self.world_size(), "the root is a rank");
        self.begin(Operation::Broadcast)?;
        let world_size = self.world_size();
        if self.rank() == root {
            let parts = vec![Some(values.as_slice()); world_size];
            return self.exchange(&parts, |_| false).map(drop);
        }
        *values = self
            .exchange(&vec![None; world_size], |rank| rank == root)?
            .swap_remove(root);
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn all_reduce_buffer<R: DeviceMemory>(
        &mut self,
        device: &Device<R>,
        buffer: &Buffer,
    ) -> Result<Buffer, ExchangeError> {
        let Some([address]) = R::addresses(device, [buffer])? else {
            return super::device::all_reduce(self, device, buffer);
        };
        self.check_place(address)?;
        // SAFETY: the buffer is of so many f32 on this GPU, lives as long as this, and work on it
        // was waited for.
        unsafe { self.all_reduce_device(address, buffer.len()) }?;
        Ok(buffer.clone())
    }

    fn all_to_all_buffer<R: DeviceMemory>(
        &mut self,
        device: &Device<R>,
        buffer: &Buffer,
        sent: &[usize],
        received: &[usize],
    ) -> Result<Buffer, ExchangeError> {
        assert_eq!(sent.iter().sum::<usize>(), buffer.len(), "all numbers");
        let found = device.room(received.iter().sum());
        let Some([from, to]) = R::addresses(device, [buffer, &found])? else {
            return super::device::all_to_all(self, device, buffer, sent, received);
        };
        self.check_place(from)?;
        self.check_place(to)?;
        self.begin(Operation::AllToAll)?;
        // SAFETY: spans cover the two buffers, which lie on this GPU and live as long as this; work
        // on them was waited for.
        unsafe { self.send_and_receive_spans(&Span::each(from, sent), &Span::each(to, received)) }?;
        Ok(found)
    }
}

/// Whether this machine has a driver.
///
/// # Errors
/// What is missing.
pub(crate) fn find_driver() -> Result<(), &'static str> {
    // SAFETY: it only tries to open a library.
    match unsafe { driver_sys::is_culib_present() } {
        true => Ok(()),
        false => Err("the NVIDIA driver (libcuda) is not there"),
    }
}

/// What is missing on this machine.
fn probe() -> Result<(), &'static str> {
    find_driver()?;
    // SAFETY: it only tries to open a library.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "NCCL (libnccl.so) is not there: install it, or put a link of that name to libnccl.so.2 on LD_LIBRARY_PATH",
        );
    }
    Ok(())
}

/// The id that rank 0 makes and all use.
fn unique_id(rendezvous: &Rendezvous, role: &str) -> Result<sys::ncclUniqueId, JoinError> {
    let key = format!("nccl/{role}");
    let problem = |problem: String| JoinError::Nccl {
        role: role.to_owned(),
        problem,
    };
    if rendezvous.membership.rank == 0 {
        let id = result::get_uniqueid().map_err(|error| problem(name(&error)))?;
        let bytes: Vec<u8> = id.internal.iter().map(|byte| *byte as u8).collect();
        rendezvous.set(&key, &bytes)?;
        return Ok(id);
    }
    let told = rendezvous.get(&key, 0, Instant::now() + rendezvous.join_timeout)?;
    let told: [u8; ID_BYTES] = told
        .try_into()
        .map_err(|told: Vec<u8>| problem(format!("an id of {} bytes", told.len())))?;
    Ok(sys::ncclUniqueId {
        internal: told.map(|byte| byte as _),
    })
}

fn name(error: &NcclError) -> String {
    format!("{:?}", error.0)
}
