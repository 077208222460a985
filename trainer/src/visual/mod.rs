//! Trains the picture encoder on pairs: a scene, and the creative that was clicked in it.

mod baseline;
mod pairs;

use std::collections::BTreeMap;

use anyhow::bail;
use burn::{
    backend::Autodiff,
    module::AutodiffModule,
    optim::{AdamWConfig, GradientsParams, Optimizer},
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};
use cli::{CommonArgs, Loaded, write_text};
use models::{
    Cpu,
    metrics::recall_at_k,
    visual::{ContrastBatch, EMBEDDING_DIM, VisualConfig, VisualModel, info_nce},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use registry::Kind;
use serde::{Deserialize, Serialize};

pub use baseline::{pixel_average_vectors, ranks};
pub use pairs::{Gallery, Pairs, PairsError};

use crate::{
    job::{Job, Source},
    plot::Plot,
    split::SplitConfig,
    tracking::TrackingConfig,
};

/// `configs/visual.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisualTrainConfig {
    /// Which trainer reads this file: `visual`.
    pub kind: String,
    /// Seed of weights and shuffling.
    pub seed: u64,
    /// Name of the training table.
    pub table: String,
    /// What is held out.
    pub split: SplitConfig,
    /// The network.
    pub model: VisualConfig,
    /// Pairs of a step; more gives more negatives.
    pub batch_size: usize,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Step size (AdamW).
    pub learning_rate: f64,
    /// Pull of the weights towards zero.
    pub weight_decay: f32,
    /// Who else hears of the run.
    pub tracking: TrackingConfig,
}

