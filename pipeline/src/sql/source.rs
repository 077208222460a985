//! Where Flink finds the two tables.

use std::{path::PathBuf, str::FromStr};

use super::Column;

/// Files, or topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder that has a folder or file `<table>.json` for each table, with one JSON object a line.
    Filesystem {
        /// The folder.
        folder: PathBuf,
    },
    /// Topics of Kafka with one JSON object a record, as far as they go when the query begins.
    Kafka {
        /// Some brokers, `host:port` each, with commas between them.
        brokers: String,
        /// The topics are named so with the table's name behind.
        prefix: String,
    },
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no source: write filesystem:FOLDER, or kafka:HOST:PORT,…/PREFIX for the topics PREFIXfact_events and PREFIXfact_requests"
)]
pub struct NoSource {
    /// The text.
    pub text: String,
}

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = match text.split_once(':') {
            Some(("filesystem", folder)) if !folder.is_empty() => Some(Self::Filesystem {
                folder: PathBuf::from(folder),
            }),
            Some(("kafka", topics)) => topics.split_once('/').and_then(|(brokers, prefix)| {
                let is_broker = |broker: &str| {
                    let port = broker.rsplit_once(':').map(|(_, port)| port);
                    port.is_some_and(|port| port.parse::<u16>().is_ok())
                };
                brokers.split(',').all(is_broker).then(|| Self::Kafka {
                    brokers: brokers.to_owned(),
                    prefix: prefix.to_owned(),
                })
            }),
            _ => None,
        };
        found.ok_or_else(|| NoSource {
            text: text.to_owned(),
        })
    }
}

impl Source {
    /// The statement that makes a table of it known to Flink.
    pub(super) fn statement(&self, table: &str, columns: &[Column]) -> String {
        let columns: Vec<String> = columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.kind))
            .collect();
        let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let options = match self {
            Self::Filesystem { folder } => vec![
                ("connector", text("filesystem")),
                (
                    "path",
                    text(&folder.join(format!("{table}.json")).to_string_lossy()),
                ),
            ],
            Self::Kafka { brokers, prefix } => vec![
                ("connector", text("kafka")),
                ("topic", text(&format!("{prefix}{table}"))),
                ("properties.bootstrap.servers", text(brokers)),
                ("scan.startup.mode", text("earliest-offset")),
                ("scan.bounded.mode", text("latest-offset")),
            ],
        };
        let options = options.into_iter().chain([("format", text("json"))]);
        let options: Vec<String> = options
            .map(|(name, value)| format!("'{name}' = {value}"))
            .collect();
        format!(
            "CREATE TEMPORARY TABLE {table} ({}) WITH ({})",
            columns.join(", "),
            options.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_folder_or_topics() {
        let folder = PathBuf::from("/data/it's");
        let files = Source::Filesystem { folder };
        assert_eq!("filesystem:/data/it's".parse(), Ok(files.clone()));
        let topics: Source = "kafka:a:9092,b:9093/ads.".parse().unwrap();
        let column = Column {
            name: "f_genre".to_owned(),
            kind: "STRING",
        };
        assert_eq!(
            files.statement("fact_events", std::slice::from_ref(&column)),
            "CREATE TEMPORARY TABLE fact_events (f_genre STRING) WITH ('connector' = 'filesystem', \
             'path' = '/data/it''s/fact_events.json', 'format' = 'json')"
        );
        assert_eq!(
            topics.statement("fact_events", &[column]),
            "CREATE TEMPORARY TABLE fact_events (f_genre STRING) WITH ('connector' = 'kafka', \
             'topic' = 'ads.fact_events', 'properties.bootstrap.servers' = 'a:9092,b:9093', \
             'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset', 'format' = 'json')"
        );
    }

    #[test]
    fn a_text_that_is_none_is_told_what_would_be() {
        for text in [
            "",
            "/data",
            "filesystem:",
            "kafka:a:9092",
            "kafka:a/x",
            "kafka:a:1,/x",
            "s3:x",
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(
                error.contains(text) && error.contains("kafka:HOST:PORT"),
                "{error}"
            );
        }
    }
}
