/* Go templates, as Ollama's Modelfiles have them, as Jinja: their words have the same meanings, and
 * what differs is small. A template either asks for .Messages and is rendered once, or it writes
 * one turn (.System, .Prompt, .Response) and is rendered for each, the last time up to .Response.
 * All variables become members of a namespace, `go`, because Jinja forgets what a loop sets.
 *
 * What is not known here is refused: a template that is nearly right would be worse than none. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

/* With these, what is written stays within the limits that Jinja templates have. */
#define MAX_SOURCE_BYTES ((size_t)128 << 10)
#define MAX_DEPTH 88
#define BLOCK_DEPTH 1      /* what a block within another adds in Jinja */
#define EXPRESSION_DEPTH 4 /* and a function's operand: two pairs of parentheses, a list, its own */

#define MAX_VARIABLES 256

/* ---- Words ----------------------------------------------------------------------------------- */

enum word_kind {
    WORD_END,
    WORD_NAME,
    WORD_FIELD,
    WORD_VARIABLE,
    WORD_TEXT,
    WORD_NUMBER,
    WORD_SIGN
};

#define MAX_DIGITS 9 /* whole numbers are all that is known */

/* Of an action. FIELD: with its dots; VARIABLE: with $ and fields behind it; TEXT: without quotes
 * and escapes, in the arena. */
struct word {
    enum word_kind kind;
    struct view text;
};

enum node_kind { NODE_TEXT, NODE_OUTPUT, NODE_IF, NODE_FOR, NODE_SET };

struct node {
    enum node_kind kind;
    struct node *next;
    struct view text;           /* of TEXT; else Jinja: an expression, what a set assigns */
    struct node *then, *others; /* of IF and FOR */
    struct view item, index;    /* of FOR: names; index may be empty */
    bool response;              /* OUTPUT of .Response */
};

struct variable {
    struct view name;
    struct view jinja;
};

struct reader {
    struct arena *arena;
    struct view source;
    size_t at;   /* behind the last action */
    size_t line; /* of it, from 1 */
    struct view action;
    size_t action_at;
    struct word word; /* the one that comes next in the action */
    bool trims;       /* the text that follows loses its leading white space */
    struct variable variables[MAX_VARIABLES];
    size_t n_variables, n_names;
    const char *dot; /* what "." is: NULL at the top */
    unsigned depth;
    bool uses_messages, uses_turns, uses_response;
    struct error *error;
    bool failed;
};

static void fail(struct reader *r, const char *what, struct view at)
{
    if (!r->failed)
        error_set(r->error, STATUS_UNSUPPORTED,
                  "the Go template, line %zu: %s%s%.*s%s is not known here", r->line, what,
                  at.size == 0      ? ""
                  : what[0] == '\0' ? "'"
                                    : " '",
                  (int)MIN(at.size, (size_t)60), at.data, at.size > 0 ? "'" : "");
    r->failed = true;
    r->word = (struct word){0};
}

static void fail_memory(struct reader *r, size_t size_bytes)
{
    if (!r->failed)
        error_memory(r->error, size_bytes);
    r->failed = true;
    r->word = (struct word){0};
}

static void check_memory(struct reader *r, const struct buffer *buffer)
{
    if (buffer->failed)
        fail_memory(r, buffer->size);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= '0' && c <= '9');
}

/* Text in quotes, from the opening one on. */
static void read_quoted(struct reader *r)
{
    static const char escapes[][2] = {{'n', '\n'}, {'t', '\t'},  {'r', '\r'},
                                      {'"', '"'},  {'\\', '\\'}, {'\'', '\''}};
    struct view all = r->action;
    char quote = all.data[r->action_at++];
    char *out = arena_alloc(r->arena, all.size);
    size_t n = 0;
    while (out != NULL && r->action_at < all.size && all.data[r->action_at] != quote) {
        char c = all.data[r->action_at++];
        if (c == '\\' && quote == '"' && r->action_at < all.size) {
            char escaped = all.data[r->action_at++];
            size_t i = 0;
            while (i < ARRAY_COUNT(escapes) && escapes[i][0] != escaped)
                i++;
            if (i == ARRAY_COUNT(escapes)) {
                fail(r, "the escape", (struct view){all.data + r->action_at - 2, 2});
                return;
            }
            c = escapes[i][1];
        }
        out[n++] = c;
    }
    if (out == NULL || r->action_at >= all.size) {
        fail(r, "an open quote", (struct view){0});
        return;
    }
    r->action_at++;
    r->word = (struct word){WORD_TEXT, {out, n}};
}

