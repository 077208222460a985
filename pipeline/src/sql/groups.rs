//! Windowed aggregates as SQL: for each request, what was known then of the entities that it names.
//!
//! An event counts in the hour in which it happened, for requests after it was learnt of. Joining
//! requests with events would be a product of both for an entity that many share, such as a
//! category. So the events of an hour are summed first (by the hour in which they happened and the
//! one in which they were learnt of), and the sums of hours that are over are added up once for
//! all requests of an entity and hour; only events learnt of in the running hour are looked at
//! one by one. Chronon calls such windows sawtooth windows (<https://chronon.ai/Tiled_Architecture.html>).

use std::{collections::BTreeSet, fmt::Write};

use features::{
    EntityGroup, FeatureSet, SourceEvent,
    aggregates::MAX_RECENT,
    spec::{Aggregation, Feature},
};

use super::{
    HOUR_US, View,
    engine::{Engine, Link},
};
use crate::facts;

/// The features of one entity group.
pub(super) struct Group<'a> {
    pub engine: Engine,
    /// Its place in [`FeatureSet::entity_groups`].
    pub index: usize,
    pub group: EntityGroup,
    pub features: Vec<&'a Feature>,
}

/// Events of the group that are counted, and over which windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Count {
    source: SourceEvent,
    hours: u32,
}

/// The groups of a set that have features.
pub(super) fn groups(set: &FeatureSet, engine: Engine) -> Vec<Group<'_>> {
    let of = |(index, group): (usize, EntityGroup)| {
        let features = set.spec().features.iter();
        let features =
            features.filter(|feature| feature.aggregation.is_some() && feature.key == group.key);
        Group {
            engine,
            index,
            features: features.collect(),
            group,
        }
    };
    set.entity_groups()
        .into_iter()
        .enumerate()
        .map(of)
        .collect()
}

fn hours(feature: &Feature) -> u32 {
    // The spec was checked.
    feature.window_hours().unwrap_or_default()
}

fn count_column(source: SourceEvent, hours: u32) -> String {
    format!("{}_{hours}h_count", source.name())
}

fn sum_column(source: SourceEvent, hours: u32) -> String {
    format!("{}_{hours}h_sum", source.name())
}

