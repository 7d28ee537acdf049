/* Wires: the socket and the SSL object of a link in the hands of one thread. The socket does not
 * block; who waits asks it again and again for a while, and then sleeps in poll. An abort is a flag
 * and a shutdown of the socket, which wakes poll and touches nothing that the owner uses. */
#include "net/address.h"
#include "net/link_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_TLS_BYTES = 1 << 30,
    SEND_BYTES = 1 << 20,
    SILENT_MS = 60000, /* what was sent and is not taken for so long is lost */
    KEEPALIVE_S = 5,
    KEEPALIVE_PROBES = 2,
};

static const uint64_t ns_per_ms = 1000000;

/* ---- Opening and closing --------------------------------------------------------------------- */

static void set_option(int fd, int level, int option, int value)
{
    setsockopt(fd, level, option, &value, sizeof value);
}

/* Small messages go out at once; the system takes 64 KiB before the other side reads them; another
 * side whose machine is gone without a word is noticed. The buffer for receiving is left to the
 * system, which lets it grow with what a connection needs. */
static void tune(int fd)
{
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_SNDBUF, SEND_BYTES);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
#ifdef __APPLE__
    set_option(fd, IPPROTO_TCP, TCP_KEEPALIVE, KEEPALIVE_S);
    set_option(fd, IPPROTO_TCP, TCP_RXT_CONNDROPTIME, SILENT_MS / 1000);
#else
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, SILENT_MS);
#endif
}

struct net_wire *wire_new(int fd, struct ssl_st *ssl, const char *peer)
{
    struct net_wire *wire = calloc(1, sizeof *wire);
    if (wire == NULL)
        return NULL;
    wire->fd = fd;
    wire->ssl = ssl;
    wire->key_records = WIRE_KEY_RECORDS;
    wire->spin_ns = WIRE_SPIN_NS;
    atomic_init(&wire->aborted, false);
    memcpy(wire->peer, peer, strnlen(peer, sizeof wire->peer - 1));
    return wire;
}

void wire_trust(struct net_wire *wire)
{
    SSL_free(wire->ssl);
    wire->ssl = NULL;
}

void wire_prepare(struct net_wire *wire)
{
    tune(wire->fd);
    if (wire->ssl == NULL)
        return;
    SSL_clear_mode(wire->ssl, SSL_MODE_RELEASE_BUFFERS);
    /* A record's head and body by one call of the system; not before this, as what is behind the
     * HELLO may not be TLS. */
    SSL_set_read_ahead(wire->ssl, 1);
}

void net_wire_close(struct net_wire *wire)
{
    if (wire == NULL)
        return;
    if (wire->ssl != NULL && !wire->failed && !wire->refuses) {
        ERR_clear_error();
        SSL_shutdown(wire->ssl);
    }
    SSL_free(wire->ssl);
    close(wire->fd);
    free(wire);
}

void net_wire_abort(struct net_wire *wire)
{
    atomic_store(&wire->aborted, true);
    shutdown(wire->fd, SHUT_RDWR);
}

bool net_wire_encrypted(const struct net_wire *wire)
{
    return wire->ssl != NULL;
}

const char *net_wire_peer(const struct net_wire *wire)
{
    return wire->peer;
}

void net_wire_local(const struct net_wire *wire, char out[NET_ADDRESS_BYTES])
{
    struct sockaddr_storage local = {0};
    socklen_t size = sizeof local;
    if (getsockname(wire->fd, (struct sockaddr *)&local, &size) != 0)
        local.ss_family = AF_UNSPEC;
    address_text((struct sockaddr *)&local, false, out);
}

void net_wire_set_spin(struct net_wire *wire, uint64_t spin_ns)
{
    wire->spin_ns = spin_ns;
}

/* ---- One step -------------------------------------------------------------------------------- */

