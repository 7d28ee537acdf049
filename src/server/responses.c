/* Responses that are kept, so that later ones can follow them: a table in a database under
 * consort's home, which is opened when it is first needed. Each key sees its own. `mutex` guards
 * the database. */
#include "server/server_internal.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct responses {
    uint64_t keep_s;
    pthread_mutex_t mutex;
    struct sqlite3 *database; /* NULL: not open */
};

static const char *const migrations[] = {
    "CREATE TABLE responses(id TEXT PRIMARY KEY, owner TEXT, expires_s INTEGER, response BLOB,"
    " items BLOB);"
    "CREATE INDEX responses_expiry ON responses(expires_s);",
};

enum status responses_open(struct responses **out, uint64_t keep_s, struct error *error)
{
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return error_memory(error, sizeof **out);
    (*out)->keep_s = keep_s;
    pthread_mutex_init(&(*out)->mutex, NULL);
    return STATUS_OK;
}

void responses_close(struct responses *responses)
{
    if (responses == NULL)
        return;
    database_close(responses->database);
    pthread_mutex_destroy(&responses->mutex);
    free(responses);
}

/* ---- The table ------------------------------------------------------------------------------- */

/* Locks; what has expired is gone then. */
static enum status begin(struct responses *responses, struct error *error)
{
    struct buffer path = {0};
    enum status status = STATUS_OK;
    pthread_mutex_lock(&responses->mutex);
    if (responses->database == NULL) {
        status = home_directory("", &path, error);
        buffer_append_text(&path, "/responses.db");
        if (status == STATUS_OK)
            status = path.failed ? error_memory(error, path.size)
                                 : database_open(&responses->database, path.data, migrations,
                                                 ARRAY_COUNT(migrations), error);
        buffer_free(&path);
    }
    if (status == STATUS_OK)
        status =
            database_run(responses->database, error, "DELETE FROM responses WHERE expires_s <= ?1",
                         "i", (int64_t)time(NULL));
    return status;
}

static enum status end(struct responses *responses, enum status status)
{
    pthread_mutex_unlock(&responses->mutex);
    return status;
}

static enum status keep(struct responses *responses, const char *id, const char *owner,
                        struct view response, struct view items, struct error *error)
{
    enum status status = begin(responses, error);
    if (status == STATUS_OK)
        status =
            database_run(responses->database, error,
                         "INSERT OR REPLACE INTO responses(id, owner, expires_s, response, items) "
                         "VALUES(?1, ?2, ?3, ?4, ?5)",
                         "ttibb", id, owner, (int64_t)time(NULL) + (int64_t)responses->keep_s,
                         &response, &items);
    return end(responses, status);
}

static bool take_text(void *context, struct sqlite3_stmt *row)
{
    buffer_append(context, sqlite3_column_blob(row, 0), (size_t)sqlite3_column_bytes(row, 0));
    return false;
}

static enum status not_here(const char *id, struct error *error)
{
    return error_set(error, STATUS_NOT_FOUND,
                     "there is no response '%.60s' here: it was not stored, or has expired", id);
}

static enum status find(struct responses *responses, const char *id, const char *owner, bool items,
                        struct buffer *out, struct error *error)
{
    enum status status = begin(responses, error);
    size_t before = out->size;
    if (status == STATUS_OK)
        status =
            database_query(responses->database, take_text, out, error,
                           items ? "SELECT items FROM responses WHERE id = ?1 AND owner = ?2"
                                 : "SELECT response FROM responses WHERE id = ?1 AND owner = ?2",
                           "tt", id, owner);
    if (status == STATUS_OK && out->size == before)
        status = not_here(id, error);
    return end(responses, status);
}

static enum status forget(struct responses *responses, const char *id, const char *owner,
                          struct error *error)
{
    enum status status = begin(responses, error);
    if (status == STATUS_OK)
        status =
            database_run(responses->database, error,
                         "DELETE FROM responses WHERE id = ?1 AND owner = ?2", "tt", id, owner);
    if (status == STATUS_OK && sqlite3_changes(responses->database) == 0)
        status = not_here(id, error);
    return end(responses, status);
}

/* ---- Generations ----------------------------------------------------------------------------- */

enum status response_follow(struct server *server, const char *owner, struct api_call *call,
                            struct api_error *told)
{
    struct buffer items = {0};
    struct error error;
    json_t *history = NULL;
    call->store = call->store && server->responses->keep_s > 0;
    if (call->previous != NULL) {
        if (find(server->responses, call->previous, owner, true, &items, &error) != STATUS_OK) {
            api_error_from(told, &error);
            snprintf(told->param, sizeof told->param, "previous_response_id");
            buffer_free(&items);
            return error.code;
        }
        history = json_loadb(items.data, items.size, JSON_ALLOW_NUL, NULL);
    }
    enum status status = responses_follow(call, history, told);
    json_decref(history);
    buffer_free(&items);
    return status;
}

void response_keep(struct server *server, const char *owner, struct api_answer *answer)
{
    struct buffer response = {0}, output = {0};
    struct error error;
    answer->call->format->whole(answer, &response);
    responses_put_output(answer, &output);
    json_t *added = json_loadb(output.data, output.size, JSON_ALLOW_NUL, NULL);
    json_t *items = json_copy(answer->call->input);
    char *text = NULL;
    if (json_array_extend(items, added) == 0)
        text = json_dumps(items, JSON_COMPACT);
    if (text == NULL || response.failed)
        error_memory(&error, response.size);
    if (text == NULL || response.failed ||
        keep(server->responses, answer->id, owner, (struct view){response.data, response.size},
             view_of(text), &error) != STATUS_OK)
        server_logf(server, "a response is not kept: %s", error.text);
    free(text);
    json_decref(items);
    json_decref(added);
    buffer_free(&response);
    buffer_free(&output);
}

/* ---- Told again ------------------------------------------------------------------------------ */

/* id of ".../responses/id". */
static bool id_of(struct view path, char id[64])
{
    static const char *const begins[] = {"/v1/responses/", "/responses/"};
    for (size_t i = 0; i < ARRAY_COUNT(begins); i++) {
        size_t size = strlen(begins[i]);
        if (path.size <= size || path.size >= size + 64 || memcmp(path.data, begins[i], size) != 0)
            continue;
        snprintf(id, 64, "%.*s", (int)(path.size - size), path.data + size);
        return strspn(id, "abcdefghijklmnopqrstuvwxyz_0123456789") == strlen(id);
    }
    return false;
}

bool response_told(struct server *server, struct http_exchange *exchange)
{
    char id[64];
    struct buffer body = {0};
    struct error error;
    struct api_error told;
    enum status status;
    struct view method = http_method(exchange);
    bool get = view_equal(method, view_of("GET"));
    if ((!get && !view_equal(method, view_of("DELETE"))) || !id_of(http_path(exchange), id))
        return false;
    if (get) {
        status = find(server->responses, id, gateway_owner(exchange), false, &body, &error);
    } else {
        status = forget(server->responses, id, gateway_owner(exchange), &error);
        buffer_printf(&body, "{\"id\":\"%s\",\"object\":\"response\",\"deleted\":true}", id);
    }
    if (status == STATUS_OK) {
        http_reply(exchange, 200, "application/json", (struct view){body.data, body.size}, NULL);
    } else {
        api_error_from(&told, &error);
        reply_error(server, exchange, NULL, &told);
    }
    buffer_free(&body);
    return true;
}
