//! LightGBM's text format, compiled.
//!
//! Reads models of objective `binary` with numerical splits, as LightGBM 3 and 4 write them, and
//! predicts to the bit what LightGBM predicts: same comparisons in f64, same handling of missing
//! values, same order of summation. Source of the format and of the decision rule:
//! microsoft/LightGBM `src/io/tree.cpp`, `include/LightGBM/tree.h`.

use std::str::FromStr;

/// Rows that walk one tree before the next tree is taken: their values stay in the cache.
const ROWS_PER_BLOCK: usize = 64;

/// Values nearer to zero than this count as zero where zero means missing.
const ZERO: f64 = 1e-35;

/// Why a model text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreesError {
    /// A key is missing.
    #[error("{place} has no `{key}`: the file is cut short or is not a LightGBM model")]
    Missing {
        /// The header or the tree.
        place: String,
        /// The key.
        key: &'static str,
    },
    /// A value is not what it should be.
    #[error("`{key}` of {place} holds `{found}`")]
    Value {
        /// The header or the tree.
        place: String,
        /// The key.
        key: &'static str,
        /// The text that does not read.
        found: String,
    },
    /// An array of the wrong length, or a child that is not there.
    #[error("{place} has {found} values in `{key}`, wanted {wanted}")]
    Length {
        /// The tree.
        place: String,
        /// The key.
        key: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// Something this reader does not know.
    #[error("{place} uses {what}, which the pre-scorer does not read: train without it")]
    Unsupported {
        /// The header or the tree.
        place: String,
        /// What it uses.
        what: String,
    },
    /// A tree whose branches do not end.
    #[error("{place} has a branch to {child}, outside its {nodes} nodes or back to an earlier one")]
    Child {
        /// The tree.
        place: String,
        /// The branch.
        child: i32,
        /// How many nodes there are.
        nodes: usize,
    },
}

/// A split: rows at or below the threshold go left.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    threshold: f64,
    feature: u32,
    /// Nodes are 0 and up, leaves −1 and down (leaf `i` is `!i`).
    left: i32,
    right: i32,
    missing: Missing,
    default_left: bool,
}

/// What counts as missing at a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    None,
    Zero,
    Nan,
}

/// Where one tree's nodes and leaves begin.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Root {
    node: usize,
    leaf: usize,
    /// A single leaf and no split.
    is_leaf: bool,
}

/// An ensemble of trees.
#[derive(Debug, Clone, PartialEq)]
pub struct Trees {
    num_features: usize,
    sigmoid: f64,
    roots: Vec<Root>,
    nodes: Vec<Node>,
    leaves: Vec<f64>,
}

impl Trees {
    /// Compiles a model text.
    ///
    /// # Errors
    /// [`TreesError`] with the tree and the key; any text gives one or the other, never a panic.
    pub fn parse(text: &str) -> Result<Self, TreesError> {
        let mut sections = text.split("\nTree=");
        let header = Section {
            place: "the header".to_owned(),
            text: sections.next().unwrap_or_default(),
        };
        let largest: usize = header.one("max_feature_idx")?;
        let objective = header.get("objective")?;
        let mut words = objective.split_whitespace();
        let unsupported = |what: String| TreesError::Unsupported {
            place: header.place.clone(),
            what,
        };
        if words.next() != Some("binary") {
            return Err(unsupported(format!("objective `{objective}`")));
        }
        let sigmoid = match words.find_map(|word| word.strip_prefix("sigmoid:")) {
            None => 1.0,
            Some(text) => header.read("objective", text)?,
        };
        if header.text.lines().any(|line| line == "average_output") {
            return Err(unsupported("averaged output".to_owned()));
        }
        let num_features = largest.saturating_add(1);
        let (roots, nodes, leaves) = Default::default();
        let mut trees = Self {
            num_features,
            sigmoid,
            roots,
            nodes,
            leaves,
        };
        let mut whole = false;
        for section in sections {
            let (number, rest) = section.split_once('\n').unwrap_or((section, ""));
            let tree = rest.split("\nend of trees").next().unwrap_or_default();
            whole = rest.contains("\nend of trees");
            trees.add(&Section {
                place: format!("tree {number}"),
                text: tree,
            })?;
        }
        if whole {
            Ok(trees)
        } else {
            Err(TreesError::Missing {
                place: "the text".to_owned(),
                key: "end of trees",
            })
        }
    }

