/* Content, reasoning and tool calls in what a model writes, found while it writes. What comes is
 * searched for the marks that may follow; the text between the marks of a call is kept until the
 * call is whole. */
#include "text/reply_calls.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CALL_BYTES ((size_t)4 << 20) /* a longer one is content */

struct reply_format {
    const char *name;
    const char *detect[2];         /* words that the chat template must have */
    const char *think, *think_end; /* around reasoning; NULL: none */
    const char *call, *call_end;   /* around a call or several; call_end NULL: to the end */
    reply_reader *read;
    bool control;   /* the marks are control tokens */
    bool harmony;   /* channels, gpt-oss */
    bool bare_json; /* a reply that begins with { may be a call */
    bool framed;    /* an answer stands between marks too */
};

static const struct reply_format formats[] = {
    {.name = "harmony", .detect = {"<|channel|>", "<|message|>"}, .control = true, .harmony = true},
    {.name = "deepseek",
     .detect = {"<｜tool▁calls▁begin｜>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<｜tool▁call▁begin｜>",
     .call_end = "<｜tool▁call▁end｜>",
     .read = reply_read_named,
     .control = true},
    {.name = "kimi",
     .detect = {"<|tool_call_begin|>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<|tool_call_begin|>",
     .call_end = "<|tool_call_end|>",
     .read = reply_read_named,
     .control = true},
    {.name = "glm",
     .detect = {"<arg_key>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<tool_call>",
     .call_end = "</tool_call>",
     .read = reply_read_glm},
    {.name = "qwen-coder",
     .detect = {"<function=", "<tool_call>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<tool_call>",
     .call_end = "</tool_call>",
     .read = reply_read_qwen},
    {.name = "minimax",
     .detect = {"<minimax:tool_call>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<minimax:tool_call>",
     .call_end = "</minimax:tool_call>",
     .read = reply_read_minimax},
    {.name = "hermes",
     .detect = {"<tool_call>"},
     .think = "<think>",
     .think_end = "</think>",
     .call = "<tool_call>",
     .call_end = "</tool_call>",
     .read = reply_read_json},
    {.name = "command",
     .detect = {"<|START_ACTION|>"},
     .think = "<|START_THINKING|>",
     .think_end = "<|END_THINKING|>",
     .call = "<|START_ACTION|>",
     .call_end = "<|END_ACTION|>",
     .read = reply_read_json,
     .control = true,
     .framed = true},
    {.name = "mistral",
     .detect = {"[TOOL_CALLS]"},
     .think = "[THINK]",
     .think_end = "[/THINK]",
     .call = "[TOOL_CALLS]",
     .read = reply_read_named,
     .control = true},
    {.name = "llama",
     .detect = {"<|start_header_id|>"},
     .call = "<|python_tag|>",
     .read = reply_read_json,
     .control = true,
     .bare_json = true},
    {.name = "think",
     .detect = {"<think>"},
     .think = "<think>",
     .think_end = "</think>",
     .read = reply_read_json,
     .bare_json = true},
    {.name = "plain", .read = reply_read_json, .bare_json = true},
};

/* Words of the formats above that stand between and around calls and mean nothing by themselves. */
static const char *const wrappers[] = {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
                                       "<|tool_calls_section_begin|>",
                                       "<|tool_calls_section_end|>"};

/* Around an answer: Command R7B's, and those of later models. */
static const char *const frames[] = {"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>",
                                     "<|END_TEXT|>"};

#define COMMAND_CALLS                                                                              \
    .mark = "<|START_ACTION|>", .open = "<|START_ACTION|>[\n",                                     \
    .prefix = "    {\"tool_call_id\": \"#\", \"tool_name\": \"",                                   \
    .middle = "\", \"parameters\": ", .suffix = "}", .separator = ",\n",                           \
    .close = "\n]<|END_ACTION|>"

const struct reply_format *reply_format_of(struct view chat_template)
{
    const struct reply_format *format = formats;
    for (;; format++) {
        bool all = true;
        for (size_t i = 0; i < ARRAY_COUNT(format->detect) && format->detect[i] != NULL; i++)
            all = all && view_contains(chat_template, format->detect[i]);
        if (all) /* the last one asks for nothing */
            return format;
    }
}

/* The ways to write calls: the first with the word in the template (NULL: any), by family. */
static const struct {
    const char *format, *word;
    struct reply_syntax syntax;
} syntaxes[] = {
    {"harmony",
     NULL,
     {.channels = true,
      .prefix = "<|channel|>commentary to=functions.",
      .middle = " <|constrain|>json<|message|>",
      .suffix = "",
      .single = true}},
    {"deepseek",
     "```json",
     {.mark = "<｜tool▁calls▁begin｜>",
      .open = "<｜tool▁calls▁begin｜>",
      .prefix = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
      .middle = "\n```json\n",
      .suffix = "\n```<｜tool▁call▁end｜>",
      .close = "<｜tool▁calls▁end｜>"}},
    {"deepseek",
     NULL,
     {.mark = "<｜tool▁calls▁begin｜>",
      .open = "<｜tool▁calls▁begin｜>",
      .prefix = "<｜tool▁call▁begin｜>",
      .middle = "<｜tool▁sep｜>",
      .suffix = "<｜tool▁call▁end｜>",
      .close = "<｜tool▁calls▁end｜>"}},
    {"kimi",
     NULL,
     {.mark = "<|tool_calls_section_begin|>",
      .open = "<|tool_calls_section_begin|>",
      .prefix = "<|tool_call_begin|>functions.",
      .middle = ":#<|tool_call_argument_begin|>",
      .suffix = "<|tool_call_end|>",
      .close = "<|tool_calls_section_end|>"}},
    {"glm",
     NULL,
     {.mark = "<tool_call>",
      .prefix = "<tool_call>",
      .middle = "\n",
      .suffix = "</tool_call>",
      .key = "<arg_key>",
      .key_end = "</arg_key>\n<arg_value>",
      .value_end = "</arg_value>\n"}},
    {"qwen-coder",
     NULL,
     {.mark = "<tool_call>",
      .prefix = "<tool_call>\n<function=",
      .middle = ">\n",
      .suffix = "</function>\n</tool_call>",
      .key = "<parameter=",
      .key_end = ">\n",
      .value_end = "\n</parameter>\n"}},
    {"minimax",
     NULL,
     {.mark = "<minimax:tool_call>",
      .prefix = "<minimax:tool_call>\n<invoke name=\"",
      .middle = "\">\n",
      .suffix = "</invoke>\n</minimax:tool_call>",
      .key = "<parameter name=\"",
      .key_end = "\">",
      .value_end = "</parameter>\n"}},
    {"hermes",
     NULL,
     {.mark = "<tool_call>",
      .prefix = "<tool_call>\n{\"name\": \"",
      .middle = "\", \"arguments\": ",
      .suffix = "}\n</tool_call>"}},
    {"command",
     "<|START_TEXT|>",
     {COMMAND_CALLS, .text = "<|START_TEXT|>", .text_end = "<|END_TEXT|>"}},
    {"command",
     NULL,
     {COMMAND_CALLS, .text = "<|START_RESPONSE|>", .text_end = "<|END_RESPONSE|>"}},
    {"mistral",
     "[ARGS]",
     {.mark = "[TOOL_CALLS]",
      .prefix = "[TOOL_CALLS]",
      .middle = "[ARGS]",
      .suffix = "",
      .single = true}},
    {"mistral",
     NULL,
     {.mark = "[TOOL_CALLS]",
      .prefix = "[TOOL_CALLS][{\"name\": \"",
      .middle = "\", \"arguments\": ",
      .suffix = "}]",
      .single = true}},
    {"llama",
     NULL,
     {.prefix = "{\"name\": \"",
      .middle = "\", \"parameters\": ",
      .suffix = "}",
      .single = true,
      .other_mark = "<|python_tag|>"}},
};

struct reply_syntax reply_syntax_of(const struct reply_format *format, struct view chat_template)
{
    struct reply_syntax syntax = {
        .prefix = "{\"name\": \"", .middle = "\", \"arguments\": ", .suffix = "}", .single = true};
    for (size_t i = 0; i < ARRAY_COUNT(syntaxes); i++) {
        const char *word = syntaxes[i].word;
        if (strcmp(syntaxes[i].format, format->name) != 0 ||
            (word != NULL && !view_contains(chat_template, word)))
            continue;
        syntax = syntaxes[i].syntax;
        break;
    }
    /* Some families think in one model and not in another. */
    if (format->think != NULL && view_contains(chat_template, format->think)) {
        syntax.think = format->think;
        syntax.think_end = format->think_end;
    }
    return syntax;
}

bool reply_begins_thinking(const struct reply_format *format, struct view prompt)
{
    size_t length = format->think != NULL ? strlen(format->think) : 0;
    prompt = reply_trim(prompt);
    return length > 0 && prompt.size >= length &&
           memcmp(prompt.data + prompt.size - length, format->think, length) == 0;
}

bool reply_format_shows_control(const struct reply_format *format)
{
    return format->control;
}

const char *reply_format_open_think(const struct reply_format *format, struct view prompt)
{
    return reply_begins_thinking(format, prompt) ? format->think_end : NULL;
}

/* ---- The parser ------------------------------------------------------------------------------ */

enum mode { MODE_TEXT, MODE_CALL, MODE_HEADER }; /* header: of a harmony message */

struct reply_parser {
    const struct reply_format *format;
    const json_t *tools;
    reply_sink *sink;
    void *context;

    enum mode mode;
    enum reply_kind kind;  /* of the text */
    struct buffer pending; /* not looked through yet, or kept */
    struct buffer spaces;  /* white space that counts only where more text of its kind follows */
    struct buffer tool;    /* harmony: who the message is for */
    bool fresh;            /* leading white space belongs to a mark before it */
    bool begun;            /* something but white space has come, since the reasoning */
    bool failed;
};

static void give(struct reply_parser *parser, enum reply_kind kind, struct view text,
                 struct view tool)
{
    const struct reply_part part = {.kind = kind, .text = text, .tool_name = tool};
    if (text.size > 0)
        parser->sink(parser->context, &part);
}

/* Text of the present kind, without the white space between it and marks. */
static void give_text(struct reply_parser *parser, struct view text)
{
    struct view inner = reply_trim(text);
    if (text.size == 0 || (parser->fresh && inner.size == 0))
        return;
    if (parser->fresh)
        text = (struct view){inner.data, (size_t)(text.data + text.size - inner.data)};
    size_t end = inner.size == 0 ? 0 : (size_t)(inner.data + inner.size - text.data);
    if (end > 0) {
        parser->fresh = false;
        give(parser, parser->kind, (struct view){parser->spaces.data, parser->spaces.size},
             (struct view){0});
        buffer_clear(&parser->spaces);
        give(parser, parser->kind, (struct view){text.data, end}, (struct view){0});
    }
    buffer_append(&parser->spaces, text.data + end, text.size - end);
}

static void begin_kind(struct reply_parser *parser, enum reply_kind kind)
{
    buffer_clear(&parser->spaces);
    parser->kind = kind;
    parser->fresh = true;
}

static void drop_pending(struct reply_parser *parser, size_t n)
{
    memmove(parser->pending.data, parser->pending.data + n, parser->pending.size - n);
    parser->pending.size -= n;
}

/* Gives the calls of text; false where there are none in it. */
static bool give_calls(struct reply_parser *parser, reply_reader *read, struct view text)
{
    struct reply_calls calls = {.list = json_array(), .tools = parser->tools};
    bool good = calls.list != NULL && read(&calls, text);
    for (size_t i = 0; good && i < json_array_size(calls.list); i++) {
        const json_t *call = json_array_get(calls.list, i);
        char *arguments = json_dumps(json_array_get(call, 1), JSON_COMPACT);
        parser->failed |= arguments == NULL;
        if (arguments != NULL)
            give(parser, REPLY_CALL, view_of(arguments),
                 view_of(json_string_value(json_array_get(call, 0))));
        free(arguments);
    }
    json_decref(calls.list);
    if (good)
        begin_kind(parser, REPLY_CONTENT);
    return good;
}

/* ---- Marks ----------------------------------------------------------------------------------- */

/* The words that may come next, in a list that ends with NULL. */
static size_t next_marks(const struct reply_parser *parser, const char *marks[])
{
    const struct reply_format *format = parser->format;
    size_t n = 0;
    if (parser->kind == REPLY_REASONING) {
        marks[n++] = format->think_end;
        return n;
    }
    if (format->think != NULL)
        marks[n++] = format->think;
    for (size_t i = 0; format->framed && i < ARRAY_COUNT(frames); i++)
        marks[n++] = frames[i];
    if (format->call != NULL && parser->tools != NULL) {
        marks[n++] = format->call;
        for (size_t i = 0; format->control && i < ARRAY_COUNT(wrappers); i++)
            marks[n++] = wrappers[i];
    }
    return n;
}

static const char *const harmony_marks[] = {"<|channel|>", "<|start|>", "<|end|>", "<|call|>",
                                            "<|return|>"};

/* Bytes at the end of text that may be the beginning of mark. */
static size_t begun_mark(struct view text, const char *mark)
{
    size_t length = strlen(mark);
    for (size_t n = MIN(length - 1, text.size); n > 0; n--)
        if (memcmp(text.data + text.size - n, mark, n) == 0)
            return n;
    return 0;
}

/* Gives the text before the first of the marks, and drops both. NULL where none is there yet. */
static const char *pass_text(struct reply_parser *parser, const char *const marks[], size_t n)
{
    struct view all = {parser->pending.data, parser->pending.size};
    size_t first = all.size, held = 0;
    const char *found = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t at = view_find(all, 0, view_of(marks[i]));
        if (at < first) {
            first = at;
            found = marks[i];
        }
        held = MAX(held, begun_mark(all, marks[i]));
    }
    size_t end = found != NULL ? first : all.size - held;
    give_text(parser, (struct view){all.data, end});
    drop_pending(parser, end + (found != NULL ? strlen(found) : 0));
    return found;
}

/* ---- Modes ----------------------------------------------------------------------------------- */

/* A text that begins with { is kept to the end, where calls are possible. */
static void note_beginning(struct reply_parser *parser)
{
    struct view text = reply_trim((struct view){parser->pending.data, parser->pending.size});
    if (parser->begun || text.size == 0)
        return;
    parser->begun = true;
    if (parser->format->bare_json && parser->tools != NULL && parser->kind == REPLY_CONTENT &&
        text.data[0] == '{')
        parser->mode = MODE_CALL;
}

static bool step_text(struct reply_parser *parser)
{
    const char *marks[2 + ARRAY_COUNT(frames) + ARRAY_COUNT(wrappers)];
    const char *mark = pass_text(parser, marks, next_marks(parser, marks));
    const struct reply_format *format = parser->format;
    if (mark == NULL)
        return false;
    if (mark == format->think) {
        begin_kind(parser, REPLY_REASONING);
    } else if (mark == format->think_end) {
        begin_kind(parser, REPLY_CONTENT);
        parser->begun = false;
        note_beginning(parser);
    } else if (mark == format->call) {
        parser->mode = MODE_CALL;
    } else if (format->framed) {
        begin_kind(parser, REPLY_CONTENT);
    }
    return true;
}

/* What was taken for a call is content, its marks too. */
static void give_failed_call(struct reply_parser *parser, size_t n, bool closed)
{
    const struct reply_format *format = parser->format;
    if (format->call != NULL && !parser->format->bare_json)
        give_text(parser, view_of(format->call));
    give_text(parser, (struct view){parser->pending.data, n});
    if (closed && format->call_end != NULL)
        give_text(parser, view_of(format->call_end));
}

/* Where the mark begins that ends a call. One in a string of JSON does not, unless the string is
 * broken: a line end in it would be an escape. Values in tags are bare. */
static size_t find_call_end(const struct reply_format *format, struct view text)
{
    struct view end = view_of(format->call_end);
    size_t first = view_find(text, 0, end), inside = text.size;
    if (first == text.size || (format->read != reply_read_json && format->read != reply_read_named))
        return first;
    bool quoted = false;
    for (size_t i = MIN(first, view_find(text, 0, (struct view){"{", 1})); i < text.size; i++) {
        char c = text.data[i];
        if (view_equal((struct view){text.data + i, MIN(end.size, text.size - i)}, end)) {
            if (!quoted)
                return i;
            inside = MIN(inside, i);
        } else if (c == '"') {
            quoted = !quoted;
            inside = text.size;
        } else if (quoted && c == '\n') {
            if (inside < text.size)
                return inside;
            quoted = false;
        } else if (quoted && c == '\\') {
            i++;
        }
    }
    return text.size;
}

static bool step_call(struct reply_parser *parser)
{
    struct view all = {parser->pending.data, parser->pending.size};
    struct view end = view_of(parser->format->call_end != NULL ? parser->format->call_end : "");
    size_t at = end.size > 0 ? find_call_end(parser->format, all) : all.size;
    if (at == all.size && all.size <= MAX_CALL_BYTES)
        return false;
    bool closed = at < all.size;
    if (!closed || !give_calls(parser, parser->format->read, (struct view){all.data, at}))
        give_failed_call(parser, at, closed);
    drop_pending(parser, at + (closed ? end.size : 0));
    parser->mode = MODE_TEXT;
    return true;
}

/* <|channel|>NAME to=functions.TOOL <|constrain|>json<|message|> */
static bool step_header(struct reply_parser *parser)
{
    struct view all = {parser->pending.data, parser->pending.size};
    struct view message = view_of("<|message|>"), to = view_of("to=functions.");
    size_t end = view_find(all, 0, message);
    if (end == all.size)
        return false;
    struct view header = {all.data, end};
    size_t at = view_find(header, 0, to) + to.size;
    buffer_clear(&parser->tool);
    for (; at < end && header.data[at] != ' ' && header.data[at] != '<'; at++)
        buffer_append(&parser->tool, &header.data[at], 1);
    begin_kind(parser, view_contains(header, "analysis") ? REPLY_REASONING : REPLY_CONTENT);
    parser->mode = parser->tool.size > 0 && parser->tools != NULL ? MODE_CALL : MODE_TEXT;
    drop_pending(parser, end + message.size);
    return true;
}

static void give_harmony_call(struct reply_parser *parser, struct view text)
{
    json_t *arguments = json_loadb(text.data, text.size, 0, NULL);
    if (json_is_object(arguments))
        give(parser, REPLY_CALL, reply_trim(text),
             (struct view){parser->tool.data, parser->tool.size});
    else
        give_text(parser, text);
    json_decref(arguments);
}

static bool step_harmony(struct reply_parser *parser)
{
    if (parser->mode == MODE_HEADER)
        return step_header(parser);
    if (parser->mode == MODE_TEXT) {
        const char *mark = pass_text(parser, harmony_marks, ARRAY_COUNT(harmony_marks));
        if (mark == harmony_marks[0] || mark == harmony_marks[1])
            parser->mode = MODE_HEADER;
        return mark != NULL;
    }
    struct view all = {parser->pending.data, parser->pending.size};
    size_t end = MIN(view_find(all, 0, view_of("<|call|>")), view_find(all, 0, view_of("<|end|>")));
    if (end == all.size)
        return false;
    give_harmony_call(parser, (struct view){all.data, end});
    drop_pending(parser, end);
    parser->mode = MODE_TEXT;
    return true;
}

/* ---- Life ------------------------------------------------------------------------------------ */

enum status reply_parser_open(struct reply_parser **out, const struct reply_format *format,
                              struct view prompt, const json_t *tools, reply_sink *sink,
                              void *context, struct error *error)
{
    struct reply_parser *parser = calloc(1, sizeof *parser);
    *out = NULL;
    if (parser == NULL)
        return error_memory(error, sizeof *parser);
    *parser =
        (struct reply_parser){.format = format, .tools = tools, .sink = sink, .context = context};
    if (reply_begins_thinking(format, prompt))
        begin_kind(parser, REPLY_REASONING);
    *out = parser;
    return STATUS_OK;
}

void reply_parser_close(struct reply_parser *parser)
{
    if (parser == NULL)
        return;
    buffer_free(&parser->pending);
    buffer_free(&parser->spaces);
    buffer_free(&parser->tool);
    free(parser);
}

void reply_parser_feed(struct reply_parser *parser, struct view text)
{
    buffer_append(&parser->pending, text.data, text.size);
    note_beginning(parser);
    bool more = parser->pending.size > 0;
    while (more)
        more = parser->format->harmony     ? step_harmony(parser)
               : parser->mode == MODE_CALL ? step_call(parser)
                                           : step_text(parser);
}

bool reply_parser_end(struct reply_parser *parser)
{
    struct view rest = {parser->pending.data, parser->pending.size};
    bool called = false;
    if (parser->mode == MODE_CALL && parser->format->harmony) {
        give_harmony_call(parser, rest);
    } else if (parser->mode == MODE_CALL) {
        called = give_calls(parser, parser->format->read, rest);
        if (!called)
            give_failed_call(parser, rest.size, false);
    } else if (parser->mode == MODE_TEXT) {
        give_text(parser, rest);
    }
    /* White space at the very end is the model's own, but for what stands around calls. */
    if (!called && parser->kind == REPLY_CONTENT && !parser->fresh)
        give(parser, REPLY_CONTENT, (struct view){parser->spaces.data, parser->spaces.size},
             (struct view){0});
    return !parser->failed && !parser->pending.failed && !parser->spaces.failed;
}
