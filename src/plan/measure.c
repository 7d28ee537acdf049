/* What a placement needs and how fast it is: the formulas. */
#include "plan/internal.h"

#include <math.h>
#include <string.h>

const struct plan_link *link_between(const struct planner *planner, uint32_t a, uint32_t b)
{
    return &planner->in->links[(size_t)a * planner->in->n_nodes + b];
}

double node_capacity(const struct plan_node *node)
{
    double memory = (double)node->memory_bytes;
    return MAX(MIN(memory - MARGIN_BYTES, memory / (1 + MARGIN_SHARE)), 0);
}

double cache_tokens(const struct plan_work *work, uint32_t replicas)
{
    double pages = ceil((double)work->context / PAGE_TOKENS);
    return pages * PAGE_TOKENS * ((work->streams + replicas - 1) / replicas);
}

/* ---- What a shard holds ---------------------------------------------------------------------- */

uint32_t plan_cut(uint32_t units, const struct plan_shard *shards, uint32_t n, uint32_t i)
{
    struct cuts cuts = cuts_of(shards, n);
    return cut_at(&cuts, units, i);
}

struct cuts cuts_of(const struct plan_shard *shards, uint32_t n)
{
    struct cuts cuts = {.n = n};
    for (uint32_t i = 0; i < n; i++)
        cuts.edges[i + 1] = cuts.edges[i] + shards[i].share;
    return cuts;
}

uint32_t cut_at(const struct cuts *cuts, uint32_t units, uint32_t i)
{
    uint64_t total = cuts->edges[cuts->n];
    return total == 0 ? 0 : (uint32_t)((2 * units * cuts->edges[i] + total) / (2 * total));
}

/* Of units; at least one of them, which neighbours may both hold, where there are too few. */
static double fraction(uint32_t units, const struct cuts *cuts, uint32_t i)
{
    if (cuts->n == 1 || units == 0)
        return 1;
    uint32_t got = cut_at(cuts, units, i + 1) - cut_at(cuts, units, i);
    return (double)MAX(got, 1u) / units;
}

static uint32_t blocks_of(const struct plan_model *model, uint32_t columns)
{
    uint32_t block = MAX(model->block, 1u);
    return (columns + block - 1) / block;
}

/* KV heads that the heads of a shard read, of all. */
static double kv_fraction(const struct plan_layer *layer, const struct cuts *cuts, uint32_t i)
{
    if (layer->n_kv_heads == 0 || cuts->n == 1)
        return 1;
    if (cuts->n <= layer->n_kv_heads)
        return fraction(layer->n_kv_heads, cuts, i);
    double group = (double)layer->n_heads / layer->n_kv_heads;
    double begin = cut_at(cuts, layer->n_heads, i), end = cut_at(cuts, layer->n_heads, i + 1);
    return MIN((ceil(end / group) - floor(begin / group)) / layer->n_kv_heads, 1);
}

/* Of the last of depth tokens. */
static double tokens_seen(const struct plan_layer *layer, double depth)
{
    return layer->window != 0 ? MIN(depth, layer->window) : depth;
}

/* Heads are cut between those that share their keys and values as long as there are enough. */
static uint32_t head_units(const struct plan_layer *layer, uint32_t n)
{
    return layer->n_kv_heads != 0 && n <= layer->n_kv_heads ? layer->n_kv_heads : layer->n_heads;
}

struct part part_of(const struct planner *planner, uint32_t class, const struct cuts *cuts,
                    uint32_t i)
{
    const struct plan_layer *layer = &planner->classes[class];
    const struct plan_model *model = planner->in->model;
    double heads = fraction(head_units(layer, cuts->n), cuts, i);
    double kv = kv_fraction(layer, cuts, i);
    double ff = fraction(blocks_of(model, layer->n_ff), cuts, i);
    uint32_t columns = blocks_of(model, layer->n_expert_ff);
    double experts = fraction(columns >= cuts->n ? columns : model->n_experts, cuts, i);
    struct part part = {.n_layers = 1};
    part.bytes = layer->head_bytes * heads + layer->kv_head_bytes * kv + layer->ff_bytes * ff +
                 layer->whole_bytes;
    part.expert_bytes = layer->expert_bytes * experts;
    part.kv_held = layer->kv_bytes * kv;
    part.kv_read = part.kv_held * tokens_seen(layer, planner->depth);
    part.flops = part.bytes * planner->flops_per_byte;
    if (model->n_experts > 0)
        part.expert_flops =
            part.expert_bytes * planner->flops_per_byte * model->n_experts_used / model->n_experts;
    part.context_flops = 2 * layer->context_products * heads;
    return part;
}

