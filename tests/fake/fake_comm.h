/* Ranks as threads of one process: what they send each other goes through bounded queues, so that a
 * model that leans on more than comm.h promises stands still here. Sizes of the two sides of a
 * message that do not match end the test. */
#ifndef CONSORT_TESTS_FAKE_COMM_H
#define CONSORT_TESTS_FAKE_COMM_H

#include "model/comm.h"
#include "model/model.h"

struct fake_network;

struct fake_network *fake_network_open(uint32_t n_ranks);
void fake_network_close(struct fake_network *network);
struct comm *fake_network_comm(struct fake_network *network, uint32_t rank);
/* From now on, or after so many calls of any rank, nobody waits for another any more: calls that
 * would, or do, fail with STATUS_LOST. What lies on the way is still received. */
void fake_network_cut(struct fake_network *network);
void fake_network_cut_after(struct fake_network *network, uint64_t n_calls);
uint64_t fake_network_calls(struct fake_network *network);

/* A model over all ranks of options.placement: the owner's, and threads that follow it. */
struct fake_ranks {
    struct fake_network *network;
    struct model *owner; /* NULL where it could not be opened */
    struct fake_rank *ranks;
    uint32_t n_ranks;
};

/* options and weights stay borrowed until closing; on_fake: each rank on a fake device of its own.
 * own_weights (or NULL): of each rank, instead of weights. options.comm and backend are set
 * here. */
enum status fake_ranks_open(struct fake_ranks *ranks, const struct weights *weights,
                            const struct model_options *options, bool on_fake,
                            const struct weights *const *own_weights, struct error *error);
/* Closes the owner's model and waits for the others. Returns what model_follow, or model_open where
 * that failed, answered on the others: the first that is not STATUS_OK. */
enum status fake_ranks_close(struct fake_ranks *ranks);

/* Stages with + between them, each the shares of its shards with : between those, such as "1+2:3";
 * the layers are dealt out evenly. */
struct model_placement fake_placement(const char *text, uint32_t n_layers);

#endif
