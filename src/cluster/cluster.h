/* node: this machine as a member of its cluster.
 *
 * A struct cluster_node gives the control plane (core.h) what it acts with: links to the other
 * nodes, beacons by which they find each other, files that outlive the process, ranks of instances
 * on threads of their own, and wires over which slices come. It is opened on the loop of a server
 * and belongs to the loop's thread, as do all callbacks; ranks and transfers have threads of their
 * own, which post what happens to the loop.
 *
 * Life cycle: cluster_node_open (STATUS_NOT_FOUND: this machine is in no cluster), then any of the
 * calls, cluster_node_close before the loop is closed.
 */
#ifndef CONSORT_CLUSTER_H
#define CONSORT_CLUSTER_H

#include "cluster/core.h"
#include "cluster/key.h"
#include "engine/engine.h"
#include "net/net.h"
#include "plan/plan.h"

#define CLUSTER_DEFAULT_LISTEN ":4001"
#define CLUSTER_MAX_PEER_OPTIONS 16

struct cluster_node;

/* ---- The planner's view of a model file ------------------------------------------------------ */

/* Sums the file's tensors up by how shards hold them, for a cache of kv_format.
 * layers[PLAN_MAX_LAYERS] is the caller's and lives as long as *out. STATUS_UNSUPPORTED for models
 * that write no text. */
enum status cluster_plan_model(struct plan_model *out, struct plan_layer *layers,
                               const struct weights *weights, const struct model_desc *desc,
                               enum quant_format kv_format, struct error *error);

/* Bytes of weights that a token reads, of each format. */
struct cluster_mix {
    double bytes[QUANT_FORMAT_COUNT];
};
void cluster_plan_mix(struct cluster_mix *out, const struct weights *weights,
                      const struct model_desc *desc);
/* The read rate, for the planner, of a node for such a model: that of plain reading, less where
 * products of a format take weights slower. */
double cluster_plan_rate(const struct cluster_mix *mix, double read_bandwidth,
                         const struct cluster_rate *rates, uint32_t n);

/* ---- A node ---------------------------------------------------------------------------------- */

/* This machine's identity, made where there is none: HOME/cluster/node.json. */
enum status cluster_node_id(uint8_t id[NET_NODE_BYTES], struct error *error);

/* Removes what this machine knows of its cluster: key, identity, what was agreed on. */
enum status cluster_node_forget(struct error *error);

/* A model that lies here whole. */
struct cluster_local_model {
    struct cluster_model model;
    const char *path; /* of the file to open; borrowed */
};

/* What the server around a node does for it. */
struct cluster_host {
    void *context;
    /* Fills up to max models; returns how many there are. */
    size_t (*models)(void *context, struct cluster_local_model *out, size_t max);
    uint64_t (*memory_used)(void *context); /* by models that the server itself has open */
    void (*log)(void *context, const char *line);
    /* The node knows how fast its machine is: work that would have slowed it down may begin. Once,
     * maybe before cluster_node_open() returns. (optional) */
    void (*measured)(void *context);
    /* The models that the server has open by itself, up to max. (optional) */
    size_t (*replicas)(void *context, struct cluster_replica *out, size_t max);
    /* As in struct cluster_env, for the server's own models; what it says of them goes to the core.
     * (both where there are replicas) */
    void (*start)(void *context, const struct cluster_work *work);
    void (*cancel)(void *context, uint64_t work);
    /* As in struct cluster_env. (both or neither) */
    bool (*ask)(void *context, struct cluster_id from, uint64_t question, const char *what,
                const json_t *query);
    void (*answered)(void *context, uint64_t question, const json_t *body, const char *reason);
    /* A key of the API was revoked or changed anywhere. (optional) */
    void (*changed)(void *context, const char *key, const json_t *value);
};

