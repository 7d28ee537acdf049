/* SHA-256, by OpenSSL. */
#include "store/internal.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct digest {
    EVP_MD_CTX *context;
    bool failed;
};

struct digest *digest_open(void)
{
    struct digest *digest = calloc(1, sizeof *digest);
    if (digest == NULL)
        return NULL;
    digest->context = EVP_MD_CTX_new();
    if (digest->context == NULL || EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) != 1) {
        digest_discard(digest);
        return NULL;
    }
    return digest;
}

void digest_add(struct digest *digest, const void *data, size_t size)
{
    if (EVP_DigestUpdate(digest->context, data, size) != 1)
        digest->failed = true;
}

/* One that failed is the digest of nothing: no file has the empty text. */
void digest_end(struct digest *digest, char out[STORE_DIGEST_BYTES])
{
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    out[0] = '\0';
    if (!digest->failed && EVP_DigestFinal_ex(digest->context, bytes, &size) == 1)
        for (unsigned i = 0; i < size && 2 * i + 2 < STORE_DIGEST_BYTES; i++)
            snprintf(out + 2 * (size_t)i, 3, "%02x", bytes[i]);
    digest_discard(digest);
}

void digest_discard(struct digest *digest)
{
    if (digest == NULL)
        return;
    EVP_MD_CTX_free(digest->context);
    free(digest);
}

bool digest_valid(const char *text)
{
    return strspn(text, "0123456789abcdef") == STORE_DIGEST_BYTES - 1 &&
           text[STORE_DIGEST_BYTES - 1] == '\0';
}

enum status store_file_digest(const char *path, const atomic_bool *stop,
                              char out[STORE_DIGEST_BYTES], struct error *error)
{
    struct file_map map;
    const size_t step = (size_t)16 << 20;
    enum status status = file_map_open(&map, path, error);
    if (status != STATUS_OK)
        return status;
    struct digest *digest = digest_open();
    for (size_t at = 0; digest != NULL && at < map.size && !atomic_load(stop); at += step)
        digest_add(digest, map.data + at, MIN(step, map.size - at));
    file_map_close(&map);
    if (digest == NULL)
        return error_memory(error, 1);
    digest_end(digest, out);
    return atomic_load(stop) ? error_set(error, STATUS_CANCELLED, "stopped") : STATUS_OK;
}
