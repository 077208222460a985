//! The figures against bounds that follow from the known truth.

use serde::{Deserialize, Serialize};

use super::{Steps, steps::JudgedSlice};

/// Reason of a view or click whose impression was not, or no longer, known.
const UNATTRIBUTED: &str = "unattributed";

/// How good is good enough. What the truth fixes exactly has no bound here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Least share of the way from chance to the best possible AUC.
    pub way_min: f64,
    /// How far predictions over true probabilities may be from 1, over all rows.
    pub calibration_tolerance: f64,
    /// The same in each slice of at least 1,000 rows.
    pub slice_calibration_tolerance: f64,
    /// Least recall of the index.
    pub recall_at_100_min: f64,
    /// Least share of requests answered with an ad.
    pub fill_rate_min: f64,
    /// Least expected revenue over that of an auction that knows the truth.
    pub revenue_ratio_min: f64,
    /// Least expected value of the winners over that of the best ones.
    pub value_ratio_min: f64,
    /// Least recall@10 of the visual tower over that of a random order.
    pub visual_over_random_min: f64,
    /// Least recall@10 of the visual tower over that of average colours.
    pub visual_over_pixels_min: f64,
    /// Most time of the 99th percentile of answers, ms; the budgets of the stages add up to 50.
    pub get_ads_p99_ms_max: f64,
    /// Standard errors that a measured AUC may be from its expectation.
    pub standard_errors_max: f64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            way_min: 0.98,
            calibration_tolerance: 0.02,
            slice_calibration_tolerance: 0.1,
            recall_at_100_min: 0.95,
            fill_rate_min: 0.98,
            revenue_ratio_min: 0.75,
            value_ratio_min: 0.75,
            visual_over_random_min: 3.0,
            visual_over_pixels_min: 3.0,
            get_ads_p99_ms_max: 50.0,
            standard_errors_max: 4.0,
        }
    }
}

/// One figure and where it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// What was found.
    pub found: f64,
    /// Where it should be.
    pub wanted: String,
    /// Why there.
    pub because: &'static str,
}

impl Check {
    /// In one line.
    pub fn told(&self) -> String {
        let Self {
            name,
            wanted,
            because,
            ..
        } = self;
        format!(
            "{name} is {}, wanted {wanted} ({because})",
            figure(self.found)
        )
    }
}

/// A figure with as many decimals as it needs.
pub(super) fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        format!("{value:.4}")
    }
}

fn within(
    name: &'static str,
    found: f64,
    range: std::ops::RangeInclusive<f64>,
    because: &'static str,
) -> Check {
    let (lo, hi) = (*range.start(), *range.end());
    let wanted = match (lo.is_finite(), hi.is_finite()) {
        (true, true) if lo == hi => figure(lo),
        (true, true) => format!("{} to {}", figure(lo), figure(hi)),
        (true, false) => format!("at least {}", figure(lo)),
        _ => format!("at most {}", figure(hi)),
    };
    Check {
        name,
        holds: range.contains(&found),
        found,
        wanted,
        because,
    }
}

/// All checks that the steps at hand allow.
pub fn all(steps: &Steps, bounds: &Bounds) -> Vec<Check> {
    let mut checks = Vec::new();
    events(steps, &mut checks);
    model(steps, bounds, &mut checks);
    pictures(steps, bounds, &mut checks);
    serving(steps, bounds, &mut checks);
    checks
}

