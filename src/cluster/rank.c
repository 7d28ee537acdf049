/* Threads: the rank's own opens the model; then a worker's follows the owner's steps on it, and an
 * owner's takes work, compiles its grammar and submits it. The owner's steps run on the scheduler's
 * thread, which also gives the events of work. Model and comm pass from the one to the other as the
 * scheduler is opened and closed.
 *
 * `mutex` guards what stands below it in struct cluster_rank, and of a work what its comment says.
 * No event is given while it is held. The scheduler's own is only ever taken after it. */
#include "cluster/rank.h"
#include "cluster/comm_links.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MESH_MS 30000
#define SPIN_NS 100000
#define RATE_TOKENS 32 /* that a rate is measured over */
#define N_RATES 8      /* the last ones; other texts and drafts make them differ */

/* A request that is computed. */
struct rank_work {
    struct cluster_rank *rank;
    uint64_t id;
    struct generation_request *request; /* until it is submitted */

    /* Guarded by the rank's mutex. */
    struct rank_work *next;       /* among all */
    struct rank_work *queue_next; /* among those to be submitted */
    uint64_t request_id;          /* the scheduler's; 0: not known yet */
    unsigned n_holders;           /* the queue or who submits it; the scheduler */
    bool cancelled;

    /* The scheduler's thread's. */
    struct generation_usage begun;
    bool told_begun;
    uint64_t counted_ns; /* when the first of these came: */
    unsigned n_counted;  /* tokens, for a rate */
};

/* What the model talks through: counts, and knows when it waits for others. */
struct rank_comm {
    struct comm comm; /* first */
    struct comm *inner;
    atomic_uint_least64_t n_exchanges;
    atomic_bool waits;
};

struct cluster_rank {
    struct cluster_rank_options options;
    char *path;
    struct rank_comm comm;
    struct engine *engine;
    pthread_t thread;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct scheduler *scheduler; /* while the rank is an owner that is open */
    struct pool *pool;           /* while it is open; NULL: the model has none */
    struct rank_work *works, *queue, *last_queued;
    double rates[N_RATES]; /* at which texts came, tokens a second */
    unsigned n_rates;      /* that were ever measured */
    bool open, broken, closing;
};

/* ---- Comm ------------------------------------------------------------------------------------ */

static enum status exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error)
{
    struct rank_comm *outer = (struct rank_comm *)comm;
    atomic_store_explicit(&outer->waits, true, memory_order_relaxed);
    enum status status = outer->inner->exchange(outer->inner, transfers, n, error);
    atomic_fetch_add_explicit(&outer->n_exchanges, 1, memory_order_relaxed);
    atomic_store_explicit(&outer->waits, false, memory_order_relaxed);
    return status;
}

/* Waits for the other ranks. */
static enum status join(struct cluster_rank *rank, struct error *error)
{
    const struct cluster_rank_options *options = &rank->options;
    struct rank_comm *comm = &rank->comm;
    uint64_t wait_ms = options->mesh_ms > 0 ? options->mesh_ms : MESH_MS;
    if (options->mesh == NULL)
        return STATUS_OK;
    enum status status =
        comm_mesh_comm(options->mesh, options->spin_ns > 0 ? options->spin_ns : SPIN_NS,
                       clock_now_ns() + wait_ms * 1000000, &comm->inner, error);
    if (status == STATUS_OK)
        comm->comm = (struct comm){
            .rank = comm->inner->rank, .n_ranks = comm->inner->n_ranks, .exchange = exchange};
    return status;
}

static void abort_mesh(struct cluster_rank *rank)
{
    if (rank->options.mesh != NULL)
        comm_mesh_abort(rank->options.mesh);
}

/* ---- The end of a rank ----------------------------------------------------------------------- */

/* Any thread. Says it once, and lets the other ranks know. */
static void break_off(struct cluster_rank *rank, enum status status, const char *reason)
{
    pthread_mutex_lock(&rank->mutex);
    bool first = !rank->broken && !rank->closing;
    rank->broken = true;
    pthread_mutex_unlock(&rank->mutex);
    abort_mesh(rank);
    if (first)
        rank->options.events->broken(rank->options.context, status, reason);
}

/* ---- Work ------------------------------------------------------------------------------------ */

/* Under the mutex; who held it last frees it. */
static void drop(struct rank_work *work)
{
    struct rank_work **link = &work->rank->works;
    if (--work->n_holders > 0)
        return;
    while (*link != work)
        link = &(*link)->next;
    *link = work->next;
    generation_request_close(work->request);
    free(work);
}

