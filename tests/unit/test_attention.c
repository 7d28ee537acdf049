/* Attention on the CPU backend against a plain softmax in doubles, over shapes, formats, windows
 * and positions; and that its bits do not depend on threads or on what else is in the step. */
#include "model/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define SEED 3

struct shape {
    const char *name;
    enum quant_format format;
    uint32_t n_heads, n_kv_heads, head_k, head_v;
    uint32_t context; /* tokens in all */
    uint32_t window;
    bool chunked, latent, sinks;
    enum kv_layout layout; /* of the keys */
    float softcap;
};

static const struct shape shapes[] = {
    {"groups of four", QUANT_F16, 8, 2, 64, 64, 1300, .window = 0, .layout = KV_TURNED},
    {"rows of keys", QUANT_F16, 6, 2, 64, 32, 300, .window = 0},
    {"Q8_0", QUANT_Q8_0, 6, 2, 32, 64, 300, .window = 0},
    {"F32, odd heads", QUANT_F32, 3, 3, 20, 13, 150, .window = 0, .layout = KV_TURNED},
    {"long heads", QUANT_F32, 2, 1, 192, 128, 150, .window = 0, .layout = KV_TURNED},
    {"heads of 96", QUANT_F16, 4, 2, 96, 80, 300, .window = 0, .layout = KV_TURNED},
    {"heads of 130", QUANT_F32, 2, 1, 130, 66, 150, .window = 0, .layout = KV_TURNED},
    {"one group of 70", QUANT_F32, 70, 1, 8, 8, 140, .window = 0},
    {"latent", QUANT_F16, 16, 1, 96, 64, 1100, .window = 0, .latent = true},
    {"window", QUANT_F16, 4, 1, 32, 32, 2600, 200, .layout = KV_TURNED},
    {"chunks", QUANT_F16, 4, 2, 32, 32, 1100, 256, .chunked = true, .layout = KV_TURNED},
    {"codes", QUANT_Q8_0, 4, 1, 64, 96, 1100, .window = 0, .layout = KV_CODE_KEYS},
    {"codes, long heads", QUANT_Q8_0, 3, 1, 288, 32, 140, .window = 0, .layout = KV_CODE_KEYS},
    {"codes, window", QUANT_Q8_0, 5, 1, 32, 32, 600, 200, .layout = KV_CODE_KEYS},
    {"sinks and a soft cap", QUANT_F32, 4, 2, 16, 16, 1100, .window = 0, .sinks = true,
     .softcap = 5},
};

struct setup {
    const struct shape *shape;
    struct backend *backend;
    struct device_buffer *k, *v, *q, *y, *ints, *sinks;
    size_t k_row, v_row, n_pages;
    float *numbers; /* keys, values [context][heads][head] as the cache holds them */
    float *queries; /* [context][n_heads][head_k] */
    float *sink_logits;
};

static float random_float(uint64_t position, uint32_t draw)
{
    return (float)(rng_uniform(SEED, position, draw) * 2 - 1);
}

static void *must_calloc(size_t n, size_t size)
{
    void *memory = calloc(n, size);
    assert_non_null(memory);
    return memory;
}

static struct device_buffer *must_alloc(struct backend *backend, size_t size)
{
    struct device_buffer *buffer = backend->alloc(backend, size);
    assert_non_null(buffer);
    return buffer;
}

/* Pages lie in the cache in reverse order; there is one more, of NaN, which nobody may read. */
static int32_t page_of(const struct setup *setup, size_t token)
{
    return (int32_t)(setup->n_pages - 1 - token / PAGE);
}

