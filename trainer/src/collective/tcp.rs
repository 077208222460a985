//! A process group over sockets: for ranks on CPUs, and for tests.
//!
//! Long sums go around a ring ([`ring`]); everything else goes directly between each two ranks.

use std::{ops::Range, sync::Arc};

use bytemuck::Pod;

use super::{
    CollectiveConfig, CollectiveError, Membership, Operation, ProcessGroup, Rendezvous, Traffic,
    links::{Header, Interest, Links, PIECE_BYTES},
    rendezvous::JoinError,
    ring, split_evenly,
};

/// Bytes of a message that go with its header.
const FIRST_BYTES: usize = 8 * 1024;

/// Up to here all ranks send all they have to each other, which takes one turn instead of
/// `2 (world size - 1)`.
const SMALL_BYTES: usize = 8 * 1024;

/// The most that a rank may give another at once; more is a lost byte somewhere.
const MAX_PART_BYTES: u64 = 1 << 34;

/// A group of ranks that are joined by sockets.
#[derive(Debug)]
pub struct TcpGroup {
    links: Links,
}

impl TcpGroup {
    /// Makes the group of a role; all ranks make the same groups in the same order.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn connect(rendezvous: &Arc<Rendezvous>, role: &str) -> Result<Self, JoinError> {
        Ok(Self {
            links: Links::connect(Arc::clone(rendezvous), role)?,
        })
    }

    /// The group of a rank that is alone.
    pub fn alone() -> Self {
        let met = Rendezvous::join(Membership::alone(), &CollectiveConfig::default(), "");
        // One rank waits for nobody and opens no socket.
        let group = met.and_then(|met| Self::connect(&met, "alone"));
        group.expect("a group of one")
    }

    /// Runs one operation; a group whose operation failed is done for.
    fn run<T>(
        &mut self,
        operation: Operation,
        body: impl FnOnce(&mut Self) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.links.begin(operation)?;
        let result = body(self);
        if result.is_err() {
            self.links.fail();
        }
        result
    }

    /// Every rank gets all values and adds them in the order of the ranks.
    fn all_reduce_directly(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let parts = vec![&*values; self.links.world_size()];
        let all = self.exchange(&parts.into_iter().map(Some).collect::<Vec<_>>(), |_| true)?;
        for (rank, given) in all.iter().enumerate() {
            if given.len() != values.len() {
                let found = self.links.header(size_of_val(given.as_slice()) as u64);
                let wanted = self.links.header(size_of_val(values) as u64);
                return Err(self.links.out_of_step(rank, found.encode(), wanted));
            }
        }
        values.fill(0.0);
        for given in &all {
            add(values, given);
        }
        Ok(())
    }

    /// Sends `parts[r]` to every rank `r` that has one, and receives from those of which
    /// `gives` is true.
    fn exchange<T: Pod>(
        &mut self,
        parts: &[Option<&[T]>],
        gives: impl Fn(usize) -> bool,
    ) -> Result<Vec<Vec<T>>, CollectiveError> {
        let me = self.links.rank();
        let mut received: Vec<Vec<T>> = (0..parts.len()).map(|_| Vec::new()).collect();
        if let Some(own) = parts[me] {
            received[me] = own.to_vec();
        }
        let others = || (0..parts.len()).filter(|rank| *rank != me);
        let mut outgoing: Vec<Outgoing<'_>> = others()
            .filter_map(|rank| {
                let body: &[u8] = bytemuck::cast_slice(parts[rank]?);
                let header = self.links.header(body.len() as u64).encode();
                Some(Outgoing {
                    rank,
                    header,
                    body,
                    sent: 0,
                })
            })
            .collect();
        let mut incoming: Vec<Incoming<T>> = others()
            .filter(|rank| gives(*rank))
            .map(Incoming::new)
            .collect();
        loop {
            let mut moved = false;
            for message in outgoing.iter_mut().filter(|message| !message.is_done()) {
                moved |= message.advance(&mut self.links)?;
            }
            for message in incoming.iter_mut().filter(|message| !message.is_done()) {
                moved |= message.advance(&mut self.links)?;
            }
            let mut interests: Vec<Interest> = Vec::new();
            let waiting = outgoing.iter().filter(|message| !message.is_done());
            interests.extend(waiting.map(|message| Interest {
                rank: message.rank,
                read: false,
                write: true,
            }));
            let waiting = incoming.iter().filter(|message| !message.is_done());
            interests.extend(waiting.map(|message| Interest {
                rank: message.rank,
                read: true,
                write: false,
            }));
            if interests.is_empty() {
                break;
            }
            if !moved {
                self.links.wait(&interests)?;
            }
        }
        for message in incoming {
            received[message.rank] = message.body;
        }
        Ok(received)
    }
}

impl ProcessGroup for TcpGroup {
    fn rank(&self) -> usize {
        self.links.rank()
    }

