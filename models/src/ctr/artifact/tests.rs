use std::fs;

use features::Jagged;
use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::ctr::network::{DcnV2Config, MmoeConfig};

fn model() -> CtrModel {
    model_of(NetworkConfig::DcnV2(DcnV2Config {
        hidden: vec![8],
        num_cross_layers: 1,
        ..DcnV2Config::default()
    }))
}

fn two_tasks() -> CtrModel {
    model_of(NetworkConfig::Mmoe(MmoeConfig {
        num_experts: 2,
        expert_hidden: vec![8],
        tower_hidden: vec![4],
        ..MmoeConfig::default()
    }))
}

fn model_of(config: NetworkConfig) -> CtrModel {
    let digest = "d".to_owned();
    let schema: Schema = serde_json::from_value(serde_json::json!({
        "digest": digest,
        "dense": [{"name": "a"}, {"name": "b"}],
        "sparse": [{"name": "s", "multi": false}, {"name": "m", "multi": true}],
    }))
    .unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut table = |feature: &str, rows: usize| EmbeddingTable {
        name: feature.into(),
        features: vec![feature.into()],
        rows,
        dim: 4,
        pooling: Pooling::Mean,
        known: None,
        weights: (0..rows * 4)
            .map(|_| random.random_range(-1.0..1.0))
            .collect(),
    };
    let mut tables = vec![table("s", 10), table("m", 7)];
    // The rows of the batch have 0 to 3.
    tables[1].known = Some(KnownIds::new(vec![
        1,
        2,
        3,
        1 << 40,
        u64::MAX - 1,
        u64::MAX,
    ]));
    let fields = tables.iter().map(|table| (table.name.clone(), table.dim));
    let layout = InputLayout::new(["a", "b"].map(str::to_owned), fields);
    let network = config.init(&layout, &mut random, &Default::default());
    let normalisation = Normalisation {
        mean: vec![0.5, 1.0],
        std: vec![2.0, 0.5],
    };
    CtrModel::new(
        config,
        schema,
        normalisation,
        tables,
        network,
        Default::default(),
    )
}

fn batch() -> FeatureBatch {
    let mut sparse = vec![Jagged::default(); 2];
    for row in 0..5u64 {
        sparse[0].push_row(&[row * 1_000_003]);
        sparse[1].push_row(&(0..row).collect::<Vec<_>>());
    }
    FeatureBatch {
        num_rows: 5,
        num_dense: 2,
        dense: (0..10).map(|at| at as f32 * 0.1).collect(),
        sparse,
    }
}

#[test]
fn a_model_survives_its_files_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model();
    let isotonic = Calibration::Isotonic {
        logits: vec![-0.1, 0.1, 0.2],
        corrected: vec![-3.3, 0.7, 0.7],
    };
    let platt = Calibration::Platt {
        scale: 1.1,
        offset: -0.2,
    };
    for calibration in [platt, isotonic] {
        model.calibration = calibration;
        model.save(dir.path()).unwrap();
        let loaded = CtrModel::load(dir.path()).unwrap();
        let scores = model.score(&batch()).unwrap();
        assert_eq!(loaded.score(&batch()).unwrap(), scores);
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
        assert_ne!(scores[0], scores[1]);
    }
}

/// Both features read the table of `m`.
fn shared() -> CtrModel {
    let mut model = model();
    model.tables.remove(0);
    model.tables[0].name = "both".into();
    model.tables[0].features = vec!["s".into(), "m".into()];
    model.table_of = vec![0, 0];
    model
}

