#include "cli/drafts.h"

#include <stdlib.h>
#include <string.h>

#define PASSAGE 32 /* tokens of the prompt that are repeated */

struct pair {
    struct session *sessions[2]; /* without and with drafts */
    struct engine *draft;
    int32_t *answers[2];
    double *speeds[3]; /* the sessions', and their ratio */
};

static enum status answer(struct session *session, uint32_t n_vocab, uint32_t n_tokens,
                          int32_t *tokens, double *speed, struct error *error)
{
    int32_t prompt[DRAFTS_PROMPT];
    struct sampling greedy = SAMPLING_DEFAULTS;
    greedy.temperature = 0;
    for (size_t i = 0; i < DRAFTS_PROMPT; i++)
        prompt[i] = (int32_t)(rng_u64(1, i % PASSAGE, 0) % n_vocab);
    struct session_prompt asked = {
        .tokens = prompt, .n_tokens = DRAFTS_PROMPT, .sampling = &greedy};
    enum status status = session_begin(session, &asked, error);
    struct buffer piece = {0};
    uint64_t begin_ns = clock_now_ns();
    for (uint32_t i = 0; i < n_tokens && status == STATUS_OK; i++) {
        buffer_clear(&piece);
        status = session_next(session, &tokens[i], &piece, error);
        if (status == STATUS_OK && cli_interrupted())
            status = error_set(error, STATUS_CANCELLED, "interrupted");
    }
    *speed = (double)n_tokens * 1e9 / (double)MAX(clock_now_ns() - begin_ns, 1);
    buffer_free(&piece);
    return status;
}

static enum status open_pair(struct pair *pair, struct engine *engine, uint32_t n_tokens,
                             uint32_t repeats, struct error *error)
{
    enum status status = STATUS_OK;
    for (size_t i = 0; i < ARRAY_COUNT(pair->speeds) && status == STATUS_OK; i++) {
        pair->speeds[i] = calloc(repeats, sizeof *pair->speeds[i]);
        if (pair->speeds[i] == NULL)
            status = error_memory(error, repeats * sizeof *pair->speeds[i]);
    }
    for (size_t i = 0; i < 2 && status == STATUS_OK; i++) {
        pair->answers[i] = calloc(n_tokens, sizeof *pair->answers[i]);
        status = pair->answers[i] == NULL ? error_memory(error, n_tokens * sizeof(int32_t))
                                          : session_open(&pair->sessions[i], engine, error);
    }
    return status == STATUS_OK ? cli_speculate(pair->sessions[1], engine, &pair->draft, error)
                               : status;
}

static void close_pair(struct pair *pair)
{
    for (size_t i = 0; i < 2; i++) {
        session_close(pair->sessions[i]);
        free(pair->answers[i]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(pair->speeds); i++)
        free(pair->speeds[i]);
    engine_close(pair->draft);
}

static int compare(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

enum status drafts_measure(struct drafts_result *out, struct engine *engine, uint32_t n_tokens,
                           uint32_t repeats, struct error *error)
{
    struct pair pair = {0};
    uint32_t n_vocab = model_description(engine->model)->n_vocab;
    enum status status = open_pair(&pair, engine, n_tokens, repeats, error);
    for (uint32_t r = 0; r < repeats && status == STATUS_OK; r++) {
        for (size_t i = 0; i < 2 && status == STATUS_OK; i++)
            status = answer(pair.sessions[i], n_vocab, n_tokens, pair.answers[i],
                            &pair.speeds[i][r], error);
        pair.speeds[2][r] = pair.speeds[1][r] / pair.speeds[0][r];
        if (status == STATUS_OK &&
            memcmp(pair.answers[0], pair.answers[1], n_tokens * sizeof *pair.answers[0]) != 0)
            status = error_set(error, STATUS_INVALID,
                               "drafts changed the text, which they must not: please report it");
    }
    if (status == STATUS_OK) {
        for (size_t i = 0; i < ARRAY_COUNT(pair.speeds); i++)
            qsort(pair.speeds[i], repeats, sizeof *pair.speeds[i], compare);
        *out = (struct drafts_result){.tokens = n_tokens,
                                      .plain = pair.speeds[0][repeats / 2],
                                      .drafting = pair.speeds[1][repeats / 2],
                                      .ratio = pair.speeds[2][repeats / 2],
                                      .least = pair.speeds[2][0],
                                      .most = pair.speeds[2][repeats - 1],
                                      .counts = session_drafted(pair.sessions[1])};
    }
    close_pair(&pair);
    return status;
}

void drafts_print(const struct drafts_result *result)
{
    cli_printf("drafts  %6u %10.2f tokens/s, without %.2f: %.2f times (%.2f to %.2f), %zu of %zu "
               "accepted\n",
               result->tokens, result->drafting, result->plain, result->ratio, result->least,
               result->most, result->counts.accepted, result->counts.drafted);
}

json_t *drafts_json(const struct drafts_result *result)
{
    return json_pack(
        "{s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I}", "tokens", (json_int_t)result->tokens,
        "tokens_per_s", result->drafting, "plain_tokens_per_s", result->plain, "ratio",
        result->ratio, "min", result->least, "max", result->most, "drafted_tokens",
        (json_int_t)result->counts.drafted, "accepted_tokens", (json_int_t)result->counts.accepted);
}
