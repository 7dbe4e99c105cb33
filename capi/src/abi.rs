//! The exported functions, in the header's order. Each makes its caller's promise, and leaves the
//! rest to safe code behind the boundary.
//!
//! The documentation of each function is written for C: cbindgen copies it to the header.

#![allow(
    clippy::missing_safety_doc,
    reason = "the head of the header states the requirements once, for all functions"
)]

use crate::{
    bags::{ttrec_bags, ttrec_index_type, ttrec_pooling},
    boundary::{
        Bytes, Caller, Given, Promise, answer, answer_or, ttrec_blob, ttrec_ranker, ttrec_table,
    },
    last_error,
    search::{ttrec_scored, ttrec_search},
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
use ttrec::{Bags, BagsError, Ranker, ScoreError, Scored, Tier, bag::pool_tables, merge_top_k};

/// The caller's promise, which every exported function needs. A macro, so that each makes it for
/// its own caller, but for one reason that is written once.
macro_rules! promise {
    () => {
        // SAFETY: the header requires it of the caller.
        unsafe { Promise::of_the_caller() }
    };
}

/// The version of this interface. It changes when programs compiled with an older header would no
/// longer work.
pub const TTREC_ABI_VERSION: u32 = 2;

/// The TTREC_ABI_VERSION of the loaded library. Compare it with the header's.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_abi_version() -> u32 {
    TTREC_ABI_VERSION
}

/// The library's version, such as "0.1.0". The string is static.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_version_string() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version contains no zero byte"),
        };
    VERSION.as_ptr()
}

/// The instruction set that lookups use, the best that this CPU has: "scalar", "avx2", "avx512" or
/// "neon"; a later version may add others. The string is static.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_tier_name() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    NAME.get_or_init(|| CString::new(Tier::best().name()).unwrap_or_default())
        .as_ptr()
}

/// The message of this thread's last failed call, in English and UTF-8; empty if no call has
/// failed. Successful calls do not change it. The string lives until the thread's next failed call,
/// or until the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_last_error() -> *const c_char {
    last_error::get()
}

/// Opens the blob in the file at `path` (UTF-8 on Windows). The file is mapped, so that opening
/// reads a page or two, whatever the file's size. Do not change or shorten the file while the blob
/// is open; to replace it, rename another file over it. Close `*blob` with ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open(
    path: *const c_char,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    open(promise!(), blob, |given| {
        let path = path_of(given.c_str(path, "path")?)?;
        let at_path = |error| Error::File { path: path.display().to_string(), error };
        // A directory cannot be mapped, and opening a pipe waits for its writer.
        if !path.metadata().map_err(at_path)?.is_file() {
            return Err(at_path(io::Error::other("not a regular file")));
        }
        let bytes = File::open(path).and_then(|file| given.map(&file)).map_err(at_path)?;
        ttrec_blob::open(bytes).map_err(|error| match error {
            Error::Blob(error) => Error::BlobFile { path: path.display().to_string(), error },
            error => error,
        })
    })
}

/// Opens the blob in the `len` bytes at `bytes`, without copying them. `bytes` is a multiple of 64;
/// keep the bytes, unchanged, until the blob is closed. Close `*blob` with ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open_borrowed(
    bytes: *const c_void,
    len: usize,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    open(promise!(), blob, |given| ttrec_blob::open(given.borrowed(bytes, len)?))
}

/// Opens a copy of the blob in the `len` bytes at `bytes`, which need no alignment and may be freed
/// afterwards. Close `*blob` with ttrec_blob_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_open_copied(
    bytes: *const c_void,
    len: usize,
    blob: *mut *mut ttrec_blob,
) -> ttrec_status {
    open(promise!(), blob, |given| {
        ttrec_blob::open(Bytes::copied(given.slice(bytes.cast::<u8>(), len, "bytes")?)?)
    })
}

/// Closes a blob, and frees the handle. Its tables, their names and its ranker end with it: no
/// thread may use them any more. Does nothing if `blob` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_close(blob: *mut ttrec_blob) {
    answer_or((), promise!(), |caller| ttrec_blob::close(caller, blob));
}

/// Reads the whole blob, which opening does not: compares it with its checksums, and checks that
/// the values are valid. This finds accidental damage, not forgery, since checksums can be forged
/// too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_verify_payload(blob: *const ttrec_blob) -> ttrec_status {
    answer(promise!(), |caller| Ok(caller.reads().handle(blob, "blob")?.verify_payload()?))
}

