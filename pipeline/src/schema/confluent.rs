//! A client of the Schema Registry's HTTP interface (Confluent, "Schema Registry API Reference").

use std::{env, time::Duration};

use reqwest::{
    Method, StatusCode,
    blocking::{Client, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::Url;

use super::{Level, Schema, SchemaError, SchemaRegistry};

/// `name:password`, as Confluent's own clients take it.
const CREDENTIALS: &str = "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO";

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// The registry says "not found" of a subject, a version or a schema by one of these.
const NOT_FOUND: [u32; 3] = [40_401, 40_402, 40_403];

/// The registry says that a schema breaks its rule.
const INCOMPATIBLE: u32 = 409;

/// A registry behind HTTP.
#[derive(Debug)]
pub struct ConfluentRegistry {
    base: Url,
    client: Client,
    credentials: Option<(String, String)>,
}

/// What the registry says when it refuses.
#[derive(Debug, Deserialize)]
struct Refusal {
    error_code: u32,
    message: String,
}

impl ConfluentRegistry {
    /// The registry at an address; credentials come from the environment
    /// (`SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO=name:password`).
    ///
    /// # Errors
    /// [`SchemaError::Server`] if it is no address of HTTP.
    pub fn new(url: &str) -> Result<Self, SchemaError> {
        let fail = |why: String| SchemaError::Server {
            url: url.to_owned(),
            why,
        };
        let mut base = Url::parse(url).map_err(|error| fail(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(fail("wanted http:// or https://".to_owned()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = Client::builder().timeout(Duration::from_secs(30)).build();
        let credentials = match env::var(CREDENTIALS) {
            Err(_) => None,
            Ok(told) => match told.split_once(':') {
                Some((name, password)) => Some((name.to_owned(), password.to_owned())),
                None => return Err(fail(format!("{CREDENTIALS} is not `name:password`"))),
            },
        };
        Ok(Self {
            base,
            client: client.map_err(|error| fail(error.to_string()))?,
            credentials,
        })
    }

    /// The answer, or the refusal with its code.
    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Result<T, Refusal>, SchemaError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.query_pairs_mut().extend_pairs(query);
        let fail = |why: String| SchemaError::Server {
            url: url.to_string(),
            why,
        };
        let mut request = self.client.request(method, url.clone());
        if let Some((name, password)) = &self.credentials {
            request = request.basic_auth(name, Some(password));
        }
        if let Some(body) = body {
            request = request
                .header("content-type", CONTENT_TYPE)
                .body(body.to_string());
        }
        let answer = request.header("accept", CONTENT_TYPE).send();
        let answer: Response = answer.map_err(|error| fail(chain(&error)))?;
        let status = answer.status();
        let text = answer.text().map_err(|error| fail(chain(&error)))?;
        if status.is_success() {
            let told = serde_json::from_str(&text);
            return told
                .map(Ok)
                .map_err(|error| fail(format!("{error} in the answer `{text}`")));
        }
        match serde_json::from_str::<Refusal>(&text) {
            Ok(refusal) if status != StatusCode::UNAUTHORIZED => Ok(Err(refusal)),
            Ok(refusal) => Err(fail(refusal.message)),
            Err(_) => Err(fail(format!("{status} {text}"))),
        }
    }

    fn refused(&self, subject: &str, refusal: &Refusal) -> SchemaError {
        SchemaError::Server {
            url: format!("{}subjects/{subject}", self.base),
            why: format!("{} ({})", refusal.message, refusal.error_code),
        }
    }
}

/// An error with what it came from: the outer one alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn body(text: &str) -> Value {
    json!({ "schemaType": "PROTOBUF", "schema": text })
}

impl SchemaRegistry for ConfluentRegistry {
    fn versions(&self, subject: &str) -> Result<Vec<Schema>, SchemaError> {
        #[derive(Deserialize)]
        struct Found {
            version: u32,
            id: u32,
            schema: String,
        }
        let path = ["subjects", subject, "versions"];
        let mut numbers = match self.ask::<Vec<u32>>(Method::GET, &path, &[], None)? {
            Ok(numbers) => numbers,
            Err(refusal) if NOT_FOUND.contains(&refusal.error_code) => Vec::new(),
            Err(refusal) => return Err(self.refused(subject, &refusal)),
        };
        numbers.sort_unstable();
        let get = |number: u32| {
            let number = number.to_string();
            let path = ["subjects", subject, "versions", &number];
            let found = self.ask::<Found>(Method::GET, &path, &[], None)?;
            let found = found.map_err(|refusal| self.refused(subject, &refusal))?;
            Ok(Schema {
                version: found.version,
                id: found.id,
                text: found.schema,
            })
        };
        numbers.into_iter().map(get).collect()
    }

    fn level(&self, subject: &str) -> Result<Level, SchemaError> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(rename = "compatibilityLevel")]
            level: Level,
        }
        let path = ["config", subject];
        let query = [("defaultToGlobal", "true")];
        let found = self.ask::<Found>(Method::GET, &path, &query, None)?;
        match found {
            Ok(found) => Ok(found.level),
            Err(refusal) => Err(self.refused(subject, &refusal)),
        }
    }

    /// By the server's own rules, which are laxer than ours in some points.
    fn breaks(&self, subject: &str, text: &str) -> Result<Vec<String>, SchemaError> {
        #[derive(Deserialize)]
        struct Found {
            is_compatible: bool,
            #[serde(default)]
            messages: Vec<String>,
        }
        let path = ["compatibility", "subjects", subject, "versions"];
        let query = [("verbose", "true")];
        let found = self.ask::<Found>(Method::POST, &path, &query, Some(body(text)))?;
        match found {
            Ok(found) if found.is_compatible => Ok(Vec::new()),
            Ok(found) if found.messages.is_empty() => Ok(vec!["the server gives no reason".into()]),
            Ok(found) => Ok(found.messages),
            Err(refusal) if NOT_FOUND.contains(&refusal.error_code) => Ok(Vec::new()),
            Err(refusal) => Err(self.refused(subject, &refusal)),
        }
    }

    fn register(&self, subject: &str, text: &str) -> Result<Schema, SchemaError> {
        #[derive(Deserialize)]
        struct Registered {
            id: u32,
        }
        #[derive(Deserialize)]
        struct Known {
            id: u32,
            version: u32,
        }
        let path = ["subjects", subject, "versions"];
        let made = self.ask::<Registered>(Method::POST, &path, &[], Some(body(text)))?;
        match made {
            Ok(made) => {
                // Its answer has the id alone.
                let path = ["subjects", subject];
                let known = self.ask::<Known>(Method::POST, &path, &[], Some(body(text)))?;
                let known = known.map_err(|refusal| self.refused(subject, &refusal))?;
                debug_assert_eq!(known.id, made.id);
                Ok(Schema {
                    version: known.version,
                    id: made.id,
                    text: text.to_owned(),
                })
            }
            Err(refusal) if refusal.error_code == INCOMPATIBLE => {
                let version = self
                    .versions(subject)?
                    .last()
                    .map_or(1, |last| last.version + 1);
                Err(SchemaError::Incompatible {
                    subject: subject.to_owned(),
                    version,
                    level: self.level(subject)?,
                    breaks: vec![refusal.message],
                })
            }
            Err(refusal) => Err(self.refused(subject, &refusal)),
        }
    }
}
