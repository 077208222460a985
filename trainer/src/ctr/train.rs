//! The training loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use features::Schema;
use models::ctr::{
    Calibration, ConversionDelay, CtrModel, CtrModelError, NetworkError, Normalisation,
};
use serde::{Deserialize, Serialize};

use super::{
    ahead::{Ahead, Steps},
    check::check,
    config::{CtrConfig, Objective, TablesError, TrainingConfig},
    delay::Delay,
    evaluate::{Evaluation, SCORE_BATCH, evaluate, evaluate_conversions},
    moments::fit_normalisation,
    retrieval::{ItemFrequencies, Vectors},
    step::{Groups, Learner, StepBatch, StepLimits, StepOutcome},
};
use crate::{
    backend::StepBackend,
    checkpoint::{CheckpointError, Checkpoints, bits},
    collective::{CollectiveError, ExchangeError, ProcessGroup},
    job::Resumed,
    sharding::{PlacementError, PlanError, Planner, ShardedTables, TableUse, Tables},
    table::{Batches, Order, Projection, Share, Slice, TableError},
};

/// Steps between two points of the loss curve.
const CURVE_STEPS: u64 = 10;

/// Steps before a loss can count as a spike.
const GUARD_WARM_UP: u64 = 20;

/// One line of a run's metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Progress {
    /// The run goes on from a checkpoint.
    Resumed(Resumed),
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
        /// The first of its rows, of those that this rank has.
        impression_id: Option<String>,
        /// Its loss.
        skipped_loss: f32,
    },
    /// A measure within an epoch.
    Evaluated {
        /// Steps so far.
        step: u64,
        /// Measures on the validation rows.
        valid: Evaluation,
        /// How the dynamic tables are used.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tables: Vec<TableUse>,
    },
    /// The end of an epoch.
    Epoch {
        /// Epochs so far.
        epoch: u64,
        /// Steps so far.
        step: u64,
        /// Measures on the validation rows.
        valid: Evaluation,
        /// How the dynamic tables are used.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tables: Vec<TableUse>,
    },
}

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A table that cannot be made.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A number that cannot be.
    #[error("training.{key} is 0, wanted at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// A network that cannot be made for the table's features.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Nothing to learn conversions from.
    #[error(
        "none of the {rows} training rows has a conversion after a click: take more days, or for clicks alone another model.architecture than mmoe"
    )]
    NoConversions {
        /// The training rows.
        rows: usize,
    },
    /// A number outside of its range.
    #[error("training.{key} is {value}, wanted {wanted}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        wanted: &'static str,
    },
    /// Scores that are no probabilities.
    #[error(
        "training.calibration is none, and with the objective batch_softmax only a calibration makes probabilities of scores: choose platt or isotonic"
    )]
    Uncalibrated,
    /// Nothing to find.
    #[error(
        "none of the {rows} training rows has a click, and the objective batch_softmax learns from these alone: take more days"
    )]
    NoClicks {
        /// The training rows.
        rows: usize,
    },
    /// Nothing to tell ads apart by.
    #[error(
        "training.objective is batch_softmax, and model.item_features is empty: name the features of the ad"
    )]
    NoItemFeatures,
    /// Nothing to tell apart.
    #[error(
        "training.objective is batch_softmax, which wants vectors of ads: model.architecture = \"two_tower\", or the objective cross_entropy"
    )]
    NoTowers,
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
    /// The tables cannot be spread.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A rank was lost, or the like.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The same, or a device that refuses.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The tables cannot lie where they should.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Rows could not be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// More ranks than streams of rows.
    #[error("reader.streams is {streams}, wanted at least the number of ranks ({world_size})")]
    Streams {
        /// The streams.
        streams: usize,
        /// The ranks.
        world_size: usize,
    },
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
    pub train: &'a Slice,
    /// Rows to choose the epoch and to calibrate by.
    pub valid: &'a Slice,
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
    /// Fitted on the training rows.
    normalisation: Option<Normalisation>,
    /// The same, where conversions are learnt.
    delay: Option<Delay>,
    best: Option<Best>,
    /// Measures since the best one.
    since_best: u64,
    /// How often the learning rates fell for want of better measures.
    falls: u32,
}

