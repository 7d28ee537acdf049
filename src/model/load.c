/* From named tensors to weights on a backend. Shapes are checked against the description, and a
 * tensor that nothing would use is refused rather than ignored, because the numbers would be
 * wrong. Of each tensor this rank's slice is taken, as it lies in the file. */
#include "model/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct model *model;
    const struct model_desc *desc; /* of the whole model */
    const struct slice *slice;
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
        loader->status = error_set(loader->error, code, "tensor %.100s %s", name, what);
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

/* Part number i of what the slice needs of a tensor. */
static struct weights_tensor part_of(struct loader *loader, const struct weights_tensor *tensor,
                                     const struct slice_cut *cut, uint32_t i)
{
    struct weights_tensor part = *tensor;
    bool there = cut->part.n == 0 ? tensor->data != NULL && tensor->held.n == 0
                                  : weights_part(tensor, cut->part.dim, cut->part.spans[i], &part);
    if (!there)
        fail(loader, STATUS_INVALID, tensor->name, "does not have the part that is needed here");
    return part;
}

static struct vector vector_of(struct loader *loader, const struct weights_tensor *tensor)
{
    struct vector vector = {.n_cols = (uint32_t)tensor->shape[0],
                            .n_rows = (uint32_t)tensor->shape[1]};
    size_t count = (size_t)tensor->shape[0] * tensor->shape[1];
    if (tensor->format == QUANT_F32 && tensor->size_bytes == count * sizeof(float)) {
        vector.data = map(loader, tensor->data, tensor->size_bytes);
        return vector;
    }
    float *decoded = malloc(count * sizeof *decoded);
    if (decoded == NULL) {
        loader->status = error_memory(loader->error, count * sizeof *decoded);
        return vector;
    }
    for (uint32_t r = 0; r < vector.n_rows; r++)
        quant_decode(tensor->format, (const char *)tensor->data + r * tensor->row_bytes,
                     decoded + (size_t)r * vector.n_cols, vector.n_cols);
    vector.data = place(loader, decoded, count);
    free(decoded);
    return vector;
}

/* The tensor of that name, of n_cols numbers (0: any), in at most max_rows rows; NULL where the
 * model has none. */
static const struct weights_tensor *find_rows(struct loader *loader, const char *name,
                                              uint64_t n_cols, uint64_t max_rows)
{
    const struct weights_tensor *tensor = loader->status == STATUS_OK ? find(loader, name) : NULL;
    if (tensor == NULL)
        return NULL;
    if ((n_cols > 0 && tensor->shape[0] != n_cols) || tensor->shape[1] > max_rows ||
        tensor->shape[2] != 1 || tensor->shape[3] != 1) {
        char what[160], of[40] = "";
        if (n_cols > 0)
            snprintf(of, sizeof of, " of %llu numbers", (unsigned long long)n_cols);
        snprintf(what, sizeof what, "has shape [%llu, %llu]; rows%s were expected, at most %llu",
                 (unsigned long long)tensor->shape[0], (unsigned long long)tensor->shape[1], of,
                 (unsigned long long)max_rows);
        fail(loader, STATUS_INVALID, name, what);
        return NULL;
    }
    return tensor;
}

/* As find_rows: this rank's slice of it, the parts of a fused one apart. Empty where there is none,
 * or none is needed here. */
static void find_vectors(struct loader *loader, const char *name, uint64_t n_cols,
                         uint64_t max_rows, uint32_t n_parts, struct vector *out)
{
    const struct weights_tensor *tensor = find_rows(loader, name, n_cols, max_rows);
    memset(out, 0, n_parts * sizeof *out);
    if (tensor == NULL)
        return;
    struct slice_cut cut = slice_cut(loader->slice, tensor);
    for (uint32_t i = 0; i < n_parts && cut.part.needed && loader->status == STATUS_OK; i++) {
        struct weights_tensor part = part_of(loader, tensor, &cut, i);
        if (loader->status == STATUS_OK)
            out[i] = vector_of(loader, &part);
    }
}

