//! `marquee launch run`: starts the ranks of a training run on this machine, and keeps it going.
//!
//! The ranks get torchrun's environment variables. A run of several machines has one supervisor on
//! each. When a rank fails, the others of the attempt are ended, and all are started again: they go
//! on from the newest checkpoint. A rank that was preempted with its state saved (exit code 75)
//! ends the run with that code, and a wrong command line or configuration (2) at once.

mod ranks;

use std::{
    ffi::OsString,
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use cli::exit;
use ranks::{Ended, Ranks};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    dispatch,
    verbs::{self, Program},
};

/// How often the ranks are looked at.
const POLL: Duration = Duration::from_millis(20);

/// The longest pause before a restart.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// Failures in a row with so many ranks, after which one rank fewer is tried.
const PATIENCE: u32 = 2;

/// Runs of several processes.
#[derive(Debug, clap::Subcommand)]
pub enum LaunchVerb {
    /// Start the ranks of a training run, and start them again when one fails
    Run(RunArgs),
}

/// What `marquee launch run` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Ranks on this machine
    #[arg(long, alias = "nproc-per-node", default_value_t = 1, value_name = "N")]
    pub nproc: usize,
    /// Fewest ranks to go on with when a start fails again and again; needs a single machine
    #[arg(long, value_name = "N")]
    pub min_nproc: Option<usize>,
    /// Machines
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub nnodes: usize,
    /// Number of this machine, from 0
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub node_rank: usize,
    /// Where the first machine is found
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub master_addr: String,
    /// Port of rank 0; by default a free one, or 29500 with several machines
    #[arg(long, value_name = "PORT")]
    pub master_port: Option<u16>,
    /// Restarts after failures before the run is given up
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub max_restarts: u32,
    /// Seconds before the first restart; doubled, up to 30, whenever the ranks have not lived for
    /// longer than that
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    pub back_off_seconds: f64,
    /// Seconds that ranks get to save themselves when the run is stopped
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub grace_seconds: u64,
    /// What each rank runs: a verb of marquee with its arguments, or a program
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Runs the ranks to their end.
///
/// # Errors
/// If they cannot be started, or fail more often than they may; [`cli::Preempted`] if they were
/// stopped and saved themselves.
pub fn run(verb: &LaunchVerb) -> anyhow::Result<()> {
    let LaunchVerb::Run(args) = verb;
    check(args)?;
    let command = Target::find(&args.command)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watching for signals")?;
    }
    let back_off = Duration::try_from_secs_f64(args.back_off_seconds)
        .map_err(|error| cli::Usage(format!("--back-off-seconds: {error}")))?;
    let (mut nproc, mut failures, mut pause) = (args.nproc, 0, back_off);
    for restart in 0.. {
        let place = Place {
            args,
            nproc,
            restart,
            port: port(args)?,
        };
        let started = Instant::now();
        let mut ranks = Ranks::start(&command, &place)?;
        let (rank, why) = match ranks.watch(&stop, Duration::from_secs(args.grace_seconds)) {
            Ended::Done => return Ok(()),
            Ended::Preempted => {
                let saved = "its newest checkpoint".to_owned();
                return Err(cli::Preempted { saved }.into());
            }
            Ended::Failed { rank, why, .. } if stop.load(Ordering::Relaxed) => {
                bail!("rank {rank} {why} while the run was being stopped")
            }
            Ended::Failed {
                rank,
                why,
                code: Some(exit::USAGE),
            } => return Err(cli::Usage(format!("rank {rank} {why}")).into()),
            Ended::Failed { rank, why, .. } => (rank, why),
        };
        ensure!(
            restart < args.max_restarts,
            "rank {rank} {why}, after {restart} restarts (--max-restarts)"
        );
        if started.elapsed() > pause {
            (failures, pause) = (0, back_off);
        }
        failures += 1;
        if failures >= PATIENCE && args.min_nproc.is_some_and(|least| least < nproc) {
            nproc -= 1;
            failures = 0;
        }
        say(&format!(
            "rank {rank} {why}; restart {} of {} with {nproc} ranks in {:.1} s",
            restart + 1,
            args.max_restarts,
            pause.as_secs_f32()
        ));
        wait(pause, &stop);
        pause = (pause * 2).min(LONGEST_BACK_OFF);
    }
    unreachable!("restarts do not end without a return")
}

fn check(args: &RunArgs) -> anyhow::Result<()> {
    let usage = |text: &str| -> anyhow::Result<()> { Err(cli::Usage(text.to_owned()).into()) };
    if args.nproc == 0 || args.nnodes == 0 {
        return usage("--nproc and --nnodes are at least 1");
    }
    if args.node_rank >= args.nnodes {
        return usage("--node-rank is below --nnodes");
    }
    if args.min_nproc.is_some() && args.nnodes > 1 {
        return usage("--min-nproc is for a single machine: the others would not know");
    }
    if args
        .min_nproc
        .is_some_and(|least| least == 0 || least > args.nproc)
    {
        return usage("--min-nproc is from 1 to --nproc");
    }
    Ok(())
}

/// What every rank runs.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Target {
    /// The program of a verb, or the one that is named.
    fn find(command: &[OsString]) -> anyhow::Result<Self> {
        let name = command[0].to_string_lossy();
        match verbs::find(&name) {
            Some(verb) if verb.program != Program::Launch => Ok(Self {
                program: dispatch::find_program(verb.program)
                    .with_context(|| format!("program `{}` is not there", verb.program.binary()))?,
                arguments: command.to_vec(),
            }),
            Some(_) => Err(cli::Usage(format!("`{name}` runs in one process")).into()),
            None => Ok(Self {
                program: PathBuf::from(&command[0]),
                arguments: command[1..].to_vec(),
            }),
        }
    }
}

