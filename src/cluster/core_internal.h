/* The parts of struct cluster_core, for the core_*.c files. */
#ifndef CONSORT_CORE_INTERNAL_H
#define CONSORT_CORE_INTERNAL_H

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/core.h"
#include "cluster/core_message.h"
#include "cluster/core_slices.h"
#include "cluster/core_transfer.h"

/* ---- Times (milliseconds) -------------------------------------------------------------------- */

#define DIAL_TIMEOUT_MS 5000
#define DIAL_FIRST_MS 250  /* between attempts, doubled each time */
#define DIAL_MOST_MS 5000  /* ... up to this, half of it more or less */
#define DIAL_YIELD_MS 1000 /* by which the node with the higher id lets the other go first */
#define STALE_MS 5000      /* links of a process that ended may still come up for so long */
#define REFUSED_MS 300000  /* nodes that could not take part are shown for so long */
#define MEASURE_FIRST_MS 1000
#define MEASURE_AGAIN_MS 600000
#define MEASURE_BUSY_MS 1000   /* before another attempt, half of it more or less */
#define MEASURE_STUCK_MS 45000 /* nothing is heard of a measurement */
#define MEASURE_LEAST_MS 5000  /* between two rounds that the other side asks for */
#define SKEW_MS 5000           /* clocks that differ by more are a problem to show */
#define STATE_ASK_MS 400       /* between comparisons with one node */
#define STATE_ALONE_MS 5000    /* for so long, what was saved has to be confirmed by another node */
#define PLAN_TRIES 5           /* that fail, of one instance, before it gives up */
#define PLAN_WAIT_MS 400       /* before the next one, up to twice that */
#define LIMIT_MS 3000          /* a refused number is believed for so long */
#define SUSPECT_MS 60000       /* a hung rank's node is left out for so long */
#define RESERVE_MS 15000       /* for all grants of a plan */
#define FAILED_MS 30000        /* a failed instance is shown, and not tried again by itself */
#define FAILED_FRESH_MS 2000   /* requests get its reason for so long, later ones try again */
#define FORGOTTEN_MS 5000      /* a slice whose owner does not know it is closed after */
#define IDLE_FOR_ROOM_MS 1000  /* an instance without work for so long may make room */
#define ROUTE_RETRY_MS 250
#define ROUTE_GIVE_UP_MS 30000 /* without a node that could own the model */
#define ROUTE_FAILURES 20      /* of a request without one token between them */
#define STILL_MS 5000          /* a request without a token asks whether it is known */
#define TRANSFER_STUCK_MS 15000
#define TRANSFER_LINGER_MS 10000 /* an object that nobody wants any more */
#define CHUNK_TIMEOUT_MS 120000
#define PARTS_MS 200        /* between looks for what an object can be made from */
#define REPLICATE_MS 2000   /* between looks for slices with one copy */
#define CLEAN_MS 10000      /* between looks for slices that may go */
#define CLEAN_AFTER_DAYS 14 /* without use */

/* Left free on a disk by whatever is fetched; a copy also leaves an eighth of its own size. */
#define DISK_KEEP_BYTES ((uint64_t)256 << 20)
#define COPY_MARGIN_PARTS 8

#define MAX_LIMITS CLUSTER_MAX_NODES
#define MAX_KINDS 8
#define STATE_BUCKETS 64
#define STATE_BATCH 64 /* entries a message */

/* ---- Nodes ----------------------------------------------------------------------------------- */

enum node_state { NODE_NONE, NODE_SELF, NODE_DOWN, NODE_DIALLING, NODE_UP };

/* In the order in which they follow each other; names in core_instance.c. */
enum instance_state {
    INSTANCE_NONE,
    INSTANCE_PLANNING,
    INSTANCE_RESERVING,
    INSTANCE_PREPARING,
    INSTANCE_OPENING,
    INSTANCE_RUNNING,
    INSTANCE_FAILED,
};

/* What an owner tells of an instance. */
struct told_instance {
    uint64_t id;
    uint32_t epoch;
    enum instance_state state;
    bool ran, draining, keep; /* as in struct instance */
    uint64_t idle_ms;         /* since when it has no work; 0: it has */
    char sha[CLUSTER_SHA_TEXT];
};

/* What a node tells of memory that it has granted. */
struct told_grant {
    uint64_t instance;
    uint32_t epoch;
    struct cluster_id owner;
    uint64_t bytes;
};

