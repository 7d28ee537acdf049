/* Two communicators, so that nothing else is in their way: `data` has the model's messages and, as
 * the last of each rank, an empty one tagged TAG_GONE; `words` has what a rank says at its end.
 *
 *   data    TAG_DATA   a message of an exchange, or a piece of one that is larger than PIECE_BYTES
 *           TAG_GONE   no more comes from this rank; a struct farewell is under `words`
 *   words   0          struct farewell
 *
 * A receive takes any tag, so that it ends, in its turn, with the message that says that no other
 * will come. MPI promises no room on the way: a send may wait until somebody asks for it. What
 * comm.h promises is kept here: a small message is sent from a copy, which lies in a ring for each
 * rank until MPI has done with it.
 *
 * An exchange that fails has `parted`: it has told all others so, thrown away what they still sent
 * until they had all parted too, and MPI holds no memory of the caller's any more. */
#include "cluster/comm_mpi.h"

#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PIECE_BYTES
#define PIECE_BYTES ((size_t)64 << 20) /* MPI counts in int */
#endif
_Static_assert(PIECE_BYTES >= COMM_EAGER_BYTES && PIECE_BYTES <= INT_MAX, "small ones are whole");

/* A copy is never cut in two at the end of the ring, for which half of it is spare. */
#define RING_BYTES (2 * (size_t)COMM_EAGER_BYTES)
#define RING_PARCELS 1024

enum { TAG_DATA, TAG_GONE };

struct parcel {
    MPI_Request request;
    size_t bytes;
};

struct peer {
    bool gone;
    unsigned char *ring; /* [RING_BYTES] */
    size_t at, bytes;    /* where the next copy goes; what is under way */
    struct parcel parcels[RING_PARCELS];
    size_t first, n;
    bool waits; /* a small message of the exchange under way, for room */
};

struct farewell {
    uint32_t rank; /* who could not go on */
    char text[sizeof((struct error *)0)->text];
};

/* One receive or send from the caller's memory. */
struct piece {
    uint32_t rank;
    size_t bytes;
    bool in;
};

struct comm_mpi {
    struct comm comm; /* first */
    MPI_Comm data, words;
    struct peer *peers; /* [n_ranks] */
    uint32_t n_there;   /* other ranks that are not gone */

    /* Of the exchange under way; requests[i] is of pieces[i]. */
    struct piece *pieces;
    MPI_Request *requests;
    MPI_Status *statuses;
    int *done;
    size_t n_pieces, max_pieces;

    bool lost, parted;
    bool broken; /* MPI failed: no call of it can be trusted */
    struct error error;
    struct farewell heard; /* the first with a text */
    bool has_heard;
};

/* ---- Errors ---------------------------------------------------------------------------------- */

/* Whether MPI could do it; the first failure is kept. */
static bool good(struct comm_mpi *mpi, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int size = 0;
    if (code == MPI_SUCCESS)
        return !mpi->broken;
    if (!mpi->broken) {
        if (MPI_Error_string(code, text, &size) != MPI_SUCCESS)
            size = 0;
        error_set(&mpi->error, STATUS_LOST, "MPI: %.*s", size, text);
    }
    mpi->broken = mpi->lost = true;
    return false;
}

static bool break_off(struct comm_mpi *mpi, const char *what)
{
    if (!mpi->broken)
        error_set(&mpi->error, STATUS_LOST, "%s", what);
    mpi->broken = mpi->lost = true;
    return false;
}

/* ---- Small messages -------------------------------------------------------------------------- */

/* Lets go of the copies that MPI has done with. */
static bool sweep(struct comm_mpi *mpi, struct peer *peer)
{
    while (peer->n > 0) {
        struct parcel *oldest = &peer->parcels[peer->first];
        int done = 0;
        if (!good(mpi, MPI_Test(&oldest->request, &done, MPI_STATUS_IGNORE)))
            return false;
        if (!done)
            return true;
        peer->bytes -= oldest->bytes;
        peer->first = (peer->first + 1) % RING_PARCELS;
        peer->n--;
    }
    peer->at = 0;
    return true;
}

