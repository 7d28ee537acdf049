/* Life cycle, routes, and the answers that need no model. */
#include "server/server_internal.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_S 30
#define SLEEPY_MS 30000 /* a lock of its own for each of many short requests would cost much */
#define MEMORY_WAIT_S 60
#define BODY_BYTES ((size_t)64 << 20)
#define DESCRIPTORS 16384

static void write_log(struct server *server, const json_t *fields, const char *format,
                      va_list arguments)
{
    char line[1024];
    if (server->options.log == NULL)
        return;
    vsnprintf(line, sizeof line, format, arguments);
    server->options.log(server->options.log_context, line, fields);
}

void server_logf(struct server *server, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_log(server, NULL, format, arguments);
    va_end(arguments);
}

void server_log_fields(struct server *server, json_t *fields, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_log(server, fields, format, arguments);
    va_end(arguments);
    json_decref(fields);
}

/* ---- Replies --------------------------------------------------------------------------------- */

void reply_json(struct http_exchange *exchange, int status, struct view body)
{
    http_reply(exchange, status, "application/json", body, NULL);
}

/* What the HTTP server refuses by itself has the format of the API that was asked for. */
static void refuse_request(void *context, const struct http_exchange *exchange, int status,
                           const char *text, struct buffer *body)
{
    struct api_error error = {.http_status = status,
                              .type = status < 500 ? "invalid_request_error" : "server_error"};
    (void)context;
    snprintf(error.text, sizeof error.text, "%s", text);
    api_format_of(http_path(exchange))->error(&error, false, body);
}

void reply_error(struct server *server, struct http_exchange *exchange,
                 const struct api_format *format, const struct api_error *error)
{
    struct buffer body = {0};
    char seconds[16];
    struct http_field fields[] = {{NULL, NULL}, {NULL, NULL}};
    snprintf(seconds, sizeof seconds, "%u", error->retry_after_s);
    if (error->retry_after_s > 0)
        fields[0] = (struct http_field){"Retry-After", seconds};
    if (error->http_status == 401)
        fields[0] = (struct http_field){"WWW-Authenticate", "Bearer"};
    struct view path = http_path(exchange);
    if (format == NULL)
        format = api_format_of(path);
    format->error(error, false, &body);
    const char *code = error->code != NULL ? error->code : error->type;
    server_log_fields(
        server,
        json_pack("{s:s, s:s, s:s%, s:i, s:s}", "event", "request", "client", http_peer(exchange),
                  "path", path.data, path.size, "status", error->http_status, "error", code),
        "%s %.*s %d %s", http_peer(exchange), (int)path.size, path.data, error->http_status, code);
    http_reply(exchange, error->http_status, "application/json",
               (struct view){body.data, body.size}, fields);
    buffer_free(&body);
}

/* ---- Routes ---------------------------------------------------------------------------------- */

static void put_model(const struct server *server, const struct served_model *model,
                      struct buffer *out)
{
    buffer_append_text(out, "{\"id\":");
    api_json_string(out, view_of(model->name));
    buffer_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"consort\"}",
                  (long long)(model->stored != NULL ? model->stored->modified_s : server->begin_s));
}

static void get_models(struct server *server, struct http_exchange *exchange)
{
    struct buffer body = {0};
    const char *between = "";
    shelf_refresh(server);
    cluster_refresh(server);
    buffer_append_text(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < server->n_models; i++) {
        if (!models_visible(&server->models[i], exchange))
            continue;
        buffer_append_text(&body, between);
        put_model(server, &server->models[i], &body);
        between = ",";
    }
    buffer_append_text(&body, "]}");
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

static void get_health(struct server *server, struct http_exchange *exchange)
{
    bool opening = false;
    for (size_t i = 0; i < server->n_models; i++)
        opening |= server->models[i].state == MODEL_OPENING;
    reply_json(exchange, 200,
               view_of(opening ? "{\"status\":\"loading\"}" : "{\"status\":\"ok\"}"));
}

static void post_chat(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, openai_read, API_CHAT);
}

