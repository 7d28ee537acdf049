/* What is said of models without asking them, in the forms of Ollama and llama-server. */
#include "server/server_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Names carry a tag in Ollama; clients that split at it get one. */
static void put_name(const struct served_model *model, struct buffer *out)
{
    buffer_append_text(out, model->name);
    if (strchr(model->name, ':') == NULL)
        buffer_append_text(out, ":latest");
}

/* The format with the most bytes. */
static const char *main_format(const struct weights *weights)
{
    uint64_t bytes[QUANT_FORMAT_COUNT] = {0};
    enum quant_format best = 0;
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        bytes[tensor->format] += tensor->size_bytes;
        if (bytes[tensor->format] > bytes[best])
            best = tensor->format;
    }
    return quant_info(best)->name;
}

static struct model_facts facts_of(const struct model_desc *desc, const struct weights *weights)
{
    struct model_facts facts = {
        .known = true, .format = main_format(weights), .n_params = desc->n_params};
    snprintf(facts.family, sizeof facts.family, "%s", desc->architecture);
    return facts;
}

static json_t *details(const struct model_facts *facts)
{
    char size[32] = "";
    if (facts->n_params > 0)
        snprintf(size, sizeof size, facts->n_params >= 1000000000 ? "%.1fB" : "%.1fM",
                 (double)facts->n_params / (facts->n_params >= 1000000000 ? 1e9 : 1e6));
    return json_pack("{s:s, s:s, s:s, s:[s], s:s, s:s}", "parent_model", "", "format", "gguf",
                     "family", facts->family, "families", facts->family, "parameter_size", size,
                     "quantization_level", facts->format != NULL ? facts->format : "");
}

/* What stands for the digest of a file that is not in the store: reading all of it would take long,
 * but Ollama's programs count on 64 digits. Other for another file. */
static void put_mark(const char *path, const struct stat *file, struct buffer *out)
{
    uint64_t mark = (uint64_t)file->st_size;
    for (const char *c = path; *c != '\0'; c++)
        mark = rng_u64(mark, (unsigned char)*c, 0);
    for (uint32_t i = 1; i <= 4; i++)
        buffer_printf(out, "%016" PRIx64, rng_u64(mark, (uint64_t)file->st_mtime, i));
}

static json_t *describe(const struct served_model *model)
{
    struct stat file = {0};
    const struct store_model *stored = model->stored;
    bool open = model->state == MODEL_OPEN;
    struct model_facts facts =
        open ? facts_of(model_description(model->engine->model), model->engine->weights)
             : model->facts;
    int64_t modified_s = stored != NULL ? stored->modified_s : 0;
    uint64_t size_bytes = stored != NULL ? stored->size_bytes : 0;
    if (stored == NULL && stat(model->path, &file) == 0) {
        modified_s = (int64_t)file.st_mtime;
        size_bytes = (uint64_t)file.st_size;
    }
    struct buffer name = {0}, modified = {0}, mark = {0};
    put_name(model, &name);
    api_put_time(&modified, modified_s);
    put_mark(model->path != NULL ? model->path : "", &file, &mark);
    const char *digest = stored != NULL             ? stored->digest
                         : model->digest[0] != '\0' ? model->digest
                                                    : mark.data;
    json_t *entry = json_pack("{s:s, s:s, s:s, s:I, s:s, s:o}", "name", name.data, "model",
                              name.data, "modified_at", modified.data, "size",
                              (json_int_t)size_bytes, "digest", digest, "details", details(&facts));
    if (open)
        json_object_set_new(entry, "context_length",
                            json_integer((json_int_t)model_n_ctx(model->engine->model)));
    buffer_free(&name);
    buffer_free(&modified);
    buffer_free(&mark);
    return entry;
}

/* When an open model will be closed if nobody asks it. */
static void add_expiry(const struct served_model *model, int64_t now_s, json_t *entry)
{
    uint64_t left_ms = 0, used_ms = (clock_now_ns() - model->used_ns) / 1000000;
    if (model->n_users > 0)
        used_ms = 0;
    if (model->keep_alive_ms > used_ms)
        left_ms = MIN(model->keep_alive_ms - used_ms, (uint64_t)100 * 365 * 86400 * 1000);
    struct buffer text = {0};
    api_put_time(&text, now_s + (int64_t)(left_ms / 1000));
    json_object_set_new(entry, "expires_at", json_string(text.data));
    json_object_set_new(entry, "size_vram", json_integer(0)); /* no GPU holds any of it */
    buffer_free(&text);
}

void put_object(json_t *object, struct buffer *out)
{
    char *text = json_dumps(object, JSON_COMPACT);
    if (text == NULL || !buffer_append_text(out, text))
        out->failed = true;
    free(text);
    json_decref(object);
}

