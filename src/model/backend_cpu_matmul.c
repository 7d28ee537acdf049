/* Products with weights. Activations are packed once, then rows of the weights are handed out in
 * chunks; with experts, the rows of x that go to one expert are packed together, so that each
 * chosen expert is read once for the whole batch. */
#include "model/backend_cpu.h"

#include <string.h>

#define EXPECT_BYTES ((size_t)512 << 10) /* what a core's cache holds until the product begins */

/* Rows of a chunk. Threads take long runs of chunks, because the prefetchers lose their stride at
 * every jump; at the end of a product they wait for one chunk at most. */
static size_t chunk_rows(const struct device_matrix *w, enum quant_packing packing)
{
    size_t rows = MAX((size_t)32768 / w->n_cols, 16), step = quant_row_step(packing);
    return (rows + step - 1) / step * step;
}

struct pack_job {
    enum quant_packing packing;
    const float *x;
    size_t x_stride, n_cols, n, packed_bytes;
    unsigned char *packed;
};

static void pack_rows(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct pack_job *job = context;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        quant_pack(job->packing, job->x + i * job->x_stride, job->n_cols, job->packed, i, job->n);
}

/* Packs n rows of x. packed is NULL where memory is out. */
static struct pack_job pack(struct cpu *cpu, enum quant_packing packing, const float *x,
                            size_t x_stride, size_t n_cols, size_t n)
{
    struct pack_job job = {
        .packing = packing, .x = x, .x_stride = x_stride, .n_cols = n_cols, .n = n};
    job.packed_bytes = quant_packed_bytes(packing, n_cols);
    job.packed =
        cpu_scratch(cpu, &cpu->packed[packing], quant_packed_inputs(packing, n) * job.packed_bytes);
    if (job.packed != NULL)
        pool_run(cpu->pool, pack_rows, &job, n, MAX(16384 / n_cols, 1));
    return job;
}

static struct quant_matrix matrix_at(const struct device_matrix *w, size_t index)
{
    return (struct quant_matrix){
        .format = w->format,
        .data = (const unsigned char *)cpu_data(w->data) + index * w->matrix_bytes,
        .row_bytes = w->row_bytes,
        .n_rows = w->n_rows,
        .n_cols = w->n_cols,
    };
}

/* ---- One matrix, or several that share their input ---- */

struct matmul_part {
    struct quant_matrix w;
    enum quant_packing packing;
    const void *packed;
    const float *bias;
    float *y;
    bool adds;
    size_t chunk_rows, first_chunk, end_chunk; /* its chunks among those of all parts */
};

struct matmul_job {
    struct matmul_part parts[OP_MATMUL_PARTS];
    size_t n_parts, n;
};

static void matmul_rows(const struct matmul_part *part, size_t n, size_t begin, size_t end)
{
    if (part->adds)
        quant_matmul_add(&part->w, begin, end, part->packed, n, part->y, part->w.n_rows);
    else
        quant_matmul(&part->w, part->packing, begin, end, part->packed, n, part->y, part->w.n_rows);
    if (part->bias != NULL)
        for (size_t i = 0; i < n; i++)
            for (size_t r = begin; r < end; r++)
                part->y[i * part->w.n_rows + r] += part->bias[r];
}

static void matmul_chunks(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct matmul_job *job = context;
    (void)thread;
    for (size_t p = 0; p < job->n_parts; p++) {
        const struct matmul_part *part = &job->parts[p];
        size_t first = MAX(begin, part->first_chunk), last = MIN(end, part->end_chunk);
        if (first < last)
            matmul_rows(part, job->n, (first - part->first_chunk) * part->chunk_rows,
                        MIN((last - part->first_chunk) * part->chunk_rows, part->w.n_rows));
    }
}

/* All but what is packed. */
static struct matmul_job split_matmul(const struct op *op)
{
    struct matmul_job job = {.n_parts = op->matmul.n_parts, .n = op->matmul.n};
    for (size_t p = 0; p < job.n_parts; p++) {
        const struct op_matmul_part *from = &op->matmul.parts[p];
        enum quant_packing packing = quant_packing(from->w.format, job.n);
        size_t rows = chunk_rows(&from->w, packing);
        size_t first = p > 0 ? job.parts[p - 1].end_chunk : 0;
        job.parts[p] = (struct matmul_part){
            .w = matrix_at(&from->w, 0),
            .packing = packing,
            .bias = cpu_data(from->bias),
            .y = cpu_data(from->y),
            .adds = from->adds,
            .chunk_rows = rows,
            .first_chunk = first,
            .end_chunk = first + (from->w.n_rows + rows - 1) / rows,
        };
    }
    return job;
}

