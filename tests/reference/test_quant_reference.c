/* Decoding and encoding against files that independent programs made: $CONSORT_REFERENCE/quant. */
#include "../support/reference.h"
#include "quant/quant.h"
#include "weights/weights.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TENSOR "blk.0.ffn_down.weight"

/* The files, and llama.cpp's relative L2 error of encoding TENSOR, in % (0: none is known). */
static const struct {
    const char *file;
    enum quant_format format;
    double error;
} files[] = {
    {"F16", QUANT_F16, 0},          {"BF16", QUANT_BF16, 0},
    {"Q4_0", QUANT_Q4_0, 8.59},     {"Q4_1", QUANT_Q4_1, 7.83},
    {"Q5_0", QUANT_Q5_0, 4.26},     {"Q5_1", QUANT_Q5_1, 3.79},
    {"Q8_0", QUANT_Q8_0, 0.54},     {"Q2_K", QUANT_Q2_K, 29.6},
    {"Q3_K_M", QUANT_Q3_K, 15.1},   {"Q4_K_M", QUANT_Q4_K, 7.14},
    {"Q5_K_M", QUANT_Q5_K, 3.62},   {"Q6_K", QUANT_Q6_K, 1.77},
    {"IQ4_NL", QUANT_IQ4_NL, 7.64}, {"IQ4_XS", QUANT_IQ4_XS, 7.70},
    {"TQ2_0", QUANT_TQ2_0, 0},      {"MXFP4_MOE", QUANT_MXFP4, 11.6},
};

/* Opens quant/NAME under the reference folder; skips the test when there is no such folder. */
static struct weights *open_reference(const char *name, const struct weights_tensor **tensor)
{
    char path[REFERENCE_PATH_BYTES];
    struct weights *weights;
    struct error error;
    reference_path(path, "quant/%s.gguf", name);
    enum status status = weights_open(&weights, path, &error);
    if (status == STATUS_NOT_FOUND) {
        print_message("no reference data at %s\n", path);
        skip();
    }
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
    *tensor = weights_find(weights, TENSOR);
    assert_non_null(*tensor);
    return weights;
}

static struct buffer read_decoded(const char *name)
{
    char path[REFERENCE_PATH_BYTES];
    struct buffer bytes = {0};
    reference_path(path, "quant/%s.ffn_down.f32", name);
    if (!reference_read(path, &bytes))
        fail_msg("%s cannot be read", path);
    return bytes;
}

static void test_decode_bit_exact(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_COUNT(files); f++) {
        const struct weights_tensor *tensor;
        struct weights *weights = open_reference(files[f].file, &tensor);
        assert_int_equal(tensor->format, files[f].format);
        size_t n = (size_t)(tensor->shape[0] * tensor->shape[1]);
        struct buffer want = read_decoded(files[f].file);
        assert_int_equal(want.size, n * sizeof(float));
        float *got = malloc(n * sizeof *got);
        assert_non_null(got);
        quant_decode(tensor->format, tensor->data, got, n);
        if (memcmp(got, want.data, want.size) != 0)
            fail_msg("%s: decoding differs", files[f].file);
        free(got);
        buffer_free(&want);
        weights_close(weights);
    }
}

static double encoding_error(enum quant_format format, const float *x, size_t n_rows, size_t n_cols)
{
    double error = 0, size = 0;
    void *row = malloc(quant_row_bytes(format, n_cols));
    float *y = malloc(n_cols * sizeof *y);
    assert_true(row != NULL && y != NULL);
    for (size_t r = 0; r < n_rows; r++, x += n_cols) {
        quant_encode(format, x, row, n_cols, NULL);
        quant_decode(format, row, y, n_cols);
        for (size_t i = 0; i < n_cols; i++) {
            error += pow((double)x[i] - y[i], 2);
            size += pow(x[i], 2);
        }
    }
    free(row);
    free(y);
    return 100 * sqrt(error / size);
}

static void test_encode_error(void **state)
{
    (void)state;
    const struct weights_tensor *tensor;
    struct weights *weights = open_reference("base-f32", &tensor);
    assert_int_equal(tensor->format, QUANT_F32);
    for (size_t f = 0; f < ARRAY_COUNT(files); f++) {
        if (files[f].error == 0)
            continue;
        double error = encoding_error(files[f].format, tensor->data, (size_t)tensor->shape[1],
                                      (size_t)tensor->shape[0]);
        const char *name = quant_info(files[f].format)->name;
        print_message("# %-6s encoding error %6.3f %%, reference %5.2f %%\n", name, error,
                      files[f].error);
        if (error > 1.01 * files[f].error)
            fail_msg("%s: encoding error %.3f %%, at most %.3f %% expected", name, error,
                     1.01 * files[f].error);
    }
    weights_close(weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_bit_exact),
        cmocka_unit_test(test_encode_error),
    };
    return cmocka_run_group_tests_name("quant reference", tests, NULL, NULL);
}
