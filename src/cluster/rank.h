/* rank: one rank of an instance on this machine, on threads of its own.
 *
 * Life: cluster_rank_open, then `opened` when the model is there on all ranks, or why it is not.
 * The owner takes work from then on (cluster_rank_start) and gives its tokens; the others compute
 * with it. `broken` says that the rank can do so no more; work that was not ended then never is:
 * whoever gave it starts it again elsewhere, with the tokens that came. cluster_rank_close ends all
 * of it, at any time.
 *
 * Functions may be called from any thread, but cluster_rank_close from none that an event is on. */
#ifndef CONSORT_CLUSTER_RANK_H
#define CONSORT_CLUSTER_RANK_H

#include "engine/engine.h"
#include "model/model.h"

struct cluster_rank;
struct comm_mesh;

/* Called on the rank's threads, several at the same time but never two about the same work, and not
 * after cluster_rank_close has returned. They must not block. Strings are borrowed for the call;
 * data are references that the callee takes. */
struct cluster_rank_events {
    void (*opened)(void *context, enum status status,
                   const char *reason); /* once; reason or NULL */
    /* At most once. STATUS_LOST: another rank is gone, or gave up; else it is this one's fault. */
    void (*broken)(void *context, enum status status, const char *reason);
    /* Token number index of the answer, those that were drawn before counted; data as
     * generation_token_write gives it. */
    void (*token)(void *context, uint64_t work, uint32_t index, int32_t token, json_t *data);
    /* Once, unless the work was cancelled or the rank closed or broke. status OK: data as
     * generation_end_write gives it; else why, and data the same or NULL. */
    void (*end)(void *context, uint64_t work, enum status status, const char *reason, json_t *data);
};

/* All is copied but the mesh and events. */
struct cluster_rank_options {
    const char *path; /* of the model, or the slice of it that the rank needs */
    struct model_placement placement;
    uint32_t rank;
    bool owner;                 /* it is the placement's */
    struct comm_mesh *mesh;     /* of this rank; NULL: the only one */
    struct model_options model; /* but for placement and comm; with a mesh its pool is not used:
                                   who waits for others must not keep other models waiting */
    struct scheduler_options scheduler;
    const struct cluster_rank_events *events; /* borrowed */
    void *context;
    uint64_t mesh_ms; /* until all wires of the mesh are there; 0: 30 s */
    uint64_t spin_ns; /* how long an exchange looks before it sleeps; 0: 100 us */
};

/* Starts to open it. Takes the mesh over unless it fails; wires may still be added to it until
 * cluster_rank_close. */
enum status cluster_rank_open(struct cluster_rank **out, const struct cluster_rank_options *options,
                              struct error *error);
/* Gives up what is under way, waits for the threads (at most as long as a step takes, or opening a
 * file), frees all and the mesh. NULL allowed. */
void cluster_rank_close(struct cluster_rank *rank);
/* All waits for other ranks end, here and there; the rank is broken, or was never opened. */
void cluster_rank_abort(struct cluster_rank *rank);

/* At an owner that was opened: computes a request, as generation_request_write gives it, of which
 * tokens[n_tokens] were drawn before. STATUS_INVALID: no such request. What else is wrong with it
 * comes by `end`. Work for a rank that is broken is taken and never ends. work names it, and no
 * other. */
enum status cluster_rank_start(struct cluster_rank *rank, uint64_t work, const json_t *payload,
                               const int32_t *tokens, size_t n_tokens, struct error *error);
/* No end comes of the work, and at most a token that is on its way. */
void cluster_rank_cancel(struct cluster_rank *rank, uint64_t work);

/* A number that grows while something is computed here, in parts of a step; and whether it should:
 * there is something to compute, which does not wait for other ranks. */
void cluster_rank_steps(struct cluster_rank *rank, uint64_t *steps, bool *waiting);

/* At an owner: tokens a second of one text, the best of late; 0: not known. */
double cluster_rank_reached(struct cluster_rank *rank);

/* ---- Placements as JSON ---------------------------------------------------------------------- */

/* {"stages": [{"first", "end", "shares": [...]}, ...], "n_ctx", "n_cache", "kv"}: a placement and
 * what all ranks must agree on beside it. A new reference, NULL where memory is out. */
json_t *cluster_placement_write(const struct model_placement *placement,
                                const struct model_options *options);
/* Stages follow each other from layer 0 on; whether they are those of a model, the model says. Sets
 * n_ctx, n_cache and kv_format of options, and nothing else. */
enum status cluster_placement_read(const json_t *spec, struct model_placement *placement,
                                   struct model_options *options, struct error *error);

#endif
