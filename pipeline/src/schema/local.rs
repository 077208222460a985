//! A registry that is a folder: `<subject>/<version>.proto`, and `<subject>/level` with the rule's name.
//!
//! It lies in the repository, so that a change of the schema is a change of two files in one commit, and
//! a version is never lost while a record by it is kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use prost_types::FileDescriptorProto;
use serde::Deserialize;
use serde_json::Value;

use super::{Level, Schema, SchemaError, SchemaRegistry, compatibility};

/// The rule where a subject says nothing: who reads must read all that is kept.
const DEFAULT_LEVEL: Level = Level::BackwardTransitive;

/// A folder of schemas.
#[derive(Debug, Clone)]
pub struct LocalRegistry {
    root: PathBuf,
}

impl LocalRegistry {
    /// The registry below a folder, which need not be there yet.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn file(&self, subject: &str, version: u32) -> PathBuf {
        self.root.join(subject).join(format!("{version}.proto"))
    }

    fn parsed(
        &self,
        subject: &str,
        versions: &[Schema],
    ) -> Result<Vec<FileDescriptorProto>, SchemaError> {
        let parse = |schema: &Schema| {
            let what = self.file(subject, schema.version).display().to_string();
            compatibility::parse(&what, &schema.text)
        };
        versions.iter().map(parse).collect()
    }

    fn check_subject(&self, subject: &str) -> Result<(), SchemaError> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match !subject.starts_with('.') && !subject.is_empty() && subject.chars().all(valid) {
            true => Ok(()),
            false => Err(SchemaError::Local {
                path: self.root.clone(),
                what: format!("`{subject}` is no subject: use letters, digits, `.`, `-` and `_`"),
            }),
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, SchemaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SchemaError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

impl SchemaRegistry for LocalRegistry {
    fn versions(&self, subject: &str) -> Result<Vec<Schema>, SchemaError> {
        self.check_subject(subject)?;
        let mut found = Vec::new();
        for version in 1.. {
            let Some(text) = read(&self.file(subject, version))? else {
                break;
            };
            found.push(Schema {
                version,
                // One subject, one folder: its versions are its ids.
                id: version,
                text,
            });
        }
        let last = found.len() as u32;
        let beyond = self.file(subject, last + 2);
        if beyond.exists() {
            let path = self.file(subject, last + 1);
            let what = format!(
                "it is missing, and {} is there: restore it",
                beyond.display()
            );
            return Err(SchemaError::Local { path, what });
        }
        Ok(found)
    }

    fn level(&self, subject: &str) -> Result<Level, SchemaError> {
        self.check_subject(subject)?;
        let path = self.root.join(subject).join("level");
        let Some(text) = read(&path)? else {
            return Ok(DEFAULT_LEVEL);
        };
        let name = Value::from(text.trim());
        Level::deserialize(&name).map_err(|error| SchemaError::Local {
            path,
            what: error.to_string(),
        })
    }

    fn breaks(&self, subject: &str, text: &str) -> Result<Vec<String>, SchemaError> {
        let new = compatibility::parse("the new schema", text)?;
        let before = self.parsed(subject, &self.versions(subject)?)?;
        Ok(compatibility::breaks(self.level(subject)?, &before, &new))
    }

    fn register(&self, subject: &str, text: &str) -> Result<Schema, SchemaError> {
        let new = compatibility::parse("the new schema", text)?;
        let versions = self.versions(subject)?;
        let before = self.parsed(subject, &versions)?;
        if let Some(at) = before.iter().position(|known| *known == new) {
            return Ok(versions[at].clone());
        }
        let version = versions.last().map_or(1, |last| last.version + 1);
        let level = self.level(subject)?;
        let breaks = compatibility::breaks(level, &before, &new);
        if !breaks.is_empty() {
            return Err(SchemaError::Incompatible {
                subject: subject.to_owned(),
                version,
                level,
                breaks,
            });
        }
        let path = self.file(subject, version);
        let written = fs::create_dir_all(self.root.join(subject)).and_then(|()| {
            // Whoever registers at the same time gets an error and not the same version.
            let mut file = fs::File::create_new(&path)?;
            io::Write::write_all(&mut file, text.as_bytes())
        });
        written.map_err(|source| SchemaError::Io { path, source })?;
        Ok(Schema {
            version,
            id: version,
            text: text.to_owned(),
        })
    }
}
