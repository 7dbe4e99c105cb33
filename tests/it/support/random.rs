//! Random blobs: proptest draws what the tables are, a seed fills them with stored bits. Values
//! never pass through the crate's encoders: any bit pattern that a writer could have produced may
//! be there.

use super::rng::Rng;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
};
use ttrec::{
    AlignedBuf, DigitOrder, Pooling, TtShape,
    blob::{
        Activation, IndexMapSpec, Interaction, LayerSpec, Layout, ModelSpec, ModelTable,
        OverridesSpec, Role, SectionPlan, TableSpec, WeightsSpec,
    },
    dtype::Dtype,
    repr::{CodeDtype, Combine, RowNumberDtype},
};

/// Which numbers a blob is filled with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values {
    /// Small integers, scales that are powers of two: every row and every small bag is exact in
    /// f32.
    Integers,
    /// Zeros and magnitudes of 2^-10 to 2^4, far from under- and overflow in chains of up to six
    /// cores.
    Reals,
}

/// A blob of these tables, filled from `seed`.
pub(crate) fn build(tables: &[TableSpec], seed: u64, values: Values) -> AlignedBuf {
    build_model(tables, None, seed, values)
}

/// The same with a model around them.
pub(crate) fn build_model(
    tables: &[TableSpec],
    model: Option<&ModelSpec>,
    seed: u64,
    values: Values,
) -> AlignedBuf {
    // The ids of the section before, which an index follows.
    let mut ids = Vec::new();
    Layout::with_model(tables, model).unwrap().build(|section, out| {
        let Some(table) = tables.get(section.table) else {
            return fill(section, 0, 0, &mut Rng::new(seed ^ section.offset), values, out);
        };
        let limit = match (section.role, table.weights) {
            (Role::PrefixIds | Role::PrefixIndex, WeightsSpec::Tt { shape, .. }) => {
                shape.num_prefixes()
            }
            (Role::RemappedRows, _) => num_rows(&table.weights),
            _ => num_embeddings(table),
        };
        let columns = match (section.role, table.weights) {
            (Role::RemappedRows, _) => (section.len / num_embeddings(table)) as usize,
            (Role::Rows, WeightsSpec::Projected { rank, .. }) => rank,
            (Role::Rows, WeightsSpec::QuotientRemainder { columns, .. }) => columns[0],
            (Role::RemainderRows, WeightsSpec::QuotientRemainder { columns, .. }) => columns[1],
            _ => embedding_dim(&table.weights),
        };
        if matches!(section.role, Role::OverrideIndex | Role::PrefixIndex) {
            return super::format::fill_id_index(&ids, limit, out);
        }
        let mut rng = Rng::new(seed ^ section.offset);
        if section.role == Role::Codes {
            return fill_codes(&table.weights, &mut rng, out);
        }
        fill(section, limit, columns, &mut rng, values, out);
        if matches!(section.role, Role::OverrideIds | Role::PrefixIds) {
            ids = out
                .chunks_exact(8)
                .map(|id| u64::from_le_bytes(id.try_into().unwrap()))
                .collect();
        }
    })
}

/// Rows that a table stores.
pub(crate) fn num_rows(weights: &WeightsSpec) -> u64 {
    match *weights {
        WeightsSpec::Dense { num_embeddings, .. }
        | WeightsSpec::Projected { num_embeddings, .. }
        | WeightsSpec::QuotientRemainder { num_embeddings, .. }
        | WeightsSpec::Codebook { num_embeddings, .. } => num_embeddings,
        WeightsSpec::Tt { shape, .. } => shape.num_embeddings(),
        other => panic!("{other:?}"),
    }
}

