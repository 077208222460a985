//! The online store: embedded, and on a Redis Cluster of three real nodes.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use features::{
    Aggregates, Counted, EntityKey, FeatureBatch, FeatureSet, FeatureSpec, Known, RequestFacts,
    SourceEvent, StateSource,
    facts::request_facts,
    online::{Online, OnlineConfig, OnlineError, OnlineStore, RedisConfig},
};
use marquee_tests::RedisCluster;
use wire::{
    events::{AgeBand, Context},
    gate::Subject,
};

const HOUR_US: i64 = 3_600_000_000;
const NOW_US: i64 = 500_000 * HOUR_US;
const CLICK: usize = SourceEvent::Click as usize;

/// Two kinds of entities, the users' in memory and the genres' on disk.
const SPEC: &str = r#"
[[feature]]
name = "user_clicks"
kind = "dense"
entity = "user"
aggregation = "count"
source = "click"
window = "24h"
key = ["user_id"]
ttl = "30m"
default = 7.0
freshness = "nearline"
child_safe = false
owner = "ads"
version = 1

[[feature]]
name = "genre_clicks"
kind = "dense"
entity = "context"
aggregation = "count"
source = "click"
window = "7d"
key = ["genre"]
tier = "TIER"
freshness = "nearline"
child_safe = true
owner = "ads"
version = 1
"#;

fn set(tier: &str) -> FeatureSet {
    let spec = FeatureSpec::parse(&SPEC.replace("TIER", tier), "f.toml").unwrap();
    FeatureSet::compile(spec)
}

fn request(set: &FeatureSet, user: &str, genre: &str) -> RequestFacts {
    let context = Context {
        genre: genre.to_owned(),
        ..Context::default()
    };
    let age_band = AgeBand::AgeBand13plus;
    let subject = Subject::admit(user.to_owned(), age_band, true);
    set.bind_request(&request_facts(&subject, age_band, &context, None, NOW_US))
}

fn click(set: &FeatureSet, aggregates: &mut Aggregates, user: &str) {
    let event = Counted::at_once(SourceEvent::Click, 0.0, NOW_US - HOUR_US);
    aggregates.apply(set, &request(set, user, "racing"), None, event);
}

fn clicks_of(set: &FeatureSet, users: usize) -> Aggregates {
    let mut aggregates = Aggregates::default();
    for user in 0..users {
        click(set, &mut aggregates, &format!("u{user}"));
    }
    aggregates
}

fn redis(cluster: &RedisCluster) -> RedisConfig {
    RedisConfig {
        nodes: cluster.nodes.clone(),
        // A busy machine changes nothing.
        read_timeout_ms: 10_000,
        ..RedisConfig::default()
    }
}

fn on_redis(cluster: &RedisCluster, root: &Path) -> Online {
    Online::new(&OnlineConfig::Redis(redis(cluster)), root).unwrap()
}

fn embedded(root: &Path) -> Online {
    Online::new(&OnlineConfig::Embedded, root).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn read(store: &OnlineStore, keys: &[EntityKey]) -> Known {
    let mut known = Known::new();
    store.read(keys, soon(), &mut known).unwrap();
    known
}

/// Clicks in the last day of the entities that a user has, by rising number.
fn counts(store: &OnlineStore, set: &FeatureSet, user: &str) -> Vec<u64> {
    let keys = set.keys(&request(set, user, "racing"), &[]);
    let known = read(store, &keys);
    assert_eq!(known.len(), keys.len());
    let states = known.values().flatten();
    let mut counts: Vec<u64> = states
        .map(|state| state.window(24, NOW_US).counts[CLICK])
        .collect();
    counts.sort_unstable();
    counts
}

/// Waits until something holds, half a minute at most.
fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "it does not hold in time");
    }
}