    fn world_size(&self) -> usize {
        self.links.world_size()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let world_size = self.world_size();
        self.run(Operation::AllReduce, |group| {
            if world_size == 1 {
                return Ok(());
            }
            if size_of_val(values) <= SMALL_BYTES {
                return group.all_reduce_directly(values);
            }
            let counts = split_evenly(values.len(), world_size);
            ring::walk(
                &mut group.links,
                values,
                &segments(&counts),
                0..2 * (world_size - 1),
            )
        })
    }

    fn reduce_scatter(
        &mut self,
        values: &mut [f32],
        counts: &[usize],
    ) -> Result<Range<usize>, CollectiveError> {
        let world_size = self.world_size();
        assert_eq!(counts.len(), world_size, "one count for each rank");
        assert_eq!(
            counts.iter().sum::<usize>(),
            values.len(),
            "counts cover all values"
        );
        self.run(Operation::ReduceScatter, |group| {
            if world_size > 1 {
                ring::walk(
                    &mut group.links,
                    values,
                    &segments(counts),
                    0..world_size - 1,
                )?;
            }
            Ok(segments(counts).swap_remove(group.links.rank()))
        })
    }

    fn all_to_all_v<T: Pod>(&mut self, parts: &[&[T]]) -> Result<Vec<Vec<T>>, CollectiveError> {
        assert_eq!(parts.len(), self.world_size(), "one part for each rank");
        let parts: Vec<Option<&[T]>> = parts.iter().map(|part| Some(*part)).collect();
        self.run(Operation::AllToAll, |group| {
            group.exchange(&parts, |_| true)
        })
    }

    fn broadcast<T: Pod>(
        &mut self,
        root: usize,
        values: &mut Vec<T>,
    ) -> Result<(), CollectiveError> {
        let world_size = self.world_size();
        assert!(root < world_size, "the root is a rank");
        self.run(Operation::Broadcast, |group| {
            if group.links.rank() == root {
                let parts = vec![Some(values.as_slice()); world_size];
                return group.exchange(&parts, |_| false).map(drop);
            }
            let nothing = vec![None; world_size];
            *values = group
                .exchange(&nothing, |rank| rank == root)?
                .swap_remove(root);
            Ok(())
        })
    }

    fn traffic(&self) -> Traffic {
        self.links.traffic
    }
}

struct Outgoing<'a> {
    rank: usize,
    header: [u8; Header::BYTES],
    body: &'a [u8],
    sent: usize,
}

impl Outgoing<'_> {
    fn is_done(&self) -> bool {
        self.sent == Header::BYTES + self.body.len()
    }

    fn advance(&mut self, links: &mut Links) -> Result<bool, CollectiveError> {
        let before = self.sent;
        if self.sent < Header::BYTES {
            // Header and the start of the body in one packet.
            let mut start = self.header[self.sent..].to_vec();
            start.extend(&self.body[..self.body.len().min(FIRST_BYTES)]);
            self.sent += links.send(self.rank, &start)?;
        } else {
            let rest = &self.body[self.sent - Header::BYTES..];
            self.sent += links.send(self.rank, &rest[..rest.len().min(PIECE_BYTES)])?;
        }
        Ok(self.sent > before)
    }
}

struct Incoming<T> {
    rank: usize,
    header: [u8; Header::BYTES],
    body: Vec<T>,
    received: usize,
    /// Of header and body; known when the header is here.
    total: usize,
}

impl<T: Pod> Incoming<T> {
    fn new(rank: usize) -> Self {
        Self {
            rank,
            header: [0; Header::BYTES],
            body: Vec::new(),
            received: 0,
            total: Header::BYTES,
        }
    }

    fn is_done(&self) -> bool {
        self.received == self.total
    }

    fn advance(&mut self, links: &mut Links) -> Result<bool, CollectiveError> {
        let before = self.received;
        if self.received < Header::BYTES {
            self.received += links.receive(self.rank, &mut self.header[self.received..])?;
            if self.received == Header::BYTES {
                self.open(links)?;
            }
        } else {
            let body: &mut [u8] = bytemuck::cast_slice_mut(&mut self.body);
            self.received +=
                links.receive(self.rank, &mut body[self.received - Header::BYTES..])?;
        }
        Ok(self.received > before)
    }

    /// The header is here: makes room for the body.
    fn open(&mut self, links: &Links) -> Result<(), CollectiveError> {
        let wanted = links.header(0);
        let bytes = Header::length_of(self.header, wanted)
            .filter(|bytes| bytes % size_of::<T>() as u64 == 0)
            .ok_or_else(|| links.out_of_step(self.rank, self.header, wanted))?;
        if bytes > MAX_PART_BYTES {
            return Err(links.too_long(self.rank, bytes, MAX_PART_BYTES));
        }
        self.body = vec![T::zeroed(); bytes as usize / size_of::<T>()];
        self.total += bytes as usize;
        Ok(())
    }
}

/// Where each rank's segment lies.
fn segments(counts: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    counts
        .iter()
        .map(|count| {
            end += count;
            end - count..end
        })
        .collect()
}

fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
