//! One spec, five computations, one answer: DataFusion over tables, the incremental aggregates, the
//! online store at request time, Spark and Flink, on the same events: some delivered twice, some late, some
//! from clocks that are ahead.
//!
//! Spark and Flink are the real ones, which `launch/setup-engines` installs.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type},
    json::LineDelimitedWriter,
};
use features::{
    AdFacts, Aggregates, Counted, FeatureBatch, FeatureSet, FeatureSpec, Known, RequestFacts,
    SourceEvent, StateSource,
    facts::{ad_facts, request_facts},
    online::{Online, OnlineConfig},
    spec::Kind,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use pipeline::{
    facts::{FactEvents, FactRequests},
    sql::{self, Batch, Engine, Knowledge, Source},
};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use wire::{
    catalogue::{Campaign, Creative, Scene, Targeting},
    events::{AgeBand, Context},
    gate::Subject,
};

const EVENTS: usize = 210_000;
const REQUESTS: usize = 2_500;
const DAYS: i64 = 10;
const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;
const START_US: i64 = 490_000 * HOUR_US;
/// Requests reach the pipeline up to so long after their time.
const HORIZON_US: i64 = 10 * MINUTE_US;

/// What the shipped spec has none of.
const MORE_FEATURES: &str = r#"
[facts]
shelf = "list"
weight = "number"

[[feature]]
name = "user_spent_6h"
kind = "dense"
entity = "user"
aggregation = "sum"
source = "conversion"
window = "6h"
key = ["user_id"]
range = [-1.0, 40.0]
freshness = "nearline"
child_safe = false
owner = "test"
version = 1

[[feature]]
name = "category_worth_24h"
kind = "dense"
entity = "ad"
aggregation = "mean"
source = "conversion"
window = "24h"
key = ["category"]
default = -1.0
freshness = "nearline"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "genre_dwell_1h"
kind = "dense"
entity = "context"
aggregation = "mean"
source = "activity"
window = "1h"
key = ["genre"]
transform = "log1p"
freshness = "nearline"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "campaign_categories_24h"
kind = "dense"
entity = "ad"
aggregation = "distinct"
source = "impression"
window = "24h"
key = ["campaign_id"]
value = "user_id"
freshness = "nearline"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "user_scenes_1h"
kind = "sparse"
entity = "user"
aggregation = "last"
source = "impression"
window = "1h"
key = ["user_id"]
value = "scene_id"
last = 3
freshness = "nearline"
child_safe = false
owner = "test"
version = 1

[[feature]]
name = "shelf"
kind = "sparse"
entity = "ad"
expression = "hash(shelf)"
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "weight_x_country"
kind = "sparse"
entity = "cross"
expression = "cross(weight, country, bucketize(weight, [1, 2, 5]))"
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "weight_id"
kind = "sparse"
entity = "ad"
expression = "weight"
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "arithmetic"
kind = "dense"
entity = "ad"
expression = "min(sqrt(weight - 1), 3) / (bid - 2) - max(-weight, day_of_week) * eq(category, country)"
default = 7.5
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "small_logarithm"
kind = "dense"
entity = "ad"
expression = "log1p(weight / 1000000000) + dot(scene_style, creative_style) + eq(genre, genre)"
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "worth_scaled"
kind = "dense"
entity = "ad"
expression = "weight * bid"
transform = "min_max"
range = [-1.5, 4.0]
default = 0.25
freshness = "request"
child_safe = true
owner = "test"
version = 1

[[feature]]
name = "dwell_scaled_6h"
kind = "dense"
entity = "context"
aggregation = "mean"
source = "activity"
window = "6h"
key = ["genre"]
transform = "min_max"
range = [300.0, 500.0]
freshness = "nearline"
child_safe = true
owner = "test"
version = 1
"#;

fn set() -> FeatureSet {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/features.toml");
    let (facts, features) = MORE_FEATURES.split_once("\n\n").unwrap();
    let text = [facts, &fs::read_to_string(shipped).unwrap(), features].join("\n\n");
    FeatureSet::compile(FeatureSpec::parse(&text, "features.toml").unwrap())
}

struct Event {
    id: String,
    counted: Counted,
    request: RequestFacts,
    ad: Option<usize>,
}

struct Request {
    id: String,
    time_us: i64,
    /// When the pipeline hears of it.
    known_us: i64,
    request: RequestFacts,
    ad: usize,
}

/// What happened, in the order in which the platform learnt of it.
struct World {
    set: FeatureSet,
    ads: Vec<AdFacts>,
    events: Vec<Event>,
    requests: Vec<Request>,
}

impl World {
    fn new(set: FeatureSet) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let ads: Vec<AdFacts> = (0..200)
            .map(|ad| set.bind_ad(&ad_of(ad, &mut random)))
            .collect();
        let mut events: Vec<Event> = (0..EVENTS)
            .map(|number| event(number, &set, &mut random))
            .collect();
        // Delivered again, later.
        let again: Vec<Event> = (0..EVENTS / 20)
            .map(|_| {
                let first = &events[random.random_range(0..EVENTS)];
                let mut counted = first.counted;
                counted.known_us += random.random_range(1..HOUR_US);
                Event {
                    id: first.id.clone(),
                    counted,
                    request: first.request.clone(),
                    ad: first.ad,
                }
            })
            .collect();
        events.extend(again);
        events.shuffle(&mut random);
        // No two are learnt of in the same microsecond, so that each engine has them in one order.
        events.sort_by_key(|event| event.counted.known_us);
        for at in 1..events.len() {
            let before = events[at - 1].counted.known_us;
            let known = &mut events[at].counted.known_us;
            *known = (*known).max(before + 1);
        }
        let mut requests: Vec<Request> = (0..REQUESTS)
            .map(|number| {
                let time_us = START_US + random.random_range(0..DAYS * 24 * HOUR_US);
                Request {
                    id: format!("r{number:06}"),
                    time_us,
                    known_us: time_us + random.random_range(0..HORIZON_US),
                    request: request(&set, time_us, &mut random),
                    ad: random.random_range(0..ads.len()),
                }
            })
            .collect();
        requests.sort_by_key(|request| request.known_us);
        Self {
            set,
            ads,
            events,
            requests,
        }
    }

    fn ad(&self, ad: usize) -> &AdFacts {
        &self.ads[ad]
    }

    /// Applies events to aggregates, each id once, until the one that `until` says.
    fn apply<'a>(
        &'a self,
        aggregates: &mut Aggregates,
        seen: &mut HashSet<&'a str>,
        next: &mut usize,
        until: impl Fn(&Counted) -> bool,
    ) {
        while let Some(event) = self
            .events
            .get(*next)
            .filter(|event| !until(&event.counted))
        {
            if seen.insert(&event.id) {
                let ad = event.ad.map(|ad| self.ad(ad));
                aggregates.apply(&self.set, &event.request, ad, event.counted);
            }
            *next += 1;
        }
    }
}

