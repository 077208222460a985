//! Every network against PyTorch on the same weights, and against finite differences.

use std::{collections::HashMap, fs, path::PathBuf, thread};

use burn::{
    backend::Autodiff,
    module::{ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::TensorData,
};
use burn_store::ModuleSnapshot;
use rand::{Rng, SeedableRng};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::json;

use super::*;
use crate::{
    Cpu,
    ctr::loss::{entire_space, weighted_bce},
    files,
    ops::TrainingBackend,
};

type Host = Autodiff<Cpu>;

const ARCHITECTURES: [&str; 9] = [
    "auto_int",
    "dcn_v2",
    "deep_fm",
    "dlrm",
    "final_mlp",
    "fm",
    "logistic_regression",
    "mmoe",
    "two_tower",
];

/// Files of `tests/parity`.
const CASES: [&str; 16] = [
    "auto_int",
    "auto_int-alone",
    "dcn_v2-low-rank",
    "dcn_v2-parallel",
    "dcn_v2-stacked",
    "dcn_v2-stacked-low-rank",
    "deep_fm",
    "dlrm",
    "dlrm-without-dense",
    "final_mlp",
    "final_mlp-without-gates",
    "fm",
    "logistic_regression",
    "mmoe",
    "two_tower",
    "two_tower-last",
];

fn random() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn dense(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|at| format!("d{at}"))
}

fn config(value: serde_json::Value) -> NetworkConfig {
    serde_json::from_value(value).unwrap()
}

/// The file of `tests/parity/make.py` of a case.
struct Case {
    path: PathBuf,
    bytes: Vec<u8>,
    config: NetworkConfig,
    layout: InputLayout,
}

impl Case {
    fn all() -> Vec<Self> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity");
        let paths = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let cases = paths.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"));
        cases.map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let bytes = fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let case = &metadata.metadata().as_ref().unwrap()["case"];
        let case: serde_json::Value = serde_json::from_str(case).unwrap();
        let dims: Vec<usize> = serde_json::from_value(case["dims"].clone()).unwrap();
        let fields = dims.into_iter().enumerate();
        let fields = fields.map(|(at, dim)| (format!("f{at}"), dim));
        let num_dense = case["num_dense"].as_u64().unwrap() as usize;
        Self {
            config: config(case["config"].clone()),
            layout: InputLayout::new(dense(num_dense), fields),
            path,
            bytes,
        }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let (values, _) = {
            let tensors = self.tensors();
            let view = tensors.tensor(name).unwrap();
            let (values, rest) = view.data().as_chunks::<4>();
            (values.to_vec(), rest.len())
        };
        values.into_iter().map(f32::from_le_bytes).collect()
    }

    fn tensor<B: Backend>(&self, name: &str) -> Tensor<B, 2> {
        let shape = self.tensors().tensor(name).unwrap().shape().to_vec();
        Tensor::from_data(
            TensorData::new(self.values(name), shape),
            &Default::default(),
        )
    }

    /// Our network with PyTorch's weights; none may be missing or left over.
    fn network<B: FusedOps>(&self) -> Network<B> {
        let tensors = self.tensors();
        let weights = tensors.iter().filter_map(|(name, view)| {
            let name = name.strip_prefix("weight:")?;
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            Some((name, TensorView::new(dtype, shape, view.data()).unwrap()))
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.safetensors");
        fs::write(&path, safetensors::serialize(weights, None).unwrap()).unwrap();
        let mut network = self
            .config
            .init::<B>(&self.layout, &mut random(), &Default::default());
        files::load_weights(&mut network, &path).unwrap();
        network
    }

    fn loss<B: Backend>(&self, logits: Tensor<B, 2>) -> Tensor<B, 1> {
        let (labels, weights) = (self.tensor("labels"), self.tensor("weights"));
        match self.config.num_tasks() {
            1 => weighted_bce(logits, labels, weights),
            _ => entire_space(logits, labels, self.tensor("observed"), weights),
        }
    }

    #[track_caller]
    fn assert_close(&self, what: &str, found: &[f32]) {
        let wanted = self.values(what);
        assert_eq!(found.len(), wanted.len(), "{what} of {:?}", self.path);
        for (found, wanted) in found.iter().zip(&wanted) {
            let difference = (found - wanted).abs();
            assert!(
                difference <= 1e-5 * wanted.abs().max(1.0),
                "{what} of {:?}: {found} {wanted}",
                self.path
            );
        }
    }
}

fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

/// Gradients of a network's weights by their names.
fn gradients_by_name<B: TrainingBackend>(
    network: &Network<B>,
    gradients: GradientsParams,
) -> Vec<(String, Vec<f32>)> {
    struct Take(GradientsParams, HashMap<ParamId, Vec<f32>>);
    impl<B: TrainingBackend> ModuleVisitor<B> for Take {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.remove::<B::InnerBackend, D>(param.id) {
                self.1.insert(param.id, numbers(gradient));
            }
        }
    }
    let mut take = Take(gradients, HashMap::new());
    network.visit(&mut take);
    let weights = network.collect(None, None, false);
    let named = weights.iter().filter_map(|weight| {
        let gradient = take.1.remove(&weight.tensor_id?)?;
        Some((weight.full_path(), gradient))
    });
    named.collect()
}

