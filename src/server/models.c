/* The models this server knows: opened on their own thread when they are first asked for, closed
 * after they were idle for a while or when another needs their memory. */
#include "server/server_internal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_waiter {
    struct model_waiter *next;
    model_ready *ready;
    void *context;
};

enum status models_open(struct server *server, struct error *error)
{
    shelf_open(server);
    for (size_t i = 0; i < server->options.n_models; i++) {
        const struct server_model *given = &server->options.models[i];
        if (models_known(server, given->name) != NULL)
            return error_set(error, STATUS_INVALID,
                             "two models are named '%s': give one another name with NAME=FILE",
                             given->name);
        if (given->path == NULL) {
            enum status status = shelf_add(server, given->name, error);
            if (status != STATUS_OK)
                return status;
            continue;
        }
        uint64_t keep_alive_ms = server->options.keep_alive_ms;
        server->models[server->n_models++] =
            (struct served_model){.server = server,
                                  .name = given->name,
                                  .path = given->path,
                                  .keep_alive_ms = keep_alive_ms > 0 ? keep_alive_ms : UINT64_MAX};
    }
    return STATUS_OK;
}

static struct view without_tag(const char *name)
{
    static const char tag[] = ":latest";
    struct view view = view_of(name);
    size_t size = sizeof tag - 1;
    if (view.size > size && memcmp(name + view.size - size, tag, size) == 0)
        view.size -= size;
    return view;
}

struct served_model *models_known(struct server *server, const char *name)
{
    for (size_t i = 0; i < server->n_models; i++) {
        struct served_model *model = &server->models[i];
        if (!model->gone && view_equal(without_tag(model->name), without_tag(name)))
            return model;
    }
    return NULL;
}

struct served_model *models_find(struct server *server, const char *name)
{
    shelf_refresh(server);
    cluster_refresh(server);
    return models_known(server, name);
}

size_t models_n_ctx(const struct served_model *model)
{
    return model->state == MODEL_OPEN ? model_n_ctx(model->engine->model) : 0;
}

bool models_visible(const struct served_model *model, const struct http_exchange *exchange)
{
    return !model->gone && gateway_allows(exchange, model->name);
}

void models_unknown(const struct server *server, const struct http_exchange *exchange,
                    const char *name, struct api_error *error)
{
    struct buffer names = {0};
    for (size_t i = 0; i < server->n_models; i++)
        if (models_visible(&server->models[i], exchange))
            buffer_printf(&names, "%s%s", names.size > 0 ? ", " : "", server->models[i].name);
    api_invalid(error, "model", "there is no model '%.100s' here; there is: %.300s",
                name != NULL ? name : "", names.size > 0 ? names.data : "none");
    error->http_status = 404;
    error->code = "model_not_found";
    buffer_free(&names);
}

static void close_model(struct served_model *model)
{
    net_timer_cancel(model->idle);
    model->idle = NULL;
    scheduler_close(model->scheduler);
    engine_close(model->engine);
    model->scheduler = NULL;
    model->engine = NULL;
    model->memory_bytes = 0;
    model->stopping = false;
    model->state = MODEL_CLOSED;
}

/* ---- Opening ---------------------------------------------------------------------------------
 *
 * Models are opened one after the other, so that each knows what the one before left. The first in
 * line may need memory that models in use hold; then it is tried again whenever one falls idle, and
 * the line waits with it, but not for ever. */

/* One attempt, which runs on a thread of its own and then on the loop. */
struct opening {
    struct served_model *model;
    struct memory_room room;
    char digest[STORE_DIGEST_BYTES]; /* of the file; "": it is not in the store */
    pthread_t thread;
    enum memory_plan plan;
    struct engine *engine;
    struct scheduler *scheduler;
    enum status status;
    struct error error;
};

static void begin_opening(struct server *server);

void models_tell_waiters(struct served_model *model, const struct api_error *error)
{
    struct model_waiter *waiter = model->waiting;
    model->waiting = NULL;
    while (waiter != NULL) {
        struct model_waiter *next = waiter->next;
        if (error == NULL)
            model->n_users++;
        waiter->ready(waiter->context, error);
        free(waiter);
        waiter = next;
    }
}