static void next_word(struct reader *r)
{
    struct view all = r->action;
    while (r->action_at < all.size && is_space(all.data[r->action_at]))
        r->action_at++;
    r->word = (struct word){0};
    if (r->failed || r->action_at == all.size)
        return;
    size_t begin = r->action_at;
    char c = all.data[begin];
    if (c == '"' || c == '`') {
        read_quoted(r);
        return;
    }
    enum word_kind kind = WORD_SIGN;
    size_t end = begin + 1;
    bool negative = c == '-' && end < all.size && all.data[end] >= '0' && all.data[end] <= '9';
    if (is_letter(c) || c == '.' || c == '$' || negative) {
        kind = c == '.'                             ? WORD_FIELD
               : c == '$'                           ? WORD_VARIABLE
               : negative || (c >= '0' && c <= '9') ? WORD_NUMBER
                                                    : WORD_NAME;
        while (end < all.size && (is_letter(all.data[end]) || all.data[end] == '.'))
            end++;
    } else if (c == ':' && end < all.size && all.data[end] == '=') {
        end++;
    }
    r->action_at = end;
    r->word = (struct word){kind, {all.data + begin, end - begin}};
}

static bool word_is(const struct reader *r, const char *text)
{
    return (r->word.kind == WORD_NAME || r->word.kind == WORD_SIGN) &&
           view_equal(r->word.text, view_of(text));
}

static bool take(struct reader *r, const char *text)
{
    bool is = word_is(r, text);
    if (is)
        next_word(r);
    return is;
}

/* ---- Expressions ----------------------------------------------------------------------------- */

/* Appends to out as a Jinja string. */
static void put_string(struct view text, struct buffer *out)
{
    buffer_append_text(out, "\"");
    for (size_t i = 0; i < text.size; i++) {
        char c = text.data[i];
        if (c == '"' || c == '\\')
            buffer_append_text(out, "\\");
        if (c == '\n' || c == '\r') /* Jinja makes lines end with \n */
            buffer_append_text(out, c == '\n' ? "\\n" : "\\r");
        else
            buffer_append(out, &c, 1);
    }
    buffer_append_text(out, "\"");
}

/* What a template is given, and what it becomes. */
static const struct {
    const char *go, *jinja;
} givens[] = {{"Messages", "go.Messages"},
              {"System", "go.System"},
              {"Prompt", "go.Prompt"},
              {"Response", "go.Response"},
              {"First", "go.First"},
              {"Tools", "(tools if tools else [])"},
              {"Suffix", "\"\""},
              {"Think", "enable_thinking"},
              {"IsThinkSet", "(enable_thinking is defined)"},
              {"ThinkLevel", "(reasoning_effort if reasoning_effort else \"\")"}};

/* Members of messages, tools and calls. */
static const struct {
    const char *go, *jinja;
} members[] = {{"Role", "role"},
               {"Content", "content"},
               {"Thinking", "reasoning_content"},
               {"ToolCalls", "tool_calls"},
               {"ToolName", "name"},
               {"ToolCallID", "tool_call_id"},
               {"Images", "images"},
               {"Function", "function"},
               {"Name", "name"},
               {"Arguments", "arguments"},
               {"Description", "description"},
               {"Parameters", "parameters"},
               {"Properties", "properties"},
               {"Required", "required"},
               {"Type", "type"},
               {"Enum", "enum"},
               {"Items", "items"}};

