//! The training loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, Scope},
    time::Instant,
};

use features::Schema;
use models::{
    ctr::{Calibration, CtrModel, CtrModelError, Normalisation},
    ops::TrainingBackend,
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    calibrate::fit_calibration,
    config::CtrConfig,
    evaluate::{Evaluation, SCORE_BATCH, evaluate},
    step::{Groups, Learner, RoutedBatch, StepBatch, StepLimits, StepOutcome},
};
use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    collective::{CollectiveError, ProcessGroup, split_evenly},
    sharding::{PlanError, Planner, Router, ShardedTables},
    table::Examples,
};

/// Steps between two points of the loss curve.
const CURVE_STEPS: u64 = 10;

/// Steps before a loss can count as a spike.
const GUARD_WARM_UP: u64 = 20;

/// One line of a run's metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Progress {
    /// The run goes on from a checkpoint; lines of later steps and epochs do not count.
    Resumed {
        /// Steps so far.
        resumed_step: u64,
        /// Epochs so far.
        resumed_epoch: u64,
        /// Rows so far.
        samples: u64,
    },
    /// The mean loss of the steps since the last line.
    Steps {
        /// Steps so far.
        step: u64,
        /// Rows so far, of all ranks.
        samples: u64,
        /// Mean training loss, nats.
        loss: f64,
        /// Length of the dense gradient of the last step.
        gradient_norm: f32,
        /// Rows per second of all ranks since the start of the epoch.
        samples_per_second: f64,
    },
    /// A step whose loss or gradient was no number, or a spike: it moved nothing.
    Skipped {
        /// The step.
        step: u64,
        /// Its epoch, from 0.
        epoch: u64,
        /// Its place in the epoch's order.
        batch: usize,
        /// The first of its rows.
        impression_id: String,
        /// Its loss.
        skipped_loss: f32,
    },
    /// The end of an epoch.
    Epoch {
        /// Epochs so far.
        epoch: u64,
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
    /// Steps in a row that could not be taken.
    #[error(
        "{count} steps in a row up to step {step} were skipped, the last with loss {loss}: lower training.learning_rate, or look for huge values in the rows named in metrics.jsonl"
    )]
    Diverged {
        /// The last of them.
        step: u64,
        /// How many (`training.guard.stop_after`).
        count: u64,
        /// The last loss.
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
    /// The tables cannot be spread.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A rank was lost, or the like.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What to learn.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// How.
    pub config: &'a CtrConfig,
    /// Columns of the rows.
    pub schema: &'a Schema,
    /// Rows to learn from.
    pub train: &'a Examples,
    /// Rows to choose the epoch and to calibrate by.
    pub valid: &'a Examples,
}

/// How training ended.
#[derive(Debug)]
pub enum Trained {
    /// With a model, equal on all ranks.
    Done(Box<CtrModel>),
    /// It was asked to stop, and saved itself at a step.
    Stopped {
        /// The step.
        step: u64,
    },
}

/// Where a run stands; what a checkpoint keeps besides the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Epochs that are done.
    epoch: u64,
    /// Steps of this epoch that are done.
    batch: usize,
    step: u64,
    samples: u64,
    /// Steps that moved weights.
    updates: u64,
    /// Of the steps since the last line of the metrics.
    #[serde(with = "bits")]
    curve_sum: f64,
    curve_count: u64,
    /// Running mean of the loss, for the guard.
    #[serde(with = "bits")]
    mean_loss: f64,
    /// Steps in a row that were skipped.
    skipped: u64,
    best: Option<Best>,
}

/// The best epoch so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    #[serde(with = "bits")]
    log_loss: f64,
    /// The checkpoint's step.
    step: u64,
    updates: u64,
    /// Fitted on the validation rows then.
    calibration: Calibration,
}

/// An f64 as its bits: read back from decimals it may be another in the last place.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

