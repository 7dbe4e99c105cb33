//! The layers of a model, which are part of the budget: f32 or f16, the better one for the whole
//! plan, or the type of the spec.

use crate::{
    checkpoint::Checkpoint,
    compare,
    dialect::Model,
    in_memory,
    spec::{ModelSpec, TableSpec},
};
use anyhow::{Context, Result, ensure};
use ttrec::{Blob, blob, dtype::Dtype};

/// The types to try if the spec sets none: i8 changes scores more than the saved bytes are worth.
const TRIED: [Dtype; 2] = [Dtype::F16, Dtype::F32];

/// All layers of a model, in each allowed type.
pub(super) struct Layers {
    pub(super) count: usize,
    pub(super) f32_bytes: u64,
    /// By bytes, ascending.
    pub(super) list: Vec<StoredLayers>,
    /// The squared norm of the weights and biases.
    pub(super) energy: f64,
}

/// The layers in one type.
pub(super) struct StoredLayers {
    /// The part of the spec for `convert`.
    pub(super) spec: ModelSpec,
    pub(super) dtype: Dtype,
    pub(super) layout: blob::ModelSpec,
    /// The bytes that they add to a blob.
    pub(super) bytes: u64,
    /// The relative error of all layers together.
    pub(super) error: f64,
}

impl Layers {
    /// The layers of the model that `spec` describes.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        tables: &[TableSpec],
        dims: &[usize],
        memory: u64,
    ) -> Result<Self> {
        let place = || format!("{}: [model]", checkpoint.path().display());
        Self::try_all(checkpoint, spec, tables, dims, memory).with_context(place)
    }

    fn try_all(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        tables: &[TableSpec],
        dims: &[usize],
        memory: u64,
    ) -> Result<Self> {
        let exact =
            Model::open(checkpoint, &ModelSpec { dtype: Some(Dtype::F32), ..spec.clone() })?;
        let parameters =
            |(inputs, outputs): (usize, usize)| (inputs as u64 + 1).saturating_mul(outputs as u64);
        let numbers = exact.layers().map(|linear| parameters((linear.inputs, linear.outputs)));
        let f32_bytes =
            numbers.fold(0, u64::saturating_add).saturating_mul(size_of::<f32>() as u64);
        // The f32 layers, and copies of one: read, transposed and encoded.
        let needed = f32_bytes.saturating_mul(4);
        ensure!(
            needed <= memory,
            "the memory limit of {memory} bytes is too small: {needed} are needed"
        );
        let mut layers =
            Self { count: exact.layers().count(), f32_bytes, list: Vec::new(), energy: 0.0 };
        let requested = spec.dtype;
        for dtype in requested.as_ref().map_or(&TRIED[..], std::slice::from_ref) {
            let spec = ModelSpec { dtype: Some(*dtype), ..spec.clone() };
            let model = Model::open(checkpoint, &spec)?;
            let layout = model.layout(tables, dims)?;
            let (blob, bytes) = match in_memory::layers(&model, &layout) {
                // Values that overflow rule this type out. If they overflow f32 too, the error
                // comes from there.
                Err(_) if requested.is_none() && *dtype != Dtype::F32 => continue,
                stored => stored?,
            };
            let (error, energy) =
                compare::together(&compare::layers_of(&model, &Blob::parse(&blob)?)?);
            layers.energy = energy;
            layers.list.push(StoredLayers { spec, dtype: *dtype, layout, bytes, error });
        }
        Ok(layers)
    }
}
