/* Anthropic's answers: a message of blocks, or events that open, fill and close one block after the
 * other. */
#include "api/api_internal.h"

#include <string.h>

static void put_usage(const struct api_answer *answer, struct buffer *out)
{
    /* Theirs does not count what came from the cache. */
    buffer_printf(out,
                  "\"usage\":{\"input_tokens\":%zu,\"cache_creation_input_tokens\":0,"
                  "\"cache_read_input_tokens\":%zu,\"output_tokens\":%zu}",
                  answer->prompt_tokens - answer->cached_tokens, answer->cached_tokens,
                  answer->completion_tokens);
}

/* The fields of a message up to its content. */
static void put_head(const struct api_answer *answer, struct buffer *out)
{
    buffer_printf(
        out, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", answer->id);
    put_text(out, answer->model);
    buffer_append_text(out, ",\"content\":[");
}

static void put_reason(const struct api_choice *choice, struct buffer *out)
{
    const char *reason = choice->reason == FINISH_LENGTH ? "max_tokens"
                         : choice->stop.size > 0         ? "stop_sequence"
                         : choice->n_calls > 0           ? "tool_use"
                                                         : "end_turn";
    buffer_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":", reason);
    if (choice->stop.size > 0)
        api_json_string(out, choice->stop);
    else
        buffer_append_text(out, "null");
}

/* {"type":"tool_use","id":…,"name":…,"input": */
static void put_call_head(const char *id, const char *name, struct buffer *out)
{
    buffer_printf(out, "{\"type\":\"tool_use\",\"id\":\"%s%s\",\"name\":", ANTHROPIC_CALL_PREFIX,
                  id);
    put_text(out, name);
    buffer_append_text(out, ",\"input\":");
}

/* ---- Streams --------------------------------------------------------------------------------- */

/* event: NAME\ndata: {"type":"NAME" */
static void begin_event(const char *name, struct buffer *out)
{
    buffer_printf(out, "event: %s\ndata: {\"type\":\"%s\"", name, name);
}

static void end_event(struct buffer *out)
{
    buffer_append_text(out, "}\n\n");
}

static void write_begin(struct api_answer *answer, size_t choice, struct buffer *out)
{
    (void)choice; /* there is one */
    begin_event("message_start", out);
    buffer_append_text(out, ",\"message\":");
    put_head(answer, out);
    buffer_append_text(out, "],\"stop_reason\":null,\"stop_sequence\":null,");
    put_usage(answer, out);
    buffer_append_text(out, "}");
    end_event(out);
}

static void close_block(struct api_choice *choice, struct buffer *out)
{
    if (!choice->block_open)
        return;
    begin_event("content_block_stop", out);
    buffer_printf(out, ",\"index\":%zu", choice->n_blocks - 1);
    end_event(out);
    choice->block_open = false;
}

static void open_block(struct api_choice *choice, const struct api_delta *delta, struct buffer *out)
{
    begin_event("content_block_start", out);
    buffer_printf(out, ",\"index\":%zu,\"content_block\":", choice->n_blocks++);
    if (delta->kind == REPLY_CALL) {
        put_call_head(delta->call_id, delta->call_name, out);
        buffer_append_text(out, "{}}");
    } else {
        buffer_append_text(out,
                           delta->kind == REPLY_CONTENT
                               ? "{\"type\":\"text\",\"text\":\"\"}"
                               : "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}");
    }
    end_event(out);
    choice->block_open = true;
    choice->block = delta->kind;
}

static void write_delta(struct api_answer *answer, size_t index, const struct api_delta *delta,
                        struct buffer *out)
{
    static const char *const names[][2] = {[REPLY_CONTENT] = {"text_delta", "text"},
                                           [REPLY_REASONING] = {"thinking_delta", "thinking"},
                                           [REPLY_CALL] = {"input_json_delta", "partial_json"}};
    struct api_choice *choice = &answer->choices[index];
    if (choice->block != delta->kind || delta->kind == REPLY_CALL)
        close_block(choice, out);
    if (!choice->block_open)
        open_block(choice, delta, out);
    begin_event("content_block_delta", out);
    buffer_printf(out, ",\"index\":%zu,\"delta\":{\"type\":\"%s\",\"%s\":", choice->n_blocks - 1,
                  names[delta->kind][0], names[delta->kind][1]);
    api_json_string(out, delta->text);
    buffer_append_text(out, "}");
    end_event(out);
}

static void write_finish(struct api_answer *answer, size_t index, struct buffer *out)
{
    struct api_choice *choice = &answer->choices[index];
    close_block(choice, out);
    begin_event("message_delta", out);
    buffer_append_text(out, ",\"delta\":{");
    put_reason(choice, out);
    buffer_append_text(out, "},");
    put_usage(answer, out);
    end_event(out);
}

static void write_end(struct api_answer *answer, struct buffer *out)
{
    (void)answer;
    begin_event("message_stop", out);
    end_event(out);
}

/* ---- Whole ----------------------------------------------------------------------------------- */

static void write_whole(struct api_answer *answer, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    const char *comma = "";
    put_head(answer, out);
    if (choice->reasoning.size > 0) {
        buffer_append_text(out, "{\"type\":\"thinking\",\"signature\":\"\",\"thinking\":");
        api_json_string(out, all_of(&choice->reasoning));
        buffer_append_text(out, "}");
        comma = ",";
    }
    if (choice->content.size > 0) {
        buffer_printf(out, "%s{\"type\":\"text\",\"text\":", comma);
        api_json_string(out, all_of(&choice->content));
        buffer_append_text(out, "}");
        comma = ",";
    }
    for (size_t i = 0; i < choice->n_calls; i++, comma = ",") {
        buffer_append_text(out, comma);
        put_call_head(choice->calls[i].id, choice->calls[i].name, out);
        buffer_append_text(out, choice->calls[i].arguments); /* the parser gives an object */
        buffer_append_text(out, "}");
    }
    buffer_append_text(out, "],");
    put_reason(choice, out);
    buffer_append_text(out, ",");
    put_usage(answer, out);
    buffer_append_text(out, "}");
}

static void write_count(const struct api_call *call, const struct api_result *result,
                        struct buffer *out)
{
    (void)call;
    buffer_printf(out, "{\"input_tokens\":%zu}", result->prompt_tokens);
}

static void write_error(const struct api_error *error, bool streaming, struct buffer *out)
{
    static const struct {
        int http_status;
        const char *type;
    } types[] = {
        {400, "invalid_request_error"}, {401, "authentication_error"},  {403, "permission_error"},
        {404, "not_found_error"},       {405, "invalid_request_error"}, {413, "request_too_large"},
        {429, "rate_limit_error"},      {503, "overloaded_error"},
    };
    const char *type = "api_error";
    for (size_t i = 0; i < ARRAY_COUNT(types); i++)
        if (types[i].http_status == error->http_status)
            type = types[i].type;
    buffer_printf(out, "%s{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
                  streaming ? "event: error\ndata: " : "", type);
    put_text(out, error->text);
    buffer_append_text(out, streaming ? "}}\n\n" : "}}");
}

const struct api_format anthropic_format = {
    .id_prefix = "msg_",
    .stream_type = "text/event-stream",
    .ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n",
    .begin = write_begin,
    .delta = write_delta,
    .finish = write_finish,
    .end = write_end,
    .whole = write_whole,
    .result = write_count,
    .error = write_error,
};
