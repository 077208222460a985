//! Two towers that learn to find the clicked ad among those of a batch, and how well they find it.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::{
    optim::GradientsParams,
    tensor::{Tensor, TensorData},
};
use features::{
    FeatureBatch,
    hash::{SEED, chain_integer},
};
use models::{
    ctr::{
        CtrModel, Mode,
        loss::{self, batch_softmax},
        network::TowerVectors,
    },
    metrics::recall_at_k,
    ops::FusedOps,
};
use rayon::prelude::*;

use super::{
    evaluate::{RetrievalEvaluation, SCORE_BATCH},
    step::{Inner, Learner, RoutedBatch},
    train::TrainError,
};
use crate::{
    backend::StepBackend,
    collective::{CollectiveError, ExchangeError, ProcessGroup, TcpGroup, segment},
    dense::{self, DenseState, Precision},
    table::{Examples, Projection, Slice},
};

/// Which ad a row shows: its ad's sparse features as one number.
#[derive(Debug, Clone)]
pub(super) struct ItemKeys {
    /// Places of the ad's features among the sparse ones.
    pub fields: Vec<usize>,
}

impl ItemKeys {
    /// `[rows]`: equal where all the ad's sparse features are.
    pub fn of(&self, features: &FeatureBatch) -> Vec<u64> {
        let chain = |hash, number: u64| chain_integer(hash, number as i64);
        let of_row = |row| {
            let fields = self.fields.iter();
            fields.fold(SEED, |hash, field| {
                let ids = features.sparse[*field].row(row);
                ids.iter()
                    .fold(chain(hash, ids.len() as u64), |hash, id| chain(hash, *id))
            })
        };
        (0..features.num_rows).map(of_row).collect()
    }
}

/// How often each ad stands in the training rows, and so in a batch of them.
#[derive(Debug)]
pub(super) struct ItemFrequencies {
    keys: ItemKeys,
    counts: HashMap<u64, u64>,
    rows: u64,
}

/// The ads of some rows.
#[derive(Debug, Clone, Default)]
pub struct ShownItems {
    /// `[rows]`: which each is.
    items: Vec<u64>,
    /// `[rows]`: logarithm of its share of the training rows.
    log_frequency: Vec<f32>,
}

/// The ads of all ranks' rows of a batch.
#[derive(Debug, Clone)]
pub(super) struct BatchItems {
    all: ShownItems,
    /// `[world_size]`: rows of each rank.
    rows: Vec<usize>,
}

impl ItemFrequencies {
    /// Counts the training rows. Every rank reads its share of the row groups, and all know all.
    ///
    /// # Errors
    /// [`TrainError`] if rows cannot be read, or a rank was lost.
    pub fn fit(
        keys: ItemKeys,
        rows: &Slice,
        group: &mut impl ProcessGroup,
    ) -> Result<Self, TrainError> {
        let parts: Vec<Slice> = rows.row_groups().collect();
        let mut mine: BTreeMap<u64, u64> = BTreeMap::new();
        for part in &parts[segment(parts.len(), group.world_size(), group.rank())] {
            for key in keys.of(&part.read(Projection::Sparse)?.features) {
                *mine.entry(key).or_default() += 1;
            }
        }
        let mine: Vec<[u64; 2]> = mine.into_iter().map(Into::into).collect();
        let mut counts = HashMap::new();
        for [key, count] in group.all_gather_v(&mine)?.concat() {
            *counts.entry(key).or_default() += count;
        }
        Ok(Self {
            keys,
            counts,
            rows: rows.len() as u64,
        })
    }

    /// The ads of training rows.
    pub fn of(&self, features: &FeatureBatch) -> ShownItems {
        let items = self.keys.of(features);
        let share = |item| self.counts.get(item).copied().unwrap_or(1) as f64 / self.rows as f64;
        ShownItems {
            log_frequency: items.iter().map(|item| share(item).ln() as f32).collect(),
            items,
        }
    }
}

impl ShownItems {
    /// Those of all ranks.
    pub(super) fn gather(
        &self,
        group: &mut impl ProcessGroup,
    ) -> Result<BatchItems, CollectiveError> {
        let items = group.all_gather_v(&self.items)?;
        Ok(BatchItems {
            rows: items.iter().map(Vec::len).collect(),
            all: Self {
                items: items.concat(),
                log_frequency: group.all_gather_v(&self.log_frequency)?.concat(),
            },
        })
    }
}

