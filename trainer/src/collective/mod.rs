//! Process groups: how the ranks of a training run exchange data.
//!
//! A run has one [`Membership`] (who am I, of how many, where is rank 0: torchrun's variables),
//! from which every rank enters the [`Rendezvous`]: a small key-value store held by rank 0, where
//! protocol version, configuration and shared secret are checked. From it come the groups, one
//! for each role (dense gradients, ids, rows), so that different traffic can overlap:
//! [`TcpGroup`] over sockets, and `NcclGroup` on GPUs (feature `cuda`). [`conformance`] is the suite that
//! both pass.

pub mod conformance;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod greeting;
mod links;
mod membership;
#[cfg(feature = "cuda")]
mod nccl;
mod rendezvous;
mod ring;
mod store;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{io, ops::Range, time::Duration};

use bytemuck::Pod;
pub use greeting::GreetingError;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use kernels::{Buffer, Device, DeviceMemory};
pub use membership::{Membership, MembershipError};
#[cfg(feature = "cuda")]
pub use nccl::NcclGroup;
#[cfg(feature = "cuda")]
pub(crate) use nccl::find_driver;
pub use rendezvous::{CollectiveConfig, JoinError, Rendezvous};
pub use tcp::TcpGroup;

/// Collective operations of a group of ranks.
///
/// All ranks call the same operations in the same order; one that does not is found out
/// ([`CollectiveError::OutOfStep`]). After an error the group is of no further use: its
/// connections are closed, so that the other ranks learn of it at once.
pub trait ProcessGroup: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// Sums `values` over all ranks, in place. All ranks get the same bits.
    ///
    /// # Errors
    /// [`CollectiveError`]; `values` are then undefined.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Sums `values` over all ranks and leaves this rank its segment of the sum.
    ///
    /// # Shapes
    /// - `values`: `[counts.sum()]`; undefined afterwards outside of the range returned
    /// - `counts`: `[world_size]`; rank `r` keeps `counts[r]` values
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn reduce_scatter(
        &mut self,
        values: &mut [f32],
        counts: &[usize],
    ) -> Result<Range<usize>, CollectiveError>;

    /// Gives `parts[r]` to rank `r` and returns what each rank gave to this one.
    ///
    /// # Shapes
    /// - `parts`: `[world_size]`, of any lengths
    /// - returns `[world_size]`, of the lengths that the others chose
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn all_to_all_v<T: Pod>(&mut self, parts: &[&[T]]) -> Result<Vec<Vec<T>>, CollectiveError>;

    /// Gives `mine` to all ranks and returns what each rank gave, this one's included.
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn all_gather_v<T: Pod>(&mut self, mine: &[T]) -> Result<Vec<Vec<T>>, CollectiveError> {
        self.all_to_all_v(&vec![mine; self.world_size()])
    }

    /// Gives `values` of rank `root` to all; theirs are replaced, the length too.
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn broadcast<T: Pod>(
        &mut self,
        root: usize,
        values: &mut Vec<T>,
    ) -> Result<(), CollectiveError>;

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.all_gather_v::<u8>(&[]).map(drop)
    }

    /// What this rank has put on the wire so far.
    fn traffic(&self) -> Traffic;

    /// As [`Self::all_reduce`], of numbers in a device's memory; returns the sums, which may lie in
    /// the same buffer.
    ///
    /// # Errors
    /// [`ExchangeError`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn all_reduce_buffer<R: DeviceMemory>(
        &mut self,
        device: &Device<R>,
        buffer: &Buffer,
    ) -> Result<Buffer, ExchangeError>
    where
        Self: Sized,
    {
        device::all_reduce(self, device, buffer)
    }

    /// As [`Self::all_to_all_v`], of numbers in a device's memory: each rank's part comes after the
    /// other's, as long as the two ranks have agreed before.
    ///
    /// # Shapes
    /// - `buffer`: `[sent.sum()]`; returns `[received.sum()]`
    /// - `sent`, `received`: `[world_size]`, numbers to and from each rank
    ///
    /// # Errors
    /// [`ExchangeError`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn all_to_all_buffer<R: DeviceMemory>(
        &mut self,
        device: &Device<R>,
        buffer: &Buffer,
        sent: &[usize],
        received: &[usize],
    ) -> Result<Buffer, ExchangeError>
    where
        Self: Sized,
    {
        device::all_to_all(self, device, buffer, sent, received)
    }
}

