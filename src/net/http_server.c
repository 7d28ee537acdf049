#include "net/http_internal.h"

#include <errno.h>
#include <event2/listener.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BACKLOG = 4096,
    PAUSE_MS = 100,     /* between two tries to accept, where descriptors or places are missing */
    MIN_IDLE_MS = 1000, /* before an idle connection is closed for a new one */
    MIN_TICK_MS = 10,
    MAX_TICK_MS = 1000,
    KEPT_DESCRIPTORS = 64, /* for files and other sockets of the process */
};

uint64_t server_now_ms(void)
{
    return clock_now_ns() / 1000000;
}

/* ---- Idle connections ---- */

void server_add_idle(struct http_server *server, struct connection *c)
{
    c->idle_next = NULL;
    c->idle_previous = server->idle_last;
    if (server->idle_last != NULL)
        server->idle_last->idle_next = c;
    else
        server->idle_first = c;
    server->idle_last = c;
}

void server_remove_idle(struct http_server *server, struct connection *c)
{
    if (c->idle_previous == NULL && server->idle_first != c)
        return;
    if (c->idle_next != NULL)
        c->idle_next->idle_previous = c->idle_previous;
    else
        server->idle_last = c->idle_previous;
    if (c->idle_previous != NULL)
        c->idle_previous->idle_next = c->idle_next;
    else
        server->idle_first = c->idle_next;
    c->idle_next = c->idle_previous = NULL;
}

/* ---- Accepting ---- */

static void set_accepting(struct http_server *server, bool accepting)
{
    for (size_t i = 0; i < server->n_listeners; i++) {
        if (accepting)
            evconnlistener_enable(server->listeners[i].accepting);
        else
            evconnlistener_disable(server->listeners[i].accepting);
    }
}

/* No descriptor or no place is free: makes room for the next client, or waits a moment rather than
 * being told of the same one again and again. A connection that was idle only for a moment stays:
 * its request may lie in the socket, not read yet. */
static void make_room(struct http_server *server)
{
    uint64_t now_ms = server_now_ms();
    for (struct connection *c = server->idle_first;
         c != NULL && now_ms - c->idle_since_ms >= MIN_IDLE_MS; c = c->idle_next) {
        if (net_stream_pending(&c->stream) == 0) {
            connection_close(c);
            return;
        }
    }
    struct timeval delay = net_timeval(PAUSE_MS);
    set_accepting(server, false);
    evtimer_add(&server->resume, &delay);
}

static void on_resume(evutil_socket_t fd, short what, void *context)
{
    struct http_server *server = context;
    (void)fd, (void)what;
    set_accepting(server, true);
}

static void on_accept(struct evconnlistener *accepting, evutil_socket_t fd, struct sockaddr *peer,
                      int size, void *context)
{
    struct http_server *server = context;
    (void)accepting, (void)size;
    if (server->n_connections >= server->options.connections)
        make_room(server);
    connection_open(server, fd, peer);
}

static void on_accept_error(struct evconnlistener *accepting, void *context)
{
    (void)accepting;
    make_room(context);
}

/* ---- Deadlines ---- */

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    struct http_server *server = context;
    uint64_t now_ms = server_now_ms();
    (void)fd, (void)what;
    struct connection *next;
    for (struct connection *c = server->connections; c != NULL; c = next) {
        next = c->next;
        connection_check(c, now_ms);
    }
}

/* ---- Opening ---- */

static void fill_defaults(struct http_options *options)
{
    const struct {
        size_t *value;
        size_t otherwise;
    } sizes[] = {
        {&options->header_bytes, 64 << 10},  {&options->body_bytes, 64 << 20},
        {&options->all_body_bytes, 1 << 30}, {&options->pending_bytes, 16 << 20},
        {&options->connections, 16384},
    };
    const struct {
        unsigned *value;
        unsigned otherwise;
    } times[] = {
        {&options->idle_timeout_ms, 75000},
        {&options->request_timeout_ms, 30000},
        {&options->write_timeout_ms, 60000},
    };
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        if (*sizes[i].value == 0)
            *sizes[i].value = sizes[i].otherwise;
    for (size_t i = 0; i < ARRAY_COUNT(times); i++)
        if (*times[i].value == 0)
            *times[i].value = times[i].otherwise;
    options->header_bytes = MIN(options->header_bytes, (size_t)UINT32_MAX);
}

