//! One optimisation step: lookup, dense forward and backward, exchange, update.

use std::{sync::Arc, thread};

use burn::{
    module::AutodiffModule,
    optim::GradientsParams,
    tensor::{Tensor, TensorData},
};
use features::hash::chain_integer;
use models::{
    Cpu,
    ctr::{
        DcnV2, DcnV2Config, EmbeddingTable, Normalisation, artifact::write_dense,
        dcn_v2::weighted_bce,
    },
    ops::TrainingBackend,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::TrainingConfig;
use crate::{
    checkpoint::{CheckpointError, Piece, Restored, Snapshot},
    collective::{CollectiveError, JoinError, ProcessGroup, Rendezvous, TcpGroup},
    dense::{self, Adam},
    sharding::{Bags, Received, Routed, Router, ShardSpec, ShardedTables, TableUse},
};

/// The rows of one step, or this rank's part of them.
#[derive(Debug, Clone)]
pub struct StepBatch {
    /// Features.
    pub features: features::FeatureBatch,
    /// `[rows]`, 0 or 1.
    pub labels: Vec<f32>,
    /// `[rows]`, how many rows each stands for.
    pub weights: Vec<f32>,
}

/// A batch whose ids have found their way.
#[derive(Debug, Clone)]
pub struct RoutedBatch {
    batch: StepBatch,
    routed: Routed,
    /// Weight of this rank's rows.
    weight: f64,
    /// Weight of all ranks' rows.
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
        let mine: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        let total_weight = group.all_gather_v(&[mine])?.concat().iter().sum();
        Ok(RoutedBatch {
            batch: self,
            routed,
            weight: mine,
            total_weight,
        })
    }
}

/// The groups over which a step's data travel: `S` between the tables, `D` between the networks.
#[derive(Debug)]
pub struct Groups<S, D = S> {
    /// Ids of batches to come.
    pub ids: S,
    /// Looked-up rows and their gradients, and all that is not a step's.
    pub rows: S,
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
    /// Mean loss of all ranks' rows before the update.
    pub loss: f32,
    /// Length of the dense gradient before it was cut.
    pub gradient_norm: f32,
    /// Whether the weights were moved: not by a loss over the limit, nor by one that is no number.
    pub applied: bool,
    /// Whether some rank was asked to stop.
    pub stopping: bool,
}

/// What may keep a step from being an ordinary one.
#[derive(Debug, Clone, Copy)]
pub struct StepLimits {
    /// A step with a higher loss moves nothing.
    pub max_loss: f32,
    /// This rank was asked to stop; all ranks hear of it in the same step.
    pub stop: bool,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self {
            max_loss: f32::INFINITY,
            stop: false,
        }
    }
}

/// A model in training: network, tables and their optimizers.
pub struct Learner<B: TrainingBackend> {
    model: DcnV2Config,
    network: DcnV2<B>,
    /// The network's weights, flat.
    weights: Vec<f32>,
    optimizer: Adam,
    tables: ShardedTables,
    normalisation: Normalisation,
    training: TrainingConfig,
    seed: u64,
    step: u64,
    device: B::Device,
}

impl<B: TrainingBackend> Learner<B> {
    /// A fresh network over tables; `seed` fixes its weights and dropout.
    pub fn new(
        model: &DcnV2Config,
        training: &TrainingConfig,
        tables: ShardedTables,
        normalisation: Normalisation,
        seed: u64,
        device: B::Device,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        assert_eq!(
            tables.router().plan().first_column,
            normalisation.mean.len(),
            "room for the dense features"
        );
        let network: DcnV2<B> = model.init(tables.width(), &mut random, &device);
        let weights = dense::flatten_weights(&network);
        Self {
            model: model.clone(),
            optimizer: Adam::new(weights.len()),
            network,
            weights,
            tables,
            normalisation,
            training: training.clone(),
            seed,
            step: 0,
            device,
        }
    }

