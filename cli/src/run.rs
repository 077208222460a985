//! How a program ends: one line per cause, and a documented exit code.

use std::process::ExitCode;

use crate::ConfigError;

/// Exit codes of every verb.
pub mod exit {
    /// All done.
    pub const OK: u8 = 0;
    /// It failed; stderr says why.
    pub const FAILURE: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// A gate refused the result: it is there, but not good enough.
    pub const GATE: u8 = 3;
    /// Preempted with its state saved: start the same command again to go on.
    pub const RESUME: u8 = 75;
}

/// Something that was asked for cannot be; ends the program with [`exit::USAGE`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A gate's refusal; ends the program with [`exit::GATE`].
#[derive(Debug, thiserror::Error)]
#[error("refused by the gate: {reason}")]
pub struct GateRefused {
    /// What was measured against what was wanted.
    pub reason: String,
}

/// Preempted with its state saved; ends the program with [`exit::RESUME`].
#[derive(Debug, thiserror::Error)]
#[error("preempted; the state is saved at {saved}: run the same command again to go on")]
pub struct Preempted {
    /// Where the state is.
    pub saved: String,
}

/// Runs a program's body; prints an error with its causes to stderr and picks the exit code.
pub fn main(run: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            report(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last words of the program are for a person"
)]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
}

/// The exit code of a program that ends with this error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    // As a context it is no cause of its own.
    if error.is::<Usage>() {
        return exit::USAGE;
    }
    error
        .chain()
        .find_map(|cause| {
            if cause.is::<ConfigError>() || cause.is::<clap::Error>() {
                Some(exit::USAGE)
            } else if cause.is::<GateRefused>() {
                Some(exit::GATE)
            } else if cause.is::<Preempted>() {
                Some(exit::RESUME)
            } else {
                None
            }
        })
        .unwrap_or(exit::FAILURE)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_kind_of_end_has_its_code_under_any_context() {
        let check = |error: anyhow::Error, expected| {
            assert_eq!(exit_code(&error.context("training")), expected)
        };
        check(anyhow::anyhow!("broken"), exit::FAILURE);
        check(Usage("two of one".into()).into(), exit::USAGE);
        check(
            GateRefused {
                reason: "recall 0.9, wanted 0.95".into(),
            }
            .into(),
            exit::GATE,
        );
        check(
            Preempted {
                saved: "runs/ctr-001".into(),
            }
            .into(),
            exit::RESUME,
        );
        let usage = crate::parse_config::<toml::Table>("a = ", "x.toml", &[])
            .context("reading")
            .unwrap_err();
        check(usage, exit::USAGE);
    }
}
