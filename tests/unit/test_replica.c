/* Replicas: which one a request goes to, and what becomes of it when that one is lost or closed. */
#include "cluster_cases.h"

#define N_TOKENS 2000

/* Each node has the first model open by itself. */
static struct sim *begin(unsigned n_nodes)
{
    struct sim_options options = {.seed = 7, .n_nodes = n_nodes, .n_models = 1, .latency_ms = 3};
    options.models[0] = 10000; /* too large for an instance */
    struct sim *sim = sim_open(&options);
    for (unsigned i = 0; i < n_nodes; i++) {
        options.memory[i] = 100;
        sim_give_model(sim, i, 0);
        sim_start(sim, i);
    }
    if (!sim_wait(sim, 20000, sim_all_linked))
        fail_msg("not all nodes are linked");
    for (unsigned i = 0; i < n_nodes; i++)
        sim_set_replica(sim, i, 0, true);
    run_ms(sim, 600);
    return sim;
}

static void set_waiting(struct sim *sim, unsigned node, uint32_t waiting)
{
    struct cluster_replica replica = {.waiting = waiting};
    memcpy(replica.sha, sim_model(sim, 0)->sha, sizeof replica.sha);
    cluster_core_set_replicas(sim_core(sim, node), &replica, 1);
}

static uint32_t prefixes_of(struct sim *sim, unsigned node, int32_t first,
                            uint64_t out[CLUSTER_PREFIX_LEVELS])
{
    static int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = first + i;
    return cluster_core_prefixes(sim_core(sim, node), sim_model(sim, 0)->sha, tokens, N_TOKENS,
                                 out);
}

/* The number of the node that is to answer. */
static unsigned way_of(struct sim *sim, unsigned node, int32_t first)
{
    uint64_t prefixes[CLUSTER_PREFIX_LEVELS];
    uint32_t n = prefixes_of(sim, node, first, prefixes);
    struct cluster_id to = {0, 0};
    enum cluster_route way = cluster_core_replica(sim_core(sim, node), sim_model(sim, 0)->sha,
                                                  prefixes, n, N_TOKENS, &to);
    assert_int_not_equal(way, CLUSTER_NOWHERE);
    for (unsigned i = 0; way == CLUSTER_THERE && i < sim_n_nodes(sim); i++)
        if (cluster_id_equal(to, sim_id(sim, i)))
            return i;
    return node;
}

static void test_replica_prefixes(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    uint64_t a[CLUSTER_PREFIX_LEVELS], b[CLUSTER_PREFIX_LEVELS];
    assert_int_equal(prefixes_of(sim, 0, 5, a), 5); /* 64, 128, 256, 512, 1024 */
    assert_int_equal(prefixes_of(sim, 1, 5, b), 5);
    assert_memory_equal(a, b, 5 * sizeof a[0]); /* the same on all nodes */
    prefixes_of(sim, 0, 6, b);
    for (int i = 0; i < 5; i++)
        assert_true(a[i] != b[i]);
    const int32_t few[] = {1, 2, 3};
    assert_int_equal(cluster_core_prefixes(sim_core(sim, 0), "aa", few, 3, a), 0);
    sim_close(sim);
}

static void test_replica_none(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_id to;
    assert_int_equal(cluster_core_replica(sim_core(sim, 0), "bb", NULL, 0, 10, &to),
                     CLUSTER_NOWHERE);
    cluster_core_set_replicas(sim_core(sim, 0), NULL, 0);
    assert_int_equal(way_of(sim, 0, 1), 1);
    sim_close(sim);
}

static void test_replica_cached(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    assert_int_equal(way_of(sim, 1, 5), 1); /* its own, where all are alike */
    run_ms(sim, 600);
    set_waiting(sim, 1, 0);
    run_ms(sim, 600);
    assert_int_equal(way_of(sim, 0, 5), 1); /* it has the beginning */
    assert_int_equal(way_of(sim, 0, 9000), 0);
    set_waiting(sim, 1, 1); /* its 1024 tokens are worth two requests */
    set_waiting(sim, 0, 0);
    run_ms(sim, 600);
    assert_int_equal(way_of(sim, 2, 5), 1);
    set_waiting(sim, 1, 3);
    run_ms(sim, 600);
    assert_int_equal(way_of(sim, 0, 5), 0);
    sim_close(sim);
}

