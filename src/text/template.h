/* Internals of the template engine: tokens, syntax tree, values, and the functions that its files
 * share. Nothing outside src/text/template*.c includes this.
 *
 * A source becomes tokens (template_lex.c), the tokens a tree (template_parse.c), both in the
 * template's arena and read-only afterwards. Rendering walks the tree (template_exec.c: statements,
 * template_eval.c: expressions) with a struct run of its own, whose arena holds every value and is
 * freed as a whole at the end. Values behave as the Python objects that Jinja2 would see.
 *
 * Errors stick: the first one is kept in run->error, run->failed is set, and every function from
 * then on returns a harmless value (undefined, an empty text), so only loops and effects check it.
 */
#ifndef CONSORT_TEXT_TEMPLATE_H
#define CONSORT_TEXT_TEMPLATE_H

#include "text/text.h"

/* What a hostile template can make this program spend. */
#define TEMPLATE_SOURCE_LIMIT (4u << 20)   /* bytes of a template */
#define TEMPLATE_PARSE_MEMORY (512u << 20) /* bytes of tokens and tree */
#define TEMPLATE_NESTING_LIMIT 100         /* expressions and blocks within one another */
#define TEMPLATE_DEPTH_LIMIT 500           /* of evaluation, macros included */
#define TEMPLATE_VALUE_DEPTH_LIMIT 200     /* lists and dicts within one another */
#define TEMPLATE_STEP_LIMIT 10000000u      /* evaluations; 8 to 64 bytes of text count as one */
#define TEMPLATE_TEXT_LIMIT (16u << 20)    /* bytes of one text, the output too */
#define TEMPLATE_MEMORY_LIMIT (512u << 20) /* bytes of all values of a rendering */
#define TEMPLATE_RANGE_LIMIT 100000        /* elements of range(), as Jinja2's sandbox has it */

/* ---- Values ---------------------------------------------------------------------------------- */

enum kind {
    KIND_UNDEFINED, /* name: the name that was not found, or NULL */
    KIND_MISSING,   /* an argument that was not given; templates never see it */
    KIND_NONE,
    KIND_BOOL,
    KIND_INT,
    KIND_FLOAT,
    KIND_STRING,
    KIND_LIST,
    KIND_TUPLE,
    KIND_VIEW,      /* list: what dict.keys(), values(), items() return */
    KIND_GENERATOR, /* list: read once from list->position; what map, select, ... return */
    KIND_DICT,
    KIND_RANGE,
    KIND_NAMESPACE, /* dict */
    KIND_MACRO,
    KIND_LOOP,
    KIND_METHOD,  /* a builtin bound to its object */
    KIND_BUILTIN, /* a global function */
    KIND_CYCLER,  /* list: items, position */
    KIND_JOINER,
};

struct value {
    enum kind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const struct string *name; /* KIND_UNDEFINED */
        struct string *string;
        struct list *list;
        struct dict *dict;
        struct range *range;
        struct macro *macro;
        struct loop *loop;
        struct method *method;
        const struct builtin *builtin;
        struct joiner *joiner;
    };
};

/* Valid UTF-8. Immutable, but a text that ends where its growth's used part ends may be continued
 * in place, which makes building a text piece by piece linear. */
struct string {
    const char *data;
    size_t size;
    size_t length; /* code points */
    bool safe;     /* escaped for HTML: Markup in Jinja2 */
    struct growth *growth;
};

struct growth {
    char *data;
    size_t used, capacity;
};

enum list_flavour { LIST_PLAIN, LIST_GROUP, LIST_KEYS, LIST_VALUES, LIST_ITEMS };

struct list {
    struct value *items;
    size_t count, capacity;
    size_t position;       /* generators and cyclers */
    struct error *failure; /* generators: what comes instead of a next element, or NULL */
    enum list_flavour flavour;
};

struct entry {
    struct value key, value;
    uint64_t hash;
};

/* In order of insertion; slots (a power of two, over half empty) find an entry by its hash. */
struct dict {
    struct entry *entries;
    size_t count, capacity;
    uint32_t *slots; /* entry + 1, or 0 */
    size_t n_slots;
};

struct range {
    int64_t start, step;
    size_t count;
};

struct method {
    struct value self;
    const struct builtin *builtin;
};

struct joiner {
    struct value separator;
    bool used;
};

struct macro {
    const struct node *node;
    struct scope *scope; /* where it was defined */
    struct string *name;
};

/* ---- Functions that templates call ----------------------------------------------------------- */

struct keyword {
    struct view name;
    struct value value;
};

#define BUILTIN_PARAMETERS 6