static void store(const struct setup *setup, const float *x, struct device_buffer *cache,
                  uint32_t n_cols, enum kv_layout layout)
{
    const struct shape *shape = setup->shape;
    struct backend *backend = setup->backend;
    size_t n = (size_t)shape->context * shape->n_kv_heads * n_cols;
    struct device_buffer *rows = must_alloc(backend, n * sizeof *x);
    int32_t *slots = must_calloc(shape->context, sizeof *slots);
    for (size_t t = 0; t < shape->context; t++)
        slots[t] = page_of(setup, t) * PAGE + (int32_t)(t % PAGE);
    backend->upload(backend, (struct device_ref){rows, 0}, x, n * sizeof *x);
    backend->upload(backend, (struct device_ref){setup->ints, 0}, slots,
                    shape->context * sizeof *slots);
    backend->run(backend, &(struct op){.kind = OP_KV_STORE,
                                       .store = {.x = {rows, 0},
                                                 .slots = {setup->ints, 0},
                                                 .cache = {cache, 0},
                                                 .format = shape->format,
                                                 .n = shape->context,
                                                 .n_heads = shape->n_kv_heads,
                                                 .n_cols = n_cols,
                                                 .layout = layout}});
    backend->free(backend, rows);
    free(slots);
}

/* Where keys are codes, queries become codes as well: these are whole numbers of a step already. */
static float query_number(const struct shape *shape, size_t i)
{
    float number = random_float((uint64_t)i, 2);
    if (shape->layout != KV_CODE_KEYS)
        return number * 3;
    return i % 32 == 7 ? 127 * 0.01f : rintf(number * 126) * 0.01f;
}

/* Random rows, as they are after encoding: as codes, the largest of 32 numbers is 127. */
static void fill(const struct setup *setup, float *x, uint32_t n_cols, uint32_t draw)
{
    uint8_t encoded[4096];
    size_t n_rows = (size_t)setup->shape->context * setup->shape->n_kv_heads;
    for (size_t r = 0; r < n_rows; r++, x += n_cols) {
        for (size_t c = 0; c < n_cols; c++)
            x[c] = random_float(r * n_cols + c, draw);
        for (size_t c = 0; c < n_cols && setup->shape->layout == KV_CODE_KEYS; c++)
            x[c] = c % 32 == 3 ? 127.0f / 128 : rintf(x[c] * 126) / 128;
        quant_encode(setup->shape->format, x, encoded, n_cols, NULL);
        quant_decode(setup->shape->format, encoded, x, n_cols);
    }
}

static struct setup setup_open(const struct shape *shape, unsigned n_threads)
{
    struct error error = {0};
    struct setup s = {.shape = shape, .n_pages = (shape->context + PAGE - 1) / PAGE};
    assert_int_equal(backend_cpu_open(&s.backend, n_threads, NULL, &error), STATUS_OK);
    size_t kv = (size_t)shape->context * shape->n_kv_heads, rows = (s.n_pages + 1) * PAGE;
    size_t n_q = (size_t)shape->context * shape->n_heads;
    s.k_row = quant_row_bytes(shape->format, shape->head_k);
    s.v_row = shape->latent ? s.k_row : quant_row_bytes(shape->format, shape->head_v);
    s.k = must_alloc(s.backend, rows * shape->n_kv_heads * s.k_row);
    s.v = shape->latent ? s.k : must_alloc(s.backend, rows * shape->n_kv_heads * s.v_row);
    s.q = must_alloc(s.backend, n_q * shape->head_k * sizeof(float));
    s.y = must_alloc(s.backend, n_q * shape->head_v * sizeof(float));
    s.ints = must_alloc(s.backend, ((size_t)shape->context * 4 + rows) * sizeof(int32_t));
    s.sinks = must_alloc(s.backend, shape->n_heads * sizeof(float));
    s.numbers = must_calloc(kv * (shape->head_k + shape->head_v), sizeof(float));
    s.queries = must_calloc(n_q * shape->head_k, sizeof(float));
    s.sink_logits = must_calloc(shape->n_heads, sizeof(float));
    for (size_t i = 0; i < n_q * shape->head_k; i++)
        s.queries[i] = query_number(shape, i);
    for (size_t h = 0; h < shape->n_heads; h++)
        s.sink_logits[h] = random_float(h, 3);
    fill(&s, s.numbers, shape->head_k, 0);
    store(&s, s.numbers, s.k, shape->head_k, shape->layout);
    float *values = s.numbers + kv * shape->head_k;
    fill(&s, values, shape->head_v, 1);
    if (!shape->latent)
        store(&s, values, s.v, shape->head_v,
              shape->layout == KV_CODE_KEYS ? KV_CODE_VALUES : KV_ROWS);
    for (size_t i = 0; shape->latent && i < kv; i++)
        memcpy(values + i * shape->head_v, s.numbers + i * shape->head_k,
               shape->head_v * sizeof *values);
    s.backend->upload(s.backend, (struct device_ref){s.sinks, 0}, s.sink_logits,
                      shape->n_heads * sizeof(float));
    return s;
}

