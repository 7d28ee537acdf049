/* Ollama's /api/pull, /api/delete, /api/copy and /api/create: each on a thread
 * of its own, since it waits for the network or the disk. What the thread
 * reports comes to the loop as lines.
 *
 * `mutex` guards lines, posted and done; everything else of a job belongs to
 * the loop before its thread begins and after it is done, and to the thread
 * between. */
#include "server/server_internal.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JOBS 16
#define MAX_LINES ((size_t)256 << 10) /* of a client that does not read; then lines are left out */

struct library_job {
    struct library_job *next;
    struct server *server;
    struct http_exchange *exchange; /* NULL once it has ended */
    enum status (*work)(struct library_job *job, struct error *error);
    json_t *body;
    pthread_t thread;
    atomic_bool cancelled;
    bool stream, streaming, joined;
    enum status status;
    struct error error;

    pthread_mutex_t mutex;
    struct buffer lines;
    bool posted, done;
};

/* ---- The answer, on the loop
 * ----------------------------------------------------------------- */

static void put_line(json_t *line, struct buffer *out)
{
    char *text = json_dumps(line, JSON_COMPACT);
    if (text != NULL) {
        buffer_append_text(out, text);
        buffer_append_text(out, "\n");
    }
    free(text);
    json_decref(line);
}

static void free_job(struct library_job *job)
{
    struct library_job **at = &job->server->jobs;
    while (*at != job)
        at = &(*at)->next;
    *at = job->next;
    pthread_mutex_destroy(&job->mutex);
    buffer_free(&job->lines);
    json_decref(job->body);
    free(job);
}

static void write_lines(struct library_job *job, const struct buffer *lines)
{
    if (!job->streaming)
        http_stream_begin(job->exchange, 200, "application/x-ndjson", NULL);
    job->streaming = true;
    http_stream_write(job->exchange, (struct view){lines->data, lines->size});
}

static void end(struct library_job *job)
{
    struct buffer line = {0};
    struct api_error told;
    if (job->streaming) {
        if (job->status != STATUS_OK)
            put_line(json_pack("{s:s}", "error", job->error.text), &line);
        http_stream_write(job->exchange, (struct view){line.size > 0 ? line.data : "", line.size});
        http_stream_end(job->exchange);
    } else if (job->status != STATUS_OK) {
        api_error_from(&told, &job->error);
        reply_error(job->server, job->exchange, NULL, &told);
    } else {
        reply_json(job->exchange, 200, view_of("{\"status\":\"success\"}"));
    }
    buffer_free(&line);
    server_logf(job->server, "%s",
                job->status == STATUS_OK ? "the store has changed" : job->error.text);
}

static void flush(void *context)
{
    struct library_job *job = context;
    pthread_mutex_lock(&job->mutex);
    struct buffer lines = job->lines;
    bool done = job->done;
    job->lines = (struct buffer){0};
    job->posted = false;
    pthread_mutex_unlock(&job->mutex);
    if (job->exchange != NULL && job->stream && lines.size > 0)
        write_lines(job, &lines);
    buffer_free(&lines);
    if (!done)
        return;
    if (!job->joined)
        pthread_join(job->thread, NULL);
    if (job->exchange != NULL)
        end(job);
    free_job(job);
}

static void client_gone(void *context)
{
    struct library_job *job = context;
    atomic_store(&job->cancelled, true);
    server_logf(job->server, "%s left before its answer ended", http_peer(job->exchange));
    http_abort(job->exchange);
    job->exchange = NULL;
}

/* ---- The work, on the job's thread
 * ----------------------------------------------------------- */

/* A post that is under way takes along what comes meanwhile. */
static void post(struct library_job *job, json_t *line, bool done)
{
    pthread_mutex_lock(&job->mutex);
    if (line != NULL && job->lines.size < MAX_LINES)
        put_line(line, &job->lines);
    else
        json_decref(line);
    bool wanted = !job->posted;
    job->posted = true;
    job->done = done;
    pthread_mutex_unlock(&job->mutex);
    if (wanted)
        net_loop_post(job->server->loop, flush, job);
}

static bool report(void *context, const struct store_progress *progress)
{
    struct library_job *job = context;
    post(job, store_progress_json(progress), false);
    return !atomic_load(&job->cancelled);
}

static void say(struct library_job *job, const char *what)
{
    post(job, json_pack("{s:s}", "status", what), false);
}

static const char *field(const struct library_job *job, const char *name)
{
    const char *text = json_string_value(json_object_get(job->body, name));
    return text != NULL && text[0] != '\0' ? text : NULL;
}