/* Sends it from a copy, or where too much is under way to that rank already leaves it waiting. */
static bool send_small(struct comm_mpi *mpi, const struct comm_transfer *transfer)
{
    struct peer *peer = &mpi->peers[transfer->rank];
    size_t bytes = transfer->out_bytes;
    if (!sweep(mpi, peer))
        return false;
    peer->waits = peer->bytes + bytes > COMM_EAGER_BYTES || peer->n == RING_PARCELS;
    if (peer->waits)
        return true;
    if (peer->at + bytes > RING_BYTES)
        peer->at = 0;
    struct parcel *parcel = &peer->parcels[(peer->first + peer->n) % RING_PARCELS];
    unsigned char *copy = peer->ring + peer->at;
    memcpy(copy, transfer->out, bytes);
    parcel->bytes = bytes;
    if (!good(mpi, MPI_Isend(copy, (int)bytes, MPI_BYTE, (int)transfer->rank, TAG_DATA, mpi->data,
                             &parcel->request)))
        return false;
    peer->at += bytes;
    peer->bytes += bytes;
    peer->n++;
    return true;
}

/* ---- The end --------------------------------------------------------------------------------- */

/* A rank's last message has come. */
static bool take_leave(struct comm_mpi *mpi, uint32_t rank)
{
    struct farewell farewell;
    if (mpi->peers[rank].gone)
        return true;
    mpi->peers[rank].gone = true;
    mpi->n_there--;
    if (!good(mpi, MPI_Recv(&farewell, (int)sizeof farewell, MPI_BYTE, (int)rank, 0, mpi->words,
                            MPI_STATUS_IGNORE)))
        return false;
    farewell.text[sizeof farewell.text - 1] = '\0';
    if (!mpi->has_heard && farewell.text[0] != '\0') {
        mpi->heard = farewell;
        mpi->has_heard = true;
    }
    return true;
}

/* Takes a message that nobody waits for, where there is one, and throws it away. */
static bool throw_away(struct comm_mpi *mpi)
{
    MPI_Status status;
    int there = 0, bytes = 0;
    if (!good(mpi, MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, mpi->data, &there, &status)))
        return false;
    if (!there)
        return true;
    if (!good(mpi, MPI_Get_count(&status, MPI_BYTE, &bytes)))
        return false;
    void *room = malloc((size_t)MAX(bytes, 1));
    if (room == NULL)
        return break_off(mpi, "out of memory");
    bool taken = good(mpi, MPI_Recv(room, bytes, MPI_BYTE, status.MPI_SOURCE, status.MPI_TAG,
                                    mpi->data, MPI_STATUS_IGNORE));
    free(room);
    if (taken && status.MPI_TAG == TAG_GONE)
        return take_leave(mpi, (uint32_t)status.MPI_SOURCE);
    return taken;
}

/* Whether a piece that came is what was asked for; else the rank is gone, or nothing fits. */
static bool look_at(struct comm_mpi *mpi, const struct piece *piece, const MPI_Status *status)
{
    int bytes = 0, cancelled = 0;
    if (!piece->in)
        return true;
    if (!good(mpi, MPI_Test_cancelled(status, &cancelled)))
        return false;
    if (cancelled)
        return true;
    if (status->MPI_TAG == TAG_GONE) {
        mpi->lost = true;
        take_leave(mpi, piece->rank);
        return false;
    }
    if (!good(mpi, MPI_Get_count(status, MPI_BYTE, &bytes)))
        return false;
    return (size_t)bytes == piece->bytes ||
           break_off(mpi, "a message of another rank has another size than it should have");
}

/* Moves what is under way to its end without waiting for it; *open: how much still is. */
static bool settle(struct comm_mpi *mpi, size_t *open)
{
    *open = 0;
    for (size_t i = 0; i < mpi->n_pieces; i++) {
        int done = 0;
        bool was_open = mpi->requests[i] != MPI_REQUEST_NULL;
        if (!good(mpi, MPI_Test(&mpi->requests[i], &done, &mpi->statuses[0])))
            return false;
        if (was_open && done)
            look_at(mpi, &mpi->pieces[i], &mpi->statuses[0]);
        *open += !done;
    }
    for (uint32_t r = 0; r < mpi->comm.n_ranks; r++) {
        if (!sweep(mpi, &mpi->peers[r]))
            return false;
        *open += mpi->peers[r].n;
    }
    return !mpi->broken;
}

