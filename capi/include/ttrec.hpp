// ttrec for C++17: handles that close themselves, exceptions for statuses, vectors for rows and
// scores.
//
// A Blob owns its memory. Tables and Rankers are views of an open Blob, Bags views of the caller's
// vectors. A view of a temporary would outlive it: making one does not compile. Any number of
// threads may use a Blob and its views at the same time, each thread with a Workspace of its own.
//
// The methods allocate the vectors that they return. To write into memory of your own, call the
// functions of ttrec.h: the classes convert to its types.

#ifndef TTREC_HPP
#define TTREC_HPP

#include "ttrec.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ttrec {

/// A call of ttrec.h that failed: its status and its message.
class Error : public std::runtime_error {
public:
    Error(ttrec_status status, const char *what) : std::runtime_error(what), status_(status) {}
    ttrec_status status() const noexcept { return status_; }

private:
    ttrec_status status_;
};

/// Throws unless `status` is TTREC_STATUS_OK.
inline void check(ttrec_status status) {
    if (status != TTREC_STATUS_OK) throw Error(status, ttrec_last_error());
}

/// Memory for lookups, pooling and scoring, which grow it as they need. Reuse it.
using Workspace = std::vector<float>;

/// A pointer to a vector of the caller's, which must outlive it. A temporary would not.
template <class T> class Borrowed {
public:
    Borrowed(const std::vector<T> &list) noexcept : list_(&list) {}
    Borrowed(const std::vector<T> &&temporary) = delete;
    Borrowed(std::initializer_list<T> temporary) = delete;

    const T *data() const noexcept { return list_->data(); }
    std::size_t size() const noexcept { return list_->size(); }

private:
    const std::vector<T> *list_;
};

/// A view of indices and offsets, which outlive it: bag b is indices[offsets[b]] to
/// indices[offsets[b + 1] - 1]. `per_sample_weights`, if any, has one weight per index.
class Bags {
public:
    Bags(Borrowed<std::uint32_t> indices, Borrowed<std::uint32_t> offsets,
         const std::vector<float> *per_sample_weights = nullptr)
        : bags_(ttrec_bags_u32(indices.data(), indices.size(), offsets.data(),
                               num_bags(offsets.size()),
                               weights(per_sample_weights, indices.size()))) {}
    Bags(Borrowed<std::int64_t> indices, Borrowed<std::int64_t> offsets,
         const std::vector<float> *per_sample_weights = nullptr)
        : bags_(ttrec_bags_i64(indices.data(), indices.size(), offsets.data(),
                               num_bags(offsets.size()),
                               weights(per_sample_weights, indices.size()))) {}
    Bags(Borrowed<std::int32_t> indices, Borrowed<std::int32_t> offsets,
         const std::vector<float> *per_sample_weights = nullptr)
        : bags_(ttrec_bags_i32(indices.data(), indices.size(), offsets.data(),
                               num_bags(offsets.size()),
                               weights(per_sample_weights, indices.size()))) {}
    /// For arrays that are not vectors: see ttrec_bags_u32() and ttrec_bags_i64().
    explicit Bags(const ttrec_bags &bags) : bags_(bags) {}

    std::size_t size() const noexcept { return bags_.num_bags; }
    std::size_t num_lookups() const noexcept { return bags_.num_indices; }
    operator ttrec_bags() const noexcept { return bags_; }

private:
    static std::size_t num_bags(std::size_t num_offsets) {
        if (num_offsets == 0)
            throw Error(TTREC_STATUS_OFFSETS, "no offsets: expected one more than bags");
        return num_offsets - 1;
    }
    static const float *weights(const std::vector<float> *weights, std::size_t num_indices) {
        if (weights == nullptr) return nullptr;
        if (weights->size() != num_indices)
            throw Error(TTREC_STATUS_LENGTH, "per_sample_weights: expected one weight per index");
        return weights->data();
    }

    ttrec_bags bags_;
};

/// A view of a table of an open Blob.
class Table {
public:
    explicit Table(const ttrec_table *table) : table_(table) {}

    std::string name() const { return ttrec_table_name(table_); }
    std::uint64_t num_embeddings() const noexcept { return ttrec_table_num_embeddings(table_); }
    std::size_t embedding_dim() const noexcept { return ttrec_table_embedding_dim(table_); }

    /// The row of `index`.
    std::vector<float> lookup(std::uint64_t index, Workspace &workspace) const {
        reserve(workspace, 0);
        std::vector<float> row(embedding_dim());
        check(ttrec_table_lookup(table_, index, row.data(), row.size(), workspace.data(),
                                 workspace.size()));
        return row;
    }

