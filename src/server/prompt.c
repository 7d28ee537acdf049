/* From what a call asks to the tokens of its prompts. On the worker's thread. */
#include "server/server_internal.h"

#include <string.h>

/* A template that knows no developer takes what it says as the system's. */
static void rename_developer(const struct engine *engine, json_t *messages)
{
    json_t *message;
    size_t i;
    json_array_foreach(messages, i, message)
    {
        const char *role = json_string_value(json_object_get(message, "role"));
        if (role == NULL || strcmp(role, "developer") != 0)
            continue;
        if (view_contains(engine->template_source, "developer"))
            return;
        json_object_set_new(message, "role", json_string("system"));
    }
}

/* A template that wants the reasoning that led to a call as its plan, Cohere's, has it. */
static void add_plans(const struct engine *engine, json_t *messages)
{
    json_t *message;
    size_t i;
    if (!view_contains(engine->template_source, "tool_plan"))
        return;
    json_array_foreach(messages, i, message)
    {
        json_t *plan = json_object_get(message, "reasoning_content");
        if (json_string_length(plan) == 0)
            plan = json_object_get(message, "content");
        if (json_array_size(json_object_get(message, "tool_calls")) > 0 &&
            json_object_get(message, "tool_plan") == NULL)
            json_object_set_new(message, "tool_plan",
                                json_is_string(plan) ? json_incref(plan) : json_string(""));
    }
}

static bool is_system(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role != NULL && (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0);
}

/* Templates take one message of the system, the first: what stands before the conversation becomes
 * one, as clients that send instructions and a developer's message mean it. */
static enum status join_system(json_t *messages, struct error *error)
{
    struct buffer text = {0};
    json_t *first = json_array_get(messages, 0);
    bool kept = true;
    while (kept && is_system(first) && is_system(json_array_get(messages, 1))) {
        const json_t *parts[] = {json_object_get(first, "content"),
                                 json_object_get(json_array_get(messages, 1), "content")};
        buffer_clear(&text);
        for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
            buffer_append_text(&text, i > 0 ? "\n\n" : "");
            buffer_append(&text, json_string_value(parts[i]), json_string_length(parts[i]));
        }
        kept = !text.failed &&
               json_object_set_new(first, "content", json_stringn(text.data, text.size)) == 0 &&
               json_array_remove(messages, 1) == 0;
    }
    buffer_free(&text);
    return kept ? STATUS_OK : error_memory(error, 1);
}

bool prompt_continues(const struct api_call *call)
{
    size_t n = json_array_size(call->messages);
    const json_t *last = n > 1 ? json_array_get(call->messages, n - 1) : NULL;
    const char *role = json_string_value(json_object_get(last, "role"));
    return role != NULL && strcmp(role, "assistant") == 0 &&
           json_object_get(last, "tool_calls") == NULL;
}

/* An answer that has been begun, the last message, stands after the prompt for one. */
static enum status render_begun(const struct engine *engine, const struct api_call *call,
                                struct buffer *out, struct error *error)
{
    json_t *before = json_copy(call->messages);
    size_t last = json_array_size(call->messages) - 1;
    if (before == NULL || json_array_remove(before, last) != 0) {
        json_decref(before);
        return error_memory(error, sizeof *before);
    }
    const json_t *begun = json_object_get(json_array_get(call->messages, last), "content");
    enum status status = engine_render(engine, before, call->variables, out, error);
    buffer_append(out, json_string_value(begun), json_string_length(begun));
    json_decref(before);
    return status;
}

enum status prompt_render(const struct engine *engine, const struct api_call *call,
                          struct buffer *out, struct error *error)
{
    enum status status = join_system(call->messages, error);
    if (status != STATUS_OK)
        return status;
    rename_developer(engine, call->messages);
    add_plans(engine, call->messages);
    if (prompt_continues(call))
        return render_begun(engine, call, out, error);
    status = engine_render(engine, call->messages, call->variables, out, error);
    const char *end =
        reply_format_open_think(engine->reply_format, (struct view){out->data, out->size});
    if (status == STATUS_OK && end != NULL &&
        json_is_false(json_object_get(call->variables, "enable_thinking")))
        buffer_append_text(out, end); /* of a template that always asks for reasoning */
    return status == STATUS_OK && out->failed ? error_memory(error, out->size) : status;
}

