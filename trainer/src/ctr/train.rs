//! The training loop.

use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use features::Schema;
use models::ctr::{CtrModel, CtrModelError, Normalisation};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{
    calibrate::fit_calibration,
    config::CtrConfig,
    evaluate::{Evaluation, evaluate, score_all},
    step::{Learner, StepBatch},
};
use crate::{sharding::ShardedTables, table::Examples};

/// Steps between two points of the loss curve.
const CURVE_STEPS: usize = 10;

/// One line of a run's metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Progress {
    /// The mean loss of the steps since the last line.
    Steps {
        /// Steps so far.
        step: usize,
        /// Rows so far.
        samples: usize,
        /// Mean training loss, nats.
        loss: f64,
        /// Rows per second since the start of the epoch.
        samples_per_second: f64,
    },
    /// The end of an epoch.
    Epoch {
        /// Epochs so far.
        epoch: usize,
        /// Measures on the validation rows.
        valid: Evaluation,
    },
}

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A table size for a feature that is not there.
    #[error(
        "tables.rows_of names `{feature}`, which is not a sparse feature of the table: {known}"
    )]
    UnknownFeature {
        /// The name.
        feature: String,
        /// What there is.
        known: String,
    },
    /// The loss is no number.
    #[error(
        "the loss at step {step} is {loss}: lower training.learning_rate, or look for huge values in the table"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The model does not fit its own rows.
    #[error("scoring with the model in training")]
    Score(#[from] CtrModelError),
    /// A number that cannot be.
    #[error("training.{key} is 0, wanted at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
}

/// Trains a model; `report` hears of steps and epochs as they happen.
///
/// Keeps the epoch with the lowest log loss on the validation rows, and fits its calibration
/// there.
///
/// # Errors
/// [`TrainError`].
pub fn train<B: AutodiffBackend>(
    config: &CtrConfig,
    schema: &Schema,
    train: &Examples,
    valid: &Examples,
    device: &B::Device,
    mut report: impl FnMut(&Progress),
) -> Result<CtrModel<B::InnerBackend>, TrainError> {
    for (key, value) in [
        ("batch_size", config.training.batch_size),
        ("epochs", config.training.epochs),
    ] {
        if value == 0 {
            return Err(TrainError::Zero { key });
        }
    }
    let tables = config
        .tables
        .tables(schema)
        .map_err(|feature| TrainError::UnknownFeature {
            feature,
            known: schema
                .sparse
                .iter()
                .map(|field| field.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    let tables = ShardedTables::new(&tables, config.tables.optimizer.clone(), config.seed);
    let normalisation = Normalisation::fit(&train.features.dense, train.features.num_dense);
    let mut learner = Learner::<B>::new(
        &config.model,
        &config.training,
        tables,
        normalisation,
        config.seed,
        device.clone(),
    );
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut best: Option<(f64, CtrModel<B::InnerBackend>)> = None;
    let (mut step, mut samples) = (0, 0);
    for epoch in 1..=config.training.epochs {
        order.shuffle(&mut random);
        let (started, before) = (Instant::now(), samples);
        let (mut sum, mut count) = (0.0, 0);
        for chunk in order.chunks(config.training.batch_size) {
            let loss = learner.step(&batch_of(train, chunk));
            step += 1;
            samples += chunk.len();
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step, loss });
            }
            sum += f64::from(loss);
            count += 1;
            if count == CURVE_STEPS {
                let samples_per_second =
                    (samples - before) as f64 / started.elapsed().as_secs_f64();
                report(&Progress::Steps {
                    step,
                    samples,
                    loss: sum / f64::from(count as u32),
                    samples_per_second,
                });
                (sum, count) = (0.0, 0);
            }
        }
        let model = snapshot(config, schema, &learner, device, valid)?;
        let evaluation = evaluate(&score_all(&model, valid, false)?, valid);
        report(&Progress::Epoch {
            epoch,
            valid: evaluation.clone(),
        });
        if best
            .as_ref()
            .is_none_or(|(loss, _)| evaluation.log_loss < *loss)
        {
            best = Some((evaluation.log_loss, model));
        }
    }
    // At least one epoch was run.
    Ok(best.expect("one epoch or more").1)
}

