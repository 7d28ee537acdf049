/* Limits of API keys that nodes share, case by case in simulated clusters. tests/sim/test_limits.c
 * has the bounds, from seeds. */
#include "cluster_cases.h"

#define HASH "00ff"
#define LIMIT 60

/* ---- Helpers --------------------------------------------------------------------------------- */

static void put_key(struct sim *sim, int requests, int tokens, int parallel)
{
    struct error error;
    json_t *value = json_pack("{s:i, s:i, s:i}", "requests_per_minute", requests,
                              "tokens_per_minute", tokens, "parallel", parallel);
    assert_int_equal(cluster_core_put(sim_core(sim, 0), "key/" HASH, value, &error), STATUS_OK);
    json_decref(value);
    run_ms(sim, 200);
}

static struct sim *begin(unsigned n_nodes)
{
    struct sim_options options = {.seed = 7, .n_nodes = n_nodes, .n_models = 1, .latency_ms = 3};
    options.models[0] = 1000;
    struct sim *sim = sim_open(&options);
    start_all(sim);
    run_ms(sim, 500);
    return sim;
}

static bool take(struct sim *sim, unsigned node)
{
    struct cluster_allowance allowance;
    assert_true(cluster_core_take(sim_core(sim, node), HASH, &allowance));
    return allowance.allowed;
}

/* Asks without a pause until one is refused. */
static unsigned take_all(struct sim *sim, unsigned node)
{
    unsigned n = 0;
    while (n < 10 * LIMIT && take(sim, node))
        n++;
    return n;
}

static void give_back(struct sim *sim, unsigned node, unsigned n, uint64_t n_tokens)
{
    while (n-- > 0)
        cluster_core_give_back(sim_core(sim, node), HASH, n_tokens);
}

/* ---- Limits ---------------------------------------------------------------------------------- */

static void test_limits_unknown_key(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_allowance allowance;
    assert_false(cluster_core_take(sim_core(sim, 0), HASH, &allowance));
    put_key(sim, 0, 0, 0);
    for (int i = 0; i < 1000; i++) /* without limits nothing is counted */
        assert_true(take(sim, 1));
    assert_int_equal(sim_core(sim, 1)->n_meters, 0);
    give_back(sim, 1, 1000, 5);
    sim_close(sim);
}

static void test_limits_one_node(void **state)
{
    (void)state;
    struct sim *sim = begin(1);
    struct cluster_allowance allowance;
    put_key(sim, LIMIT, 0, 0);
    assert_int_equal(take_all(sim, 0), LIMIT);
    assert_true(cluster_core_take(sim_core(sim, 0), HASH, &allowance));
    assert_int_equal(allowance.refused_by, CLUSTER_LIMIT_REQUESTS);
    assert_true(allowance.wait_s > 0 && allowance.wait_s <= 1 && allowance.left[0] < 1);
    run_ms(sim, 10000);
    assert_int_equal(take_all(sim, 0), 10);
    sim_close(sim);
}

/* At once a node gives out its share; when the others have heard of it, a share of the rest. */
static void test_limits_shares(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    put_key(sim, LIMIT, 0, 0);
    unsigned n = take_all(sim, 0);
    assert_int_equal(n, LIMIT / 3);
    run_ms(sim, 50); /* now it is known to be busy: 8 of 10 parts of the rest */
    unsigned more = take_all(sim, 0);
    assert_in_range(more, (LIMIT - n) * 8 / 10 - 1, (LIMIT - n) * 8 / 10 + 1);
    for (int i = 0; i < 20; i++) {
        run_ms(sim, 50);
        more += take_all(sim, 0);
    }
    assert_in_range(n + more, LIMIT - 1, LIMIT + 2); /* one comes back each second */
    assert_true(take_all(sim, 1) <= 1 && take_all(sim, 2) <= 1);
    sim_close(sim);
}

static void test_limits_parallel(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    put_key(sim, 0, 0, 4);
    assert_int_equal(take_all(sim, 0), 2);
    run_ms(sim, 50);
    assert_int_equal(take_all(sim, 0), 1);
    run_ms(sim, 50);
    assert_int_equal(take_all(sim, 0), 1);
    run_ms(sim, 50);
    assert_int_equal(take_all(sim, 0) + take_all(sim, 1), 0); /* four run */
    give_back(sim, 0, 3, 0);
    run_ms(sim, 50);
    unsigned there = take_all(sim, 1);
    assert_in_range(there, 1, 3);
    run_ms(sim, 50);
    there += take_all(sim, 1);
    run_ms(sim, 50);
    assert_int_equal(there + take_all(sim, 1), 3);
    sim_close(sim);
}

