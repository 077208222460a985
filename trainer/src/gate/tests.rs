use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::table::testing;

const ROWS: usize = 30_000;

/// Rows of 600 people, each click with a probability that is known.
fn rows() -> (Examples, Vec<f32>) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut rows = Examples::empty(&testing::schema());
    let mut truth = Vec::new();
    for at in 0..ROWS {
        let x: f32 = random.random_range(-3.0..1.0);
        let probability = 1.0 / (1.0 + (-x).exp());
        truth.push(probability);
        let click = f32::from(u8::from(random.random_bool(f64::from(probability))));
        testing::push(&mut rows, x, 0, &[], (click, 1.0));
        rows.user_ids[at] = format!("u{}", at % 600);
        rows.genres[at] = ["puzzle", "racing", "sports"][at % 3].to_owned();
        rows.creative_ids[at] = format!("c{}", at % 7);
    }
    (rows, truth)
}

fn moved(scores: &[f32], logit: impl Fn(usize, f32) -> f32) -> Candidate {
    let one = |(at, score): (usize, &f32)| {
        let moved = logit(at, (score / (1.0 - score)).ln());
        1.0 / (1.0 + (-moved).exp())
    };
    Candidate {
        scores: scores.iter().enumerate().map(one).collect(),
    }
}

/// The truth with noise: ranked worse, and about as right on average.
fn noisy(truth: &[f32]) -> Candidate {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let noise: Vec<f32> = truth
        .iter()
        .map(|_| random.random_range(-0.6..0.6))
        .collect();
    moved(truth, |at, logit| logit + noise[at])
}

fn judged(model: &Candidate, other: Option<&Candidate>) -> (Verdict, Vec<String>) {
    let (rows, _) = rows();
    let known = (0..6)
        .map(|at| format!("c{at}"))
        .collect::<HashSet<String>>();
    let slices = Slices::of(&rows, &known);
    let config = GateConfig {
        replicates: 60,
        ..GateConfig::default()
    };
    let verdict = measure::measure(&config, &rows, &slices, model, other);
    let refused = judge(&config.rules, &verdict);
    (verdict, refused)
}

#[test]
fn a_model_that_is_better_in_all_passes() {
    let (_, truth) = rows();
    let model = moved(&truth, |_, logit| logit);
    let (verdict, refused) = judged(&model, Some(&noisy(&truth)));
    assert_eq!(refused, Vec::<String>::new());
    let auc = verdict.differences.unwrap().auc;
    assert!(auc.low.unwrap() > 0.0 && auc.low < auc.high, "{auc:?}");
    assert_eq!((verdict.rows, verdict.users), (ROWS, 600));
    let ad = |value: &str| {
        verdict
            .slices
            .iter()
            .find(|slice| slice.by == "ad" && slice.value == value)
    };
    assert!(ad("new").unwrap().rows < ad("seen in training").unwrap().rows / 4);
    assert!(verdict.measures.grouped_auc.is_some());
}

#[test]
fn a_model_that_is_better_by_auc_and_miscalibrated_is_refused() {
    let (_, truth) = rows();
    let model = moved(&truth, |_, logit| logit + 0.15);
    let (verdict, refused) = judged(&model, Some(&noisy(&truth)));
    assert!(verdict.differences.unwrap().auc.low.unwrap() > 0.0);
    let ratio = verdict.measures.calibration_ratio;
    assert!(ratio.value > 1.05, "{ratio:?}");
    assert!(refused[0].contains("rules.calibration"), "{refused:?}");
}

#[test]
fn a_model_that_is_wrong_for_some_is_refused_by_their_name() {
    let (_, truth) = rows();
    // Too much for one genre and too little for another: right on the whole.
    let model = moved(&truth, |at, logit| logit + [0.3, -0.31, 0.0][at % 3]);
    let (verdict, refused) = judged(&model, None);
    let ratio = verdict.measures.calibration_ratio.value;
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
    assert_eq!(refused.len(), 2, "{refused:?}");
    for genre in ["genre puzzle", "genre racing"] {
        assert!(
            refused.iter().any(|reason| reason.contains(genre)),
            "{refused:?}"
        );
    }
}

#[test]
fn a_model_that_ranks_worse_is_refused() {
    let (_, truth) = rows();
    let live = moved(&truth, |_, logit| logit);
    let (_, refused) = judged(&noisy(&truth), Some(&live));
    for rule in ["rules.max_auc_loss", "rules.max_entropy_rise"] {
        assert!(
            refused.iter().any(|reason| reason.contains(rule)),
            "{refused:?}"
        );
    }
    // And alone nothing is said against it.
    let (_, refused) = judged(&noisy(&truth), None);
    assert!(
        refused.iter().all(|reason| reason.contains("calibration")),
        "{refused:?}"
    );
}

#[test]
fn the_page_has_verdict_measures_and_the_worst_slices() {
    let (rows, truth) = rows();
    let model = moved(&truth, |at, logit| logit + [0.3, -0.31, 0.0][at % 3]);
    let other = noisy(&truth);
    let (mut verdict, refused) = judged(&model, Some(&other));
    verdict.refused = refused;
    verdict.model = "abc".to_owned();
    verdict.against = Some("def".to_owned());
    let html = page::page(
        &GateConfig::default(),
        &verdict,
        &rows,
        &model,
        Some(&other),
    );
    for part in [
        "Refused:",
        "puzzle",
        "grouped AUC",
        "<svg",
        "worst slices",
        "def",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let text = rules::told(&verdict);
    assert!(
        text.contains("less that of def") && text.contains("refused: "),
        "{text}"
    );
}
