/* Opening a model: one GGUF file or all parts of a split one, joined into one list of keys and one
 * of tensors. The keys of a split model are those of its first part; split.* are used up here. */
#include "weights/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Names of parts -------------------------------------------------------------------------- */

/* "-00001-of-00003.gguf" */
#define PART_SUFFIX_BYTES 20

static const char *without_folders(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static bool five_digits(const char *text, unsigned *out)
{
    *out = 0;
    for (int i = 0; i < 5; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *out = *out * 10 + (unsigned)(text[i] - '0');
    }
    return true;
}

/* True where path ends as the parts of a split model do; number counts from 1. */
static bool part_name(const char *path, unsigned *number, unsigned *count)
{
    size_t length = strlen(path);
    if (length <= PART_SUFFIX_BYTES)
        return false;
    const char *suffix = path + length - PART_SUFFIX_BYTES;
    return suffix[0] == '-' && five_digits(suffix + 1, number) &&
           memcmp(suffix + 6, "-of-", 4) == 0 && five_digits(suffix + 10, count) &&
           strcmp(suffix + 15, ".gguf") == 0;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status open_part(struct weights *weights, const char *path, struct gguf_part *part,
                             struct error *error)
{
    const char *name = without_folders(path);
    struct stat info;
    part->name = arena_copy(weights->arena, name, strlen(name));
    if (part->name == NULL)
        return error_memory(error, strlen(name));
    /* Asked before opening, because opening a pipe would wait for its other end. */
    if (stat(path, &info) != 0)
        return error_set(error, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                         "cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return error_set(error, STATUS_INVALID, "%s is %s, expected a GGUF file", path,
                         S_ISDIR(info.st_mode) ? "a folder" : "not a regular file");
    enum status status = file_map_open(&part->map, path, error);
    if (status != STATUS_OK)
        return status;
    part->data = part->map.data;
    part->size = part->map.size;
    part->device = info.st_dev;
    part->inode = info.st_ino;
    part->modified_ns = file_modified_ns(&info);
    return gguf_read_part(part, weights->arena, error);
}

static const struct gguf_value *part_value(const struct gguf_part *part, const char *key)
{
    for (size_t i = 0; i < part->value_count; i++)
        if (strcmp(part->values[i].key, key) == 0)
            return &part->values[i];
    return NULL;
}

static enum status expect_number(const struct gguf_part *part, const char *key, uint64_t expected,
                                 struct error *error)
{
    const struct gguf_value *value = part_value(part, key);
    uint64_t found;
    if (value == NULL)
        return error_set(error, STATUS_INVALID,
                         "%s has no key %s, expected %" PRIu64 " for a part of this split model",
                         part->name, key, expected);
    if (!gguf_value_unsigned(value, UINT64_MAX, &found))
        return error_set(error, STATUS_INVALID, "%s: key %s is not a count, expected %" PRIu64,
                         part->name, key, expected);
    if (found != expected)
        return error_set(error, STATUS_INVALID, "%s: key %s is %" PRIu64 ", expected %" PRIu64,
                         part->name, key, found, expected);
    return STATUS_OK;
}

/* A file that is named as a whole one must not say that it is a part. */
static enum status expect_whole(const struct gguf_part *part, struct error *error)
{
    const struct gguf_value *value = part_value(part, "split.count");
    uint64_t count;
    if (value == NULL)
        return STATUS_OK;
    if (!gguf_value_unsigned(value, GGUF_MAX_PARTS, &count))
        return error_set(error, STATUS_INVALID,
                         "%s: key split.count is not a number of parts, expected 0 to %d",
                         part->name, GGUF_MAX_PARTS);
    if (count <= 1)
        return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "%s is one part of a split model (key split.count); parts must keep their "
                     "names, which end in -00001-of-%05" PRIu64 ".gguf",
                     part->name, count);
}

/* Opens part number i (from 0) of part_count and checks that it says so itself. */
static enum status open_numbered(struct weights *weights, size_t i, struct error *error)
{
    struct gguf_part *part = &weights->parts[i];
    size_t bytes = strlen(weights->path) + 1;
    char *path = malloc(bytes);
    if (path == NULL)
        return error_memory(error, bytes);
    memcpy(path, weights->path, bytes);
    char number[16];
    snprintf(number, sizeof number, "%05u", (unsigned)(i + 1));
    memcpy(path + bytes - 1 - PART_SUFFIX_BYTES + 1, number, 5);
    enum status status = open_part(weights, path, part, error);
    if (status == STATUS_NOT_FOUND)
        status = error_set(error, STATUS_NOT_FOUND, "part %zu of %zu is missing: there is no %s",
                           i + 1, weights->part_count, path);
    free(path);
    if (status == STATUS_OK)
        status = expect_number(part, "split.count", weights->part_count, error);
    if (status == STATUS_OK)
        status = expect_number(part, "split.no", i, error);
    return status;
}

static bool is_split_key(const char *key)
{
    return strncmp(key, "split.", 6) == 0;
}

static enum status join_values(struct weights *weights, struct error *error)
{
    const struct gguf_part *first = &weights->parts[0];
    struct name_index *index = &weights->value_index;
    weights->values = first->values;
    index->slots = arena_array(weights->arena, first->value_count, sizeof *index->slots);
    if (index->slots == NULL && first->value_count > 0)
        return error_memory(error, first->value_count * sizeof *index->slots);
    for (size_t i = 0; i < first->value_count; i++) {
        if (is_split_key(first->values[i].key))
            continue;
        size_t n = weights->value_count++;
        weights->values[n] = first->values[i];
        index->slots[n] = (struct name_slot){weights->values[n].key, n};
    }
    index->count = weights->value_count;
    const char *twice = name_index_sort(index);
    if (twice != NULL)
        return error_set(error, STATUS_INVALID,
                         "%s: key " GGUF_NAME_SHOWN " occurs twice, expected once", first->name,
                         twice);
    return STATUS_OK;
}

static enum status join_tensors(struct weights *weights, struct error *error)
{
    struct name_index *index = &weights->tensor_index;
    size_t count = 0;
    for (size_t i = 0; i < weights->part_count; i++)
        count += weights->parts[i].tensor_count;
    if (weights->part_count > 1) {
        enum status status = expect_number(&weights->parts[0], "split.tensors.count", count, error);
        if (status != STATUS_OK)
            return status;
    }
    weights->tensors = arena_array(weights->arena, count, sizeof *weights->tensors);
    index->slots = arena_array(weights->arena, count, sizeof *index->slots);
    if (count > 0 && (weights->tensors == NULL || index->slots == NULL))
        return error_memory(error, count * sizeof *weights->tensors);
    for (size_t i = 0; i < weights->part_count; i++)
        for (size_t j = 0; j < weights->parts[i].tensor_count; j++) {
            size_t n = weights->tensor_count++;
            weights->tensors[n] = weights->parts[i].tensors[j];
            index->slots[n] = (struct name_slot){weights->tensors[n].name, n};
        }
    index->count = count;
    const char *twice = name_index_sort(index);
    if (twice != NULL)
        return error_set(error, STATUS_INVALID,
                         "%s: tensor " GGUF_NAME_SHOWN " occurs twice, expected once",
                         weights->parts[0].name, twice);
    return STATUS_OK;
}

static struct weights *weights_new(const char *path, size_t part_count)
{
    struct weights *weights = calloc(1, sizeof *weights);
    if (weights == NULL)
        return NULL;
    weights->arena = arena_open(0);
    weights->prefetch = prefetch_open(weights);
    if (weights->arena != NULL) {
        weights->path = arena_copy(weights->arena, path, strlen(path));
        weights->parts = arena_array(weights->arena, part_count, sizeof *weights->parts);
    }
    if (weights->path == NULL || weights->parts == NULL || weights->prefetch == NULL) {
        weights_close(weights);
        return NULL;
    }
    weights->part_count = part_count;
    return weights;
}

/* Ends an opening: joins what was read, or takes everything back. */
static enum status finish(struct weights **out, struct weights *weights, enum status status,
                          struct error *error)
{
    if (status == STATUS_OK)
        status = join_tensors(weights, error);
    if (status == STATUS_OK)
        status = join_values(weights, error);
    if (status == STATUS_OK)
        status = slice_join(weights, error);
    if (status == STATUS_OK)
        *out = weights;
    else
        weights_close(weights);
    return status;
}

enum status weights_open(struct weights **out, const char *path, struct error *error)
{
    *out = NULL;
    unsigned number = 1, count = 1;
    bool numbered = part_name(path, &number, &count);
    if (numbered && (number < 1 || number > count || count > GGUF_MAX_PARTS))
        return error_set(error, STATUS_INVALID,
                         "%s is named part %u of %u, expected 1 to %u of at most %d",
                         without_folders(path), number, count, count, GGUF_MAX_PARTS);
    struct weights *weights = weights_new(path, count);
    if (weights == NULL)
        return error_memory(error, sizeof *weights);
    enum status status = STATUS_OK;
    if (count == 1) {
        status = open_part(weights, path, &weights->parts[0], error);
        if (status == STATUS_OK)
            status = expect_whole(&weights->parts[0], error);
    }
    for (size_t i = 0; i < count && count > 1 && status == STATUS_OK; i++)
        status = open_numbered(weights, i, error);
    return finish(out, weights, status, error);
}

enum status weights_open_memory(struct weights **out, const char *name, const void *data,
                                size_t size, struct error *error)
{
    *out = NULL;
    struct weights *weights = weights_new(name, 1);
    if (weights == NULL)
        return error_memory(error, sizeof *weights);
    struct gguf_part *part = &weights->parts[0];
    part->name = weights->path;
    part->data = data;
    part->size = size;
    enum status status = gguf_read_part(part, weights->arena, error);
    if (status == STATUS_OK)
        status = expect_whole(part, error);
    return finish(out, weights, status, error);
}

void weights_close(struct weights *weights)
{
    if (weights == NULL)
        return;
    prefetch_close(weights->prefetch);
    for (size_t i = 0; i < weights->part_count; i++)
        file_map_close(&weights->parts[i].map);
    arena_close(weights->arena);
    free(weights);
}

/* ---- Reading --------------------------------------------------------------------------------- */

const char *weights_path(const struct weights *weights)
{
    return weights->path;
}

bool weights_reads(const struct weights *weights, const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return false;
    for (size_t i = 0; i < weights->part_count; i++)
        if (weights->parts[i].device == info.st_dev && weights->parts[i].inode == info.st_ino)
            return true;
    return false;
}

uint64_t weights_size_bytes(const struct weights *weights)
{
    uint64_t size = 0;
    for (size_t i = 0; i < weights->part_count; i++)
        size += weights->parts[i].size;
    return size;
}

bool weights_stamp(const struct weights *weights, struct buffer *out)
{
    bool good = true;
    for (size_t i = 0; i < weights->part_count && good; i++) {
        const struct gguf_part *part = &weights->parts[i];
        good = buffer_printf(out, ", file %ju/%ju of %zu bytes at %jd", (uintmax_t)part->device,
                             (uintmax_t)part->inode, part->size, (intmax_t)part->modified_ns);
    }
    return good;
}

size_t weights_tensor_count(const struct weights *weights)
{
    return weights->tensor_count;
}

const struct weights_tensor *weights_tensor_at(const struct weights *weights, size_t index)
{
    return &weights->tensors[index];
}

const struct weights_tensor *weights_find(const struct weights *weights, const char *name)
{
    size_t position;
    return name_index_find(&weights->tensor_index, name, &position) ? &weights->tensors[position]
                                                                    : NULL;
}

struct quant_matrix weights_matrix(const struct weights_tensor *tensor)
{
    return (struct quant_matrix){
        .format = tensor->format,
        .data = tensor->data,
        .row_bytes = quant_row_bytes(tensor->format, (size_t)tensor->shape[0]),
        .n_rows = (size_t)(tensor->shape[1] * tensor->shape[2] * tensor->shape[3]),
        .n_cols = (size_t)tensor->shape[0],
    };
}

/* Where span begins among what is held, in numbers along dim; false where it is not. */
static bool find_held(const struct weights_tensor *tensor, uint32_t dim, struct weights_span span,
                      uint64_t *begin)
{
    const struct weights_cut *held = &tensor->held;
    uint64_t at = 0;
    *begin = span.begin;
    if (tensor->data == NULL)
        return false;
    if (held->n == 0)
        return true;
    for (uint32_t s = 0; s < held->n && held->dim == dim; s++) {
        if (span.begin >= held->spans[s].begin && span.end <= held->spans[s].end) {
            *begin = at + (span.begin - held->spans[s].begin);
            return true;
        }
        at += held->spans[s].end - held->spans[s].begin;
    }
    return false;
}

bool weights_part(const struct weights_tensor *tensor, uint32_t dim, struct weights_span span,
                  struct weights_tensor *part)
{
    uint32_t block = quant_info(tensor->format)->block_len;
    uint64_t begin;
    if (dim > 2 || span.begin >= span.end || span.end > tensor->shape[dim] ||
        (dim == 0 && (span.begin % block != 0 || span.end % block != 0)) ||
        !find_held(tensor, dim, span, &begin))
        return false;
    size_t offset = dim == 0   ? quant_row_bytes(tensor->format, (size_t)begin)
                    : dim == 1 ? (size_t)begin * tensor->row_bytes
                               : (size_t)begin * tensor->matrix_bytes;
    *part = *tensor;
    part->held = (struct weights_cut){0};
    part->shape[dim] = span.end - span.begin;
    part->data = (const char *)tensor->data + offset;
    part->size_bytes = (part->shape[3] * part->shape[2] - 1) * tensor->matrix_bytes +
                       (part->shape[1] - 1) * tensor->row_bytes +
                       quant_row_bytes(tensor->format, (size_t)part->shape[0]);
    return true;
}
