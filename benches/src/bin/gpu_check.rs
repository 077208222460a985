//! What must hold on an NVIDIA GPU, and how fast it is there, in one table.
//!
//! For a machine with a driver and neither compiler nor network: `launch/gpu-check build` makes a
//! folder to carry there. Every check runs in a process of its own, so that one that crashes or
//! hangs is a line of the table and not its end.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use burn::{
    backend::{Autodiff, Cuda},
    tensor::{DType, Distribution, Tensor, backend::Backend},
};
use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use cubecl::{
    Runtime,
    cuda::{CudaDevice, CudaRuntime},
    future::block_on,
};
use cudarc::driver::CudaContext;
use kernels::{Device, GpuTable, KernelError, RowwiseAdagrad, Sums, Touched, Vectors, conform};
use marquee_benches::{click::Shape, median, ranks};
use models::{Cpu, visual::Picture};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trainer::{
    backend::StepBackend,
    checkpoint::{Checkpoints, Folder},
    collective::{CollectiveConfig, NcclGroup, ProcessGroup, Rendezvous, TcpGroup, conformance},
    ctr::{Groups, StepLimits},
    sharding::{Plan, Sharding},
    visual::{Gallery, Pairs, Progress, Task, VisualTrainConfig, fit},
};

/// Longest that a check may take: its kernels are compiled first.
const LIMIT: Duration = Duration::from_secs(300);

/// Characters of an error in the table.
const MOST_SAID: usize = 400;

#[derive(Parser)]
#[command(about = "Checks everything that runs on an NVIDIA GPU")]
struct Args {
    /// One check alone, in this process
    check: Option<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// Bytes a second of a copy within the device's memory
    Copy,
    /// Operations a second of a product of matrices of 8192, f32 and bf16
    Products,
    /// The process group over NCCL, one rank: every operation against host arithmetic
    Nccl,
    /// The same with two ranks on this GPU, which NCCL may refuse
    NcclTwoRanks,
    /// Sums in place in the device's memory: values a second
    NcclInPlace,
    /// Kernels of the embedding tables against host arithmetic
    Kernels,
    /// Their bytes a second, against a copy's
    KernelRates,
    /// The losses of twenty steps on this GPU and on the CPU
    Gradients,
    /// The same with a network of bf16
    GradientsBf16,
    /// The same with tables in host memory and a cache here
    GradientsCached,
    /// Training by two ranks on this GPU over NCCL, which may refuse, against one on the CPU
    GradientsTwoRanks,
    /// The losses of twenty steps of a picture encoder on this GPU and on the CPU
    Visual,
    /// Samples a second of the training step, batch 4096
    Step,
    /// The same with a network of bf16
    StepBf16,
    /// The same with batch 65,536
    StepLarge,
    /// The same with batch 65,536 and a network of bf16
    StepLargeBf16,
}

impl Check {
    fn name(self) -> String {
        // No variant is skipped.
        let value = self.to_possible_value().expect("a name");
        value.get_name().to_owned()
    }

    /// What the command line says of it.
    fn help(self) -> String {
        let value = self.to_possible_value().expect("a name");
        value
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    fn run(self) -> anyhow::Result<String> {
        match self {
            Self::Copy => Ok(format!("{:.0} GB/s, read and written", copy_rate()? / 1e9)),
            Self::Products => products(),
            Self::Nccl => nccl(1),
            Self::NcclTwoRanks => nccl(2),
            Self::NcclInPlace => nccl_in_place(),
            Self::Kernels => kernels(),
            Self::KernelRates => kernel_rates(),
            Self::Gradients => gradients(&small(), 2e-3),
            Self::GradientsBf16 => gradients(
                &Shape {
                    bf16: true,
                    ..small()
                },
                2e-2,
            ),
            Self::GradientsCached => {
                let gpu_cache_rows = 600;
                gradients(
                    &Shape {
                        gpu_cache_rows,
                        ..small()
                    },
                    2e-3,
                )
            }
            Self::GradientsTwoRanks => gradients_of_two_ranks(),
            Self::Visual => compare(
                &visual_losses::<Autodiff<Cuda>>()?,
                &visual_losses::<Autodiff<Cpu>>()?,
                2e-3,
            ),
            Self::Step => step(4096, false),
            Self::StepBf16 => step(4096, true),
            Self::StepLarge => step(65_536, false),
            Self::StepLargeBf16 => step(65_536, true),
        }
    }
}

fn main() -> anyhow::Result<()> {
    match Args::parse().check {
        None => all(),
        Some(check) => {
            kernels::keep_compiled(0);
            let found = check.run()?;
            if !found.is_empty() {
                say(&found);
            }
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "the table is the output")]
fn say(text: &str) {
    println!("{text}");
}

/// Runs every check and prints the table; an error if one of them failed.
fn all() -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["check", "seconds", "result", "what"]);
    let mut failed = 0;
    for check in Check::value_variants() {
        let started = Instant::now();
        let (passed, found) = alone(*check)?;
        failed += usize::from(!passed);
        let seconds = format!("{:.1}", started.elapsed().as_secs_f64());
        let result = match passed {
            true => found,
            false => format!("FAILED: {found}"),
        };
        table.add_row([check.name(), seconds, result, check.help()]);
    }
    say(&table.to_string());
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

/// Runs a check in a process of its own: whether it passed, and what it said last.
fn alone(check: Check) -> anyhow::Result<(bool, String)> {
    let child = Command::new(std::env::current_exe()?)
        .arg(check.name())
        .env("RUST_BACKTRACE", "0")
        // Its ranks are ended with it.
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a check")?;
    let group = format!("-{}", child.id());
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(LIMIT) else {
        let kill = Command::new("kill").args(["-KILL", "--", &group]).status();
        kill.context("ending a check")?;
        return Ok((false, format!("no end after {} s", LIMIT.as_secs())));
    };
    let output = output.context("waiting for a check")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => {
            let said = text(&output.stdout);
            (true, said.lines().next_back().unwrap_or("").to_owned())
        }
        false => {
            let said = text(&output.stderr).replace('\n', " ");
            (false, said.chars().take(MOST_SAID).collect())
        }
    })
}