static void start_tick(struct http_server *server)
{
    const struct http_options *options = &server->options;
    unsigned shortest = MIN(options->idle_timeout_ms, options->request_timeout_ms);
    shortest = MIN(shortest, options->write_timeout_ms);
    unsigned tick_ms = MIN(MAX(shortest / 4, (unsigned)MIN_TICK_MS), (unsigned)MAX_TICK_MS);
    struct timeval period = net_timeval(tick_ms);
    event_assign(&server->tick, server->base, -1, EV_PERSIST, on_tick, server);
    event_add(&server->tick, &period);
}

static void on_drain(evutil_socket_t fd, short what, void *context);

enum status http_server_open(struct http_server **out, struct net_loop *loop,
                             const struct http_options *options, struct error *error)
{
    struct http_server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return error_memory(error, sizeof *server);
    server->loop = loop;
    server->base = net_loop_base(loop);
    server->options = *options;
    fill_defaults(&server->options);
    server->limits = (struct http_limits){server->options.header_bytes, server->options.body_bytes};
    if (options->tls_certificate != NULL || options->tls_key != NULL) {
        enum status status = STATUS_OK;
        if (options->tls_certificate == NULL || options->tls_key == NULL)
            status = error_set(error, STATUS_INVALID,
                               "TLS needs both a certificate and its key; one of them is missing");
        else
            status =
                tls_server_open(&server->tls, options->tls_certificate, options->tls_key, error);
        if (status != STATUS_OK) {
            free(server);
            return status;
        }
    }
    net_raise_descriptors(server->options.connections + KEPT_DESCRIPTORS);
    evtimer_assign(&server->resume, server->base, on_resume, server);
    evtimer_assign(&server->drain, server->base, on_drain, server);
    start_tick(server);
    *out = server;
    return STATUS_OK;
}

/* Frees the listeners from the count-th on. */
static void close_listeners(struct http_server *server, size_t count)
{
    while (server->n_listeners > count)
        evconnlistener_free(server->listeners[--server->n_listeners].accepting);
}

enum status http_server_listen(struct http_server *server, const char *address, struct error *error)
{
    int fds[MAX_LISTENERS];
    size_t count = 0, before = server->n_listeners;
    unsigned port = 0;
    enum status status = listen_open(address, fds, MAX_LISTENERS - before, &count, &port, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < count; i++) {
        struct evconnlistener *accepting =
            evconnlistener_new(server->base, on_accept, server,
                               LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, BACKLOG, fds[i]);
        if (accepting == NULL) {
            status = listen_fault(address, errno, error);
            close(fds[i]);
            continue;
        }
        evconnlistener_set_error_cb(accepting, on_accept_error);
        server->listeners[server->n_listeners++] =
            (struct listener){accepting, port, server->n_addresses};
    }
    if (status == STATUS_OK)
        server->n_addresses++;
    else
        close_listeners(server, before);
    return status;
}

unsigned http_server_port(const struct http_server *server, size_t index)
{
    for (size_t i = 0; i < server->n_listeners; i++)
        if (server->listeners[i].address == index)
            return server->listeners[i].port;
    return 0;
}

size_t http_server_connections(const struct http_server *server)
{
    return server->n_connections;
}

/* ---- Closing ---- */

static void stop_accepting(struct http_server *server)
{
    event_del(&server->resume);
    close_listeners(server, 0);
}

static void on_drain(evutil_socket_t fd, short what, void *context)
{
    struct http_server *server = context;
    (void)fd, (void)what;
    net_fn *done = server->drain_done;
    server->drain_done = NULL;
    event_del(&server->drain);
    if (done != NULL)
        done(server->drain_context);
}

void server_connection_left(struct http_server *server)
{
    if (server->draining && server->n_connections == 0)
        event_active(&server->drain, EV_TIMEOUT, 0);
}

void http_server_drain(struct http_server *server, uint64_t deadline_ms, net_fn *done,
                       void *context)
{
    struct timeval deadline = net_timeval(deadline_ms);
    server->draining = true;
    server->drain_done = done;
    server->drain_context = context;
    stop_accepting(server);
    struct connection *next;
    for (struct connection *c = server->idle_first; c != NULL; c = next) {
        next = c->idle_next;
        if (net_stream_pending(&c->stream) > 0)
            connection_finish(c);
        else
            connection_doom(c);
    }
    evtimer_add(&server->drain, &deadline);
    server_connection_left(server);
}

void http_server_close(struct http_server *server)
{
    if (server == NULL)
        return;
    stop_accepting(server);
    server->draining = false;
    while (server->connections != NULL)
        connection_close(server->connections);
    event_del(&server->drain);
    event_del(&server->tick);
    while (server->spare != NULL) {
        struct http_exchange *exchange = server->spare;
        server->spare = exchange->next_spare;
        exchange_free(exchange);
    }
    tls_server_close(server->tls);
    buffer_free(&server->head);
    free(server);
}
