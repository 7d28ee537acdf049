/* Texts made from a pattern, as Python makes them: "%-5s|%.2f" % (a, b) and "{:>8}".format(a).
 *
 *   %   conversion: % [(name)] [flags] [width] [.precision] type
 *   {}  field: { [name or number] [.attribute or [key]]... [!r or !s] [: specification] }
 *       specification: [[fill]align][sign][#][0][width][, or _][.precision][type]
 */
#include "text/template.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH_LIMIT 100000 /* characters that a pattern may ask for */

struct style {
    char align; /* '<', '>', '^', '=' or 0 */
    char sign;  /* '+', ' ' or 0 */
    char group; /* ',', '_' or 0 */
    char type;  /* 0: by the value */
    bool alternate;
    char fill[4];
    size_t fill_size;
    int width, precision; /* -1: not given */
};

/* ---- One value ------------------------------------------------------------------------------- */

static void put_padded(struct run *run, struct buffer *out, const struct style *style,
                       struct view prefix, struct view body, char otherwise)
{
    size_t length = utf8_count(body.data, body.size);
    int missing = MAX(style->width - (int)MIN(length + prefix.size, WIDTH_LIMIT), 0);
    char align = style->align != 0 ? style->align : otherwise;
    int before = align == '>' || align == '=' ? missing : align == '^' ? missing / 2 : 0;
    if (align == '=')
        template_put(run, out, prefix.data, prefix.size);
    for (int i = 0; i < before; i++)
        template_put(run, out, style->fill, style->fill_size);
    if (align != '=')
        template_put(run, out, prefix.data, prefix.size);
    template_put(run, out, body.data, body.size);
    for (int i = before; i < missing; i++)
        template_put(run, out, style->fill, style->fill_size);
}

/* Thousands are marked from the right of the digits that digits begins with. */
static void put_grouped(struct buffer *out, struct view digits, char group, size_t each)
{
    size_t whole = 0;
    while (whole < digits.size && digits.data[whole] != '.' && digits.data[whole] != 'e' &&
           digits.data[whole] != 'E' && digits.data[whole] != '%')
        whole++;
    for (size_t i = 0; i < digits.size; i++) {
        if (group != 0 && i > 0 && i < whole && (whole - i) % each == 0)
            buffer_append(out, &group, 1);
        buffer_append(out, &digits.data[i], 1);
    }
}

static void put_number(struct run *run, struct buffer *out, const struct style *style,
                       bool negative, const char *base_prefix, struct view digits, size_t each)
{
    char prefix[4];
    struct buffer grouped = {0};
    const char *sign = negative ? "-" : style->sign == '+' ? "+" : style->sign == ' ' ? " " : "";
    snprintf(prefix, sizeof prefix, "%s%s", sign, base_prefix);
    put_grouped(&grouped, digits, style->group, each);
    put_padded(run, out, style, view_of(prefix), (struct view){grouped.data, grouped.size}, '>');
    buffer_free(&grouped);
}

static void put_integer(struct run *run, struct buffer *out, const struct style *style,
                        int64_t integer)
{
    uint64_t magnitude = integer < 0 ? 0 - (uint64_t)integer : (uint64_t)integer;
    unsigned base = style->type == 'x' || style->type == 'X' ? 16
                    : style->type == 'o'                     ? 8
                    : style->type == 'b'                     ? 2
                                                             : 10;
    const char *letters = style->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    const char *prefix = !style->alternate || base == 10 ? ""
                         : base == 2                     ? "0b"
                         : base == 8                     ? "0o"
                         : style->type == 'X'            ? "0X"
                                                         : "0x";
    char digits[512];
    size_t at = sizeof digits, least = (size_t)MIN(MAX(style->precision, 1), 400);
    do {
        digits[--at] = letters[magnitude % base];
        magnitude /= base;
    } while (magnitude > 0 || sizeof digits - at < least);
    put_number(run, out, style, integer < 0, prefix, (struct view){digits + at, sizeof digits - at},
               base == 10 ? 3 : 4);
}

