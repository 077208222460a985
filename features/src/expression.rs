//! Expressions over facts: a small language, parsed once and evaluated without allocation.
//!
//! ```text
//! expression = term (("+" | "-") term)*        term = factor (("*" | "/") factor)*
//! factor     = number | name | function "(" expression ("," expression)* ")" | "(" expression ")" | "-" factor
//! bucketize(x, [1, 5, 10])                     edges of buckets are a literal list
//! ```
//!
//! Numbers: `log1p sqrt abs sin cos min max eq dot cosine get age_days`. Ids: `hash cross
//! bucketize`. A missing fact makes a number missing (the feature's default stands in) and gives
//! an id of its own ([`hash::MISSING_ID`]) or an empty list.

mod parse;

use crate::{facts::FactType, hash};

pub use parse::{ExpressionError, parse};

/// A parsed expression with names still as text.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// A literal.
    Number(f64),
    /// A fact by name.
    Name(String),
    /// A function of arguments.
    Call(Function, Vec<Expression>),
    /// The index of the bucket that a number falls into: how many edges are at or below it.
    Bucketize(Box<Expression>, Vec<f64>),
}

/// What a call computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Sum of two.
    Add,
    /// Difference of two.
    Subtract,
    /// Product of two.
    Multiply,
    /// Quotient of two; missing when the divisor is 0.
    Divide,
    /// Sign change.
    Negate,
    /// Natural logarithm of one plus the value; missing below -1.
    Log1p,
    /// Square root; missing below 0.
    Sqrt,
    /// Absolute value.
    Abs,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// The smaller of two.
    Min,
    /// The larger of two.
    Max,
    /// 1 if two values are equal, else 0.
    Eq,
    /// Scalar product of two vectors.
    Dot,
    /// Cosine of the angle between two vectors; missing if one is zero.
    Cosine,
    /// One element of a vector, by index from 0.
    Get,
    /// Days from a time (microseconds) to the request.
    AgeDays,
    /// Id of a text, number or list.
    Hash,
    /// Id of several texts or numbers together.
    Cross,
}

/// Name, function and number of arguments (`None`: two to eight).
const FUNCTIONS: [(&str, Function, Option<usize>); 14] = [
    ("log1p", Function::Log1p, Some(1)),
    ("sqrt", Function::Sqrt, Some(1)),
    ("abs", Function::Abs, Some(1)),
    ("sin", Function::Sin, Some(1)),
    ("cos", Function::Cos, Some(1)),
    ("min", Function::Min, Some(2)),
    ("max", Function::Max, Some(2)),
    ("eq", Function::Eq, Some(2)),
    ("dot", Function::Dot, Some(2)),
    ("cosine", Function::Cosine, Some(2)),
    ("get", Function::Get, Some(2)),
    ("age_days", Function::AgeDays, Some(1)),
    ("hash", Function::Hash, Some(1)),
    ("cross", Function::Cross, None),
];

/// A fact with its name resolved and its texts hashed.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum BoundFact {
    /// Not known.
    #[default]
    Missing,
    /// A number.
    Number(f64),
    /// A text and its hash.
    Text(Box<str>, u64),
    /// Hashes of several texts.
    List(Box<[u64]>),
    /// A vector.
    Vector(Box<[f32]>),
}

/// What an expression gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Not known.
    Missing,
    /// A number.
    Number(f64),
    /// A text and its hash.
    Text(&'a str, u64),
    /// An id made by a function.
    Id(u64),
    /// Several ids.
    Ids(&'a [u64]),
    /// A vector.
    Vector(&'a [f32]),
}

impl<'a> From<&'a BoundFact> for Value<'a> {
    fn from(fact: &'a BoundFact) -> Self {
        match fact {
            BoundFact::Missing => Self::Missing,
            BoundFact::Number(number) => Self::Number(*number),
            BoundFact::Text(text, hash) => Self::Text(text, *hash),
            BoundFact::List(ids) => Self::Ids(ids),
            BoundFact::Vector(vector) => Self::Vector(vector),
        }
    }
}

impl Value<'_> {
    /// The number, unless it is missing or another type.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The value as the next link of a chain of hashes.
    pub(crate) fn chain(self, seed: u64) -> u64 {
        match self {
            Self::Text(text, _) => hash::chain_text(seed, text),
            // Fractions are cut: ids are for whole numbers and buckets.
            Self::Number(number) => hash::chain_integer(seed, number as i64),
            Self::Id(id) => hash::chain_integer(seed, id as i64),
            Self::Missing | Self::Ids(_) | Self::Vector(_) => hash::chain_text(seed, ""),
        }
    }
}

/// What an expression gives, known before it is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultType {
    /// A number.
    Number,
    /// One id or text.
    Id,
    /// Several ids.
    Ids,
    /// A vector.
    Vector,
}

impl From<FactType> for ResultType {
    fn from(fact: FactType) -> Self {
        match fact {
            FactType::Number => Self::Number,
            FactType::Text => Self::Id,
            FactType::List => Self::Ids,
            FactType::Vector => Self::Vector,
        }
    }
}

