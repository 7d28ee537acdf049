/* The one forward pass, for every architecture. Each part asks the description or the presence of a
 * weight; none asks for an architecture's name. Shapes: n tokens in the step, x[n][n_embd].
 *
 * Where several ranks share a model, the description and the weights are those of this rank's
 * slice, and the same pass runs on each. x is the same, to the last bit, on all shards of a stage:
 * what each adds to it is summed over them first (sum_shards), twice a layer. */
#include "model/model_internal.h"

#include <stdlib.h>

/* Weights that share their input; those that the model does not have are NULL or absent. */
struct weight_list {
    const struct weight *at[OP_MATMUL_PARTS];
};

struct run {
    struct model *model;
    const struct model_desc *desc; /* of this rank's slice */
    struct backend *backend;
    struct activations at;
    uint32_t n;
    struct weight_list after_layer; /* what the next layer, or the end, reads first */
};

static void submit(const struct run *run, struct op op)
{
    run->backend->run(run->backend, &op);
}

static struct device_ref at_number(struct device_ref ref, size_t index)
{
    return (struct device_ref){ref.buffer, ref.offset + index * sizeof(float)};
}

/* ---- Single operations ---- */

/* What an observer misses is the step's failure: its sums would be wrong. */
static bool observed(const struct run *run, enum status status)
{
    if (run->model->observed_status == STATUS_OK)
        run->model->observed_status = status;
    return status == STATUS_OK;
}

/* Shows an observer the rows that go into a weight; ids where each row has its own expert. */
static void observe(const struct run *run, const struct weight *weight, struct device_ref x,
                    uint32_t n_rows, struct device_ref ids, uint32_t rows_per_x)
{
    struct model *model = run->model;
    if (model->observer == NULL || weight->name == NULL)
        return;
    uint32_t n_cols = weight->matrix.n_cols, n_x = n_rows / rows_per_x;
    size_t size = (size_t)n_x * n_cols * sizeof(float) + n_rows * sizeof(int32_t);
    if (size > model->observed_size) {
        free(model->observed);
        model->observed = malloc(size);
        model->observed_size = model->observed != NULL ? size : 0;
        if (model->observed == NULL) {
            observed(run, STATUS_MEMORY);
            return;
        }
    }
    float *rows = model->observed;
    int32_t *experts = (int32_t *)(rows + (size_t)n_x * n_cols);
    if (!observed(run, run->backend->download(run->backend, rows, x,
                                              (size_t)n_x * n_cols * sizeof(float))))
        return;
    if (ids.buffer == NULL) {
        model->observer(model->observer_context, weight->name, rows, n_x, n_cols, -1);
        return;
    }
    if (!observed(run,
                  run->backend->download(run->backend, experts, ids, n_rows * sizeof(int32_t))))
        return;
    for (uint32_t i = 0; i < n_rows; i++)
        model->observer(model->observer_context, weight->name,
                        rows + (size_t)(i / rows_per_x) * n_cols, 1, n_cols, experts[i]);
}

static struct op products(const struct weight_list *list, const struct device_ref y[])
{
    struct op op = {.kind = OP_MATMUL};
    for (size_t i = 0; i < OP_MATMUL_PARTS; i++)
        if (list->at[i] != NULL && weight_present(list->at[i]))
            op.matmul.parts[op.matmul.n_parts++] =
                (struct op_matmul_part){.w = list->at[i]->matrix,
                                        .y = y != NULL ? y[i] : (struct device_ref){0},
                                        .bias = list->at[i]->bias};
    return op;
}

static void linears(const struct run *run, struct weight_list list, struct device_ref x,
                    const struct device_ref y[], uint32_t n)
{
    for (size_t i = 0; i < OP_MATMUL_PARTS; i++)
        if (list.at[i] != NULL && weight_present(list.at[i]))
            observe(run, list.at[i], x, n, (struct device_ref){0}, 1);
    struct op op = products(&list, y);
    op.matmul.x = x;
    op.matmul.n = n;
    submit(run, op);
}

