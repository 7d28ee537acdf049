/* From named tensors to weights on a backend. Shapes are checked against the description, and a
 * tensor that nothing would use is refused rather than ignored, because the numbers would be
 * wrong. */
#include "model/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct model *model;
    const struct model_desc *desc;
    bool *used; /* per tensor */
    struct error *error;
    enum status status;
};

enum status model_keep(struct model *model, struct device_buffer *buffer, size_t size_bytes,
                       struct error *error)
{
    if (buffer == NULL)
        return error_memory(error, size_bytes);
    struct device_buffer **grown =
        realloc(model->buffers, (model->n_buffers + 1) * sizeof *model->buffers);
    if (grown == NULL) {
        model->backend->free(model->backend, buffer);
        return error_memory(error, sizeof *grown);
    }
    model->buffers = grown;
    model->buffers[model->n_buffers++] = buffer;
    return STATUS_OK;
}

static const struct weights_tensor *find(struct loader *loader, const char *name)
{
    const struct weights_tensor *tensor = weights_find(loader->model->weights, name);
    if (tensor != NULL)
        loader->used[tensor - weights_tensor_at(loader->model->weights, 0)] = true;
    return tensor;
}

static void fail(struct loader *loader, enum status code, const char *name, const char *what)
{
    if (loader->status == STATUS_OK)
        loader->status = error_set(loader->error, code, "tensor %s %s", name, what);
}

/* ---- Vectors ---- */

static struct device_ref map(struct loader *loader, const void *data, size_t size)
{
    struct backend *backend = loader->model->backend;
    struct device_buffer *buffer = backend->map(backend, data, size);
    if (loader->status == STATUS_OK)
        loader->status = model_keep(loader->model, buffer, size, loader->error);
    return (struct device_ref){loader->status == STATUS_OK ? buffer : NULL, 0};
}

/* A copy on the device. */
static struct device_ref place(struct loader *loader, const float *data, size_t count)
{
    struct backend *backend = loader->model->backend;
    struct device_buffer *buffer = backend->alloc(backend, count * sizeof *data);
    if (loader->status == STATUS_OK)
        loader->status = model_keep(loader->model, buffer, count * sizeof *data, loader->error);
    if (loader->status != STATUS_OK)
        return (struct device_ref){0};
    struct device_ref ref = {buffer, 0};
    backend->upload(backend, ref, data, count * sizeof *data);
    return ref;
}

static struct vector vector_of(struct loader *loader, const struct weights_tensor *tensor)
{
    struct vector vector = {.n_cols = (uint32_t)tensor->shape[0],
                            .n_rows = (uint32_t)tensor->shape[1]};
    size_t count = (size_t)tensor->shape[0] * tensor->shape[1];
    if (tensor->format == QUANT_F32) {
        vector.data = map(loader, tensor->data, tensor->size_bytes);
        return vector;
    }
    float *decoded = malloc(count * sizeof *decoded);
    if (decoded == NULL) {
        loader->status = error_memory(loader->error, count * sizeof *decoded);
        return vector;
    }
    for (uint32_t r = 0; r < vector.n_rows; r++)
        quant_decode(tensor->format,
                     (const char *)tensor->data +
                         r * quant_row_bytes(tensor->format, vector.n_cols),
                     decoded + (size_t)r * vector.n_cols, vector.n_cols);
    vector.data = place(loader, decoded, count);
    free(decoded);
    return vector;
}

/* The vector of that name, of n_cols numbers (0: any), in at most max_rows rows; empty where the
 * model has none. */
