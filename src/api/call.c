/* Reading what all APIs have: fields, stop texts, messages. */
#include "api/api_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Errors ---------------------------------------------------------------------------------- */

enum status api_invalid(struct api_error *error, const char *param, const char *format, ...)
{
    *error = (struct api_error){.http_status = 400, .type = "invalid_request_error"};
    snprintf(error->param, sizeof error->param, "%s", param != NULL ? param : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return STATUS_INVALID;
}

void api_error_from(struct api_error *out, const struct error *error)
{
    static const struct {
        enum status status;
        int http_status;
        const char *type;
    } meanings[] = {
        {STATUS_INVALID, 400, "invalid_request_error"},
        {STATUS_UNSUPPORTED, 400, "invalid_request_error"},
        {STATUS_LIMIT, 400, "invalid_request_error"},
        {STATUS_NOT_FOUND, 404, "invalid_request_error"},
        {STATUS_MEMORY, 503, "server_error"},
    };
    *out = (struct api_error){.http_status = 500, .type = "server_error"};
    for (size_t i = 0; i < ARRAY_COUNT(meanings); i++)
        if (meanings[i].status == error->code) {
            out->http_status = meanings[i].http_status;
            out->type = meanings[i].type;
        }
    snprintf(out->text, sizeof out->text, "%s", error->text);
}

enum status api_out_of_memory(struct api_error *error)
{
    *error = (struct api_error){
        .http_status = 503, .type = "server_error", .text = "out of memory: try again later"};
    return STATUS_MEMORY;
}

/* ---- Fields ---------------------------------------------------------------------------------- */

#define SAMPLING(field) offsetof(struct api_call, sampling.field)

const struct field sampling_fields[] = {
    {"temperature", FIELD_F32, SAMPLING(temperature), 0, 100},
    {"top_p", FIELD_F32, SAMPLING(top_p), 0, 1},
    {"top_k", FIELD_U32, SAMPLING(top_k), 0, INT32_MAX},
    {"min_p", FIELD_F32, SAMPLING(min_p), 0, 1},
    {"typical_p", FIELD_F32, SAMPLING(typical_p), 0, 1},
    {"repeat_last_n", FIELD_LIMIT, SAMPLING(repeat_last_n), 0, INT32_MAX},
    {"repeat_penalty", FIELD_F32, SAMPLING(repeat_penalty), 0.01, 100},
    {"presence_penalty", FIELD_F32, SAMPLING(presence_penalty), -100, 100},
    {"frequency_penalty", FIELD_F32, SAMPLING(frequency_penalty), -100, 100},
    {"dry_multiplier", FIELD_F32, SAMPLING(dry_multiplier), 0, 100},
    {"dry_base", FIELD_F32, SAMPLING(dry_base), 1, 100},
    {"dry_allowed_length", FIELD_U32, SAMPLING(dry_allowed_length), 0, INT32_MAX},
    {"dry_penalty_last_n", FIELD_LIMIT, SAMPLING(dry_last_n), 0, INT32_MAX},
    {"xtc_probability", FIELD_F32, SAMPLING(xtc_probability), 0, 1},
    {"xtc_threshold", FIELD_F32, SAMPLING(xtc_threshold), 0, 1},
};
const size_t n_sampling_fields = ARRAY_COUNT(sampling_fields);

static enum status read_field(struct api_call *call, const struct field *field, const json_t *value,
                              struct api_error *error)
{
    char *to = (char *)call + field->offset;
    if (field->type == FIELD_BOOL) {
        if (!json_is_boolean(value))
            return api_invalid(error, field->name, "%s must be true or false", field->name);
        *(bool *)to = json_is_true(value);
        return STATUS_OK;
    }
    bool whole = field->type != FIELD_F32;
    double number = json_number_value(value);
    if (!json_is_number(value) || (whole && number != floor(number)))
        return api_invalid(error, field->name, "%s must be a %snumber", field->name,
                           whole ? "whole " : "");
    if (field->type == FIELD_LIMIT && number < 0) {
        *(uint32_t *)to = UINT32_MAX;
        return STATUS_OK;
    }
    if (!(number >= field->min && number <= field->max))
        return api_invalid(error, field->name, "%s is %g; it must be from %g to %.10g", field->name,
                           number, field->min, field->max);
    if (whole)
        *(uint32_t *)to = (uint32_t)number;
    else
        *(float *)to = (float)number;
    return STATUS_OK;
}

enum status read_fields(struct api_call *call, const json_t *object, const struct field *fields,
                        size_t n_fields, struct api_error *error)
{
    for (size_t i = 0; i < n_fields; i++) {
        const json_t *value = json_object_get(object, fields[i].name);
        if (value == NULL || json_is_null(value))
            continue;
        enum status status = read_field(call, &fields[i], value, error);
        if (status != STATUS_OK)
            return status;
        if (fields == sampling_fields)
            call->given |= 1u << i;
    }
    return STATUS_OK;
}

_Static_assert(ARRAY_COUNT(sampling_fields) < 31, "a bit of api_call.given for each, and the seed");
#define GIVEN_SEED (1u << 31)

void api_call_server_defaults(struct api_call *call, const struct api_defaults *defaults)
{
    for (size_t i = 0; i < n_sampling_fields; i++) {
        size_t offset = sampling_fields[i].offset;
        const char *from =
            (const char *)&defaults->sampling + (offset - offsetof(struct api_call, sampling));
        if (!(call->given & 1u << i)) /* all of them have four bytes */
            memcpy((char *)call + offset, from, sizeof(uint32_t));
    }
    if (!(call->given & GIVEN_SEED)) {
        call->has_seed = defaults->has_seed;
        call->sampling.seed = defaults->sampling.seed;
    }
    if (call->sampling.n_biases == 0) {
        call->sampling.biases = defaults->sampling.biases;
        call->sampling.n_biases = defaults->sampling.n_biases;
    }
    if (call->max_tokens == 0)
        call->max_tokens = defaults->max_tokens;
    if (defaults->no_thinking && call->variables != NULL) {
        json_t *off = json_pack("{s:b, s:b}", "enable_thinking", false, "thinking", false);
        json_object_update_missing_new(call->variables, off);
    }
}

enum status read_refused(const json_t *object, const char *const *names, size_t n_names,
                         struct api_error *error)
{
    for (size_t i = 0; i < n_names; i++) {
        const json_t *value = json_object_get(object, names[i]);
        bool empty = value == NULL || json_is_null(value) || json_is_false(value) ||
                     (json_is_number(value) && json_number_value(value) == 0) ||
                     (json_is_string(value) && json_string_length(value) == 0) ||
                     (json_is_array(value) && json_array_size(value) == 0);
        if (!empty)
            return api_invalid(error, names[i], "%s is not supported", names[i]);
    }
    return STATUS_OK;
}

enum status read_seed(struct api_call *call, const json_t *object, struct api_error *error)
{
    const json_t *seed = json_object_get(object, "seed");
    if (seed == NULL || json_is_null(seed))
        return STATUS_OK;
    if (!json_is_integer(seed))
        return api_invalid(error, "seed", "seed must be a whole number");
    call->given |= GIVEN_SEED;
    call->has_seed = json_integer_value(seed) != -1; /* -1 asks for any, as elsewhere */
    call->sampling.seed = (uint64_t)json_integer_value(seed);
    return STATUS_OK;
}

enum status read_string(const json_t *object, const char *name, const char **out,
                        struct api_error *error)
{
    const json_t *value = json_object_get(object, name);
    *out = NULL;
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_string(value))
        return api_invalid(error, name, "%s must be a string", name);
    *out = json_string_value(value);
    return STATUS_OK;
}

