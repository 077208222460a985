//! Runs beside each other as one HTML page.

use std::fmt::Write;

use super::{
    Recorded,
    verbs::{config_rows, facts, result_rows},
};
use crate::plot::{Lines, escape};

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #8884;padding:.3rem .8rem;text-align:left}\
td+td{font-variant-numeric:tabular-nums}.plots{display:flex;flex-wrap:wrap;gap:1rem}svg{width:24rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}";

/// A page with what differs, what came out, and each metric over time.
///
/// # Errors
/// When a run's metrics cannot be read.
pub fn page(runs: &[Recorded]) -> anyhow::Result<String> {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>",
        escape(&names.join(", "))
    );
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