/* .A.B behind what out has; at the top the first is one of the givens. */
static void put_fields(struct reader *r, struct view path, bool top, struct buffer *out)
{
    while (path.size > 0 && !r->failed) {
        size_t end = 1, i = 0;
        while (end < path.size && path.data[end] != '.')
            end++;
        struct view name = {path.data + 1, end - 1};
        if (top) {
            while (i < ARRAY_COUNT(givens) && !view_equal(name, view_of(givens[i].go)))
                i++;
            if (i < ARRAY_COUNT(givens))
                buffer_append_text(out, givens[i].jinja);
            r->uses_messages |= view_equal(name, view_of("Messages"));
            r->uses_response |= view_equal(name, view_of("Response"));
            r->uses_turns |= r->uses_response || view_equal(name, view_of("Prompt"));
        } else {
            while (i < ARRAY_COUNT(members) && !view_equal(name, view_of(members[i].go)))
                i++;
            if (i < ARRAY_COUNT(members))
                buffer_printf(out, "[\"%s\"]", members[i].jinja);
        }
        if (i == (top ? ARRAY_COUNT(givens) : ARRAY_COUNT(members)))
            fail(r, "", (struct view){path.data, end});
        top = false;
        path = (struct view){path.data + end, path.size - end};
    }
}

static void put_variable(struct reader *r, struct view text, struct buffer *out)
{
    const char *dot = memchr(text.data, '.', text.size);
    size_t size = dot != NULL ? (size_t)(dot - text.data) : text.size;
    struct view name = {text.data, size}, path = {text.data + size, text.size - size};
    if (size == 1) { /* $ */
        if (path.size == 0)
            fail(r, "", name);
        put_fields(r, path, true, out);
        return;
    }
    for (size_t i = r->n_variables; i-- > 0;)
        if (view_equal(r->variables[i].name, name)) {
            buffer_append(out, r->variables[i].jinja.data, r->variables[i].jinja.size);
            put_fields(r, path, false, out);
            return;
        }
    fail(r, "", name);
}

static void put_number(struct reader *r, struct view text, struct buffer *out)
{
    size_t sign = text.data[0] == '-', i = sign;
    while (i < text.size && text.data[i] >= '0' && text.data[i] <= '9')
        i++;
    bool octal = text.size > sign + 1 && text.data[sign] == '0';
    if (i < text.size || i - sign > MAX_DIGITS || octal)
        fail(r, "the number", text);
    buffer_append(out, text.data, text.size);
}

static void pipeline(struct reader *r, struct buffer *out);

static void operand(struct reader *r, struct buffer *out)
{
    struct word word = r->word;
    if (take(r, "(")) {
        buffer_append_text(out, "(");
        pipeline(r, out);
        buffer_append_text(out, ")");
        bool fields = r->action_at < r->action.size && r->action.data[r->action_at] == '.';
        if (!take(r, ")"))
            fail(r, "a missing ) before", r->word.text);
        if (fields && !r->failed) { /* of the value in parentheses: no space is between */
            put_fields(r, r->word.text, false, out);
            next_word(r);
        }
        return;
    }
    next_word(r);
    if (word.kind == WORD_FIELD && r->dot == NULL && word.text.size == 1) {
        fail(r, "", word.text);
    } else if (word.kind == WORD_FIELD) {
        if (r->dot != NULL)
            buffer_append_text(out, r->dot);
        if (word.text.size > 1)
            put_fields(r, word.text, r->dot == NULL, out);
    } else if (word.kind == WORD_VARIABLE) {
        put_variable(r, word.text, out);
    } else if (word.kind == WORD_TEXT) {
        put_string(word.text, out);
    } else if (word.kind == WORD_NUMBER) {
        put_number(r, word.text, out);
    } else if (view_equal(word.text, view_of("true")) || view_equal(word.text, view_of("false"))) {
        buffer_append(out, word.text.data, word.text.size);
    } else if (view_equal(word.text, view_of("nil"))) {
        buffer_append_text(out, "none");
    } else {
        fail(r, "", word.text);
    }
}

static bool begins_operand(const struct reader *r)
{
    return !r->failed &&
           (r->word.kind == WORD_FIELD || r->word.kind == WORD_VARIABLE ||
            r->word.kind == WORD_TEXT || r->word.kind == WORD_NUMBER || word_is(r, "(") ||
            word_is(r, "true") || word_is(r, "false") || word_is(r, "nil"));
}

