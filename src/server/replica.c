/* Models that this server has open by itself, for all nodes of the cluster: which there are, where
 * a request for one is answered, and requests that other nodes send here (core_replica.c says
 * which).
 *
 * Such a request comes to the loop, is given to the scheduler by the worker, and its events go back
 * over the loop to the control plane, which sends them to the node that holds the client. */
#include "server/server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A request of another node; of this one, where the other did not finish it. The loop's, but for
 * what is marked. */
struct replica_work {
    struct replica_work *next;
    struct server *server;
    struct served_model *model;
    uint64_t work;                      /* the control plane's name for it */
    struct generation_request *request; /* the worker's, until it is taken over */
    uint64_t request_id;                /* the scheduler's; 0: it has none (yet) */
    uint64_t prefixes[CLUSTER_PREFIX_LEVELS];
    uint32_t n_prefixes;
    bool cancelled, submitted, ended; /* freed with the last two */
    struct generation_usage begun;    /* the engine's thread's, as the next */
    bool told_begun;
};

enum news_kind { NEWS_TOKEN, NEWS_SUBMITTED, NEWS_END };

/* From other threads to the loop; work NULL: one that was refused. */
struct news {
    enum news_kind kind;
    struct server *server;
    struct replica_work *work;
    uint64_t id; /* of the control plane, or of the scheduler */
    uint32_t index;
    int32_t token;
    enum status status;
    char reason[CLUSTER_REASON_BYTES];
    json_t *data;
};

/* ---- On the loop ----------------------------------------------------------------------------- */

static void free_work(struct replica_work *work)
{
    struct replica_work **link = &work->server->replica_works;
    while (*link != work)
        link = &(*link)->next;
    *link = work->next;
    work->model->n_holders--;
    models_release(work->model);
    server_busy(work->server, false);
    free(work);
}

static void tell_core(const struct news *news)
{
    if (news->server->node == NULL)
        return;
    struct cluster_core *core = cluster_node_core(news->server->node);
    uint64_t id = news->work != NULL ? news->work->work : news->id;
    if (news->kind == NEWS_TOKEN)
        cluster_core_token(core, id, news->index, news->token, news->data);
    else
        cluster_core_end(core, id, news->status, news->reason, news->data);
    cluster_core_flush(core);
}

static void take_news(void *context)
{
    struct news *news = context;
    struct replica_work *work = news->work;
    if (news->kind == NEWS_SUBMITTED) {
        work->submitted = true;
        work->request_id = news->id;
        if (news->server->node != NULL && news->id != 0)
            cluster_core_note_prefixes(cluster_node_core(news->server->node),
                                       cluster_digest_of(work->model), work->prefixes,
                                       work->n_prefixes);
        if (work->cancelled && !work->ended && work->model->scheduler != NULL)
            scheduler_cancel(work->model->scheduler, work->request_id);
    } else if (work == NULL || !work->cancelled) {
        tell_core(news);
    }
    if (news->kind == NEWS_END && work != NULL)
        work->ended = true;
    if (work != NULL && work->submitted && work->ended)
        free_work(work);
    json_decref(news->data);
    free(news);
}

/* Any thread. */
static void post(struct server *server, const struct news *news, const char *reason)
{
    struct news *copy = malloc(sizeof *copy);
    if (copy != NULL) {
        *copy = *news;
        copy->server = server;
        snprintf(copy->reason, sizeof copy->reason, "%.250s", reason != NULL ? reason : "");
        if (net_loop_post(server->loop, take_news, copy))
            return;
    }
    free(copy);
    json_decref(news->data);
}

/* ---- On the engine's thread ------------------------------------------------------------------ */

static void on_event(void *context, const struct generation_event *event)
{
    struct replica_work *work = context;
    struct news news = {.work = work, .status = STATUS_OK};
    const char *reason = NULL;
    switch (event->kind) {
    case GENERATION_PROMPT: /* is not asked for */
        return;
    case GENERATION_STARTED:
        work->begun = event->usage;
        return;
    case GENERATION_TOKEN:
        news.kind = NEWS_TOKEN;
        news.index = (uint32_t)event->index;
        news.token = event->token;
        news.data = generation_token_write(event, work->told_begun ? NULL : &work->begun);
        work->told_begun = true;
        break;
    case GENERATION_FAILED:
        news.kind = NEWS_END;
        news.status = event->error->code;
        news.data = generation_end_write(event);
        reason = event->error->text;
        break;
    case GENERATION_FINISHED:
        news.kind = NEWS_END;
        news.data = generation_end_write(event);
        if (event->reason == FINISH_CANCELLED) { /* by who asked, or because the model closes */
            news.status = STATUS_BUSY;
            reason = "the node closes the model";
        }
        break;
    }
    post(work->server, &news, reason);
}

/* ---- On the worker --------------------------------------------------------------------------- */

