/* cluster: the control plane of several machines that are one server.
 *
 * A struct cluster_core is one node's share of it: who is there (membership), what all nodes agree
 * on (the desired state), which models run where (instances, reservations, recovery), how slices
 * come to the nodes that need them (transfers), and how requests reach the owner of an instance and
 * events come back. It is a state machine without sockets, files, threads or clocks: it is fed by
 * the calls below and acts through struct cluster_env. The same calls with the same times and the
 * same random numbers do the same; tests/sim runs whole clusters in one process from a seed.
 *
 * Life: cluster_core_open, cluster_core_set_facts, then any of the calls; cluster_core_tick at
 * least every CLUSTER_TICK_MS. All calls belong to one thread (the loop). Functions of the
 * environment are called from within; they must not call the core, but give results later by the
 * calls below.
 *
 * Words: a node is one machine. A link is one authenticated, ordered connection between two nodes;
 * its end is the loss of the peer for all that was going on with it. An instance is one running
 * placement of a model; its owner schedules and samples. An epoch is one attempt to run an
 * instance: each recovery begins a new one, and what belongs to an older one is refused. A gateway
 * node is one that a client of the API is connected to. An object is a file that nodes get from
 * each other in chunks: a model ("SHA") or a slice of one ("SHA/SLICE").
 *
 * The messages are drawn at the top of the files that read them: core_members.c (hello, beat,
 * facts, bye), core_paths.c (measure, and paths in facts), core_state.c (state_...), core_worker.c
 * (reserve ... failed), core_instance.c (own, make_room, unload), core_work.c (work),
 * core_request.c (submit ... end), core_fetch.c (holds, have), core_copies.c (copy), core_disk.c
 * (forget), core_limits.c (usage, usage_heard), core_ask.c (ask, answer), core_replica.c
 * (replicas).
 */
#ifndef CONSORT_CLUSTER_CORE_H
#define CONSORT_CLUSTER_CORE_H

#include <jansson.h>

#include "base/base.h"

/* ---- Limits and times ------------------------------------------------------------------------ */

#define CLUSTER_PROTOCOL 1

#define CLUSTER_MAX_NODES 16    /* with this one; the links are a full mesh */
#define CLUSTER_MAX_ADDRESSES 4 /* of a node */
#define CLUSTER_MAX_PLACES 16   /* addresses of its interfaces that a node tells */
#define CLUSTER_MAX_PATHS 6     /* between two nodes, that are measured */
#define CLUSTER_MAX_PEERS 32    /* addresses to try whose node is not known yet */
#define CLUSTER_MAX_REFUSED 32  /* nodes that cannot take part, with the reason */
#define CLUSTER_MAX_KEYS 4      /* cluster keys at a time, while they change */
#define CLUSTER_MAX_MODELS 64   /* models that one node tells of */
#define CLUSTER_MAX_OBJECTS 64  /* slices that one node tells of */
#define CLUSTER_MAX_INSTANCES 16
#define CLUSTER_MAX_RESERVATIONS 64 /* on one node */
#define CLUSTER_MAX_REQUESTS 512    /* of the clients of one node, and at one owner */
#define CLUSTER_MAX_REPLICAS 16     /* models that a node's server has open by itself */
#define CLUSTER_MAX_PREFIXES 64     /* of prompts, that are told of one */
#define CLUSTER_PREFIX_TOKENS 64    /* the shortest of them; each level doubles it */
#define CLUSTER_PREFIX_LEVELS 10
#define CLUSTER_MAX_QUESTIONS 64     /* of this node, under way */
#define CLUSTER_MAX_TRANSFERS 16     /* objects that one node fetches at a time */
#define CLUSTER_MAX_CHUNKS 131072    /* of an object: 1 TiB */
#define CLUSTER_MAX_TOKENS (1 << 19) /* of one answer */
#define CLUSTER_MAX_ENTRIES 1024     /* of the desired state, as commands fill it */
#define CLUSTER_MAX_MERGED 4096      /* ... and as parts that were apart come together */

