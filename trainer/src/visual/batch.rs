//! Which pictures a step sees: some clicked pairs, and the negatives that they bring along.

use std::collections::{BTreeMap, HashSet};

use models::visual::ContrastBatch;
use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    config::NegativesConfig,
    pairs::{Gallery, Pairs},
};

/// What is known of the training rows, for the choice of negatives.
#[derive(Debug)]
pub(super) struct History<'a> {
    gallery: &'a Gallery,
    pairs: &'a Pairs,
    /// Scenes and creatives that were clicked there.
    clicked: HashSet<(usize, usize)>,
    /// `[num_creatives]`: logarithm of how often each stands in a pair, which sampled negatives are
    /// corrected by. Source: Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019.
    log_frequency: Vec<f32>,
}

/// A step's pictures, numbered anew: each goes through the network once.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    /// Numbers of the scenes in the gallery.
    pub scenes: Vec<usize>,
    /// Numbers of the creatives in the gallery.
    pub creatives: Vec<usize>,
    pair_scenes: Vec<usize>,
    pair_creatives: Vec<usize>,
    negatives: Vec<usize>,
    correction: Vec<f32>,
    known: HashSet<(usize, usize)>,
}

impl<'a> History<'a> {
    pub(super) fn new(gallery: &'a Gallery, pairs: &'a Pairs) -> Self {
        let mut seen = vec![0u32; gallery.creative_pictures.len()];
        pairs
            .creatives
            .iter()
            .for_each(|creative| seen[*creative] += 1);
        let share = |seen: u32| seen.max(1) as f32 / pairs.creatives.len().max(1) as f32;
        Self {
            gallery,
            pairs,
            clicked: pairs
                .scenes
                .iter()
                .copied()
                .zip(pairs.creatives.iter().copied())
                .collect(),
            log_frequency: seen.into_iter().map(|seen| share(seen).ln()).collect(),
        }
    }

    /// The pairs of an epoch, in an order of its own.
    pub(super) fn order(&self, random: &mut ChaCha8Rng) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pairs.scenes.len()).collect();
        order.shuffle(random);
        order
    }

    /// The batch of some pairs.
    pub(super) fn batch(
        &self,
        chosen: &[usize],
        config: &NegativesConfig,
        random: &mut ChaCha8Rng,
    ) -> Batch {
        let (mut scenes, mut creatives) = (Numbers::default(), Numbers::default());
        let mut batch = Batch::default();
        for pair in chosen {
            batch.pair_scenes.push(scenes.of(self.pairs.scenes[*pair]));
            batch
                .pair_creatives
                .push(creatives.of(self.pairs.creatives[*pair]));
        }
        for pair in chosen {
            let (scene, creative) = (self.pairs.scenes[*pair], self.pairs.creatives[*pair]);
            let unclicked = |other: &usize| !self.clicked.contains(&(scene, *other));
            let shown = self.pairs.shown_in(scene).iter().copied().filter(unclicked);
            let related = self.gallery.same_campaign(creative).filter(unclicked);
            let drawn = draw(shown, config.not_clicked, random);
            let drawn = drawn
                .into_iter()
                .chain(draw(related, config.same_campaign, random));
            batch
                .negatives
                .extend(drawn.map(|creative| creatives.of(creative)));
        }
        (batch.scenes, batch.creatives) = (scenes.all, creatives.all);
        for (row, scene) in batch.scenes.iter().enumerate() {
            let known =
                |(_, creative): &(usize, &usize)| self.clicked.contains(&(*scene, **creative));
            let known = batch.creatives.iter().enumerate().filter(known);
            batch.known.extend(known.map(|(column, _)| (row, column)));
        }
        let columns = batch.pair_creatives.iter().chain(&batch.negatives);
        let frequency = |column: &usize| self.log_frequency[batch.creatives[*column]];
        batch.correction = columns.map(frequency).collect();
        batch
    }
}

impl Batch {
    /// As the loss takes it.
    pub(super) fn contrast(&self) -> ContrastBatch<'_> {
        ContrastBatch {
            creatives: &self.pair_creatives,
            scenes: &self.pair_scenes,
            negatives: &self.negatives,
            correction: &self.correction,
            known: &self.known,
        }
    }
}

/// Some of these, at most so many, each once.
fn draw(from: impl Iterator<Item = usize>, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    // A reservoir: each is kept with the same chance, however many there are.
    let mut kept = Vec::with_capacity(count);
    for (seen, candidate) in from.enumerate() {
        if kept.len() < count {
            kept.push(candidate);
        } else {
            let place = random.random_range(0..=seen);
            if place < count {
                kept[place] = candidate;
            }
        }
    }
    kept
}

/// Gives numbers in order of first sight.
#[derive(Default)]
struct Numbers {
    all: Vec<usize>,
    places: BTreeMap<usize, usize>,
}

impl Numbers {
    fn of(&mut self, id: usize) -> usize {
        *self.places.entry(id).or_insert_with(|| {
            self.all.push(id);
            self.all.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use models::visual::Picture;
    use rand::SeedableRng;

    use super::*;

    /// Two scenes, six creatives of campaigns A A A B B B, all of a format but the last.
    fn gallery() -> Gallery {
        let picture = || Picture::new(1, 1, vec![0; 3]).unwrap();
        let mut gallery = Gallery::from_pictures(
            vec![picture(); 2],
            vec![picture(); 6],
            vec!["billboard".into(); 6],
        );
        gallery.creative_formats[5] = "portal".into();
        gallery.creative_campaigns = ["A", "A", "A", "B", "B", "B"].map(str::to_owned).to_vec();
        gallery
    }

    #[test]
    fn negatives_are_of_the_scene_and_of_the_campaign_and_never_clicked_there() {
        let gallery = gallery();
        let pairs = Pairs {
            scenes: vec![0, 0, 1],
            creatives: vec![0, 1, 3],
            shown: vec![vec![0, 1, 4], vec![3]],
        };
        let history = History::new(&gallery, &pairs);
        let config = NegativesConfig {
            not_clicked: 9,
            same_campaign: 9,
        };
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let batch = history.batch(&[0, 2], &config, random);
        assert_eq!(
            (&batch.scenes[..], &batch.pair_scenes[..]),
            (&[0, 1][..], &[0, 1][..])
        );
        // Of scene 0: 4 was shown, 2 is of the campaign (1 was clicked there). Of scene 1: nothing else was
        // shown, 4 is of the campaign, 5 has another format.
        assert_eq!(batch.creatives, [0, 3, 4, 2]);
        assert_eq!(batch.negatives, [2, 3, 2]);
        assert_eq!(batch.known, HashSet::from([(0, 0), (1, 1)]));
        // Each was clicked once of three times, or counts as if it had been.
        assert!(
            batch
                .correction
                .iter()
                .all(|value| (value + 3f32.ln()).abs() < 1e-6)
        );
        let none = history.batch(&[0, 2], &NegativesConfig::default(), random);
        assert!(none.negatives.is_empty());
    }

    #[test]
    fn what_is_drawn_is_drawn_evenly() {
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            draw(0..10, 3, random)
                .into_iter()
                .for_each(|at| counts[at] += 1);
        }
        assert!(
            counts.iter().all(|count| (2800..3200).contains(count)),
            "{counts:?}"
        );
    }
}
