/* The syntax tree of a template: its statements, and what all of its parsing uses. */
#include "text/template_parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct node *parse_body(struct parser *parser, const char *const *ends);

/* ---- Tokens ---------------------------------------------------------------------------------- */

const struct token *parse_current(const struct parser *parser)
{
    return &parser->tokens[parser->position];
}

/* Fails once; from then on the current token is the last one, which ends every loop. */
struct node *parse_fail(struct parser *parser, const char *format, ...)
{
    if (parser->status != STATUS_OK)
        return NULL;
    char text[200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    parser->status = error_set(parser->error, STATUS_INVALID, "template line %u: %s",
                               parse_current(parser)->line, text);
    while (parser->tokens[parser->position].kind != LEX_END)
        parser->position++;
    return NULL;
}

void parse_fail_memory(struct parser *parser)
{
    if (parser->status != STATUS_OK)
        return;
    parse_fail(parser, "out of memory");
    parser->status = STATUS_MEMORY;
}

const char *token_text(const struct token *token, char out[48])
{
    switch (token->kind) {
    case LEX_END:
        return "the end of the template";
    case LEX_PRINT_END:
        return "}}";
    case LEX_BLOCK_END:
        return "%}";
    case LEX_NAME:
        snprintf(out, 48, "%.*s", (int)MIN(token->text.size, 40), token->text.data);
        return out;
    case LEX_OPERATOR:
        snprintf(out, 48, "%c%c", (char)(token->op & 0xFF), (char)(token->op >> 8));
        return out;
    case LEX_STRING:
        return "a text";
    default:
        return "a number";
    }
}

void parse_next(struct parser *parser)
{
    if (parse_current(parser)->kind != LEX_END)
        parser->position++;
}

bool token_is_name(const struct token *token, const char *name)
{
    return token->kind == LEX_NAME && view_equal(token->text, view_of(name));
}

bool token_is_operator(const struct token *token, unsigned op)
{
    return token->kind == LEX_OPERATOR && token->op == op;
}

bool parse_at_name(const struct parser *parser, const char *name)
{
    return token_is_name(parse_current(parser), name);
}

bool parse_at(const struct parser *parser, char c)
{
    return token_is_operator(parse_current(parser), OPERATOR(c, 0));
}

bool parse_skip_name(struct parser *parser, const char *name)
{
    bool found = parse_at_name(parser, name);
    if (found)
        parse_next(parser);
    return found;
}

bool parse_skip(struct parser *parser, char c)
{
    bool found = parse_at(parser, c);
    if (found)
        parse_next(parser);
    return found;
}

void parse_expect(struct parser *parser, char c)
{
    char text[48];
    if (!parse_skip(parser, c))
        parse_fail(parser, "expected '%c', found '%s'", c, token_text(parse_current(parser), text));
}

static void parse_expect_kind(struct parser *parser, enum token_kind kind, const char *what)
{
    char text[48];
    if (parse_current(parser)->kind == kind)
        parse_next(parser);
    else
        parse_fail(parser, "expected %s, found '%s'", what,
                   token_text(parse_current(parser), text));
}

struct view parse_name(struct parser *parser)
{
    struct view name = {"", 0};
    if (parse_current(parser)->kind == LEX_NAME)
        name = parse_current(parser)->text;
    parse_expect_kind(parser, LEX_NAME, "a name");
    return name;
}

/* ---- Nodes ----------------------------------------------------------------------------------- */

/* Never NULL to those who build on it: without memory, a shared node of no meaning. */
struct node *parse_node(struct parser *parser, enum node_kind kind)
{
    struct node *node = arena_alloc(parser->chat_template->arena, sizeof *node);
    if (node == NULL) {
        parse_fail_memory(parser);
        return &parser->none;
    }
    node->kind = kind;
    node->line = parse_current(parser)->line;
    return node;
}

struct node *parse_constant(struct parser *parser, struct value value)
{
    struct node *node = parse_node(parser, NODE_CONSTANT);
    if (parser->status == STATUS_OK)
        node->value = value;
    return node;
}

struct value parse_text(struct parser *parser, const char *data, size_t size)
{
    struct string *string = string_borrow(parser->chat_template->arena, data, size);
    if (string == NULL)
        parse_fail_memory(parser);
    return string != NULL ? (struct value){.kind = KIND_STRING, .string = string}
                          : value_undefined(NULL);
}

struct value parse_view(struct parser *parser, struct view view)
{
    return parse_text(parser, view.data, view.size);
}

unsigned parse_symbol(struct parser *parser, struct view name)
{
    struct chat_template *chat_template = parser->chat_template;
    for (size_t i = 0; i < chat_template->n_symbols; i++)
        if (view_equal(name, (struct view){chat_template->symbols[i]->data,
                                           chat_template->symbols[i]->size}))
            return (unsigned)i;
    struct value text = parse_view(parser, name);
    if (chat_template->n_symbols == parser->symbol_capacity) {
        size_t capacity = MAX(2 * parser->symbol_capacity, 32);
        struct string **grown = arena_array(chat_template->arena, capacity, sizeof *grown);
        if (grown == NULL || capacity > 4096) {
            parse_fail(parser, "the template has too many names");
            return 0;
        }
        if (chat_template->n_symbols > 0)
            memcpy(grown, chat_template->symbols, chat_template->n_symbols * sizeof *grown);
        chat_template->symbols = grown;
        parser->symbol_capacity = capacity;
    }
    if (text.kind != KIND_STRING)
        return 0;
    chat_template->symbols[chat_template->n_symbols] = text.string;
    return (unsigned)chat_template->n_symbols++;
}

void node_append(struct node_list *list, struct node *node)
{
    if (list->first == NULL)
        list->end = &list->first;
    if (node == NULL)
        return;
    *list->end = node;
    list->end = &node->next;
}

bool parse_enter(struct parser *parser)
{
    if (++parser->depth > TEMPLATE_NESTING_LIMIT)
        parse_fail(parser, "more than %d levels are nested", TEMPLATE_NESTING_LIMIT);
    return parser->status == STATUS_OK;
}

/* ---- Targets of assignments ------------------------------------------------------------------ */

static bool parse_check_target(struct parser *parser, const struct node *target)
{
    if (target == NULL || parser->status != STATUS_OK)
        return false;
    if (target->kind == NODE_NAME) {
        if (target->symbol == SYMBOL_LOOP && parser->loops > 0)
            parse_fail(parser, "'loop' cannot be assigned inside a loop");
        return true;
    }
    if (target->kind != NODE_TUPLE) {
        parse_fail(parser, "only names can be assigned");
        return false;
    }
    for (const struct node *node = target->first; node != NULL; node = node->next)
        if (!parse_check_target(parser, node))
            return false;
    return true;
}

/* A name, or names with commas between; ends before "in" where a loop begins. */
static struct node *parse_target(struct parser *parser)
{
    struct node_list names = {0};
    struct node *tuple = parse_node(parser, NODE_TUPLE);
    bool is_tuple = false;
    while (parser->status == STATUS_OK && !parse_at_name(parser, "in") &&
           !parse_at_tuple_end(parser) && !parse_at(parser, '=')) {
        node_append(&names, parse_primary(parser));
        if (!parse_skip(parser, ','))
            break;
        is_tuple = true;
    }
    if (names.first == NULL)
        return parse_fail(parser, "expected a name to assign");
    tuple->first = names.first;
    struct node *target = is_tuple ? tuple : names.first;
    parse_check_target(parser, target);
    return target;
}

static struct node *parse_set_target(struct parser *parser)
{
    const struct token *token = parse_current(parser);
    if (token->kind != LEX_NAME || !token_is_operator(token + 1, OPERATOR('.', 0)))
        return parse_target(parser);
    struct node *node = parse_node(parser, NODE_NAMESPACE_MEMBER);
    node->symbol = parse_symbol(parser, parse_name(parser));
    parse_next(parser);
    node->value = parse_view(parser, parse_name(parser));
    return node;
}

/* ---- Statements ------------------------------------------------------------------------------ */

/* What stands in bodies that run on their own: break does not reach out of them, and unknown
 * filters in them are found at once. */
struct parse_frame {
    unsigned loops;
    bool soft;
};

static struct parse_frame parse_open_frame(struct parser *parser, unsigned loops)
{
    struct parse_frame frame = {parser->loops, parser->soft};
    parser->loops = loops;
    parser->soft = false;
    return frame;
}

static void parse_close_frame(struct parser *parser, struct parse_frame frame)
{
    parser->loops = frame.loops;
    parser->soft = frame.soft;
}

static struct node *parse_framed_body(struct parser *parser, const char *end, unsigned loops)
{
    struct parse_frame frame = parse_open_frame(parser, loops);
    struct node *body = parse_body(parser, (const char *const[]){end, NULL});
    parse_close_frame(parser, frame);
    parse_next(parser);
    return body;
}

static struct node *parse_for(struct parser *parser)
{
    static const char *const body_ends[] = {"endfor", "else", NULL};
    struct node *node = parse_node(parser, NODE_FOR);
    struct parse_frame frame = parse_open_frame(parser, parser->loops + 1);
    node->a = parse_target(parser);
    parse_close_frame(parser, frame);
    if (!parse_skip_name(parser, "in"))
        return parse_fail(parser, "expected 'in' after the names of a loop");
    node->b = parse_tuple(parser, false, false);
    if (parse_skip_name(parser, "if"))
        node->c = parse_expression(parser);
    node->recursive = parse_skip_name(parser, "recursive");
    frame = parse_open_frame(parser, parser->loops + 1);
    node->body = parse_body(parser, body_ends);
    parse_close_frame(parser, frame);
    if (parse_skip_name(parser, "else"))
        node->otherwise = parse_framed_body(parser, "endfor", parser->loops);
    else
        parse_next(parser);
    return node;
}

/* After "if" or "elif". The chain of elifs is parsed and later walked without recursion. */
static struct node *parse_if(struct parser *parser)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct node *first = NULL, *last = NULL;
    bool soft = parser->soft;
    parser->soft = true;
    do {
        struct node *node = parse_node(parser, NODE_IF);
        node->a = parse_tuple(parser, false, false);
        node->body = parse_body(parser, ends);
        if (last != NULL) {
            last->otherwise = node;
            last->has_elif = true;
        } else {
            first = node;
        }
        last = node;
    } while (parser->status == STATUS_OK && parse_skip_name(parser, "elif"));
    if (parse_skip_name(parser, "else"))
        last->otherwise = parse_body(parser, (const char *const[]){"endif", NULL});
    parser->soft = soft;
    parse_next(parser);
    return first;
}

