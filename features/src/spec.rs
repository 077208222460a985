//! The feature spec: what each feature is, in one TOML file.
//!
//! Every error says file, line, feature and the mend.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::Spanned;

use crate::{
    aggregates::{MAX_RECENT, SourceEvent},
    expression::{Expression, ExpressionError, ResultType, parse},
    facts::{AD_FACTS, FactType, REQUEST_FACTS},
    skew::SkewLimits,
};

/// Why a feature spec was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("reading feature spec {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, or a key that no feature has.
    #[error("in feature spec {file}, line {line}")]
    Parse {
        /// The file.
        file: String,
        /// Line from 1.
        line: usize,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// A feature that does not make sense.
    #[error("in feature spec {file}, line {line}, feature `{feature}`, key `{}`: {problem}", problem.key())]
    Feature {
        /// The file.
        file: String,
        /// Line of the key, from 1; of the feature if the key is missing.
        line: usize,
        /// The feature.
        feature: String,
        /// What is wrong and how to mend it.
        problem: Problem,
    },
}

/// What is wrong with a feature.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Two features share a name.
    #[error("another feature has this name already; rename one")]
    Duplicate,
    /// A name that would not make a column.
    #[error("a name has lower-case letters, digits and `_` only")]
    Name,
    /// Neither or both of `expression` and `aggregation`.
    #[error("give either `expression` or `aggregation`")]
    Source,
    /// A key that the aggregation needs.
    #[error("an aggregation `{aggregation}` needs `{key}`")]
    Missing {
        /// The aggregation.
        aggregation: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A window that is not a number of hours.
    #[error(
        "window `{text}` is not a whole number of hours or days between 1h and 90d, such as `24h` or `7d`"
    )]
    Window {
        /// The text.
        text: String,
    },
    /// More values than an entity remembers, or none.
    #[error("`last` is {last}, wanted 1 to {MAX_RECENT}")]
    Last {
        /// How many.
        last: usize,
    },
    /// A key fact that is not a text.
    #[error("fact `{name}` must be a text; known texts: {known}")]
    Key {
        /// `key` or `value`.
        key: &'static str,
        /// The fact.
        name: String,
        /// What there is.
        known: String,
    },
    /// An expression that does not parse or does not type.
    #[error("expression `{text}`: {source}")]
    Expression {
        /// The expression.
        text: String,
        /// Why.
        source: ExpressionError,
    },
    /// An expression of a type that the feature's kind cannot take.
    #[error("a {kind} feature cannot come from {found}")]
    Kind {
        /// `dense` or `sparse`.
        kind: &'static str,
        /// What the expression gives.
        found: &'static str,
    },
    /// A feature for children that names the person.
    #[error(
        "a feature made of `user_id` is nothing for children: say `child_safe = false`, or leave the person out"
    )]
    ChildSafe,
    /// A limit that nothing, or everything, exceeds.
    #[error("limit `{name}` is {found}, wanted a number from 0")]
    Limit {
        /// The limit.
        name: &'static str,
        /// Its value.
        found: f64,
    },
    /// No time to live, or one of a value that is never stored.
    #[error(
        "time to live `{text}` is not {}", if *stored { "a whole number of seconds, minutes, hours or days between 1s and 90d, such as `15m` or `2h`" } else { "needed: a value that is computed with the request is not stored" }
    )]
    Ttl {
        /// The text.
        text: String,
        /// Whether the feature is stored.
        stored: bool,
    },
    /// A scale without ends.
    #[error("a transform `min_max` needs `range`, whose ends become 0 and 1")]
    MinMax,
    /// A range that is empty, or a default outside it.
    #[error(
        "range [{low}, {high}] must rise and {} {default}", if *scaled { "the default be 0 to 1, as its values are with `min_max`, not" } else { "hold the default" }
    )]
    Range {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
        /// The default.
        default: f64,
        /// Whether its ends become 0 and 1.
        scaled: bool,
    },
}

/// A spec has no feature of a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the spec has no feature `{name}`")]
pub struct UnknownFeature {
    /// The name.
    pub name: String,
}

