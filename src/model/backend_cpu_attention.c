/* The KV cache and attention over its pages, with a running softmax (Milakov and Gimelshein, 2018),
 * so that memory does not grow with the context.
 *
 * A tile is up to TILE_QUERIES queries, some tokens in a row of one sequence times some query heads
 * of one group: they see the same keys and values, which are widened to float once for all. Keys
 * are turned, in the cache or on the way, so that a vector holds one number of many keys and scores
 * need no sums across a vector; both products are then the same: rows, each times its weight, are
 * added up. Few queries add up the rows of the cache as they are. Pages of codes are multiplied as
 * they lie, in integers, with queries that are packed to codes as well.
 *
 * The context is cut into splits of SPLIT_TOKENS, at fixed places. A split is walked page by page
 * from the first that the tile sees, and what a query may not see counts as -infinity. The results
 * of the splits are merged in order, in the same way whether one thread walks them all or several
 * threads share them. So bits depend neither on threads nor on what else is in the batch. */
#include "model/backend_cpu.h"

#include <math.h>
#include <string.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define SPLIT_TOKENS (8 * PAGE)
#define TILE_QUERIES 64
#define ROWS MODEL_KV_TURNED_TOKENS /* keys or values widened at a time */
#define FEW_QUERIES 4               /* so few do not gain from widening before */
#define STORE_COLS 64

_Static_assert(PAGE == QUANT_PAGE_ROWS, "a page of the cache is a page of codes");

/* ---- The cache ---- */

/* Where a page holds the rows of a head: [pages][heads][PAGE] rows. */
static size_t cache_offset(size_t page, size_t head, size_t n_heads, size_t row_bytes)
{
    return (page * n_heads + head) * PAGE * row_bytes;
}

/* A row of a page, scattered as a column of its ROWS tokens. */
static void store_turned(enum quant_format format, const float *x, unsigned char *page,
                         size_t token, size_t n_cols)
{
    unsigned char encoded[STORE_COLS * sizeof(float)];
    size_t bytes = quant_info(format)->block_bytes;
    page += token / ROWS * n_cols * ROWS * bytes;
    token %= ROWS;
    for (size_t begin = 0; begin < n_cols; begin += STORE_COLS) {
        size_t n = MIN(n_cols - begin, (size_t)STORE_COLS);
        quant_encode(format, x + begin, encoded, n, NULL);
        for (size_t c = 0; c < n; c++, page += ROWS * bytes)
            memcpy(page + token * bytes, encoded + c * bytes, bytes);
    }
}

static void store_rows(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct op *op = context;
    const float *x = cpu_data(op->store.x);
    const int32_t *slots = cpu_data(op->store.slots);
    unsigned char *cache = cpu_data(op->store.cache);
    size_t n_heads = op->store.n_heads, n_cols = op->store.n_cols;
    size_t row_bytes = quant_row_bytes(op->store.format, n_cols);
    (void)thread;
    for (size_t i = begin * n_heads; i < end * n_heads; i++) {
        size_t slot = (size_t)slots[i / n_heads];
        unsigned char *page = cache + cache_offset(slot / PAGE, i % n_heads, n_heads, row_bytes);
        size_t token = slot % PAGE;
        switch (op->store.layout) {
        case KV_ROWS:
            quant_encode(op->store.format, x + i * n_cols, page + token * row_bytes, n_cols, NULL);
            break;
        case KV_TURNED:
            store_turned(op->store.format, x + i * n_cols, page, token, n_cols);
            break;
        case KV_CODE_KEYS:
            quant_page_store(QUANT_PAGE_KEYS, page, token, x + i * n_cols, n_cols);
            break;
        case KV_CODE_VALUES:
            quant_page_store(QUANT_PAGE_VALUES, page, token, x + i * n_cols, n_cols);
            break;
        }
    }
}

void cpu_kv_store(struct cpu *cpu, const struct op *op)
{
    size_t n_cols = (size_t)op->store.n_heads * op->store.n_cols;
    pool_run(cpu->pool, store_rows, (void *)op, op->store.n, MAX(8192 / n_cols, 1));
}

/* ---- Tiles ---- */

struct tile {
    size_t token, n_tokens; /* rows of the step */
    size_t head, n_heads;
    size_t first_split, n_splits; /* what its tokens see */
};

/* What a softmax has come to, relative to the highest score of each query so far. Queries go by
 * token, then head. */
struct part {
    float *highest, *sum; /* [queries] */
    float *values;        /* [queries][wide_v] */
};

