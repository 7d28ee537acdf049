/* The control plane, case by case, in simulated clusters; and its parts that decide without one. */
#include "cluster_cases.h"

#define N_CHUNKS 40

/* ---- Helpers --------------------------------------------------------------------------------- */

/* All nodes run and are linked; each has both models. */
static struct sim *begin_with(const struct sim_options *options)
{
    struct sim *sim = sim_open(options);
    for (unsigned i = 0; i < options->n_nodes; i++) {
        for (unsigned model = 0; model < options->n_models; model++)
            sim_give_model(sim, i, model);
        sim_start(sim, i);
    }
    assert_sim(sim, sim_wait(sim, 4000, sim_all_linked));
    sim_run(sim, sim_now(sim) + 500);
    return sim;
}

static struct sim *begin(unsigned n_nodes)
{
    struct sim_options options = options_of(n_nodes);
    return begin_with(&options);
}

static const struct node *seen(struct sim *sim, unsigned at, unsigned node)
{
    return core_node(sim_core(sim, at), sim_id(sim, node));
}

static bool is_up(struct sim *sim, unsigned at, unsigned node)
{
    const struct node *found = seen(sim, at, node);
    return found != NULL && found->state == NODE_UP;
}

static const struct instance *running(struct sim *sim, unsigned model, unsigned *owner)
{
    for (*owner = 0; *owner < sim_n_nodes(sim); ++*owner) {
        struct cluster_core *core = sim_core(sim, *owner);
        const struct instance *instance =
            core != NULL ? instance_of(core, sim_model(sim, model)->sha) : NULL;
        if (instance != NULL && instance->state == INSTANCE_RUNNING)
            return instance;
    }
    return NULL;
}

static void put(struct sim *sim, unsigned node, const char *key, int number)
{
    struct error error;
    json_t *value = json_pack("{s:i}", "n", number);
    assert_int_equal(cluster_core_put(sim_core(sim, node), key, value, &error), STATUS_OK);
    json_decref(value);
}

static int got(struct sim *sim, unsigned node, const char *key)
{
    const json_t *value = cluster_core_get(sim_core(sim, node), key);
    return value == NULL ? -1 : (int)json_integer_value(json_object_get(value, "n"));
}

static bool answered(struct sim *sim, int request)
{
    return sim_request(sim, request)->answer == SIM_ANSWERED;
}

/* ---- Transfers ------------------------------------------------------------------------------- */

static struct cluster_id id_of(uint64_t n)
{
    return (struct cluster_id){1, n};
}

static void open_transfer(struct transfer *transfer, const uint8_t *have)
{
    struct error error;
    memset(transfer, 0, sizeof *transfer);
    assert_int_equal(transfer_open(transfer, "object",
                                   (uint64_t)(N_CHUNKS - 1) * CLUSTER_CHUNK_BYTES + 1, have,
                                   &error),
                     STATUS_OK);
    assert_int_equal(transfer->n_chunks, N_CHUNKS);
}

static void test_transfer_sizes(void **state)
{
    (void)state;
    struct transfer transfer = {.n_chunks = 0};
    struct error error;
    assert_int_equal(transfer_open(&transfer, "o", 0, NULL, &error), STATUS_LIMIT);
    assert_int_equal(transfer_open(&transfer, "o", UINT64_MAX, NULL, &error), STATUS_LIMIT);
    assert_int_equal(transfer_open(&transfer, "o", CLUSTER_CHUNK_BYTES, NULL, &error), STATUS_OK);
    assert_int_equal(transfer.n_chunks, 1);
    transfer_close(&transfer);
}

static void test_transfer_goes_on(void **state)
{
    (void)state;
    struct transfer transfer;
    uint8_t have[N_CHUNKS / 8] = {0xff, 0xff, 0x0f, 0, 0xff};
    open_transfer(&transfer, have);
    assert_int_equal(transfer.n_have, 28);
    transfer_whole(&transfer, id_of(1));
    uint32_t chunk;
    struct cluster_id source;
    for (int i = 0; i < 12; i++) {
        assert_true(transfer_pick(&transfer, 0, (uint64_t)i * 977, &chunk, &source));
        assert_in_range(chunk, 20, 31);
        assert_true(transfer_result(&transfer, 0, chunk, source, CLUSTER_FETCHED));
        assert_false(transfer_result(&transfer, 0, chunk, source, CLUSTER_FETCHED));
    }
    assert_true(transfer_done(&transfer));
    assert_false(transfer_pick(&transfer, 0, 0, &chunk, &source));
    transfer_close(&transfer);
}

static void test_transfer_in_flight(void **state)
{
    (void)state;
    struct transfer transfer;
    open_transfer(&transfer, NULL);
    uint32_t chunk;
    struct cluster_id source;
    unsigned n = 0, n_of[3] = {0};
    for (uint64_t i = 0; i < 3; i++)
        transfer_whole(&transfer, id_of(i + 1));
    while (transfer_pick(&transfer, 0, n, &chunk, &source)) {
        n++;
        n_of[source.low - 1]++;
    }
    assert_int_equal(n, 3 * CLUSTER_CHUNKS_IN_FLIGHT);
    for (int i = 0; i < 3; i++)
        assert_int_equal(n_of[i], CLUSTER_CHUNKS_IN_FLIGHT);
    /* What a lost source was sending comes from another one. */
    transfer_remove(&transfer, id_of(1));
    assert_int_equal(transfer.n_flights, 2 * CLUSTER_CHUNKS_IN_FLIGHT);
    assert_false(transfer_pick(&transfer, 0, 0, &chunk, &source));
    transfer_expire(&transfer, 100, 50);
    assert_int_equal(transfer.n_flights, 0);
    assert_false(transfer_pick(&transfer, 100, 0, &chunk, &source)); /* they rest */
    assert_true(transfer_pick(&transfer, 100000, 0, &chunk, &source));
    transfer_close(&transfer);
}

