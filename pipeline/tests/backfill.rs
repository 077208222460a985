//! Features computed for days past are those that would have been computed then.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::Float32Type,
};
use cli::Layout;
use features::FeatureSpec;
use pipeline::{
    backfill::{
        Backfill, BackfillError, DayDone, Values,
        migrate::{MigrateError, Migrated, Migration},
    },
    facts::FactFiles,
    process::{self, AtEnd, PipelineConfig, Progress, fault::Fault, state},
    sql::Knowledge,
};
use support::{config, log_events, rows, write_log};
use wire::events::{Event, event::Payload};

/// What a pipeline does with a log.
struct World {
    _temporary: tempfile::TempDir,
    layout: Layout,
}

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let layout = Layout::at(temporary.path());
        Self {
            _temporary: temporary,
            layout,
        }
    }

    /// Processes what has arrived; gives the number of the last batch.
    fn process(&self, config: &PipelineConfig, events: &[Event], at_end: AtEnd) -> u64 {
        write_log(&self.layout, events);
        let progress = Progress::hidden();
        let report = process::run(config, &self.layout, at_end, &Fault::default(), &progress);
        report.unwrap().batches
    }

    fn backfill(
        &self,
        committed: u64,
        spec: &FeatureSpec,
        features: &[&str],
    ) -> Result<Vec<DayDone>, BackfillError> {
        let features: Vec<String> = features.iter().map(|name| (*name).to_owned()).collect();
        let scratch = self.layout.features("impressions");
        let backfill = Backfill {
            facts: &FactFiles::at(&self.layout.facts("impressions")),
            committed,
            values: &Values::at(&scratch),
            spec,
            features: &features,
            days: i32::MIN..=i32::MAX,
            knowledge: Knowledge::AtRequest,
            scratch: &scratch,
            memory_bytes: 64 << 20,
            threads: 1,
        };
        let days = backfill.days()?;
        days.into_iter().map(|day| backfill.day(day)).collect()
    }

    fn migrate(&self, config: &PipelineConfig, to: &str) -> Result<Migrated, MigrateError> {
        let migration = Migration {
            layout: &self.layout,
            config,
            to,
            memory_bytes: 64 << 20,
            threads: 1,
        };
        migration.run(|_, _| {})
    }
}

/// The tests' spec after a change of each kind: one gone, one of another meaning, some new.
fn new_spec(folder: &Path) -> PathBuf {
    let text = fs::read_to_string(support::features()).unwrap();
    let replaced = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let at = text.find("[[feature]]\nname = \"dwell\"").unwrap();
    let after = at + text[at + 1..].find("[[feature]]").unwrap() + 1;
    let text = format!("{}{}", &text[..at], &text[after..]);
    let text = replaced(text, "prior = [1.0, 10.0]", "prior = [2.0, 10.0]");
    let text = replaced(text, "version = 1", "version = 2");
    let path = folder.join("new.toml");
    fs::write(&path, format!("{text}{}", NEW)).unwrap();
    path
}

const NEW: &str = r#"
[[feature]]
name = "genre_dwell"
kind = "dense"
entity = "user"
aggregation = "sum"
source = "activity"
key = ["user_id", "genre"]
window = "48h"
freshness = "nearline"
child_safe = false
owner = "tests"
version = 1

[[feature]]
name = "recent_creatives"
kind = "sparse"
entity = "user"
aggregation = "last"
source = "impression"
key = ["user_id"]
value = "creative_id"
window = "24h"
last = 4
freshness = "nearline"
child_safe = false
owner = "tests"
version = 1

[[feature]]
name = "placement"
kind = "sparse"
entity = "context"
expression = "placement_id"
freshness = "request"
child_safe = true
owner = "tests"
version = 1

[[feature]]
name = "log_bid"
kind = "dense"
entity = "ad"
expression = "log1p(bid)"
freshness = "request"
child_safe = true
owner = "tests"
version = 1
"#;

/// Impressions that the pipeline saw so late that it did not know any more what was known then.
fn late(events: &[Event]) -> BTreeSet<String> {
    let of = |event: &Event| match &event.payload {
        Some(Payload::ImpressionServed(served)) => Some(served.impression_id.clone()),
        _ => None,
    };
    let late = events.iter();
    late.filter(|event| event.ingest_time_us > event.event_time_us)
        .filter_map(of)
        .collect()
}

fn ids<'a>(rows: &'a RecordBatch, column: &str) -> &'a StringArray {
    rows.column_by_name(column).unwrap().as_string()
}

