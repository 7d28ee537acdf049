/* Forced calls of tools: what the grammars of src/sample allow is what the reader of replies in
 * src/text finds, in every family's syntax. Replies are random choices among the allowed tokens. */
#include "../support/tokenizer_vocabularies.h"
#include "sample/sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define N_SEEDS 14
#define MAX_TOKENS 6000

/* ---- Families -------------------------------------------------------------------------------- */

struct family {
    const char *chat_template, *think, *think_end; /* NULL: no reasoning */
};

static const struct family families[] = {
    {"<|channel|> <|message|>", "<|channel|>analysis<|message|>", "<|end|>"},
    {"<think> <｜tool▁calls▁begin｜> ```json", "<think>", "</think>"},
    {"<｜tool▁calls▁begin｜> ```json", NULL, NULL},
    {"<think> <｜tool▁calls▁begin｜>", "<think>", "</think>"},
    {"<think> <|tool_call_begin|>", "<think>", "</think>"},
    {"<|tool_call_begin|>", NULL, NULL},
    {"<think> <arg_key>", "<think>", "</think>"},
    {"<arg_key>", NULL, NULL},
    {"<think> <tool_call> <function=", "<think>", "</think>"},
    {"<tool_call> <function=", NULL, NULL},
    {"<think> <minimax:tool_call>", "<think>", "</think>"},
    {"<minimax:tool_call>", NULL, NULL},
    {"<think> <tool_call>", "<think>", "</think>"},
    {"<tool_call>", NULL, NULL},
    {"<|START_THINKING|> <|START_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"},
    {"<|START_THINKING|> <|START_ACTION|> <|START_TEXT|>", "<|START_THINKING|>",
     "<|END_THINKING|>"},
    {"<|START_ACTION|>", NULL, NULL},
    {"[THINK] [TOOL_CALLS] [ARGS]", "[THINK]", "[/THINK]"},
    {"[TOOL_CALLS] [ARGS]", NULL, NULL},
    {"[THINK] [TOOL_CALLS]", "[THINK]", "[/THINK]"},
    {"[TOOL_CALLS]", NULL, NULL},
    {"<|start_header_id|>", NULL, NULL},
    {"<think>", "<think>", "</think>"},
    {"", NULL, NULL},
};

static const char *const control_marks[] = {
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|constrain|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[THINK]",
    "[/THINK]",
    "<|python_tag|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
};

static const char *const plain_marks[] = {"<think>",
                                          "</think>",
                                          "<tool_call>",
                                          "</tool_call>",
                                          "<arg_key>",
                                          "</arg_key>",
                                          "<arg_value>",
                                          "</arg_value>",
                                          "</function",
                                          "</parameter>",
                                          "\"}",
                                          "\",\"",
                                          "{\"name",
                                          "\n<",
                                          "</arg_value>\n",
                                          "</minimax:tool_call>"};

/* ---- Tools ----------------------------------------------------------------------------------- */

static const char tools_text[] =
    "[{'type':'function','function':{'name':'search-v2.x','strict':true,'parameters':{'type':'"
    "object',"
    "'properties':{'query':{'type':'string'},'tags':{'type':'array','items':{'type':'string'},"
    "'maxItems':3},'limit':{'type':'number'},'exact':{'type':'boolean'}},"
    "'required':['query','tags','limit'],'additionalProperties':false}}},"
    "{'type':'function','function':{'name':'weather','strict':true,'parameters':{'type':'object',"
    "'properties':{'city':{'type':'string','minLength':2},'days':{'type':'integer'},"
    "'unit':{'type':'string','enum':['celsius','fahrenheit']},"
    "'place':{'type':'object','properties':{'lat':{'type':'integer','minimum':-90,'maximum':90}},"
    "'required':['lat']}},'required':['city','days','place']}}},"
    "{'type':'function','function':{'name':'note','parameters':{'type':'object',"
    "'properties':{'text':{'type':'string'}},'required':['text'],'additionalProperties':false}}},"
    "{'type':'function','function':{'name':'now'}},"
    "{'type':'function','function':{'name':'stop','parameters':{'type':'object','properties':{},"
    "'required':[],'title':'t'}}},"
    "{'type':'function','function':{'name':'set','strict':true,'parameters':{'type':'object',"
    "'properties':{'to':{'type':'object'}},'required':['to']}}}]";