/* Columns of n rows, copied to where their strides are others. x_stride 0 repeats a row. */
static void copy_columns(const struct run *run, struct device_ref x, uint32_t x_stride,
                         struct device_ref y, uint32_t y_stride, uint32_t n, uint32_t n_cols)
{
    submit(run, (struct op){.kind = OP_GATHER,
                            .gather = {.x = x,
                                       .y = y,
                                       .n = n,
                                       .n_cols = n_cols,
                                       .x_stride = x_stride,
                                       .y_stride = y_stride}});
}

/* n rows of x with zeros beside them, where the weight's border blocks are a neighbour's too. */
static struct device_ref padded(const struct run *run, const struct weight *weight,
                                struct device_ref x, uint32_t n)
{
    uint32_t before = weight->pad_before, after = weight->pad_after;
    uint32_t n_cols = weight->matrix.n_cols, n_own = n_cols - before - after;
    struct device_ref y = run->at.padded, zeros = run->model->at.zeros;
    if (before == 0 && after == 0)
        return x;
    copy_columns(run, x, n_own, at_number(y, before), n_cols, n, n_own);
    if (before > 0)
        copy_columns(run, zeros, 0, y, n_cols, n, before);
    if (after > 0)
        copy_columns(run, zeros, 0, at_number(y, before + n_own), n_cols, n, after);
    return y;
}

static void linear(const struct run *run, const struct weight *weight, struct device_ref x,
                   struct device_ref y, uint32_t n)
{
    linears(run, (struct weight_list){{weight}}, padded(run, weight, x, n),
            (struct device_ref[]){y, {0}, {0}}, n);
}

/* What the product after the next one reads. */
static void expect(const struct run *run, struct weight_list list)
{
    struct op op = products(&list, NULL);
    op.kind = OP_EXPECT;
    if (op.matmul.n_parts > 0)
        submit(run, op);
}

/* Rows of n_cols, strides apart, normalised in place or into y. */
static void normalise(const struct run *run, const struct norm_weights *norm, struct device_ref x,
                      struct device_ref y, uint32_t n_rows, uint32_t n_cols, uint32_t stride)
{
    submit(run, (struct op){.kind = OP_NORM,
                            .norm = {.norm = run->desc->norm,
                                     .eps = run->desc->norm_eps,
                                     .x = x,
                                     .y = y,
                                     .weight = norm->weight.data,
                                     .bias = norm->bias.data,
                                     .n_rows = n_rows,
                                     .n_cols = n_cols,
                                     .n_weight_rows = MAX(norm->weight.n_rows, 1),
                                     .x_stride = stride,
                                     .y_stride = stride}});
}

/* The norm of whole rows of n_embd; where the model has none, x itself. */
static struct device_ref normalised(const struct run *run, const struct norm_weights *norm,
                                    struct device_ref x, struct device_ref y)
{
    if (!norm_present(norm))
        return x;
    normalise(run, norm, x, y, run->n, run->desc->n_embd, run->desc->n_embd);
    return y;
}

static void add(const struct run *run, struct device_ref a, struct device_ref b, float scale)
{
    submit(
        run,
        (struct op){
            .kind = OP_ADD,
            .add = {
                .a = a, .b = b, .y = a, .n = (size_t)run->n * run->desc->n_embd, .scale = scale}});
}

static void scale(const struct run *run, struct device_ref x, size_t n, float factor, float softcap)
{
    if (factor != 1.0f || softcap > 0)
        submit(run, (struct op){.kind = OP_SCALE,
                                .scale = {.x = x, .n = n, .scale = factor, .softcap = softcap}});
}

static void scale_rows(const struct run *run, struct device_ref x, uint32_t n, uint32_t n_cols,
                       struct device_ref factors, bool sigmoid)
{
    submit(run, (struct op){
                    .kind = OP_SCALE_ROWS,
                    .scale_rows = {
                        .x = x, .factors = factors, .n = n, .n_cols = n_cols, .sigmoid = sigmoid}});
}

