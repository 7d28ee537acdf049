/* Sequences and the pages of the KV cache that they hold. */
#include "model/model_internal.h"

#include <stdlib.h>

#define PAGE MODEL_KV_PAGE_TOKENS

/* ---- Pages ---- */

enum status model_open_pages(struct model *model, struct error *error)
{
    model->free_pages = calloc(model->n_pages, sizeof *model->free_pages);
    model->page_holders = calloc(model->n_pages, sizeof *model->page_holders);
    if (model->free_pages == NULL || model->page_holders == NULL)
        return error_memory(error, model->n_pages * sizeof *model->free_pages);
    for (uint32_t i = 0; i < model->n_pages; i++)
        model->free_pages[i] = model->n_pages - 1 - i;
    model->n_free_pages = model->n_pages;
    return STATUS_OK;
}

uint32_t model_page_count(const struct model *model)
{
    return model->n_pages;
}

uint32_t model_pages_free(const struct model *model)
{
    return model->n_free_pages;
}

void model_page_hold(struct model *model, uint32_t page)
{
    model->page_holders[page]++;
}

void model_page_release(struct model *model, uint32_t page)
{
    if (--model->page_holders[page] == 0)
        model->free_pages[model->n_free_pages++] = page;
}

uint32_t model_page_holders(const struct model *model, uint32_t page)
{
    return model->page_holders[page];
}

/* ---- What a page holds ---- */

size_t model_page_bytes(const struct model *model)
{
    size_t bytes = 0;
    if (model->slice.n_ranks > 1)
        return 0;
    for (uint32_t i = 0; i < model->desc->n_layers; i++)
        bytes += PAGE * (model->layers[i].k_row_bytes + model->layers[i].v_row_bytes);
    return bytes;
}

/* Windows and MLA make no difference: a page has the rows of all layers, whoever will read them. */
bool model_page_text(const struct model *model, struct buffer *out)
{
    bool stretched = model->desc->rope_scaling == MODEL_ROPE_SCALING_LONGROPE &&
                     model->n_ctx > model->desc->rope_ctx_orig; /* has other frequencies */
    return buffer_printf(out, "%s, %s, %zu bytes, %u tokens%s", model->backend->name,
                         quant_info(model->kv_format)->name, model_page_bytes(model),
                         (unsigned)PAGE, stretched ? ", stretched" : "");
}

/* Of the cache of a layer's keys (MLA: of all), or of its values. */
static struct device_ref page_of(const struct layer *layer, bool values, uint32_t page,
                                 size_t *n_bytes)
{
    *n_bytes = PAGE * (values ? layer->v_row_bytes : layer->k_row_bytes);
    return (struct device_ref){values ? layer->v_cache : layer->k_cache, page * *n_bytes};
}

enum status model_page_read(struct model *model, uint32_t page, void *data, struct error *error)
{
    size_t n_bytes;
    char *to = data;
    for (uint32_t i = 0; i < 2 * model->desc->n_layers; i++, to += n_bytes) {
        struct device_ref from = page_of(&model->layers[i / 2], i % 2 == 1, page, &n_bytes);
        if (n_bytes > 0 && model->backend->download(model->backend, to, from, n_bytes) != STATUS_OK)
            return error_memory(error, n_bytes);
    }
    return STATUS_OK;
}

void model_page_write(struct model *model, uint32_t page, const void *data)
{
    size_t n_bytes;
    const char *from = data;
    for (uint32_t i = 0; i < 2 * model->desc->n_layers; i++, from += n_bytes) {
        struct device_ref to = page_of(&model->layers[i / 2], i % 2 == 1, page, &n_bytes);
        if (n_bytes > 0)
            model->backend->upload(model->backend, to, from, n_bytes);
    }
}

/* ---- Giving pages away ---- */

static uint32_t take_page(struct model *model)
{
    uint32_t page = model->free_pages[--model->n_free_pages];
    model->page_holders[page] = 1;
    return page;
}

uint32_t model_page_take(struct model *model)
{
    return take_page(model);
}

