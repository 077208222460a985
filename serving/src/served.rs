//! The log of served impressions: one thread owns it, one bounded channel leads there.
//!
//! **No event of an answer is lost.** A request reserves its place in the channel before it is
//! worked on; when there is none, because the disk is slow or full, it waits until its deadline
//! and is then turned away. What the disk refuses is tried again, with the events kept in order,
//! until it succeeds. When an answer may leave is the configuration's choice ([`Durability`]).
//!
//! What comes together is written together: while one write is under way the next ones gather.

use std::{
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{Builder, Runtime},
    select,
    sync::{Notify, mpsc, oneshot},
    time,
};
use wire::{
    events::Event,
    log::{Log, LogError, LogWriter, Transport},
};

use crate::metrics::Metrics;

/// In whose name servers write; in a log of segments, their partition.
pub const PARTITION: &str = "serving";

/// Most requests whose events go into one write.
const MAX_BATCH: usize = 256;

/// Time between two tries to write what the disk refused.
const RETRY: Duration = Duration::from_millis(200);

/// Tries after the server has stopped.
const LAST_TRIES: usize = 10;

/// What an answer waits for. A log on Kafka has no step between: all of its replicas in sync have what
/// is `written`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Nothing: its events are in memory, and a crash of the server loses the last ones.
    Queued,
    /// The operating system has its events: a crash of the server loses none, one of the machine
    /// the last ones.
    Written,
    /// The disk has them: no crash loses any.
    Synced,
}

/// How served impressions are logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What keeps the log: `"segments"` in the data folder, or a table `[log.transport.kafka]`.
    pub transport: Transport,
    /// What an answer waits for.
    pub durability: Durability,
    /// Requests whose events may wait to be written. Higher: longer hiccups of the disk pass
    /// without refusals, and `queued` can lose more.
    pub queue: usize,
    /// With `queued` and `written`: most time until the disk has the events, milliseconds.
    pub sync_ms: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            durability: Durability::Written,
            queue: 1_024,
            sync_ms: 1_000,
        }
    }
}

/// The events of one request, and whom to tell.
struct Batch {
    events: Vec<Event>,
    done: oneshot::Sender<()>,
}

/// Where requests leave their events.
#[derive(Debug, Clone)]
pub struct EventLog {
    sender: mpsc::Sender<Batch>,
    durability: Durability,
}

/// The thread that writes.
#[derive(Debug)]
pub struct LogThread {
    stop: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl LogThread {
    /// Gives out no more places, waits for those that are out, writes everything, and ends.
    ///
    /// # Errors
    /// What the thread panicked with.
    pub fn finish(self) -> thread::Result<()> {
        self.stop.notify_one();
        self.thread.join()
    }
}

/// A place in the channel.
#[derive(Debug)]
pub struct Place {
    permit: mpsc::OwnedPermit<Batch>,
    durability: Durability,
}

/// Comes true when the events are as durable as the configuration asks.
#[derive(Debug)]
pub struct Durable(Option<oneshot::Receiver<()>>);

/// The log takes no more events: the server has stopped.
#[derive(Debug, thiserror::Error)]
#[error("the event log is closed")]
pub struct LogClosed;

impl EventLog {
    /// Opens the log under `root` and starts its thread, which ends when it is told to
    /// ([`LogThread::finish`]) or the last clone is gone, and then with the last [`Place`].
    ///
    /// # Errors
    /// [`LogError`], if another server writes the partition for instance.
    pub fn start(
        root: &Path,
        config: &LogConfig,
        metrics: Metrics,
    ) -> Result<(Self, LogThread), LogError> {
        let log = config.transport.open(root)?;
        let writer = log.writer(PARTITION)?;
        let (sender, receiver) = mpsc::channel(config.queue);
        let stop = Arc::new(Notify::new());
        let owner = Owner {
            log,
            stop: stop.clone(),
            writer: Some(writer),
            config: config.clone(),
            metrics,
        };
        let failed = |source| LogError::Io {
            path: root.to_owned(),
            source,
        };
        let clock = Builder::new_current_thread().enable_time().build();
        let clock = clock.map_err(failed)?;
        let thread = thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || owner.run(&clock, receiver))
            .map_err(failed)?;
        let durability = config.durability;
        Ok((Self { sender, durability }, LogThread { stop, thread }))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`LogClosed`].
    pub async fn place(&self) -> Result<Place, LogClosed> {
        let permit = self.sender.clone().reserve_owned().await;
        Ok(Place {
            permit: permit.map_err(|_closed| LogClosed)?,
            durability: self.durability,
        })
    }
}