#define CLUSTER_ID_TEXT 33 /* 32 hexadecimal digits and the end */
#define CLUSTER_SHA_TEXT 65
#define CLUSTER_NAME_BYTES 64
#define CLUSTER_VERSION_BYTES 32
#define CLUSTER_ADDRESS_BYTES 128
#define CLUSTER_INTERFACE_BYTES 32
#define CLUSTER_REASON_BYTES 256
#define CLUSTER_OBJECT_BYTES 192
#define CLUSTER_KEY_ID_BYTES 33
#define CLUSTER_KEY_SECRET_BYTES 129
#define CLUSTER_ENTRY_KEY_BYTES 128
#define CLUSTER_ENTRY_VALUE_BYTES 2048    /* as JSON text */
#define CLUSTER_MESSAGE_BYTES (8 << 20)   /* no message is longer as JSON text */
#define CLUSTER_MESSAGE_DEPTH 16          /* ... or nested deeper; the glue refuses both */
#define CLUSTER_CHUNK_BYTES (8 << 20)     /* the last of an object may be shorter */
#define CLUSTER_CHUNK_MANIFEST UINT32_MAX /* in place of a chunk: its size and hashes */
#define CLUSTER_CHUNKS_IN_FLIGHT 6        /* of one object from one source */

#define CLUSTER_FORMAT_BYTES 12
#define CLUSTER_MAX_RATES 16

#define CLUSTER_TICK_MS 50
#define CLUSTER_BEAT_MS 250
#define CLUSTER_SILENCE_MS 3000 /* a node not heard for so long is lost */

/* Defaults of struct cluster_options. */
#define CLUSTER_GRANT_MS 10000   /* a granted reservation that is not committed ends */
#define CLUSTER_PREPARE_MS 60000 /* without a byte of a slice */
#define CLUSTER_OPEN_MS 120000
#define CLUSTER_HUNG_MS 10000 /* work waits and no step is made */

/* ---- Plain data ------------------------------------------------------------------------------ */

struct cluster_id {
    uint64_t high, low; /* both 0: none */
};

bool cluster_id_equal(struct cluster_id a, struct cluster_id b);
bool cluster_id_none(struct cluster_id id);
int cluster_id_compare(struct cluster_id a, struct cluster_id b);
const char *cluster_id_text(char text[CLUSTER_ID_TEXT], struct cluster_id id);
bool cluster_id_parse(struct cluster_id *out, const char *text); /* 32 lower-case digits */

/* The weight of a node for a name (rendezvous hashing): who has the highest is responsible. The
 * same on all machines. */
uint64_t cluster_weight(const char *name, struct cluster_id node);

struct cluster_model {
    char sha[CLUSTER_SHA_TEXT]; /* 64 lower-case digits */
    char name[CLUSTER_NAME_BYTES];
    uint64_t size_bytes;
};

struct cluster_object {
    char id[CLUSTER_OBJECT_BYTES];
    uint64_t size_bytes;
    uint64_t used_s; /* since 1970, last; of this node's own */
};

/* An address at which a node takes links, and the network around it. */
struct cluster_place {
    char interface[CLUSTER_INTERFACE_BYTES];
    char address[CLUSTER_ADDRESS_BYTES]; /* numeric, with the port, without the interface */
    uint32_t prefix; /* bits of the address that all addresses of its network share */
    uint32_t order;  /* the kind of interface that is expected to be faster has a lower one */
    bool pinned;     /* data is to go over this interface */
};

struct cluster_places {
    uint32_t n;
    struct cluster_place at[CLUSTER_MAX_PLACES];
};

/* One of the ways from this node to another. */
struct cluster_way {
    char interface[CLUSTER_INTERFACE_BYTES]; /* of this node; "": as the system decides */
    char from[CLUSTER_ADDRESS_BYTES];        /* this node's address, without port; "": as above */
    char address[CLUSTER_ADDRESS_BYTES];     /* to dial */
};

/* How fast products of one token take weights of a format. */
struct cluster_rate {
    char format[CLUSTER_FORMAT_BYTES];
    double bytes_per_s;
};

