//! Resizing as the sources of models do it, to the bit: Pillow's of pixels, PyTorch's of grids.
//!
//! A network that was trained on pictures of one filter loses a little on those of another, and no test
//! sees it. So both algorithms are here as they are there: Pillow's `Resample.c` (two passes, weights of
//! 22 bits, eight bits between the passes), and PyTorch's bicubic interpolation of position embeddings.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How far a pixel reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// A triangle: Pillow's `BILINEAR`.
    Bilinear,
    /// Cubic pieces with a = −½: Pillow's `BICUBIC`.
    Bicubic,
    /// A windowed sinc over three pixels: Pillow's `LANCZOS`.
    Lanczos,
}

impl Filter {
    /// Pixels that it reaches each way where nothing shrinks.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic => cubic(x, -0.5),
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The cubic convolution kernel at a distance. Source: Keys, "Cubic Convolution Interpolation for Digital
/// Image Processing", 1981.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Which inputs an output is made of, and how much of each.
struct Window {
    first: usize,
    weights: Vec<f64>,
}

/// The windows of a part of `to` outputs; a filter is stretched where the picture shrinks.
fn windows(from: usize, to: usize, part: Range<usize>, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    part.map(|at| {
        let centre = (at as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |at: usize| filter.weight((at as f64 - centre + 0.5) * (1.0 / stretch));
        let mut weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Window { first, weights }
    })
    .collect()
}

/// Bits of a weight after the point.
const WEIGHT_BITS: u32 = 22;

/// A part of an RGB picture at another size, as the `resize` of Pillow 13 has it: in two passes, the one
/// down the columns first where that takes away more than twice what the other does. (Before Pillow 13 it
/// was always the second; single pixels differ.) Only what the part is made of is computed.
///
/// # Shapes
/// - `rgb`: `[height, width, 3]`, `[width, height] = from`
/// - `part`: columns and rows of the `[to[1], to[0]]` pixels; returns `[part[1], part[0], 3]`
pub fn resize(
    rgb: &[u8],
    from: [usize; 2],
    to: [usize; 2],
    part: [Range<usize>; 2],
    filter: Filter,
) -> Vec<u8> {
    let taken_away = |axis: usize| from[axis] as i64 - to[axis] as i64;
    let columns_first = taken_away(1) > 0 && taken_away(1) > 2 * taken_away(0);
    let order = if columns_first { [1, 0] } else { [0, 1] };
    let steps: [Step; 2] =
        std::array::from_fn(|axis| Step::new(from[axis], to[axis], &part[axis], filter));
    let sources = [&steps[0], &steps[1]].map(|step| step.sources.clone());
    let mut size = [0, 1].map(|axis: usize| sources[axis].len());
    let mut pixels = cropped(rgb, from[0], &sources);
    for axis in order {
        if let Some(windows) = &steps[axis].windows {
            pixels = pass(&pixels, size, axis, windows);
            size[axis] = windows.len();
        }
    }
    pixels
}

/// What one axis of a part is made of.
struct Step {
    /// Pixels of the source.
    sources: Range<usize>,
    /// First of them, counted from the first source, and weights in whole numbers; none: the sources themselves.
    windows: Option<Vec<(usize, Vec<i32>)>>,
}

impl Step {
    fn new(from: usize, to: usize, part: &Range<usize>, filter: Filter) -> Self {
        if from == to {
            return Self {
                sources: part.clone(),
                windows: None,
            };
        }
        let whole = |weight: f64| {
            let scaled = weight * f64::from(1 << WEIGHT_BITS);
            // Truncated after half was added towards its sign.
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        let windows = windows(from, to, part.clone(), filter);
        // They begin and end in the order of the outputs.
        let start = windows.first().map_or(0, |window| window.first);
        let end = windows
            .last()
            .map_or(0, |window| window.first + window.weights.len());
        let from_start = |window: Window| {
            let weights = window.weights.into_iter().map(whole).collect();
            (window.first - start, weights)
        };
        Self {
            sources: start..end,
            windows: Some(windows.into_iter().map(from_start).collect()),
        }
    }
}

/// Columns and rows of a picture.
fn cropped(rgb: &[u8], width: usize, [columns, rows]: &[Range<usize>; 2]) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(columns.len() * rows.len() * 3);
    for line in rgb
        .chunks_exact(width * 3)
        .skip(rows.start)
        .take(rows.len())
    {
        pixels.extend_from_slice(&line[columns.start * 3..columns.end * 3]);
    }
    pixels
}

/// Resizes a picture of `[width, height]` along one of them. Across, a line of cells is a row of pixels;
/// down, it is the whole picture, whose cells are rows.
fn pass(
    pixels: &[u8],
    [width, height]: [usize; 2],
    axis: usize,
    windows: &[(usize, Vec<i32>)],
) -> Vec<u8> {
    let (cell, line) = [(3, width * 3), (width * 3, height * width * 3)][axis];
    let mut out = Vec::with_capacity(pixels.len() / line * windows.len() * cell);
    let mut sums = vec![0i32; cell];
    for line in pixels.chunks_exact(line) {
        for (first, weights) in windows {
            sums.fill(1 << (WEIGHT_BITS - 1));
            let cells = line[first * cell..].chunks_exact(cell);
            for (pixels, weight) in cells.zip(weights) {
                for (sum, byte) in sums.iter_mut().zip(pixels) {
                    *sum += i32::from(*byte) * weight;
                }
            }
            out.extend(
                sums.iter()
                    .map(|sum| (sum >> WEIGHT_BITS).clamp(0, 255) as u8),
            );
        }
    }
    out
}

/// How a source interpolates its grid of position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GridFilter {
    /// `interpolate(mode="bicubic")`: four points each way, a = −¾. Hugging Face.
    Plain,
    /// `interpolate(mode="bicubic", antialias=True)`: as pictures are shrunk, a = −½. timm.
    AntiAliased,
}

/// A square grid of vectors at another size.
///
/// # Shapes
/// - `grid`: `[from × from, dim]`; returns `[to × to, dim]`
pub fn resize_grid(
    grid: &[f32],
    from: usize,
    to: usize,
    dim: usize,
    filter: GridFilter,
) -> Vec<f32> {
    if from == to {
        return grid.to_vec();
    }
    let windows = match filter {
        GridFilter::AntiAliased => windows(from, to, 0..to, Filter::Bicubic)
            .into_iter()
            .map(|window| (window.first..).zip(window.weights).collect())
            .collect(),
        GridFilter::Plain => points(from, to),
    };
    let weighted = |sources: &[(usize, f64)], cell: &dyn Fn(usize) -> f32| -> f32 {
        let terms = sources
            .iter()
            .map(|(at, weight)| f64::from(cell(*at)) * weight);
        terms.sum::<f64>() as f32
    };
    let mut out = Vec::with_capacity(to * to * dim);
    for rows in &windows {
        // One row of the grid at its old width, then at its new one.
        let line: Vec<f32> = (0..from * dim)
            .map(|at| weighted(rows, &|row| grid[row * from * dim + at]))
            .collect();
        for columns in &windows {
            out.extend((0..dim).map(|at| weighted(columns, &|column| line[column * dim + at])));
        }
    }
    out
}

/// The four points that each output lies between; beyond the border stands what is at the border.
fn points(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|at| {
            let place = (at as f64 + 0.5) * scale - 0.5;
            let (floor, rest) = (place.floor(), place - place.floor());
            (-1..=2)
                .map(|step| {
                    let source = (floor as i64 + step).clamp(0, from as i64 - 1);
                    (source as usize, cubic((step as f64 - rest).abs(), -0.75))
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(rgb: &[u8], from: [usize; 2], to: [usize; 2], filter: Filter) -> Vec<u8> {
        resize(rgb, from, to, to.map(|side| 0..side), filter)
    }

    #[test]
    fn a_picture_of_one_colour_keeps_it() {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let rgb = [9, 100, 250].repeat(7 * 5);
            for to in [[3, 11], [7, 2], [20, 5], [1, 1]] {
                let resized = whole(&rgb, [7, 5], to, filter);
                assert_eq!(resized, [9, 100, 250].repeat(to[0] * to[1]), "{filter:?}");
            }
        }
    }

    #[test]
    fn a_grid_of_one_vector_keeps_it() {
        for filter in [GridFilter::Plain, GridFilter::AntiAliased] {
            let grid = [0.25, -3.0].repeat(16);
            for to in [1, 3, 4, 9] {
                for (found, wanted) in resize_grid(&grid, 4, to, 2, filter)
                    .iter()
                    .zip([0.25f32, -3.0].repeat(to * to))
                {
                    assert!((found - wanted).abs() < 1e-6);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_size_gives_every_other(
            from in [1..40usize, 1..40usize],
            to in [1..40usize, 1..40usize],
            seed: u8,
        ) {
            let rgb: Vec<u8> = (0..from[0] * from[1] * 3).map(|at| (at as u8).wrapping_mul(seed)).collect();
            for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                prop_assert_eq!(whole(&rgb, from, to, filter).len(), to[0] * to[1] * 3);
            }
        }

        #[test]
        fn a_part_is_what_the_whole_has_there(
            from in [1..40usize, 1..40usize],
            to in [1..40usize, 1..40usize],
            place in [0.0..1.0, 0.0..1.0],
            share in [0.0..1.0, 0.0..1.0],
            seed: u64,
        ) {
            let mut random = seed;
            let rgb: Vec<u8> = (0..from[0] * from[1] * 3).map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            }).collect();
            let part: [Range<usize>; 2] = std::array::from_fn(|axis| {
                let first = (place[axis] * to[axis] as f64) as usize;
                first..first + 1 + (share[axis] * (to[axis] - first - 1) as f64) as usize
            });
            for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                let wanted = cropped(&whole(&rgb, from, to, filter), to[0], &part);
                prop_assert_eq!(resize(&rgb, from, to, part.clone(), filter), wanted);
            }
        }
    }
}
