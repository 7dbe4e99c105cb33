//! AVX2, FMA and F16C: eight lanes; the narrow form has four.

use super::{
    Avx2, FourLanes, Groups, Isa, MAX_FOURS, MAX_GROUP, NoGroups, Op, RowLanes, call_with_features,
    features, padded, sealed::Sealed, with_features,
};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The same tier on 128-bit vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2Narrow(Avx2);

impl Sealed for Avx2Narrow {}

impl Isa for Avx2 {
    const LANES: usize = 8;
    // Sixteen registers: twelve sums, the rest for operands.
    const TILES: &'static [[usize; 2]] = &[[1, 8], [2, 4], [3, 3], [4, 3], [6, 2], [8, 1]];
    // The compiler converts the vectors of the next step before it is done with those of this one.
    // Twelve sums would leave too few registers for both, and one sum would wait for memory.
    const TILES_F16: &'static [[usize; 2]] = &[[1, 8], [2, 4], [3, 3], [4, 2], [6, 1], [8, 1]];
    const QUADS: bool = false;
    type F32 = __m256;
    type Quad<'q> = &'q [f32; 4];
    type Half = Avx2Narrow;
    type Narrow = Avx2Narrow;
    type Fours = Self;
    type Eights = NoGroups;
    type Rows = Self;

    #[inline(always)]
    fn rows(self) -> Self {
        self
    }

    features! { avx2 call_with_features }

    #[inline(always)]
    fn fours(self) -> Option<Self> {
        Some(self)
    }

    #[inline(always)]
    fn half(self) -> Avx2Narrow {
        Avx2Narrow(self)
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Avx2Narrow(self)
    }

    #[inline(always)]
    fn quad(self, xs: &[f32; 4]) -> &[f32; 4] {
        xs
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quad: &[f32; 4], b: __m256, c: __m256) -> __m256 {
        self.fma(self.splat(quad[LANE]), b, c)
    }

    #[inline(always)]
    fn prefetch<T>(self, xs: &[T]) {
        prefetch(xs);
    }

    features! { avx2 with_features
        fn splat(self, x: f32) -> __m256 { _mm256_set1_ps(x) }

        fn load_f32(self, xs: &[f32]) -> __m256 {
            let xs: [f32; 8] = padded(xs);
            // SAFETY: `xs` is 8 readable f32; the load may be unaligned.
            unsafe { _mm256_loadu_ps(xs.as_ptr()) }
        }

        fn load_f16(self, xs: &[f16]) -> __m256 {
            let xs: [f16; 8] = padded(xs);
            // SAFETY: `xs` is 16 readable bytes; the load may be unaligned.
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(xs.as_ptr().cast()) })
        }

        fn load_bf16(self, xs: &[bf16]) -> __m256 {
            let xs: [bf16; 8] = padded(xs);
            // SAFETY: `xs` is 16 readable bytes; the load may be unaligned.
            let bits = unsafe { _mm_loadu_si128(xs.as_ptr().cast()) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
        }

        fn load_i8(self, xs: &[i8]) -> __m256 {
            let xs: [i8; 8] = padded(xs);
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(xs.map(i8::cast_unsigned)));
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
        }

        fn load_u4(self, xs: &[u8]) -> __m256 {
            let word = _mm256_set1_epi32(i32::from_le_bytes(padded(xs)));
            let nibbles = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            _mm256_cvtepi32_ps(_mm256_and_si256(nibbles, _mm256_set1_epi32(15)))
        }

        fn store(self, v: __m256, out: &mut [f32]) -> () {
            match out.first_chunk_mut::<8>() {
                // SAFETY: `out` is 8 writable f32; the store may be unaligned.
                Some(out) => unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) },
                None => {
                    let mut lanes = [0.0; 8];
                    // SAFETY: `lanes` is 8 writable f32; the store may be unaligned.
                    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
                    out.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane);
                }
            }
        }

        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn add(self, a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn mul(self, a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(self, a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        // The second operand where the lanes do not compare.
        fn max(self, a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }

        fn any_at_least(self, vs: &[__m256], bound: __m256) -> bool {
            let any = vs.iter().fold(_mm256_setzero_ps(), |any, &v| {
                _mm256_or_ps(any, _mm256_cmp_ps::<_CMP_GE_OQ>(v, bound))
            });
            _mm256_movemask_ps(any) != 0
        }
    }
}

impl RowLanes for Avx2 {
    const FOURS: usize = 2;
    type Wide = Self;
    type Narrow = Avx2Narrow;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Avx2Narrow(self)
    }

    #[inline(always)]
    fn join(self, [low, high, ..]: [__m128; MAX_FOURS]) -> __m256 {
        Self::join(self, low, high)
    }

    #[inline(always)]
    fn signed_byte<const BYTE: usize>(self, v: __m256) -> __m256 {
        match BYTE {
            0 => self.top_byte(self.left_24(v)),
            1 => self.top_byte(self.left_16(v)),
            2 => self.top_byte(self.left_8(v)),
            _ => self.top_byte(v),
        }
    }

    features! { avx2 with_features
        fn transpose(self, rows: [__m256; 4]) -> [__m256; 4] {
            let [a, b, c, d] = rows;
            let pairs = [
                _mm256_unpacklo_ps(a, b),
                _mm256_unpackhi_ps(a, b),
                _mm256_unpacklo_ps(c, d),
                _mm256_unpackhi_ps(c, d),
            ];
            let [ab, ab_high, cd, cd_high] = pairs.map(|pair| _mm256_castps_pd(pair));
            let rows = [
                _mm256_unpacklo_pd(ab, cd),
                _mm256_unpackhi_pd(ab, cd),
                _mm256_unpacklo_pd(ab_high, cd_high),
                _mm256_unpackhi_pd(ab_high, cd_high),
            ];
            rows.map(|row| _mm256_castpd_ps(row))
        }
    }
}

