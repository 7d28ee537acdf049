/* OpenAI's Responses (platform.openai.com/docs/api-reference/responses): the items of a
 * conversation become the messages of a chat, which is what templates know. */
#include "api/api_internal.h"

#include <stdio.h>
#include <string.h>

static const struct field fields[] = {
    {"max_output_tokens", FIELD_U32, CALL(max_tokens), 1, UINT32_MAX},
    {"stream", FIELD_BOOL, CALL(stream), 0, 0},
    {"store", FIELD_BOOL, CALL(store), 0, 0},
};

/* What would change the answer, but that nothing here can do. */
static const char *const refused[] = {"background", "conversation", "prompt", "top_logprobs"};

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type != NULL ? type : "";
}

/* ---- Items ----------------------------------------------------------------------------------- */

struct translation {
    json_t *messages;        /* the result */
    json_t *names;           /* of the functions that were called, by the calls' ids */
    struct buffer reasoning; /* that waits for the message it led to */
};

/* Appends a message, with the reasoning that led to it; false when memory is out. */
static bool add(struct translation *to, json_t *message)
{
    bool added = message != NULL;
    const char *role = json_string_value(json_object_get(message, "role"));
    if (added && role != NULL && strcmp(role, "assistant") == 0 && to->reasoning.size > 0) {
        added = json_object_set_new(message, "reasoning_content",
                                    json_stringn(to->reasoning.data, to->reasoning.size)) == 0;
        buffer_clear(&to->reasoning);
    }
    return json_array_append_new(to->messages, message) == 0 && added;
}

static enum status add_message(struct translation *to, const json_t *item, struct api_error *error)
{
    json_t *role = json_object_get(item, "role"), *content = json_object_get(item, "content"),
           *part;
    json_t *parts = json_is_array(content) ? json_array() : json_incref(content);
    size_t i;
    json_array_foreach(content, i, part)
    {
        bool refusal = strcmp(type_of(part), "refusal") == 0;
        json_array_append_new(parts, refusal ? json_pack("{s:s, s:O*}", "type", "text", "text",
                                                         json_object_get(part, "refusal"))
                                             : json_incref(part));
    }
    return add(to, json_pack("{s:O*, s:o*}", "role", role, "content", parts))
               ? STATUS_OK
               : api_out_of_memory(error);
}

/* Calls of one turn are one message. */
static enum status add_call(struct translation *to, const json_t *item, const char *param,
                            struct api_error *error)
{
    json_t *id = json_object_get(item, "call_id"), *name = json_object_get(item, "name"),
           *arguments = json_object_get(item, "arguments");
    size_t n = json_array_size(to->messages);
    json_t *last = n > 0 ? json_array_get(to->messages, n - 1) : NULL;
    const char *role = json_string_value(json_object_get(last, "role"));
    if (!json_is_string(id) || !json_is_string(name) || !json_is_string(arguments))
        return api_invalid(error, param, "%s must have the texts call_id, name and arguments",
                           param);
    bool added = json_object_set(to->names, json_string_value(id), name) == 0;
    if (role == NULL || strcmp(role, "assistant") != 0 || to->reasoning.size > 0) {
        added = add(to, json_pack("{s:s, s:s}", "role", "assistant", "content", "")) && added;
        last = json_array_get(to->messages, json_array_size(to->messages) - 1);
    }
    json_t *calls = json_object_get(last, "tool_calls");
    if (calls == NULL) {
        calls = json_array();
        added = json_object_set_new(last, "tool_calls", calls) == 0 && added;
    }
    added = json_array_append_new(calls, json_pack("{s:O, s:s, s:{s:O, s:O}}", "id", id, "type",
                                                   "function", "function", "name", name,
                                                   "arguments", arguments)) == 0 &&
            added;
    return added ? STATUS_OK : api_out_of_memory(error);
}

static enum status add_result(struct translation *to, const json_t *item, const char *param,
                              struct api_error *error)
{
    json_t *id = json_object_get(item, "call_id"), *output = json_object_get(item, "output");
    if (!json_is_string(id) || output == NULL)
        return api_invalid(error, param, "%s must have a call_id and an output", param);
    json_t *name = json_object_get(to->names, json_string_value(id));
    return add(to, json_pack("{s:s, s:O, s:O, s:O*}", "role", "tool", "tool_call_id", id, "content",
                             output, "name", name))
               ? STATUS_OK
               : api_out_of_memory(error);
}

