/* The mutex guards which wires there are; the wires themselves are the computing thread's, once
 * comm_mesh_comm gave the comm. comm_mesh_abort only aborts them, which any thread may. */
#include "cluster/comm_links.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOOK_AGAIN_MS = 100 };

struct comm_mesh {
    struct comm comm; /* first: the comm is the mesh */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct net_wire *wires[COMM_MAX_RANKS]; /* under mutex until all are there */
    uint32_t n_wires;                       /* under mutex, as the next */
    bool aborted;
};

static enum status exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error)
{
    struct comm_mesh *mesh = (struct comm_mesh *)comm;
    struct net_transfer each[NET_MAX_TRANSFERS];
    if (n > NET_MAX_TRANSFERS)
        return error_set(error, STATUS_INVALID, "%zu messages are too many for one exchange", n);
    for (size_t i = 0; i < n; i++) {
        const struct comm_transfer *one = &transfers[i];
        if (one->rank >= comm->n_ranks || one->rank == comm->rank)
            return error_set(error, STATUS_INVALID, "rank %u cannot exchange with rank %u of %u",
                             comm->rank, one->rank, comm->n_ranks);
        each[i] = (struct net_transfer){.wire = mesh->wires[one->rank],
                                        .out = one->out,
                                        .out_bytes = one->out_bytes,
                                        .in = one->in,
                                        .in_bytes = one->in_bytes};
    }
    enum status status = net_wire_exchange(each, n, 0, error);
    /* One that is gone ends it for all: the others learn it at once, wherever they wait. */
    if (status != STATUS_OK)
        comm_mesh_abort(mesh);
    return status;
}

enum status comm_mesh_open(struct comm_mesh **out, uint32_t rank, uint32_t n_ranks,
                           struct error *error)
{
    if (n_ranks == 0 || n_ranks > COMM_MAX_RANKS || rank >= n_ranks)
        return error_set(error, STATUS_INVALID, "rank %u of %u: there may be %d ranks at most",
                         rank, n_ranks, COMM_MAX_RANKS);
    struct comm_mesh *mesh = calloc(1, sizeof *mesh);
    if (mesh == NULL)
        return error_memory(error, sizeof *mesh);
    mesh->comm = (struct comm){.rank = rank, .n_ranks = n_ranks, .exchange = exchange};
    pthread_mutex_init(&mesh->mutex, NULL);
    pthread_cond_init(&mesh->changed, NULL);
    *out = mesh;
    return STATUS_OK;
}

void comm_mesh_close(struct comm_mesh *mesh)
{
    if (mesh == NULL)
        return;
    for (uint32_t i = 0; i < mesh->comm.n_ranks; i++)
        net_wire_close(mesh->wires[i]);
    pthread_cond_destroy(&mesh->changed);
    pthread_mutex_destroy(&mesh->mutex);
    free(mesh);
}

void comm_mesh_abort(struct comm_mesh *mesh)
{
    pthread_mutex_lock(&mesh->mutex);
    mesh->aborted = true;
    for (uint32_t i = 0; i < mesh->comm.n_ranks; i++)
        if (mesh->wires[i] != NULL)
            net_wire_abort(mesh->wires[i]);
    pthread_cond_broadcast(&mesh->changed);
    pthread_mutex_unlock(&mesh->mutex);
}

void comm_mesh_place_gone(struct comm_mesh *mesh, bool own, const char *address)
{
    bool gone = false;
    pthread_mutex_lock(&mesh->mutex);
    for (uint32_t i = 0; i < mesh->comm.n_ranks; i++) {
        char local[NET_ADDRESS_BYTES];
        const struct net_wire *wire = mesh->wires[i];
        if (wire == NULL)
            continue;
        net_wire_local(wire, local);
        gone = gone || net_address_same(own ? local : net_wire_peer(wire), address);
    }
    pthread_mutex_unlock(&mesh->mutex);
    if (gone)
        comm_mesh_abort(mesh);
}

static enum status given_up(struct error *error)
{
    return error_set(error, STATUS_LOST, "connecting the ranks of the instance was given up");
}

enum status comm_mesh_add(struct comm_mesh *mesh, uint32_t rank, struct net_wire *wire,
                          struct error *error)
{
    enum status status = STATUS_OK;
    pthread_mutex_lock(&mesh->mutex);
    if (mesh->aborted)
        status = given_up(error);
    else if (rank >= mesh->comm.n_ranks || rank == mesh->comm.rank || mesh->wires[rank] != NULL)
        status = error_set(error, STATUS_INVALID,
                           "rank %u of %u does not wait for a connection with rank %u",
                           mesh->comm.rank, mesh->comm.n_ranks, rank);
    if (status == STATUS_OK) {
        mesh->wires[rank] = wire;
        mesh->n_wires++;
        pthread_cond_broadcast(&mesh->changed);
    }
    pthread_mutex_unlock(&mesh->mutex);
    if (status != STATUS_OK)
        net_wire_close(wire);
    return status;
}

/* Waits for a change, but not for long: the system's clock, which the wait goes by, may be set. */
static void wait_for_change(struct comm_mesh *mesh)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOOK_AGAIN_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&mesh->changed, &mesh->mutex, &until);
}

static uint32_t first_missing(const struct comm_mesh *mesh)
{
    uint32_t rank = 0;
    while (rank == mesh->comm.rank || mesh->wires[rank] != NULL)
        rank++;
    return rank;
}

enum status comm_mesh_comm(struct comm_mesh *mesh, uint64_t spin_ns, uint64_t deadline_ns,
                           struct comm **out, struct error *error)
{
    enum status status = STATUS_OK;
    pthread_mutex_lock(&mesh->mutex);
    while (status == STATUS_OK && (mesh->aborted || mesh->n_wires + 1 < mesh->comm.n_ranks)) {
        if (mesh->aborted)
            status = given_up(error);
        else if (deadline_ns != 0 && clock_now_ns() >= deadline_ns)
            status = error_set(error, STATUS_LOST, "rank %u did not connect in time",
                               first_missing(mesh));
        else
            wait_for_change(mesh);
    }
    for (uint32_t i = 0; i < mesh->comm.n_ranks; i++)
        if (mesh->wires[i] != NULL)
            net_wire_set_spin(mesh->wires[i], spin_ns);
    pthread_mutex_unlock(&mesh->mutex);
    if (status == STATUS_OK)
        *out = &mesh->comm;
    return status;
}
