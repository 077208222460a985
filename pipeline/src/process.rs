//! From events to the training table, incrementally and exactly once.
//!
//! ```text
//! log ─MergedLog─▶ Processor ─rows, dead letters, final labels─▶ Run ─▶ table, files, state
//! ```
//!
//! The [`Processor`] does the thinking and touches no disk: it validates, drops duplicates, keeps
//! the catalogue and the aggregates, joins views, clicks and conversions to impressions, and
//! gives out a row once its click window has passed. [`run`] feeds it batches and makes each of
//! them durable with one table commit. Kill it anywhere and start it again: no event is lost,
//! none is counted twice.
//!
//! Read in this order: [`PipelineConfig`], [`MergedLog`], [`validation`], [`Processor`],
//! [`state`], [`table`], [`run`].

mod ads;
pub mod archive;
mod attribution;
pub mod audit;
pub(crate) mod book;
pub(crate) mod config;
mod counters;
mod dead_letter;
mod deduplication;
pub mod fault;
#[cfg(test)]
mod fixture;
mod guards;
mod impressions;
mod picture;
pub(crate) mod processor;
mod progress;
mod protobuf;
mod refusal;
mod run;
mod sessions;
pub mod show;
mod source;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;
mod timer;
pub mod validation;
mod viewability;
mod windows;

use std::{fs::File, io, path::Path};

pub use attribution::AttributionModel;
pub use config::{
    ArchiveConfig, AttributionConfig, DeduplicationConfig, GuardsConfig, PipelineConfig,
    SamplingConfig, SessionsConfig, SettingError, ValidationConfig, ViewabilityConfig,
    WatermarkConfig,
};
pub use counters::{Counters, EventsReport};
pub use dead_letter::{DeadLetter, file_of_batch as dead_letter_file};
pub use picture::{PictureError, PictureFacts, describe as describe_picture};
pub use processor::{Outputs, Processor};
pub use progress::Progress;
pub use refusal::Refusal;
pub use run::{AtEnd, ProcessError, run};
pub use source::{MergedLog, ReadAhead, SourceRecord};

pub(crate) use picture::hex;
pub(crate) use run::{lock, pictures_folder};
use wire::events::event::Payload;

/// What an event is, in files for people.
fn kind(payload: Option<&Payload>) -> &'static str {
    match payload {
        Some(Payload::ImpressionServed(_)) => "impression_served",
        Some(Payload::ImpressionViewed(_)) => "impression_viewed",
        Some(Payload::Click(_)) => "click",
        Some(Payload::Conversion(_)) => "conversion",
        Some(Payload::UserActivity(_)) => "user_activity",
        Some(Payload::CreativeChanged(_)) => "creative_changed",
        Some(Payload::CampaignChanged(_)) => "campaign_changed",
        Some(Payload::ExperienceChanged(_)) => "experience_changed",
        None => "other",
    }
}

/// Makes a rename in a file's folder durable.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    File::open(folder)?.sync_all()
}
