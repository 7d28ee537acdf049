/* Jinja2's filters over sequences: map, select, sort, groupby, join, ... */
#include "text/template.h"

#include <string.h>

/* ---- Getting a member of each element -------------------------------------------------------- */

/* A path such as "function.name" or 0, followed by dots; or nothing, which means the element
 * itself. */
struct path {
    struct value parts[8];
    size_t count;
    struct value otherwise; /* KIND_MISSING, or what stands for an undefined member */
    bool fold_case;         /* texts are compared in lower case */
};

static struct path path_open(struct run *run, struct value attribute, struct value otherwise,
                             bool fold_case)
{
    struct path path = {.otherwise = otherwise, .fold_case = fold_case};
    if (otherwise.kind == KIND_NONE)
        path.otherwise.kind = KIND_MISSING;
    if (attribute.kind == KIND_MISSING || attribute.kind == KIND_NONE)
        return path;
    if (attribute.kind != KIND_STRING) {
        path.parts[path.count++] = attribute;
        return path;
    }
    const char *at = attribute.string->data, *end = at + attribute.string->size;
    for (;;) {
        const char *dot = memchr(at, '.', (size_t)(end - at));
        size_t size = (size_t)((dot != NULL ? dot : end) - at);
        int64_t number = 0;
        bool digits = size > 0 && size < 10;
        for (size_t i = 0; i < size && digits; i++) {
            digits = at[i] >= '0' && at[i] <= '9';
            number = number * 10 + (at[i] - '0');
        }
        if (path.count == ARRAY_COUNT(path.parts)) {
            template_fail(run, STATUS_LIMIT, "an attribute has more than %zu parts",
                          ARRAY_COUNT(path.parts));
            return path;
        }
        path.parts[path.count++] = digits ? value_int(number) : value_text(run, at, size);
        if (dot == NULL)
            return path;
        at = dot + 1;
    }
}

static struct value path_get(struct run *run, const struct path *path, struct value value)
{
    for (size_t i = 0; i < path->count && !run->failed; i++) {
        value = template_item(run, value, path->parts[i]);
        if (value.kind == KIND_UNDEFINED && path->otherwise.kind != KIND_MISSING)
            value = path->otherwise;
    }
    if (path->fold_case && value.kind == KIND_STRING && !run->failed) {
        struct buffer text = {0};
        template_put_case(run, &text, string_view(value.string), CASE_LOWER);
        value = value_take(run, &text);
    }
    return value;
}

static struct value keyword(const struct call *call, const char *name)
{
    for (size_t i = 0; i < call->n_keywords; i++)
        if (view_equal(call->keywords[i].name, view_of(name)))
            return call->keywords[i].value;
    return (struct value){.kind = KIND_MISSING};
}

/* ---- map, select, reject --------------------------------------------------------------------- */

/* The rest of a call's arguments, from skipped on, for another filter or test. */
static struct call rest_of(const struct call *call, size_t skipped)
{
    struct call rest = *call;
    rest.positional += skipped;
    rest.n_positional -= skipped;
    return rest;
}

static struct value filter_map(struct run *run, struct value self, struct call *call)
{
    struct list *mapped = list_open(run, 0);
    if (!value_truth(self))
        return list_generator(run, mapped);
    struct value attribute = keyword(call, "attribute");
    const struct builtin *filter = NULL;
    struct path path = {0};
    if (call->n_positional == 0 && attribute.kind != KIND_MISSING) {
        path = path_open(run, attribute, keyword(call, "default"), false);
    } else {
        if (call->n_positional > 0)
            filter = template_find_filter(value_view(call->positional[0]));
        if (filter == NULL)
            template_fail(run, STATUS_INVALID, "map does not find its filter");
    }
    struct list *list = run->failed ? NULL : value_elements(run, self);
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        struct call rest = filter != NULL ? rest_of(call, 1) : (struct call){0};
        list_push(run, mapped,
                  filter != NULL ? template_invoke(run, filter, list->items[i], &rest)
                                 : path_get(run, &path, list->items[i]));
    }
    return list_generator(run, mapped);
}

