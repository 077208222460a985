//! Where the ranks of a run meet, and from which their groups are made.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    greeting::{Greeting, GreetingError},
    membership::Membership,
    store::{Answer, Store, StoreServer},
};

/// How ranks find and wait for each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectiveConfig {
    /// Seconds that the ranks may take to join.
    pub join_timeout_seconds: f64,
    /// Seconds of silence after which a rank counts as lost; more than the longest pause of a
    /// healthy one.
    pub timeout_seconds: f64,
    /// File with a secret that all ranks must know; empty: ranks are not authenticated.
    pub secret_file: PathBuf,
}

impl Default for CollectiveConfig {
    fn default() -> Self {
        Self {
            join_timeout_seconds: 120.0,
            timeout_seconds: 300.0,
            secret_file: PathBuf::new(),
        }
    }
}

/// Why a rank did not find the others.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A time-out that is none.
    #[error("collective.{key} is {value}, wanted a number above 0")]
    Timeout {
        /// The key.
        key: &'static str,
        /// Its value.
        value: f64,
    },
    /// The secret cannot be read.
    #[error("reading collective.secret_file {}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen on port {port} (MASTER_PORT): is another run using it?")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// Rank 0 cannot be reached.
    #[error("rank 0 was not reached at {address} (MASTER_ADDR:MASTER_PORT) within {seconds} s")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// The time-out.
        seconds: f64,
        /// What the system said last.
        source: io::Error,
    },
    /// A rank and this one do not belong together.
    #[error("joining rank {rank}")]
    Greeting {
        /// The rank.
        rank: usize,
        /// Why.
        source: GreetingError,
    },
    /// Another rank was turned away.
    #[error("the ranks cannot start together: {reason}")]
    Spoilt {
        /// What was wrong with it.
        reason: String,
    },
    /// Ranks that did not come.
    #[error("ranks {missing:?} did not join within {seconds} s")]
    Missing {
        /// The ranks.
        missing: Vec<usize>,
        /// The time-out.
        seconds: f64,
    },
    /// The rendezvous broke.
    #[error("talking with the rendezvous of rank 0")]
    Store(#[source] io::Error),
    /// A group on GPUs could not be made.
    #[error("making group `{role}` on the GPU: {problem}")]
    Nccl {
        /// The group.
        role: String,
        /// What is missing or was refused.
        problem: String,
    },
    /// A group's sockets could not be made.
    #[error("making the sockets of group `{role}`")]
    Sockets {
        /// The group.
        role: String,
        /// What the system said.
        source: io::Error,
    },
}

impl JoinError {
    /// Whether trying again cannot help: somebody is configured wrongly.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Secret { .. } | Self::Spoilt { .. } => true,
            Self::Greeting { source, .. } => matches!(
                source,
                GreetingError::Config { .. }
                    | GreetingError::WorldSize { .. }
                    | GreetingError::Version { .. }
                    | GreetingError::Secret { .. }
            ),
            _ => false,
        }
    }
}

/// A rank's place in a run that is complete: all ranks have joined.
#[derive(Debug)]
pub struct Rendezvous {
    pub(crate) membership: Membership,
    pub(super) config_digest: String,
    pub(super) secret: Vec<u8>,
    pub(super) join_timeout: Duration,
    pub(super) timeout: Duration,
    store: Option<Mutex<Store>>,
    /// Rank 0 holds it for all; it ends with this.
    _server: Option<StoreServer>,
}

