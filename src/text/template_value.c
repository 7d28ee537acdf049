/* The values of templates: what Python's objects do, over an arena that lasts one rendering. */
#include "text/template.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Errors, limits, memory ------------------------------------------------------------------ */

struct value template_fail(struct run *run, enum status code, const char *format, ...)
{
    if (!run->failed) {
        char text[sizeof run->error->text];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        run->failed = true;
        error_set(run->error, code, "template line %u: %s", run->line, text);
    }
    return value_undefined(NULL);
}

struct value template_fail_undefined(struct run *run, struct value value)
{
    if (value.name == NULL)
        return template_fail(run, STATUS_INVALID, "an undefined value is used");
    return template_fail(run, STATUS_INVALID, "'%.*s' is undefined",
                         (int)MIN(value.name->size, 100), value.name->data);
}

bool template_spend(struct run *run, size_t steps)
{
    run->steps += steps;
    if (run->steps > TEMPLATE_STEP_LIMIT && !run->failed)
        template_fail(run, STATUS_LIMIT, "rendering takes more than %u steps", TEMPLATE_STEP_LIMIT);
    return !run->failed;
}

bool template_enter(struct run *run)
{
    if (run->depth >= TEMPLATE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "evaluation is nested more than %d levels deep",
                      TEMPLATE_DEPTH_LIMIT);
        return false;
    }
    run->depth++;
    return true;
}

void *template_alloc(struct run *run, size_t count, size_t size)
{
    size_t bytes;
    if (!size_mul(count, size, &bytes) || !template_spend(run, bytes / 256)) {
        template_fail(run, STATUS_MEMORY, "a value is too large");
        return NULL;
    }
    void *memory = arena_alloc(run->arena, MAX(bytes, 1));
    if (memory == NULL)
        template_fail(run, STATUS_MEMORY, "rendering takes more than %u MiB of memory",
                      TEMPLATE_MEMORY_LIMIT >> 20);
    return memory;
}

void template_put(struct run *run, struct buffer *out, const void *data, size_t size)
{
    if (!template_spend(run, 1 + size / 64))
        return;
    if (size > TEMPLATE_TEXT_LIMIT - MIN(out->size, TEMPLATE_TEXT_LIMIT))
        template_fail(run, STATUS_LIMIT, "a text grows beyond %u MiB", TEMPLATE_TEXT_LIMIT >> 20);
    else if (!buffer_append(out, data, size))
        template_fail(run, STATUS_MEMORY, "out of memory");
}

void template_put_text(struct run *run, struct buffer *out, const char *text)
{
    template_put(run, out, text, strlen(text));
}

void template_put_character(struct run *run, struct buffer *out, uint32_t code_point)
{
    char bytes[4];
    template_put(run, out, bytes, utf8_encode(code_point, bytes));
}

/* ---- Making values --------------------------------------------------------------------------- */

struct value value_none(void)
{
    return (struct value){.kind = KIND_NONE};
}

struct value value_undefined(const struct string *name)
{
    return (struct value){.kind = KIND_UNDEFINED, .name = name};
}

struct value value_bool(bool boolean)
{
    return (struct value){.kind = KIND_BOOL, .boolean = boolean};
}

struct value value_int(int64_t integer)
{
    return (struct value){.kind = KIND_INT, .integer = integer};
}

struct value value_float(double real)
{
    return (struct value){.kind = KIND_FLOAT, .real = real};
}

struct value value_list(struct list *list, enum kind kind)
{
    if (list == NULL)
        return value_undefined(NULL);
    return (struct value){.kind = kind, .list = list};
}

struct value value_dict(struct dict *dict)
{
    if (dict == NULL)
        return value_undefined(NULL);
    return (struct value){.kind = KIND_DICT, .dict = dict};
}

struct string *string_borrow(struct arena *arena, const char *data, size_t size)
{
    struct string *string = arena_alloc(arena, sizeof *string);
    if (string != NULL)
        *string = (struct string){.data = data, .size = size, .length = utf8_count(data, size)};
    return string;
}

