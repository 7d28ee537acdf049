/* Ollama's requests (github.com/ollama/ollama/blob/main/docs/api.md): /api/chat, /api/generate,
 * /api/embed, /api/embeddings, /api/show. */
#include "api/api_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct field stream_field = {"stream", FIELD_BOOL, CALL(stream), 0, 0};

/* In "options", besides the samplers. */
static const struct field option_fields[] = {
    {"num_predict", FIELD_LIMIT, CALL(max_tokens), 1, UINT32_MAX},
    {"num_ctx", FIELD_U32, CALL(n_ctx), 1, UINT32_MAX},
};

/* What would change the answer, but that nothing here can do. */
static const char *const refused[] = {"images", "template", "context", "logprobs", "top_logprobs"};
static const char *const refused_options[] = {"mirostat"};

/* Seconds as a number, or a text like "1h30m"; negative: for ever. */
static bool duration_ms(const json_t *value, double *out)
{
    static const struct {
        const char *name;
        double ms;
    } units[] = {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}};
    const char *at = json_string_value(value);
    *out = json_number_value(value) * 1e3;
    if (at == NULL || *at == '\0')
        return json_is_number(value);
    bool negative = *at == '-';
    for (at += negative; *at != '\0';) {
        char *end;
        double number = strtod(at, &end);
        size_t unit = 0, size = strspn(end, "hms");
        while (unit < ARRAY_COUNT(units) &&
               (strlen(units[unit].name) != size || memcmp(units[unit].name, end, size) != 0))
            unit++;
        if (end == at || !(number >= 0) || (unit == ARRAY_COUNT(units) && *end != '\0'))
            return false;
        *out += number * (unit < ARRAY_COUNT(units) ? units[unit].ms : 1e3);
        at = end + size;
    }
    *out = negative ? -*out : *out;
    return true;
}

static enum status read_keep_alive(struct api_call *call, struct api_error *error)
{
    const json_t *value = json_object_get(call->body, "keep_alive");
    double ms;
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!duration_ms(value, &ms))
        return api_invalid(error, "keep_alive",
                           "keep_alive must be a number of seconds or a text like \"5m\"");
    call->has_keep_alive = true;
    call->keep_alive_ms = ms < 0 || ms > 1e15 ? UINT64_MAX : (uint64_t)ms;
    return STATUS_OK;
}

static enum status read_options(struct api_call *call, struct api_error *error)
{
    const json_t *options = json_object_get(call->body, "options");
    if (options == NULL || json_is_null(options))
        return STATUS_OK;
    if (!json_is_object(options))
        return api_invalid(error, "options", "options must be an object");
    enum status status =
        read_refused(options, refused_options, ARRAY_COUNT(refused_options), error);
    if (status == STATUS_OK)
        status = read_fields(call, options, sampling_fields, n_sampling_fields, error);
    if (status == STATUS_OK)
        status = read_fields(call, options, option_fields, ARRAY_COUNT(option_fields), error);
    if (status == STATUS_OK)
        status = read_seed(call, options, error);
    return status == STATUS_OK ? read_stops(call, options, "stop", error) : status;
}

/* "json", or a schema. */
static enum status read_format(struct api_call *call, struct api_error *error)
{
    const json_t *format = json_object_get(call->body, "format");
    const char *word = json_string_value(format);
    if (format == NULL || json_is_null(format) || (word != NULL && word[0] == '\0'))
        return STATUS_OK;
    if (word == NULL)
        return take_schema(call, format, "format", error);
    if (strcmp(word, "json") != 0)
        return api_invalid(error, "format", "format must be \"json\" or a JSON Schema");
    call->output = API_OUTPUT_JSON;
    call->output_param = "format";
    return STATUS_OK;
}

/* The switches for thinking that templates of different families ask. */
static enum status read_think(struct api_call *call, struct api_error *error)
{
    json_t *think = json_object_get(call->body, "think");
    if (think == NULL || json_is_null(think))
        return STATUS_OK;
    if (!json_is_boolean(think) && !json_is_string(think))
        return api_invalid(error, "think", "think must be true, false, low, medium or high");
    json_t *wanted = json_boolean(!json_is_false(think));
    bool kept = json_object_set(call->variables, "enable_thinking", wanted) == 0 &&
                json_object_set(call->variables, "thinking", wanted) == 0;
    if (kept && json_is_string(think))
        kept = json_object_set(call->variables, "reasoning_effort", think) == 0;
    return kept ? STATUS_OK : api_out_of_memory(error);
}