static struct vector find_vector(struct loader *loader, const char *name, uint64_t n_cols,
                                 uint64_t max_rows)
{
    const struct weights_tensor *tensor = loader->status == STATUS_OK ? find(loader, name) : NULL;
    if (tensor == NULL)
        return (struct vector){0};
    if ((n_cols > 0 && tensor->shape[0] != n_cols) || tensor->shape[1] > max_rows ||
        tensor->shape[2] != 1 || tensor->shape[3] != 1) {
        char what[160], of[40] = "";
        if (n_cols > 0)
            snprintf(of, sizeof of, " of %llu numbers", (unsigned long long)n_cols);
        snprintf(what, sizeof what, "has shape [%llu, %llu]; rows%s were expected, at most %llu",
                 (unsigned long long)tensor->shape[0], (unsigned long long)tensor->shape[1], of,
                 (unsigned long long)max_rows);
        fail(loader, STATUS_INVALID, name, what);
        return (struct vector){0};
    }
    return vector_of(loader, tensor);
}

static struct norm_weights find_norm(struct loader *loader, const char *prefix, uint64_t n_cols,
                                     uint64_t max_rows)
{
    char name[96];
    struct norm_weights norm;
    snprintf(name, sizeof name, "%s.weight", prefix);
    norm.weight = find_vector(loader, name, n_cols, max_rows);
    snprintf(name, sizeof name, "%s.bias", prefix);
    norm.bias = find_vector(loader, name, n_cols, max_rows);
    return norm;
}

/* ---- Matrices ---- */

struct shape {
    uint64_t n_cols, n_rows, n_matrices;
};

static struct device_matrix matrix_of(struct loader *loader, const struct weights_tensor *tensor)
{
    struct device_matrix matrix = {
        .data = map(loader, tensor->data, tensor->size_bytes),
        .format = tensor->format,
        .row_bytes = quant_row_bytes(tensor->format, tensor->shape[0]),
        .n_cols = (uint32_t)tensor->shape[0],
        .n_rows = (uint32_t)tensor->shape[1],
        .n_matrices = (uint32_t)tensor->shape[2],
    };
    matrix.matrix_bytes = matrix.row_bytes * matrix.n_rows;
    return matrix;
}

static void check_shape(struct loader *loader, const struct weights_tensor *tensor,
                        struct shape shape)
{
    if (tensor->shape[0] == shape.n_cols && tensor->shape[1] == shape.n_rows &&
        tensor->shape[2] == shape.n_matrices && tensor->shape[3] == 1)
        return;
    char what[160];
    snprintf(what, sizeof what,
             "has shape [%llu, %llu, %llu]; the metadata ask for [%llu, %llu, %llu]",
             (unsigned long long)tensor->shape[0], (unsigned long long)tensor->shape[1],
             (unsigned long long)tensor->shape[2], (unsigned long long)shape.n_cols,
             (unsigned long long)shape.n_rows, (unsigned long long)shape.n_matrices);
    fail(loader, STATUS_INVALID, tensor->name, what);
}

/* PREFIX.weight of that shape with PREFIX.bias where there is one; empty where there is none. */
static struct weight find_weight(struct loader *loader, const char *prefix, struct shape shape)
{
    char name[96];
    struct weight weight = {0};
    snprintf(name, sizeof name, "%s.weight", prefix);
    const struct weights_tensor *tensor = loader->status == STATUS_OK ? find(loader, name) : NULL;
    if (tensor == NULL)
        return weight;
    check_shape(loader, tensor, shape);
    if (loader->status != STATUS_OK)
        return weight;
    weight.name = tensor->name;
    weight.matrix = matrix_of(loader, tensor);
    snprintf(name, sizeof name, "%s.bias", prefix);
    weight.bias = find_vector(loader, name, shape.n_rows, shape.n_matrices).data;
    return weight;
}

static void require(struct loader *loader, const struct weight *weight, const char *name)
{
    if (!weight_present(weight))
        fail(loader, STATUS_INVALID, name, "is missing; convert or fetch the model again");
}

/* Rows [begin, begin + n_rows) of a fused tensor. */
static struct weight rows_of(const struct weight *fused, size_t begin, size_t n_rows)
{
    struct weight part = *fused;
    part.name = begin == 0 ? fused->name : NULL;
    part.matrix.data.offset += begin * fused->matrix.row_bytes;
    part.matrix.n_rows = (uint32_t)n_rows;
    part.matrix.matrix_bytes = n_rows * fused->matrix.row_bytes;
    if (part.bias.buffer != NULL)
        part.bias.offset += begin * sizeof(float);
    return part;
}

