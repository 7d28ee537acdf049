/* comm_links: the ranks of an instance on several machines, each pair joined by a wire.
 *
 * Life cycle: comm_mesh_open, then every pair gets its wire: the higher rank connects to the lower
 * (on a thread), the lower one's link server takes the call, and each hands its end in
 * (comm_mesh_add). comm_mesh_comm waits for the last of them and gives
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
/* Any thread: an address is no more, of this machine (own) or of another. Aborts the mesh where one
 * of its wires begins or ends there, as the system would wait for long. */
void comm_mesh_place_gone(struct comm_mesh *mesh, bool own, const char *address);

/* Any thread: the wire to another rank, which the mesh owns from now on; in a case of error, too
 * (it is closed). STATUS_INVALID for a rank that is ours, not there, or has a wire already;
 * STATUS_LOST after an abort. */
enum status comm_mesh_add(struct comm_mesh *mesh, uint32_t rank, struct net_wire *wire,
                          struct error *error);
/* Waits until every other rank has its wire. spin_ns is how long an exchange asks the sockets again
 * and again before it sleeps; the first wait of an idle rank should not cost a core for long. */
enum status comm_mesh_comm(struct comm_mesh *mesh, uint64_t spin_ns, uint64_t deadline_ns,
                           struct comm **out, struct error *error);

#endif
