/* Values as text: Python's str() and repr(), JSON as json.dumps writes it, and HTML escapes. */
#include "text/template.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Numbers --------------------------------------------------------------------------------- */

/* The fewest digits that read back as real, then as Python lays them out: 0.0001, 1e-05, 1e+16. */
void value_put_float(struct run *run, struct buffer *out, double real)
{
    char text[64], digits[32];
    if (isnan(real) || isinf(real)) {
        template_put_text(run, out, isnan(real) ? "nan" : real > 0 ? "inf" : "-inf");
        return;
    }
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, real);
        if (strtod(text, NULL) == real)
            break;
    }
    const char *at = text;
    if (*at == '-')
        template_put(run, out, at++, 1);
    size_t n = 0;
    for (; *at != 'e'; at++)
        if (*at >= '0' && *at <= '9')
            digits[n++] = *at;
    int exponent = atoi(at + 1);
    struct buffer number = {0};
    if (exponent < -4 || exponent >= 16) {
        buffer_printf(&number, "%c%s%.*se%c%02d", digits[0], n > 1 ? "." : "", (int)n - 1,
                      digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        buffer_printf(&number, "0.%.*s%.*s", -exponent - 1, "0000", (int)n, digits);
    } else {
        for (int i = 0; i <= exponent || i < (int)n; i++) {
            buffer_append(&number, i < (int)n ? &digits[i] : "0", 1);
            if (i == exponent)
                buffer_append(&number, ".", 1);
        }
        if ((int)n <= exponent + 1)
            buffer_append(&number, "0", 1);
    }
    template_put(run, out, number.data, number.size);
    buffer_free(&number);
}

static void put_integer(struct run *run, struct buffer *out, int64_t integer)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, integer);
    template_put_text(run, out, text);
}

/* ---- repr() ---------------------------------------------------------------------------------- */

static void put_text_repr(struct run *run, struct buffer *out, const struct string *string)
{
    bool single = string->size > 0 && memchr(string->data, '\'', string->size) != NULL;
    bool both = single && memchr(string->data, '"', string->size) != NULL;
    char quote = single && !both ? '"' : '\'';
    uint32_t c;
    template_put(run, out, &quote, 1);
    for (size_t i = 0, size; i < string->size && !run->failed; i += size) {
        char escape[16] = "";
        size = utf8_decode(string->data + i, string->size - i, &c);
        if (size == 0)
            break;
        if (c == '\\' || c == (unsigned char)quote)
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (!character_printable(c))
            snprintf(escape, sizeof escape,
                     c < 0x100     ? "\\x%02x"
                     : c < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                     (unsigned)c);
        if (escape[0] != '\0')
            template_put_text(run, out, escape);
        else
            template_put(run, out, string->data + i, size);
    }
    template_put(run, out, &quote, 1);
}

static void put_list_repr(struct run *run, struct buffer *out, struct value value, unsigned depth)
{
    static const char *const view_names[] = {
        [LIST_KEYS] = "dict_keys", [LIST_VALUES] = "dict_values", [LIST_ITEMS] = "dict_items"};
    const struct list *list = value.list;
    bool tuple = value.kind == KIND_TUPLE;
    if (value.kind == KIND_VIEW) {
        template_put_text(run, out, view_names[list->flavour]);
        template_put_text(run, out, "(");
    }
    template_put_text(run, out, tuple ? "(" : "[");
    for (size_t i = 0; i < list->count && !run->failed; i++) {
        if (i > 0)
            template_put_text(run, out, ", ");
        value_put_repr(run, out, list->items[i], depth + 1);
    }
    template_put_text(run, out, tuple ? list->count == 1 ? ",)" : ")" : "]");
    if (value.kind == KIND_VIEW)
        template_put_text(run, out, ")");
}

/* The entries in the order of their keys. Insertion will do: dicts are small, and what hostile ones
 * cost is counted. */
static struct entry *sorted_entries(struct run *run, const struct dict *dict)
{
    struct entry *sorted = template_alloc(run, dict->count, sizeof *sorted);
    for (size_t i = 0; sorted != NULL && i < dict->count && !run->failed; i++) {
        size_t at = i;
        bool unordered;
        while (at > 0 && template_spend(run, 1) &&
               value_compare(run, sorted[at - 1].key, dict->entries[i].key, &unordered) > 0) {
            sorted[at] = sorted[at - 1];
            at--;
        }
        sorted[at] = dict->entries[i];
    }
    return run->failed ? NULL : sorted;
}

