/* Addresses to listen on. */
#include "net/address.h"
#include "net/stream.h"

#include <errno.h>
#include <event2/util.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned bound_port(int fd)
{
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    if (getsockname(fd, (struct sockaddr *)&bound, &size) != 0)
        return 0;
    return address_port((struct sockaddr *)&bound);
}

/* A bound socket, or -1 with errno. */
static int bind_one(const struct addrinfo *found, unsigned port)
{
    struct sockaddr_storage where;
    memcpy(&where, found->ai_addr, found->ai_addrlen);
    if (found->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&where)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)&where)->sin_port = htons((uint16_t)port);
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (fd < 0)
        return -1;
    int on = 1;
    evutil_make_socket_closeonexec(fd);
    evutil_make_socket_nonblocking(fd);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (found->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&where, found->ai_addrlen) != 0) {
        int reason = errno;
        close(fd);
        errno = reason;
        return -1;
    }
    return fd;
}

enum status listen_fault(const char *address, int reason, struct error *error)
{
    if (reason == EADDRINUSE)
        return error_set(error, STATUS_IO,
                         "%s is taken by another program; stop it or listen on another port",
                         address);
    return error_set(error, STATUS_IO, "cannot listen on %s: %s", address, strerror(reason));
}

enum status listen_open(const char *address, int *fds, size_t max, size_t *count, unsigned *port,
                        struct error *error)
{
    char host[ADDRESS_HOST_BYTES];
    if (!address_split(address, host, port))
        return error_set(error, STATUS_INVALID,
                         "%s is no address to listen on: write host:port, such as 127.0.0.1:4000 "
                         "or [::1]:4000",
                         address);
    struct addrinfo *found = NULL;
    struct addrinfo hints = {.ai_family = host[0] == '\0' ? AF_INET : AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE};
    if (max == 0)
        return error_set(error, STATUS_LIMIT, "cannot listen on %s: there are too many addresses",
                         address);
    int fault = getaddrinfo(host[0] == '\0' ? NULL : host, "0", &hints, &found);
    if (fault != 0)
        return error_set(error, STATUS_NOT_FOUND, "%s: the name %s is not known: %s", address, host,
                         gai_strerror(fault));
    /* A name such as localhost may have several addresses; one that this machine can serve is
     * enough. */
    int reason = 0;
    *count = 0;
    for (const struct addrinfo *one = found; one != NULL && *count < max; one = one->ai_next) {
        int fd = bind_one(one, *port);
        if (fd < 0) {
            reason = errno;
            if (reason == EADDRINUSE)
                break;
            continue;
        }
        fds[(*count)++] = fd;
        if (*port == 0)
            *port = bound_port(fd);
    }
    freeaddrinfo(found);
    if (*count > 0 && reason != EADDRINUSE)
        return STATUS_OK;
    while (*count > 0)
        close(fds[--*count]);
    return listen_fault(address, reason, error);
}