/* ---- A layer ---- */

struct layer_loader {
    struct loader *loader;
    uint32_t index;
    struct layer *layer;
    const struct model_layer_desc *desc;
    char name[96];
};

static const char *in_layer(struct layer_loader *at, const char *suffix)
{
    snprintf(at->name, sizeof at->name, "blk.%u.%s", at->index, suffix);
    return at->name;
}

static struct weight layer_weight(struct layer_loader *at, const char *suffix, uint64_t n_cols,
                                  uint64_t n_rows, uint64_t n_matrices)
{
    return find_weight(at->loader, in_layer(at, suffix),
                       (struct shape){n_cols, n_rows, n_matrices});
}

static struct weight layer_required(struct layer_loader *at, const char *suffix, uint64_t n_cols,
                                    uint64_t n_rows, uint64_t n_matrices)
{
    struct weight weight = layer_weight(at, suffix, n_cols, n_rows, n_matrices);
    char name[112];
    snprintf(name, sizeof name, "%s.weight", in_layer(at, suffix));
    require(at->loader, &weight, name);
    return weight;
}

static struct norm_weights layer_norm(struct layer_loader *at, const char *suffix, uint64_t n_cols,
                                      uint64_t max_rows)
{
    return find_norm(at->loader, in_layer(at, suffix), n_cols, max_rows);
}

/* Names differ: one model's norm after attention is another's norm before the FFN. */
static void load_norms(struct layer_loader *at)
{
    struct layer *layer = at->layer;
    uint64_t n = at->loader->desc->n_embd;
    bool parallel = at->loader->desc->parallel, post = at->loader->desc->post_norm;
    layer->attn_norm = layer_norm(at, "attn_norm", n, 1);
    layer->attn_post_norm = layer_norm(at, "attn_output_norm", n, 1);
    layer->ffn_norm = layer_norm(at, "ffn_norm", n, 1);
    layer->ffn_post_norm = layer_norm(at, "layer_output_norm", n, 1);
    struct norm_weights after_attention = layer_norm(at, "post_attention_norm", n, 1);
    struct norm_weights after_ffn = layer_norm(at, "post_ffw_norm", n, 1);
    bool before_ffn = !norm_present(&layer->ffn_norm) && !norm_present(&after_ffn);
    if (norm_present(&after_attention)) {
        if (before_ffn && !parallel && !post)
            layer->ffn_norm = after_attention;
        else
            layer->attn_post_norm = after_attention;
    }
    if (norm_present(&after_ffn))
        layer->ffn_post_norm = after_ffn;
}

static struct norm_weights head_norm(struct layer_loader *at, const char *suffix, uint32_t n_heads,
                                     uint32_t head)
{
    struct norm_weights norm = layer_norm(at, suffix, 0, n_heads);
    uint32_t n_cols = norm.weight.n_cols, n_rows = norm.weight.n_rows;
    bool whole = n_cols == n_heads * head && n_rows == 1;
    bool each = n_cols == head && (n_rows == 1 || n_rows == n_heads);
    if (norm_present(&norm) && !whole && !each)
        fail(at->loader, STATUS_INVALID, in_layer(at, suffix),
             "fits neither one head nor all of them");
    return norm;
}

