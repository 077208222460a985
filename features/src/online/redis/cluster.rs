//! Connections to the cluster, which keys lie on which node, and which nodes are left alone for now.

use std::{
    collections::HashMap,
    fmt, fs,
    future::Future,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use redis::{
    Cmd, Pipeline, RedisError, TlsCertificates, Value,
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
    cmd,
    io::tcp::TcpSettings,
};
use tokio::{runtime, time::timeout_at};

use super::super::{OnlineError, RedisConfig};

const SLOTS: u16 = 16_384;

/// How often a command is sent again while the cluster changes.
const RETRIES: u32 = 3;

pub(super) fn failed(doing: &str, error: RedisError) -> OnlineError {
    OnlineError::Redis {
        doing: doing.to_owned(),
        source: Box::new(error),
    }
}

pub(super) fn unexpected(doing: &str, found: &Value) -> OnlineError {
    OnlineError::Reply {
        doing: doing.to_owned(),
        found: format!("{found:?}"),
    }
}

/// Whether keys lie elsewhere now, or are about to.
fn has_moved(error: &OnlineError) -> bool {
    matches!(error, OnlineError::Redis { source, .. } if source.is_cluster_error())
}

/// The cluster, with threads of its own that drive the connections.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    driver: Option<runtime::Runtime>,
}

/// What all users of the connections share.
pub(super) struct Shared {
    client: ClusterClient,
    timeout: Duration,
    read_timeout: Duration,
    rest: Duration,
    /// Once connected.
    link: Mutex<Option<Link>>,
    /// Held by whoever looks up anew which keys lie where.
    looking: tokio::sync::Mutex<()>,
    /// Nodes that failed, and when they may be asked again.
    resting: Mutex<HashMap<Arc<str>, Instant>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Waiting for its thread is not allowed everywhere, and nothing is lost with it.
        if let Some(driver) = self.driver.take() {
            driver.shutdown_background();
        }
    }
}

impl Cluster {
    /// Checks the settings; nothing is connected yet.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, OnlineError> {
        let wrong = |key, what: String| OnlineError::Setting { key, what };
        if config.nodes.is_empty() {
            let what = "names none: give some as `redis://host:port`";
            return Err(wrong("nodes", what.to_owned()));
        }
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if config.prefix.is_empty() || !config.prefix.chars().all(valid) {
            let found = &config.prefix;
            let what = format!("is `{found}`, wanted letters, digits, `-` and `_`");
            return Err(wrong("prefix", what));
        }
        if config.nodes.iter().any(|node| node.contains('@')) {
            let what = "may not name a user or password: `username` and `password` do";
            return Err(wrong("nodes", what.to_owned()));
        }
        for (key, found) in [
            ("read_timeout_ms", config.read_timeout_ms),
            ("timeout_ms", config.timeout_ms),
        ] {
            if found == 0 {
                return Err(wrong(key, "is 0, wanted at least 1".to_owned()));
            }
        }
        let password = wire::environment::resolve(&config.password);
        let password = password.map_err(|error| wrong("password", error.to_string()))?;
        let timeout = Duration::from_millis(config.timeout_ms);
        let mut builder = ClusterClientBuilder::new(config.nodes.iter().map(String::as_str))
            .retries(RETRIES)
            .max_retry_wait(200)
            .connection_timeout(timeout)
            .response_timeout(timeout)
            .tcp_settings(
                TcpSettings::default()
                    .set_nodelay(true)
                    .set_user_timeout(timeout),
            );
        if let Some(path) = &config.ca_file {
            let read = fs::read(path);
            let read = read.map_err(|error| {
                wrong(
                    "ca_file",
                    format!("{} cannot be read: {error}", path.display()),
                )
            });
            builder = builder.certs(TlsCertificates {
                client_tls: None,
                root_cert: Some(read?),
            });
        }
        if config.nodes.iter().any(|node| node.starts_with("rediss:")) {
            // Whichever was chosen first stays.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        if !config.username.is_empty() {
            builder = builder.username(&config.username);
        }
        if !password.is_empty() {
            builder = builder.password(&password);
        }
        let client = builder
            .build()
            .map_err(|error| wrong("nodes", format!("cannot be used: {error}")))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let driver = runtime::Builder::new_multi_thread()
            .worker_threads((cores / 4).max(1))
            .thread_name("online-store")
            .enable_all()
            .build()
            .map_err(|error| failed("starting", error.into()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                client,
                timeout,
                read_timeout: Duration::from_millis(config.read_timeout_ms),
                rest: Duration::from_millis(config.rest_ms),
                link: Mutex::new(None),
                looking: tokio::sync::Mutex::new(()),
                resting: Mutex::new(HashMap::new()),
            }),
            driver: Some(driver),
        })
    }

    fn driver(&self) -> &runtime::Runtime {
        self.driver.as_ref().expect("it is taken by `drop` alone")
    }

    /// Lets some work run.
    pub(super) fn spawn<F>(&self, work: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.driver().spawn(work(self.shared.clone()));
    }

    /// Does some work over the connections, made before if need be, and waits for its end.
    pub(super) fn wait<T, F>(
        &self,
        work: impl FnOnce(Link) -> F + Send + 'static,
    ) -> Result<T, OnlineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, OnlineError>> + Send + 'static,
    {
        let (tell, told) = mpsc::sync_channel(1);
        self.spawn(move |shared| async move {
            let link = match shared.known() {
                Some(link) => Ok(link),
                None => shared.look().await,
            };
            let done = match link {
                Ok(link) => work(link).await,
                Err(error) => Err(error),
            };
            // Whoever asked waits below.
            let _ = tell.send(done);
        });
        let gone = |_| OnlineError::Reply {
            doing: "working".to_owned(),
            found: "its thread ended".to_owned(),
        };
        told.recv().map_err(gone)?
    }
}

