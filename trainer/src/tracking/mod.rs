//! What is kept of every run, so that it can be found, compared and made again.
//!
//! [`Run`] is a run's folder while it is written: configuration, circumstances ([`RunInfo`]), metrics
//! over time as JSON lines and for TensorBoard, report and plots. [`store`] reads such folders,
//! [`verbs`] shows them on the terminal and [`page`] as HTML. [`mlflow`] sends the same to a
//! tracking server as it happens.

mod info;
pub mod mlflow;
mod page;
mod run;
mod store;
mod tensorboard;
mod verbs;

pub use info::RunInfo;
pub use mlflow::TrackingConfig;
pub use run::Run;
pub(crate) use run::{REPORT, code_revision};
pub use store::{Recorded, Status};
pub use verbs::{RunsVerb, run_runs};
