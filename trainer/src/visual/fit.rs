//! The training loop. Every rank draws the same batches and sends its share of their pictures through the
//! network; all vectors are gathered, so that each pair has the negatives of all ranks, and every rank
//! computes the whole loss and takes the gradient of its own vectors back through its own pictures.
//! The sum of these over the ranks is the gradient of one process, but for the order of additions.

use anyhow::{Context, bail};
use burn::{
    module::AutodiffModule,
    optim::GradientsParams,
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};
use models::{
    ops::{FusedOps, TrainingBackend},
    visual::{
        EMBEDDING_DIM, Picture, Pretrained, VisualConfig, VisualModel, VisualNetwork, info_nce,
    },
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    batch::{Batch, History},
    config::VisualTrainConfig,
    pairs::{Gallery, Pairs},
};
use crate::{
    collective::{ProcessGroup, segment},
    dense::{
        Optimizer, Precision, Rule, add_gradients, flatten_weights, load_weights, segments, to_vec,
    },
};

/// Pictures that go through a frozen network at once.
const FROZEN_BATCH: usize = 32;

/// Which projection a picture goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Scene,
    Creative,
}

/// What a backbone says of all pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// `[num_scenes, dim]`.
    pub scenes: Vec<f32>,
    /// `[num_creatives, dim]`.
    pub creatives: Vec<f32>,
    /// Length of a vector.
    pub dim: usize,
}

/// A trained tower, and what the published backbone it began with says of the pictures.
#[derive(Debug)]
pub struct Fitted<B: FusedOps> {
    /// The tower.
    pub model: VisualModel<B>,
    /// Vectors before any training; none of fresh weights.
    pub frozen: Option<Features>,
}

/// What is trained on.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Network and recipe.
    pub config: &'a VisualTrainConfig,
    /// All pictures.
    pub gallery: &'a Gallery,
    /// Pairs to learn from.
    pub pairs: &'a Pairs,
    /// What the published backbone says of the pictures, if that was computed before.
    pub frozen: Option<&'a Features>,
}

/// Trains a tower on pairs, together with the other ranks; `each` hears the mean loss of every epoch.
///
/// # Errors
/// If weights cannot be read, the shape of the network cannot be, a rank is lost, or the loss is no number.
pub fn fit<B: TrainingBackend>(
    task: Task<'_>,
    device: &B::Device,
    group: &mut impl ProcessGroup,
    mut each: impl FnMut(usize, f64),
) -> anyhow::Result<Fitted<B::InnerBackend>> {
    let config = task.config;
    config.check()?;
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    B::seed(device, config.seed);
    let mut trainer = Trainer::<B>::start(task, device, &mut random, group)?;
    let history = History::new(task.gallery, task.pairs);
    let mut step = 0;
    for epoch in 1..=config.epochs {
        let order = history.order(&mut random);
        let (mut sum, mut steps) = (0.0, 0u32);
        // A last batch of one pair has no negatives and says nothing.
        for chosen in order
            .chunks(config.batch_size)
            .filter(|chosen| chosen.len() > 1)
        {
            let batch = history.batch(chosen, &config.negatives, &mut random);
            let loss = trainer.gradient(&batch, epoch, group)?;
            if !loss.is_finite() {
                bail!("the loss is {loss} in epoch {epoch}: lower learning_rate");
            }
            trainer.apply(config.learning_rate * config.schedule.rate(step));
            sum += loss;
            steps += 1;
            step += 1;
        }
        each(epoch, sum / f64::from(steps.max(1)));
    }
    let model = VisualModel::new(
        trainer.tower.clone(),
        trainer.network.valid(),
        device.clone(),
    );
    Ok(Fitted {
        model,
        frozen: trainer.frozen,
    })
}

/// A tower on its way.
pub(super) struct Trainer<'a, B: AutodiffBackend> {
    config: &'a VisualTrainConfig,
    gallery: &'a Gallery,
    /// Shape of the tower, which published weights decide.
    tower: VisualConfig,
    network: VisualNetwork<B>,
    frozen: Option<Features>,
    /// Of the weights that learn.
    weights: Vec<f32>,
    optimizer: Optimizer,
    /// `[num_weights]`: sum over all ranks.
    pub(super) sum: Vec<f32>,
    device: B::Device,
}

