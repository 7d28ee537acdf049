/* llama-server's own answers. */
#include "api/api_internal.h"

#include <string.h>

/* ---- Completions ----------------------------------------------------------------------------- */

#define RANDOM_SEED 4294967295ull /* what scripts read as "a new one each time" */

/* "temperature":0.8, … as the tables of fields name them. */
static void put_settings(const struct api_call *call, struct buffer *out)
{
    for (size_t i = 0; i < n_sampling_fields; i++) {
        const char *at = (const char *)call + sampling_fields[i].offset;
        uint32_t whole;
        float number;
        memcpy(&whole, at, sizeof whole);
        memcpy(&number, at, sizeof number);
        buffer_printf(out, "\"%s\":", sampling_fields[i].name);
        if (sampling_fields[i].type == FIELD_F32)
            buffer_printf(out, "%.9g,", (double)number);
        else
            buffer_printf(out, "%lld,", whole == UINT32_MAX ? -1 : (long long)whole);
    }
    bool limited = call->max_tokens != 0 && call->max_tokens != UINT32_MAX;
    buffer_printf(out, "\"n_predict\":%lld,\"n_probs\":%u,\"ignore_eos\":%s,\"stream\":%s",
                  limited ? (long long)call->max_tokens : -1, call->n_top_logprobs,
                  call->ignore_end ? "true" : "false", call->stream ? "true" : "false");
    buffer_printf(out, ",\"seed\":%llu",
                  call->has_seed ? (unsigned long long)call->sampling.seed : RANDOM_SEED);
    buffer_append_text(out, ",\"stop\":[");
    for (size_t i = 0; i < call->n_stops; i++) {
        buffer_append_text(out, i > 0 ? "," : "");
        put_text(out, call->stops[i]);
    }
    buffer_append_text(out, "]");
}

/* "KIND_ms":…, … of n tokens. */
static void put_rate(const char *kind, size_t n, uint64_t time_ns, struct buffer *out)
{
    double ms = (double)time_ns / 1e6;
    buffer_printf(out,
                  "\"%s_n\":%zu,\"%s_ms\":%.3f,\"%s_per_token_ms\":%.3f,\"%s_per_second\":%.3f",
                  kind, n, kind, ms, kind, n > 0 ? ms / (double)n : 0, kind,
                  time_ns > 0 ? (double)n * 1e9 / (double)time_ns : 0);
}

void put_timings(const struct generation_usage *usage, struct buffer *out)
{
    buffer_printf(out, "\"timings\":{\"cache_n\":%zu,", usage->n_cached);
    put_rate("prompt", usage->n_prompt - usage->n_cached, usage->prefill_ns, out);
    buffer_append_text(out, ",");
    put_rate("predicted", usage->n_output, usage->decode_ns, out);
    buffer_append_text(out, "}");
}

static void put_ids(const int32_t *tokens, size_t n, struct buffer *out)
{
    buffer_append_text(out, "[");
    for (size_t i = 0; i < n; i++)
        buffer_printf(out, "%s%d", i > 0 ? "," : "", tokens[i]);
    buffer_append_text(out, "]");
}

static void put_chunk_head(const struct api_answer *answer, size_t index, struct view content,
                           bool last, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[index];
    buffer_printf(out, "{\"index\":%zu,\"content\":", index);
    api_json_string(out, content);
    buffer_append_text(out, ",\"tokens\":");
    put_ids(choice->tokens.ids, choice->tokens.count, out);
    buffer_printf(out,
                  ",\"id_slot\":-1,\"stop\":%s,\"tokens_predicted\":%zu,"
                  "\"tokens_evaluated\":%zu",
                  last ? "true" : "false", choice->usage.n_output, choice->usage.n_prompt);
    if (answer->call->want_logprobs && choice->logprobs != NULL &&
        json_array_size(choice->logprobs) > 0) {
        buffer_append_text(out, ",\"completion_probabilities\":");
        put_json(choice->logprobs, out);
    }
}

static void put_last(const struct api_answer *answer, size_t index, struct view content,
                     struct buffer *out)
{
    static const char *const types[] = {
        [FINISH_END] = "eos", [FINISH_STOP] = "word", [FINISH_LENGTH] = "limit"};
    const struct api_choice *choice = &answer->choices[index];
    const struct generation_usage *usage = &choice->usage;
    const char *type = (size_t)choice->reason < ARRAY_COUNT(types) ? types[choice->reason] : "none";
    put_chunk_head(answer, index, content, true, out);
    buffer_append_text(out, ",\"model\":");
    put_text(out, answer->model);
    buffer_append_text(out, ",\"generation_settings\":{");
    put_settings(answer->call, out);
    buffer_append_text(out, "},\"prompt\":");
    api_json_string(out, answer->call->prompts[index].text);
    uint32_t limit = answer->call->max_tokens;
    bool is_full = choice->reason == FINISH_LENGTH && (limit == 0 || usage->n_output < limit);
    buffer_printf(out, ",\"has_new_line\":%s,\"truncated\":%s,\"stop_type\":\"%s\"",
                  choice->has_newline ? "true" : "false", is_full ? "true" : "false", type);
    buffer_append_text(out, ",\"stopping_word\":");
    api_json_string(out, choice->stop);
    buffer_printf(out, ",\"tokens_cached\":%zu,", usage->n_cached);
    put_timings(usage, out);
    buffer_append_text(out, "}");
}

