//! `reports/features.html`: what features there are, what each is made of, and which models take it.
//!
//! One page that loads nothing. Which model takes a feature is read from the models in the registry: one
//! that names it in its description (`model.json` and the like) was trained on it.

use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

use cli::escape;
use features::{
    FeatureSpec, SourceEvent,
    facts::{AD_FACTS, REQUEST_FACTS},
    spec::Feature,
};
use registry::{Artifact, Kind, Registry, RegistryError};
use serde_json::Value;

const STYLE: &str = include_str!("catalogue_page.css");
const SCRIPT: &str = include_str!("catalogue_page.js");

/// Height of a line of the picture, pixels.
const LINE: usize = 20;
/// Where the picture's three columns of names stand: ends of events, features, begin of models.
const EVENTS_X: usize = 190;
const FEATURES_X: [usize; 2] = [330, 560];
const MODELS_X: usize = 720;
const WIDTH: usize = 900;

/// A model and the features that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Kind and digest.
    pub name: String,
    /// In the spec's order.
    pub features: Vec<String>,
}

/// The newest model of each kind that takes features of a spec, as the registry has it.
///
/// # Errors
/// [`RegistryError`] if it cannot be read.
pub fn models(registry: &Registry, spec: &FeatureSpec) -> Result<Vec<Model>, RegistryError> {
    let mut models = Vec::new();
    for kind in [Kind::Ctr, Kind::Prescorer] {
        let Some(artifact) = registry::block_on(registry.latest(kind))? else {
            continue;
        };
        let folder = registry::block_on(registry.fetch(&artifact.digest))?;
        let named = names(&folder, &artifact);
        let takes = |feature: &&Feature| named.contains(&feature.name);
        let features = spec.features.iter().filter(takes);
        models.push(Model {
            name: format!("{} {}", kind.name(), artifact.digest.short()),
            features: features.map(|feature| feature.name.clone()).collect(),
        });
    }
    Ok(models)
}

/// Every text in an artifact's JSON files.
fn names(folder: &Path, artifact: &Artifact) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in artifact.files.keys().filter(|name| name.ends_with(".json")) {
        let read = fs::read(folder.join(name)).ok();
        if let Some(value) = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            collect(value, &mut found);
        }
    }
    found
}

