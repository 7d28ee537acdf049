/* Models whose weights are blocks: the error of the logits against exact arithmetic on the same
 * weights, with the kernels that CONSORT_ISA names, and the same bits in one step and in many. */
#include "../support/reference.h"
#include "model/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_TOKENS 64
#define MARGIN 1.05 /* of the error that llama.cpp has */

/* llama.cpp's relative error of the logits, in percent. */
static const struct {
    const char *name;
    double error;
} models[] = {
    {"F16", 0.03},       {"BF16", 0.25},     {"Q4_0", 0.96},   {"Q4_1", 0.93},   {"Q5_0", 0.95},
    {"Q5_1", 0.96},      {"Q8_0", 0.96},     {"Q2_K", 1.41},   {"Q3_K_M", 1.41}, {"Q4_K_M", 1.39},
    {"Q5_K_M", 1.42},    {"Q6_K", 1.41},     {"IQ4_NL", 0.95}, {"IQ4_XS", 1.41}, {"TQ2_0", 1.60},
    {"MXFP4_MOE", 0.94}, {"base-f32", 0.01},
};

/* Logits of all tokens, in steps of at most n_step tokens. */
static void run(struct model *model, const int32_t *tokens, size_t n, size_t n_step, float *logits)
{
    struct error error = {0};
    struct sequence *sequence;
    size_t n_vocab = model_description(model)->n_vocab;
    assert_int_equal(sequence_open(&sequence, model, &error), STATUS_OK);
    for (size_t i = 0; i < n; i += n_step) {
        size_t count = MIN(n_step, n - i);
        struct step_segment part = {sequence, tokens + i, count, count};
        if (model_step(model, &part, 1, logits + i * n_vocab, &error) != STATUS_OK)
            fail_msg("%s", error.text);
    }
    sequence_close(sequence);
}

static void check_model(const char *name, double limit, const int32_t *tokens, size_t n)
{
    char path[REFERENCE_PATH_BYTES];
    struct error error = {0};
    struct weights *weights;
    struct model *model = NULL;
    struct buffer expected = {0};
    reference_path(path, "quant/%s.logits", name);
    assert_true(reference_read(path, &expected));
    reference_path(path, "quant/%s.gguf", name);
    struct model_options options = {.n_ctx = 128, .kv_format = QUANT_F32, .n_threads = 2};
    if (weights_open(&weights, path, &error) != STATUS_OK ||
        model_open(&model, weights, &options, &error) != STATUS_OK)
        fail_msg("%s: %s", name, error.text);
    size_t n_logits = n * model_description(model)->n_vocab;
    assert_int_equal(expected.size, n_logits * sizeof(float));

    float *whole = malloc(expected.size), *parts = malloc(expected.size);
    run(model, tokens, n, n, whole);
    double found =
        100 * reference_error(whole, (const float *)(const void *)expected.data, n_logits);
    printf("# %-9s error of the logits %.4f %%, limit %.4f %%\n", name, found, limit);
    if (!(found <= limit))
        fail_msg("%s with %s kernels", name, quant_isa());
    for (size_t n_step = 1; n_step < n; n_step = 3 * n_step + 1) {
        run(model, tokens, n, n_step, parts);
        if (memcmp(whole, parts, expected.size) != 0)
            fail_msg("%s: other bits in steps of %zu tokens", name, n_step);
    }
    free(whole);
    free(parts);
    buffer_free(&expected);
    model_close(model);
    weights_close(weights);
}

static void test_logits(void **state)
{
    (void)state;
    int32_t tokens[MAX_TOKENS];
    char path[REFERENCE_PATH_BYTES];
    reference_path(path, "quant/tokens");
    size_t n = reference_tokens(path, tokens, MAX_TOKENS);
    if (n == 0) {
        printf("# no reference data: %s\n", path);
        skip();
    }
    for (size_t i = 0; i < ARRAY_COUNT(models); i++)
        check_model(models[i].name, MARGIN * models[i].error, tokens, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits)};
    return cmocka_run_group_tests_name("product_reference", tests, NULL, NULL);
}
