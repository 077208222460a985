//! `marquee train configs/ctr.toml` and `marquee eval`.

use anyhow::bail;
use burn::backend::Autodiff;
use cli::{CommonArgs, Layout, Loaded, out, write_text};
use models::{Cpu, ctr::CtrModel};
use registry::{Digest, Kind, Registry};
use serde::Serialize;

use super::{
    config::CtrConfig,
    evaluate::{Evaluation, evaluate, score_all},
    train::{Progress, train},
};
use crate::{
    job::{Job, Source},
    plot::Plot,
    table::{Examples, TrainingTable},
};

/// What a training found, for `reports/ctr.json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    test: Evaluation,
    valid_log_loss: f64,
    samples_per_second: f64,
    train_rows: usize,
    table_version: u64,
    seed: u64,
    curve: Vec<CurvePoint>,
    /// `predictions.csv` of the test rows.
    predictions: std::path::PathBuf,
    /// The reliability diagram.
    plot: std::path::PathBuf,
    artifact: Digest,
}

#[derive(Debug, Serialize)]
struct CurvePoint {
    step: usize,
    loss: f64,
}

/// Trains a click model, measures it on the test rows and publishes it.
///
/// # Errors
/// Whatever keeps it from its end.
pub async fn run_train(
    common: &CommonArgs,
    loaded: Loaded<CtrConfig>,
    device: &str,
) -> anyhow::Result<()> {
    let config = &loaded.config;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
    };
    let mut job = Job::start(common, Kind::Ctr, &loaded.resolved, source).await?;
    let bar = job.bar(job.parts.train.len() * config.training.epochs);
    let (mut curve, mut speed, mut valid_log_loss) = (Vec::new(), 0.0, f64::INFINITY);
    let report = |told: &Progress| {
        match told {
            Progress::Steps {
                step,
                samples,
                loss,
                samples_per_second,
            } => {
                bar.set_position(*samples as u64);
                bar.set_message(format!("loss {loss:.4}"));
                curve.push(CurvePoint {
                    step: *step,
                    loss: *loss,
                });
                speed = *samples_per_second;
            }
            Progress::Epoch { epoch, valid } => {
                valid_log_loss = valid_log_loss.min(valid.log_loss);
                let auc = valid.auc.unwrap_or(f64::NAN);
                bar.println(format!(
                    "epoch {epoch}: valid AUC {auc:.4}, log loss {:.4}",
                    valid.log_loss
                ));
            }
        }
        if let Err(error) = job.run.log(told) {
            tracing::warn!(%error, "metrics not written");
        }
    };
    let parts = &job.parts;
    let model = on_device(
        device,
        config,
        &job.schema,
        &parts.train,
        &parts.valid,
        report,
    )?;
    bar.finish_and_clear();

    let scores = score_all(&model, &parts.test, false)?;
    let evaluation = evaluate(&scores, &parts.test);
    let predictions = job.run.dir.join("predictions.csv");
    write_text(&predictions, &predictions_csv(&parts.test, &scores))?;
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
    let metrics = metrics.into_iter().chain(auc);
    let artifact = job.publish(job.features().await?, metrics).await?;
    let line = format!(
        "{}; {speed:.0} samples/s",
        told(
            &evaluation,
            &format!("test of ctr {}", artifact.digest.short())
        )
    );
    let report = Report {
        test: evaluation,
        valid_log_loss,
        samples_per_second: speed,
        train_rows: parts.train.len(),
        table_version: job.table_version,
        seed: config.seed,
        curve,
        predictions,
        plot,
        artifact: artifact.digest,
    };
    job.report(&report, &line)
}

/// Trains on the device asked for and brings the model to the CPU.
fn on_device(
    device: &str,
    config: &CtrConfig,
    schema: &features::Schema,
    rows: &Examples,
    valid: &Examples,
    report: impl FnMut(&Progress),
) -> anyhow::Result<CtrModel<Cpu>> {
    match device {
        "cpu" => Ok(train::<Autodiff<Cpu>>(
            config,
            schema,
            rows,
            valid,
            &Default::default(),
            report,
        )?),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let device = Default::default();
            let model = train::<Autodiff<burn::backend::Cuda>>(
                config, schema, rows, valid, &device, report,
            )?;
            let dir = std::env::temp_dir().join(format!("marquee-ctr-{}", std::process::id()));
            model.save(&dir)?;
            let moved = CtrModel::load(&dir);
            std::fs::remove_dir_all(&dir)?;
            Ok(moved?)
        }
        other => bail!(
            "device `{other}` is not in this build: use --device cpu, or build with --features cuda for cuda"
        ),
    }
}

fn predictions_csv(rows: &Examples, scores: &[f32]) -> String {
    let mut text = "impression_id,label,score\n".to_owned();
    for ((id, label), score) in rows.impression_ids.iter().zip(&rows.clicks).zip(scores) {
        text += &format!("{id},{label},{score}\n");
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
    format!(
        "{what}: AUC {:.4}, log loss {:.4}, normalised entropy {:.4}, calibration ratio {:.3}, ECE {:.4}, {} rows",
        evaluation.auc.unwrap_or(f64::NAN),
        evaluation.log_loss,
        evaluation.normalised_entropy,
        evaluation.calibration_ratio,
        evaluation.ece,
        evaluation.rows,
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
    let test = config.split.parts(&table.load()?)?.test;
    let evaluation = evaluate(&score_all(&model, &test, false)?, &test);
    if args.common.json {
        out!("{}", serde_json::to_string(&evaluation)?);
    } else {
        out!("{}", told(&evaluation, &format!("ctr {}", digest.short())));
    }
    Ok(())
}
