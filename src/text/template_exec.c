/* Statements, scopes, loops and macros; opening and rendering a template. */
#include "text/template.h"

#include <stdlib.h>
#include <string.h>

/* ---- Scopes ---------------------------------------------------------------------------------- */

static struct scope *scope_open(struct run *run, struct scope *parent)
{
    struct scope *scope = template_alloc(run, 1, sizeof *scope);
    if (scope != NULL)
        scope->parent = parent;
    return scope;
}

static struct variable *scope_find(struct scope *scope, unsigned symbol)
{
    for (size_t i = 0; i < scope->count; i++)
        if (scope->variables[i].symbol == symbol)
            return &scope->variables[i];
    return NULL;
}

static void scope_set(struct run *run, struct scope *scope, unsigned symbol, struct value value)
{
    struct variable *variable = scope_find(scope, symbol);
    if (variable != NULL) {
        variable->value = value;
        return;
    }
    if (scope->count == scope->capacity) {
        size_t capacity = MAX(4, 2 * scope->capacity);
        struct variable *variables = template_alloc(run, capacity, sizeof *variables);
        if (variables == NULL)
            return;
        if (scope->count > 0)
            memcpy(variables, scope->variables, scope->count * sizeof *variables);
        scope->variables = variables;
        scope->capacity = capacity;
    }
    scope->variables[scope->count++] = (struct variable){symbol, value};
}

struct value scope_get(struct run *run, unsigned symbol)
{
    for (struct scope *scope = run->scope; scope != NULL; scope = scope->parent) {
        struct variable *variable = scope_find(scope, symbol);
        template_spend(run, 1 + scope->count / 16);
        if (variable != NULL)
            return variable->value.kind != KIND_MISSING
                       ? variable->value
                       : value_undefined(run->chat_template->symbols[symbol]);
    }
    const struct string *name = run->chat_template->symbols[symbol];
    struct view view = string_view(name);
    struct value *given = dict_find_text(run->variables, view);
    if (given != NULL)
        return *given;
    const struct builtin *builtin = template_find_global(view);
    if (builtin != NULL)
        return (struct value){.kind = KIND_BUILTIN, .builtin = builtin};
    return value_undefined(name);
}

/* ---- Assignment ------------------------------------------------------------------------------ */

static void assign(struct run *run, struct scope *scope, const struct node *target,
                   struct value value)
{
    if (run->failed)
        return;
    if (target->kind == NODE_NAME) {
        scope_set(run, scope, target->symbol, value);
        return;
    }
    if (target->kind == NODE_NAMESPACE_MEMBER) {
        const struct string *name = run->chat_template->symbols[target->symbol];
        struct value space = scope_get(run, target->symbol);
        if (space.kind == KIND_NAMESPACE)
            dict_set(run, space.dict, target->value, value);
        else
            template_fail(run, STATUS_INVALID,
                          "'%.*s' is not a namespace, so it has no members to set",
                          (int)MIN(name->size, 60), name->data);
        return;
    }
    const struct list *list = value_elements(run, value);
    size_t index = 0;
    const struct node *part = target->first;
    for (; list != NULL && part != NULL && index < list->count; part = part->next)
        assign(run, scope, part, list->items[index++]);
    if (list != NULL && (part != NULL || index < list->count))
        template_fail(run, STATUS_INVALID, "%zu values cannot be given to the names on the left",
                      list->count);
}

/* ---- Capturing output ------------------------------------------------------------------------ */

/* Runs body into a text of its own. */
static struct value exec_captured(struct run *run, const struct node *body)
{
    struct buffer text = {0}, *outer = run->out;
    run->out = &text;
    template_exec(run, body);
    run->out = outer;
    return value_take(run, &text);
}

/* A value through the filters of a block: node->a is the filter before, NULL at the first. */
static struct value exec_filters(struct run *run, const struct node *node, struct value value)
{
    if (node == NULL || run->failed || !template_enter(run))
        return value;
    value = template_filter(run, node, exec_filters(run, node->a, value));
    run->depth--;
    return value;
}

static void exec_in_scope(struct run *run, const struct node *body, struct scope *parent)
{
    struct scope *outer = run->scope, *scope = scope_open(run, parent);
    if (scope == NULL)
        return;
    run->scope = scope;
    template_exec(run, body);
    run->scope = outer;
}

/* ---- Loops ----------------------------------------------------------------------------------- */

/* Whether the filter lets value pass; it sees the loop's names, but not 'loop'. */
static bool loop_passes(struct run *run, struct loop *loop, struct value value)
{
    if (loop->node->c == NULL || loop->unfiltered)
        return true;
    struct scope *outer = run->scope, *scope = scope_open(run, loop->scope);
    if (scope == NULL)
        return false;
    assign(run, scope, loop->node->a, value);
    run->scope = scope;
    bool passes = value_truth(template_eval(run, loop->node->c));
    run->scope = outer;
    return passes;
}