struct value value_borrow(struct run *run, const char *data, size_t size)
{
    struct string *string =
        template_spend(run, size / 64) ? string_borrow(run->arena, data, size) : NULL;
    if (string == NULL)
        return template_fail(run, STATUS_MEMORY, "rendering takes more than %u MiB of memory",
                             TEMPLATE_MEMORY_LIMIT >> 20);
    return (struct value){.kind = KIND_STRING, .string = string};
}

struct value value_text(struct run *run, const void *data, size_t size)
{
    char *copy = template_alloc(run, size, 1);
    if (copy == NULL)
        return value_undefined(NULL);
    if (size > 0)
        memcpy(copy, data, size);
    return value_borrow(run, copy, size);
}

struct value value_take(struct run *run, struct buffer *buffer)
{
    struct value text = value_text(run, buffer->data, buffer->size);
    buffer_free(buffer);
    return text;
}

struct value value_method(struct run *run, struct value self, const struct builtin *builtin)
{
    struct method *method = template_alloc(run, 1, sizeof *method);
    if (method == NULL)
        return value_undefined(NULL);
    *method = (struct method){self, builtin};
    return (struct value){.kind = KIND_METHOD, .method = method};
}

/* ---- Texts ----------------------------------------------------------------------------------- */

struct value string_join(struct run *run, struct value left, struct value right)
{
    const struct string *a = left.string, *b = right.string;
    if (b->size == 0)
        return left;
    if (a->size > TEMPLATE_TEXT_LIMIT || b->size > TEMPLATE_TEXT_LIMIT - a->size)
        return template_fail(run, STATUS_LIMIT, "a text grows beyond %u MiB",
                             TEMPLATE_TEXT_LIMIT >> 20);
    struct growth *growth = a->growth;
    bool in_place = growth != NULL && a->data + a->size == growth->data + growth->used &&
                    b->size <= growth->capacity - growth->used;
    if (!in_place) {
        size_t capacity = 2 * (a->size + b->size) + 32;
        growth = template_alloc(run, 1, sizeof *growth);
        char *data = template_alloc(run, capacity, 1);
        if (growth == NULL || data == NULL)
            return value_undefined(NULL);
        if (a->size > 0)
            memcpy(data, a->data, a->size);
        *growth = (struct growth){data, a->size, capacity};
    }
    struct string *joined = template_alloc(run, 1, sizeof *joined);
    if (joined == NULL || !template_spend(run, b->size / 64))
        return value_undefined(NULL);
    const char *start = in_place ? a->data : growth->data;
    memcpy(growth->data + growth->used, b->data, b->size);
    growth->used += b->size;
    *joined = (struct string){.data = start,
                              .size = a->size + b->size,
                              .length = a->length + b->length,
                              .safe = a->safe && b->safe,
                              .growth = growth};
    return (struct value){.kind = KIND_STRING, .string = joined};
}

struct view string_view(const struct string *string)
{
    return (struct view){string->data, string->size};
}

struct view string_part(const struct string *string, size_t start, size_t stop)
{
    if (string->length == string->size)
        return (struct view){string->data + start, stop - start};
    size_t at = 0, index = 0, first = 0;
    for (; at < string->size; at++) {
        if (((unsigned char)string->data[at] & 0xC0) == 0x80)
            continue;
        if (index == start)
            first = at;
        if (index == stop)
            break;
        index++;
    }
    if (start == string->length)
        first = string->size;
    return (struct view){string->data + first, at - first};
}

struct view value_view(struct value value)
{
    return value.kind == KIND_STRING ? string_view(value.string) : (struct view){"", 0};
}

bool string_is(struct value value, const char *text)
{
    size_t size = strlen(text);
    return value.kind == KIND_STRING && value.string->size == size &&
           memcmp(value.string->data, text, size) == 0;
}

/* ---- Lists ----------------------------------------------------------------------------------- */

struct list *list_open(struct run *run, size_t capacity)
{
    struct list *list = template_alloc(run, 1, sizeof *list);
    if (list == NULL)
        return NULL;
    if (capacity > 0)
        list->items = template_alloc(run, capacity, sizeof *list->items);
    list->capacity = list->items != NULL ? capacity : 0;
    return list;
}

