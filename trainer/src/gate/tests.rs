use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::table::{Auction, testing};

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
    judged_by(&RulesConfig::default(), &rows().0, model, other)
}

fn judged_by(
    rules: &RulesConfig,
    rows: &Examples,
    model: &Candidate,
    other: Option<&Candidate>,
) -> (Verdict, Vec<String>) {
    let known = (0..6)
        .map(|at| format!("c{at}"))
        .collect::<HashSet<String>>();
    let slices = Slices::of(rows, &known);
    let config = GateConfig {
        replicates: 60,
        rules: rules.clone(),
        ..GateConfig::default()
    };
    let verdict = measure::measure(&config, rows, &slices, model, other);
    let refused = judge(&config.rules, &verdict);
    (verdict, refused)
}

#[test]
fn impressions_of_two_tables_are_joined_by_their_ids() {
    let named = |ids: &[&str]| {
        let mut rows = testing::rows(&vec![0; ids.len()]);
        rows.impression_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        rows
    };
    let [mine, theirs] = common(&named(&["a", "b", "c", "d"]), &named(&["d", "x", "b", "a"]));
    assert_eq!((mine, theirs), (vec![0, 1, 3], vec![3, 2, 0]));
}

#[test]
fn too_many_rows_that_only_one_has_are_refused() {
    let (_, truth) = rows();
    let model = moved(&truth, |_, logit| logit);
    let (mut verdict, _) = judged(&model, Some(&noisy(&truth)));
    let rules = RulesConfig::default();
    verdict.left_out = ROWS / 200;
    assert_eq!(judge(&rules, &verdict), Vec::<String>::new());
    assert!(rules::told(&verdict).contains("150 rows left out"));
    verdict.left_out = ROWS / 50;
    let refused = judge(&rules, &verdict);
    assert!(refused[0].contains("600 of 30600 test rows"), "{refused:?}");
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
    assert!(verdict.measures.grouped_auc.value > 0.5);
}

