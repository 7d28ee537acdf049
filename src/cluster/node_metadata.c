/* Metadata of models: their facts, tokenizer and chat template, with which a node reads requests
 * that others compute, and plans. They are the object "SHA/meta", a model file without tensors,
 * fetched from a node that has the model, or a slice of it; what is asked for meanwhile waits. */
#include "cluster/core_slices.h"
#include "cluster/node_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_MS 20000

struct node_metadata {
    struct node_metadata *next;
    char sha[CLUSTER_SHA_TEXT];
    uint64_t begun_ms;
    cluster_node_ready *ready;
    void *context;
};

static void meta_object(const char *sha, char out[CLUSTER_OBJECT_BYTES])
{
    snprintf(out, CLUSTER_OBJECT_BYTES, "%s/meta", sha);
}

bool node_metadata_path(struct cluster_node *node, const char *sha, struct buffer *out)
{
    char object[CLUSTER_OBJECT_BYTES];
    meta_object(sha, object);
    return node_object_path(node, object, out) || node_object_any(sha, out);
}

/* A node that has the whole model, or else a slice of it. */
static bool find_source(struct cluster_node *node, const char *sha, struct cluster_id *out)
{
    json_t *status = cluster_core_status(node->core), *object;
    const json_t *other, *model;
    const char *name;
    size_t i, k;
    bool found = false;
    json_array_foreach(json_object_get(status, "nodes"), i, other)
    {
        const char *id = json_string_value(json_object_get(other, "id"));
        json_array_foreach(json_object_get(other, "models"), k, model)
        {
            const char *held = json_string_value(json_object_get(model, "sha"));
            if (!found && id != NULL && held != NULL && strcmp(held, sha) == 0 &&
                strcmp(id, node->id_text) != 0)
                found = cluster_id_parse(out, id);
        }
    }
    json_object_foreach(json_object_get(status, "objects"), name, object)
    {
        json_array_foreach(json_object_get(object, "nodes"), k, other)
        {
            const char *id = json_string_value(other);
            if (!found && slice_of_model(name, sha) && strcmp(id, node->id_text) != 0)
                found = cluster_id_parse(out, id);
        }
    }
    json_decref(status);
    return found;
}

void node_metadata_ask(struct cluster_node *node, const char *sha)
{
    char object[CLUSTER_OBJECT_BYTES];
    struct cluster_id source;
    meta_object(sha, object);
    if (find_source(node, sha, &source))
        node_object_bring(node, object, source);
}

void cluster_node_metadata(struct cluster_node *node, const struct cluster_model *model,
                           cluster_node_ready *ready, void *context)
{
    struct node_metadata *waiting = calloc(1, sizeof *waiting);
    if (waiting == NULL)
        return;
    snprintf(waiting->sha, sizeof waiting->sha, "%s", model->sha);
    waiting->ready = ready;
    waiting->context = context;
    waiting->begun_ms = node_now_ms();
    waiting->next = node->metadata;
    node->metadata = waiting;
    struct buffer path = {0};
    if (!node_metadata_path(node, model->sha, &path))
        node_metadata_ask(node, model->sha);
    buffer_free(&path);
}

void node_metadata_tick(struct cluster_node *node)
{
    for (struct node_metadata **link = &node->metadata; *link != NULL;) {
        struct node_metadata *waiting = *link;
        struct buffer path = {0};
        bool here = node_metadata_path(node, waiting->sha, &path);
        bool late = node_now_ms() - waiting->begun_ms > PATIENCE_MS;
        if (!here && !late) {
            link = &waiting->next;
            buffer_free(&path);
            continue;
        }
        *link = waiting->next;
        waiting->ready(waiting->context, here ? path.data : NULL,
                       here ? NULL : "no node that has it sends its metadata");
        buffer_free(&path);
        free(waiting);
    }
}

void node_metadata_close(struct cluster_node *node)
{
    while (node->metadata != NULL) {
        struct node_metadata *waiting = node->metadata;
        node->metadata = waiting->next;
        waiting->ready(waiting->context, NULL, "the server is shutting down");
        free(waiting);
    }
}

