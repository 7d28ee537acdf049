/* A wire from the side that connects, all on the thread that will own it. */
#include "net/address.h"
#include "net/link_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint64_t ns_per_ms = 1000000;

struct attempt {
    const char *address;
    uint64_t deadline_ns;
    int fd;
    struct link_tls tls;
    enum net_link_fault fault;
    int reason;     /* errno behind it, or 0 */
    char text[256]; /* a sentence of its own, or empty */
};

static bool fails(struct attempt *attempt, enum net_link_fault fault, int reason)
{
    attempt->fault = fault;
    attempt->reason = reason;
    return false;
}

/* False where the deadline passed. */
static bool wait_for(struct attempt *attempt, short events)
{
    for (;;) {
        uint64_t now = clock_now_ns();
        if (now >= attempt->deadline_ns)
            return fails(attempt, NET_LINK_TIMEOUT, 0);
        struct pollfd one = {.fd = attempt->fd, .events = events};
        uint64_t left_ms = (attempt->deadline_ns - now) / ns_per_ms + 1;
        if (poll(&one, 1, (int)MIN(left_ms, (uint64_t)60000)) > 0)
            return true;
    }
}

static bool bind_from(struct attempt *attempt, const char *from)
{
    struct sockaddr_storage address;
    socklen_t size;
    if (from == NULL)
        return true;
    if (!address_numeric(from, 0, &address, &size))
        return fails(attempt, NET_LINK_LOCAL, EINVAL);
    return bind(attempt->fd, (struct sockaddr *)&address, size) == 0 ||
           fails(attempt, NET_LINK_LOCAL, errno);
}

static bool connect_to(struct attempt *attempt, const char *from, const char *interface)
{
    char host[ADDRESS_HOST_BYTES];
    unsigned port = 0;
    struct sockaddr_storage to;
    socklen_t size;
    int reason = 0;
    if (!address_split(attempt->address, host, &port) || port == 0 ||
        !address_numeric(host, port, &to, &size))
        return fails(attempt, NET_LINK_LOCAL, EINVAL);
    attempt->fd = socket(to.ss_family, SOCK_STREAM, 0);
    if (attempt->fd < 0)
        return fails(attempt, NET_LINK_LOCAL, errno);
    evutil_make_socket_closeonexec(attempt->fd);
    evutil_make_socket_nonblocking(attempt->fd);
    if (interface != NULL)
        net_interface_bind(attempt->fd, to.ss_family, interface);
    if (!bind_from(attempt, from))
        return false;
    if (connect(attempt->fd, (struct sockaddr *)&to, size) != 0) {
        if (errno != EINPROGRESS && errno != EINTR)
            return fails(attempt, link_connect_fault(errno), errno);
        if (!wait_for(attempt, POLLOUT))
            return false;
    }
    size = sizeof reason;
    if (getsockopt(attempt->fd, SOL_SOCKET, SO_ERROR, &reason, &size) != 0)
        reason = errno;
    return reason == 0 || fails(attempt, link_connect_fault(reason), reason);
}

static bool shake_hands(struct attempt *attempt)
{
    struct error error;
    if (link_tls_open(&attempt->tls, attempt->fd, &error) != STATUS_OK)
        return fails(attempt, NET_LINK_LOCAL, 0);
    for (;;) {
        enum net_link_fault fault = NET_LINK_RESET;
        switch (link_tls_handshake(&attempt->tls, &fault)) {
        case LINK_DONE:
            return true;
        case LINK_WANTS_READ:
            if (!wait_for(attempt, POLLIN))
                return false;
            break;
        case LINK_WANTS_WRITE:
            if (!wait_for(attempt, POLLOUT))
                return false;
            break;
        case LINK_FAILED:
            return fails(attempt, fault, 0);
        }
    }
}

/* The fault of a receive or send that failed. */
static bool wire_fails(struct attempt *attempt)
{
    return fails(attempt,
                 clock_now_ns() >= attempt->deadline_ns ? NET_LINK_TIMEOUT : NET_LINK_RESET, 0);
}