static void post_completion(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, openai_read, API_COMPLETION);
}

static void post_embeddings(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, openai_read, API_EMBEDDINGS);
}

static void post_ollama_chat(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, ollama_read, API_CHAT);
}

static void post_ollama_generate(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, ollama_read, API_COMPLETION);
}

static void post_ollama_embed(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, ollama_read, API_EMBEDDINGS);
}

static void post_ollama_embedding(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, ollama_read_embedding, API_EMBEDDINGS);
}

static void post_ollama_show(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, ollama_read, API_SHOW);
}

static void post_messages(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, anthropic_read, API_CHAT);
}

static void post_messages_count(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, anthropic_read, API_COUNT);
}

static void post_llama_completion(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_COMPLETION);
}

static void post_either_completion(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read_either, API_COMPLETION);
}

static void post_either_embeddings(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read_either, API_EMBEDDINGS);
}

static void post_llama_embedding(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_EMBEDDINGS);
}

static void post_infill(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read_infill, API_COMPLETION);
}

static void post_response(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, responses_read, API_CHAT);
}

static void post_rerank(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, rerank_read, API_RERANK);
}

static void post_tokenize(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_TOKENIZE);
}

static void post_detokenize(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_DETOKENIZE);
}

static void post_apply_template(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_RENDER);
}

static void get_props(struct server *server, struct http_exchange *exchange)
{
    generate(server, exchange, llama_read, API_PROPS);
}

