/* Every instruction set against the scalar one, bit for bit, and that one against a plain product
 * of decoded weights in double precision. */
#include "quant/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_ROWS 11
#define MAX_INPUTS 70
#define SEED 2

static const enum quant_format row_formats[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0};

/* Numbers of one test, each at its own position. */
static uint64_t position;

static float random_float(void)
{
    return (float)(rng_uniform(SEED, position++, 0) * 2 - 1);
}

/* Of just this size, so that sanitizers see a read past the end. */
static void *must_alloc(size_t size)
{
    void *memory = NULL;
    assert_int_equal(posix_memalign(&memory, 64, size), 0);
    assert_non_null(memory);
    return memory;
}

/* The F16 fields of a block by format; all other bytes may have any value. */
static const struct {
    enum quant_format format;
    size_t offsets[2];
    size_t count;
} halves[] = {
    {QUANT_Q4_0, {0}, 1},
    {QUANT_Q4_1, {0, 2}, 2},
    {QUANT_Q5_0, {0}, 1},
    {QUANT_Q5_1, {0, 2}, 2},
    {QUANT_Q8_0, {0}, 1},
    {QUANT_Q2_K, {offsetof(struct block_q2_k, d), offsetof(struct block_q2_k, dmin)}, 2},
    {QUANT_Q3_K, {offsetof(struct block_q3_k, d)}, 1},
    {QUANT_Q4_K, {0, 2}, 2},
    {QUANT_Q5_K, {0, 2}, 2},
    {QUANT_Q6_K, {offsetof(struct block_q6_k, d)}, 1},
    {QUANT_IQ4_NL, {0}, 1},
    {QUANT_IQ4_XS, {0}, 1},
    {QUANT_TQ1_0, {offsetof(struct block_tq1_0, d)}, 1},
    {QUANT_TQ2_0, {offsetof(struct block_tq2_0, d)}, 1},
};

/* Random bytes with finite scales. */
static void fill_rows(enum quant_format format, uint8_t *data, size_t size)
{
    const struct quant_info *info = quant_info(format);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)rng_u64(SEED, position++, 1);
    for (size_t at = 0; at < size; at += info->block_bytes) {
        uint8_t *block = data + at;
        float value = random_float();
        uint16_t bits = format == QUANT_BF16 ? block_f32_to_bf16(value) : block_f32_to_f16(value);
        if (format == QUANT_F32)
            memcpy(block, &value, sizeof value);
        else if (info->block_len == 1)
            memcpy(block, &bits, sizeof bits);
        else if (format == QUANT_MXFP4)
            *block = (uint8_t)(*block < 4 ? *block : 120 + *block % 16);
        for (size_t h = 0; h < ARRAY_COUNT(halves); h++)
            for (size_t i = 0; halves[h].format == format && i < halves[h].count; i++) {
                bits = block_f32_to_f16(random_float());
                memcpy(block + halves[h].offsets[i], &bits, sizeof bits);
            }
    }
}

struct problem {
    struct quant_matrix w;
    uint8_t *weights;
    float *x;     /* [MAX_INPUTS, n_cols] */
    void *packed; /* by the scalar kernels */
    size_t packed_bytes;
    float *expected; /* [MAX_INPUTS, MAX_ROWS], by the scalar kernels */
};

static void pack_inputs(const struct kernel_set *set, const struct problem *p, void *packed)
{
    for (size_t i = 0; i < MAX_INPUTS; i++) {
        uint8_t *row = (uint8_t *)packed + i * p->packed_bytes;
        const float *x = p->x + i * p->w.n_cols;
        if (p->w.format == QUANT_F32 || p->w.format == QUANT_F16 || p->w.format == QUANT_BF16)
            quant_pack(QUANT_PACKED_FLOAT, x, p->w.n_cols, row, 0, 1);
        else
            set->pack(x, (struct packed_unit *)row, p->w.n_cols);
    }
}

static struct problem problem_open(enum quant_format format, size_t n_cols)
{
    struct problem p = {.w = {.format = format, .n_rows = MAX_ROWS, .n_cols = n_cols}};
    size_t row_bytes = quant_row_bytes(format, n_cols);
    p.w.row_bytes = row_bytes;
    p.weights = must_alloc(row_bytes * MAX_ROWS);
    p.w.data = p.weights;
    fill_rows(format, p.weights, row_bytes * MAX_ROWS);
    p.x = must_alloc(MAX_INPUTS * n_cols * sizeof(float));
    for (size_t i = 0; i < MAX_INPUTS * n_cols; i++)
        p.x[i] = random_float() * (i % 37 == 0 ? 20.0f : 1.0f);
    memset(p.x, 0, MIN(n_cols, (size_t)32) * sizeof(float)); /* a block of zeros */
    p.packed_bytes = quant_packed_bytes(quant_packing(format, 1), n_cols);
    assert_int_equal(p.packed_bytes % 64, 0);
    p.packed = must_alloc(MAX_INPUTS * p.packed_bytes);
    pack_inputs(&kernels_scalar, &p, p.packed);
    p.expected = must_alloc(MAX_INPUTS * MAX_ROWS * sizeof(float));
    kernels_scalar.matmul[format](&p.w, 0, MAX_ROWS, p.packed, MAX_INPUTS, p.expected, MAX_ROWS);
    return p;
}

