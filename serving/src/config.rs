//! `configs/serving.toml`: how the server is set.

use std::{net::SocketAddr, time::Duration};

use features::online::OnlineConfig;
use serde::{Deserialize, Serialize};

use crate::{
    auction::AuctionConfig,
    request::Limits,
    served::LogConfig,
    stages::{Funnel, StageBudgets},
};

/// Everything that `marquee serve` can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServingConfig {
    /// Address of the ad service; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of metrics and health over HTTP; port 0 takes a free one.
    pub http_listen: SocketAddr,
    /// The registry channel whose bundle serves.
    pub channel: String,
    /// Time between two looks at the channel and at the online store, milliseconds. Higher: new
    /// bundles serve later.
    pub poll_ms: u64,
    /// Time before a bundle that was refused, or that has faults, is loaded again, and an online
    /// store that could not be opened, seconds.
    pub retry_seconds: u64,
    /// Requests whose stages run at the same time; 0 means one per core, at most `max_in_flight`.
    /// More than cores only adds waiting inside the stages.
    pub workers: usize,
    /// Requests that may be there at the same time, waiting ones included; more are turned away.
    /// Higher: longer waits under overload instead of refusals.
    pub max_in_flight: usize,
    /// Time for an answer when neither the request nor its transport says, milliseconds.
    pub deadline_ms: u64,
    /// Longest time that a client may ask for, milliseconds.
    pub max_deadline_ms: u64,
    /// Time for requests under way when the server is told to stop, seconds.
    pub drain_seconds: u64,
    /// Whether the server calls itself ready while it has no bundle and shows house ads.
    pub accept_degraded: bool,
    /// Time of each stage.
    pub stages: StageBudgets,
    /// How many ads each stage passes on.
    pub funnel: Funnel,
    /// What the seller asks for.
    pub auction: AuctionConfig,
    /// What keeps the online store: `"embedded"` in the data folder, or a table `[online.redis]`. The
    /// pipeline's is to be the same.
    pub online: OnlineConfig,
    /// How served impressions are logged.
    pub log: LogConfig,
    /// What shows when there is nothing to choose from, by slot.
    pub house_ads: Vec<HouseAd>,
}

/// An ad of the platform's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HouseAd {
    /// Its id in answers.
    pub creative_id: String,
    /// What a person reads.
    pub title: String,
    /// Where the client gets the picture, below the asset root.
    pub asset_path: String,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7701)),
            channel: "live".to_owned(),
            poll_ms: 500,
            retry_seconds: 30,
            workers: 0,
            max_in_flight: 64,
            deadline_ms: 100,
            max_deadline_ms: 1_000,
            drain_seconds: 10,
            accept_degraded: false,
            stages: StageBudgets::default(),
            funnel: Funnel::default(),
            auction: AuctionConfig::default(),
            online: OnlineConfig::default(),
            log: LogConfig::default(),
            house_ads: vec![HouseAd {
                creative_id: "house".to_owned(),
                title: "Your world, your stage".to_owned(),
                asset_path: "house/stage.png".to_owned(),
            }],
        }
    }
}

/// Two values that cannot both hold, or one that cannot hold at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("serving configuration: `{key}` is {found}, wanted {wanted}")]
pub struct ServingConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub wanted: &'static str,
}

impl ServingConfig {
    /// Checks ranges and what must hold between keys.
    ///
    /// # Errors
    /// [`ServingConfigError`] names the first key that does not fit.
    pub fn check(&self) -> Result<(), ServingConfigError> {
        let refuse = |key, found: String, wanted| Err(ServingConfigError { key, found, wanted });
        let at_least_one = [
            ("poll_ms", self.poll_ms),
            ("max_in_flight", self.max_in_flight as u64),
            ("deadline_ms", self.deadline_ms),
            ("auction.max_slots", self.auction.max_slots.into()),
            ("funnel.retrieved", self.funnel.retrieved as u64),
            ("funnel.prescored", self.funnel.prescored as u64),
            (
                "funnel.ads_per_campaign",
                self.funnel.ads_per_campaign as u64,
            ),
            ("log.queue", self.log.queue as u64),
        ];
        for (key, found) in at_least_one {
            if found == 0 {
                return refuse(key, "0".to_owned(), "at least 1");
            }
        }
        if self.max_deadline_ms < self.deadline_ms {
            let found = format!(
                "{} beside deadline_ms {}",
                self.max_deadline_ms, self.deadline_ms
            );
            return refuse("max_deadline_ms", found, "at least `deadline_ms`");
        }
        if self.max_in_flight < self.num_workers() {
            let found = format!(
                "{} beside {} workers",
                self.max_in_flight,
                self.num_workers()
            );
            return refuse("max_in_flight", found, "at least `workers`");
        }
        let prior = self.funnel.prior_pctr;
        if !(prior > 0.0 && prior <= 1.0) {
            return refuse(
                "funnel.prior_pctr",
                prior.to_string(),
                "above 0 and at most 1",
            );
        }
        if self.auction.reserve_cpc_micros < 0 {
            let found = self.auction.reserve_cpc_micros.to_string();
            return refuse("auction.reserve_cpc_micros", found, "at least 0");
        }
        Ok(())
    }

    /// Requests whose stages run at the same time.
    pub fn num_workers(&self) -> usize {
        match self.workers {
            0 => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                cores.min(self.max_in_flight)
            }
            workers => workers,
        }
    }

    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            max_slots: self.auction.max_slots,
            deadline: Duration::from_millis(self.deadline_ms),
            max_deadline: Duration::from_millis(self.max_deadline_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_holds() {
        let text = include_str!("../../configs/serving.toml");
        let (config, _) =
            cli::parse_config::<ServingConfig>(text, "configs/serving.toml", &[]).unwrap();
        config.check().unwrap();
    }

    #[test]
    fn a_small_limit_needs_no_word_on_workers() {
        let config = ServingConfig {
            max_in_flight: 1,
            ..ServingConfig::default()
        };
        config.check().unwrap();
        assert_eq!(config.num_workers(), 1);
    }

    #[test]
    fn contradictions_name_both_keys() {
        let check = |change: fn(&mut ServingConfig), expected: &str| {
            let mut config = ServingConfig::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        };
        check(
            |config| config.max_deadline_ms = 50,
            "serving configuration: `max_deadline_ms` is 50 beside deadline_ms 100, wanted at least `deadline_ms`",
        );
        check(
            |config| config.funnel.prior_pctr = f32::NAN,
            "serving configuration: `funnel.prior_pctr` is NaN, wanted above 0 and at most 1",
        );
        check(
            |config| config.max_in_flight = 0,
            "serving configuration: `max_in_flight` is 0, wanted at least 1",
        );
    }
}
