/* Rates of attention on the CPU backend, by KV format and context, against limits of the machine
 * measured between the runs.
 *
 *   build/bench/attention [THREADS [LAYERS]]     (default: all physical cores, 16 layers)
 *
 * Decode is one token: GB/s of keys and values, and its share of what plain reading gives. Prefill
 * is a batch at the end of the context: GFLOP/s (two for each product of both matrix products), and
 * its share of what fused multiply-adds alone give. The shape is that of Llama 3.2 1B: 32 heads of
 * 64 numbers over 8 of keys and values; then that of DeepSeek-V2-Lite's compressed space. */
#include "model/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define BATCH 128
#define REPEATS 5

struct shape {
    const char *name;
    uint32_t n_heads, n_kv_heads, head_k, head_v;
    bool latent; /* values are the first numbers of the keys */
};

static const struct shape shapes[] = {{"GQA 32:8 x 64", 32, 8, 64, 64, false},
                                      {"MLA 16 x 576", 16, 1, 576, 512, true}};
static const uint32_t contexts[] = {512, 2048, 8192, 16384};
static const enum quant_format formats[] = {QUANT_F16, QUANT_Q8_0};

/* ---- Limits ---------------------------------------------------------------------------------- */

#define READ_BYTES ((size_t)256 << 20)
#define FMA_ROUNDS 4000

struct limits {
    struct pool *pool;
    uint64_t *data;
    uint64_t sums[1024];
};

static double seconds_since(uint64_t begin_ns)
{
    return (double)(clock_now_ns() - begin_ns) * 1e-9;
}

static void read_some(void *context, unsigned thread, size_t begin, size_t end)
{
    typedef uint64_t wide __attribute__((vector_size(64)));
    struct limits *limits = context;
    const wide *from = (const wide *)limits->data;
    wide a = {0}, b = {0};
    for (size_t i = begin; i + 2 <= end; i += 2) {
        a += from[i];
        b += from[i + 1];
    }
    a += b;
    limits->sums[thread] += a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static double read_rate(struct limits *limits)
{
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        uint64_t begin_ns = clock_now_ns();
        pool_run(limits->pool, read_some, limits, READ_BYTES / 64, 1 << 15);
        best = fmax(best, (double)READ_BYTES * 1e-9 / seconds_since(begin_ns));
    }
    return best;
}

static void multiply_some(void *context, unsigned thread, size_t begin, size_t end)
{
    uint64_t *products = context;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        products[i] = quant_peak(QUANT_F32, FMA_ROUNDS);
}

static double fma_rate(struct limits *limits)
{
    double best = 0;
    uint64_t products[1024];
    size_t n = pool_threads(limits->pool);
    for (int i = 0; i < REPEATS; i++) {
        uint64_t begin_ns = clock_now_ns();
        pool_run(limits->pool, multiply_some, products, n, 1);
        double flops = 2.0 * (double)(n * products[0]);
        best = fmax(best, flops * 1e-9 / seconds_since(begin_ns));
    }
    return best;
}

/* ---- Attention ------------------------------------------------------------------------------- */

struct bench {
    struct backend *backend;
    struct limits limits;
    const struct shape *shape;
    enum quant_format format;
    uint32_t n_ctx, n_layers;
    size_t k_bytes, v_bytes; /* of a layer */
    struct device_buffer *cache, *x, *y, *ints;
};

static struct device_buffer *must_alloc(struct bench *bench, size_t size)
{
    struct device_buffer *buffer = bench->backend->alloc(bench->backend, size);
    if (buffer == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", size);
        exit(1);
    }
    return buffer;
}

/* As a model has its keys and values. */
static enum kv_layout keys_layout(const struct bench *bench)
{
    if (bench->shape->latent)
        return KV_ROWS;
    return quant_info(bench->format)->block_len == 1 ? KV_TURNED : KV_CODE_KEYS;
}

static enum kv_layout values_layout(const struct bench *bench)
{
    return keys_layout(bench) == KV_CODE_KEYS ? KV_CODE_VALUES : KV_ROWS;
}

