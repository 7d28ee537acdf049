/* From the tensors of a file to what the planner counts with. */
#include "cluster/cluster.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(MODEL_MAX_LAYERS <= PLAN_MAX_LAYERS, "a model may have too many layers to plan");

/* Of the rate of products by themselves, where memory could give more: 0.65 to 0.70 were measured,
 * as a file's pages are small. */
#define PRODUCTS_SHARE 0.68

/* By what shards are cut. */
enum part { PART_WHOLE, PART_HEADS, PART_KV_HEADS, PART_FUSED, PART_COLUMNS, PART_EXPERTS };

static const struct {
    const char *name; /* of a weight or bias, behind "blk.N." */
    enum part part;
} parts[] = {
    {"attn_q", PART_HEADS},           {"attn_output", PART_HEADS},
    {"attn_q_b", PART_HEADS},         {"attn_kv_b", PART_HEADS},
    {"attn_k_b", PART_HEADS},         {"attn_v_b", PART_HEADS},
    {"attn_k", PART_KV_HEADS},        {"attn_v", PART_KV_HEADS},
    {"attn_qkv", PART_FUSED},         {"ffn_gate", PART_COLUMNS},
    {"ffn_up", PART_COLUMNS},         {"ffn_down", PART_COLUMNS},
    {"ffn_gate_shexp", PART_COLUMNS}, {"ffn_up_shexp", PART_COLUMNS},
    {"ffn_down_shexp", PART_COLUMNS}, {"ffn_gate_exps", PART_EXPERTS},
    {"ffn_up_exps", PART_EXPERTS},    {"ffn_down_exps", PART_EXPERTS},
};

static enum part part_of(const char *name)
{
    size_t size = strcspn(name, ".");
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        if (strlen(parts[i].name) == size && strncmp(parts[i].name, name, size) == 0)
            return parts[i].part;
    return PART_WHOLE; /* norms, routers, compressing matrices */
}

static struct plan_layer layer_of(const struct model_desc *desc, uint32_t index,
                                  enum quant_format kv_format)
{
    const struct model_layer_desc *facts = &desc->layers[index];
    struct plan_layer layer = {.n_heads = facts->n_heads, .window = facts->window};
    if (desc->mixer == MODEL_MIXER_MLA) {
        layer.kv_bytes = (double)quant_row_bytes(kv_format, desc->mla_kv_rank + desc->rope_dims);
        layer.context_products =
            (double)facts->n_heads * (2 * (double)desc->mla_kv_rank + desc->rope_dims);
    } else {
        layer.n_kv_heads = facts->n_kv_heads;
        layer.kv_bytes =
            (double)facts->n_kv_heads * (double)(quant_row_bytes(kv_format, desc->head_k) +
                                                 quant_row_bytes(kv_format, desc->head_v));
        layer.context_products = (double)facts->n_heads * (desc->head_k + desc->head_v);
    }
    if (!facts->moe || desc->moe_plus_dense)
        layer.n_ff = facts->n_ff;
    else
        layer.n_ff = desc->n_shared_ff;
    if (facts->moe)
        layer.n_expert_ff = desc->n_expert_ff;
    return layer;
}

static void add_tensor(struct plan_layer *layer, const struct model_desc *desc, const char *name,
                       double bytes)
{
    double q = (double)layer->n_heads * desc->head_k;
    double kv = (double)layer->n_kv_heads * (desc->head_k + desc->head_v);
    switch (part_of(name)) {
    case PART_HEADS:
        layer->head_bytes += bytes;
        break;
    case PART_KV_HEADS:
        layer->kv_head_bytes += bytes;
        break;
    case PART_FUSED:
        layer->head_bytes += bytes * q / (q + kv);
        layer->kv_head_bytes += bytes * kv / (q + kv);
        break;
    case PART_COLUMNS:
        layer->ff_bytes += bytes;
        break;
    case PART_EXPERTS:
        layer->expert_bytes += bytes;
        break;
    case PART_WHOLE:
        layer->whole_bytes += bytes;
        break;
    }
}

/* Also where the file is one without weights. */
static double bytes_of(const struct weights_tensor *tensor)
{
    double rows = (double)tensor->shape[1] * (double)tensor->shape[2] * (double)tensor->shape[3];
    return rows * (double)quant_row_bytes(tensor->format, tensor->shape[0]);
}

