//! What every training verb does around its model: rows in; artifact, report and run folder out.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use cli::{CommonArgs, Layout, Preempted, Usage, out, progress, write_json};
use features::Schema;
use indicatif::ProgressBar;
use registry::{Artifact, Digest, Draft, FEATURE_DIGEST, Kind, Registry, now_us};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    backend::Device,
    checkpoint::{CheckpointConfig, Checkpoints, Folder},
    collective::{CollectiveConfig, Membership, ProcessGroup, Rendezvous, TcpGroup},
    split::{Parts, SplitConfig},
    table::TrainingTable,
    tracking::{REPORT, Run, RunInfo, TrackingConfig, code_revision, mlflow::Sender},
};

/// What a configuration says of the rows to learn from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name of the training table.
    pub table: &'a str,
    /// What is held out.
    pub split: &'a SplitConfig,
    /// Seed of the run, for the lineage.
    pub seed: u64,
    /// Where the dense half runs.
    pub device: &'a str,
    /// Processes.
    pub world_size: usize,
    /// Who else hears of the run.
    pub tracking: &'a TrackingConfig,
    /// The whole configuration.
    pub resolved: &'a str,
}

/// Which run is gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest of the same configuration and data that is not done, if there is one.
    Auto,
    /// None: a new run.
    Never,
    /// The run of a folder.
    Run(PathBuf),
}

impl FromStr for Resume {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" | "latest" => Self::Auto,
            "never" => Self::Never,
            path => Self::Run(path.into()),
        })
    }
}

impl Resume {
    fn open(&self, runs: &Path, name: &str, resolved: &str, digest: &str) -> anyhow::Result<Run> {
        let found = match self {
            Self::Auto => Run::unfinished(runs, name, digest)?,
            Self::Never => None,
            Self::Run(dir) => Some(dir.clone()),
        };
        match found {
            Some(dir) => Run::resume(&dir),
            None => Run::start_resumable(runs, name, resolved, digest),
        }
    }
}

/// What `marquee train` takes besides the flags of all verbs.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    /// Where the network is trained: cpu, or in a build with that feature cuda, wgpu (Vulkan) or libtorch (on the CPU)
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Run to go on with: auto (the newest unfinished one of the same configuration and data),
    /// never, or a run's folder
    #[arg(long, default_value = "auto", value_name = "auto|never|DIR")]
    pub resume: Resume,
}

impl TrainArgs {
    /// Refuses what trees cannot do: they grow on the CPU, in one go.
    ///
    /// # Errors
    /// [`Usage`] that names the flag.
    pub fn check_for_trees(&self) -> Result<(), Usage> {
        let refused = |flag: &str| {
            let what = "a pre-scorer is trained on the CPU, in one go: leave it out";
            Err(Usage(format!("{flag}: {what}")))
        };
        if self.device != Device::Cpu {
            return refused(&format!("--device {}", self.device.name()));
        }
        match &self.resume {
            Resume::Run(dir) => refused(&format!("--resume {}", dir.display())),
            Resume::Auto | Resume::Never => Ok(()),
        }
    }
}

/// How a run can be interrupted and gone on with.
#[derive(Debug)]
pub struct Saving<'a> {
    /// Which run is gone on with.
    pub resume: &'a Resume,
    /// How often it is saved, and where.
    pub checkpoint: &'a CheckpointConfig,
    /// All that decides what it computes, but for the version of its table.
    pub computes: String,
    /// All ranks.
    pub met: &'a Arc<Rendezvous>,
}

/// A run that goes on from a checkpoint: what was told of later steps and epochs does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resumed {
    /// Steps so far.
    pub step: u64,
    /// Whole epochs so far.
    pub epoch: u64,
    /// Rows or pairs so far.
    pub samples: u64,
}

impl Resumed {
    /// Puts the bar where the run stands.
    pub fn show(self, bar: &ProgressBar) {
        bar.set_position(self.samples);
        bar.println(format!("going on after step {}", self.step));
    }
}

