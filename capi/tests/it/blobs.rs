//! Blobs through the C functions: damaged blobs are refused with a status and leave no handle; the
//! others give what the Rust library gives.

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors, or deliberately wrong ones"
)]

use crate::support::{
    CODES, Open, TWO_TABLES, assert_same, bag, dim, format,
    format::{header, table, table_at},
    last_error, lookup, num_embeddings,
    rng::Rng,
    text, u32_bags, workspace_len,
};
use std::{collections::BTreeMap, fs, ptr};
use ttrec::{AlignedBuf, Bags, Blob, Pooling};
use ttrec_capi::{abi::*, ttrec_pooling, ttrec_status as Status};

/// Every row, and a bag of all rows, through the C ABI have the bits that the library gives.
fn assert_answers(open: &Open, bytes: &[u8]) {
    let blob = Blob::parse(bytes).unwrap();
    let tables = open.tables();
    assert_eq!(tables.len(), blob.num_tables());
    for (table, expected) in tables.into_iter().zip(blob.tables()) {
        assert_eq!(text(unsafe { ttrec_table_name(table) }), expected.name());
        assert_eq!(open.table(expected.name()), table);
        assert_eq!(num_embeddings(table), expected.num_embeddings());
        assert_eq!(workspace_len(table), expected.workspace_len(1));
        for n in [0, 1, 100, 100_000, usize::MAX] {
            let len = unsafe { ttrec_table_batch_workspace_len(table, n) };
            assert_eq!(len, expected.workspace_len(n));
        }
        let mut row = vec![0.0; dim(table)];
        for index in 0..expected.num_embeddings() {
            expected
                .lookup(index, &mut row, &mut vec![0.0; expected.workspace_len(1)])
                .unwrap();
            assert_same(&lookup(table, index).unwrap(), &row);
        }
        let indices: Vec<u32> = (0..num_embeddings(table) as u32).collect();
        let offsets = [0, indices.len() as u32];
        let bags = Bags::new(&indices, &offsets).unwrap();
        let mut workspace = vec![0.0; expected.workspace_len(1)];
        expected.pool(&bags, Pooling::Mean, &mut row, &mut workspace).unwrap();
        let bags = u32_bags(&indices, &offsets, None);
        assert_same(&bag(table, &bags, ttrec_pooling::Mean as u32).unwrap(), &row);
    }
    assert_eq!(open.verify(), Status::Ok);
}

#[test]
fn a_blob_opens_from_the_callers_bytes_a_copy_and_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("Modèle 1.ttr");
    fs::write(&path, &**TWO_TABLES).unwrap();
    assert_answers(&Open::borrowed(TWO_TABLES).unwrap(), TWO_TABLES);
    assert_answers(&Open::copied(TWO_TABLES).unwrap(), TWO_TABLES);
    assert_answers(&Open::mapped(&path).unwrap(), TWO_TABLES);

    // A copy needs what it was made of no longer.
    let bytes = TWO_TABLES.to_vec();
    let copy = Open::copied(&bytes).unwrap();
    drop(bytes);
    assert_answers(&copy, TWO_TABLES);
}

#[test]
fn codes_are_looked_up_and_pooled() {
    assert_answers(&Open::borrowed(CODES).unwrap(), CODES);
}

#[test]
fn a_copy_may_start_anywhere_and_borrowed_bytes_may_not() {
    let mut buf = AlignedBuf::zeroed(TWO_TABLES.len() + 64);
    for shift in 0..64 {
        buf[shift..][..TWO_TABLES.len()].copy_from_slice(TWO_TABLES);
        let bytes = &buf[shift..][..TWO_TABLES.len()];
        let borrowed = Open::borrowed(bytes).map(|_| ());
        assert_eq!(borrowed, if shift == 0 { Ok(()) } else { Err(Status::Misaligned) }, "{shift}");
        let copied = Open::copied(bytes).unwrap();
        assert_eq!(copied.verify(), Status::Ok);
        assert!(lookup(copied.table("item"), 42).is_ok());
    }
}

#[test]
fn blobs_cut_short_or_grown_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.ttr");
    let longer = AlignedBuf::from_slice(&[TWO_TABLES, &[0; 64][..]].concat());
    let mut refused = 0;
    for len in (0..=longer.len()).filter(|&len| len != TWO_TABLES.len()) {
        assert_eq!(Open::borrowed(&longer[..len]).err(), Some(Status::Truncated), "{len}");
        if len % 64 == 1 || len < 80 {
            assert_eq!(Open::copied(&longer[..len]).err(), Some(Status::Truncated), "{len}");
            fs::write(&path, &longer[..len]).unwrap();
            assert_eq!(Open::mapped(&path).err(), Some(Status::Truncated), "{len}");
            assert!(last_error().contains("cut.ttr: not a usable blob: "), "{}", last_error());
        }
        refused += 1;
    }
    assert!(refused > 10_000);
    let mut blob = ptr::null_mut();
    assert_eq!(unsafe { ttrec_blob_open_borrowed(ptr::null(), 0, &mut blob) }, Status::Truncated);
    assert_eq!(unsafe { ttrec_blob_open_copied(ptr::null(), 0, &mut blob) }, Status::Truncated);
}