/* The text itself where it is there, else its summary. */
static void add_reasoning(struct translation *to, const json_t *item)
{
    const char *const lists[] = {"content", "summary"};
    const json_t *part;
    size_t i;
    buffer_clear(&to->reasoning);
    for (size_t l = 0; l < ARRAY_COUNT(lists) && to->reasoning.size == 0; l++)
        json_array_foreach(json_object_get(item, lists[l]), i, part)
        {
            const json_t *text = json_object_get(part, "text");
            buffer_append(&to->reasoning, json_is_string(text) ? json_string_value(text) : "",
                          json_string_length(text));
        }
}

static enum status add_item(struct translation *to, const json_t *item, size_t index,
                            struct api_error *error)
{
    char param[64];
    snprintf(param, sizeof param, "input.%zu", index);
    const char *type = type_of(item);
    if (strcmp(type, "message") == 0 || (type[0] == '\0' && json_object_get(item, "role") != NULL))
        return add_message(to, item, error);
    if (strcmp(type, "function_call") == 0)
        return add_call(to, item, param, error);
    if (strcmp(type, "function_call_output") == 0)
        return add_result(to, item, param, error);
    if (strcmp(type, "reasoning") != 0)
        return api_invalid(
            error, param,
            "%s is of type '%.60s'; message, function_call, function_call_output and "
            "reasoning are possible",
            param, type);
    add_reasoning(to, item);
    return STATUS_OK;
}

enum status responses_follow(struct api_call *call, const json_t *history, struct api_error *error)
{
    const json_t *instructions = json_object_get(call->body, "instructions");
    struct translation to = {.messages = json_array(), .names = json_object()};
    enum status status = STATUS_OK;
    if (json_string_length(instructions) > 0 &&
        !add(&to, json_pack("{s:s, s:O}", "role", "system", "content", instructions)))
        status = api_out_of_memory(error);
    if (history != NULL) {
        json_t *all = json_copy((json_t *)history);
        if (json_array_extend(all, call->input) != 0)
            status = api_out_of_memory(error);
        json_decref(call->input);
        call->input = all;
    }
    const json_t *item;
    size_t i;
    json_array_foreach(call->input, i, item)
    {
        if (status == STATUS_OK)
            status = add_item(&to, item, i, error);
    }
    if (status == STATUS_OK)
        status = read_messages(call, to.messages, error);
    json_decref(to.messages);
    json_decref(to.names);
    buffer_free(&to.reasoning);
    return status;
}

/* ---- Fields that chats have in another form -------------------------------------------------- */

static enum status read_input(struct api_call *call, struct api_error *error)
{
    json_t *input = json_object_get(call->body, "input");
    if (json_is_string(input))
        call->input =
            json_pack("[{s:s, s:s, s:O}]", "type", "message", "role", "user", "content", input);
    else if (json_is_array(input) && json_array_size(input) > 0)
        call->input = json_incref(input);
    else
        return api_invalid(error, "input", "input must be a text or a list of items");
    return call->input != NULL ? STATUS_OK : api_out_of_memory(error);
}

/* What the answer repeats, as the request has it. */
static enum status read_repeated(struct api_call *call, struct api_error *error)
{
    static const struct {
        const char *name, *absent;
    } names[] = {{"instructions", "null"},
                 {"max_output_tokens", "null"},
                 {"metadata", "{}"},
                 {"parallel_tool_calls", "true"},
                 {"previous_response_id", "null"},
                 {"reasoning", "{\"effort\":null,\"summary\":null}"},
                 {"store", "true"},
                 {"text", "{\"format\":{\"type\":\"text\"}}"},
                 {"tool_choice", "\"auto\""},
                 {"tools", "[]"},
                 {"user", "null"}};
    call->response = json_object();
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        json_t *given = json_object_get(call->body, names[i].name);
        json_t *value = given != NULL && !json_is_null(given)
                            ? json_incref(given)
                            : json_loads(names[i].absent, JSON_DECODE_ANY, NULL);
        if (json_object_set_new(call->response, names[i].name, value) != 0)
            return api_out_of_memory(error);
    }
    return STATUS_OK;
}

