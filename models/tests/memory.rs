//! Hostile files take little memory: a whole process's allocations, counted, around each of them.

use std::{fs, path::PathBuf};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use models::{
    Cpu,
    visual::{
        Centre, Filter, Picture, Pretrained, PretrainedConfig, Resize,
        picture::{MAX_PIXELS, MAX_SIDE},
    },
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// What some work takes at most beside what there was before, in bytes, and its result.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let result = work();
    (ALLOCATED.peak_usage() - before, result)
}

fn example(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
    fs::read(folder.join(name)).unwrap()
}

/// A PNG of one colour, whose pixels are truly there: some kilobytes for each of its megabytes.
fn png([width, height]: [u32; 2], kind: ExtendedColorType, bytes_per_pixel: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![9; width as usize * height as usize * bytes_per_pixel];
    let encoder = PngEncoder::new(&mut bytes);
    encoder.write_image(&pixels, width, height, kind).unwrap();
    bytes
}

/// An animated WebP whose canvas says 16,000 × 16,000.
fn webp_bomb() -> Vec<u8> {
    let mut bytes = example("animated.webp");
    assert_eq!(&bytes[12..16], b"VP8X");
    let side = &15_999u32.to_le_bytes()[..3];
    bytes[24..27].copy_from_slice(side);
    bytes[27..30].copy_from_slice(side);
    bytes
}

/// One test: what another allocates meanwhile would be counted.
#[test]
fn hostile_files_take_little_memory() {
    // 400 million pixels, packed into some hundred kilobytes.
    let (side, grey) = (20_000, ExtendedColorType::L8);
    let bombs = [("png", png([side, side], grey, 1)), ("webp", webp_bomb())];
    for (name, bytes) in bombs {
        let (taken, found) = peak(|| Picture::decode(&bytes));
        assert!(found.is_err(), "{name}");
        assert!(taken < MIB, "{name} of {} bytes took {taken}", bytes.len());
    }

    // The largest that is read, of the kind that takes most to decode.
    let (side, deep) = (4096, ExtendedColorType::Rgba16);
    assert_eq!(u64::from(side) * u64::from(side), MAX_PIXELS);
    let largest = png([side, side], deep, 8);
    let (taken, found) = peak(|| Picture::decode(&largest));
    assert_eq!(found.unwrap().rgb().len() as u64, 3 * MAX_PIXELS);
    let pixels = MAX_PIXELS as usize * (8 + 3);
    assert!(taken < 2 * pixels, "{taken} bytes, {} wanted", 2 * pixels);

    // The narrowest: were all of it enlarged before the middle is cut out, that would be 4,300 million pixels.
    let crop = Resize::Crop {
        filter: Filter::Bicubic,
        short_side: 256,
        centre: Centre::HalfEven,
    };
    for size in [[1, MAX_SIDE as u32], [MAX_SIDE as u32, 1]] {
        let picture = Picture::decode(&png(size, grey, 1)).unwrap();
        let (taken, square) = peak(|| crop.square(&picture, 224));
        assert_eq!(square.rgb(), [9; 3 * 224 * 224]);
        assert!(taken < MIB, "{size:?}: {taken} bytes");
    }

    // Weights whose header says more than there is.
    let load = |bytes: &[u8]| {
        let (taken, found) = peak(|| {
            let wanted = PretrainedConfig::default();
            Pretrained::<Cpu>::from_bytes(bytes, &wanted, &Default::default()).map(drop)
        });
        (taken, found.unwrap_err().to_string())
    };
    for length in [u64::MAX, 1 << 40, 99_999_999] {
        let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let (taken, error) = load(&[&length.to_le_bytes()[..], header].concat());
        assert!(taken < MIB, "{length}: {taken} bytes, {error}");
    }
    for shape in [
        "[18446744073709551615,2]",
        "[4294967296,4294967296]",
        "[1099511627776]",
    ] {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        let length = (header.len() as u64).to_le_bytes();
        let (taken, error) = load(&[&length[..], header.as_bytes(), &[0; 4]].concat());
        assert!(taken < MIB, "{shape}: {taken} bytes, {error}");
    }
}
