//! What changed between two specs, and whether what is live can go on with the new one.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::spec::{Feature, FeatureSpec};

/// Keys that say how a feature is kept, and not what it means.
const KEEPING: [&str; 6] = ["owner", "description", "freshness", "ttl", "tier", "skew"];

/// One feature's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The feature.
    pub feature: String,
    /// What happened to it.
    #[serde(flatten)]
    pub change: Change,
}

/// What happened to a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// It is new: models that are live do not ask for it.
    Added,
    /// It is gone: models that are live cannot be served.
    Removed,
    /// It is kept otherwise, and means the same.
    Kept {
        /// The keys that changed.
        keys: BTreeSet<String>,
    },
    /// It means something else, and its version says so: models are to be trained again.
    NewVersion {
        /// The keys that changed.
        keys: BTreeSet<String>,
        /// The version before.
        from: u32,
        /// The version now.
        to: u32,
    },
    /// It means something else under the same version, or an older one.
    NeedsNewVersion {
        /// The keys that changed.
        keys: BTreeSet<String>,
        /// The version that the old meaning has.
        version: u32,
    },
}

impl Change {
    /// Whether models that are live can go on with the new spec.
    pub fn is_compatible(&self) -> bool {
        matches!(self, Self::Added | Self::Kept { .. })
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |keys: &BTreeSet<String>| {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            keys.join(", ")
        };
        match self {
            Self::Added => f.write_str("added; compatible"),
            Self::Removed => f.write_str("removed; models that use it cannot be served"),
            Self::Kept { keys } => write!(f, "{} changed; compatible", list(keys)),
            Self::NewVersion { keys, from, to } => write!(
                f,
                "{} changed, version {from} to {to}; models are to be trained again",
                list(keys)
            ),
            Self::NeedsNewVersion { keys, version } => write!(
                f,
                "{} changed, which changes its meaning: raise `version` above {version}",
                list(keys)
            ),
        }
    }
}

/// What changed from one spec to the next, in the order of features.
pub fn diff(old: &FeatureSpec, new: &FeatureSpec) -> Vec<Difference> {
    let find = |spec: &FeatureSpec, name: &str| spec.features.iter().position(|of| of.name == name);
    let changed = new.features.iter().filter_map(|feature| {
        let change = match find(old, &feature.name) {
            None => Change::Added,
            Some(before) => change(old, &old.features[before], new, feature)?,
        };
        Some((feature, change))
    });
    let gone = old.features.iter();
    let gone = gone.filter(|feature| find(new, &feature.name).is_none());
    changed
        .chain(gone.map(|feature| (feature, Change::Removed)))
        .map(|(feature, change)| Difference {
            feature: feature.name.clone(),
            change,
        })
        .collect()
}

fn change(
    old: &FeatureSpec,
    before: &Feature,
    new: &FeatureSpec,
    feature: &Feature,
) -> Option<Change> {
    let mut keys = changed_keys(before, feature);
    // A fact of another type makes another value of the same words.
    for fact in feature.facts() {
        if old.fact_type(&fact) != new.fact_type(&fact) {
            keys.insert(format!("facts.{fact}"));
        }
    }
    let (from, to) = (before.version, feature.version);
    if keys.is_empty() {
        return None;
    }
    if to < from {
        return Some(Change::NeedsNewVersion {
            keys,
            version: from,
        });
    }
    // A version that rises is told by itself, unless nothing else has changed.
    if keys.len() > 1 {
        keys.remove("version");
    }
    let kept = keys.iter().all(|key| KEEPING.contains(&key.as_str()));
    Some(match (to > from, kept) {
        (true, _) => Change::NewVersion { keys, from, to },
        (false, true) => Change::Kept { keys },
        (false, false) => Change::NeedsNewVersion {
            keys,
            version: from,
        },
    })
}

fn changed_keys(before: &Feature, after: &Feature) -> BTreeSet<String> {
    // A struct of plain fields always serialises, into an object.
    let object = |feature: &Feature| match serde_json::to_value(feature) {
        Ok(serde_json::Value::Object(object)) => object,
        _ => unreachable!("a feature is plain data"),
    };
    let (before, after) = (object(before), object(after));
    let changed = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(*value));
    changed.map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
[facts]
size = "number"

[[feature]]
name = "a"
kind = "dense"
entity = "ad"
expression = "log1p(size)"
freshness = "request"
child_safe = true
owner = "ads"
version = 2
"#;

    fn check(from: &str, to: &str, expected: &str) {
        assert!(SPEC.contains(from));
        let parse = |text: &str| FeatureSpec::parse(text, "f.toml").unwrap();
        let found = diff(&parse(SPEC), &parse(&SPEC.replace(from, to)));
        let found: Vec<String> = found
            .iter()
            .map(|found| format!("{}: {}", found.feature, found.change))
            .collect();
        assert_eq!(found.join("\n"), expected);
    }

    #[test]
    fn a_change_is_compatible_needs_a_version_or_has_one() {
        check("ads", "ads", "");
        check("\"ads\"", "\"search\"", "a: owner changed; compatible");
        check(
            "log1p(size)",
            "sqrt(size)",
            "a: expression changed, which changes its meaning: raise `version` above 2",
        );
        check(
            "child_safe = true",
            "child_safe = false",
            "a: child_safe changed, which changes its meaning: raise `version` above 2",
        );
        check(
            "\"log1p(size)\"\nfreshness = \"request\"\nchild_safe = true\nowner = \"ads\"\nversion = 2",
            "\"size\"\nfreshness = \"request\"\nchild_safe = true\nowner = \"ads\"\nversion = 3",
            "a: expression changed, version 2 to 3; models are to be trained again",
        );
        check(
            "version = 2",
            "version = 1",
            "a: version changed, which changes its meaning: raise `version` above 2",
        );
        check(
            "name = \"a\"",
            "name = \"b\"",
            "b: added; compatible\na: removed; models that use it cannot be served",
        );
    }

    #[test]
    fn a_fact_of_another_type_is_a_change_of_what_names_it() {
        let text = SPEC
            .replace("log1p(size)", "hash(size)")
            .replace("dense", "sparse");
        let parse = |text: &str| FeatureSpec::parse(text, "f.toml").unwrap();
        let found = diff(
            &parse(&text),
            &parse(&text.replace("\"number\"", "\"text\"")),
        );
        let keys = BTreeSet::from(["facts.size".to_owned()]);
        assert_eq!(
            found[0].change,
            Change::NeedsNewVersion { keys, version: 2 }
        );
        assert!(!found[0].change.is_compatible());
    }
}
