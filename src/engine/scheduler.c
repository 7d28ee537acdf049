/* The engine thread and what other threads may call.
 *
 * `mutex` guards everything below it in struct scheduler, and of each stream what its comment says.
 * It is never held while a callback, a job or a step runs. */
#include "engine/scheduler_internal.h"

#include <pthread.h>
#include <stdlib.h>

#define DEFAULT_QUEUED 1024
#define RATE_NS 1000000000 /* a rate is that of so long */

/* Requests of one client that wait, the oldest first. */
struct client {
    struct client *next;
    uint64_t number;
    struct stream *first, *last;
};

struct call {
    struct call *next;
    scheduler_job *job;
    void *context;
};

struct scheduler {
    struct engine *engine;
    uint32_t n_ctx, max_queued;
    pthread_t thread;
    struct batch batch; /* the engine thread's, as the next two: when tokens were counted last */
    uint64_t counted_ns, counted_tokens;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct client *clients, *last_client; /* those with waiting requests; the first is next */
    uint32_t n_queued;
    struct stream *live;  /* all that have not ended */
    struct stream *ended; /* while they waited */
    struct call *calls, *last_call;
    uint32_t n_calls;
    uint64_t last_id;
    uint64_t n_accepted, n_refused, n_cancelled;
    bool draining, closing;
    struct scheduler_metrics published;
};

/* ---- Queue (under the mutex) ----------------------------------------------------------------- */

static bool enqueue(struct scheduler *scheduler, struct stream *stream)
{
    struct client *client = scheduler->clients;
    while (client != NULL && client->number != stream->request->client)
        client = client->next;
    if (client == NULL) {
        client = calloc(1, sizeof *client);
        if (client == NULL)
            return false;
        client->number = stream->request->client;
        *(scheduler->clients != NULL ? &scheduler->last_client->next : &scheduler->clients) =
            client;
        scheduler->last_client = client;
    }
    *(client->first != NULL ? &client->last->next : &client->first) = stream;
    client->last = stream;
    stream->next = NULL;
    stream->queued = true;
    scheduler->n_queued++;
    return true;
}

/* Takes stream out of its client's queue; the client leaves, or goes to the end of the line. */
static void dequeue(struct scheduler *scheduler, struct stream *stream, bool served)
{
    struct client *client = scheduler->clients, *before = NULL;
    while (client->number != stream->request->client) {
        before = client;
        client = client->next;
    }
    struct stream *previous = NULL;
    for (struct stream *s = client->first; s != stream; s = s->next)
        previous = s;
    *(previous != NULL ? &previous->next : &client->first) = stream->next;
    if (client->last == stream)
        client->last = previous;
    stream->queued = false;
    scheduler->n_queued--;
    if (client->first != NULL && !served)
        return;
    *(before != NULL ? &before->next : &scheduler->clients) = client->next;
    if (scheduler->last_client == client)
        scheduler->last_client = before;
    if (client->first == NULL) {
        free(client);
        return;
    }
    *(scheduler->clients != NULL ? &scheduler->last_client->next : &scheduler->clients) = client;
    scheduler->last_client = client;
    client->next = NULL;
}

static void link_live(struct scheduler *scheduler, struct stream *stream)
{
    stream->live_next = scheduler->live;
    if (stream->live_next != NULL)
        stream->live_next->live_previous = stream;
    scheduler->live = stream;
}

static void unlink_live(struct scheduler *scheduler, struct stream *stream)
{
    *(stream->live_previous != NULL ? &stream->live_previous->live_next : &scheduler->live) =
        stream->live_next;
    if (stream->live_next != NULL)
        stream->live_next->live_previous = stream->live_previous;
}

/* A request that still waits ends; the engine thread tells its owner. */
static void cancel_queued(struct scheduler *scheduler, struct stream *stream)
{
    dequeue(scheduler, stream, false);
    stream->reason = FINISH_CANCELLED;
    stream->next = scheduler->ended;
    scheduler->ended = stream;
    scheduler->n_cancelled++;
}

/* ---- The engine thread ----------------------------------------------------------------------- */

static bool has_work(const struct scheduler *scheduler)
{
    return scheduler->closing || scheduler->n_queued > 0 || scheduler->calls != NULL ||
           scheduler->ended != NULL || scheduler->batch.n_running > 0 ||
           scheduler->batch.n_paused > 0;
}

