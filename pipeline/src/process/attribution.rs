//! Which clicks and views a conversion is credited to.

use serde::{Deserialize, Serialize};

/// How a conversion is credited to the ads that its person clicked or saw before it.
///
/// Clicks go before views: where there is one, views get nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributionModel {
    /// All to the last one.
    #[default]
    LastTouch,
    /// All to the first one.
    FirstTouch,
    /// The same to each.
    Linear,
    /// Half as much for each half-life that lies between it and the conversion.
    TimeDecay,
}

/// A click or view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Touch {
    /// When, microseconds since the Unix epoch.
    pub(crate) at_us: i64,
    /// Hash of the impression id.
    pub(crate) impression: u64,
}

/// A part of a conversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Credit {
    /// Hash of the impression id.
    pub(crate) impression: u64,
    /// 0 to 1.
    pub(crate) share: f64,
    /// The part of its value, in millionths of the account's currency.
    pub(crate) value_micros: i64,
}

impl AttributionModel {
    /// Shares of a conversion at `time_us` among touches before it, by rising time; they add up to one,
    /// and their values to the whole one. No touch gets no credit.
    pub(crate) fn credit(
        self,
        mut touches: Vec<Touch>,
        time_us: i64,
        half_life_us: i64,
        value_micros: i64,
    ) -> Vec<Credit> {
        touches.sort_unstable();
        let (first, last) = (touches.first().copied(), touches.last().copied());
        let touches = match self {
            Self::LastTouch => last.into_iter().collect(),
            Self::FirstTouch => first.into_iter().collect(),
            Self::Linear | Self::TimeDecay => touches,
        };
        // Halves are counted from the last touch, so that the weights are never all zero.
        let newest_us = touches.last().map_or(time_us, |touch| touch.at_us);
        let weight = |touch: &Touch| match self {
            Self::TimeDecay => {
                let age_us = newest_us - touch.at_us;
                (-(age_us as f64) / half_life_us.max(1) as f64).exp2()
            }
            _ => 1.0,
        };
        let total: f64 = touches.iter().map(weight).sum();
        let (mut reached, mut given) = (0.0, 0);
        let credit = |touch: &Touch| {
            reached += weight(touch);
            // Rounded from the start on, so that no millionth is lost or made.
            let until = (reached / total * value_micros as f64).round() as i64;
            let value_micros = until - given;
            given = until;
            Credit {
                impression: touch.impression,
                share: weight(touch) / total,
                value_micros,
            }
        };
        touches.iter().map(credit).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODELS: [AttributionModel; 4] = [
        AttributionModel::LastTouch,
        AttributionModel::FirstTouch,
        AttributionModel::Linear,
        AttributionModel::TimeDecay,
    ];

    fn touch(impression: u64, at_us: i64) -> Touch {
        Touch { at_us, impression }
    }

    #[test]
    fn each_model_credits_as_its_name_says() {
        let touches = vec![touch(3, 30), touch(1, 10), touch(2, 20)];
        let check = |model: AttributionModel, expected: &[(u64, f64, i64)]| {
            let found = model.credit(touches.clone(), 40, 10, 700);
            let found: Vec<_> = found
                .iter()
                .map(|it| (it.impression, it.share, it.value_micros))
                .collect();
            assert_eq!(found, expected, "{model:?}");
        };
        check(AttributionModel::LastTouch, &[(3, 1.0, 700)]);
        check(AttributionModel::FirstTouch, &[(1, 1.0, 700)]);
        let third = 1.0 / 3.0;
        check(
            AttributionModel::Linear,
            &[(1, third, 233), (2, third, 234), (3, third, 233)],
        );
        let of = |halves: f64| halves / 7.0;
        check(
            AttributionModel::TimeDecay,
            &[(1, of(1.0), 100), (2, of(2.0), 200), (3, of(4.0), 400)],
        );
    }

    proptest! {
        #[test]
        fn a_conversion_is_given_away_whole(
            times in prop::collection::vec(0i64..1 << 50, 0..9),
            value_micros in 0i64..1 << 45,
            half_life_us in 1i64..1 << 40,
        ) {
            let touches: Vec<Touch> = times.iter().zip(0..).map(|(at, id)| touch(id, *at)).collect();
            for model in MODELS {
                let credits = model.credit(touches.clone(), 1 << 50, half_life_us, value_micros);
                prop_assert_eq!(credits.is_empty(), touches.is_empty());
                if !credits.is_empty() {
                    let shares: f64 = credits.iter().map(|it| it.share).sum();
                    prop_assert!((shares - 1.0).abs() < 1e-9);
                    let value: i64 = credits.iter().map(|it| it.value_micros).sum();
                    prop_assert_eq!(value, value_micros);
                    prop_assert!(credits.iter().all(|it| it.share >= 0.0 && it.value_micros >= 0));
                }
            }
        }
    }
}
