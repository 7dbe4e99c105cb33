//! AVX-512 (F, VL) with AVX2, FMA and F16C: sixteen lanes and thirty-two registers; the halves are
//! AVX2's vectors.

use super::{
    Avx2, Avx512, Groups, Isa, MAX_FOURS, MAX_GROUP, Op, RowLanes, avx2::Avx2Narrow,
    call_with_features, features, includes, padded, with_features,
};
use core::arch::x86_64::*;
use half::{bf16, f16};

impl Avx512 {
    #[inline(always)]
    fn avx2(self) -> Avx2 {
        // What makes this token a proof of AVX2's features.
        const { assert!(includes(Avx512::FEATURES, Avx2::FEATURES)) };
        Avx2(())
    }
}

/// Bits for the first `len` lanes.
#[inline(always)]
fn mask(len: usize) -> __mmask16 {
    ((1u32 << len.min(16)) - 1) as u16
}

impl Isa for Avx512 {
    const LANES: usize = 16;
    // Thirty-two registers: twenty-four sums, the rest for operands.
    const TILES: &'static [[usize; 2]] = &[[1, 8], [2, 4], [3, 4], [4, 4], [6, 4], [8, 1]];
    const QUADS: bool = false;
    type F32 = __m512;
    type Quad<'q> = &'q [f32; 4];
    type Half = Avx2;
    type Narrow = Avx2Narrow;
    type Fours = Fours;
    type Eights = Eights;
    type Rows = Self;

    #[inline(always)]
    fn rows(self) -> Self {
        self
    }

    features! { avx512 call_with_features }

    #[inline(always)]
    fn fours(self) -> Option<Fours> {
        Some(Fours(self))
    }

    #[inline(always)]
    fn eights(self) -> Option<Eights> {
        Some(Eights(self))
    }

    #[inline(always)]
    fn half(self) -> Avx2 {
        self.avx2()
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Isa::narrow(self.avx2())
    }

    #[inline(always)]
    fn quad(self, xs: &[f32; 4]) -> &[f32; 4] {
        xs
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quad: &[f32; 4], b: __m512, c: __m512) -> __m512 {
        self.fma(self.splat(quad[LANE]), b, c)
    }

    #[inline(always)]
    fn prefetch<T>(self, xs: &[T]) {
        self.avx2().prefetch(xs);
    }

    features! { avx512 with_features
        fn splat(self, x: f32) -> __m512 { _mm512_set1_ps(x) }

        fn load_f32(self, xs: &[f32]) -> __m512 {
            match xs.first_chunk::<16>() {
                // SAFETY: `xs` is 16 readable f32; the load may be unaligned.
                Some(xs) => unsafe { _mm512_loadu_ps(xs.as_ptr()) },
                // SAFETY: only the lanes of the mask are read, and `xs` has as many; the load may
                // be unaligned.
                None => unsafe { _mm512_maskz_loadu_ps(mask(xs.len()), xs.as_ptr()) },
            }
        }

        fn load_f16(self, xs: &[f16]) -> __m512 {
            let xs: [f16; 16] = padded(xs);
            // SAFETY: `xs` is 32 readable bytes; the load may be unaligned.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(xs.as_ptr().cast()) })
        }

        fn load_bf16(self, xs: &[bf16]) -> __m512 {
            let xs: [bf16; 16] = padded(xs);
            // SAFETY: `xs` is 32 readable bytes; the load may be unaligned.
            let bits = unsafe { _mm256_loadu_si256(xs.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }

        fn load_i8(self, xs: &[i8]) -> __m512 {
            let xs: [i8; 16] = padded(xs);
            // SAFETY: `xs` is 16 readable bytes; the load may be unaligned.
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(xs.as_ptr().cast()) }))
        }

        fn load_u4(self, xs: &[u8]) -> __m512 {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(padded(xs)));
            // Each byte twice; the second copy is shifted.
            let twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes));
            let nibbles = _mm512_srlv_epi32(twice, _mm512_set1_epi64(4 << 32));
            _mm512_cvtepi32_ps(_mm512_and_si512(nibbles, _mm512_set1_epi32(15)))
        }

        fn store(self, v: __m512, out: &mut [f32]) -> () {
            match out.first_chunk_mut::<16>() {
                // SAFETY: `out` is 16 writable f32; the store may be unaligned.
                Some(out) => unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) },
                // SAFETY: only the lanes of the mask are written, and `out` has as many; the store
                // may be unaligned.
                None => unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), v) },
            }
        }

        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn mul(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(self, a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        // The second operand where the lanes do not compare.
        fn max(self, a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }

        fn any_at_least(self, vs: &[__m512], bound: __m512) -> bool {
            vs.iter().fold(0, |any, &v| any | _mm512_cmp_ps_mask::<_CMP_GE_OQ>(v, bound)) != 0
        }
    }
}