/* The elements, or with by_member those whose member, of which a test holds (without a test: which
 * are true); with keep false the others. */
static struct value choose(struct run *run, struct value self, struct call *call, bool keep,
                           bool by_member)
{
    struct list *chosen = list_open(run, 0);
    if (!value_truth(self))
        return list_generator(run, chosen);
    size_t used = by_member ? 1 : 0;
    struct path path = {0};
    if (call->n_positional < used)
        template_fail(run, STATUS_INVALID, "the name of the attribute is missing");
    else if (by_member)
        path = path_open(run, call->positional[0], (struct value){.kind = KIND_MISSING}, false);
    const struct builtin *test = NULL;
    if (call->n_positional > used) {
        test = template_find_test(value_view(call->positional[used]));
        if (test == NULL)
            template_fail(run, STATUS_INVALID, "no test has the name that is given");
    }
    struct list *list = run->failed ? NULL : value_elements(run, self);
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        struct value value = path_get(run, &path, list->items[i]);
        if (test != NULL && !run->failed) {
            struct call rest = rest_of(call, used + 1);
            value = template_invoke(run, test, value, &rest);
        }
        if (value_truth(value) == keep)
            list_push(run, chosen, list->items[i]);
    }
    return list_generator(run, chosen);
}

static struct value filter_select(struct run *run, struct value self, struct call *call)
{
    return choose(run, self, call, true, false);
}

static struct value filter_reject(struct run *run, struct value self, struct call *call)
{
    return choose(run, self, call, false, false);
}

static struct value filter_selectattr(struct run *run, struct value self, struct call *call)
{
    return choose(run, self, call, true, true);
}

static struct value filter_rejectattr(struct run *run, struct value self, struct call *call)
{
    return choose(run, self, call, false, true);
}

/* ---- Sorting --------------------------------------------------------------------------------- */

struct sorted {
    struct value key, value;
};

/* How elements are put in order. */
struct order {
    bool backward;
    bool equal_first; /* keys that are equal need no order: undefined ones, dicts */
};

static int compare_keys(struct run *run, struct value a, struct value b, struct order order)
{
    bool unordered;
    if (order.equal_first && value_equal(run, a, b))
        return 0;
    int difference = value_compare(run, a, b, &unordered);
    return order.backward ? -difference : difference;
}

/* Merges the sorted halves of items[count], which keeps equal elements in their order. */
static void merge(struct run *run, struct sorted *items, struct sorted *spare, size_t count,
                  struct order order)
{
    if (count < 2 || !template_spend(run, 1))
        return;
    size_t half = count / 2, left = 0, right = half;
    merge(run, items, spare, half, order);
    merge(run, items + half, spare, count - half, order);
    for (size_t i = 0; i < count && template_spend(run, 1); i++) {
        bool take_left = right == count;
        if (left < half && right < count)
            take_left = compare_keys(run, items[left].key, items[right].key, order) <= 0;
        spare[i] = items[take_left ? left++ : right++];
    }
    if (!run->failed)
        memcpy(items, spare, count * sizeof *items);
}

/* The elements with their keys, in the order of these. */
static struct sorted *sort_by(struct run *run, const struct list *list, const struct path *path,
                              struct order order)
{
    if (list == NULL)
        return NULL;
    struct sorted *items = template_alloc(run, list->count, sizeof *items);
    struct sorted *spare = template_alloc(run, list->count, sizeof *spare);
    for (size_t i = 0; spare != NULL && items != NULL && i < list->count && !run->failed; i++)
        items[i] = (struct sorted){path_get(run, path, list->items[i]), list->items[i]};
    if (spare == NULL || run->failed)
        return NULL;
    merge(run, items, spare, list->count, order);
    return run->failed ? NULL : items;
}

