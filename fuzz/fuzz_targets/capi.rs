//! Any bytes as a blob, through the C entry points: `cargo +nightly fuzz run capi` from the
//! repository's root; put blobs into `fuzz/corpus/capi/` to start from, each with 64 bytes more.
//!
//! The last bytes of the input choose the arguments, right and wrong ones: indices, offsets,
//! lengths, alignment, poolings and types. For every call the status must say whether the output
//! was written, the memory around the output must stay unmodified, and rows and scores of the
//! borrowed and of the copied blob must be equal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::ptr;
use ttrec::AlignedBuf;
use ttrec_capi::{abi::*, ttrec_bags, ttrec_blob, ttrec_ranker, ttrec_status, ttrec_table};

#[path = "../reseal.rs"]
mod reseal;

/// Floats of workspace and columns beyond which a table is left alone: a few bytes can ask for rows
/// of 65,536 columns and ranks, which is slow but not wrong.
const MAX_WORK: usize = 1 << 12;
/// What outputs hold before a call.
const POISON: f32 = 12345.678;
const MARGIN: usize = 8;
const MAX_SAMPLES: usize = 4;

/// One of the functions that score.
type Scorer = unsafe extern "C" fn(
    *const ttrec_ranker,
    *const f32,
    usize,
    *const ttrec_bags,
    usize,
    *mut f32,
    usize,
    *mut f32,
    usize,
) -> ttrec_status;

fuzz_target!(|bytes: &[u8]| {
    let (blob, asked) = bytes.split_at(bytes.len() - bytes.len().min(64));
    let mut buf = AlignedBuf::from_slice(blob);
    use_bytes(&buf, asked);
    if reseal::reseal(&mut buf).is_some() {
        use_bytes(&buf, asked);
    }
});

fn use_bytes(bytes: &[u8], asked: &[u8]) {
    let (mut borrowed, mut copied) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the bytes outlive both handles, which are closed below.
    unsafe {
        let status = ttrec_blob_open_borrowed(bytes.as_ptr().cast(), bytes.len(), &mut borrowed);
        assert_eq!(ttrec_blob_open_copied(bytes.as_ptr().cast(), bytes.len(), &mut copied), status);
        assert_eq!(borrowed.is_null(), status != ttrec_status::Ok);
        assert_eq!(copied.is_null(), status != ttrec_status::Ok);
        if status == ttrec_status::Ok {
            use_blobs(borrowed, copied, asked);
        } else {
            assert_ne!(*ttrec_last_error(), 0);
            assert_ne!(status, ttrec_status::Internal);
        }
        ttrec_blob_close(borrowed);
        ttrec_blob_close(copied);
    }
}

/// # Safety
/// Both are open.
unsafe fn use_blobs(borrowed: *const ttrec_blob, copied: *const ttrec_blob, asked: &[u8]) {
    // SAFETY: both are open, and tables are used while they are.
    unsafe {
        assert_eq!(ttrec_blob_verify_payload(borrowed), ttrec_blob_verify_payload(copied));
        let num_tables = ttrec_blob_num_tables(borrowed);
        for position in 0..num_tables {
            let table = ttrec_blob_table_at(borrowed, position);
            assert!(!ttrec_table_name(table).is_null());
            let len =
                ttrec_table_workspace_len(table).max(ttrec_table_batch_workspace_len(table, 64));
            if len.max(ttrec_table_embedding_dim(table)) <= MAX_WORK * 8
                && ttrec_table_workspace_len(table) <= MAX_WORK
            {
                use_table(table, ttrec_blob_table_at(copied, position), len, asked);
            }
        }
        assert!(ttrec_blob_table_at(borrowed, num_tables).is_null());

        let (mut ranker, mut twin) = (ptr::null(), ptr::null());
        let status = ttrec_blob_ranker(borrowed, &mut ranker);
        assert_eq!(ttrec_blob_ranker(copied, &mut twin), status);
        assert_eq!(
            (ranker.is_null(), twin.is_null()),
            (status != ttrec_status::Ok, status != ttrec_status::Ok)
        );
        if status == ttrec_status::Ok {
            let most = ttrec_ranker_batch_workspace_len(ranker, MAX_SAMPLES);
            if most <= MAX_WORK * 8 && ttrec_ranker_num_dense(ranker) <= MAX_WORK {
                use_ranker(ranker, twin, most, asked);
            }
        } else {
            assert_eq!(status, ttrec_status::NoModel);
        }
    }
}