/// One run of a training verb.
#[derive(Debug)]
pub struct Job {
    /// The rows, not read yet.
    pub parts: Parts,
    /// Columns of the rows.
    pub schema: Schema,
    /// Version of the table that was read.
    pub table_version: u64,
    /// Where models go.
    pub registry: Registry,
    /// Folder of the run.
    pub run: Run,
    kind: Kind,
    labels: BTreeMap<String, String>,
    reports: PathBuf,
    as_json: bool,
}

impl Job {
    /// Reads and splits the table, and opens a run folder that records the configuration.
    ///
    /// # Errors
    /// If table, registry or run folder cannot be had, or a part of the split is empty.
    pub async fn start(
        common: &CommonArgs,
        kind: Kind,
        source: Source<'_>,
    ) -> anyhow::Result<Self> {
        let runs = Layout::new(common).runs();
        let run = |_: u64| Run::start(&runs, kind.name(), source.resolved);
        Self::start_with(common, kind, source, run).await
    }

    /// As [`Self::start`], by all ranks together: with a run that is perhaps not done yet, and its checkpoints.
    ///
    /// # Errors
    /// As [`Self::start`]; if checkpoints cannot be had, or a rank was lost.
    pub async fn start_resumable(
        common: &CommonArgs,
        kind: Kind,
        source: Source<'_>,
        saving: Saving<'_>,
    ) -> anyhow::Result<(Self, Checkpoints<TcpGroup>)> {
        let mut group = TcpGroup::connect(saving.met, "checkpoints")?;
        let mut digest = String::new();
        let run = |version: u64| {
            let text = format!("{}\ntable_version = {version}\n", saving.computes);
            digest = Digest::of(text.as_bytes()).to_string();
            let runs = Layout::new(common).runs();
            let open = || {
                saving
                    .resume
                    .open(&runs, kind.name(), source.resolved, &digest)
            };
            shared_run(&mut group, open)
        };
        let job = Self::start_with(common, kind, source, run).await?;
        let folder = match &saving.checkpoint.url {
            Some(url) => Folder::remote(url, &digest)
                .context(Usage("checkpoints cannot go there".to_owned()))?,
            None => Folder::local(&job.run.dir.join("checkpoints"))?,
        };
        if group.rank() == 0 && *saving.resume == Resume::Never {
            folder.clear()?;
        }
        group.barrier()?;
        let config = saving.checkpoint.clone();
        Ok((job, Checkpoints::new(folder, config, digest, group)))
    }

    /// With a run folder that is found when the table's version is known.
    async fn start_with(
        common: &CommonArgs,
        kind: Kind,
        source: Source<'_>,
        run: impl FnOnce(u64) -> anyhow::Result<Run>,
    ) -> anyhow::Result<Self> {
        let layout = Layout::new(common);
        let table = TrainingTable::open(&layout.table(source.table)).await?;
        let parts = source.split.parts(&table.rows()?)?;
        let mut labels = BTreeMap::from([
            ("table".to_owned(), source.table.to_owned()),
            ("table_version".to_owned(), table.version().to_string()),
            ("seed".to_owned(), source.seed.to_string()),
            (
                "config".to_owned(),
                Digest::of(source.resolved.as_bytes()).to_string(),
            ),
        ]);
        let revision = code_revision();
        labels.extend(
            revision
                .clone()
                .map(|revision| ("code_revision".to_owned(), revision)),
        );
        let info = RunInfo {
            kind: kind.name().to_owned(),
            started_us: now_us(),
            table: source.table.to_owned(),
            table_version: table.version(),
            spec: table.schema().digest.clone(),
            seed: source.seed,
            device: source.device.to_owned(),
            world_size: source.world_size,
            overrides: common.overrides.clone(),
            code_revision: revision,
        };
        let mut run = run(table.version())?;
        if run.is_written() {
            info.write(&run.dir)?;
            if !source.tracking.mlflow.is_empty() {
                let sender = Sender::start(source.tracking, &run.dir, source.resolved, &info)?;
                run.send_to(sender);
            }
        }
        Ok(Self {
            parts,
            schema: table.schema().clone(),
            table_version: table.version(),
            registry: Registry::open(&layout.registry())?,
            run,
            kind,
            labels,
            reports: layout.reports(),
            as_json: common.json,
        })
    }

