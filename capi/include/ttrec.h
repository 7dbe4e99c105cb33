/* ttrec from C: embedding tables, looked up and pooled, and a ranking model, scored, in a blob that is opened once.
 *
 * Made by cbindgen from the Rust source (see capi/cbindgen.toml): do not edit.
 *
 * STATUS. A function that can fail returns a ttrec_status, TTREC_STATUS_OK if all went well; ttrec_last_error() tells what
 * did not. Getters return 0 or null for a null handle. A function that fails has written nothing to its outputs, `*blob`
 * and its kin among them (but with TTREC_STATUS_INTERNAL). What is in a workspace afterwards means nothing either way.
 *
 * POINTERS AND LENGTHS. Lengths count elements, not bytes (but for the bytes of a blob). A pointer to elements may be null
 * if there are none. What is null, misaligned, overlapping or of the wrong length is refused. What cannot be seen from
 * within is up to the caller: that pointers lead to as much memory as is said, that strings end with a zero, and that
 * handles are of blobs that are open. Arrays are only used during the call. `out` and `workspace` may be uninitialised;
 * they overlap neither each other nor anything else that is passed.
 *
 * OWNERSHIP. ttrec_blob_open() and its kin make a handle, which ttrec_blob_close() frees. Tables, their names and the ranker
 * belong to their blob. Whatever else is passed stays the caller's.
 *
 * THREADS. A blob does not change while it is open: any number of threads may use it and what belongs to it at once, each with
 * an `out` and a `workspace` of its own. Closing it must happen after the last use. Errors are kept per thread.
 *
 * No function calls back or lets a Rust panic out. Lookups, bags and scores allocate nothing. */


#ifndef TTREC_H
#define TTREC_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface. It changes when a program that was compiled with an older header would no longer work.
 */
#define TTREC_ABI_VERSION 1

/**
 * What came of a call. TTREC_STATUS_OK is 0; a later version may add others.
 */
typedef enum {
    /**
     * It is done.
     */
    TTREC_STATUS_OK = 0,
    /**
     * A pointer is null that must not be.
     */
    TTREC_STATUS_NULL = 1,
    /**
     * A pointer is not aligned for what it points to, or a blob's bytes do not start on a multiple of 64.
     */
    TTREC_STATUS_MISALIGNED = 2,
    /**
     * A length is not the one that is needed, or longer than memory can be.
     */
    TTREC_STATUS_LENGTH = 3,
    /**
     * Memory that is written overlaps other memory of the call.
     */
    TTREC_STATUS_OVERLAP = 4,
    /**
     * A pooling or index type is none of those there are, or they do not go together.
     */
    TTREC_STATUS_ARGUMENT = 5,
    /**
     * A file cannot be opened or mapped.
     */
    TTREC_STATUS_IO = 6,
    /**
     * Memory ran out.
     */
    TTREC_STATUS_MEMORY = 7,
    /**
     * The bytes are not a blob at all.
     */
    TTREC_STATUS_NOT_A_BLOB = 8,
    /**
     * The blob is of a version, or has a kind of table, that this library does not know.
     */
    TTREC_STATUS_UNSUPPORTED = 9,
    /**
     * The blob is shorter or longer than it says.
     */
    TTREC_STATUS_TRUNCATED = 10,
    /**
     * The blob contradicts itself or does not match its checksums.
     */
    TTREC_STATUS_CORRUPT = 11,
    /**
     * No table has this name.
     */
    TTREC_STATUS_NO_SUCH_TABLE = 12,
    /**
     * An index is negative or not below num_embeddings.
     */
    TTREC_STATUS_INDEX_OUT_OF_RANGE = 13,
    /**
     * Offsets do not start at 0, fall, or do not end at the number of indices.
     */
    TTREC_STATUS_OFFSETS = 14,
    /**
     * Tables that are pooled together do not have the same number of bags, or those of a model not one for each sample.
     */
    TTREC_STATUS_NUM_BAGS = 15,
    /**
     * A defect of this library, caught at its boundary: please report it. Outputs may have been written.
     */
    TTREC_STATUS_INTERNAL = 16,
    /**
     * The blob has tables only.
     */
    TTREC_STATUS_NO_MODEL = 17,
} ttrec_status;