static void rotate(const struct run *run, const struct layer *layer, struct device_ref x,
                   uint32_t n_heads, uint32_t head_stride, uint32_t token_stride)
{
    const struct rope_table *table = &run->model->ropes[layer->rope_table];
    submit(run, (struct op){.kind = OP_ROPE,
                            .rope = {.x = x,
                                     .positions = run->at.positions,
                                     .freqs = table->freqs,
                                     .rope = run->desc->rope,
                                     .n = run->n,
                                     .n_heads = n_heads,
                                     .head_stride = head_stride,
                                     .token_stride = token_stride,
                                     .n_freqs = run->desc->rope_dims / 2,
                                     .magnitude = table->magnitude}});
}

static void store(const struct run *run, struct device_ref x, uint32_t n_heads, uint32_t n_cols,
                  struct device_buffer *cache, enum kv_layout layout)
{
    submit(run, (struct op){.kind = OP_KV_STORE,
                            .store = {.x = x,
                                      .slots = run->at.slots,
                                      .cache = {cache, 0},
                                      .format = run->model->kv_format,
                                      .n = run->n,
                                      .n_heads = n_heads,
                                      .n_cols = n_cols,
                                      .layout = layout}});
}

/* ---- Mixers ---- */

static struct weight_list first_of_ffn(const struct run *run, uint32_t index)
{
    const struct layer *layer = &run->model->layers[index];
    if (run->desc->layers[index].moe)
        return (struct weight_list){{&layer->router}};
    return (struct weight_list){{&layer->gate, &layer->up}};
}

static struct weight_list first_of_mixer(const struct layer *layer)
{
    if (weight_present(&layer->kv_a))
        return (struct weight_list){
            {weight_present(&layer->q_a) ? &layer->q_a : &layer->q, &layer->kv_a}};
    return (struct weight_list){{&layer->q, &layer->k, &layer->v}};
}

/* This rank's heads of all, which are all_heads. */
static struct device_ref own_heads(const struct run *run, struct device_ref x, uint32_t all_heads,
                                   struct span own, struct device_ref y)
{
    uint32_t head = run->desc->head_k, n_cols = span_size(own) * head;
    copy_columns(run, at_number(x, (size_t)own.begin * head), all_heads * head, y, n_cols, run->n,
                 n_cols);
    return y;
}

/* Over each head, or over all heads as one row. */
static void normalise_heads(const struct run *run, const struct norm_weights *norm,
                            struct device_ref x, uint32_t n_heads)
{
    uint32_t n_cols = norm->weight.n_cols;
    if (norm_present(norm))
        normalise(run, norm, x, x, run->n * (n_heads * run->desc->head_k / n_cols), n_cols, n_cols);
}

static void attention(const struct run *run, uint32_t index, struct op op)
{
    const struct model_layer_desc *desc = &run->desc->layers[index];
    op.kind = OP_ATTENTION;
    op.attention.positions = run->at.positions;
    op.attention.visible = run->at.visible;
    op.attention.table_begin = run->at.table_begin;
    op.attention.tables = run->at.tables;
    op.attention.format = run->model->kv_format;
    op.attention.n = run->n;
    op.attention.n_heads = desc->n_heads;
    op.attention.window = desc->window;
    op.attention.chunked = desc->chunked;
    op.attention.scale = run->desc->attn_scale;
    op.attention.softcap = run->desc->attn_softcap;
    submit(run, op);
}

