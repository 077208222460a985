//! A model's predictions against the truth.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::measure::{auc, calibration_ratio, expected_auc_of, log_loss};

/// How good a model is, and how good it could be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Rows judged.
    pub rows: usize,
    /// AUC of the model on the labels.
    pub auc: f64,
    /// AUC of the true probabilities on the same labels: the best possible.
    pub auc_best: f64,
    /// AUC to expect of the model over draws of the labels.
    pub auc_expected: f64,
    /// How far the model has come from chance to the best possible, by expected AUC.
    pub way: f64,
    /// Sum of predictions over clicks.
    pub calibration_ratio: f64,
    /// The same of the true probabilities.
    pub calibration_best: f64,
    /// Log loss of the model, nats.
    pub log_loss: f64,
    /// Log loss of the true probabilities, nats.
    pub log_loss_best: f64,
}

/// Joins `predictions` (`impression_id,label,score`) with `truth` (`impression_id,p_click,…`).
///
/// # Errors
/// When a file is missing, a line is not as it should be, or an impression has no truth.
pub fn judge(predictions: &Path, truth: &Path) -> anyhow::Result<Judgement> {
    let truth_text = read(truth)?;
    let mut known: HashMap<&str, f64> = HashMap::new();
    for (line, [id, p_click, _]) in rows(&truth_text, truth)? {
        known.insert(id, number(p_click, truth, line)?);
    }
    let text = read(predictions)?;
    let (mut scores, mut labels, mut truths) = (Vec::new(), Vec::new(), Vec::new());
    for (line, [id, label, score]) in rows(&text, predictions)? {
        let Some(p_click) = known.get(id) else {
            bail!(
                "{} line {line}: impression {id} is not in {}",
                predictions.display(),
                truth.display()
            );
        };
        labels.push(number(label, predictions, line)?);
        scores.push(number(score, predictions, line)?);
        truths.push(*p_click);
    }
    let one_sided = || {
        format!(
            "{} has no clicks, or nothing but clicks",
            predictions.display()
        )
    };
    let auc_of = |scores: &[f64]| auc(scores, &labels).with_context(one_sided);
    let expected = expected_auc_of(&scores, &truths).with_context(one_sided)?;
    let expected_best = expected_auc_of(&truths, &truths).with_context(one_sided)?;
    Ok(Judgement {
        rows: labels.len(),
        auc: auc_of(&scores)?,
        auc_best: auc_of(&truths)?,
        auc_expected: expected,
        way: (expected - 0.5) / (expected_best - 0.5),
        calibration_ratio: calibration_ratio(&scores, &labels),
        calibration_best: calibration_ratio(&truths, &labels),
        log_loss: log_loss(&scores, &labels),
        log_loss_best: log_loss(&truths, &labels),
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Lines of three fields after the header, with their numbers.
fn rows<'a>(text: &'a str, path: &Path) -> anyhow::Result<Vec<(usize, [&'a str; 3])>> {
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        match fields.try_into() {
            Ok(fields) => rows.push((at + 1, fields)),
            Err(_) => bail!(
                "{} line {}: wanted three fields, found `{line}`",
                path.display(),
                at + 1
            ),
        }
    }
    Ok(rows)
}

/// A probability or a label: 0 to 1.
fn number(text: &str, path: &Path, line: usize) -> anyhow::Result<f64> {
    match text.parse() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => bail!(
            "{} line {line}: `{text}` is not a number from 0 to 1",
            path.display()
        ),
    }
}
