// The same as rank.c in C++17. It also describes the model, prints logits, and catches an error.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ttrec.hpp>
#include <vector>

static void print(const std::vector<float> &scores) {
    for (std::size_t i = 0; i < scores.size(); i++)
        std::printf("%.9g%c", scores[i], i + 1 < scores.size() ? ' ' : '\n');
}

int main(int argc, char **argv) try {
    const ttrec::Blob blob = ttrec::Blob::map(argc > 1 ? argv[1] : "model.ttr");
    const ttrec::Ranker ranker = blob.ranker();
    ttrec::Workspace workspace; // grows as needed; one per thread

    // The user: dense features, and a bag of one index for each of the first two tables.
    const std::vector<float> dense{.2f, .7f, .1f, 0,    .9f,  .4f, .3f,
                                   .5f, .6f, .8f, .25f, .75f, .35f};
    const std::vector<std::int64_t> first{4742}, second{986}, one{0, 1};

    // Each candidate: a bag of one index for each of the other two tables.
    std::vector<std::int64_t> items, shelves, offsets{0};
    for (std::int64_t i = 0; i < 40; i++) {
        items.push_back(i * 7 % 300);
        shelves.push_back(i);
        offsets.push_back(i + 1);
    }
    const std::vector<ttrec::Bags> bags{
        {first, one}, {second, one}, {items, offsets}, {shelves, offsets}};
    const std::vector<float> scores = ranker.rank(dense, bags, items.size(), workspace);
    const auto best = std::max_element(scores.begin(), scores.end());
    std::printf("%d %.9g\n", static_cast<int>(best - scores.begin()), *best);
    print(scores);

    // A batch of one sample: the user with the first candidate.
    const std::vector<std::int64_t> item{items[0]}, shelf{shelves[0]};
    const std::vector<ttrec::Bags> sample{{first, one}, {second, one}, {item, one}, {shelf, one}};
    print(ranker.score(dense, sample, workspace));
    print(ranker.logits(dense, sample, workspace));

    std::printf("%zu dense features, rows of %zu:", ranker.num_dense(), ranker.embedding_dim());
    for (const ttrec::Table &table : ranker.tables()) std::printf(" %s", table.name().c_str());
    std::printf("\n");

    try {
        ranker.score({0.5f}, sample, workspace);
    } catch (const ttrec::Error &error) {
        std::printf("%d: %s\n", error.status(), error.what());
    }
    return 0;
} catch (const ttrec::Error &error) {
    std::fprintf(stderr, "rank: %s\n", error.what());
    return 1;
}
