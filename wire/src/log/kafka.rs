//! The event log on Kafka: a topic, its partitions, and offsets that Kafka gives.
//!
//! A reader assigns itself all partitions at the offsets it is told, reads up to the high watermark
//! that stood then, and stores no offset of its own. A record is a Protobuf event, bare or in the wire
//! format of a Confluent schema registry: a zero byte, the schema's id in four bytes, and the path to
//! the message, which is one zero byte for the first of its file. No Protobuf message begins with a
//! zero byte, so that both can be told apart and a topic may hold both.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    consumer::{
        BaseConsumer, CommitMode, Consumer, DefaultConsumerContext, base_consumer::PartitionQueue,
    },
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

use crate::environment;

use super::{
    KafkaConfig, Log, LogError, LogWriter, MAX_RECORD_BYTES, Partitions, Position, Record, Records,
};

/// Settings of readers that the log's promises hang on.
const OF_CONSUMERS: [(&str, &str); 4] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "true"),
    ("auto.offset.reset", "error"),
];

/// The same of writers.
const OF_PRODUCERS: [(&str, &str); 2] = [("enable.idempotence", "true"), ("acks", "all")];

/// What the configuration names elsewhere.
const NAMED: [&str; 3] = ["bootstrap.servers", "metadata.broker.list", "group.id"];

/// How long one wait may last before the clock is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Before the payload in a registry's wire format: a zero, the schema's id, the message's path.
const FRAME_BYTES: usize = 6;

/// A topic of a Kafka cluster.
pub struct KafkaLog {
    config: KafkaConfig,
    /// As librdkafka wants them, without the producer's and the consumer's own.
    settings: BTreeMap<String, String>,
    /// Of the last read: it also carries commits.
    consumer: Mutex<Option<Arc<BaseConsumer>>>,
}

/// Without the settings, which may hold secrets.
impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLog")
            .field("brokers", &self.config.brokers)
            .field("topic", &self.config.topic)
            .finish_non_exhaustive()
    }
}

impl KafkaLog {
    /// Checks the settings; the cluster is asked when the log is read or written.
    ///
    /// # Errors
    /// [`LogError::Setting`].
    pub fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        let fail = |key: &str, what: String| {
            Err(LogError::Setting {
                key: key.to_owned(),
                what,
            })
        };
        if config.brokers.is_empty() {
            return fail(
                "brokers",
                "none is named: give some as `host:port`".to_owned(),
            );
        }
        if config.timeout_seconds == 0 {
            return fail("timeout_seconds", "is 0, wanted at least 1".to_owned());
        }
        let mut settings = BTreeMap::new();
        for (name, value) in &config.settings {
            let key = format!("settings.\"{name}\"");
            let mut fixed = OF_CONSUMERS.iter().chain(&OF_PRODUCERS);
            if NAMED.contains(&name.as_str()) || fixed.any(|(it, _)| it == name) {
                return fail(&key, "may not be set here: take it out".to_owned());
            }
            let value = match environment::resolve(value) {
                Ok(value) => value,
                Err(unset) => return fail(&key, unset.to_string()),
            };
            settings.insert(name.clone(), value);
        }
        Ok(Self {
            config: config.clone(),
            settings,
            consumer: Mutex::new(None),
        })
    }

    /// The settings of a client with its own ones, which the configured ones may go over.
    fn client(&self, fixed: &[(&str, &str)], own: (&str, &str)) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.config.brokers.join(","));
        let configured = self
            .settings
            .iter()
            .map(|(name, value)| (&**name, &**value));
        let settings = fixed.iter().copied().chain([own]).chain(configured);
        for (name, value) in settings {
            client.set(name, value);
        }
        client
    }

    /// The name that positions call a partition by.
    fn name(&self, partition: i32) -> String {
        format!("{}-{partition}", self.config.topic)
    }

    fn number(&self, name: &str) -> Option<i32> {
        let number = name.strip_prefix(&self.config.topic)?.strip_prefix('-')?;
        number.parse().ok()
    }

    /// Numbers of the topic's partitions, rising.
    fn partitions(&self, consumer: &BaseConsumer) -> Result<Vec<i32>, LogError> {
        let topic = &self.config.topic;
        let asked = consumer.fetch_metadata(Some(topic), self.config.timeout());
        let metadata =
            asked.map_err(|error| self.config.error("asking for its partitions", &error))?;
        let found = metadata.topics().iter().find(|it| it.name() == topic);
        let mut partitions: Vec<i32> = match found {
            Some(found) => found.partitions().iter().map(|it| it.id()).collect(),
            None => Vec::new(),
        };
        if partitions.is_empty() {
            let why = "there is no such topic: create it, with as many partitions as readers shall ever \
                       share";
            return Err(self.config.error("asking for its partitions", &why));
        }
        partitions.sort_unstable();
        Ok(partitions)
    }
}