/**
 * How the rows of a bag become one, as in torch.nn.EmbeddingBag.
 */
enum ttrec_pooling
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Their sum, each row times its weight if there are any.
     */
    TTREC_POOLING_SUM = 0,
    /**
     * Their sum divided by their number; no weights.
     */
    TTREC_POOLING_MEAN = 1,
    /**
     * The largest of each column; no weights.
     */
    TTREC_POOLING_MAX = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ttrec_pooling ttrec_pooling;
#else
typedef uint32_t ttrec_pooling;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The integer type of indices and offsets.
 */
enum ttrec_index_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * uint32_t
     */
    TTREC_INDEX_TYPE_U32 = 0,
    /**
     * int64_t
     */
    TTREC_INDEX_TYPE_I64 = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ttrec_index_type ttrec_index_type;
#else
typedef uint32_t ttrec_index_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An open blob. Nothing in it changes while it is open.
 */
typedef struct ttrec_blob ttrec_blob;

/**
 * The model of an open blob.
 */
typedef struct ttrec_ranker ttrec_ranker;

/**
 * A table of an open blob.
 */
typedef struct ttrec_table ttrec_table;

/**
 * Bags of indices, in torch.nn.EmbeddingBag's form with include_last_offset=True: bag b is
 * `indices[offsets[b]]` to `indices[offsets[b + 1] - 1]`. ttrec_bags_u32() and ttrec_bags_i64() make one.
 */
typedef struct {
    /**
     * A ttrec_index_type: that of `indices` and `offsets`.
     */
    uint32_t index_type;
    /**
     * `num_indices` integers, bag after bag.
     */
    const void *indices;
    /**
     * How many.
     */
    size_t num_indices;
    /**
     * `num_bags + 1` integers: the first 0, the last `num_indices`, none below the one before it.
     */
    const void *offsets;
    /**
     * How many bags.
     */
    size_t num_bags;
    /**
     * One weight per index, for TTREC_POOLING_SUM; or null.
     */
    const float *per_sample_weights;
} ttrec_bags;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The TTREC_ABI_VERSION of the library that runs: to be compared with the header's.
 */
uint32_t ttrec_abi_version(void);

/**
 * The library's version, such as "0.1.0". The string lives forever.
 */
const char *ttrec_version_string(void);

/**
 * The instructions that lookups use, the best that this CPU has: "scalar", "avx2", "avx512" or "neon", perhaps others later.
 * The string lives forever.
 */
const char *ttrec_tier_name(void);

/**
 * What went wrong in the last call of this thread that failed, in English and UTF-8; empty if none did. Calls that succeed leave
 * it alone. The string lives until the next call of this thread that fails, and no longer than the thread.
 */
const char *ttrec_last_error(void);

/**
 * Opens the blob in the file at `path` (UTF-8 on Windows) by mapping it: that reads a page or two, whatever its size. The file
 * must not be changed or cut short while the blob is open; replace it by renaming another over it. `*blob` is to be closed with
 * ttrec_blob_close().
 */
ttrec_status ttrec_blob_open(const char *path,
                             ttrec_blob **blob);

/**
 * Opens the blob that lies in the `len` bytes from `bytes` on, a multiple of 64, without copying them: the caller keeps them,
 * unchanged, until the blob is closed. `*blob` is to be closed with ttrec_blob_close().
 */
ttrec_status ttrec_blob_open_borrowed(const void *bytes,
                                      size_t len,
                                      ttrec_blob **blob);

/**
 * Opens a copy of the blob that lies in the `len` bytes from `bytes` on, which may start anywhere and are not needed afterwards.
 * `*blob` is to be closed with ttrec_blob_close().
 */
ttrec_status ttrec_blob_open_copied(const void *bytes,
                                    size_t len,
                                    ttrec_blob **blob);

