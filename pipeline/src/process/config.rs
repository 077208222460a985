//! Configuration of `marquee events process`.

use std::path::PathBuf;

use features::online::OnlineConfig;
use serde::{Deserialize, Serialize};
use wire::log::Transport;

use super::attribution::AttributionModel;
use crate::calendar::HOUR_US;

const SECOND_US: i64 = 1_000_000;

/// How events become rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineConfig {
    /// The feature spec. A table and its state belong to one spec: another one needs another
    /// `table` or another `--root`.
    pub features: PathBuf,
    /// What rows must look like to be trained on: for `marquee events check`.
    pub quality: PathBuf,
    /// What keeps the event log: `"segments"` in the data folder, or a table `[log.kafka]`.
    pub log: Transport,
    /// What keeps the online store: `"embedded"` in the data folder, or a table `[online.redis]`. The
    /// server's is to be the same.
    pub online: OnlineConfig,
    /// Name of the training table under the data folder.
    pub table: String,
    /// Events per commit: larger commits cost less per event and lose more work in a crash.
    pub batch_events: usize,
    /// A commit also ends after this much input, in MiB, whatever the number of events.
    pub batch_mib: usize,
    /// What an event must look like.
    pub validation: ValidationConfig,
    /// How long event ids are remembered.
    pub deduplication: DeduplicationConfig,
    /// How long to wait for late events.
    pub watermark: WatermarkConfig,
    /// What counts as seen.
    pub viewability: ViewabilityConfig,
    /// What counts as caused by an ad.
    pub attribution: AttributionConfig,
    /// How much one person may do.
    pub guards: GuardsConfig,
    /// What belongs together.
    pub sessions: SessionsConfig,
    /// How many rows are kept in which nothing happened.
    pub sampling: SamplingConfig,
    /// Whether events are also kept as they came, and for how long.
    pub archive: ArchiveConfig,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            features: PathBuf::from("configs/features.toml"),
            quality: PathBuf::from("wire/proto/marquee/events/v1/quality.toml"),
            log: Transport::default(),
            online: OnlineConfig::default(),
            table: "impressions".to_owned(),
            batch_events: 100_000,
            batch_mib: 256,
            validation: ValidationConfig::default(),
            deduplication: DeduplicationConfig::default(),
            watermark: WatermarkConfig::default(),
            viewability: ViewabilityConfig::default(),
            attribution: AttributionConfig::default(),
            guards: GuardsConfig::default(),
            sessions: SessionsConfig::default(),
            sampling: SamplingConfig::default(),
            archive: ArchiveConfig::default(),
        }
    }
}

/// What an event must look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// How far a sender's clock may run ahead of the platform's. Higher admits more senders, and
    /// lets one wrong clock push the watermark further.
    pub max_clock_skew_seconds: u32,
    /// Pictures above this many pixels are refused before they are decoded.
    pub max_picture_pixels: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            max_clock_skew_seconds: 300,
            max_picture_pixels: 1 << 24,
        }
    }
}

/// How long event ids are remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeduplicationConfig {
    /// By event time. Older events are refused, since they could be duplicates; each remembered
    /// id takes about 20 bytes.
    pub window_hours: u32,
}

impl Default for DeduplicationConfig {
    fn default() -> Self {
        Self { window_hours: 168 }
    }
}

/// How long to wait for late events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatermarkConfig {
    /// The watermark runs this far behind the newest event time, and windows close by it. Higher
    /// catches more late events before a row is written, and writes rows later.
    pub delay_seconds: u32,
    /// How much longer impressions without a view, and views and clicks without an impression,
    /// are kept for each other. Higher loses fewer late events, and remembers more.
    pub allowed_lateness_hours: u32,
}

impl Default for WatermarkConfig {
    fn default() -> Self {
        Self {
            delay_seconds: 600,
            allowed_lateness_hours: 24,
        }
    }
}

