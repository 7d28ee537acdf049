/* Questions from node to node, in simulated clusters. */
#include "cluster_cases.h"

static struct sim *begin(unsigned n_nodes)
{
    struct sim_options options = {.seed = 7, .n_nodes = n_nodes, .n_models = 1, .latency_ms = 3};
    options.models[0] = 1000;
    struct sim *sim = sim_open(&options);
    start_all(sim);
    run_ms(sim, 500);
    return sim;
}

static uint64_t ask(struct sim *sim, unsigned from, unsigned to, const char *what)
{
    struct error error;
    uint64_t question = 0;
    json_t *query = json_object();
    assert_int_equal(
        cluster_core_ask(sim_core(sim, from), sim_id(sim, to), what, query, &question, &error),
        STATUS_OK);
    json_decref(query);
    return question;
}

static void test_ask_answered(void **state)
{
    (void)state;
    struct sim *sim = begin(3);
    uint64_t question = ask(sim, 0, 2, "weather");
    run_ms(sim, 50);
    const struct sim_question *asked = sim_asked(sim);
    assert_true(asked->at == 2 && strcmp(asked->what, "weather") == 0);
    json_t *body = json_pack("{s:i}", "n", 7);
    cluster_core_answer(sim_core(sim, 2), asked->from, asked->question, body);
    run_ms(sim, 50);
    const struct sim_answered *answered = sim_answered(sim);
    assert_true(answered->n == 1 && answered->at == 0 && answered->question == question);
    assert_true(answered->good && answered->value == 7);
    cluster_core_answer(sim_core(sim, 2), asked->from, asked->question, body); /* once more */
    cluster_core_answer(sim_core(sim, 1), asked->from, question, body);        /* of another */
    run_ms(sim, 50);
    assert_int_equal(answered->n, 1);
    json_decref(body);
    sim_close(sim);
}

static void test_ask_not_answered(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    uint64_t question;
    const struct sim_answered *answered = sim_answered(sim);
    ask(sim, 0, 1, "nothing");
    run_ms(sim, 100);
    assert_true(answered->n == 1 && !answered->good && answered->reason[0] != 0);
    ask(sim, 0, 1, "weather"); /* never answered */
    run_ms(sim, 11000);
    assert_true(answered->n == 2 && !answered->good);
    ask(sim, 0, 1, "weather");
    sim_crash(sim, 1, false);
    run_ms(sim, 1000);
    assert_true(answered->n == 3 && strcmp(answered->reason, "it was lost") == 0);
    assert_int_equal(
        cluster_core_ask(sim_core(sim, 0), sim_id(sim, 1), "weather", NULL, &question, &error),
        STATUS_NOT_FOUND);
    sim_close(sim);
}

static void test_ask_too_many(void **state)
{
    (void)state;
    struct sim *sim = begin(2);
    struct error error;
    uint64_t question;
    json_t *query = json_object();
    for (unsigned i = 0; i < CLUSTER_MAX_QUESTIONS; i++)
        ask(sim, 0, 1, "weather");
    assert_int_equal(
        cluster_core_ask(sim_core(sim, 0), sim_id(sim, 1), "weather", query, &question, &error),
        STATUS_BUSY);
    run_ms(sim, 11000);
    assert_int_equal(sim_answered(sim)->n, CLUSTER_MAX_QUESTIONS);
    json_decref(query);
    sim_close(sim);
}

static void test_ask_bad_messages(void **state)
{
    (void)state;
    static const char *const texts[] = {"{\"type\":\"ask\",\"question\":1}",
                                        "{\"type\":\"answer\"}"};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct sim *sim = begin(2);
        struct cluster_core *core = sim_core(sim, 0);
        json_t *message = json_loads(texts[i], 0, NULL);
        struct node *peer = core_node(core, sim_id(sim, 1));
        cluster_core_message(core, peer->link, message);
        assert_int_not_equal(peer->state, NODE_UP); /* its link was dropped */
        json_decref(message);
        sim_close(sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ask_answered),
        cmocka_unit_test(test_ask_not_answered),
        cmocka_unit_test(test_ask_too_many),
        cmocka_unit_test(test_ask_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
