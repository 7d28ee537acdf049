/* From what the control plane knows of the nodes to a placement of one model, by the planner or,
 * where a user asks for a kind of placement, by rule. */
#include "cluster/core_slices.h"
#include "cluster/node_internal.h"
#include "cluster/rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CTX 8192
#define LEAST_CTX 2048 /* rather than to refuse, where no context was asked for */
/* Of nodes and links that have not been measured yet. */
#define UNKNOWN_READ_RATE 20e9
#define UNKNOWN_FLOPS 200e9
#define UNKNOWN_LATENCY_S 100e-6
#define UNKNOWN_BANDWIDTH 110e6

enum way { WAY_AUTO, WAY_SINGLE, WAY_PIPELINE, WAY_TENSOR };

/* Ranks in the order of the placement. */
struct draft {
    struct model_placement placement;
    uint32_t nodes[CLUSTER_MAX_NODES]; /* of each rank, by candidates */
    uint32_t n_ranks;                  /* 0: another node is to own it: */
    uint32_t owner;                    /* a candidate */
    double rate;                       /* predicted tokens a second; 0: not known */
};

/* One attempt to plan. */
struct planning {
    struct cluster_node *node;
    const struct cluster_plan_input *input;
    struct weights *weights;
    struct model_desc *desc;
    struct cluster_mix mix;
    struct model_options options;
};

/* Another node is to own it, and to plan it again. */
static void name_owner(const struct cluster_plan_input *input, uint32_t owner,
                       struct cluster_plan *out)
{
    out->n_members = 1;
    out->members[0].node = input->nodes[owner].id;
    snprintf(out->members[0].object, sizeof out->members[0].object, "%s", input->model->sha);
}

/* This node cannot plan a model of which it has nothing: one that has it, or some, owns it. Where
 * this one is to own it all the same, as it computes what another has no memory for, it brings the
 * metadata. */
static enum status plan_unknown(struct cluster_node *node, const struct cluster_plan_input *input,
                                struct cluster_plan *out, struct error *error)
{
    for (int some = 0; some < 2; some++)
        for (uint32_t i = 1; i < input->n_nodes; i++) {
            const struct cluster_candidate *at = &input->nodes[i];
            if (!at->facts->can_own || !(some ? at->n_objects > 0 : at->holds_model))
                continue;
            if (input->owner_fixed) {
                node_metadata_ask(node, input->model->sha);
                return error_set(error, STATUS_BUSY, "the metadata of %s is being fetched",
                                 input->model->name);
            }
            name_owner(input, i, out);
            return STATUS_OK;
        }
    return error_set(error, STATUS_NOT_FOUND, "no node has %s now", input->model->name);
}

static enum way way_of(const json_t *options)
{
    static const char *const names[] = {"auto", "single", "pipeline", "tensor"};
    const char *asked = json_string_value(json_object_get(options, "placement"));
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (asked != NULL && strcmp(asked, names[i]) == 0)
            return (enum way)i;
    return WAY_AUTO;
}

/* ---- By rule --------------------------------------------------------------------------------- */

static void draft_single(struct draft *draft, uint32_t n_layers)
{
    *draft = (struct draft){.placement = {.n_stages = 1}, .n_ranks = 1};
    draft->placement.stages[0] = (struct model_stage){0, n_layers, 1, {1}};
}

static double read_rate(const struct planning *planning, const struct cluster_candidate *node)
{
    const struct cluster_facts *facts = node->facts;
    if (facts->read_bandwidth <= 0)
        return UNKNOWN_READ_RATE;
    return cluster_plan_rate(&planning->mix, facts->read_bandwidth, facts->rates, facts->n_rates);
}

/* All nodes share each layer, by how fast they read. */
static void draft_tensor(struct draft *draft, const struct planning *planning, uint32_t n_layers)
{
    const struct cluster_plan_input *input = planning->input;
    uint32_t n = MIN(input->n_nodes, (uint32_t)MODEL_MAX_SHARDS);
    *draft = (struct draft){.placement = {.n_stages = 1}, .n_ranks = n};
    draft->placement.stages[0] = (struct model_stage){.end_layer = n_layers, .n_shards = n};
    double rates[MODEL_MAX_SHARDS];
    for (uint32_t i = 0; i < n; i++)
        rates[i] = read_rate(planning, &input->nodes[i]);
    plan_even_out(rates, n);
    for (uint32_t i = 0; i < n; i++) {
        double share = rates[i] / 1e8;
        draft->placement.stages[0].shares[i] = (uint16_t)MIN(MAX(share, 1.0), 65535.0);
        draft->nodes[i] = i;
    }
}