struct call {
    struct value *positional;
    size_t n_positional;
    struct keyword *keywords;
    size_t n_keywords;
    /* By the builtin's parameters; KIND_MISSING where not given. */
    struct value bound[BUILTIN_PARAMETERS];
};

struct run;
typedef struct value builtin_fn(struct run *run, struct value self, struct call *call);

/* parameters: their names with spaces between; "*" leaves the arguments as they are. */
struct builtin {
    const char *name;
    builtin_fn *function; /* NULL: known to Python, not supported here */
    const char *parameters;
    unsigned required;
};

/* ---- Syntax ---------------------------------------------------------------------------------- */

enum token_kind {
    LEX_END,
    LEX_DATA,
    LEX_PRINT_BEGIN,
    LEX_PRINT_END,
    LEX_BLOCK_BEGIN,
    LEX_BLOCK_END,
    LEX_NAME,
    LEX_STRING,
    LEX_INT,
    LEX_FLOAT,
    LEX_OPERATOR,
};

#define OPERATOR(first, second) ((unsigned)(first) | (unsigned)(second) << 8)

struct token {
    enum token_kind kind;
    unsigned line;
    unsigned op;      /* OPERATOR('*', '*'), OPERATOR('+', 0) */
    struct view text; /* data, name; the decoded text of a string */
    int64_t integer;
    double real;
};

enum node_kind {
    /* Expressions */
    NODE_CONSTANT,         /* value */
    NODE_NAME,             /* symbol */
    NODE_LIST,             /* first: elements */
    NODE_TUPLE,            /* first: elements */
    NODE_DICT,             /* first: key, value, key, value, ... */
    NODE_ATTRIBUTE,        /* a . value */
    NODE_ITEM,             /* a [ b ] */
    NODE_SLICE,            /* a [ b : c : d ], each of b, c, d may be NULL */
    NODE_CALL,             /* a ( first: arguments ) */
    NODE_ARGUMENT,         /* a; op: 0, '=' (value: its name), '*', OPERATOR('*', '*') */
    NODE_FILTER,           /* a | value ( first: arguments ); a is NULL in blocks */
    NODE_TEST,             /* a is value ( first: arguments ) */
    NODE_NOT,              /* a */
    NODE_NEGATE,           /* a */
    NODE_PLUS,             /* a */
    NODE_AND,              /* a, b */
    NODE_OR,               /* a, b */
    NODE_BINARY,           /* a op b */
    NODE_CONCAT,           /* first: operands */
    NODE_COMPARE,          /* a; first: operands, each with its op */
    NODE_OPERAND,          /* op, a */
    NODE_CONDITION,        /* b if a else c; c may be NULL */
    NODE_NAMESPACE_MEMBER, /* symbol . value, as a target */
    /* Statements */
    NODE_TEXT,         /* value */
    NODE_PRINT,        /* a */
    NODE_FOR,          /* a: target, b: iterable, c: filter or NULL, body, otherwise; recursive */
    NODE_IF,           /* a, body, otherwise; has_elif: that is the next NODE_IF of a chain */
    NODE_SET,          /* a: target, b */
    NODE_SET_BLOCK,    /* a: target, b: filters or NULL, body */
    NODE_MACRO,        /* symbol, value: name, first: parameters, body */
    NODE_PARAMETER,    /* symbol, value: name, a: default or NULL */
    NODE_CALL_BLOCK,   /* a: call; first, body as a macro */
    NODE_FILTER_BLOCK, /* a: filters, body */
    NODE_WITH,         /* first: NODE_SET, ...; body */
    NODE_SCOPE,        /* body: generation, autoescape false */
    NODE_BLOCK,        /* body; scoped */
    NODE_DO,           /* a */
    NODE_BREAK,
    NODE_CONTINUE,
};

struct node {
    enum node_kind kind;
    unsigned line;
    unsigned op;
    unsigned symbol; /* number of a name */
    bool recursive, scoped, has_elif;
    bool uses_caller, uses_varargs, uses_kwargs; /* macros */
    struct value value;
    const struct builtin *builtin; /* filters and tests; NULL where the name is not known */
    struct node *a, *b, *c, *d;
    struct node *first; /* of a list linked by next */
    struct node *body, *otherwise;
    struct node *next;
};

enum { SYMBOL_LOOP, SYMBOL_CALLER, SYMBOL_VARARGS, SYMBOL_KWARGS, SYMBOL_FIXED };

struct chat_template {
    struct arena *arena;
    struct node *body;
    struct string **symbols; /* the names of variables, by number */
    size_t n_symbols;
};

/* ---- Rendering ------------------------------------------------------------------------------- */