fn collect(value: Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            found.insert(text);
        }
        Value::Array(values) => values.into_iter().for_each(|value| collect(value, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                found.insert(name);
                collect(value, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The events that a feature is made of: those it counts, and those that bring its facts.
pub fn events(feature: &Feature) -> Vec<&'static str> {
    let mut events: Vec<&str> = Vec::new();
    let counted = feature.source.iter().chain(&feature.over);
    events.extend(counted.map(|source| match source {
        SourceEvent::Impression => "ImpressionViewed",
        SourceEvent::Click => "Click",
        SourceEvent::Conversion => "Conversion",
        SourceEvent::Activity => "UserActivity",
    }));
    for fact in feature.facts() {
        let ad = AD_FACTS.iter().any(|(name, _)| *name == fact);
        let request = REQUEST_FACTS.iter().any(|(name, _)| *name == fact);
        let whole: &[&str] = match fact.as_str() {
            "bid" | "advertiser_id" => &["CampaignChanged"],
            "scene_style" => &["ExperienceChanged"],
            _ if ad => &["CreativeChanged"],
            // A request is logged with the impression that it led to.
            _ if request => &["ImpressionServed"],
            // An attribute, of the request or of the ad.
            _ => &["ImpressionServed", "CreativeChanged"],
        };
        events.extend(whole);
    }
    events.sort_unstable();
    events.dedup();
    events
}

/// The page of a spec.
pub fn render(spec: &FeatureSpec, models: &[Model]) -> String {
    let mut rows = String::new();
    for feature in &spec.features {
        row(&mut rows, feature, models);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Marquee features</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{} features</h1>\n\
         <p>spec <code>{}</code></p>\n<h2>Lineage</h2>\n{}\n<h2>Catalogue</h2>\n\
         <p><label>Find <input id=\"find\" type=\"search\" placeholder=\"name, event, owner …\"></label> \
         <span id=\"shown\"></span></p>\n\
         <div class=\"wide\"><table><thead><tr><th>feature</th><th>kind</th><th>entity</th><th>how</th><th>window</th>\
         <th>freshness</th><th>tier</th><th>children</th><th>made of</th><th>goes into</th><th>owner</th>\
         <th>version</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n</main>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        spec.features.len(),
        escape(spec.digest()),
        lineage(spec, models),
    )
}

fn row(rows: &mut String, feature: &Feature, models: &[Model]) {
    // As the spec writes them; plain data always has a text.
    let told = serde_json::to_value(feature).unwrap_or_default();
    let word = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    let how = match &feature.expression {
        Some(expression) => expression.clone(),
        None => {
            let of = feature.source.map_or("", SourceEvent::name);
            let over = feature.over.map(|over| format!(" over {}", over.name()));
            let by = feature.key.join(", ");
            format!(
                "{} of {of}{} by {by}",
                word("aggregation"),
                over.unwrap_or_default()
            )
        }
    };
    let takes = |model: &&Model| model.features.contains(&feature.name);
    let taken: Vec<&str> = models
        .iter()
        .filter(takes)
        .map(|it| it.name.as_str())
        .collect();
    let cells = [
        word("kind"),
        word("entity"),
        how,
        feature.window.clone().unwrap_or_default(),
        word("freshness"),
        word("tier"),
        if feature.child_safe { "yes" } else { "no" }.to_owned(),
        events(feature).join(", "),
        taken.join(", "),
        feature.owner.clone(),
        feature.version.to_string(),
    ];
    let _ = write!(
        rows,
        "<tr id=\"{0}\"><th scope=\"row\"><code>{0}</code><small>{1}</small></th>",
        escape(&feature.name),
        escape(&feature.description)
    );
    for cell in cells {
        let _ = write!(rows, "<td>{}</td>", escape(&cell));
    }
    rows.push_str("</tr>\n");
}

/// Events, features and models beside each other, a line for each that goes into another.
fn lineage(spec: &FeatureSpec, models: &[Model]) -> String {
    let mut sources: Vec<&str> = spec.features.iter().flat_map(events).collect();
    sources.sort_unstable();
    sources.dedup();
    let lines = spec.features.len().max(sources.len()).max(models.len());
    let spread = |at: usize, of: usize| (LINE * lines * (2 * at + 1)) / (2 * of.max(1));
    let mut svg = format!(
        "<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {0}\" width=\"{WIDTH}\" height=\"{0}\" role=\"img\" \
         aria-label=\"Which event goes into which feature, and that into which model\">\n",
        LINE * lines
    );
    let edge = |svg: &mut String, from: (usize, usize), to: (usize, usize), of: &str| {
        let middle = usize::midpoint(from.0, to.0);
        let _ = writeln!(
            svg,
            "<path data-of=\"{}\" d=\"M{} {} C{middle} {} {middle} {} {} {}\"/>",
            escape(of),
            from.0,
            from.1,
            from.1,
            to.1,
            to.0,
            to.1
        );
    };
    for (at, feature) in spec.features.iter().enumerate() {
        let y = spread(at, spec.features.len());
        for (of, source) in sources.iter().enumerate() {
            if events(feature).contains(source) {
                let from = (EVENTS_X + 6, spread(of, sources.len()));
                edge(&mut svg, from, (FEATURES_X[0] - 6, y), &feature.name);
            }
        }
        for (of, model) in models.iter().enumerate() {
            if model.features.contains(&feature.name) {
                let to = (MODELS_X - 6, spread(of, models.len()));
                edge(&mut svg, (FEATURES_X[1] + 6, y), to, &feature.name);
            }
        }
    }
    let text = |svg: &mut String, x: usize, y: usize, anchor: &str, text: &str| {
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            y + 4,
            escape(text)
        );
    };
    for (at, source) in sources.iter().enumerate() {
        text(&mut svg, EVENTS_X, spread(at, sources.len()), "end", source);
    }
    for (at, feature) in spec.features.iter().enumerate() {
        let y = spread(at, spec.features.len());
        let _ = write!(svg, "<a href=\"#{}\">", escape(&feature.name));
        text(&mut svg, FEATURES_X[0], y, "start", &feature.name);
        svg.push_str("</a>");
    }
    for (at, model) in models.iter().enumerate() {
        let y = spread(at, models.len());
        text(&mut svg, MODELS_X, y, "start", &model.name);
    }
    svg + "</svg></div>"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
[facts]
mood = "text"

[[feature]]
name = "user_ctr"
kind = "dense"
entity = "user"
aggregation = "rate"
source = "click"
over = "impression"
key = ["user_id"]
window = "7d"
prior = [1.0, 10.0]
freshness = "nearline"
child_safe = false
owner = "ads <team>"
version = 1

[[feature]]
name = "bid"
kind = "dense"
entity = "ad"
expression = "bid"
freshness = "request"
child_safe = true
owner = "ads"
version = 2

[[feature]]
name = "mood"
kind = "sparse"
entity = "context"
expression = "mood"
freshness = "request"
child_safe = true
owner = "ads"
version = 1
"#;

    fn spec() -> FeatureSpec {
        FeatureSpec::parse(SPEC, "spec").unwrap()
    }

    #[test]
    fn a_feature_names_the_events_that_it_is_made_of() {
        let spec = spec();
        let of = |at: usize| events(&spec.features[at]);
        assert_eq!(of(0), ["Click", "ImpressionServed", "ImpressionViewed"]);
        assert_eq!(of(1), ["CampaignChanged"]);
        assert_eq!(of(2), ["CreativeChanged", "ImpressionServed"]);
    }

    #[test]
    fn a_page_shows_each_feature_and_the_models_that_take_it_and_loads_nothing() {
        let model = Model {
            name: "ctr 0123".to_owned(),
            features: vec!["user_ctr".to_owned()],
        };
        let page = render(&spec(), &[model]);
        for told in [
            "<tr id=\"user_ctr\">",
            "rate of click over impression by user_id",
            "ads &lt;team&gt;",
        ] {
            assert!(page.contains(told), "{told}");
        }
        assert_eq!(page.matches("ctr 0123").count(), 2);
        // Six from events to features, one to the model.
        assert_eq!(page.matches("<path ").count(), 3 + 1 + 2 + 1);
        assert!(!page.contains("http"));
    }
}
