/* Anthropic's requests (docs.anthropic.com/en/api/messages): /v1/messages and its count_tokens.
 * Their blocks become the messages that OpenAI's clients send, which is what templates know. */
#include "api/api_internal.h"

#include <stdio.h>
#include <string.h>

static const struct field fields[] = {
    {"max_tokens", FIELD_U32, CALL(max_tokens), 1, UINT32_MAX},
    {"stream", FIELD_BOOL, CALL(stream), 0, 0},
};

/* What would change the answer, but that nothing here can do. */
static const char *const refused[] = {"container", "mcp_servers"};

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type != NULL ? type : "";
}

/* ---- System text ----------------------------------------------------------------------------- */

/* Some clients begin the system text with a line that names them and changes with each request
 * ("cch="), so that no prompt would begin like another. The text without it. */
static json_t *without_attribution(const json_t *text)
{
    static const char header[] = "x-anthropic-billing-header:";
    struct view all = {json_string_value(text), json_string_length(text)};
    const char *end = memchr(all.data, '\n', all.size);
    struct view line = {all.data, end != NULL ? (size_t)(end - all.data) : all.size};
    bool attribution =
        line.size >= sizeof header - 1 && memcmp(line.data, header, sizeof header - 1) == 0;
    attribution = attribution || (line.size > 4 && memcmp(line.data, "cch=", 4) == 0) ||
                  view_contains(line, " cch=");
    size_t skipped = attribution ? MIN(line.size + 1, all.size) : 0;
    return json_stringn(all.data + skipped, all.size - skipped);
}

