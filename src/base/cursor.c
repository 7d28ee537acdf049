#include "base/base.h"

struct cursor cursor_over(const void *data, size_t size)
{
    return (struct cursor){.data = data, .size = size};
}

size_t cursor_left(const struct cursor *cursor)
{
    return cursor->failed ? 0 : cursor->size - cursor->offset;
}

const void *cursor_bytes(struct cursor *cursor, size_t size)
{
    if (size > cursor_left(cursor) || cursor->failed) {
        cursor->failed = true;
        return NULL;
    }
    const void *result = cursor->data + cursor->offset;
    cursor->offset += size;
    return result;
}

static uint64_t cursor_integer(struct cursor *cursor, size_t size)
{
    const uint8_t *bytes = cursor_bytes(cursor, size);
    uint64_t value = 0;
    for (size_t i = size; bytes != NULL && i > 0; i--)
        value = value << 8 | bytes[i - 1];
    return value;
}

uint8_t cursor_u8(struct cursor *cursor)
{
    return (uint8_t)cursor_integer(cursor, 1);
}

uint16_t cursor_u16(struct cursor *cursor)
{
    return (uint16_t)cursor_integer(cursor, 2);
}

uint32_t cursor_u32(struct cursor *cursor)
{
    return (uint32_t)cursor_integer(cursor, 4);
}

uint64_t cursor_u64(struct cursor *cursor)
{
    return cursor_integer(cursor, 8);
}
