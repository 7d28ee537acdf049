/* Models in the layout of Ollama's registry:
 *
 *     BASE/v2/library/NAME/manifests/TAG       which layers there are
 *     BASE/v2/library/NAME/blobs/sha256:HEX    a layer
 *
 *     {"layers": [{"mediaType": "application/vnd.ollama.image.model",
 *                  "digest": "sha256:HEX", "size": 123}, ...]}
 *
 * Besides the model file, layers carry the texts that go with it. */
#include "store/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT_BYTES ((size_t)1 << 20)

static const char type_prefix[] = "application/vnd.ollama.image.";

enum layer_kind {
    LAYER_MODEL,
    LAYER_TEMPLATE,
    LAYER_SYSTEM,
    LAYER_LICENSE,
    LAYER_PARAMETERS,
    LAYER_MESSAGES,
    LAYER_ADAPTER,
    LAYER_OTHER
};

static enum layer_kind kind_of(const char *type)
{
    static const char *const kinds[] = {"model",  "template", "system", "license",
                                        "params", "messages", "adapter"};
    size_t i = 0, prefix = sizeof type_prefix - 1;
    if (type == NULL || strncmp(type, type_prefix, prefix) != 0)
        return LAYER_OTHER;
    while (i < LAYER_OTHER && strcmp(type + prefix, kinds[i]) != 0)
        i++;
    return (enum layer_kind)i;
}

struct registry {
    struct pull *pull;
    const char *base, *path; /* of the repository: "library/llama3.2" */
    struct buffer url, text;
};

/* ---- The manifest ---------------------------------------------------------------------------- */

static enum status count_models(const json_t *layers, size_t *out, struct error *error)
{
    const json_t *layer;
    size_t i;
    *out = 0;
    if (json_array_size(layers) > STORE_MAX_FILES)
        return error_set(error, STATUS_LIMIT, "the manifest has more than %d layers",
                         STORE_MAX_FILES);
    json_array_foreach(layers, i, layer)
    {
        enum layer_kind kind = kind_of(json_string_value(json_object_get(layer, "mediaType")));
        if (kind == LAYER_ADAPTER)
            return error_set(error, STATUS_UNSUPPORTED,
                             "this model needs an adapter (LoRA), which consort does not apply: "
                             "pull one whose adapter is merged into it");
        *out += kind == LAYER_MODEL;
    }
    return *out > 0 ? STATUS_OK
                    : error_set(error, STATUS_INVALID, "the manifest names no model file");
}

