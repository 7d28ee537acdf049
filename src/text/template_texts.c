/* Methods of Python's str.
 *
 * A name that Python has and this engine has not is in the tables without a function: using it is
 * an error, where a name that Python lacks is undefined.
 */
#include "text/template.h"

#include <math.h>
#include <string.h>

/* ---- Arguments ------------------------------------------------------------------------------- */

/* The text of an argument, or NULL after an error. */
static struct string *text_argument(struct run *run, struct value value)
{
    if (value.kind == KIND_STRING)
        return value.string;
    if (value.kind == KIND_UNDEFINED)
        template_fail_undefined(run, value);
    else
        template_fail(run, STATUS_INVALID, "a text is wanted, not a %s", value_type(value));
    return NULL;
}

static struct value part_of(struct run *run, struct view text, size_t start, size_t stop)
{
    return value_borrow(run, text.data + start, stop - start);
}

/* ---- Searching ------------------------------------------------------------------------------- */

size_t template_search(struct run *run, struct view text, struct view part, size_t start)
{
    size_t at = start;
    while (part.size <= text.size && at <= text.size - part.size) {
        if (part.size == 0)
            return at;
        const char *found = memchr(text.data + at, part.data[0], text.size - part.size - at + 1);
        if (found == NULL)
            break;
        at = (size_t)(found - text.data);
        if (!template_spend(run, 1 + part.size / 64))
            break;
        if (memcmp(found, part.data, part.size) == 0) {
            template_spend(run, (at - start) / 8);
            return at;
        }
        at++;
    }
    template_spend(run, (text.size - MIN(start, text.size)) / 8);
    return TEMPLATE_NOT_FOUND;
}

/* The last place before end where part stands whole. */
static size_t find_last(struct run *run, struct view text, struct view part, size_t end)
{
    if (part.size > end)
        return TEMPLATE_NOT_FOUND;
    for (size_t at = end - part.size + 1; at-- > 0;) {
        bool begins = part.size == 0 || text.data[at] == part.data[0];
        if (begins && !template_spend(run, 1 + part.size / 64))
            break;
        if (begins && (part.size == 0 || memcmp(text.data + at, part.data, part.size) == 0)) {
            template_spend(run, (end - at) / 8);
            return at;
        }
    }
    template_spend(run, end / 8);
    return TEMPLATE_NOT_FOUND;
}

/* The part of self between code points bound[first] and bound[first + 1], as slices have it;
 * *skipped is what stands before it, in code points. */
static struct view bounded(struct run *run, const struct string *self, const struct call *call,
                           size_t first, size_t *skipped, bool *valid)
{
    int64_t length = (int64_t)self->length;
    int64_t start = template_integer(run, call->bound[first], 0);
    int64_t stop = template_integer(run, call->bound[first + 1], length);
    start = start < 0 ? MAX(start + length, 0) : start;
    stop = stop < 0 ? MAX(stop + length, 0) : MIN(stop, length);
    *valid = start <= stop && !run->failed;
    if (!*valid)
        return (struct view){"", 0};
    *skipped = (size_t)start;
    return string_part(self, (size_t)start, (size_t)stop);
}

static int64_t find(struct run *run, struct value self, struct call *call, bool last)
{
    size_t skipped = 0;
    bool valid;
    struct string *part = text_argument(run, call->bound[0]);
    struct view text = bounded(run, self.string, call, 1, &skipped, &valid);
    if (part == NULL || !valid)
        return -1;
    size_t at = last ? find_last(run, text, string_view(part), text.size)
                     : template_search(run, text, string_view(part), 0);
    if (at == TEMPLATE_NOT_FOUND)
        return -1;
    return (int64_t)(skipped + utf8_count(text.data, at));
}

static struct value str_find(struct run *run, struct value self, struct call *call)
{
    return value_int(find(run, self, call, false));
}

static struct value str_rfind(struct run *run, struct value self, struct call *call)
{
    return value_int(find(run, self, call, true));
}

static struct value str_index(struct run *run, struct value self, struct call *call)
{
    int64_t at = find(run, self, call, false);
    return at < 0 ? template_fail(run, STATUS_INVALID, "index() does not find the text")
                  : value_int(at);
}

static struct value str_rindex(struct run *run, struct value self, struct call *call)
{
    int64_t at = find(run, self, call, true);
    return at < 0 ? template_fail(run, STATUS_INVALID, "rindex() does not find the text")
                  : value_int(at);
}

