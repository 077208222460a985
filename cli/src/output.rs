//! Results to stdout, logs and progress to stderr, figures to JSON files.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Prints one result line to stdout. A closed pipe ends quietly, as `head` expects.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => { $crate::print_line(&format!($($arg)*)) };
}

/// Prints one line to stdout; [`out!`] formats for it.
pub fn print_line(line: &str) {
    if let Err(error) = writeln!(io::stdout(), "{line}")
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        std::process::exit(crate::exit::OK.into());
    }
}

/// Starts logging to stderr. `RUST_LOG` wins over the number of `-v`;
/// `MARQUEE_LOG_FORMAT=json` gives one JSON object a line.
pub fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        // The table's library tells of every file.
        1 => "info,buoyant_kernel=warn,buoyant_kernel_engine=warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let json = std::env::var("MARQUEE_LOG_FORMAT").is_ok_and(|format| format == "json");
    // A second call finds a logger in place and keeps it.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}

/// A progress bar on stderr: what, share, count, rate and time left, with room for a message
/// such as the loss. Without a terminal nothing is drawn.
pub fn progress(len: u64, what: &str) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(10);
    let bar = ProgressBar::with_draw_target(Some(len), target);
    let template =
        "{prefix:>14} {bar:32} {percent:>3}% {human_pos}/{human_len} {per_sec} eta {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Writes pretty JSON, whole or not at all; missing folders are made.
///
/// # Errors
/// What the disk said.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write_text(path, &text)
}

/// Writes a text file, whole or not at all; missing folders are made.
///
/// # Errors
/// What the disk said.
pub fn write_text(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}
