//! The three files: tab-separated, a header line of `name:type`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use wire::log::LogError;

/// Why MovieLens could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is missing, or not text.
    #[error("reading {}; `launch/fetch-movielens` fetches the data", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A first line that is not the one wanted.
    #[error("{}: the header is `{found}`, wanted `{wanted}`", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The first line.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A line with too few or too many fields.
    #[error("{}, line {line}: {found} fields, wanted {wanted}", path.display())]
    Fields {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A field that is not what it should be.
    #[error("{}, line {line}: `{field}` is `{value}`, wanted {wanted}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
    /// A second line about the same thing.
    #[error("{}, line {line}: `{what}` stands there a second time", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The id or ids.
        what: String,
    },
    /// The log has other events where the import would stand.
    #[error("log partition {} has another event at offset {offset}: import into another --root, or remove the partition", partition.display())]
    OtherLog {
        /// The partition's folder.
        partition: PathBuf,
        /// The first offset that differs.
        offset: u64,
    },
    /// The log refused.
    #[error("writing the event log")]
    Log(#[from] LogError),
}

/// One rating.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// Who.
    pub user_id: String,
    /// Which movie.
    pub item_id: String,
    /// 1 to 5.
    pub rating: f32,
    /// When, microseconds since the Unix epoch.
    pub time_us: i64,
}

/// One movie.
#[derive(Debug, Clone, PartialEq)]
pub struct Movie {
    /// Its id.
    pub item_id: String,
    /// Its title.
    pub title: String,
    /// When it came out; missing where the data has no year.
    pub release_year: Option<u16>,
    /// At least one.
    pub genres: Vec<String>,
}

/// One person.
#[derive(Debug, Clone, PartialEq)]
pub struct Person {
    /// Years.
    pub age: u8,
    /// As in the data.
    pub gender: String,
    /// As in the data.
    pub occupation: String,
    /// As in the data.
    pub zip_code: String,
}

impl Movie {
    /// The genre that stands first.
    pub fn first_genre(&self) -> &str {
        self.genres.first().map_or("unknown", String::as_str)
    }
}

/// The whole data set; every rating's person and movie are there.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// In the order of time, then of the file.
    pub ratings: Vec<Rating>,
    /// By item id.
    pub movies: BTreeMap<String, Movie>,
    /// By user id.
    pub people: BTreeMap<String, Person>,
}

const RATING_COLUMNS: [&str; 4] = [
    "user_id:token",
    "item_id:token",
    "rating:float",
    "timestamp:float",
];
const MOVIE_COLUMNS: [&str; 4] = [
    "item_id:token",
    "movie_title:token_seq",
    "release_year:token",
    "class:token_seq",
];
const PERSON_COLUMNS: [&str; 5] = [
    "user_id:token",
    "age:token",
    "gender:token",
    "occupation:token",
    "zip_code:token",
];

impl Dataset {
    /// Reads the three files of a folder.
    ///
    /// # Errors
    /// [`ImportError`] names file, line and field.
    pub fn load(folder: &Path) -> Result<Self, ImportError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| ImportError::Read { path, source })
        };
        let (ratings, movies) = (read("ml-100k.inter")?, read("ml-100k.item")?);
        Self::parse(&ratings, &movies, &read("ml-100k.user")?, folder)
    }

    /// Parses the texts of the three files; `folder` is for messages.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(
        ratings: &str,
        movies: &str,
        people: &str,
        folder: &Path,
    ) -> Result<Self, ImportError> {
        let movies = parse_movies(movies, &folder.join("ml-100k.item"))?;
        let people = parse_people(people, &folder.join("ml-100k.user"))?;
        let mut dataset = Self {
            ratings: Vec::new(),
            movies,
            people,
        };
        dataset.ratings = dataset.parse_ratings(ratings, &folder.join("ml-100k.inter"))?;
        Ok(dataset)
    }

    fn parse_ratings(&self, text: &str, path: &Path) -> Result<Vec<Rating>, ImportError> {
        let mut ratings = Vec::new();
        let mut seen = BTreeSet::new();
        for row in rows(text, path, &RATING_COLUMNS)? {
            let row = row?;
            let [user_id, item_id, ..] = row.fields;
            let known = |known, field, value, wanted| {
                if known {
                    Ok(())
                } else {
                    Err(row.bad(field, value, wanted))
                }
            };
            known(
                self.people.contains_key(user_id),
                "user_id",
                user_id,
                "an id of ml-100k.user",
            )?;
            known(
                self.movies.contains_key(item_id),
                "item_id",
                item_id,
                "an id of ml-100k.item",
            )?;
            if !seen.insert((user_id, item_id)) {
                return Err(row.duplicate(format!("{user_id}, {item_id}")));
            }
            let rating = row.number(2, "rating", "a number from 1 to 5", |it: f32| {
                (1.0..=5.0).contains(&it)
            })?;
            let seconds = row.number(3, "timestamp", "seconds since 1970", |it: f64| {
                (2.0..4e9).contains(&it)
            })?;
            ratings.push(Rating {
                user_id: user_id.to_owned(),
                item_id: item_id.to_owned(),
                rating,
                time_us: (seconds * 1e6) as i64,
            });
        }
        ratings.sort_by_key(|rating| rating.time_us);
        Ok(ratings)
    }
}

