/* A smaller model that drafts for a larger one. It takes the likeliest token at each place, on a
 * sequence of its own that is cut back to what the text turned out to be. */
#include "engine/speculate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct draft_model {
    struct engine *engine; /* borrowed */
    struct sequence *sequence;
    struct token_list held; /* what the sequence holds; the first n_same are those of the text */
    size_t n_same;
    size_t n_vocab; /* ids that both models know */
    float *logits;  /* [the draft model's vocabulary, rounded up to 16] */
    double each_ns; /* time of a step of one token; 0: not measured */
};

/* ---- Vocabulary ------------------------------------------------------------------------------ */

static bool is_unused(const struct tokenizer_config *config, size_t id)
{
    return config->types != NULL && config->types[id] == TOKEN_UNUSED;
}

static enum status check_vocabulary(const struct tokenizer *draft, const struct tokenizer *target,
                                    struct error *error)
{
    const struct tokenizer_config *a = tokenizer_config(draft), *b = tokenizer_config(target);
    size_t both = MIN(a->n_tokens, b->n_tokens);
    for (size_t id = 0; id < both; id++) {
        struct view x = a->tokens[id], y = b->tokens[id];
        if (!view_equal(x, y) && !(is_unused(a, id) && is_unused(b, id)))
            return error_set(
                error, STATUS_INVALID,
                "the draft model has another vocabulary: token %zu is '%.*s' there and "
                "'%.*s' in the model",
                id, (int)MIN(x.size, 40), x.data, (int)MIN(y.size, 40), y.data);
    }
    const struct tokenizer_config *larger = a->n_tokens > b->n_tokens ? a : b;
    for (size_t id = both; id < larger->n_tokens; id++)
        if (!is_unused(larger, id))
            return error_set(
                error, STATUS_INVALID,
                "the draft model has another vocabulary: %zu tokens, and the model has "
                "%zu",
                a->n_tokens, b->n_tokens);
    return STATUS_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

enum status draft_model_open(struct draft_model **out, struct engine *draft,
                             const struct engine *target, struct error *error)
{
    *out = NULL;
    const struct model_desc *desc = model_description(draft->model);
    if (!desc->causal)
        return error_set(error, STATUS_UNSUPPORTED,
                         "the draft model is an embedding model, which writes no text");
    enum status status = check_vocabulary(draft->tokenizer, target->tokenizer, error);
    if (status != STATUS_OK)
        return status;
    struct draft_model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return error_memory(error, sizeof *model);
    model->engine = draft;
    model->n_vocab = MIN(desc->n_vocab, model_description(target->model)->n_vocab);
    size_t n_padded = ((size_t)desc->n_vocab + 15) / 16 * 16;
    model->logits = calloc(n_padded, sizeof *model->logits);
    status = model->logits == NULL ? error_memory(error, n_padded * sizeof *model->logits)
                                   : sequence_open(&model->sequence, draft->model, error);
    if (status != STATUS_OK) {
        draft_model_close(model);
        return status;
    }
    *out = model;
    return STATUS_OK;
}

void draft_model_close(struct draft_model *model)
{
    if (model == NULL)
        return;
    sequence_close(model->sequence);
    token_list_free(&model->held);
    free(model->logits);
    free(model);
}

/* ---- Drafting -------------------------------------------------------------------------------- */

static enum status compute(struct draft_model *model, const int32_t *tokens, size_t n_tokens,
                           bool logits, struct error *error)
{
    struct step_segment segment = {model->sequence, tokens, n_tokens, logits};
    uint64_t begin_ns = clock_now_ns();
    for (size_t i = 0; i < n_tokens; i++)
        if (!token_list_append(&model->held, tokens[i])) {
            model->held.count = sequence_length(model->sequence);
            return error_memory(error, n_tokens * sizeof *tokens);
        }
    enum status status = model_step(model->engine->model, &segment, 1, model->logits, error);
    model->held.count = sequence_length(model->sequence);
    double ns = (double)(clock_now_ns() - begin_ns);
    if (status == STATUS_OK && n_tokens == 1) {
        bool shorter = model->each_ns == 0 || ns < model->each_ns;
        model->each_ns = shorter ? ns : model->each_ns + (ns - model->each_ns) / 8;
    }
    return status;
}

/* Brings the sequence to text but for its last n_left tokens; where that is 0, the last is computed
 * in any case, for its logits. */
static enum status follow(struct draft_model *model, const int32_t *text, size_t n_tokens,
                          size_t n_left, struct error *error)
{
    size_t same = MIN(model->n_same, n_tokens), limit = model_batch_limit(model->engine->model);
    size_t end = n_tokens - MIN(n_left, n_tokens), keep = n_left == 0 ? end - 1 : end;
    while (same < MIN(keep, model->held.count) && model->held.ids[same] == text[same])
        same++;
    same = MIN(same, keep);
    sequence_truncate(model->sequence, (uint32_t)same);
    model->held.count = model->n_same = same;
    enum status status = STATUS_OK;
    while (model->n_same < end && status == STATUS_OK) {
        size_t n = model_even_share(end - model->n_same, limit);
        status = compute(model, text + model->n_same, n, model->n_same + n == n_tokens, error);
        if (status == STATUS_OK)
            model->n_same += n;
    }
    return status;
}

void draft_model_begin(struct draft_model *model)
{
    model->n_same = 0;
}

enum status draft_model_read(struct draft_model *model, const int32_t *text, size_t n_tokens,
                             struct error *error)
{
    if (n_tokens > model_n_ctx(model->engine->model))
        return STATUS_OK; /* it never drafts here */
    enum status status = follow(model, text, n_tokens, 1, error);
    /* One token by itself tells what drafting costs; the first may wait for the disk. */
    for (int i = 0; i < 2 && status == STATUS_OK; i++)
        status = follow(model, text, n_tokens, 0, error);
    return status;
}

/* The likeliest token that both models know, and the class of its probability. */
static int32_t likeliest(struct draft_model *model, uint8_t *class)
{
    static const double ends[SPECULATE_MODEL_CLASSES - 1] = {0.3, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99};
    size_t n_vocab = model_description(model->engine->model)->n_vocab, best = 0;
    for (size_t i = 1; i < model->n_vocab; i++)
        if (model->logits[i] > model->logits[best])
            best = i;
    float logit = model->logits[best], highest = -INFINITY;
    for (size_t i = n_vocab; i % 16 != 0; i++)
        model->logits[i] = -INFINITY;
    double sum = quant_exp_sum(model->logits, (n_vocab + 15) / 16 * 16, &highest, NULL);
    double chance = exp((double)logit - highest) / sum;
    *class = SPECULATE_NGRAM_CLASSES;
    for (size_t i = 0; i < ARRAY_COUNT(ends); i++)
        *class += chance >= ends[i];
    return (int32_t)best;
}

void draft_model_propose(struct draft_model *model, struct speculate_pay *pay, const int32_t *text,
                         size_t n_tokens, size_t limit, bool always, struct draft *out, double *ns)
{
    struct error error;
    uint64_t begin_ns = clock_now_ns();
    size_t n_ctx = model_n_ctx(model->engine->model);
    double behind = (double)(n_tokens - MIN(model->n_same, n_tokens));
    out->count = 0;
    *ns = 0;
    if (n_tokens >= n_ctx)
        return;
    limit = MIN(MIN(limit, n_ctx - n_tokens), (size_t)SPECULATE_MAX);
    if (!always &&
        speculate_pay_ahead(pay, out, limit, model->each_ns, model->each_ns * behind / 8) == 0) {
        speculate_pay_fade(pay);
        return;
    }
    if (follow(model, text, n_tokens, 0, &error) != STATUS_OK)
        return;
    while (out->count < limit) {
        int32_t token = likeliest(model, &out->classes[out->count]);
        out->tokens[out->count++] = token;
        bool more = always || speculate_pay_ahead(pay, out, limit, model->each_ns, 0) > out->count;
        if (out->count == limit || !more || compute(model, &token, 1, true, &error) != STATUS_OK)
            break;
    }
    *ns = (double)(clock_now_ns() - begin_ns);
}
