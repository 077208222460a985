//! What happened to every event, since the table began.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use features::EvaluationCounts;
use serde::{Deserialize, Serialize};

/// Counts since the table began; committed with it, so that no event is counted twice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Records read from the log.
    pub events_in: u64,
    /// Records refused, at once or after waiting; each is in a dead-letter file.
    pub events_dead: u64,
    /// Refused records by reason code.
    pub dead_by_reason: BTreeMap<String, u64>,
    /// Events whose id was known already.
    pub duplicates: u64,
    /// Events that came behind the watermark. They still count where their window is open.
    pub late: u64,
    /// Events without a known age band; treated as unknown age.
    pub age_unspecified: u64,
    /// Catalogue changes applied.
    pub catalogue_changes: u64,
    /// Catalogue changes that are older than one applied before; left out.
    pub catalogue_changes_stale: u64,
    /// User activities applied.
    pub activities: u64,
    /// Events that features count: activities, views, clicks and conversions.
    pub events_counted: u64,
    /// Impressions that entered attribution.
    pub impressions_served: u64,
    /// Impressions that became viewed, by evidence or by a click.
    pub impressions_viewed: u64,
    /// Impressions whose view window closed without a view.
    pub impressions_unviewed: u64,
    /// View evidence below the viewability rule.
    pub views_not_viewable: u64,
    /// Further views of an impression that was viewed already.
    pub views_repeated: u64,
    /// Clicks attributed, one per impression.
    pub clicks: u64,
    /// Further clicks on an impression that was clicked already.
    pub clicks_repeated: u64,
    /// Clicks among `clicks` that came after their row was written; it is mended at maturity.
    pub clicks_late: u64,
    /// Conversions attributed to a click or view.
    pub conversions: u64,
    /// Conversions without a click or view of the same user and campaign in the window.
    pub conversions_unattributed: u64,
    /// Impressions whose features came with the event.
    pub snapshots_used: u64,
    /// Feature values that took their default because they were missing.
    pub features_missing: u64,
    /// Feature values that took their default because they were not finite.
    pub features_not_finite: u64,
    /// Feature values clamped into their range.
    pub features_clamped: u64,
    /// Personal feature values withheld (child, unknown age, no consent).
    pub features_withheld: u64,
    /// Entities of which it was not known any more what was known at the time of an impression.
    pub features_too_late: u64,
    /// Rows written to the training table.
    pub rows_written: u64,
    /// Rows whose labels were changed by late clicks and conversions when their day matured.
    pub rows_mended: u64,
    /// Days whose labels are final.
    pub days_matured: u64,
}

impl Counters {
    /// Adds what an evaluation of features came upon.
    pub(crate) fn evaluated(&mut self, counts: EvaluationCounts) {
        self.features_missing += counts.missing;
        self.features_not_finite += counts.not_finite;
        self.features_clamped += counts.clamped;
        self.features_withheld += counts.withheld;
        self.features_too_late += counts.too_late;
    }

    /// Counts an event that features count, and gives its number.
    pub(crate) fn count_event(&mut self) -> u64 {
        self.events_counted += 1;
        self.events_counted
    }

    pub(crate) fn dead(&mut self, code: &str) {
        self.events_dead += 1;
        *self.dead_by_reason.entry(code.to_owned()).or_default() += 1;
    }
}

/// `reports/events.json`: the counters and how long the work took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventsReport {
    /// Counts since the table began.
    #[serde(flatten)]
    pub counters: Counters,
    /// Impressions that still wait for their windows.
    pub impressions_pending: u64,
    /// Commits since the table began.
    pub batches: u64,
    /// Time spent processing since the table began, in seconds.
    pub seconds: f64,
    /// Events per second of this run; 0 if it read none.
    pub events_per_second: f64,
}

impl EventsReport {
    /// The headline for people.
    pub fn line(&self) -> String {
        format!(
            "{} events: {} rows, {} refused; {} events/s",
            grouped(self.counters.events_in),
            grouped(self.counters.rows_written),
            grouped(self.counters.events_dead),
            grouped(self.events_per_second as u64),
        )
    }

    /// A table for people.
    pub fn table(&self) -> Table {
        let c = &self.counters;
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["events", "count"]);
        let rows = [
            ("read", c.events_in),
            ("refused (dead letters)", c.events_dead),
            ("duplicates", c.duplicates),
            ("late", c.late),
            ("impressions served", c.impressions_served),
            ("impressions viewed", c.impressions_viewed),
            ("clicks", c.clicks),
            ("conversions", c.conversions),
            ("conversions without an ad", c.conversions_unattributed),
            ("rows written", c.rows_written),
            ("impressions waiting", self.impressions_pending),
        ];
        for (name, count) in rows {
            table.add_row([name.to_owned(), grouped(count)]);
        }
        for (reason, count) in &c.dead_by_reason {
            table.add_row([format!("  refused: {reason}"), grouped(*count)]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// `1234567` as `1,234,567`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let check = |count, expected| assert_eq!(grouped(count), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }

    #[test]
    fn a_refusal_counts_in_total_and_by_reason() {
        let mut counters = Counters::default();
        counters.dead("malformed");
        counters.dead("malformed");
        counters.dead("empty_id");
        assert_eq!(counters.events_dead, 3);
        assert_eq!(counters.dead_by_reason["malformed"], 2);
    }
}
