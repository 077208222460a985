//! The rendezvous store: a key-value map held by rank 0, through which ranks find each other.
//!
//! A request is `operation, key length, key, value length, value`; an answer `status, length,
//! bytes`. A rank that joins wrongly spoils the store ([`Status::Spoilt`]): all who wait for the
//! group to be whole are then told why it never will.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::greeting::{GREETING_TIMEOUT, Greeting, GreetingError, Side, exchange};

/// A key names a rank and a role; a value is an address or an id.
const MAX_KEY_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// Binds a key to a value.
    Set = 1,
    /// Waits until a key has a value; the request's value is the longest wait, milliseconds u32.
    Get = 2,
    /// As `Get`, for the ranks that have joined to be all.
    Join = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Found = 0,
    /// Nothing came in time.
    Absent = 1,
    /// The group will never be whole; the bytes say why.
    Spoilt = 2,
}

/// What the store said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Found(Vec<u8>),
    /// Nothing came in time; for a join, the ranks that are missing.
    Absent(Vec<u8>),
    Spoilt(String),
}

/// The map, and a thread for every rank that has joined.
#[derive(Debug)]
pub(super) struct StoreServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    host: Greeting,
    secret: Vec<u8>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Vec<u8>>,
    joined: BTreeSet<usize>,
    spoilt: Option<String>,
    closed: bool,
}