/// What every engine must do.
fn serves_what_was_published(online: &Online, set: &FeatureSet) {
    let missing = online.open(set.digest()).unwrap_err();
    assert!(matches!(missing, OnlineError::Missing { .. }), "{missing}");
    assert_eq!(online.current(set.digest()).unwrap(), None);

    let mut aggregates = clicks_of(set, 40);
    for generation in 1..=3 {
        let published = online.publish(set, &aggregates, NOW_US).unwrap();
        assert_eq!((published.generation, published.entities), (generation, 41));
    }
    let store = online.open(set.digest()).unwrap();
    let version = store.version();
    assert_eq!((version.generation, version.as_of_us), (3, NOW_US));
    assert_eq!(Some(version.clone()), online.current(set.digest()).unwrap());

    // All at once, one who is unknown among them.
    let users = (0..41).map(|user| request(set, &format!("u{user}"), "racing"));
    let keys: Vec<EntityKey> = users.flat_map(|request| set.keys(&request, &[])).collect();
    let known = read(&store, &keys);
    assert_eq!(known.len(), 42);
    assert_eq!(known.values().filter(|state| state.is_none()).count(), 1);
    for (key, state) in &known {
        assert_eq!(
            state.as_ref(),
            aggregates.state(*key).map(|it| it.settled()).as_ref()
        );
    }

    // A version that is open stays as it is while the next is written, and is gone after one more.
    click(set, &mut aggregates, "u7");
    online.publish(set, &aggregates, NOW_US + 5).unwrap();
    assert_eq!(counts(&store, set, "u7"), [1, 40]);
    let newer = online.open(set.digest()).unwrap();
    assert_eq!(counts(&newer, set, "u7"), [2, 41]);
    assert_eq!(counts(&newer, set, "u8"), [1, 41]);
    assert_eq!(newer.version().as_of_us, NOW_US + 5);

    // Other features have versions of their own.
    let other = SPEC.replace("TIER", "hot").replace("24h", "48h");
    let other = FeatureSet::compile(FeatureSpec::parse(&other, "g.toml").unwrap());
    online
        .publish(&other, &clicks_of(&other, 1), NOW_US)
        .unwrap();
    let of_other = online.open(other.digest()).unwrap();
    assert_eq!(of_other.version().generation, 1);
    assert_eq!(counts(&of_other, &other, "u7"), [1]);
    let still = online.open(set.digest()).unwrap();
    assert_eq!(counts(&still, set, "u7"), [2, 41]);

    // No time, no answer, and it says how much is missing.
    let mut nothing = Known::new();
    let late = still.read(&keys, Instant::now(), &mut nothing).unwrap_err();
    assert!(
        matches!(late, OnlineError::Late { unread } if unread > 0),
        "{late}"
    );
}

#[test]
fn the_embedded_store_serves_what_was_published() {
    let root = tempfile::tempdir().unwrap();
    serves_what_was_published(&embedded(root.path()), &set("hot"));
}

#[test]
fn redis_serves_what_was_published() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    serves_what_was_published(&on_redis(&cluster, root.path()), &set("hot"));
}

/// Keys of an epoch's entities.
fn entities(cluster: &RedisCluster, epoch: u64) -> Vec<String> {
    let begin = format!("marquee:{epoch}:");
    let mut keys = cluster.keys();
    keys.retain(|key| key.starts_with(&begin) && !key.ends_with(":written"));
    keys
}

#[test]
fn warm_entities_lie_on_disk_and_hot_ones_on_redis() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("warm");
    let online = on_redis(&cluster, root.path());
    serves_what_was_published(&online, &set);
    // Users only, of two specs, and the other's genre.
    assert_eq!([1, 2].map(|epoch| entities(&cluster, epoch).len()), [40, 2]);

    // A server without the file says which it lacks.
    let elsewhere = tempfile::tempdir().unwrap();
    let error = on_redis(&cluster, elsewhere.path())
        .open(set.digest())
        .unwrap_err();
    assert!(error.to_string().contains("store.redb"), "{error}");
}