/* Tells all other ranks that nothing more comes from this one, and why. */
static bool say_farewell(struct comm_mpi *mpi, struct farewell *farewell, MPI_Request *requests)
{
    size_t n = 0;
    for (uint32_t r = 0; r < mpi->comm.n_ranks; r++) {
        if (r == mpi->comm.rank)
            continue;
        if (!good(mpi, MPI_Isend(farewell, (int)sizeof *farewell, MPI_BYTE, (int)r, 0, mpi->words,
                                 &requests[n++])) ||
            !good(mpi, MPI_Isend(NULL, 0, MPI_BYTE, (int)r, TAG_GONE, mpi->data, &requests[n++])))
            return false;
    }
    return true;
}

/* Until all other ranks are gone too and nothing of this one is under way. */
static void part(struct comm_mpi *mpi, const char *reason)
{
    struct farewell farewell = {.rank = mpi->comm.rank};
    size_t n = 2 * (size_t)(mpi->comm.n_ranks - 1), open = 1;
    int all_said = 0;
    mpi->lost = mpi->parted = true;
    MPI_Request *requests = malloc((n + 1) * sizeof *requests);
    if (requests == NULL) {
        break_off(mpi, "out of memory");
        return;
    }
    if (mpi->has_heard)
        farewell = mpi->heard; /* the cause, not what came of it */
    else if (reason != NULL)
        snprintf(farewell.text, sizeof farewell.text, "%s", reason);
    for (size_t i = 0; i < mpi->n_pieces; i++)
        if (mpi->pieces[i].in && mpi->requests[i] != MPI_REQUEST_NULL)
            good(mpi, MPI_Cancel(&mpi->requests[i]));
    bool going = say_farewell(mpi, &farewell, requests);
    while (going && !mpi->broken && (mpi->n_there > 0 || open > 0 || !all_said))
        going = throw_away(mpi) && settle(mpi, &open) &&
                good(mpi, MPI_Testall((int)n, requests, &all_said, MPI_STATUSES_IGNORE));
    free(requests);
}

/* ---- Exchange -------------------------------------------------------------------------------- */

static size_t pieces_of(size_t bytes)
{
    return bytes / PIECE_BYTES + (bytes % PIECE_BYTES > 0);
}

static bool reserve(struct comm_mpi *mpi, size_t n)
{
    if (n <= mpi->max_pieces)
        return true;
    struct piece *pieces = realloc(mpi->pieces, n * sizeof *pieces);
    mpi->pieces = pieces != NULL ? pieces : mpi->pieces;
    MPI_Request *requests = realloc(mpi->requests, n * sizeof *requests);
    mpi->requests = requests != NULL ? requests : mpi->requests;
    MPI_Status *statuses = realloc(mpi->statuses, n * sizeof *statuses);
    mpi->statuses = statuses != NULL ? statuses : mpi->statuses;
    int *done = realloc(mpi->done, n * sizeof *done);
    mpi->done = done != NULL ? done : mpi->done;
    if (pieces == NULL || requests == NULL || statuses == NULL || done == NULL)
        return break_off(mpi, "out of memory");
    mpi->max_pieces = n;
    return true;
}

/* Begins to receive, or to send from the caller's memory. */
static bool begin_pieces(struct comm_mpi *mpi, uint32_t rank, void *in, const void *out,
                         size_t bytes)
{
    for (size_t at = 0, n; at < bytes; at += n) {
        MPI_Request *request = &mpi->requests[mpi->n_pieces];
        n = MIN(bytes - at, PIECE_BYTES);
        int code = in != NULL ? MPI_Irecv((char *)in + at, (int)n, MPI_BYTE, (int)rank, MPI_ANY_TAG,
                                          mpi->data, request)
                              : MPI_Isend((const char *)out + at, (int)n, MPI_BYTE, (int)rank,
                                          TAG_DATA, mpi->data, request);
        if (!good(mpi, code))
            return false;
        mpi->pieces[mpi->n_pieces++] = (struct piece){rank, n, in != NULL};
    }
    return true;
}

