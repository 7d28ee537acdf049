/* What a model's name in the store says of how it wants to be asked, where the client does not. */
#include "api/api_internal.h"

#include <string.h>

static bool said(const struct api_call *call, const char *name)
{
    const json_t *options = json_object_get(call->body, "options");
    return json_object_get(call->body, name) != NULL || json_object_get(options, name) != NULL;
}

static enum status take_parameters(struct api_call *call, const json_t *parameters,
                                   struct api_error *error)
{
    static const struct field limit[] = {
        {"num_predict", FIELD_LIMIT, offsetof(struct api_call, max_tokens), 1, UINT32_MAX}};
    json_t *left = json_object(), *value;
    const char *name;
    json_object_foreach((json_t *)parameters, name, value)
    {
        if (!said(call, name))
            json_object_set(left, name, value);
    }
    enum status status = read_fields(call, left, sampling_fields, n_sampling_fields, error);
    if (status == STATUS_OK && call->max_tokens == 0)
        status = read_fields(call, left, limit, 1, error);
    if (status == STATUS_OK && !call->has_seed)
        status = read_seed(call, left, error);
    /* The call keeps what it reads by reference. */
    value = json_object_get(left, "stop");
    if (status == STATUS_OK && call->n_stops == 0 && value != NULL &&
        json_object_set(call->body, "stop", value) == 0)
        status = read_stops(call, call->body, "stop", error);
    json_decref(left);
    return status;
}

static bool is_system(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role != NULL && (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0);
}

enum status api_call_defaults(struct api_call *call, const char *system, const json_t *messages,
                              const json_t *parameters, struct api_error *error)
{
    const json_t *message;
    size_t i, at = 0;
    bool kept = true;
    if (call->messages != NULL) {
        if (is_system(json_array_get(call->messages, 0)))
            at = 1;
        else if (system[0] != '\0')
            kept = json_array_insert_new(
                       call->messages, at++,
                       json_pack("{s:s, s:s}", "role", "system", "content", system)) == 0;
        json_array_foreach(messages, i, message) kept =
            kept && json_array_insert_new(call->messages, at++, json_deep_copy(message)) == 0;
    }
    if (!kept)
        return api_out_of_memory(error);
    return take_parameters(call, parameters, error);
}