/// The best measure so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    /// Its [`Evaluation::loss`].
    #[serde(with = "bits", alias = "log_loss")]
    loss: f64,
    /// The checkpoint's step.
    step: u64,
    updates: u64,
    /// Fitted on the validation rows then.
    calibration: Calibration,
}

/// Trains a model, from the newest checkpoint if there is one; `report` hears of steps and epochs
/// as they happen, and `stop` is looked at in every step.
///
/// What has the lowest loss ([`Evaluation::loss`]) on the validation rows is kept, and its calibration fitted there. The same seed gives the same bits with the same number of ranks, however often the run
/// was interrupted, and the same losses to rounding with any number.
///
/// # Errors
/// [`TrainError`].
pub fn train<B: StepBackend, G: ProcessGroup + 'static, D: ProcessGroup>(
    task: Task<'_>,
    device: &B::Device,
    groups: &mut Groups<G, D>,
    checkpoints: &mut Checkpoints<G>,
    stop: &AtomicBool,
    mut report: impl FnMut(&Progress),
) -> Result<Trained, TrainError> {
    let mut learner = learner::<B>(task, groups, device)?;
    let router = learner.router().clone();
    let mut state = State::default();
    if let Some(restored) = checkpoints.latest(&mut groups.rows, |part| router.needs(part))? {
        state = restored.state()?;
        learner.restore(&restored, state.updates)?;
        tracing::info!(checkpoint = restored.name, step = state.step, "going on");
        report(&Progress::Resumed(Resumed {
            step: state.step,
            epoch: state.epoch,
            samples: state.samples,
        }));
    }
    let normalisation = match state.normalisation.take() {
        Some(known) => known,
        None => fit_normalisation(task.train, &mut groups.rows)?,
    };
    learner.set_normalisation(normalisation.clone());
    state.normalisation = Some(normalisation);
    if task.config.model.num_tasks() > 1 && state.delay.is_none() {
        let delay = Delay::fit(task.train, &mut groups.rows)?;
        tracing::info!(mean_hours = delay.mean_hours(), "delay of conversions");
        state.delay = Some(delay);
    }
    let frequencies = match task.config.training.objective {
        Objective::CrossEntropy => None,
        Objective::BatchSoftmax => {
            let keys = learner.item_keys().ok_or(TrainError::NoTowers)?;
            let counted = ItemFrequencies::fit(keys, task.train, &mut groups.rows)?;
            Some(Arc::new(counted))
        }
    };
    while !state.is_over(&task.config.training) {
        if task.config.tables.reinitialise_each_epoch && state.epoch > 0 && state.batch == 0 {
            learner.reinitialise_tables()?;
        }
        let mut run = Epoch {
            task,
            learner: &mut learner,
            state: &mut state,
            frequencies: frequencies.clone(),
            checkpoints,
            stop,
            report: &mut report,
        };
        match run.run(groups)? {
            End::Stopped => {
                save_now(checkpoints, &learner, &state)?;
                return Ok(Trained::Stopped { step: state.step });
            }
            End::Early => break,
            End::Done => {}
        }
        if frequencies.is_some() && state.updates == 0 {
            return Err(TrainError::NoClicks {
                rows: task.train.len(),
            });
        }
        let (calibration, evaluation) = measure(task, &learner, state.delay, &mut groups.rows)?;
        state.epoch += 1;
        state.batch = 0;
        state.judge(calibration, &evaluation, &task.config.training);
        report(&Progress::Epoch {
            epoch: state.epoch,
            step: state.step,
            valid: evaluation,
            tables: learner.router().usage(&mut groups.rows)?,
        });
        save_now(checkpoints, &learner, &state)?;
    }
    // Every epoch was measured, and one that ended early before its end.
    let best = state.best.expect("one measure or more");
    if best.step != state.step {
        let restored =
            checkpoints.of_step(best.step, &mut groups.rows, |part| router.needs(part))?;
        learner.restore(&restored, best.updates)?;
    }
    // Whole tables go through host memory.
    let mut model = finished(task, &learner, &mut groups.ids)?;
    model.calibration = best.calibration;
    model.delay = state.delay.map(ConversionDelay::from);
    Ok(Trained::Done(Box::new(model)))
}

