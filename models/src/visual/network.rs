//! The tower: one transformer, and a projection for each kind of picture.

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, activation::gelu},
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    picture::Picture,
    preprocess::{self, Resize},
    resample::Filter,
    vit::{Vit, VitConfig},
};
use crate::ctr::network::linear;

/// Length of a picture's vector.
pub const EMBEDDING_DIM: usize = 128;

/// Shape of the tower and how pixels enter it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisualConfig {
    /// The transformer.
    pub vit: VitConfig,
    /// Width of the hidden layer of the projections.
    pub projection_hidden: usize,
    /// How a picture becomes a square.
    pub resize: Resize,
    /// Taken from each of red, green and blue (0 to 1) before the division.
    pub mean: [f32; 3],
    /// What they are divided by.
    pub std: [f32; 3],
}

impl Default for VisualConfig {
    fn default() -> Self {
        Self {
            vit: VitConfig::default(),
            projection_hidden: 128,
            resize: Resize::Stretch {
                filter: Filter::Bilinear,
            },
            mean: [0.5; 3],
            std: [0.25; 3],
        }
    }
}

/// A number that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} is {found}, wanted {wanted}")]
pub struct VisualConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub wanted: String,
}

/// Most pixels each way of a resized picture, tokens' length and depth: guards against numbers
/// that no memory holds.
const MAX_SIZE: usize = 4096;

/// Most patches of a picture: attention's scores grow with their square.
const MAX_PATCHES: usize = 4096;

impl VisualConfig {
    /// Checks the numbers and how they fit.
    ///
    /// # Errors
    /// [`VisualConfigError`] with the key.
    pub fn check(&self) -> Result<(), VisualConfigError> {
        let vit = &self.vit;
        let sizes = [
            ("vit.image_size", vit.image_size, 1),
            ("vit.patch_size", vit.patch_size, 1),
            ("vit.dim", vit.dim, 1),
            ("vit.depth", vit.depth, 0),
            ("vit.num_heads", vit.num_heads, 1),
            ("vit.mlp_ratio", vit.mlp_ratio, 1),
            ("vit.num_registers", vit.num_registers, 0),
            ("vit.projection_dim", vit.projection_dim, 0),
            ("projection_hidden", self.projection_hidden, 1),
        ];
        for (key, found, least) in sizes {
            if !(least..=MAX_SIZE).contains(&found) {
                return Err(VisualConfigError {
                    key,
                    found: found.to_string(),
                    wanted: format!("{least} to {MAX_SIZE}"),
                });
            }
        }
        let divisions = [
            (
                "vit.image_size",
                vit.image_size,
                "vit.patch_size",
                vit.patch_size,
            ),
            ("vit.dim", vit.dim, "vit.num_heads", vit.num_heads),
        ];
        for (key, found, of, divisor) in divisions {
            if !found.is_multiple_of(divisor) {
                return Err(VisualConfigError {
                    key,
                    found: found.to_string(),
                    wanted: format!("a multiple of {of} = {divisor}"),
                });
            }
        }
        if vit.num_patches() > MAX_PATCHES {
            return Err(VisualConfigError {
                key: "vit.patch_size",
                found: vit.patch_size.to_string(),
                wanted: format!(
                    "at most {MAX_PATCHES} patches of vit.image_size = {}",
                    vit.image_size
                ),
            });
        }
        if let Resize::Crop { short_side, .. } = self.resize
            && !(vit.image_size..=MAX_SIZE).contains(&short_side)
        {
            return Err(VisualConfigError {
                key: "resize.short_side",
                found: short_side.to_string(),
                wanted: format!("vit.image_size = {} to {MAX_SIZE}", vit.image_size),
            });
        }
        if !(vit.norm_eps.is_finite() && vit.norm_eps > 0.0) {
            return Err(VisualConfigError {
                key: "vit.norm_eps",
                found: vit.norm_eps.to_string(),
                wanted: "a small number above 0".to_owned(),
            });
        }
        let colours = self.mean.iter().chain(&self.std);
        if !colours.clone().all(|value| value.is_finite()) || self.std.iter().any(|std| *std <= 0.0)
        {
            return Err(VisualConfigError {
                key: "mean and std",
                found: format!("{:?} and {:?}", self.mean, self.std),
                wanted: "finite numbers, std above 0".to_owned(),
            });
        }
        Ok(())
    }

    /// Cuts a picture into normalised patches.
    ///
    /// # Shapes
    /// - returns `[num_patches, patch_values]`: patches in reading order; in a patch red, then
    ///   green, then blue, each in reading order, as a flattened convolution kernel has them
    pub fn patches(&self, picture: &Picture) -> Vec<f32> {
        let square = self.resize.square(picture, self.vit.image_size);
        preprocess::patches(&square, self.vit.patch_size, self.mean, self.std)
    }

