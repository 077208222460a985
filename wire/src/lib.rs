//! The contracts between Marquee's programs, and nothing else.
//!
//! Four things cross a process boundary here: **events** (Protobuf, `proto/marquee/events`),
//! the **ad service** (Protobuf and gRPC, `proto/marquee/ads`), the **catalogue** of
//! campaigns, creatives and scenes that the pipeline makes from events and that the embedder and
//! the server read; and which version of a training table is **good** enough to train on. Events travel through the **log**: append-only segments on disk here, Kafka
//! at scale (feature `kafka`).
//!
//! This crate knows no feature, no model and no query engine. The client and server code of the
//! ad service stands behind the feature `grpc`, so that the light crates stay light.
//!
//! Read in this order: [`events`], [`gate`], [`log`], [`catalogue`], [`ads`], [`quality`].

pub mod catalogue;
pub mod environment;
pub mod gate;
pub mod log;
pub mod quality;

pub use marquee::{ads::v1 as ads, events::v1 as events};

/// Generated code, in the packages that its own references expect.
#[allow(missing_docs, clippy::all)]
mod marquee {
    pub mod events {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/marquee.events.v1.rs"));
        }
    }
    pub mod ads {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/marquee.ads.v1.rs"));
        }
    }
}

/// The compiled file descriptors of every contract, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The event schema as it is written down: what a schema registry keeps.
pub const EVENTS_PROTO: &str = include_str!("../proto/marquee/events/v1/events.proto");

/// The event schema version that this build writes and the newest it reads.
pub const SCHEMA_VERSION: u32 = 1;
