//! `marquee` as a person meets it: verbs, help, hints, exit codes.

use std::process::Command;

use launch::verbs;
use marquee_tests::Bench;

#[test]
fn an_unknown_verb_is_refused_with_the_nearest_one() {
    let told = [
        "unknown verb `trian`",
        "did you mean `train`?",
        "marquee help",
    ];
    Bench::default().run(&["trian"]).refused(2, &told);
}

#[test]
fn help_shows_every_verb_and_every_verb_has_help() {
    let bench = Bench::default();
    let page = bench.run(&["help"]).ok().stdout;
    assert_eq!(page, bench.run(&["--help"]).ok().stdout);
    for verb in verbs::all() {
        assert!(page.contains(verb.name), "{}", verb.name);
        if verb.name == "quickstart" {
            continue;
        }
        let help = bench.run(&[verb.name, "--help"]).ok().stdout;
        for (subverb, _) in verb.subverbs {
            assert!(help.contains(subverb), "{} {subverb}: {help}", verb.name);
            let own = bench.run(&["help", verb.name, subverb]).ok().stdout;
            // What `launch run` starts has those flags.
            let shared = ["--root", "--json"].iter().all(|flag| own.contains(flag));
            assert!(
                shared || verb.name == "launch" && own.contains("--nproc"),
                "{own}"
            );
        }
    }
}

#[test]
fn no_verb_at_all_shows_the_page_as_a_usage_error() {
    let ended = Bench::default().run(&[]);
    assert_eq!(ended.code, 2);
    assert!(ended.stdout.contains("Usage: marquee VERB"));
}

#[test]
fn every_program_tells_the_same_version() {
    let bench = Bench::default();
    let version = bench.run(&["--version"]).ok().stdout;
    assert_eq!(
        version.trim(),
        format!("marquee {}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn completion_is_a_script_that_bash_can_read() {
    let script = Bench::default().run(&["completion", "bash"]).ok().stdout;
    for name in ["registry", "materialize", "--print-config"] {
        assert!(script.contains(name), "{name}");
    }
    let parsed = Command::new("bash")
        .args(["-n", "-c", &script])
        .status()
        .unwrap();
    assert!(parsed.success());
}

#[test]
fn doctor_tells_what_is_there_and_ends_as_it_tells() {
    let ended = Bench::default().run(&["doctor", "--json"]);
    let report = ended.json();
    let all_there = report["ok"].as_bool().unwrap();
    assert_eq!(ended.code, i32::from(!all_there));
    let checks = report["checks"].as_array().unwrap();
    for name in [
        "rust toolchain",
        "cmake",
        "libclang",
        "product photos",
        "gpu",
        "disk",
        "port of ads",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let state = check.unwrap_or_else(|| panic!("{name} is not looked at"))["state"].as_str();
        assert!(
            ["ok", "missing", "optional"].contains(&state.unwrap()),
            "{name}"
        );
    }
    let without_mend =
        |check: &&serde_json::Value| check["state"] != "ok" && check["mend"].is_null();
    assert_eq!(checks.iter().find(without_mend), None);
}

#[test]
fn a_missing_registry_is_told_with_the_mend() {
    let told = ["no registry at", "launch/quickstart"];
    Bench::default()
        .run(&["registry", "list"])
        .refused(1, &told);
}

#[test]
fn signals_reach_the_program_behind_the_front_door() {
    let bench = Bench::default();
    let server = bench.serve();
    assert!(bench.root.path().join("serving.addr").exists());
    assert_eq!(server.stop(), Some(0));
    assert!(!bench.root.path().join("serving.addr").exists());
}
