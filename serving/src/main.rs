//! `marquee-serving`: the ad server and a client to look at it.

use std::process::ExitCode;

use clap::Parser;
use cli::CommonArgs;
use serving::{ask, serve};

#[derive(Parser)]
#[command(name = "marquee-serving", version, about)]
enum Verb {
    /// Run the ad server
    Serve {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Ask a running server for ads, and show how it decided
    Ask(Box<ask::AskArgs>),
}

fn main() -> ExitCode {
    cli::main(|| {
        let verb = Verb::parse();
        let common = match &verb {
            Verb::Serve { common } => common,
            Verb::Ask(args) => args.common(),
        };
        cli::init_logging(common.verbose);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match verb {
                Verb::Serve { common } => serve::run(&common).await,
                Verb::Ask(args) => ask::run(*args).await,
            }
        })
    })
}
