//! Models through the C functions: scores have the library's bits. Wrong arguments are refused with
//! their status, and leave the outputs unmodified.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors, or deliberately wrong ones"
)]

use crate::support::{
    DLRM, Open, SENTINEL, Scorer, TWO_TABLES, assert_same, format, i64_bags, last_error, output,
    rng::Rng, scored, text, u32_bags,
};
use std::{collections::BTreeMap, fs, mem, ptr};
use ttrec::{Bags, Blob, Ranker, ScoreError};
use ttrec_capi::{abi::*, ttrec_bags, ttrec_ranker, ttrec_status as Status};

const SCORERS: [Scorer; 3] = [ttrec_ranker_score, ttrec_ranker_logits, ttrec_ranker_rank];

/// `found` is a failure with this status, and its message contains `said`.
#[track_caller]
fn refused<T: std::fmt::Debug>(found: Result<T, Status>, status: Status, said: &str) {
    assert_eq!(found.unwrap_err(), status, "{}", last_error());
    assert!(last_error().contains(said), "{}", last_error());
}

/// Bags of one table, in both types of integers.
struct Lists {
    narrow: [Vec<u32>; 2],
    wide: [Vec<i64>; 2],
    weights: Option<Vec<f32>>,
}

impl Lists {
    /// `num_bags` bags of up to three of `rows` rows, with weights or without.
    fn random(num_bags: usize, rows: u64, weighted: bool, rng: &mut Rng) -> Self {
        let (mut indices, mut offsets) = (Vec::new(), vec![0]);
        for _ in 0..num_bags {
            indices.extend((0..rng.below(4)).map(|_| rng.below(rows) as u32));
            offsets.push(indices.len() as u32);
        }
        let weights =
            weighted.then(|| indices.iter().map(|_| rng.below(65) as f32 / 32.0 - 1.0).collect());
        let wide = |list: &[u32]| list.iter().map(|&x| i64::from(x)).collect();
        Self { wide: [wide(&indices), wide(&offsets)], narrow: [indices, offsets], weights }
    }

    fn u32(&self) -> ttrec_bags {
        *u32_bags(&self.narrow[0], &self.narrow[1], self.weights.as_deref())
    }

    fn i64(&self) -> ttrec_bags {
        *i64_bags(&self.wide[0], &self.wide[1], self.weights.as_deref())
    }

    fn rust(&self) -> Bags<'_> {
        let bags = Bags::new(&self.narrow[0], &self.narrow[1]).unwrap();
        self.weights
            .as_ref()
            .map_or(Ok(bags), |weights| bags.with_per_sample_weights(weights))
            .unwrap()
    }
}

/// Dense features and bags: of one user and `num_samples` candidates if `shared`, the user's being
/// those of every second table.
fn samples(
    ranker: &Ranker<'_>,
    num_samples: usize,
    shared: bool,
    rng: &mut Rng,
) -> (Vec<f32>, Vec<Lists>) {
    let num_dense = if shared { 1 } else { num_samples } * ranker.num_dense();
    let dense = (0..num_dense).map(|_| rng.below(65) as f32 / 32.0 - 1.0).collect();
    let lists = ranker.tables().enumerate().map(|(position, table)| {
        let num_bags = if shared && position % 2 == 0 { 1 } else { num_samples };
        Lists::random(num_bags, table.num_embeddings(), position == 1, rng)
    });
    (dense, lists.collect())
}

/// Three samples of one row per bag.
fn three() -> (Vec<f32>, Vec<ttrec_bags>) {
    static INDICES: [u32; 3] = [3, 0, 39];
    static OFFSETS: [u32; 4] = [0, 1, 2, 3];
    (vec![0.5; 3 * 13], vec![*u32_bags(&INDICES, &OFFSETS, None); 4])
}

/// The library's own function for each of [`SCORERS`].
fn expected(
    scorer: usize,
    ranker: &Ranker<'_>,
    dense: &[f32],
    lists: &[Lists],
    num_samples: usize,
) -> Vec<f32> {
    let bags: Vec<_> = lists.iter().map(Lists::rust).collect();
    let (mut out, mut workspace) =
        (vec![SENTINEL; num_samples], vec![0.0; ranker.workspace_len(num_samples)]);
    let done: Result<(), ScoreError> = match scorer {
        0 => ranker.score(dense, &bags, &mut out, &mut workspace),
        1 => ranker.logits(dense, &bags, &mut out, &mut workspace),
        _ => ranker.rank(dense, &bags, &mut out, &mut workspace),
    };
    done.unwrap();
    out
}

