/* Methods of Python's list, dict, tuple and range and of Jinja2's loop and cycler; the table of all
 * methods. Lists and dicts that the template holds may be changed, as Jinja2's sandbox allows it.
 */
#include "text/template.h"

#include <math.h>
#include <string.h>

/* ---- Lists ----------------------------------------------------------------------------------- */

/* The place that a possibly negative index means, for inserting where is_insert. */
static bool list_place(const struct list *list, int64_t index, bool is_insert, size_t *out)
{
    int64_t count = (int64_t)list->count;
    index = index < 0 ? index + count : index;
    if (is_insert)
        index = MIN(MAX(index, 0), count);
    *out = (size_t)index;
    return index >= 0 && (is_insert || index < count);
}

static struct value list_append(struct run *run, struct value self, struct call *call)
{
    list_push(run, self.list, call->bound[0]);
    return value_none();
}

static struct value list_insert(struct run *run, struct value self, struct call *call)
{
    size_t place;
    list_place(self.list, template_integer(run, call->bound[0], 0), true, &place);
    list_push(run, self.list, call->bound[1]);
    if (run->failed || !template_spend(run, self.list->count - place))
        return value_none();
    memmove(&self.list->items[place + 1], &self.list->items[place],
            (self.list->count - 1 - place) * sizeof *self.list->items);
    self.list->items[place] = call->bound[1];
    return value_none();
}

static struct value list_take(struct run *run, struct list *list, size_t place)
{
    struct value value = list->items[place];
    template_spend(run, list->count - place);
    memmove(&list->items[place], &list->items[place + 1],
            (list->count - place - 1) * sizeof *list->items);
    list->count--;
    return value;
}

static struct value list_pop(struct run *run, struct value self, struct call *call)
{
    size_t place;
    if (!list_place(self.list, template_integer(run, call->bound[0], -1), false, &place))
        return template_fail(run, STATUS_INVALID, "pop() is beyond the list's %zu elements",
                             self.list->count);
    return list_take(run, self.list, place);
}

static struct value list_extend(struct run *run, struct value self, struct call *call)
{
    struct list *more = value_elements(run, call->bound[0]);
    size_t count = more != NULL ? more->count : 0;
    for (size_t i = 0; i < count && template_spend(run, 1); i++)
        list_push(run, self.list, more->items[i]);
    return value_none();
}

static struct value list_clear(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    self.list->count = 0;
    return value_none();
}

static struct value list_reverse(struct run *run, struct value self, struct call *call)
{
    (void)call;
    template_spend(run, self.list->count);
    list_flip(self.list);
    return value_none();
}

static struct value list_sort(struct run *run, struct value self, struct call *call)
{
    if (call->n_positional > 0 || value_truth(call->bound[0]))
        return template_fail(run, STATUS_INVALID, "sort() takes only reverse=true or false");
    list_sort_values(run, self.list, template_flag(call->bound[1]));
    return value_none();
}

static struct value list_copy(struct run *run, struct value self, struct call *call)
{
    struct value copy = value_list(list_open(run, self.list->count), KIND_LIST);
    call->bound[0] = self;
    if (copy.kind == KIND_LIST)
        list_extend(run, copy, call);
    return copy;
}

/* The place of the first equal element. */
static bool list_find(struct run *run, struct value self, struct value item, size_t *place)
{
    size_t count;
    value_length(self, &count);
    for (*place = 0; *place < count && template_spend(run, 1); ++*place)
        if (value_equal(run, value_at(run, self, *place), item))
            return true;
    template_fail(run, STATUS_INVALID, "the %s has no such element", value_type(self));
    return false;
}

static struct value list_index(struct run *run, struct value self, struct call *call)
{
    size_t place;
    return list_find(run, self, call->bound[0], &place) ? value_int((int64_t)place) : value_none();
}

static struct value list_remove(struct run *run, struct value self, struct call *call)
{
    size_t place;
    if (list_find(run, self, call->bound[0], &place))
        list_take(run, self.list, place);
    return value_none();
}

static struct value list_count(struct run *run, struct value self, struct call *call)
{
    size_t length, count = 0;
    value_length(self, &length);
    for (size_t i = 0; i < length && template_spend(run, 1); i++)
        count += value_equal(run, value_at(run, self, i), call->bound[0]);
    return value_int((int64_t)count);
}

/* ---- Dicts ----------------------------------------------------------------------------------- */

static struct value dict_get(struct run *run, struct value self, struct call *call)
{
    const struct value *found = dict_find(run, self.dict, call->bound[0]);
    if (found != NULL)
        return *found;
    return call->bound[1].kind != KIND_MISSING ? call->bound[1] : value_none();
}

static struct value dict_keys(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return value_list(dict_list(run, self.dict, LIST_KEYS), KIND_VIEW);
}

static struct value dict_values(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return value_list(dict_list(run, self.dict, LIST_VALUES), KIND_VIEW);
}

static struct value dict_items(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return value_list(dict_list(run, self.dict, LIST_ITEMS), KIND_VIEW);
}

static struct value dict_pop(struct run *run, struct value self, struct call *call)
{
    struct value *found = dict_find(run, self.dict, call->bound[0]);
    if (found == NULL)
        return call->bound[1].kind != KIND_MISSING
                   ? call->bound[1]
                   : template_fail(run, STATUS_INVALID, "pop() does not find the key");
    struct value value = *found;
    dict_remove(run, self.dict, found);
    return value;
}

