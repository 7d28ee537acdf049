/* Expressions: the value of a tree's node, with Python's arithmetic. */
#include "text/template.h"

#include <math.h>
#include <string.h>

/* ---- Attributes and items -------------------------------------------------------------------- */

static struct value loop_attribute(struct run *run, struct loop *loop, struct view name)
{
    static const char *const names[] = {"index",  "index0",   "revindex", "revindex0",
                                        "first",  "last",     "length",   "depth",
                                        "depth0", "previtem", "nextitem"};
    size_t which = 0;
    while (which < ARRAY_COUNT(names) && !view_equal(name, view_of(names[which])))
        which++;
    switch (which) {
    case 0:
        return value_int(loop->index0 + 1);
    case 1:
        return value_int(loop->index0);
    case 2:
        return value_int((int64_t)loop_length(run, loop) - loop->index0);
    case 3:
        return value_int((int64_t)loop_length(run, loop) - loop->index0 - 1);
    case 4:
        return value_bool(loop->index0 == 0);
    case 5:
        return value_bool(!loop_peek(run, loop));
    case 6:
        return value_int((int64_t)loop_length(run, loop));
    case 7:
        return value_int(loop->depth0 + 1);
    case 8:
        return value_int(loop->depth0);
    case 9:
        return loop->index0 == 0 ? value_undefined(NULL) : loop->before;
    case 10:
        return loop_peek(run, loop) ? loop->after : value_undefined(NULL);
    default:
        return (struct value){.kind = KIND_MISSING};
    }
}

static struct value macro_attribute(struct run *run, struct macro *macro, struct view name)
{
    if (view_equal(name, view_of("name")))
        return (struct value){.kind = KIND_STRING, .string = macro->name};
    if (view_equal(name, view_of("caller")))
        return value_bool(macro->node->uses_caller);
    if (view_equal(name, view_of("catch_kwargs")))
        return value_bool(macro->node->uses_kwargs);
    if (view_equal(name, view_of("catch_varargs")))
        return value_bool(macro->node->uses_varargs);
    if (!view_equal(name, view_of("arguments")))
        return (struct value){.kind = KIND_MISSING};
    struct list *list = list_open(run, 4);
    for (const struct node *node = macro->node->first; node != NULL; node = node->next)
        list_push(run, list, node->value);
    return value_list(list, KIND_TUPLE);
}

/* What Python's getattr finds, or KIND_MISSING. */
static struct value object_attribute(struct run *run, struct value value, struct view name)
{
    const struct value *found = NULL;
    if (value.kind == KIND_LOOP) {
        struct value attribute = loop_attribute(run, value.loop, name);
        if (attribute.kind != KIND_MISSING)
            return attribute;
    } else if (value.kind == KIND_MACRO) {
        return macro_attribute(run, value.macro, name);
    } else if (value.kind == KIND_NAMESPACE) {
        found = name.size > 0 && name.data[0] == '_' ? NULL : dict_find_text(value.dict, name);
    } else if (value.kind == KIND_TUPLE && value.list->flavour == LIST_GROUP) {
        found = view_equal(name, view_of("grouper")) ? &value.list->items[0]
                : view_equal(name, view_of("list"))  ? &value.list->items[1]
                                                     : NULL;
    } else if (value.kind == KIND_CYCLER && view_equal(name, view_of("current"))) {
        found = &value.list->items[value.list->position];
    }
    if (found != NULL)
        return *found;
    const struct builtin *method = template_find_method(value.kind, name);
    if (method != NULL)
        return value_method(run, value, method);
    return (struct value){.kind = KIND_MISSING};
}