struct cluster_node_options {
    struct net_loop *loop;
    const char *listen;                          /* for other nodes; NULL: CLUSTER_DEFAULT_LISTEN */
    const char *peers[CLUSTER_MAX_PEER_OPTIONS]; /* HOST:PORT of nodes, beside those that beacons
                                                    find */
    size_t n_peers;
    const char *name;           /* NULL: the machine's */
    const char *data_interface; /* that data goes over; NULL: the one that measures best */
    bool quiet;                 /* no beacons */
    uint64_t memory_limit_bytes;
    struct model_options model; /* of ranks: n_threads, kv_format, n_cache */
    struct scheduler_options scheduler;
    struct cluster_host host;
};

/* Texts of options are borrowed until the node is closed. */
enum status cluster_node_open(struct cluster_node **out, const struct cluster_node_options *options,
                              struct error *error);
/* Leaves no thread behind. Accepts NULL. */
void cluster_node_close(struct cluster_node *node);
unsigned cluster_node_port(const struct cluster_node *node);

/* What the host has changed: the others learn of it at once. */
void cluster_node_refresh(struct cluster_node *node);
/* What `consort status` shows; a new reference. */
json_t *cluster_node_status(const struct cluster_node *node);
bool cluster_node_alone(const struct cluster_node *node); /* no other is up */
/* Begins to change the cluster's key. */
enum status cluster_node_rotate(struct cluster_node *node, struct error *error);
/* The control plane, for its commands: load, unload, remove, put. */
struct cluster_core *cluster_node_core(struct cluster_node *node);

/* A model of the cluster by its name: one that runs, is to stay loaded, or lies on any node.
 * runs: whether there is an instance of it, or it is to have one. False: no node has it. */
bool cluster_node_find(struct cluster_node *node, const char *name, struct cluster_model *out,
                       bool *runs);
typedef void cluster_node_model(void *context, const struct cluster_model *model, bool runs);
void cluster_node_models(struct cluster_node *node, cluster_node_model *each, void *context);

/* A slice of a model that was fetched to this machine, with or without a server that runs. */
struct cluster_slice {
    char sha[CLUSTER_SHA_TEXT];
    char model[CLUSTER_NAME_BYTES];  /* "": not known */
    char text[CLUSTER_REASON_BYTES]; /* "layers 0 to 8 of big" */
    uint64_t size_bytes;
    int64_t used_s; /* since 1970, last */
};
size_t cluster_slices(struct cluster_slice out[CLUSTER_MAX_OBJECTS]); /* how many */
/* Removes those of a model, by its name or digest, from this machine, while no server runs here;
 * returns how many. */
size_t cluster_slices_remove(const char *model);

/* A file that holds the model's metadata, and perhaps no weights: fetched where it is not here.
 * ready is called once on the loop, never from within; path is borrowed for the call, NULL with the
 * reason where there is none. */
typedef void cluster_node_ready(void *context, const char *path, const char *reason);
void cluster_node_metadata(struct cluster_node *node, const struct cluster_model *model,
                           cluster_node_ready *ready, void *context);

/* Has a request answered by the cluster. Takes the request over, also when it fails. Events come
 * on the loop, as a scheduler gives them, until FINISHED or FAILED. *id names it for cancel, after
 * which no event comes but FINISHED with FINISH_CANCELLED, from within the call. */
enum status cluster_node_submit(struct cluster_node *node, const struct cluster_model *model,
                                struct generation_request *request, generation_callback *callback,
                                void *context, uint64_t *id, struct error *error);
void cluster_node_cancel(struct cluster_node *node, uint64_t id);

/* Which replica is to answer the request; see cluster_core_replica. */
enum cluster_route cluster_node_route(struct cluster_node *node, const char *sha,
                                      const struct generation_request *request,
                                      struct cluster_id *out);
/* As cluster_node_submit, to that node's replica first. */
enum status cluster_node_submit_to(struct cluster_node *node, struct cluster_id to,
                                   const struct cluster_model *model,
                                   struct generation_request *request,
                                   generation_callback *callback, void *context, uint64_t *id,
                                   struct error *error);

#endif
