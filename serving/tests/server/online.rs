//! The server over an online store on a Redis Cluster.

use features::{
    SourceEvent,
    online::{OnlineConfig, RedisConfig},
};
use marquee_tests::RedisCluster;
use serving::config::ServingConfig;
use wire::ads::{Degradation, GetAdsResponse};

use crate::fixture::{Recipe, World, config, request, start, timeless, until};

const HISTORY: [SourceEvent; 2] = [SourceEvent::Impression, SourceEvent::Click];

fn on_redis(cluster: &RedisCluster) -> OnlineConfig {
    OnlineConfig::Redis(RedisConfig {
        nodes: cluster.nodes.clone(),
        read_timeout_ms: 10_000,
        rest_ms: 0,
        ..RedisConfig::default()
    })
}

fn configured(online: &OnlineConfig) -> ServingConfig {
    ServingConfig {
        online: online.clone(),
        ..config()
    }
}

fn level(answer: &GetAdsResponse) -> Degradation {
    answer.explain.as_ref().unwrap().degradation()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_same_over_redis_and_takes_one_read() {
    let (world, cluster) = (World::empty(), RedisCluster::start());
    world.publish(&Recipe::default()).await;
    world.publish_store();
    let (server, client) = start(&world, config()).await;
    let expected = timeless(client.ask(request("r1", "u1")).await.unwrap());
    server.stop().await.unwrap();

    let online = on_redis(&cluster);
    world.publish_store_to(&online, &HISTORY);
    let (server, client) = start(&world, configured(&online)).await;
    let metrics = server.metrics();
    let warm = metrics.online_reads.get();
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    assert_eq!(level(&answer), Degradation::None);
    assert_eq!(timeless(answer), expected);
    let count = |outcome| metrics.entities.with_label_values(&[outcome]).get();
    assert!(count("cached") > 0 && count("found") > 0 && count("absent") > 0);
    assert_eq!(count("unread"), 0);
    for number in 2..=9 {
        let answer = client.ask(request(&format!("r{number}"), "u1")).await;
        assert_eq!(level(&answer.unwrap()), Degradation::None);
    }
    // The candidates' too, which are not known when it is made.
    assert_eq!(metrics.online_reads.get() - warm, 9);

    // A new version is taken up while it runs.
    world.publish_store_to(&online, &[SourceEvent::Impression]);
    until(&server, |snapshot| {
        snapshot
            .store
            .as_ref()
            .is_some_and(|store| store.generation() == 2)
    })
    .await;
    let changed = client.ask(request("r1", "u1")).await.unwrap();
    let explain = changed.explain.as_ref().unwrap();
    assert_eq!(explain.artifact_digests["online"], "generation 2");
    assert_ne!(timeless(changed), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_cluster_costs_features_and_no_answer() {
    let (world, cluster) = (World::empty(), RedisCluster::start());
    world.publish(&Recipe::default()).await;
    let online = on_redis(&cluster);
    world.publish_store_to(&online, &HISTORY);
    let mut config = configured(&online);
    config.stages.assemble_ms = 1_000;
    let (server, client) = start(&world, config).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    assert_eq!(level(&answer), Degradation::None);

    (0..3).for_each(|node| cluster.signal(node, "STOP"));
    let answer = client.ask(request("r2", "u1")).await.unwrap();
    assert_eq!(level(&answer), Degradation::DefaultFeatures);
    assert_eq!(answer.winners.len(), 3);
    let fallback = &answer.explain.as_ref().unwrap().stages[0].fallback;
    assert_eq!(fallback, "default features: feature store late");
    let unread = server.metrics().entities.with_label_values(&["unread"]);
    assert!(unread.get() > 0);

    (0..3).for_each(|node| cluster.signal(node, "CONT"));
    let mended = async {
        while level(&client.ask(request("r3", "u1")).await.unwrap()) != Degradation::None {}
    };
    let most = std::time::Duration::from_secs(30);
    tokio::time::timeout(most, mended)
        .await
        .expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_there_is_taken_up_when_it_is() {
    let (world, cluster) = (World::empty(), RedisCluster::start());
    world.publish(&Recipe::default()).await;
    let online = on_redis(&cluster);
    let mut config = configured(&online);
    config.retry_seconds = 0;
    let (server, client) = start(&world, config).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    assert_eq!(level(&answer), Degradation::DefaultFeatures);
    world.publish_store_to(&online, &HISTORY);
    until(&server, |snapshot| snapshot.store.is_some()).await;
    let answer = client.ask(request("r2", "u1")).await.unwrap();
    assert_eq!(level(&answer), Degradation::None);
}