/* value[key] as Python's sequences have it, or KIND_MISSING. */
static struct value object_item(struct run *run, struct value value, struct value key)
{
    const struct value missing = {.kind = KIND_MISSING};
    int64_t index;
    size_t length;
    if (value.kind == KIND_DICT) {
        if (key.kind == KIND_LIST || key.kind == KIND_DICT)
            return missing;
        const struct value *found = dict_find(run, value.dict, key);
        return found != NULL ? *found : missing;
    }
    if (value.kind != KIND_STRING && value.kind != KIND_LIST && value.kind != KIND_TUPLE &&
        value.kind != KIND_RANGE)
        return missing;
    if (!value_integer(key, &index) || !value_length(value, &length))
        return missing;
    if (index < 0)
        index += (int64_t)length;
    if (index < 0 || (size_t)index >= length)
        return missing;
    return value_at(run, value, (size_t)index);
}

struct value template_attribute(struct run *run, struct value value, struct value name)
{
    if (value.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, value);
    struct view view = string_view(name.string);
    struct value found = object_attribute(run, value, view);
    if (found.kind == KIND_MISSING)
        found = object_item(run, value, name);
    return found.kind == KIND_MISSING ? value_undefined(name.string) : found;
}

struct value template_item(struct run *run, struct value value, struct value key)
{
    if (value.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, value);
    struct value found = object_item(run, value, key);
    if (found.kind != KIND_MISSING)
        return found;
    if (key.kind != KIND_STRING)
        return value_undefined(NULL);
    found = object_attribute(run, value, string_view(key.string));
    return found.kind == KIND_MISSING ? value_undefined(NULL) : found;
}

/* ---- Slices ---------------------------------------------------------------------------------- */

/* A bound of a slice as Python clips it: for steps forward to [0, length], backward to [-1, length
 * - 1]. */
static int64_t slice_bound(struct run *run, struct value bound, int64_t length, int64_t step,
                           bool is_stop)
{
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length, index;
    if (bound.kind == KIND_NONE)
        return is_stop == (step > 0) ? high : low;
    if (!value_integer(bound, &index)) {
        template_fail(run, STATUS_INVALID, "a slice wants whole numbers, not %s",
                      value_type(bound));
        return 0;
    }
    if (index < 0)
        index += length;
    return MIN(MAX(index, low), high);
}

static struct value slice_range(struct run *run, const struct range *range, int64_t start,
                                int64_t step, size_t count)
{
    struct range *part = template_alloc(run, 1, sizeof *part);
    if (part == NULL)
        return value_undefined(NULL);
    int64_t clipped = MIN(MAX(step, -(int64_t)TEMPLATE_RANGE_LIMIT), (int64_t)TEMPLATE_RANGE_LIMIT);
    *part = (struct range){range->start + start * range->step, range->step * clipped, count};
    return (struct value){.kind = KIND_RANGE, .range = part};
}

static struct value slice(struct run *run, struct value value, int64_t start, int64_t step,
                          size_t count)
{
    if (value.kind == KIND_RANGE)
        return slice_range(run, value.range, start, step, count);
    if (value.kind == KIND_STRING && step == 1) {
        struct view part = string_part(value.string, (size_t)start, (size_t)start + count);
        template_spend(run,
                       value.string->length == value.string->size ? 0 : value.string->size / 8);
        return value_borrow(run, part.data, part.size);
    }
    struct list *source = value_elements(run, value);
    struct list *part = list_open(run, count);
    for (size_t i = 0; source != NULL && i < count && template_spend(run, 1); i++)
        list_push(run, part, source->items[start + (int64_t)i * step]);
    if (value.kind != KIND_STRING)
        return value_list(part, value.kind);
    struct buffer text = {0};
    for (size_t i = 0; part != NULL && i < part->count && !run->failed; i++)
        value_put(run, &text, part->items[i]);
    return value_take(run, &text);
}

