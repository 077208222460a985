//! What a source's own files say beside the weights: `config.json`, `preprocessor_config.json`.
//!
//! They hold much that is not of interest here, so unknown keys are passed over.

use std::{fs, path::Path};

use serde::{Deserialize, de::DeserializeOwned};

use super::{PretrainedError, beside};
use crate::{ops::Gelu, visual::resample::Filter};

const MODEL_JSON: &str = "config.json";
const PREPROCESSOR_JSON: &str = "preprocessor_config.json";

/// Names of the files.
pub(super) const NAMES: [&str; 2] = [MODEL_JSON, PREPROCESSOR_JSON];

/// All that may be known of a file of weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Described {
    pub(super) num_heads: Option<usize>,
    pub(super) gelu: Option<Gelu>,
    pub(super) norm_eps: Option<f64>,
    pub(super) mean: Option<[f32; 3]>,
    pub(super) std: Option<[f32; 3]>,
    pub(super) filter: Option<Filter>,
    /// Pixels each way that pictures are prepared for.
    pub(super) image_size: Option<usize>,
    /// Pixels of the shorter side before the middle is cut out.
    pub(super) short_side: Option<usize>,
}

#[derive(Deserialize)]
struct ModelJson {
    vision_config: Option<Box<ModelJson>>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    pretrained_cfg: Option<TimmJson>,
}

#[derive(Deserialize)]
struct TimmJson {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    interpolation: Option<String>,
    input_size: Option<[usize; 3]>,
    crop_pct: Option<f64>,
}

#[derive(Deserialize)]
struct PreprocessorJson {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    resample: Option<u32>,
    size: Option<SizeJson>,
    crop_size: Option<SizeJson>,
    do_center_crop: Option<bool>,
}

/// A number in old files, names in newer ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum SizeJson {
    Number(usize),
    Names {
        shortest_edge: Option<usize>,
        height: Option<usize>,
    },
}

impl SizeJson {
    fn pixels(&self) -> Option<usize> {
        match self {
            Self::Number(pixels) => Some(*pixels),
            Self::Names {
                shortest_edge,
                height,
            } => shortest_edge.or(*height),
        }
    }
}

impl Described {
    /// Reads what is there.
    pub(super) fn beside(weights: &Path) -> Result<Self, PretrainedError> {
        let mut found = Self::default();
        if let Some(path) = beside(weights, MODEL_JSON) {
            found.model(&path, read(&path)?)?;
        }
        if let Some(path) = beside(weights, PREPROCESSOR_JSON) {
            found.preprocessor(&path, &read(&path)?)?;
        }
        Ok(found)
    }

    fn model(&mut self, path: &Path, json: ModelJson) -> Result<(), PretrainedError> {
        if let Some(vision) = json.vision_config {
            return self.model(path, *vision);
        }
        self.num_heads = json.num_attention_heads;
        self.norm_eps = json.layer_norm_eps;
        self.gelu = match json.hidden_act.as_deref() {
            None => None,
            Some("gelu") => Some(Gelu::Exact),
            Some("quick_gelu") => Some(Gelu::Quick),
            Some("gelu_pytorch_tanh" | "gelu_new") => Some(Gelu::Tanh),
            Some(other) => {
                let wanted = "gelu, quick_gelu or gelu_pytorch_tanh";
                return Err(word(path, "hidden_act", other, wanted));
            }
        };
        let Some(timm) = json.pretrained_cfg else {
            return Ok(());
        };
        (self.mean, self.std) = (timm.mean, timm.std);
        self.filter = match timm.interpolation.as_deref() {
            None => None,
            Some("bilinear") => Some(Filter::Bilinear),
            Some("bicubic") => Some(Filter::Bicubic),
            Some("lanczos") => Some(Filter::Lanczos),
            Some(other) => {
                let wanted = "bilinear, bicubic or lanczos";
                return Err(word(path, "interpolation", other, wanted));
            }
        };
        self.image_size = timm.input_size.map(|[_, height, _]| height);
        if let (Some(size), Some(share)) = (self.image_size, timm.crop_pct)
            && share > 0.0
        {
            self.short_side = Some((size as f64 / share).floor() as usize);
        }
        Ok(())
    }

    fn preprocessor(
        &mut self,
        path: &Path,
        json: &PreprocessorJson,
    ) -> Result<(), PretrainedError> {
        (self.mean, self.std) = (json.image_mean, json.image_std);
        // The numbers are Pillow's.
        self.filter = match json.resample {
            None => None,
            Some(1) => Some(Filter::Lanczos),
            Some(2) => Some(Filter::Bilinear),
            Some(3) => Some(Filter::Bicubic),
            Some(other) => {
                let wanted = "1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
                return Err(word(path, "resample", other, wanted));
            }
        };
        let pixels = |size: &Option<SizeJson>| size.as_ref().and_then(SizeJson::pixels);
        self.image_size = pixels(&json.crop_size).or(pixels(&json.size));
        if json.do_center_crop.unwrap_or(json.crop_size.is_some()) {
            self.short_side = pixels(&json.size);
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, PretrainedError> {
    let text = fs::read(path).map_err(|source| PretrainedError::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| PretrainedError::Json {
        path: path.to_owned(),
        source,
    })
}

fn word(
    path: &Path,
    key: &'static str,
    found: impl ToString,
    wanted: &'static str,
) -> PretrainedError {
    PretrainedError::Word {
        path: path.to_owned(),
        key,
        found: found.to_string(),
        wanted,
    }
}
