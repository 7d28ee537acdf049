/* net: the event loop, and an HTTP/1.1 server on it.
 *
 * A loop belongs to the thread that runs it, and so does all that is opened on it: every function
 * here is called from that thread only, and every callback runs on it, except net_loop_post and
 * net_loop_stop, which any thread may call. The loop never blocks and must not be blocked: a
 * handler hands long work to another thread, which posts the answer back.
 *
 * Life cycle: net_loop_open, http_server_open, http_server_listen (once or more), net_loop_run;
 * then http_server_close and net_loop_close. Opening a loop makes the process ignore SIGPIPE.
 */
#ifndef CONSORT_NET_H
#define CONSORT_NET_H

#include "base/base.h"

/* ---- Loop ------------------------------------------------------------------------------------ */

struct net_loop;

typedef void net_fn(void *context);

enum status net_loop_open(struct net_loop **out, struct error *error);
/* Posts and timers that did not run any more are dropped. Accepts NULL. */
void net_loop_close(struct net_loop *loop);

/* Runs callbacks until net_loop_stop. A stop that came before makes it return at once. */
void net_loop_run(struct net_loop *loop);
void net_loop_stop(struct net_loop *loop); /* any thread */
/* Runs what was posted, and what that posts, until nothing is left; for the end, when no other
 * thread posts any more. */
void net_loop_settle(struct net_loop *loop);

/* Any thread: fn(context) runs once on the loop's thread, in the order of the posts of one thread.
 * false when memory is out; then fn never runs. */
bool net_loop_post(struct net_loop *loop, net_fn *fn, void *context);

/* Runs fn(context) once, delay_ms from now. NULL when memory is out. The timer ends by running, or
 * by net_timer_cancel (NULL allowed), which must not be called after it ran. */
struct net_timer;
struct net_timer *net_loop_after(struct net_loop *loop, uint64_t delay_ms, net_fn *fn,
                                 void *context);
void net_timer_cancel(struct net_timer *timer);

/* Runs fn(context) on the loop whenever the process receives signal (SIGTERM, SIGINT), until the
 * loop closes. One loop a process may ask for signals. */
enum status net_loop_on_signal(struct net_loop *loop, int signal, net_fn *fn, void *context,
                               struct error *error);

/* Raises the limit of open descriptors to what the system lets this process have, at most wanted.
 * Returns the limit that holds then. */
size_t net_raise_descriptors(size_t wanted);

/* ---- HTTP server ----------------------------------------------------------------------------- */

/* HTTP/1.1 and 1.0 (RFC 9110, RFC 9112): keep-alive, pipelining, chunked bodies, Expect:
 * 100-continue, TLS 1.2 and 1.3. What breaks the protocol or a limit is answered here, with status
 * 400, 408, 411, 413, 414, 417, 431, 501, 503 or 505, a JSON body
 * {"error":{"message":...,"type":"invalid_request_error","param":null,"code":null}}, and the end of
 * the connection; the handler never sees it. Methods and paths are left to the handler. */
struct http_server;

/* One request and its answer. The handler is called when the whole request is there, and ends the
 * exchange, then or at any later time, by exactly one of http_reply, http_stream_end and
 * http_abort; after that the pointer is invalid. The exchange outlives its client: what is written
 * to one that is gone is dropped, and the exchange still has to be ended. Requests of one
 * connection come one after the other: the next is not read before the answer ended. */
struct http_exchange;

typedef void http_handler(void *context, struct http_exchange *exchange);

struct http_options {
    http_handler *handler;
    void *context;
    /* Limits; 0 is the default. */
    size_t header_bytes;      /* request line and header fields: 64 KiB; the line alone: 16 KiB */
    size_t body_bytes;        /* body of one request: 64 MiB */
    size_t all_body_bytes;    /* bodies of all requests at once, beyond: 503: 1 GiB */
    size_t pending_bytes;     /* a streamed answer that the client does not read: 16 MiB; a client
                               * that lets more pile up is disconnected */
    size_t connections;       /* 16,384; for more, those that were idle longest are closed */
    unsigned idle_timeout_ms; /* between two requests: 75 s */
    unsigned request_timeout_ms; /* for the head of a request; its body gets as much again, and a
                                  * second for each 16 KiB that have come: 30 s */
    unsigned write_timeout_ms;   /* without the client reading any of what is pending: 60 s */
    /* PEM files: the certificate with its chain, and its key. Both or none. */
    const char *tls_certificate;
    const char *tls_key;
};

/* The strings of options need to live only during the call. */
enum status http_server_open(struct http_server **out, struct net_loop *loop,
                             const struct http_options *options, struct error *error);

/* Starts to accept on "127.0.0.1:4000", "[::1]:4000", "localhost:4000" or ":4000" (every IPv4
 * address), as often as wanted. Port 0 takes a free port. "[::]:4000" takes IPv6 only. */
