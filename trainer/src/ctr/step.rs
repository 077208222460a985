//! One optimisation step: lookup, dense forward and backward, exchange, update.

use std::{sync::Arc, thread};

use burn::{
    backend::Autodiff,
    module::AutodiffModule,
    optim::GradientsParams,
    prelude::Backend,
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};
use features::hash::{SEED, chain_integer};
use models::{
    Cpu,
    ctr::{
        EmbeddingTable, Mode, Network, NetworkConfig, Normalisation,
        artifact::write_dense,
        loss::{entire_space, weighted_bce},
        network::TowerVectors,
    },
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{
    config::{Objective, TrainingConfig},
    retrieval::{BatchItems, ItemKeys, ShownItems},
};
use crate::{
    backend::StepBackend,
    checkpoint::{CheckpointError, Restored, Snapshot},
    collective::{CollectiveError, ExchangeError, JoinError, ProcessGroup, Rendezvous, TcpGroup},
    dense::{self, DenseState, Move, Precision, Rule, Saved},
    sharding::{Bags, PlacementError, Routed, Router, Tables},
};

/// The rows of one step, or this rank's part of them.
#[derive(Debug, Clone)]
pub struct StepBatch {
    /// Features.
    pub features: features::FeatureBatch,
    /// `[rows, tasks]`: of clicks, then of conversions; 0 to 1.
    pub labels: Vec<f32>,
    /// `[rows]`, the probability that a conversion would be known by now; none with one task.
    pub observed: Vec<f32>,
    /// `[rows]`, how many rows each stands for.
    pub weights: Vec<f32>,
    /// `[rows]`, their places in the order of all ranks' rows.
    pub places: Vec<u64>,
    /// Their ads, where a batch softmax is to tell them apart.
    pub shown: Option<ShownItems>,
}

/// A batch whose ids have found their way.
#[derive(Debug, Clone)]
pub struct RoutedBatch {
    pub(super) batch: StepBatch,
    routed: Routed,
    /// The ads of all ranks, where these are told apart.
    candidates: Option<BatchItems>,
    /// Weight of this rank's rows, or of its clicks where ads are told apart.
    pub(super) weight: f64,
    /// The same of all ranks.
    total_weight: f64,
}

impl StepBatch {
    /// Sends the ids to the owners of their rows; needs no weights, so that it can run ahead.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn route(
        self,
        router: &Router,
        group: &mut impl ProcessGroup,
    ) -> Result<RoutedBatch, CollectiveError> {
        let bags = Bags {
            ids: &self.features.sparse,
            weights: None,
            rows: self.features.num_rows,
        };
        let routed = router.route(bags, group)?;
        let weights = self.weights.iter().zip(&self.labels);
        let mine: f64 = match &self.shown {
            None => self.weights.iter().map(|weight| f64::from(*weight)).sum(),
            Some(_) => weights
                .map(|(weight, label)| f64::from(weight * label))
                .sum(),
        };
        let candidates = self.shown.as_ref().map(|shown| shown.gather(group));
        let total_weight = group.all_gather_v(&[mine])?.concat().iter().sum();
        Ok(RoutedBatch {
            candidates: candidates.transpose()?,
            batch: self,
            routed,
            weight: mine,
            total_weight,
        })
    }
}

/// The groups over which a step's data travel: `S` in host memory, `D` wherever the model lies.
#[derive(Debug)]
pub struct Groups<S, D = S> {
    /// Ids of batches to come.
    pub ids: S,
    /// Looked-up rows and their gradients, and all that is not a step's.
    pub rows: D,
    /// Gradients of the dense weights.
    pub dense: D,
}

impl Groups<TcpGroup> {
    /// Connects this rank with the others.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn connect(rendezvous: &Arc<Rendezvous>) -> Result<Self, JoinError> {
        Ok(Self {
            ids: TcpGroup::connect(rendezvous, "ids")?,
            rows: TcpGroup::connect(rendezvous, "rows")?,
            dense: TcpGroup::connect(rendezvous, "dense")?,
        })
    }

    /// The groups of a rank that is alone.
    pub fn alone() -> Self {
        Self {
            ids: TcpGroup::alone(),
            rows: TcpGroup::alone(),
            dense: TcpGroup::alone(),
        }
    }
}

/// What a step has done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Mean loss of all ranks' rows, or clicks, before the update.
    pub loss: f32,
    /// Length of the dense gradient before it was cut.
    pub gradient_norm: f32,
    /// Whether the weights were moved: not by a loss over the limit, nor by one that is no number.
    pub applied: bool,
    /// There was nothing to learn from: no click, where ads are told apart.
    pub idle: bool,
    /// Whether some rank was asked to stop.
    pub stopping: bool,
}

