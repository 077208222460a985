//! A tiny world through the whole loop, by the real programs.

use features::FeatureBatch;
use lightgbm3::Booster;
use marquee_tests::Bench;
use models::ctr::CtrModel;
use prost::Message;
use serde_json::Value;
use wire::{
    events::{Event, ScoredCandidate, event::Payload},
    log::SegmentReader,
};

/// Midnight after the world's history: its first day is 20,700.
const AFTER_US: i64 = 20_704 * 86_400_000_000;

/// Smoothed labels leave something to calibrate.
const CTR: [&str; 7] = [
    "configs/ctr.toml",
    "--set",
    "training.epochs=1",
    "--set",
    "training.batch_size=256",
    "--set",
    "training.label_smoothing=0.3",
];

const VISUAL: [&str; 5] = [
    "configs/visual.toml",
    "--set",
    "epochs=1",
    "--set",
    "batch_size=32",
];

/// Everything up to a published bundle.
fn published() -> Bench {
    let bench = Bench::with_table();
    bench.run(&["features", "materialize"]).ok();
    trained(&bench, &CTR);
    trained(&bench, &["configs/prescorer.toml"]);
    trained(&bench, &VISUAL);
    bench.run(&["embed"]).ok();
    indexed(&bench);
    bench
        .run(&["index", "publish"])
        .refused(3, &["never judged", "marquee gate", "--unjudged"]);
    bench.run(&["index", "publish", "--unjudged"]).ok();
    bench
}

/// Digest of the model that this makes.
fn trained(bench: &Bench, config: &[&str]) -> String {
    let report = bench
        .run(&[&["train", "--json"][..], config].concat())
        .ok()
        .json();
    report["artifact"].as_str().unwrap().to_owned()
}

/// Digest of the newest index, after building one.
fn indexed(bench: &Bench) -> String {
    let patient = ["--set", "target_p99_ms=1000.0"];
    bench
        .run(&[&["index", "build"][..], &patient].concat())
        .ok();
    let listed = bench.run(&["registry", "list", "--json"]).ok().json();
    let of_index = |artifact: &&Value| artifact["kind"] == "index";
    let newest = listed.as_array().unwrap().iter().rfind(of_index).unwrap();
    newest["digest"].as_str().unwrap().to_owned()
}

/// Creatives and prices of the winners, and the whole answer.
fn ask(bench: &Bench, number: i64, who: &[&str]) -> (Vec<(Value, Value)>, Value) {
    let (request, time) = (format!("r{number}"), (AFTER_US + number).to_string());
    let ask = ["ask", "--json", "--request", &request, "--time", &time];
    let answer = bench.run(&[&ask[..], who].concat()).ok().json();
    let winners = answer["winners"].as_array().unwrap();
    let sold = |winner: &Value| {
        (
            winner["creative_id"].clone(),
            winner["price_micros"].clone(),
        )
    };
    (winners.iter().map(sold).collect(), answer)
}

#[test]
fn the_loop_closes_for_every_kind_of_person() {
    let bench = published();
    let before = bench.read_json("reports/events.json");
    let server = bench.serve();
    let people: [&[&str]; 5] = [
        &["--user", "u00001"],
        &["--user", "u00001", "--no-consent"],
        &["--user", "u00002", "--age", "child"],
        &["--user", "never-seen"],
        &[],
    ];
    let mut sold = 0;
    for (number, who) in (0..).zip(people) {
        let (winners, answer) = ask(&bench, number, who);
        assert!(!winners.is_empty(), "{who:?} {answer:#}");
        assert_eq!(
            answer["explain"]["degradation"], "DEGRADATION_NONE",
            "{who:?}"
        );
        sold += winners.len() as u64;
    }
    // A request that is repeated gets the same answer, and counts once.
    assert_eq!(ask(&bench, 0, people[0]).0, ask(&bench, 0, people[0]).0);
    assert_eq!(server.stop(), Some(0));

    bench.run(&["events", "process", "--flush"]).ok();
    let after = bench.read_json("reports/events.json");
    assert_eq!(after["events_dead"], before["events_dead"], "{after:#}");
    let served = |events: &Value| events["impressions_served"].as_u64().unwrap();
    assert_eq!(served(&after) - served(&before), sold);
    the_gate_knows_what_was_earned(&bench);
    the_record_has_what_the_models_saw(&bench);
}

