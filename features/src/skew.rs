//! How far apart two sides of a feature are: as served and as computed again, today's and last week's.
//!
//! Two questions, two answers. [`compare`] looks at distributions, which may be of different rows: the
//! population stability index and the Kullback-Leibler divergence over the same bins, how often the value
//! is missing, and the range. [`differing`] looks at the same rows on both sides, value by value.
//! [`SkewLimits`] says how much of each is too much; a spec's `skew` overrides them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    Jagged,
    spec::{Feature, Freshness},
};

/// Bins of a dense feature, where the offline values have so many quantiles.
const QUANTILES: usize = 10;
/// Ids with a bin of their own: the most frequent ones offline.
const FREQUENT: usize = 32;
/// Numbers are equal when they differ by no more than this share of the larger one.
pub const RELATIVE_TOLERANCE: f64 = 1e-6;

/// How much is too much, of one feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkewLimits {
    /// Most that the population stability index may be, above what chance gives so many rows.
    pub psi: f64,
    /// Most that the Kullback-Leibler divergence may be, nats, above what chance gives.
    pub kl: f64,
    /// Most that the shares of rows without a value may differ.
    pub missing: f64,
    /// Most rows that may have been served another value than is computed again, as a share. What is not
    /// given follows the freshness: none of a request's own, a twentieth of what is stored and ages.
    pub differing: Option<f64>,
}

impl Default for SkewLimits {
    fn default() -> Self {
        Self {
            psi: 0.2,
            kl: 0.2,
            missing: 0.05,
            differing: None,
        }
    }
}

impl Feature {
    /// How far its sides may be apart.
    pub fn skew_limits(&self) -> SkewLimits {
        let limits = self.skew.unwrap_or_default();
        let by_freshness = match self.freshness {
            Freshness::Request => 0.0,
            Freshness::Nearline | Freshness::Batch => 0.05,
        };
        SkewLimits {
            differing: limits.differing.or(Some(by_freshness)),
            ..limits
        }
    }
}

/// Values of one feature, a row each.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// One number a row.
    Dense(Vec<f32>),
    /// Any number of ids a row.
    Sparse(Jagged),
}

impl Column {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(values) => values.len(),
            Self::Sparse(ids) => ids.offsets.len() - 1,
        }
    }

    /// Rows that hold nothing but the feature's default.
    fn missing(&self, feature: &Feature) -> usize {
        match self {
            Self::Dense(values) => {
                let default = feature.default as f32;
                values.iter().filter(|value| **value == default).count()
            }
            Self::Sparse(ids) => {
                let rows = ids.offsets.windows(2);
                rows.filter(|pair| pair[0] == pair[1]).count()
            }
        }
    }

    fn range(&self) -> Option<[f32; 2]> {
        let Self::Dense(values) = self else {
            return None;
        };
        let (first, rest) = values.split_first()?;
        Some(rest.iter().fold([*first; 2], |[low, high], value| {
            [low.min(*value), high.max(*value)]
        }))
    }
}

/// A part of the values, and how many of each side fall into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// What falls into it, for people.
    pub name: String,
    /// Values offline.
    pub offline: u64,
    /// Values online.
    pub online: u64,
}

/// How far apart two distributions are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Rows offline and online.
    pub rows: [usize; 2],
    /// Population stability index: `Σ (q - p) ln(q / p)` over the bins, with `p` the offline and `q` the
    /// online shares. Below 0.1 is usually taken for stable, above 0.25 for another population.
    pub psi: f64,
    /// Kullback-Leibler divergence of the online from the offline distribution: `Σ q ln(q / p)`, nats.
    pub kl: f64,
    /// What `psi` would exceed once in a thousand times if both sides were drawn from one distribution:
    /// `1 / n + 1 / m` times a χ² variable of `bins - 1` degrees of freedom (Yurdakul, Statistical
    /// Properties of Population Stability Index, 2018); `kl` half of it.
    pub chance: f64,
    /// Shares of rows without a value, offline and online.
    pub missing: [f64; 2],
    /// Smallest and largest number, offline and online.
    pub ranges: Option<[[f32; 2]; 2]>,
    /// The parts that were counted.
    pub bins: Vec<Bin>,
}

/// How many of the same rows have another value on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Differing {
    /// Rows.
    pub rows: usize,
    /// Those that differ.
    pub differing: usize,
    /// The row that differs most; the first one of ids.
    pub worst: Option<usize>,
    /// By how much, of numbers.
    pub largest: f64,
}

impl Differing {
    /// Share of rows that differ.
    pub fn share(&self) -> f64 {
        share(self.differing as u64, self.rows as u64)
    }
}