/// # Safety
/// Both are of open blobs.
unsafe fn use_ranker(
    ranker: *const ttrec_ranker,
    twin: *const ttrec_ranker,
    most: usize,
    asked: &[u8],
) {
    // Not the bytes that tables read first.
    let mut asked = asked.iter().rev().copied();
    let mut next = || asked.next().unwrap_or(0);
    // SAFETY: every pointer that is not null leads to as much as is said: arrays are cut from
    // longer ones.
    unsafe {
        let (num_dense, num_tables) =
            (ttrec_ranker_num_dense(ranker), ttrec_ranker_num_tables(ranker));
        let least = ttrec_ranker_workspace_len(ranker);
        assert!(least <= most && ttrec_ranker_table_at(ranker, num_tables).is_null());
        let num_samples = usize::from(next()) % (MAX_SAMPLES + 1);
        let user: Vec<f32> = (0..num_dense).map(|i| (i % 7) as f32 / 4.0 - 0.75).collect();
        let mut dense = user.repeat(num_samples);
        let all = dense.len();
        dense.push(0.0);

        // A bag of one index per sample and table, some of them out of range; then everything that
        // may be wrong, seldom.
        let mut right = true;
        let indices: Vec<[i64; MAX_SAMPLES]> = (0..num_tables)
            .map(|position| {
                let rows = ttrec_table_num_embeddings(ttrec_ranker_table_at(ranker, position));
                std::array::from_fn(|sample| {
                    let index = match next() {
                        255 => rows as i64,
                        254 => -1,
                        byte => (u64::from(byte) * u64::from(byte) % rows) as i64,
                    };
                    right &= sample >= num_samples || (index as u64) < rows;
                    index
                })
            })
            .collect();
        let offsets: [i64; MAX_SAMPLES + 2] = std::array::from_fn(|offset| offset as i64);
        let bags_of = |first: usize, len: usize| -> Vec<ttrec_bags> {
            let bags = indices.iter().map(|indices| &indices[first..][..len]);
            bags.map(|bags| ttrec_bags_i64(bags.as_ptr(), len, offsets.as_ptr(), len, ptr::null()))
                .collect()
        };
        let mut bags = bags_of(0, num_samples);
        let (mut dense_ptr, mut dense_len, mut lists, mut workspace_len) =
            (dense.as_ptr(), all, num_tables, most);
        let wrong = next();
        match wrong {
            240 => dense_len += 1,
            241 => dense_len = usize::MAX,
            242 => dense_ptr = dense_ptr.wrapping_byte_add(1),
            243 => lists += 1,
            244 => lists = usize::MAX,
            245 => workspace_len = least - 1,
            246 => workspace_len = usize::MAX,
            247 if num_tables > 0 => bags[0].index_type = 7,
            248 if num_tables > 1 => bags[1].index_type = 0,
            249 if num_tables > 0 => bags[0].num_bags += 1,
            250 if num_tables > 0 => bags[0].offsets = ptr::null(),
            _ if wrong % 2 == 1 => workspace_len = least,
            _ => {}
        }
        right &= match wrong {
            // No features are nowhere, and not misaligned.
            242 => dense_len == 0,
            247 | 249 | 250 => num_tables == 0,
            248 => num_tables < 2,
            _ => !(240..=246).contains(&wrong),
        };
        let scored = |scorer: Scorer, ranker| {
            output(
                num_samples,
                most,
                num_samples,
                workspace_len,
                0,
                |out, len, workspace, workspace_len| {
                    scorer(
                        ranker,
                        dense_ptr,
                        dense_len,
                        bags.as_ptr(),
                        lists,
                        out,
                        len,
                        workspace,
                        workspace_len,
                    )
                },
            )
        };
        let scores = scored(ttrec_ranker_score, ranker);
        assert_eq!(scores.is_some(), right);
        assert!(same(&scores, &scored(ttrec_ranker_score, twin)));
        let logits = scored(ttrec_ranker_logits, ranker);
        assert_eq!(logits.is_some(), right);
        let ranked = scored(ttrec_ranker_rank, ranker);
        assert!(!right || same(&scores, &ranked));
        if let (Some(scores), Some(logits)) = (scores, logits) {
            // The features given once.
            let bags = bags_of(0, num_samples);
            let ranked = output(
                num_samples,
                most,
                num_samples,
                most,
                0,
                |out, len, workspace, workspace_len| {
                    let (dense, bags) = (user.as_ptr(), bags.as_ptr());
                    ttrec_ranker_rank(
                        ranker,
                        dense,
                        user.len(),
                        bags,
                        num_tables,
                        out,
                        len,
                        workspace,
                        workspace_len,
                    )
                },
            );
            assert!(same(&Some(scores), &ranked));
            for (sample, logit) in logits.into_iter().enumerate() {
                let bags = bags_of(sample, 1);
                let alone = output(1, least, 1, least, 0, |out, len, workspace, workspace_len| {
                    let (dense, bags) = (user.as_ptr(), bags.as_ptr());
                    ttrec_ranker_logits(
                        ranker,
                        dense,
                        user.len(),
                        bags,
                        num_tables,
                        out,
                        len,
                        workspace,
                        workspace_len,
                    )
                });
                assert!(same(&Some(vec![logit]), &alone));
            }
        }
    }
}

