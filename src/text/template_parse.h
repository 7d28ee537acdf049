/* What the two halves of the template parser share. The first error ends parsing: from then on the
 * current token is the last one, and every function returns at once.
 */
#ifndef CONSORT_TEXT_TEMPLATE_PARSE_H
#define CONSORT_TEXT_TEMPLATE_PARSE_H

#include "text/template.h"

struct parser {
    struct chat_template *chat_template;
    struct token *tokens;
    size_t position;
    unsigned depth;
    unsigned loops; /* for-loops around, within the same macro */
    bool soft;      /* inside an if, where an unknown filter is an error only when it is reached */
    struct node *macro;
    struct node none; /* stands for nodes that found no memory */
    size_t symbol_capacity;
    struct error *error;
    enum status status;
};

struct node_list {
    struct node *first, **end;
};

/* template_parse.c */
const struct token *parse_current(const struct parser *parser);
struct node *parse_fail(struct parser *parser, const char *format, ...) BASE_PRINTF(2, 3);
void parse_fail_memory(struct parser *parser);
const char *token_text(const struct token *token, char out[48]);
void parse_next(struct parser *parser);
bool token_is_name(const struct token *token, const char *name);
bool token_is_operator(const struct token *token, unsigned op);
bool parse_at_name(const struct parser *parser, const char *name);
bool parse_at(const struct parser *parser, char c);
bool parse_skip_name(struct parser *parser, const char *name);
bool parse_skip(struct parser *parser, char c);
void parse_expect(struct parser *parser, char c);
struct view parse_name(struct parser *parser);
struct node *parse_node(struct parser *parser, enum node_kind kind);
struct node *parse_constant(struct parser *parser, struct value value);
struct value parse_text(struct parser *parser, const char *data, size_t size);
struct value parse_view(struct parser *parser, struct view view);
unsigned parse_symbol(struct parser *parser, struct view name);
void node_append(struct node_list *list, struct node *node);
bool parse_enter(struct parser *parser);

/* template_expression.c. parse_tuple: one expression, or several with commas between. Without
 * conditions, "if" ends it. parse_filters: "|" comes first unless started. */
struct node *parse_expression(struct parser *parser);
struct node *parse_tuple(struct parser *parser, bool conditions, bool may_be_empty);
struct node *parse_primary(struct parser *parser);
struct node *parse_filters(struct parser *parser, struct node *node, bool started);
bool parse_at_tuple_end(const struct parser *parser);

#endif
