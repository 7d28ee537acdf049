/* The part of the search (search.h, search.c) that sees single numbers, for sixteen groups side by
 * side: lane g of every vector belongs to group g. So the order of every sum is the order of the
 * numbers in their group, and all instruction sets find the same codes. Included by
 * kernels_loops.h. */
#include <float.h>

#include "quant/search.h"

#define TABLE_STEPS (SEARCH_TABLE_LEN - 1)
#define FIT_ROUNDS 4

/* The levels of a format; with a table, the steps from one to the next and where they lie. */
struct levels {
    bool table;
    lanes low, high, step[TABLE_STEPS], middle[TABLE_STEPS];
};

static void levels_of(const struct search_shape *shape, struct levels *out)
{
    out->table = shape->table != NULL;
    out->low = lanes_set((float)shape->level_low);
    out->high = lanes_set((float)shape->level_high);
    if (!out->table)
        return;
    out->low = lanes_set(shape->table[0]);
    for (int k = 0; k < TABLE_STEPS; k++) {
        out->step[k] = lanes_set((float)(shape->table[k + 1] - shape->table[k]));
        out->middle[k] = lanes_set(0.5f * (float)(shape->table[k + 1] + shape->table[k]));
    }
}

/* The level nearest to `level`. */
INLINE lanes nearest_level(const struct levels *levels, lanes level, bool table)
{
    if (!table)
        return lanes_round(lanes_min(lanes_max(level, levels->low), levels->high));
    lanes sum = levels->low;
    for (int k = 0; k < TABLE_STEPS; k++)
        sum = lanes_add(sum,
                        lanes_pick_less(levels->middle[k], level, levels->step[k], lanes_zero()));
    return sum;
}

/* 1 / scale; 0 where that would be no number. */
INLINE lanes inverse_of(lanes scale)
{
    lanes size = lanes_max(scale, lanes_sub(lanes_zero(), scale));
    return lanes_pick_less(lanes_set(1e-37f), size, lanes_div(lanes_set(1), scale), lanes_zero());
}

/* ---- One candidate --------------------------------------------------------------------------- */

/* Weighted sums over a group of residuals r = x - scale v - offset and levels v. */
struct lane_sums {
    lanes rr, vr, r, vv, v;
};

INLINE void measure_levels(const struct levels *levels, const struct search_groups *in, int n,
                           lanes scale, lanes offset, struct lane_sums *out, bool table)
{
    struct lane_sums s = {lanes_zero(), lanes_zero(), lanes_zero(), lanes_zero(), lanes_zero()};
    lanes inverse = inverse_of(scale);
    for (int i = 0; i < n; i++) {
        lanes x = lanes_sub(lanes_load(in->x[i]), offset), weight = lanes_load(in->weight[i]);
        lanes v = nearest_level(levels, lanes_mul(x, inverse), table);
        lanes r = lanes_sub(x, lanes_mul(scale, v));
        lanes wr = lanes_mul(weight, r), wv = lanes_mul(weight, v);
        s.rr = lanes_add(s.rr, lanes_mul(wr, r));
        s.vr = lanes_add(s.vr, lanes_mul(wr, v));
        s.r = lanes_add(s.r, wr);
        s.vv = lanes_add(s.vv, lanes_mul(wv, v));
        s.v = lanes_add(s.v, wv);
    }
    *out = s;
}

static void measure(const struct levels *levels, const struct search_groups *in, int n, lanes scale,
                    lanes offset, struct lane_sums *out)
{
    if (levels->table)
        measure_levels(levels, in, n, scale, offset, out, true);
    else
        measure_levels(levels, in, n, scale, offset, out, false);
}

INLINE lanes residual_levels(const struct levels *levels, const struct search_groups *in, int n,
                             lanes scale, lanes offset, float v[][SEARCH_LANES], bool table)
{
    lanes rr = lanes_zero(), inverse = inverse_of(scale);
    for (int i = 0; i < n; i++) {
        lanes x = lanes_sub(lanes_load(in->x[i]), offset);
        lanes level = nearest_level(levels, lanes_mul(x, inverse), table);
        lanes r = lanes_sub(x, lanes_mul(scale, level));
        rr = lanes_add(rr, lanes_mul(lanes_mul(lanes_load(in->weight[i]), r), r));
        if (v != NULL)
            lanes_store(v[i], level);
    }
    return rr;
}

static lanes residual(const struct levels *levels, const struct search_groups *in, int n,
                      lanes scale, lanes offset)
{
    return levels->table ? residual_levels(levels, in, n, scale, offset, NULL, true)
                         : residual_levels(levels, in, n, scale, offset, NULL, false);
}

/* ---- Each group alone ------------------------------------------------------------------------ */

