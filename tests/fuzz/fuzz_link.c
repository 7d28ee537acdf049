/* The first byte of the input chooses what reads the rest: HELLOs, frames in pieces, beacons,
 * tokens, keys. What is read is written again and must be the same. */
#include "cluster/key.h"
#include "net/link_frame.h"

#include <stdlib.h>
#include <string.h>

enum { FRAME_LIMIT = 4096, NOW = 1800000000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool good)
{
    if (!good)
        abort();
}

static void read_hello(const uint8_t *data, size_t size)
{
    struct hello_reader reader = {0};
    struct net_hello hello;
    uint8_t again[HELLO_OUR_BYTES];
    unsigned version;
    size_t wanted = 0, used = 0;
    while (hello_reader_wants(&reader, &wanted) && wanted > 0 && used < size) {
        size_t piece = MIN(wanted, size - used);
        require(piece <= sizeof reader.data - reader.size);
        memcpy(reader.data + reader.size, data + used, piece);
        reader.size += piece;
        used += piece;
    }
    if (wanted > 0 || hello_read(&hello, reader.data + FRAME_HEAD_BYTES,
                                 reader.size - FRAME_HEAD_BYTES, &version) != HELLO_GOOD)
        return;
    require(hello_write(&hello, again) == reader.size);
    require(memcmp(again, reader.data, reader.size) == 0);
}

/* All frames of data[size], which comes in pieces of at most piece bytes. */
static void read_frames(struct buffer *out, const uint8_t *data, size_t size, size_t piece)
{
    struct frame_reader reader = {.limit = FRAME_LIMIT};
    enum frame_result result = FRAME_LATER;
    struct view message;
    uint8_t type;
    for (size_t used = 0; used < size && result == FRAME_LATER;) {
        size_t n = MIN(piece, size - used);
        require(frame_reader_feed(&reader, data + used, n) == FRAME_THERE);
        used += n;
        while ((result = frame_reader_next(&reader, &type, &message)) == FRAME_THERE) {
            uint8_t head[FRAME_HEAD_BYTES];
            require(message.size <= FRAME_LIMIT && type != HELLO_TYPE);
            frame_head_write(head, message.size, type);
            buffer_append(out, head, sizeof head);
            buffer_append(out, message.data, message.size);
        }
    }
    frame_reader_free(&reader);
}

static void compare_frames(const uint8_t *data, size_t size)
{
    struct buffer whole = {0}, pieces = {0};
    read_frames(&whole, data, size, SIZE_MAX);
    read_frames(&pieces, data, size, 3);
    require(whole.size == pieces.size && whole.size <= size);
    if (whole.size > 0) {
        require(memcmp(whole.data, pieces.data, whole.size) == 0);
        require(memcmp(whole.data, data, whole.size) == 0);
    }
    buffer_free(&whole);
    buffer_free(&pieces);
}

static void read_beacon(const uint8_t *data, size_t size)
{
    static const struct cluster_beacon_key key = {.key_id = "00000000000000000000000000000000"};
    struct cluster_beacon beacon;
    struct cluster_beacon_key signer = key;
    uint8_t again[CLUSTER_BEACON_BYTES];
    unsigned version;
    enum cluster_beacon_verdict verdict = cluster_beacon_read(
        &beacon, (struct view){(const char *)data, size}, &key, 1, (uint64_t)NOW * 1000, &version);
    if (verdict == CLUSTER_BEACON_GARBAGE || verdict == CLUSTER_BEACON_OTHER_VERSION)
        return;
    memcpy(signer.key_id, beacon.key_id, sizeof signer.key_id);
    require(cluster_beacon_write(&beacon, &signer, again) == size);
    require(memcmp(again, data, size - 32) == 0);
    if (verdict == CLUSTER_BEACON_GOOD || verdict == CLUSTER_BEACON_OLD)
        require(memcmp(again, data, size) == 0);
}

static void read_token(const uint8_t *data, size_t size)
{
    struct cluster_token token, other;
    struct error error;
    char again[CLUSTER_TOKEN_TEXT_BYTES];
    if (cluster_token_read(&token, (struct view){(const char *)data, size}, &error) != STATUS_OK)
        return;
    require(cluster_token_write(&token, again, &error) == STATUS_OK);
    require(cluster_token_read(&other, view_of(again), &error) == STATUS_OK);
    require(memcmp(&token, &other, sizeof token) == 0);
}

static void read_key(const uint8_t *data, size_t size)
{
    struct cluster_key key, other;
    struct buffer again = {0};
    struct error error;
    if (cluster_key_read(&key, (struct view){(const char *)data, size}, &error) != STATUS_OK)
        return;
    require(cluster_key_write(&key, &again, &error) == STATUS_OK);
    require(cluster_key_read(&other, (struct view){again.data, again.size}, &error) == STATUS_OK);
    require(memcmp(&key, &other, sizeof key) == 0);
    buffer_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const readers[])(const uint8_t *data, size_t size) = {
        read_hello, compare_frames, read_beacon, read_token, read_key,
    };
    if (size > 0)
        readers[data[0] % ARRAY_COUNT(readers)](data + 1, size - 1);
    return 0;
}
