//! This rank's tables: pooled lookup, and update of the rows that a batch touched.

use features::Jagged;
use models::ctr::EmbeddingTable;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::optimizer::SparseOptimizerConfig;

/// Rows of a batch that one task pools; small enough to balance two cores.
const ROWS_PER_TASK: usize = 256;

/// One table to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableConfig {
    /// The sparse feature it belongs to.
    pub feature: String,
    /// Number of rows; an id's row is `id % rows`.
    pub rows: usize,
    /// Length of a row.
    pub dim: usize,
}

#[derive(Debug, Clone)]
struct Shard {
    table: EmbeddingTable,
    /// One value a row: the optimizer's state.
    accumulators: Vec<f32>,
    /// First column in the pooled block.
    column: usize,
}

/// The tables of all sparse features, in the order of the schema.
#[derive(Debug, Clone)]
pub struct ShardedTables {
    shards: Vec<Shard>,
    width: usize,
    optimizer: SparseOptimizerConfig,
}

impl ShardedTables {
    /// Makes fresh tables with weights uniform in ±0.01, each from its own random stream, so that
    /// a table's weights do not depend on the others or on where it lies.
    pub fn new(tables: &[TableConfig], optimizer: SparseOptimizerConfig, seed: u64) -> Self {
        let mut width = 0;
        let shards = tables
            .iter()
            .map(|config| {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(features::hash::hash_text(&config.feature));
                let values = config.rows * config.dim;
                let weights = (0..values)
                    .map(|_| random.random_range(-0.01..0.01))
                    .collect();
                let column = width;
                width += config.dim;
                Shard {
                    table: EmbeddingTable {
                        feature: config.feature.clone(),
                        rows: config.rows,
                        dim: config.dim,
                        weights,
                    },
                    accumulators: vec![0.0; config.rows],
                    column,
                }
            })
            .collect();
        Self {
            shards,
            width,
            optimizer,
        }
    }

    /// Sum of all dims: the width of the pooled block.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The tables as they stand, in the order of the schema.
    pub fn tables(&self) -> Vec<EmbeddingTable> {
        self.shards
            .iter()
            .map(|shard| shard.table.clone())
            .collect()
    }

    /// Pools the bags of a batch by their mean, an empty bag to zeros.
    ///
    /// # Shapes
    /// - `bags`: one [`Jagged`] of `rows` bags per table
    /// - returns `[rows, width]`
    pub fn lookup(&self, bags: &[Jagged], rows: usize) -> Vec<f32> {
        let mut pooled = vec![0.0; rows * self.width];
        pooled
            .par_chunks_mut(ROWS_PER_TASK * self.width.max(1))
            .enumerate()
            .for_each(|(task, out)| {
                for (shard, bags) in self.shards.iter().zip(bags) {
                    shard.table.pool_mean(
                        bags,
                        task * ROWS_PER_TASK,
                        out,
                        self.width,
                        shard.column,
                    );
                }
            });
        pooled
    }

    /// Moves the rows that a batch touched, each once, by the sum of its gradients. The result
    /// does not depend on the number of threads.
    ///
    /// # Shapes
    /// - `bags`: as in [`Self::lookup`]
    /// - `gradient`: `[rows, width]`, of the pooled block
    pub fn update(&mut self, bags: &[Jagged], gradient: &[f32]) {
        let (width, optimizer) = (self.width, &self.optimizer);
        self.shards
            .par_iter_mut()
            .zip(bags)
            .for_each(|(shard, bags)| shard.update(bags, gradient, width, optimizer));
    }
}

