//! What names a child, or anyone else of whom nothing may be kept, leaves the pipeline on no way.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Float32Type,
    json::LineDelimitedWriter,
};
use cli::Layout;
use features::{
    Fact, FeatureSet, Known,
    facts::request_facts,
    online::{Online, OnlineConfig},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline::{
    feature_verbs,
    process::{self, AtEnd, Progress, audit, fault::Fault},
};
use prost::Message;
use support::{DAY_US, config, log_events, rows};
use wire::{
    events::{AgeBand, Context, Event, FeatureSnapshot, event::Payload},
    gate::Subject,
    log::{LogWriter, SegmentWriter},
};

/// In every id and text that must not get out.
const SECRET: &str = "hush-7c1f";
/// A value of a personal feature that a restricted person's event brings along.
const LEAKED: f32 = 4_242.5;
const LEAKED_ID: u64 = 0xC0FF_EE00_C0FF_EE00;

/// Who is restricted, and how an event says so.
fn restricted(at: usize, event: &mut Event) {
    event.user_id = format!("{SECRET}-{}", at % 3);
    event.age_band = match at % 3 {
        0 => AgeBand::Under13,
        1 => AgeBand::Unknown,
        _ => AgeBand::AgeBand13plus,
    }
    .into();
    if let Some(Payload::ImpressionServed(served)) = &mut event.payload {
        let context = served.context.get_or_insert_default();
        let attributes = [("nickname", SECRET), ("consent", "false")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        context.attributes.extend(attributes);
    }
}

/// The events of `log_events`, of which every third person is restricted. What has no context cannot
/// say that there is no consent, and is left out where it would.
fn events() -> (Vec<Event>, BTreeSet<String>) {
    let mut events = log_events();
    let mut impressions = BTreeSet::new();
    for event in &mut events {
        let Some(at) = event
            .user_id
            .strip_prefix('u')
            .and_then(|at| at.parse::<usize>().ok())
        else {
            continue;
        };
        let served = matches!(event.payload, Some(Payload::ImpressionServed(_)));
        if at < 3 && (served || at < 2) {
            restricted(at, event);
            if let Some(Payload::ImpressionServed(served)) = &event.payload {
                impressions.insert(served.impression_id.clone());
            }
        } else if at == 2 {
            event.user_id.clear();
        }
    }
    (events, impressions)
}

/// A row as an ad server logs it, with every personal feature told.
fn telltale(set: &FeatureSet) -> FeatureSnapshot {
    let (dense, sparse) = (set.schema().dense.len(), set.schema().sparse.len());
    FeatureSnapshot {
        spec_digest: set.digest().to_owned(),
        dense: vec![LEAKED; dense],
        sparse_offsets: (0..=sparse as u32).collect(),
        sparse_ids: vec![LEAKED_ID; sparse],
        ..FeatureSnapshot::default()
    }
}

struct Run {
    _temporary: tempfile::TempDir,
    layout: Layout,
    set: FeatureSet,
    impressions: BTreeSet<String>,
}

/// A log that another program wrote, with nothing taken out, processed and published.
fn run() -> Run {
    let temporary = tempfile::tempdir().unwrap();
    let layout = Layout::at(temporary.path());
    let set = FeatureSet::load(&support::features()).unwrap();
    let (mut events, impressions) = events();
    for event in &mut events {
        if let Some(Payload::ImpressionServed(served)) = &mut event.payload
            && impressions.contains(&served.impression_id)
            && served.impression_id.len() % 2 == 0
        {
            served.snapshot = Some(telltale(&set));
        }
    }
    // One that is refused, one that waits for an impression that never comes, one sent twice.
    let child = |mut event: Event| {
        restricted(0, &mut event);
        event
    };
    let time_us = events.last().unwrap().ingest_time_us;
    let lost = |event: &&Event| matches!(event.payload, Some(Payload::Click(_)));
    let mut waits = child(events.iter().find(lost).unwrap().clone());
    waits.event_id = "waits".to_owned();
    (waits.event_time_us, waits.ingest_time_us) = (time_us, time_us);
    if let Some(Payload::Click(click)) = &mut waits.payload {
        click.impression_id = "never served".to_owned();
    }
    let mut refused = waits.clone();
    (refused.event_id, refused.event_time_us) = ("refused".to_owned(), time_us - 40 * DAY_US);
    let twice = child(events[events.len() / 2].clone());
    events.extend([waits, refused, twice.clone(), twice]);

    let mut writer = SegmentWriter::open(&layout.log(), "foreign").unwrap();
    for event in &events {
        writer.append(&event.encode_to_vec()).unwrap();
    }
    writer.sync().unwrap();
    let (config, progress) = (config(), Progress::hidden());
    process::run(&config, &layout, AtEnd::Wait, &Fault::default(), &progress).unwrap();
    feature_verbs::materialize(&config, &layout).unwrap();
    Run {
        _temporary: temporary,
        layout,
        set,
        impressions,
    }
}

/// Every file under a folder, the log that was given to us left out.
fn files(folder: &Path, log: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path == log {
            continue;
        }
        match path.is_dir() {
            true => found.extend(files(&path, log)),
            false => found.push(path),
        }
    }
    found
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// What stands in a file, decoded where it is compressed.
fn told(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    if path.extension().is_some_and(|it| it == "parquet") {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap());
        for batch in reader.unwrap().build().unwrap() {
            let mut writer = LineDelimitedWriter::new(&mut bytes);
            writer.write(&batch.unwrap()).unwrap();
            writer.finish().unwrap();
        }
    }
    bytes
}

#[test]
fn no_file_holds_what_names_a_restricted_person() {
    let run = run();
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut kinds = BTreeMap::<String, usize>::new();
    for path in files(&run.layout.root, &run.layout.log()) {
        let told = told(&path);
        let shown = path.display();
        assert!(
            !contains(&told, SECRET),
            "{shown} names one who is restricted"
        );
        assert!(
            !contains(&told, &hex),
            "{shown} names one who is restricted, in hex"
        );
        assert!(
            !contains(&told, "nickname"),
            "{shown} has a restricted person's attributes"
        );
        let below = path.strip_prefix(&run.layout.root).unwrap();
        let kind = below.components().next().unwrap().as_os_str();
        *kinds
            .entry(kind.to_string_lossy().into_owned())
            .or_default() += 1;
    }
    // Every way that there is was looked at.
    let ways = [
        "archive",
        "audit",
        "dead_letters",
        "facts",
        "online",
        "registry",
        "state",
        "tables",
    ];
    for way in ways {
        assert!(kinds.contains_key(way), "nothing in {way}: {kinds:?}");
    }
    // And the search finds who is not restricted.
    let table = files(&run.layout.facts("impressions"), &run.layout.log());
    assert!(table.iter().any(|path| contains(&told(path), "\"u5\"")));
}

#[test]
fn a_logged_row_of_one_who_is_restricted_keeps_no_personal_value() {
    let run = run();
    let rows = rows(&run.layout.table("impressions"));
    let ids = rows
        .column_by_name("impression_id")
        .unwrap()
        .as_string::<i32>();
    let (mut seen, mut logged) = (0, 0);
    for row in (0..rows.num_rows()).filter(|row| run.impressions.contains(ids.value(*row))) {
        seen += 1;
        for feature in &run.set.spec().features {
            let told = cell(&rows, &feature.name, row);
            let leaked = told.contains(&LEAKED.to_string())
                || told.contains(&(LEAKED_ID as i64).to_string())
                || told.contains(&LEAKED_ID.to_string());
            assert!(
                feature.child_safe || !leaked,
                "{} holds {told}",
                feature.name
            );
            logged += usize::from(feature.child_safe && leaked);
        }
    }
    assert!(seen > 50, "{seen} rows of restricted people");
    assert!(logged > 50, "{logged} logged values that children may have");
}

fn cell(rows: &RecordBatch, feature: &str, row: usize) -> String {
    let column = |prefix| rows.column_by_name(&format!("{prefix}{feature}"));
    let column = column("d_").or_else(|| column("s_")).unwrap().slice(row, 1);
    match column.as_primitive_opt::<Float32Type>() {
        Some(values) => values.value(0).to_string(),
        None => format!("{column:?}"),
    }
}

#[test]
fn the_online_store_knows_no_entity_of_one_who_is_restricted() {
    let run = run();
    let online = Online::new(&OnlineConfig::Embedded, &run.layout.online()).unwrap();
    let store = online.open(run.set.digest()).unwrap();
    let context = Context {
        experience_id: "e1".to_owned(),
        genre: "racing".to_owned(),
        ..Context::default()
    };
    let ads: Vec<_> = (0..4)
        .map(|at| {
            let facts = [
                ("campaign_id", format!("c{at}")),
                ("category", format!("category of c{at}")),
            ];
            let facts = facts.map(|(name, text)| (name.to_owned(), Fact::Text(text)));
            run.set.bind_ad(&facts.into())
        })
        .collect();
    // As somebody who lies about the age would ask.
    let known = |user: &str| {
        let subject = Subject::admit(user.to_owned(), AgeBand::AgeBand13plus, true);
        let facts = request_facts(&subject, AgeBand::AgeBand13plus, &context, None, 0);
        let request = run.set.bind_request(&facts);
        let ads: Vec<_> = ads.iter().collect();
        let keys = run.set.keys(&request, &ads);
        let (mut known, until) = (Known::new(), Instant::now() + Duration::from_secs(60));
        store.read(&keys, until, &mut known).unwrap();
        known.values().flatten().count()
    };
    let of_anybody = known("nobody ever");
    assert!(known("u5") > of_anybody);
    for at in 0..3 {
        assert_eq!(known(&format!("{SECRET}-{at}")), of_anybody);
    }
}

#[test]
fn the_audit_log_counts_what_was_done_and_holds() {
    let run = run();
    let folder = run.layout.audit("impressions");
    let batches = fs::read_dir(&folder).unwrap().count() as u64;
    assert!(batches > 3);
    let verified = audit::verify(&folder, batches).unwrap();
    let by_why = &verified.counts.restricted;
    let whys: Vec<&str> = by_why.keys().map(String::as_str).collect();
    assert_eq!(whys, ["no_consent", "no_id", "under13", "unknown_age"]);
    assert!(by_why["under13"]["impression_served"] > 10);
    assert!(verified.counts.ids_dropped > 100);
    assert!(verified.counts.values_withheld > 100);
}

#[test]
fn the_log_that_we_write_never_held_them() {
    let temporary = tempfile::tempdir().unwrap();
    let layout = Layout::at(temporary.path());
    support::write_log(&layout, &events().0);
    let files = files(&layout.log(), Path::new(""));
    assert!(!files.is_empty());
    for path in files {
        assert!(!contains(&told(&path), SECRET), "{}", path.display());
    }
}