static void put_dict_repr(struct run *run, struct buffer *out, const struct dict *dict,
                          unsigned depth)
{
    const struct entry *entries = run->sorts_reprs ? sorted_entries(run, dict) : dict->entries;
    template_put_text(run, out, "{");
    for (size_t i = 0; i < dict->count && !run->failed; i++) {
        if (i > 0)
            template_put_text(run, out, ", ");
        value_put_repr(run, out, entries[i].key, depth + 1);
        template_put_text(run, out, ": ");
        value_put_repr(run, out, entries[i].value, depth + 1);
    }
    template_put_text(run, out, "}");
}

static void put_range_repr(struct run *run, struct buffer *out, const struct range *range)
{
    char text[100];
    int64_t stop = range->start + (int64_t)range->count * range->step;
    int length = snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64, range->start, stop);
    if (range->step != 1)
        snprintf(text + length, sizeof text - (size_t)length, ", %" PRId64, range->step);
    template_put_text(run, out, text);
    template_put_text(run, out, ")");
}

void value_put_repr(struct run *run, struct buffer *out, struct value value, unsigned depth)
{
    char text[100];
    if (run->failed || !template_spend(run, 1))
        return;
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "a value is nested too deeply to print");
        return;
    }
    switch (value.kind) {
    case KIND_UNDEFINED:
    case KIND_MISSING:
        template_put_text(run, out, "Undefined");
        break;
    case KIND_NONE:
        template_put_text(run, out, "None");
        break;
    case KIND_BOOL:
        template_put_text(run, out, value.boolean ? "True" : "False");
        break;
    case KIND_INT:
        put_integer(run, out, value.integer);
        break;
    case KIND_FLOAT:
        value_put_float(run, out, value.real);
        break;
    case KIND_STRING:
        if (value.string->safe)
            template_put_text(run, out, "Markup(");
        put_text_repr(run, out, value.string);
        if (value.string->safe)
            template_put_text(run, out, ")");
        break;
    case KIND_LIST:
    case KIND_TUPLE:
    case KIND_VIEW:
        put_list_repr(run, out, value, depth);
        break;
    case KIND_DICT:
        put_dict_repr(run, out, value.dict, depth);
        break;
    case KIND_NAMESPACE:
        template_put_text(run, out, "<Namespace ");
        put_dict_repr(run, out, value.dict, depth);
        template_put_text(run, out, ">");
        break;
    case KIND_RANGE:
        put_range_repr(run, out, value.range);
        break;
    case KIND_LOOP:
        snprintf(text, sizeof text, "<LoopContext %" PRId64 "/%zu>", value.loop->index0 + 1,
                 loop_length(run, value.loop));
        template_put_text(run, out, text);
        break;
    case KIND_MACRO:
        template_put_text(run, out, "<Macro ");
        put_text_repr(run, out, value.macro->name);
        template_put_text(run, out, ">");
        break;
    default:
        /* Python prints an address here, which no template can mean. */
        snprintf(text, sizeof text, "<%s object>", value_type(value));
        template_put_text(run, out, text);
        break;
    }
}

void value_put(struct run *run, struct buffer *out, struct value value)
{
    if (value.kind == KIND_STRING)
        template_put(run, out, value.string->data, value.string->size);
    else if (value.kind != KIND_UNDEFINED)
        value_put_repr(run, out, value, 0);
}

