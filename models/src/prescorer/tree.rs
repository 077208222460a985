//! One decision tree, and how LightGBM follows a row through it.

/// What a value must be to count as missing at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing is missing; NaN is read as 0.
    Never,
    /// Zero, and NaN read as zero.
    Zero,
    /// NaN.
    Nan,
}

/// Where a branch leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// To another node.
    Node(usize),
    /// To a leaf.
    Leaf(usize),
}

/// A test of one feature: at most the threshold goes left, more goes right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// Which feature.
    pub feature: usize,
    /// The largest value that goes left.
    pub threshold: f64,
    /// What counts as missing here.
    pub missing: Missing,
    /// Whether a missing value goes left.
    pub default_left: bool,
    /// For small values.
    pub left: Child,
    /// For large values.
    pub right: Child,
}

/// A tree; node 0 is its root. A tree without nodes has one leaf.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    nodes: Vec<Node>,
    leaf_values: Vec<f64>,
}

/// Nodes and leaves that form no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A tree has one leaf more than nodes.
    #[error("{nodes} nodes with {leaves} leaves, wanted {} leaves", nodes + 1)]
    Count {
        /// Nodes.
        nodes: usize,
        /// Leaves.
        leaves: usize,
    },
    /// A branch to nowhere.
    #[error("node {node} leads to {child:?}, which does not exist")]
    Dangling {
        /// The node.
        node: usize,
        /// The branch.
        child: Child,
    },
    /// A circle, or two branches to one place.
    #[error("{child:?} is reached twice")]
    ReachedTwice {
        /// The place.
        child: Child,
    },
}

/// LightGBM reads smaller magnitudes as 0 (`kZeroThreshold` in its `meta.h`).
pub const ZERO_THRESHOLD: f32 = 1e-35;

impl Tree {
    /// Checks that nodes and leaves form a tree.
    ///
    /// # Errors
    /// [`TreeError`] names the place where they do not.
    pub fn new(nodes: Vec<Node>, leaf_values: Vec<f64>) -> Result<Self, TreeError> {
        if leaf_values.len() != nodes.len() + 1 {
            return Err(TreeError::Count {
                nodes: nodes.len(),
                leaves: leaf_values.len(),
            });
        }
        let mut seen_nodes = vec![false; nodes.len()];
        let mut seen_leaves = vec![false; leaf_values.len()];
        for (at, node) in nodes.iter().enumerate() {
            for child in [node.left, node.right] {
                let seen = match child {
                    Child::Node(to) => seen_nodes.get_mut(to),
                    Child::Leaf(to) => seen_leaves.get_mut(to),
                };
                let seen = seen.ok_or(TreeError::Dangling { node: at, child })?;
                if std::mem::replace(seen, true) || child == Child::Node(0) {
                    return Err(TreeError::ReachedTwice { child });
                }
            }
        }
        // n nodes have 2n branches to n - 1 nodes and n + 1 leaves, each reached once. What is
        // left to exclude is a circle apart from the root.
        let tree = Self { nodes, leaf_values };
        let mut left_to_right = Vec::new();
        tree.visit_leaves(&mut left_to_right);
        if left_to_right.len() != tree.leaf_values.len() {
            return Err(TreeError::ReachedTwice {
                child: Child::Node(0),
            });
        }
        Ok(tree)
    }

    /// Its tests.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What it adds to the score, by leaf.
    pub fn leaf_values(&self) -> &[f64] {
        &self.leaf_values
    }

    /// Leaves in the order from left to right.
    pub fn leaves_left_to_right(&self) -> Vec<usize> {
        let mut leaves = Vec::with_capacity(self.leaf_values.len());
        self.visit_leaves(&mut leaves);
        leaves
    }

    fn visit_leaves(&self, leaves: &mut Vec<usize>) {
        let root = if self.nodes.is_empty() {
            Child::Leaf(0)
        } else {
            Child::Node(0)
        };
        let mut waiting = vec![root];
        while let Some(child) = waiting.pop() {
            match child {
                Child::Leaf(leaf) => leaves.push(leaf),
                Child::Node(node) => {
                    waiting.push(self.nodes[node].right);
                    waiting.push(self.nodes[node].left);
                }
            }
        }
    }

