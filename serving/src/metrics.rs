//! What the server counts, for Prometheus.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder, core::Collector,
};

use crate::{
    decision::{Decision, Stage},
    degradation::level_name,
};

/// Upper ends of the duration buckets, seconds: 100 µs to 1 s.
const BUCKETS: [f64; 13] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

/// Every metric of the server. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Requests by how they ended.
    pub requests: IntCounterVec,
    /// Time from a request's arrival to its answer.
    pub request_seconds: Histogram,
    /// Time of a request that no stage accounts for.
    pub overhead_seconds: Histogram,
    /// Time of each stage.
    pub stage_seconds: HistogramVec,
    /// Stages that took longer than their budget.
    pub overruns: IntCounterVec,
    /// Fallbacks by stage.
    pub fallbacks: IntCounterVec,
    /// Answers by level of degradation.
    pub degradation: IntCounterVec,
    /// Feature values that were not what the spec promises.
    pub feature_values: IntCounterVec,
    /// Entities by where they were found.
    pub entities: IntCounterVec,
    /// Reads of the online store.
    pub online_reads: IntCounter,
    /// Generation of the channel that serves.
    pub bundle_generation: IntGauge,
    /// Generation of the online store that serves.
    pub online_generation: IntGauge,
    /// The newest event in it, seconds since the Unix epoch.
    pub online_as_of: IntGauge,
    /// Bundles by what became of them.
    pub bundles: IntCounterVec,
    /// Requests being worked on.
    pub in_flight: IntGauge,
    /// Events in the log.
    pub events: IntCounter,
    /// Failures to write the log; each is tried again.
    pub log_errors: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels);
            add(&registry, counters)
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            add(&registry, Histogram::with_opts(options))
        };
        let stages = HistogramOpts::new(
            "marquee_serve_stage_duration_seconds",
            "Time that one stage of GetAds took",
        );
        let stages = HistogramVec::new(stages.buckets(BUCKETS.to_vec()), &["stage"]);
        let gauge = |name: &str, help: &str| add(&registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| add(&registry, IntCounter::new(name, help));
        Self {
            online_reads: counter(
                "marquee_serve_online_reads_total",
                "Rises with each read of the online store: one for all entities of a request, as a rule",
            ),
            requests: counters(
                "marquee_serve_requests_total",
                "Rises by one with each GetAds request that ends, answered or not",
                &["outcome"],
            ),
            request_seconds: histogram(
                "marquee_serve_request_duration_seconds",
                "Time from the arrival of a GetAds request to its answer",
            ),
            overhead_seconds: histogram(
                "marquee_serve_overhead_seconds",
                "Time of an answered GetAds request outside its stages: queue, conversion, log",
            ),
            stage_seconds: add(&registry, stages),
            overruns: counters(
                "marquee_serve_stage_overruns_total",
                "Rises when a stage takes longer than its budget",
                &["stage"],
            ),
            fallbacks: counters(
                "marquee_serve_fallback_total",
                "Rises when something stands in for a stage's full work",
                &["stage", "fallback"],
            ),
            degradation: counters(
                "marquee_serve_degradation_total",
                "Rises with each answer, at the level it was given on",
                &["level"],
            ),
            feature_values: counters(
                "marquee_serve_feature_values_total",
                "Rises with feature values that were missing, not finite, clamped, withheld or stale",
                &["outcome"],
            ),
            entities: counters(
                "marquee_serve_entities_total",
                "Rises with entities of requests: cached, found in the online store, absent there or unread",
                &["outcome"],
            ),
            bundle_generation: gauge(
                "marquee_serve_bundle_generation",
                "Channel generation of the bundle that serves; 0 without one",
            ),
            online_generation: gauge(
                "marquee_serve_online_generation",
                "Generation of the online feature store that serves; 0 without one",
            ),
            online_as_of: gauge(
                "marquee_serve_online_as_of_timestamp_seconds",
                "When the newest event in the online feature store arrived; time() less this is its age",
            ),
            bundles: counters(
                "marquee_serve_bundles_total",
                "Rises when a bundle starts to serve, or is refused",
                &["outcome"],
            ),
            in_flight: gauge(
                "marquee_serve_in_flight",
                "GetAds requests that are being worked on",
            ),
            events: counter(
                "marquee_serve_events_total",
                "Rises with each event appended to the log",
            ),
            log_errors: counter(
                "marquee_serve_log_errors_total",
                "Rises when the event log cannot be written; the events are tried again",
            ),
            registry,
        }
    }
}

impl Metrics {
    /// Counts the work on one decision.
    pub fn note_work(&self, decision: &Decision, budget: impl Fn(Stage) -> Duration) {
        for trace in &decision.stages {
            let stage = trace.stage.name();
            self.stage_seconds
                .with_label_values(&[stage])
                .observe(trace.duration.as_secs_f64());
            if trace.duration > budget(trace.stage) {
                self.overruns.with_label_values(&[stage]).inc();
            }
            for fallback in &trace.fallbacks {
                self.fallbacks
                    .with_label_values(&[stage, fallback.name()])
                    .inc();
            }
        }
        let counts = decision.feature_counts;
        for (outcome, count) in [
            ("missing", counts.missing),
            ("not_finite", counts.not_finite),
            ("clamped", counts.clamped),
            ("withheld", counts.withheld),
            ("stale", counts.stale),
        ] {
            self.feature_values
                .with_label_values(&[outcome])
                .inc_by(count);
        }
        let counts = decision.entity_counts;
        self.online_reads.inc_by(counts.reads);
        for (outcome, count) in [
            ("cached", counts.cached),
            ("found", counts.found),
            ("absent", counts.absent),
            ("unread", counts.unread),
        ] {
            self.entities.with_label_values(&[outcome]).inc_by(count);
        }
    }

    /// Counts a decision that becomes an answer, `total` after its request arrived.
    pub fn note_answer(&self, decision: &Decision, total: Duration) {
        self.degradation
            .with_label_values(&[level_name(decision.degradation())])
            .inc();
        self.request_seconds.observe(total.as_secs_f64());
        let overhead = total.saturating_sub(decision.stages_duration());
        self.overhead_seconds.observe(overhead.as_secs_f64());
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Encoding only fails when the writer does, and a vector does not.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Registers a metric whose name and labels are fixed above.
fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are valid: a test makes them all");
    registry
        .register(Box::new(collector.clone()))
        .expect("metric names differ: a test makes them all");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_valid_and_shown() {
        let metrics = Metrics::default();
        metrics.bundle_generation.set(3);
        metrics.requests.with_label_values(&["ok"]).inc();
        let text = metrics.text();
        assert!(text.contains("marquee_serve_bundle_generation 3"), "{text}");
        assert!(
            text.contains("marquee_serve_requests_total{outcome=\"ok\"} 1"),
            "{text}"
        );
    }
}
