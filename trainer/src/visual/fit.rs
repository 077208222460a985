//! The training loop: which pairs each step sees is drawn by the seed and the place in the training alone, so
//! that all ranks, and a run that goes on, see the same.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use models::{metrics::recall_at_k, visual::VisualModel};
use serde::{Deserialize, Serialize};

use super::{
    augment::seeded,
    batch::History,
    config::VisualTrainConfig,
    learner::{Learner, Side, StepOptions},
    measure::ranks,
    pairs::{Gallery, Pairs},
};
use crate::{
    backend::StepBackend,
    checkpoint::{Checkpoints, bits},
    collective::ProcessGroup,
    job::Resumed,
};

/// Draws beside those of the two sides' pictures: the order of an epoch, and the negatives of a step.
const ORDER: u64 = 2;
const NEGATIVES: u64 = 3;

/// Vectors of all pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// `[num_scenes, dim]`.
    pub scenes: Vec<f32>,
    /// `[num_creatives, dim]`.
    pub creatives: Vec<f32>,
    /// Length of a vector.
    pub dim: usize,
}

impl Features {
    pub(super) fn of(&self, side: Side) -> &[f32] {
        match side {
            Side::Scene => &self.scenes,
            Side::Creative => &self.creatives,
        }
    }
}

/// A trained tower, and what it and the published backbone it began with say of the pictures.
#[derive(Debug)]
pub struct Fitted {
    /// The tower.
    pub model: VisualModel,
    /// Its vectors.
    pub vectors: Features,
    /// The backbone's before any training; none of fresh weights.
    pub frozen: Option<Features>,
    /// Mean loss of the last epoch.
    pub loss: f64,
}

/// How training ended.
#[derive(Debug)]
pub enum Trained {
    /// With a tower, equal on all ranks.
    Done(Box<Fitted>),
    /// It was asked to stop, and saved itself at a step.
    Stopped {
        /// The step.
        step: u64,
    },
}

/// What is trained on.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Network and recipe.
    pub config: &'a VisualTrainConfig,
    /// All pictures.
    pub gallery: &'a Gallery,
    /// Pairs to learn from.
    pub pairs: &'a Pairs,
    /// Pairs to measure by.
    pub valid: &'a Pairs,
    /// What the published backbone says of the pictures, if that was computed before.
    pub frozen: Option<&'a Features>,
}

/// What is measured while a tower learns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Share of pairs whose creative is among the ten nearest.
    pub recall_at_10: f64,
}

/// One line of a run's metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Progress {
    /// The run goes on from a checkpoint.
    Resumed(Resumed),
    /// The end of an epoch.
    Epoch {
        /// Epochs so far.
        epoch: u64,
        /// Steps so far.
        step: u64,
        /// Mean loss of its steps, nats.
        loss: f64,
        /// On the validation pairs, where that was due.
        #[serde(skip_serializing_if = "Option::is_none")]
        valid: Option<Measured>,
    },
}

/// Where a run stands; what a checkpoint keeps besides the weights.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Epochs that are done.
    epoch: u64,
    /// Steps of this epoch that are done.
    batch: usize,
    step: u64,
    /// Of the steps of this epoch.
    #[serde(with = "bits")]
    loss_sum: f64,
    /// Mean of the last epoch.
    #[serde(with = "bits")]
    loss: f64,
}

impl State {
    fn json(&self) -> serde_json::Value {
        // Plain numbers, which JSON can always say.
        serde_json::to_value(self).expect("a state is JSON")
    }

    fn resumed(&self, Task { config, pairs, .. }: Task<'_>) -> Progress {
        let done = self.epoch as usize * pairs.scenes.len() + self.batch * config.batch_size;
        Progress::Resumed(Resumed {
            step: self.step,
            epoch: self.epoch,
            samples: done as u64,
        })
    }

    /// Of the next step.
    fn options(&self, config: &VisualTrainConfig, stop: bool) -> StepOptions {
        StepOptions {
            epoch: self.epoch,
            rate: config.learning_rate * config.schedule.rate(self.step),
            stop,
        }
    }
}

/// Trains a tower on pairs, together with the other ranks, from the newest checkpoint if there is one;
/// `report` hears of epochs as they end, and `stop` is looked at in every step. With the same number of
/// ranks a run on CPUs is the same bit for bit, however often it was interrupted.
///
/// # Errors
/// If weights cannot be read, the shape of the network cannot be, a rank is lost, a checkpoint can be neither
/// read nor written, or the loss is no number.
pub fn fit<B: StepBackend, G: ProcessGroup + 'static>(
    task: Task<'_>,
    device: &B::Device,
    group: &mut impl ProcessGroup,
    checkpoints: &mut Checkpoints<G>,
    stop: &AtomicBool,
    mut report: impl FnMut(&Progress),
) -> anyhow::Result<Trained> {
    let Task { config, pairs, .. } = task;
    config.check()?;
    let mut learner = Learner::<B>::start(task, device, group)?;
    let mut state = State::default();
    if let Some(restored) = checkpoints.latest(group, |_| true)? {
        state = restored.state()?;
        learner.restore(&restored)?;
        tracing::info!(checkpoint = restored.name, step = state.step, "going on");
        report(&state.resumed(task));
    }
    let history = History::new(task.gallery, pairs, &config.negatives);
    // As the tower stands, where that was asked for.
    let mut vectors = None;
    while state.epoch < config.epochs as u64 {
        let order = history.order(&mut seeded([config.seed, state.epoch, ORDER, 0]));
        // A last batch of one pair has no negatives and says nothing.
        let batches = order.chunks(config.batch_size);
        let batches: Vec<&[usize]> = batches.filter(|chosen| chosen.len() > 1).collect();
        while let Some(chosen) = batches.get(state.batch) {
            let random = &mut seeded([config.seed, state.step, NEGATIVES, 0]);
            let batch = history.batch(chosen, random);
            let options = state.options(config, stop.load(Ordering::Relaxed));
            let total = learner.step(&batch, options, group)?;
            let (loss, epoch) = (f64::from(total.loss), state.epoch + 1);
            if !loss.is_finite() {
                bail!("the loss is {loss} in epoch {epoch}: lower learning_rate");
            }
            state.batch += 1;
            state.step += 1;
            state.loss_sum += loss;
            if total.stopping {
                checkpoints.save_now(learner.save(state.step, state.json()), None)?;
                return Ok(Trained::Stopped { step: state.step });
            }
            // The end of an epoch is saved by itself.
            if state.batch < batches.len() && checkpoints.is_due(state.step) {
                checkpoints.save_beside(learner.save(state.step, state.json()), None);
            }
        }
        state = State {
            epoch: state.epoch + 1,
            step: state.step,
            loss: state.loss_sum / batches.len().max(1) as f64,
            ..State::default()
        };
        let due = config.is_measured_after(state.epoch) && !task.valid.scenes.is_empty();
        vectors = due.then(|| learner.all_vectors(group)).transpose()?;
        let measured = |vectors: &Features| Measured {
            recall_at_10: recall_at_k(&ranks(task.gallery, task.valid, vectors), 10),
        };
        report(&Progress::Epoch {
            epoch: state.epoch,
            step: state.step,
            loss: state.loss,
            valid: vectors.as_ref().map(measured),
        });
        checkpoints.save_now(learner.save(state.step, state.json()), None)?;
    }
    let (model, vectors, frozen) = learner.finish(vectors, group)?;
    Ok(Trained::Done(Box::new(Fitted {
        model,
        vectors,
        frozen,
        loss: state.loss,
    })))
}