/// The number of tables. 0 if `blob` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_num_tables(blob: *const ttrec_blob) -> usize {
    get(promise!(), (blob, "blob"), |blob| blob.tables().len())
}

/// The table at `position`, from 0, in the order of the tables' names. Null if there is no such
/// table, or if `blob` is null. The table lives until the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_table_at(
    blob: *const ttrec_blob,
    position: usize,
) -> *const ttrec_table {
    answer_or(ptr::null(), promise!(), |caller| {
        let tables = caller.reads().handle(blob, "blob")?.tables();
        let missing = Error::TablePosition { position, num_tables: tables.len() };
        Ok(ptr::from_ref(tables.get(position).ok_or(missing)?))
    })
}

/// The table called `name`. `*table` lives until the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_table(
    blob: *const ttrec_blob,
    name: *const c_char,
    table: *mut *const ttrec_table,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let given = caller.reads();
        let blob = given.handle(blob, "blob")?;
        let name = given.c_str(name, "name")?;
        given.slot(table, "table")?.put(blob.table(name)?);
        Ok(())
    })
}

/// The table's name, in UTF-8. Null if `table` is null. The string lives until the blob is closed.
/// (A name that contains a zero byte ends there; ttrec_blob_table_at() finds such a table.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_name(table: *const ttrec_table) -> *const c_char {
    answer_or(ptr::null(), promise!(), |caller| {
        Ok(caller.reads().handle(table, "table")?.name().as_ptr())
    })
}

/// The number of embeddings: valid indices are less than it. 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_num_embeddings(table: *const ttrec_table) -> u64 {
    get(promise!(), (table, "table"), |table| table.table().num_embeddings())
}

/// The number of floats in a row. 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_embedding_dim(table: *const ttrec_table) -> usize {
    get(promise!(), (table, "table"), |table| table.table().embedding_dim())
}

/// The number of floats that the workspace of this table needs at least. It may be 0, and is 0 if
/// `table` is null. A blob from an untrusted source may ask for a lot: compare the number with a
/// limit before you allocate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_workspace_len(table: *const ttrec_table) -> usize {
    get(promise!(), (table, "table"), |table| table.table().workspace_len(1))
}

/// The number of floats of workspace with which bags that have `num_lookups` indices in total are
/// pooled fastest: at least ttrec_table_workspace_len(). 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_batch_workspace_len(
    table: *const ttrec_table,
    num_lookups: usize,
) -> usize {
    get(promise!(), (table, "table"), |table| table.table().workspace_len(num_lookups))
}

/// Writes the row of `index` to `out`. `out_len` is ttrec_table_embedding_dim(), `workspace_len` at
/// least ttrec_table_workspace_len().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_lookup(
    table: *const ttrec_table,
    index: u64,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        table
            .lookup(index, out, workspace)
            .map_err(|error| Error::Lookup { table: table.name(), error })
    })
}

/// A ttrec_bags of these arrays of uint32_t, which it points to: `num_indices` indices and
/// `num_bags + 1` offsets. `per_sample_weights` may be null.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_bags_u32(
    indices: *const u32,
    num_indices: usize,
    offsets: *const u32,
    num_bags: usize,
    per_sample_weights: *const f32,
) -> ttrec_bags {
    let (indices, offsets) = (indices.cast(), offsets.cast());
    let list = (ttrec_index_type::U32, indices, num_indices);
    ttrec_bags::new(list, offsets, num_bags, per_sample_weights)
}

/// The same for arrays of int64_t, PyTorch's default index type.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_bags_i64(
    indices: *const i64,
    num_indices: usize,
    offsets: *const i64,
    num_bags: usize,
    per_sample_weights: *const f32,
) -> ttrec_bags {
    let (indices, offsets) = (indices.cast(), offsets.cast());
    let list = (ttrec_index_type::I64, indices, num_indices);
    ttrec_bags::new(list, offsets, num_bags, per_sample_weights)
}

/// The same for arrays of int32_t.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_bags_i32(
    indices: *const i32,
    num_indices: usize,
    offsets: *const i32,
    num_bags: usize,
    per_sample_weights: *const f32,
) -> ttrec_bags {
    let (indices, offsets) = (indices.cast(), offsets.cast());
    let list = (ttrec_index_type::I32, indices, num_indices);
    ttrec_bags::new(list, offsets, num_bags, per_sample_weights)
}

