//! Shared by the tests of the C functions: a handle that closes itself, and calls with canaries
//! around their outputs.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of the C ABI, with pointers to live vectors, or deliberately wrong ones"
)]

pub(crate) mod compiler;
#[path = "../../../../tests/it/support/format.rs"]
pub(crate) mod format;
#[path = "../../../../tests/it/support/rng.rs"]
pub(crate) mod rng;

use std::{
    ffi::{CStr, CString},
    marker::PhantomData,
    ops::Deref,
    path::Path,
    ptr,
};
use ttrec::{AlignedBytes, include_blob};
use ttrec_capi::{abi::*, ttrec_bags, ttrec_blob, ttrec_ranker, ttrec_status, ttrec_table};

pub(crate) static TWO_TABLES: &AlignedBytes =
    include_blob!("../../../../tests/golden/two_tables.ttr");
/// A table of codes.
pub(crate) static CODES: &AlignedBytes = include_blob!("../../../../tests/golden/codes.ttr");
/// A model of 13 dense features and four tables.
pub(crate) static DLRM: &AlignedBytes = include_blob!("../../../../tests/golden/dlrm.ttr");
/// What outputs hold before a call.
pub(crate) const SENTINEL: f32 = -7.0e37;
/// Elements on either side of an output that no call may touch.
const MARGIN: usize = 16;

/// An open blob.
pub(crate) struct Open(pub(crate) *mut ttrec_blob);

// Handles may be used by any thread.
unsafe impl Send for Open {}
unsafe impl Sync for Open {}

impl Drop for Open {
    fn drop(&mut self) {
        unsafe { ttrec_blob_close(self.0) };
    }
}

impl Open {
    fn by(open: impl FnOnce(*mut *mut ttrec_blob) -> ttrec_status) -> Result<Self, ttrec_status> {
        let untouched = ptr::without_provenance_mut(0x40);
        let mut blob = untouched;
        match open(&mut blob) {
            ttrec_status::Ok => {
                assert!(blob != untouched && !blob.is_null());
                Ok(Self(blob))
            }
            status => {
                assert_eq!(blob, untouched, "{status:?}");
                assert!(!last_error().is_empty());
                Err(status)
            }
        }
    }

    pub(crate) fn borrowed(bytes: &[u8]) -> Result<Self, ttrec_status> {
        Self::by(|blob| unsafe {
            ttrec_blob_open_borrowed(bytes.as_ptr().cast(), bytes.len(), blob)
        })
    }

    pub(crate) fn copied(bytes: &[u8]) -> Result<Self, ttrec_status> {
        Self::by(|blob| unsafe { ttrec_blob_open_copied(bytes.as_ptr().cast(), bytes.len(), blob) })
    }

    pub(crate) fn mapped(path: &Path) -> Result<Self, ttrec_status> {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        Self::by(|blob| unsafe { ttrec_blob_open(path.as_ptr(), blob) })
    }

    pub(crate) fn table(&self, name: &str) -> *const ttrec_table {
        let name = CString::new(name).unwrap();
        let mut table = ptr::null();
        assert_eq!(
            unsafe { ttrec_blob_table(self.0, name.as_ptr(), &mut table) },
            ttrec_status::Ok
        );
        table
    }

    pub(crate) fn tables(&self) -> Vec<*const ttrec_table> {
        let len = unsafe { ttrec_blob_num_tables(self.0) };
        assert!(unsafe { ttrec_blob_table_at(self.0, len) }.is_null());
        (0..len)
            .map(|position| unsafe { ttrec_blob_table_at(self.0, position) })
            .collect()
    }

    pub(crate) fn ranker(&self) -> Result<*const ttrec_ranker, ttrec_status> {
        let mut ranker = ptr::null();
        match unsafe { ttrec_blob_ranker(self.0, &mut ranker) } {
            ttrec_status::Ok => Ok(ranker),
            status => {
                assert!(ranker.is_null() && !last_error().is_empty());
                Err(status)
            }
        }
    }

    pub(crate) fn verify(&self) -> ttrec_status {
        unsafe { ttrec_blob_verify_payload(self.0) }
    }
}

pub(crate) fn text(ptr: *const std::ffi::c_char) -> String {
    assert!(!ptr.is_null());
    unsafe { CStr::from_ptr(ptr) }.to_str().unwrap().to_owned()
}

pub(crate) fn last_error() -> String {
    text(ttrec_last_error())
}

pub(crate) fn dim(table: *const ttrec_table) -> usize {
    unsafe { ttrec_table_embedding_dim(table) }
}

pub(crate) fn num_embeddings(table: *const ttrec_table) -> u64 {
    unsafe { ttrec_table_num_embeddings(table) }
}

pub(crate) fn workspace_len(table: *const ttrec_table) -> usize {
    unsafe { ttrec_table_workspace_len(table) }
}

