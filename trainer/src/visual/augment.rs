//! Changes of pictures that leave what they show: what is learnt then does not hang on details.
//!
//! Source: crops as in Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; colours as in Chen et al.,
//! "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

use models::visual::Picture;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How far pictures are changed. Nothing is by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Least share of a picture's area that a crop keeps; 1 for no crops.
    pub least_area: f64,
    /// Share of pictures that are mirrored; mind what is written on them.
    pub mirror: f64,
    /// Most by which brightness, contrast and saturation go up or down, as a share.
    pub colour: f64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            least_area: 1.0,
            mirror: 0.0,
            colour: 0.0,
        }
    }
}

impl AugmentConfig {
    /// A picture as it is seen in an epoch: the same on every rank and in every run of a seed.
    pub(super) fn apply(&self, picture: &Picture, draw: [u64; 4]) -> Picture {
        if *self == Self::default() {
            return picture.clone();
        }
        let mut random = seeded(draw);
        let mut pixels = self.crop(picture, &mut random);
        if random.random_bool(self.mirror) {
            pixels.mirror();
        }
        let mut factor = || (1.0 + self.colour * random.random_range(-1.0..=1.0)) as f32;
        let [brightness, contrast, saturation] = [factor(), factor(), factor()];
        pixels.colour(brightness, contrast, saturation);
        // Sizes and bytes fit by construction.
        Picture::new(pixels.width, pixels.height, pixels.rgb).expect("pixels of this size")
    }

    fn crop(&self, picture: &Picture, random: &mut ChaCha8Rng) -> Pixels {
        let (width, height) = (picture.width(), picture.height());
        let area = random.random_range(self.least_area..=1.0);
        // As wide to high as it was, by a factor of 3/4 to 4/3; less where the area leaves no room.
        let most = (1.0 / area).ln().min((4.0f64 / 3.0).ln());
        let stretch = random.random_range(-most..=most).exp().sqrt();
        let side = |of: usize, factor: f64| {
            ((of as f64 * area.sqrt() * factor).round() as usize).clamp(1, of)
        };
        let (wide, high) = (side(width, stretch), side(height, 1.0 / stretch));
        let left = random.random_range(0..=width - wide);
        let top = random.random_range(0..=height - high);
        let row = |y: usize| &picture.rgb()[(y * width + left) * 3..(y * width + left + wide) * 3];
        Pixels {
            width: wide,
            height: high,
            rgb: (top..top + high).flat_map(row).copied().collect(),
        }
    }
}

/// Random numbers that hang on these alone: the same on every rank and in a run that goes on.
pub(super) fn seeded(draw: [u64; 4]) -> ChaCha8Rng {
    let mut seed = [0; 32];
    for (bytes, number) in seed.chunks_exact_mut(8).zip(draw) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// How bright red, green and blue are. Source: ITU-R BT.601.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

impl Pixels {
    fn mirror(&mut self) {
        for row in self.rgb.chunks_exact_mut(self.width * 3) {
            let (pixels, _) = row.as_chunks_mut::<3>();
            pixels.reverse();
        }
    }

    fn colour(&mut self, brightness: f32, contrast: f32, saturation: f32) {
        let (pixels, _) = self.rgb.as_chunks_mut::<3>();
        let grey = |pixel: &[u8; 3]| -> f32 {
            pixel
                .iter()
                .zip(LUMA)
                .map(|(byte, share)| f32::from(*byte) * share)
                .sum()
        };
        let mean = brightness * pixels.iter().map(grey).sum::<f32>() / pixels.len() as f32;
        for pixel in pixels {
            let own = brightness * grey(pixel);
            for byte in pixel {
                let level = own + saturation * (brightness * f32::from(*byte) - own);
                let level = mean + contrast * (level - mean);
                // A conversion to a byte stays within it.
                *byte = level.round() as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture::new(12, 10, (0..360).map(|at| (at * 7 % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn nothing_changes_unless_it_is_asked_for() {
        assert_eq!(
            AugmentConfig::default().apply(&picture(), [1; 4]),
            picture()
        );
    }

    #[test]
    fn a_draw_fixes_the_change() {
        let config = AugmentConfig {
            least_area: 0.3,
            mirror: 0.5,
            colour: 0.4,
        };
        let seen: Vec<Picture> = (0..8)
            .map(|at| config.apply(&picture(), [1, 2, 3, at]))
            .collect();
        assert_eq!(seen[5], config.apply(&picture(), [1, 2, 3, 5]));
        assert!((1..8).all(|at| seen[at] != seen[0]));
        for picture in seen {
            let area = picture.width() * picture.height();
            assert!((30..=120).contains(&area), "{area}");
        }
    }

    #[test]
    fn a_mirrored_picture_is_the_same_from_behind() {
        let config = AugmentConfig {
            mirror: 1.0,
            ..AugmentConfig::default()
        };
        let once = config.apply(&picture(), [0; 4]);
        assert_ne!(once, picture());
        assert_eq!(config.apply(&once, [0; 4]), picture());
    }

    #[test]
    fn colours_go_up_and_down_and_stay_bytes() {
        let mut pixels = Pixels {
            width: 1,
            height: 1,
            rgb: vec![100, 100, 200],
        };
        pixels.colour(2.0, 1.0, 1.0);
        assert_eq!(pixels.rgb, [200, 200, 255]);
        let mut pixels = Pixels {
            width: 1,
            height: 1,
            rgb: vec![100, 50, 200],
        };
        pixels.colour(1.0, 1.0, 0.0);
        assert_eq!(pixels.rgb, [82; 3]);
    }
}