static enum status add_system(struct api_call *call, json_t *messages, struct api_error *error)
{
    const json_t *system = json_object_get(call->body, "system");
    size_t n = json_is_array(system) ? json_array_size(system) : 1;
    if (system == NULL || json_is_null(system) || n == 0)
        return STATUS_OK;
    struct buffer text = {0};
    for (size_t i = 0; i < n; i++) {
        const json_t *block = json_is_array(system) ? json_array_get(system, i) : system;
        const json_t *part = json_is_string(block) ? block : json_object_get(block, "text");
        if (!json_is_string(part)) {
            buffer_free(&text);
            return api_invalid(error, "system", "system must be a string or a list of text blocks");
        }
        json_t *kept = without_attribution(part);
        if (text.size > 0)
            buffer_append_text(&text, "\n");
        buffer_append(&text, json_string_value(kept), json_string_length(kept));
        json_decref(kept);
    }
    bool added = text.size == 0 ||
                 json_array_append_new(messages, json_pack("{s:s, s:s%}", "role", "system",
                                                           "content", text.data, text.size)) == 0;
    added = added && !text.failed;
    buffer_free(&text);
    return added ? STATUS_OK : api_out_of_memory(error);
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

/* What is made of one message: texts become content, and so on. */
struct translation {
    json_t *messages; /* the result */
    json_t *names;    /* of the tools that were called, by the calls' ids */
    json_t *texts, *calls;
    const json_t *thinking;
    const char *role;
};

/* The ids this server gives carry a prefix for the client; some templates want them without. */
static const char *call_id(const json_t *block, const char *name)
{
    const char *id = json_string_value(json_object_get(block, name));
    size_t prefix = strlen(ANTHROPIC_CALL_PREFIX);
    if (id == NULL)
        return "";
    return strncmp(id, ANTHROPIC_CALL_PREFIX, prefix) == 0 ? id + prefix : id;
}

/* Appends what has been gathered as one message. */
static bool end_message(struct translation *to)
{
    bool empty = json_array_size(to->texts) == 0 && json_array_size(to->calls) == 0;
    bool kept = true;
    if (!empty || to->thinking != NULL) {
        json_t *message = json_pack("{s:s, s:O, s:O}", "role", to->role, "content", to->texts,
                                    "tool_calls", to->calls);
        if (to->thinking != NULL)
            kept = json_object_set(message, "reasoning_content", (json_t *)to->thinking) == 0;
        kept = json_array_append_new(to->messages, message) == 0 && kept;
    }
    json_decref(to->texts);
    json_decref(to->calls);
    to->texts = json_array();
    to->calls = json_array();
    to->thinking = NULL;
    return kept && to->texts != NULL && to->calls != NULL;
}

static enum status add_call(struct translation *to, const json_t *block, const char *param,
                            struct api_error *error)
{
    const char *id = call_id(block, "id");
    json_t *name = json_object_get(block, "name"), *input = json_object_get(block, "input");
    if (!json_is_string(name) || !json_is_object(input))
        return api_invalid(error, param, "a tool_use in %s must have a name and an input", param);
    bool added = json_object_set(to->names, id, name) == 0 &&
                 json_array_append_new(to->calls, json_pack("{s:s, s:s, s:{s:O, s:O}}", "id", id,
                                                            "type", "function", "function", "name",
                                                            name, "arguments", input)) == 0;
    return added ? STATUS_OK : api_out_of_memory(error);
}

static enum status add_result(struct translation *to, const json_t *block, struct api_error *error)
{
    const char *id = call_id(block, "tool_use_id");
    json_t *content = json_object_get(block, "content"), *name = json_object_get(to->names, id);
    json_t *message = json_pack("{s:s, s:s}", "role", "tool", "tool_call_id", id);
    bool added = end_message(to) && message != NULL;
    if (content != NULL)
        added = json_object_set(message, "content", content) == 0 && added;
    if (name != NULL)
        added = json_object_set(message, "name", name) == 0 && added;
    added = json_array_append_new(to->messages, message) == 0 && added;
    return added ? STATUS_OK : api_out_of_memory(error);
}

static enum status add_block(struct translation *to, json_t *block, const char *param,
                             struct api_error *error)
{
    const char *type = type_of(block);
    if (strcmp(type, "tool_use") == 0)
        return add_call(to, block, param, error);
    if (strcmp(type, "tool_result") == 0)
        return add_result(to, block, error);
    if (strcmp(type, "thinking") == 0)
        to->thinking = json_object_get(block, "thinking");
    else if (strcmp(type, "redacted_thinking") != 0 && json_array_append(to->texts, block) != 0)
        return api_out_of_memory(error); /* read_messages takes texts and refuses the rest */
    return STATUS_OK;
}

static enum status add_message(struct translation *to, json_t *message, size_t index,
                               struct api_error *error)
{
    char param[64];
    snprintf(param, sizeof param, "messages.%zu", index);
    json_t *content = json_object_get(message, "content"), *block;
    size_t i;
    to->role = json_string_value(json_object_get(message, "role"));
    if (to->role == NULL || (strcmp(to->role, "user") != 0 && strcmp(to->role, "assistant") != 0))
        return api_invalid(error, param, "%s.role must be user or assistant", param);
    if (!json_is_array(content)) /* a text, or what read_messages refuses */
        return json_array_append(to->messages, message) == 0 ? STATUS_OK : api_out_of_memory(error);
    json_array_foreach(content, i, block)
    {
        enum status status = add_block(to, block, param, error);
        if (status != STATUS_OK)
            return status;
    }
    return end_message(to) ? STATUS_OK : api_out_of_memory(error);
}

static enum status translate_messages(struct api_call *call, struct api_error *error)
{
    json_t *messages = json_object_get(call->body, "messages"), *message;
    size_t i;
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return api_invalid(error, "messages", "messages must be a list with at least one message");
    struct translation to = {.messages = json_array(),
                             .names = json_object(),
                             .texts = json_array(),
                             .calls = json_array()};
    enum status status = add_system(call, to.messages, error);
    json_array_foreach(messages, i, message)
    {
        if (status == STATUS_OK)
            status = add_message(&to, message, i, error);
    }
    if (status == STATUS_OK)
        status = read_messages(call, to.messages, error);
    json_decref(to.messages);
    json_decref(to.names);
    json_decref(to.texts);
    json_decref(to.calls);
    return status;
}

/* ---- Tools ----------------------------------------------------------------------------------- */

/* The body's list becomes OpenAI's. */
static enum status translate_tools(struct api_call *call, struct api_error *error)
{
    json_t *tools = json_object_get(call->body, "tools"), *tool, *functions = json_array();
    size_t i;
    json_array_foreach(tools, i, tool)
    {
        const char *type = type_of(tool);
        json_t *function = json_object();
        static const char *const names[][2] = {{"name", "name"},
                                               {"description", "description"},
                                               {"input_schema", "parameters"},
                                               {"strict", "strict"}};
        if (type[0] != '\0' && strcmp(type, "custom") != 0) {
            json_decref(function);
            json_decref(functions);
            return api_invalid(error, "tools",
                               "tools.%zu is of type %.60s: only tools that the client runs are "
                               "possible",
                               i, type);
        }
        for (size_t n = 0; n < ARRAY_COUNT(names); n++)
            if (json_object_get(tool, names[n][0]) != NULL)
                json_object_set(function, names[n][1], json_object_get(tool, names[n][0]));
        json_array_append_new(functions,
                              json_pack("{s:s, s:o}", "type", "function", "function", function));
    }
    if (!json_is_array(tools)) { /* absent, or what read_tools refuses */
        json_decref(functions);
        return STATUS_OK;
    }
    return json_object_set_new(call->body, "tools", functions) == 0 ? STATUS_OK
                                                                    : api_out_of_memory(error);
}

static enum status translate_choice(struct api_call *call, struct api_error *error)
{
    static const char *const words[][2] = {{"auto", "auto"}, {"none", "none"}, {"any", "required"}};
    json_t *choice = json_object_get(call->body, "tool_choice"), *translated = NULL;
    if (choice == NULL || json_is_null(choice))
        return STATUS_OK;
    const char *type = type_of(choice);
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (strcmp(type, words[i][0]) == 0)
            translated = json_string(words[i][1]);
    if (strcmp(type, "tool") == 0)
        translated = json_pack("{s:s, s:{s:O*}}", "type", "function", "function", "name",
                               json_object_get(choice, "name"));
    if (translated == NULL)
        return api_invalid(error, "tool_choice",
                           "tool_choice.type must be auto, none, any or tool with a name");
    bool single = json_is_true(json_object_get(choice, "disable_parallel_tool_use"));
    bool kept = json_object_set_new(call->body, "tool_choice", translated) == 0 &&
                json_object_set_new(call->body, "parallel_tool_calls", json_boolean(!single)) == 0;
    return kept ? STATUS_OK : api_out_of_memory(error);
}

/* ---- The call -------------------------------------------------------------------------------- */

static enum status read_thinking(struct api_call *call, struct api_error *error)
{
    const json_t *thinking = json_object_get(call->body, "thinking");
    json_t *output = json_object_get(call->body, "output_config"),
           *effort = json_object_get(output, "effort");
    const char *type = type_of(thinking);
    bool kept = true;
    if (type[0] != '\0') {
        json_t *wanted = json_boolean(strcmp(type, "disabled") != 0);
        kept = json_object_set(call->variables, "enable_thinking", wanted) == 0 &&
               json_object_set(call->variables, "thinking", wanted) == 0;
    }
    if (kept && json_is_string(effort))
        kept = json_object_set(call->variables, "reasoning_effort", effort) == 0;
    if (!kept)
        return api_out_of_memory(error);
    const json_t *format = json_object_get(output, "format");
    if (format == NULL || json_is_null(format)) /* or where it was before */
        format = json_object_get(call->body, "output_format");
    if (format == NULL || json_is_null(format))
        return STATUS_OK;
    if (strcmp(type_of(format), "json_schema") != 0)
        return api_invalid(error, "output_config", "output_config.format.type must be json_schema");
    return take_schema(call, json_object_get(format, "schema"), "output_config", error);
}

static enum status read_parameters(struct api_call *call, struct api_error *error)
{
    enum status status = read_refused(call->body, refused, ARRAY_COUNT(refused), error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, sampling_fields, n_sampling_fields, error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, fields, ARRAY_COUNT(fields), error);
    if (status == STATUS_OK && call->max_tokens == 0 && call->operation == API_CHAT)
        status = api_invalid(error, "max_tokens", "max_tokens is missing");
    return status == STATUS_OK ? read_stops(call, call->body, "stop_sequences", error) : status;
}

static enum status read_call(struct api_call *call, struct api_error *error)
{
    static call_part *const parts[] = {read_parameters,  translate_messages, translate_tools,
                                       translate_choice, read_tools,         read_variables,
                                       read_thinking};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < ARRAY_COUNT(parts) && status == STATUS_OK; i++)
        status = parts[i](call, error);
    return status;
}

enum status anthropic_read(struct api_call **out, enum api_operation operation, struct view body,
                           struct api_error *error)
{
    return call_read(out, &anthropic_format, operation, body, read_call, error);
}