enum status prompt_constrain(const struct engine *engine, const struct api_call *call,
                             struct view prompt, json_t **asked, struct error *error)
{
    bool must_call = call->tools != NULL && call->tool_choice > API_TOOLS_NONE;
    bool may_call = call->strict_tools && call->tool_choice == API_TOOLS_AUTO &&
                    call->output == API_OUTPUT_TEXT && call->operation == API_CHAT;
    bool calls = must_call || may_call, chat = call->operation == API_CHAT;
    if ((!calls && call->output == API_OUTPUT_TEXT) || *asked != NULL ||
        call->operation > API_COMPLETION)
        return STATUS_OK;
    json_t *json = json_pack("{s:b, s:b, s:b, s:b}", "single_call", call->single_call, "may_call",
                             may_call, "chat", chat, "thinking",
                             chat && reply_begins_thinking(engine->reply_format, prompt));
    int failed = json == NULL;
    if (calls)
        failed |= json_object_set(json, "tools", (json_t *)call->tools);
    else if (call->output == API_OUTPUT_GRAMMAR)
        failed |= json_object_set_new(json, "gbnf", json_string(call->grammar));
    else if (call->output == API_OUTPUT_JSON)
        failed |= json_object_set_new(json, "schema", json_pack("{s:s}", "type", "object"));
    else
        failed |= json_object_set(json, "schema", (json_t *)call->schema);
    if (call->tool_name != NULL)
        failed |= json_object_set_new(json, "tool", json_string(call->tool_name));
    if (failed) {
        json_decref(json);
        return error_memory(error, sizeof *json);
    }
    *asked = json;
    return STATUS_OK;
}

enum status prompt_chat(const struct engine *engine, const struct api_call *call,
                        struct api_answer *answer, json_t **asked, struct token_list *out,
                        struct error *error)
{
    struct buffer text = {0};
    enum status status = prompt_render(engine, call, &text, error);
    struct view prompt = {text.data, text.size};
    if (status == STATUS_OK)
        status = engine_encode(engine, prompt, out, error);
    for (size_t i = 0; i < call->n_choices && status == STATUS_OK; i++)
        status = api_answer_parse(answer, i, engine->reply_format, prompt, error);
    if (status == STATUS_OK && asked != NULL)
        status = prompt_constrain(engine, call, prompt, asked, error);
    buffer_free(&text);
    return status;
}

/* A text at the beginning of a prompt gets what the model wants there. */
static enum status put_part(const struct engine *engine, const struct api_prompt *part, bool first,
                            bool generates, struct token_list *out, struct error *error)
{
    if (part->tokens == NULL && first && generates)
        return engine_encode(engine, part->text, out, error);
    if (part->tokens == NULL)
        return tokenizer_encode(engine->tokenizer, part->text,
                                first ? TOKENIZER_ADD_SPECIAL : TOKENIZER_PARSE_SPECIAL, out,
                                error);
    for (size_t i = 0; i < part->n_tokens; i++)
        if (!token_list_append(out, part->tokens[i]))
            return error_memory(error, sizeof *part->tokens);
    return STATUS_OK;
}

enum status prompt_encode(const struct engine *engine, const struct api_call *call,
                          const struct api_prompt *prompt, struct token_list *out,
                          struct error *error)
{
    bool generates = call->operation == API_COMPLETION;
    if (call->infill != NULL)
        return engine_encode_infill(engine, call->infill, out, error);
    if (prompt->parts == NULL)
        return put_part(engine, prompt, true, generates, out, error);
    enum status status = STATUS_OK;
    for (size_t i = 0; i < prompt->n_parts && status == STATUS_OK; i++)
        status = put_part(engine, &prompt->parts[i], i == 0, generates, out, error);
    return status;
}
