//! Bags of tensor-train tables, pooled a batch at a time: they agree with the f64 oracle, have the
//! bits of the order that `docs/numerics.md` describes, and have the same bits in every batch, with
//! every workspace and with every index type.
//!
//! `TTREC_KERNEL_CASES=small` takes a part of the tables, for emulators and valgrind.

use crate::support::{
    format::{self, table},
    oracle::{self, Approx, Mode, Reference},
    random::{CORE_DTYPES, Values, build},
    rng::Rng,
    tiers,
};
use std::collections::{BTreeMap, BTreeSet};
use ttrec::{
    AlignedBuf, Bags, Blob, DigitOrder, LookupError, Pooling, Table, TtShape,
    bag::Index,
    blob::{Layout, OverridesSpec, Role, TableSpec, WeightsSpec},
    dtype::Dtype,
};

/// What stands around outputs and workspaces, and in outputs before: a value no test produces.
const SENTINEL: f32 = -7.0e37;

/// Row factors, column factors and ranks: 2 to 5 cores, with 1 to 16 rows to the last product and
/// last column factors of less than, exactly, and more than a vector.
const SHAPES: [(&[u32], &[u32], &[u32]); 28] = [
    (&[17, 13], &[3, 5], &[7]),
    (&[12, 10], &[8, 9], &[6]),
    (&[40, 6], &[1, 16], &[12]),
    (&[5, 7, 6], &[4, 4, 4], &[8, 8]),
    (&[6, 5, 7], &[2, 2, 17], &[5, 9]),
    (&[5, 4, 9], &[3, 2, 8], &[3, 4]),
    (&[3, 4, 5, 4], &[2, 1, 3, 8], &[3, 7, 6]),
    (&[2, 3, 2, 3, 4], &[1, 2, 2, 2, 3], &[2, 5, 4, 3]),
    // Last steps of four and of eight columns, whose rows fill vectors.
    (&[20, 13], &[2, 4], &[9]),
    (&[5, 4, 9], &[2, 2, 4], &[3, 6]),
    (&[5, 4, 9], &[2, 4, 4], &[5, 4]),
    (&[4, 5, 7], &[4, 8, 4], &[3, 7]),
    (&[20, 13], &[2, 8], &[7]),
    (&[5, 4, 9], &[2, 2, 8], &[3, 8]),
    (&[5, 4, 9], &[4, 2, 8], &[5, 9]),
    (&[4, 5, 7], &[4, 4, 8], &[3, 6]),
    // And of one and two vectors, of so few rows that several products are added at once.
    (&[40, 6], &[1, 8], &[9]),
    (&[20, 13], &[2, 16], &[7]),
    (&[5, 4, 9], &[2, 2, 16], &[3, 8]),
    (&[40, 6], &[1, 32], &[5]),
    (&[20, 13], &[2, 32], &[6]),
    // Rows of more multiply-adds than are computed one by one, and of just as many.
    (&[20, 13], &[2, 32], &[33]),
    (&[20, 13], &[2, 32], &[32]),
    (&[20, 13], &[2, 4], &[300]),
    (&[40, 6], &[1, 16], &[140]),
    (&[5, 4, 9], &[2, 2, 8], &[3, 140]),
    (&[5, 4, 9], &[4, 4, 4], &[16, 17]),
    (&[5, 4, 9], &[3, 2, 12], &[9, 10]),
];

/// Bags around what is sorted on the stack and what is sorted by insertion, and larger ones.
const BAG_SIZES: [usize; 14] = [0, 1, 2, 31, 0, 32, 33, 47, 48, 49, 3, 1, 150, 0];

/// A blob of one tensor-train table.
fn sample(
    (p, q, r): (&[u32], &[u32], &[u32]),
    order: DigitOrder,
    dtype: Dtype,
    stored: Stored,
    values: Values,
) -> AlignedBuf {
    let rows: u64 = p.iter().map(|&p| u64::from(p)).product();
    let column_order = if (rows + dtype as u64).is_multiple_of(2) {
        order
    } else {
        order.reversed()
    };
    let shape = TtShape::new(rows - 5, p, q, r)
        .unwrap()
        .with_digit_order(order)
        .with_column_order(column_order);
    let overrides = match stored {
        Stored::None => None,
        Stored::Scattered(dtype) | Stored::Contiguous(dtype) => {
            Some(OverridesSpec { count: 20, dtype })
        }
    };
    // The stored products are not those of the cores, so that results show whether they were used.
    let num_prefixes = if (dtype as u64 + order as u64).is_multiple_of(2) {
        shape.num_prefixes() / 3
    } else {
        0
    };
    let spec = TableSpec {
        num_prefixes,
        overrides,
        ..TableSpec::new("t", WeightsSpec::Tt { shape, dtype })
    };
    let mut buf = build(&[spec], rows ^ dtype as u64, values);
    if let Stored::Contiguous(_) = stored {
        let ids = format::sections_of(&buf, 0)
            .into_iter()
            .find(|s| s.role == format::ROLE_OVERRIDE_IDS)
            .unwrap();
        (0..20u64).for_each(|i| {
            format::put(&mut buf, ids.offset + 8 * i as usize, &(30 + i).to_le_bytes())
        });
        format::reseal_section(&mut buf, ids.position);
    }
    Blob::parse(&buf).unwrap().verify_payload().unwrap();
    buf
}