static struct value str_count(struct run *run, struct value self, struct call *call)
{
    size_t skipped = 0, count = 0;
    bool valid;
    struct string *part = text_argument(run, call->bound[0]);
    struct view text = bounded(run, self.string, call, 1, &skipped, &valid);
    if (part == NULL || !valid)
        return value_int(0);
    if (part->size == 0)
        return value_int((int64_t)utf8_count(text.data, text.size) + 1);
    for (size_t at = 0;
         (at = template_search(run, text, string_view(part), at)) != TEMPLATE_NOT_FOUND &&
         template_spend(run, 1);
         at += part->size)
        count++;
    return value_int((int64_t)count);
}

static bool view_starts(struct view text, struct view part)
{
    return part.size <= text.size &&
           (part.size == 0 || memcmp(text.data, part.data, part.size) == 0);
}

static bool view_ends(struct view text, struct view part)
{
    return part.size <= text.size &&
           (part.size == 0 || memcmp(text.data + text.size - part.size, part.data, part.size) == 0);
}

/* One text or a tuple of them, any of which may fit. */
static struct value fits(struct run *run, struct value self, struct call *call,
                         bool (*test)(struct view, struct view))
{
    size_t skipped = 0;
    bool valid;
    struct view text = bounded(run, self.string, call, 1, &skipped, &valid);
    if (call->bound[0].kind != KIND_TUPLE) {
        struct string *part = text_argument(run, call->bound[0]);
        return value_bool(valid && part != NULL && test(text, string_view(part)));
    }
    const struct list *parts = call->bound[0].list;
    for (size_t i = 0; i < parts->count; i++) {
        struct string *part = text_argument(run, parts->items[i]);
        if (part == NULL || (valid && test(text, string_view(part))))
            return value_bool(true);
    }
    return value_bool(false);
}

static struct value str_startswith(struct run *run, struct value self, struct call *call)
{
    return fits(run, self, call, view_starts);
}

static struct value str_endswith(struct run *run, struct value self, struct call *call)
{
    return fits(run, self, call, view_ends);
}

/* ---- Stripping ------------------------------------------------------------------------------- */

/* Whether character goes: it is one of characters, or white space where that is NULL. */
static bool is_stripped(struct view character, const struct string *characters)
{
    uint32_t c;
    if (characters == NULL)
        return utf8_decode(character.data, character.size, &c) > 0 && character_space(c);
    for (size_t i = 0; i < characters->size; i++)
        if (view_starts((struct view){characters->data + i, characters->size - i}, character))
            return true;
    return false;
}

static size_t character_size(struct view text, size_t at)
{
    size_t size = 1;
    while (at + size < text.size && ((unsigned char)text.data[at + size] & 0xC0) == 0x80)
        size++;
    return size;
}

enum strip_side { STRIP_LEFT = 1, STRIP_RIGHT = 2 };

static struct value strip(struct run *run, struct value self, struct call *call, unsigned sides)
{
    struct string *characters = NULL;
    struct view text = string_view(self.string);
    size_t start = 0, end = text.size;
    if (template_given(call->bound[0]) && (characters = text_argument(run, call->bound[0])) == NULL)
        return value_undefined(NULL);
    size_t cost = 1 + (characters != NULL ? characters->size / 8 : 0);
    while (sides & STRIP_LEFT && start < end && template_spend(run, cost)) {
        size_t size = character_size(text, start);
        if (!is_stripped((struct view){text.data + start, size}, characters))
            break;
        start += size;
    }
    while (sides & STRIP_RIGHT && end > start && template_spend(run, cost)) {
        size_t last = utf8_last(text.data, end);
        if (!is_stripped((struct view){text.data + last, end - last}, characters))
            break;
        end = last;
    }
    struct value stripped = part_of(run, text, start, end);
    if (stripped.kind == KIND_STRING)
        stripped.string->safe = self.string->safe;
    return stripped;
}

static struct value str_strip(struct run *run, struct value self, struct call *call)
{
    return strip(run, self, call, STRIP_LEFT | STRIP_RIGHT);
}

static struct value str_lstrip(struct run *run, struct value self, struct call *call)
{
    return strip(run, self, call, STRIP_LEFT);
}

static struct value str_rstrip(struct run *run, struct value self, struct call *call)
{
    return strip(run, self, call, STRIP_RIGHT);
}

