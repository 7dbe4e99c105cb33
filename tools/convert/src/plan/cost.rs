//! Estimates the time of a lookup, well enough to rank representations.
//!
//! A lookup is one of 10,240 in 512 bags of uniform indices, on one thread. The model adds up what
//! it does: reading rows and slices from the level of the caches that their table fits, decoding
//! them, and the multiply-adds of each product. What a bag does once, such as the product with a
//! projection, counts a twentieth. Its constants were fitted to `lookups.csv`, which
//! `benches/lookups.rs` printed on an AMD EPYC (Zen 3, AVX2). On another device all of them change,
//! but seldom the order of the candidates: `ttrec bench` measures.

use crate::contraction_order::ContractionOrder;
use anyhow::{Result, bail};
use ttrec::{TtShape, blob::WeightsSpec, dtype::Dtype, repr::Combine};

/// Lookups of a bag and of a batch.
const BAG: f64 = 20.0;
const BATCH: f64 = 10_240.0;
/// The bytes that the caches hold for a table: L1, L2, and what others leave of L3.
const CACHES: [f64; 3] = [32e3, 512e3, 8e6];
/// Nanoseconds for each byte from L1, L2, L3 and memory, which is read ahead.
const BYTE: [f64; 4] = [0.0, 0.0, 0.0253, 0.0751];
/// The same for a slice of a core: the rows of a batch are sorted by slices.
const SLICE_BYTE: [f64; 4] = [0.0, 0.0, 0.0053, 0.0080];
/// Nanoseconds for a row that is in memory, beyond those of its bytes.
const MISS: f64 = 11.1;
/// Nanoseconds to find a row and to begin its sum.
const ROW: f64 = 3.1;
/// Nanoseconds to add an element of a row, and to convert one that is not f32.
const ELEMENT: f64 = 0.0217;
const CONVERT: f64 = 0.0508;
/// Nanoseconds to find and add a vector of an entry of a book: if entries are as wide as vectors,
/// and if not.
const VECTOR: f64 = 0.5910;
const PART: f64 = 2.4;
/// Nanoseconds to find an entry that is added to others, and to add a vector of it: these two were
/// measured on an Intel Xeon (AVX-512).
const ADDED: f64 = 1.7;
const ADDED_VECTOR: f64 = 0.46;
/// Nanoseconds for a multiply-add of a product with a projection.
const PROJECTION: f64 = 0.0256;
/// Nanoseconds to begin and end a product of a tensor train.
const STEP: f64 = 12.1;
/// Nanoseconds to add a column of a row of a tensor train to its bag.
const COLUMN: f64 = 0.1704;
/// Nanoseconds for a multiply-add of two matrices, each element of which is used several times, and
/// to convert an element of a slice for it.
const TILE: f64 = 0.0296;
const TILE_CONVERT: f64 = 0.0069;
/// Nanoseconds for a multiply-add of a vector and a matrix, and for one whose element is converted
/// for it.
const ONE: f64 = 0.0322;
const ONE_CONVERT: f64 = 0.0044;
/// Elements of a vector register: narrower products take as long.
const LANES: usize = 8;

/// The level that data of so many bytes are in, from 0 for L1.
fn level(bytes: f64) -> usize {
    CACHES.iter().take_while(|&&cache| bytes > cache).count()
}

/// Nanoseconds to find a row of so many bytes.
fn row(num_rows: u64, bytes: usize) -> f64 {
    let all = num_rows as f64 * bytes as f64;
    let miss = if level(all) == CACHES.len() { MISS } else { 0.0 };
    ROW + miss + BYTE[level(all)] * bytes as f64
}

