//! The verbs of `marquee events`, `marquee features` and `marquee import`.

mod events;
mod features;
mod import;
mod schema;

use clap::error::ErrorKind;
use cli::CommonArgs;
pub use events::EventsVerb;
pub use features::FeaturesVerb;
pub use import::ImportVerb;

use crate::process::ProcessError;

const PIPELINE_CONFIG: &str = "configs/pipeline.toml";

/// A setting that makes no sense ends the program as a wrong flag does.
fn as_usage(error: ProcessError) -> anyhow::Error {
    match error {
        ProcessError::Setting(setting) => {
            let usage = clap::Error::raw(ErrorKind::ValueValidation, setting);
            anyhow::Error::from(usage).context("in the pipeline's configuration")
        }
        other => other.into(),
    }
}

/// A progress bar, unless programs read what is printed.
fn bar(common: &CommonArgs, total: usize, unit: &'static str) -> indicatif::ProgressBar {
    match common.json {
        true => indicatif::ProgressBar::hidden(),
        false => cli::progress(total as u64, unit),
    }
}
