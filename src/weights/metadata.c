/* Typed reads of metadata. A value keeps the type its file gave it; each read converts one that
 * fits and names key, type and range where it does not. */
#include "weights/gguf.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const type_names[] = {
    [WEIGHTS_U8] = "8-bit unsigned integer",
    [WEIGHTS_I8] = "8-bit integer",
    [WEIGHTS_U16] = "16-bit unsigned integer",
    [WEIGHTS_I16] = "16-bit integer",
    [WEIGHTS_U32] = "32-bit unsigned integer",
    [WEIGHTS_I32] = "32-bit integer",
    [WEIGHTS_F32] = "32-bit float",
    [WEIGHTS_BOOL] = "boolean",
    [WEIGHTS_STRING] = "string",
    [WEIGHTS_ARRAY] = "array",
    [WEIGHTS_U64] = "64-bit unsigned integer",
    [WEIGHTS_I64] = "64-bit integer",
    [WEIGHTS_F64] = "64-bit float",
};

/* ---- Elements -------------------------------------------------------------------------------- */

/* An integer of any type: its magnitude, and whether it is below zero. */
struct integer {
    uint64_t magnitude;
    bool negative;
};

static struct cursor element_cursor(const struct gguf_value *value, uint64_t index)
{
    size_t bytes = gguf_type_bytes(value->type);
    return cursor_over(value->elements + (size_t)index * bytes, bytes);
}

static bool element_integer(const struct gguf_value *value, uint64_t index, struct integer *out)
{
    int64_t number;
    struct cursor c = element_cursor(value, index);
    switch (value->type) {
    case WEIGHTS_U8:
        *out = (struct integer){cursor_u8(&c), false};
        return true;
    case WEIGHTS_U16:
        *out = (struct integer){cursor_u16(&c), false};
        return true;
    case WEIGHTS_U32:
        *out = (struct integer){cursor_u32(&c), false};
        return true;
    case WEIGHTS_U64:
        *out = (struct integer){cursor_u64(&c), false};
        return true;
    case WEIGHTS_I8:
        number = (int8_t)cursor_u8(&c);
        break;
    case WEIGHTS_I16:
        number = (int16_t)cursor_u16(&c);
        break;
    case WEIGHTS_I32:
        number = (int32_t)cursor_u32(&c);
        break;
    case WEIGHTS_I64:
        number = (int64_t)cursor_u64(&c);
        break;
    default:
        return false;
    }
    out->negative = number < 0;
    out->magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    return true;
}