impl Shard {
    fn update(
        &mut self,
        bags: &Jagged,
        gradient: &[f32],
        width: usize,
        optimizer: &SparseOptimizerConfig,
    ) {
        // (row, bag) packed, so that one sort brings a row's bags together in a fixed order.
        let mut touched = Vec::with_capacity(bags.ids.len());
        for bag in 0..bags.offsets.len() - 1 {
            touched.extend(
                bags.row(bag)
                    .iter()
                    .map(|id| (self.table.row_of(*id) as u64) << 32 | bag as u64),
            );
        }
        touched.sort_unstable();
        let dim = self.table.dim;
        let mut sum = vec![0.0; dim];
        for of_row in touched.chunk_by(|a, b| a >> 32 == b >> 32) {
            sum.fill(0.0);
            for packed in of_row {
                let bag = (packed & u64::from(u32::MAX)) as usize;
                let share = 1.0 / (bags.offsets[bag + 1] - bags.offsets[bag]) as f32;
                let from = bag * width + self.column;
                for (sum, g) in sum.iter_mut().zip(&gradient[from..from + dim]) {
                    *sum += share * g;
                }
            }
            let row = (of_row[0] >> 32) as usize;
            let weights = &mut self.table.weights[row * dim..(row + 1) * dim];
            optimizer.step(weights, &mut self.accumulators[row], &mut sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sharding::SparseOptimizer;

    fn configs() -> [TableConfig; 2] {
        [("a", 5, 2), ("b", 3, 3)].map(|(feature, rows, dim)| TableConfig {
            feature: feature.into(),
            rows,
            dim,
        })
    }

    fn jagged(bags: &[Vec<u64>]) -> Jagged {
        let mut jagged = Jagged::default();
        bags.iter().for_each(|bag| jagged.push_row(bag));
        jagged
    }

    /// The same update by dense arithmetic over whole tables.
    fn reference(
        tables: &[EmbeddingTable],
        bags: &[Jagged],
        gradient: &[f32],
        optimizer: &SparseOptimizerConfig,
    ) -> Vec<Vec<f32>> {
        let mut column = 0;
        let mut updated = Vec::new();
        for (table, bags) in tables.iter().zip(bags) {
            let mut dense = vec![0.0f32; table.weights.len()];
            let mut hit = vec![false; table.rows];
            for bag in 0..bags.offsets.len() - 1 {
                for id in bags.row(bag) {
                    let row = table.row_of(*id);
                    hit[row] = true;
                    for at in 0..table.dim {
                        dense[row * table.dim + at] +=
                            gradient[bag * 5 + column + at] / bags.row(bag).len() as f32;
                    }
                }
            }
            let mut weights = table.weights.clone();
            for row in (0..table.rows).filter(|row| hit[*row]) {
                let g = &dense[row * table.dim..(row + 1) * table.dim];
                let accumulator = g.iter().map(|g| g * g).sum::<f32>() / table.dim as f32;
                let rate = optimizer.learning_rate / (accumulator.sqrt() + optimizer.eps);
                for at in 0..table.dim {
                    weights[row * table.dim + at] -= rate * g[at];
                }
            }
            updated.push(weights);
            column += table.dim;
        }
        updated
    }

    proptest! {
        #[test]
        fn an_update_equals_dense_arithmetic_and_moves_nothing_else(
            bags in prop::collection::vec((prop::collection::vec(any::<u64>(), 0..4), prop::collection::vec(any::<u64>(), 0..4)), 1..30),
            scale in 0.1f32..2.0,
        ) {
            let optimizer = SparseOptimizerConfig::default();
            let mut sharded = ShardedTables::new(&configs(), optimizer.clone(), 1);
            let before = sharded.tables();
            let (left, right): (Vec<_>, Vec<_>) = bags.into_iter().unzip();
            let rows = left.len();
            let bags = [jagged(&left), jagged(&right)];
            // One sign a column: a sum that cancels to zero leaves rounding, which the optimizer
            // would scale to a whole step.
            let sign = |at: usize| [1.0, -1.0][at % 5 % 2];
            let gradient: Vec<f32> = (0..rows * 5).map(|at| scale * sign(at) * ((at % 7) as f32 + 1.0)).collect();
            sharded.update(&bags, &gradient);
            let expected = reference(&before, &bags, &gradient, &optimizer);
            for (found, expected) in sharded.tables().iter().zip(&expected) {
                for (found, expected) in found.weights.iter().zip(expected) {
                    prop_assert!((found - expected).abs() < 1e-5, "{} {}", found, expected);
                }
            }
        }
    }

    #[test]
    fn lookup_gives_means_side_by_side() {
        let tables = ShardedTables::new(&configs(), SparseOptimizerConfig::default(), 1);
        let bags = [jagged(&[vec![7], vec![]]), jagged(&[vec![0, 1], vec![2]])];
        let pooled = tables.lookup(&bags, 2);
        let all = tables.tables();
        assert_eq!(pooled[..2], all[0].weights[4..6]);
        assert_eq!(pooled[5..7], [0.0, 0.0]);
        assert_eq!(pooled[7..], all[1].weights[6..9]);
        assert!((pooled[2] - (all[1].weights[0] + all[1].weights[3]) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_tables_weights_do_not_depend_on_its_neighbours() {
        let both = ShardedTables::new(&configs(), SparseOptimizerConfig::default(), 1).tables();
        let alone =
            ShardedTables::new(&configs()[1..], SparseOptimizerConfig::default(), 1).tables();
        assert_eq!(both[1], alone[0]);
    }

    #[test]
    fn sgd_moves_by_the_gradient() {
        let optimizer = SparseOptimizerConfig {
            kind: SparseOptimizer::Sgd,
            learning_rate: 0.5,
            ..Default::default()
        };
        let mut tables = ShardedTables::new(&configs()[..1], optimizer, 1);
        let before = tables.tables()[0].weights[2];
        tables.update(&[jagged(&[vec![1]])], &[0.2, 0.0]);
        assert!((tables.tables()[0].weights[2] - (before - 0.1)).abs() < 1e-7);
    }
}
