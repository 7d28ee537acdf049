/* A model over several ranks: quantised weights cut at and beside their blocks, shared pages, steps
 * under way, ranks that are lost, placements that do not fit. */
#include "fake_comm.h"
#include "../support/slow.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define N_TOKENS 150
#define PAGE MODEL_KV_PAGE_TOKENS

/* ---- Models ---- */

/* A llama of four layers; heads of 32 numbers. */
struct shape {
    enum quant_format format, down_format;
    uint32_t n_embd, n_heads, n_kv_heads, n_ff;
    uint32_t n_experts, n_expert_ff; /* 0: dense */
    bool tied;
};

static bool flawed; /* a matrix does not fit the keys */

#define N_LAYERS 4
#define N_VOCAB 70

static const struct shape f32 = {.n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .n_ff = 96};

static void put_keys(struct tiny_gguf *gguf, const struct shape *shape)
{
    tiny_string(gguf, "general.architecture", "llama");
    tiny_u32(gguf, "llama.block_count", N_LAYERS);
    tiny_u32(gguf, "llama.embedding_length", shape->n_embd);
    tiny_u32(gguf, "llama.context_length", 1024);
    tiny_u32(gguf, "llama.attention.head_count", shape->n_heads);
    tiny_u32(gguf, "llama.attention.head_count_kv", shape->n_kv_heads);
    tiny_u32(gguf, "llama.attention.key_length", 32);
    tiny_u32(gguf, "llama.attention.value_length", 32);
    tiny_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (shape->n_experts > 0) {
        tiny_u32(gguf, "llama.expert_count", shape->n_experts);
        tiny_u32(gguf, "llama.expert_used_count", 2);
    }
}

static void put_layer(struct tiny_gguf *gguf, const struct shape *shape, unsigned layer)
{
    uint32_t embd = shape->n_embd, q = shape->n_heads * 32, kv = shape->n_kv_heads * 32;
    uint32_t experts = MAX(shape->n_experts, 1);
    uint32_t ff = shape->n_experts > 0 ? shape->n_expert_ff : shape->n_ff;
    const char *moe = shape->n_experts > 0 ? "_exps" : "";
    const struct {
        const char *name, *suffix;
        enum quant_format format;
        uint32_t n_cols, n_rows, n_matrices;
    } tensors[] = {
        {"attn_norm", "", QUANT_F32, embd, 1, 1},
        {"attn_q", "", shape->format, embd, flawed ? q + 32 : q, 1},
        {"attn_k", "", shape->format, embd, kv, 1},
        {"attn_v", "", shape->format, embd, kv, 1},
        {"attn_output", "", shape->format, q, embd, 1},
        {"ffn_norm", "", QUANT_F32, embd, 1, 1},
        {"ffn_gate", moe, shape->format, embd, ff, experts},
        {"ffn_up", moe, shape->format, embd, ff, experts},
        {"ffn_down", moe, shape->down_format, ff, embd, experts},
    };
    char name[64];
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        snprintf(name, sizeof name, "blk.%u.%s%s.weight", layer, tensors[i].name,
                 tensors[i].suffix);
        tiny_tensor_as(gguf, tensors[i].format, name, tensors[i].n_cols, tensors[i].n_rows,
                       tensors[i].n_matrices);
    }
    snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", layer);
    if (shape->n_experts > 0)
        tiny_tensor(gguf, name, embd, experts, 1);
}

static struct weights *open_shape(const struct shape *shape)
{
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    struct weights *weights;
    char path[64];
    assert_int_equal(quant_init(&error), STATUS_OK);
    put_keys(&gguf, shape);
    tiny_tensor_as(&gguf, shape->format, "token_embd.weight", shape->n_embd, N_VOCAB, 1);
    tiny_tensor(&gguf, "output_norm.weight", shape->n_embd, 1, 1);
    if (!shape->tied)
        tiny_tensor_as(&gguf, shape->format, "output.weight", shape->n_embd, N_VOCAB, 1);
    for (unsigned i = 0; i < N_LAYERS; i++)
        put_layer(&gguf, shape, i);
    tiny_write(&gguf, path);
    enum status status = weights_open(&weights, path, &error);
    unlink(path);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
    return weights;
}

static struct model_options options_for(const struct model_placement *placement)
{
    return (struct model_options){.n_ctx = 512,
                                  .n_cache = 4096,
                                  .kv_format = QUANT_F16,
                                  .n_threads = 1,
                                  .placement = placement};
}