/* What a node tells of itself. The core adds reservations, instances and transfers. */
struct cluster_facts {
    char version[CLUSTER_VERSION_BYTES]; /* of the program; "": not told */
    uint64_t memory_limit_bytes;         /* for models */
    uint64_t memory_other_bytes;         /* ... of it, taken by what no reservation covers */
    uint64_t disk_free_bytes;            /* that slices may take; of others, with old ones */
    double read_bandwidth;               /* bytes a second, of plain reading */
    uint32_t n_rates;
    struct cluster_rate rates[CLUSTER_MAX_RATES];
    double flops;
    uint32_t n_threads;
    double load;  /* 0 to 1 */
    bool can_own; /* may own instances */
    uint32_t n_models;
    struct cluster_model models[CLUSTER_MAX_MODELS]; /* held whole */
    uint32_t n_objects;
    struct cluster_object objects[CLUSTER_MAX_OBJECTS]; /* slices held whole */
    struct cluster_places places;
};

/* A cluster key. The glue makes TLS keys of the secret and announces the id. */
struct cluster_key {
    char id[CLUSTER_KEY_ID_BYTES];
    char secret[CLUSTER_KEY_SECRET_BYTES];
};

/* ---- Plans ----------------------------------------------------------------------------------- */

/* A node that a plan may use. */
struct cluster_candidate {
    struct cluster_id id;
    const char *name;
    uint64_t free_bytes;               /* that this instance may reserve there; may be 0 */
    const struct cluster_facts *facts; /* borrowed for the call */
    bool holds_model;                  /* whole */
    uint32_t n_objects;                /* slices of this model that lie there */
    const char *objects[CLUSTER_MAX_OBJECTS];
};

struct cluster_link_measured {
    bool known;
    double latency_us, bandwidth; /* one way; bytes a second */
};

struct cluster_plan_input {
    const struct cluster_model *model;
    const json_t *options; /* what the load asked for (context, placement, ...); may be NULL */
    struct cluster_id owner;
    bool owner_fixed; /* false: the plan may name another owner */
    uint32_t n_nodes; /* nodes[0] is this node */
    struct cluster_candidate nodes[CLUSTER_MAX_NODES];
    struct cluster_link_measured links[CLUSTER_MAX_NODES][CLUSTER_MAX_NODES]; /* by candidates */
};

struct cluster_member {
    struct cluster_id node;
    uint64_t bytes;                    /* of memory, all that the rank will take */
    char object[CLUSTER_OBJECT_BYTES]; /* that it computes with; "SHA" where it has the model */
    char slice[CLUSTER_OBJECT_BYTES];  /* what it needs of the model; "": not known */
    uint64_t slice_bytes;              /* about */
};

/* members[rank]; one rank a node. */
struct cluster_plan {
    uint32_t n_members, owner; /* owner: a rank */
    struct cluster_member members[CLUSTER_MAX_NODES];
    json_t *spec;     /* opaque to the core, told to all members; a reference that the core takes */
    double predicted; /* tokens a second, shown in the status; 0: not known */
};

/* ---- Local work ------------------------------------------------------------------------------ */

/* Opens this node's rank of an instance. */
struct cluster_open {
    uint64_t instance;
    uint32_t epoch;
    const struct cluster_model *model;
    uint32_t rank, owner, n_members;
    struct cluster_id nodes[CLUSTER_MAX_NODES];
    const char *object;
    uint64_t bytes;
    const json_t *spec;
};

/* An owner computes a request. A request that goes on after a loss has tokens already: events begin
 * at index n_tokens. Instance 0: the model that this node's server has open by itself; where it has
 * not any more, the work ends with STATUS_NOT_FOUND. */
struct cluster_work {
    uint64_t instance;
    const char *sha;
    uint32_t epoch;
    uint64_t work; /* names it in events; never used again */
    const json_t *payload;
    const int32_t *tokens;
    size_t n_tokens;
};

enum cluster_measure_result {
    CLUSTER_MEASURED,
    CLUSTER_MEASURE_FAILED, /* no connection that way, or it broke */
    CLUSTER_MEASURE_BUSY,   /* one of the two nodes is measuring already */
};

enum cluster_fetch_result {
    CLUSTER_FETCHED,
    CLUSTER_FETCH_FAILED, /* no bytes came */
    CLUSTER_FETCH_WRONG,  /* the hash is another */
};

