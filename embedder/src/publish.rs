//! `marquee index publish`: the artifacts that serve together, as one bundle.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use cli::{CommonArgs, GateRefused, Layout, out, write_json};
use features::FeatureSpec;
use models::{ctr::CtrModel, prescorer::PreScorer};
use registry::{Artifact, Channel, Digest, Draft, Kind, Registry, Target};
use serde::Serialize;

use crate::{index, vectors::Embeddings};

/// Members of a bundle, in data-flow order.
const MEMBERS: [Kind; 7] = [
    Kind::Features,
    Kind::Catalogue,
    Kind::Ctr,
    Kind::Prescorer,
    Kind::Visual,
    Kind::Embeddings,
    Kind::Index,
];

#[derive(Serialize)]
struct BundleFile {
    members: BTreeMap<&'static str, Digest>,
}

/// What is to serve together, chosen when a channel stood where it did.
struct Choice {
    generation: u64,
    members: BTreeMap<Kind, Artifact>,
}

/// Joins the newest artifact of each kind, checks that they belong together, and moves a channel
/// to the bundle with all of its traffic; with `unjudged` also a click model of which the gate has
/// said nothing.
///
/// # Errors
/// [`GateRefused`] if the gate refused the newest click model, or never judged it; if a kind is
/// missing, two members do not fit, or someone else moved the channel meanwhile.
pub async fn run(common: &CommonArgs, channel: &str, unjudged: bool) -> anyhow::Result<()> {
    let layout = Layout::new(common);
    let registry = Registry::open(&layout.registry())?;
    let choice = choose(&registry, channel, unjudged).await?;
    check(&registry, &choice.members).await?;
    let moved = publish(&registry, channel, choice).await?;
    if common.json {
        out!("{}", serde_json::to_string(&moved)?);
    } else {
        out!(
            "channel {channel} is at generation {}: bundle {}",
            moved.generation,
            moved.targets[0].bundle.short()
        );
    }
    Ok(())
}

/// The channel comes first: whoever moves it later may have seen newer members.
async fn choose(registry: &Registry, channel: &str, unjudged: bool) -> anyhow::Result<Choice> {
    let stands = registry.channel(channel).await?;
    let generation = stands.map_or(0, |channel| channel.generation);
    let mut members = BTreeMap::new();
    for kind in MEMBERS {
        let newest = registry.newest(kind).await?;
        let digest = &newest.digest;
        let judge = format!("`marquee gate --model {digest} --promote`");
        let reason = match registry.judgement(digest).await? {
            None if kind.is_judged() && !unjudged => Some(format!(
                "never judged; do it by {judge}, or publish it with --unjudged"
            )),
            word => word
                .and_then(|word| word.refusal())
                .map(|reason| format!("{reason}; train another, or judge it again by {judge}")),
        };
        if let Some(reason) = reason {
            bail!(GateRefused {
                reason: format!("{kind} {digest}: {reason}"),
            });
        }
        members.insert(kind, newest);
    }
    Ok(Choice {
        generation,
        members,
    })
}

/// Publishes the bundle and moves the channel from where it stood when the choice was made.
async fn publish(registry: &Registry, channel: &str, choice: Choice) -> anyhow::Result<Channel> {
    let Choice {
        generation,
        members,
    } = choice;
    let digests: BTreeMap<&'static str, Digest> = members
        .iter()
        .map(|(kind, artifact)| (kind.name(), artifact.digest.clone()))
        .collect();
    let dir = tempfile::tempdir().context("making a temporary folder")?;
    write_json(
        &dir.path().join("bundle.json"),
        &BundleFile { members: digests },
    )?;
    let mut metrics = BTreeMap::new();
    for (kind, figure) in [
        (Kind::Ctr, "auc"),
        (Kind::Index, "recall_at_100"),
        (Kind::Visual, "recall_at_10"),
    ] {
        metrics.extend(
            members[&kind]
                .metrics
                .get(figure)
                .map(|value| (figure.to_owned(), *value)),
        );
    }
    let parents = members
        .into_values()
        .map(|artifact| artifact.digest)
        .collect();
    let draft = Draft {
        kind: Kind::Bundle,
        dir: dir.path().to_owned(),
        parents,
        metrics,
        labels: BTreeMap::new(),
    };
    let bundle = registry.publish(draft).await?;
    let targets = vec![Target {
        bundle: bundle.digest,
        share: 1.0,
    }];
    Ok(registry.advance(channel, generation, targets).await?)
}

/// Features, models, vectors and index of one bundle were made for each other.
async fn check(registry: &Registry, members: &BTreeMap<Kind, Artifact>) -> anyhow::Result<()> {
    let mut folders = BTreeMap::new();
    for (kind, artifact) in members {
        folders.insert(*kind, registry.fetch(&artifact.digest).await?);
    }
    let spec = FeatureSpec::load(&folders[&Kind::Features].join("features.toml"))?;
    let same = |what: &str, found: &str, wanted: &str, mend: &str| {
        if found == wanted {
            return Ok(());
        }
        bail!("{what} is of {found}, wanted {wanted}: {mend}")
    };
    let ctr = CtrModel::load(&folders[&Kind::Ctr])?;
    same(
        "feature spec of the ctr model",
        &ctr.schema().digest,
        spec.digest(),
        Kind::Ctr.origin(),
    )?;
    let prescorer = PreScorer::load(&folders[&Kind::Prescorer])?;
    same(
        "feature spec of the pre-scorer",
        &prescorer.info().feature_digest,
        spec.digest(),
        Kind::Prescorer.origin(),
    )?;
    let embeddings = Embeddings::load(&folders[&Kind::Embeddings])?;
    let visual = members[&Kind::Visual].digest.as_str();
    same(
        "visual model of the embeddings",
        embeddings.model_digest.as_str(),
        visual,
        Kind::Embeddings.origin(),
    )?;
    let (_, info) = index::open(&folders[&Kind::Index])?;
    let found = info.embeddings_digest.as_str();
    same(
        "embeddings of the index",
        found,
        members[&Kind::Embeddings].digest.as_str(),
        Kind::Index.origin(),
    )
}

#[cfg(test)]
mod tests {
    use registry::{RegistryError, block_on};

    use super::*;

    #[test]
    fn a_channel_that_moved_since_the_choice_stays_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(&root.path().join("registry")).unwrap();
        let dir = root.path().join("member");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), "content").unwrap();
        for kind in MEMBERS {
            let draft = Draft {
                kind,
                dir: dir.clone(),
                parents: Vec::new(),
                metrics: BTreeMap::new(),
                labels: BTreeMap::new(),
            };
            block_on(registry.publish(draft)).unwrap();
        }
        let choose = || block_on(choose(&registry, "live", true)).unwrap();
        let unjudged = block_on(super::choose(&registry, "live", false))
            .err()
            .unwrap();
        assert!(unjudged.is::<GateRefused>(), "{unjudged:#}");
        let publish = |choice| block_on(publish(&registry, "live", choice));
        let (slow, fast) = (choose(), choose());
        assert_eq!(publish(fast).unwrap().generation, 1);
        let error = publish(slow).unwrap_err();
        let moved = error.downcast_ref::<RegistryError>();
        assert!(
            matches!(moved, Some(RegistryError::Moved { .. })),
            "{error:#}"
        );
        assert_eq!(publish(choose()).unwrap().generation, 2);
    }
}
