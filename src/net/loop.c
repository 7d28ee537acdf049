/* The loop is libevent's event base, used by one thread only, so that it needs no locks. Other
 * threads append to a queue under a mutex and write a byte into a pipe when the queue was empty. */
#include "net/internal.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct call {
    net_fn *fn;
    void *context;
};

struct call_list {
    struct call *calls;
    size_t count, capacity;
};

struct signal_watch {
    struct signal_watch *next;
    struct event *event;
    struct call call;
};

struct net_loop {
    struct event_base *base;
    struct event *wake_event;
    int wake_read, wake_write;
    struct signal_watch *signals;
    struct net_timer *timers;
    struct call_list running; /* of the loop's thread: what wake took from posted */
    pthread_mutex_t mutex;
    struct call_list posted; /* under mutex, as the next two */
    bool woken;              /* a byte is in the pipe */
    bool stopping;
};

struct net_timer {
    struct net_loop *loop;
    struct net_timer *next, *previous;
    struct event event;
    struct call call;
};

struct event_base *net_loop_base(const struct net_loop *loop)
{
    return loop->base;
}

/* Must be called with the mutex held. A full pipe is as good as one more byte. */
static void wake(struct net_loop *loop)
{
    if (loop->woken)
        return;
    loop->woken = true;
    while (write(loop->wake_write, "", 1) < 0 && errno == EINTR)
        continue;
}

static void on_wake(evutil_socket_t fd, short what, void *context)
{
    struct net_loop *loop = context;
    (void)what;
    char bytes[16];
    while (read(fd, bytes, sizeof bytes) > 0)
        continue;
    pthread_mutex_lock(&loop->mutex);
    struct call_list taken = loop->posted;
    loop->posted = loop->running;
    loop->posted.count = 0;
    loop->woken = false;
    bool stopping = loop->stopping;
    pthread_mutex_unlock(&loop->mutex);
    loop->running = taken;
    for (size_t i = 0; i < taken.count; i++)
        taken.calls[i].fn(taken.calls[i].context);
    loop->running.count = 0;
    if (stopping)
        event_base_loopbreak(loop->base);
}

static enum status open_pipe(struct net_loop *loop, struct error *error)
{
    int ends[2];
    if (pipe(ends) != 0)
        return error_set(error, STATUS_IO, "the event loop cannot open a pipe: %s",
                         strerror(errno));
    loop->wake_read = ends[0];
    loop->wake_write = ends[1];
    for (int i = 0; i < 2; i++) {
        evutil_make_socket_nonblocking(ends[i]);
        evutil_make_socket_closeonexec(ends[i]);
    }
    return STATUS_OK;
}

enum status net_loop_open(struct net_loop **out, struct error *error)
{
    struct net_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL)
        return error_memory(error, sizeof *loop);
    pthread_mutex_init(&loop->mutex, NULL);
    loop->wake_read = loop->wake_write = -1;
    signal(SIGPIPE, SIG_IGN);
    enum status status = open_pipe(loop, error);
    if (status == STATUS_OK) {
        loop->base = event_base_new();
        if (loop->base != NULL)
            loop->wake_event =
                event_new(loop->base, loop->wake_read, EV_READ | EV_PERSIST, on_wake, loop);
        if (loop->wake_event == NULL || event_add(loop->wake_event, NULL) != 0)
            status =
                error_set(error, STATUS_IO, "the event loop cannot be opened: %s", strerror(errno));
    }
    if (status != STATUS_OK) {
        net_loop_close(loop);
        return status;
    }
    *out = loop;
    return STATUS_OK;
}

void net_loop_close(struct net_loop *loop)
{
    if (loop == NULL)
        return;
    while (loop->signals != NULL) {
        struct signal_watch *watch = loop->signals;
        loop->signals = watch->next;
        event_free(watch->event);
        free(watch);
    }
    while (loop->timers != NULL)
        net_timer_cancel(loop->timers);
    if (loop->wake_event != NULL)
        event_free(loop->wake_event);
    if (loop->base != NULL)
        event_base_free(loop->base);
    if (loop->wake_read >= 0) {
        close(loop->wake_read);
        close(loop->wake_write);
    }
    pthread_mutex_destroy(&loop->mutex);
    free(loop->running.calls);
    free(loop->posted.calls);
    free(loop);
}