static void part_add(struct part *sum, const struct part *part, double times)
{
    sum->bytes += part->bytes * times;
    sum->expert_bytes += part->expert_bytes * times;
    sum->kv_held += part->kv_held * times;
    sum->kv_read += part->kv_read * times;
    sum->flops += part->flops * times;
    sum->expert_flops += part->expert_flops * times;
    sum->context_flops += part->context_flops * times;
    sum->n_layers += part->n_layers * times;
}

/* Of layers [first, end), and of the vocabulary projection where they end the model. */
static struct part part_sum(const struct planner *planner, uint32_t first, uint32_t end,
                            const struct cuts *cuts, uint32_t i)
{
    const struct plan_model *model = planner->in->model;
    const uint32_t *before = &planner->counts[(size_t)first * planner->n_classes],
                   *behind = &planner->counts[(size_t)end * planner->n_classes];
    struct part sum = {0};
    for (uint32_t c = 0; c < planner->n_classes; c++)
        if (behind[c] > before[c]) {
            struct part part = part_of(planner, c, cuts, i);
            part_add(&sum, &part, behind[c] - before[c]);
        }
    if (end == model->n_layers) {
        double output = model->output_bytes * fraction(model->n_vocab, cuts, i);
        sum.bytes += output;
        sum.output_flops = output * planner->flops_per_byte;
    }
    return sum;
}

/* ---- How long it takes ----------------------------------------------------------------------- */

/* Where experts have too few columns, shards hold whole ones, and who holds more of those that a
 * token chose is waited for: about the expected maximum of n draws. */
static double expert_imbalance(const struct planner *planner, uint32_t n)
{
    const struct plan_model *model = planner->in->model;
    if (n == 1 || blocks_of(model, planner->n_expert_ff) >= n)
        return 1;
    return MIN(1 + sqrt(2 * log(n) * n / MAX(model->n_experts_used, 1u)), n);
}

/* The share of the experts that n tokens choose together. */
static double touched(const struct plan_model *model, double b)
{
    if (model->n_experts == 0 || model->n_experts_used >= model->n_experts)
        return 1;
    double used = (double)model->n_experts_used / model->n_experts;
    return b <= 1 ? used * b : 1 - pow(1 - used, b);
}

struct batch batch_of(const struct planner *planner, double n)
{
    return (struct batch){n, touched(planner->in->model, n)};
}

double part_time(const struct planner *planner, const struct part *part, uint32_t node,
                 struct batch batch, uint32_t n_shards)
{
    const struct plan_node *facts = &planner->in->nodes[node];
    double bytes = part->bytes + part->kv_read * batch.n;
    double flops = (part->flops + part->expert_flops + part->output_flops) * batch.n;
    if (part->expert_bytes > 0)
        bytes += part->expert_bytes * MIN(batch.touched * expert_imbalance(planner, n_shards), 1);
    double reading = bytes / (facts->read_rate * PLAN_DECODE_SHARE);
    double computing = facts->flops > 0 ? flops / (facts->flops * PRODUCT_SHARE) : 0;
    return MAX(reading, computing) + part->n_layers * facts->layer_overhead_s;
}

double node_step(const struct planner *planner, uint32_t node, double streams)
{
    struct plan_shard shard = {.node = node, .share = 1};
    struct cuts cuts = cuts_of(&shard, 1);
    struct part part = part_sum(planner, 0, planner->in->model->n_layers, &cuts, 0);
    return part_time(planner, &part, node, batch_of(planner, streams), 1);
}

/* Seconds for n tokens of a prompt, with `seen` tokens before each on average. */
static double prefill_time(const struct planner *planner, const struct part *part, uint32_t node,
                           double n, double seen)
{
    const struct plan_node *facts = &planner->in->nodes[node];
    double flops = part->flops + part->expert_flops / EXPERT_SHARE + part->context_flops * seen;
    double bytes = part->bytes + part->expert_bytes * touched(planner->in->model, n);
    double computing = facts->flops > 0 ? n * flops / (facts->flops * PRODUCT_SHARE) : 0;
    return MAX(bytes / (facts->read_rate * PLAN_DECODE_SHARE), computing) +
           part->n_layers * facts->layer_overhead_s;
}

/* ---- Between nodes --------------------------------------------------------------------------- */