struct told_link {
    struct cluster_id node;
    double latency_us, bandwidth;
    char interface[CLUSTER_INTERFACE_BYTES];
};

enum path_state { PATH_UNKNOWN, PATH_GOOD, PATH_DEAD };

/* A way to a node, and what is known of it. */
struct path {
    struct cluster_way way;
    char interface[CLUSTER_INTERFACE_BYTES];      /* of this node; "": not known */
    char peer_interface[CLUSTER_INTERFACE_BYTES]; /* of the other one */
    uint32_t order;                               /* as of places: the slower one of both */
    uint32_t strayed; /* of both nodes, those that want it to be over another interface */
    enum path_state state;
    bool control; /* the control link goes there: it works */
    bool due;     /* to be measured */
    double latency_us, bandwidth;
};

/* A model that a node's server has open by itself. */
struct replica {
    char sha[CLUSTER_SHA_TEXT];
    uint32_t waiting, n_prefixes;
    uint64_t prefixes[CLUSTER_MAX_PREFIXES]; /* the latest first */
};

struct node {
    enum node_state state;
    struct cluster_id id;
    char name[CLUSTER_NAME_BYTES];
    uint32_t n_addresses;
    char addresses[CLUSTER_MAX_ADDRESSES][CLUSTER_ADDRESS_BYTES];
    char dialled[CLUSTER_ADDRESS_BYTES]; /* last */
    char reason[CLUSTER_REASON_BYTES];   /* why it is down */

    uint32_t link;
    bool outgoing;
    char at[CLUSTER_ADDRESS_BYTES]; /* where the process with this incarnation is */
    uint64_t incarnation, superseded, superseded_ms;
    uint64_t heard_ms, up_ms, lost_ms, dial_ms, measure_ms, asked_ms;
    uint32_t failures;
    uint64_t usage_heard;   /* of this node's messages of usage, the last that it answered */
    uint64_t held_until_ms; /* it is lost, and keeps its part of limits; 0: it does not */

    /* Told by the node; of this node, its own. */
    bool has_facts;
    struct cluster_facts facts;
    uint64_t free_bytes;
    int64_t skew_ms;
    uint64_t digest;
    uint32_t n_keys;
    char keys[CLUSTER_MAX_KEYS][CLUSTER_KEY_ID_BYTES];
    uint32_t n_links;
    struct told_link links[CLUSTER_MAX_NODES];
    json_t *told_links; /* with their paths, as they came, for the status */
    uint32_t n_paths;   /* between this node and the other one */
    struct path paths[CLUSTER_MAX_PATHS];
    uint64_t round_ms;    /* they were measured last */
    uint32_t dead_rounds; /* since all of them were good */
    uint32_t n_instances;
    struct told_instance instances[CLUSTER_MAX_INSTANCES];
    uint32_t n_grants;
    struct told_grant grants[CLUSTER_MAX_RESERVATIONS];
    uint32_t n_replicas;
    struct replica replicas[CLUSTER_MAX_REPLICAS];
    uint32_t n_transfers;
    char transfers[CLUSTER_MAX_TRANSFERS][CLUSTER_OBJECT_BYTES];
    json_t *work; /* the message as it came, for the status */

    json_t *outbox; /* tokens that leave with the next flush */
};

/* An address whose node is not known. */
struct peer {
    char address[CLUSTER_ADDRESS_BYTES]; /* "": free */
    struct cluster_id node;              /* whose it turned out to be */
    char reason[CLUSTER_REASON_BYTES];
    uint64_t dial_ms;
    uint32_t failures;
    bool dialling;
};

struct refused {
    char address[CLUSTER_ADDRESS_BYTES];
    char name[CLUSTER_NAME_BYTES];
    char reason[CLUSTER_REASON_BYTES];
    uint64_t seen_ms; /* 0: free */
};

/* ---- Desired state --------------------------------------------------------------------------- */

struct entry {
    char key[CLUSTER_ENTRY_KEY_BYTES];
    json_t *value; /* NULL: removed */
    uint64_t time; /* hybrid: milliseconds since 1970 times 65536, and a counter */
    struct cluster_id node;
    bool revoked;
};