static void problem_close(struct problem *p)
{
    free(p->weights);
    free(p->packed);
    free(p->x);
    free(p->expected);
}

/* The i-th length to test: odd ones for formats that allow them. */
static size_t test_length(enum quant_format format, size_t i)
{
    static const size_t numbers[] = {1, 31, 32, 172, 333}, blocks[] = {1, 3, 8, 9, 23},
                        supers[] = {1, 2, 3, 5, 9};
    size_t len = quant_info(format)->block_len;
    return len == 1 ? numbers[i] : len * (len == BLOCK_LEN ? blocks[i] : supers[i]);
}
#define LENGTHS 5

/* The next instruction set that this machine can run, from *index on; NULL after the last. Those it
 * cannot run are named once, by the first test that meets them. */
static const struct kernel_set *next_set(size_t *index)
{
    const struct kernel_set *set;
    static bool named[8];
    while ((set = kernels_at(*index)) != NULL) {
        size_t i = (*index)++;
        struct error error;
        if (kernels_find(set->name, &error) != NULL)
            return set;
        if (!named[i])
            printf("# not tested here: %s\n", error.text);
        named[i] = true;
    }
    return NULL;
}

static void check_equal(const struct kernel_set *set, const struct problem *p, const float *y,
                        size_t row_begin, size_t row_end, size_t n_inputs)
{
    for (size_t i = 0; i < n_inputs; i++)
        for (size_t r = row_begin; r < row_end; r++) {
            float found = y[i * MAX_ROWS + r], expected = p->expected[i * MAX_ROWS + r];
            if (memcmp(&found, &expected, sizeof found) != 0)
                fail_msg("%s %s: %zu columns, rows %zu to %zu, %zu inputs: "
                         "row %zu, input %zu is %.9g, not %.9g",
                         set->name, quant_info(p->w.format)->name, p->w.n_cols, row_begin, row_end,
                         n_inputs, r, i, (double)found, (double)expected);
        }
}

/* All instruction sets, row ranges and numbers of inputs give the same bits. */
static void test_matmul_same_everywhere(void **state)
{
    (void)state;
    static const size_t ranges[][2] = {{0, MAX_ROWS}, {0, 1}, {1, 6}, {3, 10}};
    static const size_t inputs[] = {1, 2, 3, 4, 5, 7, 16, 64, 65, MAX_INPUTS};
    float y[MAX_INPUTS * MAX_ROWS];
    for (int format = 0; format < QUANT_FORMAT_COUNT; format++)
        for (size_t l = 0; l < LENGTHS; l++) {
            struct problem p = problem_open(format, test_length(format, l));
            void *packed = must_alloc(MAX_INPUTS * p.packed_bytes);
            const struct kernel_set *set;
            for (size_t s = 0; (set = next_set(&s)) != NULL;) {
                pack_inputs(set, &p, packed);
                assert_memory_equal(packed, p.packed, MAX_INPUTS * p.packed_bytes);
                for (size_t i = 0; i < ARRAY_COUNT(ranges) * ARRAY_COUNT(inputs); i++) {
                    size_t begin = ranges[i % 4][0], end = ranges[i % 4][1], n = inputs[i / 4];
                    memset(y, 0xFF, sizeof y);
                    set->matmul[format](&p.w, begin, end, packed, n, y, MAX_ROWS);
                    check_equal(set, &p, y, begin, end, n);
                }
            }
            free(packed);
            problem_close(&p);
        }
}

/* The packed activations as numbers. */
static void unpack_input(const struct problem *p, size_t input, float *x)
{
    const uint8_t *row = (const uint8_t *)p->packed + input * p->packed_bytes;
    if (quant_info(p->w.format)->block_len == 1) {
        memcpy(x, row, p->w.n_cols * sizeof *x);
        return;
    }
    const struct packed_unit *unit = (const struct packed_unit *)row;
    for (size_t i = 0; i < p->w.n_cols; i++)
        x[i] = unit[i / UNIT_LEN].scale[BLOCK_LANE(i % UNIT_LEN / 32)] *
               (float)unit[i / UNIT_LEN].code[UNIT_CODE(i % UNIT_LEN)];
}