/// Nanoseconds for a row of a table that is stored as `weights`.
pub(super) fn lookup(weights: &WeightsSpec) -> Result<f64> {
    Ok(match *weights {
        WeightsSpec::Dense { num_embeddings, embedding_dim, dtype } => {
            dense(num_embeddings, embedding_dim, dtype)
        }
        WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, .. } => {
            dense(num_embeddings, rank, dtype) + projection(rank, embedding_dim)
        }
        WeightsSpec::QuotientRemainder {
            num_embeddings, num_remainders, columns, dtype, ..
        } => {
            let remainders = u64::from(num_remainders.max(1));
            dense(num_embeddings.div_ceil(remainders), columns[0], dtype)
                + dense(remainders, columns[1], dtype)
        }
        WeightsSpec::Codebook {
            num_embeddings,
            embedding_dim,
            num_books,
            book_len,
            inner_dim,
            combine,
            codes,
            projection: projected,
            ..
        } => {
            let entries = match combine {
                Combine::Concat => put(num_books, book_len, inner_dim / num_books.max(1)),
                _ => added(num_books, inner_dim),
            };
            let row = row(num_embeddings, codes.row_len(num_books));
            let projection = projected.map_or(0.0, |_| projection(inner_dim, embedding_dim));
            row + entries + projection
        }
        WeightsSpec::Tt { ref shape, dtype } => tensor_train(shape, dtype),
        ref other => bail!("there is no estimate of the time of a lookup in {other:?}"),
    })
}

/// Nanoseconds for a dense row.
fn dense(num_rows: u64, columns: usize, dtype: Dtype) -> f64 {
    let convert = if dtype == Dtype::F32 { 0.0 } else { CONVERT };
    row(num_rows, dtype.row_len(columns)) + (ELEMENT + convert) * columns as f64
}

/// Nanoseconds for a row's part of the bag's product with a projection.
fn projection(rank: usize, embedding_dim: usize) -> f64 {
    let multiply_adds = (rank * embedding_dim.next_multiple_of(LANES)) as f64;
    PROJECTION * multiply_adds / BAG
}

/// Nanoseconds to find and add the entries of a row of codes that are put end to end.
fn put(num_books: usize, book_len: usize, width: usize) -> f64 {
    let whole = num_books >= 4 && book_len == 256 && [4, 8, 16].contains(&width);
    let num_books = if whole { num_books } else { num_books.max(8) };
    let vectors = width.div_ceil(if width < LANES { LANES / 2 } else { LANES }) * num_books;
    vectors as f64 * if whole { VECTOR } else { PART }
}

/// Nanoseconds to find and add the entries of a row of codes that are added.
fn added(num_books: usize, width: usize) -> f64 {
    num_books as f64 * (ADDED + ADDED_VECTOR * width.div_ceil(LANES) as f64)
}

