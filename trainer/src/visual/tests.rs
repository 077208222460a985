//! The tower learns what pixels do not tell, the same on any number of ranks.

use models::visual::{EMBEDDING_DIM, Picture, VisualConfig, VitConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{batch::History, fit::Trainer, *};
use crate::collective::{CollectiveConfig, testing::meet};

/// Scenes and creatives of four shades; a scene goes with the creative of the next shade.
fn toy() -> (Gallery, Pairs) {
    let shade = |at: usize| Picture::new(8, 8, vec![(at * 60) as u8; 192]).unwrap();
    let pictures: Vec<Picture> = (0..4).map(shade).collect();
    let gallery = Gallery::from_pictures(pictures.clone(), pictures, vec!["billboard".into(); 4]);
    let scenes: Vec<usize> = (0..200).map(|at| at % 4).collect();
    let creatives = scenes.iter().map(|scene| (scene + 1) % 4).collect();
    let shown = vec![vec![0, 1, 2, 3]; 4];
    (
        gallery,
        Pairs {
            scenes,
            creatives,
            shown,
        },
    )
}

fn config() -> VisualTrainConfig {
    let vit = VitConfig {
        image_size: 8,
        patch_size: 4,
        dim: 16,
        depth: 1,
        num_heads: 2,
        ..VitConfig::default()
    };
    let model = VisualConfig {
        vit,
        projection_hidden: 16,
        ..VisualConfig::default()
    };
    VisualTrainConfig {
        model,
        batch_size: 16,
        epochs: 12,
        learning_rate: 3e-3,
        ..Default::default()
    }
}

/// The same with all that is drawn: changed pictures, further negatives.
fn varied() -> VisualTrainConfig {
    let augment = AugmentConfig {
        least_area: 0.5,
        mirror: 0.5,
        colour: 0.1,
    };
    let negatives = NegativesConfig {
        not_clicked: 1,
        same_campaign: 1,
    };
    VisualTrainConfig {
        augment,
        negatives,
        ..config()
    }
}

fn task<'a>(config: &'a VisualTrainConfig, gallery: &'a Gallery, pairs: &'a Pairs) -> Task<'a> {
    Task {
        config,
        gallery,
        pairs,
        frozen: None,
    }
}

/// The losses by epoch of rank 0, and its vectors.
fn fit_on(world_size: usize, config: &VisualTrainConfig) -> (Vec<f64>, Features) {
    let (gallery, pairs) = toy();
    let mut all = meet(world_size, &CollectiveConfig::default(), |met| {
        let mut group = TcpGroup::connect(&met, "visual").unwrap();
        let mut losses = Vec::new();
        let each = |_, loss| losses.push(loss);
        let device = Default::default();
        let fitted =
            fit::<Autodiff<Cpu>>(task(config, &gallery, &pairs), &device, &mut group, each);
        let fitted = fitted.unwrap();
        (losses, vectors(&fitted, config, &gallery).unwrap())
    });
    // All ranks hold the same tower.
    assert!(all.iter().all(|rank| *rank == all[0]));
    all.swap_remove(0)
}

fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < tolerance, "{found} {wanted}");
    }
}

#[test]
fn a_rule_that_pixels_do_not_tell_is_learnt() {
    let (gallery, pairs) = toy();
    let (losses, vectors) = fit_on(1, &config());
    assert!(losses[11] < 0.5 * losses[0], "{losses:?}");
    let found = Retrieval::of(&gallery, &pairs, &vectors);
    assert_eq!((found.recall_at_1, found.map), (1.0, 1.0));
    let baseline = Retrieval::of(&gallery, &pairs, &pixel_average_vectors(&gallery));
    // No better than chance among four.
    assert!(baseline.recall_at_1 <= 0.25);
    assert!(found.alignment < baseline.alignment);
}

#[test]
fn a_seed_fixes_the_tower_bit_for_bit() {
    let mut config = varied();
    config.epochs = 3;
    let once = fit_on(1, &config);
    assert_eq!(fit_on(1, &config), once);
    config.seed = 2;
    assert_ne!(fit_on(1, &config), once);
}

#[test]
fn four_ranks_learn_what_one_does() {
    let mut config = varied();
    // Few pictures for so many ranks: some have none in a step.
    config.batch_size = 6;
    config.epochs = 3;
    let (losses, vectors) = fit_on(1, &config);
    let (losses_of_4, vectors_of_4) = fit_on(4, &config);
    for (found, wanted) in losses_of_4.iter().zip(&losses) {
        assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
    }
    // A hundred steps of Adam carry the rounding of the first.
    assert_close(&vectors_of_4.scenes, &vectors.scenes, 2e-3);
    assert_close(&vectors_of_4.creatives, &vectors.creatives, 2e-3);
}

