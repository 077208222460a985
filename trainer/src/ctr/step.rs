//! One optimisation step: lookup, dense forward and backward, update.

use burn::{
    grad_clipping::GradientClippingConfig,
    module::AutodiffModule,
    optim::{
        Adam, AdamConfig, GradientsParams, Optimizer, adaptor::OptimizerAdaptor,
        decay::WeightDecayConfig,
    },
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};
use features::Jagged;
use models::ctr::{DcnV2, DcnV2Config, Normalisation, artifact::write_dense, dcn_v2::weighted_bce};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::TrainingConfig;
use crate::sharding::ShardedTables;

/// The rows of one step.
#[derive(Debug, Clone)]
pub struct StepBatch {
    /// Features.
    pub features: features::FeatureBatch,
    /// `[rows]`, 0 or 1.
    pub labels: Vec<f32>,
    /// `[rows]`, how many rows each stands for.
    pub weights: Vec<f32>,
}

/// A model in training: network, tables and their optimizers.
pub struct Learner<B: AutodiffBackend> {
    network: DcnV2<B>,
    optimizer: OptimizerAdaptor<Adam, DcnV2<B>, B>,
    tables: ShardedTables,
    normalisation: Normalisation,
    learning_rate: f64,
    device: B::Device,
}

impl<B: AutodiffBackend> Learner<B> {
    /// A fresh network over tables; `seed` fixes its weights and dropout.
    pub fn new(
        model: &DcnV2Config,
        training: &TrainingConfig,
        tables: ShardedTables,
        normalisation: Normalisation,
        seed: u64,
        device: B::Device,
    ) -> Self {
        B::seed(&device, seed);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let inputs = normalisation.mean.len() + tables.width();
        let mut adam = AdamConfig::new()
            .with_epsilon(1e-8)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(10.0)));
        if training.weight_decay > 0.0 {
            adam = adam.with_weight_decay(Some(WeightDecayConfig::new(training.weight_decay)));
        }
        Self {
            network: model.init(inputs, &mut random, &device),
            optimizer: adam.init(),
            tables,
            normalisation,
            learning_rate: training.learning_rate,
            device,
        }
    }

    /// Learns from one batch and returns its loss before the update.
    pub fn step(&mut self, batch: &StepBatch) -> f32 {
        let rows = batch.features.num_rows;
        let pooled = self.lookup(&batch.features.sparse, rows);
        let num_dense = batch.features.num_dense;
        let mut dense = vec![0.0; rows * num_dense];
        write_dense(
            &batch.features,
            &self.normalisation,
            &mut dense,
            num_dense.max(1),
        );
        let tensor = |values: Vec<f32>, width| {
            Tensor::<B, 2>::from_data(TensorData::new(values, [rows, width]), &self.device)
        };
        let embeddings = tensor(pooled, self.tables.width()).require_grad();
        let input = match num_dense {
            0 => embeddings.clone(),
            _ => Tensor::cat(vec![tensor(dense, num_dense), embeddings.clone()], 1),
        };
        let loss = weighted_bce(
            self.network.forward(input),
            tensor(batch.labels.clone(), 1),
            tensor(batch.weights.clone(), 1),
        );
        let mut gradients = loss.backward();
        if let Some(gradient) = embeddings.grad_remove(&mut gradients) {
            let gradient = gradient.into_data().convert::<f32>();
            // The data were converted to f32 just before.
            let values = gradient.as_slice::<f32>().expect("gradients are f32");
            self.tables.update(&batch.features.sparse, values);
        }
        let gradients = GradientsParams::from_grads(gradients, &self.network);
        let network = self.network.clone();
        self.network = self.optimizer.step(self.learning_rate, network, gradients);
        loss.into_data()
            .convert::<f32>()
            .as_slice::<f32>()
            .map_or(f32::NAN, |values| values[0])
    }

    /// The parts of a model that scores: network and tables as they stand.
    pub fn parts(&self) -> (DcnV2<B::InnerBackend>, Vec<models::ctr::EmbeddingTable>) {
        (self.network.valid(), self.tables.tables())
    }

    /// How dense features are standardised.
    pub fn normalisation(&self) -> &Normalisation {
        &self.normalisation
    }

    fn lookup(&self, bags: &[Jagged], rows: usize) -> Vec<f32> {
        self.tables.lookup(bags, rows)
    }
}
