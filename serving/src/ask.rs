//! `marquee ask`: one request to a running server, and its answer as a table.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use clap::ValueEnum;
use cli::{CommonArgs, Layout, out};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use registry::now_us;
use serde_json::{Value, json};
use wire::{
    ads::{
        Degradation, Explain, GetAdsRequest, GetAdsResponse, Placement, StageTrace, Winner,
        ad_service_client::AdServiceClient,
    },
    events::{AgeBand, Context as AdContext},
};

use crate::{degradation::level_name, server::Addresses};

/// Flags of `marquee ask`.
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Who looks; without it nobody is known
    #[arg(long, value_name = "ID", default_value = "")]
    user: String,
    /// The experience that the ad stands in
    #[arg(long, value_name = "ID", default_value = "")]
    experience: String,
    /// The scene (viewpoint) that the ad stands in
    #[arg(long, value_name = "ID", default_value = "")]
    scene: String,
    /// Genre, if the catalogue does not know the experience
    #[arg(long, default_value = "")]
    genre: String,
    /// phone, desktop, console or headset
    #[arg(long, default_value = "desktop")]
    device: String,
    /// Two letters
    #[arg(long, default_value = "DE")]
    country: String,
    /// billboard, portal or sponsored_item; without it any
    #[arg(long, default_value = "")]
    format: String,
    /// Age of the user
    #[arg(long, value_enum, default_value = "adult")]
    age: Age,
    /// No personal features
    #[arg(long)]
    no_consent: bool,
    /// How many ads fit
    #[arg(long, value_name = "N", default_value_t = 3)]
    slots: u32,
    /// Least price of a thousand impressions, in millionths of the currency
    #[arg(long, value_name = "MICROS", default_value_t = 0)]
    floor: i64,
    /// Name of the request; the same name asks for the same impressions
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Time of the request, microseconds since the Unix epoch; without it now
    #[arg(long, value_name = "MICROS", default_value_t = 0)]
    time: i64,
    /// Address of the server [default: that of the server running on this data folder]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

/// What is known of the user's age.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Age {
    /// Under 13
    Child,
    /// 13 or over
    #[value(alias = "13plus")]
    Adult,
    /// Not known
    Unknown,
}

impl AskArgs {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn into_request(self) -> GetAdsRequest {
        let age_band = match self.age {
            Age::Child => AgeBand::Under13,
            Age::Adult => AgeBand::AgeBand13plus,
            Age::Unknown => AgeBand::Unknown,
        };
        let request_id = self.request.unwrap_or_else(|| format!("ask-{}", now_us()));
        GetAdsRequest {
            request_id,
            user_id: self.user,
            age_band: age_band.into(),
            personalisation_consent: !self.no_consent,
            context: Some(AdContext {
                experience_id: self.experience,
                genre: self.genre,
                scene_id: self.scene,
                format: self.format,
                device: self.device,
                country: self.country,
                ..AdContext::default()
            }),
            placement: Some(Placement {
                slots: self.slots,
                floor_ecpm_micros: self.floor,
                ..Placement::default()
            }),
            deadline_ms: 0,
            request_time_us: self.time,
        }
    }
}

/// Where the server on a data folder listens.
///
/// # Errors
/// If none has left its address there.
pub fn server_address(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.serving_address();
    let addresses = read_addresses(&path).with_context(|| {
        format!(
            "reading {}: start `marquee serve configs/serving.toml`, or name a --server",
            path.display()
        )
    })?;
    Ok(format!("http://{}", addresses.grpc))
}

fn read_addresses(path: &Path) -> anyhow::Result<Addresses> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

/// Asks and prints.
///
/// # Errors
/// If the server cannot be reached or refuses the request.
pub async fn run(args: AskArgs) -> anyhow::Result<()> {
    let (layout, as_json) = (Layout::new(&args.common), args.common.json);
    let server = match &args.server {
        Some(server) => server.clone(),
        None => server_address(&layout)?,
    };
    let client = AdServiceClient::connect(server.clone()).await;
    let mut client = client.with_context(|| {
        format!("connecting to {server}: start `marquee serve configs/serving.toml` first")
    })?;
    let answer = client.get_ads(args.into_request()).await;
    let answer = answer
        .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
        .with_context(|| format!("asking {server}"))?
        .into_inner();
    if as_json {
        out!("{:#}", to_json(&answer));
    } else {
        out!("{}", to_text(&answer));
    }
    Ok(())
}

