//! A trained click model as files: `model.json`, `dense.safetensors`, `tables.safetensors`.

use std::path::Path;

use burn::{
    prelude::Backend,
    tensor::{Tensor, TensorData},
};
use features::{FeatureBatch, Schema, SparseField};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{
    calibration::Calibration,
    delay::ConversionDelay,
    embedding::{EmbeddingTable, KnownIds, Pooling},
    network::{InputLayout, Mode, Network, NetworkConfig, TowerVectors},
};
use crate::{
    Cpu,
    files::{self, ModelFileError},
    ops::FusedOps,
};

/// Means and standard deviations of the dense features over the training rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// One per dense feature.
    pub mean: Vec<f32>,
    /// One per dense feature; never 0.
    pub std: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableShape {
    /// Files of before there were shared tables have its feature here.
    #[serde(alias = "feature")]
    name: String,
    /// The sparse features that read it; none: that of its name, as in those files.
    #[serde(default)]
    features: Vec<String>,
    rows: usize,
    dim: usize,
    #[serde(default)]
    pooling: Pooling,
    /// Whether the ids that have rows stand beside the weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dynamic: bool,
}

impl TableShape {
    fn features(&self) -> &[String] {
        match self.features.is_empty() {
            true => std::slice::from_ref(&self.name),
            false => &self.features,
        }
    }
}

/// Tensor of the ids of a dynamic table.
fn ids_tensor(table: &str) -> String {
    format!("ids:{table}")
}

/// Which table each sparse feature reads, by the features of the tables; else what is wrong with
/// these.
fn tables_of<'a>(
    schema: &Schema,
    tables: impl Iterator<Item = &'a [String]> + Clone,
) -> Result<Vec<usize>, String> {
    let known = |name: &&String| schema.sparse.iter().any(|field| field.name == **name);
    if let Some(stray) = tables.clone().flatten().find(|name| !known(name)) {
        return Err(format!(
            "a table is of `{stray}`, which is not a sparse feature"
        ));
    }
    let table_of = |field: &SparseField| {
        let tables = tables.clone().enumerate();
        let mut reads = tables.filter(|(_, names)| names.contains(&field.name));
        match (reads.next(), reads.next()) {
            (Some((table, _)), None) => Ok(table),
            (None, _) => Err(format!("sparse feature `{}` has no table", field.name)),
            (_, Some(_)) => Err(format!("sparse feature `{}` has two tables", field.name)),
        }
    };
    schema.sparse.iter().map(table_of).collect()
}

fn dense_names(schema: &Schema) -> impl Iterator<Item = String> {
    schema.dense.iter().map(|field| field.name.clone())
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    network: NetworkConfig,
    schema: Schema,
    normalisation: Normalisation,
    calibration: Calibration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<ConversionDelay>,
    tables: Vec<TableShape>,
}

impl ModelFile {
    /// Whether the parts fit each other; else what does not.
    fn check(&self) -> Result<(), String> {
        let Normalisation { mean, std } = &self.normalisation;
        let wanted = self.schema.dense.len();
        if mean.len() != wanted || std.len() != wanted {
            return Err(format!(
                "normalisation has {} means and {} deviations, wanted {wanted} of each",
                mean.len(),
                std.len()
            ));
        }
        let usable = |(mean, std): (&f32, &f32)| mean.is_finite() && std.is_finite() && *std > 0.0;
        if let Some(at) = mean.iter().zip(std).position(|pair| !usable(pair)) {
            return Err(format!(
                "normalisation of {} is ({}, {}), wanted finite numbers, the second above 0",
                self.schema.dense[at].name, mean[at], std[at]
            ));
        }
        self.calibration.check()?;
        self.delay.as_ref().map_or(Ok(()), ConversionDelay::check)?;
        let fits = self.network.check(&self.layout(&self.table_of()?));
        fits.map_err(|error| error.to_string())
    }

    /// Which table each sparse feature reads.
    fn table_of(&self) -> Result<Vec<usize>, String> {
        tables_of(&self.schema, self.tables.iter().map(TableShape::features))
    }

    fn layout(&self, table_of: &[usize]) -> InputLayout {
        let fields = self.schema.sparse.iter().zip(table_of);
        let fields = fields.map(|(field, table)| (field.name.clone(), self.tables[*table].dim));
        InputLayout::new(dense_names(&self.schema), fields)
    }
}

const MODEL_FILE: &str = "model.json";
const DENSE_FILE: &str = "dense.safetensors";
const TABLES_FILE: &str = "tables.safetensors";

