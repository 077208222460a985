//! The tower learns what pixels do not tell, the same on any number of ranks and after any interruptions.

use std::{path::Path, sync::atomic::Ordering};

use burn::backend::Autodiff;
use models::{
    Cpu,
    visual::{EMBEDDING_DIM, Picture, VisualConfig, VitConfig},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{
    batch::History,
    learner::{Learner, StepOptions},
    *,
};
use crate::{
    checkpoint::{Folder, name_of},
    collective::{CollectiveConfig, testing::meet},
    dense::DenseOptimizer,
    schedule::{Decay, ScheduleConfig},
};

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
        valid: pairs,
        frozen: None,
    }
}

/// One run, or a part of one, on some ranks.
struct Part<'a> {
    config: &'a VisualTrainConfig,
    world_size: usize,
    /// Where checkpoints are.
    dir: &'a Path,
    /// Stops after the first step, or after the first step of the second epoch that it sees, or not at all.
    stop: Stop,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    AtOnce,
    AtEpoch,
    Never,
}

/// What a run comes to.
#[derive(Debug, Clone, PartialEq)]
struct Learnt {
    /// Of its epochs, all parts together.
    losses: Vec<f64>,
    vectors: Features,
    /// Of the tower's file.
    weights: Vec<u8>,
}

impl Part<'_> {
    /// How it ended on rank 0, and the losses of its epochs.
    fn run<B: StepBackend>(&self) -> (anyhow::Result<Trained>, Vec<f64>) {
        let (gallery, pairs) = toy();
        let mut ranks = meet(self.world_size, &CollectiveConfig::default(), |met| {
            let mut group = TcpGroup::connect(&met, "visual").unwrap();
            let saving = TcpGroup::connect(&met, "checkpoints").unwrap();
            let folder = Folder::local(self.dir).unwrap();
            let saved = self.config.checkpoint.clone();
            let mut checkpoints = Checkpoints::new(folder, saved, "run".into(), saving);
            // One rank is asked to stop, as by a signal.
            let asked = group.rank() == self.world_size - 1;
            let stop = AtomicBool::new(asked && self.stop == Stop::AtOnce);
            let mut losses = Vec::new();
            let report = |told: &Progress| {
                if let Progress::Epoch { loss, .. } = told {
                    losses.push(*loss);
                    stop.fetch_or(asked && self.stop == Stop::AtEpoch, Ordering::Relaxed);
                }
            };
            let (task, device) = (task(self.config, &gallery, &pairs), Default::default());
            let ended = fit::<B, _>(task, &device, &mut group, &mut checkpoints, &stop, report);
            (ended, losses)
        });
        // All ranks hold the same tower, or all have stopped.
        let vectors = |ended: &anyhow::Result<Trained>| match ended {
            Ok(Trained::Done(fitted)) => Some(fitted.vectors.clone()),
            _ => None,
        };
        let first = vectors(&ranks[0].0);
        assert!(ranks.iter().all(|(ended, _)| vectors(ended) == first));
        ranks.swap_remove(0)
    }
}

/// A run in parts, with the numbers of ranks given; the last one goes to the end.
fn in_parts(config: &VisualTrainConfig, parts: &[(usize, Stop)]) -> Learnt {
    let dir = tempfile::tempdir().unwrap();
    in_parts_at::<Autodiff<Cpu>>(dir.path(), config, parts)
}

fn in_parts_at<B: StepBackend>(
    dir: &Path,
    config: &VisualTrainConfig,
    parts: &[(usize, Stop)],
) -> Learnt {
    let mut losses = Vec::new();
    for (world_size, stop) in parts {
        let part = Part {
            config,
            world_size: *world_size,
            dir,
            stop: *stop,
        };
        let (ended, told) = part.run::<B>();
        losses.extend(told);
        match ended.unwrap() {
            Trained::Done(fitted) => {
                assert_eq!(losses.last(), Some(&fitted.loss));
                let model = tempfile::tempdir().unwrap();
                fitted.model.save(model.path()).unwrap();
                return Learnt {
                    losses,
                    vectors: fitted.vectors,
                    weights: fs::read(model.path().join("weights.safetensors")).unwrap(),
                };
            }
            Trained::Stopped { .. } => assert_ne!(*stop, Stop::Never),
        }
    }
    panic!("the last part goes to the end");
}

fn fit_on(world_size: usize, config: &VisualTrainConfig) -> Learnt {
    in_parts(config, &[(world_size, Stop::Never)])
}

fn assert_losses(found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < tolerance, "{found} {wanted}");
    }
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
    let Learnt {
        losses, vectors, ..
    } = fit_on(1, &config());
    assert!(losses[11] < 0.5 * losses[0], "{losses:?}");
    let found = Retrieval::of(&gallery, &pairs, &vectors);
    assert_eq!((found.recall_at_1, found.map), (1.0, 1.0));
    let baseline = Retrieval::of(&gallery, &pairs, &pixel_average_vectors(&gallery));
    // No better than chance among four.
    assert!(baseline.recall_at_1 <= 0.25);
    assert!(found.alignment < baseline.alignment);
}