bool loop_peek(struct run *run, struct loop *loop)
{
    while (loop->after.kind == KIND_MISSING && loop->position < loop->source->count &&
           template_spend(run, 1)) {
        struct value value = loop->source->items[loop->position++];
        if (loop_passes(run, loop, value))
            loop->after = value;
    }
    return loop->after.kind != KIND_MISSING && !run->failed;
}

/* Where the filter or a generator hides the number of elements, the rest is gathered to be counted.
 */
size_t loop_length(struct run *run, struct loop *loop)
{
    if (loop->has_length)
        return loop->length;
    loop->has_length = true;
    if (loop->node->c == NULL && value_length(loop->iterable, &loop->length))
        return loop->length;
    struct list *rest = list_open(run, 0);
    size_t done = (size_t)(loop->index0 + 1) + (loop->after.kind != KIND_MISSING);
    for (; loop->position < loop->source->count && template_spend(run, 1); loop->position++)
        if (loop_passes(run, loop, loop->source->items[loop->position]))
            list_push(run, rest, loop->source->items[loop->position]);
    if (rest == NULL)
        return 0;
    loop->source = rest;
    loop->position = 0;
    loop->unfiltered = true;
    loop->length = done + rest->count;
    return loop->length;
}

static bool loop_next(struct run *run, struct loop *loop)
{
    if (!loop_peek(run, loop))
        return false;
    loop->before = loop->current;
    loop->current = loop->after;
    loop->after = (struct value){.kind = KIND_MISSING};
    loop->index0++;
    return true;
}

/* Runs the loop's body for each element, and its else where no run of the body came to its end: so
 * Jinja2 does it, also behind continue and break. */
static void loop_run(struct run *run, const struct node *node, struct value iterable,
                     struct scope *around, int64_t depth0)
{
    struct loop *loop = template_alloc(run, 1, sizeof *loop);
    struct list *source = value_elements(run, iterable);
    struct scope *outer = run->scope, *scope = NULL;
    bool ended = false;
    if (loop == NULL || source == NULL)
        return;
    *loop = (struct loop){.node = node,
                          .scope = around,
                          .iterable = iterable,
                          .source = source,
                          .after = {.kind = KIND_MISSING},
                          .last_changed = {.kind = KIND_MISSING},
                          .index0 = -1,
                          .depth0 = depth0};
    while (run->flow != FLOW_BREAK && loop_next(run, loop)) {
        if (scope == NULL || scope->captured)
            scope = scope_open(run, around);
        if (scope == NULL)
            break;
        scope->count = 0;
        scope_set(run, scope, SYMBOL_LOOP, (struct value){.kind = KIND_LOOP, .loop = loop});
        assign(run, scope, node->a, loop->current);
        run->scope = scope;
        run->flow = FLOW_ON;
        template_exec(run, node->body);
        run->scope = outer;
        ended = ended || run->flow == FLOW_ON;
    }
    run->flow = FLOW_ON;
    if (!ended && node->otherwise != NULL && !run->failed)
        exec_in_scope(run, node->otherwise, around);
}

static void exec_for(struct run *run, const struct node *node)
{
    loop_run(run, node, template_eval(run, node->b), run->scope, 0);
}

struct value template_loop_call(struct run *run, struct loop *loop, struct value iterable)
{
    if (!loop->node->recursive)
        return template_fail(run, STATUS_INVALID, "only a loop marked 'recursive' can be called");
    struct buffer text = {0}, *outer = run->out;
    run->out = &text;
    loop_run(run, loop->node, iterable, loop->scope, loop->depth0 + 1);
    run->out = outer;
    return value_take(run, &text);
}

/* ---- Macros ---------------------------------------------------------------------------------- */

static struct value macro_make(struct run *run, const struct node *node)
{
    struct macro *macro = template_alloc(run, 1, sizeof *macro);
    if (macro == NULL)
        return value_undefined(NULL);
    *macro = (struct macro){node, run->scope, node->value.string};
    for (struct scope *scope = run->scope; scope != NULL; scope = scope->parent)
        scope->captured = true;
    return (struct value){.kind = KIND_MACRO, .macro = macro};
}

/* The keyword of this name, taken out of call; KIND_MISSING if it is not given. */
static struct value macro_take_keyword(struct call *call, struct view name)
{
    for (size_t i = 0; i < call->n_keywords; i++) {
        if (!view_equal(call->keywords[i].name, name))
            continue;
        struct value value = call->keywords[i].value;
        memmove(&call->keywords[i], &call->keywords[i + 1],
                (call->n_keywords - i - 1) * sizeof *call->keywords);
        call->n_keywords--;
        return value;
    }
    return (struct value){.kind = KIND_MISSING};
}