static struct node *parse_set(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_SET);
    node->a = parse_set_target(parser);
    if (parse_skip(parser, '=')) {
        node->b = parse_tuple(parser, true, false);
        return node;
    }
    node->kind = NODE_SET_BLOCK;
    if (parse_at(parser, '|'))
        node->b = parse_filters(parser, NULL, false);
    node->body = parse_framed_body(parser, "endset", parser->loops);
    return node;
}

/* The parameters of a macro or of a call block's body. */
static struct node *parse_parameters(struct parser *parser)
{
    struct node_list parameters = {0};
    bool defaults = false;
    parse_expect(parser, '(');
    while (parser->status == STATUS_OK && !parse_at(parser, ')')) {
        if (parameters.first != NULL)
            parse_expect(parser, ',');
        struct node *parameter = parse_node(parser, NODE_PARAMETER);
        struct view name = parse_name(parser);
        parameter->symbol = parse_symbol(parser, name);
        parameter->value = parse_view(parser, name);
        if (parse_skip(parser, '=')) {
            parameter->a = parse_expression(parser);
            defaults = true;
        } else if (defaults) {
            parse_fail(parser, "a parameter without a default stands after one with a default");
        }
        node_append(&parameters, parameter);
    }
    parse_expect(parser, ')');
    return parameters.first;
}

