/* What ranks send each other while they compute, over struct comm.
 *
 *   within a stage, twice a layer   every shard's part of a sum, to all (exchange_sum)
 *   before the first layer          the embedded rows, from shard 0 to the others
 *   between stages                  hidden rows: of n shards, who all have the same, number
 *                                   j mod n sends them to shard j of the next stage
 *   after the last layer            logits of each shard's rows of the vocabulary, to the owner
 *
 * Sums are taken in the order of ranks, and every shard comes to the same bits. Few rows go as F32.
 * Of many, where the weights are rounded to blocks, the parts are rounded to bf16 on the way: a
 * relative error of 2^-9 for each part, and all shards use the rounded numbers, their own as well.
 * Parts of a sum of few rows, or over two shards, go to all; else each shard sums some of the rows,
 * and sends what they come to.
 *
 * A call that fails is the last: `lost` stops all later ones, and the step ends with
 * STATUS_LOST. */
#include "model/model_internal.h"

#include <stdlib.h>
#include <string.h>

#define POOL_NUMBERS 16384 /* of a sum: a piece of work for a thread */

/* ---- Calls ----------------------------------------------------------------------------------- */

bool exchange_call(struct model *model, const struct comm_transfer *transfers, size_t n)
{
    struct exchange *exchange = &model->exchange;
    if (exchange->lost)
        return false;
    if (n > 0 &&
        exchange->comm->exchange(exchange->comm, transfers, n, &exchange->error) != STATUS_OK)
        exchange->lost = true;
    return !exchange->lost;
}

/* Out of memory on one rank would leave the others waiting for it: it counts as lost here, and they
 * find the connection closed. */
enum status exchange_give_up(struct model *model)
{
    if (!model->exchange.lost)
        error_set(&model->exchange.error, STATUS_LOST, "out of memory while computing a step");
    model->exchange.lost = true;
    return STATUS_LOST;
}

/* Device memory to `own`. */
static bool fetch(struct model *model, struct device_ref x, size_t n_numbers)
{
    struct exchange *exchange = &model->exchange;
    enum status status = model->backend->download(model->backend, exchange->own, x,
                                                  n_numbers * sizeof *exchange->own);
    if (status != STATUS_OK)
        exchange_give_up(model);
    return !exchange->lost;
}

static void give(struct model *model, struct device_ref x, size_t n_numbers)
{
    model->backend->upload(model->backend, x, model->exchange.own,
                           n_numbers * sizeof *model->exchange.own);
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

static void round_numbers(const float *from, uint16_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
        to[i] = (uint16_t)(nan ? bits >> 16 | 0x40
                               : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16); /* ties to even */
    }
}