static void test_replica_shortest(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    unsigned n[3] = {0, 0, 0};
    for (int i = 0; i < 30; i++) /* nothing is told between them */
        n[way_of(sim, 0, 100000 * i)]++;
    for (int i = 0; i < 3; i++)
        assert_in_range(n[i], 9, 11);
    for (unsigned i = 0; i < 3; i++)
        set_waiting(sim, i, 4 - i);
    run_ms(sim, 600);
    assert_int_equal(way_of(sim, 0, 7), 2);
    sim_close(sim);
}

static void test_replica_many_prefixes(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    for (int i = 0; i < 100; i++) {
        way_of(sim, 0, 100000 * i);
        set_waiting(sim, 0, 0);
    }
    run_ms(sim, 600);
    const struct node *seen = core_node(sim_core(sim, 1), sim_id(sim, 0));
    assert_int_equal(seen->replicas[0].n_prefixes, CLUSTER_MAX_PREFIXES);
    assert_int_equal(way_of(sim, 1, 100000 * 99), 0); /* the latest is kept */
    set_waiting(sim, 1, 0);
    assert_int_equal(way_of(sim, 1, 100000), 1);
    sim_close(sim);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static int answered_by(struct sim *sim, unsigned node, unsigned by, uint32_t n)
{
    for (unsigned i = 0; i < sim_n_nodes(sim); i++)
        set_waiting(sim, i, i == by ? 0 : 9);
    run_ms(sim, 600);
    return sim_submit(sim, node, 0, n);
}

static void end_well(struct sim *sim, int request)
{
    if (!sim_wait(sim, sim_now(sim) + 60000, sim_all_answered))
        fail_msg("%s", sim_fault(sim) != NULL ? sim_fault(sim) : "it does not end");
    assert_int_equal(sim_request(sim, request)->answer, SIM_ANSWERED);
}

static void test_replica_answers(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    end_well(sim, answered_by(sim, 0, 2, 20));
    assert_int_equal(sim_n_replied(sim, 2), 1);
    run_ms(sim, 600);
    const struct node *seen = core_node(sim_core(sim, 0), sim_id(sim, 2));
    assert_int_equal(seen->replicas[0].waiting,
                     0); /* what was sent there does not count for ever */
    end_well(sim, answered_by(sim, 0, 0, 20));
    assert_int_equal(sim_n_replied(sim, 0), 1);
    int request = answered_by(sim, 0, 1, 1000);
    run_ms(sim, 500);
    sim_cancel(sim, request);
    run_ms(sim, 200);
    assert_int_equal(sim_core(sim, 1)->n_works > 0 && sim_core(sim, 1)->works[0].used, false);
    sim_close(sim);
}

/* Killed in the middle: the client's own node goes on with the tokens that came. */
static void test_replica_lost(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    int request = answered_by(sim, 0, 2, 60);
    run_ms(sim, 1000);
    assert_in_range(sim_request(sim, request)->n_tokens, 1, 59);
    sim_crash(sim, 2, false);
    end_well(sim, request);
    assert_int_equal(sim_n_replied(sim, 0), 1);
    assert_int_equal(sim_counts(sim)->continued, 1);
    sim_close(sim);
}

/* Closed before the request comes, where it was told to be open. */
static void test_replica_closed(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_replica open = {.waiting = 0};
    memcpy(open.sha, sim_model(sim, 0)->sha, sizeof open.sha);
    sim_set_replica(sim, 1, 0, false);
    cluster_core_set_replicas(sim_core(sim, 1), &open, 1); /* which is not true */
    set_waiting(sim, 0, 9);
    run_ms(sim, 600);
    end_well(sim, sim_submit(sim, 0, 0, 10));
    assert_int_equal(sim_n_replied(sim, 0), 1);
    assert_int_equal(sim_n_replied(sim, 1), 0);
    sim_close(sim);
}

static void test_replica_bad_messages(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"type\":\"replicas\",\"list\":7}",
        "{\"type\":\"replicas\",\"list\":[7]}",
        "{\"type\":\"replicas\",\"list\":[[\"aa\",-1,[]]]}",
        "{\"type\":\"replicas\",\"list\":[[\"aa\",1]]}",
        "{\"type\":\"replicas\",\"list\":[[\"aa\",1,[\"x\"]]]}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct sim *sim = begin(2);
        expect_dropped(sim, texts[i]);
        sim_close(sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_prefixes),      cmocka_unit_test(test_replica_none),
        cmocka_unit_test(test_replica_cached),        cmocka_unit_test(test_replica_shortest),
        cmocka_unit_test(test_replica_many_prefixes), cmocka_unit_test(test_replica_answers),
        cmocka_unit_test(test_replica_lost),          cmocka_unit_test(test_replica_closed),
        cmocka_unit_test(test_replica_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
