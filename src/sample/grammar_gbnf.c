/* GBNF, as llama.cpp's grammars/README.md describes it:
 *
 *   name ::= alternatives            one rule; the one called root is the whole text
 *   "text"  [a-z]  [^"\\]  .         characters; escapes \n \r \t \\ \" \[ \]
 *                                    \xHH \uHHHH \UHHHHHHHH
 *   a b | c  (a b)                   sequences, alternatives, groups
 *   a?  a*  a+  a{2}  a{2,}  a{2,5}  repetitions
 *   # to the end of the line         comments
 *
 * A rule ends with its line, but not within parentheses, behind ::= or beside |. */
#include "sample/grammar_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SOURCE_BYTES ((size_t)512 << 10)
#define MAX_CLASS_RANGES 2048

struct gbnf {
    struct rules *rules;
    const char *at, *end, *begin;
    struct error *error;
    bool failed;
    unsigned depth;
};

static void fail(struct gbnf *p, const char *what)
{
    if (p->failed)
        return;
    p->failed = true;
    unsigned line = 1;
    for (const char *c = p->begin; c < p->at; c++)
        line += *c == '\n';
    error_set(p->error, STATUS_INVALID, "grammar, line %u: %s", line, what);
}

static char peek(const struct gbnf *p)
{
    return p->at < p->end ? *p->at : '\0';
}

static bool take(struct gbnf *p, char c)
{
    bool found = p->at < p->end && *p->at == c;
    p->at += found;
    return found;
}

static void skip_space(struct gbnf *p, bool lines)
{
    while (p->at < p->end) {
        if (*p->at == '#')
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        else if (*p->at == ' ' || *p->at == '\t' || (lines && (*p->at == '\n' || *p->at == '\r')))
            p->at++;
        else
            break;
    }
}

/* ---- Names ----------------------------------------------------------------------------------- */

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

static struct view read_name(struct gbnf *p)
{
    struct view name = {p->at, 0};
    while (p->at < p->end && is_name_char(*p->at))
        p->at++;
    name.size = (size_t)(p->at - name.data);
    if (name.size == 0)
        fail(p, "a name was expected");
    return name;
}

/* The rule of that name, which may be defined later. */
static uint32_t find_rule(struct gbnf *p, struct view name)
{
    for (uint32_t r = 0; r < p->rules->count; r++)
        if (view_equal(p->rules->list[r].name, name))
            return r;
    return rules_add(p->rules, name);
}

/* ---- Characters ------------------------------------------------------------------------------ */

static uint32_t read_hex(struct gbnf *p, size_t n)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n; i++) {
        char c = peek(p);
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10
                                                : 16;
        if (digit == 16) {
            fail(p, "an escape needs more hexadecimal digits");
            return 0;
        }
        value = value * 16 + digit;
        p->at++;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        fail(p, "an escape is no character");
    return value;
}

static uint32_t read_escape(struct gbnf *p)
{
    static const char names[] = "nrt\\\"[]-^'/.", values[] = "\n\r\t\\\"[]-^'/.";
    char c = peek(p);
    p->at += p->at < p->end;
    if (c == 'x')
        return read_hex(p, 2);
    if (c == 'u')
        return read_hex(p, 4);
    if (c == 'U')
        return read_hex(p, 8);
    const char *found = c != '\0' ? strchr(names, c) : NULL;
    if (found == NULL) {
        fail(p, "an unknown escape; known are \\n \\r \\t \\\\ \\\" \\[ \\] \\x41 \\u0041 "
                "\\U00000041");
        return 0;
    }
    return (uint32_t)(unsigned char)values[found - names];
}

static uint32_t read_char(struct gbnf *p)
{
    uint32_t code = 0;
    if (take(p, '\\'))
        return read_escape(p);
    size_t n = p->at < p->end ? utf8_decode(p->at, (size_t)(p->end - p->at), &code) : 0;
    if (n == 0)
        fail(p, p->at < p->end ? "a character is no valid UTF-8" : "the grammar ends too early");
    p->at += n;
    return code;
}

static struct expression *read_text(struct gbnf *p)
{
    struct buffer text = {0};
    while (!p->failed && !take(p, '"')) {
        char bytes[4];
        uint32_t code = read_char(p);
        if (!p->failed)
            buffer_append(&text, bytes, utf8_encode(code, bytes));
    }
    p->rules->failed |= text.failed;
    struct expression *node =
        expression_bytes(p->rules, (struct view){text.size > 0 ? text.data : "", text.size});
    buffer_free(&text);
    return node;
}

/* The smallest set of ranges is sorted and without gaps that need none; [^…] takes the rest. */
static struct expression *read_class(struct gbnf *p)
{
    struct code_range *ranges = calloc(2 * MAX_CLASS_RANGES, sizeof *ranges);
    struct expression *node = NULL;
    size_t n = 0;
    bool invert = take(p, '^');
    p->rules->failed |= ranges == NULL;
    while (ranges != NULL && !p->failed && !take(p, ']')) {
        uint32_t first = read_char(p), last = first;
        if (p->at + 1 < p->end && p->at[0] == '-' && p->at[1] != ']') {
            p->at++;
            last = read_char(p);
        }
        if (last < first)
            fail(p, "a range of characters runs backwards");
        else if (n == MAX_CLASS_RANGES - 1)
            fail(p, "a class has too many characters");
        else
            ranges[n++] = (struct code_range){first, last};
    }
    if (ranges != NULL && !p->failed) {
        n = ranges_normalise(ranges, n);
        if (invert)
            n = ranges_invert(ranges, n, ranges + MAX_CLASS_RANGES);
        node = expression_ranges(p->rules, invert ? ranges + MAX_CLASS_RANGES : ranges, n);
    }
    free(ranges);
    return node;
}

