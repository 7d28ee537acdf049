/* Links that live on the loop: connecting, the handshake, the HELLOs, then frames.
 *
 *   connect --> CONNECTING --> HANDSHAKE --> GREETING --> UP --> GONE
 *   accept  ---------------------^                        |
 *                                                         +--> detached, as a wire
 *
 * Until the handshake is over the link waits with an event of its own; then a stream has the
 * socket. Callbacks may close the link, so who calls one looks afterwards whether it is gone. */
#include "net/address.h"
#include "net/link_internal.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PENDING_MESSAGES = 8,
    READ_BYTES = 64 << 10,
};

/* ---- Beginning and end ----------------------------------------------------------------------- */

struct net_link *link_new(struct net_loop *loop, int fd, const struct net_link_options *options)
{
    struct net_link *link = calloc(1, sizeof *link);
    struct hello_reader *greeting = calloc(1, sizeof *greeting);
    if (link == NULL || greeting == NULL) {
        free(link);
        free(greeting);
        return NULL;
    }
    link->loop = loop;
    link->fd = fd;
    link->events = options->events;
    link->context = options->context;
    link->hello = options->hello;
    link->greeting = greeting;
    link->reader.limit = options->frame_bytes != 0 ? options->frame_bytes : (size_t)NET_FRAME_BYTES;
    link->pending_bytes = options->pending_bytes != 0 ? options->pending_bytes
                                                      : PENDING_MESSAGES * link->reader.limit;
    return link;
}

static void stop_waiting(struct net_link *link)
{
    if (link->waiting)
        event_del(&link->event);
    link->waiting = false;
}

/* Frees a link whose socket is closed or was handed over. */
static void link_free(struct net_link *link)
{
    if (link->running)
        return;
    link_tls_close(&link->tls);
    frame_reader_free(&link->reader);
    free(link->greeting);
    free(link);
}

/* Leaves the loop, and the socket to the caller. */
static void leave(struct net_link *link)
{
    link->state = LINK_GONE;
    net_timer_cancel(link->timeout);
    link->timeout = NULL;
    stop_waiting(link);
    link_server_forget(link);
    if (link->streamed)
        net_stream_release(&link->stream);
}

static void shut(struct net_link *link)
{
    bool greeted = link->state == LINK_UP || link->state == LINK_GREETING;
    if (link->streamed && greeted && !link->stream.broken) {
        net_stream_flush(&link->stream);
        net_stream_shutdown(&link->stream);
    }
    leave(link);
    if (link->streamed) {
        SSL_free(link->stream.ssl);
        close(link->stream.fd);
    } else if (link->fd >= 0) {
        close(link->fd);
    }
}

void net_link_close(struct net_link *link)
{
    if (link == NULL || link->state == LINK_GONE)
        return;
    shut(link);
    link_free(link);
}

void link_fail(struct net_link *link, enum net_link_fault fault, const char *text)
{
    char made[256];
    bool tells = link->state == LINK_UP || !link->accepted;
    struct net_link_server *server = link->server;
    if (text == NULL) {
        link_fault_text(made, link->peer, fault, link->fault);
        text = made;
    }
    shut(link);
    link->running = true;
    if (tells)
        link->events->down(link->context, link, fault, text);
    else if (server != NULL)
        link_server_refused(server, link->peer, fault, text);
    link->running = false;
    link_free(link);
}

static void on_timeout(void *context)
{
    struct net_link *link = context;
    link->timeout = NULL;
    link_fail(link, NET_LINK_TIMEOUT, NULL);
}

/* ---- Frames ---------------------------------------------------------------------------------- */

/* False where the link is gone. */
static bool take_frames(struct net_link *link)
{
    for (;;) {
        uint8_t type;
        struct view message;
        enum frame_result result = frame_reader_next(&link->reader, &type, &message);
        if (result == FRAME_LATER)
            return true;
        if (result != FRAME_THERE) {
            link_fail(link, NET_LINK_BROKEN, NULL);
            return false;
        }
        link->running = true;
        link->events->message(link->context, link, type, message);
        link->running = false;
        if (link->state == LINK_GONE) {
            link_free(link);
            return false;
        }
    }
}

static void read_frames(struct net_link *link)
{
    char data[READ_BYTES];
    size_t count = 0;
    switch (net_stream_read(&link->stream, data, sizeof data, &count)) {
    case STREAM_DATA:
        if (frame_reader_feed(&link->reader, data, count) != FRAME_THERE)
            link_fail(link, NET_LINK_LOCAL, NULL);
        else
            take_frames(link);
        return;
    case STREAM_LATER:
        return;
    case STREAM_END:
        link_fail(link, NET_LINK_CLOSED, NULL);
        return;
    default:
        link_fail(link, NET_LINK_RESET, NULL);
    }
}