/* All strings and JSON are borrowed for the call (json_incref to keep). No function may call the
 * core. Those marked (optional) may be NULL. */
struct cluster_env {
    void *context;
    uint64_t (*now_ms)(void *context);  /* monotonic */
    uint64_t (*wall_ms)(void *context); /* since 1970 */
    uint64_t (*random)(void *context);

    /* Dials; ends in cluster_core_link_up (outgoing) or cluster_core_connect_failed. */
    void (*connect)(void *context, const char *address, const char *key_id);
    /* Ordered, never blocks. A link that takes no more is dropped by the glue (link_down). */
    void (*send)(void *context, uint32_t link, json_t *message);
    /* Sends what was given, then closes. No link_down follows. */
    void (*drop)(void *context, uint32_t link, const char *reason);
    /* Keeps the saved state for the next start; holds secrets. Called only when it changed. */
    void (*save)(void *context, json_t *saved);
    /* The keys that links may use, keys[0] the one wanted. */
    void (*keys)(void *context, const struct cluster_key *keys, size_t n_keys);
    /* An entry of the desired state changed; NULL: it is gone. (optional) */
    void (*changed)(void *context, const char *key, const json_t *value);

    /* Measures a way to a node; ends in cluster_core_measured. One at a time. (optional) */
    void (*measure)(void *context, struct cluster_id node, const struct cluster_way *way);
    /* A node (or this one) has no longer that address: connections from or to it are dead, though
     * the system may not notice for long. (optional) */
    void (*place_gone)(void *context, struct cluster_id node, const char *address);

    /* Plans one instance; fills *out or says why not, with the numbers; then *out does not count.
     * STATUS_MEMORY: it does not fit now; idle instances may be closed for it. STATUS_LIMIT: it
     * would not fit with all memory free. STATUS_INVALID, STATUS_UNSUPPORTED: it never will run.
     * Others are tried again a few times. Takes milliseconds. */
    enum status (*plan)(void *context, const struct cluster_plan_input *input,
                        struct cluster_plan *out, struct error *error);
    /* Sets memory aside for a rank, beyond what the core counts; false refuses. (optional) */
    bool (*reserve)(void *context, uint64_t instance, uint32_t epoch, uint64_t bytes);
    void (*release)(void *context, uint64_t instance, uint32_t epoch); /* (optional) */
    /* Whether an object is here, whole, or its model is. */
    bool (*has)(void *context, const char *object);
    /* Fetches a chunk; ends in cluster_core_fetched. source may be this node: then it is made from
     * other slices that are here. CLUSTER_CHUNK_MANIFEST: size and hashes, with
     * which the glue finds what it has of the object already; ends in cluster_core_manifest, or in
     * cluster_core_fetched where it failed. */
    void (*fetch)(void *context, const char *object, uint32_t chunk, struct cluster_id source);
    /* All chunks are there: the object is whole. model: its name, "" where it is not known. */
    void (*fetched)(void *context, const char *object, const char *model);
    /* What was begun of an object is not wanted now; what came may be kept. (optional) */
    void (*abandoned)(void *context, const char *object);
    /* It is in use today. (optional) */
    void (*used)(void *context, const char *object);
    /* A slice goes. Without this, none does. (optional) */
    void (*remove)(void *context, const char *object);
    /* Opens a rank; ends in cluster_core_opened. */
    void (*open)(void *context, const struct cluster_open *open);
    /* Closes it, also while it opens; ends in cluster_core_closed when its memory is free. */
    void (*close)(void *context, uint64_t instance, uint32_t epoch);

    /* At the owner: computes, and stops computing. After cancel, or close of the instance, events
     * of the work are ignored. */
    void (*start)(void *context, const struct cluster_work *work);
    void (*cancel)(void *context, uint64_t work);

    /* At the gateway node: the next token of a request, indexes from 0 without a gap; and its end,
     * once. status OK: data is what the owner gave; else reason says why in one sentence. */
    void (*token)(void *context, uint64_t request, uint32_t index, int32_t token,
                  const json_t *data);
    void (*end)(void *context, uint64_t request, enum status status, const char *reason,
                const json_t *data);

