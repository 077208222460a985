//! The event schema against its registry, and both kinds of registry against each other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path as FilePath,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use pipeline::schema::{
    ConfluentRegistry, Level, LocalRegistry, SchemaError, SchemaRegistry, compatibility,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const SUBJECT: &str = "marquee.events-value";

fn repository() -> LocalRegistry {
    LocalRegistry::at(&FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../wire/schemas"))
}

/// A change of the schema comes with its registration, or not at all.
#[test]
fn the_event_schema_is_registered() {
    let registry = repository();
    assert_eq!(registry.level(SUBJECT).unwrap(), Level::BackwardTransitive);
    let versions = registry.versions(SUBJECT).unwrap();
    let last = compatibility::parse("the last version", &versions.last().unwrap().text).unwrap();
    let ours = compatibility::parse("the schema", wire::EVENTS_PROTO).unwrap();
    assert!(
        last == ours,
        "run `marquee events schema register`: the event schema differs from version {}",
        versions.len()
    );
    assert_eq!(
        registry.breaks(SUBJECT, wire::EVENTS_PROTO).unwrap(),
        [""; 0]
    );
}

/// What each version may become, and what it may not.
const BEFORE: &str = r#"syntax = "proto3"; package p;
message M {
  string a = 1; int32 b = 2; repeated string c = 3; E e = 4; N n = 5;
  oneof o { bool x = 6; bool y = 7; }
  optional uint32 u = 8;
  reserved 20 to 29;
  message Inner { bytes raw = 1; }
  Inner inner = 9;
}
message N { string text = 1; }
enum E { E_UNSPECIFIED = 0; E_ONE = 1; }
"#;

fn breaks(level: Level, change: (&str, &str)) -> Vec<String> {
    let new = BEFORE.replacen(change.0, change.1, 1);
    assert!(
        new != BEFORE || change.0 == change.1,
        "{} is not there",
        change.0
    );
    let parse = |text: &str| compatibility::parse("it", text).unwrap();
    compatibility::breaks(level, &[parse(BEFORE)], &parse(&new))
}

#[test]
fn what_loses_nothing_may_change() {
    for change in [
        ("string a = 1;", "string a = 1; string added = 10;"),
        ("string a = 1;", "string renamed = 1;"),
        ("int32 b = 2;", "int64 b = 2;"),
        ("string a = 1;", "bytes a = 1;"),
        ("string a = 1;", "reserved 1;"),
        ("E_ONE = 1;", "E_ONE = 1; E_TWO = 2;"),
        ("E_ONE = 1;", "reserved 1;"),
        ("bool y = 7;", "bool y = 7; bool z = 12;"),
        ("message N", "message Added { string of = 1; } message N"),
    ] {
        assert_eq!(
            breaks(Level::BackwardTransitive, change),
            [""; 0],
            "{change:?}"
        );
    }
    // Two that a reader of old records can do with, and one of new records cannot.
    for change in [
        ("int32 b = 2;", "int64 b = 2;"),
        ("string a = 1;", "bytes a = 1;"),
    ] {
        assert_eq!(breaks(Level::Full, change).len(), 1, "{change:?}");
    }
}

#[test]
fn what_loses_something_is_named() {
    for (change, told) in [
        (
            ("string a = 1;", "int64 a = 1;"),
            "field 1 (a) of p.M was string and is int64",
        ),
        (
            ("string a = 1;", ""),
            "field 1 (a) of p.M is gone and its number free",
        ),
        (
            ("int32 b = 2;", "uint32 b = 2;"),
            "field 2 (b) of p.M was int32 and is uint32",
        ),
        (
            ("repeated string c = 3;", "string c = 3;"),
            "was repeated string and is string",
        ),
        (
            ("N n = 5;", "M n = 5;"),
            "field 5 (n) of p.M was p.N and is p.M",
        ),
        (
            ("reserved 20 to 29;", "string b2 = 21;"),
            "field 21 (b2) of p.M has a reserved number",
        ),
        (
            ("E_ONE = 1;", "E_TWO = 1;"),
            "value 1 of enum p.E was E_ONE and is E_TWO",
        ),
        (("E_ONE = 1;", ""), "value 1 (E_ONE) of enum p.E is gone"),
        (
            ("bytes raw = 1;", "string raw = 1;"),
            "field 1 (raw) of p.M.Inner was bytes and is string",
        ),
        (
            (
                "string a = 1; int32 b = 2;",
                "oneof one { string a = 1; int32 b = 2; }",
            ),
            "now exclude each other",
        ),
        (("package p;", "package q;"), "message p.M is gone"),
    ] {
        for level in [Level::Backward, Level::Full] {
            let found = breaks(level, change);
            assert!(
                found.iter().any(|it| it.contains(told)),
                "{change:?}: {found:?}"
            );
        }
        assert_eq!(breaks(Level::None, change), [""; 0]);
    }
}

proptest! {
    /// Every schema is compatible with itself, and adding a field with a new number breaks nothing.
    #[test]
    fn adding_breaks_no_level(
        fields in prop::collection::btree_map(1u32..500, 0usize..5, 0..12),
        number in 500u32..1000,
    ) {
        let kinds = ["string", "int64", "double", "bytes", "repeated float"];
        let of = |more: &str| {
            let fields: String = fields
                .iter()
                .map(|(number, kind)| format!("{} f{number} = {number};", kinds[*kind]))
                .collect();
            let text = format!("syntax = \"proto3\"; message M {{ {fields} {more} }}");
            compatibility::parse("it", &text).unwrap()
        };
        let (old, new) = (of(""), of(&format!("bool added = {number};")));
        for level in [Level::Backward, Level::ForwardTransitive, Level::FullTransitive] {
            prop_assert_eq!(compatibility::breaks(level, std::slice::from_ref(&old), &new), [""; 0]);
            prop_assert_eq!(compatibility::breaks(level, std::slice::from_ref(&old), &old), [""; 0]);
        }
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC{0,200}") {
        let _ = compatibility::parse("it", &text);
    }
}

#[test]
fn a_schema_that_does_not_compile_says_where() {
    let error = compatibility::parse("x.proto", "message M {\n  strin a = ;\n}").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("x.proto is not a Protobuf schema"),
        "{error}"
    );
    // Nothing outside the text is read.
    let text = "syntax = \"proto3\"; import \"/etc/passwd\";";
    compatibility::parse("it", text).unwrap_err();
    let text = "syntax = \"proto3\"; import \"google/protobuf/timestamp.proto\";";
    compatibility::parse("it", text).unwrap();
}

