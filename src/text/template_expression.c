/* Expressions of a template, by Jinja2's grammar. From loose to tight: a if b else c; or; and; not;
 * comparisons and in; + -; ~; * / // %; **; signs; then filters and tests, members, items and
 * calls.
 */
#include "text/template_parse.h"

#include <string.h>

/* ---- Primary expressions --------------------------------------------------------------------- */

static struct node *parse_variable(struct parser *parser)
{
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {
        {"true", {.kind = KIND_BOOL, .boolean = true}},
        {"True", {.kind = KIND_BOOL, .boolean = true}},
        {"false", {.kind = KIND_BOOL}},
        {"False", {.kind = KIND_BOOL}},
        {"none", {.kind = KIND_NONE}},
        {"None", {.kind = KIND_NONE}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(constants); i++) {
        if (parse_at_name(parser, constants[i].name)) {
            struct node *node = parse_constant(parser, constants[i].value);
            parse_next(parser);
            return node;
        }
    }
    struct node *node = parse_node(parser, NODE_NAME);
    node->symbol = parse_symbol(parser, parse_current(parser)->text);
    if (parser->macro != NULL) {
        parser->macro->uses_caller |= node->symbol == SYMBOL_CALLER;
        parser->macro->uses_varargs |= node->symbol == SYMBOL_VARARGS;
        parser->macro->uses_kwargs |= node->symbol == SYMBOL_KWARGS;
    }
    parse_next(parser);
    return node;
}

/* Texts that follow one another are one. */
static struct node *parse_string(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_CONSTANT);
    const struct token *first = parse_current(parser);
    parse_next(parser);
    if (parse_current(parser)->kind != LEX_STRING) {
        node->value = parse_view(parser, first->text);
        return node;
    }
    struct buffer joined = {0};
    buffer_append(&joined, first->text.data, first->text.size);
    for (; parse_current(parser)->kind == LEX_STRING; parse_next(parser))
        buffer_append(&joined, parse_current(parser)->text.data, parse_current(parser)->text.size);
    char *copy = arena_copy(parser->chat_template->arena, joined.data, joined.size);
    if (copy == NULL || joined.failed)
        parse_fail_memory(parser);
    else
        node->value = parse_text(parser, copy, joined.size);
    buffer_free(&joined);
    return node;
}

static struct node *parse_list(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_LIST);
    struct node_list elements = {0};
    parse_expect(parser, '[');
    while (parser->status == STATUS_OK && !parse_at(parser, ']')) {
        if (elements.first != NULL)
            parse_expect(parser, ',');
        if (parse_at(parser, ']'))
            break;
        node_append(&elements, parse_expression(parser));
    }
    parse_expect(parser, ']');
    node->first = elements.first;
    return node;
}

static struct node *parse_dict(struct parser *parser)
{
    struct node *node = parse_node(parser, NODE_DICT);
    struct node_list elements = {0};
    parse_expect(parser, '{');
    while (parser->status == STATUS_OK && !parse_at(parser, '}')) {
        if (elements.first != NULL)
            parse_expect(parser, ',');
        if (parse_at(parser, '}'))
            break;
        node_append(&elements, parse_expression(parser));
        parse_expect(parser, ':');
        node_append(&elements, parse_expression(parser));
    }
    parse_expect(parser, '}');
    node->first = elements.first;
    return node;
}

struct node *parse_primary(struct parser *parser)
{
    const struct token *token = parse_current(parser);
    char text[48];
    struct node *node;
    switch (token->kind) {
    case LEX_NAME:
        return parse_variable(parser);
    case LEX_STRING:
        return parse_string(parser);
    case LEX_INT:
    case LEX_FLOAT:
        node = parse_constant(parser, token->kind == LEX_INT ? value_int(token->integer)
                                                             : value_float(token->real));
        parse_next(parser);
        return node;
    case LEX_OPERATOR:
        if (parse_skip(parser, '(')) {
            node = parse_tuple(parser, true, true);
            parse_expect(parser, ')');
            return node;
        }
        if (parse_at(parser, '['))
            return parse_list(parser);
        if (parse_at(parser, '{'))
            return parse_dict(parser);
        break;
    default:
        break;
    }
    return parse_fail(parser, "expected an expression, found '%s'", token_text(token, text));
}

/* ---- What follows a primary expression ------------------------------------------------------- */

