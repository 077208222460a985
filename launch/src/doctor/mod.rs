//! `marquee doctor`: what is there, what is missing, and the mend.

mod machine;
mod tools;

use cli::out;
use serde::Serialize;

use crate::args::LookArgs;

/// Flags of `marquee doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    look: LookArgs,
}

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There.
    Ok,
    /// Not there, and something does not work without it.
    Missing,
    /// Not there; everything works without it.
    Optional,
}

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, if it is not there.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Missing,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    fn optional(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            state: State::Optional,
            ..Self::missing(name, found, mend)
        }
    }
}

/// Looks at the machine and prints what it found.
///
/// # Errors
/// If something required is missing.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    cli::init_logging(args.look.verbose);
    let mut checks = tools::checks();
    checks.extend(machine::checks(&args.look.root));
    let missing = checks
        .iter()
        .filter(|check| check.state == State::Missing)
        .count();
    if args.look.json {
        let report = serde_json::json!({ "ok": missing == 0, "checks": checks });
        out!("{report}");
    } else {
        for check in &checks {
            print(check);
        }
    }
    anyhow::ensure!(
        missing == 0,
        "{missing} of {} things that are needed are missing; `launch/setup` mends most",
        checks.len()
    );
    Ok(())
}

fn print(check: &Check) {
    let mark = match check.state {
        State::Ok => "ok",
        State::Missing => "MISSING",
        State::Optional => "-",
    };
    out!("{mark:<8} {:<22} {}", check.name, check.found);
    if let Some(mend) = &check.mend {
        out!("{:<8} {:<22} mend: {mend}", "", "");
    }
}