/* The scalar kernels compute the product of decoded weights and packed activations. */
static void test_matmul_scalar_exact(void **state)
{
    (void)state;
    for (int format = 0; format < QUANT_FORMAT_COUNT; format++)
        for (size_t l = 0; l < LENGTHS; l++) {
            struct problem p = problem_open(format, test_length(format, l));
            size_t n_cols = p.w.n_cols;
            float *weights = must_alloc(n_cols * sizeof(float)),
                  *x = must_alloc(n_cols * sizeof(float));
            for (size_t r = 0; r < MAX_ROWS; r++)
                for (size_t i = 0; i < MAX_INPUTS; i++) {
                    quant_decode(format, p.weights + r * p.w.row_bytes, weights, n_cols);
                    unpack_input(&p, i, x);
                    double sum = 0, size = 0;
                    for (size_t c = 0; c < n_cols; c++) {
                        sum += (double)weights[c] * x[c];
                        size += fabs((double)weights[c] * x[c]);
                    }
                    /* Minima cancel against the codes, so terms are larger than their sum. */
                    double found = p.expected[i * MAX_ROWS + r];
                    if (!(fabs(found - sum) <= 2e-6 * size + 1e-9))
                        fail_msg("%s, %zu columns: %.9g, not %.9g", quant_info(format)->name,
                                 n_cols, found, sum);
                }
            free(weights);
            free(x);
            problem_close(&p);
        }
}

/* An activation is off by at most half a step of its 32's scale, a 127th of the largest. */
static void test_pack_error(void **state)
{
    (void)state;
    struct problem p = problem_open(QUANT_Q8_0, 288);
    for (size_t i = 0; i < MAX_INPUTS; i++) {
        float found[288];
        unpack_input(&p, i, found);
        for (size_t begin = 0; begin < 288; begin += 32) {
            const float *x = p.x + i * 288 + begin;
            float largest = 0;
            for (size_t c = 0; c < 32; c++)
                largest = fmaxf(largest, fabsf(x[c]));
            for (size_t c = 0; c < 32; c++)
                assert_true(fabsf(found[begin + c] - x[c]) <= largest / 127 * 0.50001f);
        }
    }
    problem_close(&p);
}

static void test_pack_tiny_and_zero(void **state)
{
    (void)state;
    float x[64] = {0};
    struct packed_unit packed;
    const struct kernel_set *set;
    for (size_t i = 32; i < 64; i++)
        x[i] = 1e-40f * (float)i;
    for (size_t s = 0; (set = next_set(&s)) != NULL;) {
        memset(&packed, 0xFF, sizeof packed);
        set->pack(x, &packed, 64);
        for (size_t i = 0; i < 256; i++)
            assert_int_equal(packed.code[i], 0);
        for (size_t b = 0; b < UNIT_BLOCKS; b++) {
            assert_true(packed.scale[b] == 0);
            for (size_t part = 0; part < 3; part++)
                assert_int_equal(packed.sum[part][b], 0);
        }
    }
}

/* Cached rows widened and turned by every set are what decoding gives. */
static void check_rows(enum quant_format format, size_t n_cols, size_t n_rows)
{
    size_t row_bytes = quant_row_bytes(format, n_cols), wide = QUANT_WIDENED(n_cols);
    size_t stride = (n_rows + 15) / 16 * 16 + 3, n = wide * stride;
    uint8_t *rows = must_alloc(row_bytes * n_rows);
    float *expected = calloc(n_rows * wide, sizeof *expected);
    float *found = must_alloc(n * sizeof *found);
    struct quant_matrix matrix = {format, rows, row_bytes, n_rows, n_cols};
    const struct kernel_set *set;
    assert_non_null(expected);
    fill_rows(format, rows, row_bytes * n_rows);
    for (size_t r = 0; r < n_rows; r++)
        quant_decode(format, rows + r * row_bytes, expected + r * wide, n_cols);
    for (size_t s = 0; (set = next_set(&s)) != NULL;) {
        memset(found, 0xFF, n * sizeof *found);
        set->widen_rows[format](&matrix, found, 0);
        if (memcmp(found, expected, n_rows * wide * sizeof *found) != 0)
            fail_msg("%s %s: %zu rows of %zu widened", set->name, quant_info(format)->name, n_rows,
                     n_cols);
        set->turn_rows[format](&matrix, found, stride);
        for (size_t r = 0; r < stride - 3; r++)
            for (size_t c = 0; c < wide; c++)
                if (found[c * stride + r] != expected[MIN(r, n_rows - 1) * wide + c])
                    fail_msg("%s %s: %zu rows of %zu turned", set->name, quant_info(format)->name,
                             n_rows, n_cols);
    }
    free(rows);
    free(expected);
    free(found);
}

#define SUM_INPUTS 6

