/* Regular expressions as JSON Schema means them (ECMA 262): what can be said without looking around
 * or back. A pattern may match anywhere in the string, unless ^ and $ say otherwise. Where engines
 * differ on what \w, \d, \s and . match, only what all of them match is written. */
#include "sample/schema_internal.h"

#include <stdio.h>
#include <string.h>

#define MAX_RANGES 128

struct pattern {
    struct schema *schema;
    const char *keyword;
    const char *at, *end;
    unsigned depth;
    bool failed;
};

/* An expression and how many characters it takes. */
struct piece {
    struct expression *node;
    uint32_t min, max; /* max may be GRAMMAR_NO_LIMIT */
};

static void refuse(struct pattern *p, const char *what)
{
    if (!p->failed)
        schema_fail(p->schema, p->keyword, "the pattern has %s, which cannot be enforced", what);
    p->failed = true;
}

static char peek(const struct pattern *p)
{
    return p->at < p->end ? *p->at : '\0';
}

static bool take(struct pattern *p, char c)
{
    bool found = p->at < p->end && *p->at == c;
    p->at += found;
    return found;
}

static uint32_t plus(uint32_t a, uint32_t b)
{
    return a == GRAMMAR_NO_LIMIT || b == GRAMMAR_NO_LIMIT || a > GRAMMAR_NO_LIMIT - 1 - b
               ? GRAMMAR_NO_LIMIT
               : a + b;
}

static uint32_t times(uint32_t a, uint32_t b)
{
    uint64_t product = (uint64_t)a * b;
    if (a == 0 || b == 0)
        return 0;
    return a == GRAMMAR_NO_LIMIT || b == GRAMMAR_NO_LIMIT || product >= GRAMMAR_NO_LIMIT
               ? GRAMMAR_NO_LIMIT
               : (uint32_t)product;
}

/* ---- Characters ------------------------------------------------------------------------------ */

/* Ranges that are being gathered. */
struct set {
    struct code_range ranges[MAX_RANGES];
    size_t n;
};

static void add(struct pattern *p, struct set *set, uint32_t first, uint32_t last)
{
    if (set->n == MAX_RANGES / 2)
        refuse(p, "a class of too many characters");
    else
        set->ranges[set->n++] = (struct code_range){first, last};
}

/* \d \w \s and their opposites. wide: all that some engine takes for one, for classes that are
 * inverted. */
static bool add_shorthand(struct pattern *p, struct set *set, char letter, bool wide)
{
    static const struct code_range digits[] = {{'0', '9'}};
    static const struct code_range words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const struct code_range spaces[] = {{'\t', '\r'}, {' ', ' '}};
    const struct code_range *ranges = digits;
    size_t n = ARRAY_COUNT(digits);
    char kind = (char)(letter | 0x20);
    if (kind != 'd' && kind != 'w' && kind != 's')
        return false;
    if (kind == 'w') {
        ranges = words;
        n = ARRAY_COUNT(words);
    } else if (kind == 's') {
        ranges = spaces;
        n = ARRAY_COUNT(spaces);
    }
    uint32_t next = 0;
    for (size_t i = 0; i < n; i++) {
        if (letter == kind)
            add(p, set, ranges[i].first, ranges[i].last);
        else if (ranges[i].first > next)
            add(p, set, next, ranges[i].first - 1);
        next = ranges[i].last + 1;
    }
    if (letter != kind)
        add(p, set, next, 0x7F);
    if (wide)
        add(p, set, 0x80, 0x10FFFF);
    return true;
}

static uint32_t read_hex(struct pattern *p, size_t n)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n; i++, p->at++) {
        const char *digits = "0123456789abcdef";
        char c = peek(p) >= 'A' && peek(p) <= 'F' ? (char)(peek(p) | 0x20) : peek(p);
        const char *found = c != '\0' ? strchr(digits, c) : NULL;
        if (found == NULL) {
            refuse(p, "an escape without its digits");
            return 0;
        }
        value = value * 16 + (uint32_t)(found - digits);
    }
    return value;
}

