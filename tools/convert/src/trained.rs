//! What `ttrec train` needs: parts of the format of its checkpoints, two ways to approximate rows
//! in memory (the cores of a tensor train of a given shape, and books and codes), and smaller ranks
//! of trained cores.

use crate::{
    error::Error,
    factorize::{
        CodesShape, DEFAULT_SWEEPS, Encoder, Factorized, Factors, Job, Limits, Request, Rows,
        Train, TtSvd, of_slices, slices,
    },
    spec::{Combining, Representation, TableSpec},
};
use anyhow::{Context, Result, bail, ensure};
use ttrec::{DigitOrder, TtShape, dtype::Dtype};

pub use crate::dialect::{FACTS, digit_strides};

/// Rows in the order in which the first core has the most significant digit. Digits that no row has
/// make rows of zeros.
struct ByDigits<'v> {
    values: &'v [f32],
    shape: &'v TtShape,
    strides: Vec<i64>,
}

impl ByDigits<'_> {
    /// The row whose digits are those of `number`.
    fn row(&self, mut number: u64) -> u64 {
        let digits = self.shape.row_factors().iter().zip(&self.strides).rev();
        digits.fold(0, |row, (&p, &stride)| {
            let digit = number % u64::from(p);
            number /= u64::from(p);
            row + digit * stride.cast_unsigned()
        })
    }
}

