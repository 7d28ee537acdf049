#include "reference.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)1 << 24)

void reference_path(char path[REFERENCE_PATH_BYTES], const char *format, ...)
{
    const char *root = getenv("CONSORT_REFERENCE");
    int size = snprintf(path, REFERENCE_PATH_BYTES, "%s/", root ? root : "../shared/reference");
    if (size < 0 || size >= REFERENCE_PATH_BYTES)
        abort();
    va_list args;
    va_start(args, format);
    vsnprintf(path + size, REFERENCE_PATH_BYTES - (size_t)size, format, args);
    va_end(args);
}

bool reference_read(const char *path, struct buffer *out)
{
    return file_read(path, MAX_FILE_BYTES, out, NULL) == STATUS_OK;
}

size_t reference_tokens(const char *path, int32_t *tokens, size_t most)
{
    struct buffer text = {0};
    size_t n = 0;
    if (reference_read(path, &text))
        for (char *word = strtok(text.data, " \n"); word != NULL && n < most;
             word = strtok(NULL, " \n"))
            tokens[n++] = atoi(word);
    buffer_free(&text);
    return n;
}

double reference_error(const float *found, const float *expected, size_t n)
{
    double difference = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
        total += (double)expected[i] * expected[i];
    }
    return sqrt(difference / total);
}

bool reference_model_file(const char *name, const char *suffix, struct buffer *out)
{
    char path[REFERENCE_PATH_BYTES];
    reference_path(path, "arch/%s%s", name, suffix);
    return reference_read(path, out);
}

size_t reference_model_tokens(const char *name, const char *suffix, int32_t *tokens, size_t most)
{
    char path[REFERENCE_PATH_BYTES];
    reference_path(path, "arch/%s%s", name, suffix);
    return reference_tokens(path, tokens, most);
}

double reference_tolerance(const char *name)
{
    bool rounded = strcmp(name, "grok") == 0 || strcmp(name, "starcoder2") == 0;
    return rounded ? 2e-4 : 1e-4;
}

size_t reference_best(const float *logits, size_t n)
{
    size_t found = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[found])
            found = i;
    return found;
}
