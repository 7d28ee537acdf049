/* The ranks of instances that this node has: opened and closed as the control plane says, each on
 * threads of its own (rank.h), whose events are posted to the loop.
 *
 * Ranks of one instance are joined by wires. The higher rank connects to the lower; a wire may come
 * before the rank here is open, then it waits in node->wires. Closing joins threads, which may take
 * as long as a step, so it has a thread of its own. */
#include "cluster/node_internal.h"
#include "cluster/rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESH_MS 20000      /* until every other rank is there */
#define SPIN_NS 100000     /* an exchange asks the sockets so long before it sleeps */
#define UNCLAIMED_MS 20000 /* a wire waits so long for its rank */

struct peer {
    uint32_t rank;
    struct node_ways ways;
};

/* One that is open, or being opened or closed. */
struct node_rank {
    struct node_rank *next;
    struct cluster_node *node;
    uint64_t instance;
    uint32_t epoch, number, n_ranks;
    bool owner, closing;
    struct comm_mesh *mesh; /* NULL: the only rank */
    struct cluster_rank *rank;
    struct peer peers[CLUSTER_MAX_NODES]; /* lower ranks, to be connected to */
    size_t n_peers;
    struct net_link_key key;
    struct net_hello hello;
    struct cluster_id nodes[CLUSTER_MAX_NODES];
    pthread_t connecting, closer;
    bool connects; /* the thread runs, or has to be joined */
    char object[CLUSTER_OBJECT_BYTES];
};

static struct node_rank *find(const struct cluster_node *node, uint64_t instance, uint32_t epoch)
{
    for (struct node_rank *at = node->ranks; at != NULL; at = at->next)
        if (at->instance == instance && at->epoch == epoch)
            return at;
    return NULL;
}

/* ---- Events, on the rank's threads ----------------------------------------------------------- */

enum event_kind { EVENT_FAILED, EVENT_OPENED, EVENT_BROKEN, EVENT_TOKEN, EVENT_END };

struct event {
    enum event_kind kind;
    struct cluster_node *node;
    uint64_t instance, work;
    uint32_t epoch, index;
    int32_t token;
    enum status status;
    char reason[CLUSTER_REASON_BYTES];
    json_t *data;
};

static void tell(void *context)
{
    struct event *event = context;
    struct cluster_core *core = event->node->core;
    const char *reason = event->reason[0] != '\0' ? event->reason : NULL;
    if (!event->node->closing && find(event->node, event->instance, event->epoch) != NULL)
        switch (event->kind) {
        case EVENT_FAILED:
            node_logf(event->node, "a wire between two ranks: %s", event->reason);
            break;
        case EVENT_OPENED:
            cluster_core_opened(core, event->instance, event->epoch, event->status, reason);
            break;
        case EVENT_BROKEN:
            cluster_core_broken(core, event->instance, event->epoch, event->status, reason);
            break;
        case EVENT_TOKEN:
            cluster_core_token(core, event->work, event->index, event->token, event->data);
            cluster_core_flush(core);
            break;
        case EVENT_END:
            cluster_core_end(core, event->work, event->status, reason, event->data);
            cluster_core_flush(core);
            break;
        }
    json_decref(event->data);
    free(event);
}

static void post(struct node_rank *at, struct event event, const char *reason)
{
    struct event *copy = malloc(sizeof *copy);
    if (copy == NULL) {
        json_decref(event.data);
        return;
    }
    *copy = event;
    copy->node = at->node;
    copy->instance = at->instance;
    copy->epoch = at->epoch;
    snprintf(copy->reason, sizeof copy->reason, "%s", reason != NULL ? reason : "");
    if (!node_post(at->node, tell, copy)) {
        json_decref(copy->data);
        free(copy);
    }
}

static void on_opened(void *context, enum status status, const char *reason)
{
    post(context, (struct event){.kind = EVENT_OPENED, .status = status}, reason);
}

