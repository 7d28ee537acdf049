/* The HTTP server inside: server, connections, exchanges.
 *
 * A connection goes through these states:
 *
 *   IDLE -> RECEIVING -> ANSWERING -> IDLE ...       requests one after the other
 *                                  -> FLUSHING       the last answer goes out; nothing is read
 *                                  -> LINGERING      our side is closed; what comes is thrown away
 *
 * Lingering keeps the system from cutting off an answer because bytes came that nobody read. What
 * ends a connection in the middle of a call (a handler that aborts, a client that lets too much
 * pile up) sets doomed and wakes it; it is freed only at the end of a turn of the loop that began
 * with it, or by a timer of the server. */
#ifndef CONSORT_HTTP_INTERNAL_H
#define CONSORT_HTTP_INTERNAL_H

#include "net/http_parse.h"
#include "net/stream.h"

#include <netinet/in.h>

struct evconnlistener;

enum connection_state {
    CONNECTION_IDLE,
    CONNECTION_RECEIVING,
    CONNECTION_ANSWERING,
    CONNECTION_FLUSHING,
    CONNECTION_LINGERING,
};

struct connection {
    struct http_server *server;
    struct connection *next, *previous; /* of all connections */
    struct connection *idle_next, *idle_previous;
    struct stream stream;
    struct http_exchange *exchange; /* while RECEIVING or ANSWERING */
    struct buffer input;            /* what came too early, from input_used on */
    size_t input_used;
    uint64_t idle_since_ms;
    uint64_t deadline_ms;       /* of what the client has to send; 0: none */
    uint64_t write_deadline_ms; /* of what the client has to take; 0: nothing is pending */
    uint64_t taken;             /* stream.taken when write_deadline_ms was set */
    struct net_timer *probe;    /* while the client may be half closed */
    uint32_t probe_ms;
    enum connection_state state;
    bool processing;  /* inside connection_process: the handler was called from there */
    bool doomed;      /* to be freed */
    bool half_closed; /* the client sends nothing more */
    bool wrong_port;  /* plain HTTP on a port for TLS */
    uint16_t peer_port;
    sa_family_t peer_family;
    uint8_t peer_address[16];
};

struct http_exchange {
    struct connection *connection; /* NULL: the client is gone */
    struct http_request request;
    struct http_exchange *next_spare;
    size_t counted_bytes; /* of the body, in the server's body_bytes */
    bool begun;           /* the head of the answer is written */
    bool head_only;       /* to HEAD */
    bool bodiless;        /* the status has no body: 204, 304 */
    bool chunked;
    bool close; /* the connection ends with this answer */
    bool tls;
    net_fn *gone;
    void *gone_context;
    net_fn *drained;
    void *drained_context;
    size_t drained_bytes;
    void *context;        /* the handler's */
    struct buffer fields; /* of the answer's head, in lines */
    uint16_t peer_port;
    sa_family_t peer_family;
    uint8_t peer_address[16];
    char peer[INET6_ADDRSTRLEN + 8];
};

struct listener {
    struct evconnlistener *accepting;
    unsigned port;
    size_t address; /* index of the http_server_listen it belongs to */
};

enum {
    MAX_LISTENERS = 32,
    MAX_SPARE = 64,
    SCRATCH_BYTES = 64 << 10,
};

struct http_server {
    struct net_loop *loop;
    struct event_base *base;
    struct http_options options;
    struct http_limits limits;
    struct ssl_ctx_st *tls;
    struct listener listeners[MAX_LISTENERS];
    size_t n_listeners, n_addresses;
    struct connection *connections;
    struct connection *idle_first, *idle_last; /* the longest idle first */
    size_t n_connections;
    size_t body_bytes; /* of all requests */
    struct http_exchange *spare;
    size_t n_spare;
    struct event tick; /* looks at all deadlines */
    struct event resume, drain;
    bool draining, drained;
    net_fn *drain_done;
    void *drain_context;
    time_t date_time;
    char date[64];
    struct buffer head;          /* the head of an answer, while it is written */
    char scratch[SCRATCH_BYTES]; /* what was read, while it is processed */
};

/* ---- http_server.c ---- */

uint64_t server_now_ms(void);
void server_add_idle(struct http_server *server, struct connection *connection);
void server_remove_idle(struct http_server *server, struct connection *connection);
/* The number of connections fell. */
void server_connection_left(struct http_server *server);

/* ---- http_connection.c ---- */

/* Takes over fd. False when memory is out; then fd is closed. */
bool connection_open(struct http_server *server, int fd, const struct sockaddr *peer);
/* Ends it now: its exchange is told, and is the handler's from then on. */
void connection_close(struct connection *connection);
/* Ends it soon, from the loop. */
void connection_doom(struct connection *connection);
/* Ends it when what is pending is out. Its last answer is written. */
void connection_finish(struct connection *connection);
/* Looks whether its time is up; may close it. */
void connection_check(struct connection *connection, uint64_t now_ms);
/* The answer of its exchange is written: frees the exchange and goes on. */
void connection_answered(struct connection *connection);

/* ---- http_reply.c ---- */

void exchange_free(struct http_exchange *exchange);
/* Writes what asks a half-closed client for a sign of life; false where nothing can be written. */
bool exchange_probe(struct http_exchange *exchange);

#endif