/* Tokens of answers in a second, of the last second and more in which there were any. */
static void count_rate(struct scheduler *scheduler)
{
    struct scheduler_metrics *counts = &scheduler->batch.counts;
    uint64_t now_ns = clock_now_ns(), passed_ns = now_ns - scheduler->counted_ns;
    if (passed_ns < RATE_NS && scheduler->batch.n_running > 0)
        return;
    if (scheduler->batch.n_running > 0)
        counts->tokens_per_s =
            (double)(counts->output_tokens - scheduler->counted_tokens) * 1e9 / (double)passed_ns;
    scheduler->counted_ns = now_ns;
    scheduler->counted_tokens = counts->output_tokens;
}

static void publish(struct scheduler *scheduler)
{
    struct batch *batch = &scheduler->batch;
    const struct model *model = scheduler->engine->model;
    batch->counts.n_running = batch->n_running;
    batch->counts.n_paused = batch->n_paused;
    batch->counts.pages = model_page_count(model);
    batch->counts.pages_free = model_pages_free(model);
    batch->counts.pages_cached = prefix_spare_pages(batch->cache);
    count_rate(scheduler);
    scheduler->published = batch->counts;
}

static void admit(struct scheduler *scheduler)
{
    while (scheduler->n_queued > 0) {
        struct stream *stream = scheduler->clients->first;
        if (!batch_has_room(&scheduler->batch, stream))
            return;
        dequeue(scheduler, stream, true);
        batch_add(&scheduler->batch, stream);
    }
}

/* Tells the owners of streams that have ended, and frees them. Who has been told finds the stream
 * in the counts. */
static void bury(struct scheduler *scheduler, struct stream **ended)
{
    while (*ended != NULL) {
        struct stream *stream = *ended;
        *ended = stream->next;
        pthread_mutex_lock(&scheduler->mutex);
        publish(scheduler);
        unlink_live(scheduler, stream);
        pthread_mutex_unlock(&scheduler->mutex);
        stream_give_end(stream);
        stream_close(stream);
    }
}

static void *engine_main(void *argument)
{
    struct scheduler *scheduler = argument;
    struct batch *batch = &scheduler->batch;
    for (bool running = true; running;) {
        pthread_mutex_lock(&scheduler->mutex);
        publish(scheduler);
        while (!has_work(scheduler))
            pthread_cond_wait(&scheduler->changed, &scheduler->mutex);
        bool closing = scheduler->closing;
        while (closing && scheduler->n_queued > 0)
            cancel_queued(scheduler, scheduler->clients->first);
        batch_cancel(batch, closing);
        admit(scheduler);
        struct stream *ended = scheduler->ended;
        scheduler->ended = NULL;
        struct call *call = scheduler->calls;
        if (call != NULL) {
            scheduler->calls = call->next;
            scheduler->n_calls--;
        }
        running = !closing || scheduler->calls != NULL;
        pthread_mutex_unlock(&scheduler->mutex);

        bury(scheduler, &ended);
        bury(scheduler, &batch->ended);
        if (call != NULL) {
            batch_land(batch);
            batch_take_turn(batch);
            call->job(scheduler->engine, call->context);
            batch_end_turn(batch);
        }
        free(call);
        batch_step(batch);
        bury(scheduler, &batch->ended);
    }
    return NULL;
}

/* ---- Opening and closing --------------------------------------------------------------------- */

static void free_scheduler(struct scheduler *scheduler)
{
    batch_close(&scheduler->batch);
    pthread_cond_destroy(&scheduler->changed);
    pthread_mutex_destroy(&scheduler->mutex);
    free(scheduler);
}

enum status scheduler_open(struct scheduler **out, struct engine *engine,
                           const struct scheduler_options *options, struct error *error)
{
    const struct scheduler_options defaults = {0};
    *out = NULL;
    options = options != NULL ? options : &defaults;
    struct scheduler *scheduler = calloc(1, sizeof *scheduler);
    if (scheduler == NULL)
        return error_memory(error, sizeof *scheduler);
    uint32_t n_ctx = model_n_ctx(engine->model);
    scheduler->engine = engine;
    scheduler->n_ctx = options->n_ctx > 0 ? MIN(options->n_ctx, n_ctx) : n_ctx;
    scheduler->max_queued = options->max_queued > 0 ? options->max_queued : DEFAULT_QUEUED;
    pthread_mutex_init(&scheduler->mutex, NULL);
    pthread_cond_init(&scheduler->changed, NULL);
    enum status status = batch_open(&scheduler->batch, engine, options, error);
    if (status == STATUS_OK && !thread_start(&scheduler->thread, engine_main, scheduler))
        status = error_set(error, STATUS_MEMORY, "cannot start the engine's thread");
    if (status != STATUS_OK) {
        free_scheduler(scheduler);
        return status;
    }
    *out = scheduler;
    return STATUS_OK;
}

