/* Steps: from segments to what goes to the device, and over several ranks.
 *
 * The owner sends each step to all other ranks, who compute the same step over their slices
 * (model_follow). A step is under way from the moment it is sent; the owner, who is in the last
 * stage, computes its own part when the step ends, so that earlier stages are meanwhile at the
 * steps that follow. Then it also sends the step to the shards of its own stage, to whom it sends
 * sums as well. All ranks go through all steps in the same order.
 *
 * A message, in 32-bit words in the order of the machine (all are little-endian):
 *
 *   kind (1 step, 2 end)  bytes of the message  parts  tokens  pages  copies  pieces
 *   parts   first position, tokens, logits, pages             of each sequence
 *   pages   the page tables of the parts, in a row
 *   copies  from, to                                          pages to copy before the step
 *   ids     of the tokens, in a row
 *
 * The first FRAME_BYTES always go, the rest, where there is more, in a second message. What is sent
 * before the step's turn must not fill the way to a rank that is not yet reading: where it would,
 * the steps before it are computed first. */
#include "model/model_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_BYTES 1024

enum message_kind { MESSAGE_STEP = 1, MESSAGE_END };

struct message_head {
    uint32_t kind, bytes, n_parts, n, n_pages, n_copies, n_pieces;
};
_Static_assert(sizeof(struct message_head) == 28, "as on the wire");
_Static_assert(sizeof(struct step_part) == 16, "as on the wire");
_Static_assert(sizeof(struct page_copy) == 8, "as on the wire");

/* ---- Memory ---- */

/* Texts that share pages have each a table of its own. */
size_t steps_tables(const struct model *model)
{
    return (size_t)model_pages_for(model->n_ctx) * (model->desc->causal ? model->batch : 1) +
           model->batch;
}

static size_t message_bytes(uint64_t n_parts, uint64_t n, uint64_t n_pages, uint64_t n_copies)
{
    return (size_t)(sizeof(struct message_head) + n_parts * sizeof(struct step_part) +
                    n_pages * sizeof(uint32_t) + n_copies * sizeof(struct page_copy) +
                    n * sizeof(int32_t));
}

static enum status open_step(struct model *model, struct step *step, struct error *error)
{
    size_t n = model->batch, n_tables = steps_tables(model);
    step->ids = calloc(n, sizeof *step->ids);
    step->pages = calloc(n_tables, sizeof *step->pages);
    step->parts = calloc(n, sizeof *step->parts);
    step->copies = calloc(n, sizeof *step->copies);
    step->sequences = calloc(n, sizeof *step->sequences);
    if (step->ids == NULL || step->pages == NULL || step->parts == NULL || step->copies == NULL ||
        step->sequences == NULL)
        return error_memory(error, n_tables * sizeof *step->pages);
    return STATUS_OK;
}

enum status steps_open(struct model *model, struct error *error)
{
    size_t n_ints = (size_t)model->batch * 6 + steps_tables(model);
    bool owner = model->slice.rank == model->slice.owner;
    model->most_steps = owner && model->slice.n_stages > 1 ? MODEL_MAX_STEPS : 1;
    model->steps = calloc(model->most_steps, sizeof *model->steps);
    model->step_ints = calloc(n_ints, sizeof *model->step_ints);
    model->step_floats = calloc(model->batch, sizeof *model->step_floats);
    if (model->steps == NULL || model->step_ints == NULL || model->step_floats == NULL)
        return error_memory(error, n_ints * sizeof *model->step_ints);
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < model->most_steps && status == STATUS_OK; i++)
        status = open_step(model, &model->steps[i], error);
    if (status != STATUS_OK || model->exchange.comm == NULL)
        return status;
    model->message_limit =
        MAX(message_bytes(model->batch, model->batch, steps_tables(model), model->batch),
            (size_t)FRAME_BYTES);
    model->message = calloc(1, model->message_limit);
    return model->message != NULL ? STATUS_OK : error_memory(error, model->message_limit);
}

/* ---- Columns ---- */

/* Host-side columns of a step, one number a token; tables are the parts' pages in a row. */
struct columns {
    int32_t *ids, *positions, *slots, *visible, *table_begin, *wanted, *tables;
    uint32_t n, n_wanted, n_tables;
};

static void fill_part(struct columns *columns, const struct step_part *part, const uint32_t *pages,
                      bool causal)
{
    uint32_t end = part->first + part->n_tokens;
    for (uint32_t i = 0; i < part->n_tokens; i++) {
        uint32_t position = part->first + i, row = columns->n;
        uint32_t page = pages[position / MODEL_KV_PAGE_TOKENS];
        columns->positions[row] = (int32_t)position;
        columns->slots[row] =
            (int32_t)(page * MODEL_KV_PAGE_TOKENS + position % MODEL_KV_PAGE_TOKENS);
        columns->visible[row] = (int32_t)(causal ? position + 1 : end);
        columns->table_begin[row] = (int32_t)columns->n_tables;
        if (part->n_tokens - i <= part->n_logits)
            columns->wanted[columns->n_wanted++] = (int32_t)row;
        columns->n++;
    }
    for (uint32_t p = 0; p < part->n_pages; p++)
        columns->tables[columns->n_tables++] = (int32_t)pages[p];
}

