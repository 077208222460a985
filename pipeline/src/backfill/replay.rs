//! The aggregates of a spec from the events that were counted: as if it had been there from the start.

use std::{collections::BTreeMap, fs::File, path::PathBuf};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray},
    datatypes::{Float64Type, Int64Type},
    error::ArrowError,
};
use features::{AdFacts, Aggregates, Counted, FeatureSet, RequestFacts, SourceEvent};
use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError};

use crate::facts::{FactFile, column};

/// Why events could not be counted again.
#[derive(Debug, thiserror::Error)]
#[error("counting the events of {} again", path.display())]
pub struct ReplayError {
    /// The file.
    path: PathBuf,
    /// What Parquet said.
    source: ParquetError,
}

/// Counts the events of some files in the order in which they were counted first.
///
/// `aggregates` are empty, with the horizon of the pipeline.
pub(super) fn replay(
    files: &[FactFile],
    set: &FeatureSet,
    aggregates: &mut Aggregates,
) -> Result<(), ReplayError> {
    let mut by_batch: BTreeMap<u64, Vec<&FactFile>> = BTreeMap::new();
    for file in files {
        by_batch.entry(file.batch).or_default().push(file);
    }
    let ad = AdFacts::in_request(set);
    for files in by_batch.into_values() {
        let mut batches = Vec::new();
        for file in files {
            batches.extend(read(file)?.into_iter().map(|rows| (file, rows)));
        }
        let events: Result<Vec<_>, _> = batches
            .iter()
            .map(|(file, rows)| events(file, rows, set))
            .collect();
        let events = events?;
        let mut order: Vec<(u64, usize, usize)> = Vec::new();
        for (at, of_rows) in events.iter().enumerate() {
            order.extend(
                of_rows
                    .numbers
                    .iter()
                    .enumerate()
                    .map(|(row, number)| (*number, at, row)),
            );
        }
        order.sort_unstable();
        for (_, at, row) in order {
            let (request, counted, has_ad) = events[at].event(row);
            let ad = has_ad.then_some(&ad);
            aggregates.apply(set, &request, ad, counted);
        }
    }
    Ok(())
}

fn read(file: &FactFile) -> Result<Vec<RecordBatch>, ReplayError> {
    let read = || {
        let opened = File::open(&file.path)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(opened)?.build()?;
        let batches: Result<Vec<_>, ArrowError> = reader.collect();
        Ok(batches?)
    };
    read().map_err(|source| ReplayError {
        path: file.path.clone(),
        source,
    })
}

/// The columns of some events.
struct Events<'a> {
    rows: &'a RecordBatch,
    numbers: Vec<u64>,
    sources: Vec<SourceEvent>,
    /// One for each fact that the set binds; none for those that were not kept.
    facts: Vec<Option<&'a StringArray>>,
}

fn events<'a>(
    file: &FactFile,
    rows: &'a RecordBatch,
    set: &FeatureSet,
) -> Result<Events<'a>, ReplayError> {
    let unreadable = |what: &str| ReplayError {
        path: file.path.clone(),
        source: ParquetError::General(what.to_owned()),
    };
    let texts = |name: &str| rows.column_by_name(name).and_then(|it| it.as_string_opt());
    let ids: &StringArray = texts("event_id").ok_or_else(|| unreadable("no texts event_id"))?;
    let names: &StringArray = texts("source").ok_or_else(|| unreadable("no texts source"))?;
    let numbers: Option<Vec<u64>> = ids.iter().map(|id| id?.parse().ok()).collect();
    let source = |name: Option<&str>| {
        SourceEvent::ALL
            .into_iter()
            .find(|it| Some(it.name()) == name)
    };
    let sources: Option<Vec<SourceEvent>> = names.iter().map(source).collect();
    for (name, whole) in [
        ("event_time_us", true),
        ("known_us", true),
        ("amount", false),
    ] {
        let found = rows.column_by_name(name);
        let fits = found.is_some_and(|it| match whole {
            true => it.as_primitive_opt::<Int64Type>().is_some(),
            false => it.as_primitive_opt::<Float64Type>().is_some(),
        });
        if !fits {
            return Err(unreadable(&format!("no numbers {name}")));
        }
    }
    let names = set.fact_names().iter();
    Ok(Events {
        rows,
        numbers: numbers.ok_or_else(|| unreadable("event_id is no number"))?,
        sources: sources.ok_or_else(|| unreadable("source is no event that is counted"))?,
        facts: names.map(|name| texts(&column(name))).collect(),
    })
}

impl Events<'_> {
    fn event(&self, row: usize) -> (RequestFacts, Counted, bool) {
        let texts = self.facts.iter().map(|texts| {
            let texts = (*texts)?;
            texts.is_valid(row).then(|| texts.value(row))
        });
        let flag = |name: &str| {
            let flags = self.rows.column_by_name(name);
            flags
                .and_then(|it| it.as_boolean_opt())
                .is_some_and(|it| it.value(row))
        };
        let time = |name: &str| self.rows[name].as_primitive::<Int64Type>().value(row);
        let counted = Counted {
            source: self.sources[row],
            value: self.rows["amount"].as_primitive::<Float64Type>().value(row),
            event_us: time("event_time_us"),
            known_us: time("known_us"),
        };
        (
            RequestFacts::of_texts(texts, flag("personal")),
            counted,
            flag("has_ad"),
        )
    }
}
