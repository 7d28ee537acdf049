#include "engine/scheduler_internal.h"
#include "engine/engine_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Opening --------------------------------------------------------------------------------- */

static size_t prompt_length(const struct generation_request *request)
{
    return request->n_tokens - request->n_drawn;
}

static enum status check_tokens(const struct generation_request *request, uint32_t n_vocab,
                                uint32_t n_ctx, struct error *error)
{
    if (request->n_drawn >= request->n_tokens)
        return error_set(error, STATUS_INVALID, "the prompt is empty");
    if (prompt_length(request) >= n_ctx)
        return error_set(error, STATUS_LIMIT,
                         "the prompt has %zu tokens and the context holds %u: it needs a shorter "
                         "prompt or a larger context",
                         prompt_length(request), n_ctx);
    for (size_t i = 0; i < request->n_tokens; i++)
        if (request->tokens[i] < 0 || (uint32_t)request->tokens[i] >= n_vocab)
            return error_set(error, STATUS_INVALID, "token id %d is outside the vocabulary of %u",
                             request->tokens[i], n_vocab);
    return STATUS_OK;
}

static enum status check_texts(const struct generation_request *request, struct error *error)
{
    if (request->n_stops > GENERATION_MAX_STOPS)
        return error_set(error, STATUS_INVALID, "%zu stop texts; at most %d are possible",
                         request->n_stops, GENERATION_MAX_STOPS);
    for (size_t i = 0; i < request->n_stops; i++) {
        struct view stop = request->stops[i];
        if (stop.size == 0 || stop.size > GENERATION_MAX_STOP_BYTES)
            return error_set(error, STATUS_INVALID,
                             "stop text %zu has %zu bytes; it must have 1 to %d", i + 1, stop.size,
                             GENERATION_MAX_STOP_BYTES);
        if (!utf8_valid(stop.data, stop.size))
            return error_set(error, STATUS_INVALID, "stop text %zu is not valid UTF-8", i + 1);
    }
    if (request->n_top_logprobs > GENERATION_MAX_TOP_LOGPROBS)
        return error_set(error, STATUS_INVALID, "%u logprobs a token; at most %d are possible",
                         request->n_top_logprobs, GENERATION_MAX_TOP_LOGPROBS);
    return STATUS_OK;
}

/* Appends a token to the text. */
static enum status take(struct stream *stream, int32_t token, struct error *error)
{
    if (!token_list_append(&stream->text, token))
        return error_memory(error, sizeof token);
    sampler_accept(stream->sampler, token);
    return STATUS_OK;
}

static bool ends(const struct stream *stream, int32_t token)
{
    return !stream->request->ignore_end && tokenizer_ends_generation(stream->tokenizer, token);
}

/* Takes the tokens that were drawn before, as stream_advance would have; their events were given
 * then. */
static enum status take_drawn(struct stream *stream, struct error *error)
{
    const struct generation_request *request = stream->request;
    enum status status = STATUS_OK;
    for (size_t i = prompt_length(request); i < request->n_tokens && status == STATUS_OK; i++) {
        int32_t token = request->tokens[i];
        struct view text;
        if (stream->over)
            return error_set(error, STATUS_INVALID,
                             "the answer was over before the last of the %zu tokens that are said "
                             "to be drawn",
                             request->n_drawn);
        status = take(stream, token, error);
        stream->usage.n_output++;
        stream->over = ends(stream, token);
        if (stream->over) {
            stream->end_token = token;
            stream_finish(stream, FINISH_END);
        } else if (answer_feed(&stream->answer, token, &text, &stream->stop)) {
            stream->over = true;
            stream->reason = FINISH_STOP;
        }
    }
    if (status == STATUS_OK && !stream->over && stream->text.count >= stream->limit) {
        stream->over = true;
        stream_finish(stream, FINISH_LENGTH);
    }
    return status;
}