static void make_tokens(int32_t *tokens, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % N_VOCAB);
}

static double difference(const float *found, const float *expected, size_t n)
{
    double square = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        square += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
        size += (double)expected[i] * expected[i];
    }
    return square / size; /* of squares */
}

static struct sequence *new_sequence(struct model *model)
{
    struct sequence *sequence;
    struct error error = {0};
    assert_int_equal(sequence_open(&sequence, model, &error), STATUS_OK);
    return sequence;
}

/* The last n_logits rows; fails the test where the step fails. */
static void step(struct model *model, struct sequence *sequence, const int32_t *tokens, size_t n,
                 size_t n_logits, float *logits)
{
    struct error error = {0};
    struct step_segment segment = {sequence, tokens, n, n_logits};
    if (model_step(model, &segment, 1, logits, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

/* ---- Formats ---- */

/* Steps of a few tokens, all with logits, then one of many. */
static void run_text(struct model *model, float *logits)
{
    int32_t tokens[N_TOKENS];
    make_tokens(tokens, N_TOKENS, 5);
    struct sequence *sequence = new_sequence(model);
    for (size_t i = 0; i < 4; i++)
        step(model, sequence, tokens + 5 * i, 5, 5, logits + 5 * i * N_VOCAB);
    step(model, sequence, tokens + 20, N_TOKENS - 20, 8, logits + (size_t)20 * N_VOCAB);
    sequence_close(sequence);
}

static void check_shape(const struct shape *shape, const char *text, const char *name)
{
    enum { FEW = 20 * N_VOCAB, MANY = 8 * N_VOCAB };
    static float expected[FEW + MANY], found[FEW + MANY];
    struct error error = {0};
    struct weights *weights = open_shape(shape);
    struct model_options options = options_for(NULL);
    struct model *model;
    assert_int_equal(model_open(&model, weights, &options, &error), STATUS_OK);
    run_text(model, expected);
    model_close(model);
    struct model_placement placement = fake_placement(text, N_LAYERS);
    struct fake_ranks ranks;
    options = options_for(&placement);
    if (fake_ranks_open(&ranks, weights, &options, false, NULL, &error) != STATUS_OK)
        fail_msg("%s over %s: %s", name, text, error.text);
    run_text(ranks.owner, found);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    /* Codes of activations hang on single bits of the sums before them. */
    double few = shape->format == QUANT_F32 ? 1e-10 : 1e-4, many = few > 1e-10 ? 1e-3 : few;
    double error_few = difference(found, expected, FEW);
    double error_many = difference(found + FEW, expected + FEW, MANY);
    if (!(error_few < few && error_many < many))
        fail_msg("%s over %s: squared errors %g and %g", name, text, error_few, error_many);
    weights_close(weights);
}

static void test_ranks_formats(void **state)
{
    (void)state;
    static const struct {
        const char *name, *placement;
        struct shape shape;
    } cases[] = {
        {"F32", "1:1", {.n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .n_ff = 96}},
        {"F32, tied",
         "3:2+1:1:1",
         {.n_embd = 64, .n_heads = 6, .n_kv_heads = 2, .n_ff = 96, .tied = true}},
        {"more shards than KV heads",
         "1:1:1:1:1",
         {.n_embd = 64, .n_heads = 7, .n_kv_heads = 1, .n_ff = 160, .tied = true}},
        {"Q8_0, uneven", "1:3", {QUANT_Q8_0, QUANT_Q8_0, 64, 4, 4, 128, 0, 0, true}},
        {"Q4_0", "1:1+1:1", {QUANT_Q4_0, QUANT_Q4_0, 64, 4, 2, 96, 0, 0, false}},
        {"Q4_K, whole blocks", "1:1", {QUANT_Q4_K, QUANT_Q6_K, 256, 16, 4, 1024, 0, 0, false}},
        {"Q4_K, blocks in common", "2:1:2", {QUANT_Q4_K, QUANT_Q6_K, 256, 8, 2, 768, 0, 0, false}},
        {"Q4_K, one block of heads",
         "1:1:1:1",
         {QUANT_Q4_K, QUANT_Q4_K, 256, 8, 8, 512, 0, 0, true}},
        {"experts by columns", "1:1", {QUANT_Q4_0, QUANT_Q4_0, 64, 4, 2, 0, 4, 128, false}},
        {"experts by columns in common",
         "2:3",
         {QUANT_Q4_K, QUANT_Q4_K, 256, 8, 2, 0, 4, 256, false}},
        {"whole experts", "1:1:1", {QUANT_Q4_K, QUANT_Q4_K, 256, 8, 4, 0, 5, 256, false}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i += (size_t)test_every())
        check_shape(&cases[i].shape, cases[i].placement, cases[i].name);
}

/* ---- Slice files ---- */

static unsigned char *slice_bytes(struct weights_slice *slice, size_t *size)
{
    *size = (size_t)weights_slice_size(slice);
    unsigned char *bytes = malloc(*size);
    assert_true(bytes != NULL && weights_slice_read(slice, 0, bytes, *size));
    weights_slice_close(slice);
    return bytes;
}

/* Slice files of one placement give the slices of every other one, byte by byte; without one of
 * them some cannot be made. */
static void check_merge(const struct weights *weights, const struct weights *const *files,
                        size_t n_files)
{
    static const char *const others[] = {"3",   "1+2", "2+1",   "1+1+1",
                                         "1:1", "2:1", "1+1:1", "1:1+2"};
    struct weights_slice *slice;
    struct error error = {0};
    size_t n_lacking = 0;
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        struct model_placement placement = fake_placement(others[i], N_LAYERS);
        for (uint32_t r = 0; r < model_placement_ranks(&placement); r++) {
            size_t size, again;
            assert_int_equal(model_slice_open(&slice, weights, &placement, r, &error), STATUS_OK);
            unsigned char *expected = slice_bytes(slice, &size);
            if (model_slice_merge(&slice, files, n_files, &placement, r, &error) != STATUS_OK)
                fail_msg("rank %u of %s: %s", r, others[i], error.text);
            unsigned char *merged = slice_bytes(slice, &again);
            assert_int_equal(size, again);
            assert_memory_equal(merged, expected, size);
            free(expected);
            free(merged);
            if (n_files < 2)
                continue;
            enum status status =
                model_slice_merge(&slice, files + 1, n_files - 1, &placement, r, &error);
            assert_true(status == STATUS_OK || status == STATUS_NOT_FOUND);
            n_lacking += status == STATUS_NOT_FOUND;
            weights_slice_close(slice);
        }
    }
    assert_true(n_files < 2 || n_lacking > 0);
}

/* Writes the slice file of a rank in pieces of odd sizes; a second reading of random ranges gives
 * the same bytes. */
static struct weights *slice_file(const struct weights *weights,
                                  const struct model_placement *placement, uint32_t rank)
{
    struct weights_slice *slice;
    struct weights *opened;
    struct error error = {0};
    char path[] = "/tmp/consort-slice-XXXXXX", text[MODEL_SLICE_TEXT];
    if (model_slice_open(&slice, weights, placement, rank, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    size_t size = (size_t)weights_slice_size(slice), n;
    unsigned char *bytes = malloc(size), *again = malloc(size);
    for (size_t at = 0, i = 0; at < size; at += n, i++) {
        n = MIN(size - at, (size_t)(rng_u64(1, i, 0) % 5000 + 1));
        assert_true(weights_slice_read(slice, at, bytes + at, n));
    }
    for (size_t i = 0; i < 200; i++) {
        size_t at = (size_t)(rng_u64(2, i, 0) % size);
        n = (size_t)(rng_u64(2, i, 1) % (size - at) + 1);
        assert_true(weights_slice_read(slice, at, again, n));
        assert_memory_equal(again, bytes + at, n);
    }
    assert_false(weights_slice_read(slice, size, again, 1));
    weights_slice_close(slice);
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, bytes, size) == (ssize_t)size && close(fd) == 0);
    if (weights_open(&opened, path, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    unlink(path);
    assert_int_equal(model_slice_text(text, weights, placement, rank, &error), STATUS_OK);
    assert_string_equal(weights_slice_text(opened), text);
    struct model_options options = options_for(placement);
    struct model_memory memory;
    assert_int_equal(model_rank_memory(weights, &options, rank, &memory, &error), STATUS_OK);
    assert_true(size >= memory.weights_bytes && size < memory.weights_bytes + 16384);
    assert_int_equal(model_slice_open(&slice, opened, placement, rank, &error), STATUS_UNSUPPORTED);
    free(bytes);
    free(again);
    return opened;
}

/* Ranks that have only their slice files come to the same bits. */
static void check_slices(const struct shape *shape, const char *text)
{
    enum { ROWS = 28 * N_VOCAB };
    static float expected[ROWS], found[ROWS];
    struct weights *weights = open_shape(shape), *own[8];
    struct model_placement placement = fake_placement(text, N_LAYERS);
    struct model_options options = options_for(&placement);
    struct fake_ranks ranks;
    struct error error = {0};
    uint32_t n = model_placement_ranks(&placement);
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error), STATUS_OK);
    run_text(ranks.owner, expected);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    for (uint32_t r = 0; r < n; r++)
        own[r] = slice_file(weights, &placement, r);
    const struct weights *const *files = (const struct weights *const *)own;
    if (fake_ranks_open(&ranks, weights, &options, false, files, &error) != STATUS_OK)
        fail_msg("over %s: %s", text, error.text);
    run_text(ranks.owner, found);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    assert_memory_equal(found, expected, sizeof found);
    check_merge(weights, files, n);
    struct model *model;
    options = options_for(NULL);
    assert_int_equal(model_open(&model, own[n - 1], &options, &error), STATUS_INVALID);
    for (uint32_t r = 0; r < n; r++)
        weights_close(own[r]);
    weights_close(weights);
}

static void test_ranks_slice_files(void **state)
{
    (void)state;
    static const struct {
        const char *placement;
        struct shape shape;
    } cases[] = {
        {"1:1", {.n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .n_ff = 96}},
        {"1+1:2", {QUANT_Q4_0, QUANT_Q4_0, 64, 4, 2, 96, 0, 0, true}},
        {"2:1:2", {QUANT_Q4_K, QUANT_Q6_K, 256, 8, 2, 768, 0, 0, false}},
        {"2:3+1", {QUANT_Q4_K, QUANT_Q4_K, 256, 8, 2, 0, 4, 256, false}},
        {"1:1:1", {QUANT_Q4_K, QUANT_Q4_K, 256, 8, 4, 0, 5, 256, true}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i += (size_t)test_every())
        check_slices(&cases[i].shape, cases[i].placement);
}

/* ---- Pages ---- */

/* Two texts begin with the same page that is not full; each goes on in a copy, on all ranks. */
static void test_ranks_share_pages(void **state)
{
    (void)state;
    static const char *const placements[] = {"1:1", "1+1", "1:2+2:1"};
    struct weights *weights = open_shape(&f32);
    int32_t tokens[PAGE], others[PAGE];
    float expected[2][N_VOCAB], found[2][N_VOCAB];
    make_tokens(tokens, PAGE, 1);
    make_tokens(others, PAGE, 2);
    for (size_t p = 0; p < ARRAY_COUNT(placements); p++) {
        struct model_placement placement = fake_placement(placements[p], N_LAYERS);
        struct model_options options = options_for(&placement);
        struct fake_ranks ranks;
        struct error error = {0};
        assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error),
                         STATUS_OK);
        struct model *model = ranks.owner;
        struct sequence *a = new_sequence(model), *b = new_sequence(model);
        step(model, a, tokens, 40, 1, expected[0]);
        step(model, a, tokens + 40, 20, 1, expected[0]);
        step(model, b, tokens, 40, 1, expected[1]);
        step(model, b, others, 20, 1, expected[1]);
        sequence_truncate(b, 0);
        sequence_truncate(a, 40);
        sequence_adopt(b, sequence_page(a, 0), 40);
        step(model, b, others, 20, 1, found[1]);
        step(model, a, tokens + 40, 20, 1, found[0]);
        assert_memory_equal(found, expected, sizeof found);
        sequence_close(a);
        sequence_close(b);
        assert_int_equal(model_pages_free(model), model_page_count(model));
        assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    }
    weights_close(weights);
}

/* ---- Steps under way ---- */

enum { N_TEXTS = 3, N_STEPS = 5, N_STEP = 70 };

/* Prompts of several texts with up to n_under_way steps at a time; the last of each gives
 * logits. */
static void run_texts(struct model *model, uint32_t n_under_way, float logits[N_TEXTS][N_VOCAB])
{
    static int32_t tokens[N_TEXTS][N_STEPS * N_STEP];
    struct error error = {0};
    struct sequence *sequences[N_TEXTS];
    for (size_t t = 0; t < N_TEXTS; t++) {
        make_tokens(tokens[t], N_STEPS * N_STEP, t);
        sequences[t] = new_sequence(model);
    }
    for (size_t i = 0; i < N_STEPS * N_TEXTS; i++) {
        size_t text = i % N_TEXTS, number = i / N_TEXTS;
        if (model_steps_under_way(model) == n_under_way)
            assert_int_equal(model_step_end(model, &error), STATUS_OK);
        struct step_segment segment = {sequences[text], tokens[text] + number * N_STEP, N_STEP,
                                       number + 1 == N_STEPS};
        assert_int_equal(model_step_begin(model, &segment, 1, logits[text], &error), STATUS_OK);
        assert_int_equal(sequence_length(sequences[text]), (number + 1) * N_STEP);
    }
    while (model_steps_under_way(model) > 0)
        assert_int_equal(model_step_end(model, &error), STATUS_OK);
    for (size_t t = 0; t < N_TEXTS; t++)
        sequence_close(sequences[t]);
}

static void test_ranks_steps_under_way(void **state)
{
    (void)state;
    static const char *const placements[] = {"1+1", "1:1+1:2+1", "1+2:1"};
    struct weights *weights = open_shape(&f32);
    for (size_t p = 0; p < ARRAY_COUNT(placements); p++) {
        float expected[N_TEXTS][N_VOCAB], found[N_TEXTS][N_VOCAB];
        struct model_placement placement = fake_placement(placements[p], N_LAYERS);
        struct model_options options = options_for(&placement);
        struct fake_ranks ranks;
        struct error error = {0};
        assert_int_equal(fake_ranks_open(&ranks, weights, &options, p == 1, NULL, &error),
                         STATUS_OK);
        assert_int_equal(model_steps_most(ranks.owner), MODEL_MAX_STEPS);
        run_texts(ranks.owner, 1, expected);
        run_texts(ranks.owner, MODEL_MAX_STEPS, found);
        assert_memory_equal(found, expected, sizeof found);
        assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    }
    weights_close(weights);
}

/* More at a time than there is room for; sequences that end meanwhile; a model that closes. */
static void test_ranks_steps_left_under_way(void **state)
{
    (void)state;
    struct weights *weights = open_shape(&f32);
    struct model_placement placement = fake_placement("1+1", N_LAYERS);
    struct model_options options = options_for(&placement);
    struct fake_ranks ranks;
    struct error error = {0};
    int32_t tokens[N_STEP];
    float logits[N_VOCAB];
    make_tokens(tokens, N_STEP, 1);
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error), STATUS_OK);
    struct model *model = ranks.owner;
    assert_int_equal(model_step_end(model, &error), STATUS_INVALID);
    for (uint32_t i = 0; i < MODEL_MAX_STEPS; i++) {
        struct sequence *sequence = new_sequence(model);
        struct step_segment segment = {sequence, tokens, N_STEP, 1};
        assert_int_equal(model_step_begin(model, &segment, 1, logits, &error), STATUS_OK);
        if (i == 0) {
            assert_int_equal(model_step(model, &segment, 1, logits, &error), STATUS_BUSY);
            sequence_truncate(sequence, 10);
        }
        sequence_close(sequence);
    }
    assert_int_equal(model_pages_free(model), model_page_count(model));
    struct sequence *sequence = new_sequence(model);
    struct step_segment segment = {sequence, tokens, 1, 1};
    assert_int_equal(model_step_begin(model, &segment, 1, logits, &error), STATUS_BUSY);
    assert_int_equal(model_step_end(model, &error), STATUS_OK);
    assert_int_equal(model_step_begin(model, &segment, 1, logits, &error), STATUS_OK);
    sequence_close(sequence);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    weights_close(weights);
}

