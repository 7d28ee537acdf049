/* What was used on all nodes of the cluster. Each keeps its own records; who asks this server has
 * them brought here from the nodes that are connected, and is told which are not.
 *
 *   {nodes: [{node, rows: [[day, key, model, requests, prompt, cached, answer]], cut}],
 *    missing: [{node, reason}]}
 *
 * cut: there are more rows than USAGE_ROWS. */
#include "server/server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define USAGE_WHAT "usage"
#define USAGE_ROWS 8000
#define USAGE_MAX_DAYS 100000
#define SECONDS_PER_DAY 86400

/* Who waits for several nodes' records. */
struct usage_collection {
    struct usage_collection *next;
    struct server *server;
    struct http_exchange *exchange; /* NULL: its client left */
    json_t *nodes, *missing;
    size_t n_waiting;
    char own_name[CLUSTER_NAME_BYTES];
    struct {
        uint64_t question; /* 0: ended */
        char name[CLUSTER_NAME_BYTES];
    } asked[CLUSTER_MAX_NODES];
};

/* This node's records, read on the worker. */
struct usage_reading {
    struct server *server;
    struct usage_collection *collection; /* whose; NULL: another node's */
    struct cluster_id from;
    uint64_t question;
    int64_t since_s;
    json_t *body; /* {rows, cut}, NULL: they cannot be read */
    struct error error;
};

/* ---- This node's records --------------------------------------------------------------------- */

static bool add_row(void *context, const struct usage *usage)
{
    json_t *body = context, *rows = json_object_get(body, "rows");
    if (json_array_size(rows) == USAGE_ROWS) {
        json_object_set_new(body, "cut", json_true());
        return false;
    }
    json_array_append_new(
        rows, json_pack("[s, s, s, I, I, I, I]", usage->day, usage->key, usage->model,
                        (json_int_t)usage->n_requests, (json_int_t)usage->prompt_tokens,
                        (json_int_t)usage->cached_tokens, (json_int_t)usage->answer_tokens));
    return true;
}

static void collected(struct usage_collection *collection, const char *name, const json_t *body,
                      const char *reason);

/* On the loop. */
static void rows_are_read(void *context)
{
    struct usage_reading *reading = context;
    struct server *server = reading->server;
    if (reading->collection != NULL) {
        collected(reading->collection, reading->collection->own_name, reading->body,
                  reading->error.text);
    } else if (server->node != NULL) {
        cluster_core_answer(cluster_node_core(server->node), reading->from, reading->question,
                            reading->body);
    }
    json_decref(reading->body);
    free(reading);
}

/* On the worker. */
static void read_rows(void *context)
{
    struct usage_reading *reading = context;
    struct sqlite3 *database = NULL;
    json_t *body = json_pack("{s:[], s:b}", "rows", "cut", 0);
    enum status status = body != NULL ? STATUS_OK : error_memory(&reading->error, sizeof *reading);
    if (status == STATUS_OK)
        status = gateway_database_open(&database, &reading->error);
    if (status == STATUS_OK)
        status = usage_each(database, reading->since_s, add_row, body, &reading->error);
    database_close(database);
    if (status == STATUS_OK)
        reading->body = body;
    else
        json_decref(body);
    if (!net_loop_post(reading->server->loop, rows_are_read, reading)) {
        json_decref(reading->body); /* the loop is out of memory; who asked waits in vain */
        free(reading);
    }
}

static bool read_later(const struct usage_reading *wanted)
{
    struct usage_reading *reading = malloc(sizeof *reading);
    if (reading == NULL)
        return false;
    *reading = *wanted;
    if (worker_post(wanted->server->worker, read_rows, reading))
        return true;
    free(reading);
    return false;
}

static int64_t since_s(const json_t *query)
{
    json_int_t n_days = json_integer_value(json_object_get(query, "days"));
    n_days = MIN(MAX(n_days, 1), USAGE_MAX_DAYS);
    return (int64_t)time(NULL) - (int64_t)(n_days - 1) * SECONDS_PER_DAY;
}

bool usage_asked(void *context, struct cluster_id from, uint64_t question, const char *what,
                 const json_t *query)
{
    struct server *server = context;
    return strcmp(what, USAGE_WHAT) == 0 && server->worker != NULL &&
           read_later(&(struct usage_reading){
               .server = server, .from = from, .question = question, .since_s = since_s(query)});
}

/* ---- All nodes' ------------------------------------------------------------------------------ */

static void end_collection(void *context)
{
    struct usage_collection *collection = context;
    struct server *server = collection->server;
    struct usage_collection **link = &server->collections;
    while (*link != collection)
        link = &(*link)->next;
    *link = collection->next;
    if (collection->exchange != NULL) {
        struct buffer body = {0};
        put_object(
            json_pack("{s:O, s:O}", "nodes", collection->nodes, "missing", collection->missing),
            &body);
        reply_json(collection->exchange, 200, (struct view){body.data, body.size});
        buffer_free(&body);
    }
    json_decref(collection->nodes);
    json_decref(collection->missing);
    free(collection);
}

