//! `marquee train configs/ctr.toml` and `marquee eval`.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context, bail};
use cli::{CommonArgs, Layout, Loaded, out, write_text};
use indicatif::ProgressBar;
use models::{Cpu, ctr::CtrModel};
use registry::{Digest, Kind, Registry};
use serde::Serialize;

use super::{
    config::{CtrConfig, Objective},
    delay::Delay,
    evaluate::{
        ConversionEvaluation, Evaluation, RetrievalEvaluation, evaluate, evaluate_conversions,
        score_all, score_conversions,
    },
    retrieval::evaluate_retrieval,
    step::Groups,
    train::{Progress, Task, Trained, train},
};
use crate::{
    backend::{StepBackend, Training},
    checkpoint::Checkpoints,
    collective::{ProcessGroup, Rendezvous, TcpGroup},
    job::{self, Job, Saving, Source, TrainArgs},
    plot::Plot,
    split::Parts,
    table::{Examples, TrainingTable},
    tracking::Run,
};

/// What a training found, for `reports/ctr.json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    test: Evaluation,
    valid_log_loss: f64,
    /// Of two towers.
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_recall_at_10: Option<f64>,
    samples_per_second: f64,
    train_rows: usize,
    table_version: u64,
    seed: u64,
    curve: Vec<CurvePoint>,
    /// `predictions.csv` of the test rows.
    predictions: PathBuf,
    /// The reliability diagram.
    plot: PathBuf,
    artifact: Digest,
}

#[derive(Debug, Serialize)]
struct CurvePoint {
    step: u64,
    loss: f64,
}

/// Trains a click model, together with the other ranks if there are any; rank 0 measures it on
/// the test rows and publishes it.
///
/// # Errors
/// Whatever keeps it from its end; [`cli::Preempted`] if it was stopped and saved itself.
pub async fn run_train(
    common: &CommonArgs,
    loaded: Loaded<CtrConfig>,
    args: &TrainArgs,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    let met = job::meet(&config.collective, &loaded.resolved)?;
    let rank = met.membership.rank;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
        device: args.device.name(),
        world_size: met.membership.world_size,
        tracking: &config.tracking,
        resolved: &loaded.resolved,
    };
    let saving = Saving {
        resume: &args.resume,
        checkpoint: &config.checkpoint,
        computes: computes(config)?,
        met: &met,
    };
    let (mut job, mut checkpoints) =
        Job::start_resumable(common, Kind::Ctr, source, saving).await?;

    let bar = match rank {
        0 => job.bar(job.parts.train.len() * config.training.epochs),
        _ => ProgressBar::hidden(),
    };
    let (mut speed, run) = (0.0, &mut job.run);
    let report = |told: &Progress| {
        if rank == 0 {
            show(told, &bar);
        }
        if let Progress::Steps {
            samples_per_second, ..
        } = told
        {
            speed = *samples_per_second;
        }
        if let Err(error) = note(told, run) {
            tracing::warn!(%error, "metrics not written");
        }
    };
    let stop = job::stop_on_signals()?;
    let task = Task {
        config,
        schema: &job.schema,
        train: &job.parts.train,
        valid: &job.parts.valid,
    };
    let training = OnBackend {
        task,
        met: &met,
        checkpoints: &mut checkpoints,
        stop: &stop,
        report,
    };
    let trained = args.device.train(&met, training)?;
    bar.finish_and_clear();
    match trained {
        Trained::Stopped { step } => Err(job.preempted(step)),
        Trained::Done(model) if rank == 0 => {
            finish(&mut job, config, &model, speed).await?;
            Ok(checkpoints.clear_remote()?)
        }
        Trained::Done(_) => Ok(()),
    }
}

/// All that decides what a run computes: how it is saved and spread does not.
fn computes(config: &CtrConfig) -> anyhow::Result<String> {
    let mut config = config.clone();
    config.checkpoint = Default::default();
    config.collective = Default::default();
    config.tracking = Default::default();
    config.tables.planner = Default::default();
    config.tables.gpu_cache_rows = Default::default();
    config.reader.prefetch_steps = Default::default();
    toml::to_string(&config).context("writing the configuration")
}

