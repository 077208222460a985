//! The click model of `ctr_step`, `checkpoint` and `wire`: random ids, numbers and labels.

use std::sync::Arc;

use clap::Parser;
use features::{FeatureBatch, Jagged};
use models::ctr::{NetworkConfig, Normalisation, network::DcnV2Config};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::{
    backend::StepBackend,
    ctr::{Learner, StepBatch, TrainingConfig},
    dense::Precision,
    sharding::{
        PlacementError, Plan, ShardedTables, SparseOptimizerConfig, Storage, TableConfig, Tables,
    },
};

/// Sizes of the model and of a step.
#[derive(Debug, Clone, clap::Args)]
pub struct Shape {
    /// Sparse features, each with its own table and one id a row
    #[arg(long, default_value_t = 26)]
    pub num_sparse: usize,
    /// Rows of each table
    #[arg(long, default_value_t = 1_000_000)]
    pub table_rows: usize,
    /// Length of a table's row
    #[arg(long, default_value_t = 16)]
    pub dim: usize,
    /// Dense features
    #[arg(long, default_value_t = 13)]
    pub num_dense: usize,
    /// Cross layers; 0 leaves the plain perceptron
    #[arg(long, default_value_t = 3)]
    pub cross_layers: usize,
    /// Rank of the cross matrices; 0 means full
    #[arg(long, default_value_t = 64)]
    pub cross_rank: usize,
    /// Widths of the hidden layers
    #[arg(long, value_delimiter = ',', default_value = "400,400")]
    pub hidden: Vec<usize>,
    /// Rows of a step, of one rank
    #[arg(long, default_value_t = 4096)]
    pub batch: usize,
    /// Ids are the rows times this power of a uniform number: above 1, low ones come more often
    #[arg(long, default_value_t = 1.0)]
    pub skew: f64,
    /// The network computes in bf16
    #[arg(long)]
    pub bf16: bool,
    /// Rows of each table that GPU memory holds at a time; 0: all
    #[arg(long, default_value_t = 0)]
    pub gpu_cache_rows: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for Shape {
    /// As on the command line.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            shape: Shape,
        }
        Line::parse_from([""]).shape
    }
}

impl Shape {
    /// The tables.
    pub fn tables(&self) -> Vec<TableConfig> {
        let table = |feature: usize| {
            TableConfig::of_feature(format!("feature_{feature}"), self.table_rows, self.dim)
        };
        (0..self.num_sparse).map(table).collect()
    }

    /// A fresh model of one rank of a plan.
    ///
    /// # Errors
    /// If the tables cannot lie in the backend's memory.
    pub fn learner<B: StepBackend>(
        &self,
        plan: Plan,
        rank: usize,
    ) -> Result<Learner<B>, PlacementError> {
        let model = NetworkConfig::DcnV2(DcnV2Config {
            num_cross_layers: self.cross_layers,
            cross_rank: self.cross_rank,
            hidden: self.hidden.clone(),
            ..DcnV2Config::default()
        });
        let normalisation = Normalisation {
            mean: vec![0.0; self.num_dense],
            std: vec![1.0; self.num_dense],
        };
        let tables = ShardedTables::new(
            Arc::new(plan.with_dense((0..self.num_dense).map(|at| format!("d{at}")))),
            rank,
            SparseOptimizerConfig::default(),
            Storage::F32,
            self.seed,
        );
        let training = TrainingConfig {
            precision: match self.bf16 {
                true => Precision::Bf16,
                false => Precision::F32,
            },
            ..TrainingConfig::default()
        };
        let device = Default::default();
        let tables = B::Tables::place(tables, self.gpu_cache_rows, &device)?;
        let seed = self.seed;
        Ok(Learner::new(
            &model,
            &training,
            tables,
            normalisation,
            seed,
            device,
        ))
    }

    /// Batches of one rank.
    pub fn batches(&self, count: usize, rank: usize) -> Vec<StepBatch> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(rank as u64);
        let batches = (0..count).map(|_| StepBatch {
            features: self.features(&mut random),
            labels: (0..self.batch)
                .map(|_| f32::from(u8::from(random.random_bool(0.25))))
                .collect(),
            observed: Vec::new(),
            weights: vec![1.0; self.batch],
            shown: None,
            places: (0..self.batch as u64).collect(),
        });
        batches.collect()
    }

    fn features(&self, random: &mut ChaCha8Rng) -> FeatureBatch {
        let mut features = FeatureBatch::with_widths(self.num_dense, self.num_sparse);
        features.num_rows = self.batch;
        features.dense = (0..self.batch * self.num_dense)
            .map(|_| random.random_range(-1.0..1.0))
            .collect();
        let mut id = || (random.random::<f64>().powf(self.skew) * self.table_rows as f64) as u64;
        for bags in &mut features.sparse {
            *bags = Jagged {
                offsets: (0..=self.batch as u32).collect(),
                ids: (0..self.batch).map(|_| id()).collect(),
            };
        }
        features
    }
}
