#include "engine/engine_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TEMPLATE_KEY "tokenizer.chat_template"

static enum status open_template(struct engine *engine, struct error *error)
{
    struct view source = {0};
    enum status status = weights_string(engine->weights, TEMPLATE_KEY, &source, error);
    if (status != STATUS_OK)
        return status;
    engine->template_is_default = source.size == 0;
    if (engine->template_is_default)
        source = view_of(chat_template_chatml);
    return engine_set_template(engine, source, error);
}

enum status engine_set_template(struct engine *engine, struct view source, struct error *error)
{
    chat_template_close(engine->chat_template);
    engine->chat_template = NULL;
    engine->template_source = source;
    engine->reply_format = reply_format_of(source);
    return chat_template_open(&engine->chat_template, source, error);
}

enum status engine_set_go_template(struct engine *engine, const char *source, bool wins,
                                   struct error *error)
{
    struct buffer jinja = {0};
    if (source[0] == '\0' || (!wins && !engine->template_is_default))
        return STATUS_OK;
    struct error why;
    enum status status = chat_template_from_go(view_of(source), &jinja, &why);
    if (status != STATUS_OK)
        error_set(error, status,
                  "%.150s; a model file with a chat template of its own needs none, and consort up "
                  "--template FILE takes one in Jinja",
                  why.text);
    char *kept = status == STATUS_OK ? arena_copy(engine->arena, jinja.data, jinja.size) : NULL;
    size_t size = jinja.size;
    buffer_free(&jinja);
    if (status == STATUS_OK && kept == NULL)
        status = error_memory(error, size);
    if (status == STATUS_OK)
        status = engine_set_template(engine, (struct view){kept, size}, error);
    engine->template_is_default &= status != STATUS_OK;
    return status;
}

enum status engine_open(struct engine **out, const char *path, unsigned parts,
                        const struct model_options *options, struct error *error)
{
    *out = NULL;
    uint64_t begin_ns = clock_now_ns();
    struct engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return error_memory(error, sizeof *engine);
    enum status status = STATUS_OK;
    engine->arena = arena_open(0);
    if (engine->arena == NULL)
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = quant_init(error);
    if (status == STATUS_OK)
        status = weights_open(&engine->weights, path, error);
    /* Of a placement, the model reads ahead what its rank needs. */
    if (status == STATUS_OK && (parts & ENGINE_MODEL) &&
        (options == NULL || options->placement == NULL))
        weights_prefetch(engine->weights, NULL);
    if (status == STATUS_OK && (parts & (ENGINE_TOKENIZER | ENGINE_TEMPLATE)))
        status = engine_tokenizer_open(&engine->tokenizer, engine->arena, engine->weights, error);
    if (status == STATUS_OK && (parts & ENGINE_TEMPLATE))
        status = open_template(engine, error);
    if (status == STATUS_OK && (parts & ENGINE_MODEL))
        status = model_open(&engine->model, engine->weights, options, error);
    if (status == STATUS_OK && engine->model != NULL && engine->tokenizer != NULL)
        status = grammar_cache_open(&engine->grammars, engine->tokenizer,
                                    model_description(engine->model)->n_vocab, error);
    if (status != STATUS_OK) {
        engine_close(engine);
        return status;
    }
    engine->load_ns = clock_now_ns() - begin_ns;
    *out = engine;
    return STATUS_OK;
}

void engine_close(struct engine *engine)
{
    if (engine == NULL)
        return;
    grammar_cache_close(engine->grammars);
    model_close(engine->model);
    chat_template_close(engine->chat_template);
    tokenizer_close(engine->tokenizer);
    weights_close(engine->weights);
    arena_close(engine->arena);
    free(engine);
}

enum status engine_leading_bos(const struct tokenizer *tokenizer, int32_t *bos, struct error *error)
{
    struct token_list list = {0};
    enum status status =
        tokenizer_encode(tokenizer, (struct view){"", 0}, TOKENIZER_ADD_SPECIAL, &list, error);
    *bos = TOKEN_NONE;
    if (status == STATUS_OK && list.count > 0 && list.ids[0] == tokenizer_config(tokenizer)->bos)
        *bos = list.ids[0];
    token_list_free(&list);
    return status;
}

enum status engine_encode(const struct engine *engine, struct view text, struct token_list *out,
                          struct error *error)
{
    int32_t bos;
    enum status status = engine_leading_bos(engine->tokenizer, &bos, error);
    if (status != STATUS_OK)
        return status;
    size_t begin = out->count;
    if (bos != TOKEN_NONE && !token_list_append(out, bos))
        return error_memory(error, sizeof bos);
    status = tokenizer_encode(engine->tokenizer, text, TOKENIZER_PARSE_SPECIAL, out, error);
    /* Many templates write BOS themselves. */
    if (status == STATUS_OK && bos != TOKEN_NONE && out->count > begin + 1 &&
        out->ids[begin + 1] == bos) {
        out->count--;
        memmove(out->ids + begin, out->ids + begin + 1, (out->count - begin) * sizeof *out->ids);
    }
    return status;
}

