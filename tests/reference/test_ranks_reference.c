/* Every reference model over several ranks, side by side, one after the other and both: the logits
 * and the greedy text of one machine. */
#include "../support/reference.h"
#include "fake_comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_TOKENS 64

static const char *const names[] = {
    "cohere2",     "command-r", "deepseek2",  "deepseek3", "gemma2",     "gemma3",
    "glm4",        "glm4moe",   "gpt-oss",    "granite",   "grok",       "llama",
    "llama3-rope", "llama4",    "minimax-m2", "mixtral",   "olmo2",      "phi3",
    "qwen2",       "qwen2moe",  "qwen3",      "qwen3moe",  "starcoder2",
};

static const char *const placements[] = {"1:1", "2:1:3", "1+1", "1:1+2:1", "1:1:1:1"};

static void step(struct model *model, struct sequence *sequence, const int32_t *tokens, size_t n,
                 float *logits)
{
    struct error error = {0};
    struct step_segment segment = {sequence, tokens, n, n};
    if (model_step(model, &segment, 1, logits, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void check_logits(const char *name, const char *placement, const float *found,
                         const struct buffer *expected)
{
    double error = reference_error(found, (const float *)(const void *)expected->data,
                                   expected->size / sizeof(float));
    if (!(error < reference_tolerance(name)))
        fail_msg("%s over %s: relative error of the logits %g", name, placement, error);
}

/* All tokens in one step, then one by one with the same bits, then on greedily. */
static void check_text(const char *name, const char *placement, struct model *model)
{
    struct error error = {0};
    struct buffer expected = {0};
    int32_t tokens[2 * MAX_TOKENS], greedy[MAX_TOKENS];
    size_t n = reference_model_tokens(name, ".tokens", tokens, MAX_TOKENS),
           n_greedy = reference_model_tokens(name, ".greedy", greedy, MAX_TOKENS);
    size_t n_vocab = model_description(model)->n_vocab;
    assert_true(reference_model_file(name, ".logits", &expected) && n_greedy > 0);
    float *logits = malloc(expected.size), *single = malloc(expected.size);
    struct sequence *sequence;
    assert_int_equal(sequence_open(&sequence, model, &error), STATUS_OK);
    step(model, sequence, tokens, n, logits);
    check_logits(name, placement, logits, &expected);
    sequence_truncate(sequence, 0);
    for (size_t i = 0; i < n; i++)
        step(model, sequence, tokens + i, 1, single + i * n_vocab);
    if (memcmp(single, logits, expected.size) != 0)
        fail_msg("%s over %s: token by token has other logits", name, placement);
    for (size_t i = 0; i < n_greedy; i++) {
        int32_t token = (int32_t)reference_best(logits + (n - 1) * n_vocab, n_vocab);
        if (token != greedy[i])
            fail_msg("%s over %s: greedy token %zu is %d, not %d", name, placement, i, token,
                     greedy[i]);
        step(model, sequence, &token, 1, logits + (n - 1) * n_vocab);
    }
    sequence_close(sequence);
    buffer_free(&expected);
    free(logits);
    free(single);
}

static void check_model(const char *name, const char *text, bool on_fake)
{
    char path[REFERENCE_PATH_BYTES];
    struct error error = {0};
    struct weights *weights;
    struct model_desc *desc = NULL;
    struct fake_ranks ranks;
    reference_path(path, "arch/%s.gguf", name);
    if (weights_open(&weights, path, &error) != STATUS_OK ||
        model_describe(&desc, weights, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    struct model_placement placement = fake_placement(text, desc->n_layers);
    struct model_options options = {
        .n_ctx = 512, .kv_format = QUANT_F32, .n_threads = 1, .placement = &placement};
    if (fake_ranks_open(&ranks, weights, &options, on_fake, NULL, &error) != STATUS_OK)
        fail_msg("%s over %s: %s", name, text, error.text);
    check_text(name, text, ranks.owner);
    assert_int_equal(fake_ranks_close(&ranks), STATUS_OK);
    model_desc_free(desc);
    weights_close(weights);
}

static void test_over_ranks(void **state)
{
    struct buffer present = {0};
    bool found = reference_model_file(*state, ".tokens", &present);
    buffer_free(&present);
    if (!found)
        skip();
    for (size_t i = 0; i < ARRAY_COUNT(placements); i++)
        check_model(*state, placements[i], false);
    check_model(*state, "2:1+1:1", true);
}

int main(void)
{
    struct CMUnitTest tests[ARRAY_COUNT(names)];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        tests[i] = (struct CMUnitTest){names[i], test_over_ranks, NULL, NULL, (void *)names[i]};
    return cmocka_run_group_tests_name("reference models over ranks", tests, NULL, NULL);
}