void list_push(struct run *run, struct list *list, struct value value)
{
    if (list == NULL)
        return;
    if (list->count == list->capacity) {
        size_t capacity = MAX(4, 2 * list->capacity);
        struct value *items = template_alloc(run, capacity, sizeof *items);
        if (items == NULL)
            return;
        if (list->count > 0)
            memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
}

struct value list_generator(struct run *run, struct list *list)
{
    if (run->failed && list != NULL && run->error->code == STATUS_INVALID) {
        run->failed = false;
        list->failure = template_alloc(run, 1, sizeof *list->failure);
        if (list->failure != NULL)
            *list->failure = *run->error;
    }
    return value_list(list, KIND_GENERATOR);
}

/* The end of list is reached: an error that was kept until then is met now. */
static void list_end(struct run *run, const struct list *list)
{
    if (list->failure == NULL || run->failed)
        return;
    *run->error = *list->failure;
    run->failed = true;
}

struct value list_pair(struct run *run, struct value first, struct value second)
{
    struct list *pair = list_open(run, 2);
    list_push(run, pair, first);
    list_push(run, pair, second);
    return value_list(pair, KIND_TUPLE);
}

void list_flip(struct list *list)
{
    for (size_t i = 0; list != NULL && i < list->count / 2; i++) {
        struct value other = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = other;
    }
}

/* ---- Dicts ----------------------------------------------------------------------------------- */

#define DICT_SMALL 8 /* entries that are found without slots */

static uint64_t hash_bytes(const char *data, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_number(uint64_t bits)
{
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u; /* SplitMix64 */
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
}

static uint64_t hash_value(struct run *run, struct value value, unsigned depth)
{
    int64_t integer;
    uint64_t hash = 7;
    if (!template_spend(run, 1))
        return 0;
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "a value is nested too deeply");
        return 0;
    }
    switch (value.kind) {
    case KIND_STRING:
        template_spend(run, value.string->size / 16);
        return hash_bytes(value.string->data, value.string->size);
    case KIND_BOOL:
    case KIND_INT:
        value_integer(value, &integer);
        return hash_number((uint64_t)integer);
    case KIND_FLOAT:
        /* Equal numbers have equal hashes: 1 == 1.0. */
        if (value.real >= -9.2e18 && value.real <= 9.2e18)
            return hash_number((uint64_t)(int64_t)value.real);
        return 11;
    case KIND_TUPLE:
        for (size_t i = 0; i < value.list->count; i++)
            hash = hash_number(hash * 31 + hash_value(run, value.list->items[i], depth + 1));
        return hash;
    case KIND_NONE:
    case KIND_UNDEFINED:
        return value.kind;
    case KIND_LIST:
    case KIND_DICT:
        template_fail(run, STATUS_INVALID, "a %s cannot be a key", value_type(value));
        return 0;
    default:
        return value.kind;
    }
}

/* Fails for what cannot be a key. */
static uint64_t value_hash(struct run *run, struct value value)
{
    return hash_value(run, value, 0);
}

struct dict *dict_open(struct run *run)
{
    return template_alloc(run, 1, sizeof(struct dict));
}

static struct entry *dict_lookup(struct run *run, const struct dict *dict, uint64_t hash,
                                 struct value key)
{
    if (dict->slots == NULL) {
        for (size_t i = 0; i < dict->count; i++)
            if (dict->entries[i].hash == hash && value_equal(run, dict->entries[i].key, key))
                return &dict->entries[i];
        return NULL;
    }
    for (size_t slot = hash;; slot++) {
        uint32_t number = dict->slots[slot & (dict->n_slots - 1)];
        if (number == 0)
            return NULL;
        struct entry *entry = &dict->entries[number - 1];
        if (entry->hash == hash && value_equal(run, entry->key, key))
            return entry;
    }
}

struct value *dict_find(struct run *run, const struct dict *dict, struct value key)
{
    struct entry *entry = dict_lookup(run, dict, value_hash(run, key), key);
    return entry != NULL ? &entry->value : NULL;
}