static void test_transfer_rarest(void **state)
{
    (void)state;
    struct transfer transfer;
    open_transfer(&transfer, NULL);
    uint8_t all_but_two[N_CHUNKS / 8] = {0xff, 0xfd, 0xff, 0xff, 0x7f};
    transfer_parts(&transfer, id_of(2), all_but_two);
    uint32_t chunk;
    struct cluster_id source;
    /* Only the relay is there: it is asked for what it has. */
    assert_true(transfer_pick(&transfer, 0, 3, &chunk, &source));
    assert_int_equal(source.low, 2);
    assert_int_equal(transfer_missing(&transfer), 9);
    /* With one that has all, what the relay lacks comes first, from that one; then the relay. */
    transfer_whole(&transfer, id_of(1));
    assert_int_equal(transfer_missing(&transfer), N_CHUNKS);
    for (int i = 0; i < 2; i++) {
        assert_true(transfer_pick(&transfer, 0, (uint64_t)i << 10, &chunk, &source));
        assert_true(chunk == 9 || chunk == 39);
        assert_int_equal(source.low, 1);
    }
    assert_true(transfer_pick(&transfer, 0, 5, &chunk, &source));
    assert_int_equal(source.low, 2);
    transfer_close(&transfer);
}

static void test_transfer_wrong_bytes(void **state)
{
    (void)state;
    struct transfer transfer;
    open_transfer(&transfer, NULL);
    transfer_whole(&transfer, id_of(1));
    uint32_t chunk;
    struct cluster_id source;
    uint64_t now_ms = 0;
    for (int i = 0; i < TRANSFER_MAX_WRONG; i++) {
        assert_true(transfer_pick(&transfer, now_ms, 0, &chunk, &source));
        assert_false(transfer_result(&transfer, now_ms, chunk, source, CLUSTER_FETCH_WRONG));
        assert_false(transfer_pick(&transfer, now_ms, 0, &chunk, &source));
        now_ms += TRANSFER_WRONG_MS;
    }
    assert_false(transfer_pick(&transfer, now_ms, 0, &chunk, &source)); /* never again */
    assert_int_equal(transfer_missing(&transfer), 0);
    transfer_whole(&transfer, id_of(2));
    assert_true(transfer_pick(&transfer, now_ms, 0, &chunk, &source));
    assert_int_equal(source.low, 2);
    transfer_close(&transfer);
}

/* Two nodes fetch the same object: the origin sends hardly more than one copy of it. */
static void test_transfer_relays(void **state)
{
    (void)state;
    struct transfer transfers[2];
    unsigned from_origin = 0;
    uint64_t random = 1;
    for (uint64_t i = 0; i < 2; i++) {
        open_transfer(&transfers[i], NULL);
        transfer_whole(&transfers[i], id_of(9));
    }
    while (!transfer_done(&transfers[0]) || !transfer_done(&transfers[1]))
        for (int i = 0; i < 2; i++) {
            uint32_t chunk;
            struct cluster_id source;
            if (!transfer_pick(&transfers[i], 0, random = hash_mix(random), &chunk, &source))
                continue;
            from_origin += source.low == 9;
            transfer_result(&transfers[i], 0, chunk, source, CLUSTER_FETCHED);
            transfer_part(&transfers[1 - i], id_of((uint64_t)i), chunk);
        }
    assert_in_range(from_origin, N_CHUNKS, N_CHUNKS + 2);
    for (int i = 0; i < 2; i++)
        transfer_close(&transfers[i]);
}

/* ---- Ways between two nodes ------------------------------------------------------------------ */

static struct path path_of(enum path_state state, double latency_us, double bandwidth)
{
    return (struct path){.state = state, .latency_us = latency_us, .bandwidth = bandwidth};
}

static void check_order(const struct path *paths, uint32_t n, const char *expected)
{
    uint32_t order[CLUSTER_MAX_PATHS];
    char text[CLUSTER_MAX_PATHS + 1] = "";
    paths_order(paths, n, order);
    for (uint32_t i = 0; i < n; i++)
        text[i] = (char)('0' + order[i]);
    assert_string_equal(text, expected);
}

static void test_paths_order(void **state)
{
    (void)state;
    struct path paths[] = {path_of(PATH_GOOD, 900, 6e6), path_of(PATH_GOOD, 40, 1.2e9),
                           path_of(PATH_GOOD, 20, 1.15e9), path_of(PATH_UNKNOWN, 0, 0),
                           path_of(PATH_DEAD, 0, 0)};
    check_order(paths, 0, "");
    check_order(paths, 1, "0");
    check_order(paths, 2, "10");
    check_order(paths, 5, "21034"); /* about as fast: the latency decides; dead ones last */
    paths[3].control = paths[4].control = true;
    check_order(paths, 5, "21034");
    paths[0].state = paths[1].state = paths[2].state = PATH_UNKNOWN;
    check_order(paths, 5, "30124"); /* nothing is measured: where the control link is */
    for (int i = 0; i < 3; i++)
        paths[i].state = PATH_GOOD;
    for (int i = 1; i < 5; i++)
        paths[i].strayed = 1;
    check_order(paths, 5, "02134"); /* the first one is pinned, though slow */
    paths[0].state = PATH_DEAD;
    check_order(paths, 5, "21340"); /* ... as long as it works */
}

static void check_way(struct sim *sim, unsigned at, unsigned to, const char *interface)
{
    struct cluster_way ways[CLUSTER_MAX_PATHS];
    size_t n = cluster_core_ways(sim_core(sim, at), sim_id(sim, to), ways);
    assert_string_equal(n > 0 ? ways[0].interface : "", interface);
}

static void check_both(struct sim *sim, const char *interface)
{
    check_way(sim, 0, 1, interface);
    check_way(sim, 1, 0, interface);
}