fn embedding_dim(weights: &WeightsSpec) -> usize {
    match *weights {
        WeightsSpec::Dense { embedding_dim, .. }
        | WeightsSpec::Projected { embedding_dim, .. }
        | WeightsSpec::Codebook { embedding_dim, .. } => embedding_dim,
        WeightsSpec::QuotientRemainder {
            columns: [first, second],
            combine: Combine::Concat,
            ..
        } => first + second,
        WeightsSpec::QuotientRemainder { columns, .. } => columns[0],
        WeightsSpec::Tt { shape, .. } => shape.embedding_dim(),
        other => panic!("{other:?}"),
    }
}

fn num_embeddings(table: &TableSpec) -> u64 {
    match table.index_map {
        IndexMapSpec::Identity => num_rows(&table.weights),
        IndexMapSpec::Modulo { num_embeddings } | IndexMapSpec::Remapped { num_embeddings, .. } => {
            num_embeddings
        }
        other => panic!("{other:?}"),
    }
}

/// A map of so many indices, whose row numbers fit this type.
pub(crate) fn remapped(num_embeddings: u64, dtype: RowNumberDtype) -> IndexMapSpec {
    IndexMapSpec::Remapped { num_embeddings, dtype }
}

/// Rows of codes, bit by bit. The bits after the last code of a row hold what they will.
fn fill_codes(weights: &WeightsSpec, rng: &mut Rng, out: &mut [u8]) {
    let &WeightsSpec::Codebook { num_books, book_len, codes, .. } = weights else {
        panic!("{weights:?}")
    };
    let bits = match codes {
        CodeDtype::U8 => 8,
        CodeDtype::U12 => 12,
        _ => 16,
    };
    out.fill(0xA5);
    for row in out.chunks_exact_mut((num_books * bits).div_ceil(8)) {
        for book in 0..num_books {
            let code = rng.below((book_len as u64).min(1 << bits));
            for (at, place) in (0..bits).zip(book * bits..) {
                row[place / 8] &= !(1 << (place % 8));
                row[place / 8] |= ((code >> at & 1) as u8) << (place % 8);
            }
        }
    }
}

/// A codebook table, whose projection, if there is one, has `dims[1]` columns.
pub(crate) fn codebook(
    num_embeddings: u64,
    combine: Combine,
    [num_books, book_len]: [usize; 2],
    dims: [usize; 2],
    codes: CodeDtype,
    dtype: Dtype,
    projection: Option<Dtype>,
) -> WeightsSpec {
    let [inner_dim, embedding_dim] = dims;
    WeightsSpec::Codebook {
        num_embeddings,
        embedding_dim,
        num_books,
        book_len,
        inner_dim,
        combine,
        codes,
        dtype,
        projection,
    }
}

/// Ids of what is stored apart, and the rows of remapped indices, are below `limit`.
fn fill(plan: &SectionPlan, limit: u64, dim: usize, rng: &mut Rng, values: Values, out: &mut [u8]) {
    match (plan.role, plan.dtype) {
        (Role::OverrideIds | Role::PrefixIds, _) => {
            let ids = ascending_ids(rng, out.len() / 8, limit);
            out.chunks_exact_mut(8)
                .zip(ids)
                .for_each(|(out, id)| out.copy_from_slice(&id.to_le_bytes()));
        }
        (Role::RemappedRows, _) => {
            out.chunks_exact_mut(dim)
                .for_each(|out| out.copy_from_slice(&rng.below(limit).to_le_bytes()[..dim]));
        }
        (Role::Scales(_) | Role::LayerScales(_), _) => {
            out.chunks_exact_mut(4).for_each(|out| out.copy_from_slice(&scale(rng, values)))
        }
        (Role::Rows | Role::RemainderRows | Role::OverrideRows, Some(Dtype::I8)) => {
            for row in out.chunks_exact_mut(8 + dim) {
                row[..4].copy_from_slice(&scale(rng, values));
                row[4..8].copy_from_slice(&element(rng, Dtype::F32, values)[..4]);
                row[8..].iter_mut().for_each(|out| *out = element(rng, Dtype::I8, values)[0]);
            }
        }
        (Role::Rows | Role::RemainderRows | Role::OverrideRows, Some(Dtype::I4)) => {
            for row in out.chunks_exact_mut(4 + dim.div_ceil(2)) {
                row[..2].copy_from_slice(&half_scale(rng, values));
                row[2..4].copy_from_slice(&element(rng, Dtype::F16, values)[..2]);
                // The upper half of the last byte of an odd row belongs to no column, and holds
                // what it will.
                row[4..].iter_mut().for_each(|out| *out = element(rng, Dtype::I4, values)[0]);
            }
        }
        (_, Some(dtype)) => {
            let size = dtype.bytes_of(1);
            for out in out.chunks_exact_mut(size) {
                out.copy_from_slice(&element(rng, dtype, values)[..size]);
            }
        }
        (role, None) => panic!("{role:?} without a dtype"),
    }
}

