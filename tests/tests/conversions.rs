//! A model of clicks and conversions among the programs that know click models.

use marquee_tests::{Bench, TINY_WORLD};
use serde_json::Value;

/// Conversions come within two days, and there are more clicks for them to follow.
const MORE_CLICKS: [&str; 2] = ["--set", "effects.click_bias=-0.5"];

/// The first day's labels become final, the others wait.
const WINDOWS: [&str; 4] = [
    "--set",
    "attribution.conversion_window_hours=48",
    "--set",
    "watermark.allowed_lateness_hours=1",
];

#[test]
fn a_model_of_conversions_is_measured_gated_and_learnt_from_as_any_other() {
    let bench = Bench::default();
    bench
        .run(&[&["world", "generate"][..], &TINY_WORLD, &MORE_CLICKS].concat())
        .ok();
    let process = ["events", "process", "--flush"];
    bench.run(&[&process[..], &WINDOWS].concat()).ok();

    let train = ["train", "configs/cvr.toml", "--json"];
    let small = ["--set", "training.batch_size=128"];
    let report = bench.run(&[&train[..], &small].concat()).ok().json();
    let conversions = &report["conversions"];
    assert!(conversions["known"].as_u64().unwrap() > 0, "{conversions}");
    // Labels of the last day know of half an hour.
    let observed = conversions["observed"].as_f64().unwrap();
    assert!((0.001..0.2).contains(&observed), "{conversions}");
    for measure in [
        "auc",
        "log_loss",
        "calibration_ratio",
        "cvr_auc",
        "cvr_calibration_ratio",
    ] {
        assert!(conversions[measure].is_number(), "{measure}: {conversions}");
    }
    let metrics = bench.root.path().join("runs/ctr-001/metrics.jsonl");
    let metrics = std::fs::read_to_string(metrics).unwrap();
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let measured =
        lines.filter(|line: &Value| line["valid"]["conversions"]["log_loss"].is_number());
    assert_eq!(measured.count(), 2, "one an epoch");

    // Half an hour's conversions are a small part of those that come; the model says all of them.
    let conversions = bench.root.path().join("runs/ctr-001/conversions.csv");
    let judge = ["world", "judge", "--json", "--conversions"];
    let judged = bench.run(&[&judge[..], &[conversions.to_str().unwrap()]].concat());
    let judged = judged.ok().json();
    let number = |key: &str| judged[key].as_f64().unwrap();
    assert!(number("known") < 0.2, "{judged}");
    let ratio = number("calibration_true");
    assert!((ratio - 1.0).abs() < 0.3, "{judged}");

    let eval = ["eval", "configs/cvr.toml", "--json"];
    let again = bench.run(&eval).ok().json();
    for key in ["auc", "log_loss", "conversions"] {
        assert_eq!(again[key], report[key], "{key}");
    }
    let gate = ["gate", "--json", "--set", "rules.min_rows=1000000"];
    bench.run(&gate).refused(3, &["rules.min_rows"]);
    let gated: Value = bench.read_json("reports/gate.json");
    assert_eq!(gated["measures"]["auc"]["value"], report["auc"]);
    let learn = ["train", "configs/prescorer.toml", "--json"];
    let teacher = ["--set", "distillation.teacher=newest"];
    let bound = ["--set", "monotone={creative_rate_7d=1}"];
    let taught = bench
        .run(&[&learn[..], &teacher, &bound].concat())
        .ok()
        .json();
    let alone = bench.run(&learn).ok().json();
    assert_eq!(alone["from_teacher"], Value::Null);
    // A mean probability is some 0.3; what was learnt is nearer to it than that.
    let far = taught["from_teacher"].as_f64().unwrap();
    assert!(0.0 < far && far < 0.1, "{taught}");
    let trees = std::fs::read_to_string(bench.root.path().join("runs/prescorer-001/model.txt"));
    let told = trees.unwrap();
    let bounds = told
        .lines()
        .find(|line| line.starts_with("[monotone_constraints: "));
    assert!(bounds.unwrap().contains('1'), "{bounds:?}");
    let digest = taught["artifact"].as_str().unwrap();
    let shown = bench
        .run(&["registry", "show", digest, "--json"])
        .ok()
        .json();
    let parents = shown["parents"].as_array().unwrap();
    assert!(parents.contains(&report["artifact"]), "{shown}");
    let teacher = report["artifact"].as_str().unwrap();
    let graph = bench.run(&["registry", "graph"]).ok().stdout;
    let edge = format!("    {} --> {}\n", &teacher[..12], &digest[..12]);
    assert!(graph.contains(&edge), "{edge}{graph}");
}
