//! Removes artifacts that nothing needs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Artifact, Channel, Digest, Kind, Registry, RegistryError, Stage};

/// What a collection keeps, besides everything that those were made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many of each kind, the newest; at least one, which the next step of the loop takes.
    pub newest: usize,
    /// Bundles of so many generations of every channel, the last: to roll back to. At least one,
    /// which serves.
    pub generations: usize,
    /// Whatever was published after this, microseconds since the Unix epoch.
    pub after_us: i64,
}

/// What a collection found.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// Why each artifact that stays is needed, in the order of publishing.
    pub kept: Vec<(Artifact, Reason)>,
    /// What nothing needs.
    pub removed: Vec<Artifact>,
}

/// Why an artifact is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A channel serves it, or did not long ago.
    Channel,
    /// Its stage says so: shadow, canary or live.
    Stage,
    /// It is one of the newest of its kind.
    Newest,
    /// It was published only just.
    Recent,
    /// Something that stays was made from it.
    Parent,
}

impl Registry {
    /// Finds what no channel, stage or child needs, and removes it if `remove` says so.
    ///
    /// # Errors
    /// [`RegistryError`]; a collection that ended early can be begun again.
    pub async fn collect(&self, keep: &Keep, remove: bool) -> Result<Collected, RegistryError> {
        let artifacts = self.list(None).await?;
        let mut reasons: BTreeMap<Digest, Reason> = BTreeMap::new();
        let mut need = |digest: &Digest, reason: Reason| {
            let known = reasons.entry(digest.clone()).or_insert(reason);
            *known = (*known).min(reason);
        };
        for name in self.channels().await? {
            for channel in self.generations(&name, keep.generations.max(1)).await? {
                let bundles = channel.targets.iter().map(|target| &target.bundle);
                bundles.for_each(|bundle| need(bundle, Reason::Channel));
            }
        }
        let mut of_kind: BTreeMap<Kind, usize> = BTreeMap::new();
        for artifact in artifacts.iter().rev() {
            let stage = self.stage(&artifact.digest).await?;
            if matches!(stage, Stage::Shadow | Stage::Canary | Stage::Live) {
                need(&artifact.digest, Reason::Stage);
            }
            let newer = of_kind.entry(artifact.kind).or_default();
            if *newer < keep.newest.max(1) {
                need(&artifact.digest, Reason::Newest);
            }
            *newer += 1;
            if artifact.published_us > keep.after_us {
                need(&artifact.digest, Reason::Recent);
            }
        }
        let parents: BTreeMap<&Digest, &[Digest]> = artifacts
            .iter()
            .map(|artifact| (&artifact.digest, &artifact.parents[..]))
            .collect();
        let mut open: Vec<Digest> = reasons.keys().cloned().collect();
        while let Some(digest) = open.pop() {
            for parent in parents.get(&digest).copied().unwrap_or_default() {
                if !reasons.contains_key(parent) {
                    reasons.insert(parent.clone(), Reason::Parent);
                    open.push(parent.clone());
                }
            }
        }
        let mut found = Collected {
            kept: Vec::new(),
            removed: Vec::new(),
        };
        for artifact in artifacts {
            match reasons.get(&artifact.digest) {
                Some(reason) => found.kept.push((artifact, *reason)),
                None => found.removed.push(artifact),
            }
        }
        if remove {
            let digests = found.removed.iter().map(|artifact| artifact.digest.clone());
            self.remove(&digests.collect::<BTreeSet<_>>()).await?;
        }
        Ok(found)
    }

