//! What is learnt does not depend on how the tables are spread.

use std::sync::Arc;

use features::Jagged;
use models::ctr::{EmbeddingTable, Pooling};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::collective::{CollectiveConfig, ProcessGroup, TcpGroup, segment, testing::meet};

const STEPS: usize = 3;
const BAGS: usize = 37;

/// Features in the order of their columns, with the first of these and their table.
const FEATURES: [(&str, usize, usize); 5] = [
    ("one", 0, 0),
    ("mean", 4, 1),
    ("sum", 12, 2),
    ("mean_again", 17, 1),
    ("sum_again", 25, 2),
];

/// Three tables: one id a bag, several as a mean, several weighted as a sum; two features read each
/// of the latter.
fn tables() -> Vec<TableConfig> {
    let table = |at: usize, name: &str, rows, dim, pooling| {
        let features = FEATURES.iter().filter(|(_, _, table)| *table == at);
        TableConfig {
            name: name.into(),
            features: features.map(|(name, ..)| (*name).into()).collect(),
            rows,
            dim,
            pooling,
            dynamic: None,
        }
    };
    vec![
        table(0, "one", 50, 4, Pooling::Mean),
        table(1, "mean", 7, 8, Pooling::Mean),
        table(2, "sum", 3000, 5, Pooling::Sum),
    ]
}

fn in_order(plan: Plan) -> Arc<Plan> {
    Arc::new(plan.with_features(FEATURES.map(|(name, ..)| name.into())))
}

fn alone() -> Arc<Plan> {
    in_order(Plan::alone(&tables()))
}

/// A batch of all ranks together.
#[derive(Clone)]
struct Batch {
    ids: Vec<Jagged>,
    weights: Vec<Vec<f32>>,
    gradient: Vec<f32>,
}

const WIDTH: usize = 30;

fn batch(random: &mut ChaCha8Rng) -> Batch {
    let (mut ids, mut weights) = (vec![Jagged::default(); 5], vec![Vec::new(); 5]);
    for _ in 0..BAGS {
        for (feature, (_, _, table)) in FEATURES.iter().enumerate() {
            let length = match table {
                0 => usize::from(random.random_bool(0.9)),
                1 => random.random_range(0..=4),
                _ => random.random_range(0..=12),
            };
            let bag: Vec<u64> = (0..length).map(|_| random.random()).collect();
            weights[feature].extend(bag.iter().map(|_| random.random_range(0.5f32..2.0)));
            ids[feature].push_row(&bag);
        }
    }
    // One sign a column of a table: a sum that cancels leaves rounding, which Adagrad would scale to a
    // step.
    let sign = |at: usize| {
        let of_feature = FEATURES
            .iter()
            .filter_map(|(_, first, _)| (at % WIDTH).checked_sub(*first));
        [1.0, -1.0][of_feature.min().unwrap() % 2]
    };
    let gradient = (0..BAGS * WIDTH).map(|at| sign(at) * random.random_range(0.1f32..1.0));
    let gradient = gradient.collect();
    Batch {
        ids,
        weights,
        gradient,
    }
}

/// The bags `range` of a batch.
fn part(batch: &Batch, range: std::ops::Range<usize>) -> Batch {
    let mut part = Batch {
        ids: vec![Jagged::default(); 5],
        weights: vec![Vec::new(); 5],
        gradient: batch.gradient[range.start * WIDTH..range.end * WIDTH].to_vec(),
    };
    for feature in 0..5 {
        let (ids, weights) = (&batch.ids[feature], &batch.weights[feature]);
        for bag in range.clone() {
            part.ids[feature].push_row(ids.row(bag));
            let (from, to) = (ids.offsets[bag] as usize, ids.offsets[bag + 1] as usize);
            part.weights[feature].extend(&weights[from..to]);
        }
    }
    part
}

/// Pooled blocks of all steps, and the tables in the end.
type Learnt = (Vec<Vec<f32>>, Vec<EmbeddingTable>);

