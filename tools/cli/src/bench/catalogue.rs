//! The best of all rows for some queries: tensor trains of the suite's shapes beside dense tables.

use super::{
    payload::build,
    roofline::{Caches, Pass, Roofline},
    tables::{dense_rows, dense_table, tt_table},
    workloads::{COLUMN_FACTORS, DIM, ROW_FACTORS, ROWS, TRAINED},
};
use crate::{progress::Bar, random::random};
use anyhow::{Result, ensure};
use ttrec::{
    Blob, DigitOrder, LookupError, Scored, Search, Table, TtShape, blob::TableSpec, dtype::Dtype,
    retrieval::multiply_adds,
};

/// The numbers of queries that are searched together.
const QUERIES: [usize; 3] = [1, 8, 64];
/// The rows that are looked for.
const K: usize = 100;
const RANKS: [u32; 4] = [8, 16, 32, 64];
/// The row factors of a quick run.
const FEW_ROWS: [u32; 3] = [50, 60, 66];
/// Rows that are looked up to check a result.
const CHECKED: u64 = 1000;

/// The measurement of one table.
pub(super) struct CatalogueTiming {
    pub(super) name: String,
    pub(super) queries: usize,
    /// Seconds per query, and those of a dense f32 table of as many rows.
    pub(super) seconds: f64,
    pub(super) dense: f64,
    /// Floating-point operations of a query, for a tensor train.
    pub(super) flops: Option<f64>,
    /// Bytes of all rows, for a dense table.
    pub(super) bytes: Option<f64>,
    pub(super) workspace_bytes: usize,
}

/// Measures every table of the suite. Reduced tables are added to `notes`.
pub(super) fn measure(
    roofline: &mut Roofline,
    quick: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<CatalogueTiming>> {
    let (p, rows) = if quick {
        (FEW_ROWS, FEW_ROWS.iter().map(|&p| u64::from(p)).product())
    } else {
        (ROW_FACTORS, ROWS)
    };
    let tt = |q: &[u32; 3], rank: u32| TtShape::new(rows, &p, q, &[rank, rank]);
    let named = |q: &[u32; 3]| format!("q{}x{}x{}", q[0], q[1], q[2]);
    let q = COLUMN_FACTORS[1];
    let mut tables = Vec::new();
    for rank in RANKS {
        tables.push(tt_table(format!("tt-f32-{}-r{rank}", named(&q)), tt(&q, rank)?, Dtype::F32));
    }
    tables.push(tt_table(format!("tt-i8-{}-r16", named(&q)), tt(&q, 16)?, Dtype::I8));
    for rank in [16, 32] {
        // The shape and the order of digits of `ttrec train`.
        let shape = tt(&TRAINED, rank)?.with_digit_order(DigitOrder::LeastSignificantFirst);
        tables.push(tt_table(format!("train-{}-r{rank}", named(&TRAINED)), shape, Dtype::F32));
    }
    let dense = dense_rows("the dense tables of the catalogue have", rows, DIM, false, notes);
    let dense_tables = [Dtype::F32, Dtype::I8]
        .map(|dtype| dense_table(format!("dense-{}", dtype.name()), dense, DIM, dtype));

    let progress = Bar::new("catalogue", (tables.len() + dense_tables.len()) as u64);
    let mut measured = Vec::new();
    // The first is what all others are compared with.
    for spec in dense_tables.into_iter().chain(tables) {
        measure_table(roofline, &spec, rows, &mut measured)?;
        progress.add(1);
    }
    Ok(measured)
}

fn measure_table(
    roofline: &mut Roofline,
    spec: &TableSpec,
    rows: u64,
    measured: &mut Vec<CatalogueTiming>,
) -> Result<()> {
    let buf = build(std::slice::from_ref(spec))?;
    let table = Blob::parse(&buf)?.table(&spec.name)?.with_tier(roofline.tier());
    let scale = rows as f64 / table.num_embeddings() as f64;
    for queries in QUERIES {
        let values: Vec<f32> = (0..(queries * DIM) as u64)
            .map(|position| (random(5, position) % 2001) as f32 / 1000.0 - 1.0)
            .collect();
        let mut best = vec![Scored::NONE; queries * K];
        let mut workspace = vec![0.0; table.retrieval_workspace_len(queries)];
        let workspace_bytes = size_of_val(&workspace[..]);
        let mut search =
            |best: &mut [Scored]| table.top_k(&values, &Search::new(K), best, &mut workspace);
        search(&mut best)?;
        check(&table, &values[..DIM], &best[..K])?;
        let pass = Pass::new(1, |_| search(&mut best).map_err(|_| LookupError::Inconsistent));
        if spec.weights.dtype() != Dtype::F32 || measured.is_empty() {
            roofline.measure_memory();
        }
        let [seconds] = roofline.fastest(Caches::Warm, [pass])?;
        let seconds = seconds / queries as f64 * scale;
        let dense = measured
            .iter()
            .find(|dense| dense.queries == queries)
            .map_or(seconds, |dense| dense.dense);
        let (flops, bytes) = match spec.weights {
            ttrec::blob::WeightsSpec::Tt { shape, .. } => {
                (Some(2.0 * multiply_adds(&shape) as f64), None)
            }
            weights => {
                (None, Some((rows as usize * weights.dtype().row_len(DIM)) as f64 / queries as f64))
            }
        };
        let name = spec.name.clone();
        measured.push(CatalogueTiming {
            name,
            queries,
            seconds,
            dense,
            flops,
            bytes,
            workspace_bytes,
        });
    }
    Ok(())
}

/// Compares the best rows of a query with rows that are looked up: each score is that of its row,
/// and no other row has a higher one.
fn check(table: &Table<'_>, query: &[f32], best: &[Scored]) -> Result<()> {
    let mut row = vec![0.0; DIM];
    let mut workspace = vec![0.0; table.workspace_len(1)];
    let mut product = |index: u64| -> Result<[f64; 2]> {
        table.lookup(index, &mut row, &mut workspace)?;
        let products = row.iter().zip(query).map(|(&x, &q)| f64::from(x) * f64::from(q));
        Ok(products.fold([0.0, 0.0], |[sum, size], x| [sum + x, size + x.abs()]))
    };
    let wrong =
        || format!("{}: wrong result (this is a bug in ttrec): nothing was measured", table.name());
    // Rounding errors are far smaller.
    let slack = |size: f64| 1e-3 * size.max(1e-3);
    for found in best {
        let [sum, size] = product(found.index)?;
        ensure!((sum - f64::from(found.score)).abs() <= slack(size), wrong());
    }
    let last = best.last().map_or(0.0, |last| f64::from(last.score));
    for position in 0..CHECKED {
        let index = random(6, position) % table.num_embeddings();
        let [sum, size] = product(index)?;
        let is_known = best.iter().any(|found| found.index == index);
        ensure!(is_known || sum <= last + slack(size), wrong());
    }
    Ok(())
}
