/* What a plan may use: the nodes that are here, and what is free on them for one instance. */
#include "cluster/core_internal.h"

/* What the node says is free, and what earlier epochs of this instance hold there: they are
 * released before anything new is asked for. */
static uint64_t free_for(const struct cluster_core *core, const struct node *node,
                         const struct instance *instance)
{
    uint64_t bytes = node->free_bytes;
    if (node->state == NODE_SELF) {
        bytes = worker_free_bytes(core);
        for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
            const struct reservation *r = &core->reservations[i];
            if (r->state > RESERVATION_WAITING && r->instance == instance->id)
                bytes += r->bytes;
        }
    }
    for (uint32_t i = 0; node->state != NODE_SELF && i < node->n_grants; i++)
        if (node->grants[i].instance == instance->id)
            bytes += node->grants[i].bytes;
    for (uint32_t i = 0; i < instance->n_limits; i++) {
        const struct limit *limit = &instance->limits[i];
        if (core->now_ms < limit->until_ms && cluster_id_equal(limit->node, node->id))
            bytes = MIN(bytes, limit->bytes);
    }
    return MIN(bytes, node->facts.memory_limit_bytes);
}

static void add_candidate(const struct cluster_core *core, const struct node *node,
                          const struct instance *instance, struct cluster_plan_input *input)
{
    uint64_t bytes = free_for(core, node, instance);
    if (!node->has_facts)
        return;
    const char *sha = instance->model.sha;
    struct cluster_candidate *candidate = &input->nodes[input->n_nodes++];
    *candidate = (struct cluster_candidate){
        .id = node->id, .name = node->name, .free_bytes = bytes, .facts = &node->facts};
    for (uint32_t i = 0; i < node->facts.n_models; i++)
        if (strcmp(node->facts.models[i].sha, sha) == 0)
            candidate->holds_model = true;
    for (uint32_t i = 0; i < node->facts.n_objects; i++)
        if (strncmp(node->facts.objects[i].id, sha, strlen(sha)) == 0)
            candidate->objects[candidate->n_objects++] = node->facts.objects[i].id;
}

static bool object_valid(const char object[CLUSTER_OBJECT_BYTES])
{
    char text[CLUSTER_OBJECT_BYTES];
    if (memchr(object, 0, CLUSTER_OBJECT_BYTES) == NULL)
        return false;
    text_copy(text, sizeof text, object);
    return strcmp(text, object) == 0;
}

/* An owner has a rank of its own, a node has one rank at most, and all are here. */
static bool plan_valid(struct cluster_core *core, const struct cluster_plan *plan,
                       struct error *error)
{
    bool good = plan->n_members >= 1 && plan->n_members <= CLUSTER_MAX_NODES &&
                plan->owner < plan->n_members;
    for (uint32_t i = 0; good && i < plan->n_members; i++) {
        good = core_node_here(core, plan->members[i].node) != NULL &&
               plan->members[i].bytes <= INT64_MAX && object_valid(plan->members[i].object) &&
               object_valid(plan->members[i].slice);
        for (uint32_t k = 0; good && k < i; k++)
            good = !cluster_id_equal(plan->members[i].node, plan->members[k].node);
    }
    if (!good)
        error_set(error, STATUS_UNSUPPORTED, "the planner's placement cannot be used");
    return good;
}

enum status core_plan_make(struct cluster_core *core, const struct instance *instance,
                           struct cluster_plan *out, struct error *error)
{
    struct cluster_plan_input input = {.model = &instance->model,
                                       .options = instance->options,
                                       .owner = core->nodes[0].id,
                                       .owner_fixed = instance->fixed};
    NODE_EACH(core, node)
    if (node_here(node))
        add_candidate(core, node, instance, &input);
    for (uint32_t a = 0; a < input.n_nodes; a++)
        for (uint32_t b = 0; b < input.n_nodes; b++) {
            const struct told_link *link = members_link(core_node(core, input.nodes[a].id),
                                                        core_node(core, input.nodes[b].id));
            if (a != b && link != NULL)
                input.links[a][b] =
                    (struct cluster_link_measured){true, link->latency_us, link->bandwidth};
        }
    memset(out, 0, sizeof *out);
    if (input.n_nodes == 0)
        return error_set(error, STATUS_BUSY, "no node has told yet what it has");
    enum status status = core->env.plan(core->env.context, &input, out, error);
    if (status != STATUS_OK) {
        memset(out, 0, sizeof *out);
        return status;
    }
    if (plan_valid(core, out, error))
        return STATUS_OK;
    core_plan_free(out);
    return STATUS_UNSUPPORTED;
}

void core_plan_free(struct cluster_plan *plan)
{
    json_decref(plan->spec);
    memset(plan, 0, sizeof *plan);
}

void core_plan_limit(struct cluster_core *core, struct instance *instance, struct cluster_id node,
                     uint64_t bytes, bool suspect)
{
    struct limit *limit = NULL;
    for (uint32_t i = 0; i < instance->n_limits; i++) {
        struct limit *other = &instance->limits[i];
        if (cluster_id_equal(other->node, node))
            limit = other;
        else if (limit == NULL && core->now_ms >= other->until_ms)
            limit = other;
    }
    if (limit == NULL)
        limit = &instance->limits[instance->n_limits < MAX_LIMITS ? instance->n_limits++ : 0];
    *limit = (struct limit){node, bytes, core->now_ms + (suspect ? SUSPECT_MS : LIMIT_MS), suspect};
}

bool core_plan_forgive(struct instance *instance)
{
    bool any = false;
    for (uint32_t i = instance->n_limits; i-- > 0;)
        if (instance->limits[i].suspect) {
            instance->limits[i] = instance->limits[--instance->n_limits];
            any = true;
        }
    return any;
}
