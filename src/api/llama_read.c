/* llama-server's own requests (github.com/ggml-org/llama.cpp, tools/server/README.md), which
 * scripts use: /completion, /tokenize, /detokenize, /apply-template, /props. */
#include "api/api_internal.h"

static const struct field completion_fields[] = {
    {"n_predict", FIELD_LIMIT, CALL(max_tokens), 1, UINT32_MAX},
    {"n_probs", FIELD_U32, CALL(n_top_logprobs), 0, API_MAX_TOP_LOGPROBS},
    {"ignore_eos", FIELD_BOOL, CALL(ignore_end), 0, 0},
    {"return_tokens", FIELD_BOOL, CALL(want_tokens), 0, 0},
    {"stream", FIELD_BOOL, CALL(stream), 0, 0},
};

static const struct field token_fields[] = {
    {"add_special", FIELD_BOOL, CALL(add_special), 0, 0},
    {"parse_special", FIELD_BOOL, CALL(parse_special), 0, 0},
    {"with_pieces", FIELD_BOOL, CALL(with_pieces), 0, 0},
};

/* What would change the answer, but that nothing here can do. */
static const char *const refused[] = {
    "samplers",         "mirostat", "lora",           "post_sampling_probs",
    "t_max_predict_ms", "n_indent", "dynatemp_range", "image_data"};

static enum status read_parameters(struct api_call *call, struct api_error *error)
{
    const json_t *schema = json_object_get(call->body, "json_schema");
    bool has_schema = json_is_boolean(schema) || json_object_size(schema) > 0;
    enum status status = read_generation(call, refused, ARRAY_COUNT(refused), completion_fields,
                                         ARRAY_COUNT(completion_fields), error);
    if (status == STATUS_OK)
        status = has_schema ? take_schema(call, schema, "json_schema", error)
                            : read_grammar(call, error);
    const json_t *fields = json_object_get(call->body, "response_fields");
    if (status == STATUS_OK && fields != NULL && !json_is_array(fields))
        return api_invalid(error, "response_fields", "response_fields must be a list of names");
    call->response_fields = json_array_size(fields) > 0 ? fields : NULL;
    call->want_logprobs = call->n_top_logprobs > 0;
    call->want_tokens |= call->stream;
    return status;
}

static enum status read_completion(struct api_call *call, struct api_error *error)
{
    enum status status = read_parameters(call, error);
    return status == STATUS_OK ? read_prompts(call, "prompt", error) : status;
}

/* ---- Infill ---------------------------------------------------------------------------------- */

static enum status read_files(struct api_call *call, struct infill *infill, struct api_error *error)
{
    const json_t *list = json_object_get(call->body, "input_extra");
    size_t n = json_array_size(list);
    struct infill_file *files = arena_array(call->arena, n, sizeof *files);
    if (list != NULL && !json_is_array(list))
        return api_invalid(error, "input_extra", "input_extra must be a list");
    if (files == NULL && n > 0)
        return api_out_of_memory(error);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_object_get(json_array_get(list, i), "text");
        const json_t *name = json_object_get(json_array_get(list, i), "filename");
        if (!json_is_string(text) || (name != NULL && !json_is_string(name)))
            return api_invalid(error, "input_extra",
                               "input_extra.%zu must be {\"filename\": …, \"text\": …}", i);
        files[i] =
            (struct infill_file){name != NULL ? text_of(name) : view_of("file"), text_of(text)};
    }
    infill->files = files;
    infill->n_files = n;
    return STATUS_OK;
}

static enum status read_infill(struct api_call *call, struct api_error *error)
{
    const json_t *prefix = json_object_get(call->body, "input_prefix"),
                 *suffix = json_object_get(call->body, "input_suffix");
    const char *written;
    enum status status = read_parameters(call, error);
    if (status == STATUS_OK)
        status = read_string(call->body, "prompt", &written, error);
    if (status == STATUS_OK && (!json_is_string(prefix) || !json_is_string(suffix)))
        return api_invalid(error, json_is_string(prefix) ? "input_suffix" : "input_prefix",
                           "input_prefix and input_suffix must be strings");
    if (status == STATUS_OK)
        status = read_prompts(call, "input_prefix", error);
    struct infill *infill = arena_alloc(call->arena, sizeof *infill);
    if (infill == NULL)
        return api_out_of_memory(error);
    *infill = (struct infill){.prefix = text_of(prefix), .suffix = text_of(suffix)};
    if (status == STATUS_OK)
        status = read_files(call, infill, error);
    if (status == STATUS_OK && written != NULL)
        infill->written = view_of(written);
    call->infill = infill;
    return status;
}

/* ---- Embeddings ------------------------------------------------------------------------------ */

static enum status read_embedding(struct api_call *call, struct api_error *error)
{
    const json_t *norm = json_object_get(call->body, "embd_normalize");
    bool input = json_object_get(call->body, "input") != NULL;
    if (norm != NULL && json_integer_value(norm) != 2)
        return api_invalid(error, "embd_normalize",
                           "embd_normalize must be 2: vectors have length one");
    return read_prompts(call, input ? "input" : "content", error);
}

/* ---- Tokens and templates -------------------------------------------------------------------- */

static enum status read_text(struct api_call *call, struct api_error *error)
{
    call->parse_special = true;
    enum status status =
        read_fields(call, call->body, token_fields, ARRAY_COUNT(token_fields), error);
    if (status != STATUS_OK)
        return status;
    if (!json_is_string(json_object_get(call->body, "content")))
        return api_invalid(error, "content", "content must be a string");
    return read_prompts(call, "content", error);
}

static enum status read_tokens(struct api_call *call, struct api_error *error)
{
    const json_t *tokens = json_object_get(call->body, "tokens");
    if (!json_is_array(tokens))
        return api_invalid(error, "tokens", "tokens must be a list of token ids");
    if (json_array_size(tokens) == 0)
        return STATUS_OK;
    enum status status = read_prompts(call, "tokens", error);
    if (status == STATUS_OK && (call->n_prompts != 1 || call->prompts[0].tokens == NULL))
        return api_invalid(error, "tokens", "tokens must be a list of token ids");
    return status;
}

static enum status read_template(struct api_call *call, struct api_error *error)
{
    enum status status = read_messages(call, json_object_get(call->body, "messages"), error);
    if (status == STATUS_OK)
        status = read_tools(call, error);
    return status == STATUS_OK ? read_variables(call, error) : status;
}

enum status llama_read(struct api_call **out, enum api_operation operation, struct view body,
                       struct api_error *error)
{
    call_part *part = operation == API_COMPLETION   ? read_completion
                      : operation == API_EMBEDDINGS ? read_embedding
                      : operation == API_TOKENIZE   ? read_text
                      : operation == API_DETOKENIZE ? read_tokens
                      : operation == API_RENDER     ? read_template
                                                    : NULL;
    if (operation == API_PROPS && body.size == 0) /* of a GET */
        body = view_of("{}");
    return call_read(out, &llama_format, operation, body, part, error);
}

enum status llama_read_infill(struct api_call **out, enum api_operation operation, struct view body,
                              struct api_error *error)
{
    return call_read(out, &llama_format, operation, body, read_infill, error);
}

enum status llama_read_either(struct api_call **out, enum api_operation operation, struct view body,
                              struct api_error *error)
{
    json_t *value = json_loadb(body.data != NULL ? body.data : "", body.size, 0, NULL);
    bool named = json_is_string(json_object_get(value, "model"));
    json_decref(value);
    return named ? openai_read(out, operation, body, error)
                 : llama_read(out, operation, body, error);
}
