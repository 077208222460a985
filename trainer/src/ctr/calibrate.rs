//! Fits the last correction of the logits on held-out rows.

use models::ctr::Calibration;
use serde::{Deserialize, Serialize};

/// How logits are put right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMethod {
    /// Stretched and shifted, by as much as chance does not explain.
    #[default]
    Platt,
    /// By the rates of clicks among neighbours, which needs many rows.
    Isotonic,
    /// Not at all.
    None,
}

impl CalibrationMethod {
    /// Fits to rows that were held out.
    ///
    /// # Shapes
    /// - all: one number a row
    pub fn fit(self, logits: &[f32], labels: &[f32], weights: &[f32]) -> Calibration {
        match self {
            Self::Platt => fit_calibration(logits, labels, weights),
            Self::Isotonic => fit_isotonic(logits, labels, weights),
            Self::None => Calibration::default(),
        }
    }
}

/// Newton steps; the problem is convex in two unknowns and settles within a few.
const STEPS: usize = 100;

/// Steps as small move no prediction of single precision.
const SETTLED: f64 = 1e-9;

/// Longest step of either unknown.
const MAX_STEP: f64 = 0.2;

/// Fits `scale × logit + offset` to labels by logistic regression (Platt 1999), and keeps of either
/// what the rows show to be needed: few clicks say little about a rate, and a model that was right would
/// be made wrong by them. The stretch is about the logit whose prediction is best known, so that it and
/// the shift are independent. Falls back to no correction if the labels are all equal.
pub fn fit_calibration(logits: &[f32], labels: &[f32], weights: &[f32]) -> Calibration {
    let rows = Rows(logits, labels, weights);
    let (mut scale, mut offset) = (1.0f64, 0.0f64);
    for _ in 0..STEPS {
        let Some([da, db]) = rows.slope(scale, offset).step() else {
            return Calibration::default();
        };
        // Far from the solution the curvature says little: keep each step short.
        let size = da.abs().max(db.abs());
        let share = (MAX_STEP / size).min(1.0);
        scale -= share * da;
        offset -= share * db;
        if size < SETTLED {
            break;
        }
    }
    let slope = rows.slope(scale, offset);
    let kept = 1.0 + needed(scale - 1.0, slope.variance_of_scale());
    let middle = slope.hab / slope.hbb;
    // Of that stretch, the shift alone.
    let unshifted = middle - kept * middle;
    let best = rows.offset(kept, unshifted);
    let slope = rows.slope(kept, best);
    let shift = needed(best - unshifted, slope.mbb / (slope.hbb * slope.hbb));
    let (scale, offset) = (kept as f32, (unshifted + shift) as f32);
    let sound = scale > 0.0 && scale.is_finite() && offset.is_finite();
    match sound {
        true => Calibration::Platt { scale, offset },
        false => Calibration::default(),
    }
}

/// The part of a correction that chance does not explain: nothing within one standard error,
/// three quarters at two, nearly all from four on. Source: James and Stein, "Estimation with Quadratic
/// Loss" (1961), the positive part of one number.
fn needed(correction: f64, variance: f64) -> f64 {
    correction * (1.0 - variance / (correction * correction).max(f64::MIN_POSITIVE)).max(0.0)
}

/// Logits, labels and weights of held-out rows.
struct Rows<'a>(&'a [f32], &'a [f32], &'a [f32]);

/// Gradient (`g`) and Hessian (`h`) of the log loss by scale (`a`) and offset (`b`), and the second
/// moments of the rows' gradients (`m`), which weights make differ from it.
#[derive(Default)]
struct Slope {
    ga: f64,
    gb: f64,
    haa: f64,
    hab: f64,
    hbb: f64,
    maa: f64,
    mab: f64,
    mbb: f64,
}