fn show(told: &Progress, bar: &ProgressBar) {
    match told {
        Progress::Resumed(resumed) => resumed.show(bar),
        Progress::Steps {
            samples,
            loss,
            step,
            ..
        } => {
            tracing::info!(step, loss, "trained");
            bar.set_position(*samples);
            bar.set_message(format!("loss {loss:.4}"));
        }
        Progress::Skipped {
            step, skipped_loss, ..
        } => {
            bar.println(format!("step {step} skipped: loss {skipped_loss}"));
        }
        Progress::Evaluated { step, valid, .. } => bar.println(held_out("step", *step, valid)),
        Progress::Epoch { epoch, valid, .. } => bar.println(held_out("epoch", *epoch, valid)),
    }
}

fn held_out(what: &str, number: u64, valid: &Evaluation) -> String {
    let auc = valid.auc.unwrap_or(f64::NAN);
    let log_loss = valid.log_loss;
    let mut clicks = format!("{what} {number}: valid AUC {auc:.4}, log loss {log_loss:.4}");
    if let Some(retrieval) = &valid.retrieval {
        clicks += &format!(", recall@10 {:.4}", retrieval.recall_at_10);
    }
    match &valid.conversions {
        None => clicks,
        Some(conversions) => {
            let auc = conversions.auc.unwrap_or(f64::NAN);
            let log_loss = conversions.log_loss;
            format!("{clicks}; of conversions AUC {auc:.4}, log loss {log_loss:.5}")
        }
    }
}

fn note(told: &Progress, run: &mut Run) -> anyhow::Result<()> {
    match told {
        Progress::Resumed(resumed) => return run.rewind(resumed.step, resumed.epoch),
        Progress::Steps {
            step,
            loss,
            gradient_norm,
            samples_per_second,
            ..
        } => run.scalars(
            *step,
            &[
                ("train/loss", *loss),
                ("train/gradient_norm", f64::from(*gradient_norm)),
                ("train/samples_per_second", *samples_per_second),
            ],
        )?,
        Progress::Evaluated {
            step,
            valid,
            tables,
        }
        | Progress::Epoch {
            step,
            valid,
            tables,
            ..
        } => {
            run.scalars(
                *step,
                &[
                    ("valid/auc", valid.auc.unwrap_or(f64::NAN)),
                    ("valid/log_loss", valid.log_loss),
                    ("valid/normalised_entropy", valid.normalised_entropy),
                    ("valid/calibration_ratio", valid.calibration_ratio),
                    ("valid/ece", valid.ece),
                ],
            )?;
            if let Some(conversions) = &valid.conversions {
                let scalars = conversion_metrics(conversions);
                let scalars: Vec<(String, f64)> = scalars
                    .map(|(name, value)| (format!("valid/{name}"), value))
                    .collect();
                let scalars = scalars.iter().map(|(tag, value)| (&**tag, *value));
                run.scalars(*step, &scalars.collect::<Vec<_>>())?;
            }
            if let Some(retrieval) = &valid.retrieval {
                let scalars = retrieval_metrics(retrieval);
                let scalars = scalars.map(|(name, value)| (format!("valid/{name}"), value));
                let scalars = scalars.each_ref().map(|(tag, value)| (&**tag, *value));
                run.scalars(*step, &scalars)?;
            }
            for table in tables {
                let name = |what: &str| format!("tables/{}/{what}", table.table);
                let counts = table.counts;
                let scalars = [
                    (name("used"), table.used),
                    (name("candidates"), table.candidates),
                    (name("admitted"), counts.admitted),
                    (name("evicted_by_age"), counts.evicted_by_age),
                    (name("evicted_for_room"), counts.evicted_for_room),
                    (name("seen"), counts.seen),
                    (name("shared"), counts.shared),
                ];
                let scalars = scalars.iter().map(|(tag, count)| (&**tag, *count as f64));
                run.scalars(*step, &scalars.collect::<Vec<_>>())?;
            }
        }
        Progress::Skipped { .. } => {}
    }
    run.log(told)
}

