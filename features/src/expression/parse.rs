//! Text to [`Expression`], by recursive descent.

use super::{Expression, FUNCTIONS, Function, ResultType};

/// Brackets deeper than this are refused, so that no text exhausts the stack.
const MAX_DEPTH: usize = 64;

/// A cross of more is refused: engines may need a case for each set of missing numbers.
const MAX_CROSSED: usize = 8;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExpressionError {
    /// Something else was wanted at this place.
    #[error("wanted {wanted} at column {column}, found {found}")]
    Syntax {
        /// What would fit.
        wanted: &'static str,
        /// What stands there.
        found: String,
        /// Place in the text, from 1.
        column: usize,
    },
    /// Brackets nest too deeply.
    #[error("brackets nest deeper than {MAX_DEPTH}")]
    Depth,
    /// No function of this name.
    #[error("no function `{name}`{}", nearest(name))]
    UnknownFunction {
        /// The name.
        name: String,
    },
    /// No fact of this name.
    #[error("no fact `{name}`: declare it under [facts], or check its spelling")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A function with too many or too few arguments.
    #[error("`{function}` takes {wanted} arguments, found {found}")]
    Arguments {
        /// The function.
        function: String,
        /// How many it takes.
        wanted: String,
        /// How many there are.
        found: usize,
    },
    /// An argument of another type.
    #[error("`{function}` takes {}, and `{argument}` is {}", types(accepted), type_name(*found))]
    Type {
        /// The function.
        function: String,
        /// The argument as written.
        argument: String,
        /// Its type.
        found: ResultType,
        /// The types that would do.
        accepted: Vec<ResultType>,
    },
}

fn nearest(name: &str) -> String {
    let all = FUNCTIONS.iter().map(|entry| entry.0).chain(["bucketize"]);
    let best =
        all.max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    best.filter(|best| strsim::jaro_winkler(name, best) > 0.7)
        .map(|best| format!(": did you mean `{best}`?"))
        .unwrap_or_default()
}

fn type_name(result: ResultType) -> &'static str {
    match result {
        ResultType::Number => "a number",
        ResultType::Id => "a text or id",
        ResultType::Ids => "a list",
        ResultType::Vector => "a vector",
    }
}

fn types(accepted: &[ResultType]) -> String {
    let names: Vec<_> = accepted.iter().map(|result| type_name(*result)).collect();
    names.join(" or ")
}

