/* Opening a model: memory first, then weights; with several ranks, each its slice. */
#include "model/model_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Activations ---- */

/* Lays regions out in one buffer: first with base NULL to count, then for real. */
struct layout {
    struct device_buffer *buffer;
    size_t size;
};

static struct device_ref region(struct layout *layout, size_t count)
{
    struct device_ref ref = {layout->buffer, layout->size};
    layout->size += (count * sizeof(float) + 63) / 64 * 64;
    return ref;
}

/* Numbers of a token, the most of all layers. */
struct widths {
    size_t q, k, v, q_own, k_own, heads, ff, expert_ff, slots, padded;
};

/* Columns that a weight of n_own columns takes where its border blocks are shared. */
static size_t padded_width(const struct model *model, uint32_t index, const char *suffix,
                           size_t n_own)
{
    char name[96];
    snprintf(name, sizeof name, "blk.%u.%s.weight", index, suffix);
    const struct weights_tensor *tensor = weights_find(model->weights, name);
    if (tensor == NULL)
        return 0;
    struct slice_cut cut = slice_cut(&model->slice, tensor);
    return cut.pad_before + cut.pad_after > 0 ? cut.pad_before + n_own + cut.pad_after : 0;
}

static void widen(struct widths *widths, const struct model *model, uint32_t index)
{
    const struct model_desc *desc = model->desc;
    const struct layer_slice *slice = &model->slice.layers[index];
    const struct model_layer_desc *whole = &desc->layers[index], *own = &model->part->layers[index];
    const struct model_layer_desc *qk = slice->whole_qk ? whole : own;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    size_t expert_ff = span_size(slice->expert_ff), shared_ff = span_size(slice->shared_ff);
    widths->q = MAX(widths->q, (size_t)qk->n_heads * desc->head_k);
    widths->k = MAX(widths->k, mla ? (size_t)desc->mla_kv_rank + desc->rope_dims
                                   : (size_t)qk->n_kv_heads * desc->head_k);
    widths->v = MAX(widths->v, mla ? 0 : (size_t)own->n_kv_heads * desc->head_v);
    if (slice->whole_qk) {
        widths->q_own = MAX(widths->q_own, (size_t)own->n_heads * desc->head_k);
        widths->k_own = MAX(widths->k_own, (size_t)own->n_kv_heads * desc->head_k);
    }
    widths->heads = MAX(widths->heads, (size_t)own->n_heads);
    widths->ff = MAX(widths->ff, MAX(own->n_ff, shared_ff));
    widths->expert_ff = MAX(widths->expert_ff, expert_ff * widths->slots);
    if (model->slice.n_shards == 1)
        return;
    const size_t padded[] = {
        padded_width(model, index, "attn_output", (size_t)own->n_heads * desc->head_v),
        padded_width(model, index, "ffn_down", own->n_ff),
        padded_width(model, index, "ffn_down_shexp", shared_ff),
        padded_width(model, index, "ffn_down_exps", expert_ff) * widths->slots,
    };
    for (size_t i = 0; i < ARRAY_COUNT(padded); i++)
        widths->padded = MAX(widths->padded, padded[i]);
}

static struct widths widths_of(const struct model *model)
{
    struct widths widths = {.slots = MAX(model->desc->n_experts_used, 1)};
    struct span range = model->slice.layer_range;
    for (uint32_t i = range.begin; i < range.end; i++)
        widen(&widths, model, i);
    return widths;
}

/* Numbers between gate, up and down of an FFN that is no expert. With panels those of a few tokens
 * are enough, as many tokens take a few columns at a time. */
static size_t ff_numbers(const struct model *model, const struct widths *widths)
{
    size_t n = model->batch, ff = widths->ff;
    return quant_has_panels() ? MAX(MIN(n, MODEL_FF_TOKENS) * ff, n * MIN(ff, MAX_BLOCK)) : n * ff;
}

struct sizes {
    size_t layers; /* what the layers need */
    size_t all;    /* with the logits, of which few rows are written as a rule */
};

