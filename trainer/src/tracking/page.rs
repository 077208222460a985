//! Runs beside each other as one HTML page.

use std::fmt::Write;

use super::{
    Recorded,
    verbs::{config_rows, facts, result_rows},
};
use crate::{
    page::begin,
    plot::{Lines, escape},
};

/// A page with what differs, what came out, and each metric over time.
///
/// # Errors
/// When a run's metrics cannot be read.
pub fn page(runs: &[Recorded]) -> anyhow::Result<String> {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let mut html = begin(&names.join(", "));
    let of_facts = runs.first().map(facts).unwrap_or_default();
    let fact_rows = of_facts.iter().map(|(name, _)| {
        let value = |run: &Recorded| {
            let found = facts(run).into_iter().find(|(other, _)| other == name);
            found.map_or(String::new(), |(_, value)| value)
        };
        ((*name).to_owned(), runs.iter().map(value).collect())
    });
    for (title, rows) in [
        ("Runs", fact_rows.collect()),
        ("Results", result_rows(runs)),
        ("Configuration, where it differs", config_rows(runs)),
    ] {
        section(&mut html, title, &names, rows);
    }
    html += "<h2>Metrics by step</h2><div class=\"plots\">";
    let series = runs.iter().map(Recorded::series);
    let series = series.collect::<anyhow::Result<Vec<_>>>()?;
    let mut tags: Vec<&String> = series.iter().flat_map(|series| series.keys()).collect();
    tags.sort_unstable();
    tags.dedup();
    for tag in tags {
        let lines: Vec<(&str, &[(f64, f64)])> = names
            .iter()
            .zip(&series)
            .filter_map(|(name, series)| Some((&**name, &**series.get(tag)?)))
            .collect();
        if lines.iter().any(|(_, points)| points.len() > 1) {
            html += &Lines {
                title: tag,
                x: "step",
                lines: &lines,
            }
            .to_svg();
        }
    }
    html += "</div></html>\n";
    Ok(html)
}

fn section(html: &mut String, title: &str, names: &[String], rows: Vec<(String, Vec<String>)>) {
    if rows.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = write!(html, "<h2>{title}</h2><table><tr><th></th>");
    for name in names {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    *html += "</tr>";
    for (name, values) in rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(&name));
        for value in values {
            let _ = write!(html, "<td>{}</td>", escape(&value));
        }
        *html += "</tr>";
    }
    *html += "</table>";
}