/* Two nodes with a slow interface, which comes first, and a fast one. */
static void test_paths_measured(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    check_both(sim, ""); /* they have told no interfaces */
    for (unsigned i = 0; i < 2; i++) {
        sim_network(sim, i, 0, 6e6);
        sim_network(sim, i, 1, 5e9);
    }
    run_ms(sim, 8000);
    check_both(sim, "net1");
    const struct told_link *link =
        members_link(&sim_core(sim, 0)->nodes[0], &sim_core(sim, 1)->nodes[0]);
    assert_true(link != NULL && link->bandwidth == 5e9);
    json_t *status = cluster_core_status(sim_core(sim, 1));
    const json_t *links = json_object_get(status, "links");
    const json_t *paths = json_object_get(json_array_get(links, 0), "paths");
    assert_int_equal(json_array_size(links), 1);
    assert_int_equal(json_array_size(paths), 3); /* and the address of the control link */
    assert_string_equal(json_string_value(json_object_get(json_array_get(paths, 0), "interface")),
                        "net1");
    json_decref(status);
    sim_close(sim);
}

static void test_paths_pinned(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    for (unsigned i = 0; i < 3; i++) {
        sim_network(sim, i, 0, 6e6);
        sim_network(sim, i, 1, 5e9);
    }
    run_ms(sim, 12000);
    check_both(sim, "net1");
    sim_pin(sim, 1, "net0"); /* for all that go there */
    run_ms(sim, 8000);
    check_both(sim, "net0");
    check_way(sim, 2, 1, "net0");
    check_way(sim, 0, 2, "net1");
    sim_network(sim, 1, 0, 0); /* better over another one than not at all */
    run_ms(sim, 8000);
    check_both(sim, "net1");
    sim_close(sim);
}

static void test_paths_change(void **state)
{
    (void)state;
    struct cluster_way ways[CLUSTER_MAX_PATHS];
    struct sim *sim = begin(2);
    for (unsigned i = 0; i < 2; i++) {
        sim_network(sim, i, 0, 6e6);
        sim_network(sim, i, 1, 5e9);
    }
    run_ms(sim, 8000);
    check_both(sim, "net1");
    assert_int_equal(sim_gone(sim, 0) + sim_gone(sim, 1), 0);
    sim_network(sim, 1, 1, 0);
    run_ms(sim, 200);
    check_both(sim, ""); /* by what is known, at once: its first address is faster than net0 */
    assert_int_equal(sim_gone(sim, 0), 1);
    assert_int_equal(sim_gone(sim, 1), 1);
    run_ms(sim, 8000);
    check_both(sim, "");
    for (unsigned i = 0; i < 2; i++)
        sim_network(sim, i, 2, 2e9);
    run_ms(sim, 8000);
    check_both(sim, "net2");
    /* A connection that failed is not tried first any more, and measured again. */
    for (unsigned i = 0; i < 2; i++) {
        assert_true(cluster_core_ways(sim_core(sim, i), sim_id(sim, 1 - i), ways) > 0);
        cluster_core_way_failed(sim_core(sim, i), sim_id(sim, 1 - i), &ways[0]);
        check_way(sim, i, 1 - i, "");
        run_ms(sim, 20000);
        check_both(sim, "net2");
    }
    sim_close(sim);
}

/* All ways were dead when they were measured, as where the other side hung: soon they are not. */
static void test_paths_dead(void **state)
{
    (void)state;
    struct cluster_way ways[CLUSTER_MAX_PATHS];
    struct sim *sim = begin(2);
    for (unsigned i = 0; i < 2; i++)
        sim_network(sim, i, 1, 5e9);
    run_ms(sim, 8000);
    check_both(sim, "net1");
    size_t n = cluster_core_ways(sim_core(sim, 0), sim_id(sim, 1), ways);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        cluster_core_measured(sim_core(sim, 0), sim_id(sim, 1), &ways[i], CLUSTER_MEASURE_FAILED, 0,
                              0, "");
    const struct node *node = seen(sim, 0, 1);
    assert_true(node->paths[0].state == PATH_DEAD && node->paths[1].state == PATH_DEAD);
    run_ms(sim, 15000);
    assert_true(node->paths[0].state == PATH_GOOD && node->paths[1].state == PATH_GOOD);
    check_both(sim, "net1");
    sim_close(sim);
}

/* The address of the control link is not there any more: another interface's is dialled. */
static void test_paths_dialled(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    for (unsigned i = 0; i < 2; i++) {
        sim_beacons(sim, false);
        sim_network(sim, i, 0, 6e6);
        sim_network(sim, i, 1, 5e9);
    }
    run_ms(sim, 8000);
    for (unsigned i = 0; i < 2; i++)
        sim_move(sim, i, "nowhere");
    sim_cut(sim, 0, 1);
    run_ms(sim, 200);
    assert_false(is_up(sim, 0, 1));
    run_ms(sim, 20000);
    assert_true(is_up(sim, 0, 1) && is_up(sim, 1, 0));
    sim_close(sim);
}

/* ---- Membership ------------------------------------------------------------------------------ */

static void test_members_mesh(void **state)
{
    (void)state;
    struct sim *sim = begin(16);
    for (unsigned a = 0; a < 16; a++)
        for (unsigned b = 0; b < 16; b++)
            assert_true(a == b || is_up(sim, a, b));
    run_ms(sim, 10000);
    assert_true(sim_all_linked(sim));
    const struct told_link *link = members_link(&sim_core(sim, 3)->nodes[0], seen(sim, 3, 5));
    assert_non_null(link);
    assert_true(link->bandwidth == 1e9);
    sim_close(sim);
}

static void test_members_killed_and_silent(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    sim_crash(sim, 1, false);
    run_ms(sim, 100);
    assert_false(is_up(sim, 0, 1)); /* at once */
    sim_crash(sim, 2, true);
    run_ms(sim, 2500);
    assert_true(is_up(sim, 0, 2));
    run_ms(sim, 1000);
    assert_false(is_up(sim, 0, 2)); /* after three seconds */
    assert_true(has_problem(sim, 0, "down", "n2"));
    sim_start(sim, 1);
    sim_start(sim, 2);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 12000, sim_all_linked));
    sim_close(sim);
}

