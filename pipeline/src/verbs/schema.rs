//! `marquee events schema`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{CommonArgs, GateRefused, out};
use comfy_table::{Table, presets};

use crate::schema::{ConfluentRegistry, LocalRegistry, SchemaError, SchemaRegistry};

/// `marquee events schema`
#[derive(Debug, Subcommand)]
pub enum SchemaVerb {
    /// Print the registered versions
    List(SchemaArgs),
    /// Say whether the schema may be the next version; what it breaks ends with exit code 3
    Check(SchemaArgs),
    /// Register the schema, and print the id for `schema_id` of a log on Kafka; what breaks the rule of
    /// the subject is refused with exit code 3
    Register(SchemaArgs),
}

/// Flags of `marquee events schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// The registry: a folder, or the address of one that speaks Confluent's HTTP interface
    #[arg(long, value_name = "DIR|URL", default_value = "wire/schemas")]
    registry: String,
    /// Under which name the schema is kept; `<topic>-value` is what Kafka's tools look for
    #[arg(long, value_name = "NAME", default_value = "marquee.events-value")]
    subject: String,
    /// A Protobuf file, instead of the schema that this program was built with
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

impl SchemaVerb {
    fn args(&self) -> &SchemaArgs {
        match self {
            Self::List(args) | Self::Check(args) | Self::Register(args) => args,
        }
    }

    /// Flags that every verb has.
    pub(super) fn common(&self) -> &CommonArgs {
        &self.args().common
    }

    pub(super) fn run(self) -> anyhow::Result<()> {
        let args = self.args();
        let registry: Box<dyn SchemaRegistry> = match args.registry.contains("://") {
            true => Box::new(ConfluentRegistry::new(&args.registry)?),
            false => Box::new(LocalRegistry::at(Path::new(&args.registry))),
        };
        match self {
            Self::List(_) => list(args, &*registry),
            Self::Check(_) => check(args, &*registry),
            Self::Register(_) => register(args, &*registry),
        }
    }
}

fn text(args: &SchemaArgs) -> anyhow::Result<String> {
    match &args.file {
        None => Ok(wire::EVENTS_PROTO.to_owned()),
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        }
    }
}

fn list(args: &SchemaArgs, registry: &dyn SchemaRegistry) -> anyhow::Result<()> {
    let versions = registry.versions(&args.subject)?;
    if args.common.json {
        out!("{}", serde_json::to_string(&versions)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["version", "id", "lines"]);
    for schema in &versions {
        let lines = schema.text.lines().count();
        table.add_row([schema.version, schema.id, lines as u32].map(|it| it.to_string()));
    }
    out!("{table}");
    Ok(())
}

fn check(args: &SchemaArgs, registry: &dyn SchemaRegistry) -> anyhow::Result<()> {
    let breaks = registry.breaks(&args.subject, &text(args)?)?;
    let level = registry.level(&args.subject)?;
    if args.common.json {
        let told = serde_json::json!({ "level": level, "breaks": breaks });
        out!("{told}");
    } else if breaks.is_empty() {
        out!("{}: compatible ({level})", args.subject);
    }
    match breaks.is_empty() {
        true => Ok(()),
        false => {
            let reason = format!("{} ({level}): {}", args.subject, breaks.join("; "));
            Err(GateRefused { reason }.into())
        }
    }
}

fn register(args: &SchemaArgs, registry: &dyn SchemaRegistry) -> anyhow::Result<()> {
    let schema = match registry.register(&args.subject, &text(args)?) {
        Ok(schema) => schema,
        Err(error @ SchemaError::Incompatible { .. }) => {
            let reason = error.to_string();
            return Err(GateRefused { reason }.into());
        }
        Err(error) => return Err(error.into()),
    };
    let (version, id) = (schema.version, schema.id);
    if args.common.json {
        let told = serde_json::json!({ "subject": args.subject, "version": version, "id": id });
        out!("{told}");
    } else {
        out!("{}: version {version}, schema_id = {id}", args.subject);
    }
    Ok(())
}
