#include "fake_backend.h"
#include "model/backend.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

struct opened {
    struct weights *weights;
    struct model *model;
};

static struct weights *open_weights(struct tiny_gguf *gguf)
{
    char path[64];
    struct error error = {0};
    struct weights *weights;
    tiny_write(gguf, path);
    enum status status = weights_open(&weights, path, &error);
    unlink(path);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
    return weights;
}

/* Closes weights. */
static void assert_not_opened(struct weights *weights, uint32_t n_ctx, enum quant_format kv_format,
                              enum status expected, struct error *error)
{
    struct model *model = NULL;
    struct model_options options = {.n_ctx = n_ctx, .kv_format = kv_format, .n_threads = 1};
    assert_int_equal(model_open(&model, weights, &options, error), expected);
    assert_null(model);
    weights_close(weights);
}

static struct opened open_tiny(uint32_t n_ctx, enum quant_format kv_format, unsigned n_threads)
{
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    struct opened opened;
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    opened.weights = open_weights(&gguf);
    struct model_options options = {.n_ctx = n_ctx, .kv_format = kv_format, .n_threads = n_threads};
    if (model_open(&opened.model, opened.weights, &options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return opened;
}

static void close_tiny(struct opened *opened)
{
    model_close(opened->model);
    weights_close(opened->weights);
}

static void make_tokens(int32_t *tokens, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % TINY_VOCAB);
}

static void step(struct model *model, struct sequence *sequence, const int32_t *tokens, size_t n,
                 float *logits)
{
    struct error error = {0};
    struct step_segment segment = {sequence, tokens, n, 1};
    if (model_step(model, &segment, 1, logits, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static struct sequence *new_sequence(struct model *model)
{
    struct error error = {0};
    struct sequence *sequence;
    assert_int_equal(sequence_open(&sequence, model, &error), STATUS_OK);
    return sequence;
}

/* The last logits of a text do not depend on how it was cut into steps, on threads, on other
 * sequences in the same step, or on what the pages held before. */
static void test_model_same_bits(void **state)
{
    (void)state;
    enum { N = 160 };
    int32_t tokens[N], others[N];
    make_tokens(tokens, N, 1);
    make_tokens(others, N, 2);
    float expected[TINY_VOCAB], found[2 * TINY_VOCAB];
    struct opened one = open_tiny(1024, QUANT_F16, 1), three = open_tiny(1024, QUANT_F16, 3);
    struct sequence *a = new_sequence(one.model);
    step(one.model, a, tokens, N, expected);

    sequence_truncate(a, 0);
    for (size_t i = 0; i < N; i++)
        step(one.model, a, tokens + i, 1, found);
    assert_memory_equal(found, expected, sizeof expected);

    struct sequence *b = new_sequence(three.model), *c = new_sequence(three.model);
    struct error error = {0};
    for (size_t done = 0; done < N; done += 40) {
        struct step_segment both[] = {{c, others + done, 40, 1}, {b, tokens + done, 40, 1}};
        assert_int_equal(model_step(three.model, both, 2, found, &error), STATUS_OK);
    }
    assert_memory_equal(found + TINY_VOCAB, expected, sizeof expected);

    sequence_truncate(b, 130);
    step(three.model, b, others, 20, found);
    sequence_truncate(b, 130);
    step(three.model, b, tokens + 130, N - 130, found);
    assert_memory_equal(found, expected, sizeof expected);
    sequence_close(a);
    sequence_close(b);
    sequence_close(c);
    close_tiny(&one);
    close_tiny(&three);
}

/* A sequence that begins with the pages of another goes on as if it had computed them, and what it
 * adds to a shared page changes nothing for the other. */
static void test_model_shares_pages(void **state)
{
    (void)state;
    enum { N = 190, SHARED = 150, PAGE = MODEL_KV_PAGE_TOKENS };
    int32_t tokens[N], others[N];
    make_tokens(tokens, N, 1);
    make_tokens(others, N, 2);
    const enum quant_format formats[] = {QUANT_F16, QUANT_Q8_0, QUANT_F32};
    for (size_t f = 0; f < ARRAY_COUNT(formats); f++) {
        float expected[TINY_VOCAB], found[TINY_VOCAB];
        struct opened opened = open_tiny(1024, formats[f], 1);
        struct model *model = opened.model;
        struct sequence *a = new_sequence(model), *b = new_sequence(model);
        step(model, a, tokens, SHARED, expected);
        uint32_t first = sequence_page(a, 0), second = sequence_page(a, 1);
        sequence_adopt(b, first, PAGE);
        sequence_adopt(b, second, SHARED - PAGE - 1); /* all but the last token */
        assert_int_equal(sequence_length(b), SHARED - 1);
        assert_int_equal(model_page_holders(model, first), 2);
        assert_int_equal(model_pages_free(model), model_page_count(model) - 2);
        assert_int_equal(sequence_pages_needed(b, 1), 1); /* the copy */
        step(model, b, tokens + SHARED - 1, 1, found);
        assert_memory_equal(found, expected, sizeof expected);
        assert_int_equal(model_page_holders(model, second), 1);
        assert_int_not_equal(sequence_page(b, 1), second);

        step(model, b, others, N - SHARED, found);
        step(model, a, tokens + SHARED, N - SHARED, found);
        sequence_truncate(b, 0);
        step(model, b, tokens, N, expected);
        assert_memory_equal(found, expected, sizeof expected);

        sequence_replace_page(b, 0, first);
        model_page_hold(model, first);
        sequence_close(a);
        sequence_close(b);
        assert_int_equal(model_pages_free(model), model_page_count(model) - 1);
        model_page_release(model, first);
        assert_int_equal(model_pages_free(model), model_page_count(model));
        close_tiny(&opened);
    }
}

/* Nothing leans on an operation having run when it was submitted, or on memory being zero. */
static void test_model_on_fake_device(void **state)
{
    (void)state;
    int32_t tokens[100];
    float expected[TINY_VOCAB], found[TINY_VOCAB];
    make_tokens(tokens, 100, 4);
    struct opened cpu = open_tiny(256, QUANT_F16, 1);
    struct sequence *sequence = new_sequence(cpu.model);
    step(cpu.model, sequence, tokens, 100, expected);
    sequence_close(sequence);

    struct error error = {0};
    struct backend *fake;
    struct model *model;
    assert_int_equal(fake_backend_open(&fake, 2, &error), STATUS_OK);
    struct model_options options = {.n_ctx = 256, .kv_format = QUANT_F16, .backend = fake};
    assert_int_equal(model_open(&model, cpu.weights, &options, &error), STATUS_OK);
    sequence = new_sequence(model);
    step(model, sequence, tokens, 60, found);
    for (size_t i = 60; i < 100; i++)
        step(model, sequence, tokens + i, 1, found);
    assert_memory_equal(found, expected, sizeof expected);
    sequence_close(sequence);
    model_close(model);
    fake->close(fake);
    close_tiny(&cpu);
}

static void test_model_kv_formats_agree(void **state)
{
    (void)state;
    const struct {
        enum quant_format format;
        double tolerance;
    } cases[] = {{QUANT_F16, 2e-3}, {QUANT_Q8_0, 3e-2}};
    int32_t tokens[64];
    float exact[TINY_VOCAB], found[TINY_VOCAB];
    make_tokens(tokens, 64, 3);
    struct opened f32 = open_tiny(256, QUANT_F32, 1);
    struct sequence *sequence = new_sequence(f32.model);
    step(f32.model, sequence, tokens, 64, exact);
    sequence_close(sequence);
    close_tiny(&f32);

    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct opened other = open_tiny(256, cases[i].format, 1);
        sequence = new_sequence(other.model);
        step(other.model, sequence, tokens, 64, found);
        double difference = 0, total = 0;
        for (size_t v = 0; v < TINY_VOCAB; v++) {
            difference += pow((double)found[v] - (double)exact[v], 2);
            total += pow((double)exact[v], 2);
        }
        assert_true(sqrt(difference / total) < cases[i].tolerance);
        sequence_close(sequence);
        close_tiny(&other);
    }
}

static void test_model_refuses_kv_format(void **state)
{
    (void)state;
    struct tiny_gguf gguf = {0};
    tiny_llama_keys(&gguf, 4); /* heads of 16 numbers; a block of Q8_0 has 32 */
    tiny_llama_tensors(&gguf);
    struct weights *weights = open_weights(&gguf);
    struct error error = {0};
    assert_not_opened(weights, 64, QUANT_Q8_0, STATUS_UNSUPPORTED, &error);
    assert_non_null(strstr(error.text, "multiple of 32"));
}

static void test_model_refuses_steps(void **state)
{
    (void)state;
    struct opened opened = open_tiny(180, QUANT_F16, 1);
    struct sequence *sequence = new_sequence(opened.model);
    struct error error = {0};
    float logits[TINY_VOCAB];
    int32_t tokens[300] = {0};
    struct step_segment segment = {sequence, tokens, 181, 1};
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_LIMIT);
    assert_non_null(strstr(error.text, "181"));
    assert_non_null(strstr(error.text, "180"));
    int32_t wrong[] = {1, TINY_VOCAB};
    segment = (struct step_segment){sequence, wrong, 2, 1};
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_INVALID);
    wrong[1] = -1;
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_INVALID);
    assert_int_equal(sequence_length(sequence), 0);
    segment = (struct step_segment){sequence, tokens, 180, 0};
    assert_int_equal(model_step(opened.model, &segment, 1, NULL, &error), STATUS_OK);
    segment.n_tokens = 1;
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_LIMIT);
    assert_int_equal(sequence_length(sequence), 180);

    /* Another sequence finds no page, until the first gives its own back. */
    struct sequence *other = new_sequence(opened.model);
    segment.sequence = other;
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_LIMIT);
    assert_non_null(strstr(error.text, "full"));
    sequence_truncate(sequence, 0);
    assert_int_equal(model_step(opened.model, &segment, 1, logits, &error), STATUS_OK);
    sequence_close(sequence);
    sequence_close(other);
    close_tiny(&opened);
}

