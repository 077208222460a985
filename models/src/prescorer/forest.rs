//! Scores rows with all trees of a model.

use super::{
    bits::{BitForest, LANES, Lane, LeafSet},
    model_text::ModelText,
    tree::{Tree, ZERO_THRESHOLD},
};

/// A batch that does not fit the trees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{values} values are not rows of {num_features} features")]
pub struct ForestError {
    /// Values given.
    pub values: usize,
    /// Features of a row.
    pub num_features: usize,
}

/// The fastest way that the trees allow.
#[derive(Debug, Clone)]
enum Fast {
    /// At most 32 leaves a tree.
    Narrow(BitForest<u32>),
    /// At most 64 leaves a tree.
    Wide(BitForest<u64>),
    /// Branch by branch.
    None,
}

/// Trees, ready to score. The score of a row is bit for bit that of LightGBM.
#[derive(Debug, Clone)]
pub struct Forest {
    trees: Vec<Tree>,
    num_features: usize,
    sigmoid: f64,
    fast: Fast,
}

impl Forest {
    /// Prepares the trees of a model file.
    pub fn new(model: ModelText) -> Self {
        let ModelText {
            num_features,
            sigmoid,
            trees,
            ..
        } = model;
        // A row holds the features that the trees use; those after it are never looked at.
        let used = trees
            .iter()
            .flat_map(|tree| tree.nodes())
            .map(|node| node.feature + 1)
            .max()
            .unwrap_or(0);
        let fast = if let Some(forest) = BitForest::new(&trees, used) {
            Fast::Narrow(forest)
        } else if let Some(forest) = BitForest::new(&trees, used) {
            Fast::Wide(forest)
        } else {
            Fast::None
        };
        Self {
            trees,
            num_features,
            sigmoid,
            fast,
        }
    }

    /// Features of a row.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// How many trees there are.
    pub fn num_trees(&self) -> usize {
        self.trees.len()
    }

    /// The sum over the trees for each row.
    ///
    /// # Shapes
    /// - `rows`: `[n, num_features]`, row-major; returns `[n]`
    ///
    /// # Errors
    /// [`ForestError`] if the values are no whole rows.
    pub fn raw_scores(&self, rows: &[f32]) -> Result<Vec<f64>, ForestError> {
        if !rows.len().is_multiple_of(self.num_features) {
            return Err(ForestError {
                values: rows.len(),
                num_features: self.num_features,
            });
        }
        Ok(match &self.fast {
            Fast::Narrow(forest) => self.by_blocks(forest, rows),
            Fast::Wide(forest) => self.by_blocks(forest, rows),
            Fast::None => self.by_branches(rows),
        })
    }

    /// The probability of each row; shapes and errors as for [`Self::raw_scores`].
    ///
    /// # Errors
    /// [`ForestError`] if the values are no whole rows.
    pub fn probabilities(&self, rows: &[f32]) -> Result<Vec<f64>, ForestError> {
        let mut scores = self.raw_scores(rows)?;
        for score in &mut scores {
            *score = 1.0 / (1.0 + (-self.sigmoid * *score).exp());
        }
        Ok(scores)
    }

    /// Scores one row after the other, node by node.
    pub fn by_branches(&self, rows: &[f32]) -> Vec<f64> {
        rows.chunks_exact(self.num_features)
            .map(|row| self.by_branches_of_row(row))
            .collect()
    }

    fn by_branches_of_row(&self, row: &[f32]) -> f64 {
        self.trees.iter().map(|tree| tree.value(row)).sum()
    }