/* The text of a token as templates spell it, or "". */
static json_t *token_text(const struct tokenizer *tokenizer, int32_t id)
{
    const struct tokenizer_config *config = tokenizer_config(tokenizer);
    if (id < 0 || (size_t)id >= config->n_tokens)
        return json_string("");
    return json_stringn_nocheck(config->tokens[id].data, config->tokens[id].size);
}

static json_t *date_text(time_t now, const char *format)
{
    struct tm parts;
    char text[64] = "";
    if (gmtime_r(&now, &parts) != NULL)
        strftime(text, sizeof text, format, &parts);
    return json_string(text);
}

/* What templates of some families ask for beyond what they all get. */
static json_t *family_variables(const json_t *tools, time_t now)
{
    char *functions = json_dumps(tools, JSON_INDENT(2));
    json_t *variables = json_pack("{s:o, s:o, s:s}", "date_string", date_text(now, "%d %b %Y"),
                                  "datetime", date_text(now, "%b %d %Y %H:%M:%S GMT"), "functions",
                                  functions != NULL ? functions : "");
    free(functions);
    return variables;
}

/* extra may set everything but what is said, and to whom. */
static enum status render(const struct engine *engine, const json_t *messages, const json_t *extra,
                          struct buffer *out, struct error *error)
{
    const struct tokenizer_config *config = tokenizer_config(engine->tokenizer);
    const time_t now = time(NULL);
    json_t *variables =
        json_pack("{s:O, s:b, s:o, s:o}", "messages", messages, "add_generation_prompt",
                  !json_is_false(json_object_get(extra, "add_generation_prompt")), "bos_token",
                  token_text(engine->tokenizer, config->bos), "eos_token",
                  token_text(engine->tokenizer, config->eos));
    if (variables == NULL)
        return error_memory(error, 1);
    if (extra != NULL)
        json_object_update_missing(variables, (json_t *)extra);
    json_t *family = family_variables(json_object_get(extra, "tools"), now);
    json_object_update_missing(variables, family);
    json_decref(family);
    enum status status =
        chat_template_render(engine->chat_template, variables, (int64_t)now, out, error);
    json_decref(variables);
    return status;
}

/* Turns the arguments of tool calls that are objects into texts; NULL where there are none. */
static json_t *with_argument_texts(const json_t *messages)
{
    json_t *copy = json_deep_copy(messages), *message, *call;
    size_t i, j;
    bool changed = false;
    json_array_foreach(copy, i, message)
    {
        json_array_foreach(json_object_get(message, "tool_calls"), j, call)
        {
            json_t *function = json_object_get(call, "function");
            json_t *arguments = json_object_get(function, "arguments");
            char *text = json_is_object(arguments) ? json_dumps(arguments, 0) : NULL;
            changed |=
                text != NULL && json_object_set_new(function, "arguments", json_string(text)) == 0;
            free(text);
        }
    }
    if (!changed) {
        json_decref(copy);
        return NULL;
    }
    return copy;
}

/* The messages with what the system says above the user's first, as one of the user; NULL where
 * they do not begin with these two. */
static json_t *without_system(const json_t *messages)
{
    const json_t *content[2];
    for (size_t i = 0; i < ARRAY_COUNT(content); i++) {
        const json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        content[i] = json_object_get(message, "content");
        if (role == NULL || strcmp(role, i == 0 ? "system" : "user") != 0 ||
            !json_is_string(content[i]))
            return NULL;
    }
    json_t *text = json_pack("s%++%", json_string_value(content[0]), json_string_length(content[0]),
                             "\n\n", json_string_value(content[1]), json_string_length(content[1]));
    json_t *joined = json_copy((json_t *)messages);
    json_t *first = json_copy(json_array_get(messages, 1));
    bool kept = json_object_set_new(first, "content", text) == 0 &&
                json_array_remove(joined, 0) == 0 && json_array_set(joined, 0, first) == 0;
    json_decref(first);
    if (kept)
        return joined;
    json_decref(joined);
    return NULL;
}

enum status engine_render(const struct engine *engine, const json_t *messages, const json_t *extra,
                          struct buffer *out, struct error *error)
{
    static json_t *(*const changes[])(const json_t *) = {with_argument_texts, without_system};
    size_t begin = out->size;
    enum status status = render(engine, messages, extra, out, error);
    for (size_t i = 0; i < ARRAY_COUNT(changes); i++) {
        if (status == STATUS_OK || status == STATUS_MEMORY)
            return status;
        struct error ignored;
        json_t *changed = changes[i](messages);
        out->size = begin;
        if (changed != NULL && render(engine, changed, extra, out, &ignored) == STATUS_OK)
            status = STATUS_OK;
        json_decref(changed);
    }
    return status;
}