void models_list(const struct server *server, const struct http_exchange *exchange, bool open_only,
                 struct buffer *out)
{
    json_t *list = json_array();
    int64_t now_s = server->begin_s + (int64_t)((clock_now_ns() - server->begin_ns) / 1000000000);
    for (size_t i = 0; i < server->n_models; i++) {
        const struct served_model *model = &server->models[i];
        if (!models_visible(model, exchange) || (open_only && model->state != MODEL_OPEN))
            continue;
        json_t *entry = describe(model);
        if (open_only)
            add_expiry(model, now_s, entry);
        json_array_append_new(list, entry);
    }
    put_object(json_pack("{s:o}", "models", list), out);
}

/* ---- Files that nobody has looked at yet ----------------------------------------------------- */

/* One answer that waits for the worker to read metadata. */
struct tags {
    struct server *server;
    struct http_exchange *exchange; /* NULL once it has ended */
    struct unread {
        char *path;
        struct model_facts facts;
    } * files; /* [n_files] */
    size_t n_files;
};

static bool is_unread(const struct served_model *model)
{
    struct stat file;
    const struct model_facts *facts = &model->facts;
    return !model->gone && model->state != MODEL_OPEN && model->path != NULL &&
           stat(model->path, &file) == 0 &&
           (!facts->known || facts->modified_s != (int64_t)file.st_mtime ||
            facts->size_bytes != (uint64_t)file.st_size);
}

/* On the worker. */
static void read_facts(struct unread *unread)
{
    struct error error;
    struct stat file = {0};
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    (void)!stat(unread->path, &file);
    if (weights_open(&weights, unread->path, &error) == STATUS_OK &&
        model_describe(&desc, weights, &error) == STATUS_OK)
        unread->facts = facts_of(desc, weights);
    unread->facts.known = true;
    unread->facts.modified_s = (int64_t)file.st_mtime;
    unread->facts.size_bytes = (uint64_t)file.st_size;
    model_desc_free(desc);
    weights_close(weights);
}

static void reply_tags(struct server *server, struct http_exchange *exchange)
{
    struct buffer body = {0};
    models_list(server, exchange, false, &body);
    reply_json(exchange, 200, (struct view){body.data, body.size});
    buffer_free(&body);
}

static void free_tags(struct tags *tags)
{
    for (size_t f = 0; f < tags->n_files; f++)
        free(tags->files[f].path);
    free(tags->files);
    free(tags);
}

/* On the loop. */
static void tags_are_read(void *context)
{
    struct tags *tags = context;
    struct server *server = tags->server;
    for (size_t i = 0; i < server->n_models; i++)
        for (size_t f = 0; f < tags->n_files && server->models[i].path != NULL; f++)
            if (strcmp(server->models[i].path, tags->files[f].path) == 0)
                server->models[i].facts = tags->files[f].facts;
    if (tags->exchange != NULL)
        reply_tags(server, tags->exchange);
    free_tags(tags);
}

/* On the worker. */
static void read_tags(void *context)
{
    struct tags *tags = context;
    for (size_t f = 0; f < tags->n_files; f++)
        read_facts(&tags->files[f]);
    if (!net_loop_post(tags->server->loop, tags_are_read, tags))
        free_tags(tags);
}

static void tags_gone(void *context)
{
    struct tags *tags = context;
    http_abort(tags->exchange);
    tags->exchange = NULL;
}

void models_tags(struct server *server, struct http_exchange *exchange)
{
    shelf_refresh(server);
    struct tags *tags = calloc(1, sizeof *tags);
    struct unread *files = calloc(server->n_models + 1, sizeof *files);
    size_t n = 0;
    for (size_t i = 0; tags != NULL && files != NULL && i < server->n_models; i++) {
        if (is_unread(&server->models[i]))
            files[n].path = strdup(server->models[i].path);
        n += files[n].path != NULL;
    }
    if (n == 0) {
        free(files);
        free(tags);
        reply_tags(server, exchange);
        return;
    }
    *tags = (struct tags){.server = server, .exchange = exchange, .files = files, .n_files = n};
    if (worker_post(server->worker, read_tags, tags)) {
        http_on_gone(exchange, tags_gone, tags);
        return;
    }
    free_tags(tags);
    reply_tags(server, exchange);
}

/* ---- Places for requests --------------------------------------------------------------------- */

size_t models_slots(const struct server *server)
{
    uint32_t n = server->options.scheduler.max_sequences;
    return n > 0 ? n : SCHEDULER_SEQUENCES;
}

