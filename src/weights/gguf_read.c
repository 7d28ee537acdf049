/* Reads one GGUF file. Nothing in it is trusted: a count is compared with what the rest of the file
 * could hold before memory is taken for it, so memory stays in proportion to the file. */
#include "weights/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The fewest bytes that a key (name length, type, one byte of value) and a tensor (name length,
 * dimensions, one of them, format, offset) take. */
#define MIN_KEY_BYTES 13
#define MIN_TENSOR_BYTES 32

struct reader {
    struct gguf_part *part;
    struct arena *arena;
    struct cursor cursor;
    struct error *error;
    uint64_t alignment;
};

static enum status truncated(struct reader *r, const char *what, const char *name)
{
    return error_set(r->error, STATUS_INVALID,
                     "%s ends at byte %zu inside %s " GGUF_NAME_SHOWN
                     "; it is cut off or damaged, fetch it again",
                     r->part->name, r->part->size, what, name);
}

/* ---- What is not GGUF ------------------------------------------------------------------------ */

static const struct {
    const char *begin, *found;
} other_kinds[] = {
    {"<", "a web page"},
    {"version https://git-lfs", "a Git LFS pointer, not the file it stands for"},
    {"PK\x03\x04", "a zip archive or PyTorch checkpoint"},
    {"\x80\x02", "a Python pickle"},
    {"\x1f\x8b", "compressed with gzip"},
    {"\x28\xb5\x2f\xfd", "compressed with Zstandard"},
    {"lmgg", "a GGML file from before GGUF"},
    {"fmgg", "a GGML file from before GGUF"},
    {"tjgg", "a GGML file from before GGUF"},
    {"algg", "a GGML adapter from before GGUF"},
    {"FUGG", "a big-endian GGUF file"},
    {"{", "JSON"},
};

static enum status not_gguf(struct reader *r)
{
    const struct gguf_part *part = r->part;
    const char *found = NULL;
    if (part->size >= 9 && part->data[8] == '{')
        found = "a safetensors file";
    for (size_t i = 0; i < ARRAY_COUNT(other_kinds) && found == NULL; i++) {
        size_t length = strlen(other_kinds[i].begin);
        if (part->size >= length && memcmp(part->data, other_kinds[i].begin, length) == 0)
            found = other_kinds[i].found;
    }
    if (found != NULL)
        return error_set(r->error, STATUS_INVALID, "%s is %s, expected a GGUF file", part->name,
                         found);
    if (part->size < 24)
        return error_set(r->error, STATUS_INVALID,
                         "%s has %zu bytes, too few for a GGUF file; fetch it again", part->name,
                         part->size);
    return error_set(r->error, STATUS_INVALID,
                     "%s is not a GGUF file: it begins with bytes %02x %02x %02x %02x, expected "
                     "\"GGUF\"",
                     part->name, part->data[0], part->data[1], part->data[2], part->data[3]);
}

static enum status check_version(struct reader *r, uint32_t version)
{
    const char *name = r->part->name;
    if (version == 2 || version == 3)
        return STATUS_OK;
    if (version == 1)
        return error_set(r->error, STATUS_UNSUPPORTED,
                         "%s has GGUF version 1, expected 2 or 3; convert the model again", name);
    if (version != 0 && (version & 0xffff) == 0)
        return error_set(r->error, STATUS_UNSUPPORTED,
                         "%s is a big-endian GGUF file, expected a little-endian one", name);
    return error_set(r->error, STATUS_UNSUPPORTED,
                     "%s has GGUF version %" PRIu32 ", expected 2 or 3", name, version);
}

/* ---- Keys ------------------------------------------------------------------------------------ */

static bool name_printable(const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return utf8_valid(name, size);
}

/* Reads the name of a key or tensor, kind, number index (from 1); previous is the one before it. */
static enum status read_name(struct reader *r, const char *kind, size_t index, const char *previous,
                             const char **out)
{
    uint64_t length = cursor_u64(&r->cursor);
    if (!r->cursor.failed && length > GGUF_MAX_NAME)
        return error_set(r->error, STATUS_INVALID,
                         "%s: the name of %s %zu (after " GGUF_NAME_SHOWN ") has %" PRIu64
                         " bytes, expected at most %d",
                         r->part->name, kind, index, previous, length, GGUF_MAX_NAME);
    const char *bytes = cursor_bytes(&r->cursor, (size_t)length);
    if (r->cursor.failed)
        return error_set(r->error, STATUS_INVALID,
                         "%s ends at byte %zu inside the name of %s %zu (after " GGUF_NAME_SHOWN
                         "); it is cut off or damaged, fetch it again",
                         r->part->name, r->part->size, kind, index, previous);
    if (length == 0 || !name_printable(bytes, (size_t)length))
        return error_set(r->error, STATUS_INVALID,
                         "%s: the name of %s %zu (after " GGUF_NAME_SHOWN
                         ") is empty or not text; the file is damaged",
                         r->part->name, kind, index, previous);
    char *copy = arena_copy(r->arena, bytes, (size_t)length);
    *out = copy;
    return copy != NULL ? STATUS_OK : error_memory(r->error, (size_t)length);
}

