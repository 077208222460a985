//! Rows of ids depend on what was seen, and on nothing else.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    collective::{CollectiveConfig, TcpGroup, segment, testing::meet},
    sharding::{Sharding, TableConfig},
};

const ROWS: usize = 129;

fn plan(world_size: usize, dynamic: &DynamicConfig) -> Plan {
    let table = |feature: &str, dynamic| TableConfig {
        dynamic,
        ..TableConfig::of_feature(feature, ROWS, 2)
    };
    let tables = vec![
        (table("hashed", None), Sharding::Replicated {}),
        (
            table("dynamic", Some(dynamic.clone())),
            Sharding::RowWise {},
        ),
    ];
    Plan::new(world_size, tables)
}

fn alone(dynamic: &DynamicConfig) -> Vocabulary {
    Vocabulary::new(&plan(1, dynamic), 0).unwrap()
}

fn bags(ids: &[u64]) -> Vec<Cow<'static, Jagged>> {
    let mut bags = Jagged::default();
    ids.iter().for_each(|id| bags.push_row(&[*id]));
    vec![Cow::Owned(bags); 2]
}

/// A step: rows of the ids as they are before it, and the rows that are lost by it.
fn step(ids: &mut Vocabulary, seen: &[u64]) -> (Vec<u64>, Vec<u32>) {
    let mut rows = bags(seen);
    let seen = ids.translate(&mut rows, &mut TcpGroup::alone()).unwrap();
    let lost = ids.observe(&[&seen]);
    let lost = lost.into_iter().flat_map(|(_, rows)| rows).collect();
    (rows[1].ids.clone(), lost)
}

#[test]
fn an_id_has_a_row_when_it_was_seen_often_enough() {
    let mut ids = alone(&DynamicConfig {
        admit_after: 3,
        evict_after_steps: 0,
    });
    assert_eq!(step(&mut ids, &[7, 7, 8]).0, [0, 0, 0]);
    assert_eq!(step(&mut ids, &[7, 8]).0, [0, 0]);
    let (rows, _) = step(&mut ids, &[7, 8, 9]);
    assert!(rows[0] > 0 && rows[1..] == [0, 0], "{rows:?}");
    let (rows, _) = step(&mut ids, &[8, 7]);
    assert!(rows[0] > 0 && rows[1] > 0 && rows[0] != rows[1], "{rows:?}");
    let used = ids.usage(&mut TcpGroup::alone()).unwrap().remove(0);
    assert_eq!((used.used, used.candidates, used.rows), (2, 1, ROWS as u64));
    let Counts {
        admitted,
        seen,
        shared,
        ..
    } = used.counts;
    assert_eq!((admitted, seen, shared), (2, 10, 7));
}

#[test]
fn an_id_that_is_not_seen_loses_its_row_and_another_is_as_new() {
    let mut ids = alone(&DynamicConfig {
        admit_after: 1,
        evict_after_steps: 10,
    });
    step(&mut ids, &[1, 2]);
    let row = step(&mut ids, &[1, 2]).0[0];
    let mut lost = Vec::new();
    for _ in 0..10 + PARTITIONS {
        lost.extend(step(&mut ids, &[2]).1);
    }
    assert_eq!(lost, [row as u32]);
    let rows = step(&mut ids, &[1, 2]).0;
    assert!(rows[0] == 0 && rows[1] > 0, "{rows:?}");
    // The lowest free row of its part is its own again.
    assert_eq!(step(&mut ids, &[1]).0, [row]);
}

#[test]
fn newcomers_take_the_rows_of_those_not_seen_for_longest() {
    let mut ids = alone(&DynamicConfig {
        admit_after: 1,
        evict_after_steps: 0,
    });
    // Two rows in each of 64 parts.
    let mine: Vec<u64> = (0..).filter(|id| partition_of(*id) == 5).take(4).collect();
    let [a, b, c, d] = mine[..] else {
        unreachable!()
    };
    step(&mut ids, &[a, b]);
    step(&mut ids, &[a]);
    let rows = step(&mut ids, &[a, b, c]).0;
    // All three were seen in this step: none is older.
    assert!(rows[0] > 0 && rows[1] > 0 && rows[2] == 0, "{rows:?}");
    assert_eq!(step(&mut ids, &[a, d]).1, [rows[1] as u32]);
    assert_eq!(step(&mut ids, &[a, b, c, d]).0, [rows[0], 0, 0, rows[1]]);
}

