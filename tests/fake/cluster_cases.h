/* What the suites of simulated clusters share. */
#ifndef CONSORT_TESTS_CLUSTER_CASES_H
#define CONSORT_TESTS_CLUSTER_CASES_H

#include "fake_cluster.h"

#include "cluster/core_internal.h"

#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#define assert_sim(sim, condition)                                                                 \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("%s: %s", #condition, sim_fault(sim) != NULL ? sim_fault(sim) : "no fault");  \
    } while (0)

static inline void run_ms(struct sim *sim, uint64_t ms)
{
    assert_sim(sim, sim_run(sim, sim_now(sim) + ms));
}

/* Starts the nodes and waits until all are linked and know each other. */
static inline void start_all(struct sim *sim)
{
    for (unsigned i = 0; i < sim_n_nodes(sim); i++)
        sim_start(sim, i);
    if (!sim_wait(sim, 20000, sim_all_linked))
        fail_msg("not all nodes are linked");
}

/* Two models, of which the first fits one node and the second needs two. */
static inline struct sim_options options_of(unsigned n_nodes)
{
    struct sim_options options = {.seed = 7, .n_nodes = n_nodes, .n_models = 2, .latency_ms = 3};
    for (unsigned i = 0; i < n_nodes; i++)
        options.memory[i] = 100;
    options.models[0] = 60;
    options.models[1] = 150;
    return options;
}

/* Whether a node's status names a problem of this kind, with this in its text. */
static inline bool has_problem(struct sim *sim, unsigned at, const char *kind, const char *text)
{
    json_t *status = cluster_core_status(sim_core(sim, at));
    const json_t *problems = json_object_get(status, "problems");
    bool found = false;
    for (size_t i = 0; i < json_array_size(problems); i++) {
        const json_t *problem = json_array_get(problems, i);
        found =
            found || (strcmp(json_string_value(json_object_get(problem, "kind")), kind) == 0 &&
                      strstr(json_string_value(json_object_get(problem, "text")), text) != NULL);
    }
    json_decref(status);
    return found;
}

/* Node 1 says this to node 0, which drops the link. */
static inline void expect_dropped(struct sim *sim, const char *text)
{
    struct cluster_core *core = sim_core(sim, 0);
    json_t *message = json_loads(text, 0, NULL);
    assert_non_null(message);
    struct node *peer = core_node(core, sim_id(sim, 1));
    cluster_core_message(core, peer->link, message);
    assert_int_not_equal(peer->state, NODE_UP);
    json_decref(message);
}

#endif