/// Trains a model, from the newest checkpoint if there is one; `report` hears of steps and epochs
/// as they happen, and `stop` is looked at in every step.
///
/// The epoch with the lowest log loss on the validation rows is kept, and its calibration fitted
/// there. The same seed gives the same bits with the same number of ranks, however often the run
/// was interrupted, and the same losses to rounding with any number.
///
/// # Errors
/// [`TrainError`].
pub fn train<B: TrainingBackend, G: ProcessGroup + 'static>(
    task: Task<'_>,
    device: &B::Device,
    groups: &mut Groups<G>,
    checkpoints: &mut Checkpoints<G>,
    stop: &AtomicBool,
    mut report: impl FnMut(&Progress),
) -> Result<Trained, TrainError> {
    let mut learner = learner::<B>(task, groups, device)?;
    let mut state = State::default();
    if let Some(restored) = checkpoints.latest(&mut groups.dense, |part| learner.needs(part))? {
        state = serde_json::from_value(restored.manifest.state.clone()).map_err(|error| {
            CheckpointError::Damaged {
                key: restored.name.clone(),
                problem: error.to_string(),
            }
        })?;
        learner.restore(&restored, state.updates)?;
        tracing::info!(checkpoint = restored.name, step = state.step, "going on");
        report(&Progress::Resumed {
            resumed_step: state.step,
            resumed_epoch: state.epoch,
            samples: state.samples,
        });
    }
    while state.epoch < task.config.training.epochs as u64 {
        let mut run = Epoch {
            task,
            learner: &mut learner,
            state: &mut state,
            checkpoints,
            stop,
            report: &mut report,
        };
        if run.run(groups)? {
            save_now(checkpoints, &learner, &state)?;
            return Ok(Trained::Stopped { step: state.step });
        }
        let logits = score(task.valid, &learner, groups)?;
        let (calibration, evaluation) = calibrated(task, &logits);
        state.epoch += 1;
        state.batch = 0;
        if state
            .best
            .is_none_or(|best| evaluation.log_loss < best.log_loss)
        {
            state.best = Some(Best {
                log_loss: evaluation.log_loss,
                step: state.step,
                updates: state.updates,
                calibration,
            });
        }
        report(&Progress::Epoch {
            epoch: state.epoch,
            valid: evaluation,
        });
        save_now(checkpoints, &learner, &state)?;
    }
    // Every epoch was measured.
    let best = state.best.expect("one epoch or more");
    if best.step != state.step {
        let restored =
            checkpoints.of_step(best.step, &mut groups.dense, |part| learner.needs(part))?;
        learner.restore(&restored, best.updates)?;
    }
    finished(task, &learner, best.calibration, groups)
}

/// Saves what the run cannot do without, and waits for it.
fn save_now<B: TrainingBackend, G: ProcessGroup + 'static>(
    checkpoints: &mut Checkpoints<G>,
    learner: &Learner<B>,
    state: &State,
) -> Result<(), CheckpointError> {
    let before = checkpoints.save(learner.save(json(state)), state.best.map(|best| best.step));
    told(before);
    checkpoints.wait()
}

/// A run goes on without a checkpoint between two; the next may be written.
fn told(written: Result<(), CheckpointError>) {
    if let Err(error) = written {
        let error: &dyn std::error::Error = &error;
        tracing::error!(error, "a checkpoint was not written");
    }
}

fn json(state: &State) -> serde_json::Value {
    // Plain numbers, which JSON can always say.
    serde_json::to_value(state).expect("a state is JSON")
}

fn learner<B: TrainingBackend>(
    task: Task<'_>,
    groups: &Groups<impl ProcessGroup>,
    device: &B::Device,
) -> Result<Learner<B>, TrainError> {
    let Task { config, schema, .. } = task;
    for (key, value) in [
        ("batch_size", config.training.batch_size),
        ("epochs", config.training.epochs),
        ("micro_batches", config.training.micro_batches),
    ] {
        if value == 0 {
            return Err(TrainError::Zero { key });
        }
    }
    let names = || schema.sparse.iter().map(|field| field.name.as_str());
    let unknown = |feature| TrainError::UnknownFeature {
        feature,
        known: names().collect::<Vec<_>>().join(", "),
    };
    let tables = config.tables.tables(schema).map_err(unknown)?;
    let world_size = groups.rows.world_size();
    let planner = Planner {
        config: &config.tables.planner,
        optimizer: &config.tables.optimizer,
        storage: config.tables.storage,
        world_size,
        batch_size: config.training.batch_size.div_ceil(world_size),
    };
    let planned = planner.plan(&tables)?;
    if world_size > 1 && groups.rows.rank() == 0 {
        tracing::info!("sharding plan\n{}", planned.describe());
    }
    let tables = ShardedTables::new(
        Arc::new(planned.plan.with_first_column(schema.dense.len())),
        groups.rows.rank(),
        config.tables.optimizer.clone(),
        config.tables.storage,
        config.seed,
    );
    let dense = &task.train.features;
    Ok(Learner::new(
        &config.model,
        &config.training,
        tables,
        Normalisation::fit(&dense.dense, dense.num_dense),
        config.seed,
        device.clone(),
    ))
}

/// One pass over the training rows, or what is left of it.
struct Epoch<'a, 'b, B: TrainingBackend, G> {
    task: Task<'a>,
    learner: &'b mut Learner<B>,
    state: &'b mut State,
    checkpoints: &'b mut Checkpoints<G>,
    stop: &'b AtomicBool,
    report: &'b mut dyn FnMut(&Progress),
}

