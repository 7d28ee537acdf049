/* Rates of the matrix products on one thread, by format and instruction set, against a plain read
 * of the same weights measured between them.
 *
 *   build/bench/kernels [MEGABYTES [FORMAT...]]     weights of each product (default 64)
 *
 * A line a format and instruction set: the relative difference to the scalar kernels, then for each
 * number of inputs GB/s of weights, its share of the read rate, and billions of products a second.
 * The same for one input where only the first half of each row is read, as by a rank whose columns
 * lie in a whole file (apart). Where the CPU has a matrix unit, a line more: billions of products a
 * second of the panels, and their share of a bare loop of its products.
 */
#include "quant/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define N_COLS 4096
#define MAX_INPUTS 512
#define REPEATS 5

static const size_t inputs[] = {1, 2, 4, 8, 16, 32, 512};

struct weights {
    struct quant_matrix w;
    uint8_t *data;
    size_t size;
};

/* Encoded noise where the format has an encoder, else bytes whose F16 fields are small numbers. */
static void fill(struct weights *m)
{
    const struct quant_info *info = quant_info(m->w.format);
    size_t distinct = MIN(m->w.n_rows, (size_t)16);
    float *row = malloc(N_COLS * sizeof *row);
    for (size_t r = 0; r < m->w.n_rows; r++) {
        uint8_t *to = m->data + r * m->w.row_bytes;
        if (r >= distinct) {
            memcpy(to, m->data + r % distinct * m->w.row_bytes, m->w.row_bytes);
            continue;
        }
        for (size_t c = 0; c < N_COLS; c++)
            row[c] = (float)rng_uniform(1, r * N_COLS + c, 0) - 0.5f;
        if (info->can_encode)
            quant_encode(m->w.format, row, to, N_COLS, NULL);
        else
            memset(to, 0x21, m->w.row_bytes);
    }
    free(row);
}

/* Processor time of this thread, so that other processes on the machine count little. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* GB/s of reading all weights. */
static double read_rate(const struct weights *m)
{
    typedef uint64_t wide __attribute__((vector_size(64)));
    static volatile uint64_t sink;
    const wide *from = (const wide *)m->data;
    wide a = {0}, b = {0};
    double start = now();
    for (size_t i = 0; i + 2 <= m->size / sizeof *from; i += 2) {
        a += from[i];
        b += from[i + 1];
    }
    double end = now();
    a += b;
    for (int k = 0; k < 8; k++)
        sink = sink + a[k];
    return (double)m->size / (end - start) * 1e-9;
}

static double difference(const float *a, const float *b, size_t n)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(error / (size + 1e-300));
}

struct buffers {
    float *x, *y, *expected;
    uint8_t *packed;
};

/* Billions of products a second of a bare loop. */
static double bare_rate(const struct kernel_set *set, enum quant_format format)
{
    _Alignas(64) static uint8_t data[PEAK_BYTES];
    bool floats = format == QUANT_F32 || format == QUANT_F16 || format == QUANT_BF16;
    double start = now();
    uint64_t products = (floats ? set->peak_floats : set->peak_codes)(data, 2000);
    return (double)products / (now() - start) * 1e-9;
}

static void measure(const struct kernel_set *set, const struct weights *m, struct buffers *b)
{
    size_t n_rows = m->w.n_rows, check_rows = MIN(n_rows, (size_t)16);
    kernels_scalar.matmul[m->w.format](&m->w, 0, check_rows, b->packed, 1, b->expected, n_rows);
    set->matmul[m->w.format](&m->w, 0, check_rows, b->packed, 1, b->y, n_rows);
    double limit = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++)
        limit = fmax(limit, bare_rate(set, m->w.format));
    printf("%-7s %-7s %7.1e %6.1f", quant_info(m->w.format)->name, set->name,
           difference(b->y, b->expected, check_rows), limit);
    for (size_t i = 0; i < ARRAY_COUNT(inputs); i++) {
        /* Much arithmetic needs fewer rows to be measured. */
        size_t rows = inputs[i] <= 4 ? n_rows : MAX(n_rows * 8 / inputs[i], 4 * check_rows);
        double best = 0, read = 0;
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            read = fmax(read, read_rate(m));
            double start = now();
            set->matmul[m->w.format](&m->w, 0, rows, b->packed, inputs[i], b->y, n_rows);
            best = fmax(best, (double)(rows * m->w.row_bytes) / (now() - start) * 1e-9);
        }
        double products = best / (double)m->w.row_bytes * N_COLS * (double)inputs[i];
        printf(" | %6.2f %3.0f%% %6.1f %3.0f%%", best, best / read * 100, products,
               products / limit * 100);
    }
    struct quant_matrix half = m->w;
    half.n_cols = N_COLS / 2;
    double apart = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double start = now();
        set->matmul[half.format](&half, 0, n_rows, b->packed, 1, b->y, n_rows);
        apart = fmax(apart, (double)(n_rows * half.row_bytes / 2) / (now() - start) * 1e-9);
    }
    printf(" | apart %.2f\n", apart);
    fflush(stdout);
}