/// What kind of value a feature gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One number.
    Dense,
    /// Ids for an embedding table.
    Sparse,
}

/// What a feature describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entity {
    /// The person.
    User,
    /// The creative or its campaign.
    Ad,
    /// Place and time of the request.
    Context,
    /// Two of the others together.
    Cross,
    /// The pictures.
    Visual,
}

/// How events become a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Number of events.
    Count,
    /// Sum of their values.
    Sum,
    /// Mean of their values.
    Mean,
    /// Events of `source` per event of `over`, smoothed by `prior`.
    Rate,
    /// Ids of the `last` most recent values of fact `value`.
    Last,
    /// Number of distinct values of fact `value`, at most [`MAX_RECENT`].
    Distinct,
}

/// Which path keeps a feature up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// Once a day.
    Batch,
    /// As events arrive.
    Nearline,
    /// From the request itself.
    Request,
}

/// Where a feature's state is kept online.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In memory.
    #[default]
    Hot,
    /// On disk.
    Warm,
}

/// A function applied to a dense value at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// None.
    #[default]
    Identity,
    /// `ln(1 + x)`, for counts.
    Log1p,
    /// `(x − low) / (high − low)` of the feature's range: 0 to 1.
    #[serde(rename = "min_max")]
    MinMax,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecFile {
    #[serde(default)]
    facts: BTreeMap<String, FactType>,
    feature: Vec<Spanned<Feature>>,
}

/// One feature as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Unique; also the column's name.
    pub name: String,
    /// Number or ids.
    pub kind: Kind,
    /// What it describes.
    pub entity: Entity,
    /// How it is computed from facts.
    pub expression: Option<String>,
    /// How it is computed from events.
    pub aggregation: Option<Aggregation>,
    /// The events that count.
    pub source: Option<SourceEvent>,
    /// The events that a rate is taken over.
    pub over: Option<SourceEvent>,
    /// Added to numerator and denominator of a rate, so that few events say little.
    #[serde(default)]
    pub prior: [f64; 2],
    /// `24h`, `7d` …
    pub window: Option<String>,
    /// Facts that name the entity.
    #[serde(default)]
    pub key: Vec<String>,
    /// The fact that `last` and `distinct` remember.
    pub value: Option<String>,
    /// How many values `last` gives.
    #[serde(default = "default_last")]
    pub last: usize,
    /// Applied at the end.
    #[serde(default)]
    pub transform: Transform,
    /// Stands in for a missing value, in its last form.
    #[serde(default)]
    pub default: f64,
    /// Values outside are clamped and counted: transformed ones, and with [`Transform::MinMax`] those
    /// that it is given.
    pub range: Option<[f64; 2]>,
    /// Which path keeps it up to date.
    pub freshness: Freshness,
    /// How long what the online store says is good, `90s`, `15m`, `2h` or `1d`: once what arrived last
    /// is older, the feature takes its default.
    pub ttl: Option<String>,
    /// Where its state is kept online; features that share an entity are kept where the fastest is.
    #[serde(default)]
    pub tier: Tier,
    /// Whether it may be used for children and users of unknown age.
    pub child_safe: bool,
    /// Who answers for it.
    pub owner: String,
    /// Rises when the meaning changes.
    pub version: u32,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// How far what was served may be from what is computed again, and today's values from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew: Option<SkewLimits>,
}

fn default_last() -> usize {
    5
}

/// A checked spec. As JSON it stands in tables, so that what their columns mean is known without the
/// file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    /// Types of the facts beyond the standard ones.
    pub facts: BTreeMap<String, FactType>,
    /// Features in the order of the file: the order of columns.
    pub features: Vec<Feature>,
    digest: String,
}

