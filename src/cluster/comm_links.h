/* comm_links: the ranks of an instance on several machines, each pair joined by a wire.
 *
 * Life cycle: comm_mesh_open, then every pair gets its wire: the higher rank connects to the lower
 * (comm_mesh_connect, on the thread that will compute), the lower one's link server takes the call
 * and hands it in (comm_mesh_add, on the loop). comm_mesh_comm waits for the last of them and gives
 * the comm, which lives as long as the mesh. comm_mesh_abort, from any thread, ends all of it; so
 * does an exchange that fails. */
#ifndef CONSORT_CLUSTER_COMM_LINKS_H
#define CONSORT_CLUSTER_COMM_LINKS_H

#include "model/comm.h"
#include "net/net.h"

enum { COMM_MAX_RANKS = 64 };

struct comm_mesh;

enum status comm_mesh_open(struct comm_mesh **out, uint32_t rank, uint32_t n_ranks,
                           struct error *error);
/* Closes the wires. No other thread may use the mesh any more. Accepts NULL. */
void comm_mesh_close(struct comm_mesh *mesh);
/* Any thread: all waits, now and later, end with STATUS_LOST. */
void comm_mesh_abort(struct comm_mesh *mesh);

/* Any thread: the wire to another rank, which the mesh owns from now on; in a case of error, too
 * (it is closed). STATUS_INVALID for a rank that is ours, not there, or has a wire already;
 * STATUS_LOST after an abort. */
enum status comm_mesh_add(struct comm_mesh *mesh, uint32_t rank, struct net_wire *wire,
                          struct error *error);
/* Connects to a lower rank at one of the addresses, the first that answers, and adds the wire. */
enum status comm_mesh_connect(struct comm_mesh *mesh, uint32_t rank,
                              const struct net_address *addresses, size_t n_addresses,
                              const struct net_link_key *key,
                              const struct net_wire_options *options, struct error *error);
/* Waits until every other rank has its wire. spin_ns is how long an exchange asks the sockets again
 * and again before it sleeps; the first wait of an idle rank should not cost a core for long. */
enum status comm_mesh_comm(struct comm_mesh *mesh, uint64_t spin_ns, uint64_t deadline_ns,
                           struct comm **out, struct error *error);

#endif