#[test]
fn only_what_changed_is_written_and_each_entity_has_two_states_at_most() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let mut aggregates = clicks_of(&set, 30);
    let mut written = Vec::new();
    for round in 0..5 {
        written.push(online.publish(&set, &aggregates, NOW_US).unwrap().written);
        if round > 0 {
            click(&set, &mut aggregates, "u3");
        }
    }
    // The user and the genre; between the first two nothing changed.
    assert_eq!(written, [31, 0, 2, 2, 2]);
    let entities = entities(&cluster, 1);
    assert_eq!(entities.len(), 31);
    let mut fields = 0;
    for key in &entities {
        fields += cluster.cli_of(key, &["HKEYS", key]).lines().count();
        // Until the hour has left the window of a day, or of a week.
        let ttl: i64 = cluster.cli_of(key, &["TTL", key]).parse().unwrap();
        assert!((24 * 3_600 - 60..=168 * 3_600).contains(&ttl), "{ttl}");
    }
    assert_eq!(fields, 31 + 2);
}

#[test]
fn after_a_writer_that_died_all_is_written_anew_and_what_it_left_is_removed() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let aggregates = clicks_of(&set, 20);
    online.publish(&set, &aggregates, NOW_US).unwrap();
    let known = fs::read_dir(root.path()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path().join("published.bin");
        path.exists().then_some(path)
    });
    let known: Vec<_> = known.collect();
    let whole = fs::read(&known[0]).unwrap();

    let in_epoch = |epoch: u64| entities(&cluster, epoch).len();
    // What was written is not known: gone, cut short, of another version.
    let mut of_another = whole.clone();
    of_another[16] ^= 1;
    let damages: [&dyn Fn(); 3] = [
        &|| fs::remove_file(&known[0]).unwrap(),
        &|| fs::write(&known[0], &whole[..whole.len() - 3]).unwrap(),
        &|| fs::write(&known[0], &of_another).unwrap(),
    ];
    for (epoch, damage) in (2..).zip(damages) {
        damage();
        let reader = online.open(set.digest()).unwrap();
        assert_eq!(
            online.publish(&set, &aggregates, NOW_US).unwrap().written,
            21
        );
        // The one that is open is left, and older ones are gone.
        assert_eq!(counts(&reader, &set, "u1"), [1, 20]);
        let found: Vec<usize> = (1..=epoch).map(in_epoch).collect();
        assert!(
            found[..epoch as usize - 2].iter().all(|left| *left == 0),
            "{found:?}"
        );
        assert_eq!(found[epoch as usize - 2..], [21, 21]);
    }
    assert_eq!(
        online.publish(&set, &aggregates, NOW_US).unwrap().written,
        0
    );
    assert_eq!((in_epoch(3), in_epoch(4)), (0, 21));
}

#[test]
fn two_pipelines_under_one_prefix_do_not_serve_a_mixture() {
    let (one, other, cluster) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        RedisCluster::start(),
    );
    let set = set("hot");
    let (one, other) = (
        on_redis(&cluster, one.path()),
        on_redis(&cluster, other.path()),
    );
    one.publish(&set, &clicks_of(&set, 3), NOW_US).unwrap();
    // The second knows nothing of what the first wrote, and the first not any more.
    assert_eq!(
        other
            .publish(&set, &clicks_of(&set, 5), NOW_US)
            .unwrap()
            .written,
        6
    );
    assert_eq!(counts(&one.open(set.digest()).unwrap(), &set, "u1"), [1, 5]);
    assert_eq!(
        one.publish(&set, &clicks_of(&set, 3), NOW_US)
            .unwrap()
            .written,
        4
    );
    let store = other.open(set.digest()).unwrap();
    assert_eq!(
        (store.version().generation, counts(&store, &set, "u1")),
        (3, vec![1, 3])
    );
}