    /// What the tree adds to the score of a row.
    pub fn value(&self, row: &[f32]) -> f64 {
        let mut at = if self.nodes.is_empty() {
            Child::Leaf(0)
        } else {
            Child::Node(0)
        };
        loop {
            match at {
                Child::Leaf(leaf) => return self.leaf_values[leaf],
                Child::Node(node) => {
                    let node = &self.nodes[node];
                    at = node.next(row[node.feature]);
                }
            }
        }
    }
}

impl Node {
    /// The branch that a value takes. Port of `Tree::NumericalDecision` in LightGBM's `tree.h`;
    /// values within [`ZERO_THRESHOLD`] of 0 are read as 0, as its prediction interface does.
    pub fn next(&self, value: f32) -> Child {
        let mut value = value;
        if value.abs() <= ZERO_THRESHOLD || (value.is_nan() && self.missing != Missing::Nan) {
            value = 0.0;
        }
        let missing = match self.missing {
            Missing::Never => false,
            Missing::Zero => value == 0.0,
            Missing::Nan => value.is_nan(),
        };
        let left = if missing {
            self.default_left
        } else {
            f64::from(value) <= self.threshold
        };
        if left { self.left } else { self.right }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(missing: Missing, default_left: bool, threshold: f64) -> Node {
        Node {
            feature: 0,
            threshold,
            missing,
            default_left,
            left: Child::Leaf(0),
            right: Child::Leaf(1),
        }
    }

    fn goes_left(missing: Missing, default_left: bool, threshold: f64, value: f32) -> bool {
        node(missing, default_left, threshold).next(value) == Child::Leaf(0)
    }

    #[test]
    fn missing_values_take_the_default_branch_of_their_kind() {
        // NaN is 0 where nothing is missing, and 0 > -1.
        assert!(!goes_left(Missing::Never, true, -1.0, f32::NAN));
        assert!(goes_left(Missing::Nan, true, -1.0, f32::NAN));
        assert!(!goes_left(Missing::Nan, false, 1.0, f32::NAN));
        assert!(!goes_left(Missing::Nan, true, -1.0, 0.0));
        for zero in [0.0, -0.0, 1e-36, f32::NAN] {
            assert!(goes_left(Missing::Zero, true, -1.0, zero));
            assert!(!goes_left(Missing::Zero, false, 1.0, zero));
        }
        assert!(!goes_left(Missing::Zero, true, 1.0, 2.0));
    }

    #[test]
    fn the_threshold_itself_goes_left_and_tiny_values_are_zero() {
        assert!(goes_left(Missing::Never, false, 0.5, 0.5));
        assert!(!goes_left(Missing::Never, false, 0.5, 0.500_000_06));
        assert!(goes_left(Missing::Never, false, 0.0, 1e-36));
        assert!(!goes_left(Missing::Never, false, 0.0, 1e-34));
    }

    #[test]
    fn circles_and_dangling_branches_are_refused() {
        let to = |left, right| Node {
            left,
            right,
            ..node(Missing::Never, false, 0.0)
        };
        let leaves = |count: usize| vec![0.0; count];
        let dangling = Tree::new(vec![to(Child::Leaf(0), Child::Node(7))], leaves(2));
        assert!(matches!(dangling, Err(TreeError::Dangling { node: 0, .. })));
        let root = Tree::new(vec![to(Child::Leaf(0), Child::Node(0))], leaves(2));
        assert!(matches!(root, Err(TreeError::ReachedTwice { .. })));
        let apart = vec![
            to(Child::Leaf(0), Child::Leaf(1)),
            to(Child::Leaf(2), Child::Node(2)),
            to(Child::Leaf(3), Child::Node(1)),
        ];
        assert!(matches!(
            Tree::new(apart, leaves(4)),
            Err(TreeError::ReachedTwice { .. })
        ));
        assert!(matches!(
            Tree::new(vec![], leaves(0)),
            Err(TreeError::Count { .. })
        ));
    }
}
