/* Slices on the disks of simulated clusters: fetched, made of others, copied, removed. */
#include "cluster_cases.h"

/* ---- Helpers --------------------------------------------------------------------------------- */

static bool answered(struct sim *sim, int request)
{
    return sim_request(sim, request)->answer == SIM_ANSWERED;
}

/* ---- Copies and old slices ------------------------------------------------------------------- */

static bool none_single(struct sim *sim)
{
    return sim_single(sim) == NULL;
}

static void test_fetch_and_copy(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    options.memory[0] = 10; /* it has the model, and no room */
    struct sim *sim = sim_open(&options);
    sim_give_model(sim, 0, 1);
    for (unsigned i = 0; i < 3; i++)
        sim_start(sim, i);
    assert_sim(sim, sim_wait(sim, 4000, sim_all_linked));
    int request = sim_submit(sim, 0, 1, 10);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    assert_true(answered(sim, request));
    assert_int_equal(sim_n_objects(sim, 1), 1); /* a slice each, and no more */
    assert_int_equal(sim_n_objects(sim, 2), 1);
    assert_int_equal(sim_counts(sim)->chunks_again, 0);
    run_ms(sim, 5000);
    assert_int_equal(sim_n_objects(sim, 1), 1); /* node 0 can make both */
    sim_crash(sim, 0, true);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 40000, none_single));
    assert_int_equal(sim_n_objects(sim, 1), 2);
    assert_int_equal(sim_n_objects(sim, 2), 2);
    assert_true(sim_all_answered(sim));
    sim_close(sim);
}

/* A cluster whose node 0 has model 1 and no room to compute it; it runs on others, and is kept. */
static struct sim *begin_slices(unsigned n_nodes, const struct sim_options *options)
{
    struct sim *sim = sim_open(options);
    struct error error;
    sim_give_model(sim, 0, 1);
    for (unsigned i = 0; i < n_nodes; i++)
        sim_start(sim, i);
    assert_sim(sim, sim_wait(sim, 4000, sim_all_linked));
    assert_int_equal(cluster_core_load(sim_core(sim, 1), sim_model(sim, 1), NULL, &error),
                     STATUS_OK);
    int request = sim_submit(sim, 1, 1, 10);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 20000, sim_all_answered));
    assert_true(answered(sim, request));
    return sim;
}

static unsigned n_slices(struct sim *sim)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sim_n_nodes(sim); i++)
        n += sim_n_objects(sim, i);
    return n;
}

static void test_copies(void **state)
{
    (void)state;
    struct sim_options options = options_of(4);
    options.memory[0] = 10;
    struct sim *sim = begin_slices(4, &options);
    run_ms(sim, 10000);
    assert_int_equal(n_slices(sim), 2); /* node 0 has all of it */
    assert_true(none_single(sim));
    sim_crash(sim, 0, true); /* who could make them is gone: others copy the slices */
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 40000, none_single));
    run_ms(sim, 10000);
    assert_int_equal(n_slices(sim), 4);
    for (unsigned i = 1; i < 4; i++)
        assert_false(has_problem(sim, i, "single", ""));
    /* One more is gone, and the rest goes on with what is there. */
    sim_crash(sim, 2, true);
    int request = sim_submit(sim, 1, 1, 10);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 40000, sim_all_answered));
    assert_true(answered(sim, request));
    sim_close(sim);
}

/* Node 0 has the model and no memory; the others' disks have room for either of the two slices. */
static struct sim_options options_without_room(void)
{
    struct sim_options options = options_of(3);
    options.memory[0] = 10;
    char slice[CLUSTER_OBJECT_BYTES];
    struct sim *sim = sim_open(&options);
    for (unsigned i = 0; i < 2; i++) {
        snprintf(slice, sizeof slice, "%s/0-%d.%u.2.1", sim_model(sim, 1)->sha, SIM_LAYERS, i);
        options.disk[1] = MAX(options.disk[1],
                              DISK_KEEP_BYTES + sim_object_bytes(slice) + CLUSTER_CHUNK_BYTES / 2);
    }
    options.disk[2] = options.disk[1];
    sim_close(sim);
    return options;
}

