/* A token is "consort-1-" and, in base32, these bytes (numbers little-endian):
 *
 *     0              16           20         21
 *     +--------------+------------+----------+-----------------+-- ... --+----------------+
 *     | secret (16)  | expires    | number of| address         |         | first 4 bytes  |
 *     |              | (Unix, s)  | addresses| (kind, ...)     |         | of SHA-256     |
 *     +--------------+------------+----------+-----------------+-- ... --+----------------+
 *     address:  4, four bytes, port (2)        an IPv4 address
 *               6, sixteen bytes, port (2)     an IPv6 address that holds everywhere
 *               0, size (1), text              anything else: "mac-studio.local:4001"
 *
 * The alphabet has no i, l, o and u (Crockford's base32), so that a token can be read out and
 * typed.
 *
 * The node that issued it keeps {"identity": {"secret": ..., "expires": ...}} in tokens.json, both
 * made from the token's secret by one-way functions. */
#include "cluster/key_internal.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "consort-1-"
#define FILE_NAME "tokens.json"
#define LOCK_NAME "tokens.lock"
#define IDENTITY "consort-join/1:"

enum {
    ALL_BYTES = 464, /* of the bytes above: CLUSTER_TOKEN_TEXT_BYTES holds them */
    CHECK_BYTES = 4,
    KIND_TEXT = 0,
    KIND_IPV4 = 4,
    KIND_IPV6 = 6,
    MAX_ISSUED = 256,
};

_Static_assert((ALL_BYTES * 8 + 4) / 5 + sizeof PREFIX <= CLUSTER_TOKEN_TEXT_BYTES,
               "the longest token");

static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";

/* ---- Base32 ---------------------------------------------------------------------------------- */

static void base32_write(const uint8_t *data, size_t size, char *out)
{
    uint32_t bits = 0;
    unsigned n_bits = 0;
    for (size_t i = 0; i < size; i++) {
        bits = bits << 8 | data[i];
        for (n_bits += 8; n_bits >= 5; n_bits -= 5)
            *out++ = alphabet[bits >> (n_bits - 5) & 31];
    }
    if (n_bits > 0)
        *out++ = alphabet[bits << (5 - n_bits) & 31];
    *out = '\0';
}

/* The value of a letter, -1 for what may stand between, -2 for what may not. */
static int base32_value(char letter)
{
    int lower = tolower((unsigned char)letter);
    if (lower == '-' || isspace((unsigned char)letter))
        return -1;
    if (lower == 'o')
        return 0;
    if (lower == 'i' || lower == 'l')
        return 1;
    const char *found = lower != '\0' ? strchr(alphabet, lower) : NULL;
    return found != NULL ? (int)(found - alphabet) : -2;
}

/* Bytes read, or SIZE_MAX where a letter is wrong, a letter says more than the bytes hold, or there
 * are more than ALL_BYTES. */
static size_t base32_read(struct view text, uint8_t out[ALL_BYTES])
{
    uint32_t bits = 0;
    unsigned n_bits = 0;
    size_t size = 0;
    for (size_t i = 0; i < text.size; i++) {
        int value = base32_value(text.data[i]);
        if (value == -1)
            continue;
        if (value < 0)
            return SIZE_MAX;
        bits = bits << 5 | (uint32_t)value;
        n_bits += 5;
        if (n_bits < 8)
            continue;
        if (size == ALL_BYTES)
            return SIZE_MAX;
        n_bits -= 8;
        out[size++] = (uint8_t)(bits >> n_bits);
    }
    return n_bits < 5 && (bits & ((1u << n_bits) - 1)) == 0 ? size : SIZE_MAX;
}

/* ---- Addresses ------------------------------------------------------------------------------- */

/* Splits off the port; false where the text is no address. */
static bool split(const char *text, char host[NET_ADDRESS_BYTES], unsigned *port)
{
    const char *colon = strrchr(text, ':');
    char *end;
    if (colon == NULL || colon == text || !isdigit((unsigned char)colon[1]))
        return false;
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (*end != '\0' || number == 0 || number > 65535)
        return false;
    size_t size = (size_t)(colon - text);
    if (text[0] == '[' && size > 2 && text[size - 1] == ']') {
        text++;
        size -= 2;
    }
    memcpy(host, text, size);
    host[size] = '\0';
    *port = (unsigned)number;
    return true;
}

static bool text_is_good(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] <= ' ' || (unsigned char)text[i] >= 0x7f)
            return false;
    return true;
}

