//! The gate in front of a click model: measured against what serves, on the same rows.
//!
//! [`measure`] says how good a model is, overall and by slice, and how certain that is
//! ([`resample`]); [`revenue`] says what it would have earned; [`rules`] refuse what is certain to be worse; [`page`] shows all of it. Source of
//! the questions: Breck et al., "The ML Test Score", IEEE Big Data 2017.

mod measure;
mod page;
mod resample;
mod revenue;
mod rules;
mod slices;

use std::collections::HashMap;

use anyhow::bail;
use cli::{CommonArgs, GateRefused, Layout, out, write_json, write_text};
use models::ctr::CtrModel;
use registry::{Digest, Judgement, Kind, Registry, Stage, now_us};
use serde::{Deserialize, Serialize};

use self::{
    measure::Candidate,
    rules::{can_judge, judge},
    slices::Slices,
};
pub use self::{
    measure::{Interval, Measures, SliceMeasures},
    revenue::{Earned, Revenue},
    rules::RulesConfig,
};
use crate::{
    ctr::score_all,
    split::SplitConfig,
    table::{Examples, Projection, TrainingTable},
};

/// `configs/gate.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Seed of what is drawn for the intervals.
    pub seed: u64,
    /// Name of the training table.
    pub table: String,
    /// What is held out: models are measured on the test rows.
    pub split: SplitConfig,
    /// What a model is compared with: the click model of the bundle that most of this channel's
    /// traffic sees; nothing, if there is no such channel.
    pub channel: String,
    /// Name of the table with the features of the model that it is compared with, where these are of
    /// another spec; empty: there is none.
    pub against_table: String,
    /// Times that rows are drawn again for an interval.
    pub replicates: usize,
    /// How certain an interval is.
    pub confidence: f64,
    /// Least price of a click when the rows were served, in millionths of the account's currency: the
    /// server's `auction.reserve_cpc_micros`. 0: not known, and revenue is estimated without a floor.
    pub reserve_cpc_micros: u64,
    /// What is refused.
    pub rules: RulesConfig,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            channel: "live".to_owned(),
            against_table: String::new(),
            replicates: 200,
            confidence: 0.95,
            reserve_cpc_micros: 0,
            rules: RulesConfig::default(),
        }
    }
}

/// `marquee gate`.
#[derive(Debug, clap::Args)]
pub struct GateArgs {
    /// Flags that all verbs share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Digest of the model; by default the newest
    #[arg(long)]
    pub model: Option<Digest>,
    /// Digest of the model to compare with; by default the one that serves
    #[arg(long)]
    pub against: Option<Digest>,
    /// Put the verdict on record, which later steps towards traffic look at, and set the stage of a
    /// candidate: shadow if it passes, retired if it is refused
    #[arg(long)]
    pub promote: bool,
}

/// What the gate found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The model.
    pub model: String,
    /// What it was compared with.
    pub against: Option<String>,
    /// Version of the table.
    pub table_version: u64,
    /// Rows, clicks and people that both were measured on.
    pub rows: usize,
    /// Test rows that were not, since the other's table does not have them.
    #[serde(default)]
    pub left_out: usize,
    /// Clicks among them.
    pub clicks: usize,
    /// People among them.
    pub users: usize,
    /// The model's.
    pub measures: Measures,
    /// Those of the other.
    pub against_measures: Option<Measures>,
    /// The model's less the other's.
    pub differences: Option<Measures>,
    /// What both would have earned; absent where no row says by what auction it was sold.
    pub revenue: Option<Revenue>,
    /// By slice, those of most rows first.
    pub slices: Vec<SliceMeasures>,
    /// Why the model is refused; empty: it passes.
    pub refused: Vec<String>,
}

/// `rules.least_revenue_ratio` is set, and there is nothing to estimate revenue from.
#[derive(Debug, thiserror::Error)]
#[error(
    "rules.least_revenue_ratio is set, and there are no bids in the table: none of the {rows} test rows of `{table}` has `bid_micros`, `price_micros` and `served_pctr` of a sale; measure rows that `marquee serve` logged, of a table made by this version, or set the rule to 0"
)]
pub struct NoBids {
    /// The table.
    pub table: String,
    /// Test rows.
    pub rows: usize,
}

