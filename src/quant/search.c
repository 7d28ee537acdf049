/* How the search goes. Everything is measured on copies scaled by a power of two to a largest
 * magnitude in [0.5, 1), so that no sum overflows or vanishes. A candidate scale and offset give
 * codes; the residuals of these codes give, by least squares, the best scale and offset for them,
 * which are the next candidate.
 *
 *   1. Each group alone: many first candidates, then least squares, scale and offset in float.
 *   2. d and dmin from the largest of them; scale[g] and min[g] are the nearest whole numbers.
 *   3. Each group tries the neighbours of its scale and min; then d and dmin are fitted to all
 *      groups by least squares and rounded to F16; repeated while the error falls.
 *
 * What is done to each group is in kernels_search.h, what is done to each block here. */
#include "quant/search.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/base.h"

#define F16_MAX 65504.0f
#define REFINE_ROUNDS 4

/* The blocks that are searched together. Group g of block b has lane b n_groups + g. */
struct batch {
    const struct search_shape *shape;
    size_t n_blocks;
    struct search_groups groups;
    float weights[SEARCH_LANES], squares[SEARCH_LANES]; /* sums over each group */
    float scale[SEARCH_LANES], offset[SEARCH_LANES];    /* what fits each group best alone */
    int exponent[SEARCH_LANES];                         /* by block: the source is x * 2^exponent */
};

/* A choice for a whole block: d and dmin in the units of the copies, and what each group does. */
struct choice {
    float d, dmin, error;
    uint16_t d_bits, dmin_bits;
    float scale[SEARCH_MAX_GROUPS], min[SEARCH_MAX_GROUPS];
};

/* ---- Loading --------------------------------------------------------------------------------- */

static float usable(float value)
{
    return fabsf(value) <= FLT_MAX ? value : 0;
}

/* What the offsets of a block may be. Those of a super-block are multiples of one number, so all
 * have the same sign: negative, but where the groups lie above zero. */
static void bound_offsets(struct batch *batch, size_t block)
{
    const struct search_shape *shape = batch->shape;
    size_t first = block * (size_t)shape->n_groups;
    float lowest = 0, low = 0, high = 0;
    for (size_t lane = first; lane < first + (size_t)shape->n_groups; lane++) {
        float least = batch->groups.x[0][lane];
        for (int i = 1; i < shape->group_len; i++)
            least = MIN(least, batch->groups.x[i][lane]);
        lowest += least;
    }
    if (shape->min_high > 0 && shape->min_low == shape->min_high) {
        low = -FLT_MAX;
        high = FLT_MAX;
    } else if (shape->min_high > 0) {
        low = lowest > 0 ? 0 : -FLT_MAX;
        high = lowest > 0 ? FLT_MAX : 0;
    }
    for (size_t lane = first; lane < first + (size_t)shape->n_groups; lane++) {
        batch->groups.offset_low[lane] = low;
        batch->groups.offset_high[lane] = high;
    }
}

/* One block, to its lanes. */
static void load_block(struct batch *batch, size_t block, const float *src, const float *importance)
{
    const struct search_shape *shape = batch->shape;
    int n = shape->group_len * shape->n_groups;
    float largest = 0, heaviest = 1;
    for (int i = 0; i < n; i++)
        largest = MAX(largest, fabsf(usable(src[i])));
    if (importance != NULL) {
        heaviest = 0;
        for (int i = 0; i < n; i++)
            heaviest = MAX(heaviest, usable(importance[i]));
    }
    int *exponent = &batch->exponent[block];
    (void)frexpf(largest, exponent);
    /* In two steps, because 2^-exponent alone is too large for the smallest numbers. A number whose
     * column is never used still gets a little weight, so that no sum of weights is zero. */
    float half = ldexpf(1, -*exponent / 2), rest = ldexpf(1, -*exponent - -*exponent / 2);
    float inverse = heaviest > FLT_MIN ? 1 / heaviest : 0;
    for (int g = 0; g < shape->n_groups; g++) {
        size_t lane = block * (size_t)shape->n_groups + (size_t)g;
        float weights = 0, squares = 0;
        for (int k = 0; k < shape->group_len; k++) {
            int i = g * shape->group_len + k;
            float x = usable(src[i]) * half * rest;
            float weight = importance != NULL ? MAX(usable(importance[i]), 0) * inverse : 1;
            weight += 1e-6f;
            batch->groups.x[k][lane] = x;
            batch->groups.weight[k][lane] = weight;
            weights += weight;
            squares += weight * x * x;
        }
        batch->weights[lane] = weights;
        batch->squares[lane] = squares;
    }
    bound_offsets(batch, block);
}

static void load(struct batch *batch, const float *src, const float *importance)
{
    size_t block_len = (size_t)(batch->shape->group_len * batch->shape->n_groups);
    if (batch->n_blocks * (size_t)batch->shape->n_groups < SEARCH_LANES)
        memset(&batch->groups, 0, sizeof batch->groups);
    for (size_t b = 0; b < batch->n_blocks; b++)
        load_block(batch, b, src + b * block_len,
                   importance != NULL ? importance + b * block_len : NULL);
}

