//! The portable tier: four lanes of plain f32, unfused. Always compiled, always tested, and what a
//! Cortex-M runs.

use super::{FourLanes, Isa, MAX_FOURS, NoGroups, Op, RowLanes, sealed::Sealed};
use half::{bf16, f16};

/// The token of the scalar tier, which every CPU can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar;

impl Sealed for Scalar {}

#[inline(always)]
fn lanes<T: Copy>(xs: &[T], widen: impl Fn(T) -> f32) -> [f32; 4] {
    match xs.first_chunk::<4>() {
        // Written out, because the compiler keeps a loop here as a loop, with its array in memory.
        Some(&[a, b, c, d]) => [widen(a), widen(b), widen(c), widen(d)],
        None => fewer(xs, widen),
    }
}

/// Not inlined: it is needed at the ends of rows only, but in every loop.
#[cold]
#[inline(never)]
fn fewer<T: Copy>(xs: &[T], widen: impl Fn(T) -> f32) -> [f32; 4] {
    let mut lanes = [0.0; 4];
    lanes.iter_mut().zip(xs).for_each(|(lane, &x)| *lane = widen(x));
    lanes
}

#[inline(always)]
fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a, b);
    [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
}

impl Isa for Scalar {
    const LANES: usize = 4;
    const TILES: &'static [[usize; 2]] = &[];
    const QUADS: bool = false;
    type F32 = [f32; 4];
    type Quad<'q> = &'q [f32; 4];
    type Half = Self;
    type Narrow = Self;
    type Fours = NoGroups;
    type Eights = NoGroups;
    type Rows = Self;

    #[inline(always)]
    fn rows(self) -> Self {
        self
    }

    #[inline(never)]
    fn call<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn half(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x, x, x, x]
    }
    #[inline(always)]
    fn load_f32(self, xs: &[f32]) -> [f32; 4] {
        lanes(xs, |x| x)
    }
    #[inline(always)]
    fn load_f16(self, xs: &[f16]) -> [f32; 4] {
        lanes(xs, f16::to_f32_const)
    }
    #[inline(always)]
    fn load_bf16(self, xs: &[bf16]) -> [f32; 4] {
        lanes(xs, bf16::to_f32_const)
    }
    #[inline(always)]
    fn load_i8(self, xs: &[i8]) -> [f32; 4] {
        lanes(xs, f32::from)
    }
    #[inline(always)]
    fn load_u4(self, xs: &[u8]) -> [f32; 4] {
        let pair = xs
            .first_chunk::<2>()
            .copied()
            .or(xs.first().map(|&x| [x, 0]))
            .unwrap_or_default();
        let [low, high] = pair;
        [f32::from(low & 15), f32::from(low >> 4), f32::from(high & 15), f32::from(high >> 4)]
    }
    #[inline(always)]
    fn store(self, v: [f32; 4], out: &mut [f32]) {
        out.iter_mut().zip(v).for_each(|(out, v)| *out = v);
    }
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        zip(zip(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn any_at_least(self, vs: &[[f32; 4]], bound: [f32; 4]) -> bool {
        vs.iter().any(|v| v.iter().zip(bound).any(|(&v, bound)| v >= bound))
    }
    #[inline(always)]
    fn quad(self, xs: &[f32; 4]) -> &[f32; 4] {
        xs
    }
    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quad: &[f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        self.fma([quad.get(LANE).copied().unwrap_or_default(); 4], b, c)
    }
    #[inline(always)]
    fn prefetch<T>(self, _: &[T]) {}
}

impl FourLanes for Scalar {
    #[inline(always)]
    fn transpose(self, [a, b, c, d]: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        [0, 1, 2, 3].map(|lane| [a[lane], b[lane], c[lane], d[lane]])
    }
}

impl RowLanes for Scalar {
    const FOURS: usize = 1;
    type Wide = Self;
    type Narrow = Self;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }
    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }
    #[inline(always)]
    fn join(self, [four, ..]: [[f32; 4]; MAX_FOURS]) -> [f32; 4] {
        four
    }
    #[inline(always)]
    fn transpose(self, rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        FourLanes::transpose(self, rows)
    }
    #[inline(always)]
    fn signed_byte<const BYTE: usize>(self, v: [f32; 4]) -> [f32; 4] {
        v.map(|lane| (lane.to_bits() >> (8 * BYTE)).to_le_bytes()[0].cast_signed().into())
    }
}