static struct value eval_slice(struct run *run, const struct node *node)
{
    struct value value = template_eval(run, node->a);
    struct value start = node->b != NULL ? template_eval(run, node->b) : value_none();
    struct value stop = node->c != NULL ? template_eval(run, node->c) : value_none();
    struct value step_value = node->d != NULL ? template_eval(run, node->d) : value_none();
    int64_t step = 1;
    size_t length;
    if (run->failed)
        return value_undefined(NULL);
    if (value.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, value);
    if (value.kind != KIND_STRING && value.kind != KIND_LIST && value.kind != KIND_TUPLE &&
        value.kind != KIND_RANGE)
        return template_fail(run, STATUS_INVALID, "a %s has no slices", value_type(value));
    if (step_value.kind != KIND_NONE && (!value_integer(step_value, &step) || step == 0))
        return template_fail(run, STATUS_INVALID, "the step of a slice is a whole number but 0");
    value_length(value, &length);
    int64_t first = slice_bound(run, start, (int64_t)length, step, false);
    int64_t end = slice_bound(run, stop, (int64_t)length, step, true);
    size_t count = 0;
    if (step > 0 && end > first)
        count = (size_t)((end - first - 1) / step) + 1;
    else if (step < 0 && end < first)
        count = (size_t)((first - end - 1) / -(step + 1 == 0 ? -1 : MAX(step, -INT64_MAX))) + 1;
    if (run->failed)
        return value_undefined(NULL);
    return slice(run, value, first, count > 1 ? step : 1, count);
}

/* ---- Arithmetic ------------------------------------------------------------------------------ */

static struct value overflow(struct run *run)
{
    return template_fail(run, STATUS_LIMIT, "a whole number does not fit into 64 bits");
}

static struct value divide_integers(struct run *run, unsigned op, int64_t a, int64_t b)
{
    if (b == 0)
        return template_fail(run, STATUS_INVALID, "division by zero");
    if (op == '/')
        return value_float((double)a / (double)b);
    if (b == -1) {
        if (op == '%')
            return value_int(0);
        return a == INT64_MIN ? overflow(run) : value_int(-a);
    }
    int64_t quotient = a / b, rest = a % b;
    bool below = rest != 0 && (rest < 0) != (b < 0); /* Python rounds down */
    return value_int(op == '%' ? rest + (below ? b : 0) : quotient - below);
}

static struct value power_integers(struct run *run, int64_t base, int64_t exponent)
{
    if (exponent < 0) {
        if (base == 0)
            return template_fail(run, STATUS_INVALID, "0 has no negative power");
        return value_float(pow((double)base, (double)exponent));
    }
    int64_t result = 1;
    if (base == 0 || base == 1 || base == -1)
        return value_int(exponent == 0 ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base);
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(result, base, &result))
            return overflow(run);
    return value_int(result);
}

static struct value binary_integers(struct run *run, unsigned op, int64_t a, int64_t b)
{
    int64_t result;
    switch (op) {
    case '+':
        return __builtin_add_overflow(a, b, &result) ? overflow(run) : value_int(result);
    case '-':
        return __builtin_sub_overflow(a, b, &result) ? overflow(run) : value_int(result);
    case '*':
        return __builtin_mul_overflow(a, b, &result) ? overflow(run) : value_int(result);
    case OPERATOR('*', '*'):
        return power_integers(run, a, b);
    default:
        return divide_integers(run, op, a, b);
    }
}

/* The rest has the sign of b, as in Python. */
static double modulo(double a, double b)
{
    double rest = fmod(a, b);
    if (rest == 0)
        return copysign(0.0, b);
    return (rest < 0) != (b < 0) ? rest + b : rest;
}

static double floor_divide(double a, double b)
{
    double rest = fmod(a, b), quotient = (a - rest) / b;
    if (rest != 0 && (rest < 0) != (b < 0))
        quotient -= 1;
    if (quotient == 0)
        return copysign(0.0, a / b);
    double whole = floor(quotient);
    return quotient - whole > 0.5 ? whole + 1 : whole;
}