impl Rendezvous {
    /// Joins the run, and waits for the others. `config_digest` must be equal on all ranks.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(
        membership: Membership,
        config: &CollectiveConfig,
        config_digest: &str,
    ) -> Result<Arc<Self>, JoinError> {
        if membership.world_size == 1 {
            return Self::enter(membership, config, config_digest, None);
        }
        let listener = match membership.rank {
            0 => Some(listen(&membership)?),
            _ => None,
        };
        Self::enter(membership, config, config_digest, listener)
    }

    /// As [`Self::join`]; rank 0 brings the listener of the rendezvous.
    pub(super) fn enter(
        membership: Membership,
        config: &CollectiveConfig,
        config_digest: &str,
        listener: Option<TcpListener>,
    ) -> Result<Arc<Self>, JoinError> {
        let mut this = Self {
            config_digest: config_digest.to_owned(),
            secret: read_secret(config)?,
            join_timeout: seconds("join_timeout_seconds", config.join_timeout_seconds)?,
            timeout: seconds("timeout_seconds", config.timeout_seconds)?,
            store: None,
            _server: None,
            membership,
        };
        if this.membership.world_size > 1 {
            let ours = this.greeting("store");
            if let Some(listener) = listener {
                let server = StoreServer::start(listener, ours.clone(), this.secret.clone());
                this._server = Some(server.map_err(JoinError::Store)?);
            }
            let deadline = Instant::now() + this.join_timeout;
            let mut store = this.reach(&ours, deadline)?;
            this.wait_for_all(&mut store, deadline)?;
            this.store = Some(Mutex::new(store));
        }
        Ok(Arc::new(this))
    }

    /// What this rank says of itself on a connection for `role`.
    pub(super) fn greeting(&self, role: &str) -> Greeting {
        Greeting {
            rank: self.membership.rank,
            world_size: self.membership.world_size,
            role: role.to_owned(),
            attempt: self.membership.attempt.clone(),
            config_digest: self.config_digest.clone(),
        }
    }

    /// Connects to rank 0, which may start later than this rank.
    fn reach(&self, ours: &Greeting, deadline: Instant) -> Result<Store, JoinError> {
        let address = (
            self.membership.master_addr.as_str(),
            self.membership.master_port,
        );
        let mut pause = Duration::from_millis(5);
        loop {
            match connect(address, deadline) {
                Ok(stream) => {
                    return Store::greet(stream, ours, &self.secret)
                        .map_err(|source| JoinError::Greeting { rank: 0, source });
                }
                Err(source) if Instant::now() + pause >= deadline => {
                    return Err(JoinError::Unreachable {
                        address: format!("{}:{}", address.0, address.1),
                        seconds: self.join_timeout.as_secs_f64(),
                        source,
                    });
                }
                Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn wait_for_all(&self, store: &mut Store, deadline: Instant) -> Result<(), JoinError> {
        let wait = deadline.saturating_duration_since(Instant::now());
        match store.join(wait).map_err(JoinError::Store)? {
            Answer::Found(_) => Ok(()),
            Answer::Spoilt(reason) => Err(JoinError::Spoilt { reason }),
            Answer::Absent(missing) => Err(JoinError::Missing {
                missing: missing
                    .chunks_exact(4)
                    // Chunks of four bytes are four bytes.
                    .map(|rank| u32::from_le_bytes(rank.try_into().expect("four bytes")) as usize)
                    .collect(),
                seconds: self.join_timeout.as_secs_f64(),
            }),
        }
    }

    /// The store; absent if this rank is alone.
    fn store(&self) -> Option<MutexGuard<'_, Store>> {
        let store = self.store.as_ref()?;
        Some(store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The address under which the other ranks can reach this one.
    pub(super) fn local_ip(&self) -> io::Result<IpAddr> {
        match self.store() {
            Some(store) => Ok(store.local_address()?.ip()),
            None => Ok(Ipv4Addr::LOCALHOST.into()),
        }
    }

    /// Tells all ranks a value.
    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), JoinError> {
        if let Some(mut store) = self.store() {
            store.set(key, value).map_err(JoinError::Store)?;
        }
        Ok(())
    }

    /// The value that `rank` tells under a key, when it does.
    pub(super) fn get(
        &self,
        key: &str,
        rank: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, JoinError> {
        let missing = || JoinError::Missing {
            missing: vec![rank],
            seconds: self.join_timeout.as_secs_f64(),
        };
        let Some(mut store) = self.store() else {
            return Err(missing());
        };
        let wait = deadline.saturating_duration_since(Instant::now());
        match store.get(key, wait).map_err(JoinError::Store)? {
            Answer::Found(value) => Ok(value),
            Answer::Absent(_) => Err(missing()),
            Answer::Spoilt(reason) => Err(JoinError::Spoilt { reason }),
        }
    }

    /// Finds who is to blame when this rank waits in vain for `rank`: the end of the chain of
    /// ranks that wait for each other. Every rank that gives up says for whom it waited; one that
    /// says nothing within `grace` is the culprit.
    pub(super) fn blame(&self, rank: usize, grace: Duration) -> usize {
        let me = self.membership.rank;
        if self
            .set(&blame_key(me), &(rank as u32).to_le_bytes())
            .is_err()
        {
            return rank;
        }
        let (mut culprit, mut seen) = (rank, vec![me]);
        while !seen.contains(&culprit) {
            seen.push(culprit);
            let deadline = Instant::now() + grace;
            match self.get(&blame_key(culprit), culprit, deadline) {
                Ok(next) if next.len() == 4 => {
                    culprit = u32::from_le_bytes([next[0], next[1], next[2], next[3]]) as usize;
                }
                _ => return culprit,
            }
        }
        // A circle: all wait for each other, which no single rank has caused.
        rank
    }
}

#[cfg(feature = "cuda")]
impl Rendezvous {
    /// Finds who is to blame when this rank waits in vain, and nobody can say for whom: every rank
    /// that gives up says so, and the first that says nothing within `grace` is the culprit.
    pub(super) fn silent_rank(&self, grace: Duration) -> usize {
        let me = self.membership.rank;
        let others = || (0..self.membership.world_size).filter(|rank| *rank != me);
        let said = self.set(&blame_key(me), &(me as u32).to_le_bytes());
        let deadline = Instant::now() + grace;
        let silent = others().find(|rank| self.get(&blame_key(*rank), *rank, deadline).is_err());
        // Without the store, rank 0 is the one that holds it.
        said.map_or(Some(0), |()| silent)
            .or_else(|| others().next())
            .unwrap_or(me)
    }
}

fn blame_key(rank: usize) -> String {
    format!("waits/{rank}")
}

fn seconds(key: &'static str, value: f64) -> Result<Duration, JoinError> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(JoinError::Timeout { key, value }),
    }
}

fn read_secret(config: &CollectiveConfig) -> Result<Vec<u8>, JoinError> {
    if config.secret_file.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let secret = std::fs::read(&config.secret_file).map_err(|source| JoinError::Secret {
        path: config.secret_file.clone(),
        source,
    })?;
    // Editors end a file with a line break.
    Ok(secret.trim_ascii_end().to_owned())
}

/// The rendezvous listens on all addresses, because `MASTER_ADDR` may be a name that only others
/// resolve; for a run on one machine on the loopback one alone.
fn listen(membership: &Membership) -> Result<TcpListener, JoinError> {
    let port = membership.master_port;
    let addresses: &[IpAddr] = match membership.master_addr.as_str() {
        "127.0.0.1" | "localhost" => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        _ => &[
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ],
    };
    let addresses: Vec<SocketAddr> = addresses.iter().map(|ip| (*ip, port).into()).collect();
    TcpListener::bind(&addresses[..]).map_err(|source| JoinError::Listen { port, source })
}

fn connect(address: (&str, u16), deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
