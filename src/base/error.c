#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *status_text(enum status code)
{
    static const char *const texts[] = {
#define STATUS_TEXT(name, text) [STATUS_##name] = text,
        STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    };
    return (size_t)code < ARRAY_COUNT(texts) ? texts[code] : "unknown status";
}

enum status error_set(struct error *error, enum status code, const char *format, ...)
{
    if (error == NULL)
        return code;
    error->code = code;
    va_list args;
    va_start(args, format);
    int length = vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    if (length >= (int)sizeof error->text) {
        size_t whole = utf8_complete(error->text, sizeof error->text - 1);
        error->text[whole] = '\0';
    }
    /* Names come from files that nobody vouches for: they must not steer a terminal. */
    for (char *c = error->text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    return code;
}

enum status error_memory(struct error *error, size_t size_bytes)
{
    return error_set(
        error, STATUS_MEMORY,
        "out of memory: %zu bytes could not be had; close other programs and try again",
        size_bytes);
}