/// What is above its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Exceeded {
    /// The population stability index.
    Psi,
    /// The Kullback-Leibler divergence.
    Kl,
    /// The share of missing values.
    Missing,
    /// The share of rows that were served another value.
    Differing,
    /// Numbers outside of the spec's range, or none at all.
    Range,
}

/// Compares the distributions of a feature's two sides. Both sides have the kind of the feature.
pub fn compare(feature: &Feature, offline: &Column, online: &Column) -> Comparison {
    let bins = match (offline, online) {
        (Column::Dense(offline), Column::Dense(online)) => bins_of_numbers(offline, online),
        (Column::Sparse(offline), Column::Sparse(online)) => bins_of_ids(offline, online),
        // As its documentation asks: nothing is in common.
        _ => Vec::new(),
    };
    let (psi, kl) = divergences(&bins);
    let totals = totals(&bins);
    let rows = [offline.rows(), online.rows()];
    let missing = |side: &Column| share(side.missing(feature) as u64, side.rows() as u64);
    Comparison {
        rows,
        psi,
        kl,
        chance: chance(bins.len(), totals),
        missing: [missing(offline), missing(online)],
        ranges: offline
            .range()
            .zip(online.range())
            .map(|(offline, online)| [offline, online]),
        bins,
    }
}

/// Compares the same rows on both sides. Both sides have the same number of rows, of the same kind.
pub fn differing(offline: &Column, online: &Column) -> Differing {
    let rows = offline.rows().min(online.rows());
    let mut found = Differing {
        rows,
        differing: 0,
        worst: None,
        largest: 0.0,
    };
    for row in 0..rows {
        let apart = match (offline, online) {
            (Column::Dense(offline), Column::Dense(online)) => {
                apart(f64::from(offline[row]), f64::from(online[row]))
            }
            (Column::Sparse(offline), Column::Sparse(online)) => {
                (offline.row(row) != online.row(row)).then_some(0.0)
            }
            _ => Some(f64::INFINITY),
        };
        let Some(by) = apart else {
            continue;
        };
        found.differing += 1;
        if found.worst.is_none() || by > found.largest {
            (found.worst, found.largest) = (Some(row), by);
        }
    }
    found
}

/// By how much two numbers differ, if they do.
fn apart(left: f64, right: f64) -> Option<f64> {
    if left.is_nan() || right.is_nan() {
        return (left.is_nan() != right.is_nan()).then_some(f64::INFINITY);
    }
    let by = (left - right).abs();
    let equal = left == right || by <= RELATIVE_TOLERANCE * left.abs().max(right.abs());
    (!equal).then_some(by)
}

/// What of a feature is above its limits.
pub fn exceeded(
    feature: &Feature,
    compared: &Comparison,
    differing: Option<&Differing>,
) -> Vec<Exceeded> {
    let limits = feature.skew_limits();
    let [offline, online] = compared.missing;
    let most = limits.differing.unwrap_or(0.0);
    let allowed = feature.allowed();
    let within = |value: f32| {
        let slack = RELATIVE_TOLERANCE * f64::from(value).abs();
        value.is_finite() && (allowed[0] - slack..=allowed[1] + slack).contains(&f64::from(value))
    };
    let checks = [
        (Exceeded::Psi, compared.psi > limits.psi + compared.chance),
        (
            Exceeded::Kl,
            compared.kl > limits.kl + compared.chance / 2.0,
        ),
        (Exceeded::Missing, (offline - online).abs() > limits.missing),
        (
            Exceeded::Differing,
            differing.is_some_and(|found| found.share() > most),
        ),
        (
            Exceeded::Range,
            compared
                .ranges
                .is_some_and(|[_, online]| !online.into_iter().all(within)),
        ),
    ];
    let over = checks.into_iter().filter(|(_, over)| *over);
    over.map(|(what, _)| what).collect()
}

/// Bins that end at quantiles of the offline values; equal ones make one.
fn bins_of_numbers(offline: &[f32], online: &[f32]) -> Vec<Bin> {
    let mut sorted = offline.to_vec();
    sorted.sort_by(f32::total_cmp);
    let at = |quantile: usize| sorted.get((sorted.len() * quantile) / QUANTILES).copied();
    let mut ends: Vec<f32> = (1..QUANTILES).filter_map(at).collect();
    ends.dedup();
    let names = ends.iter().map(|end| format!("≤ {end}"));
    let mut bins: Vec<Bin> = names
        .chain([match ends.last() {
            Some(end) => format!("> {end}"),
            None => "all".to_owned(),
        }])
        .map(Bin::named)
        .collect();
    let bin = |value: f32| ends.partition_point(|end| *end < value);
    for value in offline {
        bins[bin(*value)].offline += 1;
    }
    for value in online {
        bins[bin(*value)].online += 1;
    }
    bins.retain(|bin| bin.offline + bin.online > 0);
    bins
}