static struct sizes lay_out(const struct model *model, struct device_buffer *buffer,
                            struct activations *at)
{
    const struct model_desc *desc = model->desc;
    struct layout layout = {buffer, 0};
    struct widths widths = widths_of(model);
    size_t n_gate = MAX(ff_numbers(model, &widths), model->batch * widths.expert_ff);
    size_t n = model->batch, embd = desc->n_embd;
    size_t latent = (size_t)desc->mla_kv_rank + desc->rope_dims;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    at->ids = region(&layout, n);
    at->positions = region(&layout, n);
    at->slots = region(&layout, n);
    at->visible = region(&layout, n);
    at->table_begin = region(&layout, n);
    at->wanted = region(&layout, n);
    at->zeros = region(&layout, MAX(n, MAX_BLOCK));
    at->tables = region(&layout, steps_tables(model));
    at->temperatures = region(&layout, n);
    at->x = region(&layout, n * embd);
    at->h = region(&layout, MAX(n, MODEL_LOGITS_ROWS) * embd);
    at->out = region(&layout, n * embd);
    at->padded = region(&layout, n * widths.padded);
    at->joint = region(&layout, desc->parallel ? n * embd : 0);

    /* A layer's attention, its feed-forward part and the logits follow each other, and share their
     * memory. */
    struct layout mixer = layout, end = layout;
    at->q = region(&mixer, n * widths.q);
    at->k = region(&mixer, n * widths.k);
    at->v = region(&mixer, n * widths.v);
    at->q_own = region(&mixer, n * widths.q_own);
    at->k_own = region(&mixer, n * widths.k_own);
    at->q_low = region(&mixer, n * desc->mla_q_rank);
    at->q_mla = region(&mixer, mla ? n * widths.heads * latent : 0);
    at->values = region(&mixer, mla ? n * widths.heads * desc->mla_kv_rank : 0);
    /* What h holds is read before attention, but for an FFN beside it. */
    size_t n_heads = widths.heads * desc->head_v;
    at->heads = n_heads <= embd && !desc->parallel ? at->h : region(&mixer, n * n_heads);

    at->gate = region(&layout, n_gate);
    at->up = region(&layout, n_gate);
    at->ffn = region(&layout, desc->n_experts > 0 ? n * embd : 0);
    at->expert_out = region(&layout, desc->n_experts > 0 ? n * widths.slots * embd : 0);
    at->router = region(&layout, n * desc->n_experts);
    at->expert_ids = region(&layout, n * widths.slots);
    at->expert_weights = region(&layout, n * widths.slots);
    at->shared_gate = region(&layout, n);

    if (model->slice.last)
        at->logits = region(&end, (size_t)MODEL_LOGITS_ROWS * span_size(model->slice.vocab));
    size_t layers = MAX(layout.size, mixer.size);
    return (struct sizes){layers, MAX(layers, end.size)};
}

static enum status open_activations(struct model *model, struct error *error)
{
    struct backend *backend = model->backend;
    struct device_buffer *buffer = backend->alloc(backend, model->activation_bytes);
    enum status status = model_keep(model, buffer, model->activation_bytes, error);
    if (status != STATUS_OK)
        return status;
    lay_out(model, buffer, &model->at);
    struct widths widths = widths_of(model);
    model->ff_numbers = ff_numbers(model, &widths);
    size_t n_zeros = MAX(model->batch, MAX_BLOCK);
    int32_t *zeros = calloc(n_zeros, sizeof *zeros);
    if (zeros == NULL)
        return error_memory(error, n_zeros * sizeof *zeros);
    backend->upload(backend, model->at.zeros, zeros, n_zeros * sizeof *zeros);
    free(zeros);
    return STATUS_OK;
}

/* ---- KV cache ---- */

static enum status open_cache(struct model *model, struct error *error)
{
    const struct model_desc *desc = model->part;
    struct span range = model->slice.layer_range;
    struct backend *backend = model->backend;
    size_t n_rows = (size_t)model->n_pages * MODEL_KV_PAGE_TOKENS;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    for (uint32_t i = range.begin; i < range.end; i++) {
        struct layer *layer = &model->layers[i];
        size_t n_kv = desc->layers[i].n_kv_heads;
        size_t head_k = mla ? desc->mla_kv_rank + desc->rope_dims : desc->head_k;
        layer->k_row_bytes = (mla ? 1 : n_kv) * quant_row_bytes(model->kv_format, head_k);
        layer->v_row_bytes = mla ? 0 : n_kv * quant_row_bytes(model->kv_format, desc->head_v);
        layer->k_cache = backend->alloc(backend, n_rows * layer->k_row_bytes);
        enum status status = model_keep(model, layer->k_cache, n_rows * layer->k_row_bytes, error);
        if (status == STATUS_OK && !mla) {
            layer->v_cache = backend->alloc(backend, n_rows * layer->v_row_bytes);
            status = model_keep(model, layer->v_cache, n_rows * layer->v_row_bytes, error);
        }
        if (status != STATUS_OK)
            return status;
    }
    return model_open_pages(model, error);
}

