//! The parts of a training recipe: architectures, optimizers, means, stops and corrections.

use models::ctr::{NetworkError, network::DlrmConfig};
use serde_json::json;

use super::*;
use crate::{
    ctr::CalibrationMethod,
    dense::DenseOptimizer,
    schedule::{Decay, ScheduleConfig},
};

#[test]
fn every_architecture_learns_and_has_the_same_loss_curve_on_two_ranks() {
    for architecture in [
        "fm",
        "deep_fm",
        "dlrm",
        "dcn_v2",
        "auto_int",
        "final_mlp",
        "two_tower",
        "mmoe",
    ] {
        let mut config = config();
        config.model = serde_json::from_value(json!({"architecture": architecture})).unwrap();
        config.training.learning_rate = 0.003;
        config.tables.optimizer.learning_rate = 0.1;
        let (model, told) = fit(&config, 1);
        let found = measured(&model, &rows(2000, 3)).auc.unwrap();
        assert!(found > 0.9, "{architecture}: {found}");
        assert_close(&losses(&fit(&config, 2).1), &losses(&told), 2e-4);
    }
}

#[test]
fn a_logistic_regression_says_what_a_line_can() {
    let mut config = config();
    let value = json!({"architecture": "logistic_regression"});
    config.model = serde_json::from_value(value).unwrap();
    config.training.learning_rate = 0.05;
    config.tables.optimizer.learning_rate = 0.3;
    let (model, _) = fit(&config, 1);
    let found = measured(&model, &rows(2000, 3)).auc.unwrap();
    assert!(found > 0.9, "{found}");
}

#[test]
fn features_of_other_lengths_are_for_networks_that_allow_them() {
    let mut config = config();
    config.tables.dim_of = [("several".into(), 2)].into();
    let (model, _) = fit(&config, 1);
    assert!(measured(&model, &rows(2000, 3)).auc.unwrap() > 0.97);
    config.model = NetworkConfig::Dlrm(DlrmConfig::default());
    let ended = end_of::<Autodiff<Cpu>>(&config, 1);
    let refused = matches!(
        ended,
        Err(TrainError::Network(NetworkError::UnequalDims { .. }))
    );
    assert!(refused, "{ended:?}");
    config.tables.dim_of = [("no".into(), 2)].into();
    let error = end_of::<Autodiff<Cpu>>(&config, 1).unwrap_err().to_string();
    assert!(error.contains("tables.dim_of names `no`"), "{error}");
}

#[test]
fn every_optimizer_learns_with_a_mean_of_its_weights_and_goes_on_where_it_was_stopped() {
    for (kind, learning_rate) in [
        (DenseOptimizer::Adam, 0.003),
        (DenseOptimizer::AdamW, 0.003),
        (DenseOptimizer::Adagrad, 0.03),
        (DenseOptimizer::Lamb, 0.01),
    ] {
        let mut config = config();
        config.checkpoint.every_steps = 7;
        config.training.optimizer.kind = kind;
        config.training.learning_rate = learning_rate;
        config.training.weight_decay = 1e-4;
        config.training.ema_decay = 0.99;
        let (whole, told) = fit(&config, 1);
        let found = measured(&whole, &rows(2000, 3)).auc.unwrap();
        assert!(found > 0.95, "{kind:?}: {found}");
        let stops = [Stop::AtOnce, Stop::AtPoint, Stop::AtPoint, Stop::Never];
        let (model, metrics) = in_parts(&config, &stops.map(|stop| (1, stop)));
        assert_eq!(scores(&model), scores(&whole), "{kind:?}");
        assert_eq!(metrics, losses(&told), "{kind:?}");
        // The mean is not what is learnt with, and it is what scores.
        config.training.ema_decay = 0.0;
        let (without, told_without) = fit(&config, 1);
        let steps = |told: &[Progress]| -> Vec<_> {
            let points = losses(told).into_iter();
            points.filter(|(step, _)| *step < 1_000_000).collect()
        };
        assert_eq!(steps(&told_without), steps(&told), "{kind:?}");
        assert_ne!(scores(&without), scores(&whole), "{kind:?}");
    }
}

/// Steps and log losses of all measures.
fn measures(told: &[Progress]) -> Vec<(u64, f64)> {
    let measure = |told: &Progress| match told {
        Progress::Evaluated { step, valid, .. } | Progress::Epoch { step, valid, .. } => {
            Some((*step, valid.log_loss))
        }
        _ => None,
    };
    told.iter().filter_map(measure).collect()
}

