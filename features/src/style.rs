//! The style of a picture in eight numbers, cheap enough for every creative that arrives.
//!
//! In order: mean luminance, luminance contrast (standard deviation), mean red, green and blue
//! share of the light, saturation, horizontal and vertical edge density. All lie in 0..=1.
//! Luminance weights are those of ITU-R BT.709.

/// Number of values in a style.
pub const STYLE_DIM: usize = 8;

/// Describes a picture's style.
///
/// # Shapes
/// - `rgb`: `[height, width, 3]`, row-major, 0 to 255
/// - returns the style; all zeros if the picture has no pixel or `rgb` has another length
pub fn describe(rgb: &[u8], width: usize, height: usize) -> [f32; STYLE_DIM] {
    let pixels = width * height;
    if pixels == 0 || rgb.len() != pixels * 3 {
        return [0.0; STYLE_DIM];
    }
    let mut sums = [0.0f64; 3];
    let mut saturation = 0.0f64;
    let mut luminance = Vec::with_capacity(pixels);
    for pixel in rgb.chunks_exact(3) {
        let channels = [pixel[0], pixel[1], pixel[2]].map(|value| f64::from(value) / 255.0);
        for (sum, value) in sums.iter_mut().zip(channels) {
            *sum += value;
        }
        let high = channels.iter().copied().fold(0.0, f64::max);
        let low = channels.iter().copied().fold(1.0, f64::min);
        saturation += if high > 0.0 { (high - low) / high } else { 0.0 };
        luminance.push(0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]);
    }
    let n = pixels as f64;
    let mean = luminance.iter().sum::<f64>() / n;
    let variance = luminance
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / n;
    let light = sums.iter().sum::<f64>().max(1e-9);
    let edges = |step: usize, count: usize, inside: &dyn Fn(usize) -> bool| {
        let total: f64 = (0..pixels)
            .filter(|&at| inside(at))
            .map(|at| (luminance[at + step] - luminance[at]).abs())
            .sum();
        total / count.max(1) as f64
    };
    let horizontal = edges(1, (width - 1) * height, &|at| at % width + 1 < width);
    let vertical = edges(width, width * (height - 1), &|at| at / width + 1 < height);
    [
        mean,
        variance.sqrt(),
        sums[0] / light,
        sums[1] / light,
        sums[2] / light,
        saturation / n,
        horizontal,
        vertical,
    ]
    .map(|value| value as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_red_picture_has_no_contrast_and_no_edge() {
        let style = describe(&[255, 0, 0].repeat(12), 4, 3);
        assert!((style[0] - 0.2126).abs() < 1e-6);
        let rest = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        assert!(
            style[1..]
                .iter()
                .zip(rest)
                .all(|(found, wanted)| (found - wanted).abs() < 1e-6)
        );
    }

    #[test]
    fn vertical_stripes_are_horizontal_edges() {
        let row = [[255; 3], [0; 3], [255; 3], [0; 3]].concat();
        let style = describe(&row.repeat(3), 4, 3);
        assert!((style[6] - 1.0).abs() < 1e-6);
        assert_eq!(style[7], 0.0);
    }

    #[test]
    fn no_pixels_or_a_wrong_length_give_zeros() {
        assert_eq!(describe(&[], 0, 0), [0.0; STYLE_DIM]);
        assert_eq!(describe(&[1, 2, 3], 2, 2), [0.0; STYLE_DIM]);
    }
}