enum status model_check_kv_format(const struct model_desc *desc, enum quant_format format,
                                  struct error *error)
{
    if (format != QUANT_F32 && format != QUANT_F16 && format != QUANT_Q8_0)
        return error_set(error, STATUS_UNSUPPORTED, "the KV cache can be F32, F16 or Q8_0, not %s",
                         quant_info(format)->name);
    uint32_t block = quant_info(format)->block_len;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    uint32_t k = mla ? desc->rope_dims : desc->head_k, v = mla ? desc->mla_kv_rank : desc->head_v;
    if (k % block != 0 || v % block != 0)
        return error_set(error, STATUS_UNSUPPORTED,
                         "a %s KV cache needs heads of a multiple of %u numbers; this model's have "
                         "%u and %u: take F16",
                         quant_info(format)->name, block, k, v);
    return STATUS_OK;
}

/* ---- Memory ---- */

/* What a backend needs beside the activations: the packed inputs of one product, in two forms at
 * most, which in panels are small; where they are brought together by expert, these and the product
 * too. */
static uint64_t product_bytes(const struct model *model)
{
    struct widths widths = widths_of(model);
    size_t n = model->batch, embd = model->desc->n_embd, n_ff = ff_numbers(model, &widths);
    if (model->desc->n_experts == 0)
        return (quant_has_panels() ? 1 : 2) * sizeof(float) * MAX(n_ff, n * MAX(widths.q, embd));
    return 3 * sizeof(float) *
           (MAX(n_ff, n * widths.expert_ff) + n * (widths.q + widths.slots * embd));
}

static uint64_t scratch_bytes(const struct model *model)
{
    return product_bytes(model) + exchange_bytes(model);
}

static void set_batch(struct model *model, uint32_t batch)
{
    struct activations unused;
    model->batch = batch;
    model->activation_bytes = lay_out(model, NULL, &unused).all;
}

static uint64_t step_bytes(const struct model *model)
{
    struct activations unused;
    return lay_out(model, NULL, &unused).layers + product_bytes(model);
}

static void set_context(struct model *model, uint64_t n_ctx)
{
    model->n_ctx = (uint32_t)n_ctx;
    model->n_pages = model_pages_for(n_ctx);
    /* Without causality every token sees all others, so a text must fit in one step. */
    set_batch(model, model->desc->causal ? MODEL_BATCH : model->n_ctx);
    if (!model->desc->causal)
        return;
    /* More tokens share the unpacking of weights, as long as memory hardly grows. For a matrix unit
     * that takes as long as multiplying with some 150 inputs. */
    uint64_t limit = quant_has_panels() ? MODEL_BATCH_PANELS : MODEL_BATCH_MOST;
    uint64_t allowed = MAX(model->weight_bytes / 40, MODEL_BATCH_BYTES);
    set_batch(model, 1);
    uint64_t least = step_bytes(model);
    for (uint32_t batch = MODEL_BATCH; batch <= limit; batch += 32) {
        uint32_t smaller = model->batch;
        set_batch(model, batch);
        if (batch > MODEL_BATCH && step_bytes(model) - least > allowed) {
            set_batch(model, smaller);
            break;
        }
    }
}

/* Of a page of the cache, in all layers of the slice. */
static uint64_t page_bytes(const struct model *model)
{
    uint64_t bytes = 0;
    struct span range = model->slice.layer_range;
    for (uint32_t i = range.begin; i < range.end; i++)
        bytes += model_kv_row_bytes(model->part, &model->part->layers[i], model->kv_format);
    return bytes * MODEL_KV_PAGE_TOKENS;
}

static uint64_t total_bytes(const struct model *model)
{
    return model->weight_bytes + model->activation_bytes + scratch_bytes(model) +
           model->n_pages * page_bytes(model);
}

