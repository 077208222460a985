//! Reads LightGBM's `model.txt`: `key=value` lines, one block per tree.
//!
//! Format: `GBDT::SaveModelToString` in LightGBM's `gbdt_model_text.cpp` and `Tree::ToString` in
//! its `tree.cpp`. Only what the pre-scorer uses is read: binary objective or cross-entropy, numerical splits,
//! constant leaves. Everything else is refused by name, never guessed.

use std::{collections::BTreeMap, str::FromStr};

use super::tree::{Child, Missing, Node, Tree, TreeError};

/// Why a model file was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TreesError {
    /// The file does not begin as one.
    #[error("line 1 is `{found}`, wanted `tree`: this is not a LightGBM model")]
    NotAModel {
        /// The first line, shortened.
        found: String,
    },
    /// A key that must be there.
    #[error("line {line}: the block that begins here has no `{key}`")]
    MissingKey {
        /// Where the block begins.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// A value that cannot be read.
    #[error("line {line}: `{key}` holds `{found}`, wanted {wanted}")]
    Value {
        /// The line.
        line: usize,
        /// The key.
        key: String,
        /// The value, shortened.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A list of another length.
    #[error("line {line}: `{key}` holds {found} values, wanted {wanted}")]
    Length {
        /// The line.
        line: usize,
        /// The key.
        key: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A line that is no `key=value`, or a key for the second time.
    #[error("line {line}: `{found}` is not a new `key=value`")]
    Line {
        /// The line.
        line: usize,
        /// The text, shortened.
        found: String,
    },
    /// Something that the pre-scorer cannot do.
    #[error("line {line}: {what} is not supported; train with {mend}")]
    Unsupported {
        /// The line.
        line: usize,
        /// What it is.
        what: String,
        /// What to do instead.
        mend: &'static str,
    },
    /// Nodes that form no tree.
    #[error("line {line}: tree {tree} is broken")]
    Tree {
        /// Where the tree begins.
        line: usize,
        /// Its number.
        tree: usize,
        /// What is wrong.
        source: TreeError,
    },
    /// The file ends too early.
    #[error("line {line}: the file ends before `end of trees`: it is truncated")]
    Truncated {
        /// The last line.
        line: usize,
    },
}

/// What a model file says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelText {
    /// How many features a row has.
    pub num_features: usize,
    /// Steepness of the sigmoid that turns a score into a probability.
    pub sigmoid: f64,
    /// The trees; a row's score is the sum over them.
    pub trees: Vec<Tree>,
}

impl FromStr for ModelText {
    type Err = TreesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = Lines::new(text);
        let first = lines.next().map_or("", |(_, line)| line);
        if first != "tree" {
            return Err(TreesError::NotAModel {
                found: shorten(first),
            });
        }
        let header = Block::read(&mut lines, 1)?;
        let num_features = header.number::<usize>("max_feature_idx")?;
        let mut model = Self {
            num_features: num_features.saturating_add(1),
            sigmoid: header.binary_objective()?,
            trees: Vec::new(),
        };
        header.must_be_one("num_class")?;
        header.must_be_one("num_tree_per_iteration")?;
        if let Some((line, _)) = header.values.get("average_output") {
            return Err(TreesError::Unsupported {
                line: *line,
                what: "averaged output".to_owned(),
                mend: "boosting = gbdt",
            });
        }
        loop {
            match lines.next() {
                None => {
                    return Err(TreesError::Truncated { line: lines.number });
                }
                Some((_, "")) => {}
                Some((_, "end of trees")) => return Ok(model),
                Some((line, text)) => {
                    if text.strip_prefix("Tree=") != Some(&model.trees.len().to_string()) {
                        return Err(TreesError::Value {
                            line,
                            key: "Tree".to_owned(),
                            found: shorten(text),
                            wanted: "the next tree or `end of trees`",
                        });
                    }
                    let block = Block::read(&mut lines, line)?;
                    let tree = block.tree(model.num_features, model.trees.len())?;
                    model.trees.push(tree);
                }
            }
        }
    }
}

/// Lines with their numbers, from 1; one can be put back.
struct Lines<'a> {
    lines: std::iter::Peekable<std::str::Lines<'a>>,
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            lines: text.lines().peekable(),
            number: 0,
        }
    }

    fn next(&mut self) -> Option<(usize, &'a str)> {
        let line = self.lines.next()?;
        self.number += 1;
        Some((self.number, line.trim_end()))
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.lines.peek().map(|line| line.trim_end())
    }
}

/// The `key=value` lines up to an empty line, or to the next tree or the end.
struct Block<'a> {
    first_line: usize,
    values: BTreeMap<&'a str, (usize, &'a str)>,
}

