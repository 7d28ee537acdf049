/* Bringing a file of another machine into the store, from where an earlier attempt ended.
 *
 * What has come lies in partial/KEY, and in partial/KEY.state what was said of it: the URL and its
 * ETag. A server that has another file by now, or that cannot begin in the middle, sends it whole.
 * The state is written before the first byte of what it describes, and the file is emptied before
 * that, so that a kill at any moment leaves no mixture of two files. */
#include "store/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_STATE_BYTES 65536
#define CHUNK_BYTES ((size_t)1 << 20)

struct download {
    struct fetch fetch;
    struct store_file *file; /* digest and size_bytes where they are known */
    struct partial partial;
    struct buffer state_path;
    char etag[FETCH_ETAG_BYTES]; /* of what is there; empty: not known */
    char what[STORE_NAME_BYTES];
    struct digest *sum;
    uint64_t done_bytes;
    int fd;
    bool known, resumed; /* the digest was given; what is there began with an earlier attempt */
};

static enum status io_fail(struct error *error, const char *verb, const char *path)
{
    return error_set(error, STATUS_IO, "cannot %s %s: %s", verb, path, strerror(errno));
}

/* ---- State ----------------------------------------------------------------------------------- */

static void read_state(struct download *download)
{
    struct buffer text = {0};
    download->etag[0] = '\0';
    if (file_read(download->state_path.data, MAX_STATE_BYTES, &text, NULL) == STATUS_OK) {
        json_t *state = json_loadb(text.data, text.size, 0, NULL);
        const char *url = json_string_value(json_object_get(state, "url"));
        const char *etag = json_string_value(json_object_get(state, "etag"));
        if (url != NULL && etag != NULL && strlen(etag) < sizeof download->etag &&
            strlen(url) == (size_t)url_shown(download->fetch.url) &&
            strncmp(url, download->fetch.url, strlen(url)) == 0)
            snprintf(download->etag, sizeof download->etag, "%s", etag);
        json_decref(state);
    }
    buffer_free(&text);
}

/* Without the query, which may hold a secret. */
static enum status write_state(struct download *download, struct error *error)
{
    struct file_writer *writer;
    const char *url = download->fetch.url;
    json_t *state =
        json_pack("{s:s%, s:s}", "url", url, (size_t)url_shown(url), "etag", download->etag);
    char *text = state != NULL ? json_dumps(state, 0) : NULL;
    enum status status = file_create(&writer, download->state_path.data, error);
    if (status == STATUS_OK && text != NULL)
        status = file_write(writer, text, strlen(text), error);
    if (status == STATUS_OK)
        status = file_commit(writer, error);
    free(text);
    json_decref(state);
    return status;
}

/* ---- What is there --------------------------------------------------------------------------- */

static enum status empty_digest(struct download *download, struct error *error)
{
    digest_discard(download->sum);
    download->sum = digest_open();
    download->done_bytes = 0;
    download->resumed = false;
    return download->sum != NULL ? STATUS_OK : error_memory(error, 1);
}

/* Nothing is there any more. */
static enum status empty(struct download *download, struct error *error)
{
    enum status status = empty_digest(download, error);
    if (status != STATUS_OK)
        return status;
    download->etag[0] = '\0';
    if (ftruncate(download->fd, 0) != 0 || lseek(download->fd, 0, SEEK_SET) != 0)
        return io_fail(error, "write", download->partial.path.data);
    return STATUS_OK;
}

/* Takes what an earlier attempt left into the digest, as far as it can be a part of the file. */
static enum status take_rest(struct download *download, struct error *error)
{
    struct stat facts;
    struct pull *pull = download->fetch.pull;
    const struct store_file *file = download->file;
    enum status status = empty_digest(download, error);
    if (status != STATUS_OK)
        return status;
    if (fstat(download->fd, &facts) != 0)
        return io_fail(error, "read", download->partial.path.data);
    uint64_t size_bytes = (uint64_t)facts.st_size;
    read_state(download);
    if ((!download->known && download->etag[0] == '\0') ||
        (file->size_bytes > 0 && size_bytes > file->size_bytes))
        return empty(download, error);
    char *chunk = malloc(CHUNK_BYTES);
    if (chunk == NULL)
        return error_memory(error, CHUNK_BYTES);
    pull->at.what = "reading what is there";
    pull->at.begin_bytes = 0;
    pull->at.total_bytes = size_bytes;
    while (status == STATUS_OK && download->done_bytes < size_bytes) {
        ssize_t n = read(download->fd, chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            status = io_fail(error, "read", download->partial.path.data);
            break;
        }
        digest_add(download->sum, chunk, (size_t)n);
        download->done_bytes += (uint64_t)n;
        pull->at.done_bytes = download->done_bytes;
        status = pull_tell(pull, error);
    }
    download->resumed = download->done_bytes > 0;
    free(chunk);
    return status;
}