/* Page tables that would not fit on the way to a stage that is busy: 30 texts share long
 * beginnings.
 */
static void test_ranks_long_messages(void **state)
{
    (void)state;
    enum { N_LONG = 300, N_SHARING = 30 };
    if (test_every() > 2)
        skip(); /* three million positions */
    struct weights *weights = open_shape(&f32);
    struct model_placement placement = fake_placement("1+1", N_LAYERS);
    struct model_options options = options_for(&placement);
    options.n_ctx = 64 * 1024;
    struct fake_ranks ranks;
    struct error error = {0};
    int32_t tokens[PAGE];
    static float expected[N_SHARING][N_VOCAB], found[N_SHARING][N_VOCAB];
    make_tokens(tokens, PAGE, 1);
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error), STATUS_OK);
    struct model *model = ranks.owner;
    struct sequence *first = new_sequence(model), *sharing[N_SHARING];
    step(model, first, tokens, 64, 0, NULL);
    step(model, first, tokens + 64, 64, 0, NULL);
    struct step_segment segments[N_SHARING];
    for (size_t s = 0; s < N_SHARING; s++) {
        sharing[s] = new_sequence(model);
        for (size_t i = 0; i < N_LONG; i++)
            sequence_adopt(sharing[s], sequence_page(first, 0), PAGE);
        segments[s] = (struct step_segment){sharing[s], &tokens[s], 1, 1};
    }
    assert_int_equal(model_step(model, segments, N_SHARING, expected[0], &error), STATUS_OK);
    for (size_t s = 0; s < N_SHARING; s++)
        sequence_truncate(sharing[s], N_LONG * PAGE);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(model_step_begin(model, segments, N_SHARING, found[0], &error), STATUS_OK);
        for (size_t s = 0; s < N_SHARING; s++)
            sequence_truncate(sharing[s], N_LONG * PAGE);
    }
    while (model_steps_under_way(model) > 0)
        assert_int_equal(model_step_end(model, &error), STATUS_OK);
    assert_memory_equal(found, expected, sizeof found);
    for (size_t s = 0; s < N_SHARING; s++)
        sequence_close(sharing[s]);
    sequence_close(first);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    weights_close(weights);
}

