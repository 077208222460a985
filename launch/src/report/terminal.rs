//! The short table on the terminal.

use comfy_table::{CellAlignment, Table, presets};

use super::Summary;
use crate::text::{duration, grouped};

/// The headline figures beside the best possible ones.
pub fn table(summary: &Summary) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["figure", "found", "best possible", ""]);
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let count = |value: Option<u64>| value.map_or("-".to_owned(), grouped);
    let way = summary
        .way
        .map(|way| format!("{:.1} % of the way from chance", 100.0 * way));
    let seconds = summary.seconds.map_or("-".to_owned(), duration);
    let compile = summary
        .compile_seconds
        .map(|seconds| format!("and {} of setup and compiling", duration(seconds)));
    let rows = [
        (
            "AUC",
            number(summary.auc, 4),
            number(summary.auc_best, 4),
            way,
        ),
        (
            "calibration ratio",
            number(summary.calibration_ratio, 3),
            "1".to_owned(),
            summary
                .calibration_true
                .map(|ratio| format!("{ratio:.3} of the true probabilities")),
        ),
        (
            "recall@100",
            number(summary.recall_at_100, 4),
            "1".to_owned(),
            None,
        ),
        (
            "GetAds p50, ms",
            number(summary.get_ads_p50_ms, 2),
            String::new(),
            None,
        ),
        (
            "GetAds p99, ms",
            number(summary.get_ads_p99_ms, 2),
            String::new(),
            None,
        ),
        (
            "fill rate",
            number(summary.fill_rate, 3),
            "1".to_owned(),
            None,
        ),
        (
            "revenue ratio",
            number(summary.revenue_ratio, 3),
            "1".to_owned(),
            None,
        ),
        ("events in", count(summary.events_in), String::new(), None),
        (
            "events dead",
            count(summary.events_dead),
            String::new(),
            None,
        ),
        ("time", seconds, String::new(), compile),
    ];
    for (name, found, best, note) in rows {
        table.add_row([name.to_owned(), found, best, note.unwrap_or_default()]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_the_best_possible_ones_and_missing_ones_are_dashes() {
        let summary = Summary {
            auc: Some(0.69124),
            auc_best: Some(0.7034),
            way: Some(0.9401),
            events_in: Some(1_234_567),
            ..Summary::default()
        };
        let text = table(&summary).to_string();
        let line = |name: &str| {
            let found = text
                .lines()
                .map(|line| line.trim_matches(|c: char| c == '│' || c.is_whitespace()))
                .find(|line| line.starts_with(name));
            found
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line("AUC"),
            "AUC 0.6912 0.7034 94.0 % of the way from chance"
        );
        assert_eq!(line("events in"), "events in 1,234,567");
        assert_eq!(line("fill rate"), "fill rate - 1");
    }
}