/// What counts as seen: the rules of the Media Rating Council, MRC Viewable Ad Impression Measurement
/// Guidelines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewabilityConfig {
    /// Least share of the ad's pixels that must be visible, occlusion taken off.
    pub min_visible_share: f32,
    /// Least continuous time of a picture, in milliseconds.
    pub min_duration_ms: u32,
    /// Least continuous time of a video, in milliseconds.
    pub video_min_duration_ms: u32,
    /// From so many pixels on, a picture is a large one. Rows say by which rule they were seen
    /// (`view_rule`), since large ones must be disclosed.
    pub large_pixels: u32,
    /// As `min_visible_share`, of large pictures.
    pub large_min_visible_share: f32,
}

impl Default for ViewabilityConfig {
    fn default() -> Self {
        Self {
            min_visible_share: 0.5,
            min_duration_ms: 1_000,
            video_min_duration_ms: 2_000,
            large_pixels: 242_500,
            large_min_visible_share: 0.3,
        }
    }
}

/// What counts as caused by an ad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttributionConfig {
    /// How long after serving an ad may come into view.
    pub view_window_seconds: u32,
    /// How long after the view a click counts; the row is written when it has passed.
    pub click_window_seconds: u32,
    /// How long after a click or view a conversion counts; then labels are final.
    pub conversion_window_hours: u32,
    /// Which clicks and views a conversion is credited to: `last_touch`, `first_touch`, `linear` or
    /// `time_decay`.
    pub model: AttributionModel,
    /// For `time_decay`: a click counts half as much as one that is so much later.
    pub half_life_hours: u32,
}

impl Default for AttributionConfig {
    fn default() -> Self {
        Self {
            view_window_seconds: 1_800,
            click_window_seconds: 1_800,
            conversion_window_hours: 168,
            model: AttributionModel::LastTouch,
            half_life_hours: 24,
        }
    }
}

/// How much one person may do: what is more is refused as a bot's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardsConfig {
    /// Events of one person in one minute.
    pub max_events_per_minute: u32,
    /// Clicks of one person in one hour.
    pub max_clicks_per_hour: u32,
    /// A click that the platform learns of sooner after serving than this, in milliseconds, was not made
    /// by a person: nobody sees and hits an ad so fast.
    pub min_click_ms: u32,
}

impl Default for GuardsConfig {
    fn default() -> Self {
        Self {
            max_events_per_minute: 600,
            max_clicks_per_hour: 200,
            min_click_ms: 50,
        }
    }
}

/// What belongs together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionsConfig {
    /// A longer pause begins a new session.
    pub gap_minutes: u32,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self { gap_minutes: 30 }
    }
}

/// How many rows are kept in which nothing happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Share of the rows without click and conversion that stay once their labels are final, each with
    /// the weight 1 / share. Lower makes a smaller table and says less of what is not clicked; 0.01 to
    /// 0.1 is usual at scale.
    pub negative_rate: f64,
    /// Another one keeps others.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            negative_rate: 1.0,
            seed: 0,
        }
    }
}

/// Whether events are also kept as they came, as Parquet by the hour of their arrival, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveConfig {
    /// Off where the log keeps everything itself, as segments do; a topic of Kafka forgets.
    pub enabled: bool,
    /// Whole hours are removed when they are so old; 0 keeps them for ever.
    pub retention_days: u32,
    /// The same of events of restricted people, and of what cannot be read and might be one: as long as
    /// a table may have to be made again with labels that are not final yet.
    pub restricted_hours: u32,
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            retention_days: 0,
            restricted_hours: 192,
        }
    }
}

/// Two settings that do not go together, or one that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`{key}` is {found}, wanted {wanted}")]
pub struct SettingError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub wanted: String,
}

/// The configured times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Windows {
    pub(crate) skew_us: i64,
    pub(crate) deduplication_us: i64,
    pub(crate) delay_us: i64,
    pub(crate) lateness_us: i64,
    pub(crate) view_us: i64,
    pub(crate) click_us: i64,
    pub(crate) conversion_us: i64,
    pub(crate) half_life_us: i64,
    pub(crate) session_gap_us: i64,
    pub(crate) min_click_us: i64,
}

impl Windows {
    /// How far back it must be known what was known when: a request may arrive as much behind the
    /// newest event as late events may, and a clock be ahead.
    pub(crate) fn horizon_us(&self) -> i64 {
        self.delay_us + self.skew_us
    }
}