/* "age,name" sorts by age and then by name: by name first, then stably by age. */
static struct value filter_sort(struct run *run, struct value self, struct call *call)
{
    struct order order = {.backward = template_flag(call->bound[0]), .equal_first = true};
    bool fold = !template_flag(call->bound[1]);
    struct value attribute = call->bound[2], missing = {.kind = KIND_MISSING};
    struct list *list = value_elements(run, self);
    struct list *result = list_open(run, list != NULL ? list->count : 0);
    for (size_t i = 0; list != NULL && i < list->count; i++)
        list_push(run, result, list->items[i]);
    struct view rest = value_view(attribute);
    do {
        size_t start = rest.size;
        while (start > 0 && rest.data[start - 1] != ',')
            start--;
        struct value last = attribute;
        if (attribute.kind == KIND_STRING)
            last = value_text(run, rest.data + start, rest.size - start);
        struct path path = path_open(run, last, missing, fold);
        struct sorted *sorted = run->failed ? NULL : sort_by(run, result, &path, order);
        for (size_t i = 0; sorted != NULL && i < result->count; i++)
            result->items[i] = sorted[i].value;
        if (start == 0)
            break;
        rest.size = start - 1;
    } while (!run->failed);
    return value_list(result, KIND_LIST);
}

void list_sort_values(struct run *run, struct list *list, bool backward)
{
    struct path whole = {0};
    struct sorted *sorted = sort_by(run, list, &whole, (struct order){.backward = backward});
    for (size_t i = 0; sorted != NULL && i < list->count; i++)
        list->items[i] = sorted[i].value;
}

static struct value filter_dictsort(struct run *run, struct value self, struct call *call)
{
    struct order order = {.backward = template_flag(call->bound[2])};
    bool fold = !template_flag(call->bound[0]);
    struct value by = call->bound[1];
    bool by_value = string_is(by, "value");
    if (self.kind != KIND_DICT)
        return template_fail(run, STATUS_INVALID, "dictsort wants a dict, not a %s",
                             value_type(self));
    if (by.kind != KIND_MISSING && !by_value && !string_is(by, "key"))
        return template_fail(run, STATUS_INVALID, "dictsort sorts by \"key\" or \"value\"");
    struct path path = {.parts = {value_int(by_value)}, .count = 1, .fold_case = fold};
    path.otherwise.kind = KIND_MISSING;
    struct list *items = dict_list(run, self.dict, LIST_ITEMS);
    struct sorted *sorted = sort_by(run, items, &path, order);
    struct list *result = list_open(run, self.dict->count);
    for (size_t i = 0; sorted != NULL && i < self.dict->count; i++)
        list_push(run, result, sorted[i].value);
    return value_list(result, KIND_LIST);
}

static struct value filter_groupby(struct run *run, struct value self, struct call *call)
{
    bool fold = !template_flag(call->bound[2]);
    struct path path = path_open(run, call->bound[0], call->bound[1], fold);
    struct path real = path;
    real.fold_case = false;
    struct list *list = value_elements(run, self);
    struct sorted *sorted = sort_by(run, list, &path, (struct order){0});
    struct list *groups = list_open(run, 0), *members = NULL;
    for (size_t i = 0; sorted != NULL && i < list->count && template_spend(run, 1); i++) {
        if (i == 0 || !value_equal(run, sorted[i - 1].key, sorted[i].key)) {
            members = list_open(run, 0);
            struct value group = list_pair(run, path_get(run, &real, sorted[i].value),
                                           value_list(members, KIND_LIST));
            if (group.kind != KIND_TUPLE || group.list->count != 2)
                break;
            group.list->flavour = LIST_GROUP;
            list_push(run, groups, group);
        }
        list_push(run, members, sorted[i].value);
    }
    return value_list(groups, KIND_LIST);
}

static struct value filter_unique(struct run *run, struct value self, struct call *call)
{
    struct value missing = {.kind = KIND_MISSING};
    struct path path = path_open(run, call->bound[1], missing, !template_flag(call->bound[0]));
    struct list *unique = list_open(run, 0);
    struct dict *seen = dict_open(run);
    struct list *list = value_elements(run, self);
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        struct value key = path_get(run, &path, list->items[i]);
        if (run->failed || dict_find(run, seen, key) != NULL)
            continue;
        dict_set(run, seen, key, value_none());
        list_push(run, unique, list->items[i]);
    }
    return list_generator(run, unique);
}

