#include "base/base.h"

#include <stdio.h>

#include <string.h>

bool view_equal(struct view a, struct view b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

struct view view_of(const char *text)
{
    return (struct view){text, strlen(text)};
}

size_t view_find(struct view text, size_t from, struct view word)
{
    for (size_t i = from; word.size <= text.size && i <= text.size - word.size; i++)
        if (memcmp(text.data + i, word.data, word.size) == 0)
            return i;
    return text.size;
}

bool view_contains(struct view text, const char *word)
{
    return view_find(text, 0, view_of(word)) < text.size;
}

/* The length its first byte promises; 0 for a byte that cannot begin a character. */
static size_t utf8_length(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xC2 && first <= 0xDF)
        return 2;
    if (first >= 0xE0 && first <= 0xEF)
        return 3;
    if (first >= 0xF0 && first <= 0xF4)
        return 4;
    return 0;
}

/* Whether second may follow first (Unicode 15, table 3-7: no overlong forms, no surrogates). */
static bool utf8_second(unsigned char first, unsigned char second)
{
    unsigned char low = 0x80, high = 0xBF;
    if (first == 0xE0)
        low = 0xA0;
    else if (first == 0xED)
        high = 0x9F;
    else if (first == 0xF0)
        low = 0x90;
    else if (first == 0xF4)
        high = 0x8F;
    return second >= low && second <= high;
}

size_t utf8_decode(const char *data, size_t size, uint32_t *code_point)
{
    const unsigned char *bytes = (const unsigned char *)data;
    size_t length = utf8_length(bytes[0]);
    if (length == 0 || length > size)
        return 0;
    if (length == 1) {
        *code_point = bytes[0];
        return 1;
    }
    if (!utf8_second(bytes[0], bytes[1]))
        return 0;
    uint32_t value = bytes[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xC0) != 0x80)
            return 0;
        value = value << 6 | (bytes[i] & 0x3F);
    }
    *code_point = value;
    return length;
}

size_t utf8_encode(uint32_t code_point, char out[4])
{
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    size_t length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    out[0] = (char)((0xF00u >> length & 0xFF) | code_point);
    return length;
}

/* Whether data[size], shorter than its first byte promises, is the beginning of a character. */
static bool utf8_begins(const unsigned char *bytes, size_t size)
{
    if (size > 1 && !utf8_second(bytes[0], bytes[1]))
        return false;
    for (size_t i = 2; i < size; i++)
        if ((bytes[i] & 0xC0) != 0x80)
            return false;
    return true;
}

size_t utf8_complete(const char *data, size_t size)
{
    const unsigned char *bytes = (const unsigned char *)data;
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        size_t length = utf8_length(bytes[size - back]);
        if (length > back && utf8_begins(bytes + size - back, back))
            return size - back;
        if (length > 0)
            return size;
    }
    return size;
}

bool utf8_valid(const char *data, size_t size)
{
    uint32_t code_point;
    for (size_t i = 0, length; i < size; i += length) {
        length = utf8_decode(data + i, size - i, &code_point);
        if (length == 0)
            return false;
    }
    return true;
}

size_t utf8_count(const char *data, size_t size)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        count += ((unsigned char)data[i] & 0xC0) != 0x80;
    return count;
}

size_t utf8_last(const char *data, size_t size)
{
    size_t at = size - 1;
    while (at > 0 && ((unsigned char)data[at] & 0xC0) == 0x80)
        at--;
    return at;
}

const char *size_text(char text[32], double bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit + 1 < ARRAY_COUNT(units); unit++)
        bytes /= 1024;
    snprintf(text, 32, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return text;
}