    /* Another node asks what only this one knows: answered later by cluster_core_answer; false:
     * there is no answer. (optional) */
    bool (*ask)(void *context, struct cluster_id from, uint64_t question, const char *what,
                const json_t *query);
    /* The end of a question, once; body NULL: reason says in one sentence why there is no answer.
     * Needed by who calls cluster_core_ask. */
    void (*answered)(void *context, uint64_t question, const json_t *body, const char *reason);

    void (*log)(void *context,
                const char *line); /* no prompts, no answers, no secrets (optional) */
};

/* ---- The core -------------------------------------------------------------------------------- */

struct cluster_core;

struct cluster_options {
    struct cluster_id id;
    uint64_t incarnation; /* random, below 2^63 */
    const char *name;
    const char *address;    /* that others reach this node's links at, as far as it knows */
    struct cluster_key key; /* where none is saved */
    const json_t *saved;    /* what env->save got last; NULL: nothing */
    uint32_t grant_ms, prepare_ms, open_ms, hung_ms; /* 0: the defaults */
    const char *data_interface; /* that data is pinned to, for the status; NULL: none */
    uint32_t idle_ms;           /* instances that nobody asked to keep are closed after; 0: never */
};

/* Copies env and options. A saved state that cannot be read is an error. */
enum status cluster_core_open(struct cluster_core **out, const struct cluster_env *env,
                              const struct cluster_options *options, struct error *error);
void cluster_core_close(struct cluster_core *core); /* calls no function of env; NULL allowed */

void cluster_core_tick(struct cluster_core *core);

/* Replaces the facts. Slices whose transfer ended here are added by the core until then. */
void cluster_core_set_facts(struct cluster_core *core, const struct cluster_facts *facts);

/* ---- Links ----------------------------------------------------------------------------------- */

/* What this node says first on each link: a new reference. */
json_t *cluster_core_hello(const struct cluster_core *core, const char *key_id);

/* Asked when a dialled link is there, before hello is said: false where it is not needed any more,
 * because the node came by itself meanwhile. It is closed then, and no call follows. */
bool cluster_core_wanted(const struct cluster_core *core, const char *address);

/* An address from the configuration or a join token. */
void cluster_core_add_peer(struct cluster_core *core, const char *address);

/* A signed announcement that carries this cluster's key. */
void cluster_core_beacon(struct cluster_core *core, struct cluster_id id, uint64_t incarnation,
                         const char *name, const char *address);
/* A node that cannot take part: another key, another version. */
void cluster_core_refused(struct cluster_core *core, const char *address, const char *name,
                          const char *reason);

/* A link with its peer's hello. link is not 0 and names no other link ever. address: where the peer
 * can be dialled. The core drops it where the peer may not take part. */
void cluster_core_link_up(struct cluster_core *core, uint32_t link, bool outgoing,
                          const char *address, const char *key_id, const json_t *hello);
void cluster_core_link_down(struct cluster_core *core, uint32_t link, const char *reason);
void cluster_core_connect_failed(struct cluster_core *core, const char *address,
                                 const char *reason);
/* Bad ones end the link. */
void cluster_core_message(struct cluster_core *core, uint32_t link, const json_t *message);

/* interface: of this node, that the way went over, as far as it is known. Numbers count only with
 * CLUSTER_MEASURED. */
void cluster_core_measured(struct cluster_core *core, struct cluster_id node,
                           const struct cluster_way *way, enum cluster_measure_result result,
                           double latency_us, double bandwidth, const char *interface);

/* The ways to a node for data, the best first: by what was measured, after those over an interface
 * that either node is pinned to. Where one cannot be used, the next one may be. Returns how many
 * there are; 0 where nothing but the control link's address is known. Functions of the environment
 * may ask this. */
size_t cluster_core_ways(const struct cluster_core *core, struct cluster_id node,
                         struct cluster_way out[CLUSTER_MAX_PATHS]);
/* A connection that way did not come about, which another way did: it comes last now, until it is
 * measured again. */
void cluster_core_way_failed(struct cluster_core *core, struct cluster_id node,
                             const struct cluster_way *way);

