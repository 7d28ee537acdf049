/* Opening a model (memory first, then weights), sequences and their pages, and steps. */
#include "model/model_internal.h"

#include <math.h>
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

struct widths {
    size_t q, k, v, heads, ff, slots;
};

static struct widths widths_of(const struct model_desc *desc)
{
    struct widths widths = {.slots = MAX(desc->n_experts_used, 1)};
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    for (uint32_t i = 0; i < desc->n_layers; i++) {
        const struct model_layer_desc *layer = &desc->layers[i];
        size_t k = (size_t)layer->n_kv_heads * desc->head_k;
        widths.q = MAX(widths.q, (size_t)layer->n_heads * desc->head_k);
        widths.k = MAX(widths.k, mla ? desc->mla_kv_rank + desc->rope_dims : k);
        widths.v = MAX(widths.v, mla ? 0 : (size_t)layer->n_kv_heads * desc->head_v);
        widths.heads = MAX(widths.heads, (size_t)layer->n_heads);
        widths.ff = MAX(widths.ff, layer->n_ff);
    }
    widths.ff = MAX(widths.ff, MAX((size_t)desc->n_expert_ff * widths.slots, desc->n_shared_ff));
    return widths;
}

/* Entries of all page tables of a step: texts that share pages have each a table of its own. */
static size_t table_limit(const struct model *model)
{
    return (size_t)model_pages_for(model->n_ctx) * (model->desc->causal ? model->batch : 1) +
           model->batch;
}

static size_t lay_out(const struct model *model, struct device_buffer *buffer,
                      struct activations *at)
{
    const struct model_desc *desc = model->desc;
    struct layout layout = {buffer, 0};
    struct widths widths = widths_of(desc);
    size_t n = model->batch, embd = desc->n_embd;
    size_t latent = (size_t)desc->mla_kv_rank + desc->rope_dims;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    at->ids = region(&layout, n);
    at->positions = region(&layout, n);
    at->slots = region(&layout, n);
    at->visible = region(&layout, n);
    at->table_begin = region(&layout, n);
    at->wanted = region(&layout, n);
    at->zeros = region(&layout, n);
    at->tables = region(&layout, table_limit(model));
    at->temperatures = region(&layout, n);
    at->x = region(&layout, n * embd);
    at->h = region(&layout, MAX(n, MODEL_LOGITS_ROWS) * embd);
    at->out = region(&layout, n * embd);
    at->logits = region(&layout, (size_t)MODEL_LOGITS_ROWS * desc->n_vocab);

    /* A layer's attention and its feed-forward part follow each other, and share their memory. */
    struct layout mixer = layout;
    at->q = region(&mixer, n * widths.q);
    at->k = region(&mixer, n * widths.k);
    at->v = region(&mixer, n * widths.v);
    at->q_low = region(&mixer, n * desc->mla_q_rank);
    at->q_mla = region(&mixer, mla ? n * widths.heads * latent : 0);
    at->values = region(&mixer, mla ? n * widths.heads * desc->mla_kv_rank : 0);
    at->heads = region(&mixer, n * widths.heads * desc->head_v);

    at->gate = region(&layout, n * widths.ff);
    at->up = region(&layout, n * widths.ff);
    at->ffn = region(&layout, desc->n_experts > 0 ? n * embd : 0);
    at->expert_out = region(&layout, desc->n_experts > 0 ? n * widths.slots * embd : 0);
    at->router = region(&layout, n * desc->n_experts);
    at->expert_ids = region(&layout, n * widths.slots);
    at->expert_weights = region(&layout, n * widths.slots);
    at->shared_gate = region(&layout, n);
    return MAX(layout.size, mixer.size);
}

static enum status open_activations(struct model *model, struct error *error)
{
    struct backend *backend = model->backend;
    struct device_buffer *buffer = backend->alloc(backend, model->activation_bytes);
    enum status status = model_keep(model, buffer, model->activation_bytes, error);
    if (status != STATUS_OK)
        return status;
    lay_out(model, buffer, &model->at);
    int32_t *zeros = calloc(model->batch, sizeof *zeros);
    size_t n_ints = (size_t)model->batch * 6 + table_limit(model);
    model->step_ints = calloc(n_ints, sizeof *model->step_ints);
    model->step_floats = calloc(model->batch, sizeof *model->step_floats);
    if (zeros == NULL || model->step_ints == NULL || model->step_floats == NULL) {
        free(zeros);
        return error_memory(error, n_ints * sizeof *model->step_ints);
    }
    backend->upload(backend, model->at.zeros, zeros, model->batch * sizeof *zeros);
    free(zeros);
    return STATUS_OK;
}

/* ---- KV cache ---- */