/* Layers in proportion to what each node has free; the last stage is this node's. */
static void draft_pipeline(struct draft *draft, const struct cluster_plan_input *input,
                           uint32_t n_layers)
{
    uint32_t n = MIN(input->n_nodes, n_layers), first = 0;
    double all = 0, before = 0;
    for (uint32_t i = 0; i < n; i++)
        all += (double)input->nodes[i].free_bytes;
    *draft = (struct draft){.placement = {.n_stages = n}, .n_ranks = n};
    for (uint32_t s = 0; s < n; s++) {
        uint32_t node = s + 1 < n ? s + 1 : 0;
        before += (double)input->nodes[node].free_bytes;
        uint32_t end = s + 1 < n ? (uint32_t)(before / all * n_layers + 0.5) : n_layers;
        end = MIN(MAX(end, first + 1), n_layers - (n - 1 - s));
        draft->placement.stages[s] = (struct model_stage){first, end, 1, {1}};
        draft->nodes[s] = node;
        first = end;
    }
}

/* ---- By the planner -------------------------------------------------------------------------- */

/* As in struct plan_node. What lies there of the model may be what it is to have again. */
static uint64_t disk_of(const struct cluster_plan_input *input, const struct cluster_candidate *at)
{
    uint64_t bytes = MAX(at->facts->disk_free_bytes, (uint64_t)1);
    for (uint32_t i = 0; i < at->facts->n_objects; i++)
        if (slice_of_model(at->facts->objects[i].id, input->model->sha))
            bytes = MAX(bytes, at->facts->objects[i].size_bytes);
    return at->holds_model ? 0 : bytes;
}

static void fill_nodes(const struct planning *planning, struct plan_node *nodes,
                       struct plan_link *links)
{
    const struct cluster_plan_input *input = planning->input;
    uint32_t n = input->n_nodes;
    for (uint32_t i = 0; i < n; i++) {
        const struct cluster_candidate *at = &input->nodes[i];
        nodes[i] = (struct plan_node){
            .memory_bytes = at->free_bytes,
            .disk_bytes = disk_of(input, at),
            .read_rate = read_rate(planning, at),
            .flops = at->facts->flops > 0 ? at->facts->flops : UNKNOWN_FLOPS,
            .layer_overhead_s = PLAN_LAYER_OVERHEAD_S,
        };
        snprintf(nodes[i].name, sizeof nodes[i].name, "%s", at->name);
        for (uint32_t k = 0; k < n; k++) {
            const struct cluster_link_measured *link = &input->links[i][k];
            links[i * n + k] =
                (struct plan_link){link->known ? link->latency_us / 1e6 : UNKNOWN_LATENCY_S,
                                   link->known ? link->bandwidth : UNKNOWN_BANDWIDTH, 0};
        }
    }
}

static bool stage_has(const struct plan *plan, const struct plan_stage *stage, uint32_t node)
{
    for (uint32_t i = 0; i < stage->n_shards; i++)
        if (plan->shards[stage->first_shard + i].node == node)
            return true;
    return false;
}

static void add_shard(struct draft *draft, struct model_stage *to, const struct plan_shard *shard)
{
    to->shares[to->n_shards++] = shard->share;
    draft->nodes[draft->n_ranks++] = shard->node;
}

/* A stage of the plan at the end of the draft, with as many layers as it has there; the owner's
 * shard comes first. */
static void add_stage(struct draft *draft, const struct plan *plan, const struct plan_stage *stage,
                      uint32_t owner)
{
    struct model_placement *placement = &draft->placement;
    uint32_t first =
        placement->n_stages > 0 ? placement->stages[placement->n_stages - 1].end_layer : 0;
    struct model_stage *to = &placement->stages[placement->n_stages++];
    *to = (struct model_stage){.first_layer = first,
                               .end_layer = first + stage->end_layer - stage->first_layer};
    for (int others = 0; others < 2; others++)
        for (uint32_t i = 0; i < stage->n_shards; i++) {
            const struct plan_shard *shard = &plan->shards[stage->first_shard + i];
            if ((shard->node != owner) == (others == 1))
                add_shard(draft, to, shard);
        }
}