impl<'a, B: TrainingBackend> Trainer<'a, B> {
    pub(super) fn start(
        task: Task<'a>,
        device: &B::Device,
        random: &mut ChaCha8Rng,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<Self> {
        let Task {
            config, gallery, ..
        } = task;
        let (tower, network) = if config.is_pretrained() {
            let Pretrained {
                config: mut tower,
                vit,
            } = Pretrained::load(&config.pretrained, device)?;
            tower.projection_hidden = config.model.projection_hidden;
            tower.check()?;
            let network = tower.with_backbone(vit, random, device);
            (tower, network.frozen(config.trainable_blocks))
        } else {
            (config.model.clone(), config.model.init(random, device)?)
        };
        let frozen = match task.frozen {
            _ if !config.is_pretrained() => None,
            Some(known) => Some(known.clone()),
            None => Some(all_features(
                &tower,
                &network.valid(),
                gallery,
                device,
                group,
            )?),
        };
        let weights = flatten_weights(&network);
        let rule = Rule {
            config: config.optimizer,
            segments: segments(&network).into(),
        };
        let zeros = vec![0.0; weights.len()];
        Ok(Self {
            config,
            gallery,
            tower,
            network,
            frozen,
            weights,
            optimizer: Optimizer {
                rule,
                means: zeros.clone(),
                squares: zeros.clone(),
                step: 0,
            },
            sum: zeros,
            device: device.clone(),
        })
    }

    /// Puts the gradient of a batch, over all ranks, into [`Self::sum`]; returns the mean loss.
    pub(super) fn gradient(
        &mut self,
        batch: &Batch,
        epoch: usize,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<f64> {
        let (rank, world_size) = (group.rank(), group.world_size());
        let sides = [
            (Side::Scene, &batch.scenes),
            (Side::Creative, &batch.creatives),
        ];
        let mut mine = Vec::new();
        let mut leaves = Vec::new();
        for (side, ids) in sides {
            let share = segment(ids.len(), world_size, rank);
            // A rank may have none where there are fewer pictures than ranks.
            let vectors =
                (!share.is_empty()).then(|| self.vectors(side, &ids[share.clone()], epoch));
            let sent = vectors.clone().map_or_else(Vec::new, to_vec);
            let all = group
                .all_gather_v(&sent)
                .context("gathering vectors")?
                .concat();
            let all = TensorData::new(all, [ids.len(), EMBEDDING_DIM]);
            leaves.push(Tensor::<B, 2>::from_data(all, &self.device).require_grad());
            mine.push((vectors, share));
        }
        let [scenes, creatives] = [&leaves[0], &leaves[1]].map(Tensor::clone);
        let loss = info_nce(creatives, scenes, self.network.scale(), batch.contrast());
        let value = f64::from(to_vec(loss.clone())[0]);
        let gradients = loss.backward();

        self.sum.fill(0.0);
        // The vectors' gradients go through the pictures; a sum of products has them as its own.
        let mut carried: Option<Tensor<B, 1>> = None;
        for ((vectors, share), leaf) in mine.into_iter().zip(&leaves) {
            if let (Some(vectors), Some(gradient)) = (vectors, leaf.grad(&gradients)) {
                let gradient = Tensor::from_inner(gradient.narrow(0, share.start, share.len()));
                let product = (vectors * gradient).sum();
                carried = Some(match carried {
                    Some(sum) => sum + product,
                    None => product,
                });
            }
        }
        // All ranks have the temperature's whole gradient: one gives it.
        if rank == 0 {
            let of_scale = GradientsParams::from_grads(gradients, &self.network);
            add_gradients(&self.network, of_scale, &mut self.sum);
        }
        if let Some(carried) = carried {
            let own = GradientsParams::from_grads(carried.backward(), &self.network);
            add_gradients(&self.network, own, &mut self.sum);
        }
        if world_size > 1 {
            group
                .all_reduce(&mut self.sum)
                .context("adding gradients")?;
        }
        Ok(value)
    }

    fn apply(&mut self, rate: f64) {
        let decay = self.config.weight_decay;
        self.optimizer
            .step(&mut self.weights, &mut self.sum, rate, decay);
        let network = self.network.clone();
        self.network = load_weights(network, &self.weights, Precision::F32, &self.device);
    }

    /// Vectors of some pictures: `[ids, 128]`.
    fn vectors(&self, side: Side, ids: &[usize], epoch: usize) -> Tensor<B, 2> {
        let features = match &self.frozen {
            Some(frozen) if self.config.is_cacheable() => {
                let all = match side {
                    Side::Scene => &frozen.scenes,
                    Side::Creative => &frozen.creatives,
                };
                let rows = ids.iter().map(|id| &all[id * frozen.dim..][..frozen.dim]);
                let rows: Vec<f32> = rows.flatten().copied().collect();
                Tensor::from_data(TensorData::new(rows, [ids.len(), frozen.dim]), &self.device)
            }
            _ => self.backbone(self.patches(side, ids, epoch)),
        };
        match side {
            Side::Scene => self.network.project_scenes(features),
            Side::Creative => self.network.project_creatives(features),
        }
    }

    /// The backbone's vectors; what is frozen in it keeps nothing for the way back.
    fn backbone(&self, patches: TensorData) -> Tensor<B, 2> {
        let vit = self.network.backbone();
        if !self.config.is_pretrained() {
            return vit.forward(Tensor::from_data(patches, &self.device));
        }
        let below = vit.depth().saturating_sub(self.config.trainable_blocks);
        let frozen = vit.valid();
        let tokens = frozen.embed(Tensor::from_data(patches, &self.device));
        let tokens = frozen.through(0..below, tokens);
        if self.config.trainable_blocks == 0 {
            return Tensor::from_inner(frozen.pool(tokens));
        }
        vit.pool(vit.through(below..vit.depth(), tokens.map(Tensor::from_inner)))
    }

    fn patches(&self, side: Side, ids: &[usize], epoch: usize) -> TensorData {
        let pictures = match side {
            Side::Scene => &self.gallery.scene_pictures,
            Side::Creative => &self.gallery.creative_pictures,
        };
        let seen = |id: &usize| {
            let draw = [self.config.seed, epoch as u64, side as u64, *id as u64];
            self.tower
                .patches(&self.config.augment.apply(&pictures[*id], draw))
        };
        stacked(&self.tower, ids.par_iter().map(seen).collect::<Vec<_>>())
    }
}

fn stacked(tower: &VisualConfig, patches: Vec<Vec<f32>>) -> TensorData {
    let shape = [
        patches.len(),
        tower.vit.num_patches(),
        tower.vit.patch_values(),
    ];
    TensorData::new(patches.concat(), shape)
}

/// A backbone's vectors of all pictures, each rank computing its share.
fn all_features<B: FusedOps>(
    tower: &VisualConfig,
    network: &VisualNetwork<B>,
    gallery: &Gallery,
    device: &B::Device,
    group: &mut impl ProcessGroup,
) -> anyhow::Result<Features> {
    let mut of = |pictures: &[Picture]| -> anyhow::Result<Vec<f32>> {
        let mine = &pictures[segment(pictures.len(), group.world_size(), group.rank())];
        let one = |some: &[Picture]| {
            let patches = some
                .par_iter()
                .map(|picture| tower.patches(picture))
                .collect();
            let patches = Tensor::from_data(stacked(tower, patches), device);
            to_vec(network.backbone().infer(patches))
        };
        let mine: Vec<f32> = mine.chunks(FROZEN_BATCH).flat_map(one).collect();
        Ok(group
            .all_gather_v(&mine)
            .context("gathering features")?
            .concat())
    };
    Ok(Features {
        scenes: of(&gallery.scene_pictures)?,
        creatives: of(&gallery.creative_pictures)?,
        dim: tower.vit.output_dim(),
    })
}