void cpu_matmul(struct cpu *cpu, const struct op *op)
{
    struct matmul_job job = split_matmul(op);
    const void *packed[ARRAY_COUNT(cpu->packed)] = {NULL};
    for (size_t p = 0; p < job.n_parts; p++) {
        const struct device_matrix *w = &op->matmul.parts[p].w;
        const void **once = &packed[job.parts[p].packing];
        if (*once == NULL)
            *once =
                pack(cpu, job.parts[p].packing, cpu_data(op->matmul.x), w->n_cols, w->n_cols, job.n)
                    .packed;
        if (*once == NULL)
            return;
        job.parts[p].packed = *once;
    }
    pool_run(cpu->pool, matmul_chunks, &job, job.parts[job.n_parts - 1].end_chunk, 1);
}

void cpu_expect(struct cpu *cpu, const struct op *op)
{
    struct matmul_job job = split_matmul(op);
    const struct matmul_part *part = job.parts, *last = &job.parts[job.n_parts - 1];
    for (unsigned thread = 0; thread < pool_threads(cpu->pool); thread++) {
        size_t chunk = pool_first_chunk(cpu->pool, thread, last->end_chunk);
        while (part < last && chunk >= part->end_chunk)
            part++;
        size_t size = part->w.n_rows * part->w.row_bytes;
        size_t begin =
            MIN((chunk - part->first_chunk) * part->chunk_rows * part->w.row_bytes, size);
        pool_expect(cpu->pool, thread, (const char *)part->w.data + begin,
                    MIN(size - begin, EXPECT_BYTES));
    }
}

/* ---- A matrix per slot ---- */

/* Pairs (token, slot) ordered by matrix: those of matrix m are order[begin[m]] to begin[m + 1]; at
 * the end, from n_here on, those of matrices that are not here. */
struct each_job {
    const struct op *op;
    int32_t *order;
    size_t n_here;
    int32_t *begin;
    int32_t *used;             /* matrices with at least one pair */
    size_t chunk_rows, chunks; /* chunks of rows in a matrix */
    enum quant_packing packing;
    unsigned char *packed; /* inputs of the pairs in order */
    int32_t *at;           /* the input in packed with which those of a matrix begin */
    size_t packed_bytes;
    float *product; /* [pairs in order][n_rows] */
};

/* n_matrices where it is not here. */
static size_t pair_matrix(const struct op *op, const int32_t *ids, size_t pair)
{
    if (ids == NULL)
        return pair % op->each.n_slots;
    return MIN((size_t)(uint32_t)ids[pair] - op->each.first_matrix, (size_t)op->each.w.n_matrices);
}

/* Counting sort; returns how many matrices are used. */
static size_t order_pairs(struct each_job *job)
{
    const struct op *op = job->op;
    const int32_t *ids = cpu_data(op->each.ids);
    size_t n_pairs = (size_t)op->each.n * op->each.n_slots, n_inputs = 0;
    size_t n_matrices = op->each.w.n_matrices, n_used = 0;
    int32_t *begin = job->begin;
    memset(begin, 0, (n_matrices + 3) * sizeof *begin);
    for (size_t p = 0; p < n_pairs; p++)
        begin[pair_matrix(op, ids, p) + 2]++;
    for (size_t m = 0; m < n_matrices; m++) {
        if (begin[m + 2] > 0)
            job->used[n_used++] = (int32_t)m;
        job->at[m] = (int32_t)n_inputs;
        n_inputs += quant_packed_inputs(job->packing, (size_t)begin[m + 2]);
        begin[m + 2] += begin[m + 1];
    }
    for (size_t p = 0; p < n_pairs; p++)
        job->order[begin[pair_matrix(op, ids, p) + 1]++] = (int32_t)p;
    return n_used;
}

static size_t pair_input(const struct op *op, size_t pair)
{
    return op->each.x_shared ? pair / op->each.n_slots : pair;
}

static void each_inputs(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct each_job *job = context;
    const struct op *op = job->op;
    const int32_t *ids = cpu_data(op->each.ids);
    const float *x = cpu_data(op->each.x);
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        size_t pair = (size_t)job->order[i], m = pair_matrix(op, ids, pair);
        size_t first = (size_t)job->begin[m], count = (size_t)job->begin[m + 1] - first;
        quant_pack(job->packing, x + pair_input(op, pair) * op->each.x_stride, op->each.w.n_cols,
                   job->packed + (size_t)job->at[m] * job->packed_bytes, i - first, count);
    }
}

static void each_rows(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct each_job *job = context;
    const struct op *op = job->op;
    size_t n_rows = op->each.w.n_rows;
    (void)thread;
    for (size_t item = begin, next; item < end; item = next) {
        size_t m = (size_t)job->used[item / job->chunks];
        size_t row = item % job->chunks * job->chunk_rows;
        size_t first = (size_t)job->begin[m], count = (size_t)job->begin[m + 1] - first;
        struct quant_matrix w = matrix_at(&op->each.w, m);
        next = MIN(end, (item / job->chunks + 1) * job->chunks);
        quant_matmul(&w, job->packing, row, MIN(row + (next - item) * job->chunk_rows, n_rows),
                     job->packed + (size_t)job->at[m] * job->packed_bytes, count,
                     job->product + first * n_rows, n_rows);
    }
}

