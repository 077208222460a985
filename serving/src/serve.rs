//! `marquee serve`: runs until it is told to stop.

use std::{fs, path::Path};

use anyhow::Context;
use cli::{CommonArgs, Layout, Loaded, load_config, out};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::ServingConfig,
    server::{Addresses, Server},
};

/// Runs the server on the data folder until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or cannot stop cleanly.
pub async fn run(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded: Loaded<ServingConfig> = load_config(common, Some("configs/serving.toml"))?;
    loaded.config.check()?;
    if common.print(&loaded) {
        return Ok(());
    }
    tracing::info!(config = loaded.resolved, "resolved configuration");
    let layout = Layout::new(common);
    // Before the address is known to anyone, so that no stop goes unheard.
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;

    let server = Server::start(&layout, loaded.config).await?;
    let addresses = server.addresses().clone();
    let path = layout.serving_address();
    cli::write_json(&path, &addresses).with_context(|| format!("writing {}", path.display()))?;
    announce(&addresses, &server, common.json);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: finishing the requests under way");
    forget_address(&path, &addresses);
    server.stop().await
}

fn announce(addresses: &Addresses, server: &Server, as_json: bool) {
    let generation = server.live().load().versions.generation;
    if as_json {
        out!(
            "{}",
            json!({ "grpc": addresses.grpc, "http": addresses.http, "generation": generation })
        );
        return;
    }
    let what = match generation {
        0 => "house ads until a bundle is published".to_owned(),
        generation => format!("bundle generation {generation}"),
    };
    out!(
        "serving {what}: ads on http://{}, metrics on http://{}/metrics",
        addresses.grpc,
        addresses.http
    );
}

/// Removes the address, unless another server has put its own there.
fn forget_address(path: &Path, own: &Addresses) {
    let is_own = fs::read_to_string(path)
        .ok()
        .and_then(|text| serde_json::from_str::<Addresses>(&text).ok())
        .is_some_and(|found| found == *own);
    if is_own && let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "address file cannot be removed");
    }
}
