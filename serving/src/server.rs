//! A running server: start, addresses, stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use cli::Layout;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch, task, time};
use tonic::transport::{Server as Transport, server::TcpIncoming};
use tonic_health::{ServingStatus, server::HealthReporter};
use wire::{FILE_DESCRIPTOR_SET, ads::ad_service_server::AdServiceServer};

use crate::{
    budgets::Budgets,
    config::ServingConfig,
    http,
    live::{Live, Refresher, Watcher},
    metrics::Metrics,
    served::{EventLog, LogThread},
    service::{Hook, Service, Shared},
};

const SERVICE: &str = "marquee.ads.v1.AdService";

/// Where a running server can be reached; the content of `serving.addr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The ad service, `host:port`.
    pub grpc: SocketAddr,
    /// Metrics and health, `host:port`.
    pub http: SocketAddr,
}

/// A running server. Dropping it without [`Server::stop`] leaves its tasks to their runtime.
pub struct Server {
    addresses: Addresses,
    shared: Arc<Shared>,
    watcher: Watcher,
    log_thread: LogThread,
    stop: watch::Sender<bool>,
    grpc: GrpcTask,
    http: task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Loads the channel's bundle and listens. Without a usable bundle the server runs with house
    /// ads, and takes up the first good one.
    ///
    /// # Errors
    /// If the configuration contradicts itself, an address is taken, or the log or the registry
    /// cannot be used.
    pub async fn start(layout: &Layout, config: ServingConfig) -> anyhow::Result<Self> {
        Self::start_with(layout, config, None).await
    }

    /// As [`Self::start`], with a hook that runs before the stages of each request.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        layout: &Layout,
        config: ServingConfig,
        hook: Option<Hook>,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let config = Arc::new(config);
        let metrics = Metrics::default();
        let live = Live::default();
        let (log, log_thread) = EventLog::start(&layout.log(), &config.log, metrics.clone())
            .context("opening the event log")?;

        let refresher = Refresher::new(live.clone(), layout, config.clone(), metrics.clone())
            .context("preparing to watch the channel")?;
        let refresher = task::spawn_blocking(move || first_look(refresher));
        let refresher = refresher.await.context("loading the first bundle")?;
        let watcher = Watcher::start(refresher).context("starting the watcher")?;

        let shared = Arc::new(Shared {
            live,
            budgets: Budgets::default(),
            config: config.clone(),
            metrics,
            hook,
        });
        let (stop, stopped) = watch::channel(false);
        let (health, grpc_address, grpc) =
            start_grpc(Service::new(shared.clone(), log), &config, stopped.clone()).await?;
        let (http_address, http) = start_http(shared.clone(), &config, stopped.clone()).await?;
        task::spawn(report_health(health, shared.clone(), stopped));
        Ok(Self {
            addresses: Addresses {
                grpc: grpc_address,
                http: http_address,
            },
            shared,
            watcher,
            log_thread,
            stop,
            grpc,
            http,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What serves now.
    pub fn live(&self) -> &Live {
        &self.shared.live
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Takes no new requests, finishes those under way, and writes out the log, whatever else
    /// goes wrong. Streams of reflection that clients hold open are cut off after
    /// `drain_seconds`.
    ///
    /// # Errors
    /// If requests are still under way after `drain_seconds`, or a part of the server panicked.
    pub async fn stop(self) -> anyhow::Result<()> {
        let Self {
            shared,
            watcher,
            log_thread,
            stop,
            grpc,
            http,
            ..
        } = self;
        stop.send_replace(true);
        let drained = drain(grpc, &shared).await;
        http.abort();
        let watcher = task::spawn_blocking(move || drop(watcher)).await;
        let log = task::spawn_blocking(move || log_thread.finish()).await;
        drained?;
        watcher.context("stopping the watcher")?;
        log.context("waiting for the event log")?
            .map_err(|_panic| anyhow::anyhow!("the event log panicked"))
    }
}

/// Waits for the connections to end, and for the requests on them.
async fn drain(mut grpc: GrpcTask, shared: &Shared) -> anyhow::Result<()> {
    let most = Duration::from_secs(shared.config.drain_seconds);
    if let Ok(ended) = time::timeout(most, &mut grpc).await {
        return ended.context("the service panicked")?.context("serving");
    }
    grpc.abort();
    let requests = shared.metrics.in_flight.get();
    if requests > 0 {
        bail!("{requests} requests are still under way after {most:?}");
    }
    tracing::warn!("clients hold streams open, leaving them");
    Ok(())
}

/// The first look: trouble is told, and the server starts all the same.
fn first_look(mut refresher: Refresher) -> Refresher {
    if let Err(error) = refresher.refresh() {
        let error = anyhow::Error::from(error);
        tracing::error!("starting with house ads: {error:#}");
    }
    refresher
}

type GrpcTask = task::JoinHandle<Result<(), tonic::transport::Error>>;

async fn start_grpc(
    service: Service,
    config: &ServingConfig,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<(HealthReporter, SocketAddr, GrpcTask)> {
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on `listen` {}", config.listen))?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("preparing reflection")?;
    let served = Transport::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(AdServiceServer::new(service))
        .serve_with_incoming_shutdown(incoming, until_stopped(stopped));
    Ok((health, address, task::spawn(served)))
}

async fn start_http(
    shared: Arc<Shared>,
    config: &ServingConfig,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, task::JoinHandle<std::io::Result<()>>)> {
    let listener = TcpListener::bind(config.http_listen)
        .await
        .with_context(|| format!("listening on `http_listen` {}", config.http_listen))?;
    let address = listener.local_addr()?;
    let served = axum::serve(listener, http::routes(shared))
        .with_graceful_shutdown(until_stopped(stopped))
        .into_future();
    Ok((address, task::spawn(served)))
}

async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // An error means that the server was dropped: then too it is time to go.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Keeps gRPC health in step with readiness; at the end it says so and ends the watches, which
/// would hold their connections open.
async fn report_health(
    mut health: HealthReporter,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) {
    let mut swaps = shared.live.swaps();
    let report = async {
        loop {
            let status = if http::is_ready(&shared) {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            health.set_service_status("", status).await;
            health.set_service_status(SERVICE, status).await;
            if swaps.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = report => {}
        () = until_stopped(stopped) => {}
    }
    for service in ["", SERVICE] {
        let status = ServingStatus::NotServing;
        health.set_service_status(service, status).await;
        health.clear_service_status(service).await;
    }
}
