#include "request/request.h"

#include <string.h>

struct generation_request *generation_request_open(const int32_t *tokens, size_t n_tokens)
{
    struct arena *arena = arena_open(0);
    if (arena == NULL)
        return NULL;
    struct generation_request *request = arena_alloc(arena, sizeof *request);
    int32_t *copy = arena_array(arena, n_tokens, sizeof *copy);
    if (request == NULL || (copy == NULL && n_tokens > 0)) {
        arena_close(arena);
        return NULL;
    }
    if (n_tokens > 0)
        memcpy(copy, tokens, n_tokens * sizeof *copy);
    *request = (struct generation_request){
        .arena = arena, .tokens = copy, .n_tokens = n_tokens, .sampling = SAMPLING_DEFAULTS};
    return request;
}

void generation_request_close(struct generation_request *request)
{
    if (request == NULL)
        return;
    json_decref(request->grammar_asked);
    arena_close(request->arena);
}

enum status generation_request_resume(struct generation_request *request, const int32_t *drawn,
                                      size_t n_drawn, struct error *error)
{
    size_t n;
    if (n_drawn == 0)
        return STATUS_OK;
    int32_t *tokens = size_add(request->n_tokens, n_drawn, &n)
                          ? arena_array(request->arena, n, sizeof *tokens)
                          : NULL;
    if (tokens == NULL)
        return error_memory(error, n_drawn * sizeof *tokens);
    memcpy(tokens, request->tokens, request->n_tokens * sizeof *tokens);
    memcpy(tokens + request->n_tokens, drawn, n_drawn * sizeof *tokens);
    request->tokens = tokens;
    request->n_tokens = n;
    request->n_drawn += n_drawn;
    return STATUS_OK;
}
