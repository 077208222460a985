//! Conversions after clicks, of which the late ones are not known yet.

use serde_json::json;

use super::*;
use crate::{
    ctr::{evaluate::score_conversions, train::TrainError},
    table::Outcome,
};

const HOUR_US: i64 = 3_600_000_000;

/// Gives the last row an outcome: every third clicked id converts, some hours later; of every other row
/// it is known whether.
pub(super) fn convert(rows: &mut Examples, id: u64, clicked: bool) {
    let at = rows.len() - 1;
    let is_final = at.is_multiple_of(2);
    let known = if is_final { 48 } else { at as i64 % 10 };
    let delay = 1 + (id as i64 + at as i64) % 17;
    let converted = clicked && id.is_multiple_of(3) && delay <= known;
    rows.conversions[at] = f32::from(u8::from(converted));
    rows.outcomes[at] = Outcome {
        view_us: 0,
        click_us: clicked.then_some(0),
        conversion_us: converted.then_some(delay * HOUR_US),
        labels_as_of_us: known * HOUR_US,
        is_final,
    };
}

pub(super) fn mmoe() -> CtrConfig {
    let mut config = config();
    let model = json!({
        "architecture": "mmoe", "num_experts": 2, "expert_hidden": [16], "tower_hidden": [8],
        "net_dropout": 0.1,
    });
    config.model = serde_json::from_value(model).unwrap();
    config.training.learning_rate = 0.003;
    config
}

/// Steps and losses, and every measure of conversions.
fn measures(told: &[Progress]) -> Vec<(u64, f64)> {
    let point = |progress: &Progress| match progress {
        Progress::Steps { step, loss, .. } => vec![(*step, *loss)],
        Progress::Epoch { epoch, valid, .. } => {
            let conversions = valid.conversions.as_ref().unwrap();
            let values = [
                valid.log_loss,
                conversions.log_loss,
                conversions.auc.unwrap(),
            ];
            values.map(|value| (1_000_000 + epoch, value)).to_vec()
        }
        _ => Vec::new(),
    };
    told.iter().flat_map(point).collect()
}

#[test]
fn clicks_and_conversions_are_learnt_together() {
    let (model, told) = fit(&mmoe(), 1);
    assert_eq!(model.num_tasks(), 2);
    let evaluation = measured(&model, &rows(2000, 3));
    assert!(evaluation.auc.unwrap() > 0.97, "{evaluation:?}");
    let last = told.iter().rev().find_map(|told| match told {
        Progress::Epoch { valid, .. } => valid.conversions.clone(),
        _ => None,
    });
    let last = last.unwrap();
    assert!(last.cvr_auc.unwrap() > 0.7, "{last:?}");
    assert!(last.auc.unwrap() > 0.8, "{last:?}");
    assert!((0.5..0.9).contains(&last.observed), "{last:?}");
    // What the training rows say of the delay goes with the model.
    let (_dir, rows) = table(3000, 1);
    let fitted = crate::ctr::Delay::fit(&rows, &mut TcpGroup::alone()).unwrap();
    assert_eq!(model.delay, Some(fitted.into()));
}

#[test]
fn any_number_of_ranks_measures_the_same_conversions() {
    let config = mmoe();
    let wanted = measures(&fit(&config, 1).1);
    for world_size in [2, 3] {
        let found = measures(&fit(&config, world_size).1);
        // An AUC of 500 rows moves by steps.
        assert_close(&found, &wanted, 2e-3);
    }
}

#[test]
fn an_interrupted_run_of_two_tasks_equals_the_uninterrupted_bit_for_bit() {
    let mut config = mmoe();
    config.checkpoint.every_steps = 7;
    config.training.micro_batches = 2;
    let (whole, told) = fit(&config, 1);
    let stops = [Stop::AtOnce, Stop::AtPoint, Stop::AtPoint, Stop::Never];
    let dir = tempfile::tempdir().unwrap();
    let (mut all, mut model_of_parts) = (Vec::new(), None);
    for stop in stops {
        let part = Part {
            config: &config,
            world_size: 1,
            dir: dir.path(),
            rows: 3000,
            stop,
        };
        let (trained, told) = part.run();
        if let Some(Progress::Resumed(resumed)) = told.first() {
            all.retain(|(step, _)| *step > 1_000_000 || *step <= resumed.step);
        }
        all.extend(measures(&told));
        match trained.unwrap() {
            Trained::Done(model) => model_of_parts = Some(model),
            Trained::Stopped { .. } => assert_ne!(stop, Stop::Never),
        }
    }
    assert_eq!(all, measures(&told));
    let both = |model| score_conversions(model, &rows(300, 3)).unwrap();
    assert_eq!(both(&model_of_parts.unwrap()), both(&whole));
}