static enum status read_type(struct reader *r, const char *key, const char *what,
                             enum weights_type *out)
{
    uint32_t number = cursor_u32(&r->cursor);
    if (r->cursor.failed)
        return truncated(r, "key", key);
    if (number > WEIGHTS_F64)
        return error_set(r->error, STATUS_INVALID,
                         "%s: key " GGUF_NAME_SHOWN " has %s type %" PRIu32
                         ", expected one of 0 to 12",
                         r->part->name, key, what, number);
    *out = (enum weights_type)number;
    return STATUS_OK;
}

static enum status read_value(struct reader *r, struct gguf_value *value)
{
    size_t begin = r->cursor.offset;
    enum status status = read_type(r, value->key, "value", &value->type);
    if (status != STATUS_OK)
        return status;
    value->count = 1;
    value->is_array = value->type == WEIGHTS_ARRAY;
    if (value->is_array) {
        status = read_type(r, value->key, "element", &value->type);
        if (status != STATUS_OK)
            return status;
        if (value->type == WEIGHTS_ARRAY)
            return error_set(r->error, STATUS_UNSUPPORTED,
                             "%s: key " GGUF_NAME_SHOWN
                             " is an array of arrays, expected numbers or strings in it",
                             r->part->name, value->key);
        value->count = cursor_u64(&r->cursor);
    }
    size_t element_bytes = gguf_type_bytes(value->type);
    size_t least_bytes = element_bytes > 0 ? element_bytes : 8;
    value->elements = r->part->data + r->cursor.offset;
    if (r->cursor.failed || value->count > cursor_left(&r->cursor) / least_bytes) {
        if (value->is_array && !r->cursor.failed)
            return error_set(r->error, STATUS_INVALID,
                             "%s: key " GGUF_NAME_SHOWN " is an array of %" PRIu64
                             " elements, but the file ends %zu bytes later",
                             r->part->name, value->key, value->count, cursor_left(&r->cursor));
        return truncated(r, "key", value->key);
    }
    if (element_bytes > 0)
        cursor_bytes(&r->cursor, (size_t)value->count * element_bytes);
    else
        for (uint64_t i = 0; i < value->count && !r->cursor.failed; i++) {
            uint64_t length = cursor_u64(&r->cursor);
            if (length > cursor_left(&r->cursor))
                return error_set(r->error, STATUS_INVALID,
                                 "%s: string %" PRIu64 " of key " GGUF_NAME_SHOWN " has %" PRIu64
                                 " bytes, but the file ends %zu bytes later",
                                 r->part->name, i, value->key, length, cursor_left(&r->cursor));
            cursor_bytes(&r->cursor, (size_t)length);
        }
    if (r->cursor.failed)
        return truncated(r, "key", value->key);
    value->raw = r->part->data + begin;
    value->raw_size = r->cursor.offset - begin;
    return STATUS_OK;
}

static enum status check_alignment(struct reader *r, const struct gguf_value *value)
{
    uint64_t n;
    if (!gguf_value_unsigned(value, UINT64_MAX, &n))
        return error_set(r->error, STATUS_INVALID,
                         "%s: key general.alignment is not a number of bytes", r->part->name);
    if (n < GGUF_MIN_ALIGNMENT || n > GGUF_MAX_ALIGNMENT || (n & (n - 1)) != 0)
        return error_set(r->error, STATUS_INVALID,
                         "%s: key general.alignment is %" PRIu64
                         ", expected a power of two from %d to %u",
                         r->part->name, n, GGUF_MIN_ALIGNMENT, GGUF_MAX_ALIGNMENT);
    r->alignment = n;
    return STATUS_OK;
}

