//! Random blobs: proptest draws what the tables are, a seed fills them with stored bits. Values never pass through the
//! crate's encoders: any bit pattern that a writer could have produced may be there.

use super::rng::Rng;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
};
use ttrec::{
    AlignedBuf, DigitOrder, TtShape,
    blob::{Layout, OverridesSpec, Role, SectionPlan, TableSpec, WeightsSpec},
    dtype::Dtype,
};

/// Which numbers a blob is filled with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values {
    /// Small integers, scales that are powers of two: every row and every small bag is exact in f32.
    Integers,
    /// Zeros and magnitudes of 2^-10 to 2^4, far from under- and overflow in chains of up to six cores.
    Reals,
}

/// A blob of these tables, filled from `seed`.
pub(crate) fn build(tables: &[TableSpec], seed: u64, values: Values) -> AlignedBuf {
    let rows_of = |table: usize| match tables[table].weights {
        WeightsSpec::Dense { num_embeddings, embedding_dim, .. } => (num_embeddings, embedding_dim),
        WeightsSpec::Tt { shape, .. } => (shape.num_embeddings(), shape.embedding_dim()),
    };
    // The ids of the section before, which an index follows.
    let mut ids = Vec::new();
    Layout::new(tables).unwrap().build(|section, out| {
        let (mut num_embeddings, embedding_dim) = rows_of(section.table);
        if let (Role::PrefixIds | Role::PrefixIndex, WeightsSpec::Tt { shape, .. }) =
            (section.role, tables[section.table].weights)
        {
            num_embeddings = shape.num_prefixes();
        }
        if matches!(section.role, Role::OverrideIndex | Role::PrefixIndex) {
            return super::format::fill_id_index(&ids, num_embeddings, out);
        }
        let mut rng = Rng::new(seed ^ section.offset);
        fill(section, num_embeddings, embedding_dim, &mut rng, values, out);
        if matches!(section.role, Role::OverrideIds | Role::PrefixIds) {
            ids = out.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().unwrap())).collect();
        }
    })
}