/// What LightGBM and the click model say of the features on record is what the server went by: to the bit,
/// and to the last of them.
fn the_record_has_what_the_models_saw(bench: &Bench) {
    let root = bench.root.path();
    let text = std::fs::read_to_string(root.join("runs/prescorer-001/model.txt"));
    let trees = Booster::from_string(&text.unwrap()).unwrap();
    let listed = ["registry", "list", "--kind", "ctr", "--json"];
    let listed = bench.run(&listed).ok().json();
    let digest = listed[0]["digest"].as_str().unwrap();
    let files = root.join("registry/artifacts").join(digest).join("files");
    let ranker: CtrModel = CtrModel::load(&files).unwrap();
    let far = ranker.calibration.probability(1.0) - 1.0 / (1.0 + (-1f32).exp());
    assert!(far.abs() > 0.01, "there is something to calibrate: {far}");
    let (mut checked, mut batch) = (0, FeatureBatch::new(ranker.schema()));
    let mut served_pctrs = Vec::new();
    for record in SegmentReader::open(&root.join("log"), "serving", 0).unwrap() {
        let event = Event::decode(&record.unwrap().payload[..]).unwrap();
        let Some(Payload::ImpressionServed(served)) = event.payload else {
            continue;
        };
        let Some(snapshot) = &served.snapshot else {
            continue;
        };
        batch.push_snapshot(snapshot).unwrap();
        served_pctrs.push(served.pctr);
        // Those of the first slot.
        let is_winner = |one: &&ScoredCandidate| one.creative_id == served.creative_id;
        let Some(winner) = served.candidates.iter().find(is_winner) else {
            continue;
        };
        let dense: Vec<f64> = snapshot.dense.iter().map(|it| f64::from(*it)).collect();
        let wanted = trees.predict(&dense, dense.len() as i32, true).unwrap()[0] as f32;
        assert_eq!(winner.prescore.to_bits(), wanted.to_bits(), "{served:?}");
        checked += 1;
    }
    assert!(checked > 200, "{checked}");
    for (found, wanted) in served_pctrs.iter().zip(ranker.score(&batch).unwrap()) {
        assert!((found / wanted - 1.0).abs() < 1e-5, "{found} {wanted}");
    }
}

/// Against the model that the channel serves, which no flag names.
fn a_better_model_that_is_miscalibrated_is_refused(bench: &Bench, serves: &str) {
    let more = [
        "--set",
        "training.epochs=6",
        "--set",
        "training.calibration=none",
    ];
    let too_high = ["--set", "training.label_smoothing=0.2"];
    let better = trained(bench, &[&CTR[..], &more, &too_high].concat());
    let gate = ["gate", "--promote", "--set", "rules.slice_calibration=9"];
    bench.run(&gate).refused(3, &["rules.calibration"]);
    let gated = bench.read_json("reports/gate.json");
    assert_eq!(
        (&gated["model"], &gated["against"]),
        (&better.into(), &serves.into())
    );
    let auc = &gated["differences"]["auc"];
    assert!(auc["value"].as_f64().unwrap() > 0.0, "{auc}");
    let ratio = gated["measures"]["calibration_ratio"]["low"]
        .as_f64()
        .unwrap();
    assert!(ratio > 1.1, "{gated:#}");
    let refused = gated["refused"].as_array().unwrap().iter();
    bench
        .run(&["index", "publish"])
        .refused(3, &["refused by the gate", "rules.calibration"]);
    let mut by_auc = refused.filter(|it| it.as_str().unwrap().contains("AUC"));
    assert_eq!(by_auc.next(), None);
}

/// The model that served, on rows that were served by it, gets what was earned.
fn the_gate_knows_what_was_earned(bench: &Bench) {
    let server = bench.serve();
    let drive = ["world", "drive", "--json", "--requests", "400"];
    let driven = bench
        .run(&[&drive[..], &["--first", "100"]].concat())
        .ok()
        .json();
    assert_eq!(server.stop(), Some(0));
    bench.run(&["events", "process", "--flush"]).ok();
    // Whether some rows of one day are calibrated is not what this is about.
    bench.run(&["gate"]);
    let gated = bench.read_json("reports/gate.json");
    let revenue = &gated["revenue"];
    assert_eq!(revenue["rows"], gated["rows"], "{gated:#}");
    assert_eq!(revenue["rows"], driven["views"], "{driven:#}");
    // What was answered late was ranked by less than the model.
    let number = |value: &Value| value.as_f64().unwrap();
    let late = number(&driven["degraded"]) / number(&revenue["rows"]);
    let kept = number(&revenue["model"]["kept"]);
    assert!(kept > 0.98 - late, "{revenue:#} {driven:#}");
    let observed = number(&revenue["observed"]["value"]);
    assert!(observed > 0.0, "{revenue:#}");
    if late == 0.0 {
        let over = number(&revenue["model"]["over_observed"]["value"]);
        assert!((over - 1.0).abs() < 0.02, "{revenue:#}");
    }
}

#[test]
fn a_seed_fixes_every_artifact() {
    let bench = published();
    let index = indexed(&bench);
    assert_eq!(indexed(&bench), index);
    for config in [&CTR[..], &VISUAL, &["configs/prescorer.toml"]] {
        let digest = trained(&bench, config);
        assert_eq!(trained(&bench, config), digest, "{config:?}");
    }
    let other = trained(&bench, &[&CTR[..], &["--seed", "2"]].concat());
    // The one that was published.
    let serves = trained(&bench, &CTR);
    assert_ne!(other, serves);
    a_better_model_that_is_miscalibrated_is_refused(&bench, &serves);
}
