/* TLS of links: 1.3 with an external pre-shared key, and what its failures mean. */
#ifndef CONSORT_NET_LINK_TLS_H
#define CONSORT_NET_LINK_TLS_H

#include "net/net.h"

struct ssl_st;

/* One side of one handshake; must stay where it is until that is over. */
struct link_tls {
    struct ssl_st *ssl;
    bool server;
    bool offered; /* server: the other side named a key */
    /* Client: the key. Server: identity is what was offered. */
    struct net_link_key key;
    bool (*find_key)(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES]);
    void *context;
};

/* fd stays the caller's. Clients fill key, servers find_key and context, before. */
enum status link_tls_open(struct link_tls *tls, int fd, struct error *error);
/* Frees the SSL object, unless it was taken out, and wipes the key. */
void link_tls_close(struct link_tls *tls);

enum link_step { LINK_DONE, LINK_WANTS_READ, LINK_WANTS_WRITE, LINK_FAILED };

/* Goes on with the handshake as far as the socket allows. *fault is set where it failed. */
enum link_step link_tls_handshake(struct link_tls *tls, enum net_link_fault *fault);

/* The fault of a connect that failed with errno reason. */
enum net_link_fault link_connect_fault(int reason);

/* "PEER: SENTENCE", with what the system says of reason where that is not 0. */
void link_fault_text(char text[256], const char *peer, enum net_link_fault fault, int reason);
void link_version_text(char text[256], const char *peer, unsigned version);

#endif