static void put_real(struct run *run, struct buffer *out, const struct style *style, double real)
{
    char text[512], pattern[16];
    char type = style->type == 0 || style->type == 'n' ? 'g' : style->type;
    double magnitude = fabs(real);
    int precision = style->precision < 0 ? 6 : MIN(style->precision, 100);
    if (type == '%')
        magnitude *= 100;
    if (isnan(real) || isinf(real)) {
        snprintf(text, sizeof text, "%s", isnan(real) ? "nan" : "inf");
    } else if (style->type == 0 && style->precision < 0) {
        struct buffer shortest = {0};
        value_put_float(run, &shortest, magnitude);
        snprintf(text, sizeof text, "%s", shortest.data != NULL ? shortest.data : "");
        buffer_free(&shortest);
    } else {
        snprintf(pattern, sizeof pattern, "%%%s.*%c", style->alternate ? "#" : "",
                 type == '%' ? 'f' : type);
        snprintf(text, sizeof text - 2, pattern, precision, magnitude);
    }
    if (type == '%')
        strcat(text, "%");
    if (style->type == 0 && style->precision >= 0 && strpbrk(text, ".en") == NULL)
        strcat(text, ".0");
    put_number(run, out, style, signbit(real) && !isnan(real), "", view_of(text), 3);
}

static void put_text(struct run *run, struct buffer *out, const struct style *style,
                     const struct string *string, char align)
{
    size_t length = string->length;
    if (style->precision >= 0)
        length = MIN(length, (size_t)style->precision);
    put_padded(run, out, style, (struct view){"", 0}, string_part(string, 0, length), align);
}

/* ---- "%" ------------------------------------------------------------------------------------- */

struct pattern {
    struct run *run;
    struct view text;
    size_t at;
};

static char pattern_peek(const struct pattern *pattern)
{
    return pattern->at < pattern->text.size ? pattern->text.data[pattern->at] : '\0';
}

static bool pattern_skip(struct pattern *pattern, char c)
{
    if (pattern->at == pattern->text.size || pattern->text.data[pattern->at] != c)
        return false;
    pattern->at++;
    return true;
}

/* Digits as a number, or -1 where there are none. */
static int pattern_number(struct pattern *pattern)
{
    int number = -1;
    for (char c; (c = pattern_peek(pattern)) >= '0' && c <= '9'; pattern->at++) {
        number = MAX(number, 0) * 10 + (c - '0');
        if (number > WIDTH_LIMIT) {
            template_fail(pattern->run, STATUS_LIMIT, "a width is more than %d", WIDTH_LIMIT);
            return -1;
        }
    }
    return number;
}

/* Values of one "%": a tuple gives one after another, a dict by name, anything else itself once. */
struct supply {
    struct value values;
    size_t next;
    bool by_name;
};

static struct value supply_next(struct run *run, struct supply *supply)
{
    bool is_tuple = supply->values.kind == KIND_TUPLE;
    size_t count = is_tuple ? supply->values.list->count : 1;
    if (supply->next == count)
        return template_fail(run, STATUS_INVALID, "'%%' has fewer values than its text asks for");
    return is_tuple ? supply->values.list->items[supply->next++] : (supply->next++, supply->values);
}

static int supply_width(struct pattern *pattern, struct supply *supply)
{
    int64_t width;
    if (!pattern_skip(pattern, '*'))
        return pattern_number(pattern);
    struct value value = supply_next(pattern->run, supply);
    if (!value_integer(value, &width) || width < -WIDTH_LIMIT || width > WIDTH_LIMIT) {
        template_fail(pattern->run, STATUS_INVALID, "a width is not a number that fits");
        return -1;
    }
    return (int)width;
}

