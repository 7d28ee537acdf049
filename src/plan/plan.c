/* Candidates, and which of them are worth it. Nodes are sorted and taken from the front; nothing is
 * enumerated. */
#include "plan/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NUMBER 1e18
#define ALL_COUNTS 16 /* up to so many nodes every number is tried, beyond it every fourth */
#define TIGHTENINGS 6
#define MAX_SEEDS 16u
#define SEED_NEIGHBOURS 3

const char *plan_kind_text(enum plan_kind kind)
{
    static const char *const texts[PLAN_KIND_COUNT] = {
        "one node", "replicas", "pipeline", "tensor parallel", "pipeline of tensor-parallel groups",
    };
    return texts[kind];
}

/* ---- What goes in ---------------------------------------------------------------------------- */

static bool within(double value, double min, double max)
{
    return value >= min && value <= max; /* false for NaN */
}

static const char *layer_fault(const struct plan_model *model, const struct plan_layer *layer)
{
    const double numbers[] = {layer->head_bytes,      layer->kv_head_bytes, layer->ff_bytes,
                              layer->expert_bytes,    layer->whole_bytes,   layer->kv_bytes,
                              layer->context_products};
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        if (!within(numbers[i], 0, MAX_NUMBER))
            return "a layer has sizes that cannot be";
    if (layer->n_heads == 0 || layer->n_kv_heads > layer->n_heads)
        return "a layer needs at least one head, and no more KV heads than heads";
    if (layer->expert_bytes > 0 && (layer->n_expert_ff == 0 || model->n_experts == 0))
        return "a layer has experts, but their number or their columns are 0";
    return NULL;
}

static const char *input_fault(const struct plan_input *in)
{
    const struct plan_model *model = in->model;
    if (in->n_nodes == 0 || in->n_nodes > PLAN_MAX_NODES)
        return "there must be 1 to 64 nodes";
    if (in->n_nodes > 1 && in->links == NULL)
        return "the links between the nodes are missing";
    if (model->n_layers == 0 || model->n_layers > PLAN_MAX_LAYERS || model->n_embd == 0)
        return "a model has 1 to 512 layers, and a width";
    if (model->n_experts_used > model->n_experts)
        return "a model cannot use more experts than it has";
    if (!within(model->params_active, 1, MAX_NUMBER) ||
        !within(model->output_bytes, 0, MAX_NUMBER) ||
        !within(model->embedding_bytes, 0, MAX_NUMBER))
        return "the model has sizes that cannot be";
    if (in->work.context == 0 || in->work.streams == 0 || in->work.prompt == 0)
        return "context, streams and prompt must not be 0";
    for (uint32_t i = 0; i < in->n_nodes; i++) {
        const struct plan_node *node = &in->nodes[i];
        if (!within(node->read_rate, 1, MAX_NUMBER) || !within(node->flops, 0, MAX_NUMBER) ||
            !within(node->layer_overhead_s, 0, 1))
            return "a node reads at no rate, or has speeds that cannot be";
    }
    for (size_t i = 0; in->links != NULL && i < (size_t)in->n_nodes * in->n_nodes; i++)
        if (!within(in->links[i].latency_s, 0, 60) ||
            !within(in->links[i].bandwidth, 0, MAX_NUMBER) ||
            !within(in->links[i].collective_s, 0, 60))
            return "a link has a latency or bandwidth that cannot be";
    for (uint32_t l = 0; l < model->n_layers; l++) {
        const char *text = layer_fault(model, &model->layers[l]);
        if (text != NULL)
            return text;
    }
    return NULL;
}

double model_weight_bytes(const struct plan_model *model)
{
    double bytes = model->embedding_bytes + (model->tied ? 0 : model->output_bytes);
    for (uint32_t l = 0; l < model->n_layers; l++) {
        const struct plan_layer *layer = &model->layers[l];
        bytes += layer->head_bytes + layer->kv_head_bytes + layer->ff_bytes + layer->expert_bytes +
                 layer->whole_bytes;
    }
    return bytes;
}

/* ---- The planner ----------------------------------------------------------------------------- */

