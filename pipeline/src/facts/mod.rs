//! What features are computed from, as two tables for any engine.
//!
//! | table | a row for each | columns |
//! | --- | --- | --- |
//! | `fact_events` | event that is counted | `event_id`, `source`, `event_time_us`, `known_us`, `amount`, `personal`, `has_ad`, and a text `f_<fact>` for each fact that names an entity or is remembered |
//! | `fact_requests` | row that features are wanted for | `request_id`, `time_us`, `store_as_of_us`, `personal`, and `f_<fact>` for each fact that a feature uses: a text, a double, an array of ids or of doubles |
//!
//! Times are microseconds since the Unix epoch; `known_us` is when the platform learnt of an event. A
//! missing fact is null. `personal` says whether personal features are allowed, `has_ad` whether the
//! event belongs to an ad. `store_as_of_us` says of a row whose features a server logged what had arrived
//! in its online store by then.
//!
//! The pipeline keeps them beside the training table ([`FactFiles`]), with every fact that the spec
//! knows and not only those that its features use: a feature that is thought of later can be computed
//! for what has been (`crate::backfill`).

mod daily;
mod files;

use std::sync::Arc;

use arrow::{
    array::{
        ArrayBuilder, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder,
        RecordBatch, StringBuilder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef},
};
pub(crate) use daily::DailyFacts;
use features::{
    AdFacts, Counted, FeatureSet, RequestFacts, expression::BoundFact, facts::FactType,
};
pub use files::{FactFile, FactFiles, FactTable};

/// Column of a fact in both tables.
pub fn column(fact: &str) -> String {
    format!("f_{fact}")
}

/// A column for a fact.
#[derive(Debug)]
struct FactColumn<B> {
    name: String,
    /// Of the fact, in [`FeatureSet::fact_names`].
    index: usize,
    values: B,
}

/// Builds `fact_events`.
#[derive(Debug)]
pub struct FactEvents {
    ids: StringBuilder,
    sources: StringBuilder,
    event_times: Int64Builder,
    known: Int64Builder,
    amounts: Float64Builder,
    personal: BooleanBuilder,
    has_ad: BooleanBuilder,
    /// Entities are named by texts, and texts are what they remember.
    facts: Vec<FactColumn<StringBuilder>>,
}

impl FactEvents {
    /// No events of a set.
    pub fn new(set: &FeatureSet) -> Self {
        let facts = kinds(set).filter(|(_, _, kind)| *kind == FactType::Text);
        Self {
            ids: StringBuilder::new(),
            sources: StringBuilder::new(),
            event_times: Int64Builder::new(),
            known: Int64Builder::new(),
            amounts: Float64Builder::new(),
            personal: BooleanBuilder::new(),
            has_ad: BooleanBuilder::new(),
            facts: facts
                .map(|(index, name, _)| FactColumn {
                    name: column(name),
                    index,
                    values: StringBuilder::new(),
                })
                .collect(),
        }
    }

    /// Appends an event.
    pub fn push(
        &mut self,
        event_id: &str,
        event: Counted,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
    ) {
        self.ids.append_value(event_id);
        self.sources.append_value(event.source.name());
        self.event_times.append_value(event.event_us);
        self.known.append_value(event.known_us);
        self.amounts.append_value(event.value);
        self.personal.append_value(request.personal_allowed());
        self.has_ad.append_value(ad.is_some());
        for FactColumn { index, values, .. } in &mut self.facts {
            values.append_option(text(request.fact(ad, *index)));
        }
    }

    /// The rows so far.
    pub fn finish(mut self) -> RecordBatch {
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("event_id".to_owned(), Arc::new(self.ids.finish())),
            ("source".to_owned(), Arc::new(self.sources.finish())),
            (
                "event_time_us".to_owned(),
                Arc::new(self.event_times.finish()),
            ),
            ("known_us".to_owned(), Arc::new(self.known.finish())),
            ("amount".to_owned(), Arc::new(self.amounts.finish())),
            ("personal".to_owned(), Arc::new(self.personal.finish())),
            ("has_ad".to_owned(), Arc::new(self.has_ad.finish())),
        ];
        for mut fact in self.facts {
            columns.push((fact.name, Arc::new(fact.values.finish())));
        }
        record_batch(columns)
    }
}