/* Operands one after the other, each in a buffer. */
static size_t operands(struct reader *r, struct buffer *list, size_t limit)
{
    size_t n = 0;
    while (begins_operand(r) && n < limit)
        operand(r, &list[n++]);
    if (begins_operand(r))
        fail(r, "so many operands as end with", r->word.text);
    return n;
}

static const char *text_of(const struct buffer *buffer)
{
    return buffer->size > 0 ? buffer->data : "";
}

/* A function of Go's, with what it is given. */
static void put_call(struct reader *r, struct view name, const struct buffer *list, size_t n,
                     struct buffer *out)
{
    static const char *const compare[][2] = {
        {"ne", "!="}, {"lt", "<"}, {"le", "<="}, {"gt", ">"}, {"ge", ">="}};
    const char *a = n > 0 ? text_of(&list[0]) : "", *b = n > 1 ? text_of(&list[1]) : "";
    bool all = view_equal(name, view_of("and")), any = view_equal(name, view_of("or"));
    buffer_append_text(out, "(");
    if ((all || any) && n > 0) {
        for (size_t i = 0; i < n; i++)
            buffer_printf(out, "%s(%s)", i == 0 ? "" : all ? " and " : " or ", text_of(&list[i]));
    } else if (view_equal(name, view_of("eq")) && n > 1) {
        buffer_printf(out, "(%s) in [", a);
        for (size_t i = 1; i < n; i++)
            buffer_printf(out, "%s(%s)", i > 1 ? ", " : "", text_of(&list[i]));
        buffer_append_text(out, "]");
    } else if (view_equal(name, view_of("not")) && n == 1) {
        buffer_printf(out, "not (%s)", a);
    } else if (view_equal(name, view_of("len")) && n == 1) {
        buffer_printf(out, "(%s)|length", a);
    } else if (view_equal(name, view_of("slice")) && (n == 2 || n == 3)) {
        buffer_printf(out, "(%s)[%s:%s]", a, b, n > 2 ? text_of(&list[2]) : "");
    } else if (view_equal(name, view_of("index")) && n == 2) {
        buffer_printf(out, "(%s)[%s]", a, b);
    } else if (view_equal(name, view_of("json")) && n == 1) {
        buffer_printf(out, "(%s)|tojson(separators=(\",\",\":\"))", a);
    } else if (view_equal(name, view_of("currentDate")) && n == 0) {
        buffer_append_text(out, "strftime_now(\"%Y-%m-%d\")");
    } else {
        size_t i = 0;
        while (i < ARRAY_COUNT(compare) && !view_equal(name, view_of(compare[i][0])))
            i++;
        if (i == ARRAY_COUNT(compare) || n != 2)
            fail(r, "the function", name);
        else
            buffer_printf(out, "(%s) %s (%s)", a, compare[i][1], b);
    }
    buffer_append_text(out, ")");
}

/* A value, or a function with its operands; what came before a | is its last operand. */
static void command(struct reader *r, const struct buffer *before, struct buffer *out)
{
    struct buffer list[8] = {{0}};
    size_t n = 0;
    if (begins_operand(r)) {
        if (before != NULL)
            fail(r, "a value behind |:", r->word.text);
        operand(r, out);
        if (begins_operand(r))
            fail(r, "", r->word.text);
        return;
    }
    struct word name = r->word;
    if (name.kind != WORD_NAME) {
        fail(r, "", name.text);
        return;
    }
    next_word(r);
    n = operands(r, list, ARRAY_COUNT(list) - 1);
    if (before != NULL)
        buffer_append(&list[n++], before->data, before->size);
    if (!r->failed)
        put_call(r, name.text, list, n, out);
    for (size_t i = 0; i < ARRAY_COUNT(list); i++) {
        check_memory(r, &list[i]);
        buffer_free(&list[i]);
    }
}

static void enter(struct reader *r, unsigned depth)
{
    r->depth += depth;
    if (r->depth > MAX_DEPTH)
        fail(r, "so deep nesting", (struct view){0});
}