static void test_members_one_way_silence(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    sim_block(sim, 0, 1, true);
    run_ms(sim, 4000);
    assert_false(is_up(sim, 0, 1));
    assert_false(is_up(sim, 1, 0));
    sim_block(sim, 0, 1, false);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 12000, sim_all_linked));
    sim_close(sim);
}

static void test_members_copied_identity(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    struct sim *sim = sim_open(&options);
    sim_copy_identity(sim, 2, 1);
    for (unsigned i = 0; i < 3; i++)
        sim_start(sim, i);
    run_ms(sim, 30000);
    assert_true(has_problem(sim, 0, "copied", "10.0.0.1"));
    assert_true(has_problem(sim, 1, "copied", "10.0.0.2"));
    sim_close(sim);
}

static void test_members_versions(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    struct sim *sim = sim_open(&options);
    sim_speak(sim, 2, CLUSTER_PROTOCOL + 1);
    for (unsigned i = 0; i < 3; i++)
        sim_start(sim, i);
    run_ms(sim, 10000);
    assert_true(is_up(sim, 0, 1));
    assert_false(is_up(sim, 0, 2));
    assert_true(has_problem(sim, 0, "refused", "n2 at 10.0.0.2:1 cannot take part: it speaks"));
    assert_false(has_problem(sim, 0, "refused", "n1"));
    sim_close(sim);
}

static void test_members_removed(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    struct error error;
    assert_int_equal(cluster_core_remove(sim_core(sim, 0), "n9", &error), STATUS_NOT_FOUND);
    assert_int_equal(cluster_core_remove(sim_core(sim, 0), "n0", &error), STATUS_INVALID);
    assert_int_equal(cluster_core_remove(sim_core(sim, 0), "n2", &error), STATUS_OK);
    run_ms(sim, 500);
    assert_null(seen(sim, 0, 2));
    assert_null(seen(sim, 1, 2));
    assert_true(has_problem(sim, 2, "removed", "removed"));
    sim_crash(sim, 2, false);
    sim_start(sim, 2); /* and again, with what it saved */
    run_ms(sim, 20000);
    assert_null(seen(sim, 0, 2));
    assert_null(seen(sim, 1, 2));
    assert_true(is_up(sim, 0, 1));
    sim_close(sim);
}

static void test_members_leave(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    cluster_core_leave(sim_core(sim, 1));
    run_ms(sim, 300);
    assert_null(seen(sim, 0, 1));
    assert_null(seen(sim, 2, 1));
    assert_false(has_problem(sim, 0, "down", "n1"));
    sim_close(sim);
}

static bool one_key(struct sim *sim)
{
    for (unsigned i = 0; i < sim_n_nodes(sim); i++)
        if (sim_core(sim, i) != NULL &&
            (sim_core(sim, i)->n_keys != 1 || strcmp(sim_core(sim, i)->keys[0].id, "key-two") != 0))
            return false;
    return true;
}

static void test_members_rotate(void **state)
{
    (void)state;
    struct sim *sim = begin(4);
    const struct cluster_key key = {"key-two", "secret-two"};
    struct error error;
    sim_crash(sim, 3, false);
    run_ms(sim, 200);
    assert_int_equal(cluster_core_rotate(sim_core(sim, 0), &key, &error), STATUS_OK);
    assert_int_equal(cluster_core_rotate(sim_core(sim, 0), &key, &error), STATUS_INVALID);
    run_ms(sim, 20000);
    /* One is away: the old key still serves it, and the status says so. */
    assert_int_equal(sim_core(sim, 1)->n_keys, 2);
    assert_true(has_problem(sim, 1, "key", "n3"));
    sim_start(sim, 3);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, one_key));
    sim_crash(sim, 2, false); /* what was saved has the new key only */
    sim_start(sim, 2);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 12000, sim_all_linked));
    json_t *status = cluster_core_status(sim_core(sim, 0));
    char *text = json_dumps(status, 0);
    assert_null(strstr(text, "secret"));
    free(text);
    json_decref(status);
    sim_close(sim);
}

/* ---- Desired state --------------------------------------------------------------------------- */

static void test_state_converges(void **state)
{
    (void)state;
    struct sim *sim = begin(5);
    sim_skew(sim, 0, 3600000);
    put(sim, 0, "alias/a", 1);
    run_ms(sim, 100);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(got(sim, i, "alias/a"), 1);
    put(sim, 4, "alias/a", 2); /* later, though its clock is an hour behind */
    run_ms(sim, 100);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(got(sim, i, "alias/a"), 2);
    assert_true(sim_all_agree(sim));
    run_ms(sim, 500);
    assert_true(has_problem(sim, 1, "clock", "n0"));
    sim_close(sim);
}

static void partition(struct sim *sim, unsigned first, bool blocked)
{
    for (unsigned a = 0; a < sim_n_nodes(sim); a++)
        for (unsigned b = 0; b < sim_n_nodes(sim); b++)
            if ((a < first) != (b < first))
                sim_block(sim, a, b, blocked);
}

static void test_state_parts_come_together(void **state)
{
    (void)state;
    struct sim *sim = begin(4);
    struct error error;
    char key[32];
    partition(sim, 2, true);
    run_ms(sim, 4000);
    for (int i = 0; i < 300; i++) {
        snprintf(key, sizeof key, "alias/%d", i);
        put(sim, (unsigned)i % 4, key, i);
    }
    put(sim, 0, "key/a", 1);
    put(sim, 3, "key/a", 2);
    run_ms(sim, 100);
    assert_int_equal(cluster_core_put(sim_core(sim, 0), "key/a", NULL, &error), STATUS_OK);
    run_ms(sim, 1000);
    put(sim, 3, "key/a", 3); /* later than the revocation, on the other side */
    assert_int_equal(cluster_core_put(sim_core(sim, 2), "alias/3", NULL, &error), STATUS_OK);
    partition(sim, 2, false);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 12000, sim_all_linked));
    run_ms(sim, 1000);
    assert_true(sim_all_agree(sim));
    for (unsigned i = 0; i < 4; i++) {
        assert_true(cluster_core_key_revoked(sim_core(sim, i), "a"));
        assert_int_equal(got(sim, i, "alias/299"), 299);
        assert_int_equal(got(sim, i, "alias/3"), -1);
    }
    json_t *value = json_pack("{s:i}", "n", 4);
    assert_int_equal(cluster_core_put(sim_core(sim, 1), "key/a", value, &error), STATUS_INVALID);
    json_decref(value);
    sim_close(sim);
}