static void setup_close(struct setup *s)
{
    struct device_buffer *buffers[] = {s->k,    s->shape->latent ? NULL : s->v, s->q, s->y, s->ints,
                                       s->sinks};
    for (size_t i = 0; i < ARRAY_COUNT(buffers); i++)
        s->backend->free(s->backend, buffers[i]);
    s->backend->close(s->backend);
    free(s->numbers);
    free(s->queries);
    free(s->sink_logits);
}

static size_t begin_of(const struct shape *shape, size_t position)
{
    if (shape->window == 0)
        return 0;
    if (shape->chunked)
        return position / shape->window * shape->window;
    return position >= shape->window ? position - shape->window + 1 : 0;
}

/* y[n][n_heads][head_v] of the tokens at positions. The page tables name the last page, of NaN,
 * wherever no token of this step sees anything. */
static void attend(const struct setup *s, const int32_t *positions, size_t n, float *y)
{
    const struct shape *shape = s->shape;
    struct backend *backend = s->backend;
    size_t q_row = (size_t)shape->n_heads * shape->head_k, first = shape->context;
    int32_t *ints = must_calloc(3 * n + s->n_pages, sizeof *ints);
    for (size_t p = 0; p < s->n_pages; p++)
        ints[3 * n + p] = (int32_t)s->n_pages;
    for (size_t i = 0; i < n; i++) {
        size_t position = (size_t)positions[i];
        first = MIN(first, begin_of(shape, position));
        for (size_t t = begin_of(shape, position); t <= position; t++)
            ints[3 * n + t / PAGE] = page_of(s, t);
        ints[i] = positions[i];
        ints[n + i] = positions[i] + 1;
        backend->upload(backend, (struct device_ref){s->q, i * q_row * sizeof(float)},
                        s->queries + position * q_row, q_row * sizeof(float));
    }
    backend->upload(backend, (struct device_ref){s->ints, 0}, ints,
                    (3 * n + s->n_pages) * sizeof *ints);
    backend->run(backend, &(struct op){.kind = OP_ATTENTION,
                                       .attention = {.q = {s->q, 0},
                                                     .k = {s->k, 0},
                                                     .v = {s->v, 0},
                                                     .y = {s->y, 0},
                                                     .positions = {s->ints, 0},
                                                     .visible = {s->ints, n * sizeof *ints},
                                                     .table_begin = {s->ints, 2 * n * sizeof *ints},
                                                     .tables = {s->ints, 3 * n * sizeof *ints},
                                                     .sinks = {shape->sinks ? s->sinks : NULL, 0},
                                                     .format = shape->format,
                                                     .n = (uint32_t)n,
                                                     .n_heads = shape->n_heads,
                                                     .n_kv_heads = shape->n_kv_heads,
                                                     .group = shape->n_heads / shape->n_kv_heads,
                                                     .head_k = shape->head_k,
                                                     .head_v = shape->head_v,
                                                     .k_row_bytes = s->k_row,
                                                     .v_row_bytes = s->v_row,
                                                     .window = shape->window,
                                                     .chunked = shape->chunked,
                                                     .k_layout = shape->layout,
                                                     .scale = 0.4f,
                                                     .softcap = shape->softcap}});
    assert_int_equal(backend->download(backend, y, (struct device_ref){s->y, 0},
                                       n * shape->n_heads * shape->head_v * sizeof *y),
                     STATUS_OK);
    free(ints);
}

