/* The best ten rows for two queries, each without the rows that the query knows, from a blob that is
 * mapped from disk. */

#include <stdio.h>
#include <stdlib.h>
#include <ttrec.h>

enum { QUERIES = 2, K = 10 };

static void check(ttrec_status status) {
    if (status == TTREC_STATUS_OK) return;
    fprintf(stderr, "top_k: %s\n", ttrec_last_error());
    exit(1);
}

int main(int argc, char **argv) {
    ttrec_blob *blob;
    const ttrec_table *item;
    check(ttrec_blob_open(argc > 1 ? argv[1] : "model.ttr", &blob));
    check(ttrec_blob_table(blob, "item", &item));

    /* The queries: row 42, and the opposite. */
    size_t dim = ttrec_table_embedding_dim(item);
    size_t len = ttrec_table_retrieval_workspace_len(item, QUERIES);
    float *queries = malloc(QUERIES * dim * sizeof *queries);
    float *workspace = malloc(len * sizeof *workspace);
    check(ttrec_table_lookup(item, 42, queries, dim, workspace, len));
    for (size_t i = 0; i < dim; i++) queries[dim + i] = -queries[i];

    const uint32_t known[] = {7, 42, 999}, offsets[] = {0, 2, 3}; /* {7, 42} and {999} */
    const ttrec_bags excluded = ttrec_bags_u32(known, 3, offsets, QUERIES, NULL);
    ttrec_search search = ttrec_search_best(K);
    search.excluded = &excluded;
    ttrec_scored best[QUERIES * K];
    check(ttrec_table_top_k(item, queries, QUERIES * dim, &search, best, QUERIES * K, workspace,
                            len));

    for (int i = 0; i < QUERIES * K; i++)
        printf("%llu %.9g\n", (unsigned long long)best[i].index, best[i].score);
    free(workspace);
    free(queries);
    ttrec_blob_close(blob);
    return 0;
}
