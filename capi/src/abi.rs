//! The functions of the header, in its order. Each vouches for its caller, and is a few lines of
//! safe code in `boundary::answer`.
//!
//! The documentation is written for C, where cbindgen copies it to.

#![allow(
    clippy::missing_safety_doc,
    reason = "said once for all of them, at the head of the header"
)]

use crate::{
    bags::{self, BagIndex, ttrec_bags, ttrec_index_type, ttrec_pooling},
    boundary::{
        Bytes, Caller, Given, Promise, answer, answer_or, ttrec_blob, ttrec_ranker, ttrec_table,
    },
    last_error,
    status::{Error, ttrec_status},
};
use smallvec::SmallVec;
use std::{
    ffi::{CStr, CString, c_char, c_void},
    fs::File,
    io,
    path::Path,
    ptr,
    sync::OnceLock,
};
use ttrec::{Bags, Pooling, ScoreError, Table, Tier, bag::pool_tables};

/// The version of this interface. It changes when a program that was compiled with an older header
/// would no longer work.
pub const TTREC_ABI_VERSION: u32 = 1;

/// The TTREC_ABI_VERSION of the library that runs: to be compared with the header's.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_abi_version() -> u32 {
    TTREC_ABI_VERSION
}

/// The library's version, such as "0.1.0". The string lives forever.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_version_string() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no zeros in it"),
        };
    VERSION.as_ptr()
}

/// The instructions that lookups use, the best that this CPU has: "scalar", "avx2", "avx512" or
/// "neon", perhaps others later. The string lives forever.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_tier_name() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    NAME.get_or_init(|| CString::new(Tier::best().name()).unwrap_or_default())
        .as_ptr()
}

/// What went wrong in the last call of this thread that failed, in English and UTF-8; empty if none
/// did. Calls that succeed leave it alone. The string lives until the next call of this thread that
/// fails, and no longer than the thread.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_last_error() -> *const c_char {
    last_error::get()
}

/// Opens the blob in the file at `path` (UTF-8 on Windows) by mapping it: that reads a page or two,
/// whatever its size. The file must not be changed or cut short while the blob is open; replace it
/// by renaming another over it. `*blob` is to be closed with ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open(
    path: *const c_char,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let given = caller.reads();
        let place = given.place(blob, "blob")?;
        let path = path_of(given.text(path, "path")?)?;
        let at_path = |error| Error::File { path: path.display().to_string(), error };
        // A directory cannot be mapped, and opening a pipe waits for its writer.
        if !path.metadata().map_err(at_path)?.is_file() {
            return Err(at_path(io::Error::other("not a regular file")));
        }
        let bytes = File::open(path).and_then(|file| given.map(&file)).map_err(at_path)?;
        let opened = ttrec_blob::open(bytes).map_err(|error| match error {
            Error::Blob(error) => Error::BlobFile { path: path.display().to_string(), error },
            error => error,
        })?;
        place.put(Box::into_raw(Box::new(opened)));
        Ok(())
    })
}

/// Opens the blob that lies in the `len` bytes from `bytes` on, a multiple of 64, without copying
/// them: the caller keeps them, unchanged, until the blob is closed. `*blob` is to be closed with
/// ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open_borrowed(
    bytes: *const c_void,
    len: usize,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let given = caller.reads();
        let place = given.place(blob, "blob")?;
        let opened = ttrec_blob::open(given.lent(bytes, len)?)?;
        place.put(Box::into_raw(Box::new(opened)));
        Ok(())
    })
}

/// Opens a copy of the blob that lies in the `len` bytes from `bytes` on, which may start anywhere
/// and are not needed afterwards. `*blob` is to be closed with ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open_copied(
    bytes: *const c_void,
    len: usize,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let given = caller.reads();
        let place = given.place(blob, "blob")?;
        let opened =
            ttrec_blob::open(Bytes::copied(given.slice(bytes.cast::<u8>(), len, "bytes")?)?)?;
        place.put(Box::into_raw(Box::new(opened)));
        Ok(())
    })
}

