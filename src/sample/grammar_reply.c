/* From what is asked of a reply to rules: reasoning, then a text by a grammar or a schema, or calls
 * of tools as the model's family writes them. */
#include "sample/schema_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CALLS 16

struct reply {
    struct rules *rules;
    const struct tokenizer *tokenizer;
    const struct grammar_spec *spec;
    struct schema *schema; /* NULL for GBNF */
    struct error *error;
    bool failed; /* error says why */
};

/* ---- Marks ----------------------------------------------------------------------------------- */

/* Appends text with the sign of control tokens before those that are in it. */
static void write_marks(const struct reply *reply, struct view text, struct buffer *out)
{
    for (size_t i = 0; i < text.size; i++) {
        char close = text.data[i] == '<' ? '>' : text.data[i] == '[' ? ']' : '\0';
        const char *end = close != '\0' ? memchr(text.data + i, close, text.size - i) : NULL;
        if (end != NULL) {
            struct view word = {text.data + i, (size_t)(end + 1 - (text.data + i))};
            int32_t id = tokenizer_find(reply->tokenizer, word);
            if (id != TOKEN_NONE && tokenizer_is_control(reply->tokenizer, id))
                buffer_append(out, (const char[]){GRAMMAR_CONTROL_BYTE}, 1);
        }
        buffer_append(out, text.data + i, 1);
    }
}

static struct expression *marked(struct reply *reply, const char *text)
{
    struct buffer bytes = {0};
    write_marks(reply, view_of(text != NULL ? text : ""), &bytes);
    reply->rules->failed |= bytes.failed;
    struct expression *node =
        expression_bytes(reply->rules, (struct view){bytes.size > 0 ? bytes.data : "", bytes.size});
    buffer_free(&bytes);
    return node;
}

/* ---- Text up to a mark ----------------------------------------------------------------------- */

/* How much of the beginning of mark the text ends with when c follows the first n of its bytes. */
static size_t matched(const char *mark, size_t n, char c)
{
    char text[128];
    memcpy(text, mark, n);
    text[n] = c;
    for (size_t length = n + 1; length > 0; length--)
        if (memcmp(mark, text + n + 1 - length, length) == 0)
            return length;
    return 0;
}

/* The automaton of a text up to bytes, which are ASCII: a rule for each number of them that the
 * text ends with. Where rest is not NULL the text may end anywhere, and rest follows the bytes. */
static struct expression *walk_to(struct reply *reply, const struct buffer *bytes,
                                  struct expression *rest)
{
    struct rules *rules = reply->rules;
    size_t n = bytes->size;
    uint32_t first = rules->count, behind = 0;
    for (size_t k = 0; k < n; k++)
        rules_add(rules, view_of("text"));
    if (rest != NULL)
        schema_as_rule(reply->schema, rest, &behind);
    for (size_t k = 0; k < n && !rules->failed; k++) {
        struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
        struct code_range others[130] = {{0, 0x10FFFF}};
        struct code_range taken[128];
        size_t n_taken = 0;
        for (size_t i = 0; i < n; i++) {
            char c = bytes->data[i];
            size_t length = matched(bytes->data, k, c);
            char one[2] = {c, '\0'};
            if (length == 0 || memchr(bytes->data, c, i) != NULL)
                continue;
            taken[n_taken++] = (struct code_range){(unsigned char)c, (unsigned char)c};
            uint32_t next = length < n ? first + (uint32_t)length : behind;
            struct expression *step = expression_text(rules, one);
            expression_add(choice, length == n && rest == NULL
                                       ? step
                                       : expression_sequence_of(
                                             rules, step, expression_rule(rules, next), NULL));
        }
        n_taken = ranges_normalise(taken, n_taken);
        size_t n_others = ranges_invert(taken, n_taken, others);
        expression_add(choice,
                       expression_sequence_of(rules, expression_ranges(rules, others, n_others),
                                              expression_rule(rules, first), NULL));
        if (rest != NULL)
            expression_add(choice, expression_list(rules, EXPRESSION_SEQUENCE));
        rules->list[first + k].body = choice;
    }
    return rules->failed ? NULL : expression_rule(rules, first);
}