/// What may keep a step from being an ordinary one.
#[derive(Debug, Clone, Copy)]
pub struct StepLimits {
    /// A step with a higher loss moves nothing.
    pub max_loss: f32,
    /// Factor on all learning rates, besides that of the schedule.
    pub rate: f64,
    /// This rank was asked to stop; all ranks hear of it in the same step.
    pub stop: bool,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self {
            max_loss: f32::INFINITY,
            rate: 1.0,
            stop: false,
        }
    }
}

/// A model in training: network, tables and their optimizers.
pub struct Learner<B: StepBackend> {
    model: NetworkConfig,
    pub(super) network: Network<B>,
    /// The network's weights and their optimizer.
    pub(super) dense: B::Dense,
    rule: Rule,
    num_weights: usize,
    tables: B::Tables,
    normalisation: Normalisation,
    pub(super) training: TrainingConfig,
    seed: u64,
    step: u64,
    pub(super) device: B::Device,
}

/// What a network says of some rows.
#[derive(Debug, Clone, Default)]
pub struct Scored {
    /// `[rows, tasks]`.
    pub logits: Vec<f32>,
    /// Of a network of two towers.
    pub vectors: Option<TowerVectors>,
}

/// A network that scores.
pub struct Scoring<B: StepBackend>(Network<Inner<B>>);

/// Gradients of a micro-batch's tables that have reached their owners.
type Given<'a, B> = <<B as StepBackend>::Tables as Tables<Inner<B>>>::Given<'a>;
pub(super) type Inner<B> = <B as AutodiffBackend>::InnerBackend;

impl<B: StepBackend> Learner<B> {
    /// A fresh network over tables; `seed` fixes its weights and dropout.
    ///
    /// # Panics
    /// If it cannot be made for them ([`NetworkConfig::check`]).
    pub fn new(
        model: &NetworkConfig,
        training: &TrainingConfig,
        tables: B::Tables,
        normalisation: Normalisation,
        seed: u64,
        device: B::Device,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        assert_eq!(
            tables.router().plan().first_column(),
            normalisation.mean.len(),
            "room for the dense features"
        );
        let layout = tables.router().plan().layout();
        let network: Network<B> = model.init(&layout, &mut random, &device);
        let weights = dense::flatten_weights(&network);
        let num_weights = weights.len();
        let rule = Rule {
            config: training.optimizer,
            segments: dense::segments(&network).into(),
        };
        let saved = Saved::fresh(weights, training.ema_decay > 0.0);
        let dense = B::Dense::load(saved, &rule, &device);
        Self {
            model: model.clone(),
            network: dense.network(network, training.precision),
            dense,
            rule,
            num_weights,
            tables,
            normalisation,
            training: training.clone(),
            seed,
            step: 0,
            device,
        }
    }

