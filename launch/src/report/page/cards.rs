//! The headline figures as cards: found, best possible, and what it means.

use std::fmt::Write;

use super::Content;
use crate::text::grouped;

struct Card {
    name: &'static str,
    /// `None` if its step has not run.
    value: Option<String>,
    best: String,
    means: String,
    /// How near it is to the best possible, 0 to 1, where that is a share.
    share: Option<f64>,
}

pub(super) fn section(content: &Content<'_>) -> String {
    let cards = [
        auc(content),
        calibration(content),
        visual(content),
        recall(content),
        latency(content),
        fill(content),
        revenue(content),
        events(content),
    ];
    let mut html = "<section class=\"cards\" aria-label=\"Headline figures\">".to_owned();
    for card in cards {
        let value = card
            .value
            .unwrap_or_else(|| "<span class=\"faint\">not measured</span>".into());
        // Writing to a string does not fail.
        let _ = write!(
            html,
            "<article class=\"card\"><h3>{}</h3><p class=\"value\">{value}</p><p class=\"best\">{}</p>",
            card.name, card.best
        );
        if let Some(share) = card.share {
            let width = (100.0 * share).clamp(0.0, 100.0);
            let _ = write!(
                html,
                "<p class=\"meter\"><i style=\"width:{width:.1}%\"></i></p>"
            );
        }
        let _ = write!(html, "<p class=\"means\">{}</p></article>", card.means);
    }
    html + "</section>"
}

fn auc(content: &Content<'_>) -> Card {
    let judge = content.steps.judge.as_ref();
    Card {
        name: "Ranking: AUC",
        value: judge.map(|judge| format!("{:.4}", judge.auc)),
        best: judge.map_or_else(String::new, |judge| {
            format!("best possible {:.4}: <b>{:.1} %</b> of the way from chance", judge.auc_best, 100.0 * judge.way)
        }),
        means: "How often a clicked ad is scored above one that was not. The best possible are the true probabilities.".into(),
        share: judge.map(|judge| judge.way),
    }
}

fn calibration(content: &Content<'_>) -> Card {
    let judge = content.steps.judge.as_ref();
    Card {
        name: "Calibration ratio",
        value: judge.map(|judge| format!("{:.3}", judge.calibration_true)),
        best: judge.map_or_else(String::new, |judge| {
            format!(
                "best possible 1; over the clicks that came {:.3}, where the truth itself got {:.3}",
                judge.calibration_ratio, judge.calibration_best
            )
        }),
        means:
            "Predicted clicks over those to expect by the true probabilities. Above 1 advertisers bid too much, below 1 too little."
                .into(),
        share: judge.map(|judge| 1.0 - (judge.calibration_true - 1.0).abs()),
    }
}

fn visual(content: &Content<'_>) -> Card {
    let visual = content.steps.visual.as_ref();
    Card {
        name: "Visual match: recall@10",
        value: visual.map(|visual| format!("{:.3}", visual.recall_at_10)),
        best: visual.map_or_else(String::new, |visual| {
            let times = visual.recall_at_10 / visual.recall_at_10_random.max(1e-9);
            format!("<b>{times:.1} ×</b> a random order")
        }),
        means: "How often the clicked picture is among the ten nearest to its scene. Taste and chance decide the rest, so 1 is out of reach.".into(),
        share: None,
    }
}

fn recall(content: &Content<'_>) -> Card {
    let index = content.steps.index.as_ref();
    Card {
        name: "Retrieval: recall@100",
        value: index.map(|index| format!("{:.4}", index.recall_at_100)),
        best: index.map_or_else(String::new, |index| {
            format!("best possible 1; {:.3} ms a search", index.p50_ms)
        }),
        means: "Share of the 100 truly nearest ads that the index finds.".into(),
        share: index.map(|index| index.recall_at_100),
    }
}

fn latency(content: &Content<'_>) -> Card {
    let drive = content.steps.drive.as_ref();
    Card {
        name: "GetAds",
        value: drive.map(|drive| format!("{:.1}<small>ms</small>", drive.get_ads_p50_ms)),
        best: drive.map_or_else(String::new, |drive| {
            format!("99 % under <b>{:.1} ms</b>; the budget is 50 ms", drive.get_ads_p99_ms)
        }),
        means: "Median from request to priced answer, seen by the client: features, search, two rankings, auction.".into(),
        share: None,
    }
}

fn fill(content: &Content<'_>) -> Card {
    let drive = content.steps.drive.as_ref();
    Card {
        name: "Fill rate",
        value: drive.map(|drive| format!("{:.1}<small>%</small>", 100.0 * drive.fill_rate)),
        best: drive.map_or_else(String::new, |drive| {
            format!("best possible 100 %; {} requests", grouped(drive.requests))
        }),
        means: "Share of requests answered with an ad.".into(),
        share: drive.map(|drive| drive.fill_rate),
    }
}

fn revenue(content: &Content<'_>) -> Card {
    let drive = content.steps.drive.as_ref();
    Card {
        name: "Revenue",
        value: drive.map(|drive| format!("{:.1}<small>%</small>", 100.0 * drive.revenue_ratio)),
        best: drive.map_or_else(String::new, |drive| {
            format!("of the best possible; value {:.1} %", 100.0 * drive.value_ratio)
        }),
        means: "Expected revenue over that of a second-price auction that knows every true probability.".into(),
        share: drive.map(|drive| drive.revenue_ratio),
    }
}

fn events(content: &Content<'_>) -> Card {
    let events = content.steps.events.as_ref();
    let world = content.steps.world.as_ref();
    let broken = world.map(|world| world.broken.values().sum::<u64>());
    Card {
        name: "Events",
        value: events.map(|events| grouped(events.events_in)),
        best: events.map_or_else(String::new, |events| {
            let injected = broken.map_or_else(String::new, |broken| {
                format!("; the world broke {} on purpose", grouped(broken))
            });
            format!("<b>{}</b> refused{injected}", grouped(events.events_dead))
        }),
        means: "Refused events are kept with the reason. None is lost, none counted twice.".into(),
        share: None,
    }
}