impl<B: StepBackend> Learner<B> {
    /// The dense half of a step of two towers. The ads' vectors of all ranks are gathered, so that a click
    /// has the negatives of all; each rank computes the loss of its own clicks, and every ad's gradient
    /// goes back to the rank that has its row.
    pub(super) fn batch_softmax_step(
        &mut self,
        batch: &RoutedBatch,
        candidates: &BatchItems,
        pooled: Tensor<Inner<B>, 2>,
        total_weight: f64,
        group: &mut impl ProcessGroup,
    ) -> Result<Tensor<Inner<B>, 2>, ExchangeError> {
        let numbers = self.dropout_numbers(&batch.batch.places);
        let towers = self.network.two_tower();
        let towers = towers.expect("the network that the objective was checked against");
        let precision = self.training.precision;
        let leaf = || Tensor::<B, 2>::from_inner(pooled.clone()).require_grad();
        let shown = (!numbers.is_empty()).then(|| {
            let (input, mode) = (leaf(), Mode::Training { rows: &numbers });
            let items = towers.items(&dense::cast(input.clone(), precision), mode);
            (input, dense::cast(items, Precision::F32))
        });
        let mine = shown.as_ref().map(|(_, items)| items.clone());
        let all = group
            .all_gather_v(&mine.map_or_else(Vec::new, dense::to_vec))?
            .concat();
        let dim = all.len() / candidates.all.items.len();

        let mut of_items = vec![0.0; all.len()];
        let mut of_input = pooled.zeros_like();
        let before: usize = candidates.rows[..group.rank()].iter().sum();
        let labels = &batch.batch.labels;
        let weight = |row: usize| labels[row] * batch.batch.weights[row];
        let clicked: Vec<usize> = (0..labels.len()).filter(|row| weight(*row) > 0.0).collect();
        if !clicked.is_empty() {
            let picked: Vec<u64> = clicked.iter().map(|row| numbers[*row]).collect();
            let rows = clicked.iter().map(|row| *row as i64).collect();
            let rows = TensorData::new::<i64, _>(rows, [clicked.len()]);
            let input = leaf();
            let asking = input
                .clone()
                .select(0, Tensor::from_data(rows, &self.device));
            let mode = Mode::Training { rows: &picked };
            let queries = towers.queries(&dense::cast(asking, precision), mode);
            let items = TensorData::new(all, [candidates.all.items.len(), dim]);
            let items = Tensor::<B, 2>::from_data(items, &self.device).require_grad();
            let own: Vec<usize> = clicked.iter().map(|row| before + row).collect();
            let weights: Vec<f32> = clicked.iter().map(|row| weight(*row)).collect();
            let loss = batch_softmax(
                dense::cast(queries, Precision::F32),
                items.clone(),
                dense::cast(towers.scale(), Precision::F32),
                loss::Candidates {
                    items: &candidates.all.items,
                    log_frequency: &candidates.all.log_frequency,
                    own: &own,
                },
                &weights,
            );
            let loss = loss * (batch.weight / total_weight) as f32;
            let mut gradients = loss.backward();
            // The loss sees both, and so gives them gradients.
            let of_asking = input.grad_remove(&mut gradients).expect("of the input");
            of_input = of_input + of_asking;
            let of_all = items.grad_remove(&mut gradients).expect("of the items");
            of_items = dense::to_vec(of_all);
            let gradients = GradientsParams::from_grads(gradients, &self.network);
            self.dense.add(&self.network, gradients, loss.inner());
        }
        let counts: Vec<usize> = candidates.rows.iter().map(|rows| rows * dim).collect();
        let own = group.reduce_scatter(&mut of_items, &counts)?;
        if let Some((input, items)) = shown {
            let own = TensorData::new(of_items[own].to_vec(), items.dims());
            // A sum of products has the vectors' gradients as its own.
            let carried = (items * Tensor::from_data(own, &self.device)).sum();
            let mut gradients = carried.backward();
            let of_items = input.grad_remove(&mut gradients).expect("of the input");
            of_input = of_input + of_items;
            let gradients = GradientsParams::from_grads(gradients, &self.network);
            let nothing = Tensor::zeros([1], &self.device);
            self.dense.add(&self.network, gradients, nothing);
        }
        Ok(of_input)
    }
}

