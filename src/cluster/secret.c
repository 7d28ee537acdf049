/* Cryptography and files of secrets, as OpenSSL and POSIX give them. */
#include "cluster/key_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES = 64 << 10 };

/* ---- Cryptography ---------------------------------------------------------------------------- */

enum status secret_derive(struct view salt, const uint8_t *secret, size_t secret_bytes,
                          const char *info, uint8_t out[32], struct error *error)
{
    char digest[] = "SHA256";
    OSSL_PARAM settings[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret,
                                          secret_bytes),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt.data,
                                          salt.size),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info,
                                          strlen(info)),
        OSSL_PARAM_construct_end(),
    };
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = kdf != NULL ? EVP_KDF_CTX_new(kdf) : NULL;
    bool made = context != NULL && EVP_KDF_derive(context, out, 32, settings) == 1;
    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
    return made ? STATUS_OK
                : error_set(error, STATUS_IO, "OpenSSL cannot derive keys (HKDF with SHA-256)");
}

enum status secret_random(uint8_t *out, size_t size, struct error *error)
{
    if (RAND_bytes(out, (int)size) != 1)
        return error_set(error, STATUS_IO, "the system gives no random numbers");
    return STATUS_OK;
}

void secret_hash(const void *data, size_t size, uint8_t out[32])
{
    unsigned written = 0;
    if (EVP_Digest(data, size, out, &written, EVP_sha256(), NULL) != 1)
        memset(out, 0, 32);
}

void secret_wipe(void *data, size_t size)
{
    OPENSSL_cleanse(data, size);
}

void secret_wipe_buffer(struct buffer *buffer)
{
    if (buffer->data != NULL)
        OPENSSL_cleanse(buffer->data, buffer->capacity);
    buffer_free(buffer);
}

/* ---- Texts ----------------------------------------------------------------------------------- */

void secret_hex(const uint8_t *data, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    out[2 * size] = '\0';
}

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

bool secret_unhex(const char *text, uint8_t *out, size_t size)
{
    if (text == NULL || strlen(text) != 2 * size)
        return false;
    for (size_t i = 0; i < size; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high * 16 + low);
    }
    return true;
}

json_t *secret_json(struct view text)
{
    json_t *object = json_loadb(text.data, text.size, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(object))
        return object;
    json_decref(object);
    return NULL;
}

/* ---- Files ----------------------------------------------------------------------------------- */

enum status secret_path(const char *name, struct buffer *out, struct error *error)
{
    enum status status = home_directory("cluster", out, error);
    if (status == STATUS_OK && !buffer_printf(out, "/%s", name))
        status = error_memory(error, out->size);
    return status;
}

enum status secret_write(const char *path, const char *text, struct error *error)
{
    struct buffer beside = {0};
    if (!buffer_printf(&beside, "%s.tmp-%ld", path, (long)getpid()))
        return error_memory(error, strlen(path) + 32);
    unlink(beside.data);
    int fd = open(beside.data, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    bool good = fd >= 0 && file_write_all(fd, text, strlen(text)) && fsync(fd) == 0;
    int reason = errno;
    if (fd >= 0)
        close(fd);
    if (good && rename(beside.data, path) != 0) {
        reason = errno;
        good = false;
    }
    if (!good)
        unlink(beside.data);
    buffer_free(&beside);
    return good ? STATUS_OK
                : error_set(error, STATUS_IO, "cannot write %s: %s", path, strerror(reason));
}

enum status secret_read(const char *path, struct buffer *out, struct error *error)
{
    struct stat facts;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return error_set(error, STATUS_NOT_FOUND, "there is no file %s", path);
    enum status status = STATUS_OK;
    buffer_clear(out);
    if (fd < 0 || fstat(fd, &facts) != 0)
        status = error_set(error, STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    else if ((facts.st_mode & 077) != 0)
        status =
            error_set(error, STATUS_INVALID,
                      "%s can be read by others; if nobody did, run: chmod 600 '%s'", path, path);
    else if (!buffer_reserve(out, FILE_BYTES))
        status = error_memory(error, FILE_BYTES);
    while (status == STATUS_OK && out->size < FILE_BYTES) {
        ssize_t n = read(fd, out->data + out->size, FILE_BYTES - out->size);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            status = error_set(error, STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        out->size += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    if (status == STATUS_OK && out->size == FILE_BYTES)
        status = error_set(error, STATUS_INVALID, "%s is damaged: it is too long", path);
    return status;
}
