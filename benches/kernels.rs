//! Chain steps with operands in the nearest cache, on every tier, of every dtype of a core.
//! `cargo bench -p ttrec-benches --bench kernels`.
//!
//! Answers are compared with a plain f64 loop before anything is timed. "elem" counts
//! floating-point operations.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use ttrec::{
    AlignedBuf, Tier,
    dtype::{Dtype, Elements, encode_slice},
    kernel::{Dims, Epilogue, chain_step},
};

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

/// Multiples of 1/8 from -2 to 2, which are exact in every dtype except i8.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|at| ((at + seed) * 7919 % 33) as f32 / 8.0 - 2.0).collect()
}

fn bench(
    criterion: &mut Criterion,
    group: &str,
    dtypes: &[Dtype],
    sizes: &[[usize; 3]],
    adds: bool,
) {
    let mut group = criterion.benchmark_group(group);
    for &size @ [m, r, n] in sizes {
        let (x, g) = (values(m * r, 1), values(r * n, 2));
        let dims = Dims { m, r, n };
        for &dtype in dtypes {
            let mut stored = AlignedBuf::zeroed(dtype.bytes_of(r * n));
            let scale = encode_slice(&g, dtype, &mut stored).expect("values that every dtype has");
            let slice = Elements::from_bytes(&stored, dtype).expect("an aligned slice");
            let epilogue = match dtype {
                _ if adds => Epilogue::AddScaled(scale),
                Dtype::I8 => Epilogue::StoreScaled(scale),
                _ => Epilogue::Store,
            };
            for tier in Tier::available() {
                let mut out = vec![0.0; m * n];
                chain_step(tier, dims, &x, slice, &mut out, epilogue).expect("lengths fit");
                for (at, &found) in out.iter().enumerate() {
                    let product = |k| f64::from(x[at / n * r + k]) * f64::from(g[k * n + at % n]);
                    let expected: f64 = (0..r).map(product).sum();
                    // No term is above 4; an i8 step is 4/255 at most, times an x of at most 2.
                    let bound = r as f64 * if dtype == Dtype::I8 { 0.02 } else { 1e-5 };
                    assert!(
                        (f64::from(found) - expected).abs() <= bound,
                        "{tier:?} {dtype:?} {size:?} at {at}"
                    );
                }
                group.throughput(Throughput::Elements(2 * (m * r * n) as u64));
                group.bench_function(
                    format!("{}/{}/m{m}-r{r}-n{n}", tier.name(), dtype.name()),
                    |bencher| {
                        bencher.iter(|| {
                            chain_step(
                                tier,
                                dims,
                                black_box(&x),
                                slice,
                                black_box(&mut out),
                                epilogue,
                            )
                        });
                    },
                );
            }
        }
    }
}

fn chain_steps(criterion: &mut Criterion) {
    bench(criterion, "step", &DTYPES, &[[24, 32, 128], [24, 64, 256], [24, 16, 64]], false);
    bench(criterion, "step", &[Dtype::F32], &[[4, 32, 128], [2, 32, 64], [5, 33, 129]], false);
}

fn last_steps(criterion: &mut Criterion) {
    bench(criterion, "last", &[Dtype::F32], &[4, 8, 16, 64].map(|n| [16, 32, n]), true);
}

criterion_group!(benches, chain_steps, last_steps);
criterion_main!(benches);
