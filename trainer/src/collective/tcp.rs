//! A process group over sockets: for ranks on CPUs, and for tests.
//!
//! Sums go around a ring: every rank sends to the next and receives from the one before. What has
//! come is added and passed on at once, in whatever pieces the network makes of it, so that all
//! links are busy all the time. Everything else goes directly between each two ranks.
//!
//! Source of the ring: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters
//! of workstations", J. Parallel Distrib. Comput. 69, 2009.

use std::{ops::Range, sync::Arc};

use bytemuck::Pod;

use super::{
    CollectiveError, Operation, ProcessGroup, Rendezvous, Traffic,
    links::{Header, Interest, Links},
    rendezvous::JoinError,
    split_evenly,
};

/// Bytes that are read at once before they are added; they stay in a core's cache.
const PIECE_BYTES: usize = 128 * 1024;

/// Up to here all ranks send all they have to each other, which takes one turn instead of
/// `2 (world size - 1)`.
const SMALL_BYTES: usize = 8 * 1024;

/// The most that a rank may give another at once; more is a lost byte somewhere.
const MAX_PART_BYTES: u64 = 1 << 34;

/// A group of ranks that are joined by sockets.
#[derive(Debug)]
pub struct TcpGroup {
    links: Links,
    piece: Vec<u8>,
}

impl TcpGroup {
    /// Makes the group of a role; all ranks make the same groups in the same order.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn connect(rendezvous: &Arc<Rendezvous>, role: &str) -> Result<Self, JoinError> {
        Ok(Self {
            links: Links::connect(Arc::clone(rendezvous), role)?,
            piece: vec![0; PIECE_BYTES],
        })
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

    /// Walks `steps` of the ring. In step `s` rank `r` sends segment `r - 1 - s` and receives
    /// segment `r - 2 - s` (modulo the world size); what comes in the first `world_size - 1`
    /// steps is added, what comes later replaces.
    fn ring(
        &mut self,
        values: &mut [f32],
        counts: &[usize],
        steps: Range<usize>,
    ) -> Result<(), CollectiveError> {
        let (me, world_size) = (self.links.rank(), self.links.world_size());
        let (next, before) = ((me + 1) % world_size, (me + world_size - 1) % world_size);
        let segments = segments(counts);
        let segment = |step: usize| segments[(me + 2 * world_size - 1 - step) % world_size].clone();
        let header = self.links.header(size_of_val(values) as u64);
        let mut out = Cursor::start(&steps);
        let mut inn = Cursor::start(&steps);
        let (mut header_sent, mut header_received) = (0, 0);
        let mut theirs = [0; Header::BYTES];
        // Bytes of a value that is not yet whole.
        let mut carried = 0;
        loop {
            let mut moved = false;
            if header_sent < Header::BYTES {
                let sent = self.links.send(next, &header.encode()[header_sent..])?;
                header_sent += sent;
                moved |= sent > 0;
            }
            // A segment can be passed on as far as it has come in the step before.
            out.skip_empty(&segment);
            let ready = |out: &Cursor, inn: &Cursor| match out.step {
                step if step >= steps.end => 0,
                step if step == steps.start || step <= inn.step => segment(step).len() * 4,
                step if step == inn.step + 1 => inn.bytes,
                _ => 0,
            };
            if header_sent == Header::BYTES && out.bytes < ready(&out, &inn) {
                let ready = ready(&out, &inn);
                let bytes: &[u8] = bytemuck::cast_slice(&values[segment(out.step)]);
                let sent = self.links.send(next, &bytes[out.bytes..ready])?;
                out.bytes += sent;
                moved |= sent > 0;
                out.skip_empty(&segment);
            }
            if header_received < Header::BYTES {
                let received = self.links.receive(before, &mut theirs[header_received..])?;
                header_received += received;
                moved |= received > 0;
                if header_received == Header::BYTES && theirs != header.encode() {
                    return Err(self.links.out_of_step(before, theirs, header));
                }
            }
            inn.skip_empty(&|step| segment(step + 1));
            if header_received == Header::BYTES && inn.step < steps.end {
                let target = &mut values[segment(inn.step + 1)];
                let received = if inn.step < world_size - 1 {
                    let wanted = (target.len() * 4 - inn.bytes).min(PIECE_BYTES);
                    let received = self
                        .links
                        .receive(before, &mut self.piece[carried..wanted])?;
                    let whole = (carried + received) / 4 * 4;
                    let at = inn.bytes / 4;
                    add_bytes(&mut target[at..at + whole / 4], &self.piece[..whole]);
                    self.piece.copy_within(whole..carried + received, 0);
                    carried = carried + received - whole;
                    inn.bytes += whole;
                    received
                } else {
                    let bytes: &mut [u8] = bytemuck::cast_slice_mut(target);
                    let received = self.links.receive(before, &mut bytes[inn.bytes..])?;
                    inn.bytes += received;
                    received
                };
                moved |= received > 0;
                inn.skip_empty(&|step| segment(step + 1));
            }
            let write = header_sent < Header::BYTES || out.bytes < ready(&out, &inn);
            let read = header_received < Header::BYTES || inn.step < steps.end;
            if !write && !read && out.step >= steps.end {
                return Ok(());
            }
            if !moved {
                let of = |rank, read, write| Interest { rank, read, write };
                let both = [of(before, true, false), of(next, false, true)];
                let wanted = match (read, write) {
                    (true, true) => &both[..],
                    (true, false) => &both[..1],
                    _ => &both[1..],
                };
                self.links.wait(wanted)?;
            }
        }
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
            group.ring(values, &counts, 0..2 * (world_size - 1))
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
                group.ring(values, counts, 0..world_size - 1)?;
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

/// A place in a stream of segments.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    step: usize,
    /// Bytes of the step's segment that are done.
    bytes: usize,
    end: usize,
}

impl Cursor {
    fn start(steps: &Range<usize>) -> Self {
        Self {
            step: steps.start,
            bytes: 0,
            end: steps.end,
        }
    }

    /// Goes on to the next segment that has bytes left.
    fn skip_empty(&mut self, segment: &impl Fn(usize) -> Range<usize>) {
        while self.step < self.end && self.bytes == segment(self.step).len() * 4 {
            self.step += 1;
            self.bytes = 0;
        }
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
            start.extend(&self.body[..self.body.len().min(PIECE_BYTES / 64)]);
            self.sent += links.send(self.rank, &start)?;
        } else {
            self.sent += links.send(self.rank, &self.body[self.sent - Header::BYTES..])?;
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

/// As [`add`]; the values' bytes need not be aligned.
fn add_bytes(sums: &mut [f32], values: &[u8]) {
    for (sum, value) in sums.iter_mut().zip(values.chunks_exact(4)) {
        *sum += f32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
    }
}