    fn by_blocks<S: LeafSet>(&self, forest: &BitForest<S>, rows: &[f32]) -> Vec<f64> {
        let mut scratch = forest.scratch();
        let mut columns: Vec<Lane<f32>> = vec![[0.0; LANES]; self.num_features];
        let mut scores = Vec::with_capacity(rows.len() / self.num_features + LANES);
        for block in rows.chunks(LANES * self.num_features) {
            let mut has_nan = false;
            for (lane, row) in block.chunks_exact(self.num_features).enumerate() {
                for (column, value) in columns.iter_mut().zip(row) {
                    has_nan |= value.is_nan();
                    let tiny = value.abs() <= ZERO_THRESHOLD;
                    column[lane] = if tiny { 0.0 } else { *value };
                }
            }
            if has_nan {
                scores.extend(self.by_branches(block));
            } else {
                let lanes = block.len() / self.num_features;
                scores.extend(&forest.score(&columns, &mut scratch)[..lanes]);
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::prescorer::tree::{Child, Missing, Node};

    /// A tree grown at random, as LightGBM grows: a random leaf splits.
    fn grow(leaves: usize, features: usize, zero: bool, random: &mut ChaCha8Rng) -> Tree {
        let mut nodes: Vec<Node> = Vec::new();
        // Where each leaf hangs: node and side.
        let mut hangs: Vec<Option<(usize, bool)>> = vec![None];
        for at in 0..leaves - 1 {
            let leaf = random.random_range(0..hangs.len());
            if let Some((parent, is_left)) = hangs[leaf] {
                let branch = Child::Node(at);
                if is_left {
                    nodes[parent].left = branch;
                } else {
                    nodes[parent].right = branch;
                }
            }
            let missing = match random.random_range(0..3) {
                0 if zero => Missing::Zero,
                1 => Missing::Nan,
                _ => Missing::Never,
            };
            nodes.push(Node {
                feature: random.random_range(0..features),
                threshold: f64::from(random.random_range(-4i8..4)) / 4.0 + 1e-12,
                missing,
                default_left: random.random_bool(0.5),
                left: Child::Leaf(leaf),
                right: Child::Leaf(hangs.len()),
            });
            hangs[leaf] = Some((at, true));
            hangs.push(Some((at, false)));
        }
        let values = (0..leaves)
            .map(|_| random.random_range(-1.0..1.0))
            .collect();
        Tree::new(nodes, values).unwrap()
    }

    fn forest(leaves: usize, zero: bool, random: &mut ChaCha8Rng) -> Forest {
        let trees = (0..20).map(|_| {
            let count = random.random_range(1..=leaves);
            grow(count, 5, zero, random)
        });
        Forest::new(ModelText {
            num_features: 5,
            feature_names: vec![],
            sigmoid: 1.0,
            trees: trees.collect(),
        })
    }

    fn rows(count: usize, nan: f64, random: &mut ChaCha8Rng) -> Vec<f32> {
        let one = |random: &mut ChaCha8Rng| match random.random_range(0..20) {
            0 => f32::INFINITY,
            1 => f32::NEG_INFINITY,
            2 => 1e-36,
            3 => -0.0,
            _ if random.random_bool(nan) => f32::NAN,
            _ => f32::from(random.random_range(-9i8..9)) / 8.0,
        };
        (0..count * 5).map(|_| one(random)).collect()
    }

    proptest! {
        #[test]
        fn blocks_equal_branches_bit_for_bit(
            seed: u64,
            leaves in prop::sample::select(vec![1usize, 2, 31, 32, 33, 64, 65]),
            zero: bool,
            nan in prop::sample::select(vec![0.0, 0.05]),
            count in 0..50usize,
        ) {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let forest = forest(leaves, zero, &mut random);
            let rows = rows(count, nan, &mut random);
            let fast: Vec<u64> = forest.raw_scores(&rows).unwrap().iter().map(|s| s.to_bits()).collect();
            let slow: Vec<u64> = forest.by_branches(&rows).iter().map(|s| s.to_bits()).collect();
            prop_assert_eq!(fast, slow);
        }
    }

    #[test]
    fn the_fast_way_is_taken_where_it_can_be() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut fast = |leaves, zero| forest(leaves, zero, &mut random).fast;
        assert!(matches!(fast(31, false), Fast::Narrow(_)));
        assert!(matches!(fast(64, false), Fast::Wide(_)));
        assert!(matches!(fast(31, true), Fast::None));
    }

    #[test]
    fn a_broken_row_is_refused() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let error = forest(4, false, &mut random).raw_scores(&[0.0; 7]);
        assert_eq!(
            error,
            Err(ForestError {
                values: 7,
                num_features: 5
            })
        );
    }
}
