/* What `consort stop` and `consort down` ask of the server. `consort ps` asks for its state. */
#include "server/server_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BODY_LIMIT 4096

static void reply_object(struct http_exchange *exchange, json_t *object)
{
    struct buffer body = {0};
    put_object(object, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

/* The body of a request that only the owner of this server may make; NULL where that is answered
 * already. */
static json_t *owner_asks(struct server *server, struct http_exchange *exchange)
{
    struct view body = http_body(exchange);
    struct api_error error = {
        .http_status = 403,
        .type = "permission_error",
        .code = "not_the_owner",
        .text =
            "this needs the control token of the server, which the user who started it finds on "
            "its machine: run the command there"};
    json_t *fields = NULL;
    if (control_holds(server, exchange)) {
        fields = body.size <= BODY_LIMIT ? json_loadb(body.data, body.size, 0, NULL) : NULL;
        if (json_is_object(fields))
            return fields;
        api_invalid(&error, "", "a JSON object is expected");
    }
    json_decref(fields);
    reply_error(server, exchange, NULL, &error);
    return NULL;
}

void operate_stop(struct server *server, struct http_exchange *exchange)
{
    json_t *fields = owner_asks(server, exchange);
    if (fields == NULL)
        return;
    const char *name = json_string_value(json_object_get(fields, "model"));
    struct served_model *model = name != NULL ? models_find(server, name) : NULL;
    if (model != NULL) {
        models_stop(model);
        reply_object(exchange, state_describe(model));
    } else {
        struct api_error error;
        models_unknown(server, exchange, name, &error);
        reply_error(server, exchange, NULL, &error);
    }
    json_decref(fields);
}

void operate_down(struct server *server, struct http_exchange *exchange)
{
    json_t *fields = owner_asks(server, exchange);
    if (fields == NULL)
        return;
    size_t running = 0;
    for (size_t i = 0; i < server->n_models; i++)
        running += server->models[i].n_users;
    bool now = json_is_true(json_object_get(fields, "now"));
    json_decref(fields);
    reply_object(exchange, json_pack("{s:I, s:I}", "running", (json_int_t)running, "drain_s",
                                     (json_int_t)server->drain_s));
    server_begin_shutdown(server, now);
}

void operate_cluster(struct server *server, struct http_exchange *exchange)
{
    static const char *const verbs[] = {"load",   "unload", "forget", "remove",
                                        "rotate", "leave",  "usage"};
    json_t *fields = owner_asks(server, exchange);
    struct api_error error;
    if (fields == NULL)
        return;
    const char *verb = json_string_value(json_object_get(fields, "do"));
    bool known = false;
    for (size_t i = 0; i < ARRAY_COUNT(verbs) && verb != NULL; i++)
        known |= strcmp(verb, verbs[i]) == 0;
    if (!known)
        api_invalid(&error, "do",
                    "load, unload, forget, remove, rotate, leave or usage is expected");
    if (known && strcmp(verb, "usage") == 0 && server->node != NULL)
        usage_collect(server, exchange, fields);
    else if (!known || cluster_command(server, verb, fields, &error) != STATUS_OK)
        reply_error(server, exchange, NULL, &error);
    else
        reply_object(exchange,
                     server->node != NULL ? cluster_node_status(server->node) : json_object());
    json_decref(fields);
}