/// # Safety
/// Both are of open blobs.
unsafe fn use_table(
    table: *const ttrec_table,
    twin: *const ttrec_table,
    most: usize,
    asked: &[u8],
) {
    let mut asked = asked.iter().copied();
    let mut next = || asked.next().unwrap_or(0);
    // SAFETY: every pointer that is not null leads to as much as is said: arrays are cut from
    // longer ones.
    unsafe {
        let dim = ttrec_table_embedding_dim(table);
        let rows = ttrec_table_num_embeddings(table);
        let row = [0, rows / 2, rows - 1, rows, u64::MAX][next() as usize % 5];
        let first = output(dim, most, dim, most, 0, |out, len, workspace, workspace_len| {
            ttrec_table_lookup(table, row, out, len, workspace, workspace_len)
        });
        assert_eq!(first.is_some(), row < rows);
        let second = output(dim, most, dim, most, 0, |out, len, workspace, workspace_len| {
            ttrec_table_lookup(twin, row, out, len, workspace, workspace_len)
        });
        assert!(same(&first, &second));

        // Bags of up to 8 indices, some of them out of range, and up to 4 bags; then everything
        // that may be wrong, seldom.
        let mut index = || match next() {
            255 => rows as i64,
            254 => -1,
            byte => (u64::from(byte) * u64::from(byte) % rows) as i64,
        };
        let wide: [i64; 9] = std::array::from_fn(|_| index());
        let num_indices = next() as usize % 9;
        let num_bags = next() as usize % 5;
        let mut wide_offsets = [0i64; 6];
        for at in 1..6 {
            let step = i64::from(next() % 4);
            wide_offsets[at] = (wide_offsets[at - 1] + step).min(num_indices as i64);
        }
        match next() {
            0..200 => wide_offsets[num_bags] = num_indices as i64,
            byte => wide_offsets[byte as usize % 6] = i64::from(byte) - 228,
        }
        let (narrow, narrow_offsets) = (wide.map(|x| x as u32), wide_offsets.map(|x| x as u32));
        let weights = [1.0f32, -0.5, f32::MAX, f32::NAN, 0.0, 3.0, 1.0, 1.0, 1.0];
        let weighted = next();
        let weights = if weighted < 64 { weights.as_ptr() } else { ptr::null() };
        let mut bags = if weighted % 2 == 0 {
            ttrec_bags_i64(wide.as_ptr(), num_indices, wide_offsets.as_ptr(), num_bags, weights)
        } else {
            ttrec_bags_u32(narrow.as_ptr(), num_indices, narrow_offsets.as_ptr(), num_bags, weights)
        };
        match next() {
            240 => bags.indices = ptr::null(),
            241 => bags.offsets = ptr::null(),
            242 => bags.indices = bags.indices.wrapping_byte_add(1),
            243 => bags.num_indices = usize::MAX,
            244 => bags.num_bags = usize::MAX,
            245 => bags.index_type = 7,
            _ => {}
        }
        let pooling = u32::from(next() % 4);
        let rows_len = bags.num_bags.min(8) * dim;
        let (out_len, workspace_len) = match next() {
            248 => (rows_len + 1, most),
            249 => (rows_len, ttrec_table_workspace_len(table).saturating_sub(1)),
            250 => (usize::MAX, most),
            251 => (rows_len, usize::MAX),
            byte if byte % 2 == 0 => (rows_len, most),
            _ => (rows_len, ttrec_table_workspace_len(table)),
        };
        let shift = if next() == 255 { 1 } else { 0 };
        let alone = output(
            rows_len + 1,
            most,
            out_len,
            workspace_len,
            shift,
            |out, len, workspace, workspace_len| {
                ttrec_table_bag(table, &bags, pooling, out, len, workspace, workspace_len)
            },
        );
        // Two tables of the same bags: each row twice.
        let together = output(
            2 * rows_len,
            most,
            2 * rows_len,
            most,
            0,
            |out, len, workspace, workspace_len| {
                ttrec_pool_tables(
                    [table, twin].as_ptr(),
                    [bags, bags].as_ptr(),
                    2,
                    pooling,
                    out,
                    len,
                    workspace,
                    workspace_len,
                )
            },
        );
        if let (Some(alone), Some(together)) = (&alone, &together) {
            for (row, pair) in alone[..rows_len].chunks(dim).zip(together.chunks(2 * dim)) {
                assert!(same(&Some(row.to_vec()), &Some(pair[..dim].to_vec())));
                assert!(same(&Some(row.to_vec()), &Some(pair[dim..].to_vec())));
            }
        }
        assert!(alone.is_none() || together.is_some(), "what one table takes, two do");
    }
}