/* A plan as a placement whose owner is node `owner`; false where it has no part in it. */
static bool draft_plan(struct draft *draft, const struct plan *plan, uint32_t owner)
{
    uint32_t n_stages = plan->kind == PLAN_REPLICAS ? 1 : plan->n_stages;
    const struct plan_stage *last = NULL;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        if (stage_has(plan, &plan->stages[s], owner))
            last = &plan->stages[s];
    if (last == NULL || plan->n_shards > CLUSTER_MAX_NODES)
        return false;
    *draft = (struct draft){.rate = plan->stream_rate};
    for (uint32_t s = 0; s < plan->n_stages && n_stages > 1; s++)
        if (&plan->stages[s] != last)
            add_stage(draft, plan, &plan->stages[s], owner);
    add_stage(draft, plan, last, owner);
    return true;
}

/* Of a plan that leaves out this node, one that may own it, rather one that has the model; 0:
 * there is none. */
static uint32_t owner_of(const struct plan *plan, const struct cluster_plan_input *input)
{
    uint32_t owner = 0;
    for (uint32_t i = 0; i < plan->n_shards; i++) {
        const struct cluster_candidate *at = &input->nodes[plan->shards[i].node];
        if (at->facts->can_own && (owner == 0 || at->holds_model))
            owner = plan->shards[i].node;
    }
    return owner;
}

static enum status draft_best(struct draft *draft, const struct planning *planning,
                              struct error *error)
{
    const struct cluster_plan_input *input = planning->input;
    struct plan_node nodes[CLUSTER_MAX_NODES];
    struct plan_link links[CLUSTER_MAX_NODES * CLUSTER_MAX_NODES];
    struct plan_layer *layers = calloc(PLAN_MAX_LAYERS, sizeof *layers);
    struct plan_model model;
    struct plan_result *result = NULL;
    enum status status = layers == NULL
                             ? error_memory(error, PLAN_MAX_LAYERS * sizeof *layers)
                             : cluster_plan_model(&model, layers, planning->weights, planning->desc,
                                                  planning->options.kv_format, error);
    if (status == STATUS_OK) /* the file may be one without weights, or called by its digest */
        snprintf(model.name, sizeof model.name, "%s", input->model->name);
    fill_nodes(planning, nodes, links);
    const struct plan_input asked = {
        .nodes = nodes,
        .n_nodes = input->n_nodes,
        .links = links,
        .model = &model,
        .work = {.context = planning->options.n_ctx,
                 .streams = 1,
                 .prompt = 512,
                 .objective = PLAN_LATENCY},
    };
    if (status == STATUS_OK)
        status = plan_make(&result, &asked, error);
    bool found = false;
    for (size_t i = 0; status == STATUS_OK && i < result->n_plans && !found; i++)
        found = draft_plan(draft, &result->plans[i], 0);
    if (status == STATUS_OK && !found && result->n_plans > 0 && !input->owner_fixed) {
        *draft = (struct draft){.owner = owner_of(&result->plans[0], input)};
        found = draft->owner != 0;
    }
    if (status == STATUS_OK && !found)
        status = error_set(error, STATUS_MEMORY, "%s",
                           result->n_plans == 0 ? result->refusal
                                                : "the best placements leave out this node");
    plan_free(result);
    free(layers);
    return status;
}

/* ---- Both ------------------------------------------------------------------------------------ */

/* Where memory is short, the KV cache holds fewer texts at a time: all ranks have the same pages,
 * and none takes more than three quarters of what is free for them. */
static enum status choose_cache(struct planning *planning, const struct draft *draft,
                                struct error *error)
{
    struct model_options *options = &planning->options;
    uint64_t least =
        (options->n_ctx + MODEL_KV_PAGE_TOKENS - 1) / MODEL_KV_PAGE_TOKENS * MODEL_KV_PAGE_TOKENS;
    uint64_t chosen = MAX(options->n_cache, least);
    options->n_cache = least;
    for (uint32_t r = 0; r < draft->n_ranks; r++) {
        struct model_memory memory;
        enum status status = model_rank_memory(planning->weights, options, r, &memory, error);
        if (status != STATUS_OK)
            return status;
        uint64_t allowed = planning->input->nodes[draft->nodes[r]].free_bytes / 4 * 3;
        uint64_t taken = memory.weights_bytes + memory.kv_bytes + memory.work_bytes;
        uint64_t more =
            allowed > taken && memory.kv_bytes > 0
                ? (uint64_t)((double)(allowed - taken) / (double)memory.kv_bytes * (double)least)
                : 0;
        if (memory.kv_bytes > 0)
            chosen = MIN(chosen, least + more);
    }
    options->n_cache = chosen;
    return STATUS_OK;
}