#[test]
fn a_shared_table_is_stored_once_and_read_by_each_of_its_features() {
    let dir = tempfile::tempdir().unwrap();
    let model = shared();
    model.save(dir.path()).unwrap();
    let loaded = CtrModel::load(dir.path()).unwrap();
    assert_eq!(loaded.tables, model.tables);
    let scores = model.score(&batch()).unwrap();
    assert_eq!(loaded.score(&batch()).unwrap(), scores);
    // The same rows in two tables.
    let mut apart = shared();
    let mut copy = apart.tables[0].clone();
    copy.name = "copy".into();
    apart.tables.push(copy);
    apart.table_of = vec![1, 0];
    assert_eq!(apart.score(&batch()).unwrap(), scores);
    let bytes = fs::read(dir.path().join(TABLES_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    assert_eq!(names, ["both", "ids:both"]);
}

#[test]
fn files_of_before_there_were_shared_tables_are_read() {
    let dir = tempfile::tempdir().unwrap();
    model().save(dir.path()).unwrap();
    let path = dir.path().join(MODEL_FILE);
    let mut file: serde_json::Value = files::read_json(&path).unwrap();
    for table in file["tables"].as_array_mut().unwrap() {
        let table = table.as_object_mut().unwrap();
        table.remove("features").unwrap();
        let name = table.remove("name").unwrap();
        table.insert("feature".into(), name);
    }
    files::write_json(&path, &file).unwrap();
    let loaded = CtrModel::load(dir.path()).unwrap();
    let scores = model().score(&batch()).unwrap();
    assert_eq!(loaded.score(&batch()).unwrap(), scores);
}

#[test]
fn a_model_of_two_tasks_scores_clicks_as_any_other_and_conversions_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = two_tasks();
    model.calibration = Calibration::Platt {
        scale: 1.1,
        offset: -0.2,
    };
    model.delay = Some(ConversionDelay {
        rate: 0.125,
        window: Some(96.0),
    });
    model.save(dir.path()).unwrap();
    let loaded = CtrModel::load(dir.path()).unwrap();
    assert_eq!(loaded.delay, model.delay);
    let (clicks, both) = (
        loaded.score(&batch()).unwrap(),
        loaded.score_conversions(&batch()).unwrap(),
    );
    assert_eq!(clicks.len(), 5);
    assert!(both.iter().map(|[click, _]| click).eq(&clicks));
    assert_eq!(both, model.score_conversions(&batch()).unwrap());
    // The second logit of each row, which the calibration of clicks does not touch.
    let logits = loaded.forward(&batch()).unwrap();
    for (row, [_, conversion]) in both.iter().enumerate() {
        let wanted = 1.0 / (1.0 + (-logits[2 * row + 1]).exp());
        assert!((conversion - wanted).abs() < 1e-6);
        assert!((loaded.logits(&batch()).unwrap()[row] - logits[2 * row]).abs() < 1e-9);
    }
    assert!(both.iter().any(|[click, conversion]| click != conversion));
}

#[test]
fn a_model_of_clicks_says_nothing_of_conversions() {
    let error = model().score_conversions(&batch()).unwrap_err();
    assert!(matches!(error, CtrModelError::ClicksAlone), "{error}");
}

#[test]
fn ids_that_do_not_rise_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model();
    model.tables[1].known = Some(KnownIds::new(vec![1, 2, 3, 9, 9, 10]));
    model.save(dir.path()).unwrap();
    let error = CtrModel::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(TABLES_FILE) && error.contains("`ids:m` has 9 before 9"),
        "{error}"
    );
}

#[test]
fn equal_models_give_equal_files() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for _ in 0..4 {
        model().save(one.path()).unwrap();
        model().save(two.path()).unwrap();
        for file in [MODEL_FILE, DENSE_FILE, TABLES_FILE] {
            let bytes = |dir: &tempfile::TempDir| fs::read(dir.path().join(file)).unwrap();
            assert!(bytes(&one) == bytes(&two), "{file}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut ModelFile), what: &str| {
        model().save(dir.path()).unwrap();
        let path = dir.path().join(MODEL_FILE);
        let mut file: ModelFile = files::read_json(&path).unwrap();
        change(&mut file);
        files::write_json(&path, &file).unwrap();
        let error = CtrModel::<Cpu>::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(MODEL_FILE) && error.contains(what),
            "{error}"
        );
    };
    refused(
        &|file| file.normalisation.std[1] = 0.0,
        "normalisation of b",
    );
    refused(&|file| file.normalisation.mean.truncate(1), "1 means");
    let isotonic = |logits: &[f32], corrected: &[f32]| Calibration::Isotonic {
        logits: logits.to_vec(),
        corrected: corrected.to_vec(),
    };
    for calibration in [
        Calibration::Platt {
            scale: f32::MAX,
            offset: 0.0,
        },
        isotonic(&[], &[]),
        isotonic(&[1.0, 2.0], &[1.0]),
        isotonic(&[1.0, 1.0], &[1.0, 2.0]),
        isotonic(&[1.0, 2.0], &[2.0, 1.0]),
    ] {
        let change = |file: &mut ModelFile| file.calibration = calibration.clone();
        refused(&change, "calibration");
    }
    for (rate, window) in [(0.0, None), (-1.0, None), (1.0, Some(-2.0))] {
        let delay = Some(ConversionDelay { rate, window });
        refused(&|file| file.delay = delay, "delay");
    }
    refused(&|file| file.tables.truncate(1), "`m` has no table");
    let named = |at: usize, feature: &'static str| {
        move |file: &mut ModelFile| file.tables[at].features.push(feature.into())
    };
    refused(&named(1, "s"), "`s` has two tables");
    refused(&named(1, "x"), "`x`, which is not a sparse feature");
    refused(
        &|file| {
            file.network = NetworkConfig::Fm(Default::default());
            file.tables[0].dim = 3;
        },
        "`s` has rows of 3 values and `m` of 4",
    );
}