/* ---- What comes ------------------------------------------------------------------------------ */

static struct download *of(struct fetch *fetch)
{
    return (struct download *)fetch;
}

/* The head of the response is there. */
static bool begin(struct fetch *fetch, struct error *error)
{
    struct download *download = of(fetch);
    struct store_file *file = download->file;
    struct pull *pull = fetch->pull;
    if (fetch->ranged && fetch->range_begin != download->done_bytes) {
        error_set(error, STATUS_IO, "%.*s: the server sends another range than was asked for",
                  url_shown(fetch->url), fetch->url);
        return false;
    }
    if (!fetch->ranged && download->done_bytes > 0 && empty(download, error) != STATUS_OK)
        return false;
    if (file->size_bytes > 0 && fetch->total_bytes > 0 && file->size_bytes != fetch->total_bytes) {
        error_set(error, STATUS_IO, "%.*s has %llu bytes at the server, %llu were announced",
                  url_shown(fetch->url), fetch->url, (unsigned long long)fetch->total_bytes,
                  (unsigned long long)file->size_bytes);
        return false;
    }
    if (fetch->total_bytes > 0)
        file->size_bytes = fetch->total_bytes;
    if (!download->known && fetch->digest[0] != '\0') {
        memcpy(file->digest, fetch->digest, STORE_DIGEST_BYTES);
        download->known = true;
    }
    /* A weak ETag does not promise the same bytes. */
    if (!fetch->ranged)
        snprintf(download->etag, sizeof download->etag, "%s",
                 strncmp(fetch->etag, "W/", 2) != 0 ? fetch->etag : "");
    uint64_t left = file->size_bytes - MIN(file->size_bytes, download->done_bytes);
    if (store_check_room(pull->store, left, error) != STATUS_OK ||
        (!fetch->ranged && write_state(download, error) != STATUS_OK))
        return false;
    pull->at.what = download->what;
    pull->at.digest = download->known ? file->digest : "";
    pull->at.total_bytes = file->size_bytes;
    pull->at.begin_bytes = pull->at.done_bytes = download->done_bytes;
    return pull_tell(pull, error) == STATUS_OK;
}

static bool take(struct fetch *fetch, const char *data, size_t size, struct error *error)
{
    struct download *download = of(fetch);
    struct pull *pull = fetch->pull;
    uint64_t before = download->done_bytes;
    if (download->file->size_bytes > 0 && size > download->file->size_bytes - before) {
        error_set(error, STATUS_IO, "%.*s: the server sends more than the %llu bytes announced",
                  url_shown(fetch->url), fetch->url,
                  (unsigned long long)download->file->size_bytes);
        return false;
    }
    /* A server that does not say how much comes must not fill the disk. */
    if (before >> 26 != (before + size) >> 26 &&
        store_check_room(pull->store, size, error) != STATUS_OK)
        return false;
    if (!file_write_all(download->fd, data, size)) {
        if (errno != ENOSPC || store_check_room(pull->store, size, error) == STATUS_OK)
            io_fail(error, "write", download->partial.path.data);
        return false;
    }
    digest_add(download->sum, data, size);
    pull->at.done_bytes = download->done_bytes += size;
    return pull_tell(pull, error) == STATUS_OK;
}

/* ---- The download ---------------------------------------------------------------------------- */

/* Compares what came with what was announced. A file that an earlier attempt began may be damaged
 * in that part, and is fetched again from its beginning. */
