/* The store's names as models of this server: read again whenever they change, so that what is
 * pulled or removed meanwhile is seen. A model whose name goes stays as long as someone uses it. */
#include "server/server_internal.h"

#include <stdlib.h>
#include <string.h>

/* Under the name that clients see: without ":latest". */
static void shelve(struct served_model *place, struct server *server, struct store_model *stored)
{
    uint64_t keep_alive_ms = server->options.keep_alive_ms;
    char *name = arena_copy(stored->arena, stored->name, store_name_short(stored->name));
    *place = (struct served_model){.server = server,
                                   .name = name != NULL ? name : stored->name,
                                   .path = stored->path,
                                   .stored = stored,
                                   .keep_alive_ms = keep_alive_ms > 0 ? keep_alive_ms : UINT64_MAX};
}

/* Nobody looks at it any more. */
static bool is_vacant(const struct served_model *model)
{
    return model->gone && model->state == MODEL_CLOSED && model->n_holders == 0 &&
           model->waiting == NULL;
}

/* Takes stored over. */
static void add(struct server *server, struct store_model *stored)
{
    size_t i = 0;
    while (i < server->n_models && !is_vacant(&server->models[i]))
        i++;
    if (i == SERVER_MAX_MODELS) {
        server_logf(server, "%s is left out: more than %d models", stored->name, SERVER_MAX_MODELS);
        store_model_free(stored);
        return;
    }
    if (i < server->n_models)
        store_model_free(server->models[i].stored);
    else
        server->n_models++;
    shelve(&server->models[i], server, stored);
}

/* What is open stays until its last use ends. */
static void drop(struct served_model *model)
{
    model->gone = true;
    model->keep_alive_ms = 0;
    models_stop(model);
}

static bool same_manifest(const struct store_model *a, const struct store_model *b)
{
    struct buffer x = {0}, y = {0};
    bool same = a->modified_s == b->modified_s && store_manifest_write(a, &x, NULL) == STATUS_OK &&
                store_manifest_write(b, &y, NULL) == STATUS_OK && strcmp(x.data, y.data) == 0;
    buffer_free(&x);
    buffer_free(&y);
    return same;
}

/* Whether anything changed. */
static bool compare(struct server *server, struct store_list *list)
{
    bool changed = false;
    for (size_t i = 0; i < server->n_models; i++) {
        struct served_model *model = &server->models[i];
        bool kept = model->stored == NULL || model->gone;
        for (size_t k = 0; k < list->n_models && !kept; k++)
            kept = strcmp(list->models[k]->name, model->stored->name) == 0 &&
                   same_manifest(list->models[k], model->stored);
        if (!kept) {
            drop(model);
            changed = true;
        }
    }
    for (size_t k = 0; k < list->n_models; k++) {
        if (models_known(server, list->models[k]->name) != NULL)
            continue;
        add(server, list->models[k]);
        list->models[k] = NULL;
        changed = true;
    }
    return changed;
}

bool shelf_read(struct server *server)
{
    bool recent;
    struct error error;
    struct store_list list;
    if (server->store == NULL)
        return false;
    uint64_t version = store_version(server->store, &recent);
    if (version == server->store_version && !server->store_recent)
        return false;
    server->store_version = version;
    server->store_recent = recent;
    if (store_list(server->store, &list, &error) != STATUS_OK) {
        server_logf(server, "cannot read the store: %s", error.text);
        return false;
    }
    if (list.n_broken > 0)
        server_logf(server, "%s", list.broken.text);
    bool changed = compare(server, &list);
    store_list_free(&list);
    return changed;
}

void shelf_refresh(struct server *server)
{
    if (shelf_read(server) && server->node != NULL)
        cluster_node_refresh(server->node);
}

void shelf_open(struct server *server)
{
    struct error error;
    if (store_open(&server->store, NULL, &error) != STATUS_OK)
        server_logf(server, "there is no store: %s", error.text);
}

enum status shelf_add(struct server *server, const char *name, struct error *error)
{
    struct store_model *stored;
    if (server->store == NULL)
        return error_set(error, STATUS_NOT_FOUND, "there is no store that has %s", name);
    enum status status = store_find(server->store, name, &stored, error);
    if (status == STATUS_OK)
        add(server, stored);
    return status;
}

void shelf_close(struct server *server)
{
    for (size_t i = 0; i < server->n_models; i++)
        store_model_free(server->models[i].stored);
    store_close(server->store);
}
