//! Which engine keeps the event log.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

#[cfg(feature = "kafka")]
use super::KafkaLog;
use super::{Log, LogError, SegmentLog};

/// What keeps the event log: `log = "segments"`, the default, or a table `[log.kafka]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Append-only segments in the data folder.
    #[default]
    Segments,
    /// A topic of a Kafka cluster; needs a program built with the feature `kafka`.
    Kafka(KafkaConfig),
}

impl Transport {
    /// Opens the log; segments stand below `root`.
    ///
    /// # Errors
    /// [`LogError::NotBuilt`]; [`LogError::Setting`] and [`LogError::Kafka`] where Kafka is configured.
    pub fn open(&self, root: &Path) -> Result<Box<dyn Log>, LogError> {
        match self {
            Self::Segments => Ok(Box::new(SegmentLog::at(root))),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => Ok(Box::new(KafkaLog::new(config)?)),
            #[cfg(not(feature = "kafka"))]
            Self::Kafka(_) => Err(LogError::NotBuilt),
        }
    }
}

/// A topic of a Kafka cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Some of its brokers, each `host:port`.
    pub brokers: Vec<String>,
    /// The topic; records are spread over its partitions by `user_id`.
    pub topic: String,
    /// The consumer group to which commits are told, so that Kafka's own tools see the lag.
    pub group: String,
    /// Without an answer for so long the cluster counts as out of reach.
    pub timeout_seconds: u32,
    /// The id under which a schema registry knows the event schema (`marquee events schema register`
    /// prints it). With it, records are written in the registry's wire format; both are read.
    pub schema_id: Option<u32>,
    /// Any further setting of librdkafka, as `"security.protocol" = "SASL_SSL"`. `${NAME}` as a value is
    /// taken from the environment, so that no secret need stand here.
    pub settings: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: "marquee.events".to_owned(),
            group: "marquee-pipeline".to_owned(),
            timeout_seconds: 30,
            schema_id: None,
            settings: BTreeMap::new(),
        }
    }
}