struct job {
    const struct op *op;
    const struct tile *tiles;
    size_t max_splits;     /* of a tile */
    size_t wide_k, wide_v; /* widened head sizes */
    size_t packed_bytes;   /* of a query, for pages of codes */
    size_t part_floats, work_floats;
    float *parts; /* [tiles][max_splits], where threads share tiles */
    float *work;  /* [threads] */
};

/* One thread at one tile. */
struct worker {
    const struct job *job;
    const struct tile *tile;
    size_t n_queries;
    size_t begin[TILE_QUERIES], end[TILE_QUERIES]; /* what each token sees */
    float *q;                                      /* [queries][head_k], scaled */
    uint8_t *packed;                               /* the same as codes: [queries][packed_bytes] */
    float *wide;   /* keys [wide_k][ROWS] or values [ROWS][wide_v] */
    float *scores; /* [queries][PAGE] */
    struct part part, whole;
};

static size_t first_visible(const struct op *op, size_t position)
{
    size_t window = op->attention.window;
    if (window == 0)
        return 0;
    if (op->attention.chunked)
        return position / window * window;
    return position >= window ? position - window + 1 : 0;
}

static struct part part_at(float *memory)
{
    return (struct part){memory, memory + TILE_QUERIES, memory + 2 * TILE_QUERIES};
}

static float *take(float **memory, size_t n_floats)
{
    float *taken = *memory;
    *memory += n_floats;
    return taken;
}

static bool has_codes(const struct op *op)
{
    return op->attention.k_layout == KV_CODE_KEYS;
}

/* Copies the queries, scaled as their scores are to be. */
static void begin_tile(struct worker *worker, const struct job *job, const struct tile *tile,
                       unsigned thread)
{
    const struct op *op = job->op;
    const int32_t *positions = cpu_data(op->attention.positions);
    const int32_t *visible = cpu_data(op->attention.visible);
    float *memory = job->work + thread * job->work_floats;
    size_t head_k = op->attention.head_k, row = tile->n_heads * head_k;
    float softcap = op->attention.softcap;
    float scale = op->attention.scale * (softcap > 0 ? 2 / softcap : 1);
    worker->job = job;
    worker->tile = tile;
    worker->n_queries = tile->n_tokens * tile->n_heads;
    worker->wide = take(&memory, ROWS * MAX(job->wide_k, job->wide_v));
    worker->scores = take(&memory, TILE_QUERIES * PAGE);
    worker->part = part_at(take(&memory, job->part_floats));
    worker->whole = part_at(take(&memory, job->part_floats));
    worker->packed = (uint8_t *)take(&memory, TILE_QUERIES * job->packed_bytes / sizeof(float));
    worker->q = memory;
    for (size_t i = 0; i < tile->n_tokens; i++) {
        size_t token = tile->token + i;
        const float *from = (const float *)cpu_data(op->attention.q) +
                            (token * op->attention.n_heads + tile->head) * head_k;
        for (size_t c = 0; c < row; c++)
            worker->q[i * row + c] = from[c] * scale;
        worker->begin[i] = first_visible(op, (size_t)positions[token]);
        worker->end[i] = (size_t)visible[token];
    }
    for (size_t i = 0; has_codes(op) && i < worker->n_queries; i++)
        quant_pack(QUANT_PACKED_INT8, worker->q + i * head_k, head_k, worker->packed, i,
                   worker->n_queries);
}

/* ---- One split ---- */

static void begin_part(struct part *part, size_t n_queries, size_t wide_v)
{
    for (size_t i = 0; i < n_queries; i++) {
        part->highest[i] = -INFINITY;
        part->sum[i] = 0;
    }
    memset(part->values, 0, n_queries * wide_v * sizeof *part->values);
}

/* A whole page of the cache. */
static struct quant_matrix cached_rows(const struct worker *worker, struct device_ref cache,
                                       size_t row_bytes, size_t page, size_t n_cols)
{
    const struct op *op = worker->job->op;
    size_t head = (worker->tile->head + op->attention.first_in_group) / op->attention.group;
    return (struct quant_matrix){
        .format = op->attention.format,
        .data = (const unsigned char *)cpu_data(cache) +
                cache_offset(page, head, op->attention.n_kv_heads, row_bytes),
        .row_bytes = row_bytes,
        .n_rows = PAGE,
        .n_cols = n_cols,
    };
}

/* Brings rows of the next page into the caches while this one is computed with. */
static void look_ahead(const uint8_t *rows, size_t size)
{
    for (size_t b = 0; b < size; b += 64)
        __builtin_prefetch(rows + b);
}

static struct quant_matrix wide_rows(const struct worker *worker, size_t n_rows, size_t n_cols)
{
    return (struct quant_matrix){QUANT_F32, worker->wide, n_cols * sizeof(float), n_rows, n_cols};
}

