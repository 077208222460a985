//! `marquee train configs/ctr.toml` and `marquee eval`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use burn::backend::Autodiff;
use cli::{CommonArgs, Layout, Loaded, out, progress, write_json, write_text};
use models::{Cpu, ctr::CtrModel};
use registry::{Artifact, Digest, Draft, Kind, Registry};
use serde::Serialize;

use super::{
    config::CtrConfig,
    evaluate::{Evaluation, evaluate, score_all},
    train::{Progress, train},
};
use crate::{
    plot::Plot,
    run::{Run, code_revision},
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
    artifact: Option<Digest>,
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
    let layout = Layout::new(common);
    let config = &loaded.config;
    let table = TrainingTable::open(&layout.table(&config.table)).await?;
    let rows = table.load()?;
    let split = config.split.split(&rows)?;
    let part = |range: std::ops::Range<usize>| rows.gather(&range.collect::<Vec<_>>());
    let (train_rows, valid, test) = (part(split.train), part(split.valid), part(split.test));
    let mut run = Run::start(&layout.runs(), "ctr", &loaded.resolved)?;

    let total = train_rows.len() * config.training.epochs;
    let bar = if common.json {
        indicatif::ProgressBar::hidden()
    } else {
        progress(total as u64, "train ctr")
    };
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
        if let Err(error) = run.log(told) {
            tracing::warn!(%error, "metrics not written");
        }
    };
    let model = on_device(device, config, table.schema(), &train_rows, &valid, report)?;
    bar.finish_and_clear();

    let scores = score_all(&model, &test, false)?;
    let test_evaluation = evaluate(&scores, &test);
    let dir =
        fs::canonicalize(&run.dir).with_context(|| format!("finding {}", run.dir.display()))?;
    let predictions = dir.join("predictions.csv");
    write_text(&predictions, &predictions_csv(&test, &scores))?;
    let plot = dir.join("reliability.svg");
    write_text(&plot, &reliability_svg(&test_evaluation))?;
    let model_dir = dir.join("model");
    model.save(&model_dir)?;
    let registry = Registry::open(&layout.registry())?;
    let artifact = publish(
        &registry,
        &model_dir,
        &test_evaluation,
        table.version(),
        config,
    )
    .await?;
    let report = Report {
        test: test_evaluation,
        valid_log_loss,
        samples_per_second: speed,
        train_rows: train_rows.len(),
        table_version: table.version(),
        seed: config.seed,
        curve,
        predictions,
        plot,
        artifact: Some(artifact.digest.clone()),
    };
    write_json(&dir.join("report.json"), &report)?;
    write_json(&layout.reports().join("ctr.json"), &report)?;
    if common.json {
        out!("{}", serde_json::to_string(&report)?);
    } else {
        print(
            &report.test,
            &format!("test of ctr {}", artifact.digest.short()),
        );
        out!(
            "{:.0} samples/s; run in {}",
            report.samples_per_second,
            run.dir.display()
        );
    }
    Ok(())
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
            fs::remove_dir_all(&dir)?;
            Ok(moved?)
        }
        other => anyhow::bail!(
            "device `{other}` is not in this build: use --device cpu, or build with --features cuda for cuda"
        ),
    }
}

async fn publish(
    registry: &Registry,
    dir: &Path,
    test: &Evaluation,
    table_version: u64,
    config: &CtrConfig,
) -> anyhow::Result<Artifact> {
    let mut metrics = BTreeMap::from([
        ("log_loss".to_owned(), test.log_loss),
        ("normalised_entropy".to_owned(), test.normalised_entropy),
        ("calibration_ratio".to_owned(), test.calibration_ratio),
        ("ece".to_owned(), test.ece),
    ]);
    metrics.extend(test.auc.map(|auc| ("auc".to_owned(), auc)));
    let mut labels = BTreeMap::from([
        ("table".to_owned(), config.table.clone()),
        ("table_version".to_owned(), table_version.to_string()),
        ("seed".to_owned(), config.seed.to_string()),
    ]);
    labels.extend(code_revision().map(|revision| ("code_revision".to_owned(), revision)));
    let features = registry.latest(Kind::Features).await?;
    let parents = features
        .into_iter()
        .map(|artifact| artifact.digest)
        .collect();
    let draft = Draft {
        kind: Kind::Ctr,
        dir: dir.to_owned(),
        parents,
        metrics,
        labels,
    };
    Ok(registry.publish(draft).await?)
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

fn print(evaluation: &Evaluation, what: &str) {
    out!(
        "{what}: AUC {:.4}, log loss {:.4}, normalised entropy {:.4}, calibration ratio {:.3}, ECE {:.4}, {} rows",
        evaluation.auc.unwrap_or(f64::NAN),
        evaluation.log_loss,
        evaluation.normalised_entropy,
        evaluation.calibration_ratio,
        evaluation.ece,
        evaluation.rows,
    );
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
    let rows = table.load()?;
    let test = rows.gather(&config.split.split(&rows)?.test.collect::<Vec<_>>());
    let evaluation = evaluate(&score_all(&model, &test, false)?, &test);
    if args.common.json {
        out!("{}", serde_json::to_string(&evaluation)?);
    } else {
        print(&evaluation, &format!("ctr {}", digest.short()));
    }
    Ok(())
}