/// Bytes a second that a copy reads and writes.
fn copy_rate() -> anyhow::Result<f64> {
    const BYTES: usize = 1 << 30;
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let from = stream.alloc_zeros::<u8>(BYTES)?;
    let mut to = stream.alloc_zeros::<u8>(BYTES)?;
    stream.memcpy_dtod(&from, &mut to)?;
    stream.synchronize()?;
    let turns = 20;
    let started = Instant::now();
    for _ in 0..turns {
        stream.memcpy_dtod(&from, &mut to)?;
    }
    stream.synchronize()?;
    Ok((2 * turns * BYTES) as f64 / started.elapsed().as_secs_f64())
}

/// The rate of the product of a linear layer.
fn products() -> anyhow::Result<String> {
    const SIZE: usize = 8192;
    let device = CudaDevice::default();
    let wait = || match Cuda::<f32>::sync(&device) {
        Ok(()) => Ok(()),
        Err(error) => bail!("the device: {error:?}"),
    };
    let mut told = Vec::new();
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let random = || {
            let values = Distribution::Uniform(-1.0, 1.0);
            Tensor::<Cuda, 2>::random([SIZE, SIZE], values, &device).cast(dtype)
        };
        let (a, b) = (random(), random());
        let product = || drop(models::ops::product(a.clone(), b.clone()));
        (0..3).for_each(|_| product());
        wait()?;
        let turns = 10;
        let started = Instant::now();
        (0..turns).for_each(|_| product());
        wait()?;
        let seconds = started.elapsed().as_secs_f64() / f64::from(turns);
        let rate = 2.0 * (SIZE as f64).powi(3) / seconds / 1e12;
        told.push(format!("{name} {rate:.0} TFLOP/s"));
    }
    Ok(told.join(", "))
}

/// Meets the other ranks, of which this process is one, on the first GPU.
fn meet(world_size: usize) -> anyhow::Result<Option<Arc<Rendezvous>>> {
    let Some(mut membership) = ranks::start(world_size)? else {
        return Ok(None);
    };
    membership.local_rank = 0;
    let config = CollectiveConfig {
        timeout_seconds: 60.0,
        ..CollectiveConfig::default()
    };
    Ok(Some(Rendezvous::join(membership, &config, "gpu-check")?))
}

fn nccl(world_size: usize) -> anyhow::Result<String> {
    let Some(met) = meet(world_size)? else {
        return Ok(String::new());
    };
    let mut group = NcclGroup::connect(&met, "check")?;
    for seed in 0..4 {
        conformance::conform(&mut group, seed, 60, 50_000)?;
    }
    Ok(match group.rank() {
        0 => format!("{world_size} ranks, 240 operations"),
        _ => String::new(),
    })
}

fn nccl_in_place() -> anyhow::Result<String> {
    const VALUES: usize = 64 << 20;
    let Some(met) = meet(1)? else {
        return Ok(String::new());
    };
    let mut group = NcclGroup::connect(&met, "check")?;
    let device = device();
    let ones = vec![1.0f32; VALUES];
    let values = device.upload(&ones);
    let started = Instant::now();
    let turns = 10;
    for _ in 0..turns {
        group.all_reduce_buffer(&device, &values)?;
    }
    let seconds = started.elapsed().as_secs_f64() / f64::from(turns);
    let found = group.all_to_all_buffer(&device, &values, &[VALUES], &[VALUES])?;
    ensure!(
        device.download(&values)? == ones,
        "one rank's sum is not its values"
    );
    ensure!(
        device.download(&found)? == ones,
        "what a rank gives itself is not that"
    );
    Ok(format!("{:.2} ms for 256 MiB, one rank", seconds * 1e3))
}