/* The largest context, in whole pages, with which the model takes at most limit bytes; 0: none. */
static uint64_t largest_context(struct model *model, uint64_t limit, uint64_t n_ctx)
{
    uint64_t low = 0, high = model_pages_for(n_ctx);
    while (low < high) {
        uint64_t middle = (low + high + 1) / 2;
        set_context(model, MIN(middle * MODEL_KV_PAGE_TOKENS, n_ctx));
        if (total_bytes(model) <= limit)
            low = middle;
        else
            high = middle - 1;
    }
    return MIN(low * MODEL_KV_PAGE_TOKENS, n_ctx);
}

/* What the model may take. */
static uint64_t memory_allowed(const struct model_options *options)
{
    struct machine machine;
    machine_query(&machine);
    return options->memory_bytes > 0 ? options->memory_bytes : machine.memory_free_bytes;
}

/* Pages for several sequences, as long as memory is left for others. */
static void widen_cache(struct model *model, const struct model_options *options)
{
    uint64_t allowed = memory_allowed(options) / 4 * 3, used = total_bytes(model);
    uint64_t page = page_bytes(model);
    uint64_t wanted = MIN(options->n_cache, MODEL_MAX_CTX) / MODEL_KV_PAGE_TOKENS;
    uint64_t more = used < allowed && page > 0 ? (allowed - used) / page : 0;
    if (wanted > model->n_pages)
        model->n_pages += (uint32_t)MIN(wanted - model->n_pages, more);
}

/* What would fit instead of n_ctx tokens, of which fits do. A cache of Q8_0 takes half of F16's. */
static enum status refuse_context(struct model *model, uint64_t n_ctx, uint64_t fits,
                                  uint64_t available, struct error *error)
{
    char other[64] = "", a[32], b[32];
    set_context(model, n_ctx);
    uint64_t needed = total_bytes(model);
    if (model->kv_format != QUANT_Q8_0 &&
        model_check_kv_format(model->desc, QUANT_Q8_0, NULL) == STATUS_OK) {
        model->kv_format = QUANT_Q8_0;
        snprintf(other, sizeof other, ", or %llu with --kv-type q8_0",
                 (unsigned long long)largest_context(model, available, n_ctx));
    }
    return error_set(error, STATUS_MEMORY,
                     "a context of %llu needs %s and %s are free; the largest that fits is --ctx "
                     "%llu%s",
                     (unsigned long long)n_ctx, size_text(a, (double)needed),
                     size_text(b, (double)available), (unsigned long long)fits, other);
}

static enum status fit_context(struct model *model, const struct model_options *options,
                               uint64_t n_ctx, struct error *error)
{
    set_context(model, n_ctx);
    uint64_t available = memory_allowed(options);
    if (total_bytes(model) <= available || options->ignore_memory)
        return STATUS_OK;
    uint64_t fits = largest_context(model, available, n_ctx);
    if (fits == 0) {
        char a[32], b[32];
        set_context(model, 1);
        return error_set(error, STATUS_MEMORY,
                         "the model needs %s even with the smallest context and %s are free; it "
                         "would swap. Close other programs, take a smaller file, or load it all "
                         "the same with --ignore-memory",
                         size_text(a, (double)total_bytes(model)), size_text(b, (double)available));
    }
    if (options->n_ctx > 0 || fits < MIN(options->n_ctx_least, n_ctx))
        return refuse_context(model, n_ctx, fits, available, error);
    set_context(model, fits);
    return STATUS_OK;
}

static enum status choose_context(struct model *model, const struct model_options *options,
                                  struct error *error)
{
    /* Learned positions end; a bidirectional model holds a whole text in one step. */
    bool positions_end =
        !model->desc->causal || weights_find(model->weights, "position_embd.weight") != NULL;
    uint64_t n_ctx = options->n_ctx > 0 ? options->n_ctx : model->desc->n_ctx_train;
    if (positions_end && n_ctx > model->desc->n_ctx_train)
        return error_set(error, STATUS_INVALID,
                         "a context of %llu was asked for; this model has positions for %u",
                         (unsigned long long)n_ctx, model->desc->n_ctx_train);
    if (n_ctx > MODEL_MAX_CTX)
        return error_set(error, STATUS_INVALID,
                         "a context of %llu was asked for; at most %u can be used",
                         (unsigned long long)n_ctx, MODEL_MAX_CTX);
    return fit_context(model, options, n_ctx, error);
}

