//! The gate in front of the training table: `marquee events check`.
//!
//! What rows must look like stands beside the event schema (`wire/proto/marquee/events/v1/quality.toml`).
//! A version that passes becomes the good one, which the trainer reads ([`TableQuality`]); one that fails
//! leaves the last good one in its place, with the reason.

use std::{
    collections::HashSet,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type},
};
use features::hash;
use serde::{Deserialize, Serialize};
use wire::quality::{QualityError, TableQuality};

use crate::{
    calendar::day_name,
    process::table::{TableError, TrainingTable},
};

const HOUR_US: f64 = 3.6e9;
const WEEK: i32 = 7;

/// What rows must look like.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityRules {
    /// So many of the newest days are looked at.
    pub days: usize,
    /// Rules of columns.
    #[serde(default)]
    pub column: Vec<ColumnRules>,
    /// How many rows a day may have.
    pub volume: Option<VolumeRules>,
    /// How old the newest row may be.
    pub freshness: Option<FreshnessRules>,
}

/// What a column must look like.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnRules {
    /// The column.
    pub name: String,
    /// Largest share of rows in which a number is missing or not finite, or a text is empty.
    pub nulls: Option<f64>,
    /// Holds every number.
    pub range: Option<[f64; 2]>,
    /// Whether every value stands there once.
    #[serde(default)]
    pub unique: bool,
}

/// Rows of the newest finished day over those of a week before, or of the mean of the days before.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRules {
    /// Least ratio.
    pub least: f64,
    /// Largest ratio.
    pub most: f64,
}

/// How old the newest row may be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessRules {
    /// Its age in hours.
    pub most_hours: f64,
}

/// Why a table could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The rules cannot be read.
    #[error("reading quality rules {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The rules are none.
    #[error("in quality rules {}", path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// Line, key and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A rule of a column that the table does not have, or that has another type.
    #[error("quality rule of column `{column}`: table {} has no such column of {wanted}", table.display())]
    Column {
        /// The column.
        column: String,
        /// The table.
        table: PathBuf,
        /// What the rule is about.
        wanted: &'static str,
    },
    /// The table has no row.
    #[error("table {} has no rows to check: `marquee events process` writes them", path.display())]
    Empty {
        /// The table.
        path: PathBuf,
    },
    /// The table.
    #[error("in the training table")]
    Table(#[from] TableError),
    /// The outcome.
    #[error("keeping the outcome")]
    Outcome(#[from] QualityError),
}

/// One rule and what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub rule: String,
    /// The column; none for a rule of the whole table.
    pub column: Option<String>,
    /// What was found.
    pub found: f64,
    /// What is wanted, in words.
    pub wanted: String,
    /// Whether it holds.
    pub holds: bool,
    /// The first row that breaks it.
    pub example: Option<String>,
}

impl Finding {
    /// In one line.
    pub fn told(&self) -> String {
        let of = self.column.as_ref().map(|name| format!(" of {name}"));
        let example = self.example.as_ref().map(|id| format!(", first in {id}"));
        format!(
            "{}{} is {}, wanted {}{}",
            self.rule,
            of.unwrap_or_default(),
            (self.found * 1e4).round() / 1e4,
            self.wanted,
            example.unwrap_or_default()
        )
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// The version that was checked.
    pub version: u64,
    /// The version to train on now.
    pub good: Option<u64>,
    /// Days that were looked at, the newest last, and their rows.
    pub days: Vec<(String, u64)>,
    /// Every rule.
    pub findings: Vec<Finding>,
}

impl QualityReport {
    /// The rules that are broken.
    pub fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|it| !it.holds)
    }
}