#[test]
fn a_run_ends_after_measures_without_a_better_one_and_keeps_the_best() {
    let mut config = config();
    // Far too fast: it soon gets worse.
    config.training.learning_rate = 0.05;
    config.training.epochs = 20;
    config.training.evaluate_every_steps = 10;
    config.training.early_stopping = 5;
    config.checkpoint.keep = 1;
    for world_size in [1, 2] {
        let (model, told) = fit(&config, world_size);
        let measures = measures(&told);
        let best = measures
            .iter()
            .map(|(_, loss)| *loss)
            .fold(f64::INFINITY, f64::min);
        let at = measures.iter().position(|(_, loss)| *loss == best).unwrap();
        assert_eq!(measures.len(), at + 6, "{measures:?}");
        assert!(measures.len() < 100, "{measures:?}");
        let found = measured(&model, &rows(500, 2)).log_loss;
        assert!((found - best).abs() < 1e-5, "{found} {best}");
    }
    let (whole, told) = fit(&config, 1);
    let stops = [Stop::AtOnce, Stop::AtPoint, Stop::AtPoint, Stop::Never];
    let (model, metrics) = in_parts(&config, &stops.map(|stop| (1, stop)));
    assert_eq!(scores(&model), scores(&whole));
    assert_eq!(metrics, losses(&told));
}

#[test]
fn rates_fall_when_measures_stop_getting_better() {
    let mut config = config();
    config.training.learning_rate = 0.05;
    config.training.epochs = 4;
    config.training.evaluate_every_steps = 10;
    let (_, before) = fit(&config, 1);
    config.training.schedule = ScheduleConfig {
        decay: Decay::Plateau,
        patience: 2,
        floor: 0.0,
        ..ScheduleConfig::default()
    };
    let (_, told) = fit(&config, 1);
    let (before, found) = (measures(&before), measures(&told));
    // Until the fall they are the same; after it nothing moves any more.
    let mut since = 0;
    let mut best = f64::INFINITY;
    let fall = found.iter().position(|(_, loss)| {
        since = if *loss < best { 0 } else { since + 1 };
        best = best.min(*loss);
        since == 2
    });
    let fall = fall.unwrap();
    assert_eq!(found[..=fall], before[..=fall]);
    assert!(
        found[fall + 1..]
            .iter()
            .all(|(_, loss)| *loss == found[fall].1)
    );
    assert!(fall + 1 < found.len());
}

#[test]
fn fresh_rows_every_epoch_keep_ids_from_being_learnt_by_heart() {
    let mut config = config();
    config.training.epochs = 4;
    config.tables.rows = 100_000;
    config.tables.optimizer.learning_rate = 0.5;
    let last = |config: &CtrConfig| {
        let (model, told) = fit(config, 1);
        let told = losses(&told);
        let mut steps = told.iter().filter(|(step, _)| *step < 1_000_000);
        (model, steps.next_back().unwrap().1, told)
    };
    // The ids of `several` never come again, but for the epochs.
    let (_, by_heart, _) = last(&config);
    config.tables.reinitialise_each_epoch = true;
    let (whole, loss, told) = last(&config);
    assert!(loss > 1.2 * by_heart, "{loss} {by_heart}");
    config.checkpoint.every_steps = 7;
    let stops = [
        Stop::AtPoint,
        Stop::AtPoint,
        Stop::AtOnce,
        Stop::AtPoint,
        Stop::AtPoint,
        Stop::AtPoint,
        Stop::Never,
    ];
    let (model, metrics) = in_parts(&config, &stops.map(|stop| (1, stop)));
    assert_eq!(scores(&model), scores(&whole));
    assert_eq!(metrics, told);
    assert_close(&losses(&fit(&config, 2).1), &told, 2e-4);
}

#[test]
fn smoothed_labels_make_less_certain_scores_which_a_calibration_puts_right() {
    let mut config = config();
    config.training.epochs = 6;
    let most_certain = |config: &CtrConfig| {
        let scores = scores(&fit(config, 1).0);
        scores
            .iter()
            .map(|score| (score - 0.5).abs())
            .fold(0.0, f32::max)
    };
    config.training.calibration = CalibrationMethod::None;
    let plain = most_certain(&config);
    config.training.label_smoothing = 0.2;
    let smooth = most_certain(&config);
    assert!(smooth < 0.48 && plain > 0.49, "{smooth} {plain}");
    for method in [CalibrationMethod::Platt, CalibrationMethod::Isotonic] {
        config.training.calibration = method;
        let found = measured(&fit(&config, 1).0, &rows(2000, 3));
        assert!(
            (found.calibration_ratio - 1.0).abs() < 0.05,
            "{method:?}: {found:?}"
        );
    }
}

#[test]
fn numbers_outside_of_their_range_are_refused_by_their_key() {
    let refused = |change: &dyn Fn(&mut CtrConfig)| {
        let mut config = config();
        change(&mut config);
        match end_of::<Autodiff<Cpu>>(&config, 1) {
            Err(TrainError::Range { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(&|config| config.training.ema_decay = 1.0),
        "ema_decay"
    );
    assert_eq!(
        refused(&|config| config.training.label_smoothing = -0.1),
        "label_smoothing"
    );
    assert_eq!(
        refused(&|config| config.training.optimizer.beta1 = f32::NAN),
        "optimizer.beta1"
    );
    assert_eq!(
        refused(&|config| config.training.optimizer.beta2 = 1.0),
        "optimizer.beta2"
    );
    assert_eq!(
        refused(&|config| config.training.learning_rate = f64::NAN),
        "learning_rate"
    );
    assert_eq!(
        refused(&|config| config.training.schedule.floor = -0.1),
        "schedule.floor"
    );
}