/* A name that is a parameter is not the special variable of that name. */
static void parse_macro_body(struct parser *parser, struct node *node, const char *end)
{
    struct node *outer = parser->macro;
    parser->macro = node;
    node->body = parse_framed_body(parser, end, 0);
    parser->macro = outer;
    if (outer != NULL) {
        outer->uses_caller |= node->uses_caller;
        outer->uses_varargs |= node->uses_varargs;
        outer->uses_kwargs |= node->uses_kwargs;
    }
    for (const struct node *parameter = node->first; parameter != NULL;
         parameter = parameter->next) {
        if (parameter->symbol == SYMBOL_CALLER && node->uses_caller && parameter->a == NULL)
            parse_fail(parser, "a parameter 'caller' needs a default");
        node->uses_caller &= parameter->symbol != SYMBOL_CALLER;
        node->uses_varargs &= parameter->symbol != SYMBOL_VARARGS;
        node->uses_kwargs &= parameter->symbol != SYMBOL_KWARGS;
    }
}

static struct node *parse_macro(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_MACRO);
    struct view name = parse_name(parser);
    node->symbol = parse_symbol(parser, name);
    node->value = parse_view(parser, name);
    node->first = parse_parameters(parser);
    parse_macro_body(parser, node, "endmacro");
    return node;
}