impl QualityRules {
    /// Reads rules.
    ///
    /// # Errors
    /// [`CheckError::Read`], [`CheckError::Rules`].
    pub fn load(path: &Path) -> Result<Self, CheckError> {
        let text = fs::read_to_string(path).map_err(|source| CheckError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| CheckError::Rules {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Checks the newest version of a table as of a time, microseconds since the Unix epoch, and keeps
    /// the outcome beside it.
    ///
    /// # Errors
    /// [`CheckError`]; the last outcome stays.
    pub fn check(&self, path: &Path, now_us: i64) -> Result<QualityReport, CheckError> {
        let (table, _) = TrainingTable::existing(path)?;
        let days: Vec<i32> = table.days()?.into_iter().collect();
        let looked_at = &days[days.len().saturating_sub(self.days.max(1))..];
        let mut columns: Vec<OfColumn> = self.column.iter().map(OfColumn::new).collect();
        let (mut rows, mut newest_us) = (Vec::new(), i64::MIN);
        for day in looked_at {
            let mut count = 0;
            for batch in table.rows(*day)? {
                count += batch.num_rows() as u64;
                let ids = named(&batch, "impression_id", path, "texts")?;
                for column in &mut columns {
                    column.see(&batch, ids, path)?;
                }
                let times = named(&batch, "event_time_us", path, "times")?;
                let times = times.as_primitive::<Int64Type>().values();
                newest_us = times.iter().copied().fold(newest_us, i64::max);
            }
            rows.push((*day, count));
        }
        if rows.iter().all(|(_, count)| *count == 0) {
            let path = path.to_owned();
            return Err(CheckError::Empty { path });
        }
        let mut findings: Vec<Finding> = columns.iter().flat_map(OfColumn::findings).collect();
        findings.extend(self.volume.as_ref().and_then(|rules| volume(rules, &rows)));
        findings.extend(self.freshness.as_ref().map(|rules| {
            let hours = (now_us - newest_us) as f64 / HOUR_US;
            let most = rules.most_hours;
            at_most("age in hours", hours, most, format!("at most {most}"))
        }));

        let version = table.version();
        let failed = findings.iter().filter(|it| !it.holds);
        let failed: Vec<String> = failed.map(Finding::told).collect();
        let good = match failed.is_empty() {
            true => Some(version),
            // One that passed before may not pass by now: it is old.
            false => {
                TableQuality::load(path)?.and_then(|last| last.good.filter(|good| *good < version))
            }
        };
        let outcome = TableQuality {
            good,
            checked: version,
            failed,
        };
        outcome.save(path)?;
        Ok(QualityReport {
            version,
            good,
            days: rows
                .into_iter()
                .map(|(day, count)| (day_name(day), count))
                .collect(),
            findings,
        })
    }
}

/// The newest day may not be finished: the one before it is compared.
fn volume(rules: &VolumeRules, rows: &[(i32, u64)]) -> Option<Finding> {
    let (_, finished) = rows.split_last()?;
    let ((day, count), before) = finished.split_last()?;
    let week_ago = before.iter().find(|(of, _)| *of == day - WEEK);
    let usual = match week_ago {
        Some((_, count)) => *count as f64,
        None if before.is_empty() => return None,
        None => before.iter().map(|(_, count)| *count as f64).sum::<f64>() / before.len() as f64,
    };
    let ratio = *count as f64 / usual;
    Some(finding(
        &format!("volume of {}", day_name(*day)),
        ratio,
        rules.least..=rules.most,
        format!("{} to {}", rules.least, rules.most),
    ))
}

fn finding(rule: &str, found: f64, range: RangeInclusive<f64>, wanted: String) -> Finding {
    Finding {
        rule: rule.to_owned(),
        column: None,
        found,
        wanted,
        holds: range.contains(&found),
        example: None,
    }
}

/// See [`finding`].
fn at_most(rule: &str, found: f64, most: f64, wanted: String) -> Finding {
    finding(rule, found, f64::NEG_INFINITY..=most, wanted)
}

fn named<'a>(
    batch: &'a RecordBatch,
    name: &str,
    table: &Path,
    wanted: &'static str,
) -> Result<&'a ArrayRef, CheckError> {
    let missing = || CheckError::Column {
        column: name.to_owned(),
        table: table.to_owned(),
        wanted,
    };
    batch.column_by_name(name).ok_or_else(missing)
}

/// What was seen of a column so far.
struct OfColumn<'a> {
    rules: &'a ColumnRules,
    rows: u64,
    nulls: u64,
    outside: u64,
    repeated: u64,
    /// First rows that are null, outside and repeated.
    examples: [Option<String>; 3],
    /// Hashes of values: eight bytes each.
    seen: HashSet<u64>,
}

impl<'a> OfColumn<'a> {
    fn new(rules: &'a ColumnRules) -> Self {
        Self {
            rules,
            rows: 0,
            nulls: 0,
            outside: 0,
            repeated: 0,
            examples: [const { None }; 3],
            seen: HashSet::new(),
        }
    }