static void step_out(struct served_model *model)
{
    struct server *server = model->server;
    net_timer_cancel(server->blocked);
    server->blocked = NULL;
    server->line = model->next;
    model->next = NULL;
    model->waits = false;
}

static void begin_next(struct server *server)
{
    if (server->line == NULL)
        return;
    server->line->asked_ns = clock_now_ns();
    begin_opening(server);
}

/* The first in line is open, or error says why not; the next one's turn. */
static void leave_line(struct served_model *model, const struct api_error *error)
{
    struct server *server = model->server;
    step_out(model);
    if (error != NULL) {
        model->state = MODEL_CLOSED;
        model->stopping = false;
        server_log_fields(server,
                          json_pack("{s:s, s:s, s:s}", "event", "refused", "model", model->name,
                                    "error", error->text),
                          "cannot open %s: %s", model->name, error->text);
    }
    models_tell_waiters(model, error);
    begin_next(server);
}

/* The cluster is to compute the first in line, which is too large for this server. */
static void hand_over(struct served_model *model)
{
    struct server *server = model->server;
    server_logf(server, "%s does not fit here: other nodes of the cluster are to help",
                model->name);
    step_out(model);
    model->spread = true;
    cluster_meet(model);
    begin_next(server);
}

static void log_closing(const struct served_model *model, const char *format, ...)
    BASE_PRINTF(2, 3);

