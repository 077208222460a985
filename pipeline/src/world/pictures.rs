//! Pictures of creatives and scenes: product photos, or drawings.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{config::PictureSource, truth::NUM_CATEGORIES};

/// Why pictures could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// A file of the photo set cannot be read.
    #[error("reading product photos from {}; install the Debian package dataset-fashion-mnist, or set pictures = \"procedural\"", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not what its name says.
    #[error("{} is not an IDX file of {wanted}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// More pictures asked for than there are.
    #[error("category {category} has {found} photos, wanted {wanted}: lower `creatives`")]
    TooFew {
        /// Index of the category.
        category: usize,
        /// How many there are.
        found: usize,
        /// How many are wanted.
        wanted: usize,
    },
}

/// A stock of pictures by category; each is given out once.
pub struct Stock {
    by_category: Vec<Vec<Vec<u8>>>,
    draw: bool,
}

const PHOTO_SIZE: usize = 28;
const DRAWING_SIZE: usize = 32;

impl Stock {
    /// Opens the stock.
    ///
    /// # Errors
    /// [`PictureError`] if the photos are missing or foreign.
    pub fn open(
        source: PictureSource,
        dir: &Path,
        random: &mut ChaCha8Rng,
    ) -> Result<Self, PictureError> {
        let mut by_category = vec![Vec::new(); NUM_CATEGORIES];
        if source == PictureSource::Photos {
            let images = read_idx(
                &dir.join("train-images-idx3-ubyte.gz"),
                0x803,
                "28×28 pictures",
            )?;
            let labels = read_idx(&dir.join("train-labels-idx1-ubyte.gz"), 0x801, "labels")?;
            for (pixels, label) in images[16..]
                .chunks_exact(PHOTO_SIZE * PHOTO_SIZE)
                .zip(&labels[8..])
            {
                by_category[usize::from(*label) % NUM_CATEGORIES].push(pixels.to_vec());
            }
            for photos in &mut by_category {
                photos.shuffle(random);
            }
        }
        Ok(Self {
            by_category,
            draw: source == PictureSource::Procedural,
        })
    }

    /// A new picture of a category, as PNG.
    ///
    /// # Errors
    /// [`PictureError::TooFew`] if the photos run out.
    pub fn take(
        &mut self,
        category: usize,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<u8>, PictureError> {
        if self.draw {
            return Ok(encode(&draw(category, random), DRAWING_SIZE));
        }
        let photos = &mut self.by_category[category];
        let photo = photos.pop().ok_or(PictureError::TooFew {
            category,
            found: 0,
            wanted: 1,
        })?;
        let rgb: Vec<u8> = photo.iter().flat_map(|&grey| [grey; 3]).collect();
        Ok(encode(&rgb, PHOTO_SIZE))
    }
}

fn read_idx(path: &Path, magic: u32, wanted: &'static str) -> Result<Vec<u8>, PictureError> {
    let failed = |source| PictureError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).map_err(failed)?)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() < 16 || bytes[..4] != magic.to_be_bytes() {
        return Err(PictureError::Format {
            path: path.to_owned(),
            wanted,
        });
    }
    Ok(bytes)
}

/// Encodes `size` × `size` RGB pixels as PNG.
fn encode(rgb: &[u8], size: usize) -> Vec<u8> {
    let mut png = Vec::new();
    let side = size as u32;
    PngEncoder::new(&mut png)
        .write_image(rgb, side, side, ExtendedColorType::Rgb8)
        .expect("writing a picture of matching size to memory does not fail");
    png
}

/// A drawing in the style of a category: its own hue, stripe direction and frequency, and shape,
/// each with some play.
fn draw(category: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let share = category as f64 / NUM_CATEGORIES as f64;
    let hue = share + random.random_range(-0.03..0.03);
    let angle = share * std::f64::consts::PI + random.random_range(-0.1..0.1);
    let frequency = 0.4 + 1.2 * ((category * 7) % NUM_CATEGORIES) as f64 / NUM_CATEGORIES as f64;
    let phase = random.random_range(0.0..std::f64::consts::TAU);
    let centre: [f64; 2] = [
        random.random_range(10.0..22.0),
        random.random_range(10.0..22.0),
    ];
    let radius = random.random_range(5.0..9.0);
    let mut rgb = Vec::with_capacity(DRAWING_SIZE * DRAWING_SIZE * 3);
    for y in 0..DRAWING_SIZE {
        for x in 0..DRAWING_SIZE {
            let (fx, fy) = (x as f64, y as f64);
            let wave = ((fx * angle.cos() + fy * angle.sin()) * frequency + phase).sin();
            let (dx, dy) = ((fx - centre[0]).abs(), (fy - centre[1]).abs());
            let distance = match category % 3 {
                0 => dx.hypot(dy),
                1 => dx.max(dy),
                _ => dx + dy,
            };
            let (value, turn) = if distance < radius {
                (0.9, 0.5)
            } else {
                (0.55 + 0.25 * wave, 0.0)
            };
            rgb.extend(hue_to_rgb(hue + turn, value));
        }
    }
    rgb
}

/// A colour of full saturation 0.7 from hue (turns) and value.
fn hue_to_rgb(hue: f64, value: f64) -> [u8; 3] {
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|offset| {
        let wave = 0.5 + 0.5 * (std::f64::consts::TAU * (hue - offset)).cos();
        (255.0 * value * (0.3 + 0.7 * wave)) as u8
    })
}