static void test_state_limits(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_core *core = sim_core(sim, 0);
    struct error error;
    char key[32];
    json_t *value = json_object(), *large = json_pack("{s:o}", "text", json_stringn("", 0));
    for (int i = 0; i < CLUSTER_MAX_ENTRIES; i++) {
        snprintf(key, sizeof key, "x/%d", i);
        assert_int_equal(cluster_core_put(core, key, value, &error), STATUS_OK);
    }
    assert_int_equal(cluster_core_put(core, "x/more", value, &error), STATUS_LIMIT);
    assert_int_equal(cluster_core_put(core, "x/1", value, &error), STATUS_OK);
    assert_int_equal(cluster_core_put(core, "a b", value, &error), STATUS_INVALID);
    assert_int_equal(cluster_core_put(core, "", value, &error), STATUS_INVALID);
    char *text = calloc(1, CLUSTER_ENTRY_VALUE_BYTES + 1);
    memset(text, 'x', CLUSTER_ENTRY_VALUE_BYTES);
    json_object_set_new(large, "text", json_string(text));
    assert_int_equal(cluster_core_put(core, "x/2", large, &error), STATUS_INVALID);
    free(text);
    json_decref(value);
    json_decref(large);
    run_ms(sim, 1000);
    assert_true(sim_all_agree(sim));
    sim_close(sim);
}

static void test_state_is_saved(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    put(sim, 0, "alias/a", 5);
    cluster_core_put(sim_core(sim, 0), "key/b", NULL, &error);
    put(sim, 0, "key/c", 1);
    cluster_core_put(sim_core(sim, 0), "key/c", NULL, &error);
    run_ms(sim, 200);
    sim_crash(sim, 1, true);
    sim_crash(sim, 0, true);
    sim_start(sim, 0);
    assert_int_equal(got(sim, 0, "alias/a"), 5);
    assert_true(cluster_core_key_revoked(sim_core(sim, 0), "c"));
    assert_false(cluster_core_key_known(sim_core(sim, 0), "b"));
    sim_close(sim);
}

/* ---- Instances ------------------------------------------------------------------------------- */

static void test_instance_loaded_once(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    int requests[3];
    for (unsigned i = 0; i < 3; i++)
        requests[i] = sim_submit(sim, i, 0, 10);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    for (unsigned i = 0; i < 3; i++)
        assert_true(answered(sim, requests[i]));
    assert_int_equal(sim_n_instances(sim, 0, false), 1);
    assert_int_equal(sim_counts(sim)->opened, 1);
    sim_close(sim);
}

static void test_instance_never_overfills(void **state)
{
    (void)state;
    struct sim_options options = options_of(2);
    options.n_models = 4;
    options.models[2] = 140;
    options.models[3] = 160;
    struct sim *sim = begin_with(&options);
    for (unsigned i = 0; i < 16; i++)
        sim_submit(sim, i % 2, i / 2 % 4, 5); /* the simulation looks after the memory */
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 60000, sim_all_answered));
    for (unsigned i = 0; i < sim_n_requests(sim); i++)
        if (!answered(sim, (int)i))
            assert_non_null(strstr(sim_request(sim, (int)i)->reason, "needs"));
    sim_close(sim);
}

static void test_instance_too_large(void **state)
{
    (void)state;
    struct sim_options options = options_of(2);
    options.models[1] = 1000;
    struct sim *sim = begin_with(&options);
    int request = sim_submit(sim, 0, 1, 5);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    assert_int_equal(sim_request(sim, request)->answer, SIM_ERROR);
    assert_string_equal(sim_request(sim, request)->reason,
                        "model-1 needs 1000 bytes, at most 100 are free on a node");
    assert_true(has_problem(sim, 1, "failed", "1000 bytes"));
    sim_close(sim);
}

static void test_instance_makes_room(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    int first = sim_submit(sim, 0, 0, 5);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    run_ms(sim, 2000);
    int second = sim_submit(sim, 1, 1, 5); /* needs both nodes */
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    assert_true(answered(sim, first));
    assert_true(answered(sim, second));
    assert_int_equal(sim_n_instances(sim, 0, false), 0);
    sim_close(sim);
}

static void test_instance_kept(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    options.idle_ms = 2000;
    struct sim *sim = begin_with(&options);
    struct error error;
    assert_int_equal(cluster_core_load(sim_core(sim, 0), sim_model(sim, 0), NULL, &error),
                     STATUS_OK);
    run_ms(sim, 10000);
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    unsigned owner;
    assert_non_null(running(sim, 0, &owner));
    sim_crash(sim, owner, true); /* it is loaded again by another one */
    run_ms(sim, 10000);
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    cluster_core_unload(sim_core(sim, (owner + 1) % 3), sim_model(sim, 0)->sha, false, &error);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 5000, sim_nothing_held));
    sim_close(sim);
}

static void test_instance_unloaded_now(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    int request = sim_submit(sim, 0, 0, 10000);
    run_ms(sim, 3000);
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    put(sim, 0, "alias/x", 1);
    cluster_core_load(sim_core(sim, 1), sim_model(sim, 0), NULL, &error);
    cluster_core_unload(sim_core(sim, 1), sim_model(sim, 0)->sha, true, &error);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 3000, sim_nothing_held));
    assert_int_equal(sim_request(sim, request)->answer, SIM_ERROR);
    assert_true(sim_request(sim, request)->n_tokens > 0);
    sim_close(sim);
}

