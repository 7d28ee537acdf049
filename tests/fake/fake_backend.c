#include "fake_backend.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum task_kind { TASK_OP, TASK_UPLOAD, TASK_DOWNLOAD, TASK_FREE, TASK_STOP };

struct task {
    struct task *next;
    enum task_kind kind;
    struct op op;
    struct device_ref ref;
    void *host; /* upload: a copy of the data; download: where to */
    size_t size;
};

/* mutex guards first, last, n_queued and n_done; inner belongs to the thread while tasks are open.
 */
struct fake {
    struct backend backend;
    struct backend *inner;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct task *first, *last;
    uint64_t n_queued, n_done;
};

static void perform(struct fake *fake, struct task *task)
{
    struct backend *inner = fake->inner;
    switch (task->kind) {
    case TASK_OP:
        inner->run(inner, &task->op);
        break;
    case TASK_UPLOAD:
        inner->upload(inner, task->ref, task->host, task->size);
        free(task->host);
        break;
    case TASK_DOWNLOAD:
        inner->download(inner, task->host, task->ref, task->size);
        break;
    case TASK_FREE:
        inner->free(inner, task->ref.buffer);
        break;
    case TASK_STOP:
        break;
    }
}

static void *fake_main(void *argument)
{
    struct fake *fake = argument;
    for (bool running = true; running;) {
        pthread_mutex_lock(&fake->mutex);
        while (fake->first == NULL)
            pthread_cond_wait(&fake->changed, &fake->mutex);
        struct task *task = fake->first;
        fake->first = task->next;
        uint64_t n_done = fake->n_done;
        pthread_mutex_unlock(&fake->mutex);

        if (rng_u64(1, n_done, 0) % 64 == 0)
            usleep(100); /* the host gets ahead */
        running = task->kind != TASK_STOP;
        perform(fake, task);
        free(task);

        pthread_mutex_lock(&fake->mutex);
        fake->n_done++;
        pthread_cond_broadcast(&fake->changed);
        pthread_mutex_unlock(&fake->mutex);
    }
    return NULL;
}

static void enqueue(struct backend *backend, struct task values)
{
    struct fake *fake = (struct fake *)backend;
    struct task *task = malloc(sizeof *task);
    if (task == NULL)
        abort();
    *task = values;
    task->next = NULL;
    pthread_mutex_lock(&fake->mutex);
    if (fake->first == NULL)
        fake->first = task;
    else
        fake->last->next = task;
    fake->last = task;
    fake->n_queued++;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->mutex);
}

static void wait_all(struct backend *backend)
{
    struct fake *fake = (struct fake *)backend;
    pthread_mutex_lock(&fake->mutex);
    while (fake->n_done < fake->n_queued)
        pthread_cond_wait(&fake->changed, &fake->mutex);
    pthread_mutex_unlock(&fake->mutex);
}

static enum status fake_sync(struct backend *backend)
{
    wait_all(backend);
    struct backend *inner = ((struct fake *)backend)->inner;
    return inner->sync(inner);
}

static void *copy_of(const void *data, size_t size)
{
    void *copy = malloc(size);
    if (copy == NULL)
        abort();
    return memcpy(copy, data, size);
}

static void fake_upload(struct backend *backend, struct device_ref to, const void *from,
                        size_t size)
{
    enqueue(
        backend,
        (struct task){.kind = TASK_UPLOAD, .ref = to, .host = copy_of(from, size), .size = size});
}

static void fake_run(struct backend *backend, const struct op *op)
{
    enqueue(backend, (struct task){.kind = TASK_OP, .op = *op});
}

static enum status fake_download(struct backend *backend, void *to, struct device_ref from,
                                 size_t size)
{
    enqueue(backend, (struct task){.kind = TASK_DOWNLOAD, .ref = from, .host = to, .size = size});
    return fake_sync(backend);
}

static struct device_buffer *fake_alloc(struct backend *backend, size_t size_bytes)
{
    struct fake *fake = (struct fake *)backend;
    struct device_buffer *buffer = fake->inner->alloc(fake->inner, size_bytes);
    void *poison = malloc(size_bytes);
    if (buffer == NULL || poison == NULL)
        abort();
    memset(poison, 0xFF, size_bytes); /* NaN as F32 and F16, -1 as an integer */
    fake_upload(backend, (struct device_ref){buffer, 0}, poison, size_bytes);
    free(poison);
    return buffer;
}

static struct device_buffer *fake_map(struct backend *backend, const void *data, size_t size_bytes)
{
    struct device_buffer *buffer = fake_alloc(backend, size_bytes);
    fake_upload(backend, (struct device_ref){buffer, 0}, data, size_bytes);
    return buffer;
}

static void fake_free(struct backend *backend, struct device_buffer *buffer)
{
    enqueue(backend, (struct task){.kind = TASK_FREE, .ref = {buffer, 0}});
}

static void fake_close(struct backend *backend)
{
    struct fake *fake = (struct fake *)backend;
    enqueue(backend, (struct task){.kind = TASK_STOP});
    pthread_join(fake->thread, NULL);
    pthread_cond_destroy(&fake->changed);
    pthread_mutex_destroy(&fake->mutex);
    fake->inner->close(fake->inner);
    free(fake);
}

enum status fake_backend_open(struct backend **out, unsigned n_threads, struct error *error)
{
    struct fake *fake = calloc(1, sizeof *fake);
    *out = NULL;
    if (fake == NULL)
        return error_memory(error, sizeof *fake);
    enum status status = backend_cpu_open(&fake->inner, n_threads, NULL, error);
    if (status != STATUS_OK) {
        free(fake);
        return status;
    }
    fake->backend = (struct backend){
        .name = "fake",
        .n_threads = n_threads,
        .alloc = fake_alloc,
        .map = fake_map,
        .free = fake_free,
        .upload = fake_upload,
        .run = fake_run,
        .download = fake_download,
        .sync = fake_sync,
        .close = fake_close,
    };
    pthread_mutex_init(&fake->mutex, NULL);
    pthread_cond_init(&fake->changed, NULL);
    if (pthread_create(&fake->thread, NULL, fake_main, fake) != 0)
        abort();
    *out = &fake->backend;
    return STATUS_OK;
}
