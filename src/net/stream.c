#include "net/stream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    MAX_PARTS = 4,
    MAX_TLS_WRITE = 1 << 20,
};

bool net_stream_open(struct stream *stream, struct event_base *base, int fd, struct ssl_ctx_st *tls,
                     event_callback_fn on_read, event_callback_fn on_write, void *context)
{
    struct ssl_st *ssl = NULL;
    if (tls != NULL) {
        ssl = SSL_new(tls);
        if (ssl == NULL || SSL_set_fd(ssl, fd) != 1) {
            SSL_free(ssl);
            close(fd);
            return false;
        }
        SSL_set_accept_state(ssl);
    }
    net_stream_adopt(stream, base, fd, ssl, on_read, on_write, context);
    return true;
}

void net_stream_adopt(struct stream *stream, struct event_base *base, int fd, struct ssl_st *ssl,
                      event_callback_fn on_read, event_callback_fn on_write, void *context)
{
    *stream = (struct stream){.fd = fd, .ssl = ssl};
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    event_assign(&stream->read_event, base, fd, EV_READ | EV_PERSIST, on_read, context);
    event_assign(&stream->write_event, base, fd, EV_WRITE | EV_PERSIST, on_write, context);
    net_stream_set_reading(stream, true);
}

void net_stream_release(struct stream *stream)
{
    event_del(&stream->read_event);
    event_del(&stream->write_event);
    buffer_free(&stream->out);
}

void net_stream_close(struct stream *stream)
{
    net_stream_release(stream);
    SSL_free(stream->ssl);
    close(stream->fd);
}

static void set_event(struct event *event, bool *now, bool wanted)
{
    if (*now == wanted)
        return;
    if (wanted)
        event_add(event, NULL);
    else
        event_del(event);
    *now = wanted;
}

void net_stream_set_reading(struct stream *stream, bool reading)
{
    set_event(&stream->read_event, &stream->reading, reading);
}

void net_stream_wake(struct stream *stream)
{
    event_active(&stream->read_event, EV_READ, 0);
}

void net_stream_wake_writer(struct stream *stream)
{
    event_active(&stream->write_event, EV_WRITE, 0);
}

size_t net_stream_pending(const struct stream *stream)
{
    return stream->out.size - stream->sent;
}

static void update_writing(struct stream *stream)
{
    bool flushing = net_stream_pending(stream) > 0 && !stream->write_wants_read;
    set_event(&stream->write_event, &stream->writing,
              !stream->broken && (flushing || stream->read_wants_write));
}

static void set_broken(struct stream *stream)
{
    stream->broken = true;
    buffer_free(&stream->out);
    stream->sent = 0;
    update_writing(stream);
    net_stream_wake(stream);
}

/* ---- Reading ---- */

static enum stream_result read_plain(struct stream *stream, char *data, size_t size, size_t *count)
{
    ssize_t n;
    do
        n = recv(stream->fd, data, size, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        *count = (size_t)n;
        return STREAM_DATA;
    }
    if (n == 0)
        return STREAM_END;
    return errno == EAGAIN || errno == EWOULDBLOCK ? STREAM_LATER : STREAM_BROKEN;
}

static enum stream_result read_tls(struct stream *stream, char *data, size_t size, size_t *count)
{
    /* All that TLS holds is taken: what stayed would cause no event. */
    size_t total = 0;
    int n = 1;
    ERR_clear_error();
    while (total < size &&
           (n = SSL_read(stream->ssl, data + total, (int)MIN(size - total, (size_t)1 << 20))) > 0)
        total += (size_t)n;
    *count = total;
    int reason = n > 0 ? SSL_ERROR_NONE : SSL_get_error(stream->ssl, n);
    if (reason == SSL_ERROR_WANT_WRITE) {
        stream->read_wants_write = true;
        update_writing(stream);
    }
    /* What ended the reading shows again in the next round. */
    if (total == size || (total > 0 && reason != SSL_ERROR_WANT_READ))
        net_stream_wake(stream);
    if (total > 0)
        return STREAM_DATA;
    switch (reason) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return STREAM_LATER;
    case SSL_ERROR_ZERO_RETURN:
        return STREAM_END;
    case SSL_ERROR_SSL:
        if (ERR_GET_REASON(ERR_peek_error()) != SSL_R_HTTP_REQUEST)
            return STREAM_BROKEN;
        SSL_free(stream->ssl);
        stream->ssl = NULL;
        return STREAM_NO_TLS;
    default:
        return STREAM_BROKEN;
    }
}

enum stream_result net_stream_read(struct stream *stream, char *data, size_t size, size_t *count)
{
    if (stream->ssl == NULL)
        return read_plain(stream, data, size, count);
    enum stream_result result = read_tls(stream, data, size, count);
    if (stream->write_wants_read && stream->ssl != NULL) {
        stream->write_wants_read = false;
        net_stream_flush(stream);
    }
    return result;
}

/* ---- Writing ---- */

