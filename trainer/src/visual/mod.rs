//! Trains the picture encoder on pairs: a scene, and the creative that was clicked in it.
//!
//! [`pairs`] reads them off the table, [`batch`] draws a step's pairs and negatives, [`fit`] is the loop,
//! [`learner`] its step over all ranks, with pictures changed by [`augment`]; [`measure`] says what came of it.

mod augment;
mod batch;
mod config;
mod fit;
mod learner;
mod measure;
mod pairs;

use std::{fs, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::{Context, bail};
use cli::{CommonArgs, Layout, Loaded, write_text};
use indicatif::ProgressBar;
use models::metrics::recall_at_k;
use registry::{Digest, Kind, Registry};
use serde::Serialize;

pub use augment::AugmentConfig;
pub use config::{NegativesConfig, VisualTrainConfig, VisualTrainConfigError};
pub use fit::{Features, Fitted, Measured, Progress, Task, Trained, fit};
pub use measure::{Retrieval, centred, pixel_average_vectors, ranks};
pub use pairs::{Gallery, Pairs, PairsError};

use crate::{
    backend::{StepBackend, Training},
    checkpoint::Checkpoints,
    collective::{ProcessGroup, TcpGroup},
    job::{self, Job, Saving, Source, TrainArgs},
    plot::Plot,
    tracking::Run,
};

#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    test_pairs: usize,
    #[serde(flatten)]
    test: Retrieval,
    /// Of the validation rows; none without clicks among them.
    valid_recall_at_10: Option<f64>,
    /// Of a random order: 10 over the number of candidates.
    recall_at_10_random: f64,
    /// Of the nearest average colours.
    recall_at_10_pixel_average: f64,
    /// Of the published backbone's own vectors, centred; none of fresh weights.
    recall_at_10_frozen: Option<f64>,
    loss: f64,
    samples_per_second: f64,
    artifact: Digest,
}

/// Trains the visual model, together with the other ranks if there are any; rank 0 measures it on clicks of
/// the test rows and publishes it.
///
/// # Errors
/// Whatever keeps it from its end; [`cli::Preempted`] if it was stopped and saved itself.
pub async fn run_train(
    common: &CommonArgs,
    loaded: Loaded<VisualTrainConfig>,
    args: &TrainArgs,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    config.check()?;
    let met = job::meet(&config.collective, &loaded.resolved)?;
    let rank = met.membership.rank;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
        device: args.device.name(),
        world_size: met.membership.world_size,
        tracking: &config.tracking,
        resolved: &loaded.resolved,
    };
    let registry = Registry::open(&Layout::new(common).registry())?;
    let catalogue = registry.newest(Kind::Catalogue).await?;
    let backbone = backbone(config)?;
    let saving = Saving {
        resume: &args.resume,
        checkpoint: &config.checkpoint,
        computes: computes(config, &catalogue.digest, &backbone)?,
        met: &met,
    };
    let (mut job, mut checkpoints) =
        Job::start_resumable(common, Kind::Visual, source, saving).await?;
    let gallery = Gallery::load(&registry.fetch(&catalogue.digest).await?)?;
    let (train, valid, test) = (
        gallery.pairs(&job.parts.train.load()?),
        gallery.pairs(&job.parts.valid.load()?),
        gallery.pairs(&job.parts.test.load()?),
    );
    if train.scenes.len() < config.batch_size || test.scenes.is_empty() {
        bail!(
            "{} clicked pairs for training and {} for testing: wanted at least batch_size ({}) and 1",
            train.scenes.len(),
            test.scenes.len(),
            config.batch_size
        );
    }
    let total = train.scenes.len() * config.epochs;
    let bar = match rank {
        0 => job.bar(total),
        _ => ProgressBar::hidden(),
    };
    let (mut resumed, run) = (0, &mut job.run);
    let report = |told: &Progress| {
        if let Progress::Resumed(at) = told {
            resumed = at.samples as usize;
        }
        if rank == 0 {
            show(told, &bar, train.scenes.len());
        }
        if let Err(error) = note(told, run) {
            tracing::warn!(%error, "metrics not written");
        }
    };
    let stop = job::stop_on_signals()?;
    let started = std::time::Instant::now();
    let task = Task {
        config,
        gallery: &gallery,
        pairs: &train,
        valid: &valid,
        frozen: None,
    };
    let training = OnBackend {
        task,
        checkpoints: &mut checkpoints,
        stop: &stop,
        report,
    };
    let trained = args.device.train(&met, training)?;
    bar.finish_and_clear();
    let fitted = match trained {
        Trained::Stopped { step } => return Err(job.preempted(step)),
        Trained::Done(_) if rank != 0 => return Ok(()),
        Trained::Done(fitted) => *fitted,
    };
    let samples_per_second = (total - resumed) as f64 / started.elapsed().as_secs_f64();

    let found = Retrieval::of(&gallery, &test, &fitted.vectors);
    let recall_at_10 = |vectors: &Features| recall_at_k(&ranks(&gallery, &test, vectors), 10);
    let frozen = fitted.frozen.map(|own| recall_at_10(&centred(own)));
    write_text(&job.run.dir.join("recall.svg"), &curve(&found.ranks))?;

    fitted.model.save(&job.model_dir())?;
    for (file, digest) in &backbone {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        job.label(&format!("backbone/{name}"), digest.to_string());
    }
    let metrics = [
        ("recall_at_1", found.recall_at_1),
        ("recall_at_10", found.recall_at_10),
        ("recall_at_100", found.recall_at_100),
        ("map", found.map),
        ("alignment", found.alignment),
        ("uniformity", found.uniformity),
    ];
    let artifact = job
        .publish(vec![catalogue.digest], metrics)
        .await
        .context("publishing")?;
    let report = Report {
        pairs: train.scenes.len(),
        test_pairs: test.scenes.len(),
        recall_at_10_random: gallery.random_recall(&test, 10),
        recall_at_10_pixel_average: recall_at_10(&pixel_average_vectors(&gallery)),
        recall_at_10_frozen: frozen,
        test: found,
        valid_recall_at_10: (!valid.scenes.is_empty())
            .then(|| recall_at_k(&ranks(&gallery, &valid, &fitted.vectors), 10)),
        loss: fitted.loss,
        samples_per_second,
        artifact: artifact.digest,
    };
    let frozen = report
        .recall_at_10_frozen
        .map(|recall| format!("frozen backbone {recall:.4}, "));
    let line = format!(
        "test of visual {}: recall@10 {:.4}, {}random {:.4}, pixel average {:.4}, mAP {:.4}, {} pairs; {:.0} pairs/s",
        report.artifact.short(),
        report.test.recall_at_10,
        frozen.unwrap_or_default(),
        report.recall_at_10_random,
        report.recall_at_10_pixel_average,
        report.test.map,
        report.test_pairs,
        report.samples_per_second,
    );
    job.report(&report, &line)?;
    Ok(checkpoints.clear_remote()?)
}