impl Rows for ByDigits<'_> {
    fn num_embeddings(&self) -> u64 {
        self.shape.row_factors().iter().map(|&p| u64::from(p)).product()
    }

    fn embedding_dim(&self) -> usize {
        self.shape.embedding_dim()
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let dim = self.embedding_dim();
        for (out, number) in out.chunks_exact_mut(dim).zip(first..) {
            let at = usize::try_from(self.row(number))?.saturating_mul(dim);
            match self.values.get(at..).and_then(|rows| rows.get(..dim)) {
                Some(row) => out.copy_from_slice(row),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }
}

/// Sets the cores of a tensor train of `shape`, each its slices one after another, so that its rows
/// are near `values`, one row after another.
///
/// Rows that need smaller ranks than the shape's leave some of the old values: where a bond has
/// room, what the core before it gives stays as it is, and the core after it ignores that, so that
/// training can still use it.
///
/// # Errors
/// If the number of values is not that of the shape's rows, or the rows cannot be factorised.
#[doc(hidden)]
pub fn set_cores(values: &[f32], shape: &TtShape, cores: &mut [&mut [f32]]) -> Result<(), Error> {
    Ok(set(values, shape, cores)?)
}

fn set(values: &[f32], shape: &TtShape, cores: &mut [&mut [f32]]) -> Result<()> {
    let (found, dim) = (values.len() as u64, shape.embedding_dim() as u64);
    ensure!(Some(found) == shape.num_embeddings().checked_mul(dim), "{found} values of rows");
    ensure!(
        shape.column_order() == DigitOrder::MostSignificantFirst,
        "the first core has the least significant digit of a column"
    );
    let strides = digit_strides(shape.row_factors(), shape.digit_order());
    let rows = ByDigits { values, shape, strides };
    let max_rank = shape.inner_ranks().iter().copied().max().unwrap_or(1) as usize;
    let limits = Limits { max_rank, tolerance: None, job: Job::default() };
    let (of_rows, of_columns) = (shape.row_factors(), shape.column_factors());
    let factors = Factors { rows: of_rows.to_vec(), columns: of_columns.to_vec() };
    let train = TtSvd::analyse(&rows, &factors, &limits)?;
    let train = train.refine(shape.inner_ranks(), &rows, None, DEFAULT_SWEEPS, &limits)?;
    let rank = |k: usize| match k.checked_sub(1) {
        Some(bond) => train.ranks.get(bond).map_or(1, |&rank| rank as usize),
        None => 1,
    };
    for (k, (core, found)) in cores.iter_mut().zip(&train.cores).enumerate() {
        let (r, q, s) = (shape.rank(k), shape.column_factor(k), shape.rank(k + 1));
        let (r_found, s_found) = (rank(k), rank(k + 1));
        let slices = core.chunks_exact_mut(r * q * s);
        let found = found.chunks_exact(r_found * q * s_found);
        ensure!(slices.len() == found.len(), "core {k} has other slices than its shape");
        for (slice, found) in slices.zip(found) {
            for (at, value) in slice.iter_mut().enumerate() {
                let (a, b, c) = (at / s / q, at / s % q, at % s);
                if a >= r_found {
                    *value = 0.0;
                } else if c < s_found {
                    let at = (a * q + b) * s_found + c;
                    *value = *found.get(at).context("a core is short")?;
                }
            }
        }
    }
    Ok(())
}

/// The bonds of a tensor train: how much each of their directions carries.
#[doc(hidden)]
pub struct Bonds {
    columns: Vec<u32>,
    train: Train,
}

impl Bonds {
    /// The bonds of these cores of `shape`, each its slices one after another.
    ///
    /// # Errors
    /// If these are not the cores of the shape, or a value is not finite.
    pub fn new<'c>(
        shape: &TtShape,
        cores: impl IntoIterator<Item = &'c [f32]>,
    ) -> Result<Self, Error> {
        let cores: Vec<_> = cores.into_iter().collect();
        let is_core = |(k, core): (usize, &&[f32])| core.len() as u64 == shape.core_len(k);
        if cores.len() != shape.num_cores() || !cores.iter().enumerate().all(is_core) {
            return Err(Error::Input("these are not the cores of the shape".to_owned()));
        }
        if !cores.iter().copied().flatten().all(|x| x.is_finite()) {
            return Err(Error::Input("a value of a core is not finite".to_owned()));
        }
        let sides = |k| [shape.rank(k), shape.column_factor(k), shape.rank(k + 1)];
        let cores = cores.into_iter().enumerate().map(|(k, core)| of_slices(core, sides(k)));
        let train = Train::new(cores.collect())?;
        Ok(Self { columns: shape.column_factors().to_vec(), train })
    }

    /// For each bond, what each of its directions adds to the sum of squares of all rows,
    /// descending: the squared singular values of the table, unfolded there. A bond has no more
    /// directions than the cores on its sides can use.
    pub fn energies(&self) -> &[Vec<f64>] {
        &self.train.energies
    }

    /// Cores of these inner ranks, or smaller ones where the cores beside a bond cannot use them,
    /// whose rows are near the rows; and these ranks. Both sides of a bond carry its directions
    /// alike, and the values of all cores have the same root mean square.
    ///
    /// # Errors
    /// If the number of ranks is another one, or a rank is 0.
    pub fn lower(&self, ranks: &[u32]) -> Result<(Vec<u32>, Vec<Vec<f32>>), Error> {
        let bonds = self.train.energies.len();
        if ranks.len() != bonds || ranks.contains(&0) {
            let message = format!("ranks {ranks:?}: expected {bonds}, each at least 1");
            return Err(Error::Input(message));
        }
        let ranks: Vec<usize> = ranks.iter().map(|&rank| rank as usize).collect();
        let (cores, _) = self.train.truncate(&ranks)?;
        let cores = Train::new(cores)?.balanced();
        let ranks = cores.iter().take(bonds).map(|core| core.ncols() as u32).collect();
        Ok((ranks, slices(&cores, &self.columns)))
    }
}

/// Rows in memory, one after another.
struct InMemory<'v> {
    values: &'v [f32],
    columns: usize,
}

impl Rows for InMemory<'_> {
    fn num_embeddings(&self) -> u64 {
        (self.values.len() / self.columns) as u64
    }

    fn embedding_dim(&self) -> usize {
        self.columns
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let start = usize::try_from(first)?.saturating_mul(self.columns);
        let rows = self.values.get(start..).and_then(|rows| rows.get(..out.len()));
        out.copy_from_slice(rows.context("there are no such rows")?);
        Ok(())
    }
}

/// The number and the size of the books that rows are coded with.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// The number of books.
    pub count: u32,
    /// The bits of a code.
    pub bits: u32,
    /// How a row is made of its entries.
    pub combine: Combining,
}