static void log_closing(const struct served_model *model, const char *format, ...)
{
    char why[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    server_log_fields(
        model->server,
        json_pack("{s:s, s:s, s:s}", "event", "closing", "model", model->name, "why", why),
        "closing %s: %s", model->name, why);
}

static void close_oldest_idle(struct server *server)
{
    struct served_model *oldest = NULL;
    for (size_t i = 0; i < server->n_models; i++) {
        struct served_model *model = &server->models[i];
        if (model->state == MODEL_OPEN && model->n_users == 0 &&
            (oldest == NULL || model->used_ns < oldest->used_ns))
            oldest = model;
    }
    if (oldest == NULL)
        return;
    log_closing(oldest, "%s needs the memory", server->line->name);
    close_model(oldest);
}

static void try_again(void *context)
{
    struct server *server = context;
    server->blocked = NULL;
    begin_opening(server);
}

/* The first in line waits for models in use, or gives up. */
static void wait_for_memory(struct served_model *model)
{
    struct server *server = model->server;
    uint64_t bound_ms = (uint64_t)server->wait_s * 1000;
    uint64_t waited_ms = (clock_now_ns() - model->asked_ns) / 1000000;
    if (waited_ms < bound_ms) {
        if (!model->waits)
            server_logf(server, "%s waits for memory that models in use hold", model->name);
        model->waits = true;
        server->blocked = net_loop_after(server->loop, bound_ms - waited_ms, try_again, server);
        if (server->blocked != NULL)
            return;
    }
    struct api_error error = {.http_status = 503, .type = "server_error", .retry_after_s = 10};
    snprintf(error.text, sizeof error.text,
             "%.100s needs memory that models hold which others are using: try again later",
             model->name);
    leave_line(model, &error);
}

/* When to ask again for what does not fit: others may leave the machine's memory, but not soon. */
#define TOO_LARGE_S 300

static void refuse_opening(struct served_model *model, const struct error *reason)
{
    struct api_error error;
    if (reason->code == STATUS_MEMORY && cluster_may_help(model)) {
        hand_over(model);
        return;
    }
    api_error_from(&error, reason);
    model->too_large = reason->code == STATUS_MEMORY;
    if (model->too_large) {
        char limit[32];
        error.retry_after_s = TOO_LARGE_S;
        snprintf(error.text, sizeof error.text,
                 "%.100s does not fit in memory: %s. This server may use %s (--memory)",
                 model->name, reason->text, size_text(limit, (double)model->server->memory_limit));
    }
    leave_line(model, &error);
}

static void log_opened(const struct served_model *model)
{
    const struct model *opened = model->engine->model;
    uint32_t trained = model_description(opened)->n_ctx_train, n_ctx = model_n_ctx(opened);
    char part[48] = "", a[32], b[32], c[32];
    if (n_ctx < trained)
        snprintf(part, sizeof part, " of the %u it was trained for", trained);
    json_t *fields = json_pack(
        "{s:s, s:s, s:f, s:I, s:I, s:I, s:I}", "event", "opened", "model", model->name, "seconds",
        (double)model->engine->load_ns / 1e9, "context", (json_int_t)n_ctx, "memory_bytes",
        (json_int_t)model->memory_bytes, "used_bytes", (json_int_t)memory_used(model->server),
        "limit_bytes", (json_int_t)model->server->memory_limit);
    server_log_fields(
        model->server, fields,
        "opened %s in %.2f s: context %u tokens%s, KV cache %s for %u, %s; %s of %s in use",
        model->name, (double)model->engine->load_ns / 1e9, n_ctx, part,
        quant_info(model_kv_format(opened))->name, model_page_count(opened) * MODEL_KV_PAGE_TOKENS,
        size_text(a, (double)model->memory_bytes), size_text(b, (double)memory_used(model->server)),
        size_text(c, (double)model->server->memory_limit));
}

/* On the loop. */
static void end_opening(void *context)
{
    struct opening *opening = context;
    struct served_model *model = opening->model;
    pthread_join(opening->thread, NULL);
    model->opening = NULL;
    if (opening->plan == MEMORY_CLOSE_IDLE) {
        close_oldest_idle(model->server);
        begin_opening(model->server);
    } else if (opening->plan == MEMORY_WAIT) {
        wait_for_memory(model);
    } else if (opening->status != STATUS_OK) {
        refuse_opening(model, &opening->error);
    } else {
        model->engine = opening->engine;
        model->scheduler = opening->scheduler;
        model->state = MODEL_OPEN;
        model->used_ns = clock_now_ns();
        model->memory_bytes = model_memory_bytes(model->engine->model);
        log_opened(model);
        leave_line(model, NULL);
    }
    free(opening);
}

/* Looks at the file first: a model that has no room is not opened. */
static enum status plan_opening(struct opening *opening, struct model_options *options)
{
    struct weights *weights;
    opening->plan = MEMORY_REFUSE;
    enum status status = weights_open(&weights, opening->model->path, &opening->error);
    if (status != STATUS_OK)
        return status;
    opening->plan = memory_plan(&opening->room, weights, options, &opening->error);
    weights_close(weights);
    return opening->plan == MEMORY_REFUSE ? opening->error.code : STATUS_OK;
}

enum status models_set_template(const struct served_model *model, struct engine *engine,
                                struct error *error)
{
    const char *of_all = model->server->options.chat_template;
    const struct store_model *stored = model->stored;
    if (of_all != NULL)
        return engine_set_template(engine, view_of(of_all), error);
    return stored == NULL ? STATUS_OK
                          : engine_set_go_template(engine, stored->chat_template,
                                                   stored->template_wins, error);
}

static enum status open_parts(struct opening *opening, const struct model_options *model)
{
    const struct server_options *options = &opening->model->server->options;
    enum status status =
        engine_open(&opening->engine, opening->model->path,
                    ENGINE_TOKENIZER | ENGINE_TEMPLATE | ENGINE_MODEL, model, &opening->error);
    if (status == STATUS_OK)
        status = models_set_template(opening->model, opening->engine, &opening->error);
    struct scheduler_options scheduler = options->scheduler;
    scheduler.kv_disk = opening->model->server->kv_disk;
    scheduler.file_digest = opening->digest[0] != '\0' ? opening->digest : NULL;
    if (status == STATUS_OK)
        status = scheduler_open(&opening->scheduler, opening->engine, &scheduler, &opening->error);
    if (status != STATUS_OK)
        engine_close(opening->engine);
    return status;
}

static void *open_engine(void *argument)
{
    struct opening *opening = argument;
    struct server *server = opening->model->server;
    struct model_options options = server->options.model;
    options.pool = server->pool;
    opening->status = plan_opening(opening, &options);
    if (opening->status == STATUS_OK && opening->plan == MEMORY_OPEN)
        opening->status = open_parts(opening, &options);
    net_loop_post(server->loop, end_opening, opening);
    return NULL;
}

/* Of the first in line. */
static void begin_opening(struct server *server)
{
    struct api_error error = {.http_status = 503, .type = "server_error", .retry_after_s = 1};
    struct served_model *model = server->line;
    struct opening *opening = calloc(1, sizeof *opening);
    net_timer_cancel(server->blocked);
    server->blocked = NULL;
    if (opening != NULL) {
        opening->model = model;
        opening->room = memory_room(server);
        if (model->stored != NULL)
            memcpy(opening->digest, model->stored->digest, sizeof opening->digest);
        model->opening = opening;
        if (thread_start(&opening->thread, open_engine, opening))
            return;
        free(opening);
        model->opening = NULL;
    }
    snprintf(error.text, sizeof error.text, "cannot start a thread to open %.100s", model->name);
    leave_line(model, &error);
}

static void join_line(struct served_model *model)
{
    struct served_model **last = &model->server->line;
    model->state = MODEL_OPENING;
    model->too_large = false;
    while (*last != NULL)
        last = &(*last)->next;
    *last = model;
    if (model->server->line == model) {
        model->asked_ns = clock_now_ns();
        begin_opening(model->server);
    }
}

/* ---- Use ------------------------------------------------------------------------------------- */

void models_acquire(struct served_model *model, model_ready *ready, void *context)
{
    net_timer_cancel(model->idle);
    model->idle = NULL;
    if (model->state == MODEL_AWAY && model->n_users == 0 && !cluster_is_away(model))
        close_model(model); /* it is this server's own again */
    if (model->state == MODEL_OPEN || model->state == MODEL_AWAY) {
        model->n_users++;
        ready(context, NULL);
        return;
    }
    struct model_waiter *waiter = malloc(sizeof *waiter);
    if (waiter == NULL) {
        struct api_error error = {
            .http_status = 503, .type = "server_error", .text = "out of memory"};
        ready(context, &error);
        return;
    }
    *waiter = (struct model_waiter){.ready = ready, .context = context};
    struct model_waiter **last = &model->waiting;
    while (*last != NULL)
        last = &(*last)->next;
    *last = waiter;
    if (model->state == MODEL_CLOSED && cluster_is_away(model))
        cluster_meet(model);
    else if (model->state == MODEL_CLOSED)
        join_line(model);
}

static void close_idle(void *context)
{
    struct served_model *model = context;
    model->idle = NULL;
    log_closing(model, "nobody asked it for %.0f s", (double)model->keep_alive_ms / 1e3);
    close_model(model);
}

static void close_stopped(struct served_model *model)
{
    log_closing(model, "it was stopped");
    close_model(model);
}

void models_release(struct served_model *model)
{
    struct server *server = model->server;
    model->used_ns = clock_now_ns();
    if (--model->n_users > 0 || server->closing)
        return;
    if (model->stopping)
        close_stopped(model);
    else if (model->keep_alive_ms < UINT64_MAX && model->state == MODEL_OPEN)
        model->idle = net_loop_after(server->loop, model->keep_alive_ms, close_idle, model);
    if (server->blocked != NULL)
        begin_opening(server);
}

void models_stop(struct served_model *model)
{
    model->stopping =
        model->state == MODEL_OPENING || (model->state == MODEL_OPEN && model->n_users > 0);
    if (model->state == MODEL_OPEN && model->n_users == 0)
        close_stopped(model);
}

void models_close(struct server *server)
{
    struct api_error error = {
        .http_status = 503, .type = "server_error", .text = "the server is shutting down"};
    net_timer_cancel(server->blocked);
    server->blocked = NULL;
    server->line = NULL;
    for (size_t i = 0; i < server->n_models; i++) {
        struct served_model *model = &server->models[i];
        struct opening *opening = model->opening;
        if (opening != NULL) {
            pthread_join(opening->thread, NULL);
            model->scheduler = opening->scheduler;
            model->engine = opening->scheduler != NULL ? opening->engine : NULL;
            free(opening);
            model->opening = NULL;
        }
        models_tell_waiters(model, &error);
        close_model(model);
    }
}