impl<'a> Block<'a> {
    fn read(lines: &mut Lines<'a>, first_line: usize) -> Result<Self, TreesError> {
        let mut values = BTreeMap::new();
        while let Some(text) = lines.peek() {
            if text.is_empty() || text.starts_with("Tree=") || text == "end of trees" {
                break;
            }
            lines.next();
            let line = lines.number;
            // `average_output` stands alone.
            let (key, value) = match text.split_once('=') {
                Some(pair) => pair,
                None if text == "average_output" => (text, ""),
                None => {
                    return Err(TreesError::Line {
                        line,
                        found: shorten(text),
                    });
                }
            };
            if values.insert(key, (line, value)).is_some() {
                return Err(TreesError::Line {
                    line,
                    found: shorten(text),
                });
            }
        }
        Ok(Self { first_line, values })
    }

    fn get(&self, key: &'static str) -> Result<(usize, &'a str), TreesError> {
        let found = self.values.get(key).copied();
        found.ok_or(TreesError::MissingKey {
            line: self.first_line,
            key,
        })
    }

    fn line_of(&self, key: &str) -> usize {
        self.values
            .get(key)
            .map_or(self.first_line, |found| found.0)
    }

    fn number<T: FromStr>(&self, key: &'static str) -> Result<T, TreesError> {
        let (line, text) = self.get(key)?;
        text.trim().parse().map_err(|_| TreesError::Value {
            line,
            key: key.to_owned(),
            found: shorten(text),
            wanted: "a number",
        })
    }

    fn must_be_one(&self, key: &'static str) -> Result<(), TreesError> {
        match self.number::<usize>(key)? {
            1 => Ok(()),
            found => Err(TreesError::Unsupported {
                line: self.line_of(key),
                what: format!("{key}={found}"),
                mend: "objective = binary",
            }),
        }
    }

    fn list<T: FromStr>(&self, key: &'static str, wanted: usize) -> Result<Vec<T>, TreesError> {
        let (line, text) = self.get(key)?;
        let parse = |word: &str| {
            word.parse().map_err(|_| TreesError::Value {
                line,
                key: key.to_owned(),
                found: shorten(word),
                wanted: "numbers",
            })
        };
        let values: Vec<T> = text
            .split_whitespace()
            .map(parse)
            .collect::<Result<_, _>>()?;
        if values.len() != wanted {
            return Err(TreesError::Length {
                line,
                key,
                found: values.len(),
                wanted,
            });
        }
        Ok(values)
    }

    /// Steepness of the sigmoid of a binary objective.
    fn binary_objective(&self) -> Result<f64, TreesError> {
        let (line, text) = self.get("objective")?;
        let mut words = text.split_whitespace();
        match words.next() {
            Some("binary") => {}
            // Of labels between 0 and 1, with a sigmoid as it is.
            Some("cross_entropy") => return Ok(1.0),
            _ => {
                return Err(TreesError::Unsupported {
                    line,
                    what: format!("objective `{}`", shorten(text)),
                    mend: "objective = binary or cross_entropy",
                });
            }
        }
        let sigmoid = words.find_map(|word| word.strip_prefix("sigmoid:"));
        match sigmoid.map_or(Ok(1.0), f64::from_str) {
            Ok(sigmoid) if sigmoid.is_finite() && sigmoid > 0.0 => Ok(sigmoid),
            _ => Err(TreesError::Value {
                line,
                key: "objective".to_owned(),
                found: shorten(text),
                wanted: "`binary sigmoid:` and a number above 0",
            }),
        }
    }

    fn tree(&self, num_features: usize, number: usize) -> Result<Tree, TreesError> {
        for (key, what, mend) in [
            (
                "num_cat",
                "a categorical split",
                "categorical features as numbers",
            ),
            ("is_linear", "a linear tree", "linear_tree = false"),
        ] {
            if let Some((line, found)) = self.values.get(key)
                && found.trim() != "0"
            {
                return Err(TreesError::Unsupported {
                    line: *line,
                    what: what.to_owned(),
                    mend,
                });
            }
        }
        let num_leaves = self.number::<usize>("num_leaves")?;
        let leaf_values: Vec<f64> = self.list("leaf_value", num_leaves)?;
        self.check_all(
            "leaf_value",
            leaf_values.iter().all(|value| value.is_finite()),
            "finite numbers",
        )?;
        let nodes = if num_leaves > 1 {
            self.nodes(num_features, num_leaves - 1)?
        } else {
            Vec::new()
        };
        Tree::new(nodes, leaf_values).map_err(|source| TreesError::Tree {
            line: self.first_line,
            tree: number,
            source,
        })
    }

    fn nodes(&self, num_features: usize, count: usize) -> Result<Vec<Node>, TreesError> {
        let features: Vec<usize> = self.list("split_feature", count)?;
        let thresholds: Vec<f64> = self.list("threshold", count)?;
        let decisions: Vec<u8> = self.list("decision_type", count)?;
        let left: Vec<i64> = self.list("left_child", count)?;
        let right: Vec<i64> = self.list("right_child", count)?;
        self.check_all(
            "split_feature",
            features.iter().all(|feature| *feature < num_features),
            "features up to max_feature_idx",
        )?;
        self.check_all(
            "threshold",
            thresholds.iter().all(|threshold| !threshold.is_nan()),
            "numbers",
        )?;
        let node = |at: usize| {
            Ok(Node {
                feature: features[at],
                threshold: thresholds[at],
                missing: self.missing(decisions[at])?,
                default_left: decisions[at] & 2 != 0,
                left: child(left[at]),
                right: child(right[at]),
            })
        };
        (0..count).map(node).collect()
    }

