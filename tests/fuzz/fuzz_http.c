/* The input is requests as they come over one connection. They are parsed once whole and once in
 * pieces whose sizes come from a hash of the input, and must give the same. */
#include "net/http_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REQUESTS = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void append_pairs(struct buffer *out, const struct http_request *request,
                         const struct http_pairs *pairs)
{
    for (size_t i = 0; i < pairs->count; i++) {
        struct view name = http_request_slice(request, pairs->items[i].name);
        struct view value = http_request_slice(request, pairs->items[i].value);
        buffer_append(out, name.data, name.size);
        buffer_append_text(out, "=");
        buffer_append(out, value.data, value.size);
        buffer_append_text(out, "\n");
    }
}

static void append_request(struct buffer *out, const struct http_request *request)
{
    struct view path = http_request_slice(request, request->path);
    if (request->stage == HTTP_FAILED) {
        buffer_printf(out, "%d %s\n", request->error_status, request->error_text);
        return;
    }
    buffer_printf(out, "stage %d 1.%u %d %d\n", (int)request->stage, request->minor_version,
                  request->keep_alive, request->expects_continue);
    if (request->stage != HTTP_DONE)
        return;
    if (path.size > 0 && !utf8_valid(path.data, path.size))
        abort();
    buffer_append(out, path.data, path.size);
    append_pairs(out, request, &request->parameters);
    append_pairs(out, request, &request->fields);
    buffer_append(out, request->body.data, request->body.size);
}

/* All requests of data[size]; with a seed in pieces, otherwise whole. */
static void parse_all(struct buffer *out, const char *data, size_t size, uint64_t seed)
{
    static const struct http_limits limits = {.header_bytes = 4096, .body_bytes = 8192};
    struct http_request request = {0};
    size_t used = 0;
    uint64_t position = 0;
    for (size_t i = 0; i < MAX_REQUESTS && used < size; i++) {
        http_request_begin(&request, &limits);
        while (used < size && request.stage < HTTP_DONE) {
            size_t left = size - used;
            size_t wanted = seed != 0 ? 1 + (size_t)(rng_u64(seed, position++, 0) % 24) : left;
            size_t piece = MIN(wanted, left);
            char *copy = malloc(piece);
            memcpy(copy, data + used, piece);
            used += http_request_feed(&request, copy, piece);
            free(copy);
        }
        append_request(out, &request);
        if (request.stage != HTTP_DONE)
            break;
    }
    http_request_free(&request);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buffer whole = {0}, pieces = {0};
    uint64_t seed = 1469598103934665603u;
    for (size_t i = 0; i < size; i++)
        seed = (seed ^ data[i]) * 1099511628211u;
    parse_all(&whole, (const char *)data, size, 0);
    parse_all(&pieces, (const char *)data, size, seed | 1);
    if (whole.size != pieces.size ||
        (whole.size > 0 && memcmp(whole.data, pieces.data, whole.size) != 0)) {
        fprintf(stderr, "whole:\n%s\nin pieces:\n%s\n", whole.data, pieces.data);
        abort();
    }
    buffer_free(&whole);
    buffer_free(&pieces);
    return 0;
}
