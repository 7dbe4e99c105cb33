//! A DLRM of the size that its authors train on Criteo Kaggle: 13 dense features, 26 tables of 16
//! columns (dense here, so that the perceptrons and the interaction are most of it), bottom
//! 13-512-256-64-16, top 367-512-256-1. Batches of 1 and 128, and 128 candidates whose user has
//! half of the tables.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use ttrec::{
    AlignedBuf, Bags, Blob, Tier,
    blob::{
        Activation, Interaction, LayerSpec, Layout, ModelSpec, ModelTable, TableSpec, WeightsSpec,
    },
    dtype::{self, Dtype},
};

const TABLES: usize = 26;
const ROWS: u32 = 5000;

fn layers(widths: &[usize], dtype: Dtype, last: Activation) -> Vec<LayerSpec> {
    let count = widths.len() - 1;
    let activation = |at| if at + 1 == count { last } else { Activation::Relu };
    let layer = |(at, pair): (usize, &[usize])| LayerSpec {
        inputs: pair[0],
        outputs: pair[1],
        activation: activation(at),
        dtype,
    };
    widths.windows(2).enumerate().map(layer).collect()
}

fn model(dtype: Dtype) -> AlignedBuf {
    let rows =
        WeightsSpec::Dense { num_embeddings: ROWS.into(), embedding_dim: 16, dtype: Dtype::F32 };
    let tables: Vec<_> = (0..TABLES).map(|t| TableSpec::new(format!("t{t:02}"), rows)).collect();
    let model = ModelSpec {
        tables: (0..TABLES).map(ModelTable::from).collect(),
        interaction: Interaction::Dot,
        bottom: layers(&[13, 512, 256, 64, 16], dtype, Activation::Relu),
        top: layers(&[16 + 27 * 26 / 2, 512, 256, 1], dtype, Activation::Sigmoid),
    };
    Layout::with_model(&tables, Some(&model)).unwrap().build(|plan, out| {
        let count = out.len() / plan.dtype.unwrap().bytes_of(1);
        let values: Vec<f32> = (0..count)
            .map(|i| ((i * 7919 + plan.offset as usize) % 201) as f32 / 2000.0 - 0.05)
            .collect();
        dtype::encode(&values, plan.dtype.unwrap(), out).unwrap();
    })
}

fn dlrm(c: &mut Criterion) {
    for dtype in [Dtype::F32, Dtype::F16] {
        let blob = model(dtype);
        let ranker = Blob::parse(&blob).unwrap().ranker().unwrap();
        let mut group =
            c.benchmark_group(format!("dlrm/{}/{}", dtype.name(), ranker.tier().name()));
        for count in [1, 128] {
            let dense: Vec<f32> = (0..count * 13).map(|i| (i * 31 % 17) as f32 / 17.0).collect();
            let indices: Vec<Vec<u32>> = (0..TABLES as u32)
                .map(|t| (0..count as u32).map(|i| (i * 7919 + t * 613) % ROWS).collect())
                .collect();
            let offsets: Vec<u32> = (0..=count as u32).collect();
            let bags: Vec<_> =
                indices.iter().map(|indices| Bags::new(indices, &offsets).unwrap()).collect();
            let mut workspace = vec![0.0; ranker.workspace_len(count)];
            let mut scores = vec![0.0; count];
            ranker.logits(&dense, &bags, &mut scores, &mut workspace).unwrap();
            let scalar = ranker.with_tier(Tier::from_name("scalar").unwrap());
            let mut expected = vec![0.0; count];
            scalar.logits(&dense, &bags, &mut expected, &mut workspace).unwrap();
            let close = |(x, y): (&f32, &f32)| (x - y).abs() <= 1e-4 * y.abs().max(1.0);
            assert!(scores.iter().zip(&expected).all(close), "{scores:?} is not {expected:?}");

            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("score {count}"), |b| {
                b.iter(|| {
                    ranker.score(black_box(&dense), &bags, &mut scores, &mut workspace).unwrap()
                });
            });
            if count > 1 {
                let one: Vec<_> = indices
                    .iter()
                    .map(|indices| Bags::new(&indices[..1], &[0, 1]).unwrap())
                    .collect();
                let halves = [&one[..TABLES / 2], &bags[TABLES / 2..]].concat();
                group.bench_function(format!("rank {count}"), |b| {
                    b.iter(|| {
                        ranker
                            .rank(black_box(&dense[..13]), &halves, &mut scores, &mut workspace)
                            .unwrap()
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, dlrm);
criterion_main!(benches);