/// Which rows have an override.
#[derive(Clone, Copy)]
enum Stored {
    None,
    Scattered(Dtype),
    Contiguous(Dtype),
}

/// Every shape in both digit orders and all dtypes, with and without overrides.
fn samples(values: Values) -> Vec<AlignedBuf> {
    let mut samples = Vec::new();
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (j, order) in [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst]
            .into_iter()
            .enumerate()
        {
            for (k, dtype) in CORE_DTYPES.into_iter().enumerate() {
                let of_rows = Dtype::ALL[(i + j + k) % 5];
                let stored = match (2 * i + j + k) % 4 {
                    0 => Stored::Scattered(of_rows),
                    1 => Stored::Contiguous(of_rows),
                    _ => Stored::None,
                };
                samples.push(sample(shape, order, dtype, stored, values));
            }
        }
    }
    let stride = if tiers::few_cases() { 5 } else { 1 };
    samples.into_iter().step_by(stride).collect()
}

/// The blob's table, on every tier.
fn on_every_tier(buf: &AlignedBuf) -> Vec<Table<'_>> {
    let table = Blob::parse(buf).unwrap().table("t").unwrap();
    tiers::available().into_iter().map(|tier| table.with_tier(tier)).collect()
}

/// Bags with weights.
#[derive(Default)]
struct Batch {
    indices: Vec<u64>,
    offsets: Vec<u64>,
    weights: Vec<f32>,
}