/* ---- Steps that fail ---- */

/* A device whose memory ran out during a step, so that the first wait says so. */
static enum status (*real_sync)(struct backend *backend);
static enum status (*real_download)(struct backend *backend, void *to, struct device_ref from,
                                    size_t size);
static int n_failing;

static enum status failing_sync(struct backend *backend)
{
    enum status status = real_sync(backend);
    return n_failing > 0 && n_failing-- > 0 ? STATUS_MEMORY : status;
}

static enum status failing_download(struct backend *backend, void *to, struct device_ref from,
                                    size_t size)
{
    enum status status = real_download(backend, to, from, size);
    return n_failing > 0 && n_failing-- > 0 ? STATUS_MEMORY : status;
}

static void ignore_rows(void *context, const char *tensor, const float *x, size_t n_rows,
                        size_t n_cols, int expert)
{
    (void)tensor;
    (void)x;
    (void)n_cols;
    (void)expert;
    *(size_t *)context += n_rows;
}

/* An FFN that is too wide for all tokens of a step comes by columns where products have panels, by
 * tokens where someone observes it: the same bits. */
static void test_model_ffn_in_parts(void **state)
{
    (void)state;
    enum { N = 192, N_FF = 1280 };
    struct tiny_gguf gguf = {.left_out = NULL};
    struct error error = {0};
    struct model *model;
    int32_t tokens[N];
    float logits[2][TINY_VOCAB];
    size_t n_seen = 0;
    make_tokens(tokens, N, 11);
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors_as(&gguf, QUANT_Q8_0, N_FF);
    struct weights *weights = open_weights(&gguf);
    struct model_options options = {.n_ctx = 256, .kv_format = QUANT_F16, .n_threads = 2};
    assert_int_equal(model_open(&model, weights, &options, &error), STATUS_OK);
    assert_true(model_batch_limit(model) >= N);
    struct sequence *sequence = new_sequence(model);
    for (int observed = 0; observed < 2; observed++) {
        model_observe(model, observed ? ignore_rows : NULL, &n_seen);
        step(model, sequence, tokens, N, logits[observed]);
        sequence_truncate(sequence, 0);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    assert_true(n_seen > 0);
    sequence_close(sequence);
    model_close(model);
    weights_close(weights);
}

/* A step that finds no memory fails, also where only its observer would have missed something, and
 * leaves sequence and pages as they were. */
static void test_model_step_without_memory(void **state)
{
    (void)state;
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    struct backend *backend;
    struct model *model;
    int32_t tokens[150];
    float logits[TINY_VOCAB];
    size_t n_seen = 0;
    make_tokens(tokens, 150, 9);
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    struct weights *weights = open_weights(&gguf);
    assert_int_equal(backend_cpu_open(&backend, 1, NULL, &error), STATUS_OK);
    real_sync = backend->sync;
    real_download = backend->download;
    backend->sync = failing_sync;
    backend->download = failing_download;
    struct model_options options = {.n_ctx = 256, .kv_format = QUANT_F16, .backend = backend};
    assert_int_equal(model_open(&model, weights, &options, &error), STATUS_OK);
    struct sequence *sequence = new_sequence(model);
    struct step_segment segment = {sequence, tokens, 150, 1};
    for (int observed = 0; observed < 2; observed++) {
        model_observe(model, observed ? ignore_rows : NULL, &n_seen);
        n_failing = 1;
        assert_int_equal(model_step(model, &segment, 1, logits, &error), STATUS_MEMORY);
        assert_int_equal(n_failing, 0);
        assert_int_equal(sequence_length(sequence), 0);
    }
    struct step_segment short_one = {sequence, tokens, 1, 1};
    assert_int_equal(model_step(model, &short_one, 1, logits, &error), STATUS_OK);
    assert_true(n_seen > 0);
    sequence_close(sequence);
    model_close(model);
    backend->close(backend);
    weights_close(weights);
}

/* ---- Files that are wrong ---- */

enum flaw {
    FLAW_NONE,
    FLAW_ARCHITECTURE,
    FLAW_NO_ARCHITECTURE,
    FLAW_KEY_MISSING,
    FLAW_KEY_TYPE,
    FLAW_KEY_HUGE,
    FLAW_HEADS,
    FLAW_ROPE,
    FLAW_TENSOR_UNKNOWN,
    FLAW_FFN_BESIDE_EXPERTS,
};

static void build(struct tiny_gguf *gguf, enum flaw flaw)
{
    if (flaw != FLAW_NO_ARCHITECTURE)
        tiny_string(gguf, "general.architecture", flaw == FLAW_ARCHITECTURE ? "rwkv9" : "llama");
    if (flaw == FLAW_KEY_TYPE)
        tiny_string(gguf, "llama.block_count", "two");
    else if (flaw == FLAW_KEY_HUGE)
        tiny_u32(gguf, "llama.block_count", 4000000000u);
    else if (flaw != FLAW_KEY_MISSING)
        tiny_u32(gguf, "llama.block_count", TINY_LAYERS);
    tiny_u32(gguf, "llama.embedding_length", TINY_EMBD);
    tiny_u32(gguf, "llama.context_length", 4096);
    tiny_u32(gguf, "llama.attention.head_count", 2);
    tiny_u32(gguf, "llama.attention.head_count_kv", flaw == FLAW_HEADS ? 3 : 1);
    tiny_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (flaw == FLAW_ROPE)
        tiny_u32(gguf, "llama.rope.dimension_count", 17);
    tiny_llama_tensors(gguf);
    if (flaw == FLAW_TENSOR_UNKNOWN)
        tiny_tensor(gguf, "blk.1.attn_mystery.weight", 8, 8, 1);
    if (flaw == FLAW_FFN_BESIDE_EXPERTS) {
        tiny_u32(gguf, "llama.expert_count", 4);
        tiny_u32(gguf, "llama.expert_used_count", 2);
        tiny_tensor(gguf, "blk.0.ffn_gate_inp.weight", TINY_EMBD, 4, 1);
        tiny_tensor(gguf, "blk.0.ffn_gate_exps.weight", TINY_EMBD, 32, 4);
        tiny_tensor(gguf, "blk.0.ffn_up_exps.weight", TINY_EMBD, 32, 4);
        tiny_tensor(gguf, "blk.0.ffn_down_exps.weight", 32, TINY_EMBD, 4);
    }
}

static void test_model_names_what_is_wrong(void **state)
{
    (void)state;
    const struct {
        enum flaw flaw;
        enum status status;
        const char *named, *also;
    } cases[] = {
        {FLAW_ARCHITECTURE, STATUS_UNSUPPORTED, "rwkv9", "minimax-m2"},
        {FLAW_NO_ARCHITECTURE, STATUS_INVALID, "general.architecture", "missing"},
        {FLAW_KEY_MISSING, STATUS_INVALID, "llama.block_count", "missing"},
        {FLAW_KEY_TYPE, STATUS_INVALID, "llama.block_count", "string"},
        {FLAW_KEY_HUGE, STATUS_INVALID, "llama.block_count", "4000000000"},
        {FLAW_HEADS, STATUS_INVALID, "head_count is 2 in layer 0", "head_count_kv, which is 3"},
        {FLAW_ROPE, STATUS_INVALID, "rope.dimension_count is 17", "even"},
        {FLAW_TENSOR_UNKNOWN, STATUS_UNSUPPORTED, "blk.1.attn_mystery.weight", "no place"},
        {FLAW_FFN_BESIDE_EXPERTS, STATUS_UNSUPPORTED, "blk.0.ffn_gate.weight", "no place"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct tiny_gguf gguf = {0};
        build(&gguf, cases[i].flaw);
        struct weights *weights = open_weights(&gguf);
        struct error error = {0};
        assert_not_opened(weights, 64, QUANT_F16, cases[i].status, &error);
        if (strstr(error.text, cases[i].named) == NULL || strstr(error.text, cases[i].also) == NULL)
            fail_msg("the error does not name %s and %s: %s", cases[i].named, cases[i].also,
                     error.text);
    }
}

/* A llama without one tensor (or NULL) and with one more. */
static void check_tensor_error(const char *left_out, const char *added, const char *expected)
{
    struct tiny_gguf gguf = {.left_out = left_out};
    struct error error = {0};
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    gguf.left_out = NULL;
    if (added != NULL)
        tiny_tensor(&gguf, added, 32, 32, 1);
    assert_not_opened(open_weights(&gguf), 64, QUANT_F16, STATUS_INVALID, &error);
    if (strstr(error.text, expected) == NULL)
        fail_msg("%s is not named: %s", expected, error.text);
}

static void test_model_names_tensors(void **state)
{
    (void)state;
    static const char *const needed[] = {
        "token_embd.weight",        "output_norm.weight",    "blk.0.attn_norm.weight",
        "blk.1.attn_norm.weight",   "blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight",
        "blk.0.attn_q.weight",      "blk.1.attn_k.weight",   "blk.0.attn_v.weight",
        "blk.1.attn_output.weight", "blk.0.ffn_up.weight",   "blk.1.ffn_down.weight",
    };
    for (size_t i = 0; i < ARRAY_COUNT(needed); i++) {
        char expected[96];
        snprintf(expected, sizeof expected, "%s is missing", needed[i]);
        check_tensor_error(needed[i], NULL, expected);
    }
    check_tensor_error(
        "blk.0.attn_q.weight", "blk.0.attn_q.weight",
        "blk.0.attn_q.weight has shape [32, 32, 1]; the metadata ask for [64, 64, 1]");
    check_tensor_error(NULL, "blk.2.attn_q.weight",
                       "there is a tensor blk.2.attn_q.weight, but block_count is 2");
    check_tensor_error(NULL, "blk.1.attn_q_norm.weight",
                       "blk.0.attn_q_norm.weight is missing, which other layers have");
}

/* Positions that a file learned end; one past them would read past the table. */
static void test_model_refuses_positions(void **state)
{
    (void)state;
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    tiny_tensor(&gguf, "position_embd.weight", TINY_EMBD, 4096, 1);
    assert_not_opened(open_weights(&gguf), 4097, QUANT_F16, STATUS_INVALID, &error);
    assert_non_null(strstr(error.text, "positions for 4096"));
}

static void test_model_refuses_what_would_swap(void **state)
{
    (void)state;
    struct tiny_gguf gguf = {0};
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    struct weights *weights = open_weights(&gguf);
    struct error error = {0};
    /* 256 bytes a token and layer: 128 GiB of cache. */
    assert_not_opened(weights, MODEL_MAX_CTX, QUANT_F32, STATUS_MEMORY, &error);
    assert_non_null(strstr(error.text, "--ctx"));
}

/* A context is made smaller to fit what a model may take, but no smaller than is asked for. */
static void test_model_plans_with_a_limit(void **state)
{
    (void)state;
    struct opened opened = open_tiny(4096, QUANT_F16, 1);
    uint64_t whole = model_memory_bytes(opened.model);
    uint64_t half = model_kv_bytes(model_description(opened.model), 2048, QUANT_F16);
    struct model_options options = {.kv_format = QUANT_F16, .n_threads = 1};
    struct error error = {0};
    uint32_t n_ctx = 0;
    options.memory_bytes = whole;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_OK);
    assert_int_equal(n_ctx, 4096);
    options.memory_bytes = whole - half;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_OK);
    assert_true(n_ctx >= 2048 && n_ctx < 4096);
    options.n_ctx_least = 4000;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_MEMORY);
    options.n_ctx_least = 100000; /* no more than it was trained for */
    options.memory_bytes = whole;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_OK);
    options.n_ctx = 4096;
    options.memory_bytes = whole - 1;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_MEMORY);
    assert_non_null(strstr(error.text, "4096 with --kv-type q8_0"));
    options.memory_bytes = 1;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_MEMORY);
    assert_non_null(strstr(error.text, "smallest context"));
    options.ignore_memory = true;
    assert_int_equal(model_plan(opened.weights, &options, &n_ctx, &error), STATUS_OK);
    close_tiny(&opened);
}