/* ---- Lost ranks ---- */

static void check_lost_at(const struct weights *weights, const char *text, uint64_t n_calls)
{
    struct model_placement placement = fake_placement(text, N_LAYERS);
    struct model_options options = options_for(&placement);
    struct fake_ranks ranks;
    struct error error = {0};
    int32_t tokens[N_STEP];
    float logits[N_VOCAB];
    make_tokens(tokens, N_STEP, 1);
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error), STATUS_OK);
    struct model *model = ranks.owner;
    struct sequence *sequence = new_sequence(model), *other = new_sequence(model);
    step(model, sequence, tokens, 10, 1, logits);
    fake_network_cut_after(ranks.network, n_calls);
    struct step_segment segment = {sequence, tokens, N_STEP, 1};
    struct step_segment next = {other, tokens, N_STEP, 1};
    enum status status = STATUS_OK, first = STATUS_OK;
    for (int i = 0; i < 100 && status == STATUS_OK; i++) {
        sequence_truncate(sequence, 10);
        sequence_truncate(other, 0);
        status = model_step_begin(model, &segment, 1, logits, &error);
        if (status == STATUS_OK && model_steps_most(model) > 1)
            status = model_step_begin(model, &next, 1, logits, &error);
        bool begun = model_steps_under_way(model) > 0;
        first = begun ? model_step_end(model, &error) : status;
        status = first != STATUS_OK ? first : status;
        if (model_steps_under_way(model) > 0)
            status = model_step_end(model, &error);
    }
    assert_int_equal(status, STATUS_LOST);
    assert_non_null(strstr(error.text, "lost"));
    assert_int_equal(sequence_length(sequence), first == STATUS_OK ? 10 + N_STEP : 10);
    assert_int_equal(sequence_length(other), 0);
    assert_int_equal(model_step(model, &segment, 1, logits, &error), STATUS_LOST);
    sequence_close(sequence);
    sequence_close(other);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_LOST);
}

