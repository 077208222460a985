//! Each rung of the ladder: what is missing, damaged or late, and what stands in.

use std::fs;

use registry::Kind;
use serving::stages::StageBudgets;
use wire::ads::{Degradation, GetAdsResponse};

use crate::{
    answers::get,
    fixture::{Recipe, World, config, request, start, until},
};

fn check(answer: &GetAdsResponse, level: Degradation, stage: usize, fallback: &str) {
    let explain = answer.explain.as_ref().unwrap();
    assert_eq!(explain.degradation(), level, "{explain:?}");
    let found = &explain.stages[stage].fallback;
    assert!(found.contains(fallback), "`{fallback}` in `{found}`");
    assert_eq!(answer.winners.len(), 3);
}

const CASES: [(Kind, &str, Degradation, usize, &str); 5] = [
    (
        Kind::Ctr,
        "dense.safetensors",
        Degradation::PrescoreOnly,
        3,
        "pre-score order: ranker missing",
    ),
    (
        Kind::Prescorer,
        "model.txt",
        Degradation::None,
        2,
        "similarity order: pre-scorer missing",
    ),
    (
        Kind::Index,
        "index.usearch",
        Degradation::RulesRetrieval,
        1,
        "rules by genre and bid: index missing",
    ),
    (
        Kind::Embeddings,
        "vectors.safetensors",
        Degradation::RulesRetrieval,
        1,
        "rules by genre and bid: index missing",
    ),
    (
        Kind::Features,
        "features.toml",
        Degradation::DefaultFeatures,
        3,
        "fixed click probability: ranker missing",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_without_a_member_serves_one_rung_down() {
    for (kind, _, level, stage, fallback) in CASES {
        let world = World::empty();
        let without = vec![kind];
        world
            .publish(&Recipe {
                without,
                ..Recipe::default()
            })
            .await;
        world.publish_store();
        let (_server, client) = start(&world, config()).await;
        let answer = client.ask(request("r1", "u1")).await.unwrap();
        check(&answer, level, stage, fallback);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_member_at_the_start_degrades_and_does_not_stop_the_server() {
    for (kind, file, level, stage, fallback) in CASES {
        let world = World::empty();
        let bundle = world.publish_bundle(&Recipe::default()).await;
        world.damage(&bundle, kind, file).await;
        world.advance(bundle).await;
        world.publish_store();
        let (server, client) = start(&world, config()).await;
        let answer = client.ask(request("r1", "u1")).await.unwrap();
        check(&answer, level, stage, fallback);
        let shown = get(&server, "/debug/bundle").await;
        assert!(
            shown.contains(&format!("member `{kind}` cannot be used")),
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_published_broken_degrades_whatever_its_bytes_are() {
    for bytes in [Vec::new(), vec![0; 64], b"{\"a\": [1, 2".repeat(100)] {
        for (kind, file, level, stage, fallback) in CASES {
            let world = World::empty();
            let recipe = Recipe {
                replaced: Some((kind, file, bytes.clone())),
                ..Recipe::default()
            };
            world.publish(&recipe).await;
            world.publish_store();
            let (_server, client) = start(&world, config()).await;
            let answer = client.ask(request("r1", "u1")).await.unwrap();
            check(&answer, level, stage, fallback);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_belong_together_are_not_used_together() {
    let world = World::empty();
    let recipe = Recipe {
        is_inconsistent: true,
        ..Recipe::default()
    };
    world.publish(&recipe).await;
    world.publish_store();
    let (server, client) = start(&world, config()).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    let level = Degradation::RulesRetrieval;
    check(&answer, level, 1, "rules by genre and bid: index missing");
    check(&answer, level, 2, "similarity order: pre-scorer missing");
    check(&answer, level, 3, "fixed click probability: ranker missing");
    let shown = get(&server, "/debug/bundle").await;
    for member in ["ctr", "prescorer"] {
        let fault = format!("the {member} is of feature spec of-another-time");
        assert!(shown.contains(&fault), "{shown}");
    }
    assert!(shown.contains("the index is of embeddings"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_at_all_there_are_house_ads() {
    let world = World::empty();
    let (server, client) = start(&world, config()).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    assert_eq!(answer.explain.unwrap().degradation(), Degradation::HouseAds);
    assert_eq!(answer.winners.len(), 1);
    assert_eq!(answer.winners[0].creative_id, "house");
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 503"));

    world.publish(&Recipe::default()).await;
    until(&server, |snapshot| snapshot.bundle.is_some()).await;
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
    let answer = client.ask(request("r2", "u1")).await.unwrap();
    assert_eq!(answer.winners.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_house_ads_is_ready_without_a_bundle() {
    let world = World::empty();
    let mut config = config();
    config.accept_degraded = true;
    let (server, _client) = start(&world, config).await;
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_store_is_taken_up_when_it_appears() {
    let world = World::empty();
    world.publish(&Recipe::default()).await;
    let (server, client) = start(&world, config()).await;
    let before = client.ask(request("r1", "u1")).await.unwrap();
    check(
        &before,
        Degradation::DefaultFeatures,
        0,
        "default features: feature store missing",
    );
    world.publish_store();
    until(&server, |snapshot| snapshot.store.is_some()).await;
    let after = client.ask(request("r1", "u1")).await.unwrap();
    let explain = after.explain.unwrap();
    assert_eq!(explain.degradation(), Degradation::None);
    assert_eq!(explain.artifact_digests["online"], "generation 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_feature_store_stops_no_swap_and_is_taken_up_once_mended() {
    let world = World::whole().await;
    let spec = fs::read_dir(world.layout.online()).unwrap();
    let mut folders = spec.map(|entry| entry.unwrap().path());
    let folder = folders.find(|path| path.is_dir()).unwrap();
    let path = folder.join("000000000001/store.redb");
    let whole = fs::read(&path).unwrap();
    // A file that begins as it should and goes on as no key-value store does: reading it panics.
    let mut damaged = whole.clone();
    damaged[4_096..].fill(0xff);
    fs::write(&path, damaged).unwrap();
    let mut config = config();
    config.retry_seconds = 0;
    let (server, client) = start(&world, config).await;
    let missing = "default features: feature store missing";
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    check(&answer, Degradation::DefaultFeatures, 0, missing);

    let recipe = Recipe {
        version: 2,
        ..Recipe::default()
    };
    world.publish(&recipe).await;
    until(&server, |snapshot| snapshot.versions.generation == 2).await;
    let answer = client.ask(request("r2", "u1")).await.unwrap();
    check(&answer, Degradation::DefaultFeatures, 0, missing);

    fs::write(&path, whole).unwrap();
    until(&server, |snapshot| snapshot.store.is_some()).await;
    let answer = client.ask(request("r3", "u1")).await.unwrap();
    check(&answer, Degradation::None, 0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_without_time_falls_back_and_says_so() {
    let world = World::whole().await;
    let none = |change: fn(&mut StageBudgets)| {
        let mut config = config();
        change(&mut config.stages);
        config
    };
    let cases = [
        (
            none(|stages| stages.assemble_ms = 0),
            Degradation::DefaultFeatures,
            0,
            "default features: feature store late",
        ),
        (
            none(|stages| stages.retrieve_ms = 0),
            Degradation::RulesRetrieval,
            1,
            "rules by genre and bid: index late",
        ),
        (
            // What is known of the candidates was read with the rest.
            none(|stages| stages.prescore_ms = 0),
            Degradation::None,
            2,
            "similarity order: pre-scorer late",
        ),
        (
            none(|stages| stages.rank_ms = 0),
            Degradation::PrescoreOnly,
            3,
            "pre-score order: ranker late",
        ),
    ];
    for (config, level, stage, fallback) in cases {
        let (server, client) = start(&world, config).await;
        let answer = client.ask(request("r1", "u1")).await.unwrap();
        check(&answer, level, stage, fallback);
        drop(client);
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_finds_what_the_comparison_one_by_one_finds() {
    let world = World::whole().await;
    let mut winners = Vec::new();
    for exact_limit in [0, 1_000] {
        let mut config = config();
        config.funnel.exact_limit = exact_limit;
        let (server, client) = start(&world, config).await;
        let answer = client.ask(request("r1", "u1")).await.unwrap();
        check(&answer, Degradation::None, 1, "");
        winners.push(answer.winners);
        drop(client);
        server.stop().await.unwrap();
    }
    assert_eq!(winners[0], winners[1]);
}