static bool begin(struct comm_mpi *mpi, const struct comm_transfer *transfers, size_t n)
{
    size_t most = 0;
    for (size_t i = 0; i < n; i++)
        most += pieces_of(transfers[i].in_bytes) + pieces_of(transfers[i].out_bytes);
    if (!reserve(mpi, most))
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct comm_transfer *one = &transfers[i];
        if (!begin_pieces(mpi, one->rank, one->in, NULL, one->in_bytes))
            return false;
    }
    for (size_t i = 0; i < n; i++) {
        const struct comm_transfer *one = &transfers[i];
        mpi->peers[one->rank].waits = false;
        if (one->out_bytes == 0)
            continue;
        bool begun = one->out_bytes <= COMM_EAGER_BYTES
                         ? send_small(mpi, one)
                         : begin_pieces(mpi, one->rank, NULL, one->out, one->out_bytes);
        if (!begun)
            return false;
    }
    return true;
}

/* Sends what found no room before; *left: how many still find none. */
static bool send_waiting(struct comm_mpi *mpi, const struct comm_transfer *transfers, size_t n,
                         size_t *left)
{
    *left = 0;
    for (size_t i = 0; i < n; i++) {
        struct peer *peer = &mpi->peers[transfers[i].rank];
        if (peer->waits && !send_small(mpi, &transfers[i]))
            return false;
        *left += peer->waits;
    }
    return true;
}

/* Waits for all that was begun; false as soon as that cannot end well. */
static bool finish(struct comm_mpi *mpi, const struct comm_transfer *transfers, size_t n)
{
    size_t open = mpi->n_pieces, left = 0;
    if (!send_waiting(mpi, transfers, n, &left))
        return false;
    while (open + left > 0 && !mpi->lost) {
        int n_done = 0, n_all = (int)mpi->n_pieces;
        int code = left > 0 ? MPI_Testsome(n_all, mpi->requests, &n_done, mpi->done, mpi->statuses)
                            : MPI_Waitsome(n_all, mpi->requests, &n_done, mpi->done, mpi->statuses);
        if (n_done == MPI_UNDEFINED) /* nothing was open */
            n_done = 0;
        if (code == MPI_ERR_IN_STATUS)
            for (int i = 0; i < n_done; i++)
                good(mpi, mpi->statuses[i].MPI_ERROR);
        if (!good(mpi, code))
            return false;
        for (int i = 0; i < n_done; i++)
            look_at(mpi, &mpi->pieces[mpi->done[i]], &mpi->statuses[i]);
        open -= (size_t)n_done;
        if (left > 0 && !send_waiting(mpi, transfers, n, &left))
            return false;
    }
    return !mpi->lost;
}

static enum status check(const struct comm *comm, const struct comm_transfer *transfers, size_t n,
                         struct error *error)
{
    for (size_t i = 0; i < n; i++)
        if (transfers[i].rank >= comm->n_ranks || transfers[i].rank == comm->rank)
            return error_set(error, STATUS_INVALID, "rank %u cannot exchange with rank %u of %u",
                             comm->rank, transfers[i].rank, comm->n_ranks);
    return STATUS_OK;
}

static enum status exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error)
{
    struct comm_mpi *mpi = (struct comm_mpi *)comm;
    enum status status = check(comm, transfers, n, error);
    if (status != STATUS_OK)
        return status;
    if (!mpi->lost) {
        mpi->n_pieces = 0;
        bool done = begin(mpi, transfers, n) && finish(mpi, transfers, n);
        if (done)
            return STATUS_OK;
        if (!mpi->broken)
            part(mpi, NULL);
        mpi->n_pieces = 0;
        if (!mpi->broken && mpi->has_heard)
            error_set(&mpi->error, STATUS_LOST, "rank %u has ended: %s", mpi->heard.rank,
                      mpi->heard.text);
        else if (!mpi->broken)
            error_set(&mpi->error, STATUS_LOST, "another rank has ended");
    }
    return error_set(error, STATUS_LOST, "%s", mpi->error.text);
}

/* ---- Opening and closing --------------------------------------------------------------------- */

/* MPI would start by itself as the only rank; whoever forgot mpirun should hear of it. */
static bool was_started_by_mpi(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (getenv(names[i]) != NULL)
            return true;
    return false;
}