#[test]
fn a_row_scores_the_same_alone_and_in_company() {
    let (model, batch) = (model(), batch());
    let together = model.score(&batch).unwrap();
    for (row, score) in together.iter().enumerate() {
        let alone = model.score(&batch.gather(&[row])).unwrap();
        assert!((alone[0] - score).abs() < 1e-6);
    }
}

#[test]
fn damaged_or_missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (file, damage) in [(TABLES_FILE, 20), (DENSE_FILE, 20), (MODEL_FILE, 5)] {
        model().save(dir.path()).unwrap();
        let path = dir.path().join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - damage]).unwrap();
        let error = CtrModel::<Cpu>::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::remove_file(&path).unwrap();
        let error = CtrModel::<Cpu>::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

proptest! {
    #[test]
    fn a_byte_that_is_changed_added_or_lost_never_panics(
        file in prop::sample::select(vec![MODEL_FILE, DENSE_FILE, TABLES_FILE]),
        at in any::<prop::sample::Index>(), value: u8, how in 0..3u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        model().save(dir.path()).unwrap();
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = value,
            1 => bytes.insert(at, value),
            _ => drop(bytes.remove(at)),
        }
        fs::write(&path, &bytes).unwrap();
        match CtrModel::<Cpu>::load(dir.path()) {
            Ok(model) => drop(model.score(&batch())),
            // What does not fit another file may be told of that one.
            Err(error) => {
                let told = error.to_string();
                let named = [MODEL_FILE, DENSE_FILE, TABLES_FILE].iter().any(|file| told.contains(file));
                prop_assert!(named, "{}", told);
            }
        }
    }
}

#[test]
fn weights_of_another_network_are_told_by_name() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    model().save(dir.path()).unwrap();
    two_tasks().save(other.path()).unwrap();
    fs::copy(other.path().join(DENSE_FILE), dir.path().join(DENSE_FILE)).unwrap();
    let error = CtrModel::<Cpu>::load(dir.path()).unwrap_err();
    let told = std::error::Error::source(&error).map_or(error.to_string(), |it| it.to_string());
    let told = format!("{error}: {told}");
    assert!(
        told.contains(DENSE_FILE) && told.contains("the weights do not fit the model: `"),
        "{told}"
    );
    assert!(
        told.contains("is missing, and ") && !told.contains("ApplyResult"),
        "{told}"
    );
}

#[test]
fn weights_that_are_no_numbers_and_headers_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in [TABLES_FILE, DENSE_FILE] {
        model().save(dir.path()).unwrap();
        let path = dir.path().join(file);
        let bytes = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = CtrModel::<Cpu>::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
            error
        };
        // The last number of the last tensor.
        let whole = bytes.len() - 4;
        let broken = refused(&[&bytes[..whole], &f32::NAN.to_le_bytes()].concat());
        assert!(
            broken.contains("holds NaN") || broken.contains("is not finite"),
            "{broken}"
        );
        for length in [u64::MAX, u64::from(u32::MAX), bytes.len() as u64 + 1, 0] {
            refused(&[&length.to_le_bytes(), &bytes[8..]].concat());
        }
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let model = model();
    let mut nan = batch();
    nan.dense[3] = f32::NAN;
    let error = model.score(&nan).unwrap_err();
    assert_eq!(error.to_string(), "dense feature b of row 1 is NaN");
    let error = model.score(&FeatureBatch::with_widths(3, 2)).unwrap_err();
    assert!(matches!(error, CtrModelError::Width { found_dense: 3, .. }));
    for offsets in [
        vec![0, 1, 2, 3, 4],
        vec![0, 1, 2, 3, 4, 9],
        vec![0, 3, 2, 3, 4, 5],
    ] {
        let mut torn = batch();
        torn.sparse[0].offsets = offsets;
        let error = model.score(&torn).unwrap_err();
        assert!(matches!(error, CtrModelError::Bags { rows: 5, .. }));
    }
    assert_eq!(
        model.score(&FeatureBatch::with_widths(2, 2)).unwrap(),
        Vec::<f32>::new()
    );
}