void cluster_plan_mix(struct cluster_mix *out, const struct weights *weights,
                      const struct model_desc *desc)
{
    bool tied = weights_find(weights, "output.weight") == NULL;
    *out = (struct cluster_mix){{0}};
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        bool embedding = strncmp(tensor->name, "token_embd", strlen("token_embd")) == 0;
        bool experts = strstr(tensor->name, "_exps") != NULL && desc->n_experts > 0;
        double bytes = bytes_of(tensor);
        if (!embedding || tied)
            out->bytes[tensor->format] +=
                experts ? bytes * desc->n_experts_used / desc->n_experts : bytes;
    }
}

static double rate_of_format(const char *format, const struct cluster_rate *rates, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(rates[i].format, format) == 0)
            return rates[i].bytes_per_s * PRODUCTS_SHARE / PLAN_DECODE_SHARE;
    return 0;
}

double cluster_plan_rate(const struct cluster_mix *mix, double read_bandwidth,
                         const struct cluster_rate *rates, uint32_t n)
{
    double bytes = 0, seconds = 0;
    for (size_t f = 0; f < QUANT_FORMAT_COUNT; f++) {
        double rate = rate_of_format(quant_info((enum quant_format)f)->name, rates, n);
        if (rate <= 0)
            rate = rate_of_format("Q4_K", rates, n);
        bytes += mix->bytes[f];
        seconds += mix->bytes[f] / (rate > 0 ? MIN(rate, read_bandwidth) : read_bandwidth);
    }
    return seconds > 0 ? bytes / seconds : read_bandwidth;
}

/* The layer in "blk.N.", what follows it in *rest; -1 where there is none. */
static long layer_index(const char *name, const char **rest)
{
    char *end;
    if (strncmp(name, "blk.", 4) != 0 || !isdigit((unsigned char)name[4]))
        return -1;
    long index = strtol(name + 4, &end, 10);
    *rest = end + (*end == '.');
    return index;
}

enum status cluster_plan_model(struct plan_model *out, struct plan_layer *layers,
                               const struct weights *weights, const struct model_desc *desc,
                               enum quant_format kv_format, struct error *error)
{
    if (!desc->causal || desc->pooling == MODEL_POOLING_RANK)
        return error_set(error, STATUS_UNSUPPORTED,
                         "%s writes no text; only models that do are planned", desc->architecture);
    *out = (struct plan_model){
        .layers = layers,
        .n_layers = desc->n_layers,
        .n_embd = desc->n_embd,
        .n_vocab = desc->n_vocab,
        .n_experts = desc->n_experts,
        .n_experts_used = desc->n_experts_used,
        .block = 1,
        .tied = weights_find(weights, "output.weight") == NULL,
        .parallel = desc->parallel,
        .params = (double)desc->n_params,
        .params_active = (double)desc->n_params_active,
    };
    for (uint32_t l = 0; l < desc->n_layers; l++)
        layers[l] = layer_of(desc, l, kv_format);
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        const char *rest = "";
        double bytes = bytes_of(tensor);
        long layer = layer_index(tensor->name, &rest);
        if (layer >= (long)desc->n_layers)
            continue; /* a head for speculative decoding */
        if (layer >= 0) {
            add_tensor(&layers[layer], desc, rest, bytes);
            if (strncmp(rest, "ffn_down", strlen("ffn_down")) == 0)
                out->block = MAX(out->block, quant_info(tensor->format)->block_len);
        } else if (strcmp(tensor->name, "output.weight") == 0) {
            out->output_bytes += bytes;
        } else {
            out->embedding_bytes += bytes;
            if (out->tied && strcmp(tensor->name, "token_embd.weight") == 0)
                out->output_bytes += bytes;
        }
    }
    if (!out->tied && desc->n_embd > 0) /* of the embedding a row is read */
        out->params_active -= MIN((double)desc->n_embd * desc->n_vocab, out->params_active / 2);
    const char *name = weights_path(weights), *slash = strrchr(name, '/');
    snprintf(out->name, sizeof out->name, "%s", slash != NULL ? slash + 1 : name);
    return STATUS_OK;
}