impl Batch {
    /// Bags of these sizes: of a few frequent rows, of rows that share their prefixes, of rows with
    /// an override, and of any rows.
    fn draw(tt: &TensorTrain, sizes: &[usize], values: Values, rng: &mut Rng) -> Self {
        let frequent: [u64; 3] = std::array::from_fn(|_| rng.below(tt.num_embeddings));
        let stored: Vec<u64> = tt.stored.keys().copied().collect();
        let mut batch = Self { offsets: vec![0], ..Self::default() };
        for &size in sizes {
            for _ in 0..size {
                batch.indices.push(match rng.below(8) {
                    0..2 => rng.pick(&frequent),
                    2..5 => tt.sibling(rng.pick(&frequent), rng),
                    5 if !stored.is_empty() => rng.pick(&stored),
                    _ => rng.below(tt.num_embeddings),
                });
                batch.weights.push(match values {
                    Values::Integers => rng.below(7) as f32 - 3.0,
                    Values::Reals => rng.below(1000) as f32 / 300.0 - 1.5,
                });
            }
            batch.offsets.push(batch.indices.len() as u64);
        }
        batch
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// A bag's indices and weights.
    fn bag(&self, bag: usize) -> (&[u64], &[f32]) {
        let range = self.offsets[bag] as usize..self.offsets[bag + 1] as usize;
        (&self.indices[range.clone()], &self.weights[range])
    }

    /// Some of the bags, in another order.
    fn select(&self, bags: &[usize]) -> Self {
        let mut selected = Self { offsets: vec![0], ..Self::default() };
        for &bag in bags {
            let (indices, weights) = self.bag(bag);
            selected.indices.extend(indices);
            selected.weights.extend(weights);
            selected.offsets.push(selected.indices.len() as u64);
        }
        selected
    }

    /// Pools the bags with a workspace of NaNs that starts at an even or odd element of its buffer;
    /// nothing around it, nor around the output, may change.
    fn pool(&self, table: &Table<'_>, mode: Mode, workspace_len: usize, odd: bool) -> Vec<f32> {
        self.pool_as(&self.indices, &self.offsets, table, mode, [workspace_len, odd.into()], false)
    }

    fn pool_in_index_order(&self, table: &Table<'_>, mode: Mode) -> Vec<f32> {
        self.pool_as(&self.indices, &self.offsets, table, mode, [table.workspace_len(1), 0], true)
    }

    /// With 32-bit indices.
    fn pool_narrow(&self, table: &Table<'_>, mode: Mode, workspace_len: usize) -> Vec<f32> {
        let narrow =
            |wide: &[u64]| wide.iter().map(|&i| i.try_into().unwrap()).collect::<Vec<u32>>();
        self.pool_as(
            &narrow(&self.indices),
            &narrow(&self.offsets),
            table,
            mode,
            [workspace_len, 0],
            false,
        )
    }

    fn pool_as<I: Index>(
        &self,
        indices: &[I],
        offsets: &[I],
        table: &Table<'_>,
        mode: Mode,
        [workspace_len, shift]: [usize; 2],
        sequential: bool,
    ) -> Vec<f32> {
        let mut bags = Bags::new(indices, offsets).unwrap();
        if sequential {
            bags = bags.sequential();
        }
        let pooling = match mode {
            Mode::Sum | Mode::Weighted => Pooling::Sum,
            Mode::Mean => Pooling::Mean,
            Mode::Max => Pooling::Max,
        };
        if mode == Mode::Weighted {
            bags = bags.with_per_sample_weights(&self.weights).unwrap();
        }
        const GUARD: usize = 16;
        let len = self.len() * table.embedding_dim();
        let mut out = vec![SENTINEL; GUARD + len + GUARD];
        let mut workspace = vec![SENTINEL; GUARD + shift + workspace_len + GUARD];
        let inner = &mut workspace[GUARD + shift..][..workspace_len];
        inner.fill(f32::NAN);
        table.pool(&bags, pooling, &mut out[GUARD..][..len], inner).unwrap();
        let untouched = |guard: &[f32]| guard.iter().all(|&x| x == SENTINEL);
        assert!(
            untouched(&workspace[..GUARD + shift])
                && untouched(&workspace[GUARD + shift + workspace_len..])
        );
        assert!(untouched(&out[..GUARD]) && untouched(&out[GUARD + len..]));
        out[GUARD..][..len].to_vec()
    }
}

/// A table as the documentation describes it, in f32.
struct TensorTrain<'a> {
    reference: Reference<'a>,
    num_embeddings: u64,
    p: Vec<usize>,
    q: Vec<usize>,
    r: Vec<usize>,
    least_first: bool,
    /// Elements and scales of all slices of each core; a scale is 1 where there are none.
    cores: Vec<(Vec<f32>, Vec<f32>)>,
    /// Scale, offset and elements of overrides.
    stored: BTreeMap<u64, (f32, f32, Vec<f32>)>,
    fused: bool,
    /// Prefixes whose products are stored, or were multiplied out already.
    prefixes: BTreeMap<Vec<usize>, Vec<f32>>,
}

/// A lookup whose row is not stored: the digits of its prefix from the last to the first, its last
/// digit, its weight.
type Lookup = (Vec<usize>, usize, f32);

impl<'a> TensorTrain<'a> {
    fn new(bytes: &'a [u8], fused: bool) -> Self {
        let at = format::table_at(0);
        let d = usize::from(bytes[at + table::NUM_CORES]);
        let list = |field, len| -> Vec<usize> {
            (0..len).map(|k| format::u32_at(bytes, at + field + 4 * k) as usize).collect()
        };
        let p = list(table::ROW_FACTORS, d);
        let sections = format::sections_of(bytes, 0);
        let section =
            |role, core| sections.iter().find(|s| (s.role, usize::from(s.core)) == (role, core));
        let decode = |bytes: &[u8], dtype, count| -> Vec<f32> {
            (0..count).map(|i| oracle::element(bytes, dtype, i) as f32).collect()
        };
        let cores = (0..d).map(|k| {
            let core = section(format::ROLE_CORE, k).unwrap();
            let elements = decode(
                &bytes[core.range()],
                core.dtype,
                core.len / format::bytes_of(core.dtype, 1),
            );
            let scales = match section(format::ROLE_SCALES, k) {
                Some(scales) => decode(&bytes[scales.range()], scales.dtype, p[k]),
                None => vec![1.0; p[k]],
            };
            (elements, scales)
        });
        let dim = format::u32_at(bytes, at + table::EMBEDDING_DIM) as usize;
        let mut stored = BTreeMap::new();
        if let Some(rows) = section(format::ROLE_OVERRIDE_ROWS, 0) {
            let rows_of = bytes[rows.range()].chunks(format::row_len(rows.dtype, dim));
            for (id, row) in Reference::new(bytes, 0).override_ids().iter().zip(rows_of) {
                let (header, elements) = match format::row_header(rows.dtype) {
                    Some(header) => (decode(row, header, 2), &row[format::bytes_of(header, 2)..]),
                    None => (vec![1.0, -0.0], row),
                };
                stored.insert(*id, (header[0], header[1], decode(elements, rows.dtype, dim)));
            }
        }
        let ranks = list(table::INNER_RANKS, d - 1);
        let mut table = Self {
            reference: Reference::new(bytes, 0),
            num_embeddings: format::u64_at(bytes, at + table::NUM_EMBEDDINGS),
            q: list(table::COLUMN_FACTORS, d),
            r: [&[1], &ranks[..], &[1]].concat(),
            least_first: bytes[at + table::DIGIT_ORDER] == 1,
            cores: cores.collect(),
            p,
            stored,
            fused,
            prefixes: BTreeMap::new(),
        };
        if let Some(products) = section(format::ROLE_PREFIX_PRODUCTS, 0) {
            let ids = Reference::new(bytes, 0).prefix_ids();
            let products = decode(&bytes[products.range()], products.dtype, products.len / 4);
            for (&id, product) in ids.iter().zip(products.chunks(products.len() / ids.len())) {
                let row = if table.least_first {
                    id
                } else {
                    id * table.p[d - 1] as u64
                };
                let (prefix, ..) = table.lookup(row, 1.0);
                table.prefixes.insert(prefix, product.to_vec());
            }
        }
        table
    }