/// Two rows of four columns.
impl Groups for Avx2 {
    const ROWS: usize = 2;
    type Wide = Self;
    type Narrow = Avx2Narrow;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Avx2Narrow(self)
    }

    #[inline(always)]
    fn quads(self, [low, high, ..]: &[[f32; 4]; MAX_GROUP]) -> __m256 {
        self.join(Avx2Narrow(self).load_f32(low), Avx2Narrow(self).load_f32(high))
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quads: __m256, b: __m256, c: __m256) -> __m256 {
        let a = match LANE {
            0 => self.lane_0(quads),
            1 => self.lane_1(quads),
            2 => self.lane_2(quads),
            _ => self.lane_3(quads),
        };
        self.fma(a, b, c)
    }

    features! { avx2 with_features
        fn repeat(self, v: __m128) -> __m256 { _mm256_set_m128(v, v) }

        fn parts(self, v: __m256) -> [__m128; MAX_GROUP] {
            let (low, high) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            [low, high, high, high]
        }
    }
}

impl Avx2 {
    features! { avx2 with_features
        fn left_24(self, v: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<24>(_mm256_castps_si256(v)))
        }
        fn left_16(self, v: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)))
        }
        fn left_8(self, v: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<8>(_mm256_castps_si256(v)))
        }
        fn top_byte(self, v: __m256) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_castps_si256(v)))
        }
        fn join(self, low: __m128, high: __m128) -> __m256 { _mm256_set_m128(high, low) }
        fn lane_0(self, v: __m256) -> __m256 { _mm256_permute_ps::<0x00>(v) }
        fn lane_1(self, v: __m256) -> __m256 { _mm256_permute_ps::<0x55>(v) }
        fn lane_2(self, v: __m256) -> __m256 { _mm256_permute_ps::<0xAA>(v) }
        fn lane_3(self, v: __m256) -> __m256 { _mm256_permute_ps::<0xFF>(v) }
    }
}

impl Isa for Avx2Narrow {
    const LANES: usize = 4;
    // For the ends of rows alone.
    const TILES: &'static [[usize; 2]] = &[[1, 1], [4, 1]];
    const QUADS: bool = false;
    type F32 = __m128;
    type Quad<'q> = &'q [f32; 4];
    type Half = Self;
    type Narrow = Self;
    type Fours = NoGroups;
    type Eights = NoGroups;
    type Rows = Avx2;

    #[inline(always)]
    fn rows(self) -> Avx2 {
        self.0
    }

    features! { avx2 call_with_features }

    #[inline(always)]
    fn half(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }

