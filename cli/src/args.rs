//! The flags that every verb has.

use std::path::{Path, PathBuf};

use crate::{Loaded, print_line};

/// Flags that every verb has; flatten into the verb's own arguments.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommonArgs {
    /// Configuration file (TOML)
    #[arg(value_name = "CONFIG")]
    pub config_positional: Option<PathBuf>,
    /// Configuration file (TOML), same as the positional one
    #[arg(long, value_name = "PATH", conflicts_with = "config_positional")]
    pub config: Option<PathBuf>,
    /// Override one key, for example --set model.dropout=0.1 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the configuration as it would be used, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Seed of every random stream; overrides the configuration's `seed`
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print results as JSON, without progress bars
    #[arg(long)]
    pub json: bool,
    /// More log lines; -vv for all
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Data folder
    #[arg(long, value_name = "DIR", env = "MARQUEE_ROOT", default_value = "data")]
    pub root: PathBuf,
}

impl CommonArgs {
    /// The configuration file named on the command line, if any.
    pub fn config_path(&self) -> Option<&Path> {
        self.config.as_deref().or(self.config_positional.as_deref())
    }

    /// With `--print-config`, prints the resolved configuration and returns true: the verb then
    /// ends without doing its work.
    pub fn print<C>(&self, loaded: &Loaded<C>) -> bool {
        if self.print_config {
            print_line(loaded.resolved.trim_end());
        }
        self.print_config
    }
}
