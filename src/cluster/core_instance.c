/* Instances, at their owner: planning, reserving, preparing, opening, running, and once more when a
 * member is lost.
 *
 *   own        {model, options, keep}    begin this instance: the plan wants you as its owner
 *                                        (keep: because the desired state wants the model)
 *   make_room  {instance}                close it if nobody uses it: another model needs the memory
 *   unload     {sha}                     close it now
 *
 * What an owner says to the members of a placement, and they to it, is drawn in core_worker.c. An
 * attempt ends in RUNNING, or all that it reserved is released and the next one begins, with what
 * was learnt; after PLAN_TRIES that failed the instance has failed, and its requests end with the
 * reason. Each attempt has an epoch of its own, so what is late is known to be late.
 *
 * Who owns: the node with the highest weight for the model among those that can (rendezvous
 * hashing). It may hand over at once to the node that its plan names. All nodes tell what they own;
 * who sees two instances of a model prefers one that has run, then the one whose owner has the
 * higher weight. The other one's owner sends new requests there, and closes its own when it is
 * idle.
 */
#include "cluster/core_internal.h"

#define STABLE_MS 10000 /* an instance that ran for so long has all its tries again */
#define LATELY_MS 10000
#define BROKEN_TRIES 3 /* after so many the node whose rank failed is left out */

const char *const instance_state_names[] = {"none",    "planning", "reserving", "preparing",
                                            "opening", "running",  "failed"};

/* ---- Table ----------------------------------------------------------------------------------- */

static bool alive(const struct instance *instance)
{
    return instance->state != INSTANCE_NONE && instance->state != INSTANCE_FAILED;
}

struct instance *instance_find(struct cluster_core *core, uint64_t id)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (core->instances[i].state != INSTANCE_NONE && core->instances[i].id == id)
            return &core->instances[i];
    return NULL;
}

struct instance *instance_of(struct cluster_core *core, const char *sha)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (alive(&core->instances[i]) && strcmp(core->instances[i].model.sha, sha) == 0)
            return &core->instances[i];
    return NULL;
}

struct instance *instance_failed(struct cluster_core *core, const char *sha, uint64_t fresh_ms)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        struct instance *instance = &core->instances[i];
        if (instance->state == INSTANCE_FAILED && strcmp(instance->model.sha, sha) == 0 &&
            core->now_ms - instance->changed_ms < fresh_ms)
            return instance;
    }
    return NULL;
}

static void enter(struct cluster_core *core, struct instance *instance, enum instance_state state)
{
    instance->state = state;
    instance->changed_ms = core->now_ms;
    core->work_dirty = true;
}

static void options_from_state(struct cluster_core *core, struct instance *instance)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    snprintf(key, sizeof key, "model/%s", instance->model.sha);
    const json_t *wanted = cluster_core_get(core, key);
    instance->keep = wanted != NULL;
    const json_t *options = json_object_get(wanted, "options");
    if (options != NULL) {
        json_decref(instance->options);
        instance->options = json_deep_copy(options);
    }
}

struct instance *instance_begin(struct cluster_core *core, const struct cluster_model *model,
                                bool fixed, struct error *error)
{
    struct instance *place = NULL;
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        struct instance *other = &core->instances[i];
        bool failed = other->state == INSTANCE_FAILED;
        if (other->state == INSTANCE_NONE || (failed && strcmp(other->model.sha, model->sha) == 0))
            place = other;
        else if (failed && (place == NULL || place->state == INSTANCE_FAILED))
            place = other;
    }
    if (place == NULL) {
        error_set(error, STATUS_LIMIT, "this node owns %d models already", CLUSTER_MAX_INSTANCES);
        return NULL;
    }
    if (place->state != INSTANCE_NONE)
        instance_free(core, place);
    memset(place, 0, sizeof *place);
    do
        place->id = core_random(core) >> 1;
    while (place->id == 0);
    place->model = *model;
    place->fixed = fixed;
    place->begun_ms = place->retry_ms = core->now_ms;
    options_from_state(core, place);
    enter(core, place, INSTANCE_PLANNING);
    return place;
}

/* ---- Attempts -------------------------------------------------------------------------------- */