/* Sums of rows: every set and number of inputs against fused multiply-adds in order. */
static void check_sums(enum quant_format format, size_t n_rows, size_t n_cols)
{
    size_t row_bytes = quant_row_bytes(format, n_cols) + 34; /* others lie between */
    size_t weight_stride = n_rows + 3, y_stride = n_cols + 1;
    uint8_t *rows = must_alloc(n_rows * row_bytes);
    float *row = must_alloc(n_cols * sizeof(float));
    float *weight = must_alloc(SUM_INPUTS * weight_stride * sizeof(float));
    float *y = must_alloc(SUM_INPUTS * y_stride * sizeof(float));
    float *expected = must_alloc(SUM_INPUTS * y_stride * sizeof(float));
    for (size_t r = 0; r < n_rows; r++)
        fill_rows(format, rows + r * row_bytes, row_bytes - 34);
    for (size_t i = 0; i < SUM_INPUTS * weight_stride; i++)
        weight[i] = random_float();
    const struct kernel_set *set;
    for (size_t s = 0; (set = next_set(&s)) != NULL;)
        for (size_t n = 1; n <= 2 * SUM_INPUTS; n++) {
            struct quant_sums sums = {.rows = {format, rows, row_bytes, n_rows, n_cols},
                                      .weight = weight,
                                      .y = y,
                                      .weight_stride = weight_stride,
                                      .y_stride = y_stride,
                                      .n_inputs = (n + 1) / 2,
                                      .from_zero = n % 2 == 0,
                                      .next = n == 3 ? rows : NULL};
            for (size_t i = 0; i < SUM_INPUTS * y_stride; i++)
                expected[i] = y[i] = random_float();
            for (size_t i = 0; i < sums.n_inputs; i++)
                for (size_t c = 0; c < n_cols && sums.from_zero; c++)
                    expected[i * y_stride + c] = 0;
            for (size_t r = 0; r < n_rows; r++) {
                quant_decode(format, rows + r * row_bytes, row, n_cols);
                for (size_t i = 0; i < sums.n_inputs; i++)
                    for (size_t c = 0; c < n_cols; c++)
                        expected[i * y_stride + c] =
                            fmaf(row[c], weight[i * weight_stride + r], expected[i * y_stride + c]);
            }
            set->add_rows[format](&sums);
            if (memcmp(y, expected, SUM_INPUTS * y_stride * sizeof(float)) != 0)
                fail_msg("%s %s: %zu rows of %zu, %zu inputs", set->name, quant_info(format)->name,
                         n_rows, n_cols, sums.n_inputs);
        }
    void *all[] = {rows, row, weight, y, expected};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        free(all[i]);
}

static void test_sums_same_everywhere(void **state)
{
    (void)state;
    static const size_t lengths[] = {32, 64, 96, 128, 160}, rows[] = {1, 2, 5, 40};
    for (size_t f = 0; f < ARRAY_COUNT(row_formats); f++)
        for (size_t l = 0; l < ARRAY_COUNT(lengths); l++)
            for (size_t r = 0; r < ARRAY_COUNT(rows); r++)
                check_sums(row_formats[f], rows[r], lengths[l]);
}

/* ---- Pages of codes ---- */

/* What a page is filled with, row by row; only its first n_rows rows, the others are NaN. */
struct page_problem {
    size_t n_rows, n_cols;
    float *rows;            /* [n_rows, n_cols], as the page holds them */
    struct page_block *key; /* the same as keys and as values */
    struct page_block *value;
};

static struct page_problem page_open(size_t n_rows, size_t n_cols)
{
    size_t bytes = n_cols / 32 * sizeof(struct page_block);
    struct page_problem p = {n_rows, n_cols, must_alloc(n_rows * n_cols * sizeof(float)),
                             must_alloc(bytes), must_alloc(bytes)};
    memset(p.key, 0xFF, bytes);
    memset(p.value, 0xFF, bytes);
    for (size_t r = 0; r < n_rows; r++) {
        float *row = p.rows + r * n_cols;
        for (size_t c = 0; c < n_cols; c++)
            row[c] = random_float() * (r == 2 ? 0 : r % 7 == 3 ? 1e6f : 1);
        quant_page_store(QUANT_PAGE_KEYS, p.key, r, row, n_cols);
        quant_page_store(QUANT_PAGE_VALUES, p.value, r, row, n_cols);
        for (size_t b = 0; b < n_cols / 32; b++) {
            float scale = block_f16_to_f32(p.key[b].scale[r]), largest = 0;
            for (size_t c = 32 * b; c < 32 * b + 32; c++)
                largest = fmaxf(largest, fabsf(row[c]));
            for (size_t c = 32 * b; c < 32 * b + 32; c++) {
                float found = scale * (p.key[b].code[PAGE_KEY(r, c % 32)] - 128);
                assert_true(fabsf(found - row[c]) <= largest * (0.501f / 127 + 0x1p-10f));
                assert_true(found == scale * (int8_t)p.value[b].code[PAGE_VALUE(r, c % 32)]);
                row[c] = found;
            }
        }
    }
    return p;
}

static void page_close(struct page_problem *p)
{
    free(p->rows);
    free(p->key);
    free(p->value);
}

#define PAGE_QUERIES 7

/* Scores of 1 to PAGE_QUERIES queries by every set: the scalar set's bits, which are near the
 * products of the numbers that the codes stand for. */
