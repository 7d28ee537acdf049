/* What a server on libevent can reach at most: it answers each "\r\n\r\n" with the same bytes,
 * without looking at the request.
 *
 *   http_floor events|bufferevents     prints its port, and answers until it is stopped
 *
 * "events" reads and writes the socket itself as soon as libevent tells that it may; "bufferevents"
 * leaves that to libevent.
 */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static const char answer[] = "HTTP/1.1 200 OK\r\n"
                             "Date: Sat, 21 Nov 2026 05:19:55 GMT\r\n"
                             "Content-Type: text/plain\r\n"
                             "Content-Length: 5\r\n"
                             "\r\n"
                             "hello";

struct client {
    struct event *event;
};

static void on_event(evutil_socket_t fd, short what, void *context)
{
    struct client *client = context;
    char data[65536];
    (void)what;
    ssize_t n = recv(fd, data, sizeof data, 0);
    if (n < 4 || send(fd, answer, sizeof answer - 1, 0) < 0) {
        event_free(client->event);
        evutil_closesocket(fd);
        free(client);
    }
}

static void on_data(struct bufferevent *stream, void *context)
{
    struct evbuffer *input = bufferevent_get_input(stream);
    (void)context;
    for (;;) {
        struct evbuffer_ptr end = evbuffer_search(input, "\r\n\r\n", 4, NULL);
        if (end.pos < 0)
            return;
        evbuffer_drain(input, (size_t)end.pos + 4);
        bufferevent_write(stream, answer, sizeof answer - 1);
    }
}

static void on_end(struct bufferevent *stream, short what, void *context)
{
    (void)what, (void)context;
    bufferevent_free(stream);
}

static void accept_events(struct evconnlistener *listener, evutil_socket_t fd,
                          struct sockaddr *peer, int size, void *context)
{
    struct client *client = malloc(sizeof *client);
    (void)peer, (void)size, (void)context;
    client->event =
        event_new(evconnlistener_get_base(listener), fd, EV_READ | EV_PERSIST, on_event, client);
    event_add(client->event, NULL);
}

static void accept_bufferevents(struct evconnlistener *listener, evutil_socket_t fd,
                                struct sockaddr *peer, int size, void *context)
{
    struct bufferevent *stream =
        bufferevent_socket_new(evconnlistener_get_base(listener), fd, BEV_OPT_CLOSE_ON_FREE);
    int on = 1;
    (void)peer, (void)size, (void)context;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bufferevent_setcb(stream, on_data, NULL, on_end, NULL);
    bufferevent_enable(stream, EV_READ | EV_WRITE);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof where;
    int events = argc == 2 && strcmp(argv[1], "events") == 0;
    signal(SIGPIPE, SIG_IGN);
    struct evconnlistener *listener = evconnlistener_new_bind(
        base, events ? accept_events : accept_bufferevents, NULL,
        LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 1024, (struct sockaddr *)&where, sizeof where);
    if (listener == NULL ||
        getsockname(evconnlistener_get_fd(listener), (struct sockaddr *)&where, &size) != 0)
        return 1;
    printf("%u\n", ntohs(where.sin_port));
    fflush(stdout);
    event_base_dispatch(base);
    return 0;
}
