//! Ranks of clicked creatives, and the baseline that a trained tower has to beat.

use models::visual::Picture;

use super::pairs::{Gallery, Pairs};

/// Side of the average picture, in pixels.
const SIDE: usize = 4;

/// Length of an average picture's vector.
pub const PIXEL_DIM: usize = 3 * SIDE * SIDE;

/// Average pictures (4×4 pixels, centred over all pictures, length 1) of scenes and creatives:
/// likeness without learning.
pub fn pixel_average_vectors(gallery: &Gallery) -> (Vec<f32>, Vec<f32>) {
    let average = |pictures: &[Picture]| -> Vec<Vec<f32>> {
        pictures
            .iter()
            .map(|picture| picture.pooled(SIDE))
            .collect()
    };
    let (mut scenes, mut creatives) = (
        average(&gallery.scene_pictures),
        average(&gallery.creative_pictures),
    );
    let count = (scenes.len() + creatives.len()).max(1) as f32;
    let mean: Vec<f32> = (0..PIXEL_DIM)
        .map(|at| {
            scenes
                .iter()
                .chain(&creatives)
                .map(|vector| vector[at])
                .sum::<f32>()
                / count
        })
        .collect();
    for vector in scenes.iter_mut().chain(&mut creatives) {
        vector
            .iter_mut()
            .zip(&mean)
            .for_each(|(value, mean)| *value -= mean);
        let norm = vector
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(1e-12);
        vector.iter_mut().for_each(|value| *value /= norm);
    }
    (scenes.concat(), creatives.concat())
}

/// Rank, from 0, of each pair's creative among those of its format, by scalar product with the
/// scene; ties count against it.
///
/// # Shapes
/// - `scenes`: `[num_scenes, dim]`, `creatives`: `[num_creatives, dim]`
pub fn ranks(
    gallery: &Gallery,
    pairs: &Pairs,
    scenes: &[f32],
    creatives: &[f32],
    dim: usize,
) -> Vec<usize> {
    let row = |values: &[f32], at: usize| -> Vec<f32> { values[at * dim..(at + 1) * dim].to_vec() };
    let score = |scene: &[f32], creative: usize| -> f32 {
        scene
            .iter()
            .zip(&creatives[creative * dim..(creative + 1) * dim])
            .map(|(a, b)| a * b)
            .sum()
    };
    let one = |(scene, clicked): (&usize, &usize)| {
        let scene = row(scenes, *scene);
        let own = score(&scene, *clicked);
        gallery
            .candidates(*clicked)
            .filter(|other| other != clicked && score(&scene, *other) >= own)
            .count()
    };
    pairs.scenes.iter().zip(&pairs.creatives).map(one).collect()
}