/* ---- Opening ----------------------------------------------------------------------------- */

/* The facts as this rank's slice has them. */
static enum status describe_part(struct model *model, struct error *error)
{
    model->part = malloc(sizeof *model->part);
    if (model->part == NULL)
        return error_memory(error, sizeof *model->part);
    *model->part = *model->desc;
    struct span range = model->slice.layer_range;
    for (uint32_t i = range.begin; i < range.end; i++) {
        const struct layer_slice *slice = &model->slice.layers[i];
        struct model_layer_desc *layer = &model->part->layers[i];
        layer->n_heads = span_size(slice->heads);
        layer->n_kv_heads = span_size(slice->kv_heads);
        layer->n_ff = span_size(slice->ff);
    }
    return STATUS_OK;
}

/* The model and this rank's slice of it. */
static enum status prepare(struct model *model, const struct weights *weights,
                           const struct model_options *options, uint32_t rank, struct error *error)
{
    model->weights = weights;
    model->backend = options->backend;
    model->kv_format = options->kv_format;
    enum status status = quant_init(error);
    if (status == STATUS_OK)
        status = model_describe(&model->desc, model->weights, error);
    if (status == STATUS_OK)
        status = slice_open(&model->slice, model->desc, options->placement, rank, weights, error);
    if (status == STATUS_OK)
        status = describe_part(model, error);
    if (status == STATUS_OK)
        model->weight_bytes = model->slice.n_ranks == 1
                                  ? weights_size_bytes(weights)
                                  : slice_weight_bytes(&model->slice, weights);
    return status;
}

/* What the owner decides, before anything is taken. */
static enum status choose(struct model *model, const struct model_options *options,
                          struct error *error)
{
    enum status status = model_check_kv_format(model->desc, model->kv_format, error);
    if (status == STATUS_OK)
        status = choose_context(model, options, error);
    if (status == STATUS_OK)
        widen_cache(model, options);
    /* Several pieces of a step go through a pipeline at once. */
    model->piece = quant_has_panels() ? MODEL_PIECE_PANELS : MODEL_PIECE;
    if (model->slice.n_stages == 1)
        model->piece = model->batch;
    return status;
}

static void forget(struct model *model)
{
    slice_close(&model->slice);
    model_desc_free(model->part);
    model_desc_free(model->desc);
}

static uint32_t rank_of(const struct model_options *options)
{
    if (options->comm != NULL)
        return options->comm->rank;
    return options->placement != NULL && options->placement->n_stages > 0
               ? model_placement_owner(options->placement)
               : 0;
}

enum status model_plan(const struct weights *weights, const struct model_options *options,
                       uint32_t *n_ctx, struct error *error)
{
    struct model model = {0};
    enum status status = prepare(&model, weights, options, rank_of(options), error);
    if (status == STATUS_OK)
        status = choose(&model, options, error);
    if (status == STATUS_OK)
        *n_ctx = model.n_ctx;
    forget(&model);
    return status;
}

enum status model_rank_memory(const struct weights *weights, const struct model_options *options,
                              uint32_t rank, struct model_memory *memory, struct error *error)
{
    struct model model = {0};
    enum status status = prepare(&model, weights, options, rank, error);
    if (status == STATUS_OK) {
        struct model_options all = *options;
        all.ignore_memory = true;
        all.memory_bytes = UINT64_MAX;
        status = choose(&model, &all, error);
    }
    if (status == STATUS_OK)
        *memory = (struct model_memory){
            .weights_bytes = model.weight_bytes,
            .kv_bytes = model.n_pages * page_bytes(&model),
            .work_bytes = model.activation_bytes + scratch_bytes(&model),
        };
    forget(&model);
    return status;
}

static enum status open_backend(struct model *model, const struct model_options *options,
                                struct error *error)
{
    struct machine machine;
    machine_query(&machine);
    unsigned n_threads = options->n_threads > 0 ? options->n_threads : machine.physical_cores;
    enum status status = backend_cpu_open(&model->backend, n_threads, options->pool, error);
    model->owns_backend = status == STATUS_OK;
    return status;
}

