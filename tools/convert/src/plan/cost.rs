//! Estimates the time of a lookup, well enough to rank representations.
//!
//! A single row costs its memory access and, if it is computed, the arithmetic. The constants were
//! fitted to `docs/benchmarks.md` (AVX-512, uniform ids): dense bags of 11,000,000 x 64 from 72 to
//! 256 bytes a row, and W1 and W3, tensor trains from 4,096 to 139,264 FLOP a row, which
//! [`tensor_train`] meets within 12 %. On another device all of them change, but seldom their
//! order: `ttrec bench` measures.

use crate::{contraction_order::ContractionOrder, factorize::CodesShape};
use ttrec::TtShape;

/// Nanoseconds of a cache miss.
const ROW: f64 = 6.6;
/// Nanoseconds per byte of a row.
const BYTE: f64 = 0.011;
/// Nanoseconds to find an entry of a book and to copy or add it.
const ENTRY: f64 = 2.0;
/// Nanoseconds to compute the digits of a row, and to start and end its products.
const TRAIN: f64 = 22.0;
/// Floating-point operations of the kernels per nanosecond.
const FLOPS: f64 = 230.0;

/// Nanoseconds for a dense row of so many bytes.
pub(super) fn dense(row_bytes: usize) -> f64 {
    ROW + BYTE * row_bytes as f64
}

/// Nanoseconds for a single short row of so many bytes and its product with the projection; a bag
/// shares the product.
pub(super) fn low_rank(row_bytes: usize, rank: usize, embedding_dim: usize) -> f64 {
    dense(row_bytes) + 2.0 * rank as f64 * embedding_dim as f64 / FLOPS
}

/// Nanoseconds for a row of codes: an entry for each of them, and the product with the projection.
pub(super) fn codes(shape: &CodesShape, embedding_dim: usize) -> f64 {
    let gathered = dense(shape.books) + ENTRY * shape.books as f64;
    if shape.projected {
        gathered + 2.0 * shape.inner_dim() as f64 * embedding_dim as f64 / FLOPS
    } else {
        gathered
    }
}

/// Nanoseconds for a row of a tensor train that shares nothing with its neighbours.
pub(super) fn tensor_train(shape: &TtShape) -> f64 {
    TRAIN + ContractionOrder::of(shape).stored().flops_left_to_right() as f64 / FLOPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_meets_the_benchmarks() {
        // ns per row of `docs/benchmarks.md`: W1 and W3-uniform at ranks 16, 32 and 64; f32, f16
        // and i8 rows of 64.
        let train =
            |q: &[u32], rank| TtShape::new(11_000_000, &[200, 220, 250], q, &[rank, rank]).unwrap();
        for (q, rank, measured) in [
            ([4, 4, 4], 16, 71.6),
            ([4, 4, 4], 32, 179.8),
            ([4, 4, 4], 64, 626.8),
            ([2, 2, 16], 16, 36.9),
            ([2, 2, 16], 32, 70.6),
            ([2, 2, 16], 64, 193.2),
        ] {
            let model = tensor_train(&train(&q, rank));
            assert!(
                (model / measured - 1.0).abs() < 0.12,
                "{q:?} {rank}: {model} ns, measured {measured}"
            );
        }
        for (bytes, measured) in [(256, 9.4), (128, 7.5), (72, 7.4)] {
            assert!((dense(bytes) / measured - 1.0).abs() < 0.12, "{bytes} bytes");
        }
    }
}