/* Positional arguments come before keywords, both before *list, and that before **dict. */
static struct node *parse_argument(struct parser *parser, unsigned *last)
{
    struct node *node = parse_node(parser, NODE_ARGUMENT);
    const struct token *token = parse_current(parser);
    if (parse_skip(parser, '*')) {
        node->op = '*';
    } else if (token_is_operator(token, OPERATOR('*', '*'))) {
        parse_next(parser);
        node->op = OPERATOR('*', '*');
    } else if (token->kind == LEX_NAME && token_is_operator(token + 1, OPERATOR('=', 0))) {
        node->op = '=';
        node->value = parse_view(parser, token->text);
        parse_next(parser);
        parse_next(parser);
    }
    bool valid = node->op == 0     ? *last == 0
                 : node->op == '*' ? *last == 0 || *last == '='
                                   : *last != OPERATOR('*', '*');
    if (!valid)
        return parse_fail(parser, "an argument stands after one that must come later");
    *last = node->op == '=' && *last == '*' ? '*' : node->op;
    node->a = parse_expression(parser);
    return node;
}

static struct node *parse_arguments(struct parser *parser)
{
    struct node_list arguments = {0};
    unsigned last = 0;
    parse_expect(parser, '(');
    while (parser->status == STATUS_OK && !parse_at(parser, ')')) {
        if (arguments.first != NULL)
            parse_expect(parser, ',');
        if (parse_at(parser, ')'))
            break;
        node_append(&arguments, parse_argument(parser, &last));
    }
    parse_expect(parser, ')');
    return arguments.first;
}

static bool parse_at_slice_end(const struct parser *parser)
{
    return parse_at(parser, ':') || parse_at(parser, ']') || parse_at(parser, ',');
}

static struct node *parse_subscript(struct parser *parser, struct node *object)
{
    struct node *node = parse_node(parser, NODE_ITEM);
    node->a = object;
    parse_expect(parser, '[');
    if (!parse_at(parser, ':')) {
        node->b = parse_tuple(parser, true, false);
        if (!parse_at(parser, ':')) {
            parse_expect(parser, ']');
            return node;
        }
    }
    node->kind = NODE_SLICE;
    parse_expect(parser, ':');
    if (!parse_at_slice_end(parser))
        node->c = parse_expression(parser);
    if (parse_skip(parser, ':') && !parse_at_slice_end(parser))
        node->d = parse_expression(parser);
    parse_expect(parser, ']');
    return node;
}

static struct node *parse_member(struct parser *parser, struct node *object)
{
    struct node *node = parse_node(parser, NODE_ATTRIBUTE);
    node->a = object;
    parse_expect(parser, '.');
    const struct token *token = parse_current(parser);
    if (token->kind == LEX_INT) {
        node->kind = NODE_ITEM;
        node->b = parse_constant(parser, value_int(token->integer));
        parse_next(parser);
        return node;
    }
    node->value = parse_view(parser, parse_name(parser));
    return node;
}

static struct node *parse_call(struct parser *parser, struct node *callee)
{
    struct node *node = parse_node(parser, NODE_CALL);
    node->a = callee;
    node->first = parse_arguments(parser);
    return node;
}

static struct node *parse_postfix(struct parser *parser, struct node *node)
{
    while (parser->status == STATUS_OK) {
        if (parse_at(parser, '.'))
            node = parse_member(parser, node);
        else if (parse_at(parser, '['))
            node = parse_subscript(parser, node);
        else if (parse_at(parser, '('))
            node = parse_call(parser, node);
        else
            break;
    }
    return node;
}

/* The name of a filter or test; unknown ones fail here unless they stand inside an if. */
static void parse_builtin_name(struct parser *parser, struct node *node)
{
    struct view name = parse_name(parser);
    if (parse_at(parser, '.'))
        parse_fail(parser, "no filter or test has a '.' in its name");
    node->value = parse_view(parser, name);
    bool is_filter = node->kind == NODE_FILTER;
    node->builtin = is_filter ? template_find_filter(name) : template_find_test(name);
    if (node->builtin == NULL && !parser->soft)
        parse_fail(parser, "no %s is named '%.*s'", is_filter ? "filter" : "test",
                   (int)MIN(name.size, 60), name.data);
}

/* Filters that follow one another; "|" comes first unless started. */
struct node *parse_filters(struct parser *parser, struct node *node, bool started)
{
    while (parser->status == STATUS_OK && (started || parse_skip(parser, '|'))) {
        struct node *filter = parse_node(parser, NODE_FILTER);
        parse_builtin_name(parser, filter);
        filter->a = node;
        if (parse_at(parser, '('))
            filter->first = parse_arguments(parser);
        node = filter;
        started = false;
    }
    return node;
}

