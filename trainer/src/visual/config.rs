//! `configs/visual.toml`.

use models::visual::{PretrainedConfig, VisualConfig};
use serde::{Deserialize, Serialize};

use super::augment::AugmentConfig;
use crate::{
    checkpoint::CheckpointConfig,
    collective::CollectiveConfig,
    dense::{DenseOptimizer, DenseOptimizerConfig},
    schedule::{Decay, ScheduleConfig},
    split::SplitConfig,
    tracking::TrackingConfig,
};

/// `configs/visual.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisualTrainConfig {
    /// Which trainer reads this file: `visual`.
    pub kind: String,
    /// Seed of weights, shuffling, negatives and augmentation.
    pub seed: u64,
    /// Name of the training table.
    pub table: String,
    /// What is held out.
    pub split: SplitConfig,
    /// The network; with published weights only `projection_hidden` counts, the rest is theirs.
    pub model: VisualConfig,
    /// Published weights to begin with.
    pub pretrained: PretrainedConfig,
    /// Blocks of published weights that learn too, counted from the last; the others are frozen. With none
    /// the backbone's vectors are computed once, and only the projections learn. Fresh weights all learn.
    pub trainable_blocks: usize,
    /// Pairs of a step, of all ranks together; more gives more negatives.
    pub batch_size: usize,
    /// Negatives beside the others of the batch.
    pub negatives: NegativesConfig,
    /// Changes of the pictures.
    pub augment: AugmentConfig,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Epochs between two measures on the validation pairs: the tower then sees all pictures once, beside the
    /// measures in the end. 0: none.
    pub evaluate_every_epochs: usize,
    /// Step size.
    pub learning_rate: f64,
    /// How the step size goes over the steps.
    pub schedule: ScheduleConfig,
    /// How weights are moved.
    pub optimizer: DenseOptimizerConfig,
    /// Pull of the weights towards zero.
    pub weight_decay: f32,
    /// How often the run is saved.
    pub checkpoint: CheckpointConfig,
    /// How ranks meet.
    pub collective: CollectiveConfig,
    /// Who else hears of the run.
    pub tracking: TrackingConfig,
}

/// Negatives that each pair brings along.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NegativesConfig {
    /// Creatives that were seen in the pair's scene and not clicked there.
    pub not_clicked: usize,
    /// Other creatives of the clicked one's campaign and format: the hardest to tell from it.
    pub same_campaign: usize,
}

impl Default for VisualTrainConfig {
    fn default() -> Self {
        Self {
            kind: "visual".to_owned(),
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            model: VisualConfig::default(),
            pretrained: PretrainedConfig::default(),
            trainable_blocks: 0,
            batch_size: 256,
            negatives: NegativesConfig::default(),
            augment: AugmentConfig::default(),
            epochs: 5,
            evaluate_every_epochs: 1,
            learning_rate: 1e-3,
            schedule: ScheduleConfig::default(),
            optimizer: DenseOptimizerConfig {
                kind: DenseOptimizer::AdamW,
                ..DenseOptimizerConfig::default()
            },
            weight_decay: 0.05,
            checkpoint: CheckpointConfig::default(),
            collective: CollectiveConfig::default(),
            tracking: TrackingConfig::default(),
        }
    }
}

/// Keys that do not go together, or a number that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}, wanted {wanted}")]
pub struct VisualTrainConfigError {
    key: &'static str,
    found: String,
    wanted: &'static str,
}

impl VisualTrainConfig {
    /// Checks what [`VisualConfig::check`] does not.
    ///
    /// # Errors
    /// [`VisualTrainConfigError`] with the key.
    pub fn check(&self) -> Result<(), VisualTrainConfigError> {
        let refuse =
            |key, found: String, wanted| Err(VisualTrainConfigError { key, found, wanted });
        if self.batch_size < 2 {
            return refuse("batch_size", self.batch_size.to_string(), "at least 2");
        }
        if self.epochs == 0 {
            return refuse("epochs", "0".to_owned(), "at least 1");
        }
        if self.schedule.decay == Decay::Plateau {
            let wanted = "another: no measure chooses among epochs";
            return refuse("schedule.decay", "plateau".to_owned(), wanted);
        }
        let augment = &self.augment;
        let shares = [
            ("augment.least_area", augment.least_area, f64::MIN_POSITIVE),
            ("augment.mirror", augment.mirror, 0.0),
            ("augment.colour", augment.colour, 0.0),
        ];
        for (key, found, least) in shares {
            if !(least..=1.0).contains(&found) {
                return refuse(key, found.to_string(), "a share of 1; `least_area` above 0");
            }
        }
        let own = VisualConfig {
            projection_hidden: self.model.projection_hidden,
            ..VisualConfig::default()
        };
        if self.is_pretrained() && self.model != own {
            let wanted = "left out where pretrained.weights are given, which decide it";
            return refuse("model", "set".to_owned(), wanted);
        }
        if !self.is_pretrained() && self.trainable_blocks > 0 {
            let wanted = "0 without pretrained.weights: then all blocks learn";
            return refuse(
                "trainable_blocks",
                self.trainable_blocks.to_string(),
                wanted,
            );
        }
        Ok(())
    }

    /// Whether the validation pairs are to be looked at after so many epochs.
    pub(super) fn is_measured_after(&self, epochs: u64) -> bool {
        let every = self.evaluate_every_epochs as u64;
        every > 0 && epochs.is_multiple_of(every)
    }

    /// Whether it begins with published weights.
    pub fn is_pretrained(&self) -> bool {
        !self.pretrained.weights.as_os_str().is_empty()
    }

    /// Whether the whole backbone is frozen, and its pictures always the same.
    pub(super) fn is_cacheable(&self) -> bool {
        let frozen = self.is_pretrained() && self.trainable_blocks == 0;
        frozen && self.augment == AugmentConfig::default()
    }
}