/// `count` ids below `num_embeddings`, strictly ascending.
fn ascending_ids(rng: &mut Rng, count: usize, num_embeddings: u64) -> Vec<u64> {
    let mut ids = std::collections::BTreeSet::new();
    while ids.len() < count {
        ids.insert(rng.below(num_embeddings));
    }
    ids.into_iter().collect()
}

fn scale(rng: &mut Rng, values: Values) -> [u8; 4] {
    match values {
        Values::Integers => rng.pick(&[1.0f32, 2.0]),
        Values::Reals => {
            f32::from_bits((127 - 8 + rng.below(4) as u32) << 23 | rng.below(1 << 23) as u32)
        }
    }
    .to_le_bytes()
}

/// A scale of an i4 row: an f16 as large as [`scale`].
fn half_scale(rng: &mut Rng, values: Values) -> [u8; 2] {
    match values {
        Values::Integers => rng.pick(&[0x3c00u16, 0x4000]),
        Values::Reals => ((15 - 8 + rng.below(4) as u16) << 10) | rng.below(1 << 10) as u16,
    }
    .to_le_bytes()
}

/// The stored bytes of one random element (of two, if they are i4); those past its size are not in
/// use.
fn element(rng: &mut Rng, dtype: Dtype, values: Values) -> [u8; 4] {
    let bits = match (values, dtype) {
        (Values::Integers, Dtype::F32) => rng.pick(&[-1.0f32, 0.0, 1.0]).to_bits(),
        (Values::Integers, Dtype::F16) => rng.pick(&[0xbc00, 0x0000, 0x3c00]),
        (Values::Integers, Dtype::Bf16) => rng.pick(&[0xbf80, 0x0000, 0x3f80]),
        (Values::Integers, Dtype::I8) => rng.pick(&[0xff, 0x00, 0x01]),
        (_, Dtype::I4) | (Values::Reals, Dtype::I8) => rng.below(256) as u32,
        (Values::Reals, _) if rng.one_in(16) => 0,
        (Values::Reals, _) => {
            // Sign, an exponent from -6 to 0, and as many random bits as the dtype has.
            let (exponent_bits, fraction_bits) = match dtype {
                Dtype::F16 => (5, 10),
                Dtype::Bf16 => (8, 7),
                _ => (8, 23),
            };
            let one = (1 << (exponent_bits - 1)) - 1;
            let exponent = one - rng.below(7);
            let sign = rng.below(2) << exponent_bits;
            ((sign | exponent) << fraction_bits | rng.below(1 << fraction_bits)) as u32
        }
        (Values::Integers, _) => unreachable!(),
    };
    bits.to_le_bytes()
}

pub(crate) fn dtype() -> impl Strategy<Value = Dtype> {
    select(Dtype::ALL)
}

/// What cores can be stored as.
pub(crate) const CORE_DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

