/* The compute pool. Each thread begins a job at its own share of the chunks and goes on without a
 * gap, which keeps the prefetchers in their stride; who has no more takes from the end of another's
 * share. A share is one word, (begin, end): taking from it is a compare-and-swap, and a job does
 * not end before all its chunks are done, so whoever took a chunk may then read the job's plain
 * fields. The caller waits for chunks, not for threads: one that the system has not scheduled holds
 * nothing up.
 *
 * Waiting is a bounded spin, then a condition variable. Who spins brings what it will read in the
 * next job (`ahead`) to its caches: memory would otherwise stand still meanwhile.
 *
 * `mutex` guards n_parked and closing; `turn_mutex`, which is never held together with it, guards
 * the two counters below it. */
#include "base/base.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define POOL_MAX_THREADS 1024
#define POOL_SPIN_NS 1000000 /* longer than what lies between the products of a token */
#define POOL_CLOCK_SPINS 64  /* looks between two looks at the clock */
#define POOL_RUNS 2 /* a thread takes this part of what is left of its share: long runs first */
#define POOL_AHEAD_STEP 1024
#define POOL_CACHE_LINE 64
#define POOL_MAX_CHUNKS ((size_t)1 << 30)

/* What belongs to one thread, on a cache line of its own. */
struct pool_slot {
    _Alignas(POOL_CACHE_LINE) atomic_uint_least64_t share; /* first chunk << 32 | end */
    atomic_uintptr_t ahead, ahead_end;                     /* what to bring to the caches */
};

struct pool {
    unsigned n_threads;
    struct pool_slot *slots; /* [n_threads] */
    pthread_t *threads;      /* [n_threads - 1]; the caller is thread 0 */
    unsigned n_started;

    pool_fn *fn;
    void *context;
    size_t n_items, chunk, n_chunks;
    _Alignas(POOL_CACHE_LINE) atomic_uint job;      /* counts up with every job */
    _Alignas(POOL_CACHE_LINE) atomic_size_t n_done; /* chunks of this one */

    pthread_mutex_t mutex;
    pthread_cond_t job_posted, job_done;
    unsigned n_parked;
    bool closing;
    atomic_uint_least64_t n_jobs; /* that have begun, small ones too */

    pthread_mutex_t turn_mutex;
    pthread_cond_t turn_ended;
    uint64_t next_turn, turn; /* that the next who asks gets; that runs or may begin */
};

struct pool_start {
    struct pool *pool;
    unsigned thread;
};

static inline void pool_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield takes no time */
#endif
}

/* Takes a part of a share, its owner from the front, others from the end. False: it is empty. */
static bool pool_take(struct pool_slot *slot, bool own, size_t *begin, size_t *end)
{
    uint_least64_t share = atomic_load_explicit(&slot->share, memory_order_relaxed), rest;
    do {
        *begin = (size_t)(share >> 32);
        *end = (uint32_t)share;
        if (*begin == *end)
            return false;
        if (own)
            *end = *begin + MAX((*end - *begin) / POOL_RUNS, 1);
        else
            *begin = *end - MAX((*end - *begin) / 2, 1);
        rest = own ? (uint_least64_t)*end << 32 | (uint32_t)share
                   : (share >> 32 << 32) | (uint_least64_t)*begin;
    } while (!atomic_compare_exchange_weak_explicit(&slot->share, &share, rest,
                                                    memory_order_acq_rel, memory_order_relaxed));
    return true;
}

/* Does chunks until none are left; true when it did the job's last. */
static bool pool_work(struct pool *pool, unsigned thread)
{
    bool last = false;
    for (unsigned i = 0; i < pool->n_threads;) {
        struct pool_slot *slot = &pool->slots[(thread + i) % pool->n_threads];
        size_t begin, end;
        if (!pool_take(slot, i == 0, &begin, &end)) {
            i++;
            continue;
        }
        pool->fn(pool->context, thread, begin * pool->chunk, MIN(end * pool->chunk, pool->n_items));
        size_t n_chunks = pool->n_chunks, n = end - begin;
        last = atomic_fetch_add_explicit(&pool->n_done, n, memory_order_acq_rel) + n == n_chunks;
    }
    return last;
}