static void test_copies_no_room(void **state)
{
    (void)state;
    struct sim_options options = options_without_room();
    struct sim *sim = begin_slices(3, &options);
    sim_crash(sim, 0, true);
    run_ms(sim, 20000);
    assert_int_equal(n_slices(sim), 2);
    assert_true(has_problem(sim, 1, "single", "no other disk has room"));
    sim_crash(sim, 2, true);
    run_ms(sim, 8000);
    assert_false(has_problem(sim, 1, "single", "room")); /* it does not run any more */
    sim_close(sim);
}

/* Slices that were used long ago go, but not those of what runs or is to run, and not the last
 * ones. */
static void test_clean_old(void **state)
{
    (void)state;
    const uint64_t long_s = (CLEAN_AFTER_DAYS + 1) * 86400;
    struct sim_options options = options_without_room();
    struct error error;
    struct sim *sim = begin_slices(3, &options);
    sim_age_objects(sim, 1, long_s);
    sim_age_objects(sim, 2, long_s);
    run_ms(sim, 40000);
    assert_int_equal(n_slices(sim), 2); /* it runs */
    sim_crash(sim, 0, true);
    run_ms(sim, 5000); /* who still counts on it may let slices go */
    cluster_core_unload(sim_core(sim, 1), sim_model(sim, 1)->sha, true, &error);
    run_ms(sim, 40000);
    assert_int_equal(n_slices(sim), 2); /* nobody else has them */
    sim_start(sim, 0);
    sim_age_objects(sim, 1, 0);
    run_ms(sim, 40000);
    assert_int_equal(n_slices(sim), 0);
    assert_int_equal(sim_counts(sim)->removed, 2);
    sim_close(sim);
}

/* What is fetched takes the place of what was used longest ago. */
static void test_clean_for_room(void **state)
{
    (void)state;
    struct sim_options options = options_of(2);
    options.memory[0] = 10;
    options.models[0] = options.models[1] = 40;
    struct sim *sim;
    char slices[2][CLUSTER_OBJECT_BYTES];
    do { /* until neither is small */
        options.seed++;
        sim = sim_open(&options);
        for (unsigned i = 0; i < 2; i++)
            snprintf(slices[i], sizeof slices[i], "%s/0-%d.0.1.1", sim_model(sim, i)->sha,
                     SIM_LAYERS);
        sim_close(sim);
    } while (MIN(sim_object_bytes(slices[0]), sim_object_bytes(slices[1])) <
             2 * (uint64_t)CLUSTER_CHUNK_BYTES);
    /* Room for either, not for both. */
    options.disk[1] = DISK_KEEP_BYTES + CLUSTER_CHUNK_BYTES +
                      MAX(sim_object_bytes(slices[0]), sim_object_bytes(slices[1]));
    sim = sim_open(&options);
    sim_give_model(sim, 0, 0);
    sim_give_model(sim, 0, 1);
    sim_start(sim, 0);
    sim_start(sim, 1);
    assert_sim(sim, sim_wait(sim, 4000, sim_all_linked));
    for (unsigned i = 0; i < 4; i++) {
        int request = sim_submit(sim, 1, i % 2, 10);
        assert_sim(sim, sim_wait(sim, sim_now(sim) + 30000, sim_all_answered));
        assert_true(answered(sim, request));
        assert_int_equal(sim_n_objects(sim, 1), 1);
        struct error error;
        cluster_core_unload(sim_core(sim, 1), sim_model(sim, i % 2)->sha, true, &error);
        assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_nothing_held));
    }
    assert_int_equal(sim_counts(sim)->removed, 3);
    sim_close(sim);
}