impl FeatureSpec {
    /// Reads and checks a spec file.
    ///
    /// # Errors
    /// [`SpecError`] with file, line, feature and the mend.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let read = fs::read_to_string(path);
        let text = read.map_err(|source| SpecError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Checks a spec; `file` is for messages.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, SpecError> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let parsed: SpecFile = toml::from_str(text).map_err(|error| SpecError::Parse {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| line(span.start)),
            source: Box::new(error),
        })?;
        let mut features: Vec<Feature> = Vec::with_capacity(parsed.feature.len());
        let mut spec = Self {
            facts: parsed.facts,
            features: Vec::new(),
            digest: String::new(),
        };
        for spanned in parsed.feature {
            let start = spanned.span().start;
            let feature = spanned.into_inner();
            let duplicate = features.iter().any(|known| known.name == feature.name);
            let checked = if duplicate {
                Err(Problem::Duplicate)
            } else {
                spec.check(&feature)
            };
            if let Err(problem) = checked {
                let at = place_of_key(text, start, problem.key());
                return Err(SpecError::Feature {
                    file: file.to_owned(),
                    line: line(at),
                    feature: feature.name,
                    problem,
                });
            }
            features.push(feature);
        }
        spec.features = features;
        spec.digest = spec.compute_digest();
        Ok(spec)
    }

    /// Digest of what the spec means: comments, descriptions, owners, limits and how a feature is kept
    /// do not change it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Some of its features alone, in their order here. Its digest is that of what these mean.
    ///
    /// # Errors
    /// A name that no feature has.
    pub fn only(&self, names: &[String]) -> Result<Self, UnknownFeature> {
        let unknown = |name: &&String| self.features.iter().all(|known| known.name != **name);
        if let Some(name) = names.iter().find(unknown) {
            return Err(UnknownFeature { name: name.clone() });
        }
        let features = self.features.iter();
        let features: Vec<Feature> = features
            .filter(|feature| names.contains(&feature.name))
            .cloned()
            .collect();
        let named: Vec<String> = features.iter().flat_map(Feature::facts).collect();
        let facts = self.facts.iter().filter(|(name, _)| named.contains(name));
        let mut spec = Self {
            facts: facts.map(|(name, kind)| (name.clone(), *kind)).collect(),
            features,
            digest: String::new(),
        };
        spec.digest = spec.compute_digest();
        Ok(spec)
    }

    /// The type of a fact, or `None` if there is none of this name.
    pub fn fact_type(&self, name: &str) -> Option<FactType> {
        let standard = REQUEST_FACTS
            .iter()
            .chain(&AD_FACTS)
            .find(|(known, _)| *known == name);
        standard
            .map(|(_, fact)| *fact)
            .or_else(|| self.facts.get(name).copied())
    }

    fn compute_digest(&self) -> String {
        let mut hash = Sha256::new();
        for feature in &self.features {
            let meaning = Feature {
                owner: String::new(),
                description: String::new(),
                freshness: Freshness::Request,
                ttl: None,
                tier: Tier::Hot,
                skew: None,
                ..feature.clone()
            };
            // A struct of plain fields always serialises.
            hash.update(serde_json::to_vec(&meaning).expect("a feature is plain data"));
        }
        for (name, fact) in &self.facts {
            hash.update(format!("{name}={fact:?}\n"));
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn check(&self, feature: &Feature) -> Result<(), Problem> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if feature.name.is_empty() || !feature.name.chars().all(valid) {
            return Err(Problem::Name);
        }
        match (&feature.expression, feature.aggregation) {
            (Some(text), None) => self.check_expression(feature, text)?,
            (None, Some(aggregation)) => self.check_aggregation(feature, aggregation)?,
            _ => return Err(Problem::Source),
        }
        // How many people there are names none of them.
        let counted = feature.aggregation == Some(Aggregation::Distinct);
        let named = match counted {
            true => feature.key.clone(),
            false => feature.facts(),
        };
        if feature.child_safe && named.iter().any(|fact| fact == "user_id") {
            return Err(Problem::ChildSafe);
        }
        feature.ttl_us()?;
        let limits = feature.skew_limits();
        let named = [
            ("psi", limits.psi),
            ("kl", limits.kl),
            ("missing", limits.missing),
            ("differing", limits.differing.unwrap_or(0.0)),
        ];
        if let Some((name, found)) = named
            .into_iter()
            .find(|(_, limit)| !(0.0..).contains(limit))
        {
            return Err(Problem::Limit { name, found });
        }
        if let Some([low, high]) = feature.range {
            let [least, most] = feature.allowed();
            let scaled = feature.transform == Transform::MinMax;
            let rises = low < high && (!scaled || (high - low).is_finite());
            if !(rises && (least..=most).contains(&feature.default)) {
                return Err(Problem::Range {
                    low,
                    high,
                    default: feature.default,
                    scaled,
                });
            }
        } else if feature.transform == Transform::MinMax {
            return Err(Problem::MinMax);
        }
        Ok(())
    }

    fn check_expression(&self, feature: &Feature, text: &str) -> Result<(), Problem> {
        let failed = |source| Problem::Expression {
            text: text.to_owned(),
            source,
        };
        let result =
            parse(text).and_then(|expression| expression.check(&|name| self.fact_type(name)));
        let found = match (feature.kind, result.map_err(failed)?) {
            (Kind::Dense, ResultType::Number) => return Ok(()),
            (Kind::Sparse, ResultType::Number | ResultType::Id | ResultType::Ids) => return Ok(()),
            (_, ResultType::Vector) => "a vector",
            (_, _) => "an id",
        };
        Err(Problem::Kind {
            kind: feature.kind.name(),
            found,
        })
    }

    fn check_aggregation(
        &self,
        feature: &Feature,
        aggregation: Aggregation,
    ) -> Result<(), Problem> {
        let name = aggregation.name();
        let need = |present: bool, key| {
            if present {
                Ok(())
            } else {
                Err(Problem::Missing {
                    aggregation: name,
                    key,
                })
            }
        };
        need(feature.source.is_some(), "source")?;
        need(feature.window.is_some(), "window")?;
        need(!feature.key.is_empty(), "key")?;
        feature.window_hours()?;
        if aggregation == Aggregation::Rate {
            need(feature.over.is_some(), "over")?;
            need(feature.prior[1] > 0.0, "prior")?;
        }
        if matches!(aggregation, Aggregation::Last | Aggregation::Distinct) {
            need(feature.value.is_some(), "value")?;
        }
        if !(1..=MAX_RECENT).contains(&feature.last) {
            return Err(Problem::Last { last: feature.last });
        }
        let keys = feature.key.iter().map(|name| ("key", name));
        for (key, name) in keys.chain(feature.value.iter().map(|name| ("value", name))) {
            if self.fact_type(name) != Some(FactType::Text) {
                return Err(Problem::Key {
                    key,
                    name: name.clone(),
                    known: self.texts(),
                });
            }
        }
        match (feature.kind, aggregation) {
            (Kind::Sparse, Aggregation::Last) => Ok(()),
            (Kind::Dense, Aggregation::Last) => Err(Problem::Kind {
                kind: "dense",
                found: "`last`",
            }),
            (Kind::Sparse, _) => Err(Problem::Kind {
                kind: "sparse",
                found: name,
            }),
            (Kind::Dense, _) => Ok(()),
        }
    }

    fn texts(&self) -> String {
        let standard = REQUEST_FACTS
            .iter()
            .chain(&AD_FACTS)
            .map(|(name, fact)| (*name, *fact));
        let own = self.facts.iter().map(|(name, fact)| (name.as_str(), *fact));
        let texts = standard
            .chain(own)
            .filter(|(_, fact)| *fact == FactType::Text);
        texts.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
    }
}