impl Default for VisualTrainConfig {
    fn default() -> Self {
        Self {
            kind: "visual".to_owned(),
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            model: VisualConfig::default(),
            batch_size: 256,
            epochs: 5,
            learning_rate: 1e-3,
            weight_decay: 0.05,
            tracking: TrackingConfig::default(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    pairs: usize,
    test_pairs: usize,
    recall_at_1: f64,
    recall_at_10: f64,
    recall_at_100: f64,
    /// Of a random order: 10 over the number of candidates.
    recall_at_10_random: f64,
    /// Of the nearest average colours.
    recall_at_10_pixel_average: f64,
    loss: f64,
    samples_per_second: f64,
    artifact: registry::Digest,
}

/// Trains a tower on pairs; `each` hears the mean loss of every epoch.
///
/// # Errors
/// If the shape of the network cannot be, or the loss is no number.
pub fn fit<B: AutodiffBackend>(
    config: &VisualTrainConfig,
    gallery: &Gallery,
    pairs: &Pairs,
    device: &B::Device,
    mut each: impl FnMut(usize, f64),
) -> anyhow::Result<VisualModel<B::InnerBackend>> {
    if config.batch_size < 2 || config.epochs == 0 {
        bail!(
            "batch_size is {} and epochs {}: wanted at least 2 and 1",
            config.batch_size,
            config.epochs
        );
    }
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    B::seed(device, config.seed);
    let mut tower = config.model.init::<B>(&mut random, device)?;
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(config.weight_decay)
        .init();
    let prepare = |pictures: &[models::visual::Picture]| -> Vec<Vec<f32>> {
        pictures
            .iter()
            .map(|picture| config.model.patches(picture))
            .collect()
    };
    let (scene_patches, creative_patches) = (
        prepare(&gallery.scene_pictures),
        prepare(&gallery.creative_pictures),
    );
    let (tokens, width) = (
        config.model.vit.num_patches(),
        config.model.vit.patch_values(),
    );
    let stack = |patches: &[Vec<f32>], ids: &[usize]| {
        let values: Vec<f32> = ids
            .iter()
            .flat_map(|id| patches[*id].iter().copied())
            .collect();
        Tensor::<B, 3>::from_data(TensorData::new(values, [ids.len(), tokens, width]), device)
    };
    let correction = log_frequency(&pairs.creatives, gallery.creative_pictures.len());
    let mut order: Vec<usize> = (0..pairs.scenes.len()).collect();
    for epoch in 1..=config.epochs {
        order.shuffle(&mut random);
        let (mut sum, mut steps) = (0.0, 0u32);
        // A last batch of one pair has no negatives and says nothing.
        for chunk in order
            .chunks(config.batch_size)
            .filter(|chunk| chunk.len() > 1)
        {
            let (scenes, scene_rows) = distinct(chunk.iter().map(|at| pairs.scenes[*at]));
            let (creatives, creative_rows) = distinct(chunk.iter().map(|at| pairs.creatives[*at]));
            let correction: Vec<f32> = chunk
                .iter()
                .map(|at| correction[pairs.creatives[*at]])
                .collect();
            let loss = info_nce(
                tower.creatives(stack(&creative_patches, &creatives)),
                tower.scenes(stack(&scene_patches, &scenes)),
                tower.scale(),
                ContrastBatch {
                    creatives: &creative_rows,
                    scenes: &scene_rows,
                    correction: &correction,
                },
            );
            let gradients = GradientsParams::from_grads(loss.backward(), &tower);
            tower = optimizer.step(config.learning_rate, tower, gradients);
            let loss = loss
                .into_data()
                .convert::<f64>()
                .as_slice::<f64>()
                .map_or(f64::NAN, |loss| loss[0]);
            if !loss.is_finite() {
                bail!("the loss is {loss} in epoch {epoch}: lower learning_rate");
            }
            sum += loss;
            steps += 1;
        }
        each(epoch, sum / f64::from(steps.max(1)));
    }
    Ok(VisualModel::new(
        config.model.clone(),
        tower.valid(),
        device.clone(),
    ))
}

/// The distinct ids, and for each id its place among them: a picture goes through the network
/// once a batch.
fn distinct(ids: impl Iterator<Item = usize>) -> (Vec<usize>, Vec<usize>) {
    let mut all: Vec<usize> = Vec::new();
    let mut places = BTreeMap::new();
    let rows = ids
        .map(|id| {
            *places.entry(id).or_insert_with(|| {
                all.push(id);
                all.len() - 1
            })
        })
        .collect();
    (all, rows)
}

/// Logarithm of how often each creative stands in a pair: what sampled negatives are corrected by
/// (Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019).
fn log_frequency(creatives: &[usize], count: usize) -> Vec<f32> {
    let mut seen = vec![0u32; count];
    creatives.iter().for_each(|creative| seen[*creative] += 1);
    seen.into_iter()
        .map(|seen| (seen.max(1) as f32 / creatives.len().max(1) as f32).ln())
        .collect()
}

/// Trains the visual model, measures it on clicks of the test rows and publishes it.
///
/// # Errors
/// Whatever keeps it from its end.
pub async fn run_train(
    common: &CommonArgs,
    loaded: Loaded<VisualTrainConfig>,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
        device: "cpu",
        world_size: 1,
        tracking: &config.tracking,
        resolved: &loaded.resolved,
    };
    let mut job = Job::start(common, Kind::Visual, source).await?;
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
    let bar = job.bar(total);
    let started = std::time::Instant::now();
    let mut last = f64::NAN;
    let model = fit::<Autodiff<Cpu>>(
        config,
        &gallery,
        &train,
        &Default::default(),
        |epoch, loss| {
            bar.inc(train.scenes.len() as u64);
            bar.set_message(format!("loss {loss:.4}"));
            last = loss;
            let line = serde_json::json!({"epoch": epoch, "loss": loss});
            let scalars = [("train/loss", loss)];
            let noted = job
                .run
                .log(&line)
                .and_then(|()| job.run.scalars(epoch as u64, &scalars));
            if let Err(error) = noted {
                tracing::warn!(%error, "metrics not written");
            }
        },
    )?;
    let samples_per_second = total as f64 / started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let scenes = model.embed_scenes(&gallery.scene_pictures)?;
    let creatives = model.embed_creatives(&gallery.creative_pictures)?;
    let flat = |vectors: &[[f32; EMBEDDING_DIM]]| vectors.as_flattened().to_vec();
    let found = ranks(
        &gallery,
        &test,
        &flat(&scenes),
        &flat(&creatives),
        EMBEDDING_DIM,
    );
    let (scene_colours, creative_colours) = pixel_average_vectors(&gallery);
    let baseline = ranks(
        &gallery,
        &test,
        &scene_colours,
        &creative_colours,
        baseline::PIXEL_DIM,
    );
    let curve: Vec<(f64, f64)> = (0..=100)
        .step_by(5)
        .map(|k| (k as f64, recall_at_k(&found, k)))
        .collect();
    let plot = Plot {
        title: "Recall of the clicked creative",
        x: "candidates kept",
        y: "recall",
        points: &curve,
        diagonal: false,
        dots: false,
    };
    write_text(&job.run.dir.join("recall.svg"), &plot.to_svg())?;

    model.save(&job.model_dir())?;
    let recall_at_10 = recall_at_k(&found, 10);
    let artifact = job
        .publish(vec![catalogue.digest], [("recall_at_10", recall_at_10)])
        .await?;
    let report = Report {
        pairs: train.scenes.len(),
        test_pairs: test.scenes.len(),
        recall_at_1: recall_at_k(&found, 1),
        recall_at_10,
        recall_at_100: recall_at_k(&found, 100),
        recall_at_10_random: gallery.random_recall(&test, 10),
        recall_at_10_pixel_average: recall_at_k(&baseline, 10),
        loss: last,
        samples_per_second,
        artifact: artifact.digest,
    };
    let line = format!(
        "test of visual {}: recall@10 {:.4}, random {:.4}, pixel average {:.4}, {} pairs; {:.0} pairs/s",
        report.artifact.short(),
        report.recall_at_10,
        report.recall_at_10_random,
        report.recall_at_10_pixel_average,
        report.test_pairs,
        report.samples_per_second,
    );
    job.report(&report, &line)
}

#[cfg(test)]
mod tests {
    use models::visual::{Picture, VitConfig};

    use super::*;

    /// Scenes and creatives of four shades; a scene goes with the creative of the next shade.
    fn toy() -> (Gallery, Pairs) {
        let shade = |at: usize| Picture::new(8, 8, vec![(at * 60) as u8; 192]).unwrap();
        let pictures: Vec<Picture> = (0..4).map(shade).collect();
        let gallery =
            Gallery::from_pictures(pictures.clone(), pictures, vec!["billboard".into(); 4]);
        let scenes: Vec<usize> = (0..200).map(|at| at % 4).collect();
        let creatives = scenes.iter().map(|scene| (scene + 1) % 4).collect();
        (gallery, Pairs { scenes, creatives })
    }

    fn config() -> VisualTrainConfig {
        let vit = VitConfig {
            image_size: 8,
            patch_size: 4,
            dim: 16,
            depth: 1,
            num_heads: 2,
            ..VitConfig::default()
        };
        let model = VisualConfig {
            vit,
            projection_hidden: 16,
            ..VisualConfig::default()
        };
        VisualTrainConfig {
            model,
            batch_size: 16,
            epochs: 12,
            learning_rate: 3e-3,
            ..Default::default()
        }
    }

    fn fit_toy() -> (VisualModel<Cpu>, Vec<f64>) {
        let (gallery, pairs) = toy();
        let mut losses = Vec::new();
        let model = fit::<Autodiff<Cpu>>(
            &config(),
            &gallery,
            &pairs,
            &Default::default(),
            |_, loss| losses.push(loss),
        );
        (model.unwrap(), losses)
    }

    #[test]
    fn a_rule_that_pixels_do_not_tell_is_learnt() {
        let (gallery, pairs) = toy();
        let (model, losses) = fit_toy();
        assert!(losses[11] < 0.5 * losses[0], "{losses:?}");
        let flat = |vectors: Vec<[f32; EMBEDDING_DIM]>| vectors.as_flattened().to_vec();
        let scenes = flat(model.embed_scenes(&gallery.scene_pictures).unwrap());
        let creatives = flat(model.embed_creatives(&gallery.creative_pictures).unwrap());
        let found = ranks(&gallery, &pairs, &scenes, &creatives, EMBEDDING_DIM);
        assert_eq!(recall_at_k(&found, 1), 1.0);
        let (scenes, creatives) = pixel_average_vectors(&gallery);
        let baseline = ranks(&gallery, &pairs, &scenes, &creatives, baseline::PIXEL_DIM);
        // No better than chance among four.
        assert!(recall_at_k(&baseline, 1) <= 0.25);
    }

    #[test]
    fn a_seed_fixes_the_tower_bit_for_bit() {
        let (gallery, _) = toy();
        let vectors = || fit_toy().0.embed_scenes(&gallery.scene_pictures).unwrap();
        assert_eq!(vectors(), vectors());
    }
}