enum status http_server_listen(struct http_server *server, const char *address,
                               struct error *error);
/* The port of the index-th http_server_listen, which was successful. */
unsigned http_server_port(const struct http_server *server, size_t index);

/* Stops accepting, closes idle connections, and lets exchanges and requests under way finish, each
 * connection with its answer. Calls done(context) once, from the loop, when no connection is left
 * or deadline_ms passed. Then http_server_close may be called, also from done. */
void http_server_drain(struct http_server *server, uint64_t deadline_ms, net_fn *done,
                       void *context);

/* Closes everything at once. Exchanges that run are told that their clients are gone; they stay
 * valid until they are ended, which may be after this. Accepts NULL. Not from a handler. */
void http_server_close(struct http_server *server);

size_t http_server_connections(const struct http_server *server); /* open now */

/* ---- The request ----------------------------------------------------------------------------- */

/* Views live until the exchange ends, the body's until the answer begins or http_body_free. */
struct view http_method(const struct http_exchange *exchange);
/* The path of the target, percent-decoded once, without the query; valid UTF-8 without zero and
 * other control characters, begins with "/" (or is "*", for OPTIONS). */
struct view http_path(const struct http_exchange *exchange);
/* The value of the first query parameter of that name, decoded ("+" is a space). data is NULL where
 * there is none. The bytes need not be UTF-8. */
struct view http_query(const struct http_exchange *exchange, const char *name);
/* The first field of that name (in any case), without the white space around it. data is NULL where
 * there is none. The bytes are printable ASCII, tabs, and bytes from 0x80 on. */
struct view http_header(const struct http_exchange *exchange, const char *name);
struct view http_body(const struct http_exchange *exchange);
/* Gives the memory of the body back, for an exchange that waits long. */
void http_body_free(struct http_exchange *exchange);
/* "127.0.0.1:51234" or "[::1]:51234". Lives as long as the exchange. */
const char *http_peer(struct http_exchange *exchange);
bool http_is_tls(const struct http_exchange *exchange);

/* One pointer of the handler's, NULL at first, which stays with the exchange. */
void http_set_context(struct http_exchange *exchange, void *context);
void *http_context(const struct http_exchange *exchange);

/* ---- The answer ------------------------------------------------------------------------------ */

/* A header field of the answer. Lists of them end with one whose name is NULL; a NULL list is
 * empty. Control characters in values become spaces. The server itself writes Date, Connection,
 * Content-Length, Transfer-Encoding and Content-Type. */
struct http_field {
    const char *name;
    const char *value;
};

/* Before the answer begins: one more field of it, beside those that it is begun with. Copied. */
void http_add_field(struct http_exchange *exchange, const char *name, const char *value);

/* The whole answer; ends the exchange. body is copied. content_type may be NULL (no body follows).
 * For HEAD the body is left out. */
void http_reply(struct http_exchange *exchange, int status, const char *content_type,
                struct view body, const struct http_field *extra);

/* An answer in pieces, each sent at once: chunked for HTTP/1.1, until the end of the connection for
 * 1.0. An empty write writes nothing. http_stream_end ends the exchange. */
void http_stream_begin(struct http_exchange *exchange, int status, const char *content_type,
                       const struct http_field *extra);
void http_stream_write(struct http_exchange *exchange, struct view data);
void http_stream_end(struct http_exchange *exchange);

/* Ends the exchange and cuts the connection, so that the client sees that the answer is not whole.
 */
void http_abort(struct http_exchange *exchange);

/* Bytes written and not yet taken by the client's system. */
size_t http_stream_pending(const struct http_exchange *exchange);
/* Calls fn(context) once, from the loop, when at most bytes are pending; it replaces the one asked
 * for before. It is not called for a client that is gone. */
void http_on_drained(struct http_exchange *exchange, size_t bytes, net_fn *fn, void *context);

/* Calls fn(context) once when the client is gone: its connection broke or it closed it, it let too
 * much pile up, or the server closed. At once, where it is gone already. Never after the exchange
 * ended. fn may end the exchange.
 *
 * A client that closes only its sending side (shutdown(SHUT_WR)) still gets its answer, over plain
 * HTTP/1.1: the server finds out by sending a byte sequence that has no meaning ("100 Continue"
 * before the answer, a leading zero of the next chunk's size in it), which a closed socket refuses.
 * With HTTP/1.0 or TLS, the end of what a client sends counts as leaving. Of a client that has sent
 * 64 KiB of further requests, only writing shows whether it is there. */
void http_on_gone(struct http_exchange *exchange, net_fn *fn, void *context);
bool http_is_gone(const struct http_exchange *exchange);

#endif
