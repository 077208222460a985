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
    /// Columns of dense numbers.
    pub num_dense: usize,
    /// In the order of their columns.
    pub fields: Vec<Field>,
}

impl InputLayout {
    /// Dense numbers, and fields by name and number of columns.
    pub fn new(num_dense: usize, fields: impl IntoIterator<Item = (String, usize)>) -> Self {
        let field = |(feature, dim)| Field { feature, dim };
        Self {
            num_dense,
            fields: fields.into_iter().map(field).collect(),
        }
    }

    /// Columns of all.
    pub fn width(&self) -> usize {
        self.num_dense + self.num_columns_of_fields()
    }

    pub(super) fn num_columns_of_fields(&self) -> usize {
        self.fields.iter().map(|field| field.dim).sum()
    }

    /// Places of the fields of these features, which a key of the configuration names.
    pub(super) fn fields_of(
        &self,
        key: &'static str,
        features: &[String],
    ) -> Result<Vec<usize>, NetworkError> {
        let of = |feature: &String| {
            let mut fields = self.fields.iter();
            let at = fields.position(|field| field.feature == *feature);
            at.ok_or_else(|| NetworkError::UnknownFeature {
                key,
                feature: feature.clone(),
                known: self.names().join(", "),
            })
        };
        features.iter().map(of).collect()
    }

    /// Their columns.
    pub(super) fn columns_of(
        &self,
        key: &'static str,
        features: &[String],
    ) -> Result<Vec<Range<usize>>, NetworkError> {
        let fields = self.fields_of(key, features)?.into_iter();
        Ok(fields.map(|field| self.columns(field)).collect())
    }

    /// Columns of a field.
    pub(super) fn columns(&self, field: usize) -> Range<usize> {
        let before: usize = self.fields[..field].iter().map(|field| field.dim).sum();
        let first = self.num_dense + before;
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

    fn names(&self) -> Vec<&str> {
        self.fields.iter().map(|field| &*field.feature).collect()
    }
}