static void mix_attention(const struct run *run, uint32_t index, struct device_ref x,
                          struct device_ref y)
{
    const struct model_desc *desc = run->desc;
    const struct model_layer_desc *facts = &desc->layers[index];
    const struct layer *layer = &run->model->layers[index];
    uint32_t head = desc->head_k, n_q = facts->n_heads * head, n_k = facts->n_kv_heads * head;
    struct device_ref q = run->at.q, k = run->at.k;
    expect(run, (struct weight_list){{&layer->attn_output}});
    linears(run, first_of_mixer(layer), x, (struct device_ref[]){q, k, run->at.v}, run->n);
    const struct layer_slice *slice = &run->model->slice.layers[index];
    const struct model_layer_desc *normed =
        slice->whole_qk ? &run->model->desc->layers[index] : facts;
    normalise_heads(run, &layer->q_norm, q, normed->n_heads);
    normalise_heads(run, &layer->k_norm, k, normed->n_kv_heads);
    if (slice->whole_qk) {
        q = own_heads(run, q, normed->n_heads, slice->heads, run->at.q_own);
        k = own_heads(run, k, normed->n_kv_heads, slice->kv_heads, run->at.k_own);
    }
    if (facts->rope) {
        rotate(run, layer, q, facts->n_heads, head, n_q);
        rotate(run, layer, k, facts->n_kv_heads, head, n_k);
        if (desc->qk_norm_after_rope) {
            const struct norm_weights plain = {0};
            normalise(run, &plain, q, q, run->n * facts->n_heads, head, head);
            normalise(run, &plain, k, k, run->n * facts->n_kv_heads, head, head);
        }
    } else if (desc->temperature_ctx > 0) {
        scale_rows(run, q, run->n, n_q, run->at.temperatures, false);
    }
    bool codes = quant_info(run->model->kv_format)->block_len > 1;
    enum kv_layout k_layout = codes ? KV_CODE_KEYS : KV_TURNED;
    store(run, k, facts->n_kv_heads, head, layer->k_cache, k_layout);
    store(run, run->at.v, facts->n_kv_heads, desc->head_v, layer->v_cache,
          codes ? KV_CODE_VALUES : KV_ROWS);
    attention(run, index,
              (struct op){.attention = {.q = q,
                                        .k = {layer->k_cache, 0},
                                        .v = {layer->v_cache, 0},
                                        .y = run->at.heads,
                                        .sinks = layer->sinks.data,
                                        .n_kv_heads = facts->n_kv_heads,
                                        .group = layer->group,
                                        .first_in_group = layer->first_in_group,
                                        .head_k = desc->head_k,
                                        .head_v = desc->head_v,
                                        .k_layout = k_layout,
                                        .k_row_bytes = layer->k_row_bytes / facts->n_kv_heads,
                                        .v_row_bytes = layer->v_row_bytes / facts->n_kv_heads}});
    expect(run, first_of_ffn(run, index));
    linear(run, &layer->attn_output, run->at.heads, y, run->n);
}

/* A matrix a head. */
static void per_head(const struct run *run, const struct weight *weight, struct device_ref x,
                     uint32_t x_stride, struct device_ref y, uint32_t y_stride, uint32_t n_heads,
                     bool transposed)
{
    submit(run, (struct op){.kind = OP_MATMUL_EACH,
                            .each = {.w = weight->matrix,
                                     .x = x,
                                     .y = y,
                                     .n = run->n,
                                     .n_slots = n_heads,
                                     .x_stride = x_stride,
                                     .y_stride = y_stride,
                                     .transposed = transposed}});
}

/* Multi-head latent attention (DeepSeek-V2, section 2.1), always in the compressed space: the cache
 * holds [c | k_rope] a token, shared by all heads; q is brought to that space, and what attention
 * finds there is brought back by v_b. */
static void mix_mla(const struct run *run, uint32_t index, struct device_ref x, struct device_ref y)
{
    const struct model_desc *desc = run->desc;
    const struct layer *layer = &run->model->layers[index];
    uint32_t n_heads = desc->layers[index].n_heads, rank = desc->mla_kv_rank;
    uint32_t rope = desc->rope_dims, nope = desc->head_k - rope, latent = rank + rope;
    bool low = weight_present(&layer->q_a);
    expect(run, (struct weight_list){{low ? &layer->q_b : &layer->attn_output}});
    linears(run, first_of_mixer(layer), x,
            (struct device_ref[]){low ? run->at.q_low : run->at.q, run->at.k, {0}}, run->n);
    if (low) {
        normalise(run, &layer->q_a_norm, run->at.q_low, run->at.q_low, run->n, desc->mla_q_rank,
                  desc->mla_q_rank);
        expect(run, (struct weight_list){{&layer->attn_output}});
        linear(run, &layer->q_b, run->at.q_low, run->at.q, run->n);
    }
    normalise(run, &layer->kv_a_norm, run->at.k, run->at.k, run->n, rank, latent);
    rotate(run, layer, at_number(run->at.q, nope), n_heads, desc->head_k, n_heads * desc->head_k);
    rotate(run, layer, at_number(run->at.k, rank), 1, latent, latent);

    per_head(run, &layer->k_b, run->at.q, desc->head_k, run->at.q_mla, latent, n_heads,
             layer->mla_k_transposed);
    copy_columns(run, at_number(run->at.q, nope), desc->head_k, at_number(run->at.q_mla, rank),
                 latent, run->n * n_heads, rope);
    store(run, run->at.k, 1, latent, layer->k_cache, KV_ROWS);
    attention(run, index,
              (struct op){.attention = {.q = run->at.q_mla,
                                        .k = {layer->k_cache, 0},
                                        .v = {layer->k_cache, 0},
                                        .y = run->at.values,
                                        .n_kv_heads = 1,
                                        .group = n_heads,
                                        .head_k = latent,
                                        .head_v = rank,
                                        .k_row_bytes = layer->k_row_bytes,
                                        .v_row_bytes = layer->k_row_bytes}});
    per_head(run, &layer->v_b, run->at.values, rank, run->at.heads, desc->head_v, n_heads, false);
    expect(run, first_of_ffn(run, index));
    linear(run, &layer->attn_output, run->at.heads, y, run->n);
}

