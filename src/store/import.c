/* Bringing files of this machine into the store: as a clone where the file system can, else as one
 * more link to the same file, else as a copy. */
#include "store/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)1 << 20)

static enum status io_fail(struct error *error, const char *verb, const char *path)
{
    return error_set(error, STATUS_IO, "cannot %s %s: %s", verb, path, strerror(errno));
}

/* Reads in to its end, into out as well unless that is -1, and gives the digest of what came. */
static enum status read_through(struct pull *pull, int in, int out, char digest[STORE_DIGEST_BYTES],
                                struct error *error)
{
    char *chunk = malloc(CHUNK_BYTES);
    struct digest *sum = digest_open();
    enum status status =
        chunk == NULL || sum == NULL ? error_memory(error, CHUNK_BYTES) : STATUS_OK;
    ssize_t n = 1;
    pull->at.done_bytes = 0;
    while (status == STATUS_OK && n != 0) {
        n = read(in, chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = io_fail(error, "read", pull->at.file);
        else if (n > 0 && out >= 0 && !file_write_all(out, chunk, (size_t)n))
            status = io_fail(error, "write", pull->at.file);
        if (status != STATUS_OK || n == 0)
            break;
        digest_add(sum, chunk, (size_t)n);
        pull->at.done_bytes += (uint64_t)n;
        status = pull_tell(pull, error);
    }
    free(chunk);
    if (status == STATUS_OK)
        digest_end(sum, digest);
    else
        digest_discard(sum);
    return status;
}

/* Copies the open file to path. */
static enum status copy(struct pull *pull, int in, const char *path, const char *expected,
                        struct error *error)
{
    char digest[STORE_DIGEST_BYTES];
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0)
        return io_fail(error, "create", path);
    enum status status = store_check_room(pull->store, pull->at.total_bytes, error);
    if (status == STATUS_OK && lseek(in, 0, SEEK_SET) != 0)
        status = io_fail(error, "read", pull->at.file);
    if (status == STATUS_OK)
        status = read_through(pull, in, out, digest, error);
    if (status == STATUS_OK && fsync(out) != 0)
        status = io_fail(error, "write", path);
    close(out);
    if (status == STATUS_OK && strcmp(digest, expected) != 0)
        status =
            error_set(error, STATUS_IO, "%s changed while it was copied: try again", pull->at.file);
    if (status != STATUS_OK)
        unlink(path);
    return status;
}

/* Puts the file of that digest into the store, unless it is there. */
static enum status place(struct pull *pull, const char *path, int in, const struct store_file *file,
                         struct error *error)
{
    char key[STORE_DIGEST_BYTES + 8];
    struct partial partial;
    struct stat linked;
    snprintf(key, sizeof key, "sha256-%s", file->digest);
    enum status status = partial_open(&partial, pull, key, error);
    if (status != STATUS_OK || store_has_blob(pull->store, file))
        goto done;
    unlink(partial.path.data); /* what another pull left */
    bool shared = file_clone(path, partial.path.data) || link(path, partial.path.data) == 0;
    if (shared &&
        (stat(partial.path.data, &linked) != 0 || (uint64_t)linked.st_size != file->size_bytes)) {
        unlink(partial.path.data);
        status = error_set(error, STATUS_IO, "%s changed while it was read: try again", path);
    } else if (!shared) {
        status = copy(pull, in, partial.path.data, file->digest, error);
    }
    if (status == STATUS_OK)
        status = store_adopt(pull->store, partial.path.data, file->digest, error);
done:
    partial_close(&partial);
    return status;
}

static enum status take_file(struct pull *pull, const char *path, struct error *error)
{
    struct stat facts;
    const char *slash = strrchr(path, '/');
    struct store_file *file = pull_add_file(pull, slash != NULL ? slash + 1 : path, error);
    if (file == NULL)
        return error->code;
    char *real = realpath(path, NULL); /* a link to a file is that file */
    int in = real != NULL ? open(real, O_RDONLY | O_CLOEXEC) : -1;
    enum status status = STATUS_OK;
    if (in < 0 || fstat(in, &facts) != 0)
        status = io_fail(error, "open", path);
    if (status == STATUS_OK) {
        file->size_bytes = pull->at.total_bytes = (uint64_t)facts.st_size;
        pull->at.file = file->name;
        pull->at.what = "reading";
        status = read_through(pull, in, -1, file->digest, error);
    }
    if (status == STATUS_OK)
        status = place(pull, real, in, file, error);
    if (in >= 0)
        close(in);
    free(real);
    return status;
}

enum status pull_local(struct pull *pull, const char *path, struct error *error)
{
    struct weights *weights; /* says what is wrong with a file before it is read whole */
    enum status status = weights_open(&weights, path, error);
    if (status != STATUS_OK)
        return status;
    weights_close(weights);
    unsigned number, count = part_count_of(path, &number);
    if (count <= 1)
        return take_file(pull, path, error);
    char *part = strdup(path);
    size_t at = strlen(path) - strlen("00001-of-00003.gguf");
    if (part == NULL)
        return error_memory(error, strlen(path));
    for (unsigned i = 1; i <= count && status == STATUS_OK; i++) {
        char digits[8];
        snprintf(digits, sizeof digits, "%05u", i);
        memcpy(part + at, digits, 5);
        status = take_file(pull, part, error);
    }
    free(part);
    return status;
}