/* The name of the model, under either of the two names of its field. */
static const char *model_of(const struct library_job *job)
{
    const char *name = field(job, "model");
    return name != NULL ? name : field(job, "name");
}

static enum status need_model(const char *name, struct error *error)
{
    return name != NULL ? STATUS_OK : error_set(error, STATUS_INVALID, "model is missing");
}

/* Names alone: a client must not have files of this machine brought into the
 * store. */
static enum status pull(struct library_job *job, struct error *error)
{
    char checked[STORE_NAME_BYTES];
    struct store_pull options = {.source = model_of(job),
                                 .mirror = job->server->options.mirror,
                                 .names_only = true,
                                 .progress = report,
                                 .context = job};
    enum status status = need_model(options.source, error);
    if (status == STATUS_OK)
        status = store_name_parse(options.source, checked, error);
    return status == STATUS_OK ? store_pull(job->server->store, &options, NULL, error) : status;
}

static enum status delete (struct library_job *job, struct error *error) {
    enum status status = need_model(model_of(job), error);
    return status == STATUS_OK ? store_remove(job->server->store, model_of(job), NULL, error)
                               : status;
}

static enum status copy(struct library_job *job, struct error *error)
{
    const char *from = field(job, "source"), *to = field(job, "destination");
    if (from == NULL || to == NULL)
        return error_set(error, STATUS_INVALID, "source and destination are needed");
    return store_copy(job->server->store, from, to, error);
}

/* ---- Creating
 * --------------------------------------------------------------------------------
 */

static const char *joined_license(struct store_model *model, const json_t *license)
{
    struct buffer all = {0};
    const json_t *one;
    size_t i;
    json_array_foreach(license, i, one) buffer_printf(
        &all, "%s%s", i > 0 ? "\n\n" : "", json_is_string(one) ? json_string_value(one) : "");
    const char *out = store_model_text(model, all.size > 0 ? all.data : "");
    buffer_free(&all);
    return out;
}

/* What the request says itself, over what the model has that it is made from.
 */
static enum status take_request(const struct library_job *job, struct store_model *model,
                                struct error *error)
{
    const struct {
        const char *name;
        const char **to;
    } texts[] = {{"system", &model->system},
                 {"template", &model->chat_template},
                 {"license", &model->license}};
    json_t *parameters = json_object_get(job->body, "parameters");
    json_t *messages = json_object_get(job->body, "messages");
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        if (field(job, texts[i].name) != NULL)
            *texts[i].to = store_model_text(model, field(job, texts[i].name));
    model->template_wins |= field(job, "template") != NULL;
    if (json_is_array(json_object_get(job->body, "license")))
        model->license = joined_license(model, json_object_get(job->body, "license"));
    if ((parameters != NULL && !json_is_object(parameters)) ||
        (messages != NULL && !json_is_array(messages)))
        return error_set(error, STATUS_INVALID,
                         "parameters must be an object, and messages a list");
    if (parameters != NULL)
        json_object_update(model->parameters, parameters);
    if (messages != NULL) {
        json_array_clear(model->messages);
        json_array_extend(model->messages, messages);
    }
    return STATUS_OK;
}

static void take_over(struct store_model *to, const struct store_model *from)
{
    if (from->system[0] != '\0')
        to->system = from->system;
    if (from->chat_template[0] != '\0')
        to->chat_template = from->chat_template;
    to->template_wins |= from->template_wins;
    if (from->license[0] != '\0')
        to->license = from->license;
    json_object_update(to->parameters, from->parameters);
    if (json_array_size(from->messages) > 0) {
        json_array_clear(to->messages);
        json_array_extend(to->messages, from->messages);
    }
}

static enum status refuse_unknown(const struct library_job *job, struct error *error)
{
    static const char *const refused[] = {"quantize", "adapters", "files"};
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++)
        if (json_object_get(job->body, refused[i]) != NULL)
            return error_set(error, STATUS_UNSUPPORTED,
                             "%s is not supported: bring files in with consort pull, "
                             "and convert them "
                             "with consort quantize",
                             refused[i]);
    return need_model(model_of(job), error);
}

/* A template that somebody names is used, so it must be understood. */
static enum status check_template(const struct store_model *model, struct error *error)
{
    struct error why;
    struct buffer jinja = {0};
    if (!model->template_wins)
        return STATUS_OK;
    enum status status = chat_template_from_go(view_of(model->chat_template), &jinja, &why);
    buffer_free(&jinja);
    return status == STATUS_OK
               ? status
               : error_set(error, status,
                           "%.150s; without TEMPLATE the model file's own is used, and consort up "
                           "--template FILE takes one in Jinja",
                           why.text);
}

