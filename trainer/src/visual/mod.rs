//! Trains the picture encoder on pairs: a scene, and the creative that was clicked in it.
//!
//! [`pairs`] reads them off the table, [`batch`] draws a step's pairs and negatives, [`fit`] is the loop over
//! all ranks, with pictures changed by [`augment`]; [`measure`] says what came of it.

mod augment;
mod batch;
mod config;
mod fit;
mod measure;
mod pairs;

use anyhow::{Context, bail};
use burn::backend::Autodiff;
use cli::{CommonArgs, Layout, Loaded, write_text};
use indicatif::ProgressBar;
use models::{Cpu, metrics::recall_at_k};
use registry::{Digest, Kind};
use serde::Serialize;

pub use augment::AugmentConfig;
pub use config::{NegativesConfig, VisualTrainConfig, VisualTrainConfigError};
pub use fit::{Features, Fitted, Task, fit};
pub use measure::{Retrieval, centred, pixel_average_vectors, ranks};
pub use pairs::{Gallery, Pairs, PairsError};

use crate::{
    collective::TcpGroup,
    job::{self, Job, Source},
    plot::Plot,
    tracking::Run,
};

#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    test_pairs: usize,
    #[serde(flatten)]
    test: Retrieval,
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
/// Whatever keeps it from its end.
pub async fn run_train(
    common: &CommonArgs,
    loaded: Loaded<VisualTrainConfig>,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    config.check()?;
    let met = job::meet(&config.collective, &loaded.resolved)?;
    let rank = met.membership.rank;
    let mut group = TcpGroup::connect(&met, "visual")?;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
        device: "cpu",
        world_size: met.membership.world_size,
        tracking: &config.tracking,
        resolved: &loaded.resolved,
    };
    let runs = Layout::new(common).runs();
    let open = |_: u64| {
        job::shared_run(&mut group, || {
            Run::start(&runs, Kind::Visual.name(), &loaded.resolved)
        })
    };
    let mut job = Job::start_with(common, Kind::Visual, source, open).await?;
    let catalogue = job.registry.newest(Kind::Catalogue).await?;
    let gallery = Gallery::load(&job.registry.fetch(&catalogue.digest).await?)?;
    let (train, test) = (
        gallery.pairs(&job.parts.train.load()?),
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
    let bar = if rank == 0 {
        job.bar(total)
    } else {
        ProgressBar::hidden()
    };
    let started = std::time::Instant::now();
    let mut last = f64::NAN;
    let run = &mut job.run;
    let each = |epoch: usize, loss: f64| {
        bar.inc(train.scenes.len() as u64);
        bar.set_message(format!("loss {loss:.4}"));
        last = loss;
        let line = serde_json::json!({"epoch": epoch, "loss": loss});
        let scalars = [("train/loss", loss)];
        let noted = run
            .log(&line)
            .and_then(|()| run.scalars(epoch as u64, &scalars));
        if let Err(error) = noted {
            tracing::warn!(%error, "metrics not written");
        }
    };
    let device = Default::default();
    let task = Task {
        config,
        gallery: &gallery,
        pairs: &train,
        frozen: None,
    };
    let fitted = fit::<Autodiff<Cpu>>(task, &device, &mut group, each)?;
    let samples_per_second = total as f64 / started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    if rank != 0 {
        return Ok(());
    }

    let found = Retrieval::of(&gallery, &test, &vectors(&fitted, config, &gallery)?);
    let recall_at_10 = |vectors: &Features| recall_at_k(&ranks(&gallery, &test, vectors), 10);
    let frozen = fitted.frozen.map(|own| recall_at_10(&centred(own)));
    write_text(&job.run.dir.join("recall.svg"), &curve(&found.ranks))?;

    fitted.model.save(&job.model_dir())?;
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
        loss: last,
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
    job.report(&report, &line)
}

/// The trained vectors of all pictures.
///
/// # Errors
/// If a vector is not finite.
pub fn vectors(
    fitted: &Fitted<Cpu>,
    config: &VisualTrainConfig,
    gallery: &Gallery,
) -> anyhow::Result<Features> {
    let model = &fitted.model;
    let (scenes, creatives) = match &fitted.frozen {
        // The backbone has seen them all.
        Some(frozen) if config.is_cacheable() => (
            model.project_scenes(&frozen.scenes)?,
            model.project_creatives(&frozen.creatives)?,
        ),
        _ => (
            model.embed_scenes(&gallery.scene_pictures)?,
            model.embed_creatives(&gallery.creative_pictures)?,
        ),
    };
    Ok(Features {
        scenes: scenes.as_flattened().to_vec(),
        creatives: creatives.as_flattened().to_vec(),
        dim: models::visual::EMBEDDING_DIM,
    })
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
