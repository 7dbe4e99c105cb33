//! Perceptrons: linear layers one after another, between two buffers.

use crate::{
    blob::{Activation, Blob, Layer},
    isa::Tier,
    kernel::{Consistent, Dims, Epilogue, chain_step, resume_rows},
};
use core::ops::Range;

/// What follows a layer's product. The sigmoid at the end of a model is not part of it, because
/// [`Ranker::logits`](super::Ranker::logits) leaves it out.
fn epilogue<'a>(layer: &Layer<'a>) -> Epilogue<'a> {
    let relu = layer.activation == Activation::Relu;
    Epilogue::Bias { scales: layer.scales, bias: layer.bias, relu }
}

/// Copies `from` to the start of `to`. (`copy_from_slice` would link the panic handler.)
pub(super) fn copy(from: &[f32], to: &mut [f32]) -> Consistent {
    let to = to.get_mut(..from.len())?;
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
    Some(())
}

/// `y[m x outputs] <- layer(x[m x inputs])`.
pub(super) fn layer(
    tier: Tier,
    layer: &Layer<'_>,
    m: usize,
    x: &[f32],
    y: &mut [f32],
) -> Consistent {
    chain_step(
        tier,
        Dims { m, r: layer.inputs, n: layer.outputs },
        x,
        layer.weights,
        y,
        epilogue(layer),
    )
}

/// The sums over a layer's first `x.len()` inputs, which [`resume`] continues.
pub(super) fn begin(tier: Tier, layer: &Layer<'_>, x: &[f32], y: &mut [f32]) -> Consistent {
    let weights = layer.weights.range(0..x.len().checked_mul(layer.outputs)?)?;
    chain_step(tier, Dims { m: 1, r: x.len(), n: layer.outputs }, x, weights, y, Epilogue::Store)
}

/// `y[m x outputs] <- layer([shared; x])`, where all rows have the same first `shared` inputs, and
/// `base` are the sums over these inputs from [`begin`].
pub(super) fn resume(
    tier: Tier,
    layer: &Layer<'_>,
    shared: usize,
    base: &[f32],
    m: usize,
    x: &[f32],
    y: &mut [f32],
) -> Consistent {
    let (n, rest) = (layer.outputs, layer.inputs.checked_sub(shared)?);
    let weights = layer.weights.range(shared.checked_mul(n)?..layer.inputs.checked_mul(n)?)?;
    for y in y.chunks_exact_mut(n.max(1)) {
        copy(base.get(..n)?, y)?;
    }
    resume_rows(tier, Dims { m, r: rest, n }, x, weights, y, epilogue(layer))
}

/// Runs `layers` of a blob, at least one, on the `m` rows of `x`, and returns the outputs of the
/// last layer.
pub(super) fn run<'b>(
    tier: Tier,
    blob: &Blob<'_>,
    mut layers: Range<usize>,
    m: usize,
    x: &[f32],
    [even, odd]: &'b mut [&mut [f32]; 2],
) -> Option<&'b [f32]> {
    let first = blob.layer(layers.next()?)?;
    layer(tier, &first, m, x, even.get_mut(..m.checked_mul(first.outputs)?)?)?;
    run_on(tier, blob, layers, m, first.outputs, [even, odd])
}

/// As [`run`], for inputs in the first of the two buffers, in rows of `width`, and perhaps no
/// layers.
pub(super) fn run_on<'b>(
    tier: Tier,
    blob: &Blob<'_>,
    layers: Range<usize>,
    m: usize,
    mut width: usize,
    [mut from, mut to]: [&'b mut [f32]; 2],
) -> Option<&'b [f32]> {
    for next in layers {
        let next = blob.layer(next)?;
        let y = to.get_mut(..m.checked_mul(next.outputs)?)?;
        layer(tier, &next, m, from.get(..m.checked_mul(width)?)?, y)?;
        (from, to) = (to, from);
        width = next.outputs;
    }
    from.get(..m.checked_mul(width)?)
}