static struct vector find_vector(struct loader *loader, const char *name, uint64_t n_cols,
                                 uint64_t max_rows)
{
    struct vector vector;
    find_vectors(loader, name, n_cols, max_rows, 1, &vector);
    return vector;
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

/* Of a whole file, the columns of a rank's slice lie apart. Processors fetch what follows a piece
 * of a row as well, so that such rows come at 0.6 of the rate (bench/kernels: apart); they are
 * brought together once, as they lie in a slice file, and take the memory of the pages that they
 * lay in. */
static void bring_together(struct loader *loader, const struct weights_tensor *tensor,
                           struct device_matrix *matrix)
{
    struct backend *backend = loader->model->backend;
    size_t row_bytes = quant_row_bytes(tensor->format, matrix->n_cols);
    size_t matrix_bytes = row_bytes * matrix->n_rows, size = matrix_bytes * matrix->n_matrices;
    struct device_buffer *buffer = backend->alloc(backend, size);
    if (loader->status == STATUS_OK)
        loader->status = model_keep(loader->model, buffer, size, loader->error);
    if (loader->status != STATUS_OK)
        return;
    for (size_t i = 0; i < (size_t)matrix->n_matrices * matrix->n_rows; i++)
        backend->upload(backend, (struct device_ref){buffer, i * row_bytes},
                        (const char *)tensor->data + i / matrix->n_rows * tensor->matrix_bytes +
                            i % matrix->n_rows * tensor->row_bytes,
                        row_bytes);
    file_map_release(tensor->data, tensor->size_bytes);
    matrix->data = (struct device_ref){buffer, 0};
    matrix->row_bytes = row_bytes;
    matrix->matrix_bytes = matrix_bytes;
}

static struct device_matrix matrix_of(struct loader *loader, const struct weights_tensor *tensor)
{
    struct device_matrix matrix = {
        .format = tensor->format,
        .row_bytes = tensor->row_bytes,
        .matrix_bytes = tensor->matrix_bytes,
        .n_cols = (uint32_t)tensor->shape[0],
        .n_rows = (uint32_t)tensor->shape[1],
        .n_matrices = (uint32_t)tensor->shape[2],
    };
    if (tensor->row_bytes > quant_row_bytes(tensor->format, tensor->shape[0]))
        bring_together(loader, tensor, &matrix);
    else
        matrix.data = map(loader, tensor->data, tensor->size_bytes);
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

/* PREFIX.weight of that shape with PREFIX.bias where there is one: this rank's slice, the parts of
 * a fused one apart. Empty where there is none, or none is needed here. */
static void find_weights(struct loader *loader, const char *prefix, struct shape shape,
                         uint32_t n_parts, struct weight *out)
{
    char name[96];
    struct vector biases[OP_MATMUL_PARTS];
    memset(out, 0, n_parts * sizeof *out);
    snprintf(name, sizeof name, "%s.weight", prefix);
    const struct weights_tensor *tensor = loader->status == STATUS_OK ? find(loader, name) : NULL;
    if (tensor == NULL)
        return;
    check_shape(loader, tensor, shape);
    if (loader->status != STATUS_OK)
        return;
    struct slice_cut cut = slice_cut(loader->slice, tensor);
    snprintf(name, sizeof name, "%s.bias", prefix);
    find_vectors(loader, name, shape.n_rows, shape.n_matrices, n_parts, biases);
    for (uint32_t i = 0; i < n_parts && cut.part.needed && loader->status == STATUS_OK; i++) {
        struct weights_tensor part = part_of(loader, tensor, &cut, i);
        if (loader->status != STATUS_OK)
            return;
        out[i] = (struct weight){.matrix = matrix_of(loader, &part),
                                 .bias = biases[i].data,
                                 .name = i == 0 ? tensor->name : NULL,
                                 .pad_before = cut.pad_before,
                                 .pad_after = cut.pad_after};
    }
}

static struct weight find_weight(struct loader *loader, const char *prefix, struct shape shape)
{
    struct weight weight;
    find_weights(loader, prefix, shape, 1, &weight);
    return weight;
}

static void require(struct loader *loader, const struct weight *weight, const char *name)
{
    if (!weight_present(weight))
        fail(loader, STATUS_INVALID, name, "is missing; convert or fetch the model again");
}

/* Rows [begin, begin + n_rows) of each matrix. */
static struct weight rows_of(const struct weight *fused, size_t begin, size_t n_rows)
{
    struct weight part = *fused;
    part.name = NULL;
    part.matrix.data.offset += begin * fused->matrix.row_bytes;
    part.matrix.n_rows = (uint32_t)n_rows;
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

/* n_own of the heads are here. */
static struct norm_weights head_norm(struct layer_loader *at, const char *suffix, uint32_t n_heads,
                                     uint32_t n_own)
{
    uint32_t head = at->loader->desc->head_k;
    struct norm_weights norm = layer_norm(at, suffix, 0, n_heads);
    uint32_t n_cols = norm.weight.n_cols, n_rows = norm.weight.n_rows;
    bool whole = n_cols == n_heads * head && n_rows == 1;
    bool each = n_cols == head && (n_rows == 1 || n_rows == n_own);
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
    const struct layer_slice *slice = &at->loader->slice->layers[at->index];
    struct weight fused[3];
    find_weights(at->loader, in_layer(at, "attn_qkv"), (struct shape){n_embd, n_q + n_k + n_v, 1},
                 3, fused);
    if (weight_present(fused)) {
        layer->q = fused[0];
        layer->k = fused[1];
        layer->v = fused[2];
    } else {
        layer->q = layer_required(at, "attn_q", n_embd, n_q, 1);
        layer->k = layer_required(at, "attn_k", n_embd, n_k, 1);
        layer->v = layer_required(at, "attn_v", n_embd, n_v, 1);
    }
    bool whole = slice->whole_qk;
    layer->q_norm = head_norm(at, "attn_q_norm", at->desc->n_heads,
                              whole ? at->desc->n_heads : span_size(slice->heads));
    layer->k_norm = head_norm(at, "attn_k_norm", at->desc->n_kv_heads,
                              whole ? at->desc->n_kv_heads : span_size(slice->kv_heads));
    layer->sinks = find_vector(at->loader, in_layer(at, "attn_sinks.weight"), at->desc->n_heads, 1);
    layer->attn_output =
        layer_required(at, "attn_output", (uint64_t)at->desc->n_heads * desc->head_v, n_embd, 1);
    layer->group = at->desc->n_heads / at->desc->n_kv_heads;
    layer->first_in_group = slice->heads.begin - slice->kv_heads.begin * layer->group;
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
        kv_b.matrix.n_matrices = span_size(at->loader->slice->layers[at->index].heads);
        kv_b.matrix.matrix_bytes = (nope + desc->head_v) * kv_b.matrix.row_bytes;
        layer->k_b = rows_of(&kv_b, 0, nope);
        layer->v_b = rows_of(&kv_b, nope, desc->head_v);
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
        struct weight fused[2];
        find_weights(at->loader, in_layer(at, "ffn_up"), (struct shape){n_embd, 2 * n_ff, 1}, 2,
                     fused);
        layer->gate = fused[0];
        layer->up = fused[1];
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
    layer->first_expert = at->loader->slice->layers[at->index].experts.begin;
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
            tensor->shape[1] != 1 || tensor->data == NULL)
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
    struct span range = loader->slice->layer_range;
    for (uint32_t i = range.begin; i < range.end && loader->desc->rope_dims > 0; i++)
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
    const struct slice *slice = loader->slice;
    model->token_embd = find_weight(loader, "token_embd", (struct shape){n_embd, n_vocab, 1});
    if (slice->embeds)
        require(loader, &model->token_embd, "token_embd.weight");
    model->output = find_weight(loader, "output", (struct shape){n_embd, n_vocab, 1});
    if (slice->tied && slice->last) {
        model->output = model->token_embd;
        if (slice->embeds && slice->n_shards > 1 && weight_present(&model->output))
            model->output = rows_of(&model->output, slice->vocab.begin, span_size(slice->vocab));
    }
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

static void check_all_used(struct loader *loader)
{
    struct span range = loader->slice->layer_range;
    for (size_t i = 0; i < weights_tensor_count(loader->model->weights); i++) {
        const char *name = weights_tensor_at(loader->model->weights, i)->name;
        unsigned layer;
        bool elsewhere =
            sscanf(name, "blk.%u.", &layer) == 1 && (layer < range.begin || layer >= range.end);
        if (!loader->used[i] && !elsewhere && !slice_ignores(loader->desc, name))
            fail(loader, STATUS_UNSUPPORTED, name,
                 "has no place in this architecture; leaving it out would give wrong numbers");
    }
}

enum status model_load(struct model *model, struct error *error)
{
    struct loader loader = {
        .model = model, .desc = model->desc, .slice = &model->slice, .error = error};
    loader.used = calloc(weights_tensor_count(model->weights) + 1, sizeof *loader.used);
    model->layers = calloc(model->desc->n_layers, sizeof *model->layers);
    if (loader.used == NULL || model->layers == NULL) {
        free(loader.used);
        return error_memory(error, model->desc->n_layers * sizeof *model->layers);
    }
    load_ends(&loader);
    struct span range = model->slice.layer_range;
    for (uint32_t i = range.begin; i < range.end && loader.status == STATUS_OK; i++)
        load_layer(&loader, i);
    load_ropes(&loader);
    if (loader.status == STATUS_OK)
        check_all_used(&loader);
    free(loader.used);
    return loader.status;
}
