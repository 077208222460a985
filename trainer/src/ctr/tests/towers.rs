//! Two towers that learn from the ads of their batch.

use models::ctr::network::TwoTowerConfig;

use super::*;
use crate::ctr::{CalibrationMethod, Objective};

/// Ads by `id`, of which half are clicked by everyone.
fn towers() -> CtrConfig {
    let mut config = config();
    config.model = NetworkConfig::TwoTower(TwoTowerConfig {
        item_features: vec!["id".to_owned()],
        hidden: vec![16],
        output_dim: 8,
        net_dropout: 0.1,
        ..TwoTowerConfig::default()
    });
    config.training.objective = Objective::BatchSoftmax;
    config.training.learning_rate = 0.01;
    config
}

/// `(step, loss)` of training and of retrieval.
fn retrieval_losses(told: &[Progress]) -> Vec<(u64, f64)> {
    let of_epoch = |progress: &Progress| match progress {
        Progress::Epoch { epoch, valid, .. } => {
            Some((2_000_000 + epoch, valid.retrieval.as_ref().unwrap().loss))
        }
        _ => None,
    };
    let mut all = losses(told);
    all.extend(told.iter().filter_map(of_epoch));
    all
}

#[test]
fn clicked_ads_are_found() {
    let (model, told) = fit(&towers(), 1);
    let rows = rows(2000, 3);
    let found = crate::ctr::retrieval::evaluate_retrieval(&model, &rows).unwrap();
    let found = found.unwrap();
    // Nearly all clicks are of 50 ads of 100.
    assert_eq!(found.items, 100);
    assert!(found.loss < 4.2 && found.recall_at_10 > 0.15, "{found:?}");
    let measured = told.iter().filter_map(|told| match told {
        Progress::Epoch { valid, .. } => valid.retrieval.clone(),
        _ => None,
    });
    let measured: Vec<_> = measured.collect();
    assert_eq!(measured.len(), 3);
    assert!(measured[2].loss < measured[0].loss, "{measured:?}");
    // Scores stay probabilities: calibration sees to that.
    let ratio = super::measured(&model, &rows).calibration_ratio;
    assert!((ratio - 1.0).abs() < 0.1, "{ratio}");
}

#[test]
fn any_number_of_ranks_has_the_negatives_of_all() {
    let mut config = towers();
    // The last step of an epoch has two rows.
    for batch_size in [64, 1499] {
        config.training.batch_size = batch_size;
        let wanted = retrieval_losses(&fit(&config, 1).1);
        for world_size in 2..=4 {
            let found = retrieval_losses(&fit(&config, world_size).1);
            assert_close(&found, &wanted, 2e-4);
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn a_gpu_has_the_same_loss_of_retrieval() {
    type B = Autodiff<crate::backend::Gpu<burn::backend::wgpu::WgpuRuntime>>;
    let mut config = towers();
    config.training.epochs = 1;
    let wanted = retrieval_losses(&fit(&config, 1).1);
    for world_size in [1, 2] {
        let found = retrieval_losses(&fit_on::<B>(&config, world_size).1);
        assert_close(&found, &wanted, 2e-4);
    }
}

#[test]
fn a_run_of_two_towers_goes_on_where_it_was_stopped() {
    let mut config = towers();
    config.checkpoint.every_steps = 7;
    for world_size in [1, 2] {
        check_goes_on(&config, world_size);
    }
}

#[test]
fn towers_that_learn_row_by_row_are_measured_as_well() {
    let mut config = towers();
    config.training.objective = Objective::CrossEntropy;
    let (_, told) = fit(&config, 2);
    assert!(retrieval_losses(&told).len() > losses(&told).len());
    let (_, others) = fit(&super::config(), 1);
    let of_others = |told: &Progress| matches!(told, Progress::Epoch { valid, .. } if valid.retrieval.is_some());
    assert!(!others.iter().any(of_others));
}

#[test]
fn a_step_without_a_click_moves_nothing_and_is_no_loss() {
    let mut config = towers();
    config.training.batch_size = 1;
    config.training.epochs = 1;
    config.training.guard.spike_factor = 5.0;
    let (_, told) = fit(&config, 1);
    let skipped = told
        .iter()
        .filter(|told| matches!(told, Progress::Skipped { .. }));
    assert_eq!(skipped.count(), 0);
    // A click alone has nobody to be told from: its loss is 0, and clickless steps have none at all.
    let steps = told.iter().filter_map(|told| match told {
        Progress::Steps { step, samples, .. } => Some((*step, *samples)),
        _ => None,
    });
    let steps: Vec<(u64, u64)> = steps.collect();
    assert!(steps.len() > 10 && steps.iter().all(|(step, samples)| step == samples));
    // Ten clicks a line, and more steps than that.
    assert!(steps[0].0 > 10, "{steps:?}");
}

fn nameless() -> NetworkConfig {
    NetworkConfig::TwoTower(TwoTowerConfig::default())
}

#[test]
fn what_a_batch_softmax_has_no_use_for_is_refused() {
    let ended = |change: &dyn Fn(&mut CtrConfig)| {
        let mut config = towers();
        change(&mut config);
        end_of::<Autodiff<Cpu>>(&config, 1).unwrap_err()
    };
    let error = ended(&|config| config.model = network(0.0));
    assert!(matches!(error, TrainError::NoTowers), "{error}");
    let error = ended(&|config| config.training.micro_batches = 2);
    assert!(
        error.to_string().contains("training.micro_batches is 2"),
        "{error}"
    );
    let error = ended(&|config| config.training.calibration = CalibrationMethod::None);
    assert!(matches!(error, TrainError::Uncalibrated), "{error}");
    let error = ended(&|config| config.model = nameless());
    assert!(matches!(error, TrainError::NoItemFeatures), "{error}");
    let error = ended(&|config| config.training.label_smoothing = 0.1);
    assert!(
        error.to_string().contains("training.label_smoothing"),
        "{error}"
    );
}
