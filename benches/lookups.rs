//! Times lookups of uniform indices, in bags of 20: rows, short rows, codes and tensor trains of
//! many shapes and types. Prints the lines of `tools/convert/src/plan/lookups.csv`, which the
//! estimates of `ttrec plan` are fitted to.

use std::{error::Error, hint::black_box, time::Instant};
use ttrec::{
    AlignedBuf, Bags, Blob, Pooling, TtShape,
    blob::{Layout, Role, TableSpec, WeightsSpec},
    dtype::Dtype,
    repr::{CodeDtype, Combine},
};

/// Lookups of a bag, and bags of a batch.
const BAG: usize = 20;
const BAGS: usize = 512;
/// The most rounds, of which the fastest counts, and the seconds after which there are no more.
const ROUNDS: usize = 40;
const SECONDS: f64 = 0.1;

fn main() -> Result<(), Box<dyn Error>> {
    println!("kind,num_embeddings,row_factors,column_factors,ranks,dtype,nanoseconds");
    dense_rows()?;
    short_rows()?;
    codes()?;
    tensor_trains()
}

fn dense_rows() -> Result<(), Box<dyn Error>> {
    for (num_embeddings, embedding_dim) in [
        (1_000, 16),
        (1_000, 64),
        (10_000, 32),
        (30_000, 64),
        (30_000, 384),
        (500_000, 32),
        (2_000_000, 64),
    ] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::I8, Dtype::I4] {
            let weights = WeightsSpec::Dense { num_embeddings, embedding_dim, dtype };
            let ns = measure(weights)?;
            println!("dense,{num_embeddings},,{embedding_dim},,{},{ns:.1}", dtype.name());
        }
    }
    Ok(())
}

fn short_rows() -> Result<(), Box<dyn Error>> {
    for (num_embeddings, embedding_dim, ranks) in [
        (6_000, 32, &[1, 2, 4, 8, 15, 16, 24, 31][..]),
        (40_000, 64, &[4, 16, 17, 32, 60]),
        (30_000, 100, &[8, 33, 64, 96]),
        (30_000, 384, &[8, 32, 67, 140, 175, 256, 350]),
        (2_000_000, 64, &[8, 32]),
    ] {
        for &rank in ranks {
            for dtype in [Dtype::F16, Dtype::I8, Dtype::I4] {
                let projection = Dtype::F16;
                let weights = WeightsSpec::Projected {
                    num_embeddings,
                    embedding_dim,
                    rank,
                    dtype,
                    projection,
                };
                let ns = measure(weights)?;
                let dtype = dtype.name();
                println!("low-rank,{num_embeddings},,{embedding_dim},{rank},{dtype},{ns:.1}");
            }
        }
    }
    Ok(())
}

fn codes() -> Result<(), Box<dyn Error>> {
    for (num_embeddings, embedding_dim, shapes) in [
        (6_000, 32, &[(2, 32), (4, 32), (8, 32), (11, 22), (16, 32), (8, 24)][..]),
        (40_000, 64, &[(4, 64), (8, 64), (16, 64), (12, 60), (21, 63), (32, 64), (10, 40)]),
        (30_000, 384, &[(16, 384), (40, 200), (48, 384), (64, 192), (96, 288), (128, 384)]),
        (2_000_000, 64, &[(8, 64), (16, 64)]),
    ] {
        for &(num_books, inner_dim) in shapes {
            for dtype in [Dtype::F16, Dtype::I8] {
                for projected in [false, true] {
                    if inner_dim != embedding_dim && !projected {
                        continue;
                    }
                    let ns = measure(WeightsSpec::Codebook {
                        num_embeddings,
                        embedding_dim,
                        num_books,
                        book_len: 256,
                        inner_dim,
                        combine: Combine::Concat,
                        codes: CodeDtype::U8,
                        dtype,
                        projection: projected.then_some(Dtype::F16),
                    })?;
                    let rank = if projected { inner_dim } else { 0 };
                    let dtype = dtype.name();
                    println!(
                        "codes,{num_embeddings},{num_books},{embedding_dim},{rank},{dtype},{ns:.1}"
                    );
                }
            }
        }
    }
    Ok(())
}

