//! Channels: what serves, at which share of the traffic.

use serde::{Deserialize, Serialize};

use crate::{Digest, RegistryError};

/// One bundle of a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The bundle.
    pub bundle: Digest,
    /// Share of the traffic, 0 to 1.
    pub share: f64,
}

/// A channel as it stands at one generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// Its name, such as `live`.
    pub name: String,
    /// Rises by one with each move, from 1.
    pub generation: u64,
    /// The bundles that serve.
    pub targets: Vec<Target>,
    /// When it was moved here, microseconds since the Unix epoch.
    pub updated_us: i64,
}

/// A channel name is one path segment.
pub(crate) fn check_name(name: &str) -> Result<(), RegistryError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(valid) {
        return Err(RegistryError::BadName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Shares are a distribution.
pub(crate) fn check_shares(name: &str, targets: &[Target]) -> Result<(), RegistryError> {
    let sum: f64 = targets.iter().map(|target| target.share).sum();
    let each = targets
        .iter()
        .all(|target| (0.0..=1.0).contains(&target.share));
    if !each || (sum - 1.0).abs() > 1e-9 {
        return Err(RegistryError::Shares {
            name: name.to_owned(),
            sum,
        });
    }
    Ok(())
}