static void load_attention(struct layer_loader *at)
{
    const struct model_desc *desc = at->loader->desc;
    struct layer *layer = at->layer;
    uint64_t n_embd = desc->n_embd;
    uint64_t n_q = (uint64_t)at->desc->n_heads * desc->head_k;
    uint64_t n_k = (uint64_t)at->desc->n_kv_heads * desc->head_k;
    uint64_t n_v = (uint64_t)at->desc->n_kv_heads * desc->head_v;
    struct weight fused = layer_weight(at, "attn_qkv", n_embd, n_q + n_k + n_v, 1);
    if (weight_present(&fused)) {
        layer->q = rows_of(&fused, 0, n_q);
        layer->k = rows_of(&fused, n_q, n_k);
        layer->v = rows_of(&fused, n_q + n_k, n_v);
    } else {
        layer->q = layer_required(at, "attn_q", n_embd, n_q, 1);
        layer->k = layer_required(at, "attn_k", n_embd, n_k, 1);
        layer->v = layer_required(at, "attn_v", n_embd, n_v, 1);
    }
    layer->q_norm = head_norm(at, "attn_q_norm", at->desc->n_heads, desc->head_k);
    layer->k_norm = head_norm(at, "attn_k_norm", at->desc->n_kv_heads, desc->head_k);
    layer->sinks = find_vector(at->loader, in_layer(at, "attn_sinks.weight"), at->desc->n_heads, 1);
    layer->attn_output =
        layer_required(at, "attn_output", (uint64_t)at->desc->n_heads * desc->head_v, n_embd, 1);
}

static void load_mla(struct layer_loader *at)
{
    const struct model_desc *desc = at->loader->desc;
    struct layer *layer = at->layer;
    uint64_t n_embd = desc->n_embd, n_heads = at->desc->n_heads, rank = desc->mla_kv_rank;
    uint64_t n_q = n_heads * desc->head_k, nope = desc->head_k - desc->rope_dims;
    if (desc->mla_q_rank > 0) {
        layer->q_a = layer_required(at, "attn_q_a", n_embd, desc->mla_q_rank, 1);
        layer->q_a_norm = layer_norm(at, "attn_q_a_norm", desc->mla_q_rank, 1);
        layer->q_b = layer_required(at, "attn_q_b", desc->mla_q_rank, n_q, 1);
    } else {
        layer->q = layer_required(at, "attn_q", n_embd, n_q, 1);
    }
    layer->kv_a = layer_required(at, "attn_kv_a_mqa", n_embd, rank + desc->rope_dims, 1);
    layer->kv_a_norm = layer_norm(at, "attn_kv_a_norm", rank, 1);
    struct weight kv_b = layer_weight(at, "attn_kv_b", rank, n_heads * (nope + desc->head_v), 1);
    if (weight_present(&kv_b)) {
        /* Rows of a head: [nope] for keys, [head_v] for values. */
        kv_b.matrix.n_matrices = (uint32_t)n_heads;
        layer->k_b = rows_of(&kv_b, 0, nope);
        layer->v_b = rows_of(&kv_b, nope, desc->head_v);
        layer->k_b.name = NULL;
        layer->k_b.matrix.matrix_bytes = layer->v_b.matrix.matrix_bytes =
            (nope + desc->head_v) * kv_b.matrix.row_bytes;
        layer->mla_k_transposed = true;
    } else {
        layer->k_b = layer_required(at, "attn_k_b", nope, rank, n_heads);
        layer->v_b = layer_required(at, "attn_v_b", rank, desc->head_v, n_heads);
    }
    layer->attn_output = layer_required(at, "attn_output", n_heads * desc->head_v, n_embd, 1);
}

static void load_dense_ffn(struct layer_loader *at)
{
    struct layer *layer = at->layer;
    uint64_t n_embd = at->loader->desc->n_embd, n_ff = at->desc->n_ff;
    const struct weights_tensor *up =
        weights_find(at->loader->model->weights, in_layer(at, "ffn_up.weight"));
    layer->gate = layer_weight(at, "ffn_gate", n_embd, n_ff, 1);
    if (!weight_present(&layer->gate) && up != NULL && up->shape[1] == 2 * n_ff) {
        struct weight fused = layer_weight(at, "ffn_up", n_embd, 2 * n_ff, 1);
        layer->gate = rows_of(&fused, 0, n_ff);
        layer->up = rows_of(&fused, n_ff, n_ff);
    } else {
        layer->up = layer_required(at, "ffn_up", n_embd, n_ff, 1);
    }
    layer->down = layer_required(at, "ffn_down", n_ff, n_embd, 1);
}