fn parse_movies(text: &str, path: &Path) -> Result<BTreeMap<String, Movie>, ImportError> {
    let mut movies = BTreeMap::new();
    for row in rows(text, path, &MOVIE_COLUMNS)? {
        let row = row?;
        let [item_id, title, year, genres] = row.fields;
        row.id("item_id", item_id)?;
        let genres: Vec<String> = genres.split_whitespace().map(str::to_owned).collect();
        if genres.is_empty() {
            return Err(row.bad("class", "", "at least one genre"));
        }
        let movie = Movie {
            item_id: item_id.to_owned(),
            title: title.to_owned(),
            // Two movies have none: `unkonwn` and `V` stand there.
            release_year: year.parse().ok(),
            genres,
        };
        if movies.insert(item_id.to_owned(), movie).is_some() {
            return Err(row.duplicate(item_id.to_owned()));
        }
    }
    Ok(movies)
}

fn parse_people(text: &str, path: &Path) -> Result<BTreeMap<String, Person>, ImportError> {
    let mut people = BTreeMap::new();
    for row in rows(text, path, &PERSON_COLUMNS)? {
        let row = row?;
        let [user_id, _, gender, occupation, zip_code] = row.fields;
        row.id("user_id", user_id)?;
        let person = Person {
            age: row.number(1, "age", "whole years from 1 to 120", |it: u8| {
                (1..=120).contains(&it)
            })?,
            gender: gender.to_owned(),
            occupation: occupation.to_owned(),
            zip_code: zip_code.to_owned(),
        };
        if people.insert(user_id.to_owned(), person).is_some() {
            return Err(row.duplicate(user_id.to_owned()));
        }
    }
    Ok(people)
}

/// One line, cut at its tabs.
struct Line<'a, const N: usize> {
    path: &'a Path,
    number: usize,
    fields: [&'a str; N],
}

/// Checks the header and gives the other lines; empty ones are left out.
fn rows<'a, const N: usize>(
    text: &'a str,
    path: &'a Path,
    columns: &[&'static str; N],
) -> Result<impl Iterator<Item = Result<Line<'a, N>, ImportError>>, ImportError> {
    let mut lines = text.lines();
    let found = lines.next().unwrap_or_default();
    if !found.split('\t').eq(columns.iter().copied()) {
        return Err(ImportError::Header {
            path: path.to_owned(),
            found: found.chars().take(200).collect(),
            wanted: columns.join("\\t"),
        });
    }
    let numbered = lines.enumerate().map(|(at, line)| (at + 2, line));
    let filled = numbered.filter(|(_, line)| !line.is_empty());
    Ok(filled.map(move |(number, line)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let wanted = |fields: Vec<&str>| ImportError::Fields {
            path: path.to_owned(),
            line: number,
            found: fields.len(),
            wanted: N,
        };
        let fields = <[&str; N]>::try_from(fields).map_err(wanted)?;
        Ok(Line {
            path,
            number,
            fields,
        })
    }))
}

