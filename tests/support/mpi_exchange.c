/* What comm.h promises, of ranks over MPI; run by tests/cluster/test_mpi.py.
 *
 *   mpirun -n N mpi_exchange all       sizes, orders, messages nobody asks for yet
 *   mpirun -n N mpi_exchange leave     the last rank gives a reason and ends, others wait for it
 *   mpirun -n N mpi_exchange size      a message has another size than its receiver asks for
 *
 * Pieces are small here, so that messages of several of them need little memory. Rank 0 prints what
 * it came to. */
#define PIECE_BYTES ((size_t)65536)
#include "../../src/cluster/comm_mpi.c"

#define ROUNDS 400
#define LARGEST 300000

static void fail(const struct comm *comm, const char *what)
{
    fprintf(stderr, "rank %u: %s\n", comm->rank, what);
    MPI_Abort(MPI_COMM_WORLD, 3);
}

/* The bytes of message number `message` from one rank to another. */
static unsigned char byte_of(uint32_t from, uint32_t to, uint32_t message, size_t at)
{
    return (unsigned char)(7 * at + at / 251 + 13 * from + 29 * to + 31 * message);
}

static void fill(unsigned char *data, size_t n, uint32_t from, uint32_t to, uint32_t message)
{
    for (size_t i = 0; i < n; i++)
        data[i] = byte_of(from, to, message, i);
}

static bool is_filled(const unsigned char *data, size_t n, uint32_t from, uint32_t to,
                      uint32_t message)
{
    for (size_t i = 0; i < n; i++)
        if (data[i] != byte_of(from, to, message, i))
            return false;
    return true;
}

/* Of message number `message`: none, one byte, small ones, those around the limits, large ones. */
static size_t size_of(uint32_t from, uint32_t to, uint32_t message)
{
    static const size_t sizes[] = {0,     1,     1024,  4096,   8192,   65535,
                                   65536, 65537, 98304, 131072, 131073, LARGEST};
    return sizes[rng_u64(1000 + from * 64 + to, message, 0) % ARRAY_COUNT(sizes)];
}

static void run(struct comm *comm, const struct comm_transfer *transfers, size_t n)
{
    struct error error;
    if (comm->exchange(comm, transfers, n, &error) != STATUS_OK)
        fail(comm, error.text);
}

/* Everyone with everyone, each way of another size. */
static void test_all(struct comm *comm, unsigned char *out, unsigned char *in)
{
    struct comm_transfer transfers[16];
    for (uint32_t m = 0; m < ROUNDS; m++) {
        size_t n = 0;
        for (uint32_t r = 0; r < comm->n_ranks; r++) {
            if (r == comm->rank)
                continue;
            transfers[n] = (struct comm_transfer){r, out + n * LARGEST, size_of(comm->rank, r, m),
                                                  in + n * LARGEST, size_of(r, comm->rank, m)};
            fill(out + n * LARGEST, transfers[n].out_bytes, comm->rank, r, m);
            n++;
        }
        run(comm, transfers, n);
        memset(out, 0, n * LARGEST); /* is the caller's again */
        for (size_t i = 0; i < n; i++)
            if (!is_filled(transfers[i].in, transfers[i].in_bytes, transfers[i].rank, comm->rank,
                           m))
                fail(comm, "other bytes came than were sent");
    }
}

/* Each sends as much as may lie on the way before anybody asks for it, in parts of one size. */
static void test_early(struct comm *comm, unsigned char *out, unsigned char *in, size_t size)
{
    uint32_t n = (uint32_t)(COMM_EAGER_BYTES / size);
    for (uint32_t times = 0; times < 5; times++) {
        for (uint32_t m = 0; m < n; m++)
            for (uint32_t r = 0; r < comm->n_ranks; r++) {
                struct comm_transfer send = {.rank = r, .out = out, .out_bytes = size};
                if (r == comm->rank)
                    continue;
                fill(out, size, comm->rank, r, m);
                run(comm, &send, 1);
            }
        for (uint32_t m = 0; m < n; m++)
            for (uint32_t r = 0; r < comm->n_ranks; r++) {
                struct comm_transfer receive = {.rank = r, .in = in, .in_bytes = size};
                if (r == comm->rank)
                    continue;
                run(comm, &receive, 1);
                if (!is_filled(in, size, r, comm->rank, m))
                    fail(comm, "early messages came in another order");
            }
    }
}

