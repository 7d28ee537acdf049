/* How fast this machine reads and computes, once at the start; and a way to another node: the round
 * trips of small messages and the rate of large ones, over a wire of its own, between two threads.
 *
 * On such a wire the one that asks sends, in frames: PING_COUNT times PING_BYTES, each answered by
 * the same; then BULK_BYTES again and again, BULK_COUNT times at most, of which only the last, of
 * type LAST, is answered, by one byte. A frame of type BUSY instead of an answer: the other one is
 * measuring with a third, which this would disturb. */
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
#define LAST 2
#define BUSY 3
#define BULK_NS 1000000000             /* slow ways are measured with less */
#define READ_BYTES ((size_t)128 << 20) /* more than caches hold, where there is so much */
#define ROUNDS 3
#define ROUNDS_NS 300000000             /* slow machines do with fewer */
#define PRODUCT_BYTES ((size_t)1 << 20) /* at least; else what takes PRODUCT_S */
#define PRODUCT_S 0.02
#define PREFILL_FORMAT QUANT_Q4_K /* of most files */
#define PREFILL_TOKENS 96         /* of a step, the least that models have of prompts */
#define PREFILL_S 0.1
#define PRODUCT_COLUMNS ((size_t)4096)
#define LIMIT_MS 20000

/* ---- The one that answers -------------------------------------------------------------------- */

struct answering {
    struct cluster_node *node;
    struct net_wire *wire;
    bool busy;
};

static void answer_all(struct net_wire *wire, bool busy)
{
    uint64_t deadline_ns = clock_now_ns() + LIMIT_MS * 1000000ull;
    struct buffer in = {0};
    uint8_t type = 0;
    enum status status = STATUS_OK;
    for (int i = 0; i < PING_COUNT + BULK_COUNT && status == STATUS_OK && type != LAST; i++) {
        status = net_wire_receive_frame(wire, BULK_BYTES, &type, &in, deadline_ns, NULL);
        struct view back = {in.data, i < PING_COUNT ? in.size : MIN(in.size, (size_t)1)};
        if (status == STATUS_OK && (i < PING_COUNT || type == LAST))
            status = net_wire_send_frame(wire, busy ? BUSY : FRAME, back, deadline_ns, NULL);
        if (busy)
            break;
    }
    buffer_free(&in);
}

static void *answer(void *argument)
{
    struct answering *answering = argument;
    answer_all(answering->wire, answering->busy);
    net_wire_close(answering->wire);
    if (!answering->busy)
        atomic_store(&answering->node->measuring, false);
    node_let_go(answering->node);
    free(answering);
    return NULL;
}

void node_measure_answer(struct cluster_node *node, struct net_wire *wire)
{
    struct answering *answering = malloc(sizeof *answering);
    pthread_t thread;
    if (answering != NULL) {
        *answering = (struct answering){node, wire, atomic_exchange(&node->measuring, true)};
        node_hold(node);
        if (thread_start(&thread, answer, answering)) {
            pthread_detach(thread);
            return;
        }
        if (!answering->busy)
            atomic_store(&node->measuring, false);
        node_let_go(node);
    }
    free(answering);
    net_wire_close(wire);
}

/* ---- The one that asks ----------------------------------------------------------------------- */

struct measuring {
    struct cluster_node *node;
    struct cluster_id peer;
    struct cluster_way way;
    struct net_link_key key;
    struct net_hello hello;
    enum cluster_measure_result result;
    double latency_us, bandwidth;
    char interface[CLUSTER_INTERFACE_BYTES];
};

static void measured(void *context)
{
    struct measuring *measuring = context;
    struct cluster_node *node = measuring->node;
    if (!node->closing)
        cluster_core_measured(node->core, measuring->peer, &measuring->way, measuring->result,
                              measuring->latency_us, measuring->bandwidth, measuring->interface);
    free(measuring);
}