static enum status read_keys(struct reader *r)
{
    struct gguf_part *part = r->part;
    part->values = arena_array(r->arena, part->value_count, sizeof *part->values);
    if (part->values == NULL && part->value_count > 0)
        return error_memory(r->error, part->value_count * sizeof *part->values);
    const char *previous = "the header";
    for (size_t i = 0; i < part->value_count; i++) {
        struct gguf_value *value = &part->values[i];
        enum status status = read_name(r, "key", i + 1, previous, &value->key);
        if (status == STATUS_OK)
            status = read_value(r, value);
        if (status == STATUS_OK && strcmp(value->key, "general.alignment") == 0)
            status = check_alignment(r, value);
        if (status != STATUS_OK)
            return status;
        previous = value->key;
    }
    return STATUS_OK;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

static enum status read_shape(struct reader *r, struct weights_tensor *tensor)
{
    const char *file = r->part->name;
    tensor->n_dims = cursor_u32(&r->cursor);
    if (r->cursor.failed)
        return truncated(r, "tensor", tensor->name);
    if (tensor->n_dims < 1 || tensor->n_dims > WEIGHTS_MAX_DIMS)
        return error_set(r->error, STATUS_INVALID,
                         "%s: tensor " GGUF_NAME_SHOWN " has %" PRIu32
                         " dimensions, expected 1 to %d",
                         file, tensor->name, tensor->n_dims, WEIGHTS_MAX_DIMS);
    for (uint32_t d = 0; d < WEIGHTS_MAX_DIMS; d++)
        tensor->shape[d] = d < tensor->n_dims ? cursor_u64(&r->cursor) : 1;
    if (r->cursor.failed)
        return truncated(r, "tensor", tensor->name);
    for (uint32_t d = 0; d < tensor->n_dims; d++)
        if (tensor->shape[d] == 0)
            return error_set(r->error, STATUS_INVALID,
                             "%s: dimension %" PRIu32 " of tensor " GGUF_NAME_SHOWN
                             " is 0, expected at least 1",
                             file, d, tensor->name);
    return STATUS_OK;
}

static enum status read_format(struct reader *r, struct weights_tensor *tensor)
{
    uint32_t number = cursor_u32(&r->cursor);
    const char *format_name;
    if (r->cursor.failed)
        return truncated(r, "tensor", tensor->name);
    if (gguf_format_find(number, &tensor->format, &format_name))
        return STATUS_OK;
    if (format_name != NULL)
        return error_set(r->error, STATUS_UNSUPPORTED,
                         "%s: format %s of tensor " GGUF_NAME_SHOWN
                         " is not supported; take the model in another format, such as Q4_K_M",
                         r->part->name, format_name, tensor->name);
    return error_set(r->error, STATUS_UNSUPPORTED,
                     "%s: format number %" PRIu32 " of tensor " GGUF_NAME_SHOWN " is not known",
                     r->part->name, number, tensor->name);
}

/* Fills size_bytes from shape and format. */
static enum status measure_tensor(struct reader *r, struct weights_tensor *tensor)
{
    const struct quant_info *info = quant_info(tensor->format);
    if (tensor->shape[0] % info->block_len != 0)
        return error_set(r->error, STATUS_INVALID,
                         "%s: rows of tensor " GGUF_NAME_SHOWN " have %" PRIu64
                         " numbers, expected a multiple of %" PRIu32 " for format %s",
                         r->part->name, tensor->name, tensor->shape[0], info->block_len,
                         info->name);
    size_t bytes = info->block_bytes;
    bool fits = tensor->shape[0] <= SIZE_MAX &&
                size_mul(bytes, (size_t)(tensor->shape[0] / info->block_len), &bytes);
    for (uint32_t d = 1; d < WEIGHTS_MAX_DIMS && fits; d++)
        fits = tensor->shape[d] <= SIZE_MAX && size_mul(bytes, (size_t)tensor->shape[d], &bytes);
    tensor->size_bytes = bytes;
    if (fits) {
        tensor->row_bytes = quant_row_bytes(tensor->format, (size_t)tensor->shape[0]);
        tensor->matrix_bytes = tensor->row_bytes * (size_t)tensor->shape[1];
    }
    if (!fits || bytes > r->part->size)
        return error_set(r->error, STATUS_INVALID,
                         "%s: tensor " GGUF_NAME_SHOWN " of shape %" PRIu64 " x %" PRIu64
                         " x %" PRIu64 " x %" PRIu64
                         " (%s) cannot lie in a file of %zu bytes; it is "
                         "cut off or damaged",
                         r->part->name, tensor->name, tensor->shape[0], tensor->shape[1],
                         tensor->shape[2], tensor->shape[3], info->name, r->part->size);
    return STATUS_OK;
}

/* Offsets are kept until the data's beginning is known, which is after the last tensor. */
static enum status read_tensors(struct reader *r, uint64_t *offsets)
{
    struct gguf_part *part = r->part;
    const char *previous = "the keys";
    for (size_t i = 0; i < part->tensor_count; i++) {
        struct weights_tensor *tensor = &part->tensors[i];
        enum status status = read_name(r, "tensor", i + 1, previous, &tensor->name);
        if (status == STATUS_OK)
            status = read_shape(r, tensor);
        if (status == STATUS_OK)
            status = read_format(r, tensor);
        if (status == STATUS_OK)
            status = measure_tensor(r, tensor);
        if (status != STATUS_OK)
            return status;
        offsets[i] = cursor_u64(&r->cursor);
        if (r->cursor.failed)
            return truncated(r, "tensor", tensor->name);
        if (offsets[i] % r->alignment != 0)
            return error_set(r->error, STATUS_INVALID,
                             "%s: tensor " GGUF_NAME_SHOWN " is at offset %" PRIu64
                             ", expected a multiple of %" PRIu64,
                             part->name, tensor->name, offsets[i], r->alignment);
        previous = tensor->name;
    }
    return STATUS_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct weights_tensor *x = *(struct weights_tensor *const *)a;
    const struct weights_tensor *y = *(struct weights_tensor *const *)b;
    return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

static enum status check_overlap(struct reader *r)
{
    const struct gguf_part *part = r->part;
    const struct weights_tensor **places = calloc(part->tensor_count, sizeof *places);
    if (places == NULL)
        return error_memory(r->error, part->tensor_count * sizeof *places);
    for (size_t i = 0; i < part->tensor_count; i++)
        places[i] = &part->tensors[i];
    qsort(places, part->tensor_count, sizeof *places, compare_places);
    enum status status = STATUS_OK;
    for (size_t i = 1; i < part->tensor_count && status == STATUS_OK; i++) {
        const struct weights_tensor *before = places[i - 1];
        uintptr_t gap = (uintptr_t)places[i]->data - (uintptr_t)before->data;
        if (gap < before->size_bytes)
            status = error_set(r->error, STATUS_INVALID,
                               "%s: tensors " GGUF_NAME_SHOWN " and " GGUF_NAME_SHOWN " overlap",
                               part->name, before->name, places[i]->name);
    }
    free(places);
    return status;
}

static enum status place_tensors(struct reader *r, const uint64_t *offsets)
{
    struct gguf_part *part = r->part;
    size_t header_bytes = r->cursor.offset;
    size_t padding = (size_t)(r->alignment - header_bytes % r->alignment) % (size_t)r->alignment;
    size_t data_bytes = part->size - header_bytes;
    data_bytes -= MIN(padding, data_bytes);
    const uint8_t *data = part->data + (part->size - data_bytes);
    for (size_t i = 0; i < part->tensor_count; i++) {
        struct weights_tensor *tensor = &part->tensors[i];
        if (offsets[i] > data_bytes || tensor->size_bytes > data_bytes - offsets[i])
            return error_set(r->error, STATUS_INVALID,
                             "%s: tensor " GGUF_NAME_SHOWN " takes %" PRIu64
                             " bytes at offset %" PRIu64
                             ", but the file has %zu bytes of data; it is cut off, fetch it again",
                             part->name, tensor->name, tensor->size_bytes, offsets[i], data_bytes);
        tensor->data = data + offsets[i];
    }
    return check_overlap(r);
}

static enum status check_count(struct reader *r, uint64_t count, size_t least_bytes,
                               const char *kind, size_t *out)
{
    size_t most = cursor_left(&r->cursor) / least_bytes;
    *out = (size_t)count;
    if (count <= most)
        return STATUS_OK;
    return error_set(r->error, STATUS_INVALID,
                     "%s says it has %" PRIu64 " %s, but its %zu bytes hold at most %zu; it is cut "
                     "off or damaged",
                     r->part->name, count, kind, r->part->size, most);
}

enum status gguf_read_part(struct gguf_part *part, struct arena *arena, struct error *error)
{
    struct reader r = {
        .part = part,
        .arena = arena,
        .cursor = cursor_over(part->data, part->size),
        .error = error,
        .alignment = GGUF_ALIGNMENT,
    };
    if (part->size == 0)
        return error_set(error, STATUS_INVALID, "%s is empty, expected a GGUF file", part->name);
    if (part->size < 24 || memcmp(part->data, GGUF_MAGIC, 4) != 0)
        return not_gguf(&r);
    cursor_bytes(&r.cursor, 4);
    enum status status = check_version(&r, cursor_u32(&r.cursor));
    if (status != STATUS_OK)
        return status;
    uint64_t tensor_count = cursor_u64(&r.cursor);
    uint64_t key_count = cursor_u64(&r.cursor);
    status = check_count(&r, key_count, MIN_KEY_BYTES, "keys", &part->value_count);
    if (status == STATUS_OK)
        status = check_count(&r, tensor_count, MIN_TENSOR_BYTES, "tensors", &part->tensor_count);
    if (status == STATUS_OK)
        status = read_keys(&r);
    if (status != STATUS_OK || part->tensor_count == 0)
        return status;
    part->tensors = arena_array(arena, part->tensor_count, sizeof *part->tensors);
    uint64_t *offsets = calloc(part->tensor_count, sizeof *offsets);
    if (part->tensors == NULL || offsets == NULL)
        status = error_memory(error, part->tensor_count * sizeof *part->tensors);
    if (status == STATUS_OK)
        status = read_tensors(&r, offsets);
    if (status == STATUS_OK)
        status = place_tensors(&r, offsets);
    free(offsets);
    return status;
}