impl<B: TrainingBackend, G: ProcessGroup + 'static> Epoch<'_, '_, B, G> {
    /// Returns whether it was stopped before its end.
    fn run(&mut self, groups: &mut Groups<G>) -> Result<bool, TrainError> {
        let training = &self.task.config.training;
        let order = self.order();
        let batches: Vec<&[usize]> = order.chunks(training.batch_size).collect();
        let (started, before) = (Instant::now(), self.state.samples);
        let Groups { ids, rows, dense } = groups;
        let part = Part {
            rows: self.task.train,
            rank: ids.rank(),
            world_size: ids.world_size(),
        };
        let router = self.learner.router().clone();
        thread::scope(|scope| {
            // The next step's ids travel while this step computes.
            let mut ahead = Ahead::start(scope, part, training.micro_batches, router, ids);
            let first = self.state.batch;
            ahead.ask(batches.get(first).copied());
            for at in first..batches.len() {
                ahead.ask(batches.get(at + 1).copied());
                let micro_batches = ahead.take()?;
                let limits = StepLimits {
                    max_loss: self.max_loss(),
                    stop: self.stop.load(Ordering::Relaxed),
                };
                let outcome = self.learner.step(&micro_batches, limits, rows, dense)?;
                self.state.batch += 1;
                self.state.step += 1;
                self.state.samples += batches[at].len() as u64;
                self.note(&outcome, batches[at])?;
                let speed = (self.state.samples - before) as f64 / started.elapsed().as_secs_f64();
                self.tell(&outcome, speed);
                if outcome.stopping {
                    return Ok(true);
                }
                self.save_when_due(at + 1 == batches.len());
            }
            Ok(false)
        })
    }

    /// The epoch's order of rows.
    fn order(&self) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.task.config.seed);
        random.set_stream(self.state.epoch);
        let mut order: Vec<usize> = (0..self.task.train.len()).collect();
        order.shuffle(&mut random);
        order
    }

    /// Losses above are spikes.
    fn max_loss(&self) -> f32 {
        let factor = self.task.config.training.guard.spike_factor;
        if factor > 0.0 && self.state.updates >= GUARD_WARM_UP {
            return (factor * self.state.mean_loss) as f32;
        }
        f32::INFINITY
    }

    fn note(&mut self, outcome: &StepOutcome, rows: &[usize]) -> Result<(), TrainError> {
        let state = &mut *self.state;
        let loss = f64::from(outcome.loss);
        if outcome.applied {
            state.updates += 1;
            state.skipped = 0;
            state.curve_sum += loss;
            state.curve_count += 1;
            let share = (1.0 / state.updates as f64).max(0.02);
            state.mean_loss += share * (loss - state.mean_loss);
            return Ok(());
        }
        state.skipped += 1;
        let skipped = Progress::Skipped {
            step: state.step,
            epoch: state.epoch,
            batch: state.batch - 1,
            impression_id: self.task.train.impression_ids[rows[0]].clone(),
            skipped_loss: outcome.loss,
        };
        tracing::warn!(?skipped, "step skipped");
        (self.report)(&skipped);
        if state.skipped >= self.task.config.training.guard.stop_after {
            return Err(TrainError::Diverged {
                step: state.step,
                count: state.skipped,
                loss: outcome.loss,
            });
        }
        Ok(())
    }

    /// A point of the loss curve, when there are steps enough.
    fn tell(&mut self, outcome: &StepOutcome, samples_per_second: f64) {
        let state = &mut *self.state;
        if state.curve_count < CURVE_STEPS {
            return;
        }
        (self.report)(&Progress::Steps {
            step: state.step,
            samples: state.samples,
            loss: state.curve_sum / state.curve_count as f64,
            gradient_norm: outcome.gradient_norm,
            samples_per_second,
        });
        (state.curve_sum, state.curve_count) = (0.0, 0);
    }

    /// The end of an epoch is saved after it is measured.
    fn save_when_due(&mut self, last: bool) {
        let every = self.checkpoints.config().every_steps;
        if every == 0 || last || !self.state.step.is_multiple_of(every) {
            return;
        }
        let snapshot = self.learner.save(json(self.state));
        let best = self.state.best.map(|best| best.step);
        told(self.checkpoints.save(snapshot, best));
    }
}

/// This rank's rows of a batch.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    rows: &'a Examples,
    rank: usize,
    world_size: usize,
}

