//! `marquee-pipeline`: the offline and nearline verbs.

use std::process::ExitCode;

use clap::Parser;
use pipeline::{
    verbs::{EventsVerb, FeaturesVerb, ImportVerb},
    world,
};

#[derive(Parser)]
#[command(name = "marquee-pipeline", version, about)]
enum Verb {
    /// The synthetic world with known truth
    #[command(subcommand)]
    World(world::cli::WorldArgs),
    /// From the event log to the training table
    #[command(subcommand)]
    Events(EventsVerb),
    /// Feature specs and the online store
    #[command(subcommand)]
    Features(FeaturesVerb),
    /// Foreign data as events
    #[command(subcommand)]
    Import(ImportVerb),
}

fn main() -> ExitCode {
    cli::main(|| match Verb::parse() {
        Verb::World(args) => {
            cli::init_logging(args.common().verbose);
            world::cli::run(args)
        }
        Verb::Events(verb) => {
            cli::init_logging(verb.common().verbose);
            verb.run()
        }
        Verb::Features(verb) => {
            cli::init_logging(verb.common().verbose);
            verb.run()
        }
        Verb::Import(verb) => {
            cli::init_logging(verb.common().verbose);
            verb.run()
        }
    })
}