    /// How many columns a row has.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// How many trees there are.
    pub fn num_trees(&self) -> usize {
        self.roots.len()
    }

    /// Probability of each row.
    ///
    /// # Shapes
    /// - `rows`: `[num_rows, num_features]`, row-major
    /// - returns `[num_rows]`
    pub fn predict(&self, rows: &[f32]) -> Vec<f64> {
        let mut scores = vec![0.0; rows.len() / self.num_features];
        let blocks = rows
            .chunks(ROWS_PER_BLOCK * self.num_features)
            .zip(scores.chunks_mut(ROWS_PER_BLOCK));
        for (rows, scores) in blocks {
            for root in &self.roots {
                for (row, score) in rows.chunks_exact(self.num_features).zip(scores.iter_mut()) {
                    *score += self.leaf_value(root, row);
                }
            }
        }
        scores
            .iter_mut()
            .for_each(|score| *score = 1.0 / (1.0 + (-self.sigmoid * *score).exp()));
        scores
    }

    fn leaf_value(&self, root: &Root, row: &[f32]) -> f64 {
        if root.is_leaf {
            return self.leaves[root.leaf];
        }
        let mut at = 0i32;
        while at >= 0 {
            let node = &self.nodes[root.node + at as usize];
            at = node.next(f64::from(row[node.feature as usize]));
        }
        self.leaves[root.leaf + !at as usize]
    }

    fn add(&mut self, tree: &Section<'_>) -> Result<(), TreesError> {
        let num_leaves: usize = tree.one("num_leaves")?;
        if tree.one::<usize>("num_cat")? != 0 {
            return Err(TreesError::Unsupported {
                place: tree.place.clone(),
                what: "categorical splits".to_owned(),
            });
        }
        if tree.get("is_linear").is_ok_and(|value| value != "0") {
            return Err(TreesError::Unsupported {
                place: tree.place.clone(),
                what: "linear leaves".to_owned(),
            });
        }
        let leaves = tree.many::<f64>("leaf_value", num_leaves)?;
        let num_nodes = num_leaves.saturating_sub(1);
        self.roots.push(Root {
            node: self.nodes.len(),
            leaf: self.leaves.len(),
            is_leaf: num_nodes == 0,
        });
        self.leaves.extend(leaves);
        if num_nodes == 0 {
            return if num_leaves == 1 {
                Ok(())
            } else {
                Err(tree.value("num_leaves", "0"))
            };
        }
        let features = tree.many::<u32>("split_feature", num_nodes)?;
        let thresholds = tree.many::<f64>("threshold", num_nodes)?;
        let decisions = tree.many::<u8>("decision_type", num_nodes)?;
        let left = tree.many::<i32>("left_child", num_nodes)?;
        let right = tree.many::<i32>("right_child", num_nodes)?;
        for at in 0..num_nodes {
            for child in [left[at], right[at]] {
                // Children stand behind their parent, so every walk ends.
                let inside = if child >= 0 {
                    child as usize > at && (child as usize) < num_nodes
                } else {
                    (!child as usize) < num_leaves
                };
                if !inside {
                    return Err(TreesError::Child {
                        place: tree.place.clone(),
                        child,
                        nodes: num_nodes,
                    });
                }
            }
            if features[at] as usize >= self.num_features {
                return Err(tree.value("split_feature", &features[at].to_string()));
            }
            let missing = match decisions[at] >> 2 & 3 {
                0 => Missing::None,
                1 => Missing::Zero,
                2 => Missing::Nan,
                _ => return Err(tree.value("decision_type", &decisions[at].to_string())),
            };
            if decisions[at] & 1 != 0 {
                return Err(tree.value("decision_type", &decisions[at].to_string()));
            }
            self.nodes.push(Node {
                threshold: thresholds[at],
                feature: features[at],
                left: left[at],
                right: right[at],
                missing,
                default_left: decisions[at] & 2 != 0,
            });
        }
        Ok(())
    }
}

impl Node {
    fn next(&self, value: f64) -> i32 {
        let value = if value.is_nan() && self.missing != Missing::Nan {
            0.0
        } else {
            value
        };
        let is_missing = match self.missing {
            Missing::None => false,
            Missing::Zero => value.abs() <= ZERO,
            Missing::Nan => value.is_nan(),
        };
        let goes_left = if is_missing {
            self.default_left
        } else {
            value <= self.threshold
        };
        if goes_left { self.left } else { self.right }
    }
}