static bool same_layer(const struct plan_layer *a, const struct plan_layer *b)
{
    return a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads && a->window == b->window &&
           a->n_ff == b->n_ff && a->n_expert_ff == b->n_expert_ff &&
           a->head_bytes == b->head_bytes && a->kv_head_bytes == b->kv_head_bytes &&
           a->ff_bytes == b->ff_bytes && a->expert_bytes == b->expert_bytes &&
           a->whole_bytes == b->whole_bytes && a->kv_bytes == b->kv_bytes &&
           a->context_products == b->context_products;
}

static void sort_into_classes(struct planner *planner)
{
    const struct plan_model *model = planner->in->model;
    for (uint32_t l = 0; l < model->n_layers; l++) {
        uint32_t c = 0;
        while (c < planner->n_classes && !same_layer(&planner->classes[c], &model->layers[l]))
            c++;
        if (c == planner->n_classes)
            planner->classes[planner->n_classes++] = model->layers[l];
        planner->class_of[l] = c;
        uint32_t columns = model->layers[l].n_expert_ff;
        if (columns > 0 && (planner->n_expert_ff == 0 || columns < planner->n_expert_ff))
            planner->n_expert_ff = columns;
    }
}

/* Operations for a byte that is read: those of the parameters that a token uses. */
static double flops_per_byte(const struct plan_model *model)
{
    double bytes = model->output_bytes;
    for (uint32_t l = 0; l < model->n_layers; l++) {
        const struct plan_layer *layer = &model->layers[l];
        bytes += layer->head_bytes + layer->kv_head_bytes + layer->ff_bytes + layer->whole_bytes;
        if (model->n_experts > 0)
            bytes += layer->expert_bytes * model->n_experts_used / model->n_experts;
    }
    return bytes > 0 ? 2 * model->params_active / bytes : 0;
}

static bool links_uniform(const struct plan_input *in)
{
    for (uint32_t a = 0; a < in->n_nodes; a++)
        for (uint32_t b = 0; b < in->n_nodes; b++) {
            const struct plan_link *link = &in->links[(size_t)a * in->n_nodes + b],
                                   *first = &in->links[1];
            if (a != b &&
                (link->latency_s != first->latency_s || link->bandwidth != first->bandwidth ||
                 link->collective_s != first->collective_s))
                return false;
        }
    return true;
}

static void planner_close(struct planner *planner)
{
    free(planner->classes);
    free(planner->class_of);
    free(planner->counts);
    free(planner->steps[0]);
    free(planner->steps[1]);
    free(planner->order);
}

/* The fastest first, at what the objective asks for. */
static void sort_nodes(struct planner *planner)
{
    const double *steps = planner->steps[planner->in->work.objective == PLAN_THROUGHPUT ? 1 : 0];
    const struct plan_node *nodes = planner->in->nodes;
    for (uint32_t i = 0; i < planner->in->n_nodes; i++) {
        uint32_t at = i;
        while (at > 0) {
            uint32_t other = planner->order[at - 1];
            if (steps[other] < steps[i] ||
                (steps[other] == steps[i] && nodes[other].memory_bytes >= nodes[i].memory_bytes))
                break;
            planner->order[at--] = other;
        }
        planner->order[at] = i;
    }
}