fn events(steps: &Steps, checks: &mut Vec<Check>) {
    let Some(events) = &steps.events else {
        return;
    };
    checks.push(within(
        "rows of the training table",
        events.rows_written as f64,
        events.impressions_viewed as f64..=events.impressions_viewed as f64,
        "one row per viewed impression, none lost, none twice",
    ));
    let Some(world) = &steps.world else {
        return;
    };
    let broken = world.broken.values().sum::<u64>() as f64;
    let unattributed = events
        .dead_by_reason
        .get(UNATTRIBUTED)
        .copied()
        .unwrap_or(0);
    checks.push(within(
        "broken events refused",
        events.events_dead.saturating_sub(unattributed) as f64,
        broken..=broken,
        "the world broke exactly as many",
    ));
    checks.push(within(
        "events without their impression",
        unattributed as f64,
        0.0..=world.late as f64,
        "only events that came hours late may miss theirs",
    ));
    let duplicates = world.duplicates as f64;
    checks.push(within(
        "duplicates",
        events.duplicates as f64,
        duplicates..=duplicates,
        "the world sent exactly as many",
    ));
    checks.push(within(
        "events read",
        events.events_in as f64,
        world.records as f64..=f64::INFINITY,
        "all that the world wrote, and those of the requests",
    ));
    if let Some(drive) = &steps.drive {
        let clicks = (world.clicks + drive.clicks) as f64;
        checks.push(within(
            "clicks attributed",
            events.clicks as f64,
            0.98 * clicks..=clicks,
            "those of the history and of the requests, less those that came too late",
        ));
        checks.push(within(
            "features as served",
            events.snapshots_used as f64,
            0.9 * drive.requests as f64..=f64::INFINITY,
            "impressions of the requests come back with the features that scored them",
        ));
    }
}

fn model(steps: &Steps, bounds: &Bounds, checks: &mut Vec<Check>) {
    let Some(judge) = &steps.judge else {
        return;
    };
    checks.push(within(
        "way to the best possible AUC",
        judge.way,
        bounds.way_min..=1.0 + 1e-9,
        "nothing is above the truth",
    ));
    let around_one = |tolerance: f64| 1.0 - tolerance..=1.0 + tolerance;
    checks.push(within(
        "calibration ratio",
        judge.calibration_true,
        around_one(bounds.calibration_tolerance),
        "predicted clicks over those that the true probabilities lead one to expect",
    ));
    // One that is no number lies further away than all others.
    let far = |slice: &&JudgedSlice| match (slice.calibration_true - 1.0).abs() {
        far if far.is_nan() => f64::INFINITY,
        far => far,
    };
    let worst = (judge.slices.iter()).max_by(|one, other| far(one).total_cmp(&far(other)));
    if let Some(worst) = worst {
        checks.push(within(
            "calibration ratio of the worst slice",
            worst.calibration_true,
            around_one(bounds.slice_calibration_tolerance),
            "of all genres, devices, formats, countries and categories with at least 1,000 rows",
        ));
    }
    if let Some(world) = &steps.world {
        let clicks = world.click_rate * judge.rows as f64;
        let error = (world.auc_best * (1.0 - world.auc_best) / clicks.max(1.0)).sqrt();
        let most = bounds.standard_errors_max * error;
        checks.push(within(
            "best possible AUC on the test rows",
            judge.auc_best,
            world.auc_best - most..=world.auc_best + most,
            "what the true probabilities lead one to expect, within chance",
        ));
    }
}

fn pictures(steps: &Steps, bounds: &Bounds, checks: &mut Vec<Check>) {
    if let Some(visual) = &steps.visual {
        let over = |baseline: f64| visual.recall_at_10 / baseline.max(1e-9);
        checks.push(within(
            "visual recall@10 over random",
            over(visual.recall_at_10_random),
            bounds.visual_over_random_min..=f64::INFINITY,
            "the tower sees what fits a scene",
        ));
        checks.push(within(
            "visual recall@10 over average colours",
            over(visual.recall_at_10_pixel_average),
            bounds.visual_over_pixels_min..=f64::INFINITY,
            "and sees more than colours",
        ));
    }
    if let Some(index) = &steps.index {
        checks.push(within(
            "recall@100 of the index",
            index.recall_at_100,
            bounds.recall_at_100_min..=1.0,
            "against an exact search",
        ));
    }
}

