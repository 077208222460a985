//! Weights in the layout of each source give that source's vectors; damaged ones are named.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use safetensors::tensor::TensorView;

use super::*;
use crate::{
    Cpu,
    visual::{Picture, Pooling, Resize, preprocess},
};

const CASES: [&str; 10] = [
    "timm",
    "timm-mean",
    "timm-dinov2",
    "timm-registers",
    "timm-clip",
    "timm-siglip",
    "clip",
    "siglip",
    "dinov2",
    "dinov2-registers",
];

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/visual");
    folder.join(format!("{name}.safetensors"))
}

fn wanted(name: &str, image_size: usize) -> PretrainedConfig {
    PretrainedConfig {
        weights: path(name),
        image_size,
        num_heads: 2,
        gelu: None,
    }
}

fn numbers(file: &SafeTensors<'_>, key: &str) -> Vec<f32> {
    let view = file.tensor(key).unwrap();
    let words = view.data().as_chunks::<4>().0.iter();
    words.map(|word| f32::from_le_bytes(*word)).collect()
}

/// `[3, size, size]` as a network's patches.
fn patches(pixels: &[f32], size: usize, patch: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(pixels.len());
    for top in (0..size).step_by(patch) {
        for left in (0..size).step_by(patch) {
            for channel in 0..3 {
                for y in top..top + patch {
                    let row = (channel * size + y) * size + left;
                    values.extend(&pixels[row..row + patch]);
                }
            }
        }
    }
    values
}

#[test]
fn every_source_s_weights_give_its_own_vectors() {
    let device = Default::default();
    for name in CASES {
        let bytes = fs::read(path(&format!("{name}.vectors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for size in [28, 42, 21] {
            let Pretrained { config, vit } =
                Pretrained::<Cpu>::load(&wanted(name, size), &device).unwrap();
            let pixels = numbers(&file, &format!("pixels:{size}"));
            let patch = config.vit.patch_size;
            let (one, two) = pixels.split_at(pixels.len() / 2);
            let both = [patches(one, size, patch), patches(two, size, patch)].concat();
            let shape = [2, config.vit.num_patches(), config.vit.patch_values()];
            let found = vit.forward(Tensor::from_data(TensorData::new(both, shape), &device));
            let found = found.into_data().to_vec::<f32>().unwrap();
            let expected = numbers(&file, &format!("features:{size}"));
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                let difference = (found - expected).abs();
                assert!(difference < 1e-4, "{name} at {size}: {found} {expected}");
            }
        }
    }
}

#[test]
fn pictures_are_prepared_as_each_source_prepares_them() {
    let bytes = fs::read(path("preprocess")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["timm", "timm-dinov2", "clip", "siglip", "dinov2"] {
        let pretrained = Pretrained::<Cpu>::load(&wanted(name, 28), &Default::default());
        let config = pretrained.unwrap().config;
        for number in 0..6 {
            let view = file.tensor(&format!("picture:{number}")).unwrap();
            let [height, width, 3] = view.shape() else {
                panic!("a picture of three colours")
            };
            let picture = Picture::new(*width, *height, view.data().to_vec()).unwrap();
            let expected = numbers(&file, &format!("{name}:{number}"));
            let expected = patches(&expected, 28, config.vit.patch_size);
            let found = config.patches(&picture);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                // One level of a byte would be 0.01 or more.
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{name}, {number}: {found} {expected}"
                );
            }
        }
    }
}

