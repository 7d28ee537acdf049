/* OpenAI's requests (platform.openai.com/docs/api-reference), with the fields that local servers
 * have added: top_k, min_p and the other samplers, chat_template_kwargs, grammar. */
#include "api/api_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct field common_fields[] = {
    {"n", FIELD_U32, CALL(n_choices), 1, API_MAX_CHOICES},
    {"max_tokens", FIELD_U32, CALL(max_tokens), 0, UINT32_MAX},
    {"max_completion_tokens", FIELD_U32, CALL(max_tokens), 0, UINT32_MAX},
    {"stream", FIELD_BOOL, CALL(stream), 0, 0},
    {"ignore_eos", FIELD_BOOL, CALL(ignore_end), 0, 0},
};

static const struct field chat_fields[] = {
    {"logprobs", FIELD_BOOL, CALL(want_logprobs), 0, 0},
    {"top_logprobs", FIELD_U32, CALL(n_top_logprobs), 0, API_MAX_TOP_LOGPROBS},
};

static const struct field completion_fields[] = {
    {"echo", FIELD_BOOL, CALL(echo), 0, 0},
};

/* Fields that would change the answer, but that nothing here can do. */
static const char *const refused[] = {"audio", "prediction", "web_search_options", "function_call",
                                      "functions"};

struct view text_of(const json_t *string)
{
    return (struct view){json_string_value(string), json_string_length(string)};
}

/* One entry: of a token, or where the key is no number, of the tokens of a text. */
static enum status read_bias(struct api_call *call, const char *text, json_int_t id,
                             const json_t *value, bool with_texts, struct logit_bias *list,
                             struct api_error *error)
{
    char *end = NULL;
    if (text != NULL)
        id = strtoll(text, &end, 10);
    double bias = json_is_false(value) ? -100 : json_number_value(value);
    bool is_id = text == NULL || (end != text && *end == '\0');
    if ((!is_id && !with_texts) || (is_id && (id < 0 || id > INT32_MAX)))
        return api_invalid(error, "logit_bias",
                           "logit_bias has the key '%.40s', which is no token id",
                           text != NULL ? text : "");
    if ((!json_is_number(value) && !json_is_false(value)) || !(fabs(bias) <= 100))
        return api_invalid(error, "logit_bias", "logit_bias of %.40s must be from -100 to 100",
                           text != NULL ? text : "a token");
    float kept = bias <= -100 ? -INFINITY : (float)bias;
    if (is_id)
        list[call->sampling.n_biases++] = (struct logit_bias){(int32_t)id, kept};
    else
        call->biases[call->n_biases++] = (struct api_bias){view_of(text), kept};
    return STATUS_OK;
}

enum status read_biases(struct api_call *call, struct api_error *error)
{
    json_t *biases = json_object_get(call->body, "logit_bias"), *value;
    bool with_texts = call->format == &llama_format;
    bool pairs = with_texts && json_is_array(biases);
    if (biases == NULL || json_is_null(biases))
        return STATUS_OK;
    if (!json_is_object(biases) && !pairs)
        return api_invalid(error, "logit_bias", "logit_bias must be an object of token ids");
    size_t n = pairs ? json_array_size(biases) : json_object_size(biases), i;
    struct logit_bias *list = arena_array(call->arena, n, sizeof *list);
    call->biases = arena_array(call->arena, n, sizeof *call->biases);
    if ((list == NULL || call->biases == NULL) && n > 0)
        return api_out_of_memory(error);
    call->sampling.biases = list;
    const char *name;
    enum status status = STATUS_OK;
    json_object_foreach(biases, name, value)
    {
        if (status == STATUS_OK)
            status = read_bias(call, name, 0, value, with_texts, list, error);
    }
    json_array_foreach(pairs ? biases : NULL, i, value)
    {
        const json_t *key = json_array_get(value, 0);
        if (!json_is_string(key) && !json_is_integer(key))
            return api_invalid(error, "logit_bias", "logit_bias.%zu is no [token, bias]", i);
        if (status == STATUS_OK)
            status = read_bias(call, json_string_value(key), json_integer_value(key),
                               json_array_get(value, 1), true, list, error);
    }
    return status;
}

