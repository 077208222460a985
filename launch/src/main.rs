//! `marquee`: the front door.

use std::{env, ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser};
use launch::{
    completion, dispatch, doctor, help, quickstart, registry_verbs, report, supervisor,
    verbs::{self, Program},
};

/// The verbs that no other program has.
#[derive(Parser)]
#[command(name = "marquee", version, about, disable_help_subcommand = true)]
enum Own {
    /// Artifacts and what is live
    #[command(subcommand)]
    Registry(registry_verbs::RegistryVerb),
    /// The figures of all steps on one page
    Report(report::ReportArgs),
    /// What this machine lacks, and the mend
    Doctor(doctor::DoctorArgs),
    /// The whole loop, from nothing to the report
    #[command(disable_help_flag = true)]
    Quickstart(quickstart::QuickstartArgs),
    /// Runs of several processes
    #[command(subcommand)]
    Launch(supervisor::LaunchVerb),
    /// Shell completion for bash, zsh or fish
    Completion(completion::CompletionArgs),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let first = args.first().map(|arg| arg.to_string_lossy().into_owned());
    match first.as_deref() {
        None => {
            cli::print_line(&help::page());
            ExitCode::from(cli::exit::USAGE)
        }
        Some("help" | "-h" | "--help") if args.len() == 1 => {
            cli::print_line(&help::page());
            ExitCode::from(cli::exit::OK)
        }
        // `help a b` is `a b --help`.
        Some("help") => {
            let mut args = args[1..].to_vec();
            args.push("--help".into());
            run(&args)
        }
        Some(_) => run(&args),
    }
}

fn run(args: &[OsString]) -> ExitCode {
    let name = args[0].to_string_lossy();
    match verbs::find(&name) {
        Some(verb) if verb.program != Program::Launch => {
            cli::main(|| Err(dispatch::hand_over(verb.program, args).into()))
        }
        None if !name.starts_with('-') => {
            let name = name.into_owned();
            refuse(&dispatch::DispatchError::UnknownVerb { name })
        }
        _ => cli::main(|| run_own(args)),
    }
}

/// Ends the program as a wrong command line does.
#[expect(
    clippy::print_stderr,
    reason = "the last words of the program are for a person"
)]
fn refuse(error: &dispatch::DispatchError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(cli::exit::USAGE)
}

fn run_own(args: &[OsString]) -> anyhow::Result<()> {
    let whole = [OsString::from("marquee")].into_iter().chain(args.to_vec());
    match Own::parse_from(whole) {
        Own::Registry(verb) => registry_verbs::run(verb),
        Own::Report(args) => report::run(&args),
        Own::Doctor(args) => doctor::run(&args),
        Own::Quickstart(args) => quickstart::run(args),
        Own::Launch(verb) => supervisor::run(&verb),
        Own::Completion(args) => {
            completion::run(&args, Own::command());
            Ok(())
        }
    }
}