/**
 * Closes a blob. Its tables, their names, its ranker and the handle itself are gone then: no other thread may be using them. Null is
 * nothing to close.
 */
void ttrec_blob_close(ttrec_blob *blob);

/**
 * Compares the whole blob with its checksums, and checks that what they cover makes sense; opening does neither. It reads
 * everything. It finds accidents: whoever changes a blob on purpose changes its checksums too.
 */
ttrec_status ttrec_blob_verify_payload(const ttrec_blob *blob);

/**
 * Number of tables; 0 if `blob` is null.
 */
size_t ttrec_blob_num_tables(const ttrec_blob *blob);

/**
 * The table at `position`, in the order of their names, from 0 on; null past the last one, or if `blob` is null. It lives until
 * the blob is closed.
 */
const ttrec_table *ttrec_blob_table_at(const ttrec_blob *blob,
                                       size_t position);

/**
 * The table called `name`. `*table` lives until the blob is closed.
 */
ttrec_status ttrec_blob_table(const ttrec_blob *blob, const char *name, const ttrec_table **table);

/**
 * The table's name, in UTF-8; null if `table` is null. It lives until the blob is closed. (A name may hold a zero, and is cut
 * there: such a table is found by its position only.)
 */
const char *ttrec_table_name(const ttrec_table *table);

/**
 * Number of rows: indices are below it. 0 if `table` is null.
 */
uint64_t ttrec_table_num_embeddings(const ttrec_table *table);

/**
 * Floats of a row. 0 if `table` is null.
 */
size_t ttrec_table_embedding_dim(const ttrec_table *table);

/**
 * Floats of workspace that a lookup or bags of this table need at least; it may be 0, and is if `table` is null. A blob that is
 * not trusted may ask for much: see what is ready to be spent before allocating it.
 */
size_t ttrec_table_workspace_len(const ttrec_table *table);

/**
 * Floats of workspace with which bags of this table are fastest, if all of them together have `num_lookups` indices: at least
 * ttrec_table_workspace_len(). 0 if `table` is null.
 */
size_t ttrec_table_batch_workspace_len(const ttrec_table *table,
                                       size_t num_lookups);

/**
 * Writes row `index` to `out`: `out_len` is ttrec_table_embedding_dim(). `workspace` has at least ttrec_table_workspace_len()
 * floats.
 */
ttrec_status ttrec_table_lookup(const ttrec_table *table,
                                uint64_t index,
                                float *out,
                                size_t out_len,
                                float *workspace,
                                size_t workspace_len);

/**
 * `num_bags` bags of `num_indices` uint32_t, with or without (null) weights: fills a ttrec_bags, which points to them.
 */
ttrec_bags ttrec_bags_u32(const uint32_t *indices,
                          size_t num_indices,
                          const uint32_t *offsets,
                          size_t num_bags,
                          const float *per_sample_weights);

/**
 * The same of int64_t, as PyTorch has them.
 */
ttrec_bags ttrec_bags_i64(const int64_t *indices,
                          size_t num_indices,
                          const int64_t *offsets,
                          size_t num_bags,
                          const float *per_sample_weights);

/**
 * Pools each bag into a row of `out`: `out_len` is num_bags * ttrec_table_embedding_dim(), and `pooling` a ttrec_pooling. An
 * empty bag is zeros. `workspace` has at least ttrec_table_workspace_len() floats, and better
 * ttrec_table_batch_workspace_len(): what is written does not depend on it.
 */
ttrec_status ttrec_table_bag(const ttrec_table *table,
                             const ttrec_bags *bags,
                             uint32_t pooling,
                             float *out,
                             size_t out_len,
                             float *workspace,
                             size_t workspace_len);

/**
 * Pools the bags of several tables: `bags[t]` are those of `tables[t]`, for `num_tables` of each. All have the same number of bags
 * and the same index_type. Row b of `out` has what the bags b come to, those of `tables[0]` first: `out_len` is num_bags times the
 * sum of all ttrec_table_embedding_dim(). `workspace` is as for the table that needs the most. Allocates nothing for up to 32
 * tables, and a short list for more.
 */
