/* What goes over a link, inside TLS records (or, on trusted wires, behind the HELLOs, without
 * them). Numbers are little-endian.
 *
 *   frame     0        4    5
 *             +--------+----+----------------
 *             | size   |type| message ...         size: bytes of the message, at most what the
 *             +--------+----+----------------     receiver allows (links: 1 MiB, or as opened)
 *
 *   HELLO     the first frame of each side, type 0. The client speaks first; the server, when it
 *             has read that. No version of the protocol may change the first six bytes, or say
 *             more than 4,096, so that every version can name every other.
 *
 *             0        4       6      7      8            24           32    34      36
 *             +--------+-------+------+------+------------+------------+-----+-------+---------
 *             | "CNSR" |version|pur-  |flags | node       | incarnation| 0   | info  | info ...
 *             |        |       |pose  |      | (16 bytes) |            |     | size  | (UTF-8)
 *             +--------+-------+------+------+------------+------------+-----+-------+---------
 *             purpose: 1 control, 2 data, 3 store, 4 join; the server gives back the client's
 *             flags:   bit 0: the way between us is trusted (data and store); others are 0
 *
 * Behind the HELLOs: control and join carry frames in both directions. data carries what both sides
 * know the size of, without frames. store carries frames. A side that ends says so with TLS's
 * close_notify; without it the link counts as broken. */
#include "net/link_frame.h"

#include <string.h>

enum {
    HELLO_VERSION_BYTES = 6, /* what all versions share */
    FLAG_TRUSTED = 1,
    KEPT_BYTES = 64 << 10, /* memory a reader keeps when it is empty */
};

static const char magic[4] = {'C', 'N', 'S', 'R'};

static void put(uint8_t *out, uint64_t value, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

void frame_head_write(uint8_t head[FRAME_HEAD_BYTES], size_t size, uint8_t type)
{
    put(head, size, 4);
    head[4] = type;
}

void frame_head_read(const uint8_t head[FRAME_HEAD_BYTES], size_t *size, uint8_t *type)
{
    struct cursor cursor = cursor_over(head, FRAME_HEAD_BYTES);
    *size = cursor_u32(&cursor);
    *type = cursor_u8(&cursor);
}

/* ---- HELLO ----------------------------------------------------------------------------------- */

static bool may_be_trusted(enum net_purpose purpose)
{
    return purpose == NET_DATA || purpose == NET_STORE;
}

size_t hello_write(const struct net_hello *hello, uint8_t out[HELLO_OUR_BYTES])
{
    size_t info_size = strnlen(hello->info, NET_HELLO_INFO_BYTES + 1);
    if (info_size > NET_HELLO_INFO_BYTES || hello->purpose < NET_CONTROL ||
        hello->purpose > NET_JOIN || !utf8_valid(hello->info, info_size))
        return 0;
    uint8_t *payload = out + FRAME_HEAD_BYTES;
    frame_head_write(out, HELLO_FIXED_BYTES + info_size, HELLO_TYPE);
    memcpy(payload, magic, sizeof magic);
    put(payload + 4, NET_PROTOCOL_VERSION, 2);
    payload[6] = (uint8_t)hello->purpose;
    payload[7] = hello->trusted && may_be_trusted(hello->purpose) ? FLAG_TRUSTED : 0;
    memcpy(payload + 8, hello->node, NET_NODE_BYTES);
    put(payload + 24, hello->incarnation, 8);
    put(payload + 32, 0, 2);
    put(payload + 34, info_size, 2);
    memcpy(payload + HELLO_FIXED_BYTES, hello->info, info_size);
    return FRAME_HEAD_BYTES + HELLO_FIXED_BYTES + info_size;
}

enum hello_verdict hello_read(struct net_hello *out, const void *data, size_t size,
                              unsigned *version)
{
    struct cursor cursor = cursor_over(data, size);
    const void *start = cursor_bytes(&cursor, sizeof magic);
    unsigned found = cursor_u16(&cursor);
    if (cursor.failed || memcmp(start, magic, sizeof magic) != 0)
        return HELLO_GARBAGE;
    *version = found;
    if (found != NET_PROTOCOL_VERSION)
        return HELLO_OTHER_VERSION;
    struct net_hello hello = {0};
    uint8_t purpose = cursor_u8(&cursor), flags = cursor_u8(&cursor);
    const void *node = cursor_bytes(&cursor, NET_NODE_BYTES);
    hello.incarnation = cursor_u64(&cursor);
    uint16_t zero = cursor_u16(&cursor), info_size = cursor_u16(&cursor);
    const char *info = cursor_bytes(&cursor, info_size);
    if (cursor.failed || cursor_left(&cursor) != 0 || zero != 0 || purpose < NET_CONTROL ||
        purpose > NET_JOIN || info_size > NET_HELLO_INFO_BYTES || (flags & ~FLAG_TRUSTED) != 0 ||
        memchr(info, 0, info_size) != NULL || !utf8_valid(info, info_size))
        return HELLO_GARBAGE;
    hello.purpose = (enum net_purpose)purpose;
    hello.trusted = (flags & FLAG_TRUSTED) != 0;
    if (hello.trusted && !may_be_trusted(hello.purpose))
        return HELLO_GARBAGE;
    memcpy(hello.node, node, NET_NODE_BYTES);
    memcpy(hello.info, info, info_size);
    *out = hello;
    return HELLO_GOOD;
}

bool hello_reader_wants(const struct hello_reader *reader, size_t *wanted)
{
    size_t size = 0;
    uint8_t type = HELLO_TYPE;
    *wanted = FRAME_HEAD_BYTES - MIN(reader->size, (size_t)FRAME_HEAD_BYTES);
    if (*wanted > 0)
        return true;
    frame_head_read(reader->data, &size, &type);
    if (type != HELLO_TYPE || size > HELLO_MAX_BYTES || size < HELLO_VERSION_BYTES)
        return false;
    *wanted = FRAME_HEAD_BYTES + size - reader->size;
    return true;
}

/* ---- Frames ---------------------------------------------------------------------------------- */

enum frame_result frame_reader_feed(struct frame_reader *reader, const void *data, size_t size)
{
    struct buffer *in = &reader->in;
    if (reader->used > 0) {
        in->size -= reader->used;
        memmove(in->data, in->data + reader->used, in->size);
        reader->used = 0;
        if (in->size == 0 && in->capacity > KEPT_BYTES)
            buffer_free(in);
    }
    return buffer_append(in, data, size) ? FRAME_THERE : FRAME_NO_MEMORY;
}

enum frame_result frame_reader_next(struct frame_reader *reader, uint8_t *type,
                                    struct view *message)
{
    size_t left = reader->in.size - reader->used, size;
    if (left < FRAME_HEAD_BYTES)
        return FRAME_LATER;
    const char *head = reader->in.data + reader->used;
    frame_head_read((const uint8_t *)head, &size, type);
    if (*type == HELLO_TYPE || size > reader->limit)
        return FRAME_BROKEN;
    if (size > left - FRAME_HEAD_BYTES)
        return FRAME_LATER;
    *message = (struct view){head + FRAME_HEAD_BYTES, size};
    reader->used += FRAME_HEAD_BYTES + size;
    return FRAME_THERE;
}

void frame_reader_free(struct frame_reader *reader)
{
    buffer_free(&reader->in);
    reader->used = 0;
}
