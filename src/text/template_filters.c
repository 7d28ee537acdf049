/* Jinja2's filters for texts and numbers; tojson as chat templates have it. */
#include "text/template.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Calls the method of str(self) that has the filter's name. */
static struct value as_method(struct run *run, struct value self, const char *name,
                              struct call *call)
{
    struct value text = value_string(run, self);
    if (run->failed)
        return text;
    return template_find_method(KIND_STRING, view_of(name))->function(run, text, call);
}

static struct value filter_upper(struct run *run, struct value self, struct call *call)
{
    return as_method(run, self, "upper", call);
}

static struct value filter_lower(struct run *run, struct value self, struct call *call)
{
    return as_method(run, self, "lower", call);
}

static struct value filter_trim(struct run *run, struct value self, struct call *call)
{
    return as_method(run, self, "strip", call);
}

static struct value filter_center(struct run *run, struct value self, struct call *call)
{
    if (call->bound[0].kind == KIND_MISSING)
        call->bound[0] = value_int(80);
    call->bound[1] = (struct value){.kind = KIND_MISSING};
    return as_method(run, self, "center", call);
}

static struct value filter_capitalize(struct run *run, struct value self, struct call *call)
{
    return as_method(run, self, "capitalize", call);
}

static struct value filter_string(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return value_string(run, self);
}

/* Words begin after white space, "-" and opening brackets. */
static struct value filter_title(struct run *run, struct value self, struct call *call)
{
    struct value value = value_string(run, self);
    struct buffer out = {0};
    bool inside = false;
    uint32_t c;
    (void)call;
    if (run->failed)
        return value;
    struct view text = string_view(value.string);
    for (size_t i = 0, size; i < text.size && !run->failed; i += size) {
        size = utf8_decode(text.data + i, text.size - i, &c);
        if (size == 0)
            break;
        template_put_case(run, &out, (struct view){text.data + i, size},
                          inside ? CASE_LOWER : CASE_UPPER);
        inside = !character_space(c) && (c >= 0x80 || strchr("-({[<", (int)c) == NULL || c == 0);
    }
    return value_take(run, &out);
}

static struct value filter_default(struct run *run, struct value self, struct call *call)
{
    (void)run;
    bool replaced =
        self.kind == KIND_UNDEFINED || (template_flag(call->bound[1]) && !value_truth(self));
    if (!replaced)
        return self;
    return call->bound[0].kind != KIND_MISSING ? call->bound[0] : value_borrow(run, "", 0);
}

static struct value filter_replace(struct run *run, struct value self, struct call *call)
{
    struct value text = value_string(run, self), part = value_string(run, call->bound[0]);
    struct value other = value_string(run, call->bound[1]);
    int64_t limit = template_integer(run, call->bound[2], -1);
    if (run->failed)
        return text;
    return template_replace(run, text.string, part.string, other.string, limit);
}

static struct value filter_attr(struct run *run, struct value self, struct call *call)
{
    struct value name = value_string(run, call->bound[0]);
    if (run->failed)
        return name;
    /* Only attributes, not the entries of a dict. */
    if (self.kind == KIND_DICT) {
        const struct builtin *method = template_find_method(KIND_DICT, string_view(name.string));
        return method != NULL ? value_method(run, self, method) : value_undefined(name.string);
    }
    return template_attribute(run, self, name);
}

/* ---- HTML ------------------------------------------------------------------------------------ */

static struct value marked_safe(struct value text)
{
    if (text.kind == KIND_STRING)
        text.string->safe = true;
    return text;
}

static struct value filter_escape(struct run *run, struct value self, struct call *call)
{
    struct buffer out = {0};
    (void)call;
    if (self.kind == KIND_STRING && self.string->safe)
        return self;
    value_put_escaped(run, &out, self);
    return marked_safe(value_take(run, &out));
}

static struct value filter_forceescape(struct run *run, struct value self, struct call *call)
{
    struct value text = value_string(run, self);
    if (run->failed)
        return text;
    return filter_escape(run, value_borrow(run, text.string->data, text.string->size), call);
}

static struct value filter_safe(struct run *run, struct value self, struct call *call)
{
    (void)call;
    struct value text = value_string(run, self);
    if (run->failed)
        return text;
    return marked_safe(value_borrow(run, text.string->data, text.string->size));
}

