/* How fast this machine reads and computes, once at the start; and the way to another node: the
 * round trips of small messages and the rate of large ones, over a wire of its own, between two
 * threads.
 *
 * On such a wire the one that asks sends, in frames: PING_COUNT times PING_BYTES, each answered by
 * the same; then BULK_COUNT times BULK_BYTES, of which only the last is answered, by one byte. */
#include "cluster/node_internal.h"
#include "plan/plan.h"
#include "quant/quant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PING_COUNT 32
#define PING_BYTES 64
#define BULK_COUNT 32
#define BULK_BYTES ((size_t)1 << 20)
#define FRAME 1
#define READ_BYTES ((size_t)128 << 20) /* more than caches hold, where there is so much */
#define READ_ROUNDS 4
#define PEAK_ROUNDS 200000
#define PRODUCT_FORMAT QUANT_Q4_K /* of most files */
#define PRODUCT_COLUMNS ((size_t)4096)
#define LIMIT_MS 20000

/* ---- The one that answers -------------------------------------------------------------------- */

struct answering {
    struct cluster_node *node;
    struct net_wire *wire;
};

static void *answer(void *argument)
{
    struct answering *answering = argument;
    uint64_t deadline_ns = clock_now_ns() + LIMIT_MS * 1000000ull;
    struct buffer in = {0};
    uint8_t type;
    enum status status = STATUS_OK;
    for (int i = 0; i < PING_COUNT + BULK_COUNT && status == STATUS_OK; i++) {
        status = net_wire_receive_frame(answering->wire, BULK_BYTES, &type, &in, deadline_ns, NULL);
        struct view back = {in.data, i < PING_COUNT ? in.size : MIN(in.size, (size_t)1)};
        if (status == STATUS_OK && (i < PING_COUNT || i + 1 == PING_COUNT + BULK_COUNT))
            status = net_wire_send_frame(answering->wire, FRAME, back, deadline_ns, NULL);
    }
    buffer_free(&in);
    net_wire_close(answering->wire);
    node_let_go(answering->node);
    free(answering);
    return NULL;
}

void node_measure_answer(struct cluster_node *node, struct net_wire *wire)
{
    struct answering *answering = malloc(sizeof *answering);
    pthread_t thread;
    if (answering != NULL) {
        *answering = (struct answering){node, wire};
        node_hold(node);
        if (thread_start(&thread, answer, answering)) {
            pthread_detach(thread);
            return;
        }
        node_let_go(node);
    }
    free(answering);
    net_wire_close(wire);
}

/* ---- The one that asks ----------------------------------------------------------------------- */

struct measuring {
    struct cluster_node *node;
    struct cluster_id peer;
    char address[CLUSTER_ADDRESS_BYTES];
    struct net_link_key key;
    struct net_hello hello;
    double latency_us, bandwidth;
};

static void measured(void *context)
{
    struct measuring *measuring = context;
    struct cluster_node *node = measuring->node;
    if (!node->closing && measuring->bandwidth > 0)
        cluster_core_measured(node->core, measuring->peer, measuring->latency_us,
                              measuring->bandwidth, "");
    free(measuring);
}