/* Random keys and values in all pages of a layer, written as a model does. */
static void fill(struct bench *bench, struct device_ref cache, uint32_t n_heads, uint32_t n_cols,
                 enum kv_layout layout)
{
    size_t n = (size_t)PAGE * n_heads * n_cols;
    float *x = malloc(n * sizeof *x);
    int32_t slots[PAGE];
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rng_uniform(1, i, 0) * 2 - 1;
    bench->backend->upload(bench->backend, (struct device_ref){bench->x, 0}, x, n * sizeof *x);
    free(x);
    for (uint32_t page = 0; page < bench->n_ctx / PAGE; page++) {
        for (uint32_t t = 0; t < PAGE; t++)
            slots[t] = (int32_t)(page * PAGE + t);
        bench->backend->upload(bench->backend, (struct device_ref){bench->ints, 0}, slots,
                               sizeof slots);
        bench->backend->run(bench->backend, &(struct op){.kind = OP_KV_STORE,
                                                         .store = {.x = {bench->x, 0},
                                                                   .slots = {bench->ints, 0},
                                                                   .cache = cache,
                                                                   .format = bench->format,
                                                                   .n = PAGE,
                                                                   .n_heads = n_heads,
                                                                   .n_cols = n_cols,
                                                                   .layout = layout}});
    }
}

static void open_layers(struct bench *bench)
{
    const struct shape *shape = bench->shape;
    size_t tokens = (size_t)bench->n_ctx * shape->n_kv_heads;
    size_t q = (size_t)BATCH * shape->n_heads * shape->head_k;
    bench->k_bytes = tokens * quant_row_bytes(bench->format, shape->head_k);
    bench->v_bytes = shape->latent ? 0 : tokens * quant_row_bytes(bench->format, shape->head_v);
    bench->cache = must_alloc(bench, bench->n_layers * (bench->k_bytes + bench->v_bytes));
    bench->x = must_alloc(bench, MAX(q, (size_t)PAGE * shape->n_kv_heads * shape->head_k) * 4);
    bench->y = must_alloc(bench, q * sizeof(float));
    bench->ints = must_alloc(bench, (3 * BATCH + bench->n_ctx) * sizeof(int32_t));
    for (uint32_t l = 0; l < bench->n_layers; l++) {
        size_t at = l * (bench->k_bytes + bench->v_bytes);
        fill(bench, (struct device_ref){bench->cache, at}, shape->n_kv_heads, shape->head_k,
             keys_layout(bench));
        if (!shape->latent)
            fill(bench, (struct device_ref){bench->cache, at + bench->k_bytes}, shape->n_kv_heads,
                 shape->head_v, values_layout(bench));
    }
}