static bool parse_at_test_argument(const struct parser *parser)
{
    switch (parse_current(parser)->kind) {
    case LEX_NAME:
        return !parse_at_name(parser, "else") && !parse_at_name(parser, "or") &&
               !parse_at_name(parser, "and");
    case LEX_STRING:
    case LEX_INT:
    case LEX_FLOAT:
        return true;
    default:
        return parse_at(parser, '[') || parse_at(parser, '{');
    }
}

static struct node *parse_test(struct parser *parser, struct node *object)
{
    struct node *node = parse_node(parser, NODE_TEST);
    node->a = object;
    parse_next(parser);
    bool negated = parse_skip_name(parser, "not");
    parse_builtin_name(parser, node);
    if (parse_at(parser, '(')) {
        node->first = parse_arguments(parser);
    } else if (parse_at_test_argument(parser)) {
        if (parse_at_name(parser, "is"))
            return parse_fail(parser, "tests with 'is' cannot be chained");
        node->first = parse_node(parser, NODE_ARGUMENT);
        node->first->a = parse_postfix(parser, parse_primary(parser));
    }
    if (!negated)
        return node;
    struct node *not_node = parse_node(parser, NODE_NOT);
    not_node->a = node;
    return not_node;
}

static struct node *parse_unary(struct parser *parser, bool with_filters)
{
    struct node *node;
    if (!parse_enter(parser))
        return NULL;
    if (parse_at(parser, '-') || parse_at(parser, '+')) {
        node = parse_node(parser, parse_at(parser, '-') ? NODE_NEGATE : NODE_PLUS);
        parse_next(parser);
        node->a = parse_unary(parser, false);
    } else {
        node = parse_primary(parser);
    }
    node = parse_postfix(parser, node);
    while (with_filters && parser->status == STATUS_OK) {
        if (parse_at(parser, '|'))
            node = parse_filters(parser, node, false);
        else if (parse_at_name(parser, "is"))
            node = parse_test(parser, node);
        else if (parse_at(parser, '('))
            node = parse_call(parser, node);
        else
            break;
    }
    parser->depth--;
    return node;
}

/* ---- Operators ------------------------------------------------------------------------------- */

/* From loose to tight; between the levels stand comparisons and "~", which take any number. */
enum level { LEVEL_ADD, LEVEL_MULTIPLY, LEVEL_POWER };

static const unsigned level_operators[][4] = {
    [LEVEL_ADD] = {'+', '-'},
    [LEVEL_MULTIPLY] = {'*', '/', OPERATOR('/', '/'), '%'},
    [LEVEL_POWER] = {OPERATOR('*', '*')},
};

static bool parse_at_level(const struct parser *parser, enum level level)
{
    const struct token *token = parse_current(parser);
    for (size_t i = 0; i < 4 && level_operators[level][i] != 0; i++)
        if (token_is_operator(token, level_operators[level][i]))
            return true;
    return false;
}

static struct node *parse_concat(struct parser *parser);

static struct node *parse_level(struct parser *parser, enum level level)
{
    struct node *left = level == LEVEL_ADD        ? parse_concat(parser)
                        : level == LEVEL_MULTIPLY ? parse_level(parser, LEVEL_POWER)
                                                  : parse_unary(parser, true);
    while (parse_at_level(parser, level)) {
        struct node *node = parse_node(parser, NODE_BINARY);
        node->op = parse_current(parser)->op;
        parse_next(parser);
        node->a = left;
        node->b = level == LEVEL_ADD        ? parse_concat(parser)
                  : level == LEVEL_MULTIPLY ? parse_level(parser, LEVEL_POWER)
                                            : parse_unary(parser, true);
        left = node;
    }
    return left;
}

static struct node *parse_concat(struct parser *parser)
{
    struct node *left = parse_level(parser, LEVEL_MULTIPLY);
    if (!parse_at(parser, '~'))
        return left;
    struct node *node = parse_node(parser, NODE_CONCAT);
    struct node_list operands = {0};
    node_append(&operands, left);
    while (parse_skip(parser, '~'))
        node_append(&operands, parse_level(parser, LEVEL_MULTIPLY));
    node->first = operands.first;
    return node;
}

/* The comparison at the current token ('i': in, 'n': not in), skipped; 0 where there is none. */
static unsigned parse_comparison(struct parser *parser)
{
    static const unsigned comparisons[] = {
        OPERATOR('=', '='), OPERATOR('!', '='), OPERATOR('<', '='), OPERATOR('>', '='), '<', '>',
    };
    const struct token *token = parse_current(parser);
    if (parse_skip_name(parser, "in"))
        return 'i';
    if (token_is_name(token, "not") && token_is_name(token + 1, "in")) {
        parse_next(parser);
        parse_next(parser);
        return 'n';
    }
    for (size_t i = 0; i < ARRAY_COUNT(comparisons); i++) {
        if (token_is_operator(token, comparisons[i])) {
            parse_next(parser);
            return comparisons[i];
        }
    }
    return 0;
}