/// Pools each bag into a row of `out`; the row of an empty bag is zeros. `pooling` is a
/// ttrec_pooling, `out_len` is num_bags * ttrec_table_embedding_dim(). `workspace_len` is at least
/// ttrec_table_workspace_len(); ttrec_table_batch_workspace_len() is fastest. The rows do not
/// depend on it.
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
    answer(promise!(), |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        let refused = |error| Error::Lookup { table: table.name(), error };
        let bags = given.copy(bags, "bags")?;
        let pooling = ttrec_pooling::of(pooling)?;
        let bags = bags.read(&given)?;
        let bags = bags.map_err(|error| Error::Bags { table: table.name(), error })?;
        table.pool(&bags, pooling, out, workspace).map_err(refused)
    })
}

/// The number of floats of workspace with which ttrec_table_scores() and ttrec_table_top_k() are
/// fastest for `num_queries` queries. They accept any workspace of at least the length for one
/// query. It does not grow with the number of rows. 0 if `table` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_retrieval_workspace_len(
    table: *const ttrec_table,
    num_queries: usize,
) -> usize {
    get(promise!(), (table, "table"), |table| table.table().retrieval_workspace_len(num_queries))
}

/// Writes the inner product of each query with each row of the `num_rows` indices from `first_row`
/// on: that of query q with index first_row + i is `out[q * num_rows + i]`. `queries` has
/// ttrec_table_embedding_dim() floats for each query, `queries_len` in total, and `out_len` is the
/// number of queries times num_rows. `workspace_len` is at least
/// ttrec_table_retrieval_workspace_len() of one query; the scores do not depend on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_scores(
    table: *const ttrec_table,
    queries: *const f32,
    queries_len: usize,
    first_row: u64,
    num_rows: u64,
    out: *mut f32,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        let queries = given.slice(queries, queries_len, "queries")?;
        let rows = first_row..first_row.saturating_add(num_rows);
        let refused = |error| Error::Retrieval { table: table.name(), error };
        table.scores(queries, rows, out, workspace).map_err(refused)
    })
}

/// A search for the best `k` of all rows.
#[unsafe(no_mangle)]
pub extern "C" fn ttrec_search_best(k: usize) -> ttrec_search {
    ttrec_search {
        k,
        first_row: 0,
        end_row: u64::MAX,
        part: 0,
        num_parts: 1,
        excluded: ptr::null(),
        bias: ptr::null(),
    }
}

/// Writes the best rows of each query, best first: those of query q are `out[q * k]` to
/// `out[q * k + k - 1]`, with the k of `search`. No other row of the search has a higher score, or
/// the same score and a smaller index. If there are fewer than k rows, the places after them have
/// the index UINT64_MAX and the score -INFINITY. A row whose score is NaN is left out. `queries`
/// and `workspace` are as for ttrec_table_scores(); `out_len` is the number of queries times k.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_table_top_k(
    table: *const ttrec_table,
    queries: *const f32,
    queries_len: usize,
    search: *const ttrec_search,
    out: *mut ttrec_scored,
    out_len: usize,
    workspace: *mut f32,
    workspace_len: usize,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let out = (out.cast::<Scored>(), out_len);
        let (out, workspace, given) = caller.writes(out, (workspace, workspace_len))?;
        let table = given.handle(table, "table")?.table();
        let queries = given.slice(queries, queries_len, "queries")?;
        let search = given.copy(search, "search")?.read(&given, table)?;
        let refused = |error| Error::Retrieval { table: table.name(), error };
        table.top_k(queries, &search, out, workspace).map_err(refused)
    })
}

/// Merges `others`, the results of ttrec_table_top_k() for the same queries and k, but another
/// range of rows or another part, into `best`. Both have `len` elements, lists of k rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_merge_top_k(
    k: usize,
    best: *mut ttrec_scored,
    others: *const ttrec_scored,
    len: usize,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let (best, _, given) = caller.writes((best.cast::<Scored>(), len), (ptr::null_mut(), 0))?;
        let others = given.slice(others.cast::<Scored>(), len, "others")?;
        merge_top_k(k, best, others).map_err(Error::Merge)
    })
}