/// Measures a trained model on the test rows and publishes it.
async fn finish(
    job: &mut Job,
    config: &CtrConfig,
    model: &CtrModel<Cpu>,
    speed: f64,
) -> anyhow::Result<()> {
    let lines = job.run.metrics()?;
    let Tested {
        rows,
        scores,
        evaluation,
        conversions,
    } = Tested::of(model, &job.parts)?;
    let predictions = job.run.dir.join("predictions.csv");
    write_text(&predictions, &predictions_csv(&rows, &scores))?;
    if !conversions.is_empty() {
        let path = job.run.dir.join("conversions.csv");
        write_text(&path, &conversions_csv(&rows, &conversions))?;
    }
    let plot = job.run.dir.join("reliability.svg");
    write_text(&plot, &reliability_svg(&evaluation))?;
    model.save(&job.model_dir())?;
    let auc = evaluation.auc.map(|auc| ("auc", auc));
    let metrics = [
        ("log_loss", evaluation.log_loss),
        ("normalised_entropy", evaluation.normalised_entropy),
        ("calibration_ratio", evaluation.calibration_ratio),
        ("ece", evaluation.ece),
    ];
    let of_conversions = evaluation.conversions.iter().flat_map(conversion_metrics);
    let of_conversions: Vec<_> = of_conversions.collect();
    let of_retrieval = evaluation.retrieval.iter().flat_map(retrieval_metrics);
    let of_retrieval: Vec<_> = of_retrieval.collect();
    let metrics = metrics.into_iter().chain(auc).chain(of_conversions);
    let metrics = metrics.chain(of_retrieval);
    let artifact = job.publish(job.features().await?, metrics).await?;
    let what = format!("test of ctr {}", artifact.digest.short());
    let line = format!("{}; {speed:.0} samples/s", told(&evaluation, &what));
    let best = best(&lines, config.training.objective);
    let report = Report {
        test: evaluation,
        valid_log_loss: best.map_or(f64::INFINITY, |best| best.log_loss),
        valid_recall_at_10: best.and_then(|best| best.recall_at_10),
        samples_per_second: speed,
        train_rows: job.parts.train.len(),
        table_version: job.table_version,
        seed: config.seed,
        curve: curve(&lines),
        predictions,
        plot,
        artifact: artifact.digest,
    };
    job.report(&report, &line)
}

fn curve(lines: &[serde_json::Value]) -> Vec<CurvePoint> {
    let point = |line: &serde_json::Value| {
        Some(CurvePoint {
            step: line["step"].as_u64()?,
            loss: line["loss"].as_f64()?,
        })
    };
    lines.iter().filter_map(point).collect()
}

/// Of the measure with the least loss on validation rows.
#[derive(Debug, Clone, Copy)]
struct Best {
    loss: f64,
    /// Of clicks.
    log_loss: f64,
    recall_at_10: Option<f64>,
}

fn best(lines: &[serde_json::Value], objective: Objective) -> Option<Best> {
    let of = |line: &serde_json::Value| {
        let valid = &line["valid"];
        let log_loss = valid["log_loss"].as_f64()?;
        let loss = match objective {
            Objective::CrossEntropy => {
                log_loss + valid["conversions"]["log_loss"].as_f64().unwrap_or(0.0)
            }
            Objective::BatchSoftmax => valid["retrieval"]["loss"].as_f64()?,
        };
        Some(Best {
            loss,
            log_loss,
            recall_at_10: valid["retrieval"]["recall_at_10"].as_f64(),
        })
    };
    let measures = lines.iter().filter_map(of);
    measures.min_by(|one, other| one.loss.total_cmp(&other.loss))
}

/// What a model says of test rows.
struct Tested {
    rows: Examples,
    /// Of clicks.
    scores: Vec<f32>,
    evaluation: Evaluation,
    /// Of each row, with two tasks.
    conversions: Vec<TestedConversion>,
}

/// A conversion after a click, as it is known and predicted.
struct TestedConversion {
    label: f32,
    /// The probability that it would be known by now.
    observed: f32,
    score: f32,
}

