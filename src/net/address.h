/* Addresses as text and as the system takes them. */
#ifndef CONSORT_NET_ADDRESS_H
#define CONSORT_NET_ADDRESS_H

#include "net/net.h"

#include <sys/socket.h>

enum { ADDRESS_HOST_BYTES = 256, ADDRESS_MAX_PORT = 65535 };

/* Splits "host:port" or "[host]:port"; an empty host stays empty. */
bool address_split(const char *address, char host[ADDRESS_HOST_BYTES], unsigned *port);

/* The numeric host, with its port; false where it is a name. */
bool address_numeric(const char *host, unsigned port, struct sockaddr_storage *out,
                     socklen_t *size);

/* "10.0.0.7:4001", "[fe80::1%eth0]:4001", without with_port "10.0.0.7", "fe80::1%eth0"; "?" for
 * what is neither IPv4 nor IPv6. */
void address_text(const struct sockaddr *address, bool with_port, char out[NET_ADDRESS_BYTES]);
unsigned address_port(const struct sockaddr *address);

#endif
