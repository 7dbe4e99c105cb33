//! Scores agree with the f64 oracle on every tier, in any batch and with any workspace; one user's
//! candidates score as the same samples would in a batch, bit for bit; wrong arguments are refused
//! and change nothing.

use crate::support::{
    format,
    model::{Bag, Model},
    random::{self, Values, build_model, one_of_each},
    rng::Rng,
    tiers,
};
use ttrec::{
    AlignedBuf, Bags, Blob, LookupError, NoModel, Ranker, ScoreError, TtShape,
    blob::{Interaction, TableSpec, WeightsSpec},
    dtype::Dtype,
    repr::Combine,
};

const SENTINEL: f32 = -7.0e37;

/// Samples as the oracle takes them: dense features, and a bag per table.
struct Samples {
    dense: Vec<f32>,
    bags: Vec<Vec<Bag>>,
}

/// Bags of one table, as the library takes them.
struct TableBags {
    indices: Vec<u32>,
    offsets: Vec<u32>,
    weights: Option<Vec<f32>>,
}

impl TableBags {
    fn new<'b>(bags: impl Iterator<Item = &'b Bag>) -> Self {
        let mut new = Self { indices: Vec::new(), offsets: vec![0], weights: None };
        for Bag { indices, weights } in bags {
            new.indices.extend(indices.iter().map(|&index| index as u32));
            new.offsets.push(new.indices.len() as u32);
            if let Some(weights) = weights {
                new.weights.get_or_insert_default().extend(weights);
            }
        }
        new
    }

    fn bags(&self) -> Bags<'_> {
        let bags = Bags::new(&self.indices, &self.offsets).unwrap();
        match &self.weights {
            Some(weights) => bags.with_per_sample_weights(weights).unwrap(),
            None => bags,
        }
    }
}

impl Samples {
    /// `count` samples with bags of 0 to 3 indices, those of every third table weighted.
    fn random(model: &Model<'_>, count: usize, rng: &mut Rng) -> Self {
        let number = |rng: &mut Rng| rng.below(65) as f32 / 32.0 - 1.0;
        let dense = (0..count * model.num_dense()).map(|_| number(rng)).collect();
        let bags = (0..count).map(|_| {
            let bag = |table| {
                let indices: Vec<_> =
                    (0..rng.below(4)).map(|_| rng.below(model.num_embeddings(table))).collect();
                let weights =
                    (table % 3 == 2).then(|| indices.iter().map(|_| number(rng)).collect());
                Bag { indices, weights }
            };
            (0..model.num_tables()).map(bag).collect()
        });
        Self { dense, bags: bags.collect() }
    }

    fn by_table(&self, num_tables: usize) -> Vec<TableBags> {
        (0..num_tables)
            .map(|table| TableBags::new(self.bags.iter().map(|bags| &bags[table])))
            .collect()
    }

    fn logits(&self, ranker: &Ranker<'_>, workspace_len: usize) -> Vec<f32> {
        let tables = self.by_table(ranker.num_tables());
        let bags: Vec<_> = tables.iter().map(TableBags::bags).collect();
        let mut out = vec![SENTINEL; self.bags.len()];
        ranker
            .logits(&self.dense, &bags, &mut out, &mut vec![f32::NAN; workspace_len])
            .unwrap();
        let mut scores = vec![SENTINEL; out.len()];
        ranker
            .score(&self.dense, &bags, &mut scores, &mut vec![f32::NAN; workspace_len])
            .unwrap();
        for (&logit, score) in out.iter().zip(scores) {
            let exact = 1.0 / (1.0 + (-f64::from(logit)).exp());
            assert!((f64::from(score) - exact).abs() <= 2e-7 * exact + 1e-38, "{score} of {logit}");
        }
        out
    }

    fn sample(&self, num_dense: usize, sample: usize) -> Self {
        let dense = self.dense[sample * num_dense..][..num_dense].to_vec();
        Self { dense, bags: vec![self.bags[sample].clone()] }
    }
}

fn dense(name: &str, num_embeddings: u64, embedding_dim: usize, dtype: Dtype) -> TableSpec {
    TableSpec::new(name, WeightsSpec::Dense { num_embeddings, embedding_dim, dtype })
}

/// A model as DLRM's are: tables of every kind around rows of `dim`, `num_tables` of them.
fn like_dlrm(
    dim: usize,
    num_tables: usize,
    hidden: &[usize],
    dtypes: [Dtype; 2],
    seed: u64,
) -> AlignedBuf {
    let tables: Vec<_> = (0..num_tables)
        .map(|t| {
            let (name, n) = (format!("emb_l.{t}"), 20 + 7 * t as u64);
            let weights = match t % 4 {
                0 => {
                    let shape = TtShape::new(n, &[5, 6, 13], &[1, 1, dim as u32], &[3, 4]).unwrap();
                    WeightsSpec::Tt { shape, dtype: Dtype::I8 }
                }
                1 => {
                    let dtype = Dtype::I8;
                    return dense(&name, n, dim, dtype);
                }
                2 => WeightsSpec::QuotientRemainder {
                    num_embeddings: n,
                    num_remainders: 4,
                    columns: [dim; 2],
                    combine: Combine::Mult,
                    dtype: Dtype::F32,
                },
                _ => WeightsSpec::Projected {
                    num_embeddings: n,
                    embedding_dim: dim,
                    rank: 3,
                    dtype: Dtype::F16,
                    projection: Dtype::F32,
                },
            };
            TableSpec::new(name, weights)
        })
        .collect();
    let order: Vec<usize> = (0..num_tables).collect();
    let model = random::model(&order, &[13, 9, dim], hidden, dtypes);
    build_model(&tables, Some(&model), seed, Values::Reals)
}