impl Books {
    fn shape(&self, num_embeddings: u64, embedding_dim: usize) -> Result<CodesShape> {
        let &Self { count, bits, combine } = self;
        let spec = TableSpec {
            representation: Some(Representation::Codes),
            books: Some(count),
            bits: Some(bits),
            combine: Some(combine),
            ..TableSpec::default()
        };
        match Request::of_dense(&spec, num_embeddings, embedding_dim)? {
            Some(Request::Codes(shape)) => Ok(shape),
            _ => bail!("these are no codes"),
        }
    }

    /// Checks that a table of this size can have such books.
    ///
    /// # Errors
    /// If it cannot.
    pub fn check(&self, num_embeddings: u64, embedding_dim: usize) -> Result<(), Error> {
        Ok(self.shape(num_embeddings, embedding_dim).map(|_| ())?)
    }

    /// Learns books from rows of `columns` elements, and codes the rows. Returns the entries, one
    /// book after another, and the codes, one row after another. `weights`, one per row, say how
    /// much each row's error counts.
    ///
    /// # Errors
    /// If the numbers do not suit the rows, or a value is not finite.
    pub fn learn(
        &self,
        values: &[f32],
        columns: usize,
        weights: Option<&[f32]>,
    ) -> Result<(Vec<f32>, Vec<u16>), Error> {
        Ok(self.learn_from(&InMemory { values, columns }, weights)?)
    }