static enum status planner_open(struct planner *planner, const struct plan_input *in,
                                struct error *error)
{
    uint32_t n_layers = in->model->n_layers;
    *planner = (struct planner){.in = in};
    planner->classes = calloc(n_layers, sizeof *planner->classes);
    planner->class_of = calloc(n_layers, sizeof *planner->class_of);
    planner->steps[0] = calloc(in->n_nodes, sizeof(double));
    planner->steps[1] = calloc(in->n_nodes, sizeof(double));
    planner->order = calloc(in->n_nodes, sizeof *planner->order);
    if (planner->classes == NULL || planner->class_of == NULL || planner->steps[0] == NULL ||
        planner->steps[1] == NULL || planner->order == NULL)
        return error_memory(error, n_layers * sizeof *planner->classes);
    sort_into_classes(planner);
    uint32_t n = planner->n_classes;
    planner->counts = calloc((size_t)(n_layers + 1) * n, sizeof *planner->counts);
    if (planner->counts == NULL)
        return error_memory(error, (size_t)n_layers * n * sizeof *planner->counts);
    for (uint32_t l = 0; l < n_layers; l++) {
        memcpy(&planner->counts[(size_t)(l + 1) * n], &planner->counts[(size_t)l * n],
               n * sizeof *planner->counts);
        planner->counts[(size_t)(l + 1) * n + planner->class_of[l]]++;
    }
    planner->flops_per_byte = flops_per_byte(in->model);
    /* A context that is half full. */
    planner->depth = MIN(MAX(in->work.prompt, in->work.context / 2), in->work.context);
    planner->uniform = in->n_nodes < 3 || links_uniform(in);
    for (uint32_t i = 0; i < in->n_nodes; i++) {
        planner->steps[0][i] = node_step(planner, i, 1);
        planner->steps[1][i] = node_step(planner, i, in->work.streams);
    }
    sort_nodes(planner);
    return STATUS_OK;
}

/* ---- Candidates ------------------------------------------------------------------------------ */

/* The best layout of a kind over so many nodes; of single nodes, each one. */
struct slot {
    bool tried, fits;
    struct plan plan;
    struct fault fault;
};

struct search {
    const struct planner *planner;
    struct slot *slots[PLAN_KIND_COUNT][PLAN_MAX_NODES]; /* [kind][nodes - 1], or [.][node] */
    struct slot spare;
    bool failed; /* memory is out */
};

bool plan_better(const struct planner *planner, const struct plan *a, const struct plan *b,
                 double times)
{
    const struct plan_work *work = &planner->in->work;
    if (work->objective == PLAN_LATENCY)
        return a->stream_rate >= b->stream_rate * times;
    if (work->objective == PLAN_THROUGHPUT)
        return a->all_rate >= b->all_rate * times;
    double enough = work->reader_rate * work->streams;
    if (a->all_rate >= enough && b->all_rate < enough)
        return true;
    if (a->all_rate < enough && b->all_rate >= enough)
        return false;
    return a->all_rate >= b->all_rate * times;
}

static struct slot *slot_of(struct search *search, enum plan_kind kind, uint32_t index)
{
    struct slot **slot = &search->slots[kind][index];
    if (*slot == NULL) {
        *slot = calloc(1, sizeof **slot);
        search->failed = search->failed || *slot == NULL;
    }
    return *slot != NULL ? *slot : &search->spare;
}

static bool fits_over(const struct search *search, enum plan_kind kind, uint32_t n_nodes)
{
    const struct slot *slot = search->slots[kind][n_nodes - 1];
    return slot != NULL && slot->fits;
}

/* How near a fault is to fitting: the smaller, the nearer. */
static double distance(const struct fault *fault)
{
    if (fault->kind != FAULT_MEMORY && fault->kind != FAULT_DISK)
        return INFINITY;
    return fault->need / MAX(fault->has, 1);
}

static void keep(struct search *search, uint32_t index, const struct plan *plan, bool fits,
                 const struct fault *fault)
{
    struct slot *slot = slot_of(search, plan->kind, index);
    bool better = !slot->tried || (fits && !slot->fits) ||
                  (fits && slot->fits && !plan_better(search->planner, &slot->plan, plan, 1)) ||
                  (!fits && !slot->fits && distance(fault) < distance(&slot->fault));
    if (better)
        *slot = (struct slot){true, fits, *plan, *fault};
}

static void offer(struct search *search, uint32_t index, struct plan *plan)
{
    struct fault fault = {0};
    bool fits = plan->kind == PLAN_REPLICAS ? measure_replicas(search->planner, plan, &fault)
                                            : measure_plan(search->planner, plan, &fault);
    keep(search, index, plan, fits, &fault);
}

static void try_single_nodes(struct search *search)
{
    const struct planner *planner = search->planner;
    for (uint32_t i = 0; i < planner->in->n_nodes; i++) {
        struct plan plan = {.kind = PLAN_ONE_NODE, .n_stages = 1, .n_shards = 1};
        plan.stages[0] = (struct plan_stage){0, planner->in->model->n_layers, 0, 1};
        plan.shards[0] = (struct plan_shard){.node = i, .share = 1};
        offer(search, i, &plan);
    }
}