/// Measures a model, tells of it, and refuses what the rules refuse.
///
/// # Errors
/// [`GateRefused`]; [`NoBids`], before any stage is set; or whatever keeps it from measuring.
pub async fn run_gate(args: &GateArgs, config: &GateConfig) -> anyhow::Result<()> {
    let layout = Layout::new(&args.common);
    let registry = Registry::open(&layout.registry())?;
    let digest = match &args.model {
        Some(digest) => digest.clone(),
        None => registry.newest(Kind::Ctr).await?.digest,
    };
    let against = match &args.against {
        Some(digest) => Some(digest.clone()),
        None => live(&registry, &config.channel).await?,
    };
    // A model is no better nor worse than itself.
    let against = against.filter(|other| *other != digest);

    let table = TrainingTable::open(&layout.table(&config.table)).await?;
    let parts = config.split.parts(&table.rows()?)?;
    let known = parts.train.read(Projection::Creatives)?.creative_ids;
    let mut rows = parts.test.load_with_auctions()?;
    let num_rows = rows.len();
    let model = CtrModel::load(&registry.fetch(&digest).await?)?;
    if model.schema().digest != table.schema().digest {
        bail!(
            "model {} takes the features of spec {}, and the table holds those of {}: measure it on the table that it was trained on",
            digest.short(),
            model.schema().digest,
            table.schema().digest
        );
    }
    let mut other = None;
    if let Some(against) = &against {
        let live = CtrModel::load(&registry.fetch(against).await?)?;
        let place = (&layout, config);
        let scores = match seen_by(&live, against, place, &table, &rows).await? {
            None => score_all(&live, &rows, false)?,
            Some((mine, theirs)) => {
                rows = rows.gather(&mine);
                score_all(&live, &theirs, false)?
            }
        };
        other = Some(Candidate { scores });
    }
    let scores = score_all(&model, &rows, false)?;
    let model = Candidate { scores };
    let slices = Slices::of(&rows, &known.into_iter().collect());
    let mut verdict = measure::measure(config, &rows, &slices, &model, other.as_ref());
    if !can_judge(&config.rules, &verdict) {
        bail!(NoBids {
            table: config.table.clone(),
            rows: rows.len(),
        });
    }
    verdict.left_out = num_rows - rows.len();
    verdict.model = digest.to_string();
    verdict.against = against.as_ref().map(Digest::to_string);
    verdict.table_version = table.version();
    verdict.refused = judge(&config.rules, &verdict);

    let reports = layout.reports();
    write_json(&reports.join("gate.json"), &verdict)?;
    let path = reports.join("gate.html");
    write_text(
        &path,
        &page::page(config, &verdict, &rows, &model, other.as_ref()),
    )?;
    if args.common.json {
        out!("{}", serde_json::to_string(&verdict)?);
    } else {
        out!("{}", rules::told(&verdict));
        out!("page in {}", path.display());
    }
    if args.promote {
        promote(&registry, &digest, against, &verdict).await?;
    }
    match verdict.refused.is_empty() {
        true => Ok(()),
        false => bail!(GateRefused {
            reason: verdict.refused.join("; "),
        }),
    }
}

async fn promote(
    registry: &Registry,
    digest: &Digest,
    against: Option<Digest>,
    verdict: &Verdict,
) -> anyhow::Result<()> {
    let word = Judgement {
        refused: verdict.refused.clone(),
        against,
        table_version: verdict.table_version,
        judged_us: now_us(),
    };
    registry.judge(digest, &word).await?;
    if registry.stage(digest).await? == Stage::Candidate {
        let stage = match verdict.refused.is_empty() {
            true => Stage::Shadow,
            false => Stage::Retired,
        };
        registry.set_stage(digest, stage).await?;
    }
    Ok(())
}

/// The click model that most of a channel's traffic sees.
async fn live(registry: &Registry, channel: &str) -> anyhow::Result<Option<Digest>> {
    let Some(channel) = registry.channel(channel).await? else {
        return Ok(None);
    };
    let most = channel
        .targets
        .iter()
        .max_by(|one, other| one.share.total_cmp(&other.share));
    let Some(target) = most else {
        return Ok(None);
    };
    for parent in registry.get(&target.bundle).await?.parents {
        if registry.get(&parent).await?.kind == Kind::Ctr {
            return Ok(Some(parent));
        }
    }
    Ok(None)
}

/// The rows as a model of another spec sees them, in the table of its own: places of those that stand there
/// too, and these; none if its features are those of the table.
async fn seen_by(
    model: &CtrModel,
    digest: &Digest,
    (layout, config): (&Layout, &GateConfig),
    table: &TrainingTable,
    rows: &Examples,
) -> anyhow::Result<Option<(Vec<usize>, Examples)>> {
    let spec = &model.schema().digest;
    if table.schema().digest == *spec {
        return Ok(None);
    }
    if config.against_table.is_empty() {
        bail!(
            "model {}, which it is compared with, takes the features of spec {spec}, and table {} holds those of {}: name a table of the former with the same impressions as `against_table`",
            digest.short(),
            config.table,
            table.schema().digest
        );
    }
    let theirs = TrainingTable::open(&layout.table(&config.against_table)).await?;
    if theirs.schema().digest != *spec {
        bail!(
            "against_table {} holds the features of spec {}, and model {} takes those of {spec}: name a table that it could be trained on",
            config.against_table,
            theirs.schema().digest,
            digest.short()
        );
    }
    let (first, last) = ends(&rows.event_time_us).unwrap_or_default();
    let theirs = theirs.rows()?.between(first..last + 1)?.load()?;
    let [mine, same] = common(rows, &theirs);
    if mine.is_empty() {
        bail!(
            "none of the {} test rows of {} is in against_table {}: name a table of the same impressions",
            rows.len(),
            config.table,
            config.against_table
        );
    }
    Ok(Some((mine, theirs.gather(&same))))
}

fn ends(times: &[i64]) -> Option<(i64, i64)> {
    times.iter().min().copied().zip(times.iter().max().copied())
}

/// Places of the impressions that stand in both, in the order of the first.
fn common(rows: &Examples, others: &Examples) -> [Vec<usize>; 2] {
    let others = others.impression_ids.iter().enumerate();
    let places: HashMap<&String, usize> = others.map(|(at, id)| (id, at)).collect();
    let mine = rows.impression_ids.iter().enumerate();
    let both = mine.filter_map(|(at, id)| Some((at, *places.get(id)?)));
    let (mine, same) = both.unzip();
    [mine, same]
}

#[cfg(test)]
mod tests;
