/* net: the event loop; an HTTP/1.1 server, encrypted links between nodes, multicast, and what
 * advertises services on it.
 *
 * A loop belongs to the thread that runs it, and so does all that is opened on it: every function
 * here is called from that thread only, and every callback runs on it, except net_loop_post and
 * net_loop_stop, which any thread may call, and the wires (below), which need no loop. The loop
 * never blocks and must not be blocked: a handler hands long work to another thread, which posts
 * the answer back.
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

/* ---- Links between nodes --------------------------------------------------------------------- */

/* A link is a TCP connection between two nodes that both hold the same secret: TLS 1.3 with that
 * secret as external pre-shared key and fresh Diffie-Hellman keys (psk_dhe_ke), so what was sent
 * stays secret even where the key is lost later; no certificates, no tickets, no early data. Each
 * side then says HELLO, which names its node and what the link is for. The bytes are drawn at the
 * top of link_frame.c.
 *
 * A link for control stays on the loop and carries frames, each with a type of the caller's. One
 * for data or files is handed over to a thread as a wire. */
struct net_link;
struct net_link_server;
struct net_wire;

enum {
    NET_PROTOCOL_VERSION = 1,    /* of the protocol; both sides must have the same */
    NET_FRAME_BYTES = 1 << 20,   /* the longest message of a frame, if nothing else is said */
    NET_HELLO_INFO_BYTES = 1024, /* the longest text of a HELLO */
    NET_IDENTITY_BYTES = 128,    /* the longest name of a key, with its zero */
    NET_SECRET_BYTES = 32,
    NET_ADDRESS_BYTES = 80, /* "[fe80::1%enp0s31f6]:65535" with its zero */
    NET_NODE_BYTES = 16,
};

/* A secret and the name by which the other side finds it. The name is sent in the clear. */
struct net_link_key {
    char identity[NET_IDENTITY_BYTES];
    uint8_t secret[NET_SECRET_BYTES];
};

enum net_purpose {
    NET_CONTROL = 1, /* messages, on the loop */
    NET_DATA,        /* what an instance computes */
    NET_STORE,       /* model files */
    NET_JOIN,        /* a node that has a token and wants the cluster's key */
};

struct net_hello {
    uint8_t node[NET_NODE_BYTES];
    uint64_t incarnation; /* random, new at each start of a node */
    enum net_purpose purpose;
    /* On a link for data or files: this side holds the way between the two for private. Where both
     * sides do, they go on without encryption once they know each other: who can read or change
     * what is on that way, can do so with all that is sent. */
    bool trusted;
    char info[NET_HELLO_INFO_BYTES + 1]; /* UTF-8, JSON by custom; read by the caller */
};

/* Why there is no link, or none any more. */
#define NET_LINK_FAULT_LIST(X)                                                                     \
    X(REFUSED, "refused", "nothing listens there")                                                 \
    X(UNREACHABLE, "unreachable", "the address cannot be reached")                                 \
    X(TIMEOUT, "timeout", "no answer in time")                                                     \
    X(KEY, "other key", "the other side holds another cluster key")                                \
    X(VERSION, "other version", "the other side speaks another version of the protocol")           \
    X(STRANGER, "no consort node", "what answers there is no consort node")                        \
    X(BROKEN, "protocol broken", "the other side sent what the protocol does not allow")           \
    X(SLOW, "not reading", "the other side does not read what is sent to it")                      \
    X(CLOSED, "closed", "the other side closed the link")                                          \
    X(RESET, "connection lost", "the connection broke")                                            \
    X(LOCAL, "local fault", "this machine cannot open the link")

enum net_link_fault {
#define NET_LINK_FAULT_ENUM(name, word, sentence) NET_LINK_##name,
    NET_LINK_FAULT_LIST(NET_LINK_FAULT_ENUM)
#undef NET_LINK_FAULT_ENUM
};

/* "refused", "timeout", ...: short enough for a column, and never changed once it was released. */
const char *net_link_fault_word(enum net_link_fault fault);

/* What happens to a link; context is that of the callbacks. Each may call net_link_close, also for
 * the link that it is about. All are called from the loop, never from within a function below. */
struct net_link_events {
    /* The link is there. hello is the other side's and lives during the call. Here (and only here)
     * net_link_detach may take a link away from the loop. */
    void (*up)(void *context, struct net_link *link, const struct net_hello *hello);
    /* One whole message, whose bytes live during the call. */
    void (*message)(void *context, struct net_link *link, uint8_t type, struct view message);
    /* The link is gone, or (net_link_connect only) did not come about; text is a sentence that
     * names the other side. Afterwards the pointer is invalid. Called once, and not after
     * net_link_close or net_link_detach. */
    void (*down)(void *context, struct net_link *link, enum net_link_fault fault, const char *text);
    /* Servers only, may be NULL: someone who did not become a link. peer is its address. */
    void (*refused)(void *context, const char *peer, enum net_link_fault fault, const char *text);
};