/* Of those that the model fits, the fastest first. */
static void try_replicas(struct search *search)
{
    const struct planner *planner = search->planner;
    struct plan plan = {.kind = PLAN_REPLICAS};
    for (uint32_t i = 0; i < planner->in->n_nodes; i++) {
        uint32_t node = planner->order[i];
        double need = model_weight_bytes(planner->in->model);
        if (need > node_capacity(&planner->in->nodes[node]))
            continue;
        plan.stages[plan.n_stages] =
            (struct plan_stage){0, planner->in->model->n_layers, plan.n_stages, 1};
        plan.shards[plan.n_stages] = (struct plan_shard){.node = node, .share = 1};
        plan.n_shards = ++plan.n_stages;
        struct plan offered = plan;
        if (plan.n_stages >= 2)
            offer(search, plan.n_stages - 1, &offered);
    }
}

/* ---- Tensor parallel ------------------------------------------------------------------------- */

/* What a small all-reduce over a link takes, roughly. */
static double link_cost(const struct plan_link *link, double bytes)
{
    if (link->bandwidth <= 0)
        return INFINITY;
    return (link->collective_s > 0 ? link->collective_s : link->latency_s) +
           bytes / link->bandwidth;
}

/* out[n]: seed, then the others by their link to it, the faster first. free_nodes (or NULL) says
 * which may be taken. */
static uint32_t by_link(const struct planner *planner, uint32_t seed, const bool *taken,
                        uint32_t *out)
{
    double costs[PLAN_MAX_NODES], bytes = (double)planner->in->model->n_embd * NUMBER_BYTES;
    uint32_t n = 0;
    out[n++] = seed;
    costs[0] = -1;
    for (uint32_t i = 0; i < planner->in->n_nodes; i++) {
        uint32_t node = planner->order[i];
        if (node == seed || (taken != NULL && taken[node]))
            continue;
        double cost = link_cost(link_between(planner, seed, node), bytes);
        uint32_t at = n++;
        for (; at > 1 && costs[at - 1] > cost; at--) {
            costs[at] = costs[at - 1];
            out[at] = out[at - 1];
        }
        costs[at] = cost;
        out[at] = node;
    }
    return n;
}

static void group_of(struct group *group, const uint32_t *nodes, uint32_t n)
{
    *group = (struct group){.n = n};
    for (uint32_t i = 0; i < n; i++)
        group->shards[i] = (struct plan_shard){.node = nodes[i], .share = 1};
}

/* One stage. Whoever has too little memory by the rounding of shares gets a little less. */
static void try_tensor(struct search *search, const uint32_t *nodes, uint32_t n)
{
    const struct planner *planner = search->planner;
    double less[PLAN_MAX_SHARDS] = {0};
    struct plan plan = {.kind = PLAN_TENSOR, .n_stages = 1, .n_shards = n};
    struct group group;
    struct fault fault = {0};
    group_of(&group, nodes, n);
    plan.stages[0] = (struct plan_stage){0, planner->in->model->n_layers, 0, n};
    memcpy(plan.shards, group.shards, n * sizeof *plan.shards);
    for (int i = 0; i < TIGHTENINGS; i++) {
        struct fault over;
        if (!assign_shares(planner, &group, 1, less, &over)) {
            keep(search, n - 1, &plan, false, i == 0 ? &over : &fault);
            return;
        }
        memcpy(plan.shards, group.shards, n * sizeof *plan.shards);
        bool fits = measure_plan(planner, &plan, &fault);
        if (fits || fault.kind != FAULT_MEMORY || i + 1 == TIGHTENINGS) {
            keep(search, n - 1, &plan, fits, &fault);
            return;
        }
        for (uint32_t s = 0; s < n; s++)
            if (nodes[s] == fault.node)
                less[s] += assign_least(planner, n) / 16 * (1 << i);
    }
}

