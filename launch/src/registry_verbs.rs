//! `marquee registry list | show | channel | graph | promote | gc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use cli::{GateRefused, out};
use comfy_table::{CellAlignment, Table, presets};
use registry::{
    Artifact, Channel, Digest, Keep, Kind, Registry, RegistryError, Stage, block_on, now_us,
};

use crate::{
    args::LookArgs,
    text::{bytes, grouped, time},
};

/// What to look at.
#[derive(Debug, clap::Subcommand)]
#[allow(
    missing_docs,
    reason = "a comment on the shared flags would become each verb's help"
)]
pub enum RegistryVerb {
    /// Artifacts in the order of publishing, oldest first
    List {
        /// Only one kind: features, catalogue, ctr, prescorer, visual, embeddings, index, bundle
        #[arg(long)]
        kind: Option<Kind>,
        #[command(flatten)]
        look: LookArgs,
    },
    /// One artifact: files, figures, lineage
    Show {
        /// Digest, or its first digits
        digest: String,
        #[command(flatten)]
        look: LookArgs,
    },
    /// What a channel serves
    Channel {
        /// Name of the channel
        #[arg(default_value = "live")]
        name: String,
        #[command(flatten)]
        look: LookArgs,
    },
    /// The lineage of one artifact, or of all, as a Mermaid flowchart
    Graph {
        /// Digest, or its first digits; by default all artifacts
        digest: Option<String>,
        #[command(flatten)]
        look: LookArgs,
    },
    /// Set an artifact's stage: candidate, shadow, canary, live a step at a time, or retired
    Promote {
        /// Digest, or its first digits
        digest: String,
        /// The stage
        stage: Stage,
        #[command(flatten)]
        look: LookArgs,
    },
    /// Say which artifacts no channel, stage or child needs, and with --remove remove them
    Gc {
        /// Keep so many of each kind, the newest
        #[arg(long, default_value_t = 3)]
        keep: usize,
        /// Keep what so many last generations of every channel serve
        #[arg(long, default_value_t = 5)]
        generations: usize,
        /// Keep what is younger, in hours
        #[arg(long, default_value_t = 24)]
        hours: u32,
        /// Remove them
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        look: LookArgs,
    },
}

/// Runs one of the verbs.
///
/// # Errors
/// If there is no registry, it is damaged, or what is asked for is not in it.
pub fn run(verb: RegistryVerb) -> anyhow::Result<()> {
    let look = match &verb {
        RegistryVerb::List { look, .. }
        | RegistryVerb::Show { look, .. }
        | RegistryVerb::Channel { look, .. }
        | RegistryVerb::Graph { look, .. }
        | RegistryVerb::Promote { look, .. }
        | RegistryVerb::Gc { look, .. } => look.clone(),
    };
    cli::init_logging(look.verbose);
    let registry = open(&look.layout().registry())?;
    match verb {
        RegistryVerb::List { kind, .. } => list(&registry, kind, look.json),
        RegistryVerb::Show { digest, .. } => show(&registry, &digest, look.json),
        RegistryVerb::Channel { name, .. } => channel(&registry, &name, look.json),
        RegistryVerb::Graph { digest, .. } => graph(&registry, digest.as_deref(), look.json),
        RegistryVerb::Promote { digest, stage, .. } => {
            let artifact = resolve(&registry, &digest)?;
            block_on(registry.set_stage(&artifact.digest, stage)).map_err(refusal)?;
            out!("{} {} is {stage}", artifact.kind, artifact.digest.short());
            Ok(())
        }
        RegistryVerb::Gc {
            keep,
            generations,
            hours,
            remove,
            ..
        } => {
            let keep = Keep {
                newest: keep,
                generations,
                after_us: now_us() - i64::from(hours) * 3_600_000_000,
            };
            collect(&registry, &keep, remove, look.json)
        }
    }
}

/// What the gate refused ends as the gate itself does.
fn refusal(error: RegistryError) -> anyhow::Error {
    match &error {
        RegistryError::Refused { digest, reason } => {
            let again = format!("`marquee gate --model {digest} --promote` judges it again");
            let reason = format!("{reason}; {again}");
            GateRefused { reason }.into()
        }
        _ => error.into(),
    }
}

/// Opens a registry that is there; looking makes none.
pub(crate) fn open(root: &Path) -> anyhow::Result<Registry> {
    ensure!(
        root.is_dir(),
        "no registry at {}: name the data folder with --root, or fill it with `launch/quickstart`",
        root.display()
    );
    Ok(Registry::open(root)?)
}

