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

/* The bytes of a text, marks in it as control tokens. */
static struct expression *bytes_of(struct reply *reply, struct view text)
{
    struct buffer bytes = {0};
    write_marks(reply, text, &bytes);
    reply->rules->failed |= bytes.failed;
    struct expression *node =
        expression_bytes(reply->rules, (struct view){bytes.size > 0 ? bytes.data : "", bytes.size});
    buffer_free(&bytes);
    return node;
}

/* What a family writes around names and arguments, with numbers where # stands. */
static struct expression *marked(struct reply *reply, const char *text)
{
    struct rules *rules = reply->rules;
    struct view all = view_of(text != NULL ? text : "");
    size_t at = view_find(all, 0, (struct view){"#", 1});
    if (at == all.size)
        return bytes_of(reply, all);
    struct expression *number = expression_repeat(rules, expression_set(rules, "0-9"), 1, 3);
    return expression_sequence_of(rules, bytes_of(reply, (struct view){all.data, at}), number,
                                  marked(reply, text + at + 1), NULL);
}

static struct expression *nothing(struct reply *reply)
{
    return expression_list(reply->rules, EXPRESSION_SEQUENCE);
}

static struct expression *optional(struct reply *reply, struct expression *node)
{
    return expression_repeat(reply->rules, node, 0, 1);
}

/* ---- Text up to a mark ----------------------------------------------------------------------- */

#define MAX_MARK_BYTES 120
#define MAX_TURNS 2

/* What a text may come to: a mark, and what follows it. One that is denied stands in no text. */
struct turn {
    const char *mark;
    struct expression *rest; /* NULL: nothing */
    bool denied;
    struct buffer bytes; /* of the mark, as grammars see them */
    uint32_t behind;     /* the rule of rest, or UINT32_MAX */
};

/* The automaton of a text that is searched for marks of ASCII: a rule for each beginning of one of
 * them that the text ends with. */
struct walk {
    struct reply *reply;
    struct turn *turns[MAX_TURNS];
    size_t n_turns;
    uint32_t first[MAX_TURNS]; /* the rule of a mark's empty beginning; longer ones follow it */
    bool may_end;
};

/* The longest beginning of a mark that the first n bytes of turn's mark and c end with: its length,
 * and whose it is. A whole mark comes before all others. */
static size_t matched(const struct walk *walk, const struct turn *turn, size_t n, char c,
                      size_t *whose)
{
    char text[MAX_MARK_BYTES + 1];
    size_t best = 0;
    memcpy(text, turn->bytes.data, n);
    text[n] = c;
    for (size_t t = 0; t < walk->n_turns; t++) {
        const struct buffer *mark = &walk->turns[t]->bytes;
        size_t length = MIN(n + 1, mark->size);
        while (length > 0 && memcmp(mark->data, text + n + 1 - length, length) != 0)
            length--;
        if (length > best || (length > 0 && length == mark->size)) {
            best = length;
            *whose = t;
        }
        if (length > 0 && length == mark->size)
            break;
    }
    return best;
}

/* What may come behind the first n bytes of a turn's mark. no_brace: but neither white space nor
 * what a call begins with. */
static struct expression *walk_on(const struct walk *walk, const struct turn *turn, size_t n,
                                  bool no_brace)
{
    struct rules *rules = walk->reply->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    struct code_range taken[128], others[129];
    size_t n_taken = 0;
    for (unsigned char c = 0; c < 128; c++) {
        size_t whose = 0, length = matched(walk, turn, n, (char)c, &whose);
        bool skipped = no_brace && c != '\0' && strchr(" \t\r\n{", c) != NULL;
        if (length == 0 && !skipped)
            continue;
        taken[n_taken++] = (struct code_range){c, c};
        const struct turn *to = walk->turns[whose];
        bool whole = length == to->bytes.size;
        if (skipped || (whole && to->denied))
            continue;
        uint32_t next = whole ? to->behind : walk->first[whose] + (uint32_t)length;
        struct expression *step = expression_text(rules, (const char[]){(char)c, '\0'});
        if (next != UINT32_MAX)
            step = expression_sequence_of(rules, step, expression_rule(rules, next), NULL);
        expression_add(choice, step);
    }
    n_taken = ranges_normalise(taken, n_taken);
    size_t n_others = ranges_invert(taken, n_taken, others);
    expression_add(choice, expression_sequence_of(rules, expression_ranges(rules, others, n_others),
                                                  expression_rule(rules, walk->first[0]), NULL));
    if (walk->may_end)
        expression_add(choice, nothing(walk->reply));
    return choice;
}