    /// One pooled row for each bag.
    std::vector<float> bag(const Bags &bags, ttrec_pooling pooling, Workspace &workspace) const {
        reserve(workspace, bags.num_lookups());
        std::vector<float> rows(bags.size() * embedding_dim());
        const ttrec_bags of_c = bags;
        check(ttrec_table_bag(table_, &of_c, pooling, rows.data(), rows.size(), workspace.data(),
                              workspace.size()));
        return rows;
    }

    /// The inner product of each query with each of `num_rows` rows from `first_row` on, query
    /// after query. `queries` has embedding_dim() floats for each query.
    std::vector<float> scores(const std::vector<float> &queries, std::uint64_t first_row,
                              std::size_t num_rows, Workspace &workspace) const {
        const std::size_t num_queries = reserve_retrieval(workspace, queries);
        std::vector<float> scores(num_queries * num_rows);
        check(ttrec_table_scores(table_, queries.data(), queries.size(), first_row, num_rows,
                                 scores.data(), scores.size(), workspace.data(),
                                 workspace.size()));
        return scores;
    }

    /// The best search.k rows of each query, best first, query after query: see
    /// ttrec_table_top_k().
    std::vector<ttrec_scored> top_k(const std::vector<float> &queries, const ttrec_search &search,
                                    Workspace &workspace) const {
        const std::size_t num_queries = reserve_retrieval(workspace, queries);
        std::vector<ttrec_scored> best(num_queries * search.k);
        check(ttrec_table_top_k(table_, queries.data(), queries.size(), &search, best.data(),
                                best.size(), workspace.data(), workspace.size()));
        return best;
    }

    /// Grows `workspace` to the size with which `num_lookups` lookups are fastest.
    void reserve(Workspace &workspace, std::size_t num_lookups) const {
        const std::size_t best = std::max(ttrec_table_workspace_len(table_),
                                          ttrec_table_batch_workspace_len(table_, num_lookups));
        if (workspace.size() < best) workspace.resize(best);
    }

    operator const ttrec_table *() const noexcept { return table_; }

private:
    /// Grows `workspace` to the size with which these queries are fastest; returns their number.
    std::size_t reserve_retrieval(Workspace &workspace, const std::vector<float> &queries) const {
        const std::size_t num_queries = queries.size() / std::max<std::size_t>(embedding_dim(), 1);
        const std::size_t best = ttrec_table_retrieval_workspace_len(
            table_, std::max<std::size_t>(num_queries, 1));
        if (workspace.size() < best) workspace.resize(best);
        return num_queries;
    }

    const ttrec_table *table_;
};

/// Merges the results of Table::top_k() for other rows (another range or part) into `best`.
inline void merge_top_k(std::size_t k, std::vector<ttrec_scored> &best,
                        const std::vector<ttrec_scored> &others) {
    if (best.size() != others.size())
        throw Error(TTREC_STATUS_LENGTH, "merge_top_k: expected lists of the same length");
    check(ttrec_merge_top_k(k, best.data(), others.data(), best.size()));
}

/// A table and its bags.
struct Pooled {
    Table table;
    Bags bags;
};

/// Pools the bags of several tables. Row b is the pooled row of bag b of the first table, then that
/// of the second, and so on.
inline std::vector<float> pool_tables(const std::vector<Pooled> &features, ttrec_pooling pooling,
                                      Workspace &workspace) {
    std::vector<const ttrec_table *> tables;
    std::vector<ttrec_bags> bags;
    std::size_t width = 0;
    for (const Pooled &feature : features) {
        tables.push_back(feature.table);
        bags.push_back(feature.bags);
        width += feature.table.embedding_dim();
        feature.table.reserve(workspace, feature.bags.num_lookups());
    }
    std::vector<float> rows(features.empty() ? 0 : features.front().bags.size() * width);
    check(ttrec_pool_tables(tables.data(), bags.data(), tables.size(), pooling, rows.data(),
                            rows.size(), workspace.data(), workspace.size()));
    return rows;
}

/// A view of the model of an open Blob.
class Ranker {
public:
    explicit Ranker(const ttrec_ranker *ranker) : ranker_(ranker) {}

    std::size_t num_dense() const noexcept { return ttrec_ranker_num_dense(ranker_); }
    std::size_t num_tables() const noexcept { return ttrec_ranker_num_tables(ranker_); }
    std::size_t embedding_dim() const noexcept { return ttrec_ranker_embedding_dim(ranker_); }

    /// The model's tables, in the order in which score() takes their bags.
    std::vector<Table> tables() const {
        std::vector<Table> tables;
        for (std::size_t i = 0; i < num_tables(); i++)
            tables.emplace_back(ttrec_ranker_table_at(ranker_, i));
        return tables;
    }

