#include "engine/engine_internal.h"
#include "engine/speculate.h"

#include <stdlib.h>
#include <string.h>

struct session {
    struct engine *engine;
    struct sequence *sequence;
    struct sampler *sampler;
    struct detokenizer detokenizer;
    struct token_list text; /* the sequence holds it but for its last token, once one is drawn, or
                               all of it and what is left of a draft */
    size_t n_reused;
    size_t row, n_rows; /* of logits: the next to draw from, and those computed */
    float *logits;      /* [1 + tokens of a draft][n_vocab] */
    struct speculation speculation;
};

enum status session_open(struct session **out, struct engine *engine, struct error *error)
{
    *out = NULL;
    struct session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return error_memory(error, sizeof *session);
    session->engine = engine;
    size_t n_vocab = model_description(engine->model)->n_vocab;
    session->logits = calloc(n_vocab, sizeof *session->logits);
    enum status status = session->logits == NULL
                             ? error_memory(error, n_vocab * sizeof *session->logits)
                             : sequence_open(&session->sequence, engine->model, error);
    if (status != STATUS_OK) {
        session_close(session);
        return status;
    }
    *out = session;
    return STATUS_OK;
}

void session_close(struct session *session)
{
    if (session == NULL)
        return;
    sequence_close(session->sequence);
    sampler_close(session->sampler);
    token_list_free(&session->text);
    speculation_close(&session->speculation);
    free(session->logits);
    free(session);
}

/* Logits are held twice, on the device and here. */
static size_t affordable_drafts(const struct engine *engine)
{
    uint64_t row = (uint64_t)model_description(engine->model)->n_vocab * 2 * sizeof(float);
    uint64_t rows = model_memory_bytes(engine->model) / 100 / row;
    return (size_t)MIN(MAX(rows, 4) - 1, (uint64_t)SPECULATE_MAX);
}

enum status session_speculate(struct session *session, const struct session_speculation *options,
                              struct error *error)
{
    struct speculation *speculation = &session->speculation;
    size_t max = options->max_tokens > 0 ? MIN(options->max_tokens, (size_t)SPECULATE_MAX)
                                         : affordable_drafts(session->engine);
    size_t n_vocab = model_description(session->engine->model)->n_vocab;
    bool by_model = options->drafts >= SESSION_DRAFTS_MODEL && options->draft != NULL;
    if (options->drafts == SESSION_DRAFTS_MODEL && !by_model)
        return error_set(error, STATUS_INVALID, "drafts by a model need a draft model");
    speculation_close(speculation);
    if (options->drafts == SESSION_DRAFTS_OFF)
        return STATUS_OK;
    float *logits = calloc((max + 1) * n_vocab, sizeof *logits);
    if (logits == NULL)
        return error_memory(error, (max + 1) * n_vocab * sizeof *logits);
    free(session->logits);
    session->logits = logits;
    session->row = session->n_rows = 0;
    *speculation = (struct speculation){.by_ngram = options->drafts != SESSION_DRAFTS_MODEL,
                                        .max = max,
                                        .pay = speculate_pay_begin()};
    return by_model ? draft_model_open(&speculation->model, options->draft, session->engine, error)
                    : STATUS_OK;
}

struct speculation *session_speculation(struct session *session)
{
    return &session->speculation;
}

struct session_draft_counts session_drafted(const struct session *session)
{
    return (struct session_draft_counts){session->speculation.n_drafted,
                                         session->speculation.n_accepted};
}

/* The places where a repetition may well begin anew: line ends, quotes, colons, list marks. */
static enum status find_breakers(const struct tokenizer *tokenizer, struct token_list *out,
                                 struct error *error)
{
    struct buffer piece = {0};
    enum status status = STATUS_OK;
    for (size_t id = 0; id < tokenizer_count(tokenizer) && status == STATUS_OK; id++) {
        buffer_clear(&piece);
        tokenizer_piece(tokenizer, (int32_t)id, false, &piece);
        bool breaks = tokenizer_is_control(tokenizer, (int32_t)id) ||
                      (piece.size > 0 && strpbrk(piece.data, "\n\":*") != NULL);
        if (piece.failed || (breaks && !token_list_append(out, (int32_t)id)))
            status = error_memory(error, sizeof *out->ids);
    }
    buffer_free(&piece);
    return status;
}