impl KafkaConfig {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }

    fn error(&self, doing: &str, error: &dyn fmt::Display) -> LogError {
        LogError::Kafka {
            brokers: self.brokers.join(","),
            topic: self.topic.clone(),
            doing: doing.to_owned(),
            why: error.to_string(),
        }
    }
}

impl Log for KafkaLog {
    fn read(&self, position: &Position) -> Result<Partitions, LogError> {
        let created = self
            .client(&OF_CONSUMERS, ("group.id", &self.config.group))
            .create::<BaseConsumer>();
        let consumer =
            Arc::new(created.map_err(|error| self.config.error("making a consumer", &error))?);
        let partitions = self.partitions(&consumer)?;
        let gap = |partition: &str, wanted, first, end| LogError::Gap {
            partition: partition.to_owned(),
            wanted,
            first,
            end,
        };
        for (name, &wanted) in position.iter().filter(|(_, wanted)| **wanted > 0) {
            let held = self.number(name).is_some_and(|it| partitions.contains(&it));
            if !held {
                return Err(gap(name, wanted, 0, 0));
            }
        }
        let topic = &self.config.topic;
        let (mut assigned, mut ranges) = (TopicPartitionList::new(), Vec::new());
        for partition in partitions {
            let name = self.name(partition);
            let asked = consumer.fetch_watermarks(topic, partition, self.config.timeout());
            let (first, end) =
                asked.map_err(|error| self.config.error("asking how far it goes", &error))?;
            // Offsets are never negative.
            let (first, end) = (first as u64, end as u64);
            let from = position.get(&name).copied().unwrap_or(first);
            if from < first || from > end {
                return Err(gap(&name, from, first, end));
            }
            if from < end {
                let added =
                    assigned.add_partition_offset(topic, partition, Offset::Offset(from as i64));
                added.map_err(|error| self.config.error("choosing where to read", &error))?;
            }
            ranges.push((partition, name, from, end));
        }
        let assign = consumer.assign(&assigned);
        assign.map_err(|error| self.config.error("choosing where to read", &error))?;
        let mut queues = BTreeMap::new();
        for (partition, _, from, end) in &ranges {
            if from < end {
                let queue = consumer.split_partition_queue(topic, *partition);
                let queue = queue
                    .ok_or_else(|| self.config.error("choosing where to read", &"no queue"))?;
                queues.insert(*partition, queue);
            }
        }
        // What came before the queues were split stands in front of what they will hold.
        let mut early: BTreeMap<i32, VecDeque<Record>> = BTreeMap::new();
        while let Some(found) = consumer.poll(Duration::ZERO) {
            let Ok(message) = found else { continue };
            let records = early.entry(message.partition()).or_default();
            records.push_back(record(&message));
        }
        *self.consumer.lock().unwrap_or_else(PoisonError::into_inner) = Some(consumer.clone());
        let readers = ranges.into_iter().map(|(partition, name, from, end)| {
            let records = KafkaRecords {
                config: self.config.clone(),
                consumer: consumer.clone(),
                queue: queues.remove(&partition),
                early: early.remove(&partition).unwrap_or_default(),
                next: from,
                end,
            };
            (name, Box::new(records) as Box<dyn Records>)
        });
        Ok(readers.collect())
    }

    fn writer(&self, _source: &str) -> Result<Box<dyn LogWriter>, LogError> {
        let context = Deliveries::default();
        // As large as any log takes; the brokers have a limit of their own.
        let most_bytes = (MAX_RECORD_BYTES + 1024).to_string();
        let created = self
            .client(&OF_PRODUCERS, ("message.max.bytes", &most_bytes))
            .create_with_context(context);
        let producer: BaseProducer<Deliveries> =
            created.map_err(|error| self.config.error("making a producer", &error))?;
        let frame = self.config.schema_id.map(|id| {
            let mut frame = [0; FRAME_BYTES];
            frame[1..5].copy_from_slice(&id.to_be_bytes());
            frame
        });
        Ok(Box::new(KafkaWriter {
            config: self.config.clone(),
            producer,
            frame,
            buffer: Vec::new(),
        }))
    }

    /// Kept back until Kafka takes it; a commit that fails is told of in the log, and harms nothing.
    fn tell_committed(&self, position: &Position) {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(consumer) = &*consumer else { return };
        let mut offsets = TopicPartitionList::new();
        for (name, &next) in position {
            let Some(partition) = self.number(name) else {
                continue;
            };
            let offset = Offset::Offset(next as i64);
            if let Err(error) = offsets.add_partition_offset(&self.config.topic, partition, offset)
            {
                tracing::warn!(%error, name, "an offset is not told to Kafka");
            }
        }
        if let Err(error) = consumer.commit(&offsets, CommitMode::Async) {
            tracing::warn!(%error, "Kafka was not told how far the pipeline is");
        }
    }
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let payload = message.payload().unwrap_or_default();
    Record {
        // Offsets of messages are never negative.
        offset: message.offset() as u64,
        payload: unframed(payload).to_vec(),
    }
}

