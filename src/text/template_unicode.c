/* What Python's str methods know of characters. */
#include "text/template.h"

#include <utf8proc.h>

static utf8proc_category_t category(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c);
}

bool character_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
    return c == 0x85 || c == 0x2028 || c == 0x2029 || category(c) == UTF8PROC_CATEGORY_ZS;
}

bool character_alpha(uint32_t c)
{
    if (c < 0x80)
        return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    utf8proc_category_t kind = category(c);
    return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

/* Decimal digits, and those that stand for one in another form, such as superscripts. */
bool character_digit(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    return category(c) == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9 ||
           c == 0x2070 || (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
           (c >= 0x2460 && c <= 0x2468);
}

bool character_numeric(uint32_t c)
{
    utf8proc_category_t kind = category(c);
    return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
           kind == UTF8PROC_CATEGORY_NO;
}

bool character_upper(uint32_t c)
{
    return c < 0x80 ? c >= 'A' && c <= 'Z' : utf8proc_isupper((utf8proc_int32_t)c) != 0;
}

bool character_lower(uint32_t c)
{
    return c < 0x80 ? c >= 'a' && c <= 'z' : utf8proc_islower((utf8proc_int32_t)c) != 0;
}

bool character_printable(uint32_t c)
{
    if (c < 0x7F)
        return c >= 0x20;
    switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

/* Characters whose capital or folded form is more than one (Unicode's SpecialCasing, those in use).
 */
static const struct {
    uint32_t character;
    const char *upper, *title, *fold;
} special_cases[] = {
    {0xDF, "SS", "Ss", "ss"},      {0x149, "\xCA\xBCN", "\xCA\xBCN", "\xCA\xBCn"},
    {0xFB00, "FF", "Ff", "ff"},    {0xFB01, "FI", "Fi", "fi"},
    {0xFB02, "FL", "Fl", "fl"},    {0xFB03, "FFI", "Ffi", "ffi"},
    {0xFB04, "FFL", "Ffl", "ffl"}, {0xFB05, "ST", "St", "st"},
    {0xFB06, "ST", "St", "st"},    {0x1E9E, NULL, NULL, "ss"},
};

static const char *special_case(uint32_t c, enum letter_case letter_case)
{
    for (size_t i = 0; c > 0x80 && i < ARRAY_COUNT(special_cases); i++)
        if (special_cases[i].character == c)
            return letter_case == CASE_UPPER   ? special_cases[i].upper
                   : letter_case == CASE_TITLE ? special_cases[i].title
                   : letter_case == CASE_FOLD  ? special_cases[i].fold
                                               : NULL;
    return NULL;
}

static bool letter_beside(struct view text, size_t at, bool after)
{
    uint32_t c;
    if (after)
        return at < text.size && utf8_decode(text.data + at, text.size - at, &c) > 0 &&
               character_alpha(c);
    size_t start = at > 0 ? utf8_last(text.data, at) : 0;
    return at > 0 && utf8_decode(text.data + start, at - start, &c) > 0 && character_alpha(c);
}

void template_put_case(struct run *run, struct buffer *out, struct view text,
                       enum letter_case letter_case)
{
    uint32_t c;
    for (size_t i = 0, size; i < text.size; i += size) {
        size = utf8_decode(text.data + i, text.size - i, &c);
        if (size == 0)
            return;
        const char *special = special_case(c, letter_case);
        if (special != NULL) {
            template_put_text(run, out, special);
            continue;
        }
        if (letter_case == CASE_UPPER)
            c = (uint32_t)utf8proc_toupper((utf8proc_int32_t)c);
        else if (letter_case == CASE_TITLE)
            c = (uint32_t)utf8proc_totitle((utf8proc_int32_t)c);
        else if (c == 0x3A3 && letter_case == CASE_LOWER) /* the sigma at the end of a word */
            c = letter_beside(text, i, false) && !letter_beside(text, i + size, true) ? 0x3C2
                                                                                      : 0x3C3;
        else if (c == 0x130) {
            template_put_text(run, out, "i\xCC\x87");
            continue;
        } else if (c == 0x3C2 && letter_case == CASE_FOLD)
            c = 0x3C3;
        else
            c = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
        template_put_character(run, out, c);
    }
}