    fn see(&mut self, batch: &RecordBatch, ids: &ArrayRef, table: &Path) -> Result<(), CheckError> {
        let column = named(batch, &self.rules.name, table, "any type")?;
        let ids = ids.as_string::<i32>();
        let texts = column.as_string_opt::<i32>();
        let numbers = match texts {
            Some(_) => None,
            None => cast(column, &DataType::Float64).ok(),
        };
        let numbers = numbers.as_ref().map(|it| it.as_primitive::<Float64Type>());
        if self.rules.range.is_some() && numbers.is_none() {
            return Err(self.wrong(table, "numbers"));
        }
        if texts.is_none() && numbers.is_none() {
            return Err(self.wrong(table, "texts or numbers"));
        }
        for row in 0..batch.num_rows() {
            self.rows += 1;
            let text = texts.filter(|it| it.is_valid(row)).map(|it| it.value(row));
            let number = numbers
                .filter(|it| it.is_valid(row))
                .map(|it| it.value(row));
            let null = match (text, number) {
                (Some(text), _) => text.is_empty(),
                (None, Some(number)) => !number.is_finite(),
                (None, None) => true,
            };
            let outside = !null
                && self
                    .rules
                    .range
                    .zip(number)
                    .is_some_and(|([low, high], found)| !(low..=high).contains(&found));
            let value = match (text, number) {
                (Some(text), _) => hash::hash_text(text),
                (None, number) => number.unwrap_or_default().to_bits(),
            };
            let repeated = !null && self.rules.unique && !self.seen.insert(value);
            let counts = [&mut self.nulls, &mut self.outside, &mut self.repeated];
            let found = [null, outside, repeated].into_iter().zip(counts);
            for ((found, count), example) in found.zip(&mut self.examples) {
                *count += u64::from(found);
                if found && example.is_none() {
                    *example = Some(ids.value(row).to_owned());
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, table: &Path, wanted: &'static str) -> CheckError {
        CheckError::Column {
            column: self.rules.name.clone(),
            table: table.to_owned(),
            wanted,
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let [null, outside, repeated] = &self.examples;
        let of = |made: Finding, example: &Option<String>| Finding {
            column: Some(self.rules.name.clone()),
            example: example.clone().filter(|_| !made.holds),
            ..made
        };
        let mut findings = Vec::new();
        if let Some(most) = self.rules.nulls {
            let share = self.nulls as f64 / self.rows.max(1) as f64;
            let made = at_most("share of nulls", share, most, format!("at most {most}"));
            findings.push(of(made, null));
        }
        if let Some([low, high]) = self.rules.range {
            let wanted = format!("every row within {low} to {high}");
            let made = at_most("rows outside the range", self.outside as f64, 0.0, wanted);
            findings.push(of(made, outside));
        }
        if self.rules.unique {
            let wanted = "none".to_owned();
            let made = at_most("repeated values", self.repeated as f64, 0.0, wanted);
            findings.push(of(made, repeated));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float32Array, StringArray};

    use super::*;

    fn shipped() -> PathBuf {
        let path = "../wire/proto/marquee/events/v1/quality.toml";
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    fn found(rules: &ColumnRules, texts: &[&str], numbers: &[f32]) -> Vec<Finding> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..numbers.len()).map(|row| format!("row{row}")),
        ));
        let columns: [(&str, ArrayRef); 2] = [
            ("text", Arc::new(StringArray::from(texts.to_vec()))),
            ("number", Arc::new(Float32Array::from(numbers.to_vec()))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut column = OfColumn::new(rules);
        // In two parts, as files are.
        for (from, rows) in [(0, 2), (2, numbers.len() - 2)] {
            let (batch, ids) = (batch.slice(from, rows), ids.slice(from, rows));
            column.see(&batch, &ids, Path::new("table")).unwrap();
        }
        column.findings()
    }

    #[test]
    fn nulls_ranges_and_repetitions_are_counted_over_files_and_the_first_is_named() {
        let rules = |name: &str| ColumnRules {
            name: name.to_owned(),
            nulls: Some(0.1),
            range: (name == "number").then_some([0.0, 1.0]),
            unique: name == "text",
        };
        let (texts, numbers) = (["a", "b", "", "a"], [0.5, f32::NAN, 2.0, 1.0]);
        let told = |name| -> Vec<String> {
            let findings = found(&rules(name), &texts, &numbers);
            assert!(findings.iter().all(|it| !it.holds));
            findings.iter().map(Finding::told).collect()
        };
        let expected = [
            "share of nulls of text is 0.25, wanted at most 0.1, first in row2",
            "repeated values of text is 1, wanted none, first in row3",
        ];
        assert_eq!(told("text"), expected);
        let expected = [
            "share of nulls of number is 0.25, wanted at most 0.1, first in row1",
            "rows outside the range of number is 1, wanted every row within 0 to 1, first in row2",
        ];
        assert_eq!(told("number"), expected);
        let good = found(&rules("number"), &texts, &[0.0, 1.0, 0.3, 0.3]);
        assert!(good.iter().all(|it| it.holds && it.example.is_none()));
    }

    #[test]
    fn a_day_is_compared_with_that_of_a_week_before_or_with_the_mean() {
        let rules = VolumeRules {
            least: 0.5,
            most: 2.0,
        };
        let ratio = |rows: &[(i32, u64)]| volume(&rules, rows).map(|it| (it.found, it.holds));
        assert_eq!(ratio(&[(1, 10)]), None);
        // The newest day goes on.
        assert_eq!(ratio(&[(1, 10), (2, 99)]), None);
        assert_eq!(ratio(&[(1, 10), (2, 4), (3, 0)]), Some((0.4, false)));
        let week = [(1, 4), (2, 100), (8, 6), (9, 1)];
        assert_eq!(ratio(&week), Some((1.5, true)));
    }

    #[test]
    fn rules_are_read_and_a_wrong_key_is_told() {
        let rules = QualityRules::load(&shipped()).unwrap();
        assert!(rules.column.iter().any(|it| it.unique));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "days = 3\n[volume]\nleast = 1.0\nmots = 2.0\n").unwrap();
        let error = QualityRules::load(file.path()).unwrap_err();
        let CheckError::Rules { source, .. } = error else {
            panic!("{error}");
        };
        assert!(source.to_string().contains("mots"), "{source}");
    }
}