fn event(number: usize, set: &FeatureSet, random: &mut ChaCha8Rng) -> Event {
    let source = match random.random_range(0..100) {
        0..72 => SourceEvent::Impression,
        72..86 => SourceEvent::Click,
        86..92 => SourceEvent::Conversion,
        _ => SourceEvent::Activity,
    };
    let value = match source {
        SourceEvent::Conversion => random.random_range(-5.0..50.0),
        SourceEvent::Activity => f64::from(random.random_range(1..900)),
        _ => 0.0,
    };
    let event_us = START_US + random.random_range(0..DAYS * 24 * HOUR_US);
    let late_us = match random.random_range(0..100) {
        0..2 => random.random_range(0..72 * HOUR_US),
        2..10 => random.random_range(0..2 * HOUR_US),
        // The sender's clock is ahead.
        10..13 => -random.random_range(0..2 * MINUTE_US),
        _ => random.random_range(0..2_000_000),
    };
    let ad = (source != SourceEvent::Activity).then(|| random.random_range(0..200));
    Event {
        id: format!("e{number:07}"),
        counted: Counted {
            source,
            value,
            event_us,
            known_us: event_us + late_us,
        },
        request: request(set, event_us, random),
        ad,
    }
}

/// Somebody somewhere: some are children, some are unknown, some facts are missing.
fn request(set: &FeatureSet, time_us: i64, random: &mut ChaCha8Rng) -> RequestFacts {
    // Few are seen often, and many seldom.
    let user = (random.random::<f64>().powi(3) * 3000.0) as usize;
    let pick = |random: &mut ChaCha8Rng, name: &str, count: usize| match random.random_range(0..20)
    {
        0 => String::new(),
        _ => format!("{name} {}", random.random_range(0..count)),
    };
    let age = match user % 10 {
        0 => AgeBand::Under13,
        1 => AgeBand::Unknown,
        _ => AgeBand::AgeBand13plus,
    };
    let scene = Scene {
        scene_id: pick(random, "scène", 30),
        experience_id: String::new(),
        genre: String::new(),
        picture_digest: String::new(),
        style: (0..8).map(|_| random.random_range(-1.0..1.0)).collect(),
    };
    let context = Context {
        scene_id: scene.scene_id.clone(),
        experience_id: pick(random, "experience", 9),
        genre: pick(random, "genre", 6),
        device: pick(random, "device", 4),
        format: pick(random, "format with a longer name than thirty-two bytes", 3),
        country: pick(random, "country", 8),
        ..Context::default()
    };
    let scene = (!scene.scene_id.is_empty()).then_some(&scene);
    let consent = !user.is_multiple_of(17);
    let user_id = if user % 50 == 7 {
        String::new()
    } else {
        format!("u{user}")
    };
    let subject = Subject::admit(user_id, age, consent);
    set.bind_request(&request_facts(&subject, age, &context, scene, time_us))
}