enum status engine_sampler_open(struct sampler **out, const struct engine *engine,
                                const struct sampling *sampling, struct error *error)
{
    struct token_list breakers = {0};
    enum status status = STATUS_OK;
    *out = NULL;
    if (sampling->dry_multiplier > 0)
        status = find_breakers(engine->tokenizer, &breakers, error);
    if (status == STATUS_OK)
        status = sampler_open(out, sampling, model_description(engine->model)->n_vocab,
                              breakers.ids, breakers.count, error);
    token_list_free(&breakers);
    return status;
}

/* Every prompt gets a sampler of its own: what it remembers is rebuilt from the tokens. */
static enum status renew_sampler(struct session *session, const struct session_prompt *prompt,
                                 struct error *error)
{
    sampler_close(session->sampler);
    enum status status =
        engine_sampler_open(&session->sampler, session->engine, prompt->sampling, error);
    for (size_t i = 0; i < session->text.count && status == STATUS_OK; i++)
        sampler_accept(session->sampler, session->text.ids[i]);
    if (status == STATUS_OK && prompt->grammar != NULL)
        status = sampler_constrain(session->sampler, prompt->grammar, prompt->strip_space, error);
    return status;
}

static enum status replace_text(struct session *session, const int32_t *tokens, size_t n_tokens,
                                struct error *error)
{
    session->text.count = 0;
    for (size_t i = 0; i < n_tokens; i++)
        if (!token_list_append(&session->text, tokens[i]))
            return error_memory(error, n_tokens * sizeof *tokens);
    return STATUS_OK;
}

/* Waits for all that is under way, whatever comes of it. */
static void drain(struct model *model)
{
    struct error ignored;
    while (model_steps_under_way(model) > 0)
        model_step_end(model, &ignored);
}

/* Computes the text from what the sequence holds on; the last token gives logits. Of a pipeline all
 * stages are kept busy. */
static enum status prefill(struct session *session, session_progress *progress, void *context,
                           struct error *error)
{
    const struct token_list *text = &session->text;
    struct model *model = session->engine->model;
    size_t limit = model_batch_limit(model), done = sequence_length(session->sequence);
    size_t begun = done, most = MIN(model_steps_most(model), model_n_stages(model) + 1);
    enum status status = STATUS_OK;
    uint64_t begin_ns = clock_now_ns();
    while (done < text->count && status == STATUS_OK) {
        while (begun < text->count && model_steps_under_way(model) < most && status == STATUS_OK) {
            size_t n = model_even_share(text->count - begun, limit);
            struct step_segment segment = {.sequence = session->sequence,
                                           .tokens = text->ids + begun,
                                           .n_tokens = n,
                                           .n_logits = begun + n == text->count};
            status = model_step_begin(model, &segment, 1, session->logits, error);
            begun += n;
        }
        size_t n = model_even_share(text->count - done, limit);
        if (status == STATUS_OK)
            status = model_step_end(model, error);
        if (status != STATUS_OK)
            break;
        uint64_t now_ns = clock_now_ns();
        speculate_pay_prompt(&session->speculation.pay, n, (double)(now_ns - begin_ns));
        begin_ns = now_ns;
        done += n;
        if (progress != NULL && !progress(context, done, text->count))
            status = error_set(error, STATUS_CANCELLED, "interrupted");
    }
    drain(model);
    if (status != STATUS_OK)
        return status;
    session->row = 0;
    session->n_rows = 1;
    return STATUS_OK;
}

/* Computes the last token of the text, and with it a draft of those that follow where there is one
 * that pays: logits for each. */