/* Nodes by memory, the largest first. */
static void by_memory(const struct planner *planner, uint32_t *out)
{
    const struct plan_node *nodes = planner->in->nodes;
    for (uint32_t i = 0; i < planner->in->n_nodes; i++) {
        uint32_t at = i, node = planner->order[i];
        for (; at > 0 && nodes[out[at - 1]].memory_bytes < nodes[node].memory_bytes; at--)
            out[at] = out[at - 1];
        out[at] = node;
    }
}

/* out[]: the nodes that are linked best to those next to them, so many that each group of a room
 * with few kinds of links is begun by one of them. */
static uint32_t best_linked(const struct planner *planner, uint32_t *out)
{
    double costs[PLAN_MAX_NODES], bytes = (double)planner->in->model->n_embd * NUMBER_BYTES;
    uint32_t nodes[PLAN_MAX_NODES], n = planner->in->n_nodes;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t node = planner->order[i], at = i;
        double cost = 0;
        by_link(planner, node, NULL, nodes);
        for (uint32_t k = 1; k <= SEED_NEIGHBOURS && k < n; k++)
            cost += MIN(link_cost(link_between(planner, node, nodes[k]), bytes), 1e6);
        for (; at > 0 && costs[at - 1] > cost; at--) {
            costs[at] = costs[at - 1];
            out[at] = out[at - 1];
        }
        costs[at] = cost;
        out[at] = node;
    }
    return MIN(n, MAX_SEEDS);
}

static void try_tensors(struct search *search)
{
    const struct planner *planner = search->planner;
    uint32_t nodes[PLAN_MAX_NODES], most = MIN(planner->in->n_nodes, PLAN_MAX_SHARDS);
    by_memory(planner, nodes);
    for (uint32_t n = 2; n <= most; n++) {
        try_tensor(search, planner->order, n);
        if (!fits_over(search, PLAN_TENSOR, n))
            try_tensor(search, nodes, n);
    }
    uint32_t seeds[PLAN_MAX_NODES];
    uint32_t n_seeds = planner->uniform ? 0 : best_linked(planner, seeds);
    for (uint32_t s = 0; s < n_seeds; s++) {
        by_link(planner, seeds[s], NULL, nodes);
        for (uint32_t n = 2; n <= most; n++)
            try_tensor(search, nodes, n);
    }
}

/* ---- Pipelines ------------------------------------------------------------------------------- */

/* Orders groups so that each is followed by the one it reaches best. */
static void chain(const struct planner *planner, const struct group *groups, uint32_t *sequence,
                  uint32_t n)
{
    double bytes = (double)planner->in->model->n_embd * NUMBER_BYTES;
    for (uint32_t i = 1; i < n; i++) {
        uint32_t best = i, from = groups[sequence[i - 1]].shards[0].node;
        double least = INFINITY;
        for (uint32_t j = i; j < n; j++) {
            double cost =
                link_cost(link_between(planner, from, groups[sequence[j]].shards[0].node), bytes);
            if (cost < least) {
                least = cost;
                best = j;
            }
        }
        uint32_t chosen = sequence[best];
        memmove(&sequence[i + 1], &sequence[i], (best - i) * sizeof *sequence);
        sequence[i] = chosen;
    }
}

static void try_layout(struct search *search, const struct layout *layout, enum plan_kind kind,
                       const uint32_t *sequence, uint32_t n, enum layout_how how)
{
    struct plan plan = {.kind = kind};
    struct fault fault = {0};
    uint32_t n_nodes = 0;
    if (layout_make(layout, sequence, n, how, &plan, &fault)) {
        if (plan.n_stages >= 2)
            offer(search, plan.n_shards - 1, &plan);
        return;
    }
    if (how == LAYOUT_FILL)
        return; /* balancing the same groups says it */
    n_nodes = layout_nodes(layout, sequence, n, &plan);
    if (n_nodes <= PLAN_MAX_NODES)
        keep(search, n_nodes - 1, &plan, false, &fault);
}

/* Over the first groups of a row, for each number of them; where spare, only where nothing over as
 * many nodes fits yet. */
