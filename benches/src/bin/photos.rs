//! Recall of the product picture that belongs to a photo: published vectors, and the same backbone with
//! projections trained by contrast.
//!
//! The photos are those of the Grocery Store Dataset (Klasson et al., "A Hierarchical Grocery Store Image
//! Dataset With Visual and Semantic Labels", WACV 2019): `train.txt`, `val.txt` and `test.txt` name photos and
//! classes, `classes.csv` each class's product picture. Training sees those of `train.txt` alone. The last line
//! on stdout is one JSON object.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::{Context, bail, ensure};
use burn::backend::Autodiff;
use clap::Parser;
use cli as _;
use marquee_benches::{median, print, set_threads};
use models::{
    Cpu,
    visual::{Picture, PretrainedConfig, VisualConfig},
};
use serde::Serialize;
use trainer::{
    checkpoint::{Checkpoints, Folder},
    collective::{Membership, Rendezvous, TcpGroup},
    schedule::{Decay, ScheduleConfig},
    visual::{
        Features, Gallery, Pairs, Progress, Retrieval, Task, Trained, VisualTrainConfig, centred,
        fit,
    },
};

#[derive(Parser)]
#[command(about = "Trains projections on photos and product pictures")]
struct Args {
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Trainings, each of another seed
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Folder of the data set
    #[arg(long)]
    photos: PathBuf,
    /// Weights of a backbone
    #[arg(long)]
    weights: PathBuf,
    /// Photos of each list, evenly chosen; 0 for all
    #[arg(long, default_value_t = 0)]
    most: usize,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Found {
    /// Recall@10 by seed.
    recall_at_10: Vec<f64>,
    median_recall_at_10: f64,
    /// Of the backbone's own vectors, centred.
    frozen_recall_at_10: f64,
    /// Of the photos of `val.txt`, by seed.
    valid_recall_at_10: Vec<f64>,
    median_valid_recall_at_10: f64,
    frozen_valid_recall_at_10: f64,
    recall_at_1: Vec<f64>,
    frozen_recall_at_1: f64,
    map: Vec<f64>,
    frozen_map: f64,
    random_recall_at_10: f64,
    train_pairs: usize,
    valid_pairs: usize,
    test_pairs: usize,
}

/// A list's photos into the gallery, each with its class.
fn photos(folder: &Path, list: &str, most: usize, gallery: &mut Gallery) -> anyhow::Result<Pairs> {
    let path = folder.join(list);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let kept = if most == 0 {
        lines.len()
    } else {
        most.min(lines.len())
    };
    let mut pairs = Pairs::default();
    for at in 0..kept {
        let line = lines[at * lines.len() / kept];
        let mut cells = line.split(',').map(str::trim);
        let (file, class) = (
            cells.next(),
            cells.next().and_then(|class| class.parse().ok()),
        );
        let (Some(file), Some(class)) = (file, class) else {
            bail!("{}: `{line}` is not a file and a class", path.display());
        };
        pairs.scenes.push(gallery.scene_pictures.len());
        pairs.creatives.push(class);
        gallery.scene_pictures.push(picture(&folder.join(file))?);
        gallery.scene_genres.push("photo".to_owned());
    }
    Ok(pairs)
}

fn picture(path: &Path) -> anyhow::Result<Picture> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Picture::decode(&bytes).with_context(|| format!("picture {}", path.display()))
}

/// The product picture of each class.
fn products(folder: &Path, gallery: &mut Gallery) -> anyhow::Result<()> {
    let path = folder.join("classes.csv");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for (class, line) in text.lines().skip(1).enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        let [_, id, _, _, file, _] = cells[..] else {
            bail!("{}: `{line}` has not six columns", path.display());
        };
        ensure!(
            id == class.to_string(),
            "{}: class {id} in line {}",
            path.display(),
            class + 2
        );
        gallery
            .creative_pictures
            .push(picture(&folder.join(file.trim_start_matches('/')))?);
        gallery.creative_formats.push("product".to_owned());
        gallery.creative_campaigns.push(format!("class {class}"));
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.seeds > 0, "--seeds is 0, wanted at least 1");
    set_threads(args.threads)?;
    let mut gallery = Gallery::default();
    products(&args.photos, &mut gallery)?;
    let train = photos(&args.photos, "train.txt", args.most, &mut gallery)?;
    let test = photos(&args.photos, "test.txt", args.most, &mut gallery)?;
    let valid = photos(&args.photos, "val.txt", args.most, &mut gallery)?;

    let mut config = VisualTrainConfig {
        pretrained: PretrainedConfig {
            weights: args.weights,
            ..PretrainedConfig::default()
        },
        model: VisualConfig {
            projection_hidden: 512,
            ..VisualConfig::default()
        },
        batch_size: 256,
        epochs: 60,
        learning_rate: 1e-3,
        schedule: ScheduleConfig {
            warm_up_steps: 50,
            decay: Decay::Cosine,
            decay_steps: 600,
            floor: 0.0,
            ..ScheduleConfig::default()
        },
        ..VisualTrainConfig::default()
    };
    let met = Rendezvous::join(
        Membership::from_environment()?,
        &config.collective,
        "photos",
    )?;
    let mut group = TcpGroup::connect(&met, "visual")?;
    let device = Default::default();
    let (mut trained, mut validated, mut frozen) = (Vec::new(), Vec::new(), None::<Features>);
    for seed in 1..=args.seeds {
        config.seed = seed;
        let task = Task {
            config: &config,
            gallery: &gallery,
            pairs: &train,
            valid: &Pairs::default(),
            frozen: frozen.as_ref(),
        };
        let report = |told: &Progress| match told {
            Progress::Epoch { epoch, loss, .. } if epoch % 20 == 0 => {
                eprintln!("seed {seed}, epoch {epoch}: loss {loss:.4}");
            }
            _ => {}
        };
        let saving = TcpGroup::connect(&met, &format!("checkpoints-{seed}"))?;
        let mut checkpoints = Checkpoints::new(
            Folder::memory(),
            config.checkpoint.clone(),
            String::new(),
            saving,
        );
        let ended = fit::<Autodiff<Cpu>, _>(
            task,
            &device,
            &mut group,
            &mut checkpoints,
            &AtomicBool::new(false),
            report,
        )?;
        let Trained::Done(fitted) = ended else {
            bail!("nobody asks it to stop");
        };
        trained.push(Retrieval::of(&gallery, &test, &fitted.vectors));
        validated.push(Retrieval::of(&gallery, &valid, &fitted.vectors).recall_at_10);
        frozen = fitted.frozen;
    }
    let frozen = centred(frozen.context("a published backbone has vectors")?);
    let before = Retrieval::of(&gallery, &test, &frozen);
    let of = |what: fn(&Retrieval) -> f64| trained.iter().map(what).collect::<Vec<f64>>();
    print(&Found {
        recall_at_10: of(|found| found.recall_at_10),
        median_recall_at_10: median(of(|found| found.recall_at_10)),
        frozen_recall_at_10: before.recall_at_10,
        median_valid_recall_at_10: median(validated.clone()),
        valid_recall_at_10: validated,
        frozen_valid_recall_at_10: Retrieval::of(&gallery, &valid, &frozen).recall_at_10,
        recall_at_1: of(|found| found.recall_at_1),
        frozen_recall_at_1: before.recall_at_1,
        map: of(|found| found.map),
        frozen_map: before.map,
        random_recall_at_10: gallery.random_recall(&test, 10),
        train_pairs: train.scenes.len(),
        valid_pairs: valid.scenes.len(),
        test_pairs: test.scenes.len(),
    })
}