/* A search under way: the best so far. */
struct fits {
    const struct search_shape *shape;
    const struct search_groups *in;
    struct levels levels;
    lanes weights, offset_low, offset_high;
    lanes scale, offset, error;
};

/* From the candidate (scale, offset), whose sums are s, to the least-squares scale and offset for
 * its codes; returns the error that these codes then have. */
INLINE lanes solve(const struct fits *fits, const struct lane_sums *s, lanes *scale, lanes *offset)
{
    lanes det = lanes_sub(lanes_mul(s->vv, fits->weights), lanes_mul(s->v, s->v));
    lanes least = lanes_mul(lanes_mul(lanes_set(1e-6f), s->vv), fits->weights);
    lanes change = lanes_sub(lanes_mul(s->vv, s->r), lanes_mul(s->v, s->vr));
    change = lanes_pick_less(least, det, lanes_div(change, det), lanes_zero());
    lanes moved = lanes_add(*offset, change);
    moved = lanes_min(lanes_max(moved, fits->offset_low), fits->offset_high);
    change = lanes_sub(moved, *offset);
    lanes gain = lanes_div(lanes_sub(s->vr, lanes_mul(change, s->v)), s->vv);
    gain = lanes_pick_less(lanes_zero(), s->vv, gain, lanes_zero());
    /* rr - 2 (gain vr + change r) + gain^2 vv + 2 gain change v + change^2 w */
    lanes two = lanes_set(2);
    lanes linear = lanes_add(lanes_mul(gain, s->vr), lanes_mul(change, s->r));
    lanes error = lanes_sub(s->rr, lanes_mul(two, linear));
    error = lanes_add(error, lanes_mul(lanes_mul(gain, gain), s->vv));
    error = lanes_add(error, lanes_mul(lanes_mul(two, lanes_mul(gain, change)), s->v));
    error = lanes_add(error, lanes_mul(lanes_mul(change, change), fits->weights));
    *scale = lanes_add(*scale, gain);
    *offset = moved;
    /* Rounding must not choose between exact fits: the first of them has the smallest offset, and
     * groups of the same few numbers shall get the same one. */
    return lanes_pick_less(error, lanes_mul(lanes_set(2e-6f), s->rr), lanes_zero(), error);
}

/* Fits from the candidate (scale, offset), with `rounds` rounds of least squares; better ones
 * become the best. */
static void fit_from(struct fits *fits, lanes scale, lanes offset, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        struct lane_sums s;
        measure(&fits->levels, fits->in, fits->shape->group_len, scale, offset, &s);
        lanes error = solve(fits, &s, &scale, &offset);
        fits->scale = lanes_pick_less(error, fits->error, scale, fits->scale);
        fits->offset = lanes_pick_less(error, fits->error, offset, fits->offset);
        fits->error = lanes_pick_less(error, fits->error, error, fits->error);
    }
}

/* Without an offset. The largest magnitude goes to a place up to a level beyond either end of the
 * levels, or inside; of many fine levels more places inside are worth a try, as every one of them
 * is another chance for the other numbers. */
static void fit_scale(struct fits *fits)
{
    const struct search_shape *shape = fits->shape;
    float low = (float)shape->level_low, step = 1;
    lanes largest = lanes_zero();
    for (int i = 0; i < shape->group_len; i++) {
        lanes x = lanes_load(fits->in->x[i]);
        largest = lanes_max(largest, lanes_max(x, lanes_sub(lanes_zero(), x)));
    }
    if (shape->table != NULL) {
        low = shape->table[0];
        step = (float)(shape->table[TABLE_STEPS] - shape->table[0]) / TABLE_STEPS;
    }
    bool symmetric = shape->table == NULL && shape->level_low == -shape->level_high;
    for (int i = 2; i >= (shape->level_low < -8 ? -8 : -3); i--) {
        lanes scale = lanes_div(largest, lanes_set(low - 0.5f * step * (float)i));
        fit_from(fits, scale, lanes_zero(), 1);
        if (!symmetric)
            fit_from(fits, lanes_sub(lanes_zero(), scale), lanes_zero(), 1);
    }
    fit_from(fits, fits->scale, lanes_zero(), FIT_ROUNDS);
    fits->scale = lanes_pick_less(largest, lanes_set(SEARCH_NEGLIGIBLE), lanes_zero(), fits->scale);
}

/* With an offset. The smallest and the largest number go to places from half a level beyond the
 * ends of the levels to one inside. */
