//! Flags of the verbs that look at a data folder and take no configuration.

use std::path::PathBuf;

use cli::Layout;

/// Flags of a verb that only looks.
#[derive(Debug, Clone, clap::Args)]
pub struct LookArgs {
    /// Data folder
    #[arg(long, value_name = "DIR", env = "MARQUEE_ROOT", default_value = "data")]
    pub root: PathBuf,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
    /// More log lines; -vv for all
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl LookArgs {
    /// The data folder's places.
    pub fn layout(&self) -> Layout {
        Layout::at(&self.root)
    }
}