enum status registry_read_layer(const json_t *layer, struct store_file *out, struct error *error)
{
    static const char prefix[] = "sha256:";
    const char *digest = json_string_value(json_object_get(layer, "digest"));
    const json_t *size = json_object_get(layer, "size");
    if (digest == NULL || strncmp(digest, prefix, sizeof prefix - 1) != 0 ||
        !digest_valid(digest + sizeof prefix - 1))
        return error_set(error, STATUS_INVALID, "a layer of the manifest has no SHA-256");
    if (!json_is_integer(size) || json_integer_value(size) <= 0 ||
        json_integer_value(size) > STORE_MAX_FILE_BYTES)
        return error_set(error, STATUS_INVALID, "a layer of the manifest has no good size");
    memcpy(out->digest, digest + sizeof prefix - 1, STORE_DIGEST_BYTES);
    out->size_bytes = (uint64_t)json_integer_value(size);
    return STATUS_OK;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

static bool set_url(struct registry *registry, const char *kind, const char *what)
{
    buffer_clear(&registry->url);
    return buffer_printf(&registry->url, "%s/v2/%s/%s/%s", registry->base, registry->path, kind,
                         what);
}

static bool set_blob_url(struct registry *registry, const struct store_file *layer)
{
    char digest[STORE_DIGEST_BYTES + 8];
    snprintf(digest, sizeof digest, "sha256:%s", layer->digest);
    return set_url(registry, "blobs", digest);
}

/* A text, verified, into registry->text. */
static enum status fetch_text(struct registry *registry, const struct store_file *layer,
                              struct error *error)
{
    char found[STORE_DIGEST_BYTES] = "";
    struct digest *sum = digest_open();
    enum status status = STATUS_OK;
    if (sum == NULL || !set_blob_url(registry, layer))
        status = error_memory(error, 1);
    else if (layer->size_bytes > MAX_TEXT_BYTES)
        status = error_set(error, STATUS_LIMIT, "a text of the model has more than %zu bytes",
                           MAX_TEXT_BYTES);
    else
        status = fetch_document(registry->pull, registry->url.data, false, MAX_TEXT_BYTES,
                                &registry->text, error);
    if (status != STATUS_OK) {
        digest_discard(sum);
        return status;
    }
    digest_add(sum, registry->text.data, registry->text.size);
    digest_end(sum, found);
    if (strcmp(found, layer->digest) != 0)
        return error_set(error, STATUS_IO, "%s is not what the manifest announced (SHA-256)",
                         registry->url.data);
    if (!utf8_valid(registry->text.data, registry->text.size) ||
        strlen(registry->text.data) != registry->text.size)
        return error_set(error, STATUS_INVALID, "%s is no text in UTF-8", registry->url.data);
    return STATUS_OK;
}

static enum status add_text(struct store_model *model, const char **to, const char *text,
                            struct error *error)
{
    struct buffer joined = {0};
    buffer_printf(&joined, "%s%s%s", *to, (*to)[0] != '\0' ? "\n\n" : "", text);
    *to = joined.failed ? NULL : arena_copy(model->arena, joined.data, joined.size);
    buffer_free(&joined);
    if (*to != NULL)
        return STATUS_OK;
    *to = "";
    return error_memory(error, strlen(text));
}

static enum status take_json(struct store_model *model, enum layer_kind kind, const char *text,
                             struct error *error)
{
    json_error_t where;
    json_t *value = json_loads(text, 0, &where);
    bool good = kind == LAYER_PARAMETERS ? json_is_object(value) : json_is_array(value);
    if (good && kind == LAYER_PARAMETERS)
        json_object_update(model->parameters, value);
    else if (good)
        json_array_extend(model->messages, value);
    json_decref(value);
    return good ? STATUS_OK
                : error_set(error, STATUS_INVALID, "the %s of the model are broken: %s",
                            kind == LAYER_PARAMETERS ? "parameters" : "messages", where.text);
}

static enum status take_layer(struct registry *registry, enum layer_kind kind,
                              const struct store_file *layer, struct error *error)
{
    struct store_model *model = registry->pull->model;
    const char **texts[] = {[LAYER_TEMPLATE] = &model->chat_template,
                            [LAYER_SYSTEM] = &model->system,
                            [LAYER_LICENSE] = &model->license};
    enum status status = fetch_text(registry, layer, error);
    if (status != STATUS_OK)
        return status;
    if (kind == LAYER_PARAMETERS || kind == LAYER_MESSAGES)
        return take_json(model, kind, registry->text.data, error);
    return add_text(model, texts[kind], registry->text.data, error);
}

/* The last part of the repository's name, made the name of a file. */
static struct store_file *add_model_file(struct registry *registry, size_t n, struct error *error)
{
    char name[STORE_NAME_BYTES + 32];
    const char *slash = strrchr(registry->path, '/');
    const char *stem = slash != NULL ? slash + 1 : registry->path;
    if (n > 1)
        snprintf(name, sizeof name, "%s-%05zu-of-%05zu.gguf", stem,
                 registry->pull->model->n_files + 1, n);
    else
        snprintf(name, sizeof name, "%s.gguf", stem);
    return pull_add_file(registry->pull, name, error);
}

/* The texts come first: they are small, and may already say that the model cannot be used. */
static enum status take_layers(struct registry *registry, const json_t *layers, struct error *error)
{
    const json_t *layer;
    size_t i, n_models = 0;
    enum status status = count_models(layers, &n_models, error);
    uint64_t missing_bytes = 0;
    json_array_foreach(layers, i, layer)
    {
        struct store_file read = {0};
        enum layer_kind kind = kind_of(json_string_value(json_object_get(layer, "mediaType")));
        if (status != STATUS_OK || kind == LAYER_OTHER)
            continue;
        status = registry_read_layer(layer, &read, error);
        if (status == STATUS_OK && kind != LAYER_MODEL) {
            status = take_layer(registry, kind, &read, error);
        } else if (status == STATUS_OK) {
            struct store_file *file = add_model_file(registry, n_models, error);
            if (file == NULL)
                return error->code;
            memcpy(file->digest, read.digest, sizeof read.digest);
            file->size_bytes = read.size_bytes;
            missing_bytes += pull_missing_bytes(registry->pull, file);
        }
    }
    return status == STATUS_OK && missing_bytes > 0
               ? store_check_room(registry->pull->store, missing_bytes, error)
               : status;
}

static enum status read_manifest(struct registry *registry, struct error *error)
{
    json_error_t where;
    json_t *manifest = json_loadb(registry->text.data, registry->text.size, 0, &where);
    if (!json_is_array(json_object_get(manifest, "layers"))) {
        json_decref(manifest);
        return error_set(error, STATUS_INVALID,
                         "%s is no manifest of a model: is this a registry of models?",
                         registry->url.data);
    }
    enum status status = take_layers(registry, json_object_get(manifest, "layers"), error);
    json_decref(manifest);
    return status;
}

enum status pull_registry(struct pull *pull, const char *base, const char *path, const char *tag,
                          struct error *error)
{
    struct registry registry = {.pull = pull, .base = base, .path = path};
    struct store_model *model = pull->model;
    enum status status = pull_say(pull, "pulling manifest", error);
    if (status == STATUS_OK && !set_url(&registry, "manifests", tag))
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = fetch_document(pull, registry.url.data, false, STORE_MAX_MANIFEST_BYTES,
                                &registry.text, error);
    if (status == STATUS_OK) {
        model->source = store_model_text(model, registry.url.data);
        status = read_manifest(&registry, error);
    }
    for (size_t i = 0; i < model->n_files && status == STATUS_OK; i++) {
        status = set_blob_url(&registry, &model->files[i]) ? STATUS_OK : error_memory(error, 1);
        if (status == STATUS_OK)
            status = pull_download(pull, registry.url.data, false, &model->files[i], error);
    }
    buffer_free(&registry.url);
    buffer_free(&registry.text);
    return status;
}