struct state {
    struct entry **entries; /* in the order of their keys */
    size_t n, capacity;
    uint64_t time; /* the latest seen */
    uint64_t buckets[STATE_BUCKETS];
    bool full;
};

/* ---- Instances of this node, as owner -------------------------------------------------------- */

enum member_state {
    MEMBER_ASKED,
    MEMBER_GRANTED,
    MEMBER_PREPARED,
    MEMBER_OPENED,
};

/* What a node refused, or a node that is left out (0 bytes). */
struct limit {
    struct cluster_id node;
    uint64_t bytes, until_ms;
    bool suspect;
};

struct instance {
    enum instance_state state;
    uint64_t id;
    uint32_t epoch;
    struct cluster_model model;
    json_t *options;
    bool keep;                /* the desired state wants it */
    bool fixed;               /* the owner is this node, at the first attempt */
    bool ran;                 /* once */
    bool draining;            /* another one of this model takes over */
    bool unloading;           /* closes when it is idle */
    struct cluster_plan plan; /* n_members 0: none */
    enum member_state members[CLUSTER_MAX_NODES];
    uint64_t steps[CLUSTER_MAX_NODES];    /* told by each rank */
    uint64_t moved_ms[CLUSTER_MAX_NODES]; /* when they moved, or the rank had nothing to do */
    uint64_t begun_ms, changed_ms, retry_ms, deadline_ms, idle_ms;
    double reached;                    /* tokens a second of a text; 0: not known */
    uint32_t faults;                   /* of ranks, while tries were counted */
    uint32_t tries, rooms, recoveries; /* rooms: times that others were asked to make room */
    uint32_t n_limits;
    struct limit limits[MAX_LIMITS];
    char reason[CLUSTER_REASON_BYTES]; /* of the last failure */
    enum status status;
};

/* ---- Reservations of this node, as worker ---------------------------------------------------- */

enum reservation_state {
    RESERVATION_NONE,
    RESERVATION_WAITING, /* for memory that is being closed */
    RESERVATION_GRANTED,
    RESERVATION_PREPARING,
    RESERVATION_PREPARED,
    RESERVATION_OPENING,
    RESERVATION_OPENED,
    RESERVATION_CLOSING,
};

struct reservation {
    enum reservation_state state;
    uint64_t instance;
    uint32_t epoch;
    struct cluster_id owner;
    struct cluster_model model;
    uint64_t bytes, order;
    uint32_t rank, owner_rank, n_members;
    struct cluster_id nodes[CLUSTER_MAX_NODES];
    char object[CLUSTER_OBJECT_BYTES];
    json_t *spec;
    uint64_t expires_ms, forgotten_ms, told_ms;
    uint32_t told_chunks;
    uint64_t steps;
    bool waiting;
};

/* ---- Requests -------------------------------------------------------------------------------- */

struct tokens {
    int32_t *ids;
    uint32_t n, capacity;
};

/* Of a client of this node. */
struct ask {
    bool used, sent, ended;
    bool direct; /* to the replica of one node; `owner` */
    uint64_t id;
    struct cluster_model model;
    json_t *payload;
    struct tokens tokens;
    struct cluster_id owner; /* sent: to whom; else where to go next, or none */
    uint32_t attempt, failures, redirects;
    uint64_t begun_ms, retry_ms, heard_ms;
    enum status status; /* ended: not told yet */
    char reason[CLUSTER_REASON_BYTES];
};

/* At the owner. */
struct work {
    bool used, started;
    uint64_t id; /* times CLUSTER_MAX_REQUESTS, and the slot */
    struct cluster_id gateway;
    uint64_t request;
    uint32_t attempt;
    uint64_t instance; /* 0: this node's replica */
    char sha[CLUSTER_SHA_TEXT];
    json_t *payload;
    struct tokens tokens;
};

/* ---- Transfers ------------------------------------------------------------------------------- */

enum transfer_state {
    TRANSFER_NONE,
    TRANSFER_MANIFEST, /* its size is not known yet */
    TRANSFER_ACTIVE,
};

struct fetching {
    enum transfer_state state;
    struct transfer transfer;
    bool copy;  /* for the second copy, not for an instance */
    bool asked; /* the manifest is on its way */
    uint64_t asked_ms, parts_ms;
    struct cluster_id asked_of;
    uint64_t wanted_ms; /* by a reservation, last */
    uint64_t moved_ms;  /* a chunk came, last */
    uint64_t told_ms;   /* others of its progress, last */
    uint32_t told_chunks;
    bool told[CLUSTER_MAX_NODES]; /* nodes that know which chunks are here */
};

