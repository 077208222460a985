//! A compiled spec: from facts and aggregates to rows of values.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::AddAssign,
    path::Path,
};

use serde::{Deserialize, Serialize};
use wire::events::FeatureSnapshot;

use crate::{
    aggregates::{
        EntityKey, EntityState, HourSums, Known, SourceEvent, StateSource, WindowSums, entity_key,
    },
    batch::FeatureBatch,
    expression::{BoundFact, Compiled, ResultType, Value},
    facts::{AD_FACTS, Fact, Facts, PERSONAL, REQUEST_FACTS},
    hash,
    spec::{Aggregation, Feature, FeatureSpec, Kind, SpecError, Tier, Transform},
};

/// One dense column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseField {
    /// The feature's name.
    pub name: String,
}

/// One column of ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseField {
    /// The feature's name.
    pub name: String,
    /// Whether a row may have any number of ids; else it has exactly one.
    pub multi: bool,
    /// How many ids there can be, from 0 on; unknown where they are hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cardinality: Option<u64>,
}

/// Columns of a [`FeatureBatch`], in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Digest of the spec that it comes from.
    pub digest: String,
    /// Numbers.
    pub dense: Vec<DenseField>,
    /// Ids.
    pub sparse: Vec<SparseField>,
}

/// A request's facts, resolved for one [`FeatureSet`].
#[derive(Debug, Clone, PartialEq)]
pub struct RequestFacts {
    slots: Vec<BoundFact>,
    personal: bool,
}

impl RequestFacts {
    /// Whether personal features may be used: 13 or over, with consent.
    pub fn personal_allowed(&self) -> bool {
        self.personal
    }

    /// Facts that were kept as texts, in the order of [`FeatureSet::fact_names`], of a request and its ad
    /// together.
    pub fn of_texts<'a>(texts: impl Iterator<Item = Option<&'a str>>, personal: bool) -> Self {
        let bound = |found: Option<&str>| found.map_or(BoundFact::Missing, text);
        Self {
            slots: texts.map(bound).collect(),
            personal,
        }
    }

    /// The value of a fact of [`FeatureSet::fact_names`], by its index: the ad's if it has one, else
    /// the request's.
    pub fn fact<'a>(&'a self, ad: Option<&'a AdFacts>, index: usize) -> &'a BoundFact {
        fact(self, ad, index)
    }
}

/// An ad's facts, resolved for one [`FeatureSet`].
#[derive(Debug, Clone, PartialEq)]
pub struct AdFacts {
    slots: Vec<BoundFact>,
}

impl AdFacts {
    /// An ad whose facts stand in the request.
    pub fn in_request(set: &FeatureSet) -> Self {
        Self {
            slots: vec![BoundFact::Missing; set.slots.len()],
        }
    }
}

/// How often a value was not what the spec promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvaluationCounts {
    /// Missing values that took the default.
    pub missing: u64,
    /// Values that were not finite and took the default.
    pub not_finite: u64,
    /// Values clamped into their range.
    pub clamped: u64,
    /// Personal values that were withheld.
    pub withheld: u64,
    /// Values whose time to live had passed, and that took the default.
    pub stale: u64,
    /// Entities of which is not known any more what was known then: as if they were unknown.
    pub too_late: u64,
}

impl AddAssign for EvaluationCounts {
    fn add_assign(&mut self, more: Self) {
        self.missing += more.missing;
        self.not_finite += more.not_finite;
        self.clamped += more.clamped;
        self.withheld += more.withheld;
        self.stale += more.stale;
        self.too_late += more.too_late;
    }
}

/// Ads that stand for many in the entities that a request will ask for with any of them.
#[derive(Debug, Clone, Default)]
pub struct Representatives(Vec<(usize, Vec<AdFacts>)>);

/// What events are counted for: the entities that some facts name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityGroup {
    /// The facts.
    pub key: Vec<String>,
    /// Whether events without an ad do not count.
    pub needs_ad: bool,
    /// Whether only events count whose request allows personal features.
    pub personal: bool,
}

