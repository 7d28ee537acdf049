/* What the files of a node share. Everything belongs to the loop's thread, but where a comment says
 * otherwise. */
#ifndef CONSORT_CLUSTER_NODE_INTERNAL_H
#define CONSORT_CLUSTER_NODE_INTERNAL_H

#include "cluster/comm_links.h"
#include "cluster/cluster.h"

#include <pthread.h>
#include <stdatomic.h>

#define NODE_MAX_LINKS 128
#define NODE_MAX_WIRES 64 /* that came before the rank they are for */

/* A control link, by the number that the core knows it by. */
struct node_link {
    uint32_t id; /* 0: free */
    struct net_link *link;
    struct cluster_node *node;
    bool outgoing, up;                   /* up: the core has been told */
    char dialled[CLUSTER_ADDRESS_BYTES]; /* outgoing: as env->connect was given it */
    char address[CLUSTER_ADDRESS_BYTES]; /* where the peer can be dialled; "": not known */
    char peer_id[CLUSTER_ID_TEXT];
    struct buffer partial; /* of a message in several frames */
};

struct node_rank;
struct node_fetcher;
struct node_serving;
struct target;
struct node_request;
struct node_metadata;

/* A wire of a mesh whose rank is not open yet. */
struct node_wire {
    struct net_wire *wire;
    uint64_t instance, came_ms;
    uint32_t epoch, rank;
};

struct local_model {
    char sha[CLUSTER_SHA_TEXT];
    char *path;
};

struct cluster_node {
    atomic_uint n_holds; /* by its owner, threads and posts; freed with the last */
    struct cluster_node_options options;
    struct cluster_core *core;
    uint8_t id[NET_NODE_BYTES];
    char id_text[CLUSTER_ID_TEXT];
    uint64_t incarnation;
    char name[CLUSTER_NAME_BYTES];
    struct cluster_key keys[CLUSTER_MAX_KEYS]; /* the first is the one wanted */
    struct net_link_key link_keys[CLUSTER_MAX_KEYS];
    struct cluster_beacon_key beacon_keys[CLUSTER_MAX_KEYS];
    size_t n_keys;
    char saved_key_id[CLUSTER_KEY_ID_BYTES]; /* of the key in the file */

    struct net_link_server *server;
    struct net_multicast *multicast;
    struct net_timer *ticking;
    uint64_t beaconed_ms, facts_ms, saved_ms, replicas_ms;
    json_t *to_save; /* not written yet */
    struct node_link links[NODE_MAX_LINKS];
    uint32_t last_link;
    bool closing;

    struct node_rank *ranks;
    struct node_wire wires[NODE_MAX_WIRES];
    struct node_fetcher *fetchers;
    struct node_serving *servings;
    struct target *targets[CLUSTER_MAX_TRANSFERS];
    struct node_request *requests;
    struct node_metadata *metadata;
    pthread_mutex_t post_mutex;  /* guards */
    bool deaf;                   /* the loop may be gone */
    pthread_mutex_t local_mutex; /* guards the models that lie here whole */
    struct local_model local[CLUSTER_MAX_MODELS];
    size_t n_local;
    double read_bandwidth, flops;
    uint32_t n_rates;
    struct cluster_rate rates[CLUSTER_MAX_RATES];
    struct cluster_places places; /* this node's addresses, looked at every PLACES_MS */
    uint64_t places_ms;
    atomic_bool measuring; /* with any other node */
};

/* The node's memory stays while it is held, also when it was closed (closing). Any thread. */
void node_hold(struct cluster_node *node);
void node_let_go(struct cluster_node *node);
/* Runs fn(context) on the loop, also where the node is closing; holds the node until then. */
bool node_post(struct cluster_node *node, net_fn *fn, void *context);

void node_logf(struct cluster_node *node, const char *format, ...) BASE_PRINTF(2, 3);
/* Our hello for a wire of that purpose; fields (taken over) is its text. */
struct net_hello node_hello(const struct cluster_node *node, enum net_purpose purpose,
                            json_t *fields);
/* Where the links of a node can be reached now; false: it is not known. */
bool node_address(const struct cluster_node *node, struct cluster_id id,
                  char out[CLUSTER_ADDRESS_BYTES]);
uint64_t node_now_ms(void);
struct cluster_id node_id_of(const uint8_t bytes[NET_NODE_BYTES]);
void node_id_bytes(struct cluster_id id, uint8_t out[NET_NODE_BYTES]);
/* The host that this node listens on alone; empty where it listens on all its addresses. */
struct view node_listen_host(const struct cluster_node *node);

/* ---- Ways to other nodes (node_ways.c) ---- */

/* The ways to a node for data, the best first, and last the address of the control link. */
struct node_ways {
    struct cluster_id id;
    size_t n;
    struct cluster_way ways[CLUSTER_MAX_PATHS + 1];
};

struct node_ways node_ways(const struct cluster_node *node, struct cluster_id id);
/* Any thread: connects the first way that works; those that did not are told to the core where
 * another did. Each but the last has a few seconds at most. *used (NULL allowed) is its index. */
