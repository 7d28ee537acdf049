/* The machine's limits: plain reading of memory, and the bare instructions that products rest
 * on. */
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

#define PROBE_BYTES ((size_t)1 << 30) /* larger than any cache */
#define PROBE_MIN_BYTES ((size_t)64 << 20)
#define PEAK_NS 2000000u /* of a call of the bare loop */
#define PEAK_ROUNDS 5

/* ---- Read bandwidth -------------------------------------------------------------------------- */

struct bench_probe {
    struct pool *pool;
    uint64_t *data;
    size_t bytes;
    uint64_t sums[1024]; /* by thread, so that the reading is not optimised away */
};

static void probe_write(void *context, unsigned thread, size_t begin, size_t end)
{
    (void)thread;
    uint64_t *data = context;
    for (size_t i = begin; i < end; i++)
        data[i] = i;
}

static void probe_read(void *context, unsigned thread, size_t begin, size_t end)
{
    struct bench_probe *probe = context;
    const uint64_t *data = probe->data;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    size_t i = begin;
    for (; i + 8 <= end; i += 8) {
        a += data[i] ^ data[i + 4];
        b += data[i + 1] ^ data[i + 5];
        c += data[i + 2] ^ data[i + 6];
        d += data[i + 3] ^ data[i + 7];
    }
    for (; i < end; i++)
        a += data[i];
    probe->sums[thread] += a + b + c + d;
}

struct bench_probe *bench_probe_open(unsigned n_threads, uint64_t model_bytes)
{
    struct error error;
    struct machine machine;
    machine_query(&machine);
    struct bench_probe *probe = calloc(1, sizeof *probe);
    if (probe == NULL)
        return NULL;
    /* Not larger than the model, so that the measurement is not what takes the most memory. */
    size_t bytes =
        (size_t)MIN(MIN((uint64_t)PROBE_BYTES, model_bytes), machine.memory_free_bytes / 4);
    probe->bytes = MAX(bytes, PROBE_MIN_BYTES) & ~(size_t)4095;
    probe->data = pages_alloc(probe->bytes);
    if (probe->data == NULL || pool_open(&probe->pool, n_threads, &error) != STATUS_OK) {
        bench_probe_close(probe);
        return NULL;
    }
    pool_run(probe->pool, probe_write, probe->data, probe->bytes / sizeof *probe->data, 1 << 18);
    return probe;
}

void bench_probe_close(struct bench_probe *probe)
{
    if (probe == NULL)
        return;
    pool_close(probe->pool);
    if (probe->data != NULL)
        pages_free(probe->data, probe->bytes);
    free(probe);
}

double bench_probe_read(struct bench_probe *probe)
{
    if (probe == NULL)
        return 0;
    size_t n = probe->bytes / sizeof *probe->data;
    /* In pieces of 256 KiB and of 2 MiB, and each thread in one piece. */
    const size_t chunks[] = {1 << 15, 1 << 18, n / pool_threads(probe->pool) + 1};
    double best = 0;
    for (size_t i = 0; i < ARRAY_COUNT(chunks) && !cli_interrupted(); i++) {
        uint64_t begin_ns = clock_now_ns();
        pool_run(probe->pool, probe_read, probe, n, chunks[i]);
        best = MAX(best, (double)probe->bytes * 1e9 / (double)(clock_now_ns() - begin_ns));
    }
    return best;
}

/* ---- Arithmetic ------------------------------------------------------------------------------ */

struct peak {
    enum quant_format format;
    size_t rounds;
    uint64_t products[1024]; /* by thread */
};

static void peak_run(void *context, unsigned thread, size_t begin, size_t end)
{
    struct peak *peak = context;
    for (size_t i = begin; i < end; i++)
        peak->products[thread] += quant_peak(peak->format, peak->rounds);
}