static void macro_bind_rest(struct run *run, struct macro *macro, struct scope *scope,
                            struct call *call, size_t n_parameters)
{
    const struct node *node = macro->node;
    if (node->uses_caller) {
        struct value caller = macro_take_keyword(call, view_of("caller"));
        scope_set(run, scope, SYMBOL_CALLER,
                  caller.kind == KIND_MISSING || caller.kind == KIND_NONE ? value_undefined(NULL)
                                                                          : caller);
    }
    if (node->uses_kwargs) {
        struct dict *kwargs = dict_open(run);
        for (size_t i = 0; i < call->n_keywords; i++)
            dict_set(run, kwargs,
                     value_borrow(run, call->keywords[i].name.data, call->keywords[i].name.size),
                     call->keywords[i].value);
        scope_set(run, scope, SYMBOL_KWARGS, value_dict(kwargs));
    } else if (call->n_keywords > 0) {
        template_fail(run, STATUS_INVALID, "the macro '%.*s' has no parameter '%.*s'",
                      (int)MIN(macro->name->size, 60), macro->name->data,
                      (int)MIN(call->keywords[0].name.size, 60), call->keywords[0].name.data);
    }
    if (node->uses_varargs) {
        struct list *varargs = list_open(run, 0);
        for (size_t i = n_parameters; i < call->n_positional; i++)
            list_push(run, varargs, call->positional[i]);
        scope_set(run, scope, SYMBOL_VARARGS, value_list(varargs, KIND_TUPLE));
    } else if (call->n_positional > n_parameters) {
        template_fail(run, STATUS_INVALID, "the macro '%.*s' takes not more than %zu arguments",
                      (int)MIN(macro->name->size, 60), macro->name->data, n_parameters);
    }
}

/* Parameters without an argument get their defaults, which may use the parameters before them. */
static void macro_bind(struct run *run, struct macro *macro, struct scope *scope, struct call *call)
{
    size_t index = 0;
    for (const struct node *node = macro->node->first; node != NULL; node = node->next) {
        struct value value = {.kind = KIND_MISSING};
        if (index < call->n_positional)
            value = call->positional[index];
        else
            value = macro_take_keyword(call, string_view(node->value.string));
        scope_set(run, scope, node->symbol, value);
        index++;
    }
    macro_bind_rest(run, macro, scope, call, index);
    for (const struct node *node = macro->node->first; node != NULL && !run->failed;
         node = node->next) {
        if (scope_find(scope, node->symbol)->value.kind != KIND_MISSING)
            continue;
        struct value value =
            node->a != NULL ? template_eval(run, node->a) : value_undefined(node->value.string);
        scope_set(run, scope, node->symbol, value);
    }
}

struct value template_macro_call(struct run *run, struct macro *macro, struct call *call)
{
    struct scope *outer = run->scope, *scope = scope_open(run, macro->scope);
    if (scope == NULL)
        return value_undefined(NULL);
    run->scope = scope;
    macro_bind(run, macro, scope, call);
    struct value text = exec_captured(run, macro->node->body);
    run->scope = outer;
    return text;
}

static void exec_call_block(struct run *run, const struct node *node)
{
    struct value callee = template_eval(run, node->a->a);
    struct call call = {0};
    template_eval_arguments(run, node->a->first, &call);
    struct keyword *keywords = template_alloc(run, call.n_keywords + 1, sizeof *keywords);
    if (keywords == NULL)
        return;
    if (call.n_keywords > 0)
        memcpy(keywords, call.keywords, call.n_keywords * sizeof *keywords);
    keywords[call.n_keywords++] = (struct keyword){view_of("caller"), macro_make(run, node)};
    call.keywords = keywords;
    if (!run->failed)
        value_put(run, run->out, template_call(run, callee, &call));
}

/* ---- Statements ------------------------------------------------------------------------------ */

static void exec_if(struct run *run, const struct node *node)
{
    while (node != NULL) {
        if (value_truth(template_eval(run, node->a))) {
            template_exec(run, node->body);
            return;
        }
        if (run->failed)
            return;
        const struct node *otherwise = node->otherwise;
        if (!node->has_elif) {
            template_exec(run, otherwise);
            return;
        }
        node = otherwise;
    }
}

static void exec_with(struct run *run, const struct node *node)
{
    struct scope *outer = run->scope, *scope = scope_open(run, outer);
    for (const struct node *at = node->first; at != NULL && scope != NULL; at = at->next)
        assign(run, scope, at->a, template_eval(run, at->b));
    if (scope == NULL)
        return;
    run->scope = scope;
    template_exec(run, node->body);
    run->scope = outer;
}