static enum status take_tokens(struct stream *stream, struct error *error)
{
    const struct generation_request *request = stream->request;
    enum status status = STATUS_OK;
    for (size_t i = 0; i < prompt_length(request) && status == STATUS_OK; i++)
        status = take(stream, request->tokens[i], error);
    if (status == STATUS_OK && request->grammar != NULL)
        status = sampler_constrain(stream->sampler, request->grammar, request->strip_space, error);
    return status == STATUS_OK ? take_drawn(stream, error) : status;
}

static enum status fill(struct stream *stream, const struct engine *engine, uint32_t n_ctx,
                        struct error *error)
{
    const struct generation_request *request = stream->request;
    const struct model_desc *desc = model_description(engine->model);
    if (!desc->causal)
        return error_set(error, STATUS_UNSUPPORTED,
                         "this is an embedding model: it cannot write text");
    enum status status = check_tokens(request, desc->n_vocab, n_ctx, error);
    if (status == STATUS_OK)
        status = check_texts(request, error);
    if (status == STATUS_OK)
        status = engine_sampler_open(&stream->sampler, engine, &request->sampling, error);
    if (status != STATUS_OK)
        return status;
    size_t left = n_ctx - prompt_length(request);
    stream->limit =
        prompt_length(request) + (request->max_tokens > 0 ? MIN(request->max_tokens, left) : left);
    stream->usage.n_prompt = prompt_length(request);
    status = take_tokens(stream, error);
    if (status != STATUS_OK || !request->want_logprobs)
        return status;
    stream->raw = calloc(desc->n_vocab, sizeof *stream->raw);
    stream->top = calloc(MAX(request->n_top_logprobs, 1), sizeof *stream->top);
    return stream->raw == NULL || stream->top == NULL
               ? error_memory(error, desc->n_vocab * sizeof *stream->raw)
               : STATUS_OK;
}

enum status stream_open(struct stream **out, const struct engine *engine, uint32_t n_ctx,
                        struct generation_request *request, struct error *error)
{
    *out = NULL;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        generation_request_close(request);
        return error_memory(error, sizeof *stream);
    }
    stream->request = request;
    stream->tokenizer = engine->tokenizer;
    stream->n_vocab = model_description(engine->model)->n_vocab;
    stream->end_token = TOKEN_NONE;
    stream->accepted_ns = clock_now_ns();
    stream->answer = (struct answer){.detokenizer = {.tokenizer = engine->tokenizer,
                                                     .with_special = request->show_control,
                                                     .strip_space = request->strip_space},
                                     .stops = request->stops,
                                     .n_stops = request->n_stops};
    enum status status = fill(stream, engine, n_ctx, error);
    if (status != STATUS_OK) {
        stream_close(stream);
        return status;
    }
    *out = stream;
    return STATUS_OK;
}

void stream_close(struct stream *stream)
{
    if (stream == NULL)
        return;
    sequence_close(stream->sequence);
    sampler_close(stream->sampler);
    answer_free(&stream->answer);
    token_list_free(&stream->text);
    free(stream->raw);
    free(stream->top);
    generation_request_close(stream->request);
    free(stream);
}

/* ---- Tokens ---------------------------------------------------------------------------------- */

size_t stream_pending(const struct stream *stream)
{
    return stream->text.count - sequence_length(stream->sequence);
}

void stream_draw(struct stream *stream, size_t row)
{
    float *logits = stream->logits + row * stream->n_vocab;
    double log_total = 0;
    if (stream->raw != NULL) {
        memcpy(stream->raw, logits, stream->n_vocab * sizeof *stream->raw);
        stream->n_top = sample_logprobs(stream->raw, stream->n_vocab, stream->top,
                                        stream->request->n_top_logprobs, &log_total);
    }
    stream->drawn = sampler_draw(stream->sampler, logits, stream->text.count);
    if (stream->raw != NULL && stream->drawn >= 0)
        stream->logprob = (float)(stream->raw[stream->drawn] - log_total);
}