/// A free port of this machine, unless one is given.
fn port(args: &RunArgs) -> anyhow::Result<u16> {
    const TORCHRUN: u16 = 29_500;
    match args.master_port {
        Some(port) => Ok(port),
        None if args.nnodes > 1 => Ok(TORCHRUN),
        None => {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            Ok(free.context("finding a free port")?.port())
        }
    }
}

/// Waits, but not longer than until the run is to stop.
fn wait(pause: Duration, stop: &AtomicBool) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        thread::sleep(POLL);
    }
}

/// Where ranks of one attempt stand.
#[derive(Debug)]
struct Place<'a> {
    args: &'a RunArgs,
    nproc: usize,
    restart: u32,
    port: u16,
}

impl Place<'_> {
    /// torchrun's variables for a rank of this machine.
    fn variables(&self, local_rank: usize) -> [(&'static str, String); 11] {
        let Self {
            args,
            nproc,
            restart,
            port,
        } = self;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        [
            ("RANK", (args.node_rank * nproc + local_rank).to_string()),
            ("LOCAL_RANK", local_rank.to_string()),
            ("GROUP_RANK", args.node_rank.to_string()),
            ("WORLD_SIZE", (args.nnodes * nproc).to_string()),
            ("LOCAL_WORLD_SIZE", nproc.to_string()),
            ("MASTER_ADDR", args.master_addr.clone()),
            ("MASTER_PORT", port.to_string()),
            ("TORCHELASTIC_RUN_ID", "marquee".to_owned()),
            ("TORCHELASTIC_RESTART_COUNT", restart.to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", args.max_restarts.to_string()),
            // The ranks share the machine's cores.
            ("RAYON_NUM_THREADS", (cores / nproc).max(1).to_string()),
        ]
    }
}

/// A line of the supervisor's own.
#[expect(
    clippy::print_stderr,
    reason = "the supervisor's lines are for a person"
)]
fn say(line: &str) {
    eprintln!("[launch] {line}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        verb: LaunchVerb,
    }

    fn args(text: &str) -> RunArgs {
        let words = ["launch", "run"].into_iter().chain(text.split_whitespace());
        let LaunchVerb::Run(args) = Cli::parse_from(words).verb;
        args
    }

    #[test]
    fn ranks_of_all_machines_are_numbered_through() {
        let args = args("--nproc 2 --nnodes 3 --node-rank 1 --master-addr head -- train x.toml");
        assert_eq!(args.command, ["train", "x.toml"]);
        let place = Place {
            args: &args,
            nproc: 2,
            restart: 4,
            port: port(&args).unwrap(),
        };
        let variables = BTreeMap::from(place.variables(1));
        for (name, value) in [
            ("RANK", "3"),
            ("LOCAL_RANK", "1"),
            ("WORLD_SIZE", "6"),
            ("MASTER_ADDR", "head"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RESTART_COUNT", "4"),
        ] {
            assert_eq!(variables[name], value, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "--nproc 0 -- train",
            "--nnodes 2 --node-rank 2 -- train",
            "--nnodes 2 --nproc 2 --min-nproc 1 -- train",
            "--nproc 2 --min-nproc 3 -- train",
        ] {
            assert!(check(&args(text)).is_err(), "{text}");
        }
        assert!(Target::find(&["doctor".into()]).is_err());
        let found = Target::find(&["/bin/echo".into(), "train".into()]).unwrap();
        assert_eq!(found.program, PathBuf::from("/bin/echo"));
        assert_eq!(found.arguments, ["train"]);
    }

    fn run_shell(flags: &str, script: &str) -> anyhow::Result<()> {
        let mut args = args(&format!("{flags} -- /bin/sh -c"));
        args.command.push(script.into());
        run(&LaunchVerb::Run(args))
    }

    #[test]
    fn a_run_whose_ranks_end_well_ends_well() {
        run_shell(
            "--nproc 3",
            "test $WORLD_SIZE = 3 && test $RANK = $LOCAL_RANK",
        )
        .unwrap();
    }

    #[test]
    fn a_rank_that_fails_at_first_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tried").display().to_string();
        // Rank 1 kills itself the first time; rank 0 would wait for ever.
        let script = format!(
            "if [ $TORCHELASTIC_RESTART_COUNT = 1 ]; then echo $RANK >> {file}; exit 0; fi
             if [ $RANK = 1 ]; then kill -9 $$; fi; exec sleep 1000"
        );
        run_shell("--nproc 2 --max-restarts 1", &script).unwrap();
        let mut ranks: Vec<String> = std::fs::read_to_string(&file)
            .unwrap()
            .lines()
            .map(Into::into)
            .collect();
        ranks.sort();
        assert_eq!(ranks, ["0", "1"]);
    }

    #[test]
    fn the_budget_of_restarts_ends() {
        let error = run_shell("--nproc 2 --max-restarts 1", "exit 7").unwrap_err();
        assert!(
            error.to_string().contains("ended with 7, after 1 restarts"),
            "{error}"
        );
    }

    #[test]
    fn fewer_ranks_are_tried_when_allowed() {
        // Four ranks never work on this machine, three do.
        run_shell("--nproc 4 --min-nproc 2", "test $WORLD_SIZE = 3").unwrap();
    }

    #[test]
    fn usage_errors_are_not_tried_again_and_preemption_is_passed_on() {
        let code = |script: &str| cli::exit_code(&run_shell("--nproc 2", script).unwrap_err());
        assert_eq!(code("exit 2"), exit::USAGE);
        assert_eq!(code("exit 75"), exit::RESUME);
    }
}
