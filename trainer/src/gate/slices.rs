//! Groups of rows that a model should be right for, each by itself.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::table::Examples;

/// The rows of each slice.
#[derive(Debug)]
pub struct Slices {
    /// What the slices are of, their values, and rows; by name.
    pub slices: Vec<Slice>,
}

/// Rows with the same value of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// What is the same.
    pub by: &'static str,
    /// How it is.
    pub value: String,
    /// The rows.
    pub rows: Vec<u32>,
}

impl Slices {
    /// By genre, device, format and category, and ads that the training rows had against those that
    /// they had not.
    pub fn of(rows: &Examples, known: &HashSet<String>) -> Self {
        let age = |creative: &String| match (&**creative, known.contains(creative)) {
            // Rows from elsewhere name no ad.
            ("", _) => String::new(),
            (_, true) => "seen in training".to_owned(),
            (_, false) => "new".to_owned(),
        };
        let ages: Vec<String> = rows.creative_ids.iter().map(age).collect();
        let by = [
            ("genre", &rows.genres),
            ("device", &rows.devices),
            ("format", &rows.formats),
            ("category", &rows.categories),
            ("ad", &ages),
        ];
        let mut slices = Vec::new();
        for (by, values) in by {
            let mut found: BTreeMap<&String, Vec<u32>> = BTreeMap::new();
            for (row, value) in values.iter().enumerate() {
                found.entry(value).or_default().push(row as u32);
            }
            slices.extend(
                found
                    .into_iter()
                    .filter(|(value, _)| !value.is_empty())
                    .map(|(value, rows)| Slice {
                        by,
                        value: value.clone(),
                        rows,
                    }),
            );
        }
        slices.sort_by_key(|slice| std::cmp::Reverse(slice.rows.len()));
        Self { slices }
    }
}

/// The number of each row's person, and how many there are; rows of nobody are each by themselves.
pub fn people(user_ids: &[String]) -> (Vec<u32>, usize) {
    let mut known: HashMap<&str, u32> = HashMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    let numbers = user_ids.iter().map(|user| match &**user {
        "" => fresh(),
        user => *known.entry(user).or_insert_with(&mut fresh),
    });
    let numbers = numbers.collect();
    (numbers, next as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_person_have_one_number_and_strangers_their_own() {
        let users = ["a", "", "b", "a", ""].map(str::to_owned);
        assert_eq!(people(&users), (vec![0, 1, 2, 0, 3], 4));
    }
}