/* scores[queries][PAGE] of n keys of a page; next: the keys of the page after it. The cache has
 * room for all keys of a page. */
static void score(struct worker *worker, struct quant_matrix k, size_t n, const uint8_t *next)
{
    bool turned = worker->job->op->attention.k_layout == KV_TURNED;
    size_t head_k = k.n_cols, part_bytes = ROWS * k.row_bytes;
    struct quant_sums sums = {.weight = worker->q,
                              .y = worker->scores,
                              .weight_stride = head_k,
                              .y_stride = PAGE,
                              .n_inputs = worker->n_queries,
                              .from_zero = true};
    for (size_t first = 0; first < n; first += ROWS, sums.y += ROWS, next += part_bytes) {
        size_t n_wide = MIN((size_t)ROWS, QUANT_WIDENED(n - first));
        struct quant_matrix part = k;
        part.data = (const uint8_t *)k.data + first * k.row_bytes;
        sums.rows = wide_rows(worker, head_k, n_wide);
        if (turned) {
            part.row_bytes = part_bytes / head_k;
            part.n_rows = head_k;
            part.n_cols = n_wide;
        }
        if (turned && worker->n_queries <= FEW_QUERIES) {
            sums.rows = part;
            sums.next = next;
        } else if (turned) {
            quant_widen_rows(&part, worker->wide);
        } else {
            part.n_rows = MIN((size_t)ROWS, n - first);
            quant_turn_rows(&part, worker->wide, n_wide);
            look_ahead(next, part_bytes);
        }
        quant_add_rows(&sums);
    }
}

/* Adds n values of a page by their weights; next: those of the page after it. */
static void add_values(struct worker *worker, struct quant_matrix v, size_t n, const uint8_t *next)
{
    size_t wide_v = worker->job->wide_v;
    struct quant_sums sums = {.rows = v,
                              .weight = worker->scores,
                              .y = worker->part.values,
                              .weight_stride = PAGE,
                              .y_stride = wide_v,
                              .n_inputs = worker->n_queries,
                              .next = next};
    if (worker->n_queries <= FEW_QUERIES && v.n_cols == wide_v) {
        sums.rows.n_rows = n;
        quant_add_rows(&sums);
        return;
    }
    sums.next = NULL;
    for (size_t first = 0; first < n; first += ROWS, sums.weight += ROWS) {
        v.n_rows = MIN((size_t)ROWS, n - first);
        quant_widen_rows(&v, worker->wide);
        sums.rows = wide_rows(worker, v.n_rows, wide_v);
        quant_add_rows(&sums);
        v.data = (const uint8_t *)v.data + ROWS * v.row_bytes;
    }
}

static void cap(float *scores, size_t n, float softcap)
{
    quant_sigmoid(scores, n); /* tanh(x) = 2 sigmoid(2 x) - 1 */
    for (size_t t = 0; t < n; t++)
        scores[t] = softcap * (2 * scores[t] - 1);
}

/* Turns one query's scores of n tokens from `from` on into weights relative to its highest so far,
 * and rescales what it has summed. */
static void soften(struct worker *worker, size_t query, size_t from, size_t n)
{
    const struct op *op = worker->job->op;
    struct part *part = &worker->part;
    size_t token = query / worker->tile->n_heads, wide_v = worker->job->wide_v;
    size_t first = MAX(worker->begin[token], from) - from;
    size_t last = MIN(MAX(worker->end[token], from) - from, n), padded = QUANT_WIDENED(n);
    float *scores = worker->scores + query * PAGE, *values = part->values + query * wide_v, factor;
    if (first >= last) {
        memset(scores, 0, padded * sizeof *scores);
        return;
    }
    if (op->attention.softcap > 0)
        cap(scores, n, op->attention.softcap);
    for (size_t t = 0; t < first; t++)
        scores[t] = -INFINITY;
    for (size_t t = last; t < padded; t++)
        scores[t] = -INFINITY;
    float sum = quant_exp_sum(scores, padded, &part->highest[query], &factor);
    part->sum[query] = part->sum[query] * factor + sum;
    if (factor != 1.0f)
        for (size_t c = 0; c < wide_v; c++)
            values[c] *= factor;
}

