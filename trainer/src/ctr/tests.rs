//! The training loop: what it learns, on how many ranks, and after what interruptions.

mod conversions;
mod recipe;
mod shared;
mod towers;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use burn::backend::Autodiff;
use models::{
    Cpu,
    ctr::{CtrModel, NetworkConfig, NetworkError, network::DcnV2Config},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::{
    config::CtrConfig,
    evaluate::{Evaluation, evaluate, score_all},
    step::Groups,
    train::{Progress, Task, TrainError, Trained, train},
};
use crate::{
    backend::StepBackend,
    checkpoint::{Checkpoints, Folder},
    collective::{CollectiveConfig, ProcessGroup, TcpGroup, testing::meet},
    dense::Precision,
    sharding::{DynamicConfig, ShardingKind, SparseOptimizer},
    table::{Examples, Slice, testing},
};

/// Rows whose click is certain for ids below 50, and otherwise follows a dense number.
fn rows(count: usize, seed: u64) -> Examples {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Examples::empty(&testing::schema());
    for _ in 0..count {
        let (x, id) = (
            random.random_range(-1.0f32..1.0),
            random.random_range(0u64..100),
        );
        let several: Vec<u64> = (0..random.random_range(0..5))
            .map(|_| random.random())
            .collect();
        let click = f32::from(u8::from(id < 50 || x > 0.8));
        let label = (click, random.random_range(0.5..1.5));
        testing::push(&mut rows, x, id, &several, label);
        conversions::convert(&mut rows, id, click > 0.0);
    }
    rows
}

/// The same as a table.
fn table(count: usize, seed: u64) -> (TempDir, Slice) {
    testing::table(&rows(count, seed), 170)
}

fn config() -> CtrConfig {
    let mut config = CtrConfig {
        model: network(0.1),
        ..CtrConfig::default()
    };
    config.tables.rows = 128;
    config.tables.embedding_dim = 4;
    config.training.batch_size = 64;
    config.training.epochs = 3;
    config
}

fn network(net_dropout: f64) -> NetworkConfig {
    NetworkConfig::DcnV2(DcnV2Config {
        hidden: vec![16],
        num_cross_layers: 1,
        net_dropout,
        ..DcnV2Config::default()
    })
}

/// One run, or a part of one, on some ranks.
struct Part<'a> {
    config: &'a CtrConfig,
    world_size: usize,
    /// Where checkpoints are.
    dir: &'a Path,
    rows: usize,
    /// Stops after the first step, or at the first point of the loss curve, or not at all.
    stop: Stop,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    AtOnce,
    AtPoint,
    Never,
}

impl Part<'_> {
    /// What rank 0 has in the end, and what it was told.
    fn run(&self) -> (Result<Trained, TrainError>, Vec<Progress>) {
        self.run_on::<Autodiff<Cpu>>()
    }

    fn run_on<B: StepBackend>(&self) -> (Result<Trained, TrainError>, Vec<Progress>) {
        let (_train, train_rows) = table(self.rows, 1);
        let (_valid, valid) = table(500, 2);
        let mut ranks = meet(self.world_size, &CollectiveConfig::default(), |met| {
            let mut groups = Groups::connect(&met).unwrap();
            let saving = TcpGroup::connect(&met, "checkpoints").unwrap();
            let folder = Folder::local(self.dir).unwrap();
            let saved = self.config.checkpoint.clone();
            let mut checkpoints = Checkpoints::new(folder, saved, "run".into(), saving);
            // One rank is asked to stop, as by a signal.
            let asked = groups.rows.rank() == self.world_size - 1;
            let stop = AtomicBool::new(asked && self.stop == Stop::AtOnce);
            let mut told = Vec::new();
            let task = Task {
                config: self.config,
                schema: train_rows.schema(),
                train: &train_rows,
                valid: &valid,
            };
            let report = |progress: &Progress| {
                told.push(progress.clone());
                let point = matches!(progress, Progress::Steps { .. });
                if asked && self.stop == Stop::AtPoint && point {
                    stop.store(true, Ordering::Relaxed);
                }
            };
            let device = Default::default();
            let trained =
                train::<B, _, _>(task, &device, &mut groups, &mut checkpoints, &stop, report);
            (trained, told)
        });
        ranks.swap_remove(0)
    }
}

