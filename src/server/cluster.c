/* This server as a node of its cluster: which models lie here, which of them the cluster computes,
 * and what the commands ask of it.
 *
 * A model is away where an instance of it runs on nodes of the cluster, or is to, where it does not
 * lie here, or has no room here. Then this server reads requests with the model's metadata alone
 * (its tokenizer and chat template), and the cluster answers them. */
#include "server/server_internal.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- What the node asks of this server ------------------------------------------------------- */

/* The digest that names the model in the cluster; "" where it is not known (yet). */
const char *cluster_digest_of(const struct served_model *model)
{
    return model->stored != NULL ? model->stored->digest : model->digest;
}

static size_t list_local(void *context, struct cluster_local_model *out, size_t max)
{
    struct server *server = context;
    size_t n = 0;
    shelf_read(server); /* models come while nobody asks for one, too */
    for (size_t i = 0; i < server->n_models && n < max; i++) {
        const struct served_model *model = &server->models[i];
        if (model->gone || model->path == NULL || cluster_digest_of(model)[0] == '\0')
            continue;
        out[n] = (struct cluster_local_model){.path = model->path};
        snprintf(out[n].model.sha, sizeof out[n].model.sha, "%s", cluster_digest_of(model));
        snprintf(out[n].model.name, sizeof out[n].model.name, "%.63s", model->name);
        out[n].model.size_bytes = memory_file_bytes(model->path);
        n++;
    }
    return n;
}

static uint64_t used(void *context)
{
    return memory_used(context);
}

static void log_line(void *context, const char *line)
{
    server_logf(context, "cluster: %s", line);
}

/* ---- Keys of the API, which hold on all nodes ------------------------------------------------ */

#define KEY_ENTRY "key/"

static void entry_of(struct view hash, char out[CLUSTER_ENTRY_KEY_BYTES])
{
    size_t at = (size_t)snprintf(out, CLUSTER_ENTRY_KEY_BYTES, KEY_ENTRY);
    for (size_t i = 0; i < hash.size && at + 3 <= CLUSTER_ENTRY_KEY_BYTES; i++)
        at += (size_t)snprintf(out + at, CLUSTER_ENTRY_KEY_BYTES - at, "%02x",
                               (unsigned)(unsigned char)hash.data[i]);
}

static bool share_key(void *context, const struct key *key)
{
    struct server *server = context;
    struct cluster_core *core = cluster_node_core(server->node);
    char entry[CLUSTER_ENTRY_KEY_BYTES];
    struct error error;
    entry_of(key->hash, entry);
    bool revoked = key->revoked_s != 0;
    const json_t *known = cluster_core_get(core, entry);
    if (known != NULL && (!revoked || json_is_true(json_object_get(known, "revoked"))))
        return true;
    json_t *value = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:b}", "name", key->name,
                              "models", key->models, "expires", (json_int_t)key->expires_s,
                              "requests_per_minute", (json_int_t)key->limits.requests_per_minute,
                              "tokens_per_minute", (json_int_t)key->limits.tokens_per_minute,
                              "parallel", (json_int_t)key->limits.parallel, "revoked_s",
                              (json_int_t)key->revoked_s, "revoked", revoked);
    if (cluster_core_put(core, entry, value, &error) != STATUS_OK)
        server_logf(server, "the other nodes do not learn of the key %s: %s", key->name,
                    error.text);
    json_decref(value);
    return true;
}

void cluster_share_keys(void *context)
{
    struct server *server = context;
    if (server->node != NULL)
        gateway_each_key(server->gateway, share_key, server);
}

static bool read_hash(const char *hex, unsigned char hash[KEY_HASH_BYTES])
{
    if (strlen(hex) != 2 * KEY_HASH_BYTES || strspn(hex, "0123456789abcdef") != 2 * KEY_HASH_BYTES)
        return false;
    for (size_t i = 0; i < KEY_HASH_BYTES; i++) {
        unsigned value = 0;
        sscanf(hex + 2 * i, "%2x", &value);
        hash[i] = (unsigned char)value;
    }
    return true;
}

static int64_t number_in(const json_t *value, const char *name)
{
    json_int_t number = json_integer_value(json_object_get(value, name));
    return number > 0 ? (int64_t)number : 0;
}

static uint32_t limit_in(const json_t *value, const char *name)
{
    return (uint32_t)MIN(number_in(value, name), (int64_t)UINT32_MAX);
}