    /// A fresh tower.
    ///
    /// # Errors
    /// [`VisualConfigError`] if the numbers do not fit.
    pub fn init<B: Backend>(
        &self,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Result<VisualNetwork<B>, VisualConfigError> {
        self.check()?;
        let vit = self.vit.init(random, device);
        Ok(self.with_backbone(vit, random, device))
    }

    /// A tower with fresh projections on a transformer of this shape.
    pub fn with_backbone<B: Backend>(
        &self,
        vit: Vit<B>,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> VisualNetwork<B> {
        let (dim, hidden) = (self.vit.output_dim(), self.projection_hidden);
        let mut projection = || Projection {
            hidden: linear(dim, hidden, true, random, device),
            out: linear(hidden, EMBEDDING_DIM, false, random, device),
        };
        VisualNetwork {
            vit,
            creative: projection(),
            scene: projection(),
            log_scale: Param::from_tensor(Tensor::from_floats([INITIAL_LOG_SCALE], device)),
        }
    }
}

/// `ln(1 / 0.07)`, as CLIP begins.
const INITIAL_LOG_SCALE: f32 = 2.659_26;

/// CLIP keeps the scale at 100 at most.
const MAX_LOG_SCALE: f32 = 4.605_17;

/// A perceptron with one hidden layer.
#[derive(Module, Debug)]
struct Projection<B: Backend> {
    hidden: Linear<B>,
    out: Linear<B>,
}

/// The tower.
#[derive(Module, Debug)]
pub struct VisualNetwork<B: Backend> {
    vit: Vit<B>,
    creative: Projection<B>,
    scene: Projection<B>,
    log_scale: Param<Tensor<B, 1>>,
}

impl<B: Backend> Projection<B> {
    fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let output = self.out.forward(gelu(self.hidden.forward(input)));
        // The small number keeps a vector of zeros, and its gradient, finite.
        let length = (output.clone().powi_scalar(2).sum_dim(1) + 1e-12).sqrt();
        output / length
    }
}

impl<B: Backend> VisualNetwork<B> {
    /// The tower with all of its transformer frozen but the last `trainable_blocks` and what comes after
    /// them; with none, the whole transformer is frozen.
    pub fn frozen(mut self, trainable_blocks: usize) -> Self {
        self.vit = self.vit.frozen(trainable_blocks);
        self
    }

    /// The transformer below both projections.
    pub fn backbone(&self) -> &Vit<B> {
        &self.vit
    }

    /// Vectors of creatives out of the transformer's: `[batch, output_dim]` to `[batch, 128]`.
    pub fn project_creatives(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        self.creative.forward(features)
    }

    /// Vectors of scenes, likewise.
    pub fn project_scenes(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        self.scene.forward(features)
    }

    /// What cosines are multiplied by in the loss: the inverse temperature. `[1]`
    pub fn scale(&self) -> Tensor<B, 1> {
        self.log_scale.val().clamp_max(MAX_LOG_SCALE).exp()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::{Cpu, visual::vit::Pooling};

    #[test]
    fn patches_keep_every_pixel_in_its_place() {
        let mut config = VisualConfig {
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
            ..VisualConfig::default()
        };
        config.vit.image_size = 4;
        config.vit.patch_size = 2;
        let rgb = (0..48).collect();
        let patches = config.patches(&Picture::new(4, 4, rgb).unwrap());
        assert_eq!(
            patches.len(),
            config.vit.num_patches() * config.vit.patch_values()
        );
        // The second patch begins at the third pixel: bytes 6, 9 above 18, 21.
        let rounded: Vec<f32> = patches[12..24].iter().map(|value| value.round()).collect();
        assert_eq!(
            rounded,
            [6., 9., 18., 21., 7., 10., 19., 22., 8., 11., 20., 23.]
        );
    }

    #[test]
    fn every_shape_gives_unit_vectors() {
        for (pooling, num_registers, projection_dim) in [
            (Pooling::Mean, 0, 0),
            (Pooling::Mean, 2, 24),
            (Pooling::Cls, 1, 0),
            (Pooling::Map, 0, 0),
        ] {
            let mut config = VisualConfig::default();
            config.vit.norm_before = pooling == Pooling::Cls;
            config.vit.projection_dim = projection_dim;
            config.vit.pooling = pooling;
            config.vit.num_registers = num_registers;
            let device = Default::default();
            let random = &mut ChaCha8Rng::seed_from_u64(1);
            let network: VisualNetwork<Cpu> = config.init(random, &device).unwrap();
            let shape = [2, config.vit.num_patches(), config.vit.patch_values()];
            let patches = Tensor::ones(shape, &device);
            let vectors = network.project_scenes(network.backbone().forward(patches));
            assert_eq!(vectors.dims(), [2, EMBEDDING_DIM]);
            let lengths = vectors
                .powi_scalar(2)
                .sum_dim(1)
                .into_data()
                .to_vec::<f32>()
                .unwrap();
            assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-5));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_named() {
        let check = |change: fn(&mut VisualConfig), key: &str| {
            let mut config = VisualConfig::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().key, key);
        };
        check(|config| config.vit.patch_size = 5, "vit.image_size");
        check(|config| config.vit.patch_size = 0, "vit.patch_size");
        check(|config| config.vit.num_heads = 3, "vit.dim");
        check(|config| config.vit.depth = usize::MAX, "vit.depth");
        check(|config| config.std[1] = 0.0, "mean and std");
        check(|config| config.vit.norm_eps = 0.0, "vit.norm_eps");
        let small = |config: &mut VisualConfig| {
            config.resize = Resize::Crop {
                filter: Filter::Bicubic,
                short_side: 27,
                centre: preprocess::Centre::Floor,
            };
        };
        check(small, "resize.short_side");
    }
}
