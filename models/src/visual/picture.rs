//! Pixels of a picture: decoded within limits, resized, cut into patches.

use std::{
    io::{self, Cursor},
    panic::{self, AssertUnwindSafe},
};

use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use super::{preprocess::Resize, resample::Filter};

/// Most pixels of a picture; more are refused before they are decoded.
pub const MAX_PIXELS: u64 = 1 << 24;

/// Most pixels of a side: those of JPEG.
pub const MAX_SIDE: u64 = 65_535;

/// Most bytes that decoding may take beside the picture: those of all pixels with 16 bits and four
/// channels, twice.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8 * 2;

/// Why a picture was refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The bytes are no picture that is read here.
    #[error("{bytes} bytes that begin as {}, wanted a PNG, JPEG, WebP or GIF", found.unwrap_or("no picture"))]
    Format {
        /// How many there are.
        bytes: usize,
        /// What they look like.
        found: Option<&'static str>,
    },
    /// No pixels.
    #[error("the picture is {width}×{height}, wanted at least 1×1")]
    ZeroSize {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// Too many pixels, or all of them in a line.
    #[error(
        "the picture is {width}×{height}, wanted at most {MAX_PIXELS} pixels and {MAX_SIDE} each way"
    )]
    TooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// Truncated or damaged.
    #[error("decoding {bytes} bytes of {format}")]
    Corrupt {
        /// What it begins as.
        format: &'static str,
        /// How many bytes there are.
        bytes: usize,
        /// Where and why decoding stopped.
        source: ImageError,
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

    /// Takes pixels that are known to fit.
    pub(super) fn of_checked(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        debug_assert_eq!(rgb.len(), width * height * 3);
        Self { width, height, rgb }
    }

    /// Decodes a PNG, JPEG, WebP or GIF of any bit depth and colour type, whatever its file was called;
    /// of an animation the first picture.
    ///
    /// # Errors
    /// [`PictureError`]; sizes are checked before anything is decoded.
    pub fn decode(bytes: &[u8]) -> Result<Self, PictureError> {
        let found = image::guess_format(bytes).ok();
        let (format, name) = match found {
            Some(format @ ImageFormat::Png) => (format, "PNG"),
            Some(format @ ImageFormat::Jpeg) => (format, "JPEG"),
            Some(format @ ImageFormat::WebP) => (format, "WebP"),
            Some(format @ ImageFormat::Gif) => (format, "GIF"),
            other => {
                let found = other.and_then(|format| format.extensions_str().first().copied());
                return Err(PictureError::Format {
                    bytes: bytes.len(),
                    found,
                });
            }
        };
        let corrupt = |source| PictureError::Corrupt {
            format: name,
            bytes: bytes.len(),
            source,
        };
        if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
            let kind = io::ErrorKind::UnexpectedEof;
            let cut = io::Error::new(kind, "it is cut off: there is no end of the picture");
            return Err(corrupt(ImageError::IoError(cut)));
        }
        let reader = || ImageReader::with_format(Cursor::new(bytes), format);
        let (width, height) = reader().into_dimensions().map_err(corrupt)?;
        check_size(width.into(), height.into())?;
        let mut reader = reader();
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        reader.limits(limits);
        let pixels = decoded(reader).map_err(corrupt)?.into_rgb8();
        let (width, height) = (pixels.width() as usize, pixels.height() as usize);
        Self::new(width, height, pixels.into_raw())
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

    /// Mean colour of each cell of a `cells` × `cells` grid: `[cells × cells × 3]`, 0 to 1.
    pub fn pooled(&self, cells: usize) -> Vec<f32> {
        let stretch = Resize::Stretch {
            filter: Filter::Bilinear,
        };
        let bytes = stretch.square(self, cells).rgb;
        bytes
            .into_iter()
            .map(|byte| f32::from(byte) / 255.0)
            .collect()
    }
}

/// Whether a JPEG goes on to its end: where it is cut, its decoder makes up what is missing. Source: ITU-T
/// T.81, B.1.1 (markers and segments).
fn jpeg_ends(bytes: &[u8]) -> bool {
    // A byte of 255 within what is coded is followed by a 0, and restarts have no segment.
    let is_segment =
        |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd8 | 0xff);
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(is_segment) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        if marker == 0xd9 {
            return true;
        }
        let Some(length) = rest.first_chunk() else {
            return false;
        };
        // It counts itself.
        let length = usize::from(u16::from_be_bytes(*length));
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

/// A decoder that panics, as that of png 0.18 does at a palette of four bytes, has met a damaged picture.
fn decoded(reader: ImageReader<Cursor<&[u8]>>) -> Result<DynamicImage, ImageError> {
    panic::catch_unwind(AssertUnwindSafe(|| reader.decode())).unwrap_or_else(|_| {
        let gave_up = io::Error::other("the decoder gave up");
        Err(ImageError::IoError(gave_up))
    })
}