impl Problem {
    /// The key that is wrong or missing.
    fn key(&self) -> &'static str {
        match self {
            Self::Duplicate | Self::Name => "name",
            Self::Source | Self::Expression { .. } => "expression",
            Self::Missing { key, .. } => key,
            Self::Window { .. } => "window",
            Self::Ttl { .. } => "ttl",
            Self::Last { .. } => "last",
            Self::Key { key, .. } => key,
            Self::Kind { .. } => "kind",
            Self::ChildSafe => "child_safe",
            Self::Limit { .. } => "skew",
            Self::MinMax | Self::Range { .. } => "range",
        }
    }
}

/// Where a key of the feature that begins at `start` stands in the text; `start` if it does not.
fn place_of_key(text: &str, start: usize, key: &str) -> usize {
    let mut at = start;
    for line in text[start..].split_inclusive('\n') {
        let trimmed = line.trim_start();
        if at > start && trimmed.starts_with('[') {
            break;
        }
        let rest = trimmed.strip_prefix(key);
        if rest.is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return at;
        }
        at += line.len();
    }
    start
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Sparse => "sparse",
        }
    }
}

impl Aggregation {
    fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Rate => "rate",
            Self::Last => "last",
            Self::Distinct => "distinct",
        }
    }
}

impl Feature {
    /// The parsed expression; the spec was checked, so it parses.
    pub fn parsed(&self) -> Option<Expression> {
        self.expression.as_deref().and_then(|text| parse(text).ok())
    }