    fn learn_from(
        &self,
        rows: &InMemory<'_>,
        weights: Option<&[f32]>,
    ) -> Result<(Vec<f32>, Vec<u16>)> {
        let request = Request::Codes(self.shape(rows.num_embeddings(), rows.columns)?);
        let Factorized::Codes(books) = request.run(rows, weights, &Job::default())? else {
            bail!("these are no codes")
        };
        let encoder = Encoder::new(&books, Dtype::F32, Dtype::F32)?;
        let (codes, _) = encoder.encode(rows.values, rows.columns);
        Ok((books.entries, codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory;
    use nalgebra::DMatrix;
    use ttrec::Blob;

    /// Numbers from -1 to 1.
    fn noise(seed: usize, len: usize) -> Vec<f32> {
        let mut state = seed as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// All rows, as a blob gives them.
    fn rows(shape: TtShape, cores: &[Vec<f32>]) -> Vec<f64> {
        let blob = in_memory::of_cores(shape, Dtype::F32, cores).unwrap().unwrap();
        let blob = Blob::parse(&blob).unwrap();
        let table = blob.tables().next().unwrap();
        let (mut row, mut workspace) =
            (vec![0.0; table.embedding_dim()], vec![0.0; table.workspace_len(1)]);
        let mut all = Vec::new();
        for index in 0..table.num_embeddings() {
            table.lookup(index, &mut row, &mut workspace).unwrap();
            all.extend(row.iter().map(|&x| f64::from(x)));
        }
        all
    }

    /// The squared singular values of the table, unfolded after core `bond`.
    fn spectrum(shape: &TtShape, rows: &[f64], bond: usize) -> Vec<f64> {
        let dim = shape.embedding_dim();
        let product = |factors: &[u32]| factors.iter().product::<u32>() as usize;
        let (p, q) = (shape.row_factors(), shape.column_factors());
        let [below, narrow] = [&p[bond + 1..], &q[bond + 1..]].map(product);
        let [height, width] = [rows.len() / (below * narrow), below * narrow];
        let mut unfolded = DMatrix::zeros(height, width);
        for (at, &x) in rows.iter().enumerate() {
            let (row, column) = (at / dim, at % dim);
            let above = row / below * (dim / narrow) + column / narrow;
            unfolded[(above, row % below * narrow + column % narrow)] = x;
        }
        let mut values: Vec<f64> =
            unfolded.singular_values().iter().map(|value| value * value).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    #[test]
    fn lowered_ranks_have_the_error_of_the_singular_values() {
        for (p, q, ranks, lower) in [
            (&[7, 9][..], &[3, 2][..], &[8][..], &[5][..]),
            (&[5, 4, 6], &[4, 1, 2], &[9, 7], &[6, 4]),
            (&[5, 4, 6], &[4, 1, 2], &[9, 7], &[9, 3]),
            (&[3, 4, 3, 2], &[2, 2, 1, 2], &[5, 7, 4], &[4, 5, 2]),
        ] {
            let shape = |ranks: &[u32]| {
                let rows = p.iter().map(|&p| u64::from(p)).product();
                TtShape::new(rows, p, q, ranks).unwrap()
            };
            let full = shape(ranks);
            let cores: Vec<_> = (0..p.len())
                .map(|k| {
                    noise(k + 3, full.core_len(k) as usize).iter().map(|x| x.powi(3)).collect()
                })
                .collect::<Vec<Vec<f32>>>();
            let wanted = rows(full, &cores);
            let total: f64 = wanted.iter().map(|x| x * x).sum();
            let bonds = Bonds::new(&full, cores.iter().map(Vec::as_slice)).unwrap();
            let mut tails = Vec::new();
            for (bond, energies) in bonds.energies().iter().enumerate() {
                let spectrum = spectrum(&full, &wanted, bond);
                for (energy, value) in energies.iter().zip(&spectrum) {
                    assert!((energy - value).abs() < 1e-6 * total, "{ranks:?}: {energy} {value}");
                }
                assert!(spectrum[energies.len()..].iter().all(|&value| value < 1e-9 * total));
                tails.push(spectrum[lower[bond] as usize..].iter().sum::<f64>() / total);
            }
            let error = |found: &[f64]| {
                let squares = found.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b));
                squares.sum::<f64>() / total
            };
            // The same ranks have the same rows.
            let (same, again) = bonds.lower(ranks).unwrap();
            assert_eq!(same, ranks);
            assert!(error(&rows(full, &again)) < 1e-9);
            // No rows of these ranks are nearer than the largest tail, and these ones are as near
            // as the sum (Oseledets 2011, theorem 2.2).
            let (found, cores) = bonds.lower(lower).unwrap();
            assert_eq!(found, lower);
            let error = error(&rows(shape(lower), &cores));
            let [most, least] =
                [tails.iter().sum::<f64>(), tails.iter().copied().fold(0.0, f64::max)];
            assert!((least - 1e-6..most + 1e-6).contains(&error), "{error}: {least} to {most}");
            assert!(error > 1e-3);
            // Values of one size, as training draws them.
            let size = |core: &Vec<f32>| {
                (core.iter().map(|x| x * x).sum::<f32>() / core.len() as f32).sqrt()
            };
            let sizes: Vec<f32> = cores.iter().map(size).collect();
            assert!(sizes.iter().all(|size| (size / sizes[0] - 1.0).abs() < 1e-3), "{sizes:?}");
        }
    }

    #[test]
    fn bonds_of_zeros_stay_usable_and_other_cores_are_refused() {
        let shape = TtShape::new(12, &[3, 4], &[2, 2], &[3]).unwrap();
        let cores = [noise(1, 3 * 2 * 3), vec![0.0; 4 * 3 * 2]];
        let slices = || cores.iter().map(Vec::as_slice);
        let bonds = Bonds::new(&shape, slices()).unwrap();
        let (ranks, lowered) = bonds.lower(&[2]).unwrap();
        assert_eq!(ranks, [2]);
        assert!(lowered[0].iter().any(|&x| x != 0.0) && lowered[1].iter().all(|&x| x == 0.0));
        for ranks in [&[0][..], &[1, 1], &[]] {
            bonds.lower(ranks).unwrap_err();
        }
        assert!(Bonds::new(&shape, slices().take(1)).is_err());
        assert!(Bonds::new(&shape, slices().rev()).is_err());
        let infinite = [cores[0].clone(), vec![f32::INFINITY; 4 * 3 * 2]];
        assert!(Bonds::new(&shape, infinite.iter().map(Vec::as_slice)).is_err());
    }
}
