//! Trains the pre-scorer with LightGBM on the dense features, on clicks or on what a click model says.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use cli::{CommonArgs, Loaded, Usage, write_text};
use features::Schema;
use lightgbm3::{Booster, Dataset};
use models::{
    ctr::CtrModel,
    metrics::log_loss,
    prescorer::{PreScorer, PreScorerInfo, Trees},
};
use registry::{Digest, Kind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    ctr::{Evaluation, evaluate, score_all},
    job::{Job, Source},
    split::SplitConfig,
    table::Examples,
    tracking::TrackingConfig,
};

/// `configs/prescorer.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreScorerConfig {
    /// Which trainer reads this file: `prescorer`.
    pub kind: String,
    /// Seed of LightGBM's sampling.
    pub seed: u64,
    /// Name of the training table.
    pub table: String,
    /// What is held out.
    pub split: SplitConfig,
    /// Most trees; fewer if the validation loss stops falling.
    pub trees: usize,
    /// Leaves of a tree; more says more and overfits sooner.
    pub leaves: usize,
    /// Step of each tree.
    pub learning_rate: f64,
    /// Fewest rows in a leaf.
    pub min_rows_in_leaf: usize,
    /// Trees without a better validation loss before training ends.
    pub early_stopping_rounds: usize,
    /// Dense features with which a score may only rise (1) or only fall (-1), all else being equal.
    pub monotone: BTreeMap<String, i32>,
    /// What a click model says instead of clicks.
    pub distillation: DistillationConfig,
    /// Most threads of LightGBM; never more than the process has.
    pub threads: usize,
    /// Who else hears of the run.
    pub tracking: TrackingConfig,
}

impl Default for PreScorerConfig {
    fn default() -> Self {
        Self {
            kind: "prescorer".to_owned(),
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            trees: 200,
            leaves: 31,
            learning_rate: 0.05,
            min_rows_in_leaf: 50,
            early_stopping_rounds: 20,
            monotone: BTreeMap::new(),
            distillation: DistillationConfig::default(),
            threads: 2,
            tracking: TrackingConfig::default(),
        }
    }
}

/// Trees that learn from a click model, whose probabilities say more than a click or none. Source:
/// Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillationConfig {
    /// The click model: `newest`, or a digest; empty: clicks alone.
    pub teacher: String,
    /// How much of each label is the model's probability; the rest is the click.
    pub share: f32,
}

