//! Batches of bags: compares tensor trains with dense tables, as rankers use them.
//!
//! W1 to W3 are FBTT's benchmark shape, W4 is a ranker for Criteo Kaggle, W5 is real baskets, W6
//! has the column factors of `ttrec train`. The rows of tensor trains are sorted by frequency,
//! which costs training nothing; the rows of dense tables are not.

use super::{
    payload::build,
    roofline::{Caches, Pass, Roofline},
    tables::{BATCHES, dense_rows, dense_table, tt_table},
    traffic::{Ids, Run, Traffic, compare, scalar},
    workloads::{
        BAG, BAGS, COLUMN_FACTORS, DIM, KAGGLE_COLUMN_FACTORS, KAGGLE_DENSE, KAGGLE_DIM, KAGGLE_TT,
        RANKS, ROW_FACTORS, ROWS, TRAINED, TRAINED_RANKS,
    },
};
use crate::{bags_file::BagsFile, progress::Bar};
use anyhow::{Context, Result, ensure};
use std::{hint::black_box, ops::Range};
use ttrec::{
    AlignedBuf, Blob, DigitOrder, LookupError, Table, Tier, TtShape,
    blob::{TableSpec, WeightsSpec},
    cache::RowCache,
    dtype::{Dtype, Elements},
    kernel::{Dims, Epilogue, chain_step, widen},
    repr::Weights,
};
use ttrec_convert::cache::{self, Demand};

/// The rank of workloads that are measured at one rank only, and of those with a cache.
const RANK: u32 = 32;
/// Lookups in one batch, to see whether time grows with them.
const GROWTH: [usize; 3] = [1_000, 10_000, 100_000];

/// The traffic that fills the caches first, in multiples of the measured traffic.
const EARLIER: usize = 3;

/// Samples of a batch of W4.
const KAGGLE_BATCHES: [usize; 3] = [1, 128, 2048];

const RETAIL_ROWS: u64 = 16_470;
const RETAIL_ROW_FACTORS: [u32; 3] = [26, 26, 25];

/// The baseline of a workload.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Baseline {
    /// Dense f32 tables, same lookups.
    Dense,
    /// The kernels that one lookup calls.
    Bare,
    /// The same lookups one by one.
    Single,
}

/// The measurement of one workload.
pub(super) struct BatchTiming {
    pub(super) name: String,
    /// Seconds per lookup.
    pub(super) seconds: f64,
    /// Floating-point operations of computing one row alone, if all lookups are of one tensor
    /// train.
    pub(super) flops: Option<f64>,
    /// The baseline and its seconds per lookup.
    pub(super) beside: Option<(Baseline, f64)>,
    /// Both times again, with cold caches.
    pub(super) cold: Option<[f64; 2]>,
    /// A row cache's hit rate, and its seconds to record one lookup.
    pub(super) cache: Option<[f64; 2]>,
    pub(super) workspace_bytes: usize,
}

/// The size of the suite.
struct Extent {
    batches: usize,
    bags: usize,
    /// Samples of W4 for every batch size, so that caches do not keep the dense rows of a small
    /// batch until the next pass.
    samples: usize,
    /// The ratio of a dense table's bytes to those of its cache.
    dense_bytes_per_cached: u64,
}

/// Measures every workload. Reduced and skipped ones are added to `notes`.
pub(super) fn measure(
    roofline: &mut Roofline,
    quick: bool,
    retail: Option<&BagsFile>,
    notes: &mut Vec<String>,
) -> Result<Vec<BatchTiming>> {
    let extent = if quick {
        Extent { batches: 1, bags: 25, samples: 256, dense_bytes_per_cached: 10_000 }
    } else {
        Extent {
            batches: BATCHES,
            bags: BAGS,
            samples: BATCHES * 2048,
            dense_bytes_per_cached: 100,
        }
    };
    let progress = Bar::new("workloads", 37 + u64::from(retail.is_some()));
    let mut suite = Suite { roofline, extent, measured: Vec::new(), progress };
    suite.fbtt(dense_rows("dense tables have", ROWS, DIM, quick, notes))?;
    let kaggle = KAGGLE_TT.iter().map(|(rows, _)| rows).chain(&KAGGLE_DENSE).sum();
    suite.kaggle(
        dense_rows("the dense tables of W4 have together", kaggle, KAGGLE_DIM, quick, notes) as f64
            / kaggle as f64,
    )?;
    match retail {
        Some(file) => suite
            .retail(file, if quick { 1 } else { usize::MAX })
            .with_context(|| file.path().display().to_string())?,
        None => {
            notes.push("skipped W5 (a retailer's baskets): pass its file with --retail".to_owned())
        }
    }
    suite.few_lookups()?;
    suite.growth()?;
    Ok(suite.measured)
}

