//! The shipped specs over facts and events, as the pipeline and the server use them.

use std::path::Path;

use features::{
    AdFacts, Aggregates, Counted, EntityKey, EntityState, FeatureBatch, FeatureSet, HourSums,
    Known, NoState, RequestFacts, SourceEvent, StateSource, WindowSums,
    facts::{ad_facts, request_facts},
};
use wire::{
    catalogue::{Campaign, Creative, Scene, Targeting},
    events::{AgeBand, Context},
    gate::Subject,
};

const HOUR_US: i64 = 3_600_000_000;
const NOW_US: i64 = 500_000 * HOUR_US;

fn set() -> FeatureSet {
    FeatureSet::load(&configs().join("features.toml")).unwrap()
}

fn configs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs"))
}

fn request(set: &FeatureSet, age_band: AgeBand) -> RequestFacts {
    let context = Context {
        experience_id: "e1".into(),
        genre: "racing".into(),
        scene_id: "s1".into(),
        device: "phone".into(),
        format: "billboard".into(),
        country: "DE".into(),
        ..Context::default()
    };
    let scene = Scene {
        scene_id: "s1".into(),
        experience_id: "e1".into(),
        genre: "racing".into(),
        picture_digest: String::new(),
        style: vec![0.5; 8],
    };
    set.bind_request(&request_facts(
        &Subject::admit("u1".to_owned(), age_band, true),
        age_band,
        &context,
        Some(&scene),
        NOW_US,
    ))
}

fn ad(set: &FeatureSet, creative_id: &str, category: &str, style: Vec<f32>) -> AdFacts {
    let creative = Creative {
        creative_id: creative_id.into(),
        campaign_id: "c1".into(),
        category: category.into(),
        title: String::new(),
        format: "billboard".into(),
        picture_digest: String::new(),
        style,
        first_seen_us: NOW_US - 48 * HOUR_US,
        attributes: Default::default(),
    };
    let campaign = Campaign {
        campaign_id: "c1".into(),
        advertiser_id: "a1".into(),
        bid_micros: 2_000_000,
        daily_budget_micros: 1,
        targeting: Targeting::default(),
    };
    set.bind_ad(&ad_facts(&creative, &campaign))
}

fn dense(set: &FeatureSet, batch: &FeatureBatch, row: usize, name: &str) -> f32 {
    let column = set
        .schema()
        .dense
        .iter()
        .position(|field| field.name == name)
        .unwrap();
    batch.dense_row(row)[column]
}

fn sparse<'a>(set: &FeatureSet, batch: &'a FeatureBatch, row: usize, name: &str) -> &'a [u64] {
    let column = set
        .schema()
        .sparse
        .iter()
        .position(|field| field.name == name)
        .unwrap();
    batch.sparse[column].row(row)
}

fn close(found: f32, expected: f64) {
    assert!(
        (f64::from(found) - expected).abs() < 1e-6,
        "found {found}, expected {expected}"
    );
}

/// Two impressions and one click of shoes by `u1`, an hour ago.
fn history(set: &FeatureSet) -> Aggregates {
    let mut aggregates = Aggregates::default();
    count(set, &mut aggregates);
    aggregates
}

fn count(set: &FeatureSet, aggregates: &mut Aggregates) {
    let (request, shoe) = (
        request(set, AgeBand::AgeBand13plus),
        ad(set, "k1", "shoe", vec![0.5; 8]),
    );
    for source in [
        SourceEvent::Impression,
        SourceEvent::Impression,
        SourceEvent::Click,
    ] {
        let event = Counted::at_once(source, 0.0, NOW_US - HOUR_US);
        aggregates.apply(set, &request, Some(&shoe), event);
    }
}

#[test]
fn every_shipped_spec_loads() {
    for file in ["features.toml", "movielens/features.toml"] {
        let set = FeatureSet::load(&configs().join(file)).unwrap();
        assert!(
            set.schema().dense.len() >= 6 && set.schema().sparse.len() >= 10,
            "{file}"
        );
    }
}

#[test]
fn values_follow_history_facts_and_pictures() {
    let set = set();
    let request = request(&set, AgeBand::AgeBand13plus);
    let ads = [
        ad(&set, "k1", "shoe", vec![0.5; 8]),
        ad(&set, "k2", "coat", vec![]),
    ];
    let mut batch = FeatureBatch::new(set.schema());
    set.evaluate(
        &request,
        &[&ads[0], &ads[1]],
        &history(&set),
        NOW_US,
        &mut batch,
    );

    assert_eq!(batch.num_rows, 2);
    close(
        dense(&set, &batch, 0, "user_impressions_24h"),
        2.0f64.ln_1p(),
    );
    close(dense(&set, &batch, 0, "user_category_rate_7d"), 2.0 / 17.0);
    close(dense(&set, &batch, 1, "user_category_rate_7d"), 1.0 / 15.0);
    close(dense(&set, &batch, 1, "user_rate_7d"), 2.0 / 17.0);
    close(dense(&set, &batch, 0, "ad_age_days"), 2.0f64.ln_1p());
    close(dense(&set, &batch, 0, "style_match"), 1.0);
    close(dense(&set, &batch, 1, "style_match"), 0.0);
    let shoe = features::hash::hash_text("shoe");
    assert_eq!(sparse(&set, &batch, 0, "category"), [shoe]);
    assert_eq!(sparse(&set, &batch, 1, "recent_categories"), [shoe]);
    assert_ne!(
        sparse(&set, &batch, 0, "user_x_category"),
        sparse(&set, &batch, 1, "user_x_category")
    );
}