static void check_page_scores(const struct page_problem *p)
{
    const size_t units = (p->n_cols + UNIT_LEN - 1) / UNIT_LEN;
    const struct quant_page page = {p->key, p->n_rows, p->n_cols, p->key};
    struct packed_unit *packed = must_alloc(PAGE_QUERIES * units * sizeof *packed);
    float *x = must_alloc(p->n_cols * sizeof *x);
    float y[PAGE_QUERIES][QUANT_PAGE_ROWS], expected[PAGE_QUERIES][QUANT_PAGE_ROWS];
    for (size_t i = 0; i < PAGE_QUERIES; i++) {
        for (size_t c = 0; c < p->n_cols; c++)
            x[c] = random_float();
        kernels_scalar.pack(x, packed + i * units, p->n_cols);
    }
    kernels_scalar.page_scores(&page, packed, PAGE_QUERIES, expected[0], QUANT_PAGE_ROWS);
    for (size_t i = 0; i < PAGE_QUERIES; i++)
        for (size_t r = 0; r < p->n_rows; r++) {
            double sum = 0, size = 0;
            for (size_t c = 0; c < p->n_cols; c++) {
                const struct packed_unit *unit = &packed[i * units + c / UNIT_LEN];
                double product = (double)unit->scale[BLOCK_LANE(c % UNIT_LEN / 32)] *
                                 unit->code[UNIT_CODE(c % UNIT_LEN)] * p->rows[r * p->n_cols + c];
                sum += product;
                size += fabs(product);
            }
            assert_true(fabs(expected[i][r] - sum) <= 1e-6 * size);
        }
    const struct kernel_set *set;
    for (size_t s = 0; (set = next_set(&s)) != NULL;)
        for (size_t n = 1; n <= PAGE_QUERIES; n++) {
            memset(y, 0xFF, sizeof y);
            set->page_scores(&page, packed, n, y[0], QUANT_PAGE_ROWS);
            for (size_t i = 0; i < n; i++)
                if (memcmp(y[i], expected[i], p->n_rows * sizeof y[0][0]) != 0)
                    fail_msg("%s: query %zu of %zu, %zu keys of %zu", set->name, i, n, p->n_rows,
                             p->n_cols);
        }
    free(packed);
    free(x);
}

/* The same for sums of values. Among the weights are all zeros and ones that are too small. */
static void check_page_add(const struct page_problem *p)
{
    const struct quant_page page = {p->value, p->n_rows, p->n_cols, p->value};
    const size_t n_y = PAGE_QUERIES * p->n_cols, y_bytes = n_y * sizeof(float);
    float weight[PAGE_QUERIES][QUANT_PAGE_ROWS];
    float *before = must_alloc(y_bytes), *expected = must_alloc(y_bytes), *y = must_alloc(y_bytes);
    for (size_t i = 0; i < PAGE_QUERIES; i++)
        for (size_t r = 0; r < QUANT_PAGE_ROWS; r++)
            weight[i][r] = i == 1 ? 0 : fabsf(random_float()) * (i == 2 ? 1e-37f : 1);
    for (size_t i = 0; i < n_y; i++)
        before[i] = random_float();
    memcpy(expected, before, y_bytes);
    kernels_scalar.page_add(&page, weight[0], QUANT_PAGE_ROWS, PAGE_QUERIES, expected);
    for (size_t i = 0; i < n_y; i++) {
        double sum = before[i], size = fabs(sum), most = 0;
        for (size_t r = 0; r < p->n_rows; r++) {
            double product =
                (double)weight[i / p->n_cols][r] * p->rows[r * p->n_cols + i % p->n_cols];
            double scale = block_f16_to_f32(p->value[i % p->n_cols / 32].scale[r]);
            sum += product;
            size += fabs(product);
            most = fmax(most, weight[i / p->n_cols][r] * scale);
        }
        double step = most / PAGE_WEIGHT_MAX * 127 * (double)p->n_rows / 2;
        assert_true(fabs(expected[i] - sum) <= 1e-6 * size + step);
        if (i / p->n_cols == 1 || i / p->n_cols == 2)
            assert_true(expected[i] == before[i]);
    }
    const struct kernel_set *set;
    for (size_t s = 0; (set = next_set(&s)) != NULL;)
        for (size_t n = 1; n <= PAGE_QUERIES; n++) {
            memcpy(y, before, y_bytes);
            set->page_add(&page, weight[0], QUANT_PAGE_ROWS, n, y);
            if (memcmp(y, expected, n * p->n_cols * sizeof *y) != 0 ||
                memcmp(y + n * p->n_cols, before + n * p->n_cols,
                       (PAGE_QUERIES - n) * p->n_cols * sizeof *y) != 0)
                fail_msg("%s: %zu inputs, %zu values of %zu", set->name, n, p->n_rows, p->n_cols);
        }
    free(before);
    free(expected);
    free(y);
}

