#include "cli/windows.h"

#define MAX_TEXT_BYTES ((size_t)1 << 30)

enum status windows_open(struct windows *windows, const struct engine *engine, const char *path,
                         size_t n_ctx, size_t limit, struct error *error)
{
    *windows = (struct windows){.n_ctx = n_ctx, .bos = TOKEN_NONE};
    struct buffer text = {0};
    enum status status = file_read(path, MAX_TEXT_BYTES, &text, error);
    if (status == STATUS_OK)
        status = tokenizer_encode(engine->tokenizer, (struct view){text.data, text.size},
                                  TOKENIZER_ADD_SPECIAL, &windows->tokens, error);
    buffer_free(&text);
    if (status != STATUS_OK)
        return status;
    windows->count = windows->tokens.count / n_ctx;
    if (windows->count == 0)
        return error_set(error, STATUS_INVALID,
                         "%s has %zu tokens, less than one window of %zu: it takes more text or a "
                         "smaller --ctx",
                         path, windows->tokens.count, n_ctx);
    if (limit != 0)
        windows->count = MIN(windows->count, limit);
    int32_t bos = tokenizer_config(engine->tokenizer)->bos;
    if (bos != TOKEN_NONE && windows->tokens.ids[0] == bos)
        windows->bos = bos;
    return STATUS_OK;
}

void windows_close(struct windows *windows)
{
    token_list_free(&windows->tokens);
}

const int32_t *windows_take(struct windows *windows, size_t index)
{
    int32_t *ids = windows->tokens.ids + index * windows->n_ctx;
    if (windows->bos != TOKEN_NONE)
        ids[0] = windows->bos;
    return ids;
}