#[test]
fn rows_without_conversions_are_refused_for_two_tasks_alone() {
    let mut data = rows(640, 1);
    data.conversions.fill(0.0);
    for outcome in &mut data.outcomes {
        outcome.conversion_us = None;
    }
    let refused = train_on(&mmoe(), &data).err();
    assert!(
        matches!(refused, Some(TrainError::NoConversions { rows: 640 })),
        "{refused:?}"
    );
    assert!(train_on(&config(), &data).is_ok());
}

fn train_on(config: &CtrConfig, data: &Examples) -> Result<CtrModel<Cpu>, TrainError> {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::local(dir.path()).unwrap();
    let saved = config.checkpoint.clone();
    let mut checkpoints = Checkpoints::new(folder, saved, "run".into(), TcpGroup::alone());
    let (_train, train_rows) = testing::table(data, 500);
    let (_valid, valid) = table(300, 2);
    let task = Task {
        config,
        schema: train_rows.schema(),
        train: &train_rows,
        valid: &valid,
    };
    let (stop, mut groups) = (AtomicBool::new(false), Groups::alone());
    let device = Default::default();
    let trained =
        train::<Autodiff<Cpu>, _, _>(task, &device, &mut groups, &mut checkpoints, &stop, |_| ());
    trained.map(model)
}

/// True probabilities of a click, and of a conversion after one.
fn truth(x: f32, id: u64) -> [f64; 2] {
    [
        if id < 50 { 0.7 } else { 0.3 },
        if x < 0.0 { 0.2 } else { 0.4 },
    ]
}

/// Rows of [`truth`] whose conversions take a day in the mean: a quarter of them are watched for a week,
/// within which conversions count, and the others for up to a day.
fn censored(count: usize) -> Examples {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut rows = Examples::empty(&testing::schema());
    for at in 0..count {
        let (x, id) = (
            random.random_range(-1.0f32..1.0),
            random.random_range(0u64..100),
        );
        let [click, conversion] = truth(x, id);
        let clicked = random.random_bool(click);
        let delay_us = -24.0 * random.random::<f64>().ln() * HOUR_US as f64;
        let will = clicked && random.random_bool(conversion) && delay_us < 168.0 * HOUR_US as f64;
        let is_final = at.is_multiple_of(4);
        let known_us = match is_final {
            true => 168 * HOUR_US,
            false => random.random_range(0..24 * HOUR_US),
        };
        let converted = will && delay_us as i64 <= known_us;
        testing::push(&mut rows, x, id, &[], (f32::from(u8::from(clicked)), 1.0));
        rows.conversions[at] = f32::from(u8::from(converted));
        rows.outcomes[at] = Outcome {
            view_us: 0,
            click_us: clicked.then_some(0),
            conversion_us: converted.then_some(delay_us as i64),
            labels_as_of_us: known_us,
            is_final,
        };
    }
    rows
}

#[test]
fn conversions_that_have_not_arrived_are_allowed_for() {
    let mut config = mmoe();
    config.training.epochs = 4;
    let data = censored(12_000);
    // Mean prediction of a conversion after a click over mean truth.
    let ratio = |data: &Examples| {
        let model = train_on(&config, data).unwrap();
        let scores = score_conversions(&model, data).unwrap();
        let truths = (0..data.len()).map(|row| {
            let id = data.features.sparse[0].row(row)[0];
            truth(data.features.dense[row], id)
        });
        let wanted: f64 = truths.map(|[_, conversion]| conversion).sum();
        let found: f64 = scores
            .iter()
            .map(|[_, conversion]| f64::from(*conversion))
            .sum();
        found / wanted
    };
    let corrected = ratio(&data);
    // As if all that is known were all that will be.
    let mut as_they_stand = data.clone();
    for outcome in &mut as_they_stand.outcomes {
        outcome.is_final = true;
    }
    let uncorrected = ratio(&as_they_stand);
    assert!((corrected - 1.0).abs() < 0.1, "{corrected}");
    assert!(uncorrected < 0.65, "{uncorrected}");
}