static void pipeline(struct reader *r, struct buffer *out)
{
    struct buffer value = {0};
    unsigned depth = r->depth;
    enter(r, EXPRESSION_DEPTH);
    if (!r->failed)
        command(r, NULL, &value);
    while (!r->failed && take(r, "|")) { /* what came before is within what follows */
        struct buffer next = {0};
        enter(r, EXPRESSION_DEPTH);
        if (!r->failed)
            command(r, &value, &next);
        buffer_free(&value);
        value = next;
    }
    r->depth = depth;
    buffer_append(out, value.size > 0 ? value.data : "", value.size);
    check_memory(r, &value);
    buffer_free(&value);
}

static struct view keep(struct reader *r, struct buffer *text)
{
    struct view kept = {arena_copy(r->arena, text_of(text), text->size), text->size};
    if (kept.data == NULL)
        fail_memory(r, text->size);
    check_memory(r, text);
    buffer_free(text);
    return kept;
}

/* ---- Actions --------------------------------------------------------------------------------- */

/* A name in Jinja for a variable; each declaration has its own. */
static struct view declare(struct reader *r, struct view name, const char *prefix)
{
    struct buffer jinja = {0};
    buffer_printf(&jinja, "%s%zu", prefix, ++r->n_names);
    struct view kept = keep(r, &jinja);
    if (r->n_variables == MAX_VARIABLES)
        fail(r, "so many variables as with", name);
    else
        r->variables[r->n_variables++] = (struct variable){name, kept};
    return kept;
}

static struct node *new_node(struct reader *r, enum node_kind kind)
{
    struct node *node = arena_alloc(r->arena, sizeof *node);
    if (node == NULL) {
        fail_memory(r, sizeof *node);
        return NULL;
    }
    *node = (struct node){.kind = kind};
    return node;
}

static struct view expression(struct reader *r)
{
    struct buffer out = {0};
    pipeline(r, &out);
    if (!r->failed && r->word.kind != WORD_END)
        fail(r, "", r->word.text);
    return keep(r, &out);
}

enum stop { STOP_NONE, STOP_END, STOP_ELSE };

static struct node *read_list(struct reader *r, enum stop *stop);

/* What names mean at a place. */
struct scope {
    size_t n_variables;
    const char *dot;
};

static struct scope scope_of(const struct reader *r)
{
    return (struct scope){r->n_variables, r->dot};
}

static void leave(struct reader *r, struct scope outer)
{
    r->n_variables = outer.n_variables;
    r->dot = outer.dot;
}

/* What stands between a head and its end; what the head declares holds up to an else. */
static void read_branches(struct reader *r, struct node *node, struct scope outer)
{
    enum stop stop;
    node->then = read_list(r, &stop);
    leave(r, outer);
    if (stop == STOP_ELSE && word_is(r, "if") && node->kind == NODE_IF) {
        next_word(r);
        node->others = new_node(r, NODE_IF);
        if (node->others == NULL)
            return;
        node->others->text = expression(r);
        enter(r, BLOCK_DEPTH);
        read_branches(r, node->others, outer); /* one end for all */
        r->depth -= BLOCK_DEPTH;
        return;
    }
    if (stop == STOP_ELSE) {
        if (r->word.kind != WORD_END)
            fail(r, "else", r->word.text);
        node->others = read_list(r, &stop);
        leave(r, outer);
    }
    if (stop != STOP_END)
        fail(r, "a missing end", (struct view){0});
}

/* Back to where a word was, which began something else. */
static void go_back(struct reader *r, struct word word, size_t action_at)
{
    r->word = word;
    r->action_at = action_at;
}

/* range P, range $e := P, range $i, $e := P. */
static void read_range(struct reader *r, struct node *node)
{
    struct view names[2] = {{"", 0}, {"", 0}};
    size_t n = 0, begin = r->action_at;
    struct word first = r->word;
    struct scope outer = scope_of(r);
    while (n < 2 && r->word.kind == WORD_VARIABLE) {
        names[n++] = r->word.text;
        next_word(r);
        if (!take(r, ","))
            break;
    }
    if (!take(r, ":=")) { /* the variable was the list */
        n = 0;
        go_back(r, first, begin);
    }
    node->text = expression(r);
    node->item = declare(r, n > 0 ? names[n - 1] : (struct view){"", 0}, "it");
    if (n == 2)
        node->index = declare(r, names[0], "go.v"); /* an inner loop has a loop of its own */
    r->dot = node->item.data;
    read_branches(r, node, outer);
}