static struct value extreme(struct run *run, struct value self, struct call *call, int sign)
{
    struct value missing = {.kind = KIND_MISSING}, best_key = missing;
    struct path path = path_open(run, call->bound[1], missing, !template_flag(call->bound[0]));
    struct list *list = value_elements(run, self);
    struct value best = value_undefined(NULL);
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        struct value key = path_get(run, &path, list->items[i]);
        bool unordered;
        if (i > 0 && value_compare(run, key, best_key, &unordered) * sign <= 0)
            continue;
        best = list->items[i];
        best_key = key;
    }
    return best;
}

static struct value filter_max(struct run *run, struct value self, struct call *call)
{
    return extreme(run, self, call, 1);
}

static struct value filter_min(struct run *run, struct value self, struct call *call)
{
    return extreme(run, self, call, -1);
}

/* ---- Other filters over sequences ------------------------------------------------------------ */

static struct value filter_first(struct run *run, struct value self, struct call *call)
{
    (void)call;
    if (self.kind == KIND_GENERATOR && self.list->position < self.list->count)
        return self.list->items[self.list->position++];
    struct list *list = value_elements(run, self);
    return list != NULL && list->count > 0 ? list->items[0] : value_undefined(NULL);
}

static struct value filter_last(struct run *run, struct value self, struct call *call)
{
    (void)call;
    if (self.kind == KIND_GENERATOR)
        return template_fail(run, STATUS_INVALID, "a generator has no last element");
    struct list *list = value_elements(run, self);
    return list != NULL && list->count > 0 ? list->items[list->count - 1] : value_undefined(NULL);
}

static struct value filter_length(struct run *run, struct value self, struct call *call)
{
    size_t length;
    (void)call;
    if (self.kind == KIND_LOOP)
        return value_int((int64_t)loop_length(run, self.loop));
    if (!value_length(self, &length))
        return template_fail(run, STATUS_INVALID, "a %s has no length", value_type(self));
    return value_int((int64_t)length);
}

static struct value filter_list(struct run *run, struct value self, struct call *call)
{
    (void)call;
    struct list *list = value_elements(run, self);
    struct list *copy = list_open(run, list != NULL ? list->count : 0);
    for (size_t i = 0; list != NULL && i < list->count; i++)
        list_push(run, copy, list->items[i]);
    return value_list(copy, KIND_LIST);
}

static struct value filter_items(struct run *run, struct value self, struct call *call)
{
    (void)call;
    if (self.kind == KIND_DICT)
        return list_generator(run, dict_list(run, self.dict, LIST_ITEMS));
    struct list *none = list_open(run, 0);
    if (self.kind != KIND_UNDEFINED)
        template_fail(run, STATUS_INVALID, "items wants a dict, not a %s", value_type(self));
    return list_generator(run, none);
}

static struct value filter_reverse(struct run *run, struct value self, struct call *call)
{
    (void)call;
    struct list *list = value_elements(run, self);
    struct list *reversed = list_open(run, list != NULL ? list->count : 0);
    for (size_t i = list != NULL ? list->count : 0; i-- > 0;)
        list_push(run, reversed, list->items[i]);
    if (self.kind == KIND_GENERATOR)
        return value_list(reversed, KIND_LIST);
    if (self.kind != KIND_STRING)
        return list_generator(run, reversed);
    struct buffer text = {0};
    for (size_t i = 0; reversed != NULL && i < reversed->count; i++)
        value_put(run, &text, reversed->items[i]);
    return value_take(run, &text);
}

static struct value filter_join(struct run *run, struct value self, struct call *call)
{
    struct value missing = {.kind = KIND_MISSING};
    struct path path = path_open(run, call->bound[1], missing, false);
    struct list *list = value_elements(run, self);
    struct buffer text = {0};
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        if (i > 0 && call->bound[0].kind != KIND_MISSING)
            value_put(run, &text, call->bound[0]);
        value_put(run, &text, path_get(run, &path, list->items[i]));
    }
    return value_take(run, &text);
}