    /// Admits and evicts ids of dynamic tables by what a step's batches have seen, before the step
    /// and before the next one is routed.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn observe(
        &mut self,
        micro_batches: &[RoutedBatch],
        group: &mut impl ProcessGroup,
    ) -> Result<(), CollectiveError> {
        let routed = micro_batches.iter().map(|batch| &batch.routed);
        self.tables.observe(routed, group)
    }

    /// How the dynamic tables are used, on all ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn usage(&self, group: &mut impl ProcessGroup) -> Result<Vec<TableUse>, CollectiveError> {
        self.tables.usage(group)
    }

    /// Learns from the micro-batches of one step, together with the other ranks.
    ///
    /// # Errors
    /// [`CollectiveError`]; the model is then not to be used.
    pub fn step(
        &mut self,
        micro_batches: &[RoutedBatch],
        limits: StepLimits,
        rows: &mut impl ProcessGroup,
        dense: &mut impl ProcessGroup,
    ) -> Result<StepOutcome, CollectiveError> {
        // Random numbers of a step depend on nothing before it, and differ between ranks.
        let place = [self.seed, self.step, rows.rank() as u64].into_iter();
        let chain = |hash, number| chain_integer(hash, number as i64);
        B::seed(&self.device, place.fold(features::hash::SEED, chain));
        let total_weight = micro_batches.iter().map(|batch| batch.total_weight).sum();
        let mut summed = vec![0.0; self.weights.len() + 2];
        let mut pooled_gradients = Vec::new();
        for batch in micro_batches {
            let pooled = self.tables.lookup(&batch.routed, rows)?;
            let pooled = self.forward_backward(batch, pooled, total_weight, &mut summed);
            pooled_gradients.push(pooled);
        }
        if let Some(stop) = summed.last_mut() {
            *stop = f32::from(u8::from(limits.stop));
        }
        let given = self.exchange(micro_batches, &pooled_gradients, &mut summed, rows, dense)?;
        let stopping = summed.pop() != Some(0.0);
        let loss = summed.pop().unwrap_or(f32::NAN);
        let gradient_norm = dense::clip(&mut summed, self.training.max_gradient_norm);
        let applied = gradient_norm.is_finite() && loss.is_finite() && loss <= limits.max_loss;
        if applied {
            let factor = self.training.schedule.rate(self.step);
            self.tables.apply(&given, factor as f32, rows)?;
            self.move_weights(&summed, factor);
        }
        self.step += 1;
        Ok(StepOutcome {
            loss,
            gradient_norm,
            applied,
            stopping,
        })
    }

    /// Dense gradients to all ranks and sparse ones to their owners, at the same time.
    fn exchange<'a>(
        &self,
        micro_batches: &'a [RoutedBatch],
        pooled_gradients: &'a [Vec<f32>],
        summed: &mut [f32],
        rows: &mut impl ProcessGroup,
        dense: &mut impl ProcessGroup,
    ) -> Result<Vec<Received<'a>>, CollectiveError> {
        thread::scope(|scope| {
            let reduced =
                (dense.world_size() > 1).then(|| scope.spawn(move || dense.all_reduce(summed)));
            let batches = micro_batches.iter().zip(pooled_gradients);
            let given = batches
                .map(|(batch, gradient)| self.tables.exchange(&batch.routed, gradient, rows));
            let given = given.collect();
            // A panic in the thread goes on here.
            reduced.map_or(Ok(()), |thread| thread.join().expect("an all-reduce"))?;
            given
        })
    }

    fn move_weights(&mut self, gradient: &[f32], factor: f64) {
        let rate = self.training.learning_rate * factor;
        let decay = self.training.weight_decay;
        self.optimizer
            .step(&mut self.weights, gradient, rate, decay);
        let network = self.network.clone();
        self.network = dense::load_weights(network, &self.weights, &self.device);
    }

    /// The dense half: adds loss and gradients of this rank's rows to `summed`, and returns the
    /// gradient of the pooled block.
    fn forward_backward(
        &self,
        batch: &RoutedBatch,
        pooled: Vec<f32>,
        total_weight: f64,
        summed: &mut [f32],
    ) -> Vec<f32> {
        let (rows, width) = (batch.batch.features.num_rows, self.tables.width());
        // A rank without rows has no part in the sum.
        if rows == 0 {
            return pooled;
        }
        let tensor = |values: Vec<f32>, width| {
            Tensor::<B, 2>::from_data(TensorData::new(values, [rows, width]), &self.device)
        };
        let input = tensor(self.with_dense(&batch.batch, pooled), width).require_grad();
        let mut loss = weighted_bce(
            self.network.forward(input.clone()),
            tensor(batch.batch.labels.clone(), 1),
            tensor(batch.batch.weights.clone(), 1),
        );
        if batch.weight != total_weight {
            loss = loss * (batch.weight / total_weight) as f32;
        }
        let mut gradients = loss.backward();
        let of_input = input.grad_remove(&mut gradients);
        let gradients = GradientsParams::from_grads(gradients, &self.network);
        dense::add_gradients(&self.network, gradients, summed);
        summed[self.weights.len()] += dense::to_vec(loss)[0];
        // The network sees its input, and so gives it a gradient.
        dense::to_vec(of_input.expect("a gradient of the input"))
    }

    /// Writes standardised dense features into the room that the pooled block has for them.
    fn with_dense(&self, batch: &StepBatch, mut block: Vec<f32>) -> Vec<f32> {
        let width = self.tables.width();
        write_dense(&batch.features, &self.normalisation, &mut block, width);
        block
    }

    /// Logits of this rank's rows, without dropout.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn logits(
        &self,
        batch: &RoutedBatch,
        rows: &mut impl ProcessGroup,
    ) -> Result<Vec<f32>, CollectiveError> {
        let pooled = self.tables.lookup(&batch.routed, rows)?;
        let shape = [batch.batch.features.num_rows, self.tables.width()];
        if shape[0] == 0 {
            return Ok(Vec::new());
        }
        let input = TensorData::new(self.with_dense(&batch.batch, pooled), shape);
        let input = Tensor::from_data(input, &self.device);
        Ok(dense::to_vec(self.network.valid().forward(input)))
    }

    /// The parts of a model that scores: network and whole tables as they stand, on the CPU.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn parts(
        &self,
        group: &mut impl ProcessGroup,
    ) -> Result<(DcnV2<Cpu>, Vec<EmbeddingTable>), CollectiveError> {
        let device = Default::default();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let network = self
            .model
            .init::<Cpu>(self.tables.width(), &mut random, &device);
        let network = dense::load_weights(network, &self.weights, &device);
        Ok((network, self.tables.gather(group)?))
    }

    /// Weights of the network.
    pub fn num_weights(&self) -> usize {
        self.weights.len()
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

impl<B: TrainingBackend> Learner<B> {
    /// Copies all that this rank saves.
    pub fn save(&self, state: serde_json::Value) -> Snapshot {
        let (shards, tables) = self.tables.save();
        Snapshot {
            step: self.step,
            shards,
            tables,
            ids: self.tables.save_ids(),
            dense: vec![
                Piece::vector("weights", &self.weights),
                Piece::vector("adam.means", &self.optimizer.means),
                Piece::vector("adam.squares", &self.optimizer.squares),
            ],
            state,
        }
    }

    /// Whether this rank holds cells of a saved part of a table.
    pub fn needs(&self, saved: &ShardSpec) -> bool {
        self.tables.needs(saved)
    }

    /// Goes back to a checkpoint; `updates` counts the steps until then that moved weights.
    ///
    /// # Errors
    /// [`CheckpointError`] if it does not fit the model.
    pub fn restore(&mut self, restored: &Restored, updates: u64) -> Result<(), CheckpointError> {
        self.tables.restore(restored, updates)?;
        let tensors = restored.dense.tensors();
        let read = |what: &'static str| {
            let found = tensors
                .tensor(what)
                .map_err(|error| CheckpointError::Damaged {
                    key: restored.name.clone(),
                    problem: error.to_string(),
                })?;
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(found.data());
            match values.len() == self.weights.len() {
                true => Ok(values),
                false => Err(CheckpointError::Length {
                    name: restored.name.clone(),
                    what,
                    found: values.len(),
                    wanted: self.weights.len(),
                }),
            }
        };
        let (weights, means, squares) =
            (read("weights")?, read("adam.means")?, read("adam.squares")?);
        let network = self.network.clone();
        self.network = dense::load_weights(network, &weights, &self.device);
        self.weights = weights;
        self.optimizer = Adam {
            means,
            squares,
            step: updates,
        };
        self.step = restored.manifest.step;
        Ok(())
    }
}
