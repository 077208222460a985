//! Functions of [`super::Engine`] that DataFusion lacks.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, Float64Array, Int64Array},
        datatypes::{DataType, Field, Float64Type, Int64Type},
    },
    common::{Result, cast::as_list_array},
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};
use features::hash::{chain_integer, chain_text};

/// All of them.
pub(super) fn all() -> [ScalarUDF; 4] {
    [
        Which::HashText,
        Which::HashInteger,
        Which::Log1p,
        Which::Dot,
    ]
    .map(|which| {
        let signature = Signature::exact(which.takes(), Volatility::Immutable);
        ScalarUDF::new_from_impl(Function { which, signature })
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Which {
    /// A text as the next link of a chain of hashes; nothing is an empty text.
    HashText,
    /// An integer likewise.
    HashInteger,
    Log1p,
    Dot,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    which: Which,
    signature: Signature,
}

impl Which {
    fn takes(self) -> Vec<DataType> {
        let vector = || DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)));
        match self {
            Self::HashText => vec![DataType::Int64, DataType::Utf8],
            Self::HashInteger => vec![DataType::Int64, DataType::Int64],
            Self::Log1p => vec![DataType::Float64],
            Self::Dot => vec![vector(), vector()],
        }
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.which {
            Which::HashText => "marquee_hash_text",
            Which::HashInteger => "marquee_hash_integer",
            Which::Log1p => "marquee_log1p",
            Which::Dot => "marquee_dot",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.which {
            Which::HashText | Which::HashInteger => DataType::Int64,
            Which::Log1p | Which::Dot => DataType::Float64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let result: ArrayRef = match self.which {
            Which::HashText => Arc::new(hash_text(&arrays[0], &arrays[1])),
            Which::HashInteger => Arc::new(hash_integer(&arrays[0], &arrays[1])),
            Which::Log1p => {
                let numbers = arrays[0].as_primitive::<Float64Type>();
                Arc::new(numbers.unary::<_, Float64Type>(f64::ln_1p))
            }
            Which::Dot => Arc::new(dot(&arrays[0], &arrays[1])?),
        };
        Ok(ColumnarValue::Array(result))
    }
}

fn hash_text(seeds: &ArrayRef, texts: &ArrayRef) -> Int64Array {
    let seeds = seeds.as_primitive::<Int64Type>().values().iter();
    let links = seeds.zip(texts.as_string::<i32>());
    let hash = |(seed, text): (&i64, Option<&str>)| chain_text(*seed as u64, text.unwrap_or(""));
    links.map(|link| hash(link) as i64).collect()
}

fn hash_integer(seeds: &ArrayRef, numbers: &ArrayRef) -> Int64Array {
    let seeds = seeds.as_primitive::<Int64Type>().values().iter();
    let links = seeds.zip(numbers.as_primitive::<Int64Type>());
    let hash = |(seed, number): (&i64, Option<i64>)| match number {
        Some(number) => chain_integer(*seed as u64, number),
        None => chain_text(*seed as u64, ""),
    };
    links.map(|link| hash(link) as i64).collect()
}

fn dot(left: &ArrayRef, right: &ArrayRef) -> Result<Float64Array> {
    let pairs = as_list_array(left)?
        .iter()
        .zip(as_list_array(right)?.iter());
    let product = |left: ArrayRef, right: ArrayRef| -> f64 {
        let left = left.as_primitive::<Float64Type>().values().iter();
        let right = right.as_primitive::<Float64Type>().values().iter();
        left.zip(right).map(|(left, right)| left * right).sum()
    };
    Ok(pairs
        .map(|(left, right)| Some(product(left?, right?)))
        .collect())
}