static void tell_members(struct cluster_core *core, const struct instance *instance,
                         const char *type)
{
    for (uint32_t i = 0; i < instance->plan.n_members; i++) {
        struct node *node = core_node_here(core, instance->plan.members[i].node);
        if (node != NULL)
            core_send(core, node,
                      json_pack("{s:s, s:o, s:o}", "type", type, "instance", json_u64(instance->id),
                                "epoch", json_u64(instance->epoch)));
    }
}

static void tear_down(struct cluster_core *core, struct instance *instance)
{
    requests_pause(core, instance);
    tell_members(core, instance, "release");
    core_plan_free(&instance->plan);
    core->work_dirty = true;
}

void instance_free(struct cluster_core *core, struct instance *instance)
{
    assert(requests_of(core, instance) == 0);
    tear_down(core, instance);
    json_decref(instance->options);
    memset(instance, 0, sizeof *instance);
}

static void fail(struct cluster_core *core, struct instance *instance, enum status status,
                 const char *reason)
{
    text_copy(instance->reason, sizeof instance->reason, reason);
    instance->status = status;
    core_log(core, "%s cannot run: %s", instance->model.name, instance->reason);
    tear_down(core, instance);
    requests_fail(core, instance, status, instance->reason);
    enter(core, instance, INSTANCE_FAILED);
    instance->deadline_ms = core->now_ms + FAILED_MS;
}

static void note_stable(struct cluster_core *core, struct instance *instance)
{
    if (instance->state == INSTANCE_RUNNING && core->now_ms - instance->changed_ms > STABLE_MS)
        instance->tries = instance->faults = 0;
}

/* Ends an attempt; the next one begins after wait_ms. */
static void again(struct cluster_core *core, struct instance *instance, uint64_t wait_ms,
                  const char *reason)
{
    note_stable(core, instance);
    text_copy(instance->reason, sizeof instance->reason, reason);
    core_log(core, "%s is planned anew: %s", instance->model.name, instance->reason);
    tear_down(core, instance);
    enter(core, instance, INSTANCE_PLANNING);
    instance->retry_ms = core->now_ms + wait_ms;
}

static void attempt_failed(struct cluster_core *core, struct instance *instance, enum status status,
                           const char *reason)
{
    bool running = instance->state == INSTANCE_RUNNING;
    note_stable(core, instance);
    if (++instance->tries >= PLAN_TRIES)
        fail(core, instance, status, reason);
    else
        again(core, instance, running ? 0 : core_jitter(core, PLAN_WAIT_MS) + PLAN_WAIT_MS / 2,
              reason);
}

/* ---- Planning -------------------------------------------------------------------------------- */

/* Asks the owner of the instance that is idle for the longest time to close it. */
static bool make_room(struct cluster_core *core, const struct instance *instance)
{
    struct node *where = NULL;
    const struct told_instance *longest = NULL;
    NODE_EACH(core, node)
    for (uint32_t i = 0; node_here(node) && i < node->n_instances; i++) {
        const struct told_instance *other = &node->instances[i];
        if (other->keep || other->idle_ms == 0 || other->state != INSTANCE_RUNNING ||
            core->now_ms - other->idle_ms < IDLE_FOR_ROOM_MS ||
            strcmp(other->sha, instance->model.sha) == 0 ||
            (longest != NULL && longest->idle_ms <= other->idle_ms))
            continue;
        longest = other;
        where = node;
    }
    if (longest == NULL)
        return false;
    core_send(core, where,
              json_pack("{s:s, s:o}", "type", "make_room", "instance", json_u64(longest->id)));
    return true;
}

/* A node that was here a moment ago may be back in another. */
static bool lost_lately(struct cluster_core *core)
{
    NODE_EACH(core, node)
    if ((node->state == NODE_DOWN || node->state == NODE_DIALLING) && node->lost_ms != 0 &&
        core->now_ms - node->lost_ms < LATELY_MS)
        return true;
    return false;
}

static void plan_failed(struct cluster_core *core, struct instance *instance, enum status status,
                        const char *reason)
{
    instance->fixed = false; /* maybe another owner finds room */
    bool never = status == STATUS_LIMIT && !instance->ran && !lost_lately(core);
    if (never || status == STATUS_INVALID || status == STATUS_UNSUPPORTED) {
        fail(core, instance, status, reason);
        return;
    }
    if (!core_plan_forgive(instance) && status == STATUS_MEMORY &&
        instance->rooms < CLUSTER_MAX_INSTANCES && make_room(core, instance)) {
        instance->rooms++;
        again(core, instance, core_jitter(core, PLAN_WAIT_MS), reason);
    } else
        attempt_failed(core, instance, status, reason);
}