/* ---- FFNs ---- */

/* Rows of a weight. */
static struct weight rows_of(const struct weight *weight, struct span rows)
{
    struct weight part = *weight;
    part.matrix.data.offset += rows.begin * weight->matrix.row_bytes;
    part.matrix.n_rows = span_size(rows);
    part.bias = at_number(part.bias, rows.begin);
    return part;
}

/* Columns of a weight, whole blocks; it has none of a neighbour's. */
static struct weight columns_of(const struct weight *weight, struct span columns)
{
    struct weight part = *weight;
    part.matrix.data.offset += quant_row_bytes(weight->matrix.format, columns.begin);
    part.matrix.n_cols = span_size(columns);
    return part;
}

struct ffn_weights {
    const struct weight *gate, *up, *down;
};

/* y = down(activation(gate x) * up x), or down(activation(up x)) without a gate; where columns is
 * not all of them, only what these bring, added to y. */
static void ffn_columns(const struct run *run, struct ffn_weights all, struct span columns,
                        struct device_ref x, struct device_ref y)
{
    struct weight gate = *all.gate, up = *all.up, down = *all.down;
    bool gated = weight_present(&gate), adds = columns.begin > 0;
    uint32_t n_ff = span_size(columns);
    if (n_ff < all.up->matrix.n_rows) {
        up = rows_of(all.up, columns);
        if (gated)
            gate = rows_of(all.gate, columns);
        down = columns_of(all.down, columns);
        if (columns.end < all.up->matrix.n_rows)
            down.bias = (struct device_ref){0}; /* comes with the last ones */
    }
    expect(run, (struct weight_list){{&down}});
    linears(run, (struct weight_list){{&gate, &up}}, x,
            (struct device_ref[]){run->at.gate, run->at.up, {0}}, run->n);
    submit(run, (struct op){.kind = OP_GATE,
                            .gate = {.gate = gated ? run->at.gate : run->at.up,
                                     .up = gated ? run->at.up : (struct device_ref){0},
                                     .y = run->at.gate,
                                     .activation = run->desc->activation,
                                     .n = run->n,
                                     .n_cols = n_ff,
                                     .gate_stride = n_ff,
                                     .up_stride = n_ff}});
    expect(run, run->after_layer);
    if (adds)
        submit(run, (struct op){
                        .kind = OP_MATMUL,
                        .matmul = {
                            .parts = {{.w = down.matrix, .y = y, .bias = down.bias, .adds = true}},
                            .x = run->at.gate,
                            .n_parts = 1,
                            .n = run->n}});
    else
        linear(run, &down, run->at.gate, y, run->n);
}

/* Whether products may come by columns, which changes nothing only in panels. */
static bool ffn_splits(const struct run *run, struct ffn_weights weights)
{
    return run->model->observer == NULL &&
           weights.down->pad_before + weights.down->pad_after == 0 &&
           quant_packing(weights.down->matrix.format, run->n) == QUANT_PACKED_BF16;
}