    /// What a run says that was stopped and has saved itself.
    pub fn preempted(mut self, step: u64) -> anyhow::Error {
        self.run.finish_sending(&[], false);
        let saved = format!("{} at step {step}", self.run.dir.display());
        Preempted { saved }.into()
    }

    /// A bar for so many samples.
    pub fn bar(&self, samples: usize) -> ProgressBar {
        if self.as_json {
            return ProgressBar::hidden();
        }
        progress(samples as u64, &format!("train {}", self.kind))
    }

    /// Folder for the model's files.
    pub fn model_dir(&self) -> PathBuf {
        self.run.dir.join("model")
    }

    /// The feature spec of the table, as a parent; none if it was never published, as that of rows that were
    /// imported.
    ///
    /// # Errors
    /// If the registry cannot be read.
    pub async fn features(&self) -> anyhow::Result<Vec<Digest>> {
        let specs = self.registry.list(Some(Kind::Features)).await?;
        let of_table = specs.into_iter().rev().find(|spec| {
            let digest = spec.labels.get(FEATURE_DIGEST);
            digest.is_some_and(|digest| *digest == self.schema.digest)
        });
        Ok(of_table.into_iter().map(|spec| spec.digest).collect())
    }

    /// Says of what is published how it came about.
    pub fn label(&mut self, name: &str, value: String) {
        self.labels.insert(name.to_owned(), value);
    }

    /// Publishes what lies in [`Self::model_dir`].
    ///
    /// # Errors
    /// If the registry refuses.
    pub async fn publish(
        &self,
        parents: Vec<Digest>,
        metrics: impl IntoIterator<Item = (&str, f64)>,
    ) -> anyhow::Result<Artifact> {
        let metrics = metrics.into_iter();
        let draft = Draft {
            kind: self.kind,
            dir: self.model_dir(),
            parents,
            metrics: metrics
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            labels: self.labels.clone(),
        };
        Ok(self.registry.publish(draft).await?)
    }

    /// Writes the report into the run's folder and among the reports, and prints it, or `lines`
    /// for people.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn report(&mut self, report: &impl Serialize, lines: &str) -> anyhow::Result<()> {
        let path = self.run.dir.join(REPORT);
        write_json(&path, report)?;
        let beside = ["config.resolved.toml", "reliability.svg"];
        let mut files = vec![path];
        files.extend(beside.map(|name| self.run.dir.join(name)));
        files.retain(|file| file.exists());
        self.run.finish_sending(&files, true);
        write_json(&self.reports.join(format!("{}.json", self.kind)), report)?;
        if self.as_json {
            out!("{}", serde_json::to_string(report)?);
        } else {
            out!("run in {}", self.run.dir.display());
            out!("{lines}");
        }
        Ok(())
    }
}

/// Meets the other ranks of a run, all of the same configuration.
///
/// # Errors
/// If they cannot be met; [`Usage`] where they do not belong together.
pub fn meet(collective: &CollectiveConfig, resolved: &str) -> anyhow::Result<Arc<Rendezvous>> {
    let membership = Membership::from_environment()?;
    let digest = Digest::of(resolved.as_bytes());
    Rendezvous::join(membership, collective, digest.as_str()).map_err(|error| {
        let lasting = error.is_lasting();
        let error = anyhow::Error::from(error);
        match lasting {
            true => error.context(Usage("the ranks do not belong together".to_owned())),
            false => error,
        }
    })
}

/// Becomes true with SIGTERM or SIGINT, which end the process as any until this is called: before training
/// begins there is nothing to save.
///
/// # Errors
/// If the system refuses.
pub fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watching for signals")?;
    }
    Ok(stop)
}

/// The run that rank 0 opens and the others follow.
fn shared_run(
    group: &mut impl ProcessGroup,
    open: impl FnOnce() -> anyhow::Result<Run>,
) -> anyhow::Result<Run> {
    let found = match group.rank() {
        0 => Some(open()?),
        _ => None,
    };
    let mut dir: Vec<u8> = Vec::new();
    dir.extend(found.iter().flat_map(|run| run.dir.as_os_str().as_bytes()));
    group.broadcast(0, &mut dir)?;
    Ok(found.unwrap_or_else(|| Run::follow(OsStr::from_bytes(&dir).into())))
}
