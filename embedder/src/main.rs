//! `marquee-embedder`: vectors, index and bundles.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cli::{CommonArgs, load_config};
use embedder::{
    embed::{self, EmbedConfig},
    index::{self, IndexConfig},
    publish,
};

#[derive(Parser)]
#[command(
    name = "marquee-embedder",
    version,
    about = "Embeds pictures and builds the index"
)]
enum Verb {
    /// Embed the pictures of the newest catalogue
    Embed {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Build, check and publish the index
    #[command(subcommand)]
    Index(IndexVerb),
}

#[derive(Subcommand)]
enum IndexVerb {
    /// Build the index of the newest embeddings; refused (exit 3) below its target
    Build {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Measure the newest index again
    Verify {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Join the newest artifacts into a bundle and move a channel to it
    Publish {
        #[command(flatten)]
        common: CommonArgs,
        /// The channel to move
        #[arg(long, default_value = "live")]
        channel: String,
        /// Publish a click model that `marquee gate --promote` has not judged; one that it refused stays refused
        #[arg(long)]
        unjudged: bool,
    },
}

fn main() -> ExitCode {
    cli::main(run)
}

fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match Verb::parse() {
        Verb::Embed { common } => {
            cli::init_logging(common.verbose);
            let loaded = load_config::<EmbedConfig>(&common, Some("configs/embed.toml"))?;
            if common.print(&loaded) {
                return Ok(());
            }
            runtime.block_on(embed::run(&common, &loaded.config))
        }
        Verb::Index(IndexVerb::Build { common }) => {
            cli::init_logging(common.verbose);
            let loaded = load_config::<IndexConfig>(&common, Some("configs/index.toml"))?;
            if common.print(&loaded) {
                return Ok(());
            }
            runtime.block_on(index::run_build(&common, &loaded))
        }
        Verb::Index(IndexVerb::Verify { common }) => {
            cli::init_logging(common.verbose);
            let loaded = load_config::<IndexConfig>(&common, Some("configs/index.toml"))?;
            runtime.block_on(index::run_verify(&common, &loaded))
        }
        Verb::Index(IndexVerb::Publish {
            common,
            channel,
            unjudged,
        }) => {
            cli::init_logging(common.verbose);
            runtime.block_on(publish::run(&common, &channel, unjudged))
        }
    }
}
