/* windows: a text file cut into windows of equal length, for measuring a model on it. */
#ifndef CONSORT_CLI_WINDOWS_H
#define CONSORT_CLI_WINDOWS_H

#include "engine/engine.h"

struct windows {
    struct token_list tokens;
    size_t n_ctx, count;
    int32_t bos; /* stands in the first place of every window; or TOKEN_NONE */
};

/* Reads and tokenises path ("-": standard input). At most limit windows where that is not 0. */
enum status windows_open(struct windows *windows, const struct engine *engine, const char *path,
                         size_t n_ctx, size_t limit, struct error *error);
void windows_close(struct windows *windows);

/* Tokens [n_ctx] of a window, its first replaced by BOS where the model wants one. They are changed
 * in place: each window is taken once. */
const int32_t *windows_take(struct windows *windows, size_t index);

#endif