impl State {
    /// Takes a measure in; whether it is the best so far.
    fn judge(
        &mut self,
        calibration: Calibration,
        measured: &Evaluation,
        training: &TrainingConfig,
    ) -> bool {
        let loss = measured.loss(training.objective);
        let better = |best: &Best| loss < best.loss;
        if self.best.as_ref().is_none_or(better) {
            self.best = Some(Best {
                loss,
                step: self.step,
                updates: self.updates,
                calibration,
            });
            self.since_best = 0;
            return true;
        }
        self.since_best += 1;
        self.falls += u32::from(training.schedule.falls(self.since_best));
        false
    }

    /// Whether measures have not become better for too long.
    fn is_stuck(&self, training: &TrainingConfig) -> bool {
        training.early_stopping > 0 && self.since_best >= training.early_stopping
    }

    fn is_over(&self, training: &TrainingConfig) -> bool {
        self.epoch >= training.epochs as u64 || self.is_stuck(training)
    }

    /// The checkpoint of the best measure.
    fn best_step(&self) -> Option<u64> {
        self.best.as_ref().map(|best| best.step)
    }

    /// What the falls have left of the learning rates.
    fn rate(&self, training: &TrainingConfig) -> f64 {
        training.schedule.floor.powf(f64::from(self.falls))
    }
}

/// Saves what the run cannot do without, and waits for it.
fn save_now<B: StepBackend, G: ProcessGroup + 'static>(
    checkpoints: &mut Checkpoints<G>,
    learner: &Learner<B>,
    state: &State,
) -> Result<(), TrainError> {
    let snapshot = learner.save(json(state))?;
    Ok(checkpoints.save_now(snapshot, state.best_step())?)
}

fn json(state: &State) -> serde_json::Value {
    // Plain numbers, which JSON can always say.
    serde_json::to_value(state).expect("a state is JSON")
}

pub(super) fn learner<B: StepBackend>(
    task: Task<'_>,
    groups: &Groups<impl ProcessGroup, impl ProcessGroup>,
    device: &B::Device,
) -> Result<Learner<B>, TrainError> {
    let Task { config, schema, .. } = task;
    check(config)?;
    let tables = config.tables.tables(schema, &config.model)?;
    let world_size = groups.rows.world_size();
    if config.reader.streams < world_size {
        return Err(TrainError::Streams {
            streams: config.reader.streams,
            world_size,
        });
    }
    let planner = Planner {
        config: &config.tables.planner,
        optimizer: &config.tables.optimizer,
        storage: config.tables.storage,
        world_size,
        batch_size: config.training.batch_size.div_ceil(world_size),
        column_wise: <B::Tables as Tables<B::InnerBackend>>::COLUMN_WISE,
    };
    let planned = planner.plan(&tables)?;
    if world_size > 1 && groups.rows.rank() == 0 {
        tracing::info!("sharding plan\n{}", planned.describe());
    }
    let features = schema.sparse.iter().map(|field| field.name.clone());
    let plan = planned
        .plan
        .with_dense(schema.dense.iter().map(|field| field.name.clone()));
    let plan = plan.with_features(features);
    config.model.check(&plan.layout())?;
    let tables = ShardedTables::new(
        Arc::new(plan),
        groups.rows.rank(),
        config.tables.optimizer.clone(),
        config.tables.storage,
        config.seed,
    );
    let tables = B::Tables::place(tables, config.tables.gpu_cache_rows, device)?;
    Ok(Learner::new(
        &config.model,
        &config.training,
        tables,
        // Until it is known.
        Normalisation {
            mean: vec![0.0; schema.dense.len()],
            std: vec![1.0; schema.dense.len()],
        },
        config.seed,
        device.clone(),
    ))
}

/// How a pass over the training rows ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With its last row.
    Done,
    /// The run was asked to stop.
    Stopped,
    /// Measures have not become better for too long.
    Early,
}

/// One pass over the training rows, or what is left of it.
struct Epoch<'a, 'b, B: StepBackend, G> {
    task: Task<'a>,
    learner: &'b mut Learner<B>,
    state: &'b mut State,
    /// Of the ads, where they are told apart.
    frequencies: Option<Arc<ItemFrequencies>>,
    checkpoints: &'b mut Checkpoints<G>,
    stop: &'b AtomicBool,
    report: &'b mut dyn FnMut(&Progress),
}

