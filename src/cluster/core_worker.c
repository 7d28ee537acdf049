/* Reservations: what this node holds for instances, its own among them.
 *
 *        owner                                       worker
 *          | reserve {instance, epoch, model, rank, bytes} |
 *          |---------------------------------------------->|   granted, for 10 seconds
 *          |<------------------------ granted, or refused {free, reason}
 *          |   (all granted)                               |
 *          | commit {instance, epoch, object, owner, nodes, spec}
 *          |---------------------------------------------->|   the object is fetched where
 *          |<----------------------------------- progress  |   it is not here
 *          |<----------------------------------- prepared  |
 *          |   (all prepared)                              |
 *          | open                                          |
 *          |---------------------------------------------->|   opens its rank, with its mesh
 *          |<------------------------------------- opened  |
 *          |                                               |
 *          |<--------------- failed {reason, lost}         |   any time: the rank, or the fetching,
 *          | release                                       |   came to an end; lost: by another's
 *          |---------------------------------------------->|   closed; then its memory is free
 *
 * All carry instance and epoch. Between a release and a later reserve of the same instance the
 * memory may still be closing: such a reservation waits for it instead of being refused. What was
 * granted and not closed never adds up to more than the node's memory; what the owner does not
 * commit, and what its owner no longer knows, ends by itself. When the link to the owner ends, so
 * does all that is reserved for it.
 */
#include "cluster/core_internal.h"

#define PROGRESS_MS 1000

const char *const reservation_state_names[] = {"none",     "waiting", "granted", "preparing",
                                               "prepared", "opening", "opened",  "closing"};

/* ---- Table ----------------------------------------------------------------------------------- */

static uint64_t sum_bytes(const struct cluster_core *core, bool closing)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *r = &core->reservations[i];
        if (closing ? r->state == RESERVATION_CLOSING : r->state > RESERVATION_WAITING)
            sum += r->bytes;
    }
    return sum;
}

uint64_t worker_free_bytes(const struct cluster_core *core)
{
    const struct cluster_facts *facts = &core->nodes[0].facts;
    uint64_t used = sum_bytes(core, false) + facts->memory_other_bytes;
    return used < facts->memory_limit_bytes ? facts->memory_limit_bytes - used : 0;
}

static struct reservation *find(struct cluster_core *core, uint64_t instance, uint64_t epoch)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        struct reservation *r = &core->reservations[i];
        if (r->state != RESERVATION_NONE && r->instance == instance && r->epoch == epoch)
            return r;
    }
    return NULL;
}

static void enter(struct cluster_core *core, struct reservation *r, enum reservation_state state)
{
    r->state = state;
    core->work_dirty = true;
}

static void tell_owner(struct cluster_core *core, const struct reservation *r, json_t *message)
{
    struct node *owner = core_node_here(core, r->owner);
    json_object_set_new(message, "instance", json_u64(r->instance));
    json_object_set_new(message, "epoch", json_u64(r->epoch));
    if (owner != NULL)
        core_send(core, owner, message);
    else
        json_decref(message);
}

static void tell_step(struct cluster_core *core, const struct reservation *r, const char *type)
{
    tell_owner(core, r, json_pack("{s:s}", "type", type));
}

static void tell_failed(struct cluster_core *core, const struct reservation *r, const char *reason,
                        bool lost)
{
    char text[CLUSTER_REASON_BYTES];
    text_copy(text, sizeof text, reason);
    tell_owner(core, r,
               json_pack("{s:s, s:s, s:b}", "type", "failed", "reason", text, "lost", (int)lost));
}

static void finish(struct cluster_core *core, struct reservation *r)
{
    if (r->state > RESERVATION_WAITING && core->env.release != NULL)
        core->env.release(core->env.context, r->instance, r->epoch);
    json_decref(r->spec);
    memset(r, 0, sizeof *r);
    core->work_dirty = true;
}

/* Its owner wants it no more. */
static void let_go(struct cluster_core *core, struct reservation *r)
{
    if (r->state == RESERVATION_OPENING || r->state == RESERVATION_OPENED) {
        enter(core, r, RESERVATION_CLOSING);
        core->env.close(core->env.context, r->instance, r->epoch);
    } else if (r->state != RESERVATION_CLOSING)
        finish(core, r);
}

/* ---- Granting -------------------------------------------------------------------------------- */

static void refuse(struct cluster_core *core, struct reservation *r, const char *reason)
{
    tell_owner(core, r,
               json_pack("{s:s, s:o, s:s}", "type", "refused", "free",
                         json_u64(worker_free_bytes(core)), "reason", reason));
    finish(core, r);
}

static bool earlier_epoch(struct cluster_core *core, const struct reservation *r)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *other = &core->reservations[i];
        if (other->state != RESERVATION_NONE && other->instance == r->instance &&
            other->epoch < r->epoch)
            return true;
    }
    return false;
}