static struct value filter_sum(struct run *run, struct value self, struct call *call)
{
    struct value missing = {.kind = KIND_MISSING};
    struct path path = path_open(run, call->bound[0], missing, false);
    struct value sum = call->bound[1].kind != KIND_MISSING ? call->bound[1] : value_int(0);
    struct list *list = value_elements(run, self);
    if (sum.kind == KIND_STRING)
        return template_fail(run, STATUS_INVALID, "texts are joined, not summed");
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++)
        sum = template_binary(run, '+', sum, path_get(run, &path, list->items[i]));
    return sum;
}

static bool positive_argument(struct run *run, struct value value, int64_t *out)
{
    if (value_integer(value, out) && *out > 0)
        return true;
    template_fail(run, STATUS_INVALID, "a whole number above 0 is wanted");
    return false;
}

static struct value filter_batch(struct run *run, struct value self, struct call *call)
{
    int64_t size;
    struct list *batches = list_open(run, 0), *batch = NULL;
    struct list *list = value_elements(run, self);
    if (list == NULL || !positive_argument(run, call->bound[0], &size))
        return list_generator(run, batches);
    for (size_t i = 0; i < list->count && template_spend(run, 1); i++) {
        if (batch == NULL || (int64_t)batch->count == size) {
            batch = list_open(run, 0);
            list_push(run, batches, value_list(batch, KIND_LIST));
        }
        list_push(run, batch, list->items[i]);
    }
    bool fill = call->bound[1].kind != KIND_MISSING && call->bound[1].kind != KIND_NONE;
    while (fill && batch != NULL && (int64_t)batch->count < size && template_spend(run, 1))
        list_push(run, batch, call->bound[1]);
    return list_generator(run, batches);
}

static struct value filter_slice(struct run *run, struct value self, struct call *call)
{
    int64_t slices;
    struct list *result = list_open(run, 0), *list = value_elements(run, self);
    if (list == NULL || !positive_argument(run, call->bound[0], &slices))
        return list_generator(run, result);
    size_t each = list->count / (size_t)slices, longer = list->count % (size_t)slices, at = 0;
    bool fill = call->bound[1].kind != KIND_MISSING && call->bound[1].kind != KIND_NONE;
    for (size_t i = 0; i < (size_t)slices && template_spend(run, 1); i++) {
        struct list *slice = list_open(run, 0);
        for (size_t n = each + (i < longer); n > 0 && template_spend(run, 1); n--)
            list_push(run, slice, list->items[at++]);
        if (fill && i >= longer)
            list_push(run, slice, call->bound[1]);
        list_push(run, result, value_list(slice, KIND_LIST));
    }
    return list_generator(run, result);
}

const struct builtin template_sequence_filters[] = {
    {"map", filter_map, "*", 0},
    {"select", filter_select, "*", 0},
    {"reject", filter_reject, "*", 0},
    {"selectattr", filter_selectattr, "*", 0},
    {"rejectattr", filter_rejectattr, "*", 0},
    {"sort", filter_sort, "reverse case_sensitive attribute", 0},
    {"dictsort", filter_dictsort, "case_sensitive by reverse", 0},
    {"groupby", filter_groupby, "attribute default case_sensitive", 1},
    {"unique", filter_unique, "case_sensitive attribute", 0},
    {"max", filter_max, "case_sensitive attribute", 0},
    {"min", filter_min, "case_sensitive attribute", 0},
    {"first", filter_first, "", 0},
    {"last", filter_last, "", 0},
    {"length", filter_length, "", 0},
    {"count", filter_length, "", 0},
    {"list", filter_list, "", 0},
    {"items", filter_items, "", 0},
    {"reverse", filter_reverse, "", 0},
    {"join", filter_join, "d attribute", 0},
    {"sum", filter_sum, "attribute start", 0},
    {"batch", filter_batch, "linecount fill_with", 1},
    {"slice", filter_slice, "slices fill_with", 1},
    {"random", NULL, "*", 0},
};
const size_t template_n_sequence_filters = ARRAY_COUNT(template_sequence_filters);