static struct value percent_value(struct pattern *pattern, struct supply *supply)
{
    struct run *run = pattern->run;
    if (pattern_peek(pattern) != '(')
        return (struct value){.kind = KIND_MISSING};
    size_t start = ++pattern->at;
    while (pattern->at < pattern->text.size && pattern->text.data[pattern->at] != ')')
        pattern->at++;
    struct view name = {pattern->text.data + start, pattern->at - start};
    if (!pattern_skip(pattern, ')') || supply->values.kind != KIND_DICT)
        return template_fail(run, STATUS_INVALID, "'%%(name)' wants a dict");
    const struct value *found = dict_find_text(supply->values.dict, name);
    supply->by_name = true;
    return found != NULL ? *found
                         : template_fail(run, STATUS_INVALID, "'%%' does not find '%.*s'",
                                         (int)MIN(name.size, 60), name.data);
}

static void put_percent(struct pattern *pattern, struct buffer *out, struct style *style,
                        struct value value)
{
    struct run *run = pattern->run;
    int64_t integer;
    switch (style->type) {
    case 's':
        value = value_string(run, value);
        break;
    case 'r':
    case 'a': {
        struct buffer text = {0};
        value_put_repr(run, &text, value, 0);
        value = value_take(run, &text);
        break;
    }
    case 'c':
        if (value_integer(value, &integer) && integer >= 0 && integer < 0xD800) {
            char bytes[4];
            value = value_text(run, bytes, utf8_encode((uint32_t)integer, bytes));
        } else if (value.kind != KIND_STRING || value.string->length != 1) {
            template_fail(run, STATUS_INVALID, "'%%c' wants one character");
        }
        break;
    case 'd':
    case 'i':
    case 'u':
        if (value.kind == KIND_FLOAT && fabs(value.real) < 9e18)
            value = value_int((int64_t)value.real);
        /* fall through */
    case 'x':
    case 'X':
    case 'o':
        if (!value_integer(value, &integer))
            template_fail(run, STATUS_INVALID, "'%%%c' wants a number", style->type);
        else
            put_integer(run, out, style, integer);
        return;
    default:
        if (!value_is_number(value))
            template_fail(run, STATUS_INVALID, "'%%%c' wants a number", style->type);
        else
            put_real(run, out, style, value_real(value));
        return;
    }
    if (value.kind == KIND_STRING)
        put_text(run, out, style, value.string, '>');
}

static void percent_conversion(struct pattern *pattern, struct buffer *out, struct supply *supply)
{
    struct run *run = pattern->run;
    struct style style = {.fill = " ", .fill_size = 1, .width = -1, .precision = -1};
    bool zero = false;
    struct value value = percent_value(pattern, supply);
    for (char c; (c = pattern_peek(pattern)) != '\0' && strchr("-+ #0", c) != NULL; pattern->at++) {
        style.align = c == '-' ? '<' : style.align;
        style.sign = c == '+' || (c == ' ' && style.sign == 0) ? c : style.sign;
        style.alternate |= c == '#';
        zero |= c == '0';
    }
    style.width = supply_width(pattern, supply);
    if (style.width < -1) {
        style.align = '<';
        style.width = -style.width;
    }
    if (pattern_skip(pattern, '.')) {
        int precision = supply_width(pattern, supply);
        style.precision = MAX(precision, 0);
    }
    while (strchr("hlL", pattern_peek(pattern)) != NULL && pattern_peek(pattern) != '\0')
        pattern->at++;
    style.type = pattern_peek(pattern);
    if (style.type == '\0' || strchr("sracdiuxXofFeEgG%", style.type) == NULL) {
        template_fail(run, STATUS_INVALID, "'%%' is followed by no type that is known");
        return;
    }
    pattern->at++;
    if (style.type == '%') {
        template_put_text(run, out, "%");
        return;
    }
    if (zero && style.align == 0 && strchr("srac", style.type) == NULL) {
        style.align = '=';
        style.fill[0] = '0';
    }
    if (value.kind == KIND_MISSING)
        value = supply_next(run, supply);
    if (!run->failed)
        put_percent(pattern, out, &style, value);
}