impl StoreServer {
    /// Serves on a listener; `host` is what joiners must agree with.
    pub fn start(listener: TcpListener, host: Greeting, secret: Vec<u8>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            host,
            secret,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("rendezvous".to_owned())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        // Wakes the acceptor; on an unspecified address the loopback one reaches it.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        if TcpStream::connect(address).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            acceptor.join().ok();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; if it did, the map would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, the store is spoilt or closed, or time is up.
    fn wait<T>(&self, wait: Duration, look: impl Fn(&State) -> Option<T>) -> Result<T, Answer> {
        let deadline = Instant::now() + wait;
        let mut state = self.state();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            if let Some(reason) = &state.spoilt {
                return Err(Answer::Spoilt(reason.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return Err(Answer::Absent(Vec::new()));
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A rank has greeted. One of another attempt is only turned away; one of this attempt that
    /// does not fit spoils it for all, and hears of it like all.
    fn admit(&self, theirs: &Greeting) -> Result<(), GreetingError> {
        let mut state = self.state();
        match self.host.check(theirs) {
            Err(stale @ GreetingError::Attempt { .. }) => return Err(stale),
            Err(error) => state.spoilt = Some(error.to_string()),
            Ok(()) if state.joined.insert(theirs.rank) => {}
            Ok(()) => state.spoilt = Some(self.host.unexpected(theirs).to_string()),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn answer(&self, request: Request, key: String, value: Vec<u8>) -> Answer {
        match request {
            Request::Set => {
                self.state().values.insert(key, value);
                self.changed.notify_all();
                Answer::Found(Vec::new())
            }
            Request::Get => self
                .wait(wait_of(&value), |state| state.values.get(&key).cloned())
                .map_or_else(|answer| answer, Answer::Found),
            Request::Join => {
                let world_size = self.host.world_size;
                let all = |state: &State| (state.joined.len() == world_size).then(Vec::new);
                match self.wait(wait_of(&value), all) {
                    Ok(nothing) => Answer::Found(nothing),
                    Err(Answer::Absent(_)) => {
                        let state = self.state();
                        let missing = (0..world_size).filter(|rank| !state.joined.contains(rank));
                        Answer::Absent(
                            missing
                                .flat_map(|rank| (rank as u32).to_le_bytes())
                                .collect(),
                        )
                    }
                    Err(answer) => answer,
                }
            }
        }
    }
}

fn wait_of(value: &[u8]) -> Duration {
    let millis = <[u8; 4]>::try_from(value).map_or(0, u32::from_le_bytes);
    Duration::from_millis(u64::from(millis))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.state().closed {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // Ends with its connection. If no thread can be had, the caller sees a closed connection.
        std::thread::Builder::new()
            .name("rendezvous-rank".to_owned())
            .spawn(move || {
                if let Err(error) = serve(stream, &shared) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "turned a joiner away"
                    );
                }
            })
            .ok();
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Result<(), GreetingError> {
    let theirs = exchange(&mut stream, &shared.host, Side::Answerer, &shared.secret)?;
    shared.admit(&theirs)?;
    stream.set_read_timeout(None)?;
    while let Some((request, key, value)) = read_request(&mut stream)? {
        let answer = shared.answer(request, key, value);
        let (status, bytes) = match answer {
            Answer::Found(bytes) => (Status::Found, bytes),
            Answer::Absent(bytes) => (Status::Absent, bytes),
            Answer::Spoilt(reason) => (Status::Spoilt, reason.into_bytes()),
        };
        let mut message = vec![status as u8];
        message.extend((bytes.len() as u32).to_le_bytes());
        message.extend(bytes);
        stream.write_all(&message)?;
    }
    Ok(())
}

/// The next request; `None` when the rank has gone.
fn read_request(stream: &mut impl Read) -> io::Result<Option<(Request, String, Vec<u8>)>> {
    let mut first = [0];
    match stream.read_exact(&mut first) {
        Ok(()) => {}
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let request = match first[0] {
        1 => Request::Set,
        2 => Request::Get,
        3 => Request::Join,
        _ => return Err(invalid("no request begins with this byte")),
    };
    let key = read_bytes(stream, MAX_KEY_BYTES)?;
    let key = String::from_utf8(key).map_err(|_| invalid("the key is not UTF-8"))?;
    let value = read_bytes(stream, MAX_VALUE_BYTES)?;
    Ok(Some((request, key, value)))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

fn read_bytes(stream: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        return Err(invalid("a length is over its limit"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A rank's connection to the store.
#[derive(Debug)]
pub(super) struct Store {
    stream: TcpStream,
}

impl Store {
    /// Greets the store at the other end of a connection.
    pub fn greet(
        mut stream: TcpStream,
        ours: &Greeting,
        secret: &[u8],
    ) -> Result<Self, GreetingError> {
        let host = exchange(&mut stream, ours, Side::Caller, secret)?;
        ours.check(&host)?;
        Ok(Self { stream })
    }

    /// The address by which this machine reaches rank 0, and so by which others may reach it.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<Answer> {
        self.ask(Request::Set, key, value, Duration::ZERO)
    }

    pub fn get(&mut self, key: &str, wait: Duration) -> io::Result<Answer> {
        self.ask(Request::Get, key, &millis(wait), wait)
    }

    /// Waits until all ranks have joined.
    pub fn join(&mut self, wait: Duration) -> io::Result<Answer> {
        self.ask(Request::Join, "", &millis(wait), wait)
    }

    fn ask(
        &mut self,
        request: Request,
        key: &str,
        value: &[u8],
        wait: Duration,
    ) -> io::Result<Answer> {
        let mut message = vec![request as u8];
        for bytes in [key.as_bytes(), value] {
            message.extend((bytes.len() as u32).to_le_bytes());
            message.extend(bytes);
        }
        self.stream
            .set_read_timeout(Some(wait + GREETING_TIMEOUT))?;
        self.stream.write_all(&message)?;
        let mut status = [0];
        self.stream.read_exact(&mut status)?;
        let bytes = read_bytes(&mut self.stream, MAX_VALUE_BYTES)?;
        match status[0] {
            0 => Ok(Answer::Found(bytes)),
            1 => Ok(Answer::Absent(bytes)),
            2 => Ok(Answer::Spoilt(String::from_utf8_lossy(&bytes).into_owned())),
            _ => Err(invalid("no answer begins with this byte")),
        }
    }
}

fn millis(wait: Duration) -> [u8; 4] {
    u32::try_from(wait.as_millis())
        .unwrap_or(u32::MAX)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn greeting(rank: usize) -> Greeting {
        Greeting {
            rank,
            world_size: 2,
            role: "store".into(),
            attempt: String::new(),
            config_digest: "c".into(),
        }
    }

    fn server() -> StoreServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        StoreServer::start(listener, greeting(0), Vec::new()).unwrap()
    }

    fn client(server: &StoreServer, greeting: &Greeting) -> Result<Store, GreetingError> {
        Store::greet(TcpStream::connect(server.address).unwrap(), greeting, b"")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_value_set_by_one_reaches_the_one_who_waits() {
        let server = server();
        let mut early = client(&server, &greeting(1)).unwrap();
        let waiting = std::thread::spawn(move || early.get("key", LONG).unwrap());
        let mut late = client(&server, &greeting(0)).unwrap();
        late.set("key", b"value").unwrap();
        assert_eq!(waiting.join().unwrap(), Answer::Found(b"value".to_vec()));
    }

    #[test]
    fn what_does_not_come_is_absent() {
        let server = server();
        let mut alone = client(&server, &greeting(0)).unwrap();
        let wait = Duration::from_millis(1);
        assert_eq!(alone.get("key", wait).unwrap(), Answer::Absent(Vec::new()));
        let missing = 1u32.to_le_bytes().to_vec();
        assert_eq!(alone.join(wait).unwrap(), Answer::Absent(missing));
    }

    #[test]
    fn a_rank_with_another_configuration_ends_the_wait_of_all() {
        let server = server();
        let mut good = client(&server, &greeting(0)).unwrap();
        let waiting = std::thread::spawn(move || good.join(LONG).unwrap());
        let mut other = greeting(1);
        other.config_digest = "d".into();
        let error = client(&server, &other).unwrap_err();
        assert!(matches!(error, GreetingError::Config { .. }), "{error}");
        let Answer::Spoilt(reason) = waiting.join().unwrap() else {
            panic!("the group cannot be whole");
        };
        assert!(reason.contains("rank 1 has configuration d"), "{reason}");
    }

    #[test]
    fn a_rank_of_an_earlier_attempt_is_turned_away_and_the_others_go_on() {
        let server = server();
        let mut stale = greeting(1);
        stale.attempt = "run/0".into();
        assert!(client(&server, &stale).is_err());
        let mut first = client(&server, &greeting(0)).unwrap();
        let _second = client(&server, &greeting(1)).unwrap();
        assert_eq!(first.join(LONG).unwrap(), Answer::Found(Vec::new()));
    }

    #[test]
    fn two_of_one_rank_are_one_too_many() {
        let server = server();
        let _first = client(&server, &greeting(1)).unwrap();
        let mut second = client(&server, &greeting(1)).unwrap();
        let answer = second.join(LONG).unwrap();
        assert!(matches!(answer, Answer::Spoilt(reason) if reason.contains("rank 1 of 2")));
    }

    proptest! {
        #[test]
        fn no_request_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = bytes.as_slice();
            while let Ok(Some((_, key, _))) = read_request(&mut bytes) {
                prop_assert!(key.len() <= MAX_KEY_BYTES);
            }
        }
    }
}