/* What stands behind a backslash, where it is one character. */
static uint32_t read_escape(struct pattern *p)
{
    static const char names[] = "tnrfv0", values[] = "\t\n\r\f\v";
    char c = peek(p);
    const char *found = c != '\0' ? strchr(names, c) : NULL;
    p->at += p->at < p->end;
    if (c == 'x')
        return read_hex(p, 2);
    if (c == 'u' && take(p, '{')) {
        uint32_t value = 0;
        while (!p->failed && !take(p, '}') && value <= 0x10FFFF)
            value = value * 16 + read_hex(p, 1);
        return value;
    }
    if (c == 'u')
        return read_hex(p, 4);
    if (found != NULL)
        return (uint32_t)values[found - names];
    if (c == '\0' || (c >= '1' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
        refuse(p, "an escape that is not known");
        return 0;
    }
    return (uint32_t)(unsigned char)c;
}

static uint32_t read_char(struct pattern *p)
{
    uint32_t code = 0;
    if (take(p, '\\'))
        return read_escape(p);
    size_t n = p->at < p->end ? utf8_decode(p->at, (size_t)(p->end - p->at), &code) : 0;
    if (n == 0)
        refuse(p, "no end of a class");
    p->at += n;
    return code;
}

static struct piece characters(struct pattern *p, struct set *set, bool invert)
{
    struct code_range inverted[MAX_RANGES];
    set->n = ranges_normalise(set->ranges, set->n);
    size_t n = set->n;
    if (invert)
        n = ranges_invert(set->ranges, set->n, inverted);
    return (struct piece){schema_characters(p->schema, invert ? inverted : set->ranges, n), 1, 1};
}

static struct piece read_class(struct pattern *p)
{
    struct set set = {.n = 0};
    bool invert = take(p, '^');
    while (!p->failed && !take(p, ']')) {
        if (p->at + 1 < p->end && p->at[0] == '\\' && add_shorthand(p, &set, p->at[1], invert)) {
            p->at += 2;
            continue;
        }
        if (p->at + 1 < p->end && p->at[0] == '\\' && p->at[1] == 'b')
            refuse(p, "\\b in a class");
        uint32_t first = read_char(p), last = first;
        if (p->at + 1 < p->end && p->at[0] == '-' && p->at[1] != ']') {
            p->at++;
            if (p->at + 1 < p->end && p->at[0] == '\\' && strchr("dwsDWS", p->at[1]) != NULL)
                refuse(p, "a range up to a class");
            last = read_char(p);
        }
        if (last < first || last > 0x10FFFF)
            refuse(p, "a range that runs backwards");
        else
            add(p, &set, first, last);
    }
    return characters(p, &set, invert);
}

/* ---- Groups and repetitions ------------------------------------------------------------------ */

static struct piece read_choice(struct pattern *p, bool outermost);

static struct piece read_group(struct pattern *p)
{
    if (take(p, '?') && !take(p, ':')) {
        if (take(p, '<') && peek(p) != '=' && peek(p) != '!') {
            while (p->at < p->end && !take(p, '>'))
                p->at++;
        } else {
            refuse(p, "a part that looks around");
        }
    }
    struct piece group = read_choice(p, false);
    if (!take(p, ')'))
        refuse(p, "an open group");
    return group;
}

static struct piece read_atom(struct pattern *p)
{
    struct set set = {.n = 0};
    if (take(p, '('))
        return read_group(p);
    if (take(p, '['))
        return read_class(p);
    if (take(p, '.')) {
        add(p, &set, '\n', '\n');
        add(p, &set, '\r', '\r');
        add(p, &set, 0x2028, 0x2029);
        add(p, &set, 0x85, 0x85);
        return characters(p, &set, true);
    }
    if (p->at + 1 < p->end && p->at[0] == '\\') {
        if (add_shorthand(p, &set, p->at[1], false)) {
            p->at += 2;
            return characters(p, &set, false);
        }
        if (p->at[1] == 'b' || p->at[1] == 'B')
            refuse(p, "a word boundary");
        if (p->at[1] >= '1' && p->at[1] <= '9')
            refuse(p, "a reference to a group");
        if (p->at[1] == 'p' || p->at[1] == 'P')
            refuse(p, "a class of Unicode's");
    }
    if (peek(p) == '^' || peek(p) == '$')
        refuse(p, "^ or $ within it");
    if (peek(p) != '\0' && strchr("*+?{", peek(p)) != NULL)
        refuse(p, "a repetition of nothing");
    uint32_t code = read_char(p);
    add(p, &set, code, code);
    return characters(p, &set, false);
}

static uint32_t read_number(struct pattern *p)
{
    uint32_t value = 0;
    if (peek(p) < '0' || peek(p) > '9')
        refuse(p, "a { that is no repetition");
    for (; peek(p) >= '0' && peek(p) <= '9' && !p->failed; p->at++) {
        value = value * 10 + (uint32_t)(peek(p) - '0');
        if (value > GRAMMAR_MAX_REPEAT)
            refuse(p, "a repetition that is too large");
    }
    return value;
}

static struct piece read_repeated(struct pattern *p)
{
    struct piece piece = read_atom(p);
    for (unsigned n = 0; !p->failed && peek(p) != '\0' && strchr("*+?{", peek(p)) != NULL; n++) {
        uint32_t min = 0, max = GRAMMAR_NO_LIMIT;
        if (n > 0 || take(p, '?')) {
            max = 1;
            if (n > 0)
                refuse(p, "a repetition of a repetition");
        } else if (take(p, '+')) {
            min = 1;
        } else if (!take(p, '*')) {
            p->at++;
            min = max = read_number(p);
            if (take(p, ','))
                max = peek(p) == '}' ? GRAMMAR_NO_LIMIT : read_number(p);
            if (!take(p, '}') || max < min)
                refuse(p, "a { that is no repetition");
        }
        take(p, '?'); /* which of several matches does not matter */
        piece = (struct piece){expression_repeat(p->schema->rules, piece.node, min, max),
                               times(piece.min, min), times(piece.max, max)};
    }
    return piece;
}

static struct expression *anything(struct pattern *p)
{
    return expression_repeat(p->schema->rules, schema_any_character(p->schema), 0,
                             GRAMMAR_NO_LIMIT);
}

/* One alternative. Of the outermost ones each has its own ends. */
static struct piece read_sequence(struct pattern *p, bool outermost)
{
    struct piece all = {expression_list(p->schema->rules, EXPRESSION_SEQUENCE), 0, 0};
    bool open_end = outermost;
    if (outermost && !take(p, '^')) {
        expression_add(all.node, anything(p));
        all.max = GRAMMAR_NO_LIMIT;
    }
    while (!p->failed && p->at < p->end && *p->at != '|' && *p->at != ')') {
        if (outermost && *p->at == '$' && (p->at + 1 == p->end || p->at[1] == '|')) {
            p->at++;
            open_end = false;
            break;
        }
        struct piece piece = read_repeated(p);
        expression_add(all.node, piece.node);
        all.min = plus(all.min, piece.min);
        all.max = plus(all.max, piece.max);
    }
    if (open_end) {
        expression_add(all.node, anything(p));
        all.max = GRAMMAR_NO_LIMIT;
    }
    return all;
}

static struct piece read_choice(struct pattern *p, bool outermost)
{
    struct piece all = {expression_list(p->schema->rules, EXPRESSION_CHOICE), GRAMMAR_NO_LIMIT, 0};
    if (++p->depth > GRAMMAR_MAX_DEPTH / 8)
        refuse(p, "groups nested too deeply");
    do {
        struct piece piece = read_sequence(p, outermost);
        expression_add(all.node, piece.node);
        all.min = MIN(all.min, piece.min);
        all.max = MAX(all.max, piece.max);
    } while (!p->failed && take(p, '|'));
    p->depth--;
    return all;
}

struct expression *schema_pattern(struct schema *schema, const char *keyword, struct view pattern,
                                  uint32_t *min, uint32_t *max)
{
    struct pattern p = {.schema = schema,
                        .keyword = keyword,
                        .at = pattern.data,
                        .end = pattern.data + pattern.size};
    if (schema->failed)
        return NULL;
    struct piece all = read_choice(&p, true);
    if (!p.failed && p.at < p.end)
        refuse(&p, "a ) too many");
    *min = all.min;
    *max = all.max;
    return p.failed || schema->failed ? NULL : all.node;
}