/// Pools the bags of `num_tables` tables: `bags[t]` are the bags of `tables[t]`. All have the same
/// number of bags and the same index_type. Row b of `out` is the pooled row of bag b of
/// `tables[0]`, then that of `tables[1]`, and so on: `out_len` is num_bags times the sum of all
/// ttrec_table_embedding_dim(). `workspace_len` is enough for each of the tables. Up to 32 tables
/// allocate nothing, more allocate a list of them.
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
    answer(promise!(), |caller| {
        let (out, workspace, given) = caller.writes((out, out_len), (workspace, workspace_len))?;
        let tables = given.slice(tables, num_tables, "tables")?;
        let bags = given.slice(bags, num_tables, "bags")?;
        let pooling = ttrec_pooling::of(pooling)?;
        let pairs = read_all(bags, &given, |position, bags| {
            let table = given.handle(tables[position], "table")?.table();
            let refused = |error| Error::Bags { table: table.name(), error };
            Ok((table, bags.map_err(refused)?))
        })?;
        pool_tables(&pairs, pooling, out, workspace).map_err(|error| {
            match error.table.and_then(|table| pairs.get(table)) {
                Some((table, _)) => Error::Lookup { table: table.name(), error: error.error },
                None => Error::Tables(error.error),
            }
        })
    })
}

/// The blob's model, or TTREC_STATUS_NO_MODEL if the blob has only tables. `*ranker` lives until
/// the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_blob_ranker(
    blob: *const ttrec_blob,
    ranker: *mut *const ttrec_ranker,
) -> ttrec_status {
    answer(promise!(), |caller| {
        let given = caller.reads();
        let found = given.handle(blob, "blob")?.ranker()?;
        given.slot(ranker, "ranker")?.put(found);
        Ok(())
    })
}

/// The number of dense features of a sample. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_num_dense(ranker: *const ttrec_ranker) -> usize {
    get(promise!(), (ranker, "ranker"), |ranker| ranker.ranker().num_dense())
}

/// The number of tables of the model; the blob may have more. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_num_tables(ranker: *const ttrec_ranker) -> usize {
    get(promise!(), (ranker, "ranker"), |ranker| ranker.ranker().num_tables())
}

/// The model's table at `position`, from 0, in the order in which ttrec_ranker_score() takes bags.
/// Null if there is no such table, or if `ranker` is null. It is one of the blob's tables, and
/// lives until the blob is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_table_at(
    ranker: *const ttrec_ranker,
    position: usize,
) -> *const ttrec_table {
    answer_or(ptr::null(), promise!(), |caller| {
        let ranker = caller.reads().handle(ranker, "ranker")?;
        let missing = Error::ModelTable { position, num_tables: ranker.ranker().num_tables() };
        Ok(ptr::from_ref(ranker.table(position).ok_or(missing)?))
    })
}

/// The number of floats in a row of each of the model's tables. 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_embedding_dim(ranker: *const ttrec_ranker) -> usize {
    get(promise!(), (ranker, "ranker"), |ranker| ranker.ranker().embedding_dim())
}

/// The number of floats of workspace that scoring needs at least. 0 if `ranker` is null. A blob
/// from an untrusted source may ask for a lot: compare the number with a limit before you allocate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_workspace_len(ranker: *const ttrec_ranker) -> usize {
    get(promise!(), (ranker, "ranker"), |ranker| ranker.ranker().workspace_len(1))
}

/// The number of floats of workspace with which `num_samples` samples of one index per bag are
/// scored fastest: at least ttrec_ranker_workspace_len(). It stops growing at some hundred samples.
/// 0 if `ranker` is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ttrec_ranker_batch_workspace_len(
    ranker: *const ttrec_ranker,
    num_samples: usize,
) -> usize {
    get(promise!(), (ranker, "ranker"), |ranker| ranker.ranker().workspace_len(num_samples))
}

/// Writes the score of each of `out_len` samples to `out`: a probability if the model ends in a
/// sigmoid, as DLRMs do. `dense` has the dense features, sample after sample: `dense_len` is
/// out_len * ttrec_ranker_num_dense(). `bags[t]` has one bag for each sample, of
/// ttrec_ranker_table_at(t); the model sums or averages the rows of a bag. `num_tables` is
/// ttrec_ranker_num_tables(), and all bags have the same index_type. `workspace_len` is at least
/// ttrec_ranker_workspace_len(); ttrec_ranker_batch_workspace_len() is fastest. A score depends
/// neither on it nor on the other samples. Up to 32 tables allocate nothing, more allocate a list.
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
    let inputs = Inputs { dense: (dense, dense_len), bags: (bags, num_tables) };
    let outputs = ((out, out_len), (workspace, workspace_len));
    answer(promise!(), |caller| score(caller, ranker, Ranker::score, inputs, outputs))
}