struct value template_percent(struct run *run, struct string *format, struct value values)
{
    struct pattern pattern = {.run = run, .text = string_view(format)};
    struct supply supply = {.values = values};
    struct buffer out = {0};
    while (pattern.at < format->size && template_spend(run, 1)) {
        if (pattern_skip(&pattern, '%'))
            percent_conversion(&pattern, &out, &supply);
        else
            template_put(run, &out, format->data + pattern.at++, 1);
    }
    bool left =
        values.kind == KIND_TUPLE ? supply.next < values.list->count
        : values.kind == KIND_DICT || values.kind == KIND_LIST || values.kind == KIND_UNDEFINED
            ? false
            : supply.next == 0;
    if (left)
        template_fail(run, STATUS_INVALID, "'%%' has more values than its text asks for");
    return value_take(run, &out);
}

/* ---- format() -------------------------------------------------------------------------------- */

static void style_align(struct pattern *pattern, struct style *style)
{
    struct view rest = {pattern->text.data + pattern->at, pattern->text.size - pattern->at};
    uint32_t c;
    size_t size = rest.size > 0 ? utf8_decode(rest.data, rest.size, &c) : 0;
    if (size > 0 && size < rest.size && strchr("<>=^", rest.data[size]) != NULL &&
        rest.data[size] != '\0') {
        memcpy(style->fill, rest.data, size);
        style->fill_size = size;
        style->align = rest.data[size];
        pattern->at += size + 1;
    } else if (rest.size > 0 && rest.data[0] != '\0' && strchr("<>=^", rest.data[0]) != NULL) {
        style->align = rest.data[0];
        pattern->at++;
    }
}

static bool style_parse(struct run *run, struct view specification, struct style *style)
{
    struct pattern pattern = {.run = run, .text = specification};
    *style = (struct style){.fill = " ", .fill_size = 1, .width = -1, .precision = -1};
    style_align(&pattern, style);
    if (pattern_skip(&pattern, '+'))
        style->sign = '+';
    else if (pattern_skip(&pattern, ' '))
        style->sign = ' ';
    else
        pattern_skip(&pattern, '-');
    style->alternate = pattern_skip(&pattern, '#');
    if (pattern_peek(&pattern) == '0' && style->align == 0) {
        style->align = '=';
        style->fill[0] = '0';
    }
    style->width = pattern_number(&pattern);
    style->group = pattern_skip(&pattern, ',') ? ',' : pattern_skip(&pattern, '_') ? '_' : 0;
    if (pattern_skip(&pattern, '.') && (style->precision = pattern_number(&pattern)) < 0)
        template_fail(run, STATUS_INVALID, "a format has no number after its '.'");
    style->type = pattern_peek(&pattern);
    pattern.at += style->type != 0;
    if (pattern.at < specification.size)
        template_fail(run, STATUS_INVALID, "a format has a specification that is not known");
    return !run->failed;
}

static void put_styled(struct run *run, struct buffer *out, struct value value,
                       struct view specification)
{
    struct style style;
    int64_t integer;
    if (specification.size == 0) {
        value_put(run, out, value);
        return;
    }
    if (!style_parse(run, specification, &style))
        return;
    bool real_type = style.type != 0 && strchr("eEfFgG%", style.type) != NULL;
    if (value.kind == KIND_BOOL && style.type == 0)
        value = value_string(run, value);
    if (value.kind == KIND_STRING && (style.type == 0 || style.type == 's') && style.align != '=') {
        put_text(run, out, &style, value.string, '<');
    } else if (value_integer(value, &integer) && !real_type &&
               (style.type == 0 || strchr("dxXobn", style.type) != NULL) && style.precision < 0) {
        put_integer(run, out, &style, integer);
    } else if (value_is_number(value) &&
               (real_type || (style.type == 0 && value.kind == KIND_FLOAT))) {
        put_real(run, out, &style, value_real(value));
    } else {
        template_fail(run, STATUS_INVALID, "a %s has no such format", value_type(value));
    }
}