/* ---- Results of local work ------------------------------------------------------------------- */

void cluster_core_fetched(struct cluster_core *core, const char *object, uint32_t chunk,
                          struct cluster_id source, enum cluster_fetch_result result);
/* have[(n_chunks + 7) / 8]: a bit, lowest first, for each chunk that is here; NULL: none. */
void cluster_core_manifest(struct cluster_core *core, const char *object, struct cluster_id source,
                           uint64_t size_bytes, const uint8_t *have);
/* status OK, or why not. */
void cluster_core_opened(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                         enum status status, const char *reason);
void cluster_core_closed(struct cluster_core *core, uint64_t instance, uint32_t epoch);
/* A rank that ran can do so no more: STATUS_LOST: others are gone, or gave up; else it is the one
 * to blame, as where its memory is out. */
void cluster_core_broken(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                         enum status status, const char *reason);
/* The step counter of a rank; it counts parts of long steps too. waiting: at the owner, requests
 * are under way; at a worker, a step is in its hands and not with another rank. A counter that does
 * not move while it is so is that of a hung rank. Called when one of them changed, at most every
 * CLUSTER_BEAT_MS. */
void cluster_core_steps(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                        uint64_t steps, bool waiting);

/* At the owner: the rate at which a text came of late. 0: none came yet. */
void cluster_core_reached(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                          double tokens_per_s);

/* Of work that was started: token number index of the answer, and its end. They leave at
 * cluster_core_flush, which the glue calls after each step, or at the next tick. data may be NULL.
 */
void cluster_core_token(struct cluster_core *core, uint64_t work, uint32_t index, int32_t token,
                        const json_t *data);
void cluster_core_end(struct cluster_core *core, uint64_t work, enum status status,
                      const char *reason, const json_t *data);
void cluster_core_flush(struct cluster_core *core);

/* ---- Requests of this node's clients --------------------------------------------------------- */

/* Has a request answered by whoever owns an instance of the model, which is loaded where it is not.
 * The answer comes by env->token and env->end, never from within this call. payload is opaque; it
 * fixes the seed, so that another owner continues the same text. STATUS_BUSY: too many. */
enum status cluster_core_submit(struct cluster_core *core, const struct cluster_model *model,
                                const json_t *payload, uint64_t *request, struct error *error);
/* No token and no end come after this. */
void cluster_core_cancel(struct cluster_core *core, uint64_t request);

/* ---- Replicas -------------------------------------------------------------------------------- */

struct cluster_replica {
    char sha[CLUSTER_SHA_TEXT];
    uint32_t waiting; /* requests that are being answered, or wait */
};

/* The models that this node's server has open by itself, for others to use. */
void cluster_core_set_replicas(struct cluster_core *core, const struct cluster_replica *list,
                               size_t n);
/* What stands for the beginnings of a prompt, shortest first; returns how many there are. Changes
 * nothing: functions of the environment may call it. */
uint32_t cluster_core_prefixes(const struct cluster_core *core, const char *sha,
                               const int32_t *tokens, size_t n_tokens,
                               uint64_t out[CLUSTER_PREFIX_LEVELS]);
enum cluster_route { CLUSTER_NOWHERE, CLUSTER_HERE, CLUSTER_THERE };

/* Where a prompt of n_tokens is to be answered, given what stands for its beginnings; it counts as
 * sent there. CLUSTER_THERE: by the replica of *out; CLUSTER_NOWHERE: no node has one. */
enum cluster_route cluster_core_replica(struct cluster_core *core, const char *sha,
                                        const uint64_t *prefixes, uint32_t n, size_t n_tokens,
                                        struct cluster_id *out);
/* Of a prompt that another node sent to the replica here. */
void cluster_core_note_prefixes(struct cluster_core *core, const char *sha,
                                const uint64_t *prefixes, uint32_t n);
/* As cluster_core_submit, to that node's replica first. */
enum status cluster_core_submit_to(struct cluster_core *core, struct cluster_id node,
                                   const struct cluster_model *model, const json_t *payload,
                                   uint64_t *request, struct error *error);