fn batch_of(rows: &Examples, chunk: &[usize]) -> StepBatch {
    StepBatch {
        features: rows.features.gather(chunk),
        labels: chunk.iter().map(|row| rows.clicks[*row]).collect(),
        weights: chunk.iter().map(|row| rows.weights[*row]).collect(),
    }
}

/// The model as it stands, calibrated on the validation rows.
fn snapshot<B: AutodiffBackend>(
    config: &CtrConfig,
    schema: &Schema,
    learner: &Learner<B>,
    device: &B::Device,
    valid: &Examples,
) -> Result<CtrModel<B::InnerBackend>, TrainError> {
    let (network, tables) = learner.parts();
    let normalisation = learner.normalisation().clone();
    let mut model = CtrModel::new(
        config.model.clone(),
        schema.clone(),
        normalisation,
        tables,
        network,
        device.clone(),
    );
    let logits = score_all(&model, valid, true)?;
    model.calibration = fit_calibration(&logits, &valid.clicks, &valid.weights);
    Ok(model)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use models::Cpu;
    use rand::Rng;

    use super::*;

    /// Rows whose click is certain for ids below 50, and otherwise follows a dense number.
    fn rows(count: usize, seed: u64) -> (Schema, Examples) {
        let schema: Schema = serde_json::from_value(serde_json::json!({
            "digest": "d", "dense": [{"name": "x"}], "sparse": [{"name": "id", "multi": false}],
        }))
        .unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = Examples::empty(&schema);
        for row in 0..count {
            let (x, id) = (
                random.random_range(-1.0f32..1.0),
                random.random_range(0u64..100),
            );
            rows.features.dense.push(x);
            rows.features.sparse[0].push_row(&[id]);
            rows.features.num_rows += 1;
            rows.clicks.push(f32::from(u8::from(id < 50 || x > 0.8)));
            rows.weights.push(1.0);
            rows.impression_ids.push(format!("{row}"));
        }
        (schema, rows)
    }

    fn config() -> CtrConfig {
        let mut config = CtrConfig::default();
        config.model.hidden = vec![16];
        config.model.num_cross_layers = 1;
        config.tables.rows = 128;
        config.tables.embedding_dim = 4;
        config.training.batch_size = 64;
        config.training.epochs = 3;
        config
    }

    fn fit(config: &CtrConfig) -> (CtrModel<Cpu>, Vec<Progress>) {
        let (schema, data) = rows(3000, 1);
        let (_, valid) = rows(500, 2);
        let mut told = Vec::new();
        let model = train::<Autodiff<Cpu>>(
            config,
            &schema,
            &data,
            &valid,
            &Default::default(),
            |progress| {
                told.push(progress.clone());
            },
        );
        (model.unwrap(), told)
    }

    #[test]
    fn ids_and_numbers_are_learnt_and_calibrated() {
        let (model, told) = fit(&config());
        let (_, test) = rows(2000, 3);
        let evaluation = evaluate(&score_all(&model, &test, false).unwrap(), &test);
        assert!(evaluation.auc.unwrap() > 0.97, "{evaluation:?}");
        assert!(
            (evaluation.calibration_ratio - 1.0).abs() < 0.05,
            "{evaluation:?}"
        );
        assert_eq!(
            told.iter()
                .filter(|progress| matches!(progress, Progress::Epoch { .. }))
                .count(),
            3
        );
    }

    #[test]
    fn a_seed_fixes_the_model_bit_for_bit() {
        let (_, test) = rows(200, 3);
        let mut config = config();
        config.model.net_dropout = 0.1;
        let scores = |config: &CtrConfig| score_all(&fit(config).0, &test, false).unwrap();
        let first = scores(&config);
        assert_eq!(first, scores(&config));
        config.seed = 2;
        assert_ne!(first, scores(&config));
    }

    #[test]
    fn a_table_of_an_unknown_feature_is_refused() {
        let (schema, data) = rows(100, 1);
        let mut config = config();
        config.tables.rows_of.insert("idd".into(), 5);
        let result =
            train::<Autodiff<Cpu>>(&config, &schema, &data, &data, &Default::default(), |_| {});
        assert!(matches!(result, Err(TrainError::UnknownFeature { .. })));
    }
}