/* $x := P, $x = P. */
static bool read_assignment(struct reader *r, struct node *node)
{
    struct word first = r->word;
    size_t begin = r->action_at;
    struct view name = first.text, to = {0};
    struct buffer set = {0}, value = {0};
    if (r->word.kind != WORD_VARIABLE)
        return false;
    next_word(r);
    bool declares = take(r, ":=");
    if (!declares && !take(r, "=")) {
        go_back(r, first, begin);
        return false;
    }
    pipeline(r, &value);
    if (declares) {
        to = declare(r, name, "go.v");
    } else {
        struct buffer known = {0};
        put_variable(r, name, &known);
        to = keep(r, &known);
        if (!r->failed && (to.size < 3 || memcmp(to.data, "go.", 3) != 0))
            fail(r, "an assignment to", name);
    }
    buffer_printf(&set, "%.*s = %s", (int)to.size, to.data, text_of(&value));
    buffer_free(&value);
    node->kind = NODE_SET;
    node->text = keep(r, &set);
    return true;
}

static void read_action(struct reader *r, struct node *node)
{
    if (take(r, "if")) {
        node->kind = NODE_IF;
        node->text = expression(r);
        read_branches(r, node, scope_of(r));
    } else if (take(r, "range")) {
        node->kind = NODE_FOR;
        read_range(r, node);
    } else if (!read_assignment(r, node)) {
        node->kind = NODE_OUTPUT;
        node->response = r->dot == NULL && view_equal(r->word.text, view_of(".Response"));
        node->response |= view_equal(r->word.text, view_of("$.Response"));
        node->text = expression(r);
    }
}

/* ---- Text ------------------------------------------------------------------------------------ */

static struct view trimmed(struct view text, bool front, bool back)
{
    while (front && text.size > 0 && is_space(text.data[0]))
        text = (struct view){text.data + 1, text.size - 1};
    while (back && text.size > 0 && is_space(text.data[text.size - 1]))
        text.size--;
    return text;
}

/* The end of an action that begins at `at`: its closing braces, but not those in quotes. */
static size_t find_close(struct view source, size_t at)
{
    for (char quote = '\0'; at + 1 < source.size; at++) {
        char c = source.data[at];
        if (quote == '\0' && c == '}' && source.data[at + 1] == '}')
            return at;
        if (quote == '"' && c == '\\')
            at++;
        else if (quote == '\0' && (c == '"' || c == '`'))
            quote = c;
        else if (c == quote)
            quote = '\0';
    }
    return source.size;
}

/* The next text, up to an action, whose words can be read then. False at the end of the source. */
static bool next_part(struct reader *r, struct view *text)
{
    struct view all = r->source;
    size_t open = view_find(all, r->at, view_of("{{")), begin = open + 2;
    *text = (struct view){all.data + r->at, open - r->at};
    for (size_t i = 0; i < text->size; i++)
        r->line += text->data[i] == '\n';
    bool trims = r->trims;
    r->trims = false;
    if (open == all.size) {
        *text = trimmed(*text, trims, false);
        r->at = all.size;
        return false;
    }
    bool front = begin + 1 < all.size && all.data[begin] == '-' && is_space(all.data[begin + 1]);
    *text = trimmed(*text, trims, front);
    begin += front;
    bool comment = false;
    size_t inner = begin;
    while (inner < all.size && is_space(all.data[inner]))
        inner++;
    comment = inner + 1 < all.size && all.data[inner] == '/' && all.data[inner + 1] == '*';
    size_t close = comment ? view_find(all, inner, view_of("*/")) : begin;
    close = comment ? view_find(all, close, view_of("}}")) : find_close(all, begin);
    if (close == all.size) {
        fail(r, "an action without end", (struct view){0});
        return false;
    }
    r->trims = close > begin + 1 && all.data[close - 1] == '-' && is_space(all.data[close - 2]);
    r->action = (struct view){all.data + begin, close - r->trims - begin};
    r->action_at = comment ? r->action.size : 0;
    for (size_t i = 0; i < r->action.size; i++)
        r->line += r->action.data[i] == '\n';
    r->at = close + 2;
    next_word(r);
    return true;
}