/* text without tags and comments. */
static struct value without_tags(struct run *run, struct view text)
{
    struct buffer plain = {0};
    bool closed = true; /* a ">" may follow */
    for (size_t i = 0; i < text.size && !run->failed; i++) {
        bool comment = text.size - i >= 4 && memcmp(text.data + i, "<!--", 4) == 0;
        const char *end = NULL;
        size_t at = i + 1;
        for (; closed && text.data[i] == '<' && at < text.size && end == NULL; at++)
            if (text.data[at] == '>' &&
                (!comment || (at >= i + 6 && memcmp(text.data + at - 2, "--", 2) == 0)))
                end = text.data + at;
        template_spend(run, (at - i) / 8);
        closed &= text.data[i] != '<' || comment || end != NULL;
        if (end != NULL)
            i = (size_t)(end - text.data);
        else
            template_put(run, &plain, text.data + i, 1);
    }
    return value_take(run, &plain);
}

/* text with the entities that escaping makes read back. */
static void put_unescaped(struct run *run, struct buffer *out, struct view text)
{
    static const char *const entities[] = {"&amp;",  "&",  "&lt;",  "<",  "&gt;",  ">",
                                           "&quot;", "\"", "&#34;", "\"", "&#39;", "'"};
    for (size_t at = 0; at < text.size && !run->failed;) {
        size_t e = 0, size = 0;
        for (; e < ARRAY_COUNT(entities); e += 2) {
            size = strlen(entities[e]);
            if (size <= text.size - at && memcmp(text.data + at, entities[e], size) == 0)
                break;
        }
        bool known = e < ARRAY_COUNT(entities);
        template_put(run, out, known ? entities[e + 1] : text.data + at, 1);
        at += known ? size : 1;
    }
}

/* Tags and comments go, runs of white space become one space, and entities are read. */
static struct value filter_striptags(struct run *run, struct value self, struct call *call)
{
    struct value value = value_string(run, self);
    struct buffer out = {0};
    struct call none = {0};
    (void)call;
    if (run->failed)
        return value;
    struct value stripped = without_tags(run, string_view(value.string));
    for (size_t i = 0; i < BUILTIN_PARAMETERS; i++)
        none.bound[i].kind = KIND_MISSING;
    struct value words = run->failed ? stripped : as_method(run, stripped, "split", &none);
    for (size_t i = 0; words.kind == KIND_LIST && i < words.list->count; i++) {
        if (i > 0)
            template_put_text(run, &out, " ");
        put_unescaped(run, &out, string_view(words.list->items[i].string));
    }
    return value_take(run, &out);
}

static struct value filter_xmlattr(struct run *run, struct value self, struct call *call)
{
    struct buffer out = {0};
    if (self.kind != KIND_DICT)
        return template_fail(run, STATUS_INVALID, "xmlattr wants a dict");
    for (size_t i = 0; i < self.dict->count && !run->failed; i++) {
        const struct entry *entry = &self.dict->entries[i];
        if (entry->value.kind == KIND_NONE || entry->value.kind == KIND_UNDEFINED)
            continue;
        struct value key = entry->key;
        if (key.kind != KIND_STRING)
            template_fail(run, STATUS_INVALID, "xmlattr wants texts as names");
        for (size_t j = 0; key.kind == KIND_STRING && j < key.string->size; j++)
            if (memchr(" \t\n\f\r/>=", key.string->data[j], 8) != NULL)
                template_fail(run, STATUS_INVALID, "xmlattr: a name has a character it must not");
        if (out.size > 0 || call->bound[0].kind == KIND_MISSING || value_truth(call->bound[0]))
            template_put_text(run, &out, " ");
        value_put_escaped(run, &out, key);
        template_put_text(run, &out, "=\"");
        value_put_escaped(run, &out, entry->value);
        template_put_text(run, &out, "\"");
    }
    return value_take(run, &out);
}

/* ---- Layout ---------------------------------------------------------------------------------- */