/* The plan wants another node as the owner. */
static void delegate(struct cluster_core *core, struct instance *instance, struct node *owner)
{
    json_t *message = json_pack("{s:s, s:o, s:b}", "type", "own", "model",
                                json_model(&instance->model), "keep", (int)instance->keep);
    if (instance->options != NULL)
        json_object_set(message, "options", instance->options);
    core_log(core, "%s: %s is to own it", instance->model.name, owner->name);
    core_send(core, owner, message);
    core_plan_free(&instance->plan);
    requests_move(core, instance, owner->id);
    instance_free(core, instance);
}

static void ask_members(struct cluster_core *core, struct instance *instance)
{
    core_log(core, "%s: reserving on %u nodes", instance->model.name, instance->plan.n_members);
    enter(core, instance, INSTANCE_RESERVING);
    instance->deadline_ms = core->now_ms + RESERVE_MS;
    for (uint32_t i = 0; i < instance->plan.n_members; i++) {
        const struct cluster_member *member = &instance->plan.members[i];
        instance->members[i] = MEMBER_ASKED;
        core_send(core, core_node_here(core, member->node),
                  json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "type", "reserve", "instance",
                            json_u64(instance->id), "epoch", json_u64(instance->epoch), "model",
                            json_model(&instance->model), "rank", json_u64(i), "bytes",
                            json_u64(member->bytes)));
    }
}

static void plan(struct cluster_core *core, struct instance *instance)
{
    struct error error;
    instance->epoch++;
    instance->reached = 0;
    enum status status = core_plan_make(core, instance, &instance->plan, &error);
    if (status != STATUS_OK) {
        plan_failed(core, instance, status, error.text);
        return;
    }
    struct node *owner = core_node_here(core, instance->plan.members[instance->plan.owner].node);
    if (owner->state == NODE_SELF)
        ask_members(core, instance);
    else if (!instance->fixed)
        delegate(core, instance, owner);
    else {
        core_plan_free(&instance->plan);
        fail(core, instance, STATUS_UNSUPPORTED, "the planner chose another owner");
    }
}

void on_own(struct cluster_core *core, struct node *from, struct message *message)
{
    (void)from;
    struct cluster_model model = message_model(message, "model");
    bool keep = message_flag(message, "keep");
    const json_t *options = message_any(message, "options");
    if (message->failed || instance_of(core, model.sha) != NULL)
        return;
    char key[CLUSTER_ENTRY_KEY_BYTES];
    snprintf(key, sizeof key, "model/%s", model.sha);
    if (keep && state_find(&core->state, key) != NULL && cluster_core_get(core, key) == NULL)
        return; /* it was unloaded meanwhile */
    struct error error;
    struct instance *instance = instance_begin(core, &model, true, &error);
    if (instance == NULL) {
        core_log(core, "%s is not loaded: %s", model.name, error.text);
        return;
    }
    if (options != NULL && instance->options == NULL)
        instance->options = json_deep_copy(options);
}

/* ---- What members say ------------------------------------------------------------------------ */

/* The instance that a member speaks of and the member's rank; NULL where that is over. */
static struct instance *spoken_of(struct cluster_core *core, const struct node *from,
                                  struct message *message, uint32_t *rank)
{
    uint64_t id = message_u64(message, "instance", INT64_MAX);
    uint64_t epoch = message_u64(message, "epoch", UINT32_MAX);
    if (message->failed)
        return NULL;
    struct instance *instance = instance_find(core, id);
    if (instance == NULL || instance->epoch != epoch)
        return NULL;
    for (*rank = 0; *rank < instance->plan.n_members; ++*rank)
        if (cluster_id_equal(instance->plan.members[*rank].node, from->id))
            return instance;
    return NULL;
}