/// As ttrec_ranker_score(), but without the sigmoid at the end.
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
    let inputs = Inputs { dense: (dense, dense_len), bags: (bags, num_tables) };
    let outputs = ((out, out_len), (workspace, workspace_len));
    answer(promise!(), |caller| score(caller, ranker, Ranker::logits, inputs, outputs))
}

/// Writes the score of each of one user's `out_len` candidates to `out`. Features of the user are
/// given once: as `dense` of one sample, and in `bags[t]`, one bag. Features of the candidates are
/// given for each candidate: in `bags[t]`, out_len bags, and, if they include dense features, as
/// `dense` of out_len samples. The scores are, bit for bit, those that ttrec_ranker_score() gives
/// when the user's features are repeated for each candidate. It is fastest if the user's tables
/// come first in the model.
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
    let inputs = Inputs { dense: (dense, dense_len), bags: (bags, num_tables) };
    let outputs = ((out, out_len), (workspace, workspace_len));
    answer(promise!(), |caller| score(caller, ranker, Ranker::rank, inputs, outputs))
}

/// Writes the handle of the blob that `read` opens.
fn open(
    promise: Promise,
    blob: *mut *mut ttrec_blob,
    read: impl for<'c> FnOnce(&Given<'c>) -> Result<ttrec_blob, Error<'c>>,
) -> ttrec_status {
    answer(promise, |caller| {
        let given = caller.reads();
        let slot = given.slot(blob, "blob")?;
        slot.put(Box::into_raw(Box::new(read(&given)?)));
        Ok(())
    })
}

/// A number that a handle has; 0 if the handle is null.
fn get<H: 'static, T: Default>(
    promise: Promise,
    (handle, name): (*const H, &'static str),
    number: impl FnOnce(&H) -> T,
) -> T {
    answer_or(T::default(), promise, |caller| Ok(number(caller.reads().handle(handle, name)?)))
}

/// A method of the ranker.
type Scoring<'c> =
    fn(&Ranker<'c>, &[f32], &[Bags<'_>], &mut [f32], &mut [f32]) -> Result<(), ScoreError>;

/// A pointer to an array, and the array's length.
type Array<P> = (P, usize);

/// What is scored.
struct Inputs {
    dense: Array<*const f32>,
    bags: Array<*const ttrec_bags>,
}

fn score<'c>(
    caller: Caller<'c>,
    ranker: *const ttrec_ranker,
    scoring: Scoring<'c>,
    Inputs { dense: (dense, dense_len), bags: (bags, num_tables) }: Inputs,
    (out, workspace): (Array<*mut f32>, Array<*mut f32>),
) -> Result<(), Error<'c>> {
    let (out, workspace, given) = caller.writes(out, workspace)?;
    let ranker = given.handle(ranker, "ranker")?;
    let expected = ranker.ranker().num_tables();
    if num_tables != expected {
        return Err(Error::Score(ScoreError::BagLists { found: num_tables, expected }));
    }
    let dense = given.slice(dense, dense_len, "dense")?;
    let bags = given.slice(bags, num_tables, "bags")?;
    let name = |table| ranker.table(table).map_or("", |table| table.table().name());
    let refused = |error| match error {
        ScoreError::Table { table, error } => Error::Lookup { table: name(table), error },
        error => Error::Score(error),
    };
    let bags = read_all(bags, &given, |table, bags| {
        bags.map_err(|error| Error::Bags { table: name(table), error })
    })?;
    scoring(ranker.ranker(), dense, &bags, out, workspace).map_err(refused)
}

/// What `make` makes of the bags of each table. Allocates only for more than 32 tables.
fn read_all<'c, T>(
    bags: &[ttrec_bags],
    given: &Given<'c>,
    make: impl Fn(usize, Result<Bags<'c>, BagsError>) -> Result<T, Error<'c>>,
) -> Result<SmallVec<[T; 32]>, Error<'c>> {
    let mut list = SmallVec::new();
    let no_memory = |_| Error::Memory { bytes: bags.len().saturating_mul(size_of::<T>()) };
    list.try_reserve_exact(bags.len()).map_err(no_memory)?;
    for (position, these) in bags.iter().enumerate() {
        if these.index_type != bags[0].index_type {
            return Err(Error::MixedIndexTypes { position });
        }
        list.push(make(position, these.read(given)?)?);
    }
    Ok(list)
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