/* Ranks of this machine that may run on the same processors as this one. */
static bool count_sharing(struct comm_mpi *mpi, uint32_t *n_sharing)
{
    MPI_Comm here = MPI_COMM_NULL, same = MPI_COMM_NULL;
    struct machine machine;
    int n = 1;
    machine_query(&machine);
    if (!good(mpi, MPI_Comm_split_type(mpi->data, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here)))
        return false;
    bool counted = good(mpi, MPI_Comm_split(here, (int)(machine.processors % INT_MAX), 0, &same)) &&
                   good(mpi, MPI_Comm_size(same, &n));
    if (same != MPI_COMM_NULL)
        MPI_Comm_free(&same);
    MPI_Comm_free(&here);
    *n_sharing = (uint32_t)n;
    return counted;
}

static bool open_rings(struct comm_mpi *mpi)
{
    mpi->peers = calloc(mpi->comm.n_ranks, sizeof *mpi->peers);
    for (uint32_t r = 0; r < mpi->comm.n_ranks && mpi->peers != NULL; r++) {
        mpi->peers[r].ring = r != mpi->comm.rank ? malloc(RING_BYTES) : NULL;
        if (r != mpi->comm.rank && mpi->peers[r].ring == NULL)
            return break_off(mpi, "out of memory");
    }
    return mpi->peers != NULL || break_off(mpi, "out of memory");
}

static bool join(struct comm_mpi *mpi, uint32_t *n_sharing)
{
    int level, rank = 0, n = 1;
    /* The ranks' own threads compute; this one alone calls MPI. */
    if (!good(mpi, MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level)) ||
        !good(mpi, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN)) ||
        !good(mpi, MPI_Comm_dup(MPI_COMM_WORLD, &mpi->data)) ||
        !good(mpi, MPI_Comm_dup(MPI_COMM_WORLD, &mpi->words)) ||
        !good(mpi, MPI_Comm_rank(mpi->data, &rank)) || !good(mpi, MPI_Comm_size(mpi->data, &n)))
        return false;
    mpi->comm = (struct comm){.rank = (uint32_t)rank, .n_ranks = (uint32_t)n, .exchange = exchange};
    mpi->n_there = mpi->comm.n_ranks - 1;
    return open_rings(mpi) && count_sharing(mpi, n_sharing);
}

enum status comm_mpi_open(struct comm **out, uint32_t *n_sharing, struct error *error)
{
    *out = NULL;
    if (!was_started_by_mpi())
        return error_set(error, STATUS_INVALID,
                         "MPI has not started this process: begin the command with mpirun, as in "
                         "mpirun -n 2 consort bench MODEL --mpi");
    struct comm_mpi *mpi = calloc(1, sizeof *mpi);
    if (mpi == NULL)
        return error_memory(error, sizeof *mpi);
    if (!join(mpi, n_sharing)) {
        *error = mpi->error;
        comm_mpi_close(&mpi->comm, NULL);
        return error->code;
    }
    *out = &mpi->comm;
    return STATUS_OK;
}

/* Nobody ends before all have said what they had to say: mpirun ends the others of one that
 * failed. */
static void leave(struct comm_mpi *mpi)
{
    int started = 0;
    if (MPI_Initialized(&started) != MPI_SUCCESS || !started)
        return;
    if (mpi->broken || MPI_Barrier(mpi->words) != MPI_SUCCESS)
        MPI_Abort(MPI_COMM_WORLD, 1);
    MPI_Comm_free(&mpi->words);
    MPI_Comm_free(&mpi->data);
    MPI_Finalize();
}

void comm_mpi_close(struct comm *comm, const char *reason)
{
    struct comm_mpi *mpi = (struct comm_mpi *)comm;
    if (mpi == NULL)
        return;
    if (!mpi->parted && !mpi->broken)
        part(mpi, reason);
    leave(mpi);
    for (uint32_t r = 0; r < comm->n_ranks && mpi->peers != NULL; r++)
        free(mpi->peers[r].ring);
    free(mpi->peers);
    free(mpi->pieces);
    free(mpi->requests);
    free(mpi->statuses);
    free(mpi->done);
    free(mpi);
}