struct value *dict_find_text(const struct dict *dict, struct view key)
{
    struct string string = {.data = key.data, .size = key.size};
    struct value value = {.kind = KIND_STRING, .string = &string};
    /* Texts are compared without the run. */
    struct entry *entry = dict_lookup(NULL, dict, hash_bytes(key.data, key.size), value);
    return entry != NULL ? &entry->value : NULL;
}

static void dict_index(struct run *run, struct dict *dict)
{
    size_t n_slots = 32;
    while (n_slots < 2 * dict->capacity)
        n_slots *= 2;
    uint32_t *slots = template_alloc(run, n_slots, sizeof *slots);
    if (slots == NULL || dict->count > UINT32_MAX / 2)
        return;
    for (size_t i = 0; i < dict->count; i++) {
        size_t slot = dict->entries[i].hash;
        while (slots[slot & (n_slots - 1)] != 0)
            slot++;
        slots[slot & (n_slots - 1)] = (uint32_t)(i + 1);
    }
    dict->slots = slots;
    dict->n_slots = n_slots;
}

void dict_set(struct run *run, struct dict *dict, struct value key, struct value value)
{
    if (dict == NULL)
        return;
    uint64_t hash = value_hash(run, key);
    struct entry *entry = dict_lookup(run, dict, hash, key);
    if (entry != NULL) {
        entry->value = value;
        return;
    }
    bool grow = dict->count == dict->capacity;
    if (grow) {
        size_t capacity = MAX(4, 2 * dict->capacity);
        struct entry *entries = template_alloc(run, capacity, sizeof *entries);
        if (entries == NULL)
            return;
        if (dict->count > 0)
            memcpy(entries, dict->entries, dict->count * sizeof *entries);
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (struct entry){key, value, hash};
    if (dict->capacity <= DICT_SMALL)
        return;
    if (grow || dict->slots == NULL) {
        dict_index(run, dict);
        return;
    }
    size_t slot = hash;
    while (dict->slots[slot & (dict->n_slots - 1)] != 0)
        slot++;
    dict->slots[slot & (dict->n_slots - 1)] = (uint32_t)dict->count;
}

void dict_remove(struct run *run, struct dict *dict, struct value *found)
{
    size_t index = 0;
    while (&dict->entries[index].value != found)
        index++;
    template_spend(run, dict->count - index);
    memmove(&dict->entries[index], &dict->entries[index + 1],
            (dict->count - index - 1) * sizeof *dict->entries);
    dict->count--;
    if (dict->slots != NULL) {
        dict->slots = NULL;
        dict_index(run, dict);
    }
}

struct list *dict_list(struct run *run, const struct dict *dict, enum list_flavour flavour)
{
    struct list *list = list_open(run, dict->count);
    for (size_t i = 0; i < dict->count && !run->failed; i++) {
        const struct entry *entry = &dict->entries[i];
        list_push(run, list,
                  flavour == LIST_ITEMS    ? list_pair(run, entry->key, entry->value)
                  : flavour == LIST_VALUES ? entry->value
                                           : entry->key);
    }
    if (list != NULL)
        list->flavour = flavour;
    return list;
}

/* ---- What a value is ------------------------------------------------------------------------- */

bool value_truth(struct value value)
{
    switch (value.kind) {
    case KIND_UNDEFINED:
    case KIND_MISSING:
    case KIND_NONE:
        return false;
    case KIND_BOOL:
        return value.boolean;
    case KIND_INT:
        return value.integer != 0;
    case KIND_FLOAT:
        return value.real != 0;
    case KIND_STRING:
        return value.string->size > 0;
    case KIND_LIST:
    case KIND_TUPLE:
    case KIND_VIEW:
        return value.list->count > 0;
    case KIND_DICT:
        return value.dict->count > 0;
    case KIND_RANGE:
        return value.range->count > 0;
    default:
        return true;
    }
}

const char *value_type(struct value value)
{
    static const char *const names[] = {
        [KIND_UNDEFINED] = "Undefined",
        [KIND_MISSING] = "missing argument",
        [KIND_NONE] = "NoneType",
        [KIND_BOOL] = "bool",
        [KIND_INT] = "int",
        [KIND_FLOAT] = "float",
        [KIND_STRING] = "str",
        [KIND_LIST] = "list",
        [KIND_TUPLE] = "tuple",
        [KIND_VIEW] = "dict view",
        [KIND_GENERATOR] = "generator",
        [KIND_DICT] = "dict",
        [KIND_RANGE] = "range",
        [KIND_NAMESPACE] = "Namespace",
        [KIND_MACRO] = "Macro",
        [KIND_LOOP] = "LoopContext",
        [KIND_METHOD] = "method",
        [KIND_BUILTIN] = "function",
        [KIND_CYCLER] = "Cycler",
        [KIND_JOINER] = "Joiner",
    };
    return names[value.kind];
}

bool value_is_number(struct value value)
{
    return value.kind == KIND_BOOL || value.kind == KIND_INT || value.kind == KIND_FLOAT;
}

double value_real(struct value value)
{
    return value.kind == KIND_FLOAT  ? value.real
           : value.kind == KIND_BOOL ? (double)value.boolean
                                     : (double)value.integer;
}

bool value_integer(struct value value, int64_t *out)
{
    if (value.kind == KIND_BOOL)
        *out = value.boolean;
    else if (value.kind == KIND_INT)
        *out = value.integer;
    else
        return false;
    return true;
}

bool template_given(struct value value)
{
    return value.kind != KIND_MISSING && value.kind != KIND_NONE;
}

bool template_flag(struct value value)
{
    return value.kind != KIND_MISSING && value_truth(value);
}

int64_t template_integer(struct run *run, struct value value, int64_t otherwise)
{
    int64_t integer;
    if (!template_given(value))
        return otherwise;
    if (value_integer(value, &integer))
        return integer;
    template_fail(run, STATUS_INVALID, "a whole number is wanted, not a %s", value_type(value));
    return otherwise;
}

/* ---- Comparing ------------------------------------------------------------------------------- */

static int compare_numbers(struct value a, struct value b, bool *unordered)
{
    int64_t x = 0, y = 0;
    if (value_integer(a, &x) && value_integer(b, &y))
        return (x > y) - (x < y);
    if (a.kind == KIND_FLOAT && b.kind == KIND_FLOAT) {
        *unordered = isnan(a.real) || isnan(b.real);
        return (a.real > b.real) - (a.real < b.real);
    }
    if (a.kind == KIND_FLOAT)
        return -compare_numbers(b, a, unordered);
    /* x is a's. A whole number against a float, exactly: by the float's whole part, then by its
     * fraction. */
    *unordered = isnan(b.real);
    if (b.real >= 9223372036854775808.0)
        return -1;
    if (b.real < -9223372036854775808.0)
        return 1;
    y = *unordered ? 0 : (int64_t)b.real;
    double fraction = *unordered ? 0 : b.real - (double)y;
    return x != y ? (x > y) - (x < y) : (fraction < 0) - (fraction > 0);
}

static int compare_texts(const struct string *a, const struct string *b)
{
    size_t size = MIN(a->size, b->size);
    int order = size > 0 ? memcmp(a->data, b->data, size) : 0;
    return order != 0 ? order : (a->size > b->size) - (a->size < b->size);
}

static bool equal_at(struct run *run, struct value a, struct value b, unsigned depth);

/* run may be NULL: keys of a few bytes are looked up without it. */
static bool equal_texts(struct run *run, const struct string *a, const struct string *b)
{
    if (a->size != b->size)
        return false;
    if (run != NULL)
        template_spend(run, a->size / 64);
    return a->size == 0 || memcmp(a->data, b->data, a->size) == 0;
}

static bool equal_lists(struct run *run, const struct list *a, const struct list *b, unsigned depth)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!equal_at(run, a->items[i], b->items[i], depth + 1))
            return false;
    return true;
}

