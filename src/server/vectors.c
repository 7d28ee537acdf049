/* Embeddings and rankings, computed on the engine's thread between two steps. */
#include "server/server_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A vector of the tokens: an embedding of length one, or where the model ranks, one score. */
static enum status embed_tokens(struct engine *engine, const struct api_call *call,
                                struct token_list *tokens, float *vector, struct error *error)
{
    size_t n_ctx = model_n_ctx(engine->model);
    if (tokens->count == 0)
        return error_set(error, STATUS_INVALID, "input has a text without tokens");
    if (tokens->count > n_ctx && call->truncate) {
        tokens->ids[n_ctx - 1] = tokens->ids[tokens->count - 1]; /* the end mark stays */
        tokens->count = n_ctx;
    }
    if (tokens->count > n_ctx)
        return error_set(error, STATUS_LIMIT,
                         "input is too large: a text has %zu tokens, the context holds %zu",
                         tokens->count, n_ctx);
    return model_embed(engine->model, tokens->ids, tokens->count, MODEL_POOLING_NONE, true, vector,
                       error);
}

/* The first n numbers of a vector of n_embd, again of length one. */
static void shorten(float *vector, size_t n)
{
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)vector[i] * vector[i];
    for (size_t i = 0; i < n && square > 0; i++)
        vector[i] = (float)(vector[i] / sqrt(square));
}

static enum status embed(struct engine *engine, const struct api_call *call,
                         struct api_result *result, float *vectors, struct error *error)
{
    const struct model_desc *desc = model_description(engine->model);
    struct token_list tokens = {0};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < call->n_prompts && status == STATUS_OK; i++) {
        float *vector = vectors + i * result->n_numbers; /* its tail is overwritten by the next */
        tokens.count = 0;
        status = prompt_encode(engine, call, &call->prompts[i], &tokens, error);
        if (status == STATUS_OK)
            status = embed_tokens(engine, call, &tokens, vector, error);
        if (result->n_numbers < desc->n_embd && status == STATUS_OK)
            shorten(vector, result->n_numbers);
        result->prompt_tokens += tokens.count;
    }
    token_list_free(&tokens);
    return status;
}

/* A reranker's score of each document; of an embedding model, the cosine with the query. */
static enum status rank(struct engine *engine, const struct api_call *call,
                        struct api_result *result, float *scores, struct error *error)
{
    const struct model_desc *desc = model_description(engine->model);
    bool ranks = desc->pooling == MODEL_POOLING_RANK;
    const struct api_prompt query = {.text = call->query};
    struct token_list tokens = {0};
    float *vectors = calloc(desc->n_embd, 2 * sizeof *vectors), *other = vectors + desc->n_embd;
    enum status status =
        vectors == NULL ? error_memory(error, 2 * desc->n_embd * sizeof *vectors) : STATUS_OK;
    if (status == STATUS_OK && !ranks)
        status = prompt_encode(engine, call, &query, &tokens, error);
    if (status == STATUS_OK && !ranks)
        status = embed_tokens(engine, call, &tokens, other, error);
    result->prompt_tokens += tokens.count;
    for (size_t i = 0; i < call->n_prompts && status == STATUS_OK; i++) {
        const struct api_prompt *document = &call->prompts[i];
        tokens.count = 0;
        status = ranks ? engine_encode_pair(engine, call->query, document->text, &tokens, error)
                       : prompt_encode(engine, call, document, &tokens, error);
        if (status == STATUS_OK)
            status = embed_tokens(engine, call, &tokens, vectors, error);
        double cosine = 0;
        for (size_t c = 0; c < desc->n_embd && !ranks && status == STATUS_OK; c++)
            cosine += (double)vectors[c] * other[c];
        if (status == STATUS_OK)
            scores[i] = ranks ? vectors[0] : (float)cosine;
        result->prompt_tokens += tokens.count;
    }
    token_list_free(&tokens);
    free(vectors);
    return status;
}

enum status vectors_compute(struct engine *engine, const struct api_call *call,
                            struct api_result *result, struct buffer *out, struct error *error)
{
    const struct model_desc *desc = model_description(engine->model);
    bool ranking = call->operation == API_RERANK;
    size_t n_embd = desc->n_embd, n = ranking ? 1 : n_embd;
    if (desc->pooling == MODEL_POOLING_NONE)
        return error_set(error, STATUS_UNSUPPORTED, "%s is no %s model", result->model,
                         ranking ? "reranking or embedding" : "embedding");
    if (desc->pooling == MODEL_POOLING_RANK && !ranking)
        return error_set(error, STATUS_UNSUPPORTED, "%s is a reranking model: ask it at /v1/rerank",
                         result->model);
    if (call->dimensions > n_embd)
        return error_set(error, STATUS_INVALID, "dimensions is %u; %s has %zu", call->dimensions,
                         result->model, n_embd);
    if (call->dimensions > 0 && !ranking)
        n = call->dimensions;
    float *vectors = calloc(call->n_prompts * n + n_embd, sizeof *vectors);
    if (vectors == NULL)
        return error_memory(error, call->n_prompts * n * sizeof *vectors);
    result->vectors = vectors;
    result->n_numbers = n;
    enum status status = ranking ? rank(engine, call, result, vectors, error)
                                 : embed(engine, call, result, vectors, error);
    if (status == STATUS_OK)
        call->format->result(call, result, out);
    free(vectors);
    result->vectors = NULL;
    return status;
}