static void each_scatter(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct each_job *job = context;
    const struct op *op = job->op;
    const float *bias = cpu_data(op->each.bias);
    const int32_t *ids = cpu_data(op->each.ids);
    size_t n_rows = op->each.w.n_rows;
    float *y = cpu_data(op->each.y);
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        size_t pair = (size_t)job->order[i];
        const float *from = job->product + i * n_rows;
        float *to = y + pair * op->each.y_stride;
        if (i >= job->n_here) {
            memset(to, 0, n_rows * sizeof *to);
            continue;
        }
        const float *b = bias != NULL ? bias + pair_matrix(op, ids, pair) * n_rows : NULL;
        for (size_t r = 0; r < n_rows; r++)
            to[r] = b != NULL ? from[r] + b[r] : from[r];
    }
}

/* y[c] = sum over rows of x[r] w[r][c]: rows are decoded one by one. */
static void each_transposed(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct each_job *job = context;
    const struct op *op = job->op;
    const int32_t *ids = cpu_data(op->each.ids);
    const float *x = cpu_data(op->each.x);
    float *y = cpu_data(op->each.y);
    size_t n_cols = op->each.w.n_cols;
    float *row = job->product + thread * n_cols;
    for (size_t slot = begin; slot < end; slot++)
        for (size_t r = 0; r < op->each.w.n_rows; r++) {
            size_t decoded = SIZE_MAX;
            for (size_t i = 0; i < op->each.n; i++) {
                size_t pair = i * op->each.n_slots + slot, m = pair_matrix(op, ids, pair);
                if (m != decoded) {
                    struct quant_matrix w = matrix_at(&op->each.w, m);
                    quant_decode(w.format, (const char *)w.data + r * w.row_bytes, row, n_cols);
                    decoded = m;
                }
                float factor = x[pair_input(op, pair) * op->each.x_stride + r];
                float *to = y + pair * op->each.y_stride;
                for (size_t c = 0; c < n_cols; c++)
                    to[c] = (r > 0 ? to[c] : 0) + factor * row[c];
            }
        }
}

static void matmul_transposed(struct cpu *cpu, struct each_job *job)
{
    const struct op *op = job->op;
    size_t n_rows = pool_threads(cpu->pool); /* decoded, one a thread */
    job->product =
        cpu_scratch(cpu, &cpu->product, n_rows * op->each.w.n_cols * sizeof *job->product);
    if (job->product != NULL)
        pool_run(cpu->pool, each_transposed, job, op->each.n_slots, 1);
}

/* What a matrix has on average decides the packing, so that it is the same for all of them and does
 * not depend on the routing. */
void cpu_matmul_each(struct cpu *cpu, const struct op *op)
{
    const struct device_matrix *w = &op->each.w;
    size_t n_pairs = (size_t)op->each.n * op->each.n_slots;
    struct each_job job = {.op = op};
    if (op->each.transposed) {
        matmul_transposed(cpu, &job);
        return;
    }
    job.packing = quant_packing(w->format, n_pairs / MAX(op->each.n_all, w->n_matrices));
    size_t most_used = MIN(n_pairs, w->n_matrices);
    size_t n_inputs = n_pairs + most_used * (quant_packed_inputs(job.packing, 1) - 1);
    job.packed_bytes = quant_packed_bytes(job.packing, w->n_cols);
    job.packed = cpu_scratch(cpu, &cpu->gathered, n_inputs * job.packed_bytes);
    job.order =
        cpu_scratch(cpu, &cpu->order, (n_pairs + 3 * w->n_matrices + 3) * sizeof *job.order);
    job.product = cpu_scratch(cpu, &cpu->product, n_pairs * w->n_rows * sizeof *job.product);
    if (job.packed == NULL || job.order == NULL || job.product == NULL)
        return;
    job.begin = job.order + n_pairs;
    job.used = job.begin + w->n_matrices + 3;
    job.at = job.used + w->n_matrices;
    size_t n_used = order_pairs(&job);
    job.n_here = (size_t)job.begin[w->n_matrices];
    job.chunk_rows = chunk_rows(w, job.packing);
    job.chunks = (w->n_rows + job.chunk_rows - 1) / job.chunk_rows;
    pool_run(cpu->pool, each_inputs, &job, job.n_here, MAX(16384 / w->n_cols, 1));
    pool_run(cpu->pool, each_rows, &job, n_used * job.chunks, 1);
    pool_run(cpu->pool, each_scatter, &job, n_pairs, MAX(8192 / w->n_rows, 1));
}