static struct value str_removeprefix(struct run *run, struct value self, struct call *call)
{
    struct string *part = text_argument(run, call->bound[0]);
    struct view text = string_view(self.string);
    if (part == NULL || !view_starts(text, string_view(part)))
        return self;
    return part_of(run, text, part->size, text.size);
}

static struct value str_removesuffix(struct run *run, struct value self, struct call *call)
{
    struct string *part = text_argument(run, call->bound[0]);
    struct view text = string_view(self.string);
    if (part == NULL || !view_ends(text, string_view(part)))
        return self;
    return part_of(run, text, 0, text.size - part->size);
}

/* ---- Splitting and joining ------------------------------------------------------------------- */

static size_t space_size(struct view text, size_t at)
{
    uint32_t c;
    size_t size = utf8_decode(text.data + at, text.size - at, &c);
    return character_space(c) ? size : 0;
}

/* Words between white space; after limit of them the rest stays whole. */
static struct value split_words(struct run *run, struct view text, int64_t limit)
{
    struct list *words = list_open(run, 0);
    size_t at = 0;
    while (words != NULL && template_spend(run, 1)) {
        size_t skipped = at;
        for (size_t size; at < text.size && (size = space_size(text, at)) > 0;)
            at += size;
        template_spend(run, (at - skipped) / 8);
        if (at == text.size)
            break;
        size_t end = at;
        if (limit >= 0 && (int64_t)words->count == limit)
            end = text.size;
        while (end < text.size && space_size(text, end) == 0)
            end += character_size(text, end);
        template_spend(run, (end - at) / 8);
        list_push(run, words, part_of(run, text, at, end));
        at = end;
    }
    return value_list(words, KIND_LIST);
}

/* As split_words, from the end. */
static struct value split_words_back(struct run *run, struct view text, int64_t limit)
{
    struct list *words = list_open(run, 0);
    size_t end = text.size;
    while (words != NULL && template_spend(run, 1)) {
        size_t before = end;
        while (end > 0 && space_size(text, utf8_last(text.data, end)) > 0)
            end = utf8_last(text.data, end);
        template_spend(run, (before - end) / 8);
        if (end == 0)
            break;
        size_t start = end;
        if (limit >= 0 && (int64_t)words->count == limit)
            start = 0;
        while (start > 0 && space_size(text, utf8_last(text.data, start)) == 0)
            start = utf8_last(text.data, start);
        template_spend(run, (end - start) / 8);
        list_push(run, words, part_of(run, text, start, end));
        end = start;
    }
    list_flip(words);
    return value_list(words, KIND_LIST);
}

static struct value split_at(struct run *run, struct view text, struct view separator,
                             int64_t limit, bool from_end)
{
    struct list *parts = list_open(run, 0);
    size_t start = 0, end = text.size;
    while (parts != NULL && (limit < 0 || (int64_t)parts->count < limit) &&
           template_spend(run, 1)) {
        size_t at = from_end ? find_last(run, text, separator, end)
                             : template_search(run, text, separator, start);
        if (at == TEMPLATE_NOT_FOUND)
            break;
        if (from_end) {
            list_push(run, parts, part_of(run, text, at + separator.size, end));
            end = at;
        } else {
            list_push(run, parts, part_of(run, text, start, at));
            start = at + separator.size;
        }
    }
    list_push(run, parts, part_of(run, text, start, end));
    if (from_end)
        list_flip(parts);
    return value_list(parts, KIND_LIST);
}

static struct value split(struct run *run, struct value self, struct call *call, bool from_end)
{
    int64_t limit = template_integer(run, call->bound[1], -1);
    struct view text = string_view(self.string);
    if (!template_given(call->bound[0]))
        return from_end ? split_words_back(run, text, limit) : split_words(run, text, limit);
    struct string *separator = text_argument(run, call->bound[0]);
    if (separator == NULL)
        return value_undefined(NULL);
    if (separator->size == 0)
        return template_fail(run, STATUS_INVALID, "the separator of split() is empty");
    return split_at(run, text, string_view(separator), limit, from_end);
}

static struct value str_split(struct run *run, struct value self, struct call *call)
{
    return split(run, self, call, false);
}

static struct value str_rsplit(struct run *run, struct value self, struct call *call)
{
    return split(run, self, call, true);
}

/* Bytes of the line end at text[at], 0 where there is none. */
static size_t line_end_size(struct view text, size_t at)
{
    uint32_t c;
    size_t size = utf8_decode(text.data + at, text.size - at, &c);
    if (c == '\r' && at + 1 < text.size && text.data[at + 1] == '\n')
        return 2;
    bool ends = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
                c == 0x2029;
    return ends ? size : 0;
}

