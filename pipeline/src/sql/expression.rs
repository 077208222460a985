//! Expressions of the spec as SQL: a null wherever `features::expression` has a missing value.
//!
//! A value that a formula needs more than once gets a column of its own ([`Columns`]), so that
//! the text grows as the expression does, and not as a power of it.

use features::{
    FeatureSpec,
    expression::{Expression, Function},
    facts::FactType,
    spec::{Feature, Kind, Transform},
};

use super::engine::{Engine, Link};
use crate::facts;

/// An expression in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sql {
    pub text: String,
    pub kind: SqlKind,
    /// Whether the text is one name or number.
    atomic: bool,
    /// The columns that it needs are made up to this level.
    level: usize,
}

/// What an expression gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SqlKind {
    Double,
    Text,
    /// A BIGINT.
    Id,
    /// An array of BIGINT.
    Ids,
    /// An array of DOUBLE.
    Vector,
}

/// Columns that are made of the requests' own, level by level: each may use those of the levels below.
#[derive(Debug, Default)]
pub(super) struct Columns {
    levels: Vec<Vec<(String, String)>>,
}

impl Columns {
    /// A column for a value, unless it is as short as a name.
    fn name(&mut self, sql: Sql) -> Sql {
        if sql.atomic {
            return sql;
        }
        let level = sql.level;
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let known = self.levels[level]
            .iter()
            .find(|(_, text)| *text == sql.text);
        let name = match known {
            Some((name, _)) => name.clone(),
            None => {
                let name = format!("x{level}_{}", self.levels[level].len());
                self.levels[level].push((name.clone(), sql.text));
                name
            }
        };
        Sql {
            text: name,
            atomic: true,
            level: level + 1,
            ..sql
        }
    }

    /// Name and text by level.
    pub fn levels(&self) -> &[Vec<(String, String)>] {
        &self.levels
    }
}

/// Turns expressions into SQL.
pub(super) struct Translation<'a> {
    pub engine: Engine,
    pub spec: &'a FeatureSpec,
    pub columns: Columns,
}

fn double(text: String, level: usize) -> Sql {
    Sql {
        text,
        kind: SqlKind::Double,
        atomic: false,
        level,
    }
}

