/* What the files of links and wires share. */
#ifndef CONSORT_NET_LINK_INTERNAL_H
#define CONSORT_NET_LINK_INTERNAL_H

#include "net/internal.h"
#include "net/link_frame.h"
#include "net/link_tls.h"
#include "net/stream.h"

#include <stdatomic.h>

/* ---- Links ---- */

enum link_state {
    LINK_CONNECTING,
    LINK_HANDSHAKE,
    LINK_GREETING, /* waits for the HELLO, or for ours to go out */
    LINK_UP,
    LINK_GONE, /* closed or detached, and freed when nothing of it runs any more */
};

struct net_link {
    struct net_loop *loop;
    struct net_link_server *server;   /* of a link that was accepted and is not up yet */
    struct net_link *next, *previous; /* of these, in the server's list */
    const struct net_link_events *events;
    void *context;
    struct net_hello hello; /* ours */
    size_t pending_bytes;
    enum link_state state;
    bool accepted;
    bool running;       /* one of its callbacks is on the stack */
    bool slow;          /* more is pending than allowed */
    int fault;          /* errno of a connect that failed at once */
    int fd;             /* until the stream has it */
    bool streamed;      /* the stream has it */
    bool waiting;       /* event is assigned */
    struct event event; /* of connecting and the handshake */
    struct net_timer *timeout;
    struct link_tls tls;
    struct stream stream;
    struct hello_reader *greeting; /* NULL once it was read */
    struct net_hello peer_hello;
    struct frame_reader reader;
    char peer[NET_ADDRESS_BYTES];
};

/* A link on a connected socket (accepted) or one that connects; NULL where memory is out, and then
 * fd stays the caller's. */
struct net_link *link_new(struct net_loop *loop, int fd, const struct net_link_options *options);
/* From the loop: begins the handshake, and ends what does not come about in time. */
void link_begin(struct net_link *link, unsigned timeout_ms);
void link_handshake(struct net_link *link);
void link_fail(struct net_link *link, enum net_link_fault fault, const char *text);

/* Of link_server.c: the link is up or gone. */
void link_server_forget(struct net_link *link);
void link_server_refused(struct net_link_server *server, const char *peer,
                         enum net_link_fault fault, const char *text);

/* ---- Wires ---- */

enum {
    WIRE_SPIN_NS = 50000,
    /* AES-GCM keeps its promises for 2^24.5 records under one key (RFC 8446, 5.5). */
    WIRE_KEY_RECORDS = 1 << 22,
    LINK_TIMEOUT_MS = 3000,
};

struct net_wire {
    int fd;
    struct ssl_st *ssl;  /* NULL: not encrypted */
    atomic_bool aborted; /* any thread, as shutdown of fd; all else is the owner's */
    bool failed;
    bool refuses;         /* the last write did not go out whole */
    uint64_t records;     /* sent under the present key */
    uint64_t key_records; /* to send under one key */
    uint64_t spin_ns;
    uint64_t out_waits, in_waits; /* of an exchange: the pass in which that way is taken already */
    char peer[NET_ADDRESS_BYTES];
};

/* Takes fd and ssl. NULL where memory is out; then they stay the caller's. */
struct net_wire *wire_new(int fd, struct ssl_st *ssl, const char *peer);
/* Both sides said that the way is trusted: goes on without TLS. */
void wire_trust(struct net_wire *wire);
/* Before its first payload. */
void wire_prepare(struct net_wire *wire);

#endif