fn tensor_trains() -> Result<(), Box<dyn Error>> {
    for (num_embeddings, p, q) in [
        (6_040, &[76, 80][..], &[4, 8][..]),
        (6_040, &[76, 80], &[1, 32]),
        (40_981, &[202, 203], &[1, 32]),
        (40_981, &[202, 203], &[4, 8]),
        (40_981, &[34, 34, 36], &[2, 4, 4]),
        (40_981, &[34, 34, 36], &[1, 2, 16]),
        (30_522, &[174, 176], &[16, 24]),
        (30_522, &[174, 176], &[1, 384]),
        (30_522, &[31, 31, 32], &[6, 8, 8]),
        (30_522, &[31, 31, 32], &[1, 6, 64]),
        (11_000_000, &[200, 220, 250], &[4, 4, 4]),
        (11_000_000, &[200, 220, 250], &[2, 2, 16]),
        (11_000_000, &[3_300, 3_334], &[4, 16]),
        (1_000_000, &[100, 100, 100], &[3, 3, 3]),
        (1_000_000, &[32, 32, 32, 32], &[2, 2, 2, 4]),
    ] {
        for rank in [1, 2, 4, 7, 8, 16, 24, 32, 64, 128, 224] {
            // Ranks that the shape allows, and tables that a plan would make of it.
            let ranks = vec![rank; p.len() - 1];
            let Ok(shape) = TtShape::new(num_embeddings, p, q, &ranks) else { continue };
            if shape.num_parameters() > 1 << 25 {
                continue;
            }
            for dtype in [Dtype::F32, Dtype::F16, Dtype::I8] {
                let ns = measure(WeightsSpec::Tt { shape, dtype })?;
                let [p, q, ranks] = [p, q, &ranks[..]].map(list);
                println!("tt,{num_embeddings},{p},{q},{ranks},{},{ns:.1}", dtype.name());
            }
        }
    }
    Ok(())
}
fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// Nanoseconds of a lookup.
fn measure(weights: WeightsSpec) -> Result<f64, Box<dyn Error>> {
    let bytes = blob(weights)?;
    let blob = Blob::parse(&bytes)?;
    let table = blob.table("t")?;
    let mut state = 1u64;
    let mut index = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((u128::from(state) * u128::from(table.num_embeddings())) >> 64) as u32
    };
    let offsets: Vec<u32> = (0..=BAGS).map(|bag| (bag * BAG) as u32).collect();
    let mut out = vec![0.0; BAGS * table.embedding_dim()];
    let mut workspace = vec![0.0; table.workspace_len(BAGS * BAG)];
    let (mut least, mut spent) = (f64::INFINITY, 0.0);
    for round in 0..ROUNDS {
        let indices: Vec<u32> = (0..BAGS * BAG).map(|_| index()).collect();
        let bags = Bags::new(&indices, &offsets)?;
        let start = Instant::now();
        table.pool(&bags, Pooling::Sum, &mut out, &mut workspace)?;
        let seconds = start.elapsed().as_secs_f64();
        least = least.min(seconds);
        spent += seconds;
        if round > 0 && spent > SECONDS {
            break;
        }
    }
    black_box(&out);
    Ok(least / (BAGS * BAG) as f64 * 1e9)
}

/// A blob of one table. Its numbers are all alike, which no lookup depends on.
fn blob(weights: WeightsSpec) -> Result<AlignedBuf, Box<dyn Error>> {
    let layout = Layout::new(&[TableSpec::new("t", weights)])?;
    let mut failed = None;
    let bytes = layout.build(|section, out| {
        let (dtype, columns) = match (section.role, weights) {
            (Role::Rows, WeightsSpec::Dense { embedding_dim, dtype, .. }) => (dtype, embedding_dim),
            (Role::Rows, WeightsSpec::Projected { rank, dtype, .. }) => (dtype, rank),
            (Role::Codes, _) => {
                let mut state = 1u32;
                out.iter_mut().for_each(|code| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *code = (state >> 24) as u8;
                });
                return;
            }
            (Role::Books, _) if section.dtype == Some(Dtype::I8) => return out.fill(3),
            (Role::Books, WeightsSpec::Codebook { dtype, .. }) => (dtype, 1),
            (Role::Projection, WeightsSpec::Codebook { .. }) => (Dtype::F16, 16),
            (Role::Projection, WeightsSpec::Projected { projection, .. }) => (projection, 16),
            (Role::Core(_), WeightsSpec::Tt { dtype: Dtype::I8, .. }) => return out.fill(3),
            (Role::Core(_), WeightsSpec::Tt { dtype, .. }) => (dtype, 1),
            _ => (Dtype::F32, 1),
        };
        let row: Vec<f32> = (0..columns).map(|at| 0.01 * (1 + at % 3) as f32).collect();
        let mut encoded = vec![0; dtype.row_len(columns)];
        if let Err(error) = ttrec::dtype::encode_rows(&row, columns, dtype, &mut encoded) {
            failed = Some(error);
        }
        let len = encoded.len();
        out.chunks_mut(len).for_each(|out| out.copy_from_slice(&encoded[..out.len()]));
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(bytes),
    }
}