static enum status verify(struct download *download, struct error *error)
{
    char found[STORE_DIGEST_BYTES];
    struct store_file *file = download->file;
    if (fsync(download->fd) != 0)
        return io_fail(error, "write", download->partial.path.data);
    if (download->done_bytes == 0 || download->done_bytes < file->size_bytes) {
        download->fetch.again = true;
        return error_set(error, STATUS_IO, "%.*s: the connection ended too early",
                         url_shown(download->fetch.url), download->fetch.url);
    }
    digest_end(download->sum, found);
    download->sum = NULL;
    if (!download->known)
        memcpy(file->digest, found, sizeof found);
    file->size_bytes = download->done_bytes;
    if (strcmp(found, file->digest) == 0)
        return STATUS_OK;
    bool resumed = download->resumed;
    enum status status = empty(download, error);
    if (status != STATUS_OK)
        return status;
    download->fetch.again = resumed;
    return error_set(error, STATUS_IO,
                     "%.*s has the SHA-256 %.12s..., and %.12s... was announced: it is damaged or "
                     "was changed, and nothing of it was kept",
                     url_shown(download->fetch.url), download->fetch.url, found, file->digest);
}

/* One attempt, from where the one before ended. */
static enum status attempt(struct download *download, struct error *error)
{
    struct fetch *fetch = &download->fetch;
    /* Without a digest and an ETag nothing tells whether the rest belongs to what is there. */
    if (!download->known && download->etag[0] == '\0' && empty(download, error) != STATUS_OK)
        return error->code;
    bool whole = download->known && download->done_bytes == download->file->size_bytes &&
                 download->done_bytes > 0;
    enum status status = STATUS_OK;
    fetch->from_bytes = download->done_bytes;
    fetch->if_range = download->etag;
    fetch->again = false;
    if (!whole)
        status = fetch_once(fetch, error);
    if (status != STATUS_OK && fetch->code == 416 && fetch->from_bytes > 0) {
        status = empty(download, error); /* there is no such place in the file of the server */
        fetch->again = true;
        return status != STATUS_OK ? status
                                   : error_set(error, STATUS_IO, "%.*s has another size now",
                                               url_shown(fetch->url), fetch->url);
    }
    return status == STATUS_OK ? verify(download, error) : status;
}

static enum status run(struct download *download, struct error *error)
{
    unsigned tries = 0;
    enum status status = take_rest(download, error);
    while (status == STATUS_OK) {
        enum status one = attempt(download, error);
        if (one == STATUS_OK)
            return store_adopt(download->fetch.pull->store, download->partial.path.data,
                               download->file->digest, error);
        status = fetch_retry(&download->fetch, &tries, one, error);
        download->resumed = download->done_bytes > 0;
    }
    return status;
}

/* By its content where that is known, so that it is one download wherever it comes from. */
static void make_key(const struct download *download, char *out, size_t size)
{
    char url[STORE_DIGEST_BYTES];
    struct digest *sum = download->known ? NULL : digest_open();
    if (sum != NULL) {
        digest_add(sum, download->fetch.url, (size_t)url_shown(download->fetch.url));
        digest_end(sum, url);
    }
    snprintf(out, size, "%s%s", download->known ? "sha256-" : "url-",
             download->known ? download->file->digest
             : sum != NULL   ? url
                             : "x");
}

enum status pull_download(struct pull *pull, const char *url, bool with_token,
                          struct store_file *file, struct error *error)
{
    char key[STORE_DIGEST_BYTES + 8];
    struct download download = {
        .fetch = {.pull = pull, .url = url, .with_token = with_token, .begin = begin, .take = take},
        .file = file,
        .fd = -1,
        .known = file->digest[0] != '\0'};
    make_key(&download, key, sizeof key);
    snprintf(download.what, sizeof download.what, "pulling %.12s",
             download.known ? file->digest : file->name);
    pull->at = (struct store_progress){
        .what = download.what, .file = file->name, .digest = file->digest, .trouble = ""};
    enum status status = partial_open(&download.partial, pull, key, error);
    if (status == STATUS_OK && download.known && store_has_blob(pull->store, file)) {
        pull->at.total_bytes = pull->at.done_bytes = pull->at.begin_bytes = file->size_bytes;
        status = pull_tell(pull, error);
        goto done;
    }
    if (status == STATUS_OK) {
        buffer_printf(&download.state_path, "%s.state", download.partial.path.data);
        download.fd = open(download.partial.path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (download.fd < 0)
            status = io_fail(error, "create", download.partial.path.data);
    }
    if (status == STATUS_OK)
        status = run(&download, error);
    if (download.fd >= 0)
        close(download.fd);
    if (status == STATUS_OK || download.done_bytes == 0) {
        unlink(download.state_path.data);
        if (download.fd >= 0)
            unlink(download.partial.path.data); /* empty, or adopted under another name */
    }
done:
    digest_discard(download.sum);
    buffer_free(&download.state_path);
    partial_close(&download.partial);
    return status;
}
