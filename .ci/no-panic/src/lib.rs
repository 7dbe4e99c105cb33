//! Entry points that a firmware in C would call. `.ci/no-panic/check` links them for a Cortex-M4F
//! and looks at the symbols: neither panics nor their messages may be reachable from here.

#![no_std]

use core::{ffi::c_void, panic::PanicInfo, slice};
use ttrec::{Bags, Blob, Pooling, Ranker, Table};

/// Parses the blob and finds table `name`.
///
/// # Safety
/// `blob` and `name` are readable for their lengths, `blob` for as long as `table` is used; `table`
/// is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_parse(
    blob: *const u8,
    blob_len: usize,
    name: *const u8,
    name_len: usize,
    table: *mut c_void,
) -> bool {
    // SAFETY: the caller's promise.
    let blob: &'static [u8] = unsafe { slice::from_raw_parts(blob, blob_len) };
    // SAFETY: the caller's promise.
    let name = unsafe { slice::from_raw_parts(name, name_len) };
    let Ok(name) = str::from_utf8(name) else { return false };
    let Ok(blob) = Blob::parse(blob) else { return false };
    let Ok(found) = blob.table(name) else { return false };
    // SAFETY: the caller's promise.
    unsafe { table.cast::<Table<'static>>().write(found) };
    true
}

/// Looks one row up.
///
/// # Safety
/// `table` was filled by [`ttrec_parse`]; `out` and `workspace` are writable for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_lookup(
    table: *const c_void,
    row: u64,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> bool {
    // SAFETY: the caller's promise.
    let table = unsafe { &*table.cast::<Table<'static>>() };
    // SAFETY: the caller's promise.
    let out = unsafe { slice::from_raw_parts_mut(out, out_len) };
    // SAFETY: the caller's promise.
    let workspace = unsafe { slice::from_raw_parts_mut(workspace, workspace_len) };
    #[cfg(feature = "deliberate-panic")]
    {
        out[row as usize] = 0.0;
    }
    table.lookup(row, out, workspace).is_ok()
}

/// Pools bags; `weights` may be null.
///
/// # Safety
/// `table` was filled by [`ttrec_parse`]; the other pointers are valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_bag(
    table: *const c_void,
    indices: *const u32,
    weights: *const f32,
    num_indices: usize,
    offsets: *const u32,
    num_offsets: usize,
    pooling: u32,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> bool {
    // SAFETY: the caller's promise.
    let table = unsafe { &*table.cast::<Table<'static>>() };
    // SAFETY: the caller's promise.
    let indices = unsafe { slice::from_raw_parts(indices, num_indices) };
    // SAFETY: the caller's promise.
    let offsets = unsafe { slice::from_raw_parts(offsets, num_offsets) };
    // SAFETY: the caller's promise.
    let out = unsafe { slice::from_raw_parts_mut(out, out_len) };
    // SAFETY: the caller's promise.
    let workspace = unsafe { slice::from_raw_parts_mut(workspace, workspace_len) };
    let pooling = match pooling {
        0 => Pooling::Sum,
        1 => Pooling::Mean,
        2 => Pooling::Max,
        _ => return false,
    };
    let Ok(mut bags) = Bags::new(indices, offsets) else { return false };
    if !weights.is_null() {
        // SAFETY: the caller's promise.
        let weights = unsafe { slice::from_raw_parts(weights, num_indices) };
        match bags.with_per_sample_weights(weights) {
            Ok(weighted) => bags = weighted,
            Err(_) => return false,
        }
    }
    table.pool(&bags, pooling, out, workspace).is_ok()
}

/// Parses the blob and finds its model.
///
/// # Safety
/// `blob` is readable for its length, for as long as `ranker` is used; `ranker` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_parse_ranker(
    blob: *const u8,
    blob_len: usize,
    ranker: *mut c_void,
) -> bool {
    // SAFETY: the caller's promise.
    let blob: &'static [u8] = unsafe { slice::from_raw_parts(blob, blob_len) };
    let Ok(blob) = Blob::parse(blob) else { return false };
    let Ok(found) = blob.ranker() else { return false };
    // SAFETY: the caller's promise.
    unsafe { ranker.cast::<Ranker<'static>>().write(found) };
    true
}

/// Scores samples of one index per table, given table by table; or, if `dense` is of one sample,
/// that user's candidates.
///
/// # Safety
/// `ranker` was filled by [`ttrec_parse_ranker`]; the other pointers are valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_score(
    ranker: *const c_void,
    dense: *const f32,
    num_dense: usize,
    indices: *const u32,
    num_indices: usize,
    offsets: *const u32,
    num_offsets: usize,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> bool {
    // SAFETY: the caller's promise.
    let ranker = unsafe { &*ranker.cast::<Ranker<'static>>() };
    // SAFETY: the caller's promise.
    let dense = unsafe { slice::from_raw_parts(dense, num_dense) };
    // SAFETY: the caller's promise.
    let indices = unsafe { slice::from_raw_parts(indices, num_indices) };
    // SAFETY: the caller's promise.
    let offsets = unsafe { slice::from_raw_parts(offsets, num_offsets) };
    // SAFETY: the caller's promise.
    let out = unsafe { slice::from_raw_parts_mut(out, out_len) };
    // SAFETY: the caller's promise.
    let workspace = unsafe { slice::from_raw_parts_mut(workspace, workspace_len) };
    let Ok(bags) = Bags::new(indices, offsets) else { return false };
    let all = [bags; 32];
    let Some(bags) = all.get(..ranker.num_tables()) else { return false };
    if num_dense == ranker.num_dense() {
        ranker.rank(dense, bags, out, workspace).is_ok()
    } else {
        ranker.score(dense, bags, out, workspace).is_ok()
    }
}

/// Where every panic ends. It takes the message, so that link-time optimisation cannot drop the
/// formatting of a panic that stayed, and is never inlined, so that its name shows up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ttrec_panicked(info: *const c_void) -> ! {
    core::hint::black_box(info);
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    ttrec_panicked(core::ptr::from_ref(info).cast())
}