    /// Makes the rows of all tables as new; the network stays.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn reinitialise_tables(&mut self) -> Result<(), PlacementError> {
        self.tables.reinitialise()
    }

    /// Admits and evicts ids of dynamic tables by what a step's batches have seen, before the step
    /// and before the next one is routed.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn observe(
        &mut self,
        micro_batches: &[RoutedBatch],
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError> {
        let routed = micro_batches.iter().map(|batch| &batch.routed);
        self.tables.observe(routed, group)
    }

    /// Learns from the micro-batches of one step, together with the other ranks.
    ///
    /// # Errors
    /// [`ExchangeError`]; the model is then not to be used.
    pub fn step(
        &mut self,
        micro_batches: &[RoutedBatch],
        limits: StepLimits,
        rows: &mut impl ProcessGroup,
        dense: &mut impl ProcessGroup,
    ) -> Result<StepOutcome, ExchangeError> {
        let total_weight = micro_batches.iter().map(|batch| batch.total_weight).sum();
        let softmax = self.training.objective == Objective::BatchSoftmax;
        let idle = softmax && total_weight == 0.0;
        self.dense.clear();
        let mut gradients = Vec::new();
        for batch in micro_batches {
            let pooled = self.lookup(batch, rows)?;
            gradients.push(match &batch.candidates {
                None => self.forward_backward(batch, pooled, total_weight),
                Some(ads) => self.batch_softmax_step(batch, ads, pooled, total_weight, rows)?,
            });
        }
        let given = self.exchange(micro_batches, gradients, limits.stop, rows, dense)?;
        let total = self.dense.total();
        let (loss, gradient_norm) = (total.loss, total.gradient_norm);
        let finite = gradient_norm.is_finite() && loss.is_finite();
        let applied = finite && !idle && loss <= limits.max_loss;
        if applied {
            let factor = limits.rate * self.training.schedule.rate(self.step);
            self.tables.apply(&given, factor as f32, rows)?;
            let by = Move {
                rate: self.training.learning_rate * factor,
                weight_decay: self.training.weight_decay,
                max_norm: self.training.max_gradient_norm,
                average: self.training.ema_decay as f32,
            };
            self.dense.apply(&total, by);
            self.refresh_network();
        }
        self.step += 1;
        Ok(StepOutcome {
            loss,
            gradient_norm,
            applied,
            idle,
            stopping: total.stopping,
        })
    }

    /// Gives the network the weights as they are now.
    fn refresh_network(&mut self) {
        let network = self.network.clone();
        self.network = self.dense.network(network, self.training.precision);
    }

    /// The network's input: standardised dense features, and pooled rows.
    pub(super) fn lookup(
        &self,
        batch: &RoutedBatch,
        rows: &mut impl ProcessGroup,
    ) -> Result<Tensor<Inner<B>, 2>, ExchangeError> {
        let (features, normalisation) = (&batch.batch.features, &self.normalisation);
        let dense = |block: &mut [f32], width| write_dense(features, normalisation, block, width);
        self.tables
            .lookup(&batch.routed, &dense, &self.device, rows)
    }

    /// Dense gradients to all ranks and sparse ones to their owners.
    fn exchange<'a>(
        &mut self,
        micro_batches: &'a [RoutedBatch],
        gradients: Vec<Tensor<Inner<B>, 2>>,
        stop: bool,
        rows: &mut impl ProcessGroup,
        dense: &mut impl ProcessGroup,
    ) -> Result<Vec<Given<'a, B>>, ExchangeError> {
        let Self {
            dense: state,
            tables,
            ..
        } = self;
        let sparse = || {
            let batches = micro_batches.iter().zip(gradients);
            let given =
                batches.map(|(batch, gradient)| tables.exchange(&batch.routed, gradient, rows));
            given.collect()
        };
        if dense.world_size() == 1 || !B::AT_ONCE {
            state.reduce(stop, dense)?;
            return sparse();
        }
        thread::scope(|scope| {
            let reduced = scope.spawn(move || state.reduce(stop, dense));
            let given = sparse();
            // A panic in the thread goes on here.
            reduced.join().expect("an all-reduce")?;
            given
        })
    }

    /// The dense half: adds up loss and gradients of this rank's rows, and returns the gradient of
    /// the pooled block.
    fn forward_backward(
        &mut self,
        batch: &RoutedBatch,
        pooled: Tensor<Inner<B>, 2>,
        total_weight: f64,
    ) -> Tensor<Inner<B>, 2> {
        let rows = batch.batch.features.num_rows;
        // A rank without rows has no part in the sum.
        if rows == 0 {
            return pooled;
        }
        let matrix = |values: &[f32]| {
            let values = TensorData::new(values.to_vec(), [rows, values.len() / rows]);
            Tensor::<B, 2>::from_data(values, &self.device)
        };
        let input = Tensor::<B, 2>::from_inner(pooled).require_grad();
        let numbers = self.dropout_numbers(&batch.batch.places);
        let logits = self.network.forward(
            dense::cast(input.clone(), self.training.precision),
            Mode::Training { rows: &numbers },
        );
        let logits = dense::cast(logits, Precision::F32);
        let labels = smoothed(matrix(&batch.batch.labels), self.training.label_smoothing);
        let weights = matrix(&batch.batch.weights);
        let mut loss = match self.model.num_tasks() {
            1 => weighted_bce(logits, labels, weights),
            _ => entire_space(logits, labels, matrix(&batch.batch.observed), weights),
        };
        if batch.weight != total_weight {
            loss = loss * (batch.weight / total_weight) as f32;
        }
        let mut gradients = loss.backward();
        let of_input = input.grad_remove(&mut gradients);
        let gradients = GradientsParams::from_grads(gradients, &self.network);
        self.dense.add(&self.network, gradients, loss.inner());
        // The network sees its input, and so gives it a gradient.
        of_input.expect("a gradient of the input")
    }

    /// What a row drops depends on nothing but the step and its place.
    pub(super) fn dropout_numbers(&self, places: &[u64]) -> Vec<u64> {
        let chain = |hash, number: &u64| chain_integer(hash, *number as i64);
        let of_step = [self.seed, self.step].iter().fold(SEED, chain);
        places.iter().map(|place| chain(of_step, place)).collect()
    }

    /// The network as it scores: with the mean of its weights, where that is kept.
    pub fn scoring(&self) -> Scoring<B> {
        let network = self.network.clone();
        let network = self.dense.averaged(network, self.training.precision);
        Scoring(network.valid())
    }

    /// What the network says of this rank's rows, without dropout.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn score(
        &self,
        scoring: &Scoring<B>,
        batch: &RoutedBatch,
        rows: &mut impl ProcessGroup,
    ) -> Result<Scored, ExchangeError> {
        let input = self.lookup(batch, rows)?;
        if batch.batch.features.num_rows == 0 {
            return Ok(Scored::default());
        }
        let input = dense::cast(input, self.training.precision);
        let Some(towers) = scoring.0.two_tower() else {
            let logits = dense::to_vec(scoring.0.forward(input, Mode::Inference));
            return Ok(Scored {
                logits,
                vectors: None,
            });
        };
        let mut vectors = towers.vectors(&input);
        Ok(Scored {
            logits: std::mem::take(&mut vectors.logits),
            vectors: Some(vectors),
        })
    }

    /// How the ads of rows are told apart, by a network of two towers; else none.
    pub(super) fn item_keys(&self) -> Option<ItemKeys> {
        let fields = self.model.item_fields(&self.router().plan().layout());
        let fields = fields.expect("a network that was made for the layout");
        fields.map(|fields| ItemKeys { fields })
    }

    /// The parts of a model that scores: network and whole tables as they stand, on the CPU.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn parts(
        &self,
        group: &mut impl ProcessGroup,
    ) -> Result<(Network<Cpu>, Vec<EmbeddingTable>), ExchangeError> {
        let device = Default::default();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let layout = self.router().plan().layout();
        let network = self
            .model
            .init::<Autodiff<Cpu>>(&layout, &mut random, &device);
        let saved = self.dense.save();
        let weights = saved.averages.unwrap_or(saved.weights);
        let network = dense::load_weights(network, &weights, Precision::F32, &device).valid();
        Ok((network, self.tables.to_host()?.gather(group)?))
    }

    /// Weights of the network.
    pub fn num_weights(&self) -> usize {
        self.num_weights
    }

    /// Standardises dense features otherwise from now on.
    ///
    /// # Panics
    /// If the number of dense features differs.
    pub fn set_normalisation(&mut self, normalisation: Normalisation) {
        let before = self.normalisation.mean.len();
        assert_eq!(normalisation.mean.len(), before, "dense features");
        self.normalisation = normalisation;
    }

    /// How dense features are standardised.
    pub fn normalisation(&self) -> &Normalisation {
        &self.normalisation
    }

    /// Who finds the way of ids.
    pub fn router(&self) -> &Router {
        self.tables.router()
    }
}

