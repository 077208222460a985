//! The values that are tried.

use std::fmt;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Strategy, SweepConfig};

/// What a key may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// One of these.
    Choice(Vec<toml::Value>),
    /// A number between two, any as likely.
    Uniform([f64; 2]),
    /// A number between two, any order of magnitude as likely.
    LogUniform([f64; 2]),
    /// A whole number between two, both included.
    Integer([i64; 2]),
}

/// Why a sweep cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpaceError {
    /// Nothing to try.
    #[error("`parameters` is empty: name keys of the base configuration and their values")]
    NoParameters,
    /// A range without values.
    #[error("parameters.\"{key}\" is {found}, wanted {wanted}")]
    Range {
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// A grid of ranges.
    #[error(
        "parameters.\"{key}\" is a range, of which a grid cannot try all: give a `choice`, or strategy.kind = \"random\""
    )]
    Endless {
        /// The key.
        key: String,
    },
    /// No run at a time, or none of its threads.
    #[error("`{key}` is 0, wanted at least 1")]
    NoBudget {
        /// The key.
        key: &'static str,
    },
    /// A number that cannot be.
    #[error("strategy.{key} is {found}, wanted {wanted}")]
    Number {
        /// The key.
        key: &'static str,
        /// What it is.
        found: u64,
        /// What it may be.
        wanted: String,
    },
}

/// Values by key, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment(pub Vec<(String, toml::Value)>);

impl Assignment {
    /// With one value more.
    pub fn with(&self, more: Option<&(String, u64)>) -> Self {
        let more = more.map(|(key, value)| (key.clone(), toml::Value::Integer(*value as i64)));
        Self(self.0.iter().cloned().chain(more).collect())
    }

    /// As `--set` takes them.
    pub fn overrides(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(key, value)| format!("{key}={value}"))
    }
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.overrides().collect();
        f.write_str(&parts.join(" "))
    }
}

/// Rounds of a sweep: one, but for successive halving.
#[derive(Debug)]
pub struct Rounds {
    /// What the first round tries.
    pub first: Vec<Assignment>,
    /// What each round gets, if it gets anything of its own.
    pub resources: Vec<Option<(String, u64)>>,
    /// One part in so many goes on to the next round.
    factor: usize,
}

impl Rounds {
    /// How many go on.
    pub fn kept(&self, tried: usize) -> usize {
        tried.div_ceil(self.factor)
    }
}

/// All that a sweep tries.
pub fn rounds(config: &SweepConfig) -> Result<Rounds, SpaceError> {
    check(config)?;
    let (first, resources, factor) = match &config.strategy {
        Strategy::Grid {} => (grid(config)?, vec![None], 1),
        Strategy::Random { trials } => (drawn(config, *trials), vec![None], 1),
        Strategy::SuccessiveHalving {
            trials,
            resource,
            least,
            most,
            factor,
        } => {
            let mut resources = Vec::new();
            let mut next = *least;
            while next < *most {
                resources.push(Some((resource.clone(), next)));
                next = next.saturating_mul(*factor);
            }
            resources.push(Some((resource.clone(), *most)));
            (drawn(config, *trials), resources, *factor as usize)
        }
    };
    Ok(Rounds {
        first,
        resources,
        factor,
    })
}

fn check(config: &SweepConfig) -> Result<(), SpaceError> {
    if config.parameters.is_empty() {
        return Err(SpaceError::NoParameters);
    }
    for (key, value) in [("parallel", config.parallel), ("threads", config.threads)] {
        if value == 0 {
            return Err(SpaceError::NoBudget { key });
        }
    }
    for (key, range) in &config.parameters {
        let wrong = |wanted| SpaceError::Range {
            key: key.clone(),
            found: toml::Value::try_from(range).map_or(String::new(), |value| value.to_string()),
            wanted,
        };
        match range {
            Range::Choice(values) if values.is_empty() => return Err(wrong("at least one value")),
            Range::Uniform([low, high]) if !rises(*low, *high) => {
                return Err(wrong("two that rise"));
            }
            Range::LogUniform([low, high]) if !(rises(0.0, *low) && rises(*low, *high)) => {
                return Err(wrong("two above 0 that rise"));
            }
            Range::Integer([low, high]) if low >= high => return Err(wrong("two that rise")),
            _ => {}
        }
    }
    let number = |key, found: u64, fits: bool, wanted: &str| match fits {
        true => Ok(()),
        false => Err(SpaceError::Number {
            key,
            found,
            wanted: wanted.to_owned(),
        }),
    };
    match &config.strategy {
        Strategy::Grid {} => Ok(()),
        Strategy::Random { trials } => number("trials", *trials as u64, *trials > 0, "at least 1"),
        Strategy::SuccessiveHalving {
            trials,
            least,
            most,
            factor,
            ..
        } => {
            number("trials", *trials as u64, *trials > 0, "at least 1")?;
            number("least", *least, *least > 0, "at least 1")?;
            number("most", *most, most >= least, "at least strategy.least")?;
            number("factor", *factor, *factor > 1, "at least 2")
        }
    }
}

