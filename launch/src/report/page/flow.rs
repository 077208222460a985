//! Events: from what came in to the rows that models learn from.

use super::{
    bars::{Bar, bars},
    panel,
};
use crate::{
    report::{
        Steps,
        steps::{Events, Quickstart},
    },
    text::{duration, grouped},
};

pub(super) fn section(steps: &Steps) -> String {
    let parts = [
        steps.events.as_ref().map(funnel),
        steps.quickstart.as_ref().map(timings),
    ];
    let body: String = parts.into_iter().flatten().collect();
    if body.is_empty() {
        return body;
    }
    super::section("Events and time", &body)
}

fn funnel(events: &Events) -> String {
    let share = |count: u64, of: u64| {
        let percent = 100.0 * count as f64 / of.max(1) as f64;
        if percent < 1.0 {
            format!("{percent:.2} %")
        } else {
            format!("{percent:.1} %")
        }
    };
    let bar = |name: &str, count: u64, of: Option<(u64, &str)>, class| Bar {
        name: name.to_owned(),
        value: count as f64,
        text: match of {
            Some((of, what)) => format!("{} · {} {what}", grouped(count), share(count, of)),
            None => grouped(count),
        },
        class,
    };
    let read = Some((events.events_in, "of all"));
    let rows = [
        bar("events in", events.events_in, None, "base"),
        bar("seen before", events.duplicates, read, "base"),
        bar("dead letters", events.events_dead, read, "bad"),
        bar("served", events.impressions_served, None, "model"),
        bar(
            "viewed",
            events.impressions_viewed,
            Some((events.impressions_served, "of served")),
            "model",
        ),
        bar(
            "clicks",
            events.clicks,
            Some((events.impressions_viewed, "of viewed")),
            "best",
        ),
        bar(
            "conversions",
            events.conversions,
            Some((events.clicks, "of clicks")),
            "good",
        ),
    ];
    let lead = format!(
        "All of them end in {} rows of the training table, the requests to the server included: {} came back with the features that scored them.",
        grouped(events.rows_written),
        grouped(events.snapshots_used)
    );
    let mut body = bars(&rows, events.events_in as f64);
    if !events.dead_by_reason.is_empty() {
        let reasons: Vec<String> = events
            .dead_by_reason
            .iter()
            .map(|(reason, count)| {
                format!("<code>{}</code> {}", super::escape(reason), grouped(*count))
            })
            .collect();
        body += &format!(
            "<p class=\"foot\">Dead letters by reason: {}.</p>",
            reasons.join(", ")
        );
    }
    panel(7, "From events to clicks", &lead, &body)
}

fn timings(run: &Quickstart) -> String {
    let most = run
        .steps
        .iter()
        .map(|step| step.seconds)
        .fold(0.0, f64::max);
    let rows: Vec<Bar> = run
        .steps
        .iter()
        .map(|step| Bar {
            name: step.name.clone(),
            value: step.seconds,
            text: duration(step.seconds),
            class: "model",
        })
        .collect();
    let lead = format!(
        "{} in all; setup and compiling took {} before that.",
        duration(run.seconds),
        duration(run.compile_seconds)
    );
    panel(5, "Where the time went", &lead, &bars(&rows, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_funnel_tells_counts_and_shares() {
        let html = funnel(&Events {
            events_in: 10_000,
            events_dead: 7,
            impressions_served: 4_000,
            impressions_viewed: 3_400,
            clicks: 340,
            ..Events::default()
        });
        for told in [
            "10,000",
            "7 · 0.07 % of all",
            "3,400 · 85.0 % of served",
            "340 · 10.0 % of viewed",
        ] {
            assert!(html.contains(told), "{told}: {html}");
        }
    }
}
