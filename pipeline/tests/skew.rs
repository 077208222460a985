//! What servers logged against what is computed again.

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float32Type, Int64Type},
};
use cli::Layout;
use features::{
    EntityKey, EntityState, FeatureBatch, FeatureSet, Known, StateSource,
    facts::{ad_facts, request_facts},
    online::{Online, OnlineConfig, OnlineStore},
    skew::{Exceeded, RELATIVE_TOLERANCE},
};
use pipeline::{
    feature_verbs,
    process::{
        self, AtEnd, PipelineConfig, Progress,
        fault::Fault,
        table::{dense_name, sparse_name},
    },
    skew::{Skew, SkewError, SkewReport},
};
use registry::{Kind, Registry};
use support::{config, features, log_events, rows, write_log};
use tempfile::TempDir;
use wire::{
    catalogue::Catalogue,
    events::{Event, FeatureSnapshot, event::Payload},
    gate::Subject,
};

/// A log whose impressions all arrive in time.
fn in_time() -> Vec<Event> {
    let mut events = log_events();
    events.retain(|event| event.ingest_time_us == event.event_time_us);
    events
}

fn processed(events: &[Event]) -> (TempDir, Layout) {
    let temporary = tempfile::tempdir().unwrap();
    let layout = Layout::at(temporary.path());
    write_log(&layout, events);
    let (fault, progress) = (Fault::default(), Progress::hidden());
    process::run(&config(), &layout, AtEnd::Flush, &fault, &progress).unwrap();
    (temporary, layout)
}

/// The features of every row, as a server would have logged them.
fn snapshots(rows: &RecordBatch, set: &FeatureSet) -> HashMap<String, FeatureSnapshot> {
    let schema = set.schema();
    let ids = rows["impression_id"].as_string::<i32>();
    let snapshot = |row: usize| {
        let mut batch = FeatureBatch::new(schema);
        batch.num_rows = 1;
        for field in &schema.dense {
            let values = &rows[dense_name(&field.name).as_str()];
            batch
                .dense
                .push(values.as_primitive::<Float32Type>().value(row));
        }
        for (field, ids) in schema.sparse.iter().zip(&mut batch.sparse) {
            let values = &rows[sparse_name(&field.name).as_str()];
            let of_row = match values.as_list_opt::<i32>() {
                Some(lists) => lists.value(row),
                None => values.slice(row, 1),
            };
            let of_row = of_row.as_primitive::<Int64Type>().values();
            let of_row: Vec<u64> = of_row.iter().map(|id| id.cast_unsigned()).collect();
            ids.push_row(&of_row);
        }
        batch.snapshot(0, set.digest())
    };
    let rows = (0..ids.len()).map(|row| (ids.value(row).to_owned(), snapshot(row)));
    rows.collect()
}

/// The log as it would be had a server logged the features, each after `change`.
fn served(change: impl Fn(usize, &mut FeatureSnapshot)) -> Vec<Event> {
    let mut events = in_time();
    let (_temporary, layout) = processed(&events);
    let set = FeatureSet::load(&features()).unwrap();
    let mut snapshots = snapshots(&rows(&layout.table("impressions")), &set);
    let mut at = 0;
    for event in &mut events {
        if let Some(Payload::ImpressionServed(served)) = &mut event.payload
            && let Some(mut snapshot) = snapshots.remove(&served.impression_id)
        {
            change(at, &mut snapshot);
            served.snapshot = Some(snapshot);
            at += 1;
        }
    }
    assert!(at > 200);
    events
}

fn skew(layout: &Layout, config: &PipelineConfig) -> Result<SkewReport, SkewError> {
    let skew = Skew {
        layout,
        config,
        days: i32::MIN..=i32::MAX,
        baseline: None,
        memory_bytes: 256 << 20,
        threads: 2,
    };
    skew.run(|_, _| ())
}

#[test]
fn what_was_served_as_defined_does_not_differ_in_any_row() {
    let (_temporary, layout) = processed(&served(|_, _| ()));
    let report = skew(&layout, &config()).unwrap();
    assert!(report.rows > 200);
    for feature in &report.features {
        assert_eq!(feature.served.rows, report.rows, "{}", feature.feature);
        assert_eq!(feature.served.differing, 0, "{feature:?}");
        assert_eq!(feature.exceeded, [], "{feature:?}");
    }
}

