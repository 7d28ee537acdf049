/* Writes a GGUF v3 file. Keys and shapes are collected in memory and written with the first byte of
 * data, when all tensors are known; from then on only data is taken. */
#include "weights/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct declared {
    const char *name;
    enum quant_format format;
    uint32_t n_dims;
    uint64_t shape[WEIGHTS_MAX_DIMS];
    uint64_t size_bytes;
};

struct weights_writer {
    struct file_writer *file;
    struct arena *arena;
    struct buffer keys;      /* their bytes as they go into the file */
    struct buffer key_names; /* const char *[key_count] */
    struct buffer tensors;   /* struct declared[tensor_count] */
    size_t key_count, tensor_count;
    uint64_t alignment;
    bool header_written;
    size_t current;    /* the tensor being written */
    uint64_t position; /* bytes of it that are written */
};

static const struct declared *declared_at(const struct weights_writer *writer, size_t index)
{
    return (const struct declared *)(const void *)writer->tensors.data + index;
}

bool gguf_put_number(struct buffer *out, uint64_t value, size_t bytes)
{
    uint8_t little[8];
    for (size_t i = 0; i < bytes; i++)
        little[i] = (uint8_t)(value >> (8 * i));
    return buffer_append(out, little, bytes);
}

bool gguf_put_string(struct buffer *out, const char *text)
{
    size_t size = strlen(text);
    return gguf_put_number(out, size, 8) && buffer_append(out, text, size);
}

enum status weights_writer_open(struct weights_writer **out, const char *path, struct error *error)
{
    *out = NULL;
    struct weights_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL)
        return error_memory(error, sizeof *writer);
    writer->alignment = GGUF_ALIGNMENT;
    writer->arena = arena_open(0);
    enum status status = writer->arena == NULL ? error_memory(error, sizeof(void *))
                                               : file_create(&writer->file, path, error);
    if (status == STATUS_OK)
        *out = writer;
    else
        weights_writer_discard(writer);
    return status;
}

void weights_writer_discard(struct weights_writer *writer)
{
    if (writer == NULL)
        return;
    file_discard(writer->file);
    arena_close(writer->arena);
    buffer_free(&writer->keys);
    buffer_free(&writer->key_names);
    buffer_free(&writer->tensors);
    free(writer);
}

/* ---- Keys and shapes ------------------------------------------------------------------------- */

static enum status check_name(const struct weights_writer *writer, const char *kind,
                              const char *name, struct error *error)
{
    if (writer->header_written)
        return error_set(error, STATUS_INVALID,
                         "%s " GGUF_NAME_SHOWN " comes after the data has begun", kind, name);
    if (name[0] == '\0' || strlen(name) > GGUF_MAX_NAME)
        return error_set(error, STATUS_INVALID,
                         "the name of %s " GGUF_NAME_SHOWN " has %zu bytes, expected 1 to %d", kind,
                         name, strlen(name), GGUF_MAX_NAME);
    return STATUS_OK;
}

/* The alignment that the file announces is the one its data gets. */
static enum status take_alignment(struct weights_writer *writer, const uint8_t *raw, size_t size,
                                  struct error *error)
{
    struct cursor cursor = cursor_over(raw, size);
    struct gguf_value value = {.type = (enum weights_type)cursor_u32(&cursor), .elements = raw + 4};
    uint64_t n;
    if (value.type > WEIGHTS_F64 || value.type == WEIGHTS_ARRAY ||
        !gguf_value_unsigned(&value, GGUF_MAX_ALIGNMENT, &n) || n < GGUF_MIN_ALIGNMENT ||
        (n & (n - 1)) != 0)
        return error_set(error, STATUS_INVALID,
                         "key general.alignment must be a power of two from %d to %u",
                         GGUF_MIN_ALIGNMENT, GGUF_MAX_ALIGNMENT);
    writer->alignment = n;
    return STATUS_OK;
}

/* Adds one key whose type and value are raw[size], as a file holds them. */
static enum status put_key(struct weights_writer *writer, const char *key, const void *raw,
                           size_t size, struct error *error)
{
    enum status status = check_name(writer, "key", key, error);
    if (status == STATUS_OK && strcmp(key, "general.alignment") == 0)
        status = take_alignment(writer, raw, size, error);
    if (status != STATUS_OK)
        return status;
    const char *name = arena_copy(writer->arena, key, strlen(key));
    if (name == NULL || !gguf_put_string(&writer->keys, key) ||
        !buffer_append(&writer->keys, raw, size) ||
        !buffer_append(&writer->key_names, &name, sizeof name))
        return error_memory(error, size);
    writer->key_count++;
    return STATUS_OK;
}

