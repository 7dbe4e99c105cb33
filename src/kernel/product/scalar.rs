//! The product on the scalar tier, which a microcontroller runs from its flash: code that is small
//! rather than fast. One function serves every dtype, start and epilogue.

use super::Job;
use crate::{
    dtype::{Elements, Weight, with_elements},
    isa::{Isa, Scalar},
    kernel::{Consistent, Dims, Epilogue},
};

const LANES: usize = Scalar::LANES;
/// Vectors that are computed side by side.
const VECTORS: usize = 2;

/// The value that a chain begins with.
#[derive(Clone, Copy)]
pub(in crate::kernel) enum Start {
    /// The same value for all elements.
    With(f32),
    /// The element of the output, which is that of another product.
    Resume,
}

/// `x[m x r] . slice[r x n]`, whose row i is combined with the output at `i * stride`, as
/// `epilogue` says. i4 elements need r = 1. `None` if anything is out of bounds.
#[inline(never)]
pub(in crate::kernel) fn product(
    isa: Scalar,
    Dims { m, r, n }: Dims,
    x: &[f32],
    slice: Elements<'_>,
    start: Start,
    (out, stride): (&mut [f32], usize),
    epilogue: Epilogue<'_>,
) -> Consistent {
    if slice.len() < slice.units_of(r.checked_mul(n)?) {
        return None;
    }
    for row in 0..m {
        let x = x.get(row * r..)?.get(..r)?;
        let out = out.get_mut(row * stride..)?.get_mut(..n)?;
        for (out, first) in out.chunks_mut(VECTORS * LANES).zip((0..).step_by(VECTORS * LANES)) {
            let start = match start {
                Start::With(value) => [isa.splat(value); VECTORS],
                Start::Resume => {
                    [isa.load_f32(out), isa.load_f32(out.get(LANES..).unwrap_or_default())]
                }
            };
            let sums = with_elements!(slice, slice => chains(isa, x, slice, n, first, start))?;
            for ((out, sum), column) in
                out.chunks_mut(LANES).zip(sums).zip((first..).step_by(LANES))
            {
                isa.store(epilogue.combine(isa, sum, column, out), out);
            }
        }
    }
    Some(())
}

/// The chains of the columns from `first` on. Lanes past the last column do not matter.
#[inline(always)]
fn chains<W: Weight>(
    isa: Scalar,
    x: &[f32],
    slice: &[W],
    n: usize,
    first: usize,
    [mut left, mut right]: [[f32; LANES]; VECTORS],
) -> Option<[[f32; LANES]; VECTORS]> {
    for (k, &x) in x.iter().enumerate() {
        let units = slice.get((k * n + first) / W::PER_UNIT..)?;
        let x = isa.splat(x);
        left = isa.fma(W::load(isa, units), x, left);
        right =
            isa.fma(W::load(isa, units.get(LANES / W::PER_UNIT..).unwrap_or_default()), x, right);
    }
    Some([left, right])
}

/// Each job's product, combined with the output by `epilogue` of the job's scale. `None` if
/// anything is out of bounds.
pub(super) fn products<W: Weight>(
    isa: Scalar,
    r: usize,
    n: usize,
    jobs: &[Job<'_, W>],
    out: &mut [f32],
    epilogue: impl Fn(f32) -> Epilogue<'static>,
) -> Consistent {
    jobs.iter().try_for_each(|job| {
        let out = (out.get_mut(job.out..)?, n);
        product(
            isa,
            Dims { m: job.m, r, n },
            job.x,
            W::elements(job.slice),
            Start::With(0.0),
            out,
            epilogue(job.scale),
        )
    })
}