/// Bytes of a group on the wire, headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From this rank.
    pub sent_bytes: u64,
    /// To this rank.
    pub received_bytes: u64,
}

/// The collective operations, by the names they have in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// [`ProcessGroup::all_reduce`].
    AllReduce = 1,
    /// [`ProcessGroup::reduce_scatter`].
    ReduceScatter = 2,
    /// [`ProcessGroup::all_to_all_v`].
    AllToAll = 3,
    /// [`ProcessGroup::broadcast`].
    Broadcast = 4,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AllReduce => "all-reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllToAll => "all-to-all",
            Self::Broadcast => "broadcast",
        })
    }
}

/// Why a collective operation did not end.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A rank gave no sign for too long. Ranks that wait say for whom, so that the one named is
    /// the one that all the others wait for in the end.
    #[error("rank {rank} has been silent for {} s in {operation} {sequence} of group `{role}`: it hangs, or its machine is out of reach", waited.as_secs_f32())]
    Silent {
        /// The rank.
        rank: usize,
        /// What was going on.
        operation: Operation,
        /// How many operations of the group came before.
        sequence: u32,
        /// Name of the group.
        role: String,
        /// The time-out.
        waited: Duration,
    },
    /// A rank has gone.
    #[error("rank {rank} was lost in {operation} {sequence} of group `{role}`")]
    Lost {
        /// The rank.
        rank: usize,
        /// What was going on.
        operation: Operation,
        /// How many operations of the group came before.
        sequence: u32,
        /// Name of the group.
        role: String,
        /// What the system said, if the connection did not just end.
        source: Option<io::Error>,
    },
    /// A rank is elsewhere in its program, or gives another amount.
    #[error("rank {rank} is at {found} of group `{role}`, this rank at {wanted}")]
    OutOfStep {
        /// The rank.
        rank: usize,
        /// Where it is.
        found: String,
        /// Where this rank is.
        wanted: String,
        /// Name of the group.
        role: String,
    },
    /// More than this rank can take.
    #[error("rank {rank} gives {bytes} bytes at once in group `{role}`, the limit is {limit}")]
    TooLong {
        /// The rank.
        rank: usize,
        /// What it announced.
        bytes: u64,
        /// What is allowed.
        limit: u64,
        /// Name of the group.
        role: String,
    },
    /// Numbers that mean nothing: the rank runs another program.
    #[error("rank {rank} sent {what} that cannot be: do all ranks run the same version?")]
    Malformed {
        /// The rank.
        rank: usize,
        /// What it should have been.
        what: &'static str,
    },
    /// The GPU or its library failed.
    #[error("{operation} {sequence} of group `{role}` failed on the GPU: {problem}")]
    Device {
        /// What was going on.
        operation: Operation,
        /// How many operations of the group came before.
        sequence: u32,
        /// Name of the group.
        role: String,
        /// What NCCL or the driver said.
        problem: String,
    },
    /// The system's wait for sockets failed.
    #[error("waiting for the sockets of group `{role}`")]
    Wait {
        /// Name of the group.
        role: String,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier operation failed.
    #[error("group `{role}` has failed before: its ranks must join anew")]
    Broken {
        /// Name of the group.
        role: String,
    },
}

/// Why numbers did not come from one rank's memory to another's, whatever memory that is.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A rank was lost, or the like.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The device refuses.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
}

impl CollectiveError {
    /// The rank that is to blame, if one is.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Silent { rank, .. }
            | Self::Lost { rank, .. }
            | Self::OutOfStep { rank, .. }
            | Self::TooLong { rank, .. }
            | Self::Malformed { rank, .. } => Some(*rank),
            Self::Device { .. } | Self::Wait { .. } | Self::Broken { .. } => None,
        }
    }
}

/// One of the `parts` segments of `len` values, whose lengths differ by at most one.
pub fn segment(len: usize, parts: usize, part: usize) -> Range<usize> {
    len * part / parts..len * (part + 1) / parts
}

/// Lengths of all `parts` segments of `len` values.
pub fn split_evenly(len: usize, parts: usize) -> Vec<usize> {
    (0..parts)
        .map(|part| segment(len, parts, part).len())
        .collect()
}