static void load_moe(struct layer_loader *at)
{
    const struct model_desc *desc = at->loader->desc;
    struct layer *layer = at->layer;
    uint64_t n_embd = desc->n_embd, n_ff = desc->n_expert_ff, n_experts = desc->n_experts;
    layer->router = layer_required(at, "ffn_gate_inp", n_embd, n_experts, 1);
    layer->router_bias = find_vector(at->loader, in_layer(at, "exp_probs_b.bias"), n_experts, 1);
    layer->gate_experts = layer_required(at, "ffn_gate_exps", n_embd, n_ff, n_experts);
    layer->up_experts = layer_required(at, "ffn_up_exps", n_embd, n_ff, n_experts);
    layer->down_experts = layer_required(at, "ffn_down_exps", n_ff, n_embd, n_experts);
    n_ff = desc->n_shared_ff;
    if (n_ff == 0)
        return;
    layer->gate_shared = layer_required(at, "ffn_gate_shexp", n_embd, n_ff, 1);
    layer->up_shared = layer_required(at, "ffn_up_shexp", n_embd, n_ff, 1);
    layer->down_shared = layer_required(at, "ffn_down_shexp", n_ff, n_embd, 1);
    layer->shared_router = layer_weight(at, "ffn_gate_inp_shexp", n_embd, 1, 1);
}

static void load_layer(struct loader *loader, uint32_t index)
{
    struct layer_loader at = {.loader = loader,
                              .index = index,
                              .layer = &loader->model->layers[index],
                              .desc = &loader->desc->layers[index]};
    load_norms(&at);
    if (loader->desc->mixer == MODEL_MIXER_MLA)
        load_mla(&at);
    else
        load_attention(&at);
    if (at.desc->moe)
        load_moe(&at);
    if (!at.desc->moe || (loader->desc->moe_plus_dense && at.desc->n_ff > 0))
        load_dense_ffn(&at);
}

/* ---- Rotation tables ---- */

static uint32_t find_rope_table(struct loader *loader, const struct model_layer_desc *layer,
                                const float *factors)
{
    struct model *model = loader->model;
    for (uint32_t i = 0; i < model->n_ropes; i++)
        if (model->ropes[i].base == layer->rope_base &&
            model->ropes[i].scaled == layer->rope_scaled)
            return i;
    if (model->n_ropes == MODEL_MAX_ROPE_TABLES || loader->status != STATUS_OK)
        return 0;
    float freqs[MODEL_MAX_ROPE_DIMS / 2];
    rope_frequencies(loader->desc, layer->rope_base, layer->rope_scaled, factors, freqs);
    model->ropes[model->n_ropes] = (struct rope_table){
        .freqs = place(loader, freqs, loader->desc->rope_dims / 2),
        .base = layer->rope_base,
        .scaled = layer->rope_scaled,
        .magnitude = layer->rope_scaled ? loader->desc->rope_magnitude : 1.0f,
    };
    return model->n_ropes++;
}

/* Factors per frequency: one set, or LongRoPE's two, chosen by the context in use. */
static const float *rope_factors(struct loader *loader)
{
    static const char *const names[] = {"rope_freqs.weight", "rope_factors_short.weight",
                                        "rope_factors_long.weight"};
    const float *factors[3] = {NULL};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        const struct weights_tensor *tensor = find(loader, names[i]);
        if (tensor == NULL)
            continue;
        if (tensor->format != QUANT_F32 || tensor->shape[0] != loader->desc->rope_dims / 2 ||
            tensor->shape[1] != 1)
            fail(loader, STATUS_INVALID, names[i], "does not hold one F32 number a frequency");
        factors[i] = tensor->data;
    }
    if (factors[0] != NULL)
        return factors[0];
    return factors[loader->model->n_ctx > loader->desc->rope_ctx_orig ? 2 : 1];
}

