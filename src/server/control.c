/* How the commands on this machine find a running server, and prove that they may stop it.
 *
 * A server that runs has a file in the folder `run` of the home folder, which only its owner may
 * read, and holds a lock on it (flock) for as long as it lives:
 *
 *     {"pid": 4711, "url": "http://127.0.0.1:4000", "token": "6f1e...", "certificate": null}
 *
 * A file that nobody has locked is of a server that was killed; who finds one removes it. The token
 * is new at every start, and admits its bearer to everything. */
#include "server/server_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define FOLDER "run"
#define FILE_BYTES 16384

/* ---- The server's side ----------------------------------------------------------------------- */

static void make_token(char token[CONTROL_TOKEN_BYTES])
{
    for (size_t at = 0; at + 16 < CONTROL_TOKEN_BYTES; at += 16)
        snprintf(token + at, 17, "%016llx", (unsigned long long)rng_entropy());
}

/* Where this machine reaches the first address: one that stands for all is reached by loopback. */
static void put_url(const struct server *server, struct buffer *out)
{
    const char *address = server->options.addresses[0], *colon = strrchr(address, ':');
    size_t size = colon != NULL ? (size_t)(colon - address) : 0;
    struct view host = {address, size};
    if (size == 0 || view_equal(host, view_of("0.0.0.0")))
        host = view_of("127.0.0.1");
    else if (view_equal(host, view_of("[::]")))
        host = view_of("[::1]");
    buffer_printf(out, "http%s://%.*s:%u", server->options.tls_certificate != NULL ? "s" : "",
                  (int)host.size, host.data, http_server_port(server->http, 0));
}

/* Writes the file beside its name, so that it appears whole and locked. */
static enum status write_locked(struct control *control, const char *text, struct error *error)
{
    struct buffer beside = {0};
    enum status status = STATUS_OK;
    buffer_printf(&beside, "%s.new", control->path);
    control->fd = open(beside.data, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    size_t size = strlen(text);
    if (control->fd < 0 || flock(control->fd, LOCK_EX | LOCK_NB) != 0 ||
        write(control->fd, text, size) != (ssize_t)size || rename(beside.data, control->path) != 0)
        status = error_set(error, STATUS_IO, "cannot write %s: %s", control->path, strerror(errno));
    buffer_free(&beside);
    return status;
}

enum status control_open(struct server *server, struct error *error)
{
    struct control *control = &server->control;
    struct buffer path = {0}, url = {0};
    char certificate[PATH_MAX];
    const char *given = server->options.tls_certificate;
    make_token(control->token);
    control->fd = -1;
    if (!server->options.announce)
        return STATUS_OK;
    enum status status = home_directory(FOLDER, &path, error);
    if (status == STATUS_OK) {
        buffer_printf(&path, "/%ld.json", (long)getpid());
        put_url(server, &url);
        control->path = path.data;
        json_t *facts =
            json_pack("{s:I, s:s, s:s, s:s?, s:I}", "pid", (json_int_t)getpid(), "url", url.data,
                      "token", control->token, "certificate",
                      given != NULL && realpath(given, certificate) != NULL ? certificate : NULL,
                      "cluster_port", (json_int_t)server_cluster_port(server));
        char *text = json_dumps(facts, JSON_COMPACT);
        status = text != NULL && !path.failed ? write_locked(control, text, error)
                                              : error_memory(error, 1);
        free(text);
        json_decref(facts);
    } else {
        buffer_free(&path);
    }
    buffer_free(&url);
    return status;
}

void control_close(struct server *server)
{
    struct control *control = &server->control;
    if (control->path != NULL && control->fd >= 0)
        unlink(control->path);
    if (control->fd >= 0)
        close(control->fd);
    free(control->path);
}

bool control_holds(const struct server *server, const struct http_exchange *exchange)
{
    struct view given = http_header(exchange, "Authorization");
    static const char scheme[] = "Bearer ";
    if (given.size < sizeof scheme || memcmp(given.data, scheme, sizeof scheme - 1) != 0)
        return false;
    given = (struct view){given.data + sizeof scheme - 1, given.size - sizeof scheme + 1};
    size_t size = strlen(server->control.token);
    return given.size == size && CRYPTO_memcmp(given.data, server->control.token, size) == 0;
}

/* ---- The commands' side ---------------------------------------------------------------------- */

void server_presence_free(struct server_presence *presence)
{
    json_decref(presence->facts);
    *presence = (struct server_presence){0};
}

/* Reads a file that a running server has locked; false, and the file is gone, where none has. */
static bool read_presence(const char *path, struct server_presence *out)
{
    char text[FILE_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool runs = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    ssize_t size = runs ? read(fd, text, sizeof text) : 0;
    close(fd);
    if (!runs)
        unlink(path);
    json_int_t pid;
    json_t *facts = size > 0 ? json_loadb(text, (size_t)size, 0, NULL) : NULL;
    *out = (struct server_presence){
        .facts = facts,
        .certificate = json_string_value(json_object_get(facts, "certificate")),
    };
    bool good = json_unpack(facts, "{s:I, s:s, s:s}", "pid", &pid, "url", &out->url, "token",
                            &out->token) == 0;
    out->pid = good ? (long)pid : 0;
    if (!good)
        server_presence_free(out);
    return good;
}

enum status server_presences(struct server_presence *out, size_t limit, size_t *n,
                             struct error *error)
{
    struct buffer folder = {0}, path = {0};
    *n = 0;
    enum status status = home_directory(FOLDER, &folder, error);
    DIR *entries = status == STATUS_OK ? opendir(folder.data) : NULL;
    struct dirent *entry;
    while (entries != NULL && *n < limit && (entry = readdir(entries)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (length < 6 || strcmp(entry->d_name + length - 5, ".json") != 0)
            continue;
        buffer_clear(&path);
        buffer_printf(&path, "%s/%s", folder.data, entry->d_name);
        *n += !path.failed && read_presence(path.data, &out[*n]);
    }
    if (entries != NULL)
        closedir(entries);
    buffer_free(&path);
    buffer_free(&folder);
    return status;
}
