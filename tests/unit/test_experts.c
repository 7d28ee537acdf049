/* A product with a matrix for each slot reads the matrices that were chosen and no others: those
 * lie in pages that may not be read. */
#include "model/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define N_EXPERTS 8
#define N_SLOTS 2
#define N_COLS 512
#define MAX_TOKENS 40
#define SEED 3

static float random_float(uint64_t position)
{
    return (float)(rng_uniform(SEED, position, 0) * 2 - 1);
}

/* Experts of whole pages, of which `chosen` may be read. */
struct experts {
    uint8_t *data;
    size_t bytes; /* of one */
    struct device_matrix w;
};

static struct experts experts_open(struct backend *backend, enum quant_format format,
                                   const bool *chosen)
{
    struct experts e;
    size_t row_bytes = quant_row_bytes(format, N_COLS), page = (size_t)sysconf(_SC_PAGESIZE);
    uint32_t n_rows = (uint32_t)page;
    e.bytes = n_rows * row_bytes;
    e.data =
        mmap(NULL, N_EXPERTS * e.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(e.data != MAP_FAILED);
    float row[N_COLS];
    for (size_t m = 0; m < N_EXPERTS; m++) {
        for (size_t c = 0; c < N_COLS; c++)
            row[c] = random_float(m * N_COLS + c);
        quant_encode(format, row, e.data + m * e.bytes, N_COLS, NULL);
        for (size_t r = 1; r < n_rows; r++)
            memcpy(e.data + m * e.bytes + r * row_bytes, e.data + m * e.bytes, row_bytes);
        if (!chosen[m])
            assert_int_equal(mprotect(e.data + m * e.bytes, e.bytes, PROT_NONE), 0);
    }
    e.w = (struct device_matrix){
        .data = {backend->map(backend, e.data, N_EXPERTS * e.bytes), 0},
        .format = format,
        .row_bytes = row_bytes,
        .matrix_bytes = e.bytes,
        .n_rows = n_rows,
        .n_cols = N_COLS,
        .n_matrices = N_EXPERTS,
    };
    assert_non_null(e.w.data.buffer);
    return e;
}

/* y of n tokens, whose choices are in ids, is the product with the decoded row of its expert. */
static void check_products(struct backend *backend, const struct experts *e, const int32_t *ids,
                           uint32_t n)
{
    size_t n_x = (size_t)n * N_COLS, n_y = (size_t)n * N_SLOTS * e->w.n_rows;
    float *x = calloc(n_x, sizeof *x), *y = calloc(n_y, sizeof *y), row[N_COLS];
    struct device_ref dx = {backend->alloc(backend, n_x * sizeof *x), 0};
    struct device_ref dy = {backend->alloc(backend, n_y * sizeof *y), 0};
    struct device_ref di = {backend->alloc(backend, n * N_SLOTS * sizeof *ids), 0};
    assert_true(x != NULL && y != NULL && dx.buffer != NULL && dy.buffer != NULL &&
                di.buffer != NULL);
    for (size_t i = 0; i < n_x; i++)
        x[i] = random_float(100000 + i);
    backend->upload(backend, dx, x, n_x * sizeof *x);
    backend->upload(backend, di, ids, n * N_SLOTS * sizeof *ids);
    backend->run(backend, &(struct op){.kind = OP_MATMUL_EACH,
                                       .each = {.w = e->w,
                                                .x = dx,
                                                .y = dy,
                                                .ids = di,
                                                .n = n,
                                                .n_slots = N_SLOTS,
                                                .x_stride = N_COLS,
                                                .y_stride = e->w.n_rows,
                                                .x_shared = true}});
    assert_int_equal(backend->download(backend, y, dy, n_y * sizeof *y), STATUS_OK);
    for (size_t pair = 0; pair < (size_t)n * N_SLOTS; pair++) {
        double expected = 0;
        quant_decode(e->w.format, e->data + (size_t)ids[pair] * e->bytes, row, N_COLS);
        for (size_t c = 0; c < N_COLS; c++)
            expected += (double)row[c] * x[pair / N_SLOTS * N_COLS + c];
        for (size_t r = 0; r < e->w.n_rows; r++)
            assert_float_equal(y[pair * e->w.n_rows + r], expected, 0.2);
    }
    backend->free(backend, dx.buffer);
    backend->free(backend, dy.buffer);
    backend->free(backend, di.buffer);
    free(x);
    free(y);
}

static void check_format(enum quant_format format)
{
    static const bool chosen[N_EXPERTS] = {[1] = true, [4] = true, [7] = true};
    static const int32_t choices[] = {1, 4, 7};
    struct backend *backend;
    struct error error;
    int32_t ids[MAX_TOKENS * N_SLOTS];
    assert_int_equal(backend_cpu_open(&backend, 2, NULL, &error), STATUS_OK);
    struct experts e = experts_open(backend, format, chosen);
    for (size_t i = 0; i < MAX_TOKENS; i++) {
        ids[N_SLOTS * i] = choices[i % 3];
        ids[N_SLOTS * i + 1] = choices[(i + 1) % 3];
    }
    check_products(backend, &e, ids, 1);
    check_products(backend, &e, ids, MAX_TOKENS);
    backend->free(backend, e.w.data.buffer);
    backend->close(backend);
    munmap(e.data, N_EXPERTS * e.bytes);
}

static void test_experts_others_not_read(void **state)
{
    (void)state;
    struct error error;
    assert_int_equal(quant_init(&error), STATUS_OK);
    check_format(QUANT_Q4_K);
    check_format(QUANT_Q8_0);
    check_format(QUANT_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_experts_others_not_read)};
    return cmocka_run_group_tests_name("experts", tests, NULL, NULL);
}