    fn place(&self, k: usize) -> usize {
        if self.least_first {
            self.p[..k].iter().product()
        } else {
            self.p[k + 1..].iter().product()
        }
    }

    fn digits(&self, row: u64) -> Vec<usize> {
        (0..self.p.len()).map(|k| row as usize / self.place(k) % self.p[k]).collect()
    }

    fn lookup(&self, row: u64, weight: f32) -> Lookup {
        let mut digits = self.digits(row);
        let last = digits.pop().unwrap();
        digits.reverse();
        (digits, last, weight)
    }

    /// Another row with the prefix of this one, if the table has it.
    fn sibling(&self, row: u64, rng: &mut Rng) -> u64 {
        let last = self.p.len() - 1;
        let first = row as usize - self.digits(row)[last] * self.place(last);
        let sibling = (first + rng.index(self.p[last]) * self.place(last)) as u64;
        if sibling < self.num_embeddings { sibling } else { row }
    }

    /// The most lookups of one prefix.
    fn most_of_a_prefix(&self, rows: &[u64]) -> usize {
        let mut counts = BTreeMap::new();
        for &row in rows.iter().filter(|row| !self.stored.contains_key(row)) {
            *counts.entry(self.lookup(row, 1.0).0).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }

    fn multiply_add(&self, x: f32, y: f32, sum: f32) -> f32 {
        if self.fused { x.mul_add(y, sum) } else { x * y + sum }
    }

    fn slice(&self, k: usize, digit: usize) -> (&[f32], f32) {
        let len = self.r[k] * self.q[k] * self.r[k + 1];
        (&self.cores[k].0[digit * len..][..len], self.cores[k].1[digit])
    }

    /// `x . slice` with as many rows as `x` has.
    fn product(&self, x: &[f32], slice: &[f32], r: usize) -> Vec<f32> {
        let n = slice.len() / r;
        let mut out = vec![0.0; x.len() / r * n];
        for (x, out) in x.chunks(r).zip(out.chunks_mut(n)) {
            x.iter().zip(slice.chunks(n)).for_each(|(&x, slice)| self.add(out, x, slice));
        }
        out
    }

    /// The partial product of a prefix, whose digits come from the last to the first.
    fn prefix(&mut self, digits: &[usize]) -> Vec<f32> {
        if let Some(x) = self.prefixes.get(digits) {
            return x.clone();
        }
        let mut x = vec![1.0];
        for (k, &digit) in digits.iter().rev().enumerate() {
            let (slice, scale) = self.slice(k, digit);
            x = if k == 0 {
                slice.to_vec()
            } else {
                self.product(&x, slice, self.r[k])
            };
            x.iter_mut().for_each(|x| *x *= scale);
        }
        self.prefixes.insert(digits.to_vec(), x.clone());
        x
    }

    /// Whether rows are computed one by one.
    fn is_small(&self) -> bool {
        let steps = 1..self.p.len();
        let columns = |k: usize| self.q[k] * self.r[k + 1];
        let multiply_adds =
            |k: usize| self.q[..k].iter().product::<usize>() * self.r[k] * columns(k);
        steps.clone().all(|k| columns(k).is_multiple_of(4))
            && steps.map(multiply_adds).sum::<usize>() <= 2048
    }

    /// From how many lookups of a prefix on their last slices are summed.
    fn sum_slices_from(&self) -> usize {
        let m: usize = self.q[..self.q.len() - 1].iter().product();
        (2..=16).find(|k| 20 * k * m > 23 * m + 58 * k).unwrap_or(usize::MAX)
    }

    fn add(&self, out: &mut [f32], weight: f32, row: &[f32]) {
        out.iter_mut()
            .zip(row)
            .for_each(|(out, &x)| *out = self.multiply_add(weight, x, *out));
    }

    fn stored_row(&self, row: u64) -> Option<Vec<f32>> {
        let (scale, offset, elements) = self.stored.get(&row)?;
        Some(elements.iter().map(|&x| self.multiply_add(*scale, x, *offset)).collect())
    }

    fn add_row(&mut self, out: &mut [f32], (prefix, last, weight): &Lookup) {
        let (x, k) = (self.prefix(prefix), prefix.len());
        let (slice, scale) = self.slice(k, *last);
        self.add(out, weight * scale, &self.product(&x, slice, self.r[k]));
    }

    /// The sum of a bag's rows, and how many sums of slices there were.
    fn sum(&mut self, rows: &[u64], weights: &[f32]) -> (Vec<f32>, usize) {
        let mut out = vec![0.0; self.q.iter().product()];
        let mut lookups = Vec::new();
        for (&row, &weight) in rows.iter().zip(weights) {
            match self.stored_row(row) {
                Some(row) => self.add(&mut out, weight, &row),
                None => lookups.push(self.lookup(row, weight)),
            }
        }
        let mut num_sums = 0;
        lookups.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let of_a_prefix = lookups.chunk_by(|(a, ..), (b, ..)| a == b);
        for lookups in of_a_prefix.flat_map(|lookups| lookups.chunks(16)) {
            if lookups.len() < self.sum_slices_from() {
                lookups.iter().for_each(|lookup| self.add_row(&mut out, lookup));
                continue;
            }
            let k = self.p.len() - 1;
            let mut sum = vec![0.0; self.r[k] * self.q[k]];
            for (_, last, weight) in lookups {
                let (slice, scale) = self.slice(k, *last);
                self.add(&mut sum, weight * scale, slice);
            }
            let x = self.prefix(&lookups[0].0);
            self.add(&mut out, 1.0, &self.product(&x, &sum, self.r[k]));
            num_sums += 1;
        }
        (out, num_sums)
    }

    /// The same one by one.
    fn sum_in_index_order(&mut self, rows: &[u64], weights: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.q.iter().product()];
        for (&row, &weight) in rows.iter().zip(weights) {
            match self.stored_row(row) {
                Some(row) => self.add(&mut out, weight, &row),
                None => self.add_row(&mut out, &self.lookup(row, weight)),
            }
        }
        out
    }