static struct value filter_indent(struct run *run, struct value self, struct call *call)
{
    struct value width = call->bound[0];
    bool first = template_flag(call->bound[1]), blank = template_flag(call->bound[2]);
    struct buffer padding = {0}, source = {0}, out = {0};
    if (self.kind != KIND_STRING)
        return self.kind == KIND_UNDEFINED
                   ? template_fail_undefined(run, self)
                   : template_fail(run, STATUS_INVALID, "indent wants a text, not a %s",
                                   value_type(self));
    if (width.kind == KIND_STRING)
        value_put(run, &padding, width);
    else
        for (int64_t n = template_integer(run, width, 4); n > 0 && template_spend(run, 1); n--)
            template_put_text(run, &padding, " ");
    value_put(run, &source, self);
    template_put_text(run, &source, "\n");
    struct value text = value_take(run, &source);
    struct list *lines =
        text.kind == KIND_STRING ? template_lines(run, string_view(text.string), false) : NULL;
    for (size_t i = 0; lines != NULL && i < lines->count && !run->failed; i++) {
        if (i > 0)
            template_put_text(run, &out, "\n");
        if (i == 0 ? first : blank || lines->items[i].string->size > 0)
            template_put(run, &out, padding.data, padding.size);
        value_put(run, &out, lines->items[i]);
    }
    buffer_free(&padding);
    return value_take(run, &out);
}

static struct value filter_truncate(struct run *run, struct value self, struct call *call)
{
    int64_t length = template_integer(run, call->bound[0], 255);
    int64_t leeway = template_integer(run, call->bound[3], 5);
    struct value end =
        call->bound[2].kind != KIND_MISSING ? call->bound[2] : value_borrow(run, "...", 3);
    size_t characters;
    if (run->failed || !value_length(self, &characters) || end.kind != KIND_STRING)
        return template_fail(run, STATUS_INVALID, "truncate wants a text");
    if (length < (int64_t)end.string->length || leeway < 0)
        return template_fail(run, STATUS_INVALID, "truncate is given too small a length");
    if ((int64_t)characters <= length + MIN(leeway, INT32_MAX))
        return self;
    if (self.kind != KIND_STRING)
        return template_fail(run, STATUS_INVALID, "truncate wants a text, not a %s",
                             value_type(self));
    struct view cut = string_part(self.string, 0, (size_t)length - end.string->length);
    if (!template_flag(call->bound[1])) {
        size_t space = cut.size;
        while (space > 0 && cut.data[space - 1] != ' ')
            space--;
        cut.size = space > 0 ? space - 1 : cut.size;
    }
    struct buffer out = {0};
    template_put(run, &out, cut.data, cut.size);
    value_put(run, &out, end);
    return value_take(run, &out);
}

static struct value filter_wordcount(struct run *run, struct value self, struct call *call)
{
    struct value text = value_string(run, self);
    int64_t count = 0;
    bool inside = false;
    uint32_t c;
    (void)call;
    if (run->failed)
        return text;
    for (size_t i = 0, size; i < text.string->size; i += size) {
        size = utf8_decode(text.string->data + i, text.string->size - i, &c);
        bool word = c == '_' || character_alpha(c) || character_digit(c) || character_numeric(c);
        count += word && !inside;
        inside = word;
        if (size == 0)
            break;
    }
    template_spend(run, text.string->size / 8);
    return value_int(count);
}

static bool is_unreserved(unsigned char c, bool in_query)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z' && c < 0x80) ||
           (c != '\0' && strchr("_.-~", c) != NULL) || (c == '/' && !in_query);
}

static void put_quoted(struct run *run, struct buffer *out, struct value value, bool in_query)
{
    struct value text = value_string(run, value);
    for (size_t i = 0; text.kind == KIND_STRING && i < text.string->size && !run->failed; i++) {
        unsigned char c = (unsigned char)text.string->data[i];
        char escape[4];
        snprintf(escape, sizeof escape, "%%%02X", c);
        if (is_unreserved(c, in_query))
            template_put(run, out, &c, 1);
        else
            template_put_text(run, out, c == ' ' && in_query ? "+" : escape);
    }
}