static void try_pipelines(struct search *search, const struct group *groups, uint32_t n,
                          enum plan_kind kind, const uint32_t *row, bool spare)
{
    const struct planner *planner = search->planner;
    struct layout *layout = layout_open(planner, groups, n);
    uint32_t sequence[PLAN_MAX_NODES];
    if (layout == NULL) {
        search->failed = true;
        return;
    }
    try_layout(search, layout, kind, row, n, LAYOUT_FILL);
    for (uint32_t k = 2; k <= n; k++) {
        uint32_t step = k > ALL_COUNTS ? 4 : k > ALL_COUNTS / 2 && kind == PLAN_GROUPS ? 2 : 1;
        if ((k % step != 0 && k != n) || (spare && fits_over(search, kind, k)))
            continue;
        memcpy(sequence, row, k * sizeof *sequence);
        try_layout(search, layout, kind, sequence, k, LAYOUT_BALANCE);
        if (planner->uniform)
            continue;
        chain(planner, groups, sequence, k);
        if (memcmp(sequence, row, k * sizeof *sequence) == 0)
            continue;
        try_layout(search, layout, kind, sequence, k, LAYOUT_BALANCE);
        try_layout(search, layout, kind, sequence, k, LAYOUT_FILL);
    }
    layout_close(layout);
}