/// The message itself, of what a registry's serializer wrote or of a bare one.
fn unframed(payload: &[u8]) -> &[u8] {
    match payload {
        [0, _, _, _, _, 0, message @ ..] => message,
        bare => bare,
    }
}

/// One partition, up to the end that stood when it was opened.
struct KafkaRecords {
    config: KafkaConfig,
    consumer: Arc<BaseConsumer>,
    /// Gone once all is read.
    queue: Option<PartitionQueue<DefaultConsumerContext>>,
    early: VecDeque<Record>,
    next: u64,
    end: u64,
}

impl fmt::Debug for KafkaRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaRecords")
            .field("topic", &self.config.topic)
            .field("next", &self.next)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl KafkaRecords {
    fn read_next(&mut self) -> Result<Option<Record>, LogError> {
        let fail = |error: &dyn fmt::Display| self.config.error("reading it", error);
        if self.next >= self.end {
            self.queue = None;
        }
        if let Some(record) = self.early.pop_front() {
            self.next = record.offset + 1;
            return Ok(Some(record));
        }
        let Some(queue) = &self.queue else {
            return Ok(None);
        };
        let timeout = self.config.timeout();
        let (waiting, mut said) = (Instant::now(), String::new());
        loop {
            match queue.poll(TICK) {
                Some(Ok(message)) => {
                    let record = record(&message);
                    if record.offset >= self.end {
                        break;
                    }
                    self.next = record.offset + 1;
                    return Ok(Some(record));
                }
                // Offsets before the watermark may be no records: marks of transactions.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(fail(&error)),
                None => {}
            }
            // What concerns no partition is said here: brokers out of reach, or that refuse.
            if let Some(Err(error)) = self.consumer.poll(Duration::ZERO) {
                said = error.to_string();
            }
            if waiting.elapsed() >= timeout {
                let why = format!("nothing came for {} s; {said}", timeout.as_secs());
                return Err(fail(&why));
            }
        }
        self.queue = None;
        Ok(None)
    }
}

impl Iterator for KafkaRecords {
    type Item = Result<Record, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read_next().transpose();
        if matches!(item, Some(Err(_))) {
            self.queue = None;
        }
        item
    }
}

/// What became of records that were sent.
#[derive(Debug, Default)]
struct Deliveries {
    refused: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if let Err((error, _message)) = result {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get_or_insert_with(|| error.clone());
        }
    }
}

struct KafkaWriter {
    config: KafkaConfig,
    producer: BaseProducer<Deliveries>,
    frame: Option<[u8; FRAME_BYTES]>,
    buffer: Vec<u8>,
}

impl fmt::Debug for KafkaWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaWriter")
            .field("topic", &self.config.topic)
            .finish_non_exhaustive()
    }
}

impl LogWriter for KafkaWriter {
    fn append_keyed(&mut self, key: &str, payload: &[u8]) -> Result<(), LogError> {
        if payload.len() > MAX_RECORD_BYTES {
            let bytes = payload.len();
            return Err(LogError::TooLarge { bytes });
        }
        let payload = match &self.frame {
            None => payload,
            Some(frame) => {
                self.buffer.clear();
                self.buffer.extend_from_slice(frame);
                self.buffer.extend_from_slice(payload);
                &self.buffer
            }
        };
        let mut record = BaseRecord::<str, [u8]>::to(&self.config.topic).payload(payload);
        if !key.is_empty() {
            record = record.key(key);
        }
        let waiting = Instant::now();
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if waiting.elapsed() < self.config.timeout() =>
                {
                    record = back;
                    self.producer.poll(TICK);
                }
                // Kafka's own limit, which stands in its settings.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                    let bytes = payload.len();
                    return Err(LogError::TooLarge { bytes });
                }
                Err((error, _)) => return Err(self.config.error("writing to it", &error)),
            }
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until the brokers have it: what this program alone holds is lost with it.
    fn flush(&mut self) -> Result<(), LogError> {
        let fail = |error: &KafkaError| self.config.error("writing to it", error);
        self.producer
            .flush(self.config.timeout())
            .map_err(|error| fail(&error))?;
        let deliveries = self.producer.context();
        let mut refused = deliveries
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match refused.take() {
            Some(error) => Err(fail(&error)),
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.flush()
    }
}
