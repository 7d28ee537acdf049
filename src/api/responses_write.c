/* OpenAI's Responses: the object of an answer, and the events of a stream, each with its name and a
 * number in the order of the stream. */
#include "api/api_internal.h"

#include <stdio.h>
#include <string.h>

/* ---- Items ----------------------------------------------------------------------------------- */

static void put_item_id(const struct api_answer *answer, enum reply_kind kind, size_t index,
                        struct buffer *out)
{
    static const char *const prefixes[] = {
        [REPLY_CONTENT] = "msg", [REPLY_REASONING] = "rs", [REPLY_CALL] = "fc"};
    buffer_printf(out, "\"%s_%016llx%02zu\"", prefixes[kind], (unsigned long long)answer->id_number,
                  index);
}

static struct view block_text(const struct api_choice *choice, const struct api_block *block)
{
    if (block->kind == REPLY_CALL)
        return view_of(choice->calls[block->begin].arguments);
    const struct buffer *text =
        block->kind == REPLY_CONTENT ? &choice->content : &choice->reasoning;
    return (struct view){text->size > 0 ? text->data + block->begin : "", block->size};
}

/* Of a message or of reasoning. */
static void put_part(enum reply_kind kind, struct view text, struct buffer *out)
{
    buffer_printf(out, "{\"type\":\"%s\",\"text\":",
                  kind == REPLY_CONTENT ? "output_text" : "reasoning_text");
    api_json_string(out, text);
    buffer_append_text(out, kind == REPLY_CONTENT ? ",\"annotations\":[],\"logprobs\":[]}" : "}");
}

/* One item of the output, as it is added (without its text) or done. */
static void put_item(const struct api_answer *answer, size_t index, bool done, bool whole,
                     struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    const struct api_block *block = &choice->blocks[index];
    const char *status = !done ? "in_progress" : whole ? "completed" : "incomplete";
    const struct view text = done ? block_text(choice, block) : (struct view){"", 0};
    buffer_append_text(out, "{\"id\":");
    put_item_id(answer, block->kind, index, out);
    if (block->kind == REPLY_CALL) {
        const struct api_tool_call *call = &choice->calls[block->begin];
        buffer_printf(out, ",\"type\":\"function_call\",\"status\":\"%s\",\"call_id\":\"%s\"",
                      status, call->id);
        buffer_append_text(out, ",\"name\":");
        put_text(out, call->name);
        buffer_append_text(out, ",\"arguments\":");
        api_json_string(out, text);
        buffer_append_text(out, "}");
        return;
    }
    if (block->kind == REPLY_CONTENT)
        buffer_printf(out, ",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\"",
                      status);
    else
        buffer_append_text(out, ",\"type\":\"reasoning\",\"summary\":[]");
    buffer_append_text(out, ",\"content\":[");
    if (done)
        put_part(block->kind, text, out);
    buffer_append_text(out, "]}");
}

void responses_put_output(const struct api_answer *answer, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    bool whole = choice->reason != FINISH_LENGTH;
    buffer_append_text(out, "[");
    for (size_t i = 0; i < choice->n_blocks; i++) {
        buffer_append_text(out, i > 0 ? "," : "");
        put_item(answer, i, true, whole || i + 1 < choice->n_blocks, out);
    }
    buffer_append_text(out, "]");
}

/* ---- The response ---------------------------------------------------------------------------- */

static void put_usage(const struct api_answer *answer, struct buffer *out)
{
    buffer_printf(out,
                  "{\"input_tokens\":%zu,\"input_tokens_details\":{\"cached_tokens\":%zu},"
                  "\"output_tokens\":%zu,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                  "\"total_tokens\":%zu}",
                  answer->prompt_tokens, answer->cached_tokens, answer->completion_tokens,
                  answer->prompt_tokens + answer->completion_tokens);
}

static void put_response(const struct api_answer *answer, bool ended, struct buffer *out)
{
    const struct api_call *call = answer->call;
    bool cut = ended && answer->choices[0].reason == FINISH_LENGTH;
    buffer_printf(out,
                  "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\"",
                  answer->id, (long long)answer->created_s,
                  !ended ? "in_progress"
                  : cut  ? "incomplete"
                         : "completed");
    buffer_printf(out, ",\"error\":null,\"incomplete_details\":%s,\"model\":",
                  cut ? "{\"reason\":\"max_output_tokens\"}" : "null");
    put_text(out, answer->model);
    const char *name;
    json_t *value;
    json_object_foreach(call->response, name, value)
    {
        buffer_printf(out, ",\"%s\":", name);
        put_json(value, out);
    }
    buffer_printf(out, ",\"temperature\":%.9g,\"top_p\":%.9g,\"truncation\":\"disabled\"",
                  (double)call->sampling.temperature, (double)call->sampling.top_p);
    buffer_append_text(out, ",\"output\":");
    if (ended)
        responses_put_output(answer, out);
    else
        buffer_append_text(out, "[]");
    buffer_append_text(out, ",\"usage\":");
    if (ended)
        put_usage(answer, out);
    else
        buffer_append_text(out, "null");
    buffer_append_text(out, "}");
}

/* ---- Events ---------------------------------------------------------------------------------- */