/// How well a model's towers find what was clicked in some rows; none without towers or clicks.
///
/// # Errors
/// If the rows do not fit the model.
pub(super) fn evaluate_retrieval<B: FusedOps>(
    model: &CtrModel<B>,
    rows: &Examples,
) -> anyhow::Result<Option<RetrievalEvaluation>> {
    let Some(fields) = model.item_fields() else {
        return Ok(None);
    };
    let (keys, mut seen) = (ItemKeys { fields }, Vectors::default());
    let order: Vec<usize> = (0..rows.len()).collect();
    for chunk in order.chunks(SCORE_BATCH) {
        let features = rows.features.gather(chunk);
        let clicks: Vec<f32> = chunk.iter().map(|row| rows.clicks[*row]).collect();
        let places: Vec<u64> = chunk.iter().map(|row| *row as u64).collect();
        if let Some(vectors) = model.vectors(&features)? {
            seen.add(&clicks, &places, &keys.of(&features), &vectors);
        }
    }
    Ok(seen.measure(&mut TcpGroup::alone())?)
}

/// Clicked rows and distinct ads of held-out rows, as vectors.
#[derive(Debug, Default)]
pub(super) struct Vectors {
    dim: usize,
    scale: f32,
    /// `[queries, dim]`.
    queries: Vec<f32>,
    /// `[queries]`: places of the rows.
    places: Vec<u64>,
    /// `[queries]`: the ad that was clicked.
    wanted: Vec<u64>,
    /// `[items]`: which each is, and the place of the row that its vector is of: its first.
    items: Vec<[u64; 2]>,
    /// `[items, dim]`.
    item_vectors: Vec<f32>,
    known: HashSet<u64>,
}

/// Products of a click with an ad, at most: a second or so.
const MOST_PRODUCTS: usize = 1 << 25;

impl Vectors {
    /// Takes rows in, by rising place.
    ///
    /// # Shapes
    /// - `clicks`, `places`, `items`, and the vectors: one of each row
    pub fn add(&mut self, clicks: &[f32], places: &[u64], items: &[u64], vectors: &TowerVectors) {
        let dim = vectors.dim;
        (self.dim, self.scale) = (dim, vectors.scale);
        for (row, item) in items.iter().enumerate() {
            let of_row = row * dim..(row + 1) * dim;
            if clicks[row] > 0.5 {
                self.queries.extend(&vectors.queries[of_row.clone()]);
                self.places.push(places[row]);
                self.wanted.push(*item);
            }
            if self.known.insert(*item) {
                self.items.push([*item, places[row]]);
                self.item_vectors.extend(&vectors.items[of_row]);
            }
        }
    }

    /// Ranks the ads of all ranks for their clicks; of too many clicks an even choice. All ranks have the
    /// same result; none without a click.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn measure(
        &self,
        group: &mut impl ProcessGroup,
    ) -> Result<Option<RetrievalEvaluation>, CollectiveError> {
        let items = Items::of(
            &group.all_gather_v(&self.items)?.concat(),
            &group.all_gather_v(&self.item_vectors)?.concat(),
        );
        let mut clicks = group.all_gather_v(&self.places)?.concat();
        if clicks.is_empty() {
            return Ok(None);
        }
        clicks.sort_unstable();
        let most = (MOST_PRODUCTS / items.names.len()).max(1);
        let chosen = clicks.iter().step_by(clicks.len().div_ceil(most));
        let chosen: HashSet<&u64> = chosen.collect();
        let queries = self.queries.par_chunks_exact(self.dim.max(1));
        let wanted = self.places.par_iter().zip(&self.wanted);
        let found = queries
            .zip(wanted)
            .filter(|(_, (place, _))| chosen.contains(place));
        let found = found.map(|(query, (place, wanted))| {
            let (rank, loss) = items.rank(query, *wanted, self.scale);
            [*place, rank as u64, loss.to_bits()]
        });
        let mut all = group.all_gather_v(&found.collect::<Vec<_>>())?.concat();
        // In the order of one rank, so that any number has the same sum.
        all.sort_unstable();
        let ranks: Vec<usize> = all.iter().map(|[_, rank, _]| *rank as usize).collect();
        let losses = all.iter().map(|[_, _, loss]| f64::from_bits(*loss));
        Ok(Some(RetrievalEvaluation {
            queries: ranks.len(),
            items: items.names.len(),
            loss: losses.sum::<f64>() / ranks.len() as f64,
            recall_at_1: recall_at_k(&ranks, 1),
            recall_at_10: recall_at_k(&ranks, 10),
            recall_at_100: recall_at_k(&ranks, 100),
        }))
    }
}

