/* Tokens of a template, by the rules of Jinja2's lexer with trim_blocks and lstrip_blocks:
 *
 *   - the newline after a block tag or a comment goes; "+" before the closing mark keeps it;
 *   - white space between the start of a line and a block tag or a comment goes; "+" keeps it;
 *   - "-" beside a mark takes all white space on that side;
 *   - one newline at the end of the source goes; every kind of line end is read as "\n".
 */
#include "text/template.h"

#include <stdlib.h>
#include <string.h>

#define BRACKET_LIMIT 1000

struct lexer {
    struct arena *arena;
    struct view source;
    size_t position;
    unsigned line;
    bool line_starting; /* the last match ended with a newline */
    struct buffer tokens;
    struct error *error;
    enum status status;
    char brackets[BRACKET_LIMIT]; /* the closing ones that are awaited */
    size_t n_brackets;
};

static void lex_fail(struct lexer *lexer, const char *what)
{
    if (lexer->status == STATUS_OK)
        lexer->status =
            error_set(lexer->error, STATUS_INVALID, "template line %u: %s", lexer->line, what);
}

static void lex_push(struct lexer *lexer, struct token token)
{
    token.line = lexer->line;
    if (!buffer_append(&lexer->tokens, &token, sizeof token) && lexer->status == STATUS_OK)
        lexer->status = error_memory(lexer->error, lexer->tokens.size);
}

static char lex_peek(const struct lexer *lexer, size_t ahead)
{
    size_t left = lexer->source.size - lexer->position;
    return ahead < left ? lexer->source.data[lexer->position + ahead] : '\0';
}

static bool lex_at(const struct lexer *lexer, size_t position, const char *text)
{
    size_t size = strlen(text);
    return size <= lexer->source.size - position &&
           memcmp(lexer->source.data + position, text, size) == 0;
}

static void lex_advance(struct lexer *lexer, size_t to)
{
    for (; lexer->position < to; lexer->position++)
        if (lexer->source.data[lexer->position] == '\n')
            lexer->line++;
}

/* Bytes of white space at position. */
static size_t lex_space(struct view source, size_t position)
{
    uint32_t c;
    size_t size = position < source.size
                      ? utf8_decode(source.data + position, source.size - position, &c)
                      : 0;
    return size > 0 && character_space(c) ? size : 0;
}

static size_t lex_skip_space(struct view source, size_t position)
{
    for (size_t size; (size = lex_space(source, position)) > 0;)
        position += size;
    return position;
}

/* Where text without its white space at the end ends. */
static size_t lex_strip_end(struct view text)
{
    size_t end = text.size;
    while (end > 0) {
        size_t start = utf8_last(text.data, end);
        if (lex_space((struct view){text.data, end}, start) != end - start)
            break;
        end = start;
    }
    return end;
}

/* The text before a tag that begins with sign ('-', '+' or another character). */
static void lex_data(struct lexer *lexer, size_t end, char sign, bool is_print)
{
    struct view text = {lexer->source.data + lexer->position, end - lexer->position};
    if (sign == '-') {
        text.size = lex_strip_end(text);
    } else if (sign != '+' && !is_print) {
        size_t line_start = text.size;
        while (line_start > 0 && text.data[line_start - 1] != '\n')
            line_start--;
        if ((line_start > 0 || lexer->line_starting) &&
            lex_skip_space(text, line_start) == text.size)
            text.size = line_start;
    }
    if (text.size > 0)
        lex_push(lexer, (struct token){.kind = LEX_DATA, .text = text});
    lex_advance(lexer, end);
}

/* Bytes of the closing mark at position ("-%}" with the white space after it, "+%}", "%}" with the
 * newline after it), or 0. */
static size_t lex_closing(const struct lexer *lexer, size_t position, const char *mark)
{
    bool is_print = mark[0] == '}';
    size_t size = strlen(mark);
    if (lex_at(lexer, position, "-") && lex_at(lexer, position + 1, mark))
        return lex_skip_space(lexer->source, position + 1 + size) - position;
    if (!is_print && lex_at(lexer, position, "+") && lex_at(lexer, position + 1, mark))
        return 1 + size;
    if (!lex_at(lexer, position, mark))
        return 0;
    return size + (!is_print && lex_at(lexer, position + size, "\n") ? 1 : 0);
}

static void lex_close(struct lexer *lexer, size_t size)
{
    lex_advance(lexer, lexer->position + size);
    lexer->line_starting = lexer->source.data[lexer->position - 1] == '\n';
}

static void lex_comment(struct lexer *lexer)
{
    for (size_t at = lexer->position; at < lexer->source.size; at++) {
        size_t size = lex_closing(lexer, at, "#}");
        if (size > 0) {
            lex_advance(lexer, at);
            lex_close(lexer, size);
            return;
        }
    }
    /* Jinja2 says nothing of a comment that opens as the very last thing. */
    if (lexer->position < lexer->source.size)
        lex_fail(lexer, "a comment is not closed with #}");
}