static void test_model_description(void **state)
{
    (void)state;
    struct opened opened = open_tiny(0, QUANT_F16, 1);
    const struct model_desc *desc = model_description(opened.model);
    assert_string_equal(desc->architecture, "llama");
    assert_int_equal(desc->n_layers, TINY_LAYERS);
    assert_int_equal(desc->head_k, 32);
    assert_int_equal(model_n_ctx(opened.model), 4096);
    assert_int_equal(model_kv_bytes(desc, 10, QUANT_F16), 10 * TINY_LAYERS * 2 * 32 * 2);
    uint64_t n = TINY_EMBD * TINY_VOCAB + TINY_EMBD +
                 TINY_LAYERS * (2 * TINY_EMBD + 2 * TINY_EMBD * TINY_EMBD + 2 * TINY_EMBD * 32 +
                                3 * TINY_EMBD * 96);
    assert_int_equal(desc->n_params, n);
    assert_int_equal(desc->n_params_active, n);
    close_tiny(&opened);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_same_bits),
        cmocka_unit_test(test_model_shares_pages),
        cmocka_unit_test(test_model_on_fake_device),
        cmocka_unit_test(test_model_kv_formats_agree),
        cmocka_unit_test(test_model_refuses_kv_format),
        cmocka_unit_test(test_model_refuses_steps),
        cmocka_unit_test(test_model_ffn_in_parts),
        cmocka_unit_test(test_model_step_without_memory),
        cmocka_unit_test(test_model_names_what_is_wrong),
        cmocka_unit_test(test_model_names_tensors),
        cmocka_unit_test(test_model_refuses_positions),
        cmocka_unit_test(test_model_refuses_what_would_swap),
        cmocka_unit_test(test_model_plans_with_a_limit),
        cmocka_unit_test(test_model_description),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