/* A member came one step further; true when all have, and it was the last. */
static bool member_step(struct cluster_core *core, struct node *from, struct message *message,
                        enum instance_state during, enum member_state reached,
                        struct instance **out)
{
    uint32_t rank;
    struct instance *instance = spoken_of(core, from, message, &rank);
    if (instance == NULL || instance->state != during ||
        (uint32_t)instance->members[rank] + 1 != (uint32_t)reached)
        return false;
    instance->members[rank] = reached;
    for (uint32_t i = 0; i < instance->plan.n_members; i++)
        if (instance->members[i] != reached)
            return false;
    *out = instance;
    return true;
}

static void commit(struct cluster_core *core, struct instance *instance)
{
    const struct cluster_plan *chosen = &instance->plan;
    for (uint32_t i = 0; i < chosen->n_members; i++) {
        json_t *nodes = json_array();
        for (uint32_t k = 0; k < chosen->n_members; k++)
            json_array_append_new(nodes, json_id(chosen->members[k].node));
        json_t *message =
            json_pack("{s:s, s:o, s:o, s:s, s:o, s:o}", "type", "commit", "instance",
                      json_u64(instance->id), "epoch", json_u64(instance->epoch), "object",
                      chosen->members[i].object, "owner", json_u64(chosen->owner), "nodes", nodes);
        if (chosen->spec != NULL)
            json_object_set(message, "spec", chosen->spec);
        core_send(core, core_node_here(core, chosen->members[i].node), message);
    }
}

void on_granted(struct cluster_core *core, struct node *from, struct message *message)
{
    struct instance *instance;
    if (!member_step(core, from, message, INSTANCE_RESERVING, MEMBER_GRANTED, &instance))
        return;
    enter(core, instance, INSTANCE_PREPARING);
    instance->deadline_ms = core->now_ms + core->options.prepare_ms;
    commit(core, instance);
}

void on_refused(struct cluster_core *core, struct node *from, struct message *message)
{
    uint32_t rank;
    uint64_t free_bytes = message_u64(message, "free", INT64_MAX);
    char why[CLUSTER_REASON_BYTES], wanted[32], left[32];
    struct error error;
    message_text(message, "reason", why, sizeof why);
    struct instance *instance = spoken_of(core, from, message, &rank);
    if (instance == NULL || instance->state != INSTANCE_RESERVING)
        return;
    error_set(&error, STATUS_MEMORY, "%s needs %s on %s, which has %s left: %s",
              instance->model.name, size_text(wanted, (double)instance->plan.members[rank].bytes),
              from->name, size_text(left, (double)free_bytes), why);
    core_plan_limit(core, instance, from->id, free_bytes, false);
    attempt_failed(core, instance, STATUS_MEMORY, error.text);
}

void on_prepared(struct cluster_core *core, struct node *from, struct message *message)
{
    struct instance *instance;
    if (!member_step(core, from, message, INSTANCE_PREPARING, MEMBER_PREPARED, &instance))
        return;
    enter(core, instance, INSTANCE_OPENING);
    instance->deadline_ms = core->now_ms + core->options.open_ms;
    tell_members(core, instance, "open");
}

void on_progress(struct cluster_core *core, struct node *from, struct message *message)
{
    uint32_t rank;
    struct instance *instance = spoken_of(core, from, message, &rank);
    if (instance != NULL && instance->state == INSTANCE_PREPARING)
        instance->deadline_ms = core->now_ms + core->options.prepare_ms;
}

void on_opened(struct cluster_core *core, struct node *from, struct message *message)
{
    struct instance *instance;
    if (!member_step(core, from, message, INSTANCE_OPENING, MEMBER_OPENED, &instance))
        return;
    enter(core, instance, INSTANCE_RUNNING);
    for (uint32_t i = 0; i < instance->plan.n_members; i++)
        instance->moved_ms[i] = core->now_ms;
    if (instance->ran)
        instance->recoveries++;
    instance->ran = true;
    instance->idle_ms = 0;
    instance->rooms = 0;
    instance->reason[0] = 0;
    core_log(core, "%s runs on %u nodes", instance->model.name, instance->plan.n_members);
    requests_start(core, instance);
}

/* A rank ended by its own fault, as where its node has no memory left. The others may have been
 * quicker to tell that they lost it, so that a new epoch has begun. */