/* ---- Expressions ----------------------------------------------------------------------------- */

static struct expression *read_alternatives(struct gbnf *p, bool nested);

static uint32_t read_count(struct gbnf *p)
{
    uint32_t value = 0;
    if (peek(p) < '0' || peek(p) > '9')
        fail(p, "a number was expected in a repetition");
    for (; peek(p) >= '0' && peek(p) <= '9' && !p->failed; p->at++) {
        value = value * 10 + (uint32_t)(peek(p) - '0');
        if (value > GRAMMAR_MAX_REPEAT)
            fail(p, "a repetition is larger than 100000");
    }
    return value;
}

static struct expression *read_repetition(struct gbnf *p, struct expression *child, bool nested)
{
    uint32_t min = 0, max = GRAMMAR_NO_LIMIT;
    if (take(p, '+')) {
        min = 1;
    } else if (take(p, '?')) {
        max = 1;
    } else if (!take(p, '*')) {
        p->at++;
        skip_space(p, nested);
        min = max = read_count(p);
        skip_space(p, nested);
        if (take(p, ',')) {
            skip_space(p, nested);
            max = peek(p) == '}' ? GRAMMAR_NO_LIMIT : read_count(p);
            skip_space(p, nested);
        }
        if (!take(p, '}'))
            fail(p, "a repetition must be {n}, {n,} or {n,m}");
        else if (max < min)
            fail(p, "a repetition has a maximum below its minimum");
    }
    return expression_repeat(p->rules, child, min, max);
}

/* NULL where no element begins. */
static struct expression *read_element(struct gbnf *p)
{
    static const struct code_range any = {0, 0x10FFFF};
    if (take(p, '"'))
        return read_text(p);
    if (take(p, '['))
        return read_class(p);
    if (take(p, '.'))
        return expression_ranges(p->rules, &any, 1);
    if (is_name_char(peek(p)))
        return expression_rule(p->rules, find_rule(p, read_name(p)));
    if (!take(p, '('))
        return NULL;
    skip_space(p, true);
    struct expression *group = read_alternatives(p, true);
    if (!take(p, ')'))
        fail(p, "a ) is missing");
    return group;
}

static struct expression *read_sequence(struct gbnf *p, bool nested)
{
    struct expression *sequence = expression_list(p->rules, EXPRESSION_SEQUENCE);
    while (!p->failed && !p->rules->failed) {
        struct expression *element = read_element(p);
        if (element == NULL)
            break;
        skip_space(p, nested);
        for (unsigned n = 0; !p->failed && peek(p) != '\0' && strchr("*+?{", peek(p)); n++) {
            element = read_repetition(p, element, nested);
            skip_space(p, nested);
            if (n == 8)
                fail(p, "too many repetitions of repetitions");
        }
        expression_add(sequence, element);
    }
    return sequence;
}

/* Whether an alternative goes on in a later line. */
static bool bar_follows(struct gbnf *p)
{
    const char *here = p->at;
    skip_space(p, true);
    if (peek(p) == '|')
        return true;
    p->at = here;
    return false;
}

static struct expression *read_alternatives(struct gbnf *p, bool nested)
{
    struct expression *choice = expression_list(p->rules, EXPRESSION_CHOICE);
    if (++p->depth > GRAMMAR_MAX_DEPTH)
        fail(p, "groups are nested too deeply");
    else
        expression_add(choice, read_sequence(p, nested));
    while (!p->failed && !p->rules->failed && bar_follows(p)) {
        p->at++;
        skip_space(p, true);
        expression_add(choice, read_sequence(p, nested));
    }
    p->depth--;
    return choice;
}

static void read_rule(struct gbnf *p)
{
    uint32_t rule = find_rule(p, read_name(p));
    skip_space(p, false);
    if (p->failed || p->rules->failed)
        return;
    if (p->end - p->at < 3 || memcmp(p->at, "::=", 3) != 0) {
        fail(p, "::= was expected behind the name of a rule");
        return;
    }
    if (p->rules->list[rule].body != NULL) {
        fail(p, "a rule is defined twice");
        return;
    }
    p->at += 3;
    skip_space(p, true);
    struct expression *body = read_alternatives(p, false);
    if (!p->failed && !p->rules->failed)
        p->rules->list[rule].body = body;
    if (!p->failed && p->at < p->end && *p->at != '\n' && *p->at != '\r')
        fail(p, "this is no part of a rule");
    skip_space(p, true);
}

/* ---- The grammar ----------------------------------------------------------------------------- */

enum status gbnf_parse(struct rules *rules, struct view source, struct error *error)
{
    struct gbnf p = {.rules = rules,
                     .at = source.data,
                     .begin = source.data,
                     .end = source.data + source.size,
                     .error = error};
    if (source.size > MAX_SOURCE_BYTES)
        return error_set(error, STATUS_LIMIT, "the grammar has %zu bytes; at most %zu are possible",
                         source.size, MAX_SOURCE_BYTES);
    rules_add(rules, view_of("root"));
    skip_space(&p, true);
    while (p.at < p.end && !p.failed && !rules->failed)
        read_rule(&p);
    if (p.failed)
        return STATUS_INVALID;
    if (rules->failed)
        return error_set(error, STATUS_LIMIT, "the grammar is too large");
    for (uint32_t r = 0; r < rules->count; r++)
        if (rules->list[r].body == NULL)
            return error_set(error, STATUS_INVALID, "grammar: the rule %.*s is not defined",
                             (int)MIN(rules->list[r].name.size, (size_t)80),
                             rules->list[r].name.data);
    return STATUS_OK;
}
