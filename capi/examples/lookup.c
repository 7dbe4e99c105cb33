/* One row, and two pooled bags, from a blob that is mapped from disk. */

#include <stdio.h>
#include <stdlib.h>
#include <ttrec.h>

static void check(ttrec_status status) {
    if (status == TTREC_STATUS_OK) return;
    fprintf(stderr, "lookup: %s\n", ttrec_last_error());
    exit(1);
}

int main(int argc, char **argv) {
    ttrec_blob *blob;
    const ttrec_table *item;
    /* Maps the file, and reads only its directory. */
    check(ttrec_blob_open(argc > 1 ? argv[1] : "model.ttr", &blob));
    check(ttrec_blob_table(blob, "item", &item));

    size_t dim = ttrec_table_embedding_dim(item), len = ttrec_table_batch_workspace_len(item, 3);
    float *rows = malloc(3 * dim * sizeof *rows), *workspace = malloc(len * sizeof *workspace);
    check(ttrec_table_lookup(item, 42, rows, dim, workspace, len));

    const uint32_t indices[] = {42, 7, 999}, offsets[] = {0, 2, 3}; /* bags {42, 7} and {999} */
    ttrec_bags bags = ttrec_bags_u32(indices, 3, offsets, 2, NULL);
    check(ttrec_table_bag(item, &bags, TTREC_POOLING_MEAN, rows + dim, 2 * dim, workspace, len));

    for (size_t i = 0; i < 3 * dim; i++) printf("%.9g%c", rows[i], (i + 1) % dim ? ' ' : '\n');
    free(workspace);
    free(rows);
    ttrec_blob_close(blob);
    return 0;
}
