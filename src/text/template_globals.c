/* The functions that every template has: range, dict, namespace, raise_exception, strftime_now, ...
 */
#include "text/template.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static struct value global_range(struct run *run, struct value self, struct call *call)
{
    int64_t bounds[3] = {0, 0, 1};
    (void)self;
    for (size_t i = 0; i < 3 && call->bound[i].kind != KIND_MISSING; i++)
        if (!value_integer(call->bound[i], &bounds[i]))
            return template_fail(run, STATUS_INVALID, "range() wants whole numbers, not %s",
                                 value_type(call->bound[i]));
    if (call->bound[1].kind == KIND_MISSING) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    int64_t start = bounds[0], stop = bounds[1], step = bounds[2];
    if (step == 0)
        return template_fail(run, STATUS_INVALID, "the step of range() is not 0");
    struct range *range = template_alloc(run, 1, sizeof *range);
    if (range == NULL)
        return value_undefined(NULL);
    uint64_t distance =
        step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    bool empty = step > 0 ? stop <= start : stop >= start;
    uint64_t count = empty ? 0 : (distance - 1) / stride + 1;
    if (count > TEMPLATE_RANGE_LIMIT)
        return template_fail(run, STATUS_LIMIT, "range() gives more than %d numbers",
                             TEMPLATE_RANGE_LIMIT);
    *range = (struct range){start, count > 1 ? step : 1, (size_t)count};
    return (struct value){.kind = KIND_RANGE, .range = range};
}

/* The entries of a dict, or pairs, into dict. */
void template_update(struct run *run, struct dict *dict, const struct call *call)
{
    for (size_t i = 0; i < call->n_positional && dict != NULL; i++) {
        struct value given = call->positional[i];
        if (given.kind == KIND_DICT) {
            for (size_t j = 0; j < given.dict->count && template_spend(run, 1); j++)
                dict_set(run, dict, given.dict->entries[j].key, given.dict->entries[j].value);
            continue;
        }
        struct list *pairs = value_elements(run, given);
        for (size_t j = 0; pairs != NULL && j < pairs->count && template_spend(run, 1); j++) {
            struct list *pair = value_elements(run, pairs->items[j]);
            if (pair == NULL || pair->count != 2) {
                template_fail(run, STATUS_INVALID, "a dict is made of pairs");
                return;
            }
            dict_set(run, dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < call->n_keywords; i++)
        dict_set(run, dict,
                 value_borrow(run, call->keywords[i].name.data, call->keywords[i].name.size),
                 call->keywords[i].value);
}

static struct value global_dict(struct run *run, struct value self, struct call *call)
{
    struct dict *dict = dict_open(run);
    (void)self;
    if (call->n_positional > 1)
        return template_fail(run, STATUS_INVALID, "dict() takes at most one argument");
    template_update(run, dict, call);
    return value_dict(dict);
}

static struct value global_namespace(struct run *run, struct value self, struct call *call)
{
    struct value space = global_dict(run, self, call);
    if (space.kind == KIND_DICT)
        space.kind = KIND_NAMESPACE;
    return space;
}

static struct value global_cycler(struct run *run, struct value self, struct call *call)
{
    (void)self;
    if (call->n_positional == 0 || call->n_keywords > 0)
        return template_fail(run, STATUS_INVALID, "cycler() wants at least one item");
    struct list *items = list_open(run, call->n_positional);
    for (size_t i = 0; i < call->n_positional; i++)
        list_push(run, items, call->positional[i]);
    return value_list(items, KIND_CYCLER);
}

static struct value global_joiner(struct run *run, struct value self, struct call *call)
{
    struct joiner *joiner = template_alloc(run, 1, sizeof *joiner);
    (void)self;
    if (joiner == NULL)
        return value_undefined(NULL);
    joiner->separator =
        call->bound[0].kind != KIND_MISSING ? call->bound[0] : value_borrow(run, ", ", 2);
    return (struct value){.kind = KIND_JOINER, .joiner = joiner};
}

static struct value global_raise_exception(struct run *run, struct value self, struct call *call)
{
    (void)self;
    struct value text = value_string(run, call->bound[0]);
    if (run->failed)
        return text;
    return template_fail(run, STATUS_INVALID, "the template refuses its input: %.*s",
                         (int)MIN(text.string->size, 200), text.string->data);
}

static struct value global_strftime_now(struct run *run, struct value self, struct call *call)
{
    time_t now = (time_t)run->now_s;
    struct tm parts;
    struct buffer text = {0};
    (void)self;
    if (call->bound[0].kind != KIND_STRING)
        return template_fail(run, STATUS_INVALID, "strftime_now() wants a format");
    if (gmtime_r(&now, &parts) == NULL)
        return template_fail(run, STATUS_INVALID, "the time is out of range");
    const struct string *format = call->bound[0].string;
    for (size_t i = 0; i < format->size && !run->failed; i++) {
        if (format->data[i] != '%' || i + 1 == format->size) {
            template_put(run, &text, format->data + i, 1);
            continue;
        }
        /* One conversion at a time: "%" and its flags up to a letter. */
        char conversion[8] = "%", out[128];
        size_t n = 1;
        do {
            conversion[n++] = format->data[++i];
        } while (n < 4 && i + 1 < format->size && strchr("-_0^#EO", format->data[i]) != NULL);
        conversion[n] = '\0';
        if (conversion[n - 1] == 'f')
            template_put_text(run, &text, "000000");
        else if (strchr("zZ", conversion[n - 1]) == NULL) /* the time has no zone: both are empty */
            template_put(run, &text, out, strftime(out, sizeof out, conversion, &parts));
    }
    return value_take(run, &text);
}

const struct builtin *template_find_global(struct view name)
{
    static const struct builtin globals[] = {
        {"range", global_range, "start stop step", 1},
        {"dict", global_dict, "*", 0},
        {"namespace", global_namespace, "*", 0},
        {"cycler", global_cycler, "*", 0},
        {"joiner", global_joiner, "sep", 0},
        {"lipsum", NULL, "*", 0},
        {"raise_exception", global_raise_exception, "message", 1},
        {"strftime_now", global_strftime_now, "format", 1},
    };
    return template_find_in(globals, ARRAY_COUNT(globals), name);
}
