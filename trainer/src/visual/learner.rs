//! A tower in training. Every rank sends its share of a step's pictures through the network; all vectors are
//! gathered, so that each pair has the negatives of all ranks, and every rank computes the whole loss and
//! takes the gradient of its own vectors back through its own pictures. The sum of these over the ranks is
//! the gradient of one process, but for the order of additions.

use std::ops::Range;

use anyhow::Context;
use burn::{
    backend::Autodiff,
    module::AutodiffModule,
    optim::GradientsParams,
    tensor::{Tensor, TensorData, backend::AutodiffBackend},
};
use models::{
    Cpu,
    visual::{
        EMBEDDING_DIM, Picture, Pretrained, VisualConfig, VisualModel, VisualNetwork, info_nce,
    },
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    batch::Batch,
    config::VisualTrainConfig,
    fit::{Features, Task},
    pairs::Gallery,
};
use crate::{
    backend::StepBackend,
    checkpoint::{CheckpointError, Restored, Snapshot},
    collective::{ProcessGroup, segment},
    dense::{self, DenseState, Move, Precision, Rule, Saved, Total},
};

/// Pictures that go through a frozen network at once.
const FROZEN_BATCH: usize = 32;

/// Which projection a picture goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Scene,
    Creative,
}

/// What a step is told besides its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepOptions {
    /// Epochs before, which pictures are changed by.
    pub epoch: u64,
    /// Step size.
    pub rate: f64,
    /// This rank was asked to stop; all ranks hear of it in the same step.
    pub stop: bool,
}

/// A tower in training: network and optimizer.
pub(super) struct Learner<'a, B: StepBackend> {
    config: &'a VisualTrainConfig,
    gallery: &'a Gallery,
    /// Shape of the tower, which published weights decide.
    tower: VisualConfig,
    network: VisualNetwork<B>,
    frozen: Option<Features>,
    /// The weights that learn.
    dense: B::Dense,
    rule: Rule,
    device: B::Device,
}

