//! Runs as they are kept, shown, compared, swept over, and sent to a real MLflow server.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use marquee_tests::{Bench, TRAIN, checkout};
use serde_json::{Value, json};

/// A server that has not started by then never will.
const PATIENCE: Duration = Duration::from_secs(300);

/// An MLflow server of our own on SQLite, on loopback: `launch/setup-engines` installs it.
struct Mlflow {
    server: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Mlflow {
    fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv-mlflow/bin/mlflow");
        let dir = tempfile::tempdir().unwrap();
        // A port that was free just now; the server takes none by itself.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let store = format!("sqlite:///{}/mlflow.db", dir.path().display());
        let server = Command::new(&program)
            .args(["server", "--backend-store-uri", &store, "--workers", "1"])
            .arg("--artifacts-destination")
            .arg(dir.path().join("artifacts"))
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; run launch/setup-engines", program.display())
            });
        let mut mlflow = Self {
            server,
            address,
            _dir: dir,
        };
        let started = Instant::now();
        while mlflow.ask("GET", "/health", None).is_none() {
            let ended = mlflow.server.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "the server does not answer");
            std::thread::yield_now();
        }
        mlflow
    }

    /// The body of an answer; none without one.
    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let body = body.map_or(String::new(), |body| body.to_string());
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.lines()
            .next()?
            .contains(" 200 ")
            .then(|| body.to_owned())
    }

    fn api(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.ask(method, &format!("/api/2.0/mlflow/{path}"), body);
        serde_json::from_str(&answer.unwrap_or_else(|| panic!("no answer of {path}"))).unwrap()
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        // Its workers are children of it.
        let id = self.server.id().to_string();
        Command::new("pkill").args(["-P", &id]).status().ok();
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

#[test]
fn an_mlflow_server_hears_of_all_that_a_run_is() {
    let bench = Bench::with_table();
    let mlflow = Mlflow::start();
    let server = format!("tracking.mlflow=\"http://{}\"", mlflow.address);
    let flags = ["--set", &server, "--set", "tracking.experiment=\"ctr\""];
    let report = bench.run(&[&TRAIN[..], &flags].concat()).ok().json();

    let experiment = mlflow.api("GET", "experiments/get-by-name?experiment_name=ctr", None);
    let id = &experiment["experiment"]["experiment_id"];
    let found = mlflow.api("POST", "runs/search", Some(json!({"experiment_ids": [id]})));
    let [run] = &found["runs"].as_array().unwrap()[..] else {
        panic!("{found}");
    };
    assert_eq!(run["info"]["status"], "FINISHED");
    assert_eq!(run["info"]["run_name"], "ctr-001");
    let param = |key: &str| {
        let params = run["data"]["params"].as_array().unwrap();
        params
            .iter()
            .find(|param| param["key"] == key)
            .map(|param| param["value"].clone())
    };
    assert_eq!(param("training.epochs"), Some(json!("2")));
    assert_eq!(param("model.architecture"), Some(json!("dcn_v2")));
    let tags = run["data"]["tags"].as_array().unwrap();
    let tag = |key: &str| {
        let found = tags.iter().find(|tag| tag["key"] == key);
        found.map(|tag| tag["value"].as_str().unwrap())
    };
    let info = bench.read_json("runs/ctr-001/run.json");
    let version = report["table_version"].to_string();
    assert_eq!(tag("table_version"), Some(&*version));
    assert_eq!(tag("device"), Some("cpu"));
    assert_eq!(tag("features"), info["spec"].as_str());
    assert!(tag("features").unwrap().len() >= 32, "{tags:?}");
    assert!(tag("overrides").unwrap().contains(&server), "{tags:?}");
    let git = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(checkout())
        .output()
        .unwrap();
    let commit = tag("mlflow.source.git.commit").unwrap_or_default();
    let head = String::from_utf8(git.stdout).unwrap();
    assert_eq!(commit.trim_end_matches("-dirty"), head.trim());

    let run_id = run["info"]["run_id"].as_str().unwrap();
    let query = format!("metrics/get-history?run_id={run_id}&metric_key=train/loss");
    let history = mlflow.api("GET", &query, None);
    let curve = report["curve"].as_array().unwrap();
    let sent = history["metrics"].as_array().unwrap();
    let points = |points: &[Value], key: &str| -> Vec<(u64, f64)> {
        let point = |point: &Value| {
            (
                point["step"].as_u64().unwrap(),
                point[key].as_f64().unwrap(),
            )
        };
        points.iter().map(point).collect()
    };
    assert_eq!(points(sent, "value"), points(curve, "loss"));
    let files = mlflow.api("GET", &format!("artifacts/list?run_id={run_id}"), None);
    for name in ["report.json", "config.resolved.toml", "reliability.svg"] {
        let files = files["files"].as_array().unwrap();
        assert!(
            files.iter().any(|file| file["path"] == name),
            "{name}: {files:?}"
        );
    }
}

#[test]
fn a_tracking_server_that_is_not_there_is_told_by_its_key() {
    let bench = Bench::with_table();
    let server = ["--set", "tracking.mlflow=\"http://127.0.0.1:1\""];
    let told = [
        "tracking.mlflow",
        "http://127.0.0.1:1",
        "leave the key empty",
    ];
    bench.run(&[&TRAIN[..], &server].concat()).refused(1, &told);
}

#[test]
fn runs_are_listed_shown_and_compared() {
    let bench = Bench::with_table();
    let none = bench.run(&["runs", "list"]).ok().stdout;
    assert!(none.contains("no runs"), "{none}");
    bench.run(&TRAIN).ok();
    let deeper = ["--set", "model.hidden=[16]", "--seed", "2"];
    let second = bench.run(&[&TRAIN[..], &deeper].concat()).ok().json();
    bench.run(&["train", "configs/prescorer.toml"]).ok();

    let list = bench.run(&["runs", "list"]).ok().stdout;
    for part in ["ctr-001", "ctr-002", "prescorer-001", "done"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let only = bench
        .run(&["runs", "list", "--kind", "ctr", "--json"])
        .ok()
        .json();
    let [one, other] = &only.as_array().unwrap()[..] else {
        panic!("{only}");
    };
    assert_eq!(
        one["info"]["overrides"],
        json!([
            "training.epochs=2",
            "training.batch_size=32",
            "checkpoint.every_steps=4"
        ])
    );
    assert_eq!(other["info"]["seed"], 2);
    assert_eq!(other["info"]["table_version"], second["table_version"]);
    assert_eq!(other["artifact"], second["artifact"]);
    assert_eq!(other["results"]["auc"], second["auc"]);

    let shown = bench.run(&["runs", "show", "ctr-002"]).ok().stdout;
    let log_loss = format!("{:.5}", second["log_loss"].as_f64().unwrap());
    for part in ["impressions version", "cpu × 1", &log_loss, "by step"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    bench
        .run(&["runs", "show", "ctr-009"])
        .refused(1, &["no run `ctr-009`", "ctr-001, ctr-002"]);

    let page = bench.root.path().join("page.html");
    let page = page.to_str().unwrap();
    let told = bench
        .run(&["runs", "compare", "ctr-001", "ctr-002", "--html", page])
        .ok()
        .stdout;
    assert!(
        told.contains("model.hidden") && told.contains("[256, 128]"),
        "{told}"
    );
    assert!(
        !told.contains("model.num_cross_layers"),
        "what is the same: {told}"
    );
    let page = std::fs::read_to_string(page).unwrap();
    for part in ["<svg", "train/loss", "valid/auc", "model.hidden", "ctr-002"] {
        assert!(page.contains(part), "{part}");
    }
}

/// Of the runs of a data folder.
fn most_at_once(bench: &Bench) -> usize {
    let runs = bench.run(&["runs", "list", "--json"]).ok().json();
    let span = |run: &Value| {
        let report = Path::new(run["dir"].as_str().unwrap()).join("report.json");
        let ended = std::fs::metadata(report).unwrap().modified().unwrap();
        let ended = ended.duration_since(std::time::UNIX_EPOCH).unwrap();
        let began = run["info"]["started_us"].as_u64().unwrap();
        (began, ended.as_micros() as u64)
    };
    let spans: Vec<(u64, u64)> = runs.as_array().unwrap().iter().map(span).collect();
    let at = |time: u64| {
        spans
            .iter()
            .filter(move |(began, ended)| (*began..*ended).contains(&time))
    };
    let counts = spans.iter().map(|(began, _)| at(*began).count());
    counts.max().unwrap()
}

#[test]
fn a_sweep_finds_the_best_and_does_nothing_twice() {
    let bench = Bench::with_table();
    let sweep = bench.root.path().join("wide.toml");
    let text = r#"
        base = "configs/ctr.toml"
        parallel = 2
        threads = 1
        [strategy]
        kind = "successive_halving"
        trials = 4
        resource = "training.epochs"
        least = 1
        most = 2
        factor = 2
        [parameters]
        "training.learning_rate" = { choice = [1e-9, 1e-3, 3e-3] }
        "tables.embedding_dim" = { integer = [4, 8] }
        "training.batch_size" = { choice = [64] }
    "#;
    std::fs::write(&sweep, text).unwrap();
    let sweep = sweep.to_str().unwrap();
    let found = bench
        .run(&["train", "--sweep", sweep, "--json"])
        .ok()
        .json();
    let trials = found["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 4 + 2);
    let value = |trial: &Value| trial["outcome"]["value"].as_f64().unwrap();
    let last = trials[4..].iter().map(value).fold(f64::INFINITY, f64::min);
    assert_eq!(value(&found["best"]), last);
    assert_eq!(found["best"]["parameters"]["training.epochs"], 2);
    assert_eq!(most_at_once(&bench), 2, "`parallel` runs at a time");
    // What takes the newest model takes the best.
    let listed = ["registry", "list", "--kind", "ctr", "--json"];
    let models = bench.run(&listed).ok().json();
    let newest = &models.as_array().unwrap().last().unwrap()["digest"];
    assert_eq!(newest, &found["best"]["outcome"]["report"]["artifact"]);
    let dir = Path::new(found["dir"].as_str().unwrap());
    let done = || std::fs::read_to_string(dir.join("trials.jsonl")).unwrap();
    let before = done();
    let again = bench.run(&["train", "--sweep", sweep]).ok().stdout;
    assert_eq!(done(), before);
    assert!(
        again.contains("best valid_log_loss") && dir.join("sweep.svg").exists(),
        "{again}"
    );
    let shipped = [
        "train",
        "--sweep",
        "configs/sweeps/ctr.toml",
        "--print-config",
    ];
    let shipped = bench.run(&shipped).ok().stdout;
    assert!(shipped.contains("successive_halving"), "{shipped}");
    for (set, told) in [
        ("strategy.trials=0", "strategy.trials is 0"),
        ("threads=0", "`threads` is 0"),
    ] {
        let nothing = ["train", "--sweep", sweep, "--set", set];
        bench.run(&nothing).refused(2, &[told]);
    }
}

#[test]
fn a_sweep_that_is_stopped_goes_on_where_it_was() {
    let bench = Bench::with_table();
    let write = |name: &str, text: &str| {
        let path = bench.root.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let random = write(
        "random.toml",
        r#"
        base = "configs/ctr.toml"
        strategy = { kind = "random", trials = 3 }
        [parameters]
        "training.learning_rate" = { log_uniform = [1e-4, 1e-2] }
        "training.batch_size" = { choice = [32] }
        "training.epochs" = { choice = [3] }
        "#,
    );
    let sweep = ["train", "--sweep", &random, "--json"];
    let stopped = bench.command(&sweep).stdout(Stdio::null()).spawn();
    let mut stopped = stopped.unwrap();
    // Each trial that is done is a line.
    let done = || {
        let folders = std::fs::read_dir(bench.root.path().join("sweeps"));
        let mut folders = folders.into_iter().flatten();
        let file = folders.next()?.ok()?.path().join("trials.jsonl");
        std::fs::read_to_string(file)
            .ok()
            .filter(|text| text.ends_with('\n'))
    };
    while done().is_none() {
        assert!(stopped.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::yield_now();
    }
    let pid = stopped.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert_eq!(stopped.wait().unwrap().code(), Some(75));
    let before = done().unwrap();
    assert!(before.lines().count() < 3, "{before}");
    let found = bench.run(&sweep).ok().json();
    let trials = found["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 3);
    assert!(done().unwrap().starts_with(&before));
    let runs = bench.run(&["runs", "list", "--json"]).ok().json();
    let runs = runs.as_array().unwrap();
    let finished = runs.iter().filter(|run| run["artifact"].is_string());
    assert_eq!(finished.count(), 3, "{runs:#?}");

    let grid = write(
        "grid.toml",
        r#"
        base = "configs/prescorer.toml"
        metric = "valid_auc"
        maximise = true
        [parameters]
        leaves = { choice = [2, 8] }
        trees = { choice = [5, 40] }
        "#,
    );
    let found = bench
        .run(&["train", "--sweep", &grid, "--json"])
        .ok()
        .json();
    let trials = found["trials"].as_array().unwrap();
    let value = |trial: &Value| trial["outcome"]["value"].as_f64().unwrap();
    assert_eq!(trials.len(), 4);
    let most = trials.iter().map(value).fold(0.0, f64::max);
    assert_eq!(value(&found["best"]), most);
    let mut tried: Vec<String> = trials
        .iter()
        .map(|it| it["parameters"].to_string())
        .collect();
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 4, "{tried:?}");
}

#[test]
fn rows_of_csv_are_imported_and_learnt_from() {
    let bench = Bench::default();
    let dir = bench.root.path();
    let mut parts = [String::new(), String::new(), String::new()];
    for (part, text) in parts.iter_mut().enumerate() {
        text.push_str("label,site,age,last\n");
        for row in 0..[4000, 600, 600][part] {
            // A click where the site's number and the age are both even or both odd.
            let (site, age) = ((row * 7 + part) % 40, (row * 11) % 9);
            let (label, last) = (u8::from((site + age) % 2 == 0), (row * 13) % 40);
            text.push_str(&format!("{label},s{site},{age},s{last}\n"));
        }
    }
    for (name, text) in ["train", "valid", "test"].iter().zip(parts) {
        std::fs::write(dir.join(format!("{name}.csv")), text).unwrap();
    }
    let schema = dir.join("schema.toml");
    // Beside the schema.
    let file = |name: &str| format!("{name} = [\"{name}.csv\"]\n");
    let text = format!(
        "{}{}{}table = \"sites\"\nsparse = [{{ column = \"site\" }}, {{ column = \"age\" }}, {{ column = \"last\", vocabulary = \"site\" }}]\n",
        file("train"),
        file("valid"),
        file("test")
    );
    std::fs::write(&schema, text).unwrap();
    let schema = schema.to_str().unwrap();
    let told = bench.run(&["import", "csv", schema]).ok().stdout;
    assert!(
        told.contains("4000 training, 600 validation and 600 test rows"),
        "{told}"
    );
    assert!(told.contains("site: 41 ids"), "{told}");
    let train = [
        "train",
        "configs/ctr.toml",
        "--json",
        "--set",
        "table=sites",
        "--set",
        "training.epochs=8",
        "--set",
        "training.batch_size=64",
        "--set",
        "training.learning_rate=0.003",
        "--set",
        "tables.optimizer.learning_rate=0.1",
        "--set",
        "tables.shared_by.sites=[\"site\",\"last\"]",
        "--set",
        "model={architecture=\"deep_fm\",hidden=[32]}",
    ];
    let report = bench.run(&train).ok().json();
    assert!(report["auc"].as_f64().unwrap() > 0.95, "{report}");
    assert_eq!(report["train_rows"], 4000);
    // From its files it says the same, with one table for both features.
    let eval = ["eval", "configs/ctr.toml", "--json", "--set", "table=sites"];
    assert_eq!(bench.run(&eval).ok().json()["auc"], report["auc"]);
    let of_a_member = [&train[..], &["--set", "tables.rows_of.last=50"]].concat();
    let parts = ["tables.rows_of names `last`", "say it of `sites`"];
    bench.run(&of_a_member).refused(1, &parts);
    bench
        .run(&["import", "csv", schema])
        .refused(1, &["is a table already"]);
}

#[test]
fn rows_of_libfm_with_several_entries_or_none_of_a_column_are_learnt_from() {
    let bench = Bench::default();
    let dir = bench.root.path();
    for (name, rows) in [("train", 4000), ("valid", 600), ("test", 600)] {
        let mut text = String::new();
        for row in 0..rows {
            // A person of 40, and up to two of 20 tags; a click where the last tag's number is even.
            let tags: Vec<usize> = (0..row % 3).map(|at| (row * 7 + at * 11) % 20).collect();
            let label = u8::from(tags.last().is_some_and(|tag| tag % 2 == 0));
            text.push_str(&label.to_string());
            for tag in tags.iter().rev().take(1) {
                text.push_str(&format!(" {}:1", 40 + tag));
            }
            text.push_str(&format!(" {}:1", row * 3 % 40));
            for tag in tags.iter().rev().skip(1) {
                text.push_str(&format!(" {}:1", 60 + tag));
            }
            text.push('\n');
        }
        std::fs::write(dir.join(name), text).unwrap();
    }
    let schema = dir.join("schema.toml");
    let text = r#"
        table = "tagged"
        train = ["train"]
        valid = ["valid"]
        test = ["test"]
        columns = ["person", "tags"]
        first_index = [0, 40]
        sparse = [{ column = "person" }, { column = "tags", separator = " " }]
    "#;
    std::fs::write(&schema, text).unwrap();
    let schema = schema.to_str().unwrap();
    let told = bench.run(&["import", "libfm", schema]).ok().stdout;
    assert!(told.contains("tags: 41 ids"), "{told}");
    let train = [
        "train",
        "configs/ctr.toml",
        "--json",
        "--set",
        "table=tagged",
        "--set",
        "training.epochs=6",
        "--set",
        "training.batch_size=64",
        "--set",
        "tables.optimizer.learning_rate=0.1",
        "--set",
        "model={architecture=\"fm\"}",
    ];
    let report = bench.run(&train).ok().json();
    assert!(report["auc"].as_f64().unwrap() > 0.95, "{report}");
    // Rows that were imported have no feature spec behind them.
    let artifact = report["artifact"].as_str().unwrap();
    let shown = ["registry", "show", artifact, "--json"];
    assert_eq!(bench.run(&shown).ok().json()["parents"], json!([]));
}

#[test]
fn a_model_of_a_new_spec_is_compared_with_one_of_the_old_by_the_same_impressions() {
    let bench = Bench::with_table();
    let shipped = std::fs::read_to_string(checkout().join("configs/features.toml")).unwrap();
    let spec = bench.root.path().join("features.toml");
    std::fs::write(&spec, shipped.replace("log1p(bid)", "bid")).unwrap();
    let features = format!("features={}", spec.display());
    let process = [
        "events",
        "process",
        "--flush",
        "--set",
        "table=second",
        "--set",
        &features,
    ];
    bench.run(&process).ok();
    // The new spec is the newest, and the parent of its own models alone.
    bench.run(&["features", "materialize"]).ok();
    let of_second = ["--set", "table=second", "--set", &features];
    bench
        .run(&[&["features", "materialize"][..], &of_second].concat())
        .ok();
    let train = |table: &str| {
        let table = format!("table={table}");
        let train = [&TRAIN[..], &["--set", &table]].concat();
        bench.run(&train).ok().json()
    };
    let (old, new) = (train("impressions"), train("second"));
    let digest = |report: &Value| report["artifact"].as_str().unwrap().to_owned();
    let (first, second) = (digest(&old), digest(&new));
    let shown = |digest: &str| {
        let show = ["registry", "show", digest, "--json"];
        bench.run(&show).ok().json()
    };
    for (model, run) in [(&first, "ctr-001"), (&second, "ctr-002")] {
        let model = shown(model);
        let [spec] = &model["parents"].as_array().unwrap()[..] else {
            panic!("{model}");
        };
        let info = bench.read_json(&format!("runs/{run}/run.json"));
        let spec = shown(spec.as_str().unwrap());
        assert_eq!(spec["labels"]["feature_digest"], info["spec"]);
        assert_eq!(model["labels"]["config"].as_str().map(str::len), Some(64));
    }
    let gate = |against_table: &str| {
        let keys = [
            "table=second".to_owned(),
            format!("against_table={against_table}"),
            "rules={calibration=0.9,slice_calibration=0.9,max_auc_loss=0.5,max_entropy_rise=0.5}"
                .to_owned(),
        ];
        let sets = keys.iter().flat_map(|key| ["--set", key]);
        let gate = ["gate", "--json", "--model", &second, "--against", &first];
        bench.run(&gate.into_iter().chain(sets).collect::<Vec<_>>())
    };
    gate("\"\"").refused(1, &["as `against_table`", &first[..12]]);
    gate("second").refused(1, &["against_table second holds the features of spec"]);
    let passed = gate("impressions").ok().json();
    assert_eq!(passed["left_out"], 0);
    // Each is as good as on the rows of its own table.
    for (measures, report) in [("measures", new), ("against_measures", old)] {
        let found = passed[measures]["auc"]["value"].as_f64().unwrap();
        assert!(
            (found - report["auc"].as_f64().unwrap()).abs() < 1e-9,
            "{passed} {report}"
        );
    }
}

#[test]
fn a_model_is_gated_promoted_and_what_nothing_needs_is_collected() {
    let bench = Bench::with_table();
    let train = |seed: &str| {
        let report = bench
            .run(&[&TRAIN[..], &["--seed", seed]].concat())
            .ok()
            .json();
        report["artifact"].as_str().unwrap().to_owned()
    };
    let (first, second) = (train("1"), train("2"));
    let promote =
        |digest: &str, stage: &str| bench.run(&["registry", "promote", &digest[..12], stage]);
    promote(&second, "shadow").refused(1, &["the gate has not judged", "marquee gate --model"]);
    let wide = [
        "--set",
        "rules.calibration=0.5",
        "--set",
        "rules.slice_calibration=0.9",
        "--set",
        "rules.max_auc_loss=0.2",
        "--set",
        "rules.max_entropy_rise=0.2",
    ];
    let gate = ["gate", "--model", &second, "--against", &first, "--json"];
    let passed = bench
        .run(&[&gate[..], &wide, &["--promote"]].concat())
        .ok()
        .json();
    assert_eq!(passed["refused"], json!([]));
    assert_eq!(passed["against"], first);
    assert!(passed["differences"]["auc"]["low"].is_number(), "{passed}");
    let genres = passed["slices"].as_array().unwrap().iter();
    assert!(genres.filter(|slice| slice["by"] == "genre").count() > 1);
    let page = bench.root.path().join("reports/gate.html");
    assert!(std::fs::read_to_string(page).unwrap().contains("Passed."));
    // Nothing is known of auctions that no server held, and the rule does not retire a model for that.
    assert_eq!(passed["revenue"], Value::Null);
    let earns = ["--promote", "--set", "rules.least_revenue_ratio=0.9"];
    let another = ["gate", "--model", &first, "--against", &second];
    bench.run(&[&another[..], &wide, &earns].concat()).refused(
        1,
        &[
            "rules.least_revenue_ratio",
            "no bids in the table",
            "`served_pctr`",
        ],
    );
    // More rows than there are: nothing could be said.
    let strict = [
        "gate",
        "--model",
        &first,
        "--promote",
        "--set",
        "rules.min_rows=1000000",
    ];
    bench
        .run(&strict)
        .refused(3, &["refused by the gate", "rules.min_rows"]);

    let stage = |digest: &str| {
        let shown = bench
            .run(&["registry", "show", digest, "--json"])
            .ok()
            .json();
        shown["stage"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (stage(&first), stage(&second)),
        ("retired".to_owned(), "shadow".to_owned())
    );
    promote(&second, "live").refused(1, &["may not become live"]);
    promote(&second, "canary").ok();
    assert_eq!(stage(&second), "canary");
    // What was refused stays out until a gate lets it pass.
    promote(&first, "shadow").refused(3, &["rules.min_rows", "judges it again"]);
    let shown = bench.run(&["registry", "show", &first]).ok().stdout;
    assert!(shown.contains("the gate refused it"), "{shown}");
    let graph = bench.run(&["registry", "graph"]).ok().stdout;
    assert!(
        graph.starts_with("flowchart LR") && graph.contains("canary"),
        "{graph}"
    );

    let third = train("3");
    let look = ["registry", "gc", "--keep", "1", "--hours", "0"];
    let told = bench.run(&look).ok().stdout;
    assert!(told.contains("1 artifacts that nothing needs"), "{told}");
    bench.run(&[&look[..], &["--remove"]].concat()).ok();
    bench
        .run(&["registry", "show", &first])
        .refused(1, &["no artifact"]);
    for kept in [&second, &third] {
        bench.run(&["registry", "show", kept]).ok();
    }
}
