//! The report as one self-contained page, light and dark.

use super::{figures::Figures, svg};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2330;--quiet:#5c677a;--paper:#f6f7f9;--card:#fff;--rule:#e3e7ee;--ours:#2463d1;--other:#b9c3d3;--good:#137a4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf3;--quiet:#9aa6b9;--paper:#12161d;--card:#1a2029;--rule:#2c3542;--ours:#6ea2ff;--other:#4a5669;--good:#53c28b;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,Segoe UI,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}h1{font-size:28px;margin:0 0 4px;letter-spacing:-.02em}h2{font-size:17px;margin:0 0 2px}
p{margin:0;color:var(--quiet)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin:28px 0}
.card,figure{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:16px 18px;margin:0}
.card b{display:block;font-size:26px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}.card span{display:block;font-size:13px;color:var(--quiet)}
.card .name{font-size:13px;font-weight:600;color:var(--ink)}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:14px}
figure svg{width:100%;height:auto;margin-top:10px;display:block}figure p{font-size:13px}
svg text{font:11px system-ui,sans-serif;fill:var(--quiet)}.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--rule)}
.line{fill:none;stroke:var(--ours);stroke-width:2}.ideal{fill:none;stroke:var(--other);stroke-dasharray:5 4}.dot,.bar{fill:var(--ours)}.bar.other{fill:var(--other)}
table{border-collapse:collapse;width:100%;margin-top:8px;font-variant-numeric:tabular-nums}td{padding:5px 0;border-top:1px solid var(--rule)}td:last-child{text-align:right}
.missing{color:var(--bad)}footer{margin-top:28px;font-size:13px;color:var(--quiet)}";

/// The whole page.
pub fn html(figures: &Figures) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Marquee report</title><style>{STYLE}</style></head><body><main><h1>From events to auction</h1>\
         <p>A synthetic world with known truth: every figure stands beside the best that is possible in it.</p>"
    );
    page += &cards(figures);
    page += "<div class=\"plots\">";
    page += &plots(figures);
    page += "</div>";
    if !figures.missing.is_empty() {
        page += "<footer class=\"missing\">Steps without figures:<ul>";
        for (step, why) in &figures.missing {
            page += &format!("<li>{step}: {}</li>", escape(why));
        }
        page += "</ul></footer>";
    }
    page + "<footer>Written by <code>marquee report</code>; the same figures stand in report.json beside this page.</footer></main></body></html>"
}

fn cards(figures: &Figures) -> String {
    let shown = |step: &str, path: &str, digits: usize| {
        figures
            .number(step, path)
            .map_or("–".to_owned(), |number| format!("{number:.digits$}"))
    };
    let percent = |step: &str, path: &str| {
        figures
            .number(step, path)
            .map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
    };
    let cards = [
        (
            "Way to the best AUC",
            percent("judge", "way"),
            format!(
                "AUC {} of {} possible",
                shown("judge", "auc", 4),
                shown("judge", "auc_best", 4)
            ),
        ),
        (
            "Calibration ratio",
            shown("judge", "calibration_ratio", 3),
            format!(
                "predicted over observed clicks; the truth itself has {}",
                shown("judge", "calibration_best", 3)
            ),
        ),
        (
            "Index recall@100",
            shown("index", "recall_at_100", 3),
            format!(
                "p99 {} ms over {} creatives",
                shown("index", "p99_ms", 2),
                shown("index", "count", 0)
            ),
        ),
        (
            "GetAds p99",
            format!("{} ms", shown("drive", "get_ads_p99_ms", 2)),
            format!(
                "median {} ms, {} requests",
                shown("drive", "get_ads_p50_ms", 2),
                shown("drive", "requests", 0)
            ),
        ),
        (
            "Fill rate",
            percent("drive", "fill_rate"),
            "requests with at least one ad".to_owned(),
        ),
        (
            "Revenue",
            percent("drive", "revenue_ratio"),
            format!(
                "of an auction that knows the truth; value {}",
                percent("drive", "value_ratio")
            ),
        ),
        (
            "Events",
            shown("events", "events_in", 0),
            format!(
                "{} kept as dead letters, {} duplicates",
                shown("events", "events_dead", 0),
                shown("events", "duplicates", 0)
            ),
        ),
        (
            "Whole loop",
            format!("{} s", shown("quickstart", "seconds", 0)),
            format!(
                "compiled in {} s before",
                shown("quickstart", "compile_seconds", 0)
            ),
        ),
    ];
    let card = |(name, value, note): (&str, String, String)| {
        format!(
            "<div class=\"card\"><span class=\"name\">{name}</span><b>{value}</b><span>{note}</span></div>"
        )
    };
    format!("<div class=\"cards\">{}</div>", cards.map(card).concat())
}