#[test]
fn a_frozen_node_costs_its_entities_alone_and_is_left_alone_for_a_while() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let publisher = on_redis(&cluster, root.path());
    publisher
        .publish(&set, &clicks_of(&set, 60), NOW_US)
        .unwrap();
    let patient = RedisConfig {
        read_timeout_ms: 1_000,
        rest_ms: 3_600_000,
        ..redis(&cluster)
    };
    let impatient = RedisConfig {
        rest_ms: 0,
        ..patient.clone()
    };
    let open = |config| {
        let online = Online::new(&OnlineConfig::Redis(config), root.path()).unwrap();
        online.open(set.digest()).unwrap()
    };
    let (patient, impatient) = (open(patient), open(impatient));
    let users = (0..60).map(|user| request(&set, &format!("u{user}"), "racing"));
    let mut keys: Vec<EntityKey> = users.flat_map(|request| set.keys(&request, &[])).collect();
    keys.sort_unstable();
    keys.dedup();
    let try_read = |store: &OnlineStore| {
        let mut known = Known::new();
        let error = store.read(&keys, soon(), &mut known).err();
        assert!(known.values().all(Option::is_some));
        (
            known.len(),
            error.map_or_else(String::new, |error| error.to_string()),
        )
    };
    assert_eq!(try_read(&patient), (61, String::new()));

    cluster.signal(1, "STOP");
    for store in [&patient, &impatient] {
        let (read, error) = try_read(store);
        assert!((1..61).contains(&read), "{read}");
        assert!(error.contains("no answer within 1000 ms"), "{error}");
    }
    let (read, error) = try_read(&patient);
    assert!(
        (1..61).contains(&read) && error.contains("left alone"),
        "{read} {error}"
    );

    cluster.signal(1, "CONT");
    until(|| try_read(&impatient) == (61, String::new()));
    assert!(try_read(&patient).1.contains("left alone"));
}

#[test]
fn keys_that_moved_to_another_node_are_read_and_written_there() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let mut aggregates = clicks_of(&set, 50);
    online.publish(&set, &aggregates, NOW_US).unwrap();
    let store = online.open(set.digest()).unwrap();
    assert_eq!(counts(&store, &set, "u1"), [1, 50]);

    let address = |node: usize| {
        cluster.nodes[node]
            .trim_start_matches("redis://")
            .to_owned()
    };
    let id = |node| cluster.cli(node, &["CLUSTER", "MYID"]);
    let moved = std::process::Command::new("redis-cli")
        .args([
            "--cluster",
            "reshard",
            &address(0),
            "--cluster-from",
            &id(0),
            "--cluster-to",
            &id(2),
        ])
        .args(["--cluster-slots", "3000", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(
        moved.status.success(),
        "{}",
        String::from_utf8_lossy(&moved.stdout)
    );

    for user in 0..50 {
        assert_eq!(counts(&store, &set, &format!("u{user}")), [1, 50]);
        click(&set, &mut aggregates, &format!("u{user}"));
    }
    assert_eq!(
        online.publish(&set, &aggregates, NOW_US).unwrap().written,
        51
    );
    let store = online.open(set.digest()).unwrap();
    assert_eq!(counts(&store, &set, "u1"), [2, 100]);
}

#[test]
fn a_node_that_died_is_told_and_nothing_is_published_without_it() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let config = RedisConfig {
        timeout_ms: 500,
        ..redis(&cluster)
    };
    let online = Online::new(&OnlineConfig::Redis(config.clone()), root.path()).unwrap();
    online.publish(&set, &clicks_of(&set, 60), NOW_US).unwrap();
    // One on which the pointer does not lie.
    let pointer = format!("{{marquee}}:current:{}", &set.digest()[..16]);
    let lies_elsewhere = |node: &usize| cluster.cli(*node, &["GET", &pointer]).starts_with("MOVED");
    let node = (0..3).find(lies_elsewhere).unwrap();
    cluster.signal(node, "KILL");
    let mut more = clicks_of(&set, 60);
    for user in 0..60 {
        click(&set, &mut more, &format!("u{user}"));
    }
    let error = online.publish(&set, &more, NOW_US).unwrap_err();
    assert!(error.to_string().starts_with("Redis, "), "{error}");
    assert_eq!(online.current(set.digest()).unwrap().unwrap().generation, 1);

    for node in 0..3 {
        let _ = cluster.cli(node, &["SHUTDOWN", "NOSAVE"]);
    }
    let nobody = Online::new(&OnlineConfig::Redis(config), root.path()).unwrap();
    let error = nobody.open(set.digest()).unwrap_err().to_string();
    assert!(error.starts_with("Redis, connecting"), "{error}");
}