/* Everything whose size is known now. */
static enum status open_parts(struct model *model, const struct model_options *options,
                              struct error *error)
{
    enum status status = STATUS_OK;
    if (model->backend == NULL)
        status = open_backend(model, options, error);
    if (status == STATUS_OK)
        status = model_load(model, error);
    if (status == STATUS_OK)
        status = open_cache(model, error);
    if (status == STATUS_OK)
        status = open_activations(model, error);
    if (status == STATUS_OK)
        status = exchange_open(model, error);
    if (status == STATUS_OK)
        status = steps_open(model, error);
    return status;
}

/* The owner's sizes, and whether there is memory for them here. */
static enum status take_terms(struct model *model, const struct model_options *options,
                              struct error *error)
{
    enum status status = ranks_take_terms(model, error);
    if (status != STATUS_OK)
        return status;
    set_batch(model, model->batch);
    uint64_t available = memory_allowed(options), needed = total_bytes(model);
    if (needed <= available || options->ignore_memory)
        return STATUS_OK;
    char a[32], b[32];
    return error_set(error, STATUS_MEMORY, "its part of the model needs %s and %s are free",
                     size_text(a, (double)needed), size_text(b, (double)available));
}

static enum status check_comm(const struct model *model, const struct comm *comm,
                              struct error *error)
{
    uint32_t n = comm != NULL ? comm->n_ranks : 1;
    if (n != model->slice.n_ranks)
        return error_set(error, STATUS_INVALID, "%u ranks for a placement that has %u", n,
                         model->slice.n_ranks);
    return STATUS_OK;
}

static enum status open_ranks(struct model *model, const struct model_options *options,
                              enum status status, struct error *error)
{
    bool owner = model->slice.rank == model->slice.owner;
    if (owner)
        status = ranks_send_terms(model, status, error);
    else
        status = take_terms(model, options, error);
    model->followed = owner && status == STATUS_OK;
    bool agreed = status != STATUS_LOST && !(owner && status != STATUS_OK);
    if (status == STATUS_OK)
        status = open_parts(model, options, error);
    return agreed ? ranks_report(model, status, error) : status;
}

static enum status open_model(struct model *model, const struct weights *weights,
                              const struct model_options *options, struct error *error)
{
    enum status status = prepare(model, weights, options, rank_of(options), error);
    if (status == STATUS_OK)
        status = check_comm(model, options->comm, error);
    if (status != STATUS_OK)
        return status;
    bool alone = model->slice.n_ranks == 1;
    if (options->placement != NULL)
        slice_prefetch(&model->slice, weights);
    if (!alone)
        model->exchange.comm = options->comm;
    if (alone || model->slice.rank == model->slice.owner)
        status = choose(model, options, error);
    if (!alone)
        return open_ranks(model, options, status, error);
    return status == STATUS_OK ? open_parts(model, options, error) : status;
}

enum status model_open(struct model **out, const struct weights *weights,
                       const struct model_options *options, struct error *error)
{
    *out = NULL;
    struct model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return error_memory(error, sizeof *model);
    struct error local = {0};
    enum status status = open_model(model, weights, options, error != NULL ? error : &local);
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *out = model;
    return STATUS_OK;
}

void model_close(struct model *model)
{
    if (model == NULL)
        return;
    steps_close(model);
    exchange_close(model);
    for (size_t i = 0; i < model->n_buffers; i++)
        model->backend->free(model->backend, model->buffers[i]);
    if (model->owns_backend)
        model->backend->close(model->backend);
    free(model->buffers);
    free(model->layers);
    free(model->free_pages);
    free(model->page_holders);
    free(model->observed);
    forget(model);
    free(model);
}

const struct model_desc *model_description(const struct model *model)
{
    return model->desc;
}

uint32_t model_n_ctx(const struct model *model)
{
    return model->n_ctx;
}

struct backend *model_backend(struct model *model)
{
    return model->backend;
}

unsigned model_n_threads(const struct model *model)
{
    return model->backend->n_threads;
}

struct pool *model_pool(const struct model *model)
{
    return model->backend->pool;
}

uint64_t model_memory_bytes(const struct model *model)
{
    return total_bytes(model);
}

enum quant_format model_kv_format(const struct model *model)
{
    return model->kv_format;
}

size_t model_batch_limit(const struct model *model)
{
    return model->batch;
}

uint32_t model_n_stages(const struct model *model)
{
    return model->slice.n_stages;
}

void model_observe(struct model *model, model_observer *observer, void *context)
{
    model->observer = observer;
    model->observer_context = context;
}