static struct node *parse_compare(struct parser *parser)
{
    struct node *left = parse_level(parser, LEVEL_ADD);
    struct node_list operands = {0};
    for (unsigned op; (op = parse_comparison(parser)) != 0;) {
        struct node *operand = parse_node(parser, NODE_OPERAND);
        operand->op = op;
        operand->a = parse_level(parser, LEVEL_ADD);
        node_append(&operands, operand);
    }
    if (operands.first == NULL)
        return left;
    struct node *node = parse_node(parser, NODE_COMPARE);
    node->a = left;
    node->first = operands.first;
    return node;
}

static struct node *parse_not(struct parser *parser)
{
    if (!parse_at_name(parser, "not"))
        return parse_compare(parser);
    if (!parse_enter(parser))
        return NULL;
    struct node *node = parse_node(parser, NODE_NOT);
    parse_next(parser);
    node->a = parse_not(parser);
    parser->depth--;
    return node;
}

static struct node *parse_and(struct parser *parser)
{
    struct node *left = parse_not(parser);
    while (parse_skip_name(parser, "and")) {
        struct node *node = parse_node(parser, NODE_AND);
        node->a = left;
        node->b = parse_not(parser);
        left = node;
    }
    return left;
}

static struct node *parse_or(struct parser *parser)
{
    struct node *left = parse_and(parser);
    while (parse_skip_name(parser, "or")) {
        struct node *node = parse_node(parser, NODE_OR);
        node->a = left;
        node->b = parse_and(parser);
        left = node;
    }
    return left;
}

/* Filters of a conditional expression are looked up when they are reached. Whether an "if" follows
 * is known only after its first part, so an unknown name there is left to rendering as well. */
static bool parse_condition_follows(const struct parser *parser)
{
    size_t depth = 0;
    for (size_t i = parser->position;; i++) {
        const struct token *token = &parser->tokens[i];
        if (token->kind == LEX_END || token->kind == LEX_PRINT_END || token->kind == LEX_BLOCK_END)
            return false;
        if (token->kind == LEX_OPERATOR && strchr("([{", (int)token->op) != NULL)
            depth++;
        if (token->kind == LEX_OPERATOR && strchr(")]}", (int)token->op) != NULL && depth-- == 0)
            return false;
        if (depth == 0 && (token_is_operator(token, ',') || token_is_operator(token, ':')))
            return false;
        if (depth == 0 && token_is_name(token, "if"))
            return true;
    }
}

struct node *parse_expression(struct parser *parser)
{
    if (!parse_enter(parser))
        return NULL;
    bool soft = parser->soft;
    parser->soft = soft || parse_condition_follows(parser);
    struct node *node = parse_or(parser);
    while (parse_skip_name(parser, "if")) {
        struct node *condition = parse_node(parser, NODE_CONDITION);
        condition->b = node;
        condition->a = parse_or(parser);
        if (parse_skip_name(parser, "else"))
            condition->c = parse_expression(parser);
        node = condition;
    }
    parser->soft = soft;
    parser->depth--;
    return node;
}

bool parse_at_tuple_end(const struct parser *parser)
{
    enum token_kind kind = parse_current(parser)->kind;
    return kind == LEX_END || kind == LEX_PRINT_END || kind == LEX_BLOCK_END ||
           parse_at(parser, ')') || parse_at(parser, ']');
}

/* One expression, or several with commas between: a tuple. Without conditions, "if" ends it. */
struct node *parse_tuple(struct parser *parser, bool conditions, bool may_be_empty)
{
    struct node_list elements = {0};
    bool is_tuple = may_be_empty && parse_at_tuple_end(parser);
    struct node *node = parse_node(parser, NODE_TUPLE);
    while (parser->status == STATUS_OK && !parse_at_tuple_end(parser)) {
        node_append(&elements, conditions ? parse_expression(parser) : parse_or(parser));
        if (!parse_skip(parser, ','))
            break;
        is_tuple = true;
    }
    char text[48];
    if (!is_tuple && elements.first == NULL)
        return parse_fail(parser, "expected an expression, found '%s'",
                          token_text(parse_current(parser), text));
    if (!is_tuple)
        return elements.first;
    node->first = elements.first;
    return node;
}