/* ---- The block ------------------------------------------------------------------------------- */

/* The nearest F16 number, in the units of the copies. */
static float round_f16(float value, int exponent, uint16_t *bits)
{
    float scaled = ldexpf(value, exponent);
    scaled = MIN(MAX(scaled, -F16_MAX), F16_MAX);
    *bits = block_f32_to_f16(scaled);
    return ldexpf(block_f16_to_f32(*bits), -exponent);
}

/* The whole number in [low, high] nearest to a / b. */
static float divide(float a, float b, int low, int high)
{
    float ratio = b != 0 ? a / b : 0;
    return rintf(MIN(MAX(ratio, (float)low), (float)high));
}

/* All zeros, which is best where every scale would be rounded up too far. */
static void choose_nothing(const struct batch *batch, size_t block, struct choice *choice)
{
    *choice = (struct choice){0};
    for (int g = 0; g < batch->shape->n_groups; g++) {
        choice->scale[g] = (float)batch->shape->scale_high;
        choice->min[g] = (float)batch->shape->min_high;
        choice->error += batch->squares[block * (size_t)batch->shape->n_groups + (size_t)g];
    }
    /* Numbers far beyond the largest scale have the same error whatever is done for them. */
    choice->error *= 1.00001f;
}

/* d and dmin of a block that fit the codes of all its groups best. */
static void solve_block(const struct batch *batch, size_t block, struct search_choices *choices)
{
    double a = 0, b = 0, c = 0, p = 0, q = 0;
    size_t first = block * (size_t)batch->shape->n_groups;
    for (size_t lane = first; lane < first + (size_t)batch->shape->n_groups; lane++) {
        double scale = choices->scale[lane], min = choices->min[lane];
        a += scale * scale * choices->vv[lane];
        b -= scale * min * choices->v[lane];
        c += min * min * batch->weights[lane];
        p += scale * choices->vr[lane];
        q -= min * choices->r[lane];
    }
    double det = a * c - b * b;
    if (det > 1e-9 * a * c) {
        choices->d[first] += (float)((c * p - b * q) / det);
        choices->dmin[first] += (float)((a * q - b * p) / det);
    } else if (a > 0) {
        choices->d[first] += (float)(p / a);
    }
}

/* Rounds d and dmin of a block, which are at its first group, and hands them to all. */
static void round_block(const struct batch *batch, size_t block, struct search_choices *choices,
                        struct choice *choice)
{
    size_t first = block * (size_t)batch->shape->n_groups;
    choice->d = round_f16(choices->d[first], batch->exponent[block], &choice->d_bits);
    choice->dmin = round_f16(choices->dmin[first], batch->exponent[block], &choice->dmin_bits);
    for (size_t lane = first; lane < first + (size_t)batch->shape->n_groups; lane++) {
        choices->d[lane] = choice->d;
        choices->dmin[lane] = choice->dmin;
    }
}

/* What a block has chosen, to *best if it is better. */
static bool take_better(const struct batch *batch, size_t block,
                        const struct search_choices *choices, struct choice *choice,
                        struct choice *best)
{
    size_t n_groups = (size_t)batch->shape->n_groups, first = block * n_groups;
    choice->error = 0;
    for (size_t g = 0; g < n_groups; g++)
        choice->error += choices->rr[first + g];
    if (!(choice->error < best->error))
        return false;
    memcpy(choice->scale, choices->scale + first, n_groups * sizeof *choice->scale);
    memcpy(choice->min, choices->min + first, n_groups * sizeof *choice->min);
    *best = *choice;
    return true;
}

/* Steps 2 and 3, with the largest scale of each block at `extreme`. Better choices go to best[]. */
static void refine(const struct batch *batch, int extreme, struct choice *best)
{
    const struct search_shape *shape = batch->shape;
    size_t n_groups = (size_t)shape->n_groups;
    struct search_choices choices;
    struct choice choice[SEARCH_LANES];
    uint32_t active = ((uint32_t)1 << batch->n_blocks) - 1; /* bits of blocks that may improve */
    memset(&choices, 0, sizeof choices);
    for (size_t b = 0; b < batch->n_blocks; b++) {
        float scale = 0, offset = 0;
        for (size_t lane = b * n_groups; lane < (b + 1) * n_groups; lane++) {
            scale = fabsf(batch->scale[lane]) > fabsf(scale) ? batch->scale[lane] : scale;
            offset = fabsf(batch->offset[lane]) > fabsf(offset) ? batch->offset[lane] : offset;
        }
        choices.d[b * n_groups] = scale / (float)extreme;
        choices.dmin[b * n_groups] = shape->min_high > 0 ? -offset / (float)shape->min_high : 0;
    }
    for (int round = 0; round < REFINE_ROUNDS && active != 0; round++) {
        for (size_t b = 0; b < batch->n_blocks; b++)
            round_block(batch, b, &choices, &choice[b]);
        for (size_t lane = 0; lane < batch->n_blocks * n_groups && round == 0; lane++) {
            choices.scale[lane] =
                divide(batch->scale[lane], choices.d[lane], shape->scale_low, shape->scale_high);
            choices.min[lane] =
                divide(-batch->offset[lane], choices.dmin[lane], shape->min_low, shape->min_high);
        }
        search_kernels()->choose(shape, &batch->groups, &choices);
        for (size_t b = 0; b < batch->n_blocks; b++) {
            if ((active >> b & 1) != 0 && !take_better(batch, b, &choices, &choice[b], &best[b]))
                active &= ~((uint32_t)1 << b);
            solve_block(batch, b, &choices);
        }
    }
}