impl Place {
    /// Leaves the events of a request.
    pub fn leave(self, events: Vec<Event>) -> Durable {
        if events.is_empty() {
            return Durable(None);
        }
        let (done, durable) = oneshot::channel();
        self.permit.send(Batch { events, done });
        Durable((self.durability != Durability::Queued).then_some(durable))
    }
}

impl Durable {
    /// Waits.
    ///
    /// # Errors
    /// [`LogClosed`] if the log's thread is gone.
    pub async fn wait(self) -> Result<(), LogClosed> {
        match self.0 {
            Some(durable) => durable.await.map_err(|_gone| LogClosed),
            None => Ok(()),
        }
    }
}

/// The thread that owns the log.
struct Owner {
    log: Box<dyn Log>,
    stop: Arc<Notify>,
    /// Gone while the disk refuses.
    writer: Option<Box<dyn LogWriter>>,
    config: LogConfig,
    metrics: Metrics,
}

impl Owner {
    fn run(mut self, clock: &Runtime, mut receiver: mpsc::Receiver<Batch>) {
        let sync_every = Duration::from_millis(self.config.sync_ms.max(1));
        let mut synced = Instant::now();
        let mut is_dirty = false;
        let mut batches = Vec::with_capacity(MAX_BATCH);
        loop {
            let received = clock.block_on(async {
                select! {
                    count = receiver.recv_many(&mut batches, MAX_BATCH) => Some(count),
                    () = time::sleep(sync_every) => None,
                    () = self.stop.notified(), if !receiver.is_closed() => {
                        receiver.close();
                        None
                    }
                }
            });
            if received == Some(0) {
                break;
            }
            let sync = self.config.durability == Durability::Synced
                || ((is_dirty || !batches.is_empty()) && synced.elapsed() >= sync_every);
            if sync || !batches.is_empty() {
                self.write_until_done(&batches, sync, &receiver);
                is_dirty = !sync;
            }
            if sync {
                synced = Instant::now();
            }
            for batch in batches.drain(..) {
                // Whoever asked may have gone: its deadline passed, or it waits for nothing.
                let _ = batch.done.send(());
            }
        }
        self.write_until_done(&[], true, &receiver);
    }

    /// Writes until the disk takes it; once nobody is left to send more, only so many times.
    fn write_until_done(
        &mut self,
        batches: &[Batch],
        sync: bool,
        receiver: &mpsc::Receiver<Batch>,
    ) {
        let mut last_tries = 0;
        while let Err(error) = self.write(batches, sync) {
            self.writer = None;
            self.metrics.log_errors.inc();
            let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
            tracing::error!(%error, events, "event log refused, trying again");
            if receiver.is_closed() {
                last_tries += 1;
                if last_tries == LAST_TRIES {
                    tracing::error!(events, "event log refused to the end: events are lost");
                    return;
                }
            }
            thread::sleep(RETRY);
        }
    }