#[test]
fn a_model_is_described_and_scored_as_by_the_library() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.ttr");
    fs::write(&path, &**DLRM).unwrap();
    let blob = Blob::parse(DLRM).unwrap();
    let rust = blob.ranker().unwrap();
    let mut rng = Rng::new(1);
    for open in
        [Open::borrowed(DLRM).unwrap(), Open::copied(DLRM).unwrap(), Open::mapped(&path).unwrap()]
    {
        let ranker = open.ranker().unwrap();
        unsafe {
            assert_eq!(ttrec_ranker_num_dense(ranker), 13);
            assert_eq!(ttrec_ranker_num_tables(ranker), 4);
            assert_eq!(ttrec_ranker_embedding_dim(ranker), 16);
            assert_eq!(ttrec_ranker_workspace_len(ranker), rust.workspace_len(1));
            for n in [0, 1, 100, 100_000, usize::MAX] {
                assert_eq!(ttrec_ranker_batch_workspace_len(ranker, n), rust.workspace_len(n));
            }
            for (position, table) in rust.tables().enumerate() {
                let found = ttrec_ranker_table_at(ranker, position);
                assert_eq!(text(ttrec_table_name(found)), table.name());
                assert_eq!(found, open.table(table.name()), "one of the blob's own");
            }
            for position in [4, 5, usize::MAX] {
                assert!(ttrec_ranker_table_at(ranker, position).is_null());
                assert_eq!(last_error(), format!("the model has no table {position}: it has 4"));
            }
        }
        for num_samples in [0, 1, 2, 65, 300] {
            for (number, scorer) in SCORERS.into_iter().enumerate() {
                let (dense, lists) = samples(&rust, num_samples, number == 2, &mut rng);
                let expected = expected(number, &rust, &dense, &lists, num_samples);
                let narrow: Vec<_> = lists.iter().map(Lists::u32).collect();
                let wide: Vec<_> = lists.iter().map(Lists::i64).collect();
                assert_same(
                    &scored(scorer, ranker, &dense, &narrow, num_samples).unwrap(),
                    &expected,
                );
                assert_same(
                    &scored(scorer, ranker, &dense, &wide, num_samples).unwrap(),
                    &expected,
                );
                assert!(number == 1 || expected.iter().all(|score| (0.0..=1.0).contains(score)));
            }
        }
    }
}

#[test]
fn a_blob_of_tables_has_no_model() {
    let open = Open::borrowed(TWO_TABLES).unwrap();
    refused(open.ranker(), Status::NoModel, "no model");
}

#[test]
fn null_is_refused() {
    let open = Open::borrowed(DLRM).unwrap();
    let mut ranker = ptr::null();
    let status = |status: Status| if status == Status::Ok { Ok(()) } else { Err(status) };
    unsafe {
        refused(status(ttrec_blob_ranker(ptr::null(), &mut ranker)), Status::Null, "blob");
        refused(status(ttrec_blob_ranker(open.0, ptr::null_mut())), Status::Null, "ranker");
        assert!(ranker.is_null());
        assert_eq!(ttrec_ranker_num_dense(ranker), 0);
        assert_eq!(ttrec_ranker_num_tables(ranker), 0);
        assert_eq!(ttrec_ranker_embedding_dim(ranker), 0);
        assert_eq!(ttrec_ranker_workspace_len(ranker), 0);
        assert_eq!(ttrec_ranker_batch_workspace_len(ranker, 7), 0);
        assert!(ttrec_ranker_table_at(ranker, 0).is_null());
    }
    let ranker = open.ranker().unwrap();
    let enough = unsafe { ttrec_ranker_workspace_len(ranker) };
    let (dense, bags) = three();
    for scorer in SCORERS {
        refused(scored(scorer, ptr::null(), &dense, &bags, 3), Status::Null, "ranker");
        for what in ["dense", "bags", "out", "workspace", ""] {
            let found = output(3, enough, |out, len, workspace, workspace_len| unsafe {
                let dense_ptr = if what == "dense" { ptr::null() } else { dense.as_ptr() };
                let bags_ptr = if what == "bags" { ptr::null() } else { bags.as_ptr() };
                let out = if what == "out" { ptr::null_mut() } else { out };
                let workspace = if what == "workspace" {
                    ptr::null_mut()
                } else {
                    workspace
                };
                scorer(
                    ranker,
                    dense_ptr,
                    dense.len(),
                    bags_ptr,
                    4,
                    out,
                    len,
                    workspace,
                    workspace_len,
                )
            });
            if what.is_empty() {
                assert!(found.is_ok())
            } else {
                refused(found, Status::Null, what)
            }
        }
        for (what, change) in [
            ("indices", (|bags| bags.indices = ptr::null()) as fn(&mut ttrec_bags)),
            ("offsets", |bags| bags.offsets = ptr::null()),
        ] {
            let mut bags = bags.clone();
            change(&mut bags[3]);
            refused(scored(scorer, ranker, &dense, &bags, 3), Status::Null, what);
        }
    }
}

