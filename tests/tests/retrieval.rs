//! Two towers through the command line.

use marquee_tests::Bench;
use serde_json::Value;

#[test]
fn two_towers_are_trained_measured_and_kept_as_any_other_click_model() {
    let bench = Bench::with_table();
    let small = [
        "--set",
        "training.epochs=2",
        "--set",
        "training.batch_size=256",
    ];
    let train = ["train", "configs/two-tower.toml", "--json"];
    let report = bench.run(&[&train[..], &small].concat()).ok().json();
    let found = &report["retrieval"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report:#}"));
    assert!(
        number(&found["items"]) > 20.0 && number(&found["queries"]) > 20.0,
        "{found}"
    );
    // Among all of them the nearest hundred are more than the nearest ten.
    let [few, many] = ["recall_at_10", "recall_at_100"].map(|key| number(&found[key]));
    assert!(few <= many && many > 0.5, "{found}");
    assert!(number(&report["valid_recall_at_10"]) <= 1.0);
    // From its files it says the same, and the run has what it found.
    let eval = bench
        .run(&["eval", "configs/two-tower.toml", "--json"])
        .ok()
        .json();
    assert_eq!(eval["retrieval"], *found);
    let shown = bench.run(&["runs", "show", "ctr-001"]).ok().stdout;
    assert!(shown.contains("retrieval/recall_at_10"), "{shown}");

    // What a batch softmax learns from has to be told apart.
    let nameless = ["--set", "model.item_features=[]"];
    bench.run(&[&train[..], &nameless].concat()).refused(
        1,
        &[
            "model.item_features is empty",
            "name the features of the ad",
        ],
    );
    let both = [
        "--set",
        "model.query_features=[\"user_id\",\"creative_id\"]",
    ];
    bench
        .run(&[&train[..], &both].concat())
        .refused(1, &["model.query_features both name `creative_id`"]);
}
