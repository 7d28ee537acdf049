/* A whole cluster in one process, with virtual time: nodes that run cluster_core, a network between
 * them, and pretended engines, disks and clients. The same options and the same calls do the same.
 *
 * Links are ordered; each direction has a latency that varies, so what goes over different links
 * comes in any order. A direction that is blocked keeps what is sent until it is free again, as TCP
 * does. While it runs, the simulation checks what must always be true; the first violation ends it,
 * and sim_fault says what it was.
 */
#ifndef CONSORT_FAKE_CLUSTER_H
#define CONSORT_FAKE_CLUSTER_H

#include "cluster/core.h"

#define SIM_MAX_NODES CLUSTER_MAX_NODES
#define SIM_MAX_MODELS 6
#define SIM_MAX_REQUESTS 512
#define SIM_MAX_KEYS 32
#define SIM_LAYERS 240 /* of each model */
#define SIM_NOBODY SIM_MAX_NODES
#define SIM_NETWORKS 3

struct sim_options {
    uint64_t seed;
    unsigned n_nodes, n_models;
    uint64_t latency_ms;             /* at most, on a good link */
    uint64_t memory[SIM_MAX_NODES];  /* bytes */
    uint64_t disk[SIM_MAX_NODES];    /* bytes for slices; 0: more than enough */
    uint64_t models[SIM_MAX_MODELS]; /* bytes of memory that each needs */
    bool faults;                     /* local work fails now and then */
    bool silent;                     /* ranks do not notice that another one is gone */
    uint32_t idle_ms;
    bool trace;
};

/* What happened so far. */
struct sim_counts {
    uint64_t messages, answered, errors; /* requests that ended */
    uint64_t continued;                  /* ... that began again after their first token */
    uint64_t opened;                     /* ranks */
    uint64_t chunks, chunks_again;       /* fetched, and asked for though they were there */
    uint64_t removed;                    /* objects */
    uint64_t lost;                       /* nodes whose loss took nothing, as sim_lost said */
};

struct sim;

struct sim *sim_open(const struct sim_options *options);
void sim_close(struct sim *sim);
/* Until virtual time until_ms or a fault; false: there was one. */
bool sim_run(struct sim *sim, uint64_t until_ms);
/* Until done(sim), which is asked each 100 ms; false: a fault, or not by until_ms. */
bool sim_wait(struct sim *sim, uint64_t until_ms, bool (*done)(struct sim *sim));
const char *sim_fault(const struct sim *sim); /* NULL: none */
void sim_fail(struct sim *sim, const char *format, ...) BASE_PRINTF(2, 3);
const struct sim_counts *sim_counts(const struct sim *sim);
uint64_t sim_now(const struct sim *sim);
uint64_t sim_random(struct sim *sim, uint64_t below);
unsigned sim_n_nodes(const struct sim *sim);

/* ---- Nodes ----------------------------------------------------------------------------------- */

struct cluster_core *sim_core(struct sim *sim, unsigned node); /* NULL: it does not run */
struct cluster_id sim_id(const struct sim *sim, unsigned node);
const char *sim_name(const struct sim *sim, unsigned node);
/* Its configuration names the address of another; from the next start on. */
void sim_set_peer(struct sim *sim, unsigned node, unsigned peer);
void sim_start(struct sim *sim, unsigned node);
/* power: nobody is told. */
void sim_crash(struct sim *sim, unsigned node, bool power);
/* Takes no part in anything until then; its clock goes on. */
void sim_freeze(struct sim *sim, unsigned node, uint64_t until_ms);
/* Its engines make no step any more, with one in their hands. */
void sim_hang(struct sim *sim, unsigned node, bool hung);
void sim_skew(struct sim *sim, unsigned node, int64_t wall_ms);
/* Another version of the protocol. */
void sim_speak(struct sim *sim, unsigned node, int protocol);
/* The same identity as another one. */
void sim_copy_identity(struct sim *sim, unsigned node, unsigned of);
void sim_give_model(struct sim *sim, unsigned node, unsigned model);
/* The user removes a model's slices from all nodes. */
void sim_forget(struct sim *sim, unsigned node, unsigned model);
void sim_take_object(struct sim *sim, unsigned node, const char *object); /* "": all */
void sim_set_memory(struct sim *sim, unsigned node, uint64_t bytes);
/* For each object that the node holds. */
unsigned sim_n_objects(const struct sim *sim, unsigned node);
/* Bytes of ranks that are reserved and not released. */
uint64_t sim_reserved(const struct sim *sim, unsigned node);
/* Bytes that all these objects are in the simulation. */
uint64_t sim_object_bytes(const char *object);
void sim_lost(struct sim *sim, bool counts);
/* Makes all objects of a node look as if they were used last so long ago. */
void sim_age_objects(struct sim *sim, unsigned node, uint64_t seconds);
bool sim_holds(struct sim *sim, unsigned node, const char *object);
/* Whether nodes that run, without `but` (or SIM_NOBODY), hold all layers of an object together. */
bool sim_covered(struct sim *sim, const char *object, unsigned but);
/* An object that a running instance needs and that a single node's loss would take, though a node
 * without it has room for it; NULL: there is none. */
