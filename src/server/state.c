/* What the page and `consort ps` show of the server, as JSON: counts and sizes, never a text of
 * anyone. */
#include "server/server_internal.h"

#include <jansson.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a model does, by the names of its metrics. */
static void add_work(json_t *entry, struct scheduler *scheduler)
{
#define VALUE(field) offsetof(struct scheduler_metrics, field)
    static const struct {
        const char *name;
        size_t offset;
    } values[] = {
        {"queued", VALUE(n_queued)},
        {"running", VALUE(n_running)},
        {"paused", VALUE(n_paused)},
        {"finished", VALUE(n_finished)},
        {"refused", VALUE(n_refused)},
        {"cancelled", VALUE(n_cancelled)},
        {"failed", VALUE(n_failed)},
        {"prompt_tokens", VALUE(prompt_tokens)},
        {"cached_tokens", VALUE(cached_tokens)},
        {"output_tokens", VALUE(output_tokens)},
        {"prefix_hits", VALUE(prefix_hits)},
        {"accepted", VALUE(n_accepted)},
        {"kv_pages", VALUE(pages)},
        {"kv_pages_free", VALUE(pages_free)},
        {"kv_pages_cached", VALUE(pages_cached)},
    };
#undef VALUE
    struct scheduler_metrics metrics;
    scheduler_metrics(scheduler, &metrics);
    for (size_t i = 0; i < ARRAY_COUNT(values); i++) {
        uint64_t value;
        memcpy(&value, (const char *)&metrics + values[i].offset, sizeof value);
        json_object_set_new(entry, values[i].name, json_integer((json_int_t)value));
    }
    json_object_set_new(entry, "tokens_per_second",
                        json_real(metrics.n_running > 0 ? metrics.tokens_per_s : 0));
}

/* Seconds until an open model is closed if nobody asks it; null: never. */
static json_t *keep_alive_left(const struct served_model *model)
{
    uint64_t used_ms = model->n_users > 0 ? 0 : (clock_now_ns() - model->used_ns) / 1000000;
    if (model->keep_alive_ms == UINT64_MAX)
        return json_null();
    return json_real((double)(model->keep_alive_ms - MIN(used_ms, model->keep_alive_ms)) / 1e3);
}

static const char *state_name(const struct served_model *model)
{
    static const char *const states[] = {
        [MODEL_CLOSED] = "closed", [MODEL_OPENING] = "opening", [MODEL_OPEN] = "open"};
    if (model->waits)
        return "waiting"; /* for memory */
    return model->stopping ? "stopping" : states[model->state];
}

json_t *state_describe(const struct served_model *model)
{
    struct stat facts;
    bool known = stat(model->path, &facts) == 0;
    json_t *entry = json_pack(
        "{s:s, s:s, s:I, s:I}", "name", model->name, "state", state_name(model), "file_bytes",
        known ? (json_int_t)facts.st_size : (json_int_t)0, "users", (json_int_t)model->n_users);
    if (model->state == MODEL_OPEN) {
        const struct model_desc *desc = model_description(model->engine->model);
        json_object_set_new(entry, "parameters", json_integer((json_int_t)desc->n_params));
        json_object_set_new(entry, "context",
                            json_integer((json_int_t)model_n_ctx(model->engine->model)));
        json_object_set_new(entry, "memory_bytes", json_integer((json_int_t)model->memory_bytes));
        json_object_set_new(entry, "keep_alive_s", keep_alive_left(model));
        add_work(entry, model->scheduler);
    }
    return entry;
}

void state_put(const struct server *server, const struct http_exchange *exchange,
               struct buffer *out)
{
    struct machine machine;
    json_t *models = json_array();
    for (size_t i = 0; i < server->n_models; i++)
        if (models_visible(&server->models[i], exchange))
            json_array_append_new(models, state_describe(&server->models[i]));
    machine_query(&machine);
    put_object(json_pack("{s:s, s:I, s:I, s:I, s:b, s:{s:I, s:I, s:I, s:I}, s:o}", "version",
                         CONSORT_VERSION, "pid", (json_int_t)getpid(), "uptime_ms",
                         (json_int_t)((clock_now_ns() - server->begin_ns) / 1000000), "connections",
                         (json_int_t)http_server_connections(server->http), "draining",
                         server->draining, "memory", "total_bytes",
                         (json_int_t)machine.memory_bytes, "free_bytes",
                         (json_int_t)machine.memory_free_bytes, "used_bytes",
                         (json_int_t)memory_used(server), "limit_bytes",
                         (json_int_t)server->memory_limit, "models", models),
               out);
}