    fn max(&mut self, rows: &[u64]) -> Vec<f32> {
        let k = self.p.len() - 1;
        let row = |row| {
            self.stored_row(row).unwrap_or_else(|| {
                let (prefix, last, _) = self.lookup(row, 1.0);
                let x = self.prefix(&prefix);
                let (slice, scale) = self.slice(k, last);
                self.product(&x, slice, self.r[k]).iter().map(|x| scale * x).collect()
            })
        };
        let larger = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(b).map(|(a, b)| a.max(b)).collect();
        rows.iter()
            .copied()
            .map(row)
            .reduce(larger)
            .unwrap_or_else(|| vec![0.0; self.q.iter().product()])
    }

    /// Every bag of a batch, and how many sums of slices there were.
    fn pool(&mut self, batch: &Batch, mode: Mode, sequential: bool) -> (Vec<f32>, usize) {
        let (mut out, mut num_sums) = (Vec::new(), 0);
        for bag in 0..batch.len() {
            let (rows, weights) = batch.bag(bag);
            let ones = vec![1.0; rows.len()];
            let weights = if mode == Mode::Weighted { weights } else { &ones };
            let mut pooled = match mode {
                Mode::Max => self.max(rows),
                _ if sequential || self.is_small() => self.sum_in_index_order(rows, weights),
                _ => {
                    let (sum, sums_of_slices) = self.sum(rows, weights);
                    num_sums += sums_of_slices;
                    sum
                }
            };
            if mode == Mode::Mean && rows.len() > 1 {
                pooled.iter_mut().for_each(|x| *x /= rows.len() as f32);
            }
            out.extend(self.reference.in_column_order(pooled));
        }
        (out, num_sums)
    }
}