/* One of those that are waited for; body NULL: reason says why there is none. */
static void collected(struct usage_collection *collection, const char *name, const json_t *body,
                      const char *reason)
{
    const json_t *rows = json_object_get(body, "rows");
    if (json_is_array(rows))
        json_array_append_new(collection->nodes,
                              json_pack("{s:s, s:O, s:b}", "node", name, "rows", rows, "cut",
                                        (int)json_is_true(json_object_get(body, "cut"))));
    else
        json_array_append_new(collection->missing,
                              json_pack("{s:s, s:s}", "node", name, "reason",
                                        body == NULL ? reason : "its answer cannot be read"));
    /* Not within the core, which the next request of the same connection may close. */
    if (--collection->n_waiting == 0 &&
        !net_loop_post(collection->server->loop, end_collection, collection))
        end_collection(collection);
}

void usage_answered(void *context, uint64_t question, const json_t *body, const char *reason)
{
    struct server *server = context;
    for (struct usage_collection *at = server->collections; at != NULL; at = at->next)
        for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
            if (at->asked[i].question == question) {
                at->asked[i].question = 0;
                collected(at, at->asked[i].name, body, reason);
                return;
            }
}

static void client_left(void *context)
{
    struct usage_collection *collection = context;
    http_abort(collection->exchange);
    collection->exchange = NULL;
}

/* Asks one node of the status, or notes why not. */
static void ask_node(struct usage_collection *collection, const json_t *node, const json_t *query,
                     size_t place)
{
    struct cluster_id id = {0, 0};
    struct error error = {.text = "it is not connected"};
    const char *name = json_string_value(json_object_get(node, "name"));
    const char *id_text = json_string_value(json_object_get(node, "id"));
    const char *reason = json_string_value(json_object_get(node, "reason"));
    const char *state = json_string_value(json_object_get(node, "state"));
    bool up = state != NULL && strcmp(state, "up") == 0;
    snprintf(collection->asked[place].name, CLUSTER_NAME_BYTES, "%s", name != NULL ? name : "");
    collection->n_waiting++;
    if (up && id_text != NULL && cluster_id_parse(&id, id_text) &&
        cluster_core_ask(cluster_node_core(collection->server->node), id, USAGE_WHAT, query,
                         &collection->asked[place].question, &error) == STATUS_OK)
        return;
    collection->asked[place].question = 0;
    collected(collection, collection->asked[place].name, NULL,
              !up && reason != NULL && reason[0] != '\0' ? reason : error.text);
}

static void out_of_memory(struct server *server, struct http_exchange *exchange)
{
    struct api_error error = {
        .http_status = 503, .type = "server_error", .text = "out of memory", .retry_after_s = 1};
    reply_error(server, exchange, NULL, &error);
}

void usage_collect(struct server *server, struct http_exchange *exchange, const json_t *query)
{
    struct usage_collection *collection = calloc(1, sizeof *collection);
    json_t *status = cluster_node_status(server->node), *node;
    json_t *asked = json_pack("{s:O*}", "days", json_object_get(query, "days"));
    if (collection == NULL || status == NULL || asked == NULL) {
        free(collection);
        json_decref(status);
        json_decref(asked);
        out_of_memory(server, exchange);
        return;
    }
    *collection = (struct usage_collection){.next = server->collections,
                                            .server = server,
                                            .exchange = exchange,
                                            .nodes = json_array(),
                                            .missing = json_array(),
                                            .n_waiting = 1};
    server->collections = collection;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        const char *name = json_string_value(json_object_get(node, "name"));
        if (json_is_true(json_object_get(node, "self")))
            snprintf(collection->own_name, CLUSTER_NAME_BYTES, "%s", name != NULL ? name : "");
        else if (i < CLUSTER_MAX_NODES)
            ask_node(collection, node, asked, i);
    }
    json_decref(asked);
    json_decref(status);
    http_on_gone(exchange, client_left, collection);
    if (!read_later(&(struct usage_reading){
            .server = server, .collection = collection, .since_s = since_s(query)}))
        collected(collection, collection->own_name, NULL, "out of memory");
}

void usage_close(struct server *server)
{
    for (struct usage_collection *at = server->collections; at != NULL;) {
        uint64_t question = 0;
        for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
            question = at->asked[i].question != 0 ? at->asked[i].question : question;
        if (question != 0) {
            usage_answered(server, question, NULL, "this server left the cluster");
            at = server->collections; /* that may have been the last one waited for */
        } else {
            at = at->next; /* the worker has it */
        }
    }
}
