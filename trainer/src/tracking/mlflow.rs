//! Sends a run to an MLflow tracking server as it happens, over its REST interface (2.0).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{RunInfo, store::flatten};

/// Where runs are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackingConfig {
    /// An MLflow server, as http://localhost:5000; empty: runs are kept in the data folder alone.
    pub mlflow: String,
    /// The experiment there; empty: `marquee`.
    pub experiment: String,
}

/// Why there is no run on the server.
#[derive(Debug, thiserror::Error)]
pub enum MlflowError {
    /// It does not answer, or what it says is no answer.
    #[error("tracking.mlflow: {what} at {server}: start it, or leave the key empty")]
    Http {
        /// What was tried.
        what: &'static str,
        /// The server.
        server: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// It refuses.
    #[error("tracking.mlflow: {server} refuses {what} with {status}: {said}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The server.
        server: String,
        /// The status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// A file of the run's folder.
    #[error("tracking.mlflow: {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// File with the server's id of a run, in the run's folder.
const ID_FILE: &str = "mlflow.id";

/// Most metrics and parameters that the server takes at once.
const MOST_METRICS: usize = 1000;
const MOST_PARAMS: usize = 100;
/// Longest value of a parameter.
const LONGEST: usize = 500;

/// Messages that wait while the server is slow; then training waits too.
const WAITING: usize = 4096;

const TIMEOUT: Duration = Duration::from_secs(20);

enum Message {
    Metrics(Vec<Value>),
    Finish { files: Vec<PathBuf>, done: bool },
}

/// A thread that sends, so that a slow server does not hold training up.
#[derive(Debug)]
pub struct Sender {
    messages: SyncSender<Message>,
    thread: JoinHandle<()>,
}

/// The server.
struct Client {
    http: reqwest::blocking::Client,
    server: String,
    run: String,
}

impl Sender {
    /// Makes a run on the server, or goes on with the one that a run's folder had before.
    ///
    /// # Errors
    /// [`MlflowError`].
    pub fn start(
        config: &TrackingConfig,
        dir: &Path,
        resolved: &str,
        info: &RunInfo,
    ) -> Result<Self, MlflowError> {
        let (messages, heard) = mpsc::sync_channel(WAITING);
        let (ready, started) = mpsc::channel();
        let (config, dir) = (config.clone(), dir.to_owned());
        let (resolved, info) = (resolved.to_owned(), info.clone());
        // The client waits, which a thread of an asynchronous runtime must not.
        let thread = thread::spawn(
            move || match Client::open(&config, &dir, &resolved, &info) {
                Ok(client) => {
                    // Who started this thread waits for it.
                    let _ = ready.send(Ok(()));
                    client.send_all(&heard);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            },
        );
        match started.recv() {
            Ok(Ok(())) => Ok(Self { messages, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => unreachable!("the thread says how it started before it ends"),
        }
    }

    /// Values of some tags at a step.
    pub fn metrics(&self, step: u64, values: &[(&str, f64)]) {
        let timestamp = now_ms();
        let finite = values.iter().filter(|(_, value)| value.is_finite());
        let metrics = finite.map(|(key, value)| {
            json!({"key": key, "value": value, "timestamp": timestamp, "step": step})
        });
        // The thread ends only after a server that went away, which it has told of.
        let _ = self.messages.send(Message::Metrics(metrics.collect()));
    }

    /// Waits until the server has all, and these files; `done`: the run will not go on.
    pub fn finish(self, files: &[PathBuf], done: bool) {
        let files = files.to_vec();
        let _ = self.messages.send(Message::Finish { files, done });
        drop(self.messages);
        if self.thread.join().is_err() {
            tracing::error!("the thread that sends to MLflow panicked");
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Client {
    fn open(
        config: &TrackingConfig,
        dir: &Path,
        resolved: &str,
        info: &RunInfo,
    ) -> Result<Self, MlflowError> {
        let server = config.mlflow.trim_end_matches('/').to_owned();
        let http = reqwest::blocking::Client::builder()
            .timeout(TIMEOUT)
            .build();
        let http = http.map_err(|source| MlflowError::Http {
            what: "no client",
            server: server.clone(),
            source,
        })?;
        let mut client = Self {
            http,
            server,
            run: String::new(),
        };
        let path = dir.join(ID_FILE);
        if let Ok(id) = fs::read_to_string(&path) {
            client.run = id;
            let again = json!({"run_id": client.run, "status": "RUNNING"});
            client.post("going on with a run", "runs/update", &again)?;
            return Ok(client);
        }
        let name = match &*config.experiment {
            "" => "marquee",
            name => name,
        };
        let experiment = client.experiment(name)?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let mut tags = vec![
            json!({"key": "mlflow.runName", "value": name}),
            json!({"key": "kind", "value": info.kind}),
            json!({"key": "table", "value": info.table}),
            json!({"key": "table_version", "value": info.table_version.to_string()}),
            json!({"key": "features", "value": info.spec}),
            json!({"key": "device", "value": info.device}),
            json!({"key": "world_size", "value": info.world_size.to_string()}),
            json!({"key": "overrides", "value": info.overrides.join(" ")}),
        ];
        tags.extend(
            info.code_revision
                .iter()
                .map(|revision| json!({"key": "mlflow.source.git.commit", "value": revision})),
        );
        let create = json!({
            "experiment_id": experiment,
            "run_name": name,
            "start_time": info.started_us / 1000,
            "tags": tags,
        });
        let made = client.post("making a run", "runs/create", &create)?;
        client.run = made["run"]["info"]["run_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        client.params(resolved)?;
        fs::write(&path, &client.run).map_err(|source| MlflowError::File { path, source })?;
        Ok(client)
    }

    /// The id of an experiment, which is made if need be.
    fn experiment(&self, name: &str) -> Result<String, MlflowError> {
        let what = "looking for the experiment";
        let url = format!("{}/api/2.0/mlflow/experiments/get-by-name", self.server);
        let request = self.http.get(url).query(&[("experiment_name", name)]);
        let found = match self.answer(what, request) {
            Ok(found) => found["experiment"]["experiment_id"].clone(),
            Err(MlflowError::Refused { status: 404, .. }) => {
                let made = json!({"name": name});
                self.post("making an experiment", "experiments/create", &made)?["experiment_id"]
                    .clone()
            }
            Err(error) => return Err(error),
        };
        Ok(found.as_str().unwrap_or_default().to_owned())
    }

    fn params(&self, resolved: &str) -> Result<(), MlflowError> {
        let mut flat = BTreeMap::new();
        // It was written from a configuration just before.
        if let Ok(config) = resolved.parse::<toml::Table>() {
            flatten(&toml::Value::Table(config), "", &mut flat);
        }
        let params: Vec<Value> = flat
            .iter()
            .map(|(key, value)| {
                let value: String = value.trim_matches('"').chars().take(LONGEST).collect();
                json!({"key": key, "value": value})
            })
            .collect();
        for params in params.chunks(MOST_PARAMS) {
            let batch = json!({"run_id": self.run, "params": params});
            self.post("parameters", "runs/log-batch", &batch)?;
        }
        Ok(())
    }

    /// Sends what comes until the run ends; a server that goes away costs its metrics and not the
    /// run.
    fn send_all(&self, heard: &Receiver<Message>) {
        let mut lost = false;
        let mut told = |sent: Result<(), MlflowError>| {
            if let Err(error) = sent {
                if !lost {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "not sent to MLflow; further losses are not told");
                }
                lost = true;
            }
        };
        while let Ok(message) = heard.recv() {
            let mut metrics = Vec::new();
            let mut next = Some(message);
            while let Some(Message::Metrics(more)) = next {
                metrics.extend(more);
                next = match metrics.len() < MOST_METRICS / 2 {
                    true => heard.try_recv().ok(),
                    false => None,
                };
            }
            for metrics in metrics.chunks(MOST_METRICS) {
                let batch = json!({"run_id": self.run, "metrics": metrics});
                told(self.post("metrics", "runs/log-batch", &batch).map(|_| ()));
            }
            if let Some(Message::Finish { files, done }) = next {
                told(self.upload(&files));
                let status = if done { "FINISHED" } else { "KILLED" };
                let mut update = json!({"run_id": self.run, "status": status});
                update["end_time"] = json!(now_ms());
                told(self.post("the end", "runs/update", &update).map(|_| ()));
                return;
            }
        }
        // The run ended without a word: it failed.
        let update = json!({"run_id": self.run, "status": "FAILED", "end_time": now_ms()});
        told(self.post("the end", "runs/update", &update).map(|_| ()));
    }

    /// Puts files among the run's artifacts, through the server.
    fn upload(&self, files: &[PathBuf]) -> Result<(), MlflowError> {
        if files.is_empty() {
            return Ok(());
        }
        let url = format!("{}/api/2.0/mlflow/runs/get", self.server);
        let request = self.http.get(url).query(&[("run_id", &self.run)]);
        let run = self.answer("looking for the run", request)?;
        let uri = run["run"]["info"]["artifact_uri"]
            .as_str()
            .unwrap_or_default();
        // Elsewhere a client would need its own way there.
        let Some(folder) = uri.strip_prefix("mlflow-artifacts:/") else {
            tracing::warn!(
                uri,
                "files are not sent: the server does not serve artifacts"
            );
            return Ok(());
        };
        let folder = folder.trim_start_matches('/');
        for file in files {
            let bytes = fs::read(file).map_err(|source| MlflowError::File {
                path: file.clone(),
                source,
            })?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let url = format!(
                "{}/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}",
                self.server
            );
            self.answer("a file", self.http.put(url).body(bytes))?;
        }
        Ok(())
    }

    fn post(&self, what: &'static str, path: &str, body: &Value) -> Result<Value, MlflowError> {
        let url = format!("{}/api/2.0/mlflow/{path}", self.server);
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json");
        self.answer(what, request.body(body.to_string()))
    }

    fn answer(
        &self,
        what: &'static str,
        request: reqwest::blocking::RequestBuilder,
    ) -> Result<Value, MlflowError> {
        let failed = |source| MlflowError::Http {
            what,
            server: self.server.clone(),
            source,
        };
        let response = request.send().map_err(failed)?;
        let status = response.status();
        let text = response.text().map_err(failed)?;
        if !status.is_success() {
            return Err(MlflowError::Refused {
                what,
                server: self.server.clone(),
                status: status.as_u16(),
                said: text.chars().take(300).collect(),
            });
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}
