#include "request/request_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Pieces of a text between zero bytes; one that is longer is none of ours. */
#define MAX_PIECES (1 << 16)

/* ---- Values ---------------------------------------------------------------------------------- */

bool request_put(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

json_t *request_text_write(struct view text)
{
    if (text.size == 0 || memchr(text.data, '\0', text.size) == NULL)
        return json_stringn(text.size > 0 ? text.data : "", text.size);
    json_t *pieces = json_array();
    for (size_t begin = 0; begin <= text.size;) {
        const char *zero = memchr(text.data + begin, '\0', text.size - begin);
        size_t end = zero != NULL ? (size_t)(zero - text.data) : text.size;
        if (json_array_append_new(pieces, json_stringn(text.data + begin, end - begin)) != 0) {
            json_decref(pieces);
            return NULL;
        }
        begin = end + 1;
    }
    return pieces;
}

bool request_text_read(const json_t *json, size_t limit, struct buffer *out)
{
    const json_t *piece = json;
    size_t n = json_is_array(json) ? json_array_size(json) : 1;
    buffer_clear(out);
    if (n == 0 || n > MAX_PIECES)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (json_is_array(json))
            piece = json_array_get(json, i);
        size_t size = json_string_length(piece);
        bool zero = i > 0;
        if (!json_is_string(piece) || size + zero > limit - out->size ||
            !buffer_append(out, "", zero) || !buffer_append(out, json_string_value(piece), size))
            return false;
    }
    return true;
}

json_t *request_float_write(float value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

bool request_float_read(const json_t *json, float *out)
{
    if (json_is_null(json))
        *out = -INFINITY;
    else if (json_is_number(json) && isfinite((float)json_number_value(json)))
        *out = (float)json_number_value(json);
    else
        return false;
    return true;
}

bool request_integer_read(const json_t *json, int64_t min, int64_t max, int64_t *out)
{
    if (!json_is_integer(json) || json_integer_value(json) < min || json_integer_value(json) > max)
        return false;
    *out = json_integer_value(json);
    return true;
}

/* All 64 bits, which the integers of many readers of JSON have not. */
static json_t *write_bits(uint64_t value)
{
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}

static bool read_bits(const json_t *json, uint64_t *out)
{
    static const char digits[] = "0123456789abcdef";
    const char *text = json_string_value(json);
    uint64_t value = 0;
    if (text == NULL || json_string_length(json) != 16)
        return false;
    for (size_t i = 0; i < 16; i++) {
        const char *digit = strchr(digits, text[i]);
        if (digit == NULL)
            return false;
        value = value << 4 | (uint64_t)(digit - digits);
    }
    *out = value;
    return true;
}

static enum status fault(struct error *error, const char *field, const char *expected)
{
    return error_set(error, STATUS_INVALID, "\"%s\" of a request must be %s", field, expected);
}

/* ---- Sampling -------------------------------------------------------------------------------- */

/* Every number in struct sampling but the seed. */
static const struct {
    const char *name;
    size_t offset;
    bool whole; /* uint32_t; else float */
} settings[] = {
#define SETTING(field, whole)                                                                      \
    {                                                                                              \
#field, offsetof(struct sampling, field), whole                                            \
    }
    SETTING(temperature, false),
    SETTING(top_k, true),
    SETTING(top_p, false),
    SETTING(min_p, false),
    SETTING(typical_p, false),
    SETTING(repeat_last_n, true),
    SETTING(repeat_penalty, false),
    SETTING(presence_penalty, false),
    SETTING(frequency_penalty, false),
    SETTING(dry_multiplier, false),
    SETTING(dry_base, false),
    SETTING(dry_allowed_length, true),
    SETTING(dry_last_n, true),
    SETTING(xtc_probability, false),
    SETTING(xtc_threshold, false),
#undef SETTING
};

static json_t *write_setting(const struct sampling *sampling, size_t i)
{
    const char *at = (const char *)sampling + settings[i].offset;
    uint32_t whole;
    float value;
    if (settings[i].whole) {
        memcpy(&whole, at, sizeof whole);
        return json_integer(whole);
    }
    memcpy(&value, at, sizeof value);
    return request_float_write(value);
}

static bool read_setting(struct sampling *sampling, size_t i, const json_t *json)
{
    char *at = (char *)sampling + settings[i].offset;
    int64_t integer;
    float value;
    if (settings[i].whole) {
        if (!request_integer_read(json, 0, UINT32_MAX, &integer))
            return false;
        memcpy(at, &(uint32_t){(uint32_t)integer}, sizeof(uint32_t));
        return true;
    }
    if (!request_float_read(json, &value) || !isfinite(value))
        return false;
    memcpy(at, &value, sizeof value);
    return true;
}

static json_t *write_biases(const struct sampling *sampling)
{
    json_t *biases = json_array();
    for (size_t i = 0; i < sampling->n_biases && biases != NULL; i++) {
        const struct logit_bias *bias = &sampling->biases[i];
        if (json_array_append_new(
                biases, json_pack("[i, o]", bias->token, request_float_write(bias->bias))) == 0)
            continue;
        json_decref(biases);
        biases = NULL;
    }
    return biases;
}

static enum status read_biases(struct generation_request *request, const json_t *json,
                               struct error *error)
{
    size_t n = json_array_size(json);
    if (!json_is_array(json) || n > GENERATION_MAX_BIASES)
        return fault(error, "biases", "a list of [token, bias]");
    struct logit_bias *biases = arena_array(request->arena, n, sizeof *biases);
    if (biases == NULL && n > 0)
        return error_memory(error, n * sizeof *biases);
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(json, i);
        int64_t token;
        if (json_array_size(pair) != 2 ||
            !request_integer_read(json_array_get(pair, 0), 0, INT32_MAX, &token) ||
            !request_float_read(json_array_get(pair, 1), &biases[i].bias))
            return fault(error, "biases", "a list of [token, bias]");
        biases[i].token = (int32_t)token;
    }
    request->sampling.biases = biases;
    request->sampling.n_biases = n;
    return STATUS_OK;
}