/// The log of a platform whose server reads an online store that is published now and then, and what
/// that has made of it. `tells` says whether it logs when the store was made.
fn served_from_a_store(tells: bool) -> (TempDir, Layout) {
    const ROUNDS: usize = 6;
    let temporary = tempfile::tempdir().unwrap();
    let layout = Layout::at(temporary.path());
    let set = FeatureSet::load(&features()).unwrap();
    let online = Online::new(&OnlineConfig::Embedded, &layout.online()).unwrap();
    let process = |at_end| {
        let (fault, progress) = (Fault::default(), Progress::hidden());
        process::run(&config(), &layout, at_end, &fault, &progress).unwrap();
    };
    let mut events = in_time();
    let size = events.len().div_ceil(ROUNDS);
    let mut logged = 0;
    for (round, events) in events.chunks_mut(size).enumerate() {
        if round > 0 {
            feature_verbs::materialize(&config(), &layout).unwrap();
            let store = online.open(set.digest()).unwrap();
            let catalogue = catalogue(&layout);
            for event in &mut *events {
                logged += serve(&set, &store, &catalogue, event, tells) as usize;
            }
        }
        write_log(&layout, events);
        process(AtEnd::Wait);
    }
    process(AtEnd::Flush);
    assert!(logged > 200, "{logged}");
    (temporary, layout)
}

fn catalogue(layout: &Layout) -> Catalogue {
    let registry = Registry::open(&layout.registry()).unwrap();
    let newest = registry::block_on(registry.newest(Kind::Catalogue)).unwrap();
    let folder = registry::block_on(registry.fetch(&newest.digest)).unwrap();
    Catalogue::load(&folder).unwrap()
}

/// What a server knows of a request's entities.
struct Stored(Known, i64);

impl StateSource for Stored {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.0.state(key)
    }

    fn as_of_us(&self) -> Option<i64> {
        Some(self.1)
    }
}

/// Logs the features of an impression as a server does; whether it is one.
fn serve(
    set: &FeatureSet,
    store: &OnlineStore,
    catalogue: &Catalogue,
    event: &mut Event,
    tells: bool,
) -> bool {
    let (time_us, age_band) = (event.event_time_us, event.age_band());
    let Some(Payload::ImpressionServed(served)) = &mut event.payload else {
        return false;
    };
    let subject = Subject::admit(event.user_id.clone(), age_band, true);
    let context = served.context.get_or_insert_default();
    let scene = catalogue.scenes.get(&context.scene_id);
    let request = set.bind_request(&request_facts(&subject, age_band, context, scene, time_us));
    let creative = &catalogue.creatives[&served.creative_id];
    let campaign = &catalogue.campaigns[&creative.campaign_id];
    let ad = set.bind_ad(&ad_facts(creative, campaign));
    let (mut known, until) = (Known::new(), Instant::now() + Duration::from_secs(60));
    store
        .read(&set.keys(&request, &[&ad]), until, &mut known)
        .unwrap();
    let states = Stored(known, store.version().as_of_us);
    let mut row = FeatureBatch::new(set.schema());
    set.evaluate(&request, &[&ad], &states, time_us, &mut row);
    let mut snapshot = row.snapshot(0, set.digest());
    if tells {
        snapshot.store_as_of_us = states.1;
    }
    served.snapshot = Some(snapshot);
    true
}

#[test]
fn what_was_served_from_a_store_that_lags_is_computed_again_as_of_what_it_had() {
    let differing = |tells| {
        let (_temporary, layout) = served_from_a_store(tells);
        let report = skew(&layout, &config()).unwrap();
        assert!(report.rows > 200);
        let differing = report.features.iter();
        let differing = differing.map(|it| (it.feature.clone(), it.served.differing));
        differing.filter(|(_, rows)| *rows > 0).collect::<Vec<_>>()
    };
    assert_eq!(differing(true), []);
    // It is not for want of a lag.
    let lagging = differing(false);
    assert!(lagging.len() > 3, "{lagging:?}");
}