static void test_instance_loaded_otherwise(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    unsigned owner;
    json_t *options = json_pack("{s:i}", "ctx", 512);
    cluster_core_load(sim_core(sim, 0), sim_model(sim, 0), options, &error);
    run_ms(sim, 3000);
    int request = sim_submit(sim, 0, 0, 200);
    run_ms(sim, 500);
    const struct instance *instance = running(sim, 0, &owner);
    assert_non_null(instance);
    uint32_t epoch = instance->epoch;
    cluster_core_load(sim_core(sim, 1), sim_model(sim, 0), options, &error); /* as it is */
    run_ms(sim, 500);
    assert_int_equal(instance->epoch, epoch);
    json_object_set_new(options, "ctx", json_integer(1024));
    cluster_core_load(sim_core(sim, 1), sim_model(sim, 0), options, &error);
    run_ms(sim, 3000);
    instance = running(sim, 0, &owner);
    assert_non_null(instance);
    assert_int_equal(instance->epoch, epoch + 1);
    assert_true(json_equal(instance->options, options));
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    assert_true(answered(sim, request));
    json_decref(options);
    sim_close(sim);
}

static void test_unloaded_while_away(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    struct sim *sim = begin_with(&options);
    struct error error;
    cluster_core_load(sim_core(sim, 0), sim_model(sim, 0), NULL, &error);
    run_ms(sim, 3000);
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    unsigned owner;
    assert_non_null(running(sim, 0, &owner));
    sim_crash(sim, owner, true);
    run_ms(sim, 5000);
    cluster_core_unload(sim_core(sim, (owner + 1) % 3), sim_model(sim, 0)->sha, true, &error);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 5000, sim_nothing_held));
    sim_start(sim, owner);
    for (int i = 0; i < 100; i++) {
        run_ms(sim, 100);
        assert_int_equal(sim_n_instances(sim, 0, false), 0);
    }
    sim_close(sim);
}

/* A node that finds none of the others begins what it knows to be wanted. */
static void test_alone_with_what_was_wanted(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    cluster_core_load(sim_core(sim, 0), sim_model(sim, 0), NULL, &error);
    run_ms(sim, 3000);
    sim_give_model(sim, 0, 0);
    sim_crash(sim, 0, true);
    sim_crash(sim, 1, true);
    run_ms(sim, 1000);
    sim_start(sim, 0);
    run_ms(sim, 4000);
    assert_int_equal(sim_n_instances(sim, 0, false), 0);
    run_ms(sim, 4000);
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    sim_close(sim);
}

/* ---- Recovery -------------------------------------------------------------------------------- */

/* A model over two of three nodes, and a request at the third or the owner. */
static struct sim *begin_wide(unsigned *owner, unsigned *worker, unsigned *third)
{
    struct sim_options options = options_of(3);
    options.silent = true;
    struct sim *sim = begin_with(&options);
    sim_submit(sim, 0, 1, 1);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    const struct instance *instance = running(sim, 1, owner);
    assert_non_null(instance);
    assert_int_equal(instance->plan.n_members, 2);
    for (unsigned i = 0; i < 3; i++) {
        bool member = false;
        for (uint32_t k = 0; k < 2; k++)
            member = member || cluster_id_equal(instance->plan.members[k].node, sim_id(sim, i));
        if (!member)
            *third = i;
        else if (i != *owner)
            *worker = i;
    }
    return sim;
}

static void test_recovery_worker(void **state)
{
    (void)state;
    unsigned owner, worker, third;
    struct sim *sim = begin_wide(&owner, &worker, &third);
    int request = sim_submit(sim, third, 1, 200);
    run_ms(sim, 1000);
    uint32_t before = sim_request(sim, request)->n_tokens;
    assert_true(before > 0);
    sim_crash(sim, worker, false);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 30000, sim_all_answered));
    assert_true(answered(sim, request));
    assert_int_equal(running(sim, 1, &owner)->recoveries, 1);
    assert_true(sim_counts(sim)->continued >= 1);
    sim_close(sim);
}

static void test_recovery_owner(void **state)
{
    (void)state;
    unsigned owner, worker, third;
    struct sim *sim = begin_wide(&owner, &worker, &third);
    int request = sim_submit(sim, third, 1, 200);
    run_ms(sim, 1000);
    assert_true(sim_request(sim, request)->n_tokens > 0);
    const struct cluster_core *core = sim_core(sim, worker);
    uint64_t old = core->reservations[0].instance;
    sim_crash(sim, owner, false);
    run_ms(sim, 1000); /* the worker lets go of what it held for it */
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++)
        assert_false(core->reservations[i].state != RESERVATION_NONE &&
                     core->reservations[i].instance == old);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 30000, sim_all_answered));
    assert_true(answered(sim, request));
    assert_true(sim_counts(sim)->continued >= 1);
    sim_close(sim);
}

static void test_recovery_not_possible(void **state)
{
    (void)state;
    unsigned owner, worker, third;
    struct sim *sim = begin_wide(&owner, &worker, &third);
    int request = sim_submit(sim, owner, 1, 500);
    run_ms(sim, 1000);
    sim_crash(sim, worker, false);
    sim_crash(sim, third, false);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    assert_int_equal(sim_request(sim, request)->answer, SIM_ERROR);
    assert_non_null(strstr(sim_request(sim, request)->reason, "needs 150 bytes"));
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 60000, sim_nothing_held));
    sim_close(sim);
}

static void test_recovery_hung(void **state)
{
    (void)state;
    unsigned owner, worker, third;
    struct sim *sim = begin_wide(&owner, &worker, &third);
    int request = sim_submit(sim, third, 1, 100);
    run_ms(sim, 1000);
    sim_hang(sim, worker, true); /* its links are as good as ever */
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 30000, sim_all_answered));
    assert_true(answered(sim, request));
    assert_true(is_up(sim, owner, worker));
    const struct instance *instance = running(sim, 1, &owner);
    assert_non_null(instance);
    for (uint32_t i = 0; i < instance->plan.n_members; i++)
        assert_false(cluster_id_equal(instance->plan.members[i].node, sim_id(sim, worker)));
    sim_close(sim);
}