static enum status read_stream_options(struct api_call *call, struct api_error *error)
{
    const json_t *options = json_object_get(call->body, "stream_options");
    if (options == NULL || json_is_null(options))
        return STATUS_OK;
    if (!json_is_object(options))
        return api_invalid(error, "stream_options", "stream_options must be an object");
    call->include_usage = json_is_true(json_object_get(options, "include_usage"));
    return STATUS_OK;
}

enum status read_output(struct api_call *call, struct api_error *error)
{
    const json_t *format = json_object_get(call->body, "response_format");
    const json_t *schema = json_object_get(call->body, "json_schema"); /* llama-server's */
    if (format == NULL || json_is_null(format))
        return json_is_object(schema) ? take_schema(call, schema, "json_schema", error)
                                      : read_grammar(call, error);
    const char *type = json_string_value(json_object_get(format, "type"));
    if (type != NULL && strcmp(type, "text") == 0)
        return read_grammar(call, error);
    call->output_param = "response_format";
    if (type != NULL && strcmp(type, "json_object") == 0) {
        call->output = API_OUTPUT_JSON;
        schema = json_object_get(format, "schema"); /* as llama-server takes it */
        if (schema != NULL && !json_is_null(schema))
            return take_schema(call, schema, "response_format", error);
        return read_grammar(call, error);
    }
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return api_invalid(error, "response_format",
                           "response_format.type must be text, json_object or json_schema");
    return take_schema(call, json_object_get(json_object_get(format, "json_schema"), "schema"),
                       "response_format", error);
}

static enum status read_tool_choice(struct api_call *call, struct api_error *error)
{
    static const char *const words[] = {
        [API_TOOLS_AUTO] = "auto", [API_TOOLS_NONE] = "none", [API_TOOLS_REQUIRED] = "required"};
    const json_t *choice = json_object_get(call->body, "tool_choice");
    if (choice == NULL || json_is_null(choice))
        return STATUS_OK;
    const char *word = json_string_value(choice);
    for (size_t i = 0; word != NULL && i < ARRAY_COUNT(words); i++)
        if (strcmp(word, words[i]) == 0) {
            call->tool_choice = (enum api_tool_choice)i;
            return STATUS_OK;
        }
    call->tool_choice = API_TOOLS_NAMED;
    call->tool_name =
        json_string_value(json_object_get(json_object_get(choice, "function"), "name"));
    if (call->tool_name == NULL)
        return api_invalid(error, "tool_choice",
                           "tool_choice must be auto, none, required or "
                           "{\"type\": \"function\", \"function\": {\"name\": …}}");
    return STATUS_OK;
}

enum status read_tools(struct api_call *call, struct api_error *error)
{
    const json_t *tools = json_object_get(call->body, "tools");
    if (tools == NULL || json_is_null(tools) ||
        (json_is_array(tools) && json_array_size(tools) == 0))
        return STATUS_OK;
    if (!json_is_array(tools))
        return api_invalid(error, "tools", "tools must be a list");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");
        if (!json_is_string(json_object_get(function, "name")))
            return api_invalid(error, "tools",
                               "tools.%zu must be {\"type\": \"function\", "
                               "\"function\": {\"name\": …}}",
                               i);
        call->strict_tools |= json_is_true(json_object_get(function, "strict"));
    }
    call->tools = tools;
    call->single_call = json_is_false(json_object_get(call->body, "parallel_tool_calls"));
    return read_tool_choice(call, error);
}

/* What the template sees besides the messages. */
enum status read_variables(struct api_call *call, struct api_error *error)
{
    const json_t *extra = json_object_get(call->body, "chat_template_kwargs");
    const json_t *effort = json_object_get(call->body, "reasoning_effort");
    if (extra != NULL && !json_is_null(extra) && !json_is_object(extra))
        return api_invalid(error, "chat_template_kwargs", "chat_template_kwargs must be an object");
    call->variables = json_is_object(extra) ? json_deep_copy(extra) : json_object();
    bool kept = call->variables != NULL;
    json_t *generates = json_object_get(call->body, "add_generation_prompt");
    if (kept && json_is_boolean(generates))
        kept = json_object_set(call->variables, "add_generation_prompt", generates) == 0;
    if (kept && json_is_string(effort))
        kept = json_object_set(call->variables, "reasoning_effort", (json_t *)effort) == 0;
    if (kept && call->tools != NULL && call->tool_choice != API_TOOLS_NONE)
        kept = json_object_set(call->variables, "tools", (json_t *)call->tools) == 0;
    return kept ? STATUS_OK : api_out_of_memory(error);
}