fn assert_equal(name: &str, row: usize, found: &ArrayRef, wanted: &ArrayRef) {
    let (found, wanted) = (found.slice(row, 1), wanted.slice(row, 1));
    if let (Some(found), Some(wanted)) = (
        found.as_primitive_opt::<Float32Type>(),
        wanted.as_primitive_opt::<Float32Type>(),
    ) {
        let (found, wanted) = (found.value(0), wanted.value(0));
        let bound = 1e-6 * wanted.abs().max(1e-6);
        assert!(
            (found - wanted).abs() <= bound,
            "{name}: {found}, wanted {wanted}"
        );
        return;
    }
    assert_eq!(&found, &wanted, "{name} of row {row}");
}

#[test]
fn a_feature_of_the_past_is_what_the_pipeline_computed_then() {
    let (world, events) = (World::new(), log_events());
    let committed = world.process(&config(), &events, AtEnd::Flush);
    let spec = FeatureSpec::load(&support::features()).unwrap();
    let names: Vec<&str> = spec.features.iter().map(|it| it.name.as_str()).collect();
    let done = world.backfill(committed, &spec, &names).unwrap();
    assert_eq!(done.len(), 3);

    let table = rows(&world.layout.table("impressions"));
    let late = late(&events);
    assert!(!late.is_empty());
    let values = Values::at(&world.layout.features("impressions"));
    let first_day = 20_454;
    let mut compared = 0;
    for feature in &spec.features {
        let column = pipeline::sql::column(feature);
        let wanted = table.column_by_name(&column).unwrap();
        for day in first_day..first_day + 3 {
            let batches: Vec<_> = values
                .read(feature, day)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let found = concat_batches(&batches[0].schema(), &batches).unwrap();
            let places = ids(&table, "impression_id");
            for (row, id) in ids(&found, "request_id").iter().enumerate() {
                let id = id.unwrap();
                let Some(place) = places.iter().position(|it| it == Some(id)) else {
                    continue;
                };
                if !late.contains(id) {
                    let found = found.column(1).slice(row, 1);
                    assert_equal(&column, 0, &found, &wanted.slice(place, 1));
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 2_000, "{compared}");
}

#[test]
fn a_day_is_computed_once_and_again_when_facts_come_to_it() {
    let (world, events) = (World::new(), log_events());
    let spec = FeatureSpec::load(&new_spec(&world.layout.root)).unwrap();
    let features = ["genre_dwell", "placement"];
    let (before, after) = events.split_at(events.len() * 3 / 5);
    let committed = world.process(&config(), before, AtEnd::Wait);
    let first = world.backfill(committed, &spec, &features).unwrap();
    assert!(
        first.iter().all(|day| day.computed == features),
        "{first:?}"
    );

    // What is there is kept; what was cut off, or never begun, is computed.
    let values = Values::at(&world.layout.features("impressions"));
    let placement = spec
        .features
        .iter()
        .find(|it| it.name == "placement")
        .unwrap();
    fs::remove_file(values.record_path(placement, 20_454)).unwrap();
    let second = world
        .backfill(committed, &spec, &["genre_dwell", "placement", "log_bid"])
        .unwrap();
    assert_eq!(second[0].kept, ["genre_dwell"]);
    assert_eq!(second[0].computed, ["placement", "log_bid"]);
    assert_eq!(second[1].kept, features);
    assert_eq!(second[1].rows, first[1].rows);

    // Later facts change later days.
    let committed = world.process(&config(), after, AtEnd::Wait);
    let third = world.backfill(committed, &spec, &features).unwrap();
    assert_eq!(third.len(), 3);
    assert_eq!(third[0].kept, features);
    assert_eq!(third[2].computed, features);
}

#[test]
fn another_meaning_under_the_same_version_is_refused() {
    let world = World::new();
    let committed = world.process(&config(), &log_events(), AtEnd::Wait);
    let path = new_spec(&world.layout.root);
    let spec = FeatureSpec::load(&path).unwrap();
    world.backfill(committed, &spec, &["log_bid"]).unwrap();
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("log1p(bid)", "bid");
    let spec = FeatureSpec::parse(&text, "new.toml").unwrap();
    let error = world.backfill(committed, &spec, &["log_bid"]).unwrap_err();
    assert!(
        matches!(error, BackfillError::OtherMeaning { .. }),
        "{error}"
    );
    let error = world.backfill(committed, &spec, &["log_bit"]).unwrap_err();
    assert_eq!(error.to_string(), "the spec has no feature `log_bit`");
}

#[test]
fn a_migrated_table_goes_on_as_if_the_new_spec_had_been_there_from_the_start() {
    let (world, control, events) = (World::new(), World::new(), log_events());
    let spec = new_spec(&world.layout.root);
    let new = PipelineConfig {
        features: spec.clone(),
        ..config()
    };
    control.process(&new, &events, AtEnd::Wait);

    let (before, after) = events.split_at(events.len() * 3 / 5);
    world.process(&config(), before, AtEnd::Wait);
    let old_rows = rows(&world.layout.table("impressions"));
    let migrated = world.migrate(&new, "second").unwrap();
    assert_eq!(migrated.rows, old_rows.num_rows() as u64);
    assert!(migrated.pending > 0);
    assert_eq!(migrated.removed, ["dwell"]);
    let backfilled = [
        "user_ctr",
        "genre_dwell",
        "recent_creatives",
        "placement",
        "log_bid",
    ];
    assert_eq!(migrated.backfilled, backfilled);

    let second = PipelineConfig {
        table: "second".to_owned(),
        ..new.clone()
    };
    // The old table goes on too, from its own state.
    let committed = world.process(&config(), after, AtEnd::Wait);
    assert_eq!(world.process(&second, &[], AtEnd::Wait), committed);

    let (found, wanted) = (
        rows(&world.layout.table("second")),
        rows(&control.layout.table("impressions")),
    );
    assert_eq!(found.schema(), wanted.schema());
    assert_eq!(found.num_rows(), wanted.num_rows());
    assert!(found.num_rows() > old_rows.num_rows());
    let late = late(&events);
    for (row, id) in ids(&wanted, "impression_id").iter().enumerate() {
        if late.contains(id.unwrap()) {
            continue;
        }
        for (field, wanted) in wanted.schema().fields().iter().zip(wanted.columns()) {
            let found = found.column_by_name(field.name()).unwrap();
            assert_equal(field.name(), row, found, wanted);
        }
    }
    let aggregates = |world: &World, config: &PipelineConfig, batch| {
        let set = features::FeatureSet::load(&config.features).unwrap();
        let state = world.layout.state(&config.table);
        let (_, processor) = state::load(&state, batch, config, set).unwrap();
        processor.aggregates().to_bytes()
    };
    let batch = control.process(&new, &[], AtEnd::Wait);
    assert!(aggregates(&world, &second, committed) == aggregates(&control, &new, batch));
}

#[test]
fn a_migration_that_was_cut_off_begins_anew_and_a_second_one_is_refused() {
    let world = World::new();
    world.process(&config(), &log_events(), AtEnd::Wait);
    let new = PipelineConfig {
        features: new_spec(&world.layout.root),
        ..config()
    };
    // What a run left that was killed before its commit.
    let leftover = world.layout.table("second").join("day=2026-01-01");
    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("part-00000099.parquet"), b"cut off").unwrap();
    let state = world.layout.state("second");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("000009.partial"), b"cut off").unwrap();

    let rows = world.migrate(&new, "second").unwrap().rows;
    assert!(rows > 100);
    assert!(!leftover.join("part-00000099.parquet").exists());
    let error = world.migrate(&new, "second").unwrap_err();
    assert!(matches!(error, MigrateError::Exists { .. }), "{error}");
    let error = world.migrate(&config_of("nothing"), "third").unwrap_err();
    assert!(matches!(error, MigrateError::Table(_)), "{error}");
}

fn config_of(table: &str) -> PipelineConfig {
    PipelineConfig {
        table: table.to_owned(),
        ..config()
    }
}

#[test]
fn a_changed_meaning_without_a_new_version_makes_no_table() {
    let world = World::new();
    world.process(&config(), &log_events(), AtEnd::Wait);
    let path = world.layout.root.join("changed.toml");
    let text = fs::read_to_string(support::features()).unwrap();
    fs::write(
        &path,
        text.replace("prior = [1.0, 10.0]", "prior = [2.0, 10.0]"),
    )
    .unwrap();
    let changed = PipelineConfig {
        features: path,
        ..config()
    };
    let error = world.migrate(&changed, "second").unwrap_err();
    assert!(
        error.to_string().contains("raise `version` above 1"),
        "{error}"
    );
    assert!(!world.layout.table("second").join("_delta_log").exists());
}