impl<B: StepBackend> Learner<B> {
    /// Copies all that this rank saves.
    ///
    /// # Errors
    /// [`ExchangeError`] if the device refuses.
    pub fn save(&self, state: serde_json::Value) -> Result<Snapshot, ExchangeError> {
        let (shards, tables) = self.tables.to_host()?.save();
        Ok(Snapshot {
            step: self.step,
            shards,
            tables,
            ids: self.router().save_ids(),
            dense: self.dense.save().pieces(),
            state,
        })
    }

    /// Goes back to a checkpoint; `updates` counts the steps until then that moved weights.
    ///
    /// # Errors
    /// [`CheckpointError`] if it does not fit the model.
    pub fn restore(&mut self, restored: &Restored, updates: u64) -> Result<(), CheckpointError> {
        self.tables.restore(restored, updates)?;
        let averaged = self.training.ema_decay > 0.0;
        let saved = Saved::read(restored, &self.rule, averaged, updates)?;
        self.dense = B::Dense::load(saved, &self.rule, &self.device);
        self.refresh_network();
        self.step = restored.manifest.step;
        Ok(())
    }
}

/// Labels of clicks drawn towards one half. Source: Szegedy et al., "Rethinking the Inception
/// Architecture", CVPR 2016, section 7.
fn smoothed<B: Backend>(labels: Tensor<B, 2>, smoothing: f32) -> Tensor<B, 2> {
    if smoothing == 0.0 {
        return labels;
    }
    let rows = labels.dims()[0];
    let clicks = labels.clone().narrow(1, 0, 1);
    let clicks = clicks * (1.0 - smoothing) + 0.5 * smoothing;
    labels.slice_assign([0..rows, 0..1], clicks)
}