/// What becomes of a run on a few rows.
fn end_of<B: StepBackend>(config: &CtrConfig, world_size: usize) -> Result<Trained, TrainError> {
    let dir = tempfile::tempdir().unwrap();
    let part = Part {
        config,
        world_size,
        dir: dir.path(),
        rows: 100,
        stop: Stop::Never,
    };
    part.run_on::<B>().0
}

fn fit(config: &CtrConfig, world_size: usize) -> (CtrModel<Cpu>, Vec<Progress>) {
    fit_on::<Autodiff<Cpu>>(config, world_size)
}

fn fit_on<B: StepBackend>(config: &CtrConfig, world_size: usize) -> (CtrModel<Cpu>, Vec<Progress>) {
    let dir = tempfile::tempdir().unwrap();
    let part = Part {
        config,
        world_size,
        dir: dir.path(),
        rows: 3000,
        stop: Stop::Never,
    };
    let (trained, told) = part.run_on::<B>();
    (model(trained.unwrap()), told)
}

fn model(trained: Trained) -> CtrModel<Cpu> {
    match trained {
        Trained::Done(model) => *model,
        Trained::Stopped { step } => panic!("stopped at step {step}"),
    }
}

fn scores(model: &CtrModel<Cpu>) -> Vec<f32> {
    score_all(model, &rows(300, 3), false).unwrap()
}

fn measured(model: &CtrModel<Cpu>, rows: &Examples) -> Evaluation {
    let scores = score_all(model, rows, false).unwrap();
    evaluate(&scores, &rows.clicks, &rows.weights)
}

/// `(step, loss)` of the metrics, without what depends on the clock.
fn losses(told: &[Progress]) -> Vec<(u64, f64)> {
    let point = |progress: &Progress| match progress {
        Progress::Steps { step, loss, .. } => Some((*step, *loss)),
        Progress::Epoch { epoch, valid, .. } => Some((1_000_000 + epoch, valid.log_loss)),
        _ => None,
    };
    told.iter().filter_map(point).collect()
}

fn assert_close(found: &[(u64, f64)], wanted: &[(u64, f64)], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found.0, wanted.0);
        assert!(
            (found.1 - wanted.1).abs() < tolerance,
            "{found:?} {wanted:?}"
        );
    }
}

#[test]
fn ids_and_numbers_are_learnt_and_calibrated() {
    let (model, told) = fit(&config(), 1);
    let evaluation = measured(&model, &rows(2000, 3));
    assert!(evaluation.auc.unwrap() > 0.97, "{evaluation:?}");
    assert!(
        (evaluation.calibration_ratio - 1.0).abs() < 0.05,
        "{evaluation:?}"
    );
    let epochs = told
        .iter()
        .filter(|told| matches!(told, Progress::Epoch { .. }));
    assert_eq!(epochs.count(), 3);
}

#[test]
fn a_seed_fixes_the_model_bit_for_bit() {
    let mut config = config();
    let first = scores(&fit(&config, 1).0);
    assert_eq!(first, scores(&fit(&config, 1).0));
    config.seed = 2;
    assert_ne!(first, scores(&fit(&config, 1).0));
}

#[test]
fn a_table_of_an_unknown_feature_is_refused() {
    let mut config = config();
    config.tables.rows_of.insert("idd".into(), 5);
    let ended = end_of::<Autodiff<Cpu>>(&config, 1);
    assert!(matches!(ended, Err(TrainError::Tables(_))));
}

#[test]
fn a_dropout_that_leaves_nothing_is_refused() {
    let mut config = config();
    for rate in [1.0, -0.1, f64::NAN] {
        config.model = network(rate);
        let ended = end_of::<Autodiff<Cpu>>(&config, 1);
        let refused = matches!(
            ended,
            Err(TrainError::Network(NetworkError::Dropout { .. }))
        );
        assert!(refused, "{rate}");
    }
}

#[test]
fn any_number_of_ranks_has_the_same_loss_curve() {
    let config = config();
    let wanted = losses(&fit(&config, 1).1);
    assert!(wanted.len() > 10);
    for world_size in 2..=4 {
        assert_close(&losses(&fit(&config, world_size).1), &wanted, 2e-4);
    }
}