static struct value binary_floats(struct run *run, unsigned op, double a, double b)
{
    double result;
    switch (op) {
    case '+':
        return value_float(a + b);
    case '-':
        return value_float(a - b);
    case '*':
        return value_float(a * b);
    case OPERATOR('*', '*'):
        if ((a == 0 && b < 0) || (a < 0 && b != floor(b)))
            return template_fail(run, STATUS_INVALID, "the power is not a real number");
        result = pow(a, b);
        if (isinf(result) && !isinf(a) && !isinf(b))
            return template_fail(run, STATUS_INVALID, "the power is too large");
        return value_float(result);
    default:
        if (b == 0)
            return template_fail(run, STATUS_INVALID, "division by zero");
        return value_float(op == '/' ? a / b : op == '%' ? modulo(a, b) : floor_divide(a, b));
    }
}

static struct value join_lists(struct run *run, struct value a, struct value b)
{
    struct list *joined = list_open(run, a.list->count + b.list->count);
    for (size_t i = 0; i < a.list->count; i++)
        list_push(run, joined, a.list->items[i]);
    for (size_t i = 0; i < b.list->count; i++)
        list_push(run, joined, b.list->items[i]);
    return value_list(joined, a.kind);
}

static struct value repeat(struct run *run, struct value value, int64_t times)
{
    if (value.kind == KIND_STRING) {
        struct buffer text = {0};
        if (value.string->size > 0 && times > (int64_t)(TEMPLATE_TEXT_LIMIT / value.string->size))
            return template_fail(run, STATUS_LIMIT, "a text grows beyond %u MiB",
                                 TEMPLATE_TEXT_LIMIT >> 20);
        for (int64_t i = 0; i < times && value.string->size > 0 && template_spend(run, 1); i++)
            value_put(run, &text, value);
        struct value repeated = value_take(run, &text);
        if (repeated.kind == KIND_STRING)
            repeated.string->safe = value.string->safe;
        return repeated;
    }
    struct list *list = list_open(run, 0);
    for (int64_t i = 0; i < times && value.list->count > 0 && template_spend(run, 1); i++)
        for (size_t j = 0; j < value.list->count && template_spend(run, 1); j++)
            list_push(run, list, value.list->items[j]);
    return value_list(list, value.kind);
}

/* Escaped text stays escaped: what joins it is escaped too. */
static struct value join_texts(struct run *run, struct value a, struct value b)
{
    if (a.string->safe == b.string->safe)
        return string_join(run, a, b);
    struct buffer text = {0};
    value_put_escaped(run, &text, a);
    value_put_escaped(run, &text, b);
    struct value joined = value_take(run, &text);
    if (joined.kind == KIND_STRING)
        joined.string->safe = true;
    return joined;
}

static bool is_repeatable(struct value value)
{
    return value.kind == KIND_STRING || value.kind == KIND_LIST || value.kind == KIND_TUPLE;
}

struct value template_binary(struct run *run, unsigned op, struct value a, struct value b)
{
    int64_t x, y;
    if (run->failed)
        return value_undefined(NULL);
    if (value_integer(a, &x) && value_integer(b, &y))
        return binary_integers(run, op, x, y);
    if (value_is_number(a) && value_is_number(b))
        return binary_floats(run, op, value_real(a), value_real(b));
    if (op == '%' && a.kind == KIND_STRING)
        return template_percent(run, a.string, b);
    if (op == '+' && a.kind == KIND_STRING && b.kind == KIND_STRING)
        return join_texts(run, a, b);
    if (op == '+' && a.kind == b.kind && (a.kind == KIND_LIST || a.kind == KIND_TUPLE))
        return join_lists(run, a, b);
    if (op == '*' && is_repeatable(a) && value_integer(b, &y))
        return repeat(run, a, y);
    if (op == '*' && is_repeatable(b) && value_integer(a, &x))
        return repeat(run, b, x);
    if (a.kind == KIND_UNDEFINED || b.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, a.kind == KIND_UNDEFINED ? a : b);
    const char sign[] = {(char)(op & 0xFF), (char)(op >> 8), '\0'};
    return template_fail(run, STATUS_INVALID, "'%s' does not work between a %s and a %s", sign,
                         value_type(a), value_type(b));
}