fn ad_of(ad: usize, random: &mut ChaCha8Rng) -> features::Facts {
    let mut attributes = BTreeMap::new();
    if !ad.is_multiple_of(3) {
        attributes.insert(
            "weight".to_owned(),
            format!("{:.3}", random.random_range(-1.0..9.0)),
        );
        attributes.insert("shelf".to_owned(), format!("top|row {}|left", ad % 7));
    }
    let creative = Creative {
        creative_id: format!("creative {ad}"),
        campaign_id: format!("campaign {}", ad % 40),
        category: if ad.is_multiple_of(23) {
            String::new()
        } else {
            format!("category {}", ad % 20)
        },
        title: String::new(),
        format: "billboard".into(),
        picture_digest: String::new(),
        style: (0..if ad.is_multiple_of(31) { 0 } else { 8 })
            .map(|_| random.random_range(-1.0..1.0))
            .collect(),
        first_seen_us: START_US + random.random_range(-200..100) * HOUR_US,
        attributes: attributes.into_iter().collect(),
    };
    let campaign = Campaign {
        campaign_id: creative.campaign_id.clone(),
        advertiser_id: "a".into(),
        bid_micros: 500_000 * (ad as i64 % 9),
        daily_budget_micros: 1,
        targeting: Targeting::default(),
    };
    ad_facts(&creative, &campaign)
}

/// A request's features in the order of the spec.
#[derive(Debug, Clone, PartialEq)]
enum Value64 {
    Number(f64),
    Ids(Vec<i64>),
}

type Answers = BTreeMap<String, Vec<Value64>>;

fn row(set: &FeatureSet, batch: &FeatureBatch, row: usize) -> Vec<Value64> {
    let mut dense = batch.dense_row(row).iter();
    let mut sparse = batch.sparse.iter();
    let value = |feature: &features::spec::Feature| match feature.kind {
        Kind::Dense => Value64::Number(f64::from(*dense.next().unwrap())),
        Kind::Sparse => {
            let ids = sparse.next().unwrap().row(row);
            Value64::Ids(ids.iter().map(|id| *id as i64).collect())
        }
    };
    set.spec().features.iter().map(value).collect()
}

fn evaluate(world: &World, request: &Request, states: &impl StateSource) -> Vec<Value64> {
    let set = &world.set;
    let mut batch = FeatureBatch::new(set.schema());
    let ad = world.ad(request.ad);
    let counts = set.evaluate(&request.request, &[ad], states, request.time_us, &mut batch);
    assert_eq!(counts.too_late, 0);
    row(set, &batch, 0)
}

/// As the pipeline does it: events and requests in the order in which it hears of them.
fn nearline(world: &World) -> Answers {
    let mut aggregates = Aggregates::default().with_horizon(HORIZON_US);
    let (mut seen, mut next, mut day) = (HashSet::new(), 0, 0);
    let mut answers = Answers::new();
    for request in &world.requests {
        let until = |event: &Counted| event.known_us > request.known_us;
        world.apply(&mut aggregates, &mut seen, &mut next, until);
        if request.known_us / (24 * HOUR_US) != day {
            day = request.known_us / (24 * HOUR_US);
            let grace_us = 24 * HOUR_US;
            aggregates.expire(
                request.known_us - grace_us,
                world.set.longest_window_hours(),
            );
        }
        answers.insert(request.id.clone(), evaluate(world, request, &aggregates));
    }
    answers
}