    /// The score of each sample. `dense` has num_dense() floats per sample, bags[t] one bag per
    /// sample of tables()[t].
    std::vector<float> score(const std::vector<float> &dense, const std::vector<Bags> &bags,
                             Workspace &workspace) const {
        return scored(ttrec_ranker_score, dense, bags, num_samples(dense, bags), workspace);
    }

    /// As score(), but without the sigmoid at the end.
    std::vector<float> logits(const std::vector<float> &dense, const std::vector<Bags> &bags,
                              Workspace &workspace) const {
        return scored(ttrec_ranker_logits, dense, bags, num_samples(dense, bags), workspace);
    }

    /// The score of each of one user's candidates. The user's features are given once, the
    /// candidates' for each candidate: see ttrec_ranker_rank().
    std::vector<float> rank(const std::vector<float> &dense, const std::vector<Bags> &bags,
                            std::size_t num_candidates, Workspace &workspace) const {
        return scored(ttrec_ranker_rank, dense, bags, num_candidates, workspace);
    }

    /// Grows `workspace` to the size with which `num_samples` samples of one index per bag are
    /// scored fastest.
    void reserve(Workspace &workspace, std::size_t num_samples) const {
        const std::size_t best = ttrec_ranker_batch_workspace_len(ranker_, num_samples);
        if (workspace.size() < best) workspace.resize(best);
    }

    operator const ttrec_ranker *() const noexcept { return ranker_; }

private:
    std::size_t num_samples(const std::vector<float> &dense, const std::vector<Bags> &bags) const {
        if (!bags.empty()) return bags.front().size();
        return dense.size() / std::max<std::size_t>(num_dense(), 1);
    }

    std::vector<float> scored(decltype(&ttrec_ranker_score) scoring,
                              const std::vector<float> &dense, const std::vector<Bags> &bags,
                              std::size_t num_samples, Workspace &workspace) const {
        reserve(workspace, num_samples);
        const std::vector<ttrec_bags> of_c(bags.begin(), bags.end());
        std::vector<float> scores(num_samples);
        check(scoring(ranker_, dense.data(), dense.size(), of_c.data(), of_c.size(), scores.data(),
                      scores.size(), workspace.data(), workspace.size()));
        return scores;
    }

    const ttrec_ranker *ranker_;
};

/// An open blob, which the destructor closes. Its tables and its ranker must not be used
/// afterwards. To get one, the Blob must have a name: Blob::map(path).table(name) does not compile.
class Blob {
public:
    /// Maps the file at `path`, which must not change while the blob is open.
    static Blob map(const std::string &path) {
        ttrec_blob *blob = nullptr;
        check(ttrec_blob_open(path.c_str(), &blob));
        return Blob(blob);
    }
    /// Uses the `len` bytes at `bytes`, a multiple of 64, which must outlive the blob.
    static Blob borrow(const void *bytes, std::size_t len) {
        ttrec_blob *blob = nullptr;
        check(ttrec_blob_open_borrowed(bytes, len, &blob));
        return Blob(blob);
    }
    /// Copies the `len` bytes at `bytes`.
    static Blob copy(const void *bytes, std::size_t len) {
        ttrec_blob *blob = nullptr;
        check(ttrec_blob_open_copied(bytes, len, &blob));
        return Blob(blob);
    }

    /// The table called `name`.
    Table table(const std::string &name) const & {
        const ttrec_table *table = nullptr;
        check(ttrec_blob_table(blob_.get(), name.c_str(), &table));
        return Table(table);
    }
    Table table(const std::string &name) const && = delete;

    /// All tables, in the order of their names.
    std::vector<Table> tables() const & {
        std::vector<Table> tables;
        for (std::size_t i = 0; i < ttrec_blob_num_tables(blob_.get()); i++)
            tables.emplace_back(ttrec_blob_table_at(blob_.get(), i));
        return tables;
    }
    std::vector<Table> tables() const && = delete;

    /// The model. Throws if the blob has only tables.
    Ranker ranker() const & {
        const ttrec_ranker *ranker = nullptr;
        check(ttrec_blob_ranker(blob_.get(), &ranker));
        return Ranker(ranker);
    }
    Ranker ranker() const && = delete;

    /// Reads the whole blob, and throws unless it matches its checksums.
    void verify_payload() const { check(ttrec_blob_verify_payload(blob_.get())); }

    operator const ttrec_blob *() const & noexcept { return blob_.get(); }
    operator const ttrec_blob *() const && = delete;

private:
    struct Close {
        void operator()(ttrec_blob *blob) const noexcept { ttrec_blob_close(blob); }
    };
    explicit Blob(ttrec_blob *blob) : blob_(blob) {}

    std::unique_ptr<ttrec_blob, Close> blob_;
};

} // namespace ttrec

#endif // TTREC_HPP