void models_put_slots(const struct server *server, const struct http_exchange *exchange,
                      struct buffer *out)
{
    json_t *list = json_array();
    for (size_t m = 0; m < server->n_models; m++) {
        const struct served_model *model = &server->models[m];
        struct scheduler_metrics metrics;
        if (model->state != MODEL_OPEN || !gateway_allows(exchange, model->name))
            continue;
        scheduler_metrics(model->scheduler, &metrics);
        for (size_t i = 0; i < models_slots(server); i++)
            json_array_append_new(list, json_pack("{s:I, s:s, s:I, s:b}", "id", (json_int_t)i,
                                                  "model", model->name, "n_ctx",
                                                  (json_int_t)model_n_ctx(model->engine->model),
                                                  "is_processing", i < metrics.n_running));
    }
    put_object(list, out);
}

/* ---- One file -------------------------------------------------------------------------------- */

static json_t *model_info(const struct model_desc *desc)
{
    const struct {
        const char *key;
        uint64_t value;
    } facts[] = {
        {"context_length", desc->n_ctx_train},
        {"embedding_length", desc->n_embd},
        {"block_count", desc->n_layers},
        {"vocab_size", desc->n_vocab},
    };
    json_t *info =
        json_pack("{s:s, s:s, s:I}", "general.architecture", desc->architecture, "general.basename",
                  desc->name, "general.parameter_count", (json_int_t)desc->n_params);
    for (size_t i = 0; i < ARRAY_COUNT(facts); i++) {
        char key[64];
        snprintf(key, sizeof key, "%s.%s", desc->architecture, facts[i].key);
        json_object_set_new(info, key, json_integer((json_int_t)facts[i].value));
    }
    return info;
}

static json_t *capabilities(const struct model_desc *desc, struct view chat_template)
{
    static const struct {
        const char *word, *capability;
    } marks[] = {{"tools", "tools"}, {"think", "thinking"}};
    json_t *list = json_array();
    if (desc->pooling != MODEL_POOLING_NONE) {
        json_array_append_new(list, json_string("embedding"));
        return list;
    }
    json_array_append_new(list, json_string("completion"));
    for (size_t i = 0; i < ARRAY_COUNT(marks); i++)
        if (view_contains(chat_template, marks[i].word))
            json_array_append_new(list, json_string(marks[i].capability));
    return list;
}

/* "temperature 0.5", a line each, as Modelfiles have them. */
static void put_parameters(const json_t *parameters, const char *before, struct buffer *out)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)parameters, name, value)
    {
        json_t *list = json_is_array(value) ? json_incref(value) : json_pack("[O]", value), *one;
        size_t i;
        json_array_foreach(list, i, one)
        {
            char *text = json_dumps(one, JSON_ENCODE_ANY);
            buffer_printf(out, "%s%s %s\n", before, name, text != NULL ? text : "");
            free(text);
        }
        json_decref(list);
    }
}

/* What the store says of the model. */
static void add_stored(const struct store_model *stored, json_t *shown)
{
    struct buffer parameters = {0}, file = {0};
    put_parameters(stored->parameters, "", &parameters);
    buffer_printf(&file, "FROM %s\n", stored->name);
    put_parameters(stored->parameters, "PARAMETER ", &file);
    if (stored->template_wins)
        buffer_printf(&file, "TEMPLATE \"\"\"%s\"\"\"\n", stored->chat_template);
    if (stored->system[0] != '\0')
        buffer_printf(&file, "SYSTEM \"\"\"%s\"\"\"\n", stored->system);
    json_object_set_new(shown, "license", json_string(stored->license));
    json_object_set_new(shown, "system", json_string(stored->system));
    json_object_set_new(shown, "parameters",
                        json_string(parameters.size > 0 ? parameters.data : ""));
    json_object_set_new(shown, "modelfile", json_string(file.data));
    if (json_array_size(stored->messages) > 0)
        json_object_set(shown, "messages", stored->messages);
    buffer_free(&parameters);
    buffer_free(&file);
}

enum status models_show(const struct served_model *model, struct buffer *out, struct error *error)
{
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    struct view chat_template = {"", 0};
    enum status status = weights_open(&weights, model->path, error);
    if (status == STATUS_OK)
        status = model_describe(&desc, weights, error);
    if (status == STATUS_OK)
        status = weights_string(weights, "tokenizer.chat_template", &chat_template, error);
    if (status == STATUS_OK) {
        if (model->stored != NULL && model->stored->template_wins)
            chat_template = view_of(model->stored->chat_template);
        struct model_facts facts = facts_of(desc, weights);
        json_t *shown = json_pack(
            "{s:s, s:s, s:s, s:s%, s:o, s:o, s:o}", "license", "", "modelfile", "", "parameters",
            "", "template", chat_template.size > 0 ? chat_template.data : "", chat_template.size,
            "details", details(&facts), "model_info", model_info(desc), "capabilities",
            capabilities(desc, chat_template));
        if (model->stored != NULL)
            add_stored(model->stored, shown);
        put_object(shown, out);
    }
    model_desc_free(desc);
    weights_close(weights);
    return status;
}