impl<'a, B: StepBackend> Learner<'a, B> {
    /// A tower before its first step.
    pub fn start(
        task: Task<'a>,
        device: &B::Device,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<Self> {
        let Task {
            config, gallery, ..
        } = task;
        let (tower, network) = fresh::<B>(config, device)?;
        let frozen = match task.frozen {
            _ if !config.is_pretrained() => None,
            Some(known) => Some(known.clone()),
            None => {
                let frozen = network.valid();
                let of = |some: &[Picture]| {
                    let patches = some.par_iter().map(|picture| tower.patches(picture));
                    let patches = Tensor::from_data(stacked(&tower, patches.collect()), device);
                    dense::to_vec(frozen.backbone().infer(patches))
                };
                let of_share = |side, share: Range<usize>| {
                    let batches = pictures(gallery, side)[share].chunks(FROZEN_BATCH);
                    Ok(batches.flat_map(of).collect())
                };
                Some(of_all(gallery, tower.vit.output_dim(), group, of_share)?)
            }
        };
        let rule = Rule {
            config: config.optimizer,
            segments: dense::segments(&network).into(),
        };
        let saved = Saved::fresh(dense::flatten_weights(&network), false);
        Ok(Self {
            config,
            gallery,
            tower,
            network,
            frozen,
            dense: B::Dense::load(saved, &rule, device),
            rule,
            device: device.clone(),
        })
    }

    /// Learns from a batch, together with the other ranks; a loss that is no number moves nothing.
    pub fn step(
        &mut self,
        batch: &Batch,
        options: StepOptions,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<Total> {
        self.dense.clear();
        self.forward_backward(batch, options.epoch, group)?;
        self.dense
            .reduce(options.stop, group)
            .context("adding gradients")?;
        let total = self.dense.total();
        if total.loss.is_finite() {
            let by = Move {
                rate: options.rate,
                weight_decay: self.config.weight_decay,
                max_norm: 0.0,
                average: 0.0,
            };
            self.dense.apply(&total, by);
            self.refresh_network();
        }
        Ok(total)
    }

    /// Gives the network the weights as they are now.
    fn refresh_network(&mut self) {
        let network = self.network.clone();
        self.network = self.dense.network(network, Precision::F32);
    }

    /// Adds up this rank's part of the gradient and of the mean loss.
    fn forward_backward(
        &mut self,
        batch: &Batch,
        epoch: u64,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<()> {
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
            let sent = vectors.clone().map_or_else(Vec::new, dense::to_vec);
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
        let value = loss.clone().inner();
        let gradients = loss.backward();

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
        let nothing = value.zeros_like();
        // All ranks have the loss and the temperature's whole gradient: one gives them.
        if rank == 0 {
            let of_scale = GradientsParams::from_grads(gradients, &self.network);
            self.dense.add(&self.network, of_scale, value);
        }
        if let Some(carried) = carried {
            let own = GradientsParams::from_grads(carried.backward(), &self.network);
            self.dense.add(&self.network, own, nothing);
        }
        Ok(())
    }

    /// Vectors of some pictures: `[ids, 128]`.
    fn vectors(&self, side: Side, ids: &[usize], epoch: u64) -> Tensor<B, 2> {
        let features = match &self.frozen {
            Some(frozen) if self.config.is_cacheable() => {
                let all = frozen.of(side);
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

    fn patches(&self, side: Side, ids: &[usize], epoch: u64) -> TensorData {
        let (config, tower) = (self.config, &self.tower);
        let pictures = pictures(self.gallery, side);
        let seen = |id: &usize| {
            let draw = [config.seed, epoch, side as u64, *id as u64];
            tower.patches(&config.augment.apply(&pictures[*id], draw))
        };
        stacked(tower, ids.par_iter().map(seen).collect())
    }

    /// Copies what is saved: published weights that are frozen are in their own file.
    pub fn save(&self, step: u64, state: serde_json::Value) -> Snapshot {
        Snapshot {
            step,
            dense: self.dense.save().pieces(),
            state,
            ..Snapshot::default()
        }
    }

    /// Goes back to a checkpoint.
    pub fn restore(&mut self, restored: &Restored) -> Result<(), CheckpointError> {
        let saved = Saved::read(restored, &self.rule, false, restored.manifest.step)?;
        self.dense = B::Dense::load(saved, &self.rule, &self.device);
        self.refresh_network();
        Ok(())
    }

    /// What the tower as it stands says of all pictures, each rank computing its share.
    pub fn all_vectors(&self, group: &mut impl ProcessGroup) -> anyhow::Result<Features> {
        let (config, gallery) = (self.config, self.gallery);
        let network = self.network.valid();
        let model = VisualModel::new(self.tower.clone(), network, self.device.clone());
        let of_share = |side, share: Range<usize>| {
            let vectors = match (&self.frozen, side) {
                // The backbone has seen them all.
                (Some(frozen), _) if config.is_cacheable() => {
                    let rows = share.start * frozen.dim..share.end * frozen.dim;
                    let rows = &frozen.of(side)[rows];
                    match side {
                        Side::Scene => model.project_scenes(rows)?,
                        Side::Creative => model.project_creatives(rows)?,
                    }
                }
                (_, Side::Scene) => model.embed_scenes(&gallery.scene_pictures[share])?,
                (_, Side::Creative) => model.embed_creatives(&gallery.creative_pictures[share])?,
            };
            Ok(vectors.as_flattened().to_vec())
        };
        of_all(gallery, EMBEDDING_DIM, group, of_share)
    }

    /// The tower as it stands, on the CPU; its vectors of all pictures; those before any training.
    /// `known`: its vectors, where they were computed just before.
    pub fn finish(
        self,
        known: Option<Features>,
        group: &mut impl ProcessGroup,
    ) -> anyhow::Result<(VisualModel, Features, Option<Features>)> {
        let vectors = match known {
            Some(known) => known,
            None => self.all_vectors(group)?,
        };
        let device = Default::default();
        let (_, network) = fresh::<Autodiff<Cpu>>(self.config, &device)?;
        let weights = self.dense.save().weights;
        let network = dense::load_weights(network, &weights, Precision::F32, &device);
        let model = VisualModel::new(self.tower, network.valid(), device);
        Ok((model, vectors, self.frozen))
    }

    /// The gradient of the last step, of an optimizer that remembers no other (`beta1` 0).
    #[cfg(test)]
    pub fn gradient(&self) -> Vec<f32> {
        self.dense.save().means
    }
}

/// A tower before any training, of fresh or of published weights.
fn fresh<B: AutodiffBackend>(
    config: &VisualTrainConfig,
    device: &B::Device,
) -> anyhow::Result<(VisualConfig, VisualNetwork<B>)> {
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    if !config.is_pretrained() {
        let network = config.model.init(&mut random, device)?;
        return Ok((config.model.clone(), network));
    }
    let Pretrained {
        config: mut tower,
        vit,
    } = Pretrained::load(&config.pretrained, device)?;
    tower.projection_hidden = config.model.projection_hidden;
    tower.check()?;
    let network = tower.with_backbone(vit, &mut random, device);
    Ok((tower, network.frozen(config.trainable_blocks)))
}

fn pictures(gallery: &Gallery, side: Side) -> &[Picture] {
    match side {
        Side::Scene => &gallery.scene_pictures,
        Side::Creative => &gallery.creative_pictures,
    }
}

fn stacked(tower: &VisualConfig, patches: Vec<Vec<f32>>) -> TensorData {
    let vit = &tower.vit;
    let shape = [patches.len(), vit.num_patches(), vit.patch_values()];
    TensorData::new(patches.concat(), shape)
}

/// Vectors of all pictures, each rank computing its share.
fn of_all(
    gallery: &Gallery,
    dim: usize,
    group: &mut impl ProcessGroup,
    of_share: impl Fn(Side, Range<usize>) -> anyhow::Result<Vec<f32>>,
) -> anyhow::Result<Features> {
    let mut of = |side| {
        let count = pictures(gallery, side).len();
        let mine = of_share(side, segment(count, group.world_size(), group.rank()))?;
        let all = group.all_gather_v(&mine).context("gathering features")?;
        anyhow::Ok(all.concat())
    };
    Ok(Features {
        scenes: of(Side::Scene)?,
        creatives: of(Side::Creative)?,
        dim,
    })
}