/* What does not fit into at.gate comes by columns, so that all tokens share the unpacking of the
 * weights; where that is not possible, some tokens after the other. */
static void ffn_gated(const struct run *run, const struct weight *gate, const struct weight *up,
                      const struct weight *down, struct device_ref x, struct device_ref y)
{
    struct ffn_weights weights = {gate, up, down};
    uint32_t n_ff = up->matrix.n_rows, columns = n_ff;
    size_t room = run->model->ff_numbers;
    struct run part = *run;
    bool fits = run->n * (size_t)n_ff <= room;
    if (!fits && ffn_splits(run, weights))
        columns = (uint32_t)(room / run->n / MAX_BLOCK * MAX_BLOCK);
    else if (!fits)
        part.n = (uint32_t)(room / n_ff);
    for (uint32_t first = 0; first < run->n; first += part.n) {
        size_t at = (size_t)first * run->desc->n_embd;
        part.n = (uint32_t)model_even_share(run->n - first, part.n);
        uint32_t begin = 0;
        do {
            ffn_columns(&part, weights, (struct span){begin, MIN(begin + columns, n_ff)},
                        at_number(x, at), at_number(y, at));
            begin += columns;
        } while (begin < n_ff);
    }
}

static void experts(const struct run *run, const struct layer *layer, const struct weight *weight,
                    struct device_ref x, struct device_ref y, bool x_shared)
{
    uint32_t n_used = run->desc->n_experts_used;
    x = padded(run, weight, x, x_shared ? run->n : run->n * n_used);
    observe(run, weight, x, run->n * n_used, run->at.expert_ids, x_shared ? n_used : 1);
    submit(run, (struct op){.kind = OP_MATMUL_EACH,
                            .each = {.w = weight->matrix,
                                     .x = x,
                                     .y = y,
                                     .bias = weight->bias,
                                     .ids = run->at.expert_ids,
                                     .n = run->n,
                                     .n_slots = n_used,
                                     .first_matrix = layer->first_expert,
                                     .n_all = run->desc->n_experts,
                                     .x_stride = weight->matrix.n_cols,
                                     .y_stride = weight->matrix.n_rows,
                                     .x_shared = x_shared}});
}

/* The router reads x; where its weight belongs before the FFN, scaling what gate and up give is the
 * same as scaling their input, because both are linear there. */
static void ffn_experts(const struct run *run, const struct layer *layer, struct device_ref x,
                        struct device_ref y)
{
    const struct model_desc *desc = run->desc;
    uint32_t n_slots = run->n * desc->n_experts_used, n_ff = layer->up_experts.matrix.n_rows;
    linear(run, &layer->router, x, run->at.router, run->n);
    submit(run, (struct op){.kind = OP_ROUTE,
                            .route = {.logits = run->at.router,
                                      .bias = layer->router_bias.data,
                                      .ids = run->at.expert_ids,
                                      .weights = run->at.expert_weights,
                                      .routing = desc->routing,
                                      .n = run->n,
                                      .n_experts = desc->n_experts,
                                      .n_used = desc->n_experts_used,
                                      .n_groups = desc->n_expert_groups,
                                      .n_groups_used = desc->n_expert_groups_used,
                                      .scale = desc->routing_scale,
                                      .normalise = desc->routing_norm}});
    experts(run, layer, &layer->gate_experts, x, run->at.gate, true);
    experts(run, layer, &layer->up_experts, x, run->at.up, true);
    if (desc->routing_before_ffn) {
        scale_rows(run, run->at.gate, n_slots, n_ff, run->at.expert_weights, false);
        scale_rows(run, run->at.up, n_slots, n_ff, run->at.expert_weights, false);
    }
    submit(run, (struct op){.kind = OP_GATE,
                            .gate = {.gate = run->at.gate,
                                     .up = run->at.up,
                                     .y = run->at.gate,
                                     .activation = desc->activation,
                                     .n = n_slots,
                                     .n_cols = n_ff,
                                     .gate_stride = n_ff,
                                     .up_stride = n_ff}});
    experts(run, layer, &layer->down_experts, run->at.gate, run->at.expert_out, false);
    submit(run,
           (struct op){.kind = OP_COMBINE,
                       .combine = {.x = run->at.expert_out,
                                   .weights = desc->routing_before_ffn ? (struct device_ref){0}
                                                                       : run->at.expert_weights,
                                   .y = y,
                                   .n = run->n,
                                   .n_slots = desc->n_experts_used,
                                   .n_cols = desc->n_embd}});
}