/// No number rises to none.
fn rises(low: f64, high: f64) -> bool {
    low < high
}

/// Every combination, the last key changing fastest.
fn grid(config: &SweepConfig) -> Result<Vec<Assignment>, SpaceError> {
    let mut all = vec![Assignment(Vec::new())];
    for (key, range) in &config.parameters {
        let Range::Choice(values) = range else {
            return Err(SpaceError::Endless { key: key.clone() });
        };
        let longer = all.iter().flat_map(|assignment| {
            values.iter().map(|value| {
                let mut next = assignment.clone();
                next.0.push((key.clone(), value.clone()));
                next
            })
        });
        all = longer.collect();
    }
    Ok(all)
}

fn drawn(config: &SweepConfig, trials: usize) -> Vec<Assignment> {
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    let mut one = |(key, range): (&String, &Range)| {
        let value = match range {
            Range::Choice(values) => values[random.random_range(0..values.len())].clone(),
            Range::Uniform([low, high]) => short(random.random_range(*low..*high)).into(),
            Range::LogUniform([low, high]) => {
                short(random.random_range(low.ln()..high.ln()).exp()).into()
            }
            Range::Integer([low, high]) => random.random_range(*low..=*high).into(),
        };
        (key.clone(), value)
    };
    let trial = |_| Assignment(config.parameters.iter().map(&mut one).collect());
    (0..trials).map(trial).collect()
}

/// With four significant digits: more decide nothing, and are hard to read.
fn short(value: f64) -> f64 {
    let text = format!("{value:.3e}");
    // A number was written just before.
    text.parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SweepConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_grid_tries_every_combination() {
        let config = config(
            "strategy.kind = \"grid\"\n[parameters]\n\"b\" = { choice = [1, 2] }\n\"a.c\" = { choice = [\"x\", [3, 4]] }",
        );
        let rounds = rounds(&config).unwrap();
        let told: Vec<String> = rounds.first.iter().map(ToString::to_string).collect();
        let wanted = [
            "a.c=\"x\" b=1",
            "a.c=\"x\" b=2",
            "a.c=[3, 4] b=1",
            "a.c=[3, 4] b=2",
        ];
        assert_eq!(told, wanted);
        assert_eq!(rounds.resources, [None]);
    }

    #[test]
    fn drawn_values_are_within_their_ranges_and_fixed_by_the_seed() {
        let text = "seed = 3\nstrategy = { kind = \"random\", trials = 200 }\n[parameters]\na = { uniform = [-1.0, 2.0] }\nb = { log_uniform = [1e-4, 1e-1] }\nc = { integer = [3, 5] }\nd = { choice = [true] }";
        let config = config(text);
        let first = rounds(&config).unwrap().first;
        assert_eq!(rounds(&config).unwrap().first, first);
        let column = |at: usize| first.iter().map(move |assignment| &assignment.0[at].1);
        assert!(column(0).all(|value| (-1.0..=2.0).contains(&value.as_float().unwrap())));
        let small = column(1)
            .filter(|value| value.as_float().unwrap() < 1e-3)
            .count();
        assert!(
            (40..95).contains(&small),
            "a third of the orders of magnitude: {small}"
        );
        assert!((3..=5).all(|wanted| column(2).any(|value| value.as_integer() == Some(wanted))));
        assert!(column(3).all(|value| value.as_bool() == Some(true)));
    }

    #[test]
    fn halving_gives_more_to_fewer() {
        let text = "[strategy]\nkind = \"successive_halving\"\ntrials = 9\nresource = \"training.epochs\"\nleast = 1\nmost = 8\nfactor = 3\n[parameters]\na = { uniform = [0, 1] }";
        let rounds = rounds(&config(text)).unwrap();
        let epochs = |value| Some(("training.epochs".to_owned(), value));
        assert_eq!(rounds.resources, [epochs(1), epochs(3), epochs(8)]);
        assert_eq!([9, 3, 1].map(|tried| rounds.kept(tried)), [3, 1, 1]);
        let last = rounds.first[0].with(rounds.resources[2].as_ref());
        assert!(last.to_string().ends_with(" training.epochs=8"), "{last}");
    }

    #[test]
    fn what_cannot_be_is_named_by_its_key() {
        let refused = |text: &str, what: &str| {
            let error = rounds(&config(text)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused("", "`parameters` is empty");
        refused("[parameters]\na = { choice = [] }", "parameters.\"a\"");
        refused("[parameters]\na = { uniform = [1, 1] }", "two that rise");
        refused("[parameters]\na = { log_uniform = [0, 1] }", "above 0");
        refused(
            "[parameters]\na = { integer = [0, 1] }",
            "a range, of which a grid",
        );
        let random =
            "strategy = { kind = \"random\", trials = 0 }\n[parameters]\na = { integer = [0, 1] }";
        refused(random, "strategy.trials is 0");
        let halving = "strategy = { kind = \"successive_halving\", trials = 1, resource = \"r\", least = 2, most = 1, factor = 2 }\n[parameters]\na = { integer = [0, 1] }";
        refused(halving, "strategy.most is 1");
    }
}