static int by_size(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static enum status ask(struct measuring *measuring, struct net_wire *wire, const char *data)
{
    uint64_t times[PING_COUNT], begin_ns, deadline_ns = clock_now_ns() + LIMIT_MS * 1000000ull;
    struct buffer in = {0};
    uint8_t type;
    enum status status = STATUS_OK;
    for (int i = 0; i < PING_COUNT && status == STATUS_OK; i++) {
        begin_ns = clock_now_ns();
        status =
            net_wire_send_frame(wire, FRAME, (struct view){data, PING_BYTES}, deadline_ns, NULL);
        if (status == STATUS_OK)
            status = net_wire_receive_frame(wire, PING_BYTES, &type, &in, deadline_ns, NULL);
        times[i] = clock_now_ns() - begin_ns;
    }
    begin_ns = clock_now_ns();
    for (int i = 0; i < BULK_COUNT && status == STATUS_OK; i++)
        status =
            net_wire_send_frame(wire, FRAME, (struct view){data, BULK_BYTES}, deadline_ns, NULL);
    if (status == STATUS_OK)
        status = net_wire_receive_frame(wire, PING_BYTES, &type, &in, deadline_ns, NULL);
    buffer_free(&in);
    if (status != STATUS_OK)
        return status;
    qsort(times, PING_COUNT, sizeof *times, by_size);
    measuring->latency_us = (double)times[PING_COUNT / 2] / 2e3;
    measuring->bandwidth = (double)BULK_COUNT * (double)BULK_BYTES * 1e9 /
                           (double)MAX(clock_now_ns() - begin_ns, (uint64_t)1);
    return STATUS_OK;
}

static void *measure(void *argument)
{
    struct measuring *measuring = argument;
    struct cluster_node *node = measuring->node;
    struct net_wire_options options = {.hello = measuring->hello};
    struct net_wire *wire;
    char *data = calloc(1, BULK_BYTES);
    if (data != NULL && net_wire_connect(&wire, measuring->address, &measuring->key, &options, NULL,
                                         NULL, NULL) == STATUS_OK) {
        if (ask(measuring, wire, data) != STATUS_OK)
            measuring->bandwidth = 0;
        net_wire_close(wire);
    }
    free(data);
    if (!node_post(node, measured, measuring))
        free(measuring);
    node_let_go(node);
    return NULL;
}

void node_measure(void *context, struct cluster_id peer, const char *address)
{
    struct cluster_node *node = context;
    struct measuring *measuring = calloc(1, sizeof *measuring);
    pthread_t thread;
    if (measuring == NULL)
        return;
    measuring->node = node;
    measuring->peer = peer;
    measuring->key = node->link_keys[0];
    measuring->hello = node_hello(node, NET_DATA, json_pack("{s:b}", "measure", 1));
    snprintf(measuring->address, sizeof measuring->address, "%s", address);
    node_hold(node);
    if (thread_start(&thread, measure, measuring)) {
        pthread_detach(thread);
        return;
    }
    node_let_go(node);
    free(measuring);
}

/* ---- This machine ---------------------------------------------------------------------------- */

struct probing {
    struct cluster_node *node;
    unsigned n_threads;
    const uint64_t *data;
    size_t n;                    /* numbers */
    struct quant_matrix weights; /* the same data */
    const void *packed;          /* a token's input */
    float *y;                    /* [weights.n_rows] */
    _Atomic uint64_t sum, products;
    double read_bandwidth, flops;
};

static void read_some(void *context, unsigned thread, size_t begin, size_t end)
{
    struct probing *probing = context;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    (void)thread;
    for (size_t i = begin; i + 4 <= end; i += 4) {
        a += probing->data[i];
        b += probing->data[i + 1];
        c += probing->data[i + 2];
        d += probing->data[i + 3];
    }
    probing->sum += a + b + c + d; /* so that the reading is not left out */
}

static void multiply_some(void *context, unsigned thread, size_t begin, size_t end)
{
    struct probing *probing = context;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        probing->products += quant_peak(QUANT_Q8_0, PEAK_ROUNDS);
}

static void take_weights(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct probing *probing = context;
    (void)thread;
    quant_matmul(&probing->weights, quant_packing(PRODUCT_FORMAT, 1), begin, end, probing->packed,
                 1, probing->y, 0);
}

/* The best of a few rounds, in bytes a second. */
static double rate_of(struct probing *probing, struct pool *pool, pool_fn *work, size_t n,
                      size_t bytes)
{
    double best = 0;
    for (int i = 0; i < READ_ROUNDS; i++) {
        uint64_t begin_ns = clock_now_ns();
        pool_run(pool, work, probing, n, n / pool_threads(pool) + 1);
        best = MAX(best, (double)bytes * 1e9 / (double)(clock_now_ns() - begin_ns + 1));
    }
    return best;
}

/* How fast the products of one token take weights, of so many bytes. */
static double product_rate(struct probing *probing, struct pool *pool, size_t size)
{
    enum quant_packing packing = quant_packing(PRODUCT_FORMAT, 1);
    size_t row_bytes = quant_row_bytes(PRODUCT_FORMAT, PRODUCT_COLUMNS);
    size_t n_rows = size / row_bytes;
    float *x = calloc(PRODUCT_COLUMNS, sizeof *x), *y = calloc(n_rows, sizeof *y);
    void *packed = pages_alloc(quant_packed_bytes(packing, PRODUCT_COLUMNS));
    double rate = 0;
    if (x != NULL && y != NULL && packed != NULL) {
        quant_pack(packing, x, PRODUCT_COLUMNS, packed, 0, 1);
        probing->weights = (struct quant_matrix){PRODUCT_FORMAT, probing->data, row_bytes, n_rows,
                                                 PRODUCT_COLUMNS};
        probing->packed = packed;
        probing->y = y;
        rate = rate_of(probing, pool, take_weights, n_rows, n_rows * row_bytes);
    }
    pages_free(packed, quant_packed_bytes(packing, PRODUCT_COLUMNS));
    free(x);
    free(y);
    return rate;
}

/* A slow instruction set takes weights slower than memory gives them. */
static void probe_with(struct probing *probing, struct pool *pool)
{
    struct machine machine;
    machine_query(&machine);
    /* Models may come while it runs. */
    size_t size = (size_t)MIN((uint64_t)READ_BYTES, machine.memory_free_bytes / 8);
    uint64_t *data = pages_alloc(size);
    if (data != NULL) {
        memset(data, 1, size);
        probing->data = data;
        probing->n = size / sizeof *data;
        double reading = rate_of(probing, pool, read_some, probing->n, size);
        double products = product_rate(probing, pool, size) / PLAN_DECODE_SHARE;
        probing->read_bandwidth = products > 0 ? MIN(reading, products) : reading;
        pages_free(data, size);
    }
    uint64_t begin_ns = clock_now_ns();
    pool_run(pool, multiply_some, probing, pool_threads(pool), 1);
    probing->flops = 2e9 * (double)probing->products / (double)(clock_now_ns() - begin_ns + 1);
}

static void probed(void *context)
{
    struct probing *probing = context;
    struct cluster_node *node = probing->node;
    node->read_bandwidth = probing->read_bandwidth;
    node->flops = probing->flops;
    if (!node->closing)
        cluster_node_refresh(node);
    free(probing);
}

static void *probe(void *argument)
{
    struct probing *probing = argument;
    struct cluster_node *node = probing->node;
    struct pool *pool = NULL;
    if (pool_open(&pool, probing->n_threads, NULL) == STATUS_OK)
        probe_with(probing, pool);
    pool_close(pool);
    if (!node_post(node, probed, probing))
        free(probing);
    node_let_go(node);
    return NULL;
}

void node_measure_machine(struct cluster_node *node)
{
    struct probing *probing = calloc(1, sizeof *probing);
    struct machine machine;
    pthread_t thread;
    if (probing == NULL)
        return;
    machine_query(&machine);
    probing->node = node;
    probing->n_threads =
        node->options.model.n_threads > 0 ? node->options.model.n_threads : machine.physical_cores;
    node_hold(node);
    if (thread_start(&thread, probe, probing)) {
        pthread_detach(thread);
        return;
    }
    node_let_go(node);
    free(probing);
}