static bool equal_dicts(struct run *run, const struct dict *a, const struct dict *b, unsigned depth)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        struct entry *other = dict_lookup(run, b, a->entries[i].hash, a->entries[i].key);
        if (other == NULL || !equal_at(run, a->entries[i].value, other->value, depth + 1))
            return false;
    }
    return true;
}

static bool equal_at(struct run *run, struct value a, struct value b, unsigned depth)
{
    if (a.kind == KIND_STRING && b.kind == KIND_STRING)
        return equal_texts(run, a.string, b.string);
    bool unordered = false;
    if (value_is_number(a) && value_is_number(b))
        return compare_numbers(a, b, &unordered) == 0 && !unordered;
    if (a.kind != b.kind || run->failed || !template_spend(run, 1))
        return false;
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "a value is nested too deeply");
        return false;
    }
    switch (a.kind) {
    case KIND_NONE:
    case KIND_UNDEFINED:
        return true;
    case KIND_LIST:
    case KIND_TUPLE:
        return equal_lists(run, a.list, b.list, depth);
    case KIND_VIEW:
        return a.list->flavour == b.list->flavour && equal_lists(run, a.list, b.list, depth);
    case KIND_DICT:
        return equal_dicts(run, a.dict, b.dict, depth);
    case KIND_RANGE:
        return a.range->count == b.range->count &&
               (a.range->count == 0 || (a.range->start == b.range->start &&
                                        (a.range->count == 1 || a.range->step == b.range->step)));
    case KIND_METHOD:
        return a.method->builtin == b.method->builtin &&
               equal_at(run, a.method->self, b.method->self, depth + 1);
    default: /* the same object */
        return a.list == b.list;
    }
}