/// Why a click model could not be stored, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum CtrModelError {
    /// A file is missing, damaged or of another model.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// A batch of other features than those the model was trained on.
    #[error(
        "the batch has {found_dense} dense and {found_sparse} sparse features, the model takes {wanted_dense} and {wanted_sparse}"
    )]
    Width {
        /// Dense features of the batch.
        found_dense: usize,
        /// Sparse features of the batch.
        found_sparse: usize,
        /// Dense features of the model.
        wanted_dense: usize,
        /// Sparse features of the model.
        wanted_sparse: usize,
    },
    /// Ids whose offsets do not rise from 0 to their number, one step a row.
    #[error("the bags of sparse feature {feature} are not {rows} rows of its ids")]
    Bags {
        /// The feature's name.
        feature: String,
        /// Rows of the batch.
        rows: usize,
    },
    /// A model of clicks alone.
    #[error(
        "the model says nothing of conversions: its network has one task; train one with model.architecture = \"mmoe\""
    )]
    ClicksAlone,
    /// A value that is not finite.
    #[error("dense feature {feature} of row {row} is {value}")]
    NotFinite {
        /// The feature's name.
        feature: String,
        /// The row.
        row: usize,
        /// The value.
        value: f32,
    },
}

/// A click model that is ready to score.
#[derive(Debug, Clone)]
pub struct CtrModel<B: Backend = Cpu> {
    config: NetworkConfig,
    schema: Schema,
    normalisation: Normalisation,
    /// Correction of the logits of clicks.
    pub calibration: Calibration,
    /// Of two tasks: how late conversions came in the training rows, for who measures the model.
    pub delay: Option<ConversionDelay>,
    tables: Vec<EmbeddingTable>,
    /// Which of them each sparse feature reads.
    table_of: Vec<usize>,
    network: Network<B>,
    device: B::Device,
}

impl<B: FusedOps> CtrModel<B> {
    /// Joins the parts of a trained model.
    ///
    /// # Panics
    /// If the tables are not such that every sparse feature reads one of them.
    pub fn new(
        config: NetworkConfig,
        schema: Schema,
        normalisation: Normalisation,
        tables: Vec<EmbeddingTable>,
        network: Network<B>,
        device: B::Device,
    ) -> Self {
        let calibration = Calibration::default();
        let table_of = tables_of(&schema, tables.iter().map(|table| &*table.features));
        Self {
            config,
            schema,
            normalisation,
            calibration,
            delay: None,
            table_of: table_of.expect("a table for every sparse feature"),
            tables,
            network,
            device,
        }
    }

    /// The features that it takes.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// How many logits a row has: one, or those of a click and of a conversion after it.
    pub fn num_tasks(&self) -> usize {
        self.config.num_tasks()
    }

    /// Probability of a click for each row.
    ///
    /// # Errors
    /// [`CtrModelError::Width`] or [`CtrModelError::NotFinite`] if the batch does not fit.
    pub fn score(&self, batch: &FeatureBatch) -> Result<Vec<f32>, CtrModelError> {
        let logits = self.logits(batch)?;
        Ok(logits
            .into_iter()
            .map(|logit| self.calibration.probability(logit))
            .collect())
    }

