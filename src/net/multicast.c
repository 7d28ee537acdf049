/* Each family has a socket that receives, which is bound to the port and joins the group on every
 * interface, and one that sends, which is told the interface before each datagram. A socket may
 * join only so many groups (20 on Linux), and an interface may refuse; what could not be joined is
 * tried again when the interfaces are looked at. */
#include "net/address.h"
#include "net/internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_JOINED = 32,
    DEFAULT_REFRESH_MS = 2000,
    MAX_AT_ONCE = 64, /* datagrams taken before others have their turn */
};

struct group {
    int family; /* 0: not used */
    struct sockaddr_storage address;
    socklen_t size;
    int receiving, sending; /* sockets */
    struct event event;
    unsigned joined[MAX_JOINED]; /* interfaces by the system's index */
    size_t n_joined;
};

struct net_multicast {
    struct net_loop *loop;
    struct net_multicast_options options;
    struct group groups[2];
    struct net_timer *refresh;
    bool running; /* received is on the stack */
    bool closed;
};

/* ---- Sockets --------------------------------------------------------------------------------- */

static bool set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) == 0;
}

/* Several nodes of one machine have the same port. */
static bool share_port(int fd)
{
    bool done = set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
#ifdef __APPLE__
    done = done && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
#endif
    return done;
}

static int open_receiving(const struct group *group)
{
    int fd = socket(group->family, SOCK_DGRAM, 0);
    struct sockaddr_storage any = group->address;
    if (fd < 0)
        return -1;
    evutil_make_socket_closeonexec(fd);
    evutil_make_socket_nonblocking(fd);
    bool done = share_port(fd);
    if (group->family == AF_INET6) {
        ((struct sockaddr_in6 *)&any)->sin6_addr = in6addr_any;
        done = done && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
#ifdef IPV6_MULTICAST_ALL
        set_int(fd, IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0);
#endif
    } else {
#ifdef IP_MULTICAST_ALL
        set_int(fd, IPPROTO_IP, IP_MULTICAST_ALL, 0);
#endif
#ifdef __APPLE__
        ((struct sockaddr_in *)&any)->sin_addr.s_addr = htonl(INADDR_ANY);
#endif
    }
    if (done && bind(fd, (struct sockaddr *)&any, group->size) == 0)
        return fd;
    close(fd);
    return -1;
}

static int open_sending(const struct group *group)
{
    int fd = socket(group->family, SOCK_DGRAM, 0);
    unsigned char one = 1;
    if (fd < 0)
        return -1;
    evutil_make_socket_closeonexec(fd);
    evutil_make_socket_nonblocking(fd);
    bool done = group->family == AF_INET6
                    ? set_int(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 1) &&
                          set_int(fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 1)
                    : setsockopt(fd, IPPROTO_IP, IP_MULTICAST_TTL, &one, sizeof one) == 0 &&
                          setsockopt(fd, IPPROTO_IP, IP_MULTICAST_LOOP, &one, sizeof one) == 0;
    if (done)
        return fd;
    close(fd);
    return -1;
}

static void close_group(struct group *group)
{
    if (group->family == 0)
        return;
    event_del(&group->event);
    close(group->receiving);
    close(group->sending);
    group->family = 0;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

static void on_datagram(evutil_socket_t fd, short what, void *context)
{
    struct net_multicast *multicast = context;
    (void)what;
    for (int i = 0; i < MAX_AT_ONCE; i++) {
        char data[NET_DATAGRAM_BYTES + 1], from[NET_ADDRESS_BYTES];
        struct sockaddr_storage sender;
        socklen_t size = sizeof sender;
        ssize_t n = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&sender, &size);
        if (n < 0)
            return;
        if (n > NET_DATAGRAM_BYTES)
            continue;
        address_text((struct sockaddr *)&sender, true, from);
        multicast->running = true;
        multicast->options.received(multicast->options.context, (struct view){data, (size_t)n},
                                    from);
        multicast->running = false;
        if (multicast->closed) {
            free(multicast);
            return;
        }
    }
}

/* ---- Interfaces ------------------------------------------------------------------------------ */

/* True where the group is joined on the interface afterwards (or, with join false, was left). */
static bool change_membership(struct group *group, unsigned index, bool join)
{
    if (group->family == AF_INET6) {
        struct ipv6_mreq request = {.ipv6mr_multiaddr =
                                        ((struct sockaddr_in6 *)&group->address)->sin6_addr,
                                    .ipv6mr_interface = index};
        return setsockopt(group->receiving, IPPROTO_IPV6, join ? IPV6_JOIN_GROUP : IPV6_LEAVE_GROUP,
                          &request, sizeof request) == 0 ||
               errno == EADDRINUSE;
    }
    struct ip_mreqn request = {.imr_multiaddr = ((struct sockaddr_in *)&group->address)->sin_addr,
                               .imr_ifindex = (int)index};
    return setsockopt(group->receiving, IPPROTO_IP, join ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP,
                      &request, sizeof request) == 0 ||
           errno == EADDRINUSE;
}

static bool holds(const unsigned *indexes, size_t n, unsigned index)
{
    for (size_t i = 0; i < n; i++)
        if (indexes[i] == index)
            return true;
    return false;
}

