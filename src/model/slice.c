/* Which part of a model a rank has. Two tables carry it: how a layer is cut (cut_layer), and along
 * which dimension that cuts each of its tensors (roles). */
#include "model/slice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t model_placement_ranks(const struct model_placement *placement)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < placement->n_stages; s++)
        n += placement->stages[s].n_shards;
    return n;
}

uint32_t model_placement_owner(const struct model_placement *placement)
{
    uint32_t last = placement->n_stages - 1;
    return model_placement_ranks(placement) - placement->stages[last].n_shards;
}

/* ---- Shares ---------------------------------------------------------------------------------- */

/* How n units are dealt out to the shards of a stage by their shares. */
struct dealing {
    const struct model_stage *stage; /* NULL: one shard */
    uint32_t shard, n_shards;
};

static uint64_t share_of(const struct dealing *dealing, uint32_t shard)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < dealing->n_shards; i++)
        sum += dealing->stage->shares[i];
    return sum > 0 ? dealing->stage->shares[shard] : 1;
}

/* Units of this shard, of n_units, at least one each; n_units is not smaller than the number of
 * shards. Each border is the share's rounded, and moved where that leaves a shard without any. */
static struct span deal(const struct dealing *dealing, uint32_t n_units)
{
    uint32_t border[MODEL_MAX_SHARDS + 1] = {0};
    uint64_t sum = 0, total = 0;
    if (dealing->n_shards <= 1)
        return (struct span){0, n_units};
    for (uint32_t i = 0; i < dealing->n_shards; i++)
        total += share_of(dealing, i);
    for (uint32_t i = 1; i <= dealing->n_shards; i++) {
        sum += share_of(dealing, i - 1);
        border[i] = (uint32_t)MAX((n_units * sum + total / 2) / total, (uint64_t)border[i - 1] + 1);
    }
    border[dealing->n_shards] = n_units;
    for (uint32_t i = dealing->n_shards; i > 1; i--)
        border[i - 1] = MIN(border[i - 1], border[i] - 1);
    return (struct span){border[dealing->shard], border[dealing->shard + 1]};
}

/* Whether no shard has more than an eighth above its share when n_units are dealt out. */
static bool deals_evenly(const struct dealing *dealing, uint32_t n_units)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < dealing->n_shards; i++)
        total += dealing->n_shards > 1 ? share_of(dealing, i) : 1;
    for (uint32_t i = 0; i < dealing->n_shards && dealing->n_shards > 1; i++) {
        struct dealing other = {dealing->stage, i, dealing->n_shards};
        if (8 * total * span_size(deal(&other, n_units)) > 9 * share_of(dealing, i) * n_units)
            return false;
    }
    return true;
}

static struct span times(struct span span, uint32_t factor)
{
    return (struct span){span.begin * factor, span.end * factor};
}

/* ---- Cutting a layer ------------------------------------------------------------------------- */

static const struct weights_tensor *layer_tensor(const struct weights *weights, uint32_t layer,
                                                 const char *suffix)
{
    char name[96];
    snprintf(name, sizeof name, "blk.%u.%s", layer, suffix);
    return weights_find(weights, name);
}

#define FINE_COLUMNS 32 /* activations are packed by 32, so that borders there change nothing */

/* Columns of an FFN whose way down is in this format. Whole blocks, where there are enough to deal
 * them out evenly; else a border block is held by two neighbours. False where there are too few. */
static bool cut_columns(const struct dealing *dealing, uint32_t n_ff,
                        const struct weights_tensor *down, struct span *out)
{
    uint32_t n = dealing->n_shards, block = down != NULL ? quant_info(down->format)->block_len : 1;
    uint32_t unit = MAX(block, (uint32_t)FINE_COLUMNS);
    if (n_ff % unit != 0 || n_ff / unit < n || !deals_evenly(dealing, n_ff / unit))
        unit = block > 1 ? FINE_COLUMNS : 1;
    *out = (struct span){0, n_ff};
    if (n == 1 || n_ff == 0)
        return true;
    if (n_ff % unit != 0 || n_ff / unit < n)
        return false;
    *out = times(deal(dealing, n_ff / unit), unit);
    return true;
}