static void measure_panels(const struct weights *m, struct buffers *b)
{
    static const size_t many[] = {64, 192, 512};
    enum quant_packing packing = quant_packing(m->w.format, many[0]);
    if (packing != QUANT_PACKED_BF16)
        return;
    size_t packed_bytes = quant_packed_bytes(packing, N_COLS);
    uint8_t *packed = pages_alloc(MAX_INPUTS * packed_bytes);
    printf("%-7s %-7s        ", quant_info(m->w.format)->name, quant_isa());
    for (size_t i = 0; i < ARRAY_COUNT(many); i++) {
        size_t rows = MIN(m->w.n_rows, (size_t)1024);
        double best = 0, limit = 0;
        for (size_t k = 0; k < many[i]; k++)
            quant_pack(packing, b->x, N_COLS, packed, k, many[i]);
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            double start = now();
            uint64_t products = quant_peak(m->w.format, 2000);
            limit = fmax(limit, (double)products / (now() - start) * 1e-9);
            start = now();
            quant_matmul(&m->w, packing, 0, rows, packed, many[i], b->y, m->w.n_rows);
            best = fmax(best, (double)(rows * N_COLS * many[i]) / (now() - start) * 1e-9);
        }
        printf(" | x%zu %.1f G/s %.0f%% of %.0f", many[i], best, best / limit * 100, limit);
    }
    printf("\n");
    pages_free(packed, MAX_INPUTS * packed_bytes);
}

static void measure_format(enum quant_format format, size_t size)
{
    struct weights m = {.w = {.format = format, .n_cols = N_COLS}};
    struct buffers b;
    const struct kernel_set *set;
    m.w.row_bytes = quant_row_bytes(format, N_COLS);
    m.w.n_rows = size / m.w.row_bytes;
    m.size = m.w.n_rows * m.w.row_bytes;
    m.w.data = m.data = pages_alloc(m.size);
    size_t packed_bytes = quant_packed_bytes(quant_packing(format, 1), N_COLS);
    b.x = pages_alloc(N_COLS * sizeof(float));
    b.y = pages_alloc(MAX_INPUTS * m.w.n_rows * sizeof(float));
    b.expected = pages_alloc(m.w.n_rows * sizeof(float));
    b.packed = pages_alloc(MAX_INPUTS * packed_bytes);
    fill(&m);
    for (size_t c = 0; c < N_COLS; c++)
        b.x[c] = (float)rng_uniform(2, c, 0) - 0.5f;
    for (size_t i = 0; i < MAX_INPUTS; i++)
        quant_pack(quant_packing(format, 1), b.x, N_COLS, b.packed, i, MAX_INPUTS);
    for (size_t s = 0; (set = kernels_at(s)) != NULL; s++)
        if (set != &kernels_scalar && kernels_find(set->name, NULL) != NULL)
            measure(set, &m, &b);
    measure_panels(&m, &b);
    pages_free(m.data, m.size);
    pages_free(b.x, N_COLS * sizeof(float));
    pages_free(b.y, MAX_INPUTS * m.w.n_rows * sizeof(float));
    pages_free(b.expected, m.w.n_rows * sizeof(float));
    pages_free(b.packed, MAX_INPUTS * packed_bytes);
}

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) << 20;
    struct error error;
    if (quant_init(&error) != STATUS_OK || size == 0) {
        fprintf(stderr, "usage: kernels [MEGABYTES [FORMAT...]]\n");
        return 2;
    }
    printf("format  set     differs  limit");
    for (size_t i = 0; i < ARRAY_COUNT(inputs); i++)
        printf(" | x%-3zu GB/s read G/s lim.", inputs[i]);
    printf("\n");
    for (int format = 0; format < QUANT_FORMAT_COUNT; format++) {
        bool wanted = argc <= 2;
        for (int i = 2; i < argc; i++)
            wanted |= strcmp(argv[i], quant_info(format)->name) == 0;
        if (wanted)
            measure_format(format, size);
    }
    return 0;
}