/// As the server does it: what was published before the request, out of the online store.
fn request_time(world: &World, folder: &Path) -> Answers {
    let mut requests: Vec<&Request> = world.requests.iter().collect();
    requests.sort_by_key(|request| request.time_us);
    let online = Online::new(&OnlineConfig::Embedded, folder).unwrap();
    let mut aggregates = Aggregates::default();
    let (mut seen, mut next) = (HashSet::new(), 0);
    let mut answers = Answers::new();
    for request in requests.into_iter().step_by(REQUESTS / 40) {
        let until = |event: &Counted| event.known_us >= request.time_us;
        world.apply(&mut aggregates, &mut seen, &mut next, until);
        online
            .publish(&world.set, &aggregates, request.time_us)
            .unwrap();
        let store = online.open(world.set.digest()).unwrap();
        let keys = world.set.keys(&request.request, &[world.ad(request.ad)]);
        let (mut states, until) = (Known::new(), Instant::now() + Duration::from_secs(60));
        store.read(&keys, until, &mut states).unwrap();
        answers.insert(request.id.clone(), evaluate(world, request, &states));
    }
    answers
}

fn tables(world: &World) -> [(&'static str, RecordBatch); 2] {
    let mut events = FactEvents::new(&world.set);
    for event in &world.events {
        let ad = event.ad.map(|ad| world.ad(ad));
        events.push(&event.id, event.counted, &event.request, ad);
    }
    let mut requests = FactRequests::new(&world.set);
    for request in &world.requests {
        let ad = world.ad(request.ad);
        requests.push(&request.id, request.time_us, None, &request.request, ad);
    }
    [
        ("fact_events", events.finish()),
        ("fact_requests", requests.finish()),
    ]
}

fn write(folder: &Path, tables: &[(&str, RecordBatch)]) {
    for (name, rows) in tables {
        let file = fs::File::create(folder.join(format!("{name}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(rows).unwrap();
        writer.close().unwrap();
        let file = fs::File::create(folder.join(format!("{name}.json"))).unwrap();
        let mut writer = LineDelimitedWriter::new(std::io::BufWriter::new(file));
        writer.write(rows).unwrap();
        writer.finish().unwrap();
    }
}

async fn batch(world: &World, folder: &Path) -> Answers {
    let scratch = folder.join("scratch");
    fs::create_dir(&scratch).unwrap();
    let batch = Batch {
        events: &[folder.join("fact_events.parquet")],
        requests: &[folder.join("fact_requests.parquet")],
        knowledge: Knowledge::AtRequest,
        scratch: &scratch,
        memory_bytes: 256 << 20,
        threads: 2,
    };
    let path = folder.join("features.parquet");
    let count = batch.write(&world.set, &path).await.unwrap();
    assert_eq!(count, REQUESTS as u64);
    let file = fs::File::open(&path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let mut answers = Answers::new();
    for rows in reader.build().unwrap() {
        let rows = rows.unwrap();
        let ids = arrow::compute::cast(rows.column(0), &DataType::Utf8).unwrap();
        for (at, id) in ids.as_string::<i32>().iter().enumerate() {
            let columns = rows.columns()[1..].iter();
            let answer = columns.map(|column| match column.data_type() {
                DataType::Float64 => {
                    Value64::Number(column.as_primitive::<Float64Type>().value(at))
                }
                DataType::Int64 => Value64::Ids(vec![column.as_primitive::<Int64Type>().value(at)]),
                _ if column.is_null(at) => Value64::Ids(Vec::new()),
                _ => {
                    let ids = column.as_list::<i32>().value(at);
                    Value64::Ids(ids.as_primitive::<Int64Type>().values().to_vec())
                }
            });
            answers.insert(id.unwrap().to_owned(), answer.collect());
        }
    }
    answers
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// Runs a real engine; reads the JSON lines that it has written.
fn engine(world: &World, engine: Engine, folder: &Path) -> Answers {
    let name = serde_json::to_value(engine)
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned();
    let script = folder.join(format!("{name}-script.json"));
    let mut text = sql::script(&world.set, engine, Knowledge::AtRequest);
    if engine == Engine::Flink {
        text = text.over(&Source::Filesystem {
            folder: folder.to_owned(),
        });
    }
    fs::write(&script, serde_json::to_vec(&text).unwrap()).unwrap();
    let venv = root().join(".venv-engines");
    assert!(
        venv.join("marquee-functions.jar").exists(),
        "no Spark and Flink to compare with: run launch/setup-engines"
    );
    let mut command = Command::new(venv.join("bin/python"));
    // The quick compiler alone: Java's second one never earns back what it costs in a run of a minute.
    command.env("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1");
    command
        .arg(root().join(format!("pipeline/engines/{name}.py")))
        .args([&script, folder]);
    if engine == Engine::Flink {
        command.arg(venv.join("marquee-functions.jar"));
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{name}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut answers = Answers::new();
    let files = fs::read_dir(folder.join(name).join("features")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let hidden = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(['.', '_'])
    };
    for path in files.filter(|path| !hidden(path)) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let found: Value = serde_json::from_str(line).unwrap();
            let id = found["request_id"].as_str().unwrap().to_owned();
            let features = world.set.spec().features.iter();
            let answer =
                features.map(
                    |feature| match (&found[sql::column(feature)], feature.kind) {
                        (Value::Number(number), Kind::Dense) => {
                            Value64::Number(number.as_f64().unwrap())
                        }
                        (Value::Number(id), _) => Value64::Ids(vec![id.as_i64().unwrap()]),
                        (Value::Array(ids), _) => {
                            Value64::Ids(ids.iter().map(|id| id.as_i64().unwrap()).collect())
                        }
                        (Value::Null, Kind::Sparse) => Value64::Ids(Vec::new()),
                        other => panic!("{}: {other:?}", feature.name),
                    },
                );
            answers.insert(id, answer.collect());
        }
    }
    answers
}

/// Floats are equal within a millionth, everything else exactly.
fn assert_equal(set: &FeatureSet, name: &str, found: &Answers, wanted: &Answers) {
    assert!(!found.is_empty());
    for (id, found) in found {
        let wanted = &wanted[id];
        for ((feature, found), wanted) in set.spec().features.iter().zip(found).zip(wanted) {
            let equal = match (found, wanted) {
                (Value64::Number(found), Value64::Number(wanted)) => {
                    (found - wanted).abs() <= 1e-6 * wanted.abs()
                }
                _ => found == wanted,
            };
            assert!(
                equal,
                "{name}, request {id}, feature {}: {found:?}, wanted {wanted:?}",
                feature.name
            );
        }
    }
}

/// Every feature takes several values, or the comparison says little.
fn assert_telling(set: &FeatureSet, answers: &Answers) {
    for (at, feature) in set.spec().features.iter().enumerate() {
        let values: HashSet<String> = answers
            .values()
            .map(|row| format!("{:?}", row[at]))
            .collect();
        assert!(values.len() >= 3, "{}: {values:?}", feature.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_computations_of_every_feature_agree() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(set());
    let set = &world.set;
    write(folder.path(), &tables(&world));

    let wanted = nearline(&world);
    assert_eq!(wanted.len(), REQUESTS);
    assert_telling(set, &wanted);
    let online = request_time(&world, &folder.path().join("online"));
    assert_equal(set, "request time", &online, &wanted);
    let batch = batch(&world, folder.path()).await;
    assert_eq!(batch.len(), REQUESTS);
    assert_equal(set, "DataFusion", &batch, &wanted);
    // Both at once: each takes most of a core for a minute.
    let (world, path) = (&world, folder.path());
    let [spark, flink] = std::thread::scope(|scope| {
        let run = |of| scope.spawn(move || engine(world, of, path));
        [run(Engine::Spark), run(Engine::Flink)].map(|found| found.join().unwrap())
    });
    for (name, found) in [("Spark", spark), ("Flink", flink)] {
        assert_eq!(found.len(), REQUESTS, "{name}");
        assert_equal(set, name, &found, &wanted);
    }
}

#[test]
fn flink_takes_the_statements_for_topics() {
    const TAKE: &str = "
import json, sys
from pyflink.table import EnvironmentSettings, TableEnvironment

flink = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
for statement in json.load(sys.stdin)['sources']:
    flink.execute_sql(statement)
for table in ('fact_events', 'fact_requests'):
    print(flink.execute_sql(f'SHOW CREATE TABLE {table}').collect().next()[0])
";
    let script = sql::script(&set(), Engine::Flink, Knowledge::AtRequest);
    let topics: Source = "kafka:a:9092,b:9092/ads.".parse().unwrap();
    let script = serde_json::to_vec(&script.over(&topics)).unwrap();
    let mut python = Command::new(root().join(".venv-engines/bin/python"))
        .args(["-c", TAKE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(&script).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for told in [
        "`known_us` BIGINT",
        "`store_as_of_us` BIGINT",
        "'connector' = 'kafka'",
        "'topic' = 'ads.fact_events'",
        "'topic' = 'ads.fact_requests'",
        "'properties.bootstrap.servers' = 'a:9092,b:9092'",
    ] {
        assert!(text.contains(told), "`{told}` in {text}");
    }
}