void scheduler_drain(struct scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->draining = true;
    pthread_mutex_unlock(&scheduler->mutex);
}

void scheduler_close(struct scheduler *scheduler)
{
    if (scheduler == NULL)
        return;
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->draining = scheduler->closing = true;
    pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->mutex);
    pthread_join(scheduler->thread, NULL);
    free_scheduler(scheduler);
}

/* ---- Other threads --------------------------------------------------------------------------- */

/* Requests and calls. Under the mutex, as the next two. */
static uint32_t count_waiting(const struct scheduler *scheduler)
{
    return scheduler->n_queued + scheduler->n_calls;
}

static enum status check_queue(const struct scheduler *scheduler, struct error *error)
{
    if (scheduler->draining)
        return error_set(error, STATUS_BUSY, "the server is shutting down");
    if (count_waiting(scheduler) >= scheduler->max_queued)
        return error_set(error, STATUS_BUSY, "%u requests are waiting already; try again later",
                         count_waiting(scheduler));
    return STATUS_OK;
}

static enum status queue_stream(struct scheduler *scheduler, struct stream *stream,
                                struct error *error)
{
    enum status status = check_queue(scheduler, error);
    if (status != STATUS_OK)
        return status;
    stream->id = ++scheduler->last_id;
    if (!enqueue(scheduler, stream))
        return error_memory(error, sizeof(struct client));
    link_live(scheduler, stream);
    pthread_cond_signal(&scheduler->changed);
    return STATUS_OK;
}

enum status scheduler_submit(struct scheduler *scheduler, struct generation_request *request,
                             generation_callback *callback, void *context, uint64_t *id,
                             struct error *error)
{
    struct stream *stream;
    enum status status = stream_open(&stream, scheduler->engine, scheduler->n_ctx, request, error);
    if (status == STATUS_OK) {
        stream->callback = callback;
        stream->context = context;
    }
    pthread_mutex_lock(&scheduler->mutex);
    if (status == STATUS_OK)
        status = queue_stream(scheduler, stream, error);
    if (status == STATUS_OK && id != NULL)
        *id = stream->id;
    scheduler->n_accepted += status == STATUS_OK;
    scheduler->n_refused += status != STATUS_OK;
    pthread_mutex_unlock(&scheduler->mutex);
    if (status != STATUS_OK)
        stream_close(stream);
    return status;
}

void scheduler_cancel(struct scheduler *scheduler, uint64_t id)
{
    pthread_mutex_lock(&scheduler->mutex);
    struct stream *stream = scheduler->live;
    while (stream != NULL && stream->id != id)
        stream = stream->live_next;
    if (stream != NULL && stream->queued)
        cancel_queued(scheduler, stream);
    else if (stream != NULL)
        atomic_store(&stream->cancelled, true);
    pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->mutex);
}

enum status scheduler_call(struct scheduler *scheduler, scheduler_job *job, void *context,
                           struct error *error)
{
    struct call *call = malloc(sizeof *call);
    if (call == NULL)
        return error_memory(error, sizeof *call);
    *call = (struct call){.job = job, .context = context};
    pthread_mutex_lock(&scheduler->mutex);
    enum status status = check_queue(scheduler, error);
    if (status == STATUS_OK) {
        *(scheduler->calls != NULL ? &scheduler->last_call->next : &scheduler->calls) = call;
        scheduler->last_call = call;
        scheduler->n_calls++;
        pthread_cond_signal(&scheduler->changed);
    }
    pthread_mutex_unlock(&scheduler->mutex);
    if (status != STATUS_OK)
        free(call);
    return status;
}

void scheduler_metrics(struct scheduler *scheduler, struct scheduler_metrics *out)
{
    pthread_mutex_lock(&scheduler->mutex);
    *out = scheduler->published;
    out->n_queued = count_waiting(scheduler);
    out->n_accepted = scheduler->n_accepted;
    out->n_refused = scheduler->n_refused;
    out->n_cancelled += scheduler->n_cancelled;
    pthread_mutex_unlock(&scheduler->mutex);
}