/// A slice is measured as a table of its rows alone would be, of both models.
#[test]
fn a_slice_has_all_measures_of_its_rows() {
    let (rows, truth) = rows();
    let (model, other) = (noisy(&truth), moved(&truth, |_, logit| logit + 0.1));
    let (verdict, _) = judged(&model, Some(&other));
    let slice = verdict.slices.iter().find(|slice| slice.value == "racing");
    let (slice, of_slice) = (slice.unwrap(), |row: &usize| row % 3 == 1);
    let kept: Vec<usize> = (0..ROWS).filter(of_slice).collect();
    let part = |scores: &[f32]| Candidate {
        scores: kept.iter().map(|row| scores[*row]).collect(),
    };
    let rules = RulesConfig::default();
    let (model, other) = (part(&model.scores), part(&other.scores));
    let (alone, _) = judged_by(&rules, &rows.gather(&kept), &model, Some(&other));
    assert_eq!((slice.rows, slice.clicks), (alone.rows, alone.clicks));
    let theirs = |it: Option<Measures>| it.unwrap().named();
    let against = (
        theirs(slice.against_measures),
        theirs(alone.against_measures),
    );
    for (found, wanted) in [(slice.measures.named(), alone.measures.named()), against] {
        for ((name, found), (_, wanted)) in found.iter().zip(&wanted) {
            assert_eq!(found.value, wanted.value, "{name}");
            // Other people are drawn.
            let width = |it: &Interval| it.high.unwrap() - it.low.unwrap();
            let widths = width(found) / width(wanted);
            assert!((0.5..2.0).contains(&widths), "{name} {found:?} {wanted:?}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_said_and_read_again() {
    let (rows, truth) = rows();
    let unclicked: Vec<usize> = (0..ROWS).filter(|row| rows.clicks[*row] < 0.5).collect();
    let scores = unclicked.iter().map(|row| truth[*row]).collect();
    let rules = RulesConfig::default();
    let (verdict, refused) = judged_by(
        &rules,
        &rows.gather(&unclicked),
        &Candidate { scores },
        None,
    );
    assert!(refused[0].contains("rules.calibration"), "{refused:?}");
    assert!(rules::told(&verdict).contains("not known"));
    let text = serde_json::to_string(&verdict).unwrap();
    let again: Verdict = serde_json::from_str(&text).unwrap();
    assert!(again.measures.auc.value.is_nan() && again.measures.auc.low.is_none());
    assert_eq!((again.rows, again.clicks), (unclicked.len(), 0));
}

/// A fifth of the negatives, each for five, are as good as all of them; counted once, they would make the
/// truth an error of 0.3.
#[test]
fn a_sampled_table_measures_a_model_as_the_whole_does() {
    let (rows, truth) = rows();
    // Some of each person.
    let stays = |row: &usize| rows.clicks[*row] > 0.5 || (row / 600 + row).is_multiple_of(5);
    let kept: Vec<usize> = (0..ROWS).filter(stays).collect();
    let mut sampled = rows.gather(&kept);
    for (weight, click) in sampled.weights.iter_mut().zip(&sampled.clicks) {
        *weight = if *click > 0.5 { 1.0 } else { 5.0 };
    }
    let scores: Vec<f32> = kept.iter().map(|row| truth[*row]).collect();
    let [whole, part] = [(&rows, truth), (&sampled, scores)].map(|(rows, scores)| {
        let (verdict, _) = judged_by(&RulesConfig::default(), rows, &Candidate { scores }, None);
        verdict.measures
    });
    let close = |of: &dyn Fn(&Measures) -> Interval, tolerance: f64| {
        let (found, wanted) = (of(&part), of(&whole));
        assert!(
            (found.value - wanted.value).abs() < tolerance,
            "{found:?} {wanted:?}"
        );
        assert!(found.low.unwrap() < found.high.unwrap(), "{found:?}");
    };
    close(&|it| it.auc, 0.01);
    close(&|it| it.grouped_auc, 0.02);
    close(&|it| it.log_loss, 0.01);
    close(&|it| it.calibration_ratio, 0.03);
    close(&|it| it.ece, 0.02);
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

/// Rows that were sold by the truth, at a half of the bid or more.
fn sold() -> (Examples, Vec<f32>) {
    let (mut rows, truth) = rows();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let auction = |pctr: &f32| Auction {
        bid_micros: 1_000_000,
        price_micros: random.random_range(500_000..1_000_000),
        pctr: *pctr,
    };
    rows.auctions = truth.iter().map(auction).map(Some).collect();
    (rows, truth)
}

#[test]
fn a_model_that_would_earn_less_is_refused_if_a_rule_says_so() {
    let (rows, truth) = sold();
    let (live, model) = (moved(&truth, |_, logit| logit), noisy(&truth));
    // Ranking is not what this is about.
    let off = RulesConfig {
        max_auc_loss: 1.0,
        max_entropy_rise: 1.0,
        ..RulesConfig::default()
    };
    let on = |least_revenue_ratio| RulesConfig {
        least_revenue_ratio,
        ..off.clone()
    };
    let (verdict, refused) = judged_by(&off, &rows, &model, Some(&live));
    let reasons = |refused: &[String]| {
        let about = refused.iter().filter(|it| it.contains("revenue"));
        about.count()
    };
    assert_eq!(reasons(&refused), 0, "{refused:?}");
    let revenue = verdict.revenue.unwrap();
    assert_eq!(revenue.rows, ROWS);
    let ratio = revenue.ratio.unwrap();
    let (low, high) = (ratio.low.unwrap(), ratio.high.unwrap());
    assert!(
        low < ratio.value && ratio.value < high && high < 0.98,
        "{ratio:?}"
    );
    // Draws are paired: the ratio is more certain than what it is of.
    let earned = revenue.model.per_mille;
    let spread = (earned.high.unwrap() - earned.low.unwrap()) / earned.value;
    assert!(high - low < 0.8 * spread, "{ratio:?} {earned:?}");
    // The live model is what served.
    let against = revenue.against.unwrap();
    assert!(
        (against.over_observed.value - 1.0).abs() < 1e-3,
        "{against:?}"
    );
    assert!(against.kept > revenue.model.kept);

    let (_, refused) = judged_by(&on(0.98), &rows, &model, Some(&live));
    let reason = refused
        .iter()
        .find(|it| it.contains("rules.least_revenue_ratio"));
    assert!(
        reason.unwrap().contains("wanted at least 0.98"),
        "{refused:?}"
    );
    // Not certainly below that, the other way round, and alone.
    for (rules, model, other) in [
        (on(low), &model, Some(&live)),
        (on(0.98), &live, Some(&model)),
        (on(0.98), &model, None),
    ] {
        let (_, refused) = judged_by(&rules, &rows, model, other);
        assert_eq!(reasons(&refused), 0, "{refused:?}");
    }
    let many = RulesConfig {
        min_rows: ROWS + 1,
        ..on(0.5)
    };
    let (_, refused) = judged_by(&many, &rows, &model, Some(&live));
    assert_eq!(reasons(&refused), 1, "{refused:?}");
}

#[test]
fn without_bids_the_report_says_so_and_a_rule_of_revenue_cannot_be_judged() {
    let (_, truth) = rows();
    let model = noisy(&truth);
    let live = moved(&truth, |_, logit| logit);
    let (mut verdict, _) = judged(&model, Some(&live));
    assert_eq!(verdict.revenue, None);
    assert!(rules::told(&verdict).contains("no bids in the table"));
    let on = RulesConfig {
        least_revenue_ratio: 0.9,
        ..RulesConfig::default()
    };
    assert!(can_judge(&RulesConfig::default(), &verdict));
    assert!(!can_judge(&on, &verdict));
    // With nothing to compare with the rule says nothing.
    verdict.against_measures = None;
    assert!(can_judge(&on, &verdict));
}

#[test]
fn the_page_has_verdict_measures_and_the_worst_slices() {
    let (rows, truth) = sold();
    let model = moved(&truth, |at, logit| logit + [0.3, -0.31, 0.0][at % 3]);
    let other = noisy(&truth);
    let rules = RulesConfig::default();
    let (mut verdict, refused) = judged_by(&rules, &rows, &model, Some(&other));
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
        "revenue per 1000 impressions",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let text = rules::told(&verdict);
    assert!(
        text.contains("less that of def") && text.contains("refused: "),
        "{text}"
    );
    assert!(text.contains("; 30000 rows brought 2"), "{text}");
    assert!(text.contains("; def "), "{text}");
    verdict.revenue = None;
    let html = page::page(&GateConfig::default(), &verdict, &rows, &model, None);
    assert!(html.contains("No bids in the table"));
}

#[test]
fn the_page_shows_the_ten_worst_of_all_slices_by_their_calibration() {
    let (mut rows, truth) = rows();
    for at in 0..ROWS {
        rows.devices[at] = format!("device{}", at % 15);
        rows.formats[at] = ["banner", "video"][at % 2].to_owned();
    }
    // Three are far off.
    let off = |at: usize| [0.6, 1.2, 1.8].get((at % 15).wrapping_sub(12)).copied();
    let model = moved(&truth, |at, logit| logit + off(at).unwrap_or_default());
    let (verdict, _) = judged_by(&RulesConfig::default(), &rows, &model, None);
    for by in ["device", "format", "genre", "ad"] {
        let of = verdict.slices.iter().filter(|slice| slice.by == by);
        assert_eq!(of.map(|slice| slice.rows).sum::<usize>(), ROWS, "{by}");
    }
    let html = page::page(&GateConfig::default(), &verdict, &rows, &model, None);
    let (_, worst) = html.split_once("10 worst slices").unwrap();
    let (worst, _) = worst.split_once("Curves").unwrap();
    let shown: Vec<&str> = worst.split("<tr><td>").skip(1).collect();
    assert_eq!(shown.len(), 10);
    for (at, row) in shown.iter().take(3).enumerate() {
        let device = format!("device</td><td>device{}<", 14 - at);
        assert!(row.starts_with(&device), "{device} {row}");
    }
}
