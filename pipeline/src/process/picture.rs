//! Pictures of creatives and scenes: decoded once on arrival, described, and named by digest.

use std::{
    io::{self, Cursor},
    panic::{self, AssertUnwindSafe},
};

use features::style;
use image::{DynamicImage, ImageError, ImageFormat, ImageReader};
use sha2::{Digest, Sha256};

/// Why a picture was refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The bytes are no PNG, or end early.
    #[error("not a whole PNG: {source}")]
    Decode {
        /// What the decoder said.
        source: ImageError,
    },
    /// A picture without pixels.
    #[error("it is {width}×{height} pixels, wanted at least 1×1")]
    Empty {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// A picture that would fill the memory.
    #[error(
        "it is {width}×{height} pixels, wanted at most {most} in all (`validation.max_picture_pixels`)"
    )]
    TooLarge {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// The limit.
        most: u64,
    },
}

/// What the catalogue keeps of a picture beside its bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureFacts {
    /// SHA-256 of the PNG in lower-case hex; empty when there is no picture.
    pub digest: String,
    /// Style descriptor; empty when there is no picture.
    pub style: Vec<f32>,
}

/// Decodes and describes a PNG. No bytes at all mean "no picture", which is allowed.
///
/// # Errors
/// [`PictureError`] if there are bytes and they are not a picture of 1 to `max_pixels` pixels.
pub fn describe(png: &[u8], max_pixels: u64) -> Result<PictureFacts, PictureError> {
    if png.is_empty() {
        return Ok(PictureFacts::default());
    }
    let reader = || ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let failed = |source| PictureError::Decode { source };
    let (width, height) = reader().into_dimensions().map_err(failed)?;
    if width == 0 || height == 0 {
        return Err(PictureError::Empty { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        let most = max_pixels;
        return Err(PictureError::TooLarge {
            width,
            height,
            most,
        });
    }
    let rgb = decoded(reader()).map_err(failed)?.to_rgb8();
    Ok(PictureFacts {
        digest: hex(&Sha256::digest(png)),
        style: style::describe(&rgb, width as usize, height as usize).to_vec(),
    })
}

/// A decoder that panics, as that of png 0.18 does at a palette of four bytes, has met a damaged picture.
fn decoded(reader: ImageReader<Cursor<&[u8]>>) -> Result<DynamicImage, ImageError> {
    panic::catch_unwind(AssertUnwindSafe(|| reader.decode())).unwrap_or_else(|_| {
        let gave_up = io::Error::other("the decoder gave up");
        Err(ImageError::IoError(gave_up))
    })
}

/// Lower-case hex digits of some bytes.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;

    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::RgbImage::from_pixel(width, height, image::Rgb([255, 0, 0]))
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    /// A PNG whose header says 0×0; its checksum is right.
    fn zero_size_png() -> Vec<u8> {
        let mut bytes = png(1, 1);
        bytes[16..24].fill(0);
        let mut crc = !0u32;
        for &byte in &bytes[12..29] {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        bytes
    }

    #[test]
    fn a_red_picture_is_described_as_red() {
        let facts = describe(&png(4, 3), 100).unwrap();
        assert_eq!(facts.digest.len(), 64);
        assert_eq!(facts.style[2..5], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn no_bytes_are_no_picture() {
        assert_eq!(describe(&[], 100).unwrap(), PictureFacts::default());
    }

    #[test]
    fn corrupt_zero_size_and_huge_pictures_are_refused() {
        let palette = include_bytes!("../../../models/tests/pictures/broken-palette.png");
        assert!(matches!(
            describe(palette, 100),
            Err(PictureError::Decode { .. })
        ));
        let whole = png(4, 3);
        let cut = &whole[..whole.len() / 2];
        assert!(matches!(
            describe(cut, 100),
            Err(PictureError::Decode { .. })
        ));
        assert!(matches!(
            describe(b"not a picture", 100),
            Err(PictureError::Decode { .. })
        ));
        assert!(matches!(
            describe(&zero_size_png(), 100),
            Err(PictureError::Decode { .. } | PictureError::Empty { .. })
        ));
        assert!(matches!(
            describe(&whole, 11),
            Err(PictureError::TooLarge {
                width: 4,
                height: 3,
                most: 11
            })
        ));
    }
}