/// A bin for each frequent id, one for all others, one for rows without any.
fn bins_of_ids(offline: &Jagged, online: &Jagged) -> Vec<Bin> {
    let mut counts: HashMap<u64, [u64; 2]> = HashMap::new();
    let mut none = Bin::named("none".to_owned());
    for (side, ids) in [offline, online].into_iter().enumerate() {
        for row in 0..ids.offsets.len() - 1 {
            let ids = ids.row(row);
            none.offline += u64::from(ids.is_empty() && side == 0);
            none.online += u64::from(ids.is_empty() && side == 1);
            for id in ids {
                counts.entry(*id).or_default()[side] += 1;
            }
        }
    }
    let mut counts: Vec<(u64, [u64; 2])> = counts.into_iter().collect();
    counts.sort_by_key(|(id, [offline, _])| (std::cmp::Reverse(*offline), *id));
    let mut others = Bin::named("others".to_owned());
    let mut bins = Vec::new();
    for (at, (id, [offline, online])) in counts.into_iter().enumerate() {
        if at < FREQUENT {
            bins.push(Bin {
                name: format!("{id:016x}"),
                offline,
                online,
            });
        } else {
            others.offline += offline;
            others.online += online;
        }
    }
    bins.extend([others, none]);
    bins.retain(|bin| bin.offline + bin.online > 0);
    bins
}

impl Bin {
    fn named(name: String) -> Self {
        Self {
            name,
            offline: 0,
            online: 0,
        }
    }
}

fn totals(bins: &[Bin]) -> [u64; 2] {
    [
        bins.iter().map(|bin| bin.offline).sum(),
        bins.iter().map(|bin| bin.online).sum(),
    ]
}

/// Population stability index and Kullback-Leibler divergence. Half a value more in each bin keeps an
/// empty one finite.
fn divergences(bins: &[Bin]) -> (f64, f64) {
    let totals = totals(bins);
    let of =
        |count: u64, total: u64| (count as f64 + 0.5) / (total as f64 + 0.5 * bins.len() as f64);
    let mut sums = (0.0, 0.0);
    for bin in bins {
        let (p, q) = (of(bin.offline, totals[0]), of(bin.online, totals[1]));
        sums.0 += (q - p) * (q / p).ln();
        sums.1 += q * (q / p).ln();
    }
    sums
}

/// Quantile 0.999 of the standard normal distribution.
const ONCE_IN_A_THOUSAND: f64 = 3.090_232;

