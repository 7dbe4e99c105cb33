//! NEON (Advanced SIMD), part of aarch64's baseline: four lanes.

use super::{
    FourLanes, Isa, MAX_FOURS, Neon, NoGroups, Op, RowLanes, call_with_features, features, padded,
    with_features,
};
use core::arch::{aarch64::*, asm};
use half::{bf16, f16};

impl Isa for Neon {
    const LANES: usize = 4;
    // Thirty-two registers: sixteen sums, a quad per row, and the right operand.
    const TILES: &'static [[usize; 2]] = &[[1, 8], [2, 4], [3, 4], [4, 4], [6, 1], [8, 1]];
    const QUADS: bool = true;
    type F32 = float32x4_t;
    type Quad<'q> = float32x4_t;
    type Half = Self;
    type Narrow = Self;
    type Fours = NoGroups;
    type Eights = NoGroups;
    type Rows = Self;

    #[inline(always)]
    fn rows(self) -> Self {
        self
    }

    features! { neon call_with_features }

    #[inline(always)]
    fn half(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }

    #[inline(always)]
    fn prefetch<T>(self, xs: &[T]) {
        // SAFETY: a prefetch of any address has no effect but on the cache.
        unsafe {
            asm!(
                "prfm pldl1keep, [{}]",
                in(reg) xs.as_ptr(),
                options(nostack, readonly, preserves_flags)
            )
        }
    }

    features! { neon with_features
        fn splat(self, x: f32) -> float32x4_t { vdupq_n_f32(x) }

        fn load_f32(self, xs: &[f32]) -> float32x4_t {
            let xs: [f32; 4] = padded(xs);
            // SAFETY: `xs` is 4 readable f32.
            unsafe { vld1q_f32(xs.as_ptr()) }
        }

        fn load_f16(self, xs: &[f16]) -> float32x4_t {
            let xs: [f16; 4] = padded(xs);
            // SAFETY: `xs` is 8 readable bytes.
            let bits = unsafe { vld1_u16(xs.as_ptr().cast()) };
            let widened: float32x4_t;
            // The intrinsic waits for a stable f16; the instruction is part of the baseline.
            // SAFETY: FCVTL reads and writes these two registers, and may set a status flag, which
            // the options do not promise to preserve.
            unsafe {
                asm!(
                    "fcvtl {:v}.4s, {:v}.4h",
                    out(vreg) widened,
                    in(vreg) bits,
                    options(pure, nomem, nostack)
                )
            };
            widened
        }

        fn load_bf16(self, xs: &[bf16]) -> float32x4_t {
            let xs: [bf16; 4] = padded(xs);
            // SAFETY: `xs` is 8 readable bytes.
            let bits = unsafe { vld1_u16(xs.as_ptr().cast()) };
            vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
        }

        fn load_i8(self, xs: &[i8]) -> float32x4_t {
            let xs: [i8; 4] = padded(xs);
            let bytes = vcreate_s8(u64::from(u32::from_le_bytes(xs.map(i8::cast_unsigned))));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }

        fn load_u4(self, xs: &[u8]) -> float32x4_t {
            let word = vdupq_n_u32(u32::from(u16::from_le_bytes(padded(xs))));
            // NEON shifts right by shifting left by less than 0. The shifts 0, -4 and -8, -12, as
            // pairs of two's complement, the first in the low half.
            let (low, high) = (0xFFFF_FFFC_0000_0000, 0xFFFF_FFF4_FFFF_FFF8);
            let shifts = vcombine_s32(vcreate_s32(low), vcreate_s32(high));
            vcvtq_f32_u32(vandq_u32(vshlq_u32(word, shifts), vdupq_n_u32(15)))
        }

        fn store(self, v: float32x4_t, out: &mut [f32]) -> () {
            match out.first_chunk_mut::<4>() {
                // SAFETY: `out` is 4 writable f32.
                Some(out) => unsafe { vst1q_f32(out.as_mut_ptr(), v) },
                None => {
                    let mut lanes = [0.0; 4];
                    // SAFETY: `lanes` is 4 writable f32.
                    unsafe { vst1q_f32(lanes.as_mut_ptr(), v) };
                    out.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane);
                }
            }
        }

        fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_f32(c, a, b)
        }
        fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        // Not FMAX, which would spread NaN.
        fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
            vbslq_f32(vcgtq_f32(a, b), a, b)
        }

        fn any_at_least(self, vs: &[float32x4_t], bound: float32x4_t) -> bool {
            let any = vs.iter().fold(vdupq_n_u32(0), |any, &v| {
                vorrq_u32(any, vcgeq_f32(v, bound))
            });
            vmaxvq_u32(any) != 0
        }
    }

    #[inline(always)]
    fn quad(self, xs: &[f32; 4]) -> float32x4_t {
        self.load_f32(xs)
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(
        self,
        quad: float32x4_t,
        b: float32x4_t,
        c: float32x4_t,
    ) -> float32x4_t {
        match LANE {
            0 => self.fma_lane_0(quad, b, c),
            1 => self.fma_lane_1(quad, b, c),
            2 => self.fma_lane_2(quad, b, c),
            _ => self.fma_lane_3(quad, b, c),
        }
    }
}

impl FourLanes for Neon {
    features! { neon with_features
        fn transpose(self, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
            let [a, b, c, d] = rows;
            let pairs = [vtrn1q_f32(a, b), vtrn2q_f32(a, b), vtrn1q_f32(c, d), vtrn2q_f32(c, d)];
            let [ab, ab_odd, cd, cd_odd] = pairs.map(|pair| vreinterpretq_f64_f32(pair));
            let rows = [
                vtrn1q_f64(ab, cd),
                vtrn1q_f64(ab_odd, cd_odd),
                vtrn2q_f64(ab, cd),
                vtrn2q_f64(ab_odd, cd_odd),
            ];
            rows.map(|row| vreinterpretq_f32_f64(row))
        }
    }
}

impl RowLanes for Neon {
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
    fn join(self, [four, ..]: [float32x4_t; MAX_FOURS]) -> float32x4_t {
        four
    }

    #[inline(always)]
    fn transpose(self, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
        FourLanes::transpose(self, rows)
    }

    #[inline(always)]
    fn signed_byte<const BYTE: usize>(self, v: float32x4_t) -> float32x4_t {
        match BYTE {
            0 => self.top_byte(self.left_24(v)),
            1 => self.top_byte(self.left_16(v)),
            2 => self.top_byte(self.left_8(v)),
            _ => self.top_byte(v),
        }
    }
}

impl Neon {
    features! { neon with_features
        fn left_24(self, v: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_s32(vshlq_n_s32::<24>(vreinterpretq_s32_f32(v)))
        }
        fn left_16(self, v: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_s32(vshlq_n_s32::<16>(vreinterpretq_s32_f32(v)))
        }
        fn left_8(self, v: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_s32(vshlq_n_s32::<8>(vreinterpretq_s32_f32(v)))
        }
        fn top_byte(self, v: float32x4_t) -> float32x4_t {
            vcvtq_f32_s32(vshrq_n_s32::<24>(vreinterpretq_s32_f32(v)))
        }
        fn fma_lane_0(self, q: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_laneq_f32::<0>(c, b, q)
        }
        fn fma_lane_1(self, q: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_laneq_f32::<1>(c, b, q)
        }
        fn fma_lane_2(self, q: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_laneq_f32::<2>(c, b, q)
        }
        fn fma_lane_3(self, q: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_laneq_f32::<3>(c, b, q)
        }
    }
}