#[cfg(feature = "tch")]
#[test]
fn libtorch_has_the_same_loss_curve_and_the_same_bits_each_time() {
    type B = Autodiff<burn::backend::LibTorch>;
    let config = config();
    let wanted = losses(&fit(&config, 1).1);
    for world_size in [1, 2] {
        assert_close(&losses(&fit_on::<B>(&config, world_size).1), &wanted, 2e-4);
    }
    let scores = || scores(&fit_on::<B>(&config, 1).0);
    assert_eq!(scores(), scores());
}

#[test]
fn a_network_of_sixteen_bits_learns_nearly_the_same() {
    let mut config = config();
    let wanted = losses(&fit(&config, 1).1);
    config.training.precision = Precision::Bf16;
    for world_size in [1, 2] {
        let (model, told) = fit(&config, world_size);
        let found = losses(&told);
        assert_close(&found, &wanted, 0.02);
        assert_ne!(found, wanted);
        assert!(measured(&model, &rows(2000, 3)).auc.unwrap() > 0.97);
    }
}

/// The GPU's tables and dense half on whatever has Vulkan.
#[cfg(feature = "wgpu")]
mod gpu {
    use burn::backend::wgpu::WgpuRuntime;

    use super::*;
    use crate::{
        backend::Gpu,
        dense::DenseOptimizer,
        sharding::{PlacementError, Storage},
    };

    type B = Autodiff<Gpu<WgpuRuntime>>;

    /// What stands in for a GPU here takes long for each step.
    fn short() -> CtrConfig {
        let mut config = config();
        config.training.epochs = 1;
        config
    }

    fn fit_on_gpu(config: &CtrConfig, world_size: usize) -> Vec<(u64, f64)> {
        losses(&fit_on::<B>(config, world_size).1)
    }

    #[test]
    fn a_gpu_has_the_same_loss_curve_on_any_number_of_ranks() {
        let config = short();
        let wanted = losses(&fit(&config, 1).1);
        for world_size in 1..=3 {
            assert_close(&fit_on_gpu(&config, world_size), &wanted, 2e-4);
        }
    }

    #[test]
    fn a_rank_of_gpus_without_rows_takes_part_in_the_step() {
        let mut config = config();
        // Two rows are left for the last step of an epoch.
        config.training.batch_size = 1499;
        let wanted = losses(&fit(&config, 1).1);
        assert_close(&fit_on_gpu(&config, 3), &wanted, 2e-4);
    }

    #[test]
    fn a_gpu_has_the_same_loss_curve_with_every_sharding() {
        let mut config = short();
        let wanted = losses(&fit(&config, 1).1);
        for kind in [
            ShardingKind::Replicated,
            ShardingKind::TableWise,
            ShardingKind::RowWise,
        ] {
            let all = ["id", "several"].map(|feature| (feature.to_owned(), kind));
            config.tables.planner.sharding_of = all.into();
            assert_close(&fit_on_gpu(&config, 2), &wanted, 2e-4);
        }
    }

    #[test]
    fn a_gpu_learns_the_same_from_a_cache_in_micro_batches_and_with_ids_that_come_and_go() {
        let mut config = dynamic();
        config.training.micro_batches = 2;
        config.training.weight_decay = 0.01;
        config.training.max_gradient_norm = 0.1;
        config.tables.optimizer.weight_decay = 0.001;
        let wanted = losses(&fit(&config, 1).1);
        for (world_size, gpu_cache_rows) in [(1, 0), (1, 20), (2, 300)] {
            config.tables.gpu_cache_rows = gpu_cache_rows;
            assert_close(&fit_on_gpu(&config, world_size), &wanted, 2e-4);
        }
    }

    #[test]
    fn a_gpu_moves_the_dense_weights_by_every_optimizer_and_begins_anew_every_epoch() {
        let mut config = config();
        config.training.epochs = 2;
        config.training.ema_decay = 0.99;
        config.training.weight_decay = 0.01;
        config.tables.reinitialise_each_epoch = true;
        for kind in [
            DenseOptimizer::Adam,
            DenseOptimizer::AdamW,
            DenseOptimizer::Adagrad,
            DenseOptimizer::Lamb,
        ] {
            config.training.optimizer.kind = kind;
            let wanted = losses(&fit(&config, 1).1);
            assert_close(&fit_on_gpu(&config, 1), &wanted, 2e-4);
        }
    }

