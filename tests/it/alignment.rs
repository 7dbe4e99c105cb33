//! Bytes that start where a blob must: included at compile time, and on the heap.

use ttrec::{AlignedBytes, include_blob};

static BLOB: &AlignedBytes = include_blob!("../golden/two_tables.ttr");
static BLOB_AGAIN: &AlignedBytes = include_blob!("../golden/two_tables.ttr");
// The macro aligns files of any length: here, of sources.
static TEXTS: [&AlignedBytes; 3] = [
    include_blob!("alignment.rs"),
    include_blob!("support/mod.rs"),
    include_blob!("support/rng.rs"),
];

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(ttrec::limits::ALIGNMENT)
}

#[test]
fn included_files_are_aligned_and_complete() {
    assert!(is_aligned(BLOB) && is_aligned(BLOB_AGAIN));
    assert_eq!(**BLOB, *include_bytes!("../golden/two_tables.ttr"));
    assert_eq!(**BLOB, **BLOB_AGAIN);
    let texts: [&[u8]; 3] = [
        include_bytes!("alignment.rs"),
        include_bytes!("support/mod.rs"),
        include_bytes!("support/rng.rs"),
    ];
    for (aligned, text) in TEXTS.into_iter().zip(texts) {
        assert!(is_aligned(aligned));
        // Not a byte more: the padding of an over-aligned type stays hidden.
        assert_eq!(**aligned, *text);
    }
    assert!(
        texts.iter().any(|text| !text.len().is_multiple_of(64)),
        "no file here would show padding"
    );
}

#[test]
fn included_blobs_parse() {
    assert_eq!(ttrec::Blob::parse(BLOB).unwrap().num_tables(), 2);
}

#[cfg(feature = "alloc")]
#[test]
fn heap_buffers_of_every_length_are_aligned_zeroed_and_writable_to_the_end() {
    for len in (0..=257).chain([4096, 100_003]) {
        let mut buf = ttrec::AlignedBuf::zeroed(len);
        assert!(is_aligned(&buf), "{len}");
        assert_eq!(buf.len(), len);
        assert!(buf.iter().all(|&byte| byte == 0));
        buf.iter_mut().zip(0u8..=250).for_each(|(byte, i)| *byte = i);
        buf.iter_mut().rev().take(1).for_each(|last| *last = 255);
        let copy = ttrec::AlignedBuf::from_slice(&buf);
        assert!(is_aligned(&copy));
        assert_eq!(*copy, *buf);
        assert_eq!(*buf.clone(), *buf);
        assert!(is_aligned(&buf.clone()));
    }
}

#[cfg(feature = "alloc")]
#[test]
fn a_blob_parses_from_a_heap_copy() {
    let buf = ttrec::AlignedBuf::from_slice(BLOB);
    assert_eq!(ttrec::Blob::parse(&buf).unwrap().as_bytes().len(), BLOB.len());
}