#[test]
fn misaligned_pointers_are_refused() {
    let open = Open::borrowed(DLRM).unwrap();
    let ranker = open.ranker().unwrap();
    let enough = unsafe { ttrec_ranker_workspace_len(ranker) };
    let (dense, bags) = three();
    for scorer in SCORERS {
        for by in 1..mem::align_of::<ttrec_bags>() {
            // Longer by some elements, so that a shift by whole elements stays within the memory.
            let call = |what: &str| {
                let shift = |name: &str| if name == what { by } else { 0 };
                output(8, enough + 8, |out, _, workspace, _| unsafe {
                    scorer(
                        ranker.wrapping_byte_add(shift("ranker")),
                        dense.as_ptr().wrapping_byte_add(shift("dense")),
                        if what == "dense" { 13 } else { dense.len() },
                        bags.as_ptr().wrapping_byte_add(shift("bags")),
                        4,
                        out.wrapping_byte_add(shift("out")),
                        3,
                        workspace.wrapping_byte_add(shift("workspace")),
                        enough,
                    )
                })
            };
            for what in ["ranker", "bags"] {
                refused(call(what), Status::Misaligned, what);
            }
            for what in ["dense", "out", "workspace"] {
                if by % mem::align_of::<f32>() != 0 {
                    refused(call(what), Status::Misaligned, what);
                } else if what != "dense" {
                    assert!(call(what).is_ok());
                }
            }
            let mut bags = bags.clone();
            bags[2].indices = bags[2].indices.wrapping_byte_add(by);
            bags[2].num_indices -= by.div_ceil(4);
            let found = scored(scorer, ranker, &dense, &bags, 3);
            if by % 4 != 0 {
                refused(found, Status::Misaligned, "indices");
            } else {
                refused(found, Status::Offsets, "table \"emb_l.2\": offset");
            }
        }
    }
}

