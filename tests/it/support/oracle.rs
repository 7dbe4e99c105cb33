//! The reference: rows and bags in f64 from a blob's raw bytes, by the definitions and nothing
//! else, with a bound on how far an f32 evaluation may be off.
//!
//! The bound is a running error analysis. A sum of n products in f32, in any order, fused or not,
//! passes each product through at most n roundings (its own, and n - 1 additions), so it is off by
//! at most `gamma(n)` times the sum of the products' magnitudes, `gamma(n) = n u / (1 - n u)`, `u =
//! 2^-24` = half of f32's epsilon; by what its inputs were off, times the other operand; and by
//! 2^-149 for each product that underflows. There is no other constant in it.

use std::{cell::RefCell, collections::BTreeMap};

use super::format::{
    COMBINE_CONCAT, COMBINE_MULT, DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_I4, DTYPE_I8, DTYPE_U8,
    DTYPE_U12, DTYPE_U16, KIND_CODEBOOK, KIND_DENSE, KIND_PROJECTED, KIND_QUOTIENT_REMAINDER,
    KIND_TT, ROLE_BOOKS, ROLE_CODES, ROLE_CORE, ROLE_OVERRIDE_IDS, ROLE_OVERRIDE_INDEX,
    ROLE_OVERRIDE_ROWS, ROLE_PREFIX_IDS, ROLE_PREFIX_INDEX, ROLE_PREFIX_PRODUCTS, ROLE_PROJECTION,
    ROLE_REMAPPED_ROWS, ROLE_ROWS, ROLE_SCALES, Section, bytes_of, row_header, row_len,
    sections_of, table, table_at, u16_at, u32_at, u64_at,
};

/// A number, and how far an f32 evaluation of it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Approx {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl Approx {
    pub(crate) fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// Whether `found` may be what f32 made of it. A NaN never may.
    pub(crate) fn admits(self, found: f32) -> bool {
        (f64::from(found) - self.value).abs() <= self.error
    }

    /// A row's element whose last slice is summed with those of up to `count - 1` other lookups
    /// before it is multiplied: each of the products that it is the sum of passes through
    /// `count` more roundings, and one more of scale times weight. `magnitude` is the sum of
    /// the products' magnitudes.
    pub(crate) fn summed_before(self, magnitude: f64, count: usize) -> Self {
        let more = gamma(count + 1);
        Self { error: self.error * (1.0 + more) + more * magnitude, ..self }
    }

    /// The product of two, rounded once.
    pub(crate) fn times(self, other: Self) -> Self {
        let value = self.value * other.value;
        let (a, b) = (self.value.abs(), other.value.abs());
        let error = a * other.error + b * self.error + self.error * other.error;
        Self { value, error: error + gamma(1) * (value.abs() + error) + 2f64.powi(-149) }
    }

    /// The sum of `terms`, each times an exact factor, after `extra` more roundings of every term.
    pub(crate) fn dot(terms: impl IntoIterator<Item = (Self, f64)>, extra: usize) -> Self {
        let (mut sum, mut size, mut n) = (Self::default(), 0.0, 0);
        for (x, factor) in terms {
            sum.value += x.value * factor;
            sum.error += x.error * factor.abs();
            size += (x.value.abs() + x.error) * factor.abs();
            n += 1;
        }
        sum.error += gamma(n + extra) * size + 2f64.powi(-149) * n as f64;
        sum
    }
}

/// The relative error of n roundings; the last factor covers the f64 arithmetic here.
fn gamma(n: usize) -> f64 {
    let nu = n as f64 * 2f64.powi(-24);
    nu / (1.0 - nu) * (1.0 + 2f64.powi(-24))
}

/// Stored element `index`, without scale.
pub(crate) fn element(bytes: &[u8], dtype: u8, index: usize) -> f64 {
    match dtype {
        DTYPE_F32 => f64::from(f32::from_bits(u32_at(bytes, 4 * index))),
        DTYPE_F16 => {
            let bits = u16_at(bytes, 2 * index);
            let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            match exponent {
                0 => sign * fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                _ => sign * (1024.0 + fraction) * 2f64.powi(exponent - 25),
            }
        }
        DTYPE_BF16 => f64::from(f32::from_bits(u32::from(u16_at(bytes, 2 * index)) << 16)),
        DTYPE_I8 => f64::from(bytes[index] as i8),
        DTYPE_I4 => f64::from(bytes[index / 2] >> (index % 2 * 4) & 15),
        _ => panic!("dtype {dtype}"),
    }
}