static void test_forget(void **state)
{
    (void)state;
    struct sim_options options = options_of(3);
    struct error error;
    options.memory[0] = 10;
    struct sim *sim = begin_slices(3, &options);
    const char *sha = sim_model(sim, 1)->sha;
    assert_int_equal(cluster_core_forget(sim_core(sim, 0), sha, &error), STATUS_BUSY);
    assert_int_equal(cluster_core_forget(sim_core(sim, 0), "x", &error), STATUS_INVALID);
    cluster_core_unload(sim_core(sim, 1), sha, true, &error);
    assert_sim(sim, sim_wait(sim, sim_now(sim) + 10000, sim_nothing_held));
    run_ms(sim, 1000);
    assert_int_equal(n_slices(sim), 2);
    sim_crash(sim, 0, true); /* also the last ones */
    run_ms(sim, 1000);
    sim_forget(sim, 2, 1);
    run_ms(sim, 1000);
    assert_int_equal(n_slices(sim), 0);
    sim_close(sim);
}

/* ---- Names of slices ------------------------------------------------------------------------- */

#define SHA_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define SHA_B "baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static void test_slices_cover(void **state)
{
    (void)state;
    static const char *const held[] = {
        SHA_A "/0-4.0.1.1",   SHA_A "/4-6.0.2.3_1", SHA_A "/4-6.1.2.3_1", SHA_A "/6-9.0.1.1",
        SHA_A "/0-9.0.2.1_1", SHA_A "/meta",        SHA_B "/9-12.0.1.1",  SHA_A "/5-7.0.1.1"};
    static const struct {
        const char *wanted;
        unsigned used; /* a bit each; 0: not covered */
    } cases[] = {
        {SHA_A "/0-4.0.1.1", 1},    {SHA_A "/1-3.1.2.1_1", 1},
        {SHA_A "/0-6.0.1.1", 7},    {SHA_A "/0-9.0.1.1", 15},
        {SHA_A "/0-9.0.2.1_1", 16}, {SHA_A "/0-10.0.1.1", 0},
        {SHA_B "/0-4.0.1.1", 0},    {SHA_B "/10-11.0.1.1", 64},
        {SHA_A "/7-8.0.1.1", 8},    {SHA_A, 0},
        {SHA_A "/meta", 32},        {SHA_A "/4-6.1.2.3_1", 4},
        {SHA_A "/4-6.0.2.1_1", 6},  {"x", 0},
        {SHA_A "/0-9.2.2.1_1", 0},
    };
    bool used[ARRAY_COUNT(held)];
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        unsigned bits = 0;
        bool covered = slices_cover(held, ARRAY_COUNT(held), cases[i].wanted, used);
        for (size_t k = 0; covered && k < ARRAY_COUNT(held); k++)
            bits |= (unsigned)used[k] << k;
        if (bits != cases[i].used)
            fail_msg("%s: %x, and %x is expected", cases[i].wanted, bits, cases[i].used);
        assert_int_equal(slices_cover(held, ARRAY_COUNT(held), cases[i].wanted, NULL), covered);
    }
    static const char *const whole[] = {SHA_B, SHA_A};
    assert_true(slices_cover(whole, 2, SHA_A "/3-5.1.2.1_1", used) && !used[0] && used[1]);
    char text[CLUSTER_REASON_BYTES];
    slice_text(SHA_A "/4-6.1.2.3_1", "big", text);
    assert_string_equal(text, "shard 2 of 2 of layers 4 to 5 of big");
    slice_text(SHA_A "/4-6.0.1.1", "big", text);
    assert_string_equal(text, "layers 4 to 5 of big");
    slice_text(SHA_A, "big", text);
    assert_string_equal(text, "big");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fetch_and_copy), cmocka_unit_test(test_copies),
        cmocka_unit_test(test_copies_no_room), cmocka_unit_test(test_clean_old),
        cmocka_unit_test(test_clean_for_room), cmocka_unit_test(test_forget),
        cmocka_unit_test(test_slices_cover),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