static struct node *parse_call_block(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_CALL_BLOCK);
    if (parse_at(parser, '('))
        node->first = parse_parameters(parser);
    node->a = parse_expression(parser);
    if (node->a != NULL && node->a->kind != NODE_CALL)
        parse_fail(parser, "{%% call %%} wants a call");
    node->value = parse_text(parser, "caller", 6);
    parse_macro_body(parser, node, "endcall");
    return node;
}

static struct node *parse_filter_block(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_FILTER_BLOCK);
    node->a = parse_filters(parser, NULL, true);
    node->body = parse_framed_body(parser, "endfilter", parser->loops);
    return node;
}

static struct node *parse_with(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_WITH);
    struct node_list settings = {0};
    while (parser->status == STATUS_OK && parse_current(parser)->kind != LEX_BLOCK_END) {
        if (settings.first != NULL)
            parse_expect(parser, ',');
        struct node *setting = parse_node(parser, NODE_SET);
        setting->a = parse_target(parser);
        parse_expect(parser, '=');
        setting->b = parse_expression(parser);
        node_append(&settings, setting);
    }
    node->first = settings.first;
    node->body = parse_framed_body(parser, "endwith", parser->loops);
    return node;
}

static struct node *parse_generation(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_SCOPE);
    node->body = parse_framed_body(parser, "endgeneration", 0);
    return node;
}

static struct node *parse_autoescape(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_SCOPE);
    if (!parse_skip_name(parser, "false") && !parse_skip_name(parser, "False"))
        return parse_fail(parser, "only {%% autoescape false %%} is supported");
    node->body = parse_framed_body(parser, "endautoescape", parser->loops);
    return node;
}

static struct node *parse_block(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_BLOCK);
    struct view name = parse_name(parser);
    node->scoped = parse_skip_name(parser, "scoped");
    if (parse_at_name(parser, "required"))
        return parse_fail(parser, "a required block needs a template that extends this one");
    node->body = parse_framed_body(parser, "endblock", 0);
    if (parse_current(parser)->kind == LEX_NAME && view_equal(parse_current(parser)->text, name))
        parse_next(parser);
    return node;
}

static struct node *parse_do(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_DO);
    node->a = parse_tuple(parser, true, false);
    return node;
}

static struct node *parse_print(struct parser *parser)
{
    struct node_list outputs = {0};
    while (parser->status == STATUS_OK && parse_current(parser)->kind != LEX_BLOCK_END) {
        if (outputs.first != NULL)
            parse_expect(parser, ',');
        struct node *node = parse_node(parser, NODE_PRINT);
        node->a = parse_expression(parser);
        node_append(&outputs, node);
    }
    return outputs.first;
}