#[test]
fn wrong_lengths_and_counts_are_refused() {
    let open = Open::borrowed(DLRM).unwrap();
    let ranker = open.ranker().unwrap();
    let enough = unsafe { ttrec_ranker_workspace_len(ranker) };
    let (dense, bags) = three();
    let with = |scorer: Scorer,
                dense_len: usize,
                num_tables: usize,
                out_len: usize,
                workspace_len: usize| {
        output(3, enough, |out, _, workspace, _| unsafe {
            let (dense, bags) = (dense.as_ptr(), bags.as_ptr());
            scorer(
                ranker,
                dense,
                dense_len,
                bags,
                num_tables,
                out,
                out_len,
                workspace,
                workspace_len,
            )
        })
    };
    for (number, scorer) in SCORERS.into_iter().enumerate() {
        assert!(with(scorer, 39, 4, 3, enough).is_ok());
        for len in [0, 1, 12, 14, 26, 38] {
            refused(with(scorer, len, 4, 3, enough), Status::Length, "dense");
        }
        // One user's features are as good as everybody's, but only for ranking.
        assert_eq!(with(scorer, 13, 4, 3, enough).is_ok(), number == 2);
        for num_tables in [0, 1, 3, 5, 1 << 20, usize::MAX] {
            refused(with(scorer, 39, num_tables, 3, enough), Status::Length, "lists of bags");
        }
        for len in [0, 1, enough - 1] {
            refused(with(scorer, 39, 4, 3, len), Status::Length, "workspace of ");
        }
        for len in [usize::MAX, usize::MAX / 4 + 1, isize::MAX as usize / 4 + 1] {
            refused(with(scorer, 39, 4, len, enough), Status::Length, "out: ");
            refused(with(scorer, 39, 4, 3, len), Status::Length, "workspace: ");
            refused(with(scorer, len, 4, 3, enough), Status::Length, "dense: ");
        }
        // Outputs of as many samples as there are neither bags nor features of.
        for len in [0, 1, 2] {
            refused(with(scorer, 39, 4, len, enough), Status::Length, "dense");
            let status = with(scorer, 13 * len, 4, len, enough).unwrap_err();
            assert_eq!(status, Status::NumBags, "{}", last_error());
            assert!(last_error().contains("table \"emb_l.0\": 3 bags"), "{}", last_error());
        }
        let changed = |change: &dyn Fn(&mut ttrec_bags)| {
            let mut bags = bags.clone();
            change(&mut bags[3]);
            scored(scorer, ranker, &dense, &bags, 3)
        };
        for len in [usize::MAX, usize::MAX / 4 + 1] {
            refused(changed(&|bags| bags.num_indices = len), Status::Length, "indices: ");
            refused(changed(&|bags| bags.num_bags = len), Status::Length, "offsets: ");
        }
        let two = [0u32, 1, 3];
        refused(
            changed(&|bags| bags.num_indices = 2),
            Status::Offsets,
            "table \"emb_l.3\": offset",
        );
        let said = "table \"emb_l.3\": 2 bags";
        refused(
            changed(&|bags| (bags.num_bags, bags.offsets) = (2, two.as_ptr().cast())),
            Status::NumBags,
            said,
        );
        refused(changed(&|bags| bags.index_type = 1), Status::Argument, "another index_type");
        refused(changed(&|bags| bags.index_type = 9), Status::Argument, "another index_type");
        let mut bags = bags.clone();
        bags.iter_mut().for_each(|bags| bags.index_type = 9);
        refused(scored(scorer, ranker, &dense, &bags, 3), Status::Argument, "index_type 9");
    }
}

#[test]
fn indices_out_of_range_are_refused_by_their_tables_name() {
    let open = Open::borrowed(DLRM).unwrap();
    let ranker = open.ranker().unwrap();
    let (dense, bags) = three();
    let (right, offsets) = ([0i64, 1, 2], [0i64, 1, 2, 3]);
    for scorer in SCORERS {
        for wrong in [40, 1000, u32::MAX] {
            let indices = [0, wrong, 1];
            let mut bags = bags.clone();
            bags[3].indices = indices.as_ptr().cast();
            let said = format!("table \"emb_l.3\": index {wrong} at position 1");
            refused(scored(scorer, ranker, &dense, &bags, 3), Status::IndexOutOfRange, &said);
        }
        for wrong in [-1, i64::MIN, 1200, i64::MAX] {
            let indices = [0, 1, wrong];
            let mut bags = vec![*i64_bags(&right, &offsets, None); 4];
            assert!(scored(scorer, ranker, &dense, &bags, 3).is_ok());
            bags[1].indices = indices.as_ptr().cast();
            let said = format!("table \"emb_l.1\": index {wrong} at position 2");
            refused(scored(scorer, ranker, &dense, &bags, 3), Status::IndexOutOfRange, &said);
        }
    }
}