/* What the cluster agreed on has changed. */
static void take_entry(void *context, const char *entry, const json_t *value)
{
    struct server *server = context;
    unsigned char hash[KEY_HASH_BYTES];
    const char *name = json_string_value(json_object_get(value, "name"));
    const char *models = json_string_value(json_object_get(value, "models"));
    if (strncmp(entry, KEY_ENTRY, strlen(KEY_ENTRY)) != 0 || name == NULL || models == NULL ||
        strlen(name) >= KEY_NAME_BYTES || !read_hash(entry + strlen(KEY_ENTRY), hash))
        return;
    struct key key = {
        .name = name,
        .hash = {(const char *)hash, sizeof hash},
        .models = models,
        .expires_s = number_in(value, "expires"),
        .revoked_s = number_in(value, "revoked_s"),
        .limits = {.requests_per_minute = limit_in(value, "requests_per_minute"),
                   .tokens_per_minute = limit_in(value, "tokens_per_minute"),
                   .parallel = limit_in(value, "parallel")},
    };
    if (json_is_true(json_object_get(value, "revoked")) && key.revoked_s == 0)
        key.revoked_s = (int64_t)time(NULL);
    gateway_adopt_key(server->gateway, &key);
}

static bool take_each(void *context, const char *entry, const json_t *value)
{
    take_entry(context, entry, value);
    return true;
}

/* ---- Limits of keys, which hold for all nodes together --------------------------------------- */

static const char *hash_of(const struct key *key, char out[CLUSTER_ENTRY_KEY_BYTES])
{
    entry_of(key->hash, out);
    return out + strlen(KEY_ENTRY);
}

bool cluster_take(void *context, const struct key *key, struct key_allowance *out)
{
    struct server *server = context;
    char entry[CLUSTER_ENTRY_KEY_BYTES];
    struct cluster_allowance allowance;
    if (server->node == NULL ||
        !cluster_core_take(cluster_node_core(server->node), hash_of(key, entry), &allowance))
        return false;
    static const enum key_limit limits[] = {[CLUSTER_LIMIT_REQUESTS] = KEY_LIMIT_REQUESTS,
                                            [CLUSTER_LIMIT_TOKENS] = KEY_LIMIT_TOKENS,
                                            [CLUSTER_LIMIT_PARALLEL] = KEY_LIMIT_PARALLEL};
    *out = (struct key_allowance){
        .allowed = allowance.allowed,
        .refused_by = limits[allowance.refused_by],
        .wait_s = allowance.wait_s,
        .left = {allowance.left[CLUSTER_LIMIT_REQUESTS], allowance.left[CLUSTER_LIMIT_TOKENS]}};
    return true;
}

void cluster_give_back(void *context, const struct key *key, uint64_t n_tokens)
{
    struct server *server = context;
    char entry[CLUSTER_ENTRY_KEY_BYTES];
    if (server->node != NULL)
        cluster_core_give_back(cluster_node_core(server->node), hash_of(key, entry), n_tokens);
}

/* ---- Digests of files that are in no store --------------------------------------------------- */

/* One thread for all of them, begun when the node has measured its machine: a gigabyte takes about
 * a second. */
struct digesting {
    struct server *server;
    pthread_t thread;
    atomic_bool stop;
    size_t n;
    const char *paths[SERVER_MAX_MODELS];
};

struct digested {
    struct server *server;
    const char *path;
    char digest[STORE_DIGEST_BYTES];
};

static void take_digest(void *context)
{
    struct digested *digested = context;
    struct server *server = digested->server;
    for (size_t i = 0; i < server->n_models; i++)
        if (server->models[i].path == digested->path)
            memcpy(server->models[i].digest, digested->digest, sizeof digested->digest);
    if (server->node != NULL)
        cluster_node_refresh(server->node);
    free(digested);
}

static void *compute_digests(void *argument)
{
    struct digesting *digesting = argument;
    struct error error;
    for (size_t i = 0; i < digesting->n && !atomic_load(&digesting->stop); i++) {
        struct digested *digested = calloc(1, sizeof *digested);
        if (digested == NULL)
            break;
        digested->server = digesting->server;
        digested->path = digesting->paths[i];
        if (store_file_digest(digested->path, &digesting->stop, digested->digest, &error) !=
                STATUS_OK ||
            !net_loop_post(digesting->server->loop, take_digest, digested))
            free(digested);
    }
    return NULL;
}