impl<B: StepBackend, G: ProcessGroup + 'static> Epoch<'_, '_, B, G> {
    fn run(&mut self, groups: &mut Groups<G, impl ProcessGroup>) -> Result<End, TrainError> {
        let Task { config, train, .. } = self.task;
        let first = self.state.batch * config.training.batch_size;
        let sizes = sizes(
            train.len().saturating_sub(first),
            config.training.batch_size,
        );
        let (started, before) = (Instant::now(), self.state.samples);
        let Groups { ids, rows, dense } = groups;
        let order = Order::Shuffled {
            seed: config.seed,
            epoch: self.state.epoch,
        };
        let batches = batches(train, self.task, order, first, ids);
        let router = self.learner.router().clone();
        let steps = Steps {
            sizes: sizes.clone(),
            micro_batches: config.training.micro_batches,
            prefetch_steps: config.reader.prefetch_steps,
            delay: self.state.delay,
            frequencies: self.frequencies.clone(),
        };
        thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, batches, steps, router, ids);
            if !sizes.is_empty() {
                ahead.ask();
            }
            for (at, size) in sizes.iter().enumerate() {
                let last = at + 1 == sizes.len();
                let next = ahead.take()?;
                self.learner.observe(&next.micro_batches, rows)?;
                // The next step's ids travel while this step computes.
                if !last {
                    ahead.ask();
                }
                let limits = StepLimits {
                    max_loss: self.max_loss(),
                    rate: self.state.rate(&config.training),
                    stop: self.stop.load(Ordering::Relaxed),
                };
                let outcome = self
                    .learner
                    .step(&next.micro_batches, limits, rows, dense)?;
                self.state.batch += 1;
                self.state.step += 1;
                self.state.samples += *size as u64;
                self.note(&outcome, next.first_row)?;
                let speed = (self.state.samples - before) as f64 / started.elapsed().as_secs_f64();
                self.tell(&outcome, speed);
                if outcome.stopping {
                    return Ok(End::Stopped);
                }
                // The end of an epoch is measured and saved by itself.
                if !last && !self.evaluate_when_due(rows)? {
                    self.save_when_due()?;
                }
                if self.state.is_stuck(&config.training) {
                    return Ok(End::Early);
                }
            }
            Ok(End::Done)
        })
    }

    /// Losses above are spikes.
    fn max_loss(&self) -> f32 {
        let factor = self.task.config.training.guard.spike_factor;
        if factor > 0.0 && self.state.updates >= GUARD_WARM_UP {
            return (factor * self.state.mean_loss) as f32;
        }
        f32::INFINITY
    }

    fn note(&mut self, outcome: &StepOutcome, first_row: Option<String>) -> Result<(), TrainError> {
        let state = &mut *self.state;
        let loss = f64::from(outcome.loss);
        if outcome.idle {
            return Ok(());
        }
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
            impression_id: first_row,
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

    /// Whether it was due, and the best so far; what is best is saved.
    fn evaluate_when_due(&mut self, rows: &mut impl ProcessGroup) -> Result<bool, TrainError> {
        let every = self.task.config.training.evaluate_every_steps;
        if every == 0 || !self.state.step.is_multiple_of(every) {
            return Ok(false);
        }
        let (calibration, valid) = measure(self.task, self.learner, self.state.delay, rows)?;
        let training = &self.task.config.training;
        let best = self.state.judge(calibration, &valid, training);
        (self.report)(&Progress::Evaluated {
            step: self.state.step,
            valid,
            tables: self.learner.router().usage(rows)?,
        });
        if best {
            save_now(self.checkpoints, self.learner, self.state)?;
        }
        Ok(best)
    }

    fn save_when_due(&mut self) -> Result<(), TrainError> {
        if self.checkpoints.is_due(self.state.step) {
            let snapshot = self.learner.save(json(self.state))?;
            let best = self.state.best_step();
            self.checkpoints.save_beside(snapshot, best);
        }
        Ok(())
    }
}

/// Rows of each batch.
fn sizes(rows: usize, batch_size: usize) -> Vec<usize> {
    let firsts = (0..rows).step_by(batch_size);
    firsts.map(|first| batch_size.min(rows - first)).collect()
}