ttrec_status ttrec_pool_tables(const ttrec_table *const *tables,
                               const ttrec_bags *bags,
                               size_t num_tables,
                               uint32_t pooling,
                               float *out,
                               size_t out_len,
                               float *workspace,
                               size_t workspace_len);

/**
 * The blob's model: TTREC_STATUS_NO_MODEL if it has tables only. `*ranker` lives until the blob is closed.
 */
ttrec_status ttrec_blob_ranker(const ttrec_blob *blob, const ttrec_ranker **ranker);

/**
 * Dense features of a sample. 0 if `ranker` is null.
 */
size_t ttrec_ranker_num_dense(const ttrec_ranker *ranker);

/**
 * Tables that the model looks up, which may be fewer than the blob has. 0 if `ranker` is null.
 */
size_t ttrec_ranker_num_tables(const ttrec_ranker *ranker);

/**
 * The table whose bags are at `position` of what is scored, from 0 on: the order is the model's. Null past the last one, or if
 * `ranker` is null. It is one of the blob's, and lives until that is closed.
 */
const ttrec_table *ttrec_ranker_table_at(const ttrec_ranker *ranker,
                                         size_t position);

/**
 * Floats of a row of each of them. 0 if `ranker` is null.
 */
size_t ttrec_ranker_embedding_dim(const ttrec_ranker *ranker);

/**
 * Floats of workspace that scoring needs at least; 0 if `ranker` is null. A blob that is not trusted may ask for much: see what is
 * ready to be spent before allocating it.
 */
size_t ttrec_ranker_workspace_len(const ttrec_ranker *ranker);

/**
 * Floats of workspace with which `num_samples` of one index per bag are scored fastest: at least ttrec_ranker_workspace_len(). It
 * stops growing at some hundred samples. 0 if `ranker` is null.
 */
size_t ttrec_ranker_batch_workspace_len(const ttrec_ranker *ranker,
                                        size_t num_samples);

/**
 * Writes the score of each of `out_len` samples to `out`: a probability if the model ends in a sigmoid, as DLRM's do. `dense` has
 * `dense_len` = out_len * ttrec_ranker_num_dense() floats, sample after sample. `bags[t]` are those of ttrec_ranker_table_at(t):
 * one for each sample, whose rows the model sums or averages; `num_tables` is ttrec_ranker_num_tables(), and all have the same index_type.
 * `workspace` has at least ttrec_ranker_workspace_len() floats, and better ttrec_ranker_batch_workspace_len(): a score depends
 * neither on it nor on the samples beside it. Allocates nothing for up to 32 tables, and a short list for more.
 */
ttrec_status ttrec_ranker_score(const ttrec_ranker *ranker,
                                const float *dense,
                                size_t dense_len,
                                const ttrec_bags *bags,
                                size_t num_tables,
                                float *out,
                                size_t out_len,
                                float *workspace,
                                size_t workspace_len);

/**
 * The same without the sigmoid at the end.
 */
ttrec_status ttrec_ranker_logits(const ttrec_ranker *ranker,
                                 const float *dense,
                                 size_t dense_len,
                                 const ttrec_bags *bags,
                                 size_t num_tables,
                                 float *out,
                                 size_t out_len,
                                 float *workspace,
                                 size_t workspace_len);

/**
 * Writes the score of each of `out_len` candidates of one user to `out`, as ttrec_ranker_score() would for samples that repeat the
 * user's part, bit for bit. What is the user's is given once: `dense` of one sample, and bags of which there is one. What is the
 * candidates' is given for each: bags of which there are out_len, and `dense` if it depends on them. It is fastest where the
 * user's tables come first in the model.
 */
ttrec_status ttrec_ranker_rank(const ttrec_ranker *ranker,
                               const float *dense,
                               size_t dense_len,
                               const ttrec_bags *bags,
                               size_t num_tables,
                               float *out,
                               size_t out_len,
                               float *workspace,
                               size_t workspace_len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TTREC_H */
