/* One thread that takes work from a queue. `mutex` guards the queue and closing. */
#include "server/server_internal.h"

#include <pthread.h>
#include <stdlib.h>

struct work {
    struct work *next;
    net_fn *fn;
    void *context;
};

struct worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t posted;
    struct work *first, **last;
    bool closing;
};

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    pthread_mutex_lock(&worker->mutex);
    while (worker->first != NULL || !worker->closing) {
        struct work *work = worker->first;
        if (work == NULL) {
            pthread_cond_wait(&worker->posted, &worker->mutex);
            continue;
        }
        worker->first = work->next;
        if (worker->first == NULL)
            worker->last = &worker->first;
        pthread_mutex_unlock(&worker->mutex);
        work->fn(work->context);
        free(work);
        pthread_mutex_lock(&worker->mutex);
    }
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

enum status worker_open(struct worker **out, struct error *error)
{
    *out = NULL;
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return error_memory(error, sizeof *worker);
    worker->last = &worker->first;
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_cond_init(&worker->posted, NULL);
    if (!thread_start(&worker->thread, worker_main, worker)) {
        free(worker);
        return error_set(error, STATUS_MEMORY, "cannot start a thread");
    }
    *out = worker;
    return STATUS_OK;
}

void worker_close(struct worker *worker)
{
    if (worker == NULL)
        return;
    pthread_mutex_lock(&worker->mutex);
    worker->closing = true;
    pthread_cond_signal(&worker->posted);
    pthread_mutex_unlock(&worker->mutex);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->posted);
    pthread_mutex_destroy(&worker->mutex);
    free(worker);
}

bool worker_post(struct worker *worker, net_fn *fn, void *context)
{
    struct work *work = malloc(sizeof *work);
    if (work == NULL)
        return false;
    *work = (struct work){.fn = fn, .context = context};
    pthread_mutex_lock(&worker->mutex);
    *worker->last = work;
    worker->last = &work->next;
    pthread_cond_signal(&worker->posted);
    pthread_mutex_unlock(&worker->mutex);
    return true;
}