static void fit_scale_offset(struct fits *fits)
{
    const struct search_shape *shape = fits->shape;
    lanes low = lanes_load(fits->in->x[0]), high = low;
    for (int i = 1; i < shape->group_len; i++) {
        low = lanes_min(low, lanes_load(fits->in->x[i]));
        high = lanes_max(high, lanes_load(fits->in->x[i]));
    }
    low = lanes_min(lanes_max(low, fits->offset_low), fits->offset_high);
    lanes levels = lanes_set((float)shape->level_high);
    lanes step = lanes_div(lanes_sub(high, low), levels);
    for (int i = 1; i >= -2; i--) {
        for (int j = 1; j >= -2; j--) {
            lanes first = lanes_add(low, lanes_mul(lanes_set(0.5f * (float)i), step));
            lanes last = lanes_sub(high, lanes_mul(lanes_set(0.5f * (float)j), step));
            fit_from(fits, lanes_div(lanes_sub(last, first), levels), first, 1);
        }
    }
    fit_from(fits, fits->scale, fits->offset, FIT_ROUNDS);
    lanes least = lanes_set(SEARCH_NEGLIGIBLE);
    fits->offset = lanes_pick_less(least, step, fits->offset, low);
    fits->scale = lanes_pick_less(least, step, fits->scale, lanes_zero());
}

static void search_fit(const struct search_shape *shape, const struct search_groups *in,
                       float *scale, float *offset)
{
    struct fits fits = {.shape = shape,
                        .in = in,
                        .weights = lanes_zero(),
                        .offset_low = lanes_load(in->offset_low),
                        .offset_high = lanes_load(in->offset_high),
                        .scale = lanes_zero(),
                        .offset = lanes_zero(),
                        .error = lanes_set(FLT_MAX)};
    levels_of(shape, &fits.levels);
    for (int i = 0; i < shape->group_len; i++)
        fits.weights = lanes_add(fits.weights, lanes_load(in->weight[i]));
    if (shape->min_high > 0)
        fit_scale_offset(&fits);
    else
        fit_scale(&fits);
    lanes_store(scale, fits.scale);
    lanes_store(offset, fits.offset);
}

/* ---- Each group in its block ----------------------------------------------------------------- */

static void search_choose(const struct search_shape *shape, const struct search_groups *in,
                          struct search_choices *choices)
{
    struct levels levels;
    levels_of(shape, &levels);
    int n = shape->group_len, min_reach = shape->min_low < shape->min_high ? 1 : 0, reach = 1;
    if (shape->scale_high == 127)
        reach = 3; /* more of the neighbours of eight bits matter */
    else if (shape->scale_low == shape->scale_high)
        reach = 0;
    lanes d = lanes_load(choices->d), dmin = lanes_load(choices->dmin);
    lanes scale = lanes_load(choices->scale), min = lanes_load(choices->min);
    lanes scale_low = lanes_set((float)shape->scale_low),
          scale_high = lanes_set((float)shape->scale_high);
    lanes min_low = lanes_set((float)shape->min_low), min_high = lanes_set((float)shape->min_high);
    lanes least = lanes_set(FLT_MAX), best_scale = scale, best_min = min;
    for (int i = -reach; i <= reach; i++) {
        for (int j = -min_reach; j <= min_reach; j++) {
            lanes near_scale = lanes_add(scale, lanes_set((float)i));
            lanes near_min = lanes_add(min, lanes_set((float)j));
            near_scale = lanes_min(lanes_max(near_scale, scale_low), scale_high);
            near_min = lanes_min(lanes_max(near_min, min_low), min_high);
            lanes offset = lanes_sub(lanes_zero(), lanes_mul(dmin, near_min));
            lanes error = residual(&levels, in, n, lanes_mul(d, near_scale), offset);
            best_scale = lanes_pick_less(error, least, near_scale, best_scale);
            best_min = lanes_pick_less(error, least, near_min, best_min);
            least = lanes_pick_less(error, least, error, least);
        }
    }
    struct lane_sums s;
    measure(&levels, in, n, lanes_mul(d, best_scale),
            lanes_sub(lanes_zero(), lanes_mul(dmin, best_min)), &s);
    lanes_store(choices->scale, best_scale);
    lanes_store(choices->min, best_min);
    lanes_store(choices->rr, s.rr);
    lanes_store(choices->vr, s.vr);
    lanes_store(choices->r, s.r);
    lanes_store(choices->vv, s.vv);
    lanes_store(choices->v, s.v);
}

static void search_levels(const struct search_shape *shape, const struct search_groups *in,
                          const float *scale, const float *offset, float v[][SEARCH_LANES],
                          float *error)
{
    struct levels levels;
    levels_of(shape, &levels);
    lanes s = lanes_load(scale), o = lanes_load(offset);
    lanes_store(error, levels.table
                           ? residual_levels(&levels, in, shape->group_len, s, o, v, true)
                           : residual_levels(&levels, in, shape->group_len, s, o, v, false));
}

#undef TABLE_STEPS
#undef FIT_ROUNDS
