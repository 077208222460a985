//! The world's promises: the truth is the best possible, the seed fixes every byte, and what was
//! broken is known.

use std::{collections::BTreeMap, path::Path};

use indicatif::ProgressBar;
use pipeline::world::{
    config::{PictureSource, WorldConfig},
    generate::{Generated, generate},
    judge::judge,
    measure::{auc, calibration_ratio, expected_auc},
    truth::{NUM_CATEGORIES, World, stream},
};
use prost::Message;
use rand::Rng;
use wire::{events::Event, log::SegmentReader};

/// A small drawn world: no photo package needed.
fn config() -> WorldConfig {
    WorldConfig {
        pictures: PictureSource::Procedural,
        users: 200,
        experiences: 8,
        campaigns: 20,
        creatives: 120,
        days: 2,
        impressions_per_day: 3_000,
        ..WorldConfig::default()
    }
}

fn write(config: WorldConfig, root: &Path) -> Generated {
    let world = World::build(config).unwrap();
    generate(
        &world,
        &root.join("log"),
        &root.join("world"),
        &ProgressBar::hidden(),
    )
    .unwrap()
}

fn records(root: &Path) -> Vec<Vec<u8>> {
    let reader = SegmentReader::open(&root.join("log"), "world", 0).unwrap();
    reader.map(|record| record.unwrap().payload).collect()
}