    /// Logit of a click for each row, before calibration.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn logits(&self, batch: &FeatureBatch) -> Result<Vec<f32>, CtrModelError> {
        let logits = self.forward(batch)?;
        Ok(logits.into_iter().step_by(self.num_tasks()).collect())
    }

    /// Probabilities of a click, and of a conversion after one, for each row; their product is that of
    /// both. Only the first is calibrated: the newest rows, by which one would, do not know yet which
    /// of their conversions will come.
    ///
    /// # Errors
    /// As [`Self::score`], and [`CtrModelError::ClicksAlone`] if the network has one task.
    pub fn score_conversions(&self, batch: &FeatureBatch) -> Result<Vec<[f32; 2]>, CtrModelError> {
        if self.num_tasks() == 1 {
            return Err(CtrModelError::ClicksAlone);
        }
        let logits = self.forward(batch)?;
        let (rows, _) = logits.as_chunks::<2>();
        let uncalibrated = Calibration::default();
        let probabilities = rows.iter().map(|[click, conversion]| {
            [
                self.calibration.probability(*click),
                uncalibrated.probability(*conversion),
            ]
        });
        Ok(probabilities.collect())
    }

    /// Vectors of who asks and of the ad, of a model with a tower for each.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn vectors(&self, batch: &FeatureBatch) -> Result<Option<TowerVectors>, CtrModelError> {
        let Some(towers) = self.network.two_tower() else {
            return Ok(None);
        };
        Ok(Some(towers.vectors(&self.input(batch)?)))
    }

    /// Which of the sparse features are of the ad, of a model with a tower for it.
    pub fn item_fields(&self) -> Option<Vec<usize>> {
        let fields = self.config.item_fields(&self.layout());
        fields.expect("a network that was made for the features")
    }

    /// Columns of the network's input.
    fn layout(&self) -> InputLayout {
        let dims = self.table_of.iter().map(|table| self.tables[*table].dim);
        let fields = self.schema.sparse.iter().map(|field| field.name.clone());
        InputLayout::new(dense_names(&self.schema), fields.zip(dims))
    }

    /// Logits `[rows, tasks]`.
    fn forward(&self, batch: &FeatureBatch) -> Result<Vec<f32>, CtrModelError> {
        if batch.num_rows == 0 {
            self.check(batch)?;
            return Ok(Vec::new());
        }
        let logits = self.network.forward(self.input(batch)?, Mode::Inference);
        let logits = logits.into_data().convert::<f32>();
        Ok(logits.to_vec().expect("the data were converted to f32"))
    }

    /// The network's input: standardised dense features, and pooled rows.
    fn input(&self, batch: &FeatureBatch) -> Result<Tensor<B, 2>, CtrModelError> {
        self.check(batch)?;
        let tables = self.table_of.iter().map(|table| &self.tables[*table]);
        let dims: usize = tables.clone().map(|table| table.dim).sum();
        let width = batch.num_dense + dims;
        let mut input = vec![0.0; batch.num_rows * width];
        write_dense(batch, &self.normalisation, &mut input, width);
        let mut column = batch.num_dense;
        for (table, bags) in tables.zip(&batch.sparse) {
            table.pool(bags, 0, &mut input, width, column);
            column += table.dim;
        }
        let input = TensorData::new(input, [batch.num_rows, width]);
        Ok(Tensor::from_data(input, &self.device))
    }

    fn check(&self, batch: &FeatureBatch) -> Result<(), CtrModelError> {
        if batch.num_dense != self.schema.dense.len()
            || batch.sparse.len() != self.schema.sparse.len()
        {
            return Err(CtrModelError::Width {
                found_dense: batch.num_dense,
                found_sparse: batch.sparse.len(),
                wanted_dense: self.schema.dense.len(),
                wanted_sparse: self.schema.sparse.len(),
            });
        }
        let bags = batch.sparse.iter().zip(&self.schema.sparse);
        for (bags, field) in bags {
            if !bags.fits(batch.num_rows) {
                return Err(CtrModelError::Bags {
                    feature: field.name.clone(),
                    rows: batch.num_rows,
                });
            }
        }
        match batch.dense.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(CtrModelError::NotFinite {
                feature: self.schema.dense[at % batch.num_dense].name.clone(),
                row: at / batch.num_dense,
                value: batch.dense[at],
            }),
        }
    }

    /// Writes the model's files into a folder.
    ///
    /// # Errors
    /// [`CtrModelError`] if the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), CtrModelError> {
        files::create_dir(dir)?;
        let shape = |table: &EmbeddingTable| TableShape {
            name: table.name.clone(),
            features: table.features.clone(),
            rows: table.rows,
            dim: table.dim,
            pooling: table.pooling,
            dynamic: table.known.is_some(),
        };
        let file = ModelFile {
            network: self.config.clone(),
            schema: self.schema.clone(),
            normalisation: self.normalisation.clone(),
            calibration: self.calibration.clone(),
            delay: self.delay,
            tables: self.tables.iter().map(shape).collect(),
        };
        files::write_json(&dir.join(MODEL_FILE), &file)?;
        files::save_weights(&self.network, &dir.join(DENSE_FILE))?;

        let path = dir.join(TABLES_FILE);
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for table in &self.tables {
            let weights = table.weights.iter().flat_map(|w| w.to_le_bytes());
            let shape = vec![table.rows, table.dim];
            let name = table.name.clone();
            tensors.push((name, Dtype::F32, shape, weights.collect()));
            if let Some(known) = &table.known {
                let ids = known.ids().iter().flat_map(|id| id.to_le_bytes());
                let (name, shape) = (ids_tensor(&table.name), vec![known.ids().len()]);
                tensors.push((name, Dtype::U64, shape, ids.collect()));
            }
        }
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view))
            })
            .collect();
        let data = views
            .and_then(|views| safetensors::serialize(views, None))
            .map_err(|error| ModelFileError::content(&path, error))?;
        Ok(files::write(&path, &data)?)
    }

    /// Loads a model from its folder.
    ///
    /// # Errors
    /// [`CtrModelError`] that names the file, if one is missing, damaged or of another shape.
    pub fn load_on(dir: &Path, device: B::Device) -> Result<Self, CtrModelError> {
        let path = dir.join(MODEL_FILE);
        let file: ModelFile = files::read_json(&path)?;
        file.check()
            .map_err(|what| ModelFileError::content(&path, what))?;
        let table_of = file
            .table_of()
            .map_err(|what| ModelFileError::content(&path, what))?;
        let tables = load_tables(&dir.join(TABLES_FILE), &file.tables)?;
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let layout = file.layout(&table_of);
        let mut network = file.network.init(&layout, &mut random, &device);
        files::load_weights(&mut network, &dir.join(DENSE_FILE))?;
        let ModelFile {
            network: config,
            schema,
            normalisation,
            calibration,
            delay,
            ..
        } = file;
        Ok(Self {
            config,
            schema,
            normalisation,
            calibration,
            delay,
            tables,
            table_of,
            network,
            device,
        })
    }
}