impl Shared {
    fn known(&self) -> Option<Link> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.clone()
    }

    /// Looks up which keys lie where. If that has changed, or nobody says, all connections are made anew:
    /// those to a node that hangs do not end by themselves.
    async fn look(&self) -> Result<Link, OnlineError> {
        let _looking = self.looking.lock().await;
        if let Some(link) = self.known()
            && let Ok(nodes) = nodes(&link.connection).await
            && nodes == *link.nodes
        {
            return Ok(link);
        }
        let doing = "connecting";
        let connecting = self.client.get_async_connection();
        let deadline = (Instant::now() + 2 * self.timeout).into();
        let connected = timeout_at(deadline, connecting).await;
        let silent = |_| OnlineError::Silent {
            doing: doing.to_owned(),
            waited_ms: 2 * self.timeout.as_millis() as u64,
        };
        let connected = connected.map_err(silent)?;
        let connection = connected.map_err(|error| failed(doing, error))?;
        let link = Link {
            nodes: Arc::new(nodes(&connection).await?),
            connection,
        };
        let mut known = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(link.clone());
        Ok(link)
    }

    /// The connections, for a request that cannot wait for them to be made.
    pub(super) fn link(&self) -> Result<Link, OnlineError> {
        self.known().ok_or_else(|| OnlineError::Reply {
            doing: "reading states".to_owned(),
            found: "not connected yet".to_owned(),
        })
    }

    /// The answers to commands of which all keys lie on one node. A request's are waited for shortly,
    /// and a node that does not give them is left alone for a while.
    pub(super) async fn read(
        self: &Arc<Self>,
        link: &Link,
        node: &Node,
        commands: Vec<Cmd>,
        until: Instant,
        reading: Reading,
    ) -> Result<Vec<Value>, OnlineError> {
        let doing = "reading states";
        let own = match reading {
            Reading::Request => self.read_timeout,
            Reading::Many => self.timeout,
        };
        if reading == Reading::Request && self.is_resting(&node.name) {
            return Err(OnlineError::Reply {
                doing: format!("{doing} at {}", node.name),
                found: "it failed, or was too slow, and is left alone for a while".to_owned(),
            });
        }
        let own_end = Instant::now() + own;
        let answers = async {
            let (answers, moved) = link.all(node, &commands, doing).await?;
            if moved {
                self.look_soon();
            }
            Ok(answers)
        };
        let failure = match timeout_at(until.min(own_end).into(), answers).await {
            Ok(Ok(values)) => return Ok(values),
            Ok(Err(error)) => error,
            Err(_) if own_end <= until => OnlineError::Silent {
                doing: format!("{doing} at {}", node.name),
                waited_ms: own.as_millis() as u64,
            },
            Err(_) => {
                let unread = commands.len();
                return Err(OnlineError::Late { unread });
            }
        };
        if reading == Reading::Request {
            self.rest(&node.name);
        }
        Err(failure)
    }

    fn is_resting(&self, node: &str) -> bool {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match resting.get(node) {
            Some(end) if Instant::now() < *end => true,
            Some(_) => {
                resting.remove(node);
                false
            }
            None => false,
        }
    }

    /// Leaves a node alone for a while, in which it is looked up who has its keys.
    fn rest(self: &Arc<Self>, node: &Arc<str>) {
        let end = Instant::now() + self.rest;
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(node.clone(), end);
        drop(resting);
        self.look_soon();
    }

    fn look_soon(self: &Arc<Self>) {
        let shared = self.clone();
        tokio::spawn(async move {
            // Who is looking already will do.
            if shared.looking.try_lock().is_ok()
                && let Err(error) = shared.look().await
            {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(error, "the online store's cluster cannot be looked at");
            }
        });
    }
}