/// All that decides what a run computes: how it is saved and spread does not, what is in files that it names
/// does.
fn computes(
    config: &VisualTrainConfig,
    catalogue: &Digest,
    backbone: &[(PathBuf, Digest)],
) -> anyhow::Result<String> {
    let mut config = config.clone();
    config.checkpoint = Default::default();
    config.collective = Default::default();
    config.tracking = Default::default();
    let mut text = toml::to_string(&config).context("writing the configuration")?;
    text += &format!("\ncatalogue = \"{catalogue}\"");
    for (file, digest) in backbone {
        text += &format!("\n{} = \"{digest}\"", file.display());
    }
    Ok(text)
}

/// The files of published weights, and what they hold.
fn backbone(config: &VisualTrainConfig) -> anyhow::Result<Vec<(PathBuf, Digest)>> {
    let files = config.pretrained.files().into_iter();
    let digest = |file: PathBuf| {
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok((file, Digest::of(&bytes)))
    };
    files.map(digest).collect()
}

/// The loop on whatever backend.
struct OnBackend<'a, R> {
    task: Task<'a>,
    checkpoints: &'a mut Checkpoints<TcpGroup>,
    stop: &'a AtomicBool,
    report: R,
}

impl<R: FnMut(&Progress)> Training for OnBackend<'_, R> {
    type Trained = Trained;

    fn on<B: StepBackend, D: ProcessGroup>(
        self,
        device: &B::Device,
        connect: impl Fn(&str) -> anyhow::Result<D>,
    ) -> anyhow::Result<Trained> {
        let mut group = connect("visual")?;
        let Self {
            task,
            checkpoints,
            stop,
            report,
        } = self;
        fit::<B, _>(task, device, &mut group, checkpoints, stop, report)
    }
}

fn show(told: &Progress, bar: &ProgressBar, pairs: usize) {
    match told {
        Progress::Resumed(resumed) => resumed.show(bar),
        Progress::Epoch {
            epoch,
            step,
            loss,
            valid,
        } => {
            tracing::info!(step, loss, "trained");
            bar.set_position(epoch * pairs as u64);
            bar.set_message(format!("loss {loss:.4}"));
            if let Some(valid) = valid {
                let recall = valid.recall_at_10;
                bar.println(format!(
                    "epoch {epoch}: loss {loss:.4}, valid recall@10 {recall:.4}"
                ));
            }
        }
    }
}

fn note(told: &Progress, run: &mut Run) -> anyhow::Result<()> {
    match told {
        Progress::Resumed(resumed) => run.rewind(resumed.step, resumed.epoch),
        Progress::Epoch {
            step, loss, valid, ..
        } => {
            let recall = valid.map(|valid| ("valid/recall_at_10", valid.recall_at_10));
            let scalars = [("train/loss", *loss)].into_iter().chain(recall);
            run.scalars(*step, &scalars.collect::<Vec<_>>())?;
            run.log(told)
        }
    }
}

/// Recall over the number of candidates kept, as a plot.
fn curve(ranks: &[usize]) -> String {
    let points: Vec<(f64, f64)> = (0..=100)
        .step_by(5)
        .map(|k| (k as f64, recall_at_k(ranks, k)))
        .collect();
    let plot = Plot {
        title: "Recall of the clicked creative",
        x: "candidates kept",
        y: "recall",
        points: &points,
        diagonal: false,
        dots: false,
    };
    plot.to_svg()
}

#[cfg(test)]
mod tests;