static void begin_digests(void *context)
{
    struct server *server = context;
    struct digesting *digesting = calloc(1, sizeof *digesting);
    if (digesting == NULL)
        return;
    digesting->server = server;
    atomic_init(&digesting->stop, false);
    for (size_t i = 0; i < server->n_models; i++)
        if (server->models[i].stored == NULL && server->models[i].path != NULL)
            digesting->paths[digesting->n++] = server->models[i].path;
    if (digesting->n > 0 && thread_start(&digesting->thread, compute_digests, digesting))
        server->digesting = digesting;
    else
        free(digesting);
}

static void end_digests(struct server *server)
{
    if (server->digesting == NULL)
        return;
    atomic_store(&server->digesting->stop, true);
    pthread_join(server->digesting->thread, NULL);
    free(server->digesting);
    server->digesting = NULL;
}

/* ---- Models of the cluster ------------------------------------------------------------------- */

static void add_away(void *context, const struct cluster_model *found, bool runs)
{
    struct server *server = context;
    struct served_model *model = models_known(server, found->name);
    (void)runs;
    if (model != NULL || server->n_models == SERVER_MAX_MODELS)
        return;
    model = &server->models[server->n_models++];
    *model = (struct served_model){.server = server,
                                   .name = strdup(found->name),
                                   .keep_alive_ms = UINT64_MAX,
                                   .only_away = true};
    snprintf(model->digest, sizeof model->digest, "%s", found->sha);
    if (model->name == NULL)
        server->n_models--;
}

void cluster_refresh(struct server *server)
{
    if (server->node != NULL)
        cluster_node_models(server->node, add_away, server);
}

bool cluster_may_help(const struct served_model *model)
{
    const struct cluster_node *node = model->server->node;
    return node != NULL && cluster_digest_of(model)[0] != '\0' && !cluster_node_alone(node);
}

bool cluster_is_away(const struct served_model *model)
{
    struct cluster_model found;
    bool runs = false;
    struct server *server = model->server;
    if (server->node == NULL)
        return false;
    return model->only_away || (model->spread && cluster_may_help(model)) ||
           (cluster_node_find(server->node, model->name, &found, &runs) && runs);
}

/* ---- Reading requests for a model that is away ----------------------------------------------- */

struct meeting {
    struct served_model *model;
    char *path;
    struct engine *engine;
    struct error error;
};

static void met(void *context)
{
    struct meeting *meeting = context;
    struct served_model *model = meeting->model;
    if (meeting->engine != NULL) {
        model->engine = meeting->engine;
        model->state = MODEL_AWAY;
        models_tell_waiters(model, NULL);
    } else {
        struct api_error told;
        api_error_from(&told, &meeting->error);
        model->state = MODEL_CLOSED;
        models_tell_waiters(model, &told);
    }
    free(meeting->path);
    free(meeting);
}

/* On the worker. */
static void open_metadata(void *context)
{
    struct meeting *meeting = context;
    struct server *server = meeting->model->server;
    if (engine_open(&meeting->engine, meeting->path, ENGINE_TOKENIZER | ENGINE_TEMPLATE, NULL,
                    &meeting->error) != STATUS_OK) {
        meeting->engine = NULL;
    } else if (models_set_template(meeting->model, meeting->engine, &meeting->error) != STATUS_OK) {
        engine_close(meeting->engine);
        meeting->engine = NULL;
    }
    if (!net_loop_post(server->loop, met, meeting)) {
        engine_close(meeting->engine);
        free(meeting->path);
        free(meeting);
    }
}

static void metadata_is_here(void *context, const char *path, const char *reason)
{
    struct served_model *model = context;
    struct api_error told = {.http_status = 503, .type = "server_error", .retry_after_s = 5};
    struct meeting *meeting = calloc(1, sizeof *meeting);
    snprintf(told.text, sizeof told.text, "%.100s cannot be reached in the cluster: %s",
             model->name, reason != NULL ? reason : "out of memory");
    if (meeting != NULL && path != NULL) {
        meeting->model = model;
        meeting->path = strdup(path);
        if (meeting->path != NULL && worker_post(model->server->worker, open_metadata, meeting))
            return;
        free(meeting->path);
    }
    free(meeting);
    model->state = MODEL_CLOSED;
    models_tell_waiters(model, &told);
}

void cluster_meet(struct served_model *model)
{
    struct cluster_model found = {0};
    model->state = MODEL_OPENING;
    if (model->path != NULL) {
        metadata_is_here(model, model->path, NULL);
        return;
    }
    snprintf(found.sha, sizeof found.sha, "%s", cluster_digest_of(model));
    snprintf(found.name, sizeof found.name, "%.63s", model->name);
    cluster_node_metadata(model->server->node, &found, metadata_is_here, model);
}