#[test]
fn a_cluster_behind_tls_is_spoken_to_over_tls() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start_with_tls());
    assert!(cluster.nodes[0].starts_with("rediss://"));
    let trusting = RedisConfig {
        ca_file: Some(cluster.ca_file()),
        ..redis(&cluster)
    };
    let online = Online::new(&OnlineConfig::Redis(trusting), root.path()).unwrap();
    serves_what_was_published(&online, &set("hot"));

    // The system trusts nobody who would vouch for it.
    let error = on_redis(&cluster, root.path())
        .open(set("hot").digest())
        .unwrap_err();
    assert!(
        error.to_string().starts_with("Redis, connecting"),
        "{error}"
    );
}

#[test]
fn a_cluster_with_a_password_wants_it() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    for node in 0..3 {
        assert_eq!(
            cluster.cli(node, &["CONFIG", "SET", "requirepass", "s3cret"]),
            "OK"
        );
    }
    let set = set("hot");
    let with = |password: &str| {
        let config = RedisConfig {
            password: password.to_owned(),
            ..redis(&cluster)
        };
        Online::new(&OnlineConfig::Redis(config), root.path()).unwrap()
    };
    assert_eq!(
        with("s3cret")
            .publish(&set, &clicks_of(&set, 9), NOW_US)
            .unwrap()
            .written,
        10
    );
    for wrong in ["", "guess"] {
        let error = with(wrong).open(set.digest()).unwrap_err();
        assert!(error.to_string().starts_with("Redis, "), "{error}");
        assert!(!format!("{error:?}").contains("guess"));
    }
}

#[test]
fn what_a_writer_left_half_written_is_never_read() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let hasty = RedisConfig {
        timeout_ms: 500,
        ..redis(&cluster)
    };
    let hasty = Online::new(&OnlineConfig::Redis(hasty), root.path()).unwrap();
    let online = on_redis(&cluster, root.path());
    online.publish(&set, &clicks_of(&set, 60), NOW_US).unwrap();
    let reader = online.open(set.digest()).unwrap();

    let mut more = clicks_of(&set, 60);
    for user in 0..60 {
        click(&set, &mut more, &format!("u{user}"));
    }
    // One that has keys, but not those that a publisher needs before it writes states.
    let admin = format!("{{marquee}}:current:{}", &set.digest()[..16]);
    let lies_elsewhere = |node: &usize| cluster.cli(*node, &["GET", &admin]).starts_with("MOVED");
    let node = (0..3).find(lies_elsewhere).unwrap();
    // It takes no more memory: what is written fails there alone.
    assert_eq!(
        cluster.cli(node, &["CONFIG", "SET", "maxmemory", "1"]),
        "OK"
    );
    let error = hasty.publish(&set, &more, NOW_US).unwrap_err();
    assert!(matches!(error, OnlineError::Redis { .. }), "{error}");
    assert_eq!(online.current(set.digest()).unwrap().unwrap().generation, 1);
    assert_eq!(counts(&reader, &set, "u1"), [1, 60]);
    assert_eq!(
        cluster.cli(node, &["CONFIG", "SET", "maxmemory", "0"]),
        "OK"
    );

    // What came of it in the meantime is something else: what was half written must not show.
    let mut other = clicks_of(&set, 60);
    click(&set, &mut other, "u59");
    assert_eq!(online.publish(&set, &other, NOW_US).unwrap().written, 61);
    let store = online.open(set.digest()).unwrap();
    for user in 0..59 {
        assert_eq!(counts(&store, &set, &format!("u{user}")), [1, 61]);
        assert_eq!(counts(&reader, &set, &format!("u{user}")), [1, 60]);
    }
    assert_eq!(counts(&store, &set, "u59"), [2, 61]);
}

