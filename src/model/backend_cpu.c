/* The CPU backend: memory, dispatch. It runs every operation at once, so nothing ever waits. The
 * operations are in backend_cpu_rows.c, backend_cpu_matmul.c and backend_cpu_attention.c. */
#include "model/backend_cpu.h"

#include <stdlib.h>
#include <string.h>

struct device_buffer {
    unsigned char *data;
    size_t size;
    bool owned;
};

void *cpu_data(struct device_ref ref)
{
    return ref.buffer != NULL ? ref.buffer->data + ref.offset : NULL;
}

void *cpu_scratch(struct cpu *cpu, struct cpu_scratch *scratch, size_t size_bytes)
{
    if (size_bytes > scratch->size) {
        pages_free(scratch->data, scratch->size);
        scratch->size = size_bytes + size_bytes / 4;
        scratch->data = pages_alloc(scratch->size);
    }
    if (scratch->data == NULL && size_bytes > 0) {
        scratch->size = 0;
        cpu->failed = true;
    }
    return scratch->data;
}

static struct device_buffer *cpu_wrap(void *data, size_t size, bool owned)
{
    struct device_buffer *buffer = data != NULL ? malloc(sizeof *buffer) : NULL;
    if (buffer != NULL)
        *buffer = (struct device_buffer){data, size, owned};
    else if (owned)
        pages_free(data, size);
    return buffer;
}

static struct device_buffer *cpu_alloc(struct backend *backend, size_t size_bytes)
{
    (void)backend;
    return cpu_wrap(pages_alloc(size_bytes), size_bytes, true);
}

static struct device_buffer *cpu_map(struct backend *backend, const void *data, size_t size_bytes)
{
    (void)backend;
    return cpu_wrap((void *)data, size_bytes, false);
}

static void cpu_free(struct backend *backend, struct device_buffer *buffer)
{
    (void)backend;
    if (buffer != NULL && buffer->owned)
        pages_free(buffer->data, buffer->size);
    free(buffer);
}

static void cpu_upload(struct backend *backend, struct device_ref to, const void *from, size_t size)
{
    (void)backend;
    memcpy(cpu_data(to), from, size);
}

static enum status cpu_sync(struct backend *backend)
{
    struct cpu *cpu = (struct cpu *)backend;
    bool failed = cpu->failed;
    cpu->failed = false;
    return failed ? STATUS_MEMORY : STATUS_OK;
}

static enum status cpu_download(struct backend *backend, void *to, struct device_ref from,
                                size_t size)
{
    memcpy(to, cpu_data(from), size);
    return cpu_sync(backend);
}

struct row_job {
    const struct op *op;
    cpu_row_fn *fn;
};

static void run_rows(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct row_job *job = context;
    (void)thread;
    job->fn(job->op, begin, end);
}

static void cpu_run(struct backend *backend, const struct op *op)
{
    struct cpu *cpu = (struct cpu *)backend;
    switch (op->kind) {
    case OP_MATMUL:
        cpu_matmul(cpu, op);
        return;
    case OP_MATMUL_EACH:
        cpu_matmul_each(cpu, op);
        return;
    case OP_EXPECT:
        cpu_expect(cpu, op);
        return;
    case OP_KV_STORE:
        cpu_kv_store(cpu, op);
        return;
    case OP_ATTENTION:
        cpu_attention(cpu, op);
        return;
    default: {
        struct cpu_row_op rows = cpu_row_op(op);
        struct row_job job = {op, rows.fn};
        pool_run(cpu->pool, run_rows, &job, rows.n_rows, rows.chunk);
    }
    }
}

static void cpu_close(struct backend *backend)
{
    struct cpu *cpu = (struct cpu *)backend;
    struct cpu_scratch *scratches[] = {&cpu->gathered, &cpu->product, &cpu->order};
    for (size_t i = 0; i < ARRAY_COUNT(scratches); i++)
        pages_free(scratches[i]->data, scratches[i]->size);
    for (size_t i = 0; i < QUANT_PACKINGS; i++)
        pages_free(cpu->packed[i].data, cpu->packed[i].size);
    if (cpu->owns_pool)
        pool_close(cpu->pool);
    free(cpu);
}

enum status backend_cpu_open(struct backend **out, unsigned n_threads, struct pool *pool,
                             struct error *error)
{
    *out = NULL;
    enum status status = quant_init(error);
    if (status != STATUS_OK)
        return status;
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL)
        return error_memory(error, sizeof *cpu);
    cpu->backend = (struct backend){
        .name = "cpu",
        .n_threads = pool != NULL ? pool_threads(pool) : n_threads,
        .alloc = cpu_alloc,
        .map = cpu_map,
        .free = cpu_free,
        .upload = cpu_upload,
        .run = cpu_run,
        .download = cpu_download,
        .sync = cpu_sync,
        .close = cpu_close,
    };
    cpu->pool = pool;
    cpu->owns_pool = pool == NULL;
    if (pool == NULL)
        status = pool_open(&cpu->pool, n_threads, error);
    if (status != STATUS_OK) {
        free(cpu);
        return status;
    }
    cpu->backend.pool = cpu->pool;
    *out = &cpu->backend;
    return STATUS_OK;
}