/// Shapes of 2 to 6 cores, with unequal, odd and unit factors and ranks, partly filled, in both
/// orders of the digits of rows and of columns. `max_rank` bounds the ranks and `max_dim` the
/// columns.
pub(crate) fn tt_shape(max_rank: u32, max_dim: u32) -> impl Strategy<Value = TtShape> {
    let last_factor = prop_oneof![2 => 1u32..=5, 1 => select(&[8u32, 9, 16, 17, 64][..])];
    let lists = (2usize..=6)
        .prop_flat_map(move |d| (vec(1u32..=9, d), vec(1u32..=5, d - 1), vec(1..=max_rank, d - 1)));
    const ORDERS: [DigitOrder; 2] =
        [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst];
    let orders = (select(&ORDERS[..]), select(&ORDERS[..]));
    let factors = (lists, last_factor, orders, 0u64..=u64::MAX);
    factors.prop_map(move |((p, mut q, r), last, (digits, columns), padding)| {
        q.push(last);
        // Narrow the widest but one until the row is short enough for a slow oracle.
        while q.iter().product::<u32>() > max_dim {
            let d = q.len();
            *q[..d - 1].iter_mut().max().unwrap() -= 1;
        }
        let rows: u64 = p.iter().map(|&p| u64::from(p)).product();
        let num_embeddings = rows - padding % rows.div_ceil(2);
        TtShape::new(num_embeddings, &p, &q, &r)
            .unwrap()
            .with_digit_order(digits)
            .with_column_order(columns)
    })
}

/// One to four tables of any kind under odd names, half of them with overrides.
pub(crate) fn tables(max_rank: u32, max_dim: u32) -> impl Strategy<Value = Vec<TableSpec>> {
    let names = ["a", "item", "Item", "emb_l.0.weight", "naïve·表", " \n", "\0", "../x", "%s{}"]
        .map(String::from);
    let names = names
        .into_iter()
        .chain(["x".repeat(ttrec::limits::MAX_NAME_LEN)])
        .collect::<Vec<_>>();
    let dense = (1u64..=40, 1usize..=70, dtype());
    let dense = dense.prop_map(|(num_embeddings, embedding_dim, dtype)| WeightsSpec::Dense {
        num_embeddings,
        embedding_dim,
        dtype,
    });
    let core_dtype = select(&CORE_DTYPES[..]);
    let tt = (tt_shape(max_rank, max_dim), core_dtype)
        .prop_map(|(shape, dtype)| WeightsSpec::Tt { shape, dtype });
    let projected = (1u64..=40, 1usize..=70, 1usize..=20, dtype(), select(&CORE_DTYPES[..3]));
    let projected =
        projected.prop_map(|(num_embeddings, embedding_dim, rank, dtype, projection)| {
            WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, projection }
        });
    let parts = (1u64..=40, 1u32..=9, 1usize..=40, 1usize..=30, select(Combine::ALL), dtype());
    let parts =
        parts.prop_map(|(num_embeddings, num_remainders, first, second, combine, dtype)| {
            let columns = [first, if combine == Combine::Concat { second } else { first }];
            WeightsSpec::QuotientRemainder {
                num_embeddings,
                num_remainders,
                columns,
                combine,
                dtype,
            }
        });
    let combine = select(&[Combine::Add, Combine::Concat][..]);
    let stored = (select(CodeDtype::ALL), select(&CORE_DTYPES[..]));
    let codes = (1u64..=40, combine, 1usize..=6, 1usize..=70, 1usize..=9, stored);
    let codes = (codes, 1usize..=30, prop::option::of(select(&CORE_DTYPES[..3])));
    let codes = codes.prop_map(|(codes, embedding_dim, projection)| {
        let (num_embeddings, combine, num_books, book_len, width, (codes, dtype)) = codes;
        let inner = if combine == Combine::Concat {
            num_books * width
        } else {
            width
        };
        let dims = [inner, projection.map_or(inner, |_| embedding_dim)];
        codebook(num_embeddings, combine, [num_books, book_len], dims, codes, dtype, projection)
    });
    let weights = prop_oneof![1 => dense, 2 => tt, 1 => projected, 1 => parts, 2 => codes];
    let index_map = prop_oneof![2 => Just(0), 1 => Just(1), 1 => Just(2)];
    let table = (weights, (index_map, 0u64..=30), 0u64..=6, prop::option::of((1u64..=12, dtype())));
    (subsequence(names, 1..=4).prop_shuffle(), vec(table, 4)).prop_map(|(names, tables)| {
        let specs = names.into_iter().zip(tables).map(
            |(name, (weights, (map, more), prefixes, overrides))| {
                let num_prefixes = match weights {
                    WeightsSpec::Tt { shape, .. } => prefixes.min(shape.num_prefixes()),
                    _ => 0,
                };
                let indices = num_rows(&weights) + more;
                let index_map = match map {
                    0 => IndexMapSpec::Identity,
                    1 => IndexMapSpec::Modulo { num_embeddings: indices },
                    _ => {
                        let narrowest = RowNumberDtype::for_rows(num_rows(&weights));
                        let drawn = RowNumberDtype::ALL[indices as usize % 4];
                        let fits = drawn.bytes() >= narrowest.bytes();
                        remapped(indices, if fits { drawn } else { narrowest })
                    }
                };
                let table = TableSpec { index_map, num_prefixes, ..TableSpec::new(name, weights) };
                let limit = num_embeddings(&table);
                let overrides = overrides
                    .map(|(count, dtype)| OverridesSpec { count: count.min(limit), dtype });
                TableSpec { overrides, ..table }
            },
        );
        specs.collect()
    })
}