/// Closes a blob. Its tables, their names, its ranker and the handle itself are gone then: no other
/// thread may be using them. Null is nothing to close.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_close(blob: *mut ttrec_blob) {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or((), promise, |caller| ttrec_blob::close(caller, blob));
}

/// Compares the whole blob with its checksums, and checks that what they cover makes sense; opening
/// does neither. It reads everything. It finds accidents: whoever changes a blob on purpose changes
/// its checksums too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_verify_payload(blob: *const ttrec_blob) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| Ok(caller.reads().handle(blob, "blob")?.verify_payload()?))
}

/// Number of tables; 0 if `blob` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_num_tables(blob: *const ttrec_blob) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| Ok(caller.reads().handle(blob, "blob")?.tables().len()))
}

/// The table at `position`, in the order of their names, from 0 on; null past the last one, or if
/// `blob` is null. It lives until the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_table_at(
    blob: *const ttrec_blob,
    position: usize,
) -> *const ttrec_table {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(ptr::null(), promise, |caller| {
        let tables = caller.reads().handle(blob, "blob")?.tables();
        let table = tables
            .get(position)
            .ok_or(Error::TablePosition { position, num_tables: tables.len() })?;
        Ok(ptr::from_ref(table))
    })
}

/// The table called `name`. `*table` lives until the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_table(
    blob: *const ttrec_blob,
    name: *const c_char,
    table: *mut *const ttrec_table,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let given = caller.reads();
        let blob = given.handle(blob, "blob")?;
        let name = given.text(name, "name")?;
        given.place(table, "table")?.put(blob.table(name)?);
        Ok(())
    })
}

/// The table's name, in UTF-8; null if `table` is null. It lives until the blob is closed. (A name
/// may hold a zero, and is cut there: such a table is found by its position only.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_name(table: *const ttrec_table) -> *const c_char {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(ptr::null(), promise, |caller| {
        Ok(caller.reads().handle(table, "table")?.name().as_ptr())
    })
}

/// Number of rows: indices are below it. 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_num_embeddings(table: *const ttrec_table) -> u64 {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(table, "table")?.table().num_embeddings())
    })
}

/// Floats of a row. 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_embedding_dim(table: *const ttrec_table) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(table, "table")?.table().embedding_dim())
    })
}

/// Floats of workspace that a lookup or bags of this table need at least; it may be 0, and is if
/// `table` is null. A blob that is not trusted may ask for much: see what is ready to be spent
/// before allocating it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_workspace_len(table: *const ttrec_table) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(table, "table")?.table().workspace_len(1))
    })
}

/// Floats of workspace with which bags of this table are fastest, if all of them together have
/// `num_lookups` indices: at least ttrec_table_workspace_len(). 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_batch_workspace_len(
    table: *const ttrec_table,
    num_lookups: usize,
) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(table, "table")?.table().workspace_len(num_lookups))
    })
}

/// Writes row `index` to `out`: `out_len` is ttrec_table_embedding_dim(). `workspace` has at least
/// ttrec_table_workspace_len() floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_lookup(
    table: *const ttrec_table,
    index: u64,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        table
            .lookup(index, out, workspace)
            .map_err(|error| Error::Lookup { table: table.name(), error })
    })
}

/// `num_bags` bags of `num_indices` uint32_t, with or without (null) weights: fills a ttrec_bags,
/// which points to them.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_bags_u32(
    indices: *const u32,
    num_indices: usize,
    offsets: *const u32,
    num_bags: usize,
    per_sample_weights: *const f32,
) -> ttrec_bags {
    let (indices, offsets) = (indices.cast(), offsets.cast());
    let index_type = ttrec_index_type::U32 as u32;
    ttrec_bags { index_type, indices, num_indices, offsets, num_bags, per_sample_weights }
}

