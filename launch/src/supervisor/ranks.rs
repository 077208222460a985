//! The processes of one attempt.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use cli::exit;
use rustix::process::{Pid, Signal, kill_process};

use super::{POLL, Place, Target, say};

/// How an attempt ended.
#[derive(Debug)]
pub enum Ended {
    /// All ranks did their work.
    Done,
    /// The ranks were stopped, and have saved themselves.
    Preempted,
    /// A rank failed first.
    Failed {
        /// Its number.
        rank: usize,
        /// What became of it.
        why: String,
        /// Its exit code, if it ended by itself.
        code: Option<u8>,
    },
}

/// Running ranks; what is left of them is killed when dropped.
#[derive(Debug)]
pub struct Ranks {
    processes: Vec<Process>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Process {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
}

impl Ranks {
    /// Starts all ranks of this machine.
    ///
    /// Rank 0 keeps the standard output of the supervisor, so that it can be piped on; all else
    /// comes with the rank before each line.
    pub fn start(target: &Target, place: &Place<'_>) -> anyhow::Result<Self> {
        let mut ranks = Self {
            processes: Vec::new(),
            readers: Vec::new(),
        };
        for local_rank in 0..place.nproc {
            let rank = place.args.node_rank * place.nproc + local_rank;
            let mut child = command(target, place, local_rank, rank == 0)
                .spawn()
                .with_context(|| format!("starting rank {rank}: {}", target.program.display()))?;
            say(&format!("rank {rank} is process {}", child.id()));
            let streams: [Option<Box<dyn Read + Send>>; 2] = [
                child.stdout.take().map(|stream| Box::new(stream) as _),
                child.stderr.take().map(|stream| Box::new(stream) as _),
            ];
            let readers = streams
                .into_iter()
                .flatten()
                .map(|stream| thread::spawn(move || copy_lines(rank, stream)));
            ranks.readers.extend(readers);
            ranks.processes.push(Process {
                rank,
                child,
                status: None,
            });
        }
        Ok(ranks)
    }

    /// Waits until all ranks have ended. When `stop` is set, or one has failed, they are asked to
    /// end, and after `grace` killed.
    pub fn watch(&mut self, stop: &AtomicBool, grace: Duration) -> Ended {
        let mut failed: Option<usize> = None;
        let mut deadline: Option<Instant> = None;
        loop {
            let ended = self.reap();
            failed = failed.or_else(|| self.culprit(&ended));
            if self
                .processes
                .iter()
                .all(|process| process.status.is_some())
            {
                break;
            }
            let ending = failed.is_some() || stop.load(Ordering::Relaxed);
            match deadline {
                None if ending => {
                    self.signal(Signal::TERM);
                    deadline = Some(Instant::now() + grace);
                }
                Some(at) if Instant::now() >= at => self.signal(Signal::KILL),
                _ => {}
            }
            thread::sleep(POLL);
        }
        for reader in self.readers.drain(..) {
            reader.join().ok();
        }
        self.ended(failed)
    }

    /// Ranks that have ended since the last look.
    fn reap(&mut self) -> Vec<usize> {
        let ended = |process: &mut Process| process.status.is_none() && process.look().is_some();
        let looked = self.processes.iter_mut().enumerate();
        looked
            .filter_map(|(at, process)| ended(process).then_some(at))
            .collect()
    }

    /// Of ranks that ended at the same time, the one that failed first: a rank that was killed
    /// takes those along that lost it.
    fn culprit(&self, ended: &[usize]) -> Option<usize> {
        let failed = |at: &usize| {
            let status = self.processes[*at].status?;
            let failed = !status.success() && code(status) != Some(exit::RESUME);
            failed.then(|| (status.signal().is_none(), *at))
        };
        ended.iter().filter_map(failed).min().map(|(_, at)| at)
    }

    fn ended(&self, failed: Option<usize>) -> Ended {
        if let Some(at) = failed {
            let Process { rank, status, .. } = &self.processes[at];
            // It was seen to end.
            let status = status.unwrap_or_default();
            return Ended::Failed {
                rank: *rank,
                why: describe(status),
                code: code(status),
            };
        }
        let preempted = |process: &Process| process.status.and_then(code) == Some(exit::RESUME);
        match self.processes.iter().any(preempted) {
            true => Ended::Preempted,
            false => Ended::Done,
        }
    }

    fn signal(&mut self, signal: Signal) {
        for process in &mut self.processes {
            // One that has ended is not reaped before the next look, so its number is still its own.
            if process.status.is_none() {
                let pid = i32::try_from(process.child.id())
                    .ok()
                    .and_then(Pid::from_raw);
                pid.map(|pid| kill_process(pid, signal).ok());
            }
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        for process in &mut self.processes {
            process.child.wait().ok();
        }
    }
}

impl Process {
    /// How it ended, if it has. Only a process that was waited for elsewhere cannot be waited for.
    fn look(&mut self) -> Option<ExitStatus> {
        self.status = self.child.try_wait().ok().flatten();
        self.status
    }
}

fn command(target: &Target, place: &Place<'_>, local_rank: usize, first: bool) -> Command {
    let mut command = Command::new(&target.program);
    command.args(&target.arguments);
    for (name, value) in place.variables(local_rank) {
        // Who says how many threads there are has a reason.
        if name != "RAYON_NUM_THREADS" || std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(match first {
        true => Stdio::inherit(),
        false => Stdio::piped(),
    });
    cli::end_with_us(&mut command);
    command
}

/// Copies lines to stderr, each with its rank.
#[expect(clippy::print_stderr, reason = "lines of the ranks are passed on")]
fn copy_lines(rank: usize, stream: impl Read) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .is_ok_and(|bytes| bytes > 0)
    {
        eprintln!(
            "[rank {rank}] {}",
            String::from_utf8_lossy(&line).trim_end()
        );
        line.clear();
    }
}

fn code(status: ExitStatus) -> Option<u8> {
    status.code().and_then(|code| u8::try_from(code).ok())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "has gone".to_owned(),
    }
}
