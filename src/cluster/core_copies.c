/* Second copies of slices, so that a dead node takes nothing with it.
 *
 *   copy  {object, size, model}    to a node with room: keep a copy of this slice
 *
 * A slice is safe when, whichever node is lost, the others still have all of it: another node has
 * the model whole, or the same slice, or slices that make it up. The owner of an instance that runs
 * looks at its slices; for one that is not safe it asks the node with the most room on its disk
 * among those that do not have it. That node fetches it like what an instance needs, but slowly,
 * one copy at a time, and not while an instance anywhere is being loaded or recovers. It says
 * nothing where it has no room after all. What cannot be made safe is shown in the status, with the
 * reason.
 */
#include "cluster/core_internal.h"

/* ---- Who has what ---------------------------------------------------------------------------- */

size_t copies_held(const struct cluster_core *core, const char *object, const struct node *but,
                   const char *held[SLICES_MAX_HELD], const struct node *holders[SLICES_MAX_HELD])
{
    size_t n = 0;
    for (size_t k = 0; k < CLUSTER_MAX_NODES; k++) {
        const struct node *node = &core->nodes[k];
        if (node == but || !node_here(node) || !node->has_facts)
            continue;
        for (uint32_t i = 0; i < node->facts.n_models; i++)
            if (slice_of_model(object, node->facts.models[i].sha)) {
                holders[n] = node;
                held[n++] = node->facts.models[i].sha;
                break;
            }
        for (uint32_t i = 0; i < node->facts.n_objects; i++)
            if (slice_of_model(node->facts.objects[i].id, object)) {
                holders[n] = node;
                held[n++] = node->facts.objects[i].id;
            }
    }
    return n;
}

bool copies_node_has(const struct node *node, const char *object)
{
    const char *held[CLUSTER_MAX_OBJECTS];
    size_t n = 0;
    for (uint32_t i = 0; i < node->facts.n_models; i++)
        if (slice_of_model(object, node->facts.models[i].sha))
            return true;
    for (uint32_t i = 0; i < node->facts.n_objects; i++)
        if (slice_of_model(node->facts.objects[i].id, object))
            held[n++] = node->facts.objects[i].id;
    return n > 0 && slices_cover(held, n, object, NULL);
}

uint32_t copies_count(const struct cluster_core *core, const char *object)
{
    uint32_t n = 0;
    for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
        if (node_here(&core->nodes[i]) && core->nodes[i].has_facts &&
            copies_node_has(&core->nodes[i], object))
            n++;
    return n;
}

bool copies_safe(const struct cluster_core *core, const char *object)
{
    const char *held[SLICES_MAX_HELD];
    const struct node *holders[SLICES_MAX_HELD];
    for (size_t k = 0; k < CLUSTER_MAX_NODES; k++) {
        const struct node *lost = &core->nodes[k];
        if (!node_here(lost))
            continue;
        size_t n = copies_held(core, object, lost, held, holders);
        if (!slices_cover(held, n, object, NULL))
            return false;
    }
    return true;
}

bool copies_rest(const struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        enum instance_state state = core->instances[i].state;
        if (state >= INSTANCE_PLANNING && state < INSTANCE_RUNNING)
            return true;
    }
    for (size_t k = 1; k < CLUSTER_MAX_NODES; k++) {
        const struct node *node = &core->nodes[k];
        for (uint32_t i = 0; node->state == NODE_UP && i < node->n_instances; i++)
            if (node->instances[i].state >= INSTANCE_PLANNING &&
                node->instances[i].state < INSTANCE_RUNNING)
                return true;
    }
    return false;
}

bool copies_wanted(const struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (core->instances[i].state == INSTANCE_RUNNING &&
            slice_of_model(object, core->instances[i].model.sha))
            return true;
    for (size_t k = 1; k < CLUSTER_MAX_NODES; k++) {
        const struct node *node = &core->nodes[k];
        for (uint32_t i = 0; node->state == NODE_UP && i < node->n_instances; i++)
            if (node->instances[i].state != INSTANCE_FAILED &&
                slice_of_model(object, node->instances[i].sha))
                return true;
    }
    return false;
}

/* ---- Asking, as the owner -------------------------------------------------------------------- */

static bool fetches(const struct node *node, const char *object)
{
    for (uint32_t i = 0; i < node->n_transfers; i++)
        if (strcmp(node->transfers[i], object) == 0)
            return true;
    return false;
}

static bool any_fetches(const struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
        if (node_here(&core->nodes[i]) && fetches(&core->nodes[i], object))
            return true;
    return false;
}

static uint64_t with_margin(uint64_t size_bytes)
{
    return size_bytes + size_bytes / COPY_MARGIN_PARTS + DISK_KEEP_BYTES;
}

static bool has_room(const struct cluster_core *core, const struct node *node, uint64_t size_bytes)
{
    uint64_t left = node->state == NODE_SELF ? disk_offered(core) : node->facts.disk_free_bytes;
    return left >= with_margin(size_bytes) && node->facts.n_objects < CLUSTER_MAX_OBJECTS;
}