static const json_t *function_of(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");
        if (strcmp(json_string_value(json_object_get(function, "name")), name) == 0)
            return function;
    }
    fail_msg("there is no tool %s", name);
    return NULL;
}

static bool has_type(const json_t *value, const char *type)
{
    return strcmp(type, "string") == 0    ? json_is_string(value)
           : strcmp(type, "integer") == 0 ? json_is_integer(value)
           : strcmp(type, "number") == 0  ? json_is_number(value)
           : strcmp(type, "boolean") == 0 ? json_is_boolean(value)
           : strcmp(type, "array") == 0   ? json_is_array(value)
                                          : json_is_object(value);
}

static size_t characters(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++)
        n += (*text & 0xC0) != 0x80;
    return n;
}

/* Whether value is what the schema, of the few keywords above, asks for. */
static bool validates(const json_t *value, const json_t *schema)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *required = json_object_get(schema, "required"),
                 *list = json_object_get(schema, "enum");
    bool good = has_type(value, json_string_value(json_object_get(schema, "type"))), listed = false;
    for (size_t i = 0; i < json_array_size(required); i++)
        good = good && json_object_get(value, json_string_value(json_array_get(required, i)));
    for (size_t i = 0; i < json_array_size(list); i++)
        listed = listed || json_equal(value, json_array_get(list, i));
    if (json_is_string(value) && json_object_get(schema, "minLength") != NULL)
        good = good && (json_int_t)characters(json_string_value(value)) >=
                           json_integer_value(json_object_get(schema, "minLength"));
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)value, key, member)
    {
        const json_t *inner = json_object_get(properties, key);
        good = good && inner != NULL && validates(member, inner);
    }
    return good && (listed || list == NULL);
}

/* ---- Fixture --------------------------------------------------------------------------------- */

struct fixture {
    struct small_vocabulary vocabulary;
    struct tokenizer *tokenizer;
    struct grammar_cache *cache;
    json_t *tools;
    bool marks_are_tokens;
};