static void load_ropes(struct loader *loader)
{
    const float *factors = rope_factors(loader);
    for (uint32_t i = 0; i < loader->desc->n_layers && loader->desc->rope_dims > 0; i++)
        if (loader->desc->layers[i].rope && loader->status == STATUS_OK)
            loader->model->layers[i].rope_table =
                find_rope_table(loader, &loader->desc->layers[i], factors);
}

/* ---- The whole ---- */

static void load_ends(struct loader *loader)
{
    struct model *model = loader->model;
    const struct model_desc *desc = loader->desc;
    uint64_t n_embd = desc->n_embd, n_vocab = desc->n_vocab;
    model->token_embd = find_weight(loader, "token_embd", (struct shape){n_embd, n_vocab, 1});
    require(loader, &model->token_embd, "token_embd.weight");
    model->output = find_weight(loader, "output", (struct shape){n_embd, n_vocab, 1});
    if (!weight_present(&model->output))
        model->output = model->token_embd; /* tied */
    model->output_norm = find_norm(loader, "output_norm", n_embd, 1);
    model->embedding_norm = find_norm(loader, "token_embd_norm", n_embd, 1);

    const struct weights_tensor *positions = weights_find(model->weights, "position_embd.weight");
    if (positions != NULL && positions->shape[1] < desc->n_ctx_train)
        fail(loader, STATUS_INVALID, "position_embd.weight", "has fewer rows than the context");
    if (positions != NULL)
        model->position_embd =
            find_weight(loader, "position_embd", (struct shape){n_embd, positions->shape[1], 1});
    const struct weights_tensor *types = weights_find(model->weights, "token_types.weight");
    if (types != NULL)
        model->token_types =
            find_weight(loader, "token_types", (struct shape){n_embd, types->shape[1], 1});
    model->classifier = find_weight(loader, "cls", (struct shape){n_embd, n_embd, 1});
    const struct weights_tensor *labels = weights_find(model->weights, "cls.output.weight");
    if (labels != NULL && labels->shape[1] > n_embd)
        fail(loader, STATUS_UNSUPPORTED, "cls.output.weight",
             "has more labels than hidden numbers");
    if (labels != NULL)
        model->classifier_out =
            find_weight(loader, "cls.output", (struct shape){n_embd, labels->shape[1], 1});
}

/* Tensors of parts that a plain forward pass does not have: further-token prediction and what old
 * converters left behind. */
static bool may_be_ignored(const struct loader *loader, const char *name)
{
    unsigned layer;
    if (sscanf(name, "blk.%u.", &layer) == 1 && layer >= loader->desc->n_layers)
        return true;
    return strstr(name, ".nextn.") != NULL || strstr(name, "rotary_emb.inv_freq") != NULL ||
           strstr(name, "attn_rot_embd") != NULL;
}

static void check_all_used(struct loader *loader)
{
    for (size_t i = 0; i < weights_tensor_count(loader->model->weights); i++) {
        const char *name = weights_tensor_at(loader->model->weights, i)->name;
        if (!loader->used[i] && !may_be_ignored(loader, name))
            fail(loader, STATUS_UNSUPPORTED, name,
                 "has no place in this architecture; leaving it out would give wrong numbers");
    }
}

enum status model_load(struct model *model, struct error *error)
{
    struct loader loader = {.model = model, .desc = model->desc, .error = error};
    loader.used = calloc(weights_tensor_count(model->weights) + 1, sizeof *loader.used);
    model->layers = calloc(model->desc->n_layers, sizeof *model->layers);
    if (loader.used == NULL || model->layers == NULL) {
        free(loader.used);
        return error_memory(error, model->desc->n_layers * sizeof *model->layers);
    }
    load_ends(&loader);
    for (uint32_t i = 0; i < model->desc->n_layers && loader.status == STATUS_OK; i++)
        load_layer(&loader, i);
    load_ropes(&loader);
    if (loader.status == STATUS_OK)
        check_all_used(&loader);
    free(loader.used);
    return loader.status;
}
