//! From a picture to the numbers that a transformer sees, as the source of its weights made them.

use serde::{Deserialize, Serialize};

use super::{
    picture::Picture,
    resample::{Filter, resize},
};

/// How pixels enter a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resize {
    /// The whole picture, stretched or shrunk to a square.
    Stretch {
        /// How pixels are mixed.
        filter: Filter,
    },
    /// The shorter side at a length, then the middle square.
    Crop {
        /// How pixels are mixed.
        filter: Filter,
        /// Pixels of the shorter side, at least those of the square.
        short_side: usize,
        /// Which pixel is the middle's first where two would do.
        centre: Centre,
    },
}

/// Where the middle of an odd rest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Centre {
    /// At the pixel before: transformers.
    Floor,
    /// At the even one of both: torchvision, and so timm, CLIP and DINOv2.
    HalfEven,
}

impl Centre {
    fn first(self, rest: usize) -> usize {
        match self {
            Self::HalfEven if rest % 4 == 3 => rest / 2 + 1,
            _ => rest / 2,
        }
    }
}

impl Resize {
    /// A square of `size` pixels each way.
    pub fn square(&self, picture: &Picture, size: usize) -> Picture {
        let from = [picture.width(), picture.height()];
        let (filter, to, first) = match *self {
            Self::Stretch { filter } => (filter, [size, size], [0, 0]),
            Self::Crop {
                filter,
                short_side,
                centre,
            } => {
                let [width, height] = from;
                let long = |long: usize, short: usize| short_side * long / short;
                let to = if width <= height {
                    [short_side, long(height, width)]
                } else {
                    [long(width, height), short_side]
                };
                (filter, to, to.map(|side| centre.first(side - size)))
            }
        };
        let part = first.map(|first| first..first + size);
        Picture::of_checked(size, size, resize(picture.rgb(), from, to, part, filter))
    }
}

/// A square picture's normalised patches.
///
/// # Shapes
/// - returns `[num_patches, patch × patch × 3]`: patches in reading order; in a patch red, then green,
///   then blue, each in reading order, as a flattened convolution kernel has them
pub(super) fn patches(square: &Picture, patch: usize, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let size = square.width();
    let rgb = square.rgb();
    let levels: [Vec<f32>; 3] = std::array::from_fn(|channel| {
        let of = |byte: u16| (f32::from(byte) / 255.0 - mean[channel]) / std[channel];
        (0..256).map(of).collect()
    });
    let mut values = Vec::with_capacity(size * size * 3);
    for top in (0..size).step_by(patch) {
        for left in (0..size).step_by(patch) {
            for (channel, levels) in levels.iter().enumerate() {
                for y in top..top + patch {
                    let row = &rgb[(y * size + left) * 3..(y * size + left + patch) * 3];
                    let bytes = row.iter().skip(channel).step_by(3);
                    values.extend(bytes.map(|byte| levels[usize::from(*byte)]));
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_where_the_source_has_it() {
        let firsts = |centre: Centre| [0, 1, 2, 3, 4, 5, 7].map(|rest| centre.first(rest));
        assert_eq!(firsts(Centre::Floor), [0, 0, 1, 1, 2, 2, 3]);
        // Python's round(0.5, 1.5, 2.5, 3.5) is 0, 2, 2, 4.
        assert_eq!(firsts(Centre::HalfEven), [0, 0, 1, 2, 2, 2, 4]);
    }

    #[test]
    fn a_crop_takes_the_middle() {
        // Columns 0, 10, 20, … of a wide picture.
        let rgb: Vec<u8> = (0..4 * 8).flat_map(|at| [(at % 8) as u8 * 10; 3]).collect();
        let picture = Picture::new(8, 4, rgb).unwrap();
        let filter = Filter::Bicubic;
        let crop = Resize::Crop {
            filter,
            short_side: 4,
            centre: Centre::Floor,
        };
        let square = crop.square(&picture, 2);
        assert_eq!(square.rgb(), [30, 30, 30, 40, 40, 40].repeat(2));
    }
}