static void test_limits_tokens(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_allowance allowance;
    put_key(sim, 0, 6000, 0);
    assert_true(take(sim, 0));
    give_back(sim, 0, 1, 9000); /* more than there was: half a minute */
    run_ms(sim, 100);
    for (unsigned node = 0; node < 2; node++) {
        assert_true(cluster_core_take(sim_core(sim, node), HASH, &allowance));
        assert_false(allowance.allowed);
        assert_int_equal(allowance.refused_by, CLUSTER_LIMIT_TOKENS);
        assert_true(allowance.wait_s > 28 && allowance.wait_s < 31);
    }
    run_ms(sim, 31000);
    assert_true(take(sim, 1));
    sim_close(sim);
}

/* Each side of a partition goes on with what it had, for as long as that is kept for the other. */
static void test_limits_partition(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    put_key(sim, LIMIT, 0, 0);
    assert_true(take(sim, 0) && take(sim, 1)); /* both are busy: half for each */
    run_ms(sim, 100);
    sim_block(sim, 0, 1, true);
    sim_block(sim, 1, 0, true);
    run_ms(sim, 4000);
    unsigned here = take_all(sim, 0), there = take_all(sim, 1);
    assert_in_range(here, LIMIT / 2 - 2, LIMIT / 2);
    assert_in_range(there, LIMIT / 2 - 2, LIMIT / 2);
    run_ms(sim, 60000);
    here = take_all(sim, 0), there = take_all(sim, 1);
    assert_in_range(here + there, LIMIT - 2, LIMIT);
    run_ms(sim, 600000);
    assert_int_equal(take_all(sim, 0), LIMIT); /* it is not thought of any more */
    sim_block(sim, 0, 1, false);
    sim_block(sim, 1, 0, false);
    assert_true(sim_wait(sim, sim_now(sim) + 10000, sim_all_linked));
    run_ms(sim, 1000);
    assert_true(take_all(sim, 1) <= 2); /* it has heard what the other one took */
    sim_close(sim);
}

/* The share of a process that ended is kept for a moment only. */
static void test_limits_node_ends(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    put_key(sim, LIMIT, 0, 2);
    assert_true(take(sim, 0) && take(sim, 1));
    run_ms(sim, 100);
    assert_false(take(sim, 0));
    sim_crash(sim, 1, false);
    run_ms(sim, 6000);
    assert_true(take(sim, 0)); /* what ran there does no more */
    give_back(sim, 0, 2, 0);
    run_ms(sim, 60000);
    unsigned n = 0;
    while (n < LIMIT && take(sim, 0)) {
        give_back(sim, 0, 1, 0);
        n++;
    }
    assert_int_equal(n, LIMIT);
    sim_start(sim, 1);
    assert_true(sim_wait(sim, sim_now(sim) + 20000, sim_all_linked));
    run_ms(sim, 200);
    assert_true(take_all(sim, 1) <= 2); /* it was told what is owed */
    sim_close(sim);
}

static void test_limits_forgotten(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    put_key(sim, LIMIT, 1000, 5);
    assert_true(take(sim, 0));
    run_ms(sim, 100);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(sim_core(sim, i)->n_meters, 1);
    run_ms(sim, 300000);
    assert_int_equal(sim_core(sim, 2)->n_meters, 1); /* it still runs */
    give_back(sim, 0, 1, 100);
    run_ms(sim, 300000);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(sim_core(sim, i)->n_meters, 0);
    assert_true(take(sim, 1));
    sim_close(sim);
}

static void test_limits_bad_messages(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"type\":\"usage\"}",
        "{\"type\":\"usage\",\"seq\":1,\"keys\":7}",
        "{\"type\":\"usage\",\"seq\":1,\"keys\":[7]}",
        "{\"type\":\"usage\",\"seq\":1,\"keys\":[[\"00ff\",-1,0,0,true,0,0]]}",
        "{\"type\":\"usage\",\"seq\":1,\"keys\":[[\"00ff\",1,0,99999999,true,0,0]]}",
        "{\"type\":\"usage\",\"seq\":1,\"keys\":[[\"00ff\",1,0,0,true,0]]}",
        "{\"type\":\"usage_heard\"}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct sim *sim = begin(2);
        put_key(sim, LIMIT, 0, 0);
        expect_dropped(sim, texts[i]);
        sim_close(sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits_unknown_key),  cmocka_unit_test(test_limits_one_node),
        cmocka_unit_test(test_limits_shares),       cmocka_unit_test(test_limits_parallel),
        cmocka_unit_test(test_limits_tokens),       cmocka_unit_test(test_limits_partition),
        cmocka_unit_test(test_limits_node_ends),    cmocka_unit_test(test_limits_forgotten),
        cmocka_unit_test(test_limits_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