/* One look's worth of waiting. */
static void pool_idle(struct pool_slot *slot)
{
    uintptr_t end = atomic_load_explicit(&slot->ahead_end, memory_order_acquire);
    uintptr_t at = atomic_load_explicit(&slot->ahead, memory_order_relaxed);
    if (at >= end) {
        pool_pause();
        return;
    }
    uintptr_t next = MIN(at + POOL_AHEAD_STEP, end);
    for (uintptr_t line = at; line < next; line += POOL_CACHE_LINE)
        __builtin_prefetch((const void *)line, 0, 2);
    /* Fails where another hint has come meanwhile. */
    atomic_compare_exchange_strong_explicit(&slot->ahead, &at, next, memory_order_relaxed,
                                            memory_order_relaxed);
}

static bool pool_has_job(struct pool *pool, unsigned seen)
{
    return atomic_load_explicit(&pool->job, memory_order_acquire) != seen;
}

static bool pool_is_done(struct pool *pool, unsigned unused)
{
    (void)unused;
    return atomic_load_explicit(&pool->n_done, memory_order_acquire) == pool->n_chunks;
}

/* False where it is not ready after POOL_SPIN_NS. */
static bool pool_spin(struct pool *pool, unsigned thread,
                      bool (*ready)(struct pool *pool, unsigned seen), unsigned seen)
{
    uint64_t begin_ns = clock_now_ns();
    for (unsigned i = 1; !ready(pool, seen); i++) {
        if (i % POOL_CLOCK_SPINS == 0 && clock_now_ns() - begin_ns > POOL_SPIN_NS)
            return false;
        pool_idle(&pool->slots[thread]);
    }
    return true;
}

/* Waits for another job than the one that was seen; false when the pool closes. */
static bool pool_wait_job(struct pool *pool, unsigned thread, unsigned *seen)
{
    bool closing = false;
    if (!pool_spin(pool, thread, pool_has_job, *seen)) {
        pthread_mutex_lock(&pool->mutex);
        pool->n_parked++;
        while (!pool->closing && !pool_has_job(pool, *seen))
            pthread_cond_wait(&pool->job_posted, &pool->mutex);
        pool->n_parked--;
        closing = pool->closing;
        pthread_mutex_unlock(&pool->mutex);
    }
    *seen = atomic_load_explicit(&pool->job, memory_order_acquire);
    return !closing;
}

static void *pool_main(void *argument)
{
    struct pool_start start = *(struct pool_start *)argument;
    struct pool *pool = start.pool;
    free(argument);
    unsigned seen = 0;
    while (pool_wait_job(pool, start.thread, &seen))
        if (pool_work(pool, start.thread)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->job_done);
            pthread_mutex_unlock(&pool->mutex);
        }
    return NULL;
}