static void note_fault(struct cluster_core *core, const struct node *from, struct message *message)
{
    uint64_t id = message_u64(message, "instance", INT64_MAX);
    uint64_t epoch = message_u64(message, "epoch", UINT32_MAX);
    struct instance *instance = message->failed ? NULL : instance_find(core, id);
    if (instance == NULL || from->state == NODE_SELF || epoch > instance->epoch ||
        instance->epoch - epoch > 1)
        return;
    if (++instance->faults >= BROKEN_TRIES)
        core_plan_limit(core, instance, from->id, 0, true);
}

void on_failed(struct cluster_core *core, struct node *from, struct message *message)
{
    uint32_t rank;
    char why[CLUSTER_REASON_BYTES];
    struct error error;
    message_text(message, "reason", why, sizeof why);
    if (!message_flag(message, "lost"))
        note_fault(core, from, message);
    struct instance *instance = spoken_of(core, from, message, &rank);
    if (instance == NULL || instance->state < INSTANCE_RESERVING ||
        instance->state > INSTANCE_RUNNING)
        return;
    error_set(&error, STATUS_IO, "%s: %s", from->name, why);
    attempt_failed(core, instance, STATUS_IO, error.text);
}

void instances_node_lost(struct cluster_core *core, struct node *node, const char *reason)
{
    struct error error;
    error_set(&error, STATUS_IO, "%s was lost: %s", node->name, reason);
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        struct instance *instance = &core->instances[i];
        bool member = false;
        for (uint32_t k = 0; alive(instance) && k < instance->plan.n_members; k++)
            member = member || cluster_id_equal(instance->plan.members[k].node, node->id);
        if (member)
            again(core, instance, 0, error.text);
    }
}

/* With one more node what failed may be possible. */
void instances_node_up(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        struct instance *instance = &core->instances[i];
        if (instance->state == INSTANCE_FAILED)
            instance->deadline_ms = MIN(instance->deadline_ms, core->now_ms + FAILED_FRESH_MS);
    }
}

/* ---- Hung ranks ------------------------------------------------------------------------------ */

void instance_steps(struct cluster_core *core, struct node *from, uint64_t id, uint32_t epoch,
                    uint64_t steps, bool waiting)
{
    struct instance *instance = instance_find(core, id);
    if (instance == NULL || instance->epoch != epoch)
        return;
    for (uint32_t i = 0; i < instance->plan.n_members; i++) {
        if (!cluster_id_equal(instance->plan.members[i].node, from->id))
            continue;
        if (!waiting || instance->steps[i] != steps)
            instance->moved_ms[i] = core->now_ms;
        instance->steps[i] = steps;
    }
}

void cluster_core_reached(struct cluster_core *core, uint64_t id, uint32_t epoch,
                          double tokens_per_s)
{
    struct instance *instance = instance_find(core, id);
    if (instance == NULL || instance->epoch != epoch || instance->reached == tokens_per_s)
        return;
    instance->reached = tokens_per_s;
    core->work_dirty = true;
}

/* A worker that has a step in its hands is to blame; where only the owner's counter stands still,
 * nobody is, and all begin anew. */
static void check_hung(struct cluster_core *core, struct instance *instance)
{
    uint64_t hung_ms = core->options.hung_ms;
    const struct cluster_plan *running = &instance->plan;
    uint64_t owner_ms = core->now_ms - instance->moved_ms[running->owner];
    bool hung = owner_ms > hung_ms;
    uint32_t blamed = running->owner;
    for (uint32_t i = 0; i < running->n_members; i++) {
        uint64_t still_ms = core->now_ms - instance->moved_ms[i];
        if (i == running->owner || still_ms <= (hung ? hung_ms / 2 : hung_ms))
            continue;
        blamed = i;
        hung = true;
        core_plan_limit(core, instance, running->members[i].node, 0, true);
    }
    if (!hung)
        return;
    const struct node *node = core_node(core, running->members[blamed].node);
    char reason[CLUSTER_REASON_BYTES];
    snprintf(reason, sizeof reason, "%s made no step for %" PRIu64 " seconds", node->name,
             hung_ms / 1000);
    attempt_failed(core, instance, STATUS_IO, reason);
}

/* ---- One instance a model -------------------------------------------------------------------- */

struct claim {
    struct node *node; /* NULL: none */
    bool ran;
    uint64_t weight;
};

static bool claim_better(const struct claim *a, const struct claim *b)
{
    if (b->node == NULL || a->ran != b->ran)
        return b->node == NULL || a->ran;
    return a->weight > b->weight;
}