/* ---- Models of the cluster ------------------------------------------------------------------- */

static bool take_model(const json_t *model, struct cluster_model *out)
{
    const char *sha = json_string_value(json_object_get(model, "sha"));
    const char *name = json_string_value(json_object_get(model, "name"));
    if (sha == NULL || name == NULL)
        return false;
    *out = (struct cluster_model){0};
    snprintf(out->sha, sizeof out->sha, "%s", sha);
    snprintf(out->name, sizeof out->name, "%s", name);
    out->size_bytes = (uint64_t)json_number_value(json_object_get(model, "size"));
    return true;
}

/* Whether there is an instance of it, or there is to be one. */
static bool model_runs(struct cluster_node *node, const json_t *status, const char *sha)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    const json_t *instance;
    size_t i;
    snprintf(key, sizeof key, "model/%s", sha);
    if (cluster_core_get(node->core, key) != NULL)
        return true;
    json_array_foreach(json_object_get(status, "instances"), i, instance)
    {
        const char *held = json_string_value(json_array_get(json_object_get(instance, "model"), 0));
        const char *state = json_string_value(json_object_get(instance, "state"));
        if (held != NULL && strcmp(held, sha) == 0 && state != NULL && strcmp(state, "failed") != 0)
            return true;
    }
    return false;
}

struct desired {
    cluster_node_model *each;
    void *context;
};

static bool tell_desired(void *context, const char *key, const json_t *value)
{
    static const char prefix[] = "model/";
    const struct desired *desired = context;
    const char *name = json_string_value(json_object_get(value, "name"));
    struct cluster_model model = {.size_bytes = 0};
    if (strncmp(key, prefix, strlen(prefix)) != 0 || name == NULL)
        return true;
    snprintf(model.sha, sizeof model.sha, "%.64s", key + strlen(prefix));
    snprintf(model.name, sizeof model.name, "%.63s", name);
    model.size_bytes = (uint64_t)json_number_value(json_object_get(value, "size"));
    desired->each(desired->context, &model, true);
    return true;
}

/* Models that lie on no node whole, but run of slices, or are to. */
static void tell_running(struct cluster_node *node, const json_t *status, cluster_node_model *each,
                         void *context)
{
    const json_t *instance;
    size_t i;
    json_array_foreach(json_object_get(status, "instances"), i, instance)
    {
        const json_t *fields = json_object_get(instance, "model");
        const char *sha = json_string_value(json_array_get(fields, 0));
        const char *name = json_string_value(json_array_get(fields, 1));
        struct cluster_model model = {.size_bytes = 0};
        if (sha == NULL || name == NULL || !model_runs(node, status, sha))
            continue;
        snprintf(model.sha, sizeof model.sha, "%.64s", sha);
        snprintf(model.name, sizeof model.name, "%.63s", name);
        model.size_bytes = (uint64_t)json_number_value(json_array_get(fields, 2));
        each(context, &model, true);
    }
    struct desired desired = {each, context};
    cluster_core_each(node->core, tell_desired, &desired);
}

void cluster_node_models(struct cluster_node *node, cluster_node_model *each, void *context)
{
    json_t *status = cluster_core_status(node->core);
    const json_t *other, *held;
    size_t i, k;
    json_array_foreach(json_object_get(status, "nodes"), i, other)
    {
        json_array_foreach(json_object_get(other, "models"), k, held)
        {
            struct cluster_model model;
            if (take_model(held, &model))
                each(context, &model, model_runs(node, status, model.sha));
        }
    }
    tell_running(node, status, each, context);
    json_decref(status);
}

struct search {
    const char *name;
    struct cluster_model *out;
    bool *runs, found;
};

static void compare(void *context, const struct cluster_model *model, bool runs)
{
    struct search *search = context;
    if (search->found || strcmp(model->name, search->name) != 0)
        return;
    *search->out = *model;
    *search->runs = runs;
    search->found = true;
}

bool cluster_node_find(struct cluster_node *node, const char *name, struct cluster_model *out,
                       bool *runs)
{
    struct search search = {name, out, runs, false};
    cluster_node_models(node, compare, &search);
    return search.found;
}