    /// What its values can be.
    pub fn allowed(&self) -> [f64; 2] {
        match (self.transform, self.range) {
            (Transform::MinMax, _) => [0.0, 1.0],
            (_, Some(range)) => range,
            (_, None) => [f64::MIN, f64::MAX],
        }
    }

    /// The facts that it is made of; one may stand there twice.
    pub fn facts(&self) -> Vec<String> {
        let expression = self.parsed().map(|expression| expression.names());
        let named = self.key.iter().chain(&self.value).cloned();
        named.chain(expression.into_iter().flatten()).collect()
    }

    /// The window in hours; 0 without one.
    ///
    /// # Errors
    /// [`Problem::Window`].
    pub fn window_hours(&self) -> Result<u32, Problem> {
        let Some(text) = &self.window else {
            return Ok(0);
        };
        let seconds = seconds(text).filter(|seconds| seconds % 3_600 == 0);
        let unit = text.ends_with(['h', 'd']);
        let hours = seconds.filter(|_| unit).map(|seconds| seconds / 3_600);
        let hours = hours.and_then(|hours| u32::try_from(hours).ok());
        hours.ok_or_else(|| Problem::Window { text: text.clone() })
    }

    /// The time to live in microseconds, if there is one.
    ///
    /// # Errors
    /// [`Problem::Ttl`].
    pub fn ttl_us(&self) -> Result<Option<i64>, Problem> {
        let Some(text) = &self.ttl else {
            return Ok(None);
        };
        let stored = self.aggregation.is_some();
        let us = seconds(text).map(|seconds| seconds * 1_000_000);
        match us.filter(|_| stored) {
            Some(us) => Ok(Some(us)),
            None => Err(Problem::Ttl {
                text: text.clone(),
                stored,
            }),
        }
    }
}

/// A duration such as `90s`, `15m`, `24h` or `7d`, of at most 90 days.
fn seconds(text: &str) -> Option<i64> {
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1))?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = i64::from(digits.parse::<u32>().ok()?) * unit;
    (1..=90 * 86_400).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[feature]]
