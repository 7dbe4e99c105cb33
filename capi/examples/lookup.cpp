// The same as lookup.c in C++17. It also pools two tables together, and catches an error.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ttrec.hpp>
#include <vector>

static void print(const std::vector<float> &rows, std::size_t dim) {
    for (std::size_t i = 0; i < rows.size(); i++)
        std::printf("%.9g%c", rows[i], (i + 1) % dim ? ' ' : '\n');
}

int main(int argc, char **argv) try {
    const ttrec::Blob blob = ttrec::Blob::map(argc > 1 ? argv[1] : "model.ttr");
    const ttrec::Table item = blob.table("item");
    ttrec::Workspace workspace; // grows as needed; one per thread

    print(item.lookup(42, workspace), item.embedding_dim());

    const std::vector<std::int64_t> indices{42, 7, 999}, offsets{0, 2, 3};
    const ttrec::Bags bags(indices, offsets);
    print(item.bag(bags, TTREC_POOLING_MEAN, workspace), item.embedding_dim());

    const ttrec::Table user = blob.table("user");
    const std::vector<std::int64_t> users{4, 0, 19};
    const std::vector<ttrec::Pooled> features{{item, bags}, {user, ttrec::Bags(users, offsets)}};
    print(ttrec::pool_tables(features, TTREC_POOLING_SUM, workspace),
          item.embedding_dim() + user.embedding_dim());

    try {
        item.lookup(item.num_embeddings(), workspace);
    } catch (const ttrec::Error &error) {
        std::printf("%d: %s\n", error.status(), error.what());
    }
    return 0;
} catch (const ttrec::Error &error) {
    std::fprintf(stderr, "lookup: %s\n", error.what());
    return 1;
}
