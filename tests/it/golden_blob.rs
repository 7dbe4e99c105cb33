//! Blobs written once and kept: this reader still reads them, with and without the `alloc` feature,
//! and their rows are what the oracle makes of their bytes.

use crate::support::{
    format,
    oracle::{Approx, Mode, Reference, pool},
    rng::Rng,
    tiers,
};
use ttrec::{
    AlignedBytes, Bags, Blob, LookupError, NoSuchTable, Pooling, blob::Rule, include_blob,
};

static TWO_TABLES: &AlignedBytes = include_blob!("../golden/two_tables.ttr");
/// Codes and a projection, from an index of FAISS.
#[cfg(feature = "codebooks")]
static CODES: &AlignedBytes = include_blob!("../golden/codes.ttr");

fn blobs() -> Vec<&'static [u8]> {
    vec![
        TWO_TABLES,
        #[cfg(feature = "codebooks")]
        CODES,
    ]
}

#[test]
fn it_holds_two_tables_and_verifies() {
    let blob = Blob::parse(TWO_TABLES).unwrap();
    blob.verify_payload().unwrap();
    let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
    assert_eq!(names, ["item", "user"]);
    let item = blob.table("item").unwrap();
    assert_eq!((item.num_embeddings(), item.embedding_dim()), (4000, 16));
    assert_eq!(blob.table("items").map(|_| ()), Err(NoSuchTable));
}

#[test]
fn every_row_agrees_with_the_oracle() {
    blobs().into_iter().for_each(assert_rows);
}

fn assert_rows(bytes: &[u8]) {
    let blob = Blob::parse(bytes).unwrap();
    for (position, table) in blob.tables().enumerate() {
        let reference = Reference::new(bytes, position);
        assert_eq!(table.name(), format::name_of(bytes, position));
        let dim = table.embedding_dim();
        let mut workspace = vec![f32::NAN; table.workspace_len(1)];
        let mut previous = vec![Approx::default(); dim];
        let mut told_apart = 0;
        for row in 0..table.num_embeddings() {
            let expected = reference.row(row);
            let mut found = Vec::new();
            for tier in tiers::available() {
                let mut out = vec![0.0; dim];
                table.with_tier(tier).lookup(row, &mut out, &mut workspace).unwrap();
                for (j, (&x, y)) in out.iter().zip(&expected).enumerate() {
                    assert!(
                        y.admits(x),
                        "{} {} row {row} column {j}: {x} is not {y:?}",
                        table.name(),
                        tier.name()
                    );
                }
                found.push((tier, out));
            }
            tiers::assert_fused_agree(&found);
            let [(_, best), ..] = &found[..] else { panic!("no tiers") };
            told_apart += u64::from(best.iter().zip(&previous).any(|(&x, y)| !y.admits(x)));
            previous = expected;
        }
        assert_eq!(
            told_apart,
            table.num_embeddings(),
            "the bound tells every row from the one before it"
        );
    }
}

#[test]
fn bags_agree_with_the_oracle_in_every_mode() {
    blobs().into_iter().for_each(assert_bags);
}

fn assert_bags(bytes: &[u8]) {
    let blob = Blob::parse(bytes).unwrap();
    let mut rng = Rng::new(11);
    for (position, table) in blob.tables().enumerate() {
        let reference = Reference::new(bytes, position);
        let dim = table.embedding_dim();
        let indices: Vec<u32> = (0..40).map(|_| rng.below(table.num_embeddings()) as u32).collect();
        let weights: Vec<f32> =
            indices.iter().map(|_| rng.below(100) as f32 / 32.0 - 1.5).collect();
        let offsets = [0u32, 1, 1, 4, 39, 40, 40];
        let rows: Vec<Vec<Approx>> = indices.iter().map(|&row| reference.row(row.into())).collect();
        let bags = Bags::new(&indices, &offsets).unwrap();
        let weighted = bags.with_per_sample_weights(&weights).unwrap();
        let mut out = vec![f32::NAN; bags.len() * dim];
        let mut workspace = vec![f32::NAN; table.workspace_len(1)];
        for mode in Mode::ALL {
            let (bags, pooling) = match mode {
                Mode::Sum => (bags, Pooling::Sum),
                Mode::Weighted => (weighted, Pooling::Sum),
                Mode::Mean => (bags, Pooling::Mean),
                Mode::Max => (bags, Pooling::Max),
            };
            for tier in tiers::available() {
                table.with_tier(tier).pool(&bags, pooling, &mut out, &mut workspace).unwrap();
                for (bag, found) in offsets.windows(2).zip(out.chunks(dim)) {
                    let range = bag[0] as usize..bag[1] as usize;
                    let rows: Vec<&[Approx]> =
                        rows[range.clone()].iter().map(|row| &row[..]).collect();
                    for (&x, y) in found.iter().zip(pool(&rows, &weights[range.clone()], mode, dim))
                    {
                        assert!(
                            y.admits(x),
                            "{} {} {mode:?} {range:?}: {x} is not {y:?}",
                            table.name(),
                            tier.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rows_past_the_last_are_refused_and_nothing_is_written() {
    for table in Blob::parse(TWO_TABLES).unwrap().tables() {
        let num_embeddings = table.num_embeddings();
        let mut out = vec![-1.5; table.embedding_dim()];
        let mut workspace = vec![0.0; table.workspace_len(1)];
        let expected = Err(LookupError::IndexOutOfRange {
            position: 0,
            index: num_embeddings,
            num_embeddings,
        });
        assert_eq!(table.lookup(num_embeddings, &mut out, &mut workspace), expected);
        assert!(out.iter().all(|&x| x == -1.5));
    }
}

#[test]
fn every_changed_byte_of_the_head_is_noticed_in_place() {
    /// Room for the blob, aligned without the help of `alloc`.
    #[repr(align(64))]
    struct Copy([u8; TWO_TABLES_LEN]);
    const TWO_TABLES_LEN: usize = include_bytes!("../golden/two_tables.ttr").len();

    let mut copy = Box::new(Copy([0; TWO_TABLES_LEN]));
    copy.0.copy_from_slice(TWO_TABLES);
    assert!(Blob::parse(&copy.0).is_ok());
    for at in 0..format::head_len(TWO_TABLES) {
        copy.0[at] ^= 0x10;
        assert!(Blob::parse(&copy.0).is_err(), "byte {at}");
        copy.0[at] ^= 0x10;
    }
    for at in format::head_len(TWO_TABLES)..TWO_TABLES_LEN {
        copy.0[at] ^= 0x10;
        // Every 61st is enough: each check reads the whole payload.
        if at % 61 == 0 {
            let blob = Blob::parse(&copy.0).unwrap();
            assert!(
                blob.verify_payload().is_err_and(|error| error.rule() == Rule::Checksum),
                "byte {at}"
            );
        }
        copy.0[at] ^= 0x10;
    }
}
