//! Where a network finds its features in a row of its input.

use std::ops::Range;

use super::NetworkError;

/// The pooled rows of one sparse feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The feature's name.
    pub feature: String,
    /// Columns that it takes.
    pub dim: usize,
}

/// Columns of a network's input: standardised dense numbers, then the pooled row of each field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputLayout {
    /// Names of the dense numbers, a column each.
    pub dense: Vec<String>,
    /// In the order of their columns.
    pub fields: Vec<Field>,
}

impl InputLayout {
    /// Dense numbers by name, and fields by name and number of columns.
    pub fn new(
        dense: impl IntoIterator<Item = String>,
        fields: impl IntoIterator<Item = (String, usize)>,
    ) -> Self {
        let field = |(feature, dim)| Field { feature, dim };
        Self {
            dense: dense.into_iter().collect(),
            fields: fields.into_iter().map(field).collect(),
        }
    }

    /// Columns of dense numbers.
    pub fn num_dense(&self) -> usize {
        self.dense.len()
    }

    /// Columns of all.
    pub fn width(&self) -> usize {
        self.num_dense() + self.num_columns_of_fields()
    }

    pub(super) fn num_columns_of_fields(&self) -> usize {
        self.fields.iter().map(|field| field.dim).sum()
    }

    /// Columns of these features, sparse or dense, which a key of the configuration names.
    pub(super) fn columns_of(
        &self,
        key: &'static str,
        features: &[String],
    ) -> Result<Vec<Range<usize>>, NetworkError> {
        let of = |feature: &String| {
            let number = self.dense.iter().position(|dense| dense == feature);
            let columns = self.field(feature).map(|field| self.columns(field));
            let columns = columns.or(number.map(|column| column..column + 1));
            let fields = self.fields.iter().map(|field| &*field.feature);
            columns.ok_or_else(|| NetworkError::UnknownFeature {
                key,
                feature: feature.clone(),
                known: fields
                    .chain(self.dense.iter().map(|dense| &**dense))
                    .collect::<Vec<_>>()
                    .join(", "),
            })
        };
        features.iter().map(of).collect()
    }

    /// Which field a sparse feature is.
    pub(super) fn field(&self, feature: &str) -> Option<usize> {
        let mut fields = self.fields.iter();
        fields.position(|field| field.feature == *feature)
    }

    /// Columns of a field.
    pub(super) fn columns(&self, field: usize) -> Range<usize> {
        let before: usize = self.fields[..field].iter().map(|field| field.dim).sum();
        let first = self.num_dense() + before;
        first..first + self.fields[field].dim
    }

    /// The columns of every field, for a network that compares them as vectors.
    pub(super) fn equal_dim(&self) -> Result<usize, NetworkError> {
        let Some(first) = self.fields.first() else {
            return Err(NetworkError::NoFields);
        };
        match self.fields.iter().find(|field| field.dim != first.dim) {
            None => Ok(first.dim),
            Some(other) => Err(NetworkError::UnequalDims {
                one: first.clone(),
                other: other.clone(),
            }),
        }
    }
}