static void let_go(struct rank_work *work)
{
    struct cluster_rank *rank = work->rank;
    pthread_mutex_lock(&rank->mutex);
    drop(work);
    pthread_mutex_unlock(&rank->mutex);
}

/* Whether anyone wants to know of the work. */
static bool is_wanted(struct rank_work *work)
{
    struct cluster_rank *rank = work->rank;
    pthread_mutex_lock(&rank->mutex);
    bool wanted = !work->cancelled && !rank->broken && !rank->closing;
    pthread_mutex_unlock(&rank->mutex);
    return wanted;
}

static void give_end(struct rank_work *work, enum status status, const char *reason, json_t *data)
{
    const struct cluster_rank_options *options = &work->rank->options;
    if (is_wanted(work))
        options->events->end(options->context, work->id, status, reason, data);
    else
        json_decref(data);
}

/* Nothing more is told of the work. request_id: the scheduler's, 0 where it has none yet. Under the
 * mutex. */
static void cancel(struct rank_work *work, uint64_t request_id)
{
    work->cancelled = true;
    if (request_id != 0 && work->rank->scheduler != NULL)
        scheduler_cancel(work->rank->scheduler, request_id);
}

/* On the scheduler's thread: one more token. */
static void measure_rate(struct rank_work *work)
{
    struct cluster_rank *rank = work->rank;
    uint64_t now_ns = clock_now_ns();
    if (work->n_counted++ == 0)
        work->counted_ns = now_ns;
    if (work->n_counted <= RATE_TOKENS)
        return;
    double rate = RATE_TOKENS * 1e9 / (double)(now_ns - work->counted_ns + 1);
    work->counted_ns = now_ns;
    work->n_counted = 1;
    pthread_mutex_lock(&rank->mutex);
    rank->rates[rank->n_rates++ % N_RATES] = rate;
    pthread_mutex_unlock(&rank->mutex);
}

/* On the scheduler's thread. */
static void on_token(struct rank_work *work, const struct generation_event *event)
{
    struct cluster_rank *rank = work->rank;
    const struct cluster_rank_options *options = &rank->options;
    if (!is_wanted(work))
        return;
    measure_rate(work);
    json_t *data = generation_token_write(event, work->told_begun ? NULL : &work->begun);
    work->told_begun = true;
    if (data != NULL) {
        options->events->token(options->context, work->id, (uint32_t)event->index, event->token,
                               data);
        return;
    }
    give_end(work, STATUS_MEMORY, "out of memory", NULL);
    pthread_mutex_lock(&rank->mutex);
    cancel(work, event->id);
    pthread_mutex_unlock(&rank->mutex);
}

/* On the scheduler's thread. */
static void on_event(void *context, const struct generation_event *event)
{
    struct rank_work *work = context;
    switch (event->kind) {
    case GENERATION_PROMPT: /* is not asked for */
        return;
    case GENERATION_STARTED:
        work->begun = event->usage;
        return;
    case GENERATION_TOKEN:
        on_token(work, event);
        return;
    case GENERATION_FAILED:
        if (event->error->code == STATUS_LOST)
            break_off(work->rank, STATUS_LOST, event->error->text);
        else
            give_end(work, event->error->code, event->error->text, generation_end_write(event));
        break;
    case GENERATION_FINISHED:
        if (event->reason != FINISH_CANCELLED) {
            json_t *data = generation_end_write(event);
            if (data != NULL)
                give_end(work, STATUS_OK, NULL, data);
            else
                give_end(work, STATUS_MEMORY, "out of memory", NULL);
        }
        break;
    }
    let_go(work);
}

/* On the rank's thread. Gives the request to the scheduler, which holds the work then. */
static enum status schedule(struct rank_work *work, struct error *error)
{
    struct cluster_rank *rank = work->rank;
    struct generation_request *request = work->request;
    struct grammar *grammar = NULL;
    uint64_t id = 0;
    enum status status = STATUS_OK;
    if (request->grammar_asked != NULL)
        status = engine_grammar(rank->engine, request->grammar_asked, &grammar, error);
    if (status != STATUS_OK)
        return status;
    request->grammar = grammar;
    work->request = NULL;
    pthread_mutex_lock(&rank->mutex);
    work->n_holders++;
    pthread_mutex_unlock(&rank->mutex);
    status = scheduler_submit(rank->scheduler, request, on_event, work, &id, error);
    grammar_release(grammar);
    pthread_mutex_lock(&rank->mutex);
    work->request_id = id;
    if (status != STATUS_OK)
        drop(work);
    else if (work->cancelled)
        cancel(work, id);
    pthread_mutex_unlock(&rank->mutex);
    return status;
}