static bool greet(struct attempt *attempt, struct net_wire *wire, const struct net_hello *ours,
                  struct net_hello *peer)
{
    uint8_t bytes[HELLO_OUR_BYTES];
    struct hello_reader greeting;
    unsigned version = 0;
    size_t wanted = 0;
    greeting.size = 0;
    if (net_wire_send(wire, bytes, hello_write(ours, bytes), attempt->deadline_ns, NULL) !=
        STATUS_OK)
        return wire_fails(attempt);
    while (hello_reader_wants(&greeting, &wanted) && wanted > 0) {
        if (net_wire_receive(wire, greeting.data + greeting.size, wanted, attempt->deadline_ns,
                             NULL) != STATUS_OK)
            return wire_fails(attempt);
        greeting.size += wanted;
    }
    if (wanted > 0)
        return fails(attempt, NET_LINK_BROKEN, 0);
    switch (hello_read(peer, greeting.data + FRAME_HEAD_BYTES, greeting.size - FRAME_HEAD_BYTES,
                       &version)) {
    case HELLO_GOOD:
        return peer->purpose == ours->purpose || fails(attempt, NET_LINK_BROKEN, 0);
    case HELLO_OTHER_VERSION:
        link_version_text(attempt->text, attempt->address, version);
        return fails(attempt, NET_LINK_VERSION, 0);
    default:
        return fails(attempt, NET_LINK_BROKEN, 0);
    }
}

/* NULL where it fails; attempt says why. */
static struct net_wire *try_to_connect(struct attempt *attempt,
                                       const struct net_wire_options *options,
                                       struct net_hello *peer)
{
    if (!connect_to(attempt, options->from, options->interface) || !shake_hands(attempt))
        return NULL;
    struct net_wire *wire = wire_new(attempt->fd, attempt->tls.ssl, attempt->address);
    if (wire == NULL) {
        fails(attempt, NET_LINK_LOCAL, ENOMEM);
        return NULL;
    }
    attempt->fd = -1;
    attempt->tls.ssl = NULL;
    bool good = greet(attempt, wire, &options->hello, peer);
    if (good && options->node != NULL && memcmp(options->node, peer->node, NET_NODE_BYTES) != 0) {
        snprintf(attempt->text, sizeof attempt->text, "at %s is another node", attempt->address);
        good = fails(attempt, NET_LINK_STRANGER, 0);
    }
    if (!good) {
        net_wire_close(wire);
        return NULL;
    }
    if (options->hello.trusted && peer->trusted)
        wire_trust(wire);
    wire_prepare(wire);
    return wire;
}

enum status net_wire_connect(struct net_wire **out, const char *address,
                             const struct net_link_key *key, const struct net_wire_options *options,
                             struct net_hello *peer, enum net_link_fault *fault,
                             struct error *error)
{
    struct net_hello theirs;
    uint8_t bytes[HELLO_OUR_BYTES];
    struct attempt attempt = {
        .address = address,
        .deadline_ns = options->deadline_ns,
        .fd = -1,
        .tls = {.key = *key},
    };
    if (hello_write(&options->hello, bytes) == 0)
        return error_set(error, STATUS_INVALID, "the HELLO for %s is not valid", address);
    if (attempt.deadline_ns == 0)
        attempt.deadline_ns = clock_now_ns() + LINK_TIMEOUT_MS * ns_per_ms;
    *out = try_to_connect(&attempt, options, &theirs);
    link_tls_close(&attempt.tls);
    if (attempt.fd >= 0)
        close(attempt.fd);
    if (*out != NULL) {
        if (peer != NULL)
            *peer = theirs;
        return STATUS_OK;
    }
    if (fault != NULL)
        *fault = attempt.fault;
    if (attempt.text[0] == '\0')
        link_fault_text(attempt.text, address, attempt.fault, attempt.reason);
    return error_set(error, STATUS_LOST, "%s", attempt.text);
}