/* What ".name" and "[key]" after a field's name lead to. */
static struct value format_path(struct pattern *pattern, struct value value)
{
    struct run *run = pattern->run;
    while (!run->failed && (pattern_peek(pattern) == '.' || pattern_peek(pattern) == '[')) {
        bool is_item = pattern->text.data[pattern->at++] == '[';
        size_t start = pattern->at;
        while (pattern->at < pattern->text.size &&
               strchr(is_item ? "]" : ".[!:}", pattern->text.data[pattern->at]) == NULL)
            pattern->at++;
        struct view name = {pattern->text.data + start, pattern->at - start};
        struct pattern number = {.run = run, .text = name};
        int index = pattern_number(&number);
        struct value key = index >= 0 && number.at == name.size
                               ? value_int(index)
                               : value_text(run, name.data, name.size);
        if (is_item && !pattern_skip(pattern, ']'))
            return template_fail(run, STATUS_INVALID, "a format has a '[' without ']'");
        if (!run->failed)
            value = is_item ? template_item(run, value, key)
                            : template_attribute(run, value, value_string(run, key));
    }
    return value;
}

static struct value format_field(struct pattern *pattern, const struct call *call, size_t *next)
{
    struct run *run = pattern->run;
    size_t start = pattern->at;
    while (pattern->at < pattern->text.size && strchr(".[!:}{", pattern_peek(pattern)) == NULL)
        pattern->at++;
    struct view name = {pattern->text.data + start, pattern->at - start};
    struct pattern number = {.run = run, .text = name};
    int given = pattern_number(&number);
    size_t index = name.size == 0 ? (*next)++ : (size_t)MAX(given, 0);
    if (name.size == 0 || (given >= 0 && number.at == name.size)) {
        if (index >= call->n_positional)
            return template_fail(run, STATUS_INVALID, "format() has fewer values than it asks for");
        return format_path(pattern, call->positional[index]);
    }
    for (size_t i = 0; i < call->n_keywords; i++)
        if (view_equal(call->keywords[i].name, name))
            return format_path(pattern, call->keywords[i].value);
    return template_fail(run, STATUS_INVALID, "format() does not find '%.*s'",
                         (int)MIN(name.size, 60), name.data);
}

static void format_replacement(struct pattern *pattern, struct buffer *out, const struct call *call,
                               size_t *next)
{
    struct run *run = pattern->run;
    struct value value = format_field(pattern, call, next);
    if (pattern_skip(pattern, '!')) {
        struct buffer text = {0};
        if (pattern_skip(pattern, 'r'))
            value_put_repr(run, &text, value, 0);
        else if (pattern_skip(pattern, 's'))
            value_put(run, &text, value);
        else
            template_fail(run, STATUS_INVALID, "a format has a conversion that is not known");
        value = value_take(run, &text);
    }
    struct buffer specification = {0};
    if (pattern_skip(pattern, ':')) {
        while (pattern->at < pattern->text.size && pattern_peek(pattern) != '}' && !run->failed) {
            if (pattern_skip(pattern, '{')) { /* a field within the specification */
                value_put(run, &specification, format_field(pattern, call, next));
                if (!pattern_skip(pattern, '}'))
                    template_fail(run, STATUS_INVALID, "a format has a '{' without '}'");
            } else {
                template_put(run, &specification, &pattern->text.data[pattern->at++], 1);
            }
        }
    }
    if (!pattern_skip(pattern, '}'))
        template_fail(run, STATUS_INVALID, "a format has a '{' without '}'");
    if (!run->failed)
        put_styled(run, out, value, (struct view){specification.data, specification.size});
    buffer_free(&specification);
}

struct value template_format(struct run *run, struct string *format, const struct call *call)
{
    struct pattern pattern = {.run = run, .text = string_view(format)};
    struct buffer out = {0};
    size_t next = 0;
    while (pattern.at < format->size && template_spend(run, 1)) {
        char c = format->data[pattern.at++];
        bool brace = c == '{' || c == '}';
        if (brace && pattern_skip(&pattern, c))
            brace = false;
        if (!brace)
            template_put(run, &out, &c, 1);
        else if (c == '{')
            format_replacement(&pattern, &out, call, &next);
        else
            template_fail(run, STATUS_INVALID, "a format has a '}' without '{'");
    }
    return value_take(run, &out);
}