static void test_ranks_lost(void **state)
{
    (void)state;
    struct weights *weights = open_shape(&f32);
    for (uint64_t n = 0; n < 40; n += 3) {
        check_lost_at(weights, "1:1", n);
        check_lost_at(weights, "1+1", n / 3);
        check_lost_at(weights, "1:1+1:1", n);
    }
    weights_close(weights);
}

/* ---- Opening ---- */

static void assert_refused(const struct weights *weights, const struct model_placement *placement,
                           enum status expected, const char *sentence)
{
    struct model_options options = options_for(placement);
    struct fake_ranks ranks;
    struct error error = {0};
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error), expected);
    if (strstr(error.text, sentence) == NULL)
        fail_msg("not \"%s\": %s", sentence, error.text);
    fake_ranks_close(&ranks);
}

static void test_ranks_refuse(void **state)
{
    (void)state;
    struct weights *weights = open_shape(&f32);
    struct model_placement placement = fake_placement("1:1:1:1:1", N_LAYERS);
    assert_refused(weights, &placement, STATUS_UNSUPPORTED, "4 heads, too few for 5 machines");
    placement = fake_placement("1:1", N_LAYERS - 1);
    assert_refused(weights, &placement, STATUS_INVALID, "end at layer 3 of 4");
    placement = fake_placement("1+1", N_LAYERS);
    placement.stages[1].first_layer++;
    assert_refused(weights, &placement, STATUS_INVALID, "must follow the one before");
    placement = fake_placement("1:0", N_LAYERS);
    assert_refused(weights, &placement, STATUS_INVALID, "share of 0");
    weights_close(weights);
    const struct shape narrow = {QUANT_Q4_K, QUANT_Q4_K, 256, 16, 16, 256, 0, 0, true};
    weights = open_shape(&narrow);
    placement = fake_placement("1:1:1:1:1:1:1:1:1", N_LAYERS);
    assert_refused(weights, &placement, STATUS_UNSUPPORTED, "too few blocks for 9 machines");
    weights_close(weights);
}