static struct expression *any_text(struct reply *reply)
{
    static const struct code_range any = {0, 0x10FFFF};
    return expression_repeat(reply->rules, expression_ranges(reply->rules, &any, 1), 0,
                             GRAMMAR_NO_LIMIT);
}

/* Any text without the mark, and the mark; with rest, which follows the mark, both may be absent.
 * The mark is ASCII, or one control token, which is no character of a text. */
static struct expression *up_to(struct reply *reply, const char *mark, struct expression *rest)
{
    struct rules *rules = reply->rules;
    struct buffer bytes = {0};
    write_marks(reply, view_of(mark), &bytes);
    bool plain = bytes.size > 0 && bytes.size < 120 && !bytes.failed;
    for (size_t i = 0; plain && i < bytes.size; i++)
        plain = (unsigned char)bytes.data[i] < 0x80;
    struct expression *node = NULL;
    if (plain) {
        node = walk_to(reply, &bytes, rest);
    } else {
        struct expression *whole =
            expression_bytes(rules, (struct view){bytes.size > 0 ? bytes.data : "", bytes.size});
        if (rest != NULL)
            whole =
                expression_repeat(rules, expression_sequence_of(rules, whole, rest, NULL), 0, 1);
        node = expression_sequence_of(rules, any_text(reply), whole, NULL);
    }
    buffer_free(&bytes);
    return node;
}

/* ---- Before the text ------------------------------------------------------------------------- */

static struct expression *optional(struct reply *reply, struct expression *node)
{
    return expression_repeat(reply->rules, node, 0, 1);
}

/* Reasoning, where the family writes some, and what leads to the text. */
static struct expression *before(struct reply *reply)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    if (syntax == NULL)
        return expression_list(rules, EXPRESSION_SEQUENCE);
    if (syntax->channels) {
        struct expression *analysis = expression_sequence_of(
            rules, marked(reply, "<|channel|>analysis<|message|>"), up_to(reply, "<|end|>", NULL),
            marked(reply, "<|start|>assistant"), NULL);
        return expression_sequence_of(
            rules, optional(reply, analysis),
            marked(reply, reply->spec->tools != NULL ? "" : "<|channel|>final<|message|>"), NULL);
    }
    if (syntax->think == NULL)
        return expression_list(rules, EXPRESSION_SEQUENCE);
    struct expression *lines = expression_repeat(rules, expression_text(rules, "\n"), 0, 2);
    if (reply->spec->thinking)
        return expression_sequence_of(rules, up_to(reply, syntax->think_end, NULL), lines, NULL);
    return optional(reply,
                    expression_sequence_of(rules, marked(reply, syntax->think),
                                           up_to(reply, syntax->think_end, NULL), lines, NULL));
}

/* ---- Calls ----------------------------------------------------------------------------------- */

static void fail(struct reply *reply, const char *format, const char *name)
{
    if (!reply->failed)
        error_set(reply->error, STATUS_INVALID, format, name);
    reply->failed = true;
}

/* A bare text that does not hold what ends it; one of the values where the schema lists them. */
static struct expression *bare_value(struct reply *reply, const json_t *value)
{
    struct rules *rules = reply->rules;
    const json_t *list = json_object_get(value, "enum"),
                 *constant = json_object_get(value, "const");
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)))
            expression_add(choice,
                           expression_text(rules, json_string_value(json_array_get(list, i))));
    if (json_is_string(constant))
        expression_add(choice, expression_text(rules, json_string_value(constant)));
    if (list != NULL || constant != NULL)
        return choice;
    reply->schema->bare = true;
    struct expression *content = schema_content(reply->schema, value);
    reply->schema->bare = false;
    return content;
}

/* What the reader of calls takes as it is; all else it reads as JSON. */
static bool is_bare(const json_t *value)
{
    const char *type = json_string_value(json_object_get(value, "type"));
    return type != NULL && strcmp(type, "string") == 0;
}