static inline float widened(uint16_t number)
{
    uint32_t bits = (uint32_t)number << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void widen_numbers(const uint16_t *from, float *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = widened(from[i]);
}

/* ---- Sums ------------------------------------------------------------------------------------ */

/* to[n] = the sum of the parts in their order; F32, or bf16 where rounded. */
struct sum {
    const void *parts[MODEL_MAX_SHARDS];
    uint32_t n_parts;
    bool rounded;
    float *to; /* may be one of the parts */
};

static void add_parts(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct sum *sum = context;
    float block[1024];
    (void)thread;
    for (size_t at = begin; at < end; at += ARRAY_COUNT(block)) {
        size_t n = MIN(end - at, ARRAY_COUNT(block));
        for (uint32_t p = 0; p < sum->n_parts; p++) {
            const float *numbers = (const float *)sum->parts[p] + at;
            const uint16_t *small = (const uint16_t *)sum->parts[p] + at;
            if (p == 0 && sum->rounded)
                widen_numbers(small, block, n);
            else if (p == 0)
                memcpy(block, numbers, n * sizeof *block);
            else if (sum->rounded)
                for (size_t i = 0; i < n; i++)
                    block[i] += widened(small[i]);
            else
                for (size_t i = 0; i < n; i++)
                    block[i] += numbers[i];
        }
        memcpy(sum->to + at, block, n * sizeof *block);
    }
}

struct convert {
    float *numbers;
    uint16_t *small;
};

static void round_some(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct convert *convert = context;
    (void)thread;
    round_numbers(convert->numbers + begin, convert->small + begin, end - begin);
}

static void widen_some(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct convert *convert = context;
    (void)thread;
    widen_numbers(convert->small + begin, convert->numbers + begin, end - begin);
}

/* On the threads that wait for the next product. */
static void in_pool(struct model *model, pool_fn *fn, void *context, size_t n)
{
    struct pool *pool = model->backend->pool;
    if (pool != NULL && n > POOL_NUMBERS)
        pool_run(pool, fn, context, n, POOL_NUMBERS);
    else
        fn(context, 0, 0, n);
}

/* Every part to everyone. */
static bool sum_at_once(struct model *model, size_t n, bool rounded)
{
    const struct slice *slice = &model->slice;
    struct exchange *exchange = &model->exchange;
    size_t bytes = n * (rounded ? sizeof(uint16_t) : sizeof(float)), n_others = 0;
    struct comm_transfer transfers[MODEL_MAX_SHARDS];
    struct sum sum = {.n_parts = slice->n_shards, .rounded = rounded, .to = exchange->own};
    const void *own = exchange->own;
    if (rounded) {
        in_pool(model, round_some, &(struct convert){exchange->own, exchange->out}, n);
        own = exchange->out;
    }
    for (uint32_t s = 0; s < slice->n_shards; s++) {
        sum.parts[s] = own;
        if (s == slice->shard)
            continue;
        void *in = (char *)exchange->in + n_others * bytes;
        sum.parts[s] = in;
        transfers[n_others++] =
            (struct comm_transfer){slice->first_rank + s, own, bytes, in, bytes};
    }
    if (!exchange_call(model, transfers, n_others))
        return false;
    in_pool(model, add_parts, &sum, n);
    return true;
}

/* The rows that shard s sums, as numbers. */
static struct span rows_of_shard(const struct slice *slice, uint32_t s, uint32_t n_rows,
                                 uint32_t n_cols)
{
    return (struct span){n_rows * s / slice->n_shards * n_cols,
                         n_rows * (s + 1) / slice->n_shards * n_cols};
}

/* Each shard gets all parts of its rows, sums them, and sends the sums to all. */
static bool sum_in_two(struct model *model, uint32_t n_rows, uint32_t n_cols, bool rounded)
{
    const struct slice *slice = &model->slice;
    struct exchange *exchange = &model->exchange;
    size_t size = rounded ? sizeof(uint16_t) : sizeof(float), n = (size_t)n_rows * n_cols, at = 0;
    uint32_t n_others = 0;
    struct comm_transfer transfers[MODEL_MAX_SHARDS];
    struct span mine = rows_of_shard(slice, slice->shard, n_rows, n_cols);
    char *out = rounded ? exchange->out : (void *)exchange->own, *in = exchange->in;
    struct convert convert = {exchange->own, exchange->out};
    struct sum sum = {
        .n_parts = slice->n_shards, .rounded = rounded, .to = exchange->own + mine.begin};
    if (rounded)
        in_pool(model, round_some, &convert, n);
    for (uint32_t s = 0; s < slice->n_shards; s++) {
        struct span theirs = rows_of_shard(slice, s, n_rows, n_cols);
        sum.parts[s] = s == slice->shard ? out + mine.begin * size : in + at;
        if (s == slice->shard)
            continue;
        transfers[n_others++] =
            (struct comm_transfer){slice->first_rank + s, out + theirs.begin * size,
                                   span_size(theirs) * size, in + at, span_size(mine) * size};
        at += span_size(mine) * size;
    }
    if (!exchange_call(model, transfers, n_others))
        return false;
    in_pool(model, add_parts, &sum, span_size(mine));
    if (rounded)
        round_numbers(exchange->own + mine.begin, (uint16_t *)(void *)out + mine.begin,
                      span_size(mine));
    n_others = 0;
    for (uint32_t s = 0; s < slice->n_shards; s++) {
        struct span theirs = rows_of_shard(slice, s, n_rows, n_cols);
        if (s != slice->shard)
            transfers[n_others++] = (struct comm_transfer){
                slice->first_rank + s, out + mine.begin * size, span_size(mine) * size,
                out + theirs.begin * size, span_size(theirs) * size};
    }
    if (!exchange_call(model, transfers, n_others))
        return false;
    if (rounded)
        in_pool(model, widen_some, &convert, n);
    return true;
}

void exchange_sum(struct model *model, struct device_ref x, uint32_t n_rows, bool rounded)
{
    uint32_t n_cols = model->desc->n_embd;
    size_t n = (size_t)n_rows * n_cols;
    bool many = n_rows > QUANT_SMALL_BATCH;
    if (model->exchange.lost || !fetch(model, x, n))
        return;
    bool done = many && model->slice.n_shards > 2 ? sum_in_two(model, n_rows, n_cols, rounded)
                                                  : sum_at_once(model, n, many && rounded);
    if (done)
        give(model, x, n);
}

/* ---- Rows ------------------------------------------------------------------------------------ */

void exchange_begin_stage(struct model *model, struct device_ref x, uint32_t n_rows)
{
    const struct slice *slice = &model->slice;
    struct exchange *exchange = &model->exchange;
    size_t n = (size_t)n_rows * model->desc->n_embd, n_transfers = 0;
    struct comm_transfer transfers[MODEL_MAX_SHARDS];
    if (exchange->lost || (slice->stage == 0 && slice->n_shards == 1))
        return;
    if (slice->embeds) {
        if (!fetch(model, x, n))
            return;
        for (uint32_t s = 1; s < slice->n_shards; s++)
            transfers[n_transfers++] = (struct comm_transfer){
                .rank = s, .out = exchange->own, .out_bytes = n * sizeof *exchange->own};
        exchange_call(model, transfers, n_transfers);
        return;
    }
    uint32_t from =
        slice->stage > 0 ? slice->before_rank + slice->shard % slice->n_before : slice->first_rank;
    transfers[0] = (struct comm_transfer){
        .rank = from, .in = exchange->own, .in_bytes = n * sizeof *exchange->own};
    if (exchange_call(model, transfers, 1))
        give(model, x, n);
}

void exchange_end_stage(struct model *model, struct device_ref x, uint32_t n_rows)
{
    const struct slice *slice = &model->slice;
    struct exchange *exchange = &model->exchange;
    size_t n = (size_t)n_rows * model->desc->n_embd, n_transfers = 0;
    struct comm_transfer transfers[MODEL_MAX_SHARDS];
    for (uint32_t s = slice->shard; s < slice->n_after; s += slice->n_shards)
        transfers[n_transfers++] = (struct comm_transfer){.rank = slice->after_rank + s,
                                                          .out = exchange->own,
                                                          .out_bytes = n * sizeof *exchange->own};
    if (n_transfers > 0 && !exchange->lost && fetch(model, x, n))
        exchange_call(model, transfers, n_transfers);
}

/* Rows of the vocabulary of a shard of the last stage. */
static struct span vocab_of(const struct model *model, uint32_t shard)
{
    return slice_vocab(&model->slice, shard);
}

static void place_logits(const float *from, struct span rows, uint32_t n_rows, uint32_t n_vocab,
                         float *to)
{
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(to + (size_t)i * n_vocab + rows.begin, from + (size_t)i * span_size(rows),
               span_size(rows) * sizeof *to);
}

enum status exchange_logits(struct model *model, uint32_t n_rows, float *to)
{
    const struct slice *slice = &model->slice;
    struct exchange *exchange = &model->exchange;
    struct backend *backend = model->backend;
    uint32_t n_vocab = model->desc->n_vocab, n_transfers = 0;
    size_t own_bytes = (size_t)n_rows * span_size(slice->vocab) * sizeof(float);
    if (slice->n_shards == 1)
        return backend->download(backend, to, model->at.logits, own_bytes);
    float *own = exchange->out, *in = exchange->in;
    struct comm_transfer transfers[MODEL_MAX_SHARDS];
    enum status status = backend->download(backend, own, model->at.logits, own_bytes);
    if (slice->rank != slice->owner) {
        transfers[0] =
            (struct comm_transfer){.rank = slice->owner, .out = own, .out_bytes = own_bytes};
        exchange_call(model, transfers, 1);
        return status;
    }
    for (uint32_t s = 1; s < slice->n_shards; s++) {
        size_t n = (size_t)n_rows * span_size(vocab_of(model, s));
        transfers[n_transfers++] = (struct comm_transfer){
            .rank = slice->first_rank + s, .in = in, .in_bytes = n * sizeof *in};
        in += n;
    }
    place_logits(own, slice->vocab, n_rows, n_vocab, to);
    if (!exchange_call(model, transfers, n_transfers))
        return status;
    in = exchange->in;
    for (uint32_t s = 1; s < slice->n_shards; s++) {
        struct span rows = vocab_of(model, s);
        place_logits(in, rows, n_rows, n_vocab, to);
        in += (size_t)n_rows * span_size(rows);
    }
    return status;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

struct exchange_sizes {
    uint64_t own, in, out;
};

static struct exchange_sizes sizes_of(const struct model *model)
{
    const struct slice *slice = &model->slice;
    uint64_t embd = model->desc->n_embd, n = model->batch, shards = slice->n_shards;
    struct exchange_sizes sizes = {0};
    if (slice->n_ranks == 1)
        return sizes;
    sizes.own = n * embd * sizeof(float);
    if (shards == 1)
        return sizes;
    uint64_t logits = slice->last ? MODEL_LOGITS_ROWS * sizeof(float) : 0;
    uint64_t few = (shards - 1) * MIN(n, (uint64_t)QUANT_SMALL_BATCH);
    sizes.in = MAX(few, n + shards) * embd * sizeof(float);
    if (slice->rank == slice->owner)
        sizes.in = MAX(sizes.in, logits * (model->desc->n_vocab - span_size(slice->vocab)));
    sizes.out = MAX(n * embd * sizeof(uint16_t), logits * span_size(slice->vocab));
    return sizes;
}

uint64_t exchange_bytes(const struct model *model)
{
    struct exchange_sizes sizes = sizes_of(model);
    return sizes.own + sizes.in + sizes.out;
}

enum status exchange_open(struct model *model, struct error *error)
{
    struct exchange *exchange = &model->exchange;
    struct exchange_sizes sizes = sizes_of(model);
    exchange->own = malloc(MAX(sizes.own, 1));
    exchange->in = malloc(MAX(sizes.in, 1));
    exchange->out = malloc(MAX(sizes.out, 1));
    if (exchange->own == NULL || exchange->in == NULL || exchange->out == NULL)
        return error_memory(error, exchange_bytes(model));
    return STATUS_OK;
}

void exchange_close(struct model *model)
{
    free(model->exchange.own);
    free(model->exchange.in);
    free(model->exchange.out);
}
