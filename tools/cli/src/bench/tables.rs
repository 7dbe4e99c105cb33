//! Bags over tables of FBTT's benchmark shape, in batches as of a ranker.

use super::{
    payload::build,
    roofline::{Caches, Roofline, available_memory},
    traffic::{Ids, Run, Traffic},
    workloads::{BAG, BAGS, COLUMN_FACTORS, DIM, RANKS, ROW_FACTORS, ROWS},
};
use crate::progress::Bar;
use anyhow::Result;
use ttrec::{
    Blob, TtShape,
    blob::{TableSpec, WeightsSpec},
    dtype::Dtype,
    repr::{CodeDtype, Combine},
};

/// The number of batches: together their dense f32 rows are larger than most caches.
pub(super) const BATCHES: usize = 20;

/// The measurement of one table.
pub(super) struct TableTiming {
    pub(super) name: String,
    /// Seconds per lookup.
    pub(super) seconds: f64,
    /// Floating-point operations of computing one row alone, for a tensor train.
    pub(super) flops: Option<f64>,
    /// Bytes of one stored row, for a dense or codebook table.
    pub(super) bytes: Option<f64>,
}

/// The size of the suite.
struct Extent {
    bags: usize,
    /// Batches of a tensor train, whose cores stay in the caches for any rows.
    tt_batches: usize,
}

/// Measures every table of the suite. Reduced tables are added to `notes`.
pub(super) fn measure(
    roofline: &mut Roofline,
    quick: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<TableTiming>> {
    let rows = dense_rows("dense tables have", ROWS, DIM, quick, notes);
    let extent = if quick {
        Extent { bags: 50, tt_batches: 1 }
    } else {
        Extent { bags: BAGS, tt_batches: 2 }
    };
    let dense = [Dtype::F32, Dtype::F16, Dtype::I8, Dtype::I4];
    let mut tables = Vec::from(
        dense.map(|dtype| dense_table(format!("dense-{}", dtype.name()), rows, DIM, dtype)),
    );
    for num_books in [8, 16] {
        for dtype in [Dtype::F16, Dtype::I8] {
            let name = format!("codes-{}-m{num_books}", dtype.name());
            tables.push(code_table(name, rows, num_books, dtype));
        }
    }
    for (q, rank, dtype) in COLUMN_FACTORS
        .iter()
        .flat_map(|q| RANKS.map(|rank| (q, rank)))
        .flat_map(|(q, rank)| [Dtype::F32, Dtype::I8].map(|dtype| (q, rank, dtype)))
    {
        let name = format!("tt-{}-q{}x{}x{}-r{rank}", dtype.name(), q[0], q[1], q[2]);
        tables.push(tt_table(name, TtShape::new(ROWS, &ROW_FACTORS, q, &[rank, rank])?, dtype));
    }

    let mut measured = Vec::new();
    let progress = Bar::new("tables", tables.len() as u64);
    for table in tables {
        measure_table(roofline, &extent, table, &mut measured)?;
        progress.add(1);
    }
    Ok(measured)
}

pub(super) fn dense_table(
    name: String,
    num_embeddings: u64,
    embedding_dim: usize,
    dtype: Dtype,
) -> TableSpec {
    TableSpec::new(name, WeightsSpec::Dense { num_embeddings, embedding_dim, dtype })
}

/// Rows of `num_books` codes, each of one of 256 entries.
fn code_table(name: String, num_embeddings: u64, num_books: usize, dtype: Dtype) -> TableSpec {
    TableSpec::new(
        name,
        WeightsSpec::Codebook {
            num_embeddings,
            embedding_dim: DIM,
            num_books,
            book_len: 256,
            inner_dim: DIM,
            combine: Combine::Concat,
            codes: CodeDtype::U8,
            dtype,
            projection: None,
        },
    )
}

pub(super) fn tt_table(name: String, shape: TtShape, dtype: Dtype) -> TableSpec {
    TableSpec::new(name, WeightsSpec::Tt { shape, dtype })
}

/// The number of f32 rows of `dim` columns to measure, at most `usual`; adds a note if it is less.
pub(super) fn dense_rows(
    what: &str,
    usual: u64,
    dim: usize,
    quick: bool,
    notes: &mut Vec<String>,
) -> u64 {
    let fits = (available_memory() / 2 / Dtype::F32.row_len(dim)).max(1) as u64;
    let (limit, why) = if quick && fits > 200_000 {
        (200_000, "to be quick")
    } else {
        (fits, "to fit half of the available memory")
    };
    if limit < usual {
        let note = format!("{what} {limit} rows instead of {usual}, {why}");
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    usual.min(limit)
}

fn measure_table(
    roofline: &mut Roofline,
    extent: &Extent,
    spec: TableSpec,
    measured: &mut Vec<TableTiming>,
) -> Result<()> {
    let buf = build(std::slice::from_ref(&spec))?;
    let table = Blob::parse(&buf)?.table(&spec.name)?.with_tier(roofline.tier());
    let (flops, bytes, batches, ids) = match spec.weights {
        WeightsSpec::Tt { shape, .. } => (
            Some(shape.flops_left_to_right() as f64),
            None,
            extent.tt_batches,
            &[Ids::Uniform, Ids::ZipfSorted][..],
        ),
        WeightsSpec::Codebook { num_books, codes, .. } => {
            (None, Some(codes.row_len(num_books) as f64), BATCHES, &Ids::ALL[..])
        }
        weights => (None, Some(weights.dtype().row_len(DIM) as f64), BATCHES, &Ids::ALL[..]),
    };
    for ids in ids {
        let name = format!("{}-{}", spec.name, ids.name());
        let traffic = [Traffic::draw(*ids, table.num_embeddings(), 2, [batches, extent.bags, BAG])];
        let mut run = Run::new(vec![table], &traffic)?.with_least_workspace();
        run.check(&name)?;
        if bytes.is_some() {
            roofline.measure_memory();
        }
        let [seconds] = roofline.fastest(Caches::Warm, [run.pass()])?;
        measured.push(TableTiming { name, seconds: seconds / run.lookups() as f64, flops, bytes });
    }
    Ok(())
}