/* One rank without memory is named by the owner; nobody waits for it. */
static void test_ranks_name_who_cannot_open(void **state)
{
    (void)state;
    struct weights *weights = open_shape(&f32);
    /* Its matrices do not have the shapes that its keys ask for: the owner finds out while
     * opening. */
    const struct shape other_shape = {.n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .n_ff = 128};
    flawed = true;
    struct weights *other = open_shape(&other_shape);
    flawed = false;
    struct model_placement placement = fake_placement("1:1", N_LAYERS);
    struct model_options options = options_for(&placement);
    struct fake_ranks ranks;
    struct error error = {0};
    const struct weights *own[] = {weights, other};
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, own, &error),
                     STATUS_INVALID);
    assert_non_null(strstr(error.text, "rank 1: the owner has another model"));
    assert_int_equal(fake_ranks_close(&ranks), STATUS_INVALID);
    const struct weights *owners_flawed[] = {other, weights};
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, owners_flawed, &error),
                     STATUS_INVALID);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_INVALID);
    options.memory_bytes = 1; /* of each rank; the owner's own is too much already */
    assert_int_equal(fake_ranks_open(&ranks, weights, &options, false, NULL, &error),
                     STATUS_MEMORY);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_LOST);
    weights_close(weights);
    weights_close(other);
}

