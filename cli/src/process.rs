//! Processes that a program starts.

use std::{os::unix::process::CommandExt, process::Command};

use rustix::process::{Signal, set_parent_process_death_signal};

/// What the command starts gets SIGTERM when this process dies, even if it was killed.
pub fn end_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
}
