//! `reports/skew.html`: every feature's two sides beside each other. One page that loads nothing.

use std::fmt::Write;

use cli::escape;
use features::skew::{Bin, Exceeded};

use super::{FeatureSkew, SkewReport};

const STYLE: &str = concat!(
    include_str!("../catalogue_page.css"),
    include_str!("page.css")
);

/// Size of a feature's picture, pixels.
const WIDTH: f64 = 220.0;
const HEIGHT: f64 = 44.0;

/// The page of a report; what exceeds its limits comes first.
pub fn render(report: &SkewReport) -> String {
    let mut features: Vec<&FeatureSkew> = report.features.iter().collect();
    features.sort_by(|one, other| {
        let rank = |it: &FeatureSkew| (it.exceeded.is_empty(), -it.distribution.psi);
        rank(one)
            .partial_cmp(&rank(other))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut rows = String::new();
    for feature in features {
        row(&mut rows, feature);
    }
    let [first, last] = &report.days;
    let against = match &report.baseline {
        Some([first, last]) => format!("distributions against {first} to {last}"),
        None => "distributions against the same rows computed again".to_owned(),
    };
    let exceeded = report.exceeded().count();
    let verdict = match exceeded {
        0 => "no feature exceeds its limits".to_owned(),
        1 => "1 feature exceeds its limits".to_owned(),
        count => format!("{count} features exceed their limits"),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Marquee feature skew</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1 class=\"{}\">{verdict}</h1>\n\
         <p>{} rows of <code>{}</code> served from {first} to {last}; {against}; spec <code>{}</code>. \
         <span class=\"offline\">offline</span> <span class=\"online\">online</span></p>\n\
         <div class=\"wide\"><table><thead><tr><th>feature</th><th>distribution</th><th>PSI</th><th>KL</th>\
         <th>missing</th><th>range</th><th>rows that differ</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n\
         </main>\n</body>\n</html>\n",
        if exceeded > 0 { "over" } else { "" },
        report.rows,
        escape(&report.table),
        escape(&report.spec),
    )
}

fn row(rows: &mut String, it: &FeatureSkew) {
    let (found, limits) = (&it.distribution, &it.limits);
    let over = |what| match it.exceeded.contains(&what) {
        true => " class=\"over\"",
        false => "",
    };
    let [offline, online] = found.missing;
    let range = found.ranges.map_or(String::new(), |[offline, online]| {
        let text = |[low, high]: [f32; 2]| format!("{low} to {high}");
        format!("{}<small>{}</small>", text(online), text(offline))
    });
    let example = it.example.as_ref().map_or(String::new(), |impression| {
        format!(
            " by up to {:.4}, in <code>{}</code>",
            it.served.largest,
            escape(impression)
        )
    });
    let _ = writeln!(
        rows,
        "<tr><th scope=\"row\"><code>{name}</code><small>version {version}</small></th><td>{picture}</td>\
         <td{psi_over}>{psi:.4}<small>at most {psi_most:.4}</small></td>\
         <td{kl_over}>{kl:.4}<small>at most {kl_most:.4}</small></td>\
         <td{missing_over}>{online:.4}<small>{offline:.4} offline</small></td>\
         <td{range_over}>{range}</td>\
         <td{differing_over}>{differing} of {of}<small>at most {most:.4} of them{example}</small></td></tr>",
        name = escape(&it.feature),
        version = it.version,
        picture = picture(&found.bins),
        psi_over = over(Exceeded::Psi),
        psi = found.psi,
        psi_most = limits.psi + found.chance,
        kl_over = over(Exceeded::Kl),
        kl = found.kl,
        kl_most = limits.kl + found.chance / 2.0,
        missing_over = over(Exceeded::Missing),
        range_over = over(Exceeded::Range),
        differing_over = over(Exceeded::Differing),
        differing = it.served.differing,
        of = it.served.rows,
        most = limits.differing.unwrap_or(0.0),
    );
}

/// Two bars a bin: shares offline and online.
fn picture(bins: &[Bin]) -> String {
    let total = |count: fn(&Bin) -> u64| bins.iter().map(count).sum::<u64>().max(1) as f64;
    let totals = [total(|bin| bin.offline), total(|bin| bin.online)];
    let shares = |bin: &Bin| {
        [
            bin.offline as f64 / totals[0],
            bin.online as f64 / totals[1],
        ]
    };
    let highest = bins
        .iter()
        .flat_map(shares)
        .fold(f64::MIN_POSITIVE, f64::max);
    let step = WIDTH / bins.len().max(1) as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-label=\"Shares of the values offline and online\">"
    );
    for (at, bin) in bins.iter().enumerate() {
        for (side, (class, share)) in ["offline", "online"].iter().zip(shares(bin)).enumerate() {
            let (width, height) = (0.42 * step, HEIGHT * share / highest);
            let x = step * at as f64 + width * side as f64;
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
                 <title>{}: {:.2} % {class}</title></rect>",
                HEIGHT - height,
                escape(&bin.name),
                100.0 * share
            );
        }
    }
    svg + "</svg>"
}