/// Blobs with models: small ones with every peculiarity, and some as wide as tiles, and a little
/// wider.
fn models() -> Vec<AlignedBuf> {
    let mut blobs: Vec<_> =
        one_of_each().into_iter().filter(|blob| format::num_layers(blob) > 0).collect();
    assert_eq!(blobs.len(), 5);
    for (seed, dtype) in (100..).zip([Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8]) {
        blobs.push(like_dlrm(16, 5, &[33, 16], [dtype; 2], seed));
        blobs.push(like_dlrm(7, 2, &[12], [dtype, Dtype::F32], seed + 50));
    }
    let tables = ["a", "b", "c"].map(|name| dense(name, 11, 6, Dtype::F32));
    // Of three tables, with the bottom's vector and without.
    for (interaction, with_bottom, without) in
        [(Interaction::DotItself, 6 + 10, 6), (Interaction::Cat, 4 * 6, 3 * 6)]
    {
        for (seed, (inputs, bottom)) in (200..).zip([(with_bottom, &[4, 6][..]), (without, &[])]) {
            let widths = [bottom, &[9][..]];
            let model =
                random::interacting(interaction, inputs, &[0, 2, 1], widths, [Dtype::F32; 2]);
            blobs.push(build_model(&tables, Some(&model), seed, Values::Reals));
        }
    }
    blobs
}

#[test]
fn logits_agree_with_the_oracle_on_every_tier() {
    let mut told_apart = 0;
    for (blob, seed) in models().iter().zip(1..) {
        let mut rng = Rng::new(seed);
        let model = Model::new(blob);
        let samples = Samples::random(&model, 9, &mut rng);
        let expected: Vec<_> = samples
            .bags
            .iter()
            .enumerate()
            .map(|(s, bags)| {
                model.logit(&samples.dense[s * model.num_dense()..][..model.num_dense()], bags)
            })
            .collect();
        let mut found = Vec::new();
        for tier in tiers::available() {
            let ranker = Blob::parse(blob).unwrap().ranker().unwrap().with_tier(tier);
            let logits = samples.logits(&ranker, ranker.workspace_len(9));
            for (sample, (&x, y)) in logits.iter().zip(&expected).enumerate() {
                assert!(
                    y.admits(x),
                    "model {seed}, {}, sample {sample}: {x} is not {y:?}",
                    tier.name()
                );
            }
            found.push((tier, logits));
        }
        tiers::assert_fused_agree(&found);
        let (_, logits) = &found[0];
        told_apart += usize::from(logits.iter().any(|&x| !expected[0].admits(x)));
    }
    assert_eq!(told_apart, models().len(), "the bound tells samples apart");
}

#[test]
fn a_score_depends_neither_on_the_batch_nor_on_the_workspace() {
    for (blob, seed) in models().iter().zip(1..) {
        let mut rng = Rng::new(seed);
        let model = Model::new(blob);
        for tier in tiers::available() {
            let ranker = Blob::parse(blob).unwrap().ranker().unwrap().with_tier(tier);
            // More than a tile, and than a group.
            for count in [1, 2, 65, 300] {
                let samples = Samples::random(&model, count, &mut rng);
                let best = samples.logits(&ranker, ranker.workspace_len(count));
                let least = ranker.workspace_len(1);
                for len in [least, least + 1, least + 1000, ranker.workspace_len(7).max(least)] {
                    assert_eq!(samples.logits(&ranker, len), best, "{} of {len}", tier.name());
                }
                for sample in [0, count / 2, count - 1] {
                    let alone = samples.sample(model.num_dense(), sample).logits(&ranker, least);
                    assert_eq!(alone, [best[sample]], "{} sample {sample}", tier.name());
                }
            }
        }
    }
}