/* The rules of a walk, and the text that it leads through. */
static struct expression *walk_text(struct walk *walk, bool no_brace)
{
    struct rules *rules = walk->reply->rules;
    for (size_t t = 0; t < walk->n_turns; t++) {
        struct turn *turn = walk->turns[t];
        walk->first[t] = rules->count;
        for (size_t k = 0; k < turn->bytes.size; k++)
            rules_add(rules, view_of("text"));
        turn->behind = turn->rest != NULL ? rules_add(rules, view_of("behind")) : UINT32_MAX;
        if (turn->behind != UINT32_MAX)
            rules->list[turn->behind].body = turn->rest;
    }
    for (size_t t = 0; t < walk->n_turns; t++)
        for (size_t k = 0; k < walk->turns[t]->bytes.size && !rules->failed; k++)
            rules->list[walk->first[t] + k].body = walk_on(walk, walk->turns[t], k, false);
    if (rules->failed)
        return NULL;
    return no_brace ? walk_on(walk, walk->turns[0], 0, true)
                    : expression_rule(rules, walk->first[0]);
}

static struct expression *any_text(struct reply *reply, bool no_brace)
{
    static const struct code_range any = {0, 0x10FFFF};
    static const struct code_range starts[] = {{0, '\t' - 1}, {'\v', '\v'},   {'\f', '\f'},
                                               {0x0E, 0x1F},  {'!', '{' - 1}, {'{' + 1, 0x10FFFF}};
    struct rules *rules = reply->rules;
    struct expression *rest =
        expression_repeat(rules, expression_ranges(rules, &any, 1), 0, GRAMMAR_NO_LIMIT);
    return no_brace ? expression_sequence_of(
                          rules, expression_ranges(rules, starts, ARRAY_COUNT(starts)), rest, NULL)
                    : rest;
}

static bool is_plain(const struct buffer *mark)
{
    for (size_t i = 0; i < mark->size; i++)
        if ((unsigned char)mark->data[i] >= 0x80)
            return false;
    return mark->size > 0 && mark->size <= MAX_MARK_BYTES && !mark->failed;
}

/* Any text without the marks, then one of them and what follows it; may_end: or none. A mark is
 * ASCII, or one control token, which is no character of a text. no_brace: the text begins with
 * neither a brace nor white space. */
static struct expression *text_up_to(struct reply *reply, struct turn *turns, size_t n,
                                     bool may_end, bool no_brace)
{
    struct rules *rules = reply->rules;
    struct walk walk = {.reply = reply, .may_end = may_end};
    struct expression *tokens = NULL;
    for (size_t i = 0; i < n; i++) {
        struct turn *turn = &turns[i];
        write_marks(reply, view_of(turn->mark), &turn->bytes);
        rules->failed |= turn->bytes.failed;
        if (is_plain(&turn->bytes))
            walk.turns[walk.n_turns++] = turn;
        else if (!turn->denied)
            tokens = expression_sequence_of(rules, marked(reply, turn->mark),
                                            turn->rest != NULL ? turn->rest : nothing(reply), NULL);
    }
    struct expression *text =
        walk.n_turns > 0 ? walk_text(&walk, no_brace) : any_text(reply, no_brace);
    for (size_t i = 0; i < n; i++)
        buffer_free(&turns[i].bytes);
    if (tokens == NULL)
        return text;
    return expression_sequence_of(rules, text, may_end ? optional(reply, tokens) : tokens, NULL);
}

/* A text and the mark that ends it. */
static struct expression *up_to(struct reply *reply, const char *mark)
{
    return text_up_to(reply, &(struct turn){.mark = mark}, 1, false, false);
}

/* ---- Before the text ------------------------------------------------------------------------- */

/* Reasoning, where the family writes some, and what leads to the text. */
static struct expression *before(struct reply *reply)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    if (syntax == NULL)
        return expression_list(rules, EXPRESSION_SEQUENCE);
    if (syntax->channels) {
        struct expression *analysis = expression_sequence_of(
            rules, marked(reply, "<|channel|>analysis<|message|>"), up_to(reply, "<|end|>"),
            marked(reply, "<|start|>assistant"), NULL);
        return expression_sequence_of(
            rules, optional(reply, analysis),
            marked(reply, reply->spec->tools != NULL ? "" : "<|channel|>final<|message|>"), NULL);
    }
    if (syntax->think == NULL)
        return expression_list(rules, EXPRESSION_SEQUENCE);
    struct expression *lines = expression_repeat(rules, expression_text(rules, "\n"), 0, 2);
    if (reply->spec->thinking)
        return expression_sequence_of(rules, up_to(reply, syntax->think_end), lines, NULL);
    struct expression *above = expression_repeat(rules, expression_text(rules, "\n"), 0, 2);
    return optional(reply, expression_sequence_of(rules, above, marked(reply, syntax->think),
                                                  up_to(reply, syntax->think_end), lines, NULL));
}

