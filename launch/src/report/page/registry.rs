//! What was published and what is live.

use super::{escape, panel};
use crate::{
    registry_verbs::figures,
    report::gallery::Artifacts,
    text::{bytes, time},
};

pub(super) fn section(found: &Artifacts) -> String {
    let mut body = String::new();
    if let Some(trouble) = &found.trouble {
        body += &format!("<p class=\"foot bad-text\">{}</p>", super::code(trouble));
    }
    if !found.artifacts.is_empty() {
        body += &table(found);
    }
    if body.is_empty() {
        return body;
    }
    let lead = match &found.live {
        Some(live) => format!(
            "Channel <code>live</code> is at generation {}, moved {}. Each artifact never changes; its digest names its content.",
            live.generation,
            time(live.updated_us)
        ),
        None => "Nothing is live yet.".to_owned(),
    };
    let body = panel(12, "Artifacts", &lead, &body);
    super::section("Registry", &body)
}

fn table(found: &Artifacts) -> String {
    let rows: String = found
        .artifacts
        .iter()
        .map(|artifact| {
            let live = if found.serving.contains(&artifact.digest) {
                "<span class=\"mark best-mark\">live</span>"
            } else {
                ""
            };
            let parents: Vec<&str> = artifact.parents.iter().map(registry::Digest::short).collect();
            let made_from = match parents.len() {
                0 => String::new(),
                1 | 2 => parents.join(" "),
                many => format!("{many} artifacts"),
            };
            format!(
                "<tr><td>{}</td><td>{live}</td><td class=\"mono\">{}</td><td class=\"num\">{}</td><td>{}</td><td class=\"mono faint\">{made_from}</td></tr>",
                artifact.kind,
                artifact.digest.short(),
                bytes(artifact.bytes()),
                escape(&figures(&artifact.metrics)),
            )
        })
        .collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>kind</th><th></th><th>digest</th><th class=\"num\">size</th>\
         <th>figures</th><th>made from</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}