#[test]
fn what_happened_later_is_not_known_earlier() {
    let set = set();
    let request = request(&set, AgeBand::AgeBand13plus);
    let shoe = ad(&set, "k1", "shoe", vec![]);
    let mut batch = FeatureBatch::new(set.schema());
    set.evaluate(
        &request,
        &[&shoe],
        &history(&set),
        NOW_US - 2 * HOUR_US,
        &mut batch,
    );
    close(dense(&set, &batch, 0, "user_impressions_24h"), 0.0);
    assert!(sparse(&set, &batch, 0, "recent_categories").is_empty());
}

/// States beside what somebody has summed of them.
struct Kept(Known, HourSums);

impl StateSource for Kept {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.0.state(key)
    }

    fn windows(&self, key: EntityKey, now_us: i64) -> Option<&[WindowSums]> {
        self.1.windows(key, now_us)
    }
}

#[test]
fn sums_of_an_hour_give_the_values_that_its_tiles_give() {
    let set = set();
    let request = request(&set, AgeBand::AgeBand13plus);
    let ads = [
        ad(&set, "k1", "shoe", vec![0.5; 8]),
        ad(&set, "k2", "coat", vec![]),
    ];
    let values = |states: &Kept, now_us| {
        let mut batch = FeatureBatch::new(set.schema());
        set.evaluate(&request, &[&ads[0], &ads[1]], states, now_us, &mut batch);
        batch
    };
    let known = |of: &Aggregates| {
        let known = of.iter().map(|(key, state)| (key, Some(state.clone())));
        known.collect::<Known>()
    };
    let known_of_all = || known(&history(&set));
    let summed = Kept(known_of_all(), set.window_sums(&known_of_all(), NOW_US));
    let keys: Vec<EntityKey> = summed.0.keys().copied().collect();
    let is_known = |states: &Kept, now_us| {
        keys.iter()
            .any(|key| states.windows(*key, now_us).is_some())
    };
    assert!(
        keys.iter()
            .all(|key| summed.windows(*key, NOW_US).is_some())
    );
    // The last moment of the hour, and the first of the next, a day and a week later.
    for after_us in [0, HOUR_US - 1, HOUR_US, 24 * HOUR_US, 168 * HOUR_US] {
        let now_us = NOW_US + after_us;
        let alone = Kept(known_of_all(), HourSums::default());
        assert_eq!(
            values(&summed, now_us),
            values(&alone, now_us),
            "{after_us}"
        );
        assert_eq!(is_known(&summed, now_us), after_us < HOUR_US);
    }
    // Sums that are not of these states are what it looks at.
    let nothing = Known::from_iter(keys.iter().map(|key| (*key, Some(EntityState::default()))));
    let other = Kept(known_of_all(), set.window_sums(&nothing, NOW_US));
    assert_ne!(values(&other, NOW_US), values(&summed, NOW_US));
    // Of what was learnt of lately not all requests of the hour know.
    let mut lately = Aggregates::default().with_horizon(HOUR_US);
    count(&set, &mut lately);
    let lately = Kept(Known::new(), set.window_sums(&known(&lately), NOW_US));
    assert!(!is_known(&lately, NOW_US));
}

#[test]
fn a_child_or_unknown_age_gets_defaults_for_every_personal_feature() {
    let set = set();
    let shoe = ad(&set, "k1", "shoe", vec![0.5; 8]);
    let history = history(&set);
    let evaluate = |age, states: &Aggregates| {
        let mut batch = FeatureBatch::new(set.schema());
        let counts = set.evaluate(&request(&set, age), &[&shoe], states, NOW_US, &mut batch);
        (batch, counts)
    };
    let personal = set
        .spec()
        .features
        .iter()
        .filter(|feature| !feature.child_safe)
        .count() as u64;
    for age in [AgeBand::Under13, AgeBand::Unknown] {
        let (batch, counts) = evaluate(age, &history);
        assert_eq!(counts.withheld, personal);
        close(dense(&set, &batch, 0, "user_rate_7d"), 1.0 / 15.0);
        assert_eq!(
            sparse(&set, &batch, 0, "user_id"),
            [features::hash::MISSING_ID]
        );
        // The rest still knows the world around.
        close(dense(&set, &batch, 0, "scene_rate_7d"), 2.0 / 17.0);
    }
}

#[test]
fn nothing_is_stored_under_a_childs_id() {
    let set = set();
    let child = request(&set, AgeBand::Under13);
    let shoe = ad(&set, "k1", "shoe", vec![]);
    let mut aggregates = Aggregates::default();
    let event = Counted::at_once(SourceEvent::Click, 0.0, NOW_US);
    aggregates.apply(&set, &child, Some(&shoe), event);
    let keys = set.keys(&request(&set, AgeBand::AgeBand13plus), &[&shoe]);
    let stored: Vec<_> = aggregates.iter().map(|(key, _)| key).collect();
    let of_child = set.keys(&child, &[&shoe]);
    assert_eq!(stored, of_child);
    assert!(keys.len() > of_child.len());
}

#[test]
fn a_fact_that_is_no_number_takes_the_default_and_is_counted() {
    let set = set();
    let request = request(&set, AgeBand::AgeBand13plus);
    let broken = ad(&set, "k1", "shoe", vec![f32::NAN; 8]);
    let mut batch = FeatureBatch::new(set.schema());
    let counts = set.evaluate(&request, &[&broken], &NoState, NOW_US, &mut batch);
    assert!(batch.dense.iter().all(|value| value.is_finite()));
    assert!(counts.missing + counts.not_finite >= 4, "{counts:?}");
}
