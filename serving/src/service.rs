//! `AdService` over gRPC: admission, deadlines, and errors as status codes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, TryAcquireError},
    task,
    time::timeout_at,
};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use wire::ads::{GetAdsRequest, GetAdsResponse, ad_service_server::AdService};

use crate::{
    budgets::Budgets,
    config::ServingConfig,
    decision::Decision,
    engine,
    live::Live,
    metrics::Metrics,
    request::{self, AdRequest, InvalidRequest},
    served::{Durable, EventLog, LogClosed, Place},
};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client's mistake.
    #[error("invalid request")]
    Invalid(#[from] InvalidRequest),
    /// More requests than the server takes.
    #[error("{max_in_flight} requests are under way, which is the limit: try again later")]
    Overloaded {
        /// The limit.
        max_in_flight: usize,
    },
    /// The event log takes no more.
    #[error("request {request_id} found no place in the event log in time: try again later")]
    LogFull {
        /// The request.
        request_id: String,
    },
    /// The time was up before the work began, or before its events were safe.
    #[error("the deadline of request {request_id} passed {during}")]
    Deadline {
        /// The request.
        request_id: String,
        /// What it was waiting for.
        during: &'static str,
    },
    /// The server is going away.
    #[error("the server is stopping")]
    Stopping,
    /// Our bug: a stage panicked. The log says where.
    #[error("internal error on request {request_id}")]
    Panicked {
        /// The request.
        request_id: String,
    },
}

impl ServeError {
    /// The gRPC code of each error.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Overloaded { .. } | Self::LogFull { .. } => Code::ResourceExhausted,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Stopping => Code::Unavailable,
            Self::Panicked { .. } => Code::Internal,
        }
    }

    /// A short name, for metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Overloaded { .. } => "overloaded",
            Self::LogFull { .. } => "log_full",
            Self::Deadline { .. } => "deadline",
            Self::Stopping => "stopping",
            Self::Panicked { .. } => "panicked",
        }
    }
}

const BEFORE_WORK: &str = "before its work began";

fn late(request_id: &str, during: &'static str) -> ServeError {
    ServeError::Deadline {
        request_id: request_id.to_owned(),
        during,
    }
}

impl From<LogClosed> for ServeError {
    fn from(_: LogClosed) -> Self {
        Self::Stopping
    }
}

impl From<ServeError> for Status {
    fn from(error: ServeError) -> Self {
        let message = match &error {
            ServeError::Invalid(mistake) => mistake.to_string(),
            other => other.to_string(),
        };
        Self::new(error.code(), message)
    }
}

/// Runs before the stages of each request; tests hold requests with it, or break them.
pub type Hook = Arc<dyn Fn(&AdRequest) + Send + Sync>;

/// What every request needs.
pub struct Shared {
    /// What serves now.
    pub live: Live,
    /// Spend of the campaigns.
    pub budgets: Budgets,
    /// How the server is set.
    pub config: Arc<ServingConfig>,
    /// What is counted.
    pub metrics: Metrics,
    /// Runs before the stages, in tests.
    pub hook: Option<Hook>,
}

/// The ad service.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    log: EventLog,
    admission: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

impl Service {
    /// A service that appends to `log`.
    pub fn new(shared: Arc<Shared>, log: EventLog) -> Self {
        let config = &shared.config;
        Self {
            admission: Arc::new(Semaphore::new(config.max_in_flight)),
            workers: Arc::new(Semaphore::new(config.num_workers())),
            shared,
            log,
        }
    }

    async fn answer(
        &self,
        request: Request<GetAdsRequest>,
        arrived: Instant,
    ) -> Result<GetAdsResponse, ServeError> {
        let Shared {
            config, metrics, ..
        } = &*self.shared;
        let _admitted = self.admission.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => ServeError::Overloaded {
                max_in_flight: config.max_in_flight,
            },
            TryAcquireError::Closed => ServeError::Stopping,
        })?;
        metrics.in_flight.inc();
        let _leaves = Leaves(metrics);

        let timeout = grpc_timeout(request.metadata());
        let request = request::check(request.into_inner(), timeout, arrived, &config.limits())?;
        let request_id = request.request_id.clone();
        let deadline = tokio::time::Instant::from_std(request.deadline);

        let place = timeout_at(deadline, self.log.place()).await;
        let place = place.map_err(|_elapsed| ServeError::LogFull {
            request_id: request_id.clone(),
        })??;
        let (decision, durable) = self.work(request, place).await?;
        let durable = timeout_at(deadline, durable.wait()).await;
        durable.map_err(|_elapsed| late(&request_id, "while its events were written"))??;

        let total = arrived.elapsed();
        metrics.note_answer(&decision, total);
        Ok(decision.into_response(request_id, total))
    }

    /// Runs the stages on a thread for heavy work, as many at a time as there are workers. The
    /// events are left in the log there and then: a client that goes away loses none.
    async fn work(
        &self,
        request: AdRequest,
        place: Place,
    ) -> Result<(Decision, Durable), ServeError> {
        let request_id = request.request_id.clone();
        let deadline = tokio::time::Instant::from_std(request.deadline);
        let worker = timeout_at(deadline, self.workers.clone().acquire_owned()).await;
        let worker = worker
            .map_err(|_elapsed| late(&request_id, BEFORE_WORK))?
            .map_err(|_closed| ServeError::Stopping)?;
        let shared = self.shared.clone();
        let done = task::spawn_blocking(move || {
            let _worker = worker;
            if let Some(hook) = &shared.hook {
                hook(&request);
            }
            // The threads may be busy although a worker was free: nobody waits for this any more.
            if Instant::now() >= request.deadline {
                return Err(late(&request.request_id, BEFORE_WORK));
            }
            let snapshot = shared.live.load();
            let mut decision = engine::decide(&snapshot, &request, &shared.budgets, &shared.config);
            let durable = place.leave(std::mem::take(&mut decision.events));
            let budgets = &shared.config.stages;
            let metrics = &shared.metrics;
            metrics.note_work(&decision, |stage| budgets.of(stage));
            Ok((decision, durable))
        });
        done.await.unwrap_or_else(|error| {
            tracing::error!(request_id, %error, "a stage panicked");
            Err(ServeError::Panicked { request_id })
        })
    }
}