static struct value dict_popitem(struct run *run, struct value self, struct call *call)
{
    (void)call;
    if (self.dict->count == 0)
        return template_fail(run, STATUS_INVALID, "popitem() of an empty dict");
    struct entry *last = &self.dict->entries[self.dict->count - 1];
    struct value pair = list_pair(run, last->key, last->value);
    dict_remove(run, self.dict, &last->value);
    return pair;
}

static struct value dict_update(struct run *run, struct value self, struct call *call)
{
    template_update(run, self.dict, call);
    return value_none();
}

static struct value dict_setdefault(struct run *run, struct value self, struct call *call)
{
    const struct value *found = dict_find(run, self.dict, call->bound[0]);
    if (found != NULL)
        return *found;
    struct value value = call->bound[1].kind != KIND_MISSING ? call->bound[1] : value_none();
    dict_set(run, self.dict, call->bound[0], value);
    return value;
}

static struct value dict_clear(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    *self.dict = (struct dict){0};
    return value_none();
}

static struct value dict_copy(struct run *run, struct value self, struct call *call)
{
    struct dict *copy = dict_open(run);
    (void)call;
    template_update(run, copy, &(struct call){.positional = &self, .n_positional = 1});
    return value_dict(copy);
}

/* ---- Numbers, loops, cyclers ----------------------------------------------------------------- */

static struct value float_is_integer(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(isfinite(self.real) && self.real == floor(self.real));
}

static struct value loop_cycle(struct run *run, struct value self, struct call *call)
{
    if (call->n_positional == 0 || call->n_keywords > 0)
        return template_fail(run, STATUS_INVALID, "loop.cycle() wants at least one item");
    int64_t index = MAX(self.loop->index0, 0);
    return call->positional[(size_t)index % call->n_positional];
}

static struct value loop_changed(struct run *run, struct value self, struct call *call)
{
    struct list *given = list_open(run, call->n_positional);
    for (size_t i = 0; i < call->n_positional; i++)
        list_push(run, given, call->positional[i]);
    struct value now = value_list(given, KIND_TUPLE);
    bool changed = !value_equal(run, self.loop->last_changed, now);
    self.loop->last_changed = now;
    return value_bool(changed);
}

static struct value cycler_next(struct run *run, struct value self, struct call *call)
{
    struct value value = self.list->items[self.list->position];
    (void)run, (void)call;
    self.list->position = (self.list->position + 1) % self.list->count;
    return value;
}

static struct value cycler_reset(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    self.list->position = 0;
    return value_none();
}

/* ---- Tables ---------------------------------------------------------------------------------- */

static const struct builtin list_methods[] = {
    {"append", list_append, "object", 1},
    {"clear", list_clear, "", 0},
    {"copy", list_copy, "", 0},
    {"count", list_count, "value", 1},
    {"extend", list_extend, "iterable", 1},
    {"index", list_index, "value", 1},
    {"insert", list_insert, "index object", 2},
    {"pop", list_pop, "index", 0},
    {"remove", list_remove, "value", 1},
    {"reverse", list_reverse, "", 0},
    {"sort", list_sort, "key reverse", 0},
};

static const struct builtin tuple_methods[] = {
    {"count", list_count, "value", 1},
    {"index", list_index, "value", 1},
};

static const struct builtin dict_methods[] = {
    {"clear", dict_clear, "", 0},
    {"copy", dict_copy, "", 0},
    {"fromkeys", NULL, "*", 0},
    {"get", dict_get, "key default", 1},
    {"items", dict_items, "", 0},
    {"keys", dict_keys, "", 0},
    {"pop", dict_pop, "key default", 1},
    {"popitem", dict_popitem, "", 0},
    {"setdefault", dict_setdefault, "key default", 1},
    {"update", dict_update, "*", 0},
    {"values", dict_values, "", 0},
};

static const struct builtin float_methods[] = {
    {"is_integer", float_is_integer, "", 0},
};

static const struct builtin loop_methods[] = {
    {"cycle", loop_cycle, "*", 0},
    {"changed", loop_changed, "*", 0},
};

static const struct builtin cycler_methods[] = {
    {"next", cycler_next, "", 0},
    {"reset", cycler_reset, "", 0},
};

const struct builtin *template_find_in(const struct builtin *table, size_t count, struct view name)
{
    for (size_t i = 0; i < count; i++)
        if (view_equal(view_of(table[i].name), name))
            return &table[i];
    return NULL;
}

const struct builtin *template_find_method(enum kind kind, struct view name)
{
    static const struct {
        enum kind kind;
        const struct builtin *methods;
        size_t count;
    } tables[] = {
        {KIND_LIST, list_methods, ARRAY_COUNT(list_methods)},
        {KIND_TUPLE, tuple_methods, ARRAY_COUNT(tuple_methods)},
        {KIND_RANGE, tuple_methods, ARRAY_COUNT(tuple_methods)},
        {KIND_DICT, dict_methods, ARRAY_COUNT(dict_methods)},
        {KIND_FLOAT, float_methods, ARRAY_COUNT(float_methods)},
        {KIND_LOOP, loop_methods, ARRAY_COUNT(loop_methods)},
        {KIND_CYCLER, cycler_methods, ARRAY_COUNT(cycler_methods)},
    };
    if (kind == KIND_STRING)
        return template_find_in(template_text_methods, template_n_text_methods, name);
    for (size_t i = 0; i < ARRAY_COUNT(tables); i++)
        if (tables[i].kind == kind)
            return template_find_in(tables[i].methods, tables[i].count, name);
    return NULL;
}
