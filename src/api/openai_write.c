/* OpenAI's answers: chat.completion(.chunk), text_completion, embeddings, errors. */
#include "api/api_internal.h"

#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Shared parts ---------------------------------------------------------------------------- */

/* {"id": …, "object": …, "created": …, "model": … without the closing brace. */
static void put_head(const struct api_answer *answer, const char *object, struct buffer *out)
{
    buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", answer->id,
                  object, (long long)answer->created_s);
    put_text(out, answer->model);
    buffer_append_text(out, ",\"system_fingerprint\":\"build-" CONSORT_VERSION "\"");
}

static void put_usage(const struct api_answer *answer, struct buffer *out)
{
    buffer_printf(out,
                  "\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%zu}}",
                  answer->prompt_tokens, answer->completion_tokens,
                  answer->prompt_tokens + answer->completion_tokens, answer->cached_tokens);
    const struct generation_usage total = {.n_prompt = answer->prompt_tokens,
                                           .n_cached = answer->cached_tokens,
                                           .n_output = answer->completion_tokens,
                                           .prefill_ns = answer->prompt_ns,
                                           .decode_ns = answer->completion_ns};
    buffer_append_text(out, ",");
    put_timings(&total, out);
}

static const char *reason_text(const struct api_choice *choice)
{
    if (choice->reason == FINISH_LENGTH)
        return "\"length\"";
    return choice->n_calls > 0 ? "\"tool_calls\"" : "\"stop\"";
}

static void put_end(struct buffer *out)
{
    buffer_append_text(out, "data: [DONE]\n\n");
}

static void put_error_object(const struct api_error *error, struct buffer *out)
{
    buffer_append_text(out, "{\"error\":{\"message\":");
    put_text(out, error->text);
    buffer_append_text(out, ",\"type\":");
    put_text(out, error->type);
    buffer_append_text(out, ",\"param\":");
    if (error->param[0] != '\0')
        put_text(out, error->param);
    else
        buffer_append_text(out, "null");
    buffer_append_text(out, ",\"code\":");
    if (error->code != NULL)
        put_text(out, error->code);
    else
        buffer_append_text(out, "null");
    if (error->prompt_tokens > 0)
        buffer_printf(out, ",\"n_prompt_tokens\":%zu,\"n_ctx\":%zu", error->prompt_tokens,
                      error->context_tokens);
    buffer_append_text(out, "}}");
}

void openai_error(const struct api_error *error, bool streaming, struct buffer *out)
{
    if (streaming)
        buffer_append_text(out, "data: ");
    put_error_object(error, out);
    if (streaming)
        buffer_append_text(out, "\n\n");
}

/* ---- Chat ------------------------------------------------------------------------------------ */

/* What has been collected of a choice's tokens. */
static void put_chat_logprobs(const struct api_answer *answer, size_t choice, struct buffer *out)
{
    buffer_append_text(out, ",\"logprobs\":");
    if (answer->call->want_logprobs) {
        buffer_append_text(out, "{\"content\":");
        put_json(answer->choices[choice].logprobs, out);
        buffer_append_text(out, "}");
    } else {
        buffer_append_text(out, "null");
    }
}

static void chat_chunk_begin(const struct api_answer *answer, size_t choice, struct buffer *out)
{
    buffer_append_text(out, "data: ");
    put_head(answer, "chat.completion.chunk", out);
    buffer_printf(out, ",\"choices\":[{\"index\":%zu,\"delta\":{", choice);
}

static void chat_chunk_end(const struct api_answer *answer, const char *reason, struct buffer *out)
{
    buffer_printf(out, ",\"finish_reason\":%s}]", reason);
    if (answer->call->include_usage)
        buffer_append_text(out, ",\"usage\":null");
    buffer_append_text(out, "}\n\n");
}