/* Bytes that went through, 0 where the socket has no more now, -1 where the wire is lost. */
static ssize_t tls_result(struct net_wire *wire, int n)
{
    if (n > 0)
        return n;
    int reason = SSL_get_error(wire->ssl, n);
    return reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static ssize_t plain_result(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? 0 : n;
}

static ssize_t send_some(struct net_wire *wire, const void *data, size_t size)
{
    if (wire->ssl == NULL)
        return plain_result(send(wire->fd, data, size, 0));
    if (wire->records >= wire->key_records && !wire->refuses) {
        SSL_key_update(wire->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
        wire->records = 0;
    }
    ERR_clear_error();
    ssize_t n = tls_result(wire, SSL_write(wire->ssl, data, (int)MIN(size, (size_t)MAX_TLS_BYTES)));
    wire->refuses = n == 0;
    wire->records += n > 0;
    return n;
}

static ssize_t receive_some(struct net_wire *wire, void *data, size_t size)
{
    if (wire->ssl != NULL) {
        ERR_clear_error();
        return tls_result(wire, SSL_read(wire->ssl, data, (int)MIN(size, (size_t)MAX_TLS_BYTES)));
    }
    ssize_t n = recv(wire->fd, data, size, 0);
    return n == 0 ? -1 : plain_result(n);
}

/* ---- Exchange -------------------------------------------------------------------------------- */

static enum status lose(struct net_wire *wire, const char *why, struct error *error)
{
    wire->failed = true;
    return error_set(error, STATUS_LOST, "%s: %s", wire->peer,
                     atomic_load(&wire->aborted) ? "the connection was given up" : why);
}

static bool is_done(const struct net_transfer *transfer)
{
    return transfer->out_bytes == 0 && transfer->in_bytes == 0;
}

/* Sends and receives what the socket allows. *moved is set where that was anything. What an earlier
 * transfer of this pass still has to send or receive on the same wire comes first. */
static enum status advance(struct net_transfer *transfer, uint64_t pass, bool *moved,
                           struct error *error)
{
    struct net_wire *wire = transfer->wire;
    while (transfer->out_bytes > 0 && wire->out_waits != pass) {
        ssize_t n = send_some(wire, transfer->out, transfer->out_bytes);
        if (n < 0)
            return lose(wire, "the connection is lost", error);
        if (n == 0)
            break;
        transfer->out = (const char *)transfer->out + n;
        transfer->out_bytes -= (size_t)n;
        *moved = true;
        /* Two sides that both send much take turns with receiving, so that their sockets stay
         * neither full nor empty. */
        if (transfer->in_bytes > 0 && transfer->out_bytes > 0)
            break;
    }
    while (transfer->in_bytes > 0 && wire->in_waits != pass) {
        ssize_t n = receive_some(wire, transfer->in, transfer->in_bytes);
        if (n < 0)
            return lose(wire, "the connection is lost", error);
        if (n == 0)
            break;
        transfer->in = (char *)transfer->in + n;
        transfer->in_bytes -= (size_t)n;
        *moved = true;
        if (transfer->out_bytes > 0)
            break;
    }
    if (transfer->out_bytes > 0)
        wire->out_waits = pass;
    if (transfer->in_bytes > 0)
        wire->in_waits = pass;
    return STATUS_OK;
}

/* Sleeps until one of the sockets is ready, or until the deadline. */
static void sleep_until_ready(const struct net_transfer *transfers, size_t n, uint64_t deadline_ns)
{
    struct pollfd fds[NET_MAX_TRANSFERS];
    nfds_t n_fds = 0;
    int timeout_ms = -1;
    for (size_t i = 0; i < n; i++) {
        const struct net_transfer *one = &transfers[i];
        if (!is_done(one))
            fds[n_fds++] = (struct pollfd){.fd = one->wire->fd,
                                           .events = (short)((one->in_bytes > 0 ? POLLIN : 0) |
                                                             (one->out_bytes > 0 ? POLLOUT : 0))};
    }
    if (deadline_ns != 0) {
        uint64_t now = clock_now_ns();
        uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
        timeout_ms = (int)MIN(left / ns_per_ms + 1, (uint64_t)60000);
    }
    poll(fds, n_fds, timeout_ms);
}

static enum status begin(const struct net_transfer *transfers, size_t n, uint64_t *spin_ns,
                         struct error *error)
{
    *spin_ns = 0;
    if (n > NET_MAX_TRANSFERS)
        return error_set(error, STATUS_LIMIT, "%zu messages are too many for one exchange", n);
    for (size_t i = 0; i < n; i++) {
        struct net_wire *wire = transfers[i].wire;
        if (wire->failed || atomic_load(&wire->aborted))
            return lose(wire, "the connection is lost", error);
        *spin_ns = MAX(*spin_ns, wire->spin_ns);
        wire->out_waits = wire->in_waits = 0;
    }
    return STATUS_OK;
}

/* Who does not answer in time: the first that is not done. */
static enum status too_late(const struct net_transfer *transfers, size_t n, struct error *error)
{
    size_t late = 0;
    while (late + 1 < n && is_done(&transfers[late]))
        late++;
    for (size_t i = 0; i < n; i++)
        if (!is_done(&transfers[i]))
            transfers[i].wire->failed = true;
    return lose(transfers[late].wire, "no answer in time", error);
}

enum status net_wire_exchange(struct net_transfer *transfers, size_t n, uint64_t deadline_ns,
                              struct error *error)
{
    uint64_t spin_ns, idle_since = 0;
    enum status status = begin(transfers, n, &spin_ns, error);
    for (uint64_t pass = 1; status == STATUS_OK; pass++) {
        bool moved = false, left = false;
        for (size_t i = 0; i < n && status == STATUS_OK; i++) {
            if (!is_done(&transfers[i]))
                status = advance(&transfers[i], pass, &moved, error);
            left = left || !is_done(&transfers[i]);
        }
        if (status != STATUS_OK || !left)
            break;
        if (moved) {
            idle_since = 0;
            continue;
        }
        uint64_t now = clock_now_ns();
        if (deadline_ns != 0 && now >= deadline_ns)
            return too_late(transfers, n, error);
        if (idle_since == 0)
            idle_since = now;
        if (now - idle_since >= spin_ns)
            sleep_until_ready(transfers, n, deadline_ns);
    }
    return status;
}

enum status net_wire_send(struct net_wire *wire, const void *data, size_t size,
                          uint64_t deadline_ns, struct error *error)
{
    struct net_transfer transfer = {.wire = wire, .out = data, .out_bytes = size};
    return net_wire_exchange(&transfer, 1, deadline_ns, error);
}

enum status net_wire_receive(struct net_wire *wire, void *data, size_t size, uint64_t deadline_ns,
                             struct error *error)
{
    struct net_transfer transfer = {.wire = wire, .in = data, .in_bytes = size};
    return net_wire_exchange(&transfer, 1, deadline_ns, error);
}

/* ---- Frames ---------------------------------------------------------------------------------- */

enum status net_wire_send_frame(struct net_wire *wire, uint8_t type, struct view message,
                                uint64_t deadline_ns, struct error *error)
{
    uint8_t bytes[FRAME_HEAD_BYTES + 1024];
    if (type == HELLO_TYPE || message.size > UINT32_MAX)
        return error_set(error, STATUS_INVALID, "a message of %zu bytes cannot be a frame",
                         message.size);
    frame_head_write(bytes, message.size, type);
    /* A short message goes with its head. */
    size_t with = message.size <= sizeof bytes - FRAME_HEAD_BYTES ? message.size : 0;
    if (with > 0)
        memcpy(bytes + FRAME_HEAD_BYTES, message.data, with);
    enum status status = net_wire_send(wire, bytes, FRAME_HEAD_BYTES + with, deadline_ns, error);
    if (status == STATUS_OK && message.size > with)
        status = net_wire_send(wire, message.data, message.size, deadline_ns, error);
    return status;
}

enum status net_wire_receive_frame(struct net_wire *wire, size_t limit_bytes, uint8_t *type,
                                   struct buffer *out, uint64_t deadline_ns, struct error *error)
{
    uint8_t head[FRAME_HEAD_BYTES];
    size_t size;
    buffer_clear(out);
    enum status status = net_wire_receive(wire, head, sizeof head, deadline_ns, error);
    if (status != STATUS_OK)
        return status;
    frame_head_read(head, &size, type);
    if (*type == HELLO_TYPE || size > limit_bytes) {
        wire->failed = true;
        return error_set(error, STATUS_LOST,
                         "%s: a message of type %u with %zu bytes came, where %zu are allowed",
                         wire->peer, *type, size, limit_bytes);
    }
    if (!buffer_reserve(out, size)) {
        wire->failed = true;
        return error_memory(error, size);
    }
    status = net_wire_receive(wire, out->data, size, deadline_ns, error);
    if (status == STATUS_OK && size > 0) {
        out->size = size;
        out->data[size] = '\0';
    }
    return status;
}