fn assert_same_bits(found: &[f32], expected: &[f32], batch: &Batch, what: &dyn std::fmt::Debug) {
    assert_eq!(found.len(), expected.len());
    let dim = found.len() / batch.len();
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        let (bag, column) = (i / dim, i % dim);
        let rows = batch.bag(bag).0.len();
        assert_eq!(
            x.to_bits(),
            y.to_bits(),
            "{x} is not {y}: column {column} of bag {bag}, of {rows}: {what:?}"
        );
    }
}

/// The bags of which some bit differs.
fn differing(a: &[f32], b: &[f32], num_bags: usize) -> usize {
    let dim = a.len() / num_bags;
    a.chunks(dim)
        .zip(b.chunks(dim))
        .filter(|(a, b)| a.iter().zip(*b).any(|(a, b)| a.to_bits() != b.to_bits()))
        .count()
}

#[test]
fn bags_have_the_bits_of_the_documented_order() {
    let mut num_sums = BTreeMap::new();
    let mut reordered = BTreeMap::new();
    for (case, buf) in samples(Values::Reals).iter().enumerate() {
        for table in on_every_tier(buf) {
            let mut tt = TensorTrain::new(buf, tiers::fuses(table.tier()));
            let mut rng = Rng::new(case as u64);
            let batch = Batch::draw(&tt, &BAG_SIZES, Values::Reals, &mut rng);
            let best = table.workspace_len(batch.indices.len());
            for mode in Mode::ALL {
                let what = (table.tier().name(), case, mode);
                let (expected, sums) = tt.pool(&batch, mode, false);
                let found = batch.pool(&table, mode, best, false);
                assert_same_bits(&found, &expected, &batch, &what);
                let (expected, _) = tt.pool(&batch, mode, true);
                let sequential = batch.pool_in_index_order(&table, mode);
                assert_same_bits(&sequential, &expected, &batch, &(what, "in index order"));

                let kind = (table.tier().name(), Reference::new(buf, 0).dtype());
                *num_sums.entry(kind).or_insert(0) += sums;
                *reordered.entry(kind).or_insert(0) += differing(&found, &sequential, batch.len());
            }
        }
    }
    println!("sums of slices: {num_sums:?}\nbags that another order would change: {reordered:?}");
    let kinds = tiers::available().len() * CORE_DTYPES.len();
    for met in [num_sums, reordered] {
        assert!(met.len() == kinds && met.values().all(|&n| n > 20), "{met:?}");
    }
}

#[test]
fn a_bag_has_the_same_bits_in_any_batch_and_workspace() {
    let mut num_lens = 0;
    for (case, buf) in samples(Values::Reals).iter().enumerate().step_by(3) {
        for table in on_every_tier(buf) {
            let tt = TensorTrain::new(buf, tiers::fuses(table.tier()));
            let mut rng = Rng::new(case as u64);
            let batch = Batch::draw(&tt, &BAG_SIZES, Values::Reals, &mut rng);
            let (least, best) = (table.workspace_len(1), table.workspace_len(batch.indices.len()));
            assert!(least < best || tt.is_small() && least == best);
            let mode = rng.pick(&[Mode::Sum, Mode::Weighted, Mode::Mean]);
            let expected = batch.pool(&table, mode, best, false);
            let what = (table.tier().name(), case, mode);
            assert_same_bits(
                &batch.pool_narrow(&table, mode, best),
                &expected,
                &batch,
                &(what, "32 bits"),
            );

            // All the least ones, where there is room for a few entries; then every few.
            let step = (best - least) / 40;
            let lens = (least..least + 4)
                .chain((least + 4..best + 200).step_by(step | 1))
                .chain((best - 2).max(least)..best + 2);
            for len in lens.chain([4 * best]) {
                let found = batch.pool(&table, mode, len, len / 2 % 2 == 1);
                assert_same_bits(&found, &expected, &batch, &(what, "workspace", len));
                num_lens += 1;
            }

            let mut order: Vec<usize> = (0..batch.len()).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.index(i + 1));
            }
            let dim = table.embedding_dim();
            let select = |bags: &[usize]| {
                bags.iter().flat_map(|&b| &expected[b * dim..][..dim]).copied().collect()
            };
            let alone = (0..batch.len()).map(|bag| vec![bag]);
            for bags in alone.chain([
                order.clone(),
                order[3..9].to_vec(),
                [&order[..], &order[..]].concat(),
            ]) {
                let (selected, expected): (Batch, Vec<f32>) = (batch.select(&bags), select(&bags));
                for (len, odd) in [(least, true), (best, false)] {
                    let found = selected.pool(&table, mode, len, odd);
                    assert_same_bits(&found, &expected, &selected, &(what, &bags, len));
                }
            }
        }
    }
    assert!(num_lens > 300);
}