/* Whether "{%" at position opens a tag of this name alone; then *end is after it. */
static bool lex_bare_tag(const struct lexer *lexer, size_t position, const char *name,
                         bool keep_newline, size_t *end)
{
    if (!lex_at(lexer, position, "{%"))
        return false;
    position += 2;
    if (lex_at(lexer, position, "-") || lex_at(lexer, position, "+"))
        position++;
    position = lex_skip_space(lexer->source, position);
    if (!lex_at(lexer, position, name))
        return false;
    position = lex_skip_space(lexer->source, position + strlen(name));
    if (keep_newline) {
        bool strip = lex_at(lexer, position, "-");
        if (!lex_at(lexer, position + strip, "%}"))
            return false;
        position += strip + 2u;
        *end = strip ? lex_skip_space(lexer->source, position) : position;
        return true;
    }
    size_t size = lex_closing(lexer, position, "%}");
    *end = position + size;
    return size > 0;
}

static void lex_raw(struct lexer *lexer, size_t begin_end)
{
    lex_advance(lexer, begin_end);
    lexer->line_starting = lexer->source.data[begin_end - 1] == '\n';
    for (size_t at = begin_end; at < lexer->source.size; at++) {
        size_t end;
        if (lex_bare_tag(lexer, at, "endraw", false, &end)) {
            lex_data(lexer, at, lexer->source.data[at + 2], false);
            lex_close(lexer, end - at);
            return;
        }
    }
    if (lexer->position < lexer->source.size)
        lex_fail(lexer, "{% raw %} is not closed with {% endraw %}");
}

/* ---- Inside a tag ---------------------------------------------------------------------------- */

static bool is_digit(char c, int base)
{
    if (base == 16)
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    return c >= '0' && c < '0' + base;
}

/* Where digits, single underscores among them, end; first itself when there is none. */
static size_t lex_digits(const struct lexer *lexer, size_t first, int base)
{
    size_t at = first;
    while (at < lexer->source.size) {
        size_t digit = at + (at > first && lexer->source.data[at] == '_' ? 1 : 0);
        if (digit >= lexer->source.size || !is_digit(lexer->source.data[digit], base))
            break;
        at = digit + 1;
    }
    return at;
}

/* Where a float at position ends, or 0: digits with a fraction, an exponent, or both. */
static size_t lex_float_end(const struct lexer *lexer)
{
    size_t start = lexer->position;
    if (start > 0 && lexer->source.data[start - 1] == '.')
        return 0;
    size_t whole = lex_digits(lexer, start, 10), end = whole;
    if (lex_at(lexer, end, ".")) {
        size_t fraction = lex_digits(lexer, end + 1, 10);
        if (fraction > end + 1)
            end = fraction;
    }
    if (lex_at(lexer, end, "e") || lex_at(lexer, end, "E")) {
        size_t digits = end + 1;
        if (lex_at(lexer, digits, "+") || lex_at(lexer, digits, "-"))
            digits++;
        size_t exponent = lex_digits(lexer, digits, 10);
        if (exponent > digits)
            end = exponent;
    }
    return end > whole ? end : 0;
}