/* By group, or where there are fewer of them than shards, or a share is far from whole groups, by
 * head: then two neighbours may hold the same KV head. */
static bool cut_heads(const struct dealing *dealing, const struct model_layer_desc *layer, bool mla,
                      struct layer_slice *out)
{
    uint32_t group = layer->n_heads / layer->n_kv_heads, n = dealing->n_shards;
    if (layer->n_heads < n)
        return false;
    if (!mla && layer->n_kv_heads >= n && deals_evenly(dealing, layer->n_kv_heads)) {
        out->kv_heads = deal(dealing, layer->n_kv_heads);
        out->heads = times(out->kv_heads, group);
        return true;
    }
    out->heads = deal(dealing, layer->n_heads);
    out->kv_heads = (struct span){out->heads.begin / group, (out->heads.end + group - 1) / group};
    return true;
}

/* Every expert by columns, unless a shard had less than half a block: then whole ones. */
static bool cut_experts(const struct dealing *dealing, const struct model_desc *desc,
                        const struct weights_tensor *down, struct layer_slice *out)
{
    uint32_t n_ff = desc->n_expert_ff, block = quant_info(down->format)->block_len;
    out->experts = (struct span){0, desc->n_experts};
    if (2 * (uint64_t)n_ff >= (uint64_t)block * dealing->n_shards &&
        cut_columns(dealing, n_ff, down, &out->expert_ff))
        return true;
    out->expert_ff = (struct span){0, n_ff};
    if (desc->n_experts < dealing->n_shards)
        return false;
    out->experts = deal(dealing, desc->n_experts);
    return true;
}