struct list *template_lines(struct run *run, struct view text, bool keep_ends)
{
    struct list *lines = list_open(run, 0);
    for (size_t start = 0; start < text.size && lines != NULL && template_spend(run, 1);) {
        size_t end = start, ending = 0;
        while (end < text.size && (ending = line_end_size(text, end)) == 0)
            end += character_size(text, end);
        template_spend(run, (end - start) / 8);
        list_push(run, lines, part_of(run, text, start, end + (keep_ends ? ending : 0)));
        start = end + ending;
    }
    return lines;
}

static struct value str_splitlines(struct run *run, struct value self, struct call *call)
{
    bool keep = template_flag(call->bound[0]);
    return value_list(template_lines(run, string_view(self.string), keep), KIND_LIST);
}

static struct value str_join(struct run *run, struct value self, struct call *call)
{
    struct list *list = value_elements(run, call->bound[0]);
    struct buffer text = {0};
    for (size_t i = 0; list != NULL && i < list->count && template_spend(run, 1); i++) {
        if (i > 0)
            value_put(run, &text, self);
        if (text_argument(run, list->items[i]) != NULL)
            value_put(run, &text, list->items[i]);
    }
    return value_take(run, &text);
}

static struct value partition(struct run *run, struct value self, struct call *call, bool last)
{
    struct view text = string_view(self.string);
    struct string *separator = text_argument(run, call->bound[0]);
    if (separator == NULL)
        return value_undefined(NULL);
    if (separator->size == 0)
        return template_fail(run, STATUS_INVALID, "the separator of partition() is empty");
    size_t at = last ? find_last(run, text, string_view(separator), text.size)
                     : template_search(run, text, string_view(separator), 0);
    struct list *parts = list_open(run, 3);
    struct value empty = value_borrow(run, "", 0);
    if (at == TEMPLATE_NOT_FOUND) {
        list_push(run, parts, last ? empty : self);
        list_push(run, parts, empty);
        list_push(run, parts, last ? self : empty);
    } else {
        list_push(run, parts, part_of(run, text, 0, at));
        list_push(run, parts, call->bound[0]);
        list_push(run, parts, part_of(run, text, at + separator->size, text.size));
    }
    return value_list(parts, KIND_TUPLE);
}

static struct value str_partition(struct run *run, struct value self, struct call *call)
{
    return partition(run, self, call, false);
}

static struct value str_rpartition(struct run *run, struct value self, struct call *call)
{
    return partition(run, self, call, true);
}

/* text with part replaced by other, at most limit times (negative: every time). */
struct value template_replace(struct run *run, const struct string *self, const struct string *part,
                              const struct string *other, int64_t limit)
{
    struct view text = string_view(self);
    struct buffer replaced = {0};
    size_t start = 0;
    for (int64_t n = 0; (limit < 0 || n < limit) && template_spend(run, 1); n++) {
        size_t at = template_search(run, text, string_view(part), start);
        if (part->size == 0) {
            /* An empty part stands before each character and at the end. */
            at = n == 0              ? 0
                 : start < text.size ? start + character_size(text, start)
                                     : TEMPLATE_NOT_FOUND;
        }
        if (at == TEMPLATE_NOT_FOUND)
            break;
        template_put(run, &replaced, text.data + start, at - start);
        template_put(run, &replaced, other->data, other->size);
        start = at + part->size;
    }
    template_put(run, &replaced, text.data + start, text.size - start);
    return value_take(run, &replaced);
}

static struct value str_replace(struct run *run, struct value self, struct call *call)
{
    struct string *part = text_argument(run, call->bound[0]);
    struct string *other = text_argument(run, call->bound[1]);
    int64_t limit = template_integer(run, call->bound[2], -1);
    if (part == NULL || other == NULL)
        return value_undefined(NULL);
    return template_replace(run, self.string, part, other, limit);
}

/* ---- Letter case and kinds of characters ----------------------------------------------------- */

static struct value in_case(struct run *run, struct value self, enum letter_case letter_case)
{
    struct buffer text = {0};
    template_put_case(run, &text, string_view(self.string), letter_case);
    struct value cased = value_take(run, &text);
    if (cased.kind == KIND_STRING)
        cased.string->safe = self.string->safe;
    return cased;
}

static struct value str_upper(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return in_case(run, self, CASE_UPPER);
}

