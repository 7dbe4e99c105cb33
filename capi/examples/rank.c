/* Scores one user's candidates with the model of a blob that is mapped from disk. Prints the best
 * candidate, and then all scores. */

#include <stdio.h>
#include <stdlib.h>
#include <ttrec.h>

enum { CANDIDATES = 40 };

static void check(ttrec_status status) {
    if (status == TTREC_STATUS_OK) return;
    fprintf(stderr, "rank: %s\n", ttrec_last_error());
    exit(1);
}

int main(int argc, char **argv) {
    ttrec_blob *blob;
    const ttrec_ranker *ranker;
    check(ttrec_blob_open(argc > 1 ? argv[1] : "model.ttr", &blob));
    check(ttrec_blob_ranker(blob, &ranker)); /* 13 dense features, 4 tables */

    /* The user: dense features, and a bag of one index for each of the first two tables. */
    const float dense[] = {.2f, .7f, .1f, 0, .9f, .4f, .3f, .5f, .6f, .8f, .25f, .75f, .35f};
    const uint32_t first = 4742, second = 986, one[] = {0, 1};

    /* Each candidate: a bag of one index for each of the other two tables. */
    uint32_t items[CANDIDATES], shelves[CANDIDATES], offsets[CANDIDATES + 1];
    for (uint32_t i = 0; i < CANDIDATES; i++) items[i] = i * 7 % 300, shelves[i] = i;
    for (uint32_t i = 0; i <= CANDIDATES; i++) offsets[i] = i;
    const ttrec_bags bags[] = {ttrec_bags_u32(&first, 1, one, 1, NULL),
                               ttrec_bags_u32(&second, 1, one, 1, NULL),
                               ttrec_bags_u32(items, CANDIDATES, offsets, CANDIDATES, NULL),
                               ttrec_bags_u32(shelves, CANDIDATES, offsets, CANDIDATES, NULL)};

    size_t len = ttrec_ranker_batch_workspace_len(ranker, CANDIDATES);
    float scores[CANDIDATES], *workspace = malloc(len * sizeof *workspace);
    check(ttrec_ranker_rank(ranker, dense, sizeof dense / sizeof *dense, bags, 4, scores,
                            CANDIDATES, workspace, len));

    int best = 0;
    for (int i = 0; i < CANDIDATES; i++) best = scores[i] > scores[best] ? i : best;
    printf("%d %.9g\n", best, scores[best]);
    for (int i = 0; i < CANDIDATES; i++)
        printf("%.9g%c", scores[i], i + 1 < CANDIDATES ? ' ' : '\n');
    free(workspace);
    ttrec_blob_close(blob);
    return 0;
}