static int by_size(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static enum status ask_pings(struct net_wire *wire, const char *data, uint64_t deadline_ns,
                             struct measuring *measuring)
{
    uint64_t times[PING_COUNT];
    struct buffer in = {0};
    uint8_t type = FRAME;
    enum status status = STATUS_OK;
    for (int i = 0; i < PING_COUNT && status == STATUS_OK && type == FRAME; i++) {
        uint64_t begin_ns = clock_now_ns();
        status =
            net_wire_send_frame(wire, FRAME, (struct view){data, PING_BYTES}, deadline_ns, NULL);
        if (status == STATUS_OK)
            status = net_wire_receive_frame(wire, PING_BYTES, &type, &in, deadline_ns, NULL);
        times[i] = clock_now_ns() - begin_ns;
    }
    buffer_free(&in);
    if (status != STATUS_OK || type == BUSY) {
        measuring->result = type == BUSY ? CLUSTER_MEASURE_BUSY : CLUSTER_MEASURE_FAILED;
        return STATUS_BUSY;
    }
    qsort(times, PING_COUNT, sizeof *times, by_size);
    measuring->latency_us = (double)times[PING_COUNT / 2] / 2e3;
    return STATUS_OK;
}

static enum status ask_bulk(struct net_wire *wire, const char *data, uint64_t deadline_ns,
                            struct measuring *measuring)
{
    struct buffer in = {0};
    uint8_t type = FRAME;
    uint64_t begin_ns = clock_now_ns();
    double sent_bytes = 0;
    enum status status = STATUS_OK;
    for (int i = 0; i < BULK_COUNT && status == STATUS_OK && type != LAST; i++) {
        type = i + 1 == BULK_COUNT || clock_now_ns() - begin_ns > BULK_NS ? LAST : FRAME;
        status =
            net_wire_send_frame(wire, type, (struct view){data, BULK_BYTES}, deadline_ns, NULL);
        sent_bytes += (double)BULK_BYTES;
    }
    if (status == STATUS_OK)
        status = net_wire_receive_frame(wire, PING_BYTES, &type, &in, deadline_ns, NULL);
    buffer_free(&in);
    measuring->bandwidth = sent_bytes * 1e9 / (double)MAX(clock_now_ns() - begin_ns, (uint64_t)1);
    return status;
}

/* The interface that the wire goes over. */
static void find_interface(const struct net_wire *wire, char out[CLUSTER_INTERFACE_BYTES])
{
    struct net_interface *all;
    char local[NET_ADDRESS_BYTES];
    size_t n;
    net_wire_local(wire, local);
    if (net_interfaces(&all, &n, NULL) != STATUS_OK)
        return;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < all[i].n_addresses; k++)
            if (net_address_same(all[i].addresses[k], local))
                snprintf(out, CLUSTER_INTERFACE_BYTES, "%s", all[i].name);
    free(all);
}

static void ask(struct measuring *measuring, struct net_wire *wire)
{
    uint64_t deadline_ns = clock_now_ns() + LIMIT_MS * 1000000ull;
    char *data = calloc(1, BULK_BYTES);
    find_interface(wire, measuring->interface);
    if (data != NULL && ask_pings(wire, data, deadline_ns, measuring) == STATUS_OK &&
        ask_bulk(wire, data, deadline_ns, measuring) == STATUS_OK)
        measuring->result = CLUSTER_MEASURED;
    free(data);
}

static void *measure(void *argument)
{
    struct measuring *measuring = argument;
    struct cluster_node *node = measuring->node;
    const struct cluster_way *way = &measuring->way;
    uint8_t id[NET_NODE_BYTES];
    struct net_wire_options options = {
        .hello = measuring->hello,
        .from = way->from[0] != '\0' ? way->from : NULL,
        .interface = way->interface[0] != '\0' ? way->interface : NULL,
        .node = id,
    };
    struct net_wire *wire;
    node_id_bytes(measuring->peer, id);
    if (atomic_exchange(&node->measuring, true)) {
        measuring->result = CLUSTER_MEASURE_BUSY;
    } else {
        measuring->result = CLUSTER_MEASURE_FAILED;
        if (net_wire_connect(&wire, way->address, &measuring->key, &options, NULL, NULL, NULL) ==
            STATUS_OK) {
            ask(measuring, wire);
            net_wire_close(wire);
        }
        atomic_store(&node->measuring, false);
    }
    if (!node_post(node, measured, measuring))
        free(measuring);
    node_let_go(node);
    return NULL;
}

void node_measure(void *context, struct cluster_id peer, const struct cluster_way *way)
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
    measuring->way = *way;
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
    enum quant_packing packing;
    const void *packed; /* tokens' inputs */
    size_t n_tokens;
    float *y; /* [n_tokens][weights.n_rows] */
    _Atomic uint64_t sum;
    double read_bandwidth, flops;
    uint32_t n_rates;
    struct cluster_rate rates[CLUSTER_MAX_RATES];
};

/* Others are about as fast as Q4_K. */
static const enum quant_format measured_formats[] = {
    QUANT_BF16, QUANT_F16,  QUANT_Q8_0, QUANT_Q4_0,   QUANT_Q2_K,  QUANT_Q3_K,
    QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K, QUANT_IQ4_XS, QUANT_MXFP4,
};
_Static_assert(ARRAY_COUNT(measured_formats) <= CLUSTER_MAX_RATES, "all are told");

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

static void take_weights(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct probing *probing = context;
    (void)thread;
    quant_matmul(&probing->weights, probing->packing, begin, end, probing->packed,
                 probing->n_tokens, probing->y, probing->weights.n_rows);
}