    /// That networks are the same there is a matter of their own tests.
    #[test]
    fn a_gpu_has_the_same_loss_curve_with_another_architecture() {
        let mut config = short();
        let auto_int = serde_json::json!({
            "architecture": "auto_int", "num_layers": 1, "attention_dim": 8, "hidden": [16],
        });
        let two_tasks = conversions::mmoe().model;
        for model in [serde_json::from_value(auto_int).unwrap(), two_tasks] {
            config.model = model;
            let wanted = losses(&fit(&config, 1).1);
            assert_close(&fit_on_gpu(&config, 1), &wanted, 2e-4);
        }
    }

    #[test]
    fn a_gpu_goes_on_where_a_cpu_was_stopped() {
        let mut config = config();
        config.checkpoint.every_steps = 7;
        let wanted = losses(&fit(&config, 1).1);
        let dir = tempfile::tempdir().unwrap();
        let mut part = Part {
            config: &config,
            world_size: 2,
            dir: dir.path(),
            rows: 3000,
            stop: Stop::AtPoint,
        };
        let mut found: Vec<(u64, f64)> = losses(&part.run().1);
        part.world_size = 1;
        for stop in [Stop::AtPoint, Stop::Never] {
            part.stop = stop;
            found.extend(losses(&part.run_on::<B>().1));
        }
        assert_close(&found, &wanted, 2e-4);
    }

    #[test]
    fn what_a_gpu_cannot_is_refused_by_its_key() {
        let refused = |change: &dyn Fn(&mut CtrConfig)| {
            let mut config = config();
            change(&mut config);
            match end_of::<B>(&config, 1) {
                Err(TrainError::Placement(PlacementError::Unsupported { key, .. })) => key,
                Err(TrainError::Plan(error)) => {
                    assert!(error.to_string().contains("column_wise"), "{error}");
                    "plan"
                }
                other => panic!("{other:?}"),
            }
        };
        let column_wise = ("id".to_owned(), ShardingKind::ColumnWise);
        type Change<'a> = &'a dyn Fn(&mut CtrConfig);
        let changes: [(&str, Change<'_>); 4] = [
            ("tables.optimizer.kind", &|config| {
                config.tables.optimizer.kind = SparseOptimizer::Adam;
            }),
            ("tables.optimizer.max_row_norm", &|config| {
                config.tables.optimizer.max_row_norm = 1.0;
            }),
            ("tables.storage", &|config| {
                config.tables.storage = Storage::Bf16;
            }),
            ("plan", &|config| {
                config.tables.planner.sharding_of = [column_wise.clone()].into();
            }),
        ];
        for (key, change) in changes {
            assert_eq!(refused(change), key);
        }
    }
}

#[test]
fn measures_within_an_epoch_change_nothing_and_are_those_of_its_end() {
    let mut config = config();
    config.training.epochs = 1;
    let (_, wanted) = fit(&config, 2);
    config.training.evaluate_every_steps = 20;
    let (_, told) = fit(&config, 2);
    assert_eq!(losses(&told), losses(&wanted));
    let measured = told.iter().filter_map(|told| match told {
        Progress::Evaluated { step, valid, .. } => Some((*step, valid.rows, valid.log_loss)),
        _ => None,
    });
    let measured: Vec<_> = measured.collect();
    let steps: Vec<u64> = measured.iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [20, 40]);
    assert!(measured.iter().all(|(_, rows, _)| *rows == 500));
    assert!(measured[1].2 < measured[0].2, "{measured:?}");
}

#[test]
fn more_ranks_than_streams_are_refused() {
    let mut config = config();
    config.reader.streams = 2;
    let streams = matches!(
        end_of::<Autodiff<Cpu>>(&config, 3),
        Err(TrainError::Streams {
            streams: 2,
            world_size: 3
        })
    );
    assert!(streams);
}

#[test]
fn every_sharding_has_the_same_loss_curve() {
    let mut config = config();
    // Column-wise wants four columns a rank.
    config.tables.embedding_dim = 8;
    let wanted = losses(&fit(&config, 1).1);
    for kind in [
        ShardingKind::Replicated,
        ShardingKind::TableWise,
        ShardingKind::RowWise,
        ShardingKind::ColumnWise,
    ] {
        let all = ["id", "several"].map(|feature| (feature.to_owned(), kind));
        config.tables.planner.sharding_of = all.into();
        assert_close(&losses(&fit(&config, 2).1), &wanted, 2e-4);
    }
}

