//! Pools or looks up rows of a workload a given number of times, for `.ci/instructions` to count.

#[allow(dead_code, reason = "the benchmarks of `ttrec` use all of them")]
mod workloads;

use std::hint::black_box;
use ttrec::{
    Bags, Blob, DigitOrder, Pooling, Table, Tier, TtShape,
    bag::pool_tables,
    blob::{Layout, TableSpec, WeightsSpec},
    dtype::Dtype,
};
use workloads::{
    BAG, BAGS, COLUMN_FACTORS, KAGGLE_COLUMN_FACTORS, KAGGLE_DENSE, KAGGLE_DIM, KAGGLE_TT,
    ROW_FACTORS, ROWS, TRAINED,
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, workload, dtype, form, passes] = &args[..] else {
        panic!("usage: instructions WORKLOAD DTYPE batch|bag|lookup PASSES")
    };
    let dtype = match dtype.as_str() {
        "f16" => Dtype::F16,
        "i8" => Dtype::I8,
        _ => Dtype::F32,
    };
    let (most, least) = (DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst);
    let large = |q: [u32; 3], rank, order| {
        let shape = TtShape::new(ROWS, &ROW_FACTORS, &q, &[rank, rank]).unwrap();
        vec![tt(0, shape.with_digit_order(order), dtype)]
    };
    let [cubic, wide] = COLUMN_FACTORS;
    let (name, rank) = workload.split_once("-R").unwrap();
    let rank = rank.parse().unwrap();
    let specs = match name {
        "W1" => large(cubic, rank, most),
        "W3" => large(wide, rank, most),
        "W6" => large(TRAINED, rank, least),
        "W4" => kaggle(rank, dtype),
        _ => panic!("no workload {workload}"),
    };
    let mut buf = Layout::new(&specs).unwrap().build(|_, out| out.fill(0x3c));
    let buf = black_box(&mut buf);
    let blob = Blob::parse(buf).unwrap();
    let tier = Tier::from_name(&std::env::var("TTREC_ISA").unwrap_or_default());
    let tables: Vec<Table<'_>> =
        blob.tables().map(|table| table.with_tier(tier.unwrap_or(Tier::best()))).collect();

    let (bags, bag) = match (form.as_str(), tables.len()) {
        ("batch", 1) => (BAGS, BAG),
        ("batch", _) => (128, 1),
        ("bag", 1) => (1, BAG),
        _ => (1, 1),
    };
    let offsets: Vec<u32> = (0..=bags).map(|at| (at * bag) as u32).collect();
    let width: usize = tables.iter().map(Table::embedding_dim).sum();
    let mut out = vec![0.0; bags * width];
    let workspace = tables.iter().map(|table| table.workspace_len(bags * bag)).max();
    let mut workspace = vec![0.0; workspace.unwrap_or_default()];
    // Uniform ids, the same in every pass of a batch; other passes take the next ones.
    let mut state = 1u64;
    let mut draw = |table: &Table<'_>| -> Vec<u32> {
        let mut id = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 32) * table.num_embeddings() >> 32) as u32
        };
        (0..BAGS * BAG).map(|_| id()).collect()
    };
    let ids: Vec<Vec<u32>> = tables.iter().map(&mut draw).collect();
    let mut pairs = Vec::with_capacity(tables.len());
    let (is_lookup, passes) = (form == "lookup", passes.parse().unwrap());
    // Little may happen here beside the calls: it is counted, too.
    let mut first = 0;
    for _ in 0..passes {
        if is_lookup {
            for (table, ids) in tables.iter().zip(&ids) {
                let out = &mut out[..table.embedding_dim()];
                table.lookup(ids[first].into(), out, &mut workspace).unwrap();
            }
        } else if let ([table], [ids]) = (&tables[..], &ids[..]) {
            let bags = Bags::new(&ids[first..][..bags * bag], &offsets).unwrap();
            table.pool(&bags, Pooling::Sum, &mut out, &mut workspace).unwrap();
        } else {
            pairs.clear();
            pairs.extend(tables.iter().zip(&ids).map(|(table, ids)| {
                (table, Bags::new(&ids[first..][..bags * bag], &offsets).unwrap())
            }));
            pool_tables(&pairs, Pooling::Sum, &mut out, &mut workspace).unwrap();
        }
        black_box(&out);
        first += bags * bag;
        if first + bags * bag > BAGS * BAG {
            first = 0;
        }
    }
    // What `.ci/instructions` divides by.
    println!("{}", tables.len() * bags * bag);
}

fn kaggle(rank: u32, dtype: Dtype) -> Vec<TableSpec> {
    let trains = KAGGLE_TT.iter().enumerate().map(|(at, (rows, p))| {
        tt(at, TtShape::new(*rows, p, &KAGGLE_COLUMN_FACTORS, &[rank, rank]).unwrap(), dtype)
    });
    let dense = KAGGLE_DENSE.iter().zip(7..).map(|(&num_embeddings, at)| {
        let (embedding_dim, dtype) = (KAGGLE_DIM, Dtype::F32);
        let weights = WeightsSpec::Dense { num_embeddings, embedding_dim, dtype };
        TableSpec::new(format!("c{at:02}"), weights)
    });
    trains.chain(dense).collect()
}

fn tt(at: usize, shape: TtShape, dtype: Dtype) -> TableSpec {
    TableSpec::new(format!("c{at:02}"), WeightsSpec::Tt { shape, dtype })
}