/// The same of int64_t, as PyTorch has them.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_bags_i64(
    indices: *const i64,
    num_indices: usize,
    offsets: *const i64,
    num_bags: usize,
    per_sample_weights: *const f32,
) -> ttrec_bags {
    let (indices, offsets) = (indices.cast(), offsets.cast());
    let index_type = ttrec_index_type::I64 as u32;
    ttrec_bags { index_type, indices, num_indices, offsets, num_bags, per_sample_weights }
}

/// Pools each bag into a row of `out`: `out_len` is num_bags * ttrec_table_embedding_dim(), and
/// `pooling` a ttrec_pooling. An empty bag is zeros. `workspace` has at least
/// ttrec_table_workspace_len() floats, and better ttrec_table_batch_workspace_len(): what is
/// written does not depend on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_bag(
    table: *const ttrec_table,
    bags: *const ttrec_bags,
    pooling: u32,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        let bags = given.copy(bags, "bags")?;
        let pooling = ttrec_pooling::of(pooling)?;
        match bags.index_type() {
            Some(ttrec_index_type::U32) => {
                bag::<u32>(table, &bags, &given, pooling, out, workspace)
            }
            Some(ttrec_index_type::I64) => {
                bag::<i64>(table, &bags, &given, pooling, out, workspace)
            }
            None => Err(Error::IndexType { found: bags.index_type }),
        }
    })
}

/// Pools the bags of several tables: `bags[t]` are those of `tables[t]`, for `num_tables` of each.
/// All have the same number of bags and the same index_type. Row b of `out` has what the bags b
/// come to, those of `tables[0]` first: `out_len` is num_bags times the sum of all
/// ttrec_table_embedding_dim(). `workspace` is as for the table that needs the most. Allocates
/// nothing for up to 32 tables, and a short list for more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_pool_tables(
    tables: *const *const ttrec_table,
    bags: *const ttrec_bags,
    num_tables: usize,
    pooling: u32,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let tables = given.slice(tables, num_tables, "tables")?;
        let bags = given.slice(bags, num_tables, "bags")?;
        let pooling = ttrec_pooling::of(pooling)?;
        match bags.first().map_or(Some(ttrec_index_type::U32), ttrec_bags::index_type) {
            Some(ttrec_index_type::U32) => {
                pool::<u32>(tables, bags, &given, pooling, out, workspace)
            }
            Some(ttrec_index_type::I64) => {
                pool::<i64>(tables, bags, &given, pooling, out, workspace)
            }
            None => Err(Error::IndexType { found: bags[0].index_type }),
        }
    })
}

/// The blob's model: TTREC_STATUS_NO_MODEL if it has tables only. `*ranker` lives until the blob is
/// closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_ranker(
    blob: *const ttrec_blob,
    ranker: *mut *const ttrec_ranker,
) -> ttrec_status {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| {
        let given = caller.reads();
        let found = given.handle(blob, "blob")?.ranker()?;
        given.place(ranker, "ranker")?.put(found);
        Ok(())
    })
}

/// Dense features of a sample. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_num_dense(ranker: *const ttrec_ranker) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(ranker, "ranker")?.ranker().num_dense())
    })
}

/// Tables that the model looks up, which may be fewer than the blob has. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_num_tables(ranker: *const ttrec_ranker) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(ranker, "ranker")?.ranker().num_tables())
    })
}

/// The table whose bags are at `position` of what is scored, from 0 on: the order is the model's.
/// Null past the last one, or if `ranker` is null. It is one of the blob's, and lives until that is
/// closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_table_at(
    ranker: *const ttrec_ranker,
    position: usize,
) -> *const ttrec_table {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(ptr::null(), promise, |caller| {
        let ranker = caller.reads().handle(ranker, "ranker")?;
        let num_tables = ranker.ranker().num_tables();
        Ok(ptr::from_ref(ranker.table(position).ok_or(Error::ModelTable { position, num_tables })?))
    })
}

/// Floats of a row of each of them. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_embedding_dim(ranker: *const ttrec_ranker) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(ranker, "ranker")?.ranker().embedding_dim())
    })
}