static void test_recovery_partition(void **state)
{
    (void)state;
    struct sim *sim = begin(4);
    int requests[4];
    sim_submit(sim, 0, 0, 1);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_all_answered));
    partition(sim, 2, true);
    run_ms(sim, 5000);
    for (unsigned i = 0; i < 4; i++)
        requests[i] = sim_submit(sim, i, 0, 20);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    for (unsigned i = 0; i < 4; i++)
        assert_true(answered(sim, requests[i])); /* each side goes on */
    assert_int_equal(sim_n_instances(sim, 0, true), 2);
    partition(sim, 2, false);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_settled));
    assert_int_equal(sim_n_instances(sim, 0, true), 1);
    sim_close(sim);
}

static void test_recovery_cancel(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    options.idle_ms = 1000;
    struct sim *sim = begin_with(&options);
    int request = sim_submit(sim, 0, 0, 100000);
    run_ms(sim, 3000);
    assert_true(sim_request(sim, request)->n_tokens > 0);
    sim_cancel(sim, request);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 5000, sim_nothing_held));
    /* A gateway that goes takes its requests along. */
    request = sim_submit(sim, 1, 0, 100000);
    run_ms(sim, 3000);
    sim_crash(sim, 1, true);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 15000, sim_nothing_held));
    sim_close(sim);
}

static unsigned index_of(struct sim *sim, struct cluster_id id)
{
    unsigned node = 0;
    while (!cluster_id_equal(sim_id(sim, node), id))
        node++;
    return node;
}

static struct cluster_id worker_of(const struct instance *instance)
{
    return instance->plan.members[instance->plan.owner == 0 ? 1 : 0].node;
}

/* A node whose ranks fail by themselves is left out, not those that only lost it. */
static void test_faulty_worker(void **state)
{
    (void)state;
    struct sim *sim = begin(4);
    unsigned owner;
    int request = sim_submit(sim, 0, 1, 1000);
    run_ms(sim, 6000);
    const struct instance *instance = running(sim, 1, &owner);
    assert_non_null(instance);
    struct cluster_id faulty = worker_of(instance);
    for (int i = 0; i < 3; i++) {
        uint64_t id = instance->id;
        uint32_t epoch = instance->epoch;
        assert_true(cluster_id_equal(worker_of(instance), faulty));
        cluster_core_broken(sim_core(sim, owner), id, epoch, STATUS_LOST, "it lost another");
        cluster_core_broken(sim_core(sim, index_of(sim, faulty)), id, epoch, STATUS_MEMORY,
                            "out of memory");
        run_ms(sim, 4000);
        instance = running(sim, 1, &owner);
        assert_non_null(instance);
        assert_true(instance->epoch > epoch);
    }
    assert_false(cluster_id_equal(worker_of(instance), faulty));
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 120000, sim_all_answered));
    assert_true(answered(sim, request));
    sim_close(sim);
}

static double told_rate(struct sim *sim, unsigned at)
{
    json_t *status = cluster_core_status(sim_core(sim, at));
    const json_t *instance = json_array_get(json_object_get(status, "instances"), 0);
    double rate = json_real_value(json_object_get(instance, "reached"));
    json_decref(status);
    return rate;
}

static void test_reached(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    unsigned owner;
    int request = sim_submit(sim, 0, 0, 10);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    assert_true(answered(sim, request));
    const struct instance *instance = running(sim, 0, &owner);
    assert_non_null(instance);
    cluster_core_reached(sim_core(sim, owner), instance->id, instance->epoch, 12.5);
    cluster_core_reached(sim_core(sim, owner), instance->id, instance->epoch - 1, 99);
    run_ms(sim, 500);
    for (unsigned i = 0; i < 3; i++)
        assert_true(told_rate(sim, i) == 12.5);
    sim_close(sim);
}

/* ---- Messages -------------------------------------------------------------------------------- */

static void test_message_fields(void **state)
{
    (void)state;
    json_t *json = json_pack("{s:i, s:i, s:s, s:s, s:f, s:[[s, i]]}", "n", 7, "minus", -1, "text",
                             "abc", "bad", "a\nb", "real", 1.5, "list", "x", 3);
    char text[4];
    size_t n;
    struct message message = message_over(json);
    assert_int_equal(message_u64(&message, "n", 7), 7);
    message_text(&message, "text", text, sizeof text);
    assert_string_equal(text, "abc");
    assert_true(message_real(&message, "real") == 1.5);
    const json_t *list = message_list(&message, "list", 1, &n);
    struct message item = message_item(list, 0);
    item_text(&item, 0, text, sizeof text);
    assert_int_equal(item_u64(&item, 1, 9), 3);
    message_take(&message, &item);
    assert_false(message.failed);
    static const char *const wrong[] = {"minus", "none", "text"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        message = message_over(json);
        assert_int_equal(message_u64(&message, wrong[i], UINT64_MAX), 0);
        assert_true(message.failed);
        assert_non_null(strstr(message.fault, wrong[i]));
    }
    message = message_over(json);
    message_u64(&message, "n", 6);
    assert_true(message.failed);
    message = message_over(json);
    message_text(&message, "bad", text, sizeof text);
    assert_true(message.failed);
    message = message_over(json);
    message_text(&message, "text", text, 3);
    assert_true(message.failed);
    json_decref(json);
}

static void test_message_text(void **state)
{
    (void)state;
    char text[8];
    text_copy(text, sizeof text, "a\nb\xff\x7f");
    assert_string_equal(text, "a?b??");
    text_copy(text, sizeof text, "123456\xc3\xa9");
    assert_string_equal(text, "123456"); /* the seventh byte would be half a character */
    text_copy(text, sizeof text, text);
    assert_string_equal(text, "123456");
}

