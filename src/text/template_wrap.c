/* The filter wordwrap: lines of at most a width, as Python's textwrap makes them. */
#include "text/template.h"

#include <string.h>

static bool is_blank(char c)
{
    return c != '\0' && strchr("\t\n\x0b\x0c\r ", c) != NULL;
}

/* Two letters end at byte end, the first not before start. */
static bool letters_before(struct view text, size_t start, size_t end)
{
    for (int i = 0; i < 2; i++) {
        uint32_t c;
        size_t begin = end;
        while (begin > start && ((unsigned char)text.data[--begin] & 0xC0) == 0x80)
            continue;
        if (begin == end || utf8_decode(text.data + begin, end - begin, &c) == 0 ||
            !character_alpha(c))
            return false;
        end = begin;
    }
    return true;
}

/* Two letters begin at byte at. */
static bool letters_after(struct view text, size_t at)
{
    for (int i = 0; i < 2; i++) {
        uint32_t c;
        size_t size = at < text.size ? utf8_decode(text.data + at, text.size - at, &c) : 0;
        if (size == 0 || !character_alpha(c))
            return false;
        at += size;
    }
    return true;
}

/* The end of the chunk at start: white space, or a word up to white space or after a hyphen that
 * stands between letters. */
static size_t chunk_end(struct view line, size_t start, size_t most, bool hyphens)
{
    size_t at = start;
    bool blank = is_blank(line.data[at]);
    while (at < line.size && at - start < most && is_blank(line.data[at]) == blank) {
        bool breaks = hyphens && !blank && line.data[at] == '-' &&
                      letters_before(line, start, at) && letters_after(line, at + 1);
        at++;
        if (breaks)
            break;
    }
    return at;
}

/* Bytes of the first count characters. */
static size_t prefix_size(const char *data, size_t size, size_t count)
{
    size_t at = 0;
    while (at < size && (count > 0 || ((unsigned char)data[at] & 0xC0) == 0x80))
        count -= ((unsigned char)data[at++] & 0xC0) != 0x80;
    return at;
}

struct wrapper {
    struct run *run;
    struct buffer *out;
    size_t width;
    bool break_words, hyphens;
    struct value newline;
};

/* The bytes of a word that is too long which are left on a line with room for count characters: up
 * to its last hyphen there, but for those that it begins with. */
static size_t cut_size(const struct wrapper *wrapper, const char *word, size_t size, size_t count)
{
    size_t cut = prefix_size(word, size, count), hyphen = cut, begin = 0;
    while (begin < cut && word[begin] == '-')
        begin++;
    while (hyphen > begin && word[hyphen - 1] != '-')
        hyphen--;
    return wrapper->hyphens && hyphen > begin ? hyphen : cut;
}

/* Lines are gathered as [start, end) of the text: chunks follow one another without gaps. */
static void wrap_line(struct wrapper *wrapper, struct view line)
{
    size_t at = 0, n_lines = 0;
    /* Of a word that is cut anyway no more is looked at than is wider than a line. */
    size_t most =
        wrapper->break_words && wrapper->width < SIZE_MAX / 8 ? 4 * wrapper->width + 8 : SIZE_MAX;
    while (at < line.size && template_spend(wrapper->run, 1)) {
        size_t start = at, used = 0;
        bool full = false;
        if (is_blank(line.data[at]) && n_lines > 0) {
            at = chunk_end(line, at, SIZE_MAX, wrapper->hyphens);
            start = at;
        }
        while (at < line.size) {
            size_t end = chunk_end(line, at, most, wrapper->hyphens);
            while (end < line.size && ((unsigned char)line.data[end] & 0xC0) == 0x80)
                end++;
            size_t length = utf8_count(line.data + at, end - at);
            template_spend(wrapper->run, 1 + (end - at) / 8);
            if (used + length <= wrapper->width) {
                used += length;
                at = end;
                continue;
            }
            if (length > wrapper->width && wrapper->break_words) {
                size_t room = wrapper->width - used;
                full = room == 0;
                at += cut_size(wrapper, line.data + at, end - at, room);
            } else if (used == 0) {
                at = end;
            }
            break;
        }
        size_t stop = at;
        /* textwrap drops the last piece where it is blank. Of a word that finds no room that is an
         * empty piece, and the blanks before it stay. */
        while (!full && stop > start && is_blank(line.data[stop - 1]))
            stop--;
        if (stop == start)
            continue;
        if (n_lines++ > 0)
            value_put(wrapper->run, wrapper->out, wrapper->newline);
        template_put(wrapper->run, wrapper->out, line.data + start, stop - start);
    }
}

struct value template_wordwrap(struct run *run, struct value self, struct call *call)
{
    struct buffer out = {0};
    int64_t width = 79;
    struct value given = call->bound[0];
    if (given.kind != KIND_MISSING && (!value_integer(given, &width) || width < 1))
        return template_fail(run, STATUS_INVALID, "wordwrap wants a width above 0");
    if (self.kind != KIND_STRING)
        return template_fail(run, STATUS_INVALID, "wordwrap wants a text, not a %s",
                             value_type(self));
    bool has_newline = call->bound[2].kind == KIND_STRING;
    struct wrapper wrapper = {
        .run = run,
        .out = &out,
        .width = (size_t)width,
        .break_words = call->bound[1].kind == KIND_MISSING || value_truth(call->bound[1]),
        .hyphens = call->bound[3].kind == KIND_MISSING || value_truth(call->bound[3]),
        .newline = has_newline ? call->bound[2] : value_borrow(run, "\n", 1),
    };
    struct list *lines = template_lines(run, string_view(self.string), false);
    for (size_t i = 0; lines != NULL && i < lines->count && !run->failed; i++) {
        struct string *line = lines->items[i].string;
        if (i > 0)
            value_put(run, &out, wrapper.newline);
        wrap_line(&wrapper, string_view(line));
    }
    return value_take(run, &out);
}