static struct claim own_claim(struct cluster_core *core, const struct instance *instance)
{
    struct node *self = &core->nodes[0];
    return (struct claim){self, instance->ran, cluster_weight(instance->model.sha, self->id)};
}

/* The best instance of a model that others own. */
static struct claim others_claim(struct cluster_core *core, const char *sha)
{
    struct claim best = {NULL, false, 0};
    NODE_EACH(core, node)
    for (uint32_t i = 0; node->state == NODE_UP && i < node->n_instances; i++) {
        const struct told_instance *told = &node->instances[i];
        struct claim claim = {node, told->ran, cluster_weight(sha, node->id)};
        if (strcmp(told->sha, sha) == 0 && !told->draining && told->state != INSTANCE_FAILED &&
            claim_better(&claim, &best))
            best = claim;
    }
    return best;
}

struct node *instance_owner(struct cluster_core *core, const char *sha, bool *exists)
{
    struct claim best = others_claim(core, sha);
    const struct instance *own = instance_of(core, sha);
    if (own != NULL && !own->draining) {
        struct claim claim = own_claim(core, own);
        if (claim_better(&claim, &best))
            best = claim;
    }
    *exists = best.node != NULL;
    NODE_EACH(core, node)
    {
        struct claim claim = {node, false, cluster_weight(sha, node->id)};
        if (!*exists && node_here(node) && node->has_facts && node->facts.can_own &&
            node->facts.memory_limit_bytes > 0 && claim_better(&claim, &best))
            best = claim;
    }
    return best.node;
}

/* Gives way to a better one, and stops giving way when that is gone. */
static void check_duplicate(struct cluster_core *core, struct instance *instance)
{
    struct claim own = own_claim(core, instance);
    struct claim other = others_claim(core, instance->model.sha);
    bool drain = other.node != NULL && !claim_better(&own, &other);
    if (drain != instance->draining) {
        core_log(core, "%s: %s", instance->model.name,
                 drain ? "another node's instance takes over" : "this node's instance goes on");
        instance->draining = drain;
        core->work_dirty = true;
    }
    if (drain && instance->state != INSTANCE_RUNNING) {
        requests_move(core, instance, other.node->id);
        instance_free(core, instance);
    }
}

/* ---- Commands -------------------------------------------------------------------------------- */

enum status cluster_core_load(struct cluster_core *core, const struct cluster_model *model,
                              const json_t *options, struct error *error)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    if (!sha_valid(model->sha))
        return error_set(error, STATUS_INVALID, "a model is named by its SHA-256");
    snprintf(key, sizeof key, "model/%s", model->sha);
    char name[CLUSTER_NAME_BYTES];
    text_copy(name, sizeof name, model->name);
    json_t *value = json_pack("{s:s, s:o}", "name", name, "size", json_u64(model->size_bytes));
    if (value == NULL)
        return error_memory(error, sizeof *model);
    if (options != NULL)
        json_object_set_new(value, "options", json_deep_copy(options));
    enum status status = cluster_core_put(core, key, value, error);
    json_decref(value);
    return status;
}

enum status cluster_core_unload(struct cluster_core *core, const char *sha, bool now,
                                struct error *error)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    if (!sha_valid(sha))
        return error_set(error, STATUS_INVALID, "a model is named by its SHA-256");
    snprintf(key, sizeof key, "model/%s", sha);
    enum status status = cluster_core_put(core, key, NULL, error);
    if (status != STATUS_OK)
        return status;
    core_begin(core);
    NODE_EACH(core, node)
    if (node_here(node))
        core_send(core, node,
                  json_pack("{s:s, s:s, s:b}", "type", "unload", "sha", sha, "now", (int)now));
    core_end(core);
    return STATUS_OK;
}

static void unload_now(struct cluster_core *core, struct instance *instance)
{
    requests_fail(core, instance, STATUS_CANCELLED, "the model was unloaded");
    instance_free(core, instance);
}

void on_unload(struct cluster_core *core, struct node *from, struct message *message)
{
    (void)from;
    char sha[CLUSTER_SHA_TEXT];
    message_text(message, "sha", sha, sizeof sha);
    bool now = message_flag(message, "now");
    struct instance *instance = message->failed ? NULL : instance_of(core, sha);
    if (instance == NULL)
        return;
    instance->unloading = true;
    if (now)
        unload_now(core, instance);
}