/* The flat list becomes that of chats. Tools that a host would run are left out: the model is not
 * told of them, so it does not call them. */
static enum status translate_tools(struct api_call *call, struct api_error *error)
{
    json_t *tools = json_object_get(call->body, "tools"), *tool, *functions;
    size_t i;
    if (!json_is_array(tools))
        return STATUS_OK; /* absent, or what read_tools refuses */
    functions = json_array();
    json_array_foreach(tools, i, tool)
    {
        static const char *const names[] = {"name", "description", "parameters", "strict"};
        json_t *function = json_object();
        for (size_t n = 0; n < ARRAY_COUNT(names); n++)
            if (json_object_get(tool, names[n]) != NULL)
                json_object_set(function, names[n], json_object_get(tool, names[n]));
        if (strcmp(type_of(tool), "function") == 0)
            json_array_append_new(
                functions, json_pack("{s:s, s:O}", "type", "function", "function", function));
        json_decref(function);
    }
    return json_object_set_new(call->body, "tools", functions) == 0 ? STATUS_OK
                                                                    : api_out_of_memory(error);
}

static enum status translate_choice(struct api_call *call, struct api_error *error)
{
    json_t *choice = json_object_get(call->body, "tool_choice"), *translated;
    if (!json_is_object(choice))
        return STATUS_OK;
    const char *type = type_of(choice);
    if (strcmp(type, "function") == 0)
        translated = json_pack("{s:s, s:{s:O*}}", "type", "function", "function", "name",
                               json_object_get(choice, "name"));
    else if (strcmp(type, "allowed_tools") == 0)
        translated = json_incref(json_object_get(choice, "mode"));
    else
        return api_invalid(error, "tool_choice",
                           "tool_choice of type '%.60s' is not possible: only functions are", type);
    return json_object_set_new(call->body, "tool_choice", translated) == 0
               ? STATUS_OK
               : api_out_of_memory(error);
}

static enum status translate_format(struct api_call *call, struct api_error *error)
{
    const json_t *text = json_object_get(call->body, "text");
    json_t *format = json_object_get(text, "format"), *translated = NULL;
    enum status status = read_verbosity(text, "text.verbosity", error);
    if (status != STATUS_OK)
        return status;
    if (format == NULL || json_is_null(format))
        return STATUS_OK;
    if (strcmp(type_of(format), "json_schema") == 0)
        translated = json_pack("{s:s, s:O}", "type", "json_schema", "json_schema", format);
    else
        translated = json_incref(format);
    if (json_object_set_new(call->body, "response_format", translated) != 0)
        return api_out_of_memory(error);
    return read_output(call, error);
}

static enum status translate_reasoning(struct api_call *call, struct api_error *error)
{
    json_t *effort = json_object_get(json_object_get(call->body, "reasoning"), "effort");
    if (json_is_string(effort) && json_object_set(call->body, "reasoning_effort", effort) != 0)
        return api_out_of_memory(error);
    return read_variables(call, error);
}

/* ---- The call -------------------------------------------------------------------------------- */

static enum status read_call(struct api_call *call, struct api_error *error)
{
    const char *instructions;
    call->keep_blocks = true;
    call->store = true;
    enum status status = read_refused(call->body, refused, ARRAY_COUNT(refused), error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, sampling_fields, n_sampling_fields, error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, fields, ARRAY_COUNT(fields), error);
    if (status == STATUS_OK)
        status = read_seed(call, call->body, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "instructions", &instructions, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "previous_response_id", &call->previous, error);
    if (status == STATUS_OK)
        status = read_input(call, error);
    if (status == STATUS_OK)
        status = read_repeated(call, error);
    if (status == STATUS_OK)
        status = translate_format(call, error);
    if (status == STATUS_OK)
        status = translate_tools(call, error);
    if (status == STATUS_OK)
        status = translate_choice(call, error);
    if (status == STATUS_OK)
        status = read_tools(call, error);
    return status == STATUS_OK ? translate_reasoning(call, error) : status;
}

enum status responses_read(struct api_call **out, enum api_operation operation, struct view body,
                           struct api_error *error)
{
    return call_read(out, &responses_format, operation, body, read_call, error);
}