#[test]
fn validation_pairs_are_measured_when_it_is_due() {
    // Twelve more creatives, so that ten of them are not all.
    let (mut gallery, pairs) = toy();
    let more: Vec<Picture> = gallery
        .creative_pictures
        .iter()
        .cycle()
        .take(16)
        .cloned()
        .collect();
    gallery.creative_pictures = more;
    gallery.creative_formats = vec!["billboard".into(); 16];
    gallery.creative_campaigns = vec!["c1".into(); 16];
    let mut config = config();
    config.evaluate_every_epochs = 5;
    let measures = |valid: &Pairs, world_size| {
        let mut ranks = meet(world_size, &CollectiveConfig::default(), |met| {
            let mut group = TcpGroup::connect(&met, "visual").unwrap();
            let saving = TcpGroup::connect(&met, "checkpoints").unwrap();
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::local(dir.path()).unwrap();
            let mut checkpoints =
                Checkpoints::new(folder, config.checkpoint.clone(), "run".into(), saving);
            let task = Task {
                valid,
                ..task(&config, &gallery, &pairs)
            };
            let (mut measures, device) = (Vec::new(), Default::default());
            let report = |told: &Progress| {
                if let Progress::Epoch {
                    epoch,
                    valid: Some(valid),
                    ..
                } = told
                {
                    measures.push((*epoch, valid.recall_at_10));
                }
            };
            let never = AtomicBool::new(false);
            fit::<Autodiff<Cpu>, _>(task, &device, &mut group, &mut checkpoints, &never, report)
                .unwrap();
            measures
        });
        ranks.swap_remove(0)
    };
    // The rule is learnt; its copies, which look the same, are never nearer than it but tie.
    assert_eq!(measures(&pairs, 1), [(5, 1.0), (10, 1.0)]);
    assert_eq!(measures(&pairs, 2), [(5, 1.0), (10, 1.0)]);
    // What goes against the rule is found last.
    let wrong = Pairs {
        creatives: pairs.scenes.iter().map(|scene| (scene + 3) % 4).collect(),
        ..pairs.clone()
    };
    let found = measures(&wrong, 1);
    assert!(found.len() == 2 && found[1].1 < 0.5, "{found:?}");
    assert!(measures(&Pairs::default(), 1).is_empty());
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
    let (alone, together) = (fit_on(1, &config), fit_on(4, &config));
    assert_losses(&together.losses, &alone.losses, 1e-4);
    // A hundred steps of Adam carry the rounding of the first.
    assert_close(&together.vectors.scenes, &alone.vectors.scenes, 2e-3);
    assert_close(&together.vectors.creatives, &alone.vectors.creatives, 2e-3);
}