fn list(registry: &Registry, kind: Option<Kind>, as_json: bool) -> anyhow::Result<()> {
    let artifacts = block_on(registry.list(kind))?;
    if as_json {
        out!("{}", serde_json::to_string(&artifacts)?);
        return Ok(());
    }
    let mut table = new_table(&["kind", "digest", "published", "files", "size", "figures"]);
    for artifact in &artifacts {
        table.add_row([
            artifact.kind.to_string(),
            artifact.digest.short().to_owned(),
            time(artifact.published_us),
            artifact.files.len().to_string(),
            bytes(artifact.bytes()),
            figures(&artifact.metrics),
        ]);
    }
    align_right(&mut table, &[3, 4]);
    out!("{table}");
    Ok(())
}

fn show(registry: &Registry, digest: &str, as_json: bool) -> anyhow::Result<()> {
    let artifact = resolve(registry, digest)?;
    let stage = block_on(registry.stage(&artifact.digest))?;
    let judgement = block_on(registry.judgement(&artifact.digest))?;
    if as_json {
        let mut value = serde_json::to_value(&artifact)?;
        value["stage"] = serde_json::to_value(stage)?;
        value["judgement"] = serde_json::to_value(judgement)?;
        out!("{value}");
        return Ok(());
    }
    out!("{} {}", artifact.kind, artifact.digest);
    out!("published {}, stage {}", time(artifact.published_us), stage);
    if let Some(word) = judgement {
        let when = time(word.judged_us);
        match word.refusal() {
            None => out!("the gate let it pass {when}"),
            Some(reason) => out!("the gate refused it {when}: {reason}"),
        }
    }
    let mut files = new_table(&["file", "size", "sha-256"]);
    for (name, file) in &artifact.files {
        files.add_row([
            name.clone(),
            bytes(file.bytes),
            file.sha256.short().to_owned(),
        ]);
    }
    align_right(&mut files, &[1]);
    out!("{files}");
    for (name, value) in &artifact.metrics {
        out!("{name} = {value}");
    }
    for (name, value) in &artifact.labels {
        out!("{name} = {value}");
    }
    for parent in &artifact.parents {
        let kind = block_on(registry.get(parent)).map_or_else(
            |_missing| "not in this registry".to_owned(),
            |parent| parent.kind.to_string(),
        );
        out!("made from {} ({kind})", parent.short());
    }
    Ok(())
}

/// Artifacts and what they were made from, from the parents to the children.
fn graph(registry: &Registry, digits: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let mut artifacts = block_on(registry.list(None))?;
    if let Some(digits) = digits {
        let mut needed = BTreeSet::new();
        let mut open = vec![resolve(registry, digits)?.digest];
        while let Some(digest) = open.pop() {
            let of = artifacts.iter().find(|artifact| artifact.digest == digest);
            open.extend(of.into_iter().flat_map(|artifact| artifact.parents.clone()));
            needed.insert(digest);
        }
        artifacts.retain(|artifact| needed.contains(&artifact.digest));
    }
    if as_json {
        out!("{}", serde_json::to_string(&artifacts)?);
        return Ok(());
    }
    out!("flowchart LR");
    for artifact in &artifacts {
        let stage = block_on(registry.stage(&artifact.digest))?;
        let short = artifact.digest.short();
        out!("    {short}[\"{} {short}<br>{stage}\"]", artifact.kind);
    }
    for artifact in &artifacts {
        for parent in &artifact.parents {
            out!("    {} --> {}", parent.short(), artifact.digest.short());
        }
    }
    Ok(())
}

fn collect(registry: &Registry, keep: &Keep, remove: bool, as_json: bool) -> anyhow::Result<()> {
    let found = block_on(registry.collect(keep, remove))?;
    let size: u64 = found.removed.iter().map(Artifact::bytes).sum();
    if as_json {
        let value = serde_json::json!({
            "removed": if remove { &found.removed[..] } else { &[] },
            "unneeded": found.removed,
            "kept": found.kept.len(),
            "bytes": size,
        });
        out!("{value}");
        return Ok(());
    }
    let mut table = new_table(&["kind", "digest", "published", "size"]);
    for artifact in &found.removed {
        table.add_row([
            artifact.kind.to_string(),
            artifact.digest.short().to_owned(),
            time(artifact.published_us),
            bytes(artifact.bytes()),
        ]);
    }
    align_right(&mut table, &[3]);
    if !found.removed.is_empty() {
        out!("{table}");
    }
    let (count, kept) = (found.removed.len(), found.kept.len());
    let size = bytes(size);
    match remove {
        true => out!("{count} artifacts removed ({size}), {kept} kept"),
        false => out!(
            "{count} artifacts that nothing needs ({size}), {kept} kept; --remove removes them"
        ),
    }
    Ok(())
}