/// Ids of what is stored apart are below `num_embeddings`, or so many prefixes.
fn fill(plan: &SectionPlan, num_embeddings: u64, dim: usize, rng: &mut Rng, values: Values, out: &mut [u8]) {
    match (plan.role, plan.dtype) {
        (Role::OverrideIds | Role::PrefixIds, _) => {
            let ids = ascending_ids(rng, out.len() / 8, num_embeddings);
            out.chunks_exact_mut(8).zip(ids).for_each(|(out, id)| out.copy_from_slice(&id.to_le_bytes()));
        }
        (Role::Scales(_), _) => out.chunks_exact_mut(4).for_each(|out| out.copy_from_slice(&scale(rng, values))),
        (Role::Rows | Role::OverrideRows, Some(Dtype::I8)) => {
            for row in out.chunks_exact_mut(8 + dim) {
                row[..4].copy_from_slice(&scale(rng, values));
                row[4..8].copy_from_slice(&element(rng, Dtype::F32, values)[..4]);
                row[8..].iter_mut().for_each(|out| *out = element(rng, Dtype::I8, values)[0]);
            }
        }
        (Role::Rows | Role::OverrideRows, Some(Dtype::I4)) => {
            for row in out.chunks_exact_mut(4 + dim.div_ceil(2)) {
                row[..2].copy_from_slice(&half_scale(rng, values));
                row[2..4].copy_from_slice(&element(rng, Dtype::F16, values)[..2]);
                // The upper half of the last byte of an odd row belongs to no column, and holds what it will.
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
        Values::Reals => f32::from_bits((127 - 8 + rng.below(4) as u32) << 23 | rng.below(1 << 23) as u32),
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

/// The stored bytes of one random element (of two, if they are i4); those past its size are not in use.
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
    };
    bits.to_le_bytes()
}

pub(crate) fn dtype() -> impl Strategy<Value = Dtype> {
    select(&Dtype::ALL[..])
}

/// What cores can be stored as.
pub(crate) const CORE_DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

/// Shapes of 2 to 6 cores, with unequal, odd and unit factors and ranks, partly filled, in both digit orders.
/// `max_rank` bounds the ranks and `max_dim` the columns.
pub(crate) fn tt_shape(max_rank: u32, max_dim: u32) -> impl Strategy<Value = TtShape> {
    let last_factor = prop_oneof![2 => 1u32..=5, 1 => select(&[8u32, 9, 16, 17, 64][..])];
    let lists = (2usize..=6).prop_flat_map(move |d| (vec(1u32..=9, d), vec(1u32..=5, d - 1), vec(1..=max_rank, d - 1)));
    (lists, last_factor, any::<bool>(), 0u64..=u64::MAX).prop_map(move |((p, mut q, r), last, least_first, padding)| {
        q.push(last);
        // Narrow the widest but one until the row is short enough for a slow oracle.
        while q.iter().product::<u32>() > max_dim {
            let d = q.len();
            *q[..d - 1].iter_mut().max().unwrap() -= 1;
        }
        let rows: u64 = p.iter().map(|&p| u64::from(p)).product();
        let num_embeddings = rows - padding % rows.div_ceil(2);
        let order = if least_first { DigitOrder::LeastSignificantFirst } else { DigitOrder::MostSignificantFirst };
        TtShape::new(num_embeddings, &p, &q, &r).unwrap().with_digit_order(order)
    })
}

/// One to four tables of any kind under odd names, half of them with overrides.
pub(crate) fn tables(max_rank: u32, max_dim: u32) -> impl Strategy<Value = Vec<TableSpec>> {
    let names = ["a", "item", "Item", "emb_l.0.weight", "naïve·表", " \n", "\0", "../x", "%s{}"].map(String::from);
    let names = names.into_iter().chain(["x".repeat(ttrec::blob::MAX_NAME_LEN)]).collect::<Vec<_>>();
    let dense = (1u64..=40, 1usize..=70, dtype());
    let dense = dense.prop_map(|(num_embeddings, embedding_dim, dtype)| WeightsSpec::Dense {
        num_embeddings,
        embedding_dim,
        dtype,
    });
    let core_dtype = select(&CORE_DTYPES[..]);
    let tt = (tt_shape(max_rank, max_dim), core_dtype).prop_map(|(shape, dtype)| WeightsSpec::Tt { shape, dtype });
    let table = (prop_oneof![1 => dense, 2 => tt], 0u64..=6, prop::option::of((1u64..=12, dtype())));
    (subsequence(names, 1..=4).prop_shuffle(), vec(table, 4)).prop_map(|(names, tables)| {
        let specs = names.into_iter().zip(tables).map(|(name, (weights, prefixes, overrides))| {
            let (num_embeddings, num_prefixes) = match weights {
                WeightsSpec::Dense { num_embeddings, .. } => (num_embeddings, 0),
                WeightsSpec::Tt { shape, .. } => (shape.num_embeddings(), prefixes.min(shape.num_prefixes())),
            };
            let overrides = overrides.map(|(count, dtype)| OverridesSpec { count: count.min(num_embeddings), dtype });
            TableSpec { name, weights, num_prefixes, overrides }
        });
        specs.collect()
    })
}

/// A few small blobs that together hold every representation in every dtype it can have, with and without overrides,
/// in both digit orders.
pub(crate) fn one_of_each() -> Vec<AlignedBuf> {
    let shape = |n, p: &[u32], q: &[u32], r: &[u32]| TtShape::new(n, p, q, r).unwrap();
    let reversed = |shape: TtShape| shape.with_digit_order(DigitOrder::LeastSignificantFirst);
    let tt = |name: &str, shape, dtype, overrides| TableSpec {
        name: name.into(),
        weights: WeightsSpec::Tt { shape, dtype },
        num_prefixes: 0,
        overrides,
    };
    let dense = |name: &str, num_embeddings, embedding_dim, dtype, overrides| TableSpec {
        name: name.into(),
        weights: WeightsSpec::Dense { num_embeddings, embedding_dim, dtype },
        num_prefixes: 0,
        overrides,
    };
    let prefixed = |num_prefixes, table| TableSpec { num_prefixes, ..table };
    let rows = |count, dtype| Some(OverridesSpec { count, dtype });
    let blobs = [
        vec![
            dense("dense.f32", 7, 5, Dtype::F32, None),
            dense("dense.i8", 9, 3, Dtype::I8, rows(2, Dtype::F16)),
            tt("tt.f32", shape(29, &[2, 3, 5], &[2, 1, 4], &[3, 2]), Dtype::F32, rows(3, Dtype::I8)),
        ],
        vec![
            tt("tt.f16", reversed(shape(11, &[4, 3], &[3, 2], &[5])), Dtype::F16, rows(1, Dtype::Bf16)),
            prefixed(3, tt("tt.i8", shape(16, &[2, 2, 2, 2], &[1, 2, 2, 9], &[2, 3, 2]), Dtype::I8, None)),
        ],
        vec![
            dense("dense.bf16", 4, 1, Dtype::Bf16, rows(4, Dtype::F32)),
            dense("dense.f16", 3, 17, Dtype::F16, None),
            tt(
                "tt.bf16",
                shape(60, &[2, 1, 2, 3, 1, 5], &[1, 2, 1, 1, 2, 2], &[1, 2, 3, 2, 2]),
                Dtype::Bf16,
                rows(5, Dtype::I4),
            ),
            prefixed(2, tt("tt.i8", reversed(shape(6, &[3, 2], &[2, 4], &[4])), Dtype::I8, rows(2, Dtype::F32))),
        ],
        vec![dense("only", 1, 1, Dtype::I8, None)],
        vec![dense("dense.i4", 8, 10, Dtype::I4, None), dense("dense.i4.odd", 5, 7, Dtype::I4, rows(2, Dtype::I4))],
    ];
    blobs.iter().zip(1..).map(|(tables, seed)| build(tables, seed, Values::Reals)).collect()
}
