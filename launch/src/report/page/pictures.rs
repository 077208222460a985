//! Scenes and the ads that the visual tower puts nearest to them.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{escape, panel};
use crate::report::gallery::Artifacts;

pub(super) fn section(artifacts: &Artifacts) -> String {
    if artifacts.matches.is_empty() {
        return String::new();
    }
    let mut html = "<div class=\"matches\">".to_owned();
    for found in &artifacts.matches {
        // Writing to a string does not fail.
        let _ = write!(
            html,
            "<div class=\"match\"><figure class=\"scene\"><img alt=\"scene {0}\" src=\"{1}\"><figcaption>{2}<br><span class=\"faint\">{0}</span></figcaption></figure><span class=\"arrow\" aria-hidden=\"true\">→</span>",
            escape(&found.scene_id),
            data_url(&found.png),
            escape(&found.genre)
        );
        for ad in &found.ads {
            let _ = write!(
                html,
                "<figure class=\"ad\" title=\"{}\"><img alt=\"{}\" src=\"{}\"><figcaption>{:.2}</figcaption></figure>",
                escape(&ad.title),
                escape(&ad.category),
                data_url(&ad.png),
                ad.similarity
            );
        }
        html += "</div>";
    }
    html += "</div>";
    let lead = "What one sees in a scene, at the left, and the ads that the trained tower puts nearest to it, with their cosine. It learnt from clicks which pictures go together; nobody told it.";
    let body = panel(12, "From a scene to its ads", lead, &html);
    super::section("Pictures", &body)
}

fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))
}