/* Arguments in tags, in the order of the schema. */
static struct expression *tagged_arguments(struct reply *reply, const json_t *parameters)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    struct expression *all = expression_list(rules, EXPRESSION_SEQUENCE);
    const json_t *required = json_object_get(parameters, "required");
    const char *key;
    json_t *member;
    reply->schema->root = parameters;
    json_object_foreach(json_object_get(parameters, "properties"), key, member)
    {
        bool needed = false;
        for (size_t i = 0; i < json_array_size(required); i++) {
            const char *name = json_string_value(json_array_get(required, i));
            needed = needed || (name != NULL && strcmp(name, key) == 0);
        }
        size_t mark = schema_enter(reply->schema, "properties", key);
        struct expression *value =
            is_bare(member) ? bare_value(reply, member) : schema_value(reply->schema, member);
        schema_leave(reply->schema, mark);
        struct expression *argument = expression_sequence_of(
            rules, marked(reply, syntax->key), expression_text(rules, key),
            marked(reply, syntax->key_end), value, marked(reply, syntax->value_end), NULL);
        expression_add(all, needed ? argument : optional(reply, argument));
    }
    return all;
}

/* Arguments in tags that no schema restricts, with what ends the call. */
static struct expression *any_tags(struct reply *reply)
{
    const char *suffix = reply->spec->syntax->suffix, *line = strrchr(suffix, '\n');
    return up_to(reply, line != NULL ? line + 1 : suffix, NULL);
}

static bool name_is_plain(const char *name)
{
    return name[0] != '\0' && strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                           "0123456789_-.") == strlen(name);
}

/* NAME, what stands between, the arguments, and the end of the call. */
static struct expression *call_of(struct reply *reply, const json_t *function)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    const char *name = json_string_value(json_object_get(function, "name"));
    const json_t *parameters = json_object_get(function, "parameters");
    bool strict = json_is_true(json_object_get(function, "strict"));
    json_t *none = json_pack("{s:s, s:b}", "type", "object", "additionalProperties", false);
    if (!name_is_plain(name != NULL ? name : ""))
        fail(reply, "the tool name %.60s can only have letters, digits, _, - and .", name);
    if (!json_is_object(parameters) || json_object_size(parameters) == 0)
        parameters = none;
    bool bound = !reply->spec->may_call || strict, tagged = syntax->key != NULL;
    struct expression *arguments = NULL, *end = NULL;
    if (!reply->failed && bound)
        arguments = tagged ? tagged_arguments(reply, parameters)
                           : schema_compile(reply->schema, parameters);
    else if (!reply->failed)
        arguments = tagged ? any_tags(reply) : schema_shared(reply->schema, SCHEMA_OBJECT);
    json_decref(none);
    if (arguments == NULL)
        return NULL;
    end = bound || !tagged ? marked(reply, syntax->suffix)
                           : expression_list(rules, EXPRESSION_SEQUENCE);
    return expression_sequence_of(rules, expression_text(rules, name),
                                  marked(reply, syntax->middle), arguments, end, NULL);
}

/* One of the calls, from the name on. */
static struct expression *one_call(struct reply *reply)
{
    const struct grammar_spec *spec = reply->spec;
    struct expression *choice = expression_list(reply->rules, EXPRESSION_CHOICE);
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(spec->tools) && !reply->failed; i++) {
        const json_t *function = json_object_get(json_array_get(spec->tools, i), "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        if (spec->tool != NULL && (name == NULL || strcmp(name, spec->tool) != 0))
            continue;
        expression_add(choice, call_of(reply, function));
        n++;
    }
    if (n == 0)
        fail(reply, "there is no tool %.60s to call", spec->tool != NULL ? spec->tool : "");
    uint32_t rule;
    return schema_as_rule(reply->schema, choice, &rule);
}

/* The calls, without the first n_read bytes of what leads to them. */
static struct expression *calls(struct reply *reply, size_t n_read)
{
    struct rules *rules = reply->rules;
    const struct grammar_spec *spec = reply->spec;
    const struct reply_syntax *syntax = spec->syntax;
    bool opens = syntax->open != NULL;
    struct expression *one = one_call(reply);
    struct expression *all =
        expression_sequence_of(rules, marked(reply, opens ? syntax->open + n_read : ""),
                               marked(reply, syntax->prefix + (opens ? 0 : n_read)), one, NULL);
    if (!syntax->single && !spec->single_call && spec->tool == NULL && one != NULL) {
        struct expression *more = expression_sequence_of(
            rules, optional(reply, expression_text(rules, "\n")), marked(reply, syntax->prefix),
            expression_rule(rules, one->rule), NULL);
        all = expression_sequence_of(rules, all, expression_repeat(rules, more, 0, MAX_CALLS - 1),
                                     NULL);
    }
    return expression_sequence_of(rules, all, marked(reply, syntax->close), NULL);
}