static void lex_number(struct lexer *lexer)
{
    size_t start = lexer->position, end = lex_float_end(lexer);
    bool is_float = end > 0;
    int base = 10;
    if (!is_float) {
        char mark = lex_peek(lexer, 0) == '0' ? lex_peek(lexer, 1) | 0x20 : 0;
        base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
        if (base != 10) {
            size_t digits = start + 2;
            digits += lex_at(lexer, digits, "_") ? 1 : 0;
            end = lex_digits(lexer, digits, base);
            base = end > digits ? base : 10;
        }
        if (base == 10) {
            end = lex_digits(lexer, start, lex_peek(lexer, 0) == '0' ? 1 : 10);
        }
    }
    char digits[400];
    size_t n = 0;
    for (size_t i = start + (base == 10 ? 0 : 2); i < end && n < sizeof digits - 1; i++)
        if (lexer->source.data[i] != '_')
            digits[n++] = lexer->source.data[i];
    digits[n] = '\0';
    struct token token = {.kind = is_float ? LEX_FLOAT : LEX_INT};
    if (n == sizeof digits - 1) {
        lex_fail(lexer, "a number is too long");
    } else if (is_float) {
        token.real = strtod(digits, NULL);
    } else {
        uint64_t number = 0;
        for (size_t i = 0; i < n; i++) {
            char c = digits[i];
            uint64_t digit = (uint64_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
            if (number > ((uint64_t)INT64_MAX - digit) / (uint64_t)base) {
                lex_fail(lexer, "a whole number does not fit into 64 bits");
                break;
            }
            number = number * (uint64_t)base + digit;
        }
        token.integer = (int64_t)number;
    }
    lex_push(lexer, token);
    lexer->position = end;
}

/* The number that up to max_digits digits at *at give; at least one, or exactly max_digits. */
static bool lex_escape_number(struct view text, size_t *at, int base, size_t max_digits, bool exact,
                              uint32_t *out)
{
    size_t n = 0;
    *out = 0;
    while (n < max_digits && *at < text.size && is_digit(text.data[*at], base)) {
        char c = text.data[(*at)++];
        *out = *out * (uint32_t)base + (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        n++;
    }
    return exact ? n == max_digits : n > 0;
}

/* Appends what the escape after a backslash means; at is after the backslash. Returns where it
 * ends. */
static size_t lex_escape(struct lexer *lexer, struct view text, size_t at, struct buffer *out)
{
    static const char letters[] = "abfnrtv\\'\"", meanings[] = "\a\b\f\n\r\t\v\\'\"";
    char c = text.data[at];
    const char *known = memchr(letters, c, sizeof letters - 1);
    uint32_t number;
    bool is_number = true;
    if (known != NULL) {
        buffer_append(out, &meanings[known - letters], 1);
        return at + 1;
    }
    if (c == '\n')
        return at + 1;
    if (is_digit(c, 8)) {
        lex_escape_number(text, &at, 8, 3, false, &number);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        at++;
        is_number = lex_escape_number(text, &at, 16,
                                      c == 'x'   ? 2
                                      : c == 'u' ? 4
                                                 : 8,
                                      true, &number);
    } else if (c == 'N') {
        is_number = false;
    } else {
        buffer_append(out, "\\", 1);
        return at;
    }
    if (!is_number || number > 0x10FFFF || (number >= 0xD800 && number < 0xE000)) {
        lex_fail(lexer, "a text has an escape that names no character");
        return text.size;
    }
    char bytes[4];
    buffer_append(out, bytes, utf8_encode(number, bytes));
    return at;
}

static void lex_string(struct lexer *lexer)
{
    char quote = lex_peek(lexer, 0);
    size_t start = lexer->position + 1, end = start;
    bool escaped = false;
    while (end < lexer->source.size && lexer->source.data[end] != quote) {
        bool escape = lexer->source.data[end] == '\\';
        escaped |= escape;
        end += escape ? 2 : 1;
    }
    if (end >= lexer->source.size) {
        lex_fail(lexer, "a text in quotes is not closed");
        return;
    }
    struct view text = {lexer->source.data + start, end - start};
    if (escaped) {
        struct buffer decoded = {0};
        for (size_t at = 0; at < text.size;) {
            if (text.data[at] == '\\') {
                at = lex_escape(lexer, text, at + 1, &decoded);
            } else {
                buffer_append(&decoded, &text.data[at++], 1);
            }
        }
        char *copy = arena_copy(lexer->arena, decoded.data, decoded.size);
        if ((copy == NULL || decoded.failed) && lexer->status == STATUS_OK)
            lexer->status = error_memory(lexer->error, decoded.size);
        text = (struct view){copy, copy != NULL ? decoded.size : 0};
        buffer_free(&decoded);
    }
    lex_push(lexer, (struct token){.kind = LEX_STRING, .text = text});
    lex_advance(lexer, end + 1);
}

static size_t lex_name_end(const struct lexer *lexer)
{
    size_t at = lexer->position;
    while (at < lexer->source.size) {
        uint32_t c;
        size_t size = utf8_decode(lexer->source.data + at, lexer->source.size - at, &c);
        bool first = at == lexer->position;
        if (size == 0 || !(c == '_' || character_alpha(c) || (!first && character_digit(c))))
            break;
        at += size;
    }
    return at;
}

static void lex_bracket(struct lexer *lexer, char c)
{
    if (c == '(' || c == '[' || c == '{') {
        if (lexer->n_brackets == BRACKET_LIMIT)
            lex_fail(lexer, "brackets are nested too deeply");
        else
            lexer->brackets[lexer->n_brackets++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (lexer->n_brackets == 0 || lexer->brackets[--lexer->n_brackets] != c)
            lex_fail(lexer, "a closing bracket has no opening one");
    }
}

static void lex_operator(struct lexer *lexer)
{
    static const char *const pairs[] = {"//", "**", "==", "!=", ">=", "<="};
    char c = lex_peek(lexer, 0);
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        if (lex_at(lexer, lexer->position, pairs[i])) {
            lex_push(lexer, (struct token){.kind = LEX_OPERATOR,
                                           .op = OPERATOR(pairs[i][0], pairs[i][1])});
            lexer->position += 2;
            return;
        }
    }
    if (c == '\0' || strchr("+-/*%~[](){}><=.:|,;", c) == NULL) {
        lex_fail(lexer, "an expression has a character that means nothing there");
        return;
    }
    lex_bracket(lexer, c);
    lex_push(lexer, (struct token){.kind = LEX_OPERATOR, .op = OPERATOR(c, 0)});
    lexer->position++;
}

static void lex_tag(struct lexer *lexer, const char *mark, enum token_kind end_kind)
{
    lexer->n_brackets = 0;
    while (lexer->status == STATUS_OK && lexer->position < lexer->source.size) {
        size_t closing = lexer->n_brackets == 0 ? lex_closing(lexer, lexer->position, mark) : 0;
        if (closing > 0) {
            lex_push(lexer, (struct token){.kind = end_kind});
            lex_close(lexer, closing);
            return;
        }
        size_t after_space = lex_skip_space(lexer->source, lexer->position);
        if (after_space > lexer->position) {
            lex_advance(lexer, after_space);
            continue;
        }
        char c = lex_peek(lexer, 0);
        size_t name_end = lex_name_end(lexer);
        if (c >= '0' && c <= '9') {
            lex_number(lexer);
        } else if (name_end > lexer->position) {
            struct view name = {lexer->source.data + lexer->position, name_end - lexer->position};
            lex_push(lexer, (struct token){.kind = LEX_NAME, .text = name});
            lexer->position = name_end;
        } else if (c == '"' || c == '\'') {
            lex_string(lexer);
        } else {
            lex_operator(lexer);
        }
    }
}

/* ---- Between tags ---------------------------------------------------------------------------- */

static void lex_root(struct lexer *lexer)
{
    size_t at = lexer->position;
    while (at < lexer->source.size && !lex_at(lexer, at, "{{") && !lex_at(lexer, at, "{%") &&
           !lex_at(lexer, at, "{#"))
        at++;
    if (at == lexer->source.size) {
        lex_data(lexer, at, '+', false);
        return;
    }
    char mark = lexer->source.data[at + 1];
    size_t sign_at = at + 2;
    char sign = sign_at < lexer->source.size ? lexer->source.data[sign_at] : '\0';
    lex_data(lexer, at, sign, mark == '{');
    size_t raw_end;
    if (mark == '%' && lex_bare_tag(lexer, at, "raw", true, &raw_end)) {
        lex_raw(lexer, raw_end);
        return;
    }
    lexer->position = sign_at + (sign == '-' || sign == '+' ? 1 : 0);
    if (mark == '#') {
        lex_comment(lexer);
    } else if (mark == '{') {
        lex_push(lexer, (struct token){.kind = LEX_PRINT_BEGIN});
        lex_tag(lexer, "}}", LEX_PRINT_END);
    } else {
        lex_push(lexer, (struct token){.kind = LEX_BLOCK_BEGIN});
        lex_tag(lexer, "%}", LEX_BLOCK_END);
    }
}

/* A copy with "\n" as every line end, without the last one. */
static struct view lex_normalise(struct arena *arena, struct view source)
{
    char *copy = arena_alloc(arena, source.size + 1);
    size_t n = 0;
    for (size_t i = 0; copy != NULL && i < source.size; i++) {
        char c = source.data[i];
        if (c == '\r' && i + 1 < source.size && source.data[i + 1] == '\n')
            continue;
        copy[n++] = c == '\r' ? '\n' : c;
    }
    if (n > 0 && copy[n - 1] == '\n')
        n--;
    return (struct view){copy, n};
}

enum status template_lex(struct arena *arena, struct view source, struct token **tokens,
                         size_t *count, struct error *error)
{
    if (source.size > TEMPLATE_SOURCE_LIMIT)
        return error_set(error, STATUS_LIMIT, "the template is longer than %u bytes",
                         TEMPLATE_SOURCE_LIMIT);
    if (!utf8_valid(source.data, source.size))
        return error_set(error, STATUS_INVALID, "the template is not valid UTF-8");
    struct lexer *lexer = arena_alloc(arena, sizeof *lexer);
    struct view text = lex_normalise(arena, source);
    if (lexer == NULL || text.data == NULL)
        return error_memory(error, source.size);
    *lexer = (struct lexer){
        .arena = arena, .source = text, .line = 1, .line_starting = true, .error = error};
    while (lexer->status == STATUS_OK && lexer->position < text.size)
        lex_root(lexer);
    lex_push(lexer, (struct token){.kind = LEX_END});
    *count = lexer->tokens.size / sizeof(struct token);
    *tokens = arena_array(arena, *count, sizeof(struct token));
    if (*tokens != NULL && lexer->status == STATUS_OK)
        memcpy(*tokens, lexer->tokens.data, lexer->tokens.size);
    else if (lexer->status == STATUS_OK)
        lexer->status = error_memory(error, lexer->tokens.size);
    buffer_free(&lexer->tokens);
    return lexer->status;
}