static enum status create(struct library_job *job, struct error *error)
{
    const char *from = field(job, "from"), *modelfile = field(job, "modelfile");
    struct store_model *said = store_model_new(), *model = NULL;
    enum status status = said != NULL ? refuse_unknown(job, error) : error_memory(error, 1);
    if (status == STATUS_OK && modelfile != NULL)
        status = store_modelfile_read(said, view_of(modelfile), &from, error);
    if (status == STATUS_OK && from == NULL)
        status =
            error_set(error, STATUS_INVALID, "from is missing: the model that this one is made of");
    if (status == STATUS_OK)
        status = store_find(job->server->store, from, &model, error);
    if (status == STATUS_OK) {
        take_over(model, said);
        status = take_request(job, model, error);
    }
    if (status == STATUS_OK)
        status = check_template(model, error);
    for (size_t i = 0; status == STATUS_OK && i < model->n_files; i++)
        post(job,
             json_pack("{s:s+}", "status", "using existing layer sha256:", model->files[i].digest),
             false);
    if (status == STATUS_OK) {
        say(job, "writing manifest");
        status = store_put(job->server->store, model_of(job), model, error);
    }
    if (status == STATUS_OK)
        say(job, "success");
    store_model_free(model);
    store_model_free(said);
    return status;
}

/* ---- Requests
 * --------------------------------------------------------------------------------
 */

static void *run(void *argument)
{
    struct library_job *job = argument;
    job->status = job->work(job, &job->error);
    post(job, NULL, true);
    return NULL;
}

static void refuse(struct server *server, struct http_exchange *exchange, int http_status,
                   const char *text)
{
    struct api_error error = {.http_status = http_status, .type = "invalid_request_error"};
    snprintf(error.text, sizeof error.text, "%s", text);
    reply_error(server, exchange, NULL, &error);
}

/* The store is everyone's: a key for some models must not change it. No model
 * has this name. */
static const char every_model[] = "*";

static void begin(struct server *server, struct http_exchange *exchange,
                  enum status (*work)(struct library_job *job, struct error *error), bool streams)
{
    size_t n = 0;
    struct api_error error;
    if (!gateway_allows(exchange, every_model)) {
        gateway_forbid(exchange, every_model, &error);
        reply_error(server, exchange, NULL, &error);
        return;
    }
    struct view body = http_body(exchange);
    json_t *object = json_loadb(body.data, body.size, 0, NULL);
    const json_t *stream = json_object_get(object, "stream");
    for (const struct library_job *job = server->jobs; job != NULL; job = job->next)
        n++;
    struct library_job *job = calloc(1, sizeof *job);
    const char *refusal = !json_is_object(object) ? "the body must be a JSON object"
                          : server->store == NULL ? "this server has no store"
                          : n >= MAX_JOBS         ? "too many pulls are under way: try again later"
                          : job == NULL           ? "out of memory"
                                                  : NULL;
    if (refusal != NULL) {
        refuse(server, exchange, !json_is_object(object) ? 400 : 503, refusal);
        json_decref(object);
        free(job);
        return;
    }
    *job = (struct library_job){.server = server,
                                .exchange = exchange,
                                .next = server->jobs,
                                .work = work,
                                .body = object,
                                .stream = streams && !json_is_false(stream)};
    pthread_mutex_init(&job->mutex, NULL);
    server->jobs = job;
    if (!thread_start(&job->thread, run, job)) {
        refuse(server, exchange, 503, "cannot start a thread");
        free_job(job);
        return;
    }
    http_on_gone(exchange, client_gone, job);
}

void library_pull(struct server *server, struct http_exchange *exchange)
{
    begin(server, exchange, pull, true);
}

void library_delete(struct server *server, struct http_exchange *exchange)
{
    begin(server, exchange, delete, false);
}

void library_copy(struct server *server, struct http_exchange *exchange)
{
    begin(server, exchange, copy, false);
}

void library_create(struct server *server, struct http_exchange *exchange)
{
    begin(server, exchange, create, true);
}

void library_cancel(struct server *server)
{
    for (struct library_job *job = server->jobs; job != NULL; job = job->next)
        atomic_store(&job->cancelled, true);
}

void library_close(struct server *server)
{
    library_cancel(server);
    for (struct library_job *job = server->jobs; job != NULL; job = job->next) {
        pthread_join(job->thread, NULL); /* flush frees it, when the loop settles */
        job->joined = true;
    }
}
