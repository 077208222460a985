//! Many rows through many trees, without following a single branch.
//!
//! Each tree keeps a set of leaves that a row can still reach, one bit each, from left to right.
//! A test that a row fails (its value is above the threshold) rules out the leaves to the left
//! of that node; when all failed tests are applied, the lowest bit left is the row's leaf. Tests
//! are grouped by feature and sorted by threshold, so the failed ones are a prefix. [`LANES`]
//! rows go side by side, which the compiler turns into vector instructions.
//!
//! Source: Lucchese et al., "QuickScorer: A Fast Algorithm to Rank Documents with Additive
//! Ensembles of Regression Trees", SIGIR 2015, and "Exploiting CPU SIMD Extensions to Speed-up
//! Document Scoring with Tree Ensembles", SIGIR 2016.

use std::collections::BTreeMap;

use super::tree::{Child, Missing, Tree};

/// Rows that go side by side: one register of 512 bits, or two of 256.
pub const LANES: usize = 16;

/// One value of each of [`LANES`] rows.
pub type Lane<T> = [T; LANES];

/// A set of leaves.
pub trait LeafSet: Copy + std::ops::BitAndAssign + std::ops::Not<Output = Self> {
    /// Most leaves that it holds.
    const CAPACITY: usize;
    /// All leaves.
    const ALL: Self;
    /// The leaves from `start` on, `count` of them.
    fn range(start: usize, count: usize) -> Self;
    /// The leftmost leaf; [`Self::CAPACITY`] if there is none.
    fn first(self) -> usize;
}

macro_rules! leaf_set {
    ($bits:ty) => {
        impl LeafSet for $bits {
            const CAPACITY: usize = <$bits>::BITS as usize;
            const ALL: Self = <$bits>::MAX;

            fn range(start: usize, count: usize) -> Self {
                let low = |bits: usize| match bits {
                    bits if bits >= Self::CAPACITY => Self::MAX,
                    bits => (1 << bits) - 1,
                };
                low(start + count) & !low(start)
            }

            #[inline(always)]
            fn first(self) -> usize {
                self.trailing_zeros() as usize
            }
        }
    };
}

leaf_set!(u32);
leaf_set!(u64);

/// All tests of one feature, by rising threshold.
#[derive(Debug, Clone, PartialEq)]
struct Tests<S> {
    /// The largest 32-bit number that does not fail.
    thresholds: Vec<f32>,
    trees: Vec<u32>,
    /// Leaves that a row keeps when it fails.
    kept: Vec<S>,
}

/// Trees as tests and leaf values.
#[derive(Debug, Clone, PartialEq)]
pub struct BitForest<S> {
    /// Features that are tested, by number.
    features: Vec<usize>,
    /// Of each of these.
    tests: Vec<Tests<S>>,
    /// [`LeafSet::CAPACITY`] per tree, from left to right; the rest is 0.
    leaf_values: Vec<f64>,
    num_trees: usize,
}

impl<S: LeafSet> BitForest<S> {
    /// Takes trees apart. `None` if one has more leaves than a set holds, or treats zeros as
    /// missing: those must be followed branch by branch.
    pub fn new(trees: &[Tree]) -> Option<Self> {
        let fits = |tree: &Tree| {
            tree.leaf_values().len() <= S::CAPACITY
                && tree
                    .nodes()
                    .iter()
                    .all(|node| node.missing != Missing::Zero)
        };
        if !trees.iter().all(fits) {
            return None;
        }
        let mut by_feature: BTreeMap<usize, Vec<(f32, u32, S)>> = BTreeMap::new();
        let mut leaf_values = vec![0.0; trees.len() * S::CAPACITY];
        for (number, tree) in trees.iter().enumerate() {
            let order = tree.leaves_left_to_right();
            let mut place = vec![0; order.len()];
            for (at, leaf) in order.iter().enumerate() {
                place[*leaf] = at;
                leaf_values[number * S::CAPACITY + at] = tree.leaf_values()[*leaf];
            }
            for node in tree.nodes() {
                let (start, count) = span(tree, node.left, &place);
                let test = (
                    at_most(node.threshold),
                    number as u32,
                    !S::range(start, count),
                );
                by_feature.entry(node.feature).or_default().push(test);
            }
        }
        let features = by_feature.keys().copied().collect();
        let tests = by_feature.into_values().map(|mut tests| {
            tests.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            Tests {
                thresholds: tests.iter().map(|test| test.0).collect(),
                trees: tests.iter().map(|test| test.1).collect(),
                kept: tests.iter().map(|test| test.2).collect(),
            }
        });
        Some(Self {
            features,
            tests: tests.collect(),
            leaf_values,
            num_trees: trees.len(),
        })
    }