static void try_grant(struct cluster_core *core, struct reservation *r)
{
    uint64_t left = worker_free_bytes(core);
    if (!core->nodes[0].has_facts || r->bytes > left + sum_bytes(core, true)) {
        refuse(core, r, "the memory is taken");
        return;
    }
    if (r->bytes > left || earlier_epoch(core, r)) {
        if (core->now_ms >= r->expires_ms)
            refuse(core, r, "another model is still being closed");
        return;
    }
    if (core->env.reserve != NULL &&
        !core->env.reserve(core->env.context, r->instance, r->epoch, r->bytes)) {
        refuse(core, r, "the system has less memory left");
        return;
    }
    enter(core, r, RESERVATION_GRANTED);
    r->expires_ms = core->now_ms + core->options.grant_ms;
    tell_step(core, r, "granted");
}

/* In the order in which they came. */
static void grant_waiting(struct cluster_core *core)
{
    uint64_t after = 0;
    for (;;) {
        struct reservation *next = NULL;
        for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
            struct reservation *r = &core->reservations[i];
            if (r->state == RESERVATION_WAITING && r->order > after &&
                (next == NULL || r->order < next->order))
                next = r;
        }
        if (next == NULL)
            return;
        after = next->order;
        try_grant(core, next);
    }
}

void on_reserve(struct cluster_core *core, struct node *from, struct message *message)
{
    struct reservation wanted = {.state = RESERVATION_WAITING, .owner = from->id};
    wanted.instance = message_u64(message, "instance", INT64_MAX);
    wanted.epoch = (uint32_t)message_u64(message, "epoch", UINT32_MAX);
    wanted.model = message_model(message, "model");
    wanted.rank = (uint32_t)message_u64(message, "rank", CLUSTER_MAX_NODES - 1);
    wanted.bytes = message_u64(message, "bytes", INT64_MAX);
    if (message->failed || find(core, wanted.instance, wanted.epoch) != NULL)
        return;
    wanted.order = ++core->next_order;
    wanted.expires_ms = core->now_ms + core->options.grant_ms;
    struct reservation *place = core->reservations;
    while (place < core->reservations + CLUSTER_MAX_RESERVATIONS &&
           place->state != RESERVATION_NONE)
        place++;
    if (place == core->reservations + CLUSTER_MAX_RESERVATIONS) {
        tell_owner(core, &wanted,
                   json_pack("{s:s, s:i, s:s}", "type", "refused", "free", 0, "reason",
                             "too much is reserved there"));
        return;
    }
    *place = wanted;
    try_grant(core, place);
}

/* ---- What follows a grant -------------------------------------------------------------------- */

/* The reservation that its owner speaks of; NULL: it is over. */
static struct reservation *spoken_of(struct cluster_core *core, const struct node *from,
                                     struct message *message)
{
    uint64_t instance = message_u64(message, "instance", INT64_MAX);
    uint64_t epoch = message_u64(message, "epoch", UINT32_MAX);
    struct reservation *r = message->failed ? NULL : find(core, instance, epoch);
    return r != NULL && cluster_id_equal(r->owner, from->id) ? r : NULL;
}

void on_commit(struct cluster_core *core, struct node *from, struct message *message)
{
    char object[CLUSTER_OBJECT_BYTES];
    size_t n;
    message_text(message, "object", object, sizeof object);
    uint64_t owner = message_u64(message, "owner", CLUSTER_MAX_NODES - 1);
    struct message nodes = message_over(message_list(message, "nodes", CLUSTER_MAX_NODES, &n));
    struct cluster_id ids[CLUSTER_MAX_NODES];
    for (size_t i = 0; i < n; i++)
        ids[i] = item_id(&nodes, i);
    message_take(message, &nodes);
    struct reservation *r = spoken_of(core, from, message);
    if (r == NULL || r->state != RESERVATION_GRANTED)
        return;
    if (owner >= n || r->rank >= n || strncmp(object, r->model.sha, strlen(r->model.sha)) != 0) {
        message_fail(message, "the placement contradicts itself");
        return;
    }
    memcpy(r->nodes, ids, n * sizeof *ids);
    r->n_members = (uint32_t)n;
    r->owner_rank = (uint32_t)owner;
    memcpy(r->object, object, sizeof object);
    r->spec = json_incref((json_t *)(uintptr_t)message_any(message, "spec"));
    struct error error;
    if (core->env.has(core->env.context, r->object)) {
        enter(core, r, RESERVATION_PREPARED);
        tell_step(core, r, "prepared");
    } else if (fetch_want(core, r->object, false, &error))
        enter(core, r, RESERVATION_PREPARING);
    else
        tell_failed(core, r, error.text, false);
}

