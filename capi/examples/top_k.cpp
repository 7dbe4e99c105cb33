// The same as top_k.c in C++17, in two halves that are merged. It also prints the first scores.

#include <cstdint>
#include <cstdio>
#include <ttrec.hpp>
#include <vector>

int main(int argc, char **argv) try {
    const ttrec::Blob blob = ttrec::Blob::map(argc > 1 ? argv[1] : "model.ttr");
    const ttrec::Table item = blob.table("item");
    ttrec::Workspace workspace; // grows as needed; one per thread

    std::vector<float> queries = item.lookup(42, workspace);
    for (std::size_t i = 0; i < item.embedding_dim(); i++) queries.push_back(-queries[i]);

    const std::vector<std::int64_t> known{7, 42, 999}, offsets{0, 2, 3};
    const ttrec_bags excluded = ttrec::Bags(known, offsets);
    ttrec_search search = ttrec_search_best(10);
    search.excluded = &excluded;
    search.num_parts = 2;
    std::vector<ttrec_scored> best = item.top_k(queries, search, workspace);
    search.part = 1;
    ttrec::merge_top_k(search.k, best, item.top_k(queries, search, workspace));
    for (const ttrec_scored &row : best)
        std::printf("%llu %.9g\n", static_cast<unsigned long long>(row.index), row.score);

    const std::vector<float> scores = item.scores(queries, 0, 5, workspace);
    for (std::size_t i = 0; i < scores.size(); i++)
        std::printf("%.9g%c", scores[i], (i + 1) % 5 ? ' ' : '\n');
    return 0;
} catch (const ttrec::Error &error) {
    std::fprintf(stderr, "top_k: %s\n", error.what());
    return 1;
}