#[test]
fn gradients_across_ranks_are_those_of_one_process() {
    let (gallery, pairs) = toy();
    let mut config = config();
    config.optimizer.beta1 = 0.0;
    let gradient = |world_size| {
        let mut all = meet(world_size, &CollectiveConfig::default(), |met| {
            let mut group = TcpGroup::connect(&met, "visual").unwrap();
            let (task, device) = (task(&config, &gallery, &pairs), Default::default());
            let learner = Learner::<Autodiff<Cpu>>::start(task, &device, &mut group);
            let mut learner = learner.unwrap();
            let chosen: Vec<usize> = (0..10).collect();
            let random = &mut ChaCha8Rng::seed_from_u64(7);
            let batch = History::new(&gallery, &pairs, &config.negatives).batch(&chosen, random);
            let options = StepOptions {
                epoch: 0,
                rate: 0.0,
                stop: false,
            };
            let total = learner.step(&batch, options, &mut group).unwrap();
            (total.loss, learner.gradient())
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
    let kept = fit_on(1, &pretrained(0));
    assert!(kept.losses[3] < 0.5 * kept.losses[0], "{:?}", kept.losses);
    // Features that are kept, and pictures that are sent through each time, come to the same.
    let mut again = pretrained(0);
    again.augment.mirror = 1e-300;
    let again = fit_on(1, &again);
    assert_losses(&again.losses, &kept.losses, 1e-4);
    assert_close(&again.vectors.scenes, &kept.vectors.scenes, 1e-3);
    assert_eq!(kept.vectors.dim, EMBEDDING_DIM);
}

#[test]
fn blocks_learn_from_the_last_on() {
    let backbone = |config: &VisualTrainConfig| {
        let bytes = fit_on(1, config).weights;
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

/// Runs that differ in what learns and in how it is moved.
fn all_kinds() -> Vec<VisualTrainConfig> {
    let mut kinds = vec![varied(), pretrained(0), pretrained(1), pretrained(2)];
    let optimizers = [
        DenseOptimizer::AdamW,
        DenseOptimizer::Adam,
        DenseOptimizer::Lamb,
        DenseOptimizer::Adagrad,
    ];
    for (config, kind) in kinds.iter_mut().zip(optimizers) {
        config.epochs = 3;
        config.optimizer.kind = kind;
        config.schedule = ScheduleConfig {
            warm_up_steps: 5,
            decay: Decay::Cosine,
            decay_steps: 30,
            floor: 0.1,
            ..ScheduleConfig::default()
        };
        config.checkpoint.every_steps = 4;
    }
    kinds
}

#[test]
fn an_interrupted_run_equals_the_uninterrupted_bit_for_bit() {
    use Stop::{AtEpoch, AtOnce, Never};
    for config in all_kinds() {
        for world_size in [1, 2] {
            let stops = [AtOnce, AtOnce, AtEpoch, AtOnce, AtEpoch, AtOnce, Never];
            let parts = stops.map(|stop| (world_size, stop));
            let found = in_parts(&config, &parts);
            assert!(found == fit_on(world_size, &config), "{config:?}");
        }
    }
}

#[test]
fn another_number_of_ranks_goes_on_with_the_same_losses() {
    let config = &all_kinds()[0];
    let parts = [(3, Stop::AtEpoch), (2, Stop::AtEpoch), (1, Stop::Never)];
    let found = in_parts(config, &parts);
    assert_losses(&found.losses, &fit_on(1, config).losses, 1e-4);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_steps_after_the_one_before_are_taken_again() {
    let mut config = varied();
    config.epochs = 2;
    config.checkpoint.every_steps = 4;
    let dir = tempfile::tempdir().unwrap();
    let part = Part {
        config: &config,
        world_size: 2,
        dir: dir.path(),
        stop: Stop::AtEpoch,
    };
    // Thirteen steps are an epoch.
    let (ended, losses) = part.run::<Autodiff<Cpu>>();
    assert!(
        matches!(ended, Ok(Trained::Stopped { step: 14 })),
        "{ended:?}"
    );
    let newest = dir.path().join(name_of(14)).join("dense.safetensors");
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let mut found = in_parts_at::<Autodiff<Cpu>>(dir.path(), &config, &[(2, Stop::Never)]);
    found.losses.splice(0..0, losses);
    assert!(found == fit_on(2, &config));
}

#[test]
fn what_a_run_computes_hangs_on_the_files_that_it_names_and_not_on_how_it_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = pretrained(1);
    let weights = fs::read(&config.pretrained.weights).unwrap();
    config.pretrained.weights = dir.path().join("weights.safetensors");
    fs::write(&config.pretrained.weights, weights).unwrap();
    let of_catalogue = |config: &VisualTrainConfig, catalogue: &[u8]| {
        computes(config, &Digest::of(catalogue), &backbone(config)?)
    };
    let of = |config: &VisualTrainConfig| of_catalogue(config, b"catalogue").unwrap();
    let before = of(&config);
    let mut saved = config.clone();
    saved.checkpoint.every_steps = 7;
    saved.collective.timeout_seconds = 7.0;
    assert_eq!(of(&saved), before);
    assert_ne!(of_catalogue(&config, b"another").unwrap(), before);
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let described = of(&config);
    assert_ne!(described, before);
    fs::write(&config.pretrained.weights, "others").unwrap();
    assert_ne!(of(&config), described);
    fs::remove_file(&config.pretrained.weights).unwrap();
    let error = of_catalogue(&config, b"catalogue").unwrap_err();
    assert!(error.to_string().contains("weights.safetensors"), "{error}");
}

/// On whatever has Vulkan.
#[cfg(feature = "wgpu")]
mod gpu {
    use burn::backend::wgpu::WgpuRuntime;

    use super::*;
    use crate::backend::Gpu;

    type B = Autodiff<Gpu<WgpuRuntime>>;

    #[test]
    fn a_gpu_has_the_same_losses_whatever_learns_and_on_any_number_of_ranks() {
        for (world_size, mut config) in [1, 2, 1, 1].into_iter().zip(all_kinds()) {
            config.epochs = 2;
            let dir = tempfile::tempdir().unwrap();
            let found = in_parts_at::<B>(dir.path(), &config, &[(world_size, Stop::Never)]);
            let wanted = fit_on(1, &config);
            assert_losses(&found.losses, &wanted.losses, 1e-3);
            assert_close(&found.vectors.scenes, &wanted.vectors.scenes, 1e-2);
        }
    }

    #[test]
    fn a_gpu_goes_on_where_a_cpu_was_stopped() {
        let mut config = varied();
        config.epochs = 3;
        let dir = tempfile::tempdir().unwrap();
        let part = Part {
            config: &config,
            world_size: 2,
            dir: dir.path(),
            stop: Stop::AtEpoch,
        };
        let mut losses = part.run::<Autodiff<Cpu>>().1;
        losses.extend(in_parts_at::<B>(dir.path(), &config, &[(1, Stop::Never)]).losses);
        assert_losses(&losses, &fit_on(1, &config).losses, 1e-3);
    }
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
    assert!(refused(|config| config.schedule.decay = Decay::Plateau).starts_with("schedule.decay"));
    let fresh = VisualTrainConfig {
        trainable_blocks: 1,
        ..Default::default()
    };
    assert!(fresh.check().is_err());
}