impl Group<'_> {
    fn name(&self, part: &str) -> String {
        format!("g{}_{part}", self.index)
    }

    /// The view with a row for each request of the group; needs the views before it.
    pub fn result(&self) -> String {
        format!("g{}", self.index)
    }

    /// Names of the key's columns.
    fn keys(&self) -> Vec<String> {
        self.group
            .key
            .iter()
            .map(|key| facts::column(key))
            .collect()
    }

    /// Conditions that two tables have the same key.
    fn same_key(&self, left: &str, right: &str) -> String {
        let same = self
            .keys()
            .into_iter()
            .map(|key| format!("{left}.{key} = {right}.{key}"));
        same.collect::<Vec<_>>().join(" AND ")
    }

    /// The keys with a table's name before them.
    fn keys_of(&self, table: &str) -> String {
        let keys = self.keys().into_iter().map(|key| format!("{table}.{key}"));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// What a key is without a fact: as in the aggregates, an empty text.
    fn known_keys(&self) -> String {
        let keys = self
            .keys()
            .into_iter()
            .map(|key| format!("COALESCE({key}, '') AS {key}"));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// Counts and sums that some feature looks at.
    fn counts(&self) -> BTreeSet<Count> {
        let mut counts = BTreeSet::new();
        for feature in self
            .features
            .iter()
            .filter(|feature| feature.value.is_none())
        {
            for source in feature.source.iter().chain(&feature.over) {
                counts.insert(Count {
                    source: *source,
                    hours: hours(feature),
                });
            }
        }
        counts
    }

    /// Values that some feature remembers: source, fact, and over how many hours at most.
    fn remembered(&self) -> Vec<(SourceEvent, String, u32)> {
        let mut remembered: Vec<(SourceEvent, String, u32)> = Vec::new();
        for feature in &self.features {
            let (Some(source), Some(value)) = (feature.source, &feature.value) else {
                continue;
            };
            let same =
                |(of, fact, _): &&mut (SourceEvent, String, u32)| *of == source && fact == value;
            match remembered.iter_mut().find(same) {
                Some((.., longest)) => *longest = hours(feature).max(*longest),
                None => remembered.push((source, value.clone(), hours(feature))),
            }
        }
        remembered
    }

    /// All views of the group, in an order in which each has those that it needs.
    pub fn views(&self) -> Vec<View> {
        let mut views = vec![self.requests(), self.events()];
        if !self.counts().is_empty() {
            views.extend([self.tiles(), self.over(), self.running()]);
        }
        for (at, (source, fact, longest)) in self.remembered().into_iter().enumerate() {
            views.push(self.seen(at, source, &fact, longest));
        }
        for (at, feature) in self.features.iter().enumerate() {
            if feature.value.is_some() {
                views.push(self.values(at, feature));
            }
        }
        views.push(self.joined());
        views
    }

    fn requests(&self) -> View {
        let personal = if self.group.personal {
            " WHERE personal"
        } else {
            ""
        };
        View::new(
            self.name("requests"),
            format!(
                "SELECT request_id, time_us, tile, known_us, known_tile, {} FROM requests{personal}",
                self.known_keys()
            ),
        )
    }

    fn events(&self) -> View {
        let mut conditions = vec!["TRUE"];
        conditions.extend(self.group.personal.then_some("personal"));
        conditions.extend(self.group.needs_ad.then_some("has_ad"));
        let remembered = self.remembered();
        let facts: BTreeSet<String> = remembered
            .iter()
            .map(|(_, fact, _)| facts::column(fact))
            .collect();
        let values: String = facts
            .iter()
            .map(|fact| format!(", {fact} AS value_{fact}"))
            .collect();
        View::new(
            self.name("events"),
            format!(
                "SELECT source, amount, event_us, known_us, tile, known_tile, {}{values} FROM events WHERE {}",
                self.known_keys(),
                conditions.join(" AND ")
            ),
        )
    }

    fn sources(&self) -> BTreeSet<SourceEvent> {
        self.counts()
            .into_iter()
            .map(|count| count.source)
            .collect()
    }

    /// Events by key, hour, and hour in which they were learnt of.
    fn tiles(&self) -> View {
        let mut columns = String::new();
        for source in self.sources() {
            let name = source.name();
            // `String`'s writer cannot fail.
            let _ = write!(
                columns,
                ", SUM(CASE WHEN source = '{name}' THEN 1 ELSE 0 END) AS {name}_count, \
                 SUM(CASE WHEN source = '{name}' THEN amount ELSE 0E0 END) AS {name}_sum"
            );
        }
        let keys = self.keys().join(", ");
        View::new(
            self.name("tiles"),
            format!(
                "SELECT {keys}, tile, known_tile{columns} FROM {} GROUP BY {keys}, tile, known_tile",
                self.name("events")
            ),
        )
    }

    fn longest(&self) -> u32 {
        self.counts()
            .into_iter()
            .map(|count| count.hours)
            .max()
            .unwrap_or(0)
    }

    /// Sums over the windows; `one` and `amount` say what an event or a tile adds.
    fn windows(&self, one: impl Fn(&str) -> String, amount: impl Fn(&str) -> String) -> String {
        let mut columns = String::new();
        for Count { source, hours } in self.counts() {
            let inside = format!("e.tile > r.tile - {hours}");
            let (one, amount) = (one(source.name()), amount(source.name()));
            let _ = write!(
                columns,
                ", SUM(CASE WHEN {inside} THEN {one} ELSE 0 END) AS {}, \
                 SUM(CASE WHEN {inside} THEN {amount} ELSE 0E0 END) AS {}",
                count_column(source, hours),
                sum_column(source, hours)
            );
        }
        columns
    }

    /// What was learnt of in hours before that of the last that counts, once for each key and hour.
    fn over(&self) -> View {
        let keys = self.keys_of("r");
        let windows = self.windows(
            |source| format!("e.{source}_count"),
            |source| format!("e.{source}_sum"),
        );
        View::new(
            self.name("over"),
            format!(
                "SELECT {keys}, r.tile, r.known_tile{windows} FROM (SELECT DISTINCT {}, tile, known_tile FROM {}) r JOIN {} e ON {} \
                 AND e.known_tile < r.known_tile AND e.tile <= r.tile AND e.tile > r.tile - {} GROUP BY {keys}, r.tile, r.known_tile",
                self.keys().join(", "),
                self.name("requests"),
                self.name("tiles"),
                self.same_key("r", "e"),
                self.longest()
            ),
        )
    }

    /// What was learnt of in the hour of the last that counts, before that.
    fn running(&self) -> View {
        let windows = self.windows(
            |source| format!("CASE WHEN e.source = '{source}' THEN 1 ELSE 0 END"),
            |source| format!("CASE WHEN e.source = '{source}' THEN e.amount ELSE 0E0 END"),
        );
        View::new(
            self.name("running"),
            format!(
                "SELECT r.request_id{windows} FROM {} r JOIN {} e ON {} AND e.known_tile = r.known_tile \
                 AND e.known_us < r.known_us AND e.tile <= r.tile AND e.tile > r.tile - {} GROUP BY r.request_id",
                self.name("requests"),
                self.name("events"),
                self.same_key("r", "e"),
                self.longest()
            ),
        )
    }

    /// When each value was seen last.
    fn seen(&self, at: usize, source: SourceEvent, fact: &str, longest: u32) -> View {
        let value = format!("e.value_{}", facts::column(fact));
        let id = self.engine.hash(&[Link::Text(value.clone())]);
        View::new(
            self.name(&format!("seen{at}")),
            format!(
                "SELECT r.request_id, r.time_us, {id} AS id, MAX(e.event_us) AS seen_us FROM {} r JOIN {} e ON {} \
                 AND e.source = '{}' AND {value} IS NOT NULL AND e.known_us < r.known_us \
                 AND e.event_us > r.time_us - {} GROUP BY r.request_id, r.time_us, {id}",
                self.name("requests"),
                self.name("events"),
                self.same_key("r", "e"),
                source.name(),
                i64::from(longest) * HOUR_US
            ),
        )
    }

    /// One feature's remembered values for each request: the newest ids, or how many there are.
    fn values(&self, at: usize, feature: &Feature) -> View {
        let remembered = self.remembered();
        let same = |(source, fact, _): &(SourceEvent, String, u32)| {
            Some(*source) == feature.source && Some(fact) == feature.value.as_ref()
        };
        // It was made of the features.
        let seen = remembered.iter().position(same).unwrap_or_default();
        let from = format!(
            "(SELECT request_id, id, ROW_NUMBER() OVER (PARTITION BY request_id ORDER BY seen_us DESC, id DESC) AS place \
             FROM {} WHERE seen_us > time_us - {}) ranked",
            self.name(&format!("seen{seen}")),
            i64::from(hours(feature)) * HOUR_US
        );
        let columns = match feature.aggregation {
            Some(Aggregation::Last) => {
                let place =
                    |place| format!(", MAX(CASE WHEN place = {place} THEN id END) AS id{place}");
                let places: String = (1..=feature.last).map(place).collect();
                format!("COUNT(*) AS num{places}")
            }
            _ => format!("SUM(CASE WHEN place <= {MAX_RECENT} THEN 1 ELSE 0 END) AS num"),
        };
        View::new(
            self.name(&format!("values{at}")),
            format!("SELECT request_id, {columns} FROM {from} GROUP BY request_id"),
        )
    }

    /// All of them for each request; what was not found is null.
    fn joined(&self) -> View {
        let mut columns = vec!["r.request_id".to_owned()];
        let mut joins = String::new();
        if !self.counts().is_empty() {
            for Count { source, hours } in self.counts() {
                for (name, zero) in [
                    (count_column(source, hours), "0"),
                    (sum_column(source, hours), "0E0"),
                ] {
                    columns.push(format!(
                        "COALESCE(o.{name}, {zero}) + COALESCE(n.{name}, {zero}) AS {name}"
                    ));
                }
            }
            let _ = write!(
                joins,
                " LEFT JOIN {} o ON {} AND r.tile = o.tile AND r.known_tile = o.known_tile LEFT JOIN {} n ON r.request_id = n.request_id",
                self.name("over"),
                self.same_key("r", "o"),
                self.name("running")
            );
        }
        for (at, feature) in self.features.iter().enumerate() {
            if feature.value.is_none() {
                continue;
            }
            let value = self.remembered_value(&format!("v{at}"), feature);
            columns.push(format!("{value} AS values{at}"));
            let _ = write!(
                joins,
                " LEFT JOIN {} v{at} ON r.request_id = v{at}.request_id",
                self.name(&format!("values{at}"))
            );
        }
        View {
            keep: true,
            ..View::new(
                self.result(),
                format!(
                    "SELECT {} FROM {} r{joins}",
                    columns.join(", "),
                    self.name("requests")
                ),
            )
        }
    }

    fn remembered_value(&self, table: &str, feature: &Feature) -> String {
        if feature.aggregation != Some(Aggregation::Last) {
            return format!("{table}.num");
        }
        let ids: Vec<String> = (1..=feature.last)
            .map(|place| format!("{table}.id{place}"))
            .collect();
        let cases: String = (1..=ids.len())
            .rev()
            .map(|found| {
                format!(
                    "WHEN {table}.num >= {found} THEN {} ",
                    self.engine.array(&ids[..found])
                )
            })
            .collect();
        format!("CASE {cases}ELSE {} END", self.engine.no_array())
    }

    /// What one of its features is, of the columns of the group's view under a name; null where
    /// it is missing.
    pub fn value(&self, feature: &Feature, table: &str) -> String {
        let at = self
            .features
            .iter()
            .position(|known| known.name == feature.name);
        let of = |column: String| format!("{table}.{column}");
        let number = |column: String| format!("CAST(COALESCE({}, 0) AS DOUBLE)", of(column));
        // The spec was checked: what counts has a source, and a rate what it is taken over.
        let source = feature.source.unwrap_or(SourceEvent::Impression);
        let hours = hours(feature);
        match feature.aggregation {
            Some(Aggregation::Last) => of(format!("values{}", at.unwrap_or_default())),
            Some(Aggregation::Distinct) => number(format!("values{}", at.unwrap_or_default())),
            Some(Aggregation::Sum) => number(sum_column(source, hours)),
            Some(Aggregation::Mean) => format!(
                "({} / NULLIF({}, 0E0))",
                number(sum_column(source, hours)),
                number(count_column(source, hours))
            ),
            Some(Aggregation::Rate) => {
                let over = feature.over.unwrap_or(source);
                let [above, below] = feature.prior.map(|prior| self.engine.double(prior));
                format!(
                    "(({} + {above}) / ({} + {below}))",
                    number(count_column(source, hours)),
                    number(count_column(over, hours))
                )
            }
            Some(Aggregation::Count) | None => number(count_column(source, hours)),
        }
    }
}
