//! Training of click models.
//!
//! [`step`] is one optimisation step, the part that benchmarks measure; [`train`] is the loop
//! around it; [`delay`] says how much is known of conversions;
//! [`retrieval`] has two towers tell ads apart; [`evaluate`] measures a model; [`verb`] is `marquee train`
//! and `marquee eval`.

mod ahead;
mod calibrate;
mod check;
mod config;
mod delay;
mod evaluate;
mod moments;
mod retrieval;
mod step;
#[cfg(test)]
mod tests;
mod train;
mod verb;

pub use calibrate::CalibrationMethod;
pub use config::{CtrConfig, GuardConfig, Objective, TablesConfig, TablesError, TrainingConfig};
pub use delay::Delay;
pub use evaluate::{
    ConversionEvaluation, Evaluation, RetrievalEvaluation, evaluate, evaluate_conversions,
    score_all, score_conversions,
};
pub use retrieval::ShownItems;
pub use step::{Groups, Learner, RoutedBatch, Scored, StepBatch, StepLimits, StepOutcome};
pub use train::{Progress, Task, TrainError, Trained, train};
pub use verb::{EvalArgs, run_eval, run_train};