/// An expression with names resolved to slots and types checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Compiled {
    /// A literal.
    Number(f64),
    /// A fact by slot.
    Slot(usize),
    /// A function of arguments.
    Call(Function, Vec<Compiled>),
    /// The bucket of a number.
    Bucketize(Box<Compiled>, Vec<f64>),
}

impl Expression {
    /// The result's type.
    ///
    /// # Errors
    /// A sentence that names the function and the argument of a wrong type, or the unknown name.
    pub fn check(
        &self,
        lookup: &impl Fn(&str) -> Option<FactType>,
    ) -> Result<ResultType, ExpressionError> {
        use Function as F;
        match self {
            Self::Number(_) => Ok(ResultType::Number),
            Self::Name(name) => {
                let unknown = || ExpressionError::UnknownName { name: name.clone() };
                lookup(name).map(ResultType::from).ok_or_else(unknown)
            }
            Self::Bucketize(inner, _) => {
                want(
                    "bucketize",
                    inner,
                    inner.check(lookup)?,
                    &[ResultType::Number],
                )?;
                Ok(ResultType::Number)
            }
            Self::Call(function, arguments) => {
                let (accepted, result): (&[ResultType], _) = match function {
                    F::Hash => (
                        &[ResultType::Number, ResultType::Id, ResultType::Ids],
                        ResultType::Id,
                    ),
                    F::Cross => (&[ResultType::Number, ResultType::Id], ResultType::Id),
                    F::Eq => (&[ResultType::Number, ResultType::Id], ResultType::Number),
                    F::Dot | F::Cosine => (&[ResultType::Vector], ResultType::Number),
                    F::Get => (
                        &[ResultType::Vector, ResultType::Number],
                        ResultType::Number,
                    ),
                    _ => (&[ResultType::Number], ResultType::Number),
                };
                let mut result = result;
                for argument in arguments {
                    let found = argument.check(lookup)?;
                    want(function.name(), argument, found, accepted)?;
                    if *function == F::Hash && found == ResultType::Ids {
                        result = ResultType::Ids;
                    }
                }
                Ok(result)
            }
        }
    }

    /// Names of the facts that it uses, as often as it does.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Name(name) => vec![name.clone()],
            Self::Bucketize(inner, _) => inner.names(),
            Self::Call(_, arguments) => arguments.iter().flat_map(Self::names).collect(),
        }
    }

    /// Resolves names to slots.
    pub fn compile(&self, slot: &mut impl FnMut(&str) -> usize) -> Compiled {
        match self {
            Self::Number(number) => Compiled::Number(*number),
            Self::Name(name) => Compiled::Slot(slot(name)),
            Self::Bucketize(inner, edges) => {
                Compiled::Bucketize(Box::new(inner.compile(slot)), edges.clone())
            }
            Self::Call(function, arguments) => {
                let arguments = arguments
                    .iter()
                    .map(|argument| argument.compile(slot))
                    .collect();
                Compiled::Call(*function, arguments)
            }
        }
    }
}

fn want(
    function: &str,
    argument: &Expression,
    found: ResultType,
    accepted: &[ResultType],
) -> Result<(), ExpressionError> {
    if accepted.contains(&found) {
        return Ok(());
    }
    Err(ExpressionError::Type {
        function: function.to_owned(),
        argument: argument.to_string(),
        found,
        accepted: accepted.to_vec(),
    })
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract | Self::Negate => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            other => FUNCTIONS
                .iter()
                .find(|entry| entry.1 == other)
                .map_or("?", |entry| entry.0),
        }
    }
}

impl std::fmt::Display for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use Function as F;
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
            Self::Bucketize(inner, edges) => write!(f, "bucketize({inner}, {edges:?})"),
            Self::Call(F::Negate, arguments) => write!(f, "(-{})", arguments[0]),
            Self::Call(function @ (F::Add | F::Subtract | F::Multiply | F::Divide), arguments) => {
                write!(f, "({} {} {})", arguments[0], function.name(), arguments[1])
            }
            Self::Call(function, arguments) => {
                let shown: Vec<String> = arguments.iter().map(ToString::to_string).collect();
                write!(f, "{}({})", function.name(), shown.join(", "))
            }
        }
    }
}

impl Compiled {
    /// Evaluates over facts by slot, at a time in microseconds since the Unix epoch.
    pub fn evaluate<'a>(&self, fact: &impl Fn(usize) -> &'a BoundFact, now_us: i64) -> Value<'a> {
        match self {
            Self::Number(number) => Value::Number(*number),
            Self::Slot(slot) => Value::from(fact(*slot)),
            Self::Bucketize(inner, edges) => match inner.evaluate(fact, now_us).number() {
                Some(number) => Value::Number(edges.partition_point(|edge| *edge <= number) as f64),
                None => Value::Missing,
            },
            Self::Call(function, arguments) => call(*function, arguments, fact, now_us),
        }
    }
}