/* What ranks take together is what one takes alone, but for what both have. */
static void test_ranks_memory(void **state)
{
    (void)state;
    const struct shape wide = {QUANT_Q4_0, QUANT_Q4_0, 64, 8, 8, 4096, 0, 0, false};
    struct weights *weights = open_shape(&wide);
    struct model_memory alone, memory;
    struct error error = {0};
    struct model_options options = options_for(NULL);
    assert_int_equal(model_rank_memory(weights, &options, 0, &alone, &error), STATUS_OK);
    static const char *const placements[] = {"1:1", "1+1", "1:1:1:1"};
    for (size_t p = 0; p < ARRAY_COUNT(placements); p++) {
        struct model_placement placement = fake_placement(placements[p], N_LAYERS);
        uint32_t n = model_placement_ranks(&placement);
        uint64_t weights_bytes = 0, kv_bytes = 0;
        options = options_for(&placement);
        for (uint32_t r = 0; r < n; r++) {
            assert_int_equal(model_rank_memory(weights, &options, r, &memory, &error), STATUS_OK);
            weights_bytes += memory.weights_bytes;
            kv_bytes += memory.kv_bytes;
            assert_true(memory.weights_bytes < alone.weights_bytes / n * 11 / 10);
        }
        assert_int_equal(kv_bytes, alone.kv_bytes);
        assert_true(weights_bytes < alone.weights_bytes * 11 / 10);
        assert_int_equal(model_rank_memory(weights, &options, n, &memory, &error), STATUS_INVALID);
    }
    weights_close(weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_formats),
        cmocka_unit_test(test_ranks_slice_files),
        cmocka_unit_test(test_ranks_share_pages),
        cmocka_unit_test(test_ranks_steps_under_way),
        cmocka_unit_test(test_ranks_steps_left_under_way),
        cmocka_unit_test(test_ranks_long_messages),
        cmocka_unit_test(test_ranks_lost),
        cmocka_unit_test(test_ranks_refuse),
        cmocka_unit_test(test_ranks_name_who_cannot_open),
        cmocka_unit_test(test_ranks_memory),
    };
    return cmocka_run_group_tests_name("ranks", tests, NULL, NULL);
}
