//! How far artifacts have come on their way to traffic, and what the gate said of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, Registry, RegistryError};

/// How far an artifact has come on its way to traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Published, not yet judged.
    #[default]
    Candidate,
    /// Scores beside the live one and is never served.
    Shadow,
    /// Serves a share of the traffic.
    Canary,
    /// Serves.
    Live,
    /// No longer serves.
    Retired,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 5] = [
        Self::Candidate,
        Self::Shadow,
        Self::Canary,
        Self::Live,
        Self::Retired,
    ];

    /// As in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Live => "live",
            Self::Retired => "retired",
        }
    }

    /// Whether one may come after another: a step towards traffic at a time, back to the shadow from
    /// anywhere, and to its end from anywhere.
    pub fn may_become(self, next: Self) -> bool {
        use Stage::{Canary, Candidate, Live, Retired, Shadow};
        matches!(
            (self, next),
            (Candidate | Canary | Live | Retired, Shadow)
                | (Shadow | Live, Canary)
                | (Canary, Live)
                | (Candidate | Shadow | Canary | Live, Retired)
        )
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|stage| stage.name() == text);
        found.ok_or_else(|| RegistryError::BadStage {
            text: text.to_owned(),
        })
    }
}

/// What a gate said of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// Why it is refused; empty: it passed.
    pub refused: Vec<String>,
    /// What it was compared with.
    pub against: Option<Digest>,
    /// Version of the table that it was measured on.
    pub table_version: u64,
    /// When, microseconds since the Unix epoch.
    pub judged_us: i64,
}

impl Judgement {
    /// Why the artifact is refused; none: it passed.
    pub fn refusal(&self) -> Option<String> {
        (!self.refused.is_empty()).then(|| self.refused.join("; "))
    }
}

impl Registry {
    /// An artifact's stage; `candidate` until one is set.
    ///
    /// # Errors
    /// [`RegistryError::Record`]; [`RegistryError::Store`].
    pub async fn stage(&self, digest: &Digest) -> Result<Stage, RegistryError> {
        let last = self.last(&format!("stages/{digest}")).await?;
        Ok(last.unwrap_or_default())
    }

    /// Sets an artifact's stage.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Stages`] if it may not come after the one
    /// before; [`RegistryError::NotJudged`] and [`RegistryError::Refused`] if it leads towards
    /// traffic, and the gate has not let the artifact pass; else as [`Self::stage`].
    pub async fn set_stage(&self, digest: &Digest, stage: Stage) -> Result<(), RegistryError> {
        let kind = self.get(digest).await?.kind;
        let from = self.stage(digest).await?;
        if !from.may_become(stage) {
            return Err(RegistryError::Stages {
                digest: digest.clone(),
                from,
                to: stage,
            });
        }
        if kind.is_judged() && stage != Stage::Retired {
            let digest = digest.clone();
            match self.judgement(&digest).await?.map(|word| word.refusal()) {
                None => return Err(RegistryError::NotJudged { digest }),
                Some(Some(reason)) => return Err(RegistryError::Refused { digest, reason }),
                Some(None) => {}
            }
        }
        self.append(&format!("stages/{digest}"), &stage).await
    }

    /// The gate's last word on an artifact, or `None` before its first.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub async fn judgement(&self, digest: &Digest) -> Result<Option<Judgement>, RegistryError> {
        self.last(&format!("judgements/{digest}")).await
    }

    /// Puts the gate's word on record.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; else as [`Self::stage`].
    pub async fn judge(&self, digest: &Digest, word: &Judgement) -> Result<(), RegistryError> {
        self.get(digest).await?;
        self.append(&format!("judgements/{digest}"), word).await
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;
    use crate::{Artifact, Draft, Kind, block_on};

    fn registry() -> (tempfile::TempDir, Registry) {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(root.path()).unwrap();
        (root, registry)
    }

    fn published(registry: &Registry, kind: Kind) -> Artifact {
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("model.json"), "{}").unwrap();
        let draft = Draft {
            kind,
            dir: files.path().to_owned(),
            parents: vec![],
            metrics: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        block_on(registry.publish(draft)).unwrap()
    }

    #[test]
    fn stages_go_a_step_at_a_time_and_back() {
        use Stage::{Canary, Candidate, Live, Retired, Shadow};
        let way = [Candidate, Shadow, Canary, Live, Retired, Shadow];
        assert!(way.windows(2).all(|pair| pair[0].may_become(pair[1])));
        for (stage, next) in [
            (Candidate, Live),
            (Candidate, Canary),
            (Shadow, Live),
            (Retired, Live),
            (Live, Candidate),
            (Live, Live),
        ] {
            assert!(!stage.may_become(next), "{stage:?} {next:?}");
        }
    }

    #[test]
    fn a_stage_is_named_as_it_is_written() {
        for stage in Stage::ALL {
            assert_eq!(stage.name().parse::<Stage>().unwrap(), stage);
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.name());
        }
        assert!("best".parse::<Stage>().is_err());
    }

    #[test]
    fn stages_start_as_candidate_and_keep_the_last_word() {
        let (_root, registry) = registry();
        let artifact = published(&registry, Kind::Ctr);
        assert_eq!(
            block_on(registry.stage(&artifact.digest)).unwrap(),
            Stage::Candidate
        );
        let early = block_on(registry.set_stage(&artifact.digest, Stage::Live));
        assert!(matches!(early, Err(RegistryError::Stages { .. })));
        let pass = Judgement {
            refused: vec![],
            against: None,
            table_version: 3,
            judged_us: 5,
        };
        block_on(registry.judge(&artifact.digest, &pass)).unwrap();
        for stage in [Stage::Shadow, Stage::Canary, Stage::Live] {
            block_on(registry.set_stage(&artifact.digest, stage)).unwrap();
        }
        block_on(registry.set_stage(&artifact.digest, Stage::Retired)).unwrap();
        assert_eq!(
            block_on(registry.stage(&artifact.digest)).unwrap(),
            Stage::Retired
        );
    }

    #[test]
    fn a_click_model_goes_towards_traffic_only_by_the_last_word_of_the_gate() {
        let (_root, registry) = registry();
        let digest = published(&registry, Kind::Ctr).digest;
        let set = |stage| block_on(registry.set_stage(&digest, stage));
        let judge = |refused: &[&str]| {
            let word = Judgement {
                refused: refused.iter().map(|&reason| reason.to_owned()).collect(),
                against: None,
                table_version: 3,
                judged_us: 5,
            };
            block_on(registry.judge(&digest, &word)).unwrap();
            assert_eq!(block_on(registry.judgement(&digest)).unwrap(), Some(word));
        };
        let unknown = set(Stage::Shadow);
        assert!(
            matches!(unknown, Err(RegistryError::NotJudged { .. })),
            "{unknown:?}"
        );
        judge(&[]);
        set(Stage::Shadow).unwrap();
        judge(&["too low", "too high"]);
        let refused = set(Stage::Canary).unwrap_err().to_string();
        assert!(refused.contains("too low; too high"), "{refused}");
        set(Stage::Retired).unwrap();
        assert!(set(Stage::Shadow).is_err());
        judge(&[]);
        set(Stage::Shadow).unwrap();
        // What no gate judges needs none.
        let index = published(&registry, Kind::Index);
        block_on(registry.set_stage(&index.digest, Stage::Shadow)).unwrap();
    }
}