/// Ids of `several` that come again have rows of their own, and are soon forgotten.
fn dynamic() -> CtrConfig {
    let mut config = config();
    config.tables.rows_of = [("id".into(), 1024), ("several".into(), 1024)].into();
    for (feature, admit_after, evict_after_steps) in [("id", 3, 0), ("several", 2, 40)] {
        let dynamic = DynamicConfig {
            admit_after,
            evict_after_steps,
        };
        config.tables.dynamic.insert(feature.into(), dynamic);
    }
    config
}

/// What is published has the rows that were trained: it is as good as the best epoch was.
fn check_published(model: &CtrModel<Cpu>, losses: &[(u64, f64)]) {
    let best = losses.iter().filter(|(step, _)| *step > 1_000_000);
    let best = best.map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let found = measured(model, &rows(500, 2)).log_loss;
    assert!((found - best).abs() < 1e-5, "{found} {best}");
}

#[test]
fn dynamic_tables_learn_the_same_on_any_number_of_ranks() {
    let config = dynamic();
    let (model, told) = fit(&config, 1);
    let wanted = losses(&told);
    check_published(&model, &wanted);
    let Some(Progress::Epoch { tables, .. }) = told.last() else {
        panic!("{told:?}");
    };
    assert_eq!((tables[0].used, tables[0].counts.admitted), (100, 100));
    assert!(tables[1].counts.evicted_by_age > 0, "{tables:?}");
    let tables = tables.clone();
    for world_size in 2..=3 {
        let (_, told) = fit(&config, world_size);
        assert_close(&losses(&told), &wanted, 2e-4);
        let Some(Progress::Epoch { tables: found, .. }) = told.last() else {
            panic!("{told:?}");
        };
        assert_eq!(*found, tables);
    }
}

/// A run that was stopped often is the uninterrupted one bit for bit.
fn check_goes_on(config: &CtrConfig, world_size: usize) {
    use Stop::{AtOnce, AtPoint, Never};
    let (whole, told) = fit(config, world_size);
    let stops = [AtOnce, AtPoint, AtPoint, AtOnce, AtPoint, Never];
    let (model, metrics) = in_parts(config, &stops.map(|stop| (world_size, stop)));
    assert_eq!(scores(&model), scores(&whole));
    assert_eq!(metrics, losses(&told));
}

#[test]
fn a_run_with_dynamic_tables_goes_on_where_it_was_stopped() {
    let mut config = dynamic();
    config.checkpoint.every_steps = 7;
    for world_size in [1, 2] {
        check_goes_on(&config, world_size);
    }
    let wanted = losses(&fit(&config, 1).1);
    let parts = [4, 2, 3].map(|ranks| (ranks, Stop::AtPoint));
    let parts = [&parts[..], &[(1, Stop::Never)]].concat();
    assert_close(&in_parts(&config, &parts).1, &wanted, 2e-4);
}

#[test]
fn micro_batches_change_nothing_but_rounding() {
    let mut config = config();
    let wanted = losses(&fit(&config, 1).1);
    config.training.micro_batches = 3;
    assert_close(&losses(&fit(&config, 1).1), &wanted, 2e-4);
    assert_close(&losses(&fit(&config, 2).1), &wanted, 2e-4);
}

/// Runs in parts, with the numbers of ranks given; the metrics of all parts, as one would find
/// them in the end.
fn in_parts(config: &CtrConfig, parts: &[(usize, Stop)]) -> (CtrModel<Cpu>, Vec<(u64, f64)>) {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<(u64, f64)> = Vec::new();
    for (world_size, stop) in parts {
        let part = Part {
            config,
            world_size: *world_size,
            dir: dir.path(),
            rows: 3000,
            stop: *stop,
        };
        let (trained, told) = part.run();
        if let Some(Progress::Resumed(resumed)) = told.first() {
            all.retain(|(step, _)| *step > 1_000_000 || *step <= resumed.step);
        }
        all.extend(losses(&told));
        if *stop == Stop::Never {
            return (model(trained.unwrap()), all);
        }
        assert!(
            matches!(trained, Ok(Trained::Stopped { .. })),
            "{trained:?}"
        );
    }
    panic!("the last part goes to the end");
}