static struct node *read_list(struct reader *r, enum stop *stop)
{
    struct node *first = NULL, **last = &first;
    *stop = STOP_NONE;
    enter(r, BLOCK_DEPTH);
    for (bool more = true; more && !r->failed;) {
        struct view text;
        more = next_part(r, &text);
        if (text.size > 0) {
            if ((*last = new_node(r, NODE_TEXT)) == NULL)
                break;
            (*last)->text = text;
            last = &(*last)->next;
        }
        if (!more || r->failed || r->word.kind == WORD_END) /* of a comment */
            continue;
        if (take(r, "end"))
            *stop = STOP_END;
        else if (take(r, "else"))
            *stop = STOP_ELSE;
        if (*stop != STOP_NONE)
            break;
        struct node *node = new_node(r, NODE_OUTPUT);
        if (node == NULL)
            break;
        read_action(r, node);
        *last = node;
        last = &node->next;
    }
    r->depth -= BLOCK_DEPTH;
    return first;
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* Of a loop over a list, or over the values of a map, whose indices are its keys. */
static void write_head(const struct node *node, struct buffer *out)
{
    int size = (int)node->item.size;
    const char *item = node->item.data;
    buffer_printf(out, "{%%- set go.of_%.*s = (%.*s) or [] -%%}", size, item, (int)node->text.size,
                  node->text.data);
    buffer_printf(out, "{%%- for key_%.*s in go.of_%.*s -%%}", size, item, size, item);
    buffer_printf(out,
                  "{%%- set %.*s = go.of_%.*s[key_%.*s] if go.of_%.*s is mapping else key_%.*s "
                  "-%%}",
                  size, item, size, item, size, item, size, item, size, item);
    if (node->index.size > 0)
        buffer_printf(out,
                      "{%%- set %.*s = key_%.*s if go.of_%.*s is mapping else loop.index0 -%%}",
                      (int)node->index.size, node->index.data, size, item, size, item);
}

/* cut unless NULL: what stands from .Response on is left out, and *cut set. */
static void write_list(const struct node *node, bool *cut, struct buffer *out)
{
    for (; node != NULL && (cut == NULL || !*cut); node = node->next) {
        int size = (int)node->text.size;
        switch (node->kind) {
        case NODE_TEXT:
            buffer_append_text(out, "{{- ");
            put_string(node->text, out);
            buffer_append_text(out, " -}}");
            break;
        case NODE_OUTPUT:
            if (cut != NULL && node->response)
                *cut = true;
            else
                buffer_printf(out, "{{- show(%.*s) -}}", size, node->text.data);
            break;
        case NODE_SET:
            buffer_printf(out, "{%%- set %.*s -%%}", size, node->text.data);
            break;
        case NODE_IF:
        case NODE_FOR:
            if (node->kind == NODE_IF)
                buffer_printf(out, "{%%- if %.*s -%%}", size, node->text.data);
            else
                write_head(node, out);
            write_list(node->then, cut, out);
            if (node->others != NULL) {
                buffer_append_text(out, "{%- else -%}");
                write_list(node->others, cut, out);
            }
            buffer_append_text(out, node->kind == NODE_IF ? "{%- endif -%}" : "{%- endfor -%}");
            break;
        }
    }
}

static const char prologue[] =
    "{%- macro show(x) -%}{%- if x is undefined or x is none -%}{%- elif x is string -%}{{- x -}}"
    "{%- else -%}{{- x|tojson(separators=(\",\",\":\")) -}}{%- endif -%}{%- endmacro -%}\n"
    "{%- set go = namespace(System=\"\", Prompt=\"\", Response=\"\", First=true) -%}\n";

/* Messages of one role that follow each other are one, as Ollama has it; but results of tools stay
 * apart, and so do calls of tools, which would be lost. */
static const char collated[] =
    "{%- set go.Messages = [] -%}{%- set go.last = none -%}\n"
    "{%- for m in messages -%}\n"
    "{%- if go.last is not none and go.last[\"role\"] == m[\"role\"] and m[\"role\"] != \"tool\" "
    "and not m[\"tool_calls\"] -%}\n"
    "{%- if m[\"content\"] -%}\n"
    "{%- set go.last = dict(go.Messages.pop(), content=(go.last[\"content\"] or \"\") ~ \"\\n\\n\" "
    "~ m[\"content\"]) -%}{%- set none_ = go.Messages.append(go.last) -%}{%- endif -%}\n"
    "{%- else -%}{%- set go.last = m -%}{%- set none_ = go.Messages.append(m) -%}{%- endif -%}\n"
    "{%- endfor -%}\n";

/* What each message adds to a turn, and when a turn is over. */
static const char turns[] =
    "{%- for m in go.Messages -%}\n"
    "{%- set role = m[\"role\"] -%}\n"
    "{%- if (role == \"system\" and (go.Prompt or go.Response)) or (role == \"user\" and "
    "go.Response) -%}\n"
    "{{- turn() -}}{%- set go.System = \"\" -%}{%- set go.Prompt = \"\" -%}"
    "{%- set go.Response = \"\" -%}{%- set go.First = false -%}{%- endif -%}\n"
    "{%- if role == \"system\" -%}{%- set go.System = m[\"content\"] -%}\n"
    "{%- elif role == \"user\" -%}\n"
    "{%- set go.Prompt = (go.Prompt ~ \"\\n\\n\" if go.Prompt else \"\") ~ m[\"content\"] -%}\n"
    "{%- elif role == \"assistant\" -%}\n"
    "{%- set go.Response = (go.Response ~ \"\\n\\n\" if go.Response else \"\") ~ (m[\"content\"] "
    "or "
    "\"\") -%}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if go.Response -%}{{- turn() -}}{%- set go.System = \"\" -%}{%- set go.Prompt = \"\" -%}"
    "{%- set go.Response = \"\" -%}{%- set go.First = false -%}{%- endif -%}\n";

static const char systems[] =
    "{%- for m in messages if m[\"role\"] == \"system\" -%}"
    "{%- set go.System = (go.System ~ \"\\n\\n\" if go.System else \"\") ~ m[\"content\"] -%}"
    "{%- endfor -%}\n";

static void write_all(const struct reader *r, const struct node *list, struct buffer *out)
{
    bool cut = false;
    buffer_append_text(out, prologue);
    buffer_append_text(out, collated);
    if (r->uses_messages) {
        buffer_append_text(out, systems);
        write_list(list, NULL, out);
        return;
    }
    buffer_append_text(out, "{%- macro turn() -%}");
    write_list(list, NULL, out);
    if (!r->uses_response) /* it comes last where a turn has no place for it */
        buffer_append_text(out, "{{- show(go.Response) -}}");
    buffer_append_text(out, "{%- endmacro -%}\n");
    buffer_append_text(out, turns);
    write_list(list, &cut, out);
}

enum status chat_template_from_go(struct view source, struct buffer *out, struct error *error)
{
    enum stop stop;
    if (memchr(source.data, '\0', source.size) != NULL)
        return error_set(error, STATUS_UNSUPPORTED, "the Go template has a zero byte");
    if (source.size > MAX_SOURCE_BYTES)
        return error_set(error, STATUS_LIMIT, "the Go template has more than %zu bytes",
                         MAX_SOURCE_BYTES);
    struct reader *r = calloc(1, sizeof *r);
    struct arena *arena = arena_open(0);
    if (r == NULL || arena == NULL) {
        free(r);
        arena_close(arena);
        return error_memory(error, sizeof *r);
    }
    *r = (struct reader){.arena = arena, .source = source, .line = 1, .error = error};
    struct node *list = read_list(r, &stop);
    if (!r->failed && stop != STOP_NONE)
        fail(r, "an end or else too many", (struct view){0});
    if (!r->failed && !r->uses_messages && !r->uses_turns)
        fail(r, "a template without .Messages or .Prompt", (struct view){0});
    if (!r->failed)
        write_all(r, list, out);
    enum status status = STATUS_OK;
    if (r->failed)
        status = error->code;
    else if (out->failed)
        status = error_memory(error, out->size);
    arena_close(arena);
    free(r);
    return status;
}