enum status read_verbosity(const json_t *object, const char *param, struct api_error *error)
{
    const json_t *verbosity = json_object_get(object, "verbosity");
    if (json_is_string(verbosity) && strcmp(json_string_value(verbosity), "medium") != 0)
        return api_invalid(error, param, "%s is not supported: ask for it in words", param);
    return STATUS_OK;
}

/* Fields whose usual value asks for nothing that is not done anyway. */
static enum status read_usual(const struct api_call *call, struct api_error *error)
{
    const json_t *modalities = json_object_get(call->body, "modalities");
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        const char *word = json_string_value(json_array_get(modalities, i));
        if (word == NULL || strcmp(word, "text") != 0)
            return api_invalid(error, "modalities", "modalities can only be [\"text\"]");
    }
    return read_verbosity(call->body, "verbosity", error);
}

static enum status read_chat(struct api_call *call, struct api_error *error)
{
    enum status status = read_usual(call, error);
    if (status == STATUS_OK)
        status = read_messages(call, json_object_get(call->body, "messages"), error);
    if (status == STATUS_OK)
        status = read_fields(call, call->body, chat_fields, ARRAY_COUNT(chat_fields), error);
    if (status == STATUS_OK)
        status = read_tools(call, error);
    return status == STATUS_OK ? read_variables(call, error) : status;
}

/* ---- Prompts --------------------------------------------------------------------------------- */

/* A list of token ids, and perhaps texts between them. */
static enum status read_token_prompt(struct api_call *call, const char *field, const json_t *value,
                                     struct api_prompt *out, struct api_error *error)
{
    size_t n = json_array_size(value), n_texts = 0;
    int32_t *tokens = arena_array(call->arena, n, sizeof *tokens);
    struct api_prompt *parts = arena_array(call->arena, n, sizeof *parts);
    if (tokens == NULL || parts == NULL)
        return api_out_of_memory(error);
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(value, i);
        json_int_t number = json_integer_value(entry);
        bool is_text = json_is_string(entry);
        if (!is_text && (!json_is_integer(entry) || number < 0 || number > INT32_MAX))
            return api_invalid(error, field, "%s has a token that is no token id", field);
        tokens[i] = (int32_t)number;
        parts[i] = (struct api_prompt){.tokens = &tokens[i], .n_tokens = 1};
        if (is_text)
            parts[i] = (struct api_prompt){.text = text_of(entry)};
        n_texts += is_text;
    }
    *out = n_texts > 0 ? (struct api_prompt){.parts = parts, .n_parts = n}
                       : (struct api_prompt){.tokens = tokens, .n_tokens = n};
    return STATUS_OK;
}

static enum status read_prompt(struct api_call *call, const char *field, const json_t *value,
                               struct api_error *error)
{
    struct api_prompt *prompt = &call->prompts[call->n_prompts];
    static const char *const media[] = {"multimodal_data"};
    const json_t *object = value;
    if (json_is_object(object)) { /* llama-server's way to send images beside a text */
        if (read_refused(object, media, 1, error) != STATUS_OK)
            return STATUS_INVALID;
        value = json_object_get(object, "prompt_string");
    }
    if (json_is_string(value))
        prompt->text = text_of(value);
    else if (!json_is_array(value) || json_array_size(value) == 0)
        return api_invalid(error, field, "%s must be a text, a list of texts, or token ids", field);
    else if (read_token_prompt(call, field, value, prompt, error) != STATUS_OK)
        return error->http_status == 400 ? STATUS_INVALID : STATUS_MEMORY;
    call->n_prompts++;
    return STATUS_OK;
}