/* Gives the fields of messages the names that templates know. */
static enum status rename_fields(json_t *messages, struct api_error *error)
{
    static const struct {
        const char *from, *to;
    } names[] = {{"thinking", "reasoning_content"}, {"tool_name", "name"}};
    static const char *const images[] = {"images"};
    json_t *message;
    size_t i;
    json_array_foreach(messages, i, message)
    {
        enum status status = read_refused(message, images, ARRAY_COUNT(images), error);
        if (status != STATUS_OK)
            return status;
        for (size_t n = 0; n < ARRAY_COUNT(names); n++) {
            json_t *value = json_object_get(message, names[n].from);
            if (value != NULL && json_object_set(message, names[n].to, value) != 0)
                return api_out_of_memory(error);
        }
    }
    return STATUS_OK;
}

/* What all calls may have. */
static enum status read_common(struct api_call *call, struct api_error *error)
{
    enum status status = STATUS_OK;
    if (call->model == NULL)
        status = read_string(call->body, "name", &call->model, error);
    if (status == STATUS_OK)
        status = read_refused(call->body, refused, ARRAY_COUNT(refused), error);
    if (status == STATUS_OK)
        status = read_keep_alive(call, error);
    if (status == STATUS_OK)
        status = read_format(call, error);
    if (status == STATUS_OK)
        status = read_options(call, error);
    if (status != STATUS_OK || call->operation >= API_EMBEDDINGS)
        return status;
    call->stream = true;
    return read_fields(call, call->body, &stream_field, 1, error);
}

/* The model is opened, and no more. */
static enum status only_load(struct api_call *call)
{
    call->operation = API_LOAD;
    call->stream = false;
    return STATUS_OK;
}

static enum status read_chat(struct api_call *call, struct api_error *error)
{
    json_t *messages = json_object_get(call->body, "messages");
    enum status status = read_common(call, error);
    if (status == STATUS_OK && json_array_size(messages) == 0 &&
        (messages == NULL || json_is_array(messages)))
        return only_load(call);
    if (status == STATUS_OK)
        status = rename_fields(messages, error);
    if (status == STATUS_OK)
        status = read_messages(call, messages, error);
    if (status == STATUS_OK)
        status = read_tools(call, error);
    if (status == STATUS_OK)
        status = read_variables(call, error);
    return status == STATUS_OK ? read_think(call, error) : status;
}

/* A prompt goes through the template like a question, unless it is raw. */
static enum status read_generate(struct api_call *call, struct api_error *error)
{
    const char *prompt, *system, *suffix = NULL;
    const json_t *raw = json_object_get(call->body, "raw");
    enum status status = read_common(call, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "prompt", &prompt, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "system", &system, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "suffix", &suffix, error);
    if (status != STATUS_OK)
        return status;
    if (prompt == NULL || prompt[0] == '\0')
        return only_load(call);
    bool infill = suffix != NULL && suffix[0] != '\0';
    if (json_is_true(raw) || infill) {
        status = read_prompts(call, "prompt", error);
        return status == STATUS_OK && infill ? read_suffix(call, view_of(suffix), error) : status;
    }
    call->operation = API_CHAT;
    call->messages = json_array();
    bool kept = system == NULL || system[0] == '\0' ||
                json_array_append_new(call->messages, json_pack("{s:s, s:s}", "role", "system",
                                                                "content", system)) == 0;
    kept = kept && json_array_append_new(call->messages,
                                         json_pack("{s:s, s:O}", "role", "user", "content",
                                                   json_object_get(call->body, "prompt"))) == 0;
    status = kept ? read_variables(call, error) : api_out_of_memory(error);
    return status == STATUS_OK ? read_think(call, error) : status;
}

static enum status read_embed(struct api_call *call, struct api_error *error)
{
    static const struct field fields[] = {
        {"dimensions", FIELD_U32, CALL(dimensions), 1, UINT32_MAX},
        {"truncate", FIELD_BOOL, CALL(truncate), 0, 0},
    };
    enum status status = read_common(call, error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, fields, ARRAY_COUNT(fields), error);
    return status == STATUS_OK ? read_prompts(call, "input", error) : status;
}

static enum status read_embedding(struct api_call *call, struct api_error *error)
{
    enum status status = read_common(call, error);
    if (status == STATUS_OK && !json_is_string(json_object_get(call->body, "prompt")))
        return api_invalid(error, "prompt", "prompt must be a string");
    return status == STATUS_OK ? read_prompts(call, "prompt", error) : status;
}

enum status ollama_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error)
{
    call_part *part = operation == API_CHAT         ? read_chat
                      : operation == API_COMPLETION ? read_generate
                      : operation == API_EMBEDDINGS ? read_embed
                                                    : read_common;
    return call_read(out, operation == API_CHAT ? &ollama_chat_format : &ollama_generate_format,
                     operation, body, part, error);
}

enum status ollama_read_embedding(struct api_call **out, enum api_operation operation,
                                  struct view body, struct api_error *error)
{
    return call_read(out, &ollama_embedding_format, operation, body, read_embedding, error);
}