impl RowLanes for Avx512 {
    const FOURS: usize = 4;
    type Wide = Self;
    type Narrow = Avx2Narrow;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Isa::narrow(self.avx2())
    }

    #[inline(always)]
    fn join(self, [a, b, c, d]: [__m128; MAX_FOURS]) -> __m512 {
        self.join_fours(a, b, c, d)
    }

    #[inline(always)]
    fn signed_byte<const BYTE: usize>(self, v: __m512) -> __m512 {
        match BYTE {
            0 => self.top_byte(self.left_24(v)),
            1 => self.top_byte(self.left_16(v)),
            2 => self.top_byte(self.left_8(v)),
            _ => self.top_byte(v),
        }
    }

    features! { avx512 with_features
        fn transpose(self, rows: [__m512; 4]) -> [__m512; 4] {
            let [a, b, c, d] = rows;
            let pairs = [
                _mm512_unpacklo_ps(a, b),
                _mm512_unpackhi_ps(a, b),
                _mm512_unpacklo_ps(c, d),
                _mm512_unpackhi_ps(c, d),
            ];
            let [ab, ab_high, cd, cd_high] = pairs.map(|pair| _mm512_castps_pd(pair));
            let rows = [
                _mm512_unpacklo_pd(ab, cd),
                _mm512_unpackhi_pd(ab, cd),
                _mm512_unpacklo_pd(ab_high, cd_high),
                _mm512_unpackhi_pd(ab_high, cd_high),
            ];
            rows.map(|row| _mm512_castpd_ps(row))
        }
    }
}

/// Four rows of four columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fours(Avx512);

impl Groups for Fours {
    const ROWS: usize = 4;
    type Wide = Avx512;
    type Narrow = Avx2Narrow;

    #[inline(always)]
    fn wide(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn narrow(self) -> Avx2Narrow {
        Isa::narrow(self.0)
    }

    #[inline(always)]
    fn quads(self, [a, b, c, d]: &[[f32; 4]; MAX_GROUP]) -> __m512 {
        let narrow = Isa::narrow(self.0);
        self.0.join_fours(
            narrow.load_f32(a),
            narrow.load_f32(b),
            narrow.load_f32(c),
            narrow.load_f32(d),
        )
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quads: __m512, b: __m512, c: __m512) -> __m512 {
        self.0.fma(self.0.lane::<LANE>(quads), b, c)
    }

    features! { avx512 with_features
        fn repeat(self, v: __m128) -> __m512 { _mm512_broadcast_f32x4(v) }

        fn parts(self, v: __m512) -> [__m128; MAX_GROUP] {
            [
                _mm512_extractf32x4_ps::<0>(v),
                _mm512_extractf32x4_ps::<1>(v),
                _mm512_extractf32x4_ps::<2>(v),
                _mm512_extractf32x4_ps::<3>(v),
            ]
        }
    }
}

/// Two rows of eight columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eights(Avx512);

impl Groups for Eights {
    const ROWS: usize = 2;
    type Wide = Avx512;
    type Narrow = Avx2;

    #[inline(always)]
    fn wide(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn narrow(self) -> Avx2 {
        self.0.avx2()
    }

    #[inline(always)]
    fn quads(self, [low, high, ..]: &[[f32; 4]; MAX_GROUP]) -> __m512 {
        let narrow = Isa::narrow(self.0);
        self.0.join_eights(narrow.load_f32(low), narrow.load_f32(high))
    }

    #[inline(always)]
    fn fma_lane<const LANE: usize>(self, quads: __m512, b: __m512, c: __m512) -> __m512 {
        self.0.fma(self.0.lane::<LANE>(quads), b, c)
    }

    features! { avx512 with_features
        fn repeat(self, v: __m256) -> __m512 {
            _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(v)))
        }

        fn parts(self, v: __m512) -> [__m256; MAX_GROUP] {
            let v = _mm512_castps_pd(v);
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(v));
            [_mm256_castpd_ps(_mm512_castpd512_pd256(v)), high, high, high]
        }
    }
}

impl Avx512 {
    /// Broadcasts lane `LANE` of each four lanes within them.
    #[inline(always)]
    fn lane<const LANE: usize>(self, v: __m512) -> __m512 {
        match LANE {
            0 => self.lane_0(v),
            1 => self.lane_1(v),
            2 => self.lane_2(v),
            _ => self.lane_3(v),
        }
    }

    features! { avx512 with_features
        fn left_24(self, v: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<24>(_mm512_castps_si512(v)))
        }
        fn left_16(self, v: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v)))
        }
        fn left_8(self, v: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<8>(_mm512_castps_si512(v)))
        }
        fn top_byte(self, v: __m512) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_castps_si512(v)))
        }

        fn join_fours(self, a: __m128, b: __m128, c: __m128, d: __m128) -> __m512 {
            let v = _mm512_insertf32x4::<1>(_mm512_castps128_ps512(a), b);
            _mm512_insertf32x4::<3>(_mm512_insertf32x4::<2>(v, c), d)
        }

        // Twice `low`, then twice `high`.
        fn join_eights(self, low: __m128, high: __m128) -> __m512 {
            _mm512_mask_broadcast_f32x4(_mm512_broadcast_f32x4(low), 0xFF00, high)
        }
        fn lane_0(self, v: __m512) -> __m512 { _mm512_permute_ps::<0x00>(v) }
        fn lane_1(self, v: __m512) -> __m512 { _mm512_permute_ps::<0x55>(v) }
        fn lane_2(self, v: __m512) -> __m512 { _mm512_permute_ps::<0xAA>(v) }
        fn lane_3(self, v: __m512) -> __m512 { _mm512_permute_ps::<0xFF>(v) }
    }
}