enum status cluster_submit(struct served_model *model, struct generation_request *request,
                           generation_callback *callback, void *context, uint64_t *id,
                           struct error *error)
{
    struct cluster_model found = {0};
    struct cluster_id to;
    bool runs;
    if (model->server->node == NULL || /* it has left the cluster meanwhile */
        !cluster_node_find(model->server->node, model->name, &found, &runs)) {
        generation_request_close(request);
        return error_set(error, STATUS_BUSY, "no node of the cluster has %.100s now", model->name);
    }
    if (!runs && cluster_node_route(model->server->node, found.sha, request, &to) == CLUSTER_THERE)
        return cluster_node_submit_to(model->server->node, to, &found, request, callback, context,
                                      id, error);
    return cluster_node_submit(model->server->node, &found, request, callback, context, id, error);
}

/* ---- What the commands ask ------------------------------------------------------------------- */

static struct api_error no_cluster(void)
{
    return (struct api_error){.http_status = 404,
                              .type = "invalid_request_error",
                              .code = "no_cluster",
                              .text = "this server is in no cluster: consort init begins one, "
                                      "consort join TOKEN joins one; then start it again"};
}

/* A key that may use some models sees no others: takes out the items of a list that name one, as
 * NAME or [SHA, NAME, ...]. */
static void hide_models(json_t *list, const char *field, const struct http_exchange *exchange)
{
    for (size_t i = json_array_size(list); i-- > 0;) {
        const json_t *model = json_object_get(json_array_get(list, i), field);
        const char *name =
            json_string_value(json_is_array(model) ? json_array_get(model, 1) : model);
        if (name != NULL && !gateway_allows(exchange, name))
            json_array_remove(list, i);
    }
}

static void hide_all_models(json_t *status, const struct http_exchange *exchange)
{
    json_t *node, *problems = json_object_get(status, "problems");
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
        hide_models(json_object_get(node, "models"), "name", exchange);
    hide_models(json_object_get(status, "instances"), "model", exchange);
    hide_models(json_object_get(status, "copies"), "model", exchange);
    hide_models(json_object_get(status, "transfers"), "model", exchange);
    for (i = json_array_size(problems); i-- > 0;) {
        const json_t *problem = json_array_get(problems, i);
        const char *kind = json_string_value(json_object_get(problem, "kind"));
        const char *about = json_string_value(json_object_get(problem, "about"));
        bool of_model =
            kind != NULL && (strcmp(kind, "failed") == 0 || strcmp(kind, "single") == 0);
        if (of_model && about != NULL && !gateway_allows(exchange, about))
            json_array_remove(problems, i);
    }
}

