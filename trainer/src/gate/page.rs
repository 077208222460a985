//! The gate's report as an HTML page.

use std::fmt::Write;

use models::metrics::{by_rising_score, equal_bins, reliability};

use super::{
    Earned, GateConfig, Interval, Revenue, SliceMeasures, Verdict, measure::Candidate, rules::text,
};
use crate::{
    page::begin,
    plot::{Lines, escape},
    table::Examples,
};

/// Slices that are shown as the worst.
const WORST: usize = 10;

/// Points of a curve.
const POINTS: usize = 20;

/// Curves, measures and slices of a verdict.
pub fn page(
    config: &GateConfig,
    verdict: &Verdict,
    rows: &Examples,
    model: &Candidate,
    other: Option<&Candidate>,
) -> String {
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    let name = short(&verdict.model);
    let mut html = begin(&format!("Gate of ctr {name}"));
    // Writing to a string does not fail.
    let _ = match verdict.refused.is_empty() {
        true => write!(html, "<p class=\"passed\"><b>Passed.</b></p>"),
        false => {
            let reasons = verdict.refused.iter();
            let items: String = reasons
                .map(|reason| format!("<li>{}</li>", escape(reason)))
                .collect();
            write!(
                html,
                "<p class=\"refused\"><b>Refused:</b></p><ul>{items}</ul>"
            )
        }
    };
    let _ = write!(
        html,
        "<p>{} rows of {} people with {} clicks, version {} of table {}. Intervals of {:.0} % by drawing people {} times.</p>",
        verdict.rows,
        verdict.users,
        verdict.clicks,
        verdict.table_version,
        escape(&config.table),
        config.confidence * 100.0,
        config.replicates
    );
    if verdict.left_out > 0 {
        let _ = write!(
            html,
            "<p>{} test rows are left out, which table {} has not.</p>",
            verdict.left_out,
            escape(&config.against_table)
        );
    }
    html += &measures(verdict);
    html += &revenue(verdict.revenue.as_ref());
    let mut worst: Vec<&SliceMeasures> = verdict
        .slices
        .iter()
        .filter(|slice| slice.rows >= config.rules.slice_min_rows)
        .collect();
    let wrong = |slice: &SliceMeasures| slice.measures.calibration_ratio.value.ln().abs();
    worst.sort_by(|one, other| wrong(other).total_cmp(&wrong(one)));
    worst.truncate(WORST);
    html += &slices(&format!("The {WORST} worst slices by calibration"), &worst);
    html += "<h2>Curves</h2><div class=\"plots\">";
    let mut models = vec![(name, model)];
    models.extend(verdict.against.as_deref().map(short).zip(other));
    for (title, x, of) in [
        (
            "Reliability: observed click rate",
            "predicted click rate",
            reliable as fn(&[f32], &[f32], &[f32]) -> Vec<(f64, f64)>,
        ),
        ("ROC: clicks found", "other rows taken with them", roc),
    ] {
        let curves: Vec<(&str, Vec<(f64, f64)>)> = models
            .iter()
            .map(|(name, model)| (&**name, of(&model.scores, &rows.clicks, &rows.weights)))
            .collect();
        let lines: Vec<(&str, &[(f64, f64)])> = curves
            .iter()
            .map(|(name, points)| (*name, &points[..]))
            .collect();
        html += &Lines {
            title,
            x,
            lines: &lines,
        }
        .to_svg();
    }
    html += "</div>";
    html += &slices("All slices", &verdict.slices.iter().collect::<Vec<_>>());
    html + "</html>\n"
}

fn measures(verdict: &Verdict) -> String {
    let mut html = "<h2>Measures</h2><table><tr><th></th><th>the model</th>".to_owned();
    let columns = [
        Some(&verdict.measures),
        verdict.against_measures.as_ref(),
        verdict.differences.as_ref(),
    ];
    if verdict.against.is_some() {
        html += "<th>what serves</th><th>difference</th>";
    }
    html += "</tr>";
    let columns: Vec<_> = columns.iter().flatten().map(|it| it.named()).collect();
    for (at, (name, _)) in columns[0].iter().enumerate() {
        let values = columns.iter().map(|named| text(&named[at].1));
        let cells: String = values.map(|value| format!("<td>{value}</td>")).collect();
        html += &format!("<tr><td>{name}</td>{cells}</tr>");
    }
    html + "</table>"
}

