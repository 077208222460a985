//! Trains the pre-scorer with LightGBM on the dense features.

use anyhow::Context;
use cli::{CommonArgs, Loaded, write_text};
use lightgbm3::{Booster, Dataset};
use models::prescorer::{PreScorer, PreScorerInfo, Trees};
use registry::Kind;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    ctr::{Evaluation, evaluate},
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
    /// Threads of LightGBM.
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
            threads: 2,
            tracking: TrackingConfig::default(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    test: Evaluation,
    trees: usize,
    table_version: u64,
    artifact: registry::Digest,
}

/// Trains trees on the dense features of these names and returns LightGBM's model text.
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
    let parameters = json!({
        "objective": "binary",
        "metric": "binary_logloss",
        "num_iterations": config.trees,
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "early_stopping_rounds": config.early_stopping_rounds,
        "seed": config.seed,
        "num_threads": config.threads,
        "deterministic": true,
        "force_row_wise": true,
        "verbosity": -1,
    });
    Booster::train_with_valid(train, Some(valid), &parameters)?.save_string()
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
    let (train, valid, test) = (parts.train.load()?, parts.valid.load()?, parts.test.load()?);
    let schema = &job.schema;
    let info = PreScorerInfo {
        feature_digest: schema.digest.clone(),
        dense: schema
            .dense
            .iter()
            .map(|field| field.name.clone())
            .collect(),
    };
    let text = fit(config, &info.dense, &train, &valid).context("training trees with LightGBM")?;
    let dir = job.model_dir();
    PreScorer::save(&dir, &info, &text)?;
    let scorer = PreScorer::load(&dir)?;
    let evaluation = evaluate(&scorer.score(&test.features)?, &test.clicks, &test.weights);
    let trees = Trees::parse(&text)?.num_trees();

    let auc = evaluation.auc.map(|auc| ("auc", auc));
    let metrics = [("log_loss", evaluation.log_loss)].into_iter().chain(auc);
    let artifact = job.publish(job.features().await?, metrics).await?;
    let report = Report {
        test: evaluation,
        trees,
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
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= f64::EPSILON,
                "{found} {expected}"
            );
        }
        let scores: Vec<f32> = found.iter().map(|score| *score as f32).collect();
        assert!(evaluate(&scores, &test.clicks, &test.weights).auc.unwrap() > 0.85);
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