/// Features that share an entity.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    name: String,
    key: Vec<usize>,
    pub(crate) needs_ad: bool,
    /// No feature of the group may be used for children: then nothing is stored for them either.
    pub(crate) personal: bool,
    pub(crate) recent: Vec<Recent>,
    /// Lengths in hours of the windows that some feature of the group looks at.
    windows: Vec<u32>,
    /// Their places by rising length.
    by_length: Vec<usize>,
    /// The longest window of any feature of the group, in hours.
    hours: u32,
    /// No feature of the group is to be kept in memory.
    warm: bool,
}

/// How the online store keeps the entities of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Whether they may lie on disk.
    pub warm: bool,
    /// No feature looks further back, in hours.
    pub hours: u32,
}

/// A fact that an entity remembers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recent {
    pub(crate) source: SourceEvent,
    pub(crate) slot: usize,
}

#[derive(Debug, Clone)]
enum Source {
    Expression(Compiled),
    Window {
        group: usize,
        window: usize,
        aggregation: Aggregation,
        source: SourceEvent,
    },
    Rate {
        group: usize,
        window: usize,
        source: SourceEvent,
        over: SourceEvent,
        prior: [f64; 2],
    },
    Recent {
        group: usize,
        slot: usize,
        last: usize,
        hours: u32,
    },
}

/// What is known of a group's entity at one time.
#[derive(Debug, Clone, Default)]
struct Seen<'a> {
    state: Option<&'a EntityState>,
    /// One per window of the group; none if the entity is unknown.
    windows: Cow<'a, [WindowSums]>,
}

#[derive(Debug, Clone)]
struct Column {
    kind: Kind,
    multi: bool,
    source: Source,
    transform: Transform,
    default: f64,
    range: Option<[f64; 2]>,
    child_safe: bool,
    ttl_us: Option<i64>,
}

/// A compiled spec.
#[derive(Debug, Clone)]
pub struct FeatureSet {
    spec: FeatureSpec,
    schema: Schema,
    slots: Vec<String>,
    groups: Vec<Group>,
    columns: Vec<Column>,
    longest_window_hours: u32,
}

const MISSING: BoundFact = BoundFact::Missing;