/* The bytes, with the families' marks as tokens or spelt with bytes. */
static void open_fixture(struct fixture *f, bool marks)
{
    struct error error;
    memset(f, 0, sizeof *f);
    f->marks_are_tokens = marks;
    small_bytes(&f->vocabulary, "gpt-2");
    for (size_t i = 0; marks && i < ARRAY_COUNT(control_marks); i++)
        small_add(&f->vocabulary, control_marks[i], TOKEN_CONTROL, 0);
    for (size_t i = 0; marks && i < ARRAY_COUNT(plain_marks); i++)
        small_add(&f->vocabulary, plain_marks[i], TOKEN_USER_DEFINED, 0);
    small_add(&f->vocabulary, "<|call|>", TOKEN_CONTROL, 0);
    f->vocabulary.config.eos = small_add(&f->vocabulary, "<|return|>", TOKEN_CONTROL, 0);
    if (tokenizer_open(&f->tokenizer, &f->vocabulary.config, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    assert_int_equal(
        grammar_cache_open(&f->cache, f->tokenizer, tokenizer_count(f->tokenizer), &error),
        STATUS_OK);
    char text[sizeof tools_text];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(tools_text[i] == '\'' ? '"' : tools_text[i]);
    f->tools = json_loads(text, 0, NULL);
    assert_non_null(f->tools);
}

static void close_fixture(struct fixture *f)
{
    json_decref(f->tools);
    grammar_cache_close(f->cache);
    tokenizer_close(f->tokenizer);
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* One reply, as it is written and as it is read. */
struct reply {
    struct fixture *f;
    const struct family *family;
    const struct reply_format *format;
    struct grammar_matcher *matcher;
    struct reply_parser *parser;
    const char *tool; /* the one that is named, or NULL */
    bool may_call;    /* only strict tools get the arguments of their schemas */
    uint64_t seed, n_drawn;
    struct buffer text, content, reasoning;
    size_t n_calls;
    bool ended;
};

static void allowed_tokens(struct reply *r, float *logits)
{
    memset(logits, 0, SMALL_MAX * sizeof *logits);
    assert_true(grammar_matcher_mask(r->matcher, logits));
}

/* The bytes of a token as the server gives them to the reader. */
static struct view piece_of(const struct reply *r, int32_t token, struct buffer *out)
{
    buffer_clear(out);
    tokenizer_piece(r->f->tokenizer, token, reply_format_shows_control(r->format), out);
    return (struct view){out->size > 0 ? out->data : "", out->size};
}

static void write_token(struct reply *r, int32_t token)
{
    struct buffer piece = {0};
    grammar_matcher_accept(r->matcher, token);
    r->ended = tokenizer_ends_generation(r->f->tokenizer, token);
    struct view text = piece_of(r, token, &piece);
    if (!r->ended) {
        buffer_append(&r->text, text.data, text.size);
        reply_parser_feed(r->parser, text);
    }
    buffer_free(&piece);
}

/* Writes as much of text as is allowed; whether that is all. */
static bool try_text(struct reply *r, const char *text)
{
    struct buffer piece = {0};
    bool more = true;
    for (size_t left = strlen(text), best = 1; more && left > 0; text += best, left -= best) {
        float logits[SMALL_MAX];
        int32_t token = TOKEN_NONE;
        best = 0;
        allowed_tokens(r, logits);
        for (size_t id = 0; id < tokenizer_count(r->f->tokenizer); id++) {
            struct view view = piece_of(r, (int32_t)id, &piece);
            if (logits[id] == 0 && view.size > best && view.size <= left &&
                memcmp(view.data, text, view.size) == 0) {
                best = view.size;
                token = (int32_t)id;
            }
        }
        more = token != TOKEN_NONE;
        if (more)
            write_token(r, token);
    }
    buffer_free(&piece);
    return more;
}

static void write_text(struct reply *r, const char *text)
{
    if (!try_text(r, text))
        fail_msg("%s: after '%.*s' the rest of '%s' is not allowed", r->family->chat_template,
                 (int)r->text.size, r->text.data, text);
}

/* Writes an allowed token; of one in two (or in eight, by the seed) those that end something. */
static void write_any(struct reply *r)
{
    float logits[SMALL_MAX];
    int32_t all[SMALL_MAX], closing[SMALL_MAX];
    size_t n_all = 0, n_closing = 0;
    struct buffer piece = {0};
    allowed_tokens(r, logits);
    for (size_t id = 0; id < tokenizer_count(r->f->tokenizer); id++) {
        if (logits[id] != 0)
            continue;
        struct view text = piece_of(r, (int32_t)id, &piece);
        all[n_all++] = (int32_t)id;
        if (text.size == 0 || strchr("\"}]<\n`", text.data[0]) != NULL ||
            tokenizer_is_control(r->f->tokenizer, (int32_t)id))
            closing[n_closing++] = (int32_t)id;
    }
    buffer_free(&piece);
    if (n_all == 0)
        fail_msg("%s: nothing is allowed after '%.*s'", r->family->chat_template, (int)r->text.size,
                 r->text.data);
    bool close = n_closing > 0 && (r->n_drawn > MAX_TOKENS / 6 ||
                                   rng_u64(r->seed, r->n_drawn, 0) % (r->seed % 2 ? 2 : 8) == 0);
    uint64_t draw = rng_u64(r->seed, r->n_drawn++, 1);
    write_token(r, close ? closing[draw % n_closing] : all[draw % n_all]);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static void take(void *context, const struct reply_part *part)
{
    struct reply *r = context;
    if (part->kind == REPLY_CONTENT)
        buffer_append(&r->content, part->text.data, part->text.size);
    if (part->kind == REPLY_REASONING)
        buffer_append(&r->reasoning, part->text.data, part->text.size);
    if (part->kind != REPLY_CALL)
        return;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)part->tool_name.size, part->tool_name.data);
    if (r->tool != NULL && strcmp(name, r->tool) != 0)
        fail_msg("%s: '%.*s' calls %s, not %s", r->family->chat_template, (int)r->text.size,
                 r->text.data, name, r->tool);
    json_t *arguments = json_loadb(part->text.data, part->text.size, 0, NULL);
    const json_t *function = function_of(r->f->tools, name);
    const json_t *parameters = json_object_get(function, "parameters");
    bool bound = !r->may_call || json_is_true(json_object_get(function, "strict"));
    if (strcmp(name, "stop") == 0) /* names no properties */
        parameters = NULL;
    if (bound && parameters == NULL && json_object_size(arguments) > 0)
        fail_msg("%s has arguments", name);
    if (!json_is_object(arguments) ||
        (bound && parameters != NULL && !validates(arguments, parameters)))
        fail_msg("%s: '%.*s' has the arguments %.*s", r->family->chat_template, (int)r->text.size,
                 r->text.data, (int)part->text.size, part->text.data);
    json_decref(arguments);
    r->n_calls++;
}

/* What reasoning may well have in it. */
static const char thought[] = "I call {\"name\": \"weather\"}, </th [/TH <| \n[ARG <arg so";

/* What is made of spec, and its reader. */
static void open_reply(struct reply *r, struct grammar_spec spec, const char *prompt)
{
    struct view chat_template = view_of(r->family->chat_template);
    struct error error;
    struct grammar *grammar;
    r->format = reply_format_of(chat_template);
    struct reply_syntax syntax = reply_syntax_of(r->format, chat_template);
    spec.tools = r->f->tools;
    spec.syntax = &syntax;
    if (grammar_cache_get(r->f->cache, &spec, &grammar, &error) != STATUS_OK)
        fail_msg("%s: %s", r->family->chat_template, error.text);
    assert_int_equal(grammar_matcher_open(&r->matcher, grammar, false, &error), STATUS_OK);
    assert_int_equal(
        reply_parser_open(&r->parser, r->format, view_of(prompt), r->f->tools, take, r, &error),
        STATUS_OK);
    grammar_release(grammar);
}

static void close_reply(struct reply *r)
{
    buffer_free(&r->text);
    buffer_free(&r->content);
    buffer_free(&r->reasoning);
    reply_parser_close(r->parser);
    grammar_matcher_close(r->matcher);
}

static void write_rest(struct reply *r)
{
    for (size_t i = 0; i < MAX_TOKENS && !r->ended; i++)
        write_any(r);
    assert_true(r->ended);
    assert_true(reply_parser_end(r->parser));
}

/* Reasons, where `thinks`, and calls. begun: the prompt ended within the reasoning. */
static void check_reply(struct fixture *f, const struct family *family, const char *tool,
                        uint64_t seed, bool thinks, bool begun)
{
    struct reply r = {.f = f, .family = family, .tool = tool, .seed = seed};
    struct reply_syntax syntax = reply_syntax_of(reply_format_of(view_of(family->chat_template)),
                                                 view_of(family->chat_template));
    open_reply(&r, (struct grammar_spec){.tool = tool, .thinking = begun},
               begun ? family->think : "");
    if (!begun)
        write_text(&r, thinks ? family->think : syntax.open != NULL ? syntax.open : syntax.prefix);
    if (thinks) {
        write_text(&r, thought);
        write_text(&r, family->think_end);
    }
    write_rest(&r);
    if (r.content.size > 0 || r.n_calls == 0 || (tool != NULL && r.n_calls != 1) ||
        !view_equal((struct view){r.reasoning.data, r.reasoning.size},
                    view_of(thinks ? thought : "")))
        fail_msg("%s: '%.*s' is read as %zu calls, the reasoning '%.*s' and the content '%.*s'",
                 family->chat_template, (int)r.text.size, r.text.data, r.n_calls,
                 (int)r.reasoning.size, r.reasoning.data, (int)r.content.size, r.content.data);
    close_reply(&r);
}

/* Answers or calls as it likes: begins with a text, and where `calls` with the call's mark behind
 * it.
 */
static void check_free(struct fixture *f, const struct family *family, uint64_t seed, bool calls)
{
    static const char said[] = "Let me <tool_cal see [TOOL {\"a\": 1}";
    struct reply r = {.f = f, .family = family, .seed = seed, .may_call = true};
    struct reply_syntax syntax = reply_syntax_of(reply_format_of(view_of(family->chat_template)),
                                                 view_of(family->chat_template));
    bool bare = syntax.mark == NULL && !syntax.channels;
    if (!f->marks_are_tokens && strstr(family->chat_template, "｜") != NULL)
        return; /* such marks are found in a text only where they are tokens */
    if (!f->marks_are_tokens && syntax.key != NULL && calls)
        return; /* what is free up to a mark goes on until chance spells it */
    open_reply(&r, (struct grammar_spec){.may_call = true}, "");
    if (syntax.channels)
        write_text(&r, calls ? "<|channel|>commentary<|message|>" : "<|channel|>final<|message|>");
    if (!bare || !calls)
        write_text(&r, said);
    if (calls && syntax.channels)
        write_text(&r, "<|end|><|start|>assistant");
    if (calls)
        write_text(&r, syntax.mark != NULL ? syntax.mark : syntax.prefix);
    write_rest(&r);
    bool told = bare ? calls || r.content.size > 0
                     : r.content.size >= sizeof said - 1 &&
                           memcmp(r.content.data, said, sizeof said - 1) == 0;
    /* Tags that no schema restricts may be none, and then they are content. */
    if ((calls && r.n_calls == 0 && syntax.key == NULL) || !told)
        fail_msg("%s: '%.*s' is read as %zu calls and the content '%.*s'", family->chat_template,
                 (int)r.text.size, r.text.data, r.n_calls, (int)r.content.size, r.content.data);
    close_reply(&r);
}

/* A text that would hide a call with other arguments than the tool's behind reasoning, or behind
 * another mark, as far as it may be written: `take` looks at what is read. */
static void check_hidden(struct fixture *f, const struct family *family, uint64_t seed)
{
    struct reply r = {.f = f, .family = family, .seed = seed, .may_call = true};
    struct reply_syntax syntax = reply_syntax_of(reply_format_of(view_of(family->chat_template)),
                                                 view_of(family->chat_template));
    const char *think = family->think != NULL ? family->think : "";
    const char *const words[] = {"Well,",
                                 "\n\n\n",
                                 think,
                                 "yes",
                                 family->think != NULL ? family->think_end : "",
                                 seed & 4 ? "<|python_tag|>" : "",
                                 syntax.open != NULL ? syntax.open : "",
                                 syntax.prefix,
                                 "set",
                                 syntax.middle,
                                 "{\"to\": {\"x\": 1}}",
                                 syntax.suffix};
    if (!f->marks_are_tokens && (strstr(family->chat_template, "｜") != NULL || syntax.key != NULL))
        return; /* as above */
    open_reply(&r, (struct grammar_spec){.may_call = true}, "");
    for (size_t i = seed & 3; i < ARRAY_COUNT(words) && !r.ended; i++)
        try_text(&r, words[i]);
    write_rest(&r);
    close_reply(&r);
}

static void check_family(struct fixture *f, const struct family *family)
{
    static const char *const names[] = {"weather", "search-v2.x", "now", "note",
                                        "stop",    "set",         NULL};
    bool channels = strstr(family->chat_template, "<|channel|>") != NULL;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        const char *tool = names[seed / 2 % ARRAY_COUNT(names)];
        check_free(f, family, seed, false);
        check_free(f, family, seed, true);
        check_hidden(f, family, seed);
        check_reply(f, family, tool, seed, false, false);
        if (family->think != NULL)
            check_reply(f, family, tool, seed, true, false);
        if (family->think != NULL && !channels)
            check_reply(f, family, tool, seed, true, true);
    }
}

static void test_forced_marks_as_tokens(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, true);
    for (size_t i = 0; i < ARRAY_COUNT(families); i++)
        check_family(&f, &families[i]);
    close_fixture(&f);
}

static void test_forced_marks_as_bytes(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, false);
    for (size_t i = 0; i < ARRAY_COUNT(families); i++)
        check_family(&f, &families[i]);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forced_marks_as_tokens),
        cmocka_unit_test(test_forced_marks_as_bytes),
    };
    return cmocka_run_group_tests_name("forced", tests, NULL, NULL);
}
