/* stream: one connected socket on a loop, plain or with TLS. What is written goes out at once, or
 * is kept until the socket takes it. */
#ifndef CONSORT_NET_STREAM_H
#define CONSORT_NET_STREAM_H

#include "net/internal.h"

#include <event2/event.h>
#include <event2/event_struct.h>

struct ssl_st;
struct ssl_ctx_st;

struct stream {
    int fd;
    struct ssl_st *ssl; /* NULL without TLS */
    struct event read_event, write_event;
    bool reading;
    bool writing;          /* write_event is added */
    bool read_wants_write; /* TLS has something to send before it can go on reading, */
    bool write_wants_read; /* or the other way round */
    bool broken;           /* writing failed; nothing goes out any more */
    struct buffer out;     /* bytes from sent on are pending */
    size_t sent;
    uint64_t taken; /* bytes the socket took, ever: to see progress */
};

/* Owns fd from now on. on_read is called when there is something to read, the peer is gone, or
 * net_stream_wake was called; on_write when the socket takes bytes again: it calls
 * net_stream_flush. Reading begins at once. context is what both get. */
bool net_stream_open(struct stream *stream, struct event_base *base, int fd, struct ssl_ctx_st *tls,
                     event_callback_fn on_read, event_callback_fn on_write, void *context);
/* The same for a connection that has its TLS already (ssl, which it owns from now on; or NULL). */
void net_stream_adopt(struct stream *stream, struct event_base *base, int fd, struct ssl_st *ssl,
                      event_callback_fn on_read, event_callback_fn on_write, void *context);
/* Leaves fd and ssl to the caller, who reads them before or afterwards; drops what is pending. */
void net_stream_release(struct stream *stream);
void net_stream_close(struct stream *stream);

void net_stream_set_reading(struct stream *stream, bool reading);
/* Calls on_read from the loop; on_write likewise. */
void net_stream_wake(struct stream *stream);
void net_stream_wake_writer(struct stream *stream);

enum stream_result {
    STREAM_DATA,  /* *count bytes */
    STREAM_LATER, /* nothing now */
    STREAM_END,   /* the peer sends nothing more */
    STREAM_BROKEN,
    STREAM_NO_TLS, /* the peer speaks plain HTTP; the stream does too from now on */
};

enum stream_result net_stream_read(struct stream *stream, char *data, size_t size, size_t *count);

/* Never fails here: an error shows in the next on_read, with broken set. */
void net_stream_write(struct stream *stream, const struct view *parts, size_t n_parts);
void net_stream_flush(struct stream *stream);
size_t net_stream_pending(const struct stream *stream);

/* Says that nothing more will be written; what is pending must have gone out. */
void net_stream_shutdown(struct stream *stream);
/* The error the system found since the last call, 0 for none. */
int net_stream_error(const struct stream *stream);

/* TLS for servers: 1.2 and 1.3, from PEM files. */
enum status tls_server_open(struct ssl_ctx_st **out, const char *certificate, const char *key,
                            struct error *error);
void tls_server_close(struct ssl_ctx_st *tls); /* accepts NULL */

/* Listening sockets for an address "host:port", as http_server_listen takes it. At most max of them
 * in fds; *count says how many, *port which port. */
enum status listen_open(const char *address, int *fds, size_t max, size_t *count, unsigned *port,
                        struct error *error);
/* The error for an address that refused with errno reason. */
enum status listen_fault(const char *address, int reason, struct error *error);

#endif
