//! The ad server: one request in, ads with prices and reasons out.
//!
//! A request passes five stages ([`stages`], run by [`engine`]): **assemble** what is known of
//! it, **retrieve** ads near its scene, **prescore** them down to a few, **rank** those by click
//! probability, and **auction** the slots ([`auction`](mod@auction), within [`budgets`]). Each
//! has a time budget and a fallback ([`degradation`]); the answer tells what was used
//! ([`decision`]). All it reads is one immutable snapshot: the registry's [`bundle`] and the
//! online feature [`store`], swapped whole while requests run ([`live`]). What was shown goes to
//! the event log ([`served`]).
//!
//! Around that: gRPC ([`service`]), metrics and health over HTTP ([`http`]), a [`server`] that
//! starts and stops, and the verbs [`serve`] and [`ask`].
//!
//! This crate trains nothing and knows no query engine.

pub mod ask;
pub mod auction;
pub mod budgets;
pub mod bundle;
pub mod config;
pub mod decision;
pub mod degradation;
pub mod engine;
pub mod http;
pub mod live;
pub mod metrics;
pub mod panics;
pub mod request;
pub mod serve;
pub mod served;
pub mod server;
pub mod service;
pub mod stages;
pub mod store;
