//! A model's predictions against the truth.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::{
    generate::TRUTH_COLUMNS,
    measure::{auc, calibration_ratio, expected_auc_of, log_loss},
};

/// Slices with fewer rows are not judged: their truth is known, but nobody's decisions hang on them.
const LEAST_ROWS_OF_A_SLICE: usize = 1_000;

/// Columns of `predictions.csv`.
const PREDICTION_COLUMNS: [&str; 3] = ["impression_id", "label", "score"];

/// Columns of `conversions.csv`.
const CONVERSION_COLUMNS: [&str; 5] = ["impression_id", "click", "label", "observed", "score"];

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
    /// The same of the true probabilities: what is left of chance in so many clicks.
    pub calibration_best: f64,
    /// Sum of predictions over sum of true probabilities: without chance.
    pub calibration_true: f64,
    /// Log loss of the model, nats.
    pub log_loss: f64,
    /// Log loss of the true probabilities, nats.
    pub log_loss_best: f64,
    /// Slices of at least 1,000 rows, by column and value.
    pub slices: Vec<SliceJudgement>,
}

/// How a model is calibrated on a part of the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceJudgement {
    /// What the rows have in common: `column=value`.
    pub slice: String,
    /// Rows.
    pub rows: usize,
    /// Sum of predictions over clicks; none without a click.
    pub calibration_ratio: Option<f64>,
    /// Sum of predictions over sum of true probabilities.
    pub calibration_true: f64,
}

impl Judgement {
    /// The slice that is furthest from its truth, by factor.
    pub fn worst_slice(&self) -> Option<&SliceJudgement> {
        let far = |slice: &SliceJudgement| slice.calibration_true.ln().abs();
        (self.slices.iter()).max_by(|one, other| far(one).total_cmp(&far(other)))
    }
}

/// Joins `predictions` (`impression_id,label,score`) with `truth` (`truth.csv` of a world).
///
/// # Errors
/// When a file is missing, a line is not as it should be, or an impression has no truth.
pub fn judge(predictions: &Path, truth: &Path) -> anyhow::Result<Judgement> {
    let truth_text = read(truth)?;
    let mut known: HashMap<&str, (f64, [&str; 5])> = HashMap::new();
    for (line, [id, p_click, _, slices @ ..]) in rows(&truth_text, truth, TRUTH_COLUMNS)? {
        known.insert(id, (number(p_click, truth, line)?, slices));
    }
    let text = read(predictions)?;
    let (mut scores, mut labels, mut truths) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
    for (line, [id, label, score]) in rows(&text, predictions, PREDICTION_COLUMNS)? {
        let Some((p_click, slices)) = known.get(id) else {
            bail!(unknown(predictions, line, id, truth));
        };
        for (column, value) in slices.iter().enumerate() {
            let part = parts.entry((column, value)).or_default();
            part.push(labels.len());
        }
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
    let large = (parts.iter()).filter(|(_, part)| part.len() >= LEAST_ROWS_OF_A_SLICE);
    let slices = large.map(|((column, value), part)| {
        let of = |values: &[f64]| -> Vec<f64> { part.iter().map(|row| values[*row]).collect() };
        let (scores, labels, truths) = (of(&scores), of(&labels), of(&truths));
        SliceJudgement {
            slice: format!("{}={value}", TRUTH_COLUMNS[3 + column]),
            rows: part.len(),
            calibration_ratio: Some(calibration_ratio(&scores, &labels))
                .filter(|it| it.is_finite()),
            calibration_true: calibration_ratio(&scores, &truths),
        }
    });
    Ok(Judgement {
        rows: labels.len(),
        auc: auc_of(&scores)?,
        auc_best: auc_of(&truths)?,
        auc_expected: expected,
        way: (expected - 0.5) / (expected_best - 0.5),
        calibration_ratio: calibration_ratio(&scores, &labels),
        calibration_best: calibration_ratio(&truths, &labels),
        calibration_true: calibration_ratio(&scores, &truths),
        log_loss: log_loss(&scores, &labels),
        log_loss_best: log_loss(&truths, &labels),
        slices: slices.collect(),
    })
}

/// How near pCVR is to the truth, of the rows that were clicked. Conversions that have not come yet take
/// nothing from it: the truth knows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConversionJudgement {
    /// Rows judged.
    pub clicks: usize,
    /// How far the model has come from chance to the best possible, by expected AUC.
    pub way: f64,
    /// Sum of pCVR over sum of true probabilities.
    pub calibration_true: f64,
    /// Conversions that are known by now over sum of true probabilities: what a model comes to that takes the
    /// others for none.
    pub known: f64,
}

/// Joins `conversions` (`impression_id,click,label,observed,score`) with `truth`.
///
/// # Errors
/// As [`judge`].
pub fn judge_conversions(conversions: &Path, truth: &Path) -> anyhow::Result<ConversionJudgement> {
    let truth_text = read(truth)?;
    let known: HashMap<&str, &str> = rows(&truth_text, truth, TRUTH_COLUMNS)?
        .into_iter()
        .map(|(_, [id, _, p_conversion, ..])| (id, p_conversion))
        .collect();
    let text = read(conversions)?;
    let (mut scores, mut labels, mut truths) = (Vec::new(), Vec::new(), Vec::new());
    for (line, [id, click, label, _, score]) in rows(&text, conversions, CONVERSION_COLUMNS)? {
        let p_conversion = known
            .get(id)
            .with_context(|| unknown(conversions, line, id, truth))?;
        if number(click, conversions, line)? > 0.5 {
            labels.push(number(label, conversions, line)?);
            scores.push(number(score, conversions, line)?);
            truths.push(number(p_conversion, truth, line)?);
        }
    }
    let one_sided = || format!("{} has no two clicks", conversions.display());
    let expected = expected_auc_of(&scores, &truths).with_context(one_sided)?;
    let expected_best = expected_auc_of(&truths, &truths).with_context(one_sided)?;
    Ok(ConversionJudgement {
        clicks: labels.len(),
        way: (expected - 0.5) / (expected_best - 0.5),
        calibration_true: calibration_ratio(&scores, &truths),
        known: calibration_ratio(&labels, &truths),
    })
}

fn unknown(of: &Path, line: usize, id: &str, truth: &Path) -> String {
    format!(
        "{} line {line}: impression {id} is not in {}",
        of.display(),
        truth.display()
    )
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Lines after the header, with their numbers; the header must be `columns`.
fn rows<'a, const N: usize>(
    text: &'a str,
    path: &Path,
    columns: [&str; N],
) -> anyhow::Result<Vec<(usize, [&'a str; N])>> {
    let wanted = columns.join(",");
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if at == 0 {
            if line != wanted {
                bail!(
                    "{} line 1: wanted `{wanted}`, found `{line}`",
                    path.display()
                );
            }
            continue;
        }
        let fields: Vec<&str> = line.split(',').collect();
        match fields.try_into() {
            Ok(fields) => rows.push((at + 1, fields)),
            Err(_) => bail!(
                "{} line {}: wanted {N} fields ({wanted}), found `{line}`",
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
