//! `marquee completion bash|zsh|fish`.

use clap::{Args, Command};
use clap_complete::{Shell, generate};
use cli::CommonArgs;

use crate::{
    help,
    verbs::{self, Program, Verb},
};

/// Flags of `marquee completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Prints the completion script. `own` is the command of `marquee`'s own verbs.
pub fn run(args: &CompletionArgs, own: Command) {
    cli::print_line(script(args.shell, own).trim_end());
}

fn script(shell: Shell, own: Command) -> String {
    let mut script = Vec::new();
    generate(shell, &mut tree(own), "marquee", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The whole tree of verbs. Flags of other programs' verbs are theirs to know: here they have
/// those that all verbs share.
fn tree(own: Command) -> Command {
    let foreign = verbs::all().filter(|verb| verb.program != Program::Launch);
    foreign.fold(own.about(help::page()), |tree, verb| {
        tree.subcommand(stub(verb))
    })
}

fn stub(verb: &Verb) -> Command {
    let command = Command::new(verb.name).about(verb.about);
    if verb.subverbs.is_empty() {
        return CommonArgs::augment_args(command);
    }
    verb.subverbs
        .iter()
        .fold(command, |command, (name, about)| {
            command.subcommand(CommonArgs::augment_args(Command::new(*name).about(*about)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_every_verb_and_subverb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, Command::new("marquee"));
            for verb in verbs::all().filter(|verb| verb.program != Program::Launch) {
                assert!(script.contains(verb.name), "{shell}: {}", verb.name);
                for (name, _) in verb.subverbs {
                    assert!(script.contains(name), "{shell}: {} {name}", verb.name);
                }
            }
            assert!(script.contains("print-config"), "{shell}");
        }
    }
}
