//! What holds under pressure: budgets, load, deadlines, panics, and the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use futures::{StreamExt, stream};
use serving::{request::AdRequest, service::Hook};
use tokio::{sync::mpsc as tokio_mpsc, time::timeout};
use tonic::{Code, transport::Endpoint};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::fixture::{Recipe, World, config, request, start, start_with};

#[tokio::test(flavor = "multi_thread")]
async fn campaigns_stop_at_their_budgets() {
    let world = World::empty();
    let budget = 2_000_000;
    world
        .publish(&Recipe {
            daily_budget_micros: budget,
            ..Recipe::default()
        })
        .await;
    let (_server, client) = start(&world, config()).await;
    let mut spent: BTreeMap<String, i64> = BTreeMap::new();
    let mut filled = 0;
    loop {
        let answer = client.ask(request(&format!("r{filled}"), "u1")).await;
        let winners = answer.unwrap().winners;
        if winners.is_empty() {
            break;
        }
        filled += 1;
        assert!(
            filled < 5_000,
            "budgets of {budget} never run out: {spent:?}"
        );
        for winner in winners {
            let pctr = f64::from(winner.scores.unwrap().pctr);
            let cost = (winner.price_micros as f64 * pctr).ceil() as i64;
            *spent.entry(winner.campaign_id).or_default() += cost;
        }
    }
    assert!(filled > 0);
    for (campaign, spent) in &spent {
        assert!(*spent <= budget, "{campaign} reserved {spent}");
    }
    // No client opens another day's budget by its own clock.
    for days_ago in [1, 7, 300] {
        let mut past = request("r-past", "u1");
        past.request_time_us -= days_ago * 86_400_000_000;
        assert!(client.ask(past).await.unwrap().winners.is_empty());
    }
}

/// Holds requests whose id starts with `hold` until told to go on, and breaks `break` ones.
struct Gate {
    entered: tokio_mpsc::UnboundedReceiver<String>,
    go_on: mpsc::Sender<()>,
    hook: Hook,
}

fn gate() -> Gate {
    let (enter, entered) = tokio_mpsc::unbounded_channel();
    let (go_on, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let hook = move |request: &AdRequest| {
        assert!(
            !request.request_id.starts_with("break"),
            "broken on purpose"
        );
        if request.request_id.starts_with("hold") {
            enter.send(request.request_id.clone()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        }
    };
    Gate {
        entered,
        go_on,
        hook: Arc::new(hook),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_limit_are_turned_away_and_the_others_answered() {
    let world = World::whole().await;
    let mut config = config();
    (config.workers, config.max_in_flight) = (1, 1);
    let mut gate = gate();
    let (_server, client) = start_with(&world, config, Some(gate.hook.clone())).await;

    let held = tokio::spawn({
        let client = client.clone();
        async move { client.ask(request("hold-1", "u1")).await }
    });
    gate.entered.recv().await.unwrap();
    let status = client.ask(request("r2", "u1")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    gate.go_on.send(()).unwrap();
    assert_eq!(held.await.unwrap().unwrap().winners.len(), 3);
    client.ask(request("r3", "u1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_past_its_deadline_is_told_so() {
    let world = World::whole().await;
    let mut config = config();
    (config.workers, config.max_in_flight) = (1, 2);
    let mut gate = gate();
    let (_server, client) = start_with(&world, config, Some(gate.hook.clone())).await;

    let held = tokio::spawn({
        let client = client.clone();
        async move { client.ask(request("hold-1", "u1")).await }
    });
    gate.entered.recv().await.unwrap();
    let mut hasty = request("r2", "u1");
    hasty.deadline_ms = 20;
    let status = client.ask(hasty).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().contains("before its work began"),
        "{}",
        status.message()
    );
    gate.go_on.send(()).unwrap();
    held.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_one_request_and_not_the_server() {
    let world = World::whole().await;
    let gate = gate();
    let (server, client) = start_with(&world, config(), Some(gate.hook.clone())).await;
    for number in 0..5 {
        let status = client
            .ask(request(&format!("break-{number}"), "u1"))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(
            status.message(),
            format!("internal error on request break-{number}")
        );
    }
    assert_eq!(
        client.ask(request("r1", "u1")).await.unwrap().winners.len(),
        3
    );
    assert_eq!(server.metrics().in_flight.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_is_under_way_and_writes_it_down() {
    let world = World::whole().await;
    let mut gate = gate();
    let (server, client) = start_with(&world, config(), Some(gate.hook.clone())).await;
    let address = format!("http://{}", server.addresses().grpc);

    let held = tokio::spawn({
        let client = client.clone();
        async move { client.ask(request("hold-1", "u1")).await }
    });
    gate.entered.recv().await.unwrap();
    drop(client);
    let stopping = tokio::spawn(server.stop());
    // The port is closed before the held request ends.
    let refused = async {
        while tonic::transport::Endpoint::from_shared(address.clone())
            .unwrap()
            .connect()
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), refused)
        .await
        .expect("new connections are refused");
    assert!(!stopping.is_finished());
    gate.go_on.send(()).unwrap();
    assert_eq!(held.await.unwrap().unwrap().winners.len(), 3);
    stopping.await.unwrap().unwrap();
    assert_eq!(world.logged().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_tells_those_who_watch_its_health_and_waits_for_none() {
    let world = World::whole().await;
    let (server, client) = start(&world, config()).await;
    let address = format!("http://{}", server.addresses().grpc);
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    let mut health = HealthClient::new(channel.unwrap());
    let mut watches = Vec::new();
    for service in ["", "marquee.ads.v1.AdService"] {
        let service = service.to_owned();
        let watch = health.watch(HealthCheckRequest { service }).await;
        let mut watch = watch.unwrap().into_inner();
        let now = watch.message().await.unwrap().unwrap();
        assert_eq!(now.status, ServingStatus::Serving as i32);
        watches.push(watch);
    }
    client.ask(request("r1", "u1")).await.unwrap();
    let told = async {
        for mut watch in watches {
            let last = watch.message().await.unwrap().unwrap();
            assert_eq!(last.status, ServingStatus::NotServing as i32);
            assert!(watch.message().await.unwrap().is_none());
        }
    };
    let (stopped, told) = tokio::join!(server.stop(), timeout(Duration::from_secs(30), told));
    stopped.unwrap();
    told.expect("the watches end");
    assert_eq!(world.logged().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_held_open_keeps_neither_the_server_nor_its_log() {
    let world = World::whole().await;
    let mut config = config();
    config.drain_seconds = 0;
    let (server, client) = start(&world, config.clone()).await;
    let address = format!("http://{}", server.addresses().grpc);
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut held = ServerReflectionClient::new(channel.unwrap())
        .server_reflection_info(stream::iter([list]).chain(stream::pending()))
        .await
        .unwrap()
        .into_inner();
    held.message().await.unwrap().unwrap();
    client.ask(request("r1", "u1")).await.unwrap();

    server.stop().await.unwrap();
    assert_eq!(world.logged().len(), 3);
    // Whoever comes next gets the log.
    let (next, _client) = start(&world, config).await;
    next.stop().await.unwrap();
}