/* The page of the cache that holds n tokens from `token` on, and the one that is next. */
static void attend_page(struct worker *worker, size_t token, size_t page, size_t next, size_t n)
{
    const struct op *op = worker->job->op;
    size_t head_k = op->attention.head_k, head_v = op->attention.head_v;
    size_t k_row = op->attention.k_row_bytes, v_row = op->attention.v_row_bytes;
    const struct quant_matrix k = cached_rows(worker, op->attention.k, k_row, page, head_k),
                              k_next = cached_rows(worker, op->attention.k, k_row, next, head_k),
                              v = cached_rows(worker, op->attention.v, v_row, page, head_v),
                              v_next = cached_rows(worker, op->attention.v, v_row, next, head_v);
    if (has_codes(op))
        quant_page_scores(&(struct quant_page){k.data, n, head_k, k_next.data}, worker->packed,
                          worker->n_queries, worker->scores, PAGE);
    else
        score(worker, k, n, k_next.data);
    for (size_t query = 0; query < worker->n_queries; query++)
        soften(worker, query, token, n);
    if (has_codes(op))
        quant_page_add(&(struct quant_page){v.data, n, head_v, v_next.data}, worker->scores, PAGE,
                       worker->n_queries, worker->part.values);
    else
        add_values(worker, v, n, v_next.data);
}

/* Into worker->part. Later tokens of a tile see neither an earlier beginning nor an earlier end. */
static void attend_split(struct worker *worker, size_t split)
{
    const struct op *op = worker->job->op;
    const int32_t *table = cpu_data(op->attention.tables);
    table += ((const int32_t *)cpu_data(op->attention.table_begin))[worker->tile->token];
    size_t begin = MAX(split * SPLIT_TOKENS, worker->begin[0] / PAGE * PAGE);
    size_t end = MIN((split + 1) * SPLIT_TOKENS, worker->end[worker->tile->n_tokens - 1]);
    begin_part(&worker->part, worker->n_queries, worker->job->wide_v);
    for (size_t token = begin; token < end; token += PAGE)
        attend_page(worker, token, (size_t)table[token / PAGE],
                    (size_t)table[MIN(token + PAGE, end - 1) / PAGE],
                    MIN((size_t)PAGE, end - token));
}

/* ---- All splits of a tile ---- */

/* A sink is a logit without a value: it only adds to the sum. */
static void begin_whole(struct worker *worker)
{
    const float *sinks = cpu_data(worker->job->op->attention.sinks);
    begin_part(&worker->whole, worker->n_queries, worker->job->wide_v);
    for (size_t i = 0; sinks != NULL && i < worker->n_queries; i++) {
        worker->whole.highest[i] = sinks[worker->tile->head + i % worker->tile->n_heads];
        worker->whole.sum[i] = 1;
    }
}

static void merge(struct worker *worker, const struct part *part)
{
    struct part *whole = &worker->whole;
    size_t wide_v = worker->job->wide_v;
    for (size_t i = 0; i < worker->n_queries; i++) {
        if (part->sum[i] == 0)
            continue; /* it sees nothing here */
        float factors[16] = {whole->highest[i], part->highest[i]}, highest = -INFINITY;
        for (size_t t = 2; t < 16; t++)
            factors[t] = -INFINITY;
        quant_exp_sum(factors, 16, &highest, NULL);
        whole->highest[i] = highest;
        whole->sum[i] = whole->sum[i] * factors[0] + part->sum[i] * factors[1];
        float *to = whole->values + i * wide_v;
        const float *from = part->values + i * wide_v;
        for (size_t c = 0; c < wide_v; c++)
            to[c] = to[c] * factors[0] + from[c] * factors[1];
    }
}

static void finish(const struct worker *worker)
{
    const struct op *op = worker->job->op;
    const struct tile *tile = worker->tile;
    size_t head_v = op->attention.head_v;
    for (size_t i = 0; i < worker->n_queries; i++) {
        size_t token = tile->token + i / tile->n_heads, head = tile->head + i % tile->n_heads;
        float *y =
            (float *)cpu_data(op->attention.y) + (token * op->attention.n_heads + head) * head_v;
        const float *values = worker->whole.values + i * worker->job->wide_v;
        for (size_t c = 0; c < head_v; c++)
            y[c] = values[c] / worker->whole.sum[i];
    }
}

static void attend_tiles(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct job *job = context;
    struct worker worker;
    for (size_t i = begin; i < end; i++) {
        begin_tile(&worker, job, &job->tiles[i], thread);
        begin_whole(&worker);
        for (size_t s = 0; s < worker.tile->n_splits; s++) {
            attend_split(&worker, worker.tile->first_split + s);
            merge(&worker, &worker.part);
        }
        finish(&worker);
    }
}

/* ---- Splits that threads share ---- */