static void on_broken(void *context, enum status status, const char *reason)
{
    post(context, (struct event){.kind = EVENT_BROKEN, .status = status}, reason);
}

static void on_token(void *context, uint64_t work, uint32_t index, int32_t token, json_t *data)
{
    post(context,
         (struct event){
             .kind = EVENT_TOKEN, .work = work, .index = index, .token = token, .data = data},
         NULL);
}

static void on_end(void *context, uint64_t work, enum status status, const char *reason,
                   json_t *data)
{
    post(context, (struct event){.kind = EVENT_END, .work = work, .status = status, .data = data},
         reason);
}

/* ---- Wires of meshes ------------------------------------------------------------------------- */

/* "instance", "epoch" and "rank" of the text of a hello. */
static bool read_place(const char *info, struct node_wire *out)
{
    json_t *place = json_loads(info, 0, NULL);
    const char *instance = json_string_value(json_object_get(place, "instance"));
    json_int_t epoch = json_integer_value(json_object_get(place, "epoch"));
    const json_t *rank = json_object_get(place, "rank");
    bool good = instance != NULL && epoch >= 0 && epoch <= UINT32_MAX && json_is_integer(rank) &&
                json_integer_value(rank) >= 0 && json_integer_value(rank) < CLUSTER_MAX_NODES;
    if (good) {
        out->instance = strtoull(instance, NULL, 16);
        out->epoch = (uint32_t)epoch;
        out->rank = (uint32_t)json_integer_value(rank);
    }
    json_decref(place);
    return good;
}

static bool is_measuring(const char *info)
{
    return strstr(info, "\"measure\"") != NULL;
}

void node_rank_wire(struct cluster_node *node, struct net_wire *wire, const struct net_hello *hello)
{
    struct node_wire at = {.wire = wire, .came_ms = node_now_ms()};
    struct error error;
    if (is_measuring(hello->info)) {
        node_measure_answer(node, wire);
        return;
    }
    if (!read_place(hello->info, &at)) {
        net_wire_close(wire);
        return;
    }
    struct node_rank *rank = find(node, at.instance, at.epoch);
    if (rank != NULL && rank->mesh != NULL && !rank->closing) {
        if (comm_mesh_add(rank->mesh, at.rank, wire, &error) != STATUS_OK)
            node_logf(node, "a wire of instance %016llx is refused: %s",
                      (unsigned long long)at.instance, error.text);
        return;
    }
    for (size_t i = 0; i < NODE_MAX_WIRES; i++)
        if (node->wires[i].wire == NULL) {
            node->wires[i] = at;
            return;
        }
    net_wire_close(wire);
}

/* Those that came before their rank. */
static void claim_wires(struct node_rank *rank)
{
    struct cluster_node *node = rank->node;
    for (size_t i = 0; i < NODE_MAX_WIRES; i++) {
        struct node_wire *at = &node->wires[i];
        if (at->wire == NULL || at->instance != rank->instance || at->epoch != rank->epoch)
            continue;
        comm_mesh_add(rank->mesh, at->rank, at->wire, NULL);
        *at = (struct node_wire){0};
    }
}

