//! Reordered rows: all rows with a digit in common share a slice of a tensor train, so the error is
//! smaller if these rows are similar. The blob then stores the row of each index.

use super::{Job, LowRank, Rows, for_each_short_row, gram::Gram};
use crate::{matrix::View, spec::RowOrder};
use anyhow::{Context, Result, ensure};

/// The number of leading directions that decide similarity.
const DIRECTIONS: usize = 16;
/// Fewer rows than this are not split among threads.
const ALONE: usize = 1 << 12;

/// An order of a table's rows: place i has row `order[i]`.
pub(super) struct Order(Vec<u32>);

impl Order {
    /// The order of these rows for a tensor train of these row factors. [`RowOrder::Frequency`]
    /// needs `frequencies`, one for each row.
    pub(super) fn of(
        order: RowOrder,
        row_factors: &[u32],
        rows: &dyn Rows,
        frequencies: Option<&[f32]>,
        job: &Job<'_>,
    ) -> Result<Self> {
        match order {
            RowOrder::Frequency => Self::by_frequency(frequencies.context(
                "`row_order = \"frequency\"` needs --frequencies with an array for this table",
            )?),
            // Rows that share a prefix are neighbours.
            RowOrder::Similarity => {
                let run = row_factors.last().map_or(1, |&run| run as usize);
                Self::by_similarity(rows, run, job)
            }
        }
    }

    /// Sorts by descending frequency, and equal ones by number.
    fn by_frequency(frequencies: &[f32]) -> Result<Self> {
        let mut order = numbers(frequencies.len() as u64)?;
        order.sort_by(|&a, &b| frequencies[b as usize].total_cmp(&frequencies[a as usize]));
        Ok(Self(order))
    }

    /// Halves the table recursively along the direction in which its rows differ most, down to runs
    /// of `run` rows (a principal-direction tree: Verma, Kpotufe and Dasgupta, "Which spatial
    /// partition trees are adaptive to intrinsic dimension?", 2009).
    fn by_similarity(rows: &dyn Rows, run: usize, job: &Job<'_>) -> Result<Self> {
        let directions = DIRECTIONS.min(rows.embedding_dim());
        // The coordinates and the place of each row.
        let needed = rows.num_embeddings().saturating_mul(4 * DIRECTIONS as u64 + 16);
        ensure!(
            needed <= job.memory,
            "the memory limit of {} bytes is too small: `row_order` needs {needed}",
            job.memory
        );
        let basis = LowRank::analyse(rows, job)?.directions(directions);
        let mut points = Vec::with_capacity(rows.num_embeddings() as usize * directions);
        for_each_short_row(rows, &basis, directions, |short| {
            points.extend_from_slice(short);
            Ok(())
        })?;
        let mut order = numbers(rows.num_embeddings())?;
        halve(&Points { values: &points, directions }, run.max(1), &mut order)?;
        Ok(Self(order))
    }

    /// The place of each row.
    pub(super) fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.0.len()];
        self.0.iter().zip(0..).for_each(|(&row, place)| places[row as usize] = place);
        places
    }

    /// A number for each row, in this order.
    pub(super) fn sorted(&self, of_rows: &[f32]) -> Vec<f32> {
        self.0.iter().map(|&row| of_rows[row as usize]).collect()
    }
}

fn numbers(rows: u64) -> Result<Vec<u32>> {
    ensure!(
        rows <= u64::from(u32::MAX),
        "`row_order` is for tables of at most {} rows: this has {rows}",
        u32::MAX
    );
    Ok((0..rows as u32).collect())
}

struct Points<'p> {
    values: &'p [f32],
    directions: usize,
}

impl Points<'_> {
    fn of(&self, row: u32) -> &[f32] {
        &self.values[row as usize * self.directions..][..self.directions]
    }

    /// The direction in which these rows differ most.
    fn widest(&self, rows: &[u32]) -> Result<Vec<f32>> {
        let n = self.directions;
        let mut mean = vec![0.0; n];
        for &row in rows {
            mean.iter_mut().zip(self.of(row)).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        mean.iter_mut().for_each(|sum| *sum /= rows.len() as f64);
        let mut gram = Gram::new(n);
        let mut block = Vec::new();
        for rows in rows.chunks(ALONE) {
            block.clear();
            let centred = |&row: &u32| {
                self.of(row).iter().zip(&mean).map(|(&x, &mean)| (f64::from(x) - mean) as f32)
            };
            block.extend(rows.iter().flat_map(centred));
            gram.add(View::row_major(&block, n).transpose());
        }
        let vectors = gram.eigen()?.vectors;
        Ok((0..n).map(|at| vectors[(at, 0)] as f32).collect())
    }
}

fn halve(points: &Points<'_>, run: usize, rows: &mut [u32]) -> Result<()> {
    if rows.len() <= run {
        return Ok(());
    }
    // Whole runs on the left.
    let middle = rows.len().div_ceil(run).div_ceil(2) * run;
    let direction = points.widest(rows)?;
    let place = |row: u32| points.of(row).iter().zip(&direction).map(|(x, d)| x * d).sum::<f32>();
    let mut keyed: Vec<(f32, u32)> = rows.iter().map(|&row| (place(row), row)).collect();
    keyed.select_nth_unstable_by(middle, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.iter_mut().zip(&keyed).for_each(|(row, keyed)| *row = keyed.1);
    drop(keyed);
    let (left, right) = rows.split_at_mut(middle);
    // The split is deterministic; sorting makes the order of each half so too.
    left.sort_unstable();
    right.sort_unstable();
    if left.len() > ALONE {
        let (left, right) = rayon::join(|| halve(points, run, left), || halve(points, run, right));
        left.and(right)
    } else {
        halve(points, run, left).and_then(|()| halve(points, run, right))
    }
}

/// The rows of a table in another order.
pub(super) struct Ordered<'r> {
    pub(super) rows: &'r dyn Rows,
    pub(super) order: &'r Order,
}

impl Rows for Ordered<'_> {
    fn num_embeddings(&self) -> u64 {
        self.rows.num_embeddings()
    }

    fn embedding_dim(&self) -> usize {
        self.rows.embedding_dim()
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let order = &self.order.0[first as usize..];
        let rows = out.chunks_exact_mut(self.rows.embedding_dim());
        rows.zip(order).try_for_each(|(out, &row)| self.rows.read(row.into(), out))
    }
}