/* Of an object the fields that were asked for; "a/b" is b within a. */
static void put_fields(const json_t *fields, struct view object, struct buffer *out)
{
    json_t *all = json_loadb(object.data, object.size, JSON_ALLOW_NUL, NULL);
    json_t *kept = json_object(), *name;
    size_t i;
    json_array_foreach((json_t *)fields, i, name)
    {
        const char *rest = json_string_value(name);
        json_t *value = rest != NULL ? all : NULL;
        while (rest != NULL && value != NULL) {
            size_t size = strcspn(rest, "/");
            value = json_object_getn(value, rest, size);
            rest = rest[size] == '/' ? rest + size + 1 : NULL;
        }
        if (value != NULL)
            json_object_set(kept, json_string_value(name), value);
    }
    put_json(kept, out);
    json_decref(kept);
    json_decref(all);
}

static void put_answer(const struct api_answer *answer, size_t index, struct view content,
                       struct buffer *out)
{
    if (answer->call->response_fields == NULL) {
        put_last(answer, index, content, out);
        return;
    }
    struct buffer object = {0};
    put_last(answer, index, content, &object);
    put_fields(answer->call->response_fields, all_of(&object), out);
    buffer_free(&object);
}

static void write_begin(struct api_answer *answer, size_t choice, struct buffer *out)
{
    (void)answer;
    (void)choice;
    (void)out;
}

static void write_delta(struct api_answer *answer, size_t choice, const struct api_delta *delta,
                        struct buffer *out)
{
    buffer_append_text(out, "data: ");
    put_chunk_head(answer, choice, delta->text, false, out);
    buffer_append_text(out, "}\n\n");
}

static void write_finish(struct api_answer *answer, size_t choice, struct buffer *out)
{
    buffer_append_text(out, "data: ");
    put_answer(answer, choice, (struct view){"", 0}, out);
    buffer_append_text(out, "\n\n");
}

/* The last chunk of each choice is its end. */
static void write_end(struct api_answer *answer, struct buffer *out)
{
    (void)answer;
    (void)out;
}

/* One object, or a list of them for a list of prompts. */
static void write_whole(struct api_answer *answer, struct buffer *out)
{
    buffer_append_text(out, answer->n_choices > 1 ? "[" : "");
    for (size_t i = 0; i < answer->n_choices; i++) {
        buffer_append_text(out, i > 0 ? "," : "");
        put_answer(answer, i, all_of(&answer->choices[i].content), out);
    }
    buffer_append_text(out, answer->n_choices > 1 ? "]" : "");
}

/* ---- Tokens, templates, properties ----------------------------------------------------------- */

/* A piece that is no UTF-8 is a list of its bytes. */
static void put_piece(const struct tokenizer *tokenizer, int32_t token, struct buffer *out)
{
    struct buffer piece = {0};
    tokenizer_piece(tokenizer, token, true, &piece);
    buffer_printf(out, "{\"id\":%d,\"piece\":", token);
    if (utf8_valid(all_of(&piece).data, piece.size)) {
        api_json_string(out, all_of(&piece));
    } else {
        for (size_t i = 0; i < piece.size; i++)
            buffer_printf(out, "%s%u", i > 0 ? "," : "[", (unsigned char)piece.data[i]);
        buffer_append_text(out, "]");
    }
    buffer_append_text(out, "}");
    buffer_free(&piece);
}

static void put_tokens(const struct api_call *call, const struct api_result *result,
                       struct buffer *out)
{
    buffer_append_text(out, "{\"tokens\":");
    if (!call->with_pieces) {
        put_ids(result->tokens, result->n_tokens, out);
        buffer_append_text(out, "}");
        return;
    }
    for (size_t i = 0; i < result->n_tokens; i++) {
        buffer_append_text(out, i > 0 ? "," : "[");
        put_piece(result->tokenizer, result->tokens[i], out);
    }
    buffer_append_text(out, result->n_tokens > 0 ? "]}" : "[]}");
}

/* Each text has one vector. */
static void put_embeddings(const struct api_call *call, const struct api_result *result,
                           struct buffer *out)
{
    for (size_t i = 0; i < call->n_prompts; i++) {
        buffer_printf(out, "%s{\"index\":%zu,\"embedding\":[", i > 0 ? "," : "[", i);
        put_vector(result->vectors + i * result->n_numbers, result->n_numbers, out);
        buffer_append_text(out, "]}");
    }
    buffer_append_text(out, "]");
}

static void put_props(const struct api_call *call, const struct api_result *result,
                      struct buffer *out)
{
    buffer_printf(out, "{\"default_generation_settings\":{\"n_ctx\":%zu,\"params\":{",
                  result->n_ctx);
    put_settings(call, out);
    buffer_printf(out, "}},\"total_slots\":%zu,\"model_alias\":", result->n_slots);
    put_text(out, result->model);
    buffer_append_text(out, ",\"model_path\":");
    put_text(out, result->path);
    buffer_append_text(out, ",\"chat_template\":");
    api_json_string(out, result->text);
    buffer_append_text(out, ",\"modalities\":{\"vision\":false,\"audio\":false},"
                            "\"build_info\":\"consort " CONSORT_VERSION "\"}");
}

static void write_result(const struct api_call *call, const struct api_result *result,
                         struct buffer *out)
{
    if (call->operation == API_TOKENIZE) {
        put_tokens(call, result, out);
    } else if (call->operation == API_EMBEDDINGS) {
        put_embeddings(call, result, out);
    } else if (call->operation == API_PROPS) {
        put_props(call, result, out);
    } else {
        buffer_printf(out, "{\"%s\":", call->operation == API_RENDER ? "prompt" : "content");
        api_json_string(out, result->text);
        buffer_append_text(out, "}");
    }
}

const struct api_format llama_format = {
    .id_prefix = "cmpl-",
    .stream_type = "text/event-stream",
    .ping = ": ping\n\n",
    .begin = write_begin,
    .delta = write_delta,
    .finish = write_finish,
    .end = write_end,
    .whole = write_whole,
    .result = write_result,
    .error = openai_error,
};
