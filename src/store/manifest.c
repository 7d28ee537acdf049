/* What a name stands for, as JSON:
 *
 *     {"name": "llama3.2:1b", "source": "...",
 *      "files": [{"name": "x.gguf", "digest": "sha256:HEX", "size": 123}],
 *      "system": "...", "template": "...", "template_wins": true, "license": "...",
 *      "parameters": {"temperature": 0.6, "stop": ["..."]},
 *      "messages": [{"role": "user", "content": "..."}]}
 */
#include "store/internal.h"

#include <string.h>

#define MAX_FILE_NAME 200
#define MAX_MESSAGES 1000
static const char digest_prefix[] = "sha256:";

/* ---- Models in memory ------------------------------------------------------------------------ */

struct store_model *store_model_new(void)
{
    struct arena *arena = arena_open(0);
    struct store_model *model = arena != NULL ? arena_alloc(arena, sizeof *model) : NULL;
    if (model == NULL) {
        arena_close(arena);
        return NULL;
    }
    *model = (struct store_model){.arena = arena,
                                  .name = "",
                                  .source = "",
                                  .system = "",
                                  .chat_template = "",
                                  .license = "",
                                  .parameters = json_object(),
                                  .messages = json_array()};
    model->files = arena_array(arena, STORE_MAX_FILES, sizeof *model->files);
    if (model->files != NULL && model->parameters != NULL && model->messages != NULL)
        return model;
    store_model_free(model);
    return NULL;
}

void store_model_free(struct store_model *model)
{
    if (model == NULL)
        return;
    json_decref(model->parameters);
    json_decref(model->messages);
    arena_close(model->arena);
}

const char *store_model_text(struct store_model *model, const char *text)
{
    const char *copy = arena_copy(model->arena, text, strlen(text));
    return copy != NULL ? copy : "";
}

void store_model_sum(struct store_model *model)
{
    model->size_bytes = 0;
    for (size_t i = 0; i < model->n_files; i++)
        model->size_bytes += model->files[i].size_bytes;
    if (model->n_files == 1) {
        memcpy(model->digest, model->files[0].digest, STORE_DIGEST_BYTES);
        return;
    }
    struct digest *digest = digest_open();
    model->digest[0] = '\0';
    for (size_t i = 0; i < model->n_files && digest != NULL; i++)
        digest_add(digest, model->files[i].digest, STORE_DIGEST_BYTES - 1);
    if (digest != NULL)
        digest_end(digest, model->digest);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static enum status bad(struct error *error, const char *what)
{
    return error_set(error, STATUS_INVALID, "%s", what);
}

/* A text that may be missing. */
static enum status read_text(struct store_model *model, const json_t *object, const char *key,
                             const char **out, struct error *error)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_string(value))
        return error_set(error, STATUS_INVALID, "%s is no text", key);
    *out = arena_copy(model->arena, json_string_value(value), json_string_length(value));
    return *out != NULL ? STATUS_OK : error_memory(error, json_string_length(value));
}

/* No folders, nothing hidden, nothing that a terminal would obey. */
static bool file_name_good(const char *name)
{
    if (name[0] == '\0' || name[0] == '.' || strlen(name) > MAX_FILE_NAME)
        return false;
    for (const char *at = name; *at != '\0'; at++)
        if (*at == '/' || *at == '\\' || (unsigned char)*at < 0x20 || *at == 0x7f)
            return false;
    return true;
}

static enum status read_file(struct store_model *model, const json_t *entry, struct error *error)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *digest = json_string_value(json_object_get(entry, "digest"));
    const json_t *size = json_object_get(entry, "size");
    size_t prefix = sizeof digest_prefix - 1;
    if (name == NULL || !file_name_good(name))
        return bad(error, "a file has no good name");
    if (digest == NULL || strncmp(digest, digest_prefix, prefix) != 0 ||
        !digest_valid(digest + prefix))
        return bad(error, "a file has no SHA-256");
    if (!json_is_integer(size) || json_integer_value(size) <= 0 ||
        json_integer_value(size) > STORE_MAX_FILE_BYTES)
        return bad(error, "a file has no good size");
    struct store_file *file = &model->files[model->n_files++];
    file->name = store_model_text(model, name);
    file->size_bytes = (uint64_t)json_integer_value(size);
    memcpy(file->digest, digest + prefix, STORE_DIGEST_BYTES);
    return STATUS_OK;
}

/* Several files are the parts of one model, named as that asks for. */
static enum status read_files(struct store_model *model, const json_t *list, struct error *error)
{
    const json_t *entry;
    size_t i, n = json_array_size(list);
    enum status status = STATUS_OK;
    if (n == 0 || n > STORE_MAX_FILES)
        return error_set(error, STATUS_INVALID, "there are %zu files; 1 to %d are expected", n,
                         STORE_MAX_FILES);
    json_array_foreach(list, i, entry)
    {
        unsigned number = 0;
        if (status == STATUS_OK)
            status = read_file(model, entry, error);
        if (status == STATUS_OK && n > 1 &&
            (part_count_of(model->files[i].name, &number) != n || number != i + 1))
            status = bad(error, "the parts of a split model are not in order");
    }
    return status;
}