static enum status open_cache(struct model *model, struct error *error)
{
    const struct model_desc *desc = model->desc;
    struct backend *backend = model->backend;
    size_t n_rows = (size_t)model->n_pages * MODEL_KV_PAGE_TOKENS;
    bool mla = desc->mixer == MODEL_MIXER_MLA;
    for (uint32_t i = 0; i < desc->n_layers; i++) {
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

/* What a backend needs beside the activations: the packed inputs of one product, twice where they
 * are brought together by expert, and one product. */
static uint64_t scratch_bytes(const struct model *model)
{
    struct widths widths = widths_of(model->desc);
    uint64_t numbers = widths.ff + widths.q + widths.slots * model->desc->n_embd;
    return 3 * sizeof(float) * numbers * model->batch;
}

static void set_batch(struct model *model, uint32_t batch)
{
    struct activations unused;
    model->batch = batch;
    model->activation_bytes = lay_out(model, NULL, &unused);
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
    bool panels = quant_packing(QUANT_Q8_0, MODEL_BATCH) == QUANT_PACKED_BF16;
    uint64_t limit = panels ? MODEL_BATCH_PANELS : MODEL_BATCH_MOST;
    uint64_t allowed = MAX(weights_size_bytes(model->weights) / 40, MODEL_BATCH_BYTES);
    uint64_t token_bytes = (model->activation_bytes + scratch_bytes(model)) / model->batch;
    uint64_t batch = allowed / token_bytes / 32 * 32;
    if (batch > MODEL_BATCH)
        set_batch(model, (uint32_t)MIN(batch, limit));
}

static uint64_t total_bytes(const struct model *model)
{
    uint64_t n_ctx = (uint64_t)model->n_pages * MODEL_KV_PAGE_TOKENS;
    return weights_size_bytes(model->weights) + model->activation_bytes + scratch_bytes(model) +
           model_kv_bytes(model->desc, n_ctx, model->kv_format);
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
    uint64_t page = model_kv_bytes(model->desc, MODEL_KV_PAGE_TOKENS, model->kv_format);
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

/* ---- Opening ---- */

/* Facts and memory, before anything is taken. */
static enum status prepare(struct model *model, const struct weights *weights,
                           const struct model_options *options, struct error *error)
{
    model->weights = weights;
    model->backend = options->backend;
    model->kv_format = options->kv_format;
    enum status status = quant_init(error);
    if (status == STATUS_OK)
        status = model_describe(&model->desc, model->weights, error);
    if (status == STATUS_OK)
        status = model_check_kv_format(model->desc, model->kv_format, error);
    if (status == STATUS_OK)
        status = choose_context(model, options, error);
    return status;
}

enum status model_plan(const struct weights *weights, const struct model_options *options,
                       uint32_t *n_ctx, struct error *error)
{
    struct model model = {0};
    enum status status = prepare(&model, weights, options, error);
    if (status == STATUS_OK)
        *n_ctx = model.n_ctx;
    model_desc_free(model.desc);
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

static enum status open_parts(struct model *model, const struct weights *weights,
                              const struct model_options *options, struct error *error)
{
    enum status status = prepare(model, weights, options, error);
    if (status == STATUS_OK)
        widen_cache(model, options);
    if (status == STATUS_OK && model->backend == NULL)
        status = open_backend(model, options, error);
    if (status == STATUS_OK)
        status = model_load(model, error);
    if (status == STATUS_OK)
        status = open_cache(model, error);
    if (status == STATUS_OK)
        status = open_activations(model, error);
    return status;
}

enum status model_open(struct model **out, const struct weights *weights,
                       const struct model_options *options, struct error *error)
{
    *out = NULL;
    struct model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return error_memory(error, sizeof *model);
    enum status status = open_parts(model, weights, options, error);
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
    for (size_t i = 0; i < model->n_buffers; i++)
        model->backend->free(model->backend, model->buffers[i]);
    if (model->owns_backend)
        model->backend->close(model->backend);
    free(model->buffers);
    free(model->layers);
    free(model->free_pages);
    free(model->page_holders);
    free(model->step_ints);
    free(model->step_floats);
    free(model->observed);
    model_desc_free(model->desc);
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

void model_observe(struct model *model, model_observer *observer, void *context)
{
    model->observer = observer;
    model->observer_context = context;
}

/* ---- Steps ---- */

static enum status check_step(const struct model *model, const struct step_segment *segments,
                              size_t n_segments, struct error *error)
{
    size_t n_tokens = 0, n_pages = 0;
    for (size_t s = 0; s < n_segments; s++) {
        const struct step_segment *segment = &segments[s];
        uint64_t end = (uint64_t)segment->sequence->length + segment->n_tokens;
        if (end > model->n_ctx)
            return error_set(error, STATUS_LIMIT,
                             "%llu tokens do not fit in the context of %u; open the model with a "
                             "larger --ctx",
                             (unsigned long long)end, model->n_ctx);
        if (!model->desc->causal && segment->sequence->length > 0)
            return error_set(error, STATUS_INVALID,
                             "a model that is not causal takes each text in one step");
        for (size_t i = 0; i < segment->n_tokens; i++)
            if (segment->tokens[i] < 0 || (uint32_t)segment->tokens[i] >= model->desc->n_vocab)
                return error_set(error, STATUS_INVALID,
                                 "token id %d is outside the vocabulary of %u", segment->tokens[i],
                                 model->desc->n_vocab);
        n_tokens += segment->n_tokens;
        n_pages += sequence_pages_needed(segment->sequence, segment->n_tokens);
    }
    if (n_tokens > model->batch)
        return error_set(error, STATUS_LIMIT, "a step of %zu tokens; at most %u can run at once",
                         n_tokens, model->batch);
    if (n_pages > model->n_free_pages)
        return error_set(error, STATUS_LIMIT, "the KV cache of %u tokens is full",
                         model->n_pages * MODEL_KV_PAGE_TOKENS);
    return STATUS_OK;
}

/* Host-side columns of a step, one number a token; tables are the segments' pages in a row. */
struct columns {
    int32_t *ids, *positions, *slots, *visible, *table_begin, *wanted, *tables;
    uint32_t n, n_wanted, n_tables;
};

static void fill_segment(struct columns *columns, const struct step_segment *segment, bool causal)
{
    const struct sequence *sequence = segment->sequence;
    uint32_t end = sequence->length + (uint32_t)segment->n_tokens;
    for (uint32_t i = 0; i < segment->n_tokens; i++) {
        uint32_t position = sequence->length + i, row = columns->n;
        uint32_t page = sequence->pages[position / MODEL_KV_PAGE_TOKENS];
        columns->ids[row] = segment->tokens[i];
        columns->positions[row] = (int32_t)position;
        columns->slots[row] =
            (int32_t)(page * MODEL_KV_PAGE_TOKENS + position % MODEL_KV_PAGE_TOKENS);
        columns->visible[row] = (int32_t)(causal ? position + 1 : end);
        columns->table_begin[row] = (int32_t)columns->n_tables;
        if (segment->n_tokens - i <= segment->n_logits)
            columns->wanted[columns->n_wanted++] = (int32_t)row;
        columns->n++;
    }
    for (uint32_t p = 0; p < sequence->n_pages; p++)
        columns->tables[columns->n_tables++] = (int32_t)sequence->pages[p];
}

static void upload_columns(struct model *model, const struct columns *columns)
{
    struct backend *backend = model->backend;
    const struct {
        struct device_ref to;
        const int32_t *from;
        uint32_t count;
    } parts[] = {
        {model->at.ids, columns->ids, columns->n},
        {model->at.positions, columns->positions, columns->n},
        {model->at.slots, columns->slots, columns->n},
        {model->at.visible, columns->visible, columns->n},
        {model->at.table_begin, columns->table_begin, columns->n},
        {model->at.wanted, columns->wanted, columns->n_wanted},
        {model->at.tables, columns->tables, columns->n_tables},
    };
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        if (parts[i].count > 0)
            backend->upload(backend, parts[i].to, parts[i].from, parts[i].count * sizeof(int32_t));
    uint32_t context = model->desc->temperature_ctx;
    if (context == 0)
        return;
    for (uint32_t i = 0; i < columns->n; i++)
        model->step_floats[i] =
            1.0f + model->desc->temperature_scale *
                       logf(floorf((float)(columns->positions[i] + 1) / (float)context) + 1.0f);
    backend->upload(backend, model->at.temperatures, model->step_floats,
                    columns->n * sizeof(float));
}

enum status model_step(struct model *model, const struct step_segment *segments, size_t n_segments,
                       float *logits, struct error *error)
{
    enum status status = check_step(model, segments, n_segments, error);
    if (status != STATUS_OK)
        return status;
    size_t n = model->batch;
    int32_t *ints = model->step_ints;
    struct columns columns = {.ids = ints,
                              .positions = ints + n,
                              .slots = ints + 2 * n,
                              .visible = ints + 3 * n,
                              .table_begin = ints + 4 * n,
                              .wanted = ints + 5 * n,
                              .tables = ints + 6 * n};
    for (size_t s = 0; s < n_segments; s++) {
        sequence_take_pages(segments[s].sequence, segments[s].n_tokens);
        fill_segment(&columns, &segments[s], model->desc->causal);
    }
    if (columns.n == 0)
        return STATUS_OK;
    upload_columns(model, &columns);
    struct step_plan plan = {.n = columns.n, .n_wanted = columns.n_wanted, .logits = logits};
    status = model_forward(model, &plan);
    if (status != STATUS_OK) {
        for (size_t s = 0; s < n_segments; s++) /* the pages that were taken go back */
            sequence_truncate(segments[s].sequence, segments[s].sequence->length);
        return error_set(error, status, "out of memory while computing a step of %u tokens",
                         columns.n);
    }
    for (size_t s = 0; s < n_segments; s++)
        segments[s].sequence->length += (uint32_t)segments[s].n_tokens;
    return STATUS_OK;
}