#[test]
fn candidates_do_not_fill_the_memory() {
    let mut ids = alone(&DynamicConfig {
        admit_after: 5,
        evict_after_steps: 0,
    });
    for first in 0..100 {
        let fresh: Vec<u64> = (first * 50..first * 50 + 50).collect();
        step(&mut ids, &fresh);
    }
    let used = ids.usage(&mut TcpGroup::alone()).unwrap().remove(0);
    assert!(used.candidates <= ROWS as u64, "{used:?}");
}

/// Rows and lost rows of each step on some ranks, from what was saved by others, if anything.
#[allow(clippy::type_complexity)]
fn run(
    world_size: usize,
    dynamic: &DynamicConfig,
    steps: &[Vec<u64>],
    before: &[Vec<u8>],
) -> (Vec<(Vec<u64>, Vec<u32>)>, Vec<Vec<u8>>) {
    let plan = plan(world_size, dynamic);
    let ranks = meet(world_size, &CollectiveConfig::default(), |met| {
        let mut group = TcpGroup::connect(&met, "ids").unwrap();
        let rank = group.rank();
        let mut ids = Vocabulary::new(&plan, rank).unwrap();
        if !before.is_empty() {
            let files = before
                .iter()
                .map(|file| SafeTensors::deserialize(file).unwrap());
            ids.restore(&files.collect::<Vec<_>>()).unwrap();
        }
        let mut told = Vec::new();
        for seen in steps {
            let mut rows = bags(&seen[segment(seen.len(), world_size, rank)]);
            let seen = ids.translate(&mut rows, &mut group).unwrap();
            let lost = ids.observe(&[&seen]);
            told.push((rows[1].ids.clone(), lost));
        }
        (told, crate::checkpoint::to_bytes(ids.save()))
    });
    let of_step = |at: usize| {
        let rows = ranks.iter().flat_map(|(told, _)| told[at].0.clone());
        let lost = ranks.iter().flat_map(|(told, _)| told[at].1.clone());
        let mut lost: Vec<u32> = lost.flat_map(|(_, rows)| rows).collect();
        lost.sort_unstable();
        (rows.collect(), lost)
    };
    let told = (0..steps.len()).map(of_step).collect();
    (told, ranks.into_iter().map(|(_, saved)| saved).collect())
}

#[test]
fn questions_that_cannot_be_are_refused() {
    let ids = alone(&DynamicConfig::default());
    let answer = |words: &[u64]| ids.answer(words, &mut [Vec::new()]);
    assert_eq!(answer(&[2, 7, 8, 1, 1]), Some(vec![0, 0]));
    for words in [&[][..], &[2, 7, 8, 1], &[u64::MAX, 7], &[1, 7, 1, 9]] {
        assert_eq!(answer(words), None);
    }
}

proptest! {
    #[test]
    fn no_question_makes_it_panic(words in prop::collection::vec(prop_oneof![0u64..12, any::<u64>()], 0..30)) {
        alone(&DynamicConfig::default()).answer(&words, &mut [Vec::new()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn rows_depend_neither_on_the_ranks_nor_on_a_break(
        seed in any::<u64>(),
        admit_after in 1u32..4,
        evict_after_steps in prop::sample::select(vec![0u64, 5, 30]),
        ranks in (1usize..5, 1usize..5),
    ) {
        let dynamic = DynamicConfig { admit_after, evict_after_steps };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let steps: Vec<Vec<u64>> = (0..40).map(|_| {
            // Few ids are frequent and many rare.
            let id = |random: &mut ChaCha8Rng| {
                let range = [20u64, 200, 2000][random.random_range(0..3)];
                random.random_range(0..range).wrapping_mul(0x2545_f491_4f6c_dd1d)
            };
            (0..random.random_range(0..60)).map(|_| id(&mut random)).collect()
        }).collect();
        let (wanted, _) = run(1, &dynamic, &steps, &[]);
        let (first, saved) = run(ranks.0, &dynamic, &steps[..23], &[]);
        let (second, _) = run(ranks.1, &dynamic, &steps[23..], &saved);
        prop_assert_eq!([first, second].concat(), wanted);
    }
}