/* The text of body, which has a scope of its own, through the filters of its block. */
static struct value exec_filtered(struct run *run, const struct node *body,
                                  const struct node *filters)
{
    struct scope *outer = run->scope, *scope = scope_open(run, outer);
    if (scope == NULL)
        return value_undefined(NULL);
    run->scope = scope;
    struct value value = exec_captured(run, body);
    if (run->flow == FLOW_ON)
        value = exec_filters(run, filters, value);
    run->scope = outer;
    return value;
}

static void exec_statement(struct run *run, const struct node *node)
{
    struct value value;
    switch (node->kind) {
    case NODE_TEXT:
        value_put(run, run->out, node->value);
        break;
    case NODE_PRINT:
        value = template_eval(run, node->a);
        if (!run->failed)
            value_put(run, run->out, value);
        break;
    case NODE_FOR:
        exec_for(run, node);
        break;
    case NODE_IF:
        exec_if(run, node);
        break;
    case NODE_SET:
        value = template_eval(run, node->b);
        assign(run, run->scope, node->a, value);
        break;
    case NODE_SET_BLOCK:
        value = exec_filtered(run, node->body, node->b);
        if (run->flow == FLOW_ON)
            assign(run, run->scope, node->a, value);
        break;
    case NODE_MACRO:
        scope_set(run, run->scope, node->symbol, macro_make(run, node));
        break;
    case NODE_CALL_BLOCK:
        exec_call_block(run, node);
        break;
    case NODE_FILTER_BLOCK:
        value = exec_filtered(run, node->body, node->a);
        if (run->flow == FLOW_ON && !run->failed)
            value_put(run, run->out, value);
        break;
    case NODE_WITH:
        exec_with(run, node);
        break;
    case NODE_SCOPE:
        exec_in_scope(run, node->body, run->scope);
        break;
    case NODE_BLOCK:
        exec_in_scope(run, node->body, node->scoped ? run->scope : run->root);
        break;
    case NODE_DO:
        template_eval(run, node->a);
        break;
    case NODE_BREAK:
        run->flow = FLOW_BREAK;
        break;
    case NODE_CONTINUE:
        run->flow = FLOW_CONTINUE;
        break;
    default:
        template_fail(run, STATUS_INVALID, "this is not a statement");
    }
}

void template_exec(struct run *run, const struct node *first)
{
    if (!template_enter(run))
        return;
    for (const struct node *node = first; node != NULL && run->flow == FLOW_ON; node = node->next) {
        if (run->failed || !template_spend(run, 1))
            break;
        run->line = node->line;
        exec_statement(run, node);
    }
    run->depth--;
}

/* ---- Opening and rendering ------------------------------------------------------------------- */

const char chat_template_chatml[] =
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n";

enum status chat_template_open(struct chat_template **out, struct view source, struct error *error)
{
    struct error ignored;
    error = error != NULL ? error : &ignored;
    *out = NULL;
    struct arena *arena = arena_open(TEMPLATE_PARSE_MEMORY);
    struct chat_template *chat_template =
        arena != NULL ? arena_alloc(arena, sizeof *chat_template) : NULL;
    if (chat_template == NULL) {
        arena_close(arena);
        return error_memory(error, sizeof *chat_template);
    }
    chat_template->arena = arena;
    enum status status = template_parse(chat_template, source, error);
    if (status != STATUS_OK) {
        arena_close(arena);
        return status;
    }
    *out = chat_template;
    return STATUS_OK;
}

void chat_template_close(struct chat_template *chat_template)
{
    if (chat_template != NULL)
        arena_close(chat_template->arena);
}

enum status chat_template_render(const struct chat_template *chat_template, const json_t *variables,
                                 int64_t now_s, struct buffer *out, struct error *error)
{
    struct error ignored;
    struct run run = {.chat_template = chat_template,
                      .error = error != NULL ? error : &ignored,
                      .now_s = now_s,
                      .line = 1};
    struct buffer text = {0};
    if (variables == NULL || !json_is_object(variables))
        return error_set(error, STATUS_INVALID, "the variables of a template are a JSON object");
    run.arena = arena_open(TEMPLATE_MEMORY_LIMIT);
    if (run.arena == NULL)
        return error_memory(error, sizeof run);
    struct value given = value_from_json(&run, variables, 0);
    if (!run.failed) {
        run.variables = given.dict;
        run.root = scope_open(&run, NULL);
        run.scope = run.root;
        run.out = &text;
    }
    if (!run.failed)
        template_exec(&run, chat_template->body);
    if (!run.failed && !buffer_append(out, text.data, text.size))
        template_fail(&run, STATUS_MEMORY, "out of memory");
    buffer_free(&text);
    arena_close(run.arena);
    return run.failed ? run.error->code : STATUS_OK;
}
