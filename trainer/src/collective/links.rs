//! The sockets of a group: one connection to every other rank, never blocking, with a time-out on
//! every wait.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    CollectiveError, Operation, Traffic,
    greeting::{Side, exchange},
    rendezvous::{JoinError, Rendezvous},
};

/// How long the others get to say for whom they wait.
const BLAME_GRACE: Duration = Duration::from_secs(2);

/// Bytes that are written or read at once: few calls, and what is on its way stays in a core's
/// cache. Measured over loopback: 64 KiB costs a quarter more, 16 MiB as much.
pub(super) const PIECE_BYTES: usize = 512 * 1024;

/// What a rank sends before the data of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub operation: Operation,
    pub sequence: u32,
    /// Bytes of this message; of all values in a ring.
    pub length: u64,
}

impl Header {
    pub const BYTES: usize = 16;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.operation as u8;
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The length that follows, if the rest is as wanted.
    pub fn length_of(bytes: [u8; Self::BYTES], wanted: Self) -> Option<u64> {
        let (start, length) = bytes.split_at(8);
        // The split is in the middle.
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        (*start == wanted.encode()[..8]).then_some(length)
    }

    /// For people.
    pub fn describe(bytes: [u8; Self::BYTES]) -> String {
        let name = match bytes[0] {
            1 => Operation::AllReduce.to_string(),
            2 => Operation::ReduceScatter.to_string(),
            3 => Operation::AllToAll.to_string(),
            4 => Operation::Broadcast.to_string(),
            other => format!("unknown operation {other}"),
        };
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        format!("{name} {} of length {}", number(4), number(8))
    }
}

/// What a connection is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interest {
    pub rank: usize,
    pub read: bool,
    pub write: bool,
}

/// The connections of one rank within one group.
#[derive(Debug)]
pub(super) struct Links {
    rendezvous: Arc<Rendezvous>,
    role: String,
    /// By rank; none for this one.
    peers: Vec<Option<TcpStream>>,
    broken: bool,
    pub traffic: Traffic,
    /// The operation under way, for errors.
    pub operation: Operation,
    pub sequence: u32,
}

impl Links {
    /// Connects every two ranks. The higher calls the lower.
    pub fn connect(rendezvous: Arc<Rendezvous>, role: &str) -> Result<Self, JoinError> {
        let membership = &rendezvous.membership;
        let (rank, world_size) = (membership.rank, membership.world_size);
        let deadline = Instant::now() + rendezvous.join_timeout;
        let sockets = |source| JoinError::Sockets {
            role: role.to_owned(),
            source,
        };
        let mut peers: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
        if world_size > 1 {
            let ip = rendezvous.local_ip().map_err(sockets)?;
            let listener = TcpListener::bind((ip, 0)).map_err(sockets)?;
            let address = listener.local_addr().map_err(sockets)?.to_string();
            rendezvous.set(&address_key(role, rank), address.as_bytes())?;
            for lower in 0..rank {
                peers[lower] = Some(call(&rendezvous, role, lower, deadline)?);
            }
            answer(&rendezvous, role, &listener, &mut peers, deadline)?;
            for stream in peers.iter().flatten() {
                stream.set_nonblocking(true).map_err(sockets)?;
            }
        }
        Ok(Self {
            rendezvous,
            role: role.to_owned(),
            peers,
            broken: false,
            traffic: Traffic::default(),
            operation: Operation::AllToAll,
            sequence: 0,
        })
    }

    pub fn rank(&self) -> usize {
        self.rendezvous.membership.rank
    }

    pub fn world_size(&self) -> usize {
        self.peers.len()
    }

    /// Begins an operation.
    pub fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        if self.broken {
            return Err(CollectiveError::Broken {
                role: self.role.clone(),
            });
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.operation = operation;
        Ok(())
    }

    /// The header of this operation.
    pub fn header(&self, length: u64) -> Header {
        Header {
            operation: self.operation,
            sequence: self.sequence,
            length,
        }
    }

    /// Closes all connections, by which the others learn that this rank has given up.
    pub fn fail(&mut self) {
        self.broken = true;
        self.peers.iter_mut().for_each(|peer| *peer = None);
    }