/* ---- Calls ----------------------------------------------------------------------------------- */

/* A body nests no deeper than jansson's own limit of 2048 levels; the server bounds its size. */
static enum status call_open(struct api_call **out, const struct api_format *format,
                             enum api_operation operation, struct view body,
                             struct api_error *error)
{
    *out = NULL;
    json_error_t fault;
    json_t *value = json_loadb(body.data != NULL ? body.data : "", body.size,
                               JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &fault);
    if (value == NULL)
        return api_invalid(error, NULL, "the body is no JSON: line %d, column %d: %s", fault.line,
                           fault.column, fault.text);
    if (!json_is_object(value)) {
        json_decref(value);
        return api_invalid(error, NULL, "the body must be a JSON object");
    }
    struct api_call *call = calloc(1, sizeof *call);
    struct arena *arena = arena_open(0);
    if (call == NULL || arena == NULL) {
        json_decref(value);
        arena_close(arena);
        free(call);
        return api_out_of_memory(error);
    }
    *call = (struct api_call){.format = format,
                              .operation = operation,
                              .body = value,
                              .arena = arena,
                              .sampling = SAMPLING_DEFAULTS,
                              .n_choices = 1};
    *out = call;
    return STATUS_OK;
}

enum status call_read(struct api_call **out, const struct api_format *format,
                      enum api_operation operation, struct view body, call_part *part,
                      struct api_error *error)
{
    struct api_call *call;
    *out = NULL;
    enum status status = call_open(&call, format, operation, body, error);
    if (status != STATUS_OK)
        return status;
    status = read_string(call->body, "model", &call->model, error);
    if (status == STATUS_OK && part != NULL)
        status = part(call, error);
    if (status == STATUS_OK)
        *out = call;
    else
        api_call_free(call);
    return status;
}