/* Beside a large weight, small ones are rounded together: not all of them to nothing. */
static void test_page_small_weights(void **state)
{
    (void)state;
    float row[32], weight[QUANT_PAGE_ROWS], y[32] = {0}, sum = 0;
    struct page_block *block = must_alloc(sizeof *block);
    for (size_t c = 0; c < 32; c++)
        row[c] = 1;
    for (size_t r = 0; r < QUANT_PAGE_ROWS; r++) {
        quant_page_store(QUANT_PAGE_VALUES, block, r, row, 32);
        weight[r] = r == 0 ? 1 : 0.25f / PAGE_WEIGHT_MAX;
        sum += weight[r];
    }
    const struct quant_page page = {block, QUANT_PAGE_ROWS, 32, block};
    kernels_scalar.page_add(&page, weight, QUANT_PAGE_ROWS, 1, y);
    for (size_t c = 0; c < 32; c++)
        assert_true(fabsf(y[c] / (127 * block_f16_to_f32(block->scale[0])) - sum) <
                    8.0f / PAGE_WEIGHT_MAX);
    free(block);
}

static void test_pages_same_everywhere(void **state)
{
    (void)state;
    static const size_t lengths[] = {32, 64, 288}, rows[] = {1, 15, 16, 17, 34, 127, 128};
    for (size_t l = 0; l < ARRAY_COUNT(lengths); l++)
        for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
            struct page_problem p = page_open(rows[r], lengths[l]);
            check_page_scores(&p);
            check_page_add(&p);
            page_close(&p);
        }
}

/* ---- Panels ---- */

#if defined(__x86_64__)
extern const struct panel_set panels_amx_emulated; /* kernels_amx.c, with tiles in plain C */
#endif
static const struct named_panels {
    const char *name; /* NULL: past the last */
    const struct panel_set *set;
} panels[] = {
#if defined(__x86_64__)
    {"amx", &panels_amx},
    {"amx with emulated tiles", &panels_amx_emulated},
#endif
    {NULL, NULL},
};

struct panel_problem {
    struct quant_matrix w;
    float *x;
    size_t n_inputs;
    float *expected; /* [n_inputs, n_rows], by the scalar panels */
};

/* The first n inputs, as the set packs them. */
static uint16_t *panel_pack(const struct panel_problem *p, const struct panel_set *set, size_t n)
{
    size_t n_cols = p->w.n_cols, bytes = quant_packed_bytes(QUANT_PACKED_BF16, n_cols);
    uint16_t *packed = must_alloc(quant_packed_inputs(QUANT_PACKED_BF16, n) * bytes);
    memset(packed, 0xFF, quant_packed_inputs(QUANT_PACKED_BF16, n) * bytes);
    for (size_t i = 0; i < n; i++)
        set->pack(p->x + i * n_cols, n_cols, packed, i, n);
    return packed;
}

static struct panel_problem panel_open(enum quant_format format, size_t n_rows, size_t n_cols,
                                       size_t n_inputs)
{
    struct panel_problem p = {.w = {.format = format, .n_rows = n_rows, .n_cols = n_cols},
                              .n_inputs = n_inputs};
    p.w.row_bytes = quant_row_bytes(format, n_cols);
    uint8_t *weights = must_alloc(p.w.row_bytes * n_rows);
    fill_rows(format, weights, p.w.row_bytes * n_rows);
    p.w.data = weights;
    p.x = must_alloc(n_inputs * n_cols * sizeof(float));
    for (size_t i = 0; i < n_inputs * n_cols; i++)
        p.x[i] = random_float() * (i % 37 == 0 ? 20.0f : i % 41 == 0 ? 1e-38f : 1.0f);
    uint16_t *packed = panel_pack(&p, &panels_scalar, n_inputs);
    p.expected = must_alloc(n_inputs * n_rows * sizeof(float));
    panels_scalar.matmul(&p.w, 0, n_rows, packed, n_inputs, p.expected, n_rows, PANEL_FROM_ZERO);
    free(packed);
    return p;
}

static void panel_close(struct panel_problem *p)
{
    free((void *)p->w.data);
    free(p->x);
    free(p->expected);
}

/* Rows [begin, end) and the first n inputs by a set: the scalar set's bits there, nothing
 * beside. */
static void check_panel(const struct panel_problem *p, const struct named_panels *by, size_t begin,
                        size_t end, size_t n)
{
    size_t n_rows = p->w.n_rows, n_cols = p->w.n_cols;
    float *y = must_alloc(p->n_inputs * n_rows * sizeof(float)), untouched;
    uint16_t *packed = panel_pack(p, by->set, n), *same = panel_pack(p, &panels_scalar, n);
    memset(y, 0xFF, p->n_inputs * n_rows * sizeof(float));
    memset(&untouched, 0xFF, sizeof untouched);
    assert_memory_equal(packed, same,
                        quant_packed_inputs(QUANT_PACKED_BF16, n) *
                            quant_packed_bytes(QUANT_PACKED_BF16, n_cols));
    by->set->matmul(&p->w, begin, end, packed, n, y, n_rows, PANEL_FROM_ZERO);
    for (size_t i = 0; i < p->n_inputs; i++)
        for (size_t r = 0; r < n_rows; r++) {
            bool inside = i < n && r >= begin && r < end;
            const float *expected = inside ? &p->expected[i * n_rows + r] : &untouched;
            if (memcmp(&y[i * n_rows + r], expected, sizeof *y) != 0)
                fail_msg("%s %s: %zu columns, rows %zu to %zu, %zu inputs: row %zu, input %zu is "
                         "%.9g, not %.9g",
                         by->name, quant_info(p->w.format)->name, n_cols, begin, end, n, r, i,
                         (double)y[i * n_rows + r], (double)*expected);
        }
    free(y);
    free(packed);
    free(same);
}