static void give(struct stream *stream, struct generation_event event)
{
    event.id = stream->id;
    /* What was drawn before is computed, or found in the cache, beside the prompt. */
    stream->usage.n_cached = MIN(stream->usage.n_cached, stream->usage.n_prompt);
    event.usage = stream->usage;
    stream->callback(stream->context, &event);
}

void stream_give_scores(struct stream *stream)
{
    if (stream->n_scored == 0) {
        give(stream, (struct generation_event){
                         .kind = GENERATION_PROMPT, .token = stream->text.ids[0], .logprob = NAN});
        stream->n_scored = 1;
    }
    for (size_t i = 0; i < stream->n_scores; i++) {
        const float *row = stream->scores + i * stream->n_vocab;
        size_t index = stream->first_score + i;
        double log_total;
        if (index < stream->n_scored) /* told before a pause */
            continue;
        int32_t token = stream->text.ids[index];
        size_t n_top = sample_logprobs(row, stream->n_vocab, stream->top,
                                       stream->request->n_top_logprobs, &log_total);
        give(stream, (struct generation_event){.kind = GENERATION_PROMPT,
                                               .index = index,
                                               .token = token,
                                               .logprob = (float)(row[token] - log_total),
                                               .top = stream->top,
                                               .n_top = n_top});
        stream->n_scored++;
    }
}

void stream_give_started(struct stream *stream)
{
    stream->started = true;
    stream->started_ns = clock_now_ns();
    stream->usage.prefill_ns = stream->started_ns - stream->begun_ns;
    give(stream, (struct generation_event){.kind = GENERATION_STARTED});
}

bool stream_advance(struct stream *stream)
{
    struct error error;
    enum status status = STATUS_OK;
    int32_t token = stream->drawn;
    if (token < 0)
        status = error_set(&error, STATUS_INVALID, "%s", sampler_failure(stream->sampler));
    else
        status = take(stream, token, &error);
    if (status != STATUS_OK) {
        stream_fail(stream, &error);
        return true;
    }
    size_t index = stream->usage.n_output++;
    if (ends(stream, token)) {
        stream->end_token = token;
        stream_finish(stream, FINISH_END);
        return true;
    }
    struct view text;
    bool stopped = answer_feed(&stream->answer, token, &text, &stream->stop);
    give(stream, (struct generation_event){.kind = GENERATION_TOKEN,
                                           .text = text,
                                           .index = index,
                                           .token = token,
                                           .logprob = stream->logprob,
                                           .top = stream->top,
                                           .n_top = stream->n_top});
    if (stopped)
        stream->reason = FINISH_STOP;
    else if (stream->text.count >= stream->limit)
        stream_finish(stream, FINISH_LENGTH);
    else
        return false;
    return true;
}

/* ---- The end --------------------------------------------------------------------------------- */

void stream_finish(struct stream *stream, enum finish_reason reason)
{
    stream->reason = reason;
    if (answer_finish(&stream->answer, &stream->last_text, &stream->stop))
        stream->reason = FINISH_STOP;
}

void stream_fail(struct stream *stream, const struct error *error)
{
    stream->failed = true;
    stream->error = *error;
}

void stream_give_end(struct stream *stream)
{
    uint64_t now = clock_now_ns();
    if (stream->begun_ns == 0)
        stream->usage.queue_ns = now - stream->accepted_ns;
    else if (stream->started)
        stream->usage.decode_ns = now - stream->started_ns;
    else
        stream->usage.prefill_ns = now - stream->begun_ns;
    if (stream->answer.text.failed && !stream->failed) {
        stream->failed = true;
        error_memory(&stream->error, stream->answer.text.size);
    }
    give(stream,
         (struct generation_event){.kind = stream->failed ? GENERATION_FAILED : GENERATION_FINISHED,
                                   .text = stream->last_text,
                                   .reason = stream->reason,
                                   .end_token = stream->end_token,
                                   .stop = stream->stop,
                                   .error = stream->failed ? &stream->error : NULL});
}