/* Whatever the order of the bytes in the page. */
static void copy_cache(struct model *model, struct device_buffer *cache, size_t row_bytes,
                       uint32_t from, uint32_t to)
{
    uint32_t n_rows = PAGE / sizeof(float); /* each of sizeof(float) tokens: whole numbers */
    size_t page_bytes = row_bytes * PAGE;
    if (row_bytes == 0)
        return;
    struct op op = {.kind = OP_GATHER,
                    .gather = {.x = {cache, from * page_bytes},
                               .y = {cache, to * page_bytes},
                               .n = n_rows,
                               .n_cols = (uint32_t)row_bytes,
                               .x_stride = (uint32_t)row_bytes,
                               .y_stride = (uint32_t)row_bytes}};
    model->backend->run(model->backend, &op);
}

void model_copy_page(struct model *model, struct page_copy copy)
{
    struct span range = model->slice.layer_range;
    for (uint32_t i = range.begin; i < range.end; i++) {
        const struct layer *layer = &model->layers[i];
        copy_cache(model, layer->k_cache, layer->k_row_bytes, copy.from, copy.to);
        copy_cache(model, layer->v_cache, layer->v_row_bytes, copy.from, copy.to);
    }
}

/* ---- Sequences ---- */

enum status sequence_open(struct sequence **out, struct model *model, struct error *error)
{
    struct sequence *sequence = calloc(1, sizeof *sequence);
    if (sequence != NULL)
        sequence->pages = calloc(model_pages_for(model->n_ctx), sizeof *sequence->pages);
    *out = NULL;
    if (sequence == NULL || sequence->pages == NULL) {
        free(sequence);
        return error_memory(error, model->n_pages * sizeof *sequence->pages);
    }
    sequence->model = model;
    *out = sequence;
    return STATUS_OK;
}

void sequence_close(struct sequence *sequence)
{
    if (sequence == NULL)
        return;
    sequence_truncate(sequence, 0);
    steps_forget(sequence->model, sequence);
    free(sequence->pages);
    free(sequence);
}

uint32_t sequence_length(const struct sequence *sequence)
{
    return sequence->length;
}

void sequence_truncate(struct sequence *sequence, uint32_t length)
{
    sequence->length = MIN(length, sequence->length);
    while (sequence->n_pages > model_pages_for(sequence->length))
        model_page_release(sequence->model, sequence->pages[--sequence->n_pages]);
}

uint32_t sequence_page(const struct sequence *sequence, uint32_t index)
{
    return sequence->pages[index];
}

void sequence_adopt(struct sequence *sequence, uint32_t page, uint32_t n_tokens)
{
    model_page_hold(sequence->model, page);
    sequence->pages[sequence->n_pages++] = page;
    sequence->length += n_tokens;
}

void sequence_replace_page(struct sequence *sequence, uint32_t index, uint32_t page)
{
    model_page_hold(sequence->model, page);
    model_page_release(sequence->model, sequence->pages[index]);
    sequence->pages[index] = page;
}

/* Whether the next token goes to a page that others hold as well. */
static bool shares_end(const struct sequence *sequence)
{
    return sequence->length % PAGE != 0 &&
           sequence->model->page_holders[sequence->pages[sequence->n_pages - 1]] > 1;
}

uint32_t sequence_pages_needed(const struct sequence *sequence, size_t n_tokens)
{
    uint32_t pages = model_pages_for((uint64_t)sequence->length + n_tokens) - sequence->n_pages;
    return pages + (n_tokens > 0 && shares_end(sequence));
}

void sequence_take_pages(struct sequence *sequence, size_t n_tokens, struct step *step)
{
    struct model *model = sequence->model;
    uint32_t n_pages = model_pages_for((uint64_t)sequence->length + n_tokens);
    if (n_tokens > 0 && shares_end(sequence)) {
        uint32_t *last = &sequence->pages[sequence->n_pages - 1], copy = take_page(model);
        step->copies[step->n_copies++] = (struct page_copy){*last, copy};
        model_page_release(model, *last);
        *last = copy;
    }
    while (sequence->n_pages < n_pages)
        sequence->pages[sequence->n_pages++] = take_page(model);
}