/* The next of panels that this machine can run, from *index on; NULL after the last. */
static const struct named_panels *next_panels(size_t *index)
{
    static bool named[ARRAY_COUNT(panels)];
    while (panels[*index].name != NULL) {
        size_t i = (*index)++;
        unsigned needed = panels[i].set->cpu_features;
        if ((machine_cpu_features() & needed) == needed)
            return &panels[i];
        if (!named[i])
            printf("# not tested here: panels, %s\n", panels[i].name);
        named[i] = true;
    }
    return NULL;
}

/* The columns from at on added to those before, both packed by themselves: the bits of all
 * columns. */
static void check_panel_columns(const struct panel_problem *p, const struct named_panels *by,
                                size_t at)
{
    size_t n_rows = p->w.n_rows, n = p->n_inputs, n_cols = p->w.n_cols;
    float *y = must_alloc(n * n_rows * sizeof *y);
    for (size_t begin = 0; begin < n_cols; begin = begin == 0 ? at : n_cols) {
        struct quant_matrix w = p->w;
        w.n_cols = begin == 0 ? at : n_cols - at;
        w.data = (const uint8_t *)p->w.data + quant_row_bytes(w.format, begin);
        uint16_t *packed = must_alloc(quant_packed_inputs(QUANT_PACKED_BF16, n) *
                                      quant_packed_bytes(QUANT_PACKED_BF16, w.n_cols));
        for (size_t i = 0; i < n; i++)
            by->set->pack(p->x + i * n_cols + begin, w.n_cols, packed, i, n);
        by->set->matmul(&w, 0, n_rows, packed, n, y, n_rows,
                        begin == 0 ? PANEL_FROM_ZERO : PANEL_FROM_Y);
        free(packed);
    }
    if (memcmp(y, p->expected, n * n_rows * sizeof *y) != 0)
        fail_msg("%s: %zu rows, %zu inputs: columns up to %zu and from there on to %zu are not "
                 "all of them",
                 by->name, n_rows, n, at, n_cols);
    free(y);
}

static void test_panels_same_everywhere(void **state)
{
    (void)state;
    static const size_t ranges[][3] = {
        {0, 37, 35}, {0, 1, 1}, {1, 17, 16}, {3, 36, 17}, {5, 20, 33}};
    for (int format = QUANT_BF16; format < QUANT_FORMAT_COUNT; format++)
        for (size_t l = 0; l < LENGTHS; l++) {
            struct panel_problem p = panel_open(format, 37, test_length(format, l), 35);
            const struct named_panels *by;
            for (size_t s = 0; (by = next_panels(&s)) != NULL;)
                for (size_t i = 0; i < ARRAY_COUNT(ranges); i++)
                    check_panel(&p, by, ranges[i][0], ranges[i][1], ranges[i][2]);
            panel_close(&p);
        }
}

/* More rows, columns and inputs than one panel takes. */
static void test_panels_several(void **state)
{
    (void)state;
    static const size_t sizes[][3] = {
        {300, 288, 48}, {18, 4128, 33}, {35, 64, 530}, {3, 544, 513}, {64, 256, 64}};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct panel_problem p = panel_open(QUANT_Q4_1, sizes[i][0], sizes[i][1], sizes[i][2]);
        const struct named_panels *by;
        for (size_t s = 0; (by = next_panels(&s)) != NULL;)
            check_panel(&p, by, 0, sizes[i][0], sizes[i][2]);
        for (size_t s = 0; sizes[i][1] > 64 && (by = next_panels(&s)) != NULL;)
            check_panel_columns(&p, by, sizes[i][1] / 64 * 32);
        panel_close(&p);
    }
}

/* Both factors are rounded to eight bits. */
static void test_panels_scalar_exact(void **state)
{
    (void)state;
    for (int format = QUANT_BF16; format < QUANT_FORMAT_COUNT; format++) {
        size_t n_cols = test_length(format, LENGTHS - 1);
        struct panel_problem p = panel_open(format, 5, n_cols, 3);
        float *weights = must_alloc(n_cols * sizeof(float));
        for (size_t r = 0; r < 5; r++) {
            quant_decode(format, (const uint8_t *)p.w.data + r * p.w.row_bytes, weights, n_cols);
            for (size_t i = 0; i < 3; i++) {
                double sum = 0, size = 0;
                for (size_t c = 0; c < n_cols; c++) {
                    double product = (double)weights[c] * p.x[i * n_cols + c];
                    sum += product;
                    size += fabs(product);
                }
                assert_true(fabs(p.expected[i * 5 + r] - sum) <= size * 0x1p-8 + 1e-30);
            }
        }
        free(weights);
        panel_close(&p);
    }
}