/// `key=value` lines of the header or of one tree.
struct Section<'a> {
    place: String,
    text: &'a str,
}

impl<'a> Section<'a> {
    fn get(&self, key: &'static str) -> Result<&'a str, TreesError> {
        let value = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(str::trim).ok_or_else(|| TreesError::Missing {
            place: self.place.clone(),
            key,
        })
    }

    fn read<T: FromStr>(&self, key: &'static str, text: &str) -> Result<T, TreesError> {
        text.parse().map_err(|_| self.value(key, text))
    }

    fn one<T: FromStr>(&self, key: &'static str) -> Result<T, TreesError> {
        self.read(key, self.get(key)?)
    }

    fn many<T: FromStr>(&self, key: &'static str, wanted: usize) -> Result<Vec<T>, TreesError> {
        let texts = self.get(key)?.split_whitespace();
        let values = texts
            .map(|text| self.read(key, text))
            .collect::<Result<Vec<T>, _>>()?;
        if values.len() != wanted {
            return Err(TreesError::Length {
                place: self.place.clone(),
                key,
                found: values.len(),
                wanted,
            });
        }
        Ok(values)
    }

    fn value(&self, key: &'static str, found: &str) -> TreesError {
        TreesError::Value {
            place: self.place.clone(),
            key,
            found: found.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: &str = "tree\nversion=v4\nnum_class=1\nmax_feature_idx=1\nobjective=binary sigmoid:2\n\
        feature_names=a b\n\nTree=0\nnum_leaves=3\nnum_cat=0\nsplit_feature=0 1\nthreshold=0.5 1.5\n\
        decision_type=2 8\nleft_child=-1 -2\nright_child=1 -3\nleaf_value=0.1 0.2 0.4\nis_linear=0\n\n\n\
        Tree=1\nnum_leaves=1\nnum_cat=0\nleaf_value=-0.3\n\nend of trees\n\nparameters:\nend of parameters\n";

    #[test]
    fn rows_fall_into_the_leaves_that_the_splits_say() {
        let trees = Trees::parse(MODEL).unwrap();
        let rows = [
            [0.5, 9.0],
            [0.6, 1.5],
            [0.6, 1.6],
            [0.6, f32::NAN],
            [f32::NAN, 9.0],
        ];
        let found = trees.predict(rows.as_flattened());
        // Missing b goes right (its default); missing a is not known to the first split: zero.
        let leaves = [0.1, 0.2, 0.4, 0.4, 0.1];
        for (found, leaf) in found.iter().zip(leaves) {
            let expected = 1.0 / (1.0 + (-2.0 * (leaf - 0.3f64)).exp());
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
    }

    #[test]
    fn damage_is_named() {
        let check = |from: &str, to: &str, expected: &str| {
            let error = Trees::parse(&MODEL.replacen(from, to, 1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("\nend of trees", "", "no `end of trees`");
        check(
            "threshold=0.5 1.5",
            "threshold=0.5",
            "tree 0 has 1 values in `threshold`, wanted 2",
        );
        check(
            "threshold=0.5",
            "threshold=x",
            "`threshold` of tree 0 holds `x`",
        );
        check("right_child=1 -3", "right_child=0 -3", "branch to 0");
        check("right_child=1 -3", "right_child=1 -9", "branch to -9");
        check(
            "split_feature=0 1",
            "split_feature=0 7",
            "`split_feature` of tree 0 holds `7`",
        );
        check(
            "objective=binary",
            "objective=lambdarank",
            "objective `lambdarank",
        );
        check("num_cat=0", "num_cat=1", "categorical splits");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", cut in 0usize..400, byte in any::<u8>()) {
            let _ = Trees::parse(&text);
            let mut bytes = MODEL.as_bytes().to_vec();
            let at = cut % bytes.len();
            bytes[at] = byte;
            if let Ok(trees) = Trees::parse(&String::from_utf8_lossy(&bytes)) && trees.num_features() < 100 {
                let _ = trees.predict(&vec![0.5; trees.num_features()]);
            }
        }
    }
}