/// The interface of a Schema Registry over HTTP, as its reference has it, with our rules behind it.
async fn serve(registry: LocalRegistry) -> SocketAddr {
    #[derive(Clone)]
    struct Server(Arc<Mutex<LocalRegistry>>);
    type Answer = (StatusCode, String);
    fn refuse(status: u16, code: u32, message: &str) -> Answer {
        let body = json!({ "error_code": code, "message": message });
        (StatusCode::from_u16(status).unwrap(), body.to_string())
    }
    fn text(body: &Value) -> &str {
        assert_eq!(body["schemaType"], "PROTOBUF");
        body["schema"].as_str().unwrap()
    }
    async fn versions(State(server): State<Server>, Path(subject): Path<String>) -> Answer {
        let found = server.0.lock().unwrap().versions(&subject).unwrap();
        match found.is_empty() {
            true => refuse(404, 40_401, "Subject not found."),
            false => {
                let numbers: Vec<u32> = found.iter().map(|it| it.version).collect();
                (StatusCode::OK, json!(numbers).to_string())
            }
        }
    }
    async fn version(
        State(server): State<Server>,
        Path((subject, number)): Path<(String, u32)>,
    ) -> Answer {
        let found = server.0.lock().unwrap().versions(&subject).unwrap();
        match found.into_iter().find(|it| it.version == number) {
            None => refuse(404, 40_402, "Version not found."),
            Some(it) => {
                let body = json!({ "subject": subject, "version": it.version, "id": it.id,
                                   "schemaType": "PROTOBUF", "schema": it.text });
                (StatusCode::OK, body.to_string())
            }
        }
    }
    async fn register(
        State(server): State<Server>,
        Path(subject): Path<String>,
        body: String,
    ) -> Answer {
        let body: Value = serde_json::from_str(&body).unwrap();
        match server.0.lock().unwrap().register(&subject, text(&body)) {
            Ok(schema) => (StatusCode::OK, json!({ "id": schema.id }).to_string()),
            Err(SchemaError::Incompatible { breaks, .. }) => refuse(409, 409, &breaks.join("; ")),
            Err(SchemaError::Malformed { why, .. }) => refuse(422, 42_201, &why),
            Err(error) => panic!("{error}"),
        }
    }
    async fn look_up(
        State(server): State<Server>,
        Path(subject): Path<String>,
        body: String,
    ) -> Answer {
        let body: Value = serde_json::from_str(&body).unwrap();
        let found = server.0.lock().unwrap().versions(&subject).unwrap();
        match found.into_iter().find(|it| it.text == text(&body)) {
            None => refuse(404, 40_403, "Schema not found"),
            Some(it) => {
                let body = json!({ "subject": subject, "version": it.version, "id": it.id,
                                   "schema": it.text });
                (StatusCode::OK, body.to_string())
            }
        }
    }
    async fn compatible(
        State(server): State<Server>,
        Path(subject): Path<String>,
        body: String,
    ) -> Answer {
        let body: Value = serde_json::from_str(&body).unwrap();
        let breaks = server
            .0
            .lock()
            .unwrap()
            .breaks(&subject, text(&body))
            .unwrap();
        let body = json!({ "is_compatible": breaks.is_empty(), "messages": breaks });
        (StatusCode::OK, body.to_string())
    }
    async fn level(State(server): State<Server>, Path(subject): Path<String>) -> Answer {
        let level = server.0.lock().unwrap().level(&subject).unwrap();
        (
            StatusCode::OK,
            json!({ "compatibilityLevel": level }).to_string(),
        )
    }
    let router = Router::new()
        .route(
            "/registry/subjects/{subject}/versions",
            get(versions).post(register),
        )
        .route(
            "/registry/subjects/{subject}/versions/{version}",
            get(version),
        )
        .route("/registry/subjects/{subject}", post(look_up))
        .route(
            "/registry/compatibility/subjects/{subject}/versions",
            post(compatible),
        )
        .route("/registry/config/{subject}", get(level))
        .with_state(Server(Arc::new(Mutex::new(registry))));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// One story, told to a registry; what it says.
fn story(registry: &dyn SchemaRegistry) -> BTreeMap<&'static str, String> {
    let next = BEFORE.replacen("string a = 1;", "string a = 1; string added = 10;", 1);
    let broken = BEFORE.replacen("string a = 1;", "int64 a = 1;", 1);
    let mut told = BTreeMap::new();
    let versions = |it: &dyn SchemaRegistry| format!("{:?}", it.versions("p").unwrap());
    told.insert("1 none", versions(registry));
    told.insert(
        "2 anything is compatible",
        format!("{:?}", registry.breaks("p", &broken).unwrap()),
    );
    told.insert(
        "3 registered",
        format!("{:?}", registry.register("p", BEFORE).unwrap()),
    );
    told.insert(
        "4 again",
        format!("{:?}", registry.register("p", BEFORE).unwrap()),
    );
    told.insert(
        "5 compatible",
        format!("{:?}", registry.breaks("p", &next).unwrap()),
    );
    told.insert(
        "6 next",
        format!("{:?}", registry.register("p", &next).unwrap()),
    );
    told.insert(
        "7 broken",
        format!("{:?}", registry.breaks("p", &broken).unwrap()),
    );
    told.insert(
        "8 refused",
        registry.register("p", &broken).unwrap_err().to_string(),
    );
    told.insert("9 two", versions(registry));
    told.insert("level", format!("{}", registry.level("p").unwrap()));
    let malformed = registry.register("p", "message {").unwrap_err();
    told.insert(
        "malformed",
        matches!(
            malformed,
            SchemaError::Server { .. } | SchemaError::Malformed { .. }
        )
        .to_string(),
    );
    told
}