#[test]
fn a_changed_byte_is_noticed_in_the_head_at_once_and_in_the_payload_by_its_checksum() {
    let mut buf = AlignedBuf::from_slice(TWO_TABLES);
    let head = format::head_len(TWO_TABLES);
    for at in (0..head).chain((head..TWO_TABLES.len()).step_by(61)) {
        buf[at] ^= 0x10;
        let opened = Open::borrowed(&buf);
        let expected: &[Status] = match at {
            0..8 => &[Status::NotABlob],
            8..16 => &[Status::Unsupported],
            16..24 => &[Status::Truncated],
            // With more tables than there are, the head itself would be longer than the blob.
            24..36 => &[Status::Corrupt, Status::Truncated],
            _ if at < head => &[Status::Corrupt],
            _ => &[],
        };
        match opened {
            Err(status) => {
                assert!(expected.contains(&status), "byte {at}: {status:?}, {}", last_error())
            }
            Ok(blob) => {
                assert!(expected.is_empty(), "byte {at}");
                assert_eq!(blob.verify(), Status::Corrupt, "byte {at}");
                assert!(last_error().contains("checksum"), "{}", last_error());
            }
        }
        buf[at] ^= 0x10;
    }
}

#[test]
fn versions_and_kinds_of_the_future_are_unsupported() {
    for (at, value) in [
        (header::VERSION, 2),
        (header::FLAGS, 1),
        (table_at(0) + table::KIND, 200),
        (table_at(1) + table::INDEX_MAP, 200),
        (table_at(0) + table::LAYOUT, 1),
    ] {
        let mut bytes = TWO_TABLES.to_vec();
        bytes[at] = value;
        format::reseal(&mut bytes);
        assert_eq!(
            Open::copied(&bytes).err(),
            Some(Status::Unsupported),
            "byte {at}: {}",
            last_error()
        );
    }
}

#[test]
fn forged_blobs_are_refused_or_answer_within_their_bounds() {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut answers = 0;
    for case in 0..4000 {
        let mut rng = Rng::new(case);
        let mut bytes = TWO_TABLES.to_vec();
        for _ in 0..1 + rng.below(2) {
            let reach = if rng.one_in(4) {
                bytes.len()
            } else {
                format::head_len(TWO_TABLES)
            };
            let at = rng.index(reach);
            bytes[at] = if rng.one_in(2) {
                rng.next() as u8
            } else {
                bytes[at] ^ 1 << rng.below(8)
            };
        }
        format::reseal(&mut bytes);
        match Open::copied(&bytes) {
            Err(status) => *seen.entry(format!("{status:?}")).or_default() += 1,
            Ok(blob) => {
                let _ = blob.verify();
                for table in blob.tables() {
                    let rows = num_embeddings(table);
                    // A forged shape may ask for more scratch than is worth granting here.
                    if workspace_len(table).max(dim(table)) > 1 << 16 {
                        continue;
                    }
                    answers += 1;
                    let last = u32::try_from(rows - 1).unwrap_or(u32::MAX);
                    let row = lookup(table, last.into()).unwrap();
                    let indices = [last, 0, last];
                    let bags = u32_bags(&indices, &[0, 1, 1, 3], None);
                    let pooled = bag(table, &bags, rng.below(3) as u32).unwrap();
                    assert_same(&pooled[..row.len()], &row);
                    assert_eq!(lookup(table, rows).err(), Some(Status::IndexOutOfRange));
                    assert_eq!(lookup(table, u64::MAX).err(), Some(Status::IndexOutOfRange));
                }
            }
        }
    }
    println!("{seen:?}, {answers} tables answered");
    for status in ["NotABlob", "Unsupported", "Truncated", "Corrupt"] {
        assert!(seen[status] > 20, "{seen:?}");
    }
    assert!(answers > 500);
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn paths_that_lead_to_no_blob_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Open::mapped(dir.path()).err(), Some(Status::Io));
    assert!(last_error().ends_with("not a regular file"), "{}", last_error());
    assert_eq!(Open::mapped(&dir.path().join("none.ttr")).err(), Some(Status::Io));
    assert!(last_error().contains("none.ttr: "), "{}", last_error());
    let path = dir.path().join("text.ttr");
    fs::write(&path, [b' '; 100]).unwrap();
    assert_eq!(Open::mapped(&path).err(), Some(Status::NotABlob));
    // A path longer than the memory for messages is cut, not written past.
    let long = dir.path().join("x".repeat(4000));
    assert_eq!(Open::mapped(&long).err(), Some(Status::Io));
    assert_eq!(last_error().len(), 1023);
}