/* Bytes the socket took of data, 0 for none now, -1 for an error. */
static ssize_t write_some(struct stream *stream, const char *data, size_t size)
{
    if (stream->ssl != NULL) {
        ERR_clear_error();
        int n = SSL_write(stream->ssl, data, (int)MIN(size, (size_t)MAX_TLS_WRITE));
        if (n > 0)
            return n;
        int reason = SSL_get_error(stream->ssl, n);
        stream->write_wants_read = reason == SSL_ERROR_WANT_READ;
        return reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    ssize_t n;
    do
        n = send(stream->fd, data, size, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : n;
}

void net_stream_flush(struct stream *stream)
{
    if (stream->read_wants_write) {
        stream->read_wants_write = false;
        net_stream_wake(stream);
    }
    while (net_stream_pending(stream) > 0) {
        ssize_t n = write_some(stream, stream->out.data + stream->sent, net_stream_pending(stream));
        if (n < 0) {
            set_broken(stream);
            return;
        }
        if (n == 0)
            break;
        stream->sent += (size_t)n;
        stream->taken += (uint64_t)n;
    }
    if (net_stream_pending(stream) == 0) {
        buffer_free(&stream->out);
        stream->sent = 0;
    }
    update_writing(stream);
}

/* Appends what comes behind the first skip bytes of parts. */
static void keep(struct stream *stream, const struct view *parts, size_t n_parts, size_t skip)
{
    struct buffer *out = &stream->out;
    if (stream->sent > out->size / 2) {
        out->size -= stream->sent;
        memmove(out->data, out->data + stream->sent, out->size);
        stream->sent = 0;
    }
    for (size_t i = 0; i < n_parts; i++) {
        size_t skipped = MIN(skip, parts[i].size);
        skip -= skipped;
        buffer_append(out, parts[i].data + skipped, parts[i].size - skipped);
    }
    if (out->failed)
        set_broken(stream);
}

void net_stream_write(struct stream *stream, const struct view *parts, size_t n_parts)
{
    if (stream->broken)
        return;
    if (net_stream_pending(stream) > 0 || stream->ssl != NULL) {
        bool first = net_stream_pending(stream) == 0;
        keep(stream, parts, n_parts, 0);
        if (first && !stream->broken)
            net_stream_flush(stream);
        return;
    }
    struct iovec pieces[MAX_PARTS];
    size_t total = 0;
    for (size_t i = 0; i < n_parts; i++) {
        pieces[i] = (struct iovec){(void *)(uintptr_t)parts[i].data, parts[i].size};
        total += parts[i].size;
    }
    ssize_t n;
    do
        n = writev(stream->fd, pieces, (int)n_parts);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        set_broken(stream);
        return;
    }
    size_t taken = n > 0 ? (size_t)n : 0;
    stream->taken += taken;
    if (taken < total)
        keep(stream, parts, n_parts, taken);
    update_writing(stream);
}

void net_stream_shutdown(struct stream *stream)
{
    if (stream->ssl != NULL && SSL_is_init_finished(stream->ssl) && !stream->broken) {
        ERR_clear_error();
        SSL_shutdown(stream->ssl);
    }
    shutdown(stream->fd, SHUT_WR);
}

int net_stream_error(const struct stream *stream)
{
    int value = 0;
    socklen_t size = sizeof value;
    return getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &value, &size) == 0 ? value : errno;
}

/* ---- TLS ---- */

static int no_password(char *password, int size, int writing, void *context)
{
    (void)password, (void)size, (void)writing, (void)context;
    return 0;
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_size,
                           const unsigned char *offered, unsigned offered_size, void *context)
{
    static const unsigned char ours[] = "\x08http/1.1";
    unsigned char *chosen;
    (void)ssl, (void)context;
    if (SSL_select_next_proto(&chosen, out_size, ours, sizeof ours - 1, offered, offered_size) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_NOACK;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static enum status tls_fault(const char *what, const char *path, struct error *error)
{
    char reason[120] = "unknown reason";
    unsigned long code = ERR_peek_error();
    if (ERR_reason_error_string(code) != NULL)
        ERR_error_string_n(code, reason, sizeof reason);
    const char *last = strrchr(reason, ':');
    if (ERR_SYSTEM_ERROR(code))
        last = NULL;
    enum status status = error_set(error, STATUS_INVALID, "%s%s%s cannot be used for TLS: %s", what,
                                   path != NULL ? " " : "", path != NULL ? path : "",
                                   ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
                                                          : (last != NULL ? last + 1 : reason));
    ERR_clear_error();
    return status;
}

enum status tls_server_open(struct ssl_ctx_st **out, const char *certificate, const char *key,
                            struct error *error)
{
    ERR_clear_error();
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    enum status status = STATUS_OK;
    if (tls == NULL)
        return tls_fault("OpenSSL", NULL, error);
    SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION);
    SSL_CTX_set_options(tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_default_passwd_cb(tls, no_password);
    SSL_CTX_set_alpn_select_cb(tls, choose_protocol, NULL);
    if (SSL_CTX_use_certificate_chain_file(tls, certificate) != 1)
        status = tls_fault("the certificate", certificate, error);
    else if (SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1)
        status = tls_fault("the key", key, error);
    else if (SSL_CTX_check_private_key(tls) != 1)
        status =
            tls_fault("the key and the certificate do not belong together: the key", key, error);
    if (status != STATUS_OK)
        SSL_CTX_free(tls);
    else
        *out = tls;
    return status;
}

void tls_server_close(struct ssl_ctx_st *tls)
{
    SSL_CTX_free(tls);
}
