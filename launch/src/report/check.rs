//! Bounds that the figures must keep, derived from the world's known truth.

use super::figures::Figures;

/// One bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The figure and the bound in words.
    pub what: String,
    /// Whether it is kept.
    pub holds: bool,
}

/// All bounds; a figure that was not measured fails its bound.
pub fn checks(figures: &Figures, min_way: f64, max_miscalibration: f64) -> Vec<Check> {
    let check = |name: &str, value: Option<f64>, wanted: String, holds: &dyn Fn(f64) -> bool| {
        let shown = value.map_or("not measured".to_owned(), |value| format!("{value:.4}"));
        Check {
            what: format!("{name} is {shown}, wanted {wanted}"),
            holds: value.is_some_and(holds),
        }
    };
    let broken = figures.broken().unwrap_or(f64::NAN);
    let served = figures.number("drive", "requests").unwrap_or(f64::NAN);
    let random = figures
        .number("visual", "recall_at_10_random")
        .unwrap_or(f64::NAN);
    let pixels = figures
        .number("visual", "recall_at_10_pixel_average")
        .unwrap_or(f64::NAN);
    let calibration = (1.0 - max_miscalibration)..=(1.0 + max_miscalibration);
    vec![
        check(
            "way to the best AUC",
            figures.number("judge", "way"),
            format!("{min_way} to 1"),
            &|way| (min_way..=1.0).contains(&way),
        ),
        check(
            "calibration ratio",
            figures.number("judge", "calibration_ratio"),
            format!("{calibration:?}"),
            &|ratio| calibration.contains(&ratio),
        ),
        check(
            "recall@100",
            figures.number("index", "recall_at_100"),
            "0.95 or more".to_owned(),
            &|recall| recall >= 0.95,
        ),
        check(
            "visual recall@10",
            figures.number("visual", "recall_at_10"),
            format!("above random {random:.4} and pixel average {pixels:.4}"),
            &|recall| recall > random && recall > pixels,
        ),
        // Records that the world broke, and nothing else, are dead on arrival; events of
        // impressions that nobody served may join them.
        check(
            "events dead",
            figures.number("events", "events_dead"),
            format!("{broken} or more, as broken by the world"),
            &|dead| dead >= broken,
        ),
        check(
            "fill rate",
            figures.number("drive", "fill_rate"),
            "0.95 or more".to_owned(),
            &|rate| rate >= 0.95,
        ),
        check(
            "requests that failed",
            figures.number("drive", "errors"),
            format!("0 of {served}"),
            &|errors| errors == 0.0,
        ),
        check(
            "answers that were degraded",
            figures.number("drive", "degraded"),
            "at most 1 % of the requests".to_owned(),
            &|degraded| degraded <= 0.01 * served,
        ),
        check(
            "value against the best possible",
            figures.number("drive", "value_ratio"),
            "0.5 to 1".to_owned(),
            &|ratio| (0.5..=1.0).contains(&ratio),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn figures(judge: &str) -> Figures {
        let folder = tempfile::tempdir().unwrap();
        let write = |step: &str, text: &str| {
            fs::write(folder.path().join(format!("{step}.json")), text).unwrap()
        };
        write("judge", judge);
        write("index", r#"{"recall_at_100": 0.99}"#);
        write(
            "visual",
            r#"{"recall_at_10": 0.05, "recall_at_10_random": 0.02, "recall_at_10_pixel_average": 0.03}"#,
        );
        write(
            "world",
            r#"{"broken": {"no_payload": 3, "empty_event_id": 4}}"#,
        );
        write("events", r#"{"events_dead": 7}"#);
        write(
            "drive",
            r#"{"requests": 100, "fill_rate": 1.0, "errors": 0, "degraded": 0, "value_ratio": 0.9}"#,
        );
        Figures::read(folder.path())
    }

    #[test]
    fn good_figures_hold_and_each_bad_one_is_named() {
        let good = checks(
            &figures(r#"{"way": 0.97, "calibration_ratio": 1.02}"#),
            0.95,
            0.05,
        );
        assert!(good.iter().all(|check| check.holds), "{good:?}");
        let bad = checks(
            &figures(r#"{"way": 0.9, "calibration_ratio": 1.2}"#),
            0.95,
            0.05,
        );
        let failing: Vec<_> = bad
            .iter()
            .filter(|check| !check.holds)
            .map(|check| check.what.clone())
            .collect();
        assert_eq!(failing.len(), 2, "{failing:?}");
        assert_eq!(
            failing[0],
            "way to the best AUC is 0.9000, wanted 0.95 to 1"
        );
    }

    #[test]
    fn what_was_not_measured_fails() {
        let checks = checks(&Figures::default(), 0.95, 0.05);
        assert!(checks.iter().all(|check| !check.holds));
    }
}
