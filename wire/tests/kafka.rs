//! The log on Kafka, against the cluster that librdkafka plays: brokers on loopback that speak Kafka's
//! protocol.

use std::collections::BTreeMap;

use prost::Message;
use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};
use wire::{
    events::{AgeBand, Event},
    log::{KafkaConfig, KafkaLog, Log, LogError, Position},
};

const TOPIC: &str = "events";
const PARTITIONS: i32 = 3;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> (Cluster, KafkaConfig) {
    let cluster = MockCluster::new(2).unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, 2).unwrap();
    let config = KafkaConfig {
        brokers: vec![cluster.bootstrap_servers()],
        topic: TOPIC.to_owned(),
        ..KafkaConfig::default()
    };
    (cluster, config)
}

fn event(number: usize) -> Event {
    Event {
        event_id: format!("e{number}"),
        user_id: format!("u{}", number % 17),
        age_band: AgeBand::AgeBand13plus.into(),
        ..Event::default()
    }
}

fn write(config: &KafkaConfig, numbers: std::ops::Range<usize>) {
    let mut writer = KafkaLog::new(config).unwrap().writer("test").unwrap();
    for number in numbers {
        writer.append_event(&event(number)).unwrap();
    }
    writer.sync().unwrap();
}

/// Event ids by partition.
fn read(config: &KafkaConfig, position: &Position) -> BTreeMap<String, Vec<(u64, String)>> {
    let partitions = KafkaLog::new(config).unwrap().read(position).unwrap();
    let told = partitions.into_iter().map(|(name, records)| {
        let told = records.map(|record| {
            let record = record.unwrap();
            let event = Event::decode(record.payload.as_slice()).unwrap();
            (record.offset, event.event_id)
        });
        (name, told.collect())
    });
    told.collect()
}

#[test]
fn what_was_appended_is_read_from_any_position() {
    let (_cluster, config) = cluster();
    write(&config, 0..200);
    let all = read(&config, &Position::new());
    assert_eq!(all.len(), 3);
    let mut ids: Vec<String> = all.values().flatten().map(|it| it.1.clone()).collect();
    ids.sort();
    let mut wanted: Vec<String> = (0..200).map(|number| event(number).event_id).collect();
    wanted.sort();
    assert_eq!(ids, wanted);

    for part in [0.0, 0.3, 1.0] {
        let cut = |records: &Vec<(u64, String)>| (records.len() as f64 * part) as usize;
        let position = all
            .iter()
            .map(|(name, records)| (name.clone(), cut(records) as u64))
            .collect();
        let rest = read(&config, &position);
        for (name, records) in &all {
            assert_eq!(rest[name], records[cut(records)..], "{name} from {part}");
        }
    }
}

#[test]
fn one_person_stays_in_one_partition_and_in_order() {
    let (_cluster, config) = cluster();
    write(&config, 0..100);
    write(&config, 100..200);
    let mut of_people: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    for (partition, records) in read(&config, &Position::new()) {
        for (_, id) in records {
            let number: usize = id[1..].parse().unwrap();
            let person = of_people.entry(event(number).user_id).or_default();
            person.push((partition.clone(), number));
        }
    }
    assert_eq!(of_people.len(), 17);
    for seen in of_people.values() {
        assert!(
            seen.windows(2)
                .all(|two| two[0].0 == two[1].0 && two[0].1 < two[1].1)
        );
    }
}

#[test]
fn a_reader_ends_where_the_log_ended_when_it_was_opened() {
    let (_cluster, config) = cluster();
    write(&config, 0..20);
    let partitions = KafkaLog::new(&config)
        .unwrap()
        .read(&Position::new())
        .unwrap();
    write(&config, 20..40);
    let read: usize = partitions
        .into_iter()
        .map(|(_, records)| records.count())
        .sum();
    assert_eq!(read, 20);
}

#[test]
fn restricted_people_leave_no_id() {
    let (_cluster, config) = cluster();
    let mut writer = KafkaLog::new(&config).unwrap().writer("test").unwrap();
    let child = Event {
        age_band: AgeBand::Under13.into(),
        ..event(1)
    };
    writer.append_event(&child).unwrap();
    writer.sync().unwrap();
    let log = KafkaLog::new(&config).unwrap();
    let mut records = log
        .read(&Position::new())
        .unwrap()
        .into_iter()
        .flat_map(|it| it.1);
    let record = records.next().unwrap().unwrap();
    let found = Event::decode(record.payload.as_slice()).unwrap();
    assert_eq!(
        (found.event_id.as_str(), found.user_id.as_str()),
        ("e1", "")
    );
    assert!(records.next().is_none());
}

#[test]
fn the_wire_format_of_a_schema_registry_is_written_and_read() {
    let (_cluster, config) = cluster();
    let framed = KafkaConfig {
        schema_id: Some(0x0102_0304),
        ..config.clone()
    };
    write(&framed, 0..10);
    write(&config, 10..20);
    let read = read(&config, &Position::new());
    assert_eq!(read.values().map(Vec::len).sum::<usize>(), 20);

    // As any other consumer sees it.
    let raw: rdkafka::consumer::BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers[0])
        .set("group.id", "other")
        .create()
        .unwrap();
    let mut all = rdkafka::TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(TOPIC, partition, rdkafka::Offset::Beginning)
            .unwrap();
    }
    use rdkafka::{Message as _, consumer::Consumer as _};
    raw.assign(&all).unwrap();
    let mut framed = 0;
    for _ in 0..20 {
        let message = raw
            .poll(std::time::Duration::from_secs(10))
            .unwrap()
            .unwrap();
        let payload = message.payload().unwrap();
        if payload[0] == 0 {
            assert_eq!(payload[..6], [0, 1, 2, 3, 4, 0]);
            framed += 1;
        }
    }
    assert_eq!(framed, 10);
}