static void try_node_pipelines(struct search *search)
{
    const struct planner *planner = search->planner;
    uint32_t n = planner->in->n_nodes, row[PLAN_MAX_NODES];
    struct group *groups = calloc(n, sizeof *groups);
    if (groups == NULL) {
        search->failed = true;
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        group_of(&groups[i], &i, 1);
    try_pipelines(search, groups, n, PLAN_PIPELINE, planner->order, false);
    by_memory(planner, row);
    if (memcmp(row, planner->order, n * sizeof *row) != 0)
        try_pipelines(search, groups, n, PLAN_PIPELINE, row, true);
    free(groups);
}

/* Groups of `size` nodes that reach each other best, the last one smaller. */
static void try_group_pipelines(struct search *search, uint32_t size)
{
    const struct planner *planner = search->planner;
    bool taken[PLAN_MAX_NODES] = {false};
    uint32_t n = 0, row[PLAN_MAX_NODES], nodes[PLAN_MAX_NODES];
    struct group *groups = calloc(planner->in->n_nodes, sizeof *groups);
    struct fault fault;
    double total = 0;
    for (uint32_t i = 0; i < planner->in->n_nodes; i++)
        total += node_capacity(&planner->in->nodes[i]);
    for (uint32_t i = 0; i < planner->in->n_nodes && groups != NULL; i++) {
        if (taken[planner->order[i]])
            continue;
        uint32_t count = MIN(by_link(planner, planner->order[i], taken, nodes), size);
        double memory = 0;
        group_of(&groups[n], nodes, count);
        for (uint32_t j = 0; j < count; j++) {
            taken[nodes[j]] = true;
            memory += node_capacity(&planner->in->nodes[nodes[j]]);
        }
        /* As much of the model as its memory is of all; where shares do not fit, equal ones are
         * tried, and measuring decides. */
        double portion = MIN(memory / MAX(total, 1), 0.999);
        if (count > 1)
            (void)assign_shares(planner, &groups[n], portion, NULL, &fault);
        row[n] = n;
        n++;
    }
    if (groups == NULL)
        search->failed = true;
    else if (n >= 2)
        try_pipelines(search, groups, n, PLAN_GROUPS, row, false);
    free(groups);
}

static void try_all(struct search *search)
{
    static const uint32_t sizes[] = {2, 3, 4, 6, 8, 16};
    try_single_nodes(search);
    if (search->planner->in->n_nodes == 1)
        return;
    try_replicas(search);
    try_node_pipelines(search);
    try_tensors(search);
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        if (sizes[i] < search->planner->in->n_nodes)
            try_group_pipelines(search, sizes[i]);
}

/* ---- Ranking --------------------------------------------------------------------------------- */

static void add_rejection(const struct search *search, struct plan_result *result,
                          const struct slot *slot, const struct plan *better)
{
    struct plan_rejection *rejection = &result->rejections[result->n_rejections++];
    *rejection = (struct plan_rejection){.kind = slot->plan.kind, .n_nodes = slot->plan.n_shards};
    if (slot->fits) {
        rejection->fits = true;
        rejection->stream_rate = slot->plan.stream_rate;
        rejection->all_rate = slot->plan.all_rate;
        reason_slower(search->planner, &slot->plan, better, rejection->text,
                      sizeof rejection->text);
    } else
        reason_fault(search->planner, &slot->plan, &slot->fault, rejection->text,
                     sizeof rejection->text);
}

/* The best over just n nodes, or NULL. */
static const struct slot *best_over(const struct search *search, uint32_t n)
{
    const struct slot *best = NULL;
    for (int kind = 0; kind < PLAN_KIND_COUNT; kind++)
        for (uint32_t i = 0; i < PLAN_MAX_NODES; i++) {
            const struct slot *slot = search->slots[kind][i];
            if (slot != NULL && slot->fits && slot->plan.n_shards == n &&
                (best == NULL || !plan_better(search->planner, &best->plan, &slot->plan, 1)))
                best = slot;
        }
    return best;
}

static void reject_all(const struct search *search, struct plan_result *result, uint32_t n,
                       bool fits, const struct slot *taken, const struct plan *better)
{
    for (int kind = 0; kind < PLAN_KIND_COUNT; kind++)
        for (uint32_t i = 0; i < PLAN_MAX_NODES; i++) {
            const struct slot *slot = search->slots[kind][i];
            if (slot != NULL && slot->fits == fits && slot->plan.n_shards == n && slot != taken)
                add_rejection(search, result, slot, better);
        }
}

/* Nodes are added as long as each plan is clearly better than the one that was taken before. */
static enum status rank(const struct search *search, struct plan_result *result,
                        struct error *error)
{
    const struct plan *taken[PLAN_MAX_NODES];
    size_t count = 0;
    for (int kind = 0; kind < PLAN_KIND_COUNT; kind++)
        for (uint32_t i = 0; i < PLAN_MAX_NODES; i++)
            count += search->slots[kind][i] != NULL;
    result->plans = calloc(count, sizeof *result->plans);
    result->rejections = calloc(count, sizeof *result->rejections);
    if (result->plans == NULL || result->rejections == NULL)
        return error_memory(error, count * sizeof *result->plans);
    for (uint32_t n = 1; n <= PLAN_MAX_NODES; n++) {
        const struct slot *best = best_over(search, n);
        const struct plan *last = result->n_plans > 0 ? taken[result->n_plans - 1] : NULL;
        bool worth = best != NULL &&
                     (last == NULL || plan_better(search->planner, &best->plan, last, WORTH));
        if (worth)
            last = taken[result->n_plans++] = &best->plan;
        reject_all(search, result, n, true, worth ? best : NULL, last);
    }
    for (uint32_t n = 1; n <= PLAN_MAX_NODES; n++)
        reject_all(search, result, n, false, NULL, NULL);
    for (size_t i = 0; i < result->n_plans; i++)
        result->plans[i] = *taken[result->n_plans - 1 - i];
    return STATUS_OK;
}

/* ---- Where nothing fits ---------------------------------------------------------------------- */

/* Whether anything fits with so large a context. */
static bool fits_with(const struct plan_input *in, uint32_t context, uint32_t streams)
{
    struct plan_input tried = *in;
    struct error error;
    struct search search = {0};
    struct planner planner;
    bool fits = false;
    tried.work.context = context;
    tried.work.streams = streams;
    tried.work.prompt = MIN(in->work.prompt, context);
    if (planner_open(&planner, &tried, &error) == STATUS_OK) {
        search.planner = &planner;
        try_all(&search);
    }
    for (int kind = 0; kind < PLAN_KIND_COUNT; kind++)
        for (uint32_t i = 0; i < PLAN_MAX_NODES; i++) {
            fits = fits || (search.slots[kind][i] != NULL && search.slots[kind][i]->fits);
            free(search.slots[kind][i]);
        }
    planner_close(&planner);
    return fits;
}

/* What would fit: less context, fewer streams, or more memory. */
static void advise(const struct plan_input *in, double missing, struct plan_result *result)
{
    size_t at = strlen(result->refusal), size = sizeof result->refusal;
    uint32_t low = 0, high = in->work.context / PAGE_TOKENS;
    while (low + 1 < high) { /* low pages fit (0: not known), high do not */
        uint32_t middle = low + (high - low) / 2;
        if (fits_with(in, middle * PAGE_TOKENS, in->work.streams))
            low = middle;
        else
            high = middle;
    }
    char gb[32];
    if (low > 0)
        snprintf(result->refusal + at, size - at, "; a context of %u tokens would fit",
                 low * PAGE_TOKENS);
    else if (in->work.streams > 1 && fits_with(in, in->work.context, 1))
        snprintf(result->refusal + at, size - at, "; one stream instead of %u would fit",
                 in->work.streams);
    else {
        const struct plan_node *largest = &in->nodes[0];
        for (uint32_t i = 1; i < in->n_nodes; i++)
            if (in->nodes[i].memory_bytes > largest->memory_bytes)
                largest = &in->nodes[i];
        double capacity = node_capacity(largest), more = ceil(MAX(missing, 1) / MAX(capacity, 1));
        snprintf(result->refusal + at, size - at, "; it would take %.0f more node%s like %s (%s)",
                 MAX(more, 1), more > 1 ? "s" : "", largest->name,
                 size_text(gb, (double)largest->memory_bytes));
    }
}

static void refuse(const struct planner *planner, struct plan_result *result)
{
    const struct plan_input *in = planner->in;
    char need[32], weights[32], kv[32], has[32];
    double total = 0, needed = (double)(result->weight_bytes + result->kv_bytes);
    for (uint32_t i = 0; i < in->n_nodes; i++)
        total += node_capacity(&in->nodes[i]);
    snprintf(result->refusal, sizeof result->refusal,
             "%s does not fit: it needs %s (weights %s, KV cache %s for %u stream%s of %u tokens) "
             "and a margin of 3 %%, and the %u node%s hold%s %s beside it%s",
             in->model->name, size_text(need, needed),
             size_text(weights, (double)result->weight_bytes),
             size_text(kv, (double)result->kv_bytes), in->work.streams,
             in->work.streams > 1 ? "s" : "", in->work.context, in->n_nodes,
             in->n_nodes > 1 ? "s" : "", in->n_nodes > 1 ? "" : "s", size_text(has, total),
             needed <= total ? ", but no cut gives each node what it can hold" : "");
    advise(in, needed - total, result);
}

/* ---- All of it ------------------------------------------------------------------------------- */

static void fill_sizes(const struct plan_input *in, struct plan_result *result)
{
    double kv = 0;
    for (uint32_t l = 0; l < in->model->n_layers; l++)
        kv += in->model->layers[l].kv_bytes;
    result->weight_bytes = (uint64_t)model_weight_bytes(in->model);
    result->kv_bytes = (uint64_t)(kv * cache_tokens(&in->work, 1));
}

enum status plan_make(struct plan_result **out, const struct plan_input *input, struct error *error)
{
    const char *fault = input_fault(input);
    *out = NULL;
    if (fault != NULL)
        return error_set(error, STATUS_INVALID, "%s", fault);
    struct plan_result *result = calloc(1, sizeof *result);
    if (result == NULL)
        return error_memory(error, sizeof *result);
    struct planner planner;
    struct search search = {.planner = &planner};
    enum status status = planner_open(&planner, input, error);
    if (status == STATUS_OK) {
        fill_sizes(input, result);
        try_all(&search);
        status = search.failed ? error_memory(error, sizeof(struct slot)) : STATUS_OK;
    }
    if (status == STATUS_OK)
        status = rank(&search, result, error);
    if (status == STATUS_OK && result->n_plans == 0)
        refuse(&planner, result);
    for (int kind = 0; kind < PLAN_KIND_COUNT; kind++)
        for (uint32_t i = 0; i < PLAN_MAX_NODES; i++)
            free(search.slots[kind][i]);
    planner_close(&planner);
    if (status != STATUS_OK) {
        plan_free(result);
        result = NULL;
    }
    *out = result;
    return status;
}

void plan_free(struct plan_result *result)
{
    if (result == NULL)
        return;
    free(result->plans);
    free(result->rejections);
    free(result);
}
