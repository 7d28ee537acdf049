/* Room for slices on this node's disk, and old ones that go.
 *
 *   forget  {sha}    remove all slices of this model that no rank here computes with
 *
 * A slice goes when it is in nobody's use, it is not the last copy, and either nobody used it for
 * CLEAN_AFTER_DAYS, or what is being fetched needs the room; then the one that was used longest ago
 * goes first.
 *
 * In use are: what a rank here has reserved, or what it is being made from; slices of an instance
 * that runs anywhere in the cluster, and all of its model while an instance is being placed, or is
 * to be (consort load) and there is none. Metadata are in use as long as any slice of their model
 * is here.
 *
 * A slice is not the last copy when other slices of this node, or what nodes of a higher weight for
 * the model have, make it up. So of two nodes never each counts on the other; and what is left of a
 * model whose file is nowhere in the cluster stays, until the user says `consort rm`, which the
 * others are told as forget.
 */
#include "cluster/core_internal.h"

#define SECONDS_A_DAY 86400u

/* ---- Room ------------------------------------------------------------------------------------ */

/* What transfers will still write. */
static uint64_t promised(const struct cluster_core *core, const struct fetching *but)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++) {
        const struct fetching *fetching = &core->fetches[i];
        if (fetching->state == TRANSFER_ACTIVE && fetching != but)
            bytes += (uint64_t)(fetching->transfer.n_chunks - fetching->transfer.n_have) *
                     CLUSTER_CHUNK_BYTES;
    }
    return bytes;
}

static uint64_t left(const struct cluster_core *core, const struct fetching *but)
{
    uint64_t used = promised(core, but), free_bytes = core->nodes[0].facts.disk_free_bytes;
    return free_bytes > used ? free_bytes - used : 0;
}

uint64_t disk_offered(const struct cluster_core *core)
{
    return left(core, NULL) + core->removable_bytes;
}

/* ---- What may go ----------------------------------------------------------------------------- */

static bool is_metadata(const char *object)
{
    const char *slash = strchr(object, '/');
    return slash != NULL && strcmp(slash, "/meta") == 0;
}

static bool reserved_here(const struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *r = &core->reservations[i];
        if (r->state != RESERVATION_NONE && slice_of_model(object, r->model.sha) &&
            (strcmp(r->object, object) == 0 || r->state < RESERVATION_PREPARED ||
             is_metadata(object)))
            return true;
    }
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE &&
            slice_of_model(core->fetches[i].transfer.object, object))
            return true;
    return false;
}

/* Whether an instance uses it; *any: there is one of its model. */
static bool instance_uses(const json_t *instance, const char *object, bool *any)
{
    const char *state = json_string_value(json_object_get(instance, "state"));
    const char *sha = json_string_value(json_array_get(json_object_get(instance, "model"), 0));
    const json_t *member;
    size_t i;
    if (state == NULL || sha == NULL || !slice_of_model(object, sha) ||
        strcmp(state, "failed") == 0)
        return false;
    *any = true;
    if (strcmp(state, "running") != 0 || is_metadata(object))
        return true;
    json_array_foreach(json_object_get(instance, "members"), i, member)
    {
        const char *used = json_string_value(json_array_get(member, 2));
        const char *slice = json_string_value(json_array_get(member, 3));
        if ((used != NULL && strcmp(used, object) == 0) ||
            (slice != NULL && strcmp(slice, object) == 0))
            return true;
    }
    return false;
}

static bool wanted_anywhere(const struct cluster_core *core, const char *object)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    const json_t *instance;
    bool any = false;
    size_t i;
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        const json_t *instances = node_here(node) ? json_object_get(node->work, "instances") : NULL;
        json_array_foreach(instances, i, instance)
        {
            if (instance_uses(instance, object, &any))
                return true;
        }
    }
    snprintf(key, sizeof key, "model/%.64s", object);
    return !any && cluster_core_get(core, key) != NULL;
}

/* Whether others that may be counted on have all of it: other slices here, and nodes of a higher
 * weight. */
static bool held_elsewhere(const struct cluster_core *core, const char *object)
{
    const char *held[SLICES_MAX_HELD];
    const struct node *holders[SLICES_MAX_HELD];
    const struct node *self = &core->nodes[0];
    char sha[CLUSTER_SHA_TEXT];
    size_t n = copies_held(core, object, NULL, held, holders), n_counted = 0;
    snprintf(sha, sizeof sha, "%.*s", (int)sizeof sha - 1, object);
    for (size_t i = 0; i < n; i++) {
        const struct cluster_facts *facts = &holders[i]->facts;
        bool counts = holders[i] == self
                          ? strcmp(held[i], object) != 0
                          : cluster_weight(sha, holders[i]->id) > cluster_weight(sha, self->id);
        for (uint32_t m = 0; m < facts->n_models; m++)
            counts = counts || held[i] == facts->models[m].sha; /* that file does not go */
        if (counts)
            held[n_counted++] = held[i];
    }
    return slices_cover(held, n_counted, object, NULL);
}