/* What each rank takes, by the model's own count; that it is there. */
static enum status finish(struct planning *planning, const struct draft *draft,
                          struct cluster_plan *out, struct error *error)
{
    const struct cluster_plan_input *input = planning->input;
    bool full = json_is_true(json_object_get(input->options, "full"));
    char a[32], b[32];
    out->n_members = draft->n_ranks;
    out->owner = model_placement_owner(&draft->placement);
    out->predicted = draft->rate;
    planning->options.placement = &draft->placement;
    enum status status = choose_cache(planning, draft, error);
    for (uint32_t r = 0; r < draft->n_ranks; r++) {
        const struct cluster_candidate *at = &input->nodes[draft->nodes[r]];
        struct model_memory memory;
        if (status == STATUS_OK)
            status = model_rank_memory(planning->weights, &planning->options, r, &memory, error);
        if (status != STATUS_OK)
            return status;
        struct cluster_member *member = &out->members[r];
        member->node = at->id;
        member->bytes = memory.weights_bytes + memory.kv_bytes + memory.work_bytes;
        member->slice_bytes = memory.weights_bytes;
        status = node_object_name(&draft->placement, r, input->model->sha, member->slice, error);
        if (status != STATUS_OK)
            return status;
        snprintf(member->object, sizeof member->object, "%s",
                 at->holds_model || full ? input->model->sha : member->slice);
        if (member->bytes > at->free_bytes)
            return error_set(error, STATUS_MEMORY, "%s needs %s on %s, where %s are free",
                             input->model->name, size_text(a, (double)member->bytes), at->name,
                             size_text(b, (double)at->free_bytes));
    }
    out->spec = cluster_placement_write(&draft->placement, &planning->options);
    return out->spec != NULL ? STATUS_OK : error_memory(error, sizeof *out->spec);
}

static enum status make(struct planning *planning, enum way way, struct cluster_plan *out,
                        struct error *error)
{
    struct draft draft;
    enum status status = STATUS_OK;
    if (way == WAY_AUTO)
        status = draft_best(&draft, planning, error);
    else if (way == WAY_SINGLE)
        draft_single(&draft, planning->desc->n_layers);
    else if (way == WAY_TENSOR)
        draft_tensor(&draft, planning, planning->desc->n_layers);
    else
        draft_pipeline(&draft, planning->input, planning->desc->n_layers);
    if (status == STATUS_OK && draft.n_ranks == 0)
        name_owner(planning->input, draft.owner, out);
    else if (status == STATUS_OK)
        status = finish(planning, &draft, out, error);
    return status;
}

enum status node_plan(void *context, const struct cluster_plan_input *input,
                      struct cluster_plan *out, struct error *error)
{
    struct cluster_node *node = context;
    struct buffer path = {0};
    struct planning planning = {.node = node, .input = input, .options = node->options.model};
    if (!node_metadata_path(node, input->model->sha, &path)) {
        buffer_free(&path);
        return plan_unknown(node, input, out, error);
    }
    uint32_t asked = (uint32_t)json_integer_value(json_object_get(input->options, "ctx"));
    if (asked > 0)
        planning.options.n_ctx = asked;
    enum status status = weights_open(&planning.weights, path.data, error);
    if (status == STATUS_OK)
        status = model_describe(&planning.desc, planning.weights, error);
    if (status == STATUS_OK)
        cluster_plan_mix(&planning.mix, planning.weights, planning.desc);
    bool chosen = planning.options.n_ctx == 0;
    if (status == STATUS_OK && chosen)
        planning.options.n_ctx = MIN(planning.desc->n_ctx_train, DEFAULT_CTX);
    if (status == STATUS_OK)
        status = make(&planning, way_of(input->options), out, error);
    while (status == STATUS_MEMORY && chosen && planning.options.n_ctx / 2 >= LEAST_CTX) {
        planning.options.n_ctx /= 2;
        planning.options.n_cache = node->options.model.n_cache;
        status = make(&planning, way_of(input->options), out, error);
    }
    model_desc_free(planning.desc);
    weights_close(planning.weights);
    buffer_free(&path);
    return status;
}