    /// The last generations of a channel, the newest first.
    ///
    /// # Errors
    /// As [`Self::channel`].
    pub async fn generations(
        &self,
        name: &str,
        count: usize,
    ) -> Result<Vec<Channel>, RegistryError> {
        let keys = self.keys(&format!("channels/{name}")).await?;
        let mut found = Vec::new();
        for key in keys.iter().rev().take(count) {
            found.extend(self.read(key).await?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{Draft, Judgement, Target, block_on};

    /// An artifact of a kind with a text for content.
    fn publish(
        registry: &Registry,
        dir: &Path,
        kind: Kind,
        text: &str,
        parents: &[&Artifact],
    ) -> Artifact {
        let dir = dir.join(format!("{kind}-{text}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), text).unwrap();
        let draft = Draft {
            kind,
            dir,
            parents: parents.iter().map(|parent| parent.digest.clone()).collect(),
            metrics: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        block_on(registry.publish(draft)).unwrap()
    }

    const KEEP: Keep = Keep {
        newest: 1,
        generations: 2,
        after_us: i64::MAX,
    };

    #[test]
    fn what_a_channel_a_stage_or_a_child_needs_stays_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry")).unwrap();
        let make = |kind, text: &str, parents: &[&Artifact]| {
            publish(&registry, dir.path(), kind, text, parents)
        };
        let spec = make(Kind::Features, "spec", &[]);
        let models: Vec<Artifact> = (0..6)
            .map(|at| make(Kind::Ctr, &at.to_string(), &[&spec]))
            .collect();
        let bundles: Vec<Artifact> = (0..4)
            .map(|at| make(Kind::Bundle, &at.to_string(), &[&models[at]]))
            .collect();
        let newer_spec = make(Kind::Features, "newer", &[]);
        for (generation, bundle) in bundles.iter().take(3).enumerate() {
            let targets = vec![Target {
                bundle: bundle.digest.clone(),
                share: 1.0,
            }];
            block_on(registry.advance("live", generation as u64, targets)).unwrap();
        }
        let pass = Judgement {
            refused: vec![],
            against: None,
            table_version: 1,
            judged_us: 1,
        };
        block_on(registry.judge(&models[4].digest, &pass)).unwrap();
        block_on(registry.set_stage(&models[4].digest, Stage::Shadow)).unwrap();

        let collected = block_on(registry.collect(&KEEP, false)).unwrap();
        let reason = |artifact: &Artifact| {
            let kept = collected
                .kept
                .iter()
                .find(|(kept, _)| kept.digest == artifact.digest);
            kept.map(|(_, reason)| *reason)
        };
        // Generations 2 and 3 of the channel, the newest bundle, and what they are made of.
        assert_eq!(reason(&bundles[0]), None);
        assert_eq!(
            bundles[1..].iter().map(reason).collect::<Vec<_>>(),
            [
                Some(Reason::Channel),
                Some(Reason::Channel),
                Some(Reason::Newest)
            ]
        );
        let of_models: Vec<_> = models.iter().map(reason).collect();
        let parent = Some(Reason::Parent);
        assert_eq!(
            of_models,
            [
                None,
                parent,
                parent,
                parent,
                Some(Reason::Stage),
                Some(Reason::Newest)
            ]
        );
        assert_eq!(
            reason(&spec),
            parent,
            "an old spec that models were made with"
        );
        assert_eq!(reason(&newer_spec), Some(Reason::Newest));
        // Looking removed nothing.
        assert_eq!(block_on(registry.list(None)).unwrap().len(), 12);

        let removed = block_on(registry.collect(&KEEP, true)).unwrap().removed;
        assert_eq!(removed.len(), 2);
        for artifact in &removed {
            assert!(block_on(registry.fetch(&artifact.digest)).is_err());
            assert!(
                !dir.path()
                    .join("registry/artifacts")
                    .join(artifact.digest.as_str())
                    .exists()
            );
        }
        for (artifact, _) in &collected.kept {
            block_on(registry.fetch(&artifact.digest)).unwrap();
        }
        assert_eq!(block_on(registry.list(None)).unwrap().len(), 10);
        assert_eq!(block_on(registry.collect(&KEEP, true)).unwrap().removed, []);
        // The same content again is an artifact again.
        let again = make(Kind::Ctr, "0", &[&spec]);
        assert_eq!(again.digest, models[0].digest);
        block_on(registry.fetch(&again.digest)).unwrap();
    }

    #[test]
    fn what_was_published_only_just_stays() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry")).unwrap();
        let old = publish(&registry, dir.path(), Kind::Ctr, "old", &[]);
        publish(&registry, dir.path(), Kind::Ctr, "new", &[]);
        let keep = Keep {
            after_us: old.published_us - 1,
            ..KEEP
        };
        let found = block_on(registry.collect(&keep, true)).unwrap();
        assert_eq!(found.removed, []);
        assert_eq!(found.kept[0].1, Reason::Recent);
    }
}