/// Builds `fact_requests`.
#[derive(Debug)]
pub struct FactRequests {
    ids: StringBuilder,
    times: Int64Builder,
    as_of: Int64Builder,
    personal: BooleanBuilder,
    facts: Vec<FactColumn<FactBuilder>>,
}

#[derive(Debug)]
enum FactBuilder {
    Text(StringBuilder),
    Number(Float64Builder),
    List(ListBuilder<Int64Builder>),
    Vector(ListBuilder<Float64Builder>),
}

impl FactBuilder {
    fn new(kind: FactType) -> Self {
        match kind {
            FactType::Text => Self::Text(StringBuilder::new()),
            FactType::Number => Self::Number(Float64Builder::new()),
            FactType::List => Self::List(ListBuilder::new(Int64Builder::new())),
            FactType::Vector => Self::Vector(ListBuilder::new(Float64Builder::new())),
        }
    }

    /// A fact of another type than the column's is missing, as it is to an expression.
    fn push(&mut self, fact: &BoundFact) {
        match self {
            Self::Text(texts) => texts.append_option(text(fact)),
            Self::Number(numbers) => numbers.append_option(match fact {
                BoundFact::Number(number) => Some(*number),
                _ => None,
            }),
            Self::List(lists) => lists.append_option(match fact {
                // Ids are signed in tables.
                BoundFact::List(ids) => Some(ids.iter().map(|id| Some(*id as i64))),
                _ => None,
            }),
            Self::Vector(vectors) => vectors.append_option(match fact {
                BoundFact::Vector(vector) => Some(vector.iter().map(|x| Some(f64::from(*x)))),
                _ => None,
            }),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut texts) => Arc::new(texts.finish()),
            Self::Number(mut numbers) => Arc::new(numbers.finish()),
            Self::List(mut lists) => Arc::new(lists.finish()),
            Self::Vector(mut vectors) => ArrayBuilder::finish(&mut vectors),
        }
    }
}

impl FactRequests {
    /// No requests of a set.
    pub fn new(set: &FeatureSet) -> Self {
        Self {
            ids: StringBuilder::new(),
            times: Int64Builder::new(),
            as_of: Int64Builder::new(),
            personal: BooleanBuilder::new(),
            facts: kinds(set)
                .map(|(index, name, kind)| FactColumn {
                    name: column(name),
                    index,
                    values: FactBuilder::new(kind),
                })
                .collect(),
        }
    }

    /// Appends a request for one ad, made at `time_us`, of whom a server knew what its store had
    /// `store_as_of_us`, if one answered it.
    pub fn push(
        &mut self,
        request_id: &str,
        time_us: i64,
        store_as_of_us: Option<i64>,
        request: &RequestFacts,
        ad: &AdFacts,
    ) {
        self.ids.append_value(request_id);
        self.times.append_value(time_us);
        self.as_of.append_option(store_as_of_us);
        self.personal.append_value(request.personal_allowed());
        for FactColumn { index, values, .. } in &mut self.facts {
            values.push(request.fact(Some(ad), *index));
        }
    }

    /// The rows so far.
    pub fn finish(mut self) -> RecordBatch {
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("request_id".to_owned(), Arc::new(self.ids.finish())),
            ("time_us".to_owned(), Arc::new(self.times.finish())),
            ("store_as_of_us".to_owned(), Arc::new(self.as_of.finish())),
            ("personal".to_owned(), Arc::new(self.personal.finish())),
        ];
        for fact in self.facts {
            columns.push((fact.name, fact.values.finish()));
        }
        record_batch(columns)
    }
}

/// Index, name and type of each fact that a set binds.
fn kinds(set: &FeatureSet) -> impl Iterator<Item = (usize, &String, FactType)> {
    let names = set.fact_names().iter().enumerate();
    // A compiled set knows the types of its facts.
    names.map(|(index, name)| {
        let kind = set.spec().fact_type(name).unwrap_or(FactType::Text);
        (index, name, kind)
    })
}

fn text(fact: &BoundFact) -> Option<&str> {
    match fact {
        BoundFact::Text(text, _) => Some(text),
        _ => None,
    }
}

fn record_batch(columns: Vec<(String, ArrayRef)>) -> RecordBatch {
    let field = |(name, array): &(String, ArrayRef)| {
        let kind: DataType = array.data_type().clone();
        Field::new(name, kind, true)
    };
    let schema: SchemaRef = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    // A value was pushed to each column for each row.
    RecordBatch::try_new(schema, arrays).expect("columns of one length")
}