/// Floats of workspace that scoring needs at least; 0 if `ranker` is null. A blob that is not
/// trusted may ask for much: see what is ready to be spent before allocating it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_workspace_len(ranker: *const ttrec_ranker) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(ranker, "ranker")?.ranker().workspace_len(1))
    })
}

/// Floats of workspace with which `num_samples` of one index per bag are scored fastest: at least
/// ttrec_ranker_workspace_len(). It stops growing at some hundred samples. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_batch_workspace_len(
    ranker: *const ttrec_ranker,
    num_samples: usize,
) -> usize {
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer_or(0, promise, |caller| {
        Ok(caller.reads().handle(ranker, "ranker")?.ranker().workspace_len(num_samples))
    })
}

/// Writes the score of each of `out_len` samples to `out`: a probability if the model ends in a
/// sigmoid, as DLRM's do. `dense` has `dense_len` = out_len * ttrec_ranker_num_dense() floats,
/// sample after sample. `bags[t]` are those of ttrec_ranker_table_at(t): one for each sample, whose
/// rows the model sums or averages; `num_tables` is ttrec_ranker_num_tables(), and all have the
/// same index_type. `workspace` has at least ttrec_ranker_workspace_len() floats, and better
/// ttrec_ranker_batch_workspace_len(): a score depends neither on it nor on the samples beside it.
/// Allocates nothing for up to 32 tables, and a short list for more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_score(
    ranker: *const ttrec_ranker,
    dense: *const f32,
    dense_len: usize,
    bags: *const ttrec_bags,
    num_tables: usize,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    let (dense, bags) = ((dense, dense_len), (bags, num_tables));
    let (out, workspace) = ((out, out_len), (workspace, workspace_len));
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| score(caller, ranker, Scoring::Score, dense, bags, out, workspace))
}

/// The same without the sigmoid at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_logits(
    ranker: *const ttrec_ranker,
    dense: *const f32,
    dense_len: usize,
    bags: *const ttrec_bags,
    num_tables: usize,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    let (dense, bags) = ((dense, dense_len), (bags, num_tables));
    let (out, workspace) = ((out, out_len), (workspace, workspace_len));
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| score(caller, ranker, Scoring::Logits, dense, bags, out, workspace))
}

/// Writes the score of each of `out_len` candidates of one user to `out`, as ttrec_ranker_score()
/// would for samples that repeat the user's part, bit for bit. What is the user's is given once:
/// `dense` of one sample, and bags of which there is one. What is the candidates' is given for
/// each: bags of which there are out_len, and `dense` if it depends on them. It is fastest where
/// the user's tables come first in the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_rank(
    ranker: *const ttrec_ranker,
    dense: *const f32,
    dense_len: usize,
    bags: *const ttrec_bags,
    num_tables: usize,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    let (dense, bags) = ((dense, dense_len), (bags, num_tables));
    let (out, workspace) = ((out, out_len), (workspace, workspace_len));
    // SAFETY: the header asks it of the caller.
    let promise = unsafe { Promise::of_the_caller() };
    answer(promise, |caller| score(caller, ranker, Scoring::Rank, dense, bags, out, workspace))
}

fn bag<'c, I: BagIndex>(
    table: &'c Table<'c>,
    bags: &ttrec_bags,
    given: &Given<'c>,
    pooling: Pooling,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), Error<'c>> {
    let refused = |error| bags::refused(table.name(), error);
    let bags = bags.read::<I>(given)?;
    let bags = bags.map_err(|error| Error::Bags { table: table.name(), error })?;
    table.pool(&bags, pooling, out, workspace).map_err(refused)
}