/// More lookups than are sorted together.
const MANY: usize = 20_500;

#[test]
fn bags_and_batches_of_more_than_are_sorted_together_have_the_same_bits() {
    let shapes: [(&[u32], &[u32], &[u32]); 3] = [
        (&[5, 7, 6], &[4, 4, 4], &[16, 17]),
        (&[6, 5, 7], &[2, 2, 17], &[5, 9]),
        (&[5, 4, 9], &[3, 2, 8], &[3, 60]),
    ];
    let shapes = if tiers::few_cases() { &shapes[2..] } else { &shapes[..] };
    for (case, shape) in shapes.iter().enumerate() {
        let dtype = CORE_DTYPES[3 * (case % 2)];
        let buf = sample(
            *shape,
            DigitOrder::MostSignificantFirst,
            dtype,
            Stored::Scattered(Dtype::F16),
            Values::Reals,
        );
        for table in on_every_tier(&buf) {
            let mut tt = TensorTrain::new(&buf, tiers::fuses(table.tier()));
            let mut sizes = vec![MANY, 0, 5];
            sizes.extend([400; MANY / 400]);
            let batch = Batch::draw(&tt, &sizes, Values::Reals, &mut Rng::new(case as u64));
            let (expected, sums) = tt.pool(&batch, Mode::Weighted, false);
            assert!(sums > 100);
            let (least, best) = (table.workspace_len(1), table.workspace_len(batch.indices.len()));
            assert_eq!(best, table.workspace_len(usize::MAX));
            // With the least workspace a large bag is read thousands of times: once is enough.
            let lens = [least, least + 1000, least + 3333, best / 2, best];
            for len in lens.into_iter().skip(usize::from(case > 0)) {
                let found = batch.pool(&table, Mode::Weighted, len, len % 2 == 1);
                assert_same_bits(&found, &expected, &batch, &(table.tier().name(), case, len));
            }
        }
    }
}

/// Pools batches of every sample and gives what was found and what was expected, with the sum of
/// the terms' magnitudes, to `check`.
fn compare_with_the_oracle(values: Values, sizes: &[usize], check: impl Fn(f32, Approx, f64)) {
    let (mut num_stored, mut num_bags, mut told_apart) = (0, 0, 0);
    for (case, buf) in samples(values).iter().enumerate() {
        let reference = Reference::new(buf, 0);
        let tt = TensorTrain::new(buf, true);
        let batch = Batch::draw(&tt, sizes, values, &mut Rng::new(case as u64));
        let used: BTreeSet<u64> = batch.indices.iter().copied().collect();
        let rows: BTreeMap<u64, _> =
            used.into_iter().map(|row| (row, reference.row_and_magnitudes(row))).collect();
        num_stored += batch.indices.iter().filter(|row| tt.stored.contains_key(row)).count();
        let best = on_every_tier(buf)[0].workspace_len(batch.indices.len());
        let dim = reference.embedding_dim();
        for mode in Mode::ALL {
            let found: Vec<_> = on_every_tier(buf)
                .iter()
                .map(|table| (table.tier(), batch.pool(table, mode, best, true)))
                .collect();
            tiers::assert_fused_agree(
                &found
                    .iter()
                    .map(|(tier, x)| (*tier, x.iter().map(|x| x.to_bits()).collect()))
                    .collect::<Vec<(_, Vec<_>)>>(),
            );
            for bag in 0..batch.len() {
                let (indices, weights) = batch.bag(bag);
                let most = tt.most_of_a_prefix(indices);
                let rows: Vec<&[_]> = indices.iter().map(|row| &rows[row][..]).collect();
                let terms: Vec<Vec<Approx>> = rows
                    .iter()
                    .map(|row| row.iter().map(|&(x, size)| x.summed_before(size, most)).collect())
                    .collect();
                let terms: Vec<&[Approx]> = terms.iter().map(|row| &row[..]).collect();
                let expected = oracle::pool(&terms, weights, mode, dim);
                if let (Mode::Sum, Some(last)) = (mode, terms.last()) {
                    let seen = |(x, sum): (&Approx, &Approx)| x.value.abs() > 2.0 * sum.error;
                    num_bags += 1;
                    told_apart += usize::from(last.iter().zip(&expected).any(seen));
                }
                for column in 0..dim {
                    let weight = |i: usize| {
                        if mode == Mode::Weighted {
                            f64::from(weights[i].abs())
                        } else {
                            1.0
                        }
                    };
                    let size = (0..rows.len()).map(|i| weight(i) * rows[i][column].1).sum();
                    for (_, found) in &found {
                        check(found[bag * dim + column], expected[column], size);
                    }
                }
            }
        }
    }
    assert!(num_stored > 100);
    // A bound that lets a sum without its last row pass checks nothing.
    println!("the bound tells {told_apart} of {num_bags} sums from those without their last row");
    assert!(told_apart * 100 > num_bags * 99);
}