static void get_slots(struct server *server, struct http_exchange *exchange)
{
    struct buffer body = {0};
    models_put_slots(server, exchange, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

static void get_version(struct server *server, struct http_exchange *exchange)
{
    (void)server;
    reply_json(exchange, 200, view_of("{\"version\":\"" CONSORT_VERSION "\"}"));
}

static void get_ps(struct server *server, struct http_exchange *exchange)
{
    struct buffer body = {0};
    shelf_refresh(server);
    models_list(server, exchange, true, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

static void get_state(struct server *server, struct http_exchange *exchange)
{
    struct buffer body = {0};
    shelf_refresh(server);
    state_put(server, exchange, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

static void get_page(struct server *server, struct http_exchange *exchange)
{
    page_reply(&server->page, exchange);
}

static void get_metrics(struct server *server, struct http_exchange *exchange);

static const struct route {
    const char *method, *path;
    void (*handler)(struct server *server, struct http_exchange *exchange);
} routes[] = {
    {"GET", "/", get_page},
    {"GET", "/index.html", get_page},
    {"GET", "/consort/state", get_state},
    {"GET", "/health", get_health},
    {"GET", "/metrics", get_metrics},
    {"GET", "/v1/models", get_models},
    {"POST", "/v1/chat/completions", post_chat},
    {"POST", "/completions", post_either_completion},
    {"POST", "/v1/completions", post_completion},
    {"POST", "/embeddings", post_either_embeddings},
    {"POST", "/v1/embeddings", post_embeddings},
    {"POST", "/v1/responses", post_response},
    {"POST", "/v1/rerank", post_rerank},
    {"POST", "/v1/reranking", post_rerank},
    {"POST", "/v1/messages", post_messages},
    {"POST", "/v1/messages/count_tokens", post_messages_count},
    {"POST", "/completion", post_llama_completion},
    {"POST", "/embedding", post_llama_embedding},
    {"POST", "/infill", post_infill},
    {"POST", "/tokenize", post_tokenize},
    {"POST", "/detokenize", post_detokenize},
    {"POST", "/apply-template", post_apply_template},
    {"GET", "/props", get_props},
    {"GET", "/slots", get_slots},
    {"GET", "/api/version", get_version},
    {"GET", "/api/tags", models_tags},
    {"GET", "/api/ps", get_ps},
    {"POST", "/api/show", post_ollama_show},
    {"POST", "/api/pull", library_pull},
    {"DELETE", "/api/delete", library_delete},
    {"POST", "/api/copy", library_copy},
    {"POST", "/api/create", library_create},
    {"POST", "/api/chat", post_ollama_chat},
    {"POST", "/api/generate", post_ollama_generate},
    {"POST", "/api/embed", post_ollama_embed},
    {"POST", "/api/embeddings", post_ollama_embedding},
    {"POST", "/consort/stop", operate_stop},
    {"POST", "/consort/down", operate_down},
    {"GET", "/consort/cluster", cluster_get_status},
    {"POST", "/consort/cluster", operate_cluster},
};

/* The paths of /v1 also answer without it. */
static bool path_is(struct view path, const char *route)
{
    return view_equal(path, view_of(route)) ||
           (strncmp(route, "/v1/", 4) == 0 && view_equal(path, view_of(route + 3)));
}

/* The page asks for the key itself. */
static bool needs_key(struct view path)
{
    static const char *const open[] = {"/", "/index.html", "/health"};
    for (size_t i = 0; i < ARRAY_COUNT(open); i++)
        if (path_is(path, open[i]))
            return false;
    return true;
}

static void not_found(struct server *server, struct http_exchange *exchange, bool wrong_method)
{
    struct view method = http_method(exchange), path = http_path(exchange);
    struct api_error error = {.http_status = wrong_method ? 405 : 404,
                              .type = "invalid_request_error",
                              .code = wrong_method ? "method_not_allowed" : "not_found"};
    snprintf(error.text, sizeof error.text,
             wrong_method ? "%.*s does not work on %.*s" : "there is nothing at %.*s %.*s",
             (int)MIN(method.size, 20), method.data, (int)MIN(path.size, 200), path.data);
    reply_error(server, exchange, NULL, &error);
}

static void get_model(struct server *server, struct http_exchange *exchange, struct view name)
{
    struct api_error error;
    struct buffer asked = {0};
    buffer_append(&asked, name.data, name.size);
    const struct served_model *model = asked.size > 0 ? models_find(server, asked.data) : NULL;
    if (model == NULL) {
        models_unknown(server, exchange, asked.size > 0 ? asked.data : "", &error);
        reply_error(server, exchange, NULL, &error);
    } else if (!gateway_allows(exchange, model->name)) {
        gateway_forbid(exchange, model->name, &error);
        reply_error(server, exchange, NULL, &error);
    } else {
        struct buffer body = {0};
        put_model(server, model, &body);
        reply_json(exchange, 200, (struct view){body.data, body.size});
        buffer_free(&body);
    }
    buffer_free(&asked);
}

/* What stands behind /v1/models/, or /models/; empty for other paths. */
static struct view model_of_path(struct view path)
{
    static const char *const prefixes[] = {"/v1/models/", "/models/"};
    for (size_t i = 0; i < ARRAY_COUNT(prefixes); i++) {
        size_t n = strlen(prefixes[i]);
        if (path.size > n && memcmp(path.data, prefixes[i], n) == 0)
            return (struct view){path.data + n, path.size - n};
    }
    return (struct view){"", 0};
}

static void handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    struct api_error error;
    struct view method = http_method(exchange), path = http_path(exchange);
    const struct route *route = NULL;
    bool wrong_method = false,
         get = view_equal(method, view_of("GET")) || view_equal(method, view_of("HEAD"));
    if (gateway_cross_origin(server->gateway, exchange))
        return;
    for (size_t i = 0; i < ARRAY_COUNT(routes) && route == NULL; i++) {
        if (!path_is(path, routes[i].path))
            continue;
        if (view_equal(method, view_of(routes[i].method)) ||
            (get && strcmp(routes[i].method, "GET") == 0))
            route = &routes[i];
        wrong_method = true;
    }
    struct view model = model_of_path(path);
    if (needs_key(path) && !control_holds(server, exchange) &&
        !gateway_admit(server->gateway, exchange, &error))
        reply_error(server, exchange, NULL, &error);
    else if (route != NULL)
        route->handler(server, exchange);
    else if (get && model.size > 0)
        get_model(server, exchange, model);
    else if (!response_told(server, exchange))
        not_found(server, exchange, wrong_method);
}

/* ---- Metrics --------------------------------------------------------------------------------- */

static void get_metrics(struct server *server, struct http_exchange *exchange)
{
#define VALUE(field) offsetof(struct scheduler_metrics, field)
    static const struct {
        const char *name, *type, *help;
        size_t offset;
    } metrics[] = {
        {"requests_queued", "gauge", "Requests that wait.", VALUE(n_queued)},
        {"requests_running", "gauge", "Requests that are being answered.", VALUE(n_running)},
        {"requests_paused", "gauge", "Requests that wait for KV pages.", VALUE(n_paused)},
        {"kv_pages", "gauge", "Pages of the KV cache.", VALUE(pages)},
        {"kv_pages_free", "gauge", "Pages that hold nothing.", VALUE(pages_free)},
        {"kv_pages_cached", "gauge", "Pages kept for later prompts.", VALUE(pages_cached)},
        {"requests_accepted_total", "counter", "Requests accepted.", VALUE(n_accepted)},
        {"requests_refused_total", "counter", "Requests refused.", VALUE(n_refused)},
        {"requests_cancelled_total", "counter", "Requests cancelled.", VALUE(n_cancelled)},
        {"requests_failed_total", "counter", "Requests that failed.", VALUE(n_failed)},
        {"prompt_tokens_total", "counter", "Tokens of prompts.", VALUE(prompt_tokens)},
        {"cached_tokens_total", "counter", "Of these, taken from the cache.", VALUE(cached_tokens)},
        {"output_tokens_total", "counter", "Tokens of answers.", VALUE(output_tokens)},
        {"prefix_hits_total", "counter", "Requests with cached tokens.", VALUE(prefix_hits)},
        {"steps_total", "counter", "Forward passes.", VALUE(steps)},
    };
#undef VALUE
    struct buffer body = {0};
    buffer_printf(&body,
                  "# HELP consort_connections Open connections.\n"
                  "# TYPE consort_connections gauge\nconsort_connections %zu\n",
                  http_server_connections(server->http));
    for (size_t m = 0; m < ARRAY_COUNT(metrics); m++) {
        buffer_printf(&body, "# HELP consort_%s %s\n# TYPE consort_%s %s\n", metrics[m].name,
                      metrics[m].help, metrics[m].name, metrics[m].type);
        for (size_t i = 0; i < server->n_models; i++) {
            struct scheduler_metrics values;
            uint64_t value;
            if (server->models[i].state != MODEL_OPEN ||
                !gateway_allows(exchange, server->models[i].name))
                continue;
            scheduler_metrics(server->models[i].scheduler, &values);
            memcpy(&value, (const char *)&values + metrics[m].offset, sizeof value);
            buffer_printf(&body, "consort_%s{model=", metrics[m].name);
            api_json_string(&body, view_of(server->models[i].name));
            buffer_printf(&body, "} %llu\n", (unsigned long long)value);
        }
    }
    http_reply(exchange, 200, "text/plain; version=0.0.4; charset=utf-8",
               (struct view){body.data, body.size}, NULL);
    buffer_free(&body);
}

/* ---- Life cycle ------------------------------------------------------------------------------ */

static void drained(void *context)
{
    struct server *server = context;
    net_loop_stop(server->loop);
}

void server_begin_shutdown(struct server *server, bool now)
{
    if (server->draining) {
        if (now)
            net_loop_stop(server->loop);
        return;
    }
    server->draining = true;
    library_cancel(server);
    server_logf(server, "shutting down: what runs may finish; once more ends it at once");
    http_server_drain(server->http, now ? 0 : (uint64_t)server->drain_s * 1000, drained, server);
}

static void on_signal(void *context)
{
    struct server *server = context;
    server_begin_shutdown(server, server->draining);
}

/* ---- Staying awake --------------------------------------------------------------------------- */

static void fall_asleep(void *context)
{
    struct server *server = context;
    server->sleepy = NULL;
    wake_lock_close(server->wake);
    server->wake = NULL;
}

void server_busy(struct server *server, bool begins)
{
    if (server->closing)
        return;
    if (begins && server->n_busy++ == 0) {
        net_timer_cancel(server->sleepy);
        server->sleepy = NULL;
        if (server->wake == NULL)
            server->wake = wake_lock_open("answers are being computed");
    }
    if (!begins && --server->n_busy == 0)
        server->sleepy = net_loop_after(server->loop, SLEEPY_MS, fall_asleep, server);
}

static void log_gateway(void *context, const char *line)
{
    server_logf(context, "%s", line);
}

static enum status open_gateway(struct server *server, struct error *error)
{
    const struct server_options *options = &server->options;
    const struct gateway_options gateway = {
        .loop = server->loop,
        .addresses = server->options.addresses,
        .n_addresses = options->n_addresses,
        .api_key = options->api_key,
        .origins = server->options.origins,
        .n_origins = options->n_origins,
        .open = options->open,
        .keys_changed = cluster_share_keys,
        .keys_context = server,
        .shared = {server, cluster_take, cluster_give_back},
        .log = log_gateway,
        .log_context = server,
    };
    return gateway_open(&server->gateway, &gateway, error);
}

static enum status open_network(struct server *server, struct error *error)
{
    struct http_options http = {
        .handler = handle,
        .refusal = refuse_request,
        .context = server,
        .body_bytes = BODY_BYTES,
        .tls_certificate = server->options.tls_certificate,
        .tls_key = server->options.tls_key,
    };
    net_raise_descriptors(DESCRIPTORS);
    enum status status = net_loop_open(&server->loop, error);
    if (status == STATUS_OK)
        status = open_gateway(server, error);
    if (status == STATUS_OK)
        status = http_server_open(&server->http, server->loop, &http, error);
    for (size_t i = 0; i < server->options.n_addresses && status == STATUS_OK; i++)
        status = http_server_listen(server->http, server->options.addresses[i], error);
    const int signals[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < ARRAY_COUNT(signals) && status == STATUS_OK; i++)
        status = net_loop_on_signal(server->loop, signals[i], on_signal, server, error);
    return status;
}

/* No other machine can reach what listens there. */
static bool listens_to_itself(const char *address)
{
    return strncmp(address, "localhost:", 10) == 0 || net_address_near(address, "127.0.0.0", 8) ||
           net_address_same(address, "::1");
}

/* The threads that all models compute on. */
static enum status open_pool(struct server *server, struct error *error)
{
    struct machine machine;
    machine_query(&machine);
    unsigned asked = server->options.model.n_threads;
    return pool_open(&server->pool, asked > 0 ? asked : machine.physical_cores, error);
}

static void log_kv_disk(void *context, const char *line)
{
    server_logf(context, "%s", line);
}

/* One process at a time has the folder; another one is a server all the same. */
static enum status open_kv_disk(struct server *server, struct error *error)
{
    struct buffer path = {0};
    uint64_t limit = server->options.kv_disk_bytes;
    char text[32];
    if (limit == 0)
        return STATUS_OK;
    enum status status = home_directory("kv", &path, error);
    if (status == STATUS_OK)
        status = kv_disk_open(&server->kv_disk, path.data, limit, log_kv_disk, server, error);
    if (status == STATUS_OK)
        server_logf(server, "keeps KV caches in %s: %s at most", path.data,
                    size_text(text, (double)limit));
    if (status == STATUS_BUSY) {
        server_logf(server, "keeps no KV caches on disk: another consort does so in %s", path.data);
        status = STATUS_OK;
    }
    buffer_free(&path);
    return status;
}

static void log_advertising(void *context, const char *line)
{
    server_logf(context, "the API %s", line);
}

/* Tells the networks around this machine of an API that they can reach; that it cannot is no
 * reason not to serve. */
static void advertise(struct server *server)
{
    static const char *const plain[] = {"_consort._tcp", "_http._tcp", NULL};
    static const char *const tls[] = {"_consort._tcp", NULL};
    static const char *const texts[] = {"path=/", "api=/v1", "version=" CONSORT_VERSION, NULL};
    const struct server_options *options = &server->options;
    char host[64] = "";
    struct error error;
    size_t i = 0;
    while (i < options->n_addresses && listens_to_itself(options->addresses[i]))
        i++;
    if (i == options->n_addresses || options->no_advertise)
        return;
    gethostname(host, sizeof host - 1);
    host[strcspn(host, ".")] = '\0';
    const struct net_service service = {.name =
                                            options->node_name != NULL ? options->node_name : host,
                                        .types = options->tls_certificate != NULL ? tls : plain,
                                        .texts = texts,
                                        .port = http_server_port(server->http, i)};
    if (net_advertise_open(&server->advertisement, server->loop, &service, log_advertising, server,
                           &error) != STATUS_OK &&
        error.code != STATUS_UNSUPPORTED)
        server_logf(server, "the API is not advertised: %s", error.text);
}

enum status server_open(struct server **out, const struct server_options *options,
                        struct error *error)
{
    *out = NULL;
    struct server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return error_memory(error, sizeof *server);
    server->options = *options;
    server->memory_limit =
        options->memory_bytes > 0 ? options->memory_bytes : memory_default_limit();
    server->wait_s = options->wait_s > 0 ? options->wait_s : MEMORY_WAIT_S;
    server->drain_s = options->drain_s > 0 ? options->drain_s : DRAIN_S;
    server->control.fd = -1;
    server->begin_ns = clock_now_ns();
    server->begin_s = (int64_t)time(NULL);
    page_prepare(&server->page);
    enum status status = quant_init(error);
    if (status == STATUS_OK)
        status = open_pool(server, error);
    if (status == STATUS_OK)
        status = open_kv_disk(server, error);
    if (status == STATUS_OK)
        status = models_open(server, error);
    if (status == STATUS_OK)
        status = open_network(server, error);
    if (status == STATUS_OK)
        status = cluster_open(server, error);
    if (status == STATUS_OK && server->node != NULL && server->kv_disk != NULL)
        server_logf(server, "of models that the cluster computes, no KV cache is kept on disk");
    if (status == STATUS_OK && control_open(server, error) != STATUS_OK)
        server_logf(server, "consort ps, stop and down will not find this server: %s", error->text);
    if (status == STATUS_OK)
        status = worker_open(&server->worker, error);
    if (status == STATUS_OK)
        status = responses_open(&server->responses, options->keep_responses_s, error);
    if (status != STATUS_OK) {
        server_close(server);
        return status;
    }
    advertise(server);
    *out = server;
    return STATUS_OK;
}

static void preloaded(void *context, const struct api_error *error)
{
    if (error == NULL)
        models_release(context);
}

void server_run(struct server *server)
{
    for (size_t i = 0; i < server->options.n_models && server->options.preload; i++)
        models_acquire(&server->models[i], preloaded, &server->models[i]);
    net_loop_run(server->loop);
}

void server_stop(struct server *server)
{
    net_loop_stop(server->loop);
}

void server_close(struct server *server)
{
    if (server == NULL)
        return;
    server->closing = true;
    net_timer_cancel(server->sleepy);
    wake_lock_close(server->wake);
    control_close(server);
    net_advertise_close(server->advertisement);
    http_server_close(server->http); /* tells what runs that its client is gone */
    library_close(server);
    cluster_close(server);
    worker_close(server->worker);
    responses_close(server->responses);
    models_close(server);
    if (server->loop != NULL)
        net_loop_settle(server->loop); /* frees the generations */
    shelf_close(server);
    gateway_close(server->gateway);
    net_loop_close(server->loop);
    kv_disk_close(server->kv_disk);
    pool_close(server->pool);
    for (size_t i = 0; i < server->n_models; i++)
        if (server->models[i].only_away)
            free((char *)server->models[i].name);
    free(server);
}

unsigned server_cluster_port(const struct server *server)
{
    return server->node != NULL ? cluster_node_port(server->node) : 0;
}

unsigned server_port(const struct server *server, size_t index)
{
    return http_server_port(server->http, index);
}