static struct value str_lower(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return in_case(run, self, CASE_LOWER);
}

static struct value str_casefold(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return in_case(run, self, CASE_FOLD);
}

static struct value str_capitalize(struct run *run, struct value self, struct call *call)
{
    struct buffer text = {0};
    struct view whole = string_view(self.string);
    struct view first = string_part(self.string, 0, MIN(self.string->length, 1));
    (void)call;
    template_put_case(run, &text, first, CASE_TITLE);
    template_put_case(run, &text, (struct view){whole.data + first.size, whole.size - first.size},
                      CASE_LOWER);
    return value_take(run, &text);
}

/* Each character in a case of its own: title case at the beginning of words, or the other case. */
static struct value recased(struct run *run, struct value self, bool title)
{
    struct view text = string_view(self.string);
    struct buffer out = {0};
    bool inside = false;
    uint32_t c;
    for (size_t i = 0, size; i < text.size && !run->failed; i += size) {
        size = utf8_decode(text.data + i, text.size - i, &c);
        if (size == 0)
            break;
        bool lowers = title ? inside : character_upper(c);
        template_put_case(run, &out, (struct view){text.data + i, size},
                          lowers  ? CASE_LOWER
                          : title ? CASE_TITLE
                                  : CASE_UPPER);
        inside = character_upper(c) || character_lower(c);
    }
    return value_take(run, &out);
}

static struct value str_title(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return recased(run, self, true);
}

static struct value str_swapcase(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return recased(run, self, false);
}

static bool is_alphanumeric(uint32_t c)
{
    return character_alpha(c) || character_digit(c) || character_numeric(c);
}

static bool is_ascii(uint32_t c)
{
    return c < 0x80;
}

/* Whether every character is of a kind; empty is what an empty text gives. */
static struct value all_are(struct run *run, struct value self, bool (*is)(uint32_t), bool empty)
{
    struct view text = string_view(self.string);
    uint32_t c;
    template_spend(run, text.size / 8);
    for (size_t i = 0, size; i < text.size; i += size) {
        size = utf8_decode(text.data + i, text.size - i, &c);
        if (size == 0 || !is(c))
            return value_bool(false);
    }
    return value_bool(text.size > 0 || empty);
}

#define ALL_ARE(name, is, empty)                                                                   \
    static struct value name(struct run *run, struct value self, struct call *call)                \
    {                                                                                              \
        (void)call;                                                                                \
        return all_are(run, self, is, empty);                                                      \
    }
ALL_ARE(str_isdigit, character_digit, false)
ALL_ARE(str_isnumeric, character_numeric, false)
ALL_ARE(str_isalpha, character_alpha, false)
ALL_ARE(str_isalnum, is_alphanumeric, false)
ALL_ARE(str_isspace, character_space, false)
ALL_ARE(str_isascii, is_ascii, true)
ALL_ARE(str_isprintable, character_printable, true)
#undef ALL_ARE

static struct value str_isupper(struct run *run, struct value self, struct call *call)
{
    return template_find_test(view_of("upper"))->function(run, self, call);
}

static struct value str_islower(struct run *run, struct value self, struct call *call)
{
    return template_find_test(view_of("lower"))->function(run, self, call);
}

/* ---- Filling --------------------------------------------------------------------------------- */

static void put_fill(struct run *run, struct buffer *out, const struct string *fill, int64_t count)
{
    for (int64_t i = 0; i < count && template_spend(run, 1); i++)
        template_put(run, out, fill != NULL ? fill->data : " ", fill != NULL ? fill->size : 1);
}

/* before of every two places of the fill go before the text. */
static struct value filled(struct run *run, struct value self, struct call *call, int before)
{
    int64_t width = template_integer(run, call->bound[0], 0);
    struct string *fill = NULL;
    struct buffer text = {0};
    if (template_given(call->bound[1]) && (fill = text_argument(run, call->bound[1])) == NULL)
        return value_undefined(NULL);
    if (fill != NULL && fill->length != 1)
        return template_fail(run, STATUS_INVALID, "the fill is one character");
    int64_t missing = MAX(width - (int64_t)self.string->length, 0);
    /* The odd place of centred text goes left where the width is odd, as in Python. */
    int64_t left = before == 0 ? 0 : before == 2 ? missing : missing / 2 + (missing & width & 1);
    put_fill(run, &text, fill, left);
    value_put(run, &text, self);
    put_fill(run, &text, fill, missing - left);
    return value_take(run, &text);
}