#[test]
fn bags_agree_with_the_oracle() {
    compare_with_the_oracle(Values::Reals, &BAG_SIZES, |found, expected, _| {
        assert!(expected.admits(found), "{found} is not {expected:?}");
    });
}

#[test]
fn integer_valued_bags_are_exact() {
    let sizes: Vec<usize> = [400, 700].into_iter().chain(BAG_SIZES).collect();
    compare_with_the_oracle(Values::Integers, &sizes, |found, expected, size| {
        // Then every partial sum, in whatever order, is an integer that f32 holds.
        assert!(size < 2f64.powi(24), "{size}");
        assert_eq!(found, expected.value as f32);
    });
}

/// A blob that stores what its cores multiply out to answers as one that does not.
#[test]
fn prefix_products_stored_by_the_tier_that_reads_them_change_no_bits() {
    for (i, (p, q, r)) in SHAPES.into_iter().enumerate() {
        let order = [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst][i % 2];
        let rows: u64 = p.iter().map(|&p| u64::from(p)).product();
        let shape = TtShape::new(rows, p, q, r).unwrap().with_digit_order(order);
        let shape = if i % 3 == 0 {
            shape.with_column_order(DigitOrder::LeastSignificantFirst)
        } else {
            shape
        };
        // f32 and f16: whose slices are the same whether products are stored or not.
        let weights = WeightsSpec::Tt { shape, dtype: CORE_DTYPES[i % 2] };
        let spec = |num_prefixes| TableSpec { num_prefixes, ..TableSpec::new("t", weights) };
        let plain = build(&[spec(0)], 1, Values::Reals);
        for table in on_every_tier(&plain) {
            let (mut workspace, len) = (vec![0.0; table.workspace_len(1)], shape.prefix_len());
            let sections = Blob::parse(&plain)
                .unwrap()
                .tables()
                .next()
                .unwrap()
                .sections()
                .collect::<Vec<_>>();
            let stored = Layout::new(&[spec(shape.num_prefixes())]).unwrap().build(|plan, out| {
                match plan.role {
                    Role::PrefixIds => {
                        out.chunks_exact_mut(8)
                            .zip(0u64..)
                            .for_each(|(out, id)| out.copy_from_slice(&id.to_le_bytes()));
                    }
                    Role::PrefixProducts => {
                        for (out, prefix) in out.chunks_exact_mut(4 * len).zip(0..) {
                            let mut product = vec![f32::NAN; len];
                            table.prefix_product(prefix, &mut product, &mut workspace).unwrap();
                            out.chunks_exact_mut(4)
                                .zip(product)
                                .for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
                        }
                    }
                    role => {
                        let section = sections.iter().find(|section| section.role == role).unwrap();
                        out.copy_from_slice(
                            &plain[section.offset as usize..][..section.len as usize],
                        );
                    }
                }
            });
            let cached = Blob::parse(&stored).unwrap().table("t").unwrap().with_tier(table.tier());
            let indices: Vec<u64> = (0..rows).chain(0..rows).collect();
            let offsets = [0, rows, rows + 1, 2 * rows];
            let bags = Bags::new(&indices, &offsets).unwrap();
            let pool = |table: &Table<'_>| {
                let mut out = vec![f32::NAN; 3 * table.embedding_dim()];
                table
                    .pool(&bags, Pooling::Sum, &mut out, &mut vec![0.0; table.workspace_len(1)])
                    .unwrap();
                out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(pool(&table), pool(&cached), "{p:?} {}", table.tier().name());
        }
        let table = on_every_tier(&plain)[0];
        let num_prefixes = shape.num_prefixes();
        let error = table.prefix_product(
            num_prefixes,
            &mut vec![0.0; shape.prefix_len()],
            &mut vec![0.0; table.workspace_len(1)],
        );
        assert_eq!(
            error,
            Err(LookupError::PrefixOutOfRange { prefix: num_prefixes, num_prefixes })
        );
        let error = table.prefix_product(
            0,
            &mut vec![0.0; shape.prefix_len() + 1],
            &mut vec![0.0; table.workspace_len(1)],
        );
        assert!(matches!(error, Err(LookupError::OutputLen { .. })), "{error:?}");
    }
}