/* ---- HELLO ----------------------------------------------------------------------------------- */

static void send_hello(struct net_link *link)
{
    uint8_t bytes[HELLO_OUR_BYTES];
    struct view frame = {(const char *)bytes, hello_write(&link->hello, bytes)};
    net_stream_write(&link->stream, &frame, 1);
}

/* Both HELLOs are through. */
static void become_up(struct net_link *link)
{
    struct net_hello peer = link->peer_hello;
    net_timer_cancel(link->timeout);
    link->timeout = NULL;
    free(link->greeting);
    link->greeting = NULL;
    link->state = LINK_UP;
    link_server_forget(link);
    link->running = true;
    link->events->up(link->context, link, &peer);
    link->running = false;
    if (link->state == LINK_GONE)
        link_free(link);
}

static void other_version(struct net_link *link, unsigned version)
{
    char text[256];
    link_version_text(text, link->peer, version);
    link_fail(link, NET_LINK_VERSION, text);
}

static void take_hello(struct net_link *link)
{
    unsigned version = 0;
    struct hello_reader *greeting = link->greeting;
    enum hello_verdict verdict = hello_read(&link->peer_hello, greeting->data + FRAME_HEAD_BYTES,
                                            greeting->size - FRAME_HEAD_BYTES, &version);
    if (link->accepted && verdict != HELLO_GARBAGE) {
        /* Also to one of another version, who learns ours from it. */
        link->hello.purpose = verdict == HELLO_GOOD ? link->peer_hello.purpose : NET_CONTROL;
        send_hello(link);
    }
    if (verdict == HELLO_OTHER_VERSION)
        other_version(link, version);
    else if (verdict == HELLO_GARBAGE ||
             (!link->accepted && link->peer_hello.purpose != link->hello.purpose))
        link_fail(link, NET_LINK_BROKEN, NULL);
    else if (net_stream_pending(&link->stream) == 0)
        become_up(link);
}

/* Reads the HELLO and nothing behind it: that may be for a wire. */
static void read_hello(struct net_link *link)
{
    struct hello_reader *greeting = link->greeting;
    size_t wanted = 0, count = 0;
    while (hello_reader_wants(greeting, &wanted) && wanted > 0) {
        enum stream_result result =
            net_stream_read(&link->stream, (char *)greeting->data + greeting->size, wanted, &count);
        if (result == STREAM_LATER)
            return;
        if (result != STREAM_DATA) {
            link_fail(link, result == STREAM_END ? NET_LINK_CLOSED : NET_LINK_RESET, NULL);
            return;
        }
        greeting->size += count;
    }
    if (wanted > 0)
        link_fail(link, NET_LINK_BROKEN, NULL);
    else
        take_hello(link);
}

static bool hello_is_whole(const struct net_link *link)
{
    size_t wanted;
    return hello_reader_wants(link->greeting, &wanted) && wanted == 0;
}

/* ---- Events ---------------------------------------------------------------------------------- */

static void on_read(evutil_socket_t fd, short what, void *context)
{
    struct net_link *link = context;
    (void)fd, (void)what;
    if (link->slow)
        link_fail(link, NET_LINK_SLOW, NULL);
    else if (link->stream.broken)
        link_fail(link, NET_LINK_RESET, NULL);
    else if (link->state == LINK_UP)
        read_frames(link);
    else if (!hello_is_whole(link))
        read_hello(link);
}

static void on_write(evutil_socket_t fd, short what, void *context)
{
    struct net_link *link = context;
    (void)fd, (void)what;
    net_stream_flush(&link->stream);
    if (link->state == LINK_GREETING && net_stream_pending(&link->stream) == 0 &&
        !link->stream.broken && hello_is_whole(link))
        become_up(link);
}

static void greet(struct net_link *link)
{
    struct ssl_st *ssl = link->tls.ssl;
    stop_waiting(link);
    link->tls.ssl = NULL;
    link->state = LINK_GREETING;
    link->streamed = true;
    net_stream_adopt(&link->stream, net_loop_base(link->loop), link->fd, ssl, on_read, on_write,
                     link);
    if (!link->accepted)
        send_hello(link);
}

static void on_ready(evutil_socket_t fd, short what, void *context);

static void wait_for(struct net_link *link, short what)
{
    stop_waiting(link);
    event_assign(&link->event, net_loop_base(link->loop), link->fd, what, on_ready, link);
    event_add(&link->event, NULL);
    link->waiting = true;
}

void link_handshake(struct net_link *link)
{
    enum net_link_fault fault = NET_LINK_RESET;
    link->state = LINK_HANDSHAKE;
    switch (link_tls_handshake(&link->tls, &fault)) {
    case LINK_DONE:
        greet(link);
        break;
    case LINK_WANTS_READ:
        wait_for(link, EV_READ);
        break;
    case LINK_WANTS_WRITE:
        wait_for(link, EV_WRITE);
        break;
    case LINK_FAILED:
        link_fail(link, fault, NULL);
    }
}