/* The node to keep a copy: the one with the most room; NULL: there is none. *others: nodes without
 * it, with or without room. */
static struct node *choose(struct cluster_core *core, const char *object, uint64_t size_bytes,
                           uint32_t *others)
{
    struct node *best = NULL;
    uint64_t most = 0;
    *others = 0;
    NODE_EACH(core, node)
    {
        if (!node_here(node) || !node->has_facts || copies_node_has(node, object))
            continue;
        ++*others;
        uint64_t left = node->state == NODE_SELF ? disk_offered(core) : node->facts.disk_free_bytes;
        if (has_room(core, node, size_bytes) && (best == NULL || left > most)) {
            best = node;
            most = left;
        }
    }
    return best;
}

static void ask_for_copy(struct cluster_core *core, const struct instance *instance)
{
    for (uint32_t i = 0; i < instance->plan.n_members; i++) {
        const struct cluster_member *member = &instance->plan.members[i];
        uint32_t others;
        if (member->slice[0] == '\0' || any_fetches(core, member->slice) ||
            copies_safe(core, member->slice))
            continue;
        struct node *node = choose(core, member->slice, member->slice_bytes, &others);
        if (node == NULL)
            continue;
        core_send(core, node,
                  json_pack("{s:s, s:s, s:o, s:o}", "type", "copy", "object", member->slice, "size",
                            json_u64(member->slice_bytes), "model", json_model(&instance->model)));
        return; /* one at a time */
    }
}

void copies_tick(struct cluster_core *core)
{
    if (core->now_ms < core->replicate_ms)
        return;
    core->replicate_ms = core->now_ms + core_jitter(core, REPLICATE_MS);
    if (copies_rest(core))
        return;
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++)
        if (core->instances[i].state == INSTANCE_RUNNING && !core->instances[i].draining)
            ask_for_copy(core, &core->instances[i]);
}

void on_copy(struct cluster_core *core, struct node *from, struct message *message)
{
    char object[CLUSTER_OBJECT_BYTES];
    struct slice_range range;
    struct error error;
    (void)from;
    message_text(message, "object", object, sizeof object);
    uint64_t size_bytes = message_u64(message, "size", INT64_MAX);
    struct cluster_model model = message_model(message, "model");
    if (!message->failed && (!slice_parse(object, &range) || !slice_of_model(object, model.sha)))
        message_fail(message, "it names no slice of the model");
    if (message->failed || copies_node_has(&core->nodes[0], object) ||
        !has_room(core, &core->nodes[0], size_bytes))
        return;
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE && core->fetches[i].copy)
            return; /* another one first */
    fetch_want(core, object, true, &error);
}

/* ---- The status ------------------------------------------------------------------------------ */

/* Each slice of the instances that run; false ends it. */
typedef void running_slice(void *context, const char *model, const char *slice,
                           uint64_t size_bytes);

static void each_running(const struct cluster_core *core, running_slice *each, void *context)
{
    const json_t *instance, *member;
    size_t i, k;
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        const json_t *instances = node_here(node) ? json_object_get(node->work, "instances") : NULL;
        json_array_foreach(instances, i, instance)
        {
            const char *state = json_string_value(json_object_get(instance, "state"));
            const char *name =
                json_string_value(json_array_get(json_object_get(instance, "model"), 1));
            if (state == NULL || name == NULL || strcmp(state, "running") != 0)
                continue;
            json_array_foreach(json_object_get(instance, "members"), k, member)
            {
                const char *slice = json_string_value(json_array_get(member, 3));
                json_int_t size = json_integer_value(json_array_get(member, 4));
                if (slice != NULL && slice[0] != '\0')
                    each(context, name, slice, (uint64_t)MAX(size, (json_int_t)0));
            }
        }
    }
}

struct telling {
    struct cluster_core *core;
    json_t *copies;
};

static void tell_slice(void *context, const char *model, const char *slice, uint64_t size_bytes)
{
    struct telling *telling = context;
    struct cluster_core *core = telling->core;
    const char *why = "";
    uint32_t others;
    json_t *nodes = json_array();
    NODE_EACH(core, node)
    if (node_here(node) && node->has_facts && copies_node_has(node, slice))
        json_array_append_new(nodes, json_id(node->id));
    bool safe = copies_safe(core, slice);
    if (!safe && any_fetches(core, slice))
        why = "copying";
    else if (!safe && choose(core, slice, size_bytes, &others) == NULL)
        why = others == 0 ? "one node" : "no room";
    else if (!safe)
        why = "waiting";
    json_array_append_new(telling->copies,
                          json_pack("{s:s, s:s, s:o, s:b, s:s, s:o}", "model", model, "slice",
                                    slice, "size", json_u64(size_bytes), "safe", (int)safe, "why",
                                    why, "nodes", nodes));
}

json_t *copies_json(const struct cluster_core *core)
{
    struct telling telling = {(struct cluster_core *)(uintptr_t)core, json_array()};
    each_running(core, tell_slice, &telling);
    return telling.copies;
}