impl<const N: usize> Line<'_, N> {
    fn number<T: FromStr + Copy>(
        &self,
        at: usize,
        field: &'static str,
        wanted: &'static str,
        admits: impl Fn(T) -> bool,
    ) -> Result<T, ImportError> {
        let text = self.fields[at];
        let value = text.parse::<T>().ok().filter(|value| admits(*value));
        value.ok_or_else(|| self.bad(field, text, wanted))
    }

    fn id(&self, field: &'static str, value: &str) -> Result<(), ImportError> {
        if value.is_empty() || value.len() > 100 {
            return Err(self.bad(field, value, "an id of 1 to 100 bytes"));
        }
        Ok(())
    }

    fn bad(&self, field: &'static str, value: &str, wanted: &'static str) -> ImportError {
        ImportError::Value {
            path: self.path.to_owned(),
            line: self.number,
            field,
            value: value.chars().take(100).collect(),
            wanted,
        }
    }

    fn duplicate(&self, what: String) -> ImportError {
        ImportError::Duplicate {
            path: self.path.to_owned(),
            line: self.number,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATINGS: &str = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
    const MOVIES: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n10\tToy Story\t1995\tAnimation Comedy\n11\tV\tunkonwn\tunknown\n";
    const PEOPLE: &str = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t85711\n";

    fn parse_ratings(lines: &str) -> Result<Dataset, ImportError> {
        let ratings = format!("{RATINGS}{lines}");
        Dataset::parse(&ratings, MOVIES, PEOPLE, Path::new("ml"))
    }

    fn check_message(lines: &str, expected: &str) {
        let message = parse_ratings(lines).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn good_files_parse_in_the_order_of_time() {
        let dataset = parse_ratings("1\t10\t4\t300\n1\t11\t2.5\t200\n").unwrap();
        let items: Vec<&str> = dataset
            .ratings
            .iter()
            .map(|it| it.item_id.as_str())
            .collect();
        assert_eq!(items, ["11", "10"]);
        assert_eq!(dataset.ratings[0].time_us, 200_000_000);
        assert_eq!(dataset.movies["11"].release_year, None);
        assert_eq!(dataset.movies["10"].genres, ["Animation", "Comedy"]);
    }

    #[test]
    fn bad_lines_name_file_line_and_field() {
        check_message("1\t10\t4\n", "ml/ml-100k.inter, line 2: 3 fields, wanted 4");
        check_message("1\t10\tx\t9\n", "line 2: `rating` is `x`, wanted a number");
        check_message("1\t10\tNaN\t9\n", "`rating` is `NaN`");
        check_message("1\t10\t9\t9\n", "`rating` is `9`");
        check_message("1\t10\t4\t-1\n", "`timestamp` is `-1`");
        check_message("1\t10\t4\t9\n2\t10\t4\t9\n", "line 3: `user_id` is `2`");
        check_message(
            "1\t99\t4\t9\n",
            "`item_id` is `99`, wanted an id of ml-100k.item",
        );
        check_message(
            "1\t10\t4\t9\n1\t10\t3\t9\n",
            "line 3: `1, 10` stands there a second time",
        );
    }

    #[test]
    fn a_foreign_header_is_refused() {
        let error = Dataset::parse("a\tb\n", MOVIES, PEOPLE, Path::new("ml")).unwrap_err();
        assert!(matches!(error, ImportError::Header { .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_says_how_to_get_it() {
        let error = Dataset::load(Path::new("/nowhere")).unwrap_err();
        assert!(
            error.to_string().contains("launch/fetch-movielens"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(ratings in any::<String>(), movies in any::<String>(), people in any::<String>()) {
            let _ = Dataset::parse(&ratings, &movies, &people, Path::new(""));
        }

        #[test]
        fn no_line_panics_and_what_parses_is_kept(lines in prop::collection::vec("[0-9a.\t-]{0,12}", 0..6)) {
            let text: String = lines.iter().map(|line| format!("1\t{line}\n")).collect();
            if let Ok(dataset) = parse_ratings(&text) {
                prop_assert_eq!(dataset.ratings.len(), lines.len());
            }
        }
    }
}
