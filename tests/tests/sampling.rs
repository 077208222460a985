//! A model of a table whose negatives were down-sampled, beside one of the whole table, both judged by
//! the world's truth on the whole table's test rows.

use marquee_tests::Bench;
use serde_json::Value;

const WORLD: [&str; 11] = [
    "configs/world-procedural.toml",
    "--set",
    "days=6",
    "--set",
    "impressions_per_day=30000",
    "--set",
    "effects.click_bias=-2.2",
    "--set",
    "users=300",
    "--set",
    "creatives=300",
];

/// Labels that are final are what sampling may drop.
const PROCESS: [&str; 7] = [
    "events",
    "process",
    "--flush",
    "--set",
    "attribution.conversion_window_hours=1",
    "--set",
    "watermark.allowed_lateness_hours=1",
];

/// The share of negatives that stay.
const RATE: f64 = 0.1;

/// A model of a table: its digest, and the rows that it learnt from.
fn trained(bench: &Bench, table: &str) -> String {
    let table = format!("table={table}");
    let train = ["train", "configs/ctr.toml", "--json", "--set", &table];
    let report = bench.run(&train).ok().json();
    report["artifact"].as_str().unwrap().to_owned()
}

/// What the truth says of a model on the test rows of the whole table.
fn judged(bench: &Bench, model: &str) -> Value {
    let predictions = bench.root.path().join(format!("{model}.csv"));
    let predictions = predictions.to_str().unwrap();
    let eval = ["eval", "configs/ctr.toml", "--model", model];
    bench
        .run(&[&eval[..], &["--predictions", predictions]].concat())
        .ok();
    let judge = ["world", "judge", "--json", "--predictions", predictions];
    bench.run(&judge).ok().json()
}

#[test]
fn a_tenth_of_the_negatives_teaches_the_same_calibration_as_all() {
    let bench = Bench::default();
    bench
        .run(&[&["world", "generate"][..], &WORLD].concat())
        .ok();
    bench.run(&PROCESS).ok();
    let rate = format!("sampling.negative_rate={RATE}");
    let sampled = ["--set", "table=sampled", "--set", &rate];
    bench.run(&[&PROCESS[..], &sampled].concat()).ok();

    let full = judged(&bench, &trained(&bench, "impressions"));
    let sampled = judged(&bench, &trained(&bench, "sampled"));
    assert_eq!(full["rows"], sampled["rows"], "of the same table");
    let ratio = |judgement: &Value| judgement["calibration_true"].as_f64().unwrap();
    let (full, sampled) = (ratio(&full), ratio(&sampled));
    // Some 4,000 clicks and 2,500 negatives calibrate: a standard error of 2 %. Without weights
    // the ratio would be above 3.
    assert!((full - 1.0).abs() < 0.05, "{full}");
    assert!((sampled - 1.0).abs() < 0.06, "{sampled}");
    assert!((sampled / full - 1.0).abs() < 0.05, "{sampled} {full}");
}