#[test]
fn bytes_that_are_no_event_come_as_they_are() {
    let (_cluster, config) = cluster();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers[0])
        .create()
        .unwrap();
    let payloads: [&[u8]; 4] = [b"", &[0], &[0, 1, 2, 3, 4], &[255; 9]];
    for payload in payloads {
        let record = BaseRecord::<str, [u8]>::to(TOPIC)
            .partition(1)
            .payload(payload);
        producer.send(record).unwrap();
    }
    producer.flush(std::time::Duration::from_secs(10)).unwrap();
    let partitions = KafkaLog::new(&config)
        .unwrap()
        .read(&Position::new())
        .unwrap();
    let read: Vec<Vec<u8>> = partitions
        .into_iter()
        .flat_map(|(_, records)| records)
        .map(|record| record.unwrap().payload)
        .collect();
    assert_eq!(read, payloads);
}

#[test]
fn records_that_are_gone_are_a_gap() {
    let (_cluster, config) = cluster();
    write(&config, 0..20);
    let log = KafkaLog::new(&config).unwrap();
    for (name, wanted) in [("events-1", 1_000), ("events-9", 1), ("world", 3)] {
        let position = Position::from([(name.to_owned(), wanted)]);
        let error = log.read(&position).unwrap_err();
        let gap = matches!(&error, LogError::Gap { partition, wanted: found, .. }
            if partition == name && *found == wanted);
        assert!(gap, "{error}");
    }
    // Nothing was read there yet, so nothing is missing.
    log.read(&Position::from([("world".to_owned(), 0)]))
        .unwrap();
}

#[test]
fn commits_are_told_to_the_group() {
    use rdkafka::consumer::Consumer as _;

    let (_cluster, config) = cluster();
    write(&config, 0..50);
    let log = KafkaLog::new(&config).unwrap();
    let partitions = log.read(&Position::new()).unwrap();
    let mut position = Position::new();
    for (name, records) in partitions {
        let read = records.count() as u64;
        position.insert(name, read);
    }
    log.tell_committed(&position);
    let watcher: rdkafka::consumer::BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers[0])
        .set("group.id", &config.group)
        .create()
        .unwrap();
    let mut asked = rdkafka::TopicPartitionList::new();
    (0..PARTITIONS).for_each(|partition| {
        asked.add_partition(TOPIC, partition);
    });
    // A commit takes its time to arrive.
    let patience = std::time::Duration::from_secs(10);
    let started = std::time::Instant::now();
    loop {
        let found = watcher.committed_offsets(asked.clone(), patience).unwrap();
        let told = |(name, next): (&String, &u64)| {
            let partition = name.strip_prefix("events-").unwrap().parse().unwrap();
            let told = found.find_partition(TOPIC, partition).unwrap().offset();
            told == rdkafka::Offset::Offset(*next as i64)
        };
        if position.iter().all(told) {
            break;
        }
        assert!(
            started.elapsed() < patience,
            "the group has {found:?}, wanted {position:?}"
        );
    }
}

#[test]
fn a_cluster_that_goes_away_is_a_clear_error() {
    let (cluster, mut config) = cluster();
    write(&config, 0..20);
    config.timeout_seconds = 1;
    let log = KafkaLog::new(&config).unwrap();
    let mut writer = log.writer("test").unwrap();
    for broker in [1, 2] {
        cluster.broker_down(broker).unwrap();
    }
    writer.append_event(&event(1)).unwrap();
    for error in [
        writer.sync().unwrap_err(),
        log.read(&Position::new()).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, LogError::Kafka { .. }), "{text}");
        assert!(
            text.contains(&config.brokers[0]) && text.contains(TOPIC),
            "{text}"
        );
    }
}

#[test]
fn a_missing_topic_and_wrong_settings_say_what_to_do() {
    let (_cluster, config) = cluster();
    let refused = |change: &dyn Fn(&mut KafkaConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let opened = KafkaLog::new(&config).and_then(|log| log.writer("test").map(drop));
        opened.unwrap_err().to_string()
    };
    let set = |name: &'static str, value: &'static str| {
        move |config: &mut KafkaConfig| {
            config.settings.insert(name.to_owned(), value.to_owned());
        }
    };
    let text = refused(&|config| config.brokers.clear());
    assert!(text.contains("`kafka.brokers`"), "{text}");
    let text = refused(&set("acks", "0"));
    assert!(text.contains("`kafka.settings.\"acks\"`"), "{text}");
    let text = refused(&set("sasl.password", "${MARQUEE_NO_SUCH_VARIABLE}"));
    assert!(text.contains("MARQUEE_NO_SUCH_VARIABLE"), "{text}");
    let text = refused(&set("no.such.setting", "1"));
    assert!(text.contains("no.such.setting"), "{text}");
}