fn device() -> Device<CudaRuntime> {
    Device::new(CudaRuntime::client(&CudaDevice::default()))
}

fn kernels() -> anyhow::Result<String> {
    let (device, seeds) = (device(), 200);
    for seed in 0..seeds {
        conform(&device, seed)?;
    }
    Ok(format!("{seeds} random tables"))
}

/// Bytes a second of lookup and update of 65,536 ids in tables of a million rows.
fn kernel_rates() -> anyhow::Result<String> {
    const ROWS: usize = 1_000_000;
    const IDS: usize = 65_536;
    let (device, copy) = (device(), copy_rate()?);
    let adagrad = RowwiseAdagrad {
        learning_rate: 0.05,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let ids: Vec<u32> = (0..IDS)
        .map(|_| random.random_range(0..ROWS as u32))
        .collect();
    let offsets: Vec<u32> = (0..=IDS as u32).collect();
    let mut entries: Vec<u32> = (0..IDS as u32).collect();
    entries.sort_by_key(|entry| ids[*entry as usize]);
    let (mut rows, mut row_offsets) = (Vec::new(), vec![0]);
    for run in entries.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
        rows.push(ids[run[0] as usize]);
        row_offsets.push(row_offsets[row_offsets.len() - 1] + run.len() as u32);
    }
    let mut told = Vec::new();
    for dim in [16, 64, 128] {
        let state = vec![0.0; ROWS];
        let mut table = GpuTable::new(device.clone(), dim, &vec![0.01; ROWS * dim], &state)?;
        let sums = device.sums(Sums {
            source_at: &ids,
            offsets: &offsets,
            scale: None,
            target_at: &offsets[..IDS],
        })?;
        let touched = table.touched(Touched {
            rows: &rows,
            offsets: &row_offsets,
            gradient_at: &entries,
            scale: None,
        })?;
        let gradients = device.upload(&vec![0.01; IDS * dim]);
        let gradients = Vectors {
            buffer: &gradients,
            step: dim,
        };
        let pooled = device.room(IDS * dim);
        let pooled = Vectors {
            buffer: &pooled,
            step: dim,
        };
        let vector = 4 * dim;
        let lookup = timed(&device, || table.lookup(&sums, pooled))?;
        let update = timed(&device, || table.update(&touched, gradients, adagrad))?;
        // Rows read and vectors written; gradients and rows read, rows written, state both.
        let lookup = (IDS * (2 * vector + 12)) as f64 / lookup;
        let update = (IDS * (vector + 8) + rows.len() * (2 * vector + 16)) as f64 / update;
        told.push(format!(
            "dim {dim}: lookup {:.0} GB/s ({:.0} %), update {:.0} GB/s ({:.0} %)",
            lookup / 1e9,
            100.0 * lookup / copy,
            update / 1e9,
            100.0 * update / copy
        ));
    }
    Ok(format!(
        "of a copy's {:.0} GB/s: {}",
        copy / 1e9,
        told.join("; ")
    ))
}

/// Seconds of one call, of many that are enqueued one after the other.
fn timed(
    device: &Device<CudaRuntime>,
    mut call: impl FnMut() -> Result<(), KernelError>,
) -> anyhow::Result<f64> {
    let wait = || match block_on(device.client().sync()) {
        Ok(()) => Ok(()),
        Err(error) => bail!("the device: {error:?}"),
    };
    (0..5).try_for_each(|_| call())?;
    wait()?;
    let turns = 100;
    let started = Instant::now();
    (0..turns).try_for_each(|_| call())?;
    wait()?;
    Ok(started.elapsed().as_secs_f64() / f64::from(turns))
}