/// This rank's rows of each batch, from a place in the order on.
fn batches(
    rows: &Slice,
    task: Task<'_>,
    order: Order,
    first: usize,
    group: &impl ProcessGroup,
) -> Batches {
    let share = Share {
        rank: group.rank(),
        world_size: group.world_size(),
    };
    let projection = match task.config.model.num_tasks() {
        1 => Projection::Training,
        _ => Projection::TrainingWithOutcomes,
    };
    let reader = &task.config.reader;
    Batches::new(rows, reader, order, share, projection, first)
}

/// Calibration on the validation rows, and what the calibrated model is worth there. Each rank
/// scores its part, over a group that no thread ahead uses; all have the same result.
fn measure<B: StepBackend>(
    task: Task<'_>,
    learner: &Learner<B>,
    delay: Option<Delay>,
    rows: &mut impl ProcessGroup,
) -> Result<(Calibration, Evaluation), TrainError> {
    let scoring = learner.scoring();
    let mut read = batches(task.valid, task, Order::Stored, 0, rows);
    let mut mine: [Vec<f32>; 4] = Default::default();
    let (keys, mut vectors) = (learner.item_keys(), Vectors::default());
    for size in sizes(task.valid.len(), SCORE_BATCH * rows.world_size()) {
        let batch = StepBatch::of(read.take(size)?, delay.as_ref());
        let [logits, labels, observed, weights] = &mut mine;
        labels.extend_from_slice(&batch.labels);
        observed.extend_from_slice(&batch.observed);
        weights.extend_from_slice(&batch.weights);
        let routed = batch.route(learner.router(), rows)?;
        let scored = learner.score(&scoring, &routed, rows)?;
        logits.extend(scored.logits);
        if let Some((keys, of_towers)) = keys.as_ref().zip(scored.vectors) {
            let StepBatch {
                features,
                labels,
                places,
                ..
            } = &routed.batch;
            vectors.add(labels, places, &keys.of(features), &of_towers);
        }
    }
    let mut all = |mine: &[f32]| Ok::<_, CollectiveError>(rows.all_gather_v(mine)?.concat());
    let [logits, labels, observed, weights] = &mine;
    let (logits, labels) = (all(logits)?, all(labels)?);
    let weights = all(weights)?;
    let num_tasks = task.config.model.num_tasks();
    let of_clicks = |values: &[f32]| values.iter().step_by(num_tasks).copied().collect();
    let (click_logits, clicks): (Vec<f32>, Vec<f32>) = (of_clicks(&logits), of_clicks(&labels));
    let method = task.config.training.calibration;
    let calibration = method.fit(&click_logits, &clicks, &weights);
    let scores = click_logits.iter();
    let scores: Vec<f32> = scores.map(|it| calibration.probability(*it)).collect();
    let mut evaluation = evaluate(&scores, &clicks, &weights);
    if keys.is_some() {
        evaluation.retrieval = vectors.measure(rows)?;
    }
    if num_tasks > 1 {
        let after = logits.iter().skip(1).step_by(num_tasks);
        let after = after.map(|logit| Calibration::default().probability(*logit));
        let both: Vec<[f32; 2]> = scores.iter().copied().zip(after).map(Into::into).collect();
        let (labels, _) = labels.as_chunks::<2>();
        let observed = rows.all_gather_v(observed)?.concat();
        let conversions = evaluate_conversions(&both, labels, &observed, &weights);
        evaluation.conversions = Some(conversions);
    }
    Ok((calibration, evaluation))
}

/// The model with its whole tables.
fn finished<B: StepBackend>(
    task: Task<'_>,
    learner: &Learner<B>,
    group: &mut impl ProcessGroup,
) -> Result<CtrModel, TrainError> {
    let (network, tables) = learner.parts(group)?;
    Ok(CtrModel::new(
        task.config.model.clone(),
        task.schema.clone(),
        learner.normalisation().clone(),
        tables,
        network,
        Default::default(),
    ))
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
                best: Some(Best { loss, step: 3, updates: 2,
                    calibration: Calibration::Platt { scale, offset: -scale }, }),
                ..State::default()
            };
            let text = serde_json::to_string(&json(&state)).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let again: State = serde_json::from_value(value).unwrap();
            prop_assert_eq!(json(&again), json(&state));
            prop_assert_eq!(again.mean_loss.to_bits(), mean.to_bits());
            prop_assert_eq!(again.best, state.best);
        }
    }
}