/* What comes from outside, names too, must not stop a node. */
static void test_message_odd_names(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_model model = *sim_model(sim, 0);
    struct error error;
    uint64_t request;
    json_t *payload = json_object();
    snprintf(model.name, sizeof model.name, "a\nb\xff");
    assert_int_equal(cluster_core_load(sim_core(sim, 0), &model, NULL, &error), STATUS_OK);
    assert_int_equal(
        cluster_core_submit(sim_core(sim, 1), sim_model(sim, 1), payload, &request, &error),
        STATUS_OK);
    cluster_core_cancel(sim_core(sim, 1), request);
    json_t *value = json_pack("{s:s}", "name", "c\td");
    char key[CLUSTER_ENTRY_KEY_BYTES];
    snprintf(key, sizeof key, "model/%s", sim_model(sim, 1)->sha);
    assert_int_equal(cluster_core_put(sim_core(sim, 0), key, value, &error), STATUS_OK);
    json_decref(value);
    json_decref(payload);
    run_ms(sim, 10000);
    assert_true(sim_all_linked(sim));
    assert_true(sim_n_instances(sim, 0, true) + sim_n_instances(sim, 1, true) >= 1);
    sim_close(sim);
}

static void test_message_ids(void **state)
{
    (void)state;
    struct cluster_id id = {0x0123456789abcdef, 0xfedcba9876543210}, back;
    char text[CLUSTER_ID_TEXT];
    assert_string_equal(cluster_id_text(text, id), "0123456789abcdeffedcba9876543210");
    assert_true(cluster_id_parse(&back, text));
    assert_true(cluster_id_equal(id, back));
    assert_false(cluster_id_parse(&back, "0123456789abcdeffedcba987654321"));
    assert_false(cluster_id_parse(&back, "0123456789abcdeffedcba98765432100"));
    assert_false(cluster_id_parse(&back, "0123456789ABCDEFfedcba9876543210"));
    assert_false(cluster_id_parse(&back, "00000000000000000000000000000000"));
}

/* A bad message ends the link, and says why; an unknown one does not. */
static void test_message_bad(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct cluster_core *core = sim_core(sim, 0);
    json_t *unknown = json_pack("{s:s, s:i}", "type", "tomorrow", "x", 1);
    cluster_core_message(core, seen(sim, 0, 1)->link, unknown);
    assert_true(is_up(sim, 0, 1));
    json_t *bad = json_pack("{s:s, s:i}", "type", "reserve", "instance", -5);
    cluster_core_message(core, seen(sim, 0, 1)->link, bad);
    assert_false(is_up(sim, 0, 1));
    assert_non_null(strstr(seen(sim, 0, 1)->reason, "\"reserve\""));
    json_decref(unknown);
    json_decref(bad);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 5000, sim_all_linked));
    sim_close(sim);
}

static void test_open_refuses(void **state)
{
    (void)state;
    struct cluster_env env = {.context = NULL};
    struct cluster_core *core;
    struct error error;
    struct cluster_options options = {.id = {1, 2}, .name = "a", .address = "b"};
    assert_int_equal(cluster_core_open(&core, &env, &options, &error), STATUS_INVALID);
    options.key = (struct cluster_key){"k", "s"};
    options.id = (struct cluster_id){0, 0};
    assert_int_equal(cluster_core_open(&core, &env, &options, &error), STATUS_INVALID);
    cluster_core_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transfer_sizes),
        cmocka_unit_test(test_transfer_goes_on),
        cmocka_unit_test(test_transfer_in_flight),
        cmocka_unit_test(test_transfer_rarest),
        cmocka_unit_test(test_transfer_wrong_bytes),
        cmocka_unit_test(test_transfer_relays),
        cmocka_unit_test(test_paths_order),
        cmocka_unit_test(test_paths_measured),
        cmocka_unit_test(test_paths_pinned),
        cmocka_unit_test(test_paths_change),
        cmocka_unit_test(test_paths_dead),
        cmocka_unit_test(test_paths_dialled),
        cmocka_unit_test(test_members_mesh),
        cmocka_unit_test(test_members_killed_and_silent),
        cmocka_unit_test(test_members_one_way_silence),
        cmocka_unit_test(test_members_copied_identity),
        cmocka_unit_test(test_members_versions),
        cmocka_unit_test(test_members_removed),
        cmocka_unit_test(test_members_leave),
        cmocka_unit_test(test_members_rotate),
        cmocka_unit_test(test_state_converges),
        cmocka_unit_test(test_state_parts_come_together),
        cmocka_unit_test(test_state_limits),
        cmocka_unit_test(test_state_is_saved),
        cmocka_unit_test(test_instance_loaded_once),
        cmocka_unit_test(test_instance_never_overfills),
        cmocka_unit_test(test_instance_too_large),
        cmocka_unit_test(test_instance_makes_room),
        cmocka_unit_test(test_instance_kept),
        cmocka_unit_test(test_instance_unloaded_now),
        cmocka_unit_test(test_instance_loaded_otherwise),
        cmocka_unit_test(test_unloaded_while_away),
        cmocka_unit_test(test_alone_with_what_was_wanted),
        cmocka_unit_test(test_recovery_worker),
        cmocka_unit_test(test_recovery_owner),
        cmocka_unit_test(test_recovery_not_possible),
        cmocka_unit_test(test_recovery_hung),
        cmocka_unit_test(test_recovery_partition),
        cmocka_unit_test(test_recovery_cancel),
        cmocka_unit_test(test_faulty_worker),
        cmocka_unit_test(test_reached),
        cmocka_unit_test(test_message_fields),
        cmocka_unit_test(test_message_text),
        cmocka_unit_test(test_message_odd_names),
        cmocka_unit_test(test_message_ids),
        cmocka_unit_test(test_message_bad),
        cmocka_unit_test(test_open_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