static struct value filter_urlencode(struct run *run, struct value self, struct call *call)
{
    struct buffer out = {0};
    (void)call;
    if (self.kind == KIND_STRING || !value_iterable(self)) {
        put_quoted(run, &out, self, false);
        return value_take(run, &out);
    }
    struct list *list =
        self.kind == KIND_DICT ? dict_list(run, self.dict, LIST_ITEMS) : value_elements(run, self);
    for (size_t i = 0; list != NULL && i < list->count && !run->failed; i++) {
        struct list *pair = value_elements(run, list->items[i]);
        if (pair == NULL || pair->count != 2) {
            template_fail(run, STATUS_INVALID, "urlencode wants pairs");
            break;
        }
        if (i > 0)
            template_put_text(run, &out, "&");
        put_quoted(run, &out, pair->items[0], true);
        template_put_text(run, &out, "=");
        put_quoted(run, &out, pair->items[1], true);
    }
    return value_take(run, &out);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

static struct value filter_abs(struct run *run, struct value self, struct call *call)
{
    int64_t integer;
    (void)call;
    if (self.kind == KIND_FLOAT)
        return value_float(fabs(self.real));
    if (value_integer(self, &integer))
        return integer < 0 ? template_binary(run, '-', value_int(0), self) : value_int(integer);
    return template_fail(run, STATUS_INVALID, "a %s has no absolute value", value_type(self));
}

/* Without white space around and single underscores between digits, as Python reads numbers; at
 * most size - 1 characters. */
static bool number_text(const struct string *string, char *out, size_t size)
{
    size_t start = 0, end = string->size, n = 0;
    while (start < end && strchr(" \t\n\v\f\r", string->data[start]) != NULL)
        start++;
    while (end > start && strchr(" \t\n\v\f\r", string->data[end - 1]) != NULL)
        end--;
    for (size_t i = start; i < end; i++) {
        char c = string->data[i];
        bool between = i > start && i + 1 < end && c == '_' && string->data[i - 1] != '_' &&
                       string->data[i + 1] != '_';
        if (between)
            continue;
        if (n + 1 >= size || c == '\0' || c == '_')
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return n > 0;
}

static bool text_float(const struct string *string, double *out)
{
    char text[400], *end;
    if (!number_text(string, text, sizeof text) || strpbrk(text, "xXpP(") != NULL)
        return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

/* In base; a prefix such as 0x is read where the base is that of the prefix, or 0. */
static bool text_integer(const struct string *string, int64_t base, int64_t *out)
{
    char text[400];
    if (!number_text(string, text, sizeof text) || base < 0 || base == 1 || base > 36)
        return false;
    const char *at = text;
    bool negative = *at == '-';
    at += *at == '-' || *at == '+';
    int prefix = at[0] != '0'            ? 0
                 : (at[1] | 0x20) == 'x' ? 16
                 : (at[1] | 0x20) == 'o' ? 8
                 : (at[1] | 0x20) == 'b' ? 2
                                         : 0;
    if (prefix != 0 && (base == 0 || base == prefix)) {
        at += 2;
        base = prefix;
    }
    base = base == 0 ? 10 : base;
    int64_t number = 0;
    if (*at == '\0')
        return false;
    for (; *at != '\0'; at++) {
        char letter = (char)(*at | 0x20);
        int digit = *at >= '0' && *at <= '9'         ? *at - '0'
                    : letter >= 'a' && letter <= 'z' ? letter - 'a' + 10
                                                     : 99;
        if (digit >= base || __builtin_mul_overflow(number, base, &number) ||
            __builtin_add_overflow(number, negative ? -digit : digit, &number))
            return false;
    }
    *out = number;
    return true;
}

static struct value truncated(struct run *run, double real, struct value otherwise)
{
    if (isnan(real) || isinf(real))
        return otherwise;
    if (real >= 9223372036854775808.0 || real < -9223372036854775808.0)
        return template_fail(run, STATUS_LIMIT, "a whole number does not fit into 64 bits");
    return value_int((int64_t)real);
}

static struct value filter_int(struct run *run, struct value self, struct call *call)
{
    struct value otherwise = call->bound[0].kind != KIND_MISSING ? call->bound[0] : value_int(0);
    int64_t base = template_integer(run, call->bound[1], 10), integer;
    double real;
    if (value_integer(self, &integer))
        return value_int(integer);
    if (self.kind == KIND_FLOAT)
        return truncated(run, self.real, otherwise);
    if (self.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, self);
    if (self.kind != KIND_STRING)
        return otherwise;
    if (text_integer(self.string, base, &integer))
        return value_int(integer);
    return text_float(self.string, &real) ? truncated(run, real, otherwise) : otherwise;
}

static struct value filter_float(struct run *run, struct value self, struct call *call)
{
    double real;
    if (value_is_number(self))
        return value_float(value_real(self));
    if (self.kind == KIND_UNDEFINED)
        return template_fail_undefined(run, self);
    if (self.kind == KIND_STRING && text_float(self.string, &real))
        return value_float(real);
    return call->bound[0].kind != KIND_MISSING ? call->bound[0] : value_float(0);
}

static struct value round_integer(struct run *run, int64_t integer, int64_t precision)
{
    int64_t unit = 1;
    for (int64_t i = precision; i < 0; i++)
        if (__builtin_mul_overflow(unit, 10, &unit))
            return value_int(0);
    int64_t rest = integer % unit, twice = rest < 0 ? -rest : rest;
    int64_t down = integer - rest;
    bool away = twice > unit - twice || (twice == unit - twice && (down / unit) % 2 != 0);
    if (!away || unit == 1)
        return value_int(down);
    return template_binary(run, '+', value_int(down), value_int(integer < 0 ? -unit : unit));
}

static struct value round_float(double real, int64_t precision)
{
    char text[400];
    if (isnan(real) || isinf(real) || precision > 300)
        return value_float(real);
    if (precision < 0) {
        double unit = pow(10, (double)MIN(-precision, 400));
        return value_float(isinf(unit) ? copysign(0.0, real) : nearbyint(real / unit) * unit);
    }
    /* The decimal text is rounded exactly. */
    int length = snprintf(text, sizeof text, "%.*f", (int)precision, real);
    return value_float(length < (int)sizeof text ? strtod(text, NULL) : real);
}

static struct value filter_round(struct run *run, struct value self, struct call *call)
{
    int64_t precision = template_integer(run, call->bound[0], 0), integer;
    struct value method = call->bound[1];
    bool ceiling = string_is(method, "ceil"), flooring = string_is(method, "floor");
    if (!value_is_number(self))
        return self.kind == KIND_UNDEFINED
                   ? template_fail_undefined(run, self)
                   : template_fail(run, STATUS_INVALID, "a %s cannot be rounded", value_type(self));
    if (method.kind != KIND_MISSING && !ceiling && !flooring && !string_is(method, "common"))
        return template_fail(run, STATUS_INVALID, "round rounds \"common\", \"ceil\" or \"floor\"");
    if (!ceiling && !flooring)
        return value_integer(self, &integer) ? round_integer(run, integer, precision)
                                             : round_float(self.real, precision);
    double unit = pow(10, (double)MIN(MAX(precision, -400), 400));
    double scaled = value_real(self) * unit;
    return value_float((ceiling ? ceil(scaled) : floor(scaled)) / unit);
}

static struct value filter_filesizeformat(struct run *run, struct value self, struct call *call)
{
    static const char *const decimal[] = {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
    static const char *const binary[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
    struct call none = {.bound[0].kind = KIND_NONE};
    struct value number = filter_float(run, self, &none);
    if (number.kind != KIND_FLOAT)
        return template_fail(run, STATUS_INVALID, "filesizeformat wants a number, not a %s",
                             value_type(self));
    bool is_binary = template_flag(call->bound[0]);
    double base = is_binary ? 1024 : 1000, bytes = number.real;
    char text[400];
    size_t which = 0;
    double unit = base * base;
    if (bytes < base) {
        snprintf(text, sizeof text, bytes == 1 ? "%.0f Byte" : "%.0f Bytes", trunc(bytes));
    } else {
        for (; which + 1 < ARRAY_COUNT(decimal) && bytes >= unit; which++)
            unit *= base;
        snprintf(text, sizeof text, "%.1f %s", base * bytes / unit,
                 is_binary ? binary[which] : decimal[which]);
    }
    return value_text(run, text, strlen(text));
}

/* ---- tojson and the like --------------------------------------------------------------------- */

static struct value filter_tojson(struct run *run, struct value self, struct call *call)
{
    struct json_style style = {.ensure_ascii = template_flag(call->bound[0]),
                               .sort_keys = template_flag(call->bound[3]),
                               .indented = template_given(call->bound[1])};
    struct buffer out = {0}, indent = {0};
    style.item_separator = view_of(style.indented ? "," : ", ");
    style.key_separator = view_of(": ");
    if (call->bound[1].kind == KIND_STRING)
        value_put(run, &indent, call->bound[1]);
    else
        for (int64_t n = template_integer(run, call->bound[1], 0); n > 0 && template_spend(run, 1);
             n--)
            template_put_text(run, &indent, " ");
    style.indent = (struct view){indent.data, indent.size};
    if (template_given(call->bound[2])) {
        struct list *pair = value_elements(run, call->bound[2]);
        if (pair == NULL || pair->count != 2 || pair->items[0].kind != KIND_STRING ||
            pair->items[1].kind != KIND_STRING) {
            template_fail(run, STATUS_INVALID, "tojson wants two texts as separators");
        } else {
            style.item_separator = string_view(pair->items[0].string);
            style.key_separator = string_view(pair->items[1].string);
        }
    }
    value_put_json(run, &out, self, &style, 0);
    buffer_free(&indent);
    return value_take(run, &out);
}

static struct value filter_pprint(struct run *run, struct value self, struct call *call)
{
    struct buffer out = {0};
    (void)call;
    run->sorts_reprs = true;
    value_put_repr(run, &out, self, 0);
    run->sorts_reprs = false;
    if (out.size > 80 && value_iterable(self))
        template_fail(run, STATUS_UNSUPPORTED, "pprint is supported for values of one line");
    return value_take(run, &out);
}

static struct value filter_format(struct run *run, struct value self, struct call *call)
{
    struct value format = value_string(run, self);
    if (run->failed)
        return format;
    if (call->n_positional > 0 && call->n_keywords > 0)
        return template_fail(run, STATUS_INVALID, "format takes arguments by place or by name");
    struct list *values = list_open(run, call->n_positional);
    for (size_t i = 0; i < call->n_positional; i++)
        list_push(run, values, call->positional[i]);
    struct value given = value_list(values, KIND_TUPLE);
    if (call->n_keywords > 0) {
        struct dict *named = dict_open(run);
        template_update(run, named, call);
        given = value_dict(named);
    }
    return run->failed ? given : template_percent(run, format.string, given);
}

const struct builtin *template_find_filter(struct view name)
{
    static const struct builtin filters[] = {
        {"abs", filter_abs, "", 0},
        {"attr", filter_attr, "name", 1},
        {"capitalize", filter_capitalize, "", 0},
        {"center", filter_center, "width", 0},
        {"d", filter_default, "default_value boolean", 0},
        {"default", filter_default, "default_value boolean", 0},
        {"e", filter_escape, "", 0},
        {"escape", filter_escape, "", 0},
        {"filesizeformat", filter_filesizeformat, "binary", 0},
        {"float", filter_float, "default", 0},
        {"forceescape", filter_forceescape, "", 0},
        {"format", filter_format, "*", 0},
        {"indent", filter_indent, "width first blank", 0},
        {"int", filter_int, "default base", 0},
        {"lower", filter_lower, "", 0},
        {"pprint", filter_pprint, "", 0},
        {"replace", filter_replace, "old new count", 2},
        {"round", filter_round, "precision method", 0},
        {"safe", filter_safe, "", 0},
        {"string", filter_string, "", 0},
        {"striptags", filter_striptags, "", 0},
        {"title", filter_title, "", 0},
        {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys", 0},
        {"trim", filter_trim, "chars", 0},
        {"truncate", filter_truncate, "length killwords end leeway", 0},
        {"upper", filter_upper, "", 0},
        {"urlencode", filter_urlencode, "", 0},
        {"urlize", NULL, "*", 0},
        {"wordcount", filter_wordcount, "", 0},
        {"wordwrap", template_wordwrap, "width break_long_words wrapstring break_on_hyphens", 0},
        {"xmlattr", filter_xmlattr, "autospace", 0},
    };
    const struct builtin *found = template_find_in(filters, ARRAY_COUNT(filters), name);
    return found != NULL
               ? found
               : template_find_in(template_sequence_filters, template_n_sequence_filters, name);
}