static void pool_wait_done(struct pool *pool)
{
    if (pool_spin(pool, 0, pool_is_done, 0))
        return;
    pthread_mutex_lock(&pool->mutex);
    while (!pool_is_done(pool, 0))
        pthread_cond_wait(&pool->job_done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

void pool_run(struct pool *pool, pool_fn *fn, void *context, size_t n_items, size_t chunk)
{
    if (n_items == 0)
        return;
    atomic_fetch_add_explicit(&pool->n_jobs, 1, memory_order_relaxed);
    if (pool->n_threads == 1 || n_items <= chunk) {
        fn(context, 0, 0, n_items);
        return;
    }
    pool->fn = fn;
    pool->context = context;
    pool->n_items = n_items;
    pool->chunk = MAX(chunk, n_items / POOL_MAX_CHUNKS + 1);
    pool->n_chunks = (n_items + pool->chunk - 1) / pool->chunk;
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    for (unsigned i = 0; i < pool->n_threads; i++)
        atomic_store_explicit(&pool->slots[i].share,
                              (uint_least64_t)pool_first_chunk(pool, i, pool->n_chunks) << 32 |
                                  pool_first_chunk(pool, i + 1, pool->n_chunks),
                              memory_order_release);

    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
    if (pool->n_parked > 0)
        pthread_cond_broadcast(&pool->job_posted);
    pthread_mutex_unlock(&pool->mutex);

    pool_work(pool, 0);
    pool_wait_done(pool);
}

void pool_take_turn(struct pool *pool)
{
    pthread_mutex_lock(&pool->turn_mutex);
    uint64_t mine = pool->next_turn++;
    while (pool->turn != mine)
        pthread_cond_wait(&pool->turn_ended, &pool->turn_mutex);
    pthread_mutex_unlock(&pool->turn_mutex);
}

void pool_end_turn(struct pool *pool)
{
    pthread_mutex_lock(&pool->turn_mutex);
    pool->turn++;
    if (pool->next_turn > pool->turn)
        pthread_cond_broadcast(&pool->turn_ended);
    pthread_mutex_unlock(&pool->turn_mutex);
}

size_t pool_first_chunk(const struct pool *pool, unsigned thread, size_t n_chunks)
{
    return n_chunks * thread / pool->n_threads;
}

void pool_expect(struct pool *pool, unsigned thread, const void *data, size_t size_bytes)
{
    struct pool_slot *slot = &pool->slots[thread];
    atomic_store_explicit(&slot->ahead_end, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->ahead, (uintptr_t)data, memory_order_relaxed);
    atomic_store_explicit(&slot->ahead_end, (uintptr_t)data + size_bytes, memory_order_release);
}

enum status pool_open(struct pool **out, unsigned n_threads, struct error *error)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > POOL_MAX_THREADS)
        return error_set(error, STATUS_INVALID, "%u threads asked for; 1 to %d are possible",
                         n_threads, POOL_MAX_THREADS);
    struct pool *pool = aligned_alloc(POOL_CACHE_LINE, sizeof *pool);
    struct pool_slot *slots = aligned_alloc(POOL_CACHE_LINE, n_threads * sizeof *slots);
    if (pool == NULL || slots == NULL) {
        free(pool);
        free(slots);
        return error_memory(error, sizeof *pool + n_threads * sizeof *slots);
    }
    memset(slots, 0, n_threads * sizeof *slots);
    *pool = (struct pool){.n_threads = n_threads, .slots = slots};
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->job_posted, NULL);
    pthread_cond_init(&pool->job_done, NULL);
    pthread_mutex_init(&pool->turn_mutex, NULL);
    pthread_cond_init(&pool->turn_ended, NULL);
    enum status status = STATUS_OK;
    pool->threads = calloc(n_threads, sizeof *pool->threads);
    if (pool->threads == NULL)
        status = error_memory(error, n_threads * sizeof *pool->threads);
    while (status == STATUS_OK && pool->n_started < n_threads - 1) {
        struct pool_start *start = malloc(sizeof *start);
        if (start != NULL)
            *start = (struct pool_start){pool, pool->n_started + 1};
        if (start == NULL || !thread_start(&pool->threads[pool->n_started], pool_main, start)) {
            free(start);
            status = error_set(error, STATUS_MEMORY, "cannot start %u threads", n_threads);
            break;
        }
        pool->n_started++;
    }
    if (status != STATUS_OK) {
        pool_close(pool);
        return status;
    }
    *out = pool;
    return STATUS_OK;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->closing = true;
    pthread_cond_broadcast(&pool->job_posted);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->turn_ended);
    pthread_mutex_destroy(&pool->turn_mutex);
    pthread_cond_destroy(&pool->job_done);
    pthread_cond_destroy(&pool->job_posted);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool->slots);
    free(pool);
}

uint64_t pool_jobs(struct pool *pool)
{
    return atomic_load_explicit(&pool->n_jobs, memory_order_relaxed);
}

unsigned pool_threads(const struct pool *pool)
{
    return pool->n_threads;
}
