//! All trees of a model, ready to predict.

use super::{
    bits::{BitForest, LANES, Lane, LeafSet},
    model_text::{ModelText, TreesError},
    tree::{Tree, ZERO_THRESHOLD},
};

/// The fastest way that the trees allow.
#[derive(Debug, Clone, PartialEq)]
enum Fast {
    /// At most 32 leaves a tree.
    Narrow(BitForest<u32>),
    /// At most 64 leaves a tree.
    Wide(BitForest<u64>),
    /// Branch by branch.
    None,
}

/// An ensemble of trees, compiled. A row's score is bit for bit that of LightGBM.
#[derive(Debug, Clone, PartialEq)]
pub struct Trees {
    trees: Vec<Tree>,
    num_features: usize,
    sigmoid: f64,
    fast: Fast,
}

impl Trees {
    /// Compiles a model text.
    ///
    /// # Errors
    /// [`TreesError`] with the line; any text gives one or the other, never a panic.
    pub fn parse(text: &str) -> Result<Self, TreesError> {
        text.parse().map(Self::new)
    }

    fn new(model: ModelText) -> Self {
        let fast = if let Some(forest) = BitForest::new(&model.trees) {
            Fast::Narrow(forest)
        } else if let Some(forest) = BitForest::new(&model.trees) {
            Fast::Wide(forest)
        } else {
            Fast::None
        };
        Self {
            trees: model.trees,
            num_features: model.num_features,
            sigmoid: model.sigmoid,
            fast,
        }
    }

    /// How many columns a row has.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// How many trees there are.
    pub fn num_trees(&self) -> usize {
        self.trees.len()
    }

    /// Probability of each row. A value that is not a number is treated as LightGBM treats it:
    /// as missing, or as zero where nothing was missing in training.
    ///
    /// # Shapes
    /// - `rows`: `[num_rows, num_features]`, row-major
    /// - returns `[num_rows]`
    pub fn predict(&self, rows: &[f32]) -> Vec<f64> {
        let mut scores = self.sums(rows);
        for score in &mut scores {
            *score = self.probability(*score);
        }
        scores
    }

    /// What [`Self::predict`] would say with the first tree alone, with the first two, and so on.
    ///
    /// # Shapes
    /// - `rows`: as for [`Self::predict`]; each item: `[num_rows]`
    pub fn staged<'a>(&'a self, rows: &'a [f32]) -> impl Iterator<Item = Vec<f64>> + 'a {
        let mut sums = vec![0.0; rows.len() / self.num_features];
        self.trees.iter().map(move |tree| {
            let rows = rows.chunks_exact(self.num_features);
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum += tree.value(row);
            }
            sums.iter().map(|sum| self.probability(*sum)).collect()
        })
    }

    fn probability(&self, sum: f64) -> f64 {
        1.0 / (1.0 + (-self.sigmoid * sum).exp())
    }

    /// The sum over the trees for each row; shapes as for [`Self::predict`].
    pub fn sums(&self, rows: &[f32]) -> Vec<f64> {
        match &self.fast {
            Fast::Narrow(forest) => self.sums_by_blocks(forest, rows),
            Fast::Wide(forest) => self.sums_by_blocks(forest, rows),
            Fast::None => self.sums_by_branches(rows),
        }
    }

    /// The same as [`Self::sums`], one row after the other, branch by branch.
    pub fn sums_by_branches(&self, rows: &[f32]) -> Vec<f64> {
        let rows = rows.chunks_exact(self.num_features);
        rows.map(|row| self.sum_by_branches(row)).collect()
    }

    fn sum_by_branches(&self, row: &[f32]) -> f64 {
        // `sum` begins at -0; LightGBM begins at 0.
        self.trees
            .iter()
            .fold(0.0, |sum, tree| sum + tree.value(row))
    }

    fn sums_by_blocks<S: LeafSet>(&self, forest: &BitForest<S>, rows: &[f32]) -> Vec<f64> {
        let mut scratch = forest.scratch();
        let mut columns: Vec<Lane<f32>> = vec![[0.0; LANES]; forest.features().len()];
        let mut sums = Vec::with_capacity(rows.len() / self.num_features);
        let rows: Vec<&[f32]> = rows.chunks_exact(self.num_features).collect();
        for block in rows.chunks(LANES) {
            let mut has_nan = false;
            for (lane, row) in block.iter().enumerate() {
                for (column, feature) in columns.iter_mut().zip(forest.features()) {
                    let value = row[*feature];
                    has_nan |= value.is_nan();
                    let tiny = value.abs() <= ZERO_THRESHOLD;
                    column[lane] = if tiny { 0.0 } else { value };
                }
            }
            if has_nan {
                sums.extend(block.iter().map(|row| self.sum_by_branches(row)));
            } else {
                sums.extend(&forest.score(&columns, &mut scratch)[..block.len()]);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::prescorer::tree::{Child, Missing, Node};

    /// A tree grown at random, as LightGBM grows: some leaf splits.
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
        let values = (0..leaves).map(|_| random.random_range(-1.0..1.0));
        Tree::new(nodes, values.collect()).unwrap()
    }

    fn forest(leaves: usize, zero: bool, random: &mut ChaCha8Rng) -> Trees {
        // One tree is as large as may be.
        let sizes: Vec<usize> = (0..19).map(|_| random.random_range(1..=leaves)).collect();
        let sizes = sizes.into_iter().chain([leaves]);
        Trees::new(ModelText {
            num_features: 5,
            sigmoid: 1.0,
            trees: sizes.map(|size| grow(size, 4, zero, random)).collect(),
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
            let trees = forest(leaves, zero, &mut random);
            let rows = rows(count, nan, &mut random);
            let bits = |sums: Vec<f64>| sums.into_iter().map(f64::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(trees.sums(&rows)), bits(trees.sums_by_branches(&rows)));
        }
    }

    #[test]
    fn the_fast_way_is_taken_where_it_can_be() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut fast = |leaves, zero| forest(leaves, zero, &mut random).fast;
        assert!(matches!(fast(31, false), Fast::Narrow(_)));
        assert!(matches!(fast(64, false), Fast::Wide(_)));
        assert!(matches!(fast(65, false), Fast::None));
        assert!(matches!(fast(31, true), Fast::None));
    }

    #[test]
    fn probabilities_are_sigmoids_of_the_sums() {
        let text = include_str!("testdata/small.txt").replace("sigmoid:1", "sigmoid:2");
        let trees = Trees::parse(&text).unwrap();
        let found = trees.predict(&[0.2, 0.0, 0.0, 0.9, 0.0, 0.0]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-2.0 * x).exp());
        assert_eq!(found, [sigmoid(-0.25 + 0.125), sigmoid(0.5 + 0.125)]);
    }
}