static void submit(struct rank_work *work)
{
    struct error error;
    enum status status = is_wanted(work) ? schedule(work, &error) : STATUS_OK;
    if (status != STATUS_OK)
        give_end(work, status, error.text, NULL);
    let_go(work);
}

enum status cluster_rank_start(struct cluster_rank *rank, uint64_t id, const json_t *payload,
                               const int32_t *tokens, size_t n_tokens, struct error *error)
{
    struct rank_work *work = calloc(1, sizeof *work);
    if (work == NULL)
        return error_memory(error, sizeof *work);
    *work = (struct rank_work){.rank = rank, .id = id, .n_holders = 1};
    enum status status = generation_request_read(&work->request, payload, error);
    if (status == STATUS_OK)
        status = generation_request_resume(work->request, tokens, n_tokens, error);
    pthread_mutex_lock(&rank->mutex);
    bool takes = rank->scheduler != NULL && !rank->broken;
    if (status == STATUS_OK && rank->scheduler == NULL && !rank->broken)
        status = error_set(error, STATUS_INVALID, "rank %u takes no work", rank->options.rank);
    if (status == STATUS_OK && takes) {
        work->next = rank->works;
        rank->works = work;
        *(rank->queue != NULL ? &rank->last_queued->queue_next : &rank->queue) = work;
        rank->last_queued = work;
        pthread_cond_broadcast(&rank->changed);
    }
    pthread_mutex_unlock(&rank->mutex);
    if (status != STATUS_OK || !takes) {
        generation_request_close(work->request);
        free(work);
    }
    return status;
}

void cluster_rank_cancel(struct cluster_rank *rank, uint64_t id)
{
    pthread_mutex_lock(&rank->mutex);
    struct rank_work *work = rank->works;
    while (work != NULL && work->id != id)
        work = work->next;
    if (work != NULL)
        cancel(work, work->request_id);
    pthread_mutex_unlock(&rank->mutex);
}

/* ---- The rank's thread ----------------------------------------------------------------------- */

/* Waits for work; NULL when the rank closes. */
static struct rank_work *next_work(struct cluster_rank *rank)
{
    pthread_mutex_lock(&rank->mutex);
    while (!rank->closing && rank->queue == NULL)
        pthread_cond_wait(&rank->changed, &rank->mutex);
    struct rank_work *work = rank->closing ? NULL : rank->queue;
    if (work != NULL)
        rank->queue = work->queue_next;
    pthread_mutex_unlock(&rank->mutex);
    return work;
}

static void lead(struct cluster_rank *rank)
{
    struct rank_work *work;
    while ((work = next_work(rank)) != NULL)
        submit(work);
    pthread_mutex_lock(&rank->mutex);
    struct scheduler *scheduler = rank->scheduler;
    rank->scheduler = NULL;
    pthread_mutex_unlock(&rank->mutex);
    scheduler_close(scheduler); /* ends what it has */
    pthread_mutex_lock(&rank->mutex);
    while (rank->queue != NULL) {
        work = rank->queue;
        rank->queue = work->queue_next;
        drop(work);
    }
    pthread_mutex_unlock(&rank->mutex);
}

static void follow(struct cluster_rank *rank)
{
    struct error error;
    enum status status = model_follow(rank->engine->model, &error);
    if (status == STATUS_OK)
        status = error_set(&error, STATUS_LOST, "the owner has closed the model");
    break_off(rank, status, error.text);
}

static enum status open_engine(struct cluster_rank *rank, struct error *error)
{
    struct cluster_rank_options *options = &rank->options;
    struct model_options model = options->model;
    unsigned parts = ENGINE_MODEL | (options->owner ? ENGINE_TOKENIZER | ENGINE_TEMPLATE : 0u);
    model.placement = options->placement.n_stages > 0 ? &options->placement : NULL;
    model.comm = options->mesh != NULL ? &rank->comm.comm : NULL;
    if (options->mesh != NULL && model.pool != NULL) {
        model.n_threads = pool_threads(model.pool);
        model.pool = NULL;
    }
    return engine_open(&rank->engine, rank->path, parts, &model, error);
}