static struct value eval_sign(struct run *run, const struct node *node)
{
    struct value value = template_eval(run, node->a);
    int64_t integer;
    if (run->failed)
        return value;
    if (value.kind == KIND_FLOAT)
        return value_float(node->kind == NODE_NEGATE ? -value.real : value.real);
    if (value.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, value);
    if (!value_integer(value, &integer))
        return template_fail(run, STATUS_INVALID, "a %s has no sign", value_type(value));
    if (integer == INT64_MIN && node->kind == NODE_NEGATE)
        return overflow(run);
    return value_int(node->kind == NODE_NEGATE ? -integer : integer);
}

static bool compare(struct run *run, unsigned op, struct value a, struct value b)
{
    bool unordered;
    int order;
    switch (op) {
    case OPERATOR('=', '='):
        return value_equal(run, a, b);
    case OPERATOR('!', '='):
        return !value_equal(run, a, b);
    case 'i':
        return value_contains(run, b, a);
    case 'n':
        return !value_contains(run, b, a);
    default:
        order = value_compare(run, a, b, &unordered);
        return !unordered && (op == '<'                  ? order < 0
                              : op == '>'                ? order > 0
                              : op == OPERATOR('<', '=') ? order <= 0
                                                         : order >= 0);
    }
}

static struct value eval_compare(struct run *run, const struct node *node)
{
    struct value left = template_eval(run, node->a);
    for (const struct node *operand = node->first; operand != NULL; operand = operand->next) {
        struct value right = template_eval(run, operand->a);
        if (run->failed || !compare(run, operand->op, left, right))
            return value_bool(false);
        left = right;
    }
    return value_bool(true);
}

static struct value eval_concat(struct run *run, const struct node *node)
{
    struct value joined = value_string(run, template_eval(run, node->first));
    for (const struct node *operand = node->first->next; operand != NULL && !run->failed;
         operand = operand->next) {
        struct value text = value_string(run, template_eval(run, operand));
        if (!run->failed)
            joined = string_join(run, joined, text);
    }
    if (!run->failed && joined.string->safe) {
        /* Without autoescape "~" makes a plain text of escaped ones. */
        return value_borrow(run, joined.string->data, joined.string->size);
    }
    return joined;
}

/* ---- Calls ----------------------------------------------------------------------------------- */

static void push_positional(struct run *run, struct call *call, size_t *capacity,
                            struct value value)
{
    if (call->n_positional == *capacity) {
        size_t grown = MAX(4, 2 * *capacity);
        struct value *values = template_alloc(run, grown, sizeof *values);
        if (values == NULL)
            return;
        if (call->n_positional > 0)
            memcpy(values, call->positional, call->n_positional * sizeof *values);
        call->positional = values;
        *capacity = grown;
    }
    call->positional[call->n_positional++] = value;
}

static void push_keyword(struct run *run, struct call *call, struct value name, struct value value)
{
    if (name.kind != KIND_STRING) {
        template_fail(run, STATUS_INVALID, "the names of arguments are texts");
        return;
    }
    struct view view = string_view(name.string);
    for (size_t i = 0; i < call->n_keywords; i++)
        if (view_equal(call->keywords[i].name, view))
            template_fail(run, STATUS_INVALID, "the argument '%.*s' is given twice",
                          (int)MIN(view.size, 60), view.data);
    /* Grown by one each time: keywords are few. */
    struct keyword *keywords = template_alloc(run, call->n_keywords + 1, sizeof *keywords);
    if (keywords == NULL)
        return;
    if (call->n_keywords > 0)
        memcpy(keywords, call->keywords, call->n_keywords * sizeof *keywords);
    keywords[call->n_keywords] = (struct keyword){view, value};
    call->keywords = keywords;
    call->n_keywords++;
}

