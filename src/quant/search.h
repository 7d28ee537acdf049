/* The search behind every encoder: the scales and codes of blocks that minimise the weighted
 * squared error (internal to src/quant).
 *
 * A block is n_groups groups of group_len numbers; group g stands for
 *
 *     x = d scale[g] level[q] - dmin min[g]
 *
 * with whole scale[g] and min[g], F16 d and dmin, and levels common to the format. Sixteen groups
 * are searched together: one block of sixteen, two of eight, or sixteen of one. */
#ifndef CONSORT_QUANT_SEARCH_H
#define CONSORT_QUANT_SEARCH_H

#include <stddef.h>
#include <stdint.h>

#include "quant/blocks.h"

#define SEARCH_MAX_GROUPS 16
#define SEARCH_MAX_GROUP_LEN 32
#define SEARCH_TABLE_LEN 16
#define SEARCH_LANES 16

struct search_shape {
    int group_len, n_groups;   /* n_groups is 1, 8 or 16 */
    int scale_low, scale_high; /* both 1 where a group has no scale of its own */
    int min_low, min_high;     /* both 0: no minima; both 1: dmin is the offset, of either sign */
    int level_low, level_high; /* the levels are the whole numbers between */
    const int8_t *table;       /* or, when not NULL, these SEARCH_TABLE_LEN rising numbers */
};

struct search_result {
    const struct search_shape *shape; /* that it was searched with */
    uint16_t d, dmin;                 /* F16 bits */
    int scale[SEARCH_MAX_GROUPS], min[SEARCH_MAX_GROUPS];
    uint8_t q[SUPER_LEN]; /* level - level_low, or the index in table */
};

/* out[n_blocks] for the n_blocks that lie one behind the other in src, at most SEARCH_LANES groups
 * in all; importance as in quant_encode. Numbers that are not finite count as 0; scales outside the
 * range of F16 end at its limits. */
void search_blocks(const struct search_shape *shape, const float *src, const float *importance,
                   size_t n_blocks, struct search_result *out);

/* As search_blocks for blocks of one group that stands for x = 2^power level[q], with powers in
 * [low, high]; the power goes to scale[0]. */
void search_powers(const struct search_shape *shape, const float *src, const float *importance,
                   size_t n_blocks, int low, int high, struct search_result *out);

/* ---- What the kernels do (kernels_search.h) -------------------------------------------------- */

#define SEARCH_NEGLIGIBLE 1e-12f /* a magnitude or step that no scale can express beside others */

/* Sixteen groups, a lane each, and what their offsets may be. Unused lanes are zero. */
struct search_groups {
    _Alignas(64) float x[SEARCH_MAX_GROUP_LEN][SEARCH_LANES];
    float weight[SEARCH_MAX_GROUP_LEN][SEARCH_LANES];
    float offset_low[SEARCH_LANES], offset_high[SEARCH_LANES];
};

/* What each group does in its block, and weighted sums of its residuals r and levels v. */
struct search_choices {
    _Alignas(64) float d[SEARCH_LANES];
    float dmin[SEARCH_LANES], scale[SEARCH_LANES], min[SEARCH_LANES];
    float rr[SEARCH_LANES], vr[SEARCH_LANES], r[SEARCH_LANES], vv[SEARCH_LANES], v[SEARCH_LANES];
};

struct search_kernels {
    /* The scale and offset of each group that fit best alone. */
    void (*fit)(const struct search_shape *shape, const struct search_groups *in, float *scale,
                float *offset);
    /* Sets scale and min to the best of what they are and their neighbours, and the sums. */
    void (*choose)(const struct search_shape *shape, const struct search_groups *in,
                   struct search_choices *choices);
    /* v = the levels nearest to (x - offset) / scale; their weighted squared error. */
    void (*levels)(const struct search_shape *shape, const struct search_groups *in,
                   const float *scale, const float *offset, float v[][SEARCH_LANES], float *error);
};

/* Those of the chosen kernel set. */
const struct search_kernels *search_kernels(void);

#endif
