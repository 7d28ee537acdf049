#include "cluster/core_slices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHA_DIGITS (CLUSTER_SHA_TEXT - 1)
#define MAX_LAYERS 100000

/* A number and the character behind it. */
static bool take(const char **at, char behind, uint32_t most, uint32_t *out)
{
    const char *begin = *at;
    *out = 0;
    for (; **at >= '0' && **at <= '9' && *out <= most; ++*at)
        *out = *out * 10 + (uint32_t)(**at - '0');
    if (*at == begin || *out > most || **at != behind)
        return false;
    ++*at;
    return true;
}

bool slice_parse(const char *object, struct slice_range *out)
{
    const char *at = strchr(object, '/');
    if (at == NULL || at - object != SHA_DIGITS)
        return false;
    at++;
    if (!take(&at, '-', MAX_LAYERS, &out->first_layer) ||
        !take(&at, '.', MAX_LAYERS, &out->end_layer) ||
        !take(&at, '.', CLUSTER_MAX_NODES, &out->shard) ||
        !take(&at, '.', CLUSTER_MAX_NODES, &out->n_shards))
        return false;
    out->shares = at;
    return out->first_layer < out->end_layer && out->shard < out->n_shards;
}

bool slice_of_model(const char *object, const char *sha)
{
    return strnlen(object, SHA_DIGITS) == SHA_DIGITS && strncmp(object, sha, SHA_DIGITS) == 0 &&
           (object[SHA_DIGITS] == '/' || object[SHA_DIGITS] == '\0');
}

static bool same_stage(const struct slice_range *a, const struct slice_range *b)
{
    return a->first_layer == b->first_layer && a->end_layer == b->end_layer &&
           a->n_shards == b->n_shards && strcmp(a->shares, b->shares) == 0;
}

/* What is held of one model. */
struct shelf {
    const char *const *held;
    size_t n_held;
    const char *wanted;
};

/* Whether all shards of a stage are there; marks one of each. */
static bool stage_complete(const struct shelf *shelf, const struct slice_range *stage, bool *used)
{
    uint32_t found = 0;
    struct slice_range range;
    for (size_t i = 0; i < shelf->n_held; i++)
        if (slice_of_model(shelf->held[i], shelf->wanted) && slice_parse(shelf->held[i], &range) &&
            same_stage(&range, stage) && (found >> range.shard & 1) == 0) {
            found |= 1u << range.shard;
            if (used != NULL)
                used[i] = true;
        }
    return found == (1u << stage->n_shards) - 1;
}

/* What begins at this layer or before and ends last; 0: nothing. */
static uint32_t furthest(const struct shelf *shelf, uint32_t layer, struct slice_range *best)
{
    struct slice_range range;
    uint32_t end = 0;
    for (size_t i = 0; i < shelf->n_held; i++)
        if (slice_of_model(shelf->held[i], shelf->wanted) && slice_parse(shelf->held[i], &range) &&
            range.first_layer <= layer && range.end_layer > MAX(layer, end) &&
            stage_complete(shelf, &range, NULL)) {
            end = range.end_layer;
            *best = range;
        }
    return end;
}

bool slices_cover(const char *const *held, size_t n_held, const char *wanted, bool *used)
{
    struct shelf shelf = {held, n_held, wanted};
    struct slice_range want, best;
    if (used != NULL)
        memset(used, 0, n_held * sizeof *used);
    for (size_t i = 0; i < n_held; i++)
        if (strcmp(held[i], wanted) == 0 ||
            (slice_of_model(held[i], wanted) && held[i][SHA_DIGITS] == '\0')) {
            if (used != NULL)
                used[i] = true;
            return true;
        }
    if (!slice_parse(wanted, &want))
        return false;
    for (uint32_t layer = want.first_layer; layer < want.end_layer; layer = best.end_layer) {
        if (furthest(&shelf, layer, &best) == 0)
            return false;
        if (used != NULL)
            stage_complete(&shelf, &best, used);
    }
    return true;
}

void slice_text(const char *object, const char *model, char out[CLUSTER_REASON_BYTES])
{
    struct slice_range range;
    size_t n = 0;
    if (!slice_parse(object, &range)) {
        snprintf(out, CLUSTER_REASON_BYTES, "%.100s", model);
        return;
    }
    if (range.n_shards > 1)
        n = (size_t)snprintf(out, CLUSTER_REASON_BYTES, "shard %u of %u of ", range.shard + 1,
                             range.n_shards);
    snprintf(out + n, CLUSTER_REASON_BYTES - n, "layers %u to %u of %.100s", range.first_layer,
             range.end_layer - 1, model);
}