fn check_size(width: u64, height: u64) -> Result<(), PictureError> {
    match width.checked_mul(height) {
        Some(0) => Err(PictureError::ZeroSize { width, height }),
        Some(pixels) if pixels <= MAX_PIXELS && width.max(height) <= MAX_SIDE => Ok(()),
        _ => Err(PictureError::TooLarge { width, height }),
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
        let picture = Picture::decode(&png(2, 1, &[0, 100, 200, 200, 100, 0])).unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 1));
        assert_eq!(picture.rgb(), [0, 100, 200, 200, 100, 0]);
        assert_eq!(picture.pooled(1), [100.0 / 255.0; 3]);
    }

    #[test]
    fn grey_and_transparent_pictures_become_rgb() {
        let mut grey = Vec::new();
        PngEncoder::new(&mut grey)
            .write_image(&[7, 8], 2, 1, ExtendedColorType::L8)
            .unwrap();
        assert_eq!(Picture::decode(&grey).unwrap().rgb(), [7, 7, 7, 8, 8, 8]);
        let mut clear = Vec::new();
        PngEncoder::new(&mut clear)
            .write_image(&[1, 2, 3, 0], 1, 1, ExtendedColorType::Rgba8)
            .unwrap();
        assert_eq!(Picture::decode(&clear).unwrap().rgb(), [1, 2, 3]);
    }

    /// A PNG whose header says another size, with the checksum of that header.
    fn with_size(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png(1, 1, &[1, 2, 3]);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = bytes[12..29].iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        });
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        bytes
    }

    fn example(name: &str) -> Vec<u8> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// Small files whose headers say 20,000 × 20,000.
    fn bombs() -> [(&'static str, Vec<u8>); 3] {
        let side = 20_000u16;
        let frame = |name: &'static str, marker: u8| {
            let mut bytes = example(name);
            let is_frame = |pair: &[u8]| pair == [0xff, marker];
            let at = bytes.windows(2).position(is_frame).unwrap() + 5;
            bytes[at..at + 4].copy_from_slice(&[side.to_be_bytes(); 2].concat());
            (name, bytes)
        };
        let mut gif = example("animated.gif");
        gif[6..10].copy_from_slice(&[side.to_le_bytes(); 2].concat());
        [
            frame("plain.jpg", 0xc0),
            frame("progressive.jpg", 0xc2),
            ("animated.gif", gif),
        ]
    }

    fn refused(bytes: &[u8]) -> PictureError {
        Picture::decode(bytes).unwrap_err()
    }

    #[test]
    fn bad_pictures_are_refused_by_kind() {
        let empty = refused(&with_size(0, 5));
        assert!(matches!(
            empty,
            PictureError::ZeroSize { .. } | PictureError::Corrupt { .. }
        ));
        // A bomb is refused by its header, before any memory is taken.
        for (width, height) in [(20_000, 20_000), (1, 65_536), (65_536, 1)] {
            let bomb = refused(&with_size(width, height));
            assert!(matches!(bomb, PictureError::TooLarge { .. }), "{bomb:?}");
        }
        for (name, bytes) in bombs() {
            let bomb = refused(&bytes);
            assert!(
                matches!(bomb, PictureError::TooLarge { .. }),
                "{name}: {bomb:?}"
            );
        }
        let more = refused(&with_size(i32::MAX as u32, i32::MAX as u32));
        assert!(matches!(more, PictureError::Corrupt { .. }), "{more:?}");
        let none = refused(b"");
        assert!(matches!(
            none,
            PictureError::Format {
                bytes: 0,
                found: None
            }
        ));
        assert!(matches!(refused(&[7; 100]), PictureError::Format { .. }));
        let bitmap = refused(b"BM123456");
        assert!(matches!(
            bitmap,
            PictureError::Format {
                found: Some("bmp"),
                ..
            }
        ));
        let palette = refused(&example("broken-palette.png"));
        assert!(
            matches!(palette, PictureError::Corrupt { .. }),
            "{palette:?}"
        );
        let whole = png(4, 4, &[9; 48]);
        let cut = refused(&whole[..whole.len() - 20]);
        assert!(matches!(cut, PictureError::Corrupt { .. }));
        assert!(matches!(
            Picture::new(2, 2, vec![0; 5]),
            Err(PictureError::Length { found: 5, .. })
        ));
    }

    /// Pictures of models/tests/pictures, each red above blue, and how far off its colours may be.
    const KINDS: [(&str, u8); 9] = [
        ("plain.png", 0),
        ("sixteen-bit.png", 1),
        ("palette.png", 0),
        ("plain.jpg", 40),
        ("progressive.jpg", 40),
        ("cmyk.jpg", 40),
        ("animated.gif", 0),
        ("animated.webp", 40),
        // A JPEG by another name.
        ("plain.jpg.png", 40),
    ];

    #[test]
    fn pictures_of_all_kinds_have_their_colours() {
        for (name, tolerance) in KINDS {
            let bytes = example(name);
            let picture = Picture::decode(&bytes).unwrap();
            assert_eq!((picture.width(), picture.height()), (24, 16), "{name}");
            let [top, bottom] = [2, 13].map(|y| &picture.rgb()[(y * 24 + 12) * 3..][..3]);
            for (found, wanted) in [(top, [230, 20, 30]), (bottom, [20, 40, 220])] {
                for (found, wanted) in found.iter().zip(wanted) {
                    assert!(
                        found.abs_diff(wanted) <= tolerance,
                        "{name}: {found} {wanted}"
                    );
                }
            }
            // Whatever is cut off is an error, or the picture that was whole before.
            let kept = (0..bytes.len()).map(|keep| Picture::decode(&bytes[..keep]));
            for (keep, found) in kept.enumerate() {
                let whole = found.as_ref().is_ok_and(|found| *found == picture);
                assert!(found.is_err() || whole, "{name} cut to {keep}");
                assert!(!whole || keep > bytes.len() / 3, "{name} cut to {keep}");
            }
        }
    }

    #[test]
    fn a_single_pixel_fills_a_square() {
        let picture = Picture::decode(&png(1, 1, &[1, 2, 3])).unwrap();
        assert_eq!(
            picture.pooled(2),
            [1.0, 2.0, 3.0].map(|byte| byte / 255.0).repeat(4)
        );
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0..90usize, value: u8, keep in 0..200usize) {
            let mut bytes = png(4, 4, &[9; 48]);
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(keep.max(1));
            let _ = Picture::decode(&bytes);
        }
    }
}