    #[inline(always)]
    fn quad(self, xs: &[f32; 4]) -> &[f32; 4] {
        xs
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quad: &[f32; 4], b: __m128, c: __m128) -> __m128 {
        self.fma(self.splat(quad[LANE]), b, c)
    }

    #[inline(always)]
    fn prefetch<T>(self, xs: &[T]) {
        prefetch(xs);
    }

    features! { avx2 with_features
        fn splat(self, x: f32) -> __m128 { _mm_set1_ps(x) }

        fn load_f32(self, xs: &[f32]) -> __m128 {
            let xs: [f32; 4] = padded(xs);
            // SAFETY: `xs` is 4 readable f32; the load may be unaligned.
            unsafe { _mm_loadu_ps(xs.as_ptr()) }
        }

        fn load_f16(self, xs: &[f16]) -> __m128 {
            let xs: [f16; 4] = padded(xs);
            // SAFETY: `xs` is 8 readable bytes; the load may be unaligned.
            _mm_cvtph_ps(unsafe { _mm_loadl_epi64(xs.as_ptr().cast()) })
        }

        fn load_bf16(self, xs: &[bf16]) -> __m128 {
            let xs: [bf16; 4] = padded(xs);
            // SAFETY: `xs` is 8 readable bytes; the load may be unaligned.
            let bits = unsafe { _mm_loadl_epi64(xs.as_ptr().cast()) };
            _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(bits)))
        }

        fn load_i8(self, xs: &[i8]) -> __m128 {
            let xs: [i8; 4] = padded(xs);
            let bytes = _mm_cvtsi32_si128(i32::from_le_bytes(xs.map(i8::cast_unsigned)));
            _mm_cvtepi32_ps(_mm_cvtepi8_epi32(bytes))
        }

        fn load_u4(self, xs: &[u8]) -> __m128 {
            let word = _mm_set1_epi32(i32::from(u16::from_le_bytes(padded(xs))));
            let nibbles = _mm_srlv_epi32(word, _mm_setr_epi32(0, 4, 8, 12));
            _mm_cvtepi32_ps(_mm_and_si128(nibbles, _mm_set1_epi32(15)))
        }

        fn store(self, v: __m128, out: &mut [f32]) -> () {
            match out.first_chunk_mut::<4>() {
                // SAFETY: `out` is 4 writable f32; the store may be unaligned.
                Some(out) => unsafe { _mm_storeu_ps(out.as_mut_ptr(), v) },
                None => {
                    let mut lanes = [0.0; 4];
                    // SAFETY: `lanes` is 4 writable f32; the store may be unaligned.
                    unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), v) };
                    out.iter_mut().zip(lanes).for_each(|(out, lane)| *out = lane);
                }
            }
        }

        fn fma(self, a: __m128, b: __m128, c: __m128) -> __m128 { _mm_fmadd_ps(a, b, c) }
        fn add(self, a: __m128, b: __m128) -> __m128 { _mm_add_ps(a, b) }
        fn mul(self, a: __m128, b: __m128) -> __m128 { _mm_mul_ps(a, b) }
        fn div(self, a: __m128, b: __m128) -> __m128 { _mm_div_ps(a, b) }
        // The second operand where the lanes do not compare.
        fn max(self, a: __m128, b: __m128) -> __m128 { _mm_max_ps(a, b) }

        fn any_at_least(self, vs: &[__m128], bound: __m128) -> bool {
            let any = vs.iter().fold(_mm_setzero_ps(), |any, &v| {
                _mm_or_ps(any, _mm_cmpge_ps(v, bound))
            });
            _mm_movemask_ps(any) != 0
        }
    }
}

impl FourLanes for Avx2Narrow {
    features! { avx2 with_features
        fn transpose(self, rows: [__m128; 4]) -> [__m128; 4] {
            let [a, b, c, d] = rows;
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            [
                _mm_movelh_ps(ab, cd),
                _mm_movehl_ps(cd, ab),
                _mm_movelh_ps(ab_high, cd_high),
                _mm_movehl_ps(cd_high, ab_high),
            ]
        }
    }
}

#[inline(always)]
fn prefetch<T>(xs: &[T]) {
    // SAFETY: a prefetch of any address has no effect but on the cache.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(xs.as_ptr().cast()) }
}
