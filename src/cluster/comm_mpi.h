/* comm_mpi: the ranks of a model as processes that MPI started, for racks. Only builds with MPI=1
 * have it, and comm_mpi.c is the only file that sees MPI.
 *
 * MPI brings bytes from rank to rank and nothing else: what is sent, and every sum, is the model's
 * own business, so a text is the same as over links.
 *
 * Life cycle: comm_mpi_open once in a process, comm_mpi_close before it ends. A rank that closes is
 * gone for the others: an exchange that waits for it fails with STATUS_LOST and the reason it gave,
 * and so each of them learns it. One that dies without closing takes all with it: mpirun ends them.
 * All on one thread. */
#ifndef CONSORT_CLUSTER_COMM_MPI_H
#define CONSORT_CLUSTER_COMM_MPI_H

#include "model/comm.h"

/* n_sharing: ranks, this one counted, that run on the same processors. STATUS_INVALID where MPI has
 * not started this process. */
enum status comm_mpi_open(struct comm **out, uint32_t *n_sharing, struct error *error);
/* Waits until all ranks have closed. reason: why this one could not go on; NULL: all is well. Where
 * MPI itself failed it ends all ranks at once, this one too. NULL allowed. */
void comm_mpi_close(struct comm *comm, const char *reason);

#endif