/* event: NAME, and the data's object up to and without the closing brace. */
static void begin_event(struct api_answer *answer, const char *name, struct buffer *out)
{
    buffer_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%zu", name, name,
                  answer->n_events++);
}

static void end_event(struct buffer *out)
{
    buffer_append_text(out, "}\n\n");
}

static void put_response_event(struct api_answer *answer, const char *name, bool ended,
                               struct buffer *out)
{
    begin_event(answer, name, out);
    buffer_append_text(out, ",\"response\":");
    put_response(answer, ended, out);
    end_event(out);
}

static void put_item_event(struct api_answer *answer, bool done, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    begin_event(answer, done ? "response.output_item.done" : "response.output_item.added", out);
    buffer_printf(out, ",\"output_index\":%zu,\"item\":", choice->n_blocks - 1);
    put_item(answer, choice->n_blocks - 1, done,
             choice->reason != FINISH_LENGTH ||
                 choice->blocks[choice->n_blocks - 1].kind == REPLY_CALL,
             out);
    end_event(out);
}

/* An event of the last item: {…,"item_id":…,"output_index":…,"NAME": text or part}. */
static void put_text_event(struct api_answer *answer, const char *event, const char *field,
                           struct view text, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    size_t index = choice->n_blocks - 1;
    enum reply_kind kind = choice->blocks[index].kind;
    begin_event(answer, event, out);
    buffer_append_text(out, ",\"item_id\":");
    put_item_id(answer, kind, index, out);
    buffer_printf(out, ",\"output_index\":%zu", index);
    if (kind != REPLY_CALL)
        buffer_append_text(out, ",\"content_index\":0");
    bool part = strcmp(field, "part") == 0;
    if (kind == REPLY_CONTENT && !part)
        buffer_append_text(out, ",\"logprobs\":[]");
    buffer_printf(out, ",\"%s\":", field);
    if (part)
        put_part(kind, text, out);
    else
        api_json_string(out, text);
    end_event(out);
}

/* Texts are told at the end of an item once more, as a whole. */
static void end_item(struct api_answer *answer, struct buffer *out)
{
    struct api_choice *choice = &answer->choices[0];
    if (!choice->block_open)
        return;
    const struct api_block *block = &choice->blocks[choice->n_blocks - 1];
    struct view text = block_text(choice, block);
    if (block->kind == REPLY_CALL) {
        put_text_event(answer, "response.function_call_arguments.done", "arguments", text, out);
    } else {
        put_text_event(answer,
                       block->kind == REPLY_CONTENT ? "response.output_text.done"
                                                    : "response.reasoning_text.done",
                       "text", text, out);
        put_text_event(answer, "response.content_part.done", "part", text, out);
    }
    put_item_event(answer, true, out);
    choice->block_open = false;
}

static void write_begin(struct api_answer *answer, size_t choice, struct buffer *out)
{
    (void)choice; /* there is one */
    put_response_event(answer, "response.created", false, out);
    put_response_event(answer, "response.in_progress", false, out);
}

static void write_delta(struct api_answer *answer, size_t index, const struct api_delta *delta,
                        struct buffer *out)
{
    static const char *const events[] = {
        [REPLY_CONTENT] = "response.output_text.delta",
        [REPLY_REASONING] = "response.reasoning_text.delta",
        [REPLY_CALL] = "response.function_call_arguments.delta",
    };
    struct api_choice *choice = &answer->choices[index];
    if (!choice->block_open) {
        put_item_event(answer, false, out);
        if (delta->kind != REPLY_CALL)
            put_text_event(answer, "response.content_part.added", "part", (struct view){"", 0},
                           out);
        choice->block_open = true;
    }
    put_text_event(answer, events[delta->kind], "delta", delta->text, out);
}

static void write_finish(struct api_answer *answer, size_t choice, struct buffer *out)
{
    (void)choice;
    end_item(answer, out);
}

static void write_end(struct api_answer *answer, struct buffer *out)
{
    bool cut = answer->choices[0].reason == FINISH_LENGTH;
    put_response_event(answer, cut ? "response.incomplete" : "response.completed", true, out);
}

static void write_whole(struct api_answer *answer, struct buffer *out)
{
    put_response(answer, true, out);
}

/* Clients wait for either event. */
static void write_error(const struct api_error *error, bool streaming, struct buffer *out)
{
    if (!streaming) {
        openai_error(error, false, out);
        return;
    }
    const char *code = error->code != NULL ? error->code : error->type;
    buffer_printf(out,
                  "event: error\ndata: {\"type\":\"error\",\"code\":\"%s\",\"message\":", code);
    put_text(out, error->text);
    buffer_append_text(out, ",\"param\":null}\n\n");
    buffer_printf(out,
                  "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":"
                  "{\"object\":\"response\",\"status\":\"failed\",\"output\":[],\"error\":"
                  "{\"code\":\"%s\",\"message\":",
                  code);
    put_text(out, error->text);
    buffer_append_text(out, "}}}\n\n");
}

const struct api_format responses_format = {
    .id_prefix = "resp_",
    .stream_type = "text/event-stream",
    .ping = ": ping\n\n",
    .begin = write_begin,
    .block_end = end_item,
    .delta = write_delta,
    .finish = write_finish,
    .end = write_end,
    .whole = write_whole,
    .error = write_error,
};