struct question {
    uint64_t id; /* 0: free */
    struct cluster_id node;
    uint64_t deadline_ms;
};

struct meter;

/* ---- The core -------------------------------------------------------------------------------- */

struct cluster_core {
    struct cluster_env env;
    struct cluster_options options;
    char own_address[CLUSTER_ADDRESS_BYTES];
    char data_interface[CLUSTER_INTERFACE_BYTES]; /* "": none is pinned */
    struct cluster_id measured_node;              /* whose path is being measured; or none */
    struct cluster_way measured_way;
    uint64_t measure_begun_ms;
    uint64_t now_ms;                      /* read once a call */
    struct node nodes[CLUSTER_MAX_NODES]; /* [0]: this one */
    struct peer peers[CLUSTER_MAX_PEERS];
    struct refused refused[CLUSTER_MAX_REFUSED];
    struct refused copied; /* this node's identity, or another's, runs twice */
    bool removed, left;
    char removed_reason[CLUSTER_REASON_BYTES];
    struct state state;
    uint64_t believed_ms; /* what of it was saved is acted upon from then on */
    struct cluster_key keys[CLUSTER_MAX_KEYS];
    uint32_t n_keys;
    struct instance instances[CLUSTER_MAX_INSTANCES];
    struct reservation reservations[CLUSTER_MAX_RESERVATIONS];
    struct ask asks[CLUSTER_MAX_REQUESTS];
    struct work works[CLUSTER_MAX_REQUESTS];
    uint32_t n_asks, n_works; /* slots that were ever used */
    struct fetching fetches[CLUSTER_MAX_TRANSFERS];
    uint64_t next_work, next_order, next_request;
    struct meter **meters; /* keys in use */
    size_t n_meters, meters_capacity;
    uint64_t usage_seq;
    struct question questions[CLUSTER_MAX_QUESTIONS];
    uint64_t next_question;

    uint64_t beat_ms, slow_ms, replicate_ms, clean_ms; /* when next */
    uint64_t removable_bytes;                          /* of slices that may go */
    bool facts_dirty, work_dirty, saved_dirty, replicas_dirty;
    bool hold_ends; /* env->end must wait */
    json_t **local; /* messages from this node to itself */
    size_t local_first, local_n, local_capacity;
};

/* ---- core.c ---------------------------------------------------------------------------------- */

/* At the begin and the end of each call from outside. */
void core_begin(struct cluster_core *core);
void core_end(struct cluster_core *core);
uint64_t core_random(struct cluster_core *core);
uint64_t core_jitter(struct cluster_core *core, uint64_t ms); /* half of it to one and a half */
void core_log(struct cluster_core *core, const char *format, ...) BASE_PRINTF(2, 3);
/* A message to a node that is up, or to this one; takes the reference. */
void core_send(struct cluster_core *core, struct node *node, json_t *message);
void core_send_all(struct cluster_core *core, json_t *message, const struct node *but);
#define NODE_EACH(core, node)                                                                      \
    for (struct node *node = (core)->nodes; node < (core)->nodes + CLUSTER_MAX_NODES; node++)
/* This node, or one that is up. */
bool node_here(const struct node *node);
struct node *core_node(struct cluster_core *core, struct cluster_id id); /* NULL: not known */
struct node *core_node_here(struct cluster_core *core, struct cluster_id id);

/* ---- core_members.c -------------------------------------------------------------------------- */

void members_tick(struct cluster_core *core);
void members_beat(struct cluster_core *core);
void members_tell(struct cluster_core *core); /* facts and work where they changed */
void members_lost(struct cluster_core *core, struct node *node, const char *reason);
/* Ends the link and loses the node. */
void members_drop(struct cluster_core *core, struct node *node, const char *reason);
struct node *members_by_link(struct cluster_core *core, uint32_t link); /* NULL: none */
void members_bye(struct cluster_core *core, const char *code, const char *reason);
/* The entry "removed/ID" changed. */
void members_removed(struct cluster_core *core, struct cluster_id id, const json_t *value);
/* A slot for a node, NODE_DOWN where it is new; NULL: there are too many, or it was removed. */
struct node *members_add(struct cluster_core *core, struct cluster_id id, const char *name,
                         const char *address);