impl Default for DistillationConfig {
    fn default() -> Self {
        Self {
            teacher: String::new(),
            share: 1.0,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    test: Evaluation,
    valid_log_loss: f64,
    valid_auc: Option<f64>,
    /// How far the scores are from the teacher's: mean difference of probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_teacher: Option<f64>,
    trees: usize,
    table_version: u64,
    artifact: registry::Digest,
}

/// Trains trees on the dense features of these names and returns LightGBM's model text. The labels
/// are probabilities, of which clicks are two.
///
/// # Errors
/// What LightGBM says.
pub fn fit(
    config: &PreScorerConfig,
    names: &[String],
    train: &Examples,
    valid: &Examples,
) -> Result<String, lightgbm3::Error> {
    let width = train.features.num_dense as i32;
    let dataset = |rows: &Examples, reference: Option<&Dataset>| {
        let values: Vec<f64> = rows
            .features
            .dense
            .iter()
            .map(|value| f64::from(*value))
            .collect();
        let mut dataset = match reference {
            None => Dataset::from_slice(&values, &rows.clicks, width, true)?,
            Some(reference) => Dataset::from_slice_with_reference(
                &values,
                &rows.clicks,
                width,
                true,
                Some(reference),
            )?,
        };
        dataset.set_weights(&rows.weights)?;
        dataset.set_feature_names(names)?;
        Ok::<_, lightgbm3::Error>(dataset)
    };
    let train = dataset(train, None)?;
    let valid = dataset(valid, Some(&train))?;
    let bound = |name: &String| {
        let way = config.monotone.get(name);
        way.map_or("0".to_owned(), i32::to_string)
    };
    let monotone: Vec<String> = names.iter().map(bound).collect();
    let (objective, metric) = match &*config.distillation.teacher {
        "" => ("binary", "binary_logloss"),
        // The same for labels between 0 and 1.
        _ => ("cross_entropy", "cross_entropy"),
    };
    let mut parameters = json!({
        "objective": objective,
        "metric": metric,
        "num_iterations": config.trees,
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "early_stopping_rounds": config.early_stopping_rounds,
        "seed": config.seed,
        "num_threads": config.threads.min(rayon::current_num_threads()),
        "deterministic": true,
        "force_row_wise": true,
        "verbosity": -1,
    });
    if !config.monotone.is_empty() {
        parameters["monotone_constraints"] = monotone.join(",").into();
        // The other methods let a score fall where values are missing.
        parameters["monotone_constraints_method"] = "basic".into();
    }
    Booster::train_with_valid(train, Some(valid), &parameters)?.save_string()
}

struct Teacher {
    digest: Digest,
    model: CtrModel,
}

/// The click model to learn from, if there is to be one.
async fn teacher(config: &PreScorerConfig, job: &Job) -> anyhow::Result<Option<Teacher>> {
    let digest = match &*config.distillation.teacher {
        "" => return Ok(None),
        "newest" => job.registry.newest(Kind::Ctr).await?.digest,
        digest => digest
            .parse()
            .with_context(|| Usage(format!("distillation.teacher is `{digest}`")))?,
    };
    let model = CtrModel::load(&job.registry.fetch(&digest).await?)?;
    if model.schema().digest != job.schema.digest {
        bail!(
            "distillation.teacher {} takes the features of spec {}, and the table holds those of {}: train one on this table first",
            digest.short(),
            model.schema().digest,
            job.schema.digest
        );
    }
    Ok(Some(Teacher { digest, model }))
}

/// Takes a share of each label from what the teacher says.
fn blend(labels: &mut [f32], scores: &[f32], share: f32) {
    for (label, score) in labels.iter_mut().zip(scores) {
        *label += share * (score - *label);
    }
}

fn check(config: &PreScorerConfig, schema: &Schema) -> anyhow::Result<()> {
    for (feature, way) in &config.monotone {
        let known = schema.dense.iter().any(|field| field.name == *feature);
        if !known || ![-1, 0, 1].contains(way) {
            let known: Vec<&str> = schema.dense.iter().map(|field| &*field.name).collect();
            let text = format!(
                "monotone.{feature} is {way}, wanted 1 or -1 for one of {}",
                known.join(", ")
            );
            bail!(Usage(text));
        }
    }
    let DistillationConfig { teacher, share } = &config.distillation;
    if teacher.is_empty() && *share != DistillationConfig::default().share {
        bail!(Usage(format!(
            "distillation.share is {share}, and there is no distillation.teacher to learn from: name one, or leave the share out"
        )));
    }
    if !(0.0..=1.0).contains(share) {
        bail!(Usage(format!(
            "distillation.share is {share}, wanted 0 to 1"
        )));
    }
    Ok(())
}

/// Trains a pre-scorer, measures it on the test rows and publishes it.
///
/// # Errors
/// Whatever keeps it from its end.
pub async fn run_train(common: &CommonArgs, loaded: Loaded<PreScorerConfig>) -> anyhow::Result<()> {
    let config = &loaded.config;
    let source = Source {
        table: &config.table,
        split: &config.split,
        seed: config.seed,
        device: "cpu",
        world_size: 1,
        tracking: &config.tracking,
        resolved: &loaded.resolved,
    };
    let mut job = Job::start(common, Kind::Prescorer, source).await?;
    let parts = &job.parts;
    let mut learnt = [parts.train.load()?, parts.valid.load()?];
    let valid_clicks = learnt[1].clicks.clone();
    let test = parts.test.load()?;
    let schema = &job.schema;
    check(config, schema)?;
    let teacher = teacher(config, &job).await?;
    if let Some(teacher) = &teacher {
        let share = config.distillation.share;
        for rows in &mut learnt {
            let scores = score_all(&teacher.model, rows, false)?;
            blend(&mut rows.clicks, &scores, share);
        }
    }
    let [train, valid] = &learnt;
    let info = PreScorerInfo {
        feature_digest: schema.digest.clone(),
        dense: schema
            .dense
            .iter()
            .map(|field| field.name.clone())
            .collect(),
    };
    let text = fit(config, &info.dense, train, valid).context("training trees with LightGBM")?;
    let dir = job.model_dir();
    PreScorer::save(&dir, &info, &text)?;
    let trees = Trees::parse(&text)?;
    for (tree, scores) in (1..).zip(trees.staged(&valid.features.dense)) {
        let scores: Vec<f32> = scores.iter().map(|score| *score as f32).collect();
        let log_loss = log_loss(&scores, &valid_clicks, &valid.weights);
        job.run.scalars(tree, &[("valid/log_loss", log_loss)])?;
        let line = json!({"step": tree, "valid": {"log_loss": log_loss}});
        job.run.log(&line)?;
    }
    let scorer = PreScorer::load(&dir)?;
    let of_valid = evaluate(
        &scorer.score(&valid.features)?,
        &valid_clicks,
        &valid.weights,
    );
    let scores = scorer.score(&test.features)?;
    let evaluation = evaluate(&scores, &test.clicks, &test.weights);
    let from_teacher = match &teacher {
        None => None,
        Some(teacher) => {
            let wanted = score_all(&teacher.model, &test, false)?;
            let differences = scores.iter().zip(&wanted);
            let sum: f64 = differences
                .map(|(one, other)| f64::from((one - other).abs()))
                .sum();
            Some(sum / scores.len().max(1) as f64)
        }
    };
    let auc = evaluation.auc.map(|auc| ("auc", auc));
    let metrics = [("log_loss", evaluation.log_loss)].into_iter().chain(auc);
    let mut parents = job.features().await?;
    parents.extend(teacher.map(|teacher| teacher.digest));
    let artifact = job.publish(parents, metrics).await?;
    let report = Report {
        test: evaluation,
        valid_log_loss: of_valid.log_loss,
        valid_auc: of_valid.auc,
        from_teacher,
        trees: trees.num_trees(),
        table_version: job.table_version,
        artifact: artifact.digest,
    };
    write_text(&job.run.dir.join("model.txt"), &text)?;
    let line = format!(
        "test of prescorer {}: AUC {:.4}, log loss {:.4}, {} trees",
        report.artifact.short(),
        report.test.auc.unwrap_or(f64::NAN),
        report.test.log_loss,
        report.trees,
    );
    job.report(&report, &line)
}

#[cfg(test)]
mod tests {
    use features::Schema;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rows(count: usize, seed: u64) -> Examples {
        let schema: Schema = serde_json::from_value(json!({
            "digest": "d", "dense": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "sparse": [],
        }))
        .unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = Examples::empty(&schema);
        for _ in 0..count {
            let a: f32 = random.random_range(-1.0..1.0);
            let b = if random.random_bool(0.2) {
                f32::NAN
            } else {
                random.random_range(0.0..9.0)
            };
            let c = if random.random_bool(0.5) {
                0.0
            } else {
                random.random_range(-1.0..1.0)
            };
            rows.features.dense.extend([a, b, c]);
            rows.features.num_rows += 1;
            let click = a > 0.3 || b > 7.0 || (b.is_nan() && c > 0.5);
            rows.clicks
                .push(f32::from(u8::from(click != random.random_bool(0.1))));
            rows.weights.push(1.0);
        }
        rows
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    #[test]
    fn compiled_trees_predict_what_lightgbm_predicts_to_the_bit() {
        let config = PreScorerConfig {
            trees: 60,
            min_rows_in_leaf: 10,
            ..Default::default()
        };
        let text = fit(&config, &names(), &rows(4_000, 1), &rows(1_000, 2)).unwrap();
        assert!(text.contains("feature_names=a b c\n"));
        let test = rows(2_000, 3);
        let values: Vec<f64> = test
            .features
            .dense
            .iter()
            .map(|value| f64::from(*value))
            .collect();
        let expected = Booster::from_string(&text)
            .unwrap()
            .predict(&values, 3, true)
            .unwrap();
        let trees = Trees::parse(&text).unwrap();
        assert!(trees.num_trees() > 20, "{}", trees.num_trees());
        let found = trees.predict(&test.features.dense);
        assert_eq!(found, expected);
        assert_eq!(trees.staged(&test.features.dense).last(), Some(expected));
        assert_eq!(
            trees.staged(&test.features.dense).count(),
            trees.num_trees()
        );
        let scores: Vec<f32> = found.iter().map(|score| *score as f32).collect();
        assert!(evaluate(&scores, &test.clicks, &test.weights).auc.unwrap() > 0.85);
    }

    #[test]
    fn a_score_only_goes_the_way_that_a_feature_is_bound_to() {
        let mut config = PreScorerConfig {
            trees: 60,
            min_rows_in_leaf: 10,
            ..Default::default()
        };
        let (train, valid) = (rows(4_000, 1), rows(1_000, 2));
        let falls = |config: &PreScorerConfig| {
            let text = fit(config, &names(), &train, &valid).unwrap();
            let trees = Trees::parse(&text).unwrap();
            let base = rows(200, 3);
            let at = |a: f32| {
                let mut values = base.features.dense.clone();
                values.chunks_exact_mut(3).for_each(|row| row[0] = a);
                trees.predict(&values)
            };
            let scores: Vec<Vec<f64>> = (-10..=10).map(|at_a| at(at_a as f32 * 0.1)).collect();
            let pairs = scores.windows(2);
            pairs
                .flat_map(|pair| pair[0].iter().zip(&pair[1]))
                .filter(|(low, high)| high < low)
                .count()
        };
        assert!(falls(&config) > 0, "noise makes some fall");
        config.monotone = [("a".to_owned(), 1)].into();
        assert_eq!(falls(&config), 0);
    }

    #[test]
    fn probabilities_as_labels_are_learnt_as_such() {
        let mut config = PreScorerConfig {
            trees: 60,
            min_rows_in_leaf: 10,
            ..Default::default()
        };
        config.distillation.teacher = "newest".to_owned();
        let soft = |seed| {
            let mut rows = rows(4_000, seed);
            let values = rows.features.dense.chunks_exact(3);
            let probabilities = values.map(|row| 0.5 + 0.3 * row[0]);
            rows.clicks = probabilities.collect();
            rows
        };
        let text = fit(&config, &names(), &soft(1), &soft(2)).unwrap();
        let test = soft(3);
        let found = Trees::parse(&text).unwrap().predict(&test.features.dense);
        let differences = found
            .iter()
            .zip(&test.clicks)
            .map(|(one, other)| (one - f64::from(*other)).abs());
        let mean = differences.sum::<f64>() / found.len() as f64;
        assert!(mean < 0.02, "{mean}");
    }

    #[test]
    fn a_share_of_a_label_is_the_teacher_s() {
        let mut labels = [0.0, 1.0];
        blend(&mut labels, &[0.2, 0.6], 0.25);
        assert_eq!(labels, [0.05, 0.9]);
        blend(&mut labels, &[0.2, 0.6], 1.0);
        assert_eq!(labels, [0.2, 0.6]);
    }

    #[test]
    fn a_seed_fixes_the_trees() {
        let config = PreScorerConfig {
            trees: 10,
            ..Default::default()
        };
        let text = || fit(&config, &names(), &rows(1_000, 1), &rows(500, 2)).unwrap();
        assert_eq!(text(), text());
    }
}
