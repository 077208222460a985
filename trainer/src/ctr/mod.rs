//! Training of click models.
//!
//! [`step`] is one optimisation step, the part that benchmarks measure; [`train`] is the loop
//! around it; [`evaluate`] measures a model; [`verb`] is `marquee train` and `marquee eval`.

mod calibrate;
mod config;
mod evaluate;
mod step;
mod train;
mod verb;

pub use calibrate::fit_calibration;
pub use config::{CtrConfig, TablesConfig, TrainingConfig};
pub use evaluate::{Evaluation, evaluate};
pub use step::{Learner, StepBatch};
pub use train::{Progress, train};
pub use verb::{EvalArgs, run_eval, run_train};
