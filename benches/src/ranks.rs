//! Programs that start themselves once for every rank.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::Context;
use trainer::collective::{CollectiveConfig, Membership, Rendezvous};

/// This process's meeting with the other ranks; `None` in the one that has started them, when
/// they are done.
///
/// # Errors
/// If a rank could not be started, did not come, or failed.
pub fn meet(world_size: usize) -> anyhow::Result<Option<Arc<Rendezvous>>> {
    let Some(membership) = start(world_size)? else {
        return Ok(None);
    };
    let met = Rendezvous::join(membership, &CollectiveConfig::default(), "bench")?;
    Ok(Some(met))
}

/// This process's place among the ranks; `None` in the one that has started them, when they are
/// done.
///
/// # Errors
/// If a rank could not be started, or failed.
pub fn start(world_size: usize) -> anyhow::Result<Option<Membership>> {
    if std::env::var_os("WORLD_SIZE").is_some() {
        return Ok(Some(Membership::from_environment()?));
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let ranks = (0..world_size).map(|rank| {
        let output = if rank == 0 {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", world_size.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(output)
            .spawn()
            .context("starting a rank")
    });
    let ranks: Vec<Child> = ranks.collect::<anyhow::Result<_>>()?;
    for mut rank in ranks {
        anyhow::ensure!(rank.wait()?.success(), "a rank failed");
    }
    Ok(None)
}