#[test]
fn every_row_that_was_served_something_else_is_counted_and_the_worst_is_named() {
    let set = FeatureSet::load(&features()).unwrap();
    let dense = |name: &str| {
        let fields = &set.schema().dense;
        fields.iter().position(|it| it.name == name).unwrap()
    };
    let ctr = dense("user_ctr");
    // A server whose counters stand still for some, and one row that is far off.
    let events = served(|at, snapshot| match at {
        7 => snapshot.dense[ctr] = 90.0,
        _ if at % 10 == 0 => snapshot.dense[ctr] *= 1.0 + 3.0 * RELATIVE_TOLERANCE as f32,
        _ => {}
    });
    let (_temporary, layout) = processed(&events);
    let report = skew(&layout, &config()).unwrap();
    let over: Vec<&str> = report.exceeded().map(|it| it.feature.as_str()).collect();
    assert_eq!(over, ["user_ctr"]);
    let found = &report.features[0];
    assert_eq!(found.exceeded, [Exceeded::Differing]);
    assert_eq!(found.served.differing, report.rows.div_ceil(10) + 1);
    let with_it = |event: &&Event| {
        matches!(
            &event.payload,
            Some(Payload::ImpressionServed(served))
                if served.snapshot.as_ref().is_some_and(|it| it.dense[ctr] == 90.0)
        )
    };
    let Some(Payload::ImpressionServed(worst)) = &events.iter().find(with_it).unwrap().payload
    else {
        panic!("an impression");
    };
    assert_eq!(found.example.as_deref(), Some(worst.impression_id.as_str()));
}

#[test]
fn a_skew_ends_the_program_as_a_refused_gate_and_leaves_page_and_gauges() {
    let digests = FeatureSet::load(&features()).unwrap();
    let column = digests.schema().dense.len() - 1;
    let events = served(|_, snapshot| snapshot.dense[column] += 5.0);
    let (_temporary, layout) = processed(&events);
    let run = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_marquee-pipeline"))
            .args(["features", "skew", "--set"])
            .arg(format!("features={}", features().display()))
            .arg("--root")
            .arg(&layout.root)
            .args(more)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .output()
            .unwrap()
    };
    let ended = run(&[]);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{errors}");
    let name = &digests.schema().dense[column].name;
    assert!(
        errors.contains(&format!("above the limits of the spec: {name}")),
        "{errors}"
    );

    let read = |file: &str| fs::read_to_string(layout.reports().join(file)).unwrap();
    let page = read("skew.html");
    assert!(page.contains("1 feature exceeds its limits"));
    assert!(!page.contains("http"));
    let gauges = read("skew.prom");
    let gauge = |name: &str, of: &str| {
        format!("marquee_feature_{name}{{feature=\"{of}\",table=\"impressions\"}}")
    };
    assert!(
        gauges.contains(&format!("{} 1\n", gauge("differing_ratio", name))),
        "{gauges}"
    );
    assert!(gauges.contains(&format!("{} 0\n", gauge("skew_exceeded", "user_ctr"))));
    let names: BTreeSet<&str> = gauges
        .lines()
        .filter(|it| it.starts_with("# TYPE"))
        .collect();
    assert_eq!(names.len(), 6);

    // The last day against the first: what people had done by then was another thing.
    let json = run(&[
        "--json",
        "--from",
        "2026-01-03",
        "--baseline-to",
        "2026-01-01",
    ])
    .stdout;
    let report: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(report["days"][0], "2026-01-03");
    assert_eq!(report["baseline"][1], "2026-01-01");
    let ended = run(&["--from", "2025-01-01", "--to", "2025-01-02"]);
    assert_eq!(ended.status.code(), Some(1));
}

#[test]
fn there_must_be_something_to_compare() {
    let (_temporary, layout) = processed(&in_time());
    let error = skew(&layout, &config()).unwrap_err();
    assert!(matches!(error, SkewError::NothingServed { .. }), "{error}");

    let other = layout.root.join("other.toml");
    let text = fs::read_to_string(features()).unwrap();
    fs::write(
        &other,
        text.replacen("window = \"7d\"", "window = \"6d\"", 1),
    )
    .unwrap();
    let changed = PipelineConfig {
        features: other,
        ..config()
    };
    let error = skew(&layout, &changed).unwrap_err();
    assert!(matches!(error, SkewError::OtherFeatures { .. }), "{error}");
}
