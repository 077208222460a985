//! Pixels of a picture: decoded within limits, resized, cut into patches.

use std::io::Cursor;

use image::{ImageFormat, ImageReader, RgbImage, imageops};

/// Most pixels of a picture; more are refused before they are decoded.
pub const MAX_PIXELS: u64 = 1 << 24;

/// Why a picture was refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The bytes are no PNG.
    #[error("{bytes} bytes that do not begin as a PNG")]
    NotPng {
        /// How many there are.
        bytes: usize,
    },
    /// No pixels.
    #[error("the picture is {width}×{height}, wanted at least 1×1")]
    ZeroSize {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// Too many pixels.
    #[error("the picture is {width}×{height}, wanted at most {max_pixels} pixels")]
    TooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// The limit.
        max_pixels: u64,
    },
    /// Truncated or damaged.
    #[error("decoding a PNG of {width}×{height}")]
    Corrupt {
        /// Columns, as its header says.
        width: u64,
        /// Rows, as its header says.
        height: u64,
        /// Where and why decoding stopped.
        source: image::ImageError,
    },
    /// Pixels of another size.
    #[error("{found} bytes of pixels for {width}×{height}, wanted {}", width * height * 3)]
    Length {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes given.
        found: usize,
    },
}

/// A picture, 8 bits each of red, green and blue; row-major. Transparency is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

const PNG_SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

impl Picture {
    /// Takes pixels.
    ///
    /// # Errors
    /// [`PictureError`] if they are none, or not `width × height × 3`.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, PictureError> {
        check_size(width as u64, height as u64)?;
        if rgb.len() != width * height * 3 {
            return Err(PictureError::Length {
                width,
                height,
                found: rgb.len(),
            });
        }
        Ok(Self { width, height, rgb })
    }

    /// Decodes a PNG of any bit depth and colour type.
    ///
    /// # Errors
    /// [`PictureError`]; sizes are checked before anything is decoded.
    pub fn from_png(bytes: &[u8]) -> Result<Self, PictureError> {
        // A PNG begins with its signature and the header chunk: length, name, width, height.
        let not_png = PictureError::NotPng { bytes: bytes.len() };
        let Some((signature, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(not_png);
        };
        let Some(
            [
                _,
                _,
                _,
                _,
                b'I',
                b'H',
                b'D',
                b'R',
                w0,
                w1,
                w2,
                w3,
                h0,
                h1,
                h2,
                h3,
            ],
        ) = rest.first_chunk()
        else {
            return Err(not_png);
        };
        if *signature != PNG_SIGNATURE {
            return Err(not_png);
        }
        let width = u64::from(u32::from_be_bytes([*w0, *w1, *w2, *w3]));
        let height = u64::from(u32::from_be_bytes([*h0, *h1, *h2, *h3]));
        check_size(width, height)?;
        let reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
        let decoded = reader.decode().map_err(|source| PictureError::Corrupt {
            width,
            height,
            source,
        })?;
        let pixels = decoded.into_rgb8();
        Self::new(
            pixels.width() as usize,
            pixels.height() as usize,
            pixels.into_raw(),
        )
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels, row-major.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The picture stretched or shrunk to a square, by a triangle filter.
    pub fn resized(&self, size: usize) -> Self {
        if (self.width, self.height) == (size, size) {
            return self.clone();
        }
        let pixels = RgbImage::from_raw(self.width as u32, self.height as u32, self.rgb.clone())
            .expect("pixels fit width and height, as checked when made");
        let side = size as u32;
        let resized = imageops::resize(&pixels, side, side, imageops::FilterType::Triangle);
        Self {
            width: size,
            height: size,
            rgb: resized.into_raw(),
        }
    }

    /// Mean colour of each cell of a `cells` × `cells` grid: `[cells × cells × 3]`, 0 to 1.
    pub fn pooled(&self, cells: usize) -> Vec<f32> {
        let bytes = self.resized(cells).rgb;
        bytes
            .into_iter()
            .map(|byte| f32::from(byte) / 255.0)
            .collect()
    }
}

fn check_size(width: u64, height: u64) -> Result<(), PictureError> {
    match width.checked_mul(height) {
        Some(0) => Err(PictureError::ZeroSize { width, height }),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(PictureError::TooLarge {
            width,
            height,
            max_pixels: MAX_PIXELS,
        }),
    }
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
    use proptest::prelude::*;

    use super::*;

    fn png(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(rgb, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    #[test]
    fn a_png_is_decoded_and_resized() {
        let picture = Picture::from_png(&png(2, 1, &[0, 100, 200, 200, 100, 0])).unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 1));
        assert_eq!(picture.rgb(), [0, 100, 200, 200, 100, 0]);
        assert_eq!(picture.resized(1).rgb(), [100, 100, 100]);
        assert_eq!(picture.pooled(1), [100.0 / 255.0; 3]);
    }

    #[test]
    fn grey_and_transparent_pictures_become_rgb() {
        let mut grey = Vec::new();
        PngEncoder::new(&mut grey)
            .write_image(&[7, 8], 2, 1, ExtendedColorType::L8)
            .unwrap();
        assert_eq!(Picture::from_png(&grey).unwrap().rgb(), [7, 7, 7, 8, 8, 8]);
        let mut clear = Vec::new();
        PngEncoder::new(&mut clear)
            .write_image(&[1, 2, 3, 0], 1, 1, ExtendedColorType::Rgba8)
            .unwrap();
        assert_eq!(Picture::from_png(&clear).unwrap().rgb(), [1, 2, 3]);
    }

    /// A PNG whose header says another size.
    fn with_size(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png(1, 1, &[1, 2, 3]);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        bytes
    }

    #[test]
    fn bad_pictures_are_refused_by_kind() {
        let refused = |bytes: &[u8]| Picture::from_png(bytes).unwrap_err();
        assert!(matches!(
            refused(&with_size(0, 5)),
            PictureError::ZeroSize {
                width: 0,
                height: 5
            }
        ));
        // A bomb is refused by its header, before any memory is taken.
        assert!(matches!(
            refused(&with_size(u32::MAX, u32::MAX)),
            PictureError::TooLarge { .. }
        ));
        assert!(matches!(refused(b""), PictureError::NotPng { bytes: 0 }));
        assert!(matches!(refused(&[7; 100]), PictureError::NotPng { .. }));
        let whole = png(4, 4, &[9; 48]);
        assert!(matches!(
            refused(&whole[..whole.len() - 20]),
            PictureError::Corrupt { .. }
        ));
        assert!(matches!(
            Picture::new(2, 2, vec![0; 5]),
            Err(PictureError::Length { found: 5, .. })
        ));
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0..90usize, value: u8, keep in 0..200usize) {
            let mut bytes = png(4, 4, &[9; 48]);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(keep.max(1));
            let _ = Picture::from_png(&bytes);
        }
    }
}