void template_eval_arguments(struct run *run, const struct node *first, struct call *call)
{
    size_t capacity = 0;
    for (const struct node *node = first; node != NULL && !run->failed; node = node->next) {
        struct value value = template_eval(run, node->a);
        if (node->op == '=') {
            push_keyword(run, call, node->value, value);
        } else if (node->op == '*') {
            struct list *list = value_elements(run, value);
            for (size_t i = 0; list != NULL && i < list->count && !run->failed; i++)
                push_positional(run, call, &capacity, list->items[i]);
        } else if (node->op == OPERATOR('*', '*')) {
            if (value.kind != KIND_DICT)
                template_fail(run, STATUS_INVALID, "'**' wants a dict");
            for (size_t i = 0; !run->failed && i < value.dict->count; i++)
                push_keyword(run, call, value.dict->entries[i].key, value.dict->entries[i].value);
        } else {
            push_positional(run, call, &capacity, value);
        }
    }
}

/* Gives each parameter ("a b c") its argument; false after an error. */
static bool bind(struct run *run, const struct builtin *builtin, struct call *call)
{
    size_t index = 0, used = 0;
    const char *at = builtin->parameters;
    for (size_t i = 0; i < BUILTIN_PARAMETERS; i++)
        call->bound[i] = (struct value){.kind = KIND_MISSING};
    for (; *at != '\0' && index < BUILTIN_PARAMETERS; index++) {
        size_t size = strcspn(at, " ");
        struct view name = {at, size};
        struct value value = {.kind = KIND_MISSING};
        if (index < call->n_positional)
            value = call->positional[index];
        for (size_t i = 0; i < call->n_keywords; i++) {
            if (view_equal(call->keywords[i].name, name) && value.kind == KIND_MISSING) {
                value = call->keywords[i].value;
                used++;
            }
        }
        if (value.kind == KIND_MISSING && index < builtin->required)
            template_fail(run, STATUS_INVALID, "'%s' wants the argument '%.*s'", builtin->name,
                          (int)size, at);
        call->bound[index] = value;
        at += size;
        at += *at == ' ';
    }
    if (call->n_positional > index || used != call->n_keywords)
        template_fail(run, STATUS_INVALID, "'%s' is given more arguments than it takes (%s)",
                      builtin->name, index > 0 ? builtin->parameters : "none");
    return !run->failed;
}

struct value template_invoke(struct run *run, const struct builtin *builtin, struct value self,
                             struct call *call)
{
    if (run->failed)
        return value_undefined(NULL);
    if (builtin->function == NULL)
        return template_fail(run, STATUS_UNSUPPORTED, "'%s' is not supported", builtin->name);
    if (builtin->parameters[0] != '*' && !bind(run, builtin, call))
        return value_undefined(NULL);
    return builtin->function(run, self, call);
}

struct value template_call(struct run *run, struct value callee, struct call *call)
{
    switch (callee.kind) {
    case KIND_METHOD:
        return template_invoke(run, callee.method->builtin, callee.method->self, call);
    case KIND_BUILTIN:
        return template_invoke(run, callee.builtin, value_undefined(NULL), call);
    case KIND_MACRO:
        return template_macro_call(run, callee.macro, call);
    case KIND_LOOP:
        if (call->n_positional != 1 || call->n_keywords != 0)
            return template_fail(run, STATUS_INVALID, "loop() wants one argument");
        return template_loop_call(run, callee.loop, call->positional[0]);
    case KIND_JOINER:
        if (callee.joiner->used)
            return callee.joiner->separator;
        callee.joiner->used = true;
        return value_borrow(run, "", 0);
    case KIND_UNDEFINED:
        return template_fail_undefined(run, callee);
    default:
        return template_fail(run, STATUS_INVALID, "a %s cannot be called", value_type(callee));
    }
}