void on_open(struct cluster_core *core, struct node *from, struct message *message)
{
    struct reservation *r = spoken_of(core, from, message);
    if (r == NULL || r->state != RESERVATION_PREPARED)
        return;
    struct cluster_open open = {.instance = r->instance,
                                .epoch = r->epoch,
                                .model = &r->model,
                                .rank = r->rank,
                                .owner = r->owner_rank,
                                .n_members = r->n_members,
                                .object = r->object,
                                .bytes = r->bytes,
                                .spec = r->spec};
    memcpy(open.nodes, r->nodes, sizeof open.nodes);
    enter(core, r, RESERVATION_OPENING);
    core->env.open(core->env.context, &open);
}

void on_release(struct cluster_core *core, struct node *from, struct message *message)
{
    struct reservation *r = spoken_of(core, from, message);
    if (r == NULL)
        return;
    let_go(core, r);
    grant_waiting(core);
}

bool worker_wants(const struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++)
        if (core->reservations[i].state == RESERVATION_PREPARING &&
            strcmp(core->reservations[i].object, object) == 0)
            return true;
    return false;
}

void worker_object_done(struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        struct reservation *r = &core->reservations[i];
        if (r->state != RESERVATION_PREPARING || strcmp(r->object, object) != 0)
            continue;
        enter(core, r, RESERVATION_PREPARED);
        tell_step(core, r, "prepared");
    }
}

void worker_object_failed(struct cluster_core *core, const char *object, const char *reason)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *r = &core->reservations[i];
        if (r->state == RESERVATION_PREPARING && strcmp(r->object, object) == 0)
            tell_failed(core, r, reason, false);
    }
}

/* ---- Results of local work ------------------------------------------------------------------- */

void cluster_core_opened(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                         enum status status, const char *reason)
{
    core_begin(core);
    struct reservation *r = find(core, instance, epoch);
    if (r != NULL && r->state == RESERVATION_OPENING) {
        enter(core, r, status == STATUS_OK ? RESERVATION_OPENED : RESERVATION_PREPARED);
        if (status == STATUS_OK)
            tell_step(core, r, "opened");
        else
            tell_failed(core, r, reason, status == STATUS_LOST);
    }
    core_end(core);
}

void cluster_core_closed(struct cluster_core *core, uint64_t instance, uint32_t epoch)
{
    core_begin(core);
    struct reservation *r = find(core, instance, epoch);
    if (r != NULL && r->state == RESERVATION_CLOSING) {
        finish(core, r);
        grant_waiting(core);
    }
    core_end(core);
}

void cluster_core_broken(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                         enum status status, const char *reason)
{
    core_begin(core);
    struct reservation *r = find(core, instance, epoch);
    if (r != NULL && r->state == RESERVATION_OPENED)
        tell_failed(core, r, reason, status == STATUS_LOST);
    core_end(core);
}

void cluster_core_steps(struct cluster_core *core, uint64_t instance, uint32_t epoch,
                        uint64_t steps, bool waiting)
{
    struct reservation *r = find(core, instance, epoch);
    if (r == NULL)
        return;
    r->steps = MIN(steps, (uint64_t)INT64_MAX);
    r->waiting = waiting;
}

/* ---- Ends by themselves ---------------------------------------------------------------------- */

void worker_node_lost(struct cluster_core *core, struct node *node)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        struct reservation *r = &core->reservations[i];
        if (r->state != RESERVATION_NONE && cluster_id_equal(r->owner, node->id))
            let_go(core, r);
    }
    grant_waiting(core);
}

static bool owner_knows(struct cluster_core *core, const struct reservation *r)
{
    const struct node *owner = core_node_here(core, r->owner);
    if (owner == NULL)
        return false;
    if (owner->state == NODE_SELF) {
        const struct instance *instance = instance_find(core, r->instance);
        return instance != NULL && instance->epoch == r->epoch;
    }
    for (uint32_t i = 0; i < owner->n_instances; i++)
        if (owner->instances[i].id == r->instance && owner->instances[i].epoch == r->epoch)
            return true;
    return false;
}

static void check(struct cluster_core *core, struct reservation *r)
{
    if (r->state == RESERVATION_GRANTED && core->now_ms >= r->expires_ms) {
        tell_failed(core, r, "the reservation was not used", false);
        let_go(core, r);
        return;
    }
    if (r->state == RESERVATION_PREPARING && core->now_ms - r->told_ms >= PROGRESS_MS) {
        uint32_t n_have = fetch_progress(core, r->object);
        if (n_have != r->told_chunks)
            tell_step(core, r, "progress");
        r->told_chunks = n_have;
        r->told_ms = core->now_ms;
    }
    if (owner_knows(core, r))
        r->forgotten_ms = 0;
    else if (r->forgotten_ms == 0)
        r->forgotten_ms = core->now_ms;
    else if (r->state != RESERVATION_CLOSING && core->now_ms - r->forgotten_ms > FORGOTTEN_MS) {
        core_log(core, "%s: its owner does not know this slice any more", r->model.name);
        let_go(core, r);
    }
}

void worker_tick(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++)
        if (core->reservations[i].state != RESERVATION_NONE)
            check(core, &core->reservations[i]);
    grant_waiting(core);
}