struct variable {
    unsigned symbol;
    struct value value;
};

struct scope {
    struct scope *parent;
    struct variable *variables;
    size_t count, capacity;
    bool captured; /* a macro was defined here, so it must outlive its block */
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

struct run {
    const struct chat_template *chat_template;
    struct arena *arena;
    struct dict *variables; /* what the caller gave */
    struct scope *root, *scope;
    struct buffer *out;
    struct error *error;
    int64_t now_s;
    uint64_t steps;
    unsigned depth;
    unsigned line;
    enum flow flow;
    bool failed;
    bool sorts_reprs; /* value_put_repr shows dicts in the order of their keys */
};

/* A loop hands out the elements of source that pass the filter, one ahead where a template asks for
 * the next one. */
struct loop {
    const struct node *node;
    struct scope *scope; /* around the loop */
    struct value iterable;
    struct list *source;
    size_t position;
    bool has_length;
    size_t length;
    struct value before, current, after; /* after: KIND_MISSING when not looked at yet */
    bool unfiltered;                     /* source holds only what passed the filter */
    int64_t index0;
    int64_t depth0;
    struct value last_changed;
};

/* template_lex.c. tokens[*count] in arena, the last one LEX_END. */
enum status template_lex(struct arena *arena, struct view source, struct token **tokens,
                         size_t *count, struct error *error);

/* template_parse.c */
enum status template_parse(struct chat_template *chat_template, struct view source,
                           struct error *error);

/* template_value.c: run->failed and the error, with the line that is being evaluated. */
struct value template_fail(struct run *run, enum status code, const char *format, ...)
    BASE_PRINTF(3, 4);
struct value template_fail_undefined(struct run *run, struct value value);
bool template_spend(struct run *run, size_t steps); /* false: the limit is passed */
/* One level of evaluation deeper; false, after an error, at the limit. run->depth-- leaves it. */
bool template_enter(struct run *run);
void *template_alloc(struct run *run, size_t count, size_t size); /* NULL: failed */
void template_put(struct run *run, struct buffer *out, const void *data, size_t size);
void template_put_text(struct run *run, struct buffer *out, const char *text);
void template_put_character(struct run *run, struct buffer *out, uint32_t code_point);

struct value value_none(void);
struct value value_undefined(const struct string *name);
struct value value_bool(bool boolean);
struct value value_int(int64_t integer);
struct value value_float(double real);
struct value value_list(struct list *list, enum kind kind);
struct value value_dict(struct dict *dict);
struct value value_text(struct run *run, const void *data, size_t size);   /* copies */
struct value value_borrow(struct run *run, const char *data, size_t size); /* does not */
struct value value_take(struct run *run, struct buffer *buffer);           /* copies, frees */
struct value value_method(struct run *run, struct value self, const struct builtin *builtin);
struct string *string_borrow(struct arena *arena, const char *data, size_t size);
struct value string_join(struct run *run, struct value left, struct value right); /* both texts */
struct view string_view(const struct string *string);                             /* all of it */
/* Bytes of code points [start, stop) of text; 0 <= start <= stop <= length. */
struct view string_part(const struct string *string, size_t start, size_t stop);
bool string_is(struct value value, const char *text);
struct view value_view(struct value value); /* of a text; empty for other kinds */

struct list *list_open(struct run *run, size_t capacity);
void list_push(struct run *run, struct list *list, struct value value);
/* A generator of list. Python makes elements when they are asked for, so an error that was met
 * while making them is kept until then; those of limits stand. */
struct value list_generator(struct run *run, struct list *list);
void list_flip(struct list *list); /* the last element first */
/* Stable, by the elements themselves; backward: the greatest first. */
void list_sort_values(struct run *run, struct list *list, bool backward);
struct value list_pair(struct run *run, struct value first, struct value second); /* a tuple */
struct dict *dict_open(struct run *run);
void dict_set(struct run *run, struct dict *dict, struct value key, struct value value);
struct value *dict_find(struct run *run, const struct dict *dict, struct value key);
struct value *dict_find_text(const struct dict *dict, struct view key);
void dict_remove(struct run *run, struct dict *dict, struct value *found);
struct list *dict_list(struct run *run, const struct dict *dict, enum list_flavour flavour);

bool value_truth(struct value value);
bool value_equal(struct run *run, struct value a, struct value b);
/* Negative, 0, positive; fails for what has no order. NaN: unordered is set. */
int value_compare(struct run *run, struct value a, struct value b, bool *unordered);
const char *value_type(struct value value);           /* as Python names it */
bool value_is_number(struct value value);             /* bool, int, float */
double value_real(struct value value);                /* of a number */
bool value_integer(struct value value, int64_t *out); /* bool, int */
bool template_given(struct value value);              /* an argument that is given and not none */
bool template_flag(struct value value);               /* an argument that is given and true */
/* The argument as a whole number, or otherwise where it is not given; fails for other kinds. */
int64_t template_integer(struct run *run, struct value value, int64_t otherwise);
/* The elements; fails for what cannot be iterated. For lists the list itself. */
struct list *value_elements(struct run *run, struct value value);
bool value_iterable(struct value value);
bool value_length(struct value value, size_t *out); /* len(); false where there is none */
struct value value_at(struct run *run, struct value value, size_t index);
bool value_contains(struct run *run, struct value container, struct value item);
struct value value_from_json(struct run *run, const json_t *json, unsigned depth);

/* template_print.c: str() and repr(), JSON */
void value_put(struct run *run, struct buffer *out, struct value value);
void value_put_repr(struct run *run, struct buffer *out, struct value value, unsigned depth);
struct value value_string(struct run *run, struct value value); /* str(); a text as it is */
void value_put_float(struct run *run, struct buffer *out, double real);
struct json_style {
    bool ensure_ascii, sort_keys, indented;
    struct view indent, item_separator, key_separator;
};
void value_put_json(struct run *run, struct buffer *out, struct value value,
                    const struct json_style *style, unsigned depth);
void value_put_escaped(struct run *run, struct buffer *out, struct value value); /* HTML */

/* template_eval.c */
struct value template_eval(struct run *run, const struct node *node);
struct value template_call(struct run *run, struct value callee, struct call *call);
struct value template_filter(struct run *run, const struct node *node, struct value value);
struct value template_attribute(struct run *run, struct value value, struct value name);
struct value template_item(struct run *run, struct value value, struct value key);
struct value template_binary(struct run *run, unsigned op, struct value a, struct value b);
struct value template_invoke(struct run *run, const struct builtin *builtin, struct value self,
                             struct call *call);
void template_eval_arguments(struct run *run, const struct node *first, struct call *call);

/* template_exec.c */
void template_exec(struct run *run, const struct node *first);
struct value template_macro_call(struct run *run, struct macro *macro, struct call *call);
struct value template_loop_call(struct run *run, struct loop *loop, struct value iterable);
bool loop_peek(struct run *run, struct loop *loop); /* loop->after is set; false at the end */
size_t loop_length(struct run *run, struct loop *loop);
struct value scope_get(struct run *run, unsigned symbol);

/* Tables; each returns NULL for a name it lacks. */
const struct builtin *template_find_filter(struct view name); /* template_filters.c */
const struct builtin *template_find_test(struct view name);   /* template_tests.c */
const struct builtin *template_find_global(struct view name); /* template_globals.c */
extern const struct builtin template_text_methods[];          /* template_texts.c */
extern const size_t template_n_text_methods;
/* template_methods.c; KIND_STRING too */
const struct builtin *template_find_method(enum kind kind, struct view name);
const struct builtin *template_find_in(const struct builtin *table, size_t count, struct view name);
/* template_globals.c: the entries of dicts and pairs, then the keywords. */
void template_update(struct run *run, struct dict *dict, const struct call *call);

/* template_sequence.c: filters over sequences share these with others. */
extern const struct builtin template_sequence_filters[];
extern const size_t template_n_sequence_filters;

/* template_texts.c, for filters too. */
#define TEMPLATE_NOT_FOUND SIZE_MAX
/* The first place at or after start where part stands whole before the end of text. */
size_t template_search(struct run *run, struct view text, struct view part, size_t start);
struct list *template_lines(struct run *run, struct view text, bool keep_ends);
struct value template_replace(struct run *run, const struct string *self, const struct string *part,
                              const struct string *other, int64_t limit);

/* template_format.c: "%d of %s" % values, "{} of {}".format(values) */
struct value template_percent(struct run *run, struct string *format, struct value values);
struct value template_format(struct run *run, struct string *format, const struct call *call);

/* template_wrap.c: the filter wordwrap */
builtin_fn template_wordwrap;

/* template_unicode.c: what Python's str says of characters. */
bool character_space(uint32_t c);
bool character_alpha(uint32_t c);
bool character_digit(uint32_t c);
bool character_numeric(uint32_t c);
bool character_upper(uint32_t c);
bool character_lower(uint32_t c);
bool character_printable(uint32_t c);
enum letter_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_FOLD };
void template_put_case(struct run *run, struct buffer *out, struct view text,
                       enum letter_case letter_case);

#endif