#[test]
fn an_interrupted_run_equals_the_uninterrupted_bit_for_bit() {
    let mut config = config();
    config.checkpoint.every_steps = 7;
    let optimizers = [SparseOptimizer::RowwiseAdagrad, SparseOptimizer::Adam];
    for (world_size, optimizer) in [(1, optimizers[0]), (3, optimizers[1])] {
        config.tables.optimizer.kind = optimizer;
        let (whole, told) = fit(&config, world_size);
        use Stop::{AtOnce, AtPoint, Never};
        let stops = [
            AtOnce, AtPoint, AtOnce, AtOnce, AtPoint, AtPoint, AtPoint, AtOnce, AtPoint, Never,
        ];
        let (model, metrics) = in_parts(&config, &stops.map(|stop| (world_size, stop)));
        assert_eq!(scores(&model), scores(&whole));
        assert_eq!(metrics, losses(&told));
    }
}

#[test]
fn other_numbers_of_ranks_go_on_with_the_same_loss_curve() {
    let mut config = config();
    for kind in [SparseOptimizer::RowwiseAdagrad, SparseOptimizer::Adam] {
        config.tables.optimizer.kind = kind;
        let wanted = losses(&fit(&config, 1).1);
        let parts = [4, 2, 3].map(|ranks| (ranks, Stop::AtPoint));
        let parts = [&parts[..], &[(1, Stop::Never)]].concat();
        assert_close(&in_parts(&config, &parts).1, &wanted, 2e-4);
    }
}

#[test]
fn the_best_epoch_is_kept_however_many_follow() {
    let mut config = config();
    // Far too fast: later epochs get worse.
    config.training.learning_rate = 0.05;
    config.training.epochs = 8;
    config.checkpoint.keep = 1;
    let (model, told) = fit(&config, 1);
    let epochs: Vec<f64> = losses(&told)
        .into_iter()
        .filter(|(step, _)| *step > 1_000_000)
        .map(|(_, loss)| loss)
        .collect();
    let best = epochs.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(epochs[7] > best, "{epochs:?}");
    let found = measured(&model, &rows(500, 2)).log_loss;
    assert!((found - best).abs() < 1e-5, "{found} {best}");
}

#[test]
fn steps_that_are_no_number_move_nothing_and_end_the_run_when_there_are_too_many() {
    let mut data = rows(640, 1);
    let (_valid, valid) = table(100, 2);
    let config = config();
    let run = |data: &Examples| {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::local(dir.path()).unwrap();
        let saved = config.checkpoint.clone();
        let mut checkpoints = Checkpoints::new(folder, saved, "run".into(), TcpGroup::alone());
        let (_train, train_rows) = testing::table(data, 100);
        let mut told = Vec::new();
        let task = Task {
            config: &config,
            schema: train_rows.schema(),
            train: &train_rows,
            valid: &valid,
        };
        let report = |progress: &Progress| told.push(progress.clone());
        let stop = AtomicBool::new(false);
        let mut groups = Groups::alone();
        let device = Default::default();
        let trained = train::<Autodiff<Cpu>, _, _>(
            task,
            &device,
            &mut groups,
            &mut checkpoints,
            &stop,
            report,
        );
        (trained, told)
    };
    // Finite, as the reader wants it, but not multiplied.
    (data.clicks[77], data.weights[77]) = (f32::MAX, f32::MAX);
    let (trained, told) = run(&data);
    let skipped = told
        .iter()
        .filter(|told| matches!(told, Progress::Skipped { .. }));
    assert_eq!(skipped.count(), 3, "once an epoch");
    let named = |told: &Progress| match told {
        Progress::Skipped { impression_id, .. } => impression_id.is_some(),
        _ => true,
    };
    assert!(told.iter().all(named));
    assert!(
        scores(&model(trained.unwrap()))
            .iter()
            .all(|score| score.is_finite())
    );

    // No mean of nothing.
    data.weights.fill(0.0);
    let (trained, _) = run(&data);
    let Err(TrainError::Diverged {
        step: 5, count: 5, ..
    }) = trained
    else {
        panic!("{trained:?}");
    };
}