#[test]
fn a_reader_that_was_overtaken_is_told_so() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let mut aggregates = clicks_of(&set, 3);
    online.publish(&set, &aggregates, NOW_US).unwrap();
    let reader = online.open(set.digest()).unwrap();
    for _ in 0..2 {
        click(&set, &mut aggregates, "u1");
        online.publish(&set, &aggregates, NOW_US).unwrap();
    }
    let of = |user| set.keys(&request(&set, user, "nowhere"), &[]);
    let error = reader
        .read(&of("u1"), soon(), &mut Known::new())
        .unwrap_err();
    assert!(error.to_string().contains("two newer versions"), "{error}");
    // Nothing happened to the other.
    reader.read(&of("u2"), soon(), &mut Known::new()).unwrap();

    let mut newer = online.current(set.digest()).unwrap().unwrap();
    assert!(!newer.replaces(reader.version()));
    fs::remove_file(root.path().join(&set.digest()[..16]).join("published.bin")).unwrap();
    online.publish(&set, &aggregates, NOW_US).unwrap();
    newer = online.current(set.digest()).unwrap().unwrap();
    assert!(newer.replaces(reader.version()));
}

#[test]
fn what_a_node_lost_is_written_again() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let aggregates = clicks_of(&set, 60);
    for written in [61, 0] {
        assert_eq!(
            online.publish(&set, &aggregates, NOW_US).unwrap().written,
            written
        );
    }
    for node in 0..3 {
        // With the pointer on one of them.
        assert_eq!(cluster.cli(node, &["FLUSHALL"]), "OK");
        assert_eq!(
            online.publish(&set, &aggregates, NOW_US).unwrap().written,
            61
        );
        let store = online.open(set.digest()).unwrap();
        for user in 0..60 {
            assert_eq!(counts(&store, &set, &format!("u{user}")), [1, 60]);
        }
    }
}

#[test]
fn a_publisher_that_holds_the_lock_keeps_others_away() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let lock = "{marquee}:lock";
    assert_eq!(cluster.cli_of(lock, &["SET", lock, "99"]), "OK");
    let error = online
        .publish(&set, &clicks_of(&set, 3), NOW_US)
        .unwrap_err();
    assert!(matches!(error, OnlineError::Busy { .. }), "{error}");
    assert_eq!(cluster.cli_of(lock, &["GET", lock]), "99");
    cluster.cli_of(lock, &["DEL", lock]);
    online.publish(&set, &clicks_of(&set, 3), NOW_US).unwrap();
    assert_eq!(cluster.cli_of(lock, &["EXISTS", lock]), "0");
}

#[test]
fn a_pointer_that_is_damaged_is_mended_by_publishing() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let elsewhere = tempfile::tempdir().unwrap();
    let pointer = format!("{{marquee}}:current:{}", &set.digest()[..16]);
    for online in [embedded(root.path()), on_redis(&cluster, elsewhere.path())] {
        for _ in 0..3 {
            online.publish(&set, &clicks_of(&set, 3), NOW_US).unwrap();
        }
        fs::write(root.path().join(&set.digest()[..16]).join("CURRENT"), "{").unwrap();
        cluster.cli_of(&pointer, &["SET", &pointer, "{"]);
        let error = online.open(set.digest()).unwrap_err();
        assert!(matches!(error, OnlineError::Pointer { .. }), "{error}");
        online.publish(&set, &clicks_of(&set, 4), NOW_US).unwrap();
        assert_eq!(
            counts(&online.open(set.digest()).unwrap(), &set, "u1"),
            [1, 4]
        );
    }
}