static bool address_write(const struct net_address *address, struct buffer *out)
{
    char host[NET_ADDRESS_BYTES];
    unsigned port;
    uint8_t bytes[1 + 16 + 2];
    size_t size = strnlen(address->text, NET_ADDRESS_BYTES);
    if (size == NET_ADDRESS_BYTES || !text_is_good(address->text, size) ||
        !split(address->text, host, &port))
        return false;
    if (inet_pton(AF_INET, host, bytes + 1) == 1 || inet_pton(AF_INET6, host, bytes + 1) == 1) {
        bool six = strchr(host, ':') != NULL;
        size_t n = six ? 16 : 4;
        bytes[0] = six ? KIND_IPV6 : KIND_IPV4;
        bytes[1 + n] = (uint8_t)port;
        bytes[2 + n] = (uint8_t)(port >> 8);
        return buffer_append(out, bytes, n + 3);
    }
    bytes[0] = KIND_TEXT;
    bytes[1] = (uint8_t)size;
    return buffer_append(out, bytes, 2) && buffer_append(out, address->text, size);
}

static bool address_read(struct cursor *cursor, struct net_address *out)
{
    char host[INET6_ADDRSTRLEN], checked[NET_ADDRESS_BYTES];
    unsigned port;
    uint8_t number[16], kind = cursor_u8(cursor);
    size_t size = kind == KIND_TEXT ? cursor_u8(cursor) : (kind == KIND_IPV6 ? 16 : 4);
    const char *bytes = cursor_bytes(cursor, size);
    if (cursor->failed)
        return false;
    if (kind == KIND_TEXT) {
        if (size >= NET_ADDRESS_BYTES || !text_is_good(bytes, size))
            return false;
        memcpy(out->text, bytes, size);
        out->text[size] = '\0';
        /* What fits the other kinds is not written as text. */
        return split(out->text, checked, &port) && inet_pton(AF_INET, checked, number) != 1 &&
               inet_pton(AF_INET6, checked, number) != 1;
    }
    port = cursor_u16(cursor);
    if (cursor->failed || port == 0 || (kind != KIND_IPV4 && kind != KIND_IPV6))
        return false;
    inet_ntop(kind == KIND_IPV6 ? AF_INET6 : AF_INET, bytes, host, sizeof host);
    snprintf(out->text, sizeof out->text, kind == KIND_IPV6 ? "[%s]:%u" : "%s:%u", host, port);
    return true;
}

/* ---- As text --------------------------------------------------------------------------------- */

enum status cluster_token_write(const struct cluster_token *token,
                                char out[CLUSTER_TOKEN_TEXT_BYTES], struct error *error)
{
    struct buffer bytes = {0};
    uint8_t head[CLUSTER_TOKEN_SECRET_BYTES + 5], hash[32];
    enum status status = STATUS_OK;
    if (token->expires > UINT32_MAX || token->n_addresses > CLUSTER_TOKEN_ADDRESSES)
        return error_set(error, STATUS_LIMIT, "a token holds at most %d addresses",
                         CLUSTER_TOKEN_ADDRESSES);
    memcpy(head, token->secret, CLUSTER_TOKEN_SECRET_BYTES);
    for (size_t i = 0; i < 4; i++)
        head[CLUSTER_TOKEN_SECRET_BYTES + i] = (uint8_t)(token->expires >> (8 * i));
    head[CLUSTER_TOKEN_SECRET_BYTES + 4] = (uint8_t)token->n_addresses;
    buffer_append(&bytes, head, sizeof head);
    for (size_t i = 0; i < token->n_addresses && status == STATUS_OK; i++)
        if (!address_write(&token->addresses[i], &bytes) && !bytes.failed)
            status =
                error_set(error, STATUS_INVALID, "%.79s is no address for a token: write host:port",
                          token->addresses[i].text);
    secret_hash(bytes.data, bytes.size, hash);
    buffer_append(&bytes, hash, CHECK_BYTES);
    if (bytes.failed)
        status = error_memory(error, ALL_BYTES);
    if (status == STATUS_OK) {
        memcpy(out, PREFIX, sizeof PREFIX);
        base32_write((const uint8_t *)bytes.data, bytes.size, out + sizeof PREFIX - 1);
    }
    secret_wipe(head, sizeof head);
    secret_wipe_buffer(&bytes);
    return status;
}

static struct view trim(struct view text)
{
    while (text.size > 0 && isspace((unsigned char)text.data[0]))
        text = (struct view){text.data + 1, text.size - 1};
    while (text.size > 0 && isspace((unsigned char)text.data[text.size - 1]))
        text.size--;
    return text;
}