#[test]
fn candidates_score_as_in_a_batch_bit_for_bit() {
    let mut shared_all = 0;
    for (blob, seed) in models().iter().zip(1..) {
        let mut rng = Rng::new(seed);
        let model = Model::new(blob);
        let (num_tables, num_dense) = (model.num_tables(), model.num_dense());
        for case in 0..12 {
            let count = [1, 2, 70, 270][case % 4];
            // The first tables are the user's, or any.
            let users: Vec<bool> = match case / 4 {
                0 => (0..num_tables).map(|table| table < num_tables.div_ceil(2)).collect(),
                1 => (0..num_tables).map(|_| rng.one_in(2)).collect(),
                _ => vec![true; num_tables],
            };
            let one_dense = !rng.one_in(3);
            let mut samples = Samples::random(&model, count, &mut rng);
            for sample in 1..count {
                for table in (0..num_tables).filter(|&table| users[table]) {
                    samples.bags[sample][table] = samples.bags[0][table].clone();
                }
                if one_dense {
                    samples.dense.copy_within(..num_dense, sample * num_dense);
                }
            }
            let given = |table: usize| {
                let count = if users[table] { 1 } else { count };
                TableBags::new(samples.bags[..count].iter().map(|bags| &bags[table]))
            };
            let given: Vec<_> = (0..num_tables).map(given).collect();
            let bags: Vec<_> = given.iter().map(TableBags::bags).collect();
            let dense = if one_dense {
                &samples.dense[..num_dense]
            } else {
                &samples.dense
            };
            shared_all += usize::from(one_dense && users.iter().all(|&user| user));
            for tier in tiers::available() {
                let ranker = Blob::parse(blob).unwrap().ranker().unwrap().with_tier(tier);
                let tables = samples.by_table(num_tables);
                let all: Vec<_> = tables.iter().map(TableBags::bags).collect();
                let mut expected = vec![SENTINEL; count];
                let mut workspace = vec![f32::NAN; ranker.workspace_len(count)];
                ranker.score(&samples.dense, &all, &mut expected, &mut workspace).unwrap();
                for len in [ranker.workspace_len(1), workspace.len()] {
                    let mut found = vec![SENTINEL; count];
                    ranker.rank(dense, &bags, &mut found, &mut vec![f32::NAN; len]).unwrap();
                    assert_eq!(
                        found,
                        expected,
                        "{} {count} candidates, user {users:?}",
                        tier.name()
                    );
                }
            }
        }
    }
    assert!(shared_all > 0);
}

#[test]
fn wrong_arguments_are_refused_and_nothing_is_written() {
    let blob = like_dlrm(16, 3, &[8], [Dtype::F32; 2], 5);
    let ranker = Blob::parse(&blob).unwrap().ranker().unwrap();
    assert_eq!((ranker.num_dense(), ranker.num_tables(), ranker.embedding_dim()), (13, 3, 16));
    let names: Vec<_> = ranker.tables().map(|table| table.name().to_owned()).collect();
    assert_eq!(names, ["emb_l.0", "emb_l.1", "emb_l.2"]);
    let good = Bags::new(&[0u32, 1], &[0, 1, 2]).unwrap();
    let one = Bags::new(&[0u32], &[0, 1]).unwrap();
    let three = Bags::new(&[0u32], &[0, 0, 1, 1]).unwrap();
    let far = Bags::new(&[0u32, 27], &[0, 1, 2]).unwrap();
    let len = ranker.workspace_len(1);
    let try_both = |dense: usize, bags: &[Bags<'_>], workspace: usize| {
        let mut results = Vec::new();
        for rank in [false, true] {
            let mut out = [SENTINEL; 2];
            let (dense, mut workspace) = (vec![0.0; dense], vec![0.0; workspace]);
            results.push(if rank {
                ranker.rank(&dense, bags, &mut out, &mut workspace)
            } else {
                ranker.score(&dense, bags, &mut out, &mut workspace)
            });
            let error = results[usize::from(rank)];
            assert_eq!(out.contains(&SENTINEL), error.is_err());
            error.err().into_iter().for_each(|error| assert!(!error.to_string().is_empty()));
        }
        (results[0], results[1])
    };
    let both = |error| (Err(error), Err(error));
    let table = |table, error| ScoreError::Table { table, error };
    assert_eq!(try_both(26, &[good; 3], len), (Ok(()), Ok(())));
    for found in [0, 12, 14, 25, 27, 39] {
        assert_eq!(
            try_both(found, &[good; 3], len),
            both(ScoreError::DenseLen { found, expected: 26 })
        );
    }
    assert_eq!(
        try_both(13, &[good; 3], len),
        (Err(ScoreError::DenseLen { found: 13, expected: 26 }), Ok(()))
    );
    for found in [0, 2, 4] {
        assert_eq!(
            try_both(26, &vec![good; found], len),
            both(ScoreError::BagLists { found, expected: 3 })
        );
    }
    let wrong = LookupError::NumBags { found: 3, expected: 2 };
    assert_eq!(try_both(26, &[good, three, good], len), both(table(1, wrong)));
    let wrong = LookupError::NumBags { found: 1, expected: 2 };
    assert_eq!(try_both(26, &[good, good, one], len), (Err(table(2, wrong)), Ok(())));
    let wrong = LookupError::IndexOutOfRange { position: 1, index: 27, num_embeddings: 27 };
    assert_eq!(try_both(26, &[good, far, good], len), both(table(1, wrong)));
    let wrong = ScoreError::WorkspaceLen { found: len - 1, expected: len };
    assert_eq!(try_both(26, &[good; 3], len - 1), both(wrong));
    assert_eq!(
        Blob::parse(&random::build(&[], 1, Values::Reals)).unwrap().ranker().map(drop),
        Err(NoModel)
    );
}