    /// Features whose values [`Self::score`] takes, in its order.
    pub fn features(&self) -> &[usize] {
        &self.features
    }

    /// Scratch space for [`Self::score`].
    pub fn scratch(&self) -> Vec<Lane<S>> {
        vec![[S::ALL; LANES]; self.num_trees]
    }

    /// Scores of [`LANES`] rows, none of which has NaN.
    ///
    /// # Shapes
    /// - `columns`: one lane for each of [`Self::features`]
    /// - `scratch`: `[num_trees]` lanes, from [`Self::scratch`]
    pub fn score(&self, columns: &[Lane<f32>], scratch: &mut [Lane<S>]) -> Lane<f64> {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("bmi1")
            {
                // SAFETY: the CPU has the instructions that the function was compiled with.
                return unsafe { self.score_avx512(columns, scratch) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") {
                // SAFETY: the CPU has the instructions that the function was compiled with.
                return unsafe { self.score_avx2(columns, scratch) };
            }
        }
        self.score_portable(columns, scratch)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,bmi1")]
    fn score_avx512(&self, columns: &[Lane<f32>], scratch: &mut [Lane<S>]) -> Lane<f64> {
        self.score_portable(columns, scratch)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1")]
    fn score_avx2(&self, columns: &[Lane<f32>], scratch: &mut [Lane<S>]) -> Lane<f64> {
        self.score_portable(columns, scratch)
    }

    #[inline(always)]
    fn score_portable(&self, columns: &[Lane<f32>], scratch: &mut [Lane<S>]) -> Lane<f64> {
        scratch.fill([S::ALL; LANES]);
        for (tests, values) in self.tests.iter().zip(columns) {
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let failed = tests.thresholds.iter().zip(&tests.trees).zip(&tests.kept);
            for ((threshold, tree), kept) in failed {
                if largest <= *threshold {
                    break;
                }
                let reachable = &mut scratch[*tree as usize];
                for lane in 0..LANES {
                    reachable[lane] &= if values[lane] > *threshold {
                        *kept
                    } else {
                        S::ALL
                    };
                }
            }
        }
        let mut scores = [0.0; LANES];
        let leaves = self.leaf_values.chunks_exact(S::CAPACITY);
        for (reachable, leaves) in scratch.iter().zip(leaves) {
            for lane in 0..LANES {
                // Every tree keeps a leaf; the remainder makes that plain to the compiler.
                scores[lane] += leaves[reachable[lane].first() % S::CAPACITY];
            }
        }
        scores
    }
}

/// The largest 32-bit number that is at most a threshold: a 32-bit value is above the one exactly
/// when it is above the other.
fn at_most(threshold: f64) -> f32 {
    let near = threshold as f32;
    if f64::from(near) > threshold {
        near.next_down()
    } else {
        near
    }
}

/// Where the leaves below a branch begin in the order from left to right, and how many they are.
fn span(tree: &Tree, branch: Child, place: &[usize]) -> (usize, usize) {
    let (mut first, mut count) = (usize::MAX, 0);
    let mut waiting = vec![branch];
    while let Some(child) = waiting.pop() {
        match child {
            Child::Leaf(leaf) => {
                first = first.min(place[leaf]);
                count += 1;
            }
            Child::Node(node) => {
                waiting.extend([tree.nodes()[node].left, tree.nodes()[node].right]);
            }
        }
    }
    (first, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_divide_32_bit_numbers_as_before() {
        for threshold in [0.1, -0.1, 1e300, -1e300, 1e-300, 0.0, 3.0, f64::INFINITY] {
            let lowered = at_most(threshold);
            let near = threshold as f32;
            for value in [
                near,
                near.next_up(),
                near.next_down(),
                0.0,
                1e38,
                -1e38,
                f32::INFINITY,
            ] {
                assert_eq!(
                    f64::from(value) <= threshold,
                    value <= lowered,
                    "{value} {threshold}"
                );
            }
        }
    }

    #[test]
    fn ranges_of_leaves_are_bits() {
        assert_eq!(u32::range(0, 32), u32::MAX);
        assert_eq!(u32::range(2, 3), 0b11100);
        assert_eq!(u64::range(60, 4), 0xF << 60);
        assert_eq!(u32::range(31, 1), 1 << 31);
    }
}