static void on_ready(evutil_socket_t fd, short what, void *context)
{
    struct net_link *link = context;
    int reason = link->fault;
    socklen_t size = sizeof reason;
    (void)what;
    link->waiting = false;
    if (link->state == LINK_CONNECTING && reason == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &size) != 0)
        reason = errno;
    if (reason != 0) {
        link->fault = reason;
        link_fail(link, link_connect_fault(reason), NULL);
        return;
    }
    link_handshake(link);
}

void link_begin(struct net_link *link, unsigned timeout_ms)
{
    struct timeval now = {0};
    link->timeout = net_loop_after(link->loop, timeout_ms != 0 ? timeout_ms : LINK_TIMEOUT_MS,
                                   on_timeout, link);
    wait_for(link, link->state == LINK_CONNECTING ? EV_WRITE : EV_READ);
    if (link->timeout == NULL && link->fault == 0)
        link->fault = ENOMEM;
    /* A connect that failed at once is told like any other, from the loop. */
    if (link->fault != 0)
        event_add(&link->event, &now);
}

/* ---- Connecting ------------------------------------------------------------------------------ */

/* errno of a connect that failed at once, 0 where it is under way or done. */
static int start_connect(int fd, const struct sockaddr_storage *to, socklen_t size)
{
    if (connect(fd, (const struct sockaddr *)to, size) == 0 || errno == EINPROGRESS ||
        errno == EINTR)
        return 0;
    return errno;
}

enum status net_link_connect(struct net_link **out, struct net_loop *loop, const char *address,
                             const struct net_link_key *key, const struct net_link_options *options,
                             struct error *error)
{
    char host[ADDRESS_HOST_BYTES];
    unsigned port = 0;
    uint8_t bytes[HELLO_OUR_BYTES];
    struct sockaddr_storage to;
    socklen_t size;
    if (!address_split(address, host, &port) || port == 0 ||
        !address_numeric(host, port, &to, &size))
        return error_set(error, STATUS_INVALID, "%s is no numeric address of a node", address);
    if (hello_write(&options->hello, bytes) == 0)
        return error_set(error, STATUS_INVALID, "the HELLO for %s is not valid", address);
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    if (fd < 0)
        return error_set(error, STATUS_IO, "no socket for %s: %s", address, strerror(errno));
    evutil_make_socket_closeonexec(fd);
    evutil_make_socket_nonblocking(fd);
    struct net_link *link = link_new(loop, fd, options);
    enum status status = error_memory(error, sizeof *link);
    if (link != NULL) {
        link->tls.key = *key;
        address_text((struct sockaddr *)&to, true, link->peer);
        status = link_tls_open(&link->tls, fd, error);
    }
    if (status != STATUS_OK) {
        close(fd);
        if (link != NULL)
            link_free(link);
        return status;
    }
    link->fault = start_connect(fd, &to, size);
    link_begin(link, options->timeout_ms);
    *out = link;
    return STATUS_OK;
}

/* ---- Use ------------------------------------------------------------------------------------- */

bool net_link_send(struct net_link *link, uint8_t type, struct view message)
{
    uint8_t head[FRAME_HEAD_BYTES];
    if (link->state != LINK_UP || link->slow || link->stream.broken || type == HELLO_TYPE ||
        message.size > link->reader.limit)
        return false;
    if (net_stream_pending(&link->stream) + message.size > link->pending_bytes) {
        link->slow = true;
        net_stream_wake(&link->stream);
        return false;
    }
    frame_head_write(head, message.size, type);
    struct view parts[] = {{(const char *)head, sizeof head}, message};
    net_stream_write(&link->stream, parts, message.size > 0 ? 2 : 1);
    return !link->stream.broken;
}

size_t net_link_pending(const struct net_link *link)
{
    return link->streamed ? net_stream_pending(&link->stream) : 0;
}

const char *net_link_peer(const struct net_link *link)
{
    return link->peer;
}

const char *net_link_identity(const struct net_link *link)
{
    return link->tls.key.identity;
}

bool net_link_accepted(const struct net_link *link)
{
    return link->accepted;
}

void net_link_set_context(struct net_link *link, void *context)
{
    link->context = context;
}

void *net_link_context(const struct net_link *link)
{
    return link->context;
}

struct net_wire *net_link_detach(struct net_link *link)
{
    struct net_wire *wire = wire_new(link->stream.fd, link->stream.ssl, link->peer);
    if (wire == NULL)
        return NULL;
    if (link->hello.trusted && link->peer_hello.trusted)
        wire_trust(wire);
    wire_prepare(wire);
    leave(link);
    return wire;
}