impl FeatureSet {
    /// Reads, checks and compiles a spec file.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        FeatureSpec::load(path).map(Self::compile)
    }

    /// Compiles a checked spec.
    pub fn compile(spec: FeatureSpec) -> Self {
        let schema = Schema {
            digest: spec.digest().to_owned(),
            ..Schema::default()
        };
        let mut set = Self {
            spec: spec.clone(),
            schema,
            slots: Vec::new(),
            groups: Vec::new(),
            columns: Vec::new(),
            longest_window_hours: 0,
        };
        for feature in &spec.features {
            let column = set.column(feature);
            let name = feature.name.clone();
            match feature.kind {
                Kind::Dense => set.schema.dense.push(DenseField { name }),
                Kind::Sparse => set.schema.sparse.push(SparseField {
                    name,
                    multi: column.multi,
                    cardinality: None,
                }),
            }
            set.columns.push(column);
        }
        set
    }

    /// Binds every fact that there is, and not only those that features use: for keeping what was
    /// known, so that a feature can be computed that is not thought of yet.
    pub fn with_every_fact(mut self) -> Self {
        let standard = REQUEST_FACTS.iter().chain(&AD_FACTS);
        let standard = standard.map(|(name, _)| (*name).to_owned());
        let names: Vec<String> = standard.chain(self.spec.facts.keys().cloned()).collect();
        for name in names {
            self.slot(&name);
        }
        self
    }

    /// Columns that [`Self::evaluate`] fills.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The spec it was compiled from.
    pub fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    /// Digest of the spec.
    pub fn digest(&self) -> &str {
        &self.schema.digest
    }

    /// The longest window of any feature: older tiles may be dropped.
    pub fn longest_window_hours(&self) -> u32 {
        self.longest_window_hours
    }

    /// Resolves a request's facts.
    pub fn bind_request(&self, facts: &Facts) -> RequestFacts {
        let personal = facts.get(PERSONAL) == Some(&Fact::Number(1.0));
        RequestFacts {
            slots: self.bind(facts),
            personal,
        }
    }

    /// Resolves an ad's facts; done once per catalogue.
    pub fn bind_ad(&self, facts: &Facts) -> AdFacts {
        AdFacts {
            slots: self.bind(facts),
        }
    }

    /// The entities whose states [`Self::evaluate`] will ask for, without duplicates.
    pub fn keys(&self, request: &RequestFacts, ads: &[&AdFacts]) -> Vec<EntityKey> {
        let mut keys = BTreeSet::new();
        for group in &self.groups {
            if group.personal && !request.personal {
                continue;
            }
            if group.needs_ad {
                keys.extend(
                    ads.iter()
                        .map(|ad| self.entity_key(group, request, Some(ad))),
                );
            } else {
                keys.insert(self.entity_key(group, request, None));
            }
        }
        keys.into_iter().collect()
    }

    /// For each group of entities with ads that tells at most `most` of these ads apart, one ad of each
    /// kind: what a request will need can so be read before it is known which ads it looks at.
    pub fn representatives(&self, ads: &[&AdFacts], most: usize) -> Representatives {
        let nobody = self.bind_request(&Facts::new());
        let of_group = |(at, group): (usize, &Group)| {
            let mut seen = HashMap::new();
            for ad in ads {
                let key = self.entity_key(group, &nobody, Some(ad));
                seen.entry(key).or_insert(*ad);
                if seen.len() > most {
                    return None;
                }
            }
            Some((at, seen.into_values().cloned().collect()))
        };
        let groups = self.groups.iter().enumerate();
        let with_ads = groups.filter(|(_, group)| group.needs_ad);
        Representatives(with_ads.filter_map(of_group).collect())
    }

    /// The entities that a request has without an ad, or with any ad that is represented; without
    /// duplicates.
    pub fn keys_ahead(&self, request: &RequestFacts, of: &Representatives) -> Vec<EntityKey> {
        let mut keys: BTreeSet<EntityKey> = self.keys(request, &[]).into_iter().collect();
        for (at, ads) in &of.0 {
            let group = &self.groups[*at];
            if !group.personal || request.personal {
                let with = |ad| self.entity_key(group, request, Some(ad));
                keys.extend(ads.iter().map(with));
            }
        }
        keys.into_iter().collect()
    }

    /// Appends one row per ad to `out`, as of `now_us` (microseconds since the Unix epoch).
    ///
    /// A missing value takes the feature's default; so does one that is not finite, one whose time to
    /// live has passed since [`StateSource::as_of_us`], and, unless the request allows personal
    /// features, every feature that is not `child_safe`. A missing id is [`hash::MISSING_ID`], or no id
    /// in a multi-valued column.
    pub fn evaluate<'a>(
        &self,
        request: &RequestFacts,
        ads: &[&AdFacts],
        states: &'a impl StateSource,
        now_us: i64,
        out: &mut FeatureBatch,
    ) -> EvaluationCounts {
        let mut counts = EvaluationCounts::default();
        let age_us = states.as_of_us().map_or(0, |as_of_us| now_us - as_of_us);
        // Many ads share an entity, and many features a window: each is summed once.
        let mut known = vec![Seen::default()];
        let mut of_key: HashMap<EntityKey, usize> = HashMap::new();
        let mut of_groups = vec![0; self.groups.len()];
        let mut too_late = 0;
        let mut look = |group: &Group, ad: Option<&AdFacts>, known: &mut Vec<Seen<'a>>| {
            *of_key
                .entry(self.entity_key(group, request, ad))
                .or_insert_with_key(|key| {
                    let found = states.state(*key);
                    let state = found.filter(|state| state.remembers(now_us));
                    too_late += u64::from(found.is_some() && state.is_none());
                    let windows = match (state, states.windows(*key, now_us)) {
                        (None, _) => Cow::default(),
                        (Some(_), Some(summed)) => Cow::Borrowed(summed),
                        (Some(state), None) => Cow::Owned(group.sums(state, now_us)),
                    };
                    known.push(Seen { state, windows });
                    known.len() - 1
                })
        };
        let allowed = |group: &Group| !group.personal || request.personal;
        for (group, at) in self.groups.iter().zip(&mut of_groups) {
            if !group.needs_ad && allowed(group) {
                *at = look(group, None, &mut known);
            }
        }
        out.dense.reserve(ads.len() * self.schema.dense.len());
        for ad in ads {
            for (group, at) in self.groups.iter().zip(&mut of_groups) {
                if group.needs_ad && allowed(group) {
                    *at = look(group, Some(ad), &mut known);
                }
            }
            let of_group = |group: usize| &known[of_groups[group]];
            self.row(request, ad, &of_group, [now_us, age_us], out, &mut counts);
        }
        counts.too_late = too_late;
        counts
    }

    /// Sums over the windows of what is known, for requests of the hour of `now_us`. Entities of which
    /// something was learnt of lately are left out: not all requests of the hour see the same of them.
    pub fn window_sums(&self, known: &Known, now_us: i64) -> HourSums {
        let groups: HashMap<u32, &Group> = self
            .groups
            .iter()
            .map(|group| (group.kind(), group))
            .collect();
        let sums = known.iter().filter_map(|(key, state)| {
            let state = state.as_ref().filter(|state| state.is_settled())?;
            let group = groups.get(&key.group)?;
            Some((*key, group.sums(state, now_us).into()))
        });
        HourSums::new(now_us, sums)
    }

    fn row<'a>(
        &self,
        request: &RequestFacts,
        ad: &AdFacts,
        known: &impl Fn(usize) -> &'a Seen<'a>,
        [now_us, age_us]: [i64; 2],
        out: &mut FeatureBatch,
        counts: &mut EvaluationCounts,
    ) {
        let mut sparse = 0;
        for column in &self.columns {
            let withheld = !column.child_safe && !request.personal;
            let stale = !withheld && column.ttl_us.is_some_and(|ttl_us| age_us > ttl_us);
            counts.withheld += u64::from(withheld);
            counts.stale += u64::from(stale);
            match column.kind {
                Kind::Dense if withheld || stale => out.dense.push(column.default as f32),
                Kind::Dense => {
                    let value = column.source.number(request, ad, known, now_us);
                    out.dense.push(column.finish(value, counts));
                }
                Kind::Sparse => {
                    let ids = &mut out.sparse[sparse];
                    sparse += 1;
                    if !withheld && !stale {
                        column.source.ids(request, ad, known, now_us, &mut ids.ids);
                    }
                    let before = ids.offsets[ids.offsets.len() - 1] as usize;
                    if ids.ids.len() == before && !column.multi {
                        counts.missing += u64::from(!withheld && !stale);
                        ids.ids.push(hash::MISSING_ID);
                    }
                    ids.offsets.push(ids.ids.len() as u32);
                }
            }
        }
        out.num_rows += 1;
    }

    /// Gives every feature of a logged row that is not `child_safe` its default, as [`Self::evaluate`]
    /// does for one who is restricted; gives how many had another value. The row has this set's columns:
    /// [`FeatureBatch::push_snapshot`] checks that.
    pub fn withhold(&self, row: &mut FeatureSnapshot) -> u64 {
        let (mut dense, mut sparse, mut withheld) = (0, 0, 0);
        let (mut ids, mut offsets) = (Vec::with_capacity(row.sparse_ids.len()), vec![0]);
        for column in &self.columns {
            match column.kind {
                Kind::Dense => {
                    let (value, default) = (&mut row.dense[dense], column.default as f32);
                    dense += 1;
                    if !column.child_safe {
                        withheld += u64::from(value.to_bits() != default.to_bits());
                        *value = default;
                    }
                }
                Kind::Sparse => {
                    let range = row.sparse_offsets[sparse]..row.sparse_offsets[sparse + 1];
                    let found = &row.sparse_ids[range.start as usize..range.end as usize];
                    sparse += 1;
                    let default: &[u64] = match column.multi {
                        true => &[],
                        false => &[hash::MISSING_ID],
                    };
                    withheld += u64::from(!column.child_safe && found != default);
                    ids.extend_from_slice(if column.child_safe { found } else { default });
                    offsets.push(ids.len() as u32);
                }
            }
        }
        (row.sparse_ids, row.sparse_offsets) = (ids, offsets);
        withheld
    }

    /// What events are counted for, each once.
    pub fn entity_groups(&self) -> Vec<EntityGroup> {
        let group = |group: &Group| EntityGroup {
            key: group
                .key
                .iter()
                .map(|slot| self.slots[*slot].clone())
                .collect(),
            needs_ad: group.needs_ad,
            personal: group.personal,
        };
        self.groups.iter().map(group).collect()
    }

    /// How the online store is to keep entities, by [`EntityKey::group`].
    pub fn keeping(&self) -> BTreeMap<u32, Keeping> {
        let of = |group: &Group| {
            let keeping = Keeping {
                warm: group.warm,
                hours: group.hours,
            };
            (group.kind(), keeping)
        };
        self.groups.iter().map(of).collect()
    }

    /// Names of the facts that it binds.
    pub fn fact_names(&self) -> &[String] {
        &self.slots
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(crate) fn entity_key(
        &self,
        group: &Group,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
    ) -> EntityKey {
        entity_key(
            &group.name,
            group
                .key
                .iter()
                .map(|slot| Value::from(fact(request, ad, *slot))),
        )
    }

    /// The id of a remembered fact, unless it is missing.
    pub(crate) fn value_id(
        &self,
        slot: usize,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
    ) -> Option<u64> {
        match fact(request, ad, slot) {
            BoundFact::Text(_, hash) => Some(*hash),
            _ => None,
        }
    }

    fn bind(&self, facts: &Facts) -> Vec<BoundFact> {
        let bound = |name: &String| match facts.get(name) {
            None | Some(Fact::Missing) => BoundFact::Missing,
            Some(Fact::Number(number)) if self.is_text(name) => text(&number.to_string()),
            Some(Fact::Number(number)) => BoundFact::Number(*number),
            Some(Fact::Text(value)) if self.is_list(name) => {
                BoundFact::List([hash::hash_text(value)].into())
            }
            Some(Fact::Text(value)) => text(value),
            Some(Fact::List(values)) => {
                BoundFact::List(values.iter().map(|value| hash::hash_text(value)).collect())
            }
            Some(Fact::Vector(vector)) => BoundFact::Vector(vector.as_slice().into()),
        };
        self.slots.iter().map(bound).collect()
    }

    fn is_text(&self, name: &str) -> bool {
        self.spec.fact_type(name) == Some(crate::facts::FactType::Text)
    }

    fn is_list(&self, name: &str) -> bool {
        self.spec.fact_type(name) == Some(crate::facts::FactType::List)
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.slots.iter().position(|known| known == name) {
            return slot;
        }
        self.slots.push(name.to_owned());
        self.slots.len() - 1
    }

    fn column(&mut self, feature: &Feature) -> Column {
        // The spec was checked: windows, sources and expressions are there where they are needed.
        let hours = feature.window_hours().unwrap_or(0);
        self.longest_window_hours = self.longest_window_hours.max(hours);
        let (multi, source) = match (feature.parsed(), feature.aggregation, feature.source) {
            (Some(expression), ..) => {
                let result = expression.check(&|name| self.spec.fact_type(name));
                let compiled = expression.compile(&mut |name| self.slot(name));
                (result == Ok(ResultType::Ids), Source::Expression(compiled))
            }
            (None, Some(aggregation), Some(source)) => {
                let multi = aggregation == Aggregation::Last;
                (multi, self.aggregated(feature, aggregation, source, hours))
            }
            _ => {
                unreachable!("a checked feature has an expression or an aggregation with a source")
            }
        };
        Column {
            kind: feature.kind,
            multi,
            source,
            transform: feature.transform,
            default: feature.default,
            range: feature.range,
            child_safe: feature.child_safe,
            ttl_us: feature.ttl_us().unwrap_or(None),
        }
    }

    fn aggregated(
        &mut self,
        feature: &Feature,
        aggregation: Aggregation,
        source: SourceEvent,
        hours: u32,
    ) -> Source {
        let group = self.group(feature);
        if let Some(value) = &feature.value {
            let recent = Recent {
                source,
                slot: self.slot(value),
            };
            let known = &mut self.groups[group].recent;
            let slot = known
                .iter()
                .position(|other| *other == recent)
                .unwrap_or_else(|| {
                    known.push(recent);
                    known.len() - 1
                });
            return Source::Recent {
                group,
                slot,
                last: feature.last,
                hours,
            };
        }
        let it = &mut self.groups[group];
        let known = it.windows.iter().position(|known| *known == hours);
        let window = known.unwrap_or_else(|| {
            it.windows.push(hours);
            let last = it.windows.len() - 1;
            let place = it.by_length.partition_point(|at| it.windows[*at] < hours);
            it.by_length.insert(place, last);
            last
        });
        match (aggregation, feature.over) {
            (Aggregation::Rate, Some(over)) => Source::Rate {
                group,
                window,
                source,
                over,
                prior: feature.prior,
            },
            _ => Source::Window {
                group,
                window,
                aggregation,
                source,
            },
        }
    }

    fn group(&mut self, feature: &Feature) -> usize {
        let name = feature.key.join("+");
        let found = self.groups.iter().position(|group| group.name == name);
        let group = found.unwrap_or_else(|| {
            let key = feature.key.iter().map(|name| self.slot(name)).collect();
            let of_ad = |name: &String| {
                AD_FACTS.iter().any(|(known, _)| known == name)
                    || self.spec.facts.contains_key(name)
            };
            let needs_ad = feature.key.iter().any(of_ad);
            self.groups.push(Group {
                name,
                key,
                needs_ad,
                personal: true,
                recent: Vec::new(),
                windows: Vec::new(),
                by_length: Vec::new(),
                hours: 0,
                warm: true,
            });
            self.groups.len() - 1
        });
        let it = &mut self.groups[group];
        it.personal &= !feature.child_safe;
        it.hours = it.hours.max(feature.window_hours().unwrap_or(0));
        it.warm &= feature.tier == Tier::Warm;
        group
    }
}

