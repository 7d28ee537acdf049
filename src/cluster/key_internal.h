/* What the files of keys, beacons and tokens share. */
#ifndef CONSORT_CLUSTER_KEY_INTERNAL_H
#define CONSORT_CLUSTER_KEY_INTERNAL_H

#include "cluster/key.h"

#include <jansson.h>

/* HKDF-SHA256 (RFC 5869). info is a text. */
enum status secret_derive(struct view salt, const uint8_t *secret, size_t secret_bytes,
                          const char *info, uint8_t out[32], struct error *error);
/* One of the derived keys of a cluster's key; label names it. */
enum status secret_of_key(const struct cluster_key *key, const char *label, uint8_t out[32],
                          struct error *error);
enum status secret_random(uint8_t *out, size_t size, struct error *error);
void secret_hash(const void *data, size_t size, uint8_t out[32]); /* SHA-256 */
void secret_wipe(void *data, size_t size);
void secret_wipe_buffer(struct buffer *buffer); /* and frees it */

/* out gets 2 * size digits and a zero. */
void secret_hex(const uint8_t *data, size_t size, char *out);
/* False where text is NULL or not exactly 2 * size lower-case digits. */
bool secret_unhex(const char *text, uint8_t *out, size_t size);

/* HOME/cluster/NAME. */
enum status secret_path(const char *name, struct buffer *out, struct error *error);
/* A small file that only its owner may read; appears whole or not at all. */
enum status secret_write(const char *path, const char *text, struct error *error);
/* STATUS_NOT_FOUND; STATUS_INVALID where others may read it. */
enum status secret_read(const char *path, struct buffer *out, struct error *error);

/* One JSON object without double keys, or NULL. */
json_t *secret_json(struct view text);

#endif
