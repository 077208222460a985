//! New bundles while requests run.

use std::{collections::BTreeMap, sync::Arc};

use registry::Kind;
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
};
use wire::ads::GetAdsResponse;

use crate::fixture::{Client, Recipe, World, config, request, start, until};

/// Bundle digest and version by generation.
type Published = BTreeMap<u64, (String, u64)>;

fn check(answer: &GetAdsResponse, published: &Published) {
    let explain = answer.explain.as_ref().unwrap();
    let (digest, version) = &published[&explain.generation];
    assert_eq!(explain.bundle_digest, *digest);
    assert_eq!(answer.winners.len(), 3);
    for winner in &answer.winners {
        assert_eq!(winner.title, format!("version {version}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_swap_under_load_without_a_failure_or_a_mixed_answer() {
    const SWAPS: u64 = 12;
    let world = World::whole().await;
    let (server, client) = start(&world, config()).await;
    let first = world.registry.channel("live").await.unwrap().unwrap();
    let digest = first.targets[0].bundle.to_string();
    let published = Arc::new(Mutex::new(Published::from([(1, (digest, 1))])));

    let (done, is_done) = watch::channel(false);
    let mut clients = JoinSet::new();
    for number in 0..3 {
        let (client, is_done, published) = (client.clone(), is_done.clone(), published.clone());
        clients.spawn(async move {
            let mut asked = 0;
            while !*is_done.borrow() {
                let request = request(&format!("r{number}-{asked}"), "u1");
                let answer = client.ask(request).await.expect("no request fails");
                check(&answer, &*published.lock().await);
                asked += 1;
            }
            asked
        });
    }
    for version in 2..2 + SWAPS {
        let recipe = Recipe {
            version,
            ..Recipe::default()
        };
        let bundle = world.publish_bundle(&recipe).await;
        // Known to the clients before the server can serve it.
        published
            .lock()
            .await
            .insert(version, (bundle.to_string(), version));
        let channel = world.advance(bundle).await;
        assert_eq!(channel.generation, version);
        until(&server, |snapshot| snapshot.versions.generation == version).await;
        let seen = client
            .ask(request(&format!("s{version}"), "u1"))
            .await
            .unwrap();
        assert_eq!(seen.explain.as_ref().unwrap().generation, version);
    }
    done.send_replace(true);
    let mut asked = 0;
    while let Some(client) = clients.join_next().await {
        asked += client.unwrap();
    }
    assert!(
        asked > SWAPS as usize,
        "{asked} requests ran beside the swaps"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_bundle_is_refused_and_the_old_one_keeps_serving() {
    let world = World::whole().await;
    let (server, client) = start(&world, config()).await;
    let bad = world
        .publish_bundle(&Recipe {
            version: 2,
            ..Recipe::default()
        })
        .await;
    world.damage(&bad, Kind::Ctr, "tables.safetensors").await;
    world.advance(bad).await;
    let metrics = server.metrics().clone();
    let refused = metrics.bundles.with_label_values(&["refused"]);
    // The next good generation comes after the bad one was looked at.
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while refused.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    assert_eq!(answer.explain.unwrap().generation, 1);
    assert_eq!(answer.winners[0].title, "version 1");

    world
        .publish(&Recipe {
            version: 3,
            ..Recipe::default()
        })
        .await;
    until(&server, |snapshot| snapshot.versions.generation == 3).await;
    let client = Client::connect(&server).await;
    let answer = client.ask(request("r2", "u1")).await.unwrap();
    assert_eq!(answer.winners[0].title, "version 3");
}
