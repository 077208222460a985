//! How late conversions come.

use serde::{Deserialize, Serialize};

/// The time from a click to its conversion: exponential, up to a window. Source: Chapelle, "Modeling
/// Delayed Feedback in Display Advertising", KDD 2014, section 4, with one rate for all rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversionDelay {
    /// One over the mean delay, per hour.
    pub rate: f64,
    /// Conversions after so many hours do not count; none if no row is so old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<f64>,
}

impl ConversionDelay {
    /// The probability that a conversion that will come is known after some hours.
    pub fn arrived(&self, hours: f64) -> f64 {
        let within = |hours: f64| -(-self.rate * hours).exp_m1();
        (within(hours) / self.window.map_or(1.0, within)).min(1.0)
    }

    /// Whether it can be; else what cannot.
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = |hours: f64| hours.is_finite() && hours > 0.0;
        match positive(self.rate) && self.window.is_none_or(positive) {
            true => Ok(()),
            false => Err(format!(
                "delay has the rate {} and the window {:?}, wanted numbers above 0",
                self.rate, self.window
            )),
        }
    }
}