/* What does not begin as a call. */
static struct expression *text_without_brace(struct reply *reply)
{
    static const struct code_range others[] = {{0, '\t' - 1}, {'\v', '\v'},   {'\f', '\f'},
                                               {0x0E, 0x1F},  {'!', '{' - 1}, {'{' + 1, 0x10FFFF}};
    struct rules *rules = reply->rules;
    struct expression *space =
        expression_repeat(rules, expression_set(rules, " \t\r\n"), 0, GRAMMAR_NO_LIMIT);
    struct expression *text = expression_sequence_of(
        rules, expression_ranges(rules, others, ARRAY_COUNT(others)), any_text(reply), NULL);
    return expression_sequence_of(rules, space, optional(reply, text), NULL);
}

/* A text, or calls, or one before the other, as the family has it. */
static struct expression *text_or_calls(struct reply *reply)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    if (syntax->channels) {
        struct expression *preamble = expression_sequence_of(
            rules, marked(reply, "<|channel|>commentary<|message|>"), up_to(reply, "<|end|>", NULL),
            marked(reply, "<|start|>assistant"), NULL);
        struct expression *final = expression_sequence_of(
            rules, marked(reply, "<|channel|>final<|message|>"), any_text(reply), NULL);
        return expression_sequence_of(rules, optional(reply, preamble),
                                      expression_choice_of(rules, final, calls(reply, 0), NULL),
                                      NULL);
    }
    if (syntax->mark == NULL)
        return expression_choice_of(rules, calls(reply, 0), text_without_brace(reply), NULL);
    return up_to(reply, syntax->mark, calls(reply, strlen(syntax->mark)));
}

/* ---- The reply ------------------------------------------------------------------------------- */

/* The grammar's root stands behind the reasoning. It may call itself, so another rule is the root.
 */
static enum status parse_gbnf(struct reply *reply)
{
    struct rules *rules = reply->rules;
    enum status status = gbnf_parse(rules, reply->spec->gbnf, reply->error);
    if (status != STATUS_OK || reply->spec->syntax == NULL)
        return status;
    uint32_t root = rules_add(rules, view_of("reply"));
    struct expression *body =
        expression_sequence_of(rules, before(reply), expression_rule(rules, 0), NULL);
    if (rules->failed)
        return error_set(reply->error, STATUS_LIMIT, "the grammar is too large");
    rules->list[root].body = body;
    rules->root = root;
    return STATUS_OK;
}

enum status reply_parse(struct rules *rules, const struct tokenizer *tokenizer,
                        const struct grammar_spec *spec, struct error *error)
{
    struct reply reply = {.rules = rules, .tokenizer = tokenizer, .spec = spec, .error = error};
    if (spec->schema == NULL && spec->tools == NULL)
        return parse_gbnf(&reply);
    reply.schema = schema_open(rules, error);
    if (reply.schema == NULL)
        return error_memory(error, sizeof *reply.schema);
    if (spec->tools != NULL && spec->syntax->key != NULL && !rules->failed)
        schema_avoid_tags(reply.schema);
    struct expression *text = spec->tools == NULL ? schema_compile(reply.schema, spec->schema)
                              : spec->may_call    ? text_or_calls(&reply)
                                                  : calls(&reply, 0);
    enum status status = STATUS_OK;
    if (reply.failed || reply.schema->failed)
        status = STATUS_INVALID;
    else if (text != NULL)
        rules->list[0].body = expression_sequence_of(rules, before(&reply), text, NULL);
    if (status == STATUS_OK && (rules->failed || text == NULL))
        status = error_set(error, STATUS_LIMIT, "the schema is too large");
    schema_close(reply.schema);
    return status;
}