void cluster_get_status(struct server *server, struct http_exchange *exchange)
{
    struct api_error error = no_cluster();
    struct buffer body = {0};
    json_t *status = server->node != NULL ? cluster_node_status(server->node) : NULL;
    if (status == NULL) {
        reply_error(server, exchange, NULL, &error);
        return;
    }
    hide_all_models(status, exchange);
    put_object(status, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

/* The model that a command names. */
static bool find_model(struct server *server, const json_t *fields, struct cluster_model *out,
                       struct api_error *error)
{
    const char *name = json_string_value(json_object_get(fields, "model"));
    bool runs;
    shelf_refresh(server);
    if (name != NULL && cluster_node_find(server->node, name, out, &runs))
        return true;
    const struct served_model *known = name != NULL ? models_known(server, name) : NULL;
    *error = (struct api_error){
        .http_status = 404, .type = "invalid_request_error", .code = "model_not_found"};
    if (known != NULL && !known->only_away && cluster_digest_of(known)[0] == '\0') {
        *error = (struct api_error){.http_status = 503, .type = "server_error", .retry_after_s = 1};
        snprintf(error->text, sizeof error->text,
                 "the digest of %.100s, which names it in the cluster, is being computed", name);
        return false;
    }
    snprintf(error->text, sizeof error->text, "no node of the cluster has a model '%.100s'",
             name != NULL ? name : "");
    return false;
}

/* Serves alone from now on. */
static void leave(struct server *server)
{
    cluster_core_leave(cluster_node_core(server->node));
    cluster_close(server);
    for (size_t i = 0; i < server->n_models; i++)
        if (server->models[i].only_away)
            server->models[i].gone = true;
}

/* The digest of a model of which slices lie here; the model itself may be on no node. */
static bool find_slices(const char *name, char sha[CLUSTER_SHA_TEXT])
{
    struct cluster_slice slices[CLUSTER_MAX_OBJECTS];
    size_t n = cluster_slices(slices);
    for (size_t i = 0; i < n; i++)
        if (strcmp(slices[i].model, name) == 0) {
            snprintf(sha, CLUSTER_SHA_TEXT, "%s", slices[i].sha);
            return true;
        }
    return false;
}

/* Removes the slices of a model, named by its digest or its name, from all nodes. */
static enum status forget_model(struct server *server, const char *name, struct error *error)
{
    struct cluster_model found;
    char sha[CLUSTER_SHA_TEXT];
    bool runs;
    if (name != NULL && cluster_node_find(server->node, name, &found, &runs))
        name = found.sha;
    else if (name != NULL && find_slices(name, sha))
        name = sha;
    else if (name == NULL || strlen(name) != CLUSTER_SHA_TEXT - 1)
        return error_set(error, STATUS_NOT_FOUND, "no node of the cluster has a model '%.100s'",
                         name != NULL ? name : "");
    return cluster_core_forget(cluster_node_core(server->node), name, error);
}

enum status cluster_command(struct server *server, const char *verb, const json_t *fields,
                            struct api_error *told)
{
    struct error error;
    struct cluster_model model;
    enum status status = STATUS_OK;
    const char *name = json_string_value(json_object_get(fields, "node"));
    if (server->node == NULL) {
        *told = no_cluster();
        return STATUS_NOT_FOUND;
    }
    struct cluster_core *core = cluster_node_core(server->node);
    bool of_model = strcmp(verb, "load") == 0 || strcmp(verb, "unload") == 0;
    if (of_model && !find_model(server, fields, &model, told))
        return STATUS_NOT_FOUND;
    if (strcmp(verb, "forget") == 0)
        status = forget_model(server, json_string_value(json_object_get(fields, "model")), &error);
    else if (strcmp(verb, "load") == 0)
        status = cluster_core_load(core, &model, json_object_get(fields, "options"), &error);
    else if (of_model)
        status = cluster_core_unload(core, model.sha, json_is_true(json_object_get(fields, "now")),
                                     &error);
    else if (strcmp(verb, "leave") == 0)
        leave(server);
    else if (strcmp(verb, "remove") == 0)
        status = cluster_core_remove(core, name != NULL ? name : "", &error);
    else
        status = cluster_node_rotate(server->node, &error);
    if (status != STATUS_OK)
        api_error_from(told, &error);
    return status;
}

/* ---- Life cycle ------------------------------------------------------------------------------ */

enum status cluster_open(struct server *server, struct error *error)
{
    const struct server_options *options = &server->options;
    struct cluster_node_options node = {
        .loop = server->loop,
        .listen = options->cluster_listen,
        .n_peers = options->n_peers,
        .name = options->node_name,
        .data_interface = options->data_interface,
        .memory_limit_bytes = server->memory_limit,
        .model = options->model,
        .scheduler = options->scheduler,
        .host = {.context = server,
                 .models = list_local,
                 .memory_used = used,
                 .changed = take_entry,
                 .replicas = replica_list,
                 .start = replica_start,
                 .cancel = replica_cancel,
                 .ask = usage_asked,
                 .answered = usage_answered,
                 .measured = begin_digests,
                 .log = log_line},
    };
    node.model.pool = server->pool;
    if (options->data_interface != NULL) {
        enum status found = net_interface_check(options->data_interface, error);
        if (found != STATUS_OK)
            return found;
    }
    if (options->no_cluster)
        return STATUS_OK;
    memcpy(node.peers, options->peers, sizeof node.peers);
    struct cluster_key key;
    struct error none;
    enum status status = cluster_key_load(&key, &none);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND)
        server_logf(server, "serving alone, in no cluster: %s", none.text);
    if (status != STATUS_OK)
        return STATUS_OK;
    shelf_refresh(server);
    status = cluster_node_open(&server->node, &node, &none);
    if (status != STATUS_OK)
        return error_set(error, status,
                         "cannot take part in the cluster: %.180s. Name another port with "
                         "--cluster-listen, or serve alone with --no-cluster",
                         none.text);
    cluster_core_each(cluster_node_core(server->node), take_each, server);
    cluster_share_keys(server);
    return STATUS_OK;
}

void cluster_close(struct server *server)
{
    end_digests(server);
    usage_close(server);
    cluster_node_close(server->node);
    server->node = NULL;
}