/// Layers of these widths, with ReLU between them; and, of the top ones, a sigmoid at the end.
pub(crate) fn layers(widths: &[usize], dtype: Dtype, top: bool) -> Vec<LayerSpec> {
    let last = widths.len().saturating_sub(2);
    let layer = |(position, pair): (usize, &[usize])| LayerSpec {
        inputs: pair[0],
        outputs: pair[1],
        activation: if top && position == last {
            Activation::Sigmoid
        } else {
            Activation::Relu
        },
        dtype,
    };
    widths.windows(2).enumerate().map(layer).collect()
}

/// A model of `tables` (by position), every third of them averaged, whose rows have `bottom`'s last
/// width, if there is a bottom; the top's first width follows.
pub(crate) fn model(
    tables: &[usize],
    bottom: &[usize],
    hidden: &[usize],
    dtypes: [Dtype; 2],
) -> ModelSpec {
    let num_vectors = tables.len() + usize::from(!bottom.is_empty());
    let pairs = num_vectors * num_vectors.saturating_sub(1) / 2;
    let inputs = bottom.last().copied().unwrap_or(0) + pairs;
    interacting(Interaction::Dot, inputs, tables, [bottom, hidden], dtypes)
}

/// As [`model`], with another interaction, which makes `inputs`.
pub(crate) fn interacting(
    interaction: Interaction,
    inputs: usize,
    tables: &[usize],
    [bottom, hidden]: [&[usize]; 2],
    dtypes: [Dtype; 2],
) -> ModelSpec {
    let top = [&[inputs], hidden, &[1]].concat();
    // Some are averaged.
    let tables = tables
        .iter()
        .enumerate()
        .map(|(t, &table)| ModelTable {
            table,
            pooling: if t % 3 == 1 { Pooling::Mean } else { Pooling::Sum },
        })
        .collect();
    ModelSpec {
        tables,
        interaction,
        bottom: layers(bottom, dtypes[0], false),
        top: layers(&top, dtypes[1], true),
    }
}