static json_t *write_sampling(const struct sampling *sampling)
{
    json_t *json = json_object();
    bool good = json != NULL;
    for (size_t i = 0; i < ARRAY_COUNT(settings) && good; i++)
        good = request_put(json, settings[i].name, write_setting(sampling, i));
    if (good && request_put(json, "seed", write_bits(sampling->seed)) &&
        request_put(json, "biases", write_biases(sampling)))
        return json;
    json_decref(json);
    return NULL;
}

static enum status read_sampling(struct generation_request *request, const json_t *json,
                                 struct error *error)
{
    struct sampling *sampling = &request->sampling;
    if (json_object_size(json) != ARRAY_COUNT(settings) + 2)
        return fault(error, "sampling", "an object with every setting");
    for (size_t i = 0; i < ARRAY_COUNT(settings); i++)
        if (!read_setting(sampling, i, json_object_get(json, settings[i].name)))
            return fault(error, settings[i].name, "a number in its range");
    if (!read_bits(json_object_get(json, "seed"), &sampling->seed))
        return fault(error, "seed", "16 hexadecimal digits");
    return read_biases(request, json_object_get(json, "biases"), error);
}

/* ---- Flags and numbers ----------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
} flags[] = {
    {"ignore_end", offsetof(struct generation_request, ignore_end)},
    {"strip_space", offsetof(struct generation_request, strip_space)},
    {"show_control", offsetof(struct generation_request, show_control)},
    {"want_logprobs", offsetof(struct generation_request, want_logprobs)},
};

static enum status read_numbers(struct generation_request *request, const json_t *json,
                                struct error *error)
{
    int64_t max_tokens, n_top, n_drawn;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        const json_t *flag = json_object_get(json, flags[i].name);
        if (!json_is_boolean(flag))
            return fault(error, flags[i].name, "true or false");
        *(bool *)((char *)request + flags[i].offset) = json_is_true(flag);
    }
    if (!request_integer_read(json_object_get(json, "max_tokens"), 0, UINT32_MAX, &max_tokens))
        return fault(error, "max_tokens", "a number");
    if (!request_integer_read(json_object_get(json, "top_logprobs"), 0, GENERATION_MAX_TOP_LOGPROBS,
                              &n_top))
        return fault(error, "top_logprobs", "a number, at most 64");
    if (!request_integer_read(json_object_get(json, "drawn"), 0, (int64_t)request->n_tokens - 1,
                              &n_drawn))
        return fault(error, "drawn", "less than the number of tokens");
    if (!read_bits(json_object_get(json, "client"), &request->client))
        return fault(error, "client", "16 hexadecimal digits");
    request->max_tokens = (uint32_t)max_tokens;
    request->n_top_logprobs = (uint32_t)n_top;
    request->n_drawn = (size_t)n_drawn;
    return STATUS_OK;
}

/* ---- Stop texts and grammar ------------------------------------------------------------------ */

static json_t *write_stops(const struct generation_request *request)
{
    json_t *stops = json_array();
    for (size_t i = 0; i < request->n_stops && stops != NULL; i++) {
        if (json_array_append_new(stops, request_text_write(request->stops[i])) == 0)
            continue;
        json_decref(stops);
        stops = NULL;
    }
    return stops;
}

