/* From the shape of a model, and the size of its file, to what the planner counts with. All weights
 * take the same number of bytes. */
#include "plan/internal.h"

#include <stdio.h>
#include <string.h>

/* Parameters of a layer by how shards hold them, in the fields for bytes. */
static struct plan_layer layer_of(const struct plan_shape *shape, bool moe, double kv_number_bytes)
{
    struct plan_layer layer = {.n_heads = (uint32_t)shape->heads};
    double width = shape->embedding, heads = shape->heads, head = shape->head_size;
    if (shape->kv_rank > 0) {
        double plain = head - shape->rope_dims; /* of keys; values are as large */
        double q_in = shape->q_rank > 0 ? shape->q_rank : width;
        layer.head_bytes =
            q_in * heads * head + shape->kv_rank * heads * 2 * plain + heads * plain * width;
        layer.whole_bytes = width * (shape->q_rank + shape->kv_rank + shape->rope_dims);
        layer.kv_bytes = (shape->kv_rank + shape->rope_dims) * kv_number_bytes;
        layer.context_products = heads * (2 * shape->kv_rank + shape->rope_dims);
    } else {
        layer.n_kv_heads = (uint32_t)shape->kv_heads;
        layer.head_bytes = 2 * width * heads * head;
        layer.kv_head_bytes = 2 * width * shape->kv_heads * head;
        layer.kv_bytes = 2 * shape->kv_heads * head * kv_number_bytes;
        layer.context_products = heads * 2 * head;
    }
    double columns = moe ? shape->shared_ff : shape->ff;
    layer.n_ff = (uint32_t)columns;
    layer.ff_bytes = 3 * width * columns;
    layer.whole_bytes += 2 * width;
    if (moe) {
        layer.n_expert_ff = (uint32_t)shape->expert_ff;
        layer.expert_bytes = 3 * width * shape->expert_ff * shape->experts;
        layer.whole_bytes += width * shape->experts;
    }
    return layer;
}

static double layer_params(const struct plan_layer *layer)
{
    return layer->head_bytes + layer->kv_head_bytes + layer->ff_bytes + layer->expert_bytes +
           layer->whole_bytes;
}

void plan_shape_model(struct plan_model *out, struct plan_layer *layers,
                      const struct plan_shape *shape, double kv_number_bytes)
{
    uint32_t n = (uint32_t)shape->layers;
    double vocabulary = shape->vocabulary * shape->embedding;
    double params = vocabulary * (shape->tied ? 1 : 2), idle = shape->tied ? 0 : vocabulary;
    for (uint32_t l = 0; l < n; l++) {
        layers[l] =
            layer_of(shape, shape->experts > 0 && l >= shape->dense_layers, kv_number_bytes);
        params += layer_params(&layers[l]);
        if (shape->experts > 0)
            idle += layers[l].expert_bytes * (1 - shape->experts_used / shape->experts);
    }
    double bytes = shape->size_gb * 1e9 / params; /* of a parameter */
    for (uint32_t l = 0; l < n; l++) {
        layers[l].head_bytes *= bytes;
        layers[l].kv_head_bytes *= bytes;
        layers[l].ff_bytes *= bytes;
        layers[l].expert_bytes *= bytes;
        layers[l].whole_bytes *= bytes;
    }
    *out = (struct plan_model){
        .layers = layers,
        .n_layers = n,
        .n_embd = (uint32_t)shape->embedding,
        .n_vocab = (uint32_t)shape->vocabulary,
        .n_experts = (uint32_t)shape->experts,
        .n_experts_used = (uint32_t)shape->experts_used,
        .block = (uint32_t)(shape->block > 0 ? shape->block : 256),
        .embedding_bytes = vocabulary * bytes,
        .output_bytes = vocabulary * bytes,
        .tied = shape->tied,
        .params = params,
        .params_active = params - idle,
    };
    snprintf(out->name, sizeof out->name, "%s", shape->name);
}