fn revenue(revenue: Option<&Revenue>) -> String {
    let title = "<h2>Revenue</h2>";
    let Some(revenue) = revenue else {
        return format!(
            "{title}<p>No bids in the table: no row says by what auction it was sold.</p>"
        );
    };
    let mut html = format!(
        "{title}<p>What both models would have earned on the {} rows whose auction is known, in the account's currency for 1000 impressions; they brought {}. An estimate from the prices that were paid: read it beside the calibration ratio, for a model that is too low throughout seems to raise prices.</p>",
        revenue.rows,
        text(&revenue.observed)
    );
    html += "<table><tr><th></th><th>the model</th>";
    if revenue.against.is_some() {
        html += "<th>what serves</th><th>ratio</th>";
    }
    html += "</tr>";
    type Of = fn(&Earned) -> String;
    let rows: [(&str, Of, Option<&Interval>); 3] = [
        (
            "revenue per 1000 impressions",
            |it| text(&it.per_mille),
            revenue.ratio.as_ref(),
        ),
        ("over what was earned", |it| text(&it.over_observed), None),
        (
            "impressions whose ad keeps its place",
            |it| format!("{:.1} %", 100.0 * it.kept),
            None,
        ),
    ];
    for (name, of, ratio) in rows {
        html += &format!("<tr><td>{name}</td><td>{}</td>", of(&revenue.model));
        if let Some(against) = &revenue.against {
            let ratio = ratio.map_or(String::new(), text);
            html += &format!("<td>{}</td><td>{ratio}</td>", of(against));
        }
        html += "</tr>";
    }
    html + "</table>"
}

fn slices(title: &str, slices: &[&SliceMeasures]) -> String {
    if slices.is_empty() {
        return String::new();
    }
    let names = slices[0].measures.named().map(|(name, _)| name);
    let heads: String = names
        .iter()
        .map(|name| format!("<th>{name}</th>"))
        .collect();
    let mut html = format!(
        "<h2>{title}</h2><table><tr><th>by</th><th></th><th>rows</th><th>clicks</th>{heads}<th>calibration ratio of what serves</th></tr>"
    );
    for slice in slices {
        let measures = slice.measures.named().map(|(_, value)| text(&value));
        let serves = slice.against_measures;
        let serves = serves.map_or(String::new(), |it| text(&it.calibration_ratio));
        let cells: String = [
            escape(&slice.by),
            escape(&slice.value),
            slice.rows.to_string(),
            slice.clicks.to_string(),
        ]
        .iter()
        .chain(&measures)
        .chain([&serves])
        .map(|cell| format!("<td>{cell}</td>"))
        .collect();
        html += &format!("<tr>{cells}</tr>");
    }
    html + "</table>"
}

fn reliable(scores: &[f32], clicks: &[f32], weights: &[f32]) -> Vec<(f64, f64)> {
    let bins = reliability(scores, clicks, weights, POINTS);
    bins.iter()
        .map(|bin| (bin.mean_predicted, bin.mean_observed))
        .collect()
}

/// Shares of clicks and of other rows above a score, from the highest on.
fn roc(scores: &[f32], clicks: &[f32], weights: &[f32]) -> Vec<(f64, f64)> {
    let (mut others, mut found) = (0.0, 0.0);
    let (mut sums, mut order) = (vec![(0.0, 0.0)], by_rising_score(scores));
    order.reverse();
    for rows in equal_bins(&order, 5 * POINTS) {
        for row in rows {
            let clicked = clicks[*row] > 0.5;
            *if clicked { &mut found } else { &mut others } += f64::from(weights[*row]);
        }
        sums.push((others, found));
    }
    let share = |(x, y): (f64, f64)| (x / others.max(1.0), y / found.max(1.0));
    sums.into_iter().map(share).collect()
}
