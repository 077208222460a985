//! How well vectors find clicked creatives, and the baseline that a trained tower has to beat.

use std::collections::{BTreeMap, BTreeSet};

use models::{metrics::recall_at_k, visual::Picture};
use serde::Serialize;

use super::{
    fit::Features,
    pairs::{Gallery, Pairs},
};

/// What is measured of vectors on held-out pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retrieval {
    /// Share of pairs whose creative is the nearest of its format to the scene.
    pub recall_at_1: f64,
    /// Share of pairs whose creative is among the ten nearest.
    pub recall_at_10: f64,
    /// Share of pairs whose creative is among the hundred nearest.
    pub recall_at_100: f64,
    /// Mean average precision of the creatives clicked in a scene, over scenes and formats.
    pub map: f64,
    /// The same by the genre of the scene's experience.
    pub map_by_genre: BTreeMap<String, f64>,
    /// Mean squared distance of clicked pairs; less is better. Source: Wang and Isola, "Understanding
    /// Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", ICML 2020.
    pub alignment: f64,
    /// Logarithm of the mean of `exp(−2 distance²)` over pairs of distinct creatives: how evenly they spread;
    /// less is better. Same source.
    pub uniformity: f64,
    /// Rank of each pair's creative, from 0.
    #[serde(skip)]
    pub ranks: Vec<usize>,
}

impl Retrieval {
    /// Measures vectors of unit length.
    pub fn of(gallery: &Gallery, pairs: &Pairs, vectors: &Features) -> Self {
        let Features {
            scenes,
            creatives,
            dim,
        } = vectors;
        let ranks = ranks(gallery, pairs, vectors);
        let precisions = precisions(gallery, pairs, &ranks);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let mut by_genre: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (scene, precision) in &precisions {
            by_genre
                .entry(&gallery.scene_genres[*scene])
                .or_default()
                .push(*precision);
        }
        let all: Vec<f64> = precisions.iter().map(|(_, precision)| *precision).collect();
        Self {
            recall_at_1: recall_at_k(&ranks, 1),
            recall_at_10: recall_at_k(&ranks, 10),
            recall_at_100: recall_at_k(&ranks, 100),
            map: mean(&all),
            map_by_genre: by_genre
                .into_iter()
                .map(|(genre, values)| (genre.to_owned(), mean(&values)))
                .collect(),
            alignment: alignment(pairs, scenes, creatives, *dim),
            uniformity: uniformity(creatives, *dim),
            ranks,
        }
    }
}

/// Average precision of each scene and format: the mean, over the creatives clicked there, of the share of
/// clicked ones among those that are at least as near.
fn precisions(gallery: &Gallery, pairs: &Pairs, ranks: &[usize]) -> Vec<(usize, f64)> {
    let mut clicked: BTreeMap<(usize, &str), BTreeSet<(usize, usize)>> = BTreeMap::new();
    for ((scene, creative), rank) in pairs.scenes.iter().zip(&pairs.creatives).zip(ranks) {
        let format = &gallery.creative_formats[*creative];
        clicked
            .entry((*scene, format))
            .or_default()
            .insert((*rank, *creative));
    }
    let precision = |found: &BTreeSet<(usize, usize)>| {
        let each = (1..)
            .zip(found)
            .map(|(place, (rank, _))| f64::from(place) / (rank + 1) as f64);
        each.map(|precision| precision.min(1.0)).sum::<f64>() / found.len() as f64
    };
    let all = clicked
        .iter()
        .map(|((scene, _), found)| (*scene, precision(found)));
    all.collect()
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let terms = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    terms.sum()
}

fn alignment(pairs: &Pairs, scenes: &[f32], creatives: &[f32], dim: usize) -> f64 {
    let one = |(scene, creative): (&usize, &usize)| {
        squared_distance(
            &scenes[scene * dim..][..dim],
            &creatives[creative * dim..][..dim],
        )
    };
    let all = pairs.scenes.iter().zip(&pairs.creatives).map(one);
    all.sum::<f64>() / pairs.scenes.len().max(1) as f64
}

/// Most vectors of which all pairs are compared.
const MOST_COMPARED: usize = 2000;