bool value_equal(struct run *run, struct value a, struct value b)
{
    return equal_at(run, a, b, 0);
}

static int compare_at(struct run *run, struct value a, struct value b, bool *unordered,
                      unsigned depth)
{
    if (a.kind == KIND_STRING && b.kind == KIND_STRING) {
        template_spend(run, MIN(a.string->size, b.string->size) / 64);
        return compare_texts(a.string, b.string);
    }
    if (value_is_number(a) && value_is_number(b))
        return compare_numbers(a, b, unordered);
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "a value is nested too deeply");
        return 0;
    }
    if (a.kind == b.kind && (a.kind == KIND_LIST || a.kind == KIND_TUPLE)) {
        for (size_t i = 0; i < a.list->count && i < b.list->count && template_spend(run, 1); i++)
            if (!equal_at(run, a.list->items[i], b.list->items[i], depth + 1))
                return compare_at(run, a.list->items[i], b.list->items[i], unordered, depth + 1);
        return (a.list->count > b.list->count) - (a.list->count < b.list->count);
    }
    if (a.kind == KIND_UNDEFINED || b.kind == KIND_UNDEFINED)
        template_fail_undefined(run, a.kind == KIND_UNDEFINED ? a : b);
    else
        template_fail(run, STATUS_INVALID, "a %s and a %s have no order", value_type(a),
                      value_type(b));
    return 0;
}

int value_compare(struct run *run, struct value a, struct value b, bool *unordered)
{
    *unordered = false;
    return compare_at(run, a, b, unordered, 0);
}

/* ---- Sequences ------------------------------------------------------------------------------- */

bool value_iterable(struct value value)
{
    switch (value.kind) {
    case KIND_UNDEFINED:
    case KIND_STRING:
    case KIND_LIST:
    case KIND_TUPLE:
    case KIND_VIEW:
    case KIND_GENERATOR:
    case KIND_DICT:
    case KIND_RANGE:
    case KIND_LOOP:
        return true;
    default:
        return false;
    }
}

bool value_length(struct value value, size_t *out)
{
    switch (value.kind) {
    case KIND_UNDEFINED:
        *out = 0;
        return true;
    case KIND_STRING:
        *out = value.string->length;
        return true;
    case KIND_LIST:
    case KIND_TUPLE:
    case KIND_VIEW:
        *out = value.list->count;
        return true;
    case KIND_DICT:
        *out = value.dict->count;
        return true;
    case KIND_RANGE:
        *out = value.range->count;
        return true;
    default:
        return false;
    }
}