fn pool<'c, I: BagIndex>(
    tables: &[*const ttrec_table],
    bags: &[ttrec_bags],
    given: &Given<'c>,
    pooling: Pooling,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), Error<'c>> {
    let mut list = SmallVec::<[(&Table<'_>, Bags<'_>); 32]>::new();
    let no_memory = |_| Error::Memory {
        bytes: tables.len().saturating_mul(size_of::<(&Table<'_>, Bags<'_>)>()),
    };
    list.try_reserve_exact(tables.len()).map_err(no_memory)?;
    for (position, (&table, bags)) in tables.iter().zip(bags).enumerate() {
        let table = given.handle(table, "table")?.table();
        if bags.index_type() != Some(I::TYPE) {
            return Err(Error::MixedIndexTypes { position });
        }
        list.push((
            table,
            bags.read::<I>(given)?
                .map_err(|error| Error::Bags { table: table.name(), error })?,
        ));
    }
    pool_tables(&list, pooling, out, workspace).map_err(|error| {
        match error.table.and_then(|table| list.get(table)) {
            Some((table, _)) => bags::refused(table.name(), error.error),
            None => Error::Tables(error.error),
        }
    })
}

/// What is made of samples.
#[derive(Clone, Copy)]
enum Scoring {
    Score,
    Logits,
    Rank,
}

/// Floats or structs of the caller's, and how many.
type Array<P> = (P, usize);

fn score<'c>(
    caller: Caller<'c>,
    ranker: *const ttrec_ranker,
    scoring: Scoring,
    (dense, dense_len): Array<*const f32>,
    (bags, num_tables): Array<*const ttrec_bags>,
    out: Array<*mut f32>,
    workspace: Array<*mut f32>,
) -> Result<(), Error<'c>> {
    let (out, workspace, given) = caller.writes(out, workspace)?;
    let ranker = given.handle(ranker, "ranker")?;
    let expected = ranker.ranker().num_tables();
    if num_tables != expected {
        return Err(Error::Score(ScoreError::BagLists { found: num_tables, expected }));
    }
    let dense = given.slice(dense, dense_len, "dense")?;
    let bags = given.slice(bags, num_tables, "bags")?;
    match bags.first().map_or(Some(ttrec_index_type::U32), ttrec_bags::index_type) {
        Some(ttrec_index_type::U32) => {
            score_bags::<u32>(ranker, scoring, dense, bags, &given, out, workspace)
        }
        Some(ttrec_index_type::I64) => {
            score_bags::<i64>(ranker, scoring, dense, bags, &given, out, workspace)
        }
        None => Err(Error::IndexType { found: bags[0].index_type }),
    }
}

fn score_bags<'c, I: BagIndex>(
    ranker: &'c ttrec_ranker,
    scoring: Scoring,
    dense: &[f32],
    bags: &[ttrec_bags],
    given: &Given<'c>,
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), Error<'c>> {
    let name = |table| ranker.table(table).map_or("", |table| table.table().name());
    let refused = |error| match error {
        ScoreError::Table { table, error } => bags::refused(name(table), error),
        error => Error::Score(error),
    };
    let mut list = SmallVec::<[Bags<'_>; 32]>::new();
    let no_memory = |_| Error::Memory { bytes: size_of_val(bags) };
    list.try_reserve_exact(bags.len()).map_err(no_memory)?;
    for (table, bags) in bags.iter().enumerate() {
        if bags.index_type() != Some(I::TYPE) {
            return Err(Error::MixedIndexTypes { position: table });
        }
        let bags = bags.read::<I>(given)?;
        list.push(bags.map_err(|error| Error::Bags { table: name(table), error })?);
    }
    let ranker = ranker.ranker();
    match scoring {
        Scoring::Score => ranker.score(dense, &list, out, workspace),
        Scoring::Logits => ranker.logits(dense, &list, out, workspace),
        Scoring::Rank => ranker.rank(dense, &list, out, workspace),
    }
    .map_err(refused)
}

#[cfg(unix)]
fn path_of(path: &CStr) -> Result<&Path, Error<'_>> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    Ok(Path::new(OsStr::from_bytes(path.to_bytes())))
}

#[cfg(not(unix))]
fn path_of(path: &CStr) -> Result<&Path, Error<'_>> {
    path.to_str().map(Path::new).map_err(|_| Error::PathNotUtf8)
}
