//! How the learning rate goes over the steps.

use serde::{Deserialize, Serialize};

/// Factor on all learning rates, dense and sparse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Steps over which the factor rises evenly to 1.
    pub warm_up_steps: u64,
    /// How it falls after that.
    pub decay: Decay,
    /// Steps until the decay is over, warm-up included; for `step`, steps between two falls.
    pub decay_steps: u64,
    /// For `plateau`: measures in a row without a better one before a fall.
    pub patience: u64,
    /// Where the decay ends; for `step` and `plateau`, what each fall leaves of the factor.
    pub floor: f64,
}

/// The shape of the decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// None.
    Constant,
    /// A straight line.
    Linear,
    /// Half a cosine. Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    Cosine,
    /// In steps.
    Step,
    /// Whenever the measures on the validation rows stop getting better.
    Plateau,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            warm_up_steps: 0,
            decay: Decay::Constant,
            decay_steps: 10_000,
            patience: 2,
            floor: 0.1,
        }
    }
}

impl ScheduleConfig {
    /// The factor of a step, counted from 0; that of `plateau` is for [`Self::falls`] to tell.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up_steps {
            return (step + 1) as f64 / self.warm_up_steps as f64;
        }
        let after = (step - self.warm_up_steps) as f64;
        let length = self.decay_steps.saturating_sub(self.warm_up_steps).max(1) as f64;
        let done = (after / length).min(1.0);
        match self.decay {
            Decay::Constant | Decay::Plateau => 1.0,
            Decay::Linear => 1.0 - (1.0 - self.floor) * done,
            Decay::Cosine => {
                let falling = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                self.floor + (1.0 - self.floor) * falling
            }
            Decay::Step => self
                .floor
                .powf((after / self.decay_steps.max(1) as f64).floor()),
        }
    }

    /// Whether the rate of `plateau` falls after so many measures without a better one.
    pub fn falls(&self, since_best: u64) -> bool {
        let due = since_best > 0 && since_best.is_multiple_of(self.patience.max(1));
        self.decay == Decay::Plateau && due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, steps: [u64; 4]) -> [f64; 4] {
        let schedule = ScheduleConfig {
            warm_up_steps: 10,
            decay,
            decay_steps: 110,
            floor: 0.1,
            ..ScheduleConfig::default()
        };
        steps.map(|step| (schedule.rate(step) * 1e6).round() / 1e6)
    }

    #[test]
    fn rates_rise_to_one_and_fall_to_the_floor() {
        assert_eq!(
            rates(Decay::Constant, [0, 4, 9, 5000]),
            [0.1, 0.5, 1.0, 1.0]
        );
        assert_eq!(
            rates(Decay::Linear, [10, 60, 110, 500]),
            [1.0, 0.55, 0.1, 0.1]
        );
        assert_eq!(
            rates(Decay::Cosine, [10, 60, 110, 500]),
            [1.0, 0.55, 0.1, 0.1]
        );
        assert_eq!(
            rates(Decay::Step, [10, 119, 120, 230]),
            [1.0, 1.0, 0.1, 0.01]
        );
    }

    #[test]
    fn a_plateau_is_left_by_a_fall() {
        let schedule = ScheduleConfig {
            decay: Decay::Plateau,
            ..ScheduleConfig::default()
        };
        let falls: Vec<bool> = (0..5).map(|since| schedule.falls(since)).collect();
        assert_eq!(falls, [false, false, true, false, true]);
        assert!(!ScheduleConfig::default().falls(20_000));
        assert_eq!(schedule.rate(5000), 1.0);
    }

    #[test]
    fn the_default_is_one_from_the_start() {
        assert_eq!(ScheduleConfig::default().rate(0), 1.0);
    }
}