static bool may_go(const struct cluster_core *core, const struct cluster_object *object)
{
    if (reserved_here(core, object->id) || wanted_anywhere(core, object->id))
        return false;
    if (!is_metadata(object->id))
        return held_elsewhere(core, object->id);
    const struct cluster_facts *facts = &core->nodes[0].facts;
    for (uint32_t i = 0; i < facts->n_objects; i++)
        if (slice_of_model(facts->objects[i].id, object->id) && !is_metadata(facts->objects[i].id))
            return false;
    return true;
}

/* ---- Going ----------------------------------------------------------------------------------- */

static void take_away(struct cluster_core *core, uint32_t place, const char *why)
{
    struct cluster_facts *facts = &core->nodes[0].facts;
    struct cluster_object object = facts->objects[place];
    char size[32];
    core_log(core, "%.90s (%s) is removed: %s", object.id,
             size_text(size, (double)object.size_bytes), why);
    facts->objects[place] = facts->objects[--facts->n_objects];
    facts->disk_free_bytes += object.size_bytes;
    core->removable_bytes -= MIN(core->removable_bytes, object.size_bytes);
    core->facts_dirty = true;
    core->env.remove(core->env.context, object.id);
}

/* The one that was used longest ago of those that may go; n_objects: none. */
static uint32_t oldest(const struct cluster_core *core)
{
    const struct cluster_facts *facts = &core->nodes[0].facts;
    uint32_t found = facts->n_objects;
    for (uint32_t i = 0; i < facts->n_objects; i++)
        if ((found == facts->n_objects ||
             facts->objects[i].used_s < facts->objects[found].used_s) &&
            may_go(core, &facts->objects[i]))
            found = i;
    return found;
}

bool disk_make_room(struct cluster_core *core, const struct fetching *fetching, uint64_t size_bytes,
                    struct error *error)
{
    const struct cluster_facts *facts = &core->nodes[0].facts;
    char need[32], have[32];
    while (core->env.remove != NULL && (left(core, fetching) < size_bytes + DISK_KEEP_BYTES ||
                                        facts->n_objects == CLUSTER_MAX_OBJECTS)) {
        uint32_t place = oldest(core);
        if (place == facts->n_objects)
            break;
        take_away(core, place, "the room is needed");
    }
    if (left(core, fetching) >= size_bytes + DISK_KEEP_BYTES)
        return true;
    error_set(error, STATUS_MEMORY, "the disk has no room for it: it needs %s, and %s are left",
              size_text(need, (double)(size_bytes + DISK_KEEP_BYTES)),
              size_text(have, (double)left(core, fetching)));
    return false;
}

static void remove_old(struct cluster_core *core)
{
    struct cluster_facts *facts = &core->nodes[0].facts;
    uint64_t now_s = core->env.wall_ms(core->env.context) / 1000;
    core->removable_bytes = 0;
    for (uint32_t i = facts->n_objects; i-- > 0;) {
        struct cluster_object *object = &facts->objects[i];
        if (core->env.used != NULL && object->used_s + SECONDS_A_DAY < now_s &&
            wanted_anywhere(core, object->id)) {
            object->used_s = now_s;
            core->env.used(core->env.context, object->id);
        }
        if (!may_go(core, object))
            continue;
        if (object->used_s + (uint64_t)CLEAN_AFTER_DAYS * SECONDS_A_DAY < now_s)
            take_away(core, i, "nobody used it for long");
        else
            core->removable_bytes += object->size_bytes;
    }
}

void disk_tick(struct cluster_core *core)
{
    if (core->now_ms < core->clean_ms || core->env.remove == NULL || !core->nodes[0].has_facts)
        return;
    core->clean_ms = core->now_ms + core_jitter(core, CLEAN_MS);
    remove_old(core);
}

/* ---- The user's word ------------------------------------------------------------------------- */

static bool runs_anywhere(const struct cluster_core *core, const char *sha)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    snprintf(key, sizeof key, "model/%s", sha);
    if (cluster_core_get(core, key) != NULL)
        return true;
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        for (uint32_t i = 0; node_here(node) && i < node->n_instances; i++)
            if (node->instances[i].state != INSTANCE_FAILED &&
                strcmp(node->instances[i].sha, sha) == 0)
                return true;
    }
    return false;
}

enum status cluster_core_forget(struct cluster_core *core, const char *sha, struct error *error)
{
    if (!sha_valid(sha))
        return error_set(error, STATUS_INVALID, "a model is named by its SHA-256");
    if (runs_anywhere(core, sha))
        return error_set(error, STATUS_BUSY, "the cluster runs it: consort unload closes it");
    core_begin(core);
    NODE_EACH(core, node)
    if (node_here(node))
        core_send(core, node, json_pack("{s:s, s:s}", "type", "forget", "sha", sha));
    core_end(core);
    return STATUS_OK;
}

void on_forget(struct cluster_core *core, struct node *from, struct message *message)
{
    char sha[CLUSTER_SHA_TEXT];
    (void)from;
    message_text(message, "sha", sha, sizeof sha);
    struct cluster_facts *facts = &core->nodes[0].facts;
    if (message->failed || core->env.remove == NULL)
        return;
    fetch_forget(core, sha);
    for (uint32_t i = facts->n_objects; i-- > 0;)
        if (slice_of_model(facts->objects[i].id, sha) && !reserved_here(core, facts->objects[i].id))
            take_away(core, i, "the user removed the model");
}
