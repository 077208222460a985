//! Configuration as every verb treats it: files, overrides, hints, exit codes.

use std::fs;

use marquee_tests::{Bench, checkout};

/// Each shipped configuration and the verb that reads it.
const CONFIGS: [(&[&str], &str); 18] = [
    (&["world", "generate"], "configs/world.toml"),
    (&["world", "generate"], "configs/world-small.toml"),
    (&["world", "generate"], "configs/world-procedural.toml"),
    (&["events", "process"], "configs/pipeline.toml"),
    (&["events", "process"], "configs/movielens/pipeline.toml"),
    (&["import", "movielens"], "configs/movielens/import.toml"),
    (&["train"], "configs/movielens/ctr.toml"),
    (&["train"], "configs/movielens/ctr-deep_fm.toml"),
    (&["train"], "configs/movielens/ctr-final_mlp.toml"),
    (&["train"], "configs/ctr.toml"),
    (&["train"], "configs/cvr.toml"),
    (&["train"], "configs/two-tower.toml"),
    (&["train"], "configs/prescorer.toml"),
    (&["train"], "configs/visual.toml"),
    (&["gate"], "configs/gate.toml"),
    (&["embed"], "configs/embed.toml"),
    (&["index", "build"], "configs/index.toml"),
    (&["serve"], "configs/serving.toml"),
];

#[test]
fn what_print_config_shows_is_a_configuration_that_shows_itself() {
    let bench = Bench::default();
    let copy = bench.root.path().join("copy.toml");
    let copy = copy.to_str().unwrap();
    for (verb, config) in CONFIGS {
        let shown = bench
            .run(&[verb, &[config, "--print-config"]].concat())
            .ok()
            .stdout;
        shown
            .parse::<toml::Table>()
            .unwrap_or_else(|error| panic!("{config}: {error}"));
        fs::write(copy, &shown).unwrap();
        let again = bench
            .run(&[verb, &["--config", copy, "--print-config"]].concat())
            .ok()
            .stdout;
        assert_eq!(again, shown, "{config}");
    }
}

#[test]
fn the_gate_knows_the_reserve_that_the_server_asks_for() {
    let read = |config: &str| {
        let text = fs::read_to_string(checkout().join(config)).unwrap();
        text.parse::<toml::Table>().unwrap()
    };
    let (gate, serving) = (read("configs/gate.toml"), read("configs/serving.toml"));
    let of_server = &serving["auction"]["reserve_cpc_micros"];
    assert_eq!(&gate["reserve_cpc_micros"], of_server);
}

#[test]
fn every_shipped_configuration_is_looked_at_here() {
    let mut shipped = 0;
    for folder in ["configs", "configs/movielens"] {
        for entry in fs::read_dir(checkout().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = format!("{folder}/{name}");
            let listed = CONFIGS.iter().any(|(_, config)| *config == path);
            let other =
                ["features.toml", "report.toml", "report-small.toml"].contains(&name.as_str());
            assert!(!name.ends_with(".toml") || other || listed, "{path}");
            shipped += usize::from(listed);
        }
    }
    assert_eq!(shipped, CONFIGS.len());
}

#[test]
fn an_unknown_key_is_refused_by_every_verb() {
    let bench = Bench::default();
    for (verb, config) in CONFIGS {
        let args = [verb, &[config, "--set", "no_such_key=1"]].concat();
        bench.run(&args).refused(2, &["no_such_key"]);
    }
}

#[test]
fn a_misspelt_key_is_told_with_file_line_and_the_nearest_one() {
    let bench = Bench::default();
    let path = bench.root.path().join("mine.toml");
    fs::write(&path, "seed = 7\nusres = 30\n").unwrap();
    let told = ["mine.toml, line 2", "did you mean `users`?"];
    bench
        .run(&["world", "generate", path.to_str().unwrap()])
        .refused(2, &told);
    bench
        .run(&["index", "build", "--set", "conectivity=8"])
        .refused(2, &["did you mean `connectivity`?"]);
}

#[test]
fn a_missing_file_is_told_by_name() {
    let bench = Bench::default();
    for verb in [
        &["train"][..],
        &["serve"],
        &["events", "process"],
        &["report"],
    ] {
        let args = [verb, &["nowhere.toml"]].concat();
        bench
            .run(&args)
            .refused(2, &["reading configuration nowhere.toml"]);
    }
}

#[test]
fn an_override_wins_over_the_file() {
    let bench = Bench::default();
    let args = [
        "train",
        "configs/ctr.toml",
        "--set",
        "training.batch_size=77",
        "--seed",
        "9",
    ];
    let shown = bench
        .run(&[&args[..], &["--print-config"]].concat())
        .ok()
        .stdout;
    let config: toml::Table = shown.parse().unwrap();
    assert_eq!(config["training"]["batch_size"].as_integer(), Some(77));
    assert_eq!(config["seed"].as_integer(), Some(9));
}

#[test]
fn a_flag_that_a_training_cannot_follow_is_refused_not_overlooked() {
    let bench = Bench::default();
    let run = bench.root.path().join("runs/ctr/1");
    let run = run.to_str().unwrap();
    let trees = ["train", "configs/prescorer.toml"];
    let sweep = ["train", "--sweep", "configs/sweeps/ctr.toml"];
    for training in [&trees[..], &sweep] {
        for flag in [["--resume", run], ["--device", "wgpu"]] {
            bench
                .run(&[training, &flag].concat())
                .refused(2, &[flag[0]]);
        }
    }
    // What names no run is nothing to be refused.
    let shown = [&trees[..], &["--resume", "auto", "--print-config"]].concat();
    bench.run(&shown).ok();
}
