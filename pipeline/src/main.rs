//! `marquee-pipeline`: the offline and nearline verbs.

use std::process::ExitCode;

use clap::Parser;
use pipeline::world;

#[derive(Parser)]
#[command(name = "marquee-pipeline", version, about)]
enum Verb {
    /// The synthetic world with known truth
    #[command(subcommand)]
    World(world::cli::WorldArgs),
}

fn main() -> ExitCode {
    cli::main(|| match Verb::parse() {
        Verb::World(args) => {
            cli::init_logging(args.common().verbose);
            world::cli::run(args)
        }
    })
}