#[test]
fn a_registry_behind_http_is_as_one_in_a_folder() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [here, there] = folders.each_ref().map(|it| LocalRegistry::at(it.path()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = runtime.block_on(serve(there));
    let remote = ConfluentRegistry::new(&format!("http://{address}/registry")).unwrap();
    let (here, there) = (story(&here), story(&remote));
    assert_eq!(here, there);
    assert!(
        here["8 refused"].contains("field 1 (a) of p.M was string and is int64"),
        "{here:?}"
    );
    assert!(
        here["8 refused"].contains("version 3 of `p` (BACKWARD_TRANSITIVE)"),
        "{here:?}"
    );
}

#[test]
fn a_registry_that_does_not_answer_is_a_clear_error() {
    let error = ConfluentRegistry::new("http://127.0.0.1:9")
        .unwrap()
        .versions("p")
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("http://127.0.0.1:9/subjects/p/versions"),
        "{error}"
    );
    assert!(matches!(
        ConfluentRegistry::new("ftp://x").unwrap_err(),
        SchemaError::Server { .. }
    ));
}

#[test]
fn a_folder_with_a_version_missing_or_a_wrong_rule_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let registry = LocalRegistry::at(folder.path());
    registry.register("p", BEFORE).unwrap();
    let subject = folder.path().join("p");
    std::fs::copy(subject.join("1.proto"), subject.join("3.proto")).unwrap();
    let error = registry.versions("p").unwrap_err().to_string();
    assert!(
        error.contains("2.proto") && error.contains("3.proto"),
        "{error}"
    );
    std::fs::write(subject.join("level"), "SOMETIMES").unwrap();
    let error = registry.level("p").unwrap_err().to_string();
    assert!(
        error.contains("SOMETIMES") && error.contains("level"),
        "{error}"
    );
    for subject in ["", "../p", "a/b", "."] {
        assert!(registry.versions(subject).is_err(), "{subject}");
    }
}