#[test]
fn the_true_probabilities_reach_the_stated_best_auc_and_calibration() {
    let config = WorldConfig {
        impressions_per_day: 40_000,
        ..config()
    };
    let world = World::build(config).unwrap();
    let mut random = stream(1, "sample");
    let (mut truths, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..80_000 {
        let moment = world.moment(world.config.first_day, &mut random);
        let fitting = world.creatives_for(moment.scene);
        let creative = fitting[random.random_range(0..fitting.len())];
        let truth = world.click_probability(&moment, creative);
        truths.push(truth);
        labels.push(f64::from(u8::from(random.random_bool(truth))));
    }
    let best = expected_auc(&truths).unwrap();
    let found = auc(&truths, &labels).unwrap();
    // With about 7,000 clicks the standard error of an AUC of 0.8 is about 0.003 (Hanley and
    // McNeil 1982), of the calibration ratio about 1/√7000.
    assert!(
        best > 0.7 && (found - best).abs() < 0.01,
        "found {found}, stated {best}"
    );
    let ratio = calibration_ratio(&truths, &labels);
    assert!((ratio - 1.0).abs() < 0.04, "calibration {ratio}");
    // Worse scores are worse: the measure can tell.
    let noisy: Vec<f64> = truths
        .iter()
        .map(|truth| truth + 0.3 * random.random::<f64>())
        .collect();
    assert!(auc(&noisy, &labels).unwrap() < found - 0.05);
}

#[test]
fn the_seed_fixes_every_byte() {
    let roots: [tempfile::TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    for (root, seed) in roots.iter().zip([1, 1, 2]) {
        write(WorldConfig { seed, ..config() }, root.path());
    }
    let [first, again, other] = roots.each_ref().map(|root| records(root.path()));
    assert!(first == again);
    assert!(first != other);
}

#[test]
fn what_was_written_is_what_was_counted() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config();
    config.delivery.broken_share = 0.02;
    config.delivery.duplicate_share = 0.05;
    let generated = write(config, root.path());
    let records = records(root.path());
    assert_eq!(records.len() as u64, generated.records);

    let events: Vec<Event> = records
        .iter()
        .filter_map(|bytes| Event::decode(bytes.as_slice()).ok())
        .collect();
    assert_eq!(
        records.len() - events.len(),
        generated.broken["not_protobuf"] as usize
    );
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events.iter().filter(|event| !event.event_id.is_empty()) {
        *seen.entry(&event.event_id).or_default() += 1;
    }
    let copies: usize = seen.values().map(|count| count - 1).sum();
    assert_eq!(copies as u64, generated.duplicates);
    let starting = |prefix: &str| seen.keys().filter(|id| id.starts_with(prefix)).count() as u64;
    assert!(generated.impressions - starting("served-") <= generated.after_end);
    let late =
        generated.clicks - starting("click-") + generated.conversions - starting("conversion-");
    assert!(late <= generated.after_end, "{late} of {generated:?}");
    assert!(
        generated.clicks > 200 && generated.conversions > 20,
        "{generated:?}"
    );

    let arrivals: Vec<i64> = events.iter().map(|event| event.ingest_time_us).collect();
    assert!(arrivals.is_sorted());
}

#[test]
fn judging_the_truth_itself_gives_the_whole_way() {
    let root = tempfile::tempdir().unwrap();
    write(config(), root.path());
    let truth = root.path().join("world/truth.csv");
    let mut random = stream(3, "labels");
    let mut predictions = "impression_id,label,score\n".to_owned();
    let mut low_on_phones = predictions.clone();
    for line in std::fs::read_to_string(&truth).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let p_click: f64 = fields[1].parse().unwrap();
        let label = u8::from(random.random_bool(p_click));
        predictions += &format!("{},{label},{p_click}\n", fields[0]);
        let low = if fields[4] == "phone" { 0.5 } else { 1.0 } * p_click;
        low_on_phones += &format!("{},{label},{low}\n", fields[0]);
    }
    let path = root.path().join("predictions.csv");
    std::fs::write(&path, &low_on_phones).unwrap();
    let judgement = judge(&path, &truth).unwrap();
    let worst = judgement.worst_slice().unwrap();
    assert_eq!(worst.slice, "device=phone");
    assert!((worst.calibration_true - 0.5).abs() < 1e-9, "{worst:?}");

    std::fs::write(&path, &predictions).unwrap();
    let judgement = judge(&path, &truth).unwrap();
    assert!((judgement.way - 1.0).abs() < 1e-12, "{judgement:?}");
    assert_eq!(judgement.auc, judgement.auc_best);
    assert_eq!(judgement.calibration_true, 1.0);
    assert!(judgement.slices.len() > 4, "{judgement:?}");
    for slice in &judgement.slices {
        assert!(
            slice.rows >= 1000 && slice.calibration_true == 1.0,
            "{slice:?}"
        );
    }
    std::fs::write(&path, predictions.replacen("label", "click", 1)).unwrap();
    let error = judge(&path, &truth).unwrap_err().to_string();
    assert!(
        error.contains("line 1: wanted `impression_id,label,score`"),
        "{error}"
    );

    std::fs::write(&path, "impression_id,label,score\nnobody,1,0.5\n").unwrap();
    let error = judge(&path, &truth).unwrap_err().to_string();
    assert!(
        error.contains("line 2: impression nobody is not in"),
        "{error}"
    );
    for score in ["NaN", "7"] {
        std::fs::write(&path, format!("impression_id,label,score\ni1,1,{score}\n")).unwrap();
        let error = judge(&path, &truth).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}

#[test]
fn drawings_of_a_category_are_alike() {
    let world = World::build(config()).unwrap();
    let mut styles = vec![Vec::new(); NUM_CATEGORIES];
    for creative in &world.creatives {
        let picture = image::load_from_memory(&creative.png).unwrap().to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        styles[creative.category].push(features::style::describe(&picture, width, height));
    }
    let distance =
        |a: &[f32; 8], b: &[f32; 8]| a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
    let mean = |left: usize, right: usize| {
        let pairs = styles[left]
            .iter()
            .flat_map(|a| styles[right].iter().map(move |b| distance(a, b)));
        pairs.sum::<f32>() / (styles[left].len() * styles[right].len()).max(1) as f32
    };
    let used: Vec<usize> = (0..NUM_CATEGORIES)
        .filter(|at| styles[*at].len() > 1)
        .collect();
    let within = used.iter().map(|at| mean(*at, *at)).sum::<f32>() / used.len() as f32;
    let between = used.iter().map(|at| mean(used[0], *at)).sum::<f32>() / used.len() as f32;
    assert!(within * 3.0 < between, "within {within}, between {between}");
}

#[test]
fn photos_are_used_when_installed_and_missed_with_a_mend() {
    let missing = WorldConfig {
        pictures: PictureSource::Photos,
        photos_dir: "/nowhere".into(),
        ..config()
    };
    let error = World::build(missing).unwrap_err().to_string();
    assert!(
        error.contains("/nowhere/train-images") && error.contains("dataset-fashion-mnist"),
        "{error}"
    );

    // launch/setup installs the photos wherever this suite is meant to run.
    let world = World::build(WorldConfig {
        pictures: PictureSource::Photos,
        ..config()
    })
    .unwrap();
    let picture = image::load_from_memory(&world.creatives[0].png).unwrap();
    assert_eq!((picture.width(), picture.height()), (28, 28));
}

#[test]
fn a_configuration_out_of_range_names_the_key() {
    let refused = |change: &dyn Fn(&mut WorldConfig), expected: &str| {
        let mut config = config();
        change(&mut config);
        let error = World::build(config).unwrap_err().to_string();
        assert_eq!(error, format!("world configuration: {expected}"));
    };
    refused(&|it| it.users = 0, "users is 0, wanted at least 1");
    refused(
        &|it| it.under13_share = 1.5,
        "under13_share is 1.5, wanted 0 to 1",
    );
    refused(
        &|it| it.effects.scene_match = f64::NAN,
        "effects.scene_match is NaN, wanted 0 to 30",
    );
    refused(
        &|it| it.effects.click_bias = f64::NEG_INFINITY,
        "effects.click_bias is -inf, wanted -30 to 30",
    );
    refused(
        &|it| it.delivery.mean_delay_seconds = -1.0,
        "delivery.mean_delay_seconds is -1, wanted 0 to 3600",
    );
}