struct Suite<'r> {
    roofline: &'r mut Roofline,
    extent: Extent,
    measured: Vec<BatchTiming>,
    progress: Bar,
}

impl Suite<'_> {
    /// W1 to W3 and W6: one large table, and a dense one of `rows` rows.
    fn fbtt(&mut self, rows: u64) -> Result<()> {
        let tier = self.roofline.tier();
        let dense =
            BenchModel::new(vec![dense_table("dense".to_owned(), rows, DIM, Dtype::F32)], tier)?;
        let [cubic, wide] = COLUMN_FACTORS;
        let [most, least] = [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst];
        for (name, q, order, ranks, ids) in [
            ("W1", cubic, most, RANKS, Ids::Uniform),
            ("W2", cubic, most, RANKS, Ids::ZipfSorted),
            ("W3-uniform", wide, most, RANKS, Ids::Uniform),
            ("W3-zipf", wide, most, RANKS, Ids::ZipfSorted),
            ("W6-uniform", TRAINED, least, TRAINED_RANKS, Ids::Uniform),
            ("W6-zipf", TRAINED, least, TRAINED_RANKS, Ids::ZipfSorted),
        ] {
            let Extent { batches, bags, dense_bytes_per_cached, .. } = self.extent;
            let traffic = [Traffic::draw(ids, ROWS, 2, [batches, bags, BAG])];
            let scattered = traffic.each_ref().map(|traffic| traffic.scattered(rows));
            for rank in ranks {
                let name = format!("{name}-R{rank}");
                let tt = BenchModel::fbtt(&q, order, rank, tier)?;
                self.beside_dense(&name, [&tt, &dense], [&traffic, &scattered])?;
                if rank == RANK && !matches!(ids, Ids::Uniform) {
                    let bytes = ROWS * Dtype::F32.row_len(DIM) as u64 / dense_bytes_per_cached;
                    let earlier = [Traffic::draw(ids, ROWS, 3, [EARLIER * batches, bags, BAG])];
                    let cached = tt.cached(&earlier, bags * BAG, bytes)?;
                    self.beside_dense(
                        &format!("{name}-cached"),
                        [&cached, &dense],
                        [&traffic, &scattered],
                    )?;
                    let (models, name) = ([&tt, &dense], format!("{name}-lfu"));
                    self.cached_beside_dense(
                        &name,
                        models,
                        [&traffic, &scattered],
                        &earlier[0],
                        bytes,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// W4: one lookup in each of many tables for each sample, and the same with dense tables of
    /// `fraction` of their rows.
    fn kaggle(&mut self, fraction: f64) -> Result<()> {
        let tier = self.roofline.tier();
        // In name order, which the order of tables is.
        let name = |at: usize| format!("c{at:02}");
        let all_rows: Vec<u64> =
            KAGGLE_TT.iter().map(|(rows, _)| *rows).chain(KAGGLE_DENSE).collect();
        let dense_rows: Vec<u64> =
            all_rows.iter().map(|&rows| ((rows as f64 * fraction) as u64).max(1)).collect();
        let dense_spec = |(at, &rows)| dense_table(name(at), rows, KAGGLE_DIM, Dtype::F32);
        let dense = BenchModel::new(dense_rows.iter().enumerate().map(dense_spec).collect(), tier)?;
        let bytes = all_rows.iter().sum::<u64>() * Dtype::F32.row_len(KAGGLE_DIM) as u64;
        for rank in [16, 32] {
            let mut specs: Vec<TableSpec> = all_rows.iter().enumerate().map(dense_spec).collect();
            for ((rows, p), spec) in KAGGLE_TT.iter().zip(&mut specs) {
                let shape = TtShape::new(*rows, p, &KAGGLE_COLUMN_FACTORS, &[rank, rank])?;
                *spec = tt_table(spec.name.clone(), shape, Dtype::F32);
            }
            let tt = BenchModel::new(specs, tier)?;
            let cached = match rank {
                16 => {
                    let draw = |(&(rows, _), seed)| {
                        Traffic::draw(
                            Ids::ZipfSorted,
                            rows,
                            seed,
                            [EARLIER, self.extent.samples, 1],
                        )
                    };
                    let earlier: Vec<_> = KAGGLE_TT.iter().zip(100..).map(draw).collect();
                    Some(tt.cached(
                        &earlier,
                        KAGGLE_BATCHES[1],
                        bytes / self.extent.dense_bytes_per_cached,
                    )?)
                }
                _ => None,
            };
            for bags in KAGGLE_BATCHES {
                let batches = (self.extent.samples / bags).max(1);
                let (mut traffic, mut scattered) = (Vec::new(), Vec::new());
                for (at, (&rows, &dense_rows)) in all_rows.iter().zip(&dense_rows).enumerate() {
                    let sorted =
                        Traffic::draw(Ids::ZipfSorted, rows, at as u64, [batches, bags, 1]);
                    scattered.push(sorted.scattered(dense_rows));
                    // The small tables are dense in both models.
                    traffic.push(if at < KAGGLE_TT.len() {
                        sorted
                    } else {
                        sorted.scattered(rows)
                    });
                }
                let name = format!("W4-R{rank}-B{bags}");
                self.beside_dense(&name, [&tt, &dense], [&traffic, &scattered])?;
                if let Some(cached) = cached.as_ref().filter(|_| bags > 1) {
                    self.beside_dense(
                        &format!("{name}-cached"),
                        [cached, &dense],
                        [&traffic, &scattered],
                    )?;
                }
            }
        }
        Ok(())
    }

    /// W5: the bags of `file`, in at most `batches` batches.
    fn retail(&mut self, file: &BagsFile, batches: usize) -> Result<()> {
        let tier = self.roofline.tier();
        let shape = TtShape::new(RETAIL_ROWS, &RETAIL_ROW_FACTORS, &COLUMN_FACTORS[0], &[16, 16])?;
        let tt = BenchModel::new(vec![tt_table("item".to_owned(), shape, Dtype::F32)], tier)?;
        let dense = BenchModel::new(
            vec![dense_table("item".to_owned(), RETAIL_ROWS, DIM, Dtype::F32)],
            tier,
        )?;
        let traffic = [Traffic::from_file(file, batches, BAGS)?];
        let scattered = traffic.each_ref().map(|traffic| traffic.scattered(RETAIL_ROWS));
        self.beside_dense("W5-R16", [&tt, &dense], [&traffic, &scattered])
    }

    /// One lookup against the kernels that it calls, and one bag against its lookups.
    fn few_lookups(&mut self) -> Result<()> {
        let tier = self.roofline.tier();
        let model = BenchModel::fbtt(&COLUMN_FACTORS[0], DigitOrder::default(), RANK, tier)?;
        let table = model.table(0)?;
        let traffic = [Traffic::draw(Ids::Uniform, ROWS, 2, [self.extent.bags, 1, BAG])];
        let rows = traffic[0].indices();
        let mut bags = Run::new(vec![table], &traffic)?;
        bags.check(&format!("bag{BAG}-R{RANK}"))?;

        let name = format!("single-R{RANK}");
        let mut bare = Bare::new(&table, rows).context("not a tensor train of three f32 cores")?;
        let (mut workspace, mut row, mut bare_row) =
            (vec![0.0; table.workspace_len(1)], [0.0; DIM], [0.0; DIM]);
        let workspace_bytes = size_of_val(&workspace[..]);
        let (plain, mut expected) = (table.with_tier(scalar()?), [0.0; DIM]);
        for (position, &id) in rows.iter().enumerate().take(BAG) {
            table.lookup(id.into(), &mut row, &mut workspace)?;
            bare.put_row(position, &mut bare_row).context("operands do not fit")?;
            plain.lookup(id.into(), &mut expected, &mut workspace)?;
            compare(&name, &row, &expected)?;
            ensure!(
                row == bare_row,
                "{name}: the kernels give another row (this is a bug in ttrec): nothing was \
                 measured"
            );
        }

        let one_by_one = Pass::new(rows.len(), |mut range| {
            range.try_for_each(|at| {
                table.lookup(rows[at].into(), black_box(&mut row), &mut workspace)
            })
        });
        let kernels = Pass::new(rows.len(), |mut range| {
            let done = range.try_for_each(|at| bare.put_row(at, black_box(&mut bare_row)));
            done.ok_or(LookupError::Inconsistent)
        });
        let seconds = self.roofline.fastest(Caches::Warm, [one_by_one, kernels, bags.pass()])?;
        let [single, kernels, bag] = seconds.map(|seconds| seconds / rows.len() as f64);
        let flops = model.flops();
        self.push(BatchTiming {
            name,
            seconds: single,
            flops,
            beside: Some((Baseline::Bare, kernels)),
            cold: None,
            cache: None,
            workspace_bytes,
        });
        self.push(BatchTiming {
            name: format!("bag{BAG}-R{RANK}"),
            seconds: bag,
            flops,
            beside: Some((Baseline::Single, single)),
            cold: None,
            cache: None,
            workspace_bytes: bags.workspace_bytes(),
        });
        Ok(())
    }

    /// W1 with other numbers of lookups.
    fn growth(&mut self) -> Result<()> {
        let model = BenchModel::fbtt(
            &COLUMN_FACTORS[0],
            DigitOrder::default(),
            RANK,
            self.roofline.tier(),
        )?;
        let draw = |lookups| {
            [Traffic::draw(Ids::Uniform, ROWS, 2, [self.extent.batches, lookups / BAG, BAG])]
        };
        let traffic = GROWTH.map(draw);
        let [small, medium, large] =
            traffic.each_ref().map(|traffic| Run::new(model.tables()?, traffic));
        let mut runs = [small?, medium?, large?];
        for (run, lookups) in runs.iter_mut().zip(GROWTH) {
            run.check(&format!("growth-{lookups}"))?;
        }
        let [small, medium, large] = &mut runs;
        let seconds = self
            .roofline
            .fastest(Caches::Warm, [small.pass(), medium.pass(), large.pass()])?;
        for ((run, lookups), seconds) in runs.iter().zip(GROWTH).zip(seconds) {
            self.push(BatchTiming {
                name: format!("growth-{lookups}"),
                seconds: seconds / run.lookups() as f64,
                flops: model.flops(),
                beside: None,
                cold: None,
                cache: None,
                workspace_bytes: run.workspace_bytes(),
            });
        }
        Ok(())
    }

    /// Times `tt` and `dense` by turns.
    fn beside_dense(
        &mut self,
        name: &str,
        [tt, dense]: [&BenchModel; 2],
        traffic: [&[Traffic]; 2],
    ) -> Result<()> {
        let measured = self.tables_beside_dense(name, (tt, tt.tables()?), dense, traffic)?;
        self.push(measured);
        Ok(())
    }

    /// The same with a cache of `bytes`, filled by other traffic of the same kind.
    fn cached_beside_dense(
        &mut self,
        name: &str,
        [tt, dense]: [&BenchModel; 2],
        traffic: [&[Traffic]; 2],
        earlier: &Traffic,
        bytes: u64,
    ) -> Result<()> {
        let table = tt.table(0)?;
        let mut workspace = vec![0.0; table.workspace_len(1)];
        let mut memory = vec![0.0; bytes as usize / size_of::<f32>()];
        let mut cache = RowCache::new(&table, &mut memory)?;
        for indices in earlier.indices().chunks(1 << 16) {
            cache.record(indices);
            cache.refresh(&mut workspace)?;
        }
        cache.reset_statistics();
        cache.record(traffic[0][0].indices());
        let hit_rate = cache.statistics().hit_rate();
        let measured = self.tables_beside_dense(name, (tt, vec![cache.table()]), dense, traffic)?;
        let (indices, record) = (traffic[0][0].indices(), |range: Range<usize>| {
            cache.record(&traffic[0][0].indices()[range]);
            Ok(())
        });
        let [seconds] = self.roofline.fastest(Caches::Warm, [Pass::new(indices.len(), record)])?;
        self.push(BatchTiming {
            cache: Some([hit_rate, seconds / indices.len() as f64]),
            ..measured
        });
        Ok(())
    }

    fn tables_beside_dense(
        &mut self,
        name: &str,
        (tt, tables): (&BenchModel, Vec<Table<'_>>),
        dense: &BenchModel,
        traffic: [&[Traffic]; 2],
    ) -> Result<BatchTiming> {
        let mut run = Run::new(tables, traffic[0])?;
        let mut beside = Run::new(dense.tables()?, traffic[1])?;
        run.check(name)?;
        beside.check(&format!("{name}, dense"))?;
        let lookups = run.lookups() as f64;
        let cold = self.roofline.fastest(Caches::Cold, [run.pass(), beside.pass()])?;
        let warm = self.roofline.fastest(Caches::Warm, [run.pass(), beside.pass()])?;
        let [seconds, dense_seconds] = warm.map(|seconds| seconds / lookups);
        Ok(BatchTiming {
            name: name.to_owned(),
            seconds,
            flops: tt.flops(),
            beside: Some((Baseline::Dense, dense_seconds)),
            cold: Some(cold.map(|seconds| seconds / lookups)),
            cache: None,
            workspace_bytes: run.workspace_bytes(),
        })
    }

    fn push(&mut self, measured: BatchTiming) {
        self.measured.push(measured);
        self.progress.add(1);
    }
}

/// Tables, and the blob that holds them.
struct BenchModel {
    specs: Vec<TableSpec>,
    buf: AlignedBuf,
    tier: Tier,
}

impl BenchModel {
    fn new(specs: Vec<TableSpec>, tier: Tier) -> Result<Self> {
        Ok(Self { buf: build(&specs)?, specs, tier })
    }

    /// The one table of FBTT's benchmark shape.
    fn fbtt(q: &[u32; 3], order: DigitOrder, rank: u32, tier: Tier) -> Result<Self> {
        let shape = TtShape::new(ROWS, &ROW_FACTORS, q, &[rank, rank])?.with_digit_order(order);
        Self::new(vec![tt_table("tt".to_owned(), shape, Dtype::F32)], tier)
    }

    fn tables(&self) -> Result<Vec<Table<'_>>> {
        (0..self.specs.len()).map(|position| self.table(position)).collect()
    }

    fn table(&self, position: usize) -> Result<Table<'_>> {
        let spec = self.specs.get(position).context("no such table")?;
        Ok(Blob::parse(&self.buf)?.table(&spec.name)?.with_tier(self.tier))
    }

    /// Floating-point operations of a row, if there is one table and it is a tensor train.
    fn flops(&self) -> Option<f64> {
        match self.specs.as_slice() {
            [TableSpec { weights: WeightsSpec::Tt { shape, .. }, .. }] => {
                Some(shape.flops_left_to_right() as f64)
            }
            _ => None,
        }
    }

    /// The same tables with `bytes` of rows and prefix products that `ttrec cache` chooses for
    /// earlier traffic; `traffic` has one kind for each of the first tables.
    fn cached(&self, earlier: &[Traffic], batch_lookups: usize, bytes: u64) -> Result<Self> {
        let blob = Blob::parse(&self.buf)?;
        let tables: Vec<_> = blob.tables().map(|table| table.with_tier(self.tier)).collect();
        let demands = tables.iter().enumerate().map(|(position, table)| {
            let Weights::Tt(tt) = table.data().weights() else { return None };
            Some(Demand::new(table, tt, earlier.get(position)?.frequencies(), batch_lookups as u64))
        });
        let demands: Vec<_> = demands.collect();
        let choice = cache::choose(&demands, bytes, &());
        let buf = cache::to_blob(&self.buf, &tables, &choice, &())?;
        Ok(Self { specs: self.specs.clone(), buf, tier: self.tier })
    }
}

/// The kernels that a lookup calls, without the code around them.
struct Bare<'a> {
    tier: Tier,
    shape: TtShape,
    /// Of each lookup.
    slices: Vec<[Elements<'a>; 3]>,
    /// The product of one slice, and of two.
    partials: [Vec<f32>; 2],
}

impl<'a> Bare<'a> {
    /// `None` if the table is not a tensor train of three f32 cores.
    fn new(table: &Table<'a>, rows: &[u32]) -> Option<Self> {
        let Weights::Tt(tt) = table.data().weights() else { return None };
        let shape = *tt.shape();
        let cores: Option<Vec<&[f32]>> =
            tt.cores().iter().map(|core| core.slices().as_f32()).collect();
        let cores: [&[f32]; 3] = cores?.try_into().ok()?;
        let slice = |row: u32, k: usize| {
            let len = shape.slice_len(k);
            cores[k]
                .chunks_exact(len)
                .nth(shape.digits(row.into()).nth(k)? as usize)
                .map(Elements::from_f32)
        };
        let slices = rows.iter().map(|&row| Some([slice(row, 0)?, slice(row, 1)?, slice(row, 2)?]));
        let partials =
            [shape.slice_len(0), shape.column_factor(0) * shape.slice_len(1) / shape.rank(1)];
        Some(Self {
            tier: table.tier(),
            shape,
            slices: slices.collect::<Option<_>>()?,
            partials: partials.map(|len| vec![0.0; len]),
        })
    }

    /// Multiplies out the row of a lookup.
    fn put_row(&mut self, lookup: usize, out: &mut [f32]) -> Option<()> {
        let Self { tier, shape, slices, partials: [x, y] } = self;
        let ([g0, g1, g2], q, r) =
            (slices.get(lookup)?, |k| shape.column_factor(k), |k| shape.rank(k));
        widen(*tier, *g0, 1.0, -0.0, x, Epilogue::Store)?;
        chain_step(*tier, Dims { m: q(0), r: r(1), n: q(1) * r(2) }, x, *g1, y, Epilogue::Store)?;
        chain_step(*tier, Dims { m: q(0) * q(1), r: r(2), n: q(2) }, y, *g2, out, Epilogue::Store)
    }
}