/// What states are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// An answer that somebody waits for.
    Request,
    /// Many at once, before they are needed.
    Many,
}

/// The connections, and which keys lie where. Cloning shares them.
#[derive(Clone)]
pub(super) struct Link {
    connection: ClusterConnection,
    pub(super) nodes: Arc<Nodes>,
}

async fn nodes(connection: &ClusterConnection) -> Result<Nodes, OnlineError> {
    let slots = cmd("CLUSTER").arg("SLOTS").take();
    let anyone = SingleNodeRoutingInfo::RandomPrimary;
    Nodes::parse(&route(connection, slots, anyone, "looking up its slots").await?)
}

async fn route(
    connection: &ClusterConnection,
    command: Cmd,
    to: SingleNodeRoutingInfo,
    doing: &str,
) -> Result<Value, OnlineError> {
    let mut connection = connection.clone();
    let found = connection.route_command(command, RoutingInfo::SingleNode(to));
    let found = found.await.and_then(Value::extract_error);
    found.map_err(|error| failed(doing, error))
}

impl Link {
    /// A command, to where its key lies.
    pub(super) async fn one(&self, command: Cmd, doing: &str) -> Result<Value, OnlineError> {
        let mut connection = self.connection.clone();
        let found: Result<Value, RedisError> = command.query_async(&mut connection).await;
        found.map_err(|error| failed(doing, error))
    }

    /// A command to one node.
    pub(super) async fn on(
        &self,
        node: &Node,
        command: Cmd,
        doing: &str,
    ) -> Result<Value, OnlineError> {
        route(&self.connection, command, node.route(), doing).await
    }

    /// The answers to commands whose keys lie on one node, all sent at once. Whether keys have moved: then
    /// the commands are sent again one by one, on to where their keys are now.
    pub(super) async fn all(
        &self,
        node: &Node,
        commands: &[Cmd],
        doing: &str,
    ) -> Result<(Vec<Value>, bool), OnlineError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let mut connection = self.connection.clone();
        let found = connection.route_pipeline(pipeline, 0, commands.len(), node.route());
        let values = found.await.and_then(|values| {
            let values = values.into_iter().map(Value::extract_error);
            values.collect()
        });
        match values.map_err(|error| failed(&format!("{doing} at {}", node.name), error)) {
            Err(error) if has_moved(&error) => {
                let one = |command: &Cmd| self.one(command.clone(), doing);
                let answers = futures::future::try_join_all(commands.iter().map(one));
                Ok((answers.await?, true))
            }
            values => Ok((values?, false)),
        }
    }
}

/// A node, by its address, and some slot that it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    slot: u16,
}

impl Node {
    fn route(&self) -> SingleNodeRoutingInfo {
        SingleNodeRoutingInfo::SpecificNode(Route::new(self.slot, SlotAddr::Master))
    }
}

/// Which node has which slots.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// First and last slot, and the node's place among `nodes`; by rising slots.
    ranges: Vec<(u16, u16, usize)>,
}

