/* Meshes of several ranks on threads, over links on loopback. */
#include "cluster/comm_links.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum {
    MAX_RANKS = 5,
    ROUNDS = 40,
};

static const uint64_t patience_ns = 60000000000u;
static const struct net_link_key key = {"consort-link/1:mesh:1", {4, 5, 6}};

struct node {
    uint32_t rank, n_ranks;
    struct comm_mesh *mesh;
    struct net_address *addresses; /* of all nodes */
    struct net_link_server *server;
    pthread_t thread;
    enum status status;
    struct error error;
    void (*run)(struct node *node, struct comm *comm);
    bool trusted;
};

static void take_wire(void *context, struct net_link *link, const struct net_hello *hello)
{
    struct node *node = context;
    unsigned rank = 0;
    assert_int_equal(hello->purpose, NET_DATA);
    assert_int_equal(sscanf(hello->info, "%u", &rank), 1);
    struct net_wire *wire = net_link_detach(link);
    assert_non_null(wire);
    assert_int_equal(comm_mesh_add(node->mesh, rank, wire, NULL), STATUS_OK);
}

static void no_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    (void)context, (void)link, (void)type, (void)message;
    fail_msg("no messages here");
}

static void no_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)context, (void)link, (void)fault;
    fail_msg("%s", text);
}

static bool find_key(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    (void)context;
    memcpy(secret, key.secret, NET_SECRET_BYTES);
    return view_equal(identity, view_of(key.identity));
}

static void *run_node(void *context)
{
    struct node *node = context;
    struct comm *comm = NULL;
    for (uint32_t rank = 0; rank < node->rank && node->status == STATUS_OK; rank++) {
        struct net_wire_options options = {.hello = {.purpose = NET_DATA, .trusted = node->trusted},
                                           .deadline_ns = clock_now_ns() + patience_ns};
        struct net_wire *wire;
        snprintf(options.hello.info, sizeof options.hello.info, "%u", node->rank);
        node->status = net_wire_connect(&wire, node->addresses[rank].text, &key, &options, NULL,
                                        NULL, &node->error);
        if (node->status == STATUS_OK)
            node->status = comm_mesh_add(node->mesh, rank, wire, &node->error);
    }
    if (node->status == STATUS_OK)
        node->status =
            comm_mesh_comm(node->mesh, 20000, clock_now_ns() + patience_ns, &comm, &node->error);
    if (node->status == STATUS_OK)
        node->run(node, comm);
    return NULL;
}

static void *run_loop(void *context)
{
    net_loop_run(context);
    return NULL;
}

/* Runs n_ranks nodes, all of them served by one loop. */
static void run_mesh(uint32_t n_ranks, bool trusted,
                     void (*run)(struct node *node, struct comm *comm), struct node *nodes)
{
    static const struct net_link_events events = {take_wire, no_message, no_down, NULL};
    struct net_address addresses[MAX_RANKS];
    struct net_loop *loop;
    pthread_t loop_thread;
    assert_int_equal(net_loop_open(&loop, NULL), STATUS_OK);
    for (uint32_t i = 0; i < n_ranks; i++) {
        struct node *node = &nodes[i];
        struct net_link_server_options options = {
            .link = {.events = &events, .context = node, .hello = {.trusted = trusted}},
            .find_key = find_key};
        *node = (struct node){.rank = i, .n_ranks = n_ranks, .addresses = addresses};
        node->run = run;
        node->trusted = trusted;
        assert_int_equal(comm_mesh_open(&node->mesh, i, n_ranks, NULL), STATUS_OK);
        assert_int_equal(net_link_server_open(&node->server, loop, "127.0.0.1:0", &options, NULL),
                         STATUS_OK);
        snprintf(addresses[i].text, sizeof addresses[i].text, "127.0.0.1:%u",
                 net_link_server_port(node->server));
    }
    assert_int_equal(pthread_create(&loop_thread, NULL, run_loop, loop), 0);
    for (uint32_t i = 0; i < n_ranks; i++)
        assert_int_equal(pthread_create(&nodes[i].thread, NULL, run_node, &nodes[i]), 0);
    for (uint32_t i = 0; i < n_ranks; i++)
        pthread_join(nodes[i].thread, NULL);
    net_loop_stop(loop);
    pthread_join(loop_thread, NULL);
    for (uint32_t i = 0; i < n_ranks; i++) {
        net_link_server_close(nodes[i].server);
        comm_mesh_close(nodes[i].mesh);
    }
    net_loop_close(loop);
}

/* ---- Exchanges ---- */