/// Logits, loss and all gradients of a case.
fn check<B: TrainingBackend>(case: &Case) {
    let network = case.network::<B>();
    let input = case.tensor::<B>("input").require_grad();
    let logits = network.forward(input.clone(), Mode::Inference);
    case.assert_close("logits", &numbers(logits.clone().inner()));
    let loss = case.loss(logits);
    case.assert_close("loss", &numbers(loss.clone().inner()));
    let mut gradients = loss.backward();
    let of_input = input.grad_remove(&mut gradients).unwrap();
    case.assert_close("gradient:input", &numbers(of_input));
    let gradients = GradientsParams::from_grads(gradients, &network);
    let gradients = gradients_by_name(&network, gradients);
    let tensors = case.tensors();
    let names = tensors.names().into_iter();
    let weights = names.filter(|name| name.starts_with("weight:")).count();
    assert_eq!(gradients.len(), weights, "{:?}", case.path);
    for (name, gradient) in gradients {
        case.assert_close(&format!("gradient:{name}"), &gradient);
    }
}

/// Logits and gradients of many rows at once, and of each by itself, by default shapes.
fn check_company<B: TrainingBackend>() {
    const ROWS: usize = 64;
    let device = Default::default();
    for architecture in ARCHITECTURES {
        let config = config(json!({"architecture": architecture}));
        let dim = config.row_dim(4);
        let fields = ["one", "other"].map(|name| (name.to_owned(), dim));
        let layout = InputLayout::new(dense(1), fields);
        let network = config.init::<B>(&layout, &mut random(), &device);
        let mut random = random();
        let drawn = (0..ROWS * layout.width()).map(|_| random.random_range(-1.0f32..1.0));
        let data = TensorData::new(drawn.collect::<Vec<_>>(), [ROWS, layout.width()]);
        let run = |input: Tensor<B, 2>| {
            let input = input.require_grad();
            let logits = network.forward(input.clone(), Mode::Inference);
            let mut gradients = logits.clone().sum().backward();
            let of_input = input.grad_remove(&mut gradients).unwrap();
            let gradients = GradientsParams::from_grads(gradients, &network);
            let of_weights = gradients_by_name(&network, gradients);
            (numbers(logits.inner()), numbers(of_input), of_weights)
        };
        let assert_close = |what: &str, found: &[f32], wanted: &[f32]| {
            let largest = wanted.iter().map(|value| value.abs()).fold(1.0, f32::max);
            for (found, wanted) in found.iter().zip(wanted) {
                let difference = (found - wanted).abs();
                assert!(
                    difference < 2e-5 * largest,
                    "{architecture}, {what}: {found} {wanted}"
                );
            }
        };
        let whole = Tensor::<B, 2>::from_data(data, &device);
        let (logits, gradients, of_weights) = run(whole.clone());
        let mut sums: HashMap<String, Vec<f32>> = HashMap::new();
        let (tasks, width) = (config.num_tasks(), layout.width());
        for row in 0..ROWS {
            let (alone, gradient, of_weights) = run(whole.clone().narrow(0, row, 1).detach());
            assert_close("a logit", &logits[row * tasks..][..tasks], &alone);
            assert_close("input", &gradients[row * width..][..width], &gradient);
            for (name, gradient) in of_weights {
                let sum = sums
                    .entry(name)
                    .or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        for (name, found) in of_weights {
            assert_close(&name, &found, &sums[&name]);
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_in_company() {
    check_company::<Host>();
}

/// The same on Vulkan, which needs no GPU.
#[cfg(feature = "wgpu")]
mod gpu {
    use super::*;

    type Gpu = Autodiff<burn::backend::Wgpu>;

    #[test]
    fn every_network_equals_pytorch_s() {
        Case::all().iter().for_each(check::<Gpu>);
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_company() {
        check_company::<Gpu>();
    }
}

#[test]
fn every_network_equals_pytorch_s_with_the_same_weights_and_so_do_its_gradients() {
    let cases = Case::all();
    let mut architectures: Vec<String> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for case in &cases {
        check::<Host>(case);
        let value = serde_json::to_value(&case.config).unwrap();
        architectures.push(value["architecture"].as_str().unwrap().to_owned());
        names.push(case.path.file_stem().unwrap().to_str().unwrap());
    }
    architectures.sort();
    architectures.dedup();
    assert_eq!(architectures, ARCHITECTURES);
    names.sort_unstable();
    assert_eq!(names, CASES);
}

#[test]
fn no_gradient_is_lost_to_the_backward_pass_of_another_thread() {
    let layout = InputLayout::new(
        dense(2),
        ["user", "place", "ad"].map(|name| (name.to_owned(), 4)),
    );
    let config = config(json!({"architecture": "two_tower"}));
    let of_input = || {
        let network = config.init::<Host>(&layout, &mut random(), &Default::default());
        let input = Tensor::<Host, 2>::ones([7, layout.width()], &Default::default());
        let input = input.require_grad();
        let loss = network.forward(input.clone(), Mode::Inference).sum();
        numbers(input.grad(&loss.backward()).unwrap())
    };
    let wanted = of_input();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| assert_eq!(of_input(), wanted)));
        }
    });
}

#[test]
fn a_tower_sees_its_own_features_and_no_others() {
    let layout = InputLayout::new(
        dense(3),
        ["f0", "f1", "f2"].map(|name| (name.to_owned(), 2)),
    );
    let config = config(json!({
        "architecture": "two_tower", "item_features": ["d1", "f2"], "query_features": ["f0", "d0"],
    }));
    let network = config.init::<Host>(&layout, &mut random(), &Default::default());
    let towers = network.two_tower().unwrap();
    let input = Tensor::<Host, 2>::ones([4, 9], &Default::default());
    let seen = |side: Tensor<Host, 2>, input: &Tensor<Host, 2>| {
        // A vector's length is 1: its first number alone moves with what it sees.
        let gradient = input.grad(&side.narrow(1, 0, 1).sum().backward()).unwrap();
        let columns = numbers(gradient.abs().sum_dim(0));
        columns.iter().map(|sum| *sum > 0.0).collect::<Vec<_>>()
    };
    // d0 d1 d2, and two columns each of f0 f1 f2.
    let (one, other) = (input.clone().require_grad(), input.require_grad());
    let queries = seen(towers.queries(&one, Mode::Inference), &one);
    assert_eq!(
        queries,
        [true, false, false, true, true, false, false, false, false]
    );
    let items = seen(towers.items(&other, Mode::Inference), &other);
    assert_eq!(
        items,
        [false, true, false, false, false, false, false, true, true]
    );
}

#[test]
fn input_gradients_equal_finite_differences() {
    for case in Case::all() {
        let network = case.network::<Host>();
        let input = case.values("input");
        let shape = [input.len() / case.layout.width(), case.layout.width()];
        let loss = |values: Vec<f32>| {
            let input =
                Tensor::<Host, 2>::from_data(TensorData::new(values, shape), &Default::default());
            let input = input.require_grad();
            let loss = case.loss(network.forward(input.clone(), Mode::Inference));
            let gradient = input.grad(&loss.backward()).unwrap();
            (loss.into_scalar(), numbers(gradient))
        };
        let (_, gradient) = loss(input.clone());
        // The whole gradient at once: along it, and along a random direction.
        let mut random = random();
        let drawn = input.iter().map(|_| random.random_range(-1.0..1.0));
        for direction in [gradient.clone(), drawn.collect()] {
            let step = 1e-3;
            let at = |offset: f32| {
                let moved = input.iter().zip(&direction).map(|(x, d)| x + offset * d);
                f64::from(loss(moved.collect()).0)
            };
            let found = (at(step) - at(-step)) / f64::from(2.0 * step);
            let products = gradient
                .iter()
                .zip(&direction)
                .map(|(g, d)| f64::from(g * d));
            let wanted: f64 = products.sum();
            // f32 and a step of 1e-3 leave about 1e-4; a kink of ReLU in between a little more.
            assert!(
                (found - wanted).abs() < 2e-3 * wanted.abs().max(1.0),
                "{:?}: {found} {wanted}",
                case.path
            );
        }
    }
}

#[test]
fn a_seed_fixes_a_network() {
    for case in Case::all() {
        let logits = || {
            let (mut random, device) = (random(), Default::default());
            let network: Network<Host> = case.config.init(&case.layout, &mut random, &device);
            numbers(
                network
                    .forward(case.tensor::<Host>("input"), Mode::Inference)
                    .inner(),
            )
        };
        assert_eq!(logits(), logits());
    }
}

#[test]
fn what_a_row_drops_depends_on_its_number_alone() {
    for case in Case::all() {
        let mut value = serde_json::to_value(&case.config).unwrap();
        value["net_dropout"] = json!(0.5);
        if value["hidden"] == json!([]) {
            continue;
        }
        let Ok(dropping) = serde_json::from_value::<NetworkConfig>(value) else {
            // Two have no hidden values.
            assert_eq!(case.config.net_dropout(), 0.0);
            continue;
        };
        let network: Network<Host> =
            dropping.init(&case.layout, &mut random(), &Default::default());
        let input = case.tensor::<Host>("input");
        let run = |input: &Tensor<Host, 2>, mode: Mode<'_>| {
            numbers(network.forward(input.clone(), mode).inner())
        };
        let tasks = dropping.num_tasks();
        let whole = run(
            &input,
            Mode::Training {
                rows: &[1, 2, 3, 4, 5, 6],
            },
        );
        let last = run(
            &input.clone().narrow(0, 5, 1),
            Mode::Training { rows: &[6] },
        );
        for (one, other) in whole[5 * tasks..].iter().zip(&last) {
            assert!((one - other).abs() < 1e-5, "{:?}", case.path);
        }
        assert_ne!(whole, run(&input, Mode::Inference), "{:?}", case.path);
        assert_ne!(
            whole,
            run(
                &input,
                Mode::Training {
                    rows: &[7, 8, 9, 10, 11, 12]
                }
            )
        );
    }
}