#[tonic::async_trait]
impl AdService for Service {
    async fn get_ads(
        &self,
        request: Request<GetAdsRequest>,
    ) -> Result<Response<GetAdsResponse>, Status> {
        let mut outcome = Outcome {
            metrics: &self.shared.metrics,
            name: "cancelled",
        };
        let answer = self.answer(request, Instant::now()).await;
        outcome.name = match &answer {
            Ok(answer) if answer.winners.is_empty() => "empty",
            Ok(_) => "ok",
            Err(error) => error.outcome(),
        };
        Ok(Response::new(answer?))
    }
}

/// Counts how a request ended, also when nobody waited for its end: the client went away, or the
/// time-out of the transport struck first.
struct Outcome<'a> {
    metrics: &'a Metrics,
    name: &'static str,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let requests = &self.metrics.requests;
        requests.with_label_values(&[self.name]).inc();
    }
}

/// Counts a request out, whichever way it ends.
struct Leaves<'a>(&'a Metrics);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// The time-out of the transport: `grpc-timeout`, digits and a unit.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(count.saturating_mul(60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use tokio::sync::mpsc as tokio_mpsc;

    use super::*;
    use crate::served::LogConfig;

    /// A service with house ads and one worker.
    fn service(hook: Option<Hook>) -> (tempfile::TempDir, Service) {
        let root = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let (log, _thread) =
            EventLog::start(root.path(), &LogConfig::default(), metrics.clone()).unwrap();
        let config = ServingConfig {
            workers: 1,
            deadline_ms: 30_000,
            max_deadline_ms: 30_000,
            ..ServingConfig::default()
        };
        let shared = Shared {
            live: Live::default(),
            budgets: Budgets::default(),
            config: Arc::new(config),
            metrics,
            hook,
        };
        (root, Service::new(Arc::new(shared), log))
    }

    fn request(request_id: &str) -> Request<GetAdsRequest> {
        Request::new(GetAdsRequest {
            request_id: request_id.into(),
            context: Some(Default::default()),
            ..GetAdsRequest::default()
        })
    }

    fn count(counters: &prometheus::IntCounterVec, label: &str) -> u64 {
        counters.with_label_values(&[label]).get()
    }

    #[tokio::test]
    async fn a_request_whose_time_is_up_when_its_work_begins_is_refused() {
        let (_root, service) = service(None);
        let mut hasty = request("r1");
        hasty
            .metadata_mut()
            .insert("grpc-timeout", "0n".parse().unwrap());
        let status = service.get_ads(hasty).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains(BEFORE_WORK), "{status}");
        let metrics = &service.shared.metrics;
        assert_eq!(count(&metrics.requests, "deadline"), 1);
        let stages = metrics.stage_seconds.with_label_values(&["rank"]);
        assert_eq!(stages.get_sample_count(), 0);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_counted_and_has_no_answer() {
        let (enter, mut entered) = tokio_mpsc::unbounded_channel();
        let (go_on, may_go) = mpsc::channel();
        let may_go = Mutex::new(may_go);
        let hook: Hook = Arc::new(move |_| {
            enter.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        });
        let (_root, service) = service(Some(hook));
        let mut leaving = service.get_ads(request("r1"));
        tokio::select! {
            _ = &mut leaving => panic!("answered while it was held"),
            _ = entered.recv() => {}
        }
        drop(leaving);
        let metrics = &service.shared.metrics;
        assert_eq!(count(&metrics.requests, "cancelled"), 1);

        // The one worker comes to the second request when it is done with the first.
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        service.get_ads(request("r2")).await.unwrap();
        assert_eq!(count(&metrics.requests, "ok"), 1);
        assert_eq!(count(&metrics.requests, "cancelled"), 1);
        assert_eq!(count(&metrics.degradation, "house_ads"), 1);
        assert_eq!(metrics.in_flight.get(), 0);
    }

    #[test]
    fn each_error_has_its_code_and_says_what_happened() {
        let check = |error: ServeError, code, message: &str| {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, message));
        };
        let request_id = || "r1".to_owned();
        let empty = InvalidRequest::Empty {
            field: "request_id",
            wanted: "an id",
        };
        check(
            empty.into(),
            Code::InvalidArgument,
            "`request_id` is empty: an id",
        );
        check(
            ServeError::Overloaded { max_in_flight: 3 },
            Code::ResourceExhausted,
            "3 requests are under way, which is the limit: try again later",
        );
        check(
            ServeError::LogFull {
                request_id: request_id(),
            },
            Code::ResourceExhausted,
            "request r1 found no place in the event log in time: try again later",
        );
        check(
            ServeError::Deadline {
                request_id: request_id(),
                during: "before its work began",
            },
            Code::DeadlineExceeded,
            "the deadline of request r1 passed before its work began",
        );
        check(
            LogClosed.into(),
            Code::Unavailable,
            "the server is stopping",
        );
        check(
            ServeError::Panicked {
                request_id: request_id(),
            },
            Code::Internal,
            "internal error on request r1",
        );
    }

    #[test]
    fn the_transports_time_out_is_read_in_every_unit() {
        let read = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for broken in ["", "m", "12", "-1S", "1x"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