static bool element_float(const struct gguf_value *value, uint64_t index, double *out)
{
    struct cursor c = element_cursor(value, index);
    if (value->type == WEIGHTS_F32) {
        uint32_t bits = cursor_u32(&c);
        float number;
        memcpy(&number, &bits, sizeof number);
        *out = number;
        return true;
    }
    if (value->type == WEIGHTS_F64) {
        uint64_t bits = cursor_u64(&c);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    return false;
}

/* Walks the strings of a value: call with a cursor over the elements, once per string. */
static struct view next_string(struct cursor *cursor)
{
    struct view text;
    text.size = (size_t)cursor_u64(cursor);
    text.data = cursor_bytes(cursor, text.size);
    return text;
}

static struct cursor elements_cursor(const struct gguf_value *value)
{
    return cursor_over(value->elements, (size_t)(value->raw + value->raw_size - value->elements));
}

bool gguf_value_unsigned(const struct gguf_value *value, uint64_t limit, uint64_t *out)
{
    struct integer number;
    if (value->is_array || !element_integer(value, 0, &number) || number.negative ||
        number.magnitude > limit)
        return false;
    *out = number.magnitude;
    return true;
}

/* ---- Errors ---------------------------------------------------------------------------------- */

static enum status wrong_type(const struct weights *weights, const struct gguf_value *value,
                              const char *expected, struct error *error)
{
    return error_set(error, STATUS_INVALID,
                     "%s: key " GGUF_NAME_SHOWN " has type %s%s%s, expected %s",
                     weights->parts[0].name, value->key, value->is_array ? "array of " : "",
                     type_names[value->type], value->is_array ? "s" : "", expected);
}

static enum status out_of_range(const struct weights *weights, const struct gguf_value *value,
                                struct integer found, const char *low, uint64_t high,
                                struct error *error)
{
    return error_set(error, STATUS_INVALID,
                     "%s: key " GGUF_NAME_SHOWN " %s %s%" PRIu64 ", expected %s to %" PRIu64,
                     weights->parts[0].name, value->key, value->is_array ? "holds" : "is",
                     found.negative ? "-" : "", found.magnitude, low, high);
}

/* ---- One conversion per target type ---------------------------------------------------------- */

/* Reads one element into *out; expected is what the sentence says. */
typedef enum status convert_fn(const struct weights *weights, const struct gguf_value *value,
                               uint64_t index, void *out, const char *expected,
                               struct error *error);

static enum status convert_unsigned(const struct weights *weights, const struct gguf_value *value,
                                    uint64_t index, uint64_t limit, uint64_t *out,
                                    const char *expected, struct error *error)
{
    struct integer number;
    if (!element_integer(value, index, &number))
        return wrong_type(weights, value, expected, error);
    if (number.negative || number.magnitude > limit)
        return out_of_range(weights, value, number, "0", limit, error);
    *out = number.magnitude;
    return STATUS_OK;
}

static enum status convert_u64(const struct weights *weights, const struct gguf_value *value,
                               uint64_t index, void *out, const char *expected, struct error *error)
{
    return convert_unsigned(weights, value, index, UINT64_MAX, out, expected, error);
}

static enum status convert_u32(const struct weights *weights, const struct gguf_value *value,
                               uint64_t index, void *out, const char *expected, struct error *error)
{
    uint64_t wide = 0;
    enum status status =
        convert_unsigned(weights, value, index, UINT32_MAX, &wide, expected, error);
    if (status == STATUS_OK)
        *(uint32_t *)out = (uint32_t)wide;
    return status;
}

static enum status convert_i32(const struct weights *weights, const struct gguf_value *value,
                               uint64_t index, void *out, const char *expected, struct error *error)
{
    struct integer number;
    if (!element_integer(value, index, &number))
        return wrong_type(weights, value, expected, error);
    if (number.magnitude > (uint64_t)INT32_MAX + number.negative)
        return out_of_range(weights, value, number, "-2147483648", INT32_MAX, error);
    *(int32_t *)out =
        (int32_t)(number.negative ? -(int64_t)number.magnitude : (int64_t)number.magnitude);
    return STATUS_OK;
}

static enum status convert_f32(const struct weights *weights, const struct gguf_value *value,
                               uint64_t index, void *out, const char *expected, struct error *error)
{
    double number;
    if (!element_float(value, index, &number))
        return wrong_type(weights, value, expected, error);
    if (isfinite(number) && fabs(number) > FLT_MAX)
        return error_set(error, STATUS_INVALID,
                         "%s: key " GGUF_NAME_SHOWN " %s %g, expected at most %g",
                         weights->parts[0].name, value->key, value->is_array ? "holds" : "is",
                         number, (double)FLT_MAX);
    *(float *)out = (float)number;
    return STATUS_OK;
}

static enum status convert_bool(const struct weights *weights, const struct gguf_value *value,
                                uint64_t index, void *out, const char *expected,
                                struct error *error)
{
    if (value->type != WEIGHTS_BOOL)
        return wrong_type(weights, value, expected, error);
    *(bool *)out = value->elements[index] != 0;
    return STATUS_OK;
}

static enum status read_scalar(const struct weights *weights, const char *key, convert_fn *convert,
                               void *out, const char *expected, struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    if (value == NULL)
        return STATUS_OK;
    if (value->is_array)
        return wrong_type(weights, value, expected, error);
    return convert(weights, value, 0, out, expected, error);
}

static enum status read_array(const struct weights *weights, const char *key, convert_fn *convert,
                              struct arena *arena, void **out, size_t element_bytes, size_t *count,
                              const char *expected, struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    *out = NULL;
    *count = 0;
    if (value == NULL)
        return STATUS_OK;
    if (!value->is_array)
        return wrong_type(weights, value, expected, error);
    size_t n = (size_t)value->count;
    char *elements = arena_array(arena, n, element_bytes);
    if (elements == NULL && n > 0)
        return error_memory(error, n * element_bytes);
    for (size_t i = 0; i < n; i++) {
        enum status status =
            convert(weights, value, i, elements + i * element_bytes, expected, error);
        if (status != STATUS_OK)
            return status;
    }
    *out = elements;
    *count = n;
    return STATUS_OK;
}

/* ---- The public reads ------------------------------------------------------------------------ */

const struct gguf_value *weights_value(const struct weights *weights, const char *key)
{
    size_t position;
    return name_index_find(&weights->value_index, key, &position) ? &weights->values[position]
                                                                  : NULL;
}

size_t weights_key_count(const struct weights *weights)
{
    return weights->value_count;
}

const char *weights_key_at(const struct weights *weights, size_t index)
{
    return weights->values[index].key;
}

bool weights_has(const struct weights *weights, const char *key)
{
    return weights_value(weights, key) != NULL;
}

enum status weights_u32(const struct weights *weights, const char *key, uint32_t *out,
                        struct error *error)
{
    return read_scalar(weights, key, convert_u32, out, "an integer", error);
}

enum status weights_u64(const struct weights *weights, const char *key, uint64_t *out,
                        struct error *error)
{
    return read_scalar(weights, key, convert_u64, out, "an integer", error);
}

enum status weights_f32(const struct weights *weights, const char *key, float *out,
                        struct error *error)
{
    return read_scalar(weights, key, convert_f32, out, "a float", error);
}

enum status weights_bool(const struct weights *weights, const char *key, bool *out,
                         struct error *error)
{
    return read_scalar(weights, key, convert_bool, out, "a boolean", error);
}

enum status weights_string(const struct weights *weights, const char *key, struct view *out,
                           struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    if (value == NULL)
        return STATUS_OK;
    if (value->is_array || value->type != WEIGHTS_STRING)
        return wrong_type(weights, value, "a string", error);
    struct cursor cursor = elements_cursor(value);
    *out = next_string(&cursor);
    return STATUS_OK;
}

enum status weights_u32_each(const struct weights *weights, const char *key, uint32_t *out,
                             size_t count, struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    if (value == NULL)
        return STATUS_OK;
    if (value->is_array && value->count < count)
        return error_set(error, STATUS_INVALID,
                         "%s: key " GGUF_NAME_SHOWN " has %" PRIu64 " elements, expected %zu",
                         weights->parts[0].name, value->key, value->count, count);
    enum status status = STATUS_OK;
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
        status = convert_u32(weights, value, value->is_array ? i : 0, &out[i],
                             "an integer or an array of them", error);
    return status;
}

enum status weights_strings(const struct weights *weights, const char *key, struct arena *arena,
                            struct view **out, size_t *count, struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    *out = NULL;
    *count = 0;
    if (value == NULL)
        return STATUS_OK;
    if (!value->is_array || value->type != WEIGHTS_STRING)
        return wrong_type(weights, value, "an array of strings", error);
    size_t n = (size_t)value->count;
    struct view *strings = arena_array(arena, n, sizeof *strings);
    if (strings == NULL && n > 0)
        return error_memory(error, n * sizeof *strings);
    struct cursor cursor = elements_cursor(value);
    for (size_t i = 0; i < n; i++)
        strings[i] = next_string(&cursor);
    *out = strings;
    *count = n;
    return STATUS_OK;
}

enum status weights_f32_array(const struct weights *weights, const char *key, struct arena *arena,
                              float **out, size_t *count, struct error *error)
{
    void *elements;
    enum status status = read_array(weights, key, convert_f32, arena, &elements, sizeof **out,
                                    count, "an array of floats", error);
    *out = elements;
    return status;
}

enum status weights_i32_array(const struct weights *weights, const char *key, struct arena *arena,
                              int32_t **out, size_t *count, struct error *error)
{
    void *elements;
    enum status status = read_array(weights, key, convert_i32, arena, &elements, sizeof **out,
                                    count, "an array of integers", error);
    *out = elements;
    return status;
}

enum status weights_bytes(const struct weights *weights, const char *key, struct view *out,
                          struct error *error)
{
    const struct gguf_value *value = weights_value(weights, key);
    if (value == NULL)
        return STATUS_OK;
    if (!value->is_array || (value->type != WEIGHTS_U8 && value->type != WEIGHTS_I8))
        return wrong_type(weights, value, "an array of bytes", error);
    *out = (struct view){(const char *)value->elements, (size_t)value->count};
    return STATUS_OK;
}

/* ---- As text --------------------------------------------------------------------------------- */

/* Arrays of more numbers than this are told by their length. */
#define ELEMENTS_SHOWN 16

static bool element_text(const struct gguf_value *value, uint64_t index, struct buffer *out)
{
    struct integer number;
    double real;
    if (value->type == WEIGHTS_BOOL)
        return buffer_append_text(out, value->elements[index] != 0 ? "true" : "false");
    if (element_integer(value, index, &number))
        return buffer_printf(out, "%s%" PRIu64, number.negative ? "-" : "", number.magnitude);
    if (element_float(value, index, &real))
        return buffer_printf(out, "%.*g", value->type == WEIGHTS_F32 ? 7 : 15, real);
    return false;
}

bool weights_value_text(const struct weights *weights, const char *key, struct buffer *out)
{
    const struct gguf_value *value = weights_value(weights, key);
    if (value == NULL)
        return false;
    if (value->type == WEIGHTS_STRING) {
        if (value->is_array)
            return buffer_printf(out, "[%" PRIu64 " strings]", value->count);
        struct cursor cursor = elements_cursor(value);
        struct view text = next_string(&cursor);
        return buffer_append(out, text.data, text.size);
    }
    if (!value->is_array)
        return element_text(value, 0, out);
    if (value->count > ELEMENTS_SHOWN)
        return buffer_printf(out, "[%" PRIu64 " numbers]", value->count);
    bool done = buffer_append_text(out, "[");
    for (uint64_t i = 0; i < value->count && done; i++)
        done = (i == 0 || buffer_append_text(out, ", ")) && element_text(value, i, out);
    return done && buffer_append_text(out, "]");
}