enum status weights_writer_copy_key(struct weights_writer *writer, const struct weights *from,
                                    const char *key, struct error *error)
{
    const struct gguf_value *value = weights_value(from, key);
    if (value == NULL)
        return error_set(error, STATUS_NOT_FOUND, "%s has no key " GGUF_NAME_SHOWN " to copy",
                         from->parts[0].name, key);
    return put_key(writer, key, value->raw, value->raw_size, error);
}

/* One key whose value takes bytes, or is text where that is given. */
static enum status put_value(struct weights_writer *writer, const char *key, enum weights_type type,
                             uint64_t value, const char *text, struct error *error)
{
    struct buffer raw = {0};
    bool done = gguf_put_number(&raw, type, 4) &&
                (text != NULL ? gguf_put_string(&raw, text)
                              : gguf_put_number(&raw, value, gguf_type_bytes(type)));
    enum status status =
        done ? put_key(writer, key, raw.data, raw.size, error) : error_memory(error, raw.size);
    buffer_free(&raw);
    return status;
}

enum status weights_writer_u32(struct weights_writer *writer, const char *key, uint32_t value,
                               struct error *error)
{
    return put_value(writer, key, WEIGHTS_U32, value, NULL, error);
}

enum status weights_writer_string(struct weights_writer *writer, const char *key, const char *value,
                                  struct error *error)
{
    return put_value(writer, key, WEIGHTS_STRING, 0, value, error);
}

enum status weights_writer_strings(struct weights_writer *writer, const char *key,
                                   const char *const *values, size_t count, struct error *error)
{
    struct buffer raw = {0};
    bool done = gguf_put_number(&raw, WEIGHTS_ARRAY, 4) &&
                gguf_put_number(&raw, WEIGHTS_STRING, 4) && gguf_put_number(&raw, count, 8);
    for (size_t i = 0; i < count && done; i++)
        done = gguf_put_string(&raw, values[i]);
    enum status status =
        done ? put_key(writer, key, raw.data, raw.size, error) : error_memory(error, raw.size);
    buffer_free(&raw);
    return status;
}

enum status weights_writer_declare(struct weights_writer *writer, const char *name,
                                   enum quant_format format, uint32_t n_dims, const uint64_t *shape,
                                   struct error *error)
{
    struct declared tensor = {.format = format, .n_dims = n_dims};
    const struct quant_info *info = quant_info(format);
    enum status status = check_name(writer, "tensor", name, error);
    if (status != STATUS_OK)
        return status;
    if (n_dims < 1 || n_dims > WEIGHTS_MAX_DIMS || shape[0] % info->block_len != 0)
        return error_set(
            error, STATUS_INVALID,
            "tensor " GGUF_NAME_SHOWN " has %" PRIu32 " dimensions and rows of %" PRIu64
            " numbers, expected 1 to %d and a multiple of %" PRIu32,
            name, n_dims, n_dims > 0 ? shape[0] : 0, WEIGHTS_MAX_DIMS, info->block_len);
    size_t bytes = info->block_bytes;
    bool fits = shape[0] > 0 && size_mul(bytes, (size_t)(shape[0] / info->block_len), &bytes);
    for (uint32_t d = 1; d < n_dims; d++)
        fits = fits && shape[d] > 0 && size_mul(bytes, (size_t)shape[d], &bytes);
    if (!fits || bytes > SIZE_MAX / 2)
        return error_set(error, STATUS_INVALID,
                         "tensor " GGUF_NAME_SHOWN " has an empty or far too large shape", name);
    memcpy(tensor.shape, shape, n_dims * sizeof *shape);
    tensor.size_bytes = bytes;
    tensor.name = arena_copy(writer->arena, name, strlen(name));
    if (tensor.name == NULL || !buffer_append(&writer->tensors, &tensor, sizeof tensor))
        return error_memory(error, sizeof tensor);
    writer->tensor_count++;
    return STATUS_OK;
}

/* ---- The header ------------------------------------------------------------------------------ */

static const char *key_name(const struct weights_writer *writer, size_t index)
{
    const char *name;
    memcpy(&name, writer->key_names.data + index * sizeof name, sizeof name);
    return name;
}

static const char *tensor_name(const struct weights_writer *writer, size_t index)
{
    return declared_at(writer, index)->name;
}