static struct columns columns_of(struct model *model, const struct step *step)
{
    size_t n = model->batch;
    int32_t *ints = model->step_ints;
    struct columns columns = {.ids = step->ids,
                              .positions = ints + n,
                              .slots = ints + 2 * n,
                              .visible = ints + 3 * n,
                              .table_begin = ints + 4 * n,
                              .wanted = ints + 5 * n,
                              .tables = ints + 6 * n};
    const uint32_t *pages = step->pages;
    for (uint32_t p = 0; p < step->n_parts; pages += step->parts[p++].n_pages)
        fill_part(&columns, &step->parts[p], pages, model->desc->causal);
    return columns;
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

/* This rank's part of a step. */
static enum status compute(struct model *model, const struct step *step)
{
    for (uint32_t i = 0; i < step->n_copies; i++)
        model_copy_page(model, step->copies[i]);
    struct columns columns = columns_of(model, step);
    upload_columns(model, &columns);
    struct step_plan plan = {
        .n = columns.n,
        .n_pieces = step->n_pieces,
        .n_wanted = columns.n_wanted,
        .logits = step->logits,
    };
    return model_forward(model, &plan);
}

/* ---- Beginning ---- */

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

static void add_segment(struct step *step, const struct step_segment *segment)
{
    struct sequence *sequence = segment->sequence;
    sequence_take_pages(sequence, segment->n_tokens, step);
    step->sequences[step->n_parts] = sequence;
    step->parts[step->n_parts++] = (struct step_part){
        .first = sequence->length,
        .n_tokens = (uint32_t)segment->n_tokens,
        .n_logits = (uint32_t)MIN(segment->n_logits, segment->n_tokens),
        .n_pages = sequence->n_pages,
    };
    memcpy(step->ids + step->n, segment->tokens, segment->n_tokens * sizeof *step->ids);
    memcpy(step->pages + step->n_pages, sequence->pages, sequence->n_pages * sizeof *step->pages);
    step->n += (uint32_t)segment->n_tokens;
    step->n_pages += sequence->n_pages;
    sequence->length += (uint32_t)segment->n_tokens;
}

static void put(unsigned char **to, const void *from, size_t size)
{
    if (size > 0)
        memcpy(*to, from, size);
    *to += size;
}

/* To the other shards of the owner's stage, or to all other stages. */
static bool send_bytes(struct model *model, const unsigned char *data, size_t size, bool own_stage)
{
    const struct slice *slice = &model->slice;
    struct comm_transfer transfers[64];
    size_t n = 0;
    for (uint32_t r = 0; r < slice->n_ranks; r++) {
        if (r == slice->rank || (r >= slice->first_rank) != own_stage)
            continue;
        transfers[n++] = (struct comm_transfer){.rank = r, .out = data, .out_bytes = size};
        if (n == ARRAY_COUNT(transfers)) {
            if (!exchange_call(model, transfers, n))
                return false;
            n = 0;
        }
    }
    return exchange_call(model, transfers, n);
}

static void send_step(struct model *model, struct step *step, bool own_stage)
{
    struct message_head head = {
        .kind = MESSAGE_STEP,
        .bytes = (uint32_t)message_bytes(step->n_parts, step->n, step->n_pages, step->n_copies),
        .n_parts = step->n_parts,
        .n = step->n,
        .n_pages = step->n_pages,
        .n_copies = step->n_copies,
        .n_pieces = step->n_pieces,
    };
    unsigned char *to = model->message;
    put(&to, &head, sizeof head);
    put(&to, step->parts, step->n_parts * sizeof *step->parts);
    put(&to, step->pages, step->n_pages * sizeof *step->pages);
    put(&to, step->copies, step->n_copies * sizeof *step->copies);
    put(&to, step->ids, step->n * sizeof *step->ids);
    step->message_bytes = MAX(head.bytes, (uint32_t)FRAME_BYTES);
    /* What of the message is left goes behind the frame: a call of exchange names a rank once. */
    if (send_bytes(model, model->message, FRAME_BYTES, own_stage) && head.bytes > FRAME_BYTES)
        send_bytes(model, model->message + FRAME_BYTES, head.bytes - FRAME_BYTES, own_stage);
}

static struct step *step_at(struct model *model, uint32_t index)
{
    return &model->steps[(model->first_step + index) % model->most_steps];
}

/* Takes back what the step, and those after it, have added to their sequences. */
static void take_back(struct model *model, uint32_t index, enum status status)
{
    for (; index < model->n_steps; index++) {
        struct step *step = step_at(model, index);
        step->status = status;
        for (uint32_t p = 0; p < step->n_parts; p++)
            if (step->sequences[p] != NULL)
                sequence_truncate(step->sequences[p], step->parts[p].first);
    }
}

/* Computes the owner's part of the steps before number end. */
static void compute_until(struct model *model, uint32_t end)
{
    for (uint32_t i = 0; i < end; i++) {
        struct step *step = step_at(model, i);
        if (step->done)
            continue;
        enum status status = STATUS_OK;
        if (step->n > 0 && model->slice.n_shards > 1)
            send_step(model, step, true);
        if (step->n > 0)
            status = compute(model, step);
        step->done = true;
        if (status == STATUS_MEMORY && model->slice.n_ranks > 1)
            status = exchange_give_up(model);
        if (status != STATUS_OK)
            take_back(model, i, status);
    }
}

/* Whether the way to a rank that is busy has room for another message. */
static bool has_room(struct model *model, const struct step *step)
{
    size_t bytes = message_bytes(step->n_parts, step->n, step->n_pages, step->n_copies);
    bytes = MAX(bytes, (size_t)FRAME_BYTES);
    for (uint32_t i = 0; i < model->n_steps; i++)
        if (!step_at(model, i)->done)
            bytes += step_at(model, i)->message_bytes;
    return bytes <= COMM_EAGER_BYTES;
}

static enum status fail_lost(const struct model *model, struct error *error)
{
    return error_set(error, STATUS_LOST, "%s", model->exchange.error.text);
}

enum status model_step_begin(struct model *model, const struct step_segment *segments,
                             size_t n_segments, float *logits, struct error *error)
{
    if (model->exchange.lost)
        return fail_lost(model, error);
    if (model->n_steps == model->most_steps)
        return error_set(error, STATUS_BUSY, "%u steps are under way already", model->n_steps);
    enum status status = check_step(model, segments, n_segments, error);
    if (status != STATUS_OK)
        return status;
    struct step *step = step_at(model, model->n_steps);
    step->n = step->n_parts = step->n_pages = step->n_copies = 0;
    step->message_bytes = 0;
    step->done = false;
    step->status = STATUS_OK;
    step->logits = logits;
    for (size_t s = 0; s < n_segments; s++)
        if (segments[s].n_tokens > 0)
            add_segment(step, &segments[s]);
    /* Where other steps keep the stages busy, and weights are unpacked for each piece, one is
     * best. */
    bool split = model->n_steps == 0 || quant_packing(QUANT_Q8_0, step->n) != QUANT_PACKED_BF16;
    step->n_pieces = split ? MAX(step->n / model->piece, 1) : 1;
    if (model->slice.n_stages > 1 && step->n > 0) {
        if (model->n_steps > 0 && !has_room(model, step))
            compute_until(model, model->n_steps);
        send_step(model, step, false);
    }
    model->n_steps++;
    if (model->exchange.lost) {
        take_back(model, model->n_steps - 1, STATUS_LOST);
        model->n_steps--;
        return fail_lost(model, error);
    }
    return STATUS_OK;
}

/* ---- Ending ---- */

enum status model_step_end(struct model *model, struct error *error)
{
    if (model->n_steps == 0)
        return error_set(error, STATUS_INVALID, "no step is under way");
    struct step *step = step_at(model, 0);
    compute_until(model, 1);
    model->first_step = (model->first_step + 1) % model->most_steps;
    model->n_steps--;
    if (step->status == STATUS_LOST)
        return fail_lost(model, error);
    if (step->status != STATUS_OK)
        return error_set(error, step->status, "out of memory while computing a step of %u tokens",
                         step->n);
    return STATUS_OK;
}

enum status model_step(struct model *model, const struct step_segment *segments, size_t n_segments,
                       float *logits, struct error *error)
{
    if (model->n_steps > 0)
        return error_set(error, STATUS_BUSY, "%u steps are under way", model->n_steps);
    enum status status = model_step_begin(model, segments, n_segments, logits, error);
    return status == STATUS_OK ? model_step_end(model, error) : status;
}

uint32_t model_steps_most(const struct model *model)
{
    return model->most_steps;
}

uint32_t model_steps_under_way(const struct model *model)
{
    return model->n_steps;
}

void steps_forget(struct model *model, const struct sequence *sequence)
{
    for (uint32_t i = 0; i < model->n_steps; i++) {
        struct step *step = step_at(model, i);
        for (uint32_t p = 0; p < step->n_parts; p++)
            if (step->sequences[p] == sequence)
                step->sequences[p] = NULL;
    }
}

void steps_close(struct model *model)
{
    if (model->followed && !model->exchange.lost) {
        compute_until(model, model->n_steps);
        struct message_head head = {.kind = MESSAGE_END, .bytes = sizeof head};
        /* A model that failed while it opened may have no message. */
        unsigned char frame[FRAME_BYTES] = {0};
        memcpy(frame, &head, sizeof head);
        send_bytes(model, frame, sizeof frame, true);
        send_bytes(model, frame, sizeof frame, false);
    }
    for (uint32_t i = 0; i < model->most_steps && model->steps != NULL; i++) {
        free(model->steps[i].ids);
        free(model->steps[i].pages);
        free(model->steps[i].parts);
        free(model->steps[i].copies);
        free(model->steps[i].sequences);
    }
    free(model->steps);
    free(model->message);
    free(model->step_ints);
    free(model->step_floats);
}

/* ---- Following ---- */

/* Whether the parts fit the step's counts and this model. */
static bool parts_fit(const struct model *model, const struct step *step)
{
    uint64_t n = 0, n_pages = 0;
    for (uint32_t p = 0; p < step->n_parts; p++) {
        const struct step_part *part = &step->parts[p];
        uint64_t end = (uint64_t)part->first + part->n_tokens;
        if (part->n_tokens == 0 || part->n_logits > part->n_tokens || end > model->n_ctx ||
            part->n_pages < model_pages_for(end))
            return false;
        n += part->n_tokens;
        n_pages += part->n_pages;
    }
    return n == step->n && n_pages == step->n_pages;
}

static bool numbers_fit(const struct model *model, const struct step *step)
{
    bool fit = true;
    for (uint32_t i = 0; i < step->n_pages; i++)
        fit = fit && step->pages[i] < model->n_pages;
    for (uint32_t i = 0; i < step->n_copies; i++)
        fit = fit && step->copies[i].from < model->n_pages && step->copies[i].to < model->n_pages;
    for (uint32_t i = 0; i < step->n; i++)
        fit = fit && step->ids[i] >= 0 && (uint32_t)step->ids[i] < model->desc->n_vocab;
    return fit;
}

static void take(const unsigned char **from, void *to, size_t size)
{
    if (size > 0)
        memcpy(to, *from, size);
    *from += size;
}

static bool head_fits(const struct model *model, const unsigned char *message, size_t *bytes)
{
    struct message_head head;
    memcpy(&head, message, sizeof head);
    *bytes = head.bytes;
    if (head.kind == MESSAGE_END)
        return head.bytes == sizeof head;
    return head.kind == MESSAGE_STEP && head.n <= model->batch && head.n_parts <= model->batch &&
           head.n_copies <= model->batch && head.n_pieces >= 1 && head.n_pieces <= head.n &&
           head.n_pages <= steps_tables(model) &&
           head.bytes == message_bytes(head.n_parts, head.n, head.n_pages, head.n_copies);
}

static bool read_step(const struct model *model, const unsigned char *message, struct step *step)
{
    struct message_head head;
    take(&message, &head, sizeof head);
    step->n_parts = head.n_parts;
    step->n = head.n;
    step->n_pages = head.n_pages;
    step->n_copies = head.n_copies;
    step->n_pieces = head.n_pieces;
    take(&message, step->parts, head.n_parts * sizeof *step->parts);
    take(&message, step->pages, head.n_pages * sizeof *step->pages);
    take(&message, step->copies, head.n_copies * sizeof *step->copies);
    take(&message, step->ids, head.n * sizeof *step->ids);
    return parts_fit(model, step) && numbers_fit(model, step);
}

static bool receive(struct model *model, size_t begin, size_t end)
{
    struct comm_transfer transfer = {
        .rank = model->slice.owner, .in = model->message + begin, .in_bytes = end - begin};
    return exchange_call(model, &transfer, 1);
}

enum status model_follow(struct model *model, struct error *error)
{
    struct step *step = model->steps;
    size_t bytes;
    if (model->slice.rank == model->slice.owner)
        return error_set(error, STATUS_INVALID, "the owner of a model leads its steps");
    for (;;) {
        if (!receive(model, 0, FRAME_BYTES))
            return fail_lost(model, error);
        bool fits = head_fits(model, model->message, &bytes);
        if (fits && bytes == sizeof(struct message_head))
            return STATUS_OK;
        if (fits && bytes > FRAME_BYTES && !receive(model, FRAME_BYTES, bytes))
            return fail_lost(model, error);
        if (!fits || !read_step(model, model->message, step))
            return error_set(error, STATUS_INVALID, "a step of another rank makes no sense");
        enum status status = compute(model, step);
        if (status == STATUS_LOST)
            return fail_lost(model, error);
        if (status != STATUS_OK)
            return error_set(error, status, "out of memory while computing a step of %u tokens",
                             step->n);
    }
}