    /// Appends and hands over. After an error some events may be in the log; they are appended
    /// again, and readers know them by their ids.
    fn write(&mut self, batches: &[Batch], sync: bool) -> Result<(), LogError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => self.writer.insert(self.log.writer(PARTITION)?),
        };
        for event in batches.iter().flat_map(|batch| &batch.events) {
            match writer.append_event(event) {
                // No retry makes it smaller.
                Err(error @ LogError::TooLarge { .. }) => {
                    tracing::error!(%error, event_id = event.event_id, "event is dropped");
                }
                result => {
                    result?;
                    self.metrics.events.inc();
                }
            }
        }
        if sync { writer.sync() } else { writer.flush() }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use wire::log::SegmentReader;

    use super::*;

    fn events(request: usize) -> Vec<Event> {
        let event = |slot| Event {
            event_id: format!("{request}-{slot}"),
            ..Event::default()
        };
        (0..2).map(event).collect()
    }

    fn logged(root: &Path) -> Vec<String> {
        let records = SegmentReader::open(root, PARTITION, 0).unwrap();
        let id = |payload: Vec<u8>| Event::decode(payload.as_slice()).unwrap().event_id;
        records.map(|record| id(record.unwrap().payload)).collect()
    }

    #[tokio::test]
    async fn written_means_that_readers_see_it() {
        for durability in [Durability::Written, Durability::Synced] {
            let root = tempfile::tempdir().unwrap();
            let config = LogConfig {
                durability,
                ..LogConfig::default()
            };
            let (log, _thread) = EventLog::start(root.path(), &config, Metrics::default()).unwrap();
            let durable = log.place().await.unwrap().leave(events(1));
            durable.wait().await.unwrap();
            assert_eq!(logged(root.path()), ["1-0", "1-1"]);
        }
    }

    #[cfg(feature = "kafka")]
    #[tokio::test]
    async fn a_log_on_kafka_has_what_is_written() {
        use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
        use wire::log::{KafkaConfig, Position};

        let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 2, 1).unwrap();
        let config = LogConfig {
            transport: Transport::Kafka(KafkaConfig {
                brokers: vec![cluster.bootstrap_servers()],
                topic: "events".to_owned(),
                ..KafkaConfig::default()
            }),
            ..LogConfig::default()
        };
        let nowhere = Path::new("");
        let (log, thread) = EventLog::start(nowhere, &config, Metrics::default()).unwrap();
        for request in 0..20 {
            let durable = log.place().await.unwrap().leave(events(request));
            durable.wait().await.unwrap();
            let read = config
                .transport
                .open(nowhere)
                .unwrap()
                .read(&Position::new());
            let read: usize = read.unwrap().into_iter().map(|it| it.1.count()).sum();
            assert_eq!(read, 2 * (request + 1));
        }
        thread.finish().unwrap();
    }

    #[tokio::test]
    async fn closing_writes_everything_in_order() {
        let root = tempfile::tempdir().unwrap();
        let config = LogConfig {
            durability: Durability::Queued,
            queue: 4,
            ..LogConfig::default()
        };
        let (log, thread) = EventLog::start(root.path(), &config, Metrics::default()).unwrap();
        for request in 0..100 {
            let durable = log.place().await.unwrap().leave(events(request));
            durable.wait().await.unwrap();
        }
        // A request that hangs on to the log keeps nothing open.
        thread.finish().unwrap();
        assert!(log.place().await.is_err());
        let expected: Vec<String> = (0..100)
            .flat_map(events)
            .map(|event| event.event_id)
            .collect();
        assert_eq!(logged(root.path()), expected);
    }

    #[tokio::test]
    async fn a_full_queue_makes_requests_wait() {
        let root = tempfile::tempdir().unwrap();
        let config = LogConfig {
            queue: 1,
            ..LogConfig::default()
        };
        let (log, _thread) = EventLog::start(root.path(), &config, Metrics::default()).unwrap();
        let held = log.place().await.unwrap();
        let mut second = std::pin::pin!(log.place());
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        second.await.unwrap();
    }

    #[test]
    fn a_second_server_on_the_same_log_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let config = LogConfig::default();
        let _first = EventLog::start(root.path(), &config, Metrics::default()).unwrap();
        let second = EventLog::start(root.path(), &config, Metrics::default());
        assert!(matches!(second, Err(LogError::Locked { .. })));
    }
}