const struct told_link *members_link(const struct node *a, const struct node *b);
message_handler on_beat, on_facts, on_bye;

/* ---- core_paths.c ---------------------------------------------------------------------------- */

/* The places of one of both changed, or the link between them. */
void paths_renew(struct cluster_core *core, struct node *node);
void paths_again(struct cluster_core *core, struct node *node); /* measured soon */
/* Places that were there and are not any more. */
void paths_gone(struct cluster_core *core, struct cluster_id node,
                const struct cluster_places *before, const struct cluster_places *now);
bool paths_same_places(const struct cluster_places *a, const struct cluster_places *b);
void paths_tick(struct cluster_core *core);
/* Indexes of paths, the one for data first. */
void paths_order(const struct path *paths, uint32_t n, uint32_t order[CLUSTER_MAX_PATHS]);
json_t *paths_links(const struct cluster_core *core); /* "links" of facts */
void paths_read(struct cluster_core *core, struct node *from, struct message *message);
json_t *paths_places(const struct cluster_places *places); /* "places" of facts */
void paths_read_places(struct message *message, struct cluster_places *places);
message_handler on_measure;

/* ---- core_work.c: what is told of instances and reservations --------------------------------- */

json_t *work_message(struct cluster_core *core);
message_handler on_work;

/* ---- core_state.c ---------------------------------------------------------------------------- */

void state_close(struct state *state);
uint64_t state_digest(const struct state *state);
struct entry *state_find(const struct state *state, const char *key);
void state_compare(struct cluster_core *core, struct node *node);
bool state_read_saved(struct cluster_core *core, const json_t *saved, struct error *error);
json_t *state_saved(const struct cluster_core *core);
message_handler on_state, on_state_digest;

/* ---- core_keys.c ----------------------------------------------------------------------------- */

void keys_changed(struct cluster_core *core, const json_t *value);
void keys_tick(struct cluster_core *core);
const char *keys_for(const struct cluster_core *core, const struct node *node, uint32_t failures);
bool keys_hold(const struct cluster_core *core, const char *id);

/* ---- core_instance.c ------------------------------------------------------------------------- */

extern const char *const instance_state_names[];
void instances_tick(struct cluster_core *core);
void instances_node_lost(struct cluster_core *core, struct node *node, const char *reason);
void instances_node_up(struct cluster_core *core);
/* Releases what it has; its requests were ended or moved before. */
void instance_free(struct cluster_core *core, struct instance *instance);
struct instance *instance_find(struct cluster_core *core, uint64_t id);
/* Of this node, that takes requests; NULL: none. */
struct instance *instance_of(struct cluster_core *core, const char *sha);
struct instance *instance_begin(struct cluster_core *core, const struct cluster_model *model,
                                bool fixed, struct error *error);
/* A failed one of this model whose reason is still news. */
struct instance *instance_failed(struct cluster_core *core, const char *sha, uint64_t fresh_ms);
/* Who has, or should begin, the instance of a model; NULL: nobody can. */
struct node *instance_owner(struct cluster_core *core, const char *sha, bool *exists);
void instance_steps(struct cluster_core *core, struct node *from, uint64_t id, uint32_t epoch,
                    uint64_t steps, bool waiting);
void instance_desired(struct cluster_core *core, const char *sha, const json_t *value);
message_handler on_granted, on_refused, on_prepared, on_progress, on_opened, on_failed, on_own,
    on_make_room, on_unload;

/* ---- core_plan.c ----------------------------------------------------------------------------- */

/* Asks the environment for a plan over the nodes that are here. */
enum status core_plan_make(struct cluster_core *core, const struct instance *instance,
                           struct cluster_plan *out, struct error *error);
void core_plan_free(struct cluster_plan *plan);
void core_plan_limit(struct cluster_core *core, struct instance *instance, struct cluster_id node,
                     uint64_t bytes, bool suspect);
bool core_plan_forgive(struct instance *instance); /* removes suspects; false: there were none */

/* ---- core_worker.c --------------------------------------------------------------------------- */

