//! Parses any bytes as a blob, and uses the blobs that parse. Run `cargo +nightly fuzz run blob` in
//! the root of the repository; put blobs into `fuzz/corpus/blob/` to start from.
//!
//! The bytes are parsed once unchanged, and once with the right length and checksums: a fuzzer does
//! not guess these, and would never reach the code behind their checks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ttrec::{
    AlignedBuf, Bags, Blob, LookupError, Pooling, Ranker, Table, cache::RowCache, repr::Weights,
};

#[path = "../reseal.rs"]
mod reseal;

/// Multiply-adds and elements above which a table is not used: a few bytes can ask for rows of
/// 65,536 columns and ranks, which is slow but not wrong.
const MAX_WORK: u64 = 1 << 18;
/// What outputs and scratch hold before a call.
const POISON: f32 = 12345.678;

fuzz_target!(|bytes: &[u8]| {
    let mut buf = AlignedBuf::from_slice(bytes);
    use_blob(&buf, bytes);
    if reseal::reseal(&mut buf).is_some() {
        use_blob(&buf, bytes);
    }
});

fn use_blob(buf: &[u8], noise: &[u8]) {
    let blob = match Blob::parse(buf) {
        Ok(blob) => blob,
        Err(error) => {
            // Messages have arithmetic of their own.
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(blob.as_bytes().len(), buf.len());
    if let Err(error) = blob.verify_payload() {
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(blob.tables().count(), blob.num_tables());
    let mut previous = "";
    for table in blob.tables() {
        assert!(previous < table.name(), "names are not in order");
        previous = table.name();
        assert_eq!(blob.table(table.name()).map(|same| same.name()), Ok(table.name()));
        for section in table.sections() {
            assert!(section.offset + section.len <= buf.len() as u64);
        }
        let work = match table.data().weights() {
            Weights::Tt(tt) => tt.shape().flops_left_to_right(),
            Weights::Projected(projected) => 2 * projected.projection().len() as u64,
            Weights::Codebook(codebook) => {
                let entries = codebook.num_books() * codebook.entry_len();
                (entries + 2 * codebook.projection().map_or(0, |matrix| matrix.len())) as u64
            }
            _ => 0,
        };
        if work.max(table.workspace_len(1) as u64).max(table.embedding_dim() as u64) <= MAX_WORK {
            use_table(&table, noise);
        }
    }
    if let Ok(ranker) = blob.ranker() {
        let work = ranker.layers().map(|layer| layer.weights.len() as u64).sum::<u64>();
        if work.max(ranker.workspace_len(1) as u64) <= MAX_WORK {
            use_ranker(&ranker, noise);
        }
    }
}

/// Scores three samples with the least and the best workspace. Each must have the same score alone,
/// and as the candidate of one user.
fn use_ranker(ranker: &Ranker<'_>, noise: &[u8]) {
    let num_dense = ranker.num_dense();
    let dense: Vec<f32> = (0..3 * num_dense)
        .zip(noise.iter().cycle())
        .map(|(_, &byte)| f32::from(byte) - 99.5)
        .collect();
    let dense = if noise.is_empty() {
        vec![1.0; 3 * num_dense]
    } else {
        dense
    };
    let indices: Vec<_> = ranker
        .tables()
        .map(|table| [0, table.num_embeddings() - 1, table.num_embeddings() / 2])
        .collect();
    let bags: Vec<_> = indices
        .iter()
        .map(|indices| Bags::new(indices, &[0, 2, 2, 3]).expect("three bags"))
        .collect();
    let score = |dense: &[f32], bags: &[Bags<'_>], count, len| {
        let mut out = vec![POISON; count];
        ranker
            .logits(dense, bags, &mut out, &mut vec![POISON; len])
            .expect("good arguments");
        out
    };
    let least = ranker.workspace_len(1);
    let found = score(&dense, &bags, 3, least);
    assert_same(&found, &score(&dense, &bags, 3, ranker.workspace_len(3)));
    let first: Vec<_> = indices
        .iter()
        .map(|indices| Bags::new(&indices[..2], &[0, 2]).expect("a bag"))
        .collect();
    assert_same(&found[..1], &score(&dense[..num_dense], &first, 1, least));
    let mut ranked = [POISON; 3];
    ranker
        .rank(&dense[..num_dense], &first, &mut ranked, &mut vec![POISON; least])
        .expect("good arguments");
    let mut scores = [POISON; 1];
    ranker
        .score(&dense[..num_dense], &first, &mut scores, &mut vec![POISON; least])
        .expect("good arguments");
    assert_same(&ranked, &[scores[0]; 3]);
    let far: Vec<_> = ranker.tables().map(|table| [table.num_embeddings()]).collect();
    let far: Vec<_> =
        far.iter().map(|indices| Bags::new(indices, &[0, 1]).expect("a bag")).collect();
    let refused = ranker.score(&dense[..num_dense], &far, &mut scores, &mut vec![POISON; least]);
    assert_eq!(refused.is_err(), ranker.num_tables() > 0);
}

fn use_table(table: &Table<'_>, noise: &[u8]) {
    let (rows, dim) = (table.num_embeddings(), table.embedding_dim());
    assert!(rows > 0 && dim > 0);

    let overrides = table.data().overrides();
    let overridden = overrides.and_then(|overrides| overrides.ids().first().copied());
    for row in [0, rows / 2, rows - 1, overridden.unwrap_or(0).min(rows - 1)] {
        let expected = lookup(table, row);
        // Sum, mean and maximum of one row are that row.
        for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Max] {
            assert_same(
                &bag(table, &[row], &[0, 1], None, pooling).expect("a row in range"),
                &expected,
            );
        }
    }

    // A bag of one row, an empty bag and a bag of three.
    let indices = [rows - 1, 0, rows - 1, rows / 2];
    let offsets = [0, 0, 1, 4];
    for (pooling, weights) in [
        (Pooling::Sum, None),
        (Pooling::Mean, None),
        (Pooling::Max, None),
        (Pooling::Sum, Some(&[1.0, -0.5, f32::MAX, f32::NAN][..])),
    ] {
        let pooled = bag(table, &indices, &offsets, weights, pooling).expect("rows in range");
        assert!(pooled[..dim].iter().all(|&x| x == 0.0), "an empty bag is zeros");
        assert_same(&pooled[dim..2 * dim], &lookup(table, rows - 1));
    }

    batch(table, noise);
    refusals(table);

    // Bags made of the input itself: refused or pooled, whichever is right.
    let mut indices: Vec<u64> =
        noise.iter().rev().take(16).map(|&byte| u64::from(byte) % (rows + 1)).collect();
    if let Some(last) = indices.last_mut() {
        *last = last.wrapping_mul(rows);
    }
    let offsets: Vec<u64> =
        noise.iter().rev().skip(16).take(4).map(|&byte| u64::from(byte) % 18).collect();
    let well_formed = offsets.first() == Some(&0)
        && offsets.is_sorted()
        && offsets.last().is_some_and(|&last| last == indices.len() as u64);
    assert_eq!(Bags::new(&indices, &offsets).is_ok(), well_formed);
    let in_range = indices.iter().all(|&index| index < rows);
    if well_formed {
        assert_eq!(bag(table, &indices, &offsets, None, Pooling::Mean).is_ok(), in_range);
    }
}

/// Pools more lookups than are sorted by insertion, of few prefixes and of any. A bag must be the
/// same in a batch with the best workspace and alone with the least.
fn batch(table: &Table<'_>, noise: &[u8]) {
    let (rows, dim) = (table.num_embeddings(), table.embedding_dim());
    let indices: Vec<u64> = (0..72u64)
        .zip(noise.iter().rev().cycle())
        .map(|(at, &byte)| {
            u64::from(byte % 4) + if byte < 128 { 0 } else { u64::from(byte) * at * at }
        })
        .map(|row| row % rows)
        .collect();
    let offsets = [0, 3, 3, 72];
    let bags = Bags::new(&indices, &offsets).expect("72 lookups");
    let mut out = vec![POISON; bags.len() * dim];
    table
        .pool(&bags, Pooling::Sum, &mut out, &mut vec![POISON; table.workspace_len(72)])
        .expect("rows in range");
    for (found, bounds) in out.chunks_exact(dim).zip(offsets.windows(2)) {
        let indices = &indices[bounds[0] as usize..bounds[1] as usize];
        let alone = bag(table, indices, &[0, indices.len() as u64], None, Pooling::Sum)
            .expect("rows in range");
        assert_same(found, &alone);
    }

    let mut memory = vec![POISON; RowCache::memory_len(table, 1)];
    let mut cache = RowCache::new(table, &mut memory).expect("memory for a set");
    cache.record(&indices);
    cache.refresh(&mut vec![0.0; table.workspace_len(1)]).expect("a workspace");
    let cached = cache.table();
    for &row in &indices[..8] {
        assert_same(&lookup(&cached, row), &lookup(table, row));
    }
    let pool = |table: &Table<'_>, bags: &Bags<'_>, workspace_len: usize| {
        let mut out = vec![POISON; bags.len() * dim];
        table
            .pool(bags, Pooling::Sum, &mut out, &mut vec![POISON; workspace_len])
            .expect("rows in range");
        out
    };
    let (least, most) = (table.workspace_len(1), table.workspace_len(72));
    assert_same(&pool(&cached, &bags.sequential(), least), &pool(table, &bags.sequential(), least));
    assert_same(&pool(&cached, &bags, least), &pool(&cached, &bags, most));
}

/// Calls that must be refused, with their errors, and must leave the output unmodified.
fn refusals(table: &Table<'_>) {
    let (rows, dim) = (table.num_embeddings(), table.embedding_dim());
    let mut out = vec![POISON; dim + 1];
    let mut workspace = vec![0.0; table.workspace_len(1)];
    for row in [rows, u64::MAX] {
        let error = table.lookup(row, &mut out[..dim], &mut workspace);
        assert_eq!(
            error,
            Err(LookupError::IndexOutOfRange { position: 0, index: row, num_embeddings: rows })
        );
        let error = bag(table, &[0, row], &[0, 1, 2], None, Pooling::Sum);
        assert_eq!(
            error,
            Err(LookupError::IndexOutOfRange { position: 1, index: row, num_embeddings: rows })
        );
    }
    for len in [dim - 1, dim + 1] {
        let error = table.lookup(0, &mut out[..len], &mut workspace);
        assert_eq!(error, Err(LookupError::OutputLen { found: len, expected: dim }));
    }
    if let Some(short) = workspace.len().checked_sub(1) {
        let error = table.lookup(0, &mut out[..dim], &mut workspace[..short]);
        assert_eq!(error, Err(LookupError::WorkspaceLen { found: short, expected: short + 1 }));
    }
    let error = bag(table, &[0], &[0, 1], Some(&[1.0]), Pooling::Max);
    assert_eq!(error, Err(LookupError::WeightsPooling));
    assert!(out.iter().all(|&x| x == POISON), "a refused lookup wrote");
}

/// Looks up `row` twice, with different values in output and workspace before: they must not
/// matter.
fn lookup(table: &Table<'_>, row: u64) -> Vec<f32> {
    let [first, second] = [0.0, POISON].map(|before| {
        let mut out = vec![before; table.embedding_dim()];
        let mut workspace = vec![before; table.workspace_len(1)];
        table.lookup(row, &mut out, &mut workspace).expect("a row in range");
        out
    });
    assert_same(&first, &second);
    first
}

fn bag(
    table: &Table<'_>,
    indices: &[u64],
    offsets: &[u64],
    weights: Option<&[f32]>,
    pooling: Pooling,
) -> Result<Vec<f32>, LookupError> {
    let mut bags = Bags::new(indices, offsets).expect("valid offsets");
    if let Some(weights) = weights {
        bags = bags.with_per_sample_weights(weights).expect("a weight each");
    }
    let mut out = vec![POISON; bags.len() * table.embedding_dim()];
    let result = table.pool(&bags, pooling, &mut out, &mut vec![POISON; table.workspace_len(1)]);
    if result.is_err() {
        assert!(out.iter().all(|&x| x == POISON), "a refused bag wrote");
    }
    result.map(|()| out)
}

/// Equal as numbers; payload bytes may well say NaN.
fn assert_same(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            found == expected || (found.is_nan() && expected.is_nan()),
            "{found} is not {expected}"
        );
    }
}