impl Tested {
    fn of(model: &CtrModel<Cpu>, parts: &Parts) -> anyhow::Result<Self> {
        if model.num_tasks() == 1 {
            let rows = parts.test.load()?;
            let scores = score_all(model, &rows, false)?;
            let mut evaluation = evaluate(&scores, &rows.clicks, &rows.weights);
            evaluation.retrieval = evaluate_retrieval(model, &rows)?;
            return Ok(Self {
                evaluation,
                rows,
                scores,
                conversions: Vec::new(),
            });
        }
        let rows = parts.test.load_with_outcomes()?;
        // As in training; of a model that does not say it, as the training rows do.
        let delay = match model.delay {
            Some(shipped) => Delay::from(shipped),
            None => Delay::fit(&parts.train, &mut TcpGroup::alone())?,
        };
        let both = score_conversions(model, &rows)?;
        let scores: Vec<f32> = both.iter().map(|[click, _]| *click).collect();
        let (labels, observed) = delay.labels(&rows);
        let (labels, _) = labels.as_chunks::<2>();
        let mut evaluation = evaluate(&scores, &rows.clicks, &rows.weights);
        let measured = evaluate_conversions(&both, labels, &observed, &rows.weights);
        evaluation.conversions = Some(measured);
        let conversions = both.iter().zip(labels).zip(&observed);
        let conversions =
            conversions.map(|(([_, score], [_, label]), observed)| TestedConversion {
                label: *label,
                observed: *observed,
                score: *score,
            });
        Ok(Self {
            conversions: conversions.collect(),
            rows,
            scores,
            evaluation,
        })
    }
}

/// Measures of conversions that there are, by name.
fn conversion_metrics(
    measured: &ConversionEvaluation,
) -> impl Iterator<Item = (&'static str, f64)> + use<> {
    let metrics = [
        ("conversion_auc", measured.auc),
        ("conversion_log_loss", Some(measured.log_loss)),
        ("conversion_calibration_ratio", measured.calibration_ratio),
        ("cvr_auc", measured.cvr_auc),
        ("cvr_calibration_ratio", measured.cvr_calibration_ratio),
    ];
    let known = |(name, value): (&'static str, Option<f64>)| value.map(|value| (name, value));
    metrics.into_iter().filter_map(known)
}

/// Measures of retrieval, by name.
fn retrieval_metrics(measured: &RetrievalEvaluation) -> [(&'static str, f64); 4] {
    [
        ("retrieval_loss", measured.loss),
        ("recall_at_1", measured.recall_at_1),
        ("recall_at_10", measured.recall_at_10),
        ("recall_at_100", measured.recall_at_100),
    ]
}

/// The loop on whatever backend.
struct OnBackend<'a, R> {
    task: Task<'a>,
    met: &'a Arc<Rendezvous>,
    checkpoints: &'a mut Checkpoints<TcpGroup>,
    stop: &'a AtomicBool,
    report: R,
}

impl<R: FnMut(&Progress)> Training for OnBackend<'_, R> {
    type Trained = Trained;

    fn on<B: StepBackend, D: ProcessGroup>(
        self,
        device: &B::Device,
        connect: impl Fn(&str) -> anyhow::Result<D>,
    ) -> anyhow::Result<Trained> {
        let mut groups = Groups {
            ids: TcpGroup::connect(self.met, "ids")?,
            rows: connect("rows")?,
            dense: connect("dense")?,
        };
        let Self {
            task,
            checkpoints,
            stop,
            report,
            ..
        } = self;
        Ok(train::<B, _, _>(
            task,
            device,
            &mut groups,
            checkpoints,
            stop,
            report,
        )?)
    }
}

fn predictions_csv(rows: &Examples, scores: &[f32]) -> String {
    let mut text = "impression_id,label,score\n".to_owned();
    for ((id, label), score) in rows.impression_ids.iter().zip(&rows.clicks).zip(scores) {
        text += &format!("{id},{label},{score}\n");
    }
    text
}