struct net_link_options {
    const struct net_link_events *events; /* must outlive the links */
    void *context;
    struct net_hello hello; /* ours; purpose is not used by servers, who give back the client's */
    unsigned timeout_ms;    /* from the first packet to up; 0: 3 s */
    size_t frame_bytes;     /* the longest message either way; 0: NET_FRAME_BYTES */
    size_t pending_bytes;   /* that the other side has not read yet; beyond: SLOW; 0: 8 messages */
};

struct net_link_server_options {
    struct net_link_options link;
    /* Finds the secret that identity names. identity is any bytes a stranger sent. False where
     * there is none; then the other side learns that its key is not ours, and nothing else. */
    bool (*find_key)(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES]);
    size_t links; /* that are not up yet, at most; further ones wait; 0: 256 */
};

/* Starts to accept at address, as http_server_listen takes it. Everything that options point to
 * must live until the server is closed; the structs themselves are copied. */
enum status net_link_server_open(struct net_link_server **out, struct net_loop *loop,
                                 const char *address, const struct net_link_server_options *options,
                                 struct error *error);
/* One more address of the same server; port 0 is replaced by that of the first one. */
enum status net_link_server_listen(struct net_link_server *server, const char *address,
                                   struct error *error);
unsigned net_link_server_port(const struct net_link_server *server);
/* What links that begin from now on are told. */
void net_link_server_set_hello(struct net_link_server *server, const struct net_hello *hello);
/* Closes what is under way, too, but not links that are up. Accepts NULL. Not from a callback. */
void net_link_server_close(struct net_link_server *server);

/* Begins to connect to a numeric address (net_resolve finds those of names). Only what is wrong
 * here and now is an error; everything else comes by `down`. key is copied. */
enum status net_link_connect(struct net_link **out, struct net_loop *loop, const char *address,
                             const struct net_link_key *key, const struct net_link_options *options,
                             struct error *error);

/* Sends a message, or keeps it until the socket takes it; message is copied. False where the link
 * is not up, message is longer than frame_bytes, or type is 0: nothing is sent. */
bool net_link_send(struct net_link *link, uint8_t type, struct view message);
size_t net_link_pending(const struct net_link *link); /* bytes not yet taken by the socket */

const char *net_link_peer(const struct net_link *link);     /* numeric address of the other side */
const char *net_link_identity(const struct net_link *link); /* of the key that holds */
bool net_link_accepted(const struct net_link *link);        /* the other side connected */
/* One pointer of the caller's; at first the context of the options. */
void net_link_set_context(struct net_link *link, void *context);
void *net_link_context(const struct net_link *link);

/* Sends what is pending as far as the socket takes it now (at least 64 KiB of what was sent since
 * nothing was pending), says goodbye, and frees the link. */
void net_link_close(struct net_link *link); /* accepts NULL */

/* From `up`, for a purpose other than NET_CONTROL: the connection as a wire; link is invalid
 * afterwards. NULL where memory is out; then the link stays. */
struct net_wire *net_link_detach(struct net_link *link);

/* ---- Wires: links of one thread -------------------------------------------------------------- */

/* A wire belongs to one thread at a time, which sends and receives; it may change hands when both
 * agree (a lock or a queue between them). net_wire_abort alone may be called by any thread while
 * the wire is open. Deadlines are of clock_now_ns; 0 is none. The process must ignore SIGPIPE, as
 * net_loop_open makes it.
 *
 * Errors: STATUS_LOST where the other side is gone, the wire was aborted, or the deadline passed;
 * after one, every call fails. */

struct net_wire_options {
    struct net_hello hello; /* ours */
    uint64_t deadline_ns;   /* for all of connecting; 0: 3 s from now */
    const char *from;       /* numeric address without port to connect from; NULL: any */
    /* The interface to go through, also where the system's routes lead over another one; NULL: as
     * they lead. Where the system does not let us choose, this is not looked at. */
    const char *interface;
    const uint8_t *node; /* [NET_NODE_BYTES]: who has to answer, or it fails with STRANGER; NULL:
                          * anyone with the key */
};

/* Connects to a numeric address and waits until the link is there. *peer (NULL allowed) is the
 * other side's hello; *fault (NULL allowed) says what failed where STATUS_LOST is returned. */
