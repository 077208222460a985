//! What every Marquee program shares at its edge with a person.
//!
//! A verb starts as [`CommonArgs`] (the flags all verbs have), turns a TOML file and `--set`
//! overrides into its configuration with [`load_config`], finds its data with [`Layout`], logs
//! to stderr ([`init_logging`]), prints results to stdout ([`out!`]) and ends in one of the
//! documented exit codes ([`exit`], [`main`]).
//!
//! This crate knows nothing of ads or models and reads no environment but `MARQUEE_ROOT`,
//! `MARQUEE_LOG_FORMAT`, `RUST_LOG` and `NO_COLOR`.

mod args;
mod config;
mod html;
mod layout;
mod output;
mod process;
mod run;

/// Every program allocates and frees many small values on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use args::CommonArgs;
pub use config::{ConfigError, Loaded, load_config, parse_config};
pub use html::escape;
pub use layout::Layout;
pub use output::{init_logging, print_line, progress, write_json, write_text};
pub use process::end_with_us;
pub use run::{GateRefused, Preempted, Usage, exit, exit_code, main};
