/* Names of models, and the names of files that they come from. */
#include "store/internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char latest[] = ":latest";

static bool is_word(char c)
{
    return isalnum((unsigned char)c) && (unsigned char)c < 0x80;
}

static bool is_name_character(char c)
{
    return is_word(c) || c == '.' || c == '_' || c == '-';
}

enum status store_name_parse(const char *text, char out[STORE_NAME_BYTES], struct error *error)
{
    size_t size = strlen(text), tags = 0;
    bool begin = true;
    for (size_t i = 0; i < size; i++) {
        bool separator = text[i] == '/' || text[i] == ':';
        if (begin ? !is_word(text[i]) : !separator && !is_name_character(text[i]))
            goto bad;
        if (tags > 0 && separator) /* the tag is the last part */
            goto bad;
        tags += text[i] == ':';
        begin = separator;
    }
    if (size == 0 || begin)
        goto bad;
    if (size + (tags == 0 ? sizeof latest - 1 : 0) >= STORE_NAME_BYTES)
        return error_set(error, STATUS_INVALID, "the name of a model has at most %d characters",
                         STORE_NAME_BYTES - 1);
    snprintf(out, STORE_NAME_BYTES, "%s%s", text, tags == 0 ? latest : "");
    return STATUS_OK;
bad:
    return error_set(error, STATUS_INVALID,
                     "'%.100s' is no name of a model: it is NAME, NAME:TAG or OWNER/NAME:TAG, of "
                     "letters, digits and . _ -",
                     text);
}

size_t store_name_short(const char *name)
{
    size_t size = strlen(name), tag = sizeof latest - 1;
    return size > tag && strcmp(name + size - tag, latest) == 0 ? size - tag : size;
}

/* "-00001-of-00003" before the end of a name */
#define PART_BYTES 15

/* Where it begins, or NULL. */
static const char *part_of(const char *name, size_t size, unsigned *number, unsigned *count)
{
    int end = 0;
    const char *at = name + size - PART_BYTES;
    if (size <= PART_BYTES || strspn(at + 1, "0123456789") != 5 ||
        strncmp(at + 6, "-of-", 4) != 0 || strspn(at + 10, "0123456789") < 5)
        return NULL;
    if (sscanf(at, "-%5u-of-%5u%n", number, count, &end) != 2 || end != PART_BYTES)
        return NULL;
    return at;
}

static size_t without_gguf(const char *name)
{
    size_t size = strlen(name);
    return size > 5 && strcmp(name + size - 5, ".gguf") == 0 ? size - 5 : size;
}

unsigned part_count_of(const char *name, unsigned *number)
{
    unsigned count;
    size_t size = without_gguf(name);
    return name[size] != '\0' && part_of(name, size, number, &count) != NULL ? count : 0;
}

void store_name_of_file(const char *path, char out[STORE_NAME_BYTES])
{
    unsigned number, count;
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    size_t size = without_gguf(name), n = 0;
    const char *part = part_of(name, size, &number, &count);
    if (part != NULL)
        size = (size_t)(part - name);
    for (size_t i = 0; i < size && n < STORE_NAME_BYTES - sizeof latest; i++)
        if (n > 0 || is_word(name[i]))
            out[n++] = is_name_character(name[i]) ? name[i] : '-';
    snprintf(out + n, STORE_NAME_BYTES - n, "%s", n == 0 ? "model" : "");
}
