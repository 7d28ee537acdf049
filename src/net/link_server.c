/* Accepting links. */
#include "net/address.h"
#include "net/link_internal.h"

#include <errno.h>
#include <event2/listener.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_LISTENERS = 16,
    BACKLOG = 256,
    PAUSE_MS = 100,
    DEFAULT_LINKS = 256,
};

struct net_link_server {
    struct net_loop *loop;
    struct net_link_server_options options;
    struct evconnlistener *listeners[MAX_LISTENERS];
    size_t n_listeners;
    unsigned port;
    struct net_link *links; /* under way */
    size_t n_links;
    struct net_timer *resume; /* not accepting until then */
    bool full;                /* not accepting until a link is up or gone */
};

static void set_accepting(struct net_link_server *server, bool accepting)
{
    for (size_t i = 0; i < server->n_listeners; i++) {
        if (accepting)
            evconnlistener_enable(server->listeners[i]);
        else
            evconnlistener_disable(server->listeners[i]);
    }
}

static void on_resume(void *context)
{
    struct net_link_server *server = context;
    server->resume = NULL;
    if (!server->full)
        set_accepting(server, true);
}

/* No descriptor or no memory is free: rather than being told of the same client again and again. */
static void on_accept_error(struct evconnlistener *listener, void *context)
{
    struct net_link_server *server = context;
    (void)listener;
    set_accepting(server, false);
    if (server->resume == NULL)
        server->resume = net_loop_after(server->loop, PAUSE_MS, on_resume, server);
}

void link_server_forget(struct net_link *link)
{
    struct net_link_server *server = link->server;
    if (server == NULL)
        return;
    if (link->next != NULL)
        link->next->previous = link->previous;
    if (link->previous != NULL)
        link->previous->next = link->next;
    else
        server->links = link->next;
    link->server = NULL;
    server->n_links--;
    if (server->full) {
        server->full = false;
        if (server->resume == NULL)
            set_accepting(server, true);
    }
}

void link_server_refused(struct net_link_server *server, const char *peer,
                         enum net_link_fault fault, const char *text)
{
    const struct net_link_options *options = &server->options.link;
    if (options->events->refused != NULL)
        options->events->refused(options->context, peer, fault, text);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *peer,
                      int size, void *context)
{
    struct net_link_server *server = context;
    struct error error;
    (void)listener, (void)size;
    struct net_link *link = link_new(server->loop, fd, &server->options.link);
    if (link == NULL) {
        close(fd);
        return;
    }
    link->accepted = true;
    link->state = LINK_HANDSHAKE;
    link->tls.server = true;
    link->tls.find_key = server->options.find_key;
    link->tls.context = server->options.link.context;
    address_text(peer, true, link->peer);
    if (link_tls_open(&link->tls, fd, &error) != STATUS_OK) {
        net_link_close(link);
        return;
    }
    link->server = server;
    link->next = server->links;
    if (link->next != NULL)
        link->next->previous = link;
    server->links = link;
    server->n_links++;
    if (server->n_links >= server->options.links) {
        server->full = true;
        set_accepting(server, false);
    }
    link_begin(link, server->options.link.timeout_ms);
}

enum status net_link_server_listen(struct net_link_server *server, const char *address,
                                   struct error *error)
{
    int fds[MAX_LISTENERS];
    char host[ADDRESS_HOST_BYTES], again[ADDRESS_HOST_BYTES + 16];
    size_t count = 0;
    unsigned port = 0;
    if (server->port != 0 && address_split(address, host, &port) && port == 0) {
        bool six = strchr(host, ':') != NULL;
        snprintf(again, sizeof again, "%s%s%s:%u", six ? "[" : "", host, six ? "]" : "",
                 server->port);
        address = again;
    }
    enum status status =
        listen_open(address, fds, MAX_LISTENERS - server->n_listeners, &count, &port, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < count; i++) {
        struct evconnlistener *listener =
            evconnlistener_new(net_loop_base(server->loop), on_accept, server,
                               LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, BACKLOG, fds[i]);
        if (listener == NULL) {
            status = listen_fault(address, errno, error);
            close(fds[i]);
            continue;
        }
        evconnlistener_set_error_cb(listener, on_accept_error);
        server->listeners[server->n_listeners++] = listener;
    }
    if (server->port == 0)
        server->port = port;
    return status;
}

enum status net_link_server_open(struct net_link_server **out, struct net_loop *loop,
                                 const char *address, const struct net_link_server_options *options,
                                 struct error *error)
{
    struct net_link_server *server = calloc(1, sizeof *server);
    uint8_t bytes[HELLO_OUR_BYTES];
    struct net_hello hello = options->link.hello;
    if (server == NULL)
        return error_memory(error, sizeof *server);
    hello.purpose = NET_CONTROL;
    if (hello_write(&hello, bytes) == 0) {
        free(server);
        return error_set(error, STATUS_INVALID, "the HELLO of links at %s is not valid", address);
    }
    server->loop = loop;
    server->options = *options;
    if (server->options.links == 0)
        server->options.links = DEFAULT_LINKS;
    enum status status = net_link_server_listen(server, address, error);
    if (status != STATUS_OK)
        net_link_server_close(server);
    else
        *out = server;
    return status;
}

unsigned net_link_server_port(const struct net_link_server *server)
{
    return server->port;
}

void net_link_server_set_hello(struct net_link_server *server, const struct net_hello *hello)
{
    server->options.link.hello = *hello;
}

void net_link_server_close(struct net_link_server *server)
{
    if (server == NULL)
        return;
    while (server->n_listeners > 0)
        evconnlistener_free(server->listeners[--server->n_listeners]);
    while (server->links != NULL)
        net_link_close(server->links);
    net_timer_cancel(server->resume);
    free(server);
}