/// One table of a blob that is known to be valid.
pub(crate) struct Reference<'a> {
    bytes: &'a [u8],
    at: usize,
    sections: Vec<Section>,
    override_ids: Vec<u64>,
    /// Rows that have been asked for: bags ask for the same ones again.
    rows: RefCell<BTreeMap<u64, Vec<(Approx, f64)>>>,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(bytes: &'a [u8], position: usize) -> Self {
        let sections = sections_of(bytes, position);
        let mut reference = Self {
            bytes,
            at: table_at(position),
            sections,
            override_ids: Vec::new(),
            rows: RefCell::default(),
        };
        // Every row asks for them.
        reference.override_ids = reference.ids(ROLE_OVERRIDE_IDS);
        reference
    }

    pub(crate) fn num_embeddings(&self) -> u64 {
        u64_at(self.bytes, self.at + table::NUM_EMBEDDINGS)
    }

    pub(crate) fn embedding_dim(&self) -> usize {
        u32_at(self.bytes, self.at + table::EMBEDDING_DIM) as usize
    }

    pub(crate) fn kind(&self) -> u16 {
        u16_at(self.bytes, self.at + table::KIND)
    }

    pub(crate) fn is_dense(&self) -> bool {
        self.kind() == KIND_DENSE
    }

    /// Whether rows are multiplied by a projection.
    pub(crate) fn is_projected(&self) -> bool {
        self.section(ROLE_PROJECTION, 0).is_some()
    }

    /// 0 identity, 1 modulo, 2 remapped.
    pub(crate) fn index_map(&self) -> u8 {
        self.bytes[self.at + table::INDEX_MAP]
    }

    pub(crate) fn num_rows(&self) -> u64 {
        let found = u64_at(self.bytes, self.at + table::NUM_ROWS);
        if found == 0 { self.num_embeddings() } else { found }
    }

    /// The row of each index, if they are remapped.
    pub(crate) fn remapped_rows(&self) -> Vec<u64> {
        let Some((_, rows)) = self.section(ROLE_REMAPPED_ROWS, 0) else { return Vec::new() };
        rows.chunks(rows.len() / self.num_embeddings() as usize)
            .map(|row| row.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
            .collect()
    }

    /// The stored row of an index.
    pub(crate) fn row_of(&self, index: u64) -> u64 {
        match self.index_map() {
            0 => index,
            1 => index % self.num_rows(),
            // What is out of range is the last row, as the library has it; `verify_payload` reports
            // it.
            _ => self.remapped_rows()[index as usize].min(self.num_rows() - 1),
        }
    }

    fn list(&self, field: usize, len: usize) -> Vec<usize> {
        (0..len).map(|k| u32_at(self.bytes, self.at + field + 4 * k) as usize).collect()
    }

    /// Columns of the rows that a section holds.
    pub(crate) fn columns_of(&self, role: u16, core: u8) -> usize {
        match (role, self.kind()) {
            (ROLE_ROWS, KIND_PROJECTED | KIND_QUOTIENT_REMAINDER) => {
                self.list(table::COLUMN_FACTORS, 2)[usize::from(core)]
            }
            _ => self.embedding_dim(),
        }
    }

    /// The dtype code of the rows or of the first core.
    pub(crate) fn dtype(&self) -> u8 {
        let books = self.sections.iter().find(|section| section.role == ROLE_BOOKS);
        books.unwrap_or(&self.sections[0]).dtype
    }

    fn section(&self, role: u16, core: usize) -> Option<(u8, &'a [u8])> {
        let section =
            self.sections.iter().find(|s| (s.role, usize::from(s.core)) == (role, core))?;
        Some((section.dtype, &self.bytes[section.range()]))
    }

    /// The indices that have an override.
    pub(crate) fn override_ids(&self) -> &[u64] {
        &self.override_ids
    }

    /// Numbers of the prefixes whose products are stored.
    pub(crate) fn prefix_ids(&self) -> Vec<u64> {
        self.ids(ROLE_PREFIX_IDS)
    }

    /// How many prefixes there are; 1 unless it is a tensor train.
    pub(crate) fn num_prefixes(&self) -> u64 {
        let d = u64::from(self.bytes[self.at + table::NUM_CORES]);
        (1..d)
            .map(|k| {
                u64::from(u32_at(self.bytes, self.at + table::ROW_FACTORS + 4 * (k as usize - 1)))
            })
            .product()
    }

    /// The number of a row's prefix.
    pub(crate) fn prefix(&self, row: u64) -> u64 {
        let d = usize::from(self.bytes[self.at + table::NUM_CORES]);
        let last = u64::from(u32_at(self.bytes, self.at + table::ROW_FACTORS + 4 * (d - 1)));
        if self.bytes[self.at + table::DIGIT_ORDER] == 1 {
            row % self.num_prefixes()
        } else {
            row / last
        }
    }

    fn ids(&self, role: u16) -> Vec<u64> {
        let ids = self.section(role, 0).map_or(&[][..], |(_, bytes)| bytes);
        (0..ids.len() / 8).map(|i| u64_at(ids, 8 * i)).collect()
    }

    /// Whether all stored numbers are 0 or of a magnitude from 2^-18 to 2^18: far from under- and
    /// overflow in chains of up to six cores, in whatever order they are multiplied.
    pub(crate) fn tame(&self) -> bool {
        let tame = |x: f64| x == 0.0 || (2f64.powi(-18)..2f64.powi(18)).contains(&x.abs());
        self.sections.iter().all(|s| {
            let stored = &self.bytes[s.range()];
            match (s.role, s.dtype) {
                (
                    ROLE_OVERRIDE_IDS | ROLE_OVERRIDE_INDEX | ROLE_PREFIX_IDS | ROLE_PREFIX_INDEX
                    | ROLE_REMAPPED_ROWS | ROLE_CODES,
                    _,
                ) => true,
                (ROLE_ROWS | ROLE_OVERRIDE_ROWS, dtype) if let Some(header) = row_header(dtype) => {
                    stored
                        .chunks(row_len(dtype, self.columns_of(s.role, s.core)))
                        .all(|row| tame(element(row, header, 0)) && tame(element(row, header, 1)))
                }
                (_, dtype) => {
                    (0..stored.len() / bytes_of(dtype, 1)).all(|i| tame(element(stored, dtype, i)))
                }
            }
        })
    }

    /// Row `row`.
    pub(crate) fn row(&self, row: u64) -> Vec<Approx> {
        self.row_and_magnitudes(row).into_iter().map(|(x, _)| x).collect()
    }

    /// Row `row`, each element with the sum of the magnitudes of the products that its last step
    /// adds up; its own, if it is stored.
    pub(crate) fn row_and_magnitudes(&self, row: u64) -> Vec<(Approx, f64)> {
        if let Some(known) = self.rows.borrow().get(&row) {
            return known.clone();
        }
        let computed = self.compute_row(row);
        self.rows.borrow_mut().insert(row, computed.clone());
        computed
    }

    fn compute_row(&self, row: u64) -> Vec<(Approx, f64)> {
        let row_of = self.row_of(row);
        let stored = match (self.override_ids().iter().position(|&id| id == row), self.kind()) {
            (Some(position), _) => self.stored_row(ROLE_OVERRIDE_ROWS, 0, position),
            (None, KIND_TT) => return self.in_column_order(self.tensor_train_row(row_of)),
            (None, KIND_DENSE) => self.stored_row(ROLE_ROWS, 0, row_of as usize),
            (None, KIND_CODEBOOK) if !self.is_projected() => self.decoded_row(row_of as usize),
            _ => self.finish(&self.parts(row)),
        };
        self.in_column_order(stored.into_iter().map(|x| (x, x.value.abs())).collect())
    }

    /// The elements of a row that is stored as its cores multiply out, in the order of its columns:
    /// column j of a table whose column order is 1 has the digits `floor(j / (q_0 .. q_{k-1}))
    /// mod q_k`.
    pub(crate) fn in_column_order<T: Copy>(&self, stored: Vec<T>) -> Vec<T> {
        if self.bytes[self.at + table::COLUMN_ORDER] == 0 {
            return stored;
        }
        let q = self.list(table::COLUMN_FACTORS, self.bytes[self.at + table::NUM_CORES].into());
        let place = |k: usize| q[k + 1..].iter().product::<usize>();
        let digit = |j: usize, k: usize| j / q[..k].iter().product::<usize>() % q[k];
        (0..stored.len())
            .map(|j| stored[(0..q.len()).map(|k| digit(j, k) * place(k)).sum::<usize>()])
            .collect()
    }

    /// The short row of an index in a projected table, or the two rows in a quotient-remainder
    /// table.
    pub(crate) fn parts(&self, index: u64) -> Vec<Vec<Approx>> {
        let row = self.row_of(index) as usize;
        match self.kind() {
            KIND_PROJECTED => return vec![self.stored_row(ROLE_ROWS, 0, row)],
            KIND_CODEBOOK => return vec![self.decoded_row(row)],
            _ => {}
        }
        let num_remainders = self.list(table::ROW_FACTORS, 2)[1];
        vec![
            self.stored_row(ROLE_ROWS, 0, row / num_remainders),
            self.stored_row(ROLE_ROWS, 1, row % num_remainders),
        ]
    }

    /// What a row, or a bag of rows, becomes of its parts.
    fn finish(&self, parts: &[Vec<Approx>]) -> Vec<Approx> {
        match (parts, self.bytes[self.at + table::COMBINE]) {
            ([short], _) => {
                let (dtype, projection) = self.section(ROLE_PROJECTION, 0).unwrap();
                let dim = self.embedding_dim();
                let column = |j: usize| {
                    short
                        .iter()
                        .enumerate()
                        .map(move |(k, &x)| (x, element(projection, dtype, k * dim + j)))
                };
                (0..dim).map(|j| Approx::dot(column(j), 0)).collect()
            }
            ([first, second], COMBINE_CONCAT) => [&first[..], second].concat(),
            ([first, second], COMBINE_MULT) => {
                first.iter().zip(second).map(|(&x, &y)| x.times(y)).collect()
            }
            ([first, second], _) => first
                .iter()
                .zip(second)
                .map(|(&x, &y)| Approx::dot([(x, 1.0), (y, 1.0)], 0))
                .collect(),
            _ => panic!("{} parts", parts.len()),
        }
    }

    /// One bag of these indices. Each part is pooled, and the results are combined; only for the
    /// maximum of projected rows, rows are made first. Overrides are added at the end.
    pub(crate) fn bag(&self, indices: &[u64], weights: &[f32], mode: Mode) -> Vec<Approx> {
        let dim = self.embedding_dim();
        let of_rows = |indices: &[u64], weights: &[f32], mode| {
            let rows: Vec<_> = indices.iter().map(|&index| self.row(index)).collect();
            pool(&rows.iter().map(|row| &row[..]).collect::<Vec<_>>(), weights, mode, dim)
        };
        let has_parts = self.is_projected() || self.kind() == KIND_QUOTIENT_REMAINDER;
        if !has_parts || self.is_projected() && mode == Mode::Max {
            return of_rows(indices, weights, mode);
        }
        if self.is_projected() && mode == Mode::Mean && !indices.is_empty() {
            let sums = self.bag(indices, weights, Mode::Sum).into_iter();
            return sums.map(|sum| Approx::dot([(sum, 1.0 / indices.len() as f64)], 0)).collect();
        }
        let ids = self.override_ids();
        let lookups = indices
            .iter()
            .copied()
            .zip(weights.iter().copied().chain(std::iter::repeat(1.0)));
        let (overrides, others): (Vec<_>, Vec<_>) =
            lookups.partition(|(index, _)| ids.contains(index));
        let (overrides, override_weights): (Vec<u64>, Vec<f32>) = overrides.into_iter().unzip();
        let (others, other_weights): (Vec<u64>, Vec<f32>) = others.into_iter().unzip();
        if others.is_empty() {
            return of_rows(&overrides, &override_weights, mode);
        }
        let rows: Vec<_> = others.iter().map(|&index| self.parts(index)).collect();
        let pooled = (0..rows[0].len()).map(|part| {
            let rows: Vec<&[Approx]> = rows.iter().map(|parts| &parts[part][..]).collect();
            pool(&rows, &other_weights, mode, rows[0].len())
        });
        let pooled = self.finish(&pooled.collect::<Vec<_>>());
        if overrides.is_empty() {
            return pooled;
        }
        let overrides: Vec<_> = overrides.iter().map(|&index| self.row(index)).collect();
        let column = |j: usize| {
            let rows = overrides.iter().map(|row| row[j]);
            match mode {
                Mode::Max => rows.fold(pooled[j], |a, b| Approx {
                    value: a.value.max(b.value),
                    error: a.error.max(b.error),
                }),
                Mode::Mean => {
                    let sum = [(pooled[j], others.len() as f64)]
                        .into_iter()
                        .chain(rows.map(|x| (x, 1.0)));
                    Approx::dot([(Approx::dot(sum, 0), 1.0 / indices.len() as f64)], 0)
                }
                Mode::Sum | Mode::Weighted => {
                    let weights = override_weights
                        .iter()
                        .map(|&w| if mode == Mode::Sum { 1.0 } else { f64::from(w) });
                    Approx::dot([(pooled[j], 1.0)].into_iter().chain(rows.zip(weights)), 0)
                }
            }
        };
        (0..dim).map(column).collect()
    }

    /// The codes of a row: bits 12 i to 12 i + 11 are code i, if they are u12.
    pub(crate) fn codes(&self, row: usize) -> Vec<usize> {
        let (dtype, codes) = self.section(ROLE_CODES, 0).unwrap();
        let num_books = self.list(table::COLUMN_FACTORS, 1)[0];
        let bits = match dtype {
            DTYPE_U8 => 8,
            DTYPE_U12 => 12,
            DTYPE_U16 => 16,
            other => panic!("dtype {other}"),
        };
        let row_len = (num_books * bits).div_ceil(8);
        let row = &codes[row * row_len..][..row_len];
        let bit = |at: usize| usize::from(row[at / 8] >> (at % 8) & 1);
        (0..num_books)
            .map(|book| (0..bits).map(|at| bit(book * bits + at) << at).sum())
            .collect()
    }

    /// The first code that is no entry, among all codes of the table.
    pub(crate) fn first_bad_code(&self) -> Option<usize> {
        if self.kind() != KIND_CODEBOOK {
            return None;
        }
        let book_len = self.list(table::ROW_FACTORS, 1)[0];
        let mut codes = (0..self.num_rows() as usize).flat_map(|row| self.codes(row));
        codes.position(|code| code >= book_len)
    }

    /// The entries that make a row of a codebook table, each with its first column. A code that is
    /// too large is the last entry, as the library has it; `verify_payload` reports it.
    pub(crate) fn entries(&self, row: usize) -> Vec<(usize, Vec<Approx>)> {
        let (dtype, books) = self.section(ROLE_BOOKS, 0).unwrap();
        let scales = self.section(ROLE_SCALES, 0).map(|(_, scales)| scales);
        let [num_books, inner_dim] = self.list(table::COLUMN_FACTORS, 2)[..] else { panic!() };
        let book_len = self.list(table::ROW_FACTORS, 1)[0];
        let is_concat = self.bytes[self.at + table::COMBINE] == COMBINE_CONCAT;
        let width = if is_concat { inner_dim / num_books } else { inner_dim };
        let entry = |(book, code): (usize, usize)| {
            let first = (book * book_len + code.min(book_len - 1)) * width;
            let stored = (first..first + width).map(|i| Approx::exact(element(books, dtype, i)));
            let entry = match scales.map(|scales| element(scales, DTYPE_F32, book)) {
                None => stored.collect(),
                Some(scale) => stored.map(|x| Approx::dot([(x, scale)], 0)).collect(),
            };
            (if is_concat { book * width } else { 0 }, entry)
        };
        self.codes(row).into_iter().enumerate().map(entry).collect()
    }

    /// A row of a codebook table, before the projection.
    pub(crate) fn decoded_row(&self, row: usize) -> Vec<Approx> {
        let entries = self.entries(row);
        let column = |j: usize| {
            let entries = entries.iter().filter_map(move |(first, entry)| {
                j.checked_sub(*first).and_then(|at| entry.get(at)).copied()
            });
            let mut entries = entries.peekable();
            let first = entries.next().unwrap();
            if entries.peek().is_none() {
                return first;
            }
            Approx::dot([first].into_iter().chain(entries).map(|x| (x, 1.0)), 0)
        };
        (0..self.list(table::COLUMN_FACTORS, 2)[1]).map(column).collect()
    }

    fn stored_row(&self, role: u16, core: usize, position: usize) -> Vec<Approx> {
        let (dtype, bytes) = self.section(role, core).unwrap();
        let dim = self.columns_of(role, core as u8);
        let Some(header) = row_header(dtype) else {
            return (0..dim)
                .map(|j| Approx::exact(element(bytes, dtype, position * dim + j)))
                .collect();
        };
        let row = &bytes[position * row_len(dtype, dim)..][..row_len(dtype, dim)];
        let (scale, offset) = (element(row, header, 0), element(row, header, 1));
        let elements = &row[bytes_of(header, 2)..];
        let decode = |j| {
            Approx::dot(
                [(Approx::exact(element(elements, dtype, j)), scale), (Approx::exact(offset), 1.0)],
                0,
            )
        };
        (0..dim).map(decode).collect()
    }

    /// The factors and ranks of a tensor train, and the orders of its digits.
    pub(crate) fn train(&self) -> Train {
        let d = usize::from(self.bytes[self.at + table::NUM_CORES]);
        let mut r = vec![1];
        r.extend(self.list(table::INNER_RANKS, d - 1));
        r.push(1);
        Train {
            p: self.list(table::ROW_FACTORS, d),
            q: self.list(table::COLUMN_FACTORS, d),
            r,
            least_first: self.bytes[self.at + table::DIGIT_ORDER] == 1,
        }
    }

    /// The stored elements of slice `digit` of core k, `len` of them, and their scale.
    pub(crate) fn slice(&self, k: usize, digit: usize, len: usize) -> (Vec<f64>, Option<f64>) {
        let (dtype, core) = self.section(ROLE_CORE, k).unwrap();
        let scales = self.section(ROLE_SCALES, k).map(|(_, scales)| scales);
        (
            (0..len).map(|i| element(core, dtype, digit * len + i)).collect(),
            scales.map(|scales| element(scales, DTYPE_F32, digit)),
        )
    }

    /// The sum over all a_1 to a_{d-1} of `G_0[i_0][0, j_0, a_1] G_1[i_1][a_1, j_1, a_2] ..
    /// G_{d-1}[..][a_{d-1}, ..]`: one column j at a time, a vector times a matrix at a time.
    fn tensor_train_row(&self, row: u64) -> Vec<(Approx, f64)> {
        let d = usize::from(self.bytes[self.at + table::NUM_CORES]);
        let (p, q) = (self.list(table::ROW_FACTORS, d), self.list(table::COLUMN_FACTORS, d));
        let mut r = vec![1];
        r.extend(self.list(table::INNER_RANKS, d - 1));
        r.push(1);

        let least_first = self.bytes[self.at + table::DIGIT_ORDER] == 1;
        let (mut slices, mut scale, mut num_scales) = (Vec::new(), 1.0, 0);
        for k in 0..d {
            let place: usize = if least_first {
                p[..k].iter().product()
            } else {
                p[k + 1..].iter().product()
            };
            let digit = row as usize / place % p[k];
            let (dtype, core) = self.section(ROLE_CORE, k).unwrap();
            let len = r[k] * q[k] * r[k + 1];
            slices.push(
                (0..len).map(|i| element(core, dtype, digit * len + i)).collect::<Vec<f64>>(),
            );
            if dtype == DTYPE_I8 {
                scale *= element(self.section(ROLE_SCALES, k).unwrap().1, DTYPE_F32, digit);
                num_scales += 1;
            }
        }
        // A stored product stands for all steps but the last.
        let stored =
            self.prefix_ids().iter().position(|&id| id == self.prefix(row)).map(|position| {
                let len = q[..d - 1].iter().product::<usize>() * r[d - 1];
                let (dtype, products) = self.section(ROLE_PREFIX_PRODUCTS, 0).unwrap();
                (0..len)
                    .map(|i| element(products, dtype, position * len + i))
                    .collect::<Vec<f64>>()
            });
        if stored.is_some() {
            num_scales = num_scales.min(1);
            scale = self.section(ROLE_SCALES, d - 1).map_or(1.0, |(_, scales)| {
                let place: usize = if least_first { p[..d - 1].iter().product() } else { 1 };
                element(scales, DTYPE_F32, row as usize / place % p[d - 1])
            });
        }
        (0..self.embedding_dim())
            .map(|j| {
                let mut x = vec![Approx::exact(1.0)];
                let mut magnitude = 0.0;
                let mut first = 0;
                if let Some(product) = &stored {
                    let row = &product[j / q[d - 1] * r[d - 1]..][..r[d - 1]];
                    (x, first) = (row.iter().map(|&x| Approx::exact(x)).collect(), d - 1);
                }
                for k in first..d {
                    let column = j / q[k + 1..].iter().product::<usize>() % q[k];
                    let entry = |a: usize, b: usize| slices[k][(a * q[k] + column) * r[k + 1] + b];
                    magnitude = x
                        .iter()
                        .enumerate()
                        .map(|(a, x)| (x.value.abs() + x.error) * entry(a, 0).abs())
                        .sum();
                    x = (0..r[k + 1])
                        .map(|b| match k {
                            // The first factor is read, not computed.
                            0 => Approx::exact(entry(0, b)),
                            _ => {
                                Approx::dot(x.iter().enumerate().map(|(a, &x)| (x, entry(a, b))), 0)
                            }
                        })
                        .collect();
                }
                // All scales multiply the element once, wherever in the chain they went in.
                let x = if num_scales == 0 {
                    x[0]
                } else {
                    Approx::dot([(x[0], scale)], num_scales - 1)
                };
                (x, magnitude * scale)
            })
            .collect()
    }
}