#[test]
fn outputs_that_overlap_anything_are_refused() {
    let open = Open::borrowed(DLRM).unwrap();
    let ranker: *const ttrec_ranker = open.ranker().unwrap();
    let enough = unsafe { ttrec_ranker_workspace_len(ranker) };
    let (dense, bags) = three();
    for scorer in SCORERS {
        // Everything is cut from one piece of memory: out, 16 floats between, workspace, 16 floats,
        // and what is read.
        let workspace = 16;
        let read = workspace + enough + 16;
        let mut memory = vec![SENTINEL; read + dense.len()];
        let last = memory.len() - dense.len();
        for (at, status) in [
            (0, Status::Overlap),
            (2, Status::Overlap),
            (workspace, Status::Overlap),
            (workspace + enough - 1, Status::Overlap),
            (last, Status::Ok),
        ] {
            memory.fill(0.5);
            let start = memory.as_mut_ptr();
            let found = unsafe {
                let (out, workspace) = (start, start.add(workspace));
                scorer(
                    ranker,
                    start.add(at),
                    dense.len(),
                    bags.as_ptr(),
                    4,
                    out,
                    3,
                    workspace,
                    enough,
                )
            };
            assert_eq!(found, status, "dense at {at}: {}", last_error());
            if status != Status::Ok {
                assert!(
                    last_error().contains("dense overlaps") && memory.iter().all(|&x| x == 0.5)
                );
            }
        }
        let mut scratch = vec![0.0; enough];
        let mut place = bags.clone();
        let out = place.as_mut_ptr().cast();
        let found = unsafe {
            scorer(
                ranker,
                dense.as_ptr(),
                dense.len(),
                place.as_ptr(),
                4,
                out,
                3,
                scratch.as_mut_ptr(),
                enough,
            )
        };
        assert_eq!(found, Status::Overlap);
        assert!(last_error().contains("bags overlaps"), "{}", last_error());
        let mut out = [0.0; 3];
        let found = unsafe {
            let workspace = out.as_mut_ptr().wrapping_add(2);
            scorer(
                ranker,
                dense.as_ptr(),
                dense.len(),
                bags.as_ptr(),
                4,
                out.as_mut_ptr(),
                3,
                workspace,
                enough,
            )
        };
        assert_eq!((found, out), (Status::Overlap, [0.0; 3]));
    }
}

#[test]
fn forged_models_are_refused_or_score_within_their_bounds() {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut scores = 0;
    for case in 0..4000 {
        let mut rng = Rng::new(case);
        let mut bytes = DLRM.to_vec();
        for _ in 0..1 + rng.below(2) {
            let reach = if rng.one_in(4) {
                bytes.len()
            } else {
                format::head_len(DLRM)
            };
            let at = rng.index(reach);
            bytes[at] = if rng.one_in(2) {
                rng.next() as u8
            } else {
                bytes[at] ^ 1 << rng.below(8)
            };
        }
        format::reseal(&mut bytes);
        let found = Open::copied(&bytes).and_then(|blob| {
            let ranker = blob.ranker()?;
            let (num_dense, num_tables) =
                unsafe { (ttrec_ranker_num_dense(ranker), ttrec_ranker_num_tables(ranker)) };
            // A forged model may ask for more scratch than is worth granting here.
            if unsafe { ttrec_ranker_workspace_len(ranker) } > 1 << 16 || num_dense > 1 << 16 {
                return Ok(());
            }
            let dense = vec![0.5; 2 * num_dense];
            let rows = |position| unsafe {
                ttrec_table_num_embeddings(ttrec_ranker_table_at(ranker, position))
            };
            let last: Vec<_> =
                (0..num_tables).map(|position| [0, rows(position) as i64 - 1]).collect();
            let bags: Vec<_> =
                last.iter().map(|indices| *i64_bags(indices, &[0, 1, 2], None)).collect();
            let both = scored(ttrec_ranker_logits, ranker, &dense, &bags, 2).unwrap();
            let ranked = scored(ttrec_ranker_rank, ranker, &dense[..num_dense], &bags, 2).unwrap();
            assert_same(&scored(ttrec_ranker_score, ranker, &dense, &bags, 2).unwrap(), &ranked);
            scores += both.len();
            let past: Vec<_> = (0..num_tables).map(|position| [0, rows(position) as i64]).collect();
            let bags: Vec<_> =
                past.iter().map(|indices| *i64_bags(indices, &[0, 1, 2], None)).collect();
            if num_tables > 0 {
                let found = scored(ttrec_ranker_logits, ranker, &dense, &bags, 2);
                refused(found, Status::IndexOutOfRange, " at position 1");
            }
            Ok(())
        });
        if let Err(status) = found {
            *seen.entry(format!("{status:?}")).or_default() += 1;
        }
    }
    println!("{seen:?}, {scores} scores");
    for status in ["NotABlob", "Unsupported", "Truncated", "Corrupt"] {
        assert!(seen[status] > 20, "{seen:?}");
    }
    assert!(scores > 500);
}