/* One head of one token, in doubles. */
static void expect(const struct setup *s, size_t position, size_t head, double *y)
{
    const struct shape *shape = s->shape;
    size_t kv = (size_t)shape->context * shape->n_kv_heads,
           group = shape->n_heads / shape->n_kv_heads;
    const float *q = s->queries + (position * shape->n_heads + head) * shape->head_k;
    double sum = shape->sinks ? exp(s->sink_logits[head]) : 0;
    memset(y, 0, shape->head_v * sizeof *y);
    for (size_t t = begin_of(shape, position); t <= position; t++) {
        size_t row = t * shape->n_kv_heads + head / group;
        const float *k = s->numbers + row * shape->head_k;
        const float *v = s->numbers + kv * shape->head_k + row * shape->head_v;
        double score = 0;
        for (size_t c = 0; c < shape->head_k; c++)
            score += (double)q[c] * k[c];
        score *= 0.4f;
        if (shape->softcap > 0)
            score = shape->softcap * tanh(score / shape->softcap);
        sum += exp(score);
        for (size_t c = 0; c < shape->head_v; c++)
            y[c] += exp(score) * v[c];
    }
    for (size_t c = 0; c < shape->head_v; c++)
        y[c] /= sum;
}

/* Pages of NaN would show in the result: keys through the highest score, values through 0 * NaN. */
static void poison(const struct setup *s)
{
    const struct shape *shape = s->shape;
    size_t page = (size_t)PAGE * shape->n_kv_heads;
    struct device_buffer *caches[] = {s->k, s->v};
    const size_t rows[] = {s->k_row, s->v_row};
    for (size_t i = 0; i < 2; i++) {
        uint8_t *bytes = must_calloc(page, rows[i]);
        memset(bytes, 0xFF, page * rows[i]);
        s->backend->upload(s->backend, (struct device_ref){caches[i], s->n_pages * page * rows[i]},
                           bytes, page * rows[i]);
        free(bytes);
    }
}

static void test_attention_is_softmax(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        const struct shape *shape = &shapes[i];
        struct setup s = setup_open(shape, 2);
        enum { N = 40 };
        int32_t positions[N];
        size_t width = (size_t)shape->n_heads * shape->head_v;
        float *y = must_calloc(N * width, sizeof *y);
        double exact[128];
        /* Where values are codes, their weights are rounded too: to 2^-14 of the largest. */
        double limit = shape->layout == KV_CODE_KEYS ? 3e-4 : 3e-6;
        poison(&s);
        for (int32_t n = 0; n < N; n++)
            positions[n] = (int32_t)shape->context - N + n;
        attend(&s, positions, N, y);
        for (size_t n = 0; n < N; n += 13)
            for (size_t head = 0; head < shape->n_heads; head++) {
                expect(&s, (size_t)positions[n], head, exact);
                for (size_t c = 0; c < shape->head_v; c++) {
                    double found = y[n * width + head * shape->head_v + c];
                    if (!(fabs(found - exact[c]) <= limit))
                        fail_msg("%s: token %d, head %zu, number %zu is %g, not %g", shape->name,
                                 positions[n], head, c, found, exact[c]);
                }
            }
        free(y);
        setup_close(&s);
    }
}

/* One token on one thread, on many (which share its splits), and in a batch: the same bits. And a
 * token reads no page that it does not see: all others of its table are the one of NaN. */
static void test_attention_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        const struct shape *shape = &shapes[i];
        struct setup one = setup_open(shape, 1), many = setup_open(shape, 40);
        enum { N = 37 };
        int32_t positions[N];
        size_t width = (size_t)shape->n_heads * shape->head_v;
        float *y = must_calloc(N * width, sizeof *y), *single = must_calloc(width, sizeof *y);
        poison(&one);
        poison(&many);
        for (int32_t n = 0; n < N; n++)
            positions[n] = (int32_t)shape->context - N + n;
        attend(&one, positions, N, y);
        for (size_t n = 0; n < N; n += 9) {
            attend(&one, positions + n, 1, single);
            if (memcmp(single, y + n * width, width * sizeof *y) != 0)
                fail_msg("%s: token %d alone differs", shape->name, positions[n]);
            attend(&many, positions + n, 1, single);
            if (memcmp(single, y + n * width, width * sizeof *y) != 0)
                fail_msg("%s: token %d on many threads differs", shape->name, positions[n]);
        }
        free(y);
        free(single);
        setup_close(&one);
        setup_close(&many);
    }
}

int main(void)
{
    struct error error;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_is_softmax),
        cmocka_unit_test(test_attention_same_bits),
    };
    if (quant_init(&error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