/* ---- The codes ------------------------------------------------------------------------------- */

/* q of every block out of the levels v. */
static void levels_to_codes(const struct batch *batch, float v[][SEARCH_LANES],
                            struct search_result *out)
{
    const struct search_shape *shape = batch->shape;
    uint8_t code_of[256]; /* of a level of the table, from -128 up */
    for (int k = SEARCH_TABLE_LEN - 1; shape->table != NULL && k >= 0; k--)
        code_of[shape->table[k] + 128] = (uint8_t)k;
    for (size_t b = 0; b < batch->n_blocks; b++) {
        uint8_t *q = out[b].q;
        out[b].shape = shape;
        for (int g = 0; g < shape->n_groups; g++) {
            size_t lane = b * (size_t)shape->n_groups + (size_t)g;
            for (int i = 0; i < shape->group_len; i++) {
                int level = (int)v[i][lane];
                *q++ = shape->table != NULL ? code_of[level + 128]
                                            : (uint8_t)(level - shape->level_low);
            }
        }
    }
}

void search_blocks(const struct search_shape *shape, const float *src, const float *importance,
                   size_t n_blocks, struct search_result *out)
{
    struct batch batch;
    struct choice best[SEARCH_LANES];
    float scale[SEARCH_LANES] = {0}, offset[SEARCH_LANES] = {0}, error[SEARCH_LANES];
    float v[SEARCH_MAX_GROUP_LEN][SEARCH_LANES];
    batch.shape = shape;
    batch.n_blocks = n_blocks;
    load(&batch, src, importance);
    search_kernels()->fit(shape, &batch.groups, batch.scale, batch.offset);
    for (size_t b = 0; b < n_blocks; b++)
        choose_nothing(&batch, b, &best[b]);
    refine(&batch, shape->scale_high, best);
    if (shape->scale_low < 0)
        refine(&batch, shape->scale_low, best);
    for (size_t b = 0; b < n_blocks; b++) {
        out[b].d = best[b].d_bits;
        out[b].dmin = best[b].dmin_bits;
        for (int g = 0; g < shape->n_groups; g++) {
            size_t lane = b * (size_t)shape->n_groups + (size_t)g;
            out[b].scale[g] = (int)best[b].scale[g];
            out[b].min[g] = (int)best[b].min[g];
            scale[lane] = best[b].d * best[b].scale[g];
            offset[lane] = -best[b].dmin * best[b].min[g];
        }
    }
    search_kernels()->levels(shape, &batch.groups, scale, offset, v, error);
    levels_to_codes(&batch, v, out);
}

void search_powers(const struct search_shape *shape, const float *src, const float *importance,
                   size_t n_blocks, int low, int high, struct search_result *out)
{
    struct batch batch;
    float scale[SEARCH_LANES] = {0}, offset[SEARCH_LANES] = {0}, error[SEARCH_LANES];
    float least[SEARCH_LANES], v[SEARCH_MAX_GROUP_LEN][SEARCH_LANES];
    batch.shape = shape;
    batch.n_blocks = n_blocks;
    load(&batch, src, importance);
    /* The first and the last of these powers put the largest level below a half and above the whole
     * of the power of two next above the largest number; beyond them the error only grows. */
    int level = shape->table != NULL ? shape->table[SEARCH_TABLE_LEN - 1] : shape->level_high, bits;
    (void)frexpf((float)level, &bits);
    for (size_t b = 0; b < n_blocks; b++) {
        least[b] = FLT_MAX;
        out[b].scale[0] = low;
    }
    for (int i = -1; i <= 1; i++) {
        int power[SEARCH_LANES];
        for (size_t b = 0; b < n_blocks; b++) {
            power[b] = MIN(MAX(batch.exponent[b] - bits + i, low), high);
            scale[b] = ldexpf(1, power[b] - batch.exponent[b]);
        }
        search_kernels()->levels(shape, &batch.groups, scale, offset, v, error);
        for (size_t b = 0; b < n_blocks; b++) {
            if (error[b] < least[b]) {
                least[b] = error[b];
                out[b].scale[0] = power[b];
            }
        }
    }
    for (size_t b = 0; b < n_blocks; b++)
        scale[b] = ldexpf(1, out[b].scale[0] - batch.exponent[b]);
    search_kernels()->levels(shape, &batch.groups, scale, offset, v, error);
    levels_to_codes(&batch, v, out);
}