static enum status cut_layer(struct slice *slice, const struct dealing *dealing, uint32_t index,
                             const struct weights *weights, struct error *error)
{
    const struct model_desc *desc = slice->desc;
    const struct model_layer_desc *layer = &desc->layers[index];
    struct layer_slice *out = &slice->layers[index];
    const struct weights_tensor *q_norm = layer_tensor(weights, index, "attn_q_norm.weight");
    const struct weights_tensor *k_norm = layer_tensor(weights, index, "attn_k_norm.weight");
    const struct weights_tensor *experts = layer_tensor(weights, index, "ffn_down_exps.weight");
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    out->whole_qk = dealing->n_shards > 1 && ((q_norm != NULL && q_norm->shape[0] > desc->head_k) ||
                                              (k_norm != NULL && k_norm->shape[0] > desc->head_k));
    if (!cut_heads(dealing, layer, mla, out))
        return error_set(error, STATUS_UNSUPPORTED,
                         "layer %u has %u heads, too few for %u machines side by side", index,
                         layer->n_heads, dealing->n_shards);
    bool done =
        cut_columns(dealing, layer->n_ff, layer_tensor(weights, index, "ffn_down.weight"),
                    &out->ff) &&
        cut_columns(dealing, layer->moe ? desc->n_shared_ff : 0,
                    layer_tensor(weights, index, "ffn_down_shexp.weight"), &out->shared_ff) &&
        (experts == NULL || cut_experts(dealing, desc, experts, out));
    if (!done)
        return error_set(error, STATUS_UNSUPPORTED,
                         "the FFN of layer %u has too few blocks for %u machines side by side",
                         index, dealing->n_shards);
    return STATUS_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status check_placement(const struct model_placement *placement,
                                   const struct model_desc *desc, struct error *error)
{
    uint32_t next = 0;
    if (placement->n_stages < 1 || placement->n_stages > MODEL_MAX_STAGES)
        return error_set(error, STATUS_INVALID, "a placement of %u stages; 1 to %d can be used",
                         placement->n_stages, MODEL_MAX_STAGES);
    for (uint32_t s = 0; s < placement->n_stages; s++) {
        const struct model_stage *stage = &placement->stages[s];
        if (stage->n_shards < 1 || stage->n_shards > MODEL_MAX_SHARDS)
            return error_set(error, STATUS_INVALID, "stage %u has %u shards; 1 to %d can be used",
                             s, stage->n_shards, MODEL_MAX_SHARDS);
        if (stage->first_layer != next || stage->end_layer <= next ||
            stage->end_layer > desc->n_layers)
            return error_set(error, STATUS_INVALID,
                             "stage %u has layers %u to %u; it must follow the one before, and the "
                             "model has %u layers",
                             s, stage->first_layer, stage->end_layer, desc->n_layers);
        next = stage->end_layer;
        bool some = false, all = true;
        for (uint32_t i = 0; i < stage->n_shards; i++) {
            some = some || stage->shares[i] > 0;
            all = all && stage->shares[i] > 0;
        }
        if (some && !all)
            return error_set(error, STATUS_INVALID, "a shard of stage %u has a share of 0", s);
    }
    if (next != desc->n_layers)
        return error_set(error, STATUS_INVALID, "the stages end at layer %u of %u", next,
                         desc->n_layers);
    if (!desc->causal && model_placement_ranks(placement) > 1)
        return error_set(error, STATUS_UNSUPPORTED,
                         "%s models read a text at once and run on one machine only",
                         desc->architecture);
    return STATUS_OK;
}

static void find_stage(struct slice *slice, const struct model_placement *placement)
{
    uint32_t rank = 0, s = 0;
    while (rank + placement->stages[s].n_shards <= slice->rank)
        rank += placement->stages[s++].n_shards;
    const struct model_stage *stage = &placement->stages[s];
    slice->stage = s;
    slice->first_rank = rank;
    slice->shard = slice->rank - rank;
    slice->n_shards = stage->n_shards;
    slice->layer_range = (struct span){stage->first_layer, stage->end_layer};
    slice->n_before = s > 0 ? placement->stages[s - 1].n_shards : 0;
    slice->before_rank = rank - slice->n_before;
    slice->n_after = s + 1 < placement->n_stages ? placement->stages[s + 1].n_shards : 0;
    slice->after_rank = rank + stage->n_shards;
}

static struct dealing dealing_of(const struct slice *slice, uint32_t shard)
{
    const struct model_placement *placement = slice->placement;
    return (struct dealing){placement != NULL ? &placement->stages[slice->stage] : NULL, shard,
                            slice->n_shards};
}

struct span slice_vocab(const struct slice *slice, uint32_t shard)
{
    struct dealing dealing = dealing_of(slice, shard);
    return deal(&dealing, slice->desc->n_vocab);
}

enum status slice_open(struct slice *slice, const struct model_desc *desc,
                       const struct model_placement *placement, uint32_t rank,
                       const struct weights *weights, struct error *error)
{
    enum status status = STATUS_OK;
    *slice = (struct slice){.desc = desc,
                            .n_ranks = 1,
                            .n_stages = 1,
                            .n_shards = 1,
                            .layer_range = {0, desc->n_layers},
                            .tied = weights_find(weights, "output.weight") == NULL};
    if (placement != NULL)
        status = check_placement(placement, desc, error);
    if (status != STATUS_OK)
        return status;
    if (placement != NULL) {
        slice->n_ranks = model_placement_ranks(placement);
        slice->n_stages = placement->n_stages;
        slice->owner = model_placement_owner(placement);
        slice->rank = rank;
        if (rank >= slice->n_ranks)
            return error_set(error, STATUS_INVALID, "rank %u of a placement that has %u", rank,
                             slice->n_ranks);
        find_stage(slice, placement);
        slice->placement = malloc(sizeof *placement);
    }
    slice->layers = calloc(desc->n_layers, sizeof *slice->layers);
    if (slice->layers == NULL || (placement != NULL && slice->placement == NULL)) {
        slice_close(slice);
        return error_memory(error, desc->n_layers * sizeof *slice->layers);
    }
    if (placement != NULL)
        *slice->placement = *placement;
    slice->embeds = slice->stage == 0 && slice->shard == 0;
    slice->last = slice->stage + 1 == slice->n_stages;
    struct dealing dealing = dealing_of(slice, slice->shard);
    if (desc->n_vocab < slice->n_shards)
        status = error_set(error, STATUS_UNSUPPORTED, "a vocabulary of %u for %u machines",
                           desc->n_vocab, slice->n_shards);
    else
        slice->vocab = slice_vocab(slice, slice->shard);
    for (uint32_t i = slice->layer_range.begin; i < slice->layer_range.end && status == STATUS_OK;
         i++)
        status = cut_layer(slice, &dealing, i, weights, error);
    if (status != STATUS_OK)
        slice_close(slice);
    return status;
}

void slice_close(struct slice *slice)
{
    free(slice->layers);
    free(slice->placement);
    slice->layers = NULL;
    slice->placement = NULL;
}

/* ---- Cutting tensors ------------------------------------------------------------------------- */

enum role {
    ROLE_FIRST, /* shard 0 alone: what is added after shards are summed */
    ROLE_Q,     /* head_k numbers a head */
    ROLE_K,     /* head_k numbers a KV head */
    ROLE_V,     /* head_v numbers a KV head */
    ROLE_QKV,   /* the three, one after the other */
    ROLE_HEADS, /* one number, or row, or matrix a head */
    ROLE_KV_HEADS,
    ROLE_ATTENTION, /* head_v numbers a head, as columns */
    ROLE_KV_B,      /* MLA: un-rotated keys and values of a head */
    ROLE_FF,
    ROLE_UP, /* as FF, or gate and up, one after the other */
    ROLE_SHARED_FF,
    ROLE_EXPERT_FF, /* or with whole experts the dimension after dim (columns: the last) */
};

/* What of a layer is cut, and along which dimension; all else is whole on every shard. */
static const struct {
    const char *suffix;
    enum role role;
    uint32_t dim, expert_dim;
} roles[] = {
    {"attn_q.weight", ROLE_Q, 1, 0},
    {"attn_q.bias", ROLE_Q, 0, 0},
    {"attn_k.weight", ROLE_K, 1, 0},
    {"attn_k.bias", ROLE_K, 0, 0},
    {"attn_v.weight", ROLE_V, 1, 0},
    {"attn_v.bias", ROLE_V, 0, 0},
    {"attn_qkv.weight", ROLE_QKV, 1, 0},
    {"attn_qkv.bias", ROLE_QKV, 0, 0},
    {"attn_q_norm.weight", ROLE_HEADS, 1, 0},
    {"attn_q_norm.bias", ROLE_HEADS, 1, 0},
    {"attn_k_norm.weight", ROLE_KV_HEADS, 1, 0},
    {"attn_k_norm.bias", ROLE_KV_HEADS, 1, 0},
    {"attn_sinks.weight", ROLE_HEADS, 0, 0},
    {"attn_output.weight", ROLE_ATTENTION, 0, 0},
    {"attn_output.bias", ROLE_FIRST, 0, 0},
    {"attn_q_b.weight", ROLE_Q, 1, 0},
    {"attn_q_b.bias", ROLE_Q, 0, 0},
    {"attn_kv_b.weight", ROLE_KV_B, 1, 0},
    {"attn_k_b.weight", ROLE_HEADS, 2, 0},
    {"attn_v_b.weight", ROLE_HEADS, 2, 0},
    {"ffn_gate.weight", ROLE_FF, 1, 0},
    {"ffn_gate.bias", ROLE_FF, 0, 0},
    {"ffn_up.weight", ROLE_UP, 1, 0},
    {"ffn_up.bias", ROLE_UP, 0, 0},
    {"ffn_down.weight", ROLE_FF, 0, 0},
    {"ffn_down.bias", ROLE_FIRST, 0, 0},
    {"ffn_gate_shexp.weight", ROLE_SHARED_FF, 1, 0},
    {"ffn_gate_shexp.bias", ROLE_SHARED_FF, 0, 0},
    {"ffn_up_shexp.weight", ROLE_SHARED_FF, 1, 0},
    {"ffn_up_shexp.bias", ROLE_SHARED_FF, 0, 0},
    {"ffn_down_shexp.weight", ROLE_SHARED_FF, 0, 0},
    {"ffn_down_shexp.bias", ROLE_FIRST, 0, 0},
    {"ffn_gate_exps.weight", ROLE_EXPERT_FF, 1, 2},
    {"ffn_gate_exps.bias", ROLE_EXPERT_FF, 0, 1},
    {"ffn_up_exps.weight", ROLE_EXPERT_FF, 1, 2},
    {"ffn_up_exps.bias", ROLE_EXPERT_FF, 0, 1},
    {"ffn_down_exps.weight", ROLE_EXPERT_FF, 0, 2},
    {"ffn_down_exps.bias", ROLE_FIRST, 0, 1},
};

static void add_span(struct slice_cut *cut, struct span span, uint32_t factor, uint64_t offset)
{
    cut->part.spans[cut->part.n++] = (struct weights_span){offset + (uint64_t)span.begin * factor,
                                                           offset + (uint64_t)span.end * factor};
}

/* The spans of a role; with n 0 everything. */
static void cut_role(const struct slice *slice, const struct layer_slice *layer,
                     const struct model_layer_desc *facts, enum role role, uint64_t size,
                     struct slice_cut *cut)
{
    const struct model_desc *desc = slice->desc;
    uint32_t k = desc->head_k, v = desc->head_v;
    struct span all_heads = {0, facts->n_heads}, all_kv = {0, facts->n_kv_heads};
    struct span q = layer->whole_qk ? all_heads : layer->heads;
    struct span kv = layer->whole_qk ? all_kv : layer->kv_heads;
    uint64_t n_q = (uint64_t)facts->n_heads * k, n_k = (uint64_t)facts->n_kv_heads * k;
    switch (role) {
    case ROLE_FIRST:
        cut->part.needed = slice->shard == 0;
        break;
    case ROLE_Q:
        add_span(cut, q, k, 0);
        break;
    case ROLE_K:
        add_span(cut, kv, k, 0);
        break;
    case ROLE_V:
        add_span(cut, layer->kv_heads, v, 0);
        break;
    case ROLE_QKV:
        add_span(cut, q, k, 0);
        add_span(cut, kv, k, n_q);
        add_span(cut, layer->kv_heads, v, n_q + n_k);
        break;
    case ROLE_HEADS:
        if (size == facts->n_heads && !(layer->whole_qk && cut->part.dim == 1))
            add_span(cut, layer->heads, 1, 0);
        break;
    case ROLE_KV_HEADS:
        if (size == facts->n_kv_heads && !layer->whole_qk)
            add_span(cut, layer->kv_heads, 1, 0);
        break;
    case ROLE_ATTENTION:
        add_span(cut, layer->heads, v, 0);
        break;
    case ROLE_KV_B:
        add_span(cut, layer->heads, k - desc->rope_dims + v, 0);
        break;
    case ROLE_FF:
    case ROLE_UP:
        add_span(cut, layer->ff, 1, 0);
        if (role == ROLE_UP && size == 2 * (uint64_t)facts->n_ff)
            add_span(cut, layer->ff, 1, facts->n_ff);
        break;
    case ROLE_SHARED_FF:
        add_span(cut, layer->shared_ff, 1, 0);
        break;
    case ROLE_EXPERT_FF:
        add_span(cut, layer->expert_ff, 1, 0);
        break;
    }
}

/* Columns in whole blocks. */
static void round_columns(struct slice_cut *cut, const struct weights_tensor *tensor)
{
    uint64_t block = quant_info(tensor->format)->block_len;
    struct weights_span own = cut->part.spans[0], *held = &cut->part.spans[0];
    held->begin = own.begin / block * block;
    held->end = MIN((own.end + block - 1) / block * block, tensor->shape[0]);
    cut->pad_before = (uint32_t)(own.begin - held->begin);
    cut->pad_after = (uint32_t)(held->end - own.end);
}

static struct slice_cut cut_in_layer(const struct slice *slice, uint32_t index, const char *suffix,
                                     const struct weights_tensor *tensor)
{
    const struct layer_slice *layer = &slice->layers[index];
    struct slice_cut cut = {.part = {.needed = true}};
    bool whole_experts = span_size(layer->experts) < slice->desc->n_experts;
    for (size_t i = 0; i < ARRAY_COUNT(roles); i++) {
        if (strcmp(suffix, roles[i].suffix) != 0)
            continue;
        cut.part.dim = roles[i].dim;
        if (whole_experts && roles[i].expert_dim > 0) {
            cut.part.dim = roles[i].expert_dim;
            add_span(&cut, layer->experts, 1, 0);
            return cut;
        }
        cut_role(slice, layer, &slice->desc->layers[index], roles[i].role,
                 tensor->shape[cut.part.dim], &cut);
        break;
    }
    if (cut.part.n > 0 && cut.part.dim == 0 && cut.part.n == 1)
        round_columns(&cut, tensor);
    return cut;
}

bool slice_ignores(const struct model_desc *desc, const char *name)
{
    unsigned layer;
    if (sscanf(name, "blk.%u.", &layer) == 1 && layer >= desc->n_layers)
        return true;
    return strstr(name, ".nextn.") != NULL || strstr(name, "rotary_emb.inv_freq") != NULL ||
           strstr(name, "attn_rot_embd") != NULL;
}

/* What lies outside of the layers. */
static struct slice_cut cut_end(const struct slice *slice, const char *name)
{
    struct slice_cut cut = {.part = {.needed = true}};
    bool embedding = strcmp(name, "token_embd.weight") == 0;
    if (strcmp(name, "output.weight") == 0 || (embedding && slice->tied && !slice->embeds)) {
        cut.part.needed = slice->last;
        cut.part.dim = 1;
        add_span(&cut, slice->vocab, 1, 0);
    } else if (strcmp(name, "output.bias") == 0) {
        cut.part.needed = slice->last;
        add_span(&cut, slice->vocab, 1, 0);
    } else if (embedding || strncmp(name, "position_embd.", 14) == 0 ||
               strncmp(name, "token_types.", 12) == 0 || strncmp(name, "token_embd", 10) == 0) {
        cut.part.needed = slice->embeds;
    } else if (strncmp(name, "output_norm.", 12) == 0) {
        cut.part.needed = slice->last;
    } else if (strncmp(name, "cls.", 4) == 0) {
        cut.part.needed = slice->rank == slice->owner;
    }
    return cut;
}

struct slice_cut slice_cut(const struct slice *slice, const struct weights_tensor *tensor)
{
    struct slice_cut cut = {0};
    unsigned index = 0;
    int length = 0;
    if (slice_ignores(slice->desc, tensor->name))
        return cut;
    if (sscanf(tensor->name, "blk.%u.%n", &index, &length) != 1 || length == 0)
        return cut_end(slice, tensor->name);
    if (index < slice->layer_range.begin || index >= slice->layer_range.end)
        return cut;
    return cut_in_layer(slice, index, tensor->name + length, tensor);
}

uint64_t slice_weight_bytes(const struct slice *slice, const struct weights *weights)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        struct weights_cut part = slice_cut(slice, tensor).part;
        uint64_t whole = quant_row_bytes(tensor->format, (size_t)tensor->shape[0]), n = 0;
        for (uint32_t d = 1; d < WEIGHTS_MAX_DIMS; d++)
            whole *= tensor->shape[d];
        for (uint32_t s = 0; s < part.n; s++)
            n += part.spans[s].end - part.spans[s].begin;
        if (part.needed)
            bytes += part.n == 0 ? whole : whole / tensor->shape[part.dim] * n;
    }
    return bytes;
}