static void chat_begin(struct api_answer *answer, size_t choice, struct buffer *out)
{
    chat_chunk_begin(answer, choice, out);
    buffer_append_text(out, "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
    chat_chunk_end(answer, "null", out);
}

/* "tool_calls":[{"index":…,"id":…,"type":"function","function":{"name":…,"arguments": */
static void put_call_head(size_t index, const char *id, const char *name, struct buffer *out)
{
    buffer_printf(out,
                  "\"tool_calls\":[{\"index\":%zu,\"id\":\"%s\",\"type\":\"function\","
                  "\"function\":{\"name\":",
                  index, id);
    put_text(out, name);
    buffer_append_text(out, ",\"arguments\":");
}

static void put_calls(const struct api_choice *choice, struct buffer *out)
{
    for (size_t i = 0; i < choice->n_calls; i++) {
        buffer_printf(out, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                      i > 0 ? "," : ",\"tool_calls\":[", choice->calls[i].id);
        put_text(out, choice->calls[i].name);
        buffer_append_text(out, ",\"arguments\":");
        put_text(out, choice->calls[i].arguments);
        buffer_append_text(out, "}}");
    }
    buffer_append_text(out, choice->n_calls > 0 ? "]" : "");
}

static void chat_delta(struct api_answer *answer, size_t choice, const struct api_delta *delta,
                       struct buffer *out)
{
    chat_chunk_begin(answer, choice, out);
    if (delta->kind == REPLY_CALL) { /* who is called first, with what in a second chunk */
        put_call_head(delta->call, delta->call_id, delta->call_name, out);
        buffer_append_text(out, "\"\"}}]},\"logprobs\":null");
        chat_chunk_end(answer, "null", out);
        chat_chunk_begin(answer, choice, out);
        buffer_printf(out,
                      "\"tool_calls\":[{\"index\":%zu,\"function\":{\"arguments\":", delta->call);
        api_json_string(out, delta->text);
        buffer_append_text(out, "}}]");
    } else {
        buffer_printf(out,
                      "\"%s\":", delta->kind == REPLY_REASONING ? "reasoning_content" : "content");
        api_json_string(out, delta->text);
    }
    buffer_append_text(out, "}");
    put_chat_logprobs(answer, choice, out);
    chat_chunk_end(answer, "null", out);
}

static void chat_finish(struct api_answer *answer, size_t choice, struct buffer *out)
{
    chat_chunk_begin(answer, choice, out);
    buffer_append_text(out, "},\"logprobs\":null");
    chat_chunk_end(answer, reason_text(&answer->choices[choice]), out);
}

static void chat_end(struct api_answer *answer, struct buffer *out)
{
    if (answer->call->include_usage) {
        buffer_append_text(out, "data: ");
        put_head(answer, "chat.completion.chunk", out);
        buffer_append_text(out, ",\"choices\":[],");
        put_usage(answer, out);
        buffer_append_text(out, "}\n\n");
    }
    put_end(out);
}

static void chat_whole(struct api_answer *answer, struct buffer *out)
{
    put_head(answer, "chat.completion", out);
    buffer_append_text(out, ",\"choices\":[");
    for (size_t i = 0; i < answer->n_choices; i++) {
        const struct api_choice *choice = &answer->choices[i];
        buffer_printf(out, "%s{\"index\":%zu,\"message\":{\"role\":\"assistant\",\"content\":",
                      i > 0 ? "," : "", i);
        if (choice->content.size == 0 && choice->n_calls > 0)
            buffer_append_text(out, "null");
        else
            api_json_string(out, all_of(&choice->content));
        put_calls(choice, out);
        if (choice->reasoning.size > 0) {
            buffer_append_text(out, ",\"reasoning_content\":");
            api_json_string(out, all_of(&choice->reasoning));
        }
        buffer_append_text(out, ",\"refusal\":null}");
        put_chat_logprobs(answer, i, out);
        buffer_printf(out, ",\"finish_reason\":%s}", reason_text(choice));
    }
    buffer_append_text(out, "],");
    put_usage(answer, out);
    buffer_append_text(out, "}");
}

/* ---- Completions ----------------------------------------------------------------------------- */

/* The older form: parallel lists, and where each token begins in the text. */
static void put_completion_logprobs(const struct api_answer *answer, size_t choice,
                                    struct buffer *out)
{
    buffer_append_text(out, ",\"logprobs\":");
    if (!answer->call->want_logprobs) {
        buffer_append_text(out, "null");
        return;
    }
    const json_t *tokens = answer->choices[choice].logprobs;
    json_t *texts = json_array(), *values = json_array(), *tops = json_array();
    json_t *offsets = json_array();
    json_int_t offset = (json_int_t)answer->choices[choice].logprobs_offset;
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i),
                     *top = json_object_get(token, "top_logprobs");
        json_t *text = json_object_get(token, "token");
        bool first = json_is_null(json_object_get(token, "logprob")); /* of a prompt */
        json_t *alternatives = first ? json_null() : json_object();
        for (size_t t = 0; t < json_array_size(top); t++)
            json_object_set(alternatives,
                            json_string_value(json_object_get(json_array_get(top, t), "token")),
                            json_object_get(json_array_get(top, t), "logprob"));
        json_array_append(texts, text);
        json_array_append(values, json_object_get(token, "logprob"));
        json_array_append_new(tops, alternatives);
        json_array_append_new(offsets, json_integer(offset));
        int32_t id = (int32_t)json_integer_value(json_object_get(token, "id"));
        if (!tokenizer_is_control(answer->tokenizer, id)) /* those do not stand in the text */
            offset += (json_int_t)utf8_count(json_string_value(text), json_string_length(text));
    }
    json_t *all = json_pack("{s:o, s:o, s:o, s:o}", "tokens", texts, "token_logprobs", values,
                            "top_logprobs", tops, "text_offset", offsets);
    put_json(all, out);
    json_decref(all);
}

static void completion_chunk(const struct api_answer *answer, size_t choice, struct view text,
                             const char *reason, struct buffer *out)
{
    buffer_append_text(out, "data: ");
    put_head(answer, "text_completion", out);
    buffer_append_text(out, ",\"choices\":[{\"text\":");
    api_json_string(out, text);
    buffer_printf(out, ",\"index\":%zu", choice);
    put_completion_logprobs(answer, choice, out);
    buffer_printf(out, ",\"finish_reason\":%s}]", reason);
    if (answer->call->include_usage)
        buffer_append_text(out, ",\"usage\":null");
    buffer_append_text(out, "}\n\n");
}