    /// Bits of a decision type: 1 categorical, 2 missing goes left, 4 and 8 what is missing.
    fn missing(&self, decision: u8) -> Result<Missing, TreesError> {
        let line = self.line_of("decision_type");
        if decision & 1 != 0 {
            return Err(TreesError::Unsupported {
                line,
                what: "a categorical split".to_owned(),
                mend: "categorical features as numbers",
            });
        }
        match decision >> 2 {
            0 => Ok(Missing::Never),
            1 => Ok(Missing::Zero),
            2 => Ok(Missing::Nan),
            _ => Err(TreesError::Value {
                line,
                key: "decision_type".to_owned(),
                found: decision.to_string(),
                wanted: "0 to 10",
            }),
        }
    }

    fn check_all(
        &self,
        key: &'static str,
        holds: bool,
        wanted: &'static str,
    ) -> Result<(), TreesError> {
        let (line, text) = self.get(key)?;
        if holds {
            return Ok(());
        }
        Err(TreesError::Value {
            line,
            key: key.to_owned(),
            found: shorten(text),
            wanted,
        })
    }
}

/// LightGBM numbers leaves from -1 downwards.
fn child(number: i64) -> Child {
    match usize::try_from(number) {
        Ok(node) => Child::Node(node),
        Err(_) => Child::Leaf(usize::try_from(!number).unwrap_or(usize::MAX)),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: &str = include_str!("testdata/small.txt");

    fn error(from: &str, to: &str) -> TreesError {
        assert!(SMALL.contains(from), "{from}");
        SMALL
            .replacen(from, to, 1)
            .parse::<ModelText>()
            .unwrap_err()
    }

    #[test]
    fn a_model_file_is_read() {
        let model: ModelText = SMALL.parse().unwrap();
        assert_eq!(model.num_features, 3);
        assert_eq!(model.sigmoid, 1.0);
        assert_eq!(model.trees.len(), 2);
        assert_eq!(model.trees[0].nodes()[1].missing, Missing::Nan);
        assert_eq!(model.trees[0].value(&[0.2, f32::NAN, 0.0]), -0.25);
        assert_eq!(model.trees[1].value(&[0.2, 0.0, 0.0]), 0.125);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |from: &str, to: &str, expected: &str| {
            let text = error(from, to).to_string();
            assert!(text.contains(expected), "{text} / {expected}");
        };
        check("tree\n", "xml\n", "not a LightGBM model");
        check(
            "threshold=0.5 0.25",
            "threshold=0.5",
            "line 18: `threshold` holds 1 values, wanted 2",
        );
        check(
            "threshold=0.5 0.25",
            "threshold=0.5 x",
            "line 18: `threshold` holds `x`, wanted numbers",
        );
        check("split_feature=0 1", "split_feature=0 9", "line 16");
        check("left_child=1 -1", "left_child=0 -1", "tree 0 is broken");
        check("left_child=1 -1", "left_child=77 -1", "tree 0 is broken");
        check("leaf_value=-0.25", "leaf_value=nan", "finite");
        check("num_cat=0", "num_cat=1", "a categorical split");
        check(
            "decision_type=2 10",
            "decision_type=3 10",
            "a categorical split",
        );
        check("is_linear=0", "is_linear=1", "a linear tree");
        check(
            "objective=binary",
            "objective=regression",
            "objective = binary or cross_entropy",
        );
        check("num_class=1", "num_class=3", "num_class=3");
        check("Tree=1", "Tree=2", "the next tree");
        check(
            "num_leaves=3",
            "num_leaves=99999999999999999999",
            "a number",
        );
        check("end of trees", "", "the next tree or `end of trees`");
        check("objective", "average_output\nobjective", "averaged output");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = text.parse::<ModelText>();
        }

        #[test]
        fn a_damaged_file_is_refused_or_still_a_forest(
            at in 0..SMALL.len(),
            length in 0..40usize,
            with in "[-0-9a-z=. \n]{0,8}",
        ) {
            let end = (at + length).min(SMALL.len());
            let text = format!("{}{with}{}", &SMALL[..at], &SMALL[end..]);
            if let Ok(model) = text.parse::<ModelText>() {
                // A made-up number of features must not be taken for memory.
                let row = vec![0.5; model.num_features.min(1 << 20)];
                let fits = |tree: &&Tree| tree.nodes().iter().all(|node| node.feature < row.len());
                for tree in model.trees.iter().filter(fits) {
                    prop_assert!(tree.value(&row).is_finite());
                }
            }
        }

        #[test]
        fn a_truncated_file_is_refused(end in 0..SMALL.find("end of trees").unwrap()) {
            prop_assert!(SMALL[..end].parse::<ModelText>().is_err());
        }
    }
}