/* What a goes to b in a round: the same size on both sides, and bytes that name it. */
static size_t message_size(uint32_t a, uint32_t b, unsigned round)
{
    uint64_t random = rng_u64(9, round, a * 64 + b);
    static const size_t sizes[] = {0, 1, 300, 8192, 70000, 3 << 20};
    return sizes[random % (round % 8 == 0 ? 6 : 5)];
}

static uint8_t message_byte(uint32_t a, uint32_t b, unsigned round, size_t i)
{
    return (uint8_t)(a * 17 + b * 5 + round * 3 + i * 7 + (i >> 9));
}

static void exchange_round(struct node *node, struct comm *comm, unsigned round)
{
    struct comm_transfer transfers[MAX_RANKS];
    size_t n = 0;
    for (uint32_t other = 0; other < node->n_ranks; other++) {
        if (other == node->rank)
            continue;
        size_t out_bytes = message_size(node->rank, other, round);
        size_t in_bytes = message_size(other, node->rank, round);
        uint8_t *out = malloc(out_bytes + 1), *in = calloc(1, in_bytes + 1);
        for (size_t i = 0; i < out_bytes; i++)
            out[i] = message_byte(node->rank, other, round, i);
        transfers[n++] = (struct comm_transfer){other, out, out_bytes, in, in_bytes};
    }
    node->status = comm->exchange(comm, transfers, n, &node->error);
    for (size_t k = 0; k < n; k++) {
        const uint8_t *in = transfers[k].in;
        for (size_t i = 0; i < transfers[k].in_bytes && node->status == STATUS_OK; i++)
            if (in[i] != message_byte(transfers[k].rank, node->rank, round, i))
                node->status = error_set(&node->error, STATUS_INVALID, "byte %zu is wrong", i);
        free(transfers[k].in);
        free((void *)(uintptr_t)transfers[k].out);
    }
}

static void exchange_rounds(struct node *node, struct comm *comm)
{
    assert_int_equal(comm->rank, node->rank);
    assert_int_equal(comm->n_ranks, node->n_ranks);
    for (unsigned round = 0; round < ROUNDS && node->status == STATUS_OK; round++)
        exchange_round(node, comm, round);
}

static void test_comm_exchange(void **state)
{
    (void)state;
    struct node nodes[MAX_RANKS];
    static const uint32_t counts[] = {1, 2, 3, 5};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        run_mesh(counts[i], i % 2 == 0, exchange_rounds, nodes);
        for (uint32_t k = 0; k < counts[i]; k++)
            if (nodes[k].status != STATUS_OK)
                fail_msg("rank %u of %u: %s", k, counts[i], nodes[k].error.text);
    }
}

/* Several messages to one rank in one call keep their order, and need not meet in the same call. */
static void exchange_in_order(struct node *node, struct comm *comm)
{
    enum { N = 4 };
    static const size_t message_sizes[N] = {3 << 20, 5, 0, 100000};
    struct comm_transfer transfers[2 * N];
    uint8_t *out[N], *in[N];
    uint32_t other = 1 - node->rank;
    for (unsigned k = 0; k < N; k++) {
        out[k] = malloc(message_sizes[k] + 1);
        in[k] = calloc(1, message_sizes[k] + 1);
        for (size_t i = 0; i < message_sizes[k]; i++)
            out[k][i] = message_byte(node->rank, other, k, i);
        /* Rank 0 in one call that sends before it receives, rank 1 in pairs. */
        transfers[k] = (struct comm_transfer){other, out[k], message_sizes[k], NULL, 0};
        transfers[N + k] = (struct comm_transfer){other, NULL, 0, in[k], message_sizes[k]};
        if (node->rank == 1)
            transfers[k] =
                (struct comm_transfer){other, out[k], message_sizes[k], in[k], message_sizes[k]};
    }
    node->status = comm->exchange(comm, transfers, node->rank == 0 ? 2 * N : N, &node->error);
    for (unsigned k = 0; k < N; k++) {
        for (size_t i = 0; i < message_sizes[k] && node->status == STATUS_OK; i++)
            if (in[k][i] != message_byte(other, node->rank, k, i))
                node->status = error_set(&node->error, STATUS_INVALID, "byte %zu is wrong", i);
        free(out[k]);
        free(in[k]);
    }
}

static void test_comm_order(void **state)
{
    (void)state;
    struct node nodes[MAX_RANKS];
    run_mesh(2, false, exchange_in_order, nodes);
    for (uint32_t k = 0; k < 2; k++)
        if (nodes[k].status != STATUS_OK)
            fail_msg("rank %u: %s", k, nodes[k].error.text);
}