fn serving(steps: &Steps, bounds: &Bounds, checks: &mut Vec<Check>) {
    let Some(drive) = &steps.drive else {
        return;
    };
    let none = "the server answers every request";
    checks.push(within(
        "failed requests",
        drive.errors as f64,
        0.0..=0.0,
        none,
    ));
    checks.push(within(
        "winners that the world does not know",
        drive.unknown_winners as f64,
        0.0..=0.0,
        "no house ad was needed, and no other catalogue was served",
    ));
    checks.push(within(
        "fill rate",
        drive.fill_rate,
        bounds.fill_rate_min..=1.0,
        "every request has eligible ads",
    ));
    checks.push(within(
        "GetAds p99, ms",
        drive.get_ads_p99_ms,
        f64::NEG_INFINITY..=bounds.get_ads_p99_ms_max,
        "the budgets of the stages",
    ));
    checks.push(within(
        "value of the winners",
        drive.value_ratio,
        bounds.value_ratio_min..=1.0 + 1e-9,
        "no ad is worth more than the best one",
    ));
    checks.push(within(
        "revenue",
        drive.revenue_ratio,
        bounds.revenue_ratio_min..=f64::INFINITY,
        "over an auction that knows the truth",
    ));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::steps::{Drive, Events, Judge, World};

    fn slice(slice: &str, calibration_true: f64) -> JudgedSlice {
        JudgedSlice {
            slice: slice.to_owned(),
            calibration_true,
        }
    }

    fn steps() -> Steps {
        let world = World {
            records: 1_000,
            clicks: 100,
            duplicates: 9,
            broken: BTreeMap::from([("no_payload".to_owned(), 3), ("empty_id".to_owned(), 2)]),
            auc_best: 0.7,
            click_rate: 0.1,
            ..World::default()
        };
        let events = Events {
            events_in: 1_100,
            events_dead: 5,
            duplicates: 9,
            impressions_viewed: 800,
            rows_written: 800,
            clicks: 104,
            snapshots_used: 50,
            ..Events::default()
        };
        let judge = Judge {
            rows: 10_000,
            auc_best: 0.705,
            way: 0.985,
            calibration_true: 1.01,
            slices: vec![slice("genre=racing", 0.95), slice("device=phone", 1.08)],
            ..Judge::default()
        };
        let drive = Drive {
            requests: 50,
            clicks: 5,
            fill_rate: 1.0,
            get_ads_p99_ms: 9.0,
            revenue_ratio: 0.95,
            value_ratio: 0.96,
            ..Drive::default()
        };
        Steps {
            world: Some(world),
            events: Some(events),
            judge: Some(judge),
            drive: Some(drive),
            ..Steps::default()
        }
    }

    fn failed(steps: &Steps) -> Vec<&'static str> {
        let checks = all(steps, &Bounds::default());
        checks
            .iter()
            .filter(|check| !check.holds)
            .map(|check| check.name)
            .collect()
    }

    #[test]
    fn a_sound_run_holds_in_all_checks() {
        assert_eq!(failed(&steps()), Vec::<&str>::new());
    }

    #[test]
    fn each_fault_is_found_by_its_check() {
        let check = |break_it: fn(&mut Steps), expected: &str| {
            let mut steps = steps();
            break_it(&mut steps);
            assert_eq!(failed(&steps), [expected]);
        };
        check(
            |s| s.events.as_mut().unwrap().events_dead = 4,
            "broken events refused",
        );
        check(
            |s| s.events.as_mut().unwrap().rows_written = 801,
            "rows of the training table",
        );
        check(
            |s| s.events.as_mut().unwrap().clicks = 106,
            "clicks attributed",
        );
        check(
            |s| s.judge.as_mut().unwrap().way = 1.01,
            "way to the best possible AUC",
        );
        check(
            |s| s.judge.as_mut().unwrap().calibration_true = f64::NAN,
            "calibration ratio",
        );
        for far in [0.89, 1.11, f64::NAN] {
            let mut steps = steps();
            steps.judge.as_mut().unwrap().slices[0].calibration_true = far;
            assert_eq!(failed(&steps), ["calibration ratio of the worst slice"]);
        }
        check(
            |s| s.judge.as_mut().unwrap().auc_best = 0.78,
            "best possible AUC on the test rows",
        );
        check(|s| s.drive.as_mut().unwrap().errors = 1, "failed requests");
        check(
            |s| s.drive.as_mut().unwrap().value_ratio = 1.1,
            "value of the winners",
        );
    }

    #[test]
    fn a_check_tells_found_wanted_and_why() {
        let check = within("recall", 0.9, 0.95..=1.0, "against an exact search");
        assert_eq!(
            check.told(),
            "recall is 0.9000, wanted 0.9500 to 1 (against an exact search)"
        );
    }
}