/* The interfaces that can take the group now. */
static size_t usable(const struct ifaddrs *entries, int family, unsigned out[MAX_JOINED])
{
    size_t n = 0;
    for (const struct ifaddrs *entry = entries; entry != NULL && n < MAX_JOINED;
         entry = entry->ifa_next) {
        unsigned flags = entry->ifa_flags;
        if ((flags & IFF_UP) == 0 || (flags & (IFF_MULTICAST | IFF_LOOPBACK)) == 0 ||
            entry->ifa_addr == NULL || entry->ifa_addr->sa_family != family)
            continue;
        unsigned index = if_nametoindex(entry->ifa_name);
        if (index != 0 && !holds(out, n, index))
            out[n++] = index;
    }
    return n;
}

static void update_group(struct group *group, const struct ifaddrs *entries)
{
    unsigned now[MAX_JOINED], joined[MAX_JOINED];
    size_t n_now = usable(entries, group->family, now), n_joined = 0;
    for (size_t i = 0; i < group->n_joined; i++)
        if (!holds(now, n_now, group->joined[i]))
            change_membership(group, group->joined[i], false);
    for (size_t i = 0; i < n_now; i++)
        if (holds(group->joined, group->n_joined, now[i]) || change_membership(group, now[i], true))
            joined[n_joined++] = now[i];
    memcpy(group->joined, joined, n_joined * sizeof *joined);
    group->n_joined = n_joined;
}

static void look(void *context)
{
    struct net_multicast *multicast = context;
    struct ifaddrs *entries;
    if (getifaddrs(&entries) == 0) {
        for (size_t i = 0; i < ARRAY_COUNT(multicast->groups); i++)
            if (multicast->groups[i].family != 0)
                update_group(&multicast->groups[i], entries);
        freeifaddrs(entries);
    }
    multicast->refresh =
        net_loop_after(multicast->loop, multicast->options.refresh_ms, look, multicast);
}

/* ---- Opening and closing --------------------------------------------------------------------- */

static bool open_group(struct net_multicast *multicast, struct group *group, const char *text)
{
    struct sockaddr_storage address;
    if (text == NULL || !address_numeric(text, multicast->options.port, &address, &group->size))
        return false;
    group->address = address;
    group->family = address.ss_family;
    group->receiving = open_receiving(group);
    group->sending = open_sending(group);
    if (group->receiving < 0 || group->sending < 0) {
        if (group->receiving >= 0)
            close(group->receiving);
        if (group->sending >= 0)
            close(group->sending);
        group->family = 0;
        return false;
    }
    event_assign(&group->event, net_loop_base(multicast->loop), group->receiving,
                 EV_READ | EV_PERSIST, on_datagram, multicast);
    event_add(&group->event, NULL);
    return true;
}

enum status net_multicast_open(struct net_multicast **out, struct net_loop *loop,
                               const struct net_multicast_options *options, struct error *error)
{
    struct net_multicast *multicast = calloc(1, sizeof *multicast);
    if (multicast == NULL)
        return error_memory(error, sizeof *multicast);
    multicast->loop = loop;
    multicast->options = *options;
    if (multicast->options.refresh_ms == 0)
        multicast->options.refresh_ms = DEFAULT_REFRESH_MS;
    bool four = open_group(multicast, &multicast->groups[0], options->group4);
    int reason = errno;
    if (!open_group(multicast, &multicast->groups[1], options->group6) && !four) {
        free(multicast);
        return error_set(error, STATUS_IO, "no multicast on port %u: %s", options->port,
                         strerror(reason));
    }
    look(multicast);
    *out = multicast;
    return STATUS_OK;
}

void net_multicast_close(struct net_multicast *multicast)
{
    if (multicast == NULL)
        return;
    net_timer_cancel(multicast->refresh);
    for (size_t i = 0; i < ARRAY_COUNT(multicast->groups); i++)
        close_group(&multicast->groups[i]);
    multicast->closed = true;
    if (!multicast->running)
        free(multicast);
}

/* ---- Sending --------------------------------------------------------------------------------- */

static bool send_on(const struct group *group, unsigned index, struct view datagram)
{
    struct sockaddr_storage to = group->address;
    bool chosen;
    if (group->family == AF_INET6) {
        ((struct sockaddr_in6 *)&to)->sin6_scope_id = index;
        chosen = set_int(group->sending, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)index);
    } else {
        struct ip_mreqn request = {.imr_ifindex = (int)index};
        chosen =
            setsockopt(group->sending, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof request) == 0;
    }
    return chosen && sendto(group->sending, datagram.data, datagram.size, 0, (struct sockaddr *)&to,
                            group->size) == (ssize_t)datagram.size;
}

size_t net_multicast_send(struct net_multicast *multicast, struct view datagram)
{
    size_t n = 0;
    if (datagram.size > NET_DATAGRAM_BYTES)
        return 0;
    for (size_t i = 0; i < ARRAY_COUNT(multicast->groups); i++) {
        const struct group *group = &multicast->groups[i];
        for (size_t k = 0; group->family != 0 && k < group->n_joined; k++)
            n += send_on(group, group->joined[k], datagram);
    }
    return n;
}

size_t net_multicast_joined(const struct net_multicast *multicast)
{
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_COUNT(multicast->groups); i++)
        if (multicast->groups[i].family != 0)
            n += multicast->groups[i].n_joined;
    return n;
}