impl CtrModel<Cpu> {
    /// Loads a model for the CPU.
    ///
    /// # Errors
    /// As [`Self::load_on`].
    pub fn load(dir: &Path) -> Result<Self, CtrModelError> {
        Self::load_on(dir, Default::default())
    }
}

/// Writes the standardised dense values to the first columns of `out` (`[rows, width]`).
pub fn write_dense(
    batch: &FeatureBatch,
    normalisation: &Normalisation,
    out: &mut [f32],
    width: usize,
) {
    if batch.num_dense == 0 {
        return;
    }
    for (row, values) in out
        .chunks_exact_mut(width)
        .zip(batch.dense.chunks_exact(batch.num_dense))
    {
        let parameters = normalisation.mean.iter().zip(&normalisation.std);
        for ((target, value), (mean, std)) in row.iter_mut().zip(values).zip(parameters) {
            *target = (value - mean) / std;
        }
    }
}

fn load_tables(path: &Path, shapes: &[TableShape]) -> Result<Vec<EmbeddingTable>, ModelFileError> {
    let bytes = files::read(path)?;
    let weights = |what: String| ModelFileError::content(path, what);
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| weights(error.to_string()))?;
    shapes
        .iter()
        .map(|shape| {
            let view = tensors
                .tensor(&shape.name)
                .map_err(|error| weights(error.to_string()))?;
            if view.dtype() != Dtype::F32
                || view.shape() != [shape.rows, shape.dim]
                || shape.rows == 0
            {
                return Err(weights(format!(
                    "table `{}` is {:?} {:?}, wanted F32 {:?}",
                    shape.name,
                    view.dtype(),
                    view.shape(),
                    [shape.rows, shape.dim]
                )));
            }
            let values = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let values: Vec<f32> = values.collect();
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(weights(format!(
                    "row {} of table `{}` holds {}",
                    at / shape.dim,
                    shape.name,
                    values[at]
                )));
            }
            let known = match shape.dynamic {
                true => Some(load_ids(&tensors, shape).map_err(weights)?),
                false => None,
            };
            Ok(EmbeddingTable {
                known,
                name: shape.name.clone(),
                features: shape.features().to_vec(),
                rows: shape.rows,
                dim: shape.dim,
                pooling: shape.pooling,
                weights: values,
            })
        })
        .collect()
}

fn load_ids(tensors: &SafeTensors<'_>, shape: &TableShape) -> Result<KnownIds, String> {
    let name = ids_tensor(&shape.name);
    let view = tensors.tensor(&name).map_err(|error| error.to_string())?;
    let wanted = [shape.rows - 1];
    if view.dtype() != Dtype::U64 || view.shape() != wanted {
        return Err(format!(
            "`{name}` is {:?} {:?}, wanted U64 {wanted:?}",
            view.dtype(),
            view.shape()
        ));
    }
    let (ids, _) = view.data().as_chunks::<8>();
    let ids: Vec<u64> = ids.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    match ids.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(format!(
            "`{name}` has {} before {}, wanted rising ids",
            pair[0], pair[1]
        )),
        None => Ok(KnownIds::new(ids)),
    }
}

#[cfg(test)]
mod tests;