/// See [`Comparison::chance`]; the quantile of χ² is Wilson and Hilferty's (1931).
fn chance(bins: usize, totals: [u64; 2]) -> f64 {
    if bins < 2 || totals.contains(&0) {
        return 0.0;
    }
    let freedom = (bins - 1) as f64;
    let ninth = 2.0 / (9.0 * freedom);
    let quantile = freedom * (1.0 - ninth + ONCE_IN_A_THOUSAND * ninth.sqrt()).powi(3);
    quantile * totals.map(|total| 1.0 / total as f64).iter().sum::<f64>()
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 {
        0.0
    } else {
        part as f64 / of as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::FeatureSpec;

    fn feature(more: &str) -> Feature {
        let text = format!(
            "[[feature]]\nname = \"bid\"\nkind = \"dense\"\nentity = \"ad\"\nexpression = \"bid\"\n\
             freshness = \"request\"\nchild_safe = true\nowner = \"ads\"\nversion = 1\n{more}"
        );
        FeatureSpec::parse(&text, "spec")
            .unwrap()
            .features
            .remove(0)
    }

    fn normal(seed: u64, rows: usize, mean: f32) -> Column {
        let mut random = SmallRng::seed_from_u64(seed);
        // The sum of twelve uniform numbers, less six, is close to the standard normal distribution.
        let mut one = || (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0 + mean;
        Column::Dense((0..rows).map(|_| one()).collect())
    }

    #[test]
    fn one_distribution_stays_below_its_limits_and_a_moved_one_does_not() {
        let feature = feature("");
        let (here, there) = (normal(1, 5_000, 0.0), normal(2, 5_000, 0.0));
        let same = compare(&feature, &here, &there);
        assert!(same.psi < same.chance, "{same:?}");
        assert_eq!(exceeded(&feature, &same, None), []);

        let moved = compare(&feature, &here, &normal(3, 5_000, 1.0));
        // Of two normal distributions one standard deviation apart the divergence is a half, both ways
        // together one; ten bins see a little less.
        assert!((0.4..0.5).contains(&moved.kl), "{}", moved.kl);
        assert!((0.8..1.0).contains(&moved.psi), "{}", moved.psi);
        let over = exceeded(&feature, &moved, None);
        assert_eq!(over, [Exceeded::Psi, Exceeded::Kl]);
    }

    #[test]
    fn divergences_are_those_of_the_definition() {
        let bin = |offline, online| Bin {
            name: String::new(),
            offline,
            online,
        };
        let (psi, kl) = divergences(&[bin(499_999, 249_999), bin(499_999, 749_999)]);
        // p = (1/2, 1/2), q = (1/4, 3/4)
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((kl - expected).abs() < 1e-5, "{kl}");
        let expected = -0.25 * 0.5f64.ln() + 0.25 * 1.5f64.ln();
        assert!((psi - expected).abs() < 1e-5, "{psi}");
    }

    #[test]
    fn few_rows_prove_nothing() {
        let feature = feature("");
        for seed in 0..20 {
            let (here, there) = (normal(seed, 30, 0.0), normal(seed + 100, 30, 0.0));
            let found = compare(&feature, &here, &there);
            // Ten bins of thirty values: χ² of nine degrees of freedom is above 27.88 once in a thousand.
            assert!((found.chance - 27.88 / 15.0).abs() < 0.02, "{found:?}");
            assert_eq!(exceeded(&feature, &found, None), [], "{found:?}");
        }
    }

    #[test]
    fn the_same_rows_are_compared_value_by_value() {
        let here = Column::Dense(vec![1.0, 2.0, 0.0, 5.0]);
        let there = Column::Dense(vec![1.000_000_1, 2.5, 0.0, 9.0]);
        let found = differing(&here, &there);
        assert_eq!((found.differing, found.worst), (2, Some(3)));
        assert_eq!(found.largest, 4.0);
        let feature = feature("skew = { differing = 0.5 }");
        let compared = compare(&feature, &here, &there);
        assert!(!exceeded(&feature, &compared, Some(&found)).contains(&Exceeded::Differing));
    }

    #[test]
    fn a_request_s_own_feature_may_not_differ_at_all_and_one_that_ages_may_a_little() {
        let strict = feature("");
        assert_eq!(strict.skew_limits().differing, Some(0.0));
        let ages = Feature {
            freshness: Freshness::Nearline,
            ..strict
        };
        assert_eq!(ages.skew_limits().differing, Some(0.05));
    }

    #[test]
    fn ids_are_counted_and_rows_without_any_are_missing() {
        let mut here = Jagged::default();
        let mut there = Jagged::default();
        for row in 0..100u64 {
            here.push_row(&[row % 2]);
            there.push_row(if row < 10 { &[] } else { &[0] });
        }
        let feature = Feature {
            kind: crate::spec::Kind::Sparse,
            ..feature("")
        };
        let (here, there) = (Column::Sparse(here), Column::Sparse(there));
        let found = compare(&feature, &here, &there);
        assert_eq!(found.missing, [0.0, 0.1]);
        let names: Vec<&str> = found.bins.iter().map(|bin| bin.name.as_str()).collect();
        assert_eq!(names, ["0000000000000000", "0000000000000001", "none"]);
        let over = exceeded(&feature, &found, Some(&differing(&here, &there)));
        let expected = [
            Exceeded::Psi,
            Exceeded::Kl,
            Exceeded::Missing,
            Exceeded::Differing,
        ];
        assert_eq!(over, expected);
    }

    #[test]
    fn a_number_out_of_its_range_is_told() {
        let feature = feature("range = [0.0, 1.0]");
        let found = |value| {
            let side = Column::Dense(vec![value; 10]);
            exceeded(&feature, &compare(&feature, &side, &side), None)
        };
        assert_eq!(found(1.0), []);
        assert_eq!(found(1.5), [Exceeded::Range]);
        assert_eq!(found(f32::NAN), [Exceeded::Range]);
    }

    proptest! {
        #[test]
        fn no_numbers_make_a_divergence_that_is_none(
            here in prop::collection::vec(any::<f32>(), 0..50),
            there in prop::collection::vec(any::<f32>(), 0..50),
        ) {
            let feature = feature("");
            let (here, there) = (Column::Dense(here), Column::Dense(there));
            let found = compare(&feature, &here, &there);
            prop_assert!(found.psi.is_finite() && found.psi >= 0.0);
            prop_assert!(found.kl.is_finite() && found.kl > -1e-9);
            let counted: [u64; 2] = totals(&found.bins);
            prop_assert_eq!(counted, [here.rows() as u64, there.rows() as u64]);
            prop_assert_eq!(differing(&here, &here).differing, 0);
        }
    }
}