/// The shape of a tensor train.
pub(crate) struct Train {
    pub(crate) p: Vec<usize>,
    pub(crate) q: Vec<usize>,
    /// All ranks. The first and the last are 1.
    pub(crate) r: Vec<usize>,
    /// Whether core 0 has the least significant digit of a row.
    pub(crate) least_first: bool,
}

impl Train {
    /// What digit k counts in the index of a row.
    pub(crate) fn place(&self, k: usize) -> usize {
        if self.least_first {
            self.p[..k].iter().product()
        } else {
            self.p[k + 1..].iter().product()
        }
    }
}

/// What bags are pooled with here; `Weighted` is sum with `per_sample_weights`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Sum,
    Weighted,
    Mean,
    Max,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Sum, Self::Weighted, Self::Mean, Self::Max];
}

/// One bag of `rows`, each of `embedding_dim` columns, with one weight per row.
pub(crate) fn pool(
    rows: &[&[Approx]],
    weights: &[f32],
    mode: Mode,
    embedding_dim: usize,
) -> Vec<Approx> {
    let pool_column = |j: usize| {
        let column = rows.iter().map(|row| row[j]);
        match mode {
            _ if rows.is_empty() => Approx::exact(0.0),
            Mode::Sum => Approx::dot(column.map(|x| (x, 1.0)), 0),
            Mode::Weighted => Approx::dot(column.zip(weights).map(|(x, &w)| (x, f64::from(w))), 0),
            Mode::Mean => {
                let sum = Approx::dot(column.map(|x| (x, 1.0)), 0);
                Approx::dot([(sum, 1.0 / rows.len() as f64)], 0)
            }
            // The largest moves by no more than the one that moves most.
            Mode::Max => column
                .reduce(|a, b| Approx { value: a.value.max(b.value), error: a.error.max(b.error) })
                .unwrap(),
        }
    };
    (0..embedding_dim).map(pool_column).collect()
}
