/* The ranks of one model agree when they open it: the owner decides on context, cache and batch,
 * and the others take that over; each tells the owner whether it could. So a model opens on all
 * ranks, or fails on the owner with the sentence of the rank that could not. */
#include "model/model_internal.h"

#include <stdio.h>
#include <string.h>

#define TERMS_MAGIC 0x6d726331u /* and the version */

struct terms {
    uint32_t magic;
    uint32_t status; /* of the owner so far */
    uint32_t n_ctx, n_pages, batch, kv_format;
    uint32_t n_layers, n_embd, n_vocab, zero;
    uint64_t fingerprint;
};
_Static_assert(sizeof(struct terms) == 48, "as on the wire");

struct report {
    uint32_t status;
    char text[252];
};
_Static_assert(sizeof(struct report) == 256, "as on the wire");

static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
    const unsigned char *bytes = data; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

/* Of the model and its placement. */
static uint64_t fingerprint(const struct model *model)
{
    const struct model_placement *placement = model->slice.placement;
    uint64_t hash =
        mix(14695981039346656037u, model->desc->architecture, strlen(model->desc->architecture));
    hash = mix(hash, &model->desc->n_params, sizeof model->desc->n_params);
    for (uint32_t s = 0; s < placement->n_stages; s++) {
        const struct model_stage *stage = &placement->stages[s];
        hash = mix(hash, &stage->first_layer, sizeof stage->first_layer);
        hash = mix(hash, &stage->end_layer, sizeof stage->end_layer);
        hash = mix(hash, stage->shares, stage->n_shards * sizeof *stage->shares);
    }
    return hash;
}

enum status ranks_send_terms(struct model *model, enum status status, struct error *error)
{
    struct comm *comm = model->exchange.comm;
    struct terms terms = {.magic = TERMS_MAGIC,
                          .status = status,
                          .n_ctx = model->n_ctx,
                          .n_pages = model->n_pages,
                          .batch = model->batch,
                          .kv_format = model->kv_format};
    if (status == STATUS_OK) {
        terms.n_layers = model->desc->n_layers;
        terms.n_embd = model->desc->n_embd;
        terms.n_vocab = model->desc->n_vocab;
        terms.fingerprint = fingerprint(model);
    }
    for (uint32_t r = 0; r < comm->n_ranks; r++) {
        struct comm_transfer transfer = {.rank = r, .out = &terms, .out_bytes = sizeof terms};
        if (r != comm->rank && !exchange_call(model, &transfer, 1))
            return error_set(error, STATUS_LOST, "%s", model->exchange.error.text);
    }
    return status;
}

enum status ranks_take_terms(struct model *model, struct error *error)
{
    struct terms terms = {0};
    struct comm_transfer transfer = {
        .rank = model->slice.owner, .in = &terms, .in_bytes = sizeof terms};
    if (!exchange_call(model, &transfer, 1))
        return error_set(error, STATUS_LOST, "%s", model->exchange.error.text);
    if (terms.magic == TERMS_MAGIC && terms.status != STATUS_OK)
        return error_set(error, STATUS_LOST, "the owner of the model could not open it");
    if (terms.magic != TERMS_MAGIC || terms.fingerprint != fingerprint(model) ||
        terms.n_layers != model->desc->n_layers || terms.n_embd != model->desc->n_embd ||
        terms.n_vocab != model->desc->n_vocab)
        return error_set(error, STATUS_INVALID,
                         "the owner has another model, placement or version of the program");
    bool fits = terms.n_ctx >= 1 && terms.n_ctx <= MODEL_MAX_CTX &&
                terms.n_pages >= model_pages_for(terms.n_ctx) && terms.batch >= 1 &&
                terms.n_pages <= 2 * model_pages_for(MODEL_MAX_CTX) &&
                terms.batch <= MODEL_BATCH_PANELS && terms.kv_format < QUANT_FORMAT_COUNT;
    if (!fits)
        return error_set(error, STATUS_INVALID, "the owner asks for sizes that make no sense");
    model->n_ctx = terms.n_ctx;
    model->n_pages = terms.n_pages;
    model->batch = terms.batch;
    model->kv_format = (enum quant_format)terms.kv_format;
    return model_check_kv_format(model->desc, model->kv_format, error);
}

static enum status collect(struct model *model, enum status status, struct error *error)
{
    for (uint32_t r = 0; r < model->slice.n_ranks; r++) {
        struct report report = {0};
        struct comm_transfer transfer = {.rank = r, .in = &report, .in_bytes = sizeof report};
        if (r == model->slice.rank)
            continue;
        if (!exchange_call(model, &transfer, 1))
            return status != STATUS_OK
                       ? status
                       : error_set(error, STATUS_LOST, "%s", model->exchange.error.text);
        report.text[sizeof report.text - 1] = '\0';
        if (status == STATUS_OK && report.status != STATUS_OK)
            status = error_set(error, report.status <= STATUS_LOST ? report.status : STATUS_INVALID,
                               "rank %u: %.230s", r, report.text);
    }
    return status;
}

enum status ranks_report(struct model *model, enum status status, struct error *error)
{
    if (model->slice.rank == model->slice.owner)
        return collect(model, status, error);
    struct report report = {.status = status};
    if (status != STATUS_OK && error != NULL)
        snprintf(report.text, sizeof report.text, "%.*s", (int)sizeof report.text - 1, error->text);
    struct comm_transfer transfer = {
        .rank = model->slice.owner, .out = &report, .out_bytes = sizeof report};
    if (!exchange_call(model, &transfer, 1) && status == STATUS_OK)
        return error_set(error, STATUS_LOST, "%s", model->exchange.error.text);
    return status;
}
