//! What an answer is, for good requests and bad ones.

use std::collections::BTreeSet;

use prost::Message;
use registry::Kind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wire::{
    ads::Degradation,
    events::{AgeBand, event::Payload},
};

use crate::fixture::{Client, NUM_CREATIVES, Recipe, World, config, request, start, timeless};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_on_the_same_versions_gives_the_same_answer_bit_for_bit() {
    let world = World::whole().await;
    let mut answers = BTreeSet::new();
    for _ in 0..2 {
        let (server, client) = start(&world, config()).await;
        for _ in 0..20 {
            let answer = client.ask(request("r1", "u1")).await.unwrap();
            assert_eq!(answer.winners.len(), 3);
            answers.insert(timeless(answer));
        }
        drop(client);
        server.stop().await.unwrap();
    }
    assert_eq!(answers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_tells_stages_versions_prices_and_reasons() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();

    let explain = answer.explain.unwrap();
    assert_eq!(explain.degradation(), Degradation::None);
    let names: Vec<&str> = explain
        .stages
        .iter()
        .map(|stage| stage.stage.as_str())
        .collect();
    assert_eq!(
        names,
        ["assemble", "retrieve", "prescore", "rank", "auction"]
    );
    assert!(explain.stages.iter().all(|stage| stage.fallback.is_empty()));
    let total: u64 = explain.stages.iter().map(|stage| stage.duration_us).sum();
    assert!(total <= explain.total_us);
    assert_eq!(explain.stages[1].candidates_in as usize, NUM_CREATIVES);
    // Of each of the twelve campaigns the best four of its five.
    assert_eq!(explain.stages[3].candidates_in, 48);
    assert_eq!(explain.generation, 1);
    for member in [
        "features",
        "catalogue",
        "ctr",
        "prescorer",
        "embeddings",
        "index",
    ] {
        assert_eq!(explain.artifact_digests[member].len(), 64, "{member}");
    }

    let campaigns: BTreeSet<_> = answer
        .winners
        .iter()
        .map(|winner| &winner.campaign_id)
        .collect();
    assert_eq!(campaigns.len(), 3);
    for pair in answer.winners.windows(2) {
        assert!(pair[0].scores.unwrap().ecpm_micros >= pair[1].scores.unwrap().ecpm_micros);
    }
    for (slot, winner) in answer.winners.iter().enumerate() {
        let scores = winner.scores.unwrap();
        assert_eq!(winner.slot as usize, slot);
        assert!(winner.impression_id.starts_with(&format!("r1-{slot}-")));
        assert!(winner.price_micros > 0 && winner.price_micros <= scores.bid_micros);
        assert!(scores.pctr > 0.0 && scores.pctr < 1.0 && scores.prescore > 0.0);
        assert!(winner.asset_path.starts_with("creative/") && winner.asset_path.ends_with(".png"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_with_many_creatives_leaves_its_rival_in_the_auction() {
    for without in [vec![], vec![Kind::Prescorer], vec![Kind::Index]] {
        let world = World::empty();
        let recipe = Recipe {
            // One creative of 60 is of a campaign that bids half as much as the other.
            campaign_of: |creative| if creative == 30 { 1 } else { 11 },
            without,
            ..Recipe::default()
        };
        world.publish(&recipe).await;
        world.publish_store();
        let mut config = config();
        (config.funnel.retrieved, config.funnel.prescored) = (60, 10);
        if recipe.without == [Kind::Index] {
            config.funnel.retrieved = 50;
        }
        let reserve = config.auction.reserve_cpc_micros;
        let (_server, client) = start(&world, config).await;
        let mut request = request("r1", "u1");
        request.placement.as_mut().unwrap().slots = 2;
        let winners = client.ask(request).await.unwrap().winners;

        let campaigns: BTreeSet<_> = winners.iter().map(|winner| &winner.campaign_id).collect();
        assert_eq!(
            campaigns.len(),
            2,
            "{winners:?} without {:?}",
            recipe.without
        );
        let (first, second) = (winners[0].scores.unwrap(), winners[1].scores.unwrap());
        let to_beat = second.ecpm_micros as f64 / (1_000.0 * f64::from(first.pctr));
        assert!((winners[0].price_micros as f64 - to_beat).abs() <= 2.0);
        assert!(winners[0].price_micros > reserve);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_win_is_in_the_log_with_its_features_before_the_answer_leaves() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();

    let events = world.logged();
    assert_eq!(events.len(), 3);
    for (event, winner) in events.iter().zip(&answer.winners) {
        assert_eq!(event.event_id, format!("served-{}", winner.impression_id));
        assert_eq!(event.user_id, "u1");
        let Some(Payload::ImpressionServed(served)) = &event.payload else {
            panic!("wanted ImpressionServed, found {event:?}");
        };
        let scores = winner.scores.unwrap();
        assert_eq!(served.creative_id, winner.creative_id);
        assert_eq!(
            (served.pctr, served.price_micros),
            (scores.pctr, winner.price_micros)
        );
        assert_eq!(
            served.bundle_digest,
            answer.explain.as_ref().unwrap().bundle_digest
        );
        let snapshot = served.snapshot.as_ref().unwrap();
        assert!(!snapshot.spec_digest.is_empty() && !snapshot.dense.is_empty());
        assert_eq!(served.candidates.is_empty(), served.slot != 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_users_and_scenes_are_answered() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;

    let stranger = client.ask(request("r1", "nobody-knows")).await.unwrap();
    assert_eq!(stranger.winners.len(), 3);
    assert_eq!(stranger.explain.unwrap().degradation(), Degradation::None);

    let mut elsewhere = request("r2", "u1");
    elsewhere.context.as_mut().unwrap().scene_id = "not-a-scene".into();
    let elsewhere = client.ask(elsewhere).await.unwrap();
    assert_eq!(elsewhere.winners.len(), 3);
    let explain = elsewhere.explain.unwrap();
    assert_eq!(
        explain.stages[1].fallback,
        "mean scene: no vector of this scene"
    );
    assert_eq!(explain.degradation(), Degradation::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_user_moves_the_scores_only_with_age_and_consent() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;
    let scores = async |user: &str, age: AgeBand, consent: bool| {
        let mut request = request("r", user);
        request.age_band = age.into();
        request.personalisation_consent = consent;
        let answer = client.ask(request).await.unwrap();
        let scores = answer
            .winners
            .iter()
            .map(|winner| winner.scores.unwrap().pctr.to_bits());
        scores.collect::<Vec<_>>()
    };
    let adult = AgeBand::AgeBand13plus;
    assert_ne!(
        scores("u1", adult, true).await,
        scores("u2", adult, true).await
    );
    assert_eq!(
        scores("u1", adult, false).await,
        scores("u2", adult, false).await
    );
    for age in [AgeBand::Under13, AgeBand::Unknown, AgeBand::Unspecified] {
        assert_eq!(scores("u1", age, true).await, scores("u2", age, true).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_sees_no_adult_campaign() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;
    for number in 0..10 {
        let mut request = request(&format!("r{number}"), "little-one");
        request.age_band = AgeBand::Under13.into();
        request.placement.as_mut().unwrap().slots = 16;
        let answer = client.ask(request).await.unwrap();
        assert_eq!(answer.winners.len(), 9);
        for winner in answer.winners {
            // Every fourth campaign of the fixture is for adults only.
            let number: usize = winner.campaign_id[1..].parse().unwrap();
            assert_ne!(number % 4, 0, "{}", winner.campaign_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_personal_leaves_neither_id_nor_attributes_in_the_log() {
    let adult = AgeBand::AgeBand13plus;
    for (age_band, consent, is_kept) in [
        (adult, true, true),
        (adult, false, false),
        (AgeBand::Under13, true, false),
        (AgeBand::Unknown, true, false),
        (AgeBand::Unspecified, true, false),
    ] {
        let world = World::whole().await;
        let (_server, client) = start(&world, config()).await;
        let mut request = request("r1", "little-one");
        request.age_band = age_band.into();
        request.personalisation_consent = consent;
        let context = request.context.as_mut().unwrap();
        let school = ("school".to_owned(), "elm-street".to_owned());
        context.attributes.extend([school]);
        client.ask(request).await.unwrap();

        let events = world.logged();
        assert_eq!(events.len(), 3);
        for event in events {
            let bytes = event.encode_to_vec();
            let text = String::from_utf8_lossy(&bytes);
            for told in ["little-one", "school", "elm-street"] {
                assert_eq!(text.contains(told), is_kept, "{told} of {age_band:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_by_field_and_the_server_goes_on() {
    let world = World::whole().await;
    let (_server, client) = start(&world, config()).await;
    let mut no_id = request("", "u1");
    no_id.request_id.clear();
    let mut no_context = request("r1", "u1");
    no_context.context = None;
    let mut greedy = request("r1", "u1");
    greedy.placement.as_mut().unwrap().slots = 1_000;
    for (broken, field) in [
        (no_id, "request_id"),
        (no_context, "context"),
        (greedy, "slots"),
    ] {
        let status = client.ask(broken).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(field), "{}", status.message());
    }
    client.ask(request("r1", "u1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_the_side_port_tell_how_it_is() {
    let world = World::whole().await;
    let (server, client) = start(&world, config()).await;
    client.ask(request("r1", "u1")).await.unwrap();

    let address = format!("http://{}", server.addresses().grpc);
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    let mut health = HealthClient::new(channel.unwrap());
    let service = "marquee.ads.v1.AdService".to_owned();
    let status = health.check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(status.into_inner().status().as_str_name(), "SERVING");

    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&server, "/nothing").await.starts_with("HTTP/1.1 404"));
    let metrics = get(&server, "/metrics").await;
    for line in [
        "marquee_serve_requests_total{outcome=\"ok\"} 1",
        "marquee_serve_bundle_generation 1",
        "marquee_serve_stage_duration_seconds_count{stage=\"rank\"} 1",
        "marquee_serve_degradation_total{level=\"none\"} 1",
        "marquee_serve_events_total 3",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let bundle = get(&server, "/debug/bundle").await;
    assert!(bundle.contains("\"generation\":1"), "{bundle}");
}

pub async fn get(server: &serving::server::Server, path: &str) -> String {
    let mut stream = TcpStream::connect(server.addresses().http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_prints_as_a_table_and_as_json() {
    let world = World::whole().await;
    let (server, _) = start(&world, config()).await;
    let client = Client::connect(&server).await;
    let answer = client.ask(request("r1", "u1")).await.unwrap();
    let text = serving::ask::to_text(&answer);
    for part in [
        "assemble",
        "retrieve",
        "pCTR",
        "price",
        "slot 0:",
        "degradation none",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json = serving::ask::to_json(&answer);
    assert_eq!(
        json["winners"][0]["creative_id"],
        answer.winners[0].creative_id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let world = World::empty();
    let (server, _client) = start(&world, config()).await;
    let address = format!("http://{}", server.addresses().grpc);
    let channel = Endpoint::from_shared(address).unwrap().connect().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.unwrap())
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("wanted a list, found {answer:?}");
    };
    let names: Vec<&str> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert!(names.contains(&"marquee.ads.v1.AdService"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
}