static enum status decode(struct session *session, struct error *error)
{
    const struct token_list *text = &session->text;
    int32_t tokens[1 + SPECULATE_MAX] = {text->ids[text->count - 1]};
    size_t n_drafted, room = model_n_ctx(session->engine->model) - text->count - 1;
    const int32_t *draft =
        speculation_propose(&session->speculation, text->ids, text->count, room, &n_drafted);
    for (size_t i = 0; i < n_drafted; i++)
        tokens[1 + i] = draft[i];
    struct step_segment segment = {session->sequence, tokens, 1 + n_drafted, 1 + n_drafted};
    uint64_t begin_ns = clock_now_ns();
    enum status status = model_step(session->engine->model, &segment, 1, session->logits, error);
    if (status == STATUS_LIMIT && n_drafted > 0) { /* others hold pages of the KV cache */
        segment.n_tokens = segment.n_logits = 1;
        status = model_step(session->engine->model, &segment, 1, session->logits, error);
    }
    if (status != STATUS_OK)
        return status;
    session->row = 0;
    session->n_rows = segment.n_logits;
    speculation_computed(&session->speculation, session->n_rows,
                         (double)(clock_now_ns() - begin_ns));
    return STATUS_OK;
}

/* Forgets what was computed beyond the last token of the text, which is computed next. */
static void drop_rows(struct session *session)
{
    session->row = session->n_rows = 0;
    sequence_truncate(session->sequence, (uint32_t)session->text.count - 1);
}

enum status session_begin(struct session *session, const struct session_prompt *prompt,
                          struct error *error)
{
    size_t n_ctx = model_n_ctx(session->engine->model), n_tokens = prompt->n_tokens;
    if (n_tokens == 0)
        return error_set(error, STATUS_INVALID, "the prompt is empty");
    if (n_tokens >= n_ctx)
        return error_set(error, STATUS_LIMIT,
                         "the prompt has %zu tokens and the context holds %zu: it needs a shorter "
                         "prompt or a larger --ctx",
                         n_tokens, n_ctx);
    session->row = session->n_rows = 0;
    speculation_begin(&session->speculation);
    size_t held = MIN(sequence_length(session->sequence), session->text.count), same = 0;
    while (same < held && same < n_tokens && session->text.ids[same] == prompt->tokens[same])
        same++;
    session->n_reused = MIN(same, n_tokens - 1); /* the last token is computed for its logits */
    sequence_truncate(session->sequence, (uint32_t)session->n_reused);
    session->detokenizer = (struct detokenizer){.tokenizer = session->engine->tokenizer,
                                                .strip_space = prompt->strip_space};
    enum status status = replace_text(session, prompt->tokens, n_tokens, error);
    if (status == STATUS_OK)
        status = renew_sampler(session, prompt, error);
    if (status == STATUS_OK)
        status = prefill(session, prompt->progress, prompt->context, error);
    if (status == STATUS_OK)
        status = speculation_read(&session->speculation, prompt->tokens, n_tokens, error);
    return status;
}

enum status session_next(struct session *session, int32_t *token, struct buffer *piece,
                         struct error *error)
{
    struct token_list *text = &session->text;
    if (text->count >= model_n_ctx(session->engine->model))
        return error_set(error, STATUS_LIMIT, "the context of %u tokens is full",
                         model_n_ctx(session->engine->model));
    if (session->row == session->n_rows) {
        bool last_only = sequence_length(session->sequence) + 1 == text->count;
        enum status status =
            last_only ? decode(session, error) : prefill(session, NULL, NULL, error);
        if (status != STATUS_OK)
            return status;
    }
    size_t n_vocab = model_description(session->engine->model)->n_vocab;
    float *logits = session->logits + session->row++ * n_vocab;
    int32_t id = sampler_draw(session->sampler, logits, text->count);
    if (id < 0) {
        drop_rows(session);
        return error_set(error, STATUS_INVALID, "%s", sampler_failure(session->sampler));
    }
    if (!token_list_append(text, id)) {
        drop_rows(session);
        return error_memory(error, sizeof id);
    }
    sampler_accept(session->sampler, id);
    detokenizer_feed(&session->detokenizer, id, piece);
    if (!speculation_drawn(&session->speculation, id))
        drop_rows(session);
    *token = id;
    return piece->failed ? error_memory(error, piece->size) : STATUS_OK;
}

void session_finish(struct session *session, struct buffer *piece)
{
    detokenizer_finish(&session->detokenizer, piece);
}

size_t session_reused(const struct session *session)
{
    return session->n_reused;
}
