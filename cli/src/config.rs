//! From a TOML file and overrides to a typed configuration.
//!
//! Defaults live in each struct's `Default`; the file says what differs, `--set` what differs
//! this time. A key that no struct knows is an error with the nearest known name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::CommonArgs;

/// Why a configuration was refused. All of these are usage errors (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No file was named and the verb has no default one.
    #[error("no configuration file: name one, for example `{example}`")]
    Missing {
        /// A file that would fit.
        example: String,
    },
    /// The text is not TOML, a key is unknown, or a value has the wrong type.
    #[error("in configuration {origin}{}{hint}", position(*line))]
    Parse {
        /// The file, or the override.
        origin: String,
        /// Line in the file, from 1, when known.
        line: Option<usize>,
        /// `: did you mean …` or nothing.
        hint: String,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// An override that is not `key=value`.
    #[error("`--set {text}` is not KEY=VALUE: write for example --set training.batch_size=1024")]
    Override {
        /// The text after `--set`.
        text: String,
    },
    /// An override that steps into something that is no table.
    #[error("`--set {text}`: `{key}` is a value, not a table of further keys")]
    NotATable {
        /// The text after `--set`.
        text: String,
        /// The key that is a value.
        key: String,
    },
    /// The resolved configuration cannot be written as TOML.
    #[error("writing the resolved configuration")]
    Serialize {
        /// What the writer said.
        source: toml::ser::Error,
    },
}

fn position(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}"))
        .unwrap_or_default()
}

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded<C> {
    /// What the verb uses.
    pub config: C,
    /// The same as TOML, defaults and overrides included: record it with the run.
    pub resolved: String,
    /// The file, when there was one.
    pub source: Option<PathBuf>,
}

/// Loads the file named on the command line, or else `default_path`, and applies the overrides.
/// A `default_path` that does not exist means "all defaults".
///
/// # Errors
/// [`ConfigError`] with file, line, key and the nearest known name.
pub fn load_config<C: Serialize + DeserializeOwned>(
    common: &CommonArgs,
    default_path: Option<&str>,
) -> Result<Loaded<C>, ConfigError> {
    let source = match (common.config_path(), default_path) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(path)) => Some(PathBuf::from(path)).filter(|path| path.exists()),
        (None, None) => {
            return Err(ConfigError::Missing {
                example: "configs/ctr.toml".to_owned(),
            });
        }
    };
    let text = match &source {
        Some(path) => read(path)?,
        None => String::new(),
    };
    let origin = source
        .as_ref()
        .map_or("defaults".to_owned(), |path| path.display().to_string());
    let mut overrides = common.overrides.clone();
    overrides.extend(common.seed.map(|seed| format!("seed={seed}")));
    parse_config(&text, &origin, &overrides).map(|(config, resolved)| Loaded {
        config,
        resolved,
        source,
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Parses `text` (from `origin`, for messages) and applies `overrides` of the form `a.b=value`.
/// Returns the configuration and its resolved TOML.
///
/// # Errors
/// [`ConfigError`] as for [`load_config`].
pub fn parse_config<C: Serialize + DeserializeOwned>(
    text: &str,
    origin: &str,
    overrides: &[String],
) -> Result<(C, String), ConfigError> {
    // The file alone first: only then does an error know its line.
    let failed = |origin: &str, text: &str, error: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        line: error
            .span()
            .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1),
        hint: hint(error.message()),
        source: Box::new(error),
    };
    let mut config: C = toml::from_str(text).map_err(|error| failed(origin, text, error))?;
    if !overrides.is_empty() {
        let mut table: Table = toml::from_str(text).map_err(|error| failed(origin, text, error))?;
        for entry in overrides {
            apply(&mut table, entry)?;
        }
        let shown = format!("{origin} with --set {}", overrides.join(" --set "));
        config = Value::Table(table)
            .try_into()
            .map_err(|error| failed(&shown, "", error))?;
    }
    let resolved =
        toml::to_string_pretty(&config).map_err(|source| ConfigError::Serialize { source })?;
    Ok((config, resolved))
}

/// Sets one `a.b=value` in `table`, making the tables on the way.
fn apply(table: &mut Table, entry: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::Override {
        text: entry.to_owned(),
    };
    let (path, value) = entry.split_once('=').ok_or_else(bad)?;
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty()).ok_or_else(bad)?;
    let mut target = table;
    for key in keys {
        let inner = target
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        target = inner.as_table_mut().ok_or_else(|| ConfigError::NotATable {
            text: entry.to_owned(),
            key: key.to_owned(),
        })?;
    }
    target.insert(last.to_owned(), parse_value(value.trim()));
    Ok(())
}

/// A TOML value if it reads as one, else a string, so that `--set kind=ctr` needs no quotes.
fn parse_value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    parsed
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a suggestion.
fn hint(message: &str) -> String {
    if !message.contains("unknown field") && !message.contains("unknown variant") {
        return String::new();
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(wrong) = names.next() else {
        return String::new();
    };
    let nearest = names
        .max_by(|a, b| strsim::jaro_winkler(wrong, a).total_cmp(&strsim::jaro_winkler(wrong, b)));
    match nearest {
        Some(name) if strsim::jaro_winkler(wrong, name) > 0.7 => {
            format!(": did you mean `{name}`?")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        name: String,
        seed: u64,
        training: Inner,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        batch_size: usize,
        rate: f64,
    }

    impl Default for Inner {
        fn default() -> Self {
            Self {
                batch_size: 256,
                rate: 0.1,
            }
        }
    }

    fn parse(text: &str, overrides: &[&str]) -> Result<Outer, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|&entry| entry.to_owned()).collect();
        parse_config(text, "test.toml", &overrides).map(|(config, _)| config)
    }

    #[test]
    fn overrides_win_over_the_file_and_the_file_over_defaults() {
        let config = parse(
            "name = 'a'\n[training]\nrate = 0.5\n",
            &["training.batch_size=1024", "name=b", "seed=7"],
        )
        .unwrap();
        let training = Inner {
            batch_size: 1024,
            rate: 0.5,
        };
        assert_eq!(
            config,
            Outer {
                name: "b".into(),
                seed: 7,
                training
            }
        );
    }

    #[test]
    fn an_unknown_key_names_file_line_and_nearest_key() {
        let error = parse("name = 'a'\n[training]\nbatch_sise = 3\n", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "in configuration test.toml, line 3: did you mean `batch_size`?"
        );
    }

    #[test]
    fn an_unknown_override_is_refused_with_the_nearest_key() {
        let error = parse("", &["training.rat=1.0"]).unwrap_err();
        assert!(
            error.to_string().contains("did you mean `rate`?"),
            "{error}"
        );
    }

    #[test]
    fn an_override_without_value_or_into_a_value_is_refused() {
        assert!(matches!(
            parse("", &["seed"]),
            Err(ConfigError::Override { .. })
        ));
        assert!(matches!(
            parse("name='a'", &["name.x=1"]),
            Err(ConfigError::NotATable { .. })
        ));
    }

    #[test]
    fn the_resolved_text_parses_to_the_same_configuration() {
        let (config, resolved) =
            parse_config::<Outer>("[training]\nrate = 0.25\n", "test.toml", &[]).unwrap();
        assert_eq!(parse(&resolved, &[]).unwrap(), config);
    }
}