void api_call_free(struct api_call *call)
{
    if (call == NULL)
        return;
    json_decref(call->messages);
    json_decref(call->variables);
    json_decref(call->input);
    json_decref(call->response);
    json_decref(call->body);
    arena_close(call->arena);
    free(call);
}

enum status read_stops(struct api_call *call, const json_t *object, const char *name,
                       struct api_error *error)
{
    const json_t *value = json_object_get(object, name);
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n > API_MAX_STOPS)
        return api_invalid(error, name, "%s has %zu texts; at most %d are possible", name, n,
                           API_MAX_STOPS);
    call->stops = arena_array(call->arena, n, sizeof *call->stops);
    if (call->stops == NULL && n > 0)
        return api_out_of_memory(error);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(text))
            return api_invalid(error, name, "%s must be a string or a list of strings", name);
        if (json_string_length(text) > 0) /* an empty text stops nothing */
            call->stops[call->n_stops++] = json_string_value(text);
    }
    return STATUS_OK;
}

/* ---- Messages -------------------------------------------------------------------------------- */

/* The text of a message's content: a string, or a list of parts with separator between them. */
static enum status content_text(const json_t *content, size_t index, const char *separator,
                                struct buffer *out, struct api_error *error)
{
    char param[64];
    snprintf(param, sizeof param, "messages.%zu.content", index);
    if (json_is_string(content)) {
        buffer_append(out, json_string_value(content), json_string_length(content));
        return STATUS_OK;
    }
    if (content == NULL || json_is_null(content))
        return STATUS_OK;
    if (!json_is_array(content))
        return api_invalid(error, param, "%s must be a string or a list of parts", param);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const json_t *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        bool is_text =
            type != NULL && (strcmp(type, "text") == 0 || strcmp(type, "input_text") == 0 ||
                             strcmp(type, "output_text") == 0);
        if (type != NULL && !is_text)
            return api_invalid(error, param,
                               "%s has a part of type %.40s: only text is possible, images and "
                               "audio are not",
                               param, type);
        if (!is_text || !json_is_string(text))
            return api_invalid(error, param,
                               "part %zu of %s must be {\"type\": \"text\", "
                               "\"text\": …}",
                               i, param);
        buffer_append_text(out, i > 0 ? separator : "");
        buffer_append(out, json_string_value(text), json_string_length(text));
    }
    return STATUS_OK;
}

static bool role_known(const char *role)
{
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};
    for (size_t i = 0; role != NULL && i < ARRAY_COUNT(roles); i++)
        if (strcmp(role, roles[i]) == 0)
            return true;
    return false;
}

/* Clients send the arguments of earlier tool calls as JSON in a string; templates want objects. */
static enum status read_calls(json_t *message, const char *param, struct api_error *error)
{
    json_t *calls = json_object_get(message, "tool_calls"), *call;
    size_t i;
    if (calls == NULL || json_is_null(calls) || json_array_size(calls) == 0) {
        json_object_del(message, "tool_calls"); /* templates ask whether it is there */
        return STATUS_OK;
    }
    json_t *copies = json_deep_copy(calls);
    if (copies == NULL || json_object_set_new(message, "tool_calls", copies) != 0)
        return api_out_of_memory(error);
    json_array_foreach(copies, i, call)
    {
        json_t *function = json_object_get(call, "function");
        const json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_string(json_object_get(function, "name")))
            return api_invalid(error, param, "%s.tool_calls.%zu must have a function with a name",
                               param, i);
        json_t *object =
            json_is_string(arguments) ? json_loads(json_string_value(arguments), 0, NULL) : NULL;
        if (object != NULL)
            json_object_set_new(function, "arguments", object);
    }
    return STATUS_OK;
}

