//! Which pictures a step sees: some clicked pairs, and the negatives that they bring along.

use std::collections::{BTreeMap, HashSet};

use models::visual::ContrastBatch;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{
    config::NegativesConfig,
    pairs::{Gallery, Pairs},
};

/// What is known of the training rows, and how negatives are drawn from it.
#[derive(Debug)]
pub(super) struct History<'a> {
    gallery: &'a Gallery,
    pairs: &'a Pairs,
    config: &'a NegativesConfig,
    /// Scenes and creatives that were clicked there.
    clicked: HashSet<(usize, usize)>,
    /// `[num_creatives]`: logarithm of how often each is expected to stand in a batch for each of its pairs,
    /// as a pair's own creative or as a negative that a pair brings along. Source: Yi et al.,
    /// "Sampling-Bias-Corrected Neural Modeling", RecSys 2019.
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
    pub(super) fn new(gallery: &'a Gallery, pairs: &'a Pairs, config: &'a NegativesConfig) -> Self {
        let scenes = pairs.scenes.iter().copied();
        let mut history = Self {
            gallery,
            pairs,
            config,
            clicked: scenes.zip(pairs.creatives.iter().copied()).collect(),
            log_frequency: Vec::new(),
        };
        let mut expected = vec![0.0; gallery.creative_pictures.len()];
        for pair in 0..pairs.creatives.len() {
            expected[pairs.creatives[pair]] += 1.0;
            for (from, count) in history.negatives_of(pair) {
                // Each as likely as the others.
                let share = (count as f64 / from.len() as f64).min(1.0);
                from.iter()
                    .for_each(|creative| expected[*creative] += share);
            }
        }
        // What stands in no batch needs no number.
        let of_pair = |expected: f64| match expected > 0.0 {
            true => (expected / pairs.creatives.len() as f64).ln() as f32,
            false => 0.0,
        };
        history.log_frequency = expected.into_iter().map(of_pair).collect();
        history
    }

    /// What a pair's further negatives are drawn from, and how many: creatives that were seen in its scene,
    /// and others of its campaign, none of them clicked there.
    fn negatives_of(&self, pair: usize) -> impl Iterator<Item = (Vec<usize>, usize)> {
        let (scene, creative) = (self.pairs.scenes[pair], self.pairs.creatives[pair]);
        let unclicked = |other: &usize| !self.clicked.contains(&(scene, *other));
        let shown = (self.config.not_clicked > 0).then(|| {
            let shown = self.pairs.shown_in(scene).iter().copied();
            (shown.filter(unclicked).collect(), self.config.not_clicked)
        });
        let related = (self.config.same_campaign > 0).then(|| {
            let related = self.gallery.same_campaign(creative);
            (
                related.filter(unclicked).collect(),
                self.config.same_campaign,
            )
        });
        shown.into_iter().chain(related)
    }

    /// The pairs of an epoch, in an order of its own.
    pub(super) fn order(&self, random: &mut ChaCha8Rng) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pairs.scenes.len()).collect();
        order.shuffle(random);
        order
    }

    /// The batch of some pairs.
    pub(super) fn batch(&self, chosen: &[usize], random: &mut ChaCha8Rng) -> Batch {
        let (mut scenes, mut creatives) = (Numbers::default(), Numbers::default());
        let mut batch = Batch::default();
        for pair in chosen {
            batch.pair_scenes.push(scenes.of(self.pairs.scenes[*pair]));
            batch
                .pair_creatives
                .push(creatives.of(self.pairs.creatives[*pair]));
        }
        for pair in chosen {
            for (from, count) in self.negatives_of(*pair) {
                let drawn = draw(&from, count, random).into_iter();
                batch
                    .negatives
                    .extend(drawn.map(|creative| creatives.of(creative)));
            }
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

/// Some of these, at most so many, each once and as likely as the others.
fn draw(from: &[usize], count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let chosen = rand::seq::index::sample(random, from.len(), count.min(from.len()));
    chosen.into_iter().map(|at| from[at]).collect()
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
        let config = NegativesConfig {
            not_clicked: 9,
            same_campaign: 9,
        };
        let history = History::new(&gallery, &pairs, &config);
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let batch = history.batch(&[0, 2], random);
        assert_eq!(
            (&batch.scenes[..], &batch.pair_scenes[..]),
            (&[0, 1][..], &[0, 1][..])
        );
        // Of scene 0: 4 was shown, 2 is of the campaign (1 was clicked there). Of scene 1: nothing else was
        // shown, 4 is of the campaign, 5 has another format.
        assert_eq!(batch.creatives, [0, 3, 4, 2]);
        assert_eq!(batch.negatives, [2, 3, 2]);
        assert_eq!(batch.known, HashSet::from([(0, 0), (1, 1)]));
        // Of three pairs one is of creative 0 and one of 3; all three bring 4 along, and two bring 2.
        let expected = [1.0f32, 1.0, 3.0, 2.0, 3.0].map(|count| (count / 3.0).ln());
        let apart = batch.correction.iter().zip(expected);
        assert!(
            apart
                .map(|(found, wanted)| (found - wanted).abs())
                .fold(0.0, f32::max)
                < 1e-6
        );
        let config = NegativesConfig::default();
        let none = History::new(&gallery, &pairs, &config).batch(&[0, 2], random);
        assert!(none.negatives.is_empty());
    }

    #[test]
    fn the_correction_is_how_often_a_creative_stands_in_a_batch() {
        let gallery = gallery();
        // Creative 0 is clicked most, 4 never, but shown.
        let pairs = Pairs {
            scenes: vec![0, 0, 0, 0, 1, 1, 1],
            creatives: vec![0, 0, 0, 1, 3, 2, 0],
            shown: vec![vec![0, 1, 3, 4], vec![0, 1, 2, 3, 4, 5]],
        };
        for (not_clicked, same_campaign) in [(0, 0), (1, 0), (0, 1), (2, 1)] {
            let config = NegativesConfig {
                not_clicked,
                same_campaign,
            };
            let history = History::new(&gallery, &pairs, &config);
            let random = &mut ChaCha8Rng::seed_from_u64(3);
            let (mut counts, epochs) = ([0.0; 6], 2000);
            for _ in 0..epochs {
                let order = history.order(random);
                for chosen in order.chunks(2) {
                    let batch = history.batch(chosen, random);
                    let columns = batch.pair_creatives.iter().chain(&batch.negatives);
                    columns.for_each(|column| counts[batch.creatives[*column]] += 1.0);
                }
            }
            for (count, log_frequency) in counts.iter().zip(&history.log_frequency) {
                let (found, expected) = (count / (7 * epochs) as f32, log_frequency.exp());
                let close = (found - expected).abs() < 0.03 * expected;
                let never = *count == 0.0 && *log_frequency == 0.0;
                assert!(close || never, "{found} {expected}");
            }
        }
    }

    #[test]
    fn what_is_drawn_is_drawn_evenly() {
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            draw(&(0..10).collect::<Vec<_>>(), 3, random)
                .into_iter()
                .for_each(|at| counts[at] += 1);
        }
        assert!(
            counts.iter().all(|count| (2800..3200).contains(count)),
            "{counts:?}"
        );
    }
}
