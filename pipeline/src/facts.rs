//! What features are computed from, as two tables for any engine.
//!
//! | table | a row for each | columns |
//! | --- | --- | --- |
//! | `fact_events` | event that is counted | `event_id`, `source`, `event_time_us`, `known_us`, `amount`, `personal`, `has_ad`, and a text `f_<fact>` for each fact that names an entity or is remembered |
//! | `fact_requests` | row that features are wanted for | `request_id`, `time_us`, `personal`, and `f_<fact>` for each fact that a feature uses: a text, a double, an array of ids or of doubles |
//!
//! Times are microseconds since the Unix epoch; `known_us` is when the platform learnt of an event. A
//! missing fact is null. `personal` says whether personal features are allowed, `has_ad` whether the
//! event belongs to an ad.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{
        ArrayBuilder, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder,
        RecordBatch, StringBuilder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use features::{
    AdFacts, Counted, FeatureSet, RequestFacts, expression::BoundFact, facts::FactType,
};

/// Column of a fact in both tables.
pub fn column(fact: &str) -> String {
    format!("f_{fact}")
}

/// Builds `fact_events`.
#[derive(Debug)]
pub struct FactEvents<'a> {
    set: &'a FeatureSet,
    /// Indexes of the facts that events have.
    facts: Vec<usize>,
    ids: StringBuilder,
    sources: StringBuilder,
    event_times: Int64Builder,
    known: Int64Builder,
    amounts: Float64Builder,
    personal: BooleanBuilder,
    has_ad: BooleanBuilder,
    texts: Vec<StringBuilder>,
}

impl<'a> FactEvents<'a> {
    /// No events of a set.
    pub fn new(set: &'a FeatureSet) -> Self {
        let features = set.spec().features.iter();
        let features = features.filter(|feature| feature.aggregation.is_some());
        let named: BTreeSet<&String> = features
            .flat_map(|feature| feature.key.iter().chain(&feature.value))
            .collect();
        let names = set.fact_names().iter().enumerate();
        let facts: Vec<usize> = names
            .filter(|(_, name)| named.contains(name))
            .map(|(index, _)| index)
            .collect();
        Self {
            set,
            ids: StringBuilder::new(),
            sources: StringBuilder::new(),
            event_times: Int64Builder::new(),
            known: Int64Builder::new(),
            amounts: Float64Builder::new(),
            personal: BooleanBuilder::new(),
            has_ad: BooleanBuilder::new(),
            texts: facts.iter().map(|_| StringBuilder::new()).collect(),
            facts,
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
        for (index, texts) in self.facts.iter().zip(&mut self.texts) {
            texts.append_option(text(self.set.fact(request, ad, *index)));
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
        for (index, mut texts) in self.facts.into_iter().zip(self.texts) {
            let name = column(&self.set.fact_names()[index]);
            columns.push((name, Arc::new(texts.finish())));
        }
        record_batch(columns)
    }
}

/// Builds `fact_requests`.
#[derive(Debug)]
pub struct FactRequests<'a> {
    set: &'a FeatureSet,
    ids: StringBuilder,
    times: Int64Builder,
    personal: BooleanBuilder,
    facts: Vec<FactBuilder>,
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

impl<'a> FactRequests<'a> {
    /// No requests of a set.
    pub fn new(set: &'a FeatureSet) -> Self {
        // A compiled set knows the types of its facts.
        let kind = |name: &String| set.spec().fact_type(name).unwrap_or(FactType::Text);
        Self {
            set,
            ids: StringBuilder::new(),
            times: Int64Builder::new(),
            personal: BooleanBuilder::new(),
            facts: set
                .fact_names()
                .iter()
                .map(|name| FactBuilder::new(kind(name)))
                .collect(),
        }
    }

    /// Appends a request for one ad.
    pub fn push(&mut self, request_id: &str, time_us: i64, request: &RequestFacts, ad: &AdFacts) {
        self.ids.append_value(request_id);
        self.times.append_value(time_us);
        self.personal.append_value(request.personal_allowed());
        for (index, facts) in self.facts.iter_mut().enumerate() {
            facts.push(self.set.fact(request, Some(ad), index));
        }
    }

    /// The rows so far.
    pub fn finish(mut self) -> RecordBatch {
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("request_id".to_owned(), Arc::new(self.ids.finish())),
            ("time_us".to_owned(), Arc::new(self.times.finish())),
            ("personal".to_owned(), Arc::new(self.personal.finish())),
        ];
        for (name, facts) in self.set.fact_names().iter().zip(self.facts) {
            columns.push((column(name), facts.finish()));
        }
        record_batch(columns)
    }
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