/* Products a second of the bare loop on all threads, the best of several; 0 without memory. */
static double measure_peak(unsigned n_threads, enum quant_format format)
{
    struct error error;
    struct pool *pool = NULL;
    double best = 0;
    struct peak *peak = calloc(1, sizeof *peak);
    if (peak != NULL && pool_open(&pool, n_threads, &error) == STATUS_OK) {
        uint64_t spent_ns = 0;
        peak->format = format;
        for (peak->rounds = 16; spent_ns < PEAK_NS; peak->rounds *= 2) {
            uint64_t begin_ns = clock_now_ns();
            quant_peak(format, peak->rounds);
            spent_ns = clock_now_ns() - begin_ns;
        }
        for (int i = 0; i < PEAK_ROUNDS; i++) {
            uint64_t total = 0, begin_ns = clock_now_ns();
            memset(peak->products, 0, sizeof peak->products);
            pool_run(pool, peak_run, peak, (size_t)n_threads * 8, 1);
            spent_ns = clock_now_ns() - begin_ns;
            for (unsigned t = 0; t < n_threads; t++)
                total += peak->products[t];
            best = MAX(best, (double)total * 1e9 / (double)spent_ns);
        }
    }
    pool_close(pool);
    free(peak);
    return best;
}

/* ---- Products with a prompt ------------------------------------------------------------------ */

#define PRODUCT_COLS 2048
#define PRODUCT_INPUTS 512
#define PRODUCT_ROUNDS 5
#define PRODUCT_NS 300000000u /* no further round after it */

struct product {
    struct quant_matrix w;
    enum quant_packing packing;
    const void *packed;
    float *y;
};

static void product_run(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct product *product = context;
    (void)thread;
    size_t step = quant_row_step(product->packing);
    quant_matmul(&product->w, product->packing, begin * step, MIN(end * step, product->w.n_rows),
                 product->packed, PRODUCT_INPUTS, product->y, product->w.n_rows);
}

/* Zeros take as long as other numbers. */
double bench_product_rate(unsigned n_threads, enum quant_format format)
{
    struct error error;
    struct pool *pool = NULL;
    struct product product = {.packing = quant_packing(format, PRODUCT_INPUTS)};
    size_t rows = MAX((size_t)n_threads * 512, 2048), step = quant_row_step(product.packing);
    rows = (rows + step - 1) / step * step;
    product.w = (struct quant_matrix){
        .format = format,
        .row_bytes = quant_row_bytes(format, PRODUCT_COLS),
        .n_rows = rows,
        .n_cols = PRODUCT_COLS,
    };
    size_t packed_bytes = PRODUCT_INPUTS * quant_packed_bytes(product.packing, PRODUCT_COLS);
    size_t y_bytes = rows * PRODUCT_INPUTS * sizeof *product.y;
    void *weights = pages_alloc(rows * product.w.row_bytes), *packed = pages_alloc(packed_bytes);
    product.w.data = weights;
    product.packed = packed;
    product.y = pages_alloc(y_bytes);
    double best = 0;
    if (weights != NULL && packed != NULL && product.y != NULL &&
        pool_open(&pool, n_threads, &error) == STATUS_OK) {
        uint64_t first_ns = clock_now_ns();
        for (int i = 0; i < PRODUCT_ROUNDS && clock_now_ns() - first_ns < PRODUCT_NS; i++) {
            uint64_t begin_ns = clock_now_ns();
            pool_run(pool, product_run, &product, rows / step, 1);
            double products = (double)rows * PRODUCT_COLS * PRODUCT_INPUTS;
            best = MAX(best, products * 1e9 / (double)(clock_now_ns() - begin_ns));
        }
    }
    pool_close(pool);
    if (weights != NULL)
        pages_free(weights, rows * product.w.row_bytes);
    if (packed != NULL)
        pages_free(packed, packed_bytes);
    if (product.y != NULL)
        pages_free(product.y, y_bytes);
    return best;
}

struct bench_limits bench_measure_limits(const struct engine *engine, struct bench_probe *probe)
{
    unsigned n_threads = model_n_threads(engine->model);
    return (struct bench_limits){
        .bytes = bench_probe_read(probe),
        .codes = measure_peak(n_threads, QUANT_Q8_0),
        .floats = measure_peak(n_threads, QUANT_F32),
    };
}