/* The last n tokens of the context in all layers; seconds of the best of several runs. */
static double attend(struct bench *bench, uint32_t n)
{
    const struct shape *shape = bench->shape;
    struct backend *backend = bench->backend;
    int32_t ints[3 * BATCH], page = 0;
    size_t k_row = quant_row_bytes(bench->format, shape->head_k), first = sizeof ints;
    for (uint32_t i = 0; i < n; i++) {
        ints[i] = (int32_t)(bench->n_ctx - n + i);
        ints[BATCH + i] = ints[i] + 1;
        ints[2 * BATCH + i] = 0;
    }
    backend->upload(backend, (struct device_ref){bench->ints, 0}, ints, sizeof ints);
    for (; page < (int32_t)(bench->n_ctx / PAGE); page++)
        backend->upload(backend,
                        (struct device_ref){bench->ints, first + (size_t)page * sizeof page}, &page,
                        sizeof page);
    struct op op = {
        .kind = OP_ATTENTION,
        .attention = {.q = {bench->x, 0},
                      .y = {bench->y, 0},
                      .positions = {bench->ints, 0},
                      .visible = {bench->ints, BATCH * sizeof(int32_t)},
                      .table_begin = {bench->ints, 2 * BATCH * sizeof(int32_t)},
                      .tables = {bench->ints, first},
                      .format = bench->format,
                      .n = n,
                      .n_heads = shape->n_heads,
                      .n_kv_heads = shape->n_kv_heads,
                      .group = shape->n_heads / shape->n_kv_heads,
                      .head_k = shape->head_k,
                      .head_v = shape->head_v,
                      .k_layout = keys_layout(bench),
                      .k_row_bytes = k_row,
                      .v_row_bytes =
                          shape->latent ? k_row : quant_row_bytes(bench->format, shape->head_v),
                      .scale = 1 / sqrtf((float)shape->head_k)}};
    double best = 1e30;
    for (int r = 0; r < REPEATS; r++) {
        uint64_t begin_ns = clock_now_ns();
        for (uint32_t l = 0; l < bench->n_layers; l++) {
            size_t at = l * (bench->k_bytes + bench->v_bytes);
            op.attention.k = (struct device_ref){bench->cache, at};
            op.attention.v = (struct device_ref){bench->cache, at + bench->k_bytes};
            if (shape->latent)
                op.attention.v = op.attention.k;
            backend->run(backend, &op);
        }
        best = fmin(best, seconds_since(begin_ns));
    }
    return best;
}

static void measure(struct bench *bench)
{
    const struct shape *shape = bench->shape;
    open_layers(bench);
    double read = read_rate(&bench->limits), fma = fma_rate(&bench->limits);
    double bytes = (double)(bench->n_layers * (bench->k_bytes + bench->v_bytes));
    double decode = bytes * 1e-9 / attend(bench, 1);
    /* A batch is long enough as it is. */
    uint32_t n_layers = bench->n_layers;
    bench->n_layers = 1;
    double seen = (double)BATCH * (bench->n_ctx - (BATCH - 1) / 2.0);
    double flops = 2 * seen * shape->n_heads * (shape->head_k + shape->head_v);
    double prefill = flops * 1e-9 / attend(bench, BATCH);
    bench->n_layers = n_layers;
    printf("%-14s %-5s %6u | %7.2f %7.2f %4.0f%% | %7.1f %7.1f %4.0f%%\n", shape->name,
           quant_info(bench->format)->name, bench->n_ctx, decode, read, decode / read * 100,
           prefill, fma, prefill / fma * 100);
    fflush(stdout);
    struct device_buffer *buffers[] = {bench->cache, bench->x, bench->y, bench->ints};
    for (size_t i = 0; i < ARRAY_COUNT(buffers); i++)
        bench->backend->free(bench->backend, buffers[i]);
}

int main(int argc, char **argv)
{
    struct error error;
    struct machine machine;
    machine_query(&machine);
    unsigned n_threads = argc > 1 ? (unsigned)atoi(argv[1]) : machine.physical_cores;
    struct bench bench = {.n_layers = argc > 2 ? (uint32_t)atoi(argv[2]) : 16};
    if (quant_init(&error) != STATUS_OK ||
        backend_cpu_open(&bench.backend, n_threads, NULL, &error) != STATUS_OK ||
        pool_open(&bench.limits.pool, n_threads, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    bench.limits.data = pages_alloc(READ_BYTES);
    memset(bench.limits.data, 1, READ_BYTES);
    printf("%s, %u threads; decode: GB/s, read GB/s; prefill of %d: GFLOP/s, FMA GFLOP/s\n",
           quant_isa(), n_threads, BATCH);
    for (size_t s = 0; s < ARRAY_COUNT(shapes); s++)
        for (size_t f = 0; f < ARRAY_COUNT(formats); f++)
            for (size_t c = 0; c < ARRAY_COUNT(contexts); c++) {
                bench.shape = &shapes[s];
                bench.format = formats[f];
                bench.n_ctx = contexts[c];
                measure(&bench);
            }
    pages_free(bench.limits.data, READ_BYTES);
    pool_close(bench.limits.pool);
    bench.backend->close(bench.backend);
    return 0;
}