impl Nodes {
    /// Reads the answer to `CLUSTER SLOTS`: `[first, last, [host, port, …], replicas …]` for each range.
    fn parse(value: &Value) -> Result<Self, OnlineError> {
        let doing = "looking up its slots";
        let read = |range: &Value| -> Option<(u16, u16, Arc<str>)> {
            let [first, last, node, ..] = range.as_sequence()? else {
                return None;
            };
            let (Value::Int(first), Value::Int(last)) = (first, last) else {
                return None;
            };
            let [host, Value::Int(port), more @ ..] = node.as_sequence()? else {
                return None;
            };
            let text = |value: &Value| redis::from_redis_value_ref::<Option<String>>(value).ok();
            // A node that does not know its own address has an id all the same.
            let host = text(host)?.filter(|host| !host.is_empty());
            let host = host.or_else(|| more.first().and_then(text).flatten());
            let name = format!("{}:{port}", host.unwrap_or_default());
            Some((
                u16::try_from(*first).ok()?,
                u16::try_from(*last).ok()?,
                name.into(),
            ))
        };
        let ranges = value.as_sequence().unwrap_or_default();
        let mut ranges: Vec<_> = ranges
            .iter()
            .map(|range| read(range).ok_or_else(|| unexpected(doing, range)))
            .collect::<Result<_, _>>()?;
        ranges.sort_by_key(|(first, ..)| *first);
        let mut found = Self {
            nodes: Vec::new(),
            ranges: Vec::new(),
        };
        for (first, last, name) in ranges {
            let known = found.nodes.iter().position(|node| node.name == name);
            let at = known.unwrap_or_else(|| {
                found.nodes.push(Node { name, slot: first });
                found.nodes.len() - 1
            });
            found.ranges.push((first, last, at));
        }
        if found.nodes.is_empty() {
            return Err(unexpected(doing, value));
        }
        Ok(found)
    }

    pub(super) fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// The place among `nodes` of the one that has a key, which has no hash tag.
    fn place(&self, key: &str) -> Option<usize> {
        let slot = crc16::State::<crc16::XMODEM>::calculate(key.as_bytes()) % SLOTS;
        let at = self.ranges.partition_point(|(_, last, _)| *last < slot);
        let range = self.ranges.get(at).filter(|(first, ..)| *first <= slot);
        range.map(|(.., node)| *node)
    }

    /// A hash tag for each node, which puts keys on it.
    pub(super) fn tags(&self) -> Vec<String> {
        let tag = |node| {
            let mut tags = (0..u32::MAX).map(|number| number.to_string());
            tags.find(|tag| self.place(tag) == Some(node))
        };
        (0..self.nodes.len()).filter_map(tag).collect()
    }

    /// Divides what has keys by the nodes that have them. What nobody has goes to the first node, which
    /// will say so.
    pub(super) fn split<T>(&self, items: Vec<T>, key: impl Fn(&T) -> &str) -> Vec<(Node, Vec<T>)> {
        let mut of_nodes: Vec<Vec<T>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for item in items {
            of_nodes[self.place(key(&item)).unwrap_or(0)].push(item);
        }
        let parts = self.nodes.iter().cloned().zip(of_nodes);
        parts.filter(|(_, items)| !items.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64, port: i64) -> Value {
        let host = Value::BulkString(b"10.0.0.1".to_vec());
        let node = Value::Array(vec![
            host,
            Value::Int(port),
            Value::BulkString(b"id".to_vec()),
        ]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node])
    }

    #[test]
    fn keys_go_to_the_nodes_that_have_their_slots() {
        let slots = Value::Array(vec![
            range(8_000, 16_383, 2),
            range(0, 3_999, 1),
            range(4_000, 4_999, 2),
        ]);
        let nodes = Nodes::parse(&slots).unwrap();
        // By `CLUSTER KEYSLOT`: 12182, 5061, 866; nobody has 5061.
        let parts = nodes.split(vec!["foo", "bar", "hello"], |key| key);
        let parts: Vec<(&str, Vec<&str>)> = parts
            .iter()
            .map(|(node, keys)| (&*node.name, keys.clone()))
            .collect();
        assert_eq!(
            parts,
            [
                ("10.0.0.1:1", vec!["bar", "hello"]),
                ("10.0.0.1:2", vec!["foo"])
            ]
        );
    }

    #[test]
    fn an_answer_of_another_form_is_refused() {
        for value in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 99_999, 1)]),
        ] {
            let error = Nodes::parse(&value).unwrap_err().to_string();
            assert!(
                error.starts_with("Redis, looking up its slots: "),
                "{error}"
            );
        }
    }
}
