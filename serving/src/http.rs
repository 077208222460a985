//! The side port: metrics, health, and what is loaded.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;

use crate::{bundle::Fault, service::Shared};

/// The routes of the side port.
pub fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/debug/bundle", get(bundle))
        .with_state(shared)
}

/// Whether requests should be sent here: a bundle serves, or house ads are good enough.
pub fn is_ready(shared: &Shared) -> bool {
    shared.config.accept_degraded || shared.live.load().bundle.is_some()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (format, shared.metrics.text())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if is_ready(&shared) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no bundle is loaded\n")
    }
}

async fn bundle(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let snapshot = shared.live.load();
    let bundle = snapshot.bundle.as_ref();
    let faults = bundle.map_or(&[][..], |bundle| &bundle.faults);
    let text = json!({
        "bundle": snapshot.versions.bundle_digest,
        "generation": snapshot.versions.generation,
        "members": snapshot.versions.artifact_digests,
        "ads": bundle.map(|bundle| bundle.ads.ads.len()),
        "campaigns": bundle.map(|bundle| bundle.ads.campaigns.len()),
        "left_out": bundle.map(|bundle| bundle.ads.left_out),
        "faults": faults.iter().map(Fault::describe).collect::<Vec<_>>(),
    });
    let format = [(header::CONTENT_TYPE, "application/json")];
    (format, format!("{text}\n"))
}
