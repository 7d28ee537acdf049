/* Pages of KV caches on disk, so that a prompt that was seen before a restart need not be computed
 * again (struct kv_disk in engine.h).
 *
 * A page has a key: the SHA-256 of the key of the page before it and of its own tokens, for the
 * first page of all that its numbers depend on, the model file above all. It is a file under that
 * key. The folder itself says what is there; nothing else is kept of it. The engines' threads read
 * pages and hand them over to be written, by a thread of the disk's own, which also removes the
 * least recently used ones when all of them would take more than was allowed. A file's time of
 * modification is that of its last use.
 *
 * File, little-endian: struct header in kv_disk.c, then the page. What is not exactly so is removed
 * and counts as absent.
 */
#ifndef CONSORT_ENGINE_KV_DISK_H
#define CONSORT_ENGINE_KV_DISK_H

#include "engine/engine.h"

#define KV_KEY_BYTES 32

struct kv_key {
    unsigned char bytes[KV_KEY_BYTES];
};

/* The key before the first page, of a text that says all that the numbers depend on. False (as in
 * the next one) where OpenSSL fails: then there is no key. */
bool kv_disk_root(struct kv_key *out, struct view identity);
/* Of a page of MODEL_KV_PAGE_TOKENS tokens behind the one of the key before. */
bool kv_disk_key(struct kv_key *out, const struct kv_key *before, const int32_t *tokens);

/* Whether pages of so many bytes can be kept at all; where not, the log says so. Any thread, as all
 * that follow. */
bool kv_disk_admits(struct kv_disk *disk, size_t size);
bool kv_disk_has(const struct kv_disk *disk, const struct kv_key *key);
/* Reads a page of that size; false where there is none that is good. depth (here and below): how
 * many pages come before it; these are kept longer than it. */
bool kv_disk_read(struct kv_disk *disk, const struct kv_key *key, size_t depth, void *data,
                  size_t size);
/* Says that the page is used; false where it is not there. */
bool kv_disk_touch(const struct kv_disk *disk, const struct kv_key *key, size_t depth);
/* Whether the writer is not too far behind to take one more page. */
bool kv_disk_wants(struct kv_disk *disk, size_t size);
/* Takes data (from malloc) over, to be written soon. */
void kv_disk_write(struct kv_disk *disk, const struct kv_key *key, size_t depth, void *data,
                   size_t size);

#endif