static bool wire_between(const struct planner *planner, const struct plan_shard *shards, uint32_t n,
                         struct wire *wire, struct fault *fault)
{
    *wire = (struct wire){.bandwidth = INFINITY};
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = 0; b < n; b++) {
            const struct plan_link *link;
            if (a == b)
                continue;
            link = link_between(planner, shards[a].node, shards[b].node);
            if (link->bandwidth <= 0) {
                *fault = (struct fault){
                    .kind = FAULT_LINK, .node = shards[a].node, .need = shards[b].node};
                return false;
            }
            wire->latency_s = MAX(wire->latency_s, link->latency_s);
            wire->bandwidth = MIN(wire->bandwidth, link->bandwidth);
            wire->collective_s = MAX(wire->collective_s, link->collective_s);
        }
    return true;
}

/* An all-reduce over n nodes: each sends all to all at once, or its n-th part to each and back. */
static double collective_time(const struct wire *wire, uint32_t n, double bytes)
{
    double once = wire->collective_s > 0 ? wire->collective_s : wire->latency_s + MESSAGE_S;
    return MIN(once + (n - 1) * bytes / wire->bandwidth,
               2 * once + 2.0 * (n - 1) / n * bytes / wire->bandwidth);
}

/* ---- Stages ---------------------------------------------------------------------------------- */

struct stage {
    const struct plan_shard *shards;
    uint32_t n;
    struct cuts cuts;
    struct part parts[PLAN_MAX_SHARDS];
    struct wire wire;
    double n_collectives; /* of a step */
    double logit_bytes;   /* of a token, that other shards send to the owner */
    struct plan_link to_next;
};

static double stage_compute(const struct planner *planner, const struct stage *stage,
                            struct batch b)
{
    double longest = 0;
    for (uint32_t i = 0; i < stage->n; i++)
        longest =
            MAX(longest, part_time(planner, &stage->parts[i], stage->shards[i].node, b, stage->n));
    return longest;
}

static double stage_collectives(const struct planner *planner, const struct stage *stage, double b)
{
    if (stage->n == 1)
        return 0;
    double bytes = (double)planner->in->model->n_embd * NUMBER_BYTES * b;
    double gather = 0;
    if (stage->logit_bytes > 0)
        gather = stage->wire.latency_s + MESSAGE_S + stage->logit_bytes * b / stage->wire.bandwidth;
    return stage->n_collectives * collective_time(&stage->wire, stage->n, bytes) + gather;
}

/* Hidden states of b tokens to the next stage, and there to all shards. */
static double stage_hop(const struct planner *planner, const struct stage *stage,
                        const struct stage *next, double b)
{
    double bytes = (double)planner->in->model->n_embd * NUMBER_BYTES * b;
    double time = stage->to_next.latency_s + MESSAGE_S + bytes / stage->to_next.bandwidth;
    if (next->n > 1)
        time += next->wire.latency_s + MESSAGE_S + (next->n - 1) * bytes / next->wire.bandwidth;
    return time;
}

/* Memory of the stage's shards; false with the fault where one has too little. */
static bool stage_memory(const struct planner *planner, const struct plan *plan, uint32_t index,
                         struct stage *stage, struct plan_shard *shards, struct fault *fault)
{
    const struct plan_input *in = planner->in;
    const struct plan_stage *layout = &plan->stages[index];
    double tokens = plan->kind == PLAN_REPLICAS ? cache_tokens(&in->work, plan->n_stages)
                                                : cache_tokens(&in->work, 1);
    for (uint32_t i = 0; i < stage->n; i++) {
        const struct plan_node *node = &in->nodes[shards[i].node];
        double weights = stage->parts[i].bytes + stage->parts[i].expert_bytes;
        double kv = stage->parts[i].kv_held * tokens;
        if (layout->first_layer == 0 && i == 0) {
            weights += in->model->embedding_bytes;
            if (layout->end_layer == in->model->n_layers && in->model->tied)
                weights -= in->model->output_bytes * fraction(in->model->n_vocab, &stage->cuts, 0);
        }
        double need = weights + kv + MAX(MARGIN_BYTES, MARGIN_SHARE * (weights + kv));
        shards[i].weight_bytes = (uint64_t)ceil(weights);
        shards[i].kv_bytes = (uint64_t)ceil(kv);
        shards[i].need_bytes = (uint64_t)ceil(need);
        enum fault_kind kind = FAULT_NONE;
        double has = (double)node->memory_bytes;
        if (shards[i].need_bytes > node->memory_bytes)
            kind = FAULT_MEMORY;
        else if (node->disk_bytes > 0 && shards[i].weight_bytes > node->disk_bytes) {
            kind = FAULT_DISK;
            need = weights;
            has = (double)node->disk_bytes;
        }
        if (kind != FAULT_NONE) {
            *fault = (struct fault){kind, shards[i].node, need, has};
            return false;
        }
    }
    return true;
}