impl PipelineConfig {
    /// Checks relations between keys.
    ///
    /// # Errors
    /// [`SettingError`] names the key, its value and what would do.
    pub fn check(&self) -> Result<(), SettingError> {
        let fail = |key, found: String, wanted: &str| {
            Err(SettingError {
                key,
                found,
                wanted: wanted.to_owned(),
            })
        };
        let windows = self.windows();
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if self.table.is_empty() || !self.table.chars().all(valid) {
            return fail(
                "table",
                format!("\"{}\"", self.table),
                "lower-case letters, digits, `-` and `_`",
            );
        }
        if self.batch_events == 0 {
            return fail("batch_events", "0".to_owned(), "at least 1");
        }
        if self.batch_mib == 0 {
            return fail("batch_mib", "0".to_owned(), "at least 1");
        }
        if !(0.0..=1.0).contains(&self.viewability.min_visible_share) {
            return fail(
                "viewability.min_visible_share",
                self.viewability.min_visible_share.to_string(),
                "0 to 1",
            );
        }
        if !(0.0..=1.0).contains(&self.viewability.large_min_visible_share) {
            return fail(
                "viewability.large_min_visible_share",
                self.viewability.large_min_visible_share.to_string(),
                "0 to 1",
            );
        }
        if !(0.001..=1.0).contains(&self.sampling.negative_rate) {
            return fail(
                "sampling.negative_rate",
                self.sampling.negative_rate.to_string(),
                "0.001 to 1",
            );
        }
        if windows.half_life_us == 0 {
            return fail("attribution.half_life_hours", "0".to_owned(), "at least 1");
        }
        if windows.conversion_us < windows.click_us {
            return fail(
                "attribution.conversion_window_hours",
                self.attribution.conversion_window_hours.to_string(),
                "at least as long as `attribution.click_window_seconds`",
            );
        }
        if windows.deduplication_us < windows.lateness_us {
            return fail(
                "deduplication.window_hours",
                self.deduplication.window_hours.to_string(),
                "at least `watermark.allowed_lateness_hours`",
            );
        }
        Ok(())
    }

    pub(crate) fn windows(&self) -> Windows {
        let seconds = |value: u32| i64::from(value) * SECOND_US;
        let hours = |value: u32| i64::from(value) * HOUR_US;
        Windows {
            skew_us: seconds(self.validation.max_clock_skew_seconds),
            deduplication_us: hours(self.deduplication.window_hours),
            delay_us: seconds(self.watermark.delay_seconds),
            lateness_us: hours(self.watermark.allowed_lateness_hours),
            view_us: seconds(self.attribution.view_window_seconds),
            click_us: seconds(self.attribution.click_window_seconds),
            conversion_us: hours(self.attribution.conversion_window_hours),
            half_life_us: hours(self.attribution.half_life_hours),
            session_gap_us: 60 * seconds(self.sessions.gap_minutes),
            min_click_us: i64::from(self.guards.min_click_ms) * SECOND_US / 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_key(change: impl FnOnce(&mut PipelineConfig)) -> &'static str {
        let mut config = PipelineConfig::default();
        change(&mut config);
        config.check().unwrap_err().key
    }

    #[test]
    fn defaults_go_together() {
        assert_eq!(PipelineConfig::default().check(), Ok(()));
    }

    #[test]
    fn settings_that_make_no_sense_name_their_key() {
        assert_eq!(refused_key(|c| c.table = "a/b".to_owned()), "table");
        assert_eq!(refused_key(|c| c.batch_events = 0), "batch_events");
        assert_eq!(refused_key(|c| c.batch_mib = 0), "batch_mib");
        assert_eq!(
            refused_key(|c| c.viewability.min_visible_share = f32::NAN),
            "viewability.min_visible_share"
        );
        assert_eq!(
            refused_key(|c| c.attribution.conversion_window_hours = 0),
            "attribution.conversion_window_hours"
        );
        assert_eq!(
            refused_key(|c| c.deduplication.window_hours = 0),
            "deduplication.window_hours"
        );
    }
}