enum status net_wire_connect(struct net_wire **out, const char *address,
                             const struct net_link_key *key, const struct net_wire_options *options,
                             struct net_hello *peer, enum net_link_fault *fault,
                             struct error *error);
void net_wire_close(struct net_wire *wire); /* accepts NULL */
/* Ends all waits of the wire's thread, now and later. */
void net_wire_abort(struct net_wire *wire);

bool net_wire_encrypted(const struct net_wire *wire);
const char *net_wire_peer(const struct net_wire *wire);
/* This side's numeric address, without port; "?" where the system does not say. Any thread. */
void net_wire_local(const struct net_wire *wire, char out[NET_ADDRESS_BYTES]);
/* How long to ask the socket again and again before sleeping until something comes; at first
 * 50 us. */
void net_wire_set_spin(struct net_wire *wire, uint64_t spin_ns);

/* All of data[size], or an error. */
enum status net_wire_send(struct net_wire *wire, const void *data, size_t size,
                          uint64_t deadline_ns, struct error *error);
enum status net_wire_receive(struct net_wire *wire, void *data, size_t size, uint64_t deadline_ns,
                             struct error *error);

/* The same in frames {u32 length, u8 type}, for messages of at most limit_bytes. Both sides of a
 * wire use frames, or neither does. receive appends the message to out, cleared first. */
enum status net_wire_send_frame(struct net_wire *wire, uint8_t type, struct view message,
                                uint64_t deadline_ns, struct error *error);
enum status net_wire_receive_frame(struct net_wire *wire, size_t limit_bytes, uint8_t *type,
                                   struct buffer *out, uint64_t deadline_ns, struct error *error);

enum { NET_MAX_TRANSFERS = 256 };

/* What goes over one wire in a net_wire_exchange. A size may be 0; its pointer is not looked at. */
struct net_transfer {
    struct net_wire *wire;
    const void *out; /* out_bytes are sent */
    size_t out_bytes;
    void *in; /* in_bytes are received */
    size_t in_bytes;
};

/* Sends and receives all of them at the same time, so that nobody waits for another in a circle,
 * whatever the sizes. A wire may come several times: its messages go in the order of transfers. At
 * most NET_MAX_TRANSFERS. Returns when everything is received, and is sent or in the system's
 * hands, which takes 64 KiB of each wire though the other side does not read. The spin is the
 * longest of the wires'. transfers are used up. */
enum status net_wire_exchange(struct net_transfer *transfers, size_t n, uint64_t deadline_ns,
                              struct error *error);

/* ---- Addresses and interfaces ---------------------------------------------------------------- */

struct net_address {
    char text[NET_ADDRESS_BYTES]; /* "10.0.0.7:4001", "[fe80::1%eth0]:4001" */
};

/* The numeric addresses of "host:port"; asks the system's resolver, so it may take seconds: any
 * thread but the loop's. *n is how many were found, at most max. */
enum status net_resolve(const char *address, struct net_address *out, size_t max, size_t *n,
                        struct error *error);

/* Of numeric addresses with or without port and interface ("10.0.0.7:4001", "fe80::1%eth0"), which
 * do not count: whether they are of one family and share their first prefix bits. */
bool net_address_near(const char *a, const char *b, unsigned prefix);
bool net_address_same(const char *a, const char *b); /* one host */
bool net_address_of_link(const char *address);       /* fe80::/10: means nothing elsewhere */
/* The host alone; of an address of one link with that interface, where it is not NULL. False: the
 * address is not numeric. */
bool net_address_host(const char *address, const char *interface, char out[NET_ADDRESS_BYTES]);
/* The host with a port: "10.0.0.7:4001", "[fe80::1%eth0]:4001". host has none. */
void net_address_join(const char *host, unsigned port, char out[NET_ADDRESS_BYTES]);
unsigned net_address_port(const char *address); /* 0: it has none */

enum net_interface_kind {
    NET_INTERFACE_ETHERNET,
    NET_INTERFACE_WIFI,
    NET_INTERFACE_THUNDERBOLT,
    NET_INTERFACE_LOOPBACK,
    NET_INTERFACE_VIRTUAL, /* bridges, tunnels, containers */
    NET_INTERFACE_OTHER,
};
const char *net_interface_kind_text(enum net_interface_kind kind); /* "Ethernet", "Wi-Fi", ... */

enum { NET_INTERFACE_NAME_BYTES = 32, NET_INTERFACE_ADDRESSES = 8 };