static uint32_t least_heads(const struct plan_model *model)
{
    uint32_t least = UINT32_MAX;
    for (uint32_t l = 0; l < model->n_layers; l++)
        least = MIN(least, model->layers[l].n_heads);
    return least;
}

/* Whether each shard has a head of every layer. */
static bool all_have_heads(const struct planner *planner, const struct cuts *cuts)
{
    for (uint32_t c = 0; c < planner->n_classes && cuts->n > 1; c++) {
        uint32_t units = head_units(&planner->classes[c], cuts->n);
        for (uint32_t i = 0; i < cuts->n; i++)
            if (cut_at(cuts, units, i + 1) == cut_at(cuts, units, i))
                return false;
    }
    return true;
}

static bool stage_open(const struct planner *planner, struct plan *plan, uint32_t index,
                       struct stage *stage, struct fault *fault)
{
    const struct plan_model *model = planner->in->model;
    const struct plan_stage *layout = &plan->stages[index];
    struct plan_shard *shards = &plan->shards[layout->first_shard];
    stage->shards = shards;
    stage->n = layout->n_shards;
    stage->cuts = cuts_of(shards, stage->n);
    stage->n_collectives = 0;
    stage->logit_bytes = 0;
    if (stage->n > least_heads(model) || !all_have_heads(planner, &stage->cuts)) {
        *fault = (struct fault){FAULT_HEADS, 0, stage->n, least_heads(model)};
        return false;
    }
    if (!wire_between(planner, shards, stage->n, &stage->wire, fault))
        return false;
    for (uint32_t i = 0; i < stage->n; i++)
        stage->parts[i] =
            part_sum(planner, layout->first_layer, layout->end_layer, &stage->cuts, i);
    if (stage->n > 1) {
        stage->n_collectives =
            (model->parallel ? 1.0 : 2.0) * (layout->end_layer - layout->first_layer);
        if (layout->end_layer == model->n_layers)
            stage->logit_bytes = (double)NUMBER_BYTES * model->n_vocab *
                                 (1 - fraction(model->n_vocab, &stage->cuts, 0));
    }
    if (index + 1 < plan->n_stages && plan->kind != PLAN_REPLICAS) {
        uint32_t next = plan->shards[plan->stages[index + 1].first_shard].node;
        stage->to_next = *link_between(planner, shards[0].node, next);
        if (stage->to_next.bandwidth <= 0) {
            *fault = (struct fault){FAULT_LINK, shards[0].node, next, 0};
            return false;
        }
    }
    return stage_memory(planner, plan, index, stage, shards, fault);
}

/* ---- Placements ------------------------------------------------------------------------------ */

struct pass {
    double compute, collectives, hops, longest; /* longest: of one stage */
};

/* b tokens of as many streams, once through all stages and back to the first. */
static struct pass pass_of(const struct planner *planner, const struct plan *plan,
                           const struct stage *stages, double b)
{
    struct pass pass = {0};
    struct batch batch = batch_of(planner, b);
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        double compute = stage_compute(planner, &stages[s], batch);
        double collectives = stage_collectives(planner, &stages[s], b);
        pass.compute += compute;
        pass.collectives += collectives;
        pass.longest = MAX(pass.longest, compute + collectives);
        if (s + 1 < plan->n_stages)
            pass.hops += stage_hop(planner, &stages[s], &stages[s + 1], b);
    }
    /* The owner tells the others what is next: the first shard of the first stage, or where it is
     * that one itself, the other shards. */
    if (plan->n_stages > 1) {
        uint32_t owner = stages[plan->n_stages - 1].shards[0].node,
                 first = stages[0].shards[0].node;
        pass.hops += link_between(planner, owner, first)->latency_s + MESSAGE_S;
    } else if (plan->n_shards > 1)
        pass.hops += stages[0].wire.latency_s + MESSAGE_S;
    return pass;
}

static double pass_time(const struct pass *pass)
{
    return pass->compute + pass->collectives + pass->hops;
}