static enum status open_all(struct cluster_rank *rank, struct error *error)
{
    struct scheduler *scheduler = NULL;
    enum status status = join(rank, error);
    if (status == STATUS_OK)
        status = open_engine(rank, error);
    if (status == STATUS_OK && rank->options.owner)
        status = scheduler_open(&scheduler, rank->engine, &rank->options.scheduler, error);
    if (status != STATUS_OK)
        return status;
    pthread_mutex_lock(&rank->mutex);
    rank->scheduler = scheduler;
    rank->pool = model_pool(rank->engine->model);
    rank->open = true;
    pthread_mutex_unlock(&rank->mutex);
    return STATUS_OK;
}

static void *rank_main(void *argument)
{
    struct cluster_rank *rank = argument;
    const struct cluster_rank_options *options = &rank->options;
    struct error error;
    enum status status = open_all(rank, &error);
    if (status != STATUS_OK)
        abort_mesh(rank); /* others wait for this one */
    pthread_mutex_lock(&rank->mutex);
    bool closing = rank->closing;
    pthread_mutex_unlock(&rank->mutex);
    if (!closing)
        options->events->opened(options->context, status, status == STATUS_OK ? NULL : error.text);
    if (status == STATUS_OK && options->owner)
        lead(rank);
    else if (status == STATUS_OK)
        follow(rank);
    pthread_mutex_lock(&rank->mutex);
    rank->open = false;
    rank->pool = NULL;
    pthread_mutex_unlock(&rank->mutex);
    engine_close(rank->engine);
    return NULL;
}

/* ---- Opening and closing --------------------------------------------------------------------- */

static void free_rank(struct cluster_rank *rank)
{
    pthread_cond_destroy(&rank->changed);
    pthread_mutex_destroy(&rank->mutex);
    free(rank->path);
    free(rank);
}

enum status cluster_rank_open(struct cluster_rank **out, const struct cluster_rank_options *options,
                              struct error *error)
{
    *out = NULL;
    struct cluster_rank *rank = calloc(1, sizeof *rank);
    if (rank == NULL)
        return error_memory(error, sizeof *rank);
    rank->options = *options;
    rank->path = strdup(options->path);
    pthread_mutex_init(&rank->mutex, NULL);
    pthread_cond_init(&rank->changed, NULL);
    enum status status = STATUS_OK;
    if (rank->path == NULL)
        status = error_memory(error, strlen(options->path));
    else if (!thread_start(&rank->thread, rank_main, rank))
        status = error_set(error, STATUS_MEMORY, "cannot start a thread");
    if (status != STATUS_OK) {
        free_rank(rank);
        return status;
    }
    *out = rank;
    return STATUS_OK;
}

void cluster_rank_close(struct cluster_rank *rank)
{
    if (rank == NULL)
        return;
    pthread_mutex_lock(&rank->mutex);
    rank->closing = true;
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->mutex);
    abort_mesh(rank);
    pthread_join(rank->thread, NULL);
    comm_mesh_close(rank->options.mesh);
    free_rank(rank);
}

void cluster_rank_abort(struct cluster_rank *rank)
{
    abort_mesh(rank);
}

void cluster_rank_steps(struct cluster_rank *rank, uint64_t *steps, bool *waiting)
{
    struct scheduler_metrics metrics;
    bool waits = atomic_load_explicit(&rank->comm.waits, memory_order_relaxed);
    *steps = atomic_load_explicit(&rank->comm.n_exchanges, memory_order_relaxed);
    *waiting = false;
    pthread_mutex_lock(&rank->mutex);
    if (rank->open && rank->pool != NULL)
        *steps += pool_jobs(rank->pool);
    if (rank->open && rank->scheduler != NULL) {
        scheduler_metrics(rank->scheduler, &metrics);
        *steps += metrics.steps;
        *waiting = metrics.n_queued + metrics.n_running + metrics.n_paused > 0 && !waits;
    } else if (rank->open && !rank->options.owner) {
        *waiting = !waits;
    }
    pthread_mutex_unlock(&rank->mutex);
}

double cluster_rank_reached(struct cluster_rank *rank)
{
    double best = 0;
    pthread_mutex_lock(&rank->mutex);
    for (size_t i = 0; i < N_RATES; i++)
        best = MAX(best, rank->rates[i]);
    pthread_mutex_unlock(&rank->mutex);
    return best;
}