/* Reasoning, then a text in what may stand around it. */
static struct expression *framed(struct reply *reply, struct expression *text)
{
    struct rules *rules = reply->rules;
    const struct grammar_spec *spec = reply->spec;
    struct expression *begin = before(reply);
    if (spec->syntax == NULL || spec->syntax->text == NULL ||
        (spec->tools != NULL && !spec->may_call))
        return expression_sequence_of(rules, begin, text, NULL);
    return expression_sequence_of(rules, begin, optional(reply, marked(reply, spec->syntax->text)),
                                  text, optional(reply, marked(reply, spec->syntax->text_end)),
                                  NULL);
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
    return up_to(reply, line != NULL ? line + 1 : suffix);
}

static bool name_is_plain(const char *name)
{
    return name[0] != '\0' && strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                           "0123456789_-.") == strlen(name);
}

/* Whether parameters ask for an object and say nothing of it: then there is nothing to tell. */
static bool declares_nothing(const json_t *parameters)
{
    const json_t *type = json_object_get(parameters, "type");
    const char *key;
    json_t *member;
    if (type != NULL && !schema_names_type(type, "object"))
        return false;
    json_object_foreach((json_t *)parameters, key, member)
    {
        bool list = strcmp(key, "properties") == 0 || strcmp(key, "required") == 0;
        bool empty = json_object_size(member) + json_array_size(member) == 0;
        if (strcmp(key, "type") != 0 && !(list && empty) && !schema_describes(key))
            return false;
    }
    return true;
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
    if (!json_is_object(parameters) || declares_nothing(parameters))
        parameters = none;
    reply->schema->closed = strict;
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
        struct expression *between = syntax->separator != NULL
                                         ? marked(reply, syntax->separator)
                                         : optional(reply, expression_text(rules, "\n"));
        struct expression *more = expression_sequence_of(
            rules, between, marked(reply, syntax->prefix), expression_rule(rules, one->rule), NULL);
        all = expression_sequence_of(rules, all, expression_repeat(rules, more, 0, MAX_CALLS - 1),
                                     NULL);
    }
    return expression_sequence_of(rules, all, marked(reply, syntax->close), NULL);
}

/* What is not read as a call: it begins with no brace, and has neither a mark of calls nor one of
 * reasoning, behind which it could begin again. */
static struct expression *text_without_call(struct reply *reply)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    struct turn denied[MAX_TURNS];
    size_t n = 0;
    if (syntax->think != NULL)
        denied[n++] = (struct turn){.mark = syntax->think, .denied = true};
    if (syntax->other_mark != NULL)
        denied[n++] = (struct turn){.mark = syntax->other_mark, .denied = true};
    struct expression *space =
        expression_repeat(rules, expression_set(rules, " \t\r\n"), 0, GRAMMAR_NO_LIMIT);
    return expression_sequence_of(rules, space,
                                  optional(reply, text_up_to(reply, denied, n, true, true)), NULL);
}

/* A text, or calls, or one before the other, as the family has it. */
static struct expression *text_or_calls(struct reply *reply)
{
    struct rules *rules = reply->rules;
    const struct reply_syntax *syntax = reply->spec->syntax;
    if (syntax->channels) {
        struct expression *preamble = expression_sequence_of(
            rules, marked(reply, "<|channel|>commentary<|message|>"), up_to(reply, "<|end|>"),
            marked(reply, "<|start|>assistant"), NULL);
        struct expression *final = expression_sequence_of(
            rules, marked(reply, "<|channel|>final<|message|>"), any_text(reply, false), NULL);
        return expression_sequence_of(rules, optional(reply, preamble),
                                      expression_choice_of(rules, final, calls(reply, 0), NULL),
                                      NULL);
    }
    if (syntax->mark == NULL)
        return expression_choice_of(rules, calls(reply, 0), text_without_call(reply), NULL);
    struct turn call = {.mark = syntax->mark, .rest = calls(reply, strlen(syntax->mark))};
    return text_up_to(reply, &call, 1, true, false);
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
    struct expression *body = framed(reply, expression_rule(rules, 0));
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
        text = framed(&reply, text); /* which may move the list of rules */
    if (status == STATUS_OK && (rules->failed || text == NULL))
        status = error_set(error, STATUS_LIMIT, "the schema is too large");
    if (status == STATUS_OK)
        rules->list[0].body = text;
    schema_close(reply.schema);
    return status;
}
