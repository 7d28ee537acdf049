/* The input is a number that chooses a family, one that chooses where the reply is cut, and a
 * reply. What is read does not depend on the cuts, and calls have arguments that are objects. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the templates of the families have. */
static const char *const templates[] = {"",
                                        "<think>",
                                        "<tool_call> <think>",
                                        "<function= <tool_call>",
                                        "<arg_key>",
                                        "<minimax:tool_call>",
                                        "<|start_header_id|>",
                                        "<|channel|><|message|>",
                                        "[TOOL_CALLS]",
                                        "<｜tool▁calls▁begin｜>",
                                        "<|tool_call_begin|>",
                                        "<|START_ACTION|>"};

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{\"type\":\"integer\"}}}}}]";

struct seen {
    struct buffer text;
    int last;
};

static void take(void *context, const struct reply_part *part)
{
    struct seen *seen = context;
    if (part->kind == REPLY_CALL) {
        json_t *arguments = json_loadb(part->text.data, part->text.size, JSON_ALLOW_NUL, NULL);
        if (!json_is_object(arguments) || part->tool_name.size == 0)
            abort();
        json_decref(arguments);
        buffer_append(&seen->text, part->tool_name.data, part->tool_name.size);
    }
    if (part->kind == REPLY_CALL || (int)part->kind != seen->last)
        buffer_append(&seen->text, (const char[]){(char)part->kind}, 1);
    buffer_append(&seen->text, part->text.data, part->text.size);
    seen->last = (int)part->kind;
}

static void read_reply(const char *source, const json_t *tools, struct view reply, uint8_t cuts,
                       struct seen *seen)
{
    struct reply_parser *parser;
    struct error error;
    const char *prompt = cuts & 1 ? "<think>" : "";
    seen->last = -1;
    if (reply_parser_open(&parser, reply_format_of(view_of(source)), view_of(prompt), tools, take,
                          seen, &error) != STATUS_OK)
        return;
    for (size_t at = 0, n; at < reply.size; at += n) {
        n = cuts < 2 ? reply.size : MIN(1 + rng_u64(cuts / 2, at, 0) % 9, reply.size - at);
        reply_parser_feed(parser, (struct view){reply.data + at, n});
    }
    reply_parser_end(parser);
    reply_parser_close(parser);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const char *source = templates[data[0] / 2 % ARRAY_COUNT(templates)];
    json_t *tools = data[0] % 2 == 0 ? json_loads(tools_text, 0, NULL) : NULL;
    struct view reply = {(const char *)data + 2, size - 2};
    struct seen whole = {{0}, 0}, pieces = {{0}, 0};
    read_reply(source, tools, reply, data[1] & 1, &whole);
    read_reply(source, tools, reply, data[1], &pieces);
    if (whole.text.size != pieces.text.size ||
        (whole.text.size > 0 && memcmp(whole.text.data, pieces.text.data, whole.text.size) != 0))
        abort();
    buffer_free(&whole.text);
    buffer_free(&pieces.text);
    json_decref(tools);
    return 0;
}
