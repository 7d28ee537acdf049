/* The key of a cluster: its file, and what is derived from it. */
#include "cluster/key_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_NAME "key.json"

enum { SECRET_BYTES = 32 };

_Static_assert(2 * CLUSTER_ID_BYTES + 1 == CLUSTER_KEY_ID_BYTES, "an id is 16 bytes as digits");
_Static_assert(2 * SECRET_BYTES < CLUSTER_KEY_SECRET_BYTES, "a secret is 32 bytes as digits");

enum status cluster_key_make(struct cluster_key *out, struct error *error)
{
    uint8_t id[CLUSTER_ID_BYTES], secret[SECRET_BYTES];
    enum status status = secret_random(id, sizeof id, error);
    if (status == STATUS_OK)
        status = secret_random(secret, sizeof secret, error);
    memset(out, 0, sizeof *out);
    if (status == STATUS_OK) {
        secret_hex(id, sizeof id, out->id);
        secret_hex(secret, sizeof secret, out->secret);
    }
    secret_wipe(secret, sizeof secret);
    return status;
}

/* ---- As text --------------------------------------------------------------------------------- */

enum status cluster_key_write(const struct cluster_key *key, struct buffer *out,
                              struct error *error)
{
    buffer_printf(out, "{\"id\": \"%s\", \"secret\": \"%s\"}\n", key->id, key->secret);
    return out->failed ? error_memory(error, 256) : STATUS_OK;
}

enum status cluster_key_read(struct cluster_key *out, struct view text, struct error *error)
{
    uint8_t bytes[SECRET_BYTES];
    json_t *object = secret_json(text);
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *secret = json_string_value(json_object_get(object, "secret"));
    bool good =
        secret_unhex(id, bytes, CLUSTER_ID_BYTES) && secret_unhex(secret, bytes, SECRET_BYTES);
    if (good) {
        memset(out, 0, sizeof *out);
        memcpy(out->id, id, 2 * CLUSTER_ID_BYTES);
        memcpy(out->secret, secret, 2 * SECRET_BYTES);
    }
    secret_wipe(bytes, sizeof bytes);
    json_decref(object);
    return good ? STATUS_OK : error_set(error, STATUS_INVALID, "what came is no cluster key");
}

/* ---- The file -------------------------------------------------------------------------------- */

enum status cluster_key_load(struct cluster_key *out, struct error *error)
{
    struct buffer path = {0}, text = {0};
    enum status status = secret_path(FILE_NAME, &path, error);
    if (status == STATUS_OK)
        status = secret_read(path.data, &text, error);
    if (status == STATUS_OK &&
        cluster_key_read(out, (struct view){text.data, text.size}, NULL) != STATUS_OK)
        status =
            error_set(error, STATUS_INVALID, "%s is damaged: it holds no cluster key", path.data);
    else if (status == STATUS_NOT_FOUND)
        error_set(error, status,
                  "this machine belongs to no cluster yet: run consort init for a new one, or "
                  "consort join TOKEN");
    secret_wipe_buffer(&text);
    buffer_free(&path);
    return status;
}

enum status cluster_key_save(const struct cluster_key *key, struct error *error)
{
    struct buffer path = {0}, text = {0};
    enum status status = secret_path(FILE_NAME, &path, error);
    if (status == STATUS_OK)
        status = cluster_key_write(key, &text, error);
    if (status == STATUS_OK)
        status = secret_write(path.data, text.data, error);
    secret_wipe_buffer(&text);
    buffer_free(&path);
    return status;
}

enum status cluster_key_remove(struct error *error)
{
    struct buffer path = {0};
    enum status status = secret_path(FILE_NAME, &path, error);
    if (status == STATUS_OK && unlink(path.data) != 0 && errno != ENOENT)
        status = error_set(error, STATUS_IO, "cannot remove %s: %s", path.data, strerror(errno));
    buffer_free(&path);
    return status;
}

/* ---- Derived keys ---------------------------------------------------------------------------- */

#define IDENTITY "consort-link/1:"

enum status secret_of_key(const struct cluster_key *key, const char *label, uint8_t out[32],
                          struct error *error)
{
    return secret_derive(view_of(key->id), (const uint8_t *)key->secret, strlen(key->secret), label,
                         out, error);
}

enum status cluster_key_link(const struct cluster_key *key, struct net_link_key *out,
                             struct error *error)
{
    memset(out, 0, sizeof *out);
    snprintf(out->identity, sizeof out->identity, IDENTITY "%s", key->id);
    return secret_of_key(key, "consort link 1", out->secret, error);
}

bool cluster_key_id(const char *identity, char out[CLUSTER_KEY_ID_BYTES])
{
    uint8_t bytes[CLUSTER_ID_BYTES];
    if (strncmp(identity, IDENTITY, sizeof IDENTITY - 1) != 0 ||
        !secret_unhex(identity + sizeof IDENTITY - 1, bytes, CLUSTER_ID_BYTES))
        return false;
    memcpy(out, identity + sizeof IDENTITY - 1, CLUSTER_KEY_ID_BYTES);
    return true;
}

bool cluster_key_find(const struct cluster_key *keys, size_t n_keys, struct view identity,
                      uint8_t secret[NET_SECRET_BYTES])
{
    for (size_t i = 0; i < n_keys; i++) {
        struct net_link_key link;
        bool found = cluster_key_link(&keys[i], &link, NULL) == STATUS_OK &&
                     view_equal(identity, view_of(link.identity));
        if (found)
            memcpy(secret, link.secret, NET_SECRET_BYTES);
        secret_wipe(&link, sizeof link);
        if (found)
            return true;
    }
    return false;
}