/* Connects to the lower ranks, on a thread, because their nodes may take a while to answer. */
static void *connect_lower(void *argument)
{
    struct node_rank *at = argument;
    struct error error;
    uint64_t deadline_ns = clock_now_ns() + MESH_MS * 1000000ull;
    for (size_t i = 0; i < at->n_peers; i++) {
        struct net_wire *wire;
        enum status status = node_ways_connect(at->node, &wire, &at->peers[i].ways, &at->key,
                                               &at->hello, deadline_ns, NULL, &error);
        if (status == STATUS_OK)
            status = comm_mesh_add(at->mesh, at->peers[i].rank, wire, &error);
        if (status != STATUS_OK) {
            post(at, (struct event){.kind = EVENT_FAILED}, error.text);
            comm_mesh_abort(at->mesh);
            break;
        }
    }
    return NULL;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status open_mesh(struct node_rank *at, const struct cluster_open *open,
                             struct error *error)
{
    char instance[17];
    enum status status = comm_mesh_open(&at->mesh, open->rank, open->n_members, error);
    if (status != STATUS_OK)
        return status;
    snprintf(instance, sizeof instance, "%016llx", (unsigned long long)open->instance);
    at->hello = node_hello(at->node, NET_DATA,
                           json_pack("{s:s, s:I, s:I}", "instance", instance, "epoch",
                                     (json_int_t)open->epoch, "rank", (json_int_t)open->rank));
    at->key = at->node->link_keys[0];
    for (uint32_t r = 0; r < open->rank; r++) {
        struct peer *peer = &at->peers[at->n_peers++];
        peer->rank = r;
        peer->ways = node_ways(at->node, open->nodes[r]);
        if (peer->ways.n == 0)
            return error_set(error, STATUS_LOST, "the address of rank %u is not known", r);
    }
    claim_wires(at);
    at->connects = at->n_peers > 0 && thread_start(&at->connecting, connect_lower, at);
    if (at->n_peers > 0 && !at->connects)
        return error_set(error, STATUS_MEMORY, "cannot start a thread");
    return STATUS_OK;
}

static enum status open_rank(struct node_rank *at, const struct cluster_open *open,
                             struct error *error)
{
    static const struct cluster_rank_events events = {on_opened, on_broken, on_token, on_end};
    struct buffer path = {0};
    struct cluster_rank_options options = {
        .rank = open->rank,
        .owner = at->owner,
        .model = at->node->options.model,
        .scheduler = at->node->options.scheduler,
        .events = &events,
        .context = at,
    };
    enum status status =
        cluster_placement_read(open->spec, &options.placement, &options.model, error);
    options.model.memory_bytes = open->bytes;
    if (status == STATUS_OK && !node_object_path(at->node, open->object, &path))
        status = error_set(error, STATUS_NOT_FOUND, "%.150s is not on this node", open->object);
    if (status == STATUS_OK && open->n_members > 1)
        status = open_mesh(at, open, error);
    options.mesh = at->mesh;
    options.path = path.data;
    if (status == STATUS_OK)
        status = cluster_rank_open(&at->rank, &options, error);
    buffer_free(&path);
    return status;
}

void node_rank_open(void *context, const struct cluster_open *open)
{
    struct cluster_node *node = context;
    struct error error;
    struct node_rank *at = calloc(1, sizeof *at);
    if (at == NULL)
        return; /* the control plane's time for opening runs out */
    at->node = node;
    at->instance = open->instance;
    at->epoch = open->epoch;
    at->number = open->rank;
    at->n_ranks = open->n_members;
    at->owner = open->rank == open->owner;
    memcpy(at->nodes, open->nodes, sizeof at->nodes);
    at->next = node->ranks;
    node->ranks = at;
    snprintf(at->object, sizeof at->object, "%s", open->object);
    node_object_used(at->object);
    node_object_call(at->object, open->model->name);
    node_logf(node, "opening %s: rank %u of %u", open->model->name, open->rank + 1,
              open->n_members);
    enum status status = open_rank(at, open, &error);
    if (status != STATUS_OK)
        post(at, (struct event){.kind = EVENT_OPENED, .status = status}, error.text);
}

/* ---- Closing --------------------------------------------------------------------------------- */

static void end_rank(struct node_rank *at)
{
    if (at->mesh != NULL)
        comm_mesh_abort(at->mesh);
    if (at->connects)
        pthread_join(at->connecting, NULL);
    if (at->rank != NULL)
        cluster_rank_close(at->rank); /* and its mesh */
    else
        comm_mesh_close(at->mesh);
}

static void forget(struct node_rank *at)
{
    node_object_used(at->object);
    struct node_rank **link = &at->node->ranks;
    while (*link != at)
        link = &(*link)->next;
    *link = at->next;
    free(at);
}

struct end {
    struct cluster_node *node;
    uint64_t instance;
    uint32_t epoch;
};

static void closed(void *context)
{
    struct end *end = context;
    struct cluster_node *node = end->node;
    struct node_rank *at = find(node, end->instance, end->epoch);
    if (at != NULL) { /* else the node was closed meanwhile */
        pthread_join(at->closer, NULL);
        forget(at);
        cluster_core_closed(node->core, end->instance, end->epoch);
    }
    free(end);
}

static void *close_rank(void *argument)
{
    struct node_rank *at = argument;
    struct cluster_node *node = at->node;
    struct end *end = malloc(sizeof *end);
    end_rank(at);
    if (end == NULL)
        return NULL; /* the control plane waits for it in vain: memory is out */
    *end = (struct end){node, at->instance, at->epoch};
    if (!node_post(node, closed, end))
        free(end);
    return NULL;
}

void node_rank_close(void *context, uint64_t instance, uint32_t epoch)
{
    struct cluster_node *node = context;
    struct node_rank *at = find(node, instance, epoch);
    if (at == NULL || at->closing)
        return;
    at->closing = true;
    if (!thread_start(&at->closer, close_rank, at)) {
        at->closing = false;
        end_rank(at); /* the loop waits for a step then */
        at->rank = NULL;
        at->mesh = NULL;
        at->connects = false;
    }
}

void node_ranks_place_gone(struct cluster_node *node, bool own, const char *address)
{
    for (struct node_rank *at = node->ranks; at != NULL; at = at->next)
        if (at->mesh != NULL && !at->closing)
            comm_mesh_place_gone(at->mesh, own, address);
}

void node_ranks_close(struct cluster_node *node)
{
    while (node->ranks != NULL) {
        struct node_rank *at = node->ranks;
        if (at->closing)
            pthread_join(at->closer, NULL);
        else
            end_rank(at);
        forget(at);
    }
    for (size_t i = 0; i < NODE_MAX_WIRES; i++)
        net_wire_close(node->wires[i].wire);
}

/* ---- Work ------------------------------------------------------------------------------------ */

void node_rank_start(void *context, const struct cluster_work *work)
{
    struct cluster_node *node = context;
    struct node_rank *at = find(node, work->instance, work->epoch);
    const struct cluster_host *host = &node->options.host;
    struct error error;
    if (work->instance == 0 && host->start != NULL)
        host->start(host->context, work);
    if (at == NULL || at->rank == NULL)
        return; /* it ends with its instance */
    if (cluster_rank_start(at->rank, work->work, work->payload, work->tokens, work->n_tokens,
                           &error) != STATUS_OK)
        post(at, (struct event){.kind = EVENT_END, .work = work->work, .status = error.code},
             error.text);
}

void node_rank_cancel(void *context, uint64_t work)
{
    struct cluster_node *node = context;
    const struct cluster_host *host = &node->options.host;
    if (host->cancel != NULL)
        host->cancel(host->context, work);
    for (struct node_rank *at = node->ranks; at != NULL; at = at->next)
        if (at->owner && at->rank != NULL && !at->closing)
            cluster_rank_cancel(at->rank, work);
}

void node_rank_tick(struct cluster_node *node)
{
    uint64_t now_ms = node_now_ms();
    for (struct node_rank *at = node->ranks; at != NULL; at = at->next) {
        uint64_t steps;
        bool waiting;
        if (at->rank == NULL || at->closing)
            continue;
        cluster_rank_steps(at->rank, &steps, &waiting);
        cluster_core_steps(node->core, at->instance, at->epoch, steps, waiting);
        if (at->owner)
            cluster_core_reached(node->core, at->instance, at->epoch,
                                 cluster_rank_reached(at->rank));
    }
    for (size_t i = 0; i < NODE_MAX_WIRES; i++) {
        struct node_wire *at = &node->wires[i];
        if (at->wire != NULL && now_ms - at->came_ms > UNCLAIMED_MS) {
            net_wire_close(at->wire);
            *at = (struct node_wire){0};
        }
    }
}
