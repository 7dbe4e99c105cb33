//! The layers of a model, which the budget is of as well: f32 or f16, whichever serves the whole
//! better, or what was asked for.

use crate::{
    checkpoint::Checkpoint,
    compare,
    dialect::Model,
    in_memory,
    spec::{ModelSpec, TableSpec},
};
use anyhow::{Context, Result, ensure};
use ttrec::{Blob, blob, dtype::Dtype};

/// What is tried unless one is asked for: i8 would change scores more than its bytes are worth.
const TRIED: [Dtype; 2] = [Dtype::F16, Dtype::F32];

/// All layers of a model, in each type that they may be stored as.
pub(super) struct Layers {
    pub(super) count: usize,
    pub(super) f32_bytes: u64,
    /// By bytes, ascending.
    pub(super) list: Vec<StoredLayers>,
    /// Squared norm of their weights and biases.
    pub(super) energy: f64,
}

/// The layers in one type.
pub(super) struct StoredLayers {
    /// What `convert` has to be told.
    pub(super) spec: ModelSpec,
    pub(super) dtype: Dtype,
    pub(super) layout: blob::ModelSpec,
    /// What they add to a blob.
    pub(super) bytes: u64,
    /// Relative, of all of them together.
    pub(super) error: f64,
}

impl Layers {
    /// Those of the model that `spec` describes, around these tables.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        tables: &[TableSpec],
        memory: u64,
    ) -> Result<Self> {
        let place = || format!("{}: [model]", checkpoint.path().display());
        Self::try_all(checkpoint, spec, tables, memory).with_context(place)
    }

    fn try_all(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        tables: &[TableSpec],
        memory: u64,
    ) -> Result<Self> {
        let exact =
            Model::open(checkpoint, &ModelSpec { dtype: Some(Dtype::F32), ..spec.clone() })?;
        let parameters =
            |(inputs, outputs): (usize, usize)| (inputs as u64 + 1).saturating_mul(outputs as u64);
        let numbers = exact.layers().map(|linear| parameters((linear.inputs, linear.outputs)));
        let f32_bytes =
            numbers.fold(0, u64::saturating_add).saturating_mul(size_of::<f32>() as u64);
        // Stored as f32, and a layer beside it, read and turned.
        let needed = f32_bytes.saturating_mul(4);
        ensure!(needed <= memory, "too little memory: {needed} bytes are needed");
        let mut layers =
            Self { count: exact.layers().count(), f32_bytes, list: Vec::new(), energy: 0.0 };
        let asked = spec.dtype;
        for dtype in asked.as_ref().map_or(&TRIED[..], std::slice::from_ref) {
            let spec = ModelSpec { dtype: Some(*dtype), ..spec.clone() };
            let model = Model::open(checkpoint, &spec)?;
            let layout = model.layout(tables)?;
            let (blob, bytes) = match in_memory::layers(&model, &layout) {
                // Values that have no finite form in this type rule it out; f32 comes yet, and says
                // if it is them.
                Err(_) if asked.is_none() && *dtype != Dtype::F32 => continue,
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