/* ---- Slice files ----------------------------------------------------------------------------- */

static uint32_t common_divisor(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* What the bytes of the slice depend on, and nothing else of the placement. */
static void describe_slice(const struct slice *slice, char text[MODEL_SLICE_TEXT])
{
    struct dealing dealing = dealing_of(slice, 0);
    uint32_t divisor = 0;
    for (uint32_t s = 0; s < slice->n_shards && slice->n_shards > 1; s++)
        divisor = common_divisor(divisor, (uint32_t)share_of(&dealing, s));
    int n = snprintf(text, MODEL_SLICE_TEXT, "layers %u-%u of %u", slice->layer_range.begin,
                     slice->layer_range.end, slice->desc->n_layers);
    if (slice->n_shards == 1)
        return;
    n += snprintf(text + n, (size_t)(MODEL_SLICE_TEXT - n), ", shard %u of", slice->shard);
    for (uint32_t s = 0; s < slice->n_shards; s++)
        n += snprintf(text + n, (size_t)(MODEL_SLICE_TEXT - n), "%c%u", s == 0 ? ' ' : ':',
                      (unsigned)share_of(&dealing, s) / divisor);
}

enum status model_slice_text(char text[MODEL_SLICE_TEXT], const struct weights *weights,
                             const struct model_placement *placement, uint32_t rank,
                             struct error *error)
{
    struct model_desc *desc;
    struct slice slice;
    enum status status = model_describe(&desc, weights, error);
    if (status != STATUS_OK)
        return status;
    status = slice_open(&slice, desc, placement, rank, weights, error);
    if (status == STATUS_OK) {
        describe_slice(&slice, text);
        slice_close(&slice);
    }
    model_desc_free(desc);
    return status;
}

/* NULL where memory is out. */
static struct weights_cut *cut_all(const struct slice *slice, const struct weights *weights)
{
    size_t n = weights_tensor_count(weights);
    struct weights_cut *cuts = calloc(n + 1, sizeof *cuts);
    for (size_t i = 0; i < n && cuts != NULL; i++)
        cuts[i] = slice_cut(slice, weights_tensor_at(weights, i)).part;
    return cuts;
}

void slice_prefetch(const struct slice *slice, const struct weights *weights)
{
    struct weights_cut *cuts = cut_all(slice, weights);
    if (cuts != NULL)
        weights_prefetch(weights, cuts);
    free(cuts);
}

static enum status open_slice_file(struct weights_slice **out, const struct slice *slice,
                                   const struct weights *const *files, size_t n_files,
                                   struct error *error)
{
    char text[MODEL_SLICE_TEXT];
    struct weights_cut *cuts = cut_all(slice, files[0]);
    if (cuts == NULL)
        return error_memory(error, weights_tensor_count(files[0]) * sizeof *cuts);
    describe_slice(slice, text);
    enum status status = weights_slice_merge(out, files, n_files, text, cuts, error);
    free(cuts);
    return status;
}

enum status model_slice_merge(struct weights_slice **out, const struct weights *const *files,
                              size_t n_files, const struct model_placement *placement,
                              uint32_t rank, struct error *error)
{
    struct model_desc *desc;
    struct slice slice;
    *out = NULL;
    enum status status = model_describe(&desc, files[0], error);
    if (status != STATUS_OK)
        return status;
    status = slice_open(&slice, desc, placement, rank, files[0], error);
    if (status == STATUS_OK) {
        status = open_slice_file(out, &slice, files, n_files, error);
        slice_close(&slice);
    }
    model_desc_free(desc);
    return status;
}

enum status model_slice_open(struct weights_slice **out, const struct weights *weights,
                             const struct model_placement *placement, uint32_t rank,
                             struct error *error)
{
    *out = NULL;
    if (weights_slice_text(weights) != NULL)
        return error_set(error, STATUS_UNSUPPORTED, "%s is a slice of a model already",
                         weights_path(weights));
    return model_slice_merge(out, &weights, 1, placement, rank, error);
}