/// Distinct ads and their vectors.
struct Items {
    /// `[items]`, rising.
    names: Vec<u64>,
    /// `[items, dim]`.
    vectors: Vec<f32>,
}

impl Items {
    /// Of the ads of all ranks, each as its first row has it.
    fn of(named: &[[u64; 2]], vectors: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..named.len()).collect();
        order.sort_unstable_by_key(|at| named[*at]);
        order.dedup_by_key(|at| named[*at][0]);
        let dim = vectors.len() / named.len().max(1);
        let of_item = |at: &usize| &vectors[at * dim..(at + 1) * dim];
        Self {
            names: order.iter().map(|at| named[*at][0]).collect(),
            vectors: order.iter().flat_map(of_item).copied().collect(),
        }
    }

    /// How many others are at least as near, and the cross-entropy of a softmax over all.
    fn rank(&self, query: &[f32], wanted: u64, scale: f32) -> (usize, f64) {
        let dot = |vector: &[f32]| -> f32 { query.iter().zip(vector).map(|(a, b)| a * b).sum() };
        // Each click's row is among those whose ads were gathered.
        let own = self
            .names
            .binary_search(&wanted)
            .expect("an ad that was shown");
        let cosines: Vec<f32> = self.vectors.chunks_exact(query.len()).map(dot).collect();
        let nearer = cosines.iter().enumerate();
        let nearer = nearer.filter(|(at, cosine)| **cosine >= cosines[own] && *at != own);
        let terms = cosines
            .iter()
            .map(|it| f64::from(scale * (it - cosines[own])).exp());
        (nearer.count(), terms.sum::<f64>().ln())
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use models::{
        Cpu,
        ctr::{NetworkConfig, network::TwoTowerConfig},
    };

    use super::*;
    use crate::{
        collective::{CollectiveConfig, testing::meet},
        ctr::{
            CtrConfig, Groups, Objective, StepBatch,
            train::{Task, learner},
        },
        table::testing,
    };

    fn keys() -> ItemKeys {
        ItemKeys { fields: vec![0] }
    }

    #[test]
    fn an_item_is_all_of_its_features() {
        let mut rows = testing::rows(&[0, 0, 0, 0]).features;
        let bags = |rows: [&[u64]; 4]| {
            let mut all = features::Jagged::default();
            rows.iter().for_each(|row| all.push_row(row));
            all
        };
        rows.sparse = vec![
            bags([&[1, 2], &[1], &[1, 2], &[]]),
            bags([&[3], &[2, 3], &[3], &[1, 2, 3]]),
        ];
        let of = |fields: &[usize]| {
            let fields = fields.to_vec();
            ItemKeys { fields }.of(&rows)
        };
        let found = of(&[0, 1]);
        assert_eq!(found[0], found[2]);
        // The same ids otherwise divided are others.
        let distinct: HashSet<u64> = found.into_iter().collect();
        assert_eq!(distinct.len(), 3);
        assert_ne!(of(&[1])[0], of(&[1])[1]);
    }

    #[test]
    fn any_number_of_ranks_counts_the_same() {
        let mut rows = testing::rows(&[]);
        for at in 0..60u64 {
            testing::push(&mut rows, 0.0, at % 6 / 3, &[], (0.0, 1.0));
        }
        for at in 0..20 {
            testing::push(&mut rows, 0.0, 7 + at % 2, &[], (0.0, 1.0));
        }
        let (_dir, table) = testing::table(&rows, 9);
        let wanted = [30.0f32, 30.0, 10.0, 10.0].map(|count| (count / 80.0).ln());
        for world_size in 1..=3 {
            let found = meet(world_size, &CollectiveConfig::default(), |met| {
                let mut group = TcpGroup::connect(&met, "rows").unwrap();
                let counted = ItemFrequencies::fit(keys(), &table, &mut group).unwrap();
                counted
                    .of(&rows.features.gather(&[0, 3, 60, 61]))
                    .log_frequency
            });
            for found in found {
                let apart = found
                    .iter()
                    .zip(wanted)
                    .map(|(found, wanted)| (found - wanted).abs());
                assert!(apart.fold(0.0, f32::max) < 1e-6, "{found:?}");
            }
        }
    }

    #[test]
    fn ads_are_ranked_once_each_on_any_number_of_ranks() {
        // Four rows of three ads; the third row's is nearest to its query, the first's the second nearest.
        let vectors = TowerVectors {
            dim: 2,
            queries: vec![1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.6, 0.8],
            // The last is an ad of before, whose first vector counts.
            items: vec![0.8, 0.6, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0],
            logits: Vec::new(),
            scale: 2.0,
        };
        let (clicks, places) = ([1.0, 0.0, 1.0, 0.0], [0, 1, 2, 3]);
        let items = [5, 6, 7, 6];
        let loss = |own: f64, all: [f64; 3]| {
            let sum: f64 = all.iter().map(|cosine| (2.0 * cosine).exp()).sum();
            sum.ln() - 2.0 * own
        };
        let wanted = 0.5 * (loss(0.8, [0.8, 1.0, 0.0]) + loss(1.0, [0.6, 0.0, 1.0]));
        let part = |rows: std::ops::Range<usize>| {
            let of_rows = 2 * rows.start..2 * rows.end;
            let mut part = Vectors::default();
            let vectors = TowerVectors {
                queries: vectors.queries[of_rows.clone()].to_vec(),
                items: vectors.items[of_rows].to_vec(),
                logits: Vec::new(),
                ..vectors
            };
            part.add(
                &clicks[rows.clone()],
                &places[rows.clone()],
                &items[rows],
                &vectors,
            );
            part
        };
        for world_size in [1, 2, 4] {
            let found = meet(world_size, &CollectiveConfig::default(), |met| {
                let mut group = TcpGroup::connect(&met, "rows").unwrap();
                let mine = part(segment(4, world_size, group.rank()));
                mine.measure(&mut group).unwrap().unwrap()
            });
            for found in found {
                assert_eq!((found.queries, found.items), (2, 3));
                assert_eq!((found.recall_at_1, found.recall_at_10), (0.5, 1.0));
                assert!((found.loss - wanted).abs() < 1e-6, "{found:?} {wanted}");
            }
        }
        let none = Vectors::default().measure(&mut TcpGroup::alone());
        assert_eq!(none.unwrap(), None);
    }

    /// The gradients, which are put together of two ways back, are those of one.
    #[test]
    fn gradients_are_those_of_the_whole_loss() {
        let mut rows = testing::rows(&[]);
        for at in 0..24u64 {
            let click = f32::from(u8::from(at % 4 == 0));
            let weight = 0.5 + (at % 3) as f32;
            testing::push(&mut rows, at as f32, at % 7, &[at % 5, 9], (click, weight));
        }
        rows.places = (0..24).collect();
        let (_dir, table) = testing::table(&rows, 9);
        let mut config = CtrConfig {
            model: NetworkConfig::TwoTower(TwoTowerConfig {
                item_features: vec!["id".to_owned()],
                hidden: vec![6],
                output_dim: 4,
                net_dropout: 0.3,
                ..TwoTowerConfig::default()
            }),
            ..CtrConfig::default()
        };
        config.training.objective = Objective::BatchSoftmax;
        config.tables.rows = 16;
        let task = Task {
            config: &config,
            schema: table.schema(),
            train: &table,
            valid: &table,
        };
        let clicked = [0usize, 4, 8, 12, 16, 20];
        let weights = clicked.map(|row| rows.weights[row]);
        // Gradients of the input's rows, and what the dense weights add up to, of all ranks.
        let gradients = |world_size| {
            let ranks = meet(world_size, &CollectiveConfig::default(), |met| {
                let mut groups = Groups::connect(&met).unwrap();
                let device = Default::default();
                let mut learner = learner::<Autodiff<Cpu>>(task, &groups, &device).unwrap();
                let group = &mut groups.rows;
                let known = ItemFrequencies::fit(keys(), &table, group).unwrap();
                // The first has most, as after an uneven cut.
                let cut = |rank: usize| if rank == 0 { 0 } else { 8 + 4 * rank };
                let end = if group.rank() + 1 == world_size {
                    24
                } else {
                    cut(group.rank() + 1)
                };
                let mine: Vec<usize> = (cut(group.rank())..end).collect();
                let mine = rows.gather(&mine);
                let places = (cut(group.rank())..end).map(|place| place as u64).collect();
                let batch = StepBatch {
                    shown: Some(known.of(&mine.features)),
                    places,
                    ..StepBatch::of(mine, None)
                };
                let routed = batch.route(learner.router(), group).unwrap();
                let total_weight = group
                    .all_gather_v(&[routed.weight])
                    .unwrap()
                    .concat()
                    .iter()
                    .sum();
                let pooled = learner.lookup(&routed, group).unwrap();
                let items = routed.batch.shown.as_ref().unwrap().gather(group).unwrap();
                learner.dense.clear();
                let found =
                    learner.batch_softmax_step(&routed, &items, pooled, total_weight, group);
                learner.dense.reduce(false, &mut groups.dense).unwrap();
                (dense::to_vec(found.unwrap()), learner.dense.total())
            });
            let total = ranks[0].1;
            (
                ranks
                    .into_iter()
                    .flat_map(|(found, _)| found)
                    .collect::<Vec<_>>(),
                total,
            )
        };

        let mut groups = Groups::alone();
        let device = Default::default();
        let mut learner = learner::<Autodiff<Cpu>>(task, &groups, &device).unwrap();
        let group = &mut groups.rows;
        let shown = ItemFrequencies::fit(keys(), &table, group)
            .unwrap()
            .of(&rows.features);
        let routed = StepBatch::of(rows.clone(), None)
            .route(learner.router(), group)
            .unwrap();
        let pooled = learner.lookup(&routed, group).unwrap();
        let input = Tensor::<Autodiff<Cpu>, 2>::from_inner(pooled).require_grad();
        let numbers = learner.dropout_numbers(&rows.places);
        let mode = Mode::Training { rows: &numbers };
        let towers = learner.network.two_tower().unwrap();
        let places = Tensor::from_data(clicked.map(|row| row as i64), &device);
        let loss = batch_softmax(
            towers.queries(&input, mode).select(0, places),
            towers.items(&input, mode),
            towers.scale(),
            loss::Candidates {
                items: &shown.items,
                log_frequency: &shown.log_frequency,
                own: &clicked,
            },
            &weights,
        );
        let mut of_loss = loss.backward();
        let wanted = dense::to_vec(input.grad_remove(&mut of_loss).unwrap());
        let of_loss = GradientsParams::from_grads(of_loss, &learner.network);
        learner.dense.clear();
        learner.dense.add(&learner.network, of_loss, loss.inner());
        let whole = learner.dense.total();
        for world_size in 1..=3 {
            let (found, total) = gradients(world_size);
            assert!((total.loss - whole.loss).abs() < 1e-5 * whole.loss);
            let apart = (total.gradient_norm - whole.gradient_norm).abs();
            assert!(apart < 1e-5 * whole.gradient_norm, "{total:?} {whole:?}");
            assert_eq!(found.len(), wanted.len());
            let apart = found
                .iter()
                .zip(&wanted)
                .map(|(found, wanted)| (found - wanted).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-6, "{world_size}");
        }
        // Rows without a click learn as negatives.
        let of_rows = wanted.chunks_exact(wanted.len() / 24).enumerate();
        let mut others = of_rows.filter(|(row, _)| !clicked.contains(row));
        assert!(others.any(|(_, of_row)| of_row.iter().any(|value| value.abs() > 1e-6)));
    }
}