/// What `call` writes to `out_len` floats of `room`, or `None` if it fails; nothing else may
/// change.
fn output(
    room: usize,
    workspace_room: usize,
    out_len: usize,
    workspace_len: usize,
    shift: usize,
    call: impl FnOnce(*mut f32, usize, *mut f32, usize) -> ttrec_status,
) -> Option<Vec<f32>> {
    let mut out = vec![POISON; room + 2 * MARGIN];
    let mut workspace = vec![POISON; workspace_room + 2 * MARGIN];
    let at = out[MARGIN..].as_mut_ptr().wrapping_byte_add(shift);
    let status = call(at, out_len, workspace[MARGIN..].as_mut_ptr(), workspace_len);
    assert_ne!(status, ttrec_status::Internal);
    let untouched = |floats: &[f32]| floats.iter().all(|&x| x == POISON);
    assert!(untouched(&workspace[..MARGIN]) && untouched(&workspace[workspace_room + MARGIN..]));
    if status != ttrec_status::Ok {
        assert!(untouched(&out), "a call that failed wrote");
        return None;
    }
    assert!(untouched(&out[..MARGIN]) && untouched(&out[MARGIN + out_len..]));
    Some(out[MARGIN..MARGIN + room].to_vec())
}

fn same(one: &Option<Vec<f32>>, other: &Option<Vec<f32>>) -> bool {
    let equal = |(x, y): (&f32, &f32)| x == y || (x.is_nan() && y.is_nan());
    match (one, other) {
        (Some(one), Some(other)) => one.len() == other.len() && one.iter().zip(other).all(equal),
        (None, None) => true,
        _ => false,
    }
}