static struct node *parse_break(struct parser *parser)
{
    if (parser->loops == 0)
        parse_fail(parser, "'break' stands outside a loop");
    return parse_node(parser, NODE_BREAK);
}

static struct node *parse_continue(struct parser *parser)
{
    if (parser->loops == 0)
        parse_fail(parser, "'continue' stands outside a loop");
    return parse_node(parser, NODE_CONTINUE);
}

/* The statement after "{%"; its name is skipped before its function is called. */
static struct node *parse_statement(struct parser *parser)
{
    static const struct {
        const char *name;
        struct node *(*parse)(struct parser *);
    } statements[] = {
        {"for", parse_for},         {"if", parse_if},
        {"set", parse_set},         {"macro", parse_macro},
        {"call", parse_call_block}, {"filter", parse_filter_block},
        {"with", parse_with},       {"generation", parse_generation},
        {"block", parse_block},     {"autoescape", parse_autoescape},
        {"do", parse_do},           {"print", parse_print},
        {"break", parse_break},     {"continue", parse_continue},
    };
    for (size_t i = 0; i < ARRAY_COUNT(statements); i++)
        if (parse_skip_name(parser, statements[i].name))
            return statements[i].parse(parser);
    char text[48];
    return parse_fail(parser, "the statement '%s' is not known or not supported here",
                      token_text(parse_current(parser), text));
}

static bool parse_at_any(const struct parser *parser, const char *const *names)
{
    for (size_t i = 0; names != NULL && names[i] != NULL; i++)
        if (parse_at_name(parser, names[i]))
            return true;
    return false;
}

/* Texts, expressions and statements up to "{%" and one of the names, which becomes the current
 * token, or with no names to the end of the template. */
static struct node *parse_content(struct parser *parser, const char *const *ends)
{
    struct node_list nodes = {0};
    while (parser->status == STATUS_OK) {
        const struct token *token = parse_current(parser);
        struct node *node = NULL;
        parse_next(parser);
        if (token->kind == LEX_DATA) {
            node = parse_node(parser, NODE_TEXT);
            node->value = parse_view(parser, token->text);
        } else if (token->kind == LEX_PRINT_BEGIN) {
            node = parse_node(parser, NODE_PRINT);
            node->a = parse_tuple(parser, true, false);
            parse_expect_kind(parser, LEX_PRINT_END, "'}}'");
        } else if (token->kind == LEX_BLOCK_BEGIN) {
            if (parse_at_any(parser, ends))
                return nodes.first;
            node = parse_statement(parser);
            parse_expect_kind(parser, LEX_BLOCK_END, "'%}'");
        } else {
            break;
        }
        node_append(&nodes, node);
        while (node != NULL && node->next != NULL) {
            node = node->next;
            nodes.end = &node->next;
        }
    }
    if (ends != NULL)
        parse_fail(parser, "the template ends where '%s' is missing", ends[0]);
    return nodes.first;
}

/* The body of a statement, after the rest of whose tag it begins. */
static struct node *parse_body(struct parser *parser, const char *const *ends)
{
    if (!parse_enter(parser))
        return NULL;
    parse_skip(parser, ':');
    parse_expect_kind(parser, LEX_BLOCK_END, "'%}'");
    struct node *body = parse_content(parser, ends);
    parser->depth--;
    return body;
}

enum status template_parse(struct chat_template *chat_template, struct view source,
                           struct error *error)
{
    static const char *const fixed[] = {[SYMBOL_LOOP] = "loop",
                                        [SYMBOL_CALLER] = "caller",
                                        [SYMBOL_VARARGS] = "varargs",
                                        [SYMBOL_KWARGS] = "kwargs"};
    struct parser parser = {.chat_template = chat_template, .error = error};
    size_t count;
    enum status status = template_lex(chat_template->arena, source, &parser.tokens, &count, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < ARRAY_COUNT(fixed); i++)
        parse_symbol(&parser, view_of(fixed[i]));
    chat_template->body = parse_content(&parser, NULL);
    return parser.status;
}