struct value value_string(struct run *run, struct value value)
{
    if (value.kind == KIND_STRING)
        return value;
    struct buffer text = {0};
    value_put(run, &text, value);
    return value_take(run, &text);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void put_json_text(struct run *run, struct buffer *out, const struct string *string,
                          bool ensure_ascii)
{
    static const char plain[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    uint32_t c;
    template_put_text(run, out, "\"");
    for (size_t i = 0, size; i < string->size && !run->failed; i += size) {
        char escape[16] = "";
        size = utf8_decode(string->data + i, string->size - i, &c);
        if (size == 0)
            break;
        const char *known = c < 0x80 && c > 0 ? strchr(plain, (int)c) : NULL;
        if (known != NULL)
            snprintf(escape, sizeof escape, "\\%c", letters[known - plain]);
        else if (c < 0x20 || (ensure_ascii && c > 0x7E && c < 0x10000))
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
        else if (ensure_ascii && c >= 0x10000)
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x",
                     (unsigned)(0xD800 + ((c - 0x10000) >> 10)),
                     (unsigned)(0xDC00 + ((c - 0x10000) & 0x3FF)));
        if (escape[0] != '\0')
            template_put_text(run, out, escape);
        else
            template_put(run, out, string->data + i, size);
    }
    template_put_text(run, out, "\"");
}

static void put_json_line(struct run *run, struct buffer *out, const struct json_style *style,
                          unsigned depth)
{
    if (!style->indented)
        return;
    template_put_text(run, out, "\n");
    for (unsigned i = 0; i < depth; i++)
        template_put(run, out, style->indent.data, style->indent.size);
}

static void put_json_number(struct run *run, struct buffer *out, struct value value)
{
    if (value.kind == KIND_INT)
        put_integer(run, out, value.integer);
    else if (isnan(value.real) || isinf(value.real))
        template_put_text(run, out,
                          isnan(value.real) ? "NaN"
                          : value.real > 0  ? "Infinity"
                                            : "-Infinity");
    else
        value_put_float(run, out, value.real);
}

static void put_json_key(struct run *run, struct buffer *out, struct value key,
                         const struct json_style *style)
{
    switch (key.kind) {
    case KIND_STRING:
        put_json_text(run, out, key.string, style->ensure_ascii);
        break;
    case KIND_NONE:
    case KIND_BOOL:
    case KIND_INT:
    case KIND_FLOAT:
        template_put_text(run, out, "\"");
        value_put_json(run, out, key, style, 0);
        template_put_text(run, out, "\"");
        break;
    default:
        template_fail(run, STATUS_INVALID, "a %s cannot be a key in JSON", value_type(key));
    }
}

static void put_json_dict(struct run *run, struct buffer *out, const struct dict *dict,
                          const struct json_style *style, unsigned depth)
{
    const struct entry *entries = style->sort_keys ? sorted_entries(run, dict) : dict->entries;
    template_put_text(run, out, "{");
    for (size_t i = 0; entries != NULL && i < dict->count && !run->failed; i++) {
        if (i > 0)
            template_put(run, out, style->item_separator.data, style->item_separator.size);
        put_json_line(run, out, style, depth + 1);
        put_json_key(run, out, entries[i].key, style);
        template_put(run, out, style->key_separator.data, style->key_separator.size);
        value_put_json(run, out, entries[i].value, style, depth + 1);
    }
    if (dict->count > 0)
        put_json_line(run, out, style, depth);
    template_put_text(run, out, "}");
}

static void put_json_list(struct run *run, struct buffer *out, const struct list *list,
                          const struct json_style *style, unsigned depth)
{
    template_put_text(run, out, "[");
    for (size_t i = 0; i < list->count && !run->failed; i++) {
        if (i > 0)
            template_put(run, out, style->item_separator.data, style->item_separator.size);
        put_json_line(run, out, style, depth + 1);
        value_put_json(run, out, list->items[i], style, depth + 1);
    }
    if (list->count > 0)
        put_json_line(run, out, style, depth);
    template_put_text(run, out, "]");
}

void value_put_json(struct run *run, struct buffer *out, struct value value,
                    const struct json_style *style, unsigned depth)
{
    if (run->failed || !template_spend(run, 1))
        return;
    if (depth > TEMPLATE_VALUE_DEPTH_LIMIT) {
        template_fail(run, STATUS_LIMIT, "a value is nested too deeply for JSON");
        return;
    }
    switch (value.kind) {
    case KIND_NONE:
        template_put_text(run, out, "null");
        break;
    case KIND_BOOL:
        template_put_text(run, out, value.boolean ? "true" : "false");
        break;
    case KIND_INT:
    case KIND_FLOAT:
        put_json_number(run, out, value);
        break;
    case KIND_STRING:
        put_json_text(run, out, value.string, style->ensure_ascii);
        break;
    case KIND_LIST:
    case KIND_TUPLE:
        put_json_list(run, out, value.list, style, depth);
        break;
    case KIND_DICT:
        put_json_dict(run, out, value.dict, style, depth);
        break;
    default:
        template_fail(run, STATUS_INVALID, "a %s cannot be written as JSON", value_type(value));
    }
}

/* ---- HTML ------------------------------------------------------------------------------------ */

void value_put_escaped(struct run *run, struct buffer *out, struct value value)
{
    static const char plain[] = "&<>\"'";
    static const char *const escapes[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    struct value text = value_string(run, value);
    if (text.kind != KIND_STRING)
        return;
    if (text.string->safe) {
        value_put(run, out, text);
        return;
    }
    for (size_t i = 0; i < text.string->size && !run->failed; i++) {
        const char *data = text.string->data + i;
        const char *known = *data != '\0' ? strchr(plain, *data) : NULL;
        if (known != NULL)
            template_put_text(run, out, escapes[known - plain]);
        else
            template_put(run, out, data, 1);
    }
}