impl Translation<'_> {
    /// A checked expression.
    pub fn expression(&mut self, expression: &Expression) -> Sql {
        match expression {
            Expression::Number(number) => Sql {
                atomic: true,
                ..double(self.engine.double(*number), 0)
            },
            Expression::Name(name) => Sql {
                text: facts::column(name),
                kind: match self.spec.fact_type(name) {
                    Some(FactType::Text) => SqlKind::Text,
                    Some(FactType::List) => SqlKind::Ids,
                    Some(FactType::Vector) => SqlKind::Vector,
                    // The spec was checked: it knows its facts.
                    Some(FactType::Number) | None => SqlKind::Double,
                },
                atomic: true,
                level: 0,
            },
            Expression::Bucketize(inner, edges) => {
                let inner = self.expression(inner);
                let x = self.columns.name(inner);
                let steps: Vec<String> = edges
                    .iter()
                    .map(|edge| {
                        let edge = self.engine.double(*edge);
                        format!("CASE WHEN {} >= {edge} THEN 1E0 ELSE 0E0 END", x.text)
                    })
                    .collect();
                let sum = if steps.is_empty() {
                    "0E0".to_owned()
                } else {
                    steps.join(" + ")
                };
                double(
                    format!("CASE WHEN {} IS NOT NULL THEN {sum} END", x.text),
                    x.level,
                )
            }
            Expression::Call(function, arguments) => self.call(*function, arguments),
        }
    }

    fn call(&mut self, function: Function, arguments: &[Expression]) -> Sql {
        use Function as F;
        let arguments: Vec<Sql> = arguments.iter().map(|one| self.expression(one)).collect();
        match function {
            F::Hash if arguments[0].kind == SqlKind::Ids => arguments[0].clone(),
            F::Hash => self.hash_of(&arguments[0]),
            F::Cross => {
                let links: Vec<Sql> = arguments
                    .into_iter()
                    .map(|one| self.named_number(one))
                    .collect();
                Sql {
                    text: self
                        .engine
                        .hash(&links.iter().map(link).collect::<Vec<_>>()),
                    kind: SqlKind::Id,
                    atomic: false,
                    level: level(&links),
                }
            }
            F::Dot | F::Cosine => self.of_vectors(function, &arguments),
            F::Get => self.get(&arguments),
            F::Eq if arguments[0].kind != arguments[1].kind => {
                // Values of two types are never equal.
                let known = arguments
                    .iter()
                    .map(|one| format!("{} IS NOT NULL", one.text));
                let known = known.collect::<Vec<_>>().join(" AND ");
                double(format!("CASE WHEN {known} THEN 0E0 END"), level(&arguments))
            }
            F::Divide | F::Log1p | F::Sqrt | F::Min | F::Max | F::Eq => {
                let arguments: Vec<Sql> = arguments
                    .into_iter()
                    .map(|one| self.columns.name(one))
                    .collect();
                let text = self.guarded(function, &arguments);
                double(text, level(&arguments))
            }
            F::Add
            | F::Subtract
            | F::Multiply
            | F::Negate
            | F::Abs
            | F::Sin
            | F::Cos
            | F::AgeDays => double(plain(function, &arguments), level(&arguments)),
        }
    }

    /// Functions that need an argument twice.
    fn guarded(&self, function: Function, arguments: &[Sql]) -> String {
        let a = &arguments[0].text;
        let b = arguments.get(1).map_or("", |sql| sql.text.as_str());
        match function {
            Function::Divide => format!("CASE WHEN {b} <> 0E0 THEN {a} / {b} END"),
            Function::Log1p => format!("CASE WHEN {a} > -1E0 THEN {} END", self.engine.log1p(a)),
            Function::Sqrt => format!("CASE WHEN {a} >= 0E0 THEN SQRT({a}) END"),
            Function::Min => format!("CASE WHEN {a} <= {b} THEN {a} WHEN {b} < {a} THEN {b} END"),
            Function::Max => format!("CASE WHEN {a} >= {b} THEN {a} WHEN {b} > {a} THEN {b} END"),
            // Of one type; only those are left.
            _ => format!("CASE WHEN {a} = {b} THEN 1E0 WHEN {a} <> {b} THEN 0E0 END"),
        }
    }

    fn of_vectors(&mut self, function: Function, arguments: &[Sql]) -> Sql {
        // Vectors are facts: there is no function that gives one.
        let (a, b) = (&arguments[0].text, &arguments[1].text);
        let engine = self.engine;
        let dot = |a: &str, b: &str| {
            let (left, right) = (engine.length(a), engine.length(b));
            format!("CASE WHEN {left} = {right} THEN {} END", engine.dot(a, b))
        };
        let product = double(dot(a, b), 0);
        if function == Function::Dot {
            return product;
        }
        let squares = format!("SQRT({} * {})", engine.dot(a, a), engine.dot(b, b));
        let norms = self.columns.name(double(squares, 0));
        let product = self.columns.name(product);
        let text = format!(
            "CASE WHEN {0} > 0E0 THEN {1} / {0} END",
            norms.text, product.text
        );
        double(text, norms.level)
    }

    fn get(&mut self, arguments: &[Sql]) -> Sql {
        let index = self.columns.name(arguments[1].clone());
        let at = format!("CAST({} AS INT)", index.text);
        let element = self.engine.element(&arguments[0].text, &at);
        let text = format!(
            "CASE WHEN {} >= 0E0 THEN CAST({element} AS DOUBLE) END",
            index.text
        );
        double(text, index.level)
    }

    /// The id of a text, number or id; null where it is missing.
    pub fn hash_of(&mut self, value: &Sql) -> Sql {
        // A text's own column, or a number that is looked at more than once.
        let value = self.columns.name(value.clone());
        let hash = self.engine.hash(&[link(&value)]);
        Sql {
            text: format!("CASE WHEN {} IS NOT NULL THEN {hash} END", value.text),
            kind: SqlKind::Id,
            atomic: false,
            level: value.level,
        }
    }

    /// A chain may ask twice whether a number is there.
    fn named_number(&mut self, value: Sql) -> Sql {
        match value.kind {
            SqlKind::Text => value,
            _ => self.columns.name(value),
        }
    }

    /// A dense value in its last form: transformed, within its range, the default where there is none.
    pub fn finished(&mut self, value: Sql, feature: &Feature) -> Sql {
        let value = match feature.transform {
            Transform::Identity | Transform::MinMax => value,
            Transform::Log1p => {
                let value = self.columns.name(value);
                let text = self.guarded(Function::Log1p, std::slice::from_ref(&value));
                double(text, value.level)
            }
        };
        let value = self.columns.name(value);
        let (x, engine) = (&value.text, self.engine);
        let inside = match feature.range {
            None => x.clone(),
            Some([low, high]) => {
                let width = engine.double(high - low);
                let (low, high) = (engine.double(low), engine.double(high));
                let inside = format!(
                    "CASE WHEN {x} < {low} THEN {low} WHEN {x} > {high} THEN {high} ELSE {x} END"
                );
                match feature.transform {
                    Transform::MinMax => format!("({inside} - {low}) / {width}"),
                    Transform::Identity | Transform::Log1p => inside,
                }
            }
        };
        // Beyond it a 32-bit number is not finite.
        let largest = engine.double(f64::from(f32::MAX));
        let default = engine.double(feature.default);
        let text = format!("CASE WHEN ABS({x}) <= {largest} THEN {inside} ELSE {default} END");
        double(text, value.level)
    }
}

/// Column of an aggregated feature before its last form.
pub(super) fn aggregate_column(feature: &Feature) -> String {
    format!("a_{}", feature.name)
}

/// An aggregated feature.
pub(super) fn aggregate(feature: &Feature) -> Sql {
    Sql {
        text: aggregate_column(feature),
        kind: match feature.kind {
            Kind::Dense => SqlKind::Double,
            Kind::Sparse => SqlKind::Ids,
        },
        atomic: true,
        level: 0,
    }
}

fn level(arguments: &[Sql]) -> usize {
    arguments.iter().map(|one| one.level).max().unwrap_or(0)
}

fn link(value: &Sql) -> Link {
    match value.kind {
        SqlKind::Text => Link::Text(value.text.clone()),
        // Fractions are cut.
        _ => Link::Integer(format!("CAST({} AS BIGINT)", value.text)),
    }
}

fn plain(function: Function, arguments: &[Sql]) -> String {
    let a = &arguments[0].text;
    let b = arguments.get(1).map_or("", |sql| sql.text.as_str());
    match function {
        Function::Add => format!("({a} + {b})"),
        Function::Subtract => format!("({a} - {b})"),
        Function::Multiply => format!("({a} * {b})"),
        Function::Negate => format!("(-{a})"),
        Function::Abs => format!("ABS({a})"),
        Function::Sin => format!("SIN({a})"),
        Function::Cos => format!("COS({a})"),
        _ => format!("((CAST(time_us AS DOUBLE) - {a}) / 8.64E10)"),
    }
}