static void ffn(const struct run *run, uint32_t index, struct device_ref x, struct device_ref y)
{
    const struct model_desc *desc = run->desc;
    const struct layer *layer = &run->model->layers[index];
    if (!desc->layers[index].moe) {
        ffn_gated(run, &layer->gate, &layer->up, &layer->down, x, y);
        return;
    }
    ffn_experts(run, layer, x, y);
    if (weight_present(&layer->up_shared)) {
        ffn_gated(run, &layer->gate_shared, &layer->up_shared, &layer->down_shared, x, run->at.ffn);
        if (weight_present(&layer->shared_router)) {
            linear(run, &layer->shared_router, x, run->at.shared_gate, run->n);
            scale_rows(run, run->at.ffn, run->n, desc->n_embd, run->at.shared_gate, true);
        }
        add(run, y, run->at.ffn, 1.0f);
    }
    if (weight_present(&layer->up) && desc->moe_plus_dense) {
        ffn_gated(run, &layer->gate, &layer->up, &layer->down, x, run->at.ffn);
        add(run, y, run->at.ffn, 1.0f);
        scale(run, y, (size_t)run->n * desc->n_embd, 0.70710678118654752440f, 0);
    }
}

/* ---- Layers and ends ---- */

static void mix(const struct run *run, uint32_t index, struct device_ref x, struct device_ref y)
{
    switch (run->desc->mixer) {
    case MODEL_MIXER_ATTENTION:
        mix_attention(run, index, x, y);
        break;
    case MODEL_MIXER_MLA:
        mix_mla(run, index, x, y);
        break;
    }
}

/* Replaces what this shard has computed of out, with last as the last weight, by the sum over
 * all. */
static void sum_shards(const struct run *run, const struct weight *last, struct device_ref out)
{
    bool rounded = quant_info(last->matrix.format)->block_len > 1;
    if (run->model->slice.n_shards > 1)
        exchange_sum(run->model, out, run->n, rounded);
}

/* x += residual_scale * f(x), with the norms where the model has them. */
static void layer_forward(const struct run *run, uint32_t index)
{
    const struct model_desc *desc = run->desc;
    const struct layer *layer = &run->model->layers[index];
    struct device_ref x = run->at.x, h = run->at.h, out = run->at.out;
    struct device_ref in = normalised(run, &layer->attn_norm, x, h);
    mix(run, index, in, out);
    if (desc->parallel) {
        ffn(run, index, in, run->at.joint);
        add(run, out, run->at.joint, 1.0f);
        sum_shards(run, &layer->attn_output, out);
        add(run, x, out, desc->residual_scale);
        return;
    }
    sum_shards(run, &layer->attn_output, out);
    if (!desc->post_norm)
        normalised(run, &layer->attn_post_norm, out, out);
    add(run, x, out, desc->residual_scale);
    if (desc->post_norm)
        normalised(run, &layer->attn_post_norm, x, x);
    ffn(run, index, normalised(run, &layer->ffn_norm, x, h), out);
    sum_shards(run, desc->layers[index].moe ? &layer->down_experts : &layer->down, out);
    if (!desc->post_norm)
        normalised(run, &layer->ffn_post_norm, out, out);
    add(run, x, out, desc->residual_scale);
    if (desc->post_norm)
        normalised(run, &layer->ffn_post_norm, x, x);
}

static void embed(const struct run *run, const struct weight *table, struct device_ref ids,
                  struct device_ref y, float factor)
{
    submit(run, (struct op){
                    .kind = OP_EMBED,
                    .embed = {
                        .table = table->matrix, .ids = ids, .y = y, .n = run->n, .scale = factor}});
}

