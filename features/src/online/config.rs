//! Which engine keeps the online store.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What keeps the online store: `online = "embedded"`, the default, or a table `[online.redis]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnlineConfig {
    /// A key-value file in the data folder.
    #[default]
    Embedded,
    /// A Redis Cluster; features of the tier `warm` stay in a file in the data folder.
    Redis(RedisConfig),
}

/// A Redis Cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// Some of its nodes, each `redis://host:port`, or `rediss://host:port` for TLS.
    pub nodes: Vec<String>,
    /// Who logs in; empty for the default user.
    pub username: String,
    /// Their password, best as `${NAME}`, which is taken from the environment; empty for none.
    pub password: String,
    /// Certificates to trust for `rediss://`, in PEM; without, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Begins all keys: letters, digits, `-` and `_`. One prefix is for one pipeline.
    pub prefix: String,
    /// Longest time that a node may take for one request's reads, milliseconds; within the time of the
    /// server's stage. A node that takes longer is left alone for `rest_ms`.
    pub read_timeout_ms: u64,
    /// How long a node that failed, or was too slow, is not asked: what lies there takes defaults,
    /// milliseconds.
    pub rest_ms: u64,
    /// Longest time for a connection, and for one write, milliseconds.
    pub timeout_ms: u64,
}

/// Without the password.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("nodes", &self.nodes)
            .field("username", &self.username)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            username: String::new(),
            password: String::new(),
            ca_file: None,
            prefix: "marquee".to_owned(),
            read_timeout_ms: 8,
            rest_ms: 250,
            timeout_ms: 5_000,
        }
    }
}