fn uniformity(vectors: &[f32], dim: usize) -> f64 {
    let count = vectors.len() / dim;
    // Evenly chosen where there are too many.
    let chosen: Vec<&[f32]> = (0..count.min(MOST_COMPARED))
        .map(|at| &vectors[at * count / count.min(MOST_COMPARED) * dim..][..dim])
        .collect();
    let mut sum = 0.0;
    let mut pairs = 0u64;
    for (at, one) in chosen.iter().enumerate() {
        for other in &chosen[..at] {
            sum += (-2.0 * squared_distance(one, other)).exp();
            pairs += 1;
        }
    }
    (sum / pairs.max(1) as f64).ln()
}

/// Side of the average picture, in pixels.
const SIDE: usize = 4;

/// Length of an average picture's vector.
pub const PIXEL_DIM: usize = 3 * SIDE * SIDE;

/// Average pictures (4×4 pixels, centred over all pictures, length 1) of scenes and creatives:
/// likeness without learning.
pub fn pixel_average_vectors(gallery: &Gallery) -> Features {
    let average = |pictures: &[Picture]| -> Vec<f32> {
        pictures
            .iter()
            .flat_map(|picture| picture.pooled(SIDE))
            .collect()
    };
    let pixels = Features {
        scenes: average(&gallery.scene_pictures),
        creatives: average(&gallery.creative_pictures),
        dim: PIXEL_DIM,
    };
    centred(pixels)
}

/// Vectors with their mean over all taken away, and length 1.
pub fn centred(mut vectors: Features) -> Features {
    let dim = vectors.dim;
    let count = (vectors.scenes.len() + vectors.creatives.len()) / dim;
    let mut mean = vec![0.0; dim];
    for row in vectors
        .scenes
        .chunks(dim)
        .chain(vectors.creatives.chunks(dim))
    {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += value / count.max(1) as f32;
        }
    }
    let rows = vectors
        .scenes
        .chunks_mut(dim)
        .chain(vectors.creatives.chunks_mut(dim));
    for row in rows {
        row.iter_mut()
            .zip(&mean)
            .for_each(|(value, mean)| *value -= mean);
        let norm = row
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(1e-12);
        row.iter_mut().for_each(|value| *value /= norm);
    }
    vectors
}

/// Rank, from 0, of each pair's creative among those of its format, by scalar product with the
/// scene; ties count against it.
pub fn ranks(gallery: &Gallery, pairs: &Pairs, vectors: &Features) -> Vec<usize> {
    let Features {
        scenes,
        creatives,
        dim,
    } = vectors;
    let dim = *dim;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One scene and three creatives of a format, on a circle.
    fn world() -> (Gallery, Features) {
        let picture = || Picture::new(1, 1, vec![0; 3]).unwrap();
        let gallery = Gallery::from_pictures(
            vec![picture(); 2],
            vec![picture(); 3],
            vec!["billboard".into(); 3],
        );
        let vectors = Features {
            scenes: vec![1.0, 0.0, 0.0, 1.0],
            creatives: vec![0.8, 0.6, 0.0, 1.0, -1.0, 0.0],
            dim: 2,
        };
        (gallery, vectors)
    }

    #[test]
    fn precision_counts_all_that_were_clicked() {
        let (mut gallery, vectors) = world();
        gallery.scene_genres[1] = "racing".to_owned();
        let pairs = Pairs {
            scenes: vec![0, 0, 0, 1],
            creatives: vec![0, 2, 2, 0],
            ..Pairs::default()
        };
        let found = Retrieval::of(&gallery, &pairs, &vectors);
        assert_eq!(found.ranks, [0, 2, 2, 1]);
        assert_eq!(found.recall_at_1, 0.25);
        // Scene 0: the first and the third of three; scene 1: the second.
        assert_eq!(found.map_by_genre["obby"], (1.0 + 2.0 / 3.0) / 2.0);
        assert_eq!(found.map_by_genre["racing"], 0.5);
        assert!((found.map - (5.0 / 6.0 + 0.5) / 2.0).abs() < 1e-12);
        // Squared distances 0.4, 4, 4 and 0.8.
        assert!((found.alignment - 2.3).abs() < 1e-6, "{}", found.alignment);
        let wanted = ((-1.6f64).exp() + (-7.2f64).exp() + (-4.0f64).exp()) / 3.0;
        assert!((found.uniformity - wanted.ln()).abs() < 1e-6);
    }

    #[test]
    fn centred_vectors_have_no_mean_and_length_one() {
        let (_, vectors) = world();
        let moved = centred(vectors);
        for row in moved.scenes.chunks(2).chain(moved.creatives.chunks(2)) {
            assert!((row[0].hypot(row[1]) - 1.0).abs() < 1e-6);
        }
    }
}