/* The prompt, where it is to be shown. */
static void put_echo(const struct api_answer *answer, size_t choice, struct buffer *out)
{
    const struct api_call *call = answer->call;
    if (!call->echo)
        return;
    const struct api_prompt *prompt = &call->prompts[choice / call->n_choices];
    size_t n = prompt->parts != NULL ? prompt->n_parts : 1;
    for (size_t p = 0; p < n; p++) {
        const struct api_prompt *part = prompt->parts != NULL ? &prompt->parts[p] : prompt;
        if (part->tokens == NULL)
            buffer_append(out, part->text.data, part->text.size);
        for (size_t i = 0; part->tokens != NULL && i < part->n_tokens; i++)
            tokenizer_piece(answer->tokenizer, part->tokens[i], false, out);
    }
}

static void completion_begin(struct api_answer *answer, size_t index, struct buffer *out)
{
    struct api_choice *choice = &answer->choices[index];
    struct buffer text = {0};
    put_echo(answer, index, &text);
    if (text.size > 0) {
        completion_chunk(answer, index, all_of(&text), "null", out);
        choice->logprobs_offset += utf8_count(text.data, text.size);
        json_array_clear(choice->logprobs);
    }
    buffer_free(&text);
}

static void completion_delta(struct api_answer *answer, size_t choice,
                             const struct api_delta *delta, struct buffer *out)
{
    completion_chunk(answer, choice, delta->text, "null", out);
}

static void completion_finish(struct api_answer *answer, size_t choice, struct buffer *out)
{
    completion_chunk(answer, choice, (struct view){"", 0}, reason_text(&answer->choices[choice]),
                     out);
}

static void completion_end(struct api_answer *answer, struct buffer *out)
{
    if (answer->call->include_usage) {
        buffer_append_text(out, "data: ");
        put_head(answer, "text_completion", out);
        buffer_append_text(out, ",\"choices\":[],");
        put_usage(answer, out);
        buffer_append_text(out, "}\n\n");
    }
    put_end(out);
}

static void completion_whole(struct api_answer *answer, struct buffer *out)
{
    put_head(answer, "text_completion", out);
    buffer_append_text(out, ",\"choices\":[");
    for (size_t i = 0; i < answer->n_choices; i++) {
        const struct api_choice *choice = &answer->choices[i];
        struct buffer text = {0};
        put_echo(answer, i, &text);
        buffer_append(&text, all_of(&choice->content).data, choice->content.size);
        buffer_append_text(out, i > 0 ? ",{\"text\":" : "{\"text\":");
        api_json_string(out, all_of(&text));
        buffer_free(&text);
        buffer_printf(out, ",\"index\":%zu", i);
        put_completion_logprobs(answer, i, out);
        buffer_printf(out, ",\"finish_reason\":%s}", reason_text(choice));
    }
    buffer_append_text(out, "],");
    put_usage(answer, out);
    buffer_append_text(out, "}");
}

/* ---- Embeddings ------------------------------------------------------------------------------ */

static void put_base64(const void *data, size_t size, struct buffer *out)
{
    size_t length = (size + 2) / 3 * 4;
    if (size > INT_MAX || !buffer_reserve(out, length + 1))
        return;
    EVP_EncodeBlock((unsigned char *)out->data + out->size, data, (int)size);
    out->size += length;
}

static void put_embeddings(const struct api_call *call, const struct api_result *result,
                           struct buffer *out)
{
    size_t n_numbers = result->n_numbers;
    buffer_append_text(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < call->n_prompts; i++) {
        const float *vector = result->vectors + i * n_numbers;
        buffer_printf(
            out, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i > 0 ? "," : "", i);
        if (call->base64) {
            buffer_append_text(out, "\"");
            put_base64(vector, n_numbers * sizeof *vector, out);
            buffer_append_text(out, "\"}");
        } else {
            put_vector(vector, n_numbers, out);
            buffer_append_text(out, "}");
        }
    }
    buffer_append_text(out, "],\"model\":");
    put_text(out, result->model);
    buffer_printf(out, ",\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}}",
                  result->prompt_tokens, result->prompt_tokens);
}

/* ---- Formats --------------------------------------------------------------------------------- */

const struct api_format openai_chat_format = {
    .id_prefix = "chatcmpl-",
    .stream_type = "text/event-stream",
    .ping = ": ping\n\n",
    .begin = chat_begin,
    .delta = chat_delta,
    .finish = chat_finish,
    .end = chat_end,
    .whole = chat_whole,
    .error = openai_error,
};

const struct api_format openai_completion_format = {
    .id_prefix = "cmpl-",
    .stream_type = "text/event-stream",
    .ping = ": ping\n\n",
    .begin = completion_begin,
    .delta = completion_delta,
    .finish = completion_finish,
    .end = completion_end,
    .whole = completion_whole,
    .result = put_embeddings,
    .error = openai_error,
};