/* Takes word off the beginning of text, in any case. */
static bool take_word(struct view *text, const char *word)
{
    size_t size = strlen(word);
    if (text->size < size)
        return false;
    for (size_t i = 0; i < size; i++)
        if (tolower((unsigned char)text->data[i]) != word[i])
            return false;
    *text = (struct view){text->data + size, text->size - size};
    return true;
}

static bool bytes_read(struct cluster_token *out, const uint8_t *data, size_t size)
{
    struct cursor cursor = cursor_over(data, size);
    struct cluster_token token = {0};
    const void *secret = cursor_bytes(&cursor, CLUSTER_TOKEN_SECRET_BYTES);
    token.expires = cursor_u32(&cursor);
    token.n_addresses = cursor_u8(&cursor);
    if (cursor.failed || token.n_addresses > CLUSTER_TOKEN_ADDRESSES)
        return false;
    memcpy(token.secret, secret, sizeof token.secret);
    for (size_t i = 0; i < token.n_addresses; i++)
        if (!address_read(&cursor, &token.addresses[i]))
            return false;
    *out = token;
    return cursor_left(&cursor) == 0;
}

enum status cluster_token_read(struct cluster_token *out, struct view text, struct error *error)
{
    uint8_t bytes[ALL_BYTES], hash[32];
    text = trim(text);
    if (!take_word(&text, PREFIX)) {
        if (take_word(&text, "consort-") && text.size > 0 && isdigit((unsigned char)text.data[0]))
            return error_set(error, STATUS_UNSUPPORTED,
                             "the token is of another version of consort; update the older one");
        return error_set(error, STATUS_INVALID,
                         "this is no join token: one begins with " PREFIX
                         " and is printed by consort token");
    }
    size_t size = base32_read(text, bytes);
    if (size == SIZE_MAX || size < CHECK_BYTES + CLUSTER_TOKEN_SECRET_BYTES)
        return error_set(error, STATUS_INVALID,
                         "the token is not whole or has wrong letters in it; copy all of it");
    size -= CHECK_BYTES;
    secret_hash(bytes, size, hash);
    bool good = memcmp(hash, bytes + size, CHECK_BYTES) == 0 && bytes_read(out, bytes, size);
    secret_wipe(bytes, sizeof bytes);
    return good ? STATUS_OK
                : error_set(error, STATUS_INVALID,
                            "the token is mistyped or cut off: its check sum does not match; copy "
                            "all of it");
}

enum status cluster_token_link(const struct cluster_token *token, struct net_link_key *out,
                               struct error *error)
{
    uint8_t number[32];
    char digits[33];
    memset(out, 0, sizeof *out);
    enum status status = secret_derive((struct view){"", 0}, token->secret, sizeof token->secret,
                                       "consort join number 1", number, error);
    if (status == STATUS_OK)
        status = secret_derive((struct view){"", 0}, token->secret, sizeof token->secret,
                               "consort join 1", out->secret, error);
    secret_hex(number, 16, digits);
    snprintf(out->identity, sizeof out->identity, IDENTITY "%s", digits);
    return status;
}

/* ---- Issued tokens --------------------------------------------------------------------------- */

/* The object of the file; an empty one where there is none or it is damaged: then tokens are lost,
 * which can be issued anew. NULL where memory is out. */
static json_t *load_issued(void)
{
    struct buffer path = {0}, text = {0};
    json_t *issued = NULL;
    if (secret_path(FILE_NAME, &path, NULL) == STATUS_OK &&
        secret_read(path.data, &text, NULL) == STATUS_OK)
        issued = secret_json((struct view){text.data, text.size});
    secret_wipe_buffer(&text);
    buffer_free(&path);
    return issued != NULL ? issued : json_object();
}

static enum status save_issued(const json_t *issued, struct error *error)
{
    struct buffer path = {0};
    char *text = json_dumps(issued, JSON_INDENT(1));
    enum status status =
        text != NULL ? secret_path(FILE_NAME, &path, error) : error_memory(error, 1);
    if (status == STATUS_OK)
        status = secret_write(path.data, text, error);
    if (text != NULL)
        secret_wipe(text, strlen(text));
    free(text);
    buffer_free(&path);
    return status;
}

static void drop_expired(json_t *issued, uint64_t now)
{
    const char *identity;
    json_t *entry;
    void *next;
    json_object_foreach_safe(
        issued, next, identity,
        entry) if ((uint64_t)json_integer_value(json_object_get(entry, "expires")) <= now)
        json_object_del(issued, identity);
}

static enum status lock_issued(int *lock, struct error *error)
{
    struct buffer path = {0};
    enum status status = secret_path(LOCK_NAME, &path, error);
    if (status == STATUS_OK)
        status = file_lock(lock, path.data, true, error);
    buffer_free(&path);
    return status;
}

