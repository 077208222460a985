//! Every verb of the platform and the program that runs it, in data-flow order.

/// A program beside `marquee`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Events, features, the synthetic world, imports.
    Pipeline,
    /// Training and evaluation.
    Trainer,
    /// Vectors and indices.
    Embedder,
    /// The ad server and its client.
    Serving,
    /// `marquee` itself.
    Launch,
}

impl Program {
    /// The programs that `marquee` hands verbs over to.
    pub const OTHERS: [Self; 4] = [Self::Pipeline, Self::Trainer, Self::Embedder, Self::Serving];

    /// Name of the binary.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Pipeline => "marquee-pipeline",
            Self::Trainer => "marquee-trainer",
            Self::Embedder => "marquee-embedder",
            Self::Serving => "marquee-serving",
            Self::Launch => "marquee",
        }
    }
}

/// A verb.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    /// What one types.
    pub name: &'static str,
    /// Who runs it.
    pub program: Program,
    /// One line for the help page.
    pub about: &'static str,
    /// Its own verbs, each with one line; empty if it has none.
    pub subverbs: &'static [(&'static str, &'static str)],
}

/// Verbs that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Heading on the help page.
    pub title: &'static str,
    /// The verbs.
    pub verbs: &'static [Verb],
}

const fn verb(name: &'static str, program: Program, about: &'static str) -> Verb {
    nest(name, program, about, &[])
}

const fn nest(
    name: &'static str,
    program: Program,
    about: &'static str,
    subverbs: &'static [(&'static str, &'static str)],
) -> Verb {
    Verb {
        name,
        program,
        about,
        subverbs,
    }
}

/// All verbs.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Events and features",
        verbs: &[
            nest(
                "world",
                Program::Pipeline,
                "The synthetic world with known truth",
                &[
                    ("generate", "Write a world's history to the event log"),
                    ("drive", "Play the world's clients against a running server"),
                    ("judge", "Compare a model's predictions with the truth"),
                ],
            ),
            nest(
                "import",
                Program::Pipeline,
                "Foreign data",
                &[
                    (
                        "movielens",
                        "MovieLens-100K with its real timestamps, as events",
                    ),
                    ("csv", "Rows of CSV as a training table"),
                    ("libfm", "Rows of libfm or libffm as a training table"),
                ],
            ),
            nest(
                "events",
                Program::Pipeline,
                "From the event log to the training table",
                &[
                    (
                        "process",
                        "Turn new events into rows, aggregates and a catalogue",
                    ),
                    ("show", "Print events of the log"),
                ],
            ),
            nest(
                "features",
                Program::Pipeline,
                "Feature specs and the online store",
                &[
                    ("lint", "Check a feature spec"),
                    ("show", "Print the features of a spec"),
                    ("diff", "Say what changed between two specs"),
                    ("sql", "Print a spec as SQL of an engine"),
                    ("compute", "Compute features of tables, as of each request"),
                    (
                        "join",
                        "Join rows with the newest values known at their times",
                    ),
                    (
                        "materialize",
                        "Publish online store, feature spec and catalogue",
                    ),
                ],
            ),
        ],
    },
    Group {
        title: "Models",
        verbs: &[
            verb(
                "train",
                Program::Trainer,
                "Train the model that a configuration describes",
            ),
            verb("eval", Program::Trainer, "Measure a registered click model"),
            verb(
                "gate",
                Program::Trainer,
                "Refuse a click model that is worse than what serves, or wrong for some",
            ),
            nest(
                "runs",
                Program::Trainer,
                "Runs of the data folder",
                &[
                    ("list", "All of them, with results"),
                    ("show", "One: circumstances, results, metrics over time"),
                    (
                        "compare",
                        "Several beside each other, on the terminal or a page",
                    ),
                ],
            ),
            nest(
                "launch",
                Program::Launch,
                "Runs of several processes",
                &[(
                    "run",
                    "Start the ranks of a training run, and start them again when one fails",
                )],
            ),
        ],
    },
    Group {
        title: "Vectors and index",
        verbs: &[
            verb(
                "embed",
                Program::Embedder,
                "Embed the pictures of the newest catalogue",
            ),
            nest(
                "index",
                Program::Embedder,
                "The nearest-neighbour index",
                &[
                    ("build", "Build and tune it; refused below its target"),
                    ("verify", "Measure the newest one again"),
                    (
                        "publish",
                        "Join the newest artifacts into a bundle and move a channel to it",
                    ),
                ],
            ),
        ],
    },
    Group {
        title: "Serving",
        verbs: &[
            verb("serve", Program::Serving, "Run the ad server"),
            verb(
                "ask",
                Program::Serving,
                "Ask a running server for ads, and see how it decided",
            ),
        ],
    },
    Group {
        title: "The whole",
        verbs: &[
            nest(
                "registry",
                Program::Launch,
                "Artifacts and what is live",
                &[
                    ("list", "Artifacts in the order of publishing"),
                    ("show", "One artifact: files, figures, lineage"),
                    ("channel", "What a channel serves"),
                    ("graph", "Lineage as a flowchart"),
                    ("promote", "Set an artifact's stage"),
                    ("gc", "Remove what no channel, stage or child needs"),
                ],
            ),
            verb(
                "report",
                Program::Launch,
                "The figures of all steps on one page",
            ),
            verb(
                "doctor",
                Program::Launch,
                "What this machine lacks, and the mend",
            ),
            verb(
                "quickstart",
                Program::Launch,
                "The whole loop, from nothing to the report",
            ),
            verb(
                "completion",
                Program::Launch,
                "Shell completion for bash, zsh or fish",
            ),
        ],
    },
];

/// All verbs in data-flow order.
pub fn all() -> impl Iterator<Item = &'static Verb> {
    GROUPS.iter().flat_map(|group| group.verbs)
}

/// The verb of a name.
pub fn find(name: &str) -> Option<&'static Verb> {
    all().find(|verb| verb.name == name)
}

/// The verb that someone may have meant.
pub fn nearest(name: &str) -> Option<&'static Verb> {
    let likeness = |verb: &Verb| strsim::jaro_winkler(name, verb.name);
    all()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|verb| likeness(verb) > 0.7)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_slip_finds_the_verb_that_was_meant() {
        let check = |typed, meant: Option<&str>| {
            assert_eq!(nearest(typed).map(|verb| verb.name), meant, "{typed}");
        };
        check("trian", Some("train"));
        check("indx", Some("index"));
        check("quickstrat", Some("quickstart"));
        check("zzz", None);
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = all().map(|verb| verb.name).collect();
        assert_eq!(names.len(), all().count());
    }
}