/// A few small blobs that together hold every representation in every dtype it can have, with and
/// without overrides, in both orders of the digits of rows and of columns.
pub(crate) fn one_of_each() -> Vec<AlignedBuf> {
    let shape = |n, p: &[u32], q: &[u32], r: &[u32]| TtShape::new(n, p, q, r).unwrap();
    let reversed = |shape: TtShape| shape.with_digit_order(DigitOrder::LeastSignificantFirst);
    let columns_reversed =
        |shape: TtShape| shape.with_column_order(DigitOrder::LeastSignificantFirst);
    let tt = |name: &str, shape, dtype, overrides| TableSpec {
        overrides,
        ..TableSpec::new(name, WeightsSpec::Tt { shape, dtype })
    };
    let dense = |name: &str, num_embeddings, embedding_dim, dtype, overrides| TableSpec {
        overrides,
        ..TableSpec::new(name, WeightsSpec::Dense { num_embeddings, embedding_dim, dtype })
    };
    let projected =
        |name: &str, num_embeddings, [rank, embedding_dim]: [usize; 2], dtype, projection| {
            let weights =
                WeightsSpec::Projected { num_embeddings, embedding_dim, rank, dtype, projection };
            TableSpec::new(name, weights)
        };
    let parts = |name: &str, num_embeddings, num_remainders, columns, combine, dtype| {
        let weights = WeightsSpec::QuotientRemainder {
            num_embeddings,
            num_remainders,
            columns,
            combine,
            dtype,
        };
        TableSpec::new(name, weights)
    };
    let codes = |name: &str, num_embeddings, combine, books, dims, codes, dtype, projection| {
        let weights = codebook(num_embeddings, combine, books, dims, codes, dtype, projection);
        TableSpec::new(name, weights)
    };
    let (half, u8s, u12s) = (Some(Dtype::F16), CodeDtype::U8, CodeDtype::U12);
    let modulo = |num_embeddings, table| TableSpec {
        index_map: IndexMapSpec::Modulo { num_embeddings },
        ..table
    };
    let remapped = |num_embeddings, table| TableSpec {
        index_map: self::remapped(num_embeddings, RowNumberDtype::U32),
        ..table
    };
    let prefixed = |num_prefixes, table| TableSpec { num_prefixes, ..table };
    let rows = |count, dtype| Some(OverridesSpec { count, dtype });
    let blobs = [
        vec![
            dense("dense.f32", 7, 5, Dtype::F32, None),
            dense("dense.i8", 9, 3, Dtype::I8, rows(2, Dtype::F16)),
            tt(
                "tt.f32",
                shape(29, &[2, 3, 5], &[2, 1, 4], &[3, 2]),
                Dtype::F32,
                rows(3, Dtype::I8),
            ),
        ],
        vec![
            tt(
                "tt.f16",
                reversed(shape(11, &[4, 3], &[3, 2], &[5])),
                Dtype::F16,
                rows(1, Dtype::Bf16),
            ),
            prefixed(
                3,
                tt("tt.i8", shape(16, &[2, 2, 2, 2], &[1, 2, 2, 9], &[2, 3, 2]), Dtype::I8, None),
            ),
        ],
        vec![
            dense("dense.bf16", 4, 1, Dtype::Bf16, rows(4, Dtype::F32)),
            dense("dense.f16", 3, 17, Dtype::F16, None),
            tt(
                "tt.bf16",
                columns_reversed(shape(
                    60,
                    &[2, 1, 2, 3, 1, 5],
                    &[1, 2, 1, 1, 2, 2],
                    &[1, 2, 3, 2, 2],
                )),
                Dtype::Bf16,
                rows(5, Dtype::I4),
            ),
            prefixed(
                2,
                tt(
                    "tt.i8",
                    columns_reversed(reversed(shape(6, &[3, 2], &[2, 4], &[4]))),
                    Dtype::I8,
                    rows(2, Dtype::F32),
                ),
            ),
        ],
        vec![dense("only", 1, 1, Dtype::I8, None)],
        vec![
            dense("dense.i4", 8, 10, Dtype::I4, None),
            dense("dense.i4.odd", 5, 7, Dtype::I4, rows(2, Dtype::I4)),
        ],
        vec![
            projected("projected.f32", 9, [3, 8], Dtype::F32, Dtype::F32),
            TableSpec {
                overrides: rows(2, Dtype::F16),
                ..projected("projected.i4", 7, [5, 6], Dtype::I4, Dtype::F16)
            },
            modulo(11, projected("projected.i8", 4, [1, 17], Dtype::I8, Dtype::Bf16)),
        ],
        vec![
            parts("parts.add", 10, 3, [4, 4], Combine::Add, Dtype::F16),
            TableSpec {
                overrides: rows(3, Dtype::F32),
                ..parts("parts.concat", 9, 4, [5, 2], Combine::Concat, Dtype::I8)
            },
            remapped(13, parts("parts.mult", 8, 5, [3, 3], Combine::Mult, Dtype::F32)),
        ],
        vec![
            codes("codes.add", 6, Combine::Add, [3, 5], [7, 7], CodeDtype::U16, Dtype::F16, None),
            TableSpec {
                overrides: rows(2, Dtype::I8),
                ..codes("codes.f32", 9, Combine::Concat, [4, 6], [8, 8], u8s, Dtype::F32, None)
            },
            modulo(
                12,
                codes("codes.i8", 7, Combine::Concat, [3, 4], [6, 5], u12s, Dtype::I8, half),
            ),
            remapped(
                9,
                codes("codes.wide", 4, Combine::Add, [2, 3], [4, 9], u12s, Dtype::Bf16, half),
            ),
        ],
        vec![
            TableSpec {
                overrides: rows(2, Dtype::F32),
                ..modulo(20, dense("hashed", 6, 5, Dtype::Bf16, None))
            },
            remapped(9, dense("remapped", 7, 9, Dtype::I8, None)),
            modulo(40, tt("tt.hashed", shape(11, &[4, 3], &[3, 2], &[5]), Dtype::F32, None)),
            prefixed(
                2,
                remapped(
                    25,
                    tt(
                        "tt.remapped",
                        reversed(shape(23, &[2, 3, 4], &[2, 1, 4], &[3, 2])),
                        Dtype::F16,
                        rows(4, Dtype::F32),
                    ),
                ),
            ),
        ],
    ];
    let mut blobs: Vec<_> = blobs
        .iter()
        .zip(1..)
        .map(|(tables, seed)| build(tables, seed, Values::Reals))
        .collect();
    let tables = [
        dense("d", 9, 4, Dtype::F16, None),
        tt("c", shape(29, &[2, 3, 5], &[2, 1, 2], &[3, 2]), Dtype::F32, rows(3, Dtype::F32)),
        parts("b", 10, 3, [4, 4], Combine::Mult, Dtype::F32),
        projected("a", 7, [2, 4], Dtype::I8, Dtype::F32),
    ];
    // In another order than that of the names, one table twice and one not at all.
    let order = [0, 2, 1, 0];
    let first = model(&order, &[3, 5, 4], &[6, 3], [Dtype::F32, Dtype::F16]);
    let second = model(&[1, 3], &[2, 4], &[], [Dtype::I8, Dtype::I8]);
    let third = model(&[], &[6, 1], &[9], [Dtype::Bf16, Dtype::I8]);
    // Without dense features: several tables, and two with nothing but their product.
    let fourth = model(&[3, 0, 2], &[], &[5], [Dtype::F32, Dtype::F16]);
    let fifth = model(&[0, 1], &[], &[], [Dtype::I8; 2]);
    let models = [
        (&tables[..], first),
        (&tables, second),
        (&tables[..1], third),
        (&tables, fourth),
        (&tables, fifth),
    ];
    let models = models.iter().zip(20..);
    blobs.extend(
        models.map(|((tables, model), seed)| build_model(tables, Some(model), seed, Values::Reals)),
    );
    blobs
}