void on_make_room(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t id = message_u64(message, "instance", INT64_MAX);
    struct instance *instance = message->failed ? NULL : instance_find(core, id);
    if (instance == NULL || instance->state != INSTANCE_RUNNING || instance->keep ||
        requests_of(core, instance) > 0)
        return;
    core_log(core, "%s is closed: %s needs the memory", instance->model.name, from->name);
    instance_free(core, instance);
}

void instance_desired(struct cluster_core *core, const char *sha, const json_t *value)
{
    struct instance *instance = instance_of(core, sha);
    if (instance == NULL)
        return;
    instance->keep = value != NULL;
    instance->unloading = value == NULL;
    core->work_dirty = true;
    json_t *options = json_object_get(value, "options");
    if (value == NULL || (options == NULL && instance->options == NULL) ||
        json_equal(options, instance->options))
        return;
    json_decref(instance->options);
    instance->options = json_deep_copy(options);
    if (instance->state != INSTANCE_PLANNING)
        again(core, instance, 0, "it was loaded with other options");
}

/* ---- The tick -------------------------------------------------------------------------------- */

static bool begin_wanted(void *context, const char *key, const json_t *value)
{
    struct cluster_core *core = context;
    if (strncmp(key, "model/", 6) != 0 || !sha_valid(key + 6))
        return true;
    bool exists;
    struct node *owner = instance_owner(core, key + 6, &exists);
    if (exists || owner == NULL || owner->state != NODE_SELF ||
        instance_of(core, key + 6) != NULL || instance_failed(core, key + 6, UINT64_MAX) != NULL)
        return true;
    struct cluster_model model = {.sha = ""};
    struct error error;
    const char *name = json_string_value(json_object_get(value, "name"));
    text_copy(model.sha, sizeof model.sha, key + 6);
    text_copy(model.name, sizeof model.name, name != NULL ? name : "");
    model.size_bytes = (uint64_t)json_integer_value(json_object_get(value, "size"));
    return instance_begin(core, &model, false, &error) != NULL;
}

static void check_idle(struct cluster_core *core, struct instance *instance)
{
    bool idle = requests_of(core, instance) == 0;
    if (idle != (instance->idle_ms != 0)) {
        instance->idle_ms = idle ? core->now_ms : 0;
        core->work_dirty = true;
    }
    uint32_t most_ms = core->options.idle_ms;
    bool long_idle =
        idle && !instance->keep && most_ms != 0 && core->now_ms - instance->idle_ms > most_ms;
    if (idle && (instance->unloading || instance->draining || long_idle)) {
        core_log(core, "%s is closed", instance->model.name);
        instance_free(core, instance);
    }
}

static void instance_tick(struct cluster_core *core, struct instance *instance)
{
    char reason[CLUSTER_REASON_BYTES];
    switch (instance->state) {
    case INSTANCE_PLANNING:
        if (instance->unloading && requests_of(core, instance) == 0)
            instance_free(core, instance);
        else if (core->now_ms >= instance->retry_ms)
            plan(core, instance);
        break;
    case INSTANCE_RESERVING:
    case INSTANCE_PREPARING:
    case INSTANCE_OPENING:
        if (core->now_ms < instance->deadline_ms)
            break;
        snprintf(reason, sizeof reason, "%s took too long", instance_state_names[instance->state]);
        attempt_failed(core, instance, STATUS_IO, reason);
        break;
    case INSTANCE_RUNNING:
        check_idle(core, instance);
        if (instance->state == INSTANCE_RUNNING)
            check_hung(core, instance);
        break;
    case INSTANCE_FAILED: /* no news any more once it runs elsewhere */
        if (core->now_ms >= instance->deadline_ms || others_claim(core, instance->model.sha).ran)
            instance_free(core, instance);
        break;
    case INSTANCE_NONE:
        break;
    }
}

void instances_tick(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        instance_tick(core, &core->instances[i]);
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (alive(&core->instances[i]))
            check_duplicate(core, &core->instances[i]);
    if (core->now_ms >= core->slow_ms && core->now_ms >= core->believed_ms &&
        core->nodes[0].has_facts && !core->removed)
        cluster_core_each(core, begin_wanted, core);
}