fn plots(figures: &Figures) -> String {
    let figure = |title: &str, note: &str, body: String| {
        format!("<figure><h2>{title}</h2><p>{note}</p>{body}</figure>")
    };
    let number = |step: &str, path: &str| figures.number(step, path).unwrap_or(0.0);
    let reliability = figures.points("ctr", "reliability", "mean_predicted", "mean_observed");
    let loss = figures.points("ctr", "curve", "step", "loss");
    let latency = figures.points("drive", "latency_histogram", "0", "1");
    let stages: Vec<(String, f64)> = ["assemble", "retrieve", "prescore", "rank", "auction"]
        .iter()
        .map(|stage| (format!("{stage} ms"), stage_ms(figures, stage)))
        .collect();
    let stages: Vec<(&str, f64)> = stages
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    [
        figure(
            "Reliability",
            "Test rows in twenty bins; on the diagonal a prediction means what it says.",
            svg::reliability(&reliability),
        ),
        figure(
            "AUC",
            "On the same test rows: the click model, the pre-scorer, and the true probabilities.",
            svg::bars(
                &[
                    ("click model", number("judge", "auc")),
                    ("pre-scorer", number("prescorer", "auc")),
                    ("best possible", number("judge", "auc_best")),
                ],
                4,
            ),
        ),
        figure(
            "Training loss",
            "Nats by step.",
            svg::line(&loss, "step", "loss"),
        ),
        figure(
            "Visual tower, recall@10",
            "The clicked creative among the ten nearest to its scene.",
            svg::bars(
                &[
                    ("visual tower", number("visual", "recall_at_10")),
                    (
                        "pixel average",
                        number("visual", "recall_at_10_pixel_average"),
                    ),
                    ("random", number("visual", "recall_at_10_random")),
                ],
                4,
            ),
        ),
        figure(
            "GetAds latency",
            "At the client, milliseconds.",
            svg::histogram(&latency, "ms"),
        ),
        figure(
            "Stages of an answer",
            "Median of each, as the server tells it.",
            svg::bars(&stages, 3),
        ),
        figure(
            "Events",
            "From the log to rows of the training table.",
            funnel(figures),
        ),
    ]
    .concat()
}

fn stage_ms(figures: &Figures, stage: &str) -> f64 {
    let stages = figures
        .get("drive", "stage_p50_us")
        .and_then(|value| value.as_array());
    let found = stages.into_iter().flatten().find(|pair| pair[0] == stage);
    found.and_then(|pair| pair[1].as_f64()).unwrap_or(0.0) / 1e3
}

fn funnel(figures: &Figures) -> String {
    let rows = [
        ("events in", "events_in"),
        ("duplicates", "duplicates"),
        ("dead letters", "events_dead"),
        ("late", "late"),
        ("impressions served", "impressions_served"),
        ("impressions viewed", "impressions_viewed"),
        ("clicks", "clicks"),
        ("conversions", "conversions"),
        ("rows written", "rows_written"),
    ];
    let row = |(name, key): (&str, &str)| {
        let shown = figures
            .number("events", key)
            .map_or("–".to_owned(), |number| format!("{number:.0}"));
        format!("<tr><td>{name}</td><td>{shown}</td></tr>")
    };
    format!("<table>{}</table>", rows.map(row).concat())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
