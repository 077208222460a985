//! The features of a spec as SQL, for the engines that compute them at scale.
//!
//! Two tables go in (`super::facts`): `fact_events`, what is counted, and `fact_requests`, what features
//! are wanted for. Out comes one row for each request, with the columns of the training table:
//! `d_<feature>` for numbers, `s_<feature>` for ids. The same event may stand in the table more
//! than once, and its sender's clock may be ahead, as in a log that is delivered at least once.
//!
//! The text is plain SQL: joins, groups and one row number. Where engines differ is [`Engine`].

mod batch;
mod engine;
mod expression;
mod functions;
mod groups;
mod source;

use std::{collections::BTreeMap, fmt::Write};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, FieldRef},
};
pub use batch::{Batch, BatchError};
pub use engine::Engine;
use features::{
    FeatureSet,
    spec::{Feature, Kind},
};
use serde::Serialize;
pub use source::{NoSource, Source};

use self::{
    expression::{Sql, SqlKind, Translation, aggregate, aggregate_column},
    groups::Group,
};
use crate::{
    calendar::HOUR_US,
    facts::{FactEvents, FactRequests},
};

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as Spark and Flink both call it.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A query with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// The query.
    pub query: String,
    /// Whether it is small, and worth keeping instead of computing it when it is looked at.
    pub keep: bool,
}

impl View {
    fn new(name: String, query: String) -> Self {
        Self {
            name,
            query,
            keep: false,
        }
    }
}

/// The computation of all features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Script {
    /// The two tables that go in.
    pub tables: BTreeMap<&'static str, Vec<Column>>,
    /// Statements that make them known, where it was said where they are.
    pub sources: Vec<String>,
    /// Views, each on the two tables and on views before it.
    pub views: Vec<View>,
    /// The result.
    pub select: String,
}

/// Name of a feature's column in results, as in training tables.
pub fn column(feature: &Feature) -> String {
    match feature.kind {
        Kind::Dense => format!("d_{}", feature.name),
        Kind::Sparse => format!("s_{}", feature.name),
    }
}

/// Until when events had to be known to be counted for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// Until the request.
    AtRequest,
    /// What a server knew of: until its online store was made, where one answered the request. A value
    /// whose time to live had passed is its default.
    AsServed,
}

/// The features of a set in an engine's language.
pub fn script(set: &FeatureSet, engine: Engine, knowledge: Knowledge) -> Script {
    let mut views = vec![requests(engine, knowledge), events(engine)];
    let groups = groups::groups(set, engine);
    for group in &groups {
        views.extend(group.views());
    }
    let mut translation = Translation {
        engine,
        spec: set.spec(),
        columns: Default::default(),
    };
    let features = set.spec().features.iter();
    let columns: Vec<String> = features
        .map(|feature| {
            format!(
                "{} AS {}",
                value(&mut translation, feature, knowledge),
                column(feature)
            )
        })
        .collect();
    let joins: String = groups
        .iter()
        .map(|group| {
            let name = group.result();
            format!(" LEFT JOIN {name} ON r.request_id = {name}.request_id")
        })
        .collect();
    let aggregates: String = groups.iter().flat_map(aggregates).collect();
    views.push(View {
        keep: true,
        ..View::new(
            "known".to_owned(),
            format!("SELECT r.*{aggregates} FROM requests r{joins}"),
        )
    });
    let mut from = "known".to_owned();
    for (level, made) in translation.columns.levels().iter().enumerate() {
        let made: String = made
            .iter()
            .map(|(name, text)| format!(", {text} AS {name}"))
            .collect();
        let name = format!("known_{}", level + 1);
        views.push(View::new(
            name.clone(),
            format!("SELECT {from}.*{made} FROM {from}"),
        ));
        from = name;
    }
    let select = format!("SELECT request_id, {} FROM {from}", columns.join(", "));
    let tables = [
        ("fact_events", FactEvents::new(set).finish()),
        ("fact_requests", FactRequests::new(set).finish()),
    ];
    Script {
        tables: tables
            .map(|(name, rows)| (name, table_columns(&rows)))
            .into(),
        sources: Vec::new(),
        views,
        select,
    }
}

impl Script {
    /// With statements for Flink that make the two tables known.
    #[must_use]
    pub fn over(mut self, source: &Source) -> Self {
        let tables = self.tables.iter();
        let statements = tables.map(|(table, columns)| source.statement(table, columns));
        self.sources = statements.collect();
        self
    }
}