/* A text, a list of texts, token ids, or a list of these. */
enum status read_prompts(struct api_call *call, const char *field, struct api_error *error)
{
    const json_t *value = json_object_get(call->body, field);
    bool single = !json_is_array(value);
    for (size_t i = 0; i < json_array_size(value) && !single; i++)
        single = json_is_integer(json_array_get(value, i));
    size_t n = single ? 1 : json_array_size(value);
    if (value == NULL || n == 0)
        return api_invalid(error, field, "%s is missing", field);
    if (n > API_MAX_PROMPTS)
        return api_invalid(error, field, "%s has %zu entries; at most %d are possible", field, n,
                           API_MAX_PROMPTS);
    call->prompts = arena_array(call->arena, n, sizeof *call->prompts);
    if (call->prompts == NULL)
        return api_out_of_memory(error);
    for (size_t i = 0; i < n; i++) {
        enum status status =
            read_prompt(call, field, single ? value : json_array_get(value, i), error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status read_suffix(struct api_call *call, struct view suffix, struct api_error *error)
{
    struct infill *infill = arena_alloc(call->arena, sizeof *infill);
    if (call->n_prompts != 1 || call->prompts[0].text.data == NULL)
        return api_invalid(error, "suffix", "a suffix needs a prompt that is one text");
    if (infill == NULL)
        return api_out_of_memory(error);
    *infill = (struct infill){.prefix = call->prompts[0].text, .suffix = suffix};
    call->infill = infill;
    return STATUS_OK;
}

static enum status read_completion(struct api_call *call, struct api_error *error)
{
    const json_t *logprobs = json_object_get(call->body, "logprobs");
    if (logprobs != NULL && !json_is_null(logprobs) && !json_is_false(logprobs)) {
        call->want_logprobs = true;
        call->n_top_logprobs = (uint32_t)json_integer_value(logprobs);
        if (!json_is_true(logprobs) &&
            (!json_is_integer(logprobs) || json_integer_value(logprobs) < 0 ||
             json_integer_value(logprobs) > API_MAX_TOP_LOGPROBS))
            return api_invalid(error, "logprobs", "logprobs must be a whole number from 0 to %d",
                               API_MAX_TOP_LOGPROBS);
    }
    const json_t *best_of = json_object_get(call->body, "best_of");
    if (json_is_number(best_of) && json_number_value(best_of) > call->n_choices)
        return api_invalid(error, "best_of",
                           "best_of cannot be more than n: all answers are given");
    const char *suffix;
    enum status status = read_string(call->body, "suffix", &suffix, error);
    if (status == STATUS_OK)
        status =
            read_fields(call, call->body, completion_fields, ARRAY_COUNT(completion_fields), error);
    if (status == STATUS_OK)
        status = read_prompts(call, "prompt", error);
    if (status == STATUS_OK && suffix != NULL && suffix[0] != '\0')
        status = read_suffix(call, view_of(suffix), error);
    return status;
}

static enum status read_embeddings(struct api_call *call, struct api_error *error)
{
    const char *encoding;
    enum status status = read_string(call->body, "encoding_format", &encoding, error);
    if (status != STATUS_OK)
        return status;
    call->base64 = encoding != NULL && strcmp(encoding, "base64") == 0;
    if (encoding != NULL && !call->base64 && strcmp(encoding, "float") != 0)
        return api_invalid(error, "encoding_format", "encoding_format must be float or base64");
    const struct field dimensions = {"dimensions", FIELD_U32, CALL(dimensions), 1, UINT32_MAX};
    status = read_fields(call, call->body, &dimensions, 1, error);
    return status == STATUS_OK ? read_prompts(call, "input", error) : status;
}

/* A completion of no tokens shows the prompt alone. */
static enum status read_length(struct api_call *call, struct api_error *error)
{
    static const char *const names[] = {"max_tokens", "max_completion_tokens"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        const json_t *value = json_object_get(call->body, names[i]);
        if (!json_is_number(value) || json_number_value(value) != 0)
            continue;
        if (call->operation != API_COMPLETION)
            return api_invalid(error, names[i], "%s is 0; it must be at least 1", names[i]);
        call->no_answer = true;
    }
    return STATUS_OK;
}

static enum status read_text(struct api_call *call, struct api_error *error)
{
    enum status status = read_generation(call, refused, ARRAY_COUNT(refused), common_fields,
                                         ARRAY_COUNT(common_fields), error);
    if (status == STATUS_OK)
        status = read_length(call, error);
    if (status == STATUS_OK)
        status = read_stream_options(call, error);
    return status == STATUS_OK ? read_output(call, error) : status;
}

static enum status read_call(struct api_call *call, struct api_error *error)
{
    call_part *part = call->operation == API_CHAT         ? read_chat
                      : call->operation == API_COMPLETION ? read_completion
                                                          : read_embeddings;
    enum status status = call->operation != API_EMBEDDINGS ? read_text(call, error) : STATUS_OK;
    return status == STATUS_OK ? part(call, error) : status;
}

enum status openai_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error)
{
    return call_read(out, operation == API_CHAT ? &openai_chat_format : &openai_completion_format,
                     operation, body, read_call, error);
}