static void submit(void *context)
{
    struct replica_work *work = context;
    struct generation_request *request = work->request;
    struct grammar *grammar = NULL;
    struct error error;
    struct news submitted = {.kind = NEWS_SUBMITTED, .work = work};
    enum status status = STATUS_OK;
    if (request->grammar_asked != NULL)
        status = engine_grammar(work->model->engine, request->grammar_asked, &grammar, &error);
    request->grammar = grammar;
    if (status == STATUS_OK)
        status = scheduler_submit(work->model->scheduler, request, on_event, work, &submitted.id,
                                  &error);
    else
        generation_request_close(request);
    grammar_release(grammar);
    if (status != STATUS_OK)
        post(work->server, &(struct news){.kind = NEWS_END, .work = work, .status = status},
             error.text);
    post(work->server, &submitted, NULL);
}

/* ---- Requests that come here ----------------------------------------------------------------- */

static bool is_replica(const struct served_model *model)
{
    return model->state == MODEL_OPEN && !model->gone && !model->only_away && !model->stopping &&
           model->scheduler != NULL && cluster_digest_of(model)[0] != '\0';
}

static struct served_model *find_replica(struct server *server, const char *sha)
{
    for (size_t i = 0; i < server->n_models; i++)
        if (is_replica(&server->models[i]) &&
            strcmp(cluster_digest_of(&server->models[i]), sha) == 0)
            return &server->models[i];
    return NULL;
}

/* An open model is there at once. */
static void acquired(void *context, const struct api_error *error)
{
    (void)context, (void)error;
}

void replica_start(void *context, const struct cluster_work *asked)
{
    struct server *server = context;
    struct error error = {.code = STATUS_NOT_FOUND, .text = "the node has closed the model"};
    struct served_model *model = server->draining ? NULL : find_replica(server, asked->sha);
    struct replica_work *work = model != NULL ? calloc(1, sizeof *work) : NULL;
    enum status status = work != NULL ? STATUS_OK : STATUS_NOT_FOUND;
    if (status == STATUS_OK)
        status = generation_request_read(&work->request, asked->payload, &error);
    if (status == STATUS_OK)
        status = generation_request_resume(work->request, asked->tokens, asked->n_tokens, &error);
    if (status == STATUS_OK) {
        work->server = server;
        work->model = model;
        work->work = asked->work;
        work->n_prefixes =
            cluster_core_prefixes(cluster_node_core(server->node), asked->sha,
                                  work->request->tokens, work->request->n_tokens, work->prefixes);
        if (!worker_post(server->worker, submit, work))
            status = error_memory(&error, sizeof *work);
    }
    if (status != STATUS_OK) {
        if (work != NULL)
            generation_request_close(work->request);
        free(work);
        post(server, &(struct news){.kind = NEWS_END, .id = asked->work, .status = status},
             error.text);
        return;
    }
    models_acquire(model, acquired, NULL);
    model->n_holders++;
    server_busy(server, true);
    work->next = server->replica_works;
    server->replica_works = work;
}

void replica_cancel(void *context, uint64_t id)
{
    const struct server *server = context;
    for (struct replica_work *work = server->replica_works; work != NULL; work = work->next)
        if (work->work == id && !work->cancelled) {
            work->cancelled = true;
            if (work->request_id != 0 && !work->ended)
                scheduler_cancel(work->model->scheduler, work->request_id);
        }
}

/* ---- Requests that leave --------------------------------------------------------------------- */

size_t replica_list(void *context, struct cluster_replica *out, size_t max)
{
    struct server *server = context;
    size_t n = 0;
    for (size_t i = 0; i < server->n_models && n < max && !server->draining; i++) {
        struct scheduler_metrics metrics;
        if (!is_replica(&server->models[i]))
            continue;
        scheduler_metrics(server->models[i].scheduler, &metrics);
        out[n] = (struct cluster_replica){
            .waiting = (uint32_t)MIN(metrics.n_queued + metrics.n_running, INT32_MAX)};
        snprintf(out[n].sha, sizeof out[n].sha, "%s", cluster_digest_of(&server->models[i]));
        n++;
    }
    return n;
}

bool replica_is_shared(const struct served_model *model)
{
    return model->server->node != NULL && is_replica(model);
}

enum status replica_submit(struct served_model *model, struct generation_request *request,
                           generation_callback *callback, void *context, uint64_t *id, bool *sent,
                           struct error *error)
{
    struct cluster_node *node = model->server->node;
    struct cluster_id to;
    const char *sha = cluster_digest_of(model);
    /* What is too long for the model is refused here. */
    *sent = node != NULL && request->n_tokens < models_n_ctx(model) &&
            cluster_node_route(node, sha, request, &to) == CLUSTER_THERE;
    if (!*sent)
        return scheduler_submit(model->scheduler, request, callback, context, id, error);
    struct cluster_model told = {.size_bytes = memory_file_bytes(model->path)};
    snprintf(told.sha, sizeof told.sha, "%s", sha);
    snprintf(told.name, sizeof told.name, "%.63s", model->name);
    return cluster_node_submit_to(node, to, &told, request, callback, context, id, error);
}