static void embed_tokens(const struct run *run)
{
    struct model *model = run->model;
    embed(run, &model->token_embd, run->at.ids, run->at.x, run->desc->embedding_scale);
    if (weight_present(&model->token_types)) {
        embed(run, &model->token_types, run->at.zeros, run->at.h, 1.0f);
        add(run, run->at.x, run->at.h, 1.0f);
    }
    if (weight_present(&model->position_embd)) {
        embed(run, &model->position_embd, run->at.positions, run->at.h, 1.0f);
        add(run, run->at.x, run->at.h, 1.0f);
    }
    normalised(run, &model->embedding_norm, run->at.x, run->at.x);
}

/* Logits of the wanted rows, some at a time: a vocabulary is far wider than a hidden row. Each
 * shard of the last stage computes those of its rows of the vocabulary. */
static enum status logits(const struct run *run, const struct step_plan *plan)
{
    enum status status = STATUS_OK;
    const struct model_desc *desc = run->desc;
    struct run part = *run;
    for (uint32_t first = 0; first < plan->n_wanted; first += part.n) {
        part.n = MIN(MODEL_LOGITS_ROWS, plan->n_wanted - first);
        submit(run, (struct op){.kind = OP_GATHER,
                                .gather = {.x = run->at.x,
                                           .rows = at_number(run->at.wanted, first),
                                           .y = run->at.h,
                                           .n = part.n,
                                           .n_cols = desc->n_embd,
                                           .x_stride = desc->n_embd,
                                           .y_stride = desc->n_embd}});
        struct device_ref h = normalised(&part, &run->model->output_norm, run->at.h, run->at.h);
        linear(run, &run->model->output, h, run->at.logits, part.n);
        scale(run, run->at.logits, (size_t)part.n * run->model->output.matrix.n_rows,
              desc->logit_scale, desc->logit_softcap);
        float *to = plan->logits != NULL ? plan->logits + (size_t)first * desc->n_vocab : NULL;
        enum status part_status = exchange_logits(run->model, part.n, to);
        if (status == STATUS_OK)
            status = part_status;
    }
    return status;
}

/* Some of the step's tokens through this rank's stage. */
static void stage_forward(struct model *model, uint32_t first, uint32_t n)
{
    const struct slice *slice = &model->slice;
    struct run run = {
        .model = model, .desc = model->part, .backend = model->backend, .at = model->at, .n = n};
    struct device_ref *columns[] = {&run.at.ids,     &run.at.positions,   &run.at.slots,
                                    &run.at.visible, &run.at.table_begin, &run.at.temperatures};
    for (size_t i = 0; i < ARRAY_COUNT(columns); i++)
        *columns[i] = at_number(*columns[i], first);
    run.at.x = at_number(run.at.x, (size_t)first * model->desc->n_embd);
    if (slice->embeds)
        embed_tokens(&run);
    exchange_begin_stage(model, run.at.x, n);
    uint32_t end = slice->layer_range.end;
    for (uint32_t i = slice->layer_range.begin; i < end && !model->exchange.lost; i++) {
        bool last = i + 1 == end;
        if (!last)
            run.after_layer = first_of_mixer(&model->layers[i + 1]);
        else if (slice->last)
            run.after_layer = (struct weight_list){{&model->output}};
        layer_forward(&run, i);
    }
    exchange_end_stage(model, run.at.x, n);
}

enum status model_forward(struct model *model, const struct step_plan *plan)
{
    struct run run = {.model = model,
                      .desc = model->part,
                      .backend = model->backend,
                      .at = model->at,
                      .n = plan->n};
    model->observed_status = STATUS_OK;
    uint32_t n_pieces = plan->n_pieces;
    for (uint32_t i = 0; i < n_pieces && !model->exchange.lost; i++) {
        uint32_t first = plan->n * i / n_pieces, next = plan->n * (i + 1) / n_pieces;
        stage_forward(model, first, next - first);
    }
    enum status status = STATUS_OK;
    if (model->slice.last && plan->n_wanted > 0 && !model->exchange.lost)
        status = logits(&run, plan);
    else
        status = run.backend->sync(run.backend);
    if (model->exchange.lost)
        return STATUS_LOST;
    return status != STATUS_OK ? status : model->observed_status;
}
