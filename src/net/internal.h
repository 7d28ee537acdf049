/* What the files of src/net share. */
#ifndef CONSORT_NET_INTERNAL_H
#define CONSORT_NET_INTERNAL_H

#include "net/net.h"

#include <sys/time.h>

struct event_base;
struct event_base *net_loop_base(const struct net_loop *loop);

struct timeval net_timeval(uint64_t ms);

/* Of interfaces.c: what the socket sends goes through that interface, where the system allows it.
 */
void net_interface_bind(int fd, int family, const char *name);

#endif