struct net_interface {
    char name[NET_INTERFACE_NAME_BYTES];
    unsigned index; /* of the system */
    enum net_interface_kind kind;
    bool multicast;
    bool running;        /* has a carrier, as far as the system knows */
    uint32_t speed_mbit; /* what the link says of itself; 0: unknown */
    size_t n_addresses;
    char addresses[NET_INTERFACE_ADDRESSES][NET_ADDRESS_BYTES]; /* numeric, without port */
    uint8_t prefixes[NET_INTERFACE_ADDRESSES]; /* bits that all addresses of its network share */
};

/* The interfaces that are up and have an address; *out is freed by the caller. Any thread. */
enum status net_interfaces(struct net_interface **out, size_t *n, struct error *error);
/* STATUS_NOT_FOUND with the names that there are where none has this one. */
enum status net_interface_check(const char *name, struct error *error);

/* ---- Multicast ------------------------------------------------------------------------------- */

/* Datagrams to whoever listens on the networks this machine is in: an IPv4 and an IPv6 group on
 * every interface that is up and can do it, loopback included. Interfaces that come or go are
 * noticed within refresh_ms. Nothing leaves the network it is sent to (TTL 1, link-local). */
struct net_multicast;

enum { NET_DATAGRAM_BYTES = 1200 };

struct net_multicast_options {
    const char *group4; /* "239.x.y.z"; NULL: no IPv4 */
    const char *group6; /* "ff02::..."; NULL: no IPv6 */
    uint16_t port;
    unsigned refresh_ms; /* 0: 2 s */
    /* A datagram of at most NET_DATAGRAM_BYTES, ours included; from is the sender with its port,
     * and the interface where it has an address of one link. */
    void (*received)(void *context, struct view datagram, const char *from);
    void *context;
};

/* Fails only where neither of the groups can be used at all. */
enum status net_multicast_open(struct net_multicast **out, struct net_loop *loop,
                               const struct net_multicast_options *options, struct error *error);
void net_multicast_close(struct net_multicast *multicast); /* accepts NULL */
/* Sends data[size] once into every network; returns how many of them took it. */
size_t net_multicast_send(struct net_multicast *multicast, struct view datagram);
/* Interfaces and groups that are joined now. */
size_t net_multicast_joined(const struct net_multicast *multicast);

/* ---- Advertising ----------------------------------------------------------------------------- */

/* A service of this machine, told to the networks around it by the system's DNS-SD (Bonjour). Both
 * calls are the loop's; the daemon is asked on another thread. told is called on the loop with what
 * came of it, as a line that goes on after "the API": once a type, or once where it failed. */
struct net_advertisement;

struct net_service {
    const char *name;         /* of at most 63 bytes, shown to people; another one is taken where a
                               * machine nearby has the same */
    const char *const *types; /* "_http._tcp", ...; NULL ends them; at most 4 */
    const char *const *texts; /* "path=/v1", ...; NULL ends them; may be NULL */
    unsigned port;
};

typedef void net_told(void *context, const char *line);

/* STATUS_UNSUPPORTED where this build has no DNS-SD. service is copied. */
enum status net_advertise_open(struct net_advertisement **out, struct net_loop *loop,
                               const struct net_service *service, net_told *told, void *context,
                               struct error *error);
/* Withdraws it; told is not called any more. Waits for the daemon where it has not answered yet,
 * which may take seconds; net_loop_settle frees what is left then. Accepts NULL. */
void net_advertise_close(struct net_advertisement *advertisement);

/* ---- HTTP server ----------------------------------------------------------------------------- */

/* HTTP/1.1 and 1.0 (RFC 9110, RFC 9112): keep-alive, pipelining, chunked bodies, Expect:
 * 100-continue, TLS 1.2 and 1.3. What breaks the protocol or a limit is answered here, with status
 * 400, 408, 411, 413, 414, 417, 431, 501, 503 or 505, a JSON body, and the end of the connection;
 * the handler never sees it. Methods and paths are left to the handler. */
struct http_server;

/* One request and its answer. The handler is called when the whole request is there, and ends the
 * exchange, then or at any later time, by exactly one of http_reply, http_stream_end and
 * http_abort; after that the pointer is invalid. The exchange outlives its client: what is written
 * to one that is gone is dropped, and the exchange still has to be ended. Requests of one
 * connection come one after the other: the next is not read before the answer ended. */
struct http_exchange;

typedef void http_handler(void *context, struct http_exchange *exchange);

/* Appends the JSON body that goes with a status and a sentence. The path is "/" where the request
 * broke off before it. */
typedef void http_refusal(void *context, const struct http_exchange *exchange, int status,
                          const char *text, struct buffer *body);

struct http_options {
    http_handler *handler;
    http_refusal *refusal; /* NULL: {"error":{"message":TEXT}} */
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
