//! `reports/report.html`: one page, nothing loaded from elsewhere, light and dark.

mod bars;
mod cards;
mod flow;
mod model;
mod pictures;
mod plot;
mod registry;
mod serving;

use std::fmt::Write;

use cli::escape;

use super::{Steps, Summary, gallery::Artifacts};
use crate::text::{duration, grouped, time};

const STYLE: &str = include_str!("style.css");

/// What the page shows.
pub(super) struct Content<'a> {
    pub steps: &'a Steps,
    pub summary: &'a Summary,
    pub artifacts: &'a Artifacts,
}

/// The page.
pub(super) fn render(content: &Content<'_>) -> String {
    let sections = [
        header(content),
        cards::section(content),
        missing(&content.summary.missing),
        pictures::section(content.artifacts),
        model::section(content.steps),
        flow::section(content.steps),
        serving::section(content.steps),
        checks(content.summary),
        registry::section(content.artifacts),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Marquee report</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n</main>\n\
         <footer>Written by <code>marquee report</code>. All figures lie beside this page as JSON.</footer>\n\
         </body>\n</html>\n",
        sections.join("\n")
    )
}

/// A framed part of a section. `span` is its width in twelfths.
fn panel(span: u32, title: &str, lead: &str, body: &str) -> String {
    format!(
        "<article class=\"panel span-{span}\"><h3>{}</h3><p class=\"lead\">{lead}</p>{body}</article>",
        escape(title)
    )
}

fn section(title: &str, body: &str) -> String {
    format!(
        "<section><h2>{}</h2><div class=\"grid\">{body}</div></section>",
        escape(title)
    )
}

fn header(content: &Content<'_>) -> String {
    let mut chips = Vec::new();
    if let Some(run) = &content.steps.quickstart {
        chips.push(time(run.started_us));
        chips.push(format!("{} cores", run.cores));
        if !run.world.is_empty() {
            chips.push(format!("configs/{}.toml", run.world));
        }
        if !run.revision.is_empty() {
            chips.push(format!("revision {}", run.revision));
        }
    }
    let checks = &content.summary.checks;
    let held = checks.iter().filter(|check| check.holds).count();
    let (class, mark) = if held == checks.len() && content.summary.missing.is_empty() {
        ("good", "✓")
    } else {
        ("bad", "!")
    };
    let mut html = format!(
        "<header><div class=\"bulbs\" aria-hidden=\"true\"></div><p class=\"brand\">Marquee</p>\
         <h1>{}</h1><p class=\"chips\"><a class=\"chip {class}\" href=\"#checks\">{mark} {held} of {} checks hold</a>",
        headline(content.steps),
        checks.len(),
    );
    for chip in chips {
        let _ = write!(html, "<span class=\"chip\">{}</span>", escape(&chip));
    }
    html + "</p></header>"
}

/// The run in one sentence, as far as it went.
fn headline(steps: &Steps) -> String {
    let mut parts = Vec::new();
    if let Some(events) = &steps.events {
        parts.push(format!("{} events", grouped(events.events_in)));
    }
    if let Some(judge) = &steps.judge {
        parts.push(format!(
            "a click model <em>{:.1} %</em> of the way to the best possible ranking",
            100.0 * judge.way
        ));
    }
    if let Some(drive) = &steps.drive {
        parts.push(format!(
            "ads auctioned in <em>{:.1} ms</em> at <em>{:.0} %</em> of the best possible revenue",
            drive.get_ads_p50_ms,
            100.0 * drive.revenue_ratio
        ));
    }
    let text = match parts.len() {
        0 => return "The steps that have run so far".to_owned(),
        1 => parts.remove(0),
        _ => {
            let last = parts.pop().unwrap_or_default();
            format!("{}, and {last}", parts.join(", "))
        }
    };
    let seconds = steps.quickstart.as_ref().map(|run| run.seconds);
    let within = seconds.map_or_else(String::new, |seconds| format!("In {}: ", duration(seconds)));
    let mut sentence = format!("{within}{text}.");
    if within.is_empty()
        && let Some(first) = sentence.get_mut(0..1)
    {
        first.make_ascii_uppercase();
    }
    sentence
}

fn missing(missing: &[String]) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let items: String = missing
        .iter()
        .map(|line| format!("<li>{}</li>", code(line)))
        .collect();
    format!("<section class=\"missing\"><h2>Not in this report</h2><ul>{items}</ul></section>")
}

/// Escaped text with what stands in backticks as code.
fn code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(|(at, part)| match at % 2 {
            1 => format!("<code>{}</code>", escape(part)),
            _ => escape(part),
        })
        .collect()
}

fn checks(summary: &Summary) -> String {
    let rows: String = summary
        .checks
        .iter()
        .map(|check| {
            let (class, mark) = if check.holds { ("good", "holds") } else { ("bad", "fails") };
            format!(
                "<tr><td><span class=\"mark {class}\">{mark}</span></td><td>{}</td><td class=\"num\">{}</td>\
                 <td class=\"num\">{}</td><td class=\"faint\">{}</td></tr>",
                escape(check.name),
                super::checks::figure(check.found),
                escape(&check.wanted),
                escape(check.because)
            )
        })
        .collect();
    let table = format!(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>figure</th><th class=\"num\">found</th>\
         <th class=\"num\">wanted</th><th>why</th></tr></thead><tbody>{rows}</tbody></table></div>"
    );
    let lead = "The world is synthetic, so what is right is known: counts to the last event, ranking and calibration within chance.";
    let body = panel(12, "Figures against the truth", lead, &table);
    format!("<section id=\"checks\"><h2>Checks</h2><div class=\"grid\">{body}</div></section>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        checks::{self, Bounds},
        steps::{Drive, Judge, Quickstart},
    };

    fn page(steps: &Steps) -> String {
        let summary = Summary::new(steps, checks::all(steps, &Bounds::default()));
        render(&Content {
            steps,
            summary: &summary,
            artifacts: &Artifacts::default(),
        })
    }

    #[test]
    fn a_page_without_any_step_still_says_what_to_run() {
        let steps = Steps::read(std::path::Path::new("/nonexistent"));
        let page = page(&steps);
        assert!(page.contains("<code>marquee world generate</code> writes it"));
        assert!(page.contains("The steps that have run so far"));
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let page = page(&Steps::default());
        for sign in [
            "src=\"http",
            "href=\"http",
            "url(http",
            "<script",
            "@import",
        ] {
            assert!(!page.contains(sign), "{sign}");
        }
    }

    #[test]
    fn the_headline_tells_the_run() {
        let steps = Steps {
            judge: Some(Judge {
                way: 0.961,
                ..Judge::default()
            }),
            drive: Some(Drive {
                get_ads_p50_ms: 2.31,
                revenue_ratio: 0.94,
                ..Drive::default()
            }),
            quickstart: Some(Quickstart {
                seconds: 95.0,
                ..Quickstart::default()
            }),
            ..Steps::default()
        };
        assert_eq!(
            headline(&steps),
            "In 95 s: a click model <em>96.1 %</em> of the way to the best possible ranking, and ads \
             auctioned in <em>2.3 ms</em> at <em>94 %</em> of the best possible revenue."
        );
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
        assert_eq!(code("run `a <b>` now"), "run <code>a &lt;b&gt;</code> now");
    }
}