static enum status check_unique(const struct weights_writer *writer, const char *kind, size_t count,
                                const char *(*name_at)(const struct weights_writer *, size_t),
                                struct error *error)
{
    struct name_index index = {calloc(count + 1, sizeof *index.slots), count};
    if (index.slots == NULL)
        return error_memory(error, count * sizeof *index.slots);
    for (size_t i = 0; i < count; i++)
        index.slots[i] = (struct name_slot){name_at(writer, i), i};
    const char *twice = name_index_sort(&index);
    free(index.slots);
    if (twice == NULL)
        return STATUS_OK;
    return error_set(error, STATUS_INVALID, "%s " GGUF_NAME_SHOWN " is written twice", kind, twice);
}

static enum status write_padding(struct weights_writer *writer, struct error *error)
{
    static const uint8_t zeros[4096];
    uint64_t past = file_written(writer->file) % writer->alignment;
    enum status status = STATUS_OK;
    for (uint64_t left = past == 0 ? 0 : writer->alignment - past;
         left > 0 && status == STATUS_OK;) {
        size_t n = (size_t)MIN(left, sizeof zeros);
        status = file_write(writer->file, zeros, n, error);
        left -= n;
    }
    return status;
}

static bool put_tensor(struct buffer *out, const struct declared *tensor, uint64_t offset)
{
    bool done = gguf_put_string(out, tensor->name) && gguf_put_number(out, tensor->n_dims, 4);
    for (uint32_t d = 0; d < tensor->n_dims && done; d++)
        done = gguf_put_number(out, tensor->shape[d], 8);
    return done && gguf_put_number(out, gguf_format_number(tensor->format), 4) &&
           gguf_put_number(out, offset, 8);
}

static enum status write_header(struct weights_writer *writer, struct error *error)
{
    enum status status = check_unique(writer, "key", writer->key_count, key_name, error);
    if (status == STATUS_OK)
        status = check_unique(writer, "tensor", writer->tensor_count, tensor_name, error);
    if (status != STATUS_OK)
        return status;
    struct buffer header = {0};
    buffer_append_text(&header, GGUF_MAGIC);
    gguf_put_number(&header, GGUF_VERSION, 4);
    gguf_put_number(&header, writer->tensor_count, 8);
    gguf_put_number(&header, writer->key_count, 8);
    buffer_append(&header, writer->keys.data, writer->keys.size);
    uint64_t offset = 0;
    for (size_t i = 0; i < writer->tensor_count && !header.failed; i++) {
        const struct declared *tensor = declared_at(writer, i);
        put_tensor(&header, tensor, offset);
        offset += tensor->size_bytes;
        offset += (writer->alignment - offset % writer->alignment) % writer->alignment;
    }
    status = header.failed ? error_memory(error, header.size)
                           : file_write(writer->file, header.data, header.size, error);
    buffer_free(&header);
    if (status == STATUS_OK && writer->tensor_count > 0)
        status = write_padding(writer, error);
    writer->header_written = status == STATUS_OK;
    return status;
}

/* ---- Data ------------------------------------------------------------------------------------ */

enum status weights_writer_data(struct weights_writer *writer, const void *data, size_t size,
                                struct error *error)
{
    enum status status = STATUS_OK;
    if (!writer->header_written)
        status = write_header(writer, error);
    const char *bytes = data;
    while (size > 0 && status == STATUS_OK) {
        if (writer->current == writer->tensor_count)
            return error_set(error, STATUS_INVALID, "%zu bytes more than the declared tensors take",
                             size);
        const struct declared *tensor = declared_at(writer, writer->current);
        size_t n = (size_t)MIN((uint64_t)size, tensor->size_bytes - writer->position);
        status = file_write(writer->file, bytes, n, error);
        if (status != STATUS_OK)
            return status;
        bytes += n;
        size -= n;
        writer->position += n;
        if (writer->position == tensor->size_bytes) {
            writer->current++;
            writer->position = 0;
            status = write_padding(writer, error);
        }
    }
    return status;
}

enum status weights_writer_commit(struct weights_writer *writer, struct error *error)
{
    enum status status = STATUS_OK;
    if (!writer->header_written)
        status = write_header(writer, error);
    if (status == STATUS_OK && writer->current < writer->tensor_count) {
        const struct declared *tensor = declared_at(writer, writer->current);
        status = error_set(error, STATUS_INVALID,
                           "tensor " GGUF_NAME_SHOWN " has %" PRIu64 " of its %" PRIu64 " bytes",
                           tensor->name, writer->position, tensor->size_bytes);
    }
    if (status == STATUS_OK) {
        struct file_writer *file = writer->file;
        writer->file = NULL;
        status = file_commit(file, error);
    }
    weights_writer_discard(writer);
    return status;
}
