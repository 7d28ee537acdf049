/* Every reference model through the model's own interface: all tokens in one step, one by one, and
 * its greedy continuation; on the CPU, and on the fake asynchronous device. */
#include "../support/reference.h"
#include "fake_backend.h"
#include "model/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_TOKENS 64

static const char *const names[] = {
    "bert",     "cohere2",    "command-r", "deepseek2",  "deepseek3", "gemma2", "gemma3",
    "glm4",     "glm4moe",    "gpt-oss",   "granite",    "grok",      "llama",  "llama3-rope",
    "llama4",   "minimax-m2", "mixtral",   "nomic-bert", "olmo2",     "phi3",   "qwen2",
    "qwen2moe", "qwen3",      "qwen3moe",  "starcoder2",
};

struct opened {
    struct weights *weights;
    struct model *model;
    struct backend *fake; /* or NULL */
};

static struct opened open_model(const char *name, bool on_fake)
{
    char path[REFERENCE_PATH_BYTES];
    struct error error = {0};
    struct opened opened = {0};
    reference_path(path, "arch/%s.gguf", name);
    if (weights_open(&opened.weights, path, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    if (on_fake)
        assert_int_equal(fake_backend_open(&opened.fake, 2, &error), STATUS_OK);
    struct model_options options = {
        .n_ctx = 512, .kv_format = QUANT_F32, .n_threads = 2, .backend = opened.fake};
    if (model_open(&opened.model, opened.weights, &options, &error) != STATUS_OK)
        fail_msg("%s: %s", name, error.text);
    return opened;
}

static void check_logits(const char *name, const char *how, const float *found,
                         const struct buffer *expected)
{
    double error = reference_error(found, (const float *)(const void *)expected->data,
                                   expected->size / sizeof(float));
    if (!(error < reference_tolerance(name)))
        fail_msg("%s, %s: relative error of the logits %g", name, how, error);
}

/* A step over a token and three that do not follow gives the token the same bits as a step of its
 * own, and leaves no trace once the three are forgotten. */
static void check_drafts(const char *name, struct sequence *sequence, struct model *model,
                         const int32_t *tokens, size_t n, const float *logits)
{
    struct error error = {0};
    size_t n_vocab = model_description(model)->n_vocab;
    float *found = malloc(4 * n_vocab * sizeof *found);
    sequence_truncate(sequence, 0);
    for (size_t i = 0; i < n; i++) {
        int32_t drafted[4] = {tokens[i]};
        for (size_t k = 1; k < 4; k++)
            drafted[k] = (int32_t)(rng_u64(2, i, (uint32_t)k) % n_vocab);
        size_t n_rows = MIN((size_t)4, model_n_ctx(model) - i);
        struct step_segment segment = {sequence, drafted, n_rows, n_rows};
        assert_int_equal(model_step(model, &segment, 1, found, &error), STATUS_OK);
        if (memcmp(found, logits + i * n_vocab, n_vocab * sizeof *found) != 0)
            fail_msg("%s: token %zu has other logits with a draft behind it", name, i);
        sequence_truncate(sequence, (uint32_t)i + 1);
    }
    free(found);
}

static void check_text_model(const char *name, struct model *model)
{
    struct error error = {0};
    struct buffer expected = {0};
    int32_t tokens[2 * MAX_TOKENS], greedy[MAX_TOKENS];
    size_t n = reference_model_tokens(name, ".tokens", tokens, MAX_TOKENS),
           n_greedy = reference_model_tokens(name, ".greedy", greedy, MAX_TOKENS);
    size_t n_vocab = model_description(model)->n_vocab;
    assert_true(reference_model_file(name, ".logits", &expected) && n_greedy > 0);
    assert_int_equal(expected.size, n * n_vocab * sizeof(float));
    float *logits = malloc(expected.size);
    struct sequence *sequence;
    assert_int_equal(sequence_open(&sequence, model, &error), STATUS_OK);

    struct step_segment whole = {sequence, tokens, n, n};
    assert_int_equal(model_step(model, &whole, 1, logits, &error), STATUS_OK);
    check_logits(name, "in one step", logits, &expected);

    sequence_truncate(sequence, 0);
    for (size_t i = 0; i < n; i++) {
        struct step_segment one = {sequence, tokens + i, 1, 1};
        assert_int_equal(model_step(model, &one, 1, logits + i * n_vocab, &error), STATUS_OK);
    }
    check_logits(name, "token by token", logits, &expected);
    check_drafts(name, sequence, model, tokens, n, logits);

    for (size_t i = 0; i < n_greedy; i++) {
        int32_t token = (int32_t)reference_best(logits + (n - 1) * n_vocab, n_vocab);
        if (token != greedy[i])
            fail_msg("%s: greedy token %zu is %d, not %d", name, i, token, greedy[i]);
        struct step_segment one = {sequence, &token, 1, 1};
        assert_int_equal(model_step(model, &one, 1, logits + (n - 1) * n_vocab, &error), STATUS_OK);
    }
    sequence_close(sequence);
    buffer_free(&expected);
    free(logits);
}

static void check_embedding_model(const char *name, struct model *model)
{
    struct error error = {0};
    struct buffer expected = {0};
    int32_t tokens[MAX_TOKENS];
    size_t n = reference_model_tokens(name, ".tokens", tokens, MAX_TOKENS);
    assert_true(reference_model_file(name, ".embedding", &expected));
    float *found = malloc(model_description(model)->n_embd * sizeof *found);
    assert_int_equal(model_embed(model, tokens, n, MODEL_POOLING_NONE, false, found, &error),
                     STATUS_OK);
    check_logits(name, "pooled", found, &expected);
    free(found);
    buffer_free(&expected);
}

static void check_model(const char *name, bool on_fake)
{
    struct buffer present = {0};
    bool found = reference_model_file(name, ".tokens", &present);
    buffer_free(&present);
    if (!found)
        skip();
    struct opened opened = open_model(name, on_fake);
    if (model_description(opened.model)->causal)
        check_text_model(name, opened.model);
    else
        check_embedding_model(name, opened.model);
    model_close(opened.model);
    if (opened.fake != NULL)
        opened.fake->close(opened.fake);
    weights_close(opened.weights);
}

static void test_on_cpu(void **state)
{
    check_model(*state, false);
}

static void test_on_fake(void **state)
{
    check_model(*state, true);
}

int main(void)
{
    struct CMUnitTest tests[2 * ARRAY_COUNT(names)];
    char titles[ARRAY_COUNT(names)][64];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        snprintf(titles[i], sizeof titles[i], "%s_on_fake_device", names[i]);
        tests[2 * i] = (struct CMUnitTest){names[i], test_on_cpu, NULL, NULL, (void *)names[i]};
        tests[2 * i + 1] =
            (struct CMUnitTest){titles[i], test_on_fake, NULL, NULL, (void *)names[i]};
    }
    return cmocka_run_group_tests_name("reference models", tests, NULL, NULL);
}