/* ---- Questions ------------------------------------------------------------------------------- */

/* Asks a node that is up; the end comes by env->answered, never from within this call. */
enum status cluster_core_ask(struct cluster_core *core, struct cluster_id node, const char *what,
                             const json_t *query, uint64_t *question, struct error *error);
/* Answers what env->ask was given; body NULL: there is no answer after all. */
void cluster_core_answer(struct cluster_core *core, struct cluster_id to, uint64_t question,
                         const json_t *body);

/* ---- Limits of API keys ---------------------------------------------------------------------- */

enum cluster_limit {
    CLUSTER_LIMIT_REQUESTS, /* a minute */
    CLUSTER_LIMIT_TOKENS,   /* a minute */
    CLUSTER_LIMIT_PARALLEL, /* requests at once */
    CLUSTER_N_LIMITS,
};

struct cluster_allowance {
    bool allowed;
    enum cluster_limit refused_by;
    double wait_s;  /* refused: when to try again */
    double left[2]; /* requests and tokens, on all nodes, as far as this one knows */
};

/* Whether a request of the key with that hash may begin here, so that all nodes together keep to
 * the limits in the entry "key/HASH" ("requests_per_minute", "tokens_per_minute", "parallel"; 0:
 * none). What was allowed ends with cluster_core_give_back. False: the cluster does not know the
 * key, and *out is untouched. */
bool cluster_core_take(struct cluster_core *core, const char *hash, struct cluster_allowance *out);
/* n_tokens: that the request used. */
void cluster_core_give_back(struct cluster_core *core, const char *hash, uint64_t n_tokens);

/* ---- Commands -------------------------------------------------------------------------------- */

/* Sets an entry of the desired state; value NULL: removes it. Keys:
 *   "key/HASH"      {..., "revoked": true}  an API key with its limits; what is revoked stays so
 *   "alias/NAME"    {"model": SHA}
 *   "model/SHA"     {"name", "size", "options"}  stays loaded
 *   "removed/ID"    {"name"}  a node that may not come back
 *   "cluster/key"   {"id", "secret"}  the cluster's key
 * Entries of other kinds are kept and passed on. */
enum status cluster_core_put(struct cluster_core *core, const char *key, const json_t *value,
                             struct error *error);
/* Borrowed until the next call; NULL: there is none. */
const json_t *cluster_core_get(const struct cluster_core *core, const char *key);
/* Each entry that there is; false ends it. */
typedef bool cluster_entry(void *context, const char *key, const json_t *value);
void cluster_core_each(const struct cluster_core *core, cluster_entry *each, void *context);
/* Of an API key, by its hash as in "key/HASH". */
bool cluster_core_key_known(const struct cluster_core *core, const char *hash);
bool cluster_core_key_revoked(const struct cluster_core *core, const char *hash);

/* Keeps a model loaded; it need not fit at once. options: as the plan gets them; may be NULL. */
enum status cluster_core_load(struct cluster_core *core, const struct cluster_model *model,
                              const json_t *options, struct error *error);
/* No longer keeps it; its instance is closed when its requests have ended, or now. */
enum status cluster_core_unload(struct cluster_core *core, const char *sha, bool now,
                                struct error *error);

/* Removes all slices of a model from the nodes that are here. STATUS_BUSY where it runs. */
enum status cluster_core_forget(struct cluster_core *core, const char *sha, struct error *error);

/* Tells the others and drops all links; nothing is done after this but cluster_core_close. */
void cluster_core_leave(struct cluster_core *core);
/* By its id or, where only one has it, its name. */
enum status cluster_core_remove(struct cluster_core *core, const char *node, struct error *error);
/* Begins to change the cluster's key. The old one is accepted, from known nodes, until all known
 * nodes have the new one. */
enum status cluster_core_rotate(struct cluster_core *core, const struct cluster_key *key,
                                struct error *error);

/* ---- Status ---------------------------------------------------------------------------------- */

/* {"self", "nodes", "links", "instances", "objects", "copies", "transfers", "problems", ...}: a
 * new reference, NULL where memory is out. No secrets, no payloads. */
json_t *cluster_core_status(const struct cluster_core *core);

#endif