fn conversions_csv(rows: &Examples, conversions: &[TestedConversion]) -> String {
    let mut text = "impression_id,click,label,observed,score\n".to_owned();
    let clicked = rows.impression_ids.iter().zip(&rows.clicks);
    for ((id, click), conversion) in clicked.zip(conversions) {
        let TestedConversion {
            label,
            observed,
            score,
        } = conversion;
        text += &format!("{id},{click},{label},{observed},{score}\n");
    }
    text
}

fn reliability_svg(evaluation: &Evaluation) -> String {
    let points: Vec<(f64, f64)> = evaluation
        .reliability
        .iter()
        .map(|bin| (bin.mean_predicted, bin.mean_observed))
        .collect();
    let plot = Plot {
        title: "Reliability on the test rows",
        x: "predicted click rate",
        y: "observed click rate",
        points: &points,
        diagonal: true,
        dots: true,
    };
    plot.to_svg()
}

fn told(evaluation: &Evaluation, what: &str) -> String {
    let mut clicks = format!(
        "{what}: AUC {:.4}, log loss {:.4}, normalised entropy {:.4}, calibration ratio {:.3}, ECE {:.4}, {} rows",
        evaluation.auc.unwrap_or(f64::NAN),
        evaluation.log_loss,
        evaluation.normalised_entropy,
        evaluation.calibration_ratio,
        evaluation.ece,
        evaluation.rows,
    );
    if let Some(retrieval) = &evaluation.retrieval {
        clicks += &format!(
            "\nits vectors: recall@1 {:.4}, @10 {:.4}, @100 {:.4} of {} clicks among {} ads",
            retrieval.recall_at_1,
            retrieval.recall_at_10,
            retrieval.recall_at_100,
            retrieval.queries,
            retrieval.items,
        );
    }
    let Some(conversions) = &evaluation.conversions else {
        return clicks;
    };
    let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
    format!(
        "{clicks}\nits conversions: AUC {:.4}, log loss {:.5}, calibration ratio {:.3}; after a click AUC {:.4}, calibration ratio {:.3}, uncalibrated; {} known, {:.1} % of all that will be",
        or_nan(conversions.auc),
        conversions.log_loss,
        or_nan(conversions.calibration_ratio),
        or_nan(conversions.cvr_auc),
        or_nan(conversions.cvr_calibration_ratio),
        conversions.known,
        100.0 * conversions.observed,
    )
}

/// `marquee eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Flags that all verbs share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Digest of the model; by default the newest
    #[arg(long)]
    pub model: Option<Digest>,
    /// Also write what it says of each test row here, as `marquee world judge --predictions` reads it
    #[arg(long, value_name = "CSV")]
    pub predictions: Option<PathBuf>,
}

/// Measures a registered click model on the test rows of a training configuration.
///
/// # Errors
/// Whatever keeps it from its end.
pub async fn run_eval(args: &EvalArgs, config: &CtrConfig) -> anyhow::Result<()> {
    let layout = Layout::new(&args.common);
    let registry = Registry::open(&layout.registry())?;
    let digest = match &args.model {
        Some(digest) => digest.clone(),
        None => registry.newest(Kind::Ctr).await?.digest,
    };
    let model = CtrModel::load(&registry.fetch(&digest).await?)?;
    let table = TrainingTable::open(&layout.table(&config.table)).await?;
    if model.schema().digest != table.schema().digest {
        bail!(
            "model {} takes the features of spec {}, and table {} holds those of {}: train on this table first",
            digest.short(),
            model.schema().digest,
            config.table,
            table.schema().digest
        );
    }
    let parts = config.split.parts(&table.rows()?)?;
    let tested = Tested::of(&model, &parts)?;
    if let Some(path) = &args.predictions {
        write_text(path, &predictions_csv(&tested.rows, &tested.scores))?;
    }
    let evaluation = tested.evaluation;
    if args.common.json {
        out!("{}", serde_json::to_string(&evaluation)?);
    } else {
        out!("{}", told(&evaluation, &format!("ctr {}", digest.short())));
    }
    Ok(())
}