static struct value eval_call(struct run *run, const struct node *node)
{
    struct value callee = template_eval(run, node->a);
    struct call call = {0};
    template_eval_arguments(run, node->first, &call);
    run->line = node->line;
    return run->failed ? value_undefined(NULL) : template_call(run, callee, &call);
}

struct value template_filter(struct run *run, const struct node *node, struct value value)
{
    struct call call = {0};
    if (node->builtin == NULL) {
        run->line = node->line;
        return template_fail(run, STATUS_INVALID, "no %s is named '%.*s'",
                             node->kind == NODE_TEST ? "test" : "filter",
                             (int)MIN(node->value.string->size, 60), node->value.string->data);
    }
    template_eval_arguments(run, node->first, &call);
    run->line = node->line;
    return template_invoke(run, node->builtin, value, &call);
}

/* ---- Nodes ----------------------------------------------------------------------------------- */

static struct value eval_elements(struct run *run, const struct node *node)
{
    struct list *list = list_open(run, 0);
    for (const struct node *at = node->first; at != NULL && !run->failed; at = at->next)
        list_push(run, list, template_eval(run, at));
    return value_list(list, node->kind == NODE_LIST ? KIND_LIST : KIND_TUPLE);
}

static struct value eval_dict(struct run *run, const struct node *node)
{
    struct dict *dict = dict_open(run);
    for (const struct node *at = node->first; at != NULL && !run->failed; at = at->next->next) {
        struct value key = template_eval(run, at);
        dict_set(run, dict, key, template_eval(run, at->next));
    }
    return value_dict(dict);
}

static struct value eval_condition(struct run *run, const struct node *node)
{
    if (value_truth(template_eval(run, node->a)))
        return template_eval(run, node->b);
    return node->c != NULL ? template_eval(run, node->c) : value_undefined(NULL);
}

static struct value eval_logic(struct run *run, const struct node *node)
{
    struct value left = template_eval(run, node->a);
    bool decides = value_truth(left) == (node->kind == NODE_OR);
    return decides || run->failed ? left : template_eval(run, node->b);
}

static struct value eval_node(struct run *run, const struct node *node)
{
    struct value value;
    switch (node->kind) {
    case NODE_CONSTANT:
        return node->value;
    case NODE_NAME:
        return scope_get(run, node->symbol);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_elements(run, node);
    case NODE_DICT:
        return eval_dict(run, node);
    case NODE_ATTRIBUTE:
        value = template_eval(run, node->a);
        return run->failed ? value : template_attribute(run, value, node->value);
    case NODE_ITEM:
        value = template_eval(run, node->a);
        struct value key = template_eval(run, node->b);
        return run->failed ? key : template_item(run, value, key);
    case NODE_SLICE:
        return eval_slice(run, node);
    case NODE_CALL:
        return eval_call(run, node);
    case NODE_FILTER:
    case NODE_TEST:
        value = template_eval(run, node->a);
        return run->failed ? value : template_filter(run, node, value);
    case NODE_NOT:
        return value_bool(!value_truth(template_eval(run, node->a)));
    case NODE_NEGATE:
    case NODE_PLUS:
        return eval_sign(run, node);
    case NODE_AND:
    case NODE_OR:
        return eval_logic(run, node);
    case NODE_BINARY:
        value = template_eval(run, node->a);
        return template_binary(run, node->op, value, template_eval(run, node->b));
    case NODE_CONCAT:
        return eval_concat(run, node);
    case NODE_COMPARE:
        return eval_compare(run, node);
    case NODE_CONDITION:
        return eval_condition(run, node);
    default:
        return template_fail(run, STATUS_INVALID, "this is not an expression");
    }
}

struct value template_eval(struct run *run, const struct node *node)
{
    if (run->failed || !template_spend(run, 1))
        return value_undefined(NULL);
    run->line = node->line;
    if (!template_enter(run))
        return value_undefined(NULL);
    struct value value = eval_node(run, node);
    run->depth--;
    return run->failed ? value_undefined(NULL) : value;
}
