//! A log on Kafka gives the table that segments give, however often the pipeline is started between.

mod support;

use cli::Layout;
use pipeline::process::{self, AtEnd, EventsReport, PipelineConfig, Progress, fault::Fault};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use support::{config, log_events, rows};
use wire::{
    events::Event,
    log::{KafkaConfig, Log, LogWriter, SegmentLog, Transport},
};

fn process(config: &PipelineConfig, layout: &Layout, at_end: AtEnd) -> EventsReport {
    let (fault, progress) = (Fault::default(), Progress::hidden());
    process::run(config, layout, at_end, &fault, &progress).unwrap()
}

fn append(writer: &mut dyn LogWriter, events: &[Event]) {
    for (at, event) in events.iter().enumerate() {
        writer.append_event(event).unwrap();
        if at % 40 == 0 {
            writer.append_event(event).unwrap();
        }
        if at % 90 == 0 {
            writer.append_keyed("", b"\xff\xff not an event").unwrap();
        }
    }
    writer.sync().unwrap();
}

#[test]
fn kafka_and_segments_give_the_same_table() {
    let events = log_events();
    let (halves, folders) = (
        events.split_at(events.len() / 2),
        [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()],
    );
    let [of_segments, of_kafka] = folders.each_ref().map(|it| Layout::at(it.path()));

    let mut writer = SegmentLog::at(&of_segments.log()).writer("all").unwrap();
    for half in [halves.0, halves.1] {
        append(&mut *writer, half);
    }
    let wanted = process(&config(), &of_segments, AtEnd::Flush);

    let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(3).unwrap();
    cluster.create_topic("events", 4, 3).unwrap();
    let log = Transport::Kafka(KafkaConfig {
        brokers: vec![cluster.bootstrap_servers()],
        topic: "events".to_owned(),
        ..KafkaConfig::default()
    });
    let mut writer = log.open(&of_kafka.log()).unwrap().writer("all").unwrap();
    let config = PipelineConfig { log, ..config() };
    for (half, at_end) in [(halves.0, AtEnd::Wait), (halves.1, AtEnd::Flush)] {
        append(&mut *writer, half);
        process(&config, &of_kafka, at_end);
    }
    // Nothing is left to do.
    let found = process(&config, &of_kafka, AtEnd::Wait);
    assert_eq!(found.counters, wanted.counters);
    assert!(found.counters.duplicates > 0 && found.batches > 8);
    let table = |layout: &Layout| rows(&layout.table("impressions"));
    assert_eq!(table(&of_kafka), table(&of_segments));
    assert!(!of_kafka.log().exists());
}