static enum status read_messages(struct store_model *model, const json_t *list, struct error *error)
{
    const json_t *message;
    size_t i;
    if (list == NULL)
        return STATUS_OK;
    if (!json_is_array(list) || json_array_size(list) > MAX_MESSAGES)
        return bad(error, "messages is no list, or too long");
    json_array_foreach(list, i, message)
    {
        const json_t *role = json_object_get(message, "role");
        const json_t *content = json_object_get(message, "content");
        if (!json_is_string(role) || !json_is_string(content))
            return bad(error, "a message has no role or no content");
        json_array_append_new(model->messages,
                              json_pack("{s:O, s:O}", "role", role, "content", content));
    }
    return STATUS_OK;
}

static enum status read_all(struct store_model *model, const json_t *object, struct error *error)
{
    const struct {
        const char *key;
        const char **out;
    } texts[] = {{"source", &model->source},
                 {"system", &model->system},
                 {"template", &model->chat_template},
                 {"license", &model->license}};
    char name[STORE_NAME_BYTES];
    const char *given = json_string_value(json_object_get(object, "name"));
    const json_t *parameters = json_object_get(object, "parameters");
    model->template_wins = json_is_true(json_object_get(object, "template_wins"));
    if (given == NULL)
        return bad(error, "there is no name");
    enum status status = store_name_parse(given, name, error);
    model->name = store_model_text(model, name);
    for (size_t i = 0; i < ARRAY_COUNT(texts) && status == STATUS_OK; i++)
        status = read_text(model, object, texts[i].key, texts[i].out, error);
    if (status == STATUS_OK && parameters != NULL && !json_is_object(parameters))
        status = bad(error, "parameters is no object");
    if (status == STATUS_OK && parameters != NULL)
        json_object_update(model->parameters, (json_t *)parameters);
    if (status == STATUS_OK)
        status = read_files(model, json_object_get(object, "files"), error);
    return status == STATUS_OK ? read_messages(model, json_object_get(object, "messages"), error)
                               : status;
}

enum status store_manifest_read(struct store_model **out, struct view text, struct error *error)
{
    json_error_t where;
    *out = NULL;
    if (text.size > STORE_MAX_MANIFEST_BYTES)
        return error_set(error, STATUS_LIMIT, "it has more than %zu bytes",
                         STORE_MAX_MANIFEST_BYTES);
    json_t *object = json_loadb(text.data, text.size, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(object)) {
        json_decref(object);
        return error_set(error, STATUS_INVALID, "it is no JSON object: %.100s, line %d",
                         object == NULL ? where.text : "another value", where.line);
    }
    struct store_model *model = store_model_new();
    enum status status =
        model != NULL ? read_all(model, object, error) : error_memory(error, sizeof *model);
    json_decref(object);
    if (status != STATUS_OK) {
        store_model_free(model);
        return status;
    }
    store_model_sum(model);
    *out = model;
    return STATUS_OK;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static json_t *files_json(const struct store_model *model)
{
    json_t *list = json_array();
    for (size_t i = 0; i < model->n_files; i++) {
        const struct store_file *file = &model->files[i];
        json_array_append_new(list, json_pack("{s:s, s:s+, s:I}", "name", file->name, "digest",
                                              digest_prefix, file->digest, "size",
                                              (json_int_t)file->size_bytes));
    }
    return list;
}

enum status store_manifest_write(const struct store_model *model, struct buffer *out,
                                 struct error *error)
{
    const struct {
        const char *key, *text;
    } texts[] = {
        {"system", model->system}, {"template", model->chat_template}, {"license", model->license}};
    json_t *object = json_pack("{s:s, s:s, s:o}", "name", model->name, "source", model->source,
                               "files", files_json(model));
    for (size_t i = 0; i < ARRAY_COUNT(texts) && object != NULL; i++)
        if (texts[i].text[0] != '\0')
            json_object_set_new(object, texts[i].key, json_string(texts[i].text));
    if (model->template_wins)
        json_object_set_new(object, "template_wins", json_true());
    if (json_object_size(model->parameters) > 0)
        json_object_set(object, "parameters", model->parameters);
    if (json_array_size(model->messages) > 0)
        json_object_set(object, "messages", model->messages);
    char *text = json_dumps(object, JSON_INDENT(2));
    bool good = text != NULL && buffer_append_text(out, text) && buffer_append_text(out, "\n");
    free(text);
    json_decref(object);
    return good ? STATUS_OK : error_memory(error, 1);
}