fn call<'a>(
    function: Function,
    arguments: &[Compiled],
    fact: &impl Fn(usize) -> &'a BoundFact,
    now_us: i64,
) -> Value<'a> {
    use Function as F;
    let argument = |index: usize| arguments[index].evaluate(fact, now_us);
    match function {
        F::Hash => match argument(0) {
            Value::Text(_, hash) => Value::Id(hash),
            Value::Ids(ids) => Value::Ids(ids),
            Value::Missing => Value::Missing,
            other => Value::Id(other.chain(hash::SEED)),
        },
        F::Cross => Value::Id(arguments.iter().fold(hash::SEED, |seed, part| {
            part.evaluate(fact, now_us).chain(seed)
        })),
        F::Eq => match (argument(0), argument(1)) {
            (Value::Missing, _) | (_, Value::Missing) => Value::Missing,
            (left, right) => Value::Number(f64::from(u8::from(left == right))),
        },
        F::Dot | F::Cosine => match (argument(0), argument(1)) {
            (Value::Vector(left), Value::Vector(right)) if left.len() == right.len() => {
                vectors(function, left, right)
            }
            _ => Value::Missing,
        },
        F::Get => match (argument(0), argument(1)) {
            (Value::Vector(vector), Value::Number(index)) if index >= 0.0 => vector
                .get(index as usize)
                .map_or(Value::Missing, |value| Value::Number(f64::from(*value))),
            _ => Value::Missing,
        },
        _ => {
            let Some(left) = argument(0).number() else {
                return Value::Missing;
            };
            let right = || argument(1).number();
            let result = match function {
                F::Negate => Some(-left),
                F::Log1p => Some(left.ln_1p()),
                F::Sqrt => Some(left.sqrt()),
                F::Abs => Some(left.abs()),
                F::Sin => Some(left.sin()),
                F::Cos => Some(left.cos()),
                F::AgeDays => Some((now_us as f64 - left) / 86_400e6),
                F::Add => right().map(|right| left + right),
                F::Subtract => right().map(|right| left - right),
                F::Multiply => right().map(|right| left * right),
                F::Divide => right().map(|right| left / right),
                F::Min => right().map(|right| left.min(right)),
                F::Max => right().map(|right| left.max(right)),
                F::Hash | F::Cross | F::Eq | F::Dot | F::Cosine | F::Get => None,
            };
            // Division by zero and the logarithm of nothing are missing, like any other gap.
            result
                .filter(|number| number.is_finite())
                .map_or(Value::Missing, Value::Number)
        }
    }
}

fn vectors<'a>(function: Function, left: &[f32], right: &[f32]) -> Value<'a> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    let product = dot(left, right);
    if function == Function::Dot {
        return Value::Number(product);
    }
    let norms = (dot(left, left) * dot(right, right)).sqrt();
    if norms > 0.0 {
        Value::Number(product / norms)
    } else {
        Value::Missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str) -> Result<f64, Option<ExpressionError>> {
        let names = ["x", "style", "other", "t"];
        let facts = [
            BoundFact::Number(3.0),
            BoundFact::Vector([1.0, 0.0].into()),
            BoundFact::Vector([1.0, 1.0].into()),
            BoundFact::Missing,
        ];
        let lookup = |name: &str| match name {
            "x" | "t" => Some(FactType::Number),
            "style" | "other" => Some(FactType::Vector),
            _ => None,
        };
        let expression = parse(text).map_err(Some)?;
        expression.check(&lookup).map_err(Some)?;
        let compiled =
            expression.compile(&mut |name| names.iter().position(|n| *n == name).unwrap());
        compiled
            .evaluate(&|slot| &facts[slot], 86_400_000_000)
            .number()
            .ok_or(None)
    }

    #[test]
    fn numbers_follow_the_usual_rules() {
        let check = |text: &str, expected: f64| {
            assert!((evaluate(text).unwrap() - expected).abs() < 1e-12, "{text}");
        };
        check("1 + 2 * x", 7.0);
        check("(1 + 2) * -x", -9.0);
        check("x / 2 - 1", 0.5);
        check("log1p(x)", 4f64.ln());
        check("bucketize(x, [1, 3, 10])", 2.0);
        check("cosine(style, other)", 0.5f64.sqrt());
        check("dot(style, other)", 1.0);
        check("get(other, 1)", 1.0);
        check("max(x, 5) + eq(x, 3)", 6.0);
        check("age_days(0)", 1.0);
    }

    #[test]
    fn gaps_stay_gaps() {
        let check = |text: &str| assert_eq!(evaluate(text), Err(None), "{text}");
        check("t + 1");
        check("x / 0");
        check("log1p(-2)");
        check("get(style, 7)");
    }

    #[test]
    fn a_wrong_type_names_function_and_argument() {
        let error = evaluate("log1p(style)").unwrap_err().unwrap();
        assert_eq!(
            error.to_string(),
            "`log1p` takes a number, and `style` is a vector"
        );
        let error = evaluate("y + 1").unwrap_err().unwrap();
        assert_eq!(error, ExpressionError::UnknownName { name: "y".into() });
    }
}