/// The losses of some steps, and the seconds of one, on a rank of a group.
fn losses<B: StepBackend>(
    shape: &Shape,
    steps: usize,
    groups: &mut Groups<TcpGroup, impl ProcessGroup>,
) -> anyhow::Result<(Vec<f32>, f64)> {
    let (rank, world_size) = (groups.ids.rank(), groups.ids.world_size());
    let row_wise = |table| (table, Sharding::RowWise {});
    let plan = Plan::new(
        world_size,
        shape.tables().into_iter().map(row_wise).collect(),
    );
    let mut learner = shape.learner::<B>(plan, rank)?;
    let router = learner.router().clone();
    let batches = shape.batches(4, rank);
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    let Groups { ids, rows, dense } = groups;
    std::thread::scope(|scope| {
        // One step ahead, as the trainer does.
        let (sender, routed) = std::sync::mpsc::sync_channel(1);
        scope.spawn(move || {
            for batch in batches.iter().cycle().take(steps) {
                if sender.send(batch.clone().route(&router, ids)).is_err() {
                    return;
                }
            }
        });
        for _ in 0..steps {
            let started = Instant::now();
            let batch = routed.recv().context("the routing thread")??;
            let outcome = learner.step(&[batch], StepLimits::default(), rows, dense)?;
            ensure!(outcome.applied, "a step's loss is {}", outcome.loss);
            losses.push(outcome.loss);
            times.push(started.elapsed().as_secs_f64());
        }
        anyhow::Ok(())
    })?;
    // The first steps compile kernels.
    Ok((losses, median(times.split_off(steps / 3))))
}

fn small() -> Shape {
    Shape {
        table_rows: 1000,
        batch: 512,
        ..Shape::default()
    }
}

const STEPS: usize = 20;

fn gradients(shape: &Shape, tolerance: f32) -> anyhow::Result<String> {
    let wanted = losses::<Autodiff<Cpu>>(&small(), STEPS, &mut Groups::alone())?.0;
    let found = losses::<Autodiff<Cuda>>(shape, STEPS, &mut Groups::alone())?.0;
    compare(&found, &wanted, tolerance)
}

/// Every loss after the first hangs on the gradients of all before.
fn compare(found: &[f32], wanted: &[f32], tolerance: f32) -> anyhow::Result<String> {
    let apart = found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs() / b.abs());
    let worst = apart.fold(0.0, f32::max);
    ensure!(
        worst < tolerance,
        "losses differ by {worst}: {found:?}, on the CPU {wanted:?}"
    );
    Ok(format!(
        "losses differ by at most {worst:.1e} of themselves"
    ))
}

/// The same two ranks with everything on the CPU, and on the GPU.
fn gradients_of_two_ranks() -> anyhow::Result<String> {
    let Some(met) = meet(2)? else {
        return Ok(String::new());
    };
    let mut on_cpu = Groups::connect(&met)?;
    let wanted = losses::<Autodiff<Cpu>>(&small(), STEPS, &mut on_cpu)?.0;
    let mut groups = Groups {
        ids: on_cpu.ids,
        rows: NcclGroup::connect(&met, "rows")?,
        dense: NcclGroup::connect(&met, "gradients")?,
    };
    let found = losses::<Autodiff<Cuda>>(&small(), STEPS, &mut groups)?.0;
    let told = compare(&found, &wanted, 2e-3)?;
    Ok(match groups.ids.rank() {
        0 => told,
        _ => String::new(),
    })
}

/// The losses of epochs of one step each, on random pictures.
fn visual_losses<B: StepBackend>() -> anyhow::Result<Vec<f32>> {
    const PICTURES: usize = 64;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut picture = || {
        let rgb = (0..28 * 28 * 3).map(|_| random.random()).collect();
        Picture::new(28, 28, rgb)
    };
    let (mut gallery, mut pairs) = (Gallery::default(), Pairs::default());
    for at in 0..PICTURES {
        gallery.scene_pictures.push(picture()?);
        gallery.scene_genres.push(String::new());
        gallery.creative_pictures.push(picture()?);
        gallery.creative_formats.push(String::new());
        gallery.creative_campaigns.push(String::new());
        pairs.scenes.push(at);
        pairs.creatives.push(at);
    }
    let config = VisualTrainConfig {
        batch_size: PICTURES,
        epochs: STEPS,
        ..VisualTrainConfig::default()
    };
    let none = Pairs::default();
    let task = Task {
        config: &config,
        gallery: &gallery,
        pairs: &pairs,
        valid: &none,
        frozen: None,
    };
    let mut checkpoints = Checkpoints::new(
        Folder::memory(),
        config.checkpoint.clone(),
        String::new(),
        TcpGroup::alone(),
    );
    let mut losses = Vec::new();
    let report = |told: &Progress| {
        if let Progress::Epoch { loss, .. } = told {
            losses.push(*loss as f32);
        }
    };
    let (device, stop) = (Default::default(), AtomicBool::new(false));
    let mut group = TcpGroup::alone();
    fit::<B, _>(task, &device, &mut group, &mut checkpoints, &stop, report)?;
    Ok(losses)
}

fn step(batch: usize, bf16: bool) -> anyhow::Result<String> {
    let shape = Shape {
        batch,
        bf16,
        ..Shape::default()
    };
    let seconds = losses::<Autodiff<Cuda>>(&shape, 60, &mut Groups::alone())?.1;
    Ok(format!("{:.0} samples/s", batch as f64 / seconds))
}