extern const char *const reservation_state_names[];
void worker_tick(struct cluster_core *core);
void worker_node_lost(struct cluster_core *core, struct node *node);
uint64_t worker_free_bytes(const struct cluster_core *core);
void worker_object_done(struct cluster_core *core, const char *object);
void worker_object_failed(struct cluster_core *core, const char *object, const char *reason);
bool worker_wants(const struct cluster_core *core, const char *object);
message_handler on_reserve, on_commit, on_open, on_release;

/* ---- core_request.c -------------------------------------------------------------------------- */

void requests_tick(struct cluster_core *core);
void requests_node_lost(struct cluster_core *core, struct node *node);
void requests_close(struct cluster_core *core);
/* The instance runs: begins what waits. */
void requests_start(struct cluster_core *core, struct instance *instance);
/* Its rank is closed: what was begun waits again. */
void requests_pause(struct cluster_core *core, struct instance *instance);
uint32_t requests_of(const struct cluster_core *core, const struct instance *instance);
/* Ends all with a reason. */
void requests_fail(struct cluster_core *core, struct instance *instance, enum status status,
                   const char *reason);
/* Sends all to another owner. */
void requests_move(struct cluster_core *core, struct instance *instance, struct cluster_id owner);
message_handler on_submit, on_cancel, on_still, on_tokens, on_end, on_gone, on_elsewhere;

/* ---- core_limits.c --------------------------------------------------------------------------- */

void limits_tick(struct cluster_core *core);
void limits_node_up(struct cluster_core *core, struct node *node);
void limits_node_lost(struct cluster_core *core, struct node *node, bool silent);
void limits_node_gone(struct cluster_core *core, struct node *node); /* for good */
void limits_close(struct cluster_core *core);
message_handler on_usage, on_usage_heard;

/* ---- core_replica.c -------------------------------------------------------------------------- */

bool replica_here(struct cluster_core *core, const char *sha);
void replicas_tell(struct cluster_core *core, bool all); /* all: also where nothing changed */
message_handler on_replicas;

/* ---- core_ask.c ------------------------------------------------------------------------------ */

void questions_node_lost(struct cluster_core *core, const struct node *node);
void questions_tick(struct cluster_core *core);
message_handler on_ask, on_answer;

/* ---- core_fetch.c ---------------------------------------------------------------------------- */

void fetch_tick(struct cluster_core *core);
void fetch_close(struct cluster_core *core);
/* Begins to fetch, or goes on. */
bool fetch_want(struct cluster_core *core, const char *object, bool copy, struct error *error);
struct fetching *fetch_find(struct cluster_core *core, const char *object);
/* Grows while chunks of an object come, or of what it is made from. */
uint32_t fetch_progress(const struct cluster_core *core, const char *object);
/* Of the model that an object is of, as any node tells it; "": none does. */
const char *fetch_model_name(const struct cluster_core *core, const char *object);
void fetch_forget(struct cluster_core *core, const char *sha); /* what no instance waits for */
void fetch_node_lost(struct cluster_core *core, struct node *node);
void fetch_node_told(struct cluster_core *core, struct node *node); /* its facts or work */
message_handler on_holds, on_have;

/* ---- core_copies.c --------------------------------------------------------------------------- */

void copies_tick(struct cluster_core *core);
/* Whether an object is at a node, or can be made from what is there. */
bool copies_node_has(const struct node *node, const char *object);
uint32_t copies_count(const struct cluster_core *core, const char *object); /* such nodes here */
/* Whether, without any one of the nodes, the others have all of it. */
bool copies_safe(const struct cluster_core *core, const char *object);
/* What the nodes that are here, but for one, have of the model of an object; returns how many. */
size_t copies_held(const struct cluster_core *core, const char *object, const struct node *but,
                   const char *held[SLICES_MAX_HELD], const struct node *holders[SLICES_MAX_HELD]);
bool copies_rest(const struct cluster_core *core); /* an instance is being placed: none is made */
bool copies_wanted(const struct cluster_core *core, const char *object); /* its model runs */
json_t *copies_json(const struct cluster_core *core);
message_handler on_copy;

/* ---- core_disk.c ----------------------------------------------------------------------------- */

void disk_tick(struct cluster_core *core);
/* What slices may take here, with what would go for them. */
uint64_t disk_offered(const struct cluster_core *core);
/* Makes room for what a transfer will write; false: there is none. */
bool disk_make_room(struct cluster_core *core, const struct fetching *fetching, uint64_t size_bytes,
                    struct error *error);
message_handler on_forget;

#endif
