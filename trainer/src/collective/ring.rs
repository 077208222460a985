//! Sums around a ring of sockets.
//!
//! Every rank sends to the next and receives from the one before. What has come is added and
//! passed on at once, in whatever pieces the network makes of it, so that all links are busy all
//! the time. In step `s` rank `r` sends segment `r - 1 - s` and receives segment `r - 2 - s`
//! (modulo the world size); what comes in the first `world_size - 1` steps is added, and what
//! comes later, which is summed already, replaces. A byte is overwritten only after it was sent:
//! its sum could not be complete without it.
//!
//! Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
//! workstations", J. Parallel Distrib. Comput. 69, 2009.

use std::ops::Range;

use super::{
    CollectiveError,
    links::{Header, Interest, Links, PIECE_BYTES},
};

/// Walks some steps of the ring.
///
/// # Shapes
/// - `values`: `[segments.last().end]`
/// - `segments`: `[world_size]`, one after the other
pub(super) fn walk(
    links: &mut Links,
    values: &mut [f32],
    segments: &[Range<usize>],
    steps: Range<usize>,
) -> Result<(), CollectiveError> {
    let header = links.header(size_of_val(values) as u64);
    let mut ring = Ring {
        outgoing: Cursor::start(&steps),
        incoming: Cursor::start(&steps),
        links,
        values,
        segments,
        steps,
        header,
        header_sent: 0,
        theirs: [0; Header::BYTES],
        header_received: 0,
        piece: vec![0; PIECE_BYTES],
        carried: 0,
    };
    loop {
        let moved = ring.send()? | ring.receive()?;
        let interests = ring.interests();
        if ring.is_done() {
            return Ok(());
        }
        if !moved {
            ring.links.wait(&interests)?;
        }
    }
}

struct Ring<'a> {
    links: &'a mut Links,
    values: &'a mut [f32],
    segments: &'a [Range<usize>],
    steps: Range<usize>,
    header: Header,
    header_sent: usize,
    /// The header of the rank before.
    theirs: [u8; Header::BYTES],
    header_received: usize,
    outgoing: Cursor,
    incoming: Cursor,
    piece: Vec<u8>,
    /// Bytes at the start of `piece` that belong to a value that is not yet whole.
    carried: usize,
}

/// A place in a stream of segments.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    step: usize,
    /// Bytes of the step's segment that are done.
    bytes: usize,
}

impl Cursor {
    fn start(steps: &Range<usize>) -> Self {
        Self {
            step: steps.start,
            bytes: 0,
        }
    }
}

impl Ring<'_> {
    fn next(&self) -> usize {
        (self.links.rank() + 1) % self.segments.len()
    }

    fn before(&self) -> usize {
        (self.links.rank() + self.segments.len() - 1) % self.segments.len()
    }

    /// The segment that this rank sends in a step, which it received in the step before.
    fn segment(&self, step: usize) -> Range<usize> {
        let world_size = self.segments.len();
        self.segments[(self.links.rank() + 2 * world_size - 1 - step) % world_size].clone()
    }

    /// Bytes of the outgoing segment that may go: all of the first, and of the others as much as
    /// has come.
    fn ready(&self) -> usize {
        match self.outgoing.step {
            step if step >= self.steps.end => 0,
            step if step == self.steps.start || step <= self.incoming.step => {
                self.segment(step).len() * 4
            }
            step if step == self.incoming.step + 1 => self.incoming.bytes,
            _ => 0,
        }
    }

    fn send(&mut self) -> Result<bool, CollectiveError> {
        let next = self.next();
        let sent = if self.header_sent < Header::BYTES {
            let header = self.header.encode();
            let sent = self.links.send(next, &header[self.header_sent..])?;
            self.header_sent += sent;
            sent
        } else {
            self.skip_sent();
            let (from, ready) = (self.outgoing.bytes, self.ready());
            if from >= ready {
                return Ok(false);
            }
            let segment = self.segment(self.outgoing.step);
            let bytes: &[u8] = bytemuck::cast_slice(&self.values[segment]);
            let piece = &bytes[from..ready.min(from + PIECE_BYTES)];
            let sent = self.links.send(next, piece)?;
            self.outgoing.bytes += sent;
            sent
        };
        self.skip_sent();
        Ok(sent > 0)
    }

    fn receive(&mut self) -> Result<bool, CollectiveError> {
        let before = self.before();
        let received = if self.header_received < Header::BYTES {
            let rest = &mut self.theirs[self.header_received..];
            let received = self.links.receive(before, rest)?;
            self.header_received += received;
            if self.header_received == Header::BYTES && self.theirs != self.header.encode() {
                return Err(self.links.out_of_step(before, self.theirs, self.header));
            }
            received
        } else if self.incoming.step >= self.steps.end {
            return Ok(false);
        } else if self.incoming.step < self.segments.len() - 1 {
            self.receive_and_add(before)?
        } else {
            let target = self.segment(self.incoming.step + 1);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.values[target]);
            let rest = &mut bytes[self.incoming.bytes..];
            let received = self.links.receive(before, rest)?;
            self.incoming.bytes += received;
            received
        };
        self.skip_received();
        Ok(received > 0)
    }

    fn receive_and_add(&mut self, before: usize) -> Result<usize, CollectiveError> {
        let segment = self.segment(self.incoming.step + 1);
        let left = segment.len() * 4 - self.incoming.bytes;
        let wanted = left.min(PIECE_BYTES);
        let received = self
            .links
            .receive(before, &mut self.piece[self.carried..wanted])?;
        let total = self.carried + received;
        let whole = total / 4 * 4;
        let target = &mut self.values[segment][self.incoming.bytes / 4..];
        for (sum, value) in target.iter_mut().zip(self.piece[..whole].chunks_exact(4)) {
            *sum += f32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
        }
        self.piece.copy_within(whole..total, 0);
        self.carried = total - whole;
        self.incoming.bytes += whole;
        Ok(received)
    }

    /// Goes on to the next outgoing segment that has bytes left.
    fn skip_sent(&mut self) {
        while self.outgoing.step < self.steps.end
            && self.outgoing.bytes == self.segment(self.outgoing.step).len() * 4
        {
            self.outgoing.step += 1;
            self.outgoing.bytes = 0;
        }
    }

    /// Goes on to the next incoming segment that has bytes left.
    fn skip_received(&mut self) {
        while self.header_received == Header::BYTES
            && self.incoming.step < self.steps.end
            && self.incoming.bytes == self.segment(self.incoming.step + 1).len() * 4
        {
            self.incoming.step += 1;
            self.incoming.bytes = 0;
        }
    }

    fn reads(&self) -> bool {
        self.header_received < Header::BYTES || self.incoming.step < self.steps.end
    }

    fn is_done(&self) -> bool {
        !self.reads() && self.header_sent == Header::BYTES && self.outgoing.step >= self.steps.end
    }

    fn interests(&self) -> Vec<Interest> {
        let writes = self.header_sent < Header::BYTES || self.outgoing.bytes < self.ready();
        let read = self.reads().then(|| Interest {
            rank: self.before(),
            read: true,
            write: false,
        });
        let write = writes.then(|| Interest {
            rank: self.next(),
            read: false,
            write: true,
        });
        read.into_iter().chain(write).collect()
    }
}