fn table_columns(rows: &RecordBatch) -> Vec<Column> {
    let schema = rows.schema();
    let column = |field: &FieldRef| Column {
        name: field.name().clone(),
        kind: match field.data_type() {
            DataType::Boolean => "BOOLEAN",
            DataType::Int64 => "BIGINT",
            DataType::Float64 => "DOUBLE",
            DataType::List(of) if *of.data_type() == DataType::Int64 => "ARRAY<BIGINT>",
            DataType::List(_) => "ARRAY<DOUBLE>",
            _ => "STRING",
        },
    };
    schema.fields().iter().map(column).collect()
}

/// Each request with the hour in which its windows end, and when and in which hour an event had to be
/// known before.
fn requests(engine: Engine, knowledge: Knowledge) -> View {
    let known = match knowledge {
        Knowledge::AtRequest => "r.time_us",
        Knowledge::AsServed => "COALESCE(r.store_as_of_us + 1, r.time_us)",
    };
    let hour = |time: &str| engine.cut_quotient(time, HOUR_US);
    let query = format!(
        "SELECT r.*, {} AS tile, {known} AS known_us, {} AS known_tile FROM fact_requests r",
        hour("r.time_us"),
        hour(known),
    );
    View::new("requests".to_owned(), query)
}

/// Each event once, as it was learnt of first, and not after that.
fn events(engine: Engine) -> View {
    let event_us = "CASE WHEN event_time_us < known_us THEN event_time_us ELSE known_us END";
    let hour = |time: &str| engine.cut_quotient(time, HOUR_US);
    let query = format!(
        "SELECT e.*, {} AS tile, {} AS known_tile FROM (SELECT f.*, {event_us} AS event_us, \
         ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY known_us) AS nth FROM fact_events f) e WHERE nth = 1",
        hour("e.event_us"),
        hour("e.known_us"),
    );
    View {
        keep: true,
        ..View::new("events".to_owned(), query)
    }
}

/// Columns of a group's features, by their own names.
fn aggregates(group: &Group<'_>) -> Vec<String> {
    let (name, mut columns) = (group.result(), Vec::new());
    for feature in &group.features {
        let value = group.value(feature, &name);
        columns.push(format!(", {value} AS {}", aggregate_column(feature)));
    }
    columns
}

/// A feature in its last form.
fn value(translation: &mut Translation<'_>, feature: &Feature, knowledge: Knowledge) -> String {
    let value = match feature.parsed() {
        Some(expression) => translation.expression(&expression),
        None => aggregate(feature),
    };
    match feature.kind {
        Kind::Dense => {
            let default = translation.engine.double(feature.default);
            let value = translation.finished(value, feature).text;
            guarded(feature, knowledge, value, &default)
        }
        Kind::Sparse => {
            let (value, none) = ids(translation, value);
            guarded(feature, knowledge, value, none)
        }
    }
}

/// Ids, and what stands for none.
fn ids(translation: &mut Translation<'_>, value: Sql) -> (String, &'static str) {
    match value.kind {
        SqlKind::Ids => (value.text, translation.engine.no_array()),
        SqlKind::Id => (format!("COALESCE({}, 0)", value.text), "0"),
        _ => {
            let id = translation.hash_of(&value);
            (format!("COALESCE({}, 0)", id.text), "0")
        }
    }
}

/// A value, unless it is withheld or stale.
fn guarded(feature: &Feature, knowledge: Knowledge, value: String, otherwise: &str) -> String {
    let mut conditions = Vec::new();
    if !feature.child_safe {
        conditions.push("personal".to_owned());
    }
    // The spec was checked, so the time to live can be read.
    if let (Knowledge::AsServed, Ok(Some(ttl_us))) = (knowledge, feature.ttl_us()) {
        conditions.push(format!(
            "time_us - COALESCE(store_as_of_us, time_us) <= {ttl_us}"
        ));
    }
    match conditions.is_empty() {
        true => value,
        false => format!(
            "CASE WHEN {} THEN {value} ELSE {otherwise} END",
            conditions.join(" AND ")
        ),
    }
}

impl std::fmt::Display for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (table, columns) in &self.tables {
            let columns = columns
                .iter()
                .map(|column| format!("{} {}", column.name, column.kind));
            writeln!(f, "-- {table} ({})", columns.collect::<Vec<_>>().join(", "))?;
        }
        for statement in &self.sources {
            writeln!(f, "\n{statement};")?;
        }
        for View { name, query, .. } in &self.views {
            writeln!(f, "\nCREATE TEMPORARY VIEW {name} AS\n{query};")?;
        }
        writeln!(f)?;
        f.write_str(&self.select)?;
        f.write_char(';')
    }
}
