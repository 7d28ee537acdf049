/* A beacon is one datagram, numbers little-endian:
 *
 *     0        4       6      8             24         40            48        56     57
 *     +--------+-------+------+-------------+----------+-------------+---------+------+------ ...
 *     | "CNSB" |version| port | id of the   | node id  | incarnation | time ms | name | name
 *     |        |       |      | key (16)    | (16)     |             | (Unix)  | size |
 *     +--------+-------+------+-------------+----------+-------------+---------+------+------ ...
 *     and behind the name 32 bytes HMAC-SHA256 over all before it.
 *
 * All versions begin with the magic and the version. A beacon only says where a node may be: who is
 * there proves itself on the link, so one that is sent again does no harm. */
#include "cluster/key_internal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

enum {
    VERSION = 1,
    FIXED_BYTES = 57,
    MAC_BYTES = 32,
};

_Static_assert(FIXED_BYTES + CLUSTER_NAME_BYTES - 1 + MAC_BYTES <= CLUSTER_BEACON_BYTES,
               "a beacon with the longest name");

static const char magic[4] = {'C', 'N', 'S', 'B'};

static void put(uint8_t **at, uint64_t value, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        *(*at)++ = (uint8_t)(value >> (8 * i));
}

static void put_bytes(uint8_t **at, const void *data, size_t size)
{
    memcpy(*at, data, size);
    *at += size;
}

static bool sign(const uint8_t key[32], const void *data, size_t size, uint8_t out[MAC_BYTES])
{
    unsigned written = 0;
    return HMAC(EVP_sha256(), key, 32, data, size, out, &written) != NULL && written == MAC_BYTES;
}

/* A text to show: UTF-8 without control characters. */
static bool name_is_good(const char *name, size_t size)
{
    if (size == 0 || size >= CLUSTER_NAME_BYTES || !utf8_valid(name, size))
        return false;
    for (size_t at = 0; at < size;) {
        uint32_t code_point = 0;
        at += utf8_decode(name + at, size - at, &code_point);
        if (code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0))
            return false;
    }
    return true;
}

enum status cluster_beacon_key(const struct cluster_key *key, struct cluster_beacon_key *out,
                               struct error *error)
{
    memcpy(out->key_id, key->id, sizeof out->key_id);
    return secret_of_key(key, "consort beacon 1", out->secret, error);
}

size_t cluster_beacon_write(const struct cluster_beacon *beacon,
                            const struct cluster_beacon_key *key, uint8_t out[CLUSTER_BEACON_BYTES])
{
    size_t name_size = strnlen(beacon->name, CLUSTER_NAME_BYTES);
    uint8_t id[CLUSTER_ID_BYTES], *at = out;
    if (!name_is_good(beacon->name, name_size) || !secret_unhex(key->key_id, id, sizeof id))
        return 0;
    put_bytes(&at, magic, sizeof magic);
    put(&at, VERSION, 2);
    put(&at, beacon->port, 2);
    put_bytes(&at, id, sizeof id);
    put(&at, beacon->node.high, 8);
    put(&at, beacon->node.low, 8);
    put(&at, beacon->incarnation, 8);
    put(&at, beacon->time_ms, 8);
    put(&at, name_size, 1);
    put_bytes(&at, beacon->name, name_size);
    size_t size = (size_t)(at - out);
    return sign(key->secret, out, size, at) ? size + MAC_BYTES : 0;
}

/* The key that a beacon names, or NULL. */
static const struct cluster_beacon_key *find_key(const struct cluster_beacon_key *keys,
                                                 size_t n_keys, const char *id)
{
    for (size_t i = 0; i < n_keys; i++)
        if (strcmp(keys[i].key_id, id) == 0)
            return &keys[i];
    return NULL;
}

enum cluster_beacon_verdict cluster_beacon_read(struct cluster_beacon *out, struct view packet,
                                                const struct cluster_beacon_key *keys,
                                                size_t n_keys, uint64_t now_ms, unsigned *version)
{
    struct cursor cursor = cursor_over(packet.data, packet.size);
    struct cluster_beacon beacon = {0};
    uint8_t mac[MAC_BYTES];
    const void *start = cursor_bytes(&cursor, sizeof magic);
    unsigned found = cursor_u16(&cursor);
    if (cursor.failed || memcmp(start, magic, sizeof magic) != 0)
        return CLUSTER_BEACON_GARBAGE;
    *version = found;
    if (found != VERSION)
        return CLUSTER_BEACON_OTHER_VERSION;
    beacon.port = cursor_u16(&cursor);
    const uint8_t *id = cursor_bytes(&cursor, CLUSTER_ID_BYTES);
    beacon.node.high = cursor_u64(&cursor);
    beacon.node.low = cursor_u64(&cursor);
    beacon.incarnation = cursor_u64(&cursor);
    beacon.time_ms = cursor_u64(&cursor);
    size_t name_size = cursor_u8(&cursor);
    const char *name = cursor_bytes(&cursor, name_size);
    size_t signed_size = cursor.offset;
    const void *given = cursor_bytes(&cursor, MAC_BYTES);
    if (cursor.failed || cursor_left(&cursor) != 0 || beacon.port == 0 ||
        !name_is_good(name, name_size))
        return CLUSTER_BEACON_GARBAGE;
    secret_hex(id, CLUSTER_ID_BYTES, beacon.key_id);
    memcpy(beacon.name, name, name_size);
    *out = beacon;
    const struct cluster_beacon_key *key = find_key(keys, n_keys, beacon.key_id);
    if (key == NULL)
        return CLUSTER_BEACON_OTHER_KEY;
    if (!sign(key->secret, packet.data, signed_size, mac) ||
        CRYPTO_memcmp(given, mac, MAC_BYTES) != 0)
        return CLUSTER_BEACON_FORGED;
    uint64_t apart = MAX(now_ms, beacon.time_ms) - MIN(now_ms, beacon.time_ms);
    return apart > CLUSTER_BEACON_SKEW_MS ? CLUSTER_BEACON_OLD : CLUSTER_BEACON_GOOD;
}
