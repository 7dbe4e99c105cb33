//! Blobs of a table or of layers in memory, to measure their error.

use crate::{dialect::Model, sink};
use anyhow::{Context, Result};
use ttrec::{
    AlignedBuf, Blob, Table, TtShape,
    blob::{Interaction, Layout, ModelSpec, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
    limits::ALIGNMENT,
};

/// The name of the table in these blobs.
const NAME: &str = "trial";

/// A blob of these rows, one after another, as `dtype`; `None` if a value overflows.
pub(crate) fn rows(
    values: &[f32],
    embedding_dim: usize,
    dtype: Dtype,
) -> Result<Option<AlignedBuf>> {
    let num_embeddings = (values.len() / embedding_dim) as u64;
    let mut encoded = Ok(());
    let blob = layout(WeightsSpec::Dense { num_embeddings, embedding_dim, dtype })?
        .build(|_, out| encoded = dtype::encode_rows(values, embedding_dim, dtype, out));
    match encoded {
        Ok(()) => Ok(Some(blob)),
        Err(EncodeError::OutOfRange { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A blob of a tensor train in `dtype`, whose slices `read` returns by core and number; `None` if a
/// value overflows.
pub(crate) fn tensor_train(
    shape: TtShape,
    dtype: Dtype,
    read: impl Fn(usize, u64, &mut [f32]) -> Result<()>,
) -> Result<Option<AlignedBuf>> {
    let mut outcome = Ok(());
    let mut holds = true;
    let blob = layout(WeightsSpec::Tt { shape, dtype })?.build(|section, out| {
        let (k, is_scale) = match section.role {
            Role::Core(k) => (k, false),
            Role::Scales(k) => (k, true),
            _ => return,
        };
        let mut values = vec![0.0; shape.slice_len(k)];
        let mut bytes = vec![0; dtype.bytes_of(values.len())];
        let len = if is_scale { size_of::<f32>() } else { bytes.len() };
        for (slice, out) in (0..).zip(out.chunks_exact_mut(len)) {
            if let Err(error) = read(k, slice, &mut values) {
                outcome = Err(error);
                return;
            }
            match dtype::encode_slice(&values, dtype, &mut bytes) {
                Ok(scale) if is_scale => out.copy_from_slice(&scale.to_le_bytes()),
                Ok(_) => out.copy_from_slice(&bytes),
                Err(_) => holds = false,
            }
        }
    });
    outcome?;
    Ok(holds.then_some(blob))
}

/// The same for cores in memory, each its slices one after another.
pub(crate) fn of_cores(
    shape: TtShape,
    dtype: Dtype,
    cores: &[Vec<f32>],
) -> Result<Option<AlignedBuf>> {
    tensor_train(shape, dtype, |k, slice, out| {
        let from = slice as usize * out.len();
        let slice = cores.get(k).and_then(|core| core.get(from..)?.get(..out.len()));
        out.copy_from_slice(slice.context("a core is short")?);
        Ok(())
    })
}

/// A blob of a model's layers, around tables of one row, and the bytes that they add to any blob.
pub(crate) fn layers(model: &Model<'_>, layout: &ModelSpec) -> Result<(AlignedBuf, u64)> {
    // Without a bottom MLP, the dot products do not depend on the length of the rows.
    let embedding_dim = match (model.bottom.last(), layout.interaction) {
        (Some(last), _) => last.outputs,
        (None, Interaction::Cat) => model.top[0].inputs / layout.tables.len().max(1),
        (None, _) => 1,
    };
    let row = WeightsSpec::Dense { num_embeddings: 1, embedding_dim, dtype: Dtype::F32 };
    // A table may be in the model twice, and need not be in it.
    let num_tables = layout.tables.iter().map(|of| of.table + 1).max().unwrap_or(0);
    let tables: Vec<_> = (0..num_tables).map(|at| TableSpec::new(at.to_string(), row)).collect();
    let with_layers = Layout::with_model(&tables, Some(layout))?;
    // Their records may end in the same 64-byte line as others.
    let bytes = with_layers.total_len() - Layout::new(&tables)?.total_len() + ALIGNMENT as u64;
    let blob = sink::build(with_layers, |plan, sink| match plan.role {
        Role::LayerWeights(layer) | Role::LayerScales(layer) | Role::LayerBias(layer) => {
            model.write_section(layer, plan.role, sink)
        }
        _ => sink.put(&vec![0; plan.len as usize]),
    })?;
    Ok((blob, bytes))
}

/// The table of a blob made here.
pub(crate) fn table(blob: &[u8]) -> Result<Table<'_>> {
    Ok(Blob::parse(blob)?.table(NAME)?)
}

fn layout(weights: WeightsSpec) -> Result<Layout> {
    Layout::new(&[TableSpec::new(NAME, weights)]).context("a trial has no layout")
}