enum status node_ways_connect(struct cluster_node *node, struct net_wire **out,
                              const struct node_ways *ways, const struct net_link_key *key,
                              const struct net_hello *hello, uint64_t deadline_ns, size_t *used,
                              struct error *error);
/* This node's addresses, as they are now. */
void node_places_refresh(struct cluster_node *node);
void node_place_gone(void *context, struct cluster_id id, const char *address);

/* ---- Ranks (node_ranks.c) ---- */

void node_rank_open(void *context, const struct cluster_open *open);
void node_rank_close(void *context, uint64_t instance, uint32_t epoch);
void node_rank_start(void *context, const struct cluster_work *work);
void node_rank_cancel(void *context, uint64_t work);
/* A wire of a mesh has come; it is taken over. */
void node_rank_wire(struct cluster_node *node, struct net_wire *wire,
                    const struct net_hello *hello);
void node_rank_tick(struct cluster_node *node); /* step counters, wires that nobody claimed */
/* A node, or this one (own), has that address no more: what goes there breaks now. */
void node_ranks_place_gone(struct cluster_node *node, bool own, const char *address);
void node_ranks_close(struct cluster_node *node);

/* ---- What lies here (node_shelf.c) ---- */

#define OBJECT_HASH_BYTES 32

/* The bytes of one object, wherever they are. Of one thread. Begins with fd -1. */
struct object_source {
    char object[CLUSTER_OBJECT_BYTES];          /* "": none */
    int fd;                                     /* a file that holds them */
    struct weights *files[CLUSTER_MAX_OBJECTS]; /* else they are made of these */
    size_t n_files;
    struct weights_slice *slice;
    uint64_t size_bytes;
};

/* Stays open where it is the same object as before. Any thread, as all of these. */
enum status object_source_open(struct cluster_node *node, struct object_source *source,
                               const char *object, struct error *error);
void object_source_close(struct object_source *source);
/* Appends the SHA-256 of a chunk and its bytes. */
enum status object_source_read(struct object_source *source, uint32_t chunk, struct buffer *out,
                               struct error *error);
size_t object_chunk_size(uint64_t size_bytes, uint32_t chunk);
bool object_hash(const char *data, size_t size, uint8_t out[OBJECT_HASH_BYTES]);

/* The object that a rank needs where its node does not hold the model. */
enum status node_object_name(const struct model_placement *placement, uint32_t rank,
                             const char *sha, char out[CLUSTER_OBJECT_BYTES], struct error *error);
/* The file of an object, or of what belongs to it. False: no such object. */
bool node_object_file(const char *object, const char *end, struct buffer *out);
/* What lies here whole, for threads that serve it. */
void node_take_models(struct cluster_node *node, const struct cluster_local_model *models,
                      size_t n);
bool node_object_has(void *context, const char *object);
/* The file of an object that is here whole, or of the model it can be made from; false: none. */
bool node_object_path(struct cluster_node *node, const char *object, struct buffer *out);
/* The file of any object of the model that lies here; false: none. */
bool node_object_any(const char *sha, struct buffer *out);
void node_object_used(const char *object);                    /* just now */
void node_object_call(const char *object, const char *model); /* the model's name */
void node_object_remove(void *context, const char *object);
void node_objects_facts(struct cluster_node *node, struct cluster_facts *facts);
void node_objects_open(void); /* removes what was not fetched to its end long ago */

/* ---- Objects over wires (node_objects.c) ---- */

void node_object_fetch(void *context, const char *object, uint32_t chunk, struct cluster_id source);
void node_object_fetched(void *context, const char *object, const char *model);
void node_object_abandon(void *context, const char *object);
/* Brings a small object, without the control plane: after a while it is here, if it came whole. */
void node_object_bring(struct cluster_node *node, const char *object, struct cluster_id source);
/* A node asks for objects over a wire, which is taken over. */
void node_object_serve(struct cluster_node *node, struct net_wire *wire);
void node_objects_place_gone(struct cluster_node *node, bool own, const char *address);
void node_objects_close(struct cluster_node *node);

/* ---- Measuring (node_measure.c) ---- */

void node_measure(void *context, struct cluster_id peer, const struct cluster_way *way);
void node_measure_machine(struct cluster_node *node); /* fills read_bandwidth, flops, rates */
void node_measure_answer(struct cluster_node *node, struct net_wire *wire);

/* ---- Requests (node_requests.c) ---- */

void node_request_token(void *context, uint64_t request, uint32_t index, int32_t token,
                        const json_t *data);
void node_request_end(void *context, uint64_t request, enum status status, const char *reason,
                      const json_t *data);
void node_requests_close(struct cluster_node *node);

/* ---- Metadata (node_metadata.c) ---- */

/* A file here with the metadata of the model: the whole one, a slice, or what was fetched. */
bool node_metadata_path(struct cluster_node *node, const char *sha, struct buffer *out);
/* Has it fetched; a while later it is here. */
void node_metadata_ask(struct cluster_node *node, const char *sha);
void node_metadata_tick(struct cluster_node *node);
void node_metadata_close(struct cluster_node *node);

/* ---- Planning (node_plan.c) ---- */

enum status node_plan(void *context, const struct cluster_plan_input *input,
                      struct cluster_plan *out, struct error *error);

#endif