/// What `call` writes to an output of `len` floats, with a workspace of `workspace_len`. Nothing
/// around them may change, and nothing at all if the call fails.
pub(crate) fn output(
    len: usize,
    workspace_len: usize,
    call: impl FnOnce(*mut f32, usize, *mut f32, usize) -> ttrec_status,
) -> Result<Vec<f32>, ttrec_status> {
    let mut out = vec![SENTINEL; len + 2 * MARGIN];
    let mut workspace = vec![SENTINEL; workspace_len + 2 * MARGIN];
    let status =
        call(out[MARGIN..].as_mut_ptr(), len, workspace[MARGIN..].as_mut_ptr(), workspace_len);
    let untouched = |floats: &[f32]| floats.iter().all(|&x| x == SENTINEL);
    assert!(
        untouched(&out[..MARGIN]) && untouched(&out[MARGIN + len..]),
        "wrote around the output"
    );
    assert!(
        untouched(&workspace[..MARGIN]) && untouched(&workspace[MARGIN + workspace_len..]),
        "wrote around the workspace"
    );
    if status == ttrec_status::Ok {
        return Ok(out[MARGIN..][..len].to_vec());
    }
    assert!(untouched(&out), "a call that failed wrote: {status:?}");
    assert!(!last_error().is_empty());
    Err(status)
}

pub(crate) fn lookup(table: *const ttrec_table, index: u64) -> Result<Vec<f32>, ttrec_status> {
    output(dim(table), workspace_len(table), |out, len, workspace, workspace_len| unsafe {
        ttrec_table_lookup(table, index, out, len, workspace, workspace_len)
    })
}

pub(crate) fn bag(
    table: *const ttrec_table,
    bags: &ttrec_bags,
    pooling: u32,
) -> Result<Vec<f32>, ttrec_status> {
    let len = bags.num_bags.saturating_mul(dim(table)).min(1 << 20);
    output(len, workspace_len(table), |out, len, workspace, workspace_len| unsafe {
        ttrec_table_bag(table, bags, pooling, out, len, workspace, workspace_len)
    })
}

/// One of the functions that score.
pub(crate) type Scorer = unsafe extern "C" fn(
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

/// What `scorer` makes of `num_samples`, with as little workspace as it takes.
pub(crate) fn scored(
    scorer: Scorer,
    ranker: *const ttrec_ranker,
    dense: &[f32],
    bags: &[ttrec_bags],
    num_samples: usize,
) -> Result<Vec<f32>, ttrec_status> {
    let enough = unsafe { ttrec_ranker_workspace_len(ranker) };
    output(num_samples, enough, |out, len, workspace, workspace_len| unsafe {
        scorer(
            ranker,
            dense.as_ptr(),
            dense.len(),
            bags.as_ptr(),
            bags.len(),
            out,
            len,
            workspace,
            workspace_len,
        )
    })
}

/// Bags whose arrays outlive them.
#[derive(Clone, Copy)]
pub(crate) struct Lent<'a>(ttrec_bags, PhantomData<&'a ()>);

impl Deref for Lent<'_> {
    type Target = ttrec_bags;

    fn deref(&self) -> &ttrec_bags {
        &self.0
    }
}

pub(crate) fn u32_bags<'a>(
    indices: &'a [u32],
    offsets: &'a [u32],
    weights: Option<&'a [f32]>,
) -> Lent<'a> {
    let weights = weights.map_or(ptr::null(), <[f32]>::as_ptr);
    let bags = ttrec_bags_u32(
        indices.as_ptr(),
        indices.len(),
        offsets.as_ptr(),
        offsets.len() - 1,
        weights,
    );
    Lent(bags, PhantomData)
}

pub(crate) fn i64_bags<'a>(
    indices: &'a [i64],
    offsets: &'a [i64],
    weights: Option<&'a [f32]>,
) -> Lent<'a> {
    let weights = weights.map_or(ptr::null(), <[f32]>::as_ptr);
    let bags = ttrec_bags_i64(
        indices.as_ptr(),
        indices.len(),
        offsets.as_ptr(),
        offsets.len() - 1,
        weights,
    );
    Lent(bags, PhantomData)
}

pub(crate) fn i32_bags<'a>(
    indices: &'a [i32],
    offsets: &'a [i32],
    weights: Option<&'a [f32]>,
) -> Lent<'a> {
    let weights = weights.map_or(ptr::null(), <[f32]>::as_ptr);
    let bags = ttrec_bags_i32(
        indices.as_ptr(),
        indices.len(),
        offsets.as_ptr(),
        offsets.len() - 1,
        weights,
    );
    Lent(bags, PhantomData)
}

/// Equal to the bit, except that all NaNs are equal.
pub(crate) fn assert_same(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (x, y) in found.iter().zip(expected) {
        assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()), "{x} is not {y}");
    }
}