#[test]
fn keys_on_their_way_to_another_node_are_read_and_written() {
    let (root, cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start());
    let set = set("hot");
    let online = on_redis(&cluster, root.path());
    let mut aggregates = clicks_of(&set, 40);
    online.publish(&set, &aggregates, NOW_US).unwrap();
    let store = online.open(set.digest()).unwrap();

    // An entity's slot is on its way, and the entity is there already.
    let key = entities(&cluster, 1).swap_remove(0);
    let slot = cluster.cli(0, &["CLUSTER", "KEYSLOT", &key]);
    let has = |node: &usize| !cluster.cli(*node, &["EXISTS", &key]).starts_with("MOVED");
    let from = (0..3).find(has).unwrap();
    let to = (from + 1) % 3;
    let id = |node| cluster.cli(node, &["CLUSTER", "MYID"]);
    assert_eq!(
        cluster.cli(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]),
        "OK"
    );
    assert_eq!(
        cluster.cli(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]),
        "OK"
    );
    let port = cluster.nodes[to].rsplit(':').next().unwrap().to_owned();
    assert_eq!(
        cluster.cli(from, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]),
        "OK"
    );
    assert!(cluster.cli(from, &["EXISTS", &key]).starts_with("ASK"));

    for user in 0..40 {
        assert_eq!(counts(&store, &set, &format!("u{user}")), [1, 40]);
        click(&set, &mut aggregates, &format!("u{user}"));
    }
    assert_eq!(
        online.publish(&set, &aggregates, NOW_US).unwrap().written,
        41
    );
    let store = online.open(set.digest()).unwrap();
    for user in 0..40 {
        assert_eq!(counts(&store, &set, &format!("u{user}")), [2, 80]);
    }
}

#[test]
fn a_replica_that_takes_over_from_a_node_that_hangs_is_found() {
    let (root, cluster) = (
        tempfile::tempdir().unwrap(),
        RedisCluster::start_with_replicas(),
    );
    let set = set("hot");
    let config = RedisConfig {
        nodes: cluster.nodes.clone(),
        read_timeout_ms: 1_000,
        rest_ms: 100,
        timeout_ms: 1_000,
        ..RedisConfig::default()
    };
    let online = Online::new(&OnlineConfig::Redis(config), root.path()).unwrap();
    online.publish(&set, &clicks_of(&set, 60), NOW_US).unwrap();
    let store = online.open(set.digest()).unwrap();
    // They have all that was written.
    for node in 0..3 {
        cluster.cli(node, &["WAIT", "1", "0"]);
    }
    cluster.signal(0, "STOP");
    let users: Vec<_> = (0..60)
        .flat_map(|user| set.keys(&request(&set, &format!("u{user}"), "racing"), &[]))
        .collect();
    until(|| {
        let mut known = Known::new();
        store.read(&users, soon(), &mut known).is_ok() && known.values().all(Option::is_some)
    });
}