static void attend_parts(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct job *job = context;
    struct worker worker;
    for (size_t i = begin; i < end; i++) {
        const struct tile *tile = &job->tiles[i / job->max_splits];
        size_t split = i % job->max_splits;
        if (split >= tile->n_splits)
            continue;
        begin_tile(&worker, job, tile, thread);
        worker.part = part_at(job->parts + i * job->part_floats);
        attend_split(&worker, tile->first_split + split);
    }
}

static void merge_parts(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct job *job = context;
    struct worker worker;
    for (size_t i = begin; i < end; i++) {
        begin_tile(&worker, job, &job->tiles[i], thread);
        begin_whole(&worker);
        for (size_t s = 0; s < worker.tile->n_splits; s++) {
            size_t index = i * job->max_splits + s;
            struct part part = part_at(job->parts + index * job->part_floats);
            merge(&worker, &part);
        }
        finish(&worker);
    }
}

/* ---- The operation ---- */

/* How many of the tokens from `token` on, at most limit, follow each other in one sequence. */
static size_t tokens_in_row(const struct op *op, size_t token, size_t limit)
{
    const int32_t *table_begin = cpu_data(op->attention.table_begin);
    size_t n = 1;
    limit = MIN(limit, op->attention.n - token);
    while (n < limit && table_begin[token + n] == table_begin[token])
        n++;
    return n;
}

/* The tiles of all heads over the tokens from `token` on; returns how many of them. */
static size_t add_tiles(struct job *job, struct tile *tiles, size_t token, size_t n_tokens)
{
    const struct op *op = job->op;
    const int32_t *positions = cpu_data(op->attention.positions);
    const int32_t *visible = cpu_data(op->attention.visible);
    size_t n_group = op->attention.group, n = 0;
    size_t first = first_visible(op, (size_t)positions[token]) / SPLIT_TOKENS;
    size_t end = (size_t)visible[token + n_tokens - 1];
    size_t n_splits = (end + SPLIT_TOKENS - 1) / SPLIT_TOKENS - first;
    job->max_splits = MAX(job->max_splits, n_splits);
    size_t n_heads = op->attention.n_heads, group_end = n_group - op->attention.first_in_group;
    for (size_t head = 0; head < n_heads; group_end += n_group)
        for (; head < MIN(group_end, n_heads); head += tiles[n++].n_heads)
            tiles[n] =
                (struct tile){.token = token,
                              .n_tokens = n_tokens,
                              .head = head,
                              .n_heads = MIN((size_t)TILE_QUERIES, MIN(group_end, n_heads) - head),
                              .first_split = first,
                              .n_splits = n_splits};
    return n;
}

void cpu_attention(struct cpu *cpu, const struct op *op)
{
    size_t n_threads = pool_threads(cpu->pool), n_tiles = 0;
    size_t n_group = op->attention.group;
    struct job job = {.op = op,
                      .wide_k = QUANT_WIDENED((size_t)op->attention.head_k),
                      .wide_v = QUANT_WIDENED((size_t)op->attention.head_v)};
    job.part_floats = TILE_QUERIES * (2 + job.wide_v);
    if (has_codes(op))
        job.packed_bytes = quant_packed_bytes(QUANT_PACKED_INT8, op->attention.head_k);
    job.work_floats = ROWS * MAX(job.wide_k, job.wide_v) + TILE_QUERIES * PAGE +
                      2 * job.part_floats +
                      TILE_QUERIES * (job.packed_bytes / sizeof(float) + job.wide_k);
    job.work = cpu_scratch(cpu, &cpu->gathered, n_threads * job.work_floats * sizeof *job.work);
    struct tile *tiles = cpu_scratch(
        cpu, &cpu->order, (size_t)op->attention.n * op->attention.n_heads * sizeof *tiles);
    if (job.work == NULL || tiles == NULL)
        return;
    size_t limit = MAX(TILE_QUERIES / n_group, 1), n_tokens;
    for (size_t token = 0; token < op->attention.n; token += n_tokens) {
        n_tokens = tokens_in_row(op, token, limit);
        n_tiles += add_tiles(&job, tiles + n_tiles, token, n_tokens);
    }
    job.tiles = tiles;
    if (n_tiles >= 4 * n_threads || n_threads == 1 || job.max_splits == 1) {
        pool_run(cpu->pool, attend_tiles, &job, n_tiles, 1);
        return;
    }
    size_t n_parts = n_tiles * job.max_splits;
    job.parts = cpu_scratch(cpu, &cpu->product, n_parts * job.part_floats * sizeof *job.parts);
    if (job.parts == NULL)
        return;
    pool_run(cpu->pool, attend_parts, &job, n_parts, 1);
    pool_run(cpu->pool, merge_parts, &job, n_tiles, 1);
}
