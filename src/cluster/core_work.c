/* What a node tells of its work, whenever that changed (at most once a tick):
 *
 *   work  {free, instances: [{id, epoch, model, state, ran, draining, keep, idle, requests,
 *          recoveries, owner, members: [[node, bytes, object, slice, size of it]], spec,
 *          predicted, reached, reason}],
 *          grants: [[instance, epoch, owner, bytes, state]], transfers: [[object, done, of, copy]]}
 *
 * Owners tell instances (idle: milliseconds without work, or -1), workers what they reserved for
 * whom. So an owner that sees a reservation of an epoch that is over has it released, and a worker
 * that sees its owner without the instance gives it up: nothing stays reserved for nobody.
 */
#include "cluster/core_internal.h"

static json_t *instance_json(const struct cluster_core *core, const struct instance *instance)
{
    json_t *members = json_array();
    for (uint32_t i = 0; i < instance->plan.n_members; i++) {
        const struct cluster_member *member = &instance->plan.members[i];
        json_array_append_new(members, json_pack("[o, o, s, s, o]", json_id(member->node),
                                                 json_u64(member->bytes), member->object,
                                                 member->slice, json_u64(member->slice_bytes)));
    }
    json_int_t idle = instance->idle_ms == 0 ? -1 : (json_int_t)(core->now_ms - instance->idle_ms);
    return json_pack(
        "{s:o, s:o, s:o, s:s, s:b, s:b, s:b, s:I, s:i, s:i, s:i, s:o, s:O*, s:f, s:f, s:s}", "id",
        json_u64(instance->id), "epoch", json_u64(instance->epoch), "model",
        json_model(&instance->model), "state", instance_state_names[instance->state], "ran",
        (int)instance->ran, "draining", (int)instance->draining, "keep", (int)instance->keep,
        "idle", idle, "requests", (int)requests_of(core, instance), "recoveries",
        (int)instance->recoveries, "owner", (int)instance->plan.owner, "members", members, "spec",
        instance->plan.spec, "predicted", instance->plan.predicted, "reached", instance->reached,
        "reason", instance->reason);
}

json_t *work_message(struct cluster_core *core)
{
    json_t *instances = json_array(), *grants = json_array(), *transfers = json_array();
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (core->instances[i].state != INSTANCE_NONE)
            json_array_append_new(instances, instance_json(core, &core->instances[i]));
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *r = &core->reservations[i];
        if (r->state > RESERVATION_WAITING)
            json_array_append_new(grants,
                                  json_pack("[o, o, o, o, s]", json_u64(r->instance),
                                            json_u64(r->epoch), json_id(r->owner),
                                            json_u64(r->bytes), reservation_state_names[r->state]));
    }
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++) {
        const struct fetching *fetching = &core->fetches[i];
        if (fetching->state != TRANSFER_NONE)
            json_array_append_new(transfers,
                                  json_pack("[s, i, i, b]", fetching->transfer.object,
                                            (int)fetching->transfer.n_have,
                                            (int)fetching->transfer.n_chunks, (int)fetching->copy));
    }
    return json_pack("{s:s, s:o, s:o, s:o, s:o}", "type", "work", "free",
                     json_u64(worker_free_bytes(core)), "instances", instances, "grants", grants,
                     "transfers", transfers);
}

static void read_instance(struct cluster_core *core, struct message *message,
                          const struct message *item, struct told_instance *out)
{
    struct message fields = message_over(item->json);
    char state[CLUSTER_NAME_BYTES];
    *out = (struct told_instance){.id = message_u64(&fields, "id", INT64_MAX)};
    out->epoch = (uint32_t)message_u64(&fields, "epoch", UINT32_MAX);
    struct cluster_model model = message_model(&fields, "model");
    memcpy(out->sha, model.sha, sizeof out->sha);
    message_text(&fields, "state", state, sizeof state);
    out->ran = message_flag(&fields, "ran");
    out->draining = message_flag(&fields, "draining");
    out->keep = message_flag(&fields, "keep");
    json_int_t idle = json_integer_value(message_any(&fields, "idle"));
    if (idle >= 0) /* never 0, which means that it has work */
        out->idle_ms = core->now_ms - MIN((uint64_t)idle, core->now_ms - 1);
    for (int i = INSTANCE_PLANNING; i <= INSTANCE_FAILED; i++)
        if (strcmp(state, instance_state_names[i]) == 0)
            out->state = (enum instance_state)i;
    message_take(message, &fields);
}

static void read_grants(struct message *message, struct node *from)
{
    size_t n;
    const json_t *list = message_list(message, "grants", CLUSTER_MAX_RESERVATIONS, &n);
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(list, i);
        struct told_grant *grant = &from->grants[i];
        grant->instance = item_u64(&item, 0, INT64_MAX);
        grant->epoch = (uint32_t)item_u64(&item, 1, UINT32_MAX);
        grant->owner = item_id(&item, 2);
        grant->bytes = item_u64(&item, 3, INT64_MAX);
        message_take(message, &item);
    }
    from->n_grants = message->failed ? 0 : (uint32_t)n;
}

static void read_transfers(struct message *message, struct node *from)
{
    size_t n;
    const json_t *list = message_list(message, "transfers", CLUSTER_MAX_TRANSFERS, &n);
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(list, i);
        item_text(&item, 0, from->transfers[i], sizeof from->transfers[i]);
        message_take(message, &item);
    }
    from->n_transfers = message->failed ? 0 : (uint32_t)n;
}

/* What a node holds for this one as owner, and is not to hold any more. */
static void release_old(struct cluster_core *core, struct node *from)
{
    for (uint32_t i = 0; i < from->n_grants; i++) {
        const struct told_grant *grant = &from->grants[i];
        if (!cluster_id_equal(grant->owner, core->nodes[0].id))
            continue;
        const struct instance *instance = instance_find(core, grant->instance);
        if (instance != NULL && instance->epoch == grant->epoch && instance->plan.n_members > 0)
            continue;
        core_send(core, from,
                  json_pack("{s:s, s:o, s:o}", "type", "release", "instance",
                            json_u64(grant->instance), "epoch", json_u64(grant->epoch)));
    }
}

void on_work(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t free_bytes = message_u64(message, "free", INT64_MAX);
    size_t n;
    const json_t *list = message_list(message, "instances", CLUSTER_MAX_INSTANCES, &n);
    from->n_instances = from->n_grants = from->n_transfers = 0;
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_over(json_array_get(list, i));
        read_instance(core, message, &item, &from->instances[i]);
    }
    from->n_instances = message->failed ? 0 : (uint32_t)n;
    read_grants(message, from);
    read_transfers(message, from);
    if (message->failed)
        return;
    from->free_bytes = free_bytes;
    json_decref(from->work);
    from->work = json_incref((json_t *)(uintptr_t)message->json);
    release_old(core, from);
    fetch_node_told(core, from);
}