/// The artifact whose digest starts with these digits.
fn resolve(registry: &Registry, digits: &str) -> anyhow::Result<Artifact> {
    if let Ok(digest) = digits.parse::<Digest>() {
        return Ok(block_on(registry.get(&digest))?);
    }
    let fits = |artifact: &Artifact| artifact.digest.as_str().starts_with(digits);
    let mut found: Vec<Artifact> = block_on(registry.list(None))?;
    found.retain(fits);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => bail!("no artifact starts with `{digits}`: `marquee registry list` shows all"),
        many => {
            let shorts: Vec<&str> = found
                .iter()
                .map(|artifact| artifact.digest.short())
                .collect();
            bail!("`{digits}` fits {many} artifacts: {}", shorts.join(", "))
        }
    }
}

fn channel(registry: &Registry, name: &str, as_json: bool) -> anyhow::Result<()> {
    let channel = block_on(registry.channel(name))?;
    let channel = channel.with_context(|| {
        format!("channel `{name}` has never been moved: `marquee index publish --channel {name}` does it")
    })?;
    if as_json {
        out!("{}", serde_json::to_string(&channel)?);
        return Ok(());
    }
    print_channel(registry, &channel)
}

fn print_channel(registry: &Registry, channel: &Channel) -> anyhow::Result<()> {
    let (generation, moved) = (channel.generation, time(channel.updated_us));
    out!(
        "channel {}: generation {generation}, moved {moved}",
        channel.name
    );
    let mut table = new_table(&["share", "bundle", "made of", "digest"]);
    for target in &channel.targets {
        let bundle = block_on(registry.get(&target.bundle))?;
        for (at, parent) in bundle.parents.iter().enumerate() {
            let kind = block_on(registry.get(parent))?.kind.to_string();
            let (share, name) = match at {
                0 => (
                    format!("{:.0} %", 100.0 * target.share),
                    target.bundle.short(),
                ),
                _ => (String::new(), ""),
            };
            table.add_row([share, name.to_owned(), kind, parent.short().to_owned()]);
        }
    }
    align_right(&mut table, &[0]);
    out!("{table}");
    Ok(())
}

/// Figures in one cell; whole numbers without decimals.
pub(crate) fn figures(metrics: &BTreeMap<String, f64>) -> String {
    let one = |(name, value): (&String, &f64)| {
        if value.fract() == 0.0 && value.abs() >= 10.0 {
            format!("{name} {}", grouped(value.abs() as u64))
        } else {
            format!("{name} {value:.4}")
        }
    };
    metrics.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use registry::Draft;

    use super::*;

    fn publish(registry: &Registry, text: &str) -> Artifact {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("features.toml"), text).unwrap();
        let draft = Draft {
            kind: Kind::Features,
            dir: dir.path().to_owned(),
            parents: Vec::new(),
            metrics: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        block_on(registry.publish(draft)).unwrap()
    }

    #[test]
    fn first_digits_are_enough_when_they_fit_one_artifact() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(root.path()).unwrap();
        let (one, other) = (publish(&registry, "a"), publish(&registry, "b"));
        let check = |digits: &str, expected: &Artifact| {
            assert_eq!(resolve(&registry, digits).unwrap(), *expected);
        };
        check(one.digest.short(), &one);
        check(other.digest.as_str(), &other);
        let error = resolve(&registry, "").unwrap_err().to_string();
        assert!(error.contains("fits 2 artifacts"), "{error}");
        let error = resolve(&registry, "xyz").unwrap_err().to_string();
        assert!(error.contains("no artifact starts with `xyz`"), "{error}");
    }

    #[test]
    fn looking_at_a_missing_registry_makes_none() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("registry");
        assert!(
            open(&missing)
                .unwrap_err()
                .to_string()
                .contains("no registry at")
        );
        assert!(!missing.exists());
    }
}
