/* Pooled vectors: embeddings, and a reranker's score. */
#include "model/model_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* rows[n][n_cols] -> out[n_cols]. */
static void pool_rows(enum model_pooling pooling, const float *rows, size_t n, size_t n_cols,
                      float *out)
{
    if (pooling == MODEL_POOLING_MEAN) {
        for (size_t c = 0; c < n_cols; c++) {
            double sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += rows[i * n_cols + c];
            out[c] = (float)(sum / (double)n);
        }
        return;
    }
    size_t row = pooling == MODEL_POOLING_LAST ? n - 1 : 0;
    memcpy(out, rows + row * n_cols, n_cols * sizeof *out);
}

static void normalise(float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float scale = sum > 0 ? (float)(1 / sqrt(sum)) : 0;
    for (size_t i = 0; i < n; i++)
        x[i] *= scale;
}

static void product(struct model *model, const struct weight *weight, struct device_ref x,
                    struct device_ref y)
{
    struct op op = {.kind = OP_MATMUL,
                    .matmul = {.parts = {{.w = weight->matrix, .y = y, .bias = weight->bias}},
                               .x = x,
                               .n_parts = 1,
                               .n = 1}};
    model->backend->run(model->backend, &op);
}

/* The first of n labels: its logit where a classifier was trained to give one, its probability
 * where a text model was asked to choose between labels (yes, no). */
static float first_label(const float *logits, size_t n, bool choose)
{
    if (!choose || n < 2)
        return logits[0];
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - logits[0]);
    return (float)(1 / sum);
}

/* The classifier of a reranker over a pooled row: out(tanh(dense(x))). */
static enum status rank(struct model *model, float *row, float *score, struct error *error)
{
    struct backend *backend = model->backend;
    size_t n_embd = model->desc->n_embd;
    if (!weight_present(&model->classifier_out))
        return error_set(
            error, STATUS_UNSUPPORTED,
            "the file has no classifier (tensor cls.output.weight), so it cannot rank");
    struct device_ref x = model->at.h, y = model->at.out;
    enum status status = STATUS_OK;
    backend->upload(backend, x, row, n_embd * sizeof *row);
    if (weight_present(&model->classifier)) {
        product(model, &model->classifier, x, y);
        status = backend->download(backend, row, y, n_embd * sizeof *row);
        for (size_t i = 0; i < n_embd; i++)
            row[i] = tanhf(row[i]);
        backend->upload(backend, x, row, n_embd * sizeof *row);
    }
    product(model, &model->classifier_out, x, y);
    size_t n_labels = model->classifier_out.matrix.n_rows; /* at most n_embd */
    enum status last = backend->download(backend, row, y, n_labels * sizeof *row);
    status = status != STATUS_OK ? status : last;
    if (status != STATUS_OK)
        return error_set(error, status, "out of memory while computing a score");
    *score = first_label(row, n_labels, model->desc->causal);
    return STATUS_OK;
}

/* All rows of the last layer, after the output norm where there is one. */
static enum status hidden_rows(struct model *model, struct sequence *sequence,
                               const int32_t *tokens, size_t n_tokens, float *rows,
                               struct error *error)
{
    size_t n_embd = model->desc->n_embd;
    if (!model->desc->causal && n_tokens > model->batch)
        return error_set(error, STATUS_LIMIT,
                         "the text has %zu tokens; this model reads at most %u", n_tokens,
                         model->batch);
    for (size_t done = 0, n; done < n_tokens; done += n) {
        n = model_even_share(n_tokens - done, model->batch);
        struct step_segment segment = {sequence, tokens + done, n, 0};
        enum status status = model_step(model, &segment, 1, NULL, error);
        if (status != STATUS_OK)
            return status;
        const struct norm_weights *norm = &model->output_norm;
        struct op op = {.kind = OP_NORM,
                        .norm = {.norm = model->desc->norm,
                                 .eps = model->desc->norm_eps,
                                 .x = model->at.x,
                                 .y = model->at.x,
                                 .weight = norm->weight.data,
                                 .bias = norm->bias.data,
                                 .n_rows = (uint32_t)n,
                                 .n_cols = (uint32_t)n_embd,
                                 .n_weight_rows = 1,
                                 .x_stride = (uint32_t)n_embd,
                                 .y_stride = (uint32_t)n_embd}};
        if (norm_present(norm))
            model->backend->run(model->backend, &op);
        status = model->backend->download(model->backend, rows + done * n_embd, model->at.x,
                                          n * n_embd * sizeof *rows);
        if (status != STATUS_OK)
            return error_set(error, status, "out of memory while computing an embedding");
    }
    return STATUS_OK;
}

enum status model_embed(struct model *model, const int32_t *tokens, size_t n_tokens,
                        enum model_pooling pooling, bool normalised, float *out,
                        struct error *error)
{
    size_t n_embd = model->desc->n_embd, size;
    if (pooling == MODEL_POOLING_NONE)
        pooling = model->desc->pooling;
    if (pooling == MODEL_POOLING_NONE)
        pooling = model->desc->causal ? MODEL_POOLING_LAST : MODEL_POOLING_MEAN;
    if (n_tokens == 0)
        return error_set(error, STATUS_INVALID, "an empty text has no embedding");
    if (!size_mul(n_tokens + 1, n_embd * sizeof(float), &size))
        return error_memory(error, SIZE_MAX);
    float *rows = malloc(size);
    if (rows == NULL)
        return error_memory(error, size);
    struct sequence *sequence = NULL;
    enum status status = sequence_open(&sequence, model, error);
    if (status == STATUS_OK)
        status = hidden_rows(model, sequence, tokens, n_tokens, rows, error);
    if (status == STATUS_OK) {
        float *pooled = rows + n_tokens * n_embd;
        enum model_pooling row = pooling;
        if (pooling == MODEL_POOLING_RANK && model->desc->causal)
            row = MODEL_POOLING_LAST;
        pool_rows(row, rows, n_tokens, n_embd, pooled);
        if (pooling == MODEL_POOLING_RANK)
            status = rank(model, pooled, out, error);
        else
            memcpy(out, pooled, n_embd * sizeof *out);
        if (status == STATUS_OK && pooling != MODEL_POOLING_RANK && normalised)
            normalise(out, n_embd);
    }
    sequence_close(sequence);
    free(rows);
    return status;
}