impl Part<'_> {
    /// Of the rows of all ranks.
    fn of(&self, all: &[usize]) -> StepBatch {
        let counts = split_evenly(all.len(), self.world_size);
        let first: usize = counts[..self.rank].iter().sum();
        let mine = &all[first..first + counts[self.rank]];
        StepBatch {
            features: self.rows.features.gather(mine),
            labels: mine.iter().map(|row| self.rows.clicks[*row]).collect(),
            weights: mine.iter().map(|row| self.rows.weights[*row]).collect(),
        }
    }
}

/// Makes and routes the next step's batches on a thread of its own. Every rank asks for the same
/// batches, and never for one more than the others: else one would wait in vain.
struct Ahead<'a> {
    ask: mpsc::Sender<&'a [usize]>,
    take: mpsc::Receiver<Result<Vec<RoutedBatch>, CollectiveError>>,
}

impl<'a> Ahead<'a> {
    fn start<'scope, G: ProcessGroup>(
        scope: &'scope Scope<'scope, '_>,
        part: Part<'a>,
        micro_batches: usize,
        router: Router,
        ids: &'scope mut G,
    ) -> Self
    where
        'a: 'scope,
    {
        let (ask, asked) = mpsc::channel::<&[usize]>();
        let (give, take) = mpsc::channel();
        scope.spawn(move || {
            for rows in asked {
                let mut first = 0;
                let counts = split_evenly(rows.len(), micro_batches);
                let batches = counts.into_iter().map(|count| {
                    let mine = part.of(&rows[first..first + count]);
                    first += count;
                    mine.route(&router, ids)
                });
                if give.send(batches.collect()).is_err() {
                    return;
                }
            }
        });
        Self { ask, take }
    }

    fn ask(&mut self, rows: Option<&'a [usize]>) {
        if let Some(rows) = rows {
            // The thread ends after this handle; if it has panicked, `take` says so.
            self.ask.send(rows).ok();
        }
    }

    fn take(&mut self) -> Result<Vec<RoutedBatch>, CollectiveError> {
        // It gives something for everything it was asked.
        self.take.recv().expect("the routing thread")
    }
}

/// Logits of all rows on all ranks, each of which scores its part.
fn score<B: TrainingBackend, G: ProcessGroup>(
    rows: &Examples,
    learner: &Learner<B>,
    groups: &mut Groups<G>,
) -> Result<Vec<f32>, CollectiveError> {
    let part = Part {
        rows,
        rank: groups.ids.rank(),
        world_size: groups.ids.world_size(),
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut logits = Vec::with_capacity(rows.len());
    for chunk in all.chunks(SCORE_BATCH * part.world_size) {
        let batch = part.of(chunk).route(learner.router(), &mut groups.ids)?;
        let mine = learner.logits(&batch, &mut groups.rows)?;
        logits.extend(groups.rows.all_gather_v(&mine)?.concat());
    }
    Ok(logits)
}

/// Calibration on the validation rows, and what the calibrated model is worth there.
fn calibrated(task: Task<'_>, logits: &[f32]) -> (Calibration, Evaluation) {
    let Examples {
        clicks, weights, ..
    } = task.valid;
    let calibration = fit_calibration(logits, clicks, weights);
    let scores: Vec<f32> = logits
        .iter()
        .map(|logit| calibration.probability(*logit))
        .collect();
    (calibration, evaluate(&scores, task.valid))
}

/// The model with its whole tables.
fn finished<B: TrainingBackend, G: ProcessGroup>(
    task: Task<'_>,
    learner: &Learner<B>,
    calibration: Calibration,
    groups: &mut Groups<G>,
) -> Result<Trained, TrainError> {
    let (network, tables) = learner.parts(&mut groups.rows)?;
    let mut model = CtrModel::new(
        task.config.model.clone(),
        task.schema.clone(),
        learner.normalisation().clone(),
        tables,
        network,
        Default::default(),
    );
    model.calibration = calibration;
    Ok(Trained::Done(Box::new(model)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_state_survives_its_file_bit_for_bit(sum in any::<f64>(), mean in any::<f64>(), loss in any::<f64>(), scale in prop::num::f32::NORMAL) {
            let state = State {
                curve_sum: sum,
                mean_loss: mean,
                best: Some(Best { log_loss: loss, step: 3, updates: 2,
                    calibration: Calibration { scale, offset: -scale }, }),
                ..State::default()
            };
            let text = serde_json::to_string(&json(&state)).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let again: State = serde_json::from_value(value).unwrap();
            prop_assert_eq!(json(&again), json(&state));
            prop_assert_eq!(again.mean_loss.to_bits(), mean.to_bits());
            prop_assert_eq!(again.best.map(|best| best.calibration.scale.to_bits()), Some(scale.to_bits()));
        }
    }
}
