//! Where the engines' languages differ.
//!
//! Numbers that decide a feature are doubles and signed integers of 64 bits everywhere. What an
//! engine lacks is a function of ours with the name `marquee_…`: in Rust for DataFusion
//! (`super::functions`), in Java for Flink (`engines/java`). Spark has all it needs.

use serde::{Deserialize, Serialize};

/// An engine that computes features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Apache DataFusion, which is built in
    #[value(name = "datafusion")]
    DataFusion,
    /// Apache Spark SQL, 4.0 or newer.
    Spark,
    /// Apache Flink SQL, 2.0 or newer, in batch mode.
    Flink,
}

impl Engine {
    /// A double, as no engine takes for a decimal.
    pub fn double(self, value: f64) -> String {
        match value < 0.0 {
            true => format!("({value:E})"),
            false => format!("{value:E}"),
        }
    }

    /// A quotient of integers, cut.
    pub fn cut_quotient(self, left: &str, right: i64) -> String {
        match self {
            Self::Spark => format!("{left} DIV {right}"),
            Self::DataFusion | Self::Flink => format!("{left} / {right}"),
        }
    }

    /// `ln(1 + x)`, exact for small numbers too.
    pub fn log1p(self, x: &str) -> String {
        match self {
            Self::Spark => format!("LOG1P({x})"),
            Self::DataFusion | Self::Flink => format!("marquee_log1p({x})"),
        }
    }

    /// The scalar product of two vectors of one length.
    pub fn dot(self, left: &str, right: &str) -> String {
        match self {
            Self::Spark => format!(
                "AGGREGATE(ZIP_WITH({left}, {right}, (x, y) -> x * y), CAST(0 AS DOUBLE), (sum, x) -> sum + x)"
            ),
            Self::DataFusion | Self::Flink => format!("marquee_dot({left}, {right})"),
        }
    }

    /// How many elements a vector has.
    pub fn length(self, vector: &str) -> String {
        match self {
            Self::Spark => format!("SIZE({vector})"),
            Self::DataFusion => format!("ARRAY_LENGTH({vector})"),
            Self::Flink => format!("CARDINALITY({vector})"),
        }
    }

    /// An element by its index from 0, or null where there is none.
    pub fn element(self, vector: &str, index: &str) -> String {
        match self {
            Self::Spark => format!("GET({vector}, {index})"),
            Self::DataFusion | Self::Flink => format!("{vector}[{index} + 1]"),
        }
    }

    /// An array of some elements.
    pub fn array(self, elements: &[String]) -> String {
        let elements = elements.join(", ");
        match self {
            Self::Spark => format!("ARRAY({elements})"),
            Self::DataFusion => format!("MAKE_ARRAY({elements})"),
            Self::Flink => format!("ARRAY[{elements}]"),
        }
    }

    /// No array.
    pub fn no_array(self) -> &'static str {
        match self {
            Self::Spark | Self::Flink => "CAST(NULL AS ARRAY<BIGINT>)",
            Self::DataFusion => "NULL",
        }
    }

    /// XXH64 over links in turn: the hash of one is the seed of the next, that of the first is 42.
    pub fn hash(self, links: &[Link]) -> String {
        match self {
            Self::Spark => spark_hash(links, &mut Vec::new()),
            Self::DataFusion | Self::Flink => {
                links
                    .iter()
                    .fold(features::hash::SEED.to_string(), |seed, link| {
                        let seed = format!("CAST({seed} AS BIGINT)");
                        match link {
                            Link::Text(text) => {
                                format!("marquee_hash_text({seed}, COALESCE({text}, ''))")
                            }
                            Link::Integer(number) => {
                                format!("marquee_hash_integer({seed}, {number})")
                            }
                        }
                    })
            }
        }
    }
}

/// A value that goes into a hash. What is missing is an empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A text, or null.
    Text(String),
    /// A BIGINT, or null.
    Integer(String),
}

/// Spark's function has the same chain for its arguments, but passes over nulls.
fn spark_hash(links: &[Link], before: &mut Vec<String>) -> String {
    match links {
        [] => format!("XXHASH64({})", before.join(", ")),
        [Link::Text(text), rest @ ..] => {
            before.push(format!("COALESCE({text}, '')"));
            spark_hash(rest, before)
        }
        [Link::Integer(number), rest @ ..] => {
            let mut without = before.clone();
            without.push("''".to_owned());
            before.push(number.clone());
            let (without, with) = (spark_hash(rest, &mut without), spark_hash(rest, before));
            format!("CASE WHEN {number} IS NULL THEN {without} ELSE {with} END")
        }
    }
}