impl Rows<'_> {
    fn slope(&self, scale: f64, offset: f64) -> Slope {
        let mut slope = Slope {
            haa: 1e-9,
            hbb: 1e-9,
            ..Slope::default()
        };
        for ((logit, label), weight) in self.0.iter().zip(self.1).zip(self.2) {
            let (x, w) = (f64::from(*logit), f64::from(*weight));
            let p = 1.0 / (1.0 + (-(scale * x + offset)).exp());
            let (error, curvature) = (w * (p - f64::from(*label)), w * p * (1.0 - p));
            slope.ga += error * x;
            slope.gb += error;
            slope.haa += curvature * x * x;
            slope.hab += curvature * x;
            slope.hbb += curvature;
            slope.maa += error * error * x * x;
            slope.mab += error * error * x;
            slope.mbb += error * error;
        }
        slope
    }

    /// The best offset of a scale: with it the weighted sum of predictions equals that of the labels.
    fn offset(&self, scale: f64, from: f64) -> f64 {
        let mut offset = from;
        for _ in 0..STEPS {
            let slope = self.slope(scale, offset);
            let step = slope.gb / slope.hbb;
            offset -= step.clamp(-MAX_STEP, MAX_STEP);
            if step.abs() < SETTLED {
                break;
            }
        }
        offset
    }
}

impl Slope {
    fn determinant(&self) -> f64 {
        self.haa * self.hbb - self.hab * self.hab
    }

    /// Newton's; none where the rows do not tell the two apart.
    fn step(&self) -> Option<[f64; 2]> {
        let determinant = self.determinant();
        (determinant.abs() >= 1e-12).then(|| {
            [
                (self.hbb * self.ga - self.hab * self.gb) / determinant,
                (self.haa * self.gb - self.hab * self.ga) / determinant,
            ]
        })
    }

    /// By the sandwich of both, which holds for rows of any weights.
    fn variance_of_scale(&self) -> f64 {
        let [u, v] = [self.hbb, -self.hab].map(|it| it / self.determinant());
        u * u * self.maa + 2.0 * u * v * self.mab + v * v * self.mbb
    }
}

/// How much a corrected logit rises within neighbours of the same rate: enough to keep their order.
const SLOPE: f32 = 1e-3;

/// Rows whose rate of clicks is one point of an isotonic calibration, if there are so many.
const ROWS_OF_A_POINT: usize = 200;

/// Neighbours by logit, and their clicks.
#[derive(Debug, Clone, Copy, Default)]
struct Pool {
    rows: usize,
    weight: f64,
    /// Weighted sums.
    logits: f64,
    clicks: f64,
    /// The least and the greatest logit.
    from: f32,
    to: f32,
}

impl Pool {
    fn rate(&self) -> f64 {
        self.clicks / self.weight
    }

    fn join(&mut self, other: &Self) {
        if self.rows == 0 {
            *self = *other;
            return;
        }
        self.from = self.from.min(other.from);
        self.to = self.to.max(other.to);
        self.rows += other.rows;
        self.weight += other.weight;
        self.logits += other.logits;
        self.clicks += other.clicks;
    }
}

/// Fits rates that rise with the logit by pooling neighbours that do not (Ayer et al., "An Empirical
/// Distribution Function for Sampling with Incomplete Information", 1955), and joins them by
/// lines; then shifts all, so that the weighted sum of predictions equals that of the labels. Falls
/// back to no correction if the labels are all equal.
fn fit_isotonic(logits: &[f32], labels: &[f32], weights: &[f32]) -> Calibration {
    let clicked = labels
        .iter()
        .zip(weights)
        .any(|(label, weight)| label * weight > 0.0);
    let other = labels
        .iter()
        .zip(weights)
        .any(|(label, weight)| (1.0 - label) * weight > 0.0);
    if !(clicked && other) {
        return Calibration::default();
    }
    let mut order: Vec<usize> = (0..logits.len())
        .filter(|row| weights[*row] > 0.0)
        .collect();
    order.sort_by(|one, other| logits[*one].total_cmp(&logits[*other]));
    // First rows enough for a rate, those of the same logit together; then what does not rise.
    let mut parts: Vec<Pool> = Vec::new();
    for rows in order.chunk_by(|one, other| logits[*one] == logits[*other]) {
        let mut pool = Pool::default();
        for row in rows {
            let weight = f64::from(weights[*row]);
            pool.join(&Pool {
                rows: 1,
                weight,
                logits: weight * f64::from(logits[*row]),
                clicks: weight * f64::from(labels[*row]),
                from: logits[*row],
                to: logits[*row],
            });
        }
        match parts.last_mut() {
            Some(last) if last.rows < ROWS_OF_A_POINT => last.join(&pool),
            _ => parts.push(pool),
        }
    }
    let mut pools: Vec<Pool> = Vec::new();
    for mut pool in parts {
        while let Some(before) = pools.pop_if(|before| before.rate() >= pool.rate()) {
            pool.join(&before);
        }
        pools.push(pool);
    }
    // Without a click or without any other there is no logit: half a row is thought of.
    let logit = |pool: &Pool| {
        let least = 0.5 / pool.rows.max(1) as f64;
        let rate = pool.rate().clamp(least, 1.0 - least);
        (rate / (1.0 - rate)).ln()
    };
    let mut points: Vec<(f32, f32)> = Vec::new();
    for pool in &pools {
        let (middle, y) = ((pool.logits / pool.weight) as f32, logit(pool) as f32);
        for x in [pool.from, pool.to] {
            let y = y + SLOPE * (x - middle);
            match points.last() {
                Some((before, _)) if x <= *before => {}
                Some((_, least)) => points.push((x, y.max(*least))),
                None => points.push((x, y)),
            }
        }
    }
    shifted(&points, logits, labels, weights)
}