name = "user_clicks_24h"
kind = "dense"
entity = "user"
aggregation = "count"
source = "click"
window = "24h"
key = ["user_id"]
transform = "log1p"
freshness = "nearline"
child_safe = false
owner = "ads"
version = 1
"#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from));
        FeatureSpec::parse(&GOOD.replace(from, to), "f.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_error_names_file_line_feature_key_and_mend() {
        let check = |from, to, line: usize, key: &str, expected: &str| {
            let at = format!(
                "in feature spec f.toml, line {line}, feature `user_clicks_24h`, key `{key}`: "
            );
            assert_eq!(refusal(from, to), at + expected);
        };
        // A key that is missing is told at its feature.
        let expected = "give either `expression` or `aggregation`";
        check("aggregation = \"count\"\n", "", 2, "expression", expected);
        let expected = "an aggregation `count` needs `source`";
        check("source = \"click\"\n", "", 2, "source", expected);
        let expected = "an aggregation `rate` needs `over`";
        check("\"count\"", "\"rate\"", 2, "over", expected);
        let expected = "an aggregation `last` needs `value`";
        check("\"count\"", "\"last\"", 2, "value", expected);
        let expected = "a feature made of `user_id` is nothing for children: say `child_safe = false`, or leave the person out";
        check(
            "child_safe = false",
            "child_safe = true",
            12,
            "child_safe",
            expected,
        );
        let expected = "window `24x` is not a whole number of hours or days between 1h and 90d, such as `24h` or `7d`";
        check("24h\"\nkey", "24x\"\nkey", 8, "window", expected);
        let expected = "range [1, 2] must rise and hold the default 0";
        check(
            "version = 1",
            "version = 1\nrange = [1.0, 2.0]",
            15,
            "range",
            expected,
        );
        let scaled = GOOD.replace("log1p", "min_max") + "range = [1.0, 2.0]\n";
        FeatureSpec::parse(&scaled, "f.toml").unwrap();
        let error = FeatureSpec::parse(&(scaled + "default = 1.5\n"), "f.toml").unwrap_err();
        let expected = "range [1, 2] must rise and the default be 0 to 1, as its values are with `min_max`, not 1.5";
        assert!(error.to_string().ends_with(expected), "{error}");
        let endless = GOOD.replace("log1p", "min_max") + "range = [0.0, inf]\n";
        FeatureSpec::parse(&endless, "f.toml").unwrap_err();
        let expected = "a transform `min_max` needs `range`, whose ends become 0 and 1";
        check("log1p", "min_max", 2, "range", expected);
        let expected = "limit `psi` is -1, wanted a number from 0";
        check(
            "version = 1",
            "version = 1\nskew = { psi = -1.0 }",
            15,
            "skew",
            expected,
        );
        let expected = "time to live `2w` is not a whole number of seconds, minutes, hours or days between 1s and 90d, such as `15m` or `2h`";
        check(
            "version = 1",
            "version = 1\nttl = \"2w\"",
            15,
            "ttl",
            expected,
        );
        let expected = "`last` is 65, wanted 1 to 64";
        check(
            "version = 1",
            "version = 1\nlast = 65",
            15,
            "last",
            expected,
        );
        let found = refusal("[\"user_id\"]", "[\"user_ld\"]");
        let expected =
            "line 9, feature `user_clicks_24h`, key `key`: fact `user_ld` must be a text";
        assert!(found.contains(expected), "{found}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_spec_or_refused(text in ".{0,200}", at in 0usize..400, cut in 0usize..60) {
            let _ = FeatureSpec::parse(&text, "f.toml");
            let broken: String = GOOD.chars().take(at).chain(text.chars().take(9)).chain(GOOD.chars().skip(at + cut)).collect();
            let _ = FeatureSpec::parse(&broken, "f.toml").map_err(|error| error.to_string());
        }
    }

    #[test]
    fn an_unknown_key_names_its_line() {
        assert_eq!(
            refusal("transform", "transfrom"),
            "in feature spec f.toml, line 10"
        );
    }

    #[test]
    fn a_second_feature_of_the_same_name_is_refused() {
        let error = FeatureSpec::parse(&GOOD.repeat(2), "f.toml").unwrap_err();
        assert!(
            error.to_string().contains("another feature has this name"),
            "{error}"
        );
    }

    #[test]
    fn the_digest_follows_the_meaning() {
        let digest = |text: &str| {
            FeatureSpec::parse(text, "f.toml")
                .unwrap()
                .digest()
                .to_owned()
        };
        let good = digest(GOOD);
        assert_eq!(
            good,
            digest(&GOOD.replace("owner = \"ads\"", "owner = \"x\" # moved"))
        );
        let limits = "version = 1\nskew = { psi = 0.5 }";
        assert_eq!(good, digest(&GOOD.replace("version = 1", limits)));
        let kept = "version = 1\nttl = \"2h\"\ntier = \"warm\"";
        assert_eq!(good, digest(&GOOD.replace("version = 1", kept)));
        assert_ne!(good, digest(&GOOD.replace("24h\"\nkey", "48h\"\nkey")));
    }
}