static struct list *characters(struct run *run, const struct string *string)
{
    struct list *list = list_open(run, string->length);
    uint32_t c;
    for (size_t i = 0, size; list != NULL && i < string->size && template_spend(run, 1);
         i += size) {
        size = utf8_decode(string->data + i, string->size - i, &c);
        list_push(run, list, value_borrow(run, string->data + i, size));
        if (size == 0)
            break;
    }
    return list;
}

struct list *value_elements(struct run *run, struct value value)
{
    struct list *list;
    switch (value.kind) {
    case KIND_UNDEFINED:
        return list_open(run, 0);
    case KIND_STRING:
        return characters(run, value.string);
    case KIND_LIST:
    case KIND_TUPLE:
    case KIND_VIEW:
        return value.list;
    case KIND_GENERATOR:
        list = list_open(run, value.list->count - value.list->position);
        while (list != NULL && value.list->position < value.list->count)
            list_push(run, list, value.list->items[value.list->position++]);
        list_end(run, value.list);
        return list;
    case KIND_DICT:
        return dict_list(run, value.dict, LIST_KEYS);
    case KIND_RANGE:
        list = list_open(run, value.range->count);
        for (size_t i = 0; list != NULL && i < value.range->count; i++)
            list_push(run, list, value_at(run, value, i));
        return list;
    default:
        template_fail(run, STATUS_INVALID, "a %s cannot be iterated over", value_type(value));
        return NULL;
    }
}

struct value value_at(struct run *run, struct value value, size_t index)
{
    struct view part;
    switch (value.kind) {
    case KIND_STRING:
        part = string_part(value.string, index, index + 1);
        template_spend(run, value.string->length == value.string->size ? 0 : index / 8);
        return value_borrow(run, part.data, part.size);
    case KIND_RANGE:
        return value_int(value.range->start + (int64_t)index * value.range->step);
    default:
        return value.list->items[index];
    }
}

bool value_contains(struct run *run, struct value container, struct value item)
{
    if (container.kind == KIND_STRING) {
        if (item.kind == KIND_STRING)
            return template_search(run, string_view(container.string), string_view(item.string),
                                   0) != TEMPLATE_NOT_FOUND;
        template_fail(run, STATUS_INVALID, "only a text can be in a text, not a %s",
                      value_type(item));
        return false;
    }
    if (container.kind == KIND_DICT)
        return dict_find(run, container.dict, item) != NULL;
    struct list *list = value_elements(run, container);
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++)
        if (value_equal(run, list->items[i], item))
            return true;
    return false;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

struct value value_from_json(struct run *run, const json_t *json, unsigned depth)
{
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT)
        return template_fail(run, STATUS_LIMIT, "the input is nested more than %d levels deep",
                             TEMPLATE_VALUE_DEPTH_LIMIT);
    switch (json_typeof(json)) {
    case JSON_OBJECT: {
        struct dict *dict = dict_open(run);
        json_t *object = (json_t *)(uintptr_t)json; /* jansson's iterators are not const */
        for (void *at = json_object_iter(object); at != NULL && !run->failed;
             at = json_object_iter_next(object, at)) {
            const char *key = json_object_iter_key(at);
            dict_set(run, dict, value_text(run, key, strlen(key)),
                     value_from_json(run, json_object_iter_value(at), depth + 1));
        }
        return value_dict(dict);
    }
    case JSON_ARRAY: {
        struct list *list = list_open(run, json_array_size(json));
        for (size_t i = 0; i < json_array_size(json) && !run->failed; i++)
            list_push(run, list, value_from_json(run, json_array_get(json, i), depth + 1));
        return value_list(list, KIND_LIST);
    }
    case JSON_STRING:
        return value_text(run, json_string_value(json), json_string_length(json));
    case JSON_INTEGER:
        return value_int(json_integer_value(json));
    case JSON_REAL:
        return value_float(json_real_value(json));
    case JSON_TRUE:
    case JSON_FALSE:
        return value_bool(json_is_true(json));
    default:
        return value_none();
    }
}