    /// Reads what has come from a rank; 0 if nothing has.
    pub fn receive(&mut self, rank: usize, buffer: &mut [u8]) -> Result<usize, CollectiveError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.peer(rank).read(buffer) {
            Ok(0) => Err(self.lost(rank, None)),
            Ok(bytes) => {
                self.traffic.received_bytes += bytes as u64;
                Ok(bytes)
            }
            Err(error) if is_pause(&error) => Ok(0),
            Err(error) => Err(self.lost(rank, Some(error))),
        }
    }

    /// Writes as much to a rank as its connection takes now.
    pub fn send(&mut self, rank: usize, bytes: &[u8]) -> Result<usize, CollectiveError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.peer(rank).write(bytes) {
            Ok(bytes) => {
                self.traffic.sent_bytes += bytes as u64;
                Ok(bytes)
            }
            Err(error) if is_pause(&error) => Ok(0),
            Err(error) => Err(self.lost(rank, Some(error))),
        }
    }

    /// Waits until one of the connections can go on.
    pub fn wait(&mut self, interests: &[Interest]) -> Result<(), CollectiveError> {
        let deadline = Instant::now() + self.rendezvous.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.silent(interests));
            }
            let mut polled: Vec<PollFd<'_>> = interests
                .iter()
                .map(|interest| {
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::IN, interest.read);
                    flags.set(PollFlags::OUT, interest.write);
                    let peer = self.peers[interest.rank].as_ref();
                    // A group that goes on has all its connections.
                    PollFd::from_borrowed_fd(peer.expect("a live connection").as_fd(), flags)
                })
                .collect();
            // A duration below a day fits.
            let timeout = Timespec::try_from(left.min(Duration::from_secs(86_400))).ok();
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => {
                    return Err(CollectiveError::Wait {
                        role: self.role.clone(),
                        source: error.into(),
                    });
                }
            }
        }
    }

    /// A rank whose header is not the one wanted.
    pub fn out_of_step(
        &self,
        rank: usize,
        found: [u8; Header::BYTES],
        wanted: Header,
    ) -> CollectiveError {
        CollectiveError::OutOfStep {
            rank,
            found: Header::describe(found),
            wanted: Header::describe(wanted.encode()),
            role: self.role.clone(),
        }
    }

    /// A rank that gives more than fits.
    pub fn too_long(&self, rank: usize, bytes: u64, limit: u64) -> CollectiveError {
        CollectiveError::TooLong {
            rank,
            bytes,
            limit,
            role: self.role.clone(),
        }
    }

    fn peer(&self, rank: usize) -> &TcpStream {
        // A group that goes on has all its connections.
        self.peers[rank].as_ref().expect("a live connection")
    }

    fn lost(&self, rank: usize, source: Option<io::Error>) -> CollectiveError {
        // A rank that gave up for another's sake has said so before it closed its connections.
        CollectiveError::Lost {
            rank: self.rendezvous.blame(rank, Duration::ZERO),
            operation: self.operation,
            sequence: self.sequence,
            role: self.role.clone(),
            source,
        }
    }

    fn silent(&self, interests: &[Interest]) -> CollectiveError {
        let reading = interests.iter().find(|interest| interest.read);
        // A wait has at least one interest.
        let first = reading
            .or(interests.first())
            .expect("something was waited for");
        CollectiveError::Silent {
            rank: self.rendezvous.blame(first.rank, BLAME_GRACE),
            operation: self.operation,
            sequence: self.sequence,
            role: self.role.clone(),
            waited: self.rendezvous.timeout,
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn address_key(role: &str, rank: usize) -> String {
    format!("address/{role}/{rank}")
}

/// Calls a lower rank.
fn call(
    rendezvous: &Rendezvous,
    role: &str,
    rank: usize,
    deadline: Instant,
) -> Result<TcpStream, JoinError> {
    let text = rendezvous.get(&address_key(role, rank), rank, deadline)?;
    let sockets = |source| JoinError::Sockets {
        role: role.to_owned(),
        source,
    };
    let address: SocketAddr = String::from_utf8_lossy(&text)
        .parse()
        .map_err(|error| sockets(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut stream = TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1)))
        .map_err(sockets)?;
    let ours = rendezvous.greeting(role);
    let greeted = exchange(&mut stream, &ours, Side::Caller, &rendezvous.secret)
        .and_then(|theirs| ours.check(&theirs));
    greeted.map_err(|source| JoinError::Greeting { rank, source })?;
    Ok(stream)
}

/// Takes the calls of all higher ranks; strangers are turned away.
fn answer(
    rendezvous: &Rendezvous,
    role: &str,
    listener: &TcpListener,
    peers: &mut [Option<TcpStream>],
    deadline: Instant,
) -> Result<(), JoinError> {
    let ours = rendezvous.greeting(role);
    let sockets = |source| JoinError::Sockets {
        role: role.to_owned(),
        source,
    };
    listener.set_nonblocking(true).map_err(sockets)?;
    loop {
        let missing: Vec<usize> = (ours.rank + 1..ours.world_size)
            .filter(|rank| peers[*rank].is_none())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(JoinError::Missing {
                missing,
                seconds: rendezvous.join_timeout.as_secs_f64(),
            });
        }
        let timeout = Timespec::try_from(left).ok();
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut polled, timeout.as_ref()).map_err(|error| sockets(error.into()))?;
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_pause(&error) => continue,
            Err(error) => return Err(sockets(error)),
        };
        // It may not block because the listener does not.
        let greeted = stream
            .set_nonblocking(false)
            .map_err(Into::into)
            .and_then(|()| exchange(&mut stream, &ours, Side::Answerer, &rendezvous.secret))
            .and_then(|theirs| {
                ours.check(&theirs)?;
                match missing.contains(&theirs.rank) {
                    true => Ok(theirs.rank),
                    false => Err(ours.unexpected(&theirs)),
                }
            });
        match greeted {
            Ok(rank) => peers[rank] = Some(stream),
            Err(error) => {
                tracing::warn!(
                    role,
                    error = &error as &dyn std::error::Error,
                    "turned a caller away"
                );
            }
        }
    }
}