fn text(value: &str) -> BoundFact {
    BoundFact::Text(value.into(), hash::hash_text(value))
}

/// The ad's fact if it has one, else the request's.
fn fact<'a>(request: &'a RequestFacts, ad: Option<&'a AdFacts>, slot: usize) -> &'a BoundFact {
    match ad.map(|ad| &ad.slots[slot]) {
        None | Some(BoundFact::Missing) => request.slots.get(slot).unwrap_or(&MISSING),
        Some(found) => found,
    }
}

impl Group {
    /// What its entities share: [`EntityKey::group`].
    fn kind(&self) -> u32 {
        entity_key(&self.name, std::iter::empty()).group
    }

    /// One per window of the group.
    fn sums(&self, state: &EntityState, now_us: i64) -> Vec<WindowSums> {
        let mut sums = vec![WindowSums::default(); self.windows.len()];
        let hours = self.by_length.iter().map(|at| self.windows[*at]);
        state.windows(hours, now_us, |place, found| {
            sums[self.by_length[place]] = found
        });
        sums
    }
}

impl Source {
    fn number<'a>(
        &self,
        request: &RequestFacts,
        ad: &AdFacts,
        known: &impl Fn(usize) -> &'a Seen<'a>,
        now_us: i64,
    ) -> Option<f64> {
        match self {
            Self::Expression(expression) => expression
                .evaluate(&|slot| fact(request, Some(ad), slot), now_us)
                .number(),
            Self::Window {
                group,
                window,
                aggregation,
                source,
            } => {
                let found = known(*group).windows.get(*window);
                let found = found.copied().unwrap_or_default();
                let count = found.counts[*source as usize];
                let sum = found.sums[*source as usize];
                match aggregation {
                    Aggregation::Sum => Some(sum),
                    Aggregation::Mean if count == 0 => None,
                    Aggregation::Mean => Some(sum / count as f64),
                    _ => Some(count as f64),
                }
            }
            Self::Rate {
                group,
                window,
                source,
                over,
                prior,
            } => {
                let found = known(*group).windows.get(*window);
                let counted = |source: &SourceEvent| {
                    found.map_or(0.0, |found| found.counts[*source as usize] as f64)
                };
                Some((counted(source) + prior[0]) / (counted(over) + prior[1]))
            }
            Self::Recent {
                group, slot, hours, ..
            } => {
                let oldest = now_us - i64::from(*hours) * 3_600_000_000;
                let state = known(*group).state;
                let values = state.map(|state| state.recent(*slot, now_us));
                let inside =
                    |values: Cow<[_]>| values.iter().filter(|(seen, _)| *seen > oldest).count();
                Some(values.map_or(0, inside) as f64)
            }
        }
    }

    fn ids<'a>(
        &self,
        request: &RequestFacts,
        ad: &AdFacts,
        known: &impl Fn(usize) -> &'a Seen<'a>,
        now_us: i64,
        out: &mut Vec<u64>,
    ) {
        match self {
            Self::Expression(expression) => {
                match expression.evaluate(&|slot| fact(request, Some(ad), slot), now_us) {
                    Value::Text(_, hash) => out.push(hash),
                    Value::Id(id) => out.push(id),
                    Value::Number(number) => out.push(hash::hash_integer(number as i64)),
                    Value::Ids(ids) => out.extend_from_slice(ids),
                    Value::Missing | Value::Vector(_) => {}
                }
            }
            Self::Recent {
                group,
                slot,
                last,
                hours,
            } => {
                let oldest = now_us - i64::from(*hours) * 3_600_000_000;
                if let Some(state) = known(*group).state {
                    let values = state.recent(*slot, now_us);
                    let inside = values.iter().rev().filter(|(seen, _)| *seen > oldest);
                    out.extend(inside.take(*last).map(|(_, id)| id));
                }
            }
            Self::Window { .. } | Self::Rate { .. } => {}
        }
    }
}

impl Column {
    fn finish(&self, value: Option<f64>, counts: &mut EvaluationCounts) -> f32 {
        let Some(value) = value else {
            counts.missing += 1;
            return self.default as f32;
        };
        let mut value = match self.transform {
            Transform::Identity | Transform::MinMax => value,
            Transform::Log1p => value.ln_1p(),
        };
        if !(value as f32).is_finite() {
            counts.not_finite += 1;
            return self.default as f32;
        }
        if let Some([low, high]) = self.range
            && !(low..=high).contains(&value)
        {
            counts.clamped += 1;
            value = value.clamp(low, high);
        }
        if let (Transform::MinMax, Some([low, high])) = (self.transform, self.range) {
            value = (value - low) / (high - low);
        }
        value as f32
    }
}
