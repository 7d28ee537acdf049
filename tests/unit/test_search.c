/* The search for scales: every instruction set finds what the scalar one finds. */
#include "quant/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define SEED 5
#define ROUNDS 20

static const int8_t table[SEARCH_TABLE_LEN] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

/* What formats differ in: signs of levels, minima, a table, scales of eight bits. */
static const struct search_shape shapes[] = {
    {.group_len = 32,
     .n_groups = 1,
     .scale_low = 1,
     .scale_high = 1,
     .level_low = -8,
     .level_high = 7},
    {.group_len = 32,
     .n_groups = 1,
     .scale_low = 1,
     .scale_high = 1,
     .min_low = 1,
     .min_high = 1,
     .level_high = 31},
    {.group_len = 32, .n_groups = 8, .scale_high = 63, .min_high = 63, .level_high = 15},
    {.group_len = 16,
     .n_groups = 16,
     .scale_low = -128,
     .scale_high = 127,
     .level_low = -32,
     .level_high = 31},
    {.group_len = 32, .n_groups = 8, .scale_low = -32, .scale_high = 31, .table = table},
};

/* What one set finds. */
struct found {
    float scale[SEARCH_LANES], offset[SEARCH_LANES];
    struct search_choices choices;
    float level[SEARCH_MAX_GROUP_LEN][SEARCH_LANES], error[SEARCH_LANES];
};

/* One lane is all zeros and one holds a single number, as rows of real models do. */
static void fill(struct search_groups *in, uint64_t round)
{
    for (size_t i = 0; i < SEARCH_MAX_GROUP_LEN; i++) {
        for (size_t lane = 0; lane < SEARCH_LANES; lane++) {
            uint64_t at = (round * SEARCH_MAX_GROUP_LEN + i) * SEARCH_LANES + lane;
            float number = (float)rng_uniform(SEED, at, 0) - 0.5f;
            in->x[i][lane] = lane == 3 || (lane == 4 && i != 7) ? 0 : number;
            in->weight[i][lane] = (float)rng_uniform(SEED, at, 1) + 1e-6f;
        }
    }
}

static void bound(struct search_groups *in, const struct search_shape *shape)
{
    for (size_t lane = 0; lane < SEARCH_LANES; lane++) {
        in->offset_low[lane] = shape->min_high > 0 ? -10 : 0;
        in->offset_high[lane] = shape->min_low > 0 ? 10 : 0;
    }
}

static void search(const struct kernel_set *set, const struct search_shape *shape,
                   const struct search_groups *in, struct found *out)
{
    memset(out, 0, sizeof *out);
    set->search.fit(shape, in, out->scale, out->offset);
    for (size_t lane = 0; lane < SEARCH_LANES; lane++) {
        out->choices.d[lane] = 0.01f;
        out->choices.dmin[lane] = 0.02f;
        out->choices.scale[lane] = (float)shape->scale_high;
        out->choices.min[lane] = (float)shape->min_low;
    }
    set->search.choose(shape, in, &out->choices);
    set->search.levels(shape, in, out->scale, out->offset, out->level, out->error);
}

static void test_same_everywhere(void **state)
{
    (void)state;
    const struct kernel_set *set;
    static struct search_groups in;
    static struct found expected, found;
    for (size_t s = 0; (set = kernels_at(s)) != NULL; s++) {
        if ((machine_cpu_features() & set->cpu_features) != set->cpu_features)
            continue;
        for (size_t i = 0; i < ARRAY_COUNT(shapes) * ROUNDS; i++) {
            const struct search_shape *shape = &shapes[i % ARRAY_COUNT(shapes)];
            fill(&in, i);
            bound(&in, shape);
            search(&kernels_scalar, shape, &in, &expected);
            search(set, shape, &in, &found);
            const float *want = (const float *)&expected, *got = (const float *)&found;
            for (size_t k = 0; k < sizeof found / sizeof *got; k++)
                if (want[k] != got[k]) /* zeros may differ in their sign */
                    fail_msg("%s, shape %zu: number %zu is %a, scalar %a", set->name,
                             i % ARRAY_COUNT(shapes), k, got[k], want[k]);
        }
    }
}

/* Numbers that are a scale times levels are found exactly, whatever the other lanes hold. */
static void test_exact(void **state)
{
    (void)state;
    static struct search_groups in;
    static struct found found;
    const struct search_shape *shape = &shapes[0];
    fill(&in, 0);
    bound(&in, shape);
    for (int i = 0; i < shape->group_len; i++)
        in.x[i][5] = 0.0625f * (float)(i % 16 - 8);
    search(&kernels_scalar, shape, &in, &found);
    assert_true(found.scale[5] == 0.0625f && found.error[5] == 0);
    for (int i = 0; i < shape->group_len; i++)
        assert_true(found.level[i][5] == (float)(i % 16 - 8));
    assert_true(found.scale[3] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_exact),
    };
    return cmocka_run_group_tests_name("search", tests, NULL, NULL);
}
