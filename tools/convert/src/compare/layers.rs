//! Compares a blob's layers with those of the checkpoint's model.

use crate::{
    checkpoint::Checkpoint,
    dialect::Model,
    error::Error,
    spec::{ModelSpec, Spec},
};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use ttrec::{Blob, blob::Layer, dtype::Elements};

/// The comparison of a layer with the checkpoint's.
#[derive(Serialize)]
pub struct LayerComparison {
    /// The tensor that its weights come from.
    pub name: String,
    /// The name of their type in the blob.
    pub dtype: &'static str,
    /// Columns of the weights.
    pub inputs: usize,
    /// Rows of the weights.
    pub outputs: usize,
    /// The bytes of the layer in the checkpoint.
    pub checkpoint_bytes: u64,
    /// The bytes of the layer in the blob.
    pub bytes: u64,
    /// The relative error of weights and bias together.
    pub relative_error: f64,
    /// The squared norms of the difference and of the layer.
    #[serde(skip)]
    sums: LayerSums,
}

#[derive(Clone, Copy, Default)]
struct LayerSums {
    difference: f64,
    norm: f64,
}

impl LayerSums {
    fn add(self, other: Self) -> Self {
        Self { difference: self.difference + other.difference, norm: self.norm + other.norm }
    }
}

/// Compares every layer of the blob with that of the checkpoint's model, which the spec may name.
///
/// # Errors
/// If the checkpoint has no such model, or cannot be read.
pub fn layers(
    checkpoint: &Checkpoint,
    spec: Option<&Spec>,
    blob: &Blob<'_>,
) -> Result<Vec<LayerComparison>, Error> {
    Ok(try_layers(checkpoint, spec, blob)?)
}

fn try_layers(
    checkpoint: &Checkpoint,
    spec: Option<&Spec>,
    blob: &Blob<'_>,
) -> Result<Vec<LayerComparison>> {
    if blob.num_layers() == 0 {
        return Ok(Vec::new());
    }
    let path = checkpoint.path().display();
    let found: ModelSpec = match spec.and_then(|spec| spec.model.clone()) {
        Some(model) => model,
        None => match &Model::detect(checkpoint)[..] {
            [model] => model.clone(),
            found => bail!(
                "{path}: the checkpoint has {} models, the blob has one: select it with [model] \
                 in --spec",
                found.len()
            ),
        },
    };
    let model = Model::open(checkpoint, &found).with_context(|| format!("{path}: [model]"))?;
    layers_of(&model, blob).with_context(|| path.to_string())
}

/// Compares every layer of the blob with that of an open model.
pub(crate) fn layers_of(model: &Model<'_>, blob: &Blob<'_>) -> Result<Vec<LayerComparison>> {
    let count = model.layers().count();
    ensure!(count == blob.num_layers(), "{count} layers, but the blob has {}", blob.num_layers());
    blob.layers()
        .enumerate()
        .map(|(position, layer)| compare(model, blob, position, &layer))
        .collect()
}

/// The relative error of all layers together, and the square of their norm.
pub(crate) fn together(layers: &[LayerComparison]) -> (f64, f64) {
    let sums = layers.iter().fold(LayerSums::default(), |sums, layer| sums.add(layer.sums));
    (super::ratio(sums.difference, sums.norm), sums.norm)
}

/// The relative error of all layers together.
pub fn relative_error(layers: &[LayerComparison]) -> f64 {
    together(layers).0
}

fn compare(
    model: &Model<'_>,
    blob: &Blob<'_>,
    position: usize,
    layer: &Layer<'_>,
) -> Result<LayerComparison> {
    let (weights, bias) = model.read(position)?;
    let name = model.name(position);
    ensure!(
        (weights.len(), bias.len()) == (layer.weights.len(), layer.bias.len()),
        "tensor {name:?}: its shape is not the one that the blob has"
    );
    let scale = |j: usize| layer.scales.get(j).map_or(1.0, |&scale| f64::from(scale));
    let ours = widened(layer.weights).into_iter().enumerate();
    let ours = ours
        .map(|(at, w)| w * scale(at % layer.outputs))
        .chain(layer.bias.iter().map(|&x| x.into()));
    let theirs = weights.iter().chain(&bias).map(|&x| f64::from(x));
    let squares = |(a, b): (f64, f64)| LayerSums { difference: (a - b).powi(2), norm: b * b };
    let sums = ours.zip(theirs).map(squares).fold(LayerSums::default(), LayerSums::add);
    Ok(LayerComparison {
        name: name.to_owned(),
        dtype: layer.weights.dtype().name(),
        inputs: layer.inputs,
        outputs: layer.outputs,
        checkpoint_bytes: model.checkpoint_bytes(position),
        bytes: blob.layer_sections(position).map(|section| section.len).sum(),
        relative_error: super::ratio(sums.difference, sums.norm),
        sums,
    })
}

/// Stored elements without their scales.
fn widened(elements: Elements<'_>) -> Vec<f64> {
    (0..elements.len()).filter_map(|at| elements.get(at)).map(f64::from).collect()
}
