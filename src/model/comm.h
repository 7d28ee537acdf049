/* comm: how the ranks of one model that is spread over several machines talk. The model knows no
 * network: the cluster implements this over links, a rack over MPI, tests with threads. What is
 * sent, in which order, and every sum is the model's own business (exchange.c).
 *
 * Rank r of a model_placement is its r-th shard, counted over the stages and within each over its
 * shards. A comm belongs to the one thread that runs the model on its rank.
 */
#ifndef CONSORT_MODEL_COMM_H
#define CONSORT_MODEL_COMM_H

#include "base/base.h"

/* What goes to and comes from one rank, of which a call has one transfer at most. Nothing else
 * touches the memory at in meanwhile. Either size may be 0; the pointer then is not looked at. */
struct comm_transfer {
    uint32_t rank;
    const void *out;
    size_t out_bytes;
    void *in;
    size_t in_bytes;
};

/* So many bytes may lie on the way to a rank that does not ask for them yet: whatever it does, an
 * exchange that has no more to send than that does not wait for it. */
#define COMM_EAGER_BYTES 65536

struct comm {
    uint32_t rank, n_ranks;
    /* Sends each out to, and receives each in from, its rank, all at once: full duplex, and no
     * deadlock whatever the sizes. Messages of one pair stay in order, and each out of one side is
     * matched by an in of the same size on the other, though not by the same call: a side may send
     * now what the other receives later. Returns when every in is there and every out may be
     * overwritten, which does not mean that it has arrived. STATUS_LOST when a rank is gone or
     * the implementation was told to give up; every call fails from then on. */
    enum status (*exchange)(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error);
};

#endif