static enum status read_stops(struct generation_request *request, const json_t *json,
                              struct error *error)
{
    enum status status = STATUS_OK;
    size_t n = json_array_size(json);
    if (!json_is_array(json) || n > GENERATION_MAX_STOPS)
        return fault(error, "stops", "a list of at most 64 texts");
    struct buffer text = {0};
    struct view *stops = arena_array(request->arena, n, sizeof *stops);
    if (stops == NULL && n > 0)
        status = error_memory(error, n * sizeof *stops);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        if (!request_text_read(json_array_get(json, i), GENERATION_MAX_STOP_BYTES, &text) ||
            text.size == 0)
            status = fault(error, "stops", "a list of texts of 1 to 1024 bytes");
        else
            stops[i] = (struct view){arena_copy(request->arena, text.data, text.size), text.size};
        if (status == STATUS_OK && stops[i].data == NULL)
            status = error_memory(error, text.size);
    }
    request->stops = stops;
    request->n_stops = status == STATUS_OK ? n : 0;
    buffer_free(&text);
    return status;
}

static int append_json(const char *text, size_t size, void *context)
{
    return buffer_append(context, text, size) ? 0 : -1;
}

/* A JSON Schema may be nested deeper than a message; so it travels as text. */
static json_t *write_grammar(const json_t *asked)
{
    struct buffer text = {0};
    json_t *json = NULL;
    if (json_dump_callback(asked, append_json, &text, JSON_COMPACT) == 0)
        json = json_stringn(text.data, text.size);
    buffer_free(&text);
    return json;
}

static enum status read_grammar(struct generation_request *request, const json_t *json,
                                struct error *error)
{
    json_error_t where;
    if (json == NULL)
        return STATUS_OK;
    if (json_is_string(json))
        request->grammar_asked =
            json_loadb(json_string_value(json), json_string_length(json), 0, &where);
    return json_is_object(request->grammar_asked) ? STATUS_OK
                                                  : fault(error, "grammar", "an object, as text");
}

/* ---- Tokens and the whole -------------------------------------------------------------------- */

static json_t *write_tokens(const struct generation_request *request)
{
    json_t *tokens = json_array();
    for (size_t i = 0; i < request->n_tokens && tokens != NULL; i++) {
        if (json_array_append_new(tokens, json_integer(request->tokens[i])) == 0)
            continue;
        json_decref(tokens);
        tokens = NULL;
    }
    return tokens;
}

static enum status read_tokens(struct generation_request **out, const json_t *json,
                               struct error *error)
{
    size_t n = json_array_size(json);
    if (n == 0 || n > GENERATION_MAX_TOKENS)
        return fault(error, "tokens", "a list of at least one token id");
    struct generation_request *request = generation_request_open(NULL, 0);
    *out = request;
    if (request == NULL)
        return error_memory(error, sizeof *request);
    request->tokens = arena_array(request->arena, n, sizeof *request->tokens);
    if (request->tokens == NULL)
        return error_memory(error, n * sizeof *request->tokens);
    request->n_tokens = n;
    for (size_t i = 0; i < n; i++) {
        int64_t token;
        if (!request_integer_read(json_array_get(json, i), 0, INT32_MAX, &token))
            return fault(error, "tokens", "a list of token ids");
        request->tokens[i] = (int32_t)token;
    }
    return STATUS_OK;
}

json_t *generation_request_write(const struct generation_request *request)
{
    json_t *json = json_object();
    bool good = json != NULL && request_put(json, "tokens", write_tokens(request)) &&
                request_put(json, "drawn", json_integer((json_int_t)request->n_drawn)) &&
                request_put(json, "max_tokens", json_integer(request->max_tokens)) &&
                request_put(json, "top_logprobs", json_integer(request->n_top_logprobs)) &&
                request_put(json, "client", write_bits(request->client)) &&
                request_put(json, "stops", write_stops(request)) &&
                request_put(json, "sampling", write_sampling(&request->sampling));
    for (size_t i = 0; i < ARRAY_COUNT(flags) && good; i++)
        good = request_put(json, flags[i].name,
                           json_boolean(*(const bool *)((const char *)request + flags[i].offset)));
    if (good && request->grammar_asked != NULL)
        good = request_put(json, "grammar", write_grammar(request->grammar_asked));
    if (good)
        return json;
    json_decref(json);
    return NULL;
}

enum status generation_request_read(struct generation_request **out, const json_t *json,
                                    struct error *error)
{
    enum { N_FIELDS = 7 + ARRAY_COUNT(flags) };
    const json_t *grammar = json_object_get(json, "grammar");
    *out = NULL;
    /* A field that is not known here would be left out, and the answer be another. */
    if (json_object_size(json) != N_FIELDS + (grammar != NULL))
        return error_set(error, STATUS_INVALID, "a request must be an object with %d fields",
                         N_FIELDS);
    enum status status = read_tokens(out, json_object_get(json, "tokens"), error);
    if (status == STATUS_OK)
        status = read_numbers(*out, json, error);
    if (status == STATUS_OK)
        status = read_sampling(*out, json_object_get(json, "sampling"), error);
    if (status == STATUS_OK)
        status = read_stops(*out, json_object_get(json, "stops"), error);
    if (status == STATUS_OK)
        status = read_grammar(*out, grammar, error);
    if (status != STATUS_OK) {
        generation_request_close(*out);
        *out = NULL;
    }
    return status;
}