#[test]
fn no_password_is_told() {
    let config = RedisConfig {
        nodes: vec!["redis://127.0.0.1:1".to_owned()],
        password: "s3cret".to_owned(),
        ..RedisConfig::default()
    };
    let config = OnlineConfig::Redis(config);
    let online = Online::new(&config, Path::new("/nowhere")).unwrap();
    let told = format!("{config:?} {online:?}");
    assert!(
        told.contains("127.0.0.1:1") && !told.contains("s3cret"),
        "{told}"
    );
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut RedisConfig)| {
        let mut config = RedisConfig {
            nodes: vec!["redis://127.0.0.1:1".to_owned()],
            ..RedisConfig::default()
        };
        change(&mut config);
        let refused = Online::new(&OnlineConfig::Redis(config), Path::new("/nowhere"));
        refused.unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&|config| config.nodes.clear()),
        "online store: `redis.nodes` names none: give some as `redis://host:port`"
    );
    assert_eq!(
        refusal(&|config| config.prefix = "a{b}".to_owned()),
        "online store: `redis.prefix` is `a{b}`, wanted letters, digits, `-` and `_`"
    );
    assert_eq!(
        refusal(&|config| config.read_timeout_ms = 0),
        "online store: `redis.read_timeout_ms` is 0, wanted at least 1"
    );
    assert_eq!(
        refusal(&|config| config.password = "${NO_SUCH_VARIABLE}".to_owned()),
        "online store: `redis.password` names `NO_SUCH_VARIABLE`, which the environment has not: set it"
    );
    let file = refusal(&|config| config.ca_file = Some("/nowhere/ca.pem".into()));
    assert!(
        file.starts_with("online store: `redis.ca_file` /nowhere/ca.pem cannot be read: "),
        "{file}"
    );
    assert_eq!(
        refusal(&|config| config.nodes = vec!["redis://me:s3cret@127.0.0.1:1".to_owned()]),
        "online store: `redis.nodes` may not name a user or password: `username` and `password` do"
    );
    let url = refusal(&|config| config.nodes = vec!["http://127.0.0.1".to_owned()]);
    assert!(
        url.starts_with("online store: `redis.nodes` cannot be used: "),
        "{url}"
    );
}

#[test]
fn a_feature_whose_time_to_live_has_passed_takes_its_default_and_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let set = set("hot");
    let online = embedded(root.path());
    online.publish(&set, &clicks_of(&set, 3), NOW_US).unwrap();
    let store = online.open(set.digest()).unwrap();
    let request = request(&set, "u1", "racing");

    struct AsOf(Known, i64);
    impl StateSource for AsOf {
        fn state(&self, key: EntityKey) -> Option<&features::EntityState> {
            self.0.state(key)
        }
        fn as_of_us(&self) -> Option<i64> {
            Some(self.1)
        }
    }
    let states = AsOf(
        read(&store, &set.keys(&request, &[])),
        store.version().as_of_us,
    );
    let minutes = 60_000_000;
    for (age_us, expected, stale) in [
        (30 * minutes, [1.0, 3.0], 0),
        (30 * minutes + 1, [7.0, 3.0], 1),
    ] {
        let mut batch = FeatureBatch::new(set.schema());
        let ad = features::AdFacts::in_request(&set);
        let counts = set.evaluate(&request, &[&ad], &states, NOW_US + age_us, &mut batch);
        assert_eq!(
            (batch.dense.as_slice(), counts.stale),
            (&expected[..], stale)
        );
    }
}

#[test]
fn a_damaged_embedded_store_is_an_error_and_two_do_not_publish_at_once() {
    let root = tempfile::tempdir().unwrap();
    let set = set("hot");
    let online = embedded(root.path());
    online.publish(&set, &Aggregates::default(), 0).unwrap();
    let folder = root.path().join(&set.digest()[..16]);
    fs::write(folder.join("000000000001/store.redb"), b"not a store").unwrap();
    let error = online.open(set.digest()).unwrap_err();
    assert!(matches!(error, OnlineError::Store { .. }), "{error}");
    fs::write(folder.join("CURRENT"), b"{}").unwrap();
    let error = online.open(set.digest()).unwrap_err();
    assert!(matches!(error, OnlineError::Pointer { .. }), "{error}");

    let lock = fs::File::create(root.path().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let error = online.publish(&set, &Aggregates::default(), 0).unwrap_err();
    assert!(matches!(error, OnlineError::Locked { .. }), "{error}");
}