void net_loop_run(struct net_loop *loop)
{
    event_base_loop(loop->base, EVLOOP_NO_EXIT_ON_EMPTY);
    pthread_mutex_lock(&loop->mutex);
    loop->stopping = false;
    pthread_mutex_unlock(&loop->mutex);
}

void net_loop_stop(struct net_loop *loop)
{
    pthread_mutex_lock(&loop->mutex);
    loop->stopping = true;
    wake(loop);
    pthread_mutex_unlock(&loop->mutex);
}

void net_loop_settle(struct net_loop *loop)
{
    size_t n;
    do {
        pthread_mutex_lock(&loop->mutex);
        n = loop->posted.count;
        pthread_mutex_unlock(&loop->mutex);
        if (n > 0)
            on_wake(loop->wake_read, 0, loop);
    } while (n > 0);
}

static bool append(struct call_list *list, struct call call)
{
    if (list->count == list->capacity) {
        size_t capacity = MAX((size_t)64, list->capacity * 2);
        struct call *calls = realloc(list->calls, capacity * sizeof *calls);
        if (calls == NULL)
            return false;
        list->calls = calls;
        list->capacity = capacity;
    }
    list->calls[list->count++] = call;
    return true;
}

bool net_loop_post(struct net_loop *loop, net_fn *fn, void *context)
{
    pthread_mutex_lock(&loop->mutex);
    bool done = append(&loop->posted, (struct call){fn, context});
    if (done)
        wake(loop);
    pthread_mutex_unlock(&loop->mutex);
    return done;
}

static void on_timer(evutil_socket_t fd, short what, void *context)
{
    struct net_timer *timer = context;
    struct call call = timer->call;
    (void)fd;
    (void)what;
    net_timer_cancel(timer);
    call.fn(call.context);
}

struct net_timer *net_loop_after(struct net_loop *loop, uint64_t delay_ms, net_fn *fn,
                                 void *context)
{
    struct net_timer *timer = calloc(1, sizeof *timer);
    struct timeval delay = net_timeval(delay_ms);
    if (timer == NULL)
        return NULL;
    timer->loop = loop;
    timer->call = (struct call){fn, context};
    evtimer_assign(&timer->event, loop->base, on_timer, timer);
    if (evtimer_add(&timer->event, &delay) != 0) {
        free(timer);
        return NULL;
    }
    timer->next = loop->timers;
    if (timer->next != NULL)
        timer->next->previous = timer;
    loop->timers = timer;
    return timer;
}

void net_timer_cancel(struct net_timer *timer)
{
    if (timer == NULL)
        return;
    if (timer->next != NULL)
        timer->next->previous = timer->previous;
    if (timer->previous != NULL)
        timer->previous->next = timer->next;
    else
        timer->loop->timers = timer->next;
    event_del(&timer->event);
    free(timer);
}

static void on_signal(evutil_socket_t number, short what, void *context)
{
    struct signal_watch *watch = context;
    (void)number;
    (void)what;
    watch->call.fn(watch->call.context);
}

enum status net_loop_on_signal(struct net_loop *loop, int number, net_fn *fn, void *context,
                               struct error *error)
{
    struct signal_watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL)
        return error_memory(error, sizeof *watch);
    watch->call = (struct call){fn, context};
    watch->event = evsignal_new(loop->base, number, on_signal, watch);
    if (watch->event == NULL || evsignal_add(watch->event, NULL) != 0) {
        if (watch->event != NULL)
            event_free(watch->event);
        free(watch);
        return error_set(error, STATUS_IO, "signal %d cannot be caught: %s", number,
                         strerror(errno));
    }
    watch->next = loop->signals;
    loop->signals = watch;
    return STATUS_OK;
}

struct timeval net_timeval(uint64_t ms)
{
    return (struct timeval){.tv_sec = (time_t)(ms / 1000),
                            .tv_usec = (suseconds_t)(ms % 1000 * 1000)};
}

size_t net_raise_descriptors(size_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    /* macOS refuses numbers below its hard limit that are above another limit, which it does not
     * tell. */
    for (rlim_t more = MIN((rlim_t)wanted, limit.rlim_max); more > limit.rlim_cur;
         more = limit.rlim_cur + (more - limit.rlim_cur) / 2) {
        struct rlimit raised = {.rlim_cur = more, .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            return (size_t)more;
    }
    return (size_t)MIN(limit.rlim_cur, (rlim_t)SIZE_MAX);
}
