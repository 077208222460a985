//! `marquee report`: the figures of all steps on one page.
//!
//! [`Steps`] reads what the steps left in `reports/`, [`Summary`] picks the headline figures,
//! [`checks`] holds them against bounds that follow from the known truth, and three writers show
//! them: `report.json`, `report.html` ([`page`]) and a table on the terminal. A step that has
//! not run is named with the command that runs it; the rest is shown all the same.

pub mod checks;
mod gallery;
mod page;
mod steps;
mod summary;
mod terminal;

use anyhow::Context;
use cli::{CommonArgs, GateRefused, Layout, load_config, out, write_json, write_text};
use serde::{Deserialize, Serialize};

use checks::{Bounds, Check};
pub use steps::Steps;
pub use summary::Summary;

/// Flags of `marquee report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// End with exit code 3 if a figure is out of its bounds or a step is missing
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// `configs/report.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportConfig {
    /// What the figures are held against.
    pub bounds: Bounds,
}

/// Reads the steps and writes the report.
///
/// # Errors
/// If the folder has no reports, or a file cannot be written; [`GateRefused`] with `--check`.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let common = &args.common;
    cli::init_logging(common.verbose);
    let loaded = load_config::<ReportConfig>(common, Some("configs/report.toml"))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let steps = Steps::read(&layout.reports());
    anyhow::ensure!(
        !steps.is_empty(),
        "no step has left figures in {}: `launch/quickstart` runs them all",
        layout.reports().display()
    );
    let checks = checks::all(&steps, &loaded.config.bounds);
    let summary = Summary::new(&steps, checks);
    let page = page::render(&page::Content {
        steps: &steps,
        summary: &summary,
        artifacts: &gallery::Artifacts::read(&layout.registry()),
    });
    let (json, html) = (
        layout.reports().join("report.json"),
        layout.reports().join("report.html"),
    );
    write_json(&json, &summary).with_context(|| format!("writing {}", json.display()))?;
    write_text(&html, &page).with_context(|| format!("writing {}", html.display()))?;
    if common.json {
        out!("{}", serde_json::to_string(&summary)?);
    } else {
        out!("{}", terminal::table(&summary));
        for missing in &summary.missing {
            out!("missing: {missing}");
        }
        for check in summary.checks.iter().filter(|check| !check.holds) {
            out!("out of bounds: {}", check.told());
        }
        out!("page: {}", html.display());
    }
    if args.check {
        gate(&summary)?;
    }
    Ok(())
}

fn gate(summary: &Summary) -> anyhow::Result<()> {
    let failed = summary
        .checks
        .iter()
        .filter(|check| !check.holds)
        .map(Check::told);
    let reasons: Vec<String> = summary.missing.iter().cloned().chain(failed).collect();
    if reasons.is_empty() {
        return Ok(());
    }
    let reason = reasons.join("; ");
    Err(GateRefused { reason }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_says_what_the_defaults_are() {
        let text = include_str!("../../../configs/report.toml");
        let (config, _) =
            cli::parse_config::<ReportConfig>(text, "configs/report.toml", &[]).unwrap();
        assert_eq!(config, ReportConfig::default());
    }
}
