//! A tiny world through the offline half, by the real programs.

use marquee_tests::Bench;
use serde_json::Value;

/// Large enough for every kind of broken record, small enough for a second.
const TINY: [&str; 12] = [
    "--set",
    "users=40",
    "--set",
    "creatives=40",
    "--set",
    "campaigns=10",
    "--set",
    "days=3",
    "--set",
    "impressions_per_day=1500",
    "--set",
    "delivery.broken_share=0.02",
];

fn processed() -> Bench {
    let bench = Bench::default();
    let generate = ["world", "generate", "configs/world-procedural.toml"];
    bench.run(&[&generate[..], &TINY].concat()).ok();
    bench.run(&["events", "process", "--flush"]).ok();
    bench
}

fn sum(counts: &Value) -> u64 {
    counts
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum()
}

#[test]
fn every_event_is_accounted_for() {
    let bench = processed();
    let (world, events) = (
        bench.read_json("reports/world.json"),
        bench.read_json("reports/events.json"),
    );
    let broken = sum(&world["broken"]);
    assert!(broken > 20, "{world:#}");
    assert_eq!(events["events_in"], world["records"]);
    assert_eq!(events["duplicates"], world["duplicates"]);
    assert_eq!(events["rows_written"], events["impressions_viewed"]);
    let unattributed = events["dead_by_reason"]["unattributed"]
        .as_u64()
        .unwrap_or(0);
    assert_eq!(
        events["events_dead"].as_u64().unwrap() - unattributed,
        broken
    );
    assert_eq!(
        sum(&events["dead_by_reason"]),
        events["events_dead"].as_u64().unwrap()
    );

    // Nothing new: nothing changes.
    bench.run(&["events", "process", "--flush"]).ok();
    let again = bench.read_json("reports/events.json");
    for key in [
        "events_in",
        "events_dead",
        "duplicates",
        "rows_written",
        "clicks",
        "conversions",
    ] {
        assert_eq!(again[key], events[key], "{key}");
    }
}

#[test]
fn what_was_materialized_is_in_the_registry_and_in_the_report() {
    let bench = processed();
    bench.run(&["features", "materialize"]).ok();
    let listed = bench.run(&["registry", "list", "--json"]).ok().json();
    let kinds: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|artifact| artifact["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["features", "catalogue"]);
    let digest = listed[1]["digest"].as_str().unwrap();
    let shown = bench
        .run(&["registry", "show", &digest[..12], "--json"])
        .ok()
        .json();
    assert_eq!(shown["stage"], "candidate");
    assert!(shown["files"]["catalogue.json"]["bytes"].as_u64().unwrap() > 0);
    bench
        .run(&["registry", "channel"])
        .refused(1, &["has never been moved", "index publish"]);

    bench.run(&["report"]).ok();
    let report = bench.read_json("reports/report.json");
    assert!(report["events_in"].as_u64().unwrap() > 0);
    assert!(report["auc"].is_null());
    let page = std::fs::read_to_string(bench.root.path().join("reports/report.html")).unwrap();
    assert!(page.contains("<code>marquee train configs/ctr.toml</code> writes it"));
    bench
        .run(&["report", "--check"])
        .refused(3, &["refused by the gate", "judge.json is not there"]);
}

#[test]
fn a_report_of_nothing_is_refused_with_the_mend() {
    Bench::default()
        .run(&["report"])
        .refused(1, &["no step has left figures", "launch/quickstart"]);
}