#[test]
fn gradients_across_ranks_are_those_of_one_process() {
    let (gallery, pairs) = toy();
    let config = config();
    let gradient = |world_size| {
        let mut all = meet(world_size, &CollectiveConfig::default(), |met| {
            let mut group = TcpGroup::connect(&met, "visual").unwrap();
            let random = &mut ChaCha8Rng::seed_from_u64(7);
            let device = Default::default();
            let start = Trainer::<Autodiff<Cpu>>::start(
                task(&config, &gallery, &pairs),
                &device,
                random,
                &mut group,
            );
            let mut trainer = start.unwrap();
            let history = History::new(&gallery, &pairs);
            let chosen: Vec<usize> = (0..10).collect();
            let batch = history.batch(&chosen, &config.negatives, random);
            let loss = trainer.gradient(&batch, 1, &mut group).unwrap();
            (loss, trainer.sum)
        });
        all.swap_remove(0)
    };
    let (loss, wanted) = gradient(1);
    let largest = wanted
        .iter()
        .fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(largest > 1e-3);
    for world_size in [2, 4] {
        let (found_loss, found) = gradient(world_size);
        assert!((found_loss - loss).abs() < 1e-6);
        assert_close(&found, &wanted, 1e-5 * largest);
    }
}

/// Published weights of a small DINOv2: 16 numbers, 2 blocks, patches of 7 pixels.
fn pretrained(trainable_blocks: usize) -> VisualTrainConfig {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = VisualTrainConfig {
        trainable_blocks,
        batch_size: 16,
        epochs: 4,
        learning_rate: 1e-2,
        ..Default::default()
    };
    config.pretrained.weights = folder.join("../models/tests/parity/visual/dinov2.safetensors");
    config.pretrained.num_heads = 2;
    config.pretrained.image_size = 28;
    config
}

#[test]
fn a_frozen_backbone_stays_and_its_projections_learn() {
    let (losses, vectors) = fit_on(1, &pretrained(0));
    assert!(losses[3] < 0.5 * losses[0], "{losses:?}");
    // Features that are kept, and pictures that are sent through each time, come to the same.
    let mut again = pretrained(0);
    again.augment.mirror = 1e-300;
    let (losses_again, vectors_again) = fit_on(1, &again);
    assert!((losses[3] - losses_again[3]).abs() < 1e-4);
    assert_close(&vectors.scenes, &vectors_again.scenes, 1e-3);
    assert_eq!(vectors.dim, EMBEDDING_DIM);
}

#[test]
fn blocks_learn_from_the_last_on() {
    let (gallery, pairs) = toy();
    let backbone = |config: &VisualTrainConfig| {
        let mut all = meet(1, &CollectiveConfig::default(), |met| {
            let mut group = TcpGroup::connect(&met, "visual").unwrap();
            let device = Default::default();
            let task = task(config, &gallery, &pairs);
            fit::<Autodiff<Cpu>>(task, &device, &mut group, |_, _| ())
        });
        let fitted = all.swap_remove(0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fitted.model.save(dir.path()).unwrap();
        let bytes = std::fs::read(dir.path().join("weights.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let parts = [
            "patch_embedding.weight",
            "blocks.0.qkv.weight",
            "blocks.1.qkv.weight",
            "norm.gamma",
        ];
        parts.map(|part| file.tensor(&format!("vit.{part}")).unwrap().data().to_vec())
    };
    let learnt = |trainable_blocks| {
        let mut config = pretrained(trainable_blocks);
        config.epochs = 1;
        backbone(&config)
    };
    let [none, one, both] = [0, 1, 2].map(learnt);
    let differ = |a: &[Vec<u8>; 4], b: &[Vec<u8>; 4]| -> [bool; 4] {
        std::array::from_fn(|at| a[at] != b[at])
    };
    assert_eq!(differ(&none, &one), [false, false, true, true]);
    assert_eq!(differ(&none, &both), [false, true, true, true]);
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let refused = |change: fn(&mut VisualTrainConfig)| {
        let mut config = pretrained(0);
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(refused(|config| config.model.vit.dim = 32).starts_with("model is set"));
    assert!(refused(|config| config.batch_size = 1).starts_with("batch_size is 1"));
    assert!(refused(|config| config.augment.mirror = 1.5).starts_with("augment.mirror"));
    let fresh = VisualTrainConfig {
        trainable_blocks: 1,
        ..Default::default()
    };
    assert!(fresh.check().is_err());
}