/* Adds the token to the file. */
static enum status remember(const struct cluster_token *token, uint64_t now, struct error *error)
{
    struct net_link_key key;
    char secret[2 * NET_SECRET_BYTES + 1];
    int lock = -1;
    enum status status = cluster_token_link(token, &key, error);
    if (status == STATUS_OK)
        status = lock_issued(&lock, error);
    json_t *issued = status == STATUS_OK ? load_issued() : NULL;
    if (status == STATUS_OK) {
        drop_expired(issued, now);
        secret_hex(key.secret, sizeof key.secret, secret);
        if (json_object_size(issued) >= MAX_ISSUED)
            status = error_set(error, STATUS_LIMIT,
                               "there are %d tokens that nobody used yet; wait until they expire",
                               MAX_ISSUED);
        else if (json_object_set_new(issued, key.identity,
                                     json_pack("{s:s, s:I}", "secret", secret, "expires",
                                               (json_int_t)token->expires)) != 0)
            status = error_memory(error, 1);
    }
    if (status == STATUS_OK)
        status = save_issued(issued, error);
    json_decref(issued);
    file_unlock(lock);
    secret_wipe(&key, sizeof key);
    secret_wipe(secret, sizeof secret);
    return status;
}

enum status cluster_token_issue(struct cluster_token *out, const struct net_address *addresses,
                                size_t n_addresses, uint64_t now, uint64_t lifetime_s,
                                struct error *error)
{
    struct cluster_token token = {.n_addresses = n_addresses};
    char text[CLUSTER_TOKEN_TEXT_BYTES];
    if (n_addresses > CLUSTER_TOKEN_ADDRESSES)
        return error_set(error, STATUS_LIMIT, "a token holds at most %d addresses",
                         CLUSTER_TOKEN_ADDRESSES);
    if (now >= UINT32_MAX || lifetime_s > UINT32_MAX - now)
        return error_set(error, STATUS_LIMIT, "a token cannot hold that long");
    token.expires = now + lifetime_s;
    memcpy(token.addresses, addresses, n_addresses * sizeof *addresses);
    enum status status = secret_random(token.secret, sizeof token.secret, error);
    if (status == STATUS_OK)
        status = cluster_token_write(&token, text, error);
    if (status == STATUS_OK)
        status = remember(&token, now, error);
    if (status == STATUS_OK)
        *out = token;
    secret_wipe(&token, sizeof token);
    secret_wipe(text, sizeof text);
    return status;
}

/* identity is a stranger's bytes: a name of the file only where it has the form of one. */
static bool identity_is_good(struct view identity)
{
    size_t prefix = sizeof IDENTITY - 1;
    if (identity.size != prefix + 32 || memcmp(identity.data, IDENTITY, prefix) != 0)
        return false;
    for (size_t i = prefix; i < identity.size; i++)
        if (memchr("0123456789abcdef", identity.data[i], 16) == NULL)
            return false;
    return true;
}

/* The entry of a token that may be used; borrowed from issued. */
static json_t *find_entry(json_t *issued, struct view identity, uint64_t now)
{
    char name[NET_IDENTITY_BYTES];
    if (!identity_is_good(identity))
        return NULL;
    snprintf(name, sizeof name, "%.*s", (int)identity.size, identity.data);
    json_t *entry = json_object_get(issued, name);
    json_t *expires = json_object_get(entry, "expires");
    if (!json_is_integer(expires) || json_integer_value(expires) <= (json_int_t)now)
        return NULL;
    return entry;
}

bool cluster_token_find(struct view identity, uint64_t now, uint8_t secret[NET_SECRET_BYTES])
{
    if (!identity_is_good(identity))
        return false;
    json_t *issued = load_issued();
    json_t *entry = find_entry(issued, identity, now);
    bool found =
        secret_unhex(json_string_value(json_object_get(entry, "secret")), secret, NET_SECRET_BYTES);
    json_decref(issued);
    return found;
}

enum status cluster_token_claim(struct view identity, uint64_t now, struct error *error)
{
    char name[NET_IDENTITY_BYTES];
    int lock = -1;
    enum status status = lock_issued(&lock, error);
    if (status != STATUS_OK)
        return status;
    json_t *issued = load_issued();
    if (find_entry(issued, identity, now) == NULL) {
        status = error_set(error, STATUS_NOT_FOUND, "the token was used already, or has expired");
    } else {
        snprintf(name, sizeof name, "%.*s", (int)identity.size, identity.data);
        json_object_del(issued, name);
        drop_expired(issued, now);
        status = save_issued(issued, error);
    }
    json_decref(issued);
    file_unlock(lock);
    return status;
}