/// A tensor to be changed: type, shape, bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn changed(name: &str, change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> Vec<u8> {
    let bytes = fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut tensors = file
        .iter()
        .map(|(key, view)| (key.to_owned(), raw(view)))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(key, (dtype, shape, bytes))| {
        (key, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn read(bytes: &[u8]) -> Result<Pretrained<Cpu>, PretrainedError> {
    Pretrained::from_bytes(bytes, &wanted("timm", 0), &Default::default())
}

fn refused(change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> PretrainedError {
    read(&changed("timm", change)).unwrap_err()
}

#[test]
fn the_shape_is_read_off_the_weights() {
    let config = read(&changed("timm-registers", |_| ())).unwrap().config;
    let vit = &config.vit;
    assert_eq!(
        (vit.dim, vit.depth, vit.patch_size, vit.image_size),
        (16, 2, 7, 28)
    );
    assert_eq!(
        (vit.num_registers, vit.pooling, vit.mlp_ratio),
        (4, Pooling::Cls, 4)
    );
    let centre = preprocess::Centre::HalfEven;
    let filter = crate::visual::Filter::Bicubic;
    assert_eq!(
        config.resize,
        Resize::Crop {
            filter,
            short_side: 28,
            centre
        }
    );
    let clip = read(&changed("clip", |_| ())).unwrap().config.vit;
    assert!(clip.norm_before && clip.gelu == Gelu::Quick && clip.projection_dim == 24);
}

#[test]
fn weights_of_sixteen_bits_are_read() {
    let exact = read(&changed("timm", |_| ())).unwrap();
    for half in [Dtype::F16, Dtype::BF16] {
        let bytes = changed("timm", |tensors| {
            for (dtype, _, bytes) in tensors.values_mut() {
                let words = bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|word| f32::from_le_bytes(*word));
                *bytes = match half {
                    Dtype::F16 => words
                        .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
                        .collect(),
                    _ => words
                        .flat_map(|x| half::bf16::from_f32(x).to_le_bytes())
                        .collect(),
                };
                *dtype = half;
            }
        });
        let weight = |vit: &Vit<Cpu>| vit.norm.gamma.val().into_data().to_vec::<f32>().unwrap();
        for (found, exact) in weight(&read(&bytes).unwrap().vit)
            .iter()
            .zip(weight(&exact.vit))
        {
            assert!((found / exact - 1.0).abs() < 0.01);
        }
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let error = refused(|tensors| {
        tensors.remove("blocks.1.attn.proj.bias");
        tensors.remove("norm.weight");
        let extra = (Dtype::F32, vec![1], vec![0; 4]);
        tensors.insert("blocks.0.adapter".to_owned(), extra);
    });
    let PretrainedError::Keys {
        missing,
        unexpected,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(missing, &["blocks.1.attn.proj.bias", "norm.weight"]);
    assert_eq!(unexpected, &["blocks.0.adapter"]);

    let error = refused(|tensors| {
        let bytes = &mut tensors.get_mut("blocks.0.mlp.fc1.weight").unwrap().2;
        bytes[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let at = matches!(&error, PretrainedError::NotFinite { key, at: 10, .. } if key == "blocks.0.mlp.fc1.weight");
    assert!(at, "{error}");

    let error =
        refused(|tensors| tensors.get_mut("blocks.0.mlp.fc1.weight").unwrap().1 = vec![16, 64]);
    assert!(
        error.to_string().contains("is [16, 64], wanted [64, 16]"),
        "{error}"
    );

    let error = refused(|tensors| {
        tensors.insert(
            "pos_embed".to_owned(),
            (Dtype::F32, vec![1, 7, 16], vec![0; 7 * 64]),
        );
    });
    assert!(error.to_string().contains("pos_embed"), "{error}");

    let error = refused(|tensors| tensors.get_mut("cls_token").unwrap().0 = Dtype::I32);
    assert!(
        matches!(
            error,
            PretrainedError::Type {
                found: Dtype::I32,
                ..
            }
        ),
        "{error}"
    );

    let error = refused(|tensors| tensors.retain(|key, _| key.starts_with("norm")));
    assert!(
        error.to_string().contains("norm.bias, norm.weight"),
        "{error}"
    );

    // The whole of a block's keys cannot be told from a shallower network; half of them can.
    let error = refused(|tensors| tensors.retain(|key, _| !key.starts_with("blocks.1.norm1")));
    assert!(matches!(error, PretrainedError::Keys { .. }), "{error}");
}

#[test]
fn heads_that_do_not_divide_a_token_are_refused() {
    let mut odd = wanted("timm", 0);
    odd.num_heads = 3;
    let error = Pretrained::<Cpu>::load(&odd, &Default::default()).unwrap_err();
    assert!(matches!(error, PretrainedError::Config { .. }), "{error}");
}

#[test]
fn damaged_files_are_refused() {
    let whole = changed("timm", |_| ());
    for length in [0, 3, 8, 100, whole.len() / 2, whole.len() - 1] {
        let error = read(&whole[..length]).unwrap_err();
        assert!(
            matches!(error, PretrainedError::Header { .. }),
            "{length}: {error}"
        );
    }
    for length in [u64::MAX, 1 << 40, 100_000_001] {
        let hostile = [&length.to_le_bytes()[..], &whole[8..]].concat();
        let error = read(&hostile).unwrap_err();
        assert!(matches!(error, PretrainedError::Header { .. }), "{error}");
    }
    // Shapes whose product is not what a machine counts to.
    let header = format!(
        r#"{{"patch_embed.proj.weight":{{"dtype":"F32","shape":[{0},3,{0},{0}],"data_offsets":[0,0]}}}}"#,
        usize::MAX
    );
    let hostile = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    assert!(matches!(
        read(&hostile),
        Err(PretrainedError::Header { .. })
    ));
    // No numbers at all, and yet a million blocks wide.
    let header = header.replace(&usize::MAX.to_string(), "0");
    let hostile = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    assert!(matches!(read(&hostile), Err(PretrainedError::Shape { .. })));
    let missing = PretrainedConfig {
        weights: "no/such.safetensors".into(),
        ..Default::default()
    };
    let error = Pretrained::<Cpu>::load(&missing, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("no/such.safetensors"), "{error}");
}

#[test]
fn what_the_source_says_beside_its_weights_counts() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    fs::copy(path("clip"), &weights).unwrap();
    let json = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    json(
        "config.json",
        r#"{"vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-4, "x": 1}}"#,
    );
    json(
        "preprocessor_config.json",
        r#"{"image_mean": [0.1, 0.2, 0.3], "resample": 2, "size": 40, "crop_size": {"height": 35, "width": 35}}"#,
    );
    let wanted = PretrainedConfig {
        weights,
        ..Default::default()
    };
    let load = || Pretrained::<Cpu>::load(&wanted, &Default::default());
    let config = load().unwrap().config;
    assert_eq!((config.vit.num_heads, config.vit.image_size), (4, 35));
    assert_eq!((config.vit.gelu, config.vit.norm_eps), (Gelu::Exact, 1e-4));
    assert_eq!(config.mean, [0.1, 0.2, 0.3]);
    let (filter, centre) = (crate::visual::Filter::Bilinear, preprocess::Centre::Floor);
    assert_eq!(
        config.resize,
        Resize::Crop {
            filter,
            short_side: 40,
            centre
        }
    );
    json("config.json", r#"{"hidden_act": "relu"}"#);
    assert!(load().unwrap_err().to_string().contains("`hidden_act`"));
    json("config.json", "{");
    assert!(matches!(load(), Err(PretrainedError::Json { .. })));
}