/* Small products have the same arithmetic on every machine; F32 and F16 are never rounded. */
static void test_packing(void **state)
{
    (void)state;
    for (int format = 0; format < QUANT_FORMAT_COUNT; format++) {
        bool is_float = quant_info(format)->block_len == 1;
        for (size_t n = 1; n <= 1024; n *= 2) {
            enum quant_packing packing = quant_packing(format, n);
            if (n <= QUANT_SMALL_BATCH || packing != QUANT_PACKED_BF16)
                assert_int_equal(packing, is_float ? QUANT_PACKED_FLOAT : QUANT_PACKED_INT8);
            if (packing == QUANT_PACKED_BF16)
                assert_true(format != QUANT_F32 && format != QUANT_F16);
            assert_int_equal(quant_packed_bytes(packing, 333) % 64, 0);
        }
    }
}

static void test_exponentials(void **state)
{
    (void)state;
    enum { N = 4096 };
    float *x = must_alloc(N * sizeof *x), *expected = must_alloc(N * sizeof *x);
    float *found = must_alloc(N * sizeof *x);
    for (size_t i = 0; i < N; i++)
        x[i] = i % 97 == 0 ? -INFINITY : 3.0f - (float)i * 0.03f;
    float highest = 1.5f, factor, other_factor, sum;
    memcpy(expected, x, N * sizeof *x);
    sum = kernels_scalar.exp_sum(expected, N, &highest, &factor);
    assert_true(highest == x[1]);
    assert_true(fabs(factor - exp((double)(1.5f - highest))) <= 2e-7);
    double exact = 0;
    for (size_t i = 0; i < N; i++) {
        double one = exp((double)(x[i] - highest));
        exact += one;
        assert_true(fabs(expected[i] - one) <= 2e-7 * one + 1e-38);
    }
    assert_true(fabs(sum - exact) <= 1e-6 * exact);
    const struct kernel_set *set;
    for (size_t s = 0; (set = next_set(&s)) != NULL;) {
        highest = 1.5f;
        memcpy(found, x, N * sizeof *x);
        float other = set->exp_sum(found, N, &highest, &other_factor);
        if (other != sum || other_factor != factor || memcmp(found, expected, N * sizeof *x) != 0)
            fail_msg("%s: other exponentials than scalar", set->name);
    }

    for (size_t i = 0; i < N; i++)
        x[i] = ((float)i - N / 2) * 0.1f;
    memcpy(expected, x, N * sizeof *x);
    kernels_scalar.sigmoid(expected, N - 3);
    for (size_t i = 0; i < N - 3; i++)
        assert_true(fabs(expected[i] - 1 / (1 + exp(-(double)x[i]))) <= 2e-7);
    for (size_t s = 0; (set = next_set(&s)) != NULL;) {
        memcpy(found, x, N * sizeof *x);
        set->sigmoid(found, N - 3);
        if (memcmp(found, expected, N * sizeof *x) != 0)
            fail_msg("%s: another sigmoid than scalar", set->name);
    }
    free(x);
    free(expected);
    free(found);
}

static void test_rows_same_everywhere(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 7, 32, 64, 80, 128, 192, 333, 576}, rows[] = {1, 2, 16, 40};
    for (size_t f = 0; f < ARRAY_COUNT(row_formats); f++)
        for (size_t l = 0; l < ARRAY_COUNT(lengths); l++)
            for (size_t r = 0; r < ARRAY_COUNT(rows); r++)
                if (lengths[l] % quant_info(row_formats[f])->block_len == 0)
                    check_rows(row_formats[f], lengths[l], rows[r]);
}

static void test_forced_set(void **state)
{
    (void)state;
    struct error error;
    assert_ptr_equal(kernels_find("scalar", &error), &kernels_scalar);
    assert_null(kernels_find("mmx", &error));
    assert_non_null(strstr(error.text, "scalar"));
    setenv("CONSORT_ISA", "mmx", 1);
    assert_int_not_equal(quant_init(&error), STATUS_OK);
    assert_non_null(strstr(error.text, "CONSORT_ISA"));
    setenv("CONSORT_ISA", "scalar", 1);
    assert_int_equal(quant_init(&error), STATUS_OK);
    assert_string_equal(quant_isa(), "scalar");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_same_everywhere),
        cmocka_unit_test(test_matmul_scalar_exact),
        cmocka_unit_test(test_pack_error),
        cmocka_unit_test(test_pack_tiny_and_zero),
        cmocka_unit_test(test_panels_same_everywhere),
        cmocka_unit_test(test_panels_several),
        cmocka_unit_test(test_panels_scalar_exact),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_exponentials),
        cmocka_unit_test(test_rows_same_everywhere),
        cmocka_unit_test(test_sums_same_everywhere),
        cmocka_unit_test(test_pages_same_everywhere),
        cmocka_unit_test(test_page_small_weights),
        cmocka_unit_test(test_forced_set),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