static struct value str_center(struct run *run, struct value self, struct call *call)
{
    return filled(run, self, call, 1);
}

static struct value str_ljust(struct run *run, struct value self, struct call *call)
{
    return filled(run, self, call, 0);
}

static struct value str_rjust(struct run *run, struct value self, struct call *call)
{
    return filled(run, self, call, 2);
}

static struct value str_zfill(struct run *run, struct value self, struct call *call)
{
    int64_t width = template_integer(run, call->bound[0], 0);
    struct view text = string_view(self.string);
    struct string zero = {.data = "0", .size = 1, .length = 1};
    struct buffer out = {0};
    size_t sign = text.size > 0 && (text.data[0] == '-' || text.data[0] == '+');
    template_put(run, &out, text.data, sign);
    put_fill(run, &out, &zero, width - (int64_t)self.string->length);
    template_put(run, &out, text.data + sign, text.size - sign);
    return value_take(run, &out);
}

static struct value str_expandtabs(struct run *run, struct value self, struct call *call)
{
    int64_t size = template_integer(run, call->bound[0], 8), column = 0;
    struct view text = string_view(self.string);
    struct buffer out = {0};
    for (size_t i = 0; i < text.size && !run->failed; i++) {
        char c = text.data[i];
        if (c == '\t') {
            int64_t count = size > 0 ? size - column % size : 0;
            put_fill(run, &out, NULL, count);
            column += count;
            continue;
        }
        template_put(run, &out, &c, 1);
        column = c == '\n' || c == '\r' ? 0 : column + (((unsigned char)c & 0xC0) != 0x80);
    }
    return value_take(run, &out);
}

static struct value str_format(struct run *run, struct value self, struct call *call)
{
    return template_format(run, self.string, call);
}

/* ---- Table ----------------------------------------------------------------------------------- */

const struct builtin template_text_methods[] = {
    {"capitalize", str_capitalize, "", 0},
    {"casefold", str_casefold, "", 0},
    {"center", str_center, "width fillchar", 1},
    {"count", str_count, "sub start end", 1},
    {"encode", NULL, "*", 0},
    {"endswith", str_endswith, "suffix start end", 1},
    {"expandtabs", str_expandtabs, "tabsize", 0},
    {"find", str_find, "sub start end", 1},
    {"format", str_format, "*", 0},
    {"format_map", NULL, "*", 0},
    {"index", str_index, "sub start end", 1},
    {"isalnum", str_isalnum, "", 0},
    {"isalpha", str_isalpha, "", 0},
    {"isascii", str_isascii, "", 0},
    {"isdecimal", str_isdigit, "", 0},
    {"isdigit", str_isdigit, "", 0},
    {"isidentifier", NULL, "*", 0},
    {"islower", str_islower, "", 0},
    {"isnumeric", str_isnumeric, "", 0},
    {"isprintable", str_isprintable, "", 0},
    {"isspace", str_isspace, "", 0},
    {"istitle", NULL, "*", 0},
    {"isupper", str_isupper, "", 0},
    {"join", str_join, "iterable", 1},
    {"ljust", str_ljust, "width fillchar", 1},
    {"lower", str_lower, "", 0},
    {"lstrip", str_lstrip, "chars", 0},
    {"maketrans", NULL, "*", 0},
    {"partition", str_partition, "sep", 1},
    {"removeprefix", str_removeprefix, "prefix", 1},
    {"removesuffix", str_removesuffix, "suffix", 1},
    {"replace", str_replace, "old new count", 2},
    {"rfind", str_rfind, "sub start end", 1},
    {"rindex", str_rindex, "sub start end", 1},
    {"rjust", str_rjust, "width fillchar", 1},
    {"rpartition", str_rpartition, "sep", 1},
    {"rsplit", str_rsplit, "sep maxsplit", 0},
    {"rstrip", str_rstrip, "chars", 0},
    {"split", str_split, "sep maxsplit", 0},
    {"splitlines", str_splitlines, "keepends", 0},
    {"startswith", str_startswith, "prefix start end", 1},
    {"strip", str_strip, "chars", 0},
    {"swapcase", str_swapcase, "", 0},
    {"title", str_title, "", 0},
    {"translate", NULL, "*", 0},
    {"upper", str_upper, "", 0},
    {"zfill", str_zfill, "width", 1},
};

const size_t template_n_text_methods = ARRAY_COUNT(template_text_methods);