/// The answer for a person.
pub fn to_text(answer: &GetAdsResponse) -> String {
    let explain = answer.explain.clone().unwrap_or_default();
    let mut text = format!(
        "request {}, answered in {:.2} ms by bundle {} (generation {}), degradation {}\n\n{}\n\n",
        answer.request_id,
        explain.total_us as f64 / 1e3,
        short(&explain.bundle_digest),
        explain.generation,
        level_name(explain.degradation()),
        stages_table(&explain),
    );
    if answer.winners.is_empty() {
        text.push_str("no ad: nothing eligible reached the floor");
    } else {
        text.push_str(&winners_table(&answer.winners).to_string());
        text.push('\n');
        for winner in &answer.winners {
            text.push_str(&format!("\n{}", reason(winner)));
        }
    }
    text
}

fn table(header: &[&str], right_from: usize, right_to: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in right_from..right_to {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn stages_table(explain: &Explain) -> Table {
    let mut table = table(&["stage", "in", "out", "µs", "stood in"], 1, 4);
    for stage in &explain.stages {
        let StageTrace {
            stage,
            candidates_in,
            candidates_out,
            duration_us,
            fallback,
        } = stage;
        let fallback = if fallback.is_empty() { "-" } else { fallback };
        table.add_row([
            stage.clone(),
            candidates_in.to_string(),
            candidates_out.to_string(),
            duration_us.to_string(),
            fallback.to_owned(),
        ]);
    }
    table
}

fn winners_table(winners: &[Winner]) -> Table {
    let header = [
        "slot",
        "creative",
        "campaign",
        "title",
        "match",
        "pre-score",
        "pCTR",
        "bid",
        "eCPM",
        "price",
    ];
    let mut table = table(&header, 4, 10);
    for winner in winners {
        let scores = winner.scores.unwrap_or_default();
        table.add_row([
            winner.slot.to_string(),
            winner.creative_id.clone(),
            winner.campaign_id.clone(),
            winner.title.clone(),
            format!("{:.3}", scores.similarity),
            format!("{:.4}", scores.prescore),
            format!("{:.4}", scores.pctr),
            money(scores.bid_micros),
            money(scores.ecpm_micros),
            money(winner.price_micros),
        ]);
    }
    table
}

/// Why a winner stands where it stands, in words.
fn reason(winner: &Winner) -> String {
    let scores = winner.scores.unwrap_or_default();
    if winner.campaign_id.is_empty() {
        return format!("slot {}: house ad, costs nothing", winner.slot);
    }
    let to_beat = winner.price_micros as f64 * f64::from(scores.pctr) * 1e3;
    format!(
        "slot {}: {} × {:.4} per click is {} per thousand; a click costs {}, the least that beats {} per thousand{}",
        winner.slot,
        money(scores.bid_micros),
        scores.pctr,
        money(scores.ecpm_micros),
        money(winner.price_micros),
        money(to_beat as i64),
        if winner.price_micros == scores.bid_micros {
            " (its whole bid)"
        } else {
            ""
        },
    )
}

fn money(micros: i64) -> String {
    format!("{:.3}", micros as f64 / 1e6)
}

fn short(digest: &str) -> &str {
    match digest {
        "" => "none",
        digest => digest.get(..12).unwrap_or(digest),
    }
}

/// The answer for a program, with the names of the wire.
pub fn to_json(answer: &GetAdsResponse) -> Value {
    let explain = answer.explain.clone().unwrap_or_default();
    let degradation = Degradation::try_from(explain.degradation).unwrap_or_default();
    let digests: BTreeMap<_, _> = explain.artifact_digests.iter().collect();
    json!({
        "request_id": answer.request_id,
        "winners": answer.winners.iter().map(winner_json).collect::<Vec<_>>(),
        "explain": {
            "stages": explain.stages.iter().map(stage_json).collect::<Vec<_>>(),
            "degradation": degradation.as_str_name(),
            "bundle_digest": explain.bundle_digest,
            "artifact_digests": digests,
            "generation": explain.generation,
            "total_us": explain.total_us,
        },
    })
}

fn stage_json(stage: &StageTrace) -> Value {
    json!({
        "stage": stage.stage,
        "candidates_in": stage.candidates_in,
        "candidates_out": stage.candidates_out,
        "duration_us": stage.duration_us,
        "fallback": stage.fallback,
    })
}

fn winner_json(winner: &Winner) -> Value {
    let scores = winner.scores.unwrap_or_default();
    json!({
        "slot": winner.slot,
        "impression_id": winner.impression_id,
        "creative_id": winner.creative_id,
        "campaign_id": winner.campaign_id,
        "title": winner.title,
        "asset_path": winner.asset_path,
        "price_micros": winner.price_micros,
        "tracking_token": winner.tracking_token,
        "scores": {
            "similarity": scores.similarity,
            "prescore": scores.prescore,
            "pctr": scores.pctr,
            "bid_micros": scores.bid_micros,
            "ecpm_micros": scores.ecpm_micros,
        },
    })
}