const char *sim_single(struct sim *sim);
/* Chunks that came over the network, by source. */
uint64_t sim_chunks_from(const struct sim *sim, unsigned node);
/* The node never comes back, and its state does not count. */
void sim_abandon(struct sim *sim, unsigned node);
bool sim_abandoned(const struct sim *sim, unsigned node);

/* ---- Network --------------------------------------------------------------------------------- */

void sim_block(struct sim *sim, unsigned from, unsigned to, bool blocked);
void sim_cut(struct sim *sim, unsigned a, unsigned b);         /* their links break now */
void sim_latency(struct sim *sim, unsigned node, uint64_t ms); /* more, for all of its links */
/* The interface "netN" of a node is there with that rate (bytes a second), or goes (0). It is in
 * one network with those of the same number of other nodes. */
void sim_network(struct sim *sim, unsigned node, unsigned network, double rate);
double sim_rate(const struct sim *sim, unsigned node, unsigned network);
void sim_pin(struct sim *sim, unsigned node, const char *interface); /* NULL: none */
/* The node is reached at another address from now on, beside those of its networks. */
void sim_move(struct sim *sim, unsigned node, const char *address);
unsigned sim_gone(const struct sim *sim, unsigned node); /* addresses it was told are gone */
void sim_trace(struct sim *sim);                         /* from now on */
void sim_beacons(struct sim *sim, bool on);              /* nodes find each other */
void sim_faults(struct sim *sim, bool on);               /* as in struct sim_options */

/* ---- Clients --------------------------------------------------------------------------------- */

const struct cluster_model *sim_model(const struct sim *sim, unsigned model);

enum sim_answer { SIM_WAITING, SIM_ANSWERED, SIM_ERROR, SIM_CANCELLED, SIM_GONE };

struct sim_request {
    enum sim_answer answer;
    unsigned node, model;
    uint64_t id;
    uint32_t n_wanted, n_tokens, seed;
    uint64_t begun_ms, ended_ms;
    char reason[CLUSTER_REASON_BYTES];
};

/* A client of a node asks a model for n tokens; -1: the node refused, or does not run. */
int sim_submit(struct sim *sim, unsigned node, unsigned model, uint32_t n_tokens);
void sim_cancel(struct sim *sim, int request);
/* The node's server has the model open by itself, or not any more, until it ends. Requests there
 * may be sent to such a replica then. */
void sim_set_replica(struct sim *sim, unsigned node, unsigned model, bool open);
/* Requests that were begun by a replica there. */
unsigned sim_n_replied(const struct sim *sim, unsigned node);
const struct sim_request *sim_request(const struct sim *sim, int request);
unsigned sim_n_requests(const struct sim *sim);

/* ---- Questions ------------------------------------------------------------------------------- */

/* The last question that a node was asked, and is to answer; those about "nothing" it refuses. */
struct sim_question {
    unsigned at;
    struct cluster_id from;
    uint64_t question;
    char what[CLUSTER_NAME_BYTES];
};
const struct sim_question *sim_asked(const struct sim *sim);

/* The last end of a question; n: how many there were. */
struct sim_answered {
    unsigned at, n;
    uint64_t question;
    bool good;
    int value; /* "n" of the body */
    char reason[CLUSTER_REASON_BYTES];
};
const struct sim_answered *sim_answered(const struct sim *sim);

/* ---- What can be asked of the whole ---------------------------------------------------------- */

bool sim_all_linked(struct sim *sim);   /* each pair that runs */
bool sim_all_agree(struct sim *sim);    /* the desired state is the same everywhere */
bool sim_all_answered(struct sim *sim); /* no request is under way */
bool sim_nothing_held(struct sim *sim); /* no instance, no reservation */
bool sim_settled(struct sim *sim);      /* the first three, and one instance a model at most */
unsigned sim_n_instances(struct sim *sim, unsigned model, bool running);

#endif