/* The best number of micro-batches for all streams, and the rate with it. */
static void measure_batches(const struct planner *planner, struct plan *plan,
                            const struct stage *stages)
{
    double streams = planner->in->work.streams;
    uint32_t n = plan->n_stages;
    const uint32_t tries[] = {1, 2, 3, 4, 6, 8, n / 2, n - 1, n, n + 1, 2 * n};
    plan->all_rate = 0;
    for (size_t i = 0; i < ARRAY_COUNT(tries); i++) {
        double m = tries[i];
        if (m < 1 || m > streams || (n == 1 && m > 1))
            continue;
        struct pass pass = pass_of(planner, plan, stages, streams / m);
        double rate = MIN(streams / pass_time(&pass), streams / m / pass.longest);
        if (rate > plan->all_rate) {
            plan->all_rate = rate;
            plan->n_batches = tries[i];
        }
    }
}

/* Batches of a prompt follow each other through the stages. */
static double prompt_time(const struct planner *planner, const struct plan *plan,
                          const struct stage *stages)
{
    double tokens = planner->in->work.prompt, n = MIN(tokens, PREFILL_TOKENS);
    double batches = ceil(tokens / n), sum = 0, longest = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct stage *stage = &stages[s];
        double time = 0;
        for (uint32_t i = 0; i < stage->n; i++)
            time = MAX(time, prefill_time(planner, &stage->parts[i], stage->shards[i].node, n,
                                          tokens / 2));
        if (stage->n > 1)
            time += stage->n_collectives *
                    collective_time(&stage->wire, stage->n,
                                    n * planner->in->model->n_embd * NUMBER_BYTES);
        longest = MAX(longest, time);
        if (s + 1 < plan->n_stages)
            time += stage_hop(planner, stage, &stages[s + 1], n);
        sum += time;
    }
    return sum + (batches - 1) * longest;
}

static bool knows_flops(const struct planner *planner, const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->n_shards; i++)
        if (planner->in->nodes[plan->shards[i].node].flops <= 0)
            return false;
    return true;
}

bool measure_plan(const struct planner *planner, struct plan *plan, struct fault *fault)
{
    struct stage stages[PLAN_MAX_NODES];
    if (plan->n_stages == 0)
        return false;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        if (!stage_open(planner, plan, s, &stages[s], fault))
            return false;
    if (plan->n_stages > 1) {
        uint32_t owner = stages[plan->n_stages - 1].shards[0].node,
                 first = stages[0].shards[0].node;
        if (link_between(planner, owner, first)->bandwidth <= 0) {
            *fault = (struct fault){FAULT_LINK, owner, first, 0};
            return false;
        }
    }
    struct pass one = pass_of(planner, plan, stages, 1);
    plan->step_s = pass_time(&one);
    plan->compute_s = one.compute;
    plan->hop_s = one.hops;
    plan->collective_s = one.collectives;
    plan->n_collectives = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        plan->n_collectives += (uint32_t)stages[s].n_collectives;
    plan->stream_rate = 1 / plan->step_s;
    measure_batches(planner, plan, stages);
    plan->prefill_rate = plan->first_token_s = 0;
    if (knows_flops(planner, plan)) {
        double time = prompt_time(planner, plan, stages);
        plan->prefill_rate = planner->in->work.prompt / time;
        plan->first_token_s = time + plan->step_s;
    }
    return true;
}

bool measure_replicas(const struct planner *planner, struct plan *plan, struct fault *fault)
{
    /* A stream stays on one of them. The streams are dealt out evenly, as memory is, and the first
     * is the fastest. */
    uint32_t streams = planner->in->work.streams, n = plan->n_stages;
    struct stage stage, first = {0};
    plan->all_rate = 0;
    for (uint32_t r = 0; r < n; r++) {
        if (!stage_open(planner, plan, r, &stage, fault))
            return false;
        double share = streams / n + (r < streams % n ? 1 : 0);
        plan->all_rate += share / stage_compute(planner, &stage, batch_of(planner, share));
        if (r == 0)
            first = stage;
    }
    plan->step_s = plan->compute_s = stage_compute(planner, &first, batch_of(planner, 1));
    plan->hop_s = plan->collective_s = 0;
    plan->n_collectives = 0;
    plan->n_batches = 1;
    plan->stream_rate = 1 / plan->step_s;
    plan->prefill_rate = plan->first_token_s = 0;
    if (knows_flops(planner, plan)) {
        struct plan one = {.n_stages = 1, .n_shards = 1};
        double time = prompt_time(planner, &one, &first);
        plan->prefill_rate = planner->in->work.prompt / time;
        plan->first_token_s = time + plan->step_s;
    }
    return true;
}
