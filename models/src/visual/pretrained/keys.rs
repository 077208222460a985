//! How each source names its tensors.

use super::{PretrainedConfig, PretrainedError, sheet::Sheet, source::Described};
use crate::{
    ops::Gelu,
    visual::{
        Centre, Filter, Pooling, Resize, VisualConfig, VitConfig,
        resample::{GridFilter, resize_grid},
    },
};

/// Names of a source. Where a source had several over time, all of them; `{}` is the block's number.
pub(super) struct KeyMap {
    /// What errors call it.
    pub(super) layout: &'static str,
    /// Of the convolution over patches, without `.weight`.
    patch: &'static str,
    class: &'static str,
    registers: &'static [&'static str],
    positions: &'static str,
    norm_before: &'static [&'static str],
    block: &'static str,
    norms: [&'static str; 2],
    qkv: &'static [Qkv],
    attention_out: &'static [&'static str],
    mlp: [&'static str; 2],
    /// DINOv2's scales of attention and perceptron.
    scales: [&'static str; 2],
    norm: &'static str,
    map: Option<MapKeys>,
    /// Without `.weight`; of no bias. Not below the prefix of the others.
    projection: &'static str,
    /// Beginnings of keys that are of no use here.
    ignored: &'static [&'static str],
    custom: Custom,
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
enum Qkv {
    Joined(&'static str),
    Apart([&'static str; 3]),
}

/// Names of pooling by attention.
struct MapKeys {
    query: &'static str,
    /// Weight and bias of queries, then of keys and values; or of all three.
    in_projection: InProjection,
    attention_out: &'static str,
    norm: &'static str,
    mlp: [&'static str; 2],
}

enum InProjection {
    /// `NAME_weight` and `NAME_bias`: PyTorch's own attention.
    Joined(&'static str),
    Apart {
        q: &'static str,
        kv: &'static str,
    },
}

/// What a source does where its files do not say.
#[derive(Clone, Copy)]
struct Custom {
    gelu: Gelu,
    norm_eps: f64,
    mean: [f32; 3],
    std: [f32; 3],
    /// The shorter side over the square's, if a middle is cut out.
    crop: Option<(f64, Centre)>,
    grid: GridFilter,
    /// Pixels that pictures are prepared for, where it is not what positions were trained on.
    image_size: Option<usize>,
}

const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const CLIP_COLOURS: ([f32; 3], [f32; 3]) = (
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_6, 0.275_777_1],
);
const HALVES: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

const HF_BLOCK: &str = "encoder.layers.{}.";
const HF_QKV: &[Qkv] = &[Qkv::Apart([
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
])];

/// timm, and DINOv2's own files.
const TIMM: KeyMap = KeyMap {
    layout: "timm's",
    patch: "patch_embed.proj",
    class: "cls_token",
    registers: &["reg_token", "register_tokens"],
    positions: "pos_embed",
    norm_before: &["norm_pre"],
    block: "blocks.{}.",
    norms: ["norm1", "norm2"],
    qkv: &[Qkv::Joined("attn.qkv")],
    attention_out: &["attn.proj"],
    mlp: ["mlp.fc1", "mlp.fc2"],
    scales: ["ls1.gamma", "ls2.gamma"],
    norm: "norm",
    map: Some(MapKeys {
        query: "attn_pool.latent",
        in_projection: InProjection::Apart {
            q: "attn_pool.q",
            kv: "attn_pool.kv",
        },
        attention_out: "attn_pool.proj",
        norm: "attn_pool.norm",
        mlp: ["attn_pool.mlp.fc1", "attn_pool.mlp.fc2"],
    }),
    projection: "head",
    ignored: &["head.", "mask_token"],
    custom: Custom {
        gelu: Gelu::Exact,
        norm_eps: 1e-6,
        mean: HALVES.0,
        std: HALVES.1,
        crop: Some((1.0 / 0.9, Centre::HalfEven)),
        grid: GridFilter::AntiAliased,
        image_size: None,
    },
};

const CLIP: KeyMap = KeyMap {
    layout: "Hugging Face's CLIP",
    patch: "embeddings.patch_embedding",
    class: "embeddings.class_embedding",
    registers: &[],
    positions: "embeddings.position_embedding.weight",
    norm_before: &["pre_layrnorm", "pre_layernorm"],
    block: HF_BLOCK,
    norms: ["layer_norm1", "layer_norm2"],
    qkv: HF_QKV,
    attention_out: &["self_attn.out_proj"],
    mlp: ["mlp.fc1", "mlp.fc2"],
    scales: ["", ""],
    norm: "post_layernorm",
    map: None,
    projection: "visual_projection",
    ignored: &[
        "text_model.",
        "text_projection.",
        "logit_scale",
        "vision_model.embeddings.position_ids",
    ],
    custom: Custom {
        gelu: Gelu::Quick,
        norm_eps: 1e-5,
        mean: CLIP_COLOURS.0,
        std: CLIP_COLOURS.1,
        crop: Some((1.0, Centre::Floor)),
        grid: GridFilter::Plain,
        image_size: None,
    },
};

const SIGLIP: KeyMap = KeyMap {
    layout: "Hugging Face's SigLIP",
    map: Some(MapKeys {
        query: "head.probe",
        in_projection: InProjection::Joined("head.attention.in_proj"),
        attention_out: "head.attention.out_proj",
        norm: "head.layernorm",
        mlp: ["head.mlp.fc1", "head.mlp.fc2"],
    }),
    projection: "",
    ignored: &[
        "text_model.",
        "logit_scale",
        "logit_bias",
        "vision_model.embeddings.position_ids",
    ],
    custom: Custom {
        gelu: Gelu::Tanh,
        norm_eps: 1e-6,
        mean: HALVES.0,
        std: HALVES.1,
        crop: None,
        grid: GridFilter::Plain,
        image_size: None,
    },
    ..CLIP
};

const DINO_V2: KeyMap = KeyMap {
    layout: "Hugging Face's DINOv2",
    patch: "embeddings.patch_embeddings.projection",
    class: "embeddings.cls_token",
    registers: &["embeddings.register_tokens"],
    positions: "embeddings.position_embeddings",
    norm_before: &[],
    block: "encoder.layer.{}.",
    norms: ["norm1", "norm2"],
    qkv: &[
        Qkv::Apart([
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ]),
        Qkv::Apart(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    ],
    attention_out: &["attention.output.dense", "attention.o_proj"],
    mlp: ["mlp.fc1", "mlp.fc2"],
    scales: ["layer_scale1.lambda1", "layer_scale2.lambda1"],
    norm: "layernorm",
    map: None,
    projection: "",
    ignored: &[
        "embeddings.mask_token",
        "classifier.",
        "dinov2.embeddings.mask_token",
    ],
    custom: Custom {
        gelu: Gelu::Exact,
        norm_eps: 1e-6,
        mean: IMAGENET.0,
        std: IMAGENET.1,
        crop: Some((256.0 / 224.0, Centre::Floor)),
        grid: GridFilter::Plain,
        image_size: Some(224),
    },
};

/// A layer's tensors: `[outputs, inputs]` and `[outputs]`.
struct LinearKeys<'a> {
    weight: &'a str,
    bias: Option<&'a str>,
    inputs: usize,
    outputs: usize,
}

impl KeyMap {
    /// The map that a file is laid out by, and what stands before its keys.
    pub(super) fn of(sheet: &Sheet<'_>) -> Result<(&'static Self, String), PretrainedError> {
        let keys = sheet.keys();
        let prefix_of = |name: &str| {
            let wanted = format!("{name}.weight");
            let beginning = |key: &&str| key.strip_suffix(&wanted).map(str::to_owned);
            keys.iter().find_map(beginning)
        };
        if let Some(prefix) = prefix_of(TIMM.patch) {
            return Ok((&TIMM, prefix));
        }
        if let Some(prefix) = prefix_of(DINO_V2.patch) {
            return Ok((&DINO_V2, prefix));
        }
        if let Some(prefix) = prefix_of(CLIP.patch) {
            let is_clip = sheet.shape(&format!("{prefix}{}", CLIP.class)).is_some();
            return Ok((if is_clip { &CLIP } else { &SIGLIP }, prefix));
        }
        Err(PretrainedError::Layout {
            path: sheet.path().to_owned(),
            keys: keys.iter().take(4).map(|key| key.to_string()).collect(),
        })
    }

    pub(super) fn ignores(&self, key: &str) -> bool {
        self.ignored
            .iter()
            .any(|beginning| key.starts_with(beginning))
    }

    fn block(&self, prefix: &str, number: usize) -> String {
        format!("{prefix}{}", self.block.replace("{}", &number.to_string()))
    }

    /// The shape, read off the tensors and what is said beside them.
    pub(super) fn config(
        &self,
        sheet: &Sheet<'_>,
        prefix: &str,
        described: &Described,
        wanted: &PretrainedConfig,
    ) -> Result<VisualConfig, PretrainedError> {
        let patch = format!("{prefix}{}.weight", self.patch);
        let Some([dim, 3, patch_size, width]) = sheet.shape(&patch).and_then(as_array) else {
            return Err(sheet.wrong_shape(&patch, "[dim, 3, patch, patch]"));
        };
        if patch_size != width || patch_size == 0 {
            return Err(sheet.wrong_shape(&patch, "[dim, 3, patch, patch]"));
        }
        let (side, _) = self.grid(sheet, prefix)?;
        let first = self.block(prefix, 0);
        let depth = (0..)
            .take_while(|number| {
                let norm = format!("{}{}.weight", self.block(prefix, *number), self.norms[0]);
                sheet.shape(&norm).is_some()
            })
            .count();
        let hidden = sheet.shape(&format!("{first}{}.bias", self.mlp[0]));
        let mlp_ratio = hidden.map_or(4, |shape| shape.first().copied().unwrap_or(0) / dim.max(1));
        let registers = sheet.first_of(prefix, self.registers, "");
        let num_registers = registers
            .and_then(|key| sheet.shape(&key))
            .and_then(as_array)
            .map_or(0, |[_, count, _]: [usize; 3]| count);
        let has = |key: String| sheet.shape(&key).is_some();
        let pooling = match &self.map {
            Some(map) if has(format!("{prefix}{}", map.query)) => Pooling::Map,
            _ if has(format!("{prefix}{}", self.class)) => Pooling::Cls,
            _ => Pooling::Mean,
        };
        let projection = sheet.shape(&format!("{}.weight", self.projection));
        let projection_dim = projection
            .filter(|_| !has(format!("{}.bias", self.projection)))
            .and_then(|shape| shape.first().copied())
            .unwrap_or(0);
        let norm_before = sheet
            .first_of(prefix, self.norm_before, ".weight")
            .is_some();

        let has_scales = has(format!("{first}{}", self.scales[0]));
        let custom = self.custom(norm_before, has_scales, num_registers);
        let trained_at = side.saturating_mul(patch_size);
        let prepared_for = described
            .image_size
            .or(custom.image_size)
            .unwrap_or(trained_at);
        let image_size = if wanted.image_size > 0 {
            wanted.image_size
        } else {
            prepared_for
        };
        let num_heads = match (wanted.num_heads, described.num_heads) {
            (0, Some(said)) => said,
            (0, None) => (dim / 64).max(1),
            (wanted, _) => wanted,
        };
        let filter = described.filter.unwrap_or(Filter::Bicubic);
        let resize = match custom.crop {
            None => Resize::Stretch { filter },
            Some((share, centre)) => {
                let said = described
                    .short_side
                    .map(|short| short as f64 / prepared_for as f64);
                // A share such as 256 / 224 comes out whole.
                let short_side = image_size as f64 * said.unwrap_or(share) + 1e-6;
                let short_side = (short_side as usize).max(image_size);
                Resize::Crop {
                    filter,
                    short_side,
                    centre,
                }
            }
        };
        Ok(VisualConfig {
            vit: VitConfig {
                image_size,
                patch_size,
                dim,
                depth,
                num_heads,
                mlp_ratio,
                num_registers,
                pooling,
                gelu: wanted.gelu.or(described.gelu).unwrap_or(custom.gelu),
                norm_eps: described.norm_eps.unwrap_or(custom.norm_eps),
                norm_before,
                projection_dim,
            },
            mean: described.mean.unwrap_or(custom.mean),
            std: described.std.unwrap_or(custom.std),
            resize,
            ..VisualConfig::default()
        })
    }

    /// What is done where nothing is said. timm holds models of other schools too, which are told by what
    /// they are made of.
    fn custom(&self, norm_before: bool, has_scales: bool, num_registers: usize) -> Custom {
        let crop = Some((1.0, Centre::HalfEven));
        match self.layout {
            // With registers they are interpolated otherwise than without.
            layout if layout == DINO_V2.layout && num_registers > 0 => {
                let grid = GridFilter::AntiAliased;
                Custom {
                    grid,
                    ..self.custom
                }
            }
            layout if layout != TIMM.layout => self.custom,
            _ if norm_before => {
                let (mean, std) = CLIP_COLOURS;
                Custom {
                    mean,
                    std,
                    crop,
                    norm_eps: 1e-5,
                    ..self.custom
                }
            }
            _ if has_scales => {
                let (mean, std) = IMAGENET;
                Custom {
                    mean,
                    std,
                    crop,
                    ..self.custom
                }
            }
            _ => self.custom,
        }
    }

    /// Side of the grid of positions, and whether one of the pooled token stands before it.
    fn grid(&self, sheet: &Sheet<'_>, prefix: &str) -> Result<(usize, bool), PretrainedError> {
        let key = format!("{prefix}{}", self.positions);
        let shape = sheet.shape(&key).unwrap_or_default();
        let count = shape.len().checked_sub(2).map_or(0, |at| shape[at]);
        let whole = |count: usize| Some(count.isqrt()).filter(|side| side * side == count);
        match (whole(count), count.checked_sub(1).and_then(whole)) {
            (Some(side), _) if side > 0 => Ok((side, false)),
            (_, Some(side)) if side > 0 => Ok((side, true)),
            _ if shape.is_empty() => Err(PretrainedError::Keys {
                path: sheet.path().to_owned(),
                layout: self.layout,
                missing: vec![key],
                unexpected: Vec::new(),
            }),
            _ => Err(sheet.wrong_shape(&key, "positions of a square, with or without one more")),
        }
    }

    /// Takes all tensors of the network.
    pub(super) fn take(
        &self,
        sheet: &mut Sheet<'_>,
        prefix: &str,
        vit: &VitConfig,
    ) -> Result<(), PretrainedError> {
        let dim = vit.dim;
        self.take_patches(sheet, prefix, vit)?;
        self.take_tokens(sheet, prefix, vit)?;
        if let Some(key) = sheet.first_of(prefix, self.norm_before, ".weight") {
            take_norm(sheet, "norm_before", &key, dim)?;
        }
        for number in 0..vit.depth {
            self.take_block(sheet, &self.block(prefix, number), number, vit)?;
        }
        take_norm(sheet, "norm", &format!("{prefix}{}", self.norm), dim)?;
        if let Some(map) = self.map.as_ref().filter(|_| vit.pooling == Pooling::Map) {
            map.take(sheet, prefix, vit)?;
        }
        if vit.projection_dim > 0 {
            let weight = &format!("{}.weight", self.projection);
            let keys = LinearKeys {
                weight,
                bias: None,
                inputs: dim,
                outputs: vit.projection_dim,
            };
            take_linear(sheet, "projection", &keys, None)?;
        }
        Ok(())
    }

    fn take_patches(
        &self,
        sheet: &mut Sheet<'_>,
        prefix: &str,
        vit: &VitConfig,
    ) -> Result<(), PretrainedError> {
        let (dim, patch) = (vit.dim, vit.patch_size);
        let key = format!("{prefix}{}", self.patch);
        if let Some(kernel) = sheet.take(&format!("{key}.weight"), &[dim, 3, patch, patch])? {
            let inputs = vit.patch_values();
            sheet.put(
                "patch_embedding.weight",
                transposed(&kernel, dim, inputs),
                &[inputs, dim],
            );
        }
        // CLIP's has none.
        let bias = format!("{key}.bias");
        let bias = match sheet.shape(&bias) {
            Some(_) => sheet.take(&bias, &[dim])?,
            None => Some(vec![0.0; dim]),
        };
        if let Some(bias) = bias {
            sheet.put("patch_embedding.bias", bias, &[dim]);
        }
        Ok(())
    }

    fn take_tokens(
        &self,
        sheet: &mut Sheet<'_>,
        prefix: &str,
        vit: &VitConfig,
    ) -> Result<(), PretrainedError> {
        let dim = vit.dim;
        let (side, has_class) = self.grid(sheet, prefix)?;
        let key = format!("{prefix}{}", self.positions);
        // Some have a leading 1.
        let shape = sheet.shape(&key).unwrap_or_default();
        let Some(positions) = sheet.take(&key, &shape)? else {
            return Ok(());
        };
        if positions.len() != (side * side + usize::from(has_class)) * dim {
            return Err(sheet.wrong_shape(&key, format!("positions of {dim} numbers each")));
        }
        let (of_class, grid) = positions.split_at(dim * usize::from(has_class));
        let wanted = vit.image_size / vit.patch_size;
        // Neither of the other two matters to it.
        let filter = self.custom(false, false, vit.num_registers).grid;
        let grid = resize_grid(grid, side, wanted, dim, filter);
        sheet.put("positions", grid, &[1, wanted * wanted, dim]);

        let mut extra = Vec::new();
        if vit.pooling == Pooling::Cls {
            let key = format!("{prefix}{}", self.class);
            let shape = sheet.shape(&key).unwrap_or_default();
            if shape.iter().product::<usize>() != dim {
                return Err(sheet.wrong_shape(&key, format!("{dim} numbers")));
            }
            let Some(mut class) = sheet.take(&key, &shape)? else {
                return Ok(());
            };
            class
                .iter_mut()
                .zip(of_class)
                .for_each(|(token, position)| *token += position);
            extra = class;
        }
        if vit.num_registers > 0 {
            let key = sheet
                .first_of(prefix, self.registers, "")
                .unwrap_or_default();
            if let Some(registers) = sheet.take(&key, &[1, vit.num_registers, dim])? {
                extra.extend(registers);
            }
        }
        if !extra.is_empty() && extra.len() == vit.num_extra_tokens() * dim {
            sheet.put("extra_tokens", extra, &[1, vit.num_extra_tokens(), dim]);
        }
        Ok(())
    }

    fn take_block(
        &self,
        sheet: &mut Sheet<'_>,
        block: &str,
        number: usize,
        vit: &VitConfig,
    ) -> Result<(), PretrainedError> {
        let (dim, hidden) = (vit.dim, vit.dim * vit.mlp_ratio);
        let to = |name: &str| format!("blocks.{number}.{name}");
        let mut scales = [None, None];
        for (scale, name) in scales.iter_mut().zip(self.scales) {
            let key = format!("{block}{name}");
            if !name.is_empty() && sheet.shape(&key).is_some() {
                *scale = sheet.take(&key, &[dim])?;
            }
        }
        take_norm(
            sheet,
            &to("attention_norm"),
            &format!("{block}{}", self.norms[0]),
            dim,
        )?;
        self.take_qkv(sheet, block, &to("qkv"), dim)?;
        let out = sheet.first_of(block, self.attention_out, ".weight");
        let out = out.unwrap_or_else(|| format!("{block}{}", self.attention_out[0]));
        let named = |name: &str| [format!("{name}.weight"), format!("{name}.bias")];
        let layers = [
            (to("attention_out"), named(&out), dim, dim, &scales[0]),
            (
                to("mlp.hidden"),
                named(&format!("{block}{}", self.mlp[0])),
                dim,
                hidden,
                &None,
            ),
            (
                to("mlp.out"),
                named(&format!("{block}{}", self.mlp[1])),
                hidden,
                dim,
                &scales[1],
            ),
        ];
        for (to, [weight, bias], inputs, outputs, scale) in layers {
            let keys = LinearKeys {
                weight: &weight,
                bias: Some(&bias),
                inputs,
                outputs,
            };
            take_linear(sheet, &to, &keys, scale.as_deref())?;
        }
        take_norm(
            sheet,
            &to("mlp.norm"),
            &format!("{block}{}", self.norms[1]),
            dim,
        )
    }

    fn take_qkv(
        &self,
        sheet: &mut Sheet<'_>,
        block: &str,
        to: &str,
        dim: usize,
    ) -> Result<(), PretrainedError> {
        let is_there = |qkv: &&Qkv| {
            let name = match qkv {
                Qkv::Joined(name) | Qkv::Apart([name, ..]) => name,
            };
            sheet.shape(&format!("{block}{name}.weight")).is_some()
        };
        match self.qkv.iter().find(is_there).unwrap_or(&self.qkv[0]) {
            Qkv::Joined(name) => {
                let [weight, bias] = ["weight", "bias"].map(|end| format!("{block}{name}.{end}"));
                let outputs = 3 * dim;
                let keys = LinearKeys {
                    weight: &weight,
                    bias: Some(&bias),
                    inputs: dim,
                    outputs,
                };
                take_linear(sheet, to, &keys, None)
            }
            Qkv::Apart(names) => {
                let (mut weights, mut biases) = (Vec::new(), Vec::new());
                for name in names {
                    let name = format!("{block}{name}");
                    weights.extend(sheet.take(&format!("{name}.weight"), &[dim, dim])?);
                    biases.extend(sheet.take(&format!("{name}.bias"), &[dim])?);
                }
                let (weights, biases): (Vec<f32>, Vec<f32>) = (weights.concat(), biases.concat());
                // Less if one was missing, which was noted.
                if weights.len() == 3 * dim * dim && biases.len() == 3 * dim {
                    let weights = transposed(&weights, 3 * dim, dim);
                    sheet.put(&format!("{to}.weight"), weights, &[dim, 3 * dim]);
                    sheet.put(&format!("{to}.bias"), biases, &[3 * dim]);
                }
                Ok(())
            }
        }
    }
}

impl MapKeys {
    fn take(
        &self,
        sheet: &mut Sheet<'_>,
        prefix: &str,
        vit: &VitConfig,
    ) -> Result<(), PretrainedError> {
        let (dim, hidden) = (vit.dim, vit.dim * vit.mlp_ratio);
        let key = |name: &str| format!("{prefix}{name}");
        if let Some(query) = sheet.take(&key(self.query), &[1, 1, dim])? {
            sheet.put("map.query", query, &[1, 1, dim]);
        }
        match self.in_projection {
            InProjection::Joined(name) => {
                let weight = sheet.take(&key(&format!("{name}_weight")), &[3 * dim, dim])?;
                let bias = sheet.take(&key(&format!("{name}_bias")), &[3 * dim])?;
                if let (Some(weight), Some(bias)) = (weight, bias) {
                    let (q, kv) = weight.split_at(dim * dim);
                    sheet.put("map.q.weight", transposed(q, dim, dim), &[dim, dim]);
                    sheet.put(
                        "map.kv.weight",
                        transposed(kv, 2 * dim, dim),
                        &[dim, 2 * dim],
                    );
                    sheet.put("map.q.bias", bias[..dim].to_vec(), &[dim]);
                    sheet.put("map.kv.bias", bias[dim..].to_vec(), &[2 * dim]);
                }
            }
            InProjection::Apart { q, kv } => {
                for (to, name, outputs) in [("map.q", q, dim), ("map.kv", kv, 2 * dim)] {
                    take_named(sheet, to, &key(name), dim, outputs)?;
                }
            }
        }
        take_named(
            sheet,
            "map.attention_out",
            &key(self.attention_out),
            dim,
            dim,
        )?;
        take_norm(sheet, "map.mlp.norm", &key(self.norm), dim)?;
        take_named(sheet, "map.mlp.hidden", &key(self.mlp[0]), dim, hidden)?;
        take_named(sheet, "map.mlp.out", &key(self.mlp[1]), hidden, dim)
    }
}

fn as_array<const N: usize>(shape: Vec<usize>) -> Option<[usize; N]> {
    shape.try_into().ok()
}

/// `[rows, columns]` as `[columns, rows]`: PyTorch's layers hold their outputs first.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns)
        .map(|at| values[(at % rows) * columns + at / rows])
        .collect()
}

fn take_norm(
    sheet: &mut Sheet<'_>,
    to: &str,
    from: &str,
    dim: usize,
) -> Result<(), PretrainedError> {
    for (end, name) in [("weight", "gamma"), ("bias", "beta")] {
        if let Some(values) = sheet.take(&format!("{from}.{end}"), &[dim])? {
            sheet.put(&format!("{to}.{name}"), values, &[dim]);
        }
    }
    Ok(())
}

/// A layer with `.weight` and `.bias`.
fn take_named(
    sheet: &mut Sheet<'_>,
    to: &str,
    from: &str,
    inputs: usize,
    outputs: usize,
) -> Result<(), PretrainedError> {
    let [weight, bias] = ["weight", "bias"].map(|end| format!("{from}.{end}"));
    let keys = LinearKeys {
        weight: &weight,
        bias: Some(&bias),
        inputs,
        outputs,
    };
    take_linear(sheet, to, &keys, None)
}

/// A layer whose outputs are multiplied with `scale`, if there is one.
fn take_linear(
    sheet: &mut Sheet<'_>,
    to: &str,
    keys: &LinearKeys<'_>,
    scale: Option<&[f32]>,
) -> Result<(), PretrainedError> {
    let LinearKeys {
        inputs, outputs, ..
    } = *keys;
    let scaled = |mut values: Vec<f32>, each: usize| {
        if let Some(scale) = scale {
            let rows = values.chunks_exact_mut(each).zip(scale);
            rows.for_each(|(row, scale)| row.iter_mut().for_each(|value| *value *= scale));
        }
        values
    };
    if let Some(weight) = sheet.take(keys.weight, &[outputs, inputs])? {
        let weight = transposed(&scaled(weight, inputs), outputs, inputs);
        sheet.put(&format!("{to}.weight"), weight, &[inputs, outputs]);
    }
    if let Some(bias) = keys.bias
        && let Some(values) = sheet.take(bias, &[outputs])?
    {
        sheet.put(&format!("{to}.bias"), scaled(values, 1), &[outputs]);
    }
    Ok(())
}