fn learn(
    plan: &Arc<Plan>,
    optimizer: &SparseOptimizerConfig,
    storage: Storage,
    batches: &[Batch],
) -> Learnt {
    let world_size = plan.world_size;
    let ranks: Vec<Learnt> = meet(world_size, &CollectiveConfig::default(), |met| {
        let mut group = TcpGroup::connect(&met, "rows").unwrap();
        let rank = group.rank();
        let mut tables = ShardedTables::new(Arc::clone(plan), rank, optimizer.clone(), storage, 5);
        let mut pooled = Vec::new();
        for batch in batches {
            let range = segment(BAGS, world_size, rank);
            let mine = part(batch, range.clone());
            let bags = Bags {
                ids: &mine.ids,
                weights: Some(&mine.weights),
                rows: range.len(),
            };
            let routed = tables.router().route(bags, &mut group).unwrap();
            pooled.push(tables.lookup(&routed, &mut group).unwrap());
            let given = tables.exchange(&routed, mine.gradient, &mut group).unwrap();
            tables.apply(&[given], 1.0, &mut group).unwrap();
        }
        (pooled, tables.gather(&mut group).unwrap())
    });
    let steps = (0..batches.len()).map(|step| {
        ranks
            .iter()
            .flat_map(move |(pooled, _)| pooled[step].clone())
    });
    let pooled = steps.map(Iterator::collect).collect();
    assert!(
        ranks.iter().all(|(_, tables)| *tables == ranks[0].1),
        "all ranks gather the same"
    );
    (pooled, ranks[0].1.clone())
}

fn batches(seed: u64) -> Vec<Batch> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..STEPS).map(|_| batch(&mut random)).collect()
}

fn assert_close(found: &Learnt, wanted: &Learnt, tolerance: f32, what: &str) {
    let pairs = found.0.iter().zip(&wanted.0).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    let tables = found.1.iter().zip(&wanted.1);
    let pairs = pairs.chain(tables.flat_map(|(a, b)| a.weights.iter().zip(&b.weights)));
    for (found, wanted) in pairs {
        assert!(
            (found - wanted).abs() <= tolerance,
            "{what}: {found} against {wanted}"
        );
    }
}

const KINDS: [SparseOptimizer; 5] = [
    SparseOptimizer::RowwiseAdagrad,
    SparseOptimizer::Adagrad,
    SparseOptimizer::Adam,
    SparseOptimizer::Sgd,
    SparseOptimizer::Ftrl,
];