#[test]
fn a_network_that_cannot_be_is_refused_by_its_key() {
    let layout = |dims: &[usize]| {
        let fields = dims.iter().enumerate();
        InputLayout::new(dense(2), fields.map(|(at, dim)| (format!("f{at}"), *dim)))
    };
    let refused = |value: serde_json::Value, dims: &[usize], what: &str| {
        let error = config(value).check(&layout(dims)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    for rate in [1.0, -0.1] {
        let value = json!({"architecture": "dcn_v2", "net_dropout": rate});
        refused(value, &[4], "model.net_dropout");
    }
    for name in ["logistic_regression", "fm", "deep_fm", "dlrm", "auto_int"] {
        let value = json!({"architecture": name});
        refused(
            value.clone(),
            &[4, 5],
            "`f0` has rows of 4 values and `f1` of 5",
        );
        refused(value, &[], "at least one sparse feature");
    }
    refused(
        json!({"architecture": "fm"}),
        &[1, 1],
        "tables.embedding_dim",
    );
    refused(
        json!({"architecture": "auto_int", "num_heads": 0}),
        &[4],
        "model.num_heads",
    );
    refused(
        json!({"architecture": "mmoe", "num_experts": 0}),
        &[4],
        "model.num_experts",
    );
    let odd = json!({"architecture": "final_mlp", "hidden_2": [8, 7]});
    refused(odd, &[4], "model.hidden_2 ends with 7 values");
    let unknown = json!({"architecture": "final_mlp", "gate_context_1": ["g"]});
    refused(
        unknown,
        &[4, 4],
        "`g`, which is not a feature of the rows: f0, f1, d0, d1",
    );
    let unused = json!({"architecture": "final_mlp", "use_gates": false, "gate_context_2": ["f1"]});
    refused(
        unused,
        &[4, 4],
        "model.gate_context_2 is set, but model.use_gates is false",
    );
    let unused = json!({"architecture": "auto_int", "hidden": [], "net_dropout": 0.1});
    refused(unused, &[4], "model.net_dropout is set, but model.hidden");
    let one_sided = config(json!({"architecture": "two_tower", "item_features": ["f0"]}));
    let alone = InputLayout::new(dense(0), [("f0".to_owned(), 4)]);
    assert_eq!(one_sided.check(&alone), Err(NetworkError::OneSided));
    let unknown = json!({"architecture": "two_tower", "item_features": ["g"]});
    refused(unknown, &[4], "model.item_features names `g`");
    let both = json!({"architecture": "two_tower", "item_features": ["f0", "d0"], "query_features": ["f1", "d0"]});
    refused(both, &[4, 4], "model.query_features both name `d0`");
    let both = json!({"architecture": "two_tower", "query_features": ["f0", "f1"]});
    refused(both, &[4, 4], "model.query_features both name `f1`");
    let nameless = json!({"architecture": "two_tower", "item_features": ["d0", "d1"]});
    refused(nameless, &[4], "names no sparse feature");
}

#[test]
fn an_unknown_key_or_architecture_is_refused() {
    let refused = |value: serde_json::Value, what: &str| {
        let error = serde_json::from_value::<NetworkConfig>(value).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(json!({"architecture": "dlrm", "hidden": [4]}), "hidden");
    refused(json!({"architecture": "fm", "hidden": [4]}), "hidden");
    refused(json!({"architecture": "dcn_v3"}), "dcn_v3");
}