/* The best of a few rounds, in bytes a second; threads take multiples of step. */
static double rate_of(struct probing *probing, struct pool *pool, pool_fn *work, size_t n,
                      size_t step, size_t bytes)
{
    double best = 0;
    size_t piece = (n / pool_threads(pool) + step) / step * step;
    uint64_t first_ns = clock_now_ns();
    for (int i = 0; i < ROUNDS && clock_now_ns() - first_ns < ROUNDS_NS; i++) {
        uint64_t begin_ns = clock_now_ns();
        pool_run(pool, work, probing, n, piece);
        best = MAX(best, (double)bytes * 1e9 / (double)(clock_now_ns() - begin_ns + 1));
    }
    return best;
}

/* How fast products with so many tokens take weights, of so many bytes. 0: not known. */
static double rate_of_products(struct probing *probing, struct pool *pool, enum quant_format format,
                               size_t size, size_t n_tokens)
{
    enum quant_packing packing = quant_packing(format, n_tokens);
    size_t row_bytes = quant_row_bytes(format, PRODUCT_COLUMNS);
    size_t n_rows = size / row_bytes;
    size_t packed_bytes =
        quant_packed_bytes(packing, PRODUCT_COLUMNS) * quant_packed_inputs(packing, n_tokens);
    float *x = calloc(PRODUCT_COLUMNS, sizeof *x), *y = calloc(n_rows * n_tokens, sizeof *y);
    void *packed = pages_alloc(packed_bytes);
    double rate = 0;
    if (x != NULL && y != NULL && packed != NULL) {
        for (size_t i = 0; i < n_tokens; i++)
            quant_pack(packing, x, PRODUCT_COLUMNS, packed, i, n_tokens);
        probing->weights =
            (struct quant_matrix){format, probing->data, row_bytes, n_rows, PRODUCT_COLUMNS};
        probing->packing = packing;
        probing->packed = packed;
        probing->n_tokens = n_tokens;
        probing->y = y;
        rate = rate_of(probing, pool, take_weights, n_rows, quant_row_step(packing),
                       n_rows * row_bytes);
    }
    pages_free(packed, packed_bytes);
    free(x);
    free(y);
    return rate;
}

/* The same, of as many bytes as take so long. */
static double product_rate(struct probing *probing, struct pool *pool, enum quant_format format,
                           size_t n_tokens, double seconds)
{
    size_t size = probing->n * sizeof *probing->data;
    double rate = rate_of_products(probing, pool, format, MIN(size, PRODUCT_BYTES), n_tokens);
    if (rate * seconds > 2 * PRODUCT_BYTES)
        rate = rate_of_products(probing, pool, format, (size_t)MIN((double)size, rate * seconds),
                                n_tokens);
    return rate;
}

/* Products take weights of some formats slower than memory gives them, with a slow instruction set
 * of most. Of a prompt, a step's weights are unpacked once, which is part of what products take. */
static void probe_with(struct probing *probing, struct pool *pool)
{
    struct machine machine;
    machine_query(&machine);
    /* Models may come while it runs. */
    size_t size = (size_t)MIN((uint64_t)READ_BYTES, machine.memory_free_bytes / 8);
    uint64_t *data = pages_alloc(size);
    if (data == NULL)
        return;
    memset(data, 1, size);
    probing->data = data;
    probing->n = size / sizeof *data;
    probing->read_bandwidth = rate_of(probing, pool, read_some, probing->n, 4, size);
    for (size_t i = 0; i < ARRAY_COUNT(measured_formats); i++) {
        struct cluster_rate *rate = &probing->rates[probing->n_rates++];
        snprintf(rate->format, sizeof rate->format, "%s", quant_info(measured_formats[i])->name);
        rate->bytes_per_s = product_rate(probing, pool, measured_formats[i], 1, PRODUCT_S);
    }
    double weights_per_byte =
        (double)PRODUCT_COLUMNS / (double)quant_row_bytes(PREFILL_FORMAT, PRODUCT_COLUMNS);
    double rate = product_rate(probing, pool, PREFILL_FORMAT, PREFILL_TOKENS, PREFILL_S);
    probing->flops = 2 * PREFILL_TOKENS * weights_per_byte * rate;
    pages_free(data, size);
}

static void tell_host(struct cluster_node *node)
{
    if (node->options.host.measured != NULL)
        node->options.host.measured(node->options.host.context);
}

static void probed(void *context)
{
    struct probing *probing = context;
    struct cluster_node *node = probing->node;
    node->read_bandwidth = probing->read_bandwidth;
    node->flops = probing->flops;
    node->n_rates = probing->n_rates;
    memcpy(node->rates, probing->rates, sizeof node->rates);
    if (!node->closing) {
        cluster_node_refresh(node);
        tell_host(node);
    }
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
    if (probing == NULL) {
        tell_host(node);
        return;
    }
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
    tell_host(node);
}