/* Both send as much as may lie on the way before any of them receives. */
static void send_first(struct node *node, struct comm *comm)
{
    static uint8_t out[COMM_EAGER_BYTES];
    uint8_t *in = malloc(sizeof out);
    uint32_t other = 1 - node->rank;
    struct comm_transfer give = {other, out, 64, NULL, 0}, take = {other, NULL, 0, in, sizeof out};
    for (size_t sent = 0; sent < sizeof out && node->status == STATUS_OK; sent += 64)
        node->status = comm->exchange(comm, &give, 1, &node->error);
    if (node->status == STATUS_OK)
        node->status = comm->exchange(comm, &take, 1, &node->error);
    give.out_bytes = sizeof out;
    if (node->status == STATUS_OK)
        node->status = comm->exchange(comm, &give, 1, &node->error);
    if (node->status == STATUS_OK)
        node->status = comm->exchange(comm, &take, 1, &node->error);
    free(in);
}

static void test_comm_eager(void **state)
{
    (void)state;
    struct node nodes[MAX_RANKS];
    for (int trusted = 0; trusted < 2; trusted++) {
        run_mesh(2, trusted, send_first, nodes);
        assert_int_equal(nodes[0].status, STATUS_OK);
        assert_int_equal(nodes[1].status, STATUS_OK);
    }
}

/* One rank leaves; the others learn it instead of waiting for ever. */
static void leave_at_once(struct node *node, struct comm *comm)
{
    char byte = 0;
    struct comm_transfer transfers[MAX_RANKS];
    size_t n = 0;
    if (node->rank == 1) {
        comm_mesh_abort(node->mesh);
        comm_mesh_abort(node->mesh);
    }
    for (uint32_t other = 0; other < node->n_ranks; other++)
        if (other != node->rank)
            transfers[n++] = (struct comm_transfer){other, &byte, 0, &byte, 1};
    node->status = comm->exchange(comm, transfers, n, &node->error);
    /* From then on no call helps, also with those who are still there. */
    for (size_t i = 0; i < n; i++)
        if (comm->exchange(comm, &transfers[i], 1, NULL) != STATUS_LOST)
            node->status = STATUS_INVALID;
}

static void test_comm_lost(void **state)
{
    (void)state;
    struct node nodes[MAX_RANKS];
    run_mesh(3, false, leave_at_once, nodes);
    for (uint32_t k = 0; k < 3; k++)
        assert_int_equal(nodes[k].status, STATUS_LOST);
}

static void *abort_soon(void *context)
{
    usleep(20000);
    comm_mesh_abort(context);
    return NULL;
}

static void test_comm_waits_end(void **state)
{
    (void)state;
    struct comm_mesh *mesh;
    struct comm *comm;
    struct error error;
    pthread_t thread;
    assert_int_equal(comm_mesh_open(&mesh, 0, 0, &error), STATUS_INVALID);
    assert_int_equal(comm_mesh_open(&mesh, 2, 2, &error), STATUS_INVALID);
    assert_int_equal(comm_mesh_open(&mesh, 0, COMM_MAX_RANKS + 1, &error), STATUS_INVALID);
    assert_int_equal(comm_mesh_open(&mesh, 0, 3, &error), STATUS_OK);
    assert_int_equal(comm_mesh_comm(mesh, 0, clock_now_ns() + 20000000, &comm, &error),
                     STATUS_LOST);
    assert_non_null(strstr(error.text, "rank 1"));
    assert_int_equal(pthread_create(&thread, NULL, abort_soon, mesh), 0);
    assert_int_equal(comm_mesh_comm(mesh, 0, 0, &comm, &error), STATUS_LOST);
    pthread_join(thread, NULL);
    comm_mesh_close(mesh);
    comm_mesh_close(NULL);
}

static void refuse_wrong(struct node *node, struct comm *comm)
{
    struct comm_transfer self = {node->rank, NULL, 0, NULL, 0}, none = {9, NULL, 0, NULL, 0};
    bool refused = comm->exchange(comm, &self, 1, NULL) == STATUS_INVALID &&
                   comm->exchange(comm, &none, 1, NULL) == STATUS_INVALID &&
                   comm->exchange(comm, NULL, 0, NULL) == STATUS_OK;
    node->status = refused ? STATUS_OK : STATUS_INVALID;
}

static void test_comm_wrong_ranks(void **state)
{
    (void)state;
    struct node nodes[MAX_RANKS];
    run_mesh(2, false, refuse_wrong, nodes);
    assert_int_equal(nodes[0].status, STATUS_OK);
    assert_int_equal(nodes[1].status, STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_exchange),  cmocka_unit_test(test_comm_order),
        cmocka_unit_test(test_comm_eager),     cmocka_unit_test(test_comm_lost),
        cmocka_unit_test(test_comm_waits_end), cmocka_unit_test(test_comm_wrong_ranks),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