/// Parses an expression.
///
/// # Errors
/// [`ExpressionError`] with the column; any text gives one or the other, never a panic.
pub fn parse(text: &str) -> Result<Expression, ExpressionError> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
    };
    let expression = parser.sum()?;
    match parser.peek() {
        None => Ok(expression),
        Some(_) => Err(parser.wanted("an operator or the end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn expect(&mut self, character: char, wanted: &'static str) -> Result<(), ExpressionError> {
        if self.eat(character) {
            Ok(())
        } else {
            Err(self.wanted(wanted))
        }
    }

    fn wanted(&mut self, wanted: &'static str) -> ExpressionError {
        let found = self
            .peek()
            .map_or("the end".to_owned(), |found| format!("`{found}`"));
        let column = self.text[..self.at].chars().count() + 1;
        ExpressionError::Syntax {
            wanted,
            found,
            column,
        }
    }

    fn sum(&mut self) -> Result<Expression, ExpressionError> {
        let mut left = self.product()?;
        loop {
            let function = match self.peek() {
                Some('+') => Function::Add,
                Some('-') => Function::Subtract,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expression::Call(function, vec![left, self.product()?]);
        }
    }

    fn product(&mut self) -> Result<Expression, ExpressionError> {
        let mut left = self.factor()?;
        loop {
            let function = match self.peek() {
                Some('*') => Function::Multiply,
                Some('/') => Function::Divide,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expression::Call(function, vec![left, self.factor()?]);
        }
    }

    fn factor(&mut self) -> Result<Expression, ExpressionError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpressionError::Depth);
        }
        let factor = match self.peek() {
            Some('-') => {
                self.at += 1;
                Ok(Expression::Call(Function::Negate, vec![self.factor()?]))
            }
            Some('(') => {
                self.at += 1;
                let inner = self.sum()?;
                self.expect(')', "`)`")?;
                Ok(inner)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number().map(Expression::Number),
            Some(c) if c.is_ascii_alphabetic() || c == '_' => self.name_or_call(),
            _ => Err(self.wanted("a number, a name or `(`")),
        };
        self.depth -= 1;
        factor
    }

    fn number(&mut self) -> Result<f64, ExpressionError> {
        let rest = &self.text[self.at..];
        let digits = |from: usize| {
            rest[from..]
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .map_or(rest.len(), |n| from + n)
        };
        let mut end = digits(0);
        let exponent = rest[end..].strip_prefix(['e', 'E']);
        if let Some(tail) = exponent {
            let sign = usize::from(tail.starts_with(['+', '-']));
            if tail[sign..].starts_with(|c: char| c.is_ascii_digit()) {
                end = digits(end + 1 + sign);
            }
        }
        match rest[..end].parse::<f64>() {
            Ok(number) if number.is_finite() => {
                self.at += end;
                Ok(number)
            }
            _ => Err(self.wanted("a number")),
        }
    }

    fn name_or_call(&mut self) -> Result<Expression, ExpressionError> {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        self.at += end;
        if !self.eat('(') {
            return Ok(Expression::Name(name));
        }
        if name == "bucketize" {
            return self.bucketize();
        }
        let found = FUNCTIONS.iter().find(|entry| entry.0 == name);
        let Some((_, function, arity)) = found else {
            return Err(ExpressionError::UnknownFunction { name });
        };
        let mut arguments = vec![self.sum()?];
        while self.eat(',') {
            arguments.push(self.sum()?);
        }
        self.expect(')', "`,` or `)`")?;
        let count = arguments.len();
        let fits = arity.map_or((2..=MAX_CROSSED).contains(&count), |arity| arity == count);
        if !fits {
            let several = || format!("2 to {MAX_CROSSED}");
            let wanted = arity.map_or_else(several, |arity| arity.to_string());
            return Err(ExpressionError::Arguments {
                function: name,
                wanted,
                found: count,
            });
        }
        Ok(Expression::Call(*function, arguments))
    }

    fn bucketize(&mut self) -> Result<Expression, ExpressionError> {
        let inner = self.sum()?;
        self.expect(',', "`,` and a list of edges")?;
        self.expect('[', "`[`")?;
        let mut edges: Vec<f64> = Vec::new();
        loop {
            let negative = self.eat('-');
            self.peek();
            let edge = self.number()? * if negative { -1.0 } else { 1.0 };
            if edges.last().is_some_and(|last| *last >= edge) {
                return Err(self.wanted("edges that rise"));
            }
            edges.push(edge);
            if !self.eat(',') {
                break;
            }
        }
        self.expect(']', "`,` or `]`")?;
        self.expect(')', "`)`")?;
        Ok(Expression::Bucketize(Box::new(inner), edges))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expressions() -> impl Strategy<Value = Expression> {
        let leaf = prop_oneof![
            (0.0f64..1e6).prop_map(Expression::Number),
            "[a-z_]{1,8}".prop_map(Expression::Name),
        ];
        leaf.prop_recursive(4, 32, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| Expression::Call(Function::Add, vec![a, b])),
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| Expression::Call(Function::Divide, vec![a, b])),
                inner
                    .clone()
                    .prop_map(|a| Expression::Call(Function::Log1p, vec![a])),
                inner
                    .clone()
                    .prop_map(|a| Expression::Call(Function::Negate, vec![a])),
                prop::collection::vec(inner.clone(), 2..4)
                    .prop_map(|all| Expression::Call(Function::Cross, all)),
                inner.prop_map(|a| Expression::Bucketize(Box::new(a), vec![-1.5, 0.0, 2.0])),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_shown_parses_to_the_same(expression in expressions()) {
            prop_assert_eq!(parse(&expression.to_string()), Ok(expression));
        }
    }

    #[test]
    fn errors_say_where_and_what_would_fit() {
        let check =
            |text: &str, expected: &str| assert_eq!(parse(text).unwrap_err().to_string(), expected);
        check(
            "1 +",
            "wanted a number, a name or `(` at column 4, found the end",
        );
        check("log1p(x", "wanted `,` or `)` at column 8, found the end");
        check("lg1p(x)", "no function `lg1p`: did you mean `log1p`?");
        check("min(x)", "`min` takes 2 arguments, found 1");
        check("cross(x)", "`cross` takes 2 to 8 arguments, found 1");
        check(
            "cross(a, b, c, d, e, f, g, h, i)",
            "`cross` takes 2 to 8 arguments, found 9",
        );
        check(
            "bucketize(x, [2, 1])",
            "wanted edges that rise at column 19, found `]`",
        );
        check(&"(".repeat(100), "brackets nest deeper than 64");
    }
}
