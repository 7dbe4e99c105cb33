//! A table stored in memory for a moment, to see what that loses.

use anyhow::{Context, Result};
use ttrec::{
    AlignedBuf, Blob, Table, TtShape,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::{self, Dtype, EncodeError},
};

/// What the table of a blob made here is called.
const NAME: &str = "trial";

/// A blob of these rows, one after another, as `dtype`; `None` if some value has no finite form.
pub(crate) fn rows(values: &[f32], embedding_dim: usize, dtype: Dtype) -> Result<Option<AlignedBuf>> {
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

/// A blob of a tensor train whose slices, by core and number, are those that `read` gives, in `dtype`; `None` if that cannot
/// hold them.
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

/// The same of cores in memory, each its slices one after another.
pub(crate) fn of_cores(shape: TtShape, dtype: Dtype, cores: &[Vec<f32>]) -> Result<Option<AlignedBuf>> {
    tensor_train(shape, dtype, |k, slice, out| {
        let from = slice as usize * out.len();
        let slice = cores.get(k).and_then(|core| core.get(from..)?.get(..out.len()));
        out.copy_from_slice(slice.context("a core is short")?);
        Ok(())
    })
}

/// The table of a blob made here.
pub(crate) fn table(blob: &[u8]) -> Result<Table<'_>> {
    Ok(Blob::parse(blob)?.table(NAME)?)
}

fn layout(weights: WeightsSpec) -> Result<Layout> {
    Layout::new(&[TableSpec::new(NAME, weights)]).context("a trial has no layout")
}