/// Of points that are moved up or down together.
fn shifted(points: &[(f32, f32)], logits: &[f32], labels: &[f32], weights: &[f32]) -> Calibration {
    let moved = |offset: f32| Calibration::Isotonic {
        logits: points.iter().map(|(logit, _)| *logit).collect(),
        corrected: points.iter().map(|(_, value)| value + offset).collect(),
    };
    let isotonic = moved(0.0);
    let corrected = logits.iter().map(|logit| isotonic.corrected(*logit));
    let corrected: Vec<f32> = corrected.collect();
    let offset = Rows(&corrected, labels, weights).offset(1.0, 0.0);
    moved(offset as f32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_shifted_and_stretched_logit_is_put_right() {
        // Labels that follow sigmoid(x) exactly, as fractions; logits are 2x + 1.
        let x: Vec<f32> = (-30..=30).map(|at| at as f32 * 0.1).collect();
        let labels: Vec<f32> = x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        let logits: Vec<f32> = x.iter().map(|x| 2.0 * x + 1.0).collect();
        let found = fit_calibration(&logits, &labels, &vec![1.0; x.len()]);
        let Calibration::Platt { scale, offset } = found else {
            panic!("{found:?}");
        };
        assert!((scale - 0.5).abs() < 1e-4 && (offset + 0.5).abs() < 1e-4);
    }

    #[test]
    fn labels_that_are_all_equal_change_nothing() {
        for method in [CalibrationMethod::Platt, CalibrationMethod::Isotonic] {
            for label in [0.0, 1.0] {
                let found = method.fit(&[0.1, 0.2], &[label; 2], &[1.0, 1.0]);
                assert_eq!(found, Calibration::default());
            }
            assert_eq!(method.fit(&[], &[], &[]), Calibration::default());
        }
    }

    /// Labels drawn from logits, and logits that are `wrong` by a stretch and a shift.
    fn drawn(seed: u64, rows: usize, wrong: [f32; 2]) -> (Vec<f32>, Vec<f32>, f64) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let truth: Vec<f32> = (0..rows).map(|_| random.random_range(-5.0..-1.0)).collect();
        let rate = |logit: &f32| 1.0 / (1.0 + (-f64::from(*logit)).exp());
        let labels = truth
            .iter()
            .map(|it| f32::from(u8::from(random.random_bool(rate(it)))));
        let labels = labels.collect();
        let wrongly = |logit: &f32| (logit - wrong[1]) / wrong[0];
        (
            truth.iter().map(wrongly).collect(),
            labels,
            truth.iter().map(rate).sum(),
        )
    }

    /// Predictions over true rates, of what these rows taught.
    fn ratio(calibration: &Calibration, logits: &[f32], truth: f64) -> f64 {
        let sum: f64 = (logits.iter())
            .map(|logit| f64::from(calibration.probability(*logit)))
            .sum();
        sum / truth
    }

    #[test]
    fn a_model_that_is_right_is_hardly_changed_and_a_wrong_one_is_put_right() {
        const SEEDS: u64 = 40;
        let error = |rows: usize, wrong: [f32; 2], weight: f32| {
            let squares = (0..SEEDS).map(|seed| {
                let (logits, labels, truth) = drawn(seed, rows, wrong);
                let found = fit_calibration(&logits, &labels, &vec![weight; rows]);
                (ratio(&found, &logits, truth) - 1.0).powi(2)
            });
            (squares.sum::<f64>() / SEEDS as f64).sqrt()
        };
        // Some 1,600 clicks: the rate of clicks alone is known to 2.4 %.
        let chance = |seed| {
            let (_, labels, truth) = drawn(seed, 20_000, [1.0, 0.0]);
            (f64::from(labels.iter().sum::<f32>()) / truth - 1.0).powi(2)
        };
        let chance = ((0..SEEDS).map(chance).sum::<f64>() / SEEDS as f64).sqrt();
        assert!((0.018..0.03).contains(&chance), "{chance}");
        let right = error(20_000, [1.0, 0.0], 1.0);
        assert!(right < 0.75 * chance, "{right} {chance}");
        // Wrong by a quarter and a stretch, 0.78 and 1.4 of it before.
        for wrong in [[1.3, 0.5], [0.8, -0.6]] {
            let wrong = error(20_000, wrong, 1.0);
            assert!(wrong < 1.2 * chance, "{wrong} {chance}");
        }
        // How heavy all rows are says nothing of how many they are.
        let heavy = error(20_000, [1.0, 0.0], 50.0);
        assert!((heavy / right - 1.0).abs() < 1e-3, "{heavy} {right}");
    }

    /// Rows whose rate of clicks is that of a curve which no line is, and weights of 1 to 3.
    fn bent(rows: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f64>) {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (mut logits, mut labels, mut weights, mut truth) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rows {
            let logit = random.random_range(-4.0f32..4.0);
            let rate = 0.05
                + 0.4 * f64::from(u8::from(logit > -1.0))
                + 0.3 * f64::from(u8::from(logit > 2.0));
            logits.push(logit);
            labels.push(f32::from(u8::from(random.random_bool(rate))));
            weights.push(random.random_range(1.0..3.0));
            truth.push(rate);
        }
        (logits, labels, weights, truth)
    }

    #[test]
    fn an_isotonic_calibration_follows_rates_that_no_line_does() {
        let (logits, labels, weights, truth) = bent(40_000);
        let error = |calibration: &Calibration| {
            let terms = logits
                .iter()
                .zip(&truth)
                .map(|(logit, rate)| (f64::from(calibration.probability(*logit)) - rate).abs());
            terms.sum::<f64>() / truth.len() as f64
        };
        let isotonic = CalibrationMethod::Isotonic.fit(&logits, &labels, &weights);
        let platt = CalibrationMethod::Platt.fit(&logits, &labels, &weights);
        assert!(error(&isotonic) < 0.02, "{}", error(&isotonic));
        assert!(error(&platt) > 0.05, "{}", error(&platt));
    }

    proptest! {
        #[test]
        fn sums_are_kept_and_order_too(seed in any::<u64>(), rows in 10usize..3000, ties in 1u32..50) {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let logits: Vec<f32> = (0..rows).map(|_| random.random_range(0..ties) as f32 * 0.1 - 1.0).collect();
            let mut labels: Vec<f32> = (0..rows).map(|_| f32::from(u8::from(random.random_bool(0.3)))).collect();
            (labels[0], labels[1]) = (0.0, 1.0);
            let weights: Vec<f32> = (0..rows).map(|_| random.random_range(0.5..2.0)).collect();
            let found = CalibrationMethod::Isotonic.fit(&logits, &labels, &weights);
            let sum = |of: &dyn Fn(usize) -> f32| (0..rows).map(|row| f64::from(of(row) * weights[row])).sum::<f64>();
            let predicted = sum(&|row| found.probability(logits[row]));
            let clicked = sum(&|row| labels[row]);
            prop_assert!((predicted / clicked - 1.0).abs() < 1e-3, "{predicted} {clicked}");
            let scores: Vec<f32> = (0..200).map(|at| found.corrected(at as f32 * 0.05 - 5.0)).collect();
            prop_assert!(scores.is_sorted());
        }
    }
}
