//! What a configuration of `[training]` cannot say.

use models::ctr::NetworkConfig;

use super::{
    CalibrationMethod,
    config::{CtrConfig, Objective, TrainingConfig},
    train::TrainError,
};
use crate::schedule::{Decay, ScheduleConfig};

/// Numbers that can be, and keys that go together.
///
/// # Errors
/// [`TrainError`] with the key.
pub(super) fn check(config: &CtrConfig) -> Result<(), TrainError> {
    for (key, value) in [
        ("batch_size", config.training.batch_size),
        ("epochs", config.training.epochs),
        ("micro_batches", config.training.micro_batches),
    ] {
        if value == 0 {
            return Err(TrainError::Zero { key });
        }
    }
    check_ranges(&config.training)?;
    if config.training.objective == Objective::BatchSoftmax {
        check_batch_softmax(config)?;
    }
    Ok(())
}

fn check_ranges(training: &TrainingConfig) -> Result<(), TrainError> {
    let optimizer = &training.optimizer;
    let shares = [
        ("ema_decay", training.ema_decay),
        ("label_smoothing", f64::from(training.label_smoothing)),
        ("optimizer.beta1", f64::from(optimizer.beta1)),
        ("optimizer.beta2", f64::from(optimizer.beta2)),
    ];
    let sizes = [
        ("learning_rate", training.learning_rate),
        ("weight_decay", f64::from(training.weight_decay)),
        ("schedule.floor", training.schedule.floor),
        ("optimizer.eps", f64::from(optimizer.eps)),
    ];
    let wrong = |(key, value): &(&'static str, f64), wanted| TrainError::Range {
        key,
        value: *value,
        wanted,
    };
    if let Some(found) = shares.iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
        return Err(wrong(found, "at least 0 and below 1"));
    }
    let ScheduleConfig {
        decay, decay_steps, ..
    } = training.schedule;
    if decay == Decay::Plateau && decay_steps != ScheduleConfig::default().decay_steps {
        let found = ("schedule.decay_steps", decay_steps as f64);
        return Err(wrong(
            &found,
            "left out with plateau, which counts measures: see schedule.patience",
        ));
    }
    let is_size = |value: f64| value.is_finite() && value >= 0.0;
    if let Some(found) = sizes.iter().find(|(_, value)| !is_size(*value)) {
        return Err(wrong(found, "a number of at least 0"));
    }
    Ok(())
}

/// What a batch softmax has no use for, or cannot do.
fn check_batch_softmax(config: &CtrConfig) -> Result<(), TrainError> {
    let training = &config.training;
    let NetworkConfig::TwoTower(towers) = &config.model else {
        return Err(TrainError::NoTowers);
    };
    if towers.item_features.is_empty() {
        return Err(TrainError::NoItemFeatures);
    }
    if training.calibration == CalibrationMethod::None {
        return Err(TrainError::Uncalibrated);
    }
    let range = |key, value, wanted| Err(TrainError::Range { key, value, wanted });
    if training.micro_batches > 1 {
        let wanted = "1 with the objective batch_softmax, whose negatives are those of the batch";
        return range("micro_batches", training.micro_batches as f64, wanted);
    }
    if training.label_smoothing > 0.0 {
        let wanted = "0 with the objective batch_softmax, which learns from clicks alone";
        return range("label_smoothing", training.label_smoothing.into(), wanted);
    }
    Ok(())
}
