#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* ---- Arena ---- */

#define ARENA_ALIGNMENT 16
#define ARENA_CHUNK_BYTES ((size_t)64 * 1024)

struct arena_chunk {
    struct arena_chunk *next;
    size_t size, used;
    _Alignas(ARENA_ALIGNMENT) unsigned char data[];
};

struct arena {
    struct arena_chunk *chunks; /* the newest first; only it has room */
    size_t limit, total;
};

struct arena *arena_open(size_t limit_bytes)
{
    struct arena *arena = calloc(1, sizeof *arena);
    if (arena != NULL)
        arena->limit = limit_bytes > 0 ? limit_bytes : SIZE_MAX;
    return arena;
}

void arena_close(struct arena *arena)
{
    if (arena == NULL)
        return;
    for (struct arena_chunk *chunk = arena->chunks, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    free(arena);
}

static struct arena_chunk *arena_grow(struct arena *arena, size_t size)
{
    size_t data_bytes = MAX(size, ARENA_CHUNK_BYTES), chunk_bytes;
    if (!size_add(data_bytes, sizeof(struct arena_chunk), &chunk_bytes))
        return NULL;
    struct arena_chunk *chunk = calloc(1, chunk_bytes);
    if (chunk == NULL)
        return NULL;
    chunk->size = data_bytes;
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    return chunk;
}

void *arena_alloc(struct arena *arena, size_t size_bytes)
{
    size_t size;
    if (!size_add(size_bytes, ARENA_ALIGNMENT - 1, &size))
        return NULL;
    size &= ~(size_t)(ARENA_ALIGNMENT - 1);
    if (size > arena->limit - arena->total)
        return NULL;
    struct arena_chunk *chunk = arena->chunks;
    if (chunk == NULL || size > chunk->size - chunk->used) {
        chunk = arena_grow(arena, size);
        if (chunk == NULL)
            return NULL;
    }
    void *result = chunk->data + chunk->used;
    chunk->used += size;
    arena->total += size;
    return result;
}

void *arena_array(struct arena *arena, size_t count, size_t element_bytes)
{
    size_t size;
    return size_mul(count, element_bytes, &size) ? arena_alloc(arena, size) : NULL;
}

char *arena_copy(struct arena *arena, const void *data, size_t size)
{
    size_t with_zero;
    char *copy = size_add(size, 1, &with_zero) ? arena_alloc(arena, with_zero) : NULL;
    if (copy != NULL && size > 0)
        memcpy(copy, data, size);
    return copy;
}

/* ---- Buffer ---- */

bool buffer_reserve(struct buffer *buffer, size_t extra_bytes)
{
    size_t needed;
    if (!size_add(buffer->size, extra_bytes, &needed) || !size_add(needed, 1, &needed))
        return buffer->failed = true, false;
    if (needed <= buffer->capacity)
        return true;
    size_t capacity = MAX(needed, buffer->capacity + buffer->capacity / 2);
    capacity = MAX(capacity, 64);
    char *data = realloc(buffer->data, capacity);
    if (data == NULL)
        return buffer->failed = true, false;
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

bool buffer_append(struct buffer *buffer, const void *data, size_t size)
{
    if (!buffer_reserve(buffer, size))
        return false;
    if (size > 0)
        memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    buffer->data[buffer->size] = '\0';
    return true;
}

bool buffer_append_text(struct buffer *buffer, const char *text)
{
    return buffer_append(buffer, text, strlen(text));
}

bool buffer_printf(struct buffer *buffer, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    bool done = length >= 0 && buffer_reserve(buffer, (size_t)length);
    if (done) {
        vsnprintf(buffer->data + buffer->size, (size_t)length + 1, format, again);
        buffer->size += (size_t)length;
    } else {
        buffer->failed = true;
    }
    va_end(again);
    va_end(args);
    return done;
}

void buffer_clear(struct buffer *buffer)
{
    buffer->size = 0;
    buffer->failed = false;
    if (buffer->data != NULL)
        buffer->data[0] = '\0';
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}