/// Nanoseconds for a row of a tensor train. Rows of a batch that begin with the same slices share
/// their products.
fn tensor_train(shape: &TtShape, dtype: Dtype) -> f64 {
    let order = ContractionOrder::of(shape);
    let shape = order.stored();
    let element = dtype.bytes_of(1) as f64;
    let converts = dtype != Dtype::F32;
    let mut time = COLUMN * shape.embedding_dim() as f64;
    let (mut height, mut products) = (shape.column_factor(0), 1.0);
    for (k, &p) in shape.row_factors().iter().enumerate() {
        products *= f64::from(p);
        if k == 0 {
            continue;
        }
        let is_last = k + 1 == shape.num_cores();
        let different = products * (1.0 - (-BATCH / products).exp());
        let share = if is_last { 1.0 } else { different / BATCH };
        let width = shape.column_factor(k) * shape.rank(k + 1);
        let multiply_adds = (height * shape.rank(k) * width.next_multiple_of(LANES)) as f64;
        let elements = shape.slice_len(k) as f64;
        let product = match (height, converts) {
            (1, false) => ONE * multiply_adds,
            (1, true) => (ONE + ONE_CONVERT) * multiply_adds,
            (_, false) => TILE * multiply_adds,
            (_, true) => TILE * multiply_adds + TILE_CONVERT * elements,
        };
        let read = SLICE_BYTE[level(f64::from(p) * elements * element)] * elements * element;
        time += share * (STEP + product + read);
        height *= shape.column_factor(k);
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrec::repr::CodeDtype;

    /// The estimates over the measurements of a kind.
    fn ratios(kind: &str) -> Vec<f64> {
        let list = |text: &str| -> Vec<u32> {
            text.split(' ').filter_map(|number| number.parse().ok()).collect()
        };
        let ratio = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            let rows: u64 = fields[1].parse().unwrap();
            let [p, q, ranks] = [fields[2], fields[3], fields[4]].map(list);
            let dtype = Dtype::from_name(fields[5]).unwrap();
            let (num_embeddings, embedding_dim) = (rows, q[0] as usize);
            let rank = ranks.first().map_or(0, |&rank| rank as usize);
            let weights = match kind {
                "dense" => WeightsSpec::Dense { num_embeddings, embedding_dim, dtype },
                "low-rank" => WeightsSpec::Projected {
                    num_embeddings,
                    embedding_dim,
                    rank,
                    dtype,
                    projection: Dtype::F16,
                },
                "codes" => WeightsSpec::Codebook {
                    num_embeddings,
                    embedding_dim,
                    num_books: p[0] as usize,
                    book_len: 256,
                    inner_dim: if rank > 0 { rank } else { embedding_dim },
                    combine: Combine::Concat,
                    codes: CodeDtype::U8,
                    dtype,
                    projection: (rank > 0).then_some(Dtype::F16),
                },
                _ => WeightsSpec::Tt { shape: TtShape::new(rows, &p, &q, &ranks).unwrap(), dtype },
            };
            lookup(&weights).unwrap() / fields[6].parse::<f64>().unwrap()
        };
        let lines = include_str!("lookups.csv").lines();
        lines.filter(|line| line.split(',').next() == Some(kind)).map(ratio).collect()
    }

    /// Columns, books in i8, and nanoseconds of `ttrec bench --mode sum` for 512 bags of 20 of
    /// 6,000 rows, on an Intel Xeon (AVX-512).
    #[test]
    fn added_codes_meet_the_measurements() {
        for (columns, books, measured) in [
            (16, 2, 8.9),
            (16, 4, 12.1),
            (16, 8, 19.3),
            (64, 2, 13.2),
            (64, 4, 22.0),
            (64, 8, 38.9),
            (128, 2, 22.2),
            (128, 4, 39.9),
            (128, 8, 73.2),
        ] {
            let weights = WeightsSpec::Codebook {
                num_embeddings: 6000,
                embedding_dim: columns,
                num_books: books,
                book_len: 256,
                inner_dim: columns,
                combine: Combine::Add,
                codes: CodeDtype::U8,
                dtype: Dtype::I8,
                projection: None,
            };
            let ratio = lookup(&weights).unwrap() / measured;
            assert!(ratio.max(1.0 / ratio) < 1.3, "{columns} {books}: {ratio}");
        }
    }

    #[test]
    fn the_model_meets_the_measurements() {
        for (kind, count, median, most, worst) in [
            ("dense", 28, 1.26, 1.78, 1.88),
            ("low-rank", 78, 1.17, 1.97, 5.28),
            ("codes", 68, 1.14, 1.71, 2.08),
            ("tt", 492, 1.20, 1.79, 7.14),
        ] {
            let mut off: Vec<f64> =
                ratios(kind).into_iter().map(|ratio| ratio.max(1.0 / ratio)).collect();
            off.sort_by(f64::total_cmp);
            assert_eq!(off.len(), count, "{kind}");
            assert!(off[count / 2] <= median, "{kind}: {}", off[count / 2]);
            assert!(off[count * 9 / 10] <= most, "{kind}: {}", off[count * 9 / 10]);
            assert!(off[count - 1] <= worst, "{kind}: {}", off[count - 1]);
        }
    }
}