/* A copy of message whose content is one text. */
static enum status read_message(const json_t *message, size_t index, json_t **out,
                                struct api_error *error)
{
    char param[64];
    snprintf(param, sizeof param, "messages.%zu", index);
    if (!json_is_object(message))
        return api_invalid(error, param, "%s must be an object", param);
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!role_known(role))
        return api_invalid(error, param,
                           "%s.role must be system, developer, user, assistant or "
                           "tool",
                           param);
    /* What the model wrote itself has no other line ends than its own. */
    const char *separator = strcmp(role, "assistant") == 0 ? "" : "\n";
    struct buffer text = {0};
    enum status status =
        content_text(json_object_get(message, "content"), index, separator, &text, error);
    if (status == STATUS_OK) {
        json_t *copy = json_copy((json_t *)message);
        json_t *content = json_stringn_nocheck(text.size > 0 ? text.data : "", text.size);
        if (copy == NULL || text.failed || json_object_set_new(copy, "content", content) != 0) {
            status = api_out_of_memory(error);
        } else {
            status = read_calls(copy, param, error);
        }
        if (status == STATUS_OK)
            *out = copy;
        else
            json_decref(copy);
    }
    buffer_free(&text);
    return status;
}

/* An answer that is to be continued is one message. */
static enum status check_end(const json_t *messages, struct api_error *error)
{
    size_t n = json_array_size(messages), n_last = 0;
    while (n_last < n) {
        const json_t *message = json_array_get(messages, n - 1 - n_last);
        const char *role = json_string_value(json_object_get(message, "role"));
        if (strcmp(role, "assistant") != 0 || json_object_get(message, "tool_calls") != NULL)
            break;
        n_last++;
    }
    return n_last > 1
               ? api_invalid(error, "messages",
                             "messages end with %zu answers; only one can be continued", n_last)
               : STATUS_OK;
}

enum status read_messages(struct api_call *call, const json_t *messages, struct api_error *error)
{
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return api_invalid(error, "messages", "messages must be a list with at least one message");
    call->messages = json_array();
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = NULL;
        enum status status = read_message(json_array_get(messages, i), i, &message, error);
        if (status != STATUS_OK)
            return status;
        if (json_array_append_new(call->messages, message) != 0)
            return api_out_of_memory(error);
    }
    return check_end(call->messages, error);
}

/* ---- What is written ------------------------------------------------------------------------- */

enum status read_generation(struct api_call *call, const char *const *refused, size_t n_refused,
                            const struct field *fields, size_t n_fields, struct api_error *error)
{
    enum status status = read_refused(call->body, refused, n_refused, error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, sampling_fields, n_sampling_fields, error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, fields, n_fields, error);
    if (status == STATUS_OK)
        status = read_seed(call, call->body, error);
    if (status == STATUS_OK)
        status = read_biases(call, error);
    return status == STATUS_OK ? read_stops(call, call->body, "stop", error) : status;
}

enum status read_grammar(struct api_call *call, struct api_error *error)
{
    const char *grammar;
    enum status status = read_string(call->body, "grammar", &grammar, error);
    if (status != STATUS_OK || grammar == NULL || grammar[0] == '\0')
        return status;
    if (call->output != API_OUTPUT_TEXT)
        return api_invalid(error, "grammar", "grammar and %s cannot be given together",
                           call->output_param);
    call->output = API_OUTPUT_GRAMMAR;
    call->output_param = "grammar";
    call->grammar = grammar;
    return STATUS_OK;
}

enum status take_schema(struct api_call *call, const json_t *schema, const char *param,
                        struct api_error *error)
{
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return api_invalid(error, param, "%s must have a JSON Schema", param);
    call->output = API_OUTPUT_SCHEMA;
    call->output_param = param;
    call->schema = schema;
    return read_grammar(call, error);
}