fn sharding(kind: u8, world_size: usize, draw: usize) -> Sharding {
    match kind % 4 {
        0 => Sharding::Replicated {},
        1 => Sharding::TableWise {
            rank: draw % world_size,
        },
        2 => Sharding::RowWise {},
        _ => {
            let slices = 1 + draw % world_size;
            Sharding::ColumnWise {
                ranks: (0..slices).map(|part| (part + draw) % world_size).collect(),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_plan_learns_what_one_process_learns(
        world_size in 2usize..=4,
        kinds in prop::array::uniform3(any::<u8>()),
        draw in 0usize..4,
        optimizer in 0usize..5,
        clip in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let optimizer = SparseOptimizerConfig {
            kind: KINDS[optimizer],
            weight_decay: 0.01,
            max_row_norm: if clip { 2.0 } else { 0.0 },
            ..Default::default()
        };
        let batches = batches(seed);
        let alone = learn(&alone(), &optimizer, Storage::F32, &batches);
        let spread = tables().into_iter().zip(kinds).map(|(table, kind)| (table, sharding(kind, world_size, draw)));
        let plan = in_order(Plan::new(world_size, spread.collect()));
        let found = learn(&plan, &optimizer, Storage::F32, &batches);
        assert_close(&found, &alone, 2e-5, &format!("{:?} {optimizer:?}", plan.tables));
    }
}

#[test]
fn sixteen_bit_tables_learn_nearly_the_same_everywhere() {
    let optimizer = SparseOptimizerConfig::default();
    let batches = batches(3);
    let wide = learn(&alone(), &optimizer, Storage::F32, &batches);
    for (storage, tolerance) in [(Storage::Bf16, 0.02), (Storage::F16, 0.002)] {
        let alone = learn(&alone(), &optimizer, storage, &batches);
        assert_close(&alone, &wide, tolerance, "16 bit against 32");
        let row_wise = tables()
            .into_iter()
            .map(|table| (table, Sharding::RowWise {}));
        let plan = in_order(Plan::new(3, row_wise.collect()));
        let cut = learn(&plan, &optimizer, storage, &batches);
        assert_close(&cut, &alone, tolerance, "three ranks against one");
    }
}

/// One step over dense arithmetic on whole tables: the gradients of a row are summed, whichever
/// features it was looked up by, and then it is moved once.
#[test]
fn one_process_learns_what_dense_arithmetic_says() {
    const RATE: f32 = 0.5;
    // From no state; two moves by Adagrad would go further than one by the sum.
    type Moved = fn(f32) -> f32;
    let kinds: [(SparseOptimizer, Moved); 2] = [
        (SparseOptimizer::Sgd, |g| RATE * g),
        (SparseOptimizer::Adagrad, |g| RATE * g / (g.abs() + 1e-8)),
    ];
    let batches = batches(9);
    for (kind, moved) in kinds {
        let optimizer = SparseOptimizerConfig {
            kind,
            learning_rate: RATE,
            ..Default::default()
        };
        let before = learn(&alone(), &optimizer, Storage::F32, &[]).1;
        let (pooled, after) = learn(&alone(), &optimizer, Storage::F32, &batches[..1]);
        let gradients = dense_step(&batches[0], &before, &pooled[0]);
        for ((before, after), gradients) in before.iter().zip(&after).zip(&gradients) {
            let weights = before.weights.iter().zip(gradients);
            for (found, (weight, g)) in after.weights.iter().zip(weights) {
                let wanted = weight - moved(*g);
                assert!((found - wanted).abs() < 1e-5, "{kind:?}: {found} {wanted}");
            }
        }
    }
}

/// Compares what is pooled, and returns the summed gradients of all rows.
fn dense_step(batch: &Batch, tables: &[EmbeddingTable], pooled: &[f32]) -> Vec<Vec<f32>> {
    let zeros = tables.iter().map(|table| vec![0.0; table.weights.len()]);
    let mut gradients: Vec<Vec<f32>> = zeros.collect();
    for (feature, (_, column, table)) in FEATURES.into_iter().enumerate() {
        let (ids, weights) = (&batch.ids[feature], &batch.weights[feature]);
        let (table, gradients) = (&tables[table], &mut gradients[table]);
        for bag in 0..BAGS {
            let mut sum = vec![0.0; table.dim];
            let (first, at) = (ids.offsets[bag] as usize, bag * WIDTH + column);
            for (entry, id) in ids.row(bag).iter().enumerate() {
                let scale = match table.pooling {
                    Pooling::Mean => 1.0 / ids.row(bag).len() as f32,
                    Pooling::Sum => weights[first + entry],
                };
                let row = table.row_of(*id) * table.dim;
                for x in 0..table.dim {
                    sum[x] += scale * table.weights[row + x];
                    gradients[row + x] += scale * batch.gradient[at + x];
                }
            }
            for (x, sum) in sum.iter().enumerate() {
                assert!((pooled[at + x] - sum).abs() < 1e-6);
            }
        }
    }
    gradients
}

/// Features that share a table are as one that has the bags of both.
#[test]
fn an_id_has_one_row_and_is_counted_once_whichever_feature_it_comes_by() {
    let mut table = TableConfig::of_feature("a", 2048, 4);
    table.features.push("b".into());
    table.dynamic = Some(DynamicConfig::default());
    let plan = Arc::new(Plan::alone(&[table]));
    let optimizer = SparseOptimizerConfig::default();
    let mut tables = ShardedTables::new(plan, 0, optimizer, Storage::F32, 5);
    let mut group = TcpGroup::alone();
    let bags = |ids: &[u64]| {
        let mut bags = Jagged::default();
        ids.iter().for_each(|id| bags.push_row(&[*id]));
        bags
    };
    let mut rows = |ids: [Jagged; 2]| {
        let bags = Bags {
            ids: &ids,
            weights: None,
            rows: 2,
        };
        let routed = tables.router().route(bags, &mut group).unwrap();
        tables.observe([&routed], &mut group).unwrap();
        routed.tables[0].rows.clone()
    };
    // Admitted when it was seen twice, once by either.
    assert_eq!(rows([bags(&[7, 8]), bags(&[9, 7])]), [0; 4]);
    let found = rows([bags(&[7, 8]), bags(&[9, 7])]);
    assert!(found[0] > 0 && found[0] == found[3], "{found:?}");
    assert_eq!(found[1..3], [0, 0]);
    let used = tables.router().usage(&mut group).unwrap();
    assert_eq!((used.len(), &*used[0].table), (1, "a"));
    assert_eq!((used[0].used, used[0].counts.seen), (3, 8));
}

#[test]
fn a_tables_weights_do_not_depend_on_its_neighbours() {
    let optimizer = SparseOptimizerConfig::default();
    let first = |tables: &[TableConfig]| {
        learn(
            &Arc::new(Plan::alone(tables)),
            &optimizer,
            Storage::F32,
            &[],
        )
        .1
    };
    let all = first(&tables());
    assert_eq!(all[1..], first(&tables()[1..]));
    assert!(all[0].weights.iter().all(|weight| weight.abs() <= 0.01));
    assert!(all[0].weights.iter().any(|weight| *weight > 0.005));
}

#[test]
fn a_step_sends_hardly_more_than_it_must() {
    const ROWS: usize = 1000;
    for (world_size, length) in [(2, 1), (4, 1), (2, 30), (4, 30)] {
        for kind in 1..4 {
            let mut tables = ["a", "b", "c"].map(|name| TableConfig::of_feature(name, 100_000, 16));
            tables[0].features.push("d".into());
            let spread = tables.into_iter().enumerate();
            let spread = spread.map(|(draw, table)| (table, sharding(kind, world_size, draw)));
            let plan = Arc::new(Plan::new(world_size, spread.collect()));
            let ids = |rank: usize| -> Vec<Jagged> {
                let mut random = ChaCha8Rng::seed_from_u64(rank as u64);
                let mut bags = || {
                    let mut bags = Jagged::default();
                    for _ in 0..ROWS {
                        let bag: Vec<u64> = (0..length).map(|_| random.random()).collect();
                        bags.push_row(&bag);
                    }
                    bags
                };
                (0..4).map(|_| bags()).collect()
            };
            let all: Vec<Vec<Jagged>> = (0..world_size).map(ids).collect();
            let sent = meet(world_size, &CollectiveConfig::default(), |met| {
                let mut group = TcpGroup::connect(&met, "rows").unwrap();
                let rank = group.rank();
                // Without a sum over columns that lie apart, which comes on top.
                let optimizer = SparseOptimizerConfig {
                    kind: SparseOptimizer::Adagrad,
                    ..Default::default()
                };
                let mut tables =
                    ShardedTables::new(Arc::clone(&plan), rank, optimizer, Storage::F32, 1);
                let bags = Bags {
                    ids: &all[rank],
                    weights: None,
                    rows: ROWS,
                };
                let routed = tables.router().route(bags, &mut group).unwrap();
                let pooled = tables.lookup(&routed, &mut group).unwrap();
                let given = tables.exchange(&routed, pooled, &mut group).unwrap();
                tables.apply(&[given], 1.0, &mut group).unwrap();
                group.traffic().sent_bytes as usize
            });
            let least = all.iter().enumerate();
            let least: usize = least.map(|(rank, ids)| plan.least_bytes(rank, ids)).sum();
            let sent: usize = sent.iter().sum();
            let ratio = sent as f64 / least as f64;
            assert!(
                (0.999..1.05).contains(&ratio),
                "{world_size} {length} {kind}: {sent} over {least}"
            );
        }
    }
}

#[test]
fn tables_cost_their_numbers_and_nothing_more() {
    for (kind, state) in KINDS.into_iter().zip([1, 16, 32, 0, 32]) {
        let mut config = TableConfig::of_feature("a", 1000, 16);
        // However many read it.
        config.features.push("b".into());
        let optimizer = SparseOptimizerConfig {
            kind,
            ..Default::default()
        };
        for (storage, bytes) in [(Storage::F32, 4), (Storage::Bf16, 2), (Storage::F16, 2)] {
            let plan = Arc::new(Plan::alone(std::slice::from_ref(&config)));
            let tables = ShardedTables::new(plan, 0, optimizer.clone(), storage, 1);
            assert_eq!(
                tables.bytes(),
                1000 * (16 * bytes + 4 * state),
                "{kind:?} {storage:?}"
            );
        }
    }
}