/* Round a ring: what one call sends is received by another. */
static void test_ring(struct comm *comm, unsigned char *out, unsigned char *in)
{
    uint32_t next = (comm->rank + 1) % comm->n_ranks,
             before = (comm->rank + comm->n_ranks - 1) % comm->n_ranks;
    for (uint32_t m = 0; m < ROUNDS; m++) {
        size_t size = size_of(0, 0, m);
        struct comm_transfer send = {.rank = next, .out = out, .out_bytes = size};
        struct comm_transfer receive = {.rank = before, .in = in, .in_bytes = size};
        fill(out, size, comm->rank, next, m);
        if (comm->rank == 0)
            run(comm, &send, 1);
        run(comm, &receive, 1);
        if (!is_filled(in, size, before, comm->rank, m))
            fail(comm, "other bytes came round than were sent");
        if (comm->rank != 0)
            run(comm, &send, 1);
    }
}

/* The last rank ends while large messages are on their way to it and others wait for it, some of
 * them only for one another. */
static const char *test_leave(struct comm *comm, unsigned char *out, unsigned char *in)
{
    static struct error error;
    uint32_t last = comm->n_ranks - 1, next = (comm->rank + 1) % comm->n_ranks;
    struct comm_transfer both = {next, out, LARGEST, in, LARGEST};
    if (comm->rank == last)
        return "it had enough";
    if (comm->exchange(comm, &both, 1, &error) != STATUS_LOST)
        fail(comm, "an exchange with a rank that is gone went well");
    if (strstr(error.text, "it had enough") == NULL)
        fail(comm, error.text);
    if (comm->exchange(comm, &both, 1, &error) != STATUS_LOST)
        fail(comm, "an exchange after that went well");
    if (comm->rank == 0)
        printf("%s\n", error.text);
    return "its neighbour is gone";
}

static void test_size(struct comm *comm, unsigned char *out, unsigned char *in)
{
    struct error error;
    struct comm_transfer send = {.rank = 1, .out = out, .out_bytes = 100};
    struct comm_transfer receive = {.rank = 0, .in = in, .in_bytes = 101};
    if (comm->rank == 0)
        run(comm, &send, 1);
    if (comm->rank == 1 && comm->exchange(comm, &receive, 1, &error) != STATUS_LOST)
        fail(comm, "a message of another size was taken");
    if (comm->rank == 1) {
        printf("%s\n", error.text);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    struct error error;
    struct comm *comm;
    uint32_t n_sharing;
    const char *what = argc > 1 ? argv[1] : "", *reason = NULL;
    if (comm_mpi_open(&comm, &n_sharing, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    unsigned char *out = calloc(comm->n_ranks, LARGEST), *in = calloc(comm->n_ranks, LARGEST);
    if (out == NULL || in == NULL)
        fail(comm, "out of memory");
    if (strcmp(what, "all") == 0) {
        test_all(comm, out, in);
        test_early(comm, out, in, 1024);
        test_early(comm, out, in, 8192);
        test_early(comm, out, in, COMM_EAGER_BYTES);
        if (comm->n_ranks > 1)
            test_ring(comm, out, in);
        if (comm->rank == 0)
            printf("all came, %u sharing\n", n_sharing);
    } else if (strcmp(what, "leave") == 0) {
        reason = test_leave(comm, out, in);
    } else if (strcmp(what, "size") == 0) {
        test_size(comm, out, in);
    }
    comm_mpi_close(comm, reason);
    free(out);
    free(in);
    return 0;
}
